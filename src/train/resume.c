/*
 * Parameters of a run: from a checkpoint, from the model files, or from rules.
 *
 * [Note: base] The frozen bytes of a run are fixed when it starts. Where they are the source's own
 * bytes, checkpoints refer to the files by SHA-256; where Tessera quantized them they are written
 * once to base/<id>/ and a resume reads them there: nothing is ever quantized twice, and the source
 * files may be gone.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "format/identity.h"
#include "train/session_priv.h"

/* ---- identity of the base ---- */

static bool has_frozen(const tess_session *s) { return s->records.base.record_numel > 0; }

static tess_status identify(tess_session *s, const tess_sha256 *tensor_sha)
{
    tess_identity *identity = NULL;
    tess_sha256 id;
    TESS_TRY(tess_identity_create(&identity));
    tess_status st = TESS_OK;
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++) {
        const tess_param *p = &s->d.registry.param[i];
        char rule[TESS_RULE_NBYTES];
        tess_param_rule(&s->d.registry, p, rule);
        if (p->role == TESS_ROLE_FROZEN)
            st =
                tess_identity_add(identity, p->name, p->shape, p->shape_rank, rule, &tensor_sha[i]);
    }
    if (st == TESS_OK)
        st = tess_identity_final(identity, &id);
    tess_identity_destroy(&identity);
    if (st == TESS_OK)
        tess_hex(id.byte, sizeof id.byte, s->base_id);
    return st;
}

/* Load what the request wants from source or rules; with frozen tensors, learn the base id. */
static tess_status load_from_source(tess_session *s, bool wants_trainable)
{
    const tess_load_source source = tess_description_source(&s->d);
    tess_load_request request = tess_description_load(&s->d, &source);
    void *array = NULL;
    request.wants_trainable = wants_trainable;
    request.is_device = s->device != NULL;
    tess_load_times times = {0};
    request.times = &times;
    tess_status st = tess_alloc_array(s->d.registry.param_numel, sizeof(tess_sha256), &array);
    TESS_TRY(session_agree(s, st));
    st = tess_load(s->rt, &request, array);
    s->times.read_s += times.read_s;
    s->times.make_s += times.make_s;
    s->times.distribute_s += times.distribute_s;
    if (st == TESS_OK && has_frozen(s))
        st = session_agree(s, identify(s, array));
    tess_free(array);
    return st;
}

/* ---- fresh start ---- */

/* One small file of the model into `dir`, when there is such a file. */
static tess_status keep_file(tess_session *s, const char *dir, const char *name)
{
    char from[PATH_MAX], to[PATH_MAX], *text = NULL;
    size_t nbytes = 0;
    bool is_there = false;
    if (s->run->model.path == NULL)
        return TESS_OK;
    TESS_TRY(tess_describe_file(s->ctx, s->run, name, from, &is_there));
    TESS_CHECK(snprintf(to, sizeof to, "%s/%s", dir, name) < (int)sizeof to, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(dir));
    if (!is_there || strcmp(from, to) == 0)
        return TESS_OK;
    TESS_TRY(tess_io_read_all(s->ctx->io, from, TESS_TOKENIZER_LIMIT_NBYTES, &text, &nbytes));
    const tess_status st = tess_io_write_all(s->ctx->io, to, text, nbytes);
    tess_free(text);
    return st;
}

tess_status session_keep_tokenizer(tess_session *s, const char *dir)
{
    TESS_TRY(keep_file(s, dir, "tokenizer.json"));
    return keep_file(s, dir, "tokenizer_config.json");
}

/* Keep what describes the model beside the checkpoints: a resume may not find the source any more.
 * config.json is the last: who finds it finds the others. */
