#include "dist/contract.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

/*
 * [Note: canonical form] "tessera contract 1\n", then per entry: name length (u32, little endian),
 * name, NUL, value length (u32), value, NUL. Lengths keep two texts from running into one another,
 * the NULs let the texts be used in place. The entry count is hashed last, so that the bytes of the
 * first k entries are a prefix of the whole.
 */
struct tess_contract {
    char *bytes; /* [byte_numel] canonical form without the count */
    int64_t byte_numel;
    int64_t byte_room;
    int64_t *at; /* [entry_numel] first byte of each entry */
    int64_t entry_numel;
    int64_t entry_room;
    tess_wire *wires;
    int64_t wire_numel;
    int64_t wire_room;
};

enum { VALUE_NBYTES = 512 };
static const char HEADER[] = "tessera contract 1\n";

static tess_status grow(int64_t want, size_t elem_nbytes, int64_t *room, void **memory)
{
    if (want <= *room)
        return TESS_OK;
    const int64_t next = TESS_MAX(want, *room * 2);
    TESS_TRY(tess_realloc_array(*room, next, elem_nbytes, memory));
    *room = next;
    return TESS_OK;
}

static tess_status append(tess_contract *c, const void *src, size_t nbytes)
{
    void *bytes = c->bytes;
    const tess_status st = grow(c->byte_numel + (int64_t)nbytes, 1, &c->byte_room, &bytes);
    c->bytes = bytes;
    if (st != TESS_OK)
        return st;
    memcpy(c->bytes + c->byte_numel, src, nbytes);
    c->byte_numel += (int64_t)nbytes;
    return TESS_OK;
}

static tess_status append_text(tess_contract *c, const char *text)
{
    const size_t nbytes = strlen(text);
    TESS_CHECK(nbytes < UINT32_MAX, TESS_E_RANGE, "contract entry of %zu bytes", nbytes);
    const uint32_t n = (uint32_t)nbytes;
    const uint8_t length[4] = {(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16),
                               (uint8_t)(n >> 24)};
    TESS_TRY(append(c, length, sizeof length));
    return append(c, text, nbytes + 1);
}

tess_status tess_contract_create(tess_contract **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_contract), &memory));
    tess_contract *c = memory;
    const tess_status st = append(c, HEADER, sizeof HEADER - 1);
    if (st != TESS_OK) {
        tess_contract_destroy(&c);
        return st;
    }
    *out = c;
    return TESS_OK;
}

void tess_contract_destroy(tess_contract **contract)
{
    tess_contract *c = *contract;
    if (c == NULL)
        return;
    tess_free(c->wires);
    tess_free(c->at);
    tess_free(c->bytes);
    tess_free(c);
    *contract = NULL;
}

static tess_status add_entry(tess_contract *c, const char *name, const char *value)
{
    void *at = c->at;
    const tess_status st = grow(c->entry_numel + 1, sizeof *c->at, &c->entry_room, &at);
    c->at = at;
    if (st != TESS_OK)
        return st;
    const int64_t first = c->byte_numel;
    tess_status added = append_text(c, name);
    if (added == TESS_OK)
        added = append_text(c, value);
    if (added != TESS_OK) {
        c->byte_numel = first; /* no half entry */
        return added;
    }
    c->at[c->entry_numel++] = first;
    return TESS_OK;
}

/* What a message has room for: the beginning, and the digest of all of it. */
static tess_status abridge(const char *whole, size_t nbytes, char value[VALUE_NBYTES])
{
    enum { KEPT_NBYTES = VALUE_NBYTES - 100 };
    char hex[TESS_SHA256_HEX_NBYTES];
    tess_sha256 digest;
    TESS_TRY(tess_sha256_of(whole, nbytes, &digest));
    tess_hex(digest.byte, sizeof digest.byte, hex);
    snprintf(value, VALUE_NBYTES, "%.*s... (SHA-256 of %zu bytes: %s)", KEPT_NBYTES, whole, nbytes,
             hex);
    return TESS_OK;
}

tess_status tess_contract_add_text(tess_contract *contract, const char *name, const char *fmt, ...)
{
    char value[VALUE_NBYTES];
    void *whole = NULL;
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    const int n = vsnprintf(value, sizeof value, fmt, args);
    va_end(args);
    tess_status st = TESS_OK;
    if (n >= (int)sizeof value) {
        st = tess_alloc((size_t)n + 1, &whole);
        if (st == TESS_OK) {
            vsnprintf(whole, (size_t)n + 1, fmt, again);
            st = abridge(whole, (size_t)n, value);
        }
        tess_free(whole);
    }
    va_end(again);
    TESS_TRY(st);
    TESS_CHECK(n >= 0, TESS_E_RANGE, "contract entry '%s': its value is no text", name);
    return add_entry(contract, name, value);
}

