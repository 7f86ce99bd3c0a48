/* GGUF files: the reader on the smallest file and on every damage of it, values of all kinds, the
 * writer, and the models of tests/golden/gguf in Hugging Face names and row order. */
#include "format_test.h"

#include "format/gguf_llm.h"
#include "format/model_dir.h"
#include "kernels/kernels.h"
#include "support/crc32.h"

/* One key general.alignment = 32 and one F32 tensor `w` of {1, -2}: the example of the format. */
static const char minimal_hex[] =
    "47475546030000000100000000000000"
    "010000000000000011000000000000006"
    "7656e6572616c2e616c69676e6d656e74040000002000000001000000000000007701000000020000000000000000"
    "0000000000000000000000000000000000"
    "0000803f000000c0000000000000000000000000000000000000000000000000";

enum { MINIMAL_NBYTES = 128, HEADER_NBYTES = 90 };

static void minimal_file(uint8_t bytes[MINIMAL_NBYTES])
{
    assert_int_equal(strlen(minimal_hex), 2 * MINIMAL_NBYTES);
    for (int i = 0; i < MINIMAL_NBYTES; i++) {
        unsigned byte = 0;
        assert_int_equal(sscanf(minimal_hex + 2 * i, "%2x", &byte), 1);
        bytes[i] = (uint8_t)byte;
    }
}

static tess_status try_open(const fixture *f, const char *path)
{
    tess_gguf *file = NULL;
    const tess_status st = tess_gguf_open(f->io, path, &file);
    if (st == TESS_OK)
        tess_gguf_close(&file);
    else
        assert_null(file);
    return st;
}

static void test_minimal(void **state)
{
    const fixture *f = *state;
    uint8_t bytes[MINIMAL_NBYTES];
    float data[2] = {0};
    int64_t align = 0;
    tess_gguf *file = NULL;
    tess_sha256 sha, expected;
    minimal_file(bytes);
    for (uint8_t version = 2; version <= 3; version++) {
        bytes[4] = version;
        assert_ok(tess_gguf_open(f->io, put_file(f, "m.gguf", bytes, sizeof bytes), &file));
        assert_int_equal(tess_gguf_tensor_numel(file), 1);
        assert_int_equal(tess_gguf_pair_numel(file), 1);
        assert_int_equal(tess_gguf_file_nbytes(file), MINIMAL_NBYTES);
        const tess_gguf_tensor *t = tess_gguf_find(file, "w");
        assert_ptr_equal(t, tess_gguf_at(file, 0));
        assert_null(tess_gguf_at(file, 1));
        assert_null(tess_gguf_find(file, "v"));
        assert_int_equal(t->format, TESS_FORMAT_F32);
        assert_int_equal(t->dim_numel, 1);
        assert_int_equal(t->dim[0], 2);
        assert_int_equal(t->offset_nbytes, 96);
        assert_int_equal(t->nbytes, 8);
        assert_ok(tess_gguf_read(file, t, 0, 8, data));
        assert_true(data[0] == 1.0F && data[1] == -2.0F);
        assert_refused(tess_gguf_read(file, t, 4, 5, data), TESS_E_RANGE, "'w'", "4 + 5 of 8");
        assert_ok(tess_gguf_get_i64(file, "general.alignment", &align));
        assert_int_equal(align, 32);
        assert_refused(tess_gguf_get_i64(file, "x", &align), TESS_E_FORMAT, "'x'", "no such key");
        assert_ok(tess_gguf_sha256(file, &sha));
        assert_ok(tess_sha256_of(bytes, sizeof bytes, &expected));
        assert_true(tess_sha256_is_equal(&sha, &expected));
        tess_gguf_close(&file);
    }
}

static void test_truncated_at_every_byte_is_refused(void **state)
{
    const fixture *f = *state;
    uint8_t bytes[MINIMAL_NBYTES];
    minimal_file(bytes);
    for (size_t nbytes = 0; nbytes < 104; nbytes++) {
        const char *path = put_file(f, "cut.gguf", bytes, nbytes);
        assert_refused(try_open(f, path), TESS_E_FORMAT, "cut.gguf'");
    }
}

/* Whatever one byte becomes: refused, or a table that is still consistent. */
static void test_any_byte_altered_is_refused_or_consistent(void **state)
{
    const fixture *f = *state;
    uint8_t bytes[MINIMAL_NBYTES];
    for (int i = 0; i < HEADER_NBYTES; i++) {
        for (int flip = 1; flip < 256; flip = flip * 2 + 1) {
            tess_gguf *file = NULL;
            minimal_file(bytes);
            bytes[i] = (uint8_t)(bytes[i] ^ flip);
            tess_error_clear();
            if (tess_gguf_open(f->io, put_file(f, "odd.gguf", bytes, sizeof bytes), &file) !=
                TESS_OK) {
                assert_non_null(strstr(tess_error_message(), "odd.gguf'"));
                continue;
            }
            const tess_gguf_tensor *t = tess_gguf_at(file, 0);
            assert_true(t == NULL || t->offset_nbytes + t->nbytes <= MINIMAL_NBYTES);
            tess_gguf_close(&file);
        }
    }
}

/* ---- a file made of hand ---- */

