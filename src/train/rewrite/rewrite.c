#include "train/rewrite/rewrite.h"

#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/strbuf.h"

/* ---- opening ---- */

/* Text in single quotes of YAML. */
static tess_status put_quoted(tess_strbuf *yaml, const char *text)
{
    TESS_TRY(tess_strbuf_add(yaml, "'"));
    for (const char *p = text; *p != '\0'; p++)
        TESS_TRY(tess_strbuf_add_bytes(yaml, *p == '\'' ? "''" : p, *p == '\'' ? 2 : 1));
    return tess_strbuf_add(yaml, "'");
}

/* Whether a format is one of base.format's words: the run file's own message is about lists. */
static tess_status check_word(const char *format)
{
    const char *words = tess_run_key_at(TESS_RUN_KEY_base_format)->words;
    const size_t nbytes = strlen(format);
    for (const char *p = words; p != NULL; p = strchr(p + 1, '|'))
        if (nbytes > 0 && strncmp(p + 1, format, nbytes) == 0 &&
            (p[1 + nbytes] == '|' || p[1 + nbytes] == '\0'))
            return TESS_OK;
    return TESS_FAIL(TESS_E_CONFIG, "override: unknown format '%.32s' (known: %s)", format,
                     words + 1);
}

/* [Note: a run that never runs] Formats are chosen by the keys of a run file, so that a model is
 * written exactly as a run over it would hold it. Keys that a run needs and this does not get
 * values that are not used. */
static tess_status put_run(tess_strbuf *yaml, const char *model, const tess_rewrite_choice *choice)
{
    TESS_TRY(tess_strbuf_add(yaml, "model: {path: "));
    TESS_TRY(put_quoted(yaml, model));
    TESS_TRY(tess_strbuf_add(yaml, "}\ndata: {path: none}\noutput: {dir: "));
    TESS_TRY(put_quoted(yaml, model)); /* where messages may look for what a run kept */
    TESS_TRY(tess_strbuf_add(yaml, "}\n"));
    if (choice->rule_numel == 0)
        return TESS_OK;
    TESS_TRY(tess_strbuf_add(yaml, "base:\n  overrides:\n"));
    for (int64_t i = 0; i < choice->rule_numel; i++) {
        TESS_TRY(check_word(choice->rule[i].format));
        TESS_TRY(tess_strbuf_add(yaml, "  - {match: "));
        TESS_TRY(put_quoted(yaml, choice->rule[i].match));
        TESS_TRY(tess_strbuf_add(yaml, ", format: "));
        TESS_TRY(put_quoted(yaml, choice->rule[i].format));
        TESS_TRY(tess_strbuf_add(yaml, "}\n"));
    }
    return TESS_OK;
}

tess_status tess_rewrite_base_open(const tess_ctx *ctx, const char *model,
                                   const tess_rewrite_choice *choice, unsigned flags,
                                   tess_rewrite_base *out)
{
    tess_strbuf yaml = {0};
    memset(out, 0, sizeof *out);
    tess_status st = put_run(&yaml, model, choice);
    if (st == TESS_OK)
        st = tess_run_parse_with(&(tess_run_source){.text = yaml.text,
                                                    .nbytes = yaml.nbytes,
                                                    .name = "options",
                                                    .overrides = choice->key,
                                                    .override_numel = choice->key_numel},
                                 tess_describe_family, ctx, &out->run);
    tess_strbuf_fini(&yaml);
    if (st == TESS_OK)
        st = tess_describe_base(ctx, out->run, flags, &out->d);
    if (st != TESS_OK)
        tess_rewrite_base_close(out);
    return st;
}

void tess_rewrite_base_close(tess_rewrite_base *base)
{
    tess_description_fini(&base->d);
    tess_run_destroy(&base->run);
    memset(base, 0, sizeof *base);
}

/* ---- tensors ---- */

bool tess_rewrite_is_linear(const tess_param *p)
{
    return p->shape_rank == 2 && strcmp(p->name, "model.embed_tokens.weight") != 0;
}

void tess_rewrite_set_out(tess_rewrite_tensor *t, const char *path, tess_codec out)
{
    const bool is_gguf = tess_gguf_is_path(path), is_matrix = t->param->shape_rank > 1;
    /* Readers of GGUF files want vectors in f32. */
    t->out = is_gguf && !is_matrix ? (tess_codec){.format = TESS_FORMAT_F32} : out;
    const bool is_coded_file = is_gguf || t->out.format != TESS_FORMAT_F16;
    t->kept = tess_describe_kept(t->out, is_coded_file, is_matrix);
}

tess_status tess_rewrite_list(const tess_rewrite_base *base, const char *path,
                              tess_rewrite_tensor **out)
{
    const tess_registry *reg = &base->d.registry;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof **out, &array));
    tess_rewrite_tensor *tensor = array;
    tess_status st = TESS_OK;
    for (int i = 0; i < reg->param_numel && st == TESS_OK; i++) {
        tess_rewrite_tensor *t = &tensor[i];
        t->param = &reg->param[i];
        t->source = tess_model_dir_find(base->d.dir, t->param->name);
        t->is_linear = tess_rewrite_is_linear(t->param);
        t->made = t->param->codec;
        st = tess_model_tensor_codec(t->source, &t->stored);
        if (st != TESS_OK)
            break;
        const tess_codec kept =
            tess_describe_kept(t->stored, t->source->gguf != NULL || t->source->packed != NULL,
                               t->param->shape_rank > 1);
        tess_rewrite_set_out(t, path, tess_codec_is_equal(&t->made, &kept) ? t->stored : t->made);
    }
    if (st != TESS_OK) {
        tess_free(tensor);
        return st;
    }
    *out = tensor;
    return TESS_OK;
}

