/*
 * Blocking of the CPU matrix product. Rows of C are cut in chunks; A of a chunk is packed once, by
 * all threads; then every thread takes its columns and walks groups of panels: for each depth, B of
 * each panel is dequantized and packed, used for all rows of the chunk while it is in the near
 * cache, and forgotten. Where columns are few, every thread takes rows instead, in chunks of its
 * own. Sums wait in an f32 buffer between depths, so blocking does not change a bit of the result.
 */
#include <string.h>

#include "core/arith.h"
#include "kernels/cpu/codec_priv.h"
#include "kernels/cpu/gemm_priv.h"

enum {
    GROUP_MAX = 8,         /* panels that share one pass over packed A */
    NEAR_NBYTES = 1 << 20, /* sums of a group, or packed A of a narrow product, stay below */
    NARROW_MAX = 32,       /* columns of a weight gradient that is computed transposed */
    STAGE_LINES = 16,      /* dequantized lines between codes and the packed layout */
    STAGE_NBYTES = STAGE_LINES * TESS_GEMM_DEPTH * 4, /* also 32 lines of 64 elements */
    SLICE_NUMEL = 32,                                 /* k per stage of a weight stored [K, N] */
    ALIGN_NBYTES = 64,
};

/* What one call needs, in bytes and counts. */
typedef struct plan {
    tess_gemm_args args; /* the caller's, or its transpose */
    bool is_transposed;  /* C is written transposed */
    const tess_gemm_path *path;
    tess_gemm_unit unit;
    bool is_bf16, is_narrow, has_long_scaled;
    int thread_numel, block_rows;
    int64_t vector_numel;                        /* of all columns */
    int64_t panel_vectors;                       /* at most, of a panel: decides block_rows */
    int64_t unit_offset[TESS_GEMM_TERM_MAX + 1]; /* units of the terms before */
    int64_t chunk_rows, group_numel;
    size_t packed_nbytes, sum_nbytes;
    size_t private_nbytes; /* a thread's panel, stage and sums */
    size_t thread_nbytes;  /* the same, with packed A of a narrow product */
} plan;

typedef struct chunk {
    const plan *p;
    int64_t first_row, row_numel, block_numel;
    uint32_t *packed; /* per term, per block: [unit][rows of the block] */
    char *thread_work;
} chunk;

/* One thread's buffers and its columns of a chunk. */
typedef struct worker {
    const chunk *ch;
    uint32_t *panel; /* [TESS_GEMM_DEPTH, panel columns] */
    char *stage;
    float *sums;   /* [panel of the group][row of the share][panel columns] */
    float *scaled; /* same, of a long scaled term */
    int64_t first_vector, end_vector;
} worker;

typedef struct narrow_job {
    const plan *p;
    char *work;
} narrow_job;

typedef struct panel {
    int64_t first_col, col_numel, width;
    int vector_numel;
} panel;

static int64_t term_units(const plan *p, int term_idx)
{
    return p->unit_offset[term_idx + 1] - p->unit_offset[term_idx];
}

static int64_t panels_of(const plan *p, int64_t vector_numel)
{
    return tess_ceil_div(vector_numel, p->panel_vectors);
}

/* Rows of a narrow product that are packed and used at a time: near the core, but enough to pay for
 * packing B again. */
static int64_t narrow_rows(const plan *p)
{
    const int64_t row_nbytes = TESS_MAX(p->unit_offset[p->args.term_numel], 1) * 4;
    const int64_t near_rows = TESS_MIN(NEAR_NBYTES / row_nbytes, TESS_GEMM_ROWS_MAX);
    const int64_t rows = TESS_MAX(near_rows, 4 * p->args.n);
    return TESS_MIN(rows, tess_ceil_div(TESS_MAX(p->args.m, 1), p->thread_numel));
}

