/*
 * Whole runs of RQ-VAEs and of a VQ-VAE with the sources of kernels/cuda, thread by thread, on a
 * device of which the host sees nothing but copies: sessions, start codes, averages, entropies,
 * masks, checkpoints, codes of files. At any number of ranks the bits are those of one; against the
 * CPU's kernels losses differ by rounding alone ([Note: bounds of runs] in
 * tests/support/run_curve.c).
 */
#include <inttypes.h>
#include <stdio.h>

#include "core/device.h"
#include "dist/gpu.h"
#include "tests/emulation/emulated_device.h"
#include "tests/emulation/emulation.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"
#include "tests/support/run_curve.h"
#include "train/vectors/vectors_code.h"

#define SHORT "train.steps=3", "train.micro_batches=2", "train.eval_every=3"
enum { IMAGES = 8 };

/* The fixture masks micro-batches 1 to 3 wholly: a step has more. */
#define MASKED "train.steps=3", "train.micro_batches=5", "train.eval_every=3"

enum { BY_GRADIENT = 0, BY_IMAGES = 5 }; /* what files are converted by */

static const rqvae_launch choice[] = {
    {.name = "gradient", .override = {SHORT, "compute.dtype=f32", "quantizer.init=kmeans"}},
    {.name = "rotation",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, orthogonal: 1.0",
     .override = {SHORT, "compute.dtype=bf16", "quantizer.estimator=rotation"}},
    {.name = "ema",
     .override = {SHORT, "compute.dtype=f32", "quantizer.update=ema", "quantizer.threshold=1.5"}},
    {.name = "fsq",
     .quantizer = "type: fsq, axis_levels: [8, 5, 5]",
     .override = {SHORT, "compute.dtype=f32"}},
    {.name = "lfq",
     .quantizer = "type: lfq, code_dim: 5, entropy: 0.1, diversity: 1.0",
     .override = {SHORT, "compute.dtype=f32"}},
    {.name = "images",
     .quantizer = "codes: 19, code_dim: 6",
     .images = "images",
     .override = {SHORT, "compute.dtype=f32", "train.micro_batch=2"}},
    {.name = "fixed",
     .quantizer = "type: random-projection, codes: 19, code_dim: 6, groups: 2",
     .override = {SHORT, "compute.dtype=f32"}},
    {.name = "masked",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, threshold: 1.5",
     .override = {MASKED, "compute.dtype=f32", "quantizer.update=ema", "quantizer.init=kmeans"},
     .is_masked = true},
    {.name = "masked-lfq",
     .quantizer = "type: lfq, code_dim: 5, entropy: 0.1, diversity: 1.0",
     .override = {MASKED, "compute.dtype=f32"},
     .is_masked = true},
    {.name = "masked-images",
     .quantizer = "type: fsq, axis_levels: [8, 5, 5]",
     .images = "images",
     .override = {SHORT, "compute.dtype=f32", "train.micro_batch=2"},
     .is_masked = true},
};

/* Of the host alone. */
static const rqvae_launch by_rows = {
    .name = "rows",
    .override = {SHORT, "compute.dtype=f32", "quantizer.update=ema", "quantizer.sharding=rows"}};

static tess_status train_emulated(tess_comm *host, vector_run *v, rqvae_launch *l)
{
    tess_device device = emulated_device;
    tess_comm *comm = NULL;
    bool is_done = false;
    l->device = &device;
    l->kernels = &tess_kernels_cuda;
    TESS_TRY(emulated_open(TESS_EMULATION_REVERSED));
    TESS_TRY(tess_comm_create_staged(host, &device, TESS_STAGED_CHUNK_AUTO, &comm));
    const tess_status st = rqvae_train(comm, v, l, &is_done);
    const int64_t late_numel = blas.base.late_numel;
    tess_comm_destroy(&comm);
    emulated_close();
    TESS_TRY(st);
    TESS_CHECK(late_numel == 0, TESS_E_STATE, "%s: %" PRId64 " products were not announced",
               l->name, late_numel);
    TESS_CHECK(tess_emulation_barrier_numel() > 0, TESS_E_STATE,
               "%s: no thread of a kernel came to a barrier: were they run?", l->name);
    return TESS_OK;
}

