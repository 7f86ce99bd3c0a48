/**
 * Linear layers of the FLUX.1 transformer under the names that files give them.
 *
 * A *site* is a matrix as Black Forest Labs stores it; diffusers cuts some sites into *parts* by
 * rows (img_attn.qkv is to_q, to_k and to_v). Rows of `final_layer.adaLN_modulation.1` are shift,
 * then scale; in diffusers' `norm_out.linear` the halves are swapped.
 *
 * Names without dots are ambiguous ("_" also stands inside of names), so they are looked up in the
 * whole list and never taken apart.
 *
 * @source diffusers scripts/convert_flux_to_diffusers.py; flux src/flux/model.py
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

TESS_BEGIN_DECLS

enum {
    TESS_FLUX_DOUBLE_NUMEL = 19,
    TESS_FLUX_SINGLE_NUMEL = 38,
    TESS_FLUX_PART_MAX = 4,
    TESS_FLUX_NAME_NBYTES = 64
};

typedef enum tess_flux_style {
    TESS_FLUX_DIFFUSERS,      /* transformer_blocks.3.attn.to_q: one name for each part */
    TESS_FLUX_DIFFUSERS_FLAT, /* transformer_blocks_3_attn_to_q */
    TESS_FLUX_BFL,            /* double_blocks.3.img_attn.qkv: one name for each site */
    TESS_FLUX_BFL_FLAT,       /* double_blocks_3_img_attn_qkv */
    TESS_FLUX_XLABS           /* double_blocks.3.processor.qkv_lora1: some sites and parts only */
} tess_flux_style;

/** What one name of a style stands for: parts [first_part, first_part + part_numel) of a site. */
typedef struct tess_flux_name {
    char text[TESS_FLUX_NAME_NBYTES];
    int site;
    int first_part;
    int part_numel;
} tess_flux_name;

typedef struct tess_flux_names tess_flux_names;

/** All names of a style. Local. */
TESS_MUST_CHECK tess_status tess_flux_names_create(tess_flux_style style, tess_flux_names **out);
void tess_flux_names_destroy(tess_flux_names **names);
int64_t tess_flux_names_numel(const tess_flux_names *names);
/** Name `idx` in bytewise order. */
const tess_flux_name *tess_flux_names_at(const tess_flux_names *names, int64_t idx);
/** Index of the first `nbytes` bytes of `text`, -1: no name of this style. O(log names). */
int64_t tess_flux_names_find(const tess_flux_names *names, const char *text, size_t nbytes);

/** Parts of a site, 1 to TESS_FLUX_PART_MAX. Local. */
int tess_flux_part_numel(int site);
/** Rows of a part as a multiple of the site's smallest part: 4 for the MLP in linear1, else 1. */
int tess_flux_part_weight(int site, int part);
/** The first part of the site that a linear layer, by diffusers' name, is a later part of, into
 * `text`: where an A that they share stands. Local. @return false: it is the first, or no part */
bool tess_flux_first_part(const char *path, char text[TESS_FLUX_NAME_NBYTES]);
/** Whether the halves of its rows are in the other order in diffusers. Local. */
bool tess_flux_is_swapped(int site);
/** diffusers' name of a part into `text`. Local. */
void tess_flux_part_name(int site, int part, char text[TESS_FLUX_NAME_NBYTES]);

TESS_END_DECLS
