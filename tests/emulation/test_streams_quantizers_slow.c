/*
 * Quantized autoencoders on emulated devices: start codes, averages, entropies, masks, evaluation
 * give the host's bits in any legal order, every op touches what emu_ranges*.c lists, and each wait
 * that is taken away shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_session.h"
#include "support/rqvae_run.h"
#include "train/session_priv.h"

#define STEPS "train.steps=2", "output.checkpoint_every=0"
#define SHORT STEPS, "compute.dtype=f32"

/* One or more of each quantizer, and between them every op of theirs that models call. */
static const rqvae_launch choice[] = {
    {.name = "ema",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, threshold: 1.5",
     .override = {SHORT, "quantizer.update=ema", "quantizer.init=kmeans"}},
    {.name = "rotation",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, orthogonal: 1.0",
     .override = {STEPS, "compute.dtype=bf16", "quantizer.estimator=rotation"}},
    {.name = "cosine",
     .quantizer = "type: cosine, codes: 19, code_dim: 6",
     .override = {SHORT, "quantizer.update=ema"}},
    {.name = "drawn",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, temperature: 0.5, init: random",
     .override = {SHORT}},
    {.name = "simvq", .quantizer = "type: simvq, codes: 19, code_dim: 6", .override = {SHORT}},
    {.name = "fsq", .quantizer = "type: fsq, axis_levels: [8, 5, 5]", .override = {SHORT}},
    {.name = "residual-fsq",
     .quantizer = "type: residual-fsq, axis_levels: [5, 5], levels: 2",
     .override = {SHORT}},
    {.name = "latent", .quantizer = "type: latent, axis_levels: [8, 5, 5]", .override = {SHORT}},
    {.name = "lfq",
     .quantizer = "type: lfq, code_dim: 5, entropy: 0.1, diversity: 1.0",
     .override = {SHORT}},
    {.name = "fixed",
     .quantizer = "type: random-projection, codes: 19, code_dim: 6, groups: 2",
     .override = {SHORT}},
    {.name = "masked",
     .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, threshold: 1.5",
     .override = {SHORT, "quantizer.update=ema", "quantizer.init=kmeans"},
     .is_masked = true},
    {.name = "masked-lfq",
     .quantizer = "type: lfq, code_dim: 6, groups: 2, entropy: 0.1, diversity: 1.0",
     .override = {SHORT},
     .is_masked = true},
    {.name = "images",
     .quantizer = "codes: 19, code_dim: 6",
     .images = "images",
     .override = {SHORT, "train.micro_batch=2"}},
};

/* ---- one run ---- */

static tess_status make_data(tess_comm *comm, const rqvae_launch *l, vector_run *v)
{
    TESS_TRY(vector_run_create(comm, 96, 19, VECTORS_CLUSTERS, v));
    if (l->is_masked)
        TESS_TRY(rqvae_make_mask(comm, v));
    return l->images != NULL ? rqvae_make_images(comm, v, l->images, 8) : TESS_OK;
}

static tess_status run(const void *launch, tess_comm *comm, const emu_rank *rank,
                       emu_removal *removal, emu_trained *out)
{
    vector_run v;
    tess_session *s = NULL;
    rqvae_launch l = *(const rqvae_launch *)launch;
    l.device = rank != NULL ? rank->device : NULL;
    l.kernels = rank != NULL ? &emu_kernels : &tess_kernels_cpu;
    TESS_TRY(make_data(comm, &l, &v));
    tess_status st = rqvae_open(comm, &v, &l, false, &s);
    if (st == TESS_OK)
        st = emu_session_use(s, rank, removal, out);
    tess_session_close(&s);
    vector_run_destroy(comm, &v);
    return st;
}

static emu_subject subject_of(const rqvae_launch *l)
{
    return (emu_subject){.name = l->name, .launch = l, .run = run};
}

static void test_bits(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(choice); i++) {
        const emu_subject subject = subject_of(&choice[i]);
        emu_session_check_orders(&subject, (emu_options){0}, (uint64_t)i);
    }
}

/* ---- ops touch what is listed ---- */

