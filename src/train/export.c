/*
 * What a run made, for other programs: a PEFT adapter, or a Hugging Face model directory.
 *
 * Rank 0 writes. Tensors come to it one by one through the WORK arena: it never holds more than the
 * largest.
 */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "train/session_priv.h"

/* ---- one tensor to rank 0 ---- */

static tess_view shard_of(tess_session *s, const tess_param *p, tess_dtype dt)
{
    return dt == s->d.registry.compute_dt
               ? tess_runtime_param_shard(s->rt, p->unit_idx)
               : tess_runtime_state(s->rt, p->unit_idx, TESS_STATE_MASTER);
}

static bool overlap(const tess_session *s, const tess_param *p, int rank, int64_t *first,
                    int64_t *numel)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(s->d.plan, p->unit_idx, rank, &lo, &hi);
    *first = TESS_MAX(lo, p->slab_first_idx);
    *numel = TESS_MIN(hi, p->slab_first_idx + p->numel) - *first;
    return *numel > 0;
}

/* Collective. `dst` [numel] dt on rank 0; `pieces` has room for one piece a rank. */
static tess_status collect(tess_session *s, const tess_param *p, tess_view dst, tess_view own,
                           tess_piece *pieces)
{
    const int rank = tess_comm_rank(s->world);
    const tess_wire wire = {.op = TESS_COMM_EXCHANGE,
                            .entry_idx = UINT32_MAX,
                            .storage = dst.dt,
                            .wire = dst.dt,
                            .accumulate = dst.dt,
                            .name = "export",
                            .config_key = "output.export"};
    tess_piece send = {0};
    int64_t first = 0, numel = 0, lo = 0, hi = 0;
    tess_status copied = TESS_OK;
    int send_numel = 0, receive_numel = 0;
    tess_plan_owned(s->d.plan, p->unit_idx, rank, &lo, &hi);
    if (overlap(s, p, rank, &first, &numel)) {
        send = (tess_piece){0, tess_view_slice(shard_of(s, p, dst.dt), first - lo, numel)};
        send_numel = 1;
        if (send.view.space != TESS_HOST) {
            own.numel = numel;
            own.dt = dst.dt;
            copied = tess_runtime_copy(s->rt, own, send.view);
            send.view = own; /* also when it failed: peers wait for the piece */
        }
    }
    for (int peer = 0; rank == 0 && peer < tess_comm_world(s->world); peer++)
        if (overlap(s, p, peer, &first, &numel))
            pieces[receive_numel++] =
                (tess_piece){peer, tess_view_slice(dst, first - p->slab_first_idx, numel)};
    tess_comm *world = tess_comm_host(s->world);
    tess_stream *stream = tess_comm_reduce_stream(world);
    TESS_TRY(tess_comm_exchange(world, &wire, &send, send_numel, pieces, receive_numel, stream));
    TESS_TRY(tess_stream_finish(stream));
    return copied;
}

/* In place: what is written lies never behind what is still to be read. */
static tess_status round_to_half(const tess_param *p, tess_view *v)
{
    char *bytes = v->data;
    for (int64_t i = 0; i < v->numel; i++) {
        float x;
        memcpy(&x, bytes + i * 4, sizeof x);
        const uint16_t half = tess_f16_from_f32(x);
        TESS_CHECK((half & 0x7fff) < 0x7c00, TESS_E_RANGE,
                   "export of '%s': element %lld is %g, beyond the range of f16 (65504); export "
                   "bf16 or f32",
                   p->name, (long long)i, (double)x);
        memcpy(bytes + i * 2, &half, sizeof half);
    }
    v->dt = TESS_F16;
    return TESS_OK;
}

tess_status session_collect(tess_session *s, tess_dtype dt, session_tensor_sink sink, void *arg)
{
    const tess_dtype held = dt == TESS_F16 ? TESS_F32 : dt; /* fp16 is rounded from the masters */
    void *pieces = NULL;
    tess_view work = {0};
    tess_status st = tess_runtime_host_work(s->rt, &work);
    if (st == TESS_OK)
        st = tess_alloc_array(tess_comm_world(s->world), sizeof(tess_piece), &pieces);
    TESS_TRY(session_agree(s, st));
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++) {
        const tess_param *p = &s->d.registry.param[i];
        tess_view dst = tess_view_host(work.data, p->numel, held);
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        if (tess_view_nbytes(dst) > (size_t)work.numel)
            st = TESS_FAIL(TESS_E_FIT,
                           "export of '%s' needs %zu bytes of staging, the plan has %lld", p->name,
                           tess_view_nbytes(dst), (long long)work.numel);
        else
            st = collect(s, p, dst, tess_view_slice(work, work.numel / 2, 0), pieces);
        const bool is_root = st == TESS_OK && tess_comm_rank(s->world) == 0;
        if (is_root && dt == TESS_F16)
            st = round_to_half(p, &dst);
        if (is_root && st == TESS_OK)
            st = sink(arg, i, dst.data, tess_view_nbytes(dst));
        st = session_agree(s, st);
    }
    tess_free(pieces);
    return st;
}

