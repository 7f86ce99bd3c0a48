/* Whole directories of every family as training from scratch and LoRA write them, read back here.
 * With TESS_EXPORT_DIR set they are written there and kept, for tools/check_exports.py, which loads
 * them in transformers and peft. */
#include "format_test.h"

#include "format/hf_config.h"
#include "format/model_dir.h"
#include "format/peft.h"

enum { TENSOR_MAX = 64, NAME_MAX_NBYTES = 96 };

typedef struct sample {
    tess_llm_config config;
    char name[TENSOR_MAX][NAME_MAX_NBYTES];
    tess_st_tensor tensor[TENSOR_MAX];
    int tensor_numel;
} sample;

/* Multiples of 1/512 below 0.1: exact in bf16, and easy to repeat in Python. */
static float value_of(const char *name, int64_t i)
{
    int64_t sum = 0;
    for (const char *p = name; *p != '\0'; p++)
        sum += (unsigned char)*p;
    return (float)((sum + i * 37) % 101 - 50) / 512.0f;
}

static uint16_t bf16_of(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, 4);
    assert_int_equal(bits & 0xffff, 0);
    return (uint16_t)(bits >> 16);
}

static void add(sample *s, const char *name, int64_t rows, int64_t columns)
{
    assert_true(s->tensor_numel < TENSOR_MAX);
    char *kept = s->name[s->tensor_numel];
    snprintf(kept, NAME_MAX_NBYTES, "%s", name);
    s->tensor[s->tensor_numel++] = (tess_st_tensor){.name = kept,
                                                    .dtype = TESS_ST_BF16,
                                                    .dim_numel = columns > 0 ? 2 : 1,
                                                    .dim = {rows, columns}};
}

static void add_linear(sample *s, const char *stem, int64_t out, int64_t in, bool has_bias)
{
    char name[NAME_MAX_NBYTES];
    snprintf(name, sizeof name, "%s.weight", stem);
    add(s, name, out, in);
    snprintf(name, sizeof name, "%s.bias", stem);
    if (has_bias)
        add(s, name, out, 0);
}

static void add_layer(sample *s, int64_t layer)
{
    const tess_llm_config *c = &s->config;
    const struct {
        const char *stem;
        int64_t out, in;
        bool is_here, has_bias;
    } rows[] = {
        {"input_layernorm", c->hidden_numel, 0, true, false},
        {"post_attention_layernorm", c->hidden_numel, 0, true, false},
        {"self_attn.q_norm", c->head_dim, 0, c->has_qk_norm, false},
        {"self_attn.k_norm", c->head_dim, 0, c->has_qk_norm, false},
        {"self_attn.q_proj", c->head_numel * c->head_dim, c->hidden_numel, true, c->has_q_bias},
        {"self_attn.k_proj", c->kv_head_numel * c->head_dim, c->hidden_numel, true, c->has_k_bias},
        {"self_attn.v_proj", c->kv_head_numel * c->head_dim, c->hidden_numel, true, c->has_v_bias},
        {"self_attn.o_proj", c->hidden_numel, c->head_numel * c->head_dim, true, c->has_o_bias},
        {"mlp.gate_proj", c->intermediate_numel, c->hidden_numel, true, c->has_mlp_bias},
        {"mlp.up_proj", c->intermediate_numel, c->hidden_numel, true, c->has_mlp_bias},
        {"mlp.down_proj", c->hidden_numel, c->intermediate_numel, true, c->has_mlp_bias},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        char stem[64];
        snprintf(stem, sizeof stem, "model.layers.%d.%s", (int)layer, rows[i].stem);
        if (rows[i].is_here)
            add_linear(s, stem, rows[i].out, rows[i].in, rows[i].has_bias);
    }
}

static void fill_config(tess_llm_config *c, tess_llm_family family)
{
    *c = (tess_llm_config){.family = family,
                           .hidden_numel = 32,
                           .intermediate_numel = 48,
                           .layer_numel = 2,
                           .head_numel = 4,
                           .kv_head_numel = 2,
                           .head_dim = 8,
                           .vocab_numel = 40,
                           .max_position = 128,
                           .rms_eps = 1e-5,
                           .rope = {.type = TESS_ROPE_DEFAULT, .theta = 20000.0, .factor = 1.0},
                           .is_tied = family == TESS_LLM_QWEN2,
                           .bos_id = 1,
                           .eos_id = {2, 3},
                           .eos_numel = 2};
    if (family == TESS_LLM_LLAMA) {
        c->rope = (tess_rope_config){.type = TESS_ROPE_LLAMA3,
                                     .theta = 5e5,
                                     .factor = 8.0,
                                     .low_freq_factor = 1.0,
                                     .high_freq_factor = 4.0,
                                     .original_max_position = 64};
        c->has_q_bias = c->has_k_bias = c->has_v_bias = c->has_o_bias = c->has_mlp_bias = true;
    } else if (family == TESS_LLM_MISTRAL) {
        c->window = 4;
        c->is_sliding[0] = c->is_sliding[1] = true;
    } else if (family == TESS_LLM_QWEN2) {
        c->has_q_bias = c->has_k_bias = c->has_v_bias = true;
        c->rope = (tess_rope_config){.type = TESS_ROPE_LINEAR, .theta = 10000.0, .factor = 2.0};
    } else {
        c->has_qk_norm = true;
        c->head_dim = 16;
        c->window = 3;
        c->is_sliding[0] = true;
    }
}

