#include "train/describe/describe.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/text.h"
#include "format/regex.h"
#include "train/describe/base_formats_priv.h"
#include "train/describe/describe_flux.h"
#include "train/describe/describe_priv.h"
#include "train/describe/describe_rqvae.h"

enum { CONFIG_LIMIT_NBYTES = 4 << 20 };
static const char embedding_name[] = "model.embed_tokens.weight";

/* ---- model ---- */

static tess_status check_family(const tess_description *d, const char *path)
{
    const tess_run_family family = d->run->model.family;
    TESS_CHECK(family == TESS_RUN_FAMILY_AUTO || (int)family - 1 == (int)d->config.family,
               TESS_E_CONFIG,
               "model.family: the run file's choice differs from model_type '%s' of '%s'",
               tess_llm_family_name(d->config.family), path);
    return TESS_OK;
}

static tess_status read_config(const tess_ctx *ctx, tess_description *d)
{
    char path[PATH_MAX], kept[PATH_MAX];
    bool is_there = false;
    size_t text_nbytes = 0;
    if (tess_gguf_is_path(d->run->model.path)) { /* never a config.json that lies beside it */
        TESS_TRY(describe_find_kept(ctx, d->run, kept, &is_there));
        TESS_CHECK(is_there, TESS_E_CONFIG,
                   "model.path: '%s' is missing, and '%s' holds nothing to go on from",
                   d->run->model.path, d->run->output.dir);
        TESS_CHECK(snprintf(path, sizeof path, "%s/config.json", kept) < (int)sizeof path,
                   TESS_E_CONFIG, "path of %zu bytes is too long", strlen(kept));
    } else {
        TESS_TRY(tess_describe_file(ctx, d->run, "config.json", path, &is_there));
    }
    TESS_CHECK(
        is_there, TESS_E_CONFIG,
        "model.path: '%s' has no config.json and '%s' keeps no copy of it; give a Hugging Face "
        "model directory or a GGUF file",
        d->run->model.path, d->run->output.dir);
    TESS_TRY(tess_io_read_all(ctx->io, path, CONFIG_LIMIT_NBYTES, &d->config_text, &text_nbytes));
    TESS_TRY(tess_json_parse(path, d->config_text, text_nbytes, &d->config_root));
    TESS_TRY(tess_hf_config_parse(d->config_root, &d->config));
    memcpy(d->dtype_hint, d->config.dtype_hint, sizeof d->dtype_hint);
    return check_family(d, path);
}

/* Files may also hold tables of positions and the like, in dtypes that no weight has. */
static bool is_weight(const tess_model_tensor *t)
{
    return t->gguf != NULL || t->packed != NULL || t->st->dtype == TESS_ST_F32 ||
           t->st->dtype == TESS_ST_BF16 || t->st->dtype == TESS_ST_F16;
}

tess_status describe_add_formats(const tess_description *d, tess_json *root)
{
    tess_json *formats = NULL;
    TESS_TRY(tess_json_add_object(root, TESS_BASE_FORMATS_KEY, &formats));
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(d->dir); i++) {
        const tess_model_tensor *t = tess_model_dir_at(d->dir, i);
        tess_codec codec;
        char text[TESS_CODEC_TEXT_NBYTES];
        if (!is_weight(t))
            continue;
        TESS_TRY(tess_model_tensor_codec(t, &codec));
        codec = tess_base_kept(t, codec);
        tess_codec_describe(&codec, text);
        TESS_TRY(tess_json_add_string(formats, t->name, text));
    }
    return TESS_OK;
}

/* config.json of a model that has none: its configuration, and how its tensors are kept. */
static tess_status make_config(tess_description *d)
{
    size_t text_nbytes = 0;
    TESS_TRY(tess_gguf_llm_config(tess_model_dir_gguf(d->dir), &d->config));
    memcpy(d->dtype_hint, d->config.dtype_hint, sizeof d->dtype_hint);
    TESS_TRY(check_family(d, d->run->model.path));
    TESS_TRY(tess_hf_config_json(&d->config, "bfloat16", &d->config_root));
    TESS_TRY(describe_add_formats(d, d->config_root));
    return tess_json_dump(d->config_root, 2, &d->config_text, &text_nbytes);
}

