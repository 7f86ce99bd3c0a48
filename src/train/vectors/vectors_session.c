/*
 * A job over vectors as a session: open, resume, step, save, evaluate.
 *
 * A checkpoint holds codes and counts of every codebook, cut like their owners' rows, and where the
 * job stands; what vectors were assigned is found again from the codes.
 */
#include "train/vectors/vectors_session.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "train/loop_priv.h"
#include "train/strbuf.h"
#include "train/vectors/vectors_code.h"

enum { FLAG_STOP, FLAG_WRITING, FLAG_HOST_PEAK, FLAG_DEVICE_PEAK, FLAG_NUMEL };

static int book_numel(const tess_kmeans_plan *p)
{
    return p->config.group_numel * p->config.level_numel;
}

/* ---- plan and memory ---- */

/* A reader needs the dimension alone: the run file or a checkpoint's own listing has it. */
static tess_status open_files(tess_session *s, tess_kmeans_plan_request *sizes)
{
    vectors_session *v = s->vectors;
    const tess_vectors_info *info = NULL;
    sizes->is_reader = s->options.kind == TESS_SESSION_READER;
    if (sizes->is_reader) {
        TESS_CHECK(s->run->quantizer.dim != TESS_RUN_AUTO, TESS_E_CONFIG,
                   "quantizer.dim: a reader needs it; use the run.yaml of the run's folder");
        sizes->vector_numel = 1;
        sizes->dim = s->run->quantizer.dim;
        return TESS_OK;
    }
    TESS_TRY(session_open_vectors(s->ctx, s->run, false, &v->data));
    info = tess_vectors_get_info(v->data);
    sizes->vector_numel = info->vector_numel;
    sizes->dim = info->dim;
    return TESS_OK;
}

static tess_status make_plan(tess_session *s)
{
    vectors_session *v = s->vectors;
    tess_kmeans_plan_request sizes = {.world = tess_comm_world(s->world),
                                      .is_device = s->device != NULL};
    TESS_TRY(session_memory_limit(s, &sizes.memory_limit_nbytes));
    tess_status st = open_files(s, &sizes);
    if (st == TESS_OK)
        st = session_kmeans_plan(s->run, &sizes, s->kernels, &v->plan);
    TESS_TRY(session_agree(s, st));
    s->run->quantizer.dim = sizes.dim; /* run.yaml as resolved says it */
    return TESS_OK;
}

static tess_status make_job(tess_session *s)
{
    vectors_session *v = s->vectors;
    tess_status st = TESS_OK;
    TESS_TRY(session_connect_devices(s));
    if (s->run->compute.threads > 1)
        st = tess_pool_create((int)s->run->compute.threads, &s->pool);
    tess_stream_init_inline(&v->host_stream, "compute", s->pool);
    if (st == TESS_OK && s->device != NULL)
        st = tess_device_stream_create(s->device, "compute", false, &v->stream);
    const tess_kmeans_parts parts = {.ctx = s->ctx,
                                     .plan = &v->plan,
                                     .kernels = s->kernels,
                                     .device = s->device,
                                     .stream = v->stream != NULL ? v->stream : &v->host_stream,
                                     .host_stream = &v->host_stream,
                                     .comm = s->fabric != NULL ? s->fabric : s->world,
                                     .vectors = v->data};
    if (st == TESS_OK)
        st = tess_kmeans_create(&parts, &v->job);
    return session_agree(s, st);
}

/* ---- agreement ---- */