static tess_status add_field(tess_contract *c, const tess_wire *w, const char *field,
                             const char *value)
{
    char name[160];
    snprintf(name, sizeof name, "%.95s %s", w->name, field);
    return add_entry(c, name, value);
}

static tess_status add_number(tess_contract *c, const tess_wire *w, const char *field,
                              int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    return add_field(c, w, field, text);
}

static tess_status add_fields(tess_contract *c, const tess_wire *wire)
{
    TESS_TRY(add_field(c, wire, "op", tess_comm_op_name(wire->op)));
    TESS_TRY(add_number(c, wire, "entry", wire->entry_idx));
    TESS_TRY(add_field(c, wire, "storage dtype", tess_dtype_name(wire->storage)));
    TESS_TRY(add_field(c, wire, "wire dtype", tess_dtype_name(wire->wire)));
    TESS_TRY(add_field(c, wire, "accumulate dtype", tess_dtype_name(wire->accumulate)));
    TESS_TRY(add_number(c, wire, "elements per rank", wire->numel_per_rank));
    TESS_TRY(add_number(c, wire, "elements in total", wire->numel_total));
    return TESS_OK;
}

tess_status tess_contract_add_wire(tess_contract *c, const tess_wire *wire)
{
    TESS_CHECK(wire->entry_idx == c->wire_numel, TESS_E_ARG,
               "contract of '%s' has entry_idx %u, the next place in the table is %" PRId64,
               wire->name, wire->entry_idx, c->wire_numel);
    void *wires = c->wires;
    const tess_status st = grow(c->wire_numel + 1, sizeof *c->wires, &c->wire_room, &wires);
    c->wires = wires;
    if (st != TESS_OK)
        return st;
    const int64_t entry_numel = c->entry_numel;
    const int64_t byte_numel = c->byte_numel;
    const tess_status added = add_fields(c, wire);
    if (added != TESS_OK) {
        c->entry_numel = entry_numel;
        c->byte_numel = byte_numel;
        return added;
    }
    c->wires[c->wire_numel++] = *wire;
    return TESS_OK;
}

int64_t tess_contract_wire_numel(const tess_contract *c) { return c->wire_numel; }
const tess_wire *tess_contract_wire(const tess_contract *c, int64_t i) { return &c->wires[i]; }
int64_t tess_contract_entry_numel(const tess_contract *c) { return c->entry_numel; }

void tess_contract_entry(const tess_contract *c, int64_t idx, const char **name, const char **value)
{
    const char *at = c->bytes + c->at[idx] + 4;
    *name = at;
    *value = at + strlen(at) + 1 + 4;
}

tess_status tess_contract_digest(const tess_contract *c, tess_sha256 *out)
{
    uint8_t numel[8];
    for (int i = 0; i < 8; i++)
        numel[i] = (uint8_t)((uint64_t)c->entry_numel >> (8 * i));
    tess_sha256_state *state = NULL;
    TESS_TRY(tess_sha256_create(&state));
    tess_status st = tess_sha256_update(state, c->bytes, (size_t)c->byte_numel);
    if (st == TESS_OK)
        st = tess_sha256_update(state, numel, sizeof numel);
    if (st == TESS_OK)
        st = tess_sha256_final(state, out);
    tess_sha256_destroy(&state);
    return st;
}

/* ---- comparison across ranks ---- */

/* Whether all ranks gave the same `lane_numel` 32-bit values: the maxima of x and of -x meet. */
static tess_status is_same_everywhere(tess_comm *comm, const uint8_t *bytes, int lane_numel,
                                      bool *is_same)
{
    int64_t max[2 * 8];
    for (int i = 0; i < lane_numel; i++) {
        uint32_t lane = 0;
        for (int k = 0; k < 4; k++)
            lane = lane << 8 | bytes[4 * i + k];
        max[2 * i] = lane;
        max[2 * i + 1] = -(int64_t)lane;
    }
    TESS_TRY(tess_comm_control(comm, NULL, 0, max, 2 * lane_numel));
    *is_same = true;
    for (int i = 0; i < lane_numel; i++)
        *is_same = *is_same && max[2 * i] == -max[2 * i + 1];
    return TESS_OK;
}

/* XXH3 of the first `numel` entries; a table that has fewer hashes to something else. */
static tess_xxh128 prefix_hash(const tess_contract *c, int64_t numel)
{
    if (numel > c->entry_numel)
        return tess_xxh128_of("no such entry", 13);
    const int64_t end = numel == c->entry_numel ? c->byte_numel : c->at[numel];
    return tess_xxh128_of(c->bytes, (size_t)end);
}