tess_status describe_is_as_hinted(const tess_description *d, bool *out)
{
    const tess_codec hinted = tess_base_hinted(d);
    *out = true;
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(d->dir) && *out; i++) {
        const tess_model_tensor *t = tess_model_dir_at(d->dir, i);
        tess_codec codec;
        if (!is_weight(t))
            continue;
        TESS_TRY(tess_model_tensor_codec(t, &codec));
        codec = tess_base_kept(t, codec);
        *out = tess_codec_is_equal(&codec, &hinted);
    }
    return TESS_OK;
}

/* The config.json, with how tensors are kept that it does not describe itself. */
static tess_status extend_config(tess_description *d)
{
    tess_json *root = NULL;
    char *text = NULL;
    size_t text_nbytes = 0;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < tess_json_numel(d->config_root) && st == TESS_OK; i++) {
        const tess_json *member = tess_json_at(d->config_root, i);
        if (strcmp(tess_json_key(member), TESS_BASE_FORMATS_KEY) != 0)
            st = tess_json_add_copy(root, tess_json_key(member), member);
    }
    if (st == TESS_OK)
        st = describe_add_formats(d, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 2, &text, &text_nbytes);
    if (st != TESS_OK) {
        tess_json_destroy(&root);
        return st;
    }
    tess_json_destroy(&d->config_root);
    tess_free(d->config_text);
    d->config_root = root;
    d->config_text = text;
    return TESS_OK;
}

/* Weights and config.json agree on whether bitsandbytes has packed them, and what only the weights
 * tell is added to it. */
static tess_status check_packed(tess_description *d)
{
    const tess_json *stated = tess_json_find(d->config_root, "quantization_config");
    const bool is_stated = stated != NULL && tess_json_type_of(stated) != TESS_JSON_NULL;
    bool is_packed = false, is_plain = false;
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(d->dir) && !is_packed; i++)
        is_packed = tess_model_dir_at(d->dir, i)->packed != NULL;
    TESS_CHECK(is_packed || !is_stated, TESS_E_FORMAT,
               "model.path: '%s': config.json has a quantization_config, but no tensor is packed; "
               "remove it (Tessera quantizes while it loads, see base.format)",
               d->run->model.path);
    TESS_TRY(describe_is_as_hinted(d, &is_plain));
    return is_plain ? TESS_OK : extend_config(d);
}

static tess_status open_gguf(const tess_ctx *ctx, tess_description *d)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(ctx->io, d->run->model.path, &kind, &nbytes));
    if (kind == TESS_IO_MISSING) /* a run that was begun goes on with what it kept */
        return read_config(ctx, d);
    TESS_TRY(tess_model_dir_open(ctx, d->run->model.path, &d->dir));
    return make_config(d);
}

/* Weights are looked for only where the run reads them. A run that was begun before (it keeps a
 * copy of the config) may do without: what it quantized lies with its checkpoints. */
static tess_status open_weights(const tess_ctx *ctx, tess_description *d)
{
    char kept[PATH_MAX];
    bool has_single = false, has_index = false, was_begun = false;
    if (d->run->model.init == TESS_RUN_INIT_RANDOM)
        return TESS_OK;
    TESS_TRY(describe_is_file(ctx, d->run->model.path, "model.safetensors", &has_single));
    TESS_TRY(describe_is_file(ctx, d->run->model.path, "model.safetensors.index.json", &has_index));
    TESS_TRY(describe_find_kept(ctx, d->run, kept, &was_begun));
    if (!has_single && !has_index && was_begun)
        return TESS_OK;
    TESS_CHECK(has_single || has_index, TESS_E_CONFIG,
               "model.path: '%s' has no weights, neither model.safetensors nor "
               "model.safetensors.index.json; to plan without them set model.init=random",
               d->run->model.path);
    TESS_TRY(tess_model_dir_open(ctx, d->run->model.path, &d->dir));
    return check_packed(d);
}

static tess_status compile_overrides(const tess_run *run, tess_base_choices *c)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(run->base.overrides.item_numel, sizeof *c->override, &array));
    c->override = array;
    for (int64_t i = 0; i < run->base.overrides.item_numel; i++)
        TESS_TRY(tess_regex_create(run->base.overrides.item[i].match, &c->override[i]));
    return TESS_OK;
}

