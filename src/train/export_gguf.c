/*
 * The adapter as one GGUF file for llama.cpp: `adapter.gguf`. Matrices B of q and k have their rows
 * in the order of the files that llama.cpp reads (format/gguf_llm.h).
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/gguf_llm.h"
#include "train/session_priv.h"

typedef struct gguf_export {
    tess_session *s;
    tess_gguf_tensor *tensor; /* [tensor_numel] */
    char (*name)[TESS_GGUF_NAME_NBYTES];
    int64_t tensor_numel;
    int64_t *tensor_of; /* [param_numel] */
    tess_gguf_writer *writer;
} gguf_export;

/* "blk.3.attn_q.weight.lora_a" of "model.layers.3.self_attn.q_proj". */
static tess_status name_tensor(const gguf_export *e, const char *path, tess_peft_part part,
                               char name[TESS_GGUF_NAME_NBYTES])
{
    char full[TESS_NAME_NBYTES + 8], weight[TESS_GGUF_NAME_NBYTES];
    const tess_peft_module module = {.path = path};
    const double alpha = tess_peft_spec_options(e->s->d.spec)->alpha;
    tess_peft_match match;
    snprintf(full, sizeof full, "%s.weight", path);
    TESS_CHECK(tess_gguf_name_of(full, weight) &&
                   snprintf(name, TESS_GGUF_NAME_NBYTES, "%s.lora_%c", weight,
                            part == TESS_PEFT_A ? 'a' : 'b') < TESS_GGUF_NAME_NBYTES,
               TESS_E_UNSUPPORTED, "export gguf: '%s' has no name in GGUF files", path);
    TESS_TRY(tess_peft_spec_match(e->s->d.spec, &module, &match));
    const bool is_rslora = tess_peft_spec_options(e->s->d.spec)->use_rslora;
    TESS_CHECK(!match.is_target || (match.alpha == alpha && !is_rslora), TESS_E_UNSUPPORTED,
               "export gguf: '%s' has alpha %g over rank %" PRId64
               " and scale %g; a GGUF adapter has one alpha (%g) for all; use peft",
               path, match.alpha, match.rank, match.scale, alpha);
    return TESS_OK;
}

static tess_status list_tensors(gguf_export *e, tess_dtype dt)
{
    const tess_registry *reg = &e->s->d.registry;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->tensor, (void **)&e->tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->name, (void **)&e->name));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->tensor_of, (void **)&e->tensor_of));
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        char path[TESS_NAME_NBYTES];
        tess_peft_part part = TESS_PEFT_A;
        e->tensor_of[i] = -1;
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        TESS_CHECK(session_parse_lora(p->name, path, &part) && part != TESS_PEFT_MAGNITUDE,
                   TESS_E_UNSUPPORTED,
                   "export gguf: a GGUF adapter has no place for '%s' (%s); use peft", p->name,
                   part == TESS_PEFT_MAGNITUDE ? "lora.dora" : "lora.modules_to_save");
        e->tensor_of[i] = e->tensor_numel;
        TESS_TRY(name_tensor(e, path, part, e->name[e->tensor_numel]));
        e->tensor[e->tensor_numel] =
            (tess_gguf_tensor){.name = e->name[e->tensor_numel],
                               .format = dt == TESS_F32   ? TESS_FORMAT_F32
                                         : dt == TESS_F16 ? TESS_FORMAT_F16
                                                          : TESS_FORMAT_BF16,
                               .dim_numel = 2,
                               .dim = {p->shape[0], p->shape[1]}};
        e->tensor_numel++;
    }
    return TESS_OK;
}

static tess_status start(gguf_export *e, const tess_export_request *request)
{
    const tess_session *s = e->s;
    const tess_llm_family family = s->d.config.family;
    char path[PATH_MAX];
    const tess_gguf_pair pair[] = {
        {"general.type", {.kind = TESS_GGUF_STRING, .text = "adapter"}},
        {"general.architecture",
         {.kind = TESS_GGUF_STRING,
          .text = tess_llm_family_name(family == TESS_LLM_MISTRAL ? TESS_LLM_LLAMA : family)}},
        {"adapter.type", {.kind = TESS_GGUF_STRING, .text = "lora"}},
        {"adapter.lora.alpha",
         {.kind = TESS_GGUF_F32, .f64 = tess_peft_spec_options(s->d.spec)->alpha}},
        {"tessera.base.identity", {.kind = TESS_GGUF_STRING, .text = s->base_id}},
    };
    TESS_CHECK(s->run->lora.init != TESS_RUN_START_PISSA &&
                   s->run->lora.init != TESS_RUN_START_LOFTQ,
               TESS_E_UNSUPPORTED,
               "export gguf: the adapter belongs to a base that took a part of its weights away "
               "(lora.init), which no GGUF file holds; write a peft adapter with --difference");
    TESS_TRY(list_tensors(e, request->dt));
    TESS_TRY(tess_io_mkdirs(s->ctx->io, request->dir));
    TESS_CHECK(snprintf(path, sizeof path, "%s/adapter.gguf", request->dir) < (int)sizeof path,
               TESS_E_ARG, "export folder: path is too long");
    return tess_gguf_writer_create(s->ctx->io, path, pair, TESS_NELEM(pair), e->tensor,
                                   e->tensor_numel, &e->writer);
}

static tess_status write_tensor(void *arg, int param_idx, const void *data, size_t nbytes)
{
    gguf_export *e = arg;
    const int64_t idx = e->tensor_of[param_idx];
    if (idx < 0)
        return TESS_OK;
    const tess_gguf_tensor *t = &e->tensor[idx];
    const bool is_b = t->name[strlen(t->name) - 1] == 'b';
    const int64_t head_dim = is_b ? tess_gguf_interleaved(&e->s->d.config, t->name) : 0;
    if (head_dim == 0)
        return tess_gguf_writer_append(e->writer, idx, data, nbytes);
    const size_t row_nbytes = nbytes / (size_t)t->dim[0];
    for (int64_t row = 0; row < t->dim[0]; row++)
        TESS_TRY(tess_gguf_writer_append(
            e->writer, idx,
            (const char *)data + (size_t)tess_gguf_hf_row(row, head_dim) * row_nbytes, row_nbytes));
    return TESS_OK;
}

tess_status session_export_gguf(tess_session *s, const tess_export_request *request)
{
    gguf_export e = {.s = s};
    const bool is_root = tess_comm_rank(s->world) == 0;
    tess_status st = session_agree(s, is_root ? start(&e, request) : TESS_OK);
    if (st == TESS_OK)
        st = session_collect(s, &(session_collection){.dt = request->dt, .sink = write_tensor}, &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? tess_gguf_writer_finish(e.writer) : TESS_OK);
    tess_gguf_writer_destroy(&e.writer);
    tess_free(e.tensor);
    tess_free(e.name);
    tess_free(e.tensor_of);
    return st;
}
