/* FLUX.1: every dialect from and to every other. */
#include "adapter_case.h"

#include "format/flux_names.h"

enum { H = 4, R = 4 };

/* A linear layer of a transformer of hidden size H; parts are fused in BFL's naming. */
typedef struct site {
    const char *bfl, *flat;
    const char *part[4];
    int64_t in_numel, part_out[4];
} site;

static const site sites[] = {
    {"double_blocks.0.img_attn.qkv",
     "double_blocks_0_img_attn_qkv",
     {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k",
      "transformer_blocks.0.attn.to_v"},
     H,
     {H, H, H}},
    {"double_blocks.18.txt_attn.qkv",
     "double_blocks_18_txt_attn_qkv",
     {"transformer_blocks.18.attn.add_q_proj", "transformer_blocks.18.attn.add_k_proj",
      "transformer_blocks.18.attn.add_v_proj"},
     H,
     {H, H, H}},
    {"double_blocks.3.txt_mlp.2",
     "double_blocks_3_txt_mlp_2",
     {"transformer_blocks.3.ff_context.net.2"},
     4 * H,
     {H}},
    {"single_blocks.37.linear1",
     "single_blocks_37_linear1",
     {"single_transformer_blocks.37.attn.to_q", "single_transformer_blocks.37.attn.to_k",
      "single_transformer_blocks.37.attn.to_v", "single_transformer_blocks.37.proj_mlp"},
     H,
     {H, H, H, 4 * H}},
    {"single_blocks.1.linear2",
     "single_blocks_1_linear2",
     {"single_transformer_blocks.1.proj_out"},
     5 * H,
     {H}},
    {"final_layer.linear", "final_layer_linear", {"proj_out"}, H, {6}},
    {"final_layer.adaLN_modulation.1",
     "final_layer_adaLN_modulation_1",
     {"norm_out.linear"},
     H,
     {2 * H}},
    {"time_in.out_layer",
     "time_in_out_layer",
     {"time_text_embed.timestep_embedder.linear_2"},
     H,
     {H}},
};

static int part_numel(const site *s)
{
    int numel = 0;
    while (numel < 4 && s->part[numel] != NULL)
        numel++;
    return numel;
}

static int64_t out_of(const site *s)
{
    return s->part_out[0] + s->part_out[1] + s->part_out[2] + s->part_out[3];
}

typedef struct source {
    const char *name, *prefix, *down, *up;
    bool is_split;
    bool is_flat;
    bool is_diagonal;     /* fused matrices were made of separate adapters */
    double alpha;         /* of one matrix, or of each of its blocks; 0: not in the file */
    const char *metadata; /* lora_adapter_metadata */
    bool is_dora;
} source;

#define DIFFUSERS_CONFIG(rest)                                                                     \
    "{\"transformer.peft_type\": \"LORA\", \"transformer.r\": 4, \"transformer.target_modules\": " \
    "[\"to_q\", \"to_k\", \"to_v\", \"add_q_proj\", \"add_k_proj\", \"add_v_proj\", \"net.2\", "   \
    "\"proj_mlp\", \"proj_out\", \"norm_out.linear\", \"linear_2\"], \"text_encoder.r\": 9, " rest \
    "}"