static tess_status make_model(tess_description *d, const tess_kernels *kernels)
{
    const tess_run *run = d->run;
    tess_base_choices c = {.d = d};
    tess_status st = compile_overrides(run, &c);
    const tess_model_options options = {
        .compute_dt = run->compute.dtype == TESS_RUN_DTYPE_F32 ? TESS_F32 : TESS_BF16,
        .is_full = run->train.mode == TESS_RUN_MODE_FULL,
        .is_random = run->model.init == TESS_RUN_INIT_RANDOM,
        .sequence_length = run->data.sequence_length,
        .micro_batch = run->train.micro_batch,
        .thread_numel = (int)run->compute.threads,
        .kernels = kernels,
        .dropout = run->lora.dropout,
        .lora_plus_ratio = run->lora.plus_ratio,
        .start = describe_lora_start(run),
        .arg = &c,
        .lora_of = describe_lora_of,
        .is_saved = describe_is_saved,
        .codec_of = tess_run_is_flux(run) ? tess_flux_codec_of : tess_base_codec_of,
        .source_of = tess_base_source_of,
    };
    d->is_base_as_source = true;
    tess_registry_init(&d->registry, options.compute_dt);
    if (st == TESS_OK)
        st = tess_run_is_flux(run)
                 ? tess_flux_create(&d->flux, &d->flux_shape, &options, &d->registry, &d->model)
                 : tess_llama_create(&d->config, &options, &d->registry, &d->model);
    for (int64_t i = 0; c.override != NULL && i < run->base.overrides.item_numel; i++)
        tess_regex_destroy(&c.override[i]);
    tess_free(c.override);
    return st;
}

/* ---- what the files hold besides ---- */

/* Whether a tensor belongs to a module of the model: what it holds would take part in a forward. */
static bool is_of_module(const tess_description *d, const char *name)
{
    static const char *const module[] = {"model.embed_tokens.", "model.norm.", "lm_head."};
    /* How caches and inputs are rounded elsewhere: weights do not depend on it. */
    static const char *const scale[] = {".input_scale", ".output_scale", ".q_scale", ".k_scale",
                                        ".v_scale"};
    long long layer = -1;
    for (int i = 0; i < TESS_NELEM(scale); i++)
        if (tess_ends_with(name, scale[i]))
            return false;
    for (int i = 0; i < TESS_NELEM(module); i++)
        if (strncmp(name, module[i], strlen(module[i])) == 0)
            return true;
    return sscanf(name, "model.layers.%9lld.", &layer) == 1 && layer < d->config.layer_numel;
}

/* The head of a tied model may lie in its files too; then it has to be the embedding. */
static const tess_model_tensor *find_tied_head(const tess_description *d)
{
    return d->dir != NULL && !tess_run_is_flux(d->run) && d->config.is_tied
               ? tess_model_dir_find(d->dir, "lm_head.weight")
               : NULL;
}

static tess_status check_tied_head(const tess_description *d)
{
    const tess_model_tensor *head = find_tied_head(d);
    if (head == NULL)
        return TESS_OK;
    return tess_model_dir_same(d->dir, head, tess_model_dir_find(d->dir, embedding_name),
                               "but config.json ties them (tie_word_embeddings): set it to false "
                               "there, or take the tensor out");
}

/* A config.json that describes less than the files hold is not theirs. */
static tess_status check_left(const tess_ctx *ctx, const tess_description *d)
{
    const tess_model_tensor *t = NULL, *first = NULL;
    int64_t numel = 0;
    for (int64_t i = 0; (t = tess_model_dir_unclaimed(d->dir, i)) != NULL; i++) {
        if (t == find_tied_head(d))
            continue;
        TESS_CHECK(!is_of_module(d, t->name), TESS_E_FORMAT,
                   "model.path: '%s': tensor '%s' has no place in the %s model that config.json "
                   "describes; give the config.json that belongs to the weights, or take the "
                   "tensor out",
                   d->run->model.path, t->name, tess_llm_family_name(d->config.family));
        first = first == NULL ? t : first;
        numel++;
    }
    if (first != NULL)
        tess_log_root(&ctx->log, TESS_LOG_WARN,
                      "tensors_left_out path=%s numel=%" PRId64 " first=%s", d->run->model.path,
                      numel, first->name);
    return TESS_OK;
}

