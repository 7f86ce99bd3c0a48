#include "tests/support/golden.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

enum { GOLDEN_TENSOR_MAX = 192, GOLDEN_KEY_MAX = 64, GOLDEN_NAME_NBYTES = 160 };

typedef struct golden_tensor {
    char name[GOLDEN_NAME_NBYTES];
    tess_dtype dt;
    int64_t numel;
    size_t offset_nbytes;
} golden_tensor;

struct tess_golden {
    char *bytes;
    size_t nbytes;
    const char *data;
    int tensor_numel, key_numel;
    golden_tensor tensor[GOLDEN_TENSOR_MAX];
    char key[GOLDEN_KEY_MAX][32];
    char text[GOLDEN_KEY_MAX][512];
};

static tess_status load(const char *path, tess_golden *g)
{
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", TESS_TEST_SOURCE_DIR, path);
    FILE *file = fopen(full, "rb");
    TESS_CHECK(file != NULL, TESS_E_IO, "%s: cannot be opened", full);
    tess_status st = TESS_OK;
    void *bytes = NULL;
    fseek(file, 0, SEEK_END);
    const long nbytes = ftell(file);
    rewind(file);
    TESS_TRY_GOTO(st, done, tess_alloc(nbytes > 0 ? (size_t)nbytes + 1 : 1, &bytes));
    g->bytes = bytes;
    g->nbytes = nbytes > 0 ? (size_t)nbytes : 0;
    if (fread(g->bytes, 1, g->nbytes, file) != g->nbytes)
        st = TESS_FAIL(TESS_E_IO, "%s: short read", full);
done:
    fclose(file);
    return st;
}

static tess_status parse_line(tess_golden *g, const char *line)
{
    golden_tensor t = {0};
    char dt[8];
    if (sscanf(line, "tensor %159s %7s %" SCNd64 " %zu", t.name, dt, &t.numel, &t.offset_nbytes) ==
        4) {
        TESS_CHECK(g->tensor_numel < GOLDEN_TENSOR_MAX, TESS_E_FORMAT, "golden: too many tensors");
        TESS_TRY(tess_dtype_parse(dt, &t.dt));
        g->tensor[g->tensor_numel++] = t;
        return TESS_OK;
    }
    TESS_CHECK(g->key_numel < GOLDEN_KEY_MAX, TESS_E_FORMAT, "golden: too many keys");
    const int found = sscanf(line, "%31s %511[^\n]", g->key[g->key_numel], g->text[g->key_numel]);
    TESS_CHECK(found == 2, TESS_E_FORMAT, "golden: line '%s' is no 'key value'", line);
    g->key_numel++;
    return TESS_OK;
}

static tess_status parse(tess_golden *g, const char *path)
{
    char *line = g->bytes;
    TESS_CHECK(strncmp(line, "tess-golden 1\n", 14) == 0, TESS_E_FORMAT, "%s: no golden file",
               path);
    line += 14;
    for (;;) {
        char *end = strchr(line, '\n');
        TESS_CHECK(end != NULL, TESS_E_FORMAT, "%s: header has no end", path);
        *end = '\0';
        if (strcmp(line, "end") == 0) {
            line = end + 1;
            break;
        }
        TESS_TRY(parse_line(g, line));
        line = end + 1;
    }
    const size_t header_nbytes = (size_t)(line - g->bytes);
    const size_t data_nbytes = (header_nbytes + 7) / 8 * 8;
    g->data = g->bytes + data_nbytes;
    for (int i = 0; i < g->tensor_numel; i++) {
        size_t nbytes = 0;
        TESS_TRY(tess_nbytes(g->tensor[i].dt, g->tensor[i].numel, &nbytes));
        TESS_CHECK(data_nbytes + g->tensor[i].offset_nbytes + nbytes <= g->nbytes, TESS_E_FORMAT,
                   "%s: tensor '%s' lies past the end", path, g->tensor[i].name);
    }
    return TESS_OK;
}

tess_status tess_golden_open(const char *path, tess_golden **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_golden), &memory));
    tess_golden *g = memory;
    tess_status st = load(path, g);
    if (st == TESS_OK)
        st = parse(g, path);
    if (st != TESS_OK)
        tess_golden_close(&g);
    else
        *out = g;
    return st;
}

void tess_golden_close(tess_golden **golden)
{
    if (*golden == NULL)
        return;
    tess_free((*golden)->bytes);
    tess_free(*golden);
    *golden = NULL;
}

const char *tess_golden_text(const tess_golden *golden, const char *key)
{
    for (int i = 0; i < golden->key_numel; i++)
        if (strcmp(golden->key[i], key) == 0)
            return golden->text[i];
    return NULL;
}

double tess_golden_number(const tess_golden *golden, const char *key)
{
    const char *text = tess_golden_text(golden, key);
    return text == NULL ? 0.0 : strtod(text, NULL);
}

const void *tess_golden_tensor(const tess_golden *golden, const char *name, tess_dtype dt,
                               int64_t *numel)
{
    for (int i = 0; i < golden->tensor_numel; i++) {
        const golden_tensor *t = &golden->tensor[i];
        if (t->dt != dt || strcmp(t->name, name) != 0)
            continue;
        if (numel != NULL)
            *numel = t->numel;
        return golden->data + t->offset_nbytes;
    }
    return NULL;
}

const char *tess_golden_tensor_name(const tess_golden *golden, int idx)
{
    return idx < golden->tensor_numel ? golden->tensor[idx].name : NULL;
}
