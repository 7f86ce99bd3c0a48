#include "train/tfevents.h"

#include <string.h>

enum { FRAME_HEAD_NBYTES = 12, TAG_MAX_NBYTES = 31, SCALAR_MAX = 8 };

/* A message under construction. The largest, 8 scalars with tags of 31 bytes, has 8 x 42 bytes and
 * 31 around them: below the room. */
typedef struct message {
    uint8_t byte[TESS_TFRECORD_MAX_NBYTES];
    size_t nbytes;
} message;

uint32_t tess_crc32c(const void *data, size_t nbytes)
{
    const uint8_t *at = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < nbytes; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u))); /* reflected 0x1edc6f41 */
    }
    return ~crc;
}

/* A CRC of data that holds CRCs is weak, so the format stores them rotated and shifted. */
static uint32_t masked_crc(const void *data, size_t nbytes)
{
    const uint32_t crc = tess_crc32c(data, nbytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static void put_bytes(message *m, const void *src, size_t nbytes)
{
    const uint8_t *at = src;
    for (size_t i = 0; i < nbytes && m->nbytes < sizeof m->byte; i++)
        m->byte[m->nbytes++] = at[i];
}

static void put_little(message *m, uint64_t value, int nbytes)
{
    for (int i = 0; i < nbytes; i++) {
        const uint8_t byte = (uint8_t)(value >> (8 * i) & 0xff);
        put_bytes(m, &byte, 1);
    }
}

static void put_varint(message *m, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        put_little(m, (value & 0x7f) | 0x80, 1);
    put_little(m, value, 1);
}

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

static void put_key(message *m, unsigned field, unsigned wire) { put_varint(m, field << 3 | wire); }

static void put_double(message *m, unsigned field, double value)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, WIRE_FIXED64);
    put_little(m, bits, 8);
}

static void put_float(message *m, unsigned field, float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, WIRE_FIXED32);
    put_little(m, bits, 4);
}

static void put_block(message *m, unsigned field, const void *src, size_t nbytes)
{
    put_key(m, field, WIRE_BYTES);
    put_varint(m, nbytes);
    put_bytes(m, src, nbytes);
}

/* Event: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7. */
static message event(double wall_time_s, int64_t step)
{
    message m = {.nbytes = 0};
    put_double(&m, 1, wall_time_s);
    if (step != 0) {
        put_key(&m, 2, WIRE_VARINT);
        put_varint(&m, (uint64_t)step);
    }
    return m;
}

static size_t frame(const message *m, uint8_t record[TESS_TFRECORD_MAX_NBYTES])
{
    message out = {.nbytes = 0};
    put_little(&out, m->nbytes, 8);
    put_little(&out, masked_crc(out.byte, 8), 4);
    put_bytes(&out, m->byte, m->nbytes);
    put_little(&out, masked_crc(m->byte, m->nbytes), 4);
    memcpy(record, out.byte, out.nbytes);
    return out.nbytes;
}

size_t tess_tf_version_record(double wall_time_s, uint8_t record[TESS_TFRECORD_MAX_NBYTES])
{
    static const char version[] = "brain.Event:2";
    message m = event(wall_time_s, 0);
    put_block(&m, 3, version, sizeof version - 1);
    return frame(&m, record);
}

size_t tess_tf_session_record(double wall_time_s, int64_t step,
                              uint8_t record[TESS_TFRECORD_MAX_NBYTES])
{
    message log = {.nbytes = 0}; /* SessionLog: status = 1, START is 1 */
    put_key(&log, 1, WIRE_VARINT);
    put_varint(&log, 1);
    message m = event(wall_time_s, step);
    put_block(&m, 7, log.byte, log.nbytes);
    return frame(&m, record);
}

size_t tess_tf_scalar_record(double wall_time_s, int64_t step, const tess_tf_scalar *scalar,
                             int scalar_numel, uint8_t record[TESS_TFRECORD_MAX_NBYTES])
{
    message summary = {.nbytes = 0}; /* Summary: value = 1; Value: tag = 1, simple_value = 2 */
    for (int i = 0; i < scalar_numel && i < SCALAR_MAX; i++) {
        message value = {.nbytes = 0};
        put_block(&value, 1, scalar[i].tag, strnlen(scalar[i].tag, TAG_MAX_NBYTES));
        put_float(&value, 2, scalar[i].value);
        put_block(&summary, 1, value.byte, value.nbytes);
    }
    message m = event(wall_time_s, step);
    put_block(&m, 5, summary.byte, summary.nbytes);
    return frame(&m, record);
}