static tess_status list_numerics(tess_session *s)
{
    const vectors_session *v = s->vectors;
    tess_strbuf b = {0};
    char *text = NULL, digest[TESS_VECTORS_DIGEST_TEXT_NBYTES];
    size_t nbytes = 0;
    tess_status st = tess_run_numerics(s->run, &text, &nbytes);
    if (st == TESS_OK)
        st = tess_strbuf_add(&b, "%smodel.family=kmeans\nquantizer.dim=%" PRId64 "\n", text,
                             v->plan.dim);
    tess_free(text);
    if (st == TESS_OK && v->data != NULL) {
        tess_vectors_digest_text(&tess_kmeans_scanned(v->job)->digest, v->plan.vector_numel,
                                 v->plan.dim, digest);
        st = tess_strbuf_add(&b, "data.digest=%s\n", digest);
    }
    if (st == TESS_OK)
        st = tess_strdup(b.text, &s->numerics);
    tess_strbuf_fini(&b);
    return session_agree(s, st == TESS_OK ? session_sort_lines(s->numerics) : st);
}

static tess_status fill_contract(tess_session *s, tess_contract *c)
{
    const vectors_session *v = s->vectors;
    TESS_TRY(tess_codebooks_contract(tess_kmeans_books(v->job), c));
    TESS_TRY(tess_contract_add_text(c, "vectors", "%" PRId64, v->plan.vector_numel));
    TESS_TRY(tess_contract_add_text(c, "sharding", "%s",
                                    v->plan.book.shape.is_sharded ? "rows" : "replicated"));
    return session_add_numerics(s, c);
}

/* ---- checkpoints ---- */

static void add_record(vectors_session *v, int book_idx, bool is_count, int rank)
{
    const tess_kmeans_plan *p = &v->plan;
    tess_codebooks *books = tess_kmeans_books(v->job);
    const int64_t width = is_count ? 1 : p->group_dim;
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&p->book, rank, &lo, &hi);
    void *data = is_count ? (void *)tess_codebooks_counts(books, book_idx)
                          : (void *)tess_codebooks_rows(books, book_idx);
    const int idx = 2 * book_idx + is_count;
    const tess_dtype dt = is_count ? TESS_I64 : TESS_F32;
    v->record[idx] = (tess_ckpt_record){.unit = v->name[book_idx],
                                        .role = is_count ? "counts" : "codes",
                                        .dt = dt,
                                        .total_numel = p->config.code_numel * width,
                                        .align_numel = width,
                                        .lo_idx = lo * width,
                                        .hi_idx = hi * width,
                                        .view = tess_view_host(data, (hi - lo) * width, dt),
                                        .contract = is_count ? "stored=i64 logical=i64"
                                                             : "stored=f32 logical=f32",
                                        .quant = "none"};
    v->tensor[idx] =
        (tess_ckpt_tensor){.unit = v->name[book_idx],
                           .name = is_count ? v->count_name[book_idx] : v->name[book_idx],
                           .role = v->record[idx].role,
                           .dtype = tess_dtype_name(dt),
                           .dim_numel = is_count ? 1 : 2,
                           .shape = {p->config.code_numel, width},
                           .extent_numel = v->record[idx].total_numel,
                           .quant = "none"};
}

static tess_status make_records(tess_session *s)
{
    vectors_session *v = s->vectors;
    const int books = book_numel(&v->plan);
    void *record = NULL, *tensor = NULL, *name = NULL, *count_name = NULL;
    tess_status st = tess_alloc_array(2 * (int64_t)books, sizeof(tess_ckpt_record), &record);
    if (st == TESS_OK)
        st = tess_alloc_array(2 * (int64_t)books, sizeof(tess_ckpt_tensor), &tensor);
    if (st == TESS_OK)
        st = tess_alloc_array(books, sizeof *v->name, &name);
    if (st == TESS_OK)
        st = tess_alloc_array(books, sizeof *v->count_name, &count_name);
    v->record = record;
    v->tensor = tensor;
    v->name = name;
    v->count_name = count_name;
    for (int b = 0; st == TESS_OK && b < books; b++) {
        const int levels = v->plan.config.level_numel;
        snprintf(v->name[b], sizeof *v->name, "group.%d.level.%d", b / levels, b % levels);
        snprintf(v->count_name[b], sizeof *v->count_name, "group.%d.level.%d.counts", b / levels,
                 b % levels);
        add_record(v, b, false, tess_comm_rank(s->world));
        add_record(v, b, true, tess_comm_rank(s->world));
    }
    s->records.state = (tess_ckpt_set){.records = v->record,
                                       .record_numel = 2 * books,
                                       .tensors = v->tensor,
                                       .tensor_numel = 2 * books,
                                       .shard_world = tess_comm_world(s->world)};
    return session_agree(s, st);
}

