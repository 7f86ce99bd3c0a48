#include "train/data/latents.h"

#include <inttypes.h>
#include <math.h>

#include "format/format_test.h"
#include "train/data/latents_priv.h"

enum { CHANNELS = 4, TOKENS = 3, TEXT_DIM = 5, POOLED_DIM = 2, LATENT_MAX = 4 * 6 * 10 };

static const tess_latents_bucket buckets[] = {{4, 6, 3, 0}, {4, 8, 1, 0}, {6, 10, 2, 0}};
static const char *const captions[] = {"", "a cat", "\xc3\xa9t\xc3\xa9, \"quoted\""};

static tess_ctx ctx_of(const fixture *f) { return (tess_ctx){.io = f->io}; }

static tess_latents_info info_of(tess_dtype dt, bool has_masks)
{
    tess_latents_info info = {.sample_numel = 6,
                              .caption_numel = 3,
                              .bucket_numel = 3,
                              .channel_numel = CHANNELS,
                              .text_numel = TOKENS,
                              .text_dim = TEXT_DIM,
                              .pooled_dim = POOLED_DIM,
                              .latent_dt = dt,
                              .text_dt = dt,
                              .has_masks = has_masks,
                              .has_empty = true,
                              .is_text_masked = true,
                              .name_nbytes = 6 * 9,
                              .origin = {.tool = "test", .vae = "v", .posterior = "sample"}};
    for (int i = 0; i < 3; i++)
        info.caption_nbytes += (int64_t)strlen(captions[i]) + 1;
    return info;
}

/* Values that bf16 holds: multiples of 1/8 below 16. */
static float value_of(int64_t kind, int64_t row, int64_t i)
{
    return (float)((kind * 31 + row * 17 + i * 7) % 255 - 127) / 8.0F;
}

static float mask_of(int64_t row, int64_t i) { return (float)((row + i) % 5) / 4.0F; }

static tess_latents_sample sample_of(int64_t i)
{
    return (tess_latents_sample){.caption_idx = (uint32_t)(i % 3),
                                 .height = (uint32_t)(100 + i),
                                 .width = 77,
                                 .left = (uint32_t)i,
                                 .right = 5};
}

static tess_status put_captions(tess_latents_writer *w)
{
    for (int64_t c = 0; c < 3; c++) {
        float text[TOKENS * TEXT_DIM], pooled[POOLED_DIM];
        for (int i = 0; i < TOKENS * TEXT_DIM; i++)
            text[i] = value_of(1, c, i);
        for (int i = 0; i < POOLED_DIM; i++)
            pooled[i] = value_of(2, c, i);
        const tess_latents_text row = {captions[c], text, pooled, c};
        TESS_TRY(tess_latents_writer_text(w, &row));
    }
    return TESS_OK;
}

/* Sample `row` of a bucket; in the file it has number `at`. */
static tess_status put_image(tess_latents_writer *w, int64_t bucket, int64_t at, bool has_masks)
{
    float latent[LATENT_MAX], mask[LATENT_MAX];
    char name[16];
    const int64_t numel = CHANNELS * buckets[bucket].height * buckets[bucket].width;
    for (int64_t i = 0; i < numel; i++)
        latent[i] = value_of(3, at, i);
    for (int64_t i = 0; i < tess_latents_token_numel(&buckets[bucket]); i++)
        mask[i] = mask_of(at, i);
    snprintf(name, sizeof name, "image-%02d", (int)at);
    const tess_latents_image image = {name, sample_of(at), latent,
                                      has_masks && at != 1 ? mask : NULL};
    return tess_latents_writer_image(w, bucket, &image);
}

static tess_status fill(tess_latents_writer *w, bool has_masks)
{
    /* buckets interleaved */
    static const int64_t order[][2] = {{2, 4}, {0, 0}, {0, 1}, {1, 3}, {2, 5}, {0, 2}};
    TESS_TRY(put_captions(w));
    for (int i = 0; i < TESS_NELEM(order); i++)
        TESS_TRY(put_image(w, order[i][0], order[i][1], has_masks));
    return tess_latents_writer_finish(w);
}

static tess_status write_file(const fixture *f, const char *path, tess_dtype dt, bool has_masks)
{
    const tess_ctx ctx = ctx_of(f);
    const tess_latents_info info = info_of(dt, has_masks);
    tess_latents_writer *w = NULL;
    tess_status st = tess_latents_writer_create(&ctx, path, &info, buckets, &w);
    if (st == TESS_OK)
        st = fill(w, has_masks);
    tess_latents_writer_destroy(&w);
    return st;
}

