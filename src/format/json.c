#include "format/json.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/json_priv.h"
#include "format/text_priv.h"

/* ---- reading ---- */

/* Refuse the byte at `offset_nbytes` with its line and column (in characters, from 1). */
static tess_status refuse_at(const char *source, const char *text, size_t offset_nbytes,
                             const char *what)
{
    int64_t line = 1, column = 1;
    for (size_t i = 0; i < offset_nbytes; i++) {
        if (text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) {
            column++;
        }
    }
    return TESS_FAIL(TESS_E_FORMAT, "'%s': line %" PRId64 ", column %" PRId64 ": %s", source, line,
                     column, what);
}

static bool is_minus_zero(const char *text, size_t nbytes, size_t i)
{
    if (text[i] != '-' || i + 1 >= nbytes || text[i + 1] != '0')
        return false;
    if (i > 0 && (text[i - 1] == 'e' || text[i - 1] == 'E'))
        return false;
    const char after = i + 2 < nbytes ? text[i + 2] : ' ';
    return after != '.' && after != 'e' && after != 'E' && !(after >= '0' && after <= '9');
}

/* What jansson does not bound: nesting, number of values, and integers that lose their sign. */
static tess_status prescan(const char *source, const char *text, size_t nbytes)
{
    int depth = 0;
    int64_t value_numel = 1;
    bool is_in_string = false;
    for (size_t i = 0; i < nbytes; i++) {
        const char c = text[i];
        if (is_in_string) {
            if (c == '\\')
                i++;
            else
                is_in_string = c != '"';
            continue;
        }
        is_in_string = c == '"';
        depth += (c == '[' || c == '{') - (c == ']' || c == '}');
        value_numel += c == ',' || c == '[' || c == '{';
        if (depth > TESS_JSON_DEPTH_MAX)
            return refuse_at(source, text, i, "nested deeper than 32 levels");
        if (value_numel > TESS_JSON_VALUE_MAX)
            return refuse_at(source, text, i, "more than 8388608 values");
        if (is_minus_zero(text, nbytes, i))
            return refuse_at(source, text, i, "the integer -0 is refused; write 0 or -0.0");
    }
    return TESS_OK;
}

typedef struct json_count {
    int64_t node_numel, slot_numel, text_nbytes;
} json_count;

static void count_value(json_t *v, json_count *n)
{
    const char *key = NULL;
    json_t *child = NULL;
    size_t i = 0;
    n->node_numel++;
    if (json_is_string(v))
        n->text_nbytes += (int64_t)json_string_length(v) + 1;
    json_array_foreach(v, i, child)
    {
        n->slot_numel++;
        count_value(child, n);
    }
    json_object_foreach(v, key, child)
    {
        n->slot_numel += 2;
        n->text_nbytes += (int64_t)strlen(key) + 1;
        count_value(child, n);
    }
}

static char *pool_text(json_pool *pool, const char *text)
{
    char *copy = pool->text + pool->text_nbytes;
    const size_t nbytes = strlen(text) + 1;
    memcpy(copy, text, nbytes);
    pool->text_nbytes += (int64_t)nbytes;
    return copy;
}

static tess_json **pool_slots(json_pool *pool, size_t numel)
{
    tess_json **slot = pool->slot + pool->slot_numel;
    pool->slot_numel += (int64_t)numel;
    return slot;
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(tess_json *const *)a)->key, (*(tess_json *const *)b)->key);
}

static tess_json *convert(json_pool *pool, const tess_json *parent, json_t *v);

static void convert_object(json_pool *pool, tess_json *node, json_t *v)
{
    const char *key = NULL;
    json_t *child = NULL;
    const size_t numel = json_object_size(v);
    node->type = TESS_JSON_OBJECT;
    node->as.list.child = pool_slots(pool, numel);
    node->as.list.sorted = pool_slots(pool, numel);
    json_object_foreach(v, key, child)
    {
        tess_json *member = convert(pool, node, child);
        member->key = pool_text(pool, key);
        node->as.list.child[node->as.list.numel] = member;
        node->as.list.sorted[node->as.list.numel++] = member;
    }
    if (numel > 1)
        qsort(node->as.list.sorted, numel, sizeof(tess_json *), by_key);
}

