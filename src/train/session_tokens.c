/* Tokens as a session's data: files, batches, what of them has a loss. */
#include <limits.h>
#include <stdio.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/tokenizer.h"
#include "train/session_priv.h"

static tess_dataset_config dataset_config(const tess_session *s, bool is_train)
{
    return (tess_dataset_config){.sequence_numel = s->run->data.sequence_length,
                                 .packing = s->run->data.packing,
                                 .shuffle = is_train,
                                 .ignores_mask = !s->run->data.mask_prompt,
                                 .seed = (uint64_t)s->run->train.seed,
                                 .vocab_numel = s->d.config.vocab_numel,
                                 .resident_limit_nbytes = TESS_DATASET_RESIDENT_NBYTES};
}

static tess_status open_dataset(tess_session *s, const char *path, bool is_train, int64_t *left,
                                tess_dataset **out)
{
    tess_dataset_config config = dataset_config(s, is_train);
    tess_dataset_memory memory;
    tess_token_file *file = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(s->ctx->io, path, &kind, &nbytes));
    TESS_CHECK(kind != TESS_IO_MISSING, TESS_E_IO,
               "%s: there is no file '%s'; make it with `tessera tokenize`",
               is_train ? "data.path" : "data.eval_path", path);
    TESS_TRY(tess_token_file_open(s->ctx, path, &file));
    tess_status st = tess_dataset_plan(tess_token_file_get_info(file), &config, &memory);
    if (st == TESS_OK) {
        *left -= (int64_t)(memory.index_nbytes + memory.scratch_nbytes);
        config.resident_limit_nbytes = TESS_MIN(config.resident_limit_nbytes, TESS_MAX(*left, 0));
        st = tess_dataset_plan(tess_token_file_get_info(file), &config, &memory);
    }
    tess_token_file_close(&file);
    TESS_TRY(st);
    *left -= (int64_t)memory.resident_nbytes;
    return tess_dataset_open(s->ctx, path, &config, out);
}

/* A plan knows no files: what their indices need beyond its allowance must fit beside it. */
static tess_status check_data_fits(const tess_session *s, int64_t left)
{
    const tess_plan *plan = s->d.plan;
    const size_t over = left < 0 ? (size_t)-left : 0, limit = plan->options.memory_limit_nbytes;
    TESS_CHECK(over == 0 || limit == 0 || plan->total_nbytes + over <= limit, TESS_E_FIT,
               "data: the documents' index needs %zu bytes beyond its %d; with them the plan's %zu "
               "bytes exceed the limit of %zu; join documents, or raise compute.memory_limit",
               over, TESS_DATA_NBYTES, plan->total_nbytes, limit);
    if (over > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "data: the documents' index needs %zu bytes more than the plan counts", over);
    return TESS_OK;
}

static void say_source(const tess_dataset *data, session_source *source)
{
    if (data == NULL)
        return;
    const tess_dataset_info *info = tess_dataset_get_info(data);
    tess_hex(info->payload_digest.byte, sizeof info->payload_digest.byte, source->digest);
    source->sequence_numel = info->sequences_per_epoch;
}

/* Of a JSON file of the model, which may be in neither place. Local. */
static tess_status digest_of(const tess_session *s, const char *path, tess_sha256 *out)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_io_read_all(s->ctx->io, path, TESS_TOKENIZER_FILE_NBYTES_LIMIT, &text, &nbytes));
    const tess_status st = tess_sha256_of(text, nbytes, out);
    tess_free(text);
    return st;
}

static void compare_tokenizers(const tess_session *s, const tess_dataset *data, const char *key,
                               const char *path, const tess_sha256 *model, const char *model_path)
{
    static const tess_sha256 none = {{0}};
    const tess_sha256 *made = data != NULL ? &tess_dataset_get_info(data)->tokenizer : &none;
    if (!tess_sha256_is_equal(made, &none) && !tess_sha256_is_equal(made, model))
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "%s: '%s' was made with another tokenizer.json than '%s', so its tokens may "
                      "stand for other text; make it with the model's: tessera tokenize %s ...",
                      key, path, model_path, s->run->model.path);
}

/* Tokens of another tokenizer train without an error, and teach nonsense. Said, not refused: one
 * text may be saved as several files, and a model be adapted to the chat tokens of another. */
static tess_status check_tokenizers(const tess_session *s)
{
    char path[PATH_MAX];
    bool is_there = false;
    tess_sha256 model;
    if (tess_comm_rank(s->world) != 0 || (s->train_data == NULL && s->eval_data == NULL))
        return TESS_OK;
    TESS_TRY(tess_describe_file(s->ctx, s->run, "tokenizer.json", path, &is_there));
    if (!is_there)
        return TESS_OK;
    TESS_TRY(digest_of(s, path, &model));
    compare_tokenizers(s, s->train_data, "data.path", s->run->data.path, &model, path);
    compare_tokenizers(s, s->eval_data, "data.eval_path", s->run->data.eval_path, &model, path);
    return TESS_OK;
}

static tess_status open_data(tess_session *s)
{
    int64_t left = TESS_DATA_NBYTES;
    tess_status st = TESS_OK;
    if (!s->options.needs_data)
        return TESS_OK;
    if (s->options.kind == TESS_SESSION_TRAIN)
        st = open_dataset(s, s->run->data.path, true, &left, &s->train_data);
    if (st == TESS_OK && s->run->data.eval_path != NULL)
        st = open_dataset(s, s->run->data.eval_path, false, &left, &s->eval_data);
    if (st == TESS_OK)
        st = check_data_fits(s, left);
    if (st == TESS_OK)
        st = check_tokenizers(s);
    if (st == TESS_OK && session_samples(s))
        st = session_check_texts(s);
    say_source(s->train_data, &s->source[0]);
    say_source(s->eval_data, &s->source[1]);
    return session_agree(s, st);
}

