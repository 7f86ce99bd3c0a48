#include "core/memory.h"
#include "format/tokenizer_priv.h"

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_bytes(const char *key, size_t nbytes)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ nbytes;
    for (; nbytes >= 8; key += 8, nbytes -= 8) {
        uint64_t word = 0;
        memcpy(&word, key, 8);
        h = mix(h ^ word);
    }
    uint64_t rest = 0;
    memcpy(&rest, key, nbytes);
    return mix(h ^ rest);
}

/* A power of two with at least half of the slots free. */
static int64_t slots_for(int64_t numel)
{
    int64_t slots = 16;
    while (slots < 2 * numel)
        slots *= 2;
    return slots;
}

tess_status tess_token_map_create(int64_t numel, tess_token_map *out)
{
    void *slot = NULL;
    const int64_t slots = slots_for(numel);
    TESS_TRY(tess_alloc_array(slots, sizeof(int32_t), &slot));
    memset(slot, 0xff, (size_t)slots * sizeof(int32_t));
    out->slot = slot;
    out->slot_numel = slots;
    return TESS_OK;
}

/* Slot that holds the key, or the free slot where it belongs. */
static int32_t *locate(const tess_token_map *map, const char *pool, const tess_token_span *spans,
                       const char *key, size_t nbytes)
{
    const uint64_t mask = (uint64_t)map->slot_numel - 1;
    for (uint64_t at = hash_bytes(key, nbytes) & mask;; at = (at + 1) & mask) {
        const int32_t id = map->slot[at];
        if (id < 0)
            return &map->slot[at];
        const tess_token_span *span = &spans[id];
        if (span->nbytes == nbytes && memcmp(pool + span->offset, key, nbytes) == 0)
            return &map->slot[at];
    }
}

void tess_token_map_add(tess_token_map *map, const char *pool, const tess_token_span *spans,
                        int32_t id, int32_t *found)
{
    int32_t *slot = locate(map, pool, spans, pool + spans[id].offset, spans[id].nbytes);
    *found = *slot;
    if (*slot < 0)
        *slot = id;
}

int32_t tess_token_map_find(const tess_token_map *map, const char *pool,
                            const tess_token_span *spans, const char *key, size_t nbytes)
{
    return *locate(map, pool, spans, key, nbytes);
}

tess_status tess_merge_map_create(int64_t numel, tess_merge_map *out)
{
    void *slot = NULL;
    const int64_t slots = slots_for(numel);
    TESS_TRY(tess_alloc_array(slots, sizeof(tess_merge), &slot));
    out->slot = slot;
    out->slot_numel = slots;
    for (int64_t i = 0; i < slots; i++)
        out->slot[i].pair = TESS_MERGE_NONE;
    return TESS_OK;
}

static tess_merge *locate_merge(const tess_merge_map *map, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const uint64_t mask = (uint64_t)map->slot_numel - 1;
    uint64_t at = mix(pair) & mask;
    while (map->slot[at].pair != pair && map->slot[at].pair != TESS_MERGE_NONE)
        at = (at + 1) & mask;
    return &map->slot[at];
}

/* A pair given twice keeps its last rank, as in the reference. */
void tess_merge_map_set(tess_merge_map *map, int32_t left, int32_t right, uint32_t rank,
                        int32_t merged)
{
    *locate_merge(map, left, right) =
        (tess_merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, merged};
}

const tess_merge *tess_merge_map_find(const tess_merge_map *map, int32_t left, int32_t right)
{
    const tess_merge *merge = locate_merge(map, left, right);
    return merge->pair == TESS_MERGE_NONE ? NULL : merge;
}
