/* Any bytes as a codes file, as they are and with digests that fit, as a hostile writer would make
 * them: refused, or rows of codes below K. */
#include "fuzz.h"
#include "train/data/codes_file_priv.h"

enum { FILE_MAX_NBYTES = 1 << 16 };

static tess_status read_rows(tess_codes_file *file)
{
    static int64_t codes[FILE_MAX_NBYTES];
    const tess_codes_info *info = tess_codes_file_get_info(file);
    const int64_t columns = tess_codes_column_numel(info);
    fuzz_require(info->vector_numel * columns <= TESS_NELEM(codes), "more codes than bytes");
    TESS_TRY(tess_codes_file_read(file, 0, info->vector_numel, codes));
    for (int64_t i = 0; i < info->vector_numel * columns; i++)
        fuzz_require(codes[i] < info->code_numel && codes[i] >= (info->has_absent ? -1 : 0),
                     "a code outside the codebook");
    return tess_codes_file_verify(file);
}

static void run(const uint8_t *data, size_t nbytes)
{
    const tess_ctx ctx = {.io = fuzz_io()};
    tess_codes_file *file = NULL;
    char path[64];
    const int fd = fuzz_file_open(data, nbytes, path);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_codes_file_open(&ctx, path, &file);
    if (st == TESS_OK)
        st = read_rows(file);
    tess_codes_file_close(&file);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
}

/* Replace the digits of a digest in the text of the user block, where there are any. */
static void put_hex(uint8_t *bytes, const char *key, const uint8_t *digest)
{
    char hex[2 * TESS_XXH128_NBYTES + 1];
    uint8_t *text = bytes + TESS_CODES_AT_TEXT;
    const size_t room_nbytes = TESS_CODES_AT_DIGEST - TESS_CODES_AT_TEXT;
    uint8_t *at = memmem(text, room_nbytes, key, strlen(key));
    tess_hex(digest, TESS_XXH128_NBYTES, hex);
    if (at != NULL && at + strlen(key) + sizeof hex <= text + room_nbytes)
        memcpy(at + strlen(key), hex, sizeof hex - 1);
}

static void seal(uint8_t *bytes)
{
    const tess_xxh128 digest = tess_xxh128_of(bytes, TESS_CODES_AT_DIGEST);
    memcpy(bytes + TESS_CODES_AT_DIGEST, digest.byte, sizeof digest.byte);
}

/* Make every digest fit that can be made to; the identity of the codes may stay wrong. */
static void forge(uint8_t *bytes, size_t nbytes)
{
    static uint8_t outside[FILE_MAX_NBYTES];
    tess_codes_info info;
    tess_codes_place place;
    seal(bytes);
    if (tess_codes_header_decode("x", bytes, (int64_t)nbytes, &info, &place) != TESS_OK)
        return;
    const size_t codes_nbytes =
        (size_t)(info.vector_numel * tess_codes_column_numel(&info)) * info.code_nbytes;
    const size_t head_nbytes = (size_t)place.offset_nbytes - TESS_CODES_HEADER_NBYTES;
    const size_t tail_nbytes = nbytes - (size_t)place.offset_nbytes - codes_nbytes;
    memcpy(outside, bytes + TESS_CODES_HEADER_NBYTES, head_nbytes);
    memcpy(outside + head_nbytes, bytes + (size_t)place.offset_nbytes + codes_nbytes, tail_nbytes);
    put_hex(bytes, "\"metadata\":\"", tess_xxh128_of(outside, head_nbytes + tail_nbytes).byte);
    seal(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static uint8_t forged[FILE_MAX_NBYTES];
    if (nbytes > sizeof forged)
        return 0;
    run(data, nbytes);
    if (nbytes < TESS_CODES_HEADER_NBYTES)
        return 0;
    memcpy(forged, data, nbytes);
    forge(forged, nbytes);
    run(forged, nbytes);
    return 0;
}