static tess_status train_in(tess_comm *comm, vector_run *v, const rqvae_launch *l,
                            const char *suffix, bool is_emulated)
{
    char name[64];
    rqvae_launch own = *l;
    bool is_done = false;
    snprintf(name, sizeof name, "%s%s", l->name, suffix);
    own.name = name;
    return is_emulated ? train_emulated(comm, v, &own) : rqvae_train(comm, v, &own, &is_done);
}

static tess_status outcome_in(vector_run *v, const rqvae_launch *l, const char *suffix,
                              rqvae_outcome *out)
{
    char name[64];
    snprintf(name, sizeof name, "%s%s", l->name, suffix);
    *out = (rqvae_outcome){.step_numel = 0};
    return rqvae_outcome_of(v, name, out);
}

static tess_status curve_in(vector_run *v, const rqvae_launch *l, const char *suffix,
                            run_curve *out)
{
    char dir[600];
    snprintf(dir, sizeof dir, "%s/%s%s", v->dir, l->name, suffix);
    return run_curve_read(v->ctx.io, dir, out);
}

static tess_status compare(vector_run *v, const rqvae_launch *l)
{
    const bool is_bf16 = strcmp(l->override[3], "compute.dtype=bf16") == 0;
    const run_bound *bound = NULL;
    rqvae_outcome alone, all;
    run_curve cpu, device;
    TESS_TRY(run_bound_find(l->images != NULL ? "vqvae-f32"
                            : is_bf16         ? "rqvae-bf16"
                                              : "rqvae-f32",
                            &bound));
    TESS_TRY(outcome_in(v, l, "-alone", &alone));
    TESS_TRY(outcome_in(v, l, "-all", &all));
    TESS_TRY(curve_in(v, l, "-cpu", &cpu));
    TESS_TRY(curve_in(v, l, "-alone", &device));
    TESS_CHECK(all.step_numel == 3 && memcmp(&all.digest, &alone.digest, sizeof all.digest) == 0,
               TESS_E_STATE, "%s: other bits than on one rank; losses %.9g and %.9g", l->name,
               all.last_loss, alone.last_loss);
    const tess_status st = run_curve_compare(bound, &cpu, &device);
    if (st != TESS_OK)
        fprintf(stderr, "%s:\n", l->name);
    return st;
}

static tess_status check(tess_comm *comm, tess_comm *self, vector_run *v, const rqvae_launch *l)
{
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0) {
        st = train_in(self, v, l, "-cpu", false);
        if (st == TESS_OK)
            st = train_in(self, v, l, "-alone", true);
    }
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(train_in(comm, v, l, "-all", true));
    if (tess_comm_rank(comm) == 0)
        st = compare(v, l);
    return tess_agree(comm, st);
}

/* ---- encode and decode ---- */

