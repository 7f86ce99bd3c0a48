/* Start codes, repair of empty codes. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "shard/draw.h"
#include "train/vectors/kmeans_priv.h"

enum { CONTROL_NUMEL = 65536 }; /* integers of one control record */

/* ---- what a level starts from ---- */

/* What all entries of the own block of a round leave: training points g E + e of vectors g. */
static tess_status read_residual(tess_kmeans *job, int group, int level, int64_t round)
{
    const kmeans_residual what = {.group = group,
                                  .level = level,
                                  .but = -1,
                                  .entry_numel = kmeans_entries(&job->plan.config, level),
                                  .code = job->state + round * KMEANS_BLOCK *
                                                           job->plan.config.beam_numel *
                                                           job->plan.config.level_numel};
    TESS_TRY(kmeans_read_group(job, group, round));
    return kmeans_round_verdict(job, kmeans_residuals(job, &what));
}

typedef struct pick {
    int64_t point_idx, position;
} pick;

static int by_point(const void *a, const void *b)
{
    const pick *x = a, *y = b;
    if (x->point_idx != y->point_idx)
        return x->point_idx < y->point_idx ? -1 : 1;
    return (x->position > y->position) - (x->position < y->position);
}

/* Drawn points by number, the same on all ranks. */
static tess_status draw_picks(tess_kmeans *job, const tess_draw *draw, int level, int64_t numel,
                              pick **out)
{
    void *ids = NULL, *picks = NULL;
    tess_status st = tess_alloc_array(numel, sizeof(int64_t), &ids);
    if (st == TESS_OK)
        st = tess_alloc_array(numel, sizeof(pick), &picks);
    st = tess_agree(job->parts.comm, st);
    if (st == TESS_OK)
        st = tess_draw_select(job->parts.comm, draw,
                              job->plan.vector_numel * kmeans_entries(&job->plan.config, level),
                              numel, NULL, ids);
    for (int64_t i = 0; st == TESS_OK && i < numel; i++)
        ((pick *)picks)[i] = (pick){((const int64_t *)ids)[i], i};
    if (st == TESS_OK)
        qsort(picks, (size_t)numel, sizeof(pick), by_point);
    tess_free(ids);
    if (st != TESS_OK)
        tess_free(picks);
    else
        *out = picks;
    return st;
}

