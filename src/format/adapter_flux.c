/*
 * Adapters of FLUX.1 in one safetensors file: which dialect, which matrices, and their parts.
 *
 * [Note: fused and split] A fused matrix that was adapted as one has one A for all its parts, and
 * each part takes its rows of B. One that was made from separate adapters has a block-diagonal B;
 * then each part takes its block and its rows of A, and rank and alpha are divided, so that alpha /
 * rank stays. Both ways are exact. (formats.md 10.2)
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/flux_names.h"

typedef struct key_style {
    const char *prefix;
    tess_adapter_dialect dialect;
    tess_flux_style style;
    const char *mark; /* also stands in the key; NULL: nothing */
} key_style;

/* In this order: a key belongs to the first that fits. */
static const key_style styles[] = {
    {"diffusion_model.", TESS_ADAPTER_XLABS, TESS_FLUX_XLABS, ".processor."},
    {"", TESS_ADAPTER_XLABS, TESS_FLUX_XLABS, ".processor."},
    {"lora_unet_", TESS_ADAPTER_KOHYA, TESS_FLUX_BFL_FLAT, NULL},
    {"diffusion_model.", TESS_ADAPTER_COMFYUI, TESS_FLUX_BFL, NULL},
    {"transformer.", TESS_ADAPTER_DIFFUSERS, TESS_FLUX_DIFFUSERS, NULL},
    {"lora_transformer_", TESS_ADAPTER_LORA_TRANSFORMER, TESS_FLUX_DIFFUSERS_FLAT, NULL},
    {"transformer_blocks.", TESS_ADAPTER_DIFFUSERS, TESS_FLUX_DIFFUSERS, NULL},
    {"single_transformer_blocks.", TESS_ADAPTER_DIFFUSERS, TESS_FLUX_DIFFUSERS, NULL},
};

/* Tensors of one name. */
typedef struct key_group {
    const tess_st_tensor *role[ADAPTER_ROLE_NUMEL];
} key_group;

typedef struct flux_reader {
    tess_adapter *a;
    const tess_adapter_options *options;
    const key_style *style;
    const char *first_key; /* that showed the style */
    tess_flux_names *names;
    key_group *group;     /* [names] */
    tess_json *config;    /* of lora_adapter_metadata */
    tess_peft_spec *spec; /* of the same, NULL: alpha = rank */
} flux_reader;

/* ---- keys ---- */

static bool is_text_encoder(const char *key)
{
    static const char *const prefix[] = {"lora_te_",      "lora_te1_",     "lora_te2_",
                                         "lora_te3_",     "text_encoder.", "text_encoder_2.",
                                         "text_encoders."};
    for (int i = 0; i < TESS_NELEM(prefix); i++)
        if (strncmp(key, prefix[i], strlen(prefix[i])) == 0)
            return true;
    return false;
}

static const key_style *style_of(const char *key)
{
    for (int i = 0; i < TESS_NELEM(styles); i++)
        if (strncmp(key, styles[i].prefix, strlen(styles[i].prefix)) == 0 &&
            (styles[i].mark == NULL || strstr(key, styles[i].mark) != NULL))
            return &styles[i];
    return NULL;
}

/* Files without prefix hold top-level modules under their bare name. */
static bool is_bare(const key_style *style) { return strstr(style->prefix, "_blocks.") != NULL; }

/* Where the module's name starts in a key; false: not a key of this style. */
static bool cut_prefix(const key_style *style, const char *key, size_t *nbytes)
{
    *nbytes = is_bare(style) ? 0 : strlen(style->prefix);
    return strncmp(key, style->prefix, *nbytes) == 0;
}

static bool is_same_style(const key_style *a, const key_style *b)
{
    return a == b || (is_bare(a) && is_bare(b));
}