static const source all_sources[] = {
    {"diffusers without alpha", "transformer.", ".lora_A.weight", ".lora_B.weight", true, false,
     false, 0.0, NULL, false},
    {"diffusers with alpha in metadata", "transformer.", ".lora_A.weight", ".lora_B.weight", true,
     false, false, 0.0, DIFFUSERS_CONFIG("\"transformer.lora_alpha\": 6"), false},
    {"diffusers with rslora", "transformer.", ".lora_A.weight", ".lora_B.weight", true, false,
     false, 0.0,
     DIFFUSERS_CONFIG("\"transformer.lora_alpha\": 7, \"transformer.use_rslora\": true"), false},
    {"diffusers with alpha_pattern", "transformer.", ".lora_A.weight", ".lora_B.weight", true,
     false, false, 0.0,
     DIFFUSERS_CONFIG("\"transformer.lora_alpha\": 3, \"transformer.alpha_pattern\": "
                      "{\"to_k\": 5, \"proj_mlp\": 11}"),
     false},
    {"diffusers without prefix", "", ".lora_A.weight", ".lora_B.weight", true, false, false, 0.0,
     NULL, false},
    {"kohya", "lora_unet_", ".lora_down.weight", ".lora_up.weight", false, true, false, 1.0, NULL,
     false},
    {"kohya without alpha", "lora_unet_", ".lora_down.weight", ".lora_up.weight", false, true,
     false, 0.0, NULL, false},
    {"kohya of separate adapters", "lora_unet_", ".lora_down.weight", ".lora_up.weight", false,
     true, true, 3.0, NULL, false},
    {"comfyui", "diffusion_model.", ".lora_A.weight", ".lora_B.weight", false, false, false, 7.0,
     NULL, false},
    {"lora_transformer", "lora_transformer_", ".lora_down.weight", ".lora_up.weight", true, true,
     false, 5.0, NULL, false},
    {"kohya DoRA", "lora_unet_", ".lora_down.weight", ".lora_up.weight", false, true, false, 6.0,
     NULL, true},
};

static void add_alpha(case_file *c, const char *stem, double alpha)
{
    char name[128];
    snprintf(name, sizeof name, "%s.alpha", stem);
    if (alpha > 0.0)
        case_add_scalar(c, name, (float)alpha);
}

static void add_pair(case_file *c, const source *s, const char *stem, int64_t rank,
                     const int64_t extent[2])
{
    char name[128];
    snprintf(name, sizeof name, "%s%s", stem, s->down);
    case_add(c, name, rank, extent[1]);
    snprintf(name, sizeof name, "%s%s", stem, s->up);
    case_add(c, name, extent[0], rank);
    add_alpha(c, stem, s->alpha * (double)rank / R);
    snprintf(name, sizeof name, "%s.dora_scale", stem);
    if (s->is_dora)
        case_add(c, name, extent[0], 1);
}

/* Zero of the last matrix B what lies outside of the blocks. */
static void cut_blocks(case_file *c, const site *s, int64_t rank)
{
    const int64_t at = c->numel - 2; /* B, then alpha */
    int64_t row = 0;
    for (int part = 0; part < part_numel(s); part++)
        for (int64_t i = 0; i < s->part_out[part]; i++, row++)
            for (int64_t k = 0; k < rank; k++)
                if (k / R != part)
                    c->value[at][row * rank + k] = 0.0F;
}

static void add_fused(case_file *c, const source *s, const site *at)
{
    char stem[128];
    const int64_t rank = s->is_diagonal ? R * part_numel(at) : R;
    snprintf(stem, sizeof stem, "%s%s", s->prefix, s->is_flat ? at->flat : at->bfl);
    add_pair(c, s, stem, rank, (const int64_t[]){out_of(at), at->in_numel});
    if (s->is_diagonal)
        cut_blocks(c, at, rank);
}

static void add_split(case_file *c, const source *s, const site *at)
{
    char stem[128];
    for (int part = 0; part < part_numel(at); part++) {
        snprintf(stem, sizeof stem, "%s%s", s->prefix, at->part[part]);
        for (char *p = stem; s->is_flat && *p != '\0'; p++)
            *p = *p == '.' ? '_' : *p;
        add_pair(c, s, stem, R, (const int64_t[]){at->part_out[part], at->in_numel});
    }
}

static void write_source(const fixture *f, const source *s, tess_st_dtype dtype, const char *path)
{
    case_file c = {.dtype = dtype};
    const tess_st_pair pair[] = {{"base.quant", "q8_0"},
                                 {"base.name", "models/flux1-dev.safetensors"},
                                 {"compute.dtype", "bf16"},
                                 {"lora_adapter_metadata", s->metadata}};
    for (int i = 0; i < TESS_NELEM(sites); i++) {
        if (s->is_split)
            add_split(&c, s, &sites[i]);
        else
            add_fused(&c, s, &sites[i]);
    }
    case_write(f, &c, path, pair, s->metadata != NULL ? 4 : 3);
}

static const char *const file_of[] = {[TESS_ADAPTER_DIFFUSERS] = "pytorch_lora_weights.safetensors",
                                      [TESS_ADAPTER_KOHYA] = "kohya.safetensors",
                                      [TESS_ADAPTER_COMFYUI] = "comfyui.safetensors"};

