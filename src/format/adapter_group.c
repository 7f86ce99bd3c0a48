/*
 * What a written file holds: its matrices, made from the modules of an adapter.
 *
 * A fused matrix of q, k, v (and mlp) takes the adapters of its parts. When all have the same A,
 * the fused one keeps it and stacks B. Otherwise A is stacked and B is block-diagonal, of rank the
 * sum of their ranks; alpha grows with it, so that alpha / rank stays. A part without adapter has
 * zero rows in B. (adapter_flux.c [Note: fused and split] is the way back.)
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/flux_names.h"
#include "format/gguf_llm.h"

/* ---- one module, one matrix ---- */

static void group_of_module(const tess_adapter *from, int64_t idx, adapter_group *g)
{
    const tess_adapter_module *m = &from->module[idx].is;
    *g = (adapter_group){.member = {idx},
                         .fold = {1.0},
                         .member_numel = 1,
                         .rank = m->rank,
                         .in_numel = m->in_numel,
                         .out_numel = m->out_numel,
                         .alpha = m->alpha,
                         .has_magnitude = m->has_magnitude};
}

static tess_status check_flux(const tess_adapter *from, const tess_adapter_target *to)
{
    TESS_CHECK(from->is_flux, TESS_E_UNSUPPORTED,
               "export %s: module '%s' of '%s' is no linear layer of FLUX.1; such adapters are "
               "written as peft or gguf",
               tess_adapter_dialect_name(to->dialect), from->module[0].is.path, from->path);
    return TESS_OK;
}

static tess_status check_llm(const tess_adapter *from, const tess_adapter_target *to)
{
    TESS_CHECK(
        !from->is_flux, TESS_E_UNSUPPORTED,
        "export %s: '%s' adapts FLUX.1, whose tools read other files; write it as diffusers, "
        "kohya or comfyui",
        tess_adapter_dialect_name(to->dialect), from->path);
    return TESS_OK;
}

/* alpha / rank goes into B; what is left has alpha = rank, which readers assume. */
static tess_status plan_diffusers(const tess_adapter *from, const tess_adapter_target *to,
                                  adapter_group *group, int64_t *numel)
{
    TESS_TRY(check_flux(from, to));
    for (int64_t i = 0; i < from->numel; i++) {
        adapter_group *g = &group[(*numel)++];
        group_of_module(from, i, g);
        snprintf(g->stem, sizeof g->stem, "%s", from->module[i].is.path);
        g->fold[0] = g->alpha / (double)g->rank;
        g->alpha = (double)g->rank;
    }
    return TESS_OK;
}

static tess_status plan_peft(const tess_adapter *from, const tess_adapter_target *to,
                             adapter_group *group, int64_t *numel)
{
    TESS_TRY(check_llm(from, to));
    for (int64_t i = 0; i < from->numel; i++) {
        adapter_group *g = &group[(*numel)++];
        group_of_module(from, i, g);
        TESS_CHECK(strlen(from->module[i].is.path) < sizeof g->stem, TESS_E_RANGE,
                   "export peft: module '%.64s...' has a name of %zu bytes",
                   from->module[i].is.path, strlen(from->module[i].is.path));
        snprintf(g->stem, sizeof g->stem, "%s", from->module[i].is.path);
    }
    return TESS_OK;
}