static tess_status find_style(flux_reader *r)
{
    const tess_safetensors *file = r->a->weights;
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const char *key = tess_safetensors_at(file, i)->name;
        const key_style *style = style_of(key);
        TESS_CHECK(strncmp(key, "base_model.model.", 17) != 0, TESS_E_UNSUPPORTED,
                   "'%s': key '%s' is PEFT's, whose alpha stands in adapter_config.json; give the "
                   "directory that holds both",
                   r->a->path, key);
        TESS_CHECK(adapter_other_kind(key) == NULL, TESS_E_UNSUPPORTED,
                   "'%s': key '%s' is %s's; LoRA and DoRA are read, other adapters are not",
                   r->a->path, key, adapter_other_kind(key));
        if (is_text_encoder(key) || style == NULL)
            continue;
        TESS_CHECK(r->style == NULL || is_same_style(style, r->style), TESS_E_FORMAT,
                   "'%s': keys of two dialects: '%s' (%s) and '%s' (%s)", r->a->path, r->first_key,
                   tess_adapter_dialect_name(r->style->dialect), key,
                   tess_adapter_dialect_name(style->dialect));
        if (r->style == NULL) {
            r->style = style;
            r->first_key = key;
        }
    }
    TESS_CHECK(r->style != NULL, TESS_E_UNSUPPORTED,
               "'%s': no key of a known dialect (lora_unet_, diffusion_model., transformer., "
               "lora_transformer_, .processor.), first key '%s'",
               r->a->path,
               tess_safetensors_numel(file) > 0 ? tess_safetensors_at(file, 0)->name : "");
    r->a->dialect = r->style->dialect;
    return TESS_OK;
}

/* A key's place, or what is wrong with it. */
static tess_status sort_key(flux_reader *r, const tess_st_tensor *t)
{
    size_t stem_nbytes = 0;
    if (is_text_encoder(t->name)) {
        TESS_CHECK(r->options->skip_text_encoders, TESS_E_UNSUPPORTED,
                   "'%s': key '%s' adapts a text encoder, which has no place here; leave such keys "
                   "out with --skip-text-encoders",
                   r->a->path, t->name);
        r->a->skipped_numel++;
        return TESS_OK;
    }
    size_t head = 0;
    const int role = adapter_role_of(t->name, &stem_nbytes);
    const bool is_ours = role >= 0 && cut_prefix(r->style, t->name, &head) && stem_nbytes > head;
    const int64_t at =
        is_ours ? tess_flux_names_find(r->names, t->name + head, stem_nbytes - head) : -1;
    TESS_CHECK(at >= 0, TESS_E_UNSUPPORTED,
               "'%s': key '%s' is not understood: expected <module>.lora_A.weight (or lora_down), "
               "lora_B (lora_up), alpha or dora_scale of a linear layer of FLUX.1 in %s naming",
               r->a->path, t->name, tess_adapter_dialect_name(r->a->dialect));
    TESS_CHECK(r->group[at].role[role] == NULL, TESS_E_FORMAT,
               "'%s': keys '%s' and '%s' are the same part of one module", r->a->path,
               r->group[at].role[role]->name, t->name);
    r->group[at].role[role] = t;
    return TESS_OK;
}

/* ---- alpha ---- */

static const char config_key[] = "lora_adapter_metadata";

/* Members for the transformer as an adapter_config.json has them. Whether it is DoRA diffusers
 * tells from the tensors, and so does this; that it is LoRA need not stand there. */
static tess_status take_members(const tess_json *root, tess_json *config)
{
    static const char prefix[] = "transformer.";
    for (int64_t i = 0; i < tess_json_numel(root); i++) {
        const tess_json *v = tess_json_at(root, i);
        const char *name = tess_json_key(v);
        const bool is_prefixed = name != NULL && strncmp(name, prefix, sizeof prefix - 1) == 0;
        if (name == NULL || is_text_encoder(name))
            continue;
        name += is_prefixed ? sizeof prefix - 1 : 0;
        if (strcmp(name, "use_dora") != 0)
            TESS_TRY(tess_json_add_copy(config, name, v));
    }
    return tess_json_find(config, "peft_type") != NULL
               ? TESS_OK
               : tess_json_add_string(config, "peft_type", "LORA");
}

/* The same tree under a name, which messages about it state. */
static tess_status name_tree(const char *path, tess_json **tree)
{
    char *name = NULL, *text = NULL;
    size_t nbytes = 0;
    tess_status st = tess_json_dump(*tree, 0, &text, &nbytes);
    tess_json_destroy(tree);
    if (st == TESS_OK)
        st = tess_asprintf(&name, "%s: %s", path, config_key);
    if (st == TESS_OK)
        st = tess_json_parse(name, text, nbytes, tree);
    tess_free(name);
    tess_free(text);
    return st;
}

