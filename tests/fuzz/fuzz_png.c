/* Any bytes as a PNG image: refused, or every sample in [0, 1]. Checksums are forged: libpng skips
 * a damaged chunk that it can do without, and stops at the others. */
#include "format/png.h"
#include "fuzz.h"

enum { SAMPLE_MAX = 1 << 16 };

static tess_status read_image(tess_io *io, const char *path)
{
    static uint8_t samples[2 * SAMPLE_MAX];
    static float x[SAMPLE_MAX];
    tess_png_info info;
    TESS_TRY(tess_png_read_info(io, path, &info));
    const int64_t numel = info.width * info.height * info.channel_numel;
    fuzz_require(info.width >= 1 && info.height >= 1 && numel > 0, "an image without samples");
    if (numel > SAMPLE_MAX)
        return TESS_OK;
    TESS_TRY(tess_png_read(io, path, &info, samples, x));
    for (int64_t i = 0; i < numel; i++)
        fuzz_require(x[i] >= 0.0F && x[i] <= 1.0F, "a sample outside 0 and 1");
    return TESS_OK;
}

static void run(const uint8_t *data, size_t nbytes)
{
    char path[64];
    tess_io *io = fuzz_io();
    const size_t before_nbytes = tess_alloc_nbytes();
    const int fd = fuzz_file_open(data, nbytes, path);
    tess_error_clear();
    const tess_status st = read_image(io, path);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
}

static uint32_t crc_of(const uint8_t *data, size_t nbytes)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < nbytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320U : 0);
    }
    return ~crc;
}

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Make the checksums of all chunks fit. */
static void forge(uint8_t *bytes, size_t nbytes)
{
    for (size_t at = 8; nbytes - at >= 12;) {
        const size_t length = big_endian(bytes + at);
        if (length > nbytes - at - 12)
            return;
        const uint32_t crc = crc_of(bytes + at + 4, length + 4);
        for (int i = 0; i < 4; i++)
            bytes[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static uint8_t forged[1 << 16];
    run(data, nbytes);
    if (nbytes < 20 || nbytes > sizeof forged)
        return 0;
    memcpy(forged, data, nbytes);
    forge(forged, nbytes);
    run(forged, nbytes);
    return 0;
}