/* ---- PEFT ---- */

typedef struct peft_export {
    tess_session *s;
    tess_peft_adapter *adapter;
    char (*path)[TESS_NAME_NBYTES];
    int64_t adapter_numel;
    tess_peft_saved *saved; /* tensors of modules that are trained whole */
    int64_t saved_numel;
    tess_peft_writer *writer;
} peft_export;

bool session_parse_lora(const char *name, char path[TESS_NAME_NBYTES], tess_peft_part *part)
{
    static const char *const suffix[] = {[TESS_PEFT_A] = ".lora_A.weight",
                                         [TESS_PEFT_B] = ".lora_B.weight",
                                         [TESS_PEFT_MAGNITUDE] = ".lora_magnitude_vector"};
    const size_t nbytes = strlen(name);
    for (int i = 0; i < TESS_NELEM(suffix); i++) {
        const size_t end = strlen(suffix[i]);
        if (nbytes > end && strcmp(name + nbytes - end, suffix[i]) == 0) {
            snprintf(path, TESS_NAME_NBYTES, "%.*s", (int)(nbytes - end), name);
            *part = (tess_peft_part)i;
            return true;
        }
    }
    return false;
}

static int64_t adapter_of(const peft_export *e, const char *path)
{
    for (int64_t i = 0; i < e->adapter_numel; i++)
        if (strcmp(e->path[i], path) == 0)
            return i;
    return -1;
}

static tess_status list_adapters(peft_export *e)
{
    const tess_registry *reg = &e->s->d.registry;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->adapter, (void **)&e->adapter));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->path, (void **)&e->path));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->saved, (void **)&e->saved));
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        char path[TESS_NAME_NBYTES];
        tess_peft_part part = TESS_PEFT_A;
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        if (!session_parse_lora(p->name, path, &part)) {
            e->saved[e->saved_numel++] =
                (tess_peft_saved){p->name, p->shape_rank, {p->shape[0], p->shape[1]}};
            continue;
        }
        int64_t at = adapter_of(e, path);
        if (at < 0) {
            at = e->adapter_numel++;
            snprintf(e->path[at], TESS_NAME_NBYTES, "%s", path);
            e->adapter[at].path = e->path[at];
        }
        if (part == TESS_PEFT_A) {
            e->adapter[at].rank = p->shape[0];
            e->adapter[at].in_numel = p->shape[1];
        } else {
            e->adapter[at].out_numel = p->shape[0]; /* of B and of the magnitude */
        }
    }
    return TESS_OK;
}

/* Format of most frozen weights: that of the first quantized one, else of the first. */
static void describe_base(const tess_session *s, char text[TESS_CODEC_TEXT_NBYTES])
{
    snprintf(text, TESS_CODEC_TEXT_NBYTES, "none");
    for (int i = s->d.registry.param_numel - 1; i >= 0; i--) {
        const tess_param *p = &s->d.registry.param[i];
        if (p->role == TESS_ROLE_FROZEN && p->shape_rank == 2 &&
            (tess_format_is_quantized(p->codec.format) || strcmp(text, "none") == 0))
            tess_codec_describe(&p->codec, text);
    }
}

static tess_status start_peft(peft_export *e, const tess_export_request *request)
{
    tess_session *s = e->s;
    char base_quant[TESS_CODEC_TEXT_NBYTES];
    TESS_TRY(list_adapters(e));
    describe_base(s, base_quant);
    const tess_peft_content content = {
        .spec = s->d.spec,
        .adapter = e->adapter,
        .adapter_numel = e->adapter_numel,
        .saved = e->saved,
        .saved_numel = e->saved_numel,
        .dt = request->dt,
        .identity = {.base_name = s->run->model.path,
                     .base_quant = base_quant,
                     .base_id = s->base_id,
                     .base_previous = s->base_previous,
                     .compute_dtype = tess_dtype_name(s->d.registry.compute_dt),
                     .master_dtype = "f32"}};
    TESS_TRY(tess_io_mkdirs(s->ctx->io, request->dir));
    return tess_peft_writer_create(s->ctx->io, request->dir, &content, &e->writer);
}

static tess_status write_peft_tensor(void *arg, int param_idx, const void *data, size_t nbytes)
{
    peft_export *e = arg;
    const char *name = e->s->d.registry.param[param_idx].name;
    char path[TESS_NAME_NBYTES];
    tess_peft_part part = TESS_PEFT_A;
    int64_t idx = 0;
    if (session_parse_lora(name, path, &part))
        return tess_peft_writer_append(e->writer, adapter_of(e, path), part, data, nbytes);
    while (idx < e->saved_numel && strcmp(e->saved[idx].name, name) != 0)
        idx++;
    return tess_peft_writer_append_saved(e->writer, idx, data, nbytes);
}