static tess_status check_weights(const tess_ctx *ctx, tess_description *d)
{
    if (d->dir == NULL || d->run->model.init == TESS_RUN_INIT_RANDOM)
        return TESS_OK;
    for (int i = 0; i < d->registry.param_numel; i++) {
        const tess_param *p = &d->registry.param[i];
        const tess_model_tensor *found = NULL;
        if (p->init == TESS_INIT_SOURCE)
            TESS_TRY(tess_model_dir_claim(d->dir, p->name, p->shape, p->shape_rank, &found));
    }
    return tess_run_is_flux(d->run) ? tess_describe_flux_left(d) : check_left(ctx, d);
}

/* ---- plan ---- */

static tess_choice choice_of(tess_run_switch s)
{
    return s == TESS_RUN_SWITCH_AUTO ? TESS_AUTO : s == TESS_RUN_SWITCH_ON ? TESS_ON : TESS_OFF;
}

static tess_exchange exchange_of(tess_run_exchange e)
{
    return e == TESS_RUN_EXCHANGE_AUTO     ? TESS_EXCHANGE_AUTO
           : e == TESS_RUN_EXCHANGE_DIRECT ? TESS_EXCHANGE_DIRECT
                                           : TESS_EXCHANGE_BY_NODE;
}

static bool has_frozen(const tess_registry *reg)
{
    for (int i = 0; i < reg->unit_numel; i++)
        if (reg->unit[i].frozen_nbytes > 0)
            return true;
    return false;
}

static int group_of(const tess_description *d, const tess_launch_shape *launch)
{
    const int64_t asked = d->run->shard.gather_group;
    if (!has_frozen(&d->registry))
        return 1; /* nothing to gather in groups: slabs are sharded over the world */
    if (asked == TESS_RUN_AUTO)
        return d->run->train.mode == TESS_RUN_MODE_FULL ? launch->world : 0;
    if (asked == TESS_RUN_GROUP_WORLD)
        return launch->world;
    return asked == TESS_RUN_GROUP_NODE ? launch->node_rank_numel : (int)TESS_MIN(asked, INT_MAX);
}

/* An export collects one trainable tensor at a time in the activations' memory, f32 at most. */
static size_t export_nbytes(const tess_registry *reg)
{
    int64_t most_numel = 0;
    for (int i = 0; i < reg->param_numel; i++)
        if (reg->param[i].role == TESS_ROLE_TRAINABLE)
            most_numel = TESS_MAX(most_numel, reg->param[i].numel);
    return (size_t)most_numel * sizeof(float);
}

size_t tess_description_slot_nbytes(const tess_description *d)
{
    double most_nbytes = 0.0;
    for (int i = 0; i < d->registry.stage_numel; i++) {
        const tess_stage_cost *cost = &d->registry.stage[i].cost;
        most_nbytes = TESS_MAX(most_nbytes, cost->forward.widest_nbytes);
        most_nbytes = TESS_MAX(most_nbytes, cost->backward.widest_nbytes);
    }
    return (size_t)tess_round_up((int64_t)most_nbytes, TESS_ARENA_ALIGN_NBYTES);
}

/* Decoded matrices of all products of a step. A reader has no backward, and one with the loss in it
 * has the forward's products too. */
static double decoded_nbytes(const tess_registry *reg, bool is_reader)
{
    double nbytes = 0.0;
    for (int i = 0; i < reg->stage_numel; i++) {
        const tess_stage *stage = &reg->stage[i];
        if (is_reader || !stage->is_fused_loss)
            nbytes += stage->cost.forward.kept_nbytes;
        if (!is_reader)
            nbytes += stage->cost.backward.kept_nbytes;
    }
    return nbytes;
}

/* Take as much of the memory asked for as is of use. Sets the share of decoding that it saves. */
static void keep(tess_description *d, const tess_launch_shape *launch, double asked, double *share)
{
    const double all = decoded_nbytes(&d->registry, launch->is_reader);
    *share = all > 0.0 ? TESS_MIN(asked / all, 1.0) : 0.0;
    d->kept_nbytes = (size_t)tess_round_up((int64_t)(*share * all), TESS_ARENA_ALIGN_NBYTES);
}