typedef struct maker {
    uint8_t byte[4096];
    size_t nbytes;
} maker;

static void put(maker *m, const void *src, size_t nbytes)
{
    assert_true(m->nbytes + nbytes <= sizeof m->byte);
    memcpy(m->byte + m->nbytes, src, nbytes);
    m->nbytes += nbytes;
}

static void put_number(maker *m, uint64_t x, size_t nbytes) { put(m, &x, nbytes); }

static void put_string(maker *m, const char *text)
{
    put_number(m, strlen(text), 8);
    put(m, text, strlen(text));
}

static void begin(maker *m, uint64_t version, uint64_t tensor_numel, uint64_t pair_numel)
{
    m->nbytes = 0;
    put(m, "GGUF", 4);
    put_number(m, version, 4);
    put_number(m, tensor_numel, 8);
    put_number(m, pair_numel, 8);
}

static void put_pair(maker *m, const char *key, uint64_t kind, uint64_t value, size_t nbytes)
{
    put_string(m, key);
    put_number(m, kind, 4);
    put_number(m, value, nbytes);
}

static void put_tensor(maker *m, const char *name, const uint64_t *ne, uint64_t dim_numel,
                       uint64_t type, uint64_t offset)
{
    put_string(m, name);
    put_number(m, dim_numel, 4);
    for (uint64_t i = 0; i < dim_numel; i++)
        put_number(m, ne[i], 8);
    put_number(m, type, 4);
    put_number(m, offset, 8);
}

static void pad(maker *m, size_t nbytes)
{
    static const uint8_t zero[256];
    while (m->nbytes % nbytes != 0)
        put(m, zero, 1);
}

/* What is wrong with a file, and what its refusal says. */
typedef struct damage {
    const char *what;
    tess_status status;
    const char *message[3];
} damage;

static void one_tensor(maker *m, const uint64_t *ne, uint64_t dim_numel, uint64_t type,
                       uint64_t offset)
{
    begin(m, 3, 1, 0);
    put_tensor(m, "w", ne, dim_numel, type, offset);
    pad(m, 32);
    put(m, (const uint8_t[256]){0}, 256);
}

