/*
 * FLUX.1 files of Black Forest Labs, and what others made of them: every tensor under diffusers'
 * name, the fused ones cut by rows.
 *
 * [Note: cuts of coded weights] Constants belong to consecutive elements (codec.h), so a range of
 * rows has a range of every part, as long as it begins where a constant does; constants of a whole
 * tensor go with each of its cuts. Codes and constants stay as they are.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/text.h"
#include "format/flux_names.h"
#include "format/model_dir_priv.h"

/* Of files that hold text encoders and an autoencoder too. */
static const char model_prefix[] = "model.diffusion_model.";

typedef struct splitter {
    tess_model_dir *dir;
    tess_flux_names *names;
    const char *prefix; /* "" or model_prefix */
    tess_model_tensor *tensor;
    int64_t numel;
} splitter;

/* ---- names ---- */

static bool has(const tess_model_dir *dir, const char *prefix, const char *name)
{
    char text[TESS_FLUX_TENSOR_NBYTES];
    snprintf(text, sizeof text, "%s%s", prefix, name);
    return tess_model_dir_find(dir, text) != NULL;
}

/* Scales of the norms over heads; these alone are no linear layers. ComfyUI since 2026 saves each
 * as "weight". */
static bool norm_name(const char *name, char text[TESS_FLUX_TENSOR_NBYTES])
{
    static const struct {
        const char *block, *leaf, *diffusers_block, *diffusers_leaf;
    } norm[] = {
        {"double_blocks", "img_attn.norm.query_norm", "transformer_blocks", "norm_q"},
        {"double_blocks", "img_attn.norm.key_norm", "transformer_blocks", "norm_k"},
        {"double_blocks", "txt_attn.norm.query_norm", "transformer_blocks", "norm_added_q"},
        {"double_blocks", "txt_attn.norm.key_norm", "transformer_blocks", "norm_added_k"},
        {"single_blocks", "norm.query_norm", "single_transformer_blocks", "norm_q"},
        {"single_blocks", "norm.key_norm", "single_transformer_blocks", "norm_k"},
    };
    for (int i = 0; i < TESS_NELEM(norm); i++) {
        char expected[TESS_FLUX_TENSOR_NBYTES];
        const size_t nbytes = strlen(norm[i].block);
        if (strncmp(name, norm[i].block, nbytes) != 0 || name[nbytes] != '.')
            continue;
        char *end = NULL;
        const long block = strtol(name + nbytes + 1, &end, 10);
        const int stem_nbytes =
            snprintf(expected, sizeof expected, "%s.%ld.%s.", norm[i].block, block, norm[i].leaf);
        if (strncmp(name, expected, (size_t)stem_nbytes) != 0 ||
            (strcmp(name + stem_nbytes, "scale") != 0 && strcmp(name + stem_nbytes, "weight") != 0))
            continue;
        snprintf(text, TESS_FLUX_TENSOR_NBYTES, "%s.%ld.attn.%s.weight", norm[i].diffusers_block,
                 block, norm[i].diffusers_leaf);
        return true;
    }
    return false;
}

/* ---- one tensor ---- */

static tess_status refuse(const splitter *s, const tess_model_tensor *t, const char *name,
                          const char *why)
{
    char format[TESS_CODEC_TEXT_NBYTES];
    tess_codec codec;
    TESS_TRY(tess_model_tensor_codec(t, &codec));
    tess_codec_describe(&codec, format);
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "'%s/%s': tensor '%s' (%s) cannot be cut into '%s': %s; give the model with "
                     "q, k and v apart, as diffusers writes it, or in 16 bits",
                     s->dir->path, s->dir->file[t->file_idx].name, t->name, format, name, why);
}

/* Every window begins at a constant of its own. Parts of one element belong to the whole. */
static tess_status set_parts(const splitter *s, tess_row_cut *cut)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    const tess_model_tensor *t = &cut->whole;
    tess_codec codec;
    TESS_TRY(tess_model_tensor_codec(t, &codec));
    TESS_TRY(tess_codec_parts(&codec, t->st->numel, part, &cut->part_numel));
    const bool is_gguf = tess_format_block(codec.format).numel > 0; /* rows are whole blocks */
    const int64_t block = is_gguf || codec.block_numel == 0 ? 1 : codec.block_numel;
    if (t->st->numel % block != 0)
        return refuse(s, t, cut->name, "its last block is not whole");
    for (int i = 0; i < cut->part_numel; i++) {
        const int64_t numel = part[i].numel;
        cut->part[i].nbytes = (int64_t)part[i].nbytes;
        cut->part[i].is_whole = numel == 1;
        if (numel == 1)
            continue;
        if (strcmp(part[i].name, "nested_absmax") == 0 &&
            t->st->numel % (block * TESS_NESTED_BLOCK_NUMEL) != 0)
            return refuse(s, t, cut->name, "the last block of its nested constants is not whole");
        for (int w = 0; w < cut->window_numel; w++)
            if (numel * cut->window[w].first % cut->row_numel != 0 ||
                numel * cut->window[w].numel % cut->row_numel != 0)
                return refuse(s, t, cut->name,
                              "a block of its constants lies on both sides of the cut");
    }
    return TESS_OK;
}

