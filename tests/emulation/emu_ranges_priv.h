/** Operands in the forms that kernels take them: shared by the files of emu_ranges.h. */
#pragma once

#include "core/arith.h"
#include "emulation/emu_ranges.h"

static inline void rows(const emu_visitor *v, void *pointer_at, emu_operand o)
{
    void **at = pointer_at;
    if (*at == NULL || o.row_numel <= 0 || o.row_nbytes == 0)
        return;
    o.group_numel = TESS_MAX(o.group_numel, INT64_C(1));
    if (o.stride_nbytes == o.row_nbytes || o.row_numel == 1) {
        o.row_nbytes *= (size_t)o.row_numel;
        o.row_numel = 1;
    }
    o.pointer_at = at;
    v->operand(v->arg, &o);
}

static inline void array(const emu_visitor *v, void *pointer_at, int64_t numel, size_t elem_nbytes,
                         emu_access access)
{
    rows(
        v, pointer_at,
        (emu_operand){.row_numel = 1, .row_nbytes = (size_t)numel * elem_nbytes, .access = access});
}

static inline void view(const emu_visitor *v, tess_view *w, emu_access access)
{
    array(v, &w->data, w->numel, tess_dtype_block_nbytes(w->dt), access);
    if (v->makes_host)
        w->space = TESS_HOST;
}

/* [row_numel, col_numel] with `stride` elements between rows, 0: contiguous. */
static inline void strided(const emu_visitor *v, tess_view *w, int64_t row_numel, int64_t col_numel,
                           int64_t stride, emu_access access)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(w->dt);
    rows(v, &w->data,
         (emu_operand){.row_numel = row_numel,
                       .row_nbytes = (size_t)col_numel * elem_nbytes,
                       .stride_nbytes = (size_t)(stride != 0 ? stride : col_numel) * elem_nbytes,
                       .access = access});
    if (v->makes_host)
        w->space = TESS_HOST;
}

static inline void parts(const emu_visitor *v, const tess_codec *codec, int64_t numel,
                         void *pointers, emu_access access)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    void **at = pointers;
    if (tess_codec_parts(codec, numel, part, &part_numel) != TESS_OK)
        return; /* the kernel's own check refuses it */
    for (int i = 0; i < part_numel; i++)
        array(v, &at[i], 1, part[i].nbytes, access);
}

static inline void matrix(const emu_visitor *v, tess_matrix *m)
{
    if (m->stride != 0) { /* plain */
        const size_t elem_nbytes = m->codec.format == TESS_FORMAT_F32 ? 4 : 2;
        rows(v, &m->part[0],
             (emu_operand){.row_numel = m->rows,
                           .row_nbytes = (size_t)m->cols * elem_nbytes,
                           .stride_nbytes = (size_t)m->stride * elem_nbytes,
                           .access = EMU_READ});
        return;
    }
    parts(v, &m->codec, m->rows * m->cols, m->part, EMU_READ);
}

/* All of a view, in rows of `dim` elements where it has a stride. */
static inline void spaced(const emu_visitor *v, tess_view *w, int64_t row_numel, int64_t dim,
                          int64_t stride, emu_access access)
{
    if (stride == 0)
        view(v, w, access);
    else
        strided(v, w, row_numel, dim, stride, access);
}

/* Of emu_ranges_codes.c. */
#define X(name, type) void emu_visit_##name(type *a, const emu_visitor *v);
EMU_CODE_LIST(X)
#undef X
#define X(name, type) void emu_visit_quantizer_##name(type *a, const emu_visitor *v);
EMU_QUANTIZER_LIST(X)
#undef X
