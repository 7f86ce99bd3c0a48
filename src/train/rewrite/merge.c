#include "train/rewrite/merge.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/adapter.h"
#include "train/rewrite/merge_priv.h"

enum { KEY_MAX = 3, KEY_NBYTES = 96 };

/* In the metadata of the output: the base that the adapter states, and the one it was added to. */
static const char trained_key[] = "merge.trained.identity", merged_key[] = "merge.base.identity";

/* Memory that grows to the largest tensor. */
typedef struct room {
    float *value;
    int64_t numel;
} room;

typedef struct job {
    const tess_ctx *ctx;
    const tess_merge_options *options;
    tess_peft_dir *adapter;
    tess_rewrite_base base;      /* as it was trained over */
    tess_rewrite_base into;      /* with `into`: the codecs of the output */
    tess_rewrite_tensor *tensor; /* [base.d.registry.param_numel] */
    tess_pool *pool;
    tess_model_writer *writer;
    tess_identity *merged, *written;
    tess_stored file, trained, out;
    room weight, before, delta, a, b;
    tess_merge_result *result;
} job;

static tess_status make_room(room *r, int64_t numel)
{
    void *grown = NULL;
    if (numel <= r->numel)
        return TESS_OK;
    tess_free(r->value);
    *r = (room){0};
    TESS_TRY(tess_alloc_array(numel, sizeof *r->value, &grown));
    *r = (room){grown, numel};
    return TESS_OK;
}

/* ---- which base ---- */

/* Keys of the section base that make codec `c` of a layer with rows of `col_numel`. */
static int64_t trained_keys(const tess_codec *c, int64_t col_numel, char text[KEY_MAX][KEY_NBYTES])
{
    static const char *const rule[] = {
#define X(name, word) [TESS_SCALE_RULE_##name] = word,
        TESS_SCALE_RULE_LIST(X)
#undef X
    };
    static const char *const scaling[] = {
#define X(name, word) [TESS_SCALING_##name] = word,
        TESS_SCALING_LIST(X)
#undef X
    };
    static const char *const meaning[] = {
#define X(name, word) [TESS_SCALE_##name] = word,
        TESS_SCALE_MEANING_LIST(X)
#undef X
    };
    int64_t numel = 0;
    snprintf(text[numel++], KEY_NBYTES, "base.format=%s", tess_format_name(c->format));
    if (c->format == TESS_FORMAT_NF4 || c->format == TESS_FORMAT_FP4) {
        snprintf(text[numel++], KEY_NBYTES, "base.block_size=%" PRId64, c->block_numel);
        snprintf(text[numel++], KEY_NBYTES, "base.double_quant=%s",
                 c->double_quant ? "true" : "false");
    } else if (c->format == TESS_FORMAT_QINT4 || c->format == TESS_FORMAT_QINT2) {
        snprintf(text[numel++], KEY_NBYTES, "base.rule=%s", rule[c->rule]);
        if (c->block_numel != tess_codec_group_numel(col_numel)) /* else auto, layer by layer */
            snprintf(text[numel++], KEY_NBYTES, "base.group_size=%" PRId64, c->block_numel);
    } else if (c->format == TESS_FORMAT_E4M3 || c->format == TESS_FORMAT_E5M2) {
        snprintf(text[numel++], KEY_NBYTES, "base.scaling=%s", scaling[c->scaling]);
        snprintf(text[numel++], KEY_NBYTES, "base.scale_meaning=%s", meaning[c->meaning]);
    }
    return numel;
}

static tess_status open_base(job *j, const char *const *key, int64_t key_numel)
{
    tess_run_override override[KEY_MAX];
    for (int64_t i = 0; i < key_numel; i++)
        override[i] = (tess_run_override){.text = key[i]};
    const tess_rewrite_choice choice = {.key = override,
                                        .key_numel = key_numel,
                                        .rule = j->options->rule,
                                        .rule_numel = j->options->rule_numel};
    return tess_rewrite_base_open(j->ctx, j->options->model, &choice, 0, &j->base);
}

