#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "format/json_priv.h"
#include "format/text_priv.h"

/* ---- building ---- */

static tess_status create_node(tess_json_type type, tess_json **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_json), &object));
    tess_json *node = object;
    node->type = type;
    *out = node;
    return TESS_OK;
}

tess_status tess_json_create_object(tess_json **out) { return create_node(TESS_JSON_OBJECT, out); }

tess_status tess_json_create_array(tess_json **out) { return create_node(TESS_JSON_ARRAY, out); }

static tess_status check_parent(const tess_json *parent, const char *key, bool is_list)
{
    char where[512];
    tess_json_where(parent, where, sizeof where);
    TESS_CHECK(!tess_json_is_parsed(parent), TESS_E_STATE, "%s: a parsed tree cannot be changed",
               where);
    TESS_CHECK(parent->type == (key != NULL ? TESS_JSON_OBJECT : TESS_JSON_ARRAY), TESS_E_STATE,
               "%s: a value %s a key cannot be added to %s", where,
               key != NULL ? "with" : "without", tess_json_type_text(parent->type));
    int depth = is_list;
    for (const tess_json *v = parent; v != NULL; v = v->parent)
        depth++;
    TESS_CHECK(depth <= TESS_JSON_DEPTH_MAX, TESS_E_RANGE, "%s: nested deeper than %d levels",
               where, TESS_JSON_DEPTH_MAX);
    TESS_CHECK(key == NULL || tess_utf8_is_valid(key, strlen(key)), TESS_E_ARG,
               "%s: a key is not UTF-8", where);
    return TESS_OK;
}

static tess_status make_room(tess_json *parent)
{
    const int64_t room = parent->as.list.room;
    if (parent->as.list.numel < room)
        return TESS_OK;
    void *grown = parent->as.list.child;
    TESS_TRY(tess_realloc_array(room, room * 2 + 8, sizeof(tess_json *), &grown));
    parent->as.list.child = grown;
    parent->as.list.sorted = grown;
    parent->as.list.room = room * 2 + 8;
    return TESS_OK;
}

/* Allocate a child and put it in its place; its value is still empty. */
static tess_status add_node(tess_json *parent, const char *key, tess_json_type type,
                            tess_json **out)
{
    bool is_found = false;
    char where[512], tame[96];
    TESS_TRY(check_parent(parent, key, type == TESS_JSON_ARRAY || type == TESS_JSON_OBJECT));
    const int64_t place =
        key != NULL ? tess_json_search(parent, key, &is_found) : parent->as.list.numel;
    if (is_found) {
        tess_json_where(parent, where, sizeof where);
        return TESS_FAIL(TESS_E_STATE, "%s: key '%s' was added before", where,
                         tess_text_tame(key, tame, sizeof tame));
    }
    TESS_TRY(make_room(parent));
    tess_json *node = NULL;
    TESS_TRY(create_node(type, &node));
    tess_status st = key != NULL ? tess_strdup(key, &node->key) : TESS_OK;
    if (st != TESS_OK) {
        tess_json_destroy(&node);
        return st;
    }
    node->parent = parent;
    tess_json **child = parent->as.list.child;
    memmove(child + place + 1, child + place,
            (size_t)(parent->as.list.numel - place) * sizeof *child);
    child[place] = node;
    parent->as.list.numel++;
    *out = node;
    return TESS_OK;
}

tess_status tess_json_add_object(tess_json *parent, const char *key, tess_json **out)
{
    return add_node(parent, key, TESS_JSON_OBJECT, out);
}

tess_status tess_json_add_array(tess_json *parent, const char *key, tess_json **out)
{
    return add_node(parent, key, TESS_JSON_ARRAY, out);
}