/* First pick at or behind a point. */
static int64_t first_pick(const pick *picks, int64_t numel, int64_t point_idx)
{
    int64_t lo = 0, hi = numel;
    while (lo < hi) {
        const int64_t middle = lo + (hi - lo) / 2;
        if (picks[middle].point_idx < point_idx)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

static tess_draw draw_of(const tess_kmeans *job, tess_draw_purpose purpose, int book_idx)
{
    return (tess_draw){job->plan.config.seed, (uint32_t)purpose, 0, (uint32_t)book_idx};
}

/* ---- drawn vectors as codes ---- */

/* Position of the points [lo, hi) of the own block among the picks: the `copy`-th of each; others
 * none. */
static void place_picks(tess_kmeans *job, const pick *picks, int64_t first, int64_t numel,
                        int64_t copy)
{
    const int64_t pick_numel = job->plan.config.code_numel;
    for (int64_t i = 0; i < numel; i++)
        job->row[i] = TESS_NO_CODE;
    for (int64_t p = first_pick(picks, pick_numel, first);
         p < pick_numel && picks[p].point_idx < first + numel; p++)
        if (p >= copy && picks[p - copy].point_idx == picks[p].point_idx &&
            (p == copy || picks[p - copy - 1].point_idx != picks[p].point_idx))
            job->row[picks[p].point_idx - first] = (uint32_t)picks[p].position;
}

/* The most often that one vector was drawn. */
static int64_t most_copies(const pick *picks, int64_t numel)
{
    int64_t most = 0, run = 0;
    for (int64_t p = 0; p < numel; p++) {
        run = p > 0 && picks[p].point_idx == picks[p - 1].point_idx ? run + 1 : 1;
        most = TESS_MAX(most, run);
    }
    return most;
}

/* Sums of one vector each bring the points of a round to their codes' owners. */
static tess_status add_round(tess_kmeans *job, int group, int level, int64_t round,
                             const pick *picks, int64_t copy)
{
    const int entry_numel = kmeans_entries(&job->plan.config, level);
    const int64_t first = (round * job->world + job->rank) * KMEANS_BLOCK * entry_numel;
    const int64_t *numel = job->numel + job->world;
    for (int64_t lo = 0; kmeans_part(job, entry_numel, lo); lo += KMEANS_BLOCK) {
        place_picks(job, picks, first + lo, numel[job->rank], copy);
        const tess_codebook_round add = {.book_idx =
                                             tess_kmeans_book(&job->plan.config, group, level),
                                         .x = job->residual + lo * job->plan.group_dim,
                                         .vector_numel = numel};
        TESS_TRY(tess_codebooks_add(job->books, &add, job->row));
    }
    return TESS_OK;
}

static tess_status add_picks(tess_kmeans *job, int group, int level, const pick *picks,
                             int64_t copy)
{
    tess_status st = TESS_OK;
    for (int64_t t = 0; t < job->plan.round_numel && st == TESS_OK; t++) {
        st = read_residual(job, group, level, t);
        if (st == TESS_OK)
            st = add_round(job, group, level, t, picks, copy);
        kmeans_read_ahead(job);
    }
    return kmeans_pass_verdict(job, st);
}

static tess_status start_from_sample(tess_kmeans *job, int group, int level)
{
    const int book_idx = tess_kmeans_book(&job->plan.config, group, level);
    const int64_t code_numel = job->plan.config.code_numel;
    /* The same points at every level: what earlier levels left of their own start points is little,
     * so later levels start where most points are, not at those far out. */
    const tess_draw draw = draw_of(job, TESS_DRAW_INIT, group);
    pick *picks = NULL;
    int exponent = 0;
    TESS_TRY(kmeans_exponent(job, group, level, &exponent));
    TESS_TRY(draw_picks(job, &draw, level, code_numel, &picks));
    tess_status st = tess_codebooks_begin_sums(job->books, exponent);
    const int64_t copies = most_copies(picks, code_numel);
    for (int64_t copy = 0; copy < copies && st == TESS_OK; copy++)
        st = add_picks(job, group, level, picks, copy);
    tess_free(picks);
    if (st == TESS_OK)
        st = tess_codebooks_end_sums(job->books);
    return st == TESS_OK ? kmeans_take_means(job, book_idx) : st;
}

/* ---- normal codes ---- */

static tess_status start_at_random(tess_kmeans *job, int group, int level)
{
    const int64_t d = job->plan.group_dim;
    const int book_idx = tess_kmeans_book(&job->plan.config, group, level);
    const tess_rng rng = tess_rng_make(job->plan.config.seed, TESS_RNG_INIT, (uint32_t)book_idx, 0);
    float *code = tess_codebooks_rows(job->books, book_idx);
    int64_t lo = 0, hi = 0;
    double spread = job->square[group];
    for (int64_t j = 0; j < d; j++)
        spread -= job->mean[group * d + j] * job->mean[group * d + j];
    /* Levels take about equal parts of the logarithm; the first passes find the right size. */
    spread = sqrt(fmax(spread, 0.0) / (double)d) * pow(0.5, level);
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int64_t k = lo; k < hi; k++)
        for (int64_t j = 0; j < d; j++) {
            const double mean = level == 0 ? job->mean[group * d + j] : 0.0;
            code[(k - lo) * d + j] =
                (float)(mean + spread * tess_rng_normal(&rng, (uint64_t)(k * d + j)));
        }
    for (int64_t k = lo; job->plan.config.is_spherical && k < hi; k++)
        kmeans_make_unit(code + (k - lo) * d, d);
    return TESS_OK;
}

/* ---- k-means++ ---- */

enum { BUCKET_NUMEL = 256 };

/* The sample of this rank. Weights are found by bucket, then inside one: a bucket holds members of
 * the whole sample by number, whoever holds them. */
typedef struct seeds {
    int book_idx;
    int64_t numel;
    float *x;        /* [numel, d], where kernels read */
    float *distance; /* [numel] to the nearest center */
    int64_t *member; /* [numel] number in the sample, ascending */
    int64_t *weight; /* [numel] */
    int64_t *total;  /* [buckets or BUCKET_NUMEL] sums over all ranks */
} seeds;

/* Members among the training points from `first` to `end`, which `residual` holds. */
static tess_status keep_seeds(tess_kmeans *job, const pick *picks, int64_t first, int64_t end,
                              seeds *s)
{
    const int64_t d = job->plan.group_dim, seed_numel = job->plan.seed_numel;
    const int64_t room = KMEANS_BLOCK * job->plan.config.beam_numel;
    for (int64_t p = first_pick(picks, seed_numel, first);
         p < seed_numel && picks[p].point_idx < end;) {
        int64_t numel = 0;
        for (; numel < room && p < seed_numel && picks[p].point_idx < end; p++, numel++) {
            s->member[s->numel + numel] = p;
            job->row[numel] = (uint32_t)(picks[p].point_idx - first);
        }
        TESS_TRY(
            tess_codebooks_pick(job->books, job->residual, job->row, numel, s->x + s->numel * d));
        s->numel += numel;
    }
    return TESS_OK;
}

/* The sample's vectors out of a pass over the file. */
static tess_status collect_seeds(tess_kmeans *job, int group, int level, const pick *picks,
                                 seeds *s)
{
    const int entry_numel = kmeans_entries(&job->plan.config, level);
    tess_status st = TESS_OK;
    for (int64_t t = 0; t < job->plan.round_numel && st == TESS_OK; t++) {
        st = read_residual(job, group, level, t);
        const int64_t first = (t * job->world + job->rank) * KMEANS_BLOCK * entry_numel;
        const int64_t end = first + job->numel[job->rank] * entry_numel;
        if (st == TESS_OK)
            st = kmeans_round_verdict(job, keep_seeds(job, picks, first, end, s));
        kmeans_read_ahead(job);
    }
    return kmeans_pass_verdict(job, st);
}

/* Keys of the whole sample for centers [numel, d], on the host. */
static tess_status search_centers(tess_kmeans *job, const seeds *s, float *center, int64_t numel,
                                  uint64_t *key)
{
    const int64_t d = job->plan.group_dim;
    const tess_kernels *k = job->parts.kernels;
    tess_stream *stream = job->parts.stream;
    const bool is_far = kmeans_is_far(job);
    const tess_nearest_args args = {
        .x = kmeans_view(job, s->x, s->numel * d, TESS_F32),
        .code =
            kmeans_view(job, is_far ? kmeans_at(job, KMEANS_CENTER) : center, numel * d, TESS_F32),
        .pack = kmeans_view(job, kmeans_at(job, KMEANS_CENTER_PACK),
                            (int64_t)k->nearest_pack_nbytes(numel, d), TESS_U8_OPAQUE),
        .key = kmeans_view(job, is_far ? kmeans_at(job, KMEANS_SEED_KEY) : key, s->numel, TESS_U64),
        .work = tess_codebooks_work(job->books),
        .vector_numel = s->numel,
        .code_numel = numel,
        .dim = d,
        .best_numel = 1};
    const tess_nearest_prepare_args prepare = {
        .code = args.code, .pack = args.pack, .code_numel = numel, .dim = d};
    if (is_far)
        TESS_TRY(tess_device_copy(job->device, args.code,
                                  tess_view_host(center, numel * d, TESS_F32), stream));
    TESS_TRY(k->nearest_prepare(&prepare, stream));
    TESS_TRY(k->nearest(&args, stream));
    if (is_far)
        TESS_TRY(tess_device_copy(job->device, tess_view_host(key, s->numel, TESS_U64), args.key,
                                  stream));
    return tess_stream_finish(stream);
}

/* Distances to more centers [numel, d]. */
static tess_status meet_centers(tess_kmeans *job, seeds *s, float *center, int64_t numel)
{
    uint64_t *key = kmeans_at(job, KMEANS_HOST_SEED_KEY);
    TESS_TRY(search_centers(job, s, center, numel, key));
    for (int64_t i = 0; i < s->numel; i++)
        s->distance[i] = fminf(s->distance[i], tess_key_distance(key[i]));
    return TESS_OK;
}

/* Distances as integers whose sum over the whole sample fits 62 bits. */
static void weigh(seeds *s, int exponent)
{
    for (int64_t i = 0; i < s->numel; i++)
        s->weight[i] = llrint(ldexp((double)s->distance[i], exponent));
}

/* Weights of buckets, or of the members of one bucket (-1: of all buckets), over all ranks. */
static tess_status share_weights(tess_kmeans *job, seeds *s, int64_t bucket_idx)
{
    const int64_t numel =
        bucket_idx >= 0 ? BUCKET_NUMEL : tess_ceil_div(job->plan.seed_numel, BUCKET_NUMEL);
    memset(s->total, 0, (size_t)numel * sizeof *s->total);
    for (int64_t i = 0; i < s->numel; i++) {
        const int64_t bucket = s->member[i] / BUCKET_NUMEL;
        if (bucket_idx < 0)
            s->total[bucket] += s->weight[i];
        else if (bucket == bucket_idx)
            s->total[s->member[i] % BUCKET_NUMEL] = s->weight[i];
    }
    for (int64_t i = 0; i < numel; i += CONTROL_NUMEL)
        TESS_TRY(tess_comm_control(job->parts.comm, s->total + i,
                                   (int)TESS_MIN(numel - i, (int64_t)CONTROL_NUMEL), NULL, 0));
    return TESS_OK;
}

/* Entry on which the `*at`-th unit of weight falls; `*at` becomes its place inside. */
static int64_t find_unit(const int64_t *weight, int64_t *at)
{
    int64_t i = 0;
    while (*at >= weight[i])
        *at -= weight[i++];
    return i;
}

static int64_t sum_of(const int64_t *weight, int64_t numel)
{
    int64_t total = 0;
    for (int64_t i = 0; i < numel; i++)
        total += weight[i];
    return total;
}

/* Member of the sample that is the next center, drawn in proportion to the weights. Where all are
 * 0, every vector is a center already, and any will do. */
static tess_status draw_member(tess_kmeans *job, seeds *s, const tess_draw *draw,
                               int64_t center_idx, int64_t *member)
{
    const int64_t bucket_numel = tess_ceil_div(job->plan.seed_numel, BUCKET_NUMEL);
    TESS_TRY(share_weights(job, s, -1));
    const int64_t total = sum_of(s->total, bucket_numel);
    *member = (int64_t)tess_draw_below(draw, (uint64_t)center_idx,
                                       (uint64_t)(total > 0 ? total : job->plan.seed_numel));
    if (total == 0)
        return TESS_OK;
    int64_t at = *member;
    const int64_t bucket_idx = find_unit(s->total, &at);
    TESS_TRY(share_weights(job, s, bucket_idx));
    *member = bucket_idx * BUCKET_NUMEL + find_unit(s->total, &at);
    return TESS_OK;
}

/* `copied`: whether holders could read theirs; the caller agrees on that. */
static tess_status draw_center(tess_kmeans *job, seeds *s, const pick *picks, int64_t center_idx,
                               float *center, tess_status *copied)
{
    const tess_kmeans_config *c = &job->plan.config;
    const int entry_numel = kmeans_entries(c, s->book_idx % c->level_numel);
    const tess_draw draw = draw_of(job, TESS_DRAW_CENTER, s->book_idx);
    const int64_t d = job->plan.group_dim;
    int64_t member = 0;
    TESS_TRY(draw_member(job, s, &draw, center_idx, &member));
    const int holder = (int)(picks[member].point_idx / entry_numel / KMEANS_BLOCK % job->world);
    for (int64_t i = 0; holder == job->rank && *copied == TESS_OK && i < s->numel; i++) {
        if (s->member[i] != member)
            continue;
        s->weight[i] = 0; /* it is a center now */
        *copied = tess_device_copy(job->device, tess_view_host(center, d, TESS_F32),
                                   kmeans_view(job, s->x + i * d, d, TESS_F32), job->parts.stream);
    }
    if (*copied == TESS_OK)
        *copied = tess_stream_finish(job->parts.stream);
    return tess_comm_bcast(job->parts.comm, holder, center, (size_t)d * sizeof *center);
}

/* Largest distance of the whole sample to the first center: none grows. */
static tess_status find_exponent(tess_kmeans *job, const seeds *s, int *exponent)
{
    int64_t largest = (int64_t)tess_ordered_bits(0.0f);
    for (int64_t i = 0; i < s->numel; i++)
        largest = TESS_MAX(largest, (int64_t)tess_ordered_bits(s->distance[i]));
    TESS_TRY(tess_comm_control(job->parts.comm, NULL, 0, &largest, 1));
    *exponent = tess_fixed_exponent(tess_ordered_value((uint32_t)largest), job->plan.seed_numel);
    return TESS_OK;
}

/* Centers `first` and on, all drawn by the weights that those in front of them left. */
static tess_status add_centers(tess_kmeans *job, const pick *picks, seeds *s, int64_t first,
                               int64_t numel)
{
    const int64_t d = job->plan.group_dim;
    float *center = kmeans_at(job, KMEANS_HOST_CENTER),
          *code = tess_codebooks_rows(job->books, s->book_idx);
    int64_t lo = 0, hi = 0;
    tess_status st = TESS_OK;
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int64_t i = 0; i < numel; i++) {
        TESS_TRY(draw_center(job, s, picks, first + i, center + i * d, &st));
        if (first + i >= lo && first + i < hi)
            memcpy(code + (first + i - lo) * d, center + i * d, (size_t)d * sizeof *code);
    }
    for (int64_t i = 0; first == 0 && i < s->numel; i++)
        s->distance[i] = FLT_MAX;
    if (st == TESS_OK)
        st = meet_centers(job, s, center, numel);
    return tess_agree(job->parts.comm, st);
}

