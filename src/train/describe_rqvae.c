#include "train/describe_rqvae.h"

#include <inttypes.h>

#include "core/arith.h"
#include "core/exact.h"
#include "core/memory.h"
#include "model/rqvae.h"
#include "train/rqvae_codes.h"
#include "train/vectors.h"

static tess_status place(size_t *at, int64_t rows, int64_t cols, size_t elem_nbytes, size_t *out)
{
    int64_t numel = 0, nbytes = 0;
    TESS_TRY(tess_mul_i64(rows, cols, &numel));
    TESS_TRY(tess_mul_i64(numel, (int64_t)elem_nbytes, &nbytes));
    *out = *at;
    TESS_TRY(tess_add_i64((int64_t)*at, tess_round_up(nbytes, TESS_ARENA_ALIGN_NBYTES), &nbytes));
    *at = (size_t)nbytes;
    return TESS_OK;
}

tess_status tess_vector_layout_make(const tess_run *run, int64_t dim, int world,
                                    tess_vector_layout *out)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    tess_vector_layout v = {.row_numel = run->train.micro_batch,
                            .dim = dim,
                            .code_numel = q->codes,
                            .level_numel = (int)q->levels,
                            .is_averaged = q->update == TESS_RUN_UPDATE_EMA,
                            .code_dim = q->code_dim};
    const int64_t levels = q->levels, averaged = v.is_averaged ? levels : 0;
    TESS_TRY(tess_mul_i64(levels, q->codes, &v.window_numel));
    TESS_TRY(tess_add_i64(v.window_numel, (1 + levels) * TESS_EXACT_LIMB_NUMEL, &v.window_numel));
    if (v.is_averaged || q->init != TESS_RUN_CODE_INIT_RANDOM)
        TESS_TRY(tess_mul_i64(tess_ceil_div(run->train.micro_batches, world), v.row_numel,
                              &v.kept_numel));
    if (v.is_averaged)
        TESS_TRY(tess_mul_i64(q->codes, q->code_dim + 1, &v.average_numel));
    TESS_TRY(place(&v.nbytes, v.row_numel, dim, sizeof(float), &v.x));
    TESS_TRY(place(&v.nbytes, v.is_averaged ? v.kept_numel : v.row_numel, levels, sizeof(uint32_t),
                   &v.code));
    TESS_TRY(place(&v.nbytes, v.row_numel, 1 + levels, sizeof(double), &v.square));
    for (int i = 0; i < 2; i++)
        TESS_TRY(place(&v.nbytes, v.window_numel, 1, sizeof(int64_t), &v.window[i]));
    TESS_TRY(place(&v.nbytes, v.kept_numel, (averaged > 0 ? averaged : 1) * q->code_dim,
                   sizeof(float), &v.kept));
    TESS_TRY(place(&v.nbytes, averaged * q->codes, q->code_dim, sizeof(float), &v.embed));
    TESS_TRY(place(&v.nbytes, averaged, v.average_numel, sizeof(float), &v.average));
    *out = v;
    return TESS_OK;
}

static tess_status find_dim(const tess_ctx *ctx, const tess_run *run, int64_t *dim)
{
    tess_vectors *vectors = NULL;
    *dim = run->quantizer.dim;
    if (*dim != TESS_RUN_AUTO)
        return TESS_OK;
    TESS_TRY(tess_vectors_open(ctx, run->data.path, &vectors));
    *dim = tess_vectors_get_info(vectors)->dim;
    tess_vectors_close(&vectors);
    return TESS_OK;
}

/* What the model computes, for those who compare models. */
static tess_status write_config(const tess_run *run, int64_t dim, tess_json *root)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_string(root, "model_type", "rqvae"));
    TESS_TRY(tess_json_add_i64(root, "dim", dim));
    TESS_TRY(tess_json_add_i64(root, "code_dim", q->code_dim));
    TESS_TRY(tess_json_add_array(root, "encoder", &list));
    for (int64_t i = 0; i < q->encoder.item_numel; i++)
        TESS_TRY(tess_json_add_i64(list, NULL, q->encoder.item[i]));
    TESS_TRY(tess_json_add_bool(root, "bias", q->bias));
    TESS_TRY(tess_json_add_i64(root, "codes", q->codes));
    TESS_TRY(tess_json_add_i64(root, "levels", q->levels));
    TESS_TRY(tess_json_add_string(root, "loss", q->loss == TESS_RUN_OVER_SUM ? "sum" : "mean"));
    TESS_TRY(tess_json_add_string(root, "update",
                                  q->update == TESS_RUN_UPDATE_EMA ? "ema" : "gradient"));
    return tess_json_add_f64(root, "commitment", q->commitment);
}

static tess_status make_config(tess_description *d)
{
    size_t nbytes = 0;
    TESS_TRY(tess_json_create_object(&d->config_root));
    TESS_TRY(write_config(d->run, d->vector_dim, d->config_root));
    return tess_json_dump(d->config_root, 2, &d->config_text, &nbytes);
}

tess_status tess_describe_rqvae(const tess_ctx *ctx, const tess_launch_shape *launch,
                                tess_description *d)
{
    const tess_run *run = d->run;
    const tess_run_quantizer_keys *q = &run->quantizer;
    tess_vector_layout layout;
    TESS_TRY(find_dim(ctx, run, &d->vector_dim));
    TESS_TRY(tess_vector_layout_make(run, d->vector_dim, launch->world, &layout));
    d->batch_nbytes = layout.nbytes;
    d->counter_numel = layout.window_numel + (layout.level_numel * layout.average_numel + 1) / 2;
    d->family_name = "rqvae";
    TESS_TRY(make_config(d));
    const tess_rqvae_config config = {
        .dim = d->vector_dim,
        .code_dim = q->code_dim,
        .hidden = q->encoder.item,
        .hidden_numel = (int)TESS_MIN(q->encoder.item_numel, TESS_RQVAE_HIDDEN_MAX + 1),
        .has_bias = q->bias,
        .code_numel = q->codes,
        .level_numel = (int)q->levels,
        .is_sum = q->loss == TESS_RUN_OVER_SUM,
        .commitment = q->commitment,
        .is_averaged = layout.is_averaged,
        .estimator = q->estimator == TESS_RUN_ESTIMATOR_ROTATION ? TESS_ESTIMATOR_ROTATION
                                                                 : TESS_ESTIMATOR_STRAIGHT};
    const tess_model_options options = {
        .compute_dt = run->compute.dtype == TESS_RUN_DTYPE_F32 ? TESS_F32 : TESS_BF16,
        .is_full = true,
        .is_random = true,
        .micro_batch = run->train.micro_batch,
        .thread_numel = (int)run->compute.threads,
        .kernels = launch->kernels};
    tess_registry_init(&d->registry, options.compute_dt);
    TESS_TRY(tess_rqvae_create(&config, &options, &d->registry, &d->model));
    return tess_codes_room_nbytes(run, &layout, launch->kernels, &d->start_nbytes);
}
