#include "train/rewrite/stored.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

enum { ALIGN_NBYTES = 64, CHUNK_NUMEL = 16384 };

tess_status tess_stored_prepare(tess_stored *s, const tess_codec *codec, int64_t numel)
{
    size_t at[TESS_CODEC_PART_MAX] = {0}, nbytes = 0;
    void *grown = s->memory;
    s->codec = *codec;
    s->numel = numel;
    TESS_TRY(tess_codec_parts(codec, numel, s->part, &s->part_numel));
    for (int i = 0; i < s->part_numel; i++) {
        at[i] = nbytes;
        nbytes += (size_t)tess_round_up((int64_t)s->part[i].nbytes, ALIGN_NBYTES);
    }
    if (nbytes + ALIGN_NBYTES > s->memory_nbytes) {
        tess_free(s->memory);
        s->memory = NULL;
        s->memory_nbytes = 0;
        TESS_TRY(tess_alloc(nbytes + ALIGN_NBYTES, &grown));
        s->memory = grown;
        s->memory_nbytes = nbytes + ALIGN_NBYTES;
    }
    char *base = s->memory;
    base += (ALIGN_NBYTES - (uintptr_t)base % ALIGN_NBYTES) % ALIGN_NBYTES;
    for (int i = 0; i < s->part_numel; i++)
        s->at[i] = base + at[i];
    return TESS_OK;
}

void tess_stored_fini(tess_stored *s)
{
    tess_free(s->memory);
    tess_free(s->work);
    *s = (tess_stored){0};
}

int64_t tess_stored_nbytes(const tess_stored *s)
{
    int64_t nbytes = 0;
    for (int i = 0; i < s->part_numel; i++)
        nbytes += (int64_t)s->part[i].nbytes;
    return nbytes;
}

tess_status tess_stored_read(tess_stored *s, const tess_model_dir *dir,
                             const tess_model_tensor *tensor)
{
    tess_codec codec;
    int64_t from = 0;
    TESS_TRY(tess_model_tensor_codec(tensor, &codec));
    TESS_TRY(tess_stored_prepare(s, &codec, tensor->st->numel));
    for (int i = 0; i < s->part_numel; from += (int64_t)s->part[i++].nbytes)
        TESS_TRY(tess_model_dir_read(dir, tensor, from, s->part[i].nbytes, s->at[i]));
    return TESS_OK;
}

tess_status tess_stored_decode(const tess_stored *s, int64_t first_idx, int64_t numel, float *dst)
{
    const tess_view to = tess_view_host(dst, numel, TESS_F32);
    if (tess_format_is_quantized(s->codec.format)) {
        tess_dequantize_args args = {
            .codec = s->codec, .numel = s->numel, .first_idx = first_idx, .dst = to};
        for (int i = 0; i < s->part_numel; i++)
            args.part[i] = s->at[i];
        return tess_kernels_cpu.dequantize(&args, NULL);
    }
    const tess_view whole = tess_view_host(s->at[0], s->numel, s->part[0].dt);
    const tess_cast_args args = {.src = tess_view_slice(whole, first_idx, numel), .dst = to};
    tess_stream stream;
    tess_stream_init_inline(&stream, "decode", NULL);
    return tess_kernels_cpu.cast(&args, &stream);
}

/* ---- over chunks ---- */

/* A loop over chunks that threads share; what went wrong first, in the order of chunks, is kept. */
typedef struct chunks {
    tess_status (*body)(struct chunks *c, int64_t chunk_idx, int64_t first_idx, int64_t numel);
    const tess_stored *before, *after;
    tess_stored_error *error; /* [chunk_numel] */
    int64_t *bad_idx;         /* [chunk_numel] first element that is not finite, or -1 */
    float *dst;
    int64_t numel, chunk_numel;
} chunks;

static void run_part(void *arg, int part_idx, int part_numel)
{
    chunks *c = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(c->chunk_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++)
        /* Arguments were checked by the caller: only they could fail. */
        (void)!c->body(c, i, i * CHUNK_NUMEL, TESS_MIN(CHUNK_NUMEL, c->numel - i * CHUNK_NUMEL));
}

