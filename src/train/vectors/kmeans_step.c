/* Passes, mini-batches and refinements, in the order of groups and levels. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/vectors/kmeans_priv.h"

static const double log_floor = 1e-10; /* of perplexity, as its definition has it */

static uint32_t *state_of(const tess_kmeans *job, int64_t vector_idx)
{
    const tess_kmeans_config *c = &job->plan.config;
    return job->state + vector_idx * c->beam_numel * c->level_numel;
}

/* ---- exponents ---- */

tess_status kmeans_exponent(tess_kmeans *job, int group, int level, int *exponent)
{
    int64_t lo = 0, hi = 0;
    double bound = (double)(job->plan.config.is_spherical ? 1.0f : job->scan.largest);
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int l = 0; l < level; l++) {
        const float *code =
            tess_codebooks_rows(job->books, tess_kmeans_book(&job->plan.config, group, l));
        float most = 0.0f;
        for (int64_t i = 0; i < (hi - lo) * job->plan.group_dim; i++)
            most = fmaxf(most, fabsf(code[i]));
        int64_t bits = (int64_t)tess_ordered_bits(most);
        TESS_TRY(tess_comm_control(job->parts.comm, NULL, 0, &bits, 1));
        bound += (double)tess_ordered_value((uint32_t)bits);
    }
    /* Each difference was rounded once. */
    bound *= 1.0 + (double)(level + 1) * 0x1p-23;
    *exponent = tess_fixed_exponent(nextafterf((float)fmin(bound, FLT_MAX / 2), INFINITY),
                                    job->plan.vector_numel * job->plan.config.beam_numel);
    return TESS_OK;
}

/* ---- a pass ---- */

/* Sum of a round's distances, and their best codes' statistics. */
static tess_status assign_round(tess_kmeans *job, int book_idx, int entry_numel, tess_exact *error)
{
    const int64_t *numel = job->numel + job->world;
    for (int64_t lo = 0; kmeans_part(job, entry_numel, lo); lo += KMEANS_BLOCK) {
        const tess_codebook_round round = {.book_idx = book_idx,
                                           .x = job->residual + lo * job->plan.group_dim,
                                           .vector_numel = numel,
                                           .best_numel = 1,
                                           .key = job->key + lo,
                                           .adds = true};
        TESS_TRY(tess_codebooks_search(job->books, &round));
    }
    kmeans_read_ahead(job);
    TESS_TRY(tess_stream_finish(job->parts.stream));
    for (int64_t i = 0; i < job->numel[job->rank] * entry_numel; i++) {
        int64_t *spread = &job->spread[tess_key_row(job->key[i])];
        (void)tess_exact_add(error, (double)tess_key_distance(job->key[i]));
        *spread = TESS_MAX(*spread, (int64_t)(job->key[i] >> 32));
    }
    tess_exact_carry(error);
    return TESS_OK;
}

static tess_status assign_all(tess_kmeans *job, int group, int level, tess_exact *error)
{
    const int book_idx = tess_kmeans_book(&job->plan.config, group, level);
    tess_status st = TESS_OK;
    for (int64_t t = 0; t < job->plan.round_numel && st == TESS_OK; t++) {
        const kmeans_residual what = {.group = group,
                                      .level = level,
                                      .but = -1,
                                      .entry_numel = kmeans_entries(&job->plan.config, level),
                                      .code = state_of(job, t * KMEANS_BLOCK)};
        st = kmeans_read_group(job, group, t);
        if (st == TESS_OK)
            st = kmeans_round_verdict(job, kmeans_residuals(job, &what));
        if (st == TESS_OK)
            st = assign_round(job, book_idx, what.entry_numel, error);
    }
    return kmeans_pass_verdict(job, st);
}

/* ---- a mini-batch ---- */