/* Weights that are quantized in the files are trained over as they are. */
static bool is_quantized(const tess_description *d)
{
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(d->dir); i++) {
        const tess_model_tensor *t = tess_model_dir_at(d->dir, i);
        if (t->packed != NULL || (t->gguf != NULL && tess_format_block(t->gguf->format).numel > 0))
            return true;
    }
    return false;
}

/* Length of the rows of the first linear layer: base.quant is its format. */
static int64_t first_row_numel(const tess_registry *reg)
{
    for (int i = 0; i < reg->param_numel; i++)
        if (tess_rewrite_is_linear(&reg->param[i]))
            return reg->param[i].shape[1];
    return 1;
}

/* pissa and loftq (tess_param_rule()) take a part of the weights: what is left is in no model. */
static tess_status check_start(const job *j, const char *quant)
{
    const bool is_taken =
        quant != NULL && (strstr(quant, "/pissa/") != NULL || strstr(quant, "/loftq/") != NULL);
    TESS_CHECK(
        !is_taken, TESS_E_UNSUPPORTED,
        "'%s' was trained over what lora.init left of the weights (%s), which no model holds; "
        "write an adapter of the original weights with tessera export --difference and merge "
        "that",
        j->options->adapter, quant);
    return TESS_OK;
}

/* The base as the adapter's metadata says it was trained over. */
static tess_status open_trained(job *j)
{
    static const char *const keep = "base.format=keep";
    const char *quant = tess_peft_dir_metadata(j->adapter, "base.quant");
    TESS_TRY(check_start(j, quant));
    char text[KEY_MAX][KEY_NBYTES];
    const char *const key[KEY_MAX] = {text[0], text[1], text[2]};
    tess_codec codec;
    TESS_TRY(open_base(j, &keep, 1));
    if (j->options->is_original || quant == NULL || is_quantized(&j->base.d))
        return TESS_OK;
    const int64_t col_numel = first_row_numel(&j->base.d.registry);
    TESS_TRY(tess_codec_parse(quant, col_numel, &codec));
    tess_rewrite_base_close(&j->base);
    return open_base(j, key, trained_keys(&codec, col_numel, text));
}

static tess_status check_identity(job *j)
{
    const tess_merge_options *o = j->options;
    const tess_merge_result *r = j->result;
    const char *quant = tess_peft_dir_metadata(j->adapter, "base.quant");
    if (o->is_original) {
        tess_log_root(&j->ctx->log, TESS_LOG_WARN,
                      "merged into the weights as they lie in '%s', which are not what '%s' was "
                      "trained on (%s)",
                      o->model, o->adapter, quant != NULL ? quant : "not stated");
        return TESS_OK;
    }
    if (*r->trained_id == '\0') {
        tess_log_root(&j->ctx->log, TESS_LOG_WARN,
                      "'%s' does not state its base: merged into '%s' as it is", o->adapter,
                      o->model);
        return TESS_OK;
    }
    const bool is_same = strcmp(r->trained_id, r->merged_id) == 0;
    TESS_CHECK(is_same || o->allow_base_change, TESS_E_CONFIG,
               "'%s' was trained on base %.16s (%s), '%s' is %.16s (%s); give the model it was "
               "trained on, its run's base.overrides with --base-override, or --original or "
               "--allow-base-change",
               o->adapter, r->trained_id, quant != NULL ? quant : "format not stated", o->model,
               r->merged_id, r->merged_quant);
    if (!is_same)
        tess_log_root(&j->ctx->log, TESS_LOG_WARN,
                      "base changed: '%s' was trained on %.16s, merged into %.16s", o->adapter,
                      r->trained_id, r->merged_id);
    return TESS_OK;
}

/* ---- which layers ---- */

/* PEFT trains a copy of one of two tied modules, and the other keeps the values of the base: no
 * tied model holds both. */
static tess_status check_tied(const job *j)
{
    static const char *const name[] = {"model.embed_tokens.weight", "lm_head.weight"};
    const tess_peft_spec *spec = tess_peft_dir_spec(j->adapter);
    for (int i = 0; i < TESS_NELEM(name) && j->base.d.config.is_tied; i++)
        TESS_CHECK(!tess_peft_spec_saves(spec, name[i]), TESS_E_UNSUPPORTED,
                   "'%s': modules_to_save hold '%s', which '%s' ties (tie_word_embeddings): PEFT "
                   "trains embedding and head apart, merging would make them one; keep the "
                   "adapter apart, or untie the model first",
                   j->options->adapter, name[i], j->options->model);
    return TESS_OK;
}