static void make_header_damage(maker *m, const char *what)
{
    if (strcmp(what, "magic") == 0)
        put(m, "GGML\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    else if (strcmp(what, "version 1") == 0)
        begin(m, 1, 0, 0);
    else if (strcmp(what, "version 4") == 0)
        begin(m, 4, 0, 0);
    else if (strcmp(what, "big endian") == 0)
        begin(m, 0x03000000, 0, 0);
    else if (strcmp(what, "tensor count") == 0)
        begin(m, 3, UINT64_C(1) << 60, 0);
    else if (strcmp(what, "key count") == 0)
        begin(m, 3, 0, UINT64_MAX);
}

static void make_pair_damage(maker *m, const char *what)
{
    begin(m, 3, 0, strcmp(what, "key twice") == 0 ? 2 : 1);
    if (strcmp(what, "key empty") == 0) {
        put_pair(m, "", 4, 1, 4);
    } else if (strcmp(what, "key twice") == 0) {
        put_pair(m, "a.b", 4, 1, 4);
        put_pair(m, "a.b", 4, 2, 4);
    } else if (strcmp(what, "key not UTF-8") == 0) {
        put_pair(m, "a\xff", 4, 1, 4);
    } else if (strcmp(what, "type 13") == 0) {
        put_pair(m, "a", 13, 1, 4);
    } else if (strcmp(what, "bool 2") == 0) {
        put_pair(m, "a", 7, 2, 1);
    } else if (strcmp(what, "u64 above") == 0) {
        put_pair(m, "a", 10, UINT64_MAX, 8);
    } else if (strcmp(what, "string long") == 0) {
        put_pair(m, "a", 8, UINT64_C(1) << 40, 8);
    } else if (strcmp(what, "string cut") == 0) {
        put_pair(m, "a", 8, 100, 8);
    } else if (strcmp(what, "array of arrays") == 0) {
        put_pair(m, "a", 9, 9, 4);
        put_number(m, 0, 8);
    } else if (strcmp(what, "array count") == 0) {
        put_pair(m, "a", 9, 4, 4);
        put_number(m, UINT64_C(1) << 61, 8);
    } else if (strcmp(what, "array bool") == 0) {
        put_pair(m, "a", 9, 7, 4);
        put_number(m, 2, 8);
        put_number(m, 0x0301, 2);
    } else if (strcmp(what, "array string") == 0) {
        put_pair(m, "a", 9, 8, 4);
        put_number(m, 1, 8);
        put_number(m, 9, 8);
    } else if (strcmp(what, "alignment type") == 0) {
        put_pair(m, "general.alignment", 10, 32, 8);
    } else if (strcmp(what, "alignment 0") == 0) {
        put_pair(m, "general.alignment", 4, 0, 4);
    } else if (strcmp(what, "alignment 48") == 0) {
        put_pair(m, "general.alignment", 4, 48, 4);
    } else if (strcmp(what, "alignment 2^20") == 0) {
        put_pair(m, "general.alignment", 4, 1 << 20, 4);
    }
}

static void make_tensor_damage(maker *m, const char *what)
{
    static const uint64_t ne[5] = {32, 2, 1, 1, 1};
    char name[80];
    if (strcmp(what, "tensor name") == 0 || strcmp(what, "tensor name empty") == 0 ||
        strcmp(what, "tensor dots") == 0) {
        memset(name, 'n', sizeof name);
        name[64] = '\0';
        begin(m, 3, 1, 0);
        put_tensor(m,
                   strcmp(what, "tensor name") == 0   ? name
                   : strcmp(what, "tensor dots") == 0 ? "a..b"
                                                      : "",
                   ne, 1, 0, 0);
        put(m, (const uint8_t[256]){0}, 256);
    } else if (strcmp(what, "tensor twice") == 0) {
        begin(m, 3, 2, 0);
        put_tensor(m, "w", ne, 1, 0, 0);
        put_tensor(m, "w", ne, 1, 0, 128);
        pad(m, 32);
        put(m, (const uint8_t[256]){0}, 256);
    } else if (strcmp(what, "dims 0") == 0) {
        one_tensor(m, ne, 0, 0, 0);
    } else if (strcmp(what, "dims 5") == 0) {
        one_tensor(m, ne, 5, 0, 0);
    } else if (strcmp(what, "extent 0") == 0) {
        one_tensor(m, (const uint64_t[]){0}, 1, 0, 0);
    } else if (strcmp(what, "extent 2^63") == 0) {
        one_tensor(m, (const uint64_t[]){UINT64_C(1) << 63}, 1, 0, 0);
    } else if (strcmp(what, "product") == 0) {
        one_tensor(m, (const uint64_t[]){UINT64_C(1) << 40, UINT64_C(1) << 40}, 2, 0, 0);
    } else if (strcmp(what, "product bytes") == 0) {
        one_tensor(m, (const uint64_t[]){UINT64_C(1) << 40, UINT64_C(1) << 22}, 2, 0, 0);
    } else if (strcmp(what, "type 39") == 0) {
        one_tensor(m, ne, 1, 39, 0);
    } else if (strcmp(what, "type 4") == 0) {
        one_tensor(m, ne, 1, 4, 0);
    } else if (strcmp(what, "block") == 0) {
        one_tensor(m, (const uint64_t[]){48}, 1, 8, 0);
    } else if (strcmp(what, "k block") == 0) {
        one_tensor(m, (const uint64_t[]){128, 2}, 2, 12, 0);
    } else if (strcmp(what, "offset") == 0) {
        one_tensor(m, ne, 1, 0, 32);
    } else if (strcmp(what, "offset huge") == 0) {
        one_tensor(m, ne, 1, 0, UINT64_MAX - 31);
    } else if (strcmp(what, "past the end") == 0) {
        one_tensor(m, (const uint64_t[]){65}, 1, 0, 0);
    }
}

static void test_damages(void **state)
{
    static const damage rows[] = {
        {"magic", TESS_E_FORMAT, {"magic at byte 0: expected 'GGUF'"}},
        {"version 1", TESS_E_UNSUPPORTED, {"version at byte 4: expected 2 or 3, found 1"}},
        {"version 4", TESS_E_UNSUPPORTED, {"version at byte 4", "found 4"}},
        {"big endian", TESS_E_UNSUPPORTED, {"version at byte 4: 0x03000000", "big-endian"}},
        {"tensor count", TESS_E_FORMAT, {"tensor count at byte 8", "found 1152921504606846976"}},
        {"key count", TESS_E_FORMAT, {"key count at byte 16", "found 18446744073709551615"}},
        {"key empty", TESS_E_FORMAT, {"key 0 at byte 24 is empty"}},
        {"key twice", TESS_E_FORMAT, {"key 'a.b' appears twice"}},
        {"key not UTF-8", TESS_E_FORMAT, {"key 0 at byte 24: expected UTF-8"}},
        {"type 13", TESS_E_FORMAT, {"value of 'a' at byte 33: type 13, expected 0 to 12"}},
        {"bool 2", TESS_E_FORMAT, {"value of 'a' at byte 37: bool of 2"}},
        {"u64 above", TESS_E_FORMAT, {"value of 'a' at byte 37", "above 2^63 - 1"}},
        {"string long", TESS_E_FORMAT, {"value of 'a' at byte 37", "at most 16777216"}},
        {"string cut", TESS_E_FORMAT, {"value of 'a' at byte 45", "only 0 remain"}},
        {"array of arrays", TESS_E_FORMAT, {"value of 'a' at byte 37: array of arrays"}},
        {"array count", TESS_E_FORMAT, {"value of 'a' at byte 41", "do not fit the 0 bytes"}},
        {"array bool", TESS_E_FORMAT, {"value of 'a' at byte 50: bool of 3"}},
        {"array string", TESS_E_FORMAT, {"value of 'a' at byte 57: needs 9", "only 0 remain"}},
        {"alignment type", TESS_E_FORMAT, {"'general.alignment': expected u32, found u64"}},
        {"alignment 0", TESS_E_FORMAT, {"expected a power of two from 8 to 65536, found 0"}},
        {"alignment 48", TESS_E_FORMAT, {"found 48"}},
        {"alignment 2^20", TESS_E_FORMAT, {"found 1048576"}},
        {"tensor name", TESS_E_FORMAT, {"name of tensor 0 at byte 24", "at most 63"}},
        {"tensor name empty", TESS_E_FORMAT, {"name of tensor 0 at byte 24: illegal name"}},
        {"tensor dots", TESS_E_FORMAT, {"name of tensor 0 at byte 24: illegal name"}},
        {"tensor twice", TESS_E_FORMAT, {"tensor 'w' appears twice"}},
        {"dims 0", TESS_E_FORMAT, {"tensor 'w' at byte 33: 0 dimensions, expected 1 to 4"}},
        {"dims 5", TESS_E_FORMAT, {"tensor 'w' at byte 33: 5 dimensions"}},
        {"extent 0", TESS_E_FORMAT, {"tensor 'w' at byte 37: dimension of 0"}},
        {"extent 2^63", TESS_E_FORMAT, {"tensor 'w' at byte 37: dimension of 9223372036854775808"}},
        {"product", TESS_E_FORMAT, {"tensor 'w'", "product of its dimensions overflows"}},
        {"product bytes", TESS_E_FORMAT, {"product of its dimensions overflows"}},
        {"type 39",
         TESS_E_UNSUPPORTED,
         {"tensor 'w' at byte 45: type 39 (MXFP4) is not supported"}},
        {"type 4", TESS_E_UNSUPPORTED, {"type 4 (unknown here) is not supported"}},
        {"block", TESS_E_FORMAT, {"rows of 48 elements, expected a multiple of the q8_0 block"}},
        {"k block", TESS_E_FORMAT, {"rows of 128", "multiple of the q4_k block of 256"}},
        {"offset", TESS_E_FORMAT, {"tensor 'w': expected offset 0", "found 32"}},
        {"offset huge", TESS_E_FORMAT, {"tensor 'w' at byte 49", "is outside the file"}},
        {"past the end", TESS_E_FORMAT, {"tensor 'w': 260 bytes from byte 64 reach past the end"}},
    };
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        static maker m;
        m.nbytes = 0;
        make_header_damage(&m, rows[i].what);
        if (m.nbytes == 0 && (strncmp(rows[i].what, "tensor ", 7) == 0 || i > 25))
            make_tensor_damage(&m, rows[i].what);
        if (m.nbytes == 0)
            make_pair_damage(&m, rows[i].what);
        assert_true(m.nbytes >= 24);
        const char *path = put_file(f, "bad.gguf", m.byte, m.nbytes);
        for (int k = 0; k < 3 && rows[i].message[k] != NULL; k++)
            assert_refused(try_open(f, path), rows[i].status, "bad.gguf'", rows[i].message[k]);
    }
}

