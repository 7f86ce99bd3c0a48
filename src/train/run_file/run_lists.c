/* Values of the run file that are lists: names, rules, integers, numbers by pattern. */
#include <inttypes.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_priv.h"

bool tess_run_kind_is_list(tess_run_kind kind)
{
    return kind == TESS_RUN_NAMES || kind == TESS_RUN_RULES || kind == TESS_RUN_INTS ||
           kind == TESS_RUN_PATTERNS;
}

static void names_fini(tess_run_names *names)
{
    for (int64_t i = 0; i < names->item_numel; i++)
        tess_free(names->item[i]);
    tess_free(names->item);
    *names = (tess_run_names){0};
}

static bool is_name(const run_node *node)
{
    return node->kind == RUN_SCALAR && node->text_nbytes > 0 &&
           node->text_nbytes <= RUN_NAME_MAX_NBYTES;
}

static tess_status set_names(const tess_run_key *key, const run_node *node, const run_where *where,
                             tess_run_names *out)
{
    const bool is_list = node->kind == RUN_LIST;
    const run_node *item = is_list ? node->child : node;
    const int64_t item_numel = is_list ? node->child_numel : 1;
    if (item_numel < 1 || item_numel > RUN_LIST_MAX || node->kind == RUN_MAP)
        return tess_run_mismatch(key, node, where);
    for (int64_t i = 0; i < item_numel; i++)
        if (!is_name(&item[i]))
            return tess_run_mismatch(key, &item[i], where);
    tess_run_names names = {.is_list = is_list};
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(item_numel, sizeof(char *), &memory));
    names.item = memory;
    for (; names.item_numel < item_numel; names.item_numel++) {
        const tess_status st =
            tess_strdup(item[names.item_numel].text, &names.item[names.item_numel]);
        if (st != TESS_OK) {
            names_fini(&names);
            return st;
        }
    }
    names_fini(out);
    *out = names;
    return TESS_OK;
}

static void rules_fini(tess_run_rules *rules)
{
    for (int64_t i = 0; i < rules->item_numel; i++)
        tess_free(rules->item[i].match);
    tess_free(rules->item);
    *rules = (tess_run_rules){0};
}

static const run_node *child_named(const run_node *map, const char *name)
{
    const run_node *found = NULL;
    for (int64_t i = 0; i < map->child_numel; i++)
        if (strcmp(map->child[i].name, name) == 0)
            found = found == NULL ? &map->child[i] : map; /* `map`: given twice */
    return found;
}

/* A rule has exactly the two keys, once each. */
static tess_status set_rule(const tess_run_key *key, const run_node *node, const run_where *where,
                            tess_run_rule *out)
{
    if (node->kind != RUN_MAP || node->child_numel != 2)
        return tess_run_mismatch(key, node, where);
    const run_node *match = child_named(node, "match");
    const run_node *format = child_named(node, "format");
    if (match == NULL || format == NULL || match == node || format == node)
        return tess_run_mismatch(key, node, where);
    if (!is_name(match))
        return tess_run_mismatch(key, match, where);
    const int word =
        format->kind == RUN_SCALAR ? tess_run_word_find(TESS_RUN_WORDS_(BASE), format->text) : -1;
    if (word < 0)
        return tess_run_mismatch(key, format, where);
    out->format = (tess_run_base_format)word;
    return tess_strdup(match->text, &out->match);
}

static tess_status set_rules(const tess_run_key *key, const run_node *node, const run_where *where,
                             tess_run_rules *out)
{
    if (node->kind != RUN_LIST || node->child_numel > key->most_int)
        return tess_run_mismatch(key, node, where);
    tess_run_rules rules = {0};
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(node->child_numel, sizeof(tess_run_rule), &memory));
    rules.item = memory;
    for (; rules.item_numel < node->child_numel; rules.item_numel++) {
        const tess_status st =
            set_rule(key, &node->child[rules.item_numel], where, &rules.item[rules.item_numel]);
        if (st != TESS_OK) {
            rules_fini(&rules);
            return st;
        }
    }
    rules_fini(out);
    *out = rules;
    return TESS_OK;
}

static tess_status set_ints(const tess_run_key *key, const run_node *node, const run_where *where,
                            tess_run_ints *out)
{
    const bool is_list = node->kind == RUN_LIST;
    const run_node *item = is_list ? node->child : node;
    const int64_t item_numel = is_list ? node->child_numel : 1;
    if (item_numel < 1 || item_numel > RUN_LIST_MAX || node->kind == RUN_MAP)
        return tess_run_mismatch(key, node, where);
    tess_run_ints ints = {.item_numel = item_numel};
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(item_numel, sizeof *ints.item, &memory));
    ints.item = memory;
    for (int64_t i = 0; i < item_numel; i++) {
        if (!tess_run_set_int(key, &item[i], &ints.item[i])) {
            tess_free(ints.item);
            return tess_run_mismatch(key, &item[i], where);
        }
    }
    tess_free(out->item);
    *out = ints;
    return TESS_OK;
}

static void patterns_fini(tess_run_patterns *patterns)
{
    for (int64_t i = 0; i < patterns->item_numel; i++)
        tess_free(patterns->item[i].pattern);
    tess_free(patterns->item);
    *patterns = (tess_run_patterns){0};
}

