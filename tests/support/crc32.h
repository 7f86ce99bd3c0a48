/** CRC-32 as in zlib: golden files name bytes by it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

static inline uint32_t crc_of(const void *data, size_t nbytes)
{
    uint32_t crc = 0xffffffffU;
    for (size_t i = 0; i < nbytes; i++) {
        crc ^= ((const uint8_t *)data)[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320U : 0);
    }
    return ~crc;
}
