/* Updates of optimizers in the emulation, against the C twins. Runs on a device too. */
#include "kernels/nf4.h"
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

typedef struct shape {
    tess_dtype dt;
    int64_t numel;
    int64_t shift; /* elements behind an aligned address */
    bool has_param;
} shape;

/* Sizes around a chunk of 4, a block of 256 elements, a thread block and several of them. */
static const shape shapes[] = {
    {TESS_F32, 0, 0, true},        {TESS_F32, 1, 0, true},
    {TESS_BF16, 255, 0, true},     {TESS_BF16, 256, 0, true},
    {TESS_F32, 257, 1, true},      {TESS_BF16, 1023, 0, false},
    {TESS_BF16, 4096, 0, true},    {TESS_BF16, 9001, 3, true},
    {TESS_BF16, 1000003, 0, true}, /* fills a device */
};

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

enum { MASTER, GRAD, PARAM, STATE };

static const shape *make_part(twin *t, int case_idx)
{
    const shape *c = &shapes[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "master", TESS_F32, c->numel, 1.0);
    twin_random(t, "grad", TESS_F32, c->numel, 1.0);
    twin_output(t, "param", c->dt, c->has_param ? c->numel : 0);
    return c;
}

static tess_update_part part_of(const twin *t)
{
    return (tess_update_part){.master = t->x[MASTER].data,
                              .grad = t->x[GRAD].data,
                              .param = twin_view(t, PARAM),
                              .numel = t->x[MASTER].numel,
                              .clip_factor = 0.7f};
}

static void make_squares(twin *t, const char *name, int64_t numel)
{
    twin_operand *v = twin_random(t, name, TESS_F32, numel, 0.1);
    for (int64_t i = 0; i < numel; i++)
        ((float *)v->initial)[i] = fabsf(((float *)v->initial)[i]);
}

/* ---- Lion ---- */

static void lion_make(twin *t, int case_idx)
{
    twin_random(t, "exp_avg", TESS_F32, make_part(t, case_idx)->numel, 0.1);
}

static tess_status lion_call(twin *t, tess_stream *s)
{
    const tess_lion_args a = {.part = part_of(t),
                              .exp_avg = t->x[STATE].data,
                              .learning_rate = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.99,
                              .weight_decay = 0.1};
    TESS_TRY(CALL(t, lion, &a));
    return CALL(t, lion, &a);
}

/* ---- schedule-free AdamW ---- */

static void schedule_free_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    twin_random(t, "z", TESS_F32, c->numel, 1.0);
    make_squares(t, "exp_avg_sq", c->numel);
}

static tess_status schedule_free_call(twin *t, tess_stream *s)
{
    tess_schedule_free_args a = {.part = part_of(t),
                                 .z = t->x[STATE].data,
                                 .exp_avg_sq = t->x[STATE + 1].data,
                                 .learning_rate = 1e-3,
                                 .beta2 = 0.999,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .blend = 0.1,
                                 .average = 1.0,
                                 .step = 1};
    TESS_TRY(CALL(t, schedule_free, &a));
    a.step = 2;
    a.average = 0.5;
    return CALL(t, schedule_free, &a);
}

/* ---- blend ---- */

static tess_status blend_call(twin *t, tess_stream *s)
{
    float *a = t->x[MASTER].data, *b = t->x[GRAD].data;
    const tess_blend_args to_copy = {.a = a, .b = b, .dst = twin_view(t, PARAM), .weight = 0.25};
    const tess_blend_args in_place = {.a = a, .b = b, .dst = twin_view(t, MASTER), .weight = 0.001};
    TESS_TRY(CALL(t, blend, &to_copy));
    return CALL(t, blend, &in_place);
}

static void blend_make(twin *t, int case_idx) { make_part(t, case_idx); }

/* ---- AdamW in 8 bits ---- */

/* Random codes with some of both ends; one block of zeros, one element without a finite gradient.
 */
