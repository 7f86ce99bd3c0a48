#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/ctx.h"
#include "core/memory.h"
#include "train/metrics.h"
#include "train/strbuf.h"
#include "train/tfevents.h"

typedef struct fixture {
    char folder[64];
    char warning[512];
    tess_ctx ctx;
} fixture;

static void keep_warning(void *arg, tess_log_level level, const char *line)
{
    fixture *f = arg;
    if (level == TESS_LOG_WARN)
        snprintf(f->warning, sizeof f->warning, "%s", line);
}

static int setup(void **state)
{
    static fixture f;
    f = (fixture){.folder = "/tmp/tess-metrics-XXXXXX"};
    if (mkdtemp(f.folder) == NULL || tess_io_create(0, &f.ctx.io) != TESS_OK)
        return -1;
    f.ctx.log = (tess_log){.sink = keep_warning, .arg = &f};
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    char **names = NULL;
    int64_t name_numel = 0;
    if (tess_io_list(f->ctx.io, f->folder, &names, &name_numel) != TESS_OK)
        return -1;
    for (int64_t i = 0; i < name_numel; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", f->folder, names[i]);
        unlink(path);
    }
    tess_io_list_free(&names, name_numel);
    tess_io_destroy(&f->ctx.io);
    tess_error_clear();
    return rmdir(f->folder);
}

static void read_file(const fixture *f, const char *name, char **text, size_t *nbytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    assert_int_equal(tess_io_read_all(f->ctx.io, path, 1 << 20, text, nbytes), TESS_OK);
    assert_non_null(*text);
}

static tess_metrics_step_row row_of(int64_t step)
{
    return (tess_metrics_step_row){.step = step,
                                   .loss = 1.0 / (double)step + 0.1,
                                   .grad_norm = 0.5,
                                   .learning_rate = 2e-4,
                                   .token_numel = 4096,
                                   .tokens_per_s = 1234.5,
                                   .step_s = 3.25,
                                   .exposed_comm_s = 0.125,
                                   .exposed_comm_least_s = 0.0625,
                                   .mem_host_peak_nbytes = 1 << 20};
}

static void write_steps(const fixture *f, int64_t resumed, int64_t last)
{
    tess_metrics *m = NULL;
    assert_int_equal(tess_metrics_open(&f->ctx, f->folder, resumed, &m), TESS_OK);
    const int64_t events = tess_alloc_events();
    for (int64_t step = resumed + 1; step <= last; step++) {
        const tess_metrics_step_row row = row_of(step);
        const tess_metrics_eval_row eval = {step, 2.0, 100};
        assert_int_equal(tess_metrics_step(m, &row), TESS_OK);
        assert_int_equal(tess_metrics_eval(m, &eval), TESS_OK);
    }
    assert_int_equal(tess_alloc_events(), events);
    assert_int_equal(tess_metrics_sync(m), TESS_OK);
    assert_int_equal(tess_metrics_close(&m), TESS_OK);
    assert_null(m);
}

/* Lines of a file, each with the step it must have; returns how many. */
static int64_t count_lines(const fixture *f, const char *name)
{
    size_t nbytes = 0;
    char *text = NULL;
    read_file(f, name, &text, &nbytes);
    int64_t numel = 0;
    for (char *line = text; *line != '\0'; numel++) {
        int64_t step = -1;
        assert_int_equal(sscanf(line, "{\"step\": %ld,", &step), 1);
        assert_int_equal(step, numel + 1);
        line = strchr(line, '\n');
        assert_non_null(line);
        line++;
    }
    tess_free(text);
    return numel;
}

