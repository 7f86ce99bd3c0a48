/* Pure arithmetic on slabs, and the checks and look-up tables of a set. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/ckpt_priv.h"

static int64_t cut_numel(const tess_ckpt_record *record, int world)
{
    const int64_t block_numel = tess_ceil_div(record->total_numel, record->align_numel);
    return record->align_numel * tess_ceil_div(block_numel, world);
}

void tess_ckpt_range(const tess_ckpt_record *record, int world, int rank, int64_t *lo_idx,
                     int64_t *hi_idx)
{
    const int64_t cut = cut_numel(record, world);
    *lo_idx = TESS_MIN(rank * cut, record->total_numel);
    *hi_idx = TESS_MIN((rank + 1) * cut, record->total_numel);
}

void tess_ckpt_sources(const tess_ckpt_record *record, int stored_world, int64_t lo_idx,
                       int64_t hi_idx, int *first_rank, int *end_rank)
{
    const int64_t cut = cut_numel(record, stored_world);
    *first_rank = 0;
    *end_rank = 0;
    if (lo_idx >= hi_idx || cut == 0)
        return;
    *first_rank = (int)(lo_idx / cut);
    *end_rank = (int)((hi_idx - 1) / cut) + 1;
}

size_t ckpt_record_nbytes(const tess_ckpt_record *record, int world, int rank)
{
    int64_t lo_idx = 0, hi_idx = 0;
    tess_ckpt_range(record, world, rank, &lo_idx, &hi_idx);
    return (size_t)(hi_idx - lo_idx) * tess_dtype_block_nbytes(record->dt);
}

/* Upper bound of HDF5's bytes for one dataset: object header with its attributes, link, alignment
 * gap; 505 bytes were measured with short texts. */
static size_t dataset_overhead_nbytes(const tess_ckpt_record *r)
{
    return 4096 + 2048 + 2 * (strlen(r->unit) + strlen(r->role)) + strlen(r->contract) +
           strlen(r->quant);
}

static size_t file_nbytes_max(const tess_ckpt_set *set, int rank, size_t *payload_nbytes)
{
    enum { FIXED_NBYTES = 64 << 10 };
    size_t nbytes = FIXED_NBYTES;
    *payload_nbytes = 0;
    for (int64_t i = 0; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[i];
        const size_t part = ckpt_record_nbytes(r, set->shard_world, rank);
        *payload_nbytes += part;
        nbytes += part + dataset_overhead_nbytes(r) +
                  (part / TESS_CKPT_CHUNK_NBYTES + 1) * CKPT_CHUNK_ENTRY_NBYTES;
    }
    return nbytes;
}

size_t ckpt_metadata_nbytes_max(const tess_ckpt_set *set, int rank)
{
    size_t payload_nbytes = 0;
    const size_t nbytes = file_nbytes_max(set, rank, &payload_nbytes);
    return nbytes - payload_nbytes;
}

tess_status tess_ckpt_plan(const tess_ckpt_set *set, int rank, tess_ckpt_sizes *out)
{
    TESS_CHECK(set->shard_world >= 1 && set->shard_world <= CKPT_WORLD_MAX && rank >= 0, TESS_E_ARG,
               "checkpoint plan: %d writing ranks, expected 1 to %d", set->shard_world,
               CKPT_WORLD_MAX);
    tess_ckpt_sizes sizes = {0};
    for (int i = 0; i < set->shard_world; i++) {
        size_t payload_nbytes = 0;
        sizes.disk_nbytes_max += file_nbytes_max(set, i, &payload_nbytes);
    }
    if (rank < set->shard_world)
        sizes.file_nbytes_max = file_nbytes_max(set, rank, &sizes.payload_nbytes);
    for (int64_t i = 0; rank < set->shard_world && i < set->record_numel; i++)
        sizes.staging_nbytes += (size_t)tess_round_up(
            (int64_t)ckpt_record_nbytes(&set->records[i], set->shard_world, rank),
            TESS_ARENA_ALIGN_NBYTES);
    *out = sizes;
    return TESS_OK;
}

/* Length of a well-formed UTF-8 sequence at `s`, 0 when it is none. */
static int utf8_step(const unsigned char *s)
{
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    const int n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n <= 1)
        return n;
    unsigned code = s[0] & (0xffu >> (n + 1));
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3f);
    }
    const bool is_surrogate = code >= 0xd800 && code <= 0xdfff;
    return s[0] > 0xf4 || code < least[n] || code > 0x10ffff || is_surrogate ? 0 : n;
}

bool ckpt_is_text(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s != 0) {
        const int n = utf8_step(s);
        if (n == 0)
            return false;
        s += n;
    }
    return true;
}