static void make_sample(sample *s, tess_llm_family family)
{
    memset(s, 0, sizeof *s);
    fill_config(&s->config, family);
    add(s, "model.embed_tokens.weight", s->config.vocab_numel, s->config.hidden_numel);
    add(s, "model.norm.weight", s->config.hidden_numel, 0);
    if (!s->config.is_tied)
        add(s, "lm_head.weight", s->config.vocab_numel, s->config.hidden_numel);
    for (int64_t i = 0; i < s->config.layer_numel; i++)
        add_layer(s, i);
}

static void write_model(const fixture *f, const char *dir, const sample *s)
{
    const tess_st_pair format = {"format", "pt"};
    tess_safetensors_writer *w = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_ok(tess_io_mkdirs(f->io, dir));
    assert_ok(
        tess_safetensors_writer_create(f->io, path, s->tensor, s->tensor_numel, &format, 1, &w));
    for (int t = 0; t < s->tensor_numel; t++) {
        const int64_t columns = s->tensor[t].dim_numel == 2 ? s->tensor[t].dim[1] : 1;
        for (int64_t i = 0; i < s->tensor[t].dim[0] * columns; i++) {
            const uint16_t bits = bf16_of(value_of(s->name[t], i));
            assert_ok(tess_safetensors_writer_append(w, t, &bits, 2));
        }
    }
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
    assert_ok(tess_hf_config_write(f->io, dir, &s->config, "bfloat16"));
}

static void expect_model(const fixture *f, const char *path, const sample *s)
{
    const tess_ctx ctx = {.io = f->io};
    tess_model_dir *dir = NULL;
    tess_llm_config config;
    assert_ok(tess_hf_config_read(f->io, path, &config));
    assert_int_equal(config.family, s->config.family);
    assert_int_equal(config.rope.type, s->config.rope.type);
    assert_true(config.rope.theta == s->config.rope.theta &&
                config.rope.factor == s->config.rope.factor);
    assert_ok(tess_model_dir_open(&ctx, path, &dir));
    for (int i = 0; i < s->tensor_numel; i++) {
        const tess_model_tensor *t = NULL;
        uint16_t last = 0;
        assert_ok(
            tess_model_dir_claim(dir, s->name[i], s->tensor[i].dim, s->tensor[i].dim_numel, &t));
        assert_ok(tess_model_dir_read(dir, t, t->st->nbytes - 2, 2, &last));
        assert_int_equal(last, bf16_of(value_of(s->name[i], t->st->numel - 1)));
    }
    assert_null(tess_model_dir_unclaimed(dir, 0));
    tess_model_dir_close(&dir);
}

/* ---- adapters ---- */

/* Each family another way to choose modules, so that peft reads them all. */
static tess_peft_options choose_targets(tess_llm_family family)
{
    static const char *const names[] = {"q_proj", "up_proj"};
    static const tess_peft_pattern rank[] = {{"v_proj", 2.0}, {".*proj", 4.0}};
    static const tess_peft_pattern alpha[] = {{"layers.1.mlp.up_proj", 1.5}};
    static const int64_t layers[] = {1};
    tess_peft_options o = {.rank = 8, .alpha = 16.0, .dropout = 0.1};
    if (family == TESS_LLM_LLAMA) {
        o.targets.regex = TESS_PEFT_ALL_LINEAR;
        o.rank_pattern = rank;
        o.rank_pattern_numel = 2;
    } else if (family == TESS_LLM_MISTRAL) {
        o.targets = (tess_peft_modules){.name = names, .name_numel = 2};
        o.use_rslora = true;
        o.alpha_pattern = alpha;
        o.alpha_pattern_numel = 1;
    } else if (family == TESS_LLM_QWEN2) {
        o.targets.regex = ".*\\.(q|k)_proj";
    } else {
        o.targets = (tess_peft_modules){.name = names, .name_numel = 2};
        o.layer = layers;
        o.layer_numel = 1;
    }
    return o;
}

typedef struct adapters {
    char path[TENSOR_MAX][NAME_MAX_NBYTES];
    tess_peft_adapter adapter[TENSOR_MAX];
    int numel;
} adapters;

static void choose_modules(const sample *s, const tess_peft_spec *spec, adapters *out)
{
    out->numel = 0;
    for (int i = 0; i < s->tensor_numel; i++) {
        char *path = out->path[out->numel];
        tess_peft_match m = {.is_target = false};
        snprintf(path, NAME_MAX_NBYTES, "%s", s->name[i]);
        char *end = strstr(path, "_proj.weight");
        const bool is_head = strcmp(path, "lm_head.weight") == 0;
        if (end == NULL && !is_head)
            continue;
        *strrchr(path, '.') = '\0';
        const tess_peft_module module = {.path = path, .is_output_embedding = is_head};
        assert_ok(tess_peft_spec_match(spec, &module, &m));
        if (m.is_target)
            out->adapter[out->numel++] = (tess_peft_adapter){.path = path,
                                                             .rank = m.rank,
                                                             .in_numel = s->tensor[i].dim[1],
                                                             .out_numel = s->tensor[i].dim[0]};
    }
}

