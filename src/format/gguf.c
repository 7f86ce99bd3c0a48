#include "format/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/gguf_priv.h"
#include "format/safetensors.h"
#include "format/text_priv.h"

enum {
    WINDOW_NBYTES = 64 << 10,
    PAIR_MAX = 65536,
    TENSOR_MAX = 1 << 20,
    STRING_MAX_NBYTES = 16 << 20,
    PAIR_LEAST_NBYTES = 13,
    TENSOR_LEAST_NBYTES = 24
};

struct tess_gguf {
    tess_io *io;
    char *path;
    int fd;
    int64_t file_nbytes;
    int64_t align_nbytes;
    tess_gguf_pair *pair; /* [pair_numel] by key */
    int64_t pair_numel;
    tess_gguf_tensor *tensor; /* [tensor_numel] by name */
    int64_t tensor_numel;
};

/* Where the header is being read. `field` says what of, for messages. */
typedef struct cursor {
    const tess_gguf *file;
    int64_t pos;
    int64_t window_pos; /* of window[0] in the file */
    int64_t window_nbytes;
    uint8_t *window; /* [WINDOW_NBYTES] */
    char field[160];
} cursor;

/* ---- kinds and types ---- */

static const struct {
    const char *name;
    size_t nbytes;
} kind_table[TESS_GGUF_KIND_NUMEL] = {
#define X(name, text, nbytes) [TESS_GGUF_##name] = {text, nbytes},
    TESS_GGUF_KIND_LIST(X)
#undef X
};

/* Tensor types by their number in files. */
static const struct {
    int number;
    tess_format format;
} type_table[] = {
    {0, TESS_FORMAT_F32},   {1, TESS_FORMAT_F16},   {2, TESS_FORMAT_Q4_0},  {3, TESS_FORMAT_Q4_1},
    {6, TESS_FORMAT_Q5_0},  {7, TESS_FORMAT_Q5_1},  {8, TESS_FORMAT_Q8_0},  {10, TESS_FORMAT_Q2_K},
    {11, TESS_FORMAT_Q3_K}, {12, TESS_FORMAT_Q4_K}, {13, TESS_FORMAT_Q5_K}, {14, TESS_FORMAT_Q6_K},
    {30, TESS_FORMAT_BF16},
};

const char *tess_gguf_kind_name(tess_gguf_kind kind)
{
    return (unsigned)kind < TESS_GGUF_KIND_NUMEL ? kind_table[kind].name : "unknown";
}

size_t tess_gguf_kind_nbytes(tess_gguf_kind kind) { return kind_table[kind].nbytes; }

int tess_gguf_type_of(tess_format format)
{
    for (int i = 0; i < TESS_NELEM(type_table); i++)
        if (type_table[i].format == format)
            return type_table[i].number;
    return -1;
}

tess_status tess_gguf_sizes(const char *where, tess_status code, tess_gguf_tensor *t)
{
    const tess_codec codec = tess_codec_of_format(t->format);
    const int64_t block_numel = tess_format_block(t->format).numel;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    bool is_whole = true;
    t->numel = 1;
    for (int i = 0; i < t->dim_numel; i++) {
        TESS_CHECK(t->dim[i] >= 1, code,
                   "%s: dimension of %" PRId64 " elements, expected 1 or more", where, t->dim[i]);
        is_whole = is_whole && !__builtin_mul_overflow(t->numel, t->dim[i], &t->numel);
    }
    /* The bytes of the widest type must fit too. */
    TESS_CHECK(is_whole && t->numel <= INT64_MAX / 8, code,
               "%s: the product of its dimensions overflows", where);
    const int64_t row_numel = t->dim[t->dim_numel - 1];
    TESS_CHECK(block_numel == 0 || row_numel % block_numel == 0, code,
               "%s: rows of %" PRId64 " elements, expected a multiple of the %s block of %" PRId64,
               where, row_numel, tess_format_name(t->format), block_numel);
    TESS_TRY(tess_codec_parts(&codec, t->numel, part, &part_numel));
    t->nbytes = (int64_t)part[0].nbytes;
    return TESS_OK;
}

/* ---- reading the header ---- */

static tess_status truncated(const cursor *c, uint64_t nbytes)
{
    return TESS_FAIL(TESS_E_FORMAT,
                     "'%s': %s at byte %" PRId64 ": needs %" PRIu64 " bytes, but only %" PRId64
                     " remain (truncated?)",
                     c->file->path, c->field, c->pos, nbytes, c->file->file_nbytes - c->pos);
}

