/* Adapters with one matrix a module: PEFT directories, and GGUF files of language models. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/flux_names.h"
#include "format/gguf_llm.h"

/* ---- PEFT ---- */

static tess_status find_tensor(const tess_adapter *a, const char *path, const char *suffix,
                               const tess_st_tensor **out)
{
    char *name = NULL;
    TESS_TRY(tess_asprintf(&name, "base_model.model.%s%s", path, suffix));
    *out = tess_safetensors_find(a->weights, name);
    tess_free(name);
    return TESS_OK;
}

static tess_status add_peft(tess_adapter *a, const tess_peft_adapter *from)
{
    static const char *const suffix[] = {".lora_A.weight", ".lora_B.weight",
                                         ".lora_magnitude_vector"};
    const tess_peft_module module = {.path = from->path};
    tess_peft_match match = {.is_target = false};
    adapter_module *m = NULL;
    TESS_TRY(tess_peft_spec_match(tess_peft_dir_spec(a->peft), &module, &match));
    TESS_TRY(adapter_add(a, from->path, strlen(from->path), &m));
    m->is.rank = from->rank;
    m->is.in_numel = from->in_numel;
    m->is.out_numel = from->out_numel;
    m->is.alpha = tess_peft_spec_options(tess_peft_dir_spec(a->peft))->use_rslora
                      ? match.scale * (double)match.rank
                      : match.alpha;
    for (int i = 0; i < TESS_ADAPTER_PART_NUMEL; i++) {
        const tess_st_tensor *t = NULL;
        TESS_TRY(find_tensor(a, from->path, suffix[i], &t));
        if (t == NULL)
            continue;
        TESS_TRY(adapter_check_tensor(a, t, (tess_adapter_part)i));
        m->part[i] = adapter_whole(t);
        m->is.has_magnitude = m->is.has_magnitude || i == TESS_ADAPTER_MAGNITUDE;
    }
    return TESS_OK;
}

/* FLUX.1's when every module is one of its. */
static tess_status find_family(tess_adapter *a)
{
    tess_flux_names *names = NULL;
    TESS_TRY(tess_flux_names_create(TESS_FLUX_DIFFUSERS, &names));
    a->is_flux = a->numel > 0;
    for (int64_t i = 0; i < a->numel; i++)
        a->is_flux = a->is_flux && tess_flux_names_find(names, a->module[i].is.path,
                                                        strlen(a->module[i].is.path)) >= 0;
    tess_flux_names_destroy(&names);
    return TESS_OK;
}

/* What is no part of an adapter, nor PEFT's copy of the weight below one: a module that was trained
 * whole. */
static const char *find_whole(const tess_adapter *a)
{
    size_t nbytes = 0;
    for (int64_t i = 0; i < tess_peft_dir_tensor_numel(a->peft); i++) {
        const char *bare = NULL, *name = tess_peft_dir_tensor_at(a->peft, i, &bare)->name;
        if (adapter_role_of(name, &nbytes) < 0 && !tess_peft_is_base_copy(a->peft, bare))
            return name;
    }
    return NULL;
}

tess_status adapter_open_peft(tess_adapter *a)
{
    a->dialect = TESS_ADAPTER_PEFT;
    for (int64_t i = 0; i < tess_peft_dir_adapter_numel(a->peft); i++)
        TESS_TRY(add_peft(a, tess_peft_dir_adapter_at(a->peft, i)));
    a->whole = find_whole(a);
    return find_family(a);
}

/* ---- GGUF ---- */

typedef struct gguf_reader {
    tess_adapter *a;
    const tess_llm_config *base; /* NULL: not given */
    const char *arch;
    double alpha; /* 0: alpha = rank */
} gguf_reader;

static tess_status expect_text(const tess_adapter *a, const char *key, const char *expected)
{
    const char *text = NULL;
    TESS_TRY(tess_gguf_get_text(a->gguf, key, &text));
    TESS_CHECK(strcmp(text, expected) == 0, TESS_E_UNSUPPORTED,
               "'%s': '%s' is '%.64s', expected '%s'", a->path, key, text, expected);
    return TESS_OK;
}

static tess_status read_header(gguf_reader *r)
{
    static const char key[] = "adapter.lora.alpha";
    TESS_TRY(expect_text(r->a, "general.type", "adapter"));
    TESS_TRY(expect_text(r->a, "adapter.type", "lora"));
    TESS_TRY(tess_gguf_get_text(r->a->gguf, "general.architecture", &r->arch));
    if (tess_gguf_value_of(r->a->gguf, key) != NULL)
        TESS_TRY(tess_gguf_get_f64(r->a->gguf, key, &r->alpha));
    TESS_CHECK(isfinite(r->alpha) && r->alpha >= 0.0, TESS_E_FORMAT,
               "'%s': '%s': expected 0 (for rank) or a positive number, found %g", r->a->path, key,
               r->alpha);
    const char *base = r->base != NULL ? tess_gguf_arch_name(r->base) : r->arch;
    TESS_CHECK(strcmp(base, r->arch) == 0, TESS_E_CONFIG,
               "'%s' adapts a model of architecture '%.64s', the base model given is '%s'",
               r->a->path, r->arch, base);
    return TESS_OK;
}

