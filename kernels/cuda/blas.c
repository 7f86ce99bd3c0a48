#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cuda/blas_priv.h"

/* A step of one model has some tens of products; sizes of the last micro-batch add a few. Places
 * are a power of two, and a quarter stays empty so that a search ends soon. */
enum {
    CAPACITY = 1024,
    FULL_NUMEL = CAPACITY / 4 * 3,
};

static const char magic[8] = "TESSBLS";

typedef struct export_header {
    char magic[8];
    uint32_t version, entry_nbytes;
    uint64_t entry_numel;
    uint64_t digest; /* of identity and entries */
    char identity[TESS_BLAS_IDENTITY_NBYTES];
} export_header;

enum { EXPORT_VERSION = 1 };

/* FNV-1a, 64 bits. */
static uint64_t hash_bytes(uint64_t h, const void *data, size_t nbytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < nbytes; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static const uint64_t hash_start = 0xcbf29ce484222325u;

/* The place of `p`, or the empty one where it goes. */
static tess_blas_entry *place_of(const tess_blas *b, const tess_blas_product *p)
{
    uint64_t at = hash_bytes(hash_start, p, sizeof(*p));
    for (;; at++) {
        tess_blas_entry *e = &b->entry[at & (uint64_t)(b->capacity - 1)];
        if (e->product.m == 0 || memcmp(&e->product, p, sizeof(*p)) == 0)
            return e;
    }
}

tess_status tess_blas_init(tess_blas *b)
{
    void *entry = NULL;
    TESS_TRY(tess_alloc(CAPACITY * sizeof(tess_blas_entry), &entry));
    b->entry = entry;
    b->capacity = CAPACITY;
    return TESS_OK;
}

void tess_blas_destroy(tess_blas **b)
{
    if (*b == NULL)
        return;
    tess_free((*b)->entry);
    (*b)->ops->destroy(*b);
    *b = NULL;
}

static tess_status choose_first(tess_blas *b, const tess_blas_product *p, tess_blas_choice *out)
{
    int choice_numel = 0;
    memset(out, 0, sizeof(*out));
    TESS_TRY(b->ops->choose(b, p, out, 1, &choice_numel));
    TESS_CHECK(choice_numel == 1, TESS_E_UNSUPPORTED,
               "gemm [%" PRId64 ", %" PRId64 "] over %" PRId64 ": the library offered no algorithm",
               p->m, p->n, p->k);
    return TESS_OK;
}

tess_status tess_blas_plan(tess_blas *b, const tess_blas_product *p)
{
    tess_blas_entry *e = place_of(b, p);
    tess_blas_choice choice;
    if (e->product.m != 0)
        return TESS_OK;
    TESS_CHECK(b->entry_numel < FULL_NUMEL, TESS_E_RANGE,
               "gemm: more than %d different products in a plan; use fewer sizes", FULL_NUMEL);
    TESS_TRY(choose_first(b, p, &choice));
    e->product = *p;
    e->choice = choice;
    b->entry_numel++;
    return TESS_OK;
}

void tess_blas_settle(tess_blas *b) { b->is_settled = true; }

tess_status tess_blas_run(tess_blas *b, const tess_blas_product *p, const tess_blas_operands *o,
                          tess_stream *s)
{
    const tess_blas_entry *e = place_of(b, p);
    if (e->product.m != 0)
        return b->ops->run(b, p, &e->choice, o, s);
    b->late_numel += b->is_settled ? 1 : 0;
    if (b->entry_numel < FULL_NUMEL) {
        TESS_TRY(tess_blas_plan(b, p));
        return b->ops->run(b, p, &e->choice, o, s);
    }
    tess_blas_choice choice; /* full: choose every time rather than fail */
    TESS_TRY(choose_first(b, p, &choice));
    return b->ops->run(b, p, &choice, o, s);
}

size_t tess_blas_export_nbytes(const tess_blas *b)
{
    return sizeof(export_header) + (size_t)b->entry_numel * sizeof(tess_blas_entry);
}

void tess_blas_export(const tess_blas *b, void *data)
{
    export_header h = {.version = EXPORT_VERSION,
                       .entry_nbytes = sizeof(tess_blas_entry),
                       .entry_numel = (uint64_t)b->entry_numel};
    memcpy(h.magic, magic, sizeof(magic));
    b->ops->identify(b, h.identity);
    char *at = (char *)data + sizeof(h);
    for (int64_t i = 0; i < b->capacity; i++) {
        if (b->entry[i].product.m == 0)
            continue;
        memcpy(at, &b->entry[i], sizeof(tess_blas_entry));
        at += sizeof(tess_blas_entry);
    }
    h.digest = hash_bytes(hash_start, h.identity, sizeof(h.identity));
    h.digest = hash_bytes(h.digest, (char *)data + sizeof(h),
                          (size_t)b->entry_numel * sizeof(tess_blas_entry));
    memcpy(data, &h, sizeof(h));
}

static tess_status import_check(const tess_blas *b, const export_header *h, const void *data,
                                size_t nbytes)
{
    char identity[TESS_BLAS_IDENTITY_NBYTES] = {0};
    TESS_CHECK(memcmp(h->magic, magic, sizeof(magic)) == 0 && h->version == EXPORT_VERSION &&
                   h->entry_nbytes == sizeof(tess_blas_entry),
               TESS_E_FORMAT,
               "algorithms of matrix products: version %" PRIu32 ", expected %d; all ranks need "
               "the same program",
               h->version, EXPORT_VERSION);
    const uint64_t body_nbytes = nbytes - sizeof(*h);
    TESS_CHECK(
        h->entry_numel <= FULL_NUMEL && body_nbytes == h->entry_numel * sizeof(tess_blas_entry),
        TESS_E_FORMAT,
        "algorithms of matrix products: %zu bytes for %" PRIu64 " entries, expected %zu", nbytes,
        h->entry_numel, sizeof(*h) + (size_t)h->entry_numel * sizeof(tess_blas_entry));
    uint64_t digest = hash_bytes(hash_start, h->identity, sizeof(h->identity));
    digest = hash_bytes(digest, (const char *)data + sizeof(*h), (size_t)body_nbytes);
    TESS_CHECK(digest == h->digest, TESS_E_FORMAT,
               "algorithms of matrix products: digest %016" PRIx64 ", expected %016" PRIx64
               "; they were damaged on the way",
               digest, h->digest);
    b->ops->identify(b, identity);
    TESS_CHECK(memcmp(identity, h->identity, sizeof(identity)) == 0, TESS_E_CONTRACT,
               "algorithms of matrix products are for '%.*s' but this rank has '%s'; use equal "
               "devices and libraries on all ranks",
               TESS_BLAS_IDENTITY_NBYTES - 1, h->identity, identity);
    return TESS_OK;
}

tess_status tess_blas_import(tess_blas *b, const void *data, size_t nbytes)
{
    export_header h;
    TESS_CHECK(nbytes >= sizeof(h), TESS_E_FORMAT,
               "algorithms of matrix products: %zu bytes, expected at least %zu", nbytes,
               sizeof(h));
    memcpy(&h, data, sizeof(h));
    TESS_TRY(import_check(b, &h, data, nbytes));
    for (uint64_t i = 0; i < h.entry_numel; i++) {
        tess_blas_entry in;
        memcpy(&in, (const char *)data + sizeof(h) + i * sizeof(in), sizeof(in));
        TESS_CHECK(in.product.m >= 1, TESS_E_FORMAT,
                   "algorithms of matrix products: entry %" PRIu64 " has no rows", i);
        tess_blas_entry *e = place_of(b, &in.product);
        TESS_CHECK(e->product.m != 0 || b->entry_numel < FULL_NUMEL, TESS_E_RANGE,
                   "gemm: more than %d different products in a plan; use fewer sizes", FULL_NUMEL);
        b->entry_numel += e->product.m == 0 ? 1 : 0;
        *e = in;
    }
    return TESS_OK;
}