bool ckpt_is_tensor_name(const char *name)
{
    const size_t nbytes = name != NULL ? strnlen(name, TESS_CKPT_NAME_NBYTES_MAX + 1) : 0;
    if (nbytes == 0 || nbytes > TESS_CKPT_NAME_NBYTES_MAX || name[0] == '/')
        return false;
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\\')
            return false;
    return strstr(name, "..") == NULL && ckpt_is_text(name);
}

bool ckpt_is_component(const char *name)
{
    return ckpt_is_tensor_name(name) && strchr(name, '/') == NULL && strcmp(name, ".") != 0;
}

bool ckpt_is_hex(const char *text, size_t nbytes)
{
    return strlen(text) == 2 * nbytes && strspn(text, "0123456789abcdef") == 2 * nbytes;
}

void ckpt_shard_name(int rank, int world, char name[CKPT_SHARD_NAME_NBYTES])
{
    snprintf(name, CKPT_SHARD_NAME_NBYTES, "shard-%05u-of-%05u.h5", (unsigned)rank % 100000u,
             (unsigned)world % 100000u);
}

void ckpt_step_name(int64_t step, const char *attempt, char name[CKPT_DIR_NAME_NBYTES])
{
    snprintf(name, CKPT_DIR_NAME_NBYTES, "step-%010" PRId64 ".%.8s", step, attempt);
}

bool ckpt_parse_step_name(const char *name, int64_t *step)
{
    if (strlen(name) != 24 || strncmp(name, "step-", 5) != 0 || name[15] != '.' ||
        strspn(name + 5, "0123456789") != 10 || strspn(name + 16, "0123456789abcdef") != 8)
        return false;
    *step = strtoll(name + 5, NULL, 10);
    return true;
}

tess_status ckpt_join(char *out, const char *dir, const char *name)
{
    const size_t dir_nbytes = strlen(dir), name_nbytes = strlen(name);
    TESS_CHECK(dir_nbytes + name_nbytes + 2 <= PATH_MAX, TESS_E_ARG,
               "path of %zu bytes is too long, at most %d", dir_nbytes + name_nbytes + 1,
               PATH_MAX - 1);
    memcpy(out, dir, dir_nbytes);
    out[dir_nbytes] = '/';
    memcpy(out + dir_nbytes + 1, name, name_nbytes + 1);
    return TESS_OK;
}

/* ---- checks ---- */

static tess_status check_record(const char *where, const tess_ckpt_record *r)
{
    TESS_CHECK(ckpt_is_component(r->unit) && ckpt_is_component(r->role), TESS_E_FORMAT,
               "%s: record '%.80s' role '%.80s': names must be 1-512 bytes of UTF-8 without '/'",
               where, r->unit != NULL ? r->unit : "", r->role != NULL ? r->role : "");
    TESS_CHECK(r->total_numel >= 0 && r->total_numel <= INT64_MAX / 64, TESS_E_FORMAT,
               "%s: '%s/%s': %" PRId64 " elements", where, r->unit, r->role, r->total_numel);
    TESS_CHECK(r->align_numel >= 1 && r->align_numel <= 1 << 20, TESS_E_FORMAT,
               "%s: '%s/%s': alignment %" PRId64 ", expected 1 to 2^20", where, r->unit, r->role,
               r->align_numel);
    TESS_CHECK(tess_dtype_block_nbytes(r->dt) > 1 || r->align_numel % 8 == 0, TESS_E_FORMAT,
               "%s: '%s/%s': byte slabs are cut at multiples of 8, found %" PRId64, where, r->unit,
               r->role, r->align_numel);
    TESS_CHECK(r->contract != NULL && r->quant != NULL && strlen(r->contract) < 4096 &&
                   strlen(r->quant) < 4096 && ckpt_is_text(r->contract) && ckpt_is_text(r->quant),
               TESS_E_FORMAT, "%s: '%s/%s': contract and quant must be UTF-8 below 4096 bytes",
               where, r->unit, r->role);
    return TESS_OK;
}

static tess_status check_tensor(const char *where, const tess_ckpt_tensor *t)
{
    TESS_CHECK(ckpt_is_tensor_name(t->name) && ckpt_is_component(t->unit) &&
                   (t->role == NULL || ckpt_is_component(t->role)),
               TESS_E_FORMAT, "%s: tensor '%.80s': bad name, unit or role", where,
               t->name != NULL ? t->name : "");
    TESS_CHECK(t->dtype != NULL && t->quant != NULL && strlen(t->dtype) < 64 &&
                   strlen(t->quant) < 512 && ckpt_is_text(t->dtype) && ckpt_is_text(t->quant),
               TESS_E_FORMAT, "%s: tensor '%s': bad dtype or quant text", where, t->name);
    TESS_CHECK(t->dim_numel >= 0 && t->dim_numel <= TESS_CKPT_DIM_MAX, TESS_E_FORMAT,
               "%s: tensor '%s': %d dimensions, at most %d", where, t->name, t->dim_numel,
               TESS_CKPT_DIM_MAX);
    int64_t product = 1;
    for (int i = 0; i < t->dim_numel; i++)
        TESS_CHECK(t->shape[i] >= 0 && !__builtin_mul_overflow(product, t->shape[i], &product),
                   TESS_E_FORMAT, "%s: tensor '%s': shape overflows at dimension %d", where,
                   t->name, i);
    TESS_CHECK(t->offset_numel >= 0 && t->extent_numel >= 0, TESS_E_FORMAT,
               "%s: tensor '%s': negative offset or extent", where, t->name);
    return TESS_OK;
}