/* Of the run that one rank trained, on the CPU or emulated. */
static tess_status convert(tess_comm *host, vector_run *v, const rqvae_launch *l,
                           const char *suffix, bool is_emulated, tess_encode_result *result)
{
    char name[64], from[600], codes[600], decoded[600];
    rqvae_launch own = *l;
    tess_device device = emulated_device;
    tess_comm *comm = host;
    tess_session *session = NULL;
    snprintf(name, sizeof name, "%s-alone", l->name);
    snprintf(from, sizeof from, "%s%s%s", l->images == NULL ? v->file : v->dir,
             l->images == NULL ? "" : "/", l->images == NULL ? "" : l->images);
    snprintf(codes, sizeof codes, "%s/%s.h5", v->dir, suffix);
    snprintf(decoded, sizeof decoded, "%s/%s.fbin", v->dir, suffix);
    own.name = name;
    if (is_emulated) {
        own.device = &device;
        own.kernels = &tess_kernels_cuda;
        TESS_TRY(emulated_open(TESS_EMULATION_REVERSED));
        TESS_TRY(tess_comm_create_staged(host, &device, TESS_STAGED_CHUNK_AUTO, &comm));
    }
    tess_status st = rqvae_open(comm, v, &own, true, &session);
    if (st == TESS_OK)
        st = tess_session_encode(session, from, NULL, codes, result);
    if (st == TESS_OK)
        st = tess_session_decode(session, codes, decoded);
    tess_session_close(&session);
    if (is_emulated) {
        tess_comm_destroy(&comm);
        emulated_close();
    }
    return st;
}

/* The same files from one rank and from all; the CPU's error within the bound of one pass. */
static tess_status check_conversion(tess_comm *comm, tess_comm *self, vector_run *v,
                                    const rqvae_launch *l)
{
    const run_bound *bound = NULL;
    tess_encode_result cpu = {0}, alone = {0}, all = {0};
    tess_status st = run_bound_find(l->images != NULL ? "vqvae-pass" : "rqvae-pass", &bound);
    if (tess_comm_rank(comm) == 0 && st == TESS_OK) {
        st = convert(self, v, l, "cpu", false, &cpu);
        if (st == TESS_OK)
            st = convert(self, v, l, "alone", true, &alone);
        if (st == TESS_OK)
            st = run_bound_check(bound, "error", cpu.error, alone.error);
    }
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(convert(comm, v, l, "all", true, &all));
    if (tess_comm_rank(comm) == 0) {
        st = vector_run_expect_same_file(v, "alone.h5", "all.h5");
        if (st == TESS_OK)
            st = vector_run_expect_same_file(v, "alone.fbin", "all.fbin");
        if (st == TESS_OK && all.error != alone.error)
            st = TESS_FAIL(TESS_E_STATE, "%s: error %.17g, on one rank %.17g", l->name, all.error,
                           alone.error);
    }
    return tess_agree(comm, st);
}

static tess_status check_refused(tess_comm *comm, vector_run *v)
{
    rqvae_launch l = by_rows;
    const tess_status st = train_emulated(comm, v, &l);
    TESS_CHECK(st == TESS_E_UNSUPPORTED &&
                   strstr(tess_error_message(), "rows searches codes with the host's cores") !=
                       NULL,
               TESS_E_STATE, "%s: expected a refusal, found %s: %s", l.name, tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

/* More than half of the 16 positions of each image are valid. */
static tess_status write_positions(vector_run *v)
{
    float valid[IMAGES * 16];
    for (int i = 0; i < IMAGES * 16; i++)
        valid[i] = (i / 16 * 3 + i % 16 * 5) % 8 < 5 ? 1.0f : 0.0f;
    return rqvae_write(v, "positions.fbin", valid, (const int64_t[]){IMAGES, 16});
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    /* Whole micro-batches: the shorter last one of an evaluation is not announced. */
    tess_status st = vector_run_create(comm, 304, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = rqvae_make_images(comm, &v, "images", IMAGES);
    if (st == TESS_OK)
        st = tess_agree(comm, tess_comm_rank(comm) == 0 ? write_positions(&v) : TESS_OK);
    if (st == TESS_OK)
        st = rqvae_make_mask(comm, &v);
    if (st == TESS_OK)
        st = tess_agree(comm, check_refused(comm, &v));
    for (int i = 0; i < TESS_NELEM(choice) && st == TESS_OK; i++)
        st = check(comm, self, &v, &choice[i]);
    for (int i = 0; i < TESS_NELEM(choice) && st == TESS_OK; i++)
        if (i == BY_GRADIENT || i == BY_IMAGES)
            st = check_conversion(comm, self, &v, &choice[i]);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
