#include "train/rqvae_codes.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "model/rqvae.h"
#include "shard/draw.h"

/* ---- memory ---- */

static tess_status take(codes_room *r, int64_t a, int64_t b, size_t elem_nbytes, void *slot)
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
                           codes_room *r)
{
    const int64_t codes = v->shape.code_numel, d = v->shape.dim;
    const int64_t rows = v->kept_numel * tess_vector_layout_pooled(v);
    r->pack = tess_view_host(NULL, (int64_t)k->nearest_pack_nbytes(codes, d), TESS_U8_OPAQUE);
    r->work = tess_view_host(NULL, (int64_t)k->nearest_work_nbytes(d, 1, (int)run->compute.threads),
                             TESS_U8_OPAQUE);
    TESS_TRY(take(r, codes, d, sizeof *r->code, &r->code));
    TESS_TRY(take(r, codes, d, sizeof *r->sum, &r->sum));
    TESS_TRY(take(r, codes, 1, sizeof *r->count, &r->count));
    TESS_TRY(take(r, codes, 1, sizeof *r->drawn, &r->drawn));
    TESS_TRY(take(r, codes, 1, sizeof *r->expired, &r->expired));
    TESS_TRY(take(r, rows, 1, sizeof *r->key, &r->key));
    TESS_TRY(take(r, rows, 1, sizeof *r->row, &r->row));
    TESS_TRY(take(r, r->pack.numel, 1, 1, &r->pack.data));
    return take(r, r->work.numel, 1, 1, &r->work.data);
}

tess_status tess_codes_room_nbytes(const tess_run *run, const tess_vector_layout *layout,
                                   const tess_kernels *kernels, size_t *nbytes)
{
    codes_room r = {0};
    *nbytes = 0;
    if (layout->kept_numel == 0)
        return TESS_OK;
    TESS_TRY(lay_out(run, layout, kernels != NULL ? kernels : &tess_kernels_cpu, &r));
    *nbytes = r.used_nbytes;
    return TESS_OK;
}

tess_status codes_begin(tess_session *s, const tess_vector_layout *layout, codes_job *job)
{
    const int64_t m = s->run->train.micro_batches, rank = tess_comm_rank(s->world);
    *job = (codes_job){.s = s,
                       .at = layout,
                       .batch_numel = rank < m ? (m - 1 - rank) / tess_comm_world(s->world) + 1 : 0,
                       .all_numel = m * layout->row_numel,
                       .part_numel = tess_vector_layout_pooled(layout)};
    tess_view work = {0};
    tess_status st = tess_runtime_host_work(s->rt, &work);
    job->r.base = work.data;
    if (st == TESS_OK)
        st = lay_out(s->run, layout, codes_kernels(s), &job->r);
    if (st == TESS_OK && job->r.used_nbytes > (size_t)work.numel)
        st = TESS_FAIL(TESS_E_STATE, "codes need %zu bytes of staging, the plan has %" PRId64,
                       job->r.used_nbytes, work.numel);
    return session_agree(s, st);
}

/* ---- over ranks ---- */

tess_status codes_share(const codes_job *job, int64_t *words, int64_t numel)
{
    int n = 0;
    TESS_TRY(tess_to_int(numel, &n));
    return tess_comm_control(job->s->world, words, n, NULL, 0);
}

/* Numbers travel as their bits, in sums to which all others add zeros. */
static void to_words(const float *value, int64_t numel, int64_t *words)
{
    for (int64_t i = 0; i < numel; i++) {
        uint32_t bits = 0;
        memcpy(&bits, &value[i], sizeof bits);
        words[i] = bits;
    }
}

static void from_words(const int64_t *words, int64_t numel, float *value)
{
    for (int64_t i = 0; i < numel; i++) {
        const uint32_t bits = (uint32_t)words[i];
        memcpy(&value[i], &bits, sizeof bits);
    }
}

tess_status codes_join(codes_job *job, float *value, int64_t numel)
{
    const int64_t room = job->at->shape.code_numel * job->at->shape.dim;
    for (int64_t first = 0; first < numel; first += room) {
        const int64_t n = TESS_MIN(room, numel - first);
        to_words(value + first, n, job->r.sum);
        TESS_TRY(codes_share(job, job->r.sum, n));
        from_words(job->r.sum, n, value + first);
    }
    return TESS_OK;
}

