#include "train/rqvae_init.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "model/rqvae.h"
#include "shard/draw.h"

/* Views into the staging memory. */
typedef struct room {
    char *base; /* NULL: only counted */
    size_t used_nbytes;
    float *code;    /* [K, d] */
    int64_t *sum;   /* [K, d] */
    int64_t *count; /* [K] */
    int64_t *drawn; /* [K] */
    uint64_t *key;  /* [rows] */
    uint32_t *row;  /* [rows] */
    tess_view pack, work;
} room;

static tess_status take(room *r, int64_t a, int64_t b, size_t elem_nbytes, void *slot)
{
    int64_t nbytes = 0, end = 0;
    TESS_TRY(tess_mul_i64(a, b, &nbytes));
    TESS_TRY(tess_mul_i64(nbytes, (int64_t)elem_nbytes, &nbytes));
    void *at = r->base != NULL ? r->base + r->used_nbytes : NULL;
    memcpy(slot, &at, sizeof at);
    TESS_TRY(tess_add_i64((int64_t)r->used_nbytes, tess_round_up(nbytes, TESS_ARENA_ALIGN_NBYTES),
                          &end));
    r->used_nbytes = (size_t)end;
    return TESS_OK;
}

static tess_status lay_out(const tess_run *run, const tess_vector_layout *v, const tess_kernels *k,
                           room *r)
{
    const int64_t codes = v->code_numel, d = run->quantizer.code_dim;
    r->pack = tess_view_host(NULL, (int64_t)k->nearest_pack_nbytes(codes, d), TESS_U8_OPAQUE);
    r->work = tess_view_host(NULL, (int64_t)k->nearest_work_nbytes(d, 1, (int)run->compute.threads),
                             TESS_U8_OPAQUE);
    TESS_TRY(take(r, codes, d, sizeof *r->code, &r->code));
    TESS_TRY(take(r, codes, d, sizeof *r->sum, &r->sum));
    TESS_TRY(take(r, codes, 1, sizeof *r->count, &r->count));
    TESS_TRY(take(r, codes, 1, sizeof *r->drawn, &r->drawn));
    TESS_TRY(take(r, v->latent_numel, 1, sizeof *r->key, &r->key));
    TESS_TRY(take(r, v->latent_numel, 1, sizeof *r->row, &r->row));
    TESS_TRY(take(r, r->pack.numel, 1, 1, &r->pack.data));
    return take(r, r->work.numel, 1, 1, &r->work.data);
}

tess_status tess_rqvae_init_nbytes(const tess_run *run, const tess_vector_layout *layout,
                                   const tess_kernels *kernels, size_t *nbytes)
{
    room r = {0};
    *nbytes = 0;
    if (run->quantizer.init == TESS_RUN_CODE_INIT_RANDOM)
        return TESS_OK;
    TESS_TRY(lay_out(run, layout, kernels != NULL ? kernels : &tess_kernels_cpu, &r));
    *nbytes = r.used_nbytes;
    return TESS_OK;
}

typedef struct starter {
    tess_session *s;
    const tess_vector_layout *at;
    room r;
    float *x;        /* [rows, d] what is left of the vectors */
    int64_t rows, d; /* of this rank */
    int64_t all;     /* vectors of the step */
    int exponent;    /* of sums of x */
} starter;

static tess_status share(const starter *k, int64_t *words, int64_t numel)
{
    int n = 0;
    TESS_TRY(tess_to_int(numel, &n));
    return tess_comm_control(k->s->world, words, n, NULL, 0);
}

/* Vector g of the step, where this rank has it; micro-batches go round. */
static const float *own_vector(const starter *k, int64_t g)
{
    const int64_t m = g / k->at->row_numel, world = tess_comm_world(k->s->world);
    if (m % world != tess_comm_rank(k->s->world))
        return NULL;
    return k->x + (m / world * k->at->row_numel + g % k->at->row_numel) * k->d;
}