static void convert_array(json_pool *pool, tess_json *node, json_t *v)
{
    json_t *child = NULL;
    size_t i = 0;
    node->type = TESS_JSON_ARRAY;
    node->as.list.child = pool_slots(pool, json_array_size(v));
    json_array_foreach(v, i, child) node->as.list.child[node->as.list.numel++] =
        convert(pool, node, child);
}

/* Recursion is bounded by prescan(). */
static tess_json *convert(json_pool *pool, const tess_json *parent, json_t *v)
{
    tess_json *node = pool->node + pool->node_numel++;
    node->parent = parent;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        convert_object(pool, node, v);
        break;
    case JSON_ARRAY:
        convert_array(pool, node, v);
        break;
    case JSON_STRING:
        node->type = TESS_JSON_STRING;
        node->as.string = pool_text(pool, json_string_value(v));
        break;
    case JSON_INTEGER:
        node->type = TESS_JSON_I64;
        node->as.i64 = json_integer_value(v);
        break;
    case JSON_REAL:
        node->type = TESS_JSON_F64;
        node->as.f64 = json_real_value(v);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        node->type = TESS_JSON_BOOL;
        node->as.boolean = json_is_true(v);
        break;
    case JSON_NULL:
        node->type = TESS_JSON_NULL;
        break;
    }
    return node;
}

static void pool_destroy(json_pool *pool)
{
    if (pool == NULL)
        return;
    tess_free(pool->source);
    tess_free(pool->node);
    tess_free(pool->slot);
    tess_free(pool->text);
    tess_free(pool);
}

static tess_status pool_create(const char *source, json_t *v, json_pool **out)
{
    json_count n = {0};
    void *object = NULL, *node = NULL, *slot = NULL, *text = NULL;
    count_value(v, &n);
    TESS_TRY(tess_alloc(sizeof(json_pool), &object));
    json_pool *pool = object;
    tess_status st = tess_strdup(source, &pool->source);
    if (st == TESS_OK)
        st = tess_alloc_array(n.node_numel, sizeof(tess_json), &node);
    pool->node = node;
    if (st == TESS_OK)
        st = tess_alloc_array(n.slot_numel, sizeof(tess_json *), &slot);
    pool->slot = slot;
    if (st == TESS_OK)
        st = tess_alloc((size_t)n.text_nbytes, &text);
    pool->text = text;
    if (st != TESS_OK) {
        pool_destroy(pool);
        return st;
    }
    *out = pool;
    return TESS_OK;
}

static tess_status parse_by(const char *source, const char *text, size_t nbytes,
                            size_t limit_nbytes, size_t flags, tess_json **out)
{
    json_error_t error;
    char tame[JSON_ERROR_TEXT_LENGTH];
    TESS_CHECK(nbytes <= limit_nbytes, TESS_E_FORMAT,
               "'%s': %zu bytes of JSON, at most %zu are accepted", source, nbytes, limit_nbytes);
    TESS_TRY(prescan(source, text, nbytes));
    json_t *v = json_loadb(text, nbytes, flags | JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    const bool has_nul = v == NULL && json_error_code(&error) == json_error_null_character;
    TESS_CHECK(v != NULL, TESS_E_FORMAT, "'%s': line %d, column %d: %s", source, error.line,
               error.column,
               has_nul ? "\\u0000 in a text, expected none; remove it"
                       : tess_text_tame(error.text, tame, sizeof tame));
    json_pool *pool = NULL;
    const tess_status st = pool_create(source, v, &pool);
    if (st == TESS_OK) {
        tess_json *root = convert(pool, NULL, v);
        root->pool = pool;
        *out = root;
    }
    json_decref(v);
    return st;
}

tess_status tess_json_parse_limit(const char *source, const char *text, size_t nbytes,
                                  size_t limit_nbytes, tess_json **out)
{
    return parse_by(source, text, nbytes, limit_nbytes, 0, out);
}

tess_status tess_json_parse(const char *source, const char *text, size_t nbytes, tess_json **out)
{
    return tess_json_parse_limit(source, text, nbytes, TESS_JSON_LIMIT_NBYTES, out);
}

static tess_status read_by(tess_io *io, const char *path, size_t flags, tess_json **out)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_io_read_all(io, path, TESS_JSON_LIMIT_NBYTES, &text, &nbytes));
    const tess_status st = parse_by(path, text, nbytes, TESS_JSON_LIMIT_NBYTES, flags, out);
    tess_free(text);
    return st;
}

