/** Barriers that stand in the sources of kernels, and those that a test program has passed. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/emulation/emulation.h"

static inline bool barriers_know(const char *source, int line)
{
    for (int b = 0; b < tess_emulation_barrier_numel(); b++) {
        const tess_emulation_barrier barrier = tess_emulation_barrier_get(b);
        const char *name = strrchr(barrier.file, '/');
        if (barrier.line == line && strcmp(name != NULL ? name + 1 : barrier.file, source) == 0)
            return true;
    }
    return false;
}

/** The program has passed every barrier of these files of kernels/cuda; NULL after the last.
 * emulation.test_barriers sees to it that every file with barriers is in such a list. */
static inline void barriers_check_reach(const char *const *sources)
{
    for (; *sources != NULL; sources++) {
        char path[1024], text[512];
        snprintf(path, sizeof path, "%s/kernels/cuda/%s", TESS_TEST_SOURCE_DIR, *sources);
        FILE *f = fopen(path, "r");
        if (f == NULL)
            fail_msg("cannot read %s", path);
        for (int line = 1; fgets(text, sizeof text, f) != NULL; line++)
            if ((strstr(text, "__syncthreads()") != NULL || strstr(text, "__syncwarp(") != NULL) &&
                !barriers_know(*sources, line))
                fail_msg("%s:%d: no case passes this barrier", *sources, line);
        fclose(f);
    }
}