static tess_status check_gguf_tensor(const gguf_reader *r, const tess_gguf_tensor *t)
{
    TESS_CHECK(t->format == TESS_FORMAT_F32 || t->format == TESS_FORMAT_F16 ||
                   t->format == TESS_FORMAT_BF16,
               TESS_E_UNSUPPORTED, "'%s': tensor '%s': expected f32, f16 or bf16, found %s",
               r->a->path, t->name, tess_format_name(t->format));
    TESS_CHECK(t->dim_numel == 2, TESS_E_FORMAT,
               "'%s': tensor '%s': expected a matrix, found %d dimensions", r->a->path, t->name,
               t->dim_numel);
    return TESS_OK;
}

/* Rows of B of q and k, where the architecture interleaves them. */
static tess_status find_heads(const gguf_reader *r, const tess_gguf_tensor *b, int64_t *head_dim)
{
    const bool is_rotated =
        strstr(b->name, ".attn_q.") != NULL || strstr(b->name, ".attn_k.") != NULL;
    *head_dim = 0;
    if (!is_rotated || strcmp(r->arch, "llama") != 0)
        return TESS_OK;
    *head_dim = -1;
    if (r->base == NULL)
        return TESS_OK;
    *head_dim = tess_gguf_interleaved(r->base, b->name);
    TESS_CHECK(*head_dim > 0 && b->dim[0] % *head_dim == 0, TESS_E_FORMAT,
               "'%s': tensor '%s': %" PRId64 " rows are not whole heads of %" PRId64, r->a->path,
               b->name, b->dim[0], *head_dim);
    return TESS_OK;
}

static adapter_slice whole_gguf(const tess_gguf_tensor *t)
{
    return (adapter_slice){.gguf = t, .row_numel = t->dim[0], .col_numel = t->dim[1]};
}

/* Embeddings stand the other way around in these files, and norms have no matrix. */
static bool is_linear(const char *hf_name)
{
    return strstr(hf_name, "_proj.weight") != NULL || strcmp(hf_name, "lm_head.weight") == 0;
}

/* A with its B; `nbytes` of its name in front of ".lora_a". */
static tess_status add_gguf(gguf_reader *r, const tess_gguf_tensor *a, size_t nbytes)
{
    char stem[TESS_GGUF_NAME_NBYTES], name[TESS_GGUF_NAME_NBYTES + 8];
    char path[TESS_GGUF_HF_NAME_NBYTES];
    adapter_module *m = NULL;
    snprintf(stem, sizeof stem, "%.*s", (int)nbytes, a->name);
    snprintf(name, sizeof name, "%s.lora_b", stem);
    const tess_gguf_tensor *b = tess_gguf_find(r->a->gguf, name);
    TESS_CHECK(b != NULL, TESS_E_FORMAT, "'%s': '%s' has no '%s'", r->a->path, a->name, name);
    TESS_TRY(check_gguf_tensor(r, a));
    TESS_TRY(check_gguf_tensor(r, b));
    TESS_CHECK(tess_gguf_hf_name(stem, path) && is_linear(path), TESS_E_UNSUPPORTED,
               "'%s': tensor '%s' adapts no linear layer that is known here", r->a->path, a->name);
    TESS_CHECK(a->dim[0] == b->dim[1], TESS_E_FORMAT,
               "'%s': '%s': ranks differ, A [%" PRId64 ", %" PRId64 "] and B [%" PRId64 ", %" PRId64
               "]",
               r->a->path, stem, a->dim[0], a->dim[1], b->dim[0], b->dim[1]);
    TESS_TRY(adapter_add(r->a, path, strlen(path) - strlen(".weight"), &m));
    m->is.rank = a->dim[0];
    m->is.in_numel = a->dim[1];
    m->is.out_numel = b->dim[0];
    m->is.alpha = r->alpha > 0.0 ? r->alpha : (double)m->is.rank;
    m->part[TESS_ADAPTER_A] = whole_gguf(a);
    m->part[TESS_ADAPTER_B] = whole_gguf(b);
    return find_heads(r, b, &m->part[TESS_ADAPTER_B].head_dim);
}

static bool cut_suffix(const char *name, const char *suffix, size_t *nbytes)
{
    const size_t all = strlen(name), tail = strlen(suffix);
    *nbytes = all - tail;
    return all > tail && strcmp(name + all - tail, suffix) == 0;
}

tess_status adapter_open_gguf(tess_adapter *a, const tess_adapter_options *options)
{
    gguf_reader r = {.a = a, .base = options->base};
    int64_t b_numel = 0;
    a->dialect = TESS_ADAPTER_GGUF;
    TESS_TRY(read_header(&r));
    for (int64_t i = 0; i < tess_gguf_tensor_numel(a->gguf); i++) {
        const tess_gguf_tensor *t = tess_gguf_at(a->gguf, i);
        size_t nbytes = 0;
        if (cut_suffix(t->name, ".lora_a", &nbytes)) {
            TESS_TRY(add_gguf(&r, t, nbytes));
            continue;
        }
        TESS_CHECK(cut_suffix(t->name, ".lora_b", &nbytes), TESS_E_UNSUPPORTED,
                   "'%s': tensor '%s' is not understood: expected <weight>.lora_a and .lora_b",
                   a->path, t->name);
        b_numel++;
    }
    TESS_CHECK(b_numel == a->numel, TESS_E_FORMAT,
               "'%s': %" PRId64 " tensors lora_a, %" PRId64 " tensors lora_b", a->path, a->numel,
               b_numel);
    return TESS_OK;
}