/* What compute.decoded_memory says in bytes; auto is decided when the rest of the plan is known. */
static tess_status choose_kept(tess_description *d, const tess_launch_shape *launch, double *share)
{
    const tess_run *run = d->run;
    char place[TESS_RUN_PLACE_NBYTES];
    keep(d, launch, 0.0, share);
    if (!launch->is_device || run->compute.decoded_memory == TESS_RUN_AUTO ||
        run->compute.decoded_memory == 0)
        return TESS_OK;
    tess_run_place_text(run, TESS_RUN_KEY_compute_decoded_memory, place);
    TESS_CHECK(launch->world == 1 || run->shard.gather_group == 1, TESS_E_CONFIG,
               "%s: weights stay decoded where their codes lie in place, found codes that may be "
               "gathered over %d ranks; set shard.gather_group: 1, or leave it out",
               place, launch->world);
    TESS_CHECK(run->shard.check_base != TESS_RUN_SWITCH_ON, TESS_E_CONFIG,
               "%s: products read decoded copies of the bytes that shard.check_base: on looks at, "
               "and damage in those is not seen; set shard.check_base: off, or leave "
               "compute.decoded_memory out",
               place);
    keep(d, launch, (double)run->compute.decoded_memory, share);
    return TESS_OK;
}

static size_t outside_nbytes(const tess_description *d, const tess_launch_shape *launch)
{
    if (!launch->is_device)
        return TESS_OUTSIDE_NBYTES;
    return TESS_OUTSIDE_NBYTES + launch->library_nbytes + 2 * tess_description_slot_nbytes(d) +
           d->kept_nbytes;
}

/* What samples of texts keep: a tokenizer, and of each token of the vocabulary its logit and its
 * place in their order. The tokenizer's tables have up to four slots an entry: 64 bytes a merge, of
 * which Llama 3 has the most (2.2 a token), and 16 a text; 25 are spans, 20 the texts themselves.
 */
static size_t sample_nbytes(const tess_description *d)
{
    enum { TOKEN_NBYTES = 144 + 16 + 25 + 20 + 12 };
    const tess_run *run = d->run;
    const bool is_text = !tess_run_is_vectors(run) && !tess_run_is_flux(run);
    return is_text && run->sample.prompts.item_numel > 0
               ? (size_t)d->config.vocab_numel * TOKEN_NBYTES
               : 0;
}

/*
 * compute.decoded_memory: auto. Every other choice of the plan stays as it is: weights that stay
 * decoded save a few percent of a step, recomputation or gathers in their place would cost more.
 */
static tess_status keep_what_is_free(tess_description *d, const tess_launch_shape *launch,
                                     const tess_plan_options *options)
{
    enum { SPARE_DIVISOR = 16 }; /* libraries take what they take, a plan only estimates it */
    const tess_plan_options *chosen = &d->plan->options;
    const size_t limit_nbytes = launch->memory_limit_nbytes;
    const size_t taken_nbytes = d->plan->total_nbytes + limit_nbytes / SPARE_DIVISOR;
    if (chosen->gather_group_numel != 1 || d->run->shard.check_base == TESS_RUN_SWITCH_ON ||
        taken_nbytes + TESS_ARENA_ALIGN_NBYTES > limit_nbytes)
        return TESS_OK;
    tess_plan_options o = *options;
    const size_t free_nbytes = limit_nbytes - taken_nbytes;
    keep(d, launch, (double)(free_nbytes / TESS_ARENA_ALIGN_NBYTES * TESS_ARENA_ALIGN_NBYTES),
         &o.kept_share);
    if (d->kept_nbytes == 0)
        return TESS_OK;
    o.kept_nbytes = d->kept_nbytes;
    o.outside_nbytes += d->kept_nbytes;
    o.library_nbytes += d->kept_nbytes;
    o.gather_group_numel = chosen->gather_group_numel;
    o.reshard = chosen->reshard;
    o.checkpointing = chosen->checkpointing;
    o.bucket_nbytes = chosen->bucket_nbytes;
    o.library_once = chosen->library_once;
    tess_plan_destroy(&d->plan);
    return tess_plan_create(&d->registry, &o, &d->plan);
}