static tess_status choose_centers(tess_kmeans *job, const pick *picks, seeds *s)
{
    const int64_t code_numel = job->plan.config.code_numel;
    int exponent = 0;
    for (int64_t i = 0; i < s->numel; i++)
        s->distance[i] = 1.0f; /* the first center: any vector, equally likely */
    for (int64_t k = 0, numel = 0; k < code_numel; k += numel) {
        numel = TESS_MIN(kmeans_center_numel(k), code_numel - k);
        if (job->tick != NULL)
            job->tick(job->tick_arg);
        weigh(s, exponent);
        TESS_TRY(add_centers(job, picks, s, k, numel));
        if (k == 0)
            TESS_TRY(find_exponent(job, s, &exponent));
    }
    return TESS_OK;
}

static tess_status start_from_seeds(tess_kmeans *job, int group, int level)
{
    const int book_idx = tess_kmeans_book(&job->plan.config, group, level);
    const int64_t room = job->plan.seed_numel;
    const tess_draw draw = draw_of(job, TESS_DRAW_SEED, book_idx);
    const int64_t bucket_numel = tess_ceil_div(job->plan.seed_numel, BUCKET_NUMEL);
    seeds s = {.book_idx = book_idx, .x = kmeans_at(job, KMEANS_SEED)};
    void *member = NULL, *weight = NULL, *distance = NULL, *total = NULL;
    pick *picks = NULL;
    TESS_TRY(draw_picks(job, &draw, level, job->plan.seed_numel, &picks));
    tess_status st = tess_alloc_array(room, sizeof(int64_t), &member);
    if (st == TESS_OK)
        st = tess_alloc_array(room, sizeof(int64_t), &weight);
    if (st == TESS_OK)
        st = tess_alloc_array(room, sizeof(float), &distance);
    if (st == TESS_OK)
        st = tess_alloc_array(TESS_MAX(bucket_numel, BUCKET_NUMEL), sizeof(int64_t), &total);
    s.member = member;
    s.weight = weight;
    s.distance = distance;
    s.total = total;
    st = tess_agree(job->parts.comm, st);
    if (st == TESS_OK)
        st = collect_seeds(job, group, level, picks, &s);
    if (st == TESS_OK)
        st = choose_centers(job, picks, &s);
    tess_free(picks);
    tess_free(member);
    tess_free(weight);
    tess_free(distance);
    tess_free(total);
    return st;
}

