#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/memory.h"
#include "format/json_priv.h"
#include "format/peft_priv.h"

struct tess_peft_writer {
    tess_io *io;
    char *config_path;
    char *base_name;      /* may be NULL */
    char *task_type;      /* may be NULL */
    tess_peft_spec *spec; /* what the config file states */
    char **target;        /* [target_numel] expansion of "all-linear"; empty: as in the spec */
    int target_numel;
    int64_t adapter_numel, saved_numel;
    int part_numel; /* tensors of an adapter; those of the next follow, then the saved ones */
    tess_safetensors_writer *weights;
};

/* ---- what the config states ---- */

/* A number alone, of "to_out.0", would name blocks too: there it is the last two. */
static const char *last_component(const char *path)
{
    const char *at = strrchr(path, '.');
    if (at == NULL)
        return path;
    const bool is_number = at[1 + strspn(at + 1, "0123456789")] == '\0';
    while (is_number && at > path && at[-1] != '.')
        at--;
    return is_number ? at : at + 1;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* "all-linear" means other modules in another model, so the file lists what was adapted. */
static tess_status expand_targets(tess_peft_writer *w, const tess_peft_content *content)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(content->adapter_numel, sizeof(char *), &memory));
    w->target = memory;
    for (int64_t i = 0; i < content->adapter_numel; i++) {
        const char *name = last_component(content->adapter[i].path);
        bool is_known = false;
        for (int j = 0; j < w->target_numel; j++)
            is_known = is_known || strcmp(w->target[j], name) == 0;
        if (!is_known)
            TESS_TRY(tess_strdup(name, &w->target[w->target_numel++]));
    }
    if (w->target_numel > 1)
        qsort(w->target, (size_t)w->target_numel, sizeof(char *), by_text);
    return TESS_OK;
}

tess_status tess_peft_escape_path(const char *path, char **out)
{
    json_sink s = {0};
    for (const char *p = path; *p != '\0'; p++) {
        if (strchr("\\^$.[]|()?*+{}", *p) != NULL)
            tess_json_sink_put(&s, "\\", 1);
        tess_json_sink_put(&s, p, 1);
    }
    if (s.st != TESS_OK) {
        tess_free(s.text);
        return s.st;
    }
    *out = s.text;
    return TESS_OK;
}

typedef struct expansion {
    char **path;                     /* [numel] escaped */
    tess_peft_pattern *rank, *alpha; /* [rank_numel], [alpha_numel] */
    int numel, rank_numel, alpha_numel;
} expansion;

static int by_pattern(const void *a, const void *b)
{
    return strcmp(((const tess_peft_pattern *)a)->pattern, ((const tess_peft_pattern *)b)->pattern);
}

static tess_status fill_expansion(const tess_peft_content *content, expansion *e)
{
    const tess_peft_options *o = tess_peft_spec_options(content->spec);
    for (int64_t i = 0; i < content->adapter_numel; i++) {
        const tess_peft_module module = {.path = content->adapter[i].path};
        tess_peft_match m = {.is_target = false};
        TESS_TRY(tess_peft_spec_match(content->spec, &module, &m));
        TESS_TRY(tess_peft_escape_path(module.path, &e->path[e->numel++]));
        const char *pattern = e->path[e->numel - 1];
        if (m.rank != o->rank)
            e->rank[e->rank_numel++] = (tess_peft_pattern){pattern, (double)m.rank};
        if (m.alpha != o->alpha)
            e->alpha[e->alpha_numel++] = (tess_peft_pattern){pattern, m.alpha};
    }
    if (e->rank_numel > 1)
        qsort(e->rank, (size_t)e->rank_numel, sizeof *e->rank, by_pattern);
    if (e->alpha_numel > 1)
        qsort(e->alpha, (size_t)e->alpha_numel, sizeof *e->alpha, by_pattern);
    return TESS_OK;
}

/* [Note: pattern order] PEFT takes the first pattern that matches, in file order, and the file is
 * sorted. Patterns whose order would change are written as one exact pattern per module instead. */
