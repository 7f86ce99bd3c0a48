/* Texts beside the matrices: what an adapter was trained on and how (formats.md 10.3, 10.5). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/peft_priv.h"

/* ---- a list of pairs ---- */

static bool has_key(const adapter_metadata *m, const char *key)
{
    for (int64_t i = 0; i < m->numel; i++)
        if (strcmp(m->pair[i].key, key) == 0)
            return true;
    return false;
}

tess_status adapter_metadata_add(adapter_metadata *m, const char *key, const char *value)
{
    if (value == NULL || has_key(m, key))
        return TESS_OK;
    if (m->numel == m->room) {
        void *grown = m->pair;
        TESS_TRY(tess_realloc_array(m->room, m->room * 2 + 32, sizeof *m->pair, &grown));
        m->pair = grown;
        m->room = m->room * 2 + 32;
    }
    m->pair[m->numel++] = (tess_st_pair){key, value};
    return TESS_OK;
}

static tess_status add_number(adapter_metadata *m, const char *key, double value)
{
    char text[32], *copy = NULL;
    tess_peft_number_text(value, text);
    if (has_key(m, key))
        return TESS_OK;
    if (m->text_numel == m->text_room) {
        void *grown = m->text;
        TESS_TRY(tess_realloc_array(m->text_room, m->text_room + 8, sizeof *m->text, &grown));
        m->text = grown;
        m->text_room += 8;
    }
    TESS_TRY(tess_strdup(text, &copy));
    m->text[m->text_numel++] = copy;
    return adapter_metadata_add(m, key, copy);
}

void adapter_metadata_fini(adapter_metadata *m)
{
    for (int64_t i = 0; i < m->text_numel; i++)
        tess_free(m->text[i]);
    tess_free(m->text);
    tess_free(m->pair);
    *m = (adapter_metadata){0};
}

/* ---- what it says ---- */

/* Texts about the bytes of the source file, or about the form of its keys: not true any more. */
static bool is_about_file(const char *key)
{
    static const char *const about[] = {"format",
                                        "dialect",
                                        "lora_adapter_metadata",
                                        "sshs_model_hash",
                                        "sshs_legacy_hash",
                                        "modelspec.hash_sha256",
                                        "ss_network_module",
                                        "ss_network_dim",
                                        "ss_network_alpha"};
    for (int i = 0; i < TESS_NELEM(about); i++)
        if (strcmp(key, about[i]) == 0)
            return true;
    return false;
}

/* Texts of kohya's trainer are for tools that read its files. */
static bool is_kept(const char *key, tess_adapter_dialect dialect)
{
    const bool is_kohya = strncmp(key, "ss_", 3) == 0 || strncmp(key, "modelspec.", 10) == 0;
    return !is_about_file(key) &&
           (!is_kohya || dialect == TESS_ADAPTER_KOHYA || dialect == TESS_ADAPTER_COMFYUI);
}

/* One rank and alpha for all modules, or nothing is said. */
static tess_status add_trained(adapter_metadata *m, const tess_adapter *from)
{
    const tess_adapter_module *first = &from->module[0].is;
    for (int64_t i = 1; i < from->numel; i++)
        if (from->module[i].is.rank != first->rank || from->module[i].is.alpha != first->alpha)
            return TESS_OK;
    TESS_TRY(add_number(m, "trained.rank", (double)first->rank));
    return add_number(m, "trained.alpha", first->alpha);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : path;
}

/* kohya's keys, as far as they are known to be true. */
static tess_status add_kohya(adapter_metadata *m, const tess_adapter *from,
                             const adapter_group *group, int64_t group_numel)
{
    const char *compute = tess_adapter_metadata(from, "compute.dtype");
    const char *quant = tess_adapter_metadata(from, "base.quant");
    const char *base = tess_adapter_base_name(from);
    bool is_uniform = true;
    for (int64_t i = 1; i < group_numel; i++)
        is_uniform =
            is_uniform && group[i].rank == group[0].rank && group[i].alpha == group[0].alpha;
    TESS_TRY(adapter_metadata_add(m, "ss_network_module", "networks.lora_flux"));
    if (is_uniform) {
        TESS_TRY(add_number(m, "ss_network_dim", (double)group[0].rank));
        TESS_TRY(add_number(m, "ss_network_alpha", group[0].alpha));
    } else {
        TESS_TRY(adapter_metadata_add(m, "ss_network_dim", "Dynamic"));
        TESS_TRY(adapter_metadata_add(m, "ss_network_alpha", "Dynamic"));
    }
    TESS_TRY(adapter_metadata_add(m, "ss_base_model_version", "flux1"));
    if (compute != NULL)
        TESS_TRY(adapter_metadata_add(m, "ss_mixed_precision",
                                      strcmp(compute, "bf16") == 0 ? "bf16" : "no"));
    if (quant != NULL)
        TESS_TRY(adapter_metadata_add(m, "ss_fp8_base",
                                      strcmp(quant, "e4m3/raw") == 0 ? "True" : "False"));
    TESS_TRY(adapter_metadata_add(m, "ss_sd_model_name", base != NULL ? last_part(base) : NULL));
    return adapter_metadata_add(m, "ss_new_sd_model_hash",
                                tess_adapter_metadata(from, "base.sha256"));
}

tess_status adapter_metadata_make(const tess_adapter *from, const tess_adapter_target *to,
                                  const adapter_group *group, int64_t group_numel,
                                  adapter_metadata *out)
{
    if (to->dialect != TESS_ADAPTER_GGUF)
        TESS_TRY(adapter_metadata_add(out, "format", "pt"));
    TESS_TRY(adapter_metadata_add(out, "dialect", tess_adapter_dialect_name(to->dialect)));
    for (int64_t i = 0; i < from->pair_numel; i++)
        if (is_kept(from->pair[i].key, to->dialect))
            TESS_TRY(adapter_metadata_add(out, from->pair[i].key, from->pair[i].value));
    TESS_TRY(add_trained(out, from));
    TESS_TRY(adapter_metadata_add(out, "base.name", tess_adapter_base_name(from)));
    TESS_TRY(adapter_metadata_add(out, "merge.policy", "separate-or-16bit"));
    if (to->dialect == TESS_ADAPTER_KOHYA || to->dialect == TESS_ADAPTER_COMFYUI)
        TESS_TRY(add_kohya(out, from, group, group_numel));
    return TESS_OK;
}
