/* Codebooks, the search for nearest codes and patches of images in the emulation, against the C
 * twins. Runs on a device too. */
#include "kernels/cuda_work.h"
#include "tests/emulation/emulation.h"
#include "tests/emulation/mma_probe.h"
#include "tests/emulation/twin.h"

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

/* ---- nearest codes ---- */

typedef enum kind {
    PLAIN,
    NEAR,       /* vectors are codes and a little */
    TIES,       /* few values: many codes are equally far, some equal */
    EQUAL,      /* all codes are one: no list holds them */
    ZEROS,      /* of both signs */
    FAR,        /* a common offset that swallows half the digits */
    NOT_FINITE, /* in vectors and codes */
    TINY,       /* below the normal numbers */
    HUGE_ONES,  /* their squares overflow */
} kind;

typedef struct search_case {
    int64_t vectors, codes, dim;
    int best;
    kind kind;
    int64_t first_row, shift;
} search_case;

/* One stage to more than stay in shared memory; codes of part of a tile to several tiles. */
static const search_case searches[] = {
    {1, 1, 1, 1, PLAIN, 0, 0},     {1, 7, 3, 1, PLAIN, 5, 1},      {65, 129, 1, 1, TIES, 0, 0},
    {70, 700, 3, 1, NEAR, 0, 0},   {3, 130, 64, 1, PLAIN, 100, 0}, {5, 40, 100, 1, NEAR, 0, 1},
    {2, 300, 256, 1, TIES, 0, 0},  {66, 130, 33, 1, FAR, 0, 0},    {3, 140, 300, 1, NEAR, 9, 0},
    {4, 129, 16, 1, EQUAL, 3, 0},  {9, 64, 5, 1, ZEROS, 0, 0},     {6, 50, 4, 1, NOT_FINITE, 0, 0},
    {5, 70, 8, 1, TINY, 0, 0},     {4, 33, 8, 1, HUGE_ONES, 0, 0}, {4, 0, 8, 1, PLAIN, 0, 0},
    {0, 8, 8, 1, PLAIN, 0, 0},     {3, 20, 7, 5, TIES, 2, 0},      {2, 3, 5, 6, PLAIN, 0, 0},
    {40, 1000, 2, 1, PLAIN, 0, 0}, {33, 100, 1, 1, TIES, 0, 0},    {1500, 5000, 64, 1, NEAR, 0, 0},
    {40, 60000, 16, 1, FAR, 0, 0},
};
enum { LARGE_SEARCHES = 2 }; /* they fill a device: by vectors, and by slices of codes */

static float value_of(const search_case *c, float normal, int64_t i)
{
    static const float few[] = {0.0f, 1.0f, -1.0f, 0.5f};
    switch (c->kind) {
    case TIES:
        return few[(int)(fabsf(normal) * 8.0f) % 4];
    case ZEROS:
        return normal < 0.0f ? -0.0f : 0.0f;
    case FAR:
        return 4096.0f + normal;
    case NOT_FINITE:
        return i % 41 == 7 ? NAN : i % 53 == 3 ? INFINITY : normal;
    case TINY:
        return normal * 0x1p-130f;
    case HUGE_ONES:
        return normal * 0x1p100f;
    case PLAIN:
    case NEAR:
    case EQUAL:
        break;
    }
    return normal;
}

