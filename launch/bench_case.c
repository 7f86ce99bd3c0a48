/*
 * Built-in shapes: random weights of a known config, and data that are drawn.
 *
 * What a step costs does not depend on values, so that nothing has to be downloaded; losses of
 * these runs mean nothing.
 */
#include "launch/bench_case.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "train/data/latents.h"
#include "train/data/token_file.h"

/* ---- scratch ---- */

static tess_status make_folder(const tess_bench *b, char path[TESS_BENCH_PATH_NBYTES])
{
    const char *dir = b->options->dir != NULL ? b->options->dir : getenv("TMPDIR");
    const int n = snprintf(path, TESS_BENCH_PATH_NBYTES, "%s/tessera-bench-XXXXXX",
                           dir != NULL ? dir : "/tmp");
    TESS_CHECK(n > 0 && n < TESS_BENCH_PATH_NBYTES - 128, TESS_E_ARG,
               "bench: --dir: a path of %d bytes is too long", n);
    TESS_CHECK(mkdtemp(path) != NULL, TESS_E_IO,
               "bench: no folder can be made in '%s'; choose another --dir",
               dir != NULL ? dir : "/tmp");
    return TESS_OK;
}

tess_status tess_bench_scratch_create(tess_bench *b, tess_bench_scratch *scratch)
{
    tess_status st = TESS_OK;
    memset(scratch, 0, sizeof *scratch);
    if (tess_comm_rank(b->comm) == 0)
        st = make_folder(b, scratch->path);
    TESS_TRY(tess_agree(b->comm, st));
    return tess_comm_bcast(b->comm, 0, scratch->path, sizeof scratch->path);
}

tess_status tess_bench_remove(tess_bench *b, const char *path)
{
    tess_io *io = b->ctx->io;
    tess_io_kind kind = TESS_IO_MISSING;
    char **name = NULL;
    int64_t numel = 0, nbytes = 0;
    bool is_link = false;
    TESS_TRY(tess_io_stat(io, path, &kind, &nbytes));
    TESS_TRY(tess_io_is_link(io, path, &is_link));
    if (kind == TESS_IO_MISSING && !is_link)
        return TESS_OK;
    if (kind != TESS_IO_DIR || is_link)
        return tess_io_unlink(io, path, true);
    TESS_TRY(tess_io_list(io, path, &name, &numel));
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < numel && st == TESS_OK; i++) {
        char inner[1024];
        snprintf(inner, sizeof inner, "%s/%s", path, name[i]);
        st = tess_bench_remove(b, inner);
    }
    tess_io_list_free(&name, numel);
    return st == TESS_OK ? tess_io_rmdir(io, path) : st;
}

void tess_bench_scratch_destroy(tess_bench *b, tess_bench_scratch *scratch)
{
    if (scratch->path[0] == '\0' || tess_comm_rank(b->comm) != 0)
        return;
    char why[512];
    snprintf(why, sizeof why, "%s", tess_error_message());
    const tess_status before = tess_error_status();
    if (tess_bench_remove(b, scratch->path) == TESS_OK)
        return;
    tess_log_write(&b->ctx->log, TESS_LOG_WARN, "bench: '%s' is left: %s", scratch->path,
                   tess_error_message());
    tess_error_clear();
    if (before != TESS_OK) /* the measurement's own failure is what is reported */
        (void)TESS_FAIL(before, "%s", why);
}

/* ---- shapes ---- */

typedef enum family { LLAMA, FLUX, RQVAE, KMEANS } family;

typedef struct shape {
    const char *name;
    family family;
    int64_t length; /* tokens; pixels; vectors of a micro-batch; vectors of the file */
    /* llama: hidden size, layers, heads, heads of keys, inner size, vocabulary
     * flux: dimension of a head, single blocks, heads, double blocks, dimension of texts, of the
     * pooled one */
    int64_t dim, layer_numel, head_numel, other_numel, wide, vocab_numel;
} shape;

/* Those with a number behind their name are the published models' (their config.json). */
static const shape shapes[] = {
    {"llama", LLAMA, 256, 256, 5, 4, 2, 704, 4096},
    {"llama-1b", LLAMA, 2048, 2048, 16, 32, 8, 8192, 128256},
    {"llama-8b", LLAMA, 2048, 4096, 32, 32, 8, 14336, 128256},
    {"llama-70b", LLAMA, 2048, 8192, 80, 64, 8, 28672, 128256},
    /* one layer of it, with a small vocabulary around */
    {"llama-70b-layer", LLAMA, 2048, 8192, 1, 64, 8, 28672, 4096},
    {"flux", FLUX, 128, 64, 2, 4, 1, 128, 64},
    {"flux-12b", FLUX, 1024, 128, 38, 24, 19, 4096, 768},
    {"rqvae", RQVAE, 256, 128, 0, 0, 0, 0, 0},
    {"kmeans", KMEANS, 16384, 64, 0, 0, 0, 0, 0},
};

