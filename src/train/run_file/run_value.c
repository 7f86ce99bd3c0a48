/* One value of the run file: from a YAML node into the field of tess_run, and back to text. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_priv.h"

static void *field_of(tess_run *run, const tess_run_key *key)
{
    return (char *)run + key->offset_nbytes;
}

static const void *field_of_const(const tess_run *run, const tess_run_key *key)
{
    return (const char *)run + key->offset_nbytes;
}

/* Position of `text` in "a|b|c" (a leading bar is ignored), -1 when it is none of them. */
int tess_run_word_find(const char *words, const char *text)
{
    const size_t text_nbytes = strlen(text);
    int idx = 0;
    for (const char *at = words + (*words == '|'); *at != '\0'; idx++) {
        const size_t word_nbytes = strcspn(at, "|");
        if (word_nbytes == text_nbytes && memcmp(at, text, text_nbytes) == 0)
            return idx;
        at += word_nbytes + (at[word_nbytes] == '|');
    }
    return -1;
}

void tess_run_word_at(const char *words, int idx, char text[32])
{
    const char *at = words + (*words == '|');
    for (; idx > 0; idx--)
        at += strcspn(at, "|") + 1;
    snprintf(text, 32, "%.*s", (int)strcspn(at, "|"), at);
}

static void words_list(const char *words, char text[RUN_EXPECTED_NBYTES])
{
    size_t n = 0;
    for (const char *at = words + (*words == '|'); *at != '\0' && n + 3 < RUN_EXPECTED_NBYTES;
         at++) {
        if (*at == '|')
            text[n++] = ',';
        text[n++] = *at == '|' ? ' ' : *at;
    }
    text[n] = '\0';
}

void tess_run_expected(const tess_run_key *key, char text[RUN_EXPECTED_NBYTES])
{
    char words[RUN_EXPECTED_NBYTES];
    words_list(key->words, words);
    const char *or_words = *key->words != '\0' ? " or " : "";
    switch (key->kind) {
    case TESS_RUN_INT:
        snprintf(text, RUN_EXPECTED_NBYTES, "an integer from %" PRId64 " to %" PRId64 "%s%.100s",
                 key->least_int, key->most_int, or_words, words);
        return;
    case TESS_RUN_BYTES:
        snprintf(text, RUN_EXPECTED_NBYTES, "bytes from %" PRId64 " such as 512MiB or 8GiB%s%.100s",
                 key->least_int, or_words, words);
        return;
    case TESS_RUN_F64:
        snprintf(text, RUN_EXPECTED_NBYTES, "a number from %.9g to %.9g", key->least, key->most);
        return;
    case TESS_RUN_BOOL:
        snprintf(text, RUN_EXPECTED_NBYTES, "true or false");
        return;
    case TESS_RUN_ENUM:
        snprintf(text, RUN_EXPECTED_NBYTES, "one of %.200s", words);
        return;
    case TESS_RUN_TEXT:
    case TESS_RUN_PATH:
        snprintf(text, RUN_EXPECTED_NBYTES, "%s of %" PRId64 " to %" PRId64 " bytes",
                 key->kind == TESS_RUN_PATH ? "a path" : "a string", key->least_int, key->most_int);
        return;
    case TESS_RUN_NAMES:
        snprintf(text, RUN_EXPECTED_NBYTES,
                 "a string or a list of 1 to %d strings of 1 to %d bytes", RUN_LIST_MAX,
                 RUN_NAME_MAX_NBYTES);
        return;
    case TESS_RUN_INTS:
        snprintf(text, RUN_EXPECTED_NBYTES,
                 "an integer or a list of 1 to %d integers from %" PRId64 " to %" PRId64,
                 RUN_LIST_MAX, key->least_int, key->most_int);
        return;
    case TESS_RUN_PATTERNS:
        snprintf(text, RUN_EXPECTED_NBYTES,
                 "a mapping {PATTERN: NUMBER, ...} of 1 to %d numbers from %.9g to %.9g",
                 RUN_LIST_MAX, key->least, key->most);
        return;
    case TESS_RUN_RULES:
        snprintf(text, RUN_EXPECTED_NBYTES,
                 "a list of at most %" PRId64 " rules {match: REGEX, format: FORMAT}",
                 key->most_int);
        return;
    }
}

