/* Blocks of vectors, short lists and canonical distances; see [Note: two stages]. */
#include "kernels/nearest.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cpu/nearest_priv.h"
#include "kernels/cpu/ops_priv.h"

enum {
    ALIGN_NBYTES = 64,
    BLOCK_LEAST = 48,          /* vectors of a block: a multiple of every path's rows */
    BLOCK_NBYTES = 128 * 1024, /* of a block's vectors: they stay in the second cache */
    PREPARE_GRAIN = 64         /* panels of a part */
};

static const tess_nearest_path *current_path(void)
{
    switch (tess_cpu_path_current()) {
    case TESS_CPU_AVX512_BF16:
    case TESS_CPU_AVX512:
        return &tess_nearest_avx512;
    case TESS_CPU_AVX2:
        return &tess_nearest_avx2;
    case TESS_CPU_PORTABLE:
        break;
    }
    return &tess_nearest_portable;
}

/* ---- pack ---- */

static size_t head_nbytes(int64_t dim)
{
    return (size_t)tess_round_up((int64_t)sizeof(tess_nearest_head) + dim * 4, ALIGN_NBYTES);
}

size_t tess_cpu_nearest_pack_nbytes(int64_t code_numel, int64_t dim)
{
    /* The widest panels, so that a plan holds on every path. */
    const int64_t padded = tess_round_up(code_numel, TESS_NEAREST_PANEL_MAX);
    return head_nbytes(dim) + (size_t)padded * (size_t)(dim + 1) * 4;
}

/* The mean of the codes: any offset will do, this one makes the error bound small. */
static void set_offset(const tess_nearest_prepare_args *a, float *offset)
{
    const float *code = a->code.data;
    for (int64_t j = 0; j < a->dim; j++)
        offset[j] = 0.0f;
    for (int64_t k = 0; k < a->code_numel; k++)
        for (int64_t j = 0; j < a->dim; j++)
            offset[j] += code[k * a->dim + j];
    for (int64_t j = 0; j < a->dim; j++) {
        offset[j] /= (float)TESS_MAX(a->code_numel, 1);
        if (!isfinite(offset[j]))
            offset[j] = 0.0f;
    }
}

typedef struct prepare {
    const tess_nearest_prepare_args *a;
    const float *offset;
    float *panel;
    int panel_numel;  /* codes of a panel */
    double *norm_max; /* [part_numel] of |c|^2; NaN where one is not finite */
} prepare;

static double pack_code(const prepare *p, int64_t code_idx)
{
    const int64_t dim = p->a->dim, lane = code_idx % p->panel_numel;
    const float *code = (const float *)p->a->code.data + code_idx * dim;
    float *panel = p->panel + code_idx / p->panel_numel * p->panel_numel * (dim + 1);
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++) {
        const float value = code[j] - p->offset[j];
        panel[(j + 1) * p->panel_numel + lane] = value;
        square += (double)value * (double)value;
    }
    panel[lane] = (float)(-0.5 * square);
    return square;
}

static void prepare_part(void *arg, int part_idx, int part_numel)
{
    const prepare *p = arg;
    int64_t lo = 0, hi = 0;
    double most = 0.0;
    tess_pool_range(p->a->code_numel, PREPARE_GRAIN * p->panel_numel, part_idx, part_numel, &lo,
                    &hi);
    for (int64_t k = lo; k < hi; k++) {
        const double square = pack_code(p, k);
        most = square > most || isnan(square) ? square : most;
        if (isnan(square))
            most = INFINITY;
    }
    p->norm_max[part_idx] = most;
}

static void pad_last_panel(const prepare *p)
{
    const int64_t dim = p->a->dim, used = p->a->code_numel % p->panel_numel;
    float *panel = p->panel + p->a->code_numel / p->panel_numel * p->panel_numel * (dim + 1);
    for (int64_t lane = used; used > 0 && lane < p->panel_numel; lane++) {
        panel[lane] = -INFINITY;
        for (int64_t j = 1; j <= dim; j++)
            panel[j * p->panel_numel + lane] = 0.0f;
    }
}

