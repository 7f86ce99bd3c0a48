#include "format/npy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/text_priv.h"

enum { MAGIC_NBYTES = 6, PREFIX_1_NBYTES = 10, PREFIX_2_NBYTES = 12, ALIGN_NBYTES = 64 };

static const char magic[MAGIC_NBYTES + 1] = "\x93NUMPY";

/* The dictionary while it is read; at end `at` points to the closing NUL. */
typedef struct npy_text {
    const char *path;
    const char *at;
} npy_text;

static tess_status refuse(const npy_text *t, const char *expected)
{
    char part[24], tame[24];
    snprintf(part, sizeof part, "%.20s", t->at);
    return TESS_FAIL(TESS_E_FORMAT,
                     "'%s': npy header: expected %s, found '%s'; save it again with "
                     "numpy.save",
                     t->path, expected, tess_text_tame(part, tame, sizeof tame));
}

static void skip_space(npy_text *t) { t->at += strspn(t->at, " \t\r\n"); }

/* Whether `text` comes next, which is then passed. */
static bool take(npy_text *t, const char *text)
{
    skip_space(t);
    const size_t nbytes = strlen(text);
    if (strncmp(t->at, text, nbytes) != 0)
        return false;
    t->at += nbytes;
    return true;
}

/* A string in either kind of quotes; descriptions and keys have no escapes. */
static tess_status read_string(npy_text *t, const char *expected, char out[TESS_NPY_DESCR_NBYTES])
{
    skip_space(t);
    const char quote = *t->at;
    if (quote != '\'' && quote != '"')
        return refuse(t, expected);
    const char *end = strchr(t->at + 1, quote);
    if (end == NULL || end - t->at - 1 >= TESS_NPY_DESCR_NBYTES)
        return refuse(t, expected);
    snprintf(out, TESS_NPY_DESCR_NBYTES, "%.*s", (int)(end - t->at - 1), t->at + 1);
    t->at = end + 1;
    return TESS_OK;
}

static tess_status read_extent(npy_text *t, int64_t *out)
{
    int64_t value = 0;
    skip_space(t);
    if (*t->at < '0' || *t->at > '9')
        return refuse(t, "an extent of the shape");
    for (; *t->at >= '0' && *t->at <= '9'; t->at++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, *t->at - '0', &value))
            return refuse(t, "an extent below 2^63");
    *out = value;
    return TESS_OK;
}

static tess_status read_shape(npy_text *t, tess_npy_header *h)
{
    if (!take(t, "("))
        return refuse(t, "the shape as a tuple");
    h->dim_numel = 0;
    while (!take(t, ")")) {
        TESS_CHECK(h->dim_numel < TESS_NPY_DIM_MAX, TESS_E_UNSUPPORTED,
                   "'%s': npy array of more than %d dimensions", t->path, TESS_NPY_DIM_MAX);
        TESS_TRY(read_extent(t, &h->dim[h->dim_numel++]));
        skip_space(t);
        if (!take(t, ",") && *t->at != ')')
            return refuse(t, "',' or ')' in the shape");
    }
    return TESS_OK;
}

static tess_status read_order(npy_text *t)
{
    TESS_CHECK(!take(t, "True"), TESS_E_UNSUPPORTED,
               "'%s': npy array in Fortran order, expected C order; save "
               "numpy.ascontiguousarray(x)",
               t->path);
    return take(t, "False") ? TESS_OK : refuse(t, "True or False for fortran_order");
}

static tess_status read_descr(npy_text *t, tess_npy_header *h)
{
    skip_space(t);
    TESS_CHECK(*t->at != '[', TESS_E_UNSUPPORTED,
               "'%s': npy array of records, expected numbers; save one field", t->path);
    return read_string(t, "the type as a string", h->descr);
}

static tess_status read_dictionary(npy_text *t, tess_npy_header *h)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    unsigned seen = 0;
    if (!take(t, "{"))
        return refuse(t, "'{'");
    while (!take(t, "}")) {
        char key[TESS_NPY_DESCR_NBYTES];
        int i = 0;
        TESS_TRY(read_string(t, "a key", key));
        while (i < TESS_NELEM(keys) && strcmp(keys[i], key) != 0)
            i++;
        if (i == TESS_NELEM(keys) || (seen >> i & 1U) != 0 || !take(t, ":"))
            return refuse(t, "each of descr, fortran_order and shape once, and ':'");
        seen |= 1U << i;
        TESS_TRY(i == 0 ? read_descr(t, h) : i == 1 ? read_order(t) : read_shape(t, h));
        skip_space(t);
        if (!take(t, ",") && *t->at != '}')
            return refuse(t, "',' or '}'");
    }
    skip_space(t);
    if (seen != 7U || *t->at != '\0')
        return refuse(t, "descr, fortran_order and shape, and nothing behind them");
    return TESS_OK;
}

