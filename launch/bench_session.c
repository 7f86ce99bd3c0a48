/*
 * Measured sessions: the trainer's own loop on the first ranks of the launch.
 *
 * [Note: waits] A rank's wait is the time in which its compute lane stood still for gathers and
 * gradients, and at the end of the step for the record of all ranks. The least wait of any rank is
 * what communication costs even the busiest one; what others wait beyond that they wait for it.
 */
#include "launch/bench_session.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "launch/bench_spans.h"
#include "launch/launch.h"

/* ---- statistics ---- */

tess_bench_spread tess_bench_spread_of(double *value, int numel)
{
    tess_bench_spread s = {.median = tess_bench_median(value, numel)};
    s.p10 = value[(numel - 1) / 10];
    s.p90 = value[(numel - 1) - (numel - 1) / 10];
    return s;
}

tess_status tess_bench_add_spread(tess_json *root, const char *name, tess_bench_spread spread)
{
    const char *const suffix[] = {"s", "p10_s", "p90_s"};
    const double value[] = {spread.median, spread.p10, spread.p90};
    for (int i = 0; i < TESS_NELEM(suffix); i++) {
        char key[64];
        snprintf(key, sizeof key, "%s_%s", name, suffix[i]);
        TESS_TRY(tess_json_add_f64(root, key, value[i]));
    }
    return TESS_OK;
}

/* ---- a session ---- */

enum { OWN_MAX = TESS_BENCH_SETTING_MAX + 8 };

typedef struct settings {
    char text[OWN_MAX][TESS_BENCH_PATH_NBYTES + 64];
    tess_run_override list[OWN_MAX + TESS_BENCH_LIST_MAX];
    int numel;
} settings;

static void set(settings *s, const char *fmt, const char *value)
{
    snprintf(s->text[s->numel], sizeof s->text[0], fmt, value);
    s->list[s->numel] = (tess_run_override){s->text[s->numel], 1};
    s->numel++;
}

static bool has_key(const settings *s, int numel, const char *key_value)
{
    const size_t key_nbytes = strcspn(key_value, "=") + 1;
    for (int i = 0; i < numel; i++)
        if (strncmp(s->text[i], key_value, key_nbytes) == 0)
            return true;
    return false;
}

/* What the measurement needs, and keys of the command line that it leaves alone: weak scaling
 * changes the micro-batches it was given, a load where weights come from. */
static void gather_settings(const tess_bench *b, const tess_bench_job *job, settings *s)
{
    s->numel = 0;
    if (job->format != NULL)
        set(s, "base.format=%s", job->format);
    if (job->what->override[0] != '\0')
        set(s, "%s", job->what->override);
    for (int i = 0; i < job->setting_numel; i++)
        set(s, "%s", job->setting[i]);
    set(s, "output.dir=%s", job->dir);
    set(s, "output.resume=%s", job->may_resume ? "auto" : "never");
    set(s, "output.when_busy=%s", "wait"); /* every save that is asked for is measured */
    const int own_numel = s->numel;
    for (int i = 0; i < b->options->override_numel && !job->has_no_keys; i++)
        if (!has_key(s, own_numel, b->options->override[i].text))
            s->list[s->numel++] = b->options->override[i];
}

static const char *unit_of(const tess_run *run)
{
    if (tess_run_is_vectors(run))
        return tess_run_is_of_images(run) ? "images" : "vectors";
    return tess_run_is_flux(run) ? "samples" : "tokens";
}

static bool has_tokens(const tess_run *run)
{
    return !tess_run_is_vectors(run) && !tess_run_is_flux(run);
}

/* What the job asks of a run that it cannot give. */
static tess_status accept(const void *arg, const tess_run *run)
{
    const tess_bench_job *job = arg;
    TESS_CHECK(!tess_run_is_kmeans(run) || !job->needs_waits, TESS_E_UNSUPPORTED,
               "bench: '%s': passes of kmeans do not tell what they wait for others; measure them "
               "with bench step on as many ranks",
               job->what->name);
    TESS_CHECK(has_tokens(run) || job->what->is_builtin || job->what->length == 0, TESS_E_ARG,
               "bench: --length: the data of '%s' decide; leave --length out, or name a built-in "
               "shape",
               job->what->name);
    return TESS_OK;
}

static void look(const tess_bench_job *job, const tess_session *session, tess_bench_run *out)
{
    const tess_run *run = tess_session_run(session);
    const int64_t pass_numel = tess_session_pass_numel(session);
    const tess_open_times t = tess_session_open_times(session);
    *out =
        (tess_bench_run){.unit = unit_of(run),
                         .micro_batch = pass_numel > 0 ? pass_numel : run->train.micro_batch,
                         .micro_batch_numel = pass_numel > 0 ? 1 : run->train.micro_batches,
                         .length = has_tokens(run) ? run->data.sequence_length : job->what->length,
                         .planned_nbytes = (int64_t)tess_session_planned_nbytes(session),
                         .model_flops = tess_session_model_flops(session),
                         .setup_s = t.open_s + t.read_s + t.make_s + t.distribute_s + t.rest_s,
                         .cost = tess_session_step_cost(session)};
    out->item_numel =
        out->micro_batch * out->micro_batch_numel * (has_tokens(run) ? out->length : 1);
    snprintf(out->family, sizeof out->family, "%s", tess_session_family(session));
    if (!tess_run_is_vectors(run))
        snprintf(out->format, sizeof out->format, "%s", tess_session_base_format(session));
}

