#include "train/describe/describe_rqvae.h"

#include <inttypes.h>

#include "core/arith.h"
#include "core/exact.h"
#include "core/memory.h"
#include "model/rqvae.h"
#include "train/rqvae/rqvae_codes.h"
#include "train/run_file/run_file.h"

enum { ROUTE_NBYTES = 1 << 20 };

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

static tess_quantizer_kind kind_of(tess_run_quantizer type)
{
    switch (type) {
    case TESS_RUN_QUANTIZER_AUTO:
    case TESS_RUN_QUANTIZER_RESIDUAL_KMEANS:
    case TESS_RUN_QUANTIZER_VQ:
    case TESS_RUN_QUANTIZER_RESIDUAL_VQ:
    case TESS_RUN_QUANTIZER_COSINE:
        break;
    case TESS_RUN_QUANTIZER_SIMVQ:
    case TESS_RUN_QUANTIZER_RESIDUAL_SIMVQ:
        return TESS_QUANTIZER_MAPPED_CODES;
    case TESS_RUN_QUANTIZER_FSQ:
    case TESS_RUN_QUANTIZER_RESIDUAL_FSQ:
        return TESS_QUANTIZER_SCALARS;
    case TESS_RUN_QUANTIZER_LFQ:
    case TESS_RUN_QUANTIZER_BSQ:
        return TESS_QUANTIZER_SIGNS;
    case TESS_RUN_QUANTIZER_LATENT:
        return TESS_QUANTIZER_VALUES;
    case TESS_RUN_QUANTIZER_RANDOM_PROJECTION:
        return TESS_QUANTIZER_PROJECTED;
    }
    return TESS_QUANTIZER_CODES;
}

static tess_level_rule rule_of(tess_run_level_rule rule)
{
    static const tess_level_rule of[] = {[TESS_RUN_LEVEL_RULE_UPPER] = TESS_LEVEL_UPPER,
                                         [TESS_RUN_LEVEL_RULE_LOWER] = TESS_LEVEL_LOWER,
                                         [TESS_RUN_LEVEL_RULE_SYMMETRIC] = TESS_LEVEL_SYMMETRIC,
                                         [TESS_RUN_LEVEL_RULE_CLAMPED] = TESS_LEVEL_CLAMPED};
    return of[rule];
}

static tess_rqvae_images images_of(const tess_run *run, const tess_sample_size *sample)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    if (sample->channel_numel == 0)
        return (tess_rqvae_images){0};
    return (tess_rqvae_images){.channel_numel = sample->channel_numel,
                               .height = sample->height,
                               .width = sample->width,
                               .halving_numel = q->downsample,
                               .hidden_channel_numel = q->channels,
                               .residual_numel = q->residual_blocks,
                               .residual_channel_numel = q->residual_channels};
}

tess_rqvae_config tess_rqvae_config_of(const tess_run *run, const tess_sample_size *sample)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    const tess_quantizer_kind kind = kind_of(q->type);
    const tess_rqvae_images images = images_of(run, sample);
    return (tess_rqvae_config){
        .dim = sample->channel_numel > 0 ? tess_rqvae_share_numel(&images) : sample->dim,
        .images = images,
        .code_dim = q->code_dim,
        .hidden = q->encoder.item,
        .hidden_numel = (int)TESS_MIN(q->encoder.item_numel, TESS_RQVAE_HIDDEN_MAX + 1),
        .has_bias = q->bias,
        .is_sum = q->loss == TESS_RUN_OVER_SUM,
        .kind = kind,
        .code_numel = q->codes,
        .level_numel = (int)q->levels,
        .group_numel = (int)q->groups,
        .is_shared = q->shared_codes,
        .is_spherical = q->type == TESS_RUN_QUANTIZER_COSINE || q->type == TESS_RUN_QUANTIZER_BSQ ||
                        kind == TESS_QUANTIZER_PROJECTED,
        .commitment = q->commitment,
        .estimator = q->estimator == TESS_RUN_ESTIMATOR_ROTATION ? TESS_ESTIMATOR_ROTATION
                                                                 : TESS_ESTIMATOR_STRAIGHT,
        .is_averaged = kind == TESS_QUANTIZER_CODES && q->update == TESS_RUN_UPDATE_EMA,
        .orthogonal = q->orthogonal,
        .temperature = q->temperature,
        .seed = (uint64_t)run->train.seed,
        .axis_level = q->axis_levels.item,
        .axis_numel = (int)TESS_MIN(q->axis_levels.item_numel, TESS_LEVEL_DIM_MAX + 1),
        .is_stack = q->type == TESS_RUN_QUANTIZER_RESIDUAL_FSQ,
        .rule = rule_of(q->rule),
        .noise = q->noise,
        .is_binary_spherical = q->type == TESS_RUN_QUANTIZER_BSQ,
        .entropy = q->entropy,
        .confidence = q->confidence,
        .scale = q->scale,
        .diversity = q->diversity,
        .inverse_temperature = q->inverse_temperature};
}

