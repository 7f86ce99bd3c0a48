/*
 * Vectors or images as a session's data: files, masks, micro-batches, checkpoints.
 *
 * [Note: order of samples] Sample v of training, a vector or an image (v = micro-batch number x
 * samples of one, plus its place) is entry v % N of the permutation of epoch v / N: nothing is
 * dropped between epochs, a micro-batch may end in the next one, and no state is carried over.
 */
#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "model/rqvae.h"
#include "train/describe/describe_rqvae.h"
#include "train/rqvae/vector_feed_priv.h"

/* ---- open ---- */

static tess_status make_feed(tess_session *s)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(vector_feed), &object));
    s->vector = object;
    s->vector->pending = -1;
    return tess_vector_layout_make(s->run, &s->d.sample, tess_comm_world(s->world),
                                   tess_rqvae_sharding(&s->d), &s->vector->at);
}

static tess_status open_file(tess_session *s, int kind)
{
    static const char *const key[KIND_NUMEL] = {"data.path", "data.eval_path"};
    const char *path = kind == TRAINING ? s->run->data.path : s->run->data.eval_path;
    const bool is_images = tess_run_is_of_images(s->run);
    tess_samples **file = &s->vector->data[kind];
    char found[TESS_SAMPLE_TEXT_NBYTES], expected[TESS_SAMPLE_TEXT_NBYTES];
    TESS_TRY(tess_samples_open(s->ctx, path, is_images, file));
    const tess_sample_size *size = tess_samples_size(*file), *taken = &s->d.sample;
    tess_sample_text(size, found);
    tess_sample_text(taken, expected);
    TESS_CHECK(tess_sample_is_equal(size, taken), TESS_E_CONFIG,
               "%s: '%s' holds %s, the model takes %s (quantizer.%s)", key[kind], path, found,
               expected, is_images ? "image" : "dim");
    s->source[kind].sequence_numel = tess_samples_numel(*file);
    const tess_samples_mask mask = {.path = kind == TRAINING ? s->run->data.mask_path
                                                             : s->run->data.eval_mask_path,
                                    .key = tess_mask_key(kind != TRAINING),
                                    .halving_numel = (int)s->run->quantizer.downsample};
    return tess_samples_open_mask(s->ctx, *file, &mask);
}

static tess_status open_files(tess_session *s)
{
    TESS_TRY(make_feed(s));
    if (!s->options.needs_data)
        return TESS_OK;
    if (s->options.kind == TESS_SESSION_TRAIN)
        TESS_TRY(open_file(s, TRAINING));
    return s->run->data.eval_path != NULL ? open_file(s, HELD_OUT) : TESS_OK;
}

static tess_status check_masks(tess_session *s);

/* Codes have the hits of all vectors of a step between them. */
static void check_threshold(const tess_session *s)
{
    const vector_feed *f = s->vector;
    const double threshold = s->run->quantizer.threshold, codes = (double)f->at.shape.code_numel;
    const double hits =
        (double)(s->run->train.micro_batches * f->at.row_numel * tess_vector_layout_pooled(&f->at));
    if (f->at.is_averaged && threshold * codes > hits)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "quantizer.threshold is %g: %.0f codes do not get that many of the %.0f hits "
                      "of a step, so that good ones are replaced in every step; set at most %.3g, "
                      "or raise train.micro_batches",
                      threshold, codes, hits, hits / codes);
}

static tess_status open_data(tess_session *s)
{
    TESS_TRY(session_agree(s, open_files(s)));
    for (int kind = 0; kind < KIND_NUMEL; kind++) {
        tess_logical_hash digest = {0};
        if (s->vector->data[kind] == NULL)
            continue;
        TESS_TRY(tess_samples_scan(s->world, s->vector->data[kind],
                                   kind == TRAINING ? "data.path" : "data.eval_path", &digest));
        tess_vectors_digest_text(&digest, s->source[kind].sequence_numel, s->d.sample.dim,
                                 s->source[kind].digest);
    }
    if (s->options.kind == TESS_SESSION_TRAIN)
        check_threshold(s);
    return session_agree(s, check_masks(s));
}