static void plan_split(plan *p)
{
    p->is_narrow =
        p->vector_numel <= p->path->vector_max || p->vector_numel < (int64_t)4 * p->thread_numel;
    const int64_t share =
        p->is_narrow ? p->vector_numel : tess_ceil_div(p->vector_numel, p->thread_numel);
    const int64_t fewest = TESS_MAX(tess_ceil_div(share, p->path->vector_max), 1);
    p->panel_vectors = TESS_MAX(tess_ceil_div(share, fewest), 1);
    p->block_rows = p->path->block_rows[p->panel_vectors];
    const int64_t panel_numel = TESS_MAX(panels_of(p, share), 1);
    const int64_t m = TESS_MAX(p->args.m, 1);
    const int64_t rows =
        p->is_narrow ? narrow_rows(p) : tess_ceil_div(m, tess_ceil_div(m, TESS_GEMM_ROWS_MAX));
    p->chunk_rows = tess_round_up(rows, p->block_rows);
    const int64_t sums_nbytes = p->chunk_rows * TESS_GEMM_PANEL_MAX * (int64_t)sizeof(float);
    p->group_numel = TESS_MIN(TESS_MAX(NEAR_NBYTES / sums_nbytes, 1), GROUP_MAX);
    p->group_numel = TESS_MIN(p->group_numel, panel_numel);
    p->sum_nbytes = (size_t)(sums_nbytes * p->group_numel);
}

static int64_t row_stride(const tess_matrix *b) { return b->stride != 0 ? b->stride : b->cols; }

/* A narrow weight gradient (LoRA) is computed as its transpose: C^T = B^T A. Its long side then
 * runs along vectors, and products commute, so the bits are the same. */
static bool is_better_transposed(const tess_gemm_args *a)
{
    return a->kind == TESS_GEMM_TN && a->bias == NULL && a->n < a->m && a->n <= NARROW_MAX;
}

static void transpose(tess_gemm_args *a)
{
    const int64_t m = a->m;
    a->c_stride = a->c_stride != 0 ? a->c_stride : a->n;
    a->m = a->n;
    a->n = m;
    for (int t = 0; t < a->term_numel; t++) {
        tess_gemm_term *term = &a->term[t];
        const tess_view kept = term->a;
        const int64_t stride = term->a_stride != 0 ? term->a_stride : m;
        const int64_t numel = term->b.rows * row_stride(&term->b);
        term->a = tess_view_host((void *)(uintptr_t)term->b.part[0], numel, kept.dt);
        term->a_stride = row_stride(&term->b);
        term->b.part[0] = kept.data;
        term->b.cols = stride;
        term->b.stride = 0;
    }
}

static void plan_make(plan *p, const tess_gemm_args *args, int thread_numel)
{
    memset(p, 0, sizeof(*p));
    p->args = *args;
    p->is_transposed = is_better_transposed(args);
    if (p->is_transposed)
        transpose(&p->args);
    const tess_gemm_args *a = &p->args;
    p->path = tess_gemm_path_current();
    p->is_bf16 = a->term[0].a.dt == TESS_BF16;
    p->unit = p->is_bf16 ? p->path->bf16_unit : TESS_GEMM_UNIT_F32;
    p->thread_numel = TESS_MAX(thread_numel, 1);
    p->vector_numel = tess_ceil_div(a->n, p->path->lane_numel);
    for (int t = 0; t < a->term_numel; t++) {
        const int64_t k = a->term[t].k;
        const int64_t unit_numel = p->unit == TESS_GEMM_UNIT_PAIR ? tess_ceil_div(k, 2) : k;
        p->unit_offset[t + 1] = p->unit_offset[t] + unit_numel;
        if (a->term[t].scale != 1.0F && unit_numel > TESS_GEMM_DEPTH)
            p->has_long_scaled = true;
    }
    plan_split(p);
    p->packed_nbytes =
        (size_t)tess_round_up(p->chunk_rows * p->unit_offset[a->term_numel] * 4, ALIGN_NBYTES);
    p->thread_nbytes = (size_t)TESS_GEMM_DEPTH * TESS_GEMM_PANEL_MAX * 4 + STAGE_NBYTES +
                       p->sum_nbytes * (p->has_long_scaled ? 2 : 1);
    p->private_nbytes = p->thread_nbytes;
    if (p->is_narrow)
        p->thread_nbytes += p->packed_nbytes;
}

static size_t plan_nbytes(const plan *p)
{
    return ALIGN_NBYTES + (p->is_narrow ? 0 : p->packed_nbytes) +
           p->thread_nbytes * (size_t)p->thread_numel;
}