/* ---- sharding of codebooks ---- */

/* On their way to owners at once: a message worth its name, though micro-batches be small. */
static int64_t route_of(const tess_vector_layout *v)
{
    const int64_t numel = ROUTE_NBYTES / ((int64_t)sizeof(float) * v->shape.dim);
    return TESS_MIN(TESS_MAX(v->row_numel, numel), v->shape.code_numel);
}

static tess_status plan_books(const tess_run *run, const tess_vector_layout *v, int world,
                              bool is_sharded, tess_codebook_plan *out)
{
    const bool is_set = v->is_averaged || run->quantizer.init != TESS_RUN_CODE_INIT_RANDOM;
    const tess_codebook_shape shape = {.world = world,
                                       .book_numel = is_sharded ? v->shape.book_numel : 1,
                                       .code_numel = v->shape.code_numel,
                                       .dim = v->shape.dim,
                                       .block_numel = v->row_numel,
                                       .best_numel = 1,
                                       .thread_numel = (int)run->compute.threads,
                                       .is_sharded = is_sharded,
                                       .has_sums = is_set,
                                       .route_numel = is_set ? route_of(v) : 0};
    return tess_codebook_plan_make(&shape, &tess_kernels_cpu, out);
}

/* Received by all-gathers in a step for all codebooks: sizes, and vectors of a block with their
 * rows for the search, and again for the sums. */
static double gathered_nbytes(const tess_run *run, const tess_vector_layout *v,
                              const tess_codebook_plan *book)
{
    const double others = book->shape.world - 1, d = (double)v->shape.dim;
    const double vectors = (double)v->row_numel * v->shape.index_numel;
    const double rounds = (double)tess_ceil_div(run->train.micro_batches, book->shape.world);
    if (!book->shape.is_sharded)
        return 0.0;
    return rounds * others * (16.0 + 2.0 * vectors * (4.0 * d + 4.0));
}

/* The same from single ranks: keys, and codes of the own vectors; or sums to owners. */
static double exchanged_nbytes(const tess_run *run, const tess_vector_layout *v,
                               const tess_codebook_plan *book)
{
    const double others = book->shape.world - 1, d = (double)v->shape.dim;
    const double vectors = (double)v->row_numel * v->shape.index_numel;
    const double rounds = (double)tess_ceil_div(run->train.micro_batches, book->shape.world);
    const double sums = others * (double)book->row_numel * (8.0 * d + 8.0);
    if (!book->shape.is_sharded) /* gradients of codes are the plan's */
        return v->is_averaged ? v->shape.book_numel * sums : 0.0;
    return rounds * vectors * (8.0 * others + (others > 0 ? 4.0 * d : 0.0));
}

/* Orthogonal codes have a loss over all of them; gradients of rows are added up exactly. */
static bool can_shard(const tess_run *run, const tess_vector_layout *v)
{
    return kind_of(run->quantizer.type) == TESS_QUANTIZER_CODES &&
           !(run->quantizer.orthogonal > 0.0) &&
           (v->is_averaged || run->shard.reduction == TESS_RUN_REDUCTION_EXACT);
}

