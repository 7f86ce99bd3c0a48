/** What the fuzz targets share: input bytes as a file that tess_io opens like any other. */
#pragma once

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/io.h"
#include "core/memory.h"

/** Entry of libFuzzer and of replay_main.c. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

/** Stop the process so that fuzzer and test runner both see a finding. */
static inline void fuzz_require(int is_true, const char *what)
{
    if (is_true)
        return;
    fprintf(stderr, "finding: %s; message: %s\n", what, tess_error_message());
    abort();
}

/** The table is kept: creating it is no part of what is tested. */
static inline tess_io *fuzz_io(void)
{
    static tess_io *io;
    if (io == NULL)
        fuzz_require(tess_io_create(0, &io) == TESS_OK, "no I/O table");
    return io;
}

/** A file in memory with these bytes; `path` opens it until fuzz_file_close. */
static inline int fuzz_file_open(const uint8_t *data, size_t nbytes, char path[64])
{
    const int fd = memfd_create("input", MFD_CLOEXEC);
    fuzz_require(fd >= 0 && write(fd, data, nbytes) == (ssize_t)nbytes, "no memory file");
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static inline void fuzz_file_close(int fd) { close(fd); }

/* The scratch folder of a target and the files it put there. */
static char fuzz_folder[64];
static char fuzz_names[8][48];

static inline void fuzz_folder_clean(void)
{
    char path[512];
    for (int i = 0; i < TESS_NELEM(fuzz_names) && fuzz_names[i][0] != '\0'; i++) {
        snprintf(path, sizeof path, "%s/%s", fuzz_folder, fuzz_names[i]);
        unlink(path);
    }
    rmdir(fuzz_folder);
}

/** Put a file into the target's scratch folder (in memory where the system has one). */
static inline void fuzz_put(const char *name, const void *bytes, size_t nbytes)
{
    char path[512];
    if (fuzz_folder[0] == '\0') {
        snprintf(fuzz_folder, sizeof fuzz_folder, "%s/tess_fuzz_XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        fuzz_require(mkdtemp(fuzz_folder) != NULL, "no scratch folder");
        atexit(fuzz_folder_clean);
    }
    int i = 0;
    while (i + 1 < TESS_NELEM(fuzz_names) && fuzz_names[i][0] != '\0' &&
           strcmp(fuzz_names[i], name) != 0)
        i++;
    snprintf(fuzz_names[i], sizeof fuzz_names[i], "%s", name);
    snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
    FILE *file = fopen(path, "wb");
    fuzz_require(file != NULL && fwrite(bytes, 1, nbytes, file) == nbytes, "no scratch file");
    fclose(file);
}

/** A verdict is success, or a recorded refusal in one line; and nothing stays allocated. */
static inline void fuzz_verdict(tess_status st, size_t before_nbytes)
{
    fuzz_require(tess_alloc_nbytes() == before_nbytes, "memory is still allocated");
    if (st == TESS_OK)
        return;
    fuzz_require(st == TESS_E_FORMAT || st == TESS_E_UNSUPPORTED || st == TESS_E_CONFIG,
                 "unexpected status");
    fuzz_require(tess_error_status() == st, "the record has another status");
    fuzz_require(tess_error_message()[0] != '\0', "a refusal without message");
    for (const char *p = tess_error_message(); *p != '\0'; p++)
        fuzz_require(*p != '\n', "a message of several lines");
}
