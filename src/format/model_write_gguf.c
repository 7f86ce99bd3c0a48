/*
 * One GGUF file: keys of the architecture, the vocabulary, tensors under their names there, rows of
 * q and k in the order of the file (format/gguf_llm.h).
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/gguf_llm.h"
#include "format/gguf_priv.h"
#include "format/gguf_vocab.h"
#include "format/model_write_priv.h"

enum { PAIR_MAX = 40, KEY_NBYTES = 64 };

static const char identity_key[] = "base.identity", prefix[] = "tessera.";

typedef struct gguf_writer {
    const tess_ctx *ctx;
    tess_llm_config config;
    char (*name)[TESS_GGUF_NAME_NBYTES]; /* [tensor_numel] */
    tess_gguf_tensor *tensor;            /* [tensor_numel] */
    int64_t tensor_numel;
    bool has_divisors; /* the last tensor is rope_freqs.weight */
    char *moved;       /* [moved_nbytes] a tensor with its rows in the order of the file */
    int64_t moved_nbytes;
    tess_gguf_writer *file;
} gguf_writer;

/* Keys as they are made. */
typedef struct pairs {
    const char *arch;
    char key[PAIR_MAX][KEY_NBYTES];
    tess_gguf_pair pair[PAIR_MAX];
    int numel;
} pairs;

/* ---- keys ---- */

static void add(pairs *p, const char *key, tess_gguf_value value)
{
    p->pair[p->numel++] = (tess_gguf_pair){key, value};
}

static void add_text(pairs *p, const char *key, const char *text)
{
    add(p, key, (tess_gguf_value){.kind = TESS_GGUF_STRING, .text = text});
}

/* A text of Tessera's own. */
static void add_own(pairs *p, const char *name, const char *text)
{
    char *key = p->key[p->numel];
    snprintf(key, KEY_NBYTES, "%s%s", prefix, name);
    add_text(p, key, text);
}

static const char *key_of(pairs *p, const char *name)
{
    char *key = p->key[p->numel];
    snprintf(key, KEY_NBYTES, "%s.%s", p->arch, name);
    return key;
}

static void add_u32(pairs *p, const char *name, int64_t value)
{
    add(p, key_of(p, name), (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = value});
}

static void add_f32(pairs *p, const char *name, double value)
{
    add(p, key_of(p, name), (tess_gguf_value){.kind = TESS_GGUF_F32, .f64 = value});
}

static void add_architecture(pairs *p, const tess_llm_config *c)
{
    add_u32(p, "block_count", c->layer_numel);
    if (c->max_position > 0)
        add_u32(p, "context_length", c->max_position);
    add_u32(p, "embedding_length", c->hidden_numel);
    add_u32(p, "feed_forward_length", c->intermediate_numel);
    add_u32(p, "attention.head_count", c->head_numel);
    add_u32(p, "attention.head_count_kv", c->kv_head_numel);
    add_u32(p, "attention.key_length", c->head_dim);
    add_u32(p, "attention.value_length", c->head_dim);
    add_f32(p, "attention.layer_norm_rms_epsilon", c->rms_eps);
    add_u32(p, "vocab_size", c->vocab_numel);
    add_u32(p, "rope.dimension_count", c->head_dim);
    add_f32(p, "rope.freq_base", c->rope.theta);
    const bool is_yarn = c->rope.type == TESS_ROPE_YARN;
    if (is_yarn || c->rope.type == TESS_ROPE_LINEAR) {
        add_text(p, key_of(p, "rope.scaling.type"), is_yarn ? "yarn" : "linear");
        add_f32(p, "rope.scaling.factor", c->rope.factor);
    }
    /* The rest of llama3 is in rope_freqs.weight. */
    if (is_yarn || c->rope.type == TESS_ROPE_LLAMA3)
        add_u32(p, "rope.scaling.original_context_length", c->rope.original_max_position);
    if (c->family == TESS_LLM_MISTRAL && c->window > 0)
        add_u32(p, "attention.sliding_window", c->window);
}