static tess_status open_and_run(tess_bench *b, const tess_bench_job *job, tess_comm *group,
                                tess_bench_body body, void *arg, tess_bench_run *out)
{
    settings s;
    tess_session *session = NULL;
    tess_bench_run run = {0};
    gather_settings(b, job, &s);
    const bool is_text = job->what->text[0] != '\0';
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .run_path = job->what->name,
                                          .run_text = is_text ? job->what->text : NULL,
                                          .overrides = s.list,
                                          .override_numel = s.numel,
                                          .needs_data = true,
                                          .accept = accept,
                                          .accept_arg = job,
                                          .measure = &job->measure};
    tess_status st = tess_session_open(b->ctx, group, &options, &session);
    if (st == TESS_OK)
        look(job, session, &run);
    if (st == TESS_OK && out != NULL)
        *out = run;
    if (st == TESS_OK)
        snprintf(b->kernels, sizeof b->kernels, "%s", tess_session_kernel_path(session));
    if (st == TESS_OK)
        st = body(session, group, arg);
    b->is_broken = st != TESS_OK && (tess_session_is_broken(session) || tess_status_is_fatal(st));
    if (!b->is_broken)
        tess_session_close(&session);
    return st;
}

/* The most memory a process ever had would hide what a later, smaller session takes. */
static void forget_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (f == NULL)
        return;
    (void)fputs("5", f);
    (void)fclose(f);
}

tess_status tess_bench_on_ranks(tess_bench *b, const tess_bench_job *job, int rank_numel,
                                tess_bench_body body, void *arg, tess_bench_run *run)
{
    tess_comm *group = b->comm;
    const bool is_part = rank_numel < tess_comm_world(b->comm);
    if (is_part)
        TESS_TRY(tess_comm_split_first(b->comm, rank_numel, &group));
    tess_status st = TESS_OK;
    forget_peak();
    if (tess_comm_rank(b->comm) < rank_numel)
        st = open_and_run(b, job, group, body, arg, run);
    if (b->is_broken)
        return st;
    st = tess_agree(b->comm, st);
    if (is_part)
        tess_comm_destroy(&group);
    return st;
}

/* ---- steps ---- */

static void keep_step(void *arg, const tess_measured_step *step)
{
    tess_bench_steps *s = arg;
    if (step->is_traced) {
        s->traced_numel++;
        s->traced_s += step->step_s;
        return;
    }
    const int64_t i = s->seen_numel++ - s->warmup_numel;
    s->last = *step;
    if (i < 0 || i >= TESS_BENCH_REPEAT_MAX)
        return;
    s->step_s[i] = step->step_s;
    s->wait_s[i] = step->wait_s;
}

static tess_status keep_event(void *arg, const tess_trace_event *event)
{
    tess_bench_steps *s = arg;
    return tess_bench_spans_add(&s->spans, event);
}

/* Over `all`: the steps of every rank. */
static void sum_up(const tess_bench_steps *all, int rank_numel, int repeat_numel,
                   tess_bench_times *out)
{
    double step[TESS_BENCH_REPEAT_MAX], exposed[TESS_BENCH_REPEAT_MAX];
    double imbalance[TESS_BENCH_REPEAT_MAX];
    for (int i = 0; i < repeat_numel; i++) {
        double mean = 0.0;
        step[i] = 0.0;
        exposed[i] = all[0].wait_s[i];
        for (int r = 0; r < rank_numel; r++) {
            step[i] = TESS_MAX(step[i], all[r].step_s[i]);
            exposed[i] = TESS_MIN(exposed[i], all[r].wait_s[i]);
            mean += all[r].wait_s[i] / rank_numel;
        }
        imbalance[i] = TESS_MAX(mean - exposed[i], 0.0);
    }
    out->step = tess_bench_spread_of(step, repeat_numel);
    out->exposed_s = tess_bench_median(exposed, repeat_numel);
    out->imbalance_s = tess_bench_median(imbalance, repeat_numel);
    out->host_peak_nbytes = all[0].last.host_peak_nbytes;
    out->device_peak_nbytes = all[0].last.device_peak_nbytes;
    out->traced_numel = all[0].traced_numel;
    out->traced_s = all[0].traced_s;
    out->spans = all[0].spans;
}

typedef struct timing {
    const tess_bench *b;
    tess_bench_steps *steps;
    tess_bench_times *out;
} timing;

