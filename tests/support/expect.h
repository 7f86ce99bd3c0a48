/** What a program without cmocka expects: what is not true is told with its place, and counted. */
#pragma once

#include <stdio.h>

#include "core/status.h"

static int failures;

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            failures++;                                                                            \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, #cond,               \
                    tess_error_message());                                                         \
        }                                                                                          \
    } while (0)