/* "general.file_type" of most weights. */
static int64_t file_type(const tess_model_write_request *q)
{
    static const struct {
        tess_format format;
        int64_t number;
    } known[] = {{TESS_FORMAT_F32, 0},   {TESS_FORMAT_F16, 1},   {TESS_FORMAT_Q4_0, 2},
                 {TESS_FORMAT_Q4_1, 3},  {TESS_FORMAT_Q8_0, 7},  {TESS_FORMAT_Q5_0, 8},
                 {TESS_FORMAT_Q5_1, 9},  {TESS_FORMAT_Q2_K, 10}, {TESS_FORMAT_Q3_K, 12},
                 {TESS_FORMAT_Q4_K, 15}, {TESS_FORMAT_Q5_K, 17}, {TESS_FORMAT_Q6_K, 18},
                 {TESS_FORMAT_BF16, 32}};
    for (int64_t i = 0; i < q->tensor_numel; i++)
        for (int k = 0; q->tensor[i].is_linear && k < TESS_NELEM(known); k++)
            if (known[k].format == q->tensor[i].codec.format)
                return known[k].number;
    return 0;
}

static void add_general(pairs *p, const tess_model_write_request *q)
{
    add_text(p, "general.architecture", p->arch);
    add_text(p, "general.type", "model");
    add(p, "general.file_type", (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = file_type(q)});
    add(p, "general.quantization_version", (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = 2});
    add_own(p, "base.quant", q->quant);
    add_own(p, identity_key, TESS_BASE_ID_UNKNOWN);
    for (int64_t i = 0; i < q->extra_numel; i++)
        add_own(p, q->extra[i].key, q->extra[i].value);
}

/* A window of some layers alone has no key that says which, and yarn only what llama.cpp takes. */
static tess_status check_config(const tess_llm_config *c)
{
    const tess_rope_config *r = &c->rope;
    TESS_CHECK(r->type != TESS_ROPE_YARN ||
                   (r->attention_factor == tess_rope_yarn_factor(r->factor) &&
                    r->beta_fast == 32.0 && r->beta_slow == 1.0),
               TESS_E_UNSUPPORTED,
               "rope attention_factor %g, beta_fast %g, beta_slow %g: a GGUF file has %g, 32 and "
               "1; write a directory instead",
               r->attention_factor, r->beta_fast, r->beta_slow, tess_rope_yarn_factor(r->factor));
    for (int64_t i = 0; i < c->layer_numel; i++)
        TESS_CHECK(c->is_sliding[i] == (c->family == TESS_LLM_MISTRAL && c->window > 0),
                   TESS_E_UNSUPPORTED,
                   "layer %" PRId64 " of this %s model %s: a GGUF file cannot say that; write a "
                   "directory instead",
                   i, tess_llm_family_name(c->family),
                   c->is_sliding[i] ? "has a sliding window" : "has none while others do");
    return TESS_OK;
}

/* ---- tensors ---- */

static tess_status list_tensors(gguf_writer *w, const tess_model_write_request *q)
{
    void *name = NULL, *tensor = NULL;
    char where[TESS_ST_NAME_MAX_NBYTES + 16];
    w->has_divisors = q->config->rope.type == TESS_ROPE_LLAMA3;
    TESS_TRY(tess_alloc_array(q->tensor_numel + 1, sizeof *w->name, &name));
    w->name = name;
    TESS_TRY(tess_alloc_array(q->tensor_numel + 1, sizeof *w->tensor, &tensor));
    w->tensor = tensor;
    for (int64_t i = 0; i < q->tensor_numel; i++) {
        const tess_model_write_tensor *from = &q->tensor[i];
        tess_gguf_tensor *to = &w->tensor[w->tensor_numel++];
        TESS_CHECK(tess_gguf_name_of(from->name, w->name[i]), TESS_E_UNSUPPORTED,
                   "tensor '%s' has no name in GGUF files", from->name);
        TESS_CHECK(tess_gguf_type_of(from->codec.format) >= 0, TESS_E_UNSUPPORTED,
                   "tensor '%s': %s has no place in GGUF files; give the name of a directory",
                   from->name, tess_format_name(from->codec.format));
        *to = (tess_gguf_tensor){
            .name = w->name[i], .format = from->codec.format, .dim_numel = from->dim_numel};
        memcpy(to->dim, from->dim, sizeof from->dim);
        snprintf(where, sizeof where, "tensor '%s'", from->name);
        TESS_TRY(tess_gguf_sizes(where, TESS_E_UNSUPPORTED, to));
    }
    if (w->has_divisors)
        w->tensor[w->tensor_numel++] = (tess_gguf_tensor){.name = "rope_freqs.weight",
                                                          .format = TESS_FORMAT_F32,
                                                          .dim_numel = 1,
                                                          .dim = {q->config->head_dim / 2}};
    return TESS_OK;
}

