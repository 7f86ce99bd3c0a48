/* Fused tensors of FLUX.1 files as those of diffusers: each cut decodes to the rows of the whole.
 */
#include "kernels/nf4.h"
#include "packed_test.h"

enum { H = 64, ROWS_MAX = 7 * H, VALUE_MAX = ROWS_MAX * H };

static const tess_model_tensor *must_find(const tess_model_dir *dir, const char *name)
{
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    if (t == NULL)
        fail_msg("no tensor '%s'", name);
    return t;
}

/* Decode any tensor, its bytes read in pieces that end nowhere in particular. */
static void values_of(const tess_model_dir *dir, const tess_model_tensor *t, float *out)
{
    static char stored[4 * VALUE_MAX];
    static float place[TESS_CODEC_PART_MAX][VALUE_MAX];
    tess_codec_part part[TESS_CODEC_PART_MAX];
    tess_codec codec;
    tess_stream stream;
    int part_numel = 0;
    const char *at_part = stored;
    for (int64_t first = 0; first < t->st->nbytes; first += 997) {
        const int64_t nbytes = TESS_MIN(t->st->nbytes - first, INT64_C(997));
        assert_ok(tess_model_dir_read(dir, t, first, (size_t)nbytes, stored + first));
    }
    assert_ok(tess_model_tensor_codec(t, &codec));
    assert_ok(tess_codec_parts(&codec, t->st->numel, part, &part_numel));
    tess_dequantize_args a = {.codec = codec, .dst = tess_view_host(out, t->st->numel, TESS_F32)};
    for (int i = 0; i < part_numel; at_part += part[i++].nbytes) {
        memcpy(place[i], at_part, part[i].nbytes);
        a.part[i] = place[i];
    }
    assert_int_equal(at_part - stored, t->st->nbytes);
    if (codec.format == TESS_FORMAT_BF16) {
        for (int64_t i = 0; i < t->st->numel; i++)
            out[i] = (float)((const uint16_t *)(const void *)place[0])[i];
        return;
    }
    tess_stream_init_inline(&stream, "test", NULL);
    assert_ok(tess_kernels_cpu.dequantize(&a, &stream));
}

/* ---- files ---- */

typedef struct maker {
    tess_st_tensor list[64];
    char name[64][160];
    char *bytes[64];
    int numel;
    uint32_t state;
} maker;

static unsigned next(maker *m)
{
    m->state = m->state * 1664525U + 1013904223U;
    return m->state >> 16;
}

static char *add(maker *m, const char *name, tess_st_dtype dtype, int64_t rows, int64_t cols)
{
    static const size_t size_of[TESS_ST_DTYPE_NUMEL] = {[TESS_ST_U8] = 1,
                                                        [TESS_ST_F8_E4M3] = 1,
                                                        [TESS_ST_BF16] = 2,
                                                        [TESS_ST_F32] = 4,
                                                        [TESS_ST_I8] = 1};
    const int i = m->numel++;
    const int64_t nbytes = rows * (cols > 0 ? cols : 1) * (int64_t)size_of[dtype];
    void *memory = NULL;
    snprintf(m->name[i], sizeof m->name[i], "%s", name);
    m->list[i] = (tess_st_tensor){
        .name = m->name[i], .dtype = dtype, .dim_numel = cols > 0 ? 2 : 1, .dim = {rows, cols}};
    assert_ok(tess_alloc((size_t)nbytes, &memory));
    m->bytes[i] = memory;
    m->list[i].nbytes = nbytes;
    for (int64_t k = 0; k < nbytes; k++) /* no NaN of fp8, no infinity of bf16 */
        m->bytes[i][k] = (char)(next(m) & 0x3f);
    return m->bytes[i];
}

static void write_file(const fixture *f, maker *m, const char *file)
{
    tess_safetensors_writer *writer = NULL;
    assert_ok(
        tess_safetensors_writer_create(f->io, at(f, file), m->list, m->numel, NULL, 0, &writer));
    for (int i = 0; i < m->numel; i++) {
        assert_ok(
            tess_safetensors_writer_append(writer, i, m->bytes[i], (size_t)m->list[i].nbytes));
        tess_free(m->bytes[i]);
    }
    assert_ok(tess_safetensors_writer_finish(writer));
    tess_safetensors_writer_destroy(&writer);
}

typedef void (*matrix_maker)(maker *m, const char *name, int64_t rows, int64_t cols);

static void make_bf16(maker *m, const char *name, int64_t rows, int64_t cols)
{
    add(m, name, TESS_ST_BF16, rows, cols);
}

/* ComfyUI's scaled fp8: one scale of the tensor. */
static void make_fp8(maker *m, const char *name, int64_t rows, int64_t cols)
{
    char scale[160];
    const float value = 0.5F;
    add(m, name, TESS_ST_F8_E4M3, rows, cols);
    snprintf(scale, sizeof scale, "%.*s.scale_weight", (int)strlen(name) - 7, name);
    memcpy(add(m, scale, TESS_ST_F32, 1, 0), &value, sizeof value);
}