static char *arena_at(tess_session *s, size_t offset_nbytes)
{
    return codes_host_data(s) + offset_nbytes;
}

static int64_t *window_at(tess_session *s, int kind)
{
    return (int64_t *)(void *)arena_at(s, s->vector->at.window[kind]);
}

static tess_status carve(tess_session *s)
{
    vector_feed *f = s->vector;
    f->read = codes_work_data(s, &f->at);
    tess_stream_init_inline(&s->codes_stream, "codes", s->pool);
    f->x = (float *)(void *)arena_at(s, f->at.x);
    f->batch = (tess_vector_batch){.vector_numel = f->at.row_numel,
                                   .x = (float *)(void *)(f->read + f->at.x),
                                   .code = (uint32_t *)(void *)arena_at(s, f->at.code),
                                   .square = (double *)(void *)arena_at(s, f->at.square),
                                   .step_numel = s->run->train.micro_batches * f->at.row_numel};
    if (f->at.shape.mean_numel > 0) {
        f->batch.mean_slope = (double *)(void *)(f->read + f->at.mean_slope);
        f->batch.mean_value = (double *)(void *)(f->read + f->at.mean_value);
    }
    for (int kind = 0; kind < KIND_NUMEL; kind++) {
        f->window[kind] = window_at(s, kind);
        memset(f->window[kind], 0, (size_t)f->at.window_numel * sizeof(int64_t));
    }
    if (f->at.has_books)
        TESS_TRY(tess_codes_create(s, &f->at, &f->books));
    if (f->at.book.shape.is_sharded)
        tess_rqvae_use_books(s->d.model, f->books);
    s->has_batch_event = true;
    return tess_event_init(&s->batch_read, tess_runtime_stream(s->rt));
}

void session_vector_feed_close(tess_session *s)
{
    if (s->vector == NULL)
        return;
    for (int kind = 0; kind < KIND_NUMEL; kind++)
        tess_samples_close(&s->vector->data[kind]);
    tess_codebooks_destroy(&s->vector->books);
    tess_free(s->vector);
    s->vector = NULL;
}

/* ---- windows ---- */

/* The same, once a device's copies of them are there. */
static tess_status note(tess_session *s)
{
    if (s->vector->pending >= 0)
        TESS_TRY(tess_stream_finish(tess_runtime_stream(s->rt)));
    vector_window_add(s->vector);
    return TESS_OK;
}

/* Between two exchanges; of a host nothing can fail. */
static tess_status note_together(tess_session *s)
{
    const tess_status st = note(s);
    return codes_are_far(s) ? session_agree(s, st) : st;
}

static tess_status close_window(tess_session *s, int kind, tess_metrics *metrics)
{
    vector_feed *f = s->vector;
    TESS_TRY(note_together(s));
    TESS_TRY(vector_window_sum(s, kind));
    vector_window_report(s, kind, metrics);
    memset(f->window[kind], 0, (size_t)f->at.window_numel * sizeof(int64_t));
    return TESS_OK;
}

/* Row-sharded codes, as compute copies have them now, to where they are searched. */
static tess_status shown(tess_session *s)
{
    vector_feed *f = s->vector;
    return f->at.has_books ? session_section(s, tess_codes_load(s, &f->at, f->books)) : TESS_OK;
}

/* A step that was skipped moves no codes either. */
static tess_status follow(tess_session *s)
{
    vector_feed *f = s->vector;
    const bool is_due = s->update_numel != f->update_numel;
    f->update_numel = s->update_numel;
    if (is_due && f->at.is_averaged)
        return session_section(s, tess_averages_update(s, &f->at, f->books));
    return is_due && f->at.learns_by_rows ? shown(s) : TESS_OK;
}

