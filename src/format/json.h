/**
 * JSON values: strict reading with errors that name file and place, and deterministic writing.
 *
 * A root value owns its whole tree; every other value is borrowed from it. A parsed tree keeps the
 * file's member order and cannot be changed; a built one can. Limits of the reader: 64 MiB, depth
 * 32, no duplicate keys, integers in int64, finite doubles, valid UTF-8 without NUL, no literal -0
 * (it would lose its sign), no trailing data.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/io.h"

TESS_BEGIN_DECLS

enum { TESS_JSON_LIMIT_NBYTES = 64 << 20, TESS_JSON_DEPTH_MAX = 32 };

typedef enum tess_json_type {
    TESS_JSON_NULL,
    TESS_JSON_BOOL,
    TESS_JSON_I64,
    TESS_JSON_F64,
    TESS_JSON_STRING,
    TESS_JSON_ARRAY,
    TESS_JSON_OBJECT
} tess_json_type;

typedef struct tess_json tess_json;

/**
 * Parse one value that fills `text`. Local.
 *
 * @param source  name for messages (a path, perhaps with ":line"); copied
 * @param nbytes  bytes of `text`; no terminator needed
 * @return TESS_E_FORMAT with source, line and column
 */
TESS_MUST_CHECK tess_status tess_json_parse(const char *source, const char *text, size_t nbytes,
                                            tess_json **out);
/** Read and parse a file. Local. @return TESS_E_IO, TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_json_read(tess_io *io, const char *path, tess_json **out);
/** tess_json_read for files whose texts alone are of use: integers of any size are read, as
 * doubles. Local. @return as tess_json_read */
TESS_MUST_CHECK tess_status tess_json_read_reals(tess_io *io, const char *path, tess_json **out);
/** Free a root and its tree; NULL inside is fine. */
void tess_json_destroy(tess_json **root);

tess_json_type tess_json_type_of(const tess_json *v);
/** "an object", "a string", ...: for messages. */
const char *tess_json_type_text(tess_json_type type);
/** Items of an array, members of an object, else 0. */
int64_t tess_json_numel(const tess_json *v);
/** Item or member `idx` in file order (sorted in a built object), NULL outside. */
const tess_json *tess_json_at(const tess_json *v, int64_t idx);
/** Key of a member, NULL for items and roots. */
const char *tess_json_key(const tess_json *v);
/** Member by key, NULL when absent or when `object` is not an object. O(log members). */
const tess_json *tess_json_find(const tess_json *object, const char *key);
/** "config.json: rope_scaling.factor" or "config.json: layer_types[3]" into `text`. */
void tess_json_where(const tess_json *v, char *text, size_t text_nbytes);
/** Source given to the parser ("built value" for a built tree), borrowed from the tree. */
const char *tess_json_source(const tess_json *v);

/* Values with their type checked: TESS_E_FORMAT names source, path, expected and found. Strings are
 * borrowed from the tree. as_f64 accepts integers too; as_i64 refuses 1.0 and 1e3. */
TESS_MUST_CHECK tess_status tess_json_as_string(const tess_json *v, const char **out);
TESS_MUST_CHECK tess_status tess_json_as_i64(const tess_json *v, int64_t *out);
TESS_MUST_CHECK tess_status tess_json_as_f64(const tess_json *v, double *out);
TESS_MUST_CHECK tess_status tess_json_as_bool(const tess_json *v, bool *out);
/** Check that `v` is of this type (an object, an array). */
TESS_MUST_CHECK tess_status tess_json_expect(const tess_json *v, tess_json_type type);

/* Required members: absent is TESS_E_FORMAT too. */
TESS_MUST_CHECK tess_status tess_json_get_string(const tess_json *object, const char *key,
                                                 const char **out);
/** A string copied to `out` [room_nbytes], its NUL included; a longer one is TESS_E_FORMAT. */
TESS_MUST_CHECK tess_status tess_json_get_text(const tess_json *object, const char *key,
                                               size_t room_nbytes, char *out);