static void make_nf4(maker *m, const char *name, int64_t rows, int64_t cols)
{
    char other[160], text[256];
    const int64_t blocks = tess_ceil_div(rows * cols, 64);
    add(m, name, TESS_ST_U8, rows * cols / 2, 1);
    snprintf(other, sizeof other, "%s.absmax", name);
    float *absmax = (float *)(void *)add(m, other, TESS_ST_F32, blocks, 0);
    for (int64_t i = 0; i < blocks; i++)
        absmax[i] = (float)(1 + next(m) % 100);
    snprintf(other, sizeof other, "%s.quant_map", name);
    memcpy(add(m, other, TESS_ST_F32, 16, 0), tess_nf4_table, 16 * sizeof(float));
    snprintf(text, sizeof text,
             "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", "
             "\"shape\": [%d, %d]}",
             (int)rows, (int)cols);
    snprintf(other, sizeof other, "%s.quant_state.bitsandbytes__nf4", name);
    memcpy(add(m, other, TESS_ST_U8, (int64_t)strlen(text), 0), text, strlen(text));
}

static void make_model(maker *m, const char *prefix, matrix_maker matrix)
{
    static const struct {
        const char *name;
        int64_t rows;
    } fused[] = {{"double_blocks.0.img_attn.qkv", (int64_t)3 * H},
                 {"double_blocks.0.txt_attn.qkv", (int64_t)3 * H},
                 {"double_blocks.0.img_mod.lin", (int64_t)6 * H},
                 {"single_blocks.0.linear1", (int64_t)7 * H},
                 {"final_layer.adaLN_modulation.1", (int64_t)2 * H}};
    char name[160];
    *m = (maker){.state = 7};
    for (int i = 0; i < TESS_NELEM(fused); i++) {
        snprintf(name, sizeof name, "%s%s.weight", prefix, fused[i].name);
        matrix(m, name, fused[i].rows, H);
        snprintf(name, sizeof name, "%s%s.bias", prefix, fused[i].name);
        add(m, name, TESS_ST_BF16, fused[i].rows, 0);
    }
    snprintf(name, sizeof name, "%sdouble_blocks.0.txt_attn.norm.key_norm.scale", prefix);
    add(m, name, TESS_ST_BF16, 16, 0);
    snprintf(name, sizeof name, "%ssingle_blocks.0.norm.query_norm.weight", prefix); /* ComfyUI */
    add(m, name, TESS_ST_BF16, 16, 0);
}

/* Rows of a whole, one window below the other. */
typedef struct expectation {
    const char *whole, *name;
    int64_t first[2], numel[2];
} expectation;

static const expectation expected[] = {
    {"double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q", {0}, {H}},
    {"double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_k", {H}, {H}},
    {"double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_v", {2L * H}, {H}},
    {"double_blocks.0.txt_attn.qkv", "transformer_blocks.0.attn.add_k_proj", {H}, {H}},
    {"double_blocks.0.img_mod.lin", "transformer_blocks.0.norm1.linear", {0}, {6L * H}},
    {"single_blocks.0.linear1", "single_transformer_blocks.0.attn.to_v", {2L * H}, {H}},
    {"single_blocks.0.linear1", "single_transformer_blocks.0.proj_mlp", {3L * H}, {4L * H}},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", {H, 0}, {H, H}},
};

/* The file under its own names: no FLUX.1 file once its first block has another name. */
static void check_leaf(const tess_model_dir *dir, const tess_model_dir *plain, const char *leaf)
{
    static float whole[VALUE_MAX], cut[VALUE_MAX];
    for (int i = 0; i < TESS_NELEM(expected); i++) {
        const expectation *e = &expected[i];
        char name[160];
        snprintf(name, sizeof name, "x.%s.%s", e->whole, leaf);
        const tess_model_tensor *w = must_find(plain, name);
        snprintf(name, sizeof name, "%s.%s", e->name, leaf);
        const tess_model_tensor *t = must_find(dir, name);
        const int64_t cols = w->st->dim_numel > 1 ? w->st->dim[1] : 1;
        int64_t at_row = 0;
        assert_int_equal(t->st->dim[0], e->numel[0] + e->numel[1]);
        values_of(plain, w, whole);
        values_of(dir, t, cut);
        for (int k = 0; k < 2; at_row += e->numel[k++])
            assert_memory_equal(cut + at_row * cols, whole + e->first[k] * cols,
                                (size_t)(e->numel[k] * cols) * sizeof *cut);
    }
}

static void check_format(const fixture *f, matrix_maker matrix, const char *prefix)
{
    const tess_ctx ctx = {.io = f->io};
    static maker m;
    tess_model_dir *dir = NULL, *plain = NULL;
    make_model(&m, "x.", matrix);
    write_file(f, &m, "model.safetensors");
    make_model(&m, prefix, matrix);
    if (prefix[0] != '\0')
        add(&m, "vae.encoder.conv_in.bias", TESS_ST_F32, 4, 0);
    write_file(f, &m, "flux1.safetensors");
    assert_ok(tess_model_dir_open(&ctx, at(f, "flux1.safetensors"), &dir));
    assert_ok(tess_model_dir_open(&ctx, f->dir, &plain));
    check_leaf(dir, plain, "weight");
    check_leaf(dir, plain, "bias");
    must_find(dir, "transformer_blocks.0.attn.norm_added_k.weight");
    must_find(dir, "single_transformer_blocks.0.attn.norm_q.weight");
    assert_null(tess_model_dir_find(dir, "vae.encoder.conv_in.bias"));
    assert_int_equal(tess_model_dir_tensor_numel(dir), 2 * (3 + 3 + 1 + 4 + 1) + 2);
    tess_model_dir_close(&plain);
    tess_model_dir_close(&dir);
}