static tess_status accept(void *arg, const tess_ckpt_loaded *m, bool *wants_base)
{
    tess_session *s = arg;
    const tess_ckpt_value *listing = tess_ckpt_loaded_value(m, "numerics");
    char *text = NULL;
    int64_t numel = 0;
    *wants_base = false;
    TESS_CHECK(listing != NULL && listing->kind == TESS_CKPT_TEXT, TESS_E_FORMAT,
               "checkpoint '%s' has no numerics listing", m->path);
    TESS_TRY(tess_run_numerics_diff(listing->text, s->numerics, &text, &numel));
    /* A reader has no training data: that line alone differs. */
    const bool is_reader = s->options.kind == TESS_SESSION_READER;
    const bool is_data_alone = is_reader && numel == 1 && strstr(text, "data.digest") != NULL;
    tess_status st = TESS_OK;
    if (numel > 0 && !is_data_alone && !s->options.accept_config_change)
        st = TESS_FAIL(TESS_E_CONFIG,
                       "checkpoint '%s' was made by another run: %s; --accept-config-change goes "
                       "on anyway",
                       m->path, text);
    else if (numel > 0 && !is_data_alone)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "resume with changed numerics: %s", text);
    tess_free(text);
    return st;
}

static tess_status take_over(tess_session *s, const tess_ckpt_loaded *m)
{
    tess_kmeans_progress *p = tess_kmeans_get_progress(s->vectors->job);
    const tess_ckpt_value *error = tess_ckpt_loaded_value(m, "error");
    int64_t group = 0, level = 0;
    TESS_TRY(session_number_of(m, "step", &p->step));
    TESS_TRY(session_number_of(m, "group", &group));
    TESS_TRY(session_number_of(m, "level", &level));
    TESS_TRY(session_number_of(m, "pass", &p->pass));
    TESS_TRY(session_number_of(m, "batch", &p->batch_idx));
    TESS_CHECK(error != NULL && error->kind == TESS_CKPT_F64, TESS_E_FORMAT,
               "checkpoint '%s' has no number 'error'", m->path);
    TESS_CHECK(group >= 0 && group <= s->vectors->plan.config.group_numel && level >= 0 &&
                   level <= s->vectors->plan.config.level_numel,
               TESS_E_FORMAT, "checkpoint '%s' stands at group %" PRId64 ", level %" PRId64,
               m->path, group, level);
    p->group = (int)group;
    p->level = (int)level;
    p->error = error->f64;
    s->step = p->step;
    return TESS_OK;
}

static tess_status load(tess_session *s)
{
    const bool is_reader = s->options.kind == TESS_SESSION_READER;
    const char *choice = is_reader ? s->options.checkpoint : s->run->output.resume;
    tess_ckpt_loaded loaded = {0};
    if (choice != NULL && strcmp(choice, is_reader ? "none" : "never") == 0)
        return is_reader ? TESS_FAIL(TESS_E_CONFIG, "--checkpoint none: codebooks are trained")
                         : TESS_OK;
    const bool is_auto = choice == NULL || (!is_reader && strcmp(choice, "auto") == 0);
    const tess_ckpt_load_request request = {.path = is_auto ? NULL : choice,
                                            .manifest_sha256 = s->options.manifest_sha256,
                                            .set = &s->records.state,
                                            .accept = accept,
                                            .accept_arg = s};
    TESS_TRY(tess_ckpt_load(s->store, &request, &loaded));
    tess_status st = TESS_OK;
    if (loaded.found == TESS_CKPT_LOADED) {
        s->was_resumed = true;
        st = take_over(s, &loaded);
        if (st == TESS_OK)
            tess_log_root(
                &s->ctx->log, TESS_LOG_INFO, "%s '%s' at step %" PRId64 " (written by %d ranks)",
                is_reader ? "loaded" : "resumed from", loaded.path, s->step, loaded.stored_world);
        if (st == TESS_OK && loaded.fallback_numel > 0)
            tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                          "%" PRId64 " newer checkpoints did not verify", loaded.fallback_numel);
    } else if (is_reader) {
        st = TESS_FAIL(TESS_E_NOT_FOUND, "output.dir: '%s' holds no checkpoint; train first",
                       s->run->output.dir);
    }
    tess_ckpt_loaded_fini(&loaded);
    TESS_TRY(st);
    return s->was_resumed ? session_section(s, tess_kmeans_restore(s->vectors->job)) : TESS_OK;
}