static const shape *find(const char *name)
{
    for (int i = 0; i < TESS_NELEM(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

static bool is_of_vectors(const shape *s) { return s->family == RQVAE || s->family == KMEANS; }

/* Tokens of a text that is trained on: what dev has, less for the small one. */
static int64_t text_numel_of(const shape *s) { return s->wide >= 4096 ? 512 : 32; }

static void llama_config(const shape *s, int64_t length, char *text, size_t nbytes)
{
    snprintf(text, nbytes,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\",\n"
             " \"hidden_size\": %" PRId64 ", \"num_hidden_layers\": %" PRId64 ",\n"
             " \"num_attention_heads\": %" PRId64 ", \"num_key_value_heads\": %" PRId64 ",\n"
             " \"intermediate_size\": %" PRId64 ", \"vocab_size\": %" PRId64 ",\n"
             " \"head_dim\": %" PRId64 ", \"max_position_embeddings\": %" PRId64 ",\n"
             " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0,\n"
             " \"bos_token_id\": 0, \"eos_token_id\": 1, \"tie_word_embeddings\": false,\n"
             " \"torch_dtype\": \"bfloat16\"}\n",
             s->dim, s->layer_numel, s->head_numel, s->other_numel, s->wide, s->vocab_numel,
             s->dim / s->head_numel, TESS_MAX(length, (int64_t)2048));
}

/* Axes of positions share a head as in the published model: 16, 56, 56 of 128. */
static void flux_config(const shape *s, char *text, size_t nbytes)
{
    const int64_t first = s->dim / 8, other = (s->dim - first) / 2;
    snprintf(text, nbytes,
             "{\"_class_name\": \"FluxTransformer2DModel\", \"attention_head_dim\": %" PRId64 ",\n"
             " \"axes_dims_rope\": [%" PRId64 ", %" PRId64 ", %" PRId64 "],\n"
             " \"guidance_embeds\": true, \"in_channels\": 64, \"out_channels\": null,\n"
             " \"joint_attention_dim\": %" PRId64 ", \"pooled_projection_dim\": %" PRId64 ",\n"
             " \"num_attention_heads\": %" PRId64 ", \"num_layers\": %" PRId64 ",\n"
             " \"num_single_layers\": %" PRId64 ", \"patch_size\": 1}\n",
             s->dim, first, other, other, s->wide, s->vocab_numel, s->head_numel, s->other_numel,
             s->layer_numel);
}

/* ---- data ---- */

static tess_status add_documents(tess_token_writer *w, const shape *s, int64_t length, int32_t *id)
{
    enum { DOCUMENTS = 64 };
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 0, 0);
    for (int64_t d = 0; d < DOCUMENTS; d++) {
        for (int64_t i = 0; i <= length; i++)
            id[i] = (int32_t)tess_rng_below(&rng, (uint64_t)(d * (length + 1) + i),
                                            (uint64_t)s->vocab_numel);
        TESS_TRY(tess_token_writer_add(w, id, NULL, length + 1));
    }
    return tess_token_writer_finish(w, NULL);
}

static tess_status write_tokens(const tess_bench *b, const char *path, const shape *s,
                                int64_t length)
{
    const tess_sha256 tokenizer = {{0}};
    tess_token_writer *w = NULL;
    void *id = NULL;
    TESS_TRY(tess_alloc_array(length + 1, sizeof(int32_t), &id));
    tess_status st = tess_token_writer_create(b->ctx, path, s->vocab_numel, &tokenizer, &w);
    if (st == TESS_OK)
        st = add_documents(w, s, length, id);
    tess_token_writer_destroy(&w);
    tess_free(id);
    return st;
}

/* Records of .fvecs: the dimension, then normal values. */
static tess_status write_vectors(const tess_bench *b, const char *path, const shape *s,
                                 int64_t length)
{
    const int64_t vector_numel = s->family == KMEANS ? length : 4096;
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 1, 0);
    const size_t record_nbytes = sizeof(int32_t) + (size_t)s->dim * sizeof(float);
    const int32_t dim = (int32_t)s->dim;
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(vector_numel, record_nbytes, &memory));
    char *at = memory;
    for (int64_t v = 0; v < vector_numel; v++, at += record_nbytes) {
        memcpy(at, &dim, sizeof dim);
        tess_rng_normal_fill(&rng, (uint64_t)(v * s->dim), s->dim, 1.0F,
                             (float *)(void *)(at + sizeof dim));
    }
    const tess_status st =
        tess_io_write_all(b->ctx->io, path, memory, (size_t)vector_numel * record_nbytes);
    tess_free(memory);
    return st;
}

