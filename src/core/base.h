/** Compiler attributes and language glue shared by every header. */
#pragma once

#ifdef __cplusplus
#define TESS_BEGIN_DECLS extern "C" {
#define TESS_END_DECLS }
#else
#define TESS_BEGIN_DECLS
#define TESS_END_DECLS
#endif

#define TESS_MUST_CHECK __attribute__((warn_unused_result))
#define TESS_PRINTF(fmt_idx, args_idx) __attribute__((format(printf, fmt_idx, args_idx)))
#define TESS_EXPORT __attribute__((visibility("default")))
#define TESS_LIKELY(x) __builtin_expect(!!(x), 1)
#define TESS_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Functions that kernels of a device call too. */
#ifdef __CUDACC__
#define TESS_HD __host__ __device__
#else
#define TESS_HD
#endif

#define TESS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TESS_MAX(a, b) ((a) > (b) ? (a) : (b))
#define TESS_NELEM(array) ((int)(sizeof(array) / sizeof((array)[0])))
