/** A call that has to succeed, in cmocka's tests: where it does not, its message is the failure. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/status.h"

static inline void must(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s", tess_error_message());
}
