/* The job's memory, its rounds over a file, and the scan. */
#include "train/vectors/kmeans.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "train/vectors/kmeans_priv.h"

/* ---- create ---- */

static tess_status array(void *slot, int64_t a, int64_t b, size_t nbytes)
{
    int64_t numel = 0;
    void *out = NULL;
    TESS_TRY(tess_mul_i64(a, b, &numel));
    TESS_TRY(tess_alloc_array(numel, nbytes, &out));
    memcpy(slot, &out, sizeof out);
    return TESS_OK;
}

void *kmeans_at(const tess_kmeans *job, kmeans_place which)
{
    tess_view all = {0};
    const bool is_near = which < KMEANS_HOST_X;
    const size_t nbytes = is_near ? job->layout.near_nbytes : job->layout.host_nbytes;
    const tess_status st =
        tess_arena_view(job->arena[!is_near], 0, (int64_t)nbytes, TESS_U8_OPAQUE, &all);
    TESS_ASSERT(st == TESS_OK);
    (void)st;
    return (char *)all.data + job->layout.offset_nbytes[which];
}

/* The memory of kernels, and that of the host which copies reach. */
static tess_status make_places(tess_kmeans *job)
{
    tess_device *device = job->device;
    TESS_TRY(kmeans_lay_out(&job->plan, job->parts.kernels, &job->layout));
    TESS_TRY(tess_device_arena_create(device, device->space, "k-means", job->layout.near_nbytes,
                                      &job->arena[0]));
    TESS_TRY(tess_device_arena_create(device, TESS_HOST, "k-means, host", job->layout.host_nbytes,
                                      &job->arena[1]));
    job->residual = kmeans_at(job, KMEANS_RESIDUAL);
    job->key = kmeans_at(job, KMEANS_HOST_KEY);
    job->slice = kmeans_at(job, KMEANS_SLICE);
    return TESS_OK;
}

static tess_status make_blocks(tess_kmeans *job)
{
    const int64_t block_numel = KMEANS_BLOCK * job->plan.dim;
    const bool is_far = kmeans_is_far(job);
    if (is_far)
        TESS_TRY(tess_device_stream_create(job->device, "blocks", false, &job->copying));
    for (int i = 0; i < 1 + is_far; i++) {
        kmeans_block *b = &job->block[i];
        b->near = (float *)kmeans_at(job, KMEANS_X) + i * block_numel;
        b->x = is_far ? (float *)kmeans_at(job, KMEANS_HOST_X) + i * block_numel : b->near;
        if (is_far) {
            memset(b->x, 0, (size_t)block_numel * sizeof *b->x); /* whole blocks go up */
            TESS_TRY(tess_event_init(&b->up, job->copying));
        }
    }
    job->x = job->block[0].x;
    job->near = job->block[0].near;
    if (job->plan.config.group_numel == 1)
        job->slice = job->near;
    return TESS_OK;
}

static tess_status allocate(tess_kmeans *job)
{
    const tess_kmeans_plan *p = &job->plan;
    const tess_kmeans_config *c = &p->config;
    const int64_t entries = KMEANS_BLOCK * (int64_t)c->beam_numel;
    const int64_t path = (int64_t)c->beam_numel * c->level_numel;
    const bool is_reader = job->parts.vectors == NULL;
    TESS_TRY(array(&job->mean, p->dim, 1, sizeof(double)));
    TESS_TRY(array(&job->square, c->group_numel, 1, sizeof(double)));
    TESS_TRY(array(&job->numel, job->world, 2, sizeof(int64_t)));
    TESS_TRY(array(&job->tally, c->code_numel, 1, sizeof(int64_t)));
    TESS_TRY(array(&job->spread, c->code_numel, 1, sizeof(int64_t)));
    TESS_TRY(array(&job->row, entries, 1, sizeof(uint32_t)));
    TESS_TRY(array(&job->parent, entries, 1, sizeof(uint32_t)));
    TESS_TRY(array(&job->code, KMEANS_BLOCK, path, sizeof(uint32_t)));
    if (!is_reader)
        TESS_TRY(array(&job->state, p->held_numel, path, sizeof(uint32_t)));
    TESS_TRY(make_places(job));
    return make_blocks(job);
}

