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

typedef struct options {
    const char **path; /* [numel] targets */
    char **pattern;    /* [numel] the same, matching themselves alone */
    tess_peft_pattern *rank, *alpha;
    tess_peft_options o;
    tess_peft_adapter *adapter;
} options;

static double rank_of(const adapter_group *g) { return (double)g->rank; }
static double alpha_of(const adapter_group *g) { return g->alpha; }

static double commonest(const adapter_output *o, double (*value_of)(const adapter_group *))
{
    double best = 0.0;
    int64_t best_numel = 0;
    for (int64_t i = 0; i < o->group_numel; i++) {
        int64_t numel = 0;
        for (int64_t j = 0; j < o->group_numel; j++)
            numel += value_of(&o->group[j]) == value_of(&o->group[i]);
        if (numel > best_numel) {
            best = value_of(&o->group[i]);
            best_numel = numel;
        }
    }
    return best;
}

/* Groups are in order of their paths, so patterns come out sorted, as PEFT's file wants them. */
static tess_status fill_options(const adapter_output *o, options *p)
{
    const int64_t numel = o->group_numel;
    TESS_TRY(tess_alloc_array(numel, sizeof *p->path, (void **)&p->path));
    TESS_TRY(tess_alloc_array(numel, sizeof *p->pattern, (void **)&p->pattern));
    TESS_TRY(tess_alloc_array(numel, sizeof *p->rank, (void **)&p->rank));
    TESS_TRY(tess_alloc_array(numel, sizeof *p->alpha, (void **)&p->alpha));
    p->o.rank = (int64_t)commonest(o, rank_of);
    p->o.alpha = commonest(o, alpha_of);
    for (int64_t i = 0; i < numel; i++) {
        const adapter_group *g = &o->group[i];
        p->path[i] = g->stem;
        TESS_TRY(tess_peft_escape_path(g->stem, &p->pattern[i]));
        if (g->rank != p->o.rank)
            p->rank[p->o.rank_pattern_numel++] =
                (tess_peft_pattern){p->pattern[i], (double)g->rank};
        if (g->alpha != p->o.alpha)
            p->alpha[p->o.alpha_pattern_numel++] = (tess_peft_pattern){p->pattern[i], g->alpha};
    }
    int target_numel = 0;
    TESS_TRY(tess_to_int(numel, &target_numel));
    p->o.targets = (tess_peft_modules){.name = p->path, .name_numel = target_numel};
    p->o.rank_pattern = p->rank;
    p->o.alpha_pattern = p->alpha;
    return TESS_OK;
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
        for (int part = TESS_ADAPTER_A; part <= TESS_ADAPTER_B; part++) {
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

static tess_status write_with(const adapter_output *o, const tess_peft_spec *spec, options *p)
{
    tess_peft_writer *w = NULL;
    TESS_TRY(tess_alloc_array(o->group_numel, sizeof *p->adapter, (void **)&p->adapter));
    for (int64_t i = 0; i < o->group_numel; i++) {
        const adapter_group *g = &o->group[i];
        p->adapter[i] = (tess_peft_adapter){g->stem, g->rank, g->in_numel, g->out_numel};
    }
    const tess_peft_content content = {.spec = spec,
                                       .adapter = p->adapter,
                                       .adapter_numel = o->group_numel,
                                       .dt = o->to->dt,
                                       .identity = identity_of(o->from)};
    tess_status st = tess_peft_writer_create(o->io, o->dir, &content, &w);
    if (st == TESS_OK)
        st = append_all(o, w);
    tess_peft_writer_destroy(&w);
    return st;
}

tess_status adapter_write_peft(const adapter_output *o)
{
    options p = {0};
    tess_peft_spec *spec = NULL;
    tess_status st = TESS_OK;
    if (o->from->peft == NULL) {
        st = fill_options(o, &p);
        if (st == TESS_OK)
            st = tess_peft_spec_create(&p.o, &spec);
    }
    if (st == TESS_OK)
        st = write_with(o, spec != NULL ? spec : tess_peft_dir_spec(o->from->peft), &p);
    tess_peft_spec_destroy(&spec);
    for (int64_t i = 0; p.pattern != NULL && i < o->group_numel; i++)
        tess_free(p.pattern[i]);
    tess_free(p.pattern);
    tess_free(p.path);
    tess_free(p.rank);
    tess_free(p.alpha);
    tess_free(p.adapter);
    return st;
}
