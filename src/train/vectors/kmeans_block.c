/* Codes of one round: what levels leave, and how a beam goes on. */
#include <math.h>
#include <string.h>

#include "train/vectors/kmeans_priv.h"

/* Codes of one vector: beam entries one after the other, `levels` codes each. */
static int64_t path_numel(const tess_kmeans *job)
{
    return (int64_t)job->plan.config.beam_numel * job->plan.config.level_numel;
}

/* ---- residuals ---- */

/* Entries of every rank: `numel[world ..]`. */
static const int64_t *count_entries(tess_kmeans *job, int entry_numel)
{
    for (int r = 0; r < job->world; r++)
        job->numel[job->world + r] = job->numel[r] * entry_numel;
    return job->numel + job->world;
}

static void list_parents(tess_kmeans *job, int entry_numel)
{
    for (int64_t e = 0; e < job->numel[job->rank] * entry_numel; e++)
        job->parent[e] = (uint32_t)(e / entry_numel);
}

static void list_rows(tess_kmeans *job, const kmeans_residual *what, int level)
{
    const int64_t path = path_numel(job), levels = job->plan.config.level_numel;
    for (int64_t e = 0; e < job->numel[job->rank] * what->entry_numel; e++)
        job->row[e] =
            what->code[e / what->entry_numel * path + e % what->entry_numel * levels + level];
}

tess_status kmeans_residuals(tess_kmeans *job, const kmeans_residual *what)
{
    const int64_t *entry_numel = count_entries(job, what->entry_numel);
    const int64_t numel = entry_numel[job->rank] * job->plan.group_dim;
    bool is_first = true;
    list_parents(job, what->entry_numel);
    for (int l = 0; l < what->level; l++) {
        if (l == what->but)
            continue;
        list_rows(job, what, l);
        const tess_codebook_subtraction args = {
            .book_idx = tess_kmeans_book(&job->plan.config, what->group, l),
            .x = is_first ? job->slice : job->residual,
            .parent = is_first && what->entry_numel > 1 ? job->parent : NULL,
            .row = job->row,
            .entry_numel = entry_numel,
            .dst = job->residual};
        TESS_TRY(tess_codebooks_subtract(job->books, &args));
        is_first = false;
    }
    if (!is_first) /* else nothing is taken off, and vectors have one entry */
        return TESS_OK;
    return tess_device_copy(job->device, kmeans_view(job, job->residual, numel, TESS_F32),
                            kmeans_view(job, job->slice, numel, TESS_F32), job->parts.stream);
}

/* ---- one more level ---- */

bool kmeans_part(tess_kmeans *job, int entry_numel, int64_t lo)
{
    int64_t *numel = job->numel + job->world;
    bool is_any = false;
    for (int r = 0; r < job->world; r++) {
        const int64_t left = job->numel[r] * entry_numel - lo;
        numel[r] = TESS_MIN(TESS_MAX(left, 0), (int64_t)KMEANS_BLOCK);
        is_any = is_any || numel[r] > 0;
    }
    return is_any;
}

/* Keys of all entries. */
static tess_status search_entries(tess_kmeans *job, int book_idx, int entry_numel)
{
    const int best = kmeans_best(&job->plan.config);
    for (int64_t lo = 0; kmeans_part(job, entry_numel, lo); lo += KMEANS_BLOCK) {
        const tess_codebook_round round = {.book_idx = book_idx,
                                           .x = job->residual + lo * job->plan.group_dim,
                                           .vector_numel = job->numel + job->world,
                                           .best_numel = best,
                                           .key = job->key + lo * best};
        TESS_TRY(tess_codebooks_search(job->books, &round));
    }
    return TESS_OK;
}

/* A way to go on. */
typedef struct step_on {
    uint32_t distance; /* ordered bits */
    int entry;
    uint32_t row;
} step_on;

static bool is_before(const step_on *a, const step_on *b)
{
    if (a->distance != b->distance)
        return a->distance < b->distance;
    return a->entry != b->entry ? a->entry < b->entry : a->row < b->row;
}

/* The best `kept` of what the entries of one vector found, ascending. @return how many there are */
static int choose(const uint64_t *key, int entry_numel, int best, int kept, step_on *chosen)
{
    int numel = 0;
    for (int e = 0; e < entry_numel; e++)
        for (int b = 0; b < best; b++) {
            const uint64_t k = key[e * best + b];
            const step_on found = {(uint32_t)(k >> 32), e, tess_key_row(k)};
            if (k == TESS_NO_KEY || (numel == kept && !is_before(&found, &chosen[numel - 1])))
                break; /* later keys of this entry are no better */
            int at = numel < kept ? numel++ : numel - 1;
            for (; at > 0 && is_before(&found, &chosen[at - 1]); at--)
                chosen[at] = chosen[at - 1];
            chosen[at] = found;
        }
    return numel;
}

