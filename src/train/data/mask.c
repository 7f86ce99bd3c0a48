#include "train/data/mask.h"

#include <inttypes.h>

#include "core/arith.h"
#include "core/memory.h"

enum { SCRATCH_NUMEL = 1024 }; /* flags that are read at once, or one sample's */

struct tess_mask {
    tess_vectors *file;
    int64_t position_numel;
    int64_t part_numel; /* samples that are read at once */
    float *value;       /* [part_numel, position_numel] */
};

static tess_status open_file(tess_mask *m, const char *key, const tess_mask_shape *shape)
{
    const tess_vectors_info *info = tess_vectors_get_info(m->file);
    void *value = NULL;
    TESS_CHECK(info->vector_numel == shape->sample_numel && info->dim == shape->position_numel,
               TESS_E_CONFIG,
               "%s: '%s' is [%" PRId64 ", %" PRId64 "], expected [%" PRId64 ", %" PRId64
               "]: a number for each %s, 0 where it is masked, else 1",
               key, info->path, info->vector_numel, info->dim, shape->sample_numel,
               shape->position_numel,
               shape->position_numel > 1 ? "position of each image" : "vector");
    m->position_numel = shape->position_numel;
    m->part_numel = TESS_MAX(SCRATCH_NUMEL / m->position_numel, 1);
    TESS_TRY(tess_alloc_array(m->part_numel * m->position_numel, sizeof *m->value, &value));
    m->value = value;
    return TESS_OK;
}

tess_status tess_mask_open(const tess_ctx *ctx, const char *path, const char *key,
                           const tess_mask_shape *shape, tess_mask **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_mask), &object));
    tess_mask *m = object;
    tess_status st = tess_vectors_open(ctx, path, &m->file);
    if (st == TESS_OK)
        st = open_file(m, key, shape);
    if (st != TESS_OK) {
        tess_mask_close(&m);
        return st;
    }
    *out = m;
    return TESS_OK;
}

void tess_mask_close(tess_mask **mask)
{
    tess_mask *m = *mask;
    if (m == NULL)
        return;
    tess_vectors_close(&m->file);
    tess_free(m->value);
    tess_free(m);
    *mask = NULL;
}

static tess_status take(const tess_mask *m, int64_t first_idx, int64_t numel, uint8_t *valid)
{
    for (int64_t i = 0; i < numel * m->position_numel; i++) {
        TESS_CHECK(m->value[i] == 0.0f || m->value[i] == 1.0f, TESS_E_FORMAT,
                   "'%s': element %" PRId64 " of vector %" PRId64
                   " is %g, expected 0 (masked) or 1",
                   tess_vectors_get_info(m->file)->path, i % m->position_numel,
                   first_idx + i / m->position_numel, (double)m->value[i]);
        valid[i] = m->value[i] != 0.0f;
    }
    return TESS_OK;
}

tess_status tess_mask_read(tess_mask *m, int64_t first_idx, int64_t numel, uint8_t *valid)
{
    for (int64_t done = 0; done < numel;) {
        const int64_t part = TESS_MIN(numel - done, m->part_numel);
        TESS_TRY(tess_vectors_read(m->file, first_idx + done, part, m->value));
        TESS_TRY(take(m, first_idx + done, part, valid + done * m->position_numel));
        done += part;
    }
    return TESS_OK;
}
