/*
 * An adapter as a PEFT directory. One that was read from such a directory keeps its options; any
 * other gets its modules as targets, the commonest rank and alpha as r and lora_alpha, and the
 * rest as patterns.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/json_priv.h"
#include "format/peft_priv.h"

/* Options with what they point to. */
typedef struct options {
    const char **path; /* [numel] targets */
    char **pattern;    /* [numel] the same, matching themselves alone */
    char *regex;       /* any of them; NULL: as a list */
    int64_t numel;
    tess_peft_pattern *rank, *alpha;
    tess_peft_options o;
} options;

static double rank_of(const tess_adapter_module *m) { return (double)m->rank; }
static double alpha_of(const tess_adapter_module *m) { return m->alpha; }

static double commonest(const tess_adapter *from, double (*value_of)(const tess_adapter_module *))
{
    double best = 0.0;
    int64_t best_numel = 0;
    for (int64_t i = 0; i < from->numel; i++) {
        const double value = value_of(&from->module[i].is);
        int64_t numel = 0;
        for (int64_t j = 0; j < from->numel; j++)
            numel += value_of(&from->module[j].is) == value;
        if (numel > best_numel) {
            best = value;
            best_numel = numel;
        }
    }
    return best;
}

/* A pattern for ranks may begin at any dot of a path, unless it says otherwise. */
static tess_status pattern_of(const tess_adapter *from, const char *path, char **out)
{
    char *escaped = NULL;
    TESS_TRY(tess_peft_escape_path(path, &escaped));
    if (!from->is_flux) {
        *out = escaped;
        return TESS_OK;
    }
    const tess_status st = tess_asprintf(out, "^%s", escaped);
    tess_free(escaped);
    return st;
}

/* An entry of a list is the end of a path: "proj_out" would be that of every single block too. */
static tess_status join_patterns(options *p)
{
    void *memory = NULL;
    size_t nbytes = 0, at = 0;
    for (int64_t i = 0; i < p->numel; i++)
        nbytes += strlen(p->pattern[i]) + 1;
    TESS_TRY(tess_alloc(nbytes, &memory));
    p->regex = memory;
    for (int64_t i = 0; i < p->numel; i++)
        at += (size_t)snprintf(p->regex + at, nbytes - at, "%s%s", i > 0 ? "|" : "", p->pattern[i]);
    p->o.targets.regex = p->regex;
    return TESS_OK;
}

static tess_status fill_options(const tess_adapter *from, options *p)
{
    TESS_TRY(tess_alloc_array(from->numel, sizeof *p->path, (void **)&p->path));
    TESS_TRY(tess_alloc_array(from->numel, sizeof *p->pattern, (void **)&p->pattern));
    TESS_TRY(tess_alloc_array(from->numel, sizeof *p->rank, (void **)&p->rank));
    TESS_TRY(tess_alloc_array(from->numel, sizeof *p->alpha, (void **)&p->alpha));
    p->o.rank = (int64_t)commonest(from, rank_of);
    p->o.alpha = commonest(from, alpha_of);
    for (int64_t i = 0; i < from->numel; i++) {
        const tess_adapter_module *m = &from->module[i].is, *first = &from->module[0].is;
        TESS_CHECK(m->has_magnitude == first->has_magnitude, TESS_E_UNSUPPORTED,
                   "'%s': one of '%s' and '%s' has magnitudes (DoRA), the other has none; expected "
                   "all modules alike",
                   from->path, first->path, m->path);
        p->path[i] = m->path;
        TESS_TRY(pattern_of(from, m->path, &p->pattern[i]));
        p->numel++;
        if (m->rank != p->o.rank)
            p->rank[p->o.rank_pattern_numel++] =
                (tess_peft_pattern){p->pattern[i], (double)m->rank};
        if (m->alpha != p->o.alpha)
            p->alpha[p->o.alpha_pattern_numel++] = (tess_peft_pattern){p->pattern[i], m->alpha};
    }
    p->o.use_dora = from->numel > 0 && from->module[0].is.has_magnitude;
    p->o.rank_pattern = p->rank;
    p->o.alpha_pattern = p->alpha;
    if (from->is_flux)
        return join_patterns(p);
    p->o.targets.name = p->path;
    return tess_to_int(from->numel, &p->o.targets.name_numel);
}