/* [Note: work of fewer rows] Chunks of equal size shrink where one more is needed, so a product of
 * fewer rows may take more memory than one of more. What is planned is a bound that only grows with
 * m and k: batches are often smaller than the planned one. */
size_t tess_cpu_gemm_work_nbytes(const tess_gemm_args *a, int thread_numel)
{
    plan p;
    plan_make(&p, a, thread_numel);
    const size_t unit_nbytes = (size_t)TESS_MAX(p.unit_offset[p.args.term_numel], 1) * 4;
    const int64_t m = TESS_MAX(p.args.m, 1);
    const int64_t share =
        p.is_narrow ? tess_ceil_div(m, p.thread_numel) : TESS_MIN(m, (int64_t)TESS_GEMM_ROWS_MAX);
    const size_t rows = (size_t)tess_round_up(share, p.block_rows);
    size_t packed_nbytes = rows * unit_nbytes;
    if (p.is_narrow) /* whatever k: see narrow_rows() */
        packed_nbytes = TESS_MIN(packed_nbytes,
                                 TESS_MAX((size_t)NEAR_NBYTES, 4 * (size_t)p.args.n * unit_nbytes) +
                                     (size_t)p.block_rows * unit_nbytes);
    const size_t sums_nbytes = rows * TESS_GEMM_PANEL_MAX * sizeof(float);
    const int64_t panel_numel = TESS_MAX(panels_of(&p, p.vector_numel), 1);
    const size_t group_numel = (size_t)TESS_MIN(panel_numel, (int64_t)GROUP_MAX);
    const size_t group_nbytes =
        TESS_MIN(TESS_MAX(sums_nbytes, (size_t)NEAR_NBYTES), sums_nbytes * group_numel);
    p.packed_nbytes = (size_t)tess_round_up((int64_t)packed_nbytes, ALIGN_NBYTES);
    p.thread_nbytes = (size_t)TESS_GEMM_DEPTH * TESS_GEMM_PANEL_MAX * 4 + STAGE_NBYTES +
                      group_nbytes * (p.has_long_scaled ? 2 : 1) +
                      (p.is_narrow ? p.packed_nbytes : 0);
    return plan_nbytes(&p);
}

/* -------- packing A -------- */

static void pack_block(const chunk *ch, int term_idx, int64_t block_idx)
{
    const plan *p = ch->p;
    const tess_gemm_term *term = &p->args.term[term_idx];
    const bool is_along = p->args.kind == TESS_GEMM_TN;
    const int64_t first = block_idx * p->block_rows;
    const int64_t rows = TESS_MIN(p->block_rows, ch->row_numel - first);
    const int64_t stride = term->a_stride != 0 ? term->a_stride : (is_along ? p->args.m : term->k);
    const int64_t src_idx = (ch->first_row + first) * (is_along ? 1 : stride);
    const tess_gemm_pack pack = {
        .src = (const char *)term->a.data + src_idx * (p->is_bf16 ? 2 : 4),
        .is_src_bf16 = p->is_bf16,
        .unit = p->unit,
        .stride = stride,
        .k_numel = term->k,
        .line_numel = rows,
        .fill_numel = rows,
        .dst_stride = rows,
        .dst =
            ch->packed + p->unit_offset[term_idx] * ch->row_numel + first * term_units(p, term_idx),
    };
    if (is_along)
        p->path->pack_along(&pack);
    else
        p->path->pack_across(&pack);
}

static void pack_body(void *arg, int part_idx, int part_numel)
{
    const chunk *ch = arg;
    int64_t lo = 0;
    int64_t hi = 0;
    tess_pool_range(ch->block_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int t = 0; t < ch->p->args.term_numel; t++) {
        for (int64_t b = lo; b < hi; b++)
            pack_block(ch, t, b);
    }
}

/* -------- packing B -------- */

static void round_line(const float *src, uint16_t *dst, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        dst[i] = tess_bf16_from_f32(src[i]);
}

