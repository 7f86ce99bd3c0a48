/* Weights of optimum-quanto and fp8 in model directories: values, identities, refusals. */
#include <math.h>

#include "packed_test.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/quanto"
#define MAP_NAME "quantization_map.json"

static const char int4_map[] = "{\"x\": {\"weights\": \"qint4\", \"activations\": \"none\"}}";

static void take(const fixture *f, const char *model, weight *w) { take_from(f, GOLDEN, model, w); }

static void test_golden_models_decode_to_the_bits_of_quanto_and_torch(void **state)
{
    assert_int_equal(check_golden(*state, GOLDEN, 11), 8 * 7);
}

/* ---- identities and shapes ---- */

static void check_codec(const fixture *f, const char *model, const char *module, const char *want)
{
    const tess_ctx ctx = {.io = f->io};
    char path[512], name[256], text[TESS_CODEC_TEXT_NBYTES];
    tess_model_dir *dir = NULL;
    tess_codec codec;
    snprintf(path, sizeof path, GOLDEN "/%s", model);
    snprintf(name, sizeof name, "model.layers.0.%s.weight", module);
    assert_ok(tess_model_dir_open(&ctx, path, &dir));
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    assert_non_null(t);
    assert_ok(tess_model_tensor_codec(t, &codec));
    tess_codec_describe(&codec, text);
    assert_string_equal(text, want);
    tess_model_dir_close(&dir);
}

static void test_weights_have_the_identity_of_their_tensors(void **state)
{
    static const char *const rows[][3] = {
        {"qint8", "mlp.down_proj", "qint8/row/bf16"},
        {"qint4", "mlp.down_proj", "qint4/80/bf16"},
        {"qint4", "self_attn.q_proj", "qint4/48/bf16"},
        {"qint2", "mlp.up_proj", "qint2/48/bf16"},
        {"qfloat8", "self_attn.o_proj", "qfloat8/row/bf16"},
        {"half", "mlp.down_proj", "qint4/80/f16"},
        {"half", "mlp.gate_proj", "qfloat8_e5m2/row/f16"},
        {"fp8_raw", "mlp.down_proj", "e4m3/raw"},
        {"fp8_tensor", "mlp.down_proj", "e4m3/tensor/dequant_scale"},
        {"fp8_row", "mlp.down_proj", "e4m3/row/dequant_scale"},
        {"fp8_row", "mlp.gate_proj", "e5m2/row/dequant_scale"},
        {"fp8_row", "mlp.up_proj", "e4m3/row/dequant_scale/bf16"},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++)
        check_codec(*state, rows[i][0], rows[i][1], rows[i][2]);
}

/* 4 and 2 bits: the model says how many groups make a row. */
static void test_groups_get_their_shape_when_they_are_claimed(void **state)
{
    static const char name[] = "model.layers.0.mlp.down_proj.weight";
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    const tess_model_tensor *t = NULL;
    tess_model_dir *dir = NULL;
    assert_ok(tess_model_dir_open(&ctx, GOLDEN "/qint4", &dir));
    assert_refused(tess_model_dir_claim(dir, name, (const int64_t[]){96, 40}, 2, &t), TESS_E_FORMAT,
                   name, "[96, 40]", "[48, 80]");
    assert_refused(tess_model_dir_claim(dir, name, (const int64_t[]){48, 160}, 2, &t),
                   TESS_E_FORMAT, name, "[48, 160]");
    assert_ok(tess_model_dir_claim(dir, name, (const int64_t[]){24, 160}, 2, &t));
    assert_int_equal(t->st->dim[0], 24);
    assert_refused(tess_model_dir_claim(dir, name, (const int64_t[]){48, 80}, 2, &t), TESS_E_FORMAT,
                   "[24, 160]");
    tess_model_dir_close(&dir);
}

/* ---- refusals ---- */

static tess_status try_mapped(const fixture *f, weight *w, const char *map)
{
    put_text(f, MAP_NAME, map);
    const tess_status st = try_read(f, w);
    remove(at(f, MAP_NAME));
    return st;
}