enum { SAMPLES = 16 };

/* One caption, and images of one size. `value` has room for the largest of them. */
static tess_status add_samples(tess_latents_writer *w, const tess_latents_info *info,
                               const tess_latents_bucket *bucket, float *value)
{
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 2, 0);
    const int64_t text_numel = info->text_numel * info->text_dim;
    float *pooled = value + text_numel;
    tess_rng_normal_fill(&rng, 0, text_numel + info->pooled_dim, 0.5F, value);
    TESS_TRY(tess_latents_writer_text(
        w, &(tess_latents_text){"an image", value, pooled, info->text_numel}));
    for (int i = 0; i < SAMPLES; i++) {
        const int64_t numel = tess_latents_numel(info, bucket);
        const tess_latents_image image = {.name = "image-00", .latent = value};
        tess_rng_normal_fill(&rng, (uint64_t)(i + 1) << 32, numel, 1.0F, value);
        TESS_TRY(tess_latents_writer_image(w, 0, &image));
    }
    return tess_latents_writer_finish(w);
}

static tess_status write_cache(const tess_bench *b, const char *path, const shape *s,
                               int64_t length)
{
    const int64_t side = length / TESS_LATENTS_PIXELS;
    const tess_latents_info info = {.sample_numel = SAMPLES,
                                    .caption_numel = 1,
                                    .bucket_numel = 1,
                                    .channel_numel = 16,
                                    .text_numel = text_numel_of(s),
                                    .text_dim = s->wide,
                                    .pooled_dim = s->vocab_numel,
                                    .latent_dt = TESS_BF16,
                                    .text_dt = TESS_BF16,
                                    .name_nbytes = SAMPLES * (int64_t)sizeof "image-00",
                                    .caption_nbytes = sizeof "an image",
                                    .origin = {.tool = "tessera bench: drawn"}};
    const tess_latents_bucket bucket = {side, side, SAMPLES, 0};
    const int64_t text_numel = info.text_numel * info.text_dim + info.pooled_dim;
    tess_latents_writer *w = NULL;
    void *value = NULL;
    TESS_TRY(tess_alloc_array(TESS_MAX(text_numel, tess_latents_numel(&info, &bucket)),
                              sizeof(float), &value));
    tess_status st = tess_latents_writer_create(b->ctx, path, &info, &bucket, &w);
    if (st == TESS_OK)
        st = add_samples(w, &info, &bucket, value);
    tess_latents_writer_destroy(&w);
    tess_free(value);
    return st;
}

/* The 256 bytes as tokens, by the printable characters that stand for them: what a GGUF file needs
 * of a tokenizer. */
static tess_status write_tokenizer(const tess_bench *b, const char *folder)
{
    enum { FIRST = 2, ROOM_NBYTES = 8192 };
    char path[TESS_BENCH_PATH_NBYTES + 96], text[ROOM_NBYTES];
    size_t at = (size_t)snprintf(
        text, sizeof text,
        "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [],\n"
        "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},\n"
        "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
        "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"merges\": [],\n"
        "\"vocab\": {\"<s>\": 0, \"</s>\": 1");
    for (int byte = 0, other = 256; byte < 256; byte++) {
        const bool is_shown = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        at += (size_t)snprintf(text + at, sizeof text - at, ", \"\\u%04x\": %d",
                               (unsigned)(is_shown ? byte : other++), FIRST + byte);
    }
    at += (size_t)snprintf(text + at, sizeof text - at, "}}}\n");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    return tess_io_write_all(b->ctx->io, path, text, at);
}

/* ---- a case ---- */

static tess_status write_files(const tess_bench *b, const char *folder, const shape *s,
                               int64_t length)
{
    char path[TESS_BENCH_PATH_NBYTES + 96], config[1024] = "";
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(b->ctx->io, folder, &kind, &nbytes));
    if (kind == TESS_IO_DIR)
        return TESS_OK;
    TESS_TRY(tess_io_mkdir(b->ctx->io, folder, false));
    if (is_of_vectors(s)) {
        snprintf(path, sizeof path, "%s/data.fvecs", folder);
        return write_vectors(b, path, s, length);
    }
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (s->family == LLAMA)
        llama_config(s, length, config, sizeof config);
    else
        flux_config(s, config, sizeof config);
    TESS_TRY(tess_io_write_all(b->ctx->io, path, config, strlen(config)));
    if (s->family == LLAMA)
        TESS_TRY(write_tokenizer(b, folder));
    snprintf(path, sizeof path, "%s/data.h5", folder);
    return s->family == LLAMA ? write_tokens(b, path, s, length) : write_cache(b, path, s, length);
}