static tess_status time_steps(tess_session *session, tess_comm *group, void *arg)
{
    timing *t = arg;
    const int world = tess_comm_world(group);
    const bool is_root = tess_comm_rank(group) == 0;
    void *all = NULL;
    TESS_TRY(tess_session_train(session));
    tess_status st = is_root ? tess_alloc_array(world, sizeof *t->steps, &all) : TESS_OK;
    st = tess_agree(group, st);
    if (st == TESS_OK)
        st = tess_comm_gather_bytes(group, 0, t->steps, sizeof *t->steps, all);
    if (st == TESS_OK && is_root)
        sum_up(all, world, (int)t->b->options->repeat_numel, t->out);
    tess_free(all);
    return st;
}

tess_status tess_bench_time_steps(tess_bench *b, tess_bench_job *job, int rank_numel,
                                  tess_bench_run *run, tess_bench_times *times)
{
    void *memory = NULL;
    tess_status st = tess_alloc(sizeof(tess_bench_steps), &memory);
    TESS_TRY(tess_agree(b->comm, st));
    tess_bench_steps *steps = memory;
    steps->warmup_numel = b->options->warmup_numel;
    timing t = {b, steps, times};
    job->measure.step_numel = b->options->warmup_numel + b->options->repeat_numel;
    job->measure.traced_numel = b->options->kernels_numel;
    job->measure.on_event = keep_event;
    job->measure.on_step = keep_step;
    job->measure.arg = steps;
    st = tess_bench_on_ranks(b, job, rank_numel, time_steps, &t, run);
    tess_free(memory);
    return st;
}

/* ---- what was run ---- */

tess_status tess_bench_add_run(tess_json *root, const tess_bench_case *what,
                               const tess_bench_run *run, int rank_numel)
{
    TESS_TRY(tess_json_add_string(root, "run", what->name));
    TESS_TRY(tess_json_add_string(root, "family", run->family));
    TESS_TRY(tess_json_add_string(root, "format", run->format));
    TESS_TRY(tess_json_add_i64(root, "length", run->length));
    TESS_TRY(tess_json_add_i64(root, "micro_batch", run->micro_batch));
    TESS_TRY(tess_json_add_i64(root, "micro_batches", run->micro_batch_numel));
    return tess_json_add_i64(root, "ranks", rank_numel);
}

static void insert_rank(int rank[], int *numel, int value)
{
    int at = 0;
    while (at < *numel && rank[at] < value)
        at++;
    if (at < *numel && rank[at] == value)
        return;
    memmove(rank + at + 1, rank + at, (size_t)(*numel - at) * sizeof *rank);
    rank[at] = value;
    ++*numel;
}

tess_status tess_bench_ranks(const tess_bench *b, bool has_one, int rank[TESS_BENCH_LIST_MAX + 1],
                             int *numel)
{
    const tess_bench_options *o = b->options;
    const int world = tess_comm_world(b->comm);
    *numel = 0;
    if (has_one)
        insert_rank(rank, numel, 1);
    for (int i = 0; i < o->rank_numel; i++) {
        TESS_CHECK(o->rank[i] <= world, TESS_E_ARG,
                   "bench: --ranks: expected at most the %d ranks of this launch, found %" PRId64
                   "; start it with mpirun -n %" PRId64,
                   world, o->rank[i], o->rank[i]);
        insert_rank(rank, numel, (int)o->rank[i]);
    }
    for (int n = 1; o->rank_numel == 0 && n < world; n *= 2)
        insert_rank(rank, numel, n);
    if (o->rank_numel == 0)
        insert_rank(rank, numel, world);
    return TESS_OK;
}

/* ---- the grid ---- */

static tess_status visit_formats(tess_bench *b, tess_bench_place place,
                                 const tess_bench_scratch *scratch, const tess_bench_case *what)
{
    const tess_bench_options *o = b->options;
    if (what->has_no_base)
        return place(b, scratch, what, NULL);
    for (int f = 0; f < TESS_MAX(o->format_numel, 1); f++)
        TESS_TRY(place(b, scratch, what, o->format_numel > 0 ? o->format[f] : NULL));
    return TESS_OK;
}

static tess_status visit(tess_bench *b, tess_bench_place place, const tess_bench_scratch *scratch)
{
    const tess_bench_options *o = b->options;
    for (int i = 0; i < TESS_MAX(o->subject_numel, 1); i++)
        for (int l = 0; l < TESS_MAX(o->length_numel, 1); l++) {
            const char *name = o->subject_numel > 0 ? o->subject[i] : "llama";
            tess_bench_case what;
            TESS_TRY(tess_bench_case_make(b, scratch, name, o->length_numel > 0 ? o->length[l] : 0,
                                          &what));
            TESS_TRY(visit_formats(b, place, scratch, &what));
        }
    return TESS_OK;
}

tess_status tess_bench_grid(tess_bench *b, tess_bench_place place)
{
    tess_bench_scratch scratch;
    TESS_TRY(tess_bench_scratch_create(b, &scratch));
    const tess_status st = visit(b, place, &scratch);
    tess_bench_scratch_destroy(b, &scratch);
    return st;
}
