/*
 * A GGUF file as the frozen base: the loss of transformers on its dequantized weights, the same
 * bits at every number of ranks though tensors are cut anywhere, and a resume at another number of
 * ranks after the file is gone, with a quantizer that aborts when called.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/gguf.h"
#include "format/safetensors.h"
#include "support/base_run.h"
#include "support/rank_test.h"
#include "train/data/token_file.h"

enum { VOCAB = 61, DOCUMENT_NUMEL = 4, TOKEN_NUMEL = 32 };

static tess_status refuse_quantize(const tess_quantize_args *a, tess_stream *s)
{
    (void)s;
    return TESS_FAIL(TESS_E_STATE, "tensor '%s' is quantized", a->tensor_name);
}

/* ---- loss ---- */

/* The documents of make_gguf.py. */
static tess_status write_documents(const tess_ctx *ctx, const char *path)
{
    tess_token_writer *writer = NULL;
    tess_sha256 tokenizer = {{0}};
    TESS_TRY(tess_token_writer_create(ctx, path, VOCAB, &tokenizer, &writer));
    tess_status st = TESS_OK;
    for (int d = 0; d < DOCUMENT_NUMEL && st == TESS_OK; d++) {
        int32_t token[TOKEN_NUMEL];
        uint8_t mask[TOKEN_NUMEL];
        memset(mask, 1, sizeof mask);
        token[0] = 5 * d + 2;
        for (int i = 1; i < TOKEN_NUMEL; i++)
            token[i] = (token[i - 1] * 7 + 3 + (i % 5 == 0 ? d : 0)) % VOCAB;
        st = tess_token_writer_add(writer, token, mask, TOKEN_NUMEL);
    }
    if (st == TESS_OK)
        st = tess_token_writer_finish(writer, NULL);
    tess_token_writer_destroy(&writer);
    return st;
}

static tess_status golden_loss(const char *name, double *loss)
{
    char path[512], line[512];
    bool is_found = false;
    snprintf(path, sizeof path, "%s/tests/golden/gguf/%s.txt", TESS_TEST_SOURCE_DIR, name);
    FILE *f = fopen(path, "r");
    TESS_CHECK(f != NULL, TESS_E_IO, "no '%s'", path);
    while (fgets(line, sizeof line, f) != NULL)
        is_found = is_found || sscanf(line, "loss %lf", loss) == 1;
    fclose(f);
    TESS_CHECK(is_found, TESS_E_FORMAT, "no loss in '%s'", path);
    return TESS_OK;
}

static tess_status check_loss(base_world *w, const char *name)
{
    static const char *const overrides[] = {"model.init=weights", "base.format=keep",
                                            "compute.dtype=f32", NULL};
    const tess_session_options o = {.kind = TESS_SESSION_READER, .checkpoint = "none"};
    tess_session *session = NULL;
    tess_eval_result got = {0};
    double want = 0.0;
    snprintf(w->t.model, sizeof w->t.model, "%s/tests/golden/gguf/%s.gguf", TESS_TEST_SOURCE_DIR,
             name);
    TESS_TRY(golden_loss(name, &want));
    TESS_TRY(tiny_run_open_as(w->comm, &w->t, "eval", overrides, &o, &session));
    const tess_status st = tess_session_evaluate(session, &got);
    tess_session_close(&session);
    TESS_TRY(st);
    TESS_CHECK(got.loss_token_numel == DOCUMENT_NUMEL * (TOKEN_NUMEL - 1), TESS_E_STATE,
               "%s: %lld loss tokens", name, (long long)got.loss_token_numel);
    /* f32 products of at most 256 terms against float64: logits of magnitude 10 are good to a few
     * 1e-6, and the mean over 124 tokens is no worse. A wrong row order changes the loss by 1e-2.
     */
    TESS_CHECK(fabs(got.loss - want) <= 2e-5, TESS_E_STATE, "%s: loss %.9f, transformers has %.9f",
               name, got.loss, want);
    return TESS_OK;
}

static tess_status check_losses(base_world *w)
{
    static const char *const names[] = {"llama", "llama_k", "qwen2", "qwen3"};
    char eval[300];
    snprintf(eval, sizeof eval, "%s", w->t.eval);
    snprintf(w->t.eval, sizeof w->t.eval, "%.200s/documents.h5", w->t.dir);
    const bool is_root = tess_comm_rank(w->comm) == 0;
    TESS_TRY(tess_agree(w->comm, is_root ? write_documents(&w->t.ctx, w->t.eval) : TESS_OK));
    for (int i = 0; i < TESS_NELEM(names); i++)
        TESS_TRY(check_loss(w, names[i]));
    snprintf(w->t.eval, sizeof w->t.eval, "%s", eval);
    return TESS_OK;
}

