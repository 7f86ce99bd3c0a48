/* Sizes of a FLUX.1 transformer from config.json and from shapes of weights. */
#include "format_test.h"

#include "core/arith.h"
#include "format/flux_config.h"

static const char dev[] =
    "{\"_class_name\": \"FluxTransformer2DModel\", \"_diffusers_version\": \"0.30.0.dev0\", "
    "\"attention_head_dim\": 128, \"guidance_embeds\": true, \"in_channels\": 64, "
    "\"joint_attention_dim\": 4096, \"num_attention_heads\": 24, \"num_layers\": 19, "
    "\"num_single_layers\": 38, \"patch_size\": 1, \"pooled_projection_dim\": 768}";

static tess_status parse(const char *text, tess_flux_config *out)
{
    tess_json *root = NULL;
    assert_ok(tess_json_parse("config.json", text, strlen(text), &root));
    const tess_status st = tess_flux_config_parse(root, out);
    tess_json_destroy(&root);
    return st;
}

/* `text` with one member replaced. */
static const char *with(const char *from, const char *to)
{
    static char text[1024];
    const char *at = strstr(dev, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - dev), dev, to, at + strlen(from));
    return text;
}

static void test_published_config_is_read(void **state)
{
    tess_flux_config c, again;
    tess_json *root = NULL;
    char *text = NULL;
    (void)state;
    assert_ok(parse(dev, &c));
    assert_int_equal(c.out_channels, 64);
    assert_int_equal(c.head_numel * c.head_dim, 3072);
    assert_int_equal(c.axis_dim[0] + c.axis_dim[1] + c.axis_dim[2], 128);
    assert_true(c.has_guidance);
    assert_ok(tess_flux_config_json(&c, &root));
    assert_true(tess_flux_config_is(root));
    assert_ok(tess_json_dump(root, 2, &text, NULL));
    assert_ok(parse(text, &again));
    assert_memory_equal(&again, &c, sizeof c);
    tess_free(text);
    tess_json_destroy(&root);
    assert_ok(parse(with("\"in_channels\": 64", "\"in_channels\": 128, \"out_channels\": 64"), &c));
    assert_int_equal(c.in_channels, 128);
    assert_int_equal(c.out_channels, 64);
    assert_ok(
        parse(with("\"in_channels\": 64", "\"in_channels\": 64, \"out_channels\": null"), &c));
    assert_int_equal(c.out_channels, 64);
    assert_ok(parse(with("\"guidance_embeds\": true, ", ""), &c));
    assert_false(c.has_guidance); /* schnell, and the class's default */
}

static void test_what_does_not_fit_is_refused(void **state)
{
    tess_flux_config c;
    (void)state;
    assert_refused(parse(with("\"patch_size\": 1", "\"patch_size\": 2"), &c), TESS_E_UNSUPPORTED,
                   "config.json", "patch_size", "expected 1, found 2");
    assert_refused(parse(with("\"num_layers\": 19, ", ""), &c), TESS_E_FORMAT, "num_layers");
    assert_refused(parse(with("\"attention_head_dim\": 128", "\"attention_head_dim\": 64"), &c),
                   TESS_E_CONFIG, "axes_dims_rope", "64", "128");
    assert_refused(
        parse(with("\"patch_size\": 1", "\"patch_size\": 1, \"axes_dims_rope\": [16, 55, 57]"), &c),
        TESS_E_CONFIG, "axes_dims_rope[1]", "even number, found 55");
    assert_refused(
        parse(with("\"patch_size\": 1", "\"patch_size\": 1, \"axes_dims_rope\": [64, 64]"), &c),
        TESS_E_FORMAT, "axes_dims_rope", "expected 3 numbers, found 2");
    assert_refused(parse(with("\"num_attention_heads\": 24", "\"num_attention_heads\": 0"), &c),
                   TESS_E_CONFIG, "num_attention_heads");
}

/* ---- from weights ---- */

typedef struct tensor {
    const char *name;
    int rank;
    int64_t dim[2];
} tensor;

static const tensor schnell[] = {
    {"x_embedder.weight", 2, {3072, 64}},
    {"proj_out.weight", 2, {64, 3072}},
    {"context_embedder.weight", 2, {3072, 4096}},
    {"time_text_embed.text_embedder.linear_1.weight", 2, {3072, 768}},
    {"transformer_blocks.0.attn.norm_q.weight", 1, {128}},
    {"transformer_blocks.1.attn.norm_q.weight", 1, {128}},
    {"single_transformer_blocks.0.attn.norm_q.weight", 1, {128}},
};

typedef struct weights {
    tensor list[8];
    int numel;
} weights;

static int shape_of(void *arg, const char *name, int64_t dim[8])
{
    const weights *w = arg;
    for (int i = 0; i < w->numel; i++) {
        if (strcmp(w->list[i].name, name) != 0)
            continue;
        memcpy(dim, w->list[i].dim, sizeof w->list[i].dim);
        return w->list[i].rank;
    }
    return -1;
}

static weights weights_of(void)
{
    weights w = {.numel = TESS_NELEM(schnell)};
    memcpy(w.list, schnell, sizeof schnell);
    return w;
}

static void test_weights_tell_the_sizes(void **state)
{
    weights w = weights_of();
    tess_flux_config c;
    (void)state;
    assert_ok(tess_flux_config_find("flux1.safetensors", shape_of, &w, &c));
    assert_int_equal(c.double_numel, 2);
    assert_int_equal(c.single_numel, 1);
    assert_int_equal(c.head_numel, 24);
    assert_int_equal(c.pooled_dim, 768);
    assert_int_equal(c.axis_dim[1], 56);
    assert_false(c.has_guidance);
    w.list[w.numel++] =
        (tensor){"time_text_embed.guidance_embedder.linear_1.weight", 2, {3072, 256}};
    assert_ok(tess_flux_config_find("flux1.safetensors", shape_of, &w, &c));
    assert_true(c.has_guidance);
}

static void test_weights_that_do_not_tell_are_refused(void **state)
{
    weights w = weights_of();
    tess_flux_config c;
    (void)state;
    w.list[1].rank = 1;
    assert_refused(tess_flux_config_find("a.gguf", shape_of, &w, &c), TESS_E_FORMAT, "'a.gguf'",
                   "'proj_out.weight'", "expected 2 dimensions, found 1");
    w = weights_of();
    w.list[2].name = "other";
    assert_refused(tess_flux_config_find("a.gguf", shape_of, &w, &c), TESS_E_FORMAT,
                   "'context_embedder.weight' is missing");
    w = weights_of();
    w.list[4].dim[0] = 16;
    assert_refused(tess_flux_config_find("a.gguf", shape_of, &w, &c), TESS_E_UNSUPPORTED,
                   "heads of 16", "config.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_config_is_read),
        cmocka_unit_test(test_what_does_not_fit_is_refused),
        cmocka_unit_test(test_weights_tell_the_sizes),
        cmocka_unit_test(test_weights_that_do_not_tell_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
