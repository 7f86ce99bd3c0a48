/*
 * k-means jobs with the sources of kernels/cuda, thread by thread, on a device of which the host
 * sees nothing but copies. Errors, codes and counts have the bits of the CPU's run, whatever the
 * number of ranks and whoever holds the codes; runs go on from one to the other; codes files and
 * what they say are equal byte for byte.
 */
#include <stdio.h>
#include <string.h>

#include "core/device.h"
#include "dist/gpu.h"
#include "tests/emulation/emulated_device.h"
#include "tests/emulation/emulation.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"
#include "train/vectors/vectors_code.h"

/* Two blocks, the last one ragged: one rank has both, or some have none; the entries of a beam are
 * more than a block. */
enum { N = 1100, D = 6, RESUMED_NUMEL = 2 };

#define SMALL "quantizer.dim=6"
#define REPLICATED "quantizer.sharding=replicated"
#define ROWS "quantizer.sharding=rows"

typedef struct trial {
    vector_launch launch;
    bool is_replicated, is_by_rows; /* how devices hold the codes */
} trial;

static const trial trials[] = {
    {{.name = "levels",
      .override = {SMALL, "quantizer.passes=1", "quantizer.codes=7", "quantizer.levels=2",
                   "quantizer.refine=1", "quantizer.init=sample"}},
     true,
     true},
    {{.name = "batch",
      .override = {SMALL, "quantizer.passes=2", "quantizer.refine=0", "quantizer.beam=1",
                   "quantizer.batch=500", "quantizer.init=random"}},
     true,
     false},
    {{.name = "groups",
      .override = {SMALL, "quantizer.passes=2", "quantizer.refine=0", "quantizer.codes=5",
                   "quantizer.groups=2", "quantizer.beam=1"}},
     false,
     true},
    {{.name = "spherical",
      .override = {SMALL, "quantizer.passes=2", "quantizer.refine=0", "quantizer.codes=5",
                   "quantizer.spherical=true", "quantizer.beam=1"}},
     true,
     false},
    /* Random codes for clusters: many have no vector, and are repaired. */
    {{.name = "empty",
      .override = {SMALL, "quantizer.passes=2", "quantizer.refine=0", "quantizer.codes=140",
                   "quantizer.init=random", "quantizer.beam=1"}},
     true,
     false},
};

/* ---- launches ---- */

/* A device of this rank for as long as one session. */
typedef struct place {
    tess_device device;
    tess_comm *comm; /* over its memory, or the host's */
    bool is_emulated;
} place;

static tess_status enter(tess_comm *host, bool is_emulated, place *p, vector_launch *l)
{
    *p = (place){.device = emulated_device, .comm = host, .is_emulated = is_emulated};
    if (!is_emulated)
        return TESS_OK;
    l->device = &p->device;
    l->kernels = &tess_kernels_cuda;
    TESS_TRY(emulated_open(TESS_EMULATION_REVERSED));
    return tess_comm_create_staged(host, &p->device, TESS_STAGED_CHUNK_AUTO, &p->comm);
}

static tess_status leave(place *p, tess_status st)
{
    if (!p->is_emulated)
        return st;
    tess_comm_destroy(&p->comm);
    emulated_close();
    return st;
}

/* The run with one override more, in a folder of its own. */
static vector_launch variant(const vector_launch *l, const char *name, const char *override)
{
    vector_launch own = *l;
    int numel = 0;
    while (own.override[numel] != NULL)
        numel++;
    own.override[numel] = override;
    own.name = name;
    return own;
}

/* What the run took of the device is what its plan says. */
static tess_status check_memory(vector_run *v, const char *run)
{
    int64_t planned = 0;
    TESS_TRY(rqvae_planned(v, run, "\"total_nbytes\"", &planned));
    TESS_CHECK((size_t)planned == arena_nbytes, TESS_E_STATE,
               "%s: %zu bytes of the device are taken, %lld planned", run, arena_nbytes,
               (long long)planned);
    return TESS_OK;
}

static tess_status train(tess_comm *comm, vector_run *v, vector_launch l, bool is_emulated,
                         bool *is_done)
{
    place p;
    TESS_TRY(enter(comm, is_emulated, &p, &l));
    tess_status st = leave(&p, vector_run_train(p.comm, v, &l, is_done));
    TESS_TRY(st);
    if (is_emulated && tess_comm_rank(comm) == 0 && tess_emulation_barrier_numel() == 0)
        st = TESS_FAIL(TESS_E_STATE, "%s: no thread of a kernel came to a barrier: were they run?",
                       l.name);
    if (is_emulated && tess_comm_rank(comm) == 0 && st == TESS_OK)
        st = check_memory(v, l.name);
    return is_emulated ? tess_agree(comm, st) : st;
}