static int by_number(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Vectors of mini-batch `batch_idx` that rank `rank` holds, ascending. @return how many */
static int64_t list_batch(const tess_kmeans *job, int rank, int64_t *out)
{
    const int64_t n = job->plan.vector_numel, size = job->plan.config.batch_numel;
    const int64_t per_epoch = n / size, batch_idx = job->progress.batch_idx;
    const tess_rng rng = tess_rng_make(job->plan.config.seed, TESS_RNG_SHUFFLE, 0,
                                       (uint32_t)(batch_idx / per_epoch));
    int64_t numel = 0;
    for (int64_t i = 0; i < size; i++) {
        const int64_t g = tess_rng_permute(&rng, n, batch_idx % per_epoch * size + i);
        if (g / KMEANS_BLOCK % job->world == rank)
            out[numel++] = g;
    }
    qsort(out, (size_t)numel, sizeof *out, by_number);
    return numel;
}

/* Place of a vector among those this rank holds. */
static int64_t held_place(const tess_kmeans *job, int64_t vector_idx)
{
    return vector_idx / KMEANS_BLOCK / job->world * KMEANS_BLOCK + vector_idx % KMEANS_BLOCK;
}

/* Vectors `id` into the block, their codes beside them. */
static tess_status read_picked(tess_kmeans *job, const int64_t *id)
{
    const int64_t path = (int64_t)job->plan.config.beam_numel * job->plan.config.level_numel;
    TESS_TRY(kmeans_open_block(job));
    for (int64_t i = 0; i < job->numel[job->rank]; i++) {
        TESS_TRY(tess_vectors_read(job->parts.vectors, id[i], 1, job->x + i * job->plan.dim));
        memcpy(job->code + i * path, state_of(job, held_place(job, id[i])),
               (size_t)path * sizeof *job->code);
    }
    return kmeans_send_block(job);
}

static tess_status assign_ids(tess_kmeans *job, int group, int level, int64_t *const ids,
                              const int64_t *held, tess_exact *error)
{
    const int book_idx = tess_kmeans_book(&job->plan.config, group, level);
    int64_t most = 0;
    tess_status st = TESS_OK;
    for (int r = 0; r < job->world; r++)
        most = TESS_MAX(most, held[r]);
    for (int64_t lo = 0; lo < most && st == TESS_OK; lo += KMEANS_BLOCK) {
        for (int r = 0; r < job->world; r++)
            job->numel[r] = TESS_MIN(TESS_MAX(held[r] - lo, 0), (int64_t)KMEANS_BLOCK);
        const kmeans_residual what = {.group = group,
                                      .level = level,
                                      .but = -1,
                                      .entry_numel = kmeans_entries(&job->plan.config, level),
                                      .code = job->code};
        st = kmeans_round_verdict(job, read_picked(job, ids + lo));
        if (st == TESS_OK)
            st = kmeans_slice(job, group);
        if (st == TESS_OK)
            st = kmeans_round_verdict(job, kmeans_residuals(job, &what));
        if (st == TESS_OK)
            st = assign_round(job, book_idx, what.entry_numel, error);
    }
    return kmeans_pass_verdict(job, st);
}

static tess_status assign_batch(tess_kmeans *job, int group, int level, tess_exact *error)
{
    void *ids = NULL, *held = NULL;
    tess_status st = tess_alloc_array(job->plan.config.batch_numel, sizeof(int64_t), &ids);
    if (st == TESS_OK)
        st = tess_alloc_array(job->world, sizeof(int64_t), &held);
    st = tess_agree(job->parts.comm, st);
    if (st == TESS_OK) {
        ((int64_t *)held)[job->rank] = list_batch(job, job->rank, ids);
        st = tess_comm_control(job->parts.comm, held, job->world, NULL, 0);
    }
    if (st == TESS_OK)
        st = assign_ids(job, group, level, ids, held, error);
    job->progress.batch_idx++;
    tess_free(ids);
    tess_free(held);
    return st;
}

/* ---- new codes ---- */

/* c += (n_batch / n_total) (mean of the batch - c), n_total with the batch. */
static void blend(tess_kmeans *job, int book_idx)
{
    const int64_t d = job->plan.group_dim, *sum = tess_codebooks_sum(job->books);
    const int64_t *tally = tess_codebooks_tally(job->books);
    int64_t *count = tess_codebooks_counts(job->books, book_idx), lo = 0, hi = 0;
    float *code = tess_codebooks_rows(job->books, book_idx);
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int64_t k = 0; k < hi - lo; k++) {
        if (tally[k] == 0)
            continue;
        count[k] += tally[k];
        const double share = (double)tally[k] / (double)count[k];
        for (int64_t j = 0; j < d; j++) {
            const double mean =
                tess_fixed_value(sum[k * d + j], tess_codebooks_exponent(job->books)) /
                (double)tally[k];
            code[k * d + j] =
                (float)((double)code[k * d + j] + share * (mean - (double)code[k * d + j]));
        }
    }
}

tess_status kmeans_take_means(tess_kmeans *job, int book_idx)
{
    const tess_kernels *kernels = kmeans_is_far(job) ? &tess_kernels_cpu : job->parts.kernels;
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    const tess_code_mean_args args = {.sum = tess_codebooks_sum(job->books),
                                      .count = tess_codebooks_tally(job->books),
                                      .code = tess_codebooks_rows(job->books, book_idx),
                                      .row_numel = hi - lo,
                                      .dim = job->plan.group_dim,
                                      .exponent = tess_codebooks_exponent(job->books),
                                      .is_unit = job->plan.config.is_spherical};
    return kernels->code_mean(&args, job->parts.host_stream);
}

