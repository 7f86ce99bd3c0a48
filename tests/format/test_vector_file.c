#include "format/vector_file.h"

#include <fcntl.h>

#include "format/npy.h"
#include "format_test.h"
#include <inttypes.h>

/* Bytes of vq.md 5.10. */
static const uint8_t fvecs_bytes[] = {2, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0};
static const uint8_t bvecs_bytes[] = {3, 0, 0, 0, 1, 2, 255};
static const uint8_t fbin_bytes[] = {1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0};

static const char *golden(const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], TESS_TEST_SOURCE_DIR "/tests/golden/vectors/%s", name);
    return path[turn];
}

static void assert_one(const fixture *f, const char *path, const float *x, int64_t dim)
{
    tess_vector_file *file = NULL;
    float read[8] = {0};
    assert_ok(tess_vector_file_open(f->io, path, &file));
    const tess_vector_layout *l = tess_vector_file_get_layout(file);
    assert_int_equal(l->vector_numel, 1);
    assert_int_equal(l->dim, dim);
    assert_ok(tess_vector_file_read(file, 0, 1, read));
    assert_memory_equal(read, x, (size_t)dim * sizeof *x);
    tess_vector_file_close(&file);
}

static void test_open_bytes_of_the_formats_are_read(void **state)
{
    const fixture *f = *state;
    const float pair[] = {1.0F, -2.0F}, triple[] = {1.0F, 2.0F, 255.0F};
    assert_one(f, put_file(f, "a.fvecs", fvecs_bytes, sizeof fvecs_bytes), pair, 2);
    assert_one(f, put_file(f, "a.bvecs", bvecs_bytes, sizeof bvecs_bytes), triple, 3);
    assert_one(f, put_file(f, "a.fbin", fbin_bytes, sizeof fbin_bytes), pair, 2);
}

static void test_npy_header_made_starts_data_at_128(void **state)
{
    (void)state;
    tess_npy_header h = {.descr = "<f4", .dim_numel = 2, .dim = {3, 2}};
    char bytes[TESS_NPY_MADE_NBYTES];
    tess_npy_make_header(&h, bytes);
    assert_int_equal(h.data_offset_nbytes, 128);
    assert_int_equal((unsigned char)bytes[8] | (unsigned char)bytes[9] << 8, 118);
    assert_int_equal(bytes[127], '\n');
}

/* What numpy wrote, and the f32 it rounds to. */
static void test_read_golden_files_match_numpy(void **state)
{
    static const char *const names[] = {
        "a.fvecs",         "a.bvecs", "a.ivecs", "a.fbin",  "a.u8bin", "a.i8bin", "a.ibin",
        "neighbours.ibin", "f32.npy", "f64.npy", "f16.npy", "u8.npy",  "i8.npy",  "i32.npy"};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(names); i++) {
        tess_vector_file *file = NULL;
        char *expected = NULL, name[64];
        size_t nbytes = 0;
        float x[15], one[3];
        snprintf(name, sizeof name, "%s.f32", names[i]);
        assert_ok(tess_io_read_all(f->io, golden(name), sizeof x, &expected, &nbytes));
        assert_ok(tess_vector_file_open(f->io, golden(names[i]), &file));
        const tess_vector_layout *l = tess_vector_file_get_layout(file);
        assert_int_equal(l->dim, 3);
        assert_int_equal(l->vector_numel * 12, nbytes);
        assert_ok(tess_vector_file_read(file, 0, l->vector_numel, x));
        assert_memory_equal(x, expected, nbytes);
        for (int64_t v = 0; v < l->vector_numel; v++) {
            assert_ok(tess_vector_file_read(file, v, 1, one));
            assert_memory_equal(one, expected + v * 12, 12);
        }
        tess_free(expected);
        tess_vector_file_close(&file);
    }
}

static uint8_t element_of(int64_t vector, int64_t j) { return (uint8_t)(vector * 131 + j * 7); }

/* More records than the scratch holds, in ranges that begin and end anywhere; nothing is allocated
 * after open. */
