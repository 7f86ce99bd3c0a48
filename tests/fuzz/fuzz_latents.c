/* Any bytes as a cache, as they are and with a user block whose digest fits: refused, or every row
 * can be read. */
#include "fuzz.h"
#include "train/data/latents_priv.h"

enum { FILE_MAX_NBYTES = 1 << 18 };

static void read_name(tess_status (*read)(const tess_latents *file, int64_t idx, char **out),
                      const tess_latents *file, int64_t idx)
{
    char *text = NULL;
    if (read(file, idx, &text) == TESS_OK)
        fuzz_require(strlen(text) <= FILE_MAX_NBYTES, "a text without an end");
    tess_error_clear();
    tess_free(text);
}

static tess_status read_all(const tess_latents *file)
{
    static float x[FILE_MAX_NBYTES], y[FILE_MAX_NBYTES];
    const tess_latents_info *info = tess_latents_get_info(file);
    for (int64_t i = 0; i < info->sample_numel; i++) {
        const tess_latents_bucket *b = &tess_latents_buckets(file)[tess_latents_bucket_of(file, i)];
        fuzz_require(tess_latents_numel(info, b) <= FILE_MAX_NBYTES, "more elements than bytes");
        fuzz_require(tess_latents_sample_at(file, i)->caption_idx < info->caption_numel,
                     "a caption that is not there");
        TESS_TRY(tess_latents_read(file, i, x));
        TESS_TRY(tess_latents_read_mask(file, i, y));
        read_name(tess_latents_name, file, i);
    }
    for (int64_t i = 0; i < info->caption_numel; i++) {
        TESS_TRY(tess_latents_read_text(file, i, x, y));
        read_name(tess_latents_caption, file, i);
    }
    return tess_latents_verify(file);
}

static void run(const uint8_t *data, size_t nbytes)
{
    const tess_ctx ctx = {.io = fuzz_io()};
    tess_latents *file = NULL;
    char path[64];
    const int fd = fuzz_file_open(data, nbytes, path);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_latents_open(&ctx, path, &file);
    if (st == TESS_OK)
        st = read_all(file);
    tess_latents_close(&file);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static uint8_t forged[FILE_MAX_NBYTES];
    uint32_t block_nbytes = 0;
    if (nbytes > sizeof forged)
        return 0;
    run(data, nbytes);
    if (nbytes < TESS_LATENTS_BLOCK_MIN_NBYTES)
        return 0;
    memcpy(forged, data, nbytes);
    memcpy(&block_nbytes, forged + TESS_LATENTS_MAGIC_NBYTES, sizeof block_nbytes);
    if (block_nbytes < TESS_LATENTS_BLOCK_MIN_NBYTES || block_nbytes > nbytes)
        return 0;
    const size_t end = block_nbytes - TESS_XXH128_NBYTES;
    const tess_xxh128 digest = tess_xxh128_of(forged, end);
    memcpy(forged + end, digest.byte, sizeof digest.byte);
    run(forged, nbytes);
    return 0;
}
