/*
 * YAML text to a small tree, by libyaml's events.
 *
 * [Note: what is refused] A run file is data: anchors, aliases, tags, merge keys and several
 * documents have no use in it and make text that reads one way and means another. The tree has at
 * most RUN_DEPTH_MAX levels, so nothing recurses deeper than that.
 */
#include <yaml.h>

#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_priv.h"

typedef struct reader {
    yaml_parser_t parser;
    const char *text;
    size_t text_nbytes;
    const run_where *where;
    run_node *open[RUN_DEPTH_MAX]; /* containers from the root to the innermost open one */
    int open_numel;
    bool has_root;
    char *pending_name; /* key whose value comes next, owned */
    int pending_line;
    int pending_column;
} reader;

void tess_run_node_fini(run_node *node)
{
    for (int64_t i = 0; i < node->child_numel; i++)
        tess_run_node_fini(&node->child[i]);
    tess_free(node->child);
    tess_free(node->name);
    tess_free(node->text);
    *node = (run_node){0};
}

static tess_status refuse_at(const reader *r, yaml_mark_t mark, const char *what)
{
    char place[TESS_RUN_PLACE_NBYTES];
    const run_where where = tess_run_where_of(r->where, (int)mark.line + 1, (int)mark.column + 1);
    tess_run_where_text(&where, place);
    return TESS_FAIL(TESS_E_CONFIG, "%s: %s", place, what);
}

/* libyaml gives bytes outside its alphabet by offset only. */
static yaml_mark_t mark_of_offset(const reader *r, size_t offset)
{
    yaml_mark_t mark = {0};
    for (size_t i = 0; i < offset && i < r->text_nbytes; i++) {
        mark.column++;
        if (r->text[i] == '\n') {
            mark.line++;
            mark.column = 0;
        }
    }
    return mark;
}

static tess_status refuse_syntax(const reader *r)
{
    const yaml_parser_t *p = &r->parser;
    const bool is_reader = p->error == YAML_READER_ERROR;
    TESS_CHECK(p->error != YAML_MEMORY_ERROR, TESS_E_MEMORY, "%s: out of memory while parsing",
               r->where->source_name);
    char what[256];
    const char *problem = p->problem != NULL ? p->problem : "syntax error";
    (void)snprintf(what, sizeof what, "not YAML: %s", problem);
    return refuse_at(r, is_reader ? mark_of_offset(r, p->problem_offset) : p->problem_mark, what);
}

static run_node *innermost(reader *r)
{
    return r->open_numel == 0 ? NULL : r->open[r->open_numel - 1];
}

/* Capacity is the next power of two, so growing costs one copy per element on average. */
static tess_status append_child(run_node *parent, run_node **child)
{
    const int64_t numel = parent->child_numel;
    if ((numel & (numel - 1)) == 0) {
        void *grown = parent->child;
        TESS_TRY(tess_realloc_array(numel, numel == 0 ? 1 : 2 * numel, sizeof(run_node), &grown));
        parent->child = grown;
    }
    parent->child_numel = numel + 1;
    *child = &parent->child[numel];
    return TESS_OK;
}

/* Place for the node that an event starts: the root, or a child of the innermost container. */
static tess_status new_node(reader *r, const yaml_event_t *event, run_node *root, run_node **out)
{
    run_node *node = root;
    run_node *parent = innermost(r);
    if (parent != NULL)
        TESS_TRY(append_child(parent, &node));
    *node = (run_node){.line = (int)event->start_mark.line + 1,
                       .column = (int)event->start_mark.column + 1,
                       .name = r->pending_name,
                       .name_line = r->pending_line,
                       .name_column = r->pending_column};
    r->pending_name = NULL;
    r->has_root = true;
    *out = node;
    return TESS_OK;
}

static bool wants_name(reader *r)
{
    const run_node *parent = innermost(r);
    return parent != NULL && parent->kind == RUN_MAP && r->pending_name == NULL;
}