/* Rows of a stored matrix in the compute dtype, to dst [row_numel, col_numel]. */
static void stage_rows(const plan *p, const tess_matrix *b, const tess_row_span *rows, char *dst)
{
    const tess_cpu_codec *codec = tess_cpu_codec_of(b->codec.format);
    const tess_coded from = {&b->codec, b->part, b->rows * b->cols};
    const tess_dtype dt = p->is_bf16 ? TESS_BF16 : TESS_F32;
    const tess_view all = tess_view_host(dst, rows->row_numel * rows->col_numel, dt);
    if (all.numel == 0)
        return;
    if (codec != NULL && codec->decode_rows != NULL) {
        codec->decode_rows(&from, rows, all);
        return;
    }
    for (int64_t i = 0; i < rows->row_numel; i++) {
        const int64_t idx = rows->first_idx + i * rows->stride;
        const tess_view row = tess_view_slice(all, i * rows->col_numel, rows->col_numel);
        if (codec != NULL)
            codec->decode(&from, idx, row);
        else
            round_line((const float *)b->part[0] + idx, row.data, row.numel);
    }
}

/* Lines of a panel are far apart in a stored matrix, so the hardware does not foresee them. */
static void prefetch_line(const tess_matrix *b, int64_t first_idx, int64_t numel)
{
    /* Formats of 4 bits: their codes are the bulk of what is read. */
    if ((b->codec.format != TESS_FORMAT_NF4 && b->codec.format != TESS_FORMAT_FP4) ||
        first_idx >= b->rows * row_stride(b))
        return;
    const char *codes = (const char *)b->part[0] + first_idx / 2;
    for (int64_t i = 0; i < numel / 2; i += 64)
        __builtin_prefetch(codes + i);
    __builtin_prefetch(codes + (numel - 1) / 2);
}

/* A plain matrix is packed from where it is, unless it must be rounded first. */
static bool is_packed_in_place(const plan *p, const tess_matrix *b)
{
    return b->codec.format == TESS_FORMAT_BF16 ||
           (b->codec.format == TESS_FORMAT_F32 && !p->is_bf16);
}

static void pack_in_place(const worker *w, const tess_matrix *b, tess_gemm_pack pack,
                          int64_t first_idx, bool is_along)
{
    pack.is_src_bf16 = b->codec.format == TESS_FORMAT_BF16;
    pack.src = (const char *)b->part[0] + first_idx * (pack.is_src_bf16 ? 2 : 4);
    pack.stride = row_stride(b);
    if (is_along)
        w->ch->p->path->pack_along(&pack);
    else
        w->ch->p->path->pack_across(&pack);
}

/* Weight [N, K]: lines are rows. */
static void pack_staged_across(const worker *w, const tess_matrix *b, tess_gemm_pack pack,
                               int64_t first_idx)
{
    const plan *p = w->ch->p;
    const int64_t line_numel = pack.line_numel;
    const int64_t fill_numel = pack.fill_numel;
    pack.src = w->stage;
    pack.stride = pack.k_numel;
    pack.is_src_bf16 = p->is_bf16;
    for (int64_t lo = 0; lo < fill_numel; lo += STAGE_LINES) {
        pack.line_numel = TESS_MIN(TESS_MAX(line_numel - lo, 0), STAGE_LINES);
        pack.fill_numel = TESS_MIN(fill_numel - lo, STAGE_LINES);
        const int64_t stride = row_stride(b);
        const tess_row_span rows = {first_idx + lo * stride, stride, pack.line_numel, pack.k_numel};
        for (int64_t i = 0; i < pack.line_numel; i++)
            prefetch_line(b, rows.first_idx + (i + STAGE_LINES) * stride, pack.k_numel);
        stage_rows(p, b, &rows, w->stage);
        p->path->pack_across(&pack);
        pack.dst += STAGE_LINES;
    }
}

