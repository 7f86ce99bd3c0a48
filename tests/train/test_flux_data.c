/* Micro-batches from a cache, element by element against the formulas. */
#include "train/flux/flux_data.h"

#include <math.h>

#include "core/arith.h"
#include "format/format_test.h"

enum { CHANNELS = 2, TOKENS = 3, TEXT_DIM = 5, POOLED_DIM = 4, NUMEL_MAX = 2 * 6 * 4, B = 2 };

static const tess_latents_bucket buckets[] = {{4, 4, 3, 0}, {6, 4, 2, 0}};
static const tess_flux_config config = {.in_channels = 4 * CHANNELS,
                                        .out_channels = 4 * CHANNELS,
                                        .head_dim = 16,
                                        .text_dim = TEXT_DIM,
                                        .pooled_dim = POOLED_DIM,
                                        .has_guidance = true,
                                        .axis_dim = {4, 6, 6}};
static const tess_flux_shape shape = {B, 6, TOKENS};

static float value_of(int64_t kind, int64_t row, int64_t i)
{
    return (float)((kind * 31 + row * 17 + i * 7) % 255 - 127) / 64.0F;
}

static float mask_of(int64_t row, int64_t i) { return (float)((row + i) % 5) / 4.0F; }

/* Sample s has caption 1 + s % 2; caption 0 is empty if `has_empty`. */
static const char *write_cache(const fixture *f, bool has_empty, bool has_masks)
{
    const tess_ctx ctx = {.io = f->io};
    const char *path = at(f, "cache.h5");
    const tess_latents_info info = {.sample_numel = 5,
                                    .caption_numel = 3,
                                    .bucket_numel = 2,
                                    .channel_numel = CHANNELS,
                                    .text_numel = TOKENS,
                                    .text_dim = TEXT_DIM,
                                    .pooled_dim = POOLED_DIM,
                                    .latent_dt = TESS_F32,
                                    .text_dt = TESS_F32,
                                    .has_masks = has_masks,
                                    .has_empty = has_empty,
                                    .name_nbytes = 10,
                                    .caption_nbytes = 6};
    tess_latents_writer *w = NULL;
    float x[NUMEL_MAX], y[NUMEL_MAX];
    assert_ok(tess_latents_writer_create(&ctx, path, &info, buckets, &w));
    for (int64_t c = 0; c < 3; c++) {
        for (int64_t i = 0; i < TOKENS * TEXT_DIM; i++)
            x[i] = value_of(1, c, i);
        for (int64_t i = 0; i < POOLED_DIM; i++)
            y[i] = value_of(2, c, i);
        const tess_latents_text text = {"t", x, y, 0};
        assert_ok(tess_latents_writer_text(w, &text));
    }
    for (int64_t s = 0; s < 5; s++) {
        for (int64_t i = 0; i < NUMEL_MAX; i++)
            x[i] = value_of(3, s, i);
        for (int64_t i = 0; i < 6; i++)
            y[i] = mask_of(s, i);
        const tess_latents_image image = {
            "n", {.caption_idx = 1 + (uint32_t)(s % 2)}, x, has_masks ? y : NULL};
        assert_ok(tess_latents_writer_image(w, s / 3, &image));
    }
    assert_ok(tess_latents_writer_finish(w));
    tess_latents_writer_destroy(&w);
    return path;
}

static tess_run *run_of(const char *objective)
{
    char text[512];
    tess_run *run = NULL;
    snprintf(text, sizeof text,
             "model: {path: m, family: flux}\ndata: {path: d}\noutput: {dir: o}\n"
             "train: {seed: 77, micro_batch: 2}\nobjective: {%s}\n",
             objective);
    assert_ok(tess_run_parse(text, strlen(text), "run.yaml", NULL, 0, &run));
    return run;
}

static tess_status open_data(const fixture *f, const tess_run *run, tess_flux_data **out)
{
    const tess_ctx ctx = {.io = f->io};
    const tess_flux_data_request request = {
        at(f, "cache.h5"), "data.path", &config, &shape, run, true};
    return tess_flux_data_open(&ctx, &request, out);
}

/* What row `row` must hold: sample `s`, its draws, its caption. */
typedef struct expected {
    int64_t s, caption, row;
    double sigma, weight, guidance;
    const float *noise;
    bool is_masked;
} expected;