/* The file has one alpha. Where modules differ, alpha / rank goes into B and alpha is left out. */
static tess_status plan_gguf(const tess_adapter *from, const tess_adapter_target *to,
                             adapter_group *group, int64_t *numel)
{
    const char *quant = tess_adapter_metadata(from, "base.quant");
    bool is_uniform = true;
    TESS_TRY(check_llm(from, to));
    TESS_CHECK(quant == NULL ||
                   (strstr(quant, "/pissa/") == NULL && strstr(quant, "/loftq/") == NULL),
               TESS_E_UNSUPPORTED,
               "export gguf: '%s' was trained over what lora.init left of the weights (%s), which "
               "no GGUF file holds; write an adapter of the original weights from its checkpoint "
               "with tessera export --difference",
               from->path, quant);
    TESS_CHECK(to->base != NULL, TESS_E_CONFIG,
               "export gguf: the architecture and heads of the model that '%s' adapts are needed; "
               "give it with --base",
               from->path);
    for (int64_t i = 0; i < from->numel; i++)
        is_uniform = is_uniform && from->module[i].is.alpha == from->module[0].is.alpha;
    for (int64_t i = 0; i < from->numel; i++) {
        const tess_adapter_module *m = &from->module[i].is;
        char hf_name[TESS_ST_NAME_MAX_NBYTES + 1], name[TESS_GGUF_NAME_NBYTES];
        adapter_group *g = &group[(*numel)++];
        group_of_module(from, i, g);
        snprintf(hf_name, sizeof hf_name, "%.500s.weight", m->path);
        TESS_CHECK(tess_gguf_name_of(hf_name, name), TESS_E_UNSUPPORTED,
                   "export gguf: module '%s' has no name in GGUF files", m->path);
        TESS_CHECK(!m->has_magnitude, TESS_E_UNSUPPORTED,
                   "export gguf: module '%s' is DoRA, which a GGUF adapter has no place for; use "
                   "peft, or merge",
                   m->path);
        snprintf(g->stem, sizeof g->stem, "%s", name);
        g->head_dim = tess_gguf_interleaved(to->base, name);
        TESS_CHECK(g->head_dim == 0 || g->out_numel % g->head_dim == 0, TESS_E_CONFIG,
                   "export gguf: module '%s' has %" PRId64 " outputs, which are not whole heads of "
                   "%" PRId64 " of the base model",
                   m->path, g->out_numel, g->head_dim);
        if (!is_uniform) {
            g->fold[0] = g->alpha / (double)g->rank;
            g->alpha = 0.0;
        }
    }
    return TESS_OK;
}

/* ---- fused ---- */

static tess_status read_part(const tess_adapter *from, int64_t idx, tess_adapter_part part,
                             float **out)
{
    const adapter_slice *slice = &from->module[idx].part[part];
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(slice->row_numel * slice->col_numel, sizeof(float), &memory));
    const tess_status st = adapter_read_slice(from, slice, memory);
    if (st != TESS_OK) {
        tess_free(memory);
        return st;
    }
    *out = memory;
    return TESS_OK;
}

/* Whether two modules have the same A, bit for bit. */
static tess_status has_same_a(const tess_adapter *from, int64_t x, int64_t y, bool *out)
{
    const adapter_slice *a = &from->module[x].part[TESS_ADAPTER_A];
    const adapter_slice *b = &from->module[y].part[TESS_ADAPTER_A];
    float *left = NULL, *right = NULL;
    *out = false;
    if (a->row_numel != b->row_numel || a->col_numel != b->col_numel)
        return TESS_OK;
    *out = a->st == b->st && a->first_row == b->first_row;
    if (*out)
        return TESS_OK;
    tess_status st = read_part(from, x, TESS_ADAPTER_A, &left);
    if (st == TESS_OK)
        st = read_part(from, y, TESS_ADAPTER_A, &right);
    if (st == TESS_OK)
        *out = memcmp(left, right, (size_t)(a->row_numel * a->col_numel) * sizeof(float)) == 0;
    tess_free(left);
    tess_free(right);
    return st;
}

