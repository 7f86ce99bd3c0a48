/*
 * Continuations of prompts. The whole window is run again for every token: shapes stay those of
 * the plan, and activations need no memory of their own.
 *
 * [Note: rounds] Prompt i is continued by rank i % W; a rank without a prompt, or whose text has
 * ended, takes part in the gathers alone. A text depends on nothing but its prompt and the request.
 */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "format/tokenizer.h"
#include "train/session_priv.h"
#include "train/strbuf.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct session_text {
    tess_tokenizer *tokenizer;
    tess_encoder *encoder;
    float *logits;         /* [vocab], pinned where a device writes them */
    candidate *candidates; /* [vocab] */
};

typedef struct sampler {
    tess_session *s;
    const tess_sample_request *request;
    struct session_text *text;
    tess_ids ids; /* of this rank's text */
} sampler;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Ids above the tokenizer's are padding of the embedding and have no text; a tokenizer may know
 * some that the model does not embed. */
static int64_t vocab_of(const sampler *p)
{
    return TESS_MIN(tess_tokenizer_vocab_numel(p->text->tokenizer), p->s->d.config.vocab_numel);
}

/* Draw from softmax(logits / temperature) over the top_k likeliest; the draw's index is the
 * position. */
static int32_t draw(const sampler *p)
{
    const int64_t vocab = vocab_of(p);
    candidate *candidates = p->text->candidates;
    for (int64_t i = 0; i < vocab; i++)
        candidates[i] = (candidate){p->text->logits[i], (int32_t)i};
    qsort(candidates, (size_t)vocab, sizeof *candidates, by_logit);
    if (p->request->temperature <= 0.0)
        return candidates[0].id;
    const int64_t kept = p->request->top_k > 0 ? TESS_MIN(p->request->top_k, vocab) : vocab;
    const double top = candidates[0].logit;
    double total = 0.0;
    for (int64_t i = 0; i < kept; i++)
        total += exp((candidates[i].logit - top) / p->request->temperature);
    const tess_rng rng =
        tess_rng_make(p->request->seed, TESS_RNG_SAMPLE, 0, (uint32_t)p->ids.numel);
    double left = (double)tess_rng_u32(&rng, 0) * 0x1p-32 * total;
    for (int64_t i = 0; i < kept; i++) {
        left -= exp((candidates[i].logit - top) / p->request->temperature);
        if (left < 0.0)
            return candidates[i].id;
    }
    return candidates[kept - 1].id;
}

/* The last tokens that fit the window, padded to the plan's shape. */
static tess_status fill_window(const sampler *p)
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
    s->batch.logits = p->text->logits;
    return session_send_batch(s);
}

static bool is_end(const tess_session *s, int32_t id)
{
    for (int i = 0; i < s->d.config.eos_numel; i++)
        if (s->d.config.eos_id[i] == id)
            return true;
    return false;
}

/* Append the next token; `is_open` is false once the text has ended. */
static tess_status take_token(sampler *p, bool *is_open)
{
    const int64_t vocab = vocab_of(p);
    for (int64_t i = 0; i < vocab; i++)
        TESS_CHECK(isfinite(p->text->logits[i]), TESS_E_NUMERIC,
                   "sample: the logit of token %" PRId64 " at position %" PRId64 " is not finite",
                   i, p->ids.numel);
    const int32_t id = draw(p);
    *is_open = !is_end(p->s, id);
    return *is_open ? tess_ids_append(&p->ids, &id, 1) : TESS_OK;
}

/* All ranks' texts, a token at a time. Who fails goes on taking part until all agree. */
static tess_status extend(sampler *p, bool is_open)
{
    tess_session *s = p->s;
    double loss_sum = 0.0;
    for (int64_t i = 0; i < p->request->token_numel; i++) {
        if (p->request->tick != NULL)
            p->request->tick(p->request->tick_arg);
        tess_status st = is_open ? fill_window(p) : TESS_OK;
        const bool is_part = is_open && st == TESS_OK;
        TESS_TRY(session_section(s, tess_runtime_forward(s->rt, TESS_CALL_LOGITS,
                                                         is_part ? &s->batch : NULL, &loss_sum)));
        if (is_part)
            st = take_token(p, &is_open);
        int64_t most[2] = {is_open, st != TESS_OK};
        TESS_TRY(session_section(s, tess_comm_control(s->world, NULL, 0, most, 2)));
        if (most[1] != 0)
            return session_agree(s, st);
        if (most[0] == 0)
            return TESS_OK;
    }
    return TESS_OK;
}