/* Codes of the chosen ways, in place of those they come from. */
static void go_on(tess_kmeans *job, int level, uint32_t *code, const step_on *chosen, int numel)
{
    const int levels = job->plan.config.level_numel;
    uint32_t old[TESS_KMEANS_BEAM_MAX * TESS_KMEANS_LEVEL_MAX];
    memcpy(old, code, (size_t)path_numel(job) * sizeof *old);
    for (int b = 0; b < numel; b++) {
        memcpy(code + b * levels, old + chosen[b].entry * levels, (size_t)level * sizeof *old);
        code[b * levels + level] = chosen[b].row;
    }
}

tess_status kmeans_extend(tess_kmeans *job, int group, int level, uint32_t *code, float *error)
{
    const tess_kmeans_config *c = &job->plan.config;
    const int entry_numel = kmeans_entries(c, level), kept = kmeans_entries(c, level + 1);
    const int best = kmeans_best(c);
    const kmeans_residual what = {
        .group = group, .level = level, .but = -1, .entry_numel = entry_numel, .code = code};
    TESS_TRY(kmeans_residuals(job, &what));
    TESS_TRY(search_entries(job, tess_kmeans_book(c, group, level), entry_numel));
    kmeans_read_ahead(job);
    TESS_TRY(tess_stream_finish(job->parts.stream));
    for (int64_t i = 0; i < job->numel[job->rank]; i++) {
        step_on chosen[TESS_KMEANS_BEAM_MAX];
        const int numel =
            choose(job->key + i * entry_numel * best, entry_numel, best, kept, chosen);
        go_on(job, level, code + i * path_numel(job), chosen, numel);
        if (error != NULL)
            error[i] = tess_ordered_value(chosen[0].distance);
    }
    return TESS_OK;
}

/* ---- encode ---- */

/* The best entry's codes of one group. */
static void put_codes(const tess_kmeans *job, int group, uint32_t *out)
{
    const int64_t levels = job->plan.config.level_numel;
    const int64_t all = levels * job->plan.config.group_numel;
    for (int64_t i = 0; i < job->numel[job->rank]; i++)
        memcpy(out + i * all + group * levels, job->code + i * path_numel(job),
               (size_t)levels * sizeof *out);
}

/* Codes of the block in `x`; `code` and `error` may be NULL. */
static tess_status encode_block(tess_kmeans *job, uint32_t *code, float *error)
{
    const tess_kmeans_config *c = &job->plan.config;
    float *part = (float *)(void *)job->parent; /* not used between levels */
    for (int64_t i = 0; error != NULL && i < job->numel[job->rank]; i++)
        error[i] = 0.0f;
    for (int g = 0; g < c->group_numel; g++) {
        TESS_TRY(kmeans_slice(job, g));
        for (int l = 0; l < c->level_numel; l++)
            TESS_TRY(kmeans_extend(job, g, l, job->code, part));
        if (code != NULL)
            put_codes(job, g, code);
        for (int64_t i = 0; error != NULL && i < job->numel[job->rank]; i++)
            error[i] += part[i];
    }
    return TESS_OK;
}

tess_status tess_kmeans_encode(tess_kmeans *job, const tess_kmeans_encoding *round)
{
    const int64_t own = round->vector_numel[job->rank];
    memcpy(job->numel, round->vector_numel, (size_t)job->world * sizeof *job->numel);
    TESS_TRY(kmeans_open_block(job));
    if (own > 0)
        memcpy(job->x, round->x, (size_t)(own * job->plan.dim) * sizeof *job->x);
    for (int64_t i = 0; job->plan.config.is_spherical && i < own; i++)
        kmeans_make_unit(job->x + i * job->plan.dim, job->plan.dim);
    TESS_TRY(kmeans_send_block(job));
    return encode_block(job, round->code, round->error);
}