TESS_MUST_CHECK tess_status tess_json_get_i64(const tess_json *object, const char *key,
                                              int64_t *out);
TESS_MUST_CHECK tess_status tess_json_get_f64(const tess_json *object, const char *key,
                                              double *out);
TESS_MUST_CHECK tess_status tess_json_get_object(const tess_json *object, const char *key,
                                                 const tess_json **out);
TESS_MUST_CHECK tess_status tess_json_get_array(const tess_json *object, const char *key,
                                                const tess_json **out);

/* Optional members: absent or null gives `absent`; any other type is TESS_E_FORMAT. */
TESS_MUST_CHECK tess_status tess_json_opt_string(const tess_json *object, const char *key,
                                                 const char *absent, const char **out);
TESS_MUST_CHECK tess_status tess_json_opt_i64(const tess_json *object, const char *key,
                                              int64_t absent, int64_t *out);
TESS_MUST_CHECK tess_status tess_json_opt_f64(const tess_json *object, const char *key,
                                              double absent, double *out);
TESS_MUST_CHECK tess_status tess_json_opt_bool(const tess_json *object, const char *key,
                                               bool absent, bool *out);
/** Absent or null gives NULL. */
TESS_MUST_CHECK tess_status tess_json_opt_object(const tess_json *object, const char *key,
                                                 const tess_json **out);
TESS_MUST_CHECK tess_status tess_json_opt_array(const tess_json *object, const char *key,
                                                const tess_json **out);

/** Empty root to build in. Local. */
TESS_MUST_CHECK tess_status tess_json_create_object(tess_json **out);
TESS_MUST_CHECK tess_status tess_json_create_array(tess_json **out);
/*
 * Add to a built object (`key` is copied, must be new) or append to a built array (`key` NULL).
 * Local. @return TESS_E_STATE parsed tree, duplicate key, or key that does not fit the parent;
 * TESS_E_RANGE a double that is not finite, or depth above 32; TESS_E_ARG text that is not UTF-8
 */
TESS_MUST_CHECK tess_status tess_json_add_object(tess_json *parent, const char *key,
                                                 tess_json **out);
TESS_MUST_CHECK tess_status tess_json_add_array(tess_json *parent, const char *key,
                                                tess_json **out);
TESS_MUST_CHECK tess_status tess_json_add_string(tess_json *parent, const char *key,
                                                 const char *value);
TESS_MUST_CHECK tess_status tess_json_add_i64(tess_json *parent, const char *key, int64_t value);
TESS_MUST_CHECK tess_status tess_json_add_f64(tess_json *parent, const char *key, double value);
TESS_MUST_CHECK tess_status tess_json_add_bool(tess_json *parent, const char *key, bool value);
TESS_MUST_CHECK tess_status tess_json_add_null(tess_json *parent, const char *key);
/** Add a deep copy of any value. */
TESS_MUST_CHECK tess_status tess_json_add_copy(tess_json *parent, const char *key,
                                               const tess_json *value);

/**
 * Text of a value: keys sorted bytewise, doubles with the fewest of 15 to 17 digits that read back
 * to the same bits and always with a point or exponent, no trailing newline. Equal values give
 * equal bytes. Local.
 *
 * @param indent  spaces per level; 0 gives one line without spaces
 * @param[out] text    NUL-terminated, free with tess_free
 * @param[out] nbytes  without the NUL; may be NULL
 */
TESS_MUST_CHECK tess_status tess_json_dump(const tess_json *v, int indent, char **text,
                                           size_t *nbytes);
/** Dump and a newline into a file, by temporary name, fsync and rename. Local. */
TESS_MUST_CHECK tess_status tess_json_write(tess_io *io, const char *path, const tess_json *v,
                                            int indent);

TESS_END_DECLS