static void append_values(tess_peft_writer *w, const adapters *a, int idx, tess_peft_part part)
{
    char name[TESS_ST_NAME_MAX_NBYTES + 1];
    const tess_peft_adapter *x = &a->adapter[idx];
    const int64_t numel = x->rank * (part == TESS_PEFT_A ? x->in_numel : x->out_numel);
    assert_ok(tess_peft_tensor_name(x->path, part, name));
    for (int64_t i = 0; i < numel; i++) {
        const float value = value_of(name, i);
        assert_ok(tess_peft_writer_append(w, idx, part, &value, 4));
    }
}

static int write_and_expect_adapter(const fixture *f, const char *dir, const char *base,
                                    const sample *s)
{
    static adapters chosen;
    const tess_peft_options o = choose_targets(s->config.family);
    tess_peft_spec *spec = NULL;
    tess_peft_writer *w = NULL;
    tess_peft_dir *back = NULL;
    float last = 0.0f;
    assert_ok(tess_peft_spec_create(&o, &spec));
    choose_modules(s, spec, &chosen);
    const tess_peft_content content = {.spec = spec,
                                       .adapter = chosen.adapter,
                                       .adapter_numel = chosen.numel,
                                       .dt = TESS_F32,
                                       .identity = {.base_name = base, .base_quant = "bf16"}};
    assert_ok(tess_peft_writer_create(f->io, dir, &content, &w));
    for (int i = 0; i < chosen.numel; i++) {
        append_values(w, &chosen, i, TESS_PEFT_A);
        append_values(w, &chosen, i, TESS_PEFT_B);
    }
    assert_ok(tess_peft_writer_finish(w));
    tess_peft_writer_destroy(&w);
    assert_ok(tess_peft_dir_open(f->io, dir, &back));
    assert_int_equal(tess_peft_dir_adapter_numel(back), chosen.numel);
    for (int i = 0; i < chosen.numel; i++) {
        const tess_peft_module module = {.path = chosen.path[i]};
        tess_peft_match before = {.is_target = false}, after = {.is_target = false};
        char name[TESS_ST_NAME_MAX_NBYTES + 1];
        const tess_peft_adapter *a = tess_peft_dir_find(back, chosen.path[i]);
        assert_int_equal(a->rank, chosen.adapter[i].rank);
        assert_ok(tess_peft_spec_match(spec, &module, &before));
        assert_ok(tess_peft_spec_match(tess_peft_dir_spec(back), &module, &after));
        assert_true(before.scale == after.scale && after.is_target);
        const int64_t numel = a->rank * a->out_numel;
        assert_ok(tess_peft_tensor_name(a->path, TESS_PEFT_B, name));
        const tess_st_tensor *b = tess_peft_dir_tensor(back, name + strlen("base_model.model."));
        assert_ok(tess_peft_dir_read(back, b, (numel - 1) * 4, 4, &last));
        assert_true(last == value_of(name, numel - 1));
    }
    tess_peft_dir_close(&back);
    tess_peft_spec_destroy(&spec);
    return chosen.numel;
}

static void remove_sample(const fixture *f, const char *dir)
{
    static const char *const files[] = {"model.safetensors", "config.json",
                                        "adapter/adapter_config.json",
                                        "adapter/adapter_model.safetensors"};
    char path[512];
    for (int i = 0; i < TESS_NELEM(files); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        assert_ok(tess_io_unlink(f->io, path, false));
    }
    snprintf(path, sizeof path, "%s/adapter", dir);
    assert_ok(tess_io_rmdir(f->io, path));
    assert_ok(tess_io_rmdir(f->io, dir));
}

static void test_written_directories_read_back(void **state)
{
    const fixture *f = *state;
    static const int adapter_numel[] = {
        [TESS_LLM_LLAMA] = 14, [TESS_LLM_MISTRAL] = 4, [TESS_LLM_QWEN2] = 4, [TESS_LLM_QWEN3] = 2};
    static sample s;
    const char *kept = getenv("TESS_EXPORT_DIR");
    for (int i = 0; i < TESS_LLM_FAMILY_NUMEL; i++) {
        char dir[256], adapter[300];
        const char *family = tess_llm_family_name((tess_llm_family)i);
        snprintf(dir, sizeof dir, "%s/%s", kept != NULL ? kept : f->dir, family);
        snprintf(adapter, sizeof adapter, "%s/adapter", dir);
        make_sample(&s, (tess_llm_family)i);
        write_model(f, dir, &s);
        expect_model(f, dir, &s);
        assert_int_equal(write_and_expect_adapter(f, adapter, family, &s), adapter_numel[i]);
        if (kept == NULL)
            remove_sample(f, dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {format_test(test_written_directories_read_back)};
    return cmocka_run_group_tests_name("format.exports", tests, NULL, NULL);
}
