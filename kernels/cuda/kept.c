#include "kernels/cuda/kept_priv.h"

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

/* Places are a power of two, and a quarter stays empty so that a search ends soon. A model of 200
 * blocks has some 2,500. */
enum { CAPACITY = 8192, FULL_NUMEL = CAPACITY / 4 * 3, ALIGN_NBYTES = 256 };

tess_status tess_kept_init(tess_kept *k, void *memory, size_t nbytes)
{
    void *place = NULL;
    TESS_TRY(tess_alloc_array(CAPACITY, sizeof(tess_kept_place), &place));
    *k = (tess_kept){.memory = memory, .nbytes = nbytes, .place = place};
    return TESS_OK;
}

void tess_kept_fini(tess_kept *k)
{
    tess_free(k->place);
    memset(k, 0, sizeof *k);
}

/* FNV-1a, 64 bits. */
static uint64_t hash_of(const tess_kept_key *key)
{
    const uint8_t *p = (const uint8_t *)key;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

tess_kept_place *tess_kept_take(tess_kept *k, const tess_kept_key *key, size_t nbytes)
{
    uint64_t at = hash_of(key) % CAPACITY;
    tess_kept_place *place = &k->place[at];
    for (; place->data != NULL; place = &k->place[at]) {
        if (memcmp(&place->key, key, sizeof *key) == 0)
            return place;
        at = (at + 1) % CAPACITY;
    }
    if (nbytes > k->nbytes - k->used_nbytes || k->place_numel >= FULL_NUMEL)
        return NULL;
    *place = (tess_kept_place){.data = k->memory + k->used_nbytes};
    memcpy(&place->key, key, sizeof *key); /* padding too: it was hashed */
    k->used_nbytes =
        TESS_MIN(k->used_nbytes + (size_t)tess_round_up((int64_t)nbytes, ALIGN_NBYTES), k->nbytes);
    k->place_numel++;
    return place;
}
