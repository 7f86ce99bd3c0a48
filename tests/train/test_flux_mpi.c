/*
 * Whole FLUX.1 runs on this many ranks against one rank: the same bits over bases of every format,
 * in both layouts of the weights, stopped and resumed on other numbers of ranks without the source.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/flux_run.h"
#include "tests/support/rank_test.h"

enum { STEPS = 4 };

static tess_status expect_same(flux_run *r, const char *a_name, const char *b_name)
{
    flux_outcome a, b;
    TESS_TRY(flux_run_outcome(r, a_name, &a));
    TESS_TRY(flux_run_outcome(r, b_name, &b));
    TESS_CHECK(tess_sha256_is_equal(&a.digest, &b.digest), TESS_E_STATE,
               "runs '%s' and '%s' differ: last losses %.17g and %.17g", a_name, b_name,
               a.last_loss, b.last_loss);
    TESS_CHECK(a.step_numel == STEPS, TESS_E_STATE, "run '%s' has %d steps", a_name, a.step_numel);
    return TESS_OK;
}

/* With all ranks and with one: the same bits. */
static tess_status check_one(tess_comm *comm, tess_comm *self, flux_run *r, const flux_launch *l)
{
    char name[64];
    flux_launch alone = *l;
    bool is_done = false;
    snprintf(name, sizeof name, "%s-alone", l->name);
    alone.name = name;
    TESS_TRY(flux_run_train(comm, r, l, &is_done));
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = flux_run_train(self, r, &alone, &is_done);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = expect_same(r, l->name, name);
    return tess_agree(comm, st);
}

static tess_status check_formats(tess_comm *comm, tess_comm *self, flux_run *r)
{
    static const struct {
        flux_size size;
        const char *name, *format, *more;
    } base[] = {
        {FLUX_RUN_TINY, "bf16", "bf16", "lora.targets=all+ffs+embedder"},
        {FLUX_RUN_TINY, "int8", "int8", "lora.targets=kohya"},
        {FLUX_RUN_TINY, "nf4", "nf4", "lora.targets=ai-toolkit"},
        {FLUX_RUN_TINY, "q8", "q8_0", "lora.targets=all-linear"},
        {FLUX_RUN_TINY, "dora", "int8", "lora.dora=true"},
        {FLUX_RUN_WIDE, "wide-bf16", "bf16", "shard.gather_group=world"},
        {FLUX_RUN_WIDE, "wide-nf4", "nf4", "compute.activation_checkpointing=on"},
        {FLUX_RUN_WIDE, "wide-int8", "qint8", "shard.gather_group=1"},
        {FLUX_RUN_WIDE, "wide-int4", "int4", "shard.gather_group=world"},
        {FLUX_RUN_WIDE, "wide-int2", "int2", "lora.dropout=0.1"},
        {FLUX_RUN_WIDE, "wide-fp8", "e4m3", "shard.gather_group=world"},
        {FLUX_RUN_WIDE, "wide-q8", "q8_0", "compute.threads=2"},
    };
    for (int i = 0; i < TESS_NELEM(base); i++) {
        char format[32];
        flux_launch l = {.name = base[i].name, .model = r->model[base[i].size]};
        snprintf(format, sizeof format, "base.format=%s", base[i].format);
        l.override[0] = format;
        l.override[1] = base[i].more;
        TESS_TRY(check_one(comm, self, r, &l));
    }
    return TESS_OK;
}

/* Every weight in f32 and bf16, one sample a micro-batch, masks and other draws. */
static tess_status check_modes(tess_comm *comm, tess_comm *self, flux_run *r)
{
    const flux_launch launch[] = {
        {.name = "full",
         .model = r->model[FLUX_RUN_TINY],
         .override = {"train.mode=full", "base.format=keep"}},
        {.name = "f32",
         .model = r->model[FLUX_RUN_TINY],
         .override = {"compute.dtype=f32", "train.micro_batch=1", "objective.timesteps=uniform",
                      "objective.weighting=cosmap", "train.ema_decay=0.9",
                      "sample.prompts=[two cats, the sea]", "sample.width=64", "sample.height=32",
                      "sample.steps=3"}},
    };
    for (int i = 0; i < TESS_NELEM(launch); i++)
        TESS_TRY(check_one(comm, self, r, &launch[i]));
    return TESS_OK;
}

/* Both layouts of the same weights: the same bits. */
static tess_status check_layouts(tess_comm *comm, flux_run *r)
{
    for (int size = 0; size < FLUX_RUN_SIZE_NUMEL; size++) {
        bool is_done = false;
        char name[2][32];
        for (int k = 0; k < 2; k++) {
            snprintf(name[k], sizeof name[k], "layout-%d-%d", size, k);
            const flux_launch l = {.name = name[k],
                                   .model = k == 0 ? r->model[size] : r->single[size],
                                   .override = {"base.format=nf4", "lora.targets=all+ffs"}};
            TESS_TRY(flux_run_train(comm, r, &l, &is_done));
        }
        TESS_TRY(tess_agree(comm, expect_same(r, name[0], name[1])));
    }
    return TESS_OK;
}