/* Gradients of codes that live by rows. */
static tess_status sum_held(void *arg, float grad_scale)
{
    tess_session *s = arg;
    vector_feed *f = s->vector;
    TESS_TRY(session_agree(s, tess_stream_finish(tess_runtime_stream(s->rt))));
    return tess_codes_gradient(s, &f->at, f->books, grad_scale);
}

static tess_status stepped(tess_session *s, tess_metrics *metrics)
{
    TESS_TRY(note_together(s));
    TESS_TRY(follow(s));
    if (s->step % s->run->quantizer.window != 0 && s->step != s->run->train.steps)
        return TESS_OK;
    return close_window(s, TRAINING, metrics);
}

static tess_status evaluated(tess_session *s, tess_metrics *metrics)
{
    return close_window(s, HELD_OUT, metrics);
}

/* ---- checkpoints ---- */

static void owned(const tess_session *s, int64_t numel, int64_t *lo, int64_t *hi)
{
    const int64_t each = tess_ceil_div(numel, tess_comm_world(s->world));
    const int64_t rank = tess_comm_rank(s->world);
    *lo = TESS_MIN(each * rank, numel);
    *hi = TESS_MIN(each * (rank + 1), numel);
}

/* Of a window that is saved or was loaded a rank has its range alone. */
static void keep_owned(const tess_session *s)
{
    const vector_feed *f = s->vector;
    int64_t lo = 0, hi = 0;
    owned(s, f->at.window_numel, &lo, &hi);
    memset(f->window[TRAINING], 0, (size_t)lo * sizeof(int64_t));
    memset(f->window[TRAINING] + hi, 0, (size_t)(f->at.window_numel - hi) * sizeof(int64_t));
}

static tess_status before_save(tess_session *s)
{
    const vector_feed *f = s->vector;
    TESS_TRY(note_together(s));
    TESS_TRY(vector_window_sum(s, TRAINING));
    keep_owned(s);
    return f->at.is_averaged ? session_section(s, tess_averages_recut(s, &f->at, f->books, false))
                             : TESS_OK;
}

/* An array of `total_numel` that every rank saves its range of; `data` is where that lies. */
static void add_record(tess_session *s, const char *name, const char *role, int64_t total_numel,
                       tess_view data)
{
    session_records *r = &s->records;
    const bool is_f32 = data.dt == TESS_F32;
    int64_t lo = 0, hi = 0;
    owned(s, total_numel, &lo, &hi);
    r->state_record[r->state.record_numel++] =
        (tess_ckpt_record){.unit = name,
                           .role = role,
                           .dt = data.dt,
                           .total_numel = total_numel,
                           .align_numel = 1,
                           .lo_idx = lo,
                           .hi_idx = hi,
                           .view = tess_view_slice(data, 0, hi - lo),
                           .contract = is_f32 ? "stored=f32 logical=f32" : "stored=i64 logical=i64",
                           .quant = "none"};
    r->state_tensor[r->state.tensor_numel++] = (tess_ckpt_tensor){.unit = name,
                                                                  .name = name,
                                                                  .role = role,
                                                                  .dtype = tess_dtype_name(data.dt),
                                                                  .dim_numel = 1,
                                                                  .shape = {total_numel},
                                                                  .extent_numel = total_numel,
                                                                  .quant = "none"};
}

static void add_records(tess_session *s)
{
    const tess_vector_layout *at = &s->vector->at;
    int64_t lo = 0, hi = 0;
    owned(s, at->window_numel, &lo, &hi);
    add_record(s, "quantizer.window", "counts", at->window_numel,
               tess_view_host(window_at(s, TRAINING) + lo, hi - lo, TESS_I64));
    if (at->is_averaged)
        add_record(s, "quantizer.averages", "averages", at->shape.book_numel * at->average_numel,
                   tess_view_host(arena_at(s, at->saved),
                                  tess_vector_layout_saved(at, tess_comm_world(s->world)),
                                  TESS_F32));
}