/* The most that a rank receives in a step beside searches and sums: codes to the masters' cut, or
 * gradients to it and codes from it; vectors that take the place of dead codes. `bound` and `own`
 * [world + 1] are scratch. */
static double moved_nbytes(const tess_description *d, const tess_vector_layout *v,
                           const tess_codebook_plan *book, int64_t *bound, double *own)
{
    const int world = book->shape.world;
    const bool has_draws = d->run->quantizer.threshold > 0.0 && world > 1;
    double most = 0.0;
    for (int b = 0; b < v->shape.book_numel; b++) {
        tess_codes_bounds(&d->registry, world, tess_rqvae_codebook(d->model, b), bound);
        for (int r = 0; r < world; r++) {
            int64_t lo = 0, hi = 0;
            tess_codebook_owned(book, r, &lo, &hi);
            own[r] += tess_codebook_recut_nbytes(book, v->shape.dim, bound, r, false);
            if (!v->is_averaged)
                own[r] += tess_codebook_recut_nbytes(book, v->shape.dim, bound, r, true);
            else if (has_draws)
                own[r] += 4.0 * (double)v->shape.dim * (double)(hi - lo);
        }
    }
    for (int r = 0; r < world; r++)
        most = TESS_MAX(most, own[r]);
    return most;
}

static tess_status tell_codes(const tess_launch_shape *launch, const tess_vector_layout *v,
                              tess_description *d)
{
    const int world = launch->world;
    const bool is_sharded = v->has_books && v->book.shape.is_sharded;
    tess_plan_codes *codes = &d->codes;
    void *bound = NULL, *own = NULL;
    tess_codebook_plan rows;
    if (!v->is_averaged && !can_shard(d->run, v))
        return TESS_OK;
    TESS_TRY(plan_books(d->run, v, world, true, &rows));
    TESS_TRY(tess_alloc_array(world + 1, sizeof(int64_t), &bound));
    const tess_status st = tess_alloc_array(world + 1, sizeof(double), &own);
    const double moved = st == TESS_OK ? moved_nbytes(d, v, &rows, bound, own) : 0.0;
    tess_free(bound);
    tess_free(own);
    *codes = (tess_plan_codes){.has_books = true,
                               .is_sharded = is_sharded,
                               .can_shard = can_shard(d->run, v) && !launch->is_device,
                               .rows_nbytes = gathered_nbytes(d->run, v, &rows) +
                                              exchanged_nbytes(d->run, v, &rows) + moved};
    if (is_sharded) {
        codes->step_nbytes = codes->rows_nbytes;
        codes->gathered_nbytes = gathered_nbytes(d->run, v, &rows);
    } else if (v->is_averaged)
        codes->step_nbytes = exchanged_nbytes(d->run, v, &v->book) + moved;
    return st;
}

static tess_status place_averages(tess_vector_layout *v)
{
    const int64_t books = v->is_averaged ? v->shape.book_numel : 0, d = v->shape.dim;
    const int64_t c = v->book.row_numel, world = TESS_MAX(v->book.shape.world, 1);
    const int64_t rows =
        tess_vector_layout_follows(v) ? v->shape.index_numel : v->shape.group_numel;
    if (v->is_averaged)
        TESS_TRY(tess_mul_i64(v->shape.code_numel, d + 1, &v->average_numel));
    TESS_TRY(place(&v->nbytes, v->kept_numel, rows * d, sizeof(float), &v->kept));
    TESS_TRY(place(&v->nbytes, v->book.shape.is_sharded ? (int64_t)v->book.total_nbytes : 0, 1, 1,
                   &v->books));
    TESS_TRY(place(&v->nbytes, books * c, d + 1, sizeof(float), &v->average));
    return place(&v->nbytes, tess_vector_layout_saved(v, (int)world), 1, sizeof(float), &v->saved);
}