/* Where the parts' rows lie, from the extents of those that are there. */
static tess_status place_parts(const tess_adapter *from, int site, adapter_group *g)
{
    int64_t unit = 0, row = 0;
    const tess_adapter_module *first = NULL;
    for (int i = 0; i < g->member_numel; i++) {
        if (g->member[i] < 0)
            continue;
        const tess_adapter_module *m = &from->module[g->member[i]].is;
        const int weight = tess_flux_part_weight(site, i);
        first = first == NULL ? m : first;
        unit = unit == 0 ? m->out_numel / weight : unit;
        TESS_CHECK(
            m->in_numel == first->in_numel && m->out_numel == unit * weight, TESS_E_FORMAT,
            "'%s': modules '%s' and '%s' are parts of one matrix in %s, their extents [%" PRId64
            ", %" PRId64 "] and [%" PRId64 ", %" PRId64 "] do not fit",
            from->path, first->path, m->path, g->stem, first->out_numel, first->in_numel,
            m->out_numel, m->in_numel);
    }
    for (int i = 0; i < g->member_numel; i++) {
        g->first_row[i] = row;
        row += unit * tess_flux_part_weight(site, i);
    }
    g->in_numel = first->in_numel;
    g->out_numel = row;
    return TESS_OK;
}

/* DoRA of a fused matrix needs the norms of all its rows; a part without adapter has none. */
static tess_status check_magnitudes(const tess_adapter *from, const adapter_group *g,
                                    const char *with)
{
    for (int i = 0; i < g->member_numel; i++)
        TESS_CHECK(g->member[i] >= 0 && from->module[g->member[i]].is.has_magnitude,
                   TESS_E_UNSUPPORTED,
                   "'%s': module '%s' is DoRA and a part of '%s', another part of which is not; "
                   "the norms of its rows are not known; write it as diffusers",
                   from->path, with, g->stem);
    return TESS_OK;
}

/* Whether all members have one alpha / rank. */
static bool has_one_scale(const tess_adapter *from, const adapter_group *g)
{
    const tess_adapter_module *first = NULL;
    for (int i = 0; i < g->member_numel; i++) {
        if (g->member[i] < 0)
            continue;
        const tess_adapter_module *m = &from->module[g->member[i]].is;
        first = first == NULL ? m : first;
        if (m->alpha * (double)first->rank != first->alpha * (double)m->rank)
            return false;
    }
    return true;
}

/* One matrix has one alpha. Where its parts differ in alpha / rank, that goes into B. */
static tess_status fuse(const tess_adapter *from, adapter_group *g)
{
    const tess_adapter_module *first = NULL, *magnitude = NULL;
    const bool is_folded = !has_one_scale(from, g);
    int64_t first_idx = -1;
    g->is_shared = true;
    for (int i = 0; i < g->member_numel; i++) {
        if (g->member[i] < 0)
            continue;
        const tess_adapter_module *m = &from->module[g->member[i]].is;
        bool is_same = true;
        if (first == NULL) {
            first = m;
            first_idx = g->member[i];
        }
        if (g->is_shared)
            TESS_TRY(has_same_a(from, first_idx, g->member[i], &is_same));
        g->is_shared = g->is_shared && is_same;
        g->rank += m->rank;
        g->fold[i] = is_folded ? m->alpha / (double)m->rank : 1.0;
        magnitude = m->has_magnitude ? m : magnitude;
    }
    if (g->is_shared)
        g->rank = first->rank;
    g->alpha = is_folded ? (double)g->rank : first->alpha * (double)g->rank / (double)first->rank;
    g->has_magnitude = magnitude != NULL;
    return magnitude != NULL ? check_magnitudes(from, g, magnitude->path) : TESS_OK;
}

static tess_status plan_bfl(const tess_adapter *from, const tess_adapter_target *to,
                            const tess_flux_names *names, adapter_group *group, int64_t *numel)
{
    for (int64_t i = 0; i < tess_flux_names_numel(names); i++) {
        const tess_flux_name *name = tess_flux_names_at(names, i);
        adapter_group *g = &group[*numel];
        int there_numel = 0;
        *g = (adapter_group){.member_numel = name->part_numel,
                             .is_swapped = tess_flux_is_swapped(name->site)};
        snprintf(g->stem, sizeof g->stem, "%s", name->text);
        for (int part = 0; part < name->part_numel; part++) {
            char path[TESS_FLUX_NAME_NBYTES];
            tess_flux_part_name(name->site, part, path);
            g->member[part] = tess_adapter_find(from, path);
            there_numel += g->member[part] >= 0;
        }
        if (there_numel == 0)
            continue;
        TESS_TRY(place_parts(from, name->site, g));
        TESS_TRY(fuse(from, g));
        TESS_CHECK(!g->has_magnitude || to->dialect == TESS_ADAPTER_KOHYA, TESS_E_UNSUPPORTED,
                   "export %s: '%s' is DoRA; ComfyUI divides by the norm of W where training "
                   "divided by the norm of W + delta W, so it would not give what was trained; "
                   "merge it, or write it as kohya or diffusers",
                   tess_adapter_dialect_name(to->dialect), g->stem);
        (*numel)++;
    }
    return TESS_OK;
}

