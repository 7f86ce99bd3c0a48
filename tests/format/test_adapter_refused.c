/* Files that are not one adapter of one dialect, and adapters that a dialect has no place for. */
#include "adapter_case.h"

enum { H = 4, R = 2 };

static const char stem[] = "lora_unet_single_blocks_0_linear2";

static void add_module(case_file *c, const char *module, const char *down, const char *up)
{
    char name[128];
    snprintf(name, sizeof name, "%s%s", module, down);
    case_add(c, name, R, H);
    snprintf(name, sizeof name, "%s%s", module, up);
    case_add(c, name, H, R);
}

static void add_kohya(case_file *c, const char *module)
{
    add_module(c, module, ".lora_down.weight", ".lora_up.weight");
}

/* Write, try to open, and leave the error to the caller. */
static tess_status try_open(const fixture *f, case_file *c, const char *metadata)
{
    const char *path = at(f, "source.safetensors");
    const tess_st_pair pair = {"lora_adapter_metadata", metadata};
    tess_adapter *a = NULL;
    case_write(f, c, path, &pair, metadata != NULL);
    tess_error_clear();
    const tess_status st = tess_adapter_open(f->io, path, NULL, &a);
    tess_adapter_close(&a);
    return st;
}

static void test_open_mixed_dialects_are_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    add_module(&c, "transformer.x_embedder", ".lora_A.weight", ".lora_B.weight");
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "keys of two dialects",
                   "'lora_unet_single_blocks_0_linear2.lora_down.weight' (kohya)",
                   "'transformer.x_embedder.lora_A.weight' (diffusers)");
    add_kohya(&c, stem);
    add_module(&c, "lora_transformer_x_embedder", ".lora_down.weight", ".lora_up.weight");
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "(lora_transformer)", "(kohya)");
    add_module(&c, "diffusion_model.img_in", ".lora_A.weight", ".lora_B.weight");
    add_module(&c, "diffusion_model.double_blocks.0.processor.proj_lora1", ".down.weight",
               ".up.weight");
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "(xlabs)", "(comfyui)");
    /* Both namings of one part in one file. */
    add_module(&c, "diffusion_model.img_in", ".lora_A.weight", ".lora_B.weight");
    add_kohya(&c, "diffusion_model.img_in");
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "diffusion_model.img_in.lora_A.weight",
                   "diffusion_model.img_in.lora_down.weight", "same part");
}

static void test_open_unknown_keys_are_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_single_blocks_0_linear2.diff_b", H, 0);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED,
                   "'lora_unet_single_blocks_0_linear2.diff_b' is not understood",
                   "in kohya naming");
    add_kohya(&c, "lora_unet_single_blocks_38_linear2"); /* there are 38 */
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "single_blocks_38_linear2");
    add_kohya(&c, stem);
    case_add(&c, "img_in.lora_A.weight", R, H);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "img_in.lora_A.weight");
    case_add(&c, "img_in.weight", R, H);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "no key of a known dialect",
                   "img_in.weight");
    add_module(&c, "base_model.model.x_embedder", ".lora_A.weight", ".lora_B.weight");
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "adapter_config.json", "directory");
}

/* Adapters that are none of LoRA or DoRA are told from models, and named. */
static void test_open_other_kinds_are_named(void **state)
{
    static const struct {
        const char *first, *second, *kind;
    } files[] = {
        {"lycoris_transformer_blocks_0_attn_to_q.lokr_w1",
         "lycoris_transformer_blocks_0_attn_to_q.lokr_w2", "is LoKr's"},
        {"diffusion_model.img_in.lokr_w1_a", "diffusion_model.img_in.lokr_w2_a", "is LoKr's"},
        {"lora_unet_img_in.hada_w1_a", "lora_unet_img_in.hada_w1_b", "is LoHa's"},
        {"transformer.x_embedder.lora.down.weight", "transformer.x_embedder.lora.up.weight",
         "is not understood: expected <module>.lora_A.weight"},
    };
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(files); i++) {
        case_file c = {.dtype = TESS_ST_BF16};
        bool is_adapter = false;
        case_add(&c, files[i].first, R, H);
        case_add(&c, files[i].second, H, R);
        assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, files[i].kind);
        assert_ok(tess_adapter_is_path(f->io, at(f, "source.safetensors"), &is_adapter));
        assert_true(is_adapter);
    }
}