/* ---- same bits ---- */

static tess_status compare(base_world *w, const char *name, const tiny_outcome *want)
{
    tiny_outcome got;
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, name, &got)));
    TESS_CHECK(got.step_numel == want->step_numel &&
                   tess_sha256_is_equal(&got.losses, &want->losses),
               TESS_E_STATE, "'%s': losses differ; last %.17g, one rank in one go has %.17g", name,
               got.last_loss, want->last_loss);
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "'%s': adapter differs", name);
    return TESS_OK;
}

static tess_status train(base_world *w, tess_comm *comm, const char *name,
                         const char *const *overrides, const tess_kernels *kernels)
{
    const tess_session_options o = {
        .kind = TESS_SESSION_TRAIN, .accept_config_change = true, .kernels = kernels};
    tess_session *session = NULL;
    TESS_TRY(tiny_run_open_as(comm, &w->t, name, overrides, &o, &session));
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    return st;
}

static tess_status train_alone(base_world *w, const char *name, const char *const *overrides,
                               const tess_kernels *kernels)
{
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root ? train(w, w->self, name, overrides, kernels) : TESS_OK);
}

/* Nothing may be quantized: codes and constants are the file's own, and stay so. */
static tess_status check_model(base_world *w, const char *name)
{
    static const char *const reference[] = {"model.init=weights", "base.format=keep",
                                            "train.steps=6", "train.schedule=constant", NULL};
    static const char *const sharded[] = {
        "model.init=weights",      "base.format=keep",         "train.steps=6",
        "train.schedule=constant", "shard.gather_group=world", NULL};
    static const char *const first[] = {"model.init=weights",
                                        "base.format=keep",
                                        "train.steps=3",
                                        "train.schedule=constant",
                                        "shard.gather_group=world",
                                        "output.base=copy",
                                        NULL};
    static const char *const rest[] = {"model.init=weights",
                                       "base.format=keep",
                                       "train.steps=6",
                                       "train.schedule=constant",
                                       "shard.gather_group=world",
                                       "output.base=copy",
                                       NULL};
    char source[300], run[4][40];
    tess_kernels kernels = tess_kernels_cpu;
    tiny_outcome want;
    kernels.quantize = refuse_quantize;
    snprintf(source, sizeof source, "%s/tests/golden/gguf/%s.gguf", TESS_TEST_SOURCE_DIR, name);
    snprintf(w->t.model, sizeof w->t.model, "%.200s/%s.gguf", w->t.dir, name);
    for (int i = 0; i < 4; i++)
        snprintf(run[i], sizeof run[i], "%s-%d", name, i);
    TESS_TRY(base_shell(w, "cp '%s' '%s'", source, w->t.model));
    TESS_TRY(base_check_cuts(
        w, &(base_life){.name = name, .overrides = {"model.init=weights", "base.format=keep"}},
        true));
    TESS_TRY(train_alone(w, run[0], reference, &kernels));
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, run[0], &want)));
    TESS_CHECK(want.step_numel == 6 && want.last_loss < want.first_loss, TESS_E_STATE,
               "%lld steps, loss %.4f to %.4f", (long long)want.step_numel, want.first_loss,
               want.last_loss);
    TESS_TRY(train(w, w->comm, run[1], sharded, &kernels));
    TESS_TRY(compare(w, run[1], &want));
    /* Begin on all ranks, end on one; and the other way round; without the file. */
    TESS_TRY(train(w, w->comm, run[2], first, &kernels));
    TESS_TRY(train_alone(w, run[3], first, &kernels));
    TESS_TRY(base_shell(w, "rm '%s'%s", w->t.model, ""));
    TESS_TRY(train_alone(w, run[2], rest, &kernels));
    TESS_TRY(train(w, w->comm, run[3], rest, &kernels));
    TESS_TRY(compare(w, run[2], &want));
    return compare(w, run[3], &want);
}

/* ---- adapter ---- */

enum { RANK_NUMEL = 4 };

