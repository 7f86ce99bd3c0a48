/* Language models: PEFT directories and GGUF files, one into the other. */
#include "adapter_case.h"

#include "format/gguf_llm.h"
#include "format/peft.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/format/"

enum { HEAD = 8, IN = 6, R = 2 };

static void base_of(const fixture *f, tess_llm_config *c)
{
    assert_ok(tess_hf_config_read(f->io, GOLDEN "model", c));
}

/* A llama with two heads of 8 rows in q, one in k. */
static tess_llm_config small_llama(void)
{
    return (tess_llm_config){
        .family = TESS_LLM_MISTRAL, .head_numel = 2, .kv_head_numel = 1, .head_dim = HEAD};
}

static tess_adapter *convert_to(const fixture *f, const tess_adapter *from, const char *name,
                                const tess_adapter_target *to)
{
    char path[256];
    assert_ok(tess_adapter_write(f->io, from, to, at(f, name)));
    snprintf(path, sizeof path, "%s%s", at(f, name),
             to->dialect == TESS_ADAPTER_GGUF ? "/adapter.gguf" : "");
    return case_open(f, path, to->base);
}

/* peft's own file, with rank_pattern and alpha_pattern: no one alpha holds for all modules, so that
 * the GGUF file has it in B, rounded once. */
static void test_peft_and_gguf_keep_the_update(void **state)
{
    const fixture *f = *state;
    const tess_dtype dts[] = {TESS_F32, TESS_BF16, TESS_F16};
    tess_llm_config base;
    base_of(f, &base);
    tess_adapter *peft = case_open(f, GOLDEN "adapter", NULL);
    assert_int_equal(tess_adapter_dialect_of(peft), TESS_ADAPTER_PEFT);
    assert_false(tess_adapter_is_flux(peft));
    assert_int_equal(tess_adapter_numel(peft), 12);
    assert_string_equal(tess_adapter_base_name(peft), "tiny");
    for (int i = 0; i < TESS_NELEM(dts); i++) {
        const tess_adapter_target gguf = {TESS_ADAPTER_GGUF, dts[i], &base};
        const tess_adapter_target back = {TESS_ADAPTER_PEFT, dts[i], &base};
        tess_adapter *once = convert_to(f, peft, "gguf", &gguf);
        tess_adapter *twice = convert_to(f, once, "peft", &back);
        /* The source is f32: A and B are rounded, and B with its fold at once. */
        case_compare(peft, once, unit_of(dts[i]), 2);
        case_compare(peft, twice, unit_of(dts[i]), 2);
        assert_string_equal(tess_adapter_base_name(twice), "tiny");
        tess_adapter_close(&once);
        tess_adapter_close(&twice);
        case_remove(f, at(f, "gguf"));
        case_remove(f, at(f, "peft"));
    }
    tess_adapter_close(&peft);
}

static void test_peft_again_keeps_its_options(void **state)
{
    const fixture *f = *state;
    const tess_adapter_target to = {.dialect = TESS_ADAPTER_PEFT, .dt = TESS_F32};
    tess_peft_dir *dir = NULL;
    tess_adapter *peft = case_open(f, GOLDEN "adapter", NULL);
    tess_adapter *again = convert_to(f, peft, "again", &to);
    case_compare(peft, again, 0.0, 0);
    assert_ok(tess_peft_dir_open(f->io, at(f, "again"), &dir));
    const tess_peft_options *o = tess_peft_spec_options(tess_peft_dir_spec(dir));
    assert_int_equal(o->rank, 4);
    assert_true(o->alpha == 6.0);
    assert_int_equal(o->rank_pattern_numel, 1);
    assert_int_equal(o->alpha_pattern_numel, 1);
    assert_string_equal(o->excludes.name[0], "down_proj");
    tess_peft_dir_close(&dir);
    tess_adapter_close(&again);
    tess_adapter_close(&peft);
    case_remove(f, at(f, "again"));
}

/* ---- one alpha, interleaved rows ---- */

typedef struct gguf_case {
    tess_gguf_tensor tensor[8];
    int64_t numel;
    double alpha;
    const char *arch, *type;
} gguf_case;

static void add_gguf(gguf_case *g, const char *name, int64_t rows, int64_t cols)
{
    g->tensor[g->numel++] = (tess_gguf_tensor){
        .name = name, .format = TESS_FORMAT_F32, .dim_numel = 2, .dim = {rows, cols}};
}

