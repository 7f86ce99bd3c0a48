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
#include "format/adapter.h"
#include "train/session_priv.h"

/* ---- one tensor to rank 0 ---- */

static tess_view shard_of(tess_session *s, const tess_param *p, tess_dtype dt)
{
    if (p->role == TESS_ROLE_FROZEN) { /* plain f32, as session_collect() asks */
        tess_view bytes = tess_runtime_frozen_shard(s->rt, p->unit_idx);
        bytes.numel /= (int64_t)sizeof(float);
        bytes.dt = TESS_F32;
        return bytes;
    }
    return dt == s->d.registry.compute_dt
               ? tess_runtime_param_shard(s->rt, p->unit_idx)
               : tess_runtime_state(s->rt, p->unit_idx,
                                    tess_runtime_weights_array(s->rt, s->shown));
}

/* Elements [lo, hi) of a slab, or of the unit's byte string in elements of f32, that `rank` sends:
 * of the copies of a string the first group's. `at` is where the tensor begins there. */
static void owned(const tess_session *s, const tess_param *p, int rank, int64_t range[2],
                  int64_t *at)
{
    const tess_plan *plan = s->d.plan;
    *at = p->slab_first_idx;
    if (p->role == TESS_ROLE_TRAINABLE) {
        tess_plan_owned(plan, p->unit_idx, rank, &range[0], &range[1]);
        return;
    }
    const int64_t shard = (int64_t)(plan->unit[p->unit_idx].frozen_shard_nbytes / sizeof(float));
    const bool is_first = rank < plan->options.gather_group_numel;
    *at = (int64_t)(p->part_offset_nbytes[0] / sizeof(float));
    range[0] = shard * rank;
    range[1] = is_first ? shard * (rank + 1) : range[0];
}

