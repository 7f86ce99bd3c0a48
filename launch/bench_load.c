/*
 * tessera bench load: from nothing to the end of the first step, by kind of source.
 *
 * A built-in language model is written as safetensors, once more as GGUF, and lives on in a
 * checkpoint (HDF5); of other runs the source that they name is measured, and a checkpoint.
 */
#include <inttypes.h>
#include <stdio.h>

#include "core/clock.h"
#include "core/memory.h"
#include "launch/bench_session.h"
#include "train/rewrite/quantize.h"

/* ---- sources ---- */

typedef struct export_arg {
    const char *dir;
} export_arg;

static tess_status export_model(tess_session *session, tess_comm *group, void *arg)
{
    const tess_export_request request = {.dir = ((const export_arg *)arg)->dir,
                                         .format = TESS_RUN_EXPORT_HF,
                                         .weights = TESS_RUN_WEIGHTS_TRAINED,
                                         .dt = TESS_BF16};
    (void)group;
    return tess_session_export(session, &request);
}

/* Random weights as a directory of safetensors. */
static tess_status write_safetensors(tess_bench *b, const tess_bench_job *like, const char *dir)
{
    export_arg arg = {dir};
    tess_bench_job job = *like;
    job.setting[job.setting_numel++] = "train.mode=full";
    job.has_no_keys = true;
    job.format = NULL;
    return tess_bench_on_ranks(b, &job, tess_comm_world(b->comm), export_model, &arg, NULL);
}

static tess_status write_gguf(tess_bench *b, const char *dir, const char *path)
{
    static const tess_run_override key = {"base.format=bf16", 1};
    const tess_quantize_options options = {.model = dir,
                                           .output = path,
                                           .choice = {.key = &key, .key_numel = 1},
                                           .storage = TESS_U8,
                                           .shard_nbytes = (int64_t)5 << 30,
                                           .thread_numel = 1};
    tess_quantize_result result = {0};
    tess_status st = TESS_OK;
    if (tess_comm_rank(b->comm) == 0)
        st = tess_quantize_model(b->ctx, &options, &result);
    tess_quantize_result_fini(&result);
    return tess_agree(b->comm, st);
}

/* ---- times ---- */

enum { OPEN, READ, MAKE, DISTRIBUTE, REST, FIRST_STEP, TOTAL, PHASE_NUMEL };
static const char *const phase_name[PHASE_NUMEL] = {"open", "read",       "quantize", "distribute",
                                                    "rest", "first_step", "total"};

typedef struct start {
    double begun_s;
    double phase_s[PHASE_NUMEL]; /* of the slowest rank in each */
} start;

static tess_status look_at_start(tess_session *session, tess_comm *group, void *arg)
{
    start *s = arg;
    const tess_open_times t = tess_session_open_times(session);
    int64_t most[PHASE_NUMEL];
    const double step_s = tess_clock_s();
    TESS_TRY(tess_session_train(session));
    const double end_s = tess_clock_s();
    const double own[PHASE_NUMEL] = {t.open_s, t.read_s,       t.make_s,          t.distribute_s,
                                     t.rest_s, end_s - step_s, end_s - s->begun_s};
    for (int i = 0; i < PHASE_NUMEL; i++)
        most[i] = (int64_t)(1e9 * own[i]);
    TESS_TRY(tess_comm_control(group, NULL, 0, most, PHASE_NUMEL));
    for (int i = 0; i < PHASE_NUMEL; i++)
        s->phase_s[i] = 1e-9 * (double)most[i];
    return TESS_OK;
}

static tess_status load_members(const tess_bench *b, const tess_bench_case *what,
                                const tess_bench_run *run, const char *source,
                                const tess_bench_spread *spread, tess_json *root)
{
    TESS_TRY(tess_bench_add_run(root, what, run, tess_comm_world(b->comm)));
    TESS_TRY(tess_json_add_string(root, "source", source));
    for (int i = 0; i < PHASE_NUMEL; i++)
        TESS_TRY(tess_bench_add_spread(root, phase_name[i], spread[i]));
    return tess_json_add_i64(root, "repeats", b->options->repeat_numel);
}

static void show(const tess_bench *b, const char *name, const char *source,
                 const tess_bench_spread *s)
{
    tess_bench_row(b, "%-16.16s %-12s %8.3f %8.3f %8.3f %10.3f %8.3f %10.3f %8.3f s", name, source,
                   s[OPEN].median, s[READ].median, s[MAKE].median, s[DISTRIBUTE].median,
                   s[REST].median, s[FIRST_STEP].median, s[TOTAL].median);
}

