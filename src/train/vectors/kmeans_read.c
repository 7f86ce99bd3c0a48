/* Rounds over a file: a block of every rank, the next one on its way to a device while kernels work
 * on this one. */
#include <math.h>

#include "train/vectors/kmeans_priv.h"

void kmeans_round(tess_kmeans *job, int64_t vector_numel, int64_t round)
{
    for (int r = 0; r < job->world; r++) {
        const int64_t first = (round * job->world + r) * KMEANS_BLOCK;
        job->numel[r] = TESS_MIN(TESS_MAX(vector_numel - first, 0), (int64_t)KMEANS_BLOCK);
    }
}

tess_status kmeans_round_verdict(tess_kmeans *job, tess_status st)
{
    return job->plan.book.shape.is_sharded ? tess_agree(job->parts.comm, st) : st;
}

tess_status kmeans_pass_verdict(tess_kmeans *job, tess_status st)
{
    /* Where rounds were collective a failure is known already, or fatal. */
    return job->plan.book.shape.is_sharded ? st : tess_agree(job->parts.comm, st);
}

/* x / max(|x|, 1e-6) */
void kmeans_make_unit(float *x, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square += (double)x[j] * (double)x[j];
    const double length = fmax(sqrt(square), 1e-6);
    for (int64_t j = 0; j < dim; j++)
        x[j] = (float)((double)x[j] / length);
}

/* ---- blocks ---- */

/* The next block of memory. */
static void turn(tess_kmeans *job)
{
    if (kmeans_is_far(job))
        job->block_idx = !job->block_idx;
    job->x = job->block[job->block_idx].x;
    job->near = job->block[job->block_idx].near;
    if (job->plan.config.group_numel == 1)
        job->slice = job->near;
}

/* The own block of a round from the file, where an earlier copy from there is done. */
static tess_status fill(tess_kmeans *job, kmeans_block *b, tess_vectors *vectors, int64_t round)
{
    const int64_t first = (round * job->world + job->rank) * KMEANS_BLOCK, dim = job->plan.dim;
    const int64_t left = tess_vectors_get_info(vectors)->vector_numel - first;
    const int64_t numel = TESS_MIN(TESS_MAX(left, 0), (int64_t)KMEANS_BLOCK);
    b->vectors = NULL;
    if (kmeans_is_far(job))
        TESS_TRY(tess_event_finish(&b->up));
    if (numel == 0)
        return TESS_OK;
    TESS_TRY(tess_vectors_read(vectors, first, numel, b->x));
    for (int64_t i = 0; job->plan.config.is_spherical && i < numel; i++)
        kmeans_make_unit(b->x + i * dim, dim);
    return TESS_OK;
}

/* No kernel reads what lies there: a round ends when the host has waited for its own, and a block
 * is written when the round that used it is over. */
static tess_status send(tess_kmeans *job, kmeans_block *b)
{
    const int64_t numel = KMEANS_BLOCK * job->plan.dim;
    if (!kmeans_is_far(job))
        return TESS_OK;
    TESS_TRY(tess_device_copy(job->device, kmeans_view(job, b->near, numel, TESS_F32),
                              tess_view_host(b->x, numel, TESS_F32), job->copying));
    return tess_event_record(&b->up, job->copying);
}

static tess_status read_block(tess_kmeans *job, tess_vectors *vectors, int64_t round)
{
    turn(job);
    kmeans_block *b = &job->block[job->block_idx];
    const bool is_here = b->vectors == vectors && b->round == round;
    b->vectors = NULL;
    if (!is_here) {
        TESS_TRY(fill(job, b, vectors, round));
        TESS_TRY(send(job, b));
    }
    job->next = vectors;
    job->next_round = round + 1;
    return kmeans_is_far(job) ? tess_stream_wait(job->parts.stream, &b->up) : TESS_OK;
}

void kmeans_read_ahead(tess_kmeans *job)
{
    kmeans_block *b = &job->block[!job->block_idx];
    tess_vectors *vectors = job->next;
    job->next = NULL;
    if (!kmeans_is_far(job) || vectors == NULL ||
        (job->next_round * job->world + job->rank) * KMEANS_BLOCK >=
            tess_vectors_get_info(vectors)->vector_numel)
        return;
    tess_status st = fill(job, b, vectors, job->next_round);
    if (st == TESS_OK)
        st = send(job, b);
    if (st != TESS_OK) {
        tess_error_clear(); /* whoever needs the block meets it again */
        return;
    }
    b->vectors = vectors;
    b->round = job->next_round;
}

tess_status kmeans_read(tess_kmeans *job, tess_vectors *vectors, int64_t round)
{
    kmeans_round(job, tess_vectors_get_info(vectors)->vector_numel, round);
    if (job->tick != NULL)
        job->tick(job->tick_arg);
    return kmeans_round_verdict(job, read_block(job, vectors, round));
}

tess_status kmeans_read_group(tess_kmeans *job, int group, int64_t round)
{
    TESS_TRY(kmeans_read(job, job->parts.vectors, round));
    return kmeans_slice(job, group);
}

tess_status kmeans_read_host(tess_kmeans *job, tess_vectors *vectors, int64_t round)
{
    kmeans_round(job, tess_vectors_get_info(vectors)->vector_numel, round);
    return fill(job, &job->block[job->block_idx], vectors, round);
}

tess_status kmeans_open_block(tess_kmeans *job)
{
    turn(job);
    job->block[job->block_idx].vectors = NULL;
    job->next = NULL;
    return kmeans_is_far(job) ? tess_event_finish(&job->block[job->block_idx].up) : TESS_OK;
}

tess_status kmeans_send_block(tess_kmeans *job)
{
    kmeans_block *b = &job->block[job->block_idx];
    TESS_TRY(send(job, b));
    return kmeans_is_far(job) ? tess_stream_wait(job->parts.stream, &b->up) : TESS_OK;
}

/* ---- where kernels read and write ---- */

tess_status kmeans_slice(tess_kmeans *job, int group)
{
    const int64_t row_nbytes = job->plan.group_dim * (int64_t)sizeof(float);
    const tess_rows_copy copy = {.dst = job->slice,
                                 .src = job->near + group * job->plan.group_dim,
                                 .dst_stride_nbytes = row_nbytes,
                                 .src_stride_nbytes = job->plan.dim * (int64_t)sizeof(float),
                                 .row_numel = job->numel[job->rank],
                                 .row_nbytes = row_nbytes};
    if (job->plan.config.group_numel == 1)
        return TESS_OK;
    return tess_device_copy_rows(job->device, &copy, job->parts.stream);
}

tess_status kmeans_land(tess_kmeans *job, float *src, int64_t numel, float **out)
{
    const int64_t all = numel * job->plan.group_dim;
    *out = kmeans_is_far(job) ? job->x : src;
    if (!kmeans_is_far(job))
        return TESS_OK;
    TESS_TRY(tess_device_copy(job->device, tess_view_host(job->x, all, TESS_F32),
                              kmeans_view(job, src, all, TESS_F32), job->parts.stream));
    return tess_stream_finish(job->parts.stream);
}
