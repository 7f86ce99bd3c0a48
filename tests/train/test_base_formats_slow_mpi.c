/*
 * Every format that weights are quantized to on load: the same bits at every number of ranks though
 * tensors are cut anywhere, and after a resume with a quantizer that refuses, on models of three
 * kinds: odd sizes, all in-features multiples of 256, in-features that no block divides.
 */
#include <stdio.h>
#include <string.h>

#include "support/base_run.h"
#include "support/rank_test.h"

typedef struct model_kind {
    const char *name;
    int hidden_numel, intermediate_numel, layer_numel, head_dim;
    bool has_whole_blocks; /* GGUF formats go */
    const char *dtype;     /* of the weights: quanto's scales have it */
} model_kind;

static const model_kind kinds[] = {
    {"odd", 48, 80, 3, 8, false, "bfloat16"},
    {"multiples", 256, 256, 1, 64, true, "float32"},
    {"indivisible", 40, 72, 1, 10, false, "float16"},
};

typedef struct choice {
    const char *name, *format, *more[2];
    bool is_gguf;
} choice;

static const choice choices[] = {
    {"nf4", "base.format=nf4", {NULL}, false},
    {"fp4", "base.format=fp4", {"base.double_quant=false"}, false},
    {"int8", "base.format=int8", {NULL}, false},
    {"f16", "base.format=f16", {NULL}, false},
    {"q8_0", "base.format=q8_0", {NULL}, true},
    {"q4_0", "base.format=q4_0", {NULL}, true},
    {"qint8", "base.format=qint8", {NULL}, false},
    {"qfloat8", "base.format=qfloat8", {NULL}, false},
    {"qfloat8_e5m2", "base.format=qfloat8_e5m2", {NULL}, false},
    {"qint4", "base.format=qint4", {NULL}, false},
    {"int4-mse", "base.format=int4", {"base.rule=mse", "base.group_size=8"}, false},
    {"int2-hqq", "base.format=int2", {"base.rule=hqq"}, false},
    {"e4m3-raw", "base.format=e4m3", {"base.scaling=raw"}, false},
    {"e5m2-tensor", "base.format=e5m2", {"base.scaling=tensor"}, false},
    {"e4m3-row", "base.format=e4m3", {"base.scale_meaning=quant_scale"}, false},
};

static tess_status put_config(base_world *w, const model_kind *k)
{
    char text[1024], path[320];
    const int n = snprintf(
        text, sizeof text,
        "{\"model_type\": \"llama\", \"hidden_size\": %d, \"intermediate_size\": %d, "
        "\"num_hidden_layers\": %d, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": %d, \"vocab_size\": 61, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, "
        "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"max_position_embeddings\": "
        "512, \"bos_token_id\": 0, \"eos_token_id\": 1, \"torch_dtype\": \"%s\"}\n",
        k->hidden_numel, k->intermediate_numel, k->layer_numel, k->head_dim, k->dtype);
    snprintf(path, sizeof path, "%s/config.json", w->t.model);
    if (tess_comm_rank(w->comm) != 0)
        return tess_agree(w->comm, TESS_OK);
    return tess_agree(w->comm, tess_io_write_all(w->t.ctx.io, path, text, (size_t)n));
}

static base_life life_of(const choice *c, const char *name, const char *dtype)
{
    return (base_life){.name = name,
                       .overrides = {c->format, dtype, c->more[0], c->more[1]},
                       .may_quantize = true};
}

/* One rank alone, and a run that all ranks begin and one of them ends. */
static tess_status check_one(base_world *w, const model_kind *k, const choice *c, const char *dtype)
{
    static const char *const part[] = {"whole", "cut"};
    char name[2][96];
    for (int i = 0; i < 2; i++)
        snprintf(name[i], sizeof name[i], "%s-%s-%s-%s", k->name, c->name, part[i], dtype + 14);
    const base_life whole = life_of(c, name[0], dtype);
    base_life cut = life_of(c, name[1], dtype);
    TESS_TRY(base_check_cuts(w, &cut, false));
    TESS_TRY(base_live_alone(w, &whole));
    cut.is_stopped = true;
    TESS_TRY(base_live(w, w->comm, &cut));
    cut.is_stopped = cut.may_quantize = false;
    cut.group = "shard.gather_group=1";
    TESS_TRY(base_live_alone(w, &cut));
    return base_compare(w, cut.name, whole.name);
}

static tess_status check_formats(base_world *w)
{
    for (int k = 0; k < TESS_NELEM(kinds); k++) {
        TESS_TRY(put_config(w, &kinds[k]));
        for (int i = 0; i < TESS_NELEM(choices); i++)
            if (kinds[k].has_whole_blocks || !choices[i].is_gguf)
                TESS_TRY(check_one(w, &kinds[k], &choices[i], "compute.dtype=bf16"));
    }
    return TESS_OK;
}

/* A linear of int4 or int2 takes activations in f32 as it does in bf16. */
static tess_status check_int4_and_int2_take_f32_activations(base_world *w)
{
    TESS_TRY(put_config(w, &kinds[0]));
    for (int i = 0; i < TESS_NELEM(choices); i++)
        if (strstr(choices[i].name, "int4") != NULL || strstr(choices[i].name, "int2") != NULL)
            TESS_TRY(check_one(w, &kinds[0], &choices[i], "compute.dtype=f32"));
    return TESS_OK;
}

static tess_status check_refusals(base_world *w)
{
    const base_life l = {.name = "refused",
                         .overrides = {"base.format=int4", "base.group_size=32"}};
    return base_refuse(w, &l, TESS_E_CONFIG, "rows of 48 elements, which 32 does not divide");
}

static tess_status run_all(base_world *w)
{
    TESS_TRY(check_formats(w));
    TESS_TRY(check_int4_and_int2_take_f32_activations(w));
    return check_refusals(w);
}

static tess_status run(tess_comm *comm) { return base_world_run(comm, run_all); }

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