/* ---- micro-batches ---- */

/* Bytes of the layout to where kernels read them; nothing to do on the host. */
static tess_status mirror(tess_session *s, size_t offset_nbytes, int64_t nbytes)
{
    const vector_feed *f = s->vector;
    const tess_view device = {f->read + offset_nbytes, nbytes, TESS_U8_OPAQUE,
                              tess_runtime_device(s->rt)->space};
    const tess_view host = tess_view_host(arena_at(s, offset_nbytes), nbytes, TESS_U8_OPAQUE);
    if (!codes_are_far(s) || nbytes == 0)
        return TESS_OK;
    return tess_device_copy(tess_runtime_device(s->rt), device, host, tess_runtime_stream(s->rt));
}

char *session_vector_near(const tess_session *s) { return s->vector->read; }

tess_status session_vector_send(tess_session *s, size_t offset_nbytes, int64_t nbytes)
{
    return mirror(s, offset_nbytes, nbytes);
}

/* The host's arrays may be written again once the last copy of them is done. */
static tess_status begin_batch(tess_session *s)
{
    TESS_TRY(note(s));
    return session_begin_batch(s);
}

static tess_status send_batch(tess_session *s)
{
    const vector_feed *f = s->vector;
    if (!codes_are_far(s))
        return TESS_OK;
    TESS_TRY(mirror(s, f->at.x, f->at.row_numel * f->at.dim * (int64_t)sizeof *f->x));
    if (f->at.is_masked) {
        const size_t valid = (size_t)((const char *)f->batch.valid - f->read);
        TESS_TRY(mirror(s, valid, f->at.row_numel));
        TESS_TRY(mirror(s, f->at.own, f->at.row_numel * (int64_t)sizeof(uint32_t)));
        TESS_TRY(
            mirror(s, f->at.line, f->at.row_numel * f->at.line_numel * (int64_t)sizeof(uint32_t)));
    }
    return tess_event_record(&s->batch_read, tess_runtime_stream(s->rt));
}

/* Where codes follow the vectors of a step, these stay until it is over. */
static void keep_results(tess_session *s, int64_t micro_batch_idx)
{
    vector_feed *f = s->vector;
    const int64_t m = micro_batch_idx % s->run->train.micro_batches;
    const int64_t at = m / tess_comm_world(s->world) * f->at.shape.index_numel * f->at.row_numel;
    if (!tess_vector_layout_follows(&f->at))
        return;
    f->batch.code = (uint32_t *)(void *)arena_at(s, f->at.code) + at;
    f->batch.left = (float *)(void *)(f->read + f->at.kept) + at * f->at.shape.dim;
}

/* Sample v of training. */
static int64_t sample_of(const tess_session *s, int64_t v)
{
    const int64_t numel = s->source[TRAINING].sequence_numel;
    const tess_rng rng = tess_rng_make((uint64_t)s->run->train.seed, TESS_RNG_SHUFFLE, 0,
                                       (uint32_t)(uint64_t)(v / numel));
    return tess_rng_permute(&rng, numel, v % numel);
}

/* ---- masks ---- */

/* Flags of a micro-batch's vectors, NULL: none is masked, into what the model sees. */
static void take_mask(tess_session *s, const uint8_t *valid, int64_t row_numel)
{
    vector_feed *f = s->vector;
    f->batch.valid_numel = row_numel;
    if (valid == NULL)
        return;
    f->batch.valid = (uint8_t *)f->read + (valid - (uint8_t *)arena_at(s, 0));
    f->batch.own = (uint32_t *)(void *)(f->read + f->at.own);
    if (f->at.line_numel > 0)
        f->batch.line = (uint32_t *)(void *)(f->read + f->at.line);
    f->batch.valid_numel =
        tess_mask_spread(&f->at, valid, row_numel, (uint32_t *)(void *)arena_at(s, f->at.own),
                         (uint32_t *)(void *)arena_at(s, f->at.line));
}