static tess_status expand_patterns(tess_peft_writer *w, const tess_peft_content *content)
{
    expansion e = {0};
    void *path = NULL, *rank = NULL, *alpha = NULL;
    tess_peft_options o = *tess_peft_spec_options(content->spec);
    tess_status st = tess_alloc_array(content->adapter_numel, sizeof(char *), &path);
    if (st == TESS_OK)
        st = tess_alloc_array(content->adapter_numel, sizeof(tess_peft_pattern), &rank);
    if (st == TESS_OK)
        st = tess_alloc_array(content->adapter_numel, sizeof(tess_peft_pattern), &alpha);
    e.path = path;
    e.rank = rank;
    e.alpha = alpha;
    if (st == TESS_OK)
        st = fill_expansion(content, &e);
    o.rank_pattern = e.rank;
    o.rank_pattern_numel = e.rank_numel;
    o.alpha_pattern = e.alpha;
    o.alpha_pattern_numel = e.alpha_numel;
    if (st == TESS_OK)
        st = tess_peft_spec_create(&o, &w->spec);
    for (int i = 0; i < e.numel; i++)
        tess_free(e.path[i]);
    tess_free(path);
    tess_free(rank);
    tess_free(alpha);
    return st;
}

static tess_status copy_spec(tess_peft_writer *w, const tess_peft_content *content)
{
    const tess_peft_options *o = tess_peft_spec_options(content->spec);
    const bool is_all_linear =
        o->targets.regex != NULL && strcasecmp(o->targets.regex, TESS_PEFT_ALL_LINEAR) == 0;
    if (is_all_linear)
        TESS_TRY(expand_targets(w, content));
    if (!tess_peft_patterns_are_sorted(o->rank_pattern, o->rank_pattern_numel) ||
        !tess_peft_patterns_are_sorted(o->alpha_pattern, o->alpha_pattern_numel))
        return expand_patterns(w, content);
    return tess_peft_spec_create(o, &w->spec);
}

/* ---- weights ---- */

static tess_status check_content(const tess_peft_content *content)
{
    TESS_CHECK(content->adapter_numel > 0, TESS_E_ARG, "adapter export: no adapted modules");
    for (int64_t i = 0; i < content->saved_numel; i++)
        TESS_CHECK(tess_peft_spec_saves(content->spec, content->saved[i].name), TESS_E_ARG,
                   "adapter export: tensor '%s' is not among modules_to_save",
                   content->saved[i].name);
    TESS_CHECK(content->dt == TESS_F32 || content->dt == TESS_BF16 || content->dt == TESS_F16,
               TESS_E_DTYPE, "adapter export: expected dtype f32, bf16 or f16, found %s",
               tess_dtype_name(content->dt));
    for (int64_t i = 0; i < content->adapter_numel; i++) {
        const tess_peft_adapter *a = &content->adapter[i];
        const tess_peft_module module = {.path = a->path};
        tess_peft_match match = {.is_target = false};
        TESS_TRY(tess_peft_spec_match(content->spec, &module, &match));
        TESS_CHECK(match.is_target && match.rank == a->rank, TESS_E_ARG,
                   "adapter export: module '%s' has rank %" PRId64 ", its targets say %" PRId64,
                   a->path, a->rank, match.rank);
    }
    return TESS_OK;
}

static tess_status target_text(const tess_peft_options *o, json_sink *s)
{
    if (o->targets.regex != NULL)
        tess_json_sink_put(s, o->targets.regex, strlen(o->targets.regex));
    for (int i = 0; i < o->targets.name_numel; i++) {
        tess_json_sink_put(s, ",", i > 0);
        tess_json_sink_put(s, o->targets.name[i], strlen(o->targets.name[i]));
    }
    return s->st;
}

static void add_pair(tess_st_pair *pair, int64_t *numel, const char *key, const char *value)
{
    if (value != NULL)
        pair[(*numel)++] = (tess_st_pair){key, value};
}