tess_status tess_kmeans_create(const tess_kmeans_parts *parts, tess_kmeans **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_kmeans), &object));
    tess_kmeans *job = object;
    job->parts = *parts;
    job->plan = *parts->plan;
    job->parts.plan = &job->plan;
    job->rank = tess_comm_rank(parts->comm);
    job->world = tess_comm_world(parts->comm);
    job->progress.error = -1.0;
    tess_host_device_init(&job->host, NULL);
    job->device = parts->device != NULL ? parts->device : &job->host.base;
    const tess_codebooks_parts books = {.plan = &job->plan.book,
                                        .kernels = parts->kernels,
                                        .device = job->device,
                                        .stream = parts->stream,
                                        .comm = parts->comm};
    tess_status st = allocate(job);
    if (st == TESS_OK)
        st = tess_codebooks_create(&books, &job->books);
    if (st != TESS_OK) {
        tess_kmeans_destroy(&job);
        return st;
    }
    job->scan.mean = job->mean;
    *out = job;
    return TESS_OK;
}

void tess_kmeans_destroy(tess_kmeans **inout)
{
    tess_kmeans *job = *inout;
    if (job == NULL)
        return;
    if (kmeans_is_far(job) &&
        (tess_stream_finish(job->parts.stream) != TESS_OK ||
         (job->copying != NULL && tess_stream_finish(job->copying) != TESS_OK)))
        tess_error_clear(); /* whatever ended the job was told first */
    tess_codebooks_destroy(&job->books);
    for (int i = 0; i < 2 && job->copying != NULL; i++)
        tess_event_fini(&job->block[i].up, job->copying);
    tess_device_stream_destroy(job->device, &job->copying);
    for (int i = 0; i < 2; i++)
        tess_arena_destroy(&job->arena[i]);
    void *const owned[] = {job->mean, job->square, job->numel,  job->tally, job->spread,
                           job->row,  job->state,  job->parent, job->code};
    for (int i = 0; i < TESS_NELEM(owned); i++)
        tess_free(owned[i]);
    tess_free(job);
    *inout = NULL;
}

void tess_kmeans_set_tick(tess_kmeans *job, void (*tick)(void *arg), void *arg)
{
    job->tick = tick;
    job->tick_arg = arg;
}

tess_codebooks *tess_kmeans_books(tess_kmeans *job) { return job->books; }
const tess_kmeans_plan *tess_kmeans_get_plan(const tess_kmeans *job) { return &job->plan; }
tess_kmeans_progress *tess_kmeans_get_progress(tess_kmeans *job) { return &job->progress; }
const tess_kmeans_scan_result *tess_kmeans_scanned(const tess_kmeans *job) { return &job->scan; }

/* ---- scan ---- */

typedef struct scan {
    float largest;
    tess_exact *square; /* [groups] */
    tess_exact *mean;   /* [dim] */
    double *sum;        /* [dim] of a block */
    tess_logical_hash digest;
} scan;

static tess_status scan_vector(tess_kmeans *job, const float *x, int64_t vector_idx, scan *s)
{
    double square = 0.0;
    const int64_t d = job->plan.group_dim;
    for (int64_t j = 0; j < job->plan.dim; j++) {
        TESS_CHECK(isfinite(x[j]), TESS_E_FORMAT,
                   "data.path: '%s': dimension %" PRId64 " of vector %" PRId64
                   " is %g, expected a finite number; remove or mask the vector",
                   tess_vectors_get_info(job->parts.vectors)->path, j,
                   tess_vectors_place(job->parts.vectors, vector_idx), (double)x[j]);
        s->largest = fmaxf(s->largest, fabsf(x[j]));
        square += (double)x[j] * (double)x[j];
        s->sum[j] += (double)x[j];
        if ((j + 1) % d == 0) {
            (void)tess_exact_add(&s->square[j / d], square);
            square = 0.0;
        }
    }
    return TESS_OK;
}