/* The counts stay beside the codes. */
static tess_status take_means(tess_kmeans *job, int book_idx)
{
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    memcpy(tess_codebooks_counts(job->books, book_idx), tess_codebooks_tally(job->books),
           (size_t)(hi - lo) * sizeof(int64_t));
    return kmeans_take_means(job, book_idx);
}

static tess_status update_codes(tess_kmeans *job, int book_idx, tess_kmeans_report *out)
{
    const tess_kmeans_config *c = &job->plan.config;
    const bool is_last = job->progress.pass >= c->pass_numel && c->refine_numel == 0;
    /* Halves of a code that was split are means of nothing until they are fitted again. */
    const bool repairs = c->batch_numel == 0 && !is_last && out->used_numel < c->code_numel;
    tess_status st = TESS_OK;
    if (repairs)
        TESS_TRY(kmeans_find_spread(job, book_idx));
    if (c->batch_numel > 0)
        blend(job, book_idx);
    else
        st = take_means(job, book_idx);
    TESS_TRY(tess_agree(job->parts.comm, st));
    if (repairs)
        TESS_TRY(kmeans_repair(job, book_idx, &out->split_numel));
    return tess_codebooks_publish(job->books, book_idx);
}

/* ---- report ---- */

static tess_status describe_use(tess_kmeans *job, tess_kmeans_report *out)
{
    double total = 0.0, entropy = 0.0;
    TESS_TRY(kmeans_share_tally(job));
    for (int64_t k = 0; k < job->plan.config.code_numel; k++)
        total += (double)job->tally[k];
    for (int64_t k = 0; k < job->plan.config.code_numel; k++) {
        const double share = (double)job->tally[k] / fmax(total, 1.0);
        out->used_numel += job->tally[k] > 0;
        if (job->tally[k] > 0)
            entropy -= share * log(share + log_floor);
    }
    out->perplexity = exp(entropy);
    out->vector_numel = (int64_t)total;
    return TESS_OK;
}