static bool overlap(const tess_session *s, const tess_param *p, int rank, int64_t *first,
                    int64_t *numel)
{
    int64_t range[2] = {0, 0}, at = 0;
    owned(s, p, rank, range, &at);
    *first = TESS_MAX(range[0], at);
    *numel = TESS_MIN(range[1], at + p->numel) - *first;
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
    int64_t first = 0, numel = 0, range[2] = {0, 0}, at = 0;
    tess_status copied = TESS_OK;
    int send_numel = 0, receive_numel = 0;
    owned(s, p, rank, range, &at);
    if (overlap(s, p, rank, &first, &numel)) {
        send = (tess_piece){0, tess_view_slice(shard_of(s, p, dst.dt), first - range[0], numel)};
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
            pieces[receive_numel++] = (tess_piece){peer, tess_view_slice(dst, first - at, numel)};
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

bool session_is_initial(const tess_param *p)
{
    return p->role == TESS_ROLE_FROZEN && p->init == TESS_INIT_DERIVED;
}

tess_status session_collect(tess_session *s, const session_collection *what, void *arg)
{
    /* fp16 is rounded from the masters */
    const tess_dtype held = what->dt == TESS_F16 ? TESS_F32 : what->dt;
    void *pieces = NULL;
    tess_view work = {0};
    tess_status st = tess_runtime_host_work(s->rt, &work);
    if (st == TESS_OK)
        st = tess_alloc_array(tess_comm_world(s->world), sizeof(tess_piece), &pieces);
    TESS_TRY(session_agree(s, st));
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++) {
        const tess_param *p = &s->d.registry.param[i];
        const bool is_wanted_initial = what->wants_initial && session_is_initial(p);
        tess_view dst = tess_view_host(work.data, p->numel, is_wanted_initial ? TESS_F32 : held);
        if (p->role != TESS_ROLE_TRAINABLE && !is_wanted_initial)
            continue;
        if (tess_view_nbytes(dst) > (size_t)work.numel)
            st = TESS_FAIL(TESS_E_FIT,
                           "export of '%s' needs %zu bytes of staging, the plan has %lld", p->name,
                           tess_view_nbytes(dst), (long long)work.numel);
        else
            st = collect(s, p, dst, tess_view_slice(work, work.numel / 2, 0), pieces);
        const bool is_root = st == TESS_OK && tess_comm_rank(s->world) == 0;
        if (is_root && what->dt == TESS_F16)
            st = round_to_half(p, &dst);
        if (is_root && st == TESS_OK)
            st = what->sink(arg, i, dst.data, tess_view_nbytes(dst));
        st = session_agree(s, st);
    }
    tess_free(pieces);
    return st;
}

/* ---- other dialects ---- */

/* The dialect of a form that is not written directly; TESS_ADAPTER_PEFT for the others. */
static tess_adapter_dialect dialect_of(tess_run_export form)
{
    return form == TESS_RUN_EXPORT_GGUF        ? TESS_ADAPTER_GGUF
           : form == TESS_RUN_EXPORT_DIFFUSERS ? TESS_ADAPTER_DIFFUSERS
           : form == TESS_RUN_EXPORT_KOHYA     ? TESS_ADAPTER_KOHYA
           : form == TESS_RUN_EXPORT_COMFYUI   ? TESS_ADAPTER_COMFYUI
                                               : TESS_ADAPTER_PEFT;
}

/* What no adapter in one file says is refused before anything is written. Local. */
static tess_status check_dialect(const tess_session *s, tess_adapter_dialect dialect)
{
    const tess_registry *reg = &s->d.registry;
    const char *name = tess_adapter_dialect_name(dialect);
    const bool has_magnitudes = dialect == TESS_ADAPTER_DIFFUSERS || dialect == TESS_ADAPTER_KOHYA;
    TESS_CHECK(s->run->lora.init != TESS_RUN_START_PISSA &&
                   s->run->lora.init != TESS_RUN_START_LOFTQ,
               TESS_E_UNSUPPORTED,
               "export %s: the adapter belongs to a base that took a part of its weights away "
               "(lora.init), which no such file holds; write a peft adapter with --difference",
               name);
    for (int i = 0; i < reg->param_numel; i++) {
        char path[TESS_NAME_NBYTES];
        tess_peft_part part = TESS_PEFT_A;
        if (reg->param[i].role != TESS_ROLE_TRAINABLE)
            continue;
        const bool is_of_module = !session_parse_lora(reg->param[i].name, path, &part);
        TESS_CHECK(!is_of_module && (has_magnitudes || part != TESS_PEFT_MAGNITUDE),
                   TESS_E_UNSUPPORTED,
                   "export %s: such an adapter has no place for '%s' (%s); use peft%s", name,
                   reg->param[i].name, is_of_module ? "lora.modules_to_save" : "lora.dora",
                   !is_of_module && dialect == TESS_ADAPTER_COMFYUI ? " or diffusers" : "");
    }
    return TESS_OK;
}

/* Rank 0: the staged directory as one file of the dialect beside it; then the directory goes, also
 * where there was no file to be made of it. */
static tess_status convert_staged(const tess_session *s, const tess_export_request *request,
                                  const char *staged)
{
    static const char *const file[] = {"adapter_config.json", "adapter_model.safetensors"};
    const tess_adapter_target to = {
        .dialect = dialect_of(request->format), .dt = request->dt, .base = &s->d.config};
    tess_adapter *adapter = NULL;
    char path[PATH_MAX + 32];
    tess_status st = tess_adapter_open(s->ctx->io, staged, NULL, &adapter);
    if (st == TESS_OK)
        st = tess_adapter_write(s->ctx->io, adapter, &to, request->dir);
    tess_adapter_close(&adapter);
    for (int i = 0; i < TESS_NELEM(file); i++) {
        snprintf(path, sizeof path, "%s/%s", staged, file[i]);
        const tess_status gone = tess_io_unlink(s->ctx->io, path, false);
        st = st != TESS_OK ? st : gone;
    }
    const tess_status gone = tess_io_rmdir(s->ctx->io, staged);
    return st != TESS_OK ? st : gone;
}

/* The masters go through a PEFT directory, so that there is one writer of each dialect, and what it
 * folds is rounded once. */
static tess_status export_dialect(tess_session *s, const tess_export_request *request)
{
    char staged[PATH_MAX];
    const int n = snprintf(staged, sizeof staged, "%s/peft.tmp", request->dir);
    TESS_CHECK(n > 0 && n < (int)sizeof staged, TESS_E_ARG, "export folder: path is too long");
    TESS_TRY(check_dialect(s, dialect_of(request->format)));
    const tess_export_request masters = {
        .dir = staged, .format = TESS_RUN_EXPORT_PEFT, .dt = TESS_F32};
    TESS_TRY(session_export_peft(s, &masters));
    return session_agree(s, tess_comm_rank(s->world) == 0 ? convert_staged(s, request, staged)
                                                          : TESS_OK);
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

static tess_status open_tensors(hf_export *e, const char *dir, tess_dtype dt)
{
    char path[PATH_MAX];
    const tess_st_pair metadata = {"format", "pt"};
    TESS_TRY(list_tensors(e, dt));
    const int n = snprintf(path, sizeof path, "%s/%s.safetensors", dir,
                           tess_run_is_flux(e->s->run) ? "diffusion_pytorch_model" : "model");
    TESS_CHECK(n > 0 && n < (int)sizeof path, TESS_E_ARG, "export folder: path is too long");
    return tess_safetensors_writer_create(e->s->ctx->io, path, e->tensor, e->tensor_numel,
                                          &metadata, 1, &e->writer);
}

static tess_status write_flux_config(const tess_session *s, const char *dir)
{
    char path[PATH_MAX];
    tess_json *root = NULL;
    TESS_CHECK(snprintf(path, sizeof path, "%s/config.json", dir) < (int)sizeof path, TESS_E_ARG,
               "export folder: path is too long");
    TESS_TRY(tess_flux_config_json(&s->d.flux, &root));
    const tess_status st = tess_json_write(s->ctx->io, path, root, 2);
    tess_json_destroy(&root);
    return st;
}

static tess_status start_hf(hf_export *e, const tess_export_request *request)
{
    tess_session *s = e->s;
    TESS_TRY(tess_io_mkdirs(s->ctx->io, request->dir));
    if (tess_run_is_flux(s->run)) {
        TESS_TRY(write_flux_config(s, request->dir));
        return open_tensors(e, request->dir, request->dt);
    }
    TESS_TRY(tess_hf_config_write(s->ctx->io, request->dir, &s->d.config,
                                  request->dt == TESS_F32   ? "float32"
                                  : request->dt == TESS_F16 ? "float16"
                                                            : "bfloat16"));
    return open_tensors(e, request->dir, request->dt);
}

static tess_status write_hf_tensor(void *arg, int param_idx, const void *data, size_t nbytes)
{
    hf_export *e = arg;
    return tess_safetensors_writer_append(e->writer, e->tensor_of[param_idx], data, nbytes);
}

static tess_status finish_hf(hf_export *e, const tess_export_request *request)
{
    TESS_TRY(tess_safetensors_writer_finish(e->writer));
    return tess_run_is_flux(e->s->run) ? TESS_OK : session_keep_tokenizer(e->s, request->dir);
}

static void close_hf(hf_export *e)
{
    tess_safetensors_writer_destroy(&e->writer);
    tess_free(e->tensor);
    tess_free(e->tensor_of);
}

static tess_status export_hf(tess_session *s, const tess_export_request *request)
{
    hf_export e = {.s = s};
    const bool is_root = tess_comm_rank(s->world) == 0;
    tess_status st = session_agree(s, is_root ? start_hf(&e, request) : TESS_OK);
    if (st == TESS_OK)
        st = session_collect(s, &(session_collection){.dt = request->dt, .sink = write_hf_tensor},
                             &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? finish_hf(&e, request) : TESS_OK);
    close_hf(&e);
    return st;
}

tess_status session_export_tensors(tess_session *s, const char *dir, tess_run_weights weights)
{
    hf_export e = {.s = s};
    const bool is_root = tess_comm_rank(s->world) == 0;
    const tess_weights before = s->shown;
    TESS_TRY(session_show(s, session_weights(weights)));
    tess_status st = is_root ? tess_io_mkdirs(s->ctx->io, dir) : TESS_OK;
    if (is_root && st == TESS_OK)
        st = open_tensors(&e, dir, TESS_F32);
    st = session_agree(s, st);
    if (st == TESS_OK)
        st = session_collect(s, &(session_collection){.dt = TESS_F32, .sink = write_hf_tensor}, &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? tess_safetensors_writer_finish(e.writer) : TESS_OK);
    close_hf(&e);
    TESS_TRY(st);
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "exported model to '%s' (f32)", dir);
    return session_show(s, before);
}

tess_status tess_session_export(tess_session *s, const tess_export_request *wanted)
{
    TESS_CHECK(s->vectors == NULL, TESS_E_UNSUPPORTED,
               "export: the run trains codebooks over vectors: use tessera encode and decode");
    if (tess_run_is_rqvae(s->run)) {
        TESS_CHECK(
            wanted->format == TESS_RUN_EXPORT_AUTO && !wanted->is_difference, TESS_E_UNSUPPORTED,
            "export: an rqvae is written as all its tensors in f32, model.safetensors: leave "
            "out --format and --difference");
        return session_export_tensors(s, wanted->dir, wanted->weights);
    }
    const bool is_full = s->run->train.mode == TESS_RUN_MODE_FULL;
    tess_export_request resolved = *wanted;
    if (wanted->format == TESS_RUN_EXPORT_AUTO)
        resolved.format = is_full                    ? TESS_RUN_EXPORT_HF
                          : tess_run_is_flux(s->run) ? TESS_RUN_EXPORT_DIFFUSERS
                                                     : TESS_RUN_EXPORT_PEFT;
    const tess_export_request *request = &resolved;
    TESS_CHECK(request->dt == TESS_F32 || request->dt == TESS_F16 ||
                   request->dt == s->d.registry.compute_dt,
               TESS_E_ARG,
               "export dtype %s: expected %s (the copy that was evaluated), f32 (the masters) or "
               "f16 (the masters, rounded)",
               tess_dtype_name(request->dt), tess_dtype_name(s->d.registry.compute_dt));
    const bool is_peft = request->format == TESS_RUN_EXPORT_PEFT;
    const bool is_dialect = dialect_of(request->format) != TESS_ADAPTER_PEFT;
    const bool is_gguf = request->format == TESS_RUN_EXPORT_GGUF;
    TESS_CHECK(!(is_peft || is_dialect) || !is_full, TESS_E_CONFIG,
               "export: the run trains every weight and has no adapter; use hf");
    TESS_CHECK(!is_dialect || is_gguf != tess_run_is_flux(s->run), TESS_E_CONFIG,
               "export %s: that is no form of adapters of the family '%s'",
               tess_adapter_dialect_name(dialect_of(request->format)), s->d.family_name);
    TESS_CHECK(request->format != TESS_RUN_EXPORT_HF || is_full, TESS_E_CONFIG,
               "export hf: the run trains an adapter; use peft");
    const bool is_derived =
        s->run->lora.init == TESS_RUN_START_PISSA || s->run->lora.init == TESS_RUN_START_LOFTQ;
    TESS_CHECK(!request->is_difference || (!is_full && is_derived), TESS_E_CONFIG,
               "export --difference: the run's adapter does not start from the weights (lora.init "
               "pissa or loftq), so it belongs to them as it is; leave the option out");
    TESS_CHECK(!request->is_difference || (!is_dialect && request->dt != TESS_F16),
               TESS_E_UNSUPPORTED,
               "export --difference: expected peft in bf16 or f32; gguf has no place for its scale "
               "and f16 would round the two nearly equal halves apart");
    TESS_CHECK(request->weights != TESS_RUN_WEIGHTS_EMA || s->run->train.ema_decay > 0.0,
               TESS_E_CONFIG,
               "export of ema weights: the run keeps no average (train.ema_decay is 0)");
    const tess_weights before = s->shown;
    TESS_TRY(session_show(s, session_weights(request->weights)));
    TESS_TRY(is_full      ? export_hf(s, request)
             : is_dialect ? export_dialect(s, request)
                          : session_export_peft(s, request));
    TESS_TRY(session_show(s, before));
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "exported %s to '%s' (%s)",
                  is_full ? "model" : "adapter", request->dir, tess_dtype_name(request->dt));
    return TESS_OK;
}