/* The flags stay with the results that they are of. */
static uint8_t *flags_of(tess_session *s, int64_t micro_batch_idx)
{
    const tess_vector_layout *v = &s->vector->at;
    const int64_t m = micro_batch_idx % s->run->train.micro_batches;
    if (!v->is_masked)
        return NULL;
    return (uint8_t *)arena_at(s, v->valid) +
           (v->kept_numel > 0 ? m / tess_comm_world(s->world) * v->row_numel : 0);
}

/* Whether there is a valid vector in samples [first, end) of the held-out ones, or of training's
 * order. */
static tess_status find_valid(tess_session *s, int kind, int64_t first, int64_t end, bool *found)
{
    const int64_t positions = s->vector->at.position_numel;
    void *valid = NULL;
    tess_status st = tess_alloc_array(positions, sizeof(uint8_t), &valid);
    *found = false;
    for (int64_t i = first; i < end && !*found && st == TESS_OK; i++) {
        st = tess_samples_valid(s->vector->data[kind], kind == TRAINING ? sample_of(s, i) : i, 1,
                                valid);
        *found = st == TESS_OK && memchr(valid, 1, (size_t)positions) != NULL;
    }
    tess_free(valid);
    return st;
}

/* Means are over valid vectors: every step has one, and so have those that are held out. What a
 * step has is known before the first one, so no run without rollbacks ends at a later one; ranks
 * look at steps in turn. Local. */
static tess_status check_masks(tess_session *s)
{
    const tess_run *run = s->run;
    const int64_t each = run->train.micro_batches * run->train.micro_batch;
    const int64_t numel = s->source[HELD_OUT].sequence_numel;
    const char *name = tess_run_is_of_images(run) ? "images" : "vectors";
    tess_samples **data = s->vector->data;
    bool found = false;
    if (data[HELD_OUT] != NULL && run->data.eval_mask_path != NULL) {
        TESS_TRY(find_valid(s, HELD_OUT, 0, numel, &found));
        TESS_CHECK(found, TESS_E_FORMAT,
                   "data.eval_mask_path: '%s' masks all of the %" PRId64 " %s of '%s', "
                   "expected a valid one; leave data.eval_path out",
                   run->data.eval_mask_path, numel, name, run->data.eval_path);
    }
    if (data[TRAINING] == NULL || run->data.mask_path == NULL)
        return TESS_OK;
    for (int64_t i = tess_comm_rank(s->world); i < run->train.steps;
         i += tess_comm_world(s->world)) {
        TESS_TRY(find_valid(s, TRAINING, i * each, (i + 1) * each, &found));
        TESS_CHECK(found, TESS_E_FORMAT,
                   "data.mask_path: step %" PRId64 " of train.steps %" PRId64
                   ": all of its %" PRId64
                   " %s are masked by '%s'; raise train.micro_batches, or leave out %s that are "
                   "masked",
                   i + 1, run->train.steps, each, name, run->data.mask_path, name);
    }
    return TESS_OK;
}

/* Valid vectors of each of this rank's micro-batches. */
static tess_status count_own(tess_session *s, int64_t step, int64_t *numel)
{
    vector_feed *f = s->vector;
    const int64_t m_numel = s->run->train.micro_batches, samples = s->run->train.micro_batch;
    TESS_TRY(begin_batch(s));
    for (int64_t m = tess_comm_rank(s->world); m < m_numel; m += tess_comm_world(s->world)) {
        uint8_t *valid = flags_of(s, m);
        for (int64_t i = 0; i < samples; i++)
            TESS_TRY(tess_samples_valid(f->data[TRAINING],
                                        sample_of(s, (step * m_numel + m) * samples + i), 1,
                                        valid + i * f->at.position_numel));
        for (int64_t i = 0; i < f->at.row_numel; i++)
            numel[m] += valid[i];
    }
    return TESS_OK;
}