/* The next f32 above: a bound stays one when it is rounded. */
static float round_up_f32(double x) { return nextafterf((float)x, INFINITY); }

tess_status tess_cpu_nearest_prepare(const tess_nearest_prepare_args *a, tess_stream *s)
{
    enum { PART_MAX = 256 };
    double norm_max[PART_MAX] = {0.0}, most = 0.0;
    TESS_TRY(tess_nearest_prepare_check(a, tess_cpu_nearest_pack_nbytes(a->code_numel, a->dim)));
    char *pack = a->pack.data;
    tess_nearest_head *head = (tess_nearest_head *)(void *)pack;
    float *offset = (float *)(void *)(pack + sizeof *head);
    prepare p = {.a = a,
                 .offset = offset,
                 .panel = (float *)(void *)(pack + head_nbytes(a->dim)),
                 .panel_numel = current_path()->panel_numel,
                 .norm_max = norm_max};
    set_offset(a, offset);
    const int part_numel = TESS_MIN(tess_cpu_part_numel(s, a->code.numel), PART_MAX);
    tess_pool_run(s->pool, part_numel, prepare_part, &p);
    pad_last_panel(&p);
    for (int i = 0; i < part_numel; i++)
        most = TESS_MAX(most, norm_max[i]);
    *head = (tess_nearest_head){.norm_max = round_up_f32(sqrt(most)),
                                .half_norm_max = round_up_f32(0.5 * most),
                                .code_numel = a->code_numel,
                                .dim = a->dim,
                                .offset_nbytes = sizeof *head,
                                .panel_nbytes = head_nbytes(a->dim)};
    return TESS_OK;
}

/* ---- work ---- */

static int64_t block_numel(int64_t dim)
{
    const int64_t fit = BLOCK_NBYTES / (dim * 4) / BLOCK_LEAST * BLOCK_LEAST;
    return TESS_MIN(TESS_MAX(fit, BLOCK_LEAST), TESS_NEAREST_BLOCK_MAX / BLOCK_LEAST * BLOCK_LEAST);
}

/* Places of one thread's arrays. */
typedef struct work_layout {
    size_t x, list, candidate, top, total;
} work_layout;

static work_layout lay_out_work(int64_t dim, int best_numel)
{
    const int64_t n = block_numel(dim);
    work_layout w;
    w.x = 0;
    w.list = w.x + (size_t)tess_round_up(n * dim * 4, ALIGN_NBYTES);
    w.candidate = w.list + (size_t)tess_round_up(n * (int64_t)sizeof(tess_shortlist), ALIGN_NBYTES);
    w.top =
        w.candidate + (size_t)(n * TESS_NEAREST_CANDIDATE_NUMEL * (int64_t)sizeof(tess_candidate));
    w.total = w.top + (size_t)tess_round_up(n * best_numel * 4, ALIGN_NBYTES);
    return w;
}

size_t tess_cpu_nearest_work_nbytes(int64_t dim, int best_numel, int thread_numel)
{
    return lay_out_work(dim, best_numel).total * (size_t)thread_numel;
}

/* ---- short lists ---- */

/* Drop candidates that fell below the bar. */
void tess_nearest_compact(tess_shortlist *list, tess_candidate *candidate)
{
    int kept = 0;
    for (int i = 0; i < list->candidate_numel; i++)
        if (candidate[i].score >= list->bar)
            candidate[kept++] = candidate[i];
    list->candidate_numel = kept;
}

