/**
 * TensorBoard event files: TFRecord framing around a few protobuf messages.
 *
 * @source tensorflow/core/lib/io/record_writer.cc (framing, masked CRC32C),
 *         tensorflow/core/util/event.proto and framework/summary.proto (field numbers)
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

enum { TESS_TFRECORD_MAX_NBYTES = 512 };

/** CRC-32C (Castagnoli) of `nbytes` bytes. Local. */
uint32_t tess_crc32c(const void *data, size_t nbytes);

/** A named number of one step. */
typedef struct tess_tf_scalar {
    const char *tag; /* at most 31 bytes */
    float value;
} tess_tf_scalar;

/** First record of a file. Local. @return bytes written to `record` */
size_t tess_tf_version_record(double wall_time_s, uint8_t record[TESS_TFRECORD_MAX_NBYTES]);
/** Tells readers to drop what older files say about `step` and later. Local. */
size_t tess_tf_session_record(double wall_time_s, int64_t step,
                              uint8_t record[TESS_TFRECORD_MAX_NBYTES]);
/** Up to 8 scalars of one step. Local. */
size_t tess_tf_scalar_record(double wall_time_s, int64_t step, const tess_tf_scalar *scalar,
                             int scalar_numel, uint8_t record[TESS_TFRECORD_MAX_NBYTES]);

TESS_END_DECLS