/* Of all ops of codebooks and quantizers; those that no model calls are test_streams_ops.c's. */
static void check_whole(bool has_run[EMU_KERNEL_NUMEL])
{
    static const emu_kernel elsewhere[] = {EMU_KERNEL_code_mean,
                                           EMU_KERNEL_code_residual,
                                           EMU_KERNEL_quantizer_directed,
                                           EMU_KERNEL_quantizer_directed_backward,
                                           EMU_KERNEL_quantizer_level_decode,
                                           EMU_KERNEL_quantizer_sign_decode};
    for (int i = 0; i < TESS_NELEM(elsewhere); i++)
        has_run[elsewhere[i]] = true;
#define X(name, type)                                                                              \
    if (!has_run[EMU_KERNEL_##name])                                                               \
        fail_msg("no run calls '%s': nothing holds it to its list", #name);
    EMU_CODE_LIST(X)
#undef X
#define X(name, type)                                                                              \
    if (!has_run[EMU_KERNEL_quantizer_##name])                                                     \
        fail_msg("no run calls '%s': nothing holds it to its list", #name);
    EMU_QUANTIZER_LIST(X)
#undef X
}

static void test_operands(void **state)
{
    (void)state;
    bool has_run[EMU_KERNEL_NUMEL] = {false};
    for (int i = 0; i < TESS_NELEM(choice); i++) {
        const emu_subject subject = subject_of(&choice[i]);
        const emu_options o = {.rank_numel = 1, .is_audited = true};
        emu_report report;
        emu_session_run(&subject, &o, &report);
        for (int k = 0; k < EMU_KERNEL_NUMEL; k++)
            has_run[k] = has_run[k] || report.has_run[k];
    }
    check_whole(has_run);
}

/* ---- waits ---- */

/* A stack with averages, signs with a pass ahead of the step, convolutions. */
static bool takes_waits(const rqvae_launch *l)
{
    return strcmp(l->name, "ema") == 0 || strcmp(l->name, "lfq") == 0 ||
           strcmp(l->name, "images") == 0;
}

static void test_missing_waits(void **state)
{
    (void)state;
    int wait_numel = 0;
    for (int i = 0; i < TESS_NELEM(choice); i++)
        for (int rank_numel = 1; rank_numel <= 3 && takes_waits(&choice[i]); rank_numel++) {
            const emu_subject subject = subject_of(&choice[i]);
            const emu_options o = {.rank_numel = rank_numel, .seed = 1};
            wait_numel += emu_session_take_each(&subject, &o);
        }
    print_message("%d waits taken away\n", wait_numel);
    assert_true(wait_numel > 0);
}

/* ---- checkpoints, one rank: their writers are threads ---- */

typedef struct part {
    vector_run *v;
    rqvae_launch launch;
    bool is_done;
} part;

static tess_status train_part(void *arg, const emu_rank *rank)
{
    part *p = arg;
    p->launch.device = rank->device;
    p->launch.kernels = &emu_kernels;
    return rqvae_train(rank->comm, p->v, &p->launch, &p->is_done);
}

/* Stopped after every step: averages go to checkpoints and back to the device. */
static int train_in_parts(vector_run *v, const rqvae_launch *l)
{
    part p = {.v = v, .launch = *l};
    int numel = 0;
    p.launch.name = "parts";
    p.launch.is_stopped = true;
    for (; !p.is_done; numel++) {
        const emu_options o = {.rank_numel = 1, .seed = (uint64_t)numel};
        emu_report report;
        emu_run(&o, train_part, &p, &report);
        emu_session_check(l->name, &o, &report);
    }
    return numel;
}

static void check_resume(tess_comm *self, const rqvae_launch *l)
{
    vector_run v;
    rqvae_outcome whole = {0}, parts = {0};
    bool is_done = false;
    assert_int_equal(make_data(self, l, &v), TESS_OK);
    if (rqvae_train(self, &v, l, &is_done) != TESS_OK)
        fail_msg("%s on the host: %s", l->name, tess_error_message());
    assert_int_equal(train_in_parts(&v, l), 3);
    assert_int_equal(rqvae_outcome_of(&v, l->name, &whole), TESS_OK);
    assert_int_equal(rqvae_outcome_of(&v, "parts", &parts), TESS_OK);
    if (!tess_sha256_is_equal(&whole.digest, &parts.digest))
        fail_msg("%s: in parts on a device the last loss is %.17g, whole on the host %.17g",
                 l->name, parts.last_loss, whole.last_loss);
    vector_run_destroy(self, &v);
}

static void test_resume(void **state)
{
    (void)state;
    static const rqvae_launch launch = {
        .name = "whole",
        .quantizer = "codes: 19, levels: 2, code_dim: 6, groups: 2, threshold: 1.5",
        .override = {"train.steps=3", "compute.dtype=f32", "quantizer.update=ema",
                     "quantizer.init=kmeans"}};
    tess_comm *self = NULL;
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    check_resume(self, &launch);
    tess_comm_destroy(&self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operands),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_missing_waits),
        cmocka_unit_test(test_resume),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
