/* What every part of `tessera bench` writes: JSON lines that say where they come from, and rows of
 * a table for people. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "core/memory.h"
#include "kernels/kernels.h"
#include "launch/bench.h"
#include "launch/launch.h"
#include "train/strbuf.h"

/* ---- where it was measured ---- */

static void machine_text(char text[128])
{
    struct utsname name;
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[256];
    snprintf(text, 128, "%s", uname(&name) == 0 ? name.machine : "unknown");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(text, 128, "%.120s", colon + 2);
        break;
    }
    if (file != NULL)
        fclose(file);
}

static void date_text(char text[32])
{
    const time_t now = time(NULL);
    struct tm tm;
    text[0] = '\0';
    if (gmtime_r(&now, &tm) != NULL)
        (void)strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* Processes that wanted a CPU in the last minute: what a reader needs to judge times by. */
static double load_now(void)
{
    char text[64];
    double load = 0.0;
    tess_io_kernel_text("/proc/loadavg", text, sizeof text);
    return sscanf(text, "%lf", &load) == 1 ? load : -1.0;
}

void tess_bench_source(const tess_bench *b, char *text, size_t text_nbytes)
{
    char machine[128], date[32];
    machine_text(machine);
    date_text(date);
    snprintf(text, text_nbytes, "%s, kernels cpu/%s, tessera %s, %s: %s, %d rank(s)", machine,
             tess_kernels_cpu.path(), TESS_VERSION, date, b->command,
             b->comm != NULL ? tess_comm_world(b->comm) : 1);
}

static tess_status add_origin(const tess_bench *b, tess_json *root)
{
    char machine[128], date[32];
    machine_text(machine);
    date_text(date);
    TESS_TRY(tess_json_add_string(root, "bench", b->options->part));
    TESS_TRY(tess_json_add_string(root, "machine", machine));
    TESS_TRY(tess_json_add_f64(root, "load_average", load_now()));
    TESS_TRY(tess_json_add_string(root, "kernels", b->kernels));
    TESS_TRY(tess_json_add_string(root, "version", TESS_VERSION));
    TESS_TRY(tess_json_add_string(root, "time", date));
    TESS_TRY(tess_json_add_string(root, "command", b->command));
    return tess_json_add_i64(root, "world", b->comm != NULL ? tess_comm_world(b->comm) : 1);
}

/* ---- lines ---- */

static bool is_root(const tess_bench *b) { return b->comm == NULL || tess_comm_rank(b->comm) == 0; }

static tess_status agree(const tess_bench *b, tess_status st)
{
    return b->comm != NULL ? tess_agree(b->comm, st) : st;
}

tess_status tess_bench_open(tess_bench *b)
{
    const char *path = b->options->output;
    tess_status st = TESS_OK;
    if (is_root(b) && path != NULL) {
        b->file = fopen(path, "we");
        if (b->file == NULL)
            st = TESS_FAIL(TESS_E_IO, "bench: '%s' cannot be written; choose another -o", path);
    }
    return agree(b, st);
}

static tess_status put(const tess_bench *b, const tess_json *root)
{
    char *text = NULL;
    TESS_TRY(tess_json_dump(root, 0, &text, NULL));
    tess_status st = TESS_OK;
    if (b->file == NULL)
        st = tess_launch_print(text);
    if (b->file == NULL && st == TESS_OK)
        st = tess_launch_print("\n");
    if (b->file != NULL && (fprintf(b->file, "%s\n", text) < 0 || fflush(b->file) != 0))
        st = TESS_FAIL(TESS_E_IO, "bench: writing '%s' failed; is the disk full?",
                       b->options->output);
    tess_free(text);
    return st;
}

tess_status tess_bench_line(tess_bench *b, tess_json *root, tess_status st)
{
    if (is_root(b) && st == TESS_OK)
        st = add_origin(b, root);
    if (is_root(b) && st == TESS_OK)
        st = put(b, root);
    tess_json_destroy(&root);
    return agree(b, st);
}

tess_status tess_bench_close(tess_bench *b)
{
    tess_status st = TESS_OK;
    if (b->file != NULL && fclose(b->file) != 0)
        st = TESS_FAIL(TESS_E_IO, "bench: writing '%s' failed; is the disk full?",
                       b->options->output);
    b->file = NULL;
    return agree(b, st);
}

void tess_bench_row(const tess_bench *b, const char *fmt, ...)
{
    va_list args;
    if (!is_root(b))
        return;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}
