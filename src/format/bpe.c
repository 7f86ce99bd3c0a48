#include "core/memory.h"
#include "format/tokenizer_priv.h"

/* [Note: merge order] The pair with the lowest rank merges first, the leftmost among equals. The
 * heap holds candidates that may have gone stale; one is taken when the pair that now stands at its
 * place still makes the same token, exactly as in the reference implementation, whose result this
 * must equal token for token. */

void tess_bpe_fini(tess_bpe *bpe)
{
    tess_free(bpe->symbol);
    tess_free(bpe->heap);
    *bpe = (tess_bpe){0};
}

static tess_status reserve(tess_bpe *bpe, int64_t symbol_numel)
{
    if (symbol_numel > bpe->symbol_room_numel) {
        void *grown = bpe->symbol;
        const int64_t room = symbol_numel < 32768 ? 2 * symbol_numel + 256 : symbol_numel;
        TESS_TRY(tess_realloc_array(bpe->symbol_room_numel, room, sizeof(tess_symbol), &grown));
        bpe->symbol = grown;
        bpe->symbol_room_numel = room;
    }
    /* n - 1 first pairs; each of at most n - 1 merges takes one candidate and adds at most two. */
    if (2 * symbol_numel > bpe->heap_room_numel) {
        void *grown = bpe->heap;
        const int64_t room = symbol_numel < 32768 ? 4 * symbol_numel + 512 : 2 * symbol_numel;
        TESS_TRY(tess_realloc_array(bpe->heap_room_numel, room, sizeof(tess_candidate), &grown));
        bpe->heap = grown;
        bpe->heap_room_numel = room;
    }
    return TESS_OK;
}

static bool is_before(const tess_candidate *a, const tess_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void push(tess_bpe *bpe, tess_candidate candidate)
{
    int64_t at = bpe->heap_numel++;
    while (at > 0 && is_before(&candidate, &bpe->heap[(at - 1) / 2])) {
        bpe->heap[at] = bpe->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    bpe->heap[at] = candidate;
}

static tess_candidate pop(tess_bpe *bpe)
{
    const tess_candidate top = bpe->heap[0], last = bpe->heap[--bpe->heap_numel];
    int64_t at = 0;
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= bpe->heap_numel)
            break;
        if (child + 1 < bpe->heap_numel && is_before(&bpe->heap[child + 1], &bpe->heap[child]))
            child++;
        if (!is_before(&bpe->heap[child], &last))
            break;
        bpe->heap[at] = bpe->heap[child];
        at = child;
    }
    bpe->heap[at] = last;
    return top;
}

static void offer(const tess_tokenizer *t, tess_bpe *bpe, int32_t place)
{
    const tess_symbol *left = &bpe->symbol[place];
    if (left->next < 0)
        return;
    const tess_merge *merge = tess_merge_map_find(&t->merges, left->id, bpe->symbol[left->next].id);
    if (merge != NULL)
        push(bpe, (tess_candidate){merge->rank, place, merge->merged});
}

static void merge_all(const tess_tokenizer *t, tess_bpe *bpe)
{
    bpe->heap_numel = 0;
    for (int64_t i = 0; i + 1 < bpe->symbol_numel; i++)
        offer(t, bpe, (int32_t)i);
    while (bpe->heap_numel > 0) {
        const tess_candidate top = pop(bpe);
        tess_symbol *left = &bpe->symbol[top.place];
        if (left->is_merged || left->next < 0)
            continue;
        tess_symbol *right = &bpe->symbol[left->next];
        const tess_merge *merge = tess_merge_map_find(&t->merges, left->id, right->id);
        if (merge == NULL || merge->merged != top.merged)
            continue;
        left->id = top.merged;
        left->next = right->next;
        right->is_merged = true;
        if (left->next >= 0)
            bpe->symbol[left->next].prev = top.place;
        if (left->prev >= 0)
            offer(t, bpe, left->prev);
        offer(t, bpe, top.place);
    }
}

