#include "support/two_matrices.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/rng.h"

static tess_codec frozen_codec(const two_matrices *m)
{
    if (m->is_quantized)
        return (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64};
    return (tess_codec){.format = TESS_FORMAT_F32};
}

/* ---- scratch ---- */

/* What a call carves from its work: fixed places, all multiples of 256 bytes. */
typedef struct scratch {
    size_t input, d_a, d_b, logits, row_loss, gemm, end;
} scratch;

static tess_gemm_args product(tess_gemm_kind kind, int64_t m, int64_t n, int64_t k)
{
    const tess_codec f32 = {.format = TESS_FORMAT_F32};
    tess_gemm_args args = {.kind = kind, .m = m, .n = n, .term_numel = 1};
    args.term[0].a.dt = TESS_F32;
    args.term[0].k = k;
    args.term[0].scale = 1.0f;
    args.term[0].b = (tess_matrix){
        .codec = f32, .rows = kind == TESS_GEMM_NT ? n : k, .cols = kind == TESS_GEMM_NT ? k : n};
    args.c.dt = TESS_F32;
    args.term[1] = args.term[0];
    return args;
}

static size_t gemm_nbytes(const two_matrices *m)
{
    const int64_t r = m->row_numel, in = m->in_numel, mid = m->mid_numel, out = m->out_numel;
    tess_gemm_args args[] = {
        product(TESS_GEMM_NT, r, mid, in),  product(TESS_GEMM_NT, r, out, mid),
        product(TESS_GEMM_NN, r, mid, out), product(TESS_GEMM_TN, mid, in, r),
        product(TESS_GEMM_TN, out, mid, r), product(TESS_GEMM_NT, r, mid, mid),
        product(TESS_GEMM_NN, r, mid, mid), product(TESS_GEMM_TN, mid, mid, r),
        product(TESS_GEMM_NN, r, in, mid),
    };
    size_t most = 0;
    for (int i = 0; i < TESS_NELEM(args); i++) {
        const bool is_pair = args[i].kind != TESS_GEMM_TN;
        args[i].term_numel = is_pair ? 2 : 1;
        if (is_pair)
            args[i].term[0].b.codec = frozen_codec(m);
        most = TESS_MAX(most, tess_kernels_cpu.gemm_work_nbytes(&args[i], 1));
    }
    return most;
}

static scratch scratch_of(const two_matrices *m)
{
    const int64_t numel[] = {m->row_numel * m->in_numel, m->row_numel * m->mid_numel,
                             m->row_numel * m->mid_numel, m->row_numel * m->out_numel,
                             2 * m->row_numel};
    size_t at[TESS_NELEM(numel) + 1] = {0};
    for (int i = 0; i < TESS_NELEM(numel); i++)
        at[i + 1] = at[i] + (size_t)tess_round_up(numel[i] * 4, 256);
    return (scratch){at[0], at[1], at[2], at[3], at[4], at[5], at[5] + gemm_nbytes(m)};
}

static tess_stage make_stage(const two_matrices *m, const char *name, int unit_idx,
                             int64_t output_numel)
{
    const bool is_last = output_numel == 0;
    tess_stage s = {.unit_idx = unit_idx, .is_fused_loss = is_last};
    snprintf(s.name, sizeof s.name, "%s", name);
    s.output_nbytes = (size_t)output_numel * sizeof(float);
    s.saved_nbytes = (size_t)output_numel * sizeof(float);
    s.work_nbytes = scratch_of(m).end;
    return s;
}

static tess_status fill_table(two_matrices *m)
{
    TESS_CHECK(m->row_numel * m->in_numel <= TWO_MATRICES_INPUT_MAX &&
                   m->row_numel <= TWO_MATRICES_ROW_MAX,
               TESS_E_ARG, "input of %d rows, %d columns", (int)m->row_numel, (int)m->in_numel);
    for (int i = 0; i < TWO_MATRICES_INPUT_MAX; i++)
        m->table.one[i] = 1.0f;
    for (int i = 0; i < TWO_MATRICES_ROW_MAX; i++)
        m->table.label[i] = (int32_t)(i % m->out_numel);
    m->table.nan = NAN;
    return TESS_OK;
}