/* What inverse frequencies are divided by under Llama 3's rule. */
static tess_status put_divisors(gguf_writer *w)
{
    tess_llm_config plain = w->config;
    float scaled[TESS_LLM_HEAD_DIM_MAX / 2], whole[TESS_LLM_HEAD_DIM_MAX / 2];
    plain.rope.type = TESS_ROPE_DEFAULT;
    tess_rope_inv_freq(&w->config, scaled);
    tess_rope_inv_freq(&plain, whole);
    for (int64_t i = 0; i < w->config.head_dim / 2; i++)
        whole[i] /= scaled[i];
    return tess_gguf_writer_append(w->file, w->tensor_numel - 1, whole,
                                   (size_t)(w->config.head_dim / 2) * sizeof *whole);
}

static tess_status make_room(gguf_writer *w, int64_t nbytes)
{
    void *grown = NULL;
    if (nbytes <= w->moved_nbytes)
        return TESS_OK;
    tess_free(w->moved);
    w->moved = NULL;
    w->moved_nbytes = 0;
    TESS_TRY(tess_alloc((size_t)nbytes, &grown));
    w->moved = grown;
    w->moved_nbytes = nbytes;
    return TESS_OK;
}

static tess_status put(void *self, int64_t tensor_idx, const void *const *part)
{
    gguf_writer *w = self;
    const tess_gguf_tensor *t = &w->tensor[tensor_idx];
    const int64_t head_dim = tess_gguf_interleaved(&w->config, t->name);
    if (head_dim == 0)
        return tess_gguf_writer_append(w->file, tensor_idx, part[0], (size_t)t->nbytes);
    const size_t row_nbytes = (size_t)(t->nbytes / t->dim[0]);
    TESS_TRY(make_room(w, t->nbytes));
    for (int64_t row = 0; row < t->dim[0]; row++)
        memcpy(w->moved + (size_t)row * row_nbytes,
               (const char *)part[0] + (size_t)tess_gguf_hf_row(row, head_dim) * row_nbytes,
               row_nbytes);
    return tess_gguf_writer_append(w->file, tensor_idx, w->moved, (size_t)t->nbytes);
}

static tess_status set(void *self, const char *key, const char *value)
{
    const gguf_writer *w = self;
    char full[KEY_NBYTES];
    snprintf(full, sizeof full, "%s%s", prefix, key);
    return tess_gguf_writer_set(w->file, full, value);
}

static tess_status finish(void *self, const char *base_id)
{
    gguf_writer *w = self;
    if (w->has_divisors)
        TESS_TRY(put_divisors(w));
    TESS_TRY(set(w, identity_key, base_id));
    return tess_gguf_writer_finish(w->file);
}

static void destroy(void *self)
{
    gguf_writer *w = self;
    tess_gguf_writer_destroy(&w->file);
    tess_free(w->moved);
    tess_free(w->tensor);
    tess_free(w->name);
    tess_free(w);
}

const tess_model_write_ops tess_model_gguf_ops = {put, set, finish, destroy};

static tess_status start_file(gguf_writer *w, const tess_model_write_request *q)
{
    const tess_llm_family family = w->config.family;
    tess_gguf_vocab vocab;
    pairs p = {.arch = tess_llm_family_name(family == TESS_LLM_MISTRAL ? TESS_LLM_LLAMA : family)};
    TESS_TRY(check_config(&w->config));
    TESS_TRY(tess_gguf_vocab_create(w->ctx->io, q->source_path, &w->config, &vocab));
    add_general(&p, q);
    add_architecture(&p, &w->config);
    for (int i = 0; i < vocab.pair_numel; i++)
        add(&p, vocab.pair[i].key, vocab.pair[i].value);
    const tess_status st = tess_gguf_writer_create(w->ctx->io, q->path, p.pair, p.numel, w->tensor,
                                                   w->tensor_numel, &w->file);
    tess_gguf_vocab_fini(&vocab);
    return st;
}

tess_status tess_model_gguf_writer(const tess_ctx *ctx, const tess_model_write_request *request,
                                   void **self)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(gguf_writer), &object));
    gguf_writer *w = object;
    w->ctx = ctx;
    w->config = *request->config;
    tess_status st = list_tensors(w, request);
    if (st == TESS_OK)
        st = start_file(w, request);
    if (st != TESS_OK) {
        destroy(w);
        return st;
    }
    *self = w;
    return TESS_OK;
}