/* Convert and open what was written. */
static tess_adapter *converted(const fixture *f, const tess_adapter *from,
                               tess_adapter_dialect dialect, tess_dtype dt)
{
    char dir[128], path[256];
    const tess_adapter_target to = {.dialect = dialect, .dt = dt};
    static int turn;
    snprintf(dir, sizeof dir, "%s/out%d", f->dir, turn++ % 2);
    assert_ok(tess_adapter_write(f->io, from, &to, dir));
    snprintf(path, sizeof path, "%s/%s", dir, file_of[dialect]);
    tess_adapter *a = case_open(f, path, NULL);
    assert_int_equal(tess_adapter_dialect_of(a), dialect);
    assert_int_equal(tess_adapter_dtype(a), dt);
    assert_int_equal(remove(path), 0); /* it stays open */
    rmdir(dir);
    return a;
}

/* ---- names ---- */

static int64_t names_of(tess_flux_style style)
{
    tess_flux_names *names = NULL;
    assert_ok(tess_flux_names_create(style, &names));
    const int64_t numel = tess_flux_names_numel(names);
    for (int64_t i = 0; i < numel; i++) {
        const tess_flux_name *name = tess_flux_names_at(names, i);
        assert_int_equal(tess_flux_names_find(names, name->text, strlen(name->text)), i);
    }
    tess_flux_names_destroy(&names);
    return numel;
}

static void test_names_cover_the_transformer(void **state)
{
    (void)state;
    /* 304 modules are what kohya's trainer adapts; 10 more lie outside of blocks. */
    assert_int_equal(names_of(TESS_FLUX_BFL), 304 + 10);
    assert_int_equal(names_of(TESS_FLUX_BFL_FLAT), 304 + 10);
    /* A double block has 14 linear layers in diffusers, a single block 6: 494 in all blocks. */
    assert_int_equal(names_of(TESS_FLUX_DIFFUSERS), 19 * 14 + 38 * 6 + 10);
    assert_int_equal(names_of(TESS_FLUX_DIFFUSERS_FLAT), 19 * 14 + 38 * 6 + 10);
    assert_int_equal(names_of(TESS_FLUX_XLABS), 19 * 4 + 38 * 2);
}

/* ---- every pair ---- */

/* [Note: how many roundings] A value of the source fits its dtype. Only diffusers folds alpha /
 * rank into B, and its files have alpha = rank from then on: whatever the chain, B is rounded once.
 * Where parts of one fused matrix differ in scale, the fold moves to them, once too. */
static void round_trips(const fixture *f, const source *s, tess_dtype dt)
{
    tess_st_dtype dtype = TESS_ST_F32;
    const char *path = at(f, "source.safetensors");
    assert_ok(tess_st_dtype_from_core(dt, &dtype));
    write_source(f, s, dtype, path);
    tess_adapter *from = case_open(f, path, NULL);
    for (int x = TESS_ADAPTER_DIFFUSERS; x <= TESS_ADAPTER_COMFYUI; x++) {
        if (s->is_dora && x == TESS_ADAPTER_COMFYUI)
            continue;
        tess_adapter *once = converted(f, from, (tess_adapter_dialect)x, dt);
        case_compare(from, once, unit_of(dt), 1);
        for (int y = TESS_ADAPTER_DIFFUSERS; y <= TESS_ADAPTER_COMFYUI; y++) {
            if (s->is_dora && y == TESS_ADAPTER_COMFYUI)
                continue;
            tess_adapter *twice = converted(f, once, (tess_adapter_dialect)y, dt);
            case_compare(from, twice, unit_of(dt), 1);
            assert_string_equal(tess_adapter_metadata(twice, "base.quant"), "q8_0");
            assert_string_equal(tess_adapter_base_name(twice), "models/flux1-dev.safetensors");
            tess_adapter_close(&twice);
        }
        tess_adapter_close(&once);
    }
    tess_adapter_close(&from);
}

static void test_write_every_pair_keeps_the_update(void **state)
{
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(all_sources); i++) {
        round_trips(f, &all_sources[i], TESS_F32);
        round_trips(f, &all_sources[i], TESS_BF16);
        round_trips(f, &all_sources[i], TESS_F16);
    }
}