static tess_status on_scalar(reader *r, const yaml_event_t *event, run_node *root)
{
    const char *value = (const char *)event->data.scalar.value;
    const size_t nbytes = event->data.scalar.length;
    if (event->data.scalar.anchor != NULL)
        return refuse_at(r, event->start_mark, "anchors (&name) are not allowed in a run file");
    if (event->data.scalar.tag != NULL)
        return refuse_at(r, event->start_mark, "tags (!name) are not allowed in a run file");
    if (strlen(value) != nbytes)
        return refuse_at(r, event->start_mark, "a value holds a NUL byte");
    if (wants_name(r)) {
        r->pending_line = (int)event->start_mark.line + 1;
        r->pending_column = (int)event->start_mark.column + 1;
        return tess_strndup(value, nbytes, &r->pending_name);
    }
    run_node *node = NULL;
    TESS_TRY(new_node(r, event, root, &node));
    node->kind = RUN_SCALAR;
    node->is_quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    node->text_nbytes = nbytes;
    return tess_strndup(value, nbytes, &node->text);
}

static tess_status on_container(reader *r, const yaml_event_t *event, run_node *root)
{
    const bool is_map = event->type == YAML_MAPPING_START_EVENT;
    const void *anchor =
        is_map ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
    const void *tag = is_map ? event->data.mapping_start.tag : event->data.sequence_start.tag;
    if (anchor != NULL)
        return refuse_at(r, event->start_mark, "anchors (&name) are not allowed in a run file");
    if (tag != NULL)
        return refuse_at(r, event->start_mark, "tags (!name) are not allowed in a run file");
    if (wants_name(r))
        return refuse_at(r, event->start_mark, "a key must be a plain word");
    if (r->open_numel == RUN_DEPTH_MAX)
        return refuse_at(r, event->start_mark, "nested too deeply for a run file");
    run_node *node = NULL;
    TESS_TRY(new_node(r, event, root, &node));
    node->kind = is_map ? RUN_MAP : RUN_LIST;
    r->open[r->open_numel++] = node;
    return TESS_OK;
}

static tess_status on_event(reader *r, const yaml_event_t *event, run_node *root)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return on_scalar(r, event, root);
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        return on_container(r, event, root);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        r->open_numel--;
        return TESS_OK;
    case YAML_ALIAS_EVENT:
        return refuse_at(r, event->start_mark, "aliases (*name) are not allowed in a run file");
    case YAML_DOCUMENT_START_EVENT:
        if (r->has_root)
            return refuse_at(r, event->start_mark, "a run file is one document");
        return TESS_OK;
    case YAML_NO_EVENT:
    case YAML_STREAM_START_EVENT:
    case YAML_STREAM_END_EVENT:
    case YAML_DOCUMENT_END_EVENT:
        return TESS_OK;
    }
    return TESS_OK;
}

static tess_status read_events(reader *r, run_node *root)
{
    for (bool is_done = false; !is_done;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&r->parser, &event))
            return refuse_syntax(r);
        const tess_status st = on_event(r, &event, root);
        is_done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        TESS_TRY(st);
    }
    return TESS_OK;
}

tess_status tess_run_yaml_read(const char *text, size_t nbytes, const run_where *where,
                               run_node *root)
{
    TESS_CHECK(nbytes <= TESS_RUN_TEXT_LIMIT_NBYTES, TESS_E_CONFIG,
               "%s: %zu bytes, a run file has at most %d", where->source_name, nbytes,
               TESS_RUN_TEXT_LIMIT_NBYTES);
    reader r = {.text = text, .text_nbytes = nbytes, .where = where};
    TESS_CHECK(yaml_parser_initialize(&r.parser), TESS_E_MEMORY, "%s: no memory for the parser",
               where->source_name);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, nbytes);
    *root = (run_node){0};
    tess_status st = read_events(&r, root);
    if (st == TESS_OK && !r.has_root)
        st = TESS_FAIL(TESS_E_CONFIG, "%s: the file is empty, expected sections such as 'model:'",
                       where->source_name);
    yaml_parser_delete(&r.parser);
    tess_free(r.pending_name);
    if (st != TESS_OK)
        tess_run_node_fini(root);
    return st;
}