static void run_chunks(chunks *c, tess_pool *pool)
{
    tess_pool_run(pool, tess_pool_thread_numel(pool), run_part, c);
}

static tess_status decode_chunk(chunks *c, int64_t chunk_idx, int64_t first_idx, int64_t numel)
{
    (void)chunk_idx;
    return tess_stored_decode(c->before, first_idx, numel, c->dst + first_idx);
}

tess_status tess_stored_decode_all(const tess_stored *s, tess_pool *pool, float *dst)
{
    chunks c = {.body = decode_chunk,
                .before = s,
                .dst = dst,
                .numel = s->numel,
                .chunk_numel = tess_ceil_div(s->numel, CHUNK_NUMEL)};
    TESS_TRY(tess_stored_decode(s, 0, TESS_MIN(s->numel, 1), dst)); /* what can fail fails here */
    run_chunks(&c, pool);
    return TESS_OK;
}

tess_status tess_stored_values(const tess_stored *s, tess_pool *pool, float *plain, tess_view *out)
{
    *out = tess_view_host(s->at[0], s->numel, s->part[0].dt);
    if (!tess_format_is_quantized(s->codec.format))
        return TESS_OK;
    *out = tess_view_host(plain, s->numel, TESS_F32);
    return tess_stored_decode_all(s, pool, plain);
}

tess_status tess_stored_encode(tess_stored *s, tess_view src, const char *name, tess_pool *pool)
{
    tess_stream stream;
    tess_stream_init_inline(&stream, "encode", pool);
    if (!tess_format_is_quantized(s->codec.format)) {
        const tess_cast_args args = {.src = src,
                                     .dst = tess_view_host(s->at[0], s->numel, s->part[0].dt)};
        return tess_kernels_cpu.cast(&args, &stream);
    }
    const int64_t work_numel =
        s->codec.double_quant ? tess_ceil_div(s->numel, s->codec.block_numel) : 0;
    void *grown = s->work;
    if (work_numel > s->work_numel) {
        TESS_TRY(tess_realloc_array(s->work_numel, work_numel, sizeof *s->work, &grown));
        s->work = grown;
        s->work_numel = work_numel;
    }
    tess_quantize_args args = {
        .codec = s->codec, .src = src, .absmax_work = s->work, .tensor_name = name};
    memcpy(args.part, s->at, sizeof args.part);
    return tess_kernels_cpu.quantize(&args, &stream);
}

/* ---- comparing ---- */

static void add_element(tess_stored_error *e, double before, double after)
{
    const double difference = after - before;
    e->square += before * before;
    e->error_square += difference * difference;
    e->most = fmax(e->most, fabs(difference));
}

/* A block of values that became nothing but zeros. */
static bool is_zeroed(const float *before, const float *after, int64_t numel)
{
    bool had_value = false;
    for (int64_t i = 0; i < numel; i++) {
        if (after[i] != 0.0F)
            return false;
        had_value = had_value || before[i] != 0.0F;
    }
    return had_value;
}

static tess_status compare_chunk(chunks *c, int64_t chunk_idx, int64_t first_idx, int64_t numel)
{
    float before[CHUNK_NUMEL], after[CHUNK_NUMEL];
    tess_stored_error *e = &c->error[chunk_idx];
    const int64_t block_numel = c->after->codec.block_numel;
    TESS_TRY(tess_stored_decode(c->before, first_idx, numel, before));
    TESS_TRY(tess_stored_decode(c->after, first_idx, numel, after));
    c->bad_idx[chunk_idx] = -1;
    for (int64_t i = 0; i < numel; i++) {
        if (!isfinite(before[i]) || !isfinite(after[i])) {
            c->bad_idx[chunk_idx] = first_idx + i;
            return TESS_OK;
        }
        add_element(e, (double)before[i], (double)after[i]);
    }
    /* only blocks that lie whole in a chunk: those with an fp16 scale of their own */
    for (int64_t i = 0; block_numel > 0 && CHUNK_NUMEL % block_numel == 0 && i < numel;
         i += block_numel)
        e->zeroed_numel += is_zeroed(before + i, after + i, TESS_MIN(block_numel, numel - i));
    return TESS_OK;
}