/* From f32, A and B are rounded to the new dtype: two factors of a term. */
static void test_write_narrower_rounds_each_value_once(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    const tess_dtype dts[] = {TESS_BF16, TESS_F16};
    write_source(f, &all_sources[3], TESS_ST_F32, path);
    tess_adapter *from = case_open(f, path, NULL);
    for (int i = 0; i < TESS_NELEM(dts); i++)
        for (int x = TESS_ADAPTER_DIFFUSERS; x <= TESS_ADAPTER_COMFYUI; x++) {
            tess_adapter *to = converted(f, from, (tess_adapter_dialect)x, dts[i]);
            case_compare(from, to, unit_of(dts[i]), 2);
            tess_adapter_close(&to);
        }
    tess_adapter_close(&from);
}

/* (1 + 2^-20)(1 + 2^-8 - 2^-20) is 2^-28 above the middle of two bf16 numbers: f32 would lose that,
 * and a second rounding from the middle would go down. */
static void test_write_folds_and_rounds_once(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_F32};
    case_add(&c, "lora_unet_img_in.lora_down.weight", 1, 1);
    case_add(&c, "lora_unet_img_in.lora_up.weight", 1, 1)[0] = 1.0F + 0x1p-8F - 0x1p-20F;
    case_add_scalar(&c, "lora_unet_img_in.alpha", 1.0F + 0x1p-20F);
    case_write(f, &c, path, NULL, 0);
    tess_adapter *from = case_open(f, path, NULL);
    tess_adapter *to = converted(f, from, TESS_ADAPTER_DIFFUSERS, TESS_BF16);
    float b = 0.0F;
    assert_ok(tess_adapter_read(to, 0, TESS_ADAPTER_B, &b));
    assert_true(b == 1.0F + 0x1p-7F);
    tess_adapter_close(&to);
    tess_adapter_close(&from);
}

/* ---- fused and split ---- */

static const tess_adapter_module *module_of(const tess_adapter *a, const char *path)
{
    const tess_adapter_module *m = tess_adapter_at(a, tess_adapter_find(a, path));
    assert_non_null(m);
    return m;
}

static void test_open_fused_shares_a_and_cuts_b(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    write_source(f, &all_sources[5], TESS_ST_F32, path);
    tess_adapter *a = case_open(f, path, NULL);
    assert_true(tess_adapter_is_flux(a));
    static const char up[] = "lora_unet_single_blocks_37_linear1.lora_up.weight";
    for (int part = 0; part < 4; part++) {
        const int64_t idx = tess_adapter_find(a, sites[3].part[part]);
        const tess_adapter_module *m = tess_adapter_at(a, idx);
        assert_int_equal(m->rank, R);
        assert_true(m->alpha == 1.0);
        assert_int_equal(m->out_numel, sites[3].part_out[part]);
        float *x = case_read(a, idx, TESS_ADAPTER_A), *b = case_read(a, idx, TESS_ADAPTER_B);
        for (int64_t i = 0; i < R * H; i++)
            assert_true(x[i] ==
                        case_value("lora_unet_single_blocks_37_linear1.lora_down.weight", i));
        for (int64_t i = 0; i < m->out_numel * R; i++)
            assert_true(b[i] == case_value(up, (int64_t)part * H * R + i));
        free(x);
        free(b);
    }
    tess_adapter_close(&a);
}

static void test_open_block_diagonal_divides_rank_and_alpha(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    write_source(f, &all_sources[7], TESS_ST_BF16, path);
    tess_adapter *a = case_open(f, path, NULL);
    for (int part = 0; part < 4; part++) {
        const tess_adapter_module *m = module_of(a, sites[3].part[part]);
        assert_int_equal(m->rank, R);
        assert_true(m->alpha == 3.0);
    }
    /* Back in one matrix: rank and alpha of the file again. */
    tess_adapter *split = converted(f, a, TESS_ADAPTER_DIFFUSERS, TESS_F32);
    tess_adapter *fused = converted(f, split, TESS_ADAPTER_KOHYA, TESS_F32);
    assert_int_equal(module_of(fused, sites[0].part[1])->rank, R);
    tess_adapter_close(&fused);
    tess_adapter_close(&split);
    tess_adapter_close(&a);
}