/* The vectors that a step's means are over: the same on all ranks, and from all of them. */
static tess_status count_valid(tess_session *s, int64_t step)
{
    vector_feed *f = s->vector;
    const int64_t m_numel = s->run->train.micro_batches;
    if (!f->at.is_masked)
        return TESS_OK;
    int64_t *before = (int64_t *)(void *)arena_at(s, f->at.valid_before);
    int numel = 0;
    memset(before, 0, (size_t)(m_numel + 1) * sizeof *before);
    TESS_TRY(session_agree(s, count_own(s, step, before + 1)));
    TESS_TRY(tess_to_int(m_numel, &numel));
    TESS_TRY(tess_comm_control(s->world, before + 1, numel, NULL, 0));
    for (int64_t m = 0; m < m_numel; m++)
        before[m + 1] += before[m];
    f->batch.step_numel = before[m_numel];
    return TESS_OK;
}

static tess_status fill(tess_session *s, int64_t micro_batch_idx, const void **batch)
{
    vector_feed *f = s->vector;
    const int64_t rows = f->at.row_numel, samples = s->run->train.micro_batch;
    uint8_t *valid = flags_of(s, micro_batch_idx);
    TESS_TRY(begin_batch(s));
    for (int64_t i = 0; i < samples; i++)
        TESS_TRY(tess_samples_read(f->data[TRAINING], sample_of(s, micro_batch_idx * samples + i),
                                   1, f->x + i * s->d.sample.dim,
                                   valid != NULL ? valid + i * f->at.position_numel : NULL));
    take_mask(s, valid, rows);
    keep_results(s, micro_batch_idx);
    f->batch.vector_numel = rows;
    f->batch.is_drawn = true;
    f->batch.first_idx = micro_batch_idx * rows;
    f->pending = TRAINING;
    *batch = &f->batch;
    return send_batch(s);
}

static tess_status fill_eval(tess_session *s, int64_t first, int64_t numel, const void **batch,
                             int64_t *loss_numel)
{
    vector_feed *f = s->vector;
    uint8_t *valid = flags_of(s, 0);
    TESS_TRY(begin_batch(s));
    f->batch.code = (uint32_t *)(void *)arena_at(s, f->at.code);
    f->batch.left = NULL;
    f->batch.is_drawn = false;
    TESS_TRY(tess_samples_read(f->data[HELD_OUT], first, numel, f->x, valid));
    f->batch.vector_numel = numel * f->at.position_numel;
    take_mask(s, valid, f->batch.vector_numel);
    *loss_numel = f->batch.valid_numel;
    f->pending = HELD_OUT;
    *batch = &f->batch;
    return send_batch(s);
}

/* ---- passes over a step ahead of it ---- */

/* The model over this rank's micro-batches of a step, for what the quantizer gives beside codes:
 * entering vectors into `latent`, or what the batch wants added up. */
static tess_status visit_step(tess_session *s, int64_t step, float *latent)
{
    vector_feed *f = s->vector;
    const int64_t m_numel = s->run->train.micro_batches, world = tess_comm_world(s->world);
    const int64_t rank = tess_comm_rank(s->world);
    const int64_t each = f->at.row_numel * f->at.shape.dim;
    f->batch.latent_stride = rank < m_numel ? ((m_numel - 1 - rank) / world + 1) * each : 0;
    for (int64_t first = 0, at = 0; first < m_numel; first += world, at++) {
        const int64_t m = first + rank;
        const void *batch = NULL;
        double loss_sum = 0.0;
        TESS_TRY(session_agree(s, m < m_numel ? fill(s, step * m_numel + m, &batch) : TESS_OK));
        f->batch.latent = latent != NULL ? latent + at * each : NULL;
        f->batch.left = NULL;
        f->batch.is_drawn = false;
        f->pending = -1;
        TESS_TRY(session_section(s, tess_runtime_forward(s->rt, TESS_CALL_EVAL, batch, &loss_sum)));
    }
    f->batch.latent = NULL;
    return TESS_OK;
}