/* Flags stay as long as what they are of. */
static tess_status place_masks(const tess_run *run, tess_vector_layout *v)
{
    v->is_masked = run->data.mask_path != NULL || run->data.eval_mask_path != NULL;
    if (!v->is_masked)
        return TESS_OK;
    TESS_TRY(
        place(&v->nbytes, TESS_MAX(v->kept_numel, v->row_numel), 1, sizeof(uint8_t), &v->valid));
    TESS_TRY(place(&v->nbytes, v->row_numel, 1, sizeof(uint32_t), &v->own));
    TESS_TRY(place(&v->nbytes, v->row_numel, v->line_numel, sizeof(uint32_t), &v->line));
    return place(&v->nbytes, run->train.micro_batches + 1, 1, sizeof(int64_t), &v->valid_before);
}

static tess_status place_far(const tess_vector_layout *v, tess_average_room *r)
{
    const int64_t books = v->shape.book_numel, c = v->book.row_numel, d = v->shape.dim;
    const int64_t codes = v->shape.code_numel;
    if (!v->is_averaged || v->book.shape.is_sharded)
        return TESS_OK;
    TESS_TRY(place(&r->nbytes, books, 1, sizeof(uint32_t), &r->most));
    TESS_TRY(place(&r->nbytes, books, 1, sizeof(int64_t), &r->total));
    TESS_TRY(place(&r->nbytes, codes, d, sizeof(int64_t), &r->sum));
    TESS_TRY(place(&r->nbytes, codes, 1, sizeof(int64_t), &r->tally));
    TESS_TRY(place(&r->nbytes, c, d, sizeof(float), &r->value));
    TESS_TRY(place(&r->nbytes, c, d, sizeof(float), &r->embed));
    TESS_TRY(place(&r->nbytes, c, 1, sizeof(int64_t), &r->row));
    TESS_TRY(place(&r->nbytes, c, 1, sizeof(uint8_t), &r->expired));
    return place(&r->nbytes, 1, 1, sizeof(int64_t), &r->expired_numel);
}

static tess_status place_mean(tess_vector_layout *v)
{
    const int64_t numel = v->shape.mean_numel;
    TESS_TRY(place(&v->nbytes, numel, 1, sizeof(int64_t), &v->mean_sum));
    TESS_TRY(place(&v->nbytes, numel, 1, sizeof(double), &v->mean_slope));
    TESS_TRY(place(&v->nbytes, numel > 0 ? v->shape.group_numel : 0, 1, sizeof(double),
                   &v->mean_entropy));
    return place(&v->nbytes, numel > 0, 1, sizeof(double), &v->mean_value);
}