/* One A for q, k, v survives a file that stores it three times. */
static void test_write_shared_a_stays_one_rank(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    char dir[128], name[256];
    write_source(f, &all_sources[5], TESS_ST_F32, path);
    tess_adapter *a = case_open(f, path, NULL);
    tess_adapter *split = converted(f, a, TESS_ADAPTER_DIFFUSERS, TESS_F32);
    const tess_adapter_target to = {.dialect = TESS_ADAPTER_KOHYA, .dt = TESS_F32};
    snprintf(dir, sizeof dir, "%s/again", f->dir);
    assert_ok(tess_adapter_write(f->io, split, &to, dir));
    snprintf(name, sizeof name, "%s/kohya.safetensors", dir);
    tess_safetensors *file = NULL;
    assert_ok(tess_safetensors_open(f->io, name, &file));
    const tess_st_tensor *down =
        tess_safetensors_find(file, "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight");
    assert_int_equal(down->dim[0], R);
    assert_string_equal(tess_safetensors_metadata(file, "ss_network_dim"), "4");
    assert_string_equal(tess_safetensors_metadata(file, "ss_network_alpha"), "4");
    assert_string_equal(tess_safetensors_metadata(file, "ss_sd_model_name"),
                        "flux1-dev.safetensors");
    assert_string_equal(tess_safetensors_metadata(file, "ss_mixed_precision"), "bf16");
    assert_string_equal(tess_safetensors_metadata(file, "ss_fp8_base"), "False");
    assert_string_equal(tess_safetensors_metadata(file, "dialect"), "kohya");
    tess_safetensors_close(&file);
    case_remove(f, dir);
    tess_adapter_close(&split);
    tess_adapter_close(&a);
}

/* Separate adapters become one of three times the rank; alpha / rank stays. */
static void test_write_split_is_stacked(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    char dir[128], name[256];
    write_source(f, &all_sources[1], TESS_ST_F32, path);
    tess_adapter *a = case_open(f, path, NULL);
    const tess_adapter_target to = {.dialect = TESS_ADAPTER_COMFYUI, .dt = TESS_F32};
    snprintf(dir, sizeof dir, "%s/again", f->dir);
    assert_ok(tess_adapter_write(f->io, a, &to, dir));
    snprintf(name, sizeof name, "%s/comfyui.safetensors", dir);
    tess_safetensors *file = NULL;
    assert_ok(tess_safetensors_open(f->io, name, &file));
    const tess_st_tensor *up =
        tess_safetensors_find(file, "diffusion_model.single_blocks.37.linear1.lora_up.weight");
    float b[7 * H * 4 * R], alpha = 0.0F;
    assert_int_equal(up->dim[0], 7 * H);
    assert_int_equal(up->dim[1], 4 * R);
    assert_ok(tess_safetensors_read(file, up, 0, sizeof b, b));
    for (int64_t i = 0; i < 7 * H * 4 * R; i++) {
        const int64_t row = i / (4 * R), col = i % (4 * R), part = TESS_MIN(row / H, (int64_t)3);
        char own[128];
        snprintf(own, sizeof own, "transformer.%s.lora_B.weight", sites[3].part[part]);
        const float want = col / R == part ? case_value(own, (row - part * H) * R + col % R) : 0.0F;
        assert_true(b[i] == want);
    }
    assert_ok(tess_safetensors_read(
        file, tess_safetensors_find(file, "diffusion_model.single_blocks.37.linear1.alpha"), 0, 4,
        &alpha));
    assert_true(alpha == 4.0F * 6.0F);
    tess_safetensors_close(&file);
    case_remove(f, dir);
    tess_adapter_close(&a);
}