static void test_open_text_encoders_are_refused_or_counted(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    const tess_adapter_options skip = {.skip_text_encoders = true};
    static const char te1[] = "lora_te1_text_model_encoder_layers_0_mlp_fc1";
    static const char te3[] = "lora_te3_encoder_block_0_layer_0_SelfAttention_k";
    tess_adapter *a = NULL;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    add_kohya(&c, te1);
    add_kohya(&c, te3);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, te1, "--skip-text-encoders");
    assert_ok(tess_adapter_open(f->io, path, &skip, &a));
    assert_int_equal(tess_adapter_numel(a), 1);
    assert_int_equal(tess_adapter_skipped_numel(a), 4);
    tess_adapter_close(&a);
}

static void test_open_incomplete_modules_are_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_img_in.lora_down.weight", R, H);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "'img_in' has no lora_B (lora_up)");
    case_add(&c, "lora_unet_img_in.lora_up.weight", H, R);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "'img_in' has no lora_A (lora_down)");
    case_add_scalar(&c, "lora_unet_img_in.alpha", 1.0F);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "'img_in' has no lora_A");
    case_add(&c, "lora_unet_img_in.lora_down.weight", R, H);
    case_add(&c, "lora_unet_img_in.lora_up.weight", H, R + 1);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "ranks differ, A [2, 4] and B [4, 3]");
    case_add(&c, "lora_unet_img_in.lora_down.weight", R, H);
    case_add(&c, "lora_unet_img_in.lora_up.weight", H, 0);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "expected a matrix, found shape [4]");
    case_add(&c, "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", R, H);
    case_add(&c, "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", 3 * H + 1, R);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT,
                   "has 13 outputs, expected a multiple of 3");
    case_add(&c, "lora_unet_single_blocks_0_linear1.lora_down.weight", R, H);
    case_add(&c, "lora_unet_single_blocks_0_linear1.lora_up.weight", 6 * H, R);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT,
                   "has 24 outputs, expected a multiple of 7");
    case_add(&c, "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight", R, H);
    case_add(&c, "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight", 7, R);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "expected two halves");
    add_kohya(&c, stem);
    c.tensor[1].dtype = TESS_ST_U16; /* two bytes an element, as bf16 */
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "expected dtype F32, BF16 or F16",
                   "found U16");
}

static void test_open_bad_alpha_is_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_add_scalar(&c, "lora_unet_single_blocks_0_linear2.alpha", 0.0F);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "expected a positive alpha, found 0");
    add_kohya(&c, stem);
    case_add_scalar(&c, "lora_unet_single_blocks_0_linear2.alpha", NAN);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "expected a positive alpha, found nan");
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_single_blocks_0_linear2.alpha", 2, 0);
    assert_refused(try_open(f, &c, NULL), TESS_E_FORMAT, "expected one number", "found 2 of BF16");
    /* diffusers reads one without peft_type */
    static const char config[] =
        "{\"transformer.r\": 2, \"transformer.target_modules\": [\"x_embedder\"]}";
    static const char biased[] = "{\"transformer.r\": 2, \"transformer.lora_bias\": true, "
                                 "\"transformer.target_modules\": [\"x_embedder\"]}";
    add_module(&c, "transformer.x_embedder", ".lora_A.weight", ".lora_B.weight");
    assert_ok(try_open(f, &c, config));
    add_module(&c, "transformer.x_embedder", ".lora_A.weight", ".lora_B.weight");
    assert_refused(try_open(f, &c, biased), TESS_E_UNSUPPORTED,
                   "source.safetensors: lora_adapter_metadata': lora_bias");
    add_module(&c, "transformer.x_embedder", ".lora_A.weight", ".lora_B.weight");
    case_add_scalar(&c, "transformer.x_embedder.alpha", 1.0F);
    assert_refused(try_open(f, &c, config), TESS_E_FORMAT, "stands twice");
    add_module(&c, "transformer.proj_out", ".lora_A.weight", ".lora_B.weight");
    assert_refused(try_open(f, &c, config), TESS_E_FORMAT, "'proj_out' has rank 2", "no target");
    add_module(&c, "transformer.x_embedder", ".lora_A.weight", ".lora_B.weight");
    assert_refused(try_open(f, &c, "{\"transformer.r\": 2"), TESS_E_FORMAT,
                   "lora_adapter_metadata");
}

