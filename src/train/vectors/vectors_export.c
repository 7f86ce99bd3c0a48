/* Codebooks as files of other programs. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/npy.h"
#include "format/partial_file.h"
#include "format/safetensors.h"
#include "train/vectors/kmeans_priv.h"
#include "train/vectors/vectors_code.h"
#include "train/vectors/vectors_session.h"

enum { BLOCK = TESS_KMEANS_BLOCK_NUMEL, HEAD_NBYTES = 4096, TAIL_NBYTES = 64 };

/* ---- bytes around the codes ---- */

typedef struct bytes {
    char data[HEAD_NBYTES];
    size_t nbytes;
} bytes;

static void put(bytes *b, const void *src, size_t nbytes)
{
    memcpy(b->data + b->nbytes, src, nbytes);
    b->nbytes += nbytes;
}

static void put_i32(bytes *b, int32_t x) { put(b, &x, sizeof x); }
static void put_u64(bytes *b, uint64_t x) { put(b, &x, sizeof x); }
static void put_u8(bytes *b, uint8_t x) { put(b, &x, sizeof x); }
static void put_f32(bytes *b, float x) { put(b, &x, sizeof x); }

static void npy_head(const tess_kmeans_plan *p, bytes *head)
{
    char made[TESS_NPY_MADE_NBYTES];
    const tess_kmeans_config *c = &p->config;
    tess_npy_header h = {.descr = "<f4",
                         .dim_numel = 2,
                         .dim = {c->group_numel * c->level_numel * c->code_numel, p->group_dim}};
    tess_npy_make_header(&h, made);
    put(head, made, (size_t)h.data_offset_nbytes);
}

/* Index header of faiss: dimension, no vectors, two words that are not used, trained, metric L2. */
static void faiss_index(const char kind[4], int64_t dim, bytes *head)
{
    put(head, kind, 4);
    put_i32(head, (int32_t)dim);
    put_u64(head, 0);
    put_u64(head, 1 << 20);
    put_u64(head, 1 << 20);
    put_u8(head, 1);
    put_i32(head, 1);
}

static int bits_of(int64_t code_numel)
{
    int bits = 0;
    while (INT64_C(1) << bits < code_numel)
        bits++;
    return bits;
}

/* As faiss writes an IndexResidualQuantizer (faiss/impl/index_write.cpp). With a beam of more
 * entries than there are codes faiss packs those of other vectors (ResidualQuantizer.cpp, 1.15). */
static void faiss_residual(const tess_kmeans_plan *p, bytes *head, bytes *tail)
{
    const tess_kmeans_config *c = &p->config;
    const uint64_t bits = (uint64_t)bits_of(c->code_numel), levels = (uint64_t)c->level_numel;
    faiss_index("IxRq", p->dim, head);
    put_u64(head, (uint64_t)p->dim);
    put_u64(head, levels);
    put_u64(head, levels);
    for (uint64_t l = 0; l < levels; l++)
        put_u64(head, bits);
    put_u8(head, 1);
    put_u64(head, levels * (uint64_t)c->code_numel * (uint64_t)p->dim);
    put_i32(tail, 0); /* search by decompressing */
    put_f32(tail, 0.0f);
    put_f32(tail, 0.0f);
    put_i32(tail, 0); /* how it was trained: not faiss's way */
    put_i32(tail, kmeans_entries(c, c->level_numel));
    put_u64(tail, (levels * bits + 7) / 8);
    put_u64(tail, 0);
}

/* As faiss writes an IndexPQ. */
static void faiss_product(const tess_kmeans_plan *p, bytes *head, bytes *tail)
{
    const tess_kmeans_config *c = &p->config;
    const uint64_t groups = (uint64_t)c->group_numel;
    faiss_index("IxPq", p->dim, head);
    put_u64(head, (uint64_t)p->dim);
    put_u64(head, groups);
    put_u64(head, (uint64_t)bits_of(c->code_numel));
    put_u64(head, groups * (uint64_t)c->code_numel * (uint64_t)p->group_dim);
    put_u64(tail, 0);
    put_i32(tail, 0);
    put_u8(tail, 0);
    put_i32(tail, (int32_t)groups * bits_of(c->code_numel) + 1);
}

static tess_status faiss_head(const tess_kmeans_plan *p, bytes *head, bytes *tail)
{
    const tess_kmeans_config *c = &p->config;
    TESS_CHECK(bits_of(c->code_numel) >= 1 &&
                   INT64_C(1) << bits_of(c->code_numel) == c->code_numel &&
                   bits_of(c->code_numel) <= 24,
               TESS_E_UNSUPPORTED,
               "export faiss: %" PRId64 " codes, its indices take powers of two up to 2^24; export "
               "safetensors or npy",
               c->code_numel);
    TESS_CHECK(c->group_numel == 1 || c->level_numel == 1, TESS_E_UNSUPPORTED,
               "export faiss: %d groups of %d levels, expected one group (residual quantizer) or "
               "one level (product quantizer); export safetensors or npy",
               c->group_numel, c->level_numel);
    TESS_CHECK(p->dim <= INT32_MAX, TESS_E_UNSUPPORTED, "export faiss: too many dimensions");
    if (c->group_numel > 1)
        faiss_product(p, head, tail);
    else
        faiss_residual(p, head, tail);
    return TESS_OK;
}

