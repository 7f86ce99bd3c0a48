#include "core/memory_priv.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_int_fast64_t event_numel;
static atomic_size_t held_nbytes;
static atomic_size_t peak_nbytes;
static _Thread_local int freeze_depth;

/* [Note: header] Each block carries its size in front so that tess_free() can keep the balance. */
typedef struct block_header {
    size_t nbytes;
    size_t pad; /* keeps 16-byte alignment of the payload */
} block_header;

static void count_up(size_t nbytes)
{
    atomic_fetch_add(&event_numel, 1);
    const size_t now = atomic_fetch_add(&held_nbytes, nbytes) + nbytes;
    size_t peak = atomic_load(&peak_nbytes);
    while (now > peak && !atomic_compare_exchange_weak(&peak_nbytes, &peak, now)) {
    }
}

tess_status tess_alloc(size_t nbytes, void **out)
{
    TESS_CHECK(freeze_depth == 0, TESS_E_STATE, "allocation of %zu bytes inside a step", nbytes);
    block_header *h = NULL;
    if (nbytes < SIZE_MAX - sizeof *h)
        h = calloc(1, sizeof *h + (nbytes > 0 ? nbytes : 1));
    TESS_CHECK(h != NULL, TESS_E_MEMORY, "cannot allocate %zu bytes", nbytes);
    h->nbytes = nbytes;
    count_up(nbytes);
    *out = h + 1;
    return TESS_OK;
}

tess_status tess_alloc_array(int64_t numel, size_t elem_nbytes, void **out)
{
    size_t nbytes = 0;
    TESS_CHECK(numel >= 0 && !__builtin_mul_overflow((size_t)numel, elem_nbytes, &nbytes),
               TESS_E_RANGE, "size of an array of %lld elements overflows", (long long)numel);
    return tess_alloc(nbytes, out);
}

tess_status tess_realloc_array(int64_t old_numel, int64_t new_numel, size_t elem_nbytes,
                               void **inout)
{
    void *grown = NULL;
    TESS_TRY(tess_alloc_array(new_numel, elem_nbytes, &grown));
    const int64_t keep_numel = TESS_MIN(old_numel, new_numel);
    if (*inout != NULL && keep_numel > 0)
        memcpy(grown, *inout, (size_t)keep_numel * elem_nbytes);
    tess_free(*inout);
    *inout = grown;
    return TESS_OK;
}

tess_status tess_strndup(const char *text, size_t nbytes, char **out)
{
    void *copy = NULL;
    TESS_CHECK(nbytes < SIZE_MAX, TESS_E_RANGE, "string too long");
    TESS_TRY(tess_alloc(nbytes + 1, &copy));
    memcpy(copy, text, nbytes);
    *out = copy;
    return TESS_OK;
}

tess_status tess_strdup(const char *text, char **out)
{
    return tess_strndup(text, strlen(text), out);
}

tess_status tess_asprintf(char **out, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    TESS_CHECK(n >= 0, TESS_E_ARG, "text format failed");
    void *text = NULL;
    TESS_TRY(tess_alloc((size_t)n + 1, &text));
    va_start(args, fmt);
    vsnprintf(text, (size_t)n + 1, fmt, args);
    va_end(args);
    *out = text;
    return TESS_OK;
}

void tess_free(void *ptr)
{
    if (ptr == NULL)
        return;
    block_header *h = (block_header *)ptr - 1;
    atomic_fetch_sub(&held_nbytes, h->nbytes);
    free(h);
}

int64_t tess_alloc_events(void) { return atomic_load(&event_numel); }
size_t tess_alloc_nbytes(void) { return atomic_load(&held_nbytes); }
size_t tess_alloc_peak_nbytes(void) { return atomic_load(&peak_nbytes); }
void tess_alloc_freeze(void) { freeze_depth++; }
void tess_alloc_thaw(void) { freeze_depth--; }

void *memory_map(size_t nbytes)
{
    void *map = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    /* Large pages where the kernel gives them: dequantized panels are walked with long strides. */
    (void)madvise(map, nbytes, MADV_HUGEPAGE);
    return map;
}