static tess_status export_peft(tess_session *s, const tess_export_request *request)
{
    peft_export e = {.s = s};
    const bool is_root = tess_comm_rank(s->world) == 0;
    tess_status st = session_agree(s, is_root ? start_peft(&e, request) : TESS_OK);
    if (st == TESS_OK)
        st = session_collect(s, request->dt, write_peft_tensor, &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? tess_peft_writer_finish(e.writer) : TESS_OK);
    tess_peft_writer_destroy(&e.writer);
    tess_free(e.adapter);
    tess_free(e.path);
    tess_free(e.saved);
    return st;
}

/* ---- Hugging Face directory ---- */

typedef struct hf_export {
    tess_session *s;
    tess_st_tensor *tensor;
    int64_t tensor_numel;
    int64_t *tensor_of; /* [param_numel] */
    tess_safetensors_writer *writer;
} hf_export;

static tess_status list_tensors(hf_export *e, tess_dtype dt)
{
    const tess_registry *reg = &e->s->d.registry;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->tensor, (void **)&e->tensor));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->tensor_of, (void **)&e->tensor_of));
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        tess_st_tensor *t = &e->tensor[e->tensor_numel];
        TESS_CHECK(
            p->role == TESS_ROLE_TRAINABLE, TESS_E_UNSUPPORTED,
            "export hf: tensor '%s' is frozen; only a fully trained model is written as a whole",
            p->name);
        e->tensor_of[i] = e->tensor_numel++;
        t->name = p->name;
        TESS_TRY(tess_st_dtype_from_core(dt, &t->dtype));
        t->dim_numel = p->shape_rank;
        for (int k = 0; k < p->shape_rank; k++)
            t->dim[k] = p->shape[k];
    }
    return TESS_OK;
}

static tess_status start_hf(hf_export *e, const tess_export_request *request)
{
    tess_session *s = e->s;
    char path[PATH_MAX];
    const tess_st_pair metadata = {"format", "pt"};
    TESS_TRY(tess_io_mkdirs(s->ctx->io, request->dir));
    TESS_TRY(tess_hf_config_write(s->ctx->io, request->dir, &s->d.config,
                                  request->dt == TESS_F32   ? "float32"
                                  : request->dt == TESS_F16 ? "float16"
                                                            : "bfloat16"));
    TESS_TRY(list_tensors(e, request->dt));
    const int n = snprintf(path, sizeof path, "%s/model.safetensors", request->dir);
    TESS_CHECK(n > 0 && n < (int)sizeof path, TESS_E_ARG, "export folder: path is too long");
    return tess_safetensors_writer_create(s->ctx->io, path, e->tensor, e->tensor_numel, &metadata,
                                          1, &e->writer);
}

static tess_status write_hf_tensor(void *arg, int param_idx, const void *data, size_t nbytes)
{
    hf_export *e = arg;
    return tess_safetensors_writer_append(e->writer, e->tensor_of[param_idx], data, nbytes);
}

static tess_status finish_hf(hf_export *e, const tess_export_request *request)
{
    TESS_TRY(tess_safetensors_writer_finish(e->writer));
    return session_keep_tokenizer(e->s, request->dir);
}

static tess_status export_hf(tess_session *s, const tess_export_request *request)
{
    hf_export e = {.s = s};
    const bool is_root = tess_comm_rank(s->world) == 0;
    tess_status st = session_agree(s, is_root ? start_hf(&e, request) : TESS_OK);
    if (st == TESS_OK)
        st = session_collect(s, request->dt, write_hf_tensor, &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? finish_hf(&e, request) : TESS_OK);
    tess_safetensors_writer_destroy(&e.writer);
    tess_free(e.tensor);
    tess_free(e.tensor_of);
    return st;
}

tess_status tess_session_export(tess_session *s, const tess_export_request *request)
{
    const bool is_full = s->run->train.mode == TESS_RUN_MODE_FULL;
    TESS_CHECK(request->dt == TESS_F32 || request->dt == TESS_F16 ||
                   request->dt == s->d.registry.compute_dt,
               TESS_E_ARG,
               "export dtype %s: expected %s (the copy that was evaluated), f32 (the masters) or "
               "f16 (the masters, rounded)",
               tess_dtype_name(request->dt), tess_dtype_name(s->d.registry.compute_dt));
    TESS_CHECK(request->format != TESS_RUN_EXPORT_PEFT || !is_full, TESS_E_CONFIG,
               "export peft: the run trains every weight and has no adapter; use hf");
    TESS_CHECK(request->format != TESS_RUN_EXPORT_HF || is_full, TESS_E_CONFIG,
               "export hf: the run trains an adapter; use peft");
    const bool is_gguf = request->format == TESS_RUN_EXPORT_GGUF;
    TESS_CHECK(!is_gguf || !is_full, TESS_E_CONFIG,
               "export gguf: the run trains every weight and has no adapter; use hf");
    TESS_TRY(is_full   ? export_hf(s, request)
             : is_gguf ? session_export_gguf(s, request)
                       : export_peft(s, request));
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "exported %s to '%s' (%s)",
                  is_full ? "model" : "adapter", request->dir, tess_dtype_name(request->dt));
    return TESS_OK;
}