tess_status tess_adapter_spec(const tess_adapter *adapter, tess_peft_spec **out)
{
    options p = {0};
    if (adapter->peft != NULL)
        return tess_peft_spec_create(tess_peft_spec_options(tess_peft_dir_spec(adapter->peft)),
                                     out);
    tess_status st = fill_options(adapter, &p);
    if (st == TESS_OK)
        st = tess_peft_spec_create(&p.o, out);
    for (int64_t i = 0; i < p.numel; i++)
        tess_free(p.pattern[i]);
    tess_free(p.pattern);
    tess_free(p.regex);
    tess_free(p.path);
    tess_free(p.rank);
    tess_free(p.alpha);
    return st;
}

static tess_peft_identity identity_of(const tess_adapter *from)
{
    return (tess_peft_identity){.base_name = tess_adapter_base_name(from),
                                .base_sha256 = tess_adapter_metadata(from, "base.sha256"),
                                .base_quant = tess_adapter_metadata(from, "base.quant"),
                                .base_id = tess_adapter_metadata(from, "base.identity"),
                                .base_previous = tess_adapter_metadata(from, "base.previous"),
                                .compute_dtype = tess_adapter_metadata(from, "compute.dtype"),
                                .master_dtype =
                                    tess_adapter_metadata(from, "adapter.master_dtype")};
}

static tess_status append_all(const adapter_output *o, tess_peft_writer *w)
{
    for (int64_t i = 0; i < o->group_numel; i++) {
        const adapter_group *g = &o->group[i];
        const int part_numel = g->has_magnitude ? TESS_ADAPTER_PART_NUMEL : TESS_ADAPTER_MAGNITUDE;
        for (int part = TESS_ADAPTER_A; part < part_numel; part++) {
            void *bytes = NULL;
            TESS_TRY(adapter_make_part(o->from, g, (tess_adapter_part)part, o->to->dt, &bytes));
            const size_t nbytes = (size_t)adapter_group_part_numel(g, (tess_adapter_part)part) *
                                  tess_dtype_block_nbytes(o->to->dt);
            const tess_status st =
                tess_peft_writer_append(w, i, (tess_peft_part)part, bytes, nbytes);
            tess_free(bytes);
            TESS_TRY(st);
        }
    }
    return tess_peft_writer_finish(w);
}

static tess_status write_with(const adapter_output *o, const tess_peft_spec *spec,
                              tess_peft_adapter *adapter)
{
    tess_peft_writer *w = NULL;
    for (int64_t i = 0; i < o->group_numel; i++) {
        const adapter_group *g = &o->group[i];
        adapter[i] = (tess_peft_adapter){g->stem, g->rank, g->in_numel, g->out_numel};
    }
    const tess_peft_content content = {.spec = spec,
                                       .adapter = adapter,
                                       .adapter_numel = o->group_numel,
                                       .dt = o->to->dt,
                                       .task_type = "CAUSAL_LM",
                                       .identity = identity_of(o->from)};
    tess_status st = tess_peft_writer_create(o->io, o->dir, &content, &w);
    if (st == TESS_OK)
        st = append_all(o, w);
    tess_peft_writer_destroy(&w);
    return st;
}

tess_status adapter_write_peft(const adapter_output *o)
{
    tess_peft_spec *spec = NULL;
    void *adapter = NULL;
    tess_status st = tess_adapter_spec(o->from, &spec);
    if (st == TESS_OK)
        st = tess_alloc_array(o->group_numel, sizeof(tess_peft_adapter), &adapter);
    if (st == TESS_OK)
        st = write_with(o, spec, adapter);
    tess_free(adapter);
    tess_peft_spec_destroy(&spec);
    return st;
}