tess_status tess_run_mismatch(const tess_run_key *key, const run_node *node, const run_where *base)
{
    char place[TESS_RUN_PLACE_NBYTES];
    char expected[RUN_EXPECTED_NBYTES];
    char found[RUN_EXCERPT_NBYTES];
    const run_where where = tess_run_where_of(base, node->line, node->column);
    tess_run_where_text(&where, place);
    tess_run_expected(key, expected);
    tess_run_excerpt(node->kind == RUN_SCALAR ? node->text : "", found);
    if (node->kind != RUN_SCALAR)
        return TESS_FAIL(TESS_E_CONFIG, "%s: %s: expected %s, found a %s", place, key->path,
                         expected, node->kind == RUN_LIST ? "list" : "mapping");
    if (node->text_nbytes == 0)
        return TESS_FAIL(TESS_E_CONFIG,
                         "%s: %s: expected %s, found nothing; give one, or leave the key out of "
                         "the run file and the command line",
                         place, key->path, expected);
    return TESS_FAIL(TESS_E_CONFIG, "%s: %s: expected %s, found %s'%s'", place, key->path, expected,
                     node->is_quoted ? "the string " : "", found);
}

/* An optional sign and digits, nothing else: no hex, no exponent, no white space. */
static bool parse_i64(const char *text, const char **end, int64_t *value)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (*digits < '0' || *digits > '9')
        return false;
    errno = 0;
    char *stop = NULL;
    const long long parsed = strtoll(text, &stop, 10);
    *end = stop;
    *value = parsed;
    return errno == 0;
}

static bool parse_f64(const char *text, double *value)
{
    if (*text == '\0' || strspn(text, "+-.0123456789eE") != strlen(text))
        return false;
    char *stop = NULL;
    const double parsed = strtod(text, &stop);
    if (*stop != '\0')
        return false;
    *value = parsed == 0.0 ? 0.0 : parsed; /* no negative zero */
    return true;
}

bool tess_run_set_int(const tess_run_key *key, const run_node *node, int64_t *out)
{
    const int word = tess_run_word_find(key->words, node->text);
    if (word >= 0) {
        *out = -1 - word;
        return true;
    }
    int64_t value = 0;
    const char *end = NULL;
    if (!parse_i64(node->text, &end, &value))
        return false;
    const bool has_unit = key->kind == TESS_RUN_BYTES && *end != '\0';
    if (node->is_quoted && !has_unit) /* with a unit it is a string, quoted wherever YAML is JSON */
        return false;
    if (has_unit) {
        const int unit = tess_run_word_find("KiB|MiB|GiB|TiB", end);
        if (unit < 0 || __builtin_mul_overflow(value, (int64_t)1 << (10 * (unit + 1)), &value))
            return false;
    } else if (*end != '\0') {
        return false;
    }
    if (value < key->least_int || value > key->most_int)
        return false;
    *out = value;
    return true;
}

bool tess_run_set_f64(const tess_run_key *key, const run_node *node, double *out)
{
    double value = 0;
    if (node->is_quoted || !parse_f64(node->text, &value))
        return false;
    if (!(value >= key->least && value <= key->most))
        return false;
    *out = value;
    return true;
}

static bool set_bool(const run_node *node, bool *out)
{
    const int word = tess_run_word_find("true|false|on|off", node->text);
    if (word < 0 || node->is_quoted)
        return false;
    *out = word % 2 == 0;
    return true;
}

static bool set_enum(const tess_run_key *key, const run_node *node, void *out)
{
    int word = tess_run_word_find(key->words, node->text);
    /* Switches read as people write them in YAML. */
    if (word < 0 && strcmp(node->text, "true") == 0)
        word = tess_run_word_find(key->words, "on");
    if (word < 0 && strcmp(node->text, "false") == 0)
        word = tess_run_word_find(key->words, "off");
    if (word < 0)
        return false;
    _Static_assert(sizeof(tess_run_mode) == sizeof(int), "enums are written as int");
    memcpy(out, &word, sizeof word);
    return true;
}