static tess_status check_pair(const char *where, const tess_ckpt_tensor *t,
                              const tess_ckpt_record *r)
{
    TESS_CHECK(t->offset_numel <= r->total_numel &&
                   t->extent_numel <= r->total_numel - t->offset_numel,
               TESS_E_FORMAT,
               "%s: tensor '%s' covers [%" PRId64 ", +%" PRId64 ") of '%s/%s', which has %" PRId64
               " elements",
               where, t->name, t->offset_numel, t->extent_numel, r->unit, r->role, r->total_numel);
    TESS_CHECK(tess_dtype_block_nbytes(r->dt) > 1 || t->offset_numel % 8 == 0, TESS_E_FORMAT,
               "%s: tensor '%s' starts at byte %" PRId64
               " of a byte slab, expected a multiple of 8",
               where, t->name, t->offset_numel);
    return TESS_OK;
}

/* ---- index ---- */

static int compare_records(const void *a, const void *b, void *arg)
{
    const ckpt_index *index = arg;
    const tess_ckpt_record *x = &index->set->records[*(const int64_t *)a];
    const tess_ckpt_record *y = &index->set->records[*(const int64_t *)b];
    const int by_unit = strcmp(x->unit, y->unit);
    return by_unit != 0 ? by_unit : strcmp(x->role, y->role);
}

static int compare_tensors(const void *a, const void *b, void *arg)
{
    const ckpt_index *index = arg;
    const tess_ckpt_tensor *tensors = index->set->tensors;
    return strcmp(tensors[*(const int64_t *)a].name, tensors[*(const int64_t *)b].name);
}

