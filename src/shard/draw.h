/** Drawing elements of a set over all ranks (core/draw.h). */
#pragma once

#include "core/draw.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

/**
 * Which `drawn_numel` of `element_numel` elements are drawn, in the order of drawing: without
 * replacement where there are enough, else with. The same on all ranks, for any number of them.
 *
 * Collective over `comm`.
 *
 * @param room  tess_draw_room_nbytes of it, aligned for integers; where that is not enough, or
 * NULL, memory is allocated
 * @param[out] element_idx  [drawn_numel]
 * @return TESS_E_MEMORY; TESS_E_RANGE nothing to draw from
 */
TESS_MUST_CHECK tess_status tess_draw_select(tess_comm *comm, const tess_draw *draw,
                                             int64_t element_numel, int64_t drawn_numel,
                                             const tess_view *room, int64_t *element_idx);
/** Scratch of a rank that is enough all but surely, for fewer elements too. Local, pure. */
size_t tess_draw_room_nbytes(int64_t drawn_numel, int world);

TESS_END_DECLS