/* The options that diffusers keeps in the metadata. */
static tess_status read_config(flux_reader *r)
{
    const char *text = tess_safetensors_metadata(r->a->weights, config_key);
    tess_json *root = NULL;
    if (text == NULL || r->a->dialect != TESS_ADAPTER_DIFFUSERS)
        return TESS_OK;
    TESS_TRY(tess_json_parse(config_key, text, strlen(text), &root));
    tess_status st = tess_json_create_object(&r->config);
    if (st == TESS_OK)
        st = take_members(root, r->config);
    tess_json_destroy(&root);
    if (st == TESS_OK)
        st = name_tree(r->a->path, &r->config);
    TESS_TRY(st);
    return tess_peft_config_parse(r->config, &r->spec, NULL);
}

static tess_status read_alpha(const flux_reader *r, const key_group *g, double *alpha)
{
    const tess_st_tensor *t = g->role[ADAPTER_ALPHA];
    float value = 0.0F;
    TESS_CHECK(t->numel == 1 &&
                   (t->dtype == TESS_ST_F32 || t->dtype == TESS_ST_BF16 || t->dtype == TESS_ST_F16),
               TESS_E_FORMAT,
               "'%s': tensor '%s': expected one number of F32, BF16 or F16, found "
               "%" PRId64 " of %s",
               r->a->path, t->name, t->numel, tess_st_dtype_name(t->dtype));
    TESS_CHECK(r->spec == NULL, TESS_E_FORMAT,
               "'%s': alpha of '%s' stands twice, as a tensor and in lora_adapter_metadata; which "
               "one holds cannot be told",
               r->a->path, t->name);
    adapter_slice slice = adapter_whole(t);
    if (t->dim_numel == 0)
        slice.row_numel = 1;
    TESS_TRY(adapter_read_slice(r->a, &slice, &value));
    TESS_CHECK(isfinite(value) && value > 0.0F, TESS_E_FORMAT,
               "'%s': tensor '%s': expected a positive alpha, found %g", r->a->path, t->name,
               (double)value);
    *alpha = (double)value;
    return TESS_OK;
}

/* alpha of one name: a tensor, the metadata's, or the rank. */
static tess_status find_alpha(const flux_reader *r, const tess_flux_name *name, const key_group *g,
                              double *alpha)
{
    const int64_t rank = g->role[TESS_ADAPTER_A]->dim[0];
    *alpha = (double)rank;
    if (g->role[ADAPTER_ALPHA] != NULL)
        return read_alpha(r, g, alpha);
    if (r->spec == NULL)
        return TESS_OK;
    const tess_peft_module module = {.path = name->text};
    tess_peft_match m = {.is_target = false};
    TESS_TRY(tess_peft_spec_match(r->spec, &module, &m));
    TESS_CHECK(m.is_target && m.rank == rank, TESS_E_FORMAT,
               "'%s': module '%s' has rank %" PRId64 ", lora_adapter_metadata says %" PRId64 "%s",
               r->a->path, name->text, rank, m.rank, m.is_target ? "" : " (no target)");
    *alpha = m.scale * (double)rank;
    return TESS_OK;
}

/* ---- modules ---- */

static tess_status check_group(const flux_reader *r, const tess_flux_name *name, const key_group *g)
{
    const tess_st_tensor *a = g->role[TESS_ADAPTER_A], *b = g->role[TESS_ADAPTER_B];
    const tess_st_tensor *m = g->role[TESS_ADAPTER_MAGNITUDE];
    TESS_CHECK(a != NULL && b != NULL, TESS_E_FORMAT, "'%s': module '%s' has no %s", r->a->path,
               name->text, a == NULL ? "lora_A (lora_down)" : "lora_B (lora_up)");
    TESS_TRY(adapter_check_tensor(r->a, a, TESS_ADAPTER_A));
    TESS_TRY(adapter_check_tensor(r->a, b, TESS_ADAPTER_B));
    TESS_CHECK(a->dim[0] == b->dim[1], TESS_E_FORMAT,
               "'%s': module '%s': ranks differ, A [%" PRId64 ", %" PRId64 "] and B [%" PRId64
               ", %" PRId64 "]",
               r->a->path, name->text, a->dim[0], a->dim[1], b->dim[0], b->dim[1]);
    if (m == NULL)
        return TESS_OK;
    TESS_TRY(adapter_check_tensor(r->a, m, TESS_ADAPTER_MAGNITUDE));
    TESS_CHECK(m->dim[0] == b->dim[0], TESS_E_UNSUPPORTED,
               "'%s': tensor '%s': expected %" PRId64 " magnitudes, one per output, found %" PRId64,
               r->a->path, m->name, b->dim[0], m->dim[0]);
    return TESS_OK;
}