/* Weight [K, N]: lines are columns. Slices are even, so pairs do not straddle them. */
static void pack_staged_along(const worker *w, const tess_matrix *b, tess_gemm_pack pack,
                              int64_t first_idx)
{
    const plan *p = w->ch->p;
    const int64_t k_numel = pack.k_numel;
    pack.src = w->stage;
    pack.stride = pack.line_numel;
    pack.is_src_bf16 = p->is_bf16;
    for (int64_t lo = 0; lo < k_numel; lo += SLICE_NUMEL) {
        pack.k_numel = TESS_MIN(k_numel - lo, SLICE_NUMEL);
        const int64_t stride = row_stride(b);
        const tess_row_span rows = {first_idx + lo * stride, stride, pack.k_numel, pack.line_numel};
        for (int64_t i = 0; i < pack.k_numel; i++)
            prefetch_line(b, rows.first_idx + (i + SLICE_NUMEL) * stride, pack.line_numel);
        stage_rows(p, b, &rows, w->stage);
        p->path->pack_along(&pack);
        pack.dst += SLICE_NUMEL / (p->unit == TESS_GEMM_UNIT_PAIR ? 2 : 1) * pack.dst_stride;
    }
}

static void pack_panel(const worker *w, int term_idx, const panel *pn, int64_t first_unit,
                       int64_t unit_numel)
{
    const plan *p = w->ch->p;
    const tess_gemm_term *term = &p->args.term[term_idx];
    const int64_t step = p->unit == TESS_GEMM_UNIT_PAIR ? 2 : 1;
    const int64_t first_k = first_unit * step;
    const bool is_along = p->args.kind != TESS_GEMM_NT;
    const tess_gemm_pack pack = {
        .unit = p->unit,
        .k_numel = TESS_MIN(unit_numel * step, term->k - first_k),
        .line_numel = pn->col_numel,
        .fill_numel = pn->width,
        .dst_stride = pn->width,
        .dst = w->panel,
    };
    const int64_t stride = row_stride(&term->b);
    const int64_t first_idx =
        is_along ? first_k * stride + pn->first_col : pn->first_col * stride + first_k;
    if (is_packed_in_place(p, &term->b))
        pack_in_place(w, &term->b, pack, first_idx, is_along);
    else if (is_along)
        pack_staged_along(w, &term->b, pack, first_idx);
    else
        pack_staged_across(w, &term->b, pack, first_idx);
}

/* -------- products -------- */

static void multiply_panel(const worker *w, int term_idx, const panel *pn, tess_gemm_tile tile,
                           int64_t first_unit)
{
    const plan *p = w->ch->p;
    const int64_t units = term_units(p, term_idx);
    const uint32_t *packed = w->ch->packed + p->unit_offset[term_idx] * w->ch->row_numel;
    float *sums = tile.c;
    for (int64_t b = 0; b < w->ch->block_numel; b++) {
        const int64_t first = b * p->block_rows;
        const int64_t rows = TESS_MIN(p->block_rows, w->ch->row_numel - first);
        /* After the last block comes the first again, of the next panel. */
        const int64_t next = first + rows < w->ch->row_numel ? first + rows : 0;
        const int64_t next_rows = TESS_MIN(p->block_rows, w->ch->row_numel - next);
        tile.a = packed + first * units + first_unit * rows;
        tile.c = sums + first * pn->width;
        tile.next_a = packed + next * units + first_unit * next_rows;
        tile.next_c = sums + next * pn->width;
        p->path->micro[p->unit][pn->vector_numel - 1][rows - 1](&tile);
    }
}

static float *group_sums(const worker *w, float *sums, int64_t panel_idx)
{
    return sums + panel_idx * w->ch->p->chunk_rows * TESS_GEMM_PANEL_MAX;
}

/* One term for a group of panels. A scaled term has sums of its own: in registers when one depth
 * holds it, else in a second buffer. */
