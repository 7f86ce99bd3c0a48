/* Weights of bitsandbytes in model directories: values, ranges, and everything that is refused. */
#include <math.h>

#include "packed_test.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/bnb/"

static void test_golden_models_decode_to_the_bits_of_bitsandbytes(void **state)
{
    assert_int_equal(check_golden(*state, GOLDEN, 11), 7 * 7); /* seven of a model are packed */
}

/* The four labels of quant_storage are the same bytes. */
static void test_storage_labels_do_not_change_bytes(void **state)
{
    static const char *const label[] = {"uint8", "bfloat16", "float16", "float32"};
    static char bytes[TESS_NELEM(label)][BYTES_MAX];
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    for (int i = 0; i < TESS_NELEM(label); i++) {
        char path[512], text[TESS_CODEC_TEXT_NBYTES];
        const int64_t dim[2] = {48, 80};
        tess_model_dir *dir = NULL;
        const tess_model_tensor *t = NULL;
        tess_codec codec;
        snprintf(path, sizeof path, GOLDEN "double_%s", label[i]);
        assert_ok(tess_model_dir_open(&ctx, path, &dir));
        assert_ok(tess_model_dir_claim(dir, "model.layers.0.mlp.down_proj.weight", dim, 2, &t));
        assert_ok(tess_model_tensor_codec(t, &codec));
        tess_codec_describe(&codec, text);
        assert_string_equal(text, "nf4/64/double");
        assert_true(t->st->nbytes <= BYTES_MAX);
        assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, bytes[i]));
        assert_memory_equal(bytes[i], bytes[0], BYTES_MAX);
        tess_model_dir_close(&dir);
    }
}

/* ---- damage ---- */

static void take(const fixture *f, const char *model, weight *w)
{
    take_from(f, GOLDEN, model, w);
    assert_true(w->numel >= 3);
}

/* Replace text in the state by text; the shape of the tensor follows. */
static void edit_state(weight *w, const char *from, const char *to)
{
    member *m = find(w, "x.weight.quant_state.bitsandbytes__nf4");
    char *place = strstr(m->bytes, from);
    char rest[BYTES_MAX];
    assert_non_null(place);
    snprintf(rest, sizeof rest, "%s", place + strlen(from));
    snprintf(place, BYTES_MAX - (size_t)(place - m->bytes), "%s%s", to, rest);
    m->st.dim[0] = (int64_t)strlen(m->bytes);
}

static void test_sound_weights_are_read(void **state)
{
    static const char *const model[] = {"nf4", "double_uint8", "double_float32", "int8"};
    static weight w;
    for (int i = 0; i < TESS_NELEM(model); i++) {
        take(*state, model[i], &w);
        assert_ok(try_read(*state, &w));
    }
    drop(&w, "x.weight_format"); /* older files have none */
    assert_ok(try_read(*state, &w));
}

static void test_states_that_differ_are_refused(void **state)
{
    static const struct {
        const char *from, *to;
        tess_status status;
        const char *words;
    } rows[] = {
        {"\"nf4\"", "\"fp4\"", TESS_E_UNSUPPORTED, "quant_type"},
        {"\"blocksize\": 64", "\"blocksize\": 48", TESS_E_UNSUPPORTED,
         "x.weight.quant_state.bitsandbytes__nf4': blocksize: expected a power of two"},
        {"\"blocksize\": 64", "\"blocksize\": 8192", TESS_E_UNSUPPORTED,
         "blocksize: expected a power of two"},
        {"\"blocksize\": 64", "\"blocksize\": 32", TESS_E_FORMAT, "absmax"},
        {"\"blocksize\": 64", "\"blocksize\": 1e3", TESS_E_FORMAT, "blocksize"},
        {"bfloat16", "int8", TESS_E_UNSUPPORTED, "dtype"},
        {"[16, 48]", "[16, 49]", TESS_E_FORMAT, "384"},
        {"[16, 48]", "[768]", TESS_E_UNSUPPORTED, "shape"},
        {"[16, 48]", "[-16, -48]", TESS_E_FORMAT, "shape"},
        {"[16, 48]", "[4294967296, 4294967296]", TESS_E_FORMAT, "2^31"},
        {"[16, 48]", "null", TESS_E_FORMAT, "shape"},
        {"\"nested_blocksize\": 256", "\"nested_blocksize\": 64", TESS_E_UNSUPPORTED,
         "nested_blocksize"},
        {"float32", "float16", TESS_E_UNSUPPORTED, "nested_dtype"},
        {"\"nested_offset\": ", "\"nested_offset\": 1e300, \"x\": ", TESS_E_UNSUPPORTED, "unknown"},
        {"\"nested_offset\": 0", "\"nested_offset\": 1e300, \"q\": 0", TESS_E_UNSUPPORTED, ".q"},
        {"{", "", TESS_E_FORMAT, "x.weight.quant_state"},
    };
    static weight w;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        take(*state, "double_uint8", &w);
        edit_state(&w, rows[i].from, rows[i].to);
        assert_refused(try_read(*state, &w), rows[i].status, rows[i].words);
    }
}