static tess_status plan_fused(const tess_adapter *from, const tess_adapter_target *to,
                              adapter_group *group, int64_t *numel)
{
    tess_flux_names *names = NULL;
    TESS_TRY(check_flux(from, to));
    TESS_TRY(tess_flux_names_create(
        to->dialect == TESS_ADAPTER_KOHYA ? TESS_FLUX_BFL_FLAT : TESS_FLUX_BFL, &names));
    const tess_status st = plan_bfl(from, to, names, group, numel);
    tess_flux_names_destroy(&names);
    return st;
}

tess_status adapter_plan_groups(const tess_adapter *from, const tess_adapter_target *to,
                                adapter_group **group, int64_t *group_numel)
{
    void *memory = NULL;
    int64_t numel = 0;
    TESS_CHECK(
        from->whole == NULL, TESS_E_UNSUPPORTED,
        "export %s: '%s' holds '%s', a module that was trained whole (modules_to_save); only "
        "matrices of adapters are converted; merge it",
        tess_adapter_dialect_name(to->dialect), from->path, from->whole);
    tess_status st = tess_alloc_array(from->numel + 1, sizeof **group, &memory);
    TESS_TRY(st);
    switch (to->dialect) {
    case TESS_ADAPTER_PEFT:
        st = plan_peft(from, to, memory, &numel);
        break;
    case TESS_ADAPTER_DIFFUSERS:
        st = plan_diffusers(from, to, memory, &numel);
        break;
    case TESS_ADAPTER_KOHYA:
    case TESS_ADAPTER_COMFYUI:
        st = plan_fused(from, to, memory, &numel);
        break;
    case TESS_ADAPTER_GGUF:
        st = plan_gguf(from, to, memory, &numel);
        break;
    case TESS_ADAPTER_LORA_TRANSFORMER:
    case TESS_ADAPTER_XLABS:
    case TESS_ADAPTER_DIALECT_NUMEL:
        st = TESS_FAIL(TESS_E_ARG, "adapter dialect %d is not written", (int)to->dialect);
    }
    if (st != TESS_OK) {
        tess_free(memory);
        return st;
    }
    *group = memory;
    *group_numel = numel;
    return TESS_OK;
}

/* ---- values ---- */

int64_t adapter_group_part_numel(const adapter_group *g, tess_adapter_part part)
{
    return part == TESS_ADAPTER_A   ? g->rank * g->in_numel
           : part == TESS_ADAPTER_B ? g->out_numel * g->rank
                                    : g->out_numel;
}

/* The row of the file that holds row `row` of a part's canonical order. */
static int64_t file_row(const adapter_group *g, tess_adapter_part part, int64_t row)
{
    const int64_t half = g->out_numel / 2;
    if (part == TESS_ADAPTER_A)
        return row;
    if (g->head_dim > 0)
        return tess_gguf_row(row, g->head_dim);
    if (g->is_swapped)
        return row < half ? row + half : row - half;
    return row;
}

/* Round to nearest even from a double at once: to f32 with the last bit set when inexact ("to
 * odd"), which the second rounding, to at most 22 bits, cannot tell from the exact value. */