static void multiply_term(const worker *w, int term_idx, const panel *panels, int64_t panel_numel)
{
    const plan *p = w->ch->p;
    const int64_t units = term_units(p, term_idx);
    const float scale = p->args.term[term_idx].scale;
    const bool is_scaled = scale != 1.0F;
    const bool is_long = is_scaled && units > TESS_GEMM_DEPTH;
    for (int64_t i = 0; is_scaled && term_idx == 0 && i < panel_numel; i++)
        memset(group_sums(w, w->sums, i), 0,
               (size_t)(w->ch->row_numel * panels[i].width) * sizeof(float));
    /* Passes of equal depth: a short one would not pay for loading and storing the sums. */
    const int64_t pass_numel = TESS_MAX(tess_ceil_div(units, TESS_GEMM_DEPTH), 1);
    const int64_t depth = TESS_MAX(tess_ceil_div(units, pass_numel), 1);
    for (int64_t u = 0; u == 0 || u < units; u += depth) {
        const bool is_first = u == 0 && (term_idx == 0 || is_long);
        for (int64_t i = 0; i < panel_numel; i++) {
            const tess_gemm_tile tile = {
                .b = w->panel,
                .unit_numel = TESS_MIN(units - u, depth),
                .c = group_sums(w, is_long ? w->scaled : w->sums, i),
                .c_stride = panels[i].width,
                .mode = is_scaled && !is_long ? TESS_GEMM_SCALED
                        : is_first            ? TESS_GEMM_FIRST
                                              : TESS_GEMM_NEXT,
                .scale = scale,
            };
            pack_panel(w, term_idx, &panels[i], u, tile.unit_numel);
            multiply_panel(w, term_idx, &panels[i], tile, u);
        }
    }
    for (int64_t i = 0; is_long && i < panel_numel; i++)
        p->path->add_scaled(group_sums(w, w->sums, i), group_sums(w, w->scaled, i), scale,
                            w->ch->row_numel * panels[i].width);
}

static void write_panel(const worker *w, const panel *pn, const float *sums)
{
    const tess_gemm_args *a = &w->ch->p->args;
    const int64_t first_row = w->ch->first_row;
    const int64_t stride = a->c_stride != 0 ? a->c_stride : a->n;
    const bool is_c_bf16 = a->c.dt == TESS_BF16;
    const int64_t c_idx = w->ch->p->is_transposed ? pn->first_col * stride + first_row
                                                  : first_row * stride + pn->first_col;
    tess_gemm_out out = {
        .sum = sums,
        .sum_stride = pn->width,
        .is_transposed = w->ch->p->is_transposed,
        .is_c_bf16 = is_c_bf16,
        .is_accumulating = a->accumulate,
        .c = (char *)a->c.data + c_idx * (is_c_bf16 ? 2 : 4),
        .c_stride = stride,
        .row_numel = w->ch->row_numel,
        .col_numel = pn->col_numel,
    };
    if (a->bias != NULL) {
        out.is_bias_bf16 = a->bias->codec.format == TESS_FORMAT_BF16;
        out.bias = (const char *)a->bias->part[0] + pn->first_col * (out.is_bias_bf16 ? 2 : 4);
    }
    w->ch->p->path->write(&out);
}

/* Panel `panel_idx` of the `panel_numel` equal ones a worker's columns are cut in. */
static panel panel_get(const worker *w, int64_t panel_idx, int64_t panel_numel)
{
    const plan *p = w->ch->p;
    const int64_t share = w->end_vector - w->first_vector;
    const int64_t lo = w->first_vector + share * panel_idx / panel_numel;
    const int64_t hi = w->first_vector + share * (panel_idx + 1) / panel_numel;
    const int64_t width = (hi - lo) * p->path->lane_numel;
    const int64_t first_col = lo * p->path->lane_numel;
    return (panel){first_col, TESS_MIN(width, p->args.n - first_col), width, (int)(hi - lo)};
}

static void worker_run(const worker *w)
{
    const plan *p = w->ch->p;
    const int64_t panel_numel = panels_of(p, w->end_vector - w->first_vector);
    panel group[GROUP_MAX];
    for (int64_t lo = 0; lo < panel_numel; lo += p->group_numel) {
        const int64_t numel = TESS_MIN(p->group_numel, panel_numel - lo);
        for (int64_t i = 0; i < numel; i++)
            group[i] = panel_get(w, lo + i, panel_numel);
        for (int t = 0; t < p->args.term_numel; t++)
            multiply_term(w, t, group, numel);
        for (int64_t i = 0; i < numel; i++)
            write_panel(w, &group[i], group_sums(w, w->sums, i));
    }
}

static worker worker_make(const chunk *ch, char *work)
{
    char *stage = work + (size_t)TESS_GEMM_DEPTH * TESS_GEMM_PANEL_MAX * 4;
    float *sums = (float *)(void *)(stage + STAGE_NBYTES);
    return (worker){
        .ch = ch,
        .panel = (uint32_t *)(void *)work,
        .stage = stage,
        .sums = sums,
        .scaled = sums + ch->p->sum_nbytes / sizeof(float),
        .end_vector = ch->p->vector_numel,
    };
}

