/*
 * The list of operands itself, held against what kernels do: bytes outside of what is listed as
 * written stay as they were, and no byte outside of what is listed as read has a say in the result.
 * A result that is not written whole shows as one that depends on what was there before.
 */
#include <stdlib.h>
#include <string.h>

#include "emulation/emu_device.h"

enum { DISTURBANCE = 0x5a };

static void mark_operand(void *arg, const emu_operand *o)
{
    const emu_device *d = arg;
    for (int64_t i = 0; i < o->group_numel * o->row_numel; i++) {
        const char *at = emu_operand_row(o, i);
        for (const emu_memory *m = d->memory; m != NULL; m = m->next)
            if (m->access != NULL && at >= m->base && at < m->base + m->nbytes)
                for (size_t b = 0; b < o->row_nbytes; b++)
                    m->access[at - m->base + (ptrdiff_t)b] |= (unsigned char)o->access;
    }
}

static void prepare(emu_device *d, emu_kernel_call *call)
{
    for (emu_memory *m = d->memory; m != NULL; m = m->next) {
        if (m->space != TESS_DEVICE)
            continue;
        if (m->access == NULL) {
            m->before = malloc(m->nbytes);
            m->after = malloc(m->nbytes);
            m->access = malloc(m->nbytes);
        }
        memcpy(m->before, m->alias, m->nbytes);
        memset(m->access, 0, m->nbytes);
    }
    emu_visit(call, &(emu_visitor){.operand = mark_operand, .arg = d});
}

/* First byte that is listed as written, or is not, and differs between two states; -1: none. */
static ptrdiff_t first_difference(const emu_memory *m, const char *a, const char *b,
                                  bool is_written)
{
    enum { BLOCK = 4096 };
    for (size_t from = 0; from < m->nbytes; from += BLOCK) { /* most of all memory is equal */
        const size_t end = TESS_MIN(from + BLOCK, m->nbytes);
        if (memcmp(a + from, b + from, end - from) == 0)
            continue;
        for (size_t i = from; i < end; i++)
            if (((m->access[i] & EMU_WRITE) != 0) == is_written && a[i] != b[i])
                return (ptrdiff_t)i;
    }
    return -1;
}

static void check_writes(emu_device *d, const emu_op *op)
{
    for (emu_memory *m = d->memory; m != NULL; m = m->next) {
        if (m->space != TESS_DEVICE)
            continue;
        memcpy(m->after, m->alias, m->nbytes);
        const ptrdiff_t at = first_difference(m, m->after, m->before, false);
        if (at >= 0)
            emu_violation(d, "'%s' wrote byte %td of allocation %d, which is no operand's to write",
                          d->entry[op->entry - 1].what, at, m->idx);
    }
}

static void disturb(emu_device *d)
{
    for (emu_memory *m = d->memory; m != NULL; m = m->next)
        for (size_t b = 0; m->space == TESS_DEVICE && b < m->nbytes; b++)
            m->alias[b] =
                (m->access[b] & EMU_READ) != 0 ? m->before[b] : (char)(m->before[b] ^ DISTURBANCE);
}

static void check_reads(emu_device *d, const emu_op *op)
{
    for (emu_memory *m = d->memory; m != NULL; m = m->next) {
        if (m->space != TESS_DEVICE)
            continue;
        const ptrdiff_t at = first_difference(m, m->alias, m->after, true);
        if (at >= 0)
            emu_violation(d,
                          "'%s': byte %td of allocation %d depends on bytes that are not listed as "
                          "read, or is not written",
                          d->entry[op->entry - 1].what, at, m->idx);
        memcpy(m->alias, m->after, m->nbytes);
    }
}

tess_status emu_audit(emu_device *d, const emu_op *op)
{
    prepare(d, op->call);
    TESS_TRY(emu_run_twin(d, op->call));
    check_writes(d, op);
    disturb(d);
    TESS_TRY(emu_run_twin(d, op->call));
    check_reads(d, op);
    return TESS_OK;
}