tess_status kmeans_start_level(tess_kmeans *job, int group, int level)
{
    tess_status st = TESS_OK;
    switch (job->plan.config.init) {
    case TESS_KMEANS_PLUS_PLUS:
        st = start_from_seeds(job, group, level);
        break;
    case TESS_KMEANS_SAMPLE:
        st = start_from_sample(job, group, level);
        break;
    case TESS_KMEANS_RANDOM:
        st = start_at_random(job, group, level);
        break;
    }
    TESS_TRY(st);
    return tess_codebooks_publish(job->books, tess_kmeans_book(&job->plan.config, group, level));
}

/* ---- repair ---- */

/* Numbers of all codes of which ranks have parts. */
static tess_status add_up(tess_kmeans *job, int64_t *number)
{
    const int64_t code_numel = job->plan.config.code_numel;
    for (int64_t k = 0; k < code_numel; k += CONTROL_NUMEL)
        TESS_TRY(tess_comm_control(job->parts.comm, number + k,
                                   (int)TESS_MIN(code_numel - k, (int64_t)CONTROL_NUMEL), NULL, 0));
    return TESS_OK;
}

tess_status kmeans_share_tally(tess_kmeans *job)
{
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    memset(job->tally, 0, (size_t)job->plan.config.code_numel * sizeof *job->tally);
    memcpy(job->tally + lo, tess_codebooks_tally(job->books), (size_t)(hi - lo) * sizeof(int64_t));
    return add_up(job, job->tally);
}