static tess_status take(cursor *c, void *dst, size_t nbytes)
{
    const int64_t remaining = c->file->file_nbytes - c->pos;
    const tess_gguf *f = c->file;
    if (nbytes > (size_t)remaining)
        return truncated(c, nbytes);
    if (nbytes > WINDOW_NBYTES) {
        TESS_TRY(tess_io_pread(f->io, f->path, f->fd, dst, nbytes, c->pos));
    } else {
        const int64_t end = c->pos + (int64_t)nbytes;
        if (c->pos < c->window_pos || end > c->window_pos + c->window_nbytes) {
            c->window_pos = c->pos;
            c->window_nbytes = TESS_MIN(remaining, WINDOW_NBYTES);
            TESS_TRY(tess_io_pread(f->io, f->path, f->fd, c->window, (size_t)c->window_nbytes,
                                   c->window_pos));
        }
        memcpy(dst, c->window + (c->pos - c->window_pos), nbytes);
    }
    c->pos += (int64_t)nbytes;
    return TESS_OK;
}

/* Unsigned little-endian number of `nbytes` bytes. */
static tess_status take_number(cursor *c, size_t nbytes, uint64_t *out)
{
    uint8_t byte[8];
    *out = 0;
    TESS_TRY(take(c, byte, nbytes));
    for (size_t i = nbytes; i-- > 0;)
        *out = *out << 8 | byte[i];
    return TESS_OK;
}

/* Length of a string whose bytes follow. */
static tess_status take_length(cursor *c, uint64_t limit, uint64_t *nbytes)
{
    const int64_t at = c->pos;
    TESS_TRY(take_number(c, 8, nbytes));
    TESS_CHECK(*nbytes <= limit, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": string of %" PRIu64 " bytes, at most %" PRIu64
               " are accepted",
               c->file->path, c->field, at, *nbytes, limit);
    if (*nbytes > (uint64_t)(c->file->file_nbytes - c->pos))
        return truncated(c, *nbytes);
    return TESS_OK;
}

static tess_status take_string(cursor *c, uint64_t limit, char **out)
{
    uint64_t nbytes = 0;
    void *text = NULL;
    const int64_t at = c->pos;
    TESS_TRY(take_length(c, limit, &nbytes));
    TESS_TRY(tess_alloc((size_t)nbytes + 1, &text));
    *out = text;
    TESS_TRY(take(c, text, (size_t)nbytes));
    TESS_CHECK(memchr(text, 0, (size_t)nbytes) == NULL && tess_utf8_is_valid(text, (size_t)nbytes),
               TESS_E_FORMAT, "'%s': %s at byte %" PRId64 ": expected UTF-8 without NUL",
               c->file->path, c->field, at);
    return TESS_OK;
}

static tess_status take_kind(cursor *c, tess_gguf_kind *out)
{
    uint64_t number = 0;
    const int64_t at = c->pos;
    TESS_TRY(take_number(c, 4, &number));
    TESS_CHECK(number < TESS_GGUF_KIND_NUMEL, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": type %" PRIu64 ", expected 0 to %d", c->file->path,
               c->field, at, number, TESS_GGUF_KIND_NUMEL - 1);
    *out = (tess_gguf_kind)number;
    return TESS_OK;
}

static tess_status check_bools(cursor *c, uint64_t numel)
{
    for (uint64_t i = 0; i < numel; i++) {
        uint64_t byte = 0;
        TESS_TRY(take_number(c, 1, &byte));
        TESS_CHECK(byte <= 1, TESS_E_FORMAT,
                   "'%s': %s at byte %" PRId64 ": bool of %" PRIu64 ", expected 0 or 1",
                   c->file->path, c->field, c->pos - 1, byte);
    }
    return TESS_OK;
}

