/*
 * Whole runs over images on this many ranks against one rank: the same bits with codes that follow
 * averages, with levels and with signs, whose entropy is that of a whole step; stopped and resumed
 * on other numbers of ranks; and that they learn.
 * Runs at 5 and 8 ranks too: K = 19 codes divide by none, M = 5 micro-batches of 2 images by 5
 * alone, and 37 images are no whole number of steps.
 */
#include <string.h>

#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"

#define SMALL "train.micro_batch=2"
#define AVERAGED "type: vq, codes: 19, code_dim: 4, update: ema, decay: 0.8, threshold: 1.5"

static tess_status check_against_one_rank(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const rqvae_launch choice[] = {
        {.name = "vq", .quantizer = AVERAGED, .override = {SMALL, "compute.dtype=f32"}},
        {.name = "vq-bf16",
         .quantizer = AVERAGED,
         .override = {SMALL, "compute.dtype=bf16", "shard.reshard_after_forward=on"}},
        {.name = "fsq",
         .quantizer = "type: fsq, axis_levels: [5, 4, 3]",
         .override = {SMALL, "compute.dtype=f32", "compute.threads=2"}},
        {.name = "fsq-bf16",
         .quantizer = "type: fsq, axis_levels: [5, 4, 3]",
         .override = {SMALL, "compute.dtype=bf16", "compute.activation_checkpointing=on"}},
        {.name = "lfq",
         .quantizer = "type: lfq, code_dim: 5, bias: false",
         .override = {SMALL, "train.micro_batches=2", "train.optimizer=muon"}},
        {.name = "levels",
         .quantizer = "codes: 19, code_dim: 4, levels: 2, groups: 2, estimator: rotation",
         .override = {SMALL, "quantizer.loss=sum", "quantizer.residual_blocks=0"}}};
    for (int i = 0; i < TESS_NELEM(choice); i++) {
        rqvae_launch l = choice[i];
        l.images = "images";
        TESS_TRY(rqvae_check_alone(comm, self, v, &l));
    }
    return TESS_OK;
}

static tess_status check_resume(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const rqvae_launch whole[] = {
        {.name = "whole-vq", .quantizer = AVERAGED, .images = "images", .override = {SMALL}},
        {.name = "whole-fsq",
         .quantizer = "type: fsq, axis_levels: [5, 4, 3]",
         .images = "images",
         .override = {SMALL}}};
    for (int i = 0; i < TESS_NELEM(whole); i++)
        TESS_TRY(rqvae_check_resume(comm, self, v, &whole[i]));
    return TESS_OK;
}

/* Half of the loss is far from what the first step has, and from what one color for all of an image
 * could reach. */
static tess_status check_learning(tess_comm *comm, vector_run *v)
{
    static const rqvae_launch more[] = {
        {.name = "more-vq",
         .quantizer = AVERAGED,
         .images = "images",
         .override = {SMALL, "train.steps=300", "output.checkpoint_every=0"}},
        {.name = "more-fsq",
         .quantizer = "type: fsq, axis_levels: [5, 4, 3]",
         .images = "images",
         .override = {SMALL, "train.steps=300", "output.checkpoint_every=0"}}};
    for (int i = 0; i < TESS_NELEM(more); i++) {
        rqvae_outcome out = {0};
        bool is_done = false;
        TESS_TRY(rqvae_train(comm, v, &more[i], &is_done));
        TESS_TRY(tess_agree(comm, rqvae_outcome_of(v, more[i].name, &out)));
        TESS_CHECK(out.last_loss < 0.5 * out.first_loss, TESS_E_STATE,
                   "%s: loss went from %g to %g", more[i].name, out.first_loss, out.last_loss);
    }
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    static const struct {
        rqvae_launch l;
        tess_status code;
        const char *words;
    } wrong[] = {{{.name = "no1", .override = {"quantizer.encoder=[8]"}},
                  TESS_E_CONFIG,
                  "no meaning with model.family vqvae"},
                 {{.name = "no2", .override = {"quantizer.dim=7"}},
                  TESS_E_CONFIG,
                  "no meaning with model.family vqvae"},
                 {{.name = "no3", .override = {"quantizer.downsample=5"}},
                  TESS_E_CONFIG,
                  "images of 16 x 16 are not halved 5 times"},
                 {{.name = "no4", .override = {"quantizer.image=[3, 16, 32]"}},
                  TESS_E_CONFIG,
                  "holds images of 16 x 16 with 3 channels, the model takes images of 32 x 16"},
                 {{.name = "no5", .override = {"quantizer.image=[2, 16, 16]"}},
                  TESS_E_CONFIG,
                  "channels (1 or 3)"},
                 {{.name = "no6", .override = {"quantizer.type=residual-kmeans"}},
                  TESS_E_CONFIG,
                  "with model.family vqvae"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++) {
        rqvae_launch l = wrong[i].l;
        l.images = "images";
        TESS_TRY(rqvae_expect_refused(comm, v, &l, wrong[i].code, wrong[i].words));
    }
    const rqvae_launch vectors = {.name = "no7", .override = {"quantizer.channels=8"}};
    return rqvae_expect_refused(comm, v, &vectors, TESS_E_CONFIG,
                                "no meaning with model.family rqvae");
}

static tess_status check_mixed(tess_comm *comm, vector_run *v)
{
    const rqvae_launch l = {.name = "mixed", .images = "mixed"};
    TESS_TRY(rqvae_make_images(comm, v, "mixed", 3));
    TESS_TRY(tess_agree(comm,
                        tess_comm_rank(comm) == 0 ? rqvae_make_image(v, "mixed", 3, 12) : TESS_OK));
    TESS_TRY(rqvae_expect_refused(comm, v, &l, TESS_E_FORMAT, "mixed/003.npy': image of 12 x 12"));
    return rqvae_expect_refused(comm, v, &l, TESS_E_FORMAT, "as in '000.npy'");
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = rqvae_make_images(comm, &v, "images", 37);
    if (st == TESS_OK)
        st = check_against_one_rank(comm, self, &v);
    if (st == TESS_OK)
        st = check_resume(comm, self, &v);
    if (st == TESS_OK)
        st = check_learning(comm, &v);
    if (st == TESS_OK)
        st = check_refusals(comm, &v);
    if (st == TESS_OK)
        st = check_mixed(comm, &v);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