static void test_read_ranges_across_scratch_agree(void **state)
{
    enum { NUMEL = 300000, DIM = 5, RECORD = DIM + 4 };
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    uint8_t *bytes = malloc((size_t)NUMEL * RECORD);
    float *x = malloc((size_t)NUMEL * DIM * sizeof *x);
    assert_true(bytes != NULL && x != NULL && NUMEL * RECORD > 2 * TESS_VECTOR_SCRATCH_NBYTES);
    for (int64_t v = 0; v < NUMEL; v++) {
        memcpy(bytes + v * RECORD, &(int32_t){DIM}, 4);
        for (int64_t j = 0; j < DIM; j++)
            bytes[v * RECORD + 4 + j] = element_of(v, j);
    }
    const char *path = put_file(f, "many.bvecs", bytes, (size_t)NUMEL * RECORD);
    assert_ok(tess_vector_file_open(f->io, path, &file));
    const int64_t events = tess_alloc_events();
    const int64_t ranges[][2] = {{0, NUMEL},     {0, 0},      {NUMEL, 0},
                                 {1, NUMEL - 2}, {116507, 3}, {7, 116508}};
    for (int i = 0; i < TESS_NELEM(ranges); i++) {
        const int64_t first = ranges[i][0], numel = ranges[i][1];
        assert_ok(tess_vector_file_read(file, first, numel, x));
        for (int64_t v = 0; v < numel; v++)
            for (int64_t j = 0; j < DIM; j++)
                if (x[v * DIM + j] != (float)element_of(first + v, j))
                    fail_msg("vector %" PRId64 " element %" PRId64, first + v, j);
    }
    assert_int_equal(tess_alloc_events(), events);
    assert_refused(tess_vector_file_read(file, 0, NUMEL + 1, x), TESS_E_RANGE, "many.bvecs");
    assert_refused(tess_vector_file_read(file, NUMEL, 1, x), TESS_E_RANGE, "300000");
    assert_refused(tess_vector_file_read(file, -1, 1, x), TESS_E_RANGE, "-1");
    assert_refused(tess_vector_file_read(file, INT64_MAX, INT64_MAX, x), TESS_E_RANGE, "of 300000");
    tess_vector_file_close(&file);
    free(bytes);
    free(x);
}

static void put_at(const char *path, off_t at_nbytes, const void *bytes, size_t nbytes,
                   off_t file_nbytes)
{
    const int fd = open(path, O_WRONLY | O_CREAT, 0644);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, file_nbytes), 0);
    assert_int_equal(pwrite(fd, bytes, nbytes, at_nbytes), nbytes);
    close(fd);
}

/* Files with holes: the last vectors lie above 4 GiB, and above 2^31 vectors. */
static void test_read_behind_4_gib_finds_the_vector(void **state)
{
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    float x[128] = {0};
    const uint32_t extent[2] = {3000000000U, 2};
    const uint8_t last[2] = {17, 255};
    const char *path = at(f, "holes.u8bin");
    put_at(path, 0, extent, sizeof extent, 8 + 6000000000LL);
    put_at(path, 8 + 5999999998LL, last, sizeof last, 8 + 6000000000LL);
    assert_ok(tess_vector_file_open(f->io, path, &file));
    assert_int_equal(tess_vector_file_get_layout(file)->vector_numel, 3000000000LL);
    assert_ok(tess_vector_file_read(file, 2999999998LL, 2, x));
    assert_true(x[0] == 0 && x[1] == 0 && x[2] == 17 && x[3] == 255);
    tess_vector_file_close(&file);

    struct {
        int32_t dim;
        uint8_t x[128];
    } record = {128, {5, [127] = 9}};
    const int64_t numel = 40000000, record_nbytes = 132;
    path = at(f, "holes.bvecs");
    put_at(path, 0, &record, sizeof record, numel * record_nbytes);
    put_at(path, (numel - 1) * record_nbytes, &record, sizeof record, numel * record_nbytes);
    assert_ok(tess_vector_file_open(f->io, path, &file));
    assert_ok(tess_vector_file_read(file, numel - 1, 1, x));
    assert_true(x[0] == 5 && x[1] == 0 && x[127] == 9);
    assert_refused(tess_vector_file_read(file, numel - 2, 2, x), TESS_E_FORMAT, "record 39999998",
                   "states 0 dimensions", "expected 128");
    tess_vector_file_close(&file);
}