/* First rows of the parts in B; they must be whole multiples of the smallest part. */
static tess_status cut_rows(const flux_reader *r, const tess_flux_name *name, int64_t out_numel,
                            int64_t first_row[TESS_FLUX_PART_MAX + 1])
{
    int weight = 0;
    for (int i = 0; i < name->part_numel; i++)
        weight += tess_flux_part_weight(name->site, name->first_part + i);
    TESS_CHECK(out_numel % weight == 0, TESS_E_FORMAT,
               "'%s': module '%s' has %" PRId64 " outputs, expected a multiple of %d", r->a->path,
               name->text, out_numel, weight);
    const int64_t unit = name->part_numel > 1 ? out_numel / weight : out_numel;
    first_row[0] = 0;
    for (int i = 0; i < name->part_numel; i++)
        first_row[i + 1] =
            name->part_numel > 1
                ? first_row[i] + unit * tess_flux_part_weight(name->site, name->first_part + i)
                : out_numel;
    TESS_CHECK(!tess_flux_is_swapped(name->site) || out_numel % 2 == 0, TESS_E_FORMAT,
               "'%s': module '%s' has %" PRId64 " outputs, expected two halves", r->a->path,
               name->text, out_numel);
    return TESS_OK;
}

/* Rows [first, first + row_numel) of B are zero outside of columns [lo, hi). */
static tess_status is_zero_outside(const flux_reader *r, const adapter_slice *rows, int64_t lo,
                                   int64_t hi, bool *out)
{
    void *memory = NULL;
    const int64_t numel = rows->row_numel * rows->col_numel;
    TESS_TRY(tess_alloc_array(numel, sizeof(float), &memory));
    const float *value = memory;
    const tess_status st = adapter_read_slice(r->a, rows, memory);
    for (int64_t i = 0; st == TESS_OK && i < numel; i++) {
        const int64_t col = i % rows->col_numel;
        *out = *out && ((col >= lo && col < hi) || value[i] == 0.0F);
    }
    tess_free(memory);
    return st;
}

/* The first row of a part is looked at alone: a dense B is known by it. */
static tess_status is_block_diagonal(const flux_reader *r, const tess_flux_name *name,
                                     const tess_st_tensor *b, const int64_t *first_row, bool *out)
{
    const int64_t rank = b->dim[1], block = rank / name->part_numel;
    bool is_zero = name->part_numel > 1 && rank % name->part_numel == 0;
    for (int part = 0; is_zero && part < name->part_numel; part++) {
        const int64_t row_numel = first_row[part + 1] - first_row[part];
        adapter_slice rows = {
            .st = b, .first_row = first_row[part], .row_numel = 1, .col_numel = rank};
        TESS_TRY(is_zero_outside(r, &rows, part * block, (part + 1) * block, &is_zero));
        rows.row_numel = row_numel;
        if (is_zero)
            TESS_TRY(is_zero_outside(r, &rows, part * block, (part + 1) * block, &is_zero));
    }
    *out = is_zero;
    return TESS_OK;
}