static int last_stage(const two_matrices *m) { return m->between_numel + 1; }

/* Columns of a stage's matrices: what its input has. */
static int64_t width_of(const two_matrices *m, int stage_idx)
{
    return stage_idx == 0 ? m->in_numel : m->mid_numel;
}

static tess_status add_pair(two_matrices *m, tess_registry *reg, int s, int unit_idx)
{
    static const tess_role role[] = {TESS_ROLE_FROZEN, TESS_ROLE_TRAINABLE};
    const int64_t shape[] = {s == last_stage(m) ? m->out_numel : m->mid_numel, width_of(m, s)};
    for (int i = 0; i < 2; i++) {
        tess_param p = {.unit_idx = unit_idx,
                        .role = role[i],
                        .shape_rank = 2,
                        .shape = {shape[0], shape[1]},
                        .codec = {.format = TESS_FORMAT_F32},
                        .init = TESS_INIT_NORMAL,
                        .init_scale = 0.3,
                        .learning_rate_ratio = 1.0,
                        .has_weight_decay = true};
        if (i == 0)
            p.codec = frozen_codec(m);
        snprintf(p.name, sizeof p.name, "%c%d", "ft"[i], s);
        TESS_TRY(tess_registry_add_param(reg, &p, i == 0 ? &m->frozen[s] : &m->trainable[s]));
    }
    return TESS_OK;
}

static tess_status add_unit(two_matrices *m, tess_registry *reg, int s, int *unit_idx)
{
    static const char *const name[TWO_MATRICES_STAGE_MAX] = {"first", "b1", "b2", "b3", "b4"};
    if (m->is_tied && s == last_stage(m)) {
        m->frozen[s] = m->frozen[0];
        m->trainable[s] = m->trainable[0];
        *unit_idx = 0;
        return TESS_OK;
    }
    TESS_TRY(tess_registry_add_unit(reg, s == last_stage(m) ? "second" : name[s], unit_idx));
    return add_pair(m, reg, s, *unit_idx);
}

tess_status two_matrices_describe(two_matrices *m, tess_registry *reg)
{
    int unit[TWO_MATRICES_STAGE_MAX] = {0};
    TESS_CHECK(last_stage(m) < TWO_MATRICES_STAGE_MAX, TESS_E_ARG, "%d stages between",
               m->between_numel);
    TESS_TRY(fill_table(m));
    for (int s = 0; s <= last_stage(m); s++)
        TESS_TRY(add_unit(m, reg, s, &unit[s]));
    for (int s = 0; s <= last_stage(m); s++) {
        const bool is_last = s == last_stage(m);
        const tess_stage stage = make_stage(m,
                                            s == 0    ? "first"
                                            : is_last ? "second"
                                                      : "between",
                                            unit[s], is_last ? 0 : m->row_numel * m->mid_numel);
        TESS_TRY(tess_registry_add_stage(reg, &stage));
    }
    return tess_registry_lay_out(reg);
}

/* ---- calls ---- */

/* A call with its scratch. */
typedef struct run {
    const two_matrices *m;
    const tess_stage_call *call;
    const tess_kernels *kernels;
    const two_matrices_table *table;
    scratch at;
} run;

static run begin(const two_matrices *m, const tess_stage_call *call)
{
    return (run){m, call, call->kernels, m->place != NULL ? m->place : &m->table, scratch_of(m)};
}

static tess_view view_of(const run *r, const void *data, int64_t numel, tess_dtype dt)
{
    return (tess_view){(void *)(uintptr_t)data, numel, dt, r->call->device->space};
}

static tess_view work_at(const run *r, size_t offset_nbytes, int64_t numel, tess_dtype dt)
{
    return view_of(r, (char *)r->call->work.data + offset_nbytes, numel, dt);
}