static gguf_case whole_case(void)
{
    gguf_case g = {.alpha = 3.0, .arch = "llama", .type = "adapter"};
    add_gguf(&g, "blk.0.attn_q.weight.lora_a", R, IN);
    add_gguf(&g, "blk.0.attn_q.weight.lora_b", 2 * HEAD, R);
    add_gguf(&g, "blk.0.attn_k.weight.lora_a", R + 1, IN);
    add_gguf(&g, "blk.0.attn_k.weight.lora_b", HEAD, R + 1);
    add_gguf(&g, "blk.11.ffn_down.weight.lora_a", R, IN);
    add_gguf(&g, "blk.11.ffn_down.weight.lora_b", HEAD, R);
    return g;
}

static const char *put_gguf(const fixture *f, const gguf_case *g)
{
    const tess_gguf_pair pair[] = {
        {"general.type", {.kind = TESS_GGUF_STRING, .text = g->type}},
        {"general.architecture", {.kind = TESS_GGUF_STRING, .text = g->arch}},
        {"adapter.type", {.kind = TESS_GGUF_STRING, .text = "lora"}},
        {"adapter.lora.alpha", {.kind = TESS_GGUF_F32, .f64 = g->alpha}},
        {"tessera.base.quant", {.kind = TESS_GGUF_STRING, .text = "q4_k"}}};
    const char *path = at(f, "source.gguf");
    tess_gguf_writer *w = NULL;
    assert_ok(
        tess_gguf_writer_create(f->io, path, pair, TESS_NELEM(pair), g->tensor, g->numel, &w));
    for (int64_t i = 0; i < g->numel; i++)
        for (int64_t k = 0; k < g->tensor[i].dim[0] * g->tensor[i].dim[1]; k++) {
            const float x = case_value(g->tensor[i].name, k);
            if (g->tensor[i].format == TESS_FORMAT_F32)
                assert_ok(tess_gguf_writer_append(w, i, &x, sizeof x));
        }
    for (int64_t i = 0; i < g->numel; i++) {
        char zero[64] = {0};
        if (g->tensor[i].format != TESS_FORMAT_F32)
            assert_ok(tess_gguf_writer_append(w, i, zero, 34));
    }
    assert_ok(tess_gguf_writer_finish(w));
    tess_gguf_writer_destroy(&w);
    return path;
}

static void test_gguf_rows_come_back_in_order(void **state)
{
    const fixture *f = *state;
    const tess_llm_config base = small_llama();
    const gguf_case g = whole_case();
    tess_adapter *a = case_open(f, put_gguf(f, &g), &base);
    const int64_t q = tess_adapter_find(a, "model.layers.0.self_attn.q_proj");
    const int64_t down = tess_adapter_find(a, "model.layers.11.mlp.down_proj");
    float *b = case_read(a, q, TESS_ADAPTER_B);
    for (int64_t row = 0; row < 2 * HEAD; row++) { /* row i of a head: 2i, or 2(i - 4) + 1 */
        const int64_t i = row % HEAD;
        const int64_t in_file = row - i + (i < HEAD / 2 ? 2 * i : 2 * (i - HEAD / 2) + 1);
        for (int64_t k = 0; k < R; k++)
            assert_true(b[row * R + k] ==
                        case_value("blk.0.attn_q.weight.lora_b", in_file * R + k));
    }
    free(b);
    b = case_read(a, down, TESS_ADAPTER_B);
    assert_true(b[R] == case_value("blk.11.ffn_down.weight.lora_b", R));
    free(b);
    assert_true(tess_adapter_at(a, q)->alpha == 3.0);
    assert_string_equal(tess_adapter_metadata(a, "base.quant"), "q4_k");
    tess_adapter_close(&a);
}