static void check_row(const tess_flux_batch *b, const expected *e)
{
    const tess_latents_bucket *of = &buckets[e->s / 3];
    const int64_t n = b->image_numel, w = of->width, h = of->height;
    float sinusoid[TESS_FLUX_SINUSOID_NUMEL];
    assert_int_equal(n, h / 2 * w / 2);
    for (int64_t c = 0; c < CHANNELS; c++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                const int64_t i = (c * h + y) * w + x;
                const int64_t token = y / 2 * (w / 2) + x / 2;
                const int64_t at = (e->row * n + token) * 4 * CHANNELS + 4 * c + y % 2 * 2 + x % 2;
                const double z = (double)value_of(3, e->s, i), noise = (double)e->noise[i];
                assert_true(b->latent[at] == (float)((1.0 - e->sigma) * z + e->sigma * noise));
                assert_true(b->target[at] == (float)(noise - z));
            }
    for (int64_t t = 0; t < n; t++)
        assert_true(b->weight[e->row * n + t] ==
                    (float)(e->weight / ((double)n * 4 * CHANNELS) *
                            (e->is_masked ? (double)mask_of(e->s, t) : 1.0)));
    for (int64_t i = 0; i < TOKENS * TEXT_DIM; i++)
        assert_true(b->text[e->row * TOKENS * TEXT_DIM + i] == value_of(1, e->caption, i));
    for (int64_t i = 0; i < POOLED_DIM; i++)
        assert_true(b->pooled[e->row * POOLED_DIM + i] == value_of(2, e->caption, i));
    tess_flux_sinusoid(1000.0 * e->sigma, sinusoid);
    assert_memory_equal(b->time + e->row * TESS_FLUX_SINUSOID_NUMEL, sinusoid, sizeof sinusoid);
    tess_flux_sinusoid(1000.0 * e->guidance, sinusoid);
    assert_memory_equal(b->guidance + e->row * TESS_FLUX_SINUSOID_NUMEL, sinusoid, sizeof sinusoid);
}

static void check_rotations(const tess_flux_batch *b, const tess_latents_bucket *of)
{
    float cosine[9 * 8], sine[9 * 8];
    tess_flux_rope(&config, TOKENS, of->height / 2, of->width / 2, cosine, sine);
    const size_t nbytes = (size_t)(TOKENS + b->image_numel) * 8 * sizeof(float);
    assert_memory_equal(b->rope_cos, cosine, nbytes);
    assert_memory_equal(b->rope_sin, sine, nbytes);
}

static tess_flux_arrays make_arrays(void)
{
    tess_flux_arrays a = {0};
    void *room = NULL;
    assert_ok(tess_flux_layout_make(&config, &shape, &a.at));
    assert_ok(tess_alloc(a.at.nbytes, &room));
    memset(room, 0xff, a.at.nbytes); /* every float is NaN */
    a.base = room;
    a.read = room;
    return a;
}

static void check_training(const fixture *f, const char *objective, bool is_masked)
{
    tess_run *run = run_of(objective);
    const tess_objective o = tess_objective_of(run);
    tess_flux_data *data = NULL;
    tess_flux_arrays arrays = make_arrays();
    int dropped_numel = 0, bucket_numel[2] = {0};
    assert_ok(open_data(f, run, &data));
    for (int64_t g = 0; g < 40; g++) {
        tess_flux_batch batch;
        int64_t sample[B];
        float noise[NUMEL_MAX];
        const int64_t events = tess_alloc_events();
        assert_ok(tess_flux_data_fill(data, g, &arrays, &batch));
        assert_int_equal(tess_alloc_events(), events);
        const int64_t bucket = tess_flux_order_at(tess_flux_data_order(data), g, sample);
        assert_int_equal(batch.sample_numel, B);
        check_rotations(&batch, &buckets[bucket]);
        bucket_numel[bucket]++;
        for (int64_t i = 0; i < B; i++) {
            const int64_t number = g * B + i;
            const double sigma = tess_objective_sigma(&o, number, batch.image_numel);
            const bool is_dropped = tess_objective_drops_caption(&o, number);
            tess_objective_noise(&o, number, NUMEL_MAX, noise);
            const expected e = {sample[i],
                                is_dropped ? 0 : 1 + sample[i] % 2,
                                i,
                                sigma,
                                tess_objective_weight(&run->objective, sigma),
                                tess_objective_guidance(&o, number),
                                noise,
                                is_masked};
            check_row(&batch, &e);
            dropped_numel += is_dropped;
        }
    }
    assert_true(bucket_numel[0] > 0 && bucket_numel[1] > 0);
    assert_true(run->objective.caption_dropout > 0.0 ? dropped_numel > 20 : dropped_numel == 0);
    tess_flux_data_close(&data);
    tess_free(arrays.base);
    tess_run_destroy(&run);
}