static tess_view typed(const run *r, tess_view bytes)
{
    return view_of(r, bytes.data, (int64_t)tess_view_nbytes(bytes) / 4, TESS_F32);
}

/* c = a (F + T) with the two matrices of a stage; NT: the transposed matrices. */
static tess_status through_pair(const run *r, tess_gemm_args args, tess_view a, int which,
                                tess_view c)
{
    const int idx[2] = {r->m->frozen[which], r->m->trainable[which]};
    args.term_numel = 2;
    for (int i = 0; i < 2; i++) {
        args.term[i].a = a;
        args.term[i].b = tess_call_matrix(r->call, idx[i]);
    }
    args.c = c;
    args.work = work_at(r, r->at.gemm, (int64_t)(r->at.end - r->at.gemm), TESS_U8_OPAQUE);
    return r->kernels->gemm(&args, r->call->stream);
}

/* grad += a^T b over the rows. */
static tess_status weight_grad(const run *r, tess_view a, tess_view b, int which)
{
    const int64_t rows = r->m->row_numel, m = a.numel / rows, n = b.numel / rows;
    tess_gemm_args args = product(TESS_GEMM_TN, m, n, rows);
    args.term[0].a = a;
    args.term[0].b.part[0] = b.data;
    args.c = view_of(r, tess_call_grad(r->call, r->m->trainable[which]), m * n, TESS_F32);
    args.accumulate = true;
    args.work = work_at(r, r->at.gemm, (int64_t)(r->at.end - r->at.gemm), TESS_U8_OPAQUE);
    return r->kernels->gemm(&args, r->call->stream);
}

/* Each element of ones kept, and doubled, or dropped. */
static tess_status draw_input(const run *r, tess_view *x)
{
    const two_matrices_batch *b = r->call->batch;
    const int64_t numel = r->m->row_numel * r->m->in_numel;
    *x = work_at(r, r->at.input, numel, TESS_F32);
    const tess_dropout_args args = {
        .x = view_of(r, r->table->one, numel, TESS_F32),
        .add = {.dt = TESS_F32},
        .out = *x,
        .p = 0.5f,
        .rng = tess_rng_make(11, TESS_RNG_TEST, 0, (uint32_t)b->micro_batch_idx)};
    return r->kernels->dropout(&args, r->call->stream);
}

static tess_status input_of(const run *r, tess_view *x)
{
    if (r->call->stage_idx == 0)
        return draw_input(r, x);
    *x = typed(r, r->call->input);
    return TESS_OK;
}

static tess_status hidden_forward(const run *r)
{
    const two_matrices *m = r->m;
    const int s = r->call->stage_idx;
    const tess_view z = typed(r, r->call->saved), h = typed(r, r->call->output);
    const tess_swiglu_args act = {.gate = z, .up = z, .out = h};
    tess_view x = {0};
    TESS_TRY(input_of(r, &x));
    TESS_TRY(through_pair(r, product(TESS_GEMM_NT, m->row_numel, m->mid_numel, width_of(m, s)), x,
                          s, z));
    return r->kernels->swiglu_forward(&act, r->call->stream);
}

/* Losses of all rows and their sum; the gradient over the logits where one is wanted. */
static tess_status second_loss(const run *r, bool has_gradient, tess_view *logits)
{
    const two_matrices *m = r->m;
    *logits = work_at(r, r->at.logits, m->row_numel * m->out_numel, TESS_F32);
    const tess_view row_loss = work_at(r, r->at.row_loss, m->row_numel, TESS_F64);
    const tess_cross_entropy_args loss = {.logits = *logits,
                                          .row_numel = m->row_numel,
                                          .vocab_numel = m->out_numel,
                                          .labels = r->table->label,
                                          .row_loss = row_loss.data,
                                          .grad_scale = r->call->grad_scale,
                                          .d_logits = has_gradient ? *logits : (tess_view){0}};
    const tess_sum_args sum = {.x = row_loss.data, .numel = m->row_numel, .out = r->call->loss_sum};
    TESS_TRY(through_pair(r, product(TESS_GEMM_NT, m->row_numel, m->out_numel, m->mid_numel),
                          typed(r, r->call->input), last_stage(m), *logits));
    TESS_TRY(r->kernels->cross_entropy(&loss, r->call->stream));
    return r->kernels->sum(&sum, r->call->stream);
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    const run r = begin(model, call);
    tess_view logits = {0};
    return call->stage_idx < last_stage(r.m) ? hidden_forward(&r) : second_loss(&r, false, &logits);
}