/* Elements of an array are checked and passed over. */
static tess_status skip_array(cursor *c, tess_gguf_value *v)
{
    uint64_t numel = 0, nbytes = 0;
    TESS_TRY(take_kind(c, &v->of));
    const int64_t at = c->pos;
    TESS_TRY(take_number(c, 8, &numel));
    TESS_CHECK(v->of != TESS_GGUF_ARRAY, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": array of arrays, expected one level", c->file->path,
               c->field, at - 4);
    const uint64_t remaining = (uint64_t)(c->file->file_nbytes - c->pos);
    const size_t least = v->of == TESS_GGUF_STRING ? 8 : kind_table[v->of].nbytes;
    TESS_CHECK(numel <= remaining / least, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": %" PRIu64 " elements of %s do not fit the %" PRIu64
               " bytes that remain",
               c->file->path, c->field, at, numel, tess_gguf_kind_name(v->of), remaining);
    v->numel = (int64_t)numel;
    if (v->of == TESS_GGUF_BOOL)
        return check_bools(c, numel);
    if (v->of != TESS_GGUF_STRING) {
        c->pos += (int64_t)(numel * least);
        return TESS_OK;
    }
    for (uint64_t i = 0; i < numel; i++) {
        TESS_TRY(take_length(c, STRING_MAX_NBYTES, &nbytes));
        c->pos += (int64_t)nbytes;
    }
    return TESS_OK;
}

static tess_status take_integer(cursor *c, tess_gguf_value *v)
{
    const size_t nbytes = kind_table[v->kind].nbytes;
    const bool is_signed = v->kind == TESS_GGUF_I8 || v->kind == TESS_GGUF_I16 ||
                           v->kind == TESS_GGUF_I32 || v->kind == TESS_GGUF_I64;
    uint64_t number = 0;
    TESS_TRY(take_number(c, nbytes, &number));
    TESS_CHECK(v->kind != TESS_GGUF_U64 || number <= INT64_MAX, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": %" PRIu64 " is above 2^63 - 1", c->file->path,
               c->field, c->pos - 8, number);
    const int shift = 64 - 8 * (int)nbytes;
    v->i64 = is_signed ? (int64_t)(number << shift) >> shift : (int64_t)number;
    return TESS_OK;
}

static tess_status take_value(cursor *c, tess_gguf_value *v)
{
    float f32 = 0.0F;
    char *text = NULL;
    tess_status st = TESS_OK;
    switch (v->kind) {
    case TESS_GGUF_F32:
        TESS_TRY(take(c, &f32, sizeof f32));
        v->f64 = (double)f32;
        return TESS_OK;
    case TESS_GGUF_F64:
        return take(c, &v->f64, sizeof v->f64);
    case TESS_GGUF_STRING:
        st = take_string(c, STRING_MAX_NBYTES, &text);
        v->text = text;
        return st;
    case TESS_GGUF_ARRAY:
        return skip_array(c, v);
    case TESS_GGUF_BOOL:
        TESS_TRY(check_bools(c, 1));
        v->i64 = c->window[c->pos - 1 - c->window_pos];
        return TESS_OK;
    case TESS_GGUF_U8:
    case TESS_GGUF_I8:
    case TESS_GGUF_U16:
    case TESS_GGUF_I16:
    case TESS_GGUF_U32:
    case TESS_GGUF_I32:
    case TESS_GGUF_U64:
    case TESS_GGUF_I64:
    case TESS_GGUF_KIND_NUMEL:
        break;
    }
    return take_integer(c, v);
}

/* ---- metadata ---- */

static int by_key(const void *a, const void *b)
{
    return strcmp(((const tess_gguf_pair *)a)->key, ((const tess_gguf_pair *)b)->key);
}

static tess_status take_pair(cursor *c, tess_gguf *f)
{
    tess_gguf_pair *p = &f->pair[f->pair_numel++];
    char *key = NULL, tame[96];
    const int64_t at = c->pos;
    snprintf(c->field, sizeof c->field, "key %" PRId64, f->pair_numel - 1);
    const tess_status st = take_string(c, TESS_GGUF_KEY_MAX_NBYTES, &key);
    p->key = key;
    TESS_TRY(st);
    TESS_CHECK(key[0] != '\0', TESS_E_FORMAT, "'%s': %s at byte %" PRId64 " is empty", f->path,
               c->field, at);
    snprintf(c->field, sizeof c->field, "value of '%s'", tess_text_tame(key, tame, sizeof tame));
    TESS_TRY(take_kind(c, &p->value.kind));
    return take_value(c, &p->value);
}