/* Stopped after every step, with all ranks and with one in turn, the source gone after the first.
 */
static tess_status check_resume(tess_comm *comm, tess_comm *self, flux_run *r, const char *format)
{
    char base[32], name[2][32], copy[400], command[1024];
    int64_t is_over = 0;
    int launches = 0;
    bool is_done = false;
    snprintf(base, sizeof base, "base.format=%s", format);
    snprintf(name[0], sizeof name[0], "whole-%s", format);
    snprintf(name[1], sizeof name[1], "parts-%s", format);
    snprintf(copy, sizeof copy, "%s/gone-%s", r->dir, format);
    snprintf(command, sizeof command, "cp -r '%s' '%s'", r->model[FLUX_RUN_WIDE], copy);
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0 && system(command) != 0)
        st = TESS_FAIL(TESS_E_IO, "%s", command);
    TESS_TRY(tess_agree(comm, st));
    const flux_launch whole = {
        .name = name[0], .model = r->model[FLUX_RUN_WIDE], .override = {base, "output.base=copy"}};
    const flux_launch parts = {
        .name = name[1], .model = copy, .override = {base, "output.base=copy"}, .is_stopped = true};
    TESS_TRY(flux_run_train(comm, r, &whole, &is_done));
    for (; is_over == 0; launches++) {
        st = TESS_OK;
        is_done = false;
        if (launches % 2 == 0)
            st = flux_run_train(comm, r, &parts, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = flux_run_train(self, r, &parts, &is_done);
        TESS_TRY(tess_agree(comm, st));
        is_over = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_over, 1));
        snprintf(command, sizeof command, "rm -rf '%s'", copy);
        if (tess_comm_rank(comm) == 0 && system(command) != 0)
            st = TESS_FAIL(TESS_E_IO, "%s", command);
        TESS_TRY(tess_agree(comm, st));
    }
    TESS_CHECK(launches == STEPS, TESS_E_STATE, "%d launches of one step each", launches);
    return tess_agree(comm, expect_same(r, name[0], name[1]));
}

static tess_status expect_refused(tess_comm *comm, flux_run *r, const flux_launch *l,
                                  tess_status code, const char *words)
{
    tess_session *session = NULL;
    const tess_status st = flux_run_open(comm, r, l, TESS_SESSION_TRAIN, &session);
    tess_session_close(&session);
    TESS_CHECK(st == code && strstr(tess_error_message(), words) != NULL, TESS_E_STATE,
               "%s: expected a refusal with '%s', found %s: %s", l->name, words,
               tess_status_name(st), tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

/* What would only be noticed after hours. */
static tess_status check_refusals(tess_comm *comm, flux_run *r)
{
    const char *model = r->model[FLUX_RUN_TINY];
    char lacking[400], command[1200];
    const struct {
        flux_launch l;
        const char *words;
    } wrong[] = {
        {{.name = "no1",
          .model = model,
          .override = {"sample.prompts=[a typo]", "sample.width=64", "sample.height=64"}},
         "holds no text"},
        {{.name = "no2",
          .model = model,
          .override = {"sample.prompts=[two cats]", "sample.width=256"}},
         "data.resolution"},
        {{.name = "no3", .model = model, .override = {"lora.dora=true", "output.export=kohya"}},
         "use diffusers or peft"},
        {{.name = "no4", .model = model, .override = {"output.export=gguf"}}, "use diffusers"},
        {{.name = "no5", .model = model, .override = {"objective.masked_loss=true"}}, "no masks"},
        {{.name = "no6", .model = model, .override = {"data.text_length=5"}}, "texts of 8 tokens"},
    };
    for (int i = 0; i < TESS_NELEM(wrong); i++)
        TESS_TRY(expect_refused(comm, r, &wrong[i].l, TESS_E_CONFIG, wrong[i].words));
    snprintf(lacking, sizeof lacking, "%s/lacking", r->dir);
    snprintf(command, sizeof command,
             "cp -r '%s' '%s' && sed -i 's/\"guidance_embeds\": true/\"guidance_embeds\": false/' "
             "'%s/config.json'",
             model, lacking, lacking);
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0 && system(command) != 0)
        st = TESS_FAIL(TESS_E_IO, "%s", command);
    TESS_TRY(tess_agree(comm, st));
    return expect_refused(comm, r, &(flux_launch){.name = "no7", .model = lacking}, TESS_E_FORMAT,
                          "has no place in the model");
}

static tess_status run_all(tess_comm *comm, tess_comm *self, flux_run *r)
{
    TESS_TRY(check_refusals(comm, r));
    TESS_TRY(check_formats(comm, self, r));
    TESS_TRY(check_modes(comm, self, r));
    TESS_TRY(check_layouts(comm, r));
    TESS_TRY(check_resume(comm, self, r, "bf16"));
    TESS_TRY(check_resume(comm, self, r, "int8"));
    return check_resume(comm, self, r, "int4");
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    flux_run r;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = flux_run_create(comm, &r);
    if (st == TESS_OK)
        st = run_all(comm, self, &r);
    flux_run_destroy(comm, &r);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
