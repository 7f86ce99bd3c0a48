/* tessera bench checkpoint: what saves cost training, how fast they are on disk, and how long a
 * start from them takes on other numbers of ranks. */
#include <inttypes.h>
#include <stdio.h>

#include "core/memory.h"
#include "launch/bench_session.h"

/* Saves of one rank as they came. */
typedef struct saves {
    int64_t warmup_numel, seen_numel;
    double stall_s[TESS_BENCH_REPEAT_MAX], publish_s[TESS_BENCH_REPEAT_MAX];
    double write_s[TESS_BENCH_REPEAT_MAX];
    int64_t disk_nbytes;
} saves;

typedef struct outcome {
    tess_bench_spread stall, publish, write; /* of the slowest rank */
    int64_t disk_nbytes;
} outcome;

typedef struct saving {
    const tess_bench *b;
    saves *mine;
    outcome *out;
} saving;

static void keep_save(void *arg, const tess_measured_save *save)
{
    saves *s = arg;
    const int64_t i = s->seen_numel++ - s->warmup_numel;
    s->disk_nbytes = save->disk_nbytes;
    if (i < 0 || i >= TESS_BENCH_REPEAT_MAX)
        return;
    s->stall_s[i] = save->begin_s + save->commit_s;
    s->publish_s[i] = save->publish_s;
    s->write_s[i] = save->write_s;
}

static void sum_up(const saves *all, int world, int numel, outcome *out)
{
    double stall[TESS_BENCH_REPEAT_MAX], publish[TESS_BENCH_REPEAT_MAX];
    double write[TESS_BENCH_REPEAT_MAX];
    for (int i = 0; i < numel; i++) {
        stall[i] = publish[i] = write[i] = 0.0;
        for (int r = 0; r < world; r++) {
            stall[i] = TESS_MAX(stall[i], all[r].stall_s[i]);
            publish[i] = TESS_MAX(publish[i], all[r].publish_s[i]);
            write[i] = TESS_MAX(write[i], all[r].write_s[i]);
        }
    }
    *out = (outcome){.stall = tess_bench_spread_of(stall, numel),
                     .publish = tess_bench_spread_of(publish, numel),
                     .write = tess_bench_spread_of(write, numel),
                     .disk_nbytes = all[0].disk_nbytes};
}

static tess_status save_all(tess_session *session, tess_comm *group, void *arg)
{
    saving *t = arg;
    const int world = tess_comm_world(group);
    const bool is_root = tess_comm_rank(group) == 0;
    const int repeat_numel = (int)t->b->options->repeat_numel;
    void *all = NULL;
    TESS_TRY(tess_session_train(session));
    tess_status st = TESS_OK;
    if (t->mine->seen_numel < t->mine->warmup_numel + repeat_numel) /* the same on all ranks */
        st = TESS_FAIL(TESS_E_IO,
                       "bench checkpoint: expected %" PRId64 " checkpoints, found %" PRId64
                       ": the others were dropped; the warnings above say why",
                       t->mine->warmup_numel + repeat_numel, t->mine->seen_numel);
    if (st == TESS_OK && is_root)
        st = tess_alloc_array(world, sizeof *t->mine, &all);
    st = tess_agree(group, st);
    if (st == TESS_OK)
        st = tess_comm_gather_bytes(group, 0, t->mine, sizeof *t->mine, all);
    if (st == TESS_OK && is_root)
        sum_up(all, world, repeat_numel, t->out);
    tess_free(all);
    return st;
}

static tess_status save_members(const tess_bench *b, const tess_bench_case *what,
                                const tess_bench_run *run, const outcome *o, tess_json *root)
{
    TESS_TRY(tess_bench_add_run(root, what, run, tess_comm_world(b->comm)));
    TESS_TRY(tess_json_add_string(root, "what", "save"));
    TESS_TRY(tess_json_add_i64(root, "bytes", o->disk_nbytes));
    TESS_TRY(tess_bench_add_spread(root, "stall", o->stall));
    TESS_TRY(tess_bench_add_spread(root, "write", o->write));
    TESS_TRY(tess_bench_add_spread(root, "publish", o->publish));
    TESS_TRY(tess_json_add_f64(root, "write_bytes_per_s",
                               (double)o->disk_nbytes / TESS_MAX(o->write.median, 1e-9)));
    TESS_TRY(tess_json_add_i64(root, "every", b->options->every_numel));
    TESS_TRY(tess_json_add_i64(root, "warmup", b->options->warmup_numel));
    return tess_json_add_i64(root, "repeats", b->options->repeat_numel);
}