static tess_status check_align(tess_gguf *f)
{
    const tess_gguf_value *v = tess_gguf_value_of(f, "general.alignment");
    f->align_nbytes = TESS_GGUF_ALIGN_NBYTES;
    if (v == NULL)
        return TESS_OK;
    TESS_CHECK(v->kind == TESS_GGUF_U32, TESS_E_FORMAT,
               "'%s': value of 'general.alignment': expected u32, found %s", f->path,
               tess_gguf_kind_name(v->kind));
    TESS_CHECK(v->i64 >= TESS_GGUF_ALIGN_MIN && v->i64 <= TESS_GGUF_ALIGN_MAX &&
                   (v->i64 & (v->i64 - 1)) == 0,
               TESS_E_FORMAT,
               "'%s': value of 'general.alignment': expected a power of two from %d to %d, found "
               "%" PRId64,
               f->path, TESS_GGUF_ALIGN_MIN, TESS_GGUF_ALIGN_MAX, v->i64);
    f->align_nbytes = v->i64;
    return TESS_OK;
}

static tess_status read_pairs(cursor *c, tess_gguf *f, int64_t numel)
{
    void *table = NULL;
    char tame[96];
    TESS_TRY(tess_alloc_array(numel, sizeof *f->pair, &table));
    f->pair = table;
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(take_pair(c, f));
    if (numel > 1)
        qsort(f->pair, (size_t)numel, sizeof *f->pair, by_key);
    for (int64_t i = 1; i < numel; i++)
        TESS_CHECK(strcmp(f->pair[i - 1].key, f->pair[i].key) != 0, TESS_E_FORMAT,
                   "'%s': key '%s' appears twice", f->path,
                   tess_text_tame(f->pair[i].key, tame, sizeof tame));
    return check_align(f);
}

/* ---- tensors ---- */

static tess_status take_dims(cursor *c, tess_gguf_tensor *t)
{
    uint64_t dim_numel = 0, extent = 0;
    const int64_t at = c->pos;
    TESS_TRY(take_number(c, 4, &dim_numel));
    TESS_CHECK(dim_numel >= 1 && dim_numel <= TESS_GGUF_DIM_MAX, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": %" PRIu64 " dimensions, expected 1 to %d",
               c->file->path, c->field, at, dim_numel, TESS_GGUF_DIM_MAX);
    t->dim_numel = (int)dim_numel;
    for (int i = t->dim_numel - 1; i >= 0; i--) {
        TESS_TRY(take_number(c, 8, &extent));
        TESS_CHECK(extent >= 1 && extent <= INT64_MAX, TESS_E_FORMAT,
                   "'%s': %s at byte %" PRId64 ": dimension of %" PRIu64
                   " elements, expected 1 to 2^63 - 1",
                   c->file->path, c->field, c->pos - 8, extent);
        t->dim[i] = (int64_t)extent;
    }
    return TESS_OK;
}

