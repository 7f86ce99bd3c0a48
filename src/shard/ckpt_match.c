/* What a checkpoint holds against what is wanted: the same, or what exceptions let pass. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

/* ---- what the file holds against what is wanted ---- */

static void describe_shape(const tess_ckpt_tensor *t, char text[200])
{
    ckpt_text out = {text, 200, 0};
    ckpt_text_put(&out, "[");
    for (int i = 0; i < t->dim_numel; i++)
        ckpt_text_put(&out, "%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
    ckpt_text_put(&out, "]");
}

static const char *or_all(const char *role) { return role != NULL ? role : "(all)"; }

/* Kind and size; `wanted` may have another name and place. */
static tess_status compare_kind(const char *where, const tess_ckpt_tensor *stored,
                                const tess_ckpt_tensor *wanted)
{
    char stored_shape[200], wanted_shape[200];
    describe_shape(stored, stored_shape);
    describe_shape(wanted, wanted_shape);
    TESS_CHECK(strcmp(stored_shape, wanted_shape) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' has shape %s, this run needs %s", where, stored->name,
               stored_shape, wanted_shape);
    TESS_CHECK(strcmp(stored->dtype, wanted->dtype) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' is %s, this run needs %s", where, stored->name, stored->dtype,
               wanted->dtype);
    TESS_CHECK(strcmp(stored->quant, wanted->quant) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' is quantized as %s, this run needs %s", where, stored->name,
               stored->quant, wanted->quant);
    return TESS_OK;
}

static tess_status compare_tensor(const char *where, const tess_ckpt_tensor *stored,
                                  const tess_ckpt_tensor *wanted)
{
    TESS_TRY(compare_kind(where, stored, wanted));
    TESS_CHECK(strcmp(stored->unit, wanted->unit) == 0 &&
                   strcmp(or_all(stored->role), or_all(wanted->role)) == 0,
               TESS_E_FORMAT, "'%s': tensor '%s' lies in unit %s role %s, this run has %s role %s",
               where, stored->name, stored->unit, or_all(stored->role), wanted->unit,
               or_all(wanted->role));
    TESS_CHECK(stored->offset_numel == wanted->offset_numel &&
                   stored->extent_numel == wanted->extent_numel,
               TESS_E_FORMAT,
               "'%s': tensor '%s' lies at [%" PRId64 ", +%" PRId64
               ") of its unit, this run has [%" PRId64 ", +%" PRId64 ")",
               where, stored->name, stored->offset_numel, stored->extent_numel,
               wanted->offset_numel, wanted->extent_numel);
    return TESS_OK;
}

static tess_status compare_record(const char *where, const tess_ckpt_record *stored,
                                  const tess_ckpt_record *wanted)
{
    TESS_CHECK(stored->dt == wanted->dt, TESS_E_FORMAT,
               "'%s': slab '%s/%s' is stored as %s, this run needs %s", where, stored->unit,
               stored->role, tess_dtype_name(stored->dt), tess_dtype_name(wanted->dt));
    TESS_CHECK(stored->total_numel == wanted->total_numel, TESS_E_FORMAT,
               "'%s': slab '%s/%s' has %" PRId64 " elements, this run needs %" PRId64, where,
               stored->unit, stored->role, stored->total_numel, wanted->total_numel);
    TESS_CHECK(strcmp(stored->quant, wanted->quant) == 0, TESS_E_FORMAT,
               "'%s': slab '%s/%s' is quantized as '%.200s', this run needs '%.200s'", where,
               stored->unit, stored->role, stored->quant, wanted->quant);
    return TESS_OK;
}

static bool may_leave(const tess_ckpt_load_request *request, const char *unit)
{
    return request != NULL && request->may_leave != NULL &&
           request->may_leave(request->accept_arg, unit);
}

tess_status ckpt_compare_sets(const char *where, const ckpt_index *wanted, const ckpt_manifest *m,
                              const tess_ckpt_load_request *request)
{
    const tess_ckpt_set *w = wanted->set;
    for (int64_t i = 0; i < w->tensor_numel; i++)
        TESS_CHECK(ckpt_index_tensor(&m->index, w->tensors[i].name) >= 0, TESS_E_FORMAT,
                   "'%s': tensor '%s' of this run is missing%s", where, w->tensors[i].name,
                   request != NULL ? " (tessera train --allow-missing NAME starts it new)" : "");
    for (int64_t i = 0; i < m->set.tensor_numel; i++)
        TESS_CHECK(ckpt_index_tensor(wanted, m->tensors[i].name) >= 0 ||
                       may_leave(request, m->tensors[i].unit),
                   TESS_E_FORMAT, "'%s': holds tensor '%s', which this run does not have%s", where,
                   m->tensors[i].name,
                   request != NULL ? " (tessera train --load-map NAME= leaves it)" : "");
    for (int64_t i = 0; i < w->tensor_numel; i++)
        TESS_TRY(compare_tensor(
            where, &m->tensors[ckpt_index_tensor(&m->index, w->tensors[i].name)], &w->tensors[i]));
    for (int64_t i = 0; i < w->record_numel; i++) {
        const tess_ckpt_record *r = &w->records[i];
        const int64_t at = ckpt_index_record(&m->index, r->unit, r->role);
        TESS_CHECK(at >= 0, TESS_E_FORMAT, "'%s': slab '%s/%s' of this run is missing", where,
                   r->unit, r->role);
        TESS_TRY(compare_record(where, &m->records[at], r));
    }
    for (int64_t i = 0; i < m->set.record_numel; i++)
        TESS_CHECK(ckpt_index_record(wanted, m->records[i].unit, m->records[i].role) >= 0 ||
                       may_leave(request, m->records[i].unit),
                   TESS_E_FORMAT, "'%s': holds slab '%s/%s', which this run does not have", where,
                   m->records[i].unit, m->records[i].role);
    return TESS_OK;
}

/* ---- exceptions ---- */

enum { STAR_MAX = 8 };

typedef struct span {
    const char *text;
    size_t nbytes;
} span;

/* Whether `name` is pattern[0, nbytes), and what its stars stand for: as little as fits. */
static bool is_match(const char *pattern, size_t nbytes, const char *name, span star[STAR_MAX])
{
    int last = -1;
    size_t at = 0, behind_star = 0;
    for (;;) {
        if (at < nbytes && pattern[at] == '*') {
            star[++last] = (span){name, 0};
            behind_star = ++at;
        } else if (at == nbytes && *name == '\0') {
            return true;
        } else if (at < nbytes && *name != '\0' && pattern[at] == *name) {
            at++;
            name++;
        } else {
            if (last < 0 || star[last].text[star[last].nbytes] == '\0')
                return false;
            name = star[last].text + ++star[last].nbytes;
            at = behind_star;
        }
    }
}

static int star_numel(const char *text, size_t nbytes)
{
    int numel = 0;
    for (size_t i = 0; i < nbytes; i++)
        numel += text[i] == '*';
    return numel;
}

tess_status tess_ckpt_exceptions_check(const tess_ckpt_exceptions *e)
{
    TESS_CHECK(e->map_numel <= TESS_CKPT_EXCEPTION_MAX &&
                   e->missing_numel <= TESS_CKPT_EXCEPTION_MAX,
               TESS_E_ARG, "more than %d patterns of --load-map or --allow-missing",
               TESS_CKPT_EXCEPTION_MAX);
    for (int64_t i = 0; i < e->map_numel; i++) {
        const char *rule = e->map[i], *equals = strchr(rule, '=');
        TESS_CHECK(
            equals != NULL && equals != rule && strchr(equals + 1, '=') == NULL, TESS_E_ARG,
            "--load-map: expected STORED=NAME, or STORED= to leave it unread, found '%.200s'",
            rule);
        const int left = star_numel(rule, (size_t)(equals - rule));
        TESS_CHECK(left <= STAR_MAX &&
                       (equals[1] == '\0' || left == star_numel(equals + 1, strlen(equals + 1))),
                   TESS_E_ARG, "--load-map: '%.200s' needs as many '*' in both names, at most %d",
                   rule, STAR_MAX);
    }
    for (int64_t i = 0; i < e->missing_numel; i++)
        TESS_CHECK(e->missing[i][0] != '\0' &&
                       star_numel(e->missing[i], strlen(e->missing[i])) <= STAR_MAX,
                   TESS_E_ARG, "--allow-missing: '%.200s': expected a name with at most %d '*'",
                   e->missing[i], STAR_MAX);
    return TESS_OK;
}

typedef struct match_run {
    const char *where;
    const ckpt_index *wanted;
    const ckpt_manifest *m;
    const tess_ckpt_load_request *request;
    const tess_log *log;
    int64_t *source;                 /* [wanted->set->tensor_numel] */
    uint64_t used_map, used_missing; /* by number of the pattern */
} match_run;

/* The right side of a rule, with what the stars of the left stand for. */
static tess_status rename_tensor(const char *where, const char *rule, const span *star,
                                 char out[TESS_CKPT_NAME_NBYTES_MAX + 1])
{
    size_t nbytes = 0;
    for (const char *c = strchr(rule, '=') + 1; *c != '\0'; c++) {
        const span part = *c == '*' ? *star++ : (span){c, 1};
        TESS_CHECK(nbytes + part.nbytes <= TESS_CKPT_NAME_NBYTES_MAX, TESS_E_FORMAT,
                   "'%s': --load-map '%s' makes a name of more than %d bytes", where, rule,
                   TESS_CKPT_NAME_NBYTES_MAX);
        memcpy(out + nbytes, part.text, part.nbytes);
        nbytes += part.nbytes;
    }
    out[nbytes] = '\0';
    return TESS_OK;
}

/* The first rule for a stored tensor, NULL when there is none. */
static const char *find_rule(match_run *run, const char *name, span star[STAR_MAX])
{
    const tess_ckpt_exceptions *e = run->request->exceptions;
    for (int64_t i = 0; i < e->map_numel; i++)
        if (is_match(e->map[i], (size_t)(strchr(e->map[i], '=') - e->map[i]), name, star)) {
            run->used_map |= (uint64_t)1 << i;
            return e->map[i];
        }
    return NULL;
}

/* The same roles, each in a slab of the same dtype. */
static tess_status compare_roles(const match_run *run, int64_t wanted_idx, int64_t stored_idx)
{
    const ckpt_index *w = run->wanted, *s = &run->m->index;
    const char *name = w->set->tensors[wanted_idx].name;
    const int64_t numel = w->first_pair[wanted_idx + 1] - w->first_pair[wanted_idx];
    const int64_t stored_numel = s->first_pair[stored_idx + 1] - s->first_pair[stored_idx];
    TESS_CHECK(numel == stored_numel, TESS_E_FORMAT,
               "'%s': tensor '%s' has %" PRId64 " arrays of state, this run needs %" PRId64,
               run->where, name, stored_numel, numel);
    for (int64_t i = 0; i < numel; i++) {
        const ckpt_pair pair = w->pairs[w->first_pair[wanted_idx] + i];
        const tess_ckpt_record *r = &w->set->records[pair.record_idx];
        const int64_t at = ckpt_stored_record(run->m, stored_idx, r->role);
        TESS_CHECK(at >= 0, TESS_E_FORMAT, "'%s': tensor '%s' has no '%s', which this run needs",
                   run->where, name, r->role);
        const tess_ckpt_record *stored = &run->m->records[at];
        TESS_CHECK(stored->dt == r->dt && strcmp(stored->quant, r->quant) == 0, TESS_E_FORMAT,
                   "'%s': '%s' of tensor '%s' is %s, quantized as '%.200s'; this run needs %s, "
                   "'%.200s'",
                   run->where, r->role, name, tess_dtype_name(stored->dt), stored->quant,
                   tess_dtype_name(r->dt), r->quant);
    }
    return TESS_OK;
}

int64_t ckpt_stored_record(const ckpt_manifest *m, int64_t tensor_idx, const char *role)
{
    for (int64_t p = m->index.first_pair[tensor_idx]; p < m->index.first_pair[tensor_idx + 1]; p++)
        if (strcmp(m->records[m->index.pairs[p].record_idx].role, role) == 0)
            return m->index.pairs[p].record_idx;
    return -1;
}

/* One stored tensor to the one of this run that it is. */
static tess_status place_tensor(match_run *run, int64_t stored_idx)
{
    const tess_ckpt_tensor *t = &run->m->tensors[stored_idx];
    char renamed[TESS_CKPT_NAME_NBYTES_MAX + 1];
    const char *name = t->name;
    span star[STAR_MAX];
    const char *rule = find_rule(run, t->name, star);
    if (rule != NULL) {
        TESS_TRY(rename_tensor(run->where, rule, star, renamed));
        name = renamed;
    }
    if (*name == '\0') {
        tess_log_root(run->log, TESS_LOG_INFO, "load: '%s' of the checkpoint stays unread",
                      t->name);
        return TESS_OK;
    }
    const int64_t at = ckpt_index_tensor(run->wanted, name);
    if (at < 0 && rule == NULL && may_leave(run->request, t->unit))
        return TESS_OK;
    TESS_CHECK(at >= 0, TESS_E_FORMAT,
               "'%s': holds tensor '%s'%s%s, which this run does not have; --load-map '%s=' leaves "
               "it unread",
               run->where, t->name, rule != NULL ? ", by --load-map " : "",
               rule != NULL ? name : "", t->name);
    TESS_CHECK(run->source[at] < 0, TESS_E_FORMAT,
               "'%s': tensors '%s' and '%s' are both to be read as '%s'; change --load-map",
               run->where, run->m->tensors[run->source[at]].name, t->name, name);
    run->source[at] = stored_idx;
    if (rule != NULL)
        tess_log_root(run->log, TESS_LOG_INFO, "load: '%s' is read from '%s'", name, t->name);
    const tess_ckpt_tensor *wanted = &run->wanted->set->tensors[at];
    TESS_TRY(compare_kind(run->where, t, wanted));
    TESS_CHECK(t->extent_numel == wanted->extent_numel, TESS_E_FORMAT,
               "'%s': tensor '%s' covers %" PRId64 " elements of its slab, this run needs %" PRId64,
               run->where, t->name, t->extent_numel, wanted->extent_numel);
    return compare_roles(run, at, stored_idx);
}

/* A tensor of this run that no stored one is. */
static tess_status let_start(match_run *run, const char *name)
{
    const tess_ckpt_exceptions *e = run->request->exceptions;
    bool is_allowed = false;
    span star[STAR_MAX];
    for (int64_t i = 0; i < e->missing_numel; i++)
        if (is_match(e->missing[i], strlen(e->missing[i]), name, star)) {
            run->used_missing |= (uint64_t)1 << i;
            is_allowed = true;
        }
    TESS_CHECK(is_allowed, TESS_E_FORMAT,
               "'%s': tensor '%s' of this run is missing; --allow-missing '%s' starts it new, "
               "--load-map reads it from one of another name",
               run->where, name, name);
    tess_log_root(run->log, TESS_LOG_INFO, "load: '%s' is not in the checkpoint and starts new",
                  name);
    return TESS_OK;
}

/* A pattern that nothing matches is a mistake, and what it was meant for goes another way. */
static tess_status check_used(const match_run *run)
{
    const tess_ckpt_exceptions *e = run->request->exceptions;
    for (int64_t i = 0; i < e->map_numel; i++)
        TESS_CHECK((run->used_map >> i & 1) != 0, TESS_E_FORMAT,
                   "'%s': --load-map '%s' is for no tensor of the checkpoint; 'tessera inspect' "
                   "shows their names",
                   run->where, e->map[i]);
    for (int64_t i = 0; i < e->missing_numel; i++)
        TESS_CHECK((run->used_missing >> i & 1) != 0, TESS_E_FORMAT,
                   "'%s': --allow-missing '%s' matches no tensor of this run that the checkpoint "
                   "lacks; remove it",
                   run->where, e->missing[i]);
    return TESS_OK;
}

tess_status ckpt_match_sets(const char *where, const ckpt_index *wanted, const ckpt_manifest *m,
                            const tess_ckpt_load_request *request, const tess_log *log,
                            int64_t *source)
{
    match_run run = {where, wanted, m, request, log, source, 0, 0};
    for (int64_t i = 0; i < wanted->set->tensor_numel; i++)
        source[i] = -1;
    for (int64_t i = 0; i < m->set.tensor_numel; i++)
        TESS_TRY(place_tensor(&run, i));
    for (int64_t i = 0; i < wanted->set->tensor_numel; i++)
        if (source[i] < 0)
            TESS_TRY(let_start(&run, wanted->set->tensors[i].name));
    return check_used(&run);
}