/* Tensors of modules_to_save: those of the directory are there, and those of the model too. */
static tess_status check_saved(const job *j)
{
    const tess_registry *reg = &j->base.d.registry;
    const tess_peft_spec *spec = tess_peft_dir_spec(j->adapter);
    const char *name = NULL;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        const tess_st_tensor *t = tess_peft_dir_tensor(j->adapter, p->name);
        char want[128], found[128] = "nothing";
        if (!tess_peft_spec_saves(spec, p->name))
            continue;
        tess_st_shape_text(p->shape, p->shape_rank, want, sizeof want);
        if (t != NULL)
            tess_st_shape_text(t->dim, t->dim_numel, found, sizeof found);
        TESS_CHECK(t != NULL && strcmp(want, found) == 0, TESS_E_FORMAT,
                   "'%s': modules_to_save hold '%s', expected %s, found %s", j->options->adapter,
                   p->name, want, found);
    }
    for (int64_t i = 0; i < tess_peft_dir_tensor_numel(j->adapter); i++) {
        (void)tess_peft_dir_tensor_at(j->adapter, i, &name);
        TESS_CHECK(!tess_peft_spec_saves(spec, name) || tess_registry_find(reg, name) >= 0,
                   TESS_E_FORMAT, "'%s' holds '%s' as a whole, which is no tensor of '%s'",
                   j->options->adapter, name, j->options->model);
    }
    return TESS_OK;
}

static tess_status check_adapters(const job *j)
{
    const tess_registry *reg = &j->base.d.registry;
    for (int64_t i = 0; i < tess_peft_dir_adapter_numel(j->adapter); i++) {
        const tess_peft_adapter *a = tess_peft_dir_adapter_at(j->adapter, i);
        char name[TESS_NAME_NBYTES];
        snprintf(name, sizeof name, "%.140s.weight", a->path);
        const int idx = tess_registry_find(reg, name);
        TESS_CHECK(idx >= 0 || strcmp(a->path, "lm_head") != 0, TESS_E_UNSUPPORTED,
                   "'%s' adapts lm_head, which '%s' ties to its embedding: merging would change "
                   "both; keep the adapter apart, or untie the model first",
                   j->options->adapter, j->options->model);
        TESS_CHECK(idx >= 0 && j->tensor[idx].is_linear, TESS_E_FORMAT,
                   "'%s' has an adapter of '%s', which is no linear layer of '%s'",
                   j->options->adapter, a->path, j->options->model);
        const tess_param *p = &reg->param[idx];
        TESS_CHECK(a->out_numel == p->shape[0] && a->in_numel == p->shape[1], TESS_E_FORMAT,
                   "'%s': adapter of '%s' is for [%" PRId64 ", %" PRId64 "], '%s' has [%" PRId64
                   ", %" PRId64 "]",
                   j->options->adapter, a->path, a->out_numel, a->in_numel, j->options->model,
                   p->shape[0], p->shape[1]);
    }
    TESS_TRY(check_tied(j));
    return check_saved(j);
}

static const tess_peft_adapter *adapter_of(const job *j, const tess_rewrite_tensor *t)
{
    char path[TESS_NAME_NBYTES];
    const size_t nbytes = strlen(t->param->name);
    if (!t->is_linear || nbytes < 8)
        return NULL;
    snprintf(path, sizeof path, "%.*s", (int)nbytes - 7, t->param->name);
    return tess_peft_dir_find(j->adapter, path);
}

/* ---- one tensor ---- */