/* Rows travel as the bits of their numbers, in sums to which all others add zeros. */
static tess_status draw_codes(starter *k, int level)
{
    const int64_t codes = k->at->code_numel, numel = codes * k->d;
    const tess_draw draw = {.seed = (uint64_t)k->s->run->train.seed,
                            .purpose = TESS_DRAW_INIT,
                            .layer = (uint32_t)level};
    TESS_TRY(tess_draw_select(k->s->world, &draw, k->all, codes, k->r.drawn));
    memset(k->r.sum, 0, (size_t)numel * sizeof *k->r.sum);
    for (int64_t c = 0; c < codes; c++) {
        const float *x = own_vector(k, k->r.drawn[c]);
        for (int64_t j = 0; x != NULL && j < k->d; j++) {
            uint32_t bits = 0;
            memcpy(&bits, &x[j], sizeof bits);
            k->r.sum[c * k->d + j] = bits;
        }
    }
    TESS_TRY(share(k, k->r.sum, numel));
    for (int64_t i = 0; i < numel; i++) {
        const uint32_t bits = (uint32_t)k->r.sum[i];
        memcpy(&k->r.code[i], &bits, sizeof bits);
    }
    return TESS_OK;
}

/* Nearest codes of this rank's vectors. */
static tess_status assign(starter *k)
{
    const tess_kernels *kernels = k->s->kernels;
    tess_stream *stream = tess_runtime_stream(k->s->rt);
    const tess_view code = tess_view_host(k->r.code, k->at->code_numel * k->d, TESS_F32);
    const tess_nearest_prepare_args prepare = {
        .code = code, .pack = k->r.pack, .code_numel = k->at->code_numel, .dim = k->d};
    const tess_nearest_args nearest = {.x = tess_view_host(k->x, k->rows * k->d, TESS_F32),
                                       .code = code,
                                       .pack = k->r.pack,
                                       .key = tess_view_host(k->r.key, k->rows, TESS_U64),
                                       .work = k->r.work,
                                       .vector_numel = k->rows,
                                       .code_numel = k->at->code_numel,
                                       .dim = k->d,
                                       .best_numel = 1};
    const tess_code_row_args row = {k->r.key, k->r.row, k->rows};
    TESS_TRY(kernels->nearest_prepare(&prepare, stream));
    TESS_TRY(kernels->nearest(&nearest, stream));
    TESS_TRY(kernels->code_row(&row, stream));
    return tess_stream_finish(stream);
}

static tess_status add_own(starter *k)
{
    const tess_code_sum_args args = {.x = k->x,
                                     .row = k->r.row,
                                     .vector_numel = k->rows,
                                     .dim = k->d,
                                     .row_numel = k->at->code_numel,
                                     .exponent = k->exponent,
                                     .sum = k->r.sum,
                                     .count = k->r.count};
    memset(k->r.sum, 0, (size_t)(k->at->code_numel * k->d) * sizeof *k->r.sum);
    memset(k->r.count, 0, (size_t)k->at->code_numel * sizeof *k->r.count);
    TESS_TRY(assign(k));
    return k->s->kernels->code_sum(&args, tess_runtime_stream(k->s->rt));
}

static tess_status lloyd_round(starter *k)
{
    const tess_code_mean_args mean = {.sum = k->r.sum,
                                      .count = k->r.count,
                                      .code = k->r.code,
                                      .row_numel = k->at->code_numel,
                                      .dim = k->d,
                                      .exponent = k->exponent};
    TESS_TRY(session_agree(k->s, add_own(k)));
    TESS_TRY(share(k, k->r.sum, k->at->code_numel * k->d));
    TESS_TRY(share(k, k->r.count, k->at->code_numel));
    return k->s->kernels->code_mean(&mean, tess_runtime_stream(k->s->rt));
}