/* ---- writer ---- */

static const tess_gguf_value *value_of(const tess_gguf *file, const char *key)
{
    const tess_gguf_value *v = tess_gguf_value_of(file, key);
    assert_non_null(v);
    return v;
}

static void test_written_file_is_read_back(void **state)
{
    static const char *const words[] = {"one", "", "three"};
    static const int32_t numbers[] = {-1, 7};
    const fixture *f = *state;
    const tess_gguf_pair pair[] = {
        {"general.architecture", {.kind = TESS_GGUF_STRING, .text = "llama"}},
        {"a.u8", {.kind = TESS_GGUF_U8, .i64 = 255}},
        {"a.i8", {.kind = TESS_GGUF_I8, .i64 = -128}},
        {"a.i64", {.kind = TESS_GGUF_I64, .i64 = INT64_MIN}},
        {"a.f32", {.kind = TESS_GGUF_F32, .f64 = 0.25}},
        {"a.f64", {.kind = TESS_GGUF_F64, .f64 = 0.1}},
        {"a.bool", {.kind = TESS_GGUF_BOOL, .i64 = 1}},
        {"a.words", {.kind = TESS_GGUF_ARRAY, .of = TESS_GGUF_STRING, .numel = 3, .data = words}},
        {"a.numbers", {.kind = TESS_GGUF_ARRAY, .of = TESS_GGUF_I32, .numel = 2, .data = numbers}},
    };
    const tess_gguf_tensor tensor[] = {
        {.name = "q", .format = TESS_FORMAT_Q8_0, .dim_numel = 2, .dim = {3, 32}},
        {.name = "b", .format = TESS_FORMAT_F32, .dim_numel = 1, .dim = {3}}};
    uint8_t blocks[102], got[102];
    const float bias[3] = {1.0F, 2.0F, 3.0F};
    tess_gguf_writer *w = NULL;
    tess_gguf *file = NULL;
    double real = 0.0;
    for (int i = 0; i < 102; i++)
        blocks[i] = (uint8_t)(i % 34 == 1 ? 0x3c : i);
    const char *path = at(f, "w.gguf");
    assert_ok(tess_gguf_writer_create(f->io, path, pair, 9, tensor, 2, &w));
    assert_ok(tess_gguf_writer_append(w, 1, bias, 12));
    assert_ok(tess_gguf_writer_append(w, 0, blocks, 40));
    assert_refused(tess_gguf_writer_finish(w), TESS_E_STATE, "'q' has 102 bytes, only 40");
    assert_refused(tess_gguf_writer_append(w, 0, blocks, 63), TESS_E_RANGE, "63 more given");
    assert_ok(tess_gguf_writer_append(w, 0, blocks + 40, 62));
    assert_ok(tess_gguf_writer_finish(w));
    tess_gguf_writer_destroy(&w);
    assert_ok(tess_gguf_open(f->io, path, &file));
    assert_int_equal(tess_gguf_pair_numel(file), 9);
    assert_string_equal(value_of(file, "general.architecture")->text, "llama");
    assert_int_equal(value_of(file, "a.u8")->i64, 255);
    assert_int_equal(value_of(file, "a.i8")->i64, -128);
    assert_true(value_of(file, "a.i64")->i64 == INT64_MIN);
    assert_true(value_of(file, "a.f64")->f64 == 0.1);
    assert_int_equal(value_of(file, "a.bool")->i64, 1);
    assert_int_equal(value_of(file, "a.words")->numel, 3);
    assert_int_equal(value_of(file, "a.numbers")->of, TESS_GGUF_I32);
    assert_ok(tess_gguf_get_f64(file, "a.f32", &real));
    assert_true(real == 0.25);
    const tess_gguf_tensor *t = tess_gguf_find(file, "q");
    assert_int_equal(t->dim[0], 3);
    assert_int_equal(t->dim[1], 32);
    assert_ok(tess_gguf_read(file, t, 0, 102, got));
    assert_memory_equal(got, blocks, 102);
    /* Interleaved heads of 2 rows are in place; scales are checked. */
    assert_ok(tess_gguf_read_rows(file, t, 0, 0, 102, got));
    assert_memory_equal(got, blocks, 102);
    assert_int_equal(tess_gguf_find(file, "b")->offset_nbytes % 32, 0);
    tess_gguf_close(&file);
}