/* LyCORIS also knows magnitudes per input, [1, in]: another rule than the one trained here. */
static void test_open_magnitudes_of_inputs_are_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_single_blocks_0_linear2.dora_scale", 1, H);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "one magnitude per output",
                   "found shape [1, 4]");
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_single_blocks_0_linear2.dora_scale", H - 1, 1);
    assert_refused(try_open(f, &c, NULL), TESS_E_UNSUPPORTED, "expected 4 magnitudes", "found 3");
}

/* A run is DoRA at all of its layers, or at none. */
static void test_spec_of_mixed_kinds_is_refused(void **state)
{
    const fixture *f = *state;
    case_file c = {.dtype = TESS_ST_F32};
    tess_adapter *a = NULL;
    tess_peft_spec *spec = NULL;
    add_kohya(&c, "lora_unet_img_in");
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_img_in.dora_scale", H, 1);
    case_write(f, &c, at(f, "source.safetensors"), NULL, 0);
    assert_ok(tess_adapter_open(f->io, at(f, "source.safetensors"), NULL, &a));
    assert_refused(tess_adapter_spec(a, &spec), TESS_E_UNSUPPORTED, "'x_embedder'",
                   "'single_transformer_blocks.0.proj_out'", "all modules alike");
    tess_adapter_close(&a);
}

/* Cut anywhere, a file is refused, and nothing is leaked (teardown counts). */
static void test_open_truncated_file_is_refused(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    tess_adapter *a = NULL;
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_write(f, &c, path, NULL, 0);
    char bytes[4096];
    FILE *file = fopen(path, "rb");
    const size_t nbytes = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    for (size_t n = 0; n < nbytes; n += 7) {
        path = put_file(f, "cut.safetensors", bytes, n);
        tess_error_clear();
        assert_int_equal(tess_adapter_open(f->io, path, NULL, &a), TESS_E_FORMAT);
    }
}

static tess_status try_write(const fixture *f, const tess_adapter *a, tess_adapter_dialect dialect,
                             tess_dtype dt)
{
    char dir[128];
    const tess_adapter_target to = {.dialect = dialect, .dt = dt};
    snprintf(dir, sizeof dir, "%s/out", f->dir);
    const tess_status st = tess_adapter_write(f->io, a, &to, dir);
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    if (tess_io_stat(f->io, dir, &kind, &nbytes) == TESS_OK && kind == TESS_IO_DIR)
        case_remove(f, dir);
    return st;
}

static void test_write_overflow_is_refused(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_F32};
    add_kohya(&c, stem);
    c.value[1][5] = 40000.0F; /* fits, twice of it does not */
    case_add_scalar(&c, "lora_unet_single_blocks_0_linear2.alpha", 2.0F * R);
    case_write(f, &c, path, NULL, 0);
    tess_adapter *a = case_open(f, path, NULL);
    assert_ok(try_write(f, a, TESS_ADAPTER_KOHYA, TESS_F16));
    assert_ok(try_write(f, a, TESS_ADAPTER_DIFFUSERS, TESS_BF16));
    assert_refused(try_write(f, a, TESS_ADAPTER_DIFFUSERS, TESS_F16), TESS_E_RANGE,
                   "'single_transformer_blocks.0.proj_out': element 5 of its B is 80000",
                   "f16 cannot hold", "65504");
    tess_adapter_close(&a);
    add_kohya(&c, stem);
    c.value[0][0] = INFINITY;
    case_write(f, &c, path, NULL, 0);
    a = case_open(f, path, NULL);
    assert_refused(try_write(f, a, TESS_ADAPTER_DIFFUSERS, TESS_F32), TESS_E_RANGE,
                   "element 0 of its A is inf");
    tess_adapter_close(&a);
    /* The largest f32 rounds up to infinity in bf16. */
    add_kohya(&c, stem);
    c.value[0][0] = 0x1.fffffep127F;
    case_write(f, &c, path, NULL, 0);
    a = case_open(f, path, NULL);
    assert_refused(try_write(f, a, TESS_ADAPTER_DIFFUSERS, TESS_BF16), TESS_E_RANGE, "bf16 cannot");
    tess_adapter_close(&a);
}