static tess_status start_weights(tess_peft_writer *w, const char *path,
                                 const tess_st_tensor *tensor, const tess_peft_content *content)
{
    const tess_peft_options *o = tess_peft_spec_options(content->spec);
    const tess_peft_identity *id = &content->identity;
    tess_st_pair pair[16];
    int64_t pair_numel = 0;
    char rank[32], alpha[32];
    json_sink target = {0};
    tess_status st = target_text(o, &target);
    tess_peft_number_text((double)o->rank, rank);
    tess_peft_number_text(o->alpha, alpha);
    add_pair(pair, &pair_numel, "format", "pt");
    add_pair(pair, &pair_numel, "dialect", "peft");
    add_pair(pair, &pair_numel, "trained.rank", rank);
    add_pair(pair, &pair_numel, "trained.alpha", alpha);
    add_pair(pair, &pair_numel, "target", target.text);
    add_pair(pair, &pair_numel, "merge.policy", "separate-or-16bit");
    add_pair(pair, &pair_numel, "base.name", id->base_name);
    add_pair(pair, &pair_numel, "base.sha256", id->base_sha256);
    add_pair(pair, &pair_numel, "base.quant", id->base_quant);
    add_pair(pair, &pair_numel, "base.identity", id->base_id);
    add_pair(pair, &pair_numel, "base.previous", id->base_previous);
    add_pair(pair, &pair_numel, "compute.dtype", id->compute_dtype);
    add_pair(pair, &pair_numel, "adapter.master_dtype", id->master_dtype);
    if (st == TESS_OK)
        st = tess_safetensors_writer_create(w->io, path, tensor,
                                            w->part_numel * w->adapter_numel + w->saved_numel, pair,
                                            pair_numel, &w->weights);
    tess_free(target.text);
    return st;
}

typedef char tensor_name[TESS_ST_NAME_MAX_NBYTES + 1];

static void shape_part(const tess_peft_adapter *a, tess_peft_part part, tess_st_tensor *t)
{
    t->dim_numel = part == TESS_PEFT_MAGNITUDE ? 1 : 2;
    t->dim[0] = part == TESS_PEFT_A ? a->rank : a->out_numel;
    if (t->dim_numel > 1)
        t->dim[1] = part == TESS_PEFT_A ? a->in_numel : a->rank;
}

static tess_status fill_tensors(const tess_peft_writer *w, const tess_peft_content *content,
                                tensor_name *name, tess_st_tensor *tensor)
{
    tess_st_dtype dtype = TESS_ST_F32;
    TESS_TRY(tess_st_dtype_from_core(content->dt, &dtype));
    const int64_t first_saved = w->part_numel * w->adapter_numel;
    for (int64_t i = 0; i < first_saved; i++) {
        const tess_peft_adapter *a = &content->adapter[i / w->part_numel];
        const tess_peft_part part = (tess_peft_part)(i % w->part_numel);
        TESS_TRY(tess_peft_tensor_name(a->path, part, name[i]));
        tensor[i] = (tess_st_tensor){.name = name[i], .dtype = dtype};
        shape_part(a, part, &tensor[i]);
    }
    for (int64_t i = 0; i < w->saved_numel; i++) {
        const tess_peft_saved *saved = &content->saved[i];
        tess_st_tensor *t = &tensor[first_saved + i];
        TESS_TRY(tess_peft_saved_name(saved->name, name[first_saved + i]));
        *t = (tess_st_tensor){.name = name[first_saved + i],
                              .dtype = dtype,
                              .dim_numel = saved->dim_numel,
                              .dim = {saved->dim[0], saved->dim[1]}};
    }
    return TESS_OK;
}