static tess_status measure_saves(tess_bench *b, tess_bench_job *job)
{
    const int64_t save_numel = b->options->warmup_numel + b->options->repeat_numel;
    tess_bench_run run = {0};
    outcome o = {0};
    tess_json *root = NULL;
    void *memory = NULL;
    tess_status st = tess_alloc(sizeof(saves), &memory);
    TESS_TRY(tess_agree(b->comm, st));
    saving t = {b, memory, &o};
    t.mine->warmup_numel = b->options->warmup_numel;
    job->measure = (tess_session_measure){.step_numel = save_numel * b->options->every_numel,
                                          .save_every = b->options->every_numel,
                                          .on_save = keep_save,
                                          .arg = memory};
    st = tess_bench_on_ranks(b, job, tess_comm_world(b->comm), save_all, &t, &run);
    tess_free(memory);
    TESS_TRY(st);
    tess_bench_row(b,
                   "%-16.16s save on %d ranks: %.2f MiB, training stood %.4f s, published after "
                   "%.4f s, written at %.1f MB/s",
                   job->what->name, tess_comm_world(b->comm), (double)o.disk_nbytes / (1 << 20),
                   o.stall.median, o.publish.median,
                   1e-6 * (double)o.disk_nbytes / TESS_MAX(o.write.median, 1e-9));
    if (tess_comm_rank(b->comm) == 0)
        st = tess_json_create_object(&root);
    if (root != NULL)
        st = save_members(b, job->what, &run, &o, root);
    return tess_bench_line(b, root, st);
}

/* ---- loads ---- */

typedef struct load {
    double read_s, total_s; /* of the slowest rank */
    int64_t step;           /* that it went on from */
} load;

static tess_status look_at_load(tess_session *session, tess_comm *group, void *arg)
{
    load *l = arg;
    const tess_open_times t = tess_session_open_times(session);
    int64_t most[2] = {(int64_t)(1e9 * t.read_s), (int64_t)(1e9 * (t.open_s + t.read_s + t.make_s +
                                                                   t.distribute_s + t.rest_s))};
    TESS_TRY(tess_comm_control(group, NULL, 0, most, TESS_NELEM(most)));
    *l = (load){1e-9 * (double)most[0], 1e-9 * (double)most[1], tess_session_step(session)};
    return TESS_OK;
}

static tess_status load_members(const tess_bench *b, const tess_bench_case *what,
                                const tess_bench_run *run, const tess_bench_spread spread[2],
                                int rank_numel, tess_json *root)
{
    TESS_TRY(tess_bench_add_run(root, what, run, rank_numel));
    TESS_TRY(tess_json_add_string(root, "what", "load"));
    TESS_TRY(tess_json_add_i64(root, "saved_by", tess_comm_world(b->comm)));
    TESS_TRY(tess_bench_add_spread(root, "read", spread[0]));
    TESS_TRY(tess_bench_add_spread(root, "open", spread[1]));
    return tess_json_add_i64(root, "repeats", b->options->repeat_numel);
}

static tess_status measure_loads(tess_bench *b, tess_bench_job *job, int rank_numel, int64_t step)
{
    double read[TESS_BENCH_REPEAT_MAX], total[TESS_BENCH_REPEAT_MAX];
    tess_bench_run run = {0};
    tess_json *root = NULL;
    tess_status st = TESS_OK;
    job->may_resume = true;
    job->measure = (tess_session_measure){.step_numel = 0};
    for (int i = 0; i < b->options->repeat_numel; i++) {
        load l = {.step = -1};
        TESS_TRY(tess_bench_on_ranks(b, job, rank_numel, look_at_load, &l, &run));
        read[i] = l.read_s;
        total[i] = l.total_s;
        if (tess_comm_rank(b->comm) == 0 && l.step != step)
            st = TESS_FAIL(TESS_E_FORMAT,
                           "bench checkpoint: expected to go on from step %" PRId64
                           ", found %" PRId64,
                           step, l.step);
        TESS_TRY(tess_agree(b->comm, st));
    }
    if (tess_comm_rank(b->comm) == 0)
        st = tess_json_create_object(&root);
    if (root != NULL) {
        const tess_bench_spread spread[2] = {
            tess_bench_spread_of(read, (int)b->options->repeat_numel),
            tess_bench_spread_of(total, (int)b->options->repeat_numel)};
        tess_bench_row(b, "%-16.16s load on %d ranks: read in %.4f s, ready after %.4f s",
                       job->what->name, rank_numel, spread[0].median, spread[1].median);
        st = load_members(b, job->what, &run, spread, rank_numel, root);
    }
    return tess_bench_line(b, root, st);
}

static tess_status measure_checkpoint(tess_bench *b, const tess_bench_scratch *scratch,
                                      const tess_bench_case *what, const char *format)
{
    char dir[TESS_BENCH_PATH_NBYTES + 16];
    int rank[TESS_BENCH_LIST_MAX + 1], rank_numel = 0;
    snprintf(dir, sizeof dir, "%s/run", scratch->path);
    tess_bench_job job = {.what = what, .format = format, .dir = dir};
    TESS_TRY(tess_bench_ranks(b, false, rank, &rank_numel));
    TESS_TRY(measure_saves(b, &job));
    const int64_t step_numel =
        (b->options->warmup_numel + b->options->repeat_numel) * b->options->every_numel;
    for (int i = 0; i < rank_numel; i++)
        TESS_TRY(measure_loads(b, &job, rank[i], step_numel));
    return tess_agree(b->comm, tess_comm_rank(b->comm) == 0 ? tess_bench_remove(b, dir) : TESS_OK);
}

tess_status tess_bench_checkpoint(tess_bench *b) { return tess_bench_grid(b, measure_checkpoint); }