static tess_status sum_chunks(const chunks *c, const char *name, tess_stored_error *out)
{
    float before = 0.0F, after = 0.0F;
    *out = (tess_stored_error){0};
    for (int64_t i = 0; i < c->chunk_numel; i++) {
        const int64_t bad_idx = c->bad_idx[i], first_idx = bad_idx / 256 * 256;
        if (bad_idx >= 0) {
            float value[2][256];
            const int64_t numel = TESS_MIN(INT64_C(256), c->numel - first_idx);
            TESS_TRY(tess_stored_decode(c->before, first_idx, numel, value[0]));
            TESS_TRY(tess_stored_decode(c->after, first_idx, numel, value[1]));
            before = value[0][bad_idx - first_idx];
            after = value[1][bad_idx - first_idx];
            return TESS_FAIL(TESS_E_FORMAT,
                             "tensor '%s': element %" PRId64 " is %g, stored as %s it would be %g; "
                             "expected finite values: repair the source or choose another format",
                             name, bad_idx, (double)before,
                             tess_format_name(c->after->codec.format), (double)after);
        }
        out->square += c->error[i].square;
        out->error_square += c->error[i].error_square;
        out->most = fmax(out->most, c->error[i].most);
        out->zeroed_numel += c->error[i].zeroed_numel;
    }
    return TESS_OK;
}

tess_status tess_stored_compare(const tess_stored *before, const tess_stored *after,
                                const char *name, tess_pool *pool, tess_stored_error *out)
{
    void *error = NULL, *bad = NULL;
    chunks c = {.body = compare_chunk,
                .before = before,
                .after = after,
                .numel = before->numel,
                .chunk_numel = tess_ceil_div(before->numel, CHUNK_NUMEL)};
    TESS_CHECK(before->numel == after->numel, TESS_E_ARG,
               "tensor '%s': %" PRId64 " elements compared with %" PRId64, name, before->numel,
               after->numel);
    tess_status st = tess_alloc_array(c.chunk_numel, sizeof *c.error, &error);
    if (st == TESS_OK)
        st = tess_alloc_array(c.chunk_numel, sizeof *c.bad_idx, &bad);
    c.error = error;
    c.bad_idx = bad;
    if (st == TESS_OK) {
        run_chunks(&c, pool);
        st = sum_chunks(&c, name, out);
    }
    tess_free(error);
    tess_free(bad);
    return st;
}

/* ---- identity ---- */

static tess_status hash_parts(const tess_stored *s, tess_sha256_state *state)
{
    for (int i = 0; i < s->part_numel; i++)
        TESS_TRY(tess_sha256_update(state, s->at[i], s->part[i].nbytes));
    return TESS_OK;
}

static tess_status hash_values(const tess_stored *s, tess_sha256_state *state)
{
    float value[CHUNK_NUMEL];
    for (int64_t at = 0; at < s->numel; at += CHUNK_NUMEL) {
        const int64_t numel = TESS_MIN(CHUNK_NUMEL, s->numel - at);
        TESS_TRY(tess_stored_decode(s, at, numel, value));
        TESS_TRY(tess_sha256_update(state, value, (size_t)numel * sizeof *value));
    }
    return TESS_OK;
}

tess_status tess_stored_sha256(const tess_stored *s, const tess_codec *kept, tess_sha256 *out)
{
    tess_sha256_state *state = NULL;
    const bool is_same = tess_codec_is_equal(&s->codec, kept);
    TESS_CHECK(is_same || kept->format == TESS_FORMAT_F32, TESS_E_ARG,
               "%s kept as %s: expected the same, or f32", tess_format_name(s->codec.format),
               tess_format_name(kept->format));
    TESS_TRY(tess_sha256_create(&state));
    tess_status st = is_same ? hash_parts(s, state) : hash_values(s, state);
    if (st == TESS_OK)
        st = tess_sha256_final(state, out);
    tess_sha256_destroy(&state);
    return st;
}
