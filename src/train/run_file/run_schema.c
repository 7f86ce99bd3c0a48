/* The schema as a table, and what is looked up in it. */
#include "train/run_file/run_schema.h"

#include <stdio.h>
#include <string.h>

#include "train/run_file/run_file.h"
#include "train/run_file/run_priv.h"

#define IS_NUMERICS true
#define IS_FREE false

static const tess_run_key key_table[TESS_RUN_KEY_NUMEL] = {
#define X(section_, field, name_, c_type, kind_, words_, text_, lo, hi, class_, help_)             \
    [TESS_RUN_KEY_##section_##_##field] = {.path = #section_ "." name_,                            \
                                           .section = #section_,                                   \
                                           .name = name_,                                          \
                                           .kind = TESS_RUN_##kind_,                               \
                                           .is_numerics = IS_##class_,                             \
                                           .words = words_,                                        \
                                           .initial = text_,                                       \
                                           .least_int = (int64_t)(lo),                             \
                                           .most_int = (int64_t)(hi),                              \
                                           .least = (double)(lo),                                  \
                                           .most = (double)(hi),                                   \
                                           .help = help_,                                          \
                                           .offset_nbytes = offsetof(tess_run, section_.field)},
    TESS_RUN_KEY_LIST(X)
#undef X
};

static const char *const section_name[] = {
#define X(section, SECTION, help) #section,
    TESS_RUN_SECTION_LIST(X)
#undef X
};

const tess_run_key *tess_run_key_at(tess_run_key_idx key)
{
    return &key_table[(int)key < TESS_RUN_KEY_NUMEL ? (int)key : 0];
}

tess_run_key_idx tess_run_key_find(const char *path)
{
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++)
        if (strcmp(key_table[i].path, path) == 0)
            return (tess_run_key_idx)i;
    return TESS_RUN_KEY_NUMEL;
}

bool tess_run_section_is_known(const char *section)
{
    for (int i = 0; i < TESS_NELEM(section_name); i++)
        if (strcmp(section_name[i], section) == 0)
            return true;
    return false;
}

enum { WORD_MAX = 64 };

/* Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours. */
static int edit_distance(const char *a, const char *b)
{
    int row[3][WORD_MAX + 1];
    const int a_numel = (int)TESS_MIN(strlen(a), (size_t)WORD_MAX);
    const int b_numel = (int)TESS_MIN(strlen(b), (size_t)WORD_MAX);
    for (int j = 0; j <= b_numel; j++)
        row[0][j] = j;
    for (int i = 1; i <= a_numel; i++) {
        int *const now = row[i % 3];
        const int *const up = row[(i + 2) % 3];
        const int *const up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= b_numel; j++) {
            const int swap_cost = a[i - 1] != b[j - 1];
            int best = TESS_MIN(TESS_MIN(up[j] + 1, now[j - 1] + 1), up[j - 1] + swap_cost);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = TESS_MIN(best, up2[j - 2] + 1);
            now[j] = best;
        }
    }
    return row[a_numel % 3][b_numel];
}

const char *tess_run_key_nearest(const char *path)
{
    const char *dot = strrchr(path, '.');
    const char *leaf = dot == NULL ? path : dot + 1;
    const char *best = key_table[0].path;
    int least = INT32_MAX;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        /* A right name in a wrong section is one mistake, whatever the section is called. */
        const int by_leaf = edit_distance(leaf, key_table[i].name) + 1;
        const int distance = TESS_MIN(edit_distance(path, key_table[i].path), by_leaf);
        if (distance < least) {
            least = distance;
            best = key_table[i].path;
        }
    }
    return best;
}

bool tess_run_key_is_of_adapters(const tess_run_key *key)
{
    return strcmp(key->section, "lora") == 0 || strcmp(key->section, "adapter") == 0 ||
           strcmp(key->section, "base") == 0;
}

bool tess_run_key_applies(const tess_run *run, const tess_run_key *key)
{
    if (!run_family_reads(run, (tess_run_key_idx)(key - key_table)))
        return false;
    if (tess_run_is_kmeans(run))
        return true;
    if (run->train.mode != TESS_RUN_MODE_LORA && tess_run_key_is_of_adapters(key))
        return false;
    return run_train_applies(run, (tess_run_key_idx)(key - key_table));
}

void tess_run_where_text(const run_where *where, char text[TESS_RUN_PLACE_NBYTES])
{
    const tess_run_place *place = &where->place;
    if (place->argument_idx > 0)
        snprintf(text, TESS_RUN_PLACE_NBYTES, "command line, argument %d", place->argument_idx);
    else if (place->line > 0)
        snprintf(text, TESS_RUN_PLACE_NBYTES, "%.400s:%d:%d", where->source_name, place->line,
                 place->column);
    else
        snprintf(text, TESS_RUN_PLACE_NBYTES, "%.400s", where->source_name);
}

run_where tess_run_where_of(const run_where *base, int line, int column)
{
    run_where where = *base;
    where.place.is_given = true;
    if (where.place.argument_idx == 0) {
        where.place.line = line;
        where.place.column = column;
    }
    return where;
}

void tess_run_place_text(const tess_run *run, tess_run_key_idx key,
                         char text[TESS_RUN_PLACE_NBYTES])
{
    const run_where where = {run->source_name, run->place[key]};
    tess_run_where_text(&where, text);
    const size_t used = strlen(text);
    snprintf(text + used, TESS_RUN_PLACE_NBYTES - used, ": %s", tess_run_key_at(key)->path);
}