static tess_status add_part(flux_reader *r, const tess_flux_name *name, const key_group *g,
                            int part, const int64_t *first_row, adapter_module *like)
{
    const tess_st_tensor *magnitude = g->role[TESS_ADAPTER_MAGNITUDE];
    char path[TESS_FLUX_NAME_NBYTES];
    adapter_module *m = NULL;
    tess_flux_part_name(name->site, name->first_part + part, path);
    TESS_TRY(adapter_add(r->a, path, strlen(path), &m));
    const char *own = m->is.path;
    *m = *like;
    m->is.path = own;
    m->is.out_numel = first_row[part + 1] - first_row[part];
    m->part[TESS_ADAPTER_B].first_row = first_row[part];
    m->part[TESS_ADAPTER_B].row_numel = m->is.out_numel;
    if (magnitude != NULL) {
        m->part[TESS_ADAPTER_MAGNITUDE] = adapter_whole(magnitude);
        m->part[TESS_ADAPTER_MAGNITUDE].first_row = first_row[part];
        m->part[TESS_ADAPTER_MAGNITUDE].row_numel = m->is.out_numel;
    }
    const bool is_bfl =
        r->style->style != TESS_FLUX_DIFFUSERS && r->style->style != TESS_FLUX_DIFFUSERS_FLAT;
    for (int i = TESS_ADAPTER_B; i < TESS_ADAPTER_PART_NUMEL; i++)
        m->part[i].is_swapped = is_bfl && tess_flux_is_swapped(name->site);
    return TESS_OK;
}

static tess_status add_group(flux_reader *r, const tess_flux_name *name, const key_group *g)
{
    const tess_st_tensor *a = g->role[TESS_ADAPTER_A], *b = g->role[TESS_ADAPTER_B];
    int64_t first_row[TESS_FLUX_PART_MAX + 1];
    bool is_diagonal = false;
    TESS_TRY(check_group(r, name, g));
    TESS_TRY(cut_rows(r, name, b->dim[0], first_row));
    TESS_TRY(is_block_diagonal(r, name, b, first_row, &is_diagonal));
    const int64_t rank = is_diagonal ? a->dim[0] / name->part_numel : a->dim[0];
    adapter_module like = {
        .is = {.rank = rank,
               .in_numel = a->dim[1],
               .has_magnitude = g->role[TESS_ADAPTER_MAGNITUDE] != NULL},
        .part = {[TESS_ADAPTER_A] = adapter_whole(a), [TESS_ADAPTER_B] = adapter_whole(b)}};
    TESS_TRY(find_alpha(r, name, g, &like.is.alpha));
    if (is_diagonal)
        like.is.alpha /= name->part_numel;
    like.part[TESS_ADAPTER_A].row_numel = rank;
    like.part[TESS_ADAPTER_B].col_numel = rank;
    for (int part = 0; part < name->part_numel; part++) {
        if (is_diagonal) {
            like.part[TESS_ADAPTER_A].first_row = part * rank;
            like.part[TESS_ADAPTER_B].first_col = part * rank;
        }
        TESS_TRY(add_part(r, name, g, part, first_row, &like));
    }
    return TESS_OK;
}

static bool is_empty(const key_group *g)
{
    for (int i = 0; i < ADAPTER_ROLE_NUMEL; i++)
        if (g->role[i] != NULL)
            return false;
    return true;
}

static tess_status read_all(flux_reader *r)
{
    TESS_TRY(find_style(r));
    TESS_TRY(tess_flux_names_create(r->style->style, &r->names));
    TESS_TRY(
        tess_alloc_array(tess_flux_names_numel(r->names), sizeof *r->group, (void **)&r->group));
    for (int64_t i = 0; i < tess_safetensors_numel(r->a->weights); i++)
        TESS_TRY(sort_key(r, tess_safetensors_at(r->a->weights, i)));
    TESS_TRY(read_config(r));
    for (int64_t i = 0; i < tess_flux_names_numel(r->names); i++)
        if (!is_empty(&r->group[i]))
            TESS_TRY(add_group(r, tess_flux_names_at(r->names, i), &r->group[i]));
    return TESS_OK;
}

tess_status adapter_open_flux(tess_adapter *a, const tess_adapter_options *options)
{
    flux_reader r = {.a = a, .options = options};
    a->is_flux = true;
    const tess_status st = read_all(&r);
    tess_free(r.group);
    tess_flux_names_destroy(&r.names);
    tess_peft_spec_destroy(&r.spec);
    tess_json_destroy(&r.config);
    return st;
}
