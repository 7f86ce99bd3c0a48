#include "support/tiny_run.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "format/json.h"
#include "train/data/token_file.h"

enum { VOCAB = 61 };

static const char config_text[] =
    "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 48,"
    " \"intermediate_size\": 80, \"num_hidden_layers\": 3, \"num_attention_heads\": 6,"
    " \"num_key_value_heads\": 2, \"head_dim\": 8, \"vocab_size\": 61, \"rms_norm_eps\": 1e-6,"
    " \"rope_theta\": 10000.0, \"tie_word_embeddings\": false, \"hidden_act\": \"silu\","
    " \"max_position_embeddings\": 512, \"bos_token_id\": 0, \"eos_token_id\": 1,"
    " \"torch_dtype\": \"bfloat16\"}\n";

static const char run_text[] =
    "model: {path: MODEL, init: random}\n"
    "base: {format: nf4, block_size: 64, double_quant: true}\n"
    "lora: {rank: 4, alpha: 8, targets: all-linear, dropout: 0.1}\n"
    "data: {path: TRAIN, sequence_length: 32}\n"
    "train: {steps: 20, micro_batch: 2, micro_batches: 8, learning_rate: 2.0e-2, schedule: "
    "cosine,\n"
    "        warmup_steps: 2, weight_decay: 0.1, clip_norm: 0.05, seed: 3, eval_every: 10}\n"
    "output: {dir: OUT, checkpoint_every: 0}\n";

/* Documents of 5 to 60 tokens; the next token follows from the last one but for a few surprises. */
static tess_status write_tokens(const tess_ctx *ctx, const char *path, uint32_t stream,
                                int64_t document_numel)
{
    tess_token_writer *writer = NULL;
    const tess_rng rng = tess_rng_make(9, TESS_RNG_TEST, stream, 0);
    uint64_t draw = 0;
    tess_sha256 tokenizer = {{0}};
    TESS_TRY(tess_token_writer_create(ctx, path, VOCAB, &tokenizer, &writer));
    tess_status st = TESS_OK;
    for (int64_t d = 0; d < document_numel && st == TESS_OK; d++) {
        int32_t token[60];
        uint8_t mask[60];
        const int64_t numel = 5 + (int64_t)tess_rng_below(&rng, draw++, 56);
        token[0] = (int32_t)tess_rng_below(&rng, draw++, VOCAB);
        for (int64_t i = 0; i < numel; i++) {
            const bool is_surprise = tess_rng_below(&rng, draw++, 8) == 0;
            if (i > 0)
                token[i] = is_surprise ? (int32_t)tess_rng_below(&rng, draw++, VOCAB)
                                       : (token[i - 1] * 7 + 3) % VOCAB;
            mask[i] = d % 3 != 0 || i > 3;
        }
        st = tess_token_writer_add(writer, token, mask, numel);
    }
    if (st == TESS_OK)
        st = tess_token_writer_finish(writer, NULL);
    tess_token_writer_destroy(&writer);
    return st;
}

static tess_status write_files(tiny_run *t)
{
    char path[320];
    TESS_CHECK(mkdtemp(t->dir) != NULL, TESS_E_IO, "no temporary folder '%s'", t->dir);
    snprintf(t->model, sizeof t->model, "%s/model", t->dir);
    TESS_TRY(tess_io_mkdirs(t->ctx.io, t->model));
    snprintf(path, sizeof path, "%s/config.json", t->model);
    TESS_TRY(tess_io_write_all(t->ctx.io, path, config_text, strlen(config_text)));
    snprintf(path, sizeof path, "%s/run.yaml", t->dir);
    TESS_TRY(tess_io_write_all(t->ctx.io, path, run_text, strlen(run_text)));
    snprintf(path, sizeof path, "%s/train.h5", t->dir);
    TESS_TRY(write_tokens(&t->ctx, path, 0, 400));
    snprintf(path, sizeof path, "%s/eval.h5", t->dir);
    return write_tokens(&t->ctx, path, 1, 40);
}

