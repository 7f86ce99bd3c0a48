/** What the tests of src/format share: scratch files and the shape of a refusal. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/memory.h"

/* A call is refused: its status, and every given piece of text stands in the message. */
#define assert_refused(call, status, ...)                                                          \
    do {                                                                                           \
        const char *const pieces_[] = {__VA_ARGS__};                                               \
        tess_error_clear();                                                                        \
        const tess_status st_ = (call);                                                            \
        if (st_ != (status))                                                                       \
            print_error("message: %s\n", tess_error_message());                                    \
        assert_int_equal(st_, (status));                                                           \
        assert_int_equal(tess_error_status(), (status));                                           \
        assert_null(strchr(tess_error_message(), '\n'));                                           \
        for (int i_ = 0; i_ < TESS_NELEM(pieces_); i_++) {                                         \
            if (strstr(tess_error_message(), pieces_[i_]) == NULL)                                 \
                fail_msg("'%s' is not in: %s", pieces_[i_], tess_error_message());                 \
        }                                                                                          \
        tess_error_clear();                                                                        \
    } while (0)

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        tess_error_clear();                                                                        \
        const tess_status st_ = (call);                                                            \
        if (st_ != TESS_OK)                                                                        \
            print_error("message: %s\n", tess_error_message());                                    \
        assert_int_equal(st_, TESS_OK);                                                            \
    } while (0)

/** A scratch folder and an I/O table; and what was allocated before, to find leaks. */
typedef struct fixture {
    char dir[64];
    tess_io *io;
    size_t before_nbytes;
} fixture;

static inline int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/tess_format_XXXXXX");
    if (mkdtemp(f->dir) == NULL)
        return -1;
    tess_error_clear();
    f->before_nbytes = tess_alloc_nbytes();
    *state = f;
    return tess_io_create(0, &f->io) == TESS_OK ? 0 : -1;
}

static inline int teardown(void **state)
{
    fixture *f = *state;
    char **name = NULL;
    int64_t numel = 0;
    char path[512];
    if (tess_io_list(f->io, f->dir, &name, &numel) != TESS_OK)
        return -1;
    for (int64_t i = 0; i < numel; i++) {
        snprintf(path, sizeof path, "%s/%s", f->dir, name[i]);
        remove(path);
    }
    tess_io_list_free(&name, numel);
    rmdir(f->dir);
    tess_io_destroy(&f->io);
    const size_t held_nbytes = tess_alloc_nbytes();
    if (held_nbytes != f->before_nbytes)
        print_error("%zu bytes are still allocated\n", held_nbytes - f->before_nbytes);
    const int result = held_nbytes == f->before_nbytes ? 0 : -1;
    free(f);
    return result;
}

/** Path of a file in the scratch folder, in one of four rotating buffers. */
static inline const char *at(const fixture *f, const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", f->dir, name);
    return path[turn];
}

static inline const char *put_file(const fixture *f, const char *name, const void *bytes,
                                   size_t nbytes)
{
    const char *path = at(f, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, nbytes, file), nbytes);
    fclose(file);
    return path;
}

static inline const char *put_text(const fixture *f, const char *name, const char *text)
{
    return put_file(f, name, text, strlen(text));
}

/** A safetensors file with this header (padded to 8) and `data_nbytes` bytes 0, 1, 2, ... */
static inline const char *put_tensors(const fixture *f, const char *name, const char *header,
                                      size_t data_nbytes)
{
    char bytes[8192] = {0};
    const size_t header_nbytes = (strlen(header) + 7) / 8 * 8;
    assert_true(8 + header_nbytes + data_nbytes <= sizeof bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(header_nbytes >> (8 * i) & 0xff);
    memset(bytes + 8, ' ', header_nbytes);
    memcpy(bytes + 8, header, strlen(header));
    for (size_t i = 0; i < data_nbytes; i++)
        bytes[8 + header_nbytes + i] = (char)i;
    return put_file(f, name, bytes, 8 + header_nbytes + data_nbytes);
}

#define format_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