static tess_status make_plan(tess_description *d, const tess_launch_shape *launch)
{
    const tess_run *run = d->run;
    const tess_load_source source = tess_description_source(d);
    tess_load_request load = tess_description_load(d, &source);
    load.is_device = launch->is_device;
    double kept_share = 0.0;
    TESS_TRY(choose_kept(d, launch, &kept_share));
    tess_plan_options o = {
        .world = launch->world,
        .gather_group_numel = group_of(d, launch),
        .node_rank_numel = launch->node_rank_numel,
        .node_first_rank = launch->node_first_rank,
        .node_numel = launch->node_numel,
        .exchange = exchange_of(run->shard.exchange),
        .link_inside = launch->link_inside,
        .link_across = launch->link_across,
        .reshard = choice_of(run->shard.reshard_after_forward),
        .checkpointing = choice_of(run->compute.activation_checkpointing),
        .prefetch = (int)run->shard.prefetch,
        .bucket_nbytes =
            run->shard.bucket_bytes == TESS_RUN_AUTO ? TESS_BUCKET_AUTO : run->shard.bucket_bytes,
        .is_library = run->shard.reduction == TESS_RUN_REDUCTION_LIBRARY,
        .is_full = run->train.mode == TESS_RUN_MODE_FULL,
        .micro_batch_numel = run->train.micro_batches,
        .memory_limit_nbytes = launch->memory_limit_nbytes,
        .outside_nbytes = outside_nbytes(d, launch),
        .library_nbytes = outside_nbytes(d, launch) - TESS_OUTSIDE_NBYTES,
        .kept_nbytes = d->kept_nbytes,
        .kept_share = kept_share,
        .sample_nbytes = sample_nbytes(d),
        .data_nbytes = d->batch_nbytes,
        .has_snapshot = true,
        .counter_numel = d->counter_numel,
        .ahead_sum_numel = d->ahead_sum_numel,
        .codes = d->codes,
        .optimizer = tess_optimizer_get(run->train.optimizer),
        .has_ema = run->train.ema_decay > 0.0,
        .kernels = launch->kernels,
        .thread_numel = (int)run->compute.threads,
        .kernel_path = launch->kernel_path,
        .smaller = tess_run_is_rqvae(run) ? "smaller train.micro_batch" : NULL,
        .is_device = launch->is_device,
    };
    if (o.is_device)
        o.mirror_nbytes = o.data_nbytes + d->device_nbytes + tess_model_constant_nbytes(d->model);
    TESS_TRY(tess_load_plan(&d->registry, &load, &o.load_nbytes));
    o.load_nbytes = TESS_MAX(o.load_nbytes, export_nbytes(&d->registry));
    o.load_nbytes = TESS_MAX(o.load_nbytes, d->start_nbytes);
    if (o.is_device) /* an export's own piece leaves the device beside the tensor it becomes part of
                      */
        o.load_nbytes = TESS_MAX(o.load_nbytes, 2 * export_nbytes(&d->registry));
    TESS_TRY(tess_plan_create(&d->registry, &o, &d->plan));
    if (o.is_device && run->compute.decoded_memory == TESS_RUN_AUTO)
        return keep_what_is_free(d, launch, &o);
    return TESS_OK;
}

static tess_status open_model(const tess_ctx *ctx, tess_description *d)
{
    if (tess_run_is_flux(d->run))
        return tess_describe_flux_open(ctx, d);
    if (tess_gguf_is_path(d->run->model.path))
        return open_gguf(ctx, d);
    TESS_TRY(read_config(ctx, d));
    return open_weights(ctx, d);
}

static tess_status set_batch(tess_description *d)
{
    const int64_t token_numel = d->run->train.micro_batch * d->run->data.sequence_length;
    d->batch_nbytes = 4 * (size_t)tess_round_up(token_numel * 4, TESS_ARENA_ALIGN_NBYTES);
    d->family_name = tess_llm_family_name(d->config.family);
    return TESS_OK;
}

/* ---- quantized autoencoders ---- */

