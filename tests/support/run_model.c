#include "tests/support/run_model.h"

#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

/* Bytes that read as NaN in f32, bf16 and f64: a value used before it is written shows up. */
enum { POISON = 0xff };

static tess_status lora_of(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    const tess_run_options *o = arg;
    if (o->spec != NULL) {
        const tess_peft_module module = {.path = path, .is_output_embedding = is_head};
        tess_peft_match match = {.is_target = false};
        TESS_TRY(tess_peft_spec_match(o->spec, &module, &match));
        if (match.is_target)
            *out = (tess_lora_choice){.rank = (int)match.rank,
                                      .scale = match.scale,
                                      .is_dora = tess_peft_spec_options(o->spec)->use_dora};
        return TESS_OK;
    }
    const size_t length = strlen(path),
                 suffix = o->lora_suffix == NULL ? 0 : strlen(o->lora_suffix);
    const bool is_wanted =
        is_head ? o->has_head_lora
                : length >= suffix &&
                      (suffix == 0 || strcmp(path + length - suffix, o->lora_suffix) == 0);
    out->rank = is_wanted ? o->lora_rank : 0;
    out->scale = is_wanted ? o->lora_alpha / o->lora_rank : 0.0;
    return TESS_OK;
}

static bool is_saved(void *arg, const char *name)
{
    const tess_run_options *o = arg;
    return o->spec != NULL && tess_peft_spec_saves(o->spec, name);
}

static tess_status codec_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                            tess_codec *out)
{
    const tess_run_options *o = arg;
    *out = is_linear && strcmp(p->name, "lm_head.weight") != 0 ? o->base : source;
    return TESS_OK;
}

static tess_status source_of(void *arg, const tess_param *p, tess_codec *out)
{
    const tess_run_options *o = arg;
    (void)p;
    *out = o->source;
    return TESS_OK;
}

static tess_status alloc_bytes(size_t nbytes, char **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(nbytes, &memory));
    memset(memory, POISON, nbytes);
    *out = memory;
    return TESS_OK;
}

static tess_status alloc_zero(int64_t numel, float **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(numel, sizeof(float), &memory));
    *out = memory;
    return TESS_OK;
}

static tess_status alloc_pointers(int numel, void *out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(numel, sizeof(void *), &memory));
    memcpy(out, &memory, sizeof memory);
    return TESS_OK;
}

static tess_status alloc_units(tess_run_model *run)
{
    const int numel = run->reg.unit_numel;
    void *const array[] = {&run->frozen,   &run->trainable, &run->master, &run->grad,
                           &run->grad_sum, &run->moment1,   &run->moment2};
    for (int i = 0; i < TESS_NELEM(array); i++)
        TESS_TRY(alloc_pointers(numel, array[i]));
    for (int u = 0; u < numel; u++) {
        const tess_unit *unit = &run->reg.unit[u];
        size_t nbytes = 0;
        TESS_TRY(tess_nbytes(run->options.compute_dt, unit->trainable_numel, &nbytes));
        TESS_TRY(alloc_bytes(unit->frozen_nbytes, &run->frozen[u]));
        TESS_TRY(alloc_bytes(nbytes, &run->trainable[u]));
        float **const f32[] = {&run->master[u], &run->grad[u], &run->grad_sum[u], &run->moment1[u],
                               &run->moment2[u]};
        for (int i = 0; i < TESS_NELEM(f32); i++)
            TESS_TRY(alloc_zero(unit->trainable_numel, f32[i]));
    }
    return TESS_OK;
}

static tess_status alloc_stages(tess_run_model *run)
{
    const int numel = run->reg.stage_numel;
    TESS_TRY(alloc_pointers(numel, &run->output));
    TESS_TRY(alloc_pointers(numel, &run->saved));
    for (int s = 0; s < numel; s++) {
        const tess_stage *stage = &run->reg.stage[s];
        run->output_max_nbytes = TESS_MAX(run->output_max_nbytes, stage->output_nbytes);
        run->saved_max_nbytes = TESS_MAX(run->saved_max_nbytes, stage->saved_nbytes);
        run->work_max_nbytes = TESS_MAX(run->work_max_nbytes, stage->work_nbytes);
        TESS_TRY(alloc_bytes(stage->output_nbytes, &run->output[s]));
        if (!run->options.is_recomputed)
            TESS_TRY(alloc_bytes(stage->saved_nbytes, &run->saved[s]));
    }
    if (run->options.is_recomputed)
        TESS_TRY(alloc_bytes(run->saved_max_nbytes, &run->saved[0]));
    TESS_TRY(alloc_bytes(run->work_max_nbytes, &run->work));
    TESS_TRY(alloc_bytes(run->output_max_nbytes, &run->d_ping));
    return alloc_bytes(run->output_max_nbytes, &run->d_pong);
}