/* Formats of GGUF files that are not read. */
static const char *other_type_name(uint64_t number)
{
    static const struct {
        uint64_t number;
        const char *name;
    } other[] = {{9, "Q8_1"},   {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
                 {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},
                 {24, "I8"},    {25, "I16"},    {26, "I32"},     {27, "I64"},    {28, "F64"},
                 {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"},  {40, "NVFP4"}};
    for (int i = 0; i < TESS_NELEM(other); i++)
        if (other[i].number == number)
            return other[i].name;
    return "unknown here";
}

static tess_status take_type(cursor *c, tess_gguf_tensor *t)
{
    uint64_t number = 0;
    const int64_t at = c->pos;
    TESS_TRY(take_number(c, 4, &number));
    for (int i = 0; i < TESS_NELEM(type_table); i++) {
        if ((uint64_t)type_table[i].number == number) {
            t->format = type_table[i].format;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "'%s': %s at byte %" PRId64 ": type %" PRIu64
                     " (%s) is not supported, expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, "
                     "Q5_1 or Q2_K to Q6_K; get the model in one of these",
                     c->file->path, c->field, at, number, other_type_name(number));
}

/* One entry; its offset is still relative to the data. */
static tess_status take_tensor(cursor *c, tess_gguf *f)
{
    tess_gguf_tensor *t = &f->tensor[f->tensor_numel++];
    char *name = NULL, tame[96], where[512];
    uint64_t offset = 0;
    const int64_t at = c->pos;
    snprintf(c->field, sizeof c->field, "name of tensor %" PRId64, f->tensor_numel - 1);
    const tess_status st = take_string(c, TESS_GGUF_NAME_NBYTES - 1, &name);
    t->name = name;
    TESS_TRY(st);
    TESS_CHECK(tess_st_name_is_valid(name), TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": illegal name (expected 1 to %d bytes, no '..', no "
               "leading '/', no backslash)",
               f->path, c->field, at, TESS_GGUF_NAME_NBYTES - 1);
    snprintf(c->field, sizeof c->field, "tensor '%s'", tess_text_tame(name, tame, sizeof tame));
    TESS_TRY(take_dims(c, t));
    TESS_TRY(take_type(c, t));
    snprintf(where, sizeof where, "'%.300s': %s at byte %" PRId64, f->path, c->field, at);
    TESS_TRY(tess_gguf_sizes(where, TESS_E_FORMAT, t));
    TESS_TRY(take_number(c, 8, &offset));
    TESS_CHECK(offset <= (uint64_t)f->file_nbytes, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": offset %" PRIu64 " is outside the file of %" PRId64
               " bytes",
               f->path, c->field, c->pos - 8, offset, f->file_nbytes);
    t->offset_nbytes = (int64_t)offset;
    return TESS_OK;
}

/* Tensors follow each other in listing order, each padded to the alignment. */
static tess_status place_tensors(tess_gguf *f, int64_t header_nbytes)
{
    int64_t data_nbytes = tess_round_up(header_nbytes, f->align_nbytes), sum = 0;
    char tame[96];
    for (int64_t i = 0; i < f->tensor_numel; i++) {
        tess_gguf_tensor *t = &f->tensor[i];
        int64_t end = 0;
        tess_text_tame(t->name, tame, sizeof tame);
        TESS_CHECK(t->offset_nbytes == sum, TESS_E_FORMAT,
                   "'%s': tensor '%s': expected offset %" PRId64
                   " (the end of those before it, aligned to %" PRId64 "), found %" PRId64,
                   f->path, tame, sum, f->align_nbytes, t->offset_nbytes);
        const bool is_whole = !__builtin_add_overflow(data_nbytes + sum, t->nbytes, &end);
        TESS_CHECK(is_whole && end <= f->file_nbytes, TESS_E_FORMAT,
                   "'%s': tensor '%s': %" PRId64 " bytes from byte %" PRId64
                   " reach past the end of the file at %" PRId64 " (truncated?)",
                   f->path, tame, t->nbytes, data_nbytes + sum, f->file_nbytes);
        t->offset_nbytes = data_nbytes + sum;
        sum = tess_round_up(end - data_nbytes, f->align_nbytes);
    }
    return TESS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tess_gguf_tensor *)a)->name, ((const tess_gguf_tensor *)b)->name);
}

static tess_status read_tensors(cursor *c, tess_gguf *f, int64_t numel)
{
    void *table = NULL;
    char tame[96];
    TESS_TRY(tess_alloc_array(numel, sizeof *f->tensor, &table));
    f->tensor = table;
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(take_tensor(c, f));
    TESS_TRY(place_tensors(f, c->pos));
    if (numel > 1)
        qsort(f->tensor, (size_t)numel, sizeof *f->tensor, by_name);
    for (int64_t i = 1; i < numel; i++)
        TESS_CHECK(strcmp(f->tensor[i - 1].name, f->tensor[i].name) != 0, TESS_E_FORMAT,
                   "'%s': tensor '%s' appears twice", f->path,
                   tess_text_tame(f->tensor[i].name, tame, sizeof tame));
    return TESS_OK;
}

/* ---- file ---- */

static tess_status take_count(cursor *c, const char *what, int64_t most, int64_t least_nbytes,
                              int64_t *out)
{
    uint64_t number = 0;
    const int64_t at = c->pos;
    snprintf(c->field, sizeof c->field, "%s", what);
    TESS_TRY(take_number(c, 8, &number));
    const int64_t fit = TESS_MIN(most, (c->file->file_nbytes - c->pos) / least_nbytes);
    TESS_CHECK(number <= (uint64_t)fit, TESS_E_FORMAT,
               "'%s': %s at byte %" PRId64 ": expected 0 to %" PRId64 " (what a file of %" PRId64
               " bytes can hold), found %" PRIu64,
               c->file->path, what, at, fit, c->file->file_nbytes, number);
    *out = (int64_t)number;
    return TESS_OK;
}

static tess_status read_header(cursor *c, tess_gguf *f)
{
    char magic[4];
    uint64_t version = 0;
    int64_t tensor_numel = 0, pair_numel = 0;
    snprintf(c->field, sizeof c->field, "magic");
    TESS_TRY(take(c, magic, sizeof magic));
    TESS_CHECK(memcmp(magic, "GGUF", 4) == 0, TESS_E_FORMAT,
               "'%s': magic at byte 0: expected 'GGUF', this is no GGUF file", f->path);
    snprintf(c->field, sizeof c->field, "version");
    TESS_TRY(take_number(c, 4, &version));
    TESS_CHECK(version == 0 || (version & 0xffff) != 0, TESS_E_UNSUPPORTED,
               "'%s': version at byte 4: 0x%08" PRIx64
               ", a big-endian file; convert it to little endian",
               f->path, version);
    TESS_CHECK(version == 2 || version == 3, TESS_E_UNSUPPORTED,
               "'%s': version at byte 4: expected 2 or 3, found %" PRIu64, f->path, version);
    TESS_TRY(take_count(c, "tensor count", TENSOR_MAX, TENSOR_LEAST_NBYTES, &tensor_numel));
    TESS_TRY(take_count(c, "key count", PAIR_MAX, PAIR_LEAST_NBYTES, &pair_numel));
    TESS_TRY(read_pairs(c, f, pair_numel));
    return read_tensors(c, f, tensor_numel);
}

static tess_status open_file(tess_io *io, const char *path, tess_gguf *f)
{
    void *window = NULL;
    TESS_TRY(tess_strdup(path, &f->path));
    TESS_TRY(tess_io_open_read(io, path, true, &f->fd, &f->file_nbytes));
    TESS_TRY(tess_alloc(WINDOW_NBYTES, &window));
    cursor c = {.file = f, .window = window};
    const tess_status st = read_header(&c, f);
    tess_free(window);
    return st;
}

tess_status tess_gguf_open(tess_io *io, const char *path, tess_gguf **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_gguf), &object));
    tess_gguf *f = object;
    f->io = io;
    f->fd = -1;
    const tess_status st = open_file(io, path, f);
    if (st != TESS_OK) {
        tess_gguf_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

void tess_gguf_close(tess_gguf **file)
{
    tess_gguf *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->io, f->path, &f->fd); /* read only: nothing can be lost */
    for (int64_t i = 0; i < f->pair_numel; i++) {
        tess_free((void *)(uintptr_t)f->pair[i].key);
        tess_free((void *)(uintptr_t)f->pair[i].value.text);
    }
    for (int64_t i = 0; i < f->tensor_numel; i++)
        tess_free((void *)(uintptr_t)f->tensor[i].name);
    tess_free(f->pair);
    tess_free(f->tensor);
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
}