static tess_status read_tensor(job *j, const tess_st_tensor *t, room *to)
{
    tess_dtype dt = TESS_F32;
    void *raw = NULL;
    TESS_TRY(tess_st_dtype_to_core(t->dtype, &dt));
    TESS_TRY(make_room(to, t->numel));
    TESS_TRY(tess_alloc((size_t)t->nbytes, &raw));
    const tess_status st = tess_peft_dir_read(j->adapter, t, 0, (size_t)t->nbytes, raw);
    if (st == TESS_OK)
        merge_widen(dt, raw, t->numel, to->value);
    tess_free(raw);
    return st;
}

static tess_status read_part(job *j, const tess_peft_adapter *file, tess_peft_part part, room *to)
{
    static const char prefix[] = "base_model.model.";
    char name[TESS_ST_NAME_MAX_NBYTES + 1];
    TESS_TRY(tess_peft_tensor_name(file->path, part, name));
    return read_tensor(j, tess_peft_dir_tensor(j->adapter, name + sizeof prefix - 1), to);
}

/* What the adapter trained as a whole takes the place of the base's values. */
static tess_status replace(job *j, const tess_rewrite_tensor *t)
{
    const int64_t numel = t->param->numel;
    TESS_TRY(make_room(&j->before, numel));
    TESS_TRY(make_room(&j->delta, numel));
    memcpy(j->before.value, j->weight.value, (size_t)numel * sizeof(float));
    TESS_TRY(read_tensor(j, tess_peft_dir_tensor(j->adapter, t->param->name), &j->weight));
    for (int64_t i = 0; i < numel; i++)
        j->delta.value[i] = j->weight.value[i] - j->before.value[i];
    return TESS_OK;
}

/* DoRA: rows of the sum get the length that was trained; the delta is what that made of it. */
static tess_status apply_magnitude(job *j, const tess_peft_adapter *file)
{
    TESS_TRY(read_part(j, file, TESS_PEFT_MAGNITUDE, &j->a));
    merge_scale_rows(j->a.value, file->out_numel, file->in_numel, j->weight.value);
    for (int64_t i = 0; i < file->out_numel * file->in_numel; i++)
        j->delta.value[i] = j->weight.value[i] - j->before.value[i];
    return TESS_OK;
}

/* weight += s B A; what it was stays in `before`, the product in `delta`. */
static tess_status add_adapter(job *j, const tess_rewrite_tensor *t, const tess_peft_adapter *file,
                               merge_adapter *adapter)
{
    const tess_peft_module module = {.path = file->path,
                                     .is_output_embedding = strcmp(file->path, "lm_head") == 0};
    const int64_t numel = t->param->numel;
    TESS_TRY(tess_peft_spec_match(tess_peft_dir_spec(j->adapter), &module, &adapter->match));
    TESS_CHECK(adapter->match.is_target, TESS_E_FORMAT,
               "'%s' holds an adapter of '%s', its adapter_config.json does not target it",
               j->options->adapter, file->path);
    TESS_TRY(read_part(j, file, TESS_PEFT_A, &j->a));
    TESS_TRY(read_part(j, file, TESS_PEFT_B, &j->b));
    TESS_TRY(make_room(&j->before, numel));
    TESS_TRY(make_room(&j->delta, numel));
    adapter->file = file;
    adapter->a = j->a.value;
    adapter->b = j->b.value;
    merge_product(adapter, j->pool, j->delta.value);
    memcpy(j->before.value, j->weight.value, (size_t)numel * sizeof(float));
    for (int64_t i = 0; i < numel; i++)
        j->weight.value[i] += j->delta.value[i];
    if (tess_peft_spec_options(tess_peft_dir_spec(j->adapter))->use_dora)
        TESS_TRY(apply_magnitude(j, file));
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(isfinite(j->weight.value[i]), TESS_E_FORMAT,
                   "tensor '%s': element %" PRId64 " is %g after merging '%s'; expected finite "
                   "values",
                   t->param->name, i, (double)j->weight.value[i], j->options->adapter);
    return TESS_OK;
}

static bool is_saved(const job *j, const tess_rewrite_tensor *t)
{
    return tess_peft_spec_saves(tess_peft_dir_spec(j->adapter), t->param->name);
}