/* Matrix B of q_proj: 64 rows of 4, in heads of 16 that interleave in the GGUF file. */
static tess_status compare_adapter(base_world *w, const char *peft_path, const char *gguf_path)
{
    static const char hf_name[] = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
    tess_safetensors *peft = NULL;
    tess_gguf *gguf = NULL;
    float want[64 * RANK_NUMEL], got[64 * RANK_NUMEL], sum = 0.0F;
    int64_t numel = 0;
    double alpha = 0.0;
    TESS_TRY(tess_safetensors_open(w->t.ctx.io, peft_path, &peft));
    TESS_TRY(tess_gguf_open(w->t.ctx.io, gguf_path, &gguf));
    numel = tess_gguf_tensor_numel(gguf);
    const tess_st_tensor *t = tess_safetensors_find(peft, hf_name);
    const tess_gguf_tensor *g = tess_gguf_find(gguf, "blk.1.attn_q.weight.lora_b");
    tess_status st = tess_gguf_get_f64(gguf, "adapter.lora.alpha", &alpha);
    if (st == TESS_OK && (t == NULL || g == NULL || t->nbytes != sizeof want ||
                          g->nbytes != sizeof got || alpha != 8.0 || g->dim[0] != 64))
        st = TESS_FAIL(TESS_E_STATE, "no matrix B of q_proj in both, or alpha %g", alpha);
    if (st == TESS_OK)
        st = tess_safetensors_read(peft, t, 0, sizeof want, want);
    if (st == TESS_OK)
        st = tess_gguf_read(gguf, g, 0, sizeof got, got);
    const bool is_all = numel == tess_safetensors_numel(peft);
    tess_safetensors_close(&peft);
    tess_gguf_close(&gguf);
    TESS_TRY(st);
    TESS_CHECK(is_all, TESS_E_STATE, "%lld tensors in adapter.gguf", (long long)numel);
    for (int64_t row = 0; row < 64; row++) { /* file row 2i of a head is row i, 2i + 1 is i + 8 */
        const int64_t i = row % 16, hf = row - i + (i % 2 == 0 ? i / 2 : 8 + i / 2);
        for (int k = 0; k < RANK_NUMEL; k++) {
            TESS_CHECK(got[row * RANK_NUMEL + k] == want[hf * RANK_NUMEL + k], TESS_E_STATE,
                       "row %lld of adapter.gguf is not row %lld", (long long)row, (long long)hf);
            sum += fabsf(want[hf * RANK_NUMEL + k]);
        }
    }
    TESS_CHECK(sum > 0.0F, TESS_E_STATE, "matrix B is zero");
    return TESS_OK;
}

/* Every tensor of one file is in the other, bit for bit. */
static tess_status compare_files(base_world *w, const char *path, const char *again_path)
{
    tess_safetensors *want = NULL, *found = NULL;
    char a[4096], b[4096];
    TESS_TRY(tess_safetensors_open(w->t.ctx.io, path, &want));
    tess_status st = tess_safetensors_open(w->t.ctx.io, again_path, &found);
    if (st == TESS_OK && tess_safetensors_numel(want) != tess_safetensors_numel(found))
        st = TESS_FAIL(TESS_E_STATE, "another number of tensors through adapter.gguf");
    for (int64_t i = 0; st == TESS_OK && i < tess_safetensors_numel(want); i++) {
        const tess_st_tensor *t = tess_safetensors_at(want, i);
        const tess_st_tensor *u = tess_safetensors_find(found, t->name);
        if (u == NULL || u->nbytes != t->nbytes || t->nbytes > (int64_t)sizeof a)
            st = TESS_FAIL(TESS_E_STATE, "'%s' is another through adapter.gguf", t->name);
        if (st == TESS_OK)
            st = tess_safetensors_read(want, t, 0, (size_t)t->nbytes, a);
        if (st == TESS_OK)
            st = tess_safetensors_read(found, u, 0, (size_t)t->nbytes, b);
        if (st == TESS_OK && memcmp(a, b, (size_t)t->nbytes) != 0)
            st = TESS_FAIL(TESS_E_STATE, "'%s' has other bits through adapter.gguf", t->name);
    }
    tess_safetensors_close(&want);
    tess_safetensors_close(&found);
    return st;
}