static void adamw_8bit_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    const int64_t block_numel = (c->numel + 255) / 256;
    for (int k = 0; k < 2; k++) {
        twin_operand *codes = twin_add(t, k == 0 ? "exp_avg" : "exp_avg_sq", TESS_U8, c->numel);
        const tess_rng rng = tess_rng_make(5 + (uint64_t)k, TESS_RNG_TEST, 0, 0);
        for (int64_t i = 0; i < c->numel; i++)
            ((uint8_t *)codes->initial)[i] = (uint8_t)tess_rng_below(&rng, (uint64_t)i, 256);
    }
    make_squares(t, "exp_avg_absmax", block_numel);
    make_squares(t, "exp_avg_sq_absmax", block_numel);
    float *grad = t->x[GRAD].initial;
    for (int64_t i = 256; i < TESS_MIN(c->numel, 512); i++)
        grad[i] = 0.0f;
    if (block_numel > 1)
        ((float *)t->x[STATE + 2].initial)[1] = ((float *)t->x[STATE + 3].initial)[1] = 0.0f;
    if (c->numel > 600)
        grad[600] = NAN;
}

static tess_status adamw_8bit_call(twin *t, tess_stream *s)
{
    tess_adamw_8bit_args a = {.part = part_of(t),
                              .exp_avg = t->x[STATE].data,
                              .exp_avg_sq = t->x[STATE + 1].data,
                              .exp_avg_absmax = t->x[STATE + 2].data,
                              .exp_avg_sq_absmax = t->x[STATE + 3].data,
                              .learning_rate = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.999,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .step = 1};
    TESS_TRY(CALL(t, adamw_8bit, &a));
    a.step = 2;
    return CALL(t, adamw_8bit, &a);
}

/* ---- Prodigy ---- */

static void prodigy_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    twin_random(t, "exp_avg", TESS_F32, c->numel, 0.1);
    make_squares(t, "exp_avg_sq", c->numel);
    twin_random(t, "s", TESS_F32, c->numel, 0.1);
    twin_random(t, "start", TESS_F32, c->numel, 1.0);
    t->shift = 0;
    twin_operand *sums =
        twin_add(t, "sums", TESS_I64, (int64_t)(sizeof(tess_prodigy_sums) / sizeof(int64_t)));
    memset(sums->initial, 0, sums->nbytes);
    if (c->numel > 600)
        ((float *)t->x[STATE + 3].initial)[600] = INFINITY; /* its block is counted */
}

static tess_status prodigy_call(twin *t, tess_stream *s)
{
    const tess_prodigy_measure_args measure = {.part = part_of(t),
                                               .start = t->x[STATE + 3].data,
                                               .exp_avg = t->x[STATE].data,
                                               .exp_avg_sq = t->x[STATE + 1].data,
                                               .s = t->x[STATE + 2].data,
                                               .sums = t->x[STATE + 4].data,
                                               .beta1 = 0.9,
                                               .beta2 = 0.999,
                                               .beta3 = 0.99,
                                               .d = 0.125,
                                               .s_rate = 0.5};
    const tess_prodigy_apply_args apply = {.part = part_of(t),
                                           .exp_avg = t->x[STATE].data,
                                           .exp_avg_sq = t->x[STATE + 1].data,
                                           .rate = 1e-2,
                                           .decay = 1e-3,
                                           .eps = 1e-9};
    TESS_TRY(CALL(t, prodigy_measure, &measure));
    TESS_TRY(CALL(t, prodigy_apply, &apply));
    return CALL(t, prodigy_measure, &measure);
}

static const twin_op ops[] = {
    {"lion", lion_make, lion_call, TESS_NELEM(shapes), 1},
    {"schedule_free", schedule_free_make, schedule_free_call, TESS_NELEM(shapes), 1},
    {"blend", blend_make, blend_call, TESS_NELEM(shapes), 1},
    {"prodigy", prodigy_make, prodigy_call, TESS_NELEM(shapes), 1},
    {"adamw_8bit", adamw_8bit_make, adamw_8bit_call, TESS_NELEM(shapes), 1},
};

static const twin_suite suite = {ops, TESS_NELEM(ops), {"optimizers.cu", "common_priv.cuh", NULL}};

static void test_updates_match_twins(void **state)
{
    (void)state;
    twin_check_suite(&suite);
}

static void test_barriers_taken_out_show(void **state)
{
    (void)state;
    twin_check_barriers(&suite);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_updates_match_twins),
        cmocka_unit_test(test_barriers_taken_out_show),
    };
    return cmocka_run_group_tests(tests, tess_emulation_setup, NULL);
}