/* All ranks walk the same way, because every decision is a verdict. Some entry differs. */
static tess_status first_difference(tess_comm *comm, const tess_contract *c, int64_t *idx)
{
    int64_t longest = c->entry_numel;
    TESS_TRY(tess_comm_control(comm, NULL, 0, &longest, 1));
    int64_t same = 0;          /* so many entries are equal everywhere */
    int64_t differs = longest; /* so many are not */
    while (differs - same > 1) {
        const int64_t middle = same + (differs - same) / 2;
        const tess_xxh128 hash = prefix_hash(c, middle);
        bool is_same = false;
        TESS_TRY(is_same_everywhere(comm, hash.byte, 4, &is_same));
        if (is_same)
            same = middle;
        else
            differs = middle;
    }
    *idx = same;
    return TESS_OK;
}

/* One rank's entry as it travels. */
typedef struct entry_card {
    int32_t rank; /* in the launch */
    int32_t is_there;
    char name[160];
    char value[512];
} entry_card;

static void write_card(const tess_comm *comm, const tess_contract *c, int64_t idx, entry_card *card)
{
    memset(card, 0, sizeof *card);
    card->rank = tess_comm_launch_rank(comm);
    card->is_there = idx < c->entry_numel;
    if (!card->is_there)
        return;
    const char *name = NULL;
    const char *value = NULL;
    tess_contract_entry(c, idx, &name, &value);
    snprintf(card->name, sizeof card->name, "%s", name);
    snprintf(card->value, sizeof card->value, "%s", value);
}

static bool card_differs(const entry_card *a, const entry_card *b)
{
    return a->is_there != b->is_there || strcmp(a->name, b->name) != 0 ||
           strcmp(a->value, b->value) != 0;
}

static tess_status refuse(const entry_card *first, const entry_card *other, int64_t idx)
{
    static const char *const cure = "start all ranks with the same program, run file and files";
    if (!first->is_there || !other->is_there)
        return TESS_FAIL(TESS_E_CONTRACT,
                         "rank %d: contract entry %" PRId64 " %s%s%s, rank %d: %s%s%s; %s",
                         other->rank, idx, other->is_there ? "'" : "is missing", other->name,
                         other->is_there ? "'" : "", first->rank, first->is_there ? "'" : "none",
                         first->name, first->is_there ? "'" : "", cure);
    if (strcmp(first->name, other->name) != 0)
        return TESS_FAIL(TESS_E_CONTRACT,
                         "rank %d: contract entry %" PRId64 " is '%s' %s, rank %d: '%s' %s; %s",
                         other->rank, idx, other->name, other->value, first->rank, first->name,
                         first->value, cure);
    return TESS_FAIL(TESS_E_CONTRACT, "rank %d: %s %s, rank %d: %s; %s", other->rank, other->name,
                     other->value, first->rank, first->value, cure);
}

static tess_status report_difference(tess_comm *comm, const tess_contract *c, int64_t idx)
{
    entry_card mine;
    write_card(comm, c, idx, &mine);
    entry_card pair[2] = {mine, mine};
    const bool is_root = tess_comm_rank(comm) == 0;
    void *memory = NULL;
    tess_status st = TESS_OK;
    if (is_root)
        st = tess_alloc_array(tess_comm_world(comm), sizeof mine, &memory);
    TESS_TRY_GOTO(st, done, tess_agree(comm, st));
    entry_card *all = memory;
    TESS_TRY_GOTO(st, done, tess_comm_gather_bytes(comm, 0, &mine, sizeof mine, all));
    for (int r = 1; is_root && r < tess_comm_world(comm); r++)
        if (card_differs(&all[0], &all[r])) {
            pair[1] = all[r];
            break;
        }
    TESS_TRY_GOTO(st, done, tess_comm_bcast(comm, 0, pair, sizeof pair));
    st = refuse(&pair[0], &pair[1], idx);
done:
    tess_free(memory);
    return st;
}

tess_status tess_contract_agree(tess_comm *comm, const tess_contract *contract)
{
    tess_sha256 digest;
    memset(&digest, 0, sizeof digest);
    TESS_TRY(tess_agree(comm, tess_contract_digest(contract, &digest)));
    bool is_same = false;
    TESS_TRY(is_same_everywhere(comm, digest.byte, 8, &is_same));
    if (is_same)
        return TESS_OK;
    int64_t idx = 0;
    TESS_TRY(first_difference(comm, contract, &idx));
    return report_difference(comm, contract, idx);
}