static void test_maps_that_differ_are_refused(void **state)
{
    static const struct {
        const char *map;
        tess_status status;
        const char *words;
    } rows[] = {
        {"{}", TESS_E_FORMAT, "no module 'x'"},
        {"[]", TESS_E_FORMAT, MAP_NAME},
        {"{\"x\": {\"weights\": \"qint4\", \"activations\": \"qint8\"}}", TESS_E_UNSUPPORTED,
         "activations are 'qint8'"},
        {"{\"x\": {\"weights\": \"qint4\"}}", TESS_E_FORMAT, "activations"},
        {"{\"x\": {\"weights\": \"qint4\", \"activations\": \"none\", \"more\": 1}}",
         TESS_E_UNSUPPORTED, "alone"},
        {"{\"x\": {\"weights\": \"qint3\", \"activations\": \"none\"}}", TESS_E_UNSUPPORTED,
         "'qint3'"},
        {"{\"x\": {\"weights\": \"none\", \"activations\": \"none\"}}", TESS_E_UNSUPPORTED,
         "'none'"},
        {"{\"x\": {\"weights\": \"qint2\", \"activations\": \"none\"}}", TESS_E_FORMAT,
         "expected 4 rows of qint2"},
        {"{\"x\": {\"weights\": \"qint8\", \"activations\": \"none\"}}", TESS_E_FORMAT,
         "is no qint8"},
        {"{\"x\": {\"weights\": \"qint4\", \"activations\": \"none\"}, \"y\": {\"weights\": "
         "\"qint4\", \"activations\": \"none\"}}",
         TESS_E_FORMAT, "'y.weight' is missing"},
        {"{\"x\"", TESS_E_FORMAT, MAP_NAME},
    };
    static weight w;
    const fixture *f = *state;
    take(f, "qint4", &w);
    assert_ok(try_mapped(f, &w, int4_map));
    for (int i = 0; i < TESS_NELEM(rows); i++)
        assert_refused(try_mapped(f, &w, rows[i].map), rows[i].status, rows[i].words);
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "its map is missing", MAP_NAME);
    put_text(f, "quanto_qmap.json", int4_map);
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, MAP_NAME, "quanto_qmap.json");
    assert_ok(try_read(f, &w));
    remove(at(f, "quanto_qmap.json"));
    take_from(f, TESS_TEST_SOURCE_DIR "/tests/golden/bnb", "plain", &w);
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "'x.weight' is not packed");
}

/* diffusers writes no map. */
static void test_the_config_of_diffusers_states_the_type(void **state)
{
    static const struct {
        const char *config;
        tess_status status;
        const char *words;
    } rows[] = {
        {"{\"quantization_config\": {\"quant_method\": \"quanto\", \"weights_dtype\": \"int2\"}}",
         TESS_E_FORMAT, "expected 4 rows of qint2"},
        {"{\"quantization_config\": {\"quant_method\": \"quanto\", \"weights_dtype\": \"int8\"}}",
         TESS_E_FORMAT, "is no qint8, but 'config.json' says so"},
        {"{\"quantization_config\": {\"quant_method\": \"quanto\", \"weights_dtype\": \"int3\"}}",
         TESS_E_UNSUPPORTED, "'qint3'"},
        {"{\"quantization_config\": {\"quant_method\": \"quanto\"}}", TESS_E_FORMAT,
         "weights_dtype"},
        {"{\"quantization_config\": {\"quant_method\": \"torchao\"}}", TESS_E_FORMAT,
         "its map is missing"},
        {"{}", TESS_E_FORMAT, "its map is missing"},
    };
    static weight w;
    const fixture *f = *state;
    take(f, "qint4", &w);
    put_text(f, "config.json",
             "{\"quantization_config\": {\"modules_to_not_convert\": null, \"quant_method\": "
             "\"quanto\", \"weights_dtype\": \"int4\"}}");
    assert_ok(try_read(f, &w));
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        put_text(f, "config.json", rows[i].config);
        assert_refused(try_read(f, &w), rows[i].status, rows[i].words);
    }
    remove(at(f, "config.json"));
}

static void test_members_that_do_not_fit_are_refused(void **state)
{
    static weight w;
    const fixture *f = *state;
    take(f, "qint4", &w);
    drop(&w, "x.weight._scale");
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._scale", "missing");
    take(f, "qint4", &w);
    drop(&w, "x.weight._shift");
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._shift", "missing");
    take(f, "qint4", &w);
    drop(&w, "x.weight._data._data");
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._s", "codes are missing");
    take(f, "qint4", &w);
    add_copy(&w, "x.weight._shift", "x.weight._zero");
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "'x.weight._zero'", "no part");
    take(f, "qint4", &w);
    add_copy(&w, "x.weight._shift", "x.weight");
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_UNSUPPORTED, "'x.weight._data._data'");
    take(f, "qint4", &w);
    find(&w, "x.weight._scale")->st.dim[0] = 15;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._shift", "[15, 1]");
    take(f, "qint4", &w);
    find(&w, "x.weight._scale")->st.dim[0] = 1;
    find(&w, "x.weight._scale")->st.dim[1] = 16;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_UNSUPPORTED, "x.weight._scale", "axis -1");
    take(f, "qint4", &w);
    find(&w, "x.weight._shift")->st.dtype = TESS_ST_U8;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._shift", "found U8");
    take(f, "qint4", &w);
    find(&w, "x.weight._shift")->st.dtype = TESS_ST_F16;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._shift", "scale is bf16");
    take(f, "qint4", &w);
    find(&w, "x.weight._data._data")->st.dim[0] = 9;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "expected 8 rows", "found 9");
    take(f, "qint4", &w);
    find(&w, "x.input_scale")->bytes[1] = 0x40; /* 2 */
    find(&w, "x.input_scale")->bytes[0] = 0;
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_UNSUPPORTED, "x.input_scale", "is 2",
                   "activations");
}