/* Bytes of a window in part `part_idx`, from the start of that part. */
typedef struct byte_run {
    int64_t first, numel;
} byte_run;

static byte_run bytes_of(const tess_row_cut *cut, int part_idx, int window_idx)
{
    const tess_row_window w = cut->window[window_idx];
    const int64_t nbytes = cut->part[part_idx].nbytes;
    if (cut->part[part_idx].is_whole)
        return (byte_run){0, window_idx == 0 ? nbytes : 0};
    return (byte_run){nbytes * w.first / cut->row_numel, nbytes * w.numel / cut->row_numel};
}

/* Rows of `whole` under the name cut->name; windows are set. */
static tess_status add_cut(splitter *s, const tess_model_tensor *whole, tess_row_cut *cut)
{
    tess_model_tensor *t = &s->tensor[s->numel++];
    *t = *whole;
    t->name = cut->name;
    cut->whole = *whole;
    cut->row_numel = whole->st->dim[0];
    if (cut->window_numel == 1 && cut->window[0].numel == cut->row_numel)
        return TESS_OK; /* another name, nothing else */
    cut->shape = *whole->st;
    cut->shape.name = cut->name;
    cut->shape.dim[0] = 0;
    for (int w = 0; w < cut->window_numel; w++)
        cut->shape.dim[0] += cut->window[w].numel;
    cut->shape.numel = whole->st->numel / cut->row_numel * cut->shape.dim[0];
    TESS_TRY(set_parts(s, cut));
    cut->shape.nbytes = 0;
    for (int i = 0; i < cut->part_numel; i++)
        for (int w = 0; w < cut->window_numel; w++)
            cut->shape.nbytes += bytes_of(cut, i, w).numel;
    t->st = &cut->shape;
    t->cut = cut;
    return TESS_OK;
}

static tess_row_cut *next_cut(splitter *s) { return &s->dir->cut[s->dir->cut_numel++]; }

/* A linear layer: a tensor for each of its parts, "weight" or "bias" behind it. */
static tess_status split_site(splitter *s, const tess_model_tensor *t, const tess_flux_name *name,
                              const char *leaf)
{
    const bool is_swapped = tess_flux_is_swapped(name->site);
    const int64_t rows = t->st->dim[0];
    int64_t weight = is_swapped ? 2 : 0, first = 0;
    if (t->packed != NULL && t->packed->is_grouped && (name->part_numel > 1 || is_swapped))
        return refuse(s, t, name->text, "its codes are packed across rows of the whole matrix");
    for (int i = 0; i < name->part_numel && !is_swapped; i++)
        weight += tess_flux_part_weight(name->site, i);
    TESS_CHECK(rows % weight == 0, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected a multiple of %" PRId64 " rows, found %" PRId64,
               s->dir->path, s->dir->file[t->file_idx].name, t->name, weight, rows);
    for (int i = 0; i < name->part_numel; i++) {
        tess_row_cut *cut = next_cut(s);
        char path[TESS_FLUX_NAME_NBYTES];
        const int64_t numel = rows / weight * tess_flux_part_weight(name->site, i);
        tess_flux_part_name(name->site, i, path);
        snprintf(cut->name, sizeof cut->name, "%s.%s", path, leaf);
        cut->window_numel = is_swapped ? 2 : 1;
        cut->window[0] = (tess_row_window){is_swapped ? numel : first, numel};
        cut->window[1] = (tess_row_window){0, numel};
        first += numel;
        TESS_TRY(add_cut(s, t, cut));
    }
    return TESS_OK;
}