static tess_status build(tess_run_model *run, const tess_llm_config *config)
{
    const tess_run_options *o = &run->options;
    TESS_TRY(tess_kernels_cpu_select(tess_cpu_path_best()));
    tess_registry_init(&run->reg, o->compute_dt);
    TESS_TRY(tess_pool_create(o->thread_numel, &run->pool));
    tess_stream_init_inline(&run->stream, "compute", run->pool);
    tess_host_device_init(&run->device, run->pool);
    const tess_model_options options = {.compute_dt = o->compute_dt,
                                        .kernels = o->kernels,
                                        .is_full = o->is_full,
                                        .sequence_length = o->sequence_length,
                                        .micro_batch = o->micro_batch,
                                        .thread_numel = o->thread_numel,
                                        .dropout = o->dropout,
                                        .lora_plus_ratio = 1.0,
                                        .arg = &run->options,
                                        .lora_of = lora_of,
                                        .is_saved = is_saved,
                                        .codec_of = codec_of,
                                        .source_of = source_of};
    TESS_TRY(tess_llama_create(config, &options, &run->reg, &run->model));
    TESS_TRY(alloc_units(run));
    return alloc_stages(run);
}

tess_status tess_run_model_create(const tess_llm_config *config, const tess_run_options *options,
                                  tess_run_model **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_run_model), &memory));
    tess_run_model *run = memory;
    run->options = *options;
    const tess_status st = build(run, config);
    if (st != TESS_OK)
        tess_run_model_destroy(&run);
    else
        *out = run;
    return st;
}

static void free_each(void *array_of_pointers, int numel)
{
    void **array = array_of_pointers;
    for (int i = 0; array != NULL && i < numel; i++)
        tess_free(array[i]);
    tess_free(array);
}

void tess_run_model_destroy(tess_run_model **run_ptr)
{
    tess_run_model *run = *run_ptr;
    if (run == NULL)
        return;
    void *const unit[] = {run->frozen,   run->trainable, run->master, run->grad,
                          run->grad_sum, run->moment1,   run->moment2};
    for (int i = 0; i < TESS_NELEM(unit); i++)
        free_each(unit[i], run->reg.unit_numel);
    free_each(run->output, run->reg.stage_numel);
    free_each(run->saved, run->reg.stage_numel);
    tess_free(run->work);
    tess_free(run->d_ping);
    tess_free(run->d_pong);
    tess_model_destroy(&run->model);
    tess_pool_destroy(&run->pool);
    tess_registry_fini(&run->reg);
    tess_free(run);
    *run_ptr = NULL;
}

static tess_status cast_to(tess_run_model *run, float *src, int64_t numel, tess_view dst)
{
    const tess_cast_args args = {.src = tess_view_host(src, numel, TESS_F32), .dst = dst};
    return tess_kernels_cpu.cast(&args, &run->stream);
}

static tess_status encode_nf4(tess_run_model *run, const tess_param *p, float *value)
{
    char *base = run->frozen[p->unit_idx];
    tess_quantize_args args = {.codec = p->codec,
                               .src = tess_view_host(value, p->numel, TESS_F32),
                               .tensor_name = p->name};
    for (int i = 0; i < p->part_numel; i++)
        args.part[i] = base + p->part_offset_nbytes[i];
    TESS_TRY(alloc_zero(tess_ceil_div(p->numel, p->codec.block_numel), &args.absmax_work));
    const tess_status st = tess_kernels_cpu.quantize(&args, &run->stream);
    tess_free(args.absmax_work);
    return st;
}

static tess_status encode(tess_run_model *run, const tess_param *p, float *value)
{
    if (p->role == TESS_ROLE_TRAINABLE) {
        memcpy(run->master[p->unit_idx] + p->slab_first_idx, value,
               (size_t)p->numel * sizeof(float));
        return TESS_OK;
    }
    if (tess_format_is_quantized(p->codec.format))
        return encode_nf4(run, p, value);
    const tess_dtype dt = p->codec.format == TESS_FORMAT_F32 ? TESS_F32 : TESS_BF16;
    return cast_to(
        run, value, p->numel,
        tess_view_host(run->frozen[p->unit_idx] + p->part_offset_nbytes[0], p->numel, dt));
}

