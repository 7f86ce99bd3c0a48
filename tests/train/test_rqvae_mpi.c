/*
 * Whole RQ-VAE runs on this many ranks against one rank: the same bits, whatever the dtype, the
 * estimator, the optimizer; stopped and resumed on other numbers of ranks; and that they learn.
 */
#include <string.h>

#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"

static tess_status check_against_one_rank(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const rqvae_launch choice[] = {
        {.name = "f32", .override = {"compute.dtype=f32"}},
        {.name = "bf16", .override = {"compute.dtype=bf16", "quantizer.estimator=rotation"}},
        {.name = "sum",
         .override = {"compute.dtype=bf16", "quantizer.loss=sum", "train.optimizer=muon",
                      "compute.activation_checkpointing=on"}},
        {.name = "ema",
         .override = {"quantizer.update=ema", "quantizer.decay=0.8", "quantizer.threshold=1.5"}},
        {.name = "ema-few",
         .override = {"quantizer.update=ema", "train.micro_batches=2", "quantizer.codes=300",
                      "quantizer.threshold=0.5"}},
        {.name = "ema-f32",
         .override = {"quantizer.update=ema", "compute.dtype=f32", "quantizer.init=random",
                      "train.optimizer=lion"}},
        {.name = "few",
         .override = {"train.micro_batches=2", "quantizer.init=sample", "quantizer.codes=300",
                      "compute.threads=2"}},
        {.name = "random",
         .override = {"quantizer.init=random", "train.ema_decay=0.9",
                      "shard.reshard_after_forward=on"}}};
    for (int i = 0; i < TESS_NELEM(choice); i++)
        TESS_TRY(rqvae_check_alone(comm, self, v, &choice[i]));
    return TESS_OK;
}

/* 50 centers of spread 5 leave 1 of 26 where codes tell them apart; half of the loss is far from
 * both. Then: a checkpoint of another run is noticed. */
static tess_status check_learning(tess_comm *comm, vector_run *v)
{
    bool is_done = false;
    static const rqvae_launch more[] = {
        {.name = "more", .override = {"train.steps=1200", "output.checkpoint_every=0"}},
        {.name = "more-ema",
         .override = {"train.steps=1200", "output.checkpoint_every=0", "quantizer.update=ema",
                      "quantizer.threshold=0.5"}}};
    const rqvae_launch other = {.name = "more", .override = {"train.steps=1200", "train.seed=12"}};
    for (int i = 0; i < TESS_NELEM(more); i++) {
        rqvae_outcome out = {0};
        TESS_TRY(rqvae_train(comm, v, &more[i], &is_done));
        TESS_TRY(tess_agree(comm, rqvae_outcome_of(v, more[i].name, &out)));
        TESS_CHECK(out.last_loss < 0.5 * out.first_loss, TESS_E_STATE,
                   "%s: loss went from %g to %g", more[i].name, out.first_loss, out.last_loss);
    }
    const tess_status st = rqvae_train(comm, v, &other, &is_done);
    TESS_CHECK(st == TESS_E_CONFIG && strstr(tess_error_message(), "train.seed: 11 -> 12") != NULL,
               TESS_E_STATE, "resume with another seed: %s: %s", tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    static const struct {
        rqvae_launch l;
        const char *words;
    } wrong[] = {
        {{.name = "no1", .override = {"quantizer.dim=7"}}, "data.path: '"},
        {{.name = "no2", .override = {"quantizer.init=kmeans++"}}, "kmeans, sample, random"},
        {{.name = "no3", .override = {"quantizer.beam=2"}}, "no meaning with model.family rqvae"},
        {{.name = "no4", .override = {"train.mode=full"}}, "no meaning with model.family rqvae"},
        {{.name = "no5", .override = {"lora.rank=2"}}, "no meaning with model.family rqvae"},
        {{.name = "no7", .override = {"quantizer.decay=0.5"}}, "choose ema"},
        {{.name = "no8", .override = {"quantizer.update=ema", "train.ema_decay=0.9"}},
         "averages already"},
        {{.name = "no9",
          .override = {"quantizer.update=ema", "train.optimizer=adamw-schedule-free"}},
         "choose another optimizer"},
        {{.name = "no6", .override = {"quantizer.estimator=gumbel"}}, "straight-through"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++)
        TESS_TRY(rqvae_expect_refused(comm, v, &wrong[i].l, TESS_E_CONFIG, wrong[i].words));
    return TESS_OK;
}

static tess_status check_nan(tess_comm *comm)
{
    vector_run v;
    const rqvae_launch l = {.name = "nan"};
    TESS_TRY(vector_run_create(comm, 2000, 5, VECTORS_ONE_NAN, &v));
    const tess_status st =
        rqvae_expect_refused(comm, &v, &l, TESS_E_FORMAT, "dimension 1 of vector 1234 is nan");
    vector_run_destroy(comm, &v);
    return st;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = check_against_one_rank(comm, self, &v);
    if (st == TESS_OK)
        st = check_learning(comm, &v);
    if (st == TESS_OK)
        st = rqvae_check_resume(comm, self, &v, &(rqvae_launch){.name = "whole"});
    if (st == TESS_OK)
        st = rqvae_check_resume(
            comm, self, &v,
            &(rqvae_launch){.name = "whole-ema",
                            .override = {"quantizer.update=ema", "quantizer.decay=0.8",
                                         "quantizer.threshold=1.5"}});
    if (st == TESS_OK)
        st = check_refusals(comm, &v);
    vector_run_destroy(comm, &v);
    if (st == TESS_OK)
        st = check_nan(comm);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