static void search_make(twin *t, int case_idx)
{
    const search_case *c = &searches[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", TESS_F32, c->vectors * c->dim, 1.0);
    twin_random(t, "code", TESS_F32, c->codes * c->dim, 1.0);
    twin_output(t, "key", TESS_U64, c->vectors * c->best);
    float *x = t->x[0].initial, *code = t->x[1].initial;
    for (int64_t i = 0; i < c->codes * c->dim; i++)
        code[i] = c->kind == EQUAL && i >= c->dim ? code[i % c->dim] : value_of(c, code[i], i);
    for (int64_t i = 0; i < c->vectors * c->dim; i++) {
        const int64_t row = i / c->dim * 17 % (c->codes > 0 ? c->codes : 1);
        x[i] =
            c->kind == NEAR ? code[row * c->dim + i % c->dim] + 1e-3f * x[i] : value_of(c, x[i], i);
    }
}

/* Packs differ between backends: they are no operands. */
static tess_status search_call(twin *t, tess_stream *s)
{
    const search_case *c = t->ctx;
    const tess_kernels *sizes = t->is_cuda ? tess_emulation_sizes() : &tess_kernels_cpu;
    const tess_view pack = twin_room(t, sizes->nearest_pack_nbytes(c->codes, c->dim));
    const tess_view work = twin_room(t, sizes->nearest_work_nbytes(c->dim, c->best, 1));
    const tess_nearest_prepare_args prepare = {
        .code = twin_view(t, 1), .pack = pack, .code_numel = c->codes, .dim = c->dim};
    const tess_nearest_args args = {.x = twin_view(t, 0),
                                    .code = twin_view(t, 1),
                                    .pack = pack,
                                    .key = twin_view(t, 2),
                                    .work = work,
                                    .vector_numel = c->vectors,
                                    .code_numel = c->codes,
                                    .dim = c->dim,
                                    .first_row_idx = c->first_row,
                                    .best_numel = c->best};
    tess_status st = CALL(t, nearest_prepare, &prepare);
    if (st == TESS_OK)
        st = CALL(t, nearest, &args);
    twin_room_free(pack);
    twin_room_free(work);
    if (!t->is_cuda)
        return st;
    const tess_tensor_faults f = tess_tensor_faults_take(); /* also of a launch that failed */
    TESS_TRY(st);
    TESS_CHECK(f.misaligned == 0 && f.bank_conflicts == 0 && f.lost_copies == 0, TESS_E_STATE,
               "%" PRId64 " misaligned, %" PRId64 " bank conflicts, %" PRId64 " lost copies",
               f.misaligned, f.bank_conflicts, f.lost_copies);
    return TESS_OK;
}

/* ---- codebooks ---- */

typedef struct book_case {
    int64_t vectors, codes, dim;
    int64_t shift;
} book_case;

static const book_case books[] = {
    {0, 3, 4, 0},   {1, 1, 1, 0},    {37, 5, 3, 1},       {40, 9, 33, 0},
    {3, 4, 300, 0}, {300, 2, 64, 0}, {30000, 300, 64, 0}, /* fills a device, as the last of the
                                                             others do */
};

/* Some vectors have no code, one code no vector. */
static twin_operand *add_rows(twin *t, const char *name, int64_t numel, int64_t codes)
{
    twin_operand *x = twin_index(t, name, numel, codes > 1 ? codes - 1 : codes);
    for (int64_t i = 3; i < numel; i += 7)
        ((uint32_t *)x->initial)[i] = TESS_NO_CODE;
    return x;
}

static twin_operand *add_counts(twin *t, const char *name, int64_t numel, int64_t most)
{
    twin_operand *x = twin_add(t, name, TESS_I64, numel);
    const tess_rng rng = tess_rng_make(5, TESS_RNG_TEST, 0, 0);
    for (int64_t i = 0; i < numel; i++)
        ((int64_t *)x->initial)[i] =
            (int64_t)tess_rng_below(&rng, (uint64_t)i, (uint64_t)most) - most / 3;
    return x;
}

static void book_make(twin *t, int case_idx)
{
    const book_case *c = &books[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", TESS_F32, c->vectors * c->dim, 3.0);
    add_rows(t, "row", c->vectors, c->codes);
    add_counts(t, "sum", c->codes * c->dim, 1 << 20);
    add_counts(t, "count", c->codes, 4);
    twin_random(t, "code", TESS_F32, c->codes * c->dim, 1.0);
    twin_random(t, "unit", TESS_F32, c->codes * c->dim, 1.0);
    twin_output(t, "left", TESS_F32, c->vectors * c->dim);
    add_rows(t, "parent", c->vectors, c->vectors > 0 ? c->vectors : 1);
    for (int64_t i = 0; i < c->vectors; i++)
        ((uint32_t *)t->x[7].initial)[i] = (uint32_t)(i * 5 % c->vectors);
    twin_add(t, "key", TESS_U64, c->vectors);
    for (int64_t i = 0; i < c->vectors; i++)
        ((uint64_t *)t->x[8].initial)[i] =
            i % 5 == 4 ? TESS_NO_KEY : tess_key_make((float)i, (uint32_t)(i * 3));
    twin_output(t, "found", TESS_I32, c->vectors);
    twin_output(t, "value", TESS_F32, c->codes * c->dim);
}

static tess_status book_call(twin *t, tess_stream *s)
{
    const book_case *c = t->ctx;
    const tess_code_sum_args sum = {.x = t->x[0].data,
                                    .row = t->x[1].data,
                                    .vector_numel = c->vectors,
                                    .dim = c->dim,
                                    .first_row_idx = 1,
                                    .row_numel = c->codes - 1,
                                    .exponent = 30,
                                    .sum = t->x[2].data,
                                    .count = t->x[3].data};
    tess_code_mean_args mean = {.sum = t->x[2].data,
                                .count = t->x[3].data,
                                .code = t->x[4].data,
                                .row_numel = c->codes,
                                .dim = c->dim,
                                .exponent = 30};
    tess_code_residual_args residual = {.x = t->x[0].data,
                                        .parent = t->x[7].data,
                                        .code = t->x[4].data,
                                        .row = t->x[1].data,
                                        .vector_numel = c->vectors,
                                        .code_numel = c->codes,
                                        .dim = c->dim,
                                        .dst = t->x[6].data};
    const tess_code_row_args row = {t->x[8].data, t->x[9].data, c->vectors};
    const tess_code_value_args value = {t->x[2].data, c->codes * c->dim, 30, t->x[10].data};
    TESS_TRY(CALL(t, code_value, &value));
    TESS_TRY(CALL(t, code_sum, &sum));
    TESS_TRY(CALL(t, code_mean, &mean));
    mean.code = t->x[5].data;
    mean.is_unit = true;
    TESS_TRY(CALL(t, code_mean, &mean));
    TESS_TRY(CALL(t, code_residual, &residual));
    residual.parent = NULL;
    residual.dst = t->x[0].data;
    TESS_TRY(CALL(t, code_residual, &residual)); /* in place */
    return CALL(t, code_row, &row);
}

static void largest_make(twin *t, int case_idx)
{
    const book_case *c = &books[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", TESS_F32, c->vectors * c->dim, 3.0);
    add_rows(t, "row", c->vectors, c->codes);
    *(int32_t *)twin_add(t, "most", TESS_I32, 1)->initial = 0;
    if (c->vectors > 4) { /* the largest of all has no code, and one is no number */
        ((float *)t->x[0].initial)[3 * c->dim] = -1e9f;
        ((float *)t->x[0].initial)[4 * c->dim] = NAN;
    }
}

static tess_status largest_call(twin *t, tess_stream *s)
{
    const book_case *c = t->ctx;
    const tess_code_most_args args = {t->x[0].data, t->x[1].data, c->vectors, c->dim, t->x[2].data};
    return CALL(t, code_most, &args);
}

/* ---- patches ---- */

typedef struct patch_case {
    tess_dtype dt, bias;
    tess_patch_shape shape;
    int64_t shift;
} patch_case;

static const patch_case patches[] = {
    {TESS_F32, TESS_F32, {0, 4, 4, 3, 3, 1, 1}, 0},
    {TESS_F32, TESS_F32, {1, 1, 1, 1, 1, 1, 0}, 0},
    {TESS_F32, TESS_BF16, {2, 5, 4, 3, 3, 1, 1}, 1},
    {TESS_F32, TESS_F32, {1, 6, 8, 4, 4, 2, 1}, 0},
    {TESS_BF16, TESS_F32, {2, 6, 6, 8, 4, 2, 1}, 0},
    {TESS_BF16, TESS_BF16, {1, 7, 5, 5, 3, 2, 2}, 1},
    {TESS_BF16, TESS_BF16, {1, 3, 3, 300, 2, 1, 0}, 0},
    {TESS_BF16, TESS_BF16, {4, 32, 32, 64, 3, 1, 1}, 0},
};

static void patch_make(twin *t, int case_idx)
{
    const patch_case *c = &patches[case_idx];
    const tess_patch_shape *p = &c->shape;
    const int64_t pixels = p->sample_numel * p->height * p->width;
    const int64_t numel = p->sample_numel * tess_patch_numel(p, p->height) *
                          tess_patch_numel(p, p->width) * p->kernel * p->kernel * p->channel_numel;
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "image", c->dt, pixels * p->channel_numel, 1.0);
    twin_output(t, "patches", c->dt, numel);
    twin_random(t, "values", c->dt, numel, 1.0);
    twin_random(t, "bias", c->bias, p->channel_numel, 1.0);
    twin_output(t, "sum", c->dt, pixels * p->channel_numel);
    twin_output(t, "plain", c->dt, pixels * p->channel_numel);
}

static tess_status patch_call(twin *t, tess_stream *s)
{
    const patch_case *c = t->ctx;
    const tess_im2col_args im2col = {c->shape, twin_view(t, 0), twin_view(t, 1)};
    tess_col2im_args col2im = {c->shape, twin_view(t, 2), twin_view(t, 3), twin_view(t, 4)};
    TESS_TRY(CALL(t, im2col, &im2col));
    TESS_TRY(CALL(t, col2im, &col2im));
    col2im.bias = (tess_view){0};
    col2im.image = twin_view(t, 5);
    return CALL(t, col2im, &col2im);
}

/* ---- rectified values, mixed losses ---- */

static const book_case lines[] = {
    {0, 1, 1, 0}, {1, 1, 1, 1}, {1030, 3, 1, 0}, {77, 65, 1, 1}, {300001, 3, 1, 0}};

static void line_make(twin *t, int case_idx)
{
    const book_case *c = &lines[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    for (int i = 0; i < 2; i++) {
        const tess_dtype dt = i == 0 ? TESS_F32 : TESS_BF16;
        twin_random(t, "x", dt, c->vectors, 1.0);
        twin_random(t, "gate", dt, c->vectors, 1.0);
        twin_output(t, "out", dt, c->vectors);
    }
    for (int64_t i = 0; i < c->vectors; i += 9)
        ((float *)t->x[1].initial)[i] = i % 2 == 0 ? -0.0f : NAN;
    twin_random(t, "term", TESS_F64, c->codes * c->vectors, 1.0);
    twin_output(t, "loss", TESS_F64, c->vectors);
}

static tess_status line_call(twin *t, tess_stream *s)
{
    const book_case *c = t->ctx;
    tess_mix_args mix = {.x = t->x[6].data,
                         .term_numel = (int)c->codes,
                         .row_numel = c->vectors,
                         .out = t->x[7].data};
    for (int i = 0; i < mix.term_numel; i++)
        mix.weight[i] = 1.0 / (double)(i + 3);
    for (int i = 0; i < 6; i += 3) {
        tess_relu_args relu = {twin_view(t, i), twin_view(t, i + 1), twin_view(t, i + 2)};
        TESS_TRY(CALL(t, relu, &relu));
        relu.out = relu.gate = relu.x; /* in place */
        TESS_TRY(CALL(t, relu, &relu));
    }
    TESS_TRY(CALL(t, mix, &mix));
    mix.out = t->x[6].data;
    return CALL(t, mix, &mix);
}

static const twin_op ops[] = {
    {"nearest", search_make, search_call, TESS_NELEM(searches), LARGE_SEARCHES},
    {"codebook", book_make, book_call, TESS_NELEM(books), 1},
    {"largest", largest_make, largest_call, TESS_NELEM(books), 1},
    {"patches", patch_make, patch_call, TESS_NELEM(patches), 1},
    {"relu and mix", line_make, line_call, TESS_NELEM(lines), 1},
};

static const twin_suite suite = {
    ops, TESS_NELEM(ops), {"nearest.cu", "codebook.cu", "im2col.cu", NULL}};

/* Threads that came to a line of a kernel in the last run. */
static int64_t passes_at(const char *source, int line)
{
    for (int b = 0; b < tess_emulation_barrier_numel(); b++) {
        const tess_emulation_barrier barrier = tess_emulation_barrier_get(b);
        const char *name = strrchr(barrier.file, '/');
        if (barrier.line == line && strcmp(name != NULL ? name + 1 : barrier.file, source) == 0)
            return barrier.pass_numel;
    }
    return 0;
}

/* Where the search in full meets after a vector. */
static int line_of_full_search(void)
{
    char text[512];
    int line = 1;
    FILE *f = fopen(TESS_TEST_SOURCE_DIR "/kernels/cuda/nearest.cu", "r");
    assert_non_null(f);
    for (; fgets(text, sizeof text, f) != NULL && strstr(text, "least_of is used up") == NULL;)
        line++;
    fclose(f);
    return line;
}

/* Who is searched in full: nobody whose list can hold what is near, all with equal codes, those
 * whose bound is all of the distance or none, and those that want several keys. So the lists are
 * what the other cases test. */
static void test_lists_decide(void **state)
{
    (void)state;
    twin_skip_on_device("a device does not tell which vectors are searched in full");
    static const int64_t in_full[] = {
        [TIES] = -1, [EQUAL] = 4, [NOT_FINITE] = 6, [TINY] = 5, [HUGE_ONES] = 4};
    const int line = line_of_full_search();
    for (int c = 0; c < twin_case_numel(&ops[0]); c++) {
        const search_case *o = &searches[c];
        const int64_t want = o->kind < TESS_NELEM(in_full) ? in_full[o->kind] : 0;
        if (want < 0 || o->codes == 0 || o->vectors == 0 || o->kind == ZEROS || o->best > 1)
            continue;
        char text[TWIN_LINE_NBYTES];
        twin t = twin_make(&ops[0], c);
        twin_expect(&t, &ops[0], c);
        twin_run(&t, &ops[0], &twin_orders[1], text);
        assert_string_equal(text, "");
        if (passes_at("nearest.cu", line) != want * 256)
            fail_msg("case %d: %" PRId64 " of %" PRId64 " vectors were searched in full, expected "
                     "%" PRId64,
                     c, passes_at("nearest.cu", line) / 256, o->vectors, want);
        twin_destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TWIN_SUITE_TESTS(&suite),
        cmocka_unit_test(test_lists_decide),
    };
    return cmocka_run_group_tests(tests, tess_emulation_setup, NULL);
}