tess_status tess_json_add_string(tess_json *parent, const char *key, const char *value)
{
    char *copy = NULL, where[512], tame[96];
    tess_json *node = NULL;
    if (!tess_utf8_is_valid(value, strlen(value))) {
        tess_json_where(parent, where, sizeof where);
        return TESS_FAIL(TESS_E_ARG, "%s: value of '%s' is not UTF-8", where,
                         key != NULL ? tess_text_tame(key, tame, sizeof tame) : "[]");
    }
    TESS_TRY(tess_strdup(value, &copy));
    const tess_status st = add_node(parent, key, TESS_JSON_STRING, &node);
    if (st != TESS_OK)
        tess_free(copy);
    else
        node->as.string = copy;
    return st;
}

tess_status tess_json_add_i64(tess_json *parent, const char *key, int64_t value)
{
    tess_json *node = NULL;
    TESS_TRY(add_node(parent, key, TESS_JSON_I64, &node));
    node->as.i64 = value;
    return TESS_OK;
}

tess_status tess_json_add_f64(tess_json *parent, const char *key, double value)
{
    char tame[96];
    tess_json *node = NULL;
    TESS_CHECK(isfinite(value), TESS_E_RANGE,
               "JSON value of '%s': expected a finite number, found %f",
               key != NULL ? tess_text_tame(key, tame, sizeof tame) : "[]", value);
    TESS_TRY(add_node(parent, key, TESS_JSON_F64, &node));
    node->as.f64 = value;
    return TESS_OK;
}

tess_status tess_json_add_bool(tess_json *parent, const char *key, bool value)
{
    tess_json *node = NULL;
    TESS_TRY(add_node(parent, key, TESS_JSON_BOOL, &node));
    node->as.boolean = value;
    return TESS_OK;
}

tess_status tess_json_add_null(tess_json *parent, const char *key)
{
    tess_json *node = NULL;
    return add_node(parent, key, TESS_JSON_NULL, &node);
}

static tess_status add_copy_of_list(tess_json *parent, const char *key, const tess_json *value)
{
    tess_json *node = NULL;
    TESS_TRY(add_node(parent, key, value->type, &node));
    for (int64_t i = 0; i < value->as.list.numel; i++)
        TESS_TRY(tess_json_add_copy(node, value->as.list.child[i]->key, value->as.list.child[i]));
    return TESS_OK;
}

tess_status tess_json_add_copy(tess_json *parent, const char *key, const tess_json *value)
{
    switch (value->type) {
    case TESS_JSON_NULL:
        return tess_json_add_null(parent, key);
    case TESS_JSON_BOOL:
        return tess_json_add_bool(parent, key, value->as.boolean);
    case TESS_JSON_I64:
        return tess_json_add_i64(parent, key, value->as.i64);
    case TESS_JSON_F64:
        return tess_json_add_f64(parent, key, value->as.f64);
    case TESS_JSON_STRING:
        return tess_json_add_string(parent, key, value->as.string);
    case TESS_JSON_ARRAY:
    case TESS_JSON_OBJECT:
        return add_copy_of_list(parent, key, value);
    }
    return TESS_FAIL(TESS_E_ARG, "JSON type %d is unknown", (int)value->type);
}

/* ---- writing ---- */

void tess_json_sink_put(json_sink *s, const char *bytes, size_t nbytes)
{
    if (s->st != TESS_OK)
        return;
    const int64_t need = s->numel + (int64_t)nbytes + 1;
    if (need > s->room) {
        void *grown = s->text;
        const int64_t room = TESS_MAX(need, s->room * 2 + 256);
        s->st = tess_realloc_array(s->room, room, 1, &grown);
        if (s->st != TESS_OK)
            return;
        s->text = grown;
        s->room = room;
    }
    memcpy(s->text + s->numel, bytes, nbytes);
    s->numel += (int64_t)nbytes;
    s->text[s->numel] = '\0';
}

static void put_text(json_sink *s, const char *text) { tess_json_sink_put(s, text, strlen(text)); }