static void raise_bar(tess_shortlist *list, float *top, int best_numel, float score)
{
    int at = TESS_MIN(list->top_numel, best_numel - 1);
    if (list->top_numel == best_numel && score <= top[at])
        return;
    for (; at > 0 && top[at - 1] < score; at--)
        top[at] = top[at - 1];
    top[at] = score;
    list->top_numel = TESS_MIN(list->top_numel + 1, best_numel);
    if (list->top_numel == best_numel)
        list->bar = tess_nearest_bar(list, top[best_numel - 1]);
}

void tess_nearest_enter(const tess_nearest_block *block, int64_t vector_idx, const float *score,
                        int64_t first_code_idx, int score_numel)
{
    tess_shortlist *list = &block->list[vector_idx];
    tess_candidate *candidate = block->candidate + vector_idx * TESS_NEAREST_CANDIDATE_NUMEL;
    const int numel = (int)TESS_MIN((int64_t)score_numel, block->code_numel - first_code_idx);
    float *top = block->top + vector_idx * block->best_numel;
    for (int i = 0; i < numel; i++) {
        if (!(score[i] >= list->bar))
            continue;
        if (!tess_nearest_append(list, candidate, score[i], (uint32_t)(first_code_idx + i)))
            return;
        raise_bar(list, top, block->best_numel, score[i]);
    }
}

/* ---- search ---- */

typedef struct search {
    const tess_nearest_args *a;
    const tess_nearest_path *path;
    const tess_nearest_head *head;
    const float *offset;
    work_layout layout;
} search;

/* Vectors less the offset, and what their short lists start from. */
static void begin_block(const search *s, const tess_nearest_block *block, int64_t first_idx,
                        float *x)
{
    const int64_t dim = block->dim, padded = tess_round_up(block->vector_numel, s->path->row_numel);
    const float *src = (const float *)s->a->x.data + first_idx * dim;
    for (int64_t v = 0; v < block->vector_numel; v++) {
        /* Above the exact sum: each lane adds at most dim roundings. */
        const double square = (double)s->path->shift(src + v * dim, s->offset, dim, x + v * dim) *
                                  (1.0 + (double)(dim + 8) * 0x1p-23) +
                              0x1p-126;
        const double u = 0x1p-24 * 1.1 * (double)(dim + 8);
        const double error =
            u * (sqrt(square) * (double)s->head->norm_max + (double)s->head->half_norm_max) +
            (double)dim * 0x1p-140;
        const float slack = round_up_f32(2.0 * error);
        const bool is_safe = isfinite(slack) && slack < FLT_MAX / 8 && square < FLT_MAX / 8 &&
                             s->head->half_norm_max < FLT_MAX / 8;
        block->list[v] = (tess_shortlist){.bar = is_safe ? -INFINITY : INFINITY,
                                          .slack = slack,
                                          .square = round_up_f32(square),
                                          .is_overflown = !is_safe};
    }
    memset(x + block->vector_numel * dim, 0, (size_t)((padded - block->vector_numel) * dim) * 4);
}

/* Keys in ascending order, the best `best_numel` of those offered. */
static void offer(uint64_t *key, int best_numel, uint64_t offered)
{
    int at = best_numel - 1;
    if (offered >= key[at])
        return;
    for (; at > 0 && key[at - 1] > offered; at--)
        key[at] = key[at - 1];
    key[at] = offered;
}

/* Four pairs of a vector and a code at a time. */
typedef struct pairs {
    const search *s;
    const float *x[4], *code[4];
    uint64_t *key[4];
    uint32_t row[4];
    int numel;
} pairs;

static void flush_pairs(pairs *p)
{
    float distance[4];
    const int numel = p->numel;
    if (numel == 0)
        return;
    for (int i = numel; i < 4; i++)
        p->x[i] = p->x[0], p->code[i] = p->code[0];
    p->s->path->distances(p->x, p->code, p->s->a->dim, distance);
    for (int i = 0; i < numel; i++)
        offer(p->key[i], p->s->a->best_numel, tess_key_make(distance[i], p->row[i]));
    p->numel = 0;
}