static tess_status second_backward(const run *r)
{
    const two_matrices *m = r->m;
    tess_view d = {0};
    TESS_TRY(second_loss(r, true, &d));
    TESS_TRY(weight_grad(r, d, typed(r, r->call->input), last_stage(m)));
    return through_pair(r, product(TESS_GEMM_NN, m->row_numel, m->mid_numel, m->out_numel), d,
                        last_stage(m), typed(r, r->call->d_input));
}

/* h = silu(z) z: both factors' gradients together. */
static tess_status hidden_backward(const run *r)
{
    const two_matrices *m = r->m;
    const int s = r->call->stage_idx;
    const tess_view z = typed(r, r->call->saved);
    const tess_view a = work_at(r, r->at.d_a, z.numel, TESS_F32);
    const tess_view b = work_at(r, r->at.d_b, z.numel, TESS_F32);
    const tess_swiglu_backward_args act = {
        .gate = z, .up = z, .d_out = typed(r, r->call->d_output), .d_gate = a, .d_up = b};
    const tess_add_args both = {.a = a, .b = b, .out = a};
    tess_view x = {0};
    TESS_TRY(input_of(r, &x));
    TESS_TRY(r->kernels->swiglu_backward(&act, r->call->stream));
    TESS_TRY(r->kernels->add(&both, r->call->stream));
    TESS_TRY(weight_grad(r, a, x, s));
    /* Nobody wants the input's gradient of stage 0; it is there so that every backward reads the
     * parameters, as the schedule takes for granted. */
    return through_pair(r, product(TESS_GEMM_NN, m->row_numel, width_of(m, s), m->mid_numel), a, s,
                        s == 0 ? x : typed(r, r->call->d_input));
}

static tess_status poison(const run *r)
{
    const two_matrices *m = r->m;
    float *at = tess_call_grad(r->call, m->trainable[m->poisoned_stage]) + m->poisoned_element;
    const tess_fold_args args = {.a = at, .b = &r->table->nan, .dst = at, .numel = 1};
    return r->kernels->fold(&args, r->call->stream);
}

static tess_status backward(void *model, const tess_stage_call *call)
{
    const two_matrices *m = model;
    const run r = begin(m, call);
    TESS_TRY(call->stage_idx == last_stage(m) ? second_backward(&r) : hidden_backward(&r));
    return call->stage_idx == m->poisoned_stage && m->is_poisoned &&
                   call->micro_batch_idx == m->poisoned_idx
               ? poison(&r)
               : TESS_OK;
}

static size_t constant_nbytes(const void *model)
{
    (void)model;
    return (size_t)tess_round_up(sizeof(two_matrices_table), 256);
}

static tess_status place_constants(void *model, tess_device *device, tess_view place,
                                   tess_stream *stream)
{
    two_matrices *m = model;
    m->place = place.data;
    place.numel = sizeof m->table;
    return tess_device_copy(device, place,
                            tess_view_host(&m->table, sizeof m->table, TESS_U8_OPAQUE), stream);
}

tess_status two_matrices_batch_of(void *arg, int64_t m, const void **batch)
{
    two_matrices_feed *f = arg;
    f->batch.micro_batch_idx = f->first_idx + m;
    *batch = &f->batch;
    return TESS_OK;
}

const tess_stage_ops two_matrices_ops = {.forward = forward,
                                         .backward = backward,
                                         .constant_nbytes = constant_nbytes,
                                         .place_constants = place_constants};
