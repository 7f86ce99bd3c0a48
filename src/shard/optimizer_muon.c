/*
 * Muon: matrices of hidden layers are made orthogonal whole. They are dealt out to the ranks, as
 * many at a time as there are ranks: pieces of the momentum go to a matrix's owner and pieces of
 * the result come back, in place of the gradient. What an owner computes does not depend on who it
 * is. All other tensors take AdamW.
 */
#include <math.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/optimizer_priv.h"

enum { EXP_AVG = 1, STEP_NUMEL = 5 };

/* Coefficients of the source: the largest slope at zero for which five steps stay bounded. */
static const float coefficient_a = 3.4445f, coefficient_b = -4.7750f, coefficient_c = 2.0315f;
static const double eps_norm = 1e-7;

/* ---- memory of an owner ---- */

/* X, its successor, A = X X^T or X^T X, and b A + c A^2, in multiples of 64 elements; then the
 * norm. */
typedef struct places {
    int64_t other, gram, polynomial, norm, gemm; /* elements of f32; X lies at 0 */
    size_t gemm_nbytes;
} places;

static int64_t least_side(const tess_param *p) { return TESS_MIN(p->shape[0], p->shape[1]); }

static tess_view f32_view(const tess_runtime *rt, float *data, int64_t numel)
{
    return rt != NULL ? runtime_view(rt, data, numel, TESS_F32)
                      : tess_view_host(data, numel, TESS_F32);
}

static tess_matrix plain(const float *data, int64_t rows, int64_t cols)
{
    const tess_matrix m = {
        .codec = {.format = TESS_FORMAT_F32}, .rows = rows, .cols = cols, .part = {data}};
    return m;
}

/* C[m, n] of one term, A [m, k] (TN: [k, m]) and B [k, n] (NT: [n, k]). */
static tess_gemm_args product(const tess_runtime *rt, tess_gemm_kind kind, const int64_t mnk[3],
                              float *a, const float *b, float *c)
{
    tess_gemm_args args = {.kind = kind, .m = mnk[0], .n = mnk[1], .term_numel = 1};
    args.term[0].a = f32_view(rt, a, mnk[0] * mnk[2]);
    args.term[0].b = kind == TESS_GEMM_NT ? plain(b, mnk[1], mnk[2]) : plain(b, mnk[2], mnk[1]);
    args.term[0].k = mnk[2];
    args.term[0].scale = 1.0f;
    args.c = f32_view(rt, c, mnk[0] * mnk[1]);
    return args;
}

/* The three products of a step on a matrix: Gram, its square, and the polynomial times X. */
static void list_products(const tess_runtime *rt, const tess_param *p, float *x, float *other,
                          float *gram, float *polynomial, tess_gemm_args out[3])
{
    const int64_t rows = p->shape[0], cols = p->shape[1], side = least_side(p);
    const bool is_tall = rows > cols;
    const int64_t of_gram[] = {side, side, is_tall ? rows : cols};
    const int64_t of_square[] = {side, side, side}, of_x[] = {rows, cols, side};
    out[0] = product(rt, is_tall ? TESS_GEMM_TN : TESS_GEMM_NT, of_gram, x, x, gram);
    out[1] = product(rt, TESS_GEMM_NN, of_square, gram, gram, polynomial);
    out[1].term[0].scale = coefficient_c;
    out[2] = is_tall ? product(rt, TESS_GEMM_NN, of_x, x, polynomial, other)
                     : product(rt, TESS_GEMM_NN, of_x, polynomial, x, other);
    out[1].accumulate = out[2].accumulate = true;
}

static places places_of(const tess_registry *reg, const tess_kernels *kernels, int thread_numel)
{
    places at = {0};
    int64_t most = 0, side = 0;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        tess_gemm_args products[3];
        if (!tess_param_is_hidden_matrix(p))
            continue;
        most = TESS_MAX(most, p->numel);
        side = TESS_MAX(side, least_side(p));
        list_products(NULL, p, NULL, NULL, NULL, NULL, products);
        for (int k = 0; k < 3; k++)
            at.gemm_nbytes =
                TESS_MAX(at.gemm_nbytes, kernels->gemm_work_nbytes(&products[k], thread_numel));
    }
    at.other = tess_round_up(most, 64);
    at.gram = 2 * at.other;
    at.polynomial = at.gram + tess_round_up(side * side, 64);
    at.norm = at.polynomial + tess_round_up(side * side, 64);
    at.gemm = at.norm + tess_round_up((int64_t)(sizeof(tess_exact) + sizeof(int64_t)) / 4, 64);
    return at;
}

size_t muon_work_nbytes(const tess_registry *reg, const tess_kernels *kernels, int thread_numel)
{
    const places at = places_of(reg, kernels, thread_numel);
    return (size_t)at.gemm * sizeof(float) + at.gemm_nbytes;
}