tess_status tess_kmeans_evaluate(tess_kmeans *job, tess_vectors *vectors, double *error,
                                 double *mean_square)
{
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    const int64_t round_numel =
        tess_ceil_div(tess_ceil_div(info->vector_numel, KMEANS_BLOCK), job->world);
    tess_exact sums[2] = {{{0}}};
    float found[KMEANS_BLOCK];
    tess_status st = TESS_OK;
    TESS_CHECK(info->dim == job->plan.dim, TESS_E_CONFIG,
               "'%s' holds vectors of %lld dimensions, the codebooks have %lld", info->path,
               (long long)info->dim, (long long)job->plan.dim);
    for (int64_t t = 0; t < round_numel && st == TESS_OK; t++) {
        st = kmeans_read(job, vectors, t);
        if (st == TESS_OK)
            st = encode_block(job, NULL, found);
        for (int64_t i = 0; st == TESS_OK && i < job->numel[job->rank]; i++) {
            double square = 0.0;
            for (int64_t j = 0; j < info->dim; j++)
                square += (double)job->x[i * info->dim + j] * (double)job->x[i * info->dim + j];
            if (!tess_exact_add(&sums[0], (double)found[i]) || !tess_exact_add(&sums[1], square))
                st = TESS_FAIL(TESS_E_FORMAT,
                               "'%s': vector %lld is not finite or too large for squares in f32; "
                               "remove, mask or scale it",
                               info->path,
                               (long long)tess_vectors_place(
                                   vectors, (t * job->world + job->rank) * KMEANS_BLOCK + i));
        }
        tess_exact_carry(&sums[0]);
        tess_exact_carry(&sums[1]);
        st = kmeans_round_verdict(job, st);
    }
    TESS_TRY(kmeans_pass_verdict(job, st));
    TESS_TRY(tess_comm_control(job->parts.comm, sums[0].limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
    TESS_TRY(tess_comm_control(job->parts.comm, sums[1].limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
    *error = tess_exact_round(&sums[0]) / (double)info->vector_numel;
    *mean_square = tess_exact_round(&sums[1]) / (double)info->vector_numel;
    return TESS_OK;
}

/* ---- codes ---- */

tess_status kmeans_fetch_negated(tess_kmeans *job, int book_idx, const uint32_t *row,
                                 const int64_t *numel, float **out)
{
    const int64_t own = numel[job->rank];
    const tess_codebook_subtraction args = {.book_idx = book_idx,
                                            .x = job->residual,
                                            .row = row,
                                            .entry_numel = numel,
                                            .dst = job->residual};
    TESS_TRY(tess_device_zero(job->device,
                              kmeans_view(job, job->residual, own * job->plan.group_dim, TESS_F32),
                              job->parts.stream));
    TESS_TRY(tess_codebooks_subtract(job->books, &args));
    return kmeans_land(job, job->residual, own, out);
}

tess_status tess_kmeans_collect(tess_kmeans *job, int book_idx, int64_t first, int64_t numel,
                                float *out)
{
    float *negated = NULL;
    for (int r = 0; r < job->world; r++)
        job->numel[r] = r == 0 ? numel : 0;
    for (int64_t i = 0; i < job->numel[job->rank]; i++)
        job->row[i] = (uint32_t)(first + i);
    TESS_TRY(kmeans_fetch_negated(job, book_idx, job->row, job->numel, &negated));
    for (int64_t i = 0; i < job->numel[job->rank] * job->plan.group_dim; i++)
        out[i] = 0.0f - negated[i];
    return TESS_OK;
}

/* ---- decode ---- */

/* 0 less all codes of a group, into `residual`. */
static tess_status take_codes_off(tess_kmeans *job, const tess_kmeans_decoding *round, int group)
{
    const tess_kmeans_config *c = &job->plan.config;
    const int64_t own = round->vector_numel[job->rank], d = job->plan.group_dim;
    const int64_t columns = (int64_t)c->group_numel * c->level_numel;
    TESS_TRY(tess_device_zero(job->device, kmeans_view(job, job->residual, own * d, TESS_F32),
                              job->parts.stream));
    for (int l = 0; l < c->level_numel; l++) {
        const int book_idx = tess_kmeans_book(c, group, l);
        for (int64_t i = 0; i < own; i++)
            job->row[i] = round->code[i * columns + book_idx];
        const tess_codebook_subtraction args = {.book_idx = book_idx,
                                                .x = job->residual,
                                                .row = job->row,
                                                .entry_numel = round->vector_numel,
                                                .dst = job->residual};
        TESS_TRY(tess_codebooks_subtract(job->books, &args));
    }
    return TESS_OK;
}

tess_status tess_kmeans_decode(tess_kmeans *job, const tess_kmeans_decoding *round)
{
    const int64_t own = round->vector_numel[job->rank], d = job->plan.group_dim;
    for (int g = 0; g < job->plan.config.group_numel; g++) {
        float *left = NULL;
        TESS_TRY(take_codes_off(job, round, g));
        TESS_TRY(kmeans_land(job, job->residual, own, &left));
        for (int64_t i = 0; i < own; i++)
            for (int64_t j = 0; j < d; j++)
                round->x[i * job->plan.dim + g * d + j] = 0.0f - left[i * d + j];
    }
    return TESS_OK;
}