/* The exponent of sums over all ranks' vectors. */
static tess_status find_exponent(starter *k)
{
    float most = 0.0f;
    int64_t bits = 0;
    for (int64_t i = 0; i < k->rows * k->d; i++)
        if (!(fabsf(k->x[i]) <= most))
            most = fabsf(k->x[i]); /* a NaN stays: nothing is at least that */
    bits = (int64_t)tess_ordered_bits(most);
    TESS_TRY(tess_comm_control(k->s->world, NULL, 0, &bits, 1));
    most = tess_ordered_value((uint32_t)bits);
    TESS_CHECK(isfinite(most), TESS_E_NUMERIC,
               "quantizer.init: the encoder gives numbers that are not finite for vectors of the "
               "first step; scale the vectors down");
    k->exponent = tess_fixed_exponent(most, k->all);
    return TESS_OK;
}

/* This rank's range of the level's codes into its masters. */
static tess_status keep_codes(starter *k, int level)
{
    tess_session *s = k->s;
    const tess_param *p = &s->d.registry.param[tess_rqvae_codebook(s->d.model, level)];
    const tess_view master = tess_runtime_state(s->rt, p->unit_idx, TESS_STATE_MASTER);
    int64_t lo = 0, hi = 0;
    tess_plan_owned(s->d.plan, p->unit_idx, tess_comm_rank(s->world), &lo, &hi);
    const int64_t first = TESS_MAX(lo, p->slab_first_idx);
    const int64_t numel = TESS_MIN(hi, p->slab_first_idx + p->numel) - first;
    if (numel <= 0)
        return TESS_OK;
    return tess_runtime_copy(
        s->rt, tess_view_slice(master, first - lo, numel),
        tess_view_host(k->r.code + (first - p->slab_first_idx), numel, TESS_F32));
}

static tess_status subtract(starter *k)
{
    const tess_code_residual_args args = {.x = k->x,
                                          .code = k->r.code,
                                          .row = k->r.row,
                                          .vector_numel = k->rows,
                                          .code_numel = k->at->code_numel,
                                          .dim = k->d,
                                          .dst = k->x};
    TESS_TRY(assign(k));
    return k->s->kernels->code_residual(&args, tess_runtime_stream(k->s->rt));
}

static tess_status start_level(starter *k, int level)
{
    const tess_run_quantizer_keys *q = &k->s->run->quantizer;
    TESS_TRY(find_exponent(k));
    TESS_TRY(draw_codes(k, level));
    for (int64_t i = 0; i < q->passes && q->init == TESS_RUN_CODE_INIT_KMEANS; i++)
        TESS_TRY(lloyd_round(k));
    tess_status st = keep_codes(k, level);
    if (st == TESS_OK)
        st = subtract(k);
    return session_agree(k->s, st);
}

tess_status tess_rqvae_init(tess_session *s, const tess_vector_layout *layout, float *latent)
{
    const int64_t m = s->run->train.micro_batches, world = tess_comm_world(s->world);
    const int64_t rank = tess_comm_rank(s->world);
    const int64_t own = rank < m ? (m - 1 - rank) / world + 1 : 0;
    starter k = {.s = s,
                 .at = layout,
                 .x = latent,
                 .rows = own * layout->row_numel,
                 .d = s->run->quantizer.code_dim,
                 .all = m * layout->row_numel};
    tess_view work = {0};
    tess_status st = tess_runtime_host_work(s->rt, &work);
    k.r.base = work.data;
    if (st == TESS_OK)
        st = lay_out(s->run, layout, s->kernels, &k.r);
    if (st == TESS_OK && k.r.used_nbytes > (size_t)work.numel)
        st = TESS_FAIL(TESS_E_STATE, "start codes need %zu bytes of staging, the plan has %" PRId64,
                       k.r.used_nbytes, work.numel);
    TESS_TRY(session_agree(s, st));
    for (int level = 0; level < layout->level_numel; level++)
        TESS_TRY(start_level(&k, level));
    return TESS_OK;
}