static tess_status keep_model(tess_session *s)
{
    char dir[1024], path[1024 + 16];
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    TESS_TRY(session_path(s, "model", dir));
    TESS_TRY(tess_io_mkdirs(s->ctx->io, dir));
    TESS_TRY(session_keep_tokenizer(s, dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    return tess_io_write_all(s->ctx->io, path, s->d.config_text, strlen(s->d.config_text));
}

/* Digests of the source files: rank 0 reads them, everybody keeps them. */
static tess_status refer_to_source(tess_session *s)
{
    const int numel = tess_model_dir_file_numel(s->d.dir);
    const char *dir = tess_model_dir_path(s->d.dir);
    char whole[PATH_MAX]; /* who reads the checkpoint may stand elsewhere */
    void *files = NULL, *paths = NULL;
    tess_status st = tess_alloc_array(numel, sizeof *s->source_file, &files);
    if (st == TESS_OK)
        st = tess_alloc_array(numel, sizeof *s->source_path, &paths);
    s->source_file = files;
    s->source_path = paths;
    TESS_TRY(session_agree(s, st));
    if (realpath(dir, whole) != NULL)
        dir = whole;
    for (int i = 0; i < numel; i++) {
        tess_ckpt_source_file *f = &s->source_file[i];
        const char *name = tess_model_dir_file_name(s->d.dir, i);
        const int nbytes = snprintf(s->source_path[i], sizeof *s->source_path, "%s/%s", dir, name);
        if (nbytes >= (int)sizeof *s->source_path)
            st = TESS_FAIL(TESS_E_CONFIG, "model.path: the path of '%s' is longer than %d bytes",
                           name, PATH_MAX - 1);
        f->path = s->source_path[i];
        f->nbytes = tess_model_dir_file_nbytes(s->d.dir, i);
        if (st == TESS_OK && tess_comm_rank(s->world) == 0)
            st = tess_model_dir_file_sha256(s->d.dir, i, &f->sha256);
        TESS_TRY(session_agree(s, st));
        TESS_TRY(tess_comm_bcast(s->world, 0, f->sha256.byte, sizeof f->sha256.byte));
    }
    s->base.mode = TESS_CKPT_BASE_REFERENCE;
    s->base.files = s->source_file;
    s->base.file_numel = numel;
    return TESS_OK;
}

static tess_status store_base(tess_session *s)
{
    bool was_there = false;
    s->base = (tess_ckpt_base){.mode = TESS_CKPT_BASE_NONE};
    if (!has_frozen(s))
        return TESS_OK;
    s->base.id = s->base_id;
    if (s->run->output.base == TESS_RUN_STORE_AUTO && s->d.is_base_as_source && s->d.dir != NULL)
        return refer_to_source(s);
    s->base.mode = TESS_CKPT_BASE_COPY;
    return tess_ckpt_save_base(s->store, s->base_id, &s->records.base, &was_there);
}

tess_status session_reload_base(tess_session *s)
{
    if (s->base.mode == TESS_CKPT_BASE_COPY)
        return tess_ckpt_load_base(s->store, s->base_id, &s->records.base);
    return load_from_source(s, false);
}

static tess_status start_fresh(tess_session *s)
{
    TESS_CHECK(s->d.dir != NULL || s->run->model.init == TESS_RUN_INIT_RANDOM, TESS_E_CONFIG,
               "model.path: '%s' has no weights, and '%s' holds no checkpoint to go on from",
               s->run->model.path, s->run->output.dir);
    TESS_TRY(load_from_source(s, true));
    const bool is_reader = s->options.kind != TESS_SESSION_TRAIN;
    /* a reader of the base alone does without the adapter that the run would start from */
    if (is_reader ? s->options.adapter != NULL : s->run->adapter.resume != NULL)
        TESS_TRY(session_agree(s, session_import_adapter(s)));
    if (!is_reader && s->feed->start != NULL)
        TESS_TRY(s->feed->start(s));
    TESS_TRY(session_agree(s, tess_runtime_begin(s->rt)));
    if (!session_keeps(s))
        return TESS_OK;
    TESS_TRY(session_agree(s, keep_model(s)));
    return store_base(s);
}

/* ---- resume ---- */

static tess_status accept_manifest(void *arg, const tess_ckpt_loaded *m, bool *wants_base)
{
    tess_session *s = arg;
    const tess_ckpt_value *listing = tess_ckpt_loaded_value(m, "numerics");
    TESS_CHECK(listing != NULL && listing->kind == TESS_CKPT_TEXT, TESS_E_FORMAT,
               "checkpoint '%s' has no numerics listing", m->path);
    TESS_TRY(session_accept_numerics(s, m->path, listing->text));
    *wants_base = *wants_base && !s->is_base_changed;
    return TESS_OK;
}

tess_status session_number_of(const tess_ckpt_loaded *m, const char *name, int64_t *out)
{
    const tess_ckpt_value *v = tess_ckpt_loaded_value(m, name);
    TESS_CHECK(v != NULL && v->kind == TESS_CKPT_I64, TESS_E_FORMAT,
               "checkpoint '%s' has no number '%s'", m->path, name);
    *out = v->i64;
    return TESS_OK;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* The first source file that is not the one the checkpoint was written with, "" when there is none.
 */
static const char *changed_file(const tess_session *s, const tess_ckpt_base *stored)
{
    for (int64_t i = 0; i < s->base.file_numel; i++) {
        bool is_known = false;
        for (int64_t k = 0; k < stored->file_numel && !is_known; k++)
            is_known =
                strcmp(file_name(stored->files[k].path), file_name(s->base.files[i].path)) == 0 &&
                tess_sha256_is_equal(&stored->files[k].sha256, &s->base.files[i].sha256);
        if (!is_known)
            return file_name(s->base.files[i].path);
    }
    return "";
}

/* ---- over another base ---- */

/* Bases that were left before this checkpoint, and `left` behind them where it is another. */
static tess_status list_previous(tess_session *s, const tess_ckpt_loaded *m, const char *left)
{
    const tess_ckpt_value *known = tess_ckpt_loaded_value(m, "base_previous");
    const char *before = known != NULL && known->kind == TESS_CKPT_TEXT ? known->text : "";
    if (*before == '\0' && left == NULL)
        return TESS_OK;
    return tess_asprintf(&s->base_previous, "%s%s%s", before,
                         *before != '\0' && left != NULL ? "," : "", left != NULL ? left : "");
}

/* Masters and moments are the checkpoint's, the frozen weights those that have been loaded. */
static tess_status replace_base(tess_session *s, const tess_ckpt_loaded *m)
{
    const char *left =
        m->base.id != NULL && strcmp(m->base.id, s->base_id) != 0 ? m->base.id : NULL;
    tess_log_root(&s->ctx->log, TESS_LOG_WARN, "base %.16s takes the place of %.16s", s->base_id,
                  m->base.id != NULL ? m->base.id : "(none)");
    TESS_TRY(session_agree(s, list_previous(s, m, left)));
    TESS_TRY(session_agree(s, keep_model(s)));
    return store_base(s);
}

/* Another base is what the run file describes. */
static tess_status change_base(tess_session *s, const tess_ckpt_loaded *m)
{
    TESS_CHECK(s->d.dir != NULL || s->run->model.init == TESS_RUN_INIT_RANDOM, TESS_E_CONFIG,
               "model.path: '%s' has no weights to make another base of; give the model's folder, "
               "or the base settings of checkpoint '%s'",
               s->run->model.path, m->path);
    TESS_TRY(load_from_source(s, false));
    return replace_base(s, m);
}

/* The trained bytes are the source's own: read them again, and take others only where they may be.
 */
static tess_status reload_source(tess_session *s, const tess_ckpt_loaded *m)
{
    TESS_CHECK(s->d.dir != NULL, TESS_E_CONFIG,
               "model.path: '%s' has no weights, and checkpoint '%s' refers to them (output.base "
               "copy would have kept them); give the folder it was trained on",
               s->run->model.path, m->path);
    TESS_TRY(load_from_source(s, false));
    const bool is_same = strcmp(m->base.id, s->base_id) == 0;
    if (!is_same && session_may_change_base(s))
        return replace_base(s, m);
    TESS_TRY(session_agree(s, list_previous(s, m, NULL)));
    if (!is_same || s->options.kind == TESS_SESSION_TRAIN)
        TESS_TRY(refer_to_source(s));
    TESS_CHECK(is_same, TESS_E_FORMAT,
               "model.path: the weights in '%s' have base id %.16s, checkpoint '%s' was trained on "
               "%.16s; changed file: '%s'; give the folder it was trained on, or train adapters on "
               "over these with adapter.allow_base_change",
               s->run->model.path, s->base_id, m->path, m->base.id, changed_file(s, &m->base));
    s->base.id = s->base_id;
    return TESS_OK;
}

/* A checkpoint of another run directory: this one gets what a later resume needs. The base that
 * was read is written as it is, byte for byte. */
static tess_status move_in(tess_session *s)
{
    bool was_there = false;
    TESS_TRY(session_agree(s, keep_model(s)));
    if (s->base.mode != TESS_CKPT_BASE_COPY)
        return TESS_OK;
    return tess_ckpt_save_base(s->store, s->base_id, &s->records.base, &was_there);
}

/* ---- loss guard ---- */

static const char *const window_name[SESSION_SERIES_NUMEL] = {"spike_loss", "spike_norm"};

void session_guard_values(const tess_session *s,
                          char text[SESSION_SERIES_NUMEL][TESS_SPIKE_TEXT_NBYTES],
                          tess_ckpt_value out[SESSION_GUARD_VALUE_NUMEL])
{
    for (int i = 0; i < SESSION_SERIES_NUMEL; i++) {
        tess_spike_window_write(&s->guard.window[i], text[i]);
        *out++ = (tess_ckpt_value){window_name[i], TESS_CKPT_TEXT, .text = text[i]};
    }
    *out++ = (tess_ckpt_value){"rollbacks", TESS_CKPT_I64, .i64 = s->guard.rollback_numel};
    *out = (tess_ckpt_value){"passed_steps", TESS_CKPT_I64, .i64 = s->guard.passed_numel};
}

/* Checkpoints without one are older than it. */
static tess_status take_guard(tess_session *s, const tess_ckpt_loaded *m)
{
    s->guard = (session_guard){0};
    if (tess_ckpt_loaded_value(m, window_name[0]) == NULL)
        return TESS_OK;
    for (int i = 0; i < SESSION_SERIES_NUMEL; i++) {
        const tess_ckpt_value *v = tess_ckpt_loaded_value(m, window_name[i]);
        TESS_CHECK(v != NULL && v->kind == TESS_CKPT_TEXT &&
                       tess_spike_window_read(v->text, &s->guard.window[i]),
                   TESS_E_FORMAT,
                   "checkpoint '%s': '%s' is not the bits of at most %d finite numbers", m->path,
                   window_name[i], TESS_SPIKE_WINDOW_NUMEL);
    }
    TESS_TRY(session_number_of(m, "rollbacks", &s->guard.rollback_numel));
    return session_number_of(m, "passed_steps", &s->guard.passed_numel);
}

/* ---- a checkpoint's numbers ---- */

static tess_status take_numbers(tess_session *s, const tess_ckpt_loaded *m)
{
    TESS_TRY(session_number_of(m, "step", &s->step));
    TESS_TRY(session_number_of(m, "tokens", &s->token_numel));
    TESS_TRY(session_number_of(m, "updates", &s->update_numel));
    TESS_TRY(session_number_of(m, "skipped", &s->skipped_numel));
    TESS_TRY(session_number_of(m, "skipped_in_row", &s->skipped_in_row));
    TESS_TRY(take_guard(s, m));
    return session_optimizer_restore(s, m);
}

static tess_status take_over(tess_session *s, const tess_ckpt_loaded *m)
{
    TESS_TRY(take_numbers(s, m));
    if (s->is_base_changed)
        return change_base(s, m);
    if (m->base.mode == TESS_CKPT_BASE_REFERENCE)
        return reload_source(s, m);
    TESS_TRY(session_agree(s, list_previous(s, m, NULL)));
    snprintf(s->base_id, sizeof s->base_id, "%s", m->base.id != NULL ? m->base.id : "");
    s->base = (tess_ckpt_base){.mode = m->base.mode, .id = has_frozen(s) ? s->base_id : NULL};
    return TESS_OK;
}

static tess_status try_resume(tess_session *s, bool *is_loaded)
{
    const bool is_reader = s->options.kind == TESS_SESSION_READER;
    const char *choice = is_reader ? s->options.checkpoint : s->run->output.resume;
    tess_ckpt_loaded loaded = {0};
    *is_loaded = false;
    if (choice != NULL && strcmp(choice, is_reader ? "none" : "never") == 0)
        return TESS_OK;
    const bool is_auto = choice == NULL || (!is_reader && strcmp(choice, "auto") == 0);
    const tess_ckpt_load_request request = {.path = is_auto ? NULL : choice,
                                            .manifest_sha256 = s->options.manifest_sha256,
                                            .set = &s->records.state,
                                            .base = has_frozen(s) ? &s->records.base : NULL,
                                            .accept = accept_manifest,
                                            .may_leave = session_may_leave,
                                            .accept_arg = s};
    const double start_s = tess_clock_s();
    TESS_TRY(tess_ckpt_load(s->store, &request, &loaded));
    s->times.read_s += tess_clock_s() - start_s;
    tess_status st = TESS_OK;
    if (loaded.found == TESS_CKPT_LOADED) {
        *is_loaded = true;
        st = take_over(s, &loaded);
        if (st == TESS_OK && !is_reader && !is_auto)
            st = move_in(s);
        if (st == TESS_OK)
            tess_log_root(&s->ctx->log, TESS_LOG_INFO, "%s '%s' at step %lld (written by %d ranks)",
                          is_reader ? "loaded" : "resumed from", loaded.path, (long long)s->step,
                          loaded.stored_world);
        if (st == TESS_OK && loaded.fallback_numel > 0)
            tess_log_root(&s->ctx->log, TESS_LOG_WARN, "%lld newer checkpoints did not verify",
                          (long long)loaded.fallback_numel);
    } else if (is_reader) {
        st = TESS_FAIL(TESS_E_NOT_FOUND,
                       "output.dir: '%s' holds no checkpoint; train first, or ask for "
                       "--checkpoint none",
                       s->run->output.dir);
    }
    tess_ckpt_loaded_fini(&loaded);
    return st;
}

static int64_t last_step_of(const tess_session *s)
{
    return s->vectors != NULL ? session_vectors_step_numel(s) : s->run->train.steps;
}

static tess_status check_manifest_choice(const tess_session *s)
{
    const char *resume = s->run->output.resume;
    const bool is_never =
        s->options.kind == TESS_SESSION_TRAIN && resume != NULL && strcmp(resume, "never") == 0;
    TESS_CHECK(!is_never || s->options.manifest_sha256 == NULL, TESS_E_CONFIG,
               "--manifest-sha256: output.resume: never reads no checkpoint; remove one of both");
    return TESS_OK;
}

tess_status session_open_store(tess_session *s)
{
    char hex[TESS_SHA256_HEX_NBYTES];
    tess_sha256 numerics;
    TESS_TRY(session_agree(s, check_manifest_choice(s)));
    TESS_TRY(session_agree(s, tess_sha256_of(s->numerics, strlen(s->numerics), &numerics)));
    tess_hex(numerics.byte, sizeof numerics.byte, hex);
    const tess_ckpt_config config = {.dir = s->run->output.dir,
                                     .keep_numel = (int)s->run->output.keep,
                                     .keep_every = s->run->output.keep_every,
                                     .last_step = last_step_of(s),
                                     .has_read_back = s->run->output.verify_after_save,
                                     .is_reader = s->options.kind == TESS_SESSION_READER,
                                     .plan_digest = s->contract_digest,
                                     .config_digest = hex,
                                     .binary_id = "tessera " TESS_VERSION,
                                     .gather_group =
                                         s->rt != NULL ? s->d.plan->options.gather_group_numel : 1,
                                     .device = s->rt != NULL ? tess_runtime_device(s->rt) : NULL,
                                     .after = s->rt != NULL ? tess_runtime_stream(s->rt) : NULL,
                                     .comm = s->world,
                                     .ctx = s->ctx};
    return tess_ckpt_store_open(&config, &s->store);
}

/* Room for the names and texts that a save carries: run file and listing are known now. */
static tess_status state_room(const tess_session *s, size_t *nbytes)
{
    enum { SLACK_NBYTES = 64 << 10 };
    char *yaml = NULL;
    size_t yaml_nbytes = 0;
    TESS_TRY(tess_run_yaml(s->run, &yaml, &yaml_nbytes));
    tess_free(yaml);
    *nbytes = yaml_nbytes + strlen(s->numerics) + SLACK_NBYTES;
    return TESS_OK;
}

tess_status session_check_room(tess_session *s)
{
    if (tess_comm_rank(s->world) == 0 && tess_ckpt_preflight(s->store) != TESS_OK) {
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "output.dir: %s", tess_error_message());
        tess_error_clear(); /* old checkpoints may go before the room is needed */
    }
    return s->run->output.probe_disk ? tess_ckpt_probe(s->store) : TESS_OK;
}

static tess_status prepare_saves(tess_session *s)
{
    size_t room_nbytes = 0;
    TESS_TRY(session_agree(s, state_room(s, &room_nbytes)));
    TESS_TRY(tess_ckpt_prepare(s->store, &s->records.state, &s->base, room_nbytes));
    return session_check_room(s);
}

/* What was loaded takes effect. */
static tess_status go_on(tess_session *s)
{
    TESS_TRY(session_section(s, tess_runtime_resume(s->rt)));
    return s->feed->resumed != NULL ? s->feed->resumed(s) : TESS_OK;
}

tess_status session_load(tess_session *s)
{
    bool is_loaded = false;
    const bool is_reader = s->options.kind == TESS_SESSION_READER;
    const char *checkpoint = s->options.checkpoint;
    const bool is_base_only =
        is_reader &&
        (s->options.adapter != NULL || (checkpoint != NULL && strcmp(checkpoint, "none") == 0));
    if (!is_base_only) {
        TESS_TRY(session_open_store(s));
        TESS_TRY(try_resume(s, &is_loaded));
    }
    s->was_resumed = is_loaded;
    TESS_TRY(is_loaded ? go_on(s) : start_fresh(s));
    if (session_keeps(s))
        TESS_TRY(prepare_saves(s));
    s->shown = is_reader ? session_weights(s->run->train.eval_weights) : TESS_WEIGHTS_TRAINING;
    return session_publish(s, s->shown);
}

/* ---- rollback ---- */

/* Saves at other steps were asked for from outside: they are left out, or which there are would
 * decide bits. */
static bool is_regular(void *arg, int64_t step)
{
    const tess_session *s = arg;
    return step < s->step && step % s->run->output.checkpoint_every == 0;
}

static tess_status return_to(tess_session *s, const tess_ckpt_loaded *m)
{
    const int64_t data_step = session_data_step(s), rollback_numel = s->guard.rollback_numel;
    TESS_TRY(take_numbers(s, m));
    s->guard.rollback_numel = rollback_numel + 1;
    s->guard.passed_numel = data_step - s->step;
    TESS_TRY(go_on(s));
    return session_publish(s, s->shown);
}

tess_status session_roll_back(tess_session *s, bool *is_back)
{
    const tess_ckpt_load_request request = {.set = &s->records.state,
                                            .accept = accept_manifest,
                                            .may_leave = session_may_leave,
                                            .may_load = is_regular,
                                            .accept_arg = s};
    tess_ckpt_loaded loaded = {0};
    TESS_TRY(tess_ckpt_load(s->store, &request, &loaded));
    *is_back = loaded.found == TESS_CKPT_LOADED;
    const tess_status st = *is_back ? return_to(s, &loaded) : TESS_OK;
    tess_ckpt_loaded_fini(&loaded);
    return st;
}