tess_status tess_run_model_fill(tess_run_model *run, tess_run_value value, void *arg)
{
    for (int i = 0; i < run->reg.param_numel; i++) {
        const tess_param *p = &run->reg.param[i];
        float *buffer = NULL;
        TESS_TRY(alloc_zero(p->numel, &buffer));
        value(arg, p, buffer);
        const tess_status st = encode(run, p, buffer);
        tess_free(buffer);
        TESS_TRY(st);
    }
    for (int u = 0; u < run->reg.unit_numel; u++) {
        const int64_t numel = run->reg.unit[u].trainable_numel;
        if (numel > 0)
            TESS_TRY(cast_to(run, run->master[u], numel,
                             tess_view_host(run->trainable[u], numel, run->options.compute_dt)));
    }
    return TESS_OK;
}

static tess_view bytes_view(char *data, size_t nbytes)
{
    return tess_view_host(nbytes == 0 ? NULL : data, (int64_t)nbytes, TESS_U8_OPAQUE);
}

static const tess_kernels *kernels_of(const tess_run_model *run)
{
    return run->options.kernels != NULL ? run->options.kernels : &tess_kernels_cpu;
}

static tess_stage_call call_of(tess_run_model *run, int s, tess_call_mode mode,
                               const tess_token_batch *batch, int64_t number)
{
    const tess_stage *stage = &run->reg.stage[s];
    const int u = stage->unit_idx;
    tess_stage_call call = {.registry = &run->reg,
                            .kernels = kernels_of(run),
                            .device = &run->device.base,
                            .stream = &run->stream,
                            .stage_idx = s,
                            .mode = mode,
                            .seed = run->options.seed,
                            .micro_batch_idx = number,
                            .batch = batch,
                            .frozen = run->frozen[u],
                            .trainable = run->trainable[u],
                            .grad = run->grad[u]};
    call.output = bytes_view(run->output[s], stage->output_nbytes);
    call.saved = bytes_view(run->saved[run->options.is_recomputed ? 0 : s], stage->saved_nbytes);
    call.work = bytes_view(run->work, stage->work_nbytes);
    memset(run->work, POISON, stage->work_nbytes);
    if (s > 0)
        call.input = bytes_view(run->output[s - 1], run->reg.stage[s - 1].output_nbytes);
    return call;
}

static tess_status forward(tess_run_model *run, tess_call_mode mode, const tess_token_batch *batch,
                           int64_t number, double *loss_sum)
{
    const tess_stage_ops *ops = tess_model_stage_ops(run->model);
    for (int s = 0; s < run->reg.stage_numel; s++) {
        if (mode == TESS_CALL_TRAIN && run->reg.stage[s].is_fused_loss)
            continue;
        tess_stage_call call = call_of(run, s, mode, batch, number);
        call.loss_sum = loss_sum;
        memset(call.saved.data == NULL ? run->work : call.saved.data, POISON,
               call.saved.data == NULL ? 0 : tess_view_nbytes(call.saved));
        TESS_TRY(ops->forward(tess_model_self(run->model), &call));
    }
    return TESS_OK;
}

static tess_status repeat_forward(tess_run_model *run, int s, const tess_token_batch *batch,
                                  int64_t number)
{
    tess_stage_call call = call_of(run, s, TESS_CALL_TRAIN, batch, number);
    call.output = bytes_view(NULL, 0); /* only what backward reads */
    if (call.saved.data != NULL)
        memset(call.saved.data, POISON, tess_view_nbytes(call.saved));
    return tess_model_stage_ops(run->model)->forward(tess_model_self(run->model), &call);
}

static tess_status backward(tess_run_model *run, const tess_token_batch *batch, int64_t number,
                            float grad_scale, double *loss_sum)
{
    char *d_output = run->d_ping, *d_input = run->d_pong;
    for (int s = run->reg.stage_numel - 1; s >= 0; s--) {
        const tess_stage *stage = &run->reg.stage[s];
        if (run->options.is_recomputed && !stage->is_fused_loss)
            TESS_TRY(repeat_forward(run, s, batch, number));
        tess_stage_call call = call_of(run, s, TESS_CALL_TRAIN, batch, number);
        call.loss_sum = loss_sum;
        call.grad_scale = grad_scale;
        call.d_output = bytes_view(d_output, stage->output_nbytes);
        if (s > 0) {
            memset(d_input, POISON, run->output_max_nbytes);
            call.d_input = bytes_view(d_input, run->reg.stage[s - 1].output_nbytes);
        }
        TESS_TRY(tess_model_stage_ops(run->model)->backward(tess_model_self(run->model), &call));
        char *const swap = d_output;
        d_output = d_input;
        d_input = swap;
    }
    return TESS_OK;
}

