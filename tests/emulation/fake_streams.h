/**
 * Streams of the fake plugin's device, with copies and waits that fail on request.
 *
 * FAKE_CUDA_LATE    1: a copy is under way until somebody waits for its stream, as on a device; for
 *                   programs that give streams nothing but copies (kernels of the fake do not wait)
 * FAKE_CUDA_FAULT   copy:R:N: copy N of the device (from 0) fails on rank R of the launch, and so
 *                   do all after it; order: a stream does not wait for events of others; rows: a
 *                   copy of rows leaves out the last byte of each; zero: the last byte stays
 */
#pragma once

#include "core/device.h"

TESS_BEGIN_DECLS

/** Local. @param drop  called with every stream that ends */
void fake_streams_install(tess_device *d, void (*drop)(const tess_stream *s));

TESS_END_DECLS