static void test_members_that_do_not_fit_are_refused(void **state)
{
    static const char *const needed[] = {"x.weight.absmax", "x.weight.quant_map",
                                         "x.weight.nested_quant_map",
                                         "x.weight.quant_state.bitsandbytes__nf4"};
    static weight w;
    for (int i = 0; i < TESS_NELEM(needed); i++) {
        take(*state, "double_uint8", &w);
        drop(&w, needed[i]);
        assert_refused(try_read(*state, &w), TESS_E_FORMAT, "model.safetensors", "missing",
                       "x.weight");
    }
    take(*state, "double_uint8", &w);
    drop(&w, "x.weight.nested_absmax");
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "nested_absmax");
    take(*state, "double_uint8", &w);
    find(&w, "x.weight.absmax")->st.dim[0]--;
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.weight.absmax", "[12]", "[11]");
    take(*state, "double_uint8", &w);
    find(&w, "x.weight")->st.dim[0]--;
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "'x.weight'", "384", "383");
    take(*state, "double_uint8", &w);
    find(&w, "x.weight")->st.dtype = TESS_ST_I8;
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "'x.weight'", "I8");
    take(*state, "double_uint8", &w);
    add_copy(&w, "x.weight.absmax", "x.weight.other");
    assert_refused(try_read(*state, &w), TESS_E_UNSUPPORTED, "'x.weight.other'");
    take(*state, "double_uint8", &w);
    add_copy(&w, "x.weight.quant_state.bitsandbytes__nf4",
             "x.weight.quant_state.bitsandbytes__fp4");
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "second quant_state");
}

static void test_other_tables_are_refused(void **state)
{
    static weight w;
    take(*state, "nf4", &w);
    put_f32(&w, "x.weight.quant_map", 3, -0.394F);
    assert_refused(try_read(*state, &w), TESS_E_UNSUPPORTED, "x.weight.quant_map", "another table");
    take(*state, "double_uint8", &w);
    put_f32(&w, "x.weight.nested_quant_map", 0, -1.0F);
    assert_refused(try_read(*state, &w), TESS_E_UNSUPPORTED, "x.weight.nested_quant_map");
}

static void test_scales_that_are_no_scales_are_refused(void **state)
{
    static weight w;
    take(*state, "nf4", &w);
    put_f32(&w, "x.weight.absmax", 5, -1.0F);
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.weight.absmax", "scale 5 is -1");
    take(*state, "double_uint8", &w);
    put_f32(&w, "x.weight.nested_absmax", 0, (float)INFINITY);
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.weight.nested_absmax", "inf");
    take(*state, "int8", &w);
    put_f32(&w, "x.SCB", 2, (float)NAN);
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.SCB", "scale 2");
}

static void test_int8_layouts_are_refused(void **state)
{
    static weight w;
    for (char layout = 1; layout <= 3; layout++) {
        take(*state, "int8", &w);
        find(&w, "x.weight_format")->bytes[0] = layout;
        assert_refused(try_read(*state, &w), TESS_E_UNSUPPORTED, "x.weight_format", "expected 0");
    }
    take(*state, "int8", &w);
    drop(&w, "x.SCB");
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.weight", "SCB");
    take(*state, "int8", &w);
    find(&w, "x.SCB")->st.dim[0] = 15;
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.SCB", "[16]", "[15]");
    take(*state, "int8", &w);
    find(&w, "x.weight")->st.dtype = TESS_ST_U8;
    assert_refused(try_read(*state, &w), TESS_E_FORMAT, "x.SCB", "U8");
}