/* A template may end in eos; a text to be continued has only the front part. */
static tess_status begin_text(sampler *p, const char *prompt)
{
    const int64_t width = p->s->run->data.sequence_length;
    const tess_ids *prefix = tess_tokenizer_prefix(p->text->tokenizer);
    p->ids.numel = 0;
    TESS_TRY(tess_ids_append(&p->ids, prefix->id, prefix->numel));
    TESS_TRY(tess_encode(p->text->encoder, prompt, strlen(prompt), TESS_ENCODE_PLAIN, &p->ids));
    TESS_CHECK(p->ids.numel > 0, TESS_E_ARG, "sample: a prompt holds no token; give some text");
    TESS_CHECK(p->ids.numel <= width, TESS_E_CONFIG,
               "sample: prompt '%.40s...' has %" PRId64 " tokens, of which data.sequence_length "
               "%" PRId64 " would show the last alone; shorten it, or raise the length",
               prompt, p->ids.numel, width);
    for (int64_t i = 0; i < p->ids.numel; i++)
        TESS_CHECK(p->ids.id[i] < p->s->d.config.vocab_numel, TESS_E_RANGE,
                   "sample: token %" PRId64 " of prompt '%.40s' has id %d, the model embeds ids "
                   "below %" PRId64 "; leave out what becomes this token",
                   i, prompt, p->ids.id[i], p->s->d.config.vocab_numel);
    return TESS_OK;
}

/* One rank's text to all. */
static tess_status share(tess_session *s, int owner, char **text)
{
    const bool is_owner = owner == tess_comm_rank(s->world);
    int64_t nbytes = is_owner ? (int64_t)strlen(*text) + 1 : 0;
    void *room = NULL;
    TESS_TRY(tess_comm_bcast(s->world, owner, &nbytes, sizeof nbytes));
    const tess_status st = is_owner ? TESS_OK : tess_alloc((size_t)nbytes, &room);
    if (!is_owner)
        *text = room;
    TESS_TRY(session_agree(s, st));
    return tess_comm_bcast(s->world, owner, *text, (size_t)nbytes);
}

static tess_status run_rounds(sampler *p, char **text)
{
    tess_session *s = p->s;
    const int world = tess_comm_world(s->world);
    for (int64_t first = 0; first < p->request->prompt_numel; first += world) {
        const int64_t own = first + tess_comm_rank(s->world);
        const bool has_own = own < p->request->prompt_numel;
        const int64_t numel = TESS_MIN(p->request->prompt_numel - first, (int64_t)world);
        size_t nbytes = 0;
        TESS_TRY(session_agree(s, has_own ? begin_text(p, p->request->prompt[own]) : TESS_OK));
        TESS_TRY(extend(p, has_own));
        TESS_TRY(session_agree(s, has_own ? tess_decode(p->text->tokenizer, p->ids.id, p->ids.numel,
                                                        true, &text[own], &nbytes)
                                          : TESS_OK));
        for (int64_t i = 0; i < numel; i++)
            TESS_TRY(share(s, (int)i, &text[first + i]));
    }
    return TESS_OK;
}

/* ---- tokenizer and room for logits ---- */

static size_t logits_nbytes(const tess_session *s)
{
    return (size_t)s->d.config.vocab_numel * sizeof(float);
}

void session_text_close(tess_session *s)
{
    struct session_text *t = s->text;
    if (t == NULL)
        return;
    if (s->device == NULL)
        tess_free(t->logits);
    else if (t->logits != NULL)
        s->device->ops->release(s->device, TESS_HOST, t->logits, logits_nbytes(s));
    tess_free(t->candidates);
    tess_encoder_destroy(&t->encoder);
    tess_tokenizer_destroy(&t->tokenizer);
    tess_free(t);
    s->text = NULL;
}

static tess_status open_tokenizer(const tess_session *s, struct session_text *t)
{
    char path[PATH_MAX];
    bool is_there = false;
    TESS_TRY(tess_describe_file(s->ctx, s->run, "tokenizer.json", path, &is_there));
    TESS_CHECK(is_there, TESS_E_CONFIG,
               "model.path: '%s' has no tokenizer.json and '%s' keeps no copy of it; put the "
               "model's there",
               s->run->model.path, s->run->output.dir);
    TESS_TRY(tess_tokenizer_open(s->ctx->io, path, &t->tokenizer));
    return tess_encoder_create(t->tokenizer, &t->encoder);
}

static tess_status open_text(const tess_session *s, struct session_text *t)
{
    void *memory = NULL;
    TESS_TRY(open_tokenizer(s, t));
    /* a copy into pageable memory would wait inside CUDA, where no deadline ends it */
    TESS_TRY(s->device != NULL
                 ? s->device->ops->alloc(s->device, TESS_HOST, logits_nbytes(s), &memory)
                 : tess_alloc(logits_nbytes(s), &memory));
    t->logits = memory;
    TESS_TRY(tess_alloc_array(s->d.config.vocab_numel, sizeof(candidate), &memory));
    t->candidates = memory;
    return TESS_OK;
}