static tess_status carve_batch(tess_session *s)
{
    const int64_t token_numel = s->run->train.micro_batch * s->run->data.sequence_length;
    const int64_t stride = tess_round_up(token_numel * 4, TESS_ARENA_ALIGN_NBYTES) / 4;
    int32_t *base = tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
    const tess_view mirror = tess_runtime_arena(s->rt, TESS_LIFE_MIRROR);
    s->batch_in = (tess_dataset_batch){base, base + stride, base + 2 * stride, base + 3 * stride};
    const int32_t *read = base;
    if (tess_runtime_device(s->rt)->space != TESS_HOST)
        read =
            (const int32_t *)(const void *)((const char *)mirror.data + mirror.numel) - 4 * stride;
    s->batch = (tess_token_batch){.token_numel = token_numel,
                                  .sequence_numel = s->run->train.micro_batch,
                                  .tokens = read,
                                  .labels = read + stride,
                                  .positions = read + 2 * stride,
                                  .doc_start = read + 3 * stride,
                                  .host_labels = s->batch_in.labels,
                                  .logits_token_idx = -1};
    s->batch_numel = 4 * stride;
    s->has_batch_event = true;
    return tess_event_init(&s->batch_read, tess_runtime_stream(s->rt));
}

/* The host's arrays may be written again once the last copy of them is done. */
tess_status session_begin_batch(tess_session *s) { return tess_event_finish(&s->batch_read); }

tess_status session_send_batch(tess_session *s)
{
    s->batch.document_numel = 0;
    for (int64_t i = 0; i < s->batch.token_numel; i++)
        s->batch.document_numel += s->batch_in.doc_start[i] == i;
    if (s->batch.tokens == s->batch_in.tokens)
        return TESS_OK;
    tess_stream *stream = tess_runtime_stream(s->rt);
    const tess_view dst = {(void *)(uintptr_t)s->batch.tokens, s->batch_numel, TESS_I32,
                           tess_runtime_device(s->rt)->space};
    const int span = tess_trace_begin(stream->tracer, TESS_TRACE_COMPUTE, "copy batch",
                                      (int64_t)tess_view_nbytes(dst), stream);
    TESS_TRY(tess_device_copy(tess_runtime_device(s->rt), dst,
                              tess_view_host(s->batch_in.tokens, s->batch_numel, TESS_I32),
                              stream));
    tess_trace_end(stream->tracer, span, stream);
    return tess_event_record(&s->batch_read, stream);
}

tess_status session_fill_batch(tess_session *s, int64_t micro_batch_idx)
{
    const int64_t b = s->run->train.micro_batch;
    TESS_TRY(session_begin_batch(s));
    TESS_TRY(tess_dataset_fill(s->train_data, micro_batch_idx * b, b, &s->batch_in));
    return session_send_batch(s);
}

static tess_status fill_train(tess_session *s, int64_t micro_batch_idx, const void **batch)
{
    *batch = &s->batch;
    return session_fill_batch(s, micro_batch_idx);
}

/* Sequences [first, first + numel) in front, masked rows behind them: shapes stay those of the
 * plan. */
static tess_status fill_eval(tess_session *s, int64_t first, int64_t numel, const void **batch,
                             int64_t *loss_token_numel)
{
    const int64_t width = s->run->data.sequence_length;
    const tess_dataset_batch *b = &s->batch_in;
    TESS_TRY(session_begin_batch(s));
    TESS_TRY(tess_dataset_fill(s->eval_data, first, numel, b));
    for (int64_t i = numel * width; i < s->batch.token_numel; i++) {
        b->tokens[i] = 0;
        b->labels[i] = -1;
        b->positions[i] = (int32_t)(i % width);
        b->doc_start[i] = (int32_t)(i / width * width);
    }
    *batch = &s->batch;
    TESS_TRY(session_send_batch(s));
    return tess_dataset_loss_tokens(s->eval_data, first, numel, loss_token_numel);
}

/* Loss tokens of the whole step; every rank counts its own micro-batches. */
static tess_status count_loss_tokens(tess_session *s, int64_t *loss_token_numel)
{
    const int64_t m_numel = s->run->train.micro_batches, b = s->run->train.micro_batch;
    const int64_t first = session_data_step(s) * m_numel;
    tess_status st = TESS_OK;
    int64_t failed = 0;
    *loss_token_numel = 0;
    for (int64_t m = tess_comm_rank(s->world); m < m_numel && st == TESS_OK;
         m += tess_comm_world(s->world)) {
        int64_t numel = 0;
        st = tess_dataset_loss_tokens(s->train_data, (first + m) * b, b, &numel);
        *loss_token_numel += numel;
    }
    failed = st != TESS_OK;
    TESS_TRY(tess_comm_control(s->world, loss_token_numel, 1, &failed, 1));
    return failed ? session_agree(s, st) : TESS_OK;
}

const session_feed session_token_feed = {.sequence = "sequences",
                                         .open = open_data,
                                         .carve = carve_batch,
                                         .fill = fill_train,
                                         .count = count_loss_tokens,
                                         .fill_eval = fill_eval,
                                         .sample = session_sample_texts};
