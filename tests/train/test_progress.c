#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/progress.h"

static char shown[16384];

static void keep(void *arg, const char *text)
{
    (void)arg;
    const size_t used = strlen(shown);
    snprintf(shown + used, sizeof shown - used, "%s", text);
}

static int count(const char *text, char what)
{
    int numel = 0;
    for (; *text != '\0'; text++)
        numel += *text == what;
    return numel;
}

static tess_progress start(bool is_terminal, int columns, int64_t done)
{
    const tess_progress_options options = {.write = keep,
                                           .is_terminal = is_terminal,
                                           .columns = columns,
                                           .done_numel = done,
                                           .step_numel = 100,
                                           .interval_s = 10};
    tess_progress p;
    tess_progress_init(&p, &options);
    shown[0] = '\0';
    return p;
}

static void step(tess_progress *p, int64_t step_idx, double now_s)
{
    const tess_progress_row row = {step_idx, 2.34567, 1234.5, 2.0, now_s};
    tess_progress_step(p, &row);
}

static void test_progress_without_terminal_writes_lines_at_intervals(void **state)
{
    (void)state;
    tess_progress p = start(false, 0, 0);
    const int64_t events = tess_alloc_events();
    for (int i = 1; i <= 100; i++)
        step(&p, i, 2.0 * i); /* the first, then every fifth step, then the last */
    tess_progress_fini(&p);
    assert_int_equal(tess_alloc_events(), events);
    assert_int_equal(count(shown, '\n'), 1 + 19 + 1);
    assert_int_equal(count(shown, '\r'), 0);
    assert_int_equal(count(shown, '\x1b'), 0);
    assert_memory_equal(shown, "step 1/100  loss 2.3457  1234 tokens/s  03:18 left\n", 51);
    assert_non_null(strstr(shown, "\nstep 6/100  loss 2.3457  1234 tokens/s  03:08 left\n"));
    assert_non_null(strstr(shown, "\nstep 100/100  loss 2.3457  1234 tokens/s  00:00 left\n"));
}

static void test_progress_on_terminal_redraws_one_line(void **state)
{
    (void)state;
    tess_progress p = start(true, 100, 0);
    step(&p, 1, 0.0);
    step(&p, 2, 0.05); /* too soon to draw again */
    step(&p, 50, 1.0);
    assert_int_equal(count(shown, '\r'), 2);
    const char *bar = strrchr(shown, '\r');
    assert_memory_equal(bar, "\r[", 2);
    const int full = count(bar, '#');
    const int rest = (int)strspn(strchr(bar, '#') + full, ".");
    assert_int_equal(full, (full + rest) / 2);
    assert_non_null(strstr(bar, "]  50%  step 50/100  loss 2.3457  1234 tokens/s  01:40 left"));
    assert_int_equal(count(shown, '\n'), 0);
    tess_progress_hide(&p);
    assert_string_equal(shown + strlen(shown) - 4, "\r\x1b[K");
    tess_progress_hide(&p); /* nothing is left to hide */
    assert_int_equal(count(shown, '\r'), 3);
    step(&p, 100, 1.01); /* the last is always drawn */
    assert_int_equal(count(shown, '\r'), 4);
    tess_progress_fini(&p);
    assert_int_equal(shown[strlen(shown) - 1], '\n');
}

/* The terminal must never wrap the line, or the redraw leaves garbage. */
static void test_progress_on_narrow_terminal_fits(void **state)
{
    (void)state;
    for (int columns = 1; columns <= 200; columns++) {
        tess_progress p = start(true, columns, 0);
        step(&p, 73, 1.0);
        const int visible = (int)strlen(shown) - 1 - 3; /* \r and ESC [ K */
        assert_true(visible < columns || columns == 1);
        assert_true(shown[1] != '[' || strspn(shown + 2, "#.") >= 10); /* or no bar at all */
        tess_progress_fini(&p);
    }
}

static void test_progress_resumed_counts_from_the_whole_run(void **state)
{
    (void)state;
    tess_progress p = start(false, 0, 60);
    const tess_progress_row slow = {61, 1, 10, 50.0, 0.0}; /* first step: fresh memory */
    const tess_progress_row next = {62, 1, 10, 1.0, 20.0};
    tess_progress_step(&p, &slow);
    tess_progress_step(&p, &next);
    assert_non_null(strstr(shown, "step 62/100  loss 1.0000  10 tokens/s  00:38 left\n"));
}

static void test_progress_odd_numbers_are_shown(void **state)
{
    (void)state;
    tess_progress p = start(false, 0, 0);
    const tess_progress_row row = {1, NAN, INFINITY, NAN, 0.0};
    tess_progress_step(&p, &row);
    assert_string_equal(shown, "step 1/100  loss nan  ? tokens/s  ? left\n");
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "00:00"},    {59.4, "00:59"},   {59.6, "01:00"},
                 {3599, "59:59"}, {3600, "1:00:00"}, {86400, "24:00:00"},
                 {-1, "?"},       {1e300, "?"},      {36610, "10:10:10"}};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        char text[24];
        tess_progress_time_text(cases[i].seconds, text);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress_without_terminal_writes_lines_at_intervals),
        cmocka_unit_test(test_progress_on_terminal_redraws_one_line),
        cmocka_unit_test(test_progress_on_narrow_terminal_fits),
        cmocka_unit_test(test_progress_resumed_counts_from_the_whole_run),
        cmocka_unit_test(test_progress_odd_numbers_are_shown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