static void add_pair(pairs *p, int64_t vector_idx, int64_t code_idx)
{
    const tess_nearest_args *a = p->s->a;
    const int i = p->numel++;
    p->x[i] = (const float *)a->x.data + vector_idx * a->dim;
    p->code[i] = (const float *)a->code.data + code_idx * a->dim;
    p->key[i] = (uint64_t *)a->key.data + vector_idx * a->best_numel;
    p->row[i] = (uint32_t)(a->first_row_idx + code_idx);
    if (p->numel == 4)
        flush_pairs(p);
}

static void decide_block(const search *s, const tess_nearest_block *block, int64_t first_idx)
{
    pairs p = {.s = s};
    uint64_t *key = (uint64_t *)s->a->key.data + first_idx * s->a->best_numel;
    for (int64_t i = 0; i < block->vector_numel * s->a->best_numel; i++)
        key[i] = TESS_NO_KEY;
    for (int64_t v = 0; v < block->vector_numel; v++) {
        const tess_shortlist *list = &block->list[v];
        const tess_candidate *candidate = block->candidate + v * TESS_NEAREST_CANDIDATE_NUMEL;
        for (int64_t k = 0; list->is_overflown && k < s->a->code_numel; k++)
            add_pair(&p, first_idx + v, k);
        for (int i = 0; !list->is_overflown && i < list->candidate_numel; i++)
            if (candidate[i].score >= list->bar)
                add_pair(&p, first_idx + v, candidate[i].code_idx);
    }
    flush_pairs(&p);
}

static void search_part(void *arg, int part_idx, int part_numel)
{
    const search *s = arg;
    const tess_nearest_args *a = s->a;
    const int64_t block_max = block_numel(a->dim);
    char *work = (char *)a->work.data + (size_t)part_idx * s->layout.total;
    float *x = (float *)(void *)(work + s->layout.x);
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->vector_numel, s->path->row_numel, part_idx, part_numel, &lo, &hi);
    for (int64_t first = lo; first < hi; first += block_max) {
        const tess_nearest_block block = {
            .x = x,
            .panel = (const float *)(const void *)((const char *)s->head + s->head->panel_nbytes),
            .vector_numel = TESS_MIN(hi - first, block_max),
            .panel_numel = tess_ceil_div(a->code_numel, s->path->panel_numel),
            .code_numel = a->code_numel,
            .dim = a->dim,
            .best_numel = a->best_numel,
            .list = (tess_shortlist *)(void *)(work + s->layout.list),
            .candidate = (tess_candidate *)(void *)(work + s->layout.candidate),
            .top = (float *)(void *)(work + s->layout.top)};
        begin_block(s, &block, first, x);
        s->path->scores(&block);
        decide_block(s, &block, first);
    }
}

tess_status tess_cpu_nearest(const tess_nearest_args *a, tess_stream *s)
{
    const int thread_numel = tess_pool_thread_numel(s->pool);
    TESS_TRY(tess_nearest_check(a, tess_cpu_nearest_pack_nbytes(a->code_numel, a->dim),
                                tess_cpu_nearest_work_nbytes(a->dim, a->best_numel, thread_numel)));
    const tess_nearest_head *head = (const tess_nearest_head *)a->pack.data;
    TESS_CHECK(head->code_numel == a->code_numel && head->dim == a->dim, TESS_E_STATE,
               "nearest: the pack was made of [%" PRId64 ", %" PRId64 "] codes, expected [%" PRId64
               ", %" PRId64 "]; call nearest_prepare first",
               head->code_numel, head->dim, a->code_numel, a->dim);
    search arg = {.a = a,
                  .path = current_path(),
                  .head = head,
                  .offset = (const float *)(const void *)((const char *)head + head->offset_nbytes),
                  .layout = lay_out_work(a->dim, a->best_numel)};
    tess_pool_run(s->pool, thread_numel, search_part, &arg);
    return TESS_OK;
}
