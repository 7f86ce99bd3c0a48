#include "core/digest.h"

#include <openssl/evp.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/memory.h"

tess_xxh128 tess_xxh128_of(const void *data, size_t nbytes)
{
    XXH128_canonical_t canonical;
    tess_xxh128 out;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, nbytes));
    memcpy(out.byte, canonical.digest, sizeof out.byte);
    return out;
}

struct tess_sha256_state {
    EVP_MD_CTX *ctx;
};

static tess_status sha_start(tess_sha256_state *state)
{
    TESS_CHECK(EVP_DigestInit_ex(state->ctx, EVP_sha256(), NULL) == 1, TESS_E_STATE,
               "libcrypto refused to start SHA-256");
    return TESS_OK;
}

tess_status tess_sha256_create(tess_sha256_state **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_sha256_state), &object));
    tess_sha256_state *state = object;
    state->ctx = EVP_MD_CTX_new();
    tess_status st = state->ctx != NULL
                         ? sha_start(state)
                         : TESS_FAIL(TESS_E_MEMORY, "libcrypto cannot allocate a digest");
    if (st != TESS_OK) {
        tess_sha256_destroy(&state);
        return st;
    }
    *out = state;
    return TESS_OK;
}

tess_status tess_sha256_update(tess_sha256_state *state, const void *data, size_t nbytes)
{
    TESS_CHECK(EVP_DigestUpdate(state->ctx, data, nbytes) == 1, TESS_E_STATE,
               "SHA-256 update failed");
    return TESS_OK;
}

tess_status tess_sha256_final(tess_sha256_state *state, tess_sha256 *out)
{
    unsigned nbytes = 0;
    TESS_CHECK(EVP_DigestFinal_ex(state->ctx, out->byte, &nbytes) == 1 &&
                   nbytes == sizeof out->byte,
               TESS_E_STATE, "SHA-256 final failed");
    return sha_start(state);
}

void tess_sha256_destroy(tess_sha256_state **state)
{
    if (*state == NULL)
        return;
    EVP_MD_CTX_free((*state)->ctx);
    tess_free(*state);
    *state = NULL;
}

tess_status tess_sha256_of(const void *data, size_t nbytes, tess_sha256 *out)
{
    unsigned out_nbytes = 0;
    TESS_CHECK(EVP_Digest(data, nbytes, out->byte, &out_nbytes, EVP_sha256(), NULL) == 1,
               TESS_E_STATE, "SHA-256 failed");
    return TESS_OK;
}

bool tess_xxh128_is_equal(const tess_xxh128 *a, const tess_xxh128 *b)
{
    return memcmp(a->byte, b->byte, sizeof a->byte) == 0;
}

bool tess_sha256_is_equal(const tess_sha256 *a, const tess_sha256 *b)
{
    return memcmp(a->byte, b->byte, sizeof a->byte) == 0;
}

void tess_hex(const void *data, size_t nbytes, char *hex)
{
    static const char digit[] = "0123456789abcdef";
    const uint8_t *byte = data;
    for (size_t i = 0; i < nbytes; i++) {
        hex[2 * i] = digit[byte[i] >> 4];
        hex[2 * i + 1] = digit[byte[i] & 15];
    }
    hex[2 * nbytes] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

tess_status tess_unhex(const char *hex, size_t nbytes, void *out)
{
    TESS_CHECK(strlen(hex) == 2 * nbytes, TESS_E_ARG, "expected %zu hex digits, found %zu",
               2 * nbytes, strlen(hex));
    uint8_t *byte = out;
    for (size_t i = 0; i < nbytes; i++) {
        const int hi = hex_value(hex[2 * i]), lo = hex_value(hex[2 * i + 1]);
        TESS_CHECK(hi >= 0 && lo >= 0, TESS_E_ARG, "'%.2s' is no pair of lower-case hex digits",
                   hex + 2 * i);
        byte[i] = (uint8_t)(hi << 4 | lo);
    }
    return TESS_OK;
}

/* Finalizer of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

typedef struct lanes {
    uint64_t a, b;
} lanes;

/* One loop a width, so that it is made of vectors; integers, so it gives the same on all of them.
 */
#define HASH_LOOP(type)                                                                            \
    for (int64_t i = 0; i < numel; i++) {                                                          \
        type bits;                                                                                 \
        memcpy(&bits, p + (size_t)i * sizeof bits, sizeof bits);                                   \
        const uint64_t place = (uint64_t)(first_idx + i) * UINT64_C(0x9e3779b97f4a7c15);           \
        a += mix64(bits ^ mix64(place + UINT64_C(0x243f6a8885a308d3)));                            \
        b += mix64(bits + mix64(place ^ UINT64_C(0x13198a2e03707344)));                            \
    }

static inline __attribute__((always_inline)) lanes hash_loops(const char *p, int64_t numel,
                                                              size_t elem_nbytes, int64_t first_idx)
{
    uint64_t a = 0, b = 0;
    if (elem_nbytes == 1)
        HASH_LOOP(uint8_t)
    else if (elem_nbytes == 2)
        HASH_LOOP(uint16_t)
    else if (elem_nbytes == 4)
        HASH_LOOP(uint32_t)
    else
        HASH_LOOP(uint64_t)
    return (lanes){a, b};
}

static lanes hash_plain(const char *p, int64_t numel, size_t elem_nbytes, int64_t first_idx)
{
    return hash_loops(p, numel, elem_nbytes, first_idx);
}

#if defined(__x86_64__)
/* Here the compiler has a vector product of 64 bits. */
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) static lanes
hash_avx512(const char *p, int64_t numel, size_t elem_nbytes, int64_t first_idx)
{
    return hash_loops(p, numel, elem_nbytes, first_idx);
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
#else
#define hash_avx512 hash_plain
static bool has_avx512(void) { return false; }
#endif

void tess_logical_hash_add(tess_logical_hash *h, const void *data, int64_t numel,
                           size_t elem_nbytes, int64_t first_idx)
{
    const lanes sums = has_avx512() ? hash_avx512(data, numel, elem_nbytes, first_idx)
                                    : hash_plain(data, numel, elem_nbytes, first_idx);
    h->lane[0] += sums.a;
    h->lane[1] += sums.b;
}
