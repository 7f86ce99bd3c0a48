/* What a run is written as: resolved YAML, numerics listing, reference of all keys. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_file.h"
#include "train/run_file/run_priv.h"

static tess_status give(tess_strbuf *buf, tess_status st, char **text, size_t *nbytes)
{
    if (st == TESS_OK)
        st = tess_strbuf_add(buf, "%s", "");
    if (st != TESS_OK) {
        tess_strbuf_fini(buf);
        return st;
    }
    *text = buf->text;
    *nbytes = buf->nbytes;
    return TESS_OK;
}

static tess_status write_yaml(const tess_run *run, tess_strbuf *out)
{
    const char *section = "";
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        if (!tess_run_key_applies(run, key) || !tess_run_value_is_set(run, key))
            continue;
        if (strcmp(section, key->section) != 0)
            TESS_TRY(tess_strbuf_add(out, "%s:\n", key->section));
        section = key->section;
        TESS_TRY(tess_strbuf_add(out, "  %s: ", key->name));
        TESS_TRY(tess_run_value_write(run, key, out));
        TESS_TRY(tess_strbuf_add(out, "\n"));
    }
    return TESS_OK;
}

tess_status tess_run_yaml(const tess_run *run, char **text, size_t *nbytes)
{
    tess_strbuf buf = {0};
    return give(&buf, write_yaml(run, &buf), text, nbytes);
}

/* Order by path, so that a listing does not change when the schema is rearranged. */
static void sorted_keys(const tess_run_key *sorted[TESS_RUN_KEY_NUMEL])
{
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        int at = i;
        for (; at > 0 && strcmp(sorted[at - 1]->path, key->path) > 0; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = key;
    }
}

static tess_status write_numerics(const tess_run *run, tess_strbuf *out)
{
    const tess_run_key *sorted[TESS_RUN_KEY_NUMEL];
    sorted_keys(sorted);
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = sorted[i];
        const tess_run_key_idx idx = (tess_run_key_idx)(key - tess_run_key_at((tess_run_key_idx)0));
        if (!(key->is_numerics || run_train_decides(run, idx)) || !tess_run_key_applies(run, key))
            continue;
        TESS_TRY(tess_strbuf_add(out, "%s=", key->path));
        TESS_TRY(tess_run_value_write(run, key, out));
        TESS_TRY(tess_strbuf_add(out, "\n"));
    }
    return TESS_OK;
}

tess_status tess_run_numerics(const tess_run *run, char **text, size_t *nbytes)
{
    tess_strbuf buf = {0};
    return give(&buf, write_numerics(run, &buf), text, nbytes);
}

/* One line of a listing; `key_nbytes` is where '=' stands. */
typedef struct listing_line {
    const char *text;
    int nbytes;
    int key_nbytes;
} listing_line;

static listing_line line_at(const char *text)
{
    const size_t nbytes = strcspn(text, "\n");
    const size_t key_nbytes = strcspn(text, "=\n");
    return (listing_line){text, (int)nbytes, (int)key_nbytes};
}

static const char *after(const char *text, const listing_line *line)
{
    return text + line->nbytes + (text[line->nbytes] == '\n');
}

/* Order of two keys; a listing that has ended comes last. */
static int line_compare(const listing_line *a, const listing_line *b)
{
    if (a->nbytes == 0 || b->nbytes == 0)
        return (a->nbytes == 0) - (b->nbytes == 0);
    const int order = strncmp(a->text, b->text, (size_t)TESS_MIN(a->key_nbytes, b->key_nbytes));
    return order != 0 ? order : a->key_nbytes - b->key_nbytes;
}

static tess_status write_change(const listing_line *a, const listing_line *b, tess_strbuf *out)
{
    const listing_line *named = a != NULL ? a : b;
    TESS_TRY(tess_strbuf_add(out, "%s%.*s: ", out->nbytes > 0 ? ", " : "", named->key_nbytes,
                             named->text));
    const listing_line *side[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        const listing_line *line = side[i];
        const int skip = line == NULL ? 0 : TESS_MIN(line->key_nbytes + 1, line->nbytes);
        const int rest = line == NULL ? 0 : line->nbytes - skip;
        if (rest == 0)
            TESS_TRY(tess_strbuf_add(out, "%s", line == NULL ? "absent" : "unset"));
        else
            TESS_TRY(tess_strbuf_add(out, "%.*s", rest, line->text + skip));
        if (i == 0)
            TESS_TRY(tess_strbuf_add(out, " -> "));
    }
    return TESS_OK;
}