static tess_status set_text(const tess_run_key *key, const run_node *node, const run_where *where,
                            char **out)
{
    if ((int64_t)node->text_nbytes < key->least_int || (int64_t)node->text_nbytes > key->most_int)
        return tess_run_mismatch(key, node, where);
    char *copy = NULL;
    TESS_TRY(tess_strdup(node->text, &copy));
    tess_free(*out);
    *out = copy;
    return TESS_OK;
}

tess_status tess_run_value_set(tess_run *run, const tess_run_key *key, const run_node *node,
                               const run_where *where)
{
    void *field = field_of(run, key);
    if (tess_run_kind_is_list(key->kind))
        return tess_run_list_set(key, node, where, field);
    if (node->kind != RUN_SCALAR || node->text_nbytes == 0)
        return tess_run_mismatch(key, node, where);
    bool is_right = false;
    switch (key->kind) {
    case TESS_RUN_INT:
    case TESS_RUN_BYTES:
        is_right = tess_run_set_int(key, node, field);
        break;
    case TESS_RUN_F64:
        is_right = tess_run_set_f64(key, node, field);
        break;
    case TESS_RUN_BOOL:
        is_right = set_bool(node, field);
        break;
    case TESS_RUN_ENUM:
        is_right = set_enum(key, node, field);
        break;
    case TESS_RUN_TEXT:
    case TESS_RUN_PATH:
        return set_text(key, node, where, field);
    case TESS_RUN_NAMES:
    case TESS_RUN_RULES:
    case TESS_RUN_INTS:
    case TESS_RUN_PATTERNS:
        break;
    }
    return is_right ? TESS_OK : tess_run_mismatch(key, node, where);
}

void tess_run_value_fini(tess_run *run, const tess_run_key *key)
{
    void *field = field_of(run, key);
    if (tess_run_kind_is_list(key->kind)) {
        tess_run_list_fini(key->kind, field);
    } else if (key->kind == TESS_RUN_TEXT || key->kind == TESS_RUN_PATH) {
        char **text = field;
        tess_free(*text);
        *text = NULL;
    }
}

bool tess_run_value_is_set(const tess_run *run, const tess_run_key *key)
{
    const void *field = field_of_const(run, key);
    if (tess_run_kind_is_list(key->kind))
        return tess_run_list_numel(key->kind, field) > 0;
    if (key->kind == TESS_RUN_TEXT || key->kind == TESS_RUN_PATH)
        return *(char *const *)field != NULL;
    return true;
}

static tess_status write_word(const tess_run_key *key, int idx, tess_strbuf *out)
{
    char word[32];
    tess_run_word_at(key->words, idx, word);
    return tess_strbuf_add(out, "%s", word);
}

tess_status tess_run_value_write(const tess_run *run, const tess_run_key *key, tess_strbuf *out)
{
    const void *field = field_of_const(run, key);
    switch (key->kind) {
    case TESS_RUN_INT:
    case TESS_RUN_BYTES: {
        const int64_t value = *(const int64_t *)field;
        if (value < 0 && *key->words != '\0')
            return write_word(key, (int)(-1 - value), out);
        return tess_strbuf_add(out, "%" PRId64, value);
    }
    case TESS_RUN_F64: {
        char text[TESS_F64_TEXT_NBYTES];
        tess_f64_text(*(const double *)field, text);
        return tess_strbuf_add(out, "%s", text);
    }
    case TESS_RUN_BOOL:
        return tess_strbuf_add(out, "%s", *(const bool *)field ? "true" : "false");
    case TESS_RUN_ENUM: {
        int idx = 0;
        memcpy(&idx, field, sizeof idx);
        return write_word(key, idx, out);
    }
    case TESS_RUN_TEXT:
    case TESS_RUN_PATH: {
        const char *text = *(char *const *)field;
        return text == NULL ? TESS_OK : tess_run_string_write(text, out);
    }
    case TESS_RUN_NAMES:
    case TESS_RUN_RULES:
    case TESS_RUN_INTS:
    case TESS_RUN_PATTERNS:
        return tess_run_list_write(key->kind, field, out);
    }
    return TESS_OK;
}