/* First place in record_order whose unit is not below `unit`. */
static int64_t lower_unit(const ckpt_index *index, const char *unit)
{
    int64_t lo = 0, hi = index->set->record_numel;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (strcmp(index->set->records[index->record_order[mid]].unit, unit) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int64_t ckpt_index_record(const ckpt_index *index, const char *unit, const char *role)
{
    for (int64_t i = lower_unit(index, unit); i < index->set->record_numel; i++) {
        const tess_ckpt_record *r = &index->set->records[index->record_order[i]];
        if (strcmp(r->unit, unit) != 0)
            break;
        if (strcmp(r->role, role) == 0)
            return index->record_order[i];
    }
    return -1;
}

int64_t ckpt_index_tensor(const ckpt_index *index, const char *name)
{
    int64_t lo = 0, hi = index->set->tensor_numel;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        const int order = strcmp(index->set->tensors[index->tensor_order[mid]].name, name);
        if (order == 0)
            return index->tensor_order[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

static tess_status sort_names(const char *where, ckpt_index *x)
{
    const tess_ckpt_set *set = x->set;
    for (int64_t i = 0; i < set->record_numel; i++)
        x->record_order[i] = i;
    for (int64_t i = 0; i < set->tensor_numel; i++)
        x->tensor_order[i] = i;
    if (set->record_numel > 1)
        qsort_r(x->record_order, (size_t)set->record_numel, sizeof(int64_t), compare_records, x);
    if (set->tensor_numel > 1)
        qsort_r(x->tensor_order, (size_t)set->tensor_numel, sizeof(int64_t), compare_tensors, x);
    for (int64_t i = 1; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[x->record_order[i]];
        TESS_CHECK(compare_records(&x->record_order[i - 1], &x->record_order[i], x) != 0,
                   TESS_E_FORMAT, "%s: record '%s/%s' is there twice", where, r->unit, r->role);
    }
    for (int64_t i = 1; i < set->tensor_numel; i++) {
        const tess_ckpt_tensor *t = &set->tensors[x->tensor_order[i]];
        TESS_CHECK(strcmp(set->tensors[x->tensor_order[i - 1]].name, t->name) != 0, TESS_E_FORMAT,
                   "%s: tensor '%s' is there twice", where, t->name);
    }
    return TESS_OK;
}

/* Pairs of every tensor; with `pairs` NULL they are only counted. */
static tess_status make_pairs(const char *where, ckpt_index *x)
{
    const tess_ckpt_set *set = x->set;
    int64_t numel = 0;
    for (int64_t t = 0; t < set->tensor_numel; t++) {
        const tess_ckpt_tensor *tensor = &set->tensors[t];
        const int64_t first = numel;
        x->first_pair[t] = first;
        for (int64_t i = lower_unit(x, tensor->unit); i < set->record_numel; i++) {
            const tess_ckpt_record *r = &set->records[x->record_order[i]];
            if (strcmp(r->unit, tensor->unit) != 0)
                break;
            if (tensor->role != NULL && strcmp(tensor->role, r->role) != 0)
                continue;
            TESS_TRY(check_pair(where, tensor, r));
            if (x->pairs != NULL)
                x->pairs[numel] = (ckpt_pair){t, x->record_order[i]};
            numel++;
        }
        TESS_CHECK(numel > first, TESS_E_FORMAT, "%s: tensor '%s': no record of unit '%s'%s%s",
                   where, tensor->name, tensor->unit, tensor->role != NULL ? " role " : "",
                   tensor->role != NULL ? tensor->role : "");
    }
    x->first_pair[set->tensor_numel] = numel;
    x->pair_numel = numel;
    return TESS_OK;
}

static tess_status fill_index(const char *where, ckpt_index *x)
{
    const tess_ckpt_set *set = x->set;
    void *memory = NULL;
    for (int64_t i = 0; i < set->record_numel; i++)
        TESS_TRY(check_record(where, &set->records[i]));
    for (int64_t i = 0; i < set->tensor_numel; i++)
        TESS_TRY(check_tensor(where, &set->tensors[i]));
    TESS_TRY(tess_alloc_array(set->record_numel, sizeof(int64_t), &memory));
    x->record_order = memory;
    TESS_TRY(tess_alloc_array(set->tensor_numel, sizeof(int64_t), &memory));
    x->tensor_order = memory;
    TESS_TRY(tess_alloc_array(set->tensor_numel + 1, sizeof(int64_t), &memory));
    x->first_pair = memory;
    TESS_TRY(sort_names(where, x));
    TESS_TRY(make_pairs(where, x));
    TESS_TRY(tess_alloc_array(x->pair_numel, sizeof(ckpt_pair), &memory));
    x->pairs = memory;
    return make_pairs(where, x);
}

tess_status ckpt_index_create(const char *where, const tess_ckpt_set *set, ckpt_index *out)
{
    TESS_CHECK(set->shard_world >= 1 && set->shard_world <= CKPT_WORLD_MAX, TESS_E_FORMAT,
               "%s: %d writing ranks, expected 1 to %d", where, set->shard_world, CKPT_WORLD_MAX);
    ckpt_index x = {.set = set};
    const tess_status st = fill_index(where, &x);
    if (st != TESS_OK) {
        ckpt_index_destroy(&x);
        return st;
    }
    *out = x;
    return TESS_OK;
}

void ckpt_index_destroy(ckpt_index *index)
{
    tess_free(index->record_order);
    tess_free(index->tensor_order);
    tess_free(index->pairs);
    tess_free(index->first_pair);
    *index = (ckpt_index){0};
}

/* Byte slabs are hashed as 8-byte words; the last word of a tensor is filled with zeros. */
static void hash_bytes(const uint8_t *data, int64_t nbytes, int64_t first_byte_idx,
                       tess_logical_hash *hash)
{
    const int64_t word_numel = nbytes / 8, tail_nbytes = nbytes % 8;
    tess_logical_hash_add(hash, data, word_numel, 8, first_byte_idx / 8);
    uint64_t tail = 0;
    memcpy(&tail, data + 8 * word_numel, (size_t)tail_nbytes);
    if (tail_nbytes > 0)
        tess_logical_hash_add(hash, &tail, 1, 8, first_byte_idx / 8 + word_numel);
}

void ckpt_hash_pair(const tess_ckpt_set *set, ckpt_pair pair, const void *data, int64_t lo_idx,
                    int64_t hi_idx, tess_logical_hash *hash)
{
    const tess_ckpt_tensor *t = &set->tensors[pair.tensor_idx];
    const tess_ckpt_record *r = &set->records[pair.record_idx];
    const size_t elem_nbytes = tess_dtype_block_nbytes(r->dt);
    const int64_t lo = TESS_MAX(lo_idx, t->offset_numel);
    const int64_t hi = TESS_MIN(hi_idx, t->offset_numel + t->extent_numel);
    if (lo >= hi)
        return;
    const uint8_t *first = (const uint8_t *)data + (size_t)(lo - lo_idx) * elem_nbytes;
    if (elem_nbytes == 1)
        hash_bytes(first, hi - lo, lo - t->offset_numel, hash);
    else
        tess_logical_hash_add(hash, first, hi - lo, elem_nbytes, lo - t->offset_numel);
}
