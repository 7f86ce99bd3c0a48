#include "support/disk_model.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/digest.h"
#include "core/memory.h"

enum { PAGE_NBYTES = 4096, NAME_NBYTES = 128, PATH_NBYTES = 1024, DEPTH_MAX = 8, NO_NODE = -1 };

/* One name in a folder: where it leads on disk, and the changes since. */
typedef struct disk_name {
    char text[NAME_NBYTES];
    int durable;
    int *changes; /* [change_numel] node, NO_NODE: removed */
    int64_t change_numel, change_room;
} disk_name;

typedef struct disk_node {
    bool is_dir;
    disk_name *names;
    int64_t name_numel, name_room;
    uint8_t *bytes; /* [nbytes] on disk */
    int64_t nbytes;
    const disk_event **changes; /* [change_numel] PWRITE and FALLOCATE that are not on disk */
    int64_t change_numel, change_room;
} disk_node;

struct disk {
    disk_node *nodes; /* the first is the root */
    int64_t node_numel, node_room;
};

/* Room for one more. */
static tess_status grow(int64_t numel, int64_t *room, size_t elem_nbytes, void **list)
{
    if (numel < *room)
        return TESS_OK;
    TESS_TRY(tess_realloc_array(*room, *room * 2 + 8, elem_nbytes, list));
    *room = *room * 2 + 8;
    return TESS_OK;
}

/* ---- changes that are known ---- */

static tess_status add_node(disk *d, bool is_dir, int *node)
{
    void *list = d->nodes;
    TESS_TRY(grow(d->node_numel, &d->node_room, sizeof *d->nodes, &list));
    d->nodes = list;
    *node = (int)d->node_numel++;
    d->nodes[*node] = (disk_node){.is_dir = is_dir};
    return TESS_OK;
}

tess_status disk_create(disk **out)
{
    void *object = NULL;
    int root = 0;
    TESS_TRY(tess_alloc(sizeof(disk), &object));
    *out = object;
    return add_node(*out, true, &root);
}

void disk_destroy(disk **d)
{
    if (*d == NULL)
        return;
    for (int64_t i = 0; i < (*d)->node_numel; i++) {
        disk_node *node = &(*d)->nodes[i];
        for (int64_t k = 0; k < node->name_numel; k++)
            tess_free(node->names[k].changes);
        tess_free(node->names);
        tess_free(node->bytes);
        tess_free(node->changes);
    }
    tess_free((*d)->nodes);
    tess_free(*d);
    *d = NULL;
}

static int now_at(const disk_name *n)
{
    return n->change_numel > 0 ? n->changes[n->change_numel - 1] : n->durable;
}

static disk_name *find_name(const disk_node *dir, const char *text, size_t nbytes)
{
    for (int64_t i = 0; i < dir->name_numel; i++)
        if (strlen(dir->names[i].text) == nbytes && memcmp(dir->names[i].text, text, nbytes) == 0)
            return &dir->names[i];
    return NULL;
}

/* The node behind a path, NO_NODE when there is none. */
static int find_node(const disk *d, const char *path, size_t path_nbytes)
{
    int at = 0;
    size_t done = 0;
    while (at != NO_NODE && done < path_nbytes) {
        const char *slash = memchr(path + done, '/', path_nbytes - done);
        const size_t end = slash != NULL ? (size_t)(slash - path) : path_nbytes;
        const disk_name *n = find_name(&d->nodes[at], path + done, end - done);
        at = n != NULL ? now_at(n) : NO_NODE;
        done = end + 1;
    }
    return at;
}

static tess_status change_name(disk *d, const char *path, int node)
{
    const char *slash = strrchr(path, '/');
    const char *text = slash != NULL ? slash + 1 : path;
    const int parent = find_node(d, path, slash != NULL ? (size_t)(slash - path) : 0);
    TESS_CHECK(parent != NO_NODE && strlen(text) < NAME_NBYTES, TESS_E_STATE,
               "simulated disk: no folder for '%s'", path);
    disk_node *dir = &d->nodes[parent];
    disk_name *n = find_name(dir, text, strlen(text));
    if (n == NULL) {
        void *list = dir->names;
        TESS_TRY(grow(dir->name_numel, &dir->name_room, sizeof *dir->names, &list));
        dir->names = list;
        n = &dir->names[dir->name_numel++];
        *n = (disk_name){.durable = NO_NODE};
        snprintf(n->text, sizeof n->text, "%s", text);
    }
    void *list = n->changes;
    TESS_TRY(grow(n->change_numel, &n->change_room, sizeof *n->changes, &list));
    n->changes = list;
    n->changes[n->change_numel++] = node;
    return TESS_OK;
}