typedef struct donor {
    int64_t count, row;
} donor;

static int by_count(const void *a, const void *b)
{
    const donor *x = a, *y = b;
    if (x->count != y->count)
        return x->count > y->count ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

/* Squared distance from a code to the mean that it becomes, as searches compute distances. */
static float mean_distance(const tess_kmeans *job, const float *code, const int64_t *sum,
                           int64_t count)
{
    const int exponent = tess_codebooks_exponent(job->books);
    double square = 0.0;
    for (int64_t j = 0; j < job->plan.group_dim; j++) {
        const float mean = (float)(tess_fixed_value(sum[j], exponent) / (double)count);
        const double t = (double)mean - (double)code[j];
        square = fma(t, t, square);
    }
    return (float)square;
}

/* Vectors that are all equal are all as far from their code as their mean is. */
tess_status kmeans_find_spread(tess_kmeans *job, int book_idx)
{
    const int64_t code_numel = job->plan.config.code_numel, d = job->plan.group_dim;
    const int64_t *sum = tess_codebooks_sum(job->books), *count = tess_codebooks_tally(job->books);
    const float *code = tess_codebooks_rows(job->books, book_idx);
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int64_t k = 0; k < code_numel; k += CONTROL_NUMEL)
        TESS_TRY(tess_comm_control(job->parts.comm, NULL, 0, job->spread + k,
                                   (int)TESS_MIN(code_numel - k, (int64_t)CONTROL_NUMEL)));
    for (int64_t k = 0; k < code_numel; k++)
        job->spread[k] =
            k >= lo && k < hi && count[k - lo] > 0 &&
            job->spread[k] > (int64_t)tess_ordered_bits(mean_distance(
                                 job, code + (k - lo) * d, sum + (k - lo) * d, count[k - lo]));
    return add_up(job, job->spread);
}