static tess_status create_weights(tess_peft_writer *w, const char *dir,
                                  const tess_peft_content *content)
{
    const int64_t tensor_numel = w->part_numel * w->adapter_numel + w->saved_numel;
    void *name = NULL, *tensor = NULL;
    char *path = NULL;
    tess_status st = tess_alloc_array(tensor_numel, sizeof(tensor_name), &name);
    if (st == TESS_OK)
        st = tess_alloc_array(tensor_numel, sizeof(tess_st_tensor), &tensor);
    if (st == TESS_OK)
        st = fill_tensors(w, content, name, tensor);
    if (st == TESS_OK)
        st = tess_asprintf(&path, "%s/adapter_model.safetensors", dir);
    if (st == TESS_OK)
        st = start_weights(w, path, tensor, content);
    tess_free(path);
    tess_free(tensor);
    tess_free(name);
    return st;
}

tess_status tess_peft_writer_create(tess_io *io, const char *dir, const tess_peft_content *content,
                                    tess_peft_writer **out)
{
    void *object = NULL;
    TESS_TRY(check_content(content));
    TESS_TRY(tess_alloc(sizeof(tess_peft_writer), &object));
    tess_peft_writer *w = object;
    w->io = io;
    w->adapter_numel = content->adapter_numel;
    w->saved_numel = content->saved_numel;
    w->part_numel = tess_peft_part_numel(tess_peft_spec_options(content->spec));
    tess_status st = tess_asprintf(&w->config_path, "%s/adapter_config.json", dir);
    if (st == TESS_OK && content->identity.base_name != NULL)
        st = tess_strdup(content->identity.base_name, &w->base_name);
    if (st == TESS_OK && content->task_type != NULL)
        st = tess_strdup(content->task_type, &w->task_type);
    if (st == TESS_OK)
        st = copy_spec(w, content);
    if (st == TESS_OK)
        st = tess_io_mkdirs(io, dir);
    if (st == TESS_OK)
        st = create_weights(w, dir, content);
    if (st != TESS_OK) {
        tess_peft_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

tess_status tess_peft_writer_append(tess_peft_writer *writer, int64_t adapter_idx,
                                    tess_peft_part part, const void *src, size_t nbytes)
{
    TESS_CHECK(adapter_idx >= 0 && adapter_idx < writer->adapter_numel, TESS_E_ARG,
               "adapter export: module %" PRId64 " of %" PRId64, adapter_idx,
               writer->adapter_numel);
    TESS_CHECK((int)part < writer->part_numel, TESS_E_ARG,
               "adapter export: part %d of an adapter that has %d", (int)part, writer->part_numel);
    return tess_safetensors_writer_append(
        writer->weights, writer->part_numel * adapter_idx + (int)part, src, nbytes);
}

tess_status tess_peft_writer_append_saved(tess_peft_writer *writer, int64_t saved_idx,
                                          const void *src, size_t nbytes)
{
    TESS_CHECK(saved_idx >= 0 && saved_idx < writer->saved_numel, TESS_E_ARG,
               "adapter export: whole tensor %" PRId64 " of %" PRId64, saved_idx,
               writer->saved_numel);
    return tess_safetensors_writer_append(
        writer->weights, writer->part_numel * writer->adapter_numel + saved_idx, src, nbytes);
}

/* The config goes away first and comes back last: with it, the weights beside it are its own. */
tess_status tess_peft_writer_finish(tess_peft_writer *writer)
{
    const tess_peft_modules expanded = {.name = (const char *const *)writer->target,
                                        .name_numel = writer->target_numel};
    TESS_TRY(tess_io_unlink(writer->io, writer->config_path, true));
    TESS_TRY(tess_safetensors_writer_finish(writer->weights));
    return tess_peft_config_write(writer->io, writer->config_path, writer->spec,
                                  writer->target_numel > 0 ? &expanded : NULL, writer->task_type,
                                  writer->base_name);
}

void tess_peft_writer_destroy(tess_peft_writer **writer)
{
    tess_peft_writer *w = *writer;
    if (w == NULL)
        return;
    tess_safetensors_writer_destroy(&w->weights);
    tess_peft_spec_destroy(&w->spec);
    for (int i = 0; i < w->target_numel; i++)
        tess_free(w->target[i]);
    tess_free(w->target);
    tess_free(w->config_path);
    tess_free(w->base_name);
    tess_free(w->task_type);
    tess_free(w);
    *writer = NULL;
}