void tess_json_sink_put_string(json_sink *s, const char *text)
{
    tess_json_sink_put(s, "\"", 1);
    const char *run = text;
    for (const char *p = text;; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        tess_json_sink_put(s, run, (size_t)(p - run));
        run = p + 1;
        if (c == '\0')
            break;
        static const char plain[] = "\b\t\n\f\r\"\\", letter[] = "btnfr\"\\";
        const char *known = strchr(plain, c);
        char escape[8];
        if (known != NULL)
            snprintf(escape, sizeof escape, "\\%c", letter[known - plain]);
        else
            snprintf(escape, sizeof escape, "\\u%04x", c);
        put_text(s, escape);
    }
    tess_json_sink_put(s, "\"", 1);
}

static void put_f64(json_sink *s, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    if (strpbrk(text, ".e") == NULL)
        memcpy(text + strlen(text), ".0", sizeof ".0");
    put_text(s, text);
}

static void put_line(json_sink *s, int depth)
{
    if (s->indent == 0)
        return;
    tess_json_sink_put(s, "\n", 1);
    for (int i = 0; i < s->indent * depth; i++)
        tess_json_sink_put(s, " ", 1);
}

static void put_value(json_sink *s, const tess_json *v, int depth);

static void put_list(json_sink *s, const tess_json *v, int depth)
{
    const bool is_object = v->type == TESS_JSON_OBJECT;
    tess_json *const *child = is_object ? v->as.list.sorted : v->as.list.child;
    tess_json_sink_put(s, is_object ? "{" : "[", 1);
    for (int64_t i = 0; i < v->as.list.numel; i++) {
        if (i > 0)
            tess_json_sink_put(s, ",", 1);
        put_line(s, depth + 1);
        if (is_object) {
            tess_json_sink_put_string(s, child[i]->key);
            put_text(s, s->indent > 0 ? ": " : ":");
        }
        put_value(s, child[i], depth + 1);
    }
    if (v->as.list.numel > 0)
        put_line(s, depth);
    tess_json_sink_put(s, is_object ? "}" : "]", 1);
}

static void put_value(json_sink *s, const tess_json *v, int depth)
{
    char text[32];
    switch (v->type) {
    case TESS_JSON_NULL:
        put_text(s, "null");
        break;
    case TESS_JSON_BOOL:
        put_text(s, v->as.boolean ? "true" : "false");
        break;
    case TESS_JSON_I64:
        snprintf(text, sizeof text, "%" PRId64, v->as.i64);
        put_text(s, text);
        break;
    case TESS_JSON_F64:
        put_f64(s, v->as.f64);
        break;
    case TESS_JSON_STRING:
        tess_json_sink_put_string(s, v->as.string);
        break;
    case TESS_JSON_ARRAY:
    case TESS_JSON_OBJECT:
        put_list(s, v, depth);
        break;
    }
}

static tess_status dump(const tess_json *v, int indent, const char *end, json_sink *s)
{
    TESS_CHECK(indent >= 0 && indent <= 16, TESS_E_ARG, "indent %d, expected 0 to 16", indent);
    s->indent = indent;
    put_value(s, v, 0);
    put_text(s, end);
    if (s->st != TESS_OK) {
        tess_free(s->text);
        return s->st;
    }
    return TESS_OK;
}

tess_status tess_json_dump(const tess_json *v, int indent, char **text, size_t *nbytes)
{
    json_sink s = {0};
    TESS_TRY(dump(v, indent, "", &s));
    *text = s.text;
    if (nbytes != NULL)
        *nbytes = (size_t)s.numel;
    return TESS_OK;
}

tess_status tess_json_write(tess_io *io, const char *path, const tess_json *v, int indent)
{
    json_sink s = {0};
    TESS_TRY(dump(v, indent, "\n", &s));
    const tess_status st = tess_io_write_all(io, path, s.text, (size_t)s.numel);
    tess_free(s.text);
    return st;
}