tess_status tess_vector_layout_make(const tess_run *run, const tess_sample_size *sample, int world,
                                    tess_run_sharding sharding, tess_vector_layout *out)
{
    const tess_rqvae_config config = tess_rqvae_config_of(run, sample);
    tess_vector_layout v = {.position_numel = tess_rqvae_position_numel(&config.images),
                            .dim = config.dim,
                            .is_averaged = config.is_averaged};
    TESS_TRY(tess_rqvae_check_config(&config));
    if (config.images.channel_numel > 0) {
        v.line_numel = (int64_t)1 << config.images.halving_numel;
        v.column_numel = config.images.width >> config.images.halving_numel;
    }
    TESS_TRY(tess_mul_i64(run->train.micro_batch, v.position_numel, &v.row_numel));
    TESS_TRY(tess_quantizer_shape_make(&config, &v.shape));
    const int64_t indices = v.shape.index_numel;
    v.bin_numel = v.shape.code_numel <= TESS_COUNTED_CODES_MAX ? v.shape.code_numel : 1;
    TESS_TRY(tess_mul_i64(indices, v.bin_numel, &v.window_numel));
    TESS_TRY(
        tess_add_i64(v.window_numel, (1 + indices) * TESS_EXACT_LIMB_NUMEL + 1, &v.window_numel));
    v.learns_by_rows = sharding == TESS_RUN_SHARDING_ROWS && !v.is_averaged;
    for (int64_t left = run->train.micro_batches; left > 0; left /= 2)
        v.level_numel++;
    if (tess_vector_layout_follows(&v) || run->quantizer.init != TESS_RUN_CODE_INIT_RANDOM)
        v.has_books = v.shape.book_numel > 0;
    if (v.has_books)
        TESS_TRY(tess_mul_i64(tess_ceil_div(run->train.micro_batches, world), v.row_numel,
                              &v.kept_numel));
    if (v.has_books)
        TESS_TRY(plan_books(run, &v, world, sharding == TESS_RUN_SHARDING_ROWS, &v.book));
    TESS_TRY(place(&v.nbytes, v.row_numel, v.dim, sizeof(float), &v.x));
    TESS_TRY(place(&v.nbytes, tess_vector_layout_follows(&v) ? v.kept_numel : v.row_numel, indices,
                   sizeof(uint32_t), &v.code));
    TESS_TRY(place(&v.nbytes, v.row_numel, 1 + indices, sizeof(double), &v.square));
    for (int i = 0; i < 2; i++)
        TESS_TRY(place(&v.nbytes, v.window_numel, 1, sizeof(int64_t), &v.window[i]));
    TESS_TRY(place_averages(&v));
    TESS_TRY(place_mean(&v));
    TESS_TRY(place_masks(run, &v));
    TESS_TRY(place_far(&v, &v.far));
    *out = v;
    return TESS_OK;
}

static tess_status size_of_image(const tess_run *run, tess_sample_size *size)
{
    const tess_run_ints *image = &run->quantizer.image;
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_quantizer_image, place);
    TESS_CHECK(image->item_numel == 3 && (image->item[0] == 1 || image->item[0] == 3),
               TESS_E_CONFIG, "%s: expected channels (1 or 3), height and width", place);
    *size = (tess_sample_size){
        .channel_numel = image->item[0], .height = image->item[1], .width = image->item[2]};
    TESS_TRY(tess_mul_i64(size->height, size->width, &size->dim));
    return tess_mul_i64(size->dim, size->channel_numel, &size->dim);
}

static tess_status find_size(const tess_ctx *ctx, const tess_run *run, tess_sample_size *size)
{
    const bool is_images = tess_run_is_of_images(run);
    tess_samples *samples = NULL;
    if (is_images && run->quantizer.image.item_numel > 0)
        return size_of_image(run, size);
    *size = (tess_sample_size){.dim = run->quantizer.dim};
    if (!is_images && size->dim != TESS_RUN_AUTO)
        return TESS_OK;
    TESS_TRY(tess_samples_open(ctx, run->data.path, is_images, &samples));
    *size = *tess_samples_size(samples);
    tess_samples_close(&samples);
    return TESS_OK;
}

tess_status tess_rqvae_keep_size(tess_run *run, const tess_sample_size *sample)
{
    tess_run_ints *image = &run->quantizer.image;
    void *item = NULL;
    if (sample->channel_numel == 0)
        run->quantizer.dim = sample->dim;
    if (sample->channel_numel == 0 || image->item_numel > 0)
        return TESS_OK;
    TESS_TRY(tess_alloc_array(3, sizeof *image->item, &item));
    *image = (tess_run_ints){item, 3};
    image->item[0] = sample->channel_numel;
    image->item[1] = sample->height;
    image->item[2] = sample->width;
    return TESS_OK;
}

static tess_status write_list(tess_json *root, const char *name, const tess_run_ints *ints)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_array(root, name, &list));
    for (int64_t i = 0; i < ints->item_numel; i++)
        TESS_TRY(tess_json_add_i64(list, NULL, ints->item[i]));
    return TESS_OK;
}