static tess_status split_one(splitter *s, const tess_model_tensor *t)
{
    const size_t prefix = strlen(s->prefix);
    const char *name = t->name + (strncmp(t->name, s->prefix, prefix) == 0 ? prefix : 0);
    const char *leaf = tess_ends_with(name, ".weight") ? "weight"
                       : tess_ends_with(name, ".bias") ? "bias"
                                                       : NULL;
    char text[TESS_FLUX_TENSOR_NBYTES];
    if (prefix > 0 && name == t->name)
        return TESS_OK; /* text encoders, an autoencoder */
    TESS_CHECK(t->st->dim_numel > 0, TESS_E_FORMAT, "'%s/%s': tensor '%s' is a single number",
               s->dir->path, s->dir->file[t->file_idx].name, t->name);
    if (norm_name(name, text)) {
        tess_row_cut *cut = next_cut(s);
        memcpy(cut->name, text, sizeof text);
        cut->window_numel = 1;
        cut->window[0].numel = t->st->dim[0];
        return add_cut(s, t, cut);
    }
    const int64_t at =
        leaf == NULL ? -1 : tess_flux_names_find(s->names, name, strlen(name) - strlen(leaf) - 1);
    TESS_CHECK(at >= 0, TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' belongs to no FLUX.1 transformer that is known here",
               s->dir->path, s->dir->file[t->file_idx].name, t->name);
    return split_site(s, t, tess_flux_names_at(s->names, at), leaf);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tess_model_tensor *)a)->name, ((const tess_model_tensor *)b)->name);
}

static tess_status split_all(splitter *s)
{
    void *tensor = NULL, *cut = NULL, *claimed = NULL;
    const int64_t most = s->dir->tensor_numel * TESS_FLUX_PART_MAX;
    TESS_TRY(tess_alloc_array(most, sizeof *s->dir->cut, &cut));
    s->dir->cut = cut;
    TESS_TRY(tess_alloc_array(most, sizeof *s->tensor, &tensor));
    s->tensor = tensor;
    TESS_TRY(tess_alloc_array(most, sizeof(bool), &claimed));
    tess_free(s->dir->is_claimed);
    s->dir->is_claimed = claimed;
    TESS_TRY(tess_flux_names_create(TESS_FLUX_BFL, &s->names));
    for (int64_t i = 0; i < s->dir->tensor_numel; i++)
        TESS_TRY(split_one(s, &s->dir->tensor[i]));
    qsort(s->tensor, (size_t)s->numel, sizeof *s->tensor, by_name);
    return TESS_OK;
}

tess_status tess_flux_cut(tess_model_dir *dir)
{
    static const char *const first[] = {"double_blocks.0.img_attn.qkv.weight",
                                        "single_blocks.0.linear1.weight"};
    splitter s = {.dir = dir, .prefix = NULL};
    for (int i = 0; i < TESS_NELEM(first) && s.prefix == NULL; i++)
        s.prefix = has(dir, "", first[i])             ? ""
                   : has(dir, model_prefix, first[i]) ? model_prefix
                                                      : NULL;
    if (s.prefix == NULL)
        return TESS_OK;
    const tess_status st = split_all(&s);
    tess_flux_names_destroy(&s.names);
    if (st != TESS_OK) {
        tess_free(s.tensor);
        return st;
    }
    tess_free(dir->tensor);
    dir->tensor = s.tensor;
    dir->tensor_numel = s.numel;
    return TESS_OK;
}

/* ---- reading ---- */

tess_status tess_flux_cut_read(const tess_model_dir *dir, const tess_row_cut *cut,
                               int64_t first_nbytes, size_t nbytes, void *dst)
{
    const int64_t end = first_nbytes + (int64_t)nbytes;
    int64_t at = 0, part = 0;
    TESS_CHECK(first_nbytes >= 0 && end <= cut->shape.nbytes, TESS_E_RANGE,
               "tensor '%s': bytes %" PRId64 " + %zu of %" PRId64, cut->name, first_nbytes, nbytes,
               cut->shape.nbytes);
    for (int i = 0; i < cut->part_numel; part += cut->part[i++].nbytes) {
        for (int w = 0; w < cut->window_numel; w++) {
            const byte_run run = bytes_of(cut, i, w);
            const int64_t lo = TESS_MAX(first_nbytes - at, INT64_C(0));
            const int64_t hi = TESS_MIN(end - at, run.numel);
            if (lo < hi)
                TESS_TRY(tess_model_dir_read(dir, &cut->whole, part + run.first + lo,
                                             (size_t)(hi - lo),
                                             (char *)dst + (at + lo - first_nbytes)));
            at += run.numel;
        }
    }
    return TESS_OK;
}
