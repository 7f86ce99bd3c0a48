/*
 * What is counted of codes: squared errors and usage of levels, over windows of steps.
 *
 * Squared errors are exact sums, usage is counted in integers; ranks count what they compute, and
 * their counts add up whenever they are reported. For a checkpoint all counts move to owners of
 * equal ranges, which changes no sum: so a window that a run was stopped in goes on at any number
 * of ranks.
 */
#include <inttypes.h>
#include <math.h>

#include "core/arith.h"
#include "core/exact.h"
#include "train/rqvae/vector_feed_priv.h"

_Static_assert(sizeof(tess_exact) == TESS_EXACT_LIMB_NUMEL * sizeof(int64_t), "words of a window");

static tess_exact *squares_of(int64_t *window) { return (tess_exact *)(void *)window; }

static int64_t *counts_of(const vector_feed *f, int64_t *window)
{
    return window + (1 + f->at.shape.index_numel) * TESS_EXACT_LIMB_NUMEL;
}

/* All of them, with a code or without. */
static int64_t *vectors_of(const vector_feed *f, int64_t *window)
{
    return window + f->at.window_numel - 1;
}

static bool is_counted(const vector_feed *f) { return f->at.bin_numel == f->at.shape.code_numel; }

/* Sums of squared errors of the last micro-batch. @return false: one is not finite */
static bool add_squares(const vector_feed *f, double sum[1 + TESS_RQVAE_LEVEL_MAX])
{
    const int64_t rows = f->batch.vector_numel;
    bool is_finite = true;
    for (int t = 0; t <= f->at.shape.index_numel; t++) {
        sum[t] = 0.0;
        for (int64_t i = 0; i < rows; i++)
            sum[t] += f->batch.square[t * rows + i];
        is_finite = is_finite && isfinite(sum[t]);
    }
    return is_finite;
}

void vector_window_add(vector_feed *f)
{
    const int64_t rows = f->batch.vector_numel;
    double sum[1 + TESS_RQVAE_LEVEL_MAX];
    const bool is_wanted = f->pending >= 0 && add_squares(f, sum);
    if (!is_wanted) {
        f->pending = -1;
        return;
    }
    int64_t *window = f->window[f->pending], *count = counts_of(f, window);
    for (int t = 0; t <= f->at.shape.index_numel; t++)
        (void)tess_exact_add(&squares_of(window)[t], sum[t]);
    for (int l = 0; l < f->at.shape.index_numel; l++)
        for (int64_t i = 0; i < rows; i++) {
            const uint32_t code = f->batch.code[l * rows + i];
            if (code < f->at.shape.code_numel)
                count[l * f->at.bin_numel + (is_counted(f) ? code : 0)]++;
        }
    *vectors_of(f, window) += f->batch.valid_numel;
    f->pending = -1;
}

tess_status vector_window_sum(tess_session *s, int kind)
{
    const int64_t numel = s->vector->at.window_numel;
    int numel_int = 0;
    TESS_TRY(tess_to_int(numel, &numel_int));
    return tess_comm_control(s->world, s->vector->window[kind], numel_int, NULL, 0);
}

/* perplexity = exp(-sum p ln(p + 1e-10)), as published with the code of VQ-VAE. */
static void measure(const vector_feed *f, const int64_t *count, int level,
                    tess_metrics_level_row *row)
{
    row->level = level;
    row->code_numel = is_counted(f) ? f->at.shape.code_numel : 0;
    row->perplexity = tess_perplexity(count, f->at.bin_numel, &row->used_numel);
    row->dead_numel = f->at.bin_numel - row->used_numel;
}

/* Rows of a window whose sums are those of all ranks. */
static tess_status write_rows(tess_session *s, int kind, tess_metrics *metrics)
{
    vector_feed *f = s->vector;
    int64_t *window = f->window[kind], *count = counts_of(f, window);
    tess_metrics_level_row row = {
        .step = s->step, .is_eval = kind == HELD_OUT, .vector_numel = *vectors_of(f, window)};
    for (int t = 0; t <= f->at.shape.index_numel && row.vector_numel > 0; t++) {
        /* The reconstruction's of a whole sample. */
        row.square_error = tess_exact_round(&squares_of(window)[t]) *
                           (t > 0 ? 1.0 : (double)f->at.position_numel) / (double)row.vector_numel;
        row.level = t - 1;
        if (t > 0)
            measure(f, count + (t - 1) * f->at.bin_numel, t - 1, &row);
        if (t > 0 && row.is_eval && row.code_numel > 0)
            tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                          "eval level=%d error=%.6g perplexity=%.2f used=%" PRId64 " dead=%" PRId64,
                          row.level, row.square_error, row.perplexity, row.used_numel,
                          row.dead_numel);
        else if (row.is_eval && t == 0)
            tess_log_root(&s->ctx->log, TESS_LOG_INFO, "eval reconstruction error=%.6g",
                          row.square_error);
        else if (row.is_eval)
            tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                          "eval level=%d error=%.6g (usage of %" PRId64 " codes is not counted)",
                          row.level, row.square_error, f->at.shape.code_numel);
        if (metrics != NULL)
            TESS_TRY(tess_metrics_level(metrics, &row));
    }
    return TESS_OK;
}

/* Metrics that cannot be written: say it, the run is worth more. */
void vector_window_report(tess_session *s, int kind, tess_metrics *metrics)
{
    if (tess_comm_rank(s->world) != 0)
        return;
    if (write_rows(s, kind, metrics) == TESS_OK)
        return;
    tess_log_write(&s->ctx->log, TESS_LOG_WARN, "metrics: %s", tess_error_message());
    tess_error_clear();
}