/* The first pattern that matches decides, so a pattern given twice is a mistake. */
static tess_status set_pattern(const tess_run_key *key, const run_node *map, int64_t idx,
                               const run_where *where, tess_run_pattern *out)
{
    const run_node *node = &map->child[idx];
    const size_t nbytes = strlen(node->name);
    if (nbytes == 0 || nbytes > RUN_NAME_MAX_NBYTES || child_named(map, node->name) == map ||
        !tess_run_set_f64(key, node, &out->value))
        return tess_run_mismatch(key, node, where);
    return tess_strdup(node->name, &out->pattern);
}

static tess_status set_patterns(const tess_run_key *key, const run_node *node,
                                const run_where *where, tess_run_patterns *out)
{
    if (node->kind != RUN_MAP || node->child_numel < 1 || node->child_numel > RUN_LIST_MAX)
        return tess_run_mismatch(key, node, where);
    tess_run_patterns patterns = {0};
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(node->child_numel, sizeof *patterns.item, &memory));
    patterns.item = memory;
    for (; patterns.item_numel < node->child_numel; patterns.item_numel++) {
        const tess_status st =
            set_pattern(key, node, patterns.item_numel, where, &patterns.item[patterns.item_numel]);
        if (st != TESS_OK) {
            patterns_fini(&patterns);
            return st;
        }
    }
    patterns_fini(out);
    *out = patterns;
    return TESS_OK;
}

static tess_status write_names(const tess_run_names *names, tess_strbuf *out)
{
    if (!names->is_list)
        return names->item_numel == 0 ? TESS_OK : tess_run_string_write(names->item[0], out);
    for (int64_t i = 0; i < names->item_numel; i++) {
        TESS_TRY(tess_strbuf_add(out, "%s", i == 0 ? "[" : ", "));
        TESS_TRY(tess_run_string_write(names->item[i], out));
    }
    return tess_strbuf_add(out, "]");
}

static tess_status write_rules(const tess_run_rules *rules, tess_strbuf *out)
{
    for (int64_t i = 0; i < rules->item_numel; i++) {
        char format[32];
        tess_run_word_at(TESS_RUN_WORDS_(BASE), (int)rules->item[i].format, format);
        TESS_TRY(tess_strbuf_add(out, "%s{match: ", i == 0 ? "[" : ", "));
        TESS_TRY(tess_run_string_write(rules->item[i].match, out));
        TESS_TRY(tess_strbuf_add(out, ", format: %s}", format));
    }
    return tess_strbuf_add(out, "%s", rules->item_numel > 0 ? "]" : "");
}

static tess_status write_ints(const tess_run_ints *ints, tess_strbuf *out)
{
    for (int64_t i = 0; i < ints->item_numel; i++)
        TESS_TRY(tess_strbuf_add(out, "%s%" PRId64, i == 0 ? "[" : ", ", ints->item[i]));
    return tess_strbuf_add(out, "%s", ints->item_numel > 0 ? "]" : "");
}

static tess_status write_patterns(const tess_run_patterns *patterns, tess_strbuf *out)
{
    for (int64_t i = 0; i < patterns->item_numel; i++) {
        char value[TESS_F64_TEXT_NBYTES];
        tess_f64_text(patterns->item[i].value, value);
        TESS_TRY(tess_strbuf_add(out, "%s", i == 0 ? "{" : ", "));
        TESS_TRY(tess_run_string_write(patterns->item[i].pattern, out));
        TESS_TRY(tess_strbuf_add(out, ": %s", value));
    }
    return tess_strbuf_add(out, "%s", patterns->item_numel > 0 ? "}" : "");
}

tess_status tess_run_list_set(const tess_run_key *key, const run_node *node, const run_where *where,
                              void *field)
{
    if (key->kind == TESS_RUN_NAMES)
        return set_names(key, node, where, field);
    if (key->kind == TESS_RUN_RULES)
        return set_rules(key, node, where, field);
    return key->kind == TESS_RUN_INTS ? set_ints(key, node, where, field)
                                      : set_patterns(key, node, where, field);
}

tess_status tess_run_list_write(tess_run_kind kind, const void *field, tess_strbuf *out)
{
    if (kind == TESS_RUN_NAMES)
        return write_names(field, out);
    if (kind == TESS_RUN_RULES)
        return write_rules(field, out);
    return kind == TESS_RUN_INTS ? write_ints(field, out) : write_patterns(field, out);
}

int64_t tess_run_list_numel(tess_run_kind kind, const void *field)
{
    if (kind == TESS_RUN_NAMES)
        return ((const tess_run_names *)field)->item_numel;
    if (kind == TESS_RUN_RULES)
        return ((const tess_run_rules *)field)->item_numel;
    return kind == TESS_RUN_INTS ? ((const tess_run_ints *)field)->item_numel
                                 : ((const tess_run_patterns *)field)->item_numel;
}

void tess_run_list_fini(tess_run_kind kind, void *field)
{
    if (kind == TESS_RUN_NAMES) {
        names_fini(field);
    } else if (kind == TESS_RUN_RULES) {
        rules_fini(field);
    } else if (kind == TESS_RUN_PATTERNS) {
        patterns_fini(field);
    } else {
        tess_run_ints *ints = field;
        tess_free(ints->item);
        *ints = (tess_run_ints){0};
    }
}