/* The same alpha everywhere needs no fold: nothing changes, through peft and back. */
static void test_gguf_through_peft_is_the_same(void **state)
{
    const fixture *f = *state;
    const tess_llm_config base = small_llama();
    const gguf_case g = whole_case();
    const tess_adapter_target peft = {TESS_ADAPTER_PEFT, TESS_F32, &base};
    const tess_adapter_target gguf = {TESS_ADAPTER_GGUF, TESS_F32, &base};
    tess_adapter *a = case_open(f, put_gguf(f, &g), &base);
    tess_adapter *once = convert_to(f, a, "peft", &peft);
    tess_adapter *twice = convert_to(f, once, "gguf", &gguf);
    case_compare(a, once, 0.0, 0);
    tess_gguf *file = NULL;
    double alpha = 0.0;
    char path[256];
    snprintf(path, sizeof path, "%s/adapter.gguf", at(f, "gguf"));
    assert_ok(tess_gguf_open(f->io, path, &file));
    assert_ok(tess_gguf_get_f64(file, "adapter.lora.alpha", &alpha));
    assert_true(alpha == 3.0);
    assert_int_equal(tess_gguf_tensor_numel(file), g.numel);
    for (int64_t i = 0; i < g.numel; i++) {
        const tess_gguf_tensor *t = tess_gguf_find(file, g.tensor[i].name);
        float value[256];
        assert_ok(tess_gguf_read(file, t, 0, (size_t)t->nbytes, value));
        for (int64_t k = 0; k < t->numel; k++)
            assert_true(value[k] == case_value(g.tensor[i].name, k));
    }
    const char *quant = NULL;
    assert_ok(tess_gguf_get_text(file, "tessera.base.quant", &quant));
    assert_string_equal(quant, "q4_k");
    tess_gguf_close(&file);
    tess_adapter_close(&twice);
    tess_adapter_close(&once);
    tess_adapter_close(&a);
    case_remove(f, at(f, "peft"));
    case_remove(f, at(f, "gguf"));
}

/* alpha / sqrt(r) of rslora is alpha sqrt(r) over r, which every tool understands. */
static void test_rslora_becomes_alpha(void **state)
{
    const fixture *f = *state;
    tess_llm_config base;
    char dir[256], text[1024];
    base_of(f, &base);
    snprintf(dir, sizeof dir, "%s", at(f, "rslora"));
    assert_ok(tess_io_mkdirs(f->io, dir));
    case_file c = {.dtype = TESS_ST_BF16};
    case_add(&c, "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", 3, IN);
    case_add(&c, "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", 5, 3);
    snprintf(text, sizeof text, "%s/adapter_model.safetensors", dir);
    case_write(f, &c, text, NULL, 0);
    put_text(f, "rslora/adapter_config.json",
             "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 5, \"use_rslora\": true, "
             "\"target_modules\": [\"up_proj\"]}");
    tess_adapter *a = case_open(f, dir, NULL);
    assert_true(fabs(tess_adapter_at(a, 0)->alpha - 5.0 * sqrt(3.0)) < 1e-14);
    const tess_adapter_target gguf = {TESS_ADAPTER_GGUF, TESS_BF16, &base};
    tess_adapter *once = convert_to(f, a, "gguf", &gguf);
    case_compare(a, once, 0.0, 0); /* unfolded: only alpha is rounded, to f32 */
    tess_adapter_close(&once);
    tess_adapter_close(&a);
    case_remove(f, at(f, "gguf"));
    case_remove(f, dir);
}

/* With an adapter of lm_head peft saves the weight below it too, which is no module that was
 * trained whole. */
static void test_copy_of_a_base_weight_stays_behind(void **state)
{
    const fixture *f = *state;
    const tess_adapter_dialect dialect[] = {TESS_ADAPTER_PEFT, TESS_ADAPTER_GGUF};
    tess_llm_config base;
    char dir[256], text[1024];
    base_of(f, &base);
    snprintf(dir, sizeof dir, "%s", at(f, "head"));
    assert_ok(tess_io_mkdirs(f->io, dir));
    case_file c = {.dtype = TESS_ST_F32};
    case_add(&c, "base_model.model.lm_head.lora_A.weight", 3, IN);
    case_add(&c, "base_model.model.lm_head.lora_B.weight", 5, 3);
    case_add(&c, "base_model.model.lm_head.base_layer.weight", 5, IN);
    snprintf(text, sizeof text, "%s/adapter_model.safetensors", dir);
    case_write(f, &c, text, NULL, 0);
    put_text(f, "head/adapter_config.json",
             "{\"peft_type\": \"LORA\", \"r\": 3, \"target_modules\": [\"lm_head\"]}");
    tess_adapter *a = case_open(f, dir, NULL);
    for (int i = 0; i < TESS_NELEM(dialect); i++) {
        const tess_adapter_target to = {dialect[i], TESS_F32, &base};
        tess_adapter *once = convert_to(f, a, "out", &to);
        case_compare(a, once, 0.0, 0);
        tess_adapter_close(&once);
        case_remove(f, at(f, "out"));
    }
    tess_adapter_close(&a);
    case_remove(f, dir);
}

/* ---- refusals ---- */

static tess_status try_gguf(const fixture *f, const gguf_case *g, const tess_llm_config *base)
{
    const tess_adapter_options options = {.base = base};
    tess_adapter *a = NULL;
    const char *path = put_gguf(f, g);
    tess_error_clear();
    const tess_status st = tess_adapter_open(f->io, path, &options, &a);
    tess_adapter_close(&a);
    return st;
}