static tess_status prepare_saves(tess_session *s)
{
    enum { SLACK_NBYTES = 64 << 10 };
    s->base = (tess_ckpt_base){.mode = TESS_CKPT_BASE_NONE};
    char *yaml = NULL;
    size_t yaml_nbytes = 0;
    TESS_TRY(session_agree(s, tess_run_yaml(s->run, &yaml, &yaml_nbytes)));
    tess_free(yaml);
    TESS_TRY(tess_ckpt_prepare(s->store, &s->records.state, &s->base,
                               yaml_nbytes + strlen(s->numerics) + SLACK_NBYTES));
    return session_check_room(s);
}

/* ---- open and close ---- */

tess_status session_vectors_open(tess_session *s)
{
    void *object = NULL;
    TESS_TRY(session_agree(s, tess_alloc(sizeof(vectors_session), &object)));
    s->vectors = object;
    TESS_TRY(make_plan(s));
    TESS_TRY(make_job(s));
    if (s->vectors->data != NULL)
        TESS_TRY(tess_kmeans_scan(s->vectors->job));
    TESS_TRY(list_numerics(s));
    TESS_TRY(session_settle_contract(s, fill_contract));
    TESS_TRY(make_records(s));
    TESS_TRY(session_open_store(s));
    TESS_TRY(load(s));
    return s->options.kind == TESS_SESSION_TRAIN ? prepare_saves(s) : TESS_OK;
}

void session_vectors_close(tess_session *s)
{
    vectors_session *v = s->vectors;
    if (v == NULL)
        return;
    loop_copies_fini(&v->copies);
    tess_kmeans_destroy(&v->job);
    if (s->device != NULL)
        tess_device_stream_destroy(s->device, &v->stream);
    tess_vectors_close(&v->data);
    tess_free(v->record);
    tess_free(v->tensor);
    tess_free(v->name);
    tess_free(v->count_name);
    tess_free(v);
    s->vectors = NULL;
}

/* ---- the loop ---- */

static const char *copy_name(const tess_session *s, int digest_idx)
{
    const vectors_session *v = s->vectors;
    return digest_idx < book_numel(&v->plan) ? v->name[digest_idx] : "the whole run";
}

/* Replicated codes, and where every rank is with them. */
static tess_status compare_copies(session_loop *l)
{
    tess_session *s = l->s;
    vectors_session *v = s->vectors;
    const tess_kmeans_progress *progress = tess_kmeans_get_progress(v->job);
    const int books = book_numel(&v->plan);
    tess_status st = TESS_OK;
    if (tess_comm_world(s->world) == 1 || s->run->shard.check_copies == 0)
        return TESS_OK;
    for (int b = 0; b < books && st == TESS_OK; b++)
        st = tess_codebooks_copies_digest(tess_kmeans_books(v->job), b, &v->copies.mine[b]);
    TESS_TRY(session_agree(s, st));
    v->copies.mine[books] = tess_xxh128_of(progress, sizeof *progress);
    return loop_copies_compare(l, &v->copies, 1, "codes or progress");
}

