#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "dist/comm.h"
#include "train/data/vectors.h"

enum { BLOCK = 256 };

static tess_status check_block(tess_vectors *vectors, const char *key, int64_t first, int64_t numel,
                               float *x, tess_logical_hash *digest)
{
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    TESS_TRY(tess_vectors_read(vectors, first, numel, x));
    for (int64_t i = 0; i < numel * info->dim; i++)
        TESS_CHECK(isfinite(x[i]), TESS_E_FORMAT,
                   "%s: '%s': dimension %" PRId64 " of vector %" PRId64
                   " is %g, expected a finite number; remove or mask the vector",
                   key, info->path, i % info->dim,
                   tess_vectors_place(vectors, first + i / info->dim), (double)x[i]);
    tess_vectors_digest_add(digest, x, info->dim, first, numel);
    return TESS_OK;
}

static tess_status scan_own(tess_comm *comm, tess_vectors *vectors, const char *key,
                            tess_logical_hash *digest)
{
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    void *x = NULL;
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(BLOCK, info->dim, &numel));
    TESS_TRY(tess_alloc_array(numel, sizeof(float), &x));
    tess_status st = TESS_OK;
    for (int64_t first = (int64_t)tess_comm_rank(comm) * BLOCK;
         first < info->vector_numel && st == TESS_OK;
         first += (int64_t)tess_comm_world(comm) * BLOCK)
        st = check_block(vectors, key, first, TESS_MIN(info->vector_numel - first, (int64_t)BLOCK),
                         x, digest);
    tess_free(x);
    return st;
}

tess_status tess_vectors_digest_join(tess_comm *comm, tess_logical_hash *digest)
{
    int64_t lanes[2];
    _Static_assert(sizeof lanes == sizeof *digest, "lanes of an identity");
    memcpy(lanes, digest, sizeof lanes);
    TESS_TRY(tess_comm_control(comm, lanes, 2, NULL, 0));
    memcpy(digest, lanes, sizeof lanes);
    return TESS_OK;
}

tess_status tess_vectors_scan(tess_comm *comm, tess_vectors *vectors, const char *key,
                              tess_logical_hash *digest)
{
    *digest = (tess_logical_hash){0};
    TESS_TRY(tess_agree(comm, scan_own(comm, vectors, key, digest)));
    return tess_vectors_digest_join(comm, digest);
}