static void multiply_body(void *arg, int part_idx, int part_numel)
{
    const chunk *ch = arg;
    worker w = worker_make(ch, ch->thread_work + (size_t)part_idx * ch->p->thread_nbytes);
    tess_pool_range(ch->p->vector_numel, 1, part_idx, part_numel, &w.first_vector, &w.end_vector);
    if (w.first_vector < w.end_vector)
        worker_run(&w);
}

static chunk chunk_make(const plan *p, int64_t first_row, int64_t end_row, char *packed)
{
    const int64_t row_numel = TESS_MIN(p->chunk_rows, end_row - first_row);
    return (chunk){
        .p = p,
        .first_row = first_row,
        .row_numel = row_numel,
        .block_numel = tess_ceil_div(row_numel, p->block_rows),
        .packed = (uint32_t *)(void *)packed,
    };
}

/* A narrow product: every thread packs and multiplies rows of its own. */
static void narrow_body(void *arg, int part_idx, int part_numel)
{
    const narrow_job *job = arg;
    const plan *p = job->p;
    char *work = job->work + (size_t)part_idx * p->thread_nbytes;
    int64_t lo = 0;
    int64_t hi = 0;
    tess_pool_range(p->args.m, p->block_rows, part_idx, part_numel, &lo, &hi);
    for (int64_t first = lo; first < hi; first += p->chunk_rows) {
        chunk ch = chunk_make(p, first, hi, work + p->private_nbytes);
        const worker w = worker_make(&ch, work);
        pack_body(&ch, 0, 1);
        worker_run(&w);
    }
}

static void run_wide(const plan *p, char *work, tess_pool *pool)
{
    for (int64_t first = 0; first < p->args.m; first += p->chunk_rows) {
        chunk ch = chunk_make(p, first, p->args.m, work);
        ch.thread_work = work + p->packed_nbytes;
        tess_pool_run(pool, p->thread_numel, pack_body, &ch);
        tess_pool_run(pool, p->thread_numel, multiply_body, &ch);
    }
}

static tess_status host_check(const tess_gemm_args *a, const plan *p)
{
    bool is_host = a->c.space == TESS_HOST && a->work.space == TESS_HOST;
    for (int t = 0; t < a->term_numel; t++)
        is_host = is_host && a->term[t].a.space == TESS_HOST;
    TESS_CHECK(is_host, TESS_E_ARG, "gemm: the cpu backend was given device memory");
    TESS_CHECK(tess_view_nbytes(a->work) >= plan_nbytes(p), TESS_E_ARG,
               "gemm: work has %zu bytes, %zu are needed for %d threads (gemm_work_nbytes)",
               tess_view_nbytes(a->work), plan_nbytes(p), p->thread_numel);
    return TESS_OK;
}

tess_status tess_cpu_gemm(const tess_gemm_args *a, tess_stream *s)
{
    tess_pool *pool = s != NULL ? s->pool : NULL;
    plan p;
    TESS_TRY(tess_gemm_check(a));
    plan_make(&p, a, tess_pool_thread_numel(pool));
    TESS_TRY(host_check(a, &p));
    const uintptr_t misalign = (uintptr_t)a->work.data % ALIGN_NBYTES;
    char *work = (char *)a->work.data + (misalign != 0 ? ALIGN_NBYTES - misalign : 0);
    narrow_job job = {&p, work};
    if (a->m == 0 || a->n == 0)
        return TESS_OK;
    if (p.is_narrow)
        tess_pool_run(pool, p.thread_numel, narrow_body, &job);
    else
        run_wide(&p, work, pool);
    return TESS_OK;
}

const tess_gemm_path *tess_gemm_path_current(void)
{
    switch (tess_cpu_path_current()) {
    case TESS_CPU_PORTABLE:
        return &tess_gemm_path_portable;
    case TESS_CPU_AVX2:
        return &tess_gemm_path_avx2;
    case TESS_CPU_AVX512:
        return &tess_gemm_path_avx512;
    case TESS_CPU_AVX512_BF16:
        return &tess_gemm_path_avx512_bf16;
    }
    return &tess_gemm_path_portable;
}