/* ---- the file of rank 0 ---- */

typedef struct target {
    tess_safetensors_writer *tensors; /* safetensors */
    tess_partial_file file;           /* the others: codes, then the tail */
    bytes head, tail;
} target;

static tess_status open_tensors(tess_session *s, target *t, const char *path)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    const tess_st_tensor tensor = {
        .name = "codebooks",
        .dtype = TESS_ST_F32,
        .dim_numel = 4,
        .dim = {p->config.group_numel, p->config.level_numel, p->config.code_numel, p->group_dim}};
    const tess_st_pair about[] = {
        {"format", "tessera codebooks: groups, levels, codes, dimensions"}, {"index_order", "row"}};
    return tess_safetensors_writer_create(s->ctx->io, path, &tensor, 1, about, TESS_NELEM(about),
                                          &t->tensors);
}

static tess_status open_flat(tess_session *s, target *t, tess_codebook_format format,
                             const char *path)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    const int64_t codes = (int64_t)p->config.group_numel * p->config.level_numel *
                          p->config.code_numel * p->group_dim * (int64_t)sizeof(float);
    if (format == TESS_CODEBOOK_NPY)
        npy_head(p, &t->head);
    else
        TESS_TRY(faiss_head(p, &t->head, &t->tail));
    TESS_TRY(tess_partial_file_init(&t->file, s->ctx->io, path, 2));
    t->file.range[0] = (tess_partial_range){
        .name = "codes", .offset_nbytes = (int64_t)t->head.nbytes, .nbytes = codes};
    t->file.range[1] = (tess_partial_range){.name = "tail",
                                            .offset_nbytes = (int64_t)t->head.nbytes + codes,
                                            .nbytes = (int64_t)t->tail.nbytes};
    return tess_partial_file_start(&t->file, t->head.data, t->head.nbytes,
                                   (int64_t)(t->head.nbytes + t->tail.nbytes) + codes);
}

static tess_status append(target *t, const void *src, size_t nbytes)
{
    return t->tensors != NULL ? tess_safetensors_writer_append(t->tensors, 0, src, nbytes)
                              : tess_partial_file_append(&t->file, 0, src, nbytes);
}

static tess_status finish(target *t)
{
    if (t->tensors != NULL)
        return tess_safetensors_writer_finish(t->tensors);
    if (t->tail.nbytes > 0)
        TESS_TRY(tess_partial_file_append(&t->file, 1, t->tail.data, t->tail.nbytes));
    return tess_partial_file_finish(&t->file);
}

/* ---- codes of all ranks ---- */

static tess_status collect(tess_session *s, target *t, float *row, int book_idx)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    const bool is_root = tess_comm_rank(s->world) == 0;
    for (int64_t k = 0; k < p->config.code_numel; k += BLOCK) {
        const int64_t numel = TESS_MIN(p->config.code_numel - k, (int64_t)BLOCK);
        tess_status st = TESS_OK;
        TESS_TRY(session_section(s, tess_kmeans_collect(s->vectors->job, book_idx, k, numel, row)));
        if (is_root)
            st = append(t, row, (size_t)(numel * p->group_dim) * sizeof *row);
        TESS_TRY(session_agree(s, st));
    }
    return TESS_OK;
}

static tess_status collect_all(tess_session *s, target *t)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    void *row = NULL;
    tess_status st = session_agree(s, tess_alloc_array(BLOCK * p->group_dim, sizeof(float), &row));
    for (int b = 0; st == TESS_OK && b < p->book.shape.book_numel; b++)
        st = collect(s, t, row, b);
    tess_free(row);
    return st;
}

tess_status tess_session_export_codebooks(tess_session *s, tess_codebook_format format,
                                          const char *path)
{
    target t = {.file.fd = -1};
    tess_status st = TESS_OK;
    const bool is_root = tess_comm_rank(s->world) == 0;
    TESS_CHECK(
        s->vectors != NULL, TESS_E_CONFIG,
        "export: the checkpoint is of a run with a model (%s), not with model.family kmeans; "
        "leave out --format",
        s->d.family_name);
    if (is_root)
        st = format == TESS_CODEBOOK_SAFETENSORS ? open_tensors(s, &t, path)
                                                 : open_flat(s, &t, format, path);
    st = session_agree(s, st);
    if (st == TESS_OK)
        st = collect_all(s, &t);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? finish(&t) : TESS_OK);
    tess_safetensors_writer_destroy(&t.tensors);
    tess_partial_file_fini(&t.file);
    return st;
}