static void add_symbol(tess_bpe *bpe, int32_t id)
{
    const int32_t place = (int32_t)bpe->symbol_numel++;
    bpe->symbol[place] = (tess_symbol){.id = id, .prev = place - 1, .next = -1};
    if (place > 0)
        bpe->symbol[place - 1].next = place;
}

static tess_status fail_unknown(const tess_tokenizer *t, const char *text, size_t nbytes)
{
    size_t char_nbytes = 0;
    const uint32_t code_point = tess_utf8_next(text, nbytes, 0, &char_nbytes);
    return TESS_FAIL(TESS_E_FORMAT,
                     "tokenizer '%s': U+%04X is not in the vocabulary and there is no unknown "
                     "token to stand for it",
                     t->name, code_point);
}

static tess_status symbols_of_bytes(const tess_tokenizer *t, tess_bpe *bpe, const char *text,
                                    size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++) {
        const int32_t id = t->byte_id[(uint8_t)text[i]];
        TESS_CHECK(id >= 0, TESS_E_FORMAT, "tokenizer '%s': byte 0x%02x is not in the vocabulary",
                   t->name, (unsigned)(uint8_t)text[i]);
        add_symbol(bpe, id);
    }
    return TESS_OK;
}

static bool add_fallback(const tess_tokenizer *t, tess_bpe *bpe, const char *text, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++) {
        if (t->byte_id[(uint8_t)text[i]] < 0)
            return false;
    }
    for (size_t i = 0; i < nbytes; i++)
        add_symbol(bpe, t->byte_id[(uint8_t)text[i]]);
    return true;
}

/* An unknown token is held back until a known character follows: bytes of a fallback overtake it,
 * as they do in the reference. */
static tess_status symbols_of_chars(const tess_tokenizer *t, tess_bpe *bpe, const char *text,
                                    size_t nbytes)
{
    bool has_unknown = false;
    size_t char_nbytes = 0;
    for (size_t at = 0; at < nbytes; at += char_nbytes) {
        (void)tess_utf8_next(text, nbytes, at, &char_nbytes);
        const int32_t id =
            tess_token_map_find(&t->by_text, t->pool, t->text, text + at, char_nbytes);
        if (id >= 0) {
            if (has_unknown)
                add_symbol(bpe, t->unk_id);
            has_unknown = false;
            add_symbol(bpe, id);
        } else if (!t->byte_fallback || !add_fallback(t, bpe, text + at, char_nbytes)) {
            if (t->unk_id < 0)
                return fail_unknown(t, text + at, nbytes - at);
            if (has_unknown && !t->fuse_unk)
                add_symbol(bpe, t->unk_id);
            has_unknown = true;
        }
    }
    if (has_unknown)
        add_symbol(bpe, t->unk_id);
    return TESS_OK;
}

tess_status tess_bpe_encode(const tess_tokenizer *t, tess_bpe *bpe, const char *text, size_t nbytes,
                            tess_ids *ids)
{
    TESS_CHECK(nbytes <= TESS_PIECE_NBYTES_MAX, TESS_E_RANGE,
               "tokenizer '%s': piece of %zu bytes, at most %d are accepted", t->name, nbytes,
               TESS_PIECE_NBYTES_MAX);
    const tess_token_map *map = t->is_byte_level ? &t->by_raw : &t->by_text;
    if (t->ignore_merges) {
        const int32_t id =
            tess_token_map_find(map, t->pool, t->is_byte_level ? t->raw : t->text, text, nbytes);
        if (id >= 0)
            return tess_ids_append(ids, &id, 1);
    }
    bpe->symbol_numel = 0;
    TESS_TRY(reserve(bpe, (int64_t)nbytes));
    TESS_TRY(t->is_byte_level ? symbols_of_bytes(t, bpe, text, nbytes)
                              : symbols_of_chars(t, bpe, text, nbytes));
    merge_all(t, bpe);
    for (int32_t i = bpe->symbol_numel > 0 ? 0 : -1; i >= 0; i = bpe->symbol[i].next)
        TESS_TRY(tess_ids_append(ids, &bpe->symbol[i].id, 1));
    return TESS_OK;
}