static void test_metrics_step_line_has_every_field(void **state)
{
    const fixture *f = *state;
    tess_metrics *m = NULL;
    assert_int_equal(tess_metrics_open(&f->ctx, f->folder, 0, &m), TESS_OK);
    tess_metrics_step_row row = row_of(1);
    row.loss = 0.1 + 0.2; /* needs 17 digits */
    assert_int_equal(tess_metrics_step(m, &row), TESS_OK);
    row.step = 2;
    row.loss = NAN;
    row.grad_norm = INFINITY;
    row.skipped = "non-finite";
    row.rollback_numel = 2;
    assert_int_equal(tess_metrics_step(m, &row), TESS_OK);
    assert_int_equal(tess_metrics_close(&m), TESS_OK);
    size_t nbytes = 0;
    char *text = NULL;
    read_file(f, "metrics.jsonl", &text, &nbytes);
    char *end = strchr(text, '\n');
    assert_non_null(end);
    *end = '\0';
    assert_string_equal(
        text,
        "{\"step\": 1, \"loss\": 0.30000000000000004, \"loss_bits\": \"3fd3333333333334\", "
        "\"grad_norm\": 0.5, \"lr\": 0.0002, \"tokens\": 4096, \"tokens_per_s\": 1234.5, "
        "\"step_s\": 3.25, \"exposed_comm_s\": 0.125, "
        "\"exposed_comm_least_s\": 0.0625, \"mem_device_peak\": 0, \"mem_host_peak\": 1048576}");
    assert_non_null(strstr(end + 1, "\"loss\": null, \"loss_bits\": \"7ff8000000000000\", "
                                    "\"grad_norm\": null,"));
    assert_non_null(strstr(end + 1, ", \"skipped\": \"non-finite\", \"rollbacks\": 2}\n"));
    tess_free(text);
}

static void test_f64_text_round_trips_every_bit(void **state)
{
    (void)state;
    uint64_t bits = 88172645463325252u;
    char text[TESS_F64_TEXT_NBYTES];
    for (int i = 0; i < 20000; i++) {
        bits ^= bits << 13; /* xorshift64 */
        bits ^= bits >> 7;
        bits ^= bits << 17;
        double value = 0;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        tess_f64_text(value, text);
        const double back = strtod(text, NULL);
        assert_memory_equal(&back, &value, sizeof back);
        assert_true(strchr(text, 'e') == NULL || strchr(text, '.') != NULL);
    }
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.1, "0.1"},         {1e22, "1.0e+22"},
                 {5e-324, "5.0e-324"}, {2.0e-4, "0.0002"},
                 {-0.0, "-0"},         {123456, "123456"},
                 {1e-5, "1.0e-05"},    {INFINITY, "inf"},
                 {-INFINITY, "-inf"},  {1.0 / 3, "0.3333333333333333"}};
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_f64_text(cases[i].value, text);
        assert_string_equal(text, cases[i].text);
    }
}

static void test_metrics_open_resumed_drops_later_steps(void **state)
{
    const fixture *f = *state;
    write_steps(f, 0, 9);
    size_t first_nbytes = 0;
    char *first = NULL;
    read_file(f, "metrics.jsonl", &first, &first_nbytes);
    write_steps(f, 5, 7);
    assert_int_equal(count_lines(f, "metrics.jsonl"), 7);
    assert_int_equal(count_lines(f, "eval.jsonl"), 7);
    write_steps(f, 7, 9); /* what an uninterrupted run wrote */
    size_t second_nbytes = 0;
    char *second = NULL;
    read_file(f, "metrics.jsonl", &second, &second_nbytes);
    assert_string_equal(first, second);
    assert_string_equal(f->warning, "");
    write_steps(f, 0, 2); /* a fresh start forgets everything */
    assert_int_equal(count_lines(f, "metrics.jsonl"), 2);
    tess_free(first);
    tess_free(second);
}

static void append_text(const fixture *f, const char *text, size_t nbytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/metrics.jsonl", f->folder);
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, nbytes, file), nbytes);
    assert_int_equal(fclose(file), 0);
}