/* Whether a line that the stored listing lacks says what was so before there was such a key. */
static tess_status is_default(const listing_line *line, bool *out)
{
    char path[64];
    tess_strbuf value = {0};
    snprintf(path, sizeof path, "%.*s", TESS_MIN(line->key_nbytes, (int)sizeof path - 1),
             line->text);
    const tess_run_key_idx idx = tess_run_key_find(path);
    *out = false;
    if (idx == TESS_RUN_KEY_NUMEL || line->key_nbytes == line->nbytes)
        return TESS_OK;
    const tess_status st = tess_run_default_write(tess_run_key_at(idx), &value);
    const char *stated = line->text + line->key_nbytes + 1;
    const size_t stated_nbytes = (size_t)(line->nbytes - line->key_nbytes - 1);
    *out = st == TESS_OK && value.nbytes == stated_nbytes &&
           memcmp(value.text, stated, stated_nbytes) == 0;
    tess_strbuf_fini(&value);
    return st;
}

static tess_status write_diff(const char *a, const char *b, tess_strbuf *out, int64_t *numel)
{
    while (*a != '\0' || *b != '\0') {
        const listing_line left = line_at(a);
        const listing_line right = line_at(b);
        const int order = line_compare(&left, &right);
        bool is_equal = order == 0 && left.nbytes == right.nbytes &&
                        memcmp(left.text, right.text, (size_t)left.nbytes) == 0;
        if (order > 0)
            TESS_TRY(is_default(&right, &is_equal));
        if (!is_equal) {
            *numel += 1;
            TESS_TRY(write_change(order <= 0 ? &left : NULL, order >= 0 ? &right : NULL, out));
        }
        a = order <= 0 ? after(a, &left) : a;
        b = order >= 0 ? after(b, &right) : b;
    }
    return TESS_OK;
}

tess_status tess_run_numerics_diff(const char *stored, const char *current, char **text,
                                   int64_t *difference_numel)
{
    tess_strbuf buf = {0};
    int64_t numel = 0;
    size_t nbytes = 0;
    TESS_TRY(give(&buf, write_diff(stored, current, &buf, &numel), text, &nbytes));
    *difference_numel = numel;
    return TESS_OK;
}

static tess_status write_reference_row(const tess_run_key *key, tess_strbuf *out)
{
    char expected[RUN_EXPECTED_NBYTES];
    tess_run_expected(key, expected);
    const char *initial = key->initial == NULL    ? "required"
                          : *key->initial == '\0' ? "not set"
                                                  : key->initial;
    const char *tick = key->initial == NULL || *key->initial == '\0' ? "" : "`";
    return tess_strbuf_add(out, "| `%s` | %s | %s%s%s | %s | %s |\n", key->name, expected, tick,
                           initial, tick, key->is_numerics ? "numerics" : "free", key->help);
}

static tess_status write_reference(tess_strbuf *out)
{
    static const char *const section_help[] = {
#define S(section, SECTION, help) help,
        TESS_RUN_SECTION_LIST(S)
#undef S
    };
    TESS_TRY(tess_strbuf_add(
        out, "# The run file\n\n"
             "Generated from `src/train/run_file/run_schema.h` by `tessera help run-file`; do not "
             "edit.\n\n"
             "A run file is YAML: sections of keys. Any key can be given or changed on the command "
             "line as `section.key=VALUE`.\n"
             "Unknown, repeated, mistyped and out-of-range keys are refused with file, line and "
             "column. Keys marked *numerics*\n"
             "decide the bits of a result: a checkpoint remembers them, and resuming with others "
             "needs `--accept-config-change`.\n"));
    const char *section = "";
    int section_idx = 0;
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        const tess_run_key *key = tess_run_key_at((tess_run_key_idx)i);
        if (strcmp(section, key->section) != 0) {
            TESS_TRY(tess_strbuf_add(out, "\n## %s\n\n%s\n\n", key->section,
                                     section_help[section_idx++]));
            TESS_TRY(tess_strbuf_add(out, "| key | expects | default | class | meaning |\n"
                                          "|---|---|---|---|---|\n"));
        }
        section = key->section;
        TESS_TRY(write_reference_row(key, out));
    }
    return run_words_reference(out);
}

tess_status tess_run_reference(char **text, size_t *nbytes)
{
    tess_strbuf buf = {0};
    return give(&buf, write_reference(&buf), text, nbytes);
}