/* Rows of final_layer.adaLN_modulation.1 are shift, scale; of norm_out.linear scale, shift. */
static void test_open_swaps_halves_of_the_last_modulation(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    static const char stem[] = "lora_unet_final_layer_adaLN_modulation_1";
    char up[128], scale[128];
    snprintf(up, sizeof up, "%s.lora_up.weight", stem);
    snprintf(scale, sizeof scale, "%s.dora_scale", stem);
    write_source(f, &all_sources[10], TESS_ST_F32, path);
    tess_adapter *a = case_open(f, path, NULL);
    const int64_t idx = tess_adapter_find(a, "norm_out.linear");
    float *b = case_read(a, idx, TESS_ADAPTER_B), *m = case_read(a, idx, TESS_ADAPTER_MAGNITUDE);
    for (int64_t i = 0; i < 2 * H * R; i++)
        assert_true(b[i] == case_value(up, (i + H * R) % (2 * H * R)));
    for (int64_t i = 0; i < 2 * H; i++)
        assert_true(m[i] == case_value(scale, (i + H) % (2 * H)));
    free(b);
    free(m);
    tess_adapter_close(&a);
}

static void test_open_xlabs_is_read(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_BF16};
    case_add(&c, "double_blocks.2.processor.qkv_lora1.down.weight", R, H);
    case_add(&c, "double_blocks.2.processor.qkv_lora1.up.weight", 3 * H, R);
    case_add(&c, "double_blocks.2.processor.proj_lora2.down.weight", R, H);
    case_add(&c, "double_blocks.2.processor.proj_lora2.up.weight", H, R);
    case_add(&c, "single_blocks.5.processor.qkv_lora.down.weight", R, H);
    case_add(&c, "single_blocks.5.processor.qkv_lora.up.weight", 3 * H, R);
    case_write(f, &c, path, NULL, 0);
    tess_adapter *a = case_open(f, path, NULL);
    assert_int_equal(tess_adapter_dialect_of(a), TESS_ADAPTER_XLABS);
    assert_int_equal(tess_adapter_numel(a), 7);
    assert_true(module_of(a, "transformer_blocks.2.attn.to_add_out")->alpha == (double)R);
    const int64_t v = tess_adapter_find(a, "single_transformer_blocks.5.attn.to_v");
    float *b = case_read(a, v, TESS_ADAPTER_B);
    assert_true(b[0] == case_value("single_blocks.5.processor.qkv_lora.up.weight", 2 * H * R));
    free(b);
    for (int x = TESS_ADAPTER_DIFFUSERS; x <= TESS_ADAPTER_COMFYUI; x++) {
        tess_adapter *to = converted(f, a, (tess_adapter_dialect)x, TESS_BF16);
        case_compare(a, to, 0.0, 0); /* scale 1: nothing is folded, nothing rounded */
        tess_adapter_close(&to);
    }
    tess_adapter_close(&a);
}

/* k has no adapter: its rows of the fused B are zero. */
static void test_write_missing_part_is_zero(void **state)
{
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_F32};
    case_add(&c, "transformer.transformer_blocks.1.attn.to_q.lora_A.weight", 2, H);
    case_add(&c, "transformer.transformer_blocks.1.attn.to_q.lora_B.weight", H, 2);
    case_add(&c, "transformer.transformer_blocks.1.attn.to_v.lora_A.weight", 3, H);
    case_add(&c, "transformer.transformer_blocks.1.attn.to_v.lora_B.weight", H, 3);
    case_write(f, &c, path, NULL, 0);
    tess_adapter *a = case_open(f, path, NULL);
    tess_adapter *to = converted(f, a, TESS_ADAPTER_KOHYA, TESS_F32);
    assert_int_equal(module_of(to, "transformer_blocks.1.attn.to_k")->rank, 5);
    case_compare(a, to, 0.0, 0);
    tess_adapter_close(&to);
    tess_adapter_close(&a);
}

/* The last layer's path is the end of those of all single blocks: each gets its own rank, or none.
 */