static void test_every_format_is_cut_by_rows(void **state)
{
    check_format(*state, make_bf16, "");
    check_format(*state, make_bf16, "model.diffusion_model.");
    check_format(*state, make_fp8, "");
    check_format(*state, make_nf4, "model.diffusion_model.");
}

/* 3 x 64 elements are cut where blocks of 64 end; 224 end inside of one. */
static void test_blocks_that_are_not_whole_are_refused(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    static maker m;
    tess_model_dir *dir = NULL;
    m = (maker){.state = 1};
    make_nf4(&m, "double_blocks.0.img_attn.qkv.weight", 12, 16);
    write_file(f, &m, "flux1.safetensors");
    assert_ok(tess_model_dir_open(&ctx, at(f, "flux1.safetensors"), &dir));
    tess_model_dir_close(&dir);
    m = (maker){.state = 1};
    make_nf4(&m, "double_blocks.0.img_attn.qkv.weight", 24, 8);
    make_nf4(&m, "single_blocks.0.linear1.weight", 14, 16);
    write_file(f, &m, "flux1.safetensors");
    assert_refused(tess_model_dir_open(&ctx, at(f, "flux1.safetensors"), &dir), TESS_E_UNSUPPORTED,
                   "flux1.safetensors", "single_blocks.0.linear1.weight",
                   "single_transformer_blocks.0.attn.to_q", "not whole");
}

static void test_unknown_tensor_is_named(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    static maker m;
    tess_model_dir *dir = NULL;
    make_model(&m, "", make_bf16);
    add(&m, "double_blocks.0.img_attn.extra.weight", TESS_ST_BF16, 4, 4);
    write_file(f, &m, "flux1.safetensors");
    assert_refused(tess_model_dir_open(&ctx, at(f, "flux1.safetensors"), &dir), TESS_E_UNSUPPORTED,
                   "double_blocks.0.img_attn.extra.weight");
}

/* ---- GGUF ---- */

static void test_gguf_keeps_its_blocks(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    const tess_gguf_pair pair = {"general.architecture",
                                 {.kind = TESS_GGUF_STRING, .text = "flux"}};
    enum { ROW_NBYTES = H / 32 * 34 };
    const tess_gguf_tensor tensor[] = {{.name = "single_blocks.0.linear1.weight",
                                        .format = TESS_FORMAT_Q8_0,
                                        .dim_numel = 2,
                                        .dim = {(int64_t)7 * H, H}},
                                       {.name = "final_layer.adaLN_modulation.1.weight",
                                        .format = TESS_FORMAT_Q8_0,
                                        .dim_numel = 2,
                                        .dim = {(int64_t)2 * H, H}}};
    static char bytes[7 * H * ROW_NBYTES], found[7 * H * ROW_NBYTES];
    tess_gguf_writer *writer = NULL;
    tess_model_dir *dir = NULL;
    for (int i = 0; i < TESS_NELEM(bytes); i++)
        bytes[i] = (char)(i % 251 & 0x3f);
    assert_ok(tess_gguf_writer_create(f->io, at(f, "flux.gguf"), &pair, 1, tensor, 2, &writer));
    assert_ok(tess_gguf_writer_append(writer, 0, bytes, sizeof bytes));
    assert_ok(tess_gguf_writer_append(writer, 1, bytes, (size_t)2 * H * ROW_NBYTES));
    assert_ok(tess_gguf_writer_finish(writer));
    tess_gguf_writer_destroy(&writer);
    assert_ok(tess_model_dir_open(&ctx, at(f, "flux.gguf"), &dir));
    assert_int_equal(tess_model_dir_tensor_numel(dir), 5);
    const tess_model_tensor *t = must_find(dir, "single_transformer_blocks.0.proj_mlp.weight");
    assert_int_equal(t->st->nbytes, 4 * H * ROW_NBYTES);
    assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, found));
    assert_memory_equal(found, bytes + 3 * H * ROW_NBYTES, (size_t)t->st->nbytes);
    t = must_find(dir, "norm_out.linear.weight");
    assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, found));
    assert_memory_equal(found, bytes + H * ROW_NBYTES, (size_t)H * ROW_NBYTES);
    assert_memory_equal(found + H * ROW_NBYTES, bytes, (size_t)H * ROW_NBYTES);
    tess_model_dir_close(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_format_is_cut_by_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_blocks_that_are_not_whole_are_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_unknown_tensor_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gguf_keeps_its_blocks, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
