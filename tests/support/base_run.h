/**
 * Tiny runs over a frozen base in any format: whole or stopped and resumed, on all ranks or on one,
 * with a quantizer or with one that refuses to be called; and what their plan cuts.
 */
#pragma once

#include "support/tiny_run.h"

enum { BASE_RUN_STEP_NUMEL = 4, BASE_RUN_STOP_AFTER = 2, BASE_RUN_OVERRIDE_MAX = 6 };

typedef struct base_world {
    tess_comm *comm;
    tess_comm *self; /* of this rank alone */
    tiny_run t;
} base_world;

/** One run, or a part of one. */
typedef struct base_life {
    const char *name;                             /* of the run directory */
    const char *overrides[BASE_RUN_OVERRIDE_MAX]; /* "base.format=keep", ...; NULL: no more */
    bool may_quantize;                            /* else a quantizer that is called is an error */
    bool is_stopped;                              /* after BASE_RUN_STOP_AFTER steps */
    const char *group;                            /* NULL: "shard.gather_group=world" */
} base_life;

/** All of these are collective over the world's ranks. */
tess_status base_world_run(tess_comm *comm, tess_status (*body)(base_world *w));
tess_status base_live(base_world *w, tess_comm *comm, const base_life *l);
/** On rank 0, the others wait. */
tess_status base_live_alone(base_world *w, const base_life *l);
/** Two whole runs have the same losses and adapters, bit for bit. */
tess_status base_compare(base_world *w, const char *a, const char *b);
/** The run must be refused before it starts, with this text in the message. */
tess_status base_refuse(base_world *w, const base_life *l, tess_status want, const char *text);
/** A command on rank 0. */
tess_status base_shell(base_world *w, const char *fmt, const char *a, const char *b);
/** tests/golden/`golden` takes the place of the run's source: adapters name that path, and the base
 * id. */
tess_status base_put_source(base_world *w, const char *golden);
/** On several ranks at least one tensor is cut, inside one of its blocks where `is_in_block`, and
 * one rank has parts of two tensors of a unit. */
tess_status base_check_cuts(base_world *w, const base_life *l, bool is_in_block);