/* ---- access ---- */

const char *tess_gguf_path(const tess_gguf *file) { return file->path; }

int64_t tess_gguf_file_nbytes(const tess_gguf *file) { return file->file_nbytes; }

int64_t tess_gguf_tensor_numel(const tess_gguf *file) { return file->tensor_numel; }

const tess_gguf_tensor *tess_gguf_at(const tess_gguf *file, int64_t idx)
{
    return idx >= 0 && idx < file->tensor_numel ? &file->tensor[idx] : NULL;
}

const tess_gguf_tensor *tess_gguf_find(const tess_gguf *file, const char *name)
{
    const tess_gguf_tensor key = {.name = name};
    if (file->tensor_numel == 0)
        return NULL;
    return bsearch(&key, file->tensor, (size_t)file->tensor_numel, sizeof key, by_name);
}

int64_t tess_gguf_pair_numel(const tess_gguf *file) { return file->pair_numel; }

const tess_gguf_pair *tess_gguf_pair_at(const tess_gguf *file, int64_t idx)
{
    return idx >= 0 && idx < file->pair_numel ? &file->pair[idx] : NULL;
}

const tess_gguf_value *tess_gguf_value_of(const tess_gguf *file, const char *key)
{
    const tess_gguf_pair wanted = {.key = key};
    if (file->pair_numel == 0)
        return NULL;
    const tess_gguf_pair *found =
        bsearch(&wanted, file->pair, (size_t)file->pair_numel, sizeof wanted, by_key);
    return found != NULL ? &found->value : NULL;
}