static tess_status change_bytes(disk_node *node, const disk_event *e)
{
    void *list = node->changes;
    TESS_TRY(grow(node->change_numel, &node->change_room, sizeof *node->changes, &list));
    node->changes = list;
    node->changes[node->change_numel++] = e;
    return TESS_OK;
}

static int64_t end_of(const disk_event *e) { return e->offset_nbytes + e->nbytes; }

static tess_status make_durable(disk_node *node)
{
    for (int64_t i = 0; i < node->name_numel; i++) {
        node->names[i].durable = now_at(&node->names[i]);
        node->names[i].change_numel = 0;
    }
    int64_t nbytes = node->nbytes;
    for (int64_t i = 0; i < node->change_numel; i++)
        nbytes = TESS_MAX(nbytes, end_of(node->changes[i]));
    void *bytes = node->bytes;
    if (nbytes > node->nbytes)
        TESS_TRY(tess_realloc_array(node->nbytes, nbytes, 1, &bytes));
    node->bytes = bytes;
    node->nbytes = nbytes;
    for (int64_t i = 0; i < node->change_numel; i++) {
        const disk_event *e = node->changes[i];
        if (e->op == TESS_IO_PWRITE)
            memcpy(node->bytes + e->offset_nbytes, e->bytes, (size_t)e->nbytes);
    }
    node->change_numel = 0;
    return TESS_OK;
}

static tess_status apply_to_name(disk *d, const disk_event *e, int at)
{
    int node = at;
    if (e->op == TESS_IO_LINK || e->op == TESS_IO_RENAME) {
        node = find_node(d, e->from, strlen(e->from));
        TESS_CHECK(node != NO_NODE, TESS_E_STATE, "simulated disk: '%s' is not there", e->from);
        TESS_TRY(change_name(d, e->path, node));
        return e->op == TESS_IO_RENAME ? change_name(d, e->from, NO_NODE) : TESS_OK;
    }
    if (e->op == TESS_IO_OPEN && at != NO_NODE)
        return TESS_OK;
    TESS_TRY(add_node(d, e->op == TESS_IO_MKDIR, &node));
    return change_name(d, e->path, node);
}

tess_status disk_apply(disk *d, const disk_event *e)
{
    if (e->op == TESS_IO_OP_NUMEL)
        return TESS_OK;
    const int at = find_node(d, e->path, strlen(e->path));
    if (e->op == TESS_IO_OPEN || e->op == TESS_IO_MKDIR || e->op == TESS_IO_LINK ||
        e->op == TESS_IO_RENAME)
        return apply_to_name(d, e, at);
    TESS_CHECK(at != NO_NODE, TESS_E_STATE, "simulated disk: '%s' is not there", e->path);
    if (e->op == TESS_IO_PWRITE || e->op == TESS_IO_FALLOCATE)
        return change_bytes(&d->nodes[at], e);
    if (e->op == TESS_IO_FSYNC)
        return make_durable(&d->nodes[at]);
    return change_name(d, e->path, NO_NODE);
}

/* ---- what a power cut leaves ---- */

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static bool is_there(disk_choice c, int percent, int64_t node, int64_t place, int64_t change)
{
    const uint64_t key = mix(mix(mix(c.seed) ^ (uint64_t)node) ^ (uint64_t)place);
    return (int)(mix(key ^ (uint64_t)change) % 100) < percent;
}

/* The last change that came through decides: a name was, at some instant, where it led then. */
static int left_at(const disk_name *n, disk_choice c, int64_t dir, int64_t place)
{
    for (int64_t k = n->change_numel; k-- > 0;) {
        const int percent = n->changes[k] == NO_NODE ? c.remove_percent : c.add_percent;
        if (is_there(c, percent, dir, place, k))
            return n->changes[k];
    }
    return n->durable;
}

static int64_t left_nbytes(const disk_node *node, disk_choice c, int64_t idx)
{
    int64_t nbytes = node->nbytes, left = nbytes;
    for (int64_t k = 0; k < node->change_numel; k++) {
        nbytes = TESS_MAX(nbytes, end_of(node->changes[k]));
        if (is_there(c, c.data_percent, idx, -1, k))
            left = nbytes;
    }
    return left;
}

static bool is_touching(const disk_event *e, int64_t lo, int64_t hi)
{
    return e->op == TESS_IO_PWRITE && e->offset_nbytes < hi && end_of(e) > lo;
}