/* Pairs of an empty code and the donor whose place it shares, in row order of the empty ones. One
 * half of a code whose vectors are all equal would be empty again. */
static int64_t pair_up(const tess_kmeans *job, donor *donors, int64_t *empty)
{
    int64_t donor_numel = 0, empty_numel = 0;
    for (int64_t k = 0; k < job->plan.config.code_numel; k++) {
        if (job->tally[k] == 0)
            empty[empty_numel++] = k;
        else if (job->tally[k] >= 2 && job->spread[k] != 0)
            donors[donor_numel++] = (donor){job->tally[k], k};
    }
    qsort(donors, (size_t)donor_numel, sizeof *donors, by_count);
    return TESS_MIN(empty_numel, donor_numel);
}

/* Code times 1 + sign / 1024 in even dimensions, 1 - sign / 1024 in odd ones. */
static void shake(const tess_kmeans *job, float *code, float sign)
{
    for (int64_t j = 0; j < job->plan.group_dim; j++)
        code[j] *= 1.0f + (j % 2 == 0 ? sign : -sign) * 0x1p-10f;
    if (job->plan.config.is_spherical)
        kmeans_make_unit(code, job->plan.group_dim);
}

/* Pairs [first, first + numel): owners of empty codes fetch the donors' rows, then all shake. */
static tess_status split(tess_kmeans *job, int book_idx, const donor *donors, const int64_t *empty,
                         int64_t numel)
{
    const int64_t d = job->plan.group_dim;
    int64_t lo = 0, hi = 0, own = 0;
    for (int r = 0; r < job->world; r++) {
        tess_codebook_owned(&job->plan.book, r, &lo, &hi);
        job->numel[r] = 0;
        for (int64_t i = 0; i < numel; i++)
            job->numel[r] += empty[i] >= lo && empty[i] < hi;
    }
    tess_codebook_owned(&job->plan.book, job->rank, &lo, &hi);
    for (int64_t i = 0; i < numel; i++)
        if (empty[i] >= lo && empty[i] < hi)
            job->row[own++] = (uint32_t)donors[i].row;
    float *negated = NULL;
    TESS_TRY(kmeans_fetch_negated(job, book_idx, job->row, job->numel, &negated));
    float *code = tess_codebooks_rows(job->books, book_idx);
    own = 0;
    for (int64_t i = 0; i < numel; i++) {
        float *const to = code + (empty[i] - lo) * d, *const from = negated + own * d;
        if (donors[i].row >= lo && donors[i].row < hi)
            shake(job, code + (donors[i].row - lo) * d, -1.0f);
        if (empty[i] < lo || empty[i] >= hi)
            continue;
        for (int64_t j = 0; j < d; j++)
            to[j] = -from[j];
        shake(job, to, 1.0f);
        own++;
    }
    return TESS_OK;
}

tess_status kmeans_repair(tess_kmeans *job, int book_idx, int64_t *split_numel)
{
    void *donors = NULL, *empty = NULL;
    const int64_t code_numel = job->plan.config.code_numel;
    tess_status st = tess_alloc_array(code_numel, sizeof(donor), &donors);
    if (st == TESS_OK)
        st = tess_alloc_array(code_numel, sizeof(int64_t), &empty);
    st = tess_agree(job->parts.comm, st);
    *split_numel = st == TESS_OK ? pair_up(job, donors, empty) : 0;
    /* Replicated codes of others are as old as the last publish: donors come from there. */
    if (*split_numel > 0)
        st = tess_codebooks_publish(job->books, book_idx);
    for (int64_t i = 0; i < *split_numel && st == TESS_OK; i += KMEANS_BLOCK)
        st = split(job, book_idx, (const donor *)donors + i, (const int64_t *)empty + i,
                   TESS_MIN(*split_numel - i, (int64_t)KMEANS_BLOCK));
    tess_free(donors);
    tess_free(empty);
    return st;
}
