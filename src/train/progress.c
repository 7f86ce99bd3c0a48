#include "train/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { TEXT_NBYTES = 512, BAR_MIN = 10, BAR_MAX = 40 };

static const double redraw_s = 0.1;
static const double keep = 0.9; /* weight of the past in the mean step time */

static void show(const tess_progress *p, const char *text)
{
    if (p->options.write != NULL)
        p->options.write(p->options.arg, text);
}

void tess_progress_init(tess_progress *progress, const tess_progress_options *options)
{
    *progress = (tess_progress){.options = *options};
    if (progress->options.columns <= 0)
        progress->options.columns = 80;
}

void tess_progress_time_text(double seconds, char text[24])
{
    if (!(seconds >= 0 && seconds < 3.6e8)) {
        memcpy(text, "?", 2);
        return;
    }
    const int64_t whole = (int64_t)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(text, 24, "%" PRId64 ":%02d:%02d", whole / 3600, (int)(whole / 60 % 60),
                 (int)(whole % 60));
    else
        snprintf(text, 24, "%02d:%02d", (int)(whole / 60), (int)(whole % 60));
}

static void rate_text(double tokens_per_s, char text[16])
{
    if (!(tokens_per_s >= 0 && tokens_per_s < 1e12))
        memcpy(text, "?", 2);
    else if (tokens_per_s >= 1e6)
        snprintf(text, 16, "%.2fM", tokens_per_s / 1e6);
    else if (tokens_per_s >= 1e4)
        snprintf(text, 16, "%.1fk", tokens_per_s / 1e3);
    else
        snprintf(text, 16, tokens_per_s < 10 ? "%.2f" : "%.0f", tokens_per_s);
}

static void numbers_text(const tess_progress *p, const tess_progress_row *row,
                         char text[TEXT_NBYTES / 2])
{
    char rate[16];
    char left[24];
    rate_text(row->tokens_per_s, rate);
    const double left_s = (double)(p->options.step_numel - row->step) * p->mean_step_s;
    tess_progress_time_text(left_s, left);
    snprintf(text, TEXT_NBYTES / 2, "loss %.4f  %s %.16s/s  %s left", row->loss, rate,
             p->options.unit != NULL ? p->options.unit : "tokens", left);
}

/* [#####.....]  50%  step 50/100  loss ... ; the bar takes what room the numbers leave, where that
 * is enough to show something. */
static void draw_bar(tess_progress *p, const tess_progress_row *row)
{
    char numbers[TEXT_NBYTES / 2];
    char tail[TEXT_NBYTES];
    numbers_text(p, row, numbers);
    const int64_t total = TESS_MAX(p->options.step_numel, (int64_t)1);
    const double part = TESS_MIN((double)row->step / (double)total, 1.0);
    snprintf(tail, sizeof tail, "%3d%%  step %" PRId64 "/%" PRId64 "  %s", (int)(100 * part),
             row->step, p->options.step_numel, numbers);
    const int room = p->options.columns - (int)strlen(tail) - 4;
    const int width = room >= BAR_MIN ? TESS_MIN(room, (int)BAR_MAX) : 0;
    const int full = (int)(part * width);
    char bar[BAR_MAX + 1];
    memset(bar, '.', sizeof bar);
    memset(bar, '#', (size_t)full);
    bar[width] = '\0';
    char text[TEXT_NBYTES + BAR_MAX + 16];
    const char *const edge[2] = {width > 0 ? "[" : "", width > 0 ? "] " : ""};
    snprintf(text, sizeof text, "\r%s%s%s%.*s\x1b[K", edge[0], bar, edge[1],
             TESS_MAX(p->options.columns - 1, 1), tail);
    show(p, text);
    p->is_bar_shown = true;
}

static void write_line(const tess_progress *p, const tess_progress_row *row)
{
    char numbers[TEXT_NBYTES / 2];
    char text[TEXT_NBYTES];
    numbers_text(p, row, numbers);
    snprintf(text, sizeof text, "step %" PRId64 "/%" PRId64 "  %s\n", row->step,
             p->options.step_numel, numbers);
    show(p, text);
}

void tess_progress_step(tess_progress *progress, const tess_progress_row *row)
{
    tess_progress *p = progress;
    /* The first step touches fresh memory and is no measure of the others. */
    const bool is_first = row->step == p->options.done_numel + 1;
    const bool is_second = row->step == p->options.done_numel + 2;
    if (p->mean_step_s <= 0 || is_second)
        p->mean_step_s = row->step_s;
    else
        p->mean_step_s = keep * p->mean_step_s + (1 - keep) * row->step_s;
    const bool is_last = row->step >= p->options.step_numel;
    const double least_s = p->options.is_terminal ? redraw_s : p->options.interval_s;
    const bool is_due = !p->has_shown || is_first || is_last || row->now_s - p->shown_s >= least_s;
    if (!is_due)
        return;
    if (p->options.is_terminal)
        draw_bar(p, row);
    else
        write_line(p, row);
    p->shown_s = row->now_s;
    p->has_shown = true;
}

void tess_progress_hide(tess_progress *progress)
{
    if (progress->is_bar_shown)
        show(progress, "\r\x1b[K");
    progress->is_bar_shown = false;
}

void tess_progress_fini(tess_progress *progress)
{
    if (progress->is_bar_shown)
        show(progress, "\n");
    progress->is_bar_shown = false;
}
