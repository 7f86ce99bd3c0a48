/* The valid ones of vectors of which some are masked. */
#include <inttypes.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/mask.h"
#include "train/data/vectors_priv.h"

enum { CHUNK = 1024 };

struct tess_vectors_valid {
    tess_mask *mask;
    int64_t place_numel; /* vectors of the file */
    int64_t chunk_numel;
    int64_t *before;   /* [chunk_numel + 1] valid ones in front of each chunk, and all */
    int64_t chunk_idx; /* whose flags are held; -1: none */
    uint8_t flag[CHUNK];
};

static int64_t chunk_end(const tess_vectors_valid *v, int64_t chunk_idx)
{
    return TESS_MIN((chunk_idx + 1) * CHUNK, v->place_numel);
}

static tess_status hold(tess_vectors_valid *v, int64_t chunk_idx)
{
    const int64_t first = chunk_idx * CHUNK;
    if (v->chunk_idx == chunk_idx)
        return TESS_OK;
    v->chunk_idx = -1;
    TESS_TRY(tess_mask_read(v->mask, first, chunk_end(v, chunk_idx) - first, v->flag));
    v->chunk_idx = chunk_idx;
    return TESS_OK;
}

static tess_status count(tess_vectors_valid *v, const char *mask_path, const char *key)
{
    void *before = NULL;
    TESS_TRY(tess_alloc_array(v->chunk_numel + 1, sizeof *v->before, &before));
    v->before = before;
    for (int64_t c = 0; c < v->chunk_numel; c++) {
        TESS_TRY(hold(v, c));
        v->before[c + 1] = v->before[c];
        for (int64_t i = 0; i < chunk_end(v, c) - c * CHUNK; i++)
            v->before[c + 1] += v->flag[i];
    }
    TESS_CHECK(v->before[v->chunk_numel] > 0, TESS_E_FORMAT,
               "%s: '%s' masks all of the %" PRId64 " vectors, expected a valid one", key,
               mask_path, v->place_numel);
    return TESS_OK;
}

tess_status tess_vectors_valid_open(const tess_ctx *ctx, const char *mask_path, const char *key,
                                    int64_t vector_numel, tess_vectors_valid **out)
{
    const tess_mask_shape shape = {vector_numel, 1};
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_vectors_valid), &object));
    tess_vectors_valid *v = object;
    v->place_numel = vector_numel;
    v->chunk_numel = tess_ceil_div(vector_numel, CHUNK);
    v->chunk_idx = -1;
    tess_status st = tess_mask_open(ctx, mask_path, key, &shape, &v->mask);
    if (st == TESS_OK)
        st = count(v, mask_path, key);
    if (st != TESS_OK) {
        tess_vectors_valid_close(&v);
        return st;
    }
    *out = v;
    return TESS_OK;
}

void tess_vectors_valid_close(tess_vectors_valid **valid)
{
    tess_vectors_valid *v = *valid;
    if (v == NULL)
        return;
    tess_mask_close(&v->mask);
    tess_free(v->before);
    tess_free(v);
    *valid = NULL;
}

int64_t tess_vectors_valid_numel(const tess_vectors_valid *v) { return v->before[v->chunk_numel]; }

tess_status tess_vectors_valid_find(tess_vectors_valid *v, int64_t idx, int64_t *place)
{
    int64_t low = 0, high = v->chunk_numel;
    while (high - low > 1) { /* the last chunk with no more than idx in front */
        const int64_t middle = low + (high - low) / 2;
        *(v->before[middle] <= idx ? &low : &high) = middle;
    }
    TESS_TRY(hold(v, low));
    int64_t at = 0;
    for (int64_t left = idx - v->before[low]; v->flag[at] == 0 || left-- > 0;)
        at++;
    *place = low * CHUNK + at;
    return TESS_OK;
}

tess_status tess_vectors_valid_flags(tess_vectors_valid *v, int64_t place, const uint8_t **flag,
                                     int64_t *numel)
{
    const int64_t chunk_idx = place / CHUNK;
    TESS_TRY(hold(v, chunk_idx));
    *flag = v->flag + place % CHUNK;
    *numel = chunk_end(v, chunk_idx) - place;
    return TESS_OK;
}