static void put_half(weight *w, const char *name, int idx, unsigned bits)
{
    find(w, name)->bytes[2 * idx] = (char)(bits & 255);
    find(w, name)->bytes[2 * idx + 1] = (char)(bits >> 8);
}

static void test_numbers_that_are_none_are_refused(void **state)
{
    static const char float_map[] =
        "{\"x\": {\"weights\": \"qfloat8_e4m3fn\", \"activations\": \"none\"}}";
    static weight w;
    const fixture *f = *state;
    take(f, "qint4", &w);
    put_half(&w, "x.weight._scale", 3, 0x7f80);
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._scale", "scale 3 is inf");
    take(f, "qint4", &w);
    put_half(&w, "x.weight._scale", 2, 0xbf80);
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._scale", "scale 2 is -1");
    take(f, "qint4", &w);
    put_half(&w, "x.weight._shift", 15, 0xffc0);
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "x.weight._shift", "shift 15");
    take(f, "qfloat8", &w);
    assert_ok(try_mapped(f, &w, float_map));
    find(&w, "x.weight._data")->bytes[700] = 0x7f;
    assert_refused(try_mapped(f, &w, float_map), TESS_E_FORMAT, "x.weight._data", "code 700");
    take(f, "fp8_raw", &w);
    find(&w, "x.weight")->bytes[5] = (char)0xff;
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.weight", "code 5");
    take(f, "fp8_tensor", &w);
    put_f32(&w, "x.scale_weight", 0, -1.0F);
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.scale_weight", "scale 0 is -1");
}

static void rename_member(weight *w, const char *from, const char *to)
{
    member *m = find(w, from);
    snprintf(m->name, sizeof m->name, "%s", to);
}

static void test_scales_of_fp8_are_never_guessed(void **state)
{
    static weight w;
    const fixture *f = *state;
    take(f, "fp8_tensor", &w);
    assert_ok(try_read(f, &w));
    add_copy(&w, "x.scale_weight", "x.weight_scale");
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "two scales", "x.scale_weight",
                   "x.weight_scale");
    take(f, "fp8_tensor", &w);
    rename_member(&w, "x.scale_weight", "x.weight_scale_inv");
    assert_refused(try_read(f, &w), TESS_E_UNSUPPORTED, "x.weight_scale_inv", "blocks");
    take(f, "fp8_tensor", &w);
    drop(&w, "x.weight");
    add_copy(&w, "x.scale_weight", "x.other");
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.scale_weight", "codes are missing");
    take(f, "fp8_row", &w);
    assert_ok(try_read(f, &w));
    find(&w, "x.weight_scale")->st.dim[0] = 8;
    assert_refused(try_read(f, &w), TESS_E_UNSUPPORTED, "x.weight_scale", "[8, 1]", "[16, 48]");
    take(f, "fp8_row", &w);
    add_copy(&w, "x.weight_scale", "x.input_scale");
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.input_scale", "one number");
    take(f, "fp8_tensor", &w);
    rename_member(&w, "x.scale_weight", "x" TESS_MODEL_QUANT_SCALE_SUFFIX);
    assert_ok(try_read(f, &w));
    put_f32(&w, "x" TESS_MODEL_QUANT_SCALE_SUFFIX, 0, 0.0F);
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "scale 0 is 0", "above 0");
}

/* A mark of ComfyUI beside "x.weight", or of the whole file. */
static void add_mark(weight *w, const char *name, tess_st_dtype dtype, const char *text)
{
    member *m = &w->list[w->numel++];
    memset(m, 0, sizeof *m);
    snprintf(m->name, sizeof m->name, "%s", name);
    snprintf(m->bytes, sizeof m->bytes, "%s", text);
    m->st = (tess_st_tensor){.dtype = dtype,
                             .dim_numel = 1,
                             .dim = {(int64_t)strlen(text)},
                             .numel = (int64_t)strlen(text)};
}