static tess_status expect_same(vector_run *v, const char *a_name, const char *b_name)
{
    tess_sha256 a, b;
    TESS_TRY(vector_run_outcome(v, a_name, &a));
    TESS_TRY(vector_run_outcome(v, b_name, &b));
    TESS_CHECK(tess_sha256_is_equal(&a, &b), TESS_E_STATE, "'%s' and '%s' left other bits", a_name,
               b_name);
    return TESS_OK;
}

/* ---- the same bits ---- */

static tess_status check(tess_comm *comm, tess_comm *self, vector_run *v, const trial *t)
{
    static const char *const sharding[] = {REPLICATED, ROWS};
    const vector_launch *l = &t->launch;
    const bool is_wanted[] = {t->is_replicated, t->is_by_rows};
    char name[3][64];
    bool is_done = false;
    tess_status st = TESS_OK;
    snprintf(name[2], sizeof name[2], "%s-cpu", l->name);
    if (tess_comm_rank(comm) == 0)
        st = train(self, v, variant(l, name[2], sharding[0]), false, &is_done);
    TESS_TRY(tess_agree(comm, st));
    for (int i = 0; i < 2; i++) {
        if (!is_wanted[i])
            continue;
        snprintf(name[i], sizeof name[i], "%s-%d", l->name, i);
        TESS_TRY(train(comm, v, variant(l, name[i], sharding[i]), true, &is_done));
        TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? expect_same(v, name[2], name[i])
                                                            : TESS_OK));
    }
    return TESS_OK;
}

/* One step a launch: all ranks on devices, then one of them on the host. */
static tess_status check_resume(tess_comm *comm, tess_comm *self, vector_run *v,
                                const vector_launch *l)
{
    char whole[64], parts[64];
    vector_launch part = variant(l, parts, REPLICATED);
    int64_t is_done = 0;
    int launches = 0;
    snprintf(whole, sizeof whole, "%s-cpu", l->name);
    snprintf(parts, sizeof parts, "%s-parts", l->name);
    part.is_stopped = true;
    for (; is_done == 0; launches++) {
        const bool is_emulated = launches % 2 == 0;
        bool own = false;
        tess_status st = TESS_OK;
        if (is_emulated || tess_comm_rank(comm) == 0)
            st = train(is_emulated ? comm : self, v, part, is_emulated, &own);
        TESS_TRY(tess_agree(comm, st));
        is_done = own;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_done, 1));
    }
    TESS_CHECK(launches > 1, TESS_E_STATE, "%s: one launch did all", l->name);
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? expect_same(v, whole, parts) : TESS_OK);
}

/* ---- encode and decode ---- */

static tess_status convert(tess_comm *comm, vector_run *v, vector_launch l, bool is_emulated)
{
    char codes[600], vectors[600];
    place p;
    tess_session *session = NULL;
    tess_encode_result result;
    snprintf(codes, sizeof codes, "%s/%s.h5", v->dir, is_emulated ? "device" : "host");
    snprintf(vectors, sizeof vectors, "%s/%s.fbin", v->dir, is_emulated ? "device" : "host");
    TESS_TRY(enter(comm, is_emulated, &p, &l));
    tess_status st = vector_run_open(p.comm, v, &l, true, &session);
    if (st == TESS_OK)
        st = tess_session_encode(session, v->file, NULL, codes, &result);
    if (st == TESS_OK)
        st = tess_session_decode(session, codes, vectors);
    tess_session_close(&session);
    return leave(&p, st);
}

/* Of the run that all ranks trained on devices. */
static tess_status check_conversions(tess_comm *comm, vector_run *v, const vector_launch *l)
{
    tess_status st = TESS_OK;
    char name[64];
    snprintf(name, sizeof name, "%s-0", l->name);
    const vector_launch own = variant(l, name, REPLICATED);
    TESS_TRY(convert(comm, v, own, false));
    TESS_TRY(convert(comm, v, own, true));
    if (tess_comm_rank(comm) == 0)
        st = vector_run_expect_same_file(v, "host.h5", "device.h5");
    if (tess_comm_rank(comm) == 0 && st == TESS_OK)
        st = vector_run_expect_same_file(v, "host.fbin", "device.fbin");
    return tess_agree(comm, st);
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, N, D, VECTORS_CLUSTERS, &v);
    for (int i = 0; i < TESS_NELEM(trials) && st == TESS_OK; i++)
        st = check(comm, self, &v, &trials[i]);
    for (int i = 0; i < RESUMED_NUMEL && st == TESS_OK; i++)
        st = check_resume(comm, self, &v, &trials[i].launch);
    if (st == TESS_OK)
        st = check_conversions(comm, &v, &trials[0].launch);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