static void check_texts(const tess_latents *file)
{
    for (int64_t c = 0; c < 3; c++) {
        float text[TOKENS * TEXT_DIM], pooled[POOLED_DIM];
        char *caption = NULL;
        assert_ok(tess_latents_read_text(file, c, text, pooled));
        for (int i = 0; i < TOKENS * TEXT_DIM; i++)
            assert_true(text[i] == value_of(1, c, i));
        for (int i = 0; i < POOLED_DIM; i++)
            assert_true(pooled[i] == value_of(2, c, i));
        assert_ok(tess_latents_caption(file, c, &caption));
        assert_string_equal(caption, captions[c]);
        tess_free(caption);
    }
}

static void check_content(const fixture *f, const char *path, tess_dtype dt, bool has_masks)
{
    const tess_ctx ctx = ctx_of(f);
    tess_latents *file = NULL;
    float latent[LATENT_MAX], mask[LATENT_MAX];
    assert_ok(tess_latents_open(&ctx, path, &file));
    const tess_latents_info *info = tess_latents_get_info(file), expected = info_of(dt, has_masks);
    assert_int_equal(info->sample_numel, 6);
    assert_int_equal(info->latent_dt, dt);
    assert_int_equal(info->has_masks, has_masks);
    assert_true(info->has_empty && info->is_text_masked);
    assert_memory_equal(&info->origin, &expected.origin, sizeof expected.origin);
    for (int64_t at = 0; at < 6; at++) {
        const tess_latents_sample sample = sample_of(at);
        char name[16], *found = NULL;
        const int64_t b = tess_latents_bucket_of(file, at);
        const tess_latents_bucket *of = &tess_latents_buckets(file)[b];
        assert_int_equal(b, at < 3 ? 0 : at < 4 ? 1 : 2);
        assert_memory_equal(tess_latents_sample_at(file, at), &sample, sizeof sample);
        const int64_t events = tess_alloc_events();
        assert_ok(tess_latents_read(file, at, latent));
        assert_ok(tess_latents_read_mask(file, at, mask));
        assert_int_equal(tess_alloc_events(), events);
        for (int64_t i = 0; i < tess_latents_numel(info, of); i++)
            assert_true(latent[i] == value_of(3, at, i));
        for (int64_t i = 0; i < tess_latents_token_numel(of); i++)
            assert_true(mask[i] == (has_masks && at != 1 ? mask_of(at, i) : 1.0F));
        snprintf(name, sizeof name, "image-%02d", (int)at);
        assert_ok(tess_latents_name(file, at, &found));
        assert_string_equal(found, name);
        tess_free(found);
    }
    check_texts(file);
    assert_refused(tess_latents_read(file, 6, latent), TESS_E_RANGE, path, "sample 6 of 6");
    assert_refused(tess_latents_read_text(file, -1, latent, mask), TESS_E_RANGE, "caption -1");
    assert_ok(tess_latents_verify(file));
    tess_latents_close(&file);
}

static void test_write_read_round_trip(void **state)
{
    const fixture *f = *state;
    const tess_dtype dts[] = {TESS_BF16, TESS_F32};
    for (int i = 0; i < 4; i++) {
        assert_ok(write_file(f, at(f, "c.h5"), dts[i / 2], i % 2 == 1));
        check_content(f, at(f, "c.h5"), dts[i / 2], i % 2 == 1);
    }
}

static tess_xxh128 digest_of(const fixture *f, const char *path)
{
    const tess_ctx ctx = ctx_of(f);
    tess_latents *file = NULL;
    assert_ok(tess_latents_open(&ctx, path, &file));
    const tess_xxh128 digest = tess_latents_get_info(file)->digest;
    tess_latents_close(&file);
    return digest;
}