tess_status memory_arena(const char *name, size_t nbytes, tess_arena **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_arena), &object));
    tess_arena *arena = object;
    snprintf(arena->name, sizeof arena->name, "%s", name);
    arena->nbytes = nbytes;
    arena->map_nbytes = nbytes > 0 ? nbytes : TESS_ARENA_ALIGN_NBYTES;
    atomic_fetch_add(&event_numel, 1);
    *out = arena;
    return TESS_OK;
}

tess_status tess_arena_create(const char *name, size_t nbytes, tess_arena **out)
{
    TESS_TRY(memory_arena(name, nbytes, out));
    (*out)->base = memory_map((*out)->map_nbytes);
    if ((*out)->base != NULL)
        return TESS_OK;
    tess_arena_destroy(out);
    return TESS_FAIL(TESS_E_MEMORY, "arena '%s': cannot map %zu bytes", name, nbytes);
}

void tess_arena_destroy(tess_arena **inout)
{
    tess_arena *arena = *inout;
    if (arena == NULL)
        return;
    if (arena->base != NULL && arena->device != NULL)
        arena->device->ops->release(arena->device, arena->space, arena->base, arena->map_nbytes);
    else if (arena->base != NULL)
        munmap(arena->base, arena->map_nbytes);
    tess_free(arena);
    *inout = NULL;
}

tess_status tess_arena_view(tess_arena *arena, size_t offset_nbytes, int64_t numel, tess_dtype dt,
                            tess_view *out)
{
    size_t nbytes = 0;
    TESS_TRY(tess_nbytes(dt, numel, &nbytes));
    TESS_CHECK(offset_nbytes % TESS_ARENA_ALIGN_NBYTES == 0 && offset_nbytes <= arena->nbytes &&
                   nbytes <= arena->nbytes - offset_nbytes,
               TESS_E_RANGE,
               "arena '%s' (%zu bytes): range of %zu bytes at %zu is outside or misaligned",
               arena->name, arena->nbytes, nbytes, offset_nbytes);
    *out = (tess_view){arena->base + offset_nbytes, numel, dt, arena->space};
    return TESS_OK;
}

size_t tess_arena_nbytes(const tess_arena *arena) { return arena->nbytes; }

size_t tess_peak_rss_nbytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    if (f == NULL)
        return 0;
    char line[256];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "VmHWM: %llu", &kib) == 1)
            break;
    fclose(f);
    return (size_t)kib * 1024;
}

/* A number from a one-line file; SIZE_MAX when there is none ("max", no such file). */
static size_t number_in(const char *path)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return SIZE_MAX;
    unsigned long long value = 0;
    const int n = fscanf(f, "%llu", &value);
    fclose(f);
    return n == 1 ? (size_t)value : SIZE_MAX;
}

static size_t available_nbytes(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (f == NULL)
        return SIZE_MAX;
    char line[256];
    unsigned long long kib = 0;
    bool is_found = false;
    while (!is_found && fgets(line, sizeof line, f) != NULL)
        is_found = sscanf(line, "MemAvailable: %llu", &kib) == 1;
    fclose(f);
    return is_found ? (size_t)kib * 1024 : SIZE_MAX;
}

/* cgroup v2: the limit of the own group and of each group above it. */
static size_t cgroup_left_nbytes(void)
{
    char line[512] = "", group[512] = "", path[640];
    size_t left = SIZE_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f == NULL)
        return left;
    while (group[0] == '\0' && fgets(line, sizeof line, f) != NULL)
        (void)sscanf(line, "0::%511s", group);
    fclose(f);
    for (char *end = group + strlen(group); group[0] != '\0';) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        const size_t limit = number_in(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", group);
        const size_t used = number_in(path);
        if (limit != SIZE_MAX && used != SIZE_MAX)
            left = TESS_MIN(left, limit > used ? limit - used : 0);
        while (end > group && *end != '/')
            end--;
        *end = '\0';
    }
    return left;
}

size_t tess_memory_free_nbytes(void) { return TESS_MIN(available_nbytes(), cgroup_left_nbytes()); }