tess_status tess_json_read(tess_io *io, const char *path, tess_json **out)
{
    return read_by(io, path, 0, out);
}

tess_status tess_json_read_reals(tess_io *io, const char *path, tess_json **out)
{
    return read_by(io, path, JSON_DECODE_INT_AS_REAL, out);
}

static void destroy_built(tess_json *v)
{
    if (v->type == TESS_JSON_STRING)
        tess_free(v->as.string);
    if (v->type == TESS_JSON_ARRAY || v->type == TESS_JSON_OBJECT) {
        for (int64_t i = 0; i < v->as.list.numel; i++)
            destroy_built(v->as.list.child[i]);
        tess_free(v->as.list.child);
    }
    tess_free(v->key);
    tess_free(v);
}

void tess_json_destroy(tess_json **root)
{
    if (*root == NULL)
        return;
    if ((*root)->pool != NULL)
        pool_destroy((*root)->pool);
    else
        destroy_built(*root);
    *root = NULL;
}

/* ---- looking ---- */

tess_json_type tess_json_type_of(const tess_json *v) { return v->type; }

const char *tess_json_type_text(tess_json_type type)
{
    static const char *const text[] = {
        [TESS_JSON_NULL] = "null",        [TESS_JSON_BOOL] = "a boolean",
        [TESS_JSON_I64] = "an integer",   [TESS_JSON_F64] = "a number with a fraction",
        [TESS_JSON_STRING] = "a string",  [TESS_JSON_ARRAY] = "an array",
        [TESS_JSON_OBJECT] = "an object",
    };
    return (unsigned)type < (unsigned)TESS_NELEM(text) ? text[type] : "nothing";
}

static bool is_list(const tess_json *v)
{
    return v->type == TESS_JSON_ARRAY || v->type == TESS_JSON_OBJECT;
}

int64_t tess_json_numel(const tess_json *v) { return is_list(v) ? v->as.list.numel : 0; }

const tess_json *tess_json_at(const tess_json *v, int64_t idx)
{
    return is_list(v) && idx >= 0 && idx < v->as.list.numel ? v->as.list.child[idx] : NULL;
}

const char *tess_json_key(const tess_json *v) { return v->key; }