/* One page as it was written back last: with every change up to some one. */
static void leave_page(const disk_node *node, disk_choice c, int64_t idx, int64_t lo, int64_t hi,
                       uint8_t *bytes)
{
    int64_t last = node->change_numel;
    while (last-- > 0)
        if (is_touching(node->changes[last], lo, hi) &&
            is_there(c, c.data_percent, idx, lo / PAGE_NBYTES, last))
            break;
    for (int64_t k = 0; k <= last; k++) {
        const disk_event *e = node->changes[k];
        if (!is_touching(e, lo, hi))
            continue;
        const int64_t from = TESS_MAX(lo, e->offset_nbytes), to = TESS_MIN(hi, end_of(e));
        memcpy(bytes + from, e->bytes + (from - e->offset_nbytes), (size_t)(to - from));
    }
}

static tess_status leave_file(const disk_node *node, disk_choice c, int64_t idx, uint8_t **out,
                              int64_t *out_nbytes)
{
    void *bytes = NULL;
    const int64_t nbytes = left_nbytes(node, c, idx);
    TESS_TRY(tess_alloc_array(nbytes, 1, &bytes));
    if (node->nbytes > 0)
        memcpy(bytes, node->bytes, (size_t)TESS_MIN(nbytes, node->nbytes));
    for (int64_t lo = 0; lo < nbytes; lo += PAGE_NBYTES)
        leave_page(node, c, idx, lo, TESS_MIN(lo + PAGE_NBYTES, nbytes), bytes);
    *out = bytes;
    *out_nbytes = nbytes;
    return TESS_OK;
}

/* `bytes` NULL: a folder. Folders come before what they hold. */
typedef tess_status (*leave_fn)(void *arg, const char *path, const uint8_t *bytes, int64_t nbytes);

typedef struct walk {
    const disk *d;
    disk_choice choice;
    leave_fn fn;
    void *arg;
} walk;

static tess_status walk_node(const walk *w, int64_t idx, const char *path, int depth)
{
    const disk_node *node = &w->d->nodes[idx];
    TESS_CHECK(depth < DEPTH_MAX, TESS_E_STATE, "simulated disk: '%s' is too deep", path);
    if (!node->is_dir) {
        uint8_t *bytes = NULL;
        int64_t nbytes = 0;
        TESS_TRY(leave_file(node, w->choice, idx, &bytes, &nbytes));
        const tess_status st = w->fn(w->arg, path, bytes, nbytes);
        tess_free(bytes);
        return st;
    }
    TESS_TRY(w->fn(w->arg, path, NULL, 0));
    for (int64_t i = 0; i < node->name_numel; i++) {
        char below[PATH_NBYTES];
        const int at = left_at(&node->names[i], w->choice, idx, i);
        if (at == NO_NODE)
            continue;
        const int n = snprintf(below, sizeof below, "%s/%s", path, node->names[i].text);
        TESS_CHECK(n < (int)sizeof below, TESS_E_STATE, "simulated disk: path too long");
        TESS_TRY(walk_node(w, at, below, depth + 1));
    }
    return TESS_OK;
}

static uint64_t short_digest(const void *data, size_t nbytes)
{
    const tess_xxh128 x = tess_xxh128_of(data, nbytes);
    uint64_t digest = 0;
    memcpy(&digest, x.byte, sizeof digest);
    return digest;
}

static tess_status take_digest(void *arg, const char *path, const uint8_t *bytes, int64_t nbytes)
{
    uint64_t *digest = arg;
    *digest = mix(*digest ^ short_digest(path, strlen(path)));
    *digest = mix(*digest ^ (bytes != NULL ? short_digest(bytes, (size_t)nbytes) : 1));
    return TESS_OK;
}

tess_status disk_state_digest(const disk *d, disk_choice choice, uint64_t *digest)
{
    const walk w = {d, choice, take_digest, digest};
    *digest = 0;
    return walk_node(&w, 0, "", 0);
}

static tess_status write_one(void *arg, const char *path, const uint8_t *bytes, int64_t nbytes)
{
    (void)arg;
    if (bytes == NULL) {
        TESS_CHECK(mkdir(path, 0755) == 0, TESS_E_IO, "cannot make folder '%s'", path);
        return TESS_OK;
    }
    FILE *file = fopen(path, "wb");
    TESS_CHECK(file != NULL, TESS_E_IO, "cannot make '%s'", path);
    const bool is_written = fwrite(bytes, 1, (size_t)nbytes, file) == (size_t)nbytes;
    const bool is_closed = fclose(file) == 0;
    TESS_CHECK(is_written && is_closed, TESS_E_IO, "cannot write '%s'", path);
    return TESS_OK;
}

tess_status disk_state_write(const disk *d, disk_choice choice, const char *dir)
{
    const walk w = {d, choice, write_one, NULL};
    return walk_node(&w, 0, dir, 0);
}