static void test_write_where_there_is_no_place_is_refused(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_BF16};
    add_kohya(&c, stem);
    case_add(&c, "lora_unet_single_blocks_0_linear2.dora_scale", H, 1);
    case_write(f, &c, path, NULL, 0);
    tess_adapter *a = case_open(f, path, NULL);
    assert_refused(try_write(f, a, TESS_ADAPTER_COMFYUI, TESS_BF16), TESS_E_UNSUPPORTED,
                   "'single_blocks.0.linear2' is DoRA", "ComfyUI");
    assert_refused(try_write(f, a, TESS_ADAPTER_GGUF, TESS_BF16), TESS_E_UNSUPPORTED, "FLUX.1",
                   "diffusers, kohya or comfyui");
    assert_refused(try_write(f, a, TESS_ADAPTER_PEFT, TESS_BF16), TESS_E_UNSUPPORTED, "FLUX.1");
    assert_refused(try_write(f, a, TESS_ADAPTER_XLABS, TESS_BF16), TESS_E_ARG, "not written");
    assert_refused(try_write(f, a, TESS_ADAPTER_KOHYA, TESS_F64), TESS_E_DTYPE, "found f64");
    tess_adapter_close(&a);
    /* DoRA of one part of a fused matrix. */
    add_module(&c, "transformer.transformer_blocks.0.attn.to_q", ".lora_A.weight",
               ".lora_B.weight");
    case_add(&c, "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", H, 0);
    add_module(&c, "transformer.transformer_blocks.0.attn.to_k", ".lora_A.weight",
               ".lora_B.weight");
    case_write(f, &c, path, NULL, 0);
    a = case_open(f, path, NULL);
    assert_ok(try_write(f, a, TESS_ADAPTER_DIFFUSERS, TESS_BF16));
    assert_refused(try_write(f, a, TESS_ADAPTER_KOHYA, TESS_BF16), TESS_E_UNSUPPORTED,
                   "'transformer_blocks.0.attn.to_q' is DoRA",
                   "part of 'double_blocks_0_img_attn_qkv'");
    tess_adapter_close(&a);
    /* Parts that are no parts of one matrix. */
    case_add(&c, "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", R, H);
    case_add(&c, "transformer.transformer_blocks.0.attn.to_q.lora_B.weight", H, R);
    case_add(&c, "transformer.transformer_blocks.0.attn.to_k.lora_A.weight", R, H);
    case_add(&c, "transformer.transformer_blocks.0.attn.to_k.lora_B.weight", H + 1, R);
    case_write(f, &c, path, NULL, 0);
    a = case_open(f, path, NULL);
    assert_refused(try_write(f, a, TESS_ADAPTER_COMFYUI, TESS_BF16), TESS_E_FORMAT,
                   "[4, 4] and [5, 4] do not fit");
    tess_adapter_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_open_mixed_dialects_are_refused),
        format_test(test_open_unknown_keys_are_refused),
        format_test(test_open_other_kinds_are_named),
        format_test(test_open_text_encoders_are_refused_or_counted),
        format_test(test_open_incomplete_modules_are_refused),
        format_test(test_open_bad_alpha_is_refused),
        format_test(test_open_magnitudes_of_inputs_are_refused),
        format_test(test_spec_of_mixed_kinds_is_refused),
        format_test(test_open_truncated_file_is_refused),
        format_test(test_write_overflow_is_refused),
        format_test(test_write_where_there_is_no_place_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