static void beat_pass(void *arg) { loop_beat(arg, "pass"); }

static tess_status begin_save(session_loop *l, bool is_last)
{
    tess_session *s = l->s;
    const tess_kmeans_progress *p = tess_kmeans_get_progress(s->vectors->job);
    bool is_due = false;
    TESS_TRY(loop_prepare_save(l, is_last, &is_due));
    if (!is_due)
        return TESS_OK;
    TESS_TRY(compare_copies(l));
    const tess_ckpt_value state[] = {
        {.name = "step", .kind = TESS_CKPT_I64, .i64 = s->step},
        {.name = "group", .kind = TESS_CKPT_I64, .i64 = p->group},
        {.name = "level", .kind = TESS_CKPT_I64, .i64 = p->level},
        {.name = "pass", .kind = TESS_CKPT_I64, .i64 = p->pass},
        {.name = "batch", .kind = TESS_CKPT_I64, .i64 = p->batch_idx},
        {.name = "error", .kind = TESS_CKPT_F64, .f64 = p->error},
        {.name = "seed", .kind = TESS_CKPT_I64, .i64 = s->run->train.seed},
        {.name = "numerics", .kind = TESS_CKPT_TEXT, .text = s->numerics},
        {.name = "run", .kind = TESS_CKPT_TEXT, .text = l->run_yaml}};
    return loop_save(l, state, TESS_NELEM(state));
}

static tess_status report_step(session_loop *l, const tess_kmeans_report *r, double step_s,
                               const int64_t *flags)
{
    if (tess_comm_rank(l->s->world) != 0)
        return TESS_OK;
    const tess_metrics_pass_row row = {.step = l->s->step,
                                       .group = r->group,
                                       .level = r->level,
                                       .pass = r->pass,
                                       .error = r->error,
                                       .relative = r->relative,
                                       .perplexity = r->perplexity,
                                       .used_numel = r->used_numel,
                                       .dead_numel =
                                           l->s->vectors->plan.config.code_numel - r->used_numel,
                                       .split_numel = r->split_numel,
                                       .vector_numel = r->vector_numel,
                                       .vectors_per_s = (double)r->vector_numel / step_s,
                                       .step_s = step_s,
                                       .mem_device_peak_nbytes = flags[FLAG_DEVICE_PEAK],
                                       .mem_host_peak_nbytes = flags[FLAG_HOST_PEAK]};
    const tess_progress_row shown = {.step = l->s->step,
                                     .loss = r->error,
                                     .tokens_per_s = row.vectors_per_s,
                                     .step_s = step_s,
                                     .now_s = tess_clock_s()};
    tess_progress_step(&l->progress, &shown);
    return tess_metrics_pass(l->metrics, &row);
}

/* Waits of a pass are not told apart from its work. */
static void measure_step(session_loop *l, double step_s, const int64_t *flags, double error)
{
    const tess_session_measure *m = l->s->options.measure;
    l->done_numel++;
    if (m == NULL || m->on_step == NULL)
        return;
    const tess_measured_step step = {.step_s = step_s,
                                     .wait_s = NAN,
                                     .host_peak_nbytes = flags[FLAG_HOST_PEAK],
                                     .device_peak_nbytes = flags[FLAG_DEVICE_PEAK],
                                     .loss = error};
    m->on_step(m->arg, &step);
}