static void test_metrics_open_damaged_tail_is_dropped_with_warning(void **state)
{
    fixture *f = *state;
    static const char *const tails[] = {"{\"step\": 4, \"lo", "garbage\n", "{\"step\": 2, }\n",
                                        "{\"step\": x, }\n",
                                        "{\"step\": 99999999999999999999, }\n"};
    for (int i = 0; i < TESS_NELEM(tails); i++) {
        write_steps(f, 0, 3);
        append_text(f, tails[i], strlen(tails[i]));
        f->warning[0] = '\0';
        write_steps(f, 3, 4);
        assert_int_equal(count_lines(f, "metrics.jsonl"), 4);
        assert_non_null(strstr(f->warning, "metrics.jsonl kept_nbytes="));
    }
    static char zeros[100000]; /* what a file system may leave after a power cut */
    write_steps(f, 0, 3);
    append_text(f, zeros, sizeof zeros);
    write_steps(f, 3, 4);
    assert_int_equal(count_lines(f, "metrics.jsonl"), 4);
}

static void test_metrics_open_missing_folder_is_refused(void **state)
{
    const fixture *f = *state;
    tess_metrics *m = NULL;
    tess_error_clear();
    assert_int_equal(tess_metrics_open(&f->ctx, "/nonexistent/folder", 0, &m), TESS_E_IO);
    assert_null(m);
    assert_non_null(strstr(tess_error_message(), "/nonexistent/folder/.metrics.jsonl.new"));
}

/* Every I/O call of open, step and close fails once: the status says so, nothing leaks. */
static void test_metrics_failing_disk_is_reported(void **state)
{
    const fixture *f = *state;
    static const char *const ops[] = {"open", "pwrite", "fsync", "rename", "close", "stat"};
    for (int i = 0; i < TESS_NELEM(ops); i++) {
        for (int nth = 1;; nth++) {
            char fault[64];
            snprintf(fault, sizeof fault, "0:%s:%d:enospc", ops[i], nth);
            setenv("TESSERA_FAULT", fault, 1);
            tess_ctx ctx = {0};
            assert_int_equal(tess_io_create(0, &ctx.io), TESS_OK);
            const size_t held = tess_alloc_nbytes();
            const tess_metrics_step_row row = row_of(1);
            tess_metrics *m = NULL;
            tess_error_clear();
            tess_status st = tess_metrics_open(&ctx, f->folder, 0, &m);
            if (st == TESS_OK)
                st = tess_metrics_step(m, &row);
            const tess_status closed = tess_metrics_close(&m);
            st = st == TESS_OK ? closed : st;
            assert_int_equal(tess_alloc_nbytes(), held);
            tess_io_destroy(&ctx.io);
            if (st == TESS_OK)
                break; /* no such call: the sweep of this operation is done */
            assert_int_equal(st, TESS_E_IO);
            assert_non_null(strstr(tess_error_message(), f->folder));
            assert_true(nth < 50);
        }
    }
    unsetenv("TESSERA_FAULT");
}