static void test_writer_refuses(void **state)
{
    const fixture *f = *state;
    tess_gguf_writer *w = NULL;
    const tess_gguf_pair twice[] = {{"k", {.kind = TESS_GGUF_U32}}, {"k", {.kind = TESS_GGUF_U32}}};
    const tess_gguf_pair align = {"general.alignment", {.kind = TESS_GGUF_U32, .i64 = 64}};
    const tess_gguf_tensor same[] = {
        {.name = "b", .format = TESS_FORMAT_F32, .dim_numel = 1, .dim = {3}},
        {.name = "b", .format = TESS_FORMAT_F32, .dim_numel = 1, .dim = {3}}};
    const tess_gguf_tensor ragged = {
        .name = "b", .format = TESS_FORMAT_Q8_0, .dim_numel = 1, .dim = {33}};
    const tess_gguf_tensor nf4 = {
        .name = "b", .format = TESS_FORMAT_NF4, .dim_numel = 1, .dim = {64}};
    const char *path = at(f, "w.gguf");
    assert_refused(tess_gguf_writer_create(f->io, path, twice, 2, NULL, 0, &w), TESS_E_ARG,
                   "key 'k' is given twice");
    assert_refused(tess_gguf_writer_create(f->io, path, &align, 1, NULL, 0, &w), TESS_E_ARG,
                   "general.alignment is the writer's own");
    assert_refused(tess_gguf_writer_create(f->io, path, NULL, 0, same, 2, &w), TESS_E_ARG,
                   "tensor 'b' is given twice");
    assert_refused(tess_gguf_writer_create(f->io, path, NULL, 0, &ragged, 1, &w), TESS_E_RANGE,
                   "rows of 33 elements");
    assert_refused(tess_gguf_writer_create(f->io, path, NULL, 0, &nf4, 1, &w), TESS_E_UNSUPPORTED,
                   "GGUF has no type for nf4");
    assert_int_not_equal(access(path, F_OK), 0);
}

/* ---- models ---- */

static void test_names_and_rows(void **state)
{
    static const struct {
        const char *gguf, *hf;
    } rows[] = {
        {"token_embd.weight", "model.embed_tokens.weight"},
        {"output_norm.weight", "model.norm.weight"},
        {"output.weight", "lm_head.weight"},
        {"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
        {"blk.31.attn_k.bias", "model.layers.31.self_attn.k_proj.bias"},
        {"blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"},
        {"blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"},
    };
    static const char *const other[] = {"blk.0.attn_q",
                                        "blk.00.attn_q.weight",
                                        "blk.attn_q.weight",
                                        "blk.0.ffn_gate_inp.weight",
                                        "attn_q.weight",
                                        "blk.0.output.weight",
                                        "blk.0.attn_q.weight.x",
                                        "rope_freqs.weight",
                                        ""};
    static const int64_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    char hf[TESS_GGUF_HF_NAME_NBYTES], name[TESS_GGUF_NAME_NBYTES];
    (void)state;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        assert_true(tess_gguf_hf_name(rows[i].gguf, hf));
        assert_string_equal(hf, rows[i].hf);
        assert_true(tess_gguf_name_of(rows[i].hf, name));
        assert_string_equal(name, rows[i].gguf);
    }
    for (int i = 0; i < TESS_NELEM(other); i++)
        assert_false(tess_gguf_hf_name(other[i], hf));
    for (int64_t i = 0; i < 16; i++)
        assert_int_equal(tess_gguf_row(i, 8), i / 8 * 8 + order[i % 8]);
    for (int64_t i = 0; i < 24; i++)
        assert_int_equal(tess_gguf_hf_row(tess_gguf_row(i, 12), 12), i);
}