static tess_status run_step(session_loop *l)
{
    tess_session *s = l->s;
    const double start_s = tess_clock_s();
    int64_t flags[FLAG_NUMEL] = {[FLAG_STOP] = loop_is_asked(l),
                                 [FLAG_WRITING] = tess_ckpt_poll(s->store) == TESS_CKPT_WRITING,
                                 [FLAG_HOST_PEAK] = (int64_t)tess_peak_rss_nbytes(),
                                 [FLAG_DEVICE_PEAK] = loop_device_peak(l)};
    tess_kmeans_report report;
    loop_beat(l, "pass");
    TESS_TRY(session_section(s, tess_comm_control(s->world, NULL, 0, flags, FLAG_NUMEL)));
    TESS_TRY(session_section(s, tess_kmeans_step(l->s->vectors->job, &report)));
    s->step = tess_kmeans_get_progress(l->s->vectors->job)->step;
    const double step_s = tess_clock_s() - start_s;
    loop_note_step(l, step_s);
    l->is_stopping = flags[FLAG_STOP] != 0;
    loop_note_metrics(l, report_step(l, &report, step_s, flags));
    measure_step(l, step_s, flags, report.error);
    const int64_t every = s->run->shard.check_copies;
    if (every > 0 && s->step % every == 0)
        TESS_TRY(compare_copies(l));
    return flags[FLAG_WRITING] == 0 ? loop_commit(l) : TESS_OK;
}

static tess_status evaluate(session_loop *l)
{
    tess_session *s = l->s;
    tess_eval_result result;
    if (s->run->data.eval_path == NULL)
        return TESS_OK;
    loop_beat(l, "evaluation");
    TESS_TRY(session_vectors_evaluate(s, &result));
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    const tess_metrics_eval_row row = {
        .step = s->step, .loss = result.loss, .loss_token_numel = result.loss_token_numel};
    tess_progress_hide(&l->progress);
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "eval step=%" PRId64 " loss=%.6f vectors=%" PRId64,
                  s->step, result.loss, result.loss_token_numel);
    loop_note_metrics(l, tess_metrics_eval(l->metrics, &row));
    return TESS_OK;
}

static void say_start(const tess_session *s)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    if (p->vector_numel < p->config.code_numel)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "quantizer.codes is %" PRId64 ": data.path holds %" PRId64
                      " vectors, so that at least %" PRId64 " codes of the first level have none",
                      p->config.code_numel, p->vector_numel,
                      p->config.code_numel - p->vector_numel);
}

static tess_status run_steps(session_loop *l)
{
    tess_session *s = l->s;
    const int64_t every = s->run->output.checkpoint_every;
    say_start(s);
    if (tess_kmeans_is_done(l->s->vectors->job))
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "all levels are done at step %" PRId64 ": nothing to train", s->step);
    while (!tess_kmeans_is_done(l->s->vectors->job) && !l->is_stopping) {
        TESS_TRY(run_step(l));
        const bool is_last = tess_kmeans_is_done(l->s->vectors->job);
        if (is_last || l->is_stopping || (every > 0 && s->step % every == 0))
            TESS_TRY(begin_save(l, is_last || l->is_stopping));
        if (is_last)
            TESS_TRY(evaluate(l)); /* after the save: it stands whatever the held-out file holds */
    }
    TESS_TRY(loop_drain(l));
    loop_tell_device_memory(l, (size_t)s->vectors->plan.total_nbytes, 0);
    return TESS_OK;
}

/* Passes of the first level, which are alike: neither the one that ends it nor what follows. */
static tess_status run_measured(session_loop *l)
{
    tess_session *s = l->s;
    const tess_session_measure *m = s->options.measure;
    const tess_kmeans_progress *p = tess_kmeans_get_progress(s->vectors->job);
    while (l->done_numel < m->step_numel && !l->is_stopping) {
        TESS_TRY(run_step(l));
        TESS_CHECK(p->group == 0 && p->level == 0, TESS_E_CONFIG,
                   "quantizer: the error of the first level repeated in pass %" PRId64
                   ", before %" PRId64
                   " were measured; measure fewer, or take more codes or vectors",
                   l->done_numel, m->step_numel);
        if (m->save_every > 0 && l->done_numel % m->save_every == 0)
            TESS_TRY(begin_save(l, false));
    }
    return loop_commit(l);
}

static tess_status write_plan(tess_session *s, const char *path)
{
    char *plan = NULL;
    TESS_TRY(session_kmeans_plan_json(&s->vectors->plan, &plan));
    const tess_status st = tess_io_write_all(s->ctx->io, path, plan, strlen(plan));
    tess_free(plan);
    return st;
}