static void test_gguf_bad_files_are_refused(void **state)
{
    const fixture *f = *state;
    tess_llm_config base = small_llama();
    gguf_case g = whole_case();
    tess_adapter *a = case_open(f, put_gguf(f, &g), NULL);
    const int64_t q = tess_adapter_find(a, "model.layers.0.self_attn.q_proj");
    float value[2 * HEAD * R];
    assert_ok(tess_adapter_read(a, q, TESS_ADAPTER_A, value));
    assert_refused(tess_adapter_read(a, q, TESS_ADAPTER_B, value), TESS_E_CONFIG,
                   "interleaved by heads", "--base");
    tess_adapter_close(&a);
    base.family = TESS_LLM_QWEN3;
    assert_refused(try_gguf(f, &g, &base), TESS_E_CONFIG, "architecture 'llama'", "'qwen3'");
    base = small_llama();
    base.head_dim = 6;
    assert_refused(try_gguf(f, &g, &base), TESS_E_FORMAT, "not whole heads of 6");
    base = small_llama();
    g.type = "model";
    assert_refused(try_gguf(f, &g, &base), TESS_E_UNSUPPORTED, "'general.type' is 'model'");
    g = whole_case();
    g.alpha = -1.0;
    assert_refused(try_gguf(f, &g, &base), TESS_E_FORMAT, "adapter.lora.alpha", "found -1");
    g = whole_case();
    g.numel = 1;
    assert_refused(try_gguf(f, &g, &base), TESS_E_FORMAT, "has no 'blk.0.attn_q.weight.lora_b'");
    g = whole_case();
    add_gguf(&g, "blk.1.ffn_up.weight.lora_b", HEAD, R);
    assert_refused(try_gguf(f, &g, &base), TESS_E_FORMAT, "3 tensors lora_a, 4 tensors lora_b");
    g = whole_case();
    add_gguf(&g, "blk.1.ffn_up.weight", HEAD, R);
    assert_refused(try_gguf(f, &g, &base), TESS_E_UNSUPPORTED, "'blk.1.ffn_up.weight'");
    g = whole_case();
    g.tensor[1].dim[1] = R + 1;
    assert_refused(try_gguf(f, &g, &base), TESS_E_FORMAT, "ranks differ");
    g = (gguf_case){.alpha = 3.0, .arch = "llama", .type = "adapter"};
    add_gguf(&g, "token_embd.weight.lora_a", R, IN);
    add_gguf(&g, "token_embd.weight.lora_b", HEAD, R);
    assert_refused(try_gguf(f, &g, &base), TESS_E_UNSUPPORTED, "adapts no linear layer");
    g = (gguf_case){.alpha = 3.0, .arch = "llama", .type = "adapter"};
    add_gguf(&g, "blk.0.ffn_up.weight.lora_a", 1, 32);
    add_gguf(&g, "blk.0.ffn_up.weight.lora_b", HEAD, 1);
    g.tensor[0].format = TESS_FORMAT_Q8_0;
    assert_refused(try_gguf(f, &g, &base), TESS_E_UNSUPPORTED, "expected f32, f16 or bf16",
                   "found q8_0");
}

static void test_write_without_base_is_refused(void **state)
{
    const fixture *f = *state;
    tess_adapter *a = case_open(f, GOLDEN "adapter", NULL);
    const tess_adapter_target gguf = {.dialect = TESS_ADAPTER_GGUF, .dt = TESS_BF16};
    const tess_adapter_target kohya = {.dialect = TESS_ADAPTER_KOHYA, .dt = TESS_BF16};
    assert_refused(tess_adapter_write(f->io, a, &gguf, at(f, "out")), TESS_E_CONFIG,
                   "architecture and heads", "--base");
    assert_refused(tess_adapter_write(f->io, a, &kohya, at(f, "out")), TESS_E_UNSUPPORTED,
                   "no linear layer of FLUX.1", "peft or gguf");
    tess_adapter_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_peft_and_gguf_keep_the_update),
        format_test(test_peft_again_keeps_its_options),
        format_test(test_gguf_rows_come_back_in_order),
        format_test(test_gguf_through_peft_is_the_same),
        format_test(test_rslora_becomes_alpha),
        format_test(test_copy_of_a_base_weight_stays_behind),
        format_test(test_gguf_bad_files_are_refused),
        format_test(test_write_without_base_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