/* Values of a tensor in f32. */
static void decode(const tess_codec *codec, const void *stored, int64_t numel, float *out)
{
    const tess_view dst = tess_view_host(out, numel, TESS_F32);
    tess_stream stream;
    tess_stream_init_inline(&stream, "test", NULL);
    if (tess_format_is_quantized(codec->format)) {
        const tess_dequantize_args a = {.codec = *codec, .part = {stored}, .dst = dst};
        assert_ok(tess_kernels_cpu.dequantize(&a, &stream));
        return;
    }
    const tess_dtype dt = codec->format == TESS_FORMAT_F32 ? TESS_F32 : TESS_BF16;
    const tess_cast_args a = {.src = tess_view_host((void *)(uintptr_t)stored, numel, dt),
                              .dst = dst};
    assert_ok(tess_kernels_cpu.cast(&a, &stream));
}

static void check_tensor(const tess_model_dir *dir, const char *name, const char *format,
                         uint32_t crc)
{
    static char stored[256 * 256 * 4], again[256 * 256 * 4];
    static float value[256 * 256];
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    tess_codec codec;
    assert_non_null(t);
    assert_ok(tess_model_tensor_codec(t, &codec));
    assert_string_equal(tess_format_name(codec.format), format);
    assert_true(t->st->numel <= 256 * 256);
    assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, stored));
    decode(&codec, stored, t->st->numel, value);
    const uint32_t found = crc_of(value, (size_t)t->st->numel * sizeof *value);
    if (found != crc)
        fail_msg("%s (%s): crc %08x, expected %08x", name, format, found, crc);
    for (int64_t at_nbytes = 0; at_nbytes < t->st->nbytes; at_nbytes += 1000) {
        const int64_t nbytes = TESS_MIN(t->st->nbytes - at_nbytes, INT64_C(1000));
        assert_ok(tess_model_dir_read(dir, t, at_nbytes, (size_t)nbytes, again + at_nbytes));
    }
    assert_memory_equal(again, stored, (size_t)t->st->nbytes);
}

static void check_model(const fixture *f, const char *name, const tess_llm_config *want)
{
    char path[512], line[512], tensor[256], format[16];
    const tess_ctx ctx = {.io = f->io};
    tess_model_dir *dir = NULL;
    tess_llm_config config;
    unsigned crc = 0;
    int64_t numel = 0;
    snprintf(path, sizeof path, "%s/tests/golden/gguf/%s.gguf", TESS_TEST_SOURCE_DIR, name);
    assert_ok(tess_model_dir_open(&ctx, path, &dir));
    assert_ok(tess_gguf_llm_config(tess_model_dir_gguf(dir), &config));
    assert_int_equal(config.family, want->family);
    assert_int_equal(config.hidden_numel, want->hidden_numel);
    assert_int_equal(config.layer_numel, want->layer_numel);
    assert_int_equal(config.head_dim, want->head_dim);
    assert_int_equal(config.vocab_numel, 61);
    assert_int_equal(config.is_tied, want->is_tied);
    assert_int_equal(config.has_q_bias, want->has_q_bias);
    assert_int_equal(config.has_qk_norm, want->has_qk_norm);
    assert_true((float)config.rms_eps == 1e-5F && config.rope.theta == want->rope.theta);
    assert_string_equal(tess_model_dir_file_name(dir, 0) + strlen(name), ".gguf");
    snprintf(path, sizeof path, "%s/tests/golden/gguf/%s.txt", TESS_TEST_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "tensor %255s %15s %x", tensor, format, &crc) == 3) {
            check_tensor(dir, tensor, format, crc);
            numel++;
        }
    fclose(file);
    assert_int_equal(tess_model_dir_tensor_numel(dir), numel);
    tess_model_dir_close(&dir);
}

static void test_golden_models(void **state)
{
    const tess_llm_config llama = {.family = TESS_LLM_LLAMA,
                                   .hidden_numel = 64,
                                   .layer_numel = 2,
                                   .head_dim = 16,
                                   .rope = {.theta = 5e5}};
    tess_llm_config k = llama, qwen2 = llama, qwen3 = llama;
    k.hidden_numel = 256;
    k.layer_numel = 1;
    k.rope.theta = qwen2.rope.theta = qwen3.rope.theta = 1e4;
    qwen2.family = TESS_LLM_QWEN2;
    qwen2.is_tied = qwen2.has_q_bias = true;
    qwen3.family = TESS_LLM_QWEN3;
    qwen3.layer_numel = 1;
    qwen3.head_dim = 32;
    qwen3.is_tied = qwen3.has_qk_norm = true;
    check_model(*state, "llama", &llama);
    check_model(*state, "llama_k", &k);
    check_model(*state, "qwen2", &qwen2);
    check_model(*state, "qwen3", &qwen3);
}