static tess_status scan_block(tess_kmeans *job, int64_t round, scan *s)
{
    const int64_t first = (round * job->world + job->rank) * KMEANS_BLOCK, dim = job->plan.dim;
    memset(s->sum, 0, (size_t)dim * sizeof *s->sum);
    TESS_TRY(kmeans_read_host(job, job->parts.vectors, round));
    for (int64_t i = 0; i < job->numel[job->rank]; i++)
        TESS_TRY(scan_vector(job, job->x + i * dim, first + i, s));
    tess_vectors_digest_add(&s->digest, job->x, dim, first, job->numel[job->rank]);
    for (int64_t j = 0; j < dim; j++)
        (void)tess_exact_add(&s->mean[j], s->sum[j]);
    return TESS_OK;
}

/* Largest value by its bits: those of numbers that are not negative compare like them. */
static tess_status share_scan(tess_kmeans *job, scan *s)
{
    tess_comm *comm = job->parts.comm;
    const double n = (double)job->plan.vector_numel;
    int64_t largest = (int64_t)tess_ordered_bits(s->largest);
    int64_t lanes[2] = {0};
    _Static_assert(sizeof lanes == sizeof s->digest, "lanes of an identity");
    memcpy(lanes, &s->digest, sizeof lanes);
    TESS_TRY(tess_comm_control(comm, lanes, 2, &largest, 1));
    memcpy(&job->scan.digest, lanes, sizeof lanes);
    job->scan.largest = tess_ordered_value((uint32_t)largest);
    for (int g = 0; g < job->plan.config.group_numel; g++) {
        TESS_TRY(tess_comm_control(comm, s->square[g].limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
        job->square[g] = tess_exact_round(&s->square[g]) / n;
        job->scan.mean_square += job->square[g];
    }
    for (int64_t j = 0; j < job->plan.dim; j++) {
        TESS_TRY(tess_comm_control(comm, s->mean[j].limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
        job->mean[j] = tess_exact_round(&s->mean[j]) / n;
    }
    return TESS_OK;
}

/* Squared distances are f32 in the keys that choose codes; codes and what levels leave are no
 * longer than twice a vector. */
static tess_status check_range(const tess_kmeans *job)
{
    const double most = sqrt((double)FLT_MAX / (double)job->plan.dim) / 4.0;
    TESS_CHECK((double)job->scan.largest <= most, TESS_E_FORMAT,
               "data.path: '%s': the largest value is %g, and squared distances of %" PRId64
               " dimensions overflow f32 above %.3g; scale the vectors",
               tess_vectors_get_info(job->parts.vectors)->path, (double)job->scan.largest,
               job->plan.dim, most);
    return TESS_OK;
}

tess_status tess_kmeans_scan(tess_kmeans *job)
{
    scan s = {0};
    tess_status st = array(&s.mean, job->plan.dim, 1, sizeof(tess_exact));
    if (st == TESS_OK)
        st = array(&s.sum, job->plan.dim, 1, sizeof(double));
    if (st == TESS_OK)
        st = array(&s.square, job->plan.config.group_numel, 1, sizeof(tess_exact));
    for (int64_t round = 0; round < job->plan.round_numel && st == TESS_OK; round++)
        st = scan_block(job, round, &s);
    st = tess_agree(job->parts.comm, st);
    if (st == TESS_OK)
        st = share_scan(job, &s);
    tess_free(s.mean);
    tess_free(s.sum);
    tess_free(s.square);
    return st == TESS_OK ? check_range(job) : st;
}
