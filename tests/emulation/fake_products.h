/**
 * Plans of matrix products in the fake plugin, kept as the real part keeps them
 * (kernels/cuda/blas.c), so that what was announced, what runs and what travels between ranks can
 * be told apart.
 *
 * FAKE_CUDA_FAULT   unplanned  gemm_prepare plans nothing
 *                   takes      every product, and every attention, takes memory of the device
 */
#pragma once

#include "kernels/cuda/plugin.h"

TESS_BEGIN_DECLS

/** Put plans around the products, and the faults around attention too, of a table, for streams of
 * `d`. Local. */
void fake_products_install(tess_kernels *k, tess_device *d);
/** Open what a stream's libraries are, once. Local. @return TESS_E_STATE it has them already */
TESS_MUST_CHECK tess_status fake_products_prepare(const tess_device *d, const tess_stream *s);
/** The plan of a stream that ends. Local. */
void fake_products_drop(const tess_stream *s);

TESS_END_DECLS