static void test_spec_matches_its_modules_alone(void **state)
{
    static const struct {
        const char *path;
        int64_t rank; /* 0: no module */
        double scale;
    } expected[] = {{"proj_out", 2, 3.0},
                    {"single_transformer_blocks.1.proj_out", 3, 2.0},
                    {"single_transformer_blocks.0.proj_out", 0, 0.0},
                    {"single_transformer_blocks.11.proj_out", 0, 0.0}};
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    case_file c = {.dtype = TESS_ST_F32};
    tess_adapter *a = NULL;
    tess_peft_spec *spec = NULL;
    case_add(&c, "lora_unet_final_layer_linear.lora_down.weight", 2, H);
    case_add(&c, "lora_unet_final_layer_linear.lora_up.weight", 6, 2);
    case_add_scalar(&c, "lora_unet_final_layer_linear.alpha", 6.0F);
    case_add(&c, "lora_unet_single_blocks_1_linear2.lora_down.weight", 3, (int64_t)5 * H);
    case_add(&c, "lora_unet_single_blocks_1_linear2.lora_up.weight", H, 3);
    case_add_scalar(&c, "lora_unet_single_blocks_1_linear2.alpha", 6.0F);
    case_write(f, &c, path, NULL, 0);
    assert_ok(tess_adapter_open(f->io, path, NULL, &a));
    assert_ok(tess_adapter_spec(a, &spec));
    for (int i = 0; i < TESS_NELEM(expected); i++) {
        const tess_peft_module module = {.path = expected[i].path};
        tess_peft_match m;
        assert_ok(tess_peft_spec_match(spec, &module, &m));
        assert_int_equal(m.is_target, expected[i].rank > 0);
        assert_int_equal(m.is_target ? m.rank : 0, expected[i].rank);
        assert_true(!m.is_target || m.scale == expected[i].scale);
    }
    tess_peft_spec_destroy(&spec);
    tess_adapter_close(&a);
}

/* One rank-1 module of kohya's. */
static void add_small(case_file *c, const char *block, int block_idx, const char *layer,
                      int64_t row_numel, int64_t col_numel)
{
    char name[128];
    snprintf(name, sizeof name, "lora_unet_%s_blocks_%d_%s.lora_down.weight", block, block_idx,
             layer);
    case_add(c, name, 1, col_numel);
    snprintf(name, sizeof name, "lora_unet_%s_blocks_%d_%s.lora_up.weight", block, block_idx,
             layer);
    case_add(c, name, row_numel, 1);
}

/* As many modules as files of the whole model have: rules of 4 KiB held a hundred. */
static void test_spec_of_all_blocks(void **state)
{
    enum { DOUBLES = 19, SINGLES = 38 };
    const fixture *f = *state;
    const char *path = at(f, "source.safetensors");
    static case_file c;
    tess_adapter *a = NULL;
    tess_peft_spec *spec = NULL;
    tess_peft_match m;
    c = (case_file){.dtype = TESS_ST_F32};
    for (int i = 0; i < DOUBLES; i++) {
        add_small(&c, "double", i, "img_attn_proj", H, H);
        add_small(&c, "double", i, "txt_attn_proj", H, H);
        add_small(&c, "double", i, "img_mod_lin", (int64_t)6 * H, H);
        add_small(&c, "double", i, "txt_mod_lin", (int64_t)6 * H, H);
    }
    for (int i = 0; i < SINGLES; i++) {
        add_small(&c, "single", i, "linear2", H, (int64_t)5 * H);
        add_small(&c, "single", i, "modulation_lin", (int64_t)3 * H, H);
    }
    case_write(f, &c, path, NULL, 0);
    assert_ok(tess_adapter_open(f->io, path, NULL, &a));
    assert_ok(tess_adapter_spec(a, &spec));
    assert_ok(tess_peft_spec_match(
        spec, &(tess_peft_module){.path = "single_transformer_blocks.37.norm.linear"}, &m));
    assert_true(m.is_target);
    assert_ok(tess_peft_spec_match(spec, &(tess_peft_module){.path = "proj_out"}, &m));
    assert_false(m.is_target);
    tess_peft_spec_destroy(&spec);
    tess_adapter_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_names_cover_the_transformer),
        format_test(test_write_every_pair_keeps_the_update),
        format_test(test_write_narrower_rounds_each_value_once),
        format_test(test_write_folds_and_rounds_once),
        format_test(test_open_fused_shares_a_and_cuts_b),
        format_test(test_open_block_diagonal_divides_rank_and_alpha),
        format_test(test_write_shared_a_stays_one_rank),
        format_test(test_write_split_is_stacked),
        format_test(test_open_swaps_halves_of_the_last_modulation),
        format_test(test_open_xlabs_is_read),
        format_test(test_write_missing_part_is_zero),
        format_test(test_spec_matches_its_modules_alone),
        format_test(test_spec_of_all_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
