#include "train/anomaly.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/median.h"

static const double SIGMA_OF_MAD = 1.4826, LEAST_DEVIATION = 0.01;

/* ---- spikes ---- */

static tess_spike score(const tess_spike_window *w, double value)
{
    double sorted[TESS_SPIKE_WINDOW_NUMEL];
    const int numel = (int)TESS_MIN(w->seen_numel, TESS_SPIKE_WINDOW_NUMEL);
    if (numel < TESS_SPIKE_LEAST_NUMEL)
        return (tess_spike){0};
    for (int i = 0; i < numel; i++)
        sorted[i] = w->value[i];
    const double median = tess_median_low(sorted, numel);
    for (int i = 0; i < numel; i++)
        sorted[i] = fabs(sorted[i] - median);
    const double noise = SIGMA_OF_MAD * tess_median_low(sorted, numel);
    const double deviation = TESS_MAX(noise, LEAST_DEVIATION * fabs(median));
    return (tess_spike){.median = median,
                        .score = deviation > 0.0 ? (value - median) / deviation : 0.0};
}

tess_spike tess_spike_score(tess_spike_window *window, double value)
{
    if (!isfinite(value))
        return (tess_spike){0};
    const tess_spike spike = score(window, value);
    window->value[window->seen_numel++ % TESS_SPIKE_WINDOW_NUMEL] = value;
    return spike;
}

enum { DIGIT_NUMEL = 16 }; /* of a value in text */

void tess_spike_window_write(const tess_spike_window *window, char text[TESS_SPIKE_TEXT_NBYTES])
{
    const int64_t numel = TESS_MIN(window->seen_numel, (int64_t)TESS_SPIKE_WINDOW_NUMEL);
    text[0] = '\0';
    for (int64_t i = 0; i < numel; i++) {
        const int64_t at = window->seen_numel - numel + i;
        uint64_t bits = 0;
        memcpy(&bits, &window->value[at % TESS_SPIKE_WINDOW_NUMEL], sizeof bits);
        snprintf(text + DIGIT_NUMEL * i, DIGIT_NUMEL + 1, "%016" PRIx64, bits);
    }
}

bool tess_spike_window_read(const char *text, tess_spike_window *window)
{
    tess_spike_window read = {0};
    const size_t nbytes = strlen(text);
    if (nbytes % DIGIT_NUMEL != 0 || nbytes >= TESS_SPIKE_TEXT_NBYTES ||
        strspn(text, "0123456789abcdef") != nbytes)
        return false;
    for (; *text != '\0'; text += DIGIT_NUMEL) {
        uint64_t bits = 0;
        double value = 0.0;
        (void)sscanf(text, "%16" SCNx64, &bits);
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            return false;
        read.value[read.seen_numel++] = value;
    }
    *window = read;
    return true;
}

/* ---- slow ranks ---- */

static double time_of(const tess_rank_pace *p, bool is_by_step)
{
    return is_by_step ? p->own_s : p->own_s / (double)p->micro_batch_numel;
}

static double median_of(const tess_rank_pace *pace, int world, bool is_by_step, double *scratch)
{
    int numel = 0;
    for (int i = 0; i < world; i++)
        if (pace[i].micro_batch_numel > 0)
            scratch[numel++] = time_of(&pace[i], is_by_step);
    return tess_median_low(scratch, numel);
}

void tess_rank_pace_judge(tess_rank_pace *pace, int world, double *scratch)
{
    const double median_s[2] = {median_of(pace, world, false, scratch),
                                median_of(pace, world, true, scratch)};
    for (int i = 0; i < world; i++) {
        tess_rank_pace *p = &pace[i];
        const bool was_slow = p->is_slow;
        p->time_s = p->median_s = 0.0;
        p->is_by_step = p->is_slow = false;
        if (p->micro_batch_numel > 0) {
            /* the lesser of the two factors, without dividing by a median that may be 0 */
            p->is_by_step = time_of(p, true) * median_s[false] < time_of(p, false) * median_s[true];
            p->time_s = time_of(p, p->is_by_step);
            p->median_s = median_s[p->is_by_step];
            p->is_slow = p->median_s > 0.0 && p->time_s > TESS_SLOW_FACTOR * p->median_s;
        }
        p->is_news = p->is_slow && !was_slow;
    }
}