static tess_status share_error(tess_kmeans *job, tess_exact *error, int64_t vector_numel,
                               tess_kmeans_report *out)
{
    TESS_TRY(tess_comm_control(job->parts.comm, error->limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
    const double square = job->plan.config.is_spherical ? 1.0 : job->square[out->group];
    out->error = tess_exact_round(error) / (double)vector_numel;
    out->relative = square > 0.0 ? out->error / square : 0.0;
    return TESS_OK;
}

/* ---- a level ---- */

/* Codes of one more level for all vectors; `error` may be NULL. */
static tess_status extend_all(tess_kmeans *job, int group, int level, tess_exact *error)
{
    float found[KMEANS_BLOCK];
    tess_status st = TESS_OK;
    for (int64_t t = 0; t < job->plan.round_numel && st == TESS_OK; t++) {
        st = kmeans_read_group(job, group, t);
        if (st == TESS_OK)
            st = kmeans_round_verdict(
                job, kmeans_extend(job, group, level, state_of(job, t * KMEANS_BLOCK), found));
        for (int64_t i = 0; st == TESS_OK && error != NULL && i < job->numel[job->rank]; i++)
            (void)tess_exact_add(error, (double)found[i]);
        if (error != NULL)
            tess_exact_carry(error);
    }
    return kmeans_pass_verdict(job, st);
}

static void next_stack(tess_kmeans *job)
{
    job->progress.group++;
    job->progress.level = 0;
    job->progress.pass = 0;
}

static tess_status end_level(tess_kmeans *job)
{
    tess_kmeans_progress *p = &job->progress;
    TESS_TRY(extend_all(job, p->group, p->level, NULL));
    p->level++;
    p->pass = 0;
    p->error = -1.0;
    if (p->level == job->plan.config.level_numel && job->plan.config.refine_numel == 0)
        next_stack(job);
    return TESS_OK;
}

static tess_status run_pass(tess_kmeans *job, tess_kmeans_report *out)
{
    tess_kmeans_progress *p = &job->progress;
    const tess_kmeans_config *c = &job->plan.config;
    const int book_idx = tess_kmeans_book(c, p->group, p->level);
    const int64_t vector_numel = (c->batch_numel > 0 ? c->batch_numel : job->plan.vector_numel) *
                                 kmeans_entries(c, p->level);
    tess_exact error = {{0}};
    int exponent = 0;
    if (p->pass == 0)
        TESS_TRY(kmeans_start_level(job, p->group, p->level));
    TESS_TRY(kmeans_exponent(job, p->group, p->level, &exponent));
    memset(job->spread, 0, (size_t)c->code_numel * sizeof *job->spread);
    TESS_TRY(tess_codebooks_begin_sums(job->books, exponent));
    TESS_TRY(c->batch_numel > 0 ? assign_batch(job, p->group, p->level, &error)
                                : assign_all(job, p->group, p->level, &error));
    TESS_TRY(tess_codebooks_end_sums(job->books));
    *out = (tess_kmeans_report){.group = p->group, .level = p->level, .pass = ++p->pass};
    TESS_TRY(share_error(job, &error, vector_numel, out));
    TESS_TRY(describe_use(job, out));
    TESS_TRY(update_codes(job, book_idx, out));
    const bool repeats = c->batch_numel == 0 && out->split_numel == 0 && out->error == p->error;
    p->error = out->error;
    return p->pass >= c->pass_numel || repeats ? end_level(job) : TESS_OK;
}

/* ---- refinement ---- */

/* A level becomes the mean of what all other levels leave of its vectors. */
static tess_status refine_level(tess_kmeans *job, int group, int level, int exponent)
{
    const tess_kmeans_config *c = &job->plan.config;
    const int book_idx = tess_kmeans_book(c, group, level);
    const int64_t path = (int64_t)c->beam_numel * c->level_numel;
    tess_status st = tess_codebooks_begin_sums(job->books, exponent);
    for (int64_t t = 0; t < job->plan.round_numel && st == TESS_OK; t++) {
        const uint32_t *code = state_of(job, t * KMEANS_BLOCK);
        const kmeans_residual what = {
            .group = group, .level = c->level_numel, .but = level, .entry_numel = 1, .code = code};
        st = kmeans_read_group(job, group, t);
        if (st == TESS_OK)
            st = kmeans_round_verdict(job, kmeans_residuals(job, &what));
        if (st != TESS_OK)
            break;
        for (int64_t i = 0; i < job->numel[job->rank]; i++)
            job->row[i] = code[i * path + level];
        const tess_codebook_round round = {
            .book_idx = book_idx, .x = job->residual, .vector_numel = job->numel};
        st = tess_codebooks_add(job->books, &round, job->row);
        kmeans_read_ahead(job);
    }
    TESS_TRY(kmeans_pass_verdict(job, st));
    TESS_TRY(tess_codebooks_end_sums(job->books));
    TESS_TRY(tess_agree(job->parts.comm, take_means(job, book_idx)));
    return tess_codebooks_publish(job->books, book_idx);
}

static tess_status refine(tess_kmeans *job, tess_kmeans_report *out)
{
    tess_kmeans_progress *p = &job->progress;
    const tess_kmeans_config *c = &job->plan.config;
    const int group = p->group;
    tess_exact error = {{0}};
    for (int l = 0; l < c->level_numel; l++) {
        int exponent = 0;
        TESS_TRY(kmeans_exponent(job, group, c->level_numel, &exponent));
        TESS_TRY(refine_level(job, group, l, exponent));
    }
    for (int l = 0; l < c->level_numel; l++) {
        memset(&error, 0, sizeof error);
        TESS_TRY(extend_all(job, group, l, &error));
    }
    *out = (tess_kmeans_report){.group = group, .level = -1, .pass = ++p->pass};
    TESS_TRY(share_error(job, &error, job->plan.vector_numel, out));
    TESS_TRY(describe_use(job, out));
    if (p->pass >= c->refine_numel)
        next_stack(job);
    return TESS_OK;
}

/* ---- steps ---- */

bool tess_kmeans_is_done(const tess_kmeans *job)
{
    return job->progress.group == job->plan.config.group_numel;
}

tess_status tess_kmeans_step(tess_kmeans *job, tess_kmeans_report *out)
{
    TESS_CHECK(!tess_kmeans_is_done(job), TESS_E_STATE, "k-means: all groups are done");
    TESS_TRY(job->progress.level < job->plan.config.level_numel ? run_pass(job, out)
                                                                : refine(job, out));
    job->progress.step++;
    return TESS_OK;
}

tess_status tess_kmeans_restore(tess_kmeans *job)
{
    const tess_kmeans_progress *p = &job->progress;
    const tess_kmeans_config *c = &job->plan.config;
    for (int g = 0; g < c->group_numel; g++)
        for (int l = 0; l < c->level_numel; l++)
            TESS_TRY(tess_codebooks_publish(job->books, tess_kmeans_book(c, g, l)));
    for (int l = 0; job->state != NULL && p->group < c->group_numel && l < p->level; l++)
        TESS_TRY(extend_all(job, p->group, l, NULL));
    return TESS_OK;
}