static void test_fill_holds_what_the_formulas_say(void **state)
{
    const fixture *f = *state;
    write_cache(f, true, true);
    check_training(f, "timesteps: sigmoid, shift: auto", false);
    check_training(f,
                   "masked_loss: true, weighting: cosmap, caption_dropout: 0.5, guidance_mode: "
                   "uniform",
                   true);
}

static void test_held_out_batches_do_not_follow_the_run(void **state)
{
    const fixture *f = *state;
    tess_run *run = run_of("guidance: 3.5, weighting: cosmap, caption_dropout: 1");
    tess_flux_data *data = NULL;
    tess_flux_arrays arrays = make_arrays();
    write_cache(f, true, true);
    assert_ok(open_data(f, run, &data));
    int64_t sample = 0;
    for (int64_t m = 0; m < tess_flux_held_out_numel(tess_flux_data_order(data)); m++) {
        tess_flux_batch batch;
        float noise[NUMEL_MAX];
        assert_ok(tess_flux_data_fill_held_out(data, m, &arrays, &batch));
        for (int64_t i = 0; i < batch.sample_numel; i++, sample++) {
            tess_objective_held_out_noise(sample, NUMEL_MAX, noise);
            const expected e = {
                sample, 1 + sample % 2, i,    tess_objective_held_out_sigma(sample, 5), 1.0,
                3.5,    noise,          false};
            check_row(&batch, &e);
        }
    }
    assert_int_equal(sample, 5);
    tess_flux_data_close(&data);
    tess_free(arrays.base);
    tess_run_destroy(&run);
}

static void refuse(const fixture *f, const char *objective, const tess_flux_config *c,
                   const tess_flux_shape *s, const char *message)
{
    const tess_ctx ctx = {.io = f->io};
    tess_run *run = run_of(objective);
    const tess_flux_data_request request = {at(f, "cache.h5"), "data.path", c, s, run, true};
    tess_flux_data *data = NULL;
    assert_refused(tess_flux_data_open(&ctx, &request, &data), TESS_E_CONFIG, "data.path: '",
                   "cache.h5'", message);
    tess_run_destroy(&run);
}

static void test_open_refuses_what_does_not_fit(void **state)
{
    const fixture *f = *state;
    tess_flux_config c = config;
    tess_flux_shape s = shape;
    write_cache(f, false, false);
    refuse(f, "caption_dropout: 0.1", &config, &shape, "has no empty caption");
    refuse(f, "masked_loss: true", &config, &shape, "has no masks");
    c.in_channels = 64;
    refuse(f, "", &c, &shape, "holds packed latents of 8, the model takes 64");
    c = config;
    c.text_dim = 4096;
    refuse(f, "", &c, &shape, "text embeddings of 5, the model takes 4096");
    c = config;
    c.pooled_dim = 768;
    refuse(f, "", &c, &shape, "pooled embeddings of 4, the model takes 768");
    s.text_numel = 512;
    refuse(f, "", &config, &s, "texts of 3 tokens, the run plans 512");
    s = shape;
    s.image_numel = 4;
    refuse(f, "", &config, &s, "images of 6 packed tokens, the run plans 4");
}

static void test_layout_refuses_overflow(void **state)
{
    (void)state;
    tess_flux_layout at;
    const tess_flux_shape huge = {INT64_MAX / 2, 4096, 512};
    tess_error_clear();
    assert_int_equal(tess_flux_layout_make(&config, &huge, &at), TESS_E_RANGE);
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_fill_holds_what_the_formulas_say),
        format_test(test_held_out_batches_do_not_follow_the_run),
        format_test(test_open_refuses_what_does_not_fit),
        format_test(test_layout_refuses_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