/* The tensor as it was trained over: `file` itself, or made of it again. */
static tess_status make_trained(job *j, const tess_rewrite_tensor *t, const tess_stored **trained)
{
    tess_view values;
    TESS_TRY(tess_stored_read(&j->file, j->base.d.dir, t->source));
    TESS_TRY(make_room(&j->weight, t->param->numel));
    *trained = &j->file;
    const bool is_widened =
        t->stored.format == TESS_FORMAT_F16 && t->made.format == TESS_FORMAT_F32;
    if (!tess_codec_is_equal(&t->made, &t->stored) && !is_widened) {
        TESS_TRY(tess_stored_values(&j->file, j->pool, j->weight.value, &values));
        TESS_TRY(tess_stored_prepare(&j->trained, &t->made, t->param->numel));
        TESS_TRY(tess_stored_encode(&j->trained, values, t->param->name, j->pool));
        *trained = &j->trained;
    }
    if (!is_saved(j, t)) /* what trains is no part of a base */
        TESS_TRY(tess_rewrite_identify(j->merged, t, &t->made, *trained));
    return tess_stored_decode_all(*trained, j->pool, j->weight.value);
}

static void fill_row(job *j, const tess_rewrite_tensor *t, const merge_adapter *adapter,
                     const tess_merge_survival *survival)
{
    tess_merge_row *row = &j->result->row[j->result->row_numel++];
    memcpy(row->name, t->param->name, sizeof row->name);
    tess_codec_describe(&t->out, row->to);
    row->rank = adapter->match.rank;
    row->scale = adapter->match.scale;
    row->survival = *survival;
}

static tess_status write_tensor(job *j, int64_t idx)
{
    const tess_rewrite_tensor *t = &j->tensor[idx];
    const tess_peft_adapter *file = adapter_of(j, t);
    const tess_stored *written = NULL;
    tess_stored_error error;
    merge_adapter adapter = {0};
    tess_merge_survival survival;
    TESS_TRY(make_trained(j, t, &written));
    const bool is_whole = is_saved(j, t);
    if (file != NULL)
        TESS_TRY(add_adapter(j, t, file, &adapter));
    else if (is_whole)
        TESS_TRY(replace(j, t));
    if (file != NULL || is_whole || !tess_codec_is_equal(&written->codec, &t->out)) {
        const tess_view sum = tess_view_host(j->weight.value, t->param->numel, TESS_F32);
        TESS_TRY(tess_stored_prepare(&j->out, &t->out, t->param->numel));
        TESS_TRY(tess_stored_encode(&j->out, sum, t->param->name, j->pool));
        written = &j->out;
    }
    TESS_TRY(tess_stored_compare(written, written, t->param->name, j->pool, &error));
    if (file != NULL || is_whole) {
        TESS_TRY(tess_merge_measure(j->before.value, j->delta.value, written, &survival));
        fill_row(j, t, &adapter, &survival);
    }
    TESS_TRY(tess_model_writer_put(j->writer, idx, (const void *const *)written->at));
    return tess_rewrite_identify(j->written, t, &t->kept, written);
}

/* ---- the whole ---- */

/* How each tensor is written. */
static tess_status choose_output(job *j)
{
    const tess_merge_options *o = j->options;
    const unsigned flags =
        TESS_DESCRIBE_REQUANTIZE | (tess_gguf_is_path(o->output) ? TESS_DESCRIBE_KEEP_RAGGED : 0U);
    const tess_codec plain = {.format = o->dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16};
    tess_rewrite_tensor *into = NULL;
    if (o->into != NULL) {
        TESS_TRY(tess_rewrite_base_open(j->ctx, o->model, o->into, flags, &j->into));
        TESS_TRY(tess_rewrite_list(&j->into, o->output, &into));
    }
    for (int i = 0; i < j->base.d.registry.param_numel; i++)
        tess_rewrite_set_out(&j->tensor[i], o->output, into != NULL ? into[i].out : plain);
    tess_free(into);
    return TESS_OK;
}