/* The identity follows what training reads, not where it came from. */
static void test_identity_is_of_the_content(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_latents_info info = info_of(TESS_F32, true);
    tess_latents_writer *w = NULL;
    assert_ok(write_file(f, at(f, "a.h5"), TESS_F32, true));
    snprintf(info.origin.tool, sizeof info.origin.tool, "another tool");
    assert_ok(tess_latents_writer_create(&ctx, at(f, "b.h5"), &info, buckets, &w));
    assert_ok(fill(w, true));
    tess_latents_writer_destroy(&w);
    assert_ok(write_file(f, at(f, "c.h5"), TESS_F32, false));
    const tess_xxh128 a = digest_of(f, at(f, "a.h5")), b = digest_of(f, at(f, "b.h5")),
                      c = digest_of(f, at(f, "c.h5"));
    assert_memory_equal(a.byte, b.byte, sizeof a.byte);
    assert_memory_not_equal(a.byte, c.byte, sizeof a.byte);
}

/* Bytes changed one at a time all over the file are refused at open, or found by verify. */
static void test_open_and_verify_find_changed_bytes(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    char *bytes = NULL;
    size_t nbytes = 0;
    bool is_it = false;
    tess_latents *file = NULL;
    assert_ok(write_file(f, at(f, "c.h5"), TESS_BF16, true));
    assert_ok(tess_latents_is(&ctx, at(f, "c.h5"), &is_it));
    assert_true(is_it);
    assert_ok(tess_io_read_all(f->io, at(f, "c.h5"), 1 << 20, &bytes, &nbytes));
    for (size_t i = 0; i < nbytes; i += i < 64 ? 1 : 23) {
        bytes[i] = (char)(bytes[i] ^ 1);
        const char *path = put_file(f, "changed.h5", bytes, nbytes);
        tess_error_clear();
        tess_status st = tess_latents_open(&ctx, path, &file);
        if (st == TESS_OK)
            st = tess_latents_verify(file);
        if (st != TESS_E_FORMAT && st != TESS_E_UNSUPPORTED)
            fail_msg("byte %zu of %zu: status %d", i, nbytes, (int)st);
        tess_latents_close(&file);
        bytes[i] = (char)(bytes[i] ^ 1);
    }
    for (size_t keep = 0; keep < nbytes; keep += 211)
        assert_refused(tess_latents_open(&ctx, put_file(f, "cut.h5", bytes, keep), &file),
                       TESS_E_FORMAT, "cut.h5");
    bytes[14] = '2';
    assert_refused(tess_latents_open(&ctx, put_file(f, "new.h5", bytes, nbytes), &file),
                   TESS_E_UNSUPPORTED, "new.h5", "version 2", "reads 1");
    bytes[0] = 'X';
    assert_refused(tess_latents_open(&ctx, put_file(f, "no.h5", bytes, nbytes), &file),
                   TESS_E_FORMAT, "no.h5", "is no cache", "tessera cache");
    tess_free(bytes);
}

static void test_open_refuses_raw_latents(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_latents *file = NULL;
    char *bytes = NULL;
    size_t nbytes = 0;
    assert_ok(write_file(f, at(f, "c.h5"), TESS_F32, false));
    assert_ok(tess_io_read_all(f->io, at(f, "c.h5"), 1 << 20, &bytes, &nbytes));
    char *space = memmem(bytes, 4096, "\"space\":\"model\"", 15);
    assert_non_null(space);
    memcpy(space, "\"space\":\"rawen\"", 15);
    const tess_xxh128 digest = tess_xxh128_of(bytes, 4096 - TESS_XXH128_NBYTES);
    memcpy(bytes + 4096 - TESS_XXH128_NBYTES, digest.byte, sizeof digest.byte);
    assert_refused(tess_latents_open(&ctx, put_file(f, "raw.h5", bytes, nbytes), &file),
                   TESS_E_FORMAT, "raw.h5", "space 'rawen'", "shifted and scaled");
    tess_free(bytes);
}

static void refuse_info(const fixture *f, const tess_latents_info *info,
                        const tess_latents_bucket *bucket, const char *message)
{
    const tess_ctx ctx = ctx_of(f);
    tess_latents_writer *w = NULL;
    assert_refused(tess_latents_writer_create(&ctx, at(f, "x.h5"), info, bucket, &w), TESS_E_ARG,
                   "x.h5", message);
}