/* Steps without end: whoever measures says how many. */
static void run_text(const shape *s, const char *folder, int64_t length, tess_bench_case *c)
{
    static const char train[] =
        "train: {steps: 1000000, micro_batch: %" PRId64 ", micro_batches: 8, schedule: constant,\n"
        "        warmup_steps: 0, learning_rate: 1.0e-5}\n";
    char batch[256], *at = c->text;
    const size_t room = sizeof c->text;
    snprintf(batch, sizeof batch, train, s->family == RQVAE ? length : (int64_t)1);
    if (s->family == KMEANS)
        snprintf(at, room,
                 "model: {family: kmeans}\ndata: {path: '%s/data.fvecs'}\n"
                 "quantizer: {codes: 1024, passes: 1000}\n",
                 folder);
    else if (s->family == RQVAE)
        snprintf(at, room,
                 "model: {family: rqvae}\ndata: {path: '%s/data.fvecs'}\n"
                 "quantizer: {encoder: [256, 128], codes: 256, levels: 4, code_dim: 32}\n%s",
                 folder, batch);
    else if (s->family == FLUX)
        snprintf(at, room,
                 "model: {path: '%s', init: random}\nbase: {format: nf4}\n"
                 "lora: {rank: 16, alpha: 16, targets: all}\ndata: {path: '%s/data.h5'}\n%s",
                 folder, folder, batch);
    else
        snprintf(at, room,
                 "model: {path: '%s', init: random}\n"
                 "data: {path: '%s/data.h5', sequence_length: %" PRId64 "}\n%s",
                 folder, folder, length, batch);
}

static tess_status check_length(const shape *s, int64_t length)
{
    TESS_CHECK(s->family != FLUX || length % (2 * TESS_LATENTS_PIXELS) == 0, TESS_E_ARG,
               "bench: --length of %s: expected pixels, a multiple of %d, found %" PRId64, s->name,
               2 * TESS_LATENTS_PIXELS, length);
    TESS_CHECK(s->family != KMEANS || length >= 1024, TESS_E_ARG,
               "bench: --length of %s: expected 1024 vectors or more, found %" PRId64, s->name,
               length);
    TESS_CHECK(s->family != LLAMA || length >= 2, TESS_E_ARG,
               "bench: --length of %s: expected 2 tokens or more, found %" PRId64, s->name, length);
    return TESS_OK;
}

static tess_status make_builtin(tess_bench *b, const tess_bench_scratch *scratch, const shape *s,
                                tess_bench_case *c)
{
    char folder[TESS_BENCH_PATH_NBYTES + 64];
    c->is_builtin = true;
    c->has_model_files = s->family == LLAMA;
    c->has_no_base = is_of_vectors(s);
    c->length = c->length > 0 ? c->length : s->length;
    TESS_TRY(check_length(s, c->length));
    snprintf(folder, sizeof folder, "%s/%s-%" PRId64, scratch->path, s->name, c->length);
    run_text(s, folder, c->length, c);
    const tess_status st =
        tess_comm_rank(b->comm) == 0 ? write_files(b, folder, s, c->length) : TESS_OK;
    return tess_agree(b->comm, st);
}

tess_status tess_bench_case_make(tess_bench *b, const tess_bench_scratch *scratch, const char *name,
                                 int64_t length, tess_bench_case *out)
{
    const shape *s = find(name);
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    *out = (tess_bench_case){.name = name, .length = length};
    if (s != NULL)
        return make_builtin(b, scratch, s, out);
    tess_status st = TESS_OK;
    if (tess_comm_rank(b->comm) == 0)
        st = tess_io_stat(b->ctx->io, name, &kind, &nbytes);
    if (st == TESS_OK && tess_comm_rank(b->comm) == 0 && kind != TESS_IO_FILE)
        st = TESS_FAIL(TESS_E_ARG,
                       "bench: '%s' is neither a run file nor a shape (llama, llama-1b, llama-8b, "
                       "llama-70b, llama-70b-layer, flux, flux-12b, rqvae, kmeans)",
                       name);
    if (length > 0)
        snprintf(out->override, sizeof out->override, "data.sequence_length=%" PRId64, length);
    return tess_agree(b->comm, st);
}