static tess_status wrong_kind(const tess_gguf *file, const char *key, const char *expected)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    return TESS_FAIL(TESS_E_FORMAT, "'%s': value of '%s': expected %s, found %s", file->path, key,
                     expected, v != NULL ? tess_gguf_kind_name(v->kind) : "no such key");
}

tess_status tess_gguf_get_i64(const tess_gguf *file, const char *key, int64_t *out)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    const bool is_other = v == NULL || v->kind == TESS_GGUF_F32 || v->kind == TESS_GGUF_F64 ||
                          v->kind == TESS_GGUF_STRING || v->kind == TESS_GGUF_ARRAY ||
                          v->kind == TESS_GGUF_BOOL;
    if (is_other)
        return wrong_kind(file, key, "an integer");
    *out = v->i64;
    return TESS_OK;
}

tess_status tess_gguf_get_f64(const tess_gguf *file, const char *key, double *out)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    if (v == NULL || (v->kind != TESS_GGUF_F32 && v->kind != TESS_GGUF_F64))
        return wrong_kind(file, key, "a number (f32 or f64)");
    TESS_CHECK(isfinite(v->f64), TESS_E_FORMAT, "'%s': value of '%s' is not finite", file->path,
               key);
    *out = v->f64;
    return TESS_OK;
}

tess_status tess_gguf_get_text(const tess_gguf *file, const char *key, const char **out)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    if (v == NULL || v->kind != TESS_GGUF_STRING)
        return wrong_kind(file, key, "a string");
    *out = v->text;
    return TESS_OK;
}

tess_status tess_gguf_get_bool(const tess_gguf *file, const char *key, bool *out)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    if (v == NULL || v->kind != TESS_GGUF_BOOL)
        return wrong_kind(file, key, "a bool");
    *out = v->i64 != 0;
    return TESS_OK;
}

tess_status tess_gguf_read(const tess_gguf *file, const tess_gguf_tensor *tensor,
                           int64_t first_nbytes, size_t nbytes, void *dst)
{
    TESS_CHECK(first_nbytes >= 0 && first_nbytes <= tensor->nbytes &&
                   nbytes <= (size_t)(tensor->nbytes - first_nbytes),
               TESS_E_RANGE, "'%s': tensor '%s': bytes %" PRId64 " + %zu of %" PRId64, file->path,
               tensor->name, first_nbytes, nbytes, tensor->nbytes);
    return tess_io_pread(file->io, file->path, file->fd, dst, nbytes,
                         tensor->offset_nbytes + first_nbytes);
}

tess_status tess_gguf_check_blocks(const tess_gguf *file, const tess_gguf_tensor *tensor,
                                   int64_t first_block, const void *blocks, size_t nbytes)
{
    /* Offsets of the fp16 constants. */
    static const int16_t scale[TESS_FORMAT_NUMEL][2] = {
        [TESS_FORMAT_Q8_0] = {0, 0},     [TESS_FORMAT_Q4_0] = {0, 0}, [TESS_FORMAT_Q4_1] = {0, 2},
        [TESS_FORMAT_Q5_0] = {0, 0},     [TESS_FORMAT_Q5_1] = {0, 2}, [TESS_FORMAT_Q2_K] = {80, 82},
        [TESS_FORMAT_Q3_K] = {108, 108}, [TESS_FORMAT_Q4_K] = {0, 2}, [TESS_FORMAT_Q5_K] = {0, 2},
        [TESS_FORMAT_Q6_K] = {208, 208},
    };
    const size_t block_nbytes = tess_format_block(tensor->format).nbytes;
    if (block_nbytes == 0)
        return TESS_OK;
    const uint8_t *block = blocks;
    for (size_t i = 0; i < nbytes / block_nbytes; i++, block += block_nbytes) {
        const bool is_finite = (block[scale[tensor->format][0] + 1] & 0x7c) != 0x7c &&
                               (block[scale[tensor->format][1] + 1] & 0x7c) != 0x7c;
        TESS_CHECK(is_finite, TESS_E_FORMAT,
                   "'%s': tensor '%s' (%s): the scale of block %" PRId64
                   " is not finite; the file is damaged, get it again",
                   file->path, tensor->name, tess_format_name(tensor->format),
                   first_block + (int64_t)i);
    }
    return TESS_OK;
}

tess_status tess_gguf_sha256(const tess_gguf *file, tess_sha256 *out)
{
    return tess_io_sha256(file->io, file->path, file->fd, file->file_nbytes, out);
}