void tess_rewrite_describe(const tess_rewrite_tensor *tensor, int64_t tensor_numel,
                           char text[TESS_CODEC_TEXT_NBYTES])
{
    const tess_rewrite_tensor *chosen = NULL;
    for (int64_t i = tensor_numel - 1; i >= 0; i--)
        if (tensor[i].param->shape_rank == 2 &&
            (chosen == NULL || tess_format_is_quantized(tensor[i].kept.format)))
            chosen = &tensor[i];
    snprintf(text, TESS_CODEC_TEXT_NBYTES, "none");
    if (chosen != NULL)
        tess_codec_describe(&chosen->kept, text);
}

/* ---- output ---- */

static tess_dtype origin_of(const tess_rewrite_tensor *t)
{
    return t->stored.format == TESS_FORMAT_F32   ? TESS_F32
           : t->stored.format == TESS_FORMAT_F16 ? TESS_F16
                                                 : TESS_BF16;
}

/* A label of codes that no tensor has would be dropped without a word. */
static tess_status check_storage(const tess_rewrite_tensor *tensor, int64_t tensor_numel,
                                 const tess_model_write_request *request)
{
    bool is_used = request->storage == TESS_U8;
    for (int64_t i = 0; i < tensor_numel; i++)
        is_used = is_used || tensor[i].out.format == TESS_FORMAT_NF4 ||
                  tensor[i].out.format == TESS_FORMAT_FP4;
    TESS_CHECK(is_used, TESS_E_CONFIG,
               "--quant-storage: %s is a label of nf4 and fp4 weights, and '%s' would have none; "
               "leave the option out or choose one of these formats",
               tess_dtype_name(request->storage), request->path);
    return TESS_OK;
}

/* What config.json says of weights that are plain, and alike in all linear layers; else NULL. */
static const char *torch_dtype_of(const tess_model_write_tensor *tensor, int64_t tensor_numel)
{
    const tess_model_write_tensor *first = NULL;
    for (int64_t i = 0; i < tensor_numel; i++) {
        if (!tensor[i].is_linear)
            continue;
        first = first != NULL ? first : &tensor[i];
        if (tensor[i].codec.format != first->codec.format)
            return NULL;
    }
    if (first == NULL)
        return NULL;
    return first->codec.format == TESS_FORMAT_F32    ? "float32"
           : first->codec.format == TESS_FORMAT_F16  ? "float16"
           : first->codec.format == TESS_FORMAT_BF16 ? "bfloat16"
                                                     : NULL;
}

tess_status tess_rewrite_start(const tess_ctx *ctx, const tess_rewrite_base *base,
                               const tess_rewrite_tensor *tensor,
                               const tess_model_write_request *request, tess_model_writer **out)
{
    const tess_registry *reg = &base->d.registry;
    tess_model_write_request q = *request;
    void *array = NULL;
    const bool is_flux = tess_run_is_flux(base->run);
    TESS_CHECK(!is_flux || !tess_gguf_is_path(request->path), TESS_E_UNSUPPORTED,
               "'%s': FLUX.1 is written as a directory of safetensors, not as a GGUF file; leave "
               "out .gguf",
               request->path);
    TESS_TRY(check_storage(tensor, reg->param_numel, request));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *q.tensor, &array));
    tess_model_write_tensor *to = array;
    for (int i = 0; i < reg->param_numel; i++) {
        to[i] = (tess_model_write_tensor){.name = tensor[i].param->name,
                                          .dim_numel = tensor[i].param->shape_rank,
                                          .codec = tensor[i].out,
                                          .origin = origin_of(&tensor[i]),
                                          .is_linear = tensor[i].is_linear};
        memcpy(to[i].dim, tensor[i].param->shape, sizeof to[i].dim);
    }
    if (q.torch_dtype == NULL)
        q.torch_dtype = torch_dtype_of(to, reg->param_numel);
    q.source_path = tess_model_dir_path(base->d.dir);
    q.config = is_flux ? NULL : &base->d.config;
    if (is_flux)
        q.stem = "diffusion_pytorch_model";
    q.config_root = base->d.config_root;
    q.tensor = to;
    q.tensor_numel = reg->param_numel;
    q.tables = (tess_packed_tables){tess_nf4_table, tess_fp4_table, tess_dynamic_map_signed()};
    const tess_status st = tess_model_writer_create(ctx, &q, out);
    tess_free(to);
    return st;
}

tess_status tess_rewrite_identify(tess_identity *identity, const tess_rewrite_tensor *t,
                                  const tess_codec *kept, const tess_stored *s)
{
    char rule[TESS_CODEC_TEXT_NBYTES];
    tess_sha256 sha;
    TESS_TRY(tess_stored_sha256(s, kept, &sha));
    tess_codec_describe(kept, rule);
    return tess_identity_add(identity, t->param->name, t->param->shape, t->param->shape_rank, rule,
                             &sha);
}

tess_status tess_rewrite_id_text(tess_identity *identity, char text[TESS_SHA256_HEX_NBYTES])
{
    tess_sha256 id;
    TESS_TRY(tess_identity_final(identity, &id));
    tess_hex(id.byte, sizeof id.byte, text);
    return TESS_OK;
}