/* ---- codecs by name, and the encoder of int8 ---- */

static void test_codecs_are_parsed_as_described(void **state)
{
    static const char *const text[] = {"nf4/64/double",
                                       "fp4/4096",
                                       "int8/48",
                                       "bf16",
                                       "q4_k",
                                       "qint8/row/bf16",
                                       "qfloat8/row/f16",
                                       "qfloat8_e5m2/row/f32",
                                       "qint4/128/bf16",
                                       "qint2/128/bf16/hqq",
                                       "qint2/48/f32/mse",
                                       "e4m3/raw",
                                       "e5m2/raw",
                                       "e4m3/row/dequant_scale",
                                       "e5m2/tensor/quant_scale",
                                       "e4m3/row/dequant_scale/bf16"};
    static const char *const bad[] = {"nf4/64/doubled",
                                      "nf4/064",
                                      "bf16/64",
                                      "nf3",
                                      "nf4/x",
                                      "",
                                      "nf4/64/f32",
                                      "q4_k/hqq",
                                      "qint8/48/bf16",
                                      "qint8/row",
                                      "qint8/row/i32",
                                      "qint4/128/bf16/minmax",
                                      "qint4/128/bf16/double",
                                      "qint4/row/bf16",
                                      "qint8/row/bf16/mse",
                                      "int8/48/double",
                                      "e4m3",
                                      "e4m3/raw/f32",
                                      "e4m3/row",
                                      "e4m3/row/dequant_scale/f32",
                                      "e4m3/raw/dequant_scale",
                                      "e4m3/row/row",
                                      "e4m3/48",
                                      "nf4/64/64",
                                      "nf4/64/"};
    char again[TESS_CODEC_TEXT_NBYTES];
    tess_codec codec;
    (void)state;
    for (int i = 0; i < TESS_NELEM(text); i++) {
        assert_ok(tess_codec_parse(text[i], 48, &codec));
        tess_codec_describe(&codec, again);
        assert_string_equal(again, text[i]);
    }
    for (int i = 0; i < TESS_NELEM(bad); i++)
        assert_refused(tess_codec_parse(bad[i], 48, &codec), TESS_E_UNSUPPORTED, "base format");
}

/* formats.md 1.11, a row of zeros, and what fp16 cannot hold. */
static void test_int8_rows_encode_as_bitsandbytes_does(void **state)
{
    float x[2][4] = {{.1F, -.5F, .25F, 0.0F}, {0}}, scb[2], y[4];
    int8_t code[2][4];
    const int8_t want[2][4] = {{25, -127, 64, 0}, {0}};
    tess_quantize_args a = {.codec = {.format = TESS_FORMAT_INT8, .block_numel = 4},
                            .src = tess_view_host(x, 8, TESS_F32),
                            .part = {code, scb},
                            .tensor_name = "w"};
    const tess_dequantize_args d = {.codec = a.codec,
                                    .part = {code, scb},
                                    .first_idx = 1,
                                    .dst = tess_view_host(y, 4, TESS_F32)};
    tess_stream stream;
    (void)state;
    tess_stream_init_inline(&stream, "test", NULL);
    assert_ok(tess_kernels_cpu.quantize(&a, &stream));
    assert_memory_equal(code, want, sizeof code);
    assert_true(scb[0] == 0.5F && scb[1] == 0.0F);
    assert_ok(tess_kernels_cpu.dequantize(&d, &stream));
    assert_true(y[0] == -0.5F && y[1] == 32.0F / 127.0F && y[2] == 0.0F && y[3] == 0.0F);
    x[1][2] = 1e6F;
    assert_refused(tess_kernels_cpu.quantize(&a, &stream), TESS_E_FORMAT, "'w'", "element 6",
                   "fp16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_golden_models_decode_to_the_bits_of_bitsandbytes),
        format_test(test_storage_labels_do_not_change_bytes),
        format_test(test_sound_weights_are_read),
        format_test(test_states_that_differ_are_refused),
        format_test(test_members_that_do_not_fit_are_refused),
        format_test(test_other_tables_are_refused),
        format_test(test_scales_that_are_no_scales_are_refused),
        format_test(test_int8_layouts_are_refused),
        format_test(test_codecs_are_parsed_as_described),
        format_test(test_int8_rows_encode_as_bitsandbytes_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