/* What the first bytes say: where the dictionary begins and how long it is. */
static tess_status check_prefix(const char *path, const uint8_t prefix[PREFIX_2_NBYTES],
                                int64_t file_nbytes, int64_t *start, int64_t *nbytes)
{
    TESS_CHECK(memcmp(prefix, magic, MAGIC_NBYTES) == 0, TESS_E_FORMAT,
               "'%s': no npy file: it does not start with \\x93NUMPY", path);
    TESS_CHECK(prefix[6] >= 1 && prefix[6] <= 3 && prefix[7] == 0, TESS_E_UNSUPPORTED,
               "'%s': npy version %d.%d, expected 1.0, 2.0 or 3.0", path, prefix[6], prefix[7]);
    *nbytes = prefix[8] | prefix[9] << 8;
    *start = PREFIX_1_NBYTES;
    if (prefix[6] > 1) {
        *nbytes |= (int64_t)prefix[10] << 16 | (int64_t)prefix[11] << 24;
        *start = PREFIX_2_NBYTES;
    }
    TESS_CHECK(*start + *nbytes <= TESS_NPY_HEADER_MAX_NBYTES && *start + *nbytes <= file_nbytes,
               TESS_E_FORMAT,
               "'%s': npy header of %" PRId64 " bytes in a file of %" PRId64
               ", at most %d are read; copy the file again",
               path, *nbytes, file_nbytes, TESS_NPY_HEADER_MAX_NBYTES);
    return TESS_OK;
}

static tess_status check_size(const char *path, int64_t nbytes)
{
    TESS_CHECK(nbytes >= PREFIX_2_NBYTES, TESS_E_FORMAT,
               "'%s': %" PRId64 " bytes are no npy file; copy it again", path, nbytes);
    return TESS_OK;
}

/* `text` ends in a NUL of ours. */
static tess_status take_text(const char *path, const char *text, size_t nbytes, tess_npy_header *h)
{
    TESS_CHECK(memchr(text, '\0', nbytes) == NULL, TESS_E_FORMAT,
               "'%s': npy header holds a zero byte", path);
    return read_dictionary(&(npy_text){path, text}, h);
}

tess_status tess_npy_read_header_in(tess_io *io, const char *path, int fd, int64_t file_nbytes,
                                    char *room, tess_npy_header *out)
{
    uint8_t prefix[PREFIX_2_NBYTES] = {0};
    tess_npy_header h = {.dim_numel = 0};
    int64_t start = 0, nbytes = 0;
    TESS_TRY(check_size(path, file_nbytes));
    TESS_TRY(tess_io_pread(io, path, fd, prefix, sizeof prefix, 0));
    TESS_TRY(check_prefix(path, prefix, file_nbytes, &start, &nbytes));
    h.data_offset_nbytes = start + nbytes;
    TESS_TRY(tess_io_pread(io, path, fd, room, (size_t)nbytes, start));
    room[nbytes] = '\0';
    TESS_TRY(take_text(path, room, (size_t)nbytes, &h));
    *out = h;
    return TESS_OK;
}

tess_status tess_npy_read_header(tess_io *io, const char *path, int fd, int64_t file_nbytes,
                                 tess_npy_header *out)
{
    void *room = NULL;
    TESS_TRY(tess_alloc(TESS_NPY_HEADER_MAX_NBYTES, &room));
    const tess_status st = tess_npy_read_header_in(io, path, fd, file_nbytes, room, out);
    tess_free(room);
    return st;
}

tess_status tess_npy_parse_header(const char *path, const void *bytes, size_t nbytes,
                                  tess_npy_header *out)
{
    tess_npy_header h = {.dim_numel = 0};
    int64_t start = 0, text_nbytes = 0;
    char *text = NULL;
    TESS_TRY(check_size(path, (int64_t)nbytes));
    TESS_TRY(check_prefix(path, bytes, (int64_t)nbytes, &start, &text_nbytes));
    h.data_offset_nbytes = start + text_nbytes;
    TESS_TRY(tess_strndup((const char *)bytes + start, (size_t)text_nbytes, &text));
    const tess_status st = take_text(path, text, strlen(text), &h);
    const bool is_whole = strlen(text) == (size_t)text_nbytes;
    tess_free(text);
    TESS_TRY(st);
    TESS_CHECK(is_whole, TESS_E_FORMAT, "'%s': npy header holds a zero byte", path);
    *out = h;
    return TESS_OK;
}

void tess_npy_make_header(tess_npy_header *h, char bytes[TESS_NPY_MADE_NBYTES])
{
    char shape[TESS_NPY_DIM_MAX * 24] = "";
    for (int i = 0, at = 0; i < h->dim_numel; i++)
        at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%" PRId64, i > 0 ? ", " : "",
                       h->dim[i]);
    char *text = bytes + PREFIX_1_NBYTES;
    const int used = snprintf(text, TESS_NPY_MADE_NBYTES - PREFIX_1_NBYTES,
                              "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                              h->descr, shape, h->dim_numel == 1 ? "," : "");
    const int total = (PREFIX_1_NBYTES + used + 1 + ALIGN_NBYTES - 1) / ALIGN_NBYTES * ALIGN_NBYTES;
    const int header = total - PREFIX_1_NBYTES;
    memset(text + used, ' ', (size_t)(header - used));
    text[header - 1] = '\n';
    memcpy(bytes, magic, MAGIC_NBYTES);
    bytes[6] = 1;
    bytes[7] = 0;
    bytes[8] = (char)(header & 0xff);
    bytes[9] = (char)(header >> 8);
    h->data_offset_nbytes = total;
}