/* The GGUF file laid over the base (its file is there again), and exported again. */
static tess_status check_import(base_world *w, const char *const *overrides, const char *peft_path,
                                const char *gguf_path)
{
    const tess_session_options o = {.kind = TESS_SESSION_READER, .adapter = gguf_path};
    char dir[320], path[400];
    tess_session *session = NULL;
    snprintf(w->t.model, sizeof w->t.model, "%s/tests/golden/gguf/llama.gguf",
             TESS_TEST_SOURCE_DIR);
    snprintf(dir, sizeof dir, "%.200s/through-gguf", w->t.dir);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    TESS_TRY(tiny_run_open_as(w->comm, &w->t, "import", overrides, &o, &session));
    tess_status st = tess_session_export(
        session,
        &(tess_export_request){.dir = dir, .format = TESS_RUN_EXPORT_PEFT, .dt = TESS_F32});
    tess_session_close(&session);
    TESS_TRY(st);
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root ? compare_files(w, peft_path, path) : TESS_OK);
}

static tess_status check_adapter(base_world *w, const char *name, const char *const *overrides)
{
    const tess_session_options o = {.kind = TESS_SESSION_READER};
    char peft_dir[320], gguf_dir[320], peft_path[400], gguf_path[400];
    tess_session *session = NULL;
    snprintf(peft_dir, sizeof peft_dir, "%.200s/as-peft", w->t.dir);
    snprintf(gguf_dir, sizeof gguf_dir, "%.200s/as-gguf", w->t.dir);
    snprintf(peft_path, sizeof peft_path, "%s/adapter_model.safetensors", peft_dir);
    snprintf(gguf_path, sizeof gguf_path, "%s/adapter.gguf", gguf_dir);
    TESS_TRY(tiny_run_open_as(w->comm, &w->t, name, overrides, &o, &session));
    tess_status st = tess_session_export(
        session,
        &(tess_export_request){.dir = peft_dir, .format = TESS_RUN_EXPORT_PEFT, .dt = TESS_F32});
    if (st == TESS_OK)
        st = tess_session_export(session, &(tess_export_request){.dir = gguf_dir,
                                                                 .format = TESS_RUN_EXPORT_GGUF,
                                                                 .dt = TESS_F32});
    tess_session_close(&session);
    TESS_TRY(st);
    const bool is_root = tess_comm_rank(w->comm) == 0;
    TESS_TRY(tess_agree(w->comm, is_root ? compare_adapter(w, peft_path, gguf_path) : TESS_OK));
    return check_import(w, overrides, peft_path, gguf_path);
}

/* ---- refusals ---- */

static tess_status expect_refusal(base_world *w, const char *const *overrides, tess_status want,
                                  const char *words)
{
    tess_session *session = NULL;
    char message[TESS_ERROR_MESSAGE_NBYTES];
    const tess_status st =
        tiny_run_open(w->comm, &w->t, "refused", overrides, TESS_SESSION_TRAIN, &session);
    tess_session_close(&session);
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    TESS_CHECK(st == want && strstr(message, words) != NULL, TESS_E_STATE,
               "status %s, expected %s with '%s' in: %.900s", tess_status_name(st),
               tess_status_name(want), words, message);
    return TESS_OK;
}

static tess_status check_refusals(base_world *w)
{
    static const char *const again[] = {"model.init=weights", "base.format=nf4", NULL};
    static const char *const keep[] = {"model.init=weights", "base.format=keep", NULL};
    snprintf(w->t.model, sizeof w->t.model, "%s/tests/golden/gguf/llama.gguf",
             TESS_TEST_SOURCE_DIR);
    TESS_TRY(expect_refusal(w, again, TESS_E_CONFIG,
                            "is q8_0 in the file and would be quantized again to nf4"));
    snprintf(w->t.model, sizeof w->t.model, "%.200s/gone.gguf", w->t.dir);
    return expect_refusal(w, keep, TESS_E_CONFIG, "gone.gguf' is missing");
}

static tess_status run_all(base_world *w)
{
    TESS_TRY(check_losses(w));
    static const char *const kept[] = {"model.init=weights",
                                       "base.format=keep",
                                       "train.steps=6",
                                       "train.schedule=constant",
                                       "shard.gather_group=world",
                                       "output.base=copy",
                                       NULL};
    TESS_TRY(check_model(w, "llama"));
    TESS_TRY(check_adapter(w, "llama-3", kept));
    TESS_TRY(check_model(w, "llama_k"));
    return check_refusals(w);
}

static tess_status body(tess_comm *comm) { return base_world_run(comm, run_all); }

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