/* ---- Newton-Schulz ---- */

static tess_status scale(tess_runtime *rt, const float *x, float factor, float *dst, int64_t numel)
{
    const tess_scale_args args = {.x = x, .dst = dst, .numel = numel, .factor = factor};
    return rt->parts.kernels->scale(&args, rt->compute);
}

static tess_status normalize(tess_runtime *rt, float *x, int64_t numel, float *cell)
{
    struct {
        tess_exact sum;
        int64_t nonfinite_numel;
    } found;
    const tess_view view = runtime_view(rt, cell, (int64_t)sizeof found, TESS_U8_OPAQUE);
    void *read = NULL;
    TESS_TRY(tess_device_zero(rt->device, view, rt->compute));
    const tess_square_norm_args args = {
        .x = x,
        .numel = numel,
        .acc = view.data,
        .nonfinite_numel = (int64_t *)(void *)((char *)view.data + sizeof(tess_exact))};
    TESS_TRY(rt->parts.kernels->square_norm(&args, rt->compute));
    TESS_TRY(runtime_read(rt, view, &read));
    found.sum = *(const tess_exact *)read;
    const double norm = sqrt(tess_exact_round(&found.sum));
    return scale(rt, x, (float)(1.0 / fmax(norm, eps_norm)), x, numel);
}

/* The products of a step in an owner's memory, where X lies at either of its two places. */
static void list_placed(tess_runtime *rt, const places *at, const tess_param *p, bool is_swapped,
                        tess_gemm_args out[3])
{
    float *const base = optimizer_work(rt), *other = base + at->other;
    list_products(rt, p, is_swapped ? other : base, is_swapped ? base : other, base + at->gram,
                  base + at->polynomial, out);
    for (int i = 0; i < 3; i++)
        out[i].work = runtime_view(rt, base + at->gemm, (int64_t)at->gemm_nbytes, TESS_U8_OPAQUE);
}

tess_status announce_muon(tess_runtime *rt)
{
    const tess_registry *reg = rt->parts.registry;
    const tess_plan_options *o = &rt->parts.plan->options;
    const places at = places_of(reg, o->kernels, o->thread_numel);
    for (int i = 0; i < reg->param_numel; i++) {
        tess_gemm_args products[3];
        if (!tess_param_is_hidden_matrix(&reg->param[i]))
            continue;
        list_placed(rt, &at, &reg->param[i], false, products);
        for (int k = 0; k < 3; k++)
            TESS_TRY(rt->parts.kernels->gemm_prepare(&products[k], rt->compute));
    }
    return TESS_OK;
}

/* The matrix at the start of the work memory, in place. */
static tess_status orthogonalize(tess_runtime *rt, const places *at, const tess_param *p)
{
    const tess_kernels *k = rt->parts.kernels;
    const int64_t side = least_side(p);
    float *const base = optimizer_work(rt), *gram = base + at->gram,
                 *polynomial = base + at->polynomial;
    float *x = base, *other = base + at->other;
    TESS_TRY(normalize(rt, x, p->numel, base + at->norm));
    for (int step = 0; step < STEP_NUMEL; step++) {
        tess_gemm_args products[3];
        list_placed(rt, at, p, x != base, products);
        TESS_TRY(k->gemm(&products[0], rt->compute));
        TESS_TRY(scale(rt, gram, coefficient_b, polynomial, side * side));
        TESS_TRY(k->gemm(&products[1], rt->compute));
        TESS_TRY(scale(rt, x, coefficient_a, other, p->numel));
        TESS_TRY(k->gemm(&products[2], rt->compute));
        float *const next = other;
        other = x;
        x = next;
    }
    return x == base ? TESS_OK
                     : tess_device_copy(rt->device, f32_view(rt, base, p->numel),
                                        f32_view(rt, x, p->numel), rt->compute);
}

/* ---- to owners and back ---- */

/* What `rank` owns of a tensor, [first, first + numel) of its elements; numel <= 0: nothing. */
static void piece_of(const tess_runtime *rt, const tess_param *p, int rank, int64_t *first,
                     int64_t *numel)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(rt->parts.plan, p->unit_idx, rank, &lo, &hi);
    *first = TESS_MAX(lo, p->slab_first_idx) - p->slab_first_idx;
    *numel = TESS_MIN(hi, p->slab_first_idx + p->numel) - p->slab_first_idx - *first;
}

static float *own_gradient(tess_runtime *rt, const tess_param *p)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(rt->parts.plan, p->unit_idx, rt->rank, &lo, &hi);
    return gradient_sum(rt, p->unit_idx) + (TESS_MAX(lo, p->slab_first_idx) - lo);
}

/* The matrices of one deal: [rank] index of its tensor, -1: none. */
static int next_matrix(const tess_registry *reg, int idx)
{
    while (idx < reg->param_numel && !tess_param_is_hidden_matrix(&reg->param[idx]))
        idx++;
    return idx;
}