/* Sums of zeros where kernels add to them. */
static tess_status clear_sums(tess_session *s)
{
    const vector_feed *f = s->vector;
    const tess_view sums = {f->read + f->at.mean_sum, f->at.shape.mean_numel, TESS_I64,
                            tess_runtime_device(s->rt)->space};
    return tess_device_zero(tess_runtime_device(s->rt), sums, tess_runtime_stream(s->rt));
}

/* What the whole step's vectors are assigned to on average, before any of them is trained on. */
static tess_status look_ahead(tess_session *s)
{
    vector_feed *f = s->vector;
    TESS_TRY(session_agree(s, clear_sums(s)));
    f->batch.mean_sum = (int64_t *)(void *)(f->read + f->at.mean_sum);
    const tess_status visited = visit_step(s, session_data_step(s), NULL);
    f->batch.mean_sum = NULL;
    TESS_TRY(visited);
    return session_section(s, tess_mean_entropy(s, &f->at));
}

static tess_status count(tess_session *s, int64_t *loss_numel)
{
    TESS_TRY(count_valid(s, session_data_step(s)));
    *loss_numel = s->vector->batch.step_numel;
    return s->vector->at.shape.mean_numel > 0 ? look_ahead(s) : TESS_OK;
}

/* ---- start ---- */

/* Lists of values begin as their formula has them. */
static tess_status start_values(tess_session *s)
{
    const int param_idx = tess_rqvae_values(s->d.model);
    float value[TESS_RQVAE_VALUE_MAX];
    if (param_idx < 0)
        return TESS_OK;
    tess_rqvae_values_start(s->d.model, value);
    return codes_keep_param(s, param_idx, value);
}

static tess_status start_codes(tess_session *s)
{
    vector_feed *f = s->vector;
    float *latent = (float *)(void *)arena_at(s, f->at.kept);
    if (s->run->quantizer.init != TESS_RUN_CODE_INIT_RANDOM) {
        TESS_TRY(session_section(s, tess_runtime_publish_as(s->rt, TESS_WEIGHTS_TRAINED)));
        TESS_TRY(count_valid(s, 0));
        TESS_TRY(shown(s));
        TESS_TRY(visit_step(s, 0, latent));
        TESS_TRY(session_section(s, tess_codes_start(s, &f->at, f->books)));
    }
    TESS_TRY(session_agree(s, start_values(s)));
    return f->at.is_averaged ? session_section(s, tess_averages_start(s, &f->at, f->books))
                             : TESS_OK;
}

static tess_status resumed(tess_session *s)
{
    vector_feed *f = s->vector;
    f->update_numel = s->update_numel;
    f->pending = -1; /* a run that goes back leaves what the step gave */
    keep_owned(s);
    return f->at.is_averaged ? session_section(s, tess_averages_recut(s, &f->at, f->books, true))
                             : TESS_OK;
}

static tess_status add_wires(tess_session *s, tess_contract *c)
{
    const tess_vector_layout *at = &s->vector->at;
    return at->has_books ? tess_codebook_plan_contract(&at->book, c) : TESS_OK;
}

const session_feed session_vector_feed = {.unit = "vectors",
                                          .sequence = "vectors",
                                          .open = open_data,
                                          .add_wires = add_wires,
                                          .carve = carve,
                                          .fill = fill,
                                          .count = count,
                                          .fill_eval = fill_eval,
                                          .sum_held = sum_held,
                                          .stepped = stepped,
                                          .evaluated = evaluated,
                                          .before_save = before_save,
                                          .add_records = add_records,
                                          .start = start_codes,
                                          .resumed = resumed,
                                          .shown = shown};