static void test_write_refuses_what_a_file_cannot_hold(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    tess_latents_info bad = info_of(TESS_F32, false);
    const tess_latents_bucket odd[] = {{4, 5, 3, 0}, {4, 8, 1, 0}, {6, 10, 2, 0}};
    const tess_latents_bucket twice[] = {{4, 6, 3, 0}, {4, 6, 1, 0}, {6, 10, 2, 0}};
    refuse_info(f, &bad, odd, "latents of 4 x 5");
    refuse_info(f, &bad, twice, "is not behind");
    bad.sample_numel = 7;
    bad.name_nbytes = 99;
    refuse_info(f, &bad, buckets, "buckets hold 6 samples, expected 7");
    bad = info_of(TESS_F16, false);
    refuse_info(f, &bad, buckets, "bf16 and f32");

    const tess_latents_info info = info_of(TESS_BF16, false);
    tess_latents_writer *w = NULL;
    float latent[LATENT_MAX] = {0}, mask[LATENT_MAX] = {0};
    assert_ok(tess_latents_writer_create(&ctx, at(f, "x.h5"), &info, buckets, &w));
    const float bad_value[] = {NAN, INFINITY, 3.4e38F}; /* the last one has no bf16 */
    tess_latents_image image = {"img", sample_of(0), latent, NULL};
    for (int i = 0; i < TESS_NELEM(bad_value); i++) {
        latent[5] = bad_value[i];
        assert_refused(tess_latents_writer_image(w, 0, &image), TESS_E_FORMAT, "'img'",
                       "element 5 of latent_4x6");
    }
    latent[5] = 0.0F;
    image.mask = mask;
    assert_refused(tess_latents_writer_image(w, 0, &image), TESS_E_ARG, "none were announced");
    image.mask = NULL;
    image.sample.caption_idx = 3;
    assert_refused(tess_latents_writer_image(w, 0, &image), TESS_E_RANGE, "caption 3 of 3");
    image.sample.caption_idx = 0;
    assert_refused(tess_latents_writer_image(w, 3, &image), TESS_E_RANGE, "bucket 3");
    assert_refused(tess_latents_writer_finish(w), TESS_E_STATE, "0 of 3 samples of bucket 0");
    tess_latents_writer_destroy(&w);
    char **name = NULL;
    int64_t numel = -1;
    assert_ok(tess_io_list(f->io, f->dir, &name, &numel));
    assert_int_equal(numel, 0);
    tess_io_list_free(&name, numel);
}

/* Each call of each operation fails once while a file is replaced: the failure is reported, nothing
 * leaks, and the old file or the new one stands there whole. */
static void test_write_with_faults_leaves_a_whole_file(void **state)
{
    static const struct {
        const char *name;
        tess_io_op op;
    } operations[] = {{"open", TESS_IO_OPEN},     {"pread", TESS_IO_PREAD},
                      {"pwrite", TESS_IO_PWRITE}, {"fsync", TESS_IO_FSYNC},
                      {"close", TESS_IO_CLOSE},   {"rename", TESS_IO_RENAME}};
    const fixture *f = *state;
    const char *path = at(f, "c.h5");
    int failure_numel = 0;
    assert_ok(write_file(f, path, TESS_BF16, false));
    const tess_xxh128 old = digest_of(f, path);
    for (int i = 0; i < TESS_NELEM(operations); i++) {
        bool has_fired = true;
        for (int64_t n = 1; has_fired; n++) {
            char fault[64];
            fixture broken = *f;
            snprintf(fault, sizeof fault, "0:%s:%" PRId64 ":enospc", operations[i].name, n);
            setenv("TESSERA_FAULT", fault, 1);
            const size_t before_nbytes = tess_alloc_nbytes();
            assert_ok(tess_io_create(0, &broken.io));
            unsetenv("TESSERA_FAULT");
            tess_error_clear();
            const tess_status st = write_file(&broken, path, TESS_F32, true);
            has_fired = tess_io_calls(broken.io, operations[i].op) >= n;
            tess_io_destroy(&broken.io);
            assert_int_equal(tess_alloc_nbytes(), before_nbytes);
            failure_numel += st != TESS_OK;
            const tess_xxh128 now = digest_of(f, path);
            const bool is_old = memcmp(now.byte, old.byte, sizeof now.byte) == 0;
            check_content(f, path, is_old ? TESS_BF16 : TESS_F32, !is_old);
            assert_ok(write_file(f, path, TESS_BF16, false));
        }
    }
    assert_true(failure_numel >= 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_write_read_round_trip),
        format_test(test_identity_is_of_the_content),
        format_test(test_open_and_verify_find_changed_bytes),
        format_test(test_open_refuses_raw_latents),
        format_test(test_write_refuses_what_a_file_cannot_hold),
        format_test(test_write_with_faults_leaves_a_whole_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
