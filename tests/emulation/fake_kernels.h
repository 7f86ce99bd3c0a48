/** Kernels of the CUDA part without CUDA: the CPU's, and one of them broken where a test asks. */
#pragma once

#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/**
 * The table. `fault` is what FAKE_CUDA_FAULT has behind "kernel:", NULL: none. OP:KIND breaks the
 * op of that name ("adamw", "quantizer_gram"):
 *
 *   element   an element that it writes is off by its last bit or bits
 *   unstable  ... in every other call
 *   wrong     the last element is far off, for tests that allow rounding
 *   past      it writes one byte behind what it writes
 *   error     it fails as kernels do that were enqueued
 *   missing   the table has no such entry
 *   hang      its stream never passes it
 *
 * Local. @return NULL: no such op or kind, or the CPU's kernels cannot be selected
 */
const tess_kernels *fake_kernels_make(const char *fault);

TESS_END_DECLS