/* Own pieces of every dealt matrix, and all pieces of the own one; either may be the sent ones. */
static tess_status travel(tess_runtime *rt, int first_idx, bool is_back)
{
    const tess_registry *reg = rt->parts.registry;
    tess_piece *parts = rt->pieces[0], *whole = parts + rt->world;
    int part_numel = 0, whole_numel = 0, idx = first_idx;
    for (int owner = 0; owner < rt->world && idx < reg->param_numel; owner++) {
        const tess_param *p = &reg->param[idx];
        int64_t first = 0, numel = 0;
        piece_of(rt, p, rt->rank, &first, &numel);
        if (numel > 0)
            parts[part_numel++] = (tess_piece){owner, f32_view(rt, own_gradient(rt, p), numel)};
        for (int peer = 0; peer < rt->world && owner == rt->rank; peer++) {
            piece_of(rt, p, peer, &first, &numel);
            if (numel > 0)
                whole[whole_numel++] =
                    (tess_piece){peer, f32_view(rt, (float *)optimizer_work(rt) + first, numel)};
        }
        idx = next_matrix(reg, idx + 1);
    }
    const tess_wire *wire = &rt->parts.plan->wire[rt->parts.plan->optimizer_wire_idx];
    tess_stream *stream = rt->lane[TESS_LANE_REDUCE];
    TESS_TRY(runtime_follow(rt->compute, stream, &rt->updated));
    TESS_TRY(is_back ? tess_comm_exchange(rt->parts.world, wire, whole, whole_numel, parts,
                                          part_numel, stream)
                     : tess_comm_exchange(rt->parts.world, wire, parts, part_numel, whole,
                                          whole_numel, stream));
    TESS_TRY(runtime_follow(stream, rt->compute, &rt->drained[1]));
    return tess_stream_finish(rt->compute); /* the lists are used again */
}

static tess_status deal(tess_runtime *rt)
{
    const tess_registry *reg = rt->parts.registry;
    const tess_plan_options *o = &rt->parts.plan->options;
    const places at = places_of(reg, o->kernels, o->thread_numel);
    for (int first = next_matrix(reg, 0); first < reg->param_numel;) {
        int own_idx = first, next = first;
        for (int i = 0; i < rt->rank && own_idx < reg->param_numel; i++)
            own_idx = next_matrix(reg, own_idx + 1);
        TESS_TRY(travel(rt, first, false));
        if (own_idx < reg->param_numel)
            TESS_TRY(orthogonalize(rt, &at, &reg->param[own_idx]));
        TESS_TRY(travel(rt, first, true));
        for (int i = 0; i < rt->world && next < reg->param_numel; i++)
            next = next_matrix(reg, next + 1);
        first = next;
    }
    return TESS_OK;
}

/* ---- an update ---- */

int64_t muon_wire_numel(const tess_registry *reg, int64_t *total_numel)
{
    int64_t most = 0;
    *total_numel = 0;
    for (int i = 0; i < reg->param_numel; i++)
        if (tess_param_is_hidden_matrix(&reg->param[i])) {
            most = TESS_MAX(most, reg->param[i].numel);
            *total_numel += reg->param[i].numel;
        }
    return most;
}

/* The size of an update beside a weight's: AdamW's usual one, or the source's (kernels/muon.h). */
static double adjust(const tess_update *u, const tess_param *p)
{
    const double rows = (double)p->shape[0], cols = (double)p->shape[1];
    return u->matches_adamw ? 0.2 * sqrt(fmax(rows, cols)) : sqrt(fmax(1.0, rows / cols));
}

tess_status update_muon(tess_runtime *rt, float clip_factor)
{
    const tess_update *u = &rt->request->update;
    const tess_registry *reg = rt->parts.registry;
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        if (!tess_param_is_hidden_matrix(&reg->param[s->tensor_idx])) {
            TESS_TRY(update_adamw_segment(rt, s, clip_factor));
            continue;
        }
        const tess_muon_momentum_args args = {.exp_avg = segment_f32(rt, s, EXP_AVG),
                                              .grad = own_gradient(rt, &reg->param[s->tensor_idx]),
                                              .numel = s->numel,
                                              .clip_factor = clip_factor,
                                              .beta = u->momentum};
        TESS_TRY(rt->parts.kernels->muon_momentum(&args, rt->compute));
    }
    TESS_TRY(deal(rt));
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tess_param *p = &reg->param[s->tensor_idx];
        const double rate = segment_rate(rt, s);
        const tess_muon_apply_args args = {.part = segment_part(rt, s, 1.0f),
                                           .rate = rate * adjust(u, p),
                                           .decay = rate * segment_decay(rt, s)};
        if (tess_param_is_hidden_matrix(p))
            TESS_TRY(rt->parts.kernels->muon_apply(&args, rt->compute));
    }
    return TESS_OK;
}