static tess_status measure_source(tess_bench *b, tess_bench_job *job, const char *source)
{
    double second[PHASE_NUMEL][TESS_BENCH_REPEAT_MAX];
    tess_bench_spread spread[PHASE_NUMEL];
    tess_bench_run run = {0};
    tess_json *root = NULL;
    tess_status st = TESS_OK;
    job->measure = (tess_session_measure){.step_numel = 1};
    for (int i = 0; i < b->options->repeat_numel; i++) {
        start s = {.begun_s = tess_clock_s()};
        TESS_TRY(tess_bench_on_ranks(b, job, tess_comm_world(b->comm), look_at_start, &s, &run));
        for (int k = 0; k < PHASE_NUMEL; k++)
            second[k][i] = s.phase_s[k];
    }
    for (int k = 0; k < PHASE_NUMEL; k++)
        spread[k] = tess_bench_spread_of(second[k], (int)b->options->repeat_numel);
    show(b, job->what->name, source, spread);
    if (tess_comm_rank(b->comm) == 0)
        st = tess_json_create_object(&root);
    if (root != NULL)
        st = load_members(b, job->what, &run, source, spread, root);
    return tess_bench_line(b, root, st);
}

/* ---- the part ---- */

static tess_status from_files(tess_bench *b, const tess_bench_scratch *scratch,
                              const tess_bench_job *like)
{
    char dir[TESS_BENCH_PATH_NBYTES + 16], gguf[TESS_BENCH_PATH_NBYTES + 16];
    char model[TESS_BENCH_PATH_NBYTES + 32];
    snprintf(dir, sizeof dir, "%s/weights", scratch->path);
    snprintf(gguf, sizeof gguf, "%s/weights.gguf", scratch->path);
    TESS_TRY(write_safetensors(b, like, dir));
    TESS_TRY(write_gguf(b, dir, gguf));
    const char *const path[] = {dir, gguf}, *const name[] = {"safetensors", "gguf"};
    for (int i = 0; i < TESS_NELEM(path); i++) {
        tess_bench_job job = *like;
        snprintf(model, sizeof model, "model.path=%s", path[i]);
        job.setting[job.setting_numel++] = model;
        job.setting[job.setting_numel++] = "model.init=weights";
        TESS_TRY(measure_source(b, &job, name[i]));
    }
    if (tess_comm_rank(b->comm) != 0)
        return tess_agree(b->comm, TESS_OK);
    tess_status st = tess_bench_remove(b, dir);
    if (st == TESS_OK)
        st = tess_bench_remove(b, gguf);
    return tess_agree(b->comm, st);
}

static tess_status train_one(tess_session *session, tess_comm *group, void *arg)
{
    (void)group;
    (void)arg;
    return tess_session_train(session);
}

/* A checkpoint, with the base where the run keeps it there, and starts from it. */
static tess_status from_checkpoint(tess_bench *b, const tess_bench_job *like)
{
    tess_bench_job job = *like;
    job.measure = (tess_session_measure){.step_numel = 1, .save_every = 1};
    TESS_TRY(tess_bench_on_ranks(b, &job, tess_comm_world(b->comm), train_one, NULL, NULL));
    job.may_resume = true;
    TESS_TRY(measure_source(b, &job, "hdf5"));
    return tess_agree(b->comm,
                      tess_comm_rank(b->comm) == 0 ? tess_bench_remove(b, like->dir) : TESS_OK);
}

static tess_status measure_load(tess_bench *b, const tess_bench_scratch *scratch,
                                const tess_bench_case *what, const char *format)
{
    char dir[TESS_BENCH_PATH_NBYTES + 16];
    snprintf(dir, sizeof dir, "%s/run", scratch->path);
    const tess_bench_job job = {.what = what, .format = format, .dir = dir};
    if (what->has_model_files) {
        TESS_TRY(from_files(b, scratch, &job));
    } else {
        tess_bench_job own = job;
        TESS_TRY(measure_source(b, &own, what->is_builtin ? "random" : "run file"));
    }
    return from_checkpoint(b, &job);
}

tess_status tess_bench_load(tess_bench *b)
{
    tess_bench_row(b, "%-16s %-12s %8s %8s %8s %10s %8s %10s %8s", "run", "source", "open", "read",
                   "quantize", "distribute", "rest", "first step", "total");
    return tess_bench_grid(b, measure_load);
}