static tess_status write_sizes(const tess_run *run, int64_t dim, tess_json *root)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    if (!tess_run_is_of_images(run)) {
        TESS_TRY(tess_json_add_i64(root, "dim", dim));
        return write_list(root, "encoder", &q->encoder);
    }
    TESS_TRY(tess_json_add_i64(root, "downsample", q->downsample));
    TESS_TRY(tess_json_add_i64(root, "channels", q->channels));
    TESS_TRY(tess_json_add_i64(root, "residual_blocks", q->residual_blocks));
    return tess_json_add_i64(root, "residual_channels", q->residual_channels);
}

/* What the model computes, for those who compare models. */
static tess_status write_config(const tess_run *run, int64_t dim, tess_json *root)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    char type[32], rule[32];
    tess_run_word_at(tess_run_key_at(TESS_RUN_KEY_quantizer_type)->words, (int)q->type, type);
    tess_run_word_at(tess_run_key_at(TESS_RUN_KEY_quantizer_rule)->words, (int)q->rule, rule);
    TESS_TRY(
        tess_json_add_string(root, "model_type", tess_run_is_of_images(run) ? "vqvae" : "rqvae"));
    TESS_TRY(tess_json_add_string(root, "quantizer", type));
    TESS_TRY(write_sizes(run, dim, root));
    TESS_TRY(tess_json_add_i64(root, "code_dim", q->code_dim));
    TESS_TRY(tess_json_add_bool(root, "bias", q->bias));
    TESS_TRY(tess_json_add_i64(root, "codes", q->codes));
    TESS_TRY(tess_json_add_i64(root, "levels", q->levels));
    TESS_TRY(tess_json_add_i64(root, "groups", q->groups));
    TESS_TRY(tess_json_add_bool(root, "shared_codes", q->shared_codes));
    TESS_TRY(write_list(root, "axis_levels", &q->axis_levels));
    TESS_TRY(tess_json_add_string(root, "rule", rule));
    TESS_TRY(tess_json_add_string(root, "loss", q->loss == TESS_RUN_OVER_SUM ? "sum" : "mean"));
    TESS_TRY(tess_json_add_string(root, "update",
                                  q->update == TESS_RUN_UPDATE_EMA ? "ema" : "gradient"));
    return tess_json_add_f64(root, "commitment", q->commitment);
}

static tess_status make_config(tess_description *d)
{
    size_t nbytes = 0;
    TESS_TRY(tess_json_create_object(&d->config_root));
    TESS_TRY(write_config(d->run, d->sample.dim, d->config_root));
    return tess_json_dump(d->config_root, 2, &d->config_text, &nbytes);
}

tess_status tess_describe_rqvae(const tess_ctx *ctx, const tess_launch_shape *launch,
                                tess_run_sharding sharding, tess_description *d)
{
    const tess_run *run = d->run;
    tess_vector_layout layout;
    if (d->sample.dim == 0)
        TESS_TRY(find_size(ctx, run, &d->sample));
    TESS_TRY(tess_vector_layout_make(run, &d->sample, launch->world, sharding, &layout));
    d->batch_nbytes = layout.nbytes;
    d->device_nbytes = layout.far.nbytes;
    d->counter_numel =
        layout.window_numel + (layout.shape.book_numel * layout.average_numel + 1) / 2;
    d->ahead_sum_numel = layout.shape.mean_numel;
    d->family_name = tess_run_is_of_images(run) ? "vqvae" : "rqvae";
    TESS_TRY(make_config(d));
    tess_rqvae_config config = tess_rqvae_config_of(run, &d->sample);
    config.is_sharded = layout.book.shape.is_sharded;
    const tess_model_options options = {
        .compute_dt = run->compute.dtype == TESS_RUN_DTYPE_F32 ? TESS_F32 : TESS_BF16,
        .is_full = true,
        .is_random = true,
        .micro_batch = layout.row_numel,
        .thread_numel = (int)run->compute.threads,
        .kernels = launch->kernels};
    tess_registry_init(&d->registry, options.compute_dt);
    TESS_TRY(tess_rqvae_create(&config, &options, &d->registry, &d->model));
    TESS_TRY(tell_codes(launch, &layout, d));
    return tess_codes_room_nbytes(&layout, &d->start_nbytes);
}
