/*
 * Continuations of a prompt. The whole window is run again for every token: shapes stay those of
 * the plan, and a sample needs no memory of its own.
 */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "format/tokenizer.h"
#include "train/session_priv.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

typedef struct sampler {
    tess_session *s;
    const tess_sample_request *request;
    tess_tokenizer *tokenizer;
    tess_encoder *encoder;
    tess_ids ids;
    float *logits;         /* [vocab], pinned where a device writes them */
    candidate *candidates; /* [vocab] */
} sampler;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Draw from softmax(logits / temperature) over the top_k likeliest; the draw's index is the
 * position. */
static int32_t draw(sampler *p)
{
    /* ids above the tokenizer's are padding of the embedding: they have no text */
    const int64_t vocab = tess_tokenizer_vocab_numel(p->tokenizer);
    for (int64_t i = 0; i < vocab; i++)
        p->candidates[i] = (candidate){p->logits[i], (int32_t)i};
    qsort(p->candidates, (size_t)vocab, sizeof *p->candidates, by_logit);
    if (p->request->temperature <= 0.0)
        return p->candidates[0].id;
    const int64_t kept = p->request->top_k > 0 ? TESS_MIN(p->request->top_k, vocab) : vocab;
    const double top = p->candidates[0].logit;
    double total = 0.0;
    for (int64_t i = 0; i < kept; i++)
        total += exp((p->candidates[i].logit - top) / p->request->temperature);
    const tess_rng rng =
        tess_rng_make(p->request->seed, TESS_RNG_SAMPLE, 0, (uint32_t)p->ids.numel);
    double left = (double)tess_rng_u32(&rng, 0) * 0x1p-32 * total;
    for (int64_t i = 0; i < kept; i++) {
        left -= exp((p->candidates[i].logit - top) / p->request->temperature);
        if (left < 0.0)
            return p->candidates[i].id;
    }
    return p->candidates[kept - 1].id;
}

/* The last tokens that fit the window, padded to the plan's shape. */
static tess_status fill_window(sampler *p)
{
    tess_session *s = p->s;
    const int64_t width = s->run->data.sequence_length;
    const int64_t used = TESS_MIN(p->ids.numel, width);
    const tess_dataset_batch *b = &s->batch_in;
    TESS_TRY(session_begin_batch(s));
    for (int64_t i = 0; i < s->batch.token_numel; i++) {
        const bool is_text = i < used;
        b->tokens[i] = is_text ? p->ids.id[p->ids.numel - used + i] : 0;
        b->labels[i] = -1;
        b->positions[i] = (int32_t)(is_text ? i : 0);
        b->doc_start[i] = (int32_t)(is_text ? 0 : i);
    }
    s->batch.logits_token_idx = used - 1;
    s->batch.logits = p->logits;
    return session_send_batch(s);
}

static bool is_end(const tess_session *s, int32_t id)
{
    for (int i = 0; i < s->d.config.eos_numel; i++)
        if (s->d.config.eos_id[i] == id)
            return true;
    return false;
}

static tess_status extend(sampler *p)
{
    tess_session *s = p->s;
    double loss_sum = 0.0;
    for (int64_t i = 0; i < p->request->token_numel; i++) {
        TESS_TRY(fill_window(p));
        TESS_TRY(session_section(
            s, tess_runtime_forward(s->rt, TESS_CALL_LOGITS, &s->batch, &loss_sum)));
        const int32_t id = draw(p);
        if (is_end(s, id))
            return TESS_OK;
        TESS_TRY(session_agree(s, tess_ids_append(&p->ids, &id, 1)));
    }
    return TESS_OK;
}

static size_t logits_nbytes(const sampler *p)
{
    return (size_t)p->s->d.config.vocab_numel * sizeof(float);
}

static void logits_free(sampler *p)
{
    tess_device *d = p->s->device;
    if (d == NULL)
        tess_free(p->logits);
    else if (p->logits != NULL)
        d->ops->release(d, TESS_HOST, p->logits, logits_nbytes(p));
}

static tess_status prepare(sampler *p)
{
    tess_session *s = p->s;
    const int64_t vocab = s->d.config.vocab_numel;
    void *memory = NULL;
    char path[PATH_MAX];
    bool is_there = false;
    TESS_TRY(tess_describe_file(s->ctx, s->run, "tokenizer.json", path, &is_there));
    TESS_CHECK(is_there, TESS_E_CONFIG,
               "model.path: '%s' has no tokenizer.json and '%s' keeps no copy of it; put the "
               "model's there",
               s->run->model.path, s->run->output.dir);
    TESS_TRY(tess_tokenizer_open(s->ctx->io, path, &p->tokenizer));
    TESS_CHECK(tess_tokenizer_vocab_numel(p->tokenizer) <= vocab, TESS_E_FORMAT,
               "tokenizer '%s' has %lld tokens, the model has %lld", path,
               (long long)tess_tokenizer_vocab_numel(p->tokenizer), (long long)vocab);
    TESS_TRY(tess_encoder_create(p->tokenizer, &p->encoder));
    /* a copy into pageable memory would wait inside CUDA, where no deadline ends it */
    TESS_TRY(p->s->device != NULL
                 ? p->s->device->ops->alloc(p->s->device, TESS_HOST, logits_nbytes(p), &memory)
                 : tess_alloc(logits_nbytes(p), &memory));
    p->logits = memory;
    TESS_TRY(tess_alloc_array(vocab, sizeof(candidate), &memory));
    p->candidates = memory;
    /* A template may end in eos; a text to be continued has only the front part. */
    const tess_ids *prefix = tess_tokenizer_prefix(p->tokenizer);
    TESS_TRY(tess_ids_append(&p->ids, prefix->id, prefix->numel));
    TESS_TRY(tess_encode(p->encoder, p->request->prompt, strlen(p->request->prompt),
                         TESS_ENCODE_PLAIN, &p->ids));
    TESS_CHECK(p->ids.numel > 0, TESS_E_ARG,
               "the prompt holds no token; give some text with --prompt");
    return TESS_OK;
}

tess_status tess_session_sample(tess_session *s, const tess_sample_request *request, char **text)
{
    TESS_CHECK(!tess_run_is_vectors(s->run), TESS_E_UNSUPPORTED,
               "sample: expected a language model, found a run over vectors");
    sampler p = {.s = s, .request = request};
    size_t nbytes = 0;
    tess_status st = session_agree(s, prepare(&p));
    if (st == TESS_OK)
        st = extend(&p);
    if (st == TESS_OK)
        st = session_agree(s, tess_decode(p.tokenizer, p.ids.id, p.ids.numel, true, text, &nbytes));
    tess_ids_fini(&p.ids);
    tess_free(p.candidates);
    logits_free(&p);
    tess_encoder_destroy(&p.encoder);
    tess_tokenizer_destroy(&p.tokenizer);
    return st;
}