tess_status tiny_run_create(tess_comm *comm, tiny_run *t)
{
    const char *folder = getenv("TMPDIR");
    memset(t, 0, sizeof *t);
    tess_status st = tess_io_create(tess_comm_rank(comm), &t->ctx.io);
    t->ctx.log.rank = tess_comm_rank(comm);
    snprintf(t->dir, sizeof t->dir, "%s/tessera-test-XXXXXX", folder != NULL ? folder : "/tmp");
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = write_files(t);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(tess_comm_bcast(comm, 0, t->dir, sizeof t->dir));
    snprintf(t->model, sizeof t->model, "%s/model", t->dir);
    snprintf(t->train, sizeof t->train, "%s/train.h5", t->dir);
    snprintf(t->eval, sizeof t->eval, "%s/eval.h5", t->dir);
    snprintf(t->run_file, sizeof t->run_file, "%s/run.yaml", t->dir);
    return TESS_OK;
}

void tiny_run_destroy(tess_comm *comm, tiny_run *t)
{
    char command[300];
    if (tess_comm_barrier(comm) != TESS_OK)
        tess_error_clear(); /* the test has failed already */
    if (tess_comm_rank(comm) == 0 && strstr(t->dir, "/tessera-test-") != NULL) {
        snprintf(command, sizeof command, "rm -rf '%s'", t->dir);
        if (system(command) != 0)
            fprintf(stderr, "cannot remove '%s'\n", t->dir);
    }
    tess_io_destroy(&t->ctx.io);
}

tess_status tiny_run_open_as(tess_comm *comm, tiny_run *t, const char *name,
                             const char *const *overrides, const tess_session_options *options,
                             tess_session **out)
{
    char fixed[4][400];
    tess_run_override list[TINY_OVERRIDE_MAX + 4];
    int numel = 0;
    snprintf(fixed[0], sizeof fixed[0], "model.path=%s", t->model);
    snprintf(fixed[1], sizeof fixed[1], "data.path=%s", t->train);
    snprintf(fixed[2], sizeof fixed[2], "output.dir=%s/%s", t->dir, name);
    snprintf(fixed[3], sizeof fixed[3], "data.eval_path=%s", t->eval);
    for (; numel < (t->eval[0] != '\0' ? 4 : 3); numel++)
        list[numel] = (tess_run_override){fixed[numel], numel + 1};
    for (int i = 0; overrides != NULL && overrides[i] != NULL; i++, numel++)
        list[numel] = (tess_run_override){overrides[i], numel + 1};
    tess_session_options o = *options;
    o.run_path = t->run_file;
    o.overrides = list;
    o.override_numel = numel;
    o.needs_data = true;
    return tess_session_open(&t->ctx, comm, &o, out);
}

tess_status tiny_run_open(tess_comm *comm, tiny_run *t, const char *name,
                          const char *const *overrides, tess_session_kind kind, tess_session **out)
{
    const tess_session_options o = {.kind = kind};
    return tiny_run_open_as(comm, t, name, overrides, &o, out);
}

static volatile sig_atomic_t stop_request;
static char stop_line[48];

/* An evaluation after step k is reported before step k + 1 begins: that step is then the last. */
static void stop_after(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    if (stop_line[0] != '\0' && strstr(line, stop_line) != NULL)
        stop_request = 1;
}

tess_status tiny_run_until(tess_comm *comm, tiny_run *t, const char *name,
                           const char *const *overrides, int64_t first, int64_t step)
{
    const char *list[TINY_OVERRIDE_MAX + 1] = {"train.eval_every=1"};
    tess_session *session = NULL;
    for (int i = 0; overrides[i] != NULL; i++)
        list[i + 1] = overrides[i];
    stop_request = 0;
    stop_line[0] = '\0';
    if (step > 0)
        snprintf(stop_line, sizeof stop_line, "eval step=%lld loss", (long long)step - 1);
    t->ctx.log.sink = stop_after;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .stop_request = &stop_request};
    TESS_TRY(tiny_run_open_as(comm, t, name, list, &o, &session));
    tess_status st = TESS_OK;
    if (tess_session_step(session) != first)
        st = TESS_FAIL(TESS_E_STATE, "'%s' begins at step %lld, expected %lld", name,
                       (long long)tess_session_step(session), (long long)first);
    if (st == TESS_OK)
        st = tess_session_train(session);
    const int64_t end = tess_session_step(session);
    tess_session_close(&session);
    if (step > 0 && st == TESS_E_PREEMPTED) {
        tess_error_clear();
        st = TESS_OK;
    }
    TESS_TRY(st);
    TESS_CHECK(step == 0 || end == step, TESS_E_STATE, "'%s' ended after step %lld, expected %lld",
               name, (long long)end, (long long)step);
    return TESS_OK;
}

