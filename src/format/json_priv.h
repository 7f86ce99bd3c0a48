/** Representation of JSON values, shared by the reader and the builder. */
#pragma once

#include "format/json.h"

TESS_BEGIN_DECLS

/* Values per document: bounds memory, which is about 100 times a value's two bytes of text. */
enum { TESS_JSON_VALUE_MAX = 8 << 20 };

/** Memory of a parsed tree: all nodes, child tables and texts in three blocks. */
typedef struct json_pool {
    char *source;
    tess_json *node;
    tess_json **slot;
    char *text;
    int64_t node_numel, slot_numel, text_nbytes; /* taken so far */
} json_pool;

struct tess_json {
    tess_json_type type;
    const tess_json *parent; /* NULL: a root */
    json_pool *pool;         /* root of a parsed tree only */
    char *key;               /* NULL: an item or a root */
    union {
        bool boolean;
        int64_t i64;
        double f64;
        char *string;
        struct {
            tess_json **child;  /* file order in a parsed object, sorted by key in a built one */
            tess_json **sorted; /* objects: by key; equals `child` in a built one */
            int64_t numel, room;
        } list;
    } as;
};

/** tess_json_parse with another limit. Local. */
TESS_MUST_CHECK tess_status tess_json_parse_limit(const char *source, const char *text,
                                                  size_t nbytes, size_t limit_nbytes,
                                                  tess_json **out);
/** Place of `key` in an object's sorted table, or where it would be inserted. Local. */
int64_t tess_json_search(const tess_json *object, const char *key, bool *is_found);
/** Whether the tree of `v` was parsed. Local. */
bool tess_json_is_parsed(const tess_json *v);

/** Text that grows; the first failure is kept and later writes do nothing. */
typedef struct json_sink {
    char *text; /* NUL-terminated once something was put; the owner frees it */
    int64_t numel, room;
    int indent;
    tess_status st;
} json_sink;

void tess_json_sink_put(json_sink *s, const char *bytes, size_t nbytes);
/** Put a quoted and escaped string. */
void tess_json_sink_put_string(json_sink *s, const char *text);

TESS_END_DECLS