static void assert_open_refused(const fixture *f, const char *name, const void *bytes,
                                size_t nbytes, const char *piece, const char *fix)
{
    tess_vector_file *file = NULL;
    assert_refused(tess_vector_file_open(f->io, put_file(f, name, bytes, nbytes), &file),
                   TESS_E_FORMAT, name, piece, fix);
    assert_null(file);
}

static void test_open_damaged_records_are_refused(void **state)
{
    const fixture *f = *state;
    const int32_t dims[] = {0, -1, TESS_VECTOR_DIM_MAX + 1, INT32_MIN};
    uint8_t cut[sizeof fvecs_bytes + 1] = {0};
    memcpy(cut, fvecs_bytes, sizeof fvecs_bytes);
    assert_open_refused(f, "x.fvecs", cut, 0, "0 bytes", "holds no vector");
    assert_open_refused(f, "x.fvecs", cut, 3, "3 bytes", "holds no vector");
    assert_open_refused(f, "x.fvecs", cut, 11, "11 bytes", "cut off");
    assert_open_refused(f, "x.fvecs", cut, 13, "1 are left over", "records of 12 bytes (d 2)");
    for (int i = 0; i < TESS_NELEM(dims); i++) {
        char piece[64];
        snprintf(piece, sizeof piece, "vectors of %d dimensions", dims[i]);
        assert_open_refused(f, "x.bvecs", &dims[i], sizeof dims[i], piece, "suffix");
    }
    /* a fvecs under the name of another format */
    assert_open_refused(f, "x.fbin", fvecs_bytes, sizeof fvecs_bytes, "dimensions", "suffix");
}

/* The second record has another d: open sees only the first, reading it names the second. */
static void test_read_another_dimension_names_the_record(void **state)
{
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    float x[6];
    uint8_t two[2 * sizeof bvecs_bytes];
    memcpy(two, bvecs_bytes, sizeof bvecs_bytes);
    memcpy(two + sizeof bvecs_bytes, bvecs_bytes, sizeof bvecs_bytes);
    two[sizeof bvecs_bytes] = 4;
    assert_ok(tess_vector_file_open(f->io, put_file(f, "x.bvecs", two, sizeof two), &file));
    assert_ok(tess_vector_file_read(file, 0, 1, x));
    assert_refused(tess_vector_file_read(file, 0, 2, x), TESS_E_FORMAT, "x.bvecs", "record 1",
                   "states 4", "expected 3");
    tess_vector_file_close(&file);
}

static void test_open_headers_that_do_not_fit_are_refused(void **state)
{
    const fixture *f = *state;
    const struct {
        uint32_t extent[2];
        uint32_t x[2];
        size_t nbytes;
        const char *piece;
    } cases[] = {{{0, 2}, {0}, 8, "states 0 vectors"},
                 {{1, 0}, {0}, 8, "vectors of 0 dimensions"},
                 {{1, 2}, {0}, 15, "expected 16"},
                 {{2, 1}, {0}, 12, "expected 16"},
                 {{1, 1}, {0}, 16, "expected 12"},
                 {{UINT32_MAX, 1U << 20}, {0}, 16, "expected 18014398505287688"},
                 {{UINT32_MAX, UINT32_MAX}, {0}, 16, "vectors of 4294967295 dimensions"},
                 {{1, 2}, {0}, 7, "7 bytes"}};
    for (int i = 0; i < TESS_NELEM(cases); i++)
        assert_open_refused(f, "x.fbin", cases[i].extent, cases[i].nbytes, cases[i].piece,
                            "x.fbin");
}

static void test_open_unknown_suffix_lists_the_known(void **state)
{
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    assert_refused(tess_vector_file_open(f->io, put_text(f, "x.vec", "x"), &file),
                   TESS_E_UNSUPPORTED, "x.vec", "bvecs", "npy");
    assert_refused(tess_vector_file_open(f->io, at(f, "none.npy"), &file), TESS_E_IO, "none.npy");
    assert_true(tess_vector_file_is_path("a.b/c.u8bin"));
    assert_false(tess_vector_file_is_path("a.npy/c"));
}