static tess_status start(job *j)
{
    const tess_registry *reg = &j->base.d.registry;
    const tess_merge_options *o = j->options;
    const char *id = tess_peft_dir_metadata(j->adapter, "base.identity");
    void *rows = NULL;
    snprintf(j->result->trained_id, sizeof j->result->trained_id, "%s", id != NULL ? id : "");
    TESS_TRY(tess_rewrite_list(&j->base, o->output, &j->tensor));
    tess_rewrite_describe(j->tensor, reg->param_numel, j->result->merged_quant);
    TESS_TRY(check_adapters(j));
    TESS_TRY(choose_output(j));
    tess_rewrite_describe(j->tensor, reg->param_numel, j->result->quant);
    TESS_TRY(
        tess_alloc_array(tess_peft_dir_tensor_numel(j->adapter), sizeof *j->result->row, &rows));
    j->result->row = rows;
    TESS_TRY(tess_pool_create(o->thread_numel, &j->pool));
    TESS_TRY(tess_identity_create(&j->merged));
    TESS_TRY(tess_identity_create(&j->written));
    const tess_st_pair extra[] = {{trained_key, id != NULL ? id : "not stated"},
                                  {merged_key, TESS_BASE_ID_UNKNOWN}};
    const tess_model_write_request request = {.path = o->output,
                                              .extra = extra,
                                              .extra_numel = TESS_NELEM(extra),
                                              .storage = o->storage,
                                              .shard_nbytes = o->shard_nbytes,
                                              .torch_dtype = o->into != NULL     ? NULL
                                                             : o->dt == TESS_F32 ? "float32"
                                                                                 : "bfloat16",
                                              .quant = j->result->quant};
    return tess_rewrite_start(j->ctx, &j->base, j->tensor, &request, &j->writer);
}

static tess_status check_dialect(const job *j)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    char *file = NULL;
    TESS_TRY(tess_adapter_locate(j->ctx->io, j->options->adapter, &file));
    const tess_status st = tess_io_stat(j->ctx->io, file, &kind, &nbytes);
    tess_free(file);
    TESS_TRY(st);
    TESS_CHECK(kind != TESS_IO_FILE, TESS_E_UNSUPPORTED,
               "'%s' is no PEFT directory, which is what merge reads; write one from the "
               "checkpoint: tessera export CHECKPOINT --format peft -o DIR",
               j->options->adapter);
    return TESS_OK;
}

static tess_status run(job *j)
{
    TESS_TRY(check_dialect(j));
    TESS_TRY(tess_peft_dir_open(j->ctx->io, j->options->adapter, &j->adapter));
    TESS_TRY(open_trained(j));
    TESS_TRY(start(j));
    for (int i = 0; i < j->base.d.registry.param_numel; i++)
        TESS_TRY(write_tensor(j, i));
    TESS_TRY(tess_rewrite_id_text(j->merged, j->result->merged_id));
    TESS_TRY(tess_rewrite_id_text(j->written, j->result->base_id));
    TESS_TRY(check_identity(j));
    TESS_TRY(tess_model_writer_set(j->writer, merged_key, j->result->merged_id));
    return tess_model_writer_finish(j->writer, j->result->base_id);
}

static void close_job(job *j)
{
    room *rooms[] = {&j->weight, &j->before, &j->delta, &j->a, &j->b};
    tess_model_writer_destroy(&j->writer);
    tess_identity_destroy(&j->merged);
    tess_identity_destroy(&j->written);
    tess_stored_fini(&j->file);
    tess_stored_fini(&j->trained);
    tess_stored_fini(&j->out);
    for (int i = 0; i < TESS_NELEM(rooms); i++)
        tess_free(rooms[i]->value);
    tess_pool_destroy(&j->pool);
    tess_free(j->tensor);
    tess_rewrite_base_close(&j->into);
    tess_rewrite_base_close(&j->base);
    tess_peft_dir_close(&j->adapter);
}

tess_status tess_merge_model(const tess_ctx *ctx, const tess_merge_options *options,
                             tess_merge_result *out)
{
    job j = {.ctx = ctx, .options = options, .result = out};
    memset(out, 0, sizeof *out);
    const tess_status st = run(&j);
    close_job(&j);
    if (st != TESS_OK)
        tess_merge_result_fini(out);
    return st;
}

void tess_merge_result_fini(tess_merge_result *result)
{
    tess_free(result->row);
    *result = (tess_merge_result){0};
}