static tess_status export_result(tess_session *s)
{
    char dir[1024], path[1024 + 32];
    tess_status st = session_path(s, "export", dir);
    if (st == TESS_OK && tess_comm_rank(s->world) == 0)
        st = tess_io_mkdirs(s->ctx->io, dir);
    TESS_TRY(session_agree(s, st));
    snprintf(path, sizeof path, "%s/codebooks.safetensors", dir);
    return tess_session_export_codebooks(s, TESS_CODEBOOK_SAFETENSORS, path);
}

static tess_status open_held_out(tess_session *s, tess_vectors **out)
{
    const int64_t dim = s->vectors->plan.dim;
    TESS_TRY(session_open_vectors(s->ctx, s->run, true, out));
    const tess_vectors_info *info = tess_vectors_get_info(*out);
    TESS_CHECK(info->dim == dim, TESS_E_CONFIG,
               "data.eval_path: '%s' holds vectors of %" PRId64
               " dimensions, those of data.path have %" PRId64,
               s->run->data.eval_path, info->dim, dim);
    return TESS_OK;
}

/* What would only be noticed when all levels are done: a file that cannot be evaluated. */
static tess_status check_held_out(tess_session *s)
{
    tess_vectors *vectors = NULL;
    tess_logical_hash digest = {0};
    if (s->run->data.eval_path == NULL)
        return TESS_OK;
    tess_status st = session_agree(s, open_held_out(s, &vectors));
    if (st == TESS_OK)
        st = tess_vectors_scan(s->world, vectors, "data.eval_path", &digest);
    tess_vectors_close(&vectors);
    return st;
}

tess_status session_vectors_train(tess_session *s)
{
    session_loop l;
    const session_loop_kind kind = {
        .unit = "vectors", .step_numel = session_vectors_step_numel(s), .write_plan = write_plan};
    if (s->options.measure == NULL)
        TESS_TRY(check_held_out(s));
    TESS_TRY(session_agree(
        s, loop_copies_init(s, book_numel(&s->vectors->plan) + 1, copy_name, &s->vectors->copies)));
    tess_status st = session_agree(s, loop_begin(&l, s, &kind));
    tess_kmeans_set_tick(s->vectors->job, beat_pass, &l);
    if (st == TESS_OK)
        st = s->options.measure != NULL ? run_measured(&l) : run_steps(&l);
    tess_kmeans_set_tick(s->vectors->job, NULL, NULL);
    TESS_TRY(loop_end(&l, st));
    if (s->options.measure != NULL && !l.is_stopping)
        return TESS_OK;
    if (tess_kmeans_is_done(s->vectors->job))
        TESS_TRY(export_result(s));
    TESS_TRY(loop_check_last_save(&l));
    if (!tess_kmeans_is_done(s->vectors->job))
        return TESS_FAIL(TESS_E_PREEMPTED,
                         "stopped on request after step %" PRId64 "; start again to go on",
                         s->step);
    return TESS_OK;
}

tess_status session_vectors_evaluate(tess_session *s, tess_eval_result *out)
{
    tess_vectors *vectors = NULL;
    double mean_square = 0.0;
    tess_eval_result result = {.step = s->step};
    TESS_CHECK(s->run->data.eval_path != NULL, TESS_E_CONFIG,
               "data.eval_path is not set: give held-out vectors, e.g. data.eval_path=eval.fvecs");
    TESS_TRY(session_agree(s, session_open_vectors(s->ctx, s->run, true, &vectors)));
    result.sequence_numel = result.loss_token_numel = tess_vectors_get_info(vectors)->vector_numel;
    const tess_status st = session_section(
        s, tess_kmeans_evaluate(s->vectors->job, vectors, &result.loss, &mean_square));
    tess_vectors_close(&vectors);
    TESS_TRY(st);
    *out = result;
    return TESS_OK;
}