/* With all codes on every rank; what a step gathers of them is the plan's. */
static tess_status describe_replicated(const tess_ctx *ctx, const tess_launch_shape *launch,
                                       tess_description *d)
{
    tess_plan_codes *codes = &d->codes;
    TESS_TRY(tess_describe_rqvae(ctx, launch, TESS_RUN_SHARDING_REPLICATED, d));
    TESS_TRY(make_plan(d, launch));
    if (!codes->has_books)
        return TESS_OK;
    const int unit_idx = d->registry.param[tess_rqvae_codebook(d->model, 0)].unit_idx;
    codes->fits_replicated = true;
    codes->replicated_nbytes = codes->step_nbytes +
                               tess_plan_unit_gathered_nbytes(d->plan, &d->registry, unit_idx) +
                               tess_plan_unit_gradient_nbytes(d->plan, unit_idx);
    d->plan->options.codes = *codes;
    return TESS_OK;
}

/* The same run again, by rows: what is known of replicated codes stays. */
static tess_status describe_rows(const tess_ctx *ctx, const tess_launch_shape *launch,
                                 tess_description *d)
{
    const tess_plan_codes codes = d->codes;
    const tess_description fresh = {.run = d->run, .sample = d->sample};
    tess_description_fini(d);
    *d = fresh;
    TESS_TRY(tess_describe_rqvae(ctx, launch, TESS_RUN_SHARDING_ROWS, d));
    d->codes.fits_replicated = codes.fits_replicated;
    d->codes.replicated_nbytes = codes.replicated_nbytes;
    return make_plan(d, launch);
}

/* Replicated codes do not fit: say so, and whether rows would. */
static tess_status refuse_replicated(const tess_ctx *ctx, const tess_launch_shape *launch,
                                     tess_description *d)
{
    char said[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(said, sizeof said, "%s", tess_error_message());
    const char *advice = "";
    tess_error_clear();
    if (describe_rows(ctx, launch, d) == TESS_OK)
        advice = "; or set quantizer.sharding: rows, which fits";
    tess_error_clear();
    return TESS_FAIL(TESS_E_FIT, "%s%s", said, advice);
}

/* Rows are searched with the host's cores: where a device trains, codes are replicated. */
static tess_status check_sharding(const tess_run *run, bool is_device)
{
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_quantizer_sharding, place);
    TESS_CHECK(!is_device || run->quantizer.sharding != TESS_RUN_SHARDING_ROWS, TESS_E_UNSUPPORTED,
               "%s: rows searches codes with the host's cores, found a device that trains: choose "
               "replicated here, or set compute.device to cpu",
               place);
    return TESS_OK;
}

/* Rows where they are asked for, receive less in training steps, or alone fit. */
static tess_status describe_rqvae(const tess_ctx *ctx, const tess_launch_shape *launch,
                                  tess_description *d)
{
    const tess_run_sharding wanted = d->run->quantizer.sharding;
    TESS_TRY(check_sharding(d->run, launch->is_device));
    const tess_status st = describe_replicated(ctx, launch, d);
    const tess_plan_codes *codes = &d->codes;
    if ((st != TESS_OK && st != TESS_E_FIT) || !codes->can_shard)
        return st;
    if (wanted == TESS_RUN_SHARDING_REPLICATED)
        return st == TESS_OK ? st : refuse_replicated(ctx, launch, d);
    if (wanted == TESS_RUN_SHARDING_AUTO && st == TESS_OK &&
        (launch->is_reader || !(codes->rows_nbytes < codes->replicated_nbytes)))
        return TESS_OK;
    tess_error_clear();
    return describe_rows(ctx, launch, d);
}

static tess_status describe(const tess_ctx *ctx, const tess_launch_shape *launch,
                            tess_description *d)
{
    const tess_kernels *kernels = launch->kernels != NULL ? launch->kernels : &tess_kernels_cpu;
    const tess_optimizer *optimizer = tess_optimizer_get(d->run->train.optimizer);
    if (tess_run_is_rqvae(d->run)) {
        TESS_TRY(tess_optimizer_check(optimizer, kernels));
        return describe_rqvae(ctx, launch, d);
    }
    TESS_TRY(open_model(ctx, d));
    TESS_TRY(describe_lora(ctx, launch->adapter, d));
    TESS_TRY(tess_optimizer_check(optimizer, kernels));
    TESS_TRY(tess_run_is_flux(d->run) ? tess_describe_flux_data(ctx, d) : set_batch(d));
    TESS_TRY(make_model(d, launch->kernels));
    TESS_TRY(describe_check_names(d, d->spec != NULL && launch->adapter == NULL));
    TESS_TRY(describe_check_lora(d));
    TESS_TRY(check_weights(ctx, d));
    return make_plan(d, launch);
}