/* What a file of these pairs and an embedding [2, 32] says of its model. */
static tess_status config_of(const fixture *f, const tess_gguf_pair *pair, int pair_numel,
                             tess_llm_config *out)
{
    const tess_gguf_tensor embedding = {
        .name = "token_embd.weight", .format = TESS_FORMAT_F32, .dim_numel = 2, .dim = {2, 32}};
    const float zero[64] = {0};
    const char *path = at(f, "c.gguf");
    tess_gguf_writer *w = NULL;
    tess_gguf *file = NULL;
    assert_ok(tess_gguf_writer_create(f->io, path, pair, pair_numel, &embedding, 1, &w));
    assert_ok(tess_gguf_writer_append(w, 0, zero, sizeof zero));
    assert_ok(tess_gguf_writer_finish(w));
    tess_gguf_writer_destroy(&w);
    assert_ok(tess_gguf_open(f->io, path, &file));
    const tess_status st = tess_gguf_llm_config(file, out);
    tess_gguf_close(&file);
    return st;
}

static const tess_gguf_pair plain_pair[] = {
    {"general.architecture", {.kind = TESS_GGUF_STRING, .text = "llama"}},
    {"llama.embedding_length", {.kind = TESS_GGUF_U32, .i64 = 32}},
    {"llama.feed_forward_length", {.kind = TESS_GGUF_U32, .i64 = 32}},
    {"llama.block_count", {.kind = TESS_GGUF_U32, .i64 = 1}},
    {"llama.attention.head_count", {.kind = TESS_GGUF_U32, .i64 = 2}},
    {"llama.attention.layer_norm_rms_epsilon", {.kind = TESS_GGUF_F32, .f64 = 1e-5}},
};

/* llama.cpp, src/llama-model.cpp (load_hparams): the type is linear where none is stated. */
static void test_config_rope_scaling_as_llama_cpp(void **state)
{
    static const struct {
        tess_gguf_pair pair[2];
        int pair_numel;
        tess_rope_type type;
        double factor;
    } rows[] = {
        {{{"llama.rope.scaling.factor", {.kind = TESS_GGUF_F32, .f64 = 4.0}}},
         1,
         TESS_ROPE_LINEAR,
         4.0},
        {{{"llama.rope.scale_linear", {.kind = TESS_GGUF_F32, .f64 = 2.0}}},
         1,
         TESS_ROPE_LINEAR,
         2.0},
        {{{"llama.rope.scale_linear", {.kind = TESS_GGUF_F32, .f64 = 2.0}},
          {"llama.rope.scaling.factor", {.kind = TESS_GGUF_F32, .f64 = 8.0}}},
         2,
         TESS_ROPE_LINEAR,
         8.0},
        {{{"llama.rope.scaling.type", {.kind = TESS_GGUF_STRING, .text = "none"}},
          {"llama.rope.scaling.factor", {.kind = TESS_GGUF_F32, .f64 = 4.0}}},
         2,
         TESS_ROPE_DEFAULT,
         1.0},
        {{{"llama.rope.scaling.type", {.kind = TESS_GGUF_STRING, .text = "linear"}},
          {"llama.rope.scaling.factor", {.kind = TESS_GGUF_F32, .f64 = 0.0}}},
         2,
         TESS_ROPE_DEFAULT,
         1.0},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        enum { PLAIN = TESS_NELEM(plain_pair) };
        tess_gguf_pair pair[PLAIN + 2];
        tess_llm_config config;
        memcpy(pair, plain_pair, sizeof plain_pair);
        memcpy(pair + PLAIN, rows[i].pair, sizeof rows[i].pair);
        assert_ok(config_of(*state, pair, PLAIN + rows[i].pair_numel, &config));
        assert_int_equal(config.rope.type, rows[i].type);
        assert_true(config.rope.factor == rows[i].factor);
    }
}

/* What changes nothing: scales (heads have 16 elements, and 12 where stated), attention that is
 * causal, a file that is its only part. */
static void test_config_neutral_values(void **state)
{
    static const tess_gguf_pair rows[][2] = {
        {{"llama.attention.scale", {.kind = TESS_GGUF_F32, .f64 = 0.25}}},
        {{"llama.attention.scale", {.kind = TESS_GGUF_F32, .f64 = 0.28867513}},
         {"llama.attention.key_length", {.kind = TESS_GGUF_U32, .i64 = 12}}},
        {{"llama.attention.scale", {.kind = TESS_GGUF_F32, .f64 = 0.0}}},
        {{"llama.logit_scale", {.kind = TESS_GGUF_F32, .f64 = 1.0}}},
        {{"llama.residual_scale", {.kind = TESS_GGUF_F32, .f64 = 1.0}}},
        {{"llama.embedding_scale", {.kind = TESS_GGUF_F32, .f64 = 1.0}}},
        {{"llama.attention.causal", {.kind = TESS_GGUF_BOOL, .i64 = 1}},
         {"split.count", {.kind = TESS_GGUF_U16, .i64 = 1}}},
    };
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        enum { PLAIN = TESS_NELEM(plain_pair) };
        tess_gguf_pair pair[PLAIN + 2];
        tess_llm_config config;
        memcpy(pair, plain_pair, sizeof plain_pair);
        memcpy(pair + PLAIN, rows[i], sizeof rows[i]);
        assert_ok(config_of(*state, pair, PLAIN + (rows[i][1].key != NULL ? 2 : 1), &config));
    }
}