static void test_marks_of_comfyui(void **state)
{
    static const char *const file_mark[] = {"scaled_fp8", "model.diffusion_model.scaled_fp8"};
    static weight w;
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(file_mark); i++) {
        take(f, "fp8_tensor", &w);
        add_mark(&w, file_mark[i], i == 0 ? TESS_ST_F32 : TESS_ST_F8_E4M3, "");
        put_f32(&w, "x.scale_weight", 0, 0.5F);
        add_copy(&w, "x.scale_weight",
                 "x.scale_input"); /* 0.5: of activations, which stay as they are */
        assert_ok(try_read(f, &w));
    }
    take(f, "fp8_tensor", &w);
    rename_member(&w, "x.scale_weight", "x.weight_scale");
    add_mark(&w, "x.comfy_quant", TESS_ST_U8,
             "{\"format\": \"float8_e4m3fn\", \"full_precision_matrix_mult\": true}");
    assert_ok(try_read(f, &w));
    w.layers = "{\"format_version\": \"1.0\", \"layers\": {\"x\": {\"format\": \"float8_e5m2\"}}}";
    assert_ok(try_read(f, &w));
    w.layers = "{\"layers\": {\"x\": {\"format\": \"nvfp4\"}}}";
    assert_refused(try_read(f, &w), TESS_E_UNSUPPORTED, "_quantization_metadata", "nvfp4",
                   "float8_e4m3fn");
    w.layers = NULL;
    drop(&w, "x.comfy_quant");
    add_mark(&w, "x.comfy_quant", TESS_ST_U8, "{\"format\": \"int8_tensorwise\"}");
    assert_refused(try_read(f, &w), TESS_E_UNSUPPORTED, "model.safetensors", "x.comfy_quant",
                   "int8_tensorwise");
    drop(&w, "x.comfy_quant");
    add_mark(&w, "x.comfy_quant", TESS_ST_U8, "{}");
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.comfy_quant", "format");
    drop(&w, "x.comfy_quant");
    add_mark(&w, "x.comfy_quant", TESS_ST_I8, "{}");
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "x.comfy_quant", "bytes of JSON");
}

/* What the metadata says decides what the bytes cannot tell, and must hold for the rest. */
static void test_metadata_states_the_identity(void **state)
{
    static weight w;
    const fixture *f = *state;
    take(f, "fp8_tensor", &w);
    w.formats = "{\"x.weight\": \"e4m3/tensor/quant_scale\"}";
    put_f32(&w, "x.scale_weight", 0, 0.0F); /* refused as a quant_scale alone */
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "above 0");
    put_f32(&w, "x.scale_weight", 0, 2.0F);
    assert_ok(try_read(f, &w));
    w.formats = "{\"x.weight\": \"e4m3/row/dequant_scale\"}";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "e4m3/row/dequant_scale",
                   "are e4m3/tensor/dequant_scale");
    w.formats = "{\"x.weight\": \"e4m3\"}";
    assert_refused(try_read(f, &w), TESS_E_UNSUPPORTED, "e4m3");
    w.formats = "{\"x.weight\": 3}";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, TESS_MODEL_FORMATS_KEY);
    w.formats = "{\"y.weight\": \"bf16\"}";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "absent");
    w.formats = "x";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, TESS_MODEL_FORMATS_KEY);
    rename_member(&w, "x.scale_weight", "x" TESS_MODEL_QUANT_SCALE_SUFFIX);
    w.formats = "{\"x.weight\": \"e4m3/tensor/dequant_scale\"}";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "are e4m3/tensor/quant_scale");
    take(f, "qint4", &w);
    w.formats = "{\"x.weight\": \"qint4/48/bf16/hqq\"}";
    assert_ok(try_mapped(f, &w, int4_map));
    w.formats = "{\"x.weight\": \"qint4/48/f16/hqq\"}";
    assert_refused(try_mapped(f, &w, int4_map), TESS_E_FORMAT, "are qint4/48/bf16/hqq");
    take_from(f, TESS_TEST_SOURCE_DIR "/tests/golden/bnb", "nf4", &w);
    w.formats = "{\"x.weight\": \"nf4/64/double\"}";
    assert_refused(try_read(f, &w), TESS_E_FORMAT, "are nf4/64");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_golden_models_decode_to_the_bits_of_quanto_and_torch),
        format_test(test_weights_have_the_identity_of_their_tensors),
        format_test(test_groups_get_their_shape_when_they_are_claimed),
        format_test(test_maps_that_differ_are_refused),
        format_test(test_the_config_of_diffusers_states_the_type),
        format_test(test_members_that_do_not_fit_are_refused),
        format_test(test_numbers_that_are_none_are_refused),
        format_test(test_scales_of_fp8_are_never_guessed),
        format_test(test_marks_of_comfyui),
        format_test(test_metadata_states_the_identity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