tess_status tess_describe(const tess_ctx *ctx, const tess_run *run, const tess_launch_shape *launch,
                          tess_description *out)
{
    memset(out, 0, sizeof *out);
    out->run = run;
    const tess_status st = describe(ctx, launch, out);
    if (st != TESS_OK)
        tess_description_fini(out);
    return st;
}

tess_status tess_describe_base(const tess_ctx *ctx, const tess_run *run, unsigned flags,
                               tess_description *out)
{
    memset(out, 0, sizeof *out);
    out->run = run;
    out->keeps_ragged = (flags & TESS_DESCRIBE_KEEP_RAGGED) != 0;
    out->requantizes = (flags & TESS_DESCRIBE_REQUANTIZE) != 0;
    out->flux_shape = (tess_flux_shape){1, 1, 1}; /* none runs */
    tess_status st = open_model(ctx, out);
    if (st == TESS_OK && out->dir == NULL)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' has no weights", run->model.path);
    if (st == TESS_OK)
        st = make_model(out, NULL);
    if (st == TESS_OK)
        st = check_weights(ctx, out);
    if (st == TESS_OK)
        st = check_tied_head(out);
    if (st != TESS_OK)
        tess_description_fini(out);
    return st;
}

void tess_description_fini(tess_description *d)
{
    tess_plan_destroy(&d->plan);
    tess_model_destroy(&d->model);
    tess_registry_fini(&d->registry);
    tess_peft_spec_destroy(&d->spec);
    tess_model_dir_close(&d->dir);
    tess_json_destroy(&d->config_root);
    tess_free(d->config_text);
    d->config_text = NULL;
}

/* ---- loading ---- */

/* How a tensor lies in the files. */
static tess_status source_codec(void *arg, const tess_param *p, tess_codec *codec)
{
    tess_description *d = arg;
    const tess_model_tensor *t = d->dir != NULL ? tess_model_dir_find(d->dir, p->name) : NULL;
    tess_base_choices c = {.d = d};
    return t != NULL ? tess_model_tensor_codec(t, codec) : tess_base_source_of(&c, p, codec);
}

static tess_status source_dtype(void *arg, const tess_param *p, tess_dtype *dt)
{
    tess_codec codec = {.format = TESS_FORMAT_BF16};
    TESS_TRY(source_codec(arg, p, &codec));
    *dt = codec.format == TESS_FORMAT_F32   ? TESS_F32
          : codec.format == TESS_FORMAT_F16 ? TESS_F16
                                            : TESS_BF16;
    return TESS_OK;
}

static tess_status read_source(void *arg, const tess_param *p, void *dst, size_t nbytes)
{
    tess_description *d = arg;
    const tess_model_tensor *t = d->dir != NULL ? tess_model_dir_find(d->dir, p->name) : NULL;
    TESS_CHECK(t != NULL, TESS_E_FORMAT, "model.path: '%s' has no weights for tensor '%s'",
               d->run->model.path, p->name);
    if (strcmp(p->name, embedding_name) == 0)
        TESS_TRY(check_tied_head(d));
    return tess_model_dir_read(d->dir, t, 0, nbytes, dst);
}

tess_load_source tess_description_source(tess_description *d)
{
    return (tess_load_source){
        .arg = d, .dtype_of = source_dtype, .codec_of = source_codec, .read = read_source};
}

tess_load_request tess_description_load(const tess_description *d, const tess_load_source *source)
{
    return (tess_load_request){.source = source,
                               .is_random = d->run->model.init == TESS_RUN_INIT_RANDOM,
                               .wants_frozen = true,
                               .wants_trainable = true,
                               .is_device = d->plan != NULL && d->plan->options.is_device,
                               .seed = (uint64_t)d->run->train.seed};
}