tess_status tiny_run_make_weights(tess_comm *comm, tiny_run *t)
{
    static const char text[] =
        "model: {path: MODEL, init: random}\n"
        "data: {path: TRAIN, sequence_length: 32}\n"
        "train: {mode: full, steps: 12, micro_batch: 2, micro_batches: 4, learning_rate: 1.0e-2}\n"
        "compute: {dtype: f32}\n"
        "output: {dir: OUT, checkpoint_every: 0}\n";
    tess_session *session = NULL;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .run_text = text};
    TESS_TRY(tiny_run_open_as(comm, t, "weights", NULL, &o, &session));
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    TESS_TRY(st);
    snprintf(t->model, sizeof t->model, "%s/weights/export", t->dir);
    return TESS_OK;
}

static tess_status hash_file(tiny_run *t, const char *path, tess_sha256 *out)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_io_read_all(t->ctx.io, path, 64 << 20, &text, &nbytes));
    const tess_status st = tess_sha256_of(text, nbytes, out);
    tess_free(text);
    return st;
}

/* Fold one line of metrics.jsonl into the outcome. */
static tess_status add_line(const char *path, const char *line, size_t nbytes,
                            tess_sha256_state *sha, tiny_outcome *out)
{
    tess_json *root = NULL;
    const char *bits = NULL;
    double loss = 0.0, norm = 0.0;
    TESS_TRY(tess_json_parse(path, line, nbytes, &root));
    tess_status st = tess_json_get_string(root, "loss_bits", &bits);
    if (st == TESS_OK)
        st = tess_json_get_f64(root, "loss", &loss);
    if (st == TESS_OK)
        st = tess_json_get_f64(root, "grad_norm", &norm);
    if (st == TESS_OK)
        st = tess_sha256_update(sha, bits, strlen(bits));
    if (st == TESS_OK)
        st = tess_sha256_update(sha, &norm, sizeof norm);
    if (out->step_numel++ == 0)
        out->first_loss = loss;
    out->last_loss = loss;
    out->clipped_numel += norm > 0.05;
    tess_json_destroy(&root);
    return st;
}

static tess_status read_metrics(tiny_run *t, const char *path, tiny_outcome *out)
{
    char *text = NULL;
    size_t nbytes = 0;
    tess_sha256_state *sha = NULL;
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = tess_io_read_all(t->ctx.io, path, 16 << 20, &text, &nbytes);
    for (char *line = text; st == TESS_OK && line != NULL && *line != '\0';) {
        char *end = strchr(line, '\n');
        st = end != NULL ? add_line(path, line, (size_t)(end - line), sha, out)
                         : TESS_FAIL(TESS_E_FORMAT, "'%s' ends in half a line", path);
        line = end != NULL ? end + 1 : NULL;
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, &out->losses);
    tess_sha256_destroy(&sha);
    tess_free(text);
    return st;
}

tess_status tiny_run_outcome(tiny_run *t, const char *name, tiny_outcome *out)
{
    char path[400];
    memset(out, 0, sizeof *out);
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", t->dir, name);
    TESS_TRY(read_metrics(t, path, out));
    snprintf(path, sizeof path, "%s/%s/export/adapter_model.safetensors", t->dir, name);
    return hash_file(t, path, &out->adapter);
}

tess_status tiny_run_train(tess_comm *comm, tiny_run *t, const char *name,
                           const char *const *overrides, tiny_outcome *out)
{
    tess_session *session = NULL;
    TESS_TRY(tiny_run_open(comm, t, name, overrides, TESS_SESSION_TRAIN, &session));
    tess_status st = tess_session_train(session);
    tess_session_close(&session);
    TESS_TRY(st);
    return tess_agree(comm, tiny_run_outcome(t, name, out));
}