static uint64_t little(const uint8_t *at, int nbytes)
{
    uint64_t value = 0;
    for (int i = nbytes - 1; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static uint32_t unmask(uint32_t masked)
{
    const uint32_t rotated = masked - 0xa282ead8u;
    return rotated >> 17 | rotated << 15;
}

static uint64_t varint(const uint8_t **at)
{
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
}

/* What the reader below found. */
typedef struct seen {
    int version_numel, session_numel, scalar_numel;
    int64_t session_step;
    char text[4096]; /* "tag@step=value;" */
} seen;

static void read_value(const uint8_t *at, const uint8_t *end, int64_t step, seen *s)
{
    char tag[64] = "";
    float value = NAN;
    while (at < end) {
        const uint64_t key = varint(&at);
        if (key == (1 << 3 | 2)) {
            const uint64_t nbytes = varint(&at);
            snprintf(tag, sizeof tag, "%.*s", (int)nbytes, (const char *)at);
            at += nbytes;
        } else {
            assert_int_equal(key, 2 << 3 | 5);
            memcpy(&value, at, 4);
            at += 4;
        }
    }
    const size_t used = strlen(s->text);
    snprintf(s->text + used, sizeof s->text - used, "%s@%ld=%g;", tag, (long)step, (double)value);
    s->scalar_numel++;
}

static void read_event(const uint8_t *at, const uint8_t *end, seen *s)
{
    int64_t step = 0;
    while (at < end) {
        const uint64_t key = varint(&at);
        if (key == (1 << 3 | 1)) {
            double wall = 0;
            memcpy(&wall, at, 8);
            assert_true(wall > 1.5e9);
            at += 8;
        } else if (key == (2 << 3 | 0)) {
            step = (int64_t)varint(&at);
        } else {
            const uint64_t nbytes = varint(&at);
            const uint8_t *stop = at + nbytes;
            if (key == (3 << 3 | 2)) {
                assert_memory_equal(at, "brain.Event:2", 13);
                s->version_numel++;
            } else if (key == (7 << 3 | 2)) {
                assert_memory_equal(at, "\x08\x01", 2);
                s->session_step = step;
                s->session_numel++;
            } else {
                assert_int_equal(key, 5 << 3 | 2);
                while (at < stop) {
                    assert_int_equal(varint(&at), 1 << 3 | 2);
                    const uint64_t value_nbytes = varint(&at);
                    read_value(at, at + value_nbytes, step, s);
                    at += value_nbytes;
                }
            }
            at = stop;
        }
    }
    assert_ptr_equal(at, end);
}

static void read_events(const uint8_t *file, size_t nbytes, seen *s)
{
    size_t at = 0;
    while (at < nbytes) {
        const uint64_t length = little(file + at, 8);
        assert_int_equal(unmask((uint32_t)little(file + at + 8, 4)), tess_crc32c(file + at, 8));
        assert_true(at + 16 + length <= nbytes);
        const uint8_t *data = file + at + 12;
        assert_int_equal(unmask((uint32_t)little(data + length, 4)), tess_crc32c(data, length));
        read_event(data, data + length, s);
        at += 16 + length;
    }
}

static void test_metrics_event_file_reads_back(void **state)
{
    const fixture *f = *state;
    write_steps(f, 0, 2);
    write_steps(f, 1, 2);
    char **names = NULL;
    int64_t name_numel = 0;
    int file_numel = 0;
    assert_int_equal(tess_io_list(f->ctx.io, f->folder, &names, &name_numel), TESS_OK);
    for (int64_t i = 0; i < name_numel; i++) {
        if (strncmp(names[i], "events.out.tfevents.", 20) != 0)
            continue;
        size_t nbytes = 0;
        char *bytes = NULL;
        read_file(f, names[i], &bytes, &nbytes);
        seen s = {0};
        read_events((const uint8_t *)bytes, nbytes, &s);
        assert_int_equal(s.version_numel, 1);
        assert_int_equal(s.session_numel, 1);
        static const char second[] = "loss@2=0.6;grad_norm@2=0.5;lr@2=0.0002;"
                                     "tokens_per_s@2=1234.5;eval/loss@2=2;";
        const char *found = strstr(s.text, second);
        assert_non_null(found);
        assert_int_equal(s.scalar_numel, s.session_step == 1 ? 10 : 5);
        file_numel++;
        tess_free(bytes);
    }
    assert_int_equal(file_numel, 2);
    tess_io_list_free(&names, name_numel);
}

static void test_crc32c_known_answers(void **state)
{
    (void)state;
    static const uint8_t zeros[32];
    assert_int_equal(tess_crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(tess_crc32c(zeros, sizeof zeros), 0x8a9136aau); /* RFC 3720, B.4 */
    assert_int_equal(tess_crc32c("", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_metrics_step_line_has_every_field, setup, teardown),
        cmocka_unit_test(test_f64_text_round_trips_every_bit),
        cmocka_unit_test_setup_teardown(test_metrics_open_resumed_drops_later_steps, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_metrics_open_damaged_tail_is_dropped_with_warning,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_metrics_open_missing_folder_is_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_metrics_failing_disk_is_reported, setup, teardown),
        cmocka_unit_test_setup_teardown(test_metrics_event_file_reads_back, setup, teardown),
        cmocka_unit_test(test_crc32c_known_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