/* Tokenizer and room for logits, kept for the next request. */
static tess_status keep_text(tess_session *s)
{
    void *memory = NULL;
    if (s->text != NULL)
        return TESS_OK;
    TESS_TRY(tess_alloc(sizeof *s->text, &memory));
    s->text = memory;
    const tess_status st = open_text(s, s->text);
    if (st != TESS_OK)
        session_text_close(s);
    return st;
}

/* ---- requests ---- */

static tess_status sample(sampler *p, char **text)
{
    tess_session *s = p->s;
    const tess_weights before = s->shown;
    TESS_TRY(session_agree(s, keep_text(s)));
    p->text = s->text;
    TESS_TRY(session_show(s, session_weights(s->run->train.eval_weights)));
    const tess_status st = run_rounds(p, text);
    s->batch.logits_token_idx = -1;
    s->batch.logits = NULL;
    if (!tess_session_is_broken(s))
        TESS_TRY(session_show(s, before));
    return st;
}

tess_status tess_session_sample(tess_session *s, const tess_sample_request *request, char **text)
{
    TESS_CHECK(s->feed == &session_token_feed, TESS_E_UNSUPPORTED,
               "sample: expected a language model, found a run over vectors or images");
    sampler p = {.s = s, .request = request};
    for (int64_t i = 0; i < request->prompt_numel; i++)
        text[i] = NULL;
    const tess_status st = sample(&p, text);
    tess_ids_fini(&p.ids);
    for (int64_t i = 0; i < request->prompt_numel && st != TESS_OK; i++) {
        tess_free(text[i]);
        text[i] = NULL;
    }
    return st;
}

tess_sample_request tess_session_sample_request(const tess_session *s)
{
    const tess_run_sample_keys *k = &s->run->sample;
    return (tess_sample_request){.prompt = (const char *const *)k->prompts.item,
                                 .prompt_numel = k->prompts.item_numel,
                                 .token_numel = k->tokens,
                                 .temperature = k->temperature,
                                 .top_k = k->top_k,
                                 .seed = (uint64_t)k->seed};
}

/* ---- while training ---- */

tess_status session_check_texts(tess_session *s)
{
    const tess_sample_request request = tess_session_sample_request(s);
    sampler p = {.s = s, .request = &request};
    tess_status st = keep_text(s);
    p.text = s->text;
    for (int64_t i = 0; i < request.prompt_numel && st == TESS_OK; i++)
        st = begin_text(&p, request.prompt[i]);
    tess_ids_fini(&p.ids);
    return st;
}

/* What begins on a line of its own, as much as a line takes. */
static void log_text(const tess_session *s, int64_t idx, const char *text)
{
    char line[240];
    size_t nbytes = 0;
    for (; text[nbytes] != '\0' && nbytes < sizeof line - 1; nbytes++)
        line[nbytes] = (unsigned char)text[nbytes] < 0x20 ? ' ' : text[nbytes];
    while (text[nbytes] != '\0' && nbytes > 0 && ((unsigned char)text[nbytes] & 0xc0) == 0x80)
        nbytes--; /* no half of a character */
    line[nbytes] = '\0';
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "sample step=%" PRId64 " prompt=%" PRId64 ": %s%s",
                  s->step, idx + 1, line, text[nbytes] != '\0' ? "..." : "");
}

static tess_status write_texts(const tess_session *s, const char *name, char *const *text)
{
    char path[1024];
    tess_strbuf page = {0};
    tess_status st = session_path(s, "samples", path);
    if (st == TESS_OK)
        st = tess_io_mkdirs(s->ctx->io, path);
    for (int64_t i = 0; i < s->run->sample.prompts.item_numel && st == TESS_OK; i++)
        st = tess_strbuf_add(&page, "%s== prompt %" PRId64 " ==\n%s\n", i > 0 ? "\n" : "", i + 1,
                             text[i]);
    if (st == TESS_OK)
        st = session_path(s, name, path);
    if (st == TESS_OK)
        st = tess_io_write_all(s->ctx->io, path, page.text, page.nbytes);
    tess_strbuf_fini(&page);
    return st;
}

tess_status session_sample_texts(tess_session *s, void (*tick)(void *arg), void *arg)
{
    char name[64];
    void *array = NULL;
    tess_sample_request request = tess_session_sample_request(s);
    request.tick = tick;
    request.tick_arg = arg;
    TESS_TRY(session_agree(s, tess_alloc_array(request.prompt_numel, sizeof(char *), &array)));
    char **text = array;
    tess_status st = tess_session_sample(s, &request, text);
    if (st == TESS_OK) {
        snprintf(name, sizeof name, "samples/step-%08" PRId64 ".txt", s->step);
        st = session_agree(s, tess_comm_rank(s->world) == 0 ? write_texts(s, name, text) : TESS_OK);
        for (int64_t i = 0; i < request.prompt_numel; i++) {
            log_text(s, i, text[i]);
            tess_free(text[i]);
        }
    }
    tess_free(array);
    return st;
}