/* Vector g of all parts of the step, where this rank has it; micro-batches go round. */
static const float *own_vector(const codes_job *job, int64_t g)
{
    const int64_t rows = job->at->row_numel, world = tess_comm_world(job->s->world);
    const int64_t m = g % job->all_numel / rows;
    if (m % world != tess_comm_rank(job->s->world))
        return NULL;
    return codes_vectors(job, (int)(g / job->all_numel), m / world) +
           g % job->all_numel % rows * job->at->shape.dim;
}

tess_status codes_draw(codes_job *job, const tess_draw *draw, int64_t numel)
{
    const int64_t d = job->at->shape.dim;
    TESS_TRY(tess_draw_select(job->s->world, draw, job->all_numel * job->part_numel, numel,
                              job->r.drawn));
    memset(job->r.sum, 0, (size_t)(numel * d) * sizeof *job->r.sum);
    for (int64_t c = 0; c < numel; c++) {
        const float *x = own_vector(job, job->r.drawn[c]);
        if (x != NULL)
            to_words(x, d, job->r.sum + c * d);
    }
    TESS_TRY(codes_share(job, job->r.sum, numel * d));
    from_words(job->r.sum, numel * d, job->r.code);
    return TESS_OK;
}

tess_status codes_exponent(const codes_job *job, int *exponent)
{
    float most = 0.0f;
    for (int p = 0; p < job->part_numel; p++)
        for (int64_t t = 0; t < job->batch_numel; t++) {
            const float *x = codes_vectors(job, p, t);
            for (int64_t i = 0; i < job->at->row_numel * job->at->shape.dim; i++)
                if (!(fabsf(x[i]) <= most) && !isnan(x[i]))
                    most = fabsf(x[i]);
        }
    int64_t bits = (int64_t)tess_ordered_bits(most);
    TESS_TRY(tess_comm_control(job->s->world, NULL, 0, &bits, 1));
    most = tess_ordered_value((uint32_t)bits);
    TESS_CHECK(isfinite(most), TESS_E_NUMERIC,
               "quantizer: the encoder gives numbers that are not finite; lower "
               "train.learning_rate or scale the vectors down");
    *exponent = tess_fixed_exponent(most, job->all_numel * job->part_numel);
    return TESS_OK;
}

/* ---- masters ---- */

codes_range codes_range_of(tess_session *s, int param_idx)
{
    const tess_param *p = &s->d.registry.param[param_idx];
    int64_t lo = 0, hi = 0;
    tess_plan_owned(s->d.plan, p->unit_idx, tess_comm_rank(s->world), &lo, &hi);
    const int64_t first = TESS_MAX(lo, p->slab_first_idx);
    const int64_t numel = TESS_MAX(TESS_MIN(hi, p->slab_first_idx + p->numel) - first, 0);
    codes_range range = {tess_runtime_state(s->rt, p->unit_idx, TESS_STATE_MASTER),
                         tess_runtime_param_shard(s->rt, p->unit_idx), first - p->slab_first_idx};
    range.master = tess_view_slice(range.master, numel > 0 ? first - lo : 0, numel);
    range.copy = tess_view_slice(range.copy, numel > 0 ? first - lo : 0, numel);
    return range;
}

tess_status codes_keep_param(tess_session *s, int param_idx, const float *value)
{
    const codes_range range = codes_range_of(s, param_idx);
    if (range.master.numel == 0)
        return TESS_OK;
    const tess_view from =
        tess_view_host((float *)(uintptr_t)(value + range.first_idx), range.master.numel, TESS_F32);
    TESS_TRY(tess_runtime_copy(s->rt, range.master, from));
    return tess_runtime_copy(s->rt, range.copy, from);
}

tess_status codes_keep(const codes_job *job, int book, const float *code)
{
    return codes_keep_param(job->s, tess_rqvae_codebook(job->s->d.model, book), code);
}

tess_status codes_gather(codes_job *job, int book, float *code)
{
    const codes_range range = codes_range_of(job->s, tess_rqvae_codebook(job->s->d.model, book));
    const int64_t numel = job->at->shape.code_numel * job->at->shape.dim;
    tess_status st = TESS_OK;
    memset(code, 0, (size_t)numel * sizeof *code);
    if (range.master.numel > 0)
        st = tess_runtime_copy(job->s->rt,
                               tess_view_host(code + range.first_idx, range.master.numel, TESS_F32),
                               range.master);
    TESS_TRY(session_agree(job->s, st));
    return codes_join(job, code, numel);
}