static int64_t label_numel(const tess_token_batch *batch)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < batch->token_numel; i++)
        numel += batch->labels[i] >= 0;
    return numel;
}

static tess_status add_grads(tess_run_model *run)
{
    for (int u = 0; u < run->reg.unit_numel; u++) {
        const tess_fold_args args = {.a = run->grad_sum[u],
                                     .b = run->grad[u],
                                     .dst = run->grad_sum[u],
                                     .numel = run->reg.unit[u].trainable_numel};
        if (args.numel > 0)
            TESS_TRY(tess_kernels_cpu.fold(&args, &run->stream));
    }
    return TESS_OK;
}

static void zero(tess_run_model *run, float **array)
{
    for (int u = 0; u < run->reg.unit_numel; u++)
        memset(array[u], 0, (size_t)run->reg.unit[u].trainable_numel * sizeof(float));
}

tess_status tess_run_model_step(tess_run_model *run, const tess_token_batch *batch,
                                const int64_t *number, int batch_numel, double *loss_sum)
{
    int64_t total_numel = 0;
    for (int i = 0; i < batch_numel; i++)
        total_numel += label_numel(&batch[i]);
    zero(run, run->grad_sum);
    for (int i = 0; i < batch_numel; i++) {
        zero(run, run->grad);
        tess_alloc_freeze();
        tess_status st = forward(run, TESS_CALL_TRAIN, &batch[i], number[i], NULL);
        if (st == TESS_OK)
            st = backward(run, &batch[i], number[i], (float)(1.0 / (double)total_numel),
                          &loss_sum[i]);
        tess_alloc_thaw();
        TESS_TRY(st);
        TESS_TRY(add_grads(run));
    }
    return TESS_OK;
}

tess_status tess_run_model_eval(tess_run_model *run, const tess_token_batch *batch,
                                double *loss_sum)
{
    return forward(run, TESS_CALL_EVAL, batch, 0, loss_sum);
}

tess_status tess_run_model_logits(tess_run_model *run, const tess_token_batch *batch,
                                  int64_t row_idx, float *logits)
{
    tess_token_batch copy = *batch;
    copy.logits_token_idx = row_idx;
    copy.logits = logits;
    return forward(run, TESS_CALL_LOGITS, &copy, 0, NULL);
}

tess_status tess_run_model_adamw(tess_run_model *run, int64_t step, double lr, double clip,
                                 double weight_decay, double *norm)
{
    double sum = 0.0;
    for (int i = 0; i < run->reg.param_numel; i++) {
        int64_t numel = 0;
        const float *grad = tess_run_model_grad(run, run->reg.param[i].name, &numel);
        for (int64_t k = 0; grad != NULL && k < numel; k++)
            sum += (double)grad[k] * (double)grad[k];
    }
    *norm = sqrt(sum);
    for (int i = 0; i < run->reg.param_numel; i++) {
        const tess_param *p = &run->reg.param[i];
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        const int u = p->unit_idx;
        const int64_t first = p->slab_first_idx;
        const size_t elem_nbytes = tess_dtype_block_nbytes(run->options.compute_dt);
        const tess_adamw_args args = {
            .master = run->master[u] + first,
            .exp_avg = run->moment1[u] + first,
            .exp_avg_sq = run->moment2[u] + first,
            .grad = run->grad_sum[u] + first,
            .param = tess_view_host(run->trainable[u] + (size_t)first * elem_nbytes, p->numel,
                                    run->options.compute_dt),
            .numel = p->numel,
            .clip_factor = (float)fmin(1.0, clip / (*norm + 1e-6)),
            .learning_rate = lr * p->learning_rate_ratio,
            .beta1 = 0.9,
            .beta2 = 0.999,
            .eps = 1e-8,
            .weight_decay = p->has_weight_decay ? weight_decay : 0.0,
            .step = step};
        TESS_TRY(tess_kernels_cpu.adamw(&args, &run->stream));
    }
    return TESS_OK;
}

const float *tess_run_model_grad(const tess_run_model *run, const char *name, int64_t *numel)
{
    const int i = tess_registry_find(&run->reg, name);
    if (i < 0 || run->reg.param[i].role != TESS_ROLE_TRAINABLE)
        return NULL;
    *numel = run->reg.param[i].numel;
    return run->grad_sum[run->reg.param[i].unit_idx] + run->reg.param[i].slab_first_idx;
}
