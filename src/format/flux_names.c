#include "format/flux_names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

typedef struct site_row {
    const char *bfl;
    const char *part[TESS_FLUX_PART_MAX];
    const char *xlabs; /* NULL: none */
    int xlabs_part_numel;
    bool is_swapped;
} site_row;

static const site_row top_rows[] = {
    {.bfl = "img_in", .part = {"x_embedder"}},
    {.bfl = "txt_in", .part = {"context_embedder"}},
    {.bfl = "time_in.in_layer", .part = {"time_text_embed.timestep_embedder.linear_1"}},
    {.bfl = "time_in.out_layer", .part = {"time_text_embed.timestep_embedder.linear_2"}},
    {.bfl = "vector_in.in_layer", .part = {"time_text_embed.text_embedder.linear_1"}},
    {.bfl = "vector_in.out_layer", .part = {"time_text_embed.text_embedder.linear_2"}},
    {.bfl = "guidance_in.in_layer", .part = {"time_text_embed.guidance_embedder.linear_1"}},
    {.bfl = "guidance_in.out_layer", .part = {"time_text_embed.guidance_embedder.linear_2"}},
    {.bfl = "final_layer.linear", .part = {"proj_out"}},
    {.bfl = "final_layer.adaLN_modulation.1", .part = {"norm_out.linear"}, .is_swapped = true},
};
static const site_row double_rows[] = {
    {.bfl = "img_mod.lin", .part = {"norm1.linear"}},
    {.bfl = "img_attn.qkv",
     .part = {"attn.to_q", "attn.to_k", "attn.to_v"},
     .xlabs = "qkv_lora1",
     .xlabs_part_numel = 3},
    {.bfl = "img_attn.proj",
     .part = {"attn.to_out.0"},
     .xlabs = "proj_lora1",
     .xlabs_part_numel = 1},
    {.bfl = "img_mlp.0", .part = {"ff.net.0.proj"}},
    {.bfl = "img_mlp.2", .part = {"ff.net.2"}},
    {.bfl = "txt_mod.lin", .part = {"norm1_context.linear"}},
    {.bfl = "txt_attn.qkv",
     .part = {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"},
     .xlabs = "qkv_lora2",
     .xlabs_part_numel = 3},
    {.bfl = "txt_attn.proj",
     .part = {"attn.to_add_out"},
     .xlabs = "proj_lora2",
     .xlabs_part_numel = 1},
    {.bfl = "txt_mlp.0", .part = {"ff_context.net.0.proj"}},
    {.bfl = "txt_mlp.2", .part = {"ff_context.net.2"}},
};
static const site_row single_rows[] = {
    {.bfl = "linear1",
     .part = {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"},
     .xlabs = "qkv_lora",
     .xlabs_part_numel = 3},
    {.bfl = "linear2", .part = {"proj_out"}, .xlabs = "proj_lora", .xlabs_part_numel = 1},
    {.bfl = "modulation.lin", .part = {"norm.linear"}},
};

static const struct {
    const char *bfl, *diffusers; /* in front of the block's number; NULL: no blocks */
    const site_row *row;
    int row_numel, block_numel;
} groups[] = {
    {NULL, NULL, top_rows, TESS_NELEM(top_rows), 1},
    {"double_blocks", "transformer_blocks", double_rows, TESS_NELEM(double_rows),
     TESS_FLUX_DOUBLE_NUMEL},
    {"single_blocks", "single_transformer_blocks", single_rows, TESS_NELEM(single_rows),
     TESS_FLUX_SINGLE_NUMEL},
};

enum {
    SITE_NUMEL = TESS_NELEM(top_rows) + TESS_NELEM(double_rows) * TESS_FLUX_DOUBLE_NUMEL +
                 TESS_NELEM(single_rows) * TESS_FLUX_SINGLE_NUMEL
};

struct tess_flux_names {
    tess_flux_name *name; /* [numel] by text */
    int64_t numel;
};

typedef struct place {
    const site_row *row;
    int group, block;
} place;

static place place_of(int site)
{
    int group = 0;
    while (site >= groups[group].row_numel * groups[group].block_numel) {
        site -= groups[group].row_numel * groups[group].block_numel;
        group++;
    }
    const int row_numel = groups[group].row_numel;
    return (place){&groups[group].row[site % row_numel], group, site / row_numel};
}

/* ---- facts of a site ---- */

int tess_flux_part_numel(int site)
{
    const place p = place_of(site);
    int numel = 0;
    while (numel < TESS_FLUX_PART_MAX && p.row->part[numel] != NULL)
        numel++;
    return numel;
}

int tess_flux_part_weight(int site, int part)
{
    return strcmp(place_of(site).row->part[part], "proj_mlp") == 0 ? 4 : 1;
}

bool tess_flux_is_swapped(int site) { return place_of(site).row->is_swapped; }

/* ---- names ---- */

static void join(const char *block, int number, const char *leaf, char text[TESS_FLUX_NAME_NBYTES])
{
    if (block == NULL)
        snprintf(text, TESS_FLUX_NAME_NBYTES, "%.63s", leaf);
    else
        snprintf(text, TESS_FLUX_NAME_NBYTES, "%.26s.%d.%.24s", block, number, leaf);
}

void tess_flux_part_name(int site, int part, char text[TESS_FLUX_NAME_NBYTES])
{
    const place p = place_of(site);
    join(groups[p.group].diffusers, p.block, p.row->part[part], text);
}

static bool first_of(const site_row *row, const char *leaf, const char **first)
{
    for (int part = 1; part < TESS_FLUX_PART_MAX && row->part[part] != NULL; part++) {
        if (strcmp(row->part[part], leaf) == 0) {
            *first = row->part[0];
            return true;
        }
    }
    return false;
}

bool tess_flux_first_part(const char *path, char text[TESS_FLUX_NAME_NBYTES])
{
    for (int g = 1; g < TESS_NELEM(groups); g++) {
        const size_t nbytes = strlen(groups[g].diffusers);
        const char *first = NULL;
        char *leaf = NULL;
        if (strncmp(path, groups[g].diffusers, nbytes) != 0 || path[nbytes] != '.')
            continue;
        const long block = strtol(path + nbytes + 1, &leaf, 10);
        for (int i = 0; i < groups[g].row_numel && *leaf == '.'; i++) {
            if (!first_of(&groups[g].row[i], leaf + 1, &first))
                continue;
            join(groups[g].diffusers, (int)block, first, text);
            return true;
        }
    }
    return false;
}

static void flatten(char *text)
{
    for (; *text != '\0'; text++)
        if (*text == '.')
            *text = '_';
}

static void add_parts(tess_flux_names *n, int site)
{
    for (int part = 0; part < tess_flux_part_numel(site); part++) {
        tess_flux_name *name = &n->name[n->numel++];
        *name = (tess_flux_name){.site = site, .first_part = part, .part_numel = 1};
        tess_flux_part_name(site, part, name->text);
    }
}

static void add_site(tess_flux_names *n, int site)
{
    const place p = place_of(site);
    tess_flux_name *name = &n->name[n->numel++];
    *name = (tess_flux_name){.site = site, .part_numel = tess_flux_part_numel(site)};
    join(groups[p.group].bfl, p.block, p.row->bfl, name->text);
}

static void add_xlabs(tess_flux_names *n, int site)
{
    const place p = place_of(site);
    char leaf[TESS_FLUX_NAME_NBYTES];
    if (p.row->xlabs == NULL)
        return;
    tess_flux_name *name = &n->name[n->numel++];
    *name = (tess_flux_name){.site = site, .part_numel = p.row->xlabs_part_numel};
    snprintf(leaf, sizeof leaf, "processor.%s", p.row->xlabs);
    join(groups[p.group].bfl, p.block, leaf, name->text);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(((const tess_flux_name *)a)->text, ((const tess_flux_name *)b)->text);
}

tess_status tess_flux_names_create(tess_flux_style style, tess_flux_names **out)
{
    void *object = NULL, *name = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_flux_names), &object));
    tess_flux_names *n = object;
    const tess_status st =
        tess_alloc_array((int64_t)SITE_NUMEL * TESS_FLUX_PART_MAX, sizeof(tess_flux_name), &name);
    n->name = name;
    if (st != TESS_OK) {
        tess_flux_names_destroy(&n);
        return st;
    }
    for (int site = 0; site < SITE_NUMEL; site++) {
        if (style == TESS_FLUX_DIFFUSERS || style == TESS_FLUX_DIFFUSERS_FLAT)
            add_parts(n, site);
        else if (style == TESS_FLUX_XLABS)
            add_xlabs(n, site);
        else
            add_site(n, site);
    }
    if (style == TESS_FLUX_DIFFUSERS_FLAT || style == TESS_FLUX_BFL_FLAT)
        for (int64_t i = 0; i < n->numel; i++)
            flatten(n->name[i].text);
    qsort(n->name, (size_t)n->numel, sizeof *n->name, by_text);
    *out = n;
    return TESS_OK;
}

void tess_flux_names_destroy(tess_flux_names **names)
{
    if (*names != NULL)
        tess_free((*names)->name);
    tess_free(*names);
    *names = NULL;
}

int64_t tess_flux_names_numel(const tess_flux_names *names) { return names->numel; }

const tess_flux_name *tess_flux_names_at(const tess_flux_names *names, int64_t idx)
{
    return &names->name[idx];
}

int64_t tess_flux_names_find(const tess_flux_names *names, const char *text, size_t nbytes)
{
    tess_flux_name key;
    if (nbytes >= sizeof key.text)
        return -1;
    memcpy(key.text, text, nbytes);
    key.text[nbytes] = '\0';
    const tess_flux_name *found =
        bsearch(&key, names->name, (size_t)names->numel, sizeof key, by_text);
    return found != NULL ? found - names->name : -1;
}