static void test_open_npy_of_other_kinds_names_the_fix(void **state)
{
    static const struct {
        const char *name;
        tess_status status;
        const char *piece, *fix;
    } cases[] = {{"refused_fortran.npy", TESS_E_UNSUPPORTED, "Fortran order", "ascontiguousarray"},
                 {"refused_big.npy", TESS_E_UNSUPPORTED, "type >f4", "astype('<f4')"},
                 {"refused_half.npy", TESS_E_UNSUPPORTED, "type <u2", "astype('<f4')"},
                 {"refused_one.npy", TESS_E_FORMAT, "1 dimensions, expected 2", "reshape"},
                 {"refused_empty.npy", TESS_E_FORMAT, "states 0 vectors", "npy"},
                 {"refused_records.npy", TESS_E_UNSUPPORTED, "records", "one field"}};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_vector_file *file = NULL;
        assert_refused(tess_vector_file_open(f->io, golden(cases[i].name), &file), cases[i].status,
                       cases[i].name, cases[i].piece, cases[i].fix);
    }
}

/* A file with this dictionary and one f32 behind it. */
static const char *put_npy(const fixture *f, const char *dictionary)
{
    char bytes[512] = "\x93NUMPY\x01";
    const size_t nbytes = strlen(dictionary);
    bytes[8] = (char)nbytes;
    memcpy(bytes + 10, dictionary, nbytes);
    return put_file(f, "x.npy", bytes, 10 + nbytes + 4);
}

static void test_open_npy_headers_by_their_length_only(void **state)
{
    static const char *const good[] = {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }",
        " { \"shape\" : ( 1 ,1 , ) ,'fortran_order':False,'descr':'<f4'}\n\n  ",
        "{'descr': '|b1', 'fortran_order': False, 'shape': (2, 2), }", /* a mask as NumPy has it */
    };
    static const char *const bad[] = {
        "",
        "{",
        "{}",
        "[1]",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)} x",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, -1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}",
        "{'descr': '<f4, 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), 'more': 1}"};
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    for (int i = 0; i < TESS_NELEM(good); i++) {
        assert_ok(tess_vector_file_open(f->io, put_npy(f, good[i]), &file));
        tess_vector_file_close(&file);
    }
    for (int i = 0; i < TESS_NELEM(bad); i++)
        assert_refused(tess_vector_file_open(f->io, put_npy(f, bad[i]), &file), TESS_E_FORMAT,
                       "x.npy");
}

static void test_open_at_checks_the_place(void **state)
{
    const fixture *f = *state;
    tess_vector_file *file = NULL;
    float x[2] = {0};
    tess_vector_layout l = {
        .format = "hdf5", .elem = TESS_VECTOR_F32, .vector_numel = 1, .dim = 2, .offset_nbytes = 4};
    const char *path = put_file(f, "x.any", fvecs_bytes, sizeof fvecs_bytes);
    assert_ok(tess_vector_file_open_at(f->io, path, &l, &file));
    assert_ok(tess_vector_file_read(file, 0, 1, x));
    assert_true(x[0] == 1.0F && x[1] == -2.0F);
    tess_vector_file_close(&file);
    l.offset_nbytes = 5;
    assert_refused(tess_vector_file_open_at(f->io, path, &l, &file), TESS_E_FORMAT,
                   "at byte 5 of 12");
    l = (tess_vector_layout){.elem = TESS_VECTOR_F32, .vector_numel = INT64_MAX, .dim = 2};
    assert_refused(tess_vector_file_open_at(f->io, path, &l, &file), TESS_E_FORMAT, "x.any");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_open_bytes_of_the_formats_are_read),
        format_test(test_npy_header_made_starts_data_at_128),
        format_test(test_read_golden_files_match_numpy),
        format_test(test_read_ranges_across_scratch_agree),
        format_test(test_read_behind_4_gib_finds_the_vector),
        format_test(test_open_damaged_records_are_refused),
        format_test(test_read_another_dimension_names_the_record),
        format_test(test_open_headers_that_do_not_fit_are_refused),
        format_test(test_open_unknown_suffix_lists_the_known),
        format_test(test_open_npy_of_other_kinds_names_the_fix),
        format_test(test_open_npy_headers_by_their_length_only),
        format_test(test_open_at_checks_the_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