static float round_to_odd(double x)
{
    const float f = (float)x;
    uint32_t bits = 0;
    float out = f;
    if ((double)f == x || !isfinite(f))
        return f;
    memcpy(&bits, &f, sizeof bits);
    if (fabs((double)f) > fabs(x))
        bits--;
    bits |= 1U;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static uint16_t bf16_from_f32(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

static bool put_value(tess_dtype dt, double x, char *dst)
{
    const float wide = dt == TESS_F32 ? (float)x : round_to_odd(x);
    uint16_t half = 0;
    if (!isfinite(wide))
        return false;
    if (dt == TESS_F32) {
        memcpy(dst, &wide, sizeof wide);
        return true;
    }
    half = dt == TESS_F16 ? tess_f16_from_f32(wide) : bf16_from_f32(wide);
    memcpy(dst, &half, sizeof half);
    return dt == TESS_F16 ? (half & 0x7c00U) != 0x7c00U : (half & 0x7f80U) != 0x7f80U;
}

typedef struct making {
    const tess_adapter *from;
    const adapter_group *g;
    tess_adapter_part part;
    tess_dtype dt;
    char *bytes;
} making;

/* Put one member's part at its place; columns from `first_col` of rows that have `col_numel`. */
static tess_status put_member(const making *m, int member, int64_t first_row, int64_t first_col)
{
    const adapter_group *g = m->g;
    const int64_t idx = g->member[member];
    const adapter_slice *slice = &m->from->module[idx].part[m->part];
    const int64_t width =
        adapter_group_part_numel(g, m->part) / (m->part == TESS_ADAPTER_A ? g->rank : g->out_numel);
    const double fold = m->part == TESS_ADAPTER_B ? g->fold[member] : 1.0;
    const size_t item = tess_dtype_block_nbytes(m->dt);
    float *value = NULL;
    TESS_TRY(read_part(m->from, idx, m->part, &value));
    for (int64_t i = 0; i < slice->row_numel * slice->col_numel; i++) {
        const int64_t row = file_row(g, m->part, first_row + i / slice->col_numel);
        const int64_t at = row * width + first_col + i % slice->col_numel;
        if (put_value(m->dt, (double)value[i] * fold, m->bytes + (size_t)at * item))
            continue;
        const tess_status st =
            TESS_FAIL(TESS_E_RANGE,
                      "export of '%s': element %" PRId64 " of its %s is %g, which %s cannot hold%s",
                      m->from->module[idx].is.path, i,
                      m->part == TESS_ADAPTER_A   ? "A"
                      : m->part == TESS_ADAPTER_B ? "B"
                                                  : "magnitudes",
                      (double)value[i] * fold, tess_dtype_name(m->dt),
                      m->dt == TESS_F16 ? " (at most 65504); write bf16 or f32" : "");
        tess_free(value);
        return st;
    }
    tess_free(value);
    return TESS_OK;
}

tess_status adapter_make_part(const tess_adapter *from, const adapter_group *g,
                              tess_adapter_part part, tess_dtype dt, void **out)
{
    void *bytes = NULL;
    TESS_TRY(
        tess_alloc_array(adapter_group_part_numel(g, part), tess_dtype_block_nbytes(dt), &bytes));
    const making m = {from, g, part, dt, bytes};
    int64_t rank = 0; /* of the members so far */
    tess_status st = TESS_OK;
    bool is_done = false;
    for (int i = 0; i < g->member_numel && st == TESS_OK && !is_done; i++) {
        if (g->member[i] < 0)
            continue;
        const int64_t at = g->is_shared ? 0 : rank;
        if (part == TESS_ADAPTER_A)
            st = put_member(&m, i, at, 0);
        else
            st = put_member(&m, i, g->first_row[i], part == TESS_ADAPTER_B ? at : 0);
        is_done = part == TESS_ADAPTER_A && g->is_shared;
        rank += from->module[g->member[i]].is.rank;
    }
    if (st != TESS_OK) {
        tess_free(bytes);
        return st;
    }
    *out = bytes;
    return TESS_OK;
}