/* Pairs that are changed, or added, one at a time. */
static void test_config_refusals(void **state)
{
    static const struct {
        const char *key;
        tess_gguf_value value;
        tess_status status;
        const char *message;
    } rows[] = {
        {"general.architecture",
         {.kind = TESS_GGUF_STRING, .text = "gemma"},
         TESS_E_UNSUPPORTED,
         "'gemma' is not supported, expected llama"},
        {"llama.expert_count", {.kind = TESS_GGUF_U32, .i64 = 8}, TESS_E_UNSUPPORTED, "mixtures"},
        {"llama.rope.dimension_count",
         {.kind = TESS_GGUF_U32, .i64 = 8},
         TESS_E_UNSUPPORTED,
         "partial rotation"},
        {"llama.attention.value_length",
         {.kind = TESS_GGUF_U32, .i64 = 8},
         TESS_E_UNSUPPORTED,
         "heads of k and v differ"},
        {"llama.rope.scaling.type",
         {.kind = TESS_GGUF_STRING, .text = "longrope"},
         TESS_E_UNSUPPORTED,
         "'longrope' is not supported, expected none, linear or yarn"},
        {"llama.embedding_length",
         {.kind = TESS_GGUF_F32, .f64 = 32.0},
         TESS_E_FORMAT,
         "'llama.embedding_length': expected an integer, found f32"},
        {"llama.attention.head_count",
         {.kind = TESS_GGUF_U32, .i64 = 0},
         TESS_E_FORMAT,
         "'llama.attention.head_count': expected 1 or more, found 0"},
        {"llama.vocab_size", {.kind = TESS_GGUF_U32, .i64 = 7}, TESS_E_UNSUPPORTED, "other rows"},
        {"llama.logit_scale",
         {.kind = TESS_GGUF_F32, .f64 = 0.5},
         TESS_E_UNSUPPORTED,
         "'llama.logit_scale' is 0.5, expected 1"},
        {"llama.attention.scale",
         {.kind = TESS_GGUF_F32, .f64 = 0.2501},
         TESS_E_UNSUPPORTED,
         "'llama.attention.scale' is 0.2501, expected 0.25"},
        {"llama.rope.scaling.attn_factor",
         {.kind = TESS_GGUF_F32, .f64 = 1.5},
         TESS_E_UNSUPPORTED,
         "'llama.rope.scaling.attn_factor' is 1.5, expected 1"},
        {"llama.attention.causal",
         {.kind = TESS_GGUF_BOOL, .i64 = 0},
         TESS_E_UNSUPPORTED,
         "'llama.attention.causal' is false"},
        {"split.count",
         {.kind = TESS_GGUF_U16, .i64 = 3},
         TESS_E_UNSUPPORTED,
         "this is one of 3 files"},
    };
    for (int i = -1; i < TESS_NELEM(rows); i++) {
        tess_gguf_pair pair[TESS_NELEM(plain_pair) + 1];
        tess_llm_config config;
        int k = 0;
        memcpy(pair, plain_pair, sizeof plain_pair);
        while (i >= 0 && k < TESS_NELEM(plain_pair) && strcmp(pair[k].key, rows[i].key) != 0)
            k++;
        if (i < 0) {
            assert_ok(config_of(*state, pair, TESS_NELEM(plain_pair), &config));
            continue;
        }
        pair[k] = (tess_gguf_pair){rows[i].key, rows[i].value};
        assert_refused(config_of(*state, pair, TESS_MAX(k + 1, TESS_NELEM(plain_pair)), &config),
                       rows[i].status, rows[i].message);
    }
}

static void test_scale_that_is_not_finite(void **state)
{
    const fixture *f = *state;
    const tess_gguf_tensor tensor = {
        .name = "w", .format = TESS_FORMAT_Q8_0, .dim_numel = 2, .dim = {2, 32}};
    uint8_t blocks[68] = {0}, got[68];
    tess_gguf_writer *w = NULL;
    tess_gguf *file = NULL;
    blocks[35] = 0x7c;
    const char *path = at(f, "s.gguf");
    assert_ok(tess_gguf_writer_create(f->io, path, NULL, 0, &tensor, 1, &w));
    assert_ok(tess_gguf_writer_append(w, 0, blocks, sizeof blocks));
    assert_ok(tess_gguf_writer_finish(w));
    tess_gguf_writer_destroy(&w);
    assert_ok(tess_gguf_open(f->io, path, &file));
    assert_refused(tess_gguf_read_rows(file, tess_gguf_at(file, 0), 0, 0, 68, got), TESS_E_FORMAT,
                   "tensor 'w' (q8_0): the scale of block 1 is not finite");
    tess_gguf_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_minimal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_at_every_byte_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_any_byte_altered_is_refused_or_consistent, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_damages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_written_file_is_read_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writer_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_names_and_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_golden_models, setup, teardown),
        cmocka_unit_test_setup_teardown(test_config_rope_scaling_as_llama_cpp, setup, teardown),
        cmocka_unit_test_setup_teardown(test_config_neutral_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_config_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_scale_that_is_not_finite, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