int64_t tess_json_search(const tess_json *object, const char *key, bool *is_found)
{
    int64_t lo = 0, hi = object->as.list.numel;
    *is_found = false;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        const int order = strcmp(object->as.list.sorted[mid]->key, key);
        if (order == 0) {
            *is_found = true;
            return mid;
        }
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const tess_json *tess_json_find(const tess_json *object, const char *key)
{
    bool is_found = false;
    if (object->type != TESS_JSON_OBJECT)
        return NULL;
    const int64_t idx = tess_json_search(object, key, &is_found);
    return is_found ? object->as.list.sorted[idx] : NULL;
}

static const tess_json *root_of(const tess_json *v)
{
    while (v->parent != NULL)
        v = v->parent;
    return v;
}

bool tess_json_is_parsed(const tess_json *v) { return root_of(v)->pool != NULL; }

const char *tess_json_source(const tess_json *v)
{
    const tess_json *root = root_of(v);
    return root->pool != NULL ? root->pool->source : "built value";
}

static int64_t place_in_parent(const tess_json *v)
{
    for (int64_t i = 0; i < v->parent->as.list.numel; i++)
        if (v->parent->as.list.child[i] == v)
            return i;
    return -1;
}

void tess_json_where(const tess_json *v, char *text, size_t text_nbytes)
{
    const tess_json *chain[TESS_JSON_DEPTH_MAX + 2];
    int chain_numel = 0;
    char tame[96];
    const char *source = tess_json_source(v);
    for (; v->parent != NULL && chain_numel < TESS_NELEM(chain); v = v->parent)
        chain[chain_numel++] = v;
    snprintf(text, text_nbytes, "'%s':", source);
    for (int i = chain_numel - 1; i >= 0; i--) {
        const size_t used = strlen(text);
        const char *joint = i == chain_numel - 1 ? " " : ".";
        if (chain[i]->key != NULL)
            snprintf(text + used, text_nbytes - used, "%s%s", joint,
                     tess_text_tame(chain[i]->key, tame, sizeof tame));
        else
            snprintf(text + used, text_nbytes - used, "%s[%" PRId64 "]",
                     i == chain_numel - 1 ? " " : "", place_in_parent(chain[i]));
    }
    if (chain_numel == 0)
        snprintf(text + strlen(text), text_nbytes - strlen(text), " top level");
}

/* ---- typed access ---- */

static tess_status refuse_type(const tess_json *v, const char *expected)
{
    char where[512];
    tess_json_where(v, where, sizeof where);
    return TESS_FAIL(TESS_E_FORMAT, "%s: expected %s, found %s", where, expected,
                     tess_json_type_text(v->type));
}

tess_status tess_json_expect(const tess_json *v, tess_json_type type)
{
    return v->type == type ? TESS_OK : refuse_type(v, tess_json_type_text(type));
}

tess_status tess_json_as_string(const tess_json *v, const char **out)
{
    TESS_TRY(tess_json_expect(v, TESS_JSON_STRING));
    *out = v->as.string;
    return TESS_OK;
}

tess_status tess_json_as_i64(const tess_json *v, int64_t *out)
{
    TESS_TRY(tess_json_expect(v, TESS_JSON_I64));
    *out = v->as.i64;
    return TESS_OK;
}

tess_status tess_json_as_f64(const tess_json *v, double *out)
{
    if (v->type != TESS_JSON_F64 && v->type != TESS_JSON_I64)
        return refuse_type(v, "a number");
    *out = v->type == TESS_JSON_F64 ? v->as.f64 : (double)v->as.i64;
    return TESS_OK;
}

tess_status tess_json_as_bool(const tess_json *v, bool *out)
{
    TESS_TRY(tess_json_expect(v, TESS_JSON_BOOL));
    *out = v->as.boolean;
    return TESS_OK;
}

static tess_status require(const tess_json *object, const char *key, const char *expected,
                           const tess_json **out)
{
    char where[512];
    TESS_TRY(tess_json_expect(object, TESS_JSON_OBJECT));
    const tess_json *v = tess_json_find(object, key);
    if (v == NULL) {
        tess_json_where(object, where, sizeof where);
        return TESS_FAIL(TESS_E_FORMAT, "%s: '%s' is missing, expected %s", where, key, expected);
    }
    *out = v;
    return TESS_OK;
}

/* Member that is neither absent nor null, else NULL. */
static tess_status want(const tess_json *object, const char *key, const tess_json **out)
{
    TESS_TRY(tess_json_expect(object, TESS_JSON_OBJECT));
    const tess_json *v = tess_json_find(object, key);
    *out = v == NULL || v->type == TESS_JSON_NULL ? NULL : v;
    return TESS_OK;
}

tess_status tess_json_get_string(const tess_json *object, const char *key, const char **out)
{
    const tess_json *v = NULL;
    TESS_TRY(require(object, key, "a string", &v));
    return tess_json_as_string(v, out);
}

tess_status tess_json_get_text(const tess_json *object, const char *key, size_t room_nbytes,
                               char *out)
{
    const char *text = NULL;
    TESS_TRY(tess_json_get_string(object, key, &text));
    const size_t nbytes = strlen(text);
    TESS_CHECK(nbytes < room_nbytes, TESS_E_FORMAT, "%s: %s has %zu bytes, at most %zu are read",
               tess_json_source(object), key, nbytes, room_nbytes - 1);
    memcpy(out, text, nbytes + 1);
    return TESS_OK;
}

tess_status tess_json_get_i64(const tess_json *object, const char *key, int64_t *out)
{
    const tess_json *v = NULL;
    TESS_TRY(require(object, key, "an integer", &v));
    return tess_json_as_i64(v, out);
}

tess_status tess_json_get_f64(const tess_json *object, const char *key, double *out)
{
    const tess_json *v = NULL;
    TESS_TRY(require(object, key, "a number", &v));
    return tess_json_as_f64(v, out);
}

static tess_status get_list(const tess_json *object, const char *key, tess_json_type type,
                            const tess_json **out)
{
    const tess_json *v = NULL;
    TESS_TRY(require(object, key, tess_json_type_text(type), &v));
    TESS_TRY(tess_json_expect(v, type));
    *out = v;
    return TESS_OK;
}

tess_status tess_json_get_object(const tess_json *object, const char *key, const tess_json **out)
{
    return get_list(object, key, TESS_JSON_OBJECT, out);
}

tess_status tess_json_get_array(const tess_json *object, const char *key, const tess_json **out)
{
    return get_list(object, key, TESS_JSON_ARRAY, out);
}

tess_status tess_json_opt_string(const tess_json *object, const char *key, const char *absent,
                                 const char **out)
{
    const tess_json *v = NULL;
    TESS_TRY(want(object, key, &v));
    if (v != NULL)
        return tess_json_as_string(v, out);
    *out = absent;
    return TESS_OK;
}

tess_status tess_json_opt_i64(const tess_json *object, const char *key, int64_t absent,
                              int64_t *out)
{
    const tess_json *v = NULL;
    TESS_TRY(want(object, key, &v));
    if (v != NULL)
        return tess_json_as_i64(v, out);
    *out = absent;
    return TESS_OK;
}

tess_status tess_json_opt_f64(const tess_json *object, const char *key, double absent, double *out)
{
    const tess_json *v = NULL;
    TESS_TRY(want(object, key, &v));
    if (v != NULL)
        return tess_json_as_f64(v, out);
    *out = absent;
    return TESS_OK;
}

tess_status tess_json_opt_bool(const tess_json *object, const char *key, bool absent, bool *out)
{
    const tess_json *v = NULL;
    TESS_TRY(want(object, key, &v));
    if (v != NULL)
        return tess_json_as_bool(v, out);
    *out = absent;
    return TESS_OK;
}

static tess_status opt_list(const tess_json *object, const char *key, tess_json_type type,
                            const tess_json **out)
{
    const tess_json *v = NULL;
    TESS_TRY(want(object, key, &v));
    if (v != NULL)
        TESS_TRY(tess_json_expect(v, type));
    *out = v;
    return TESS_OK;
}

tess_status tess_json_opt_object(const tess_json *object, const char *key, const tess_json **out)
{
    return opt_list(object, key, TESS_JSON_OBJECT, out);
}

tess_status tess_json_opt_array(const tess_json *object, const char *key, const tess_json **out)
{
    return opt_list(object, key, TESS_JSON_ARRAY, out);
}
