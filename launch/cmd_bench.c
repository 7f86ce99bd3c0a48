/* tessera bench device|links|collectives */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "core/arith.h"
#include "core/clock.h"
#include "core/memory.h"
#include "kernels/kernels.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "launch/launch.h"

/* X(name of the part, whether it needs an output file, whether ranks take part) */
static const struct {
    const char *name;
    tess_status (*run)(tess_bench *b);
    bool writes_file, has_ranks;
} parts[] = {{"device", tess_bench_device, true, false},
             {"links", tess_bench_links, true, true},
             {"collectives", tess_bench_collectives, false, true}};

enum { OPERANDS_NBYTES = 512 << 20, MESSAGES_NBYTES = 1 << 20 };

static int part_of(const char *name)
{
    for (int i = 0; i < TESS_NELEM(parts); i++)
        if (name != NULL && strcmp(parts[i].name, name) == 0)
            return i;
    return -1;
}

static error_t check_end(const struct argp_state *state, const tess_bench_options *bench)
{
    const int part = part_of(bench->part);
    if (part < 0)
        return tess_launch_refuse(state, "expected device, links or collectives, found '%s'",
                                  bench->part != NULL ? bench->part : "nothing");
    if (parts[part].writes_file && bench->output == NULL)
        return tess_launch_refuse(state, "%s writes a description: give a file with -o",
                                  parts[part].name);
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const int64_t threads[2] = {1, 1024}, repeats[2] = {1, TESS_BENCH_REPEAT_MAX};
    static const int64_t mib[2] = {1, 4096};
    tess_bench_options *bench = state->input;
    const char **slots[] = {&bench->part};
    switch (key) {
    case 'o':
        bench->output = arg;
        return 0;
    case 't':
        return tess_launch_int(state, "--threads", arg, threads, &bench->thread_numel);
    case 'r':
        return tess_launch_int(state, "--repeats", arg, repeats, &bench->repeat_numel);
    case 'm':
        return tess_launch_int(state, "--max-mib", arg, mib, &bench->max_mib);
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        return check_end(state, bench);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "FILE", 0, "Write there; needed for device and links", 0},
    {"threads", 't', "N", 0, "device: threads of the kernels (1)", 0},
    {"repeats", 'r', "N", 0, "Timed repeats of everything, from 1 to 1000 (20)", 0},
    {"max-mib", 'm', "N", 0, "links, collectives: largest size in MiB (16)", 0},
    {0},
};
static const struct argp bench_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "device|links|collectives",
    .doc =
        "Measure this machine with the program's own kernels and communicators. device and links "
        "write descriptions that tessera plan reads with --device and --network; collectives "
        "prints a JSON line for every collective and size, its result checked. links and "
        "collectives run under mpirun.",
};

/* ---- measuring ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double tess_bench_median(double *value, int numel)
{
    qsort(value, (size_t)numel, sizeof *value, by_value);
    return (value[numel / 2] + value[(numel - 1) / 2]) / 2.0;
}

/* Of one thread the CPU's own time: what a busy machine leaves readable. Of several the clock's. */
static double now_s(const tess_bench *b)
{
    struct timespec t;
    if (b->pool != NULL || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0)
        return tess_clock_s();
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tess_status time_calls(tess_bench *b, tess_bench_call call, void *arg, int call_numel,
                              double *out_s)
{
    const double start_s = now_s(b);
    for (int i = 0; i < call_numel; i++)
        TESS_TRY(call(arg, &b->stream));
    *out_s = (now_s(b) - start_s) / call_numel;
    return TESS_OK;
}

tess_status tess_bench_time(tess_bench *b, tess_bench_call call, void *arg, double *out_s)
{
    enum { CALL_MAX = 10000 };
    double second[TESS_BENCH_REPEAT_MAX], once_s = 0.0;
    const int repeat_numel =
        (int)tess_ceil_div(b->options->repeat_numel, TESS_MAX(b->pass_numel, 1));
    TESS_TRY(time_calls(b, call, arg, 1, &once_s));
    TESS_TRY(time_calls(b, call, arg, 1, &once_s));
    const double wanted = 1e-3 / TESS_MAX(once_s, 1e-9);
    const int call_numel = (int)TESS_MIN(TESS_MAX(wanted, 1.0), (double)CALL_MAX);
    for (int i = 0; i < repeat_numel; i++)
        TESS_TRY(time_calls(b, call, arg, call_numel, &second[i]));
    *out_s = tess_bench_median(second, repeat_numel);
    if (b->timed_s == NULL)
        return TESS_OK;
    TESS_CHECK(b->timed_idx < TESS_BENCH_TIMED_MAX, TESS_E_STATE, "bench: more than %d timings",
               TESS_BENCH_TIMED_MAX);
    double *kept = b->timed_s[b->timed_idx++], sorted[TESS_BENCH_PASS_MAX];
    kept[b->pass_idx] = *out_s;
    memcpy(sorted, kept, sizeof sorted);
    *out_s = tess_bench_median(sorted, b->pass_idx + 1);
    return TESS_OK;
}

void *tess_bench_take(tess_bench *b, size_t nbytes)
{
    const size_t rounded = (nbytes + 255) / 256 * 256;
    if (b->used_nbytes + rounded > b->memory_nbytes)
        return NULL;
    void *out = b->memory + b->used_nbytes;
    b->used_nbytes += rounded;
    return out;
}

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

static void command_text(const tess_bench *b, char text[256])
{
    const tess_bench_options *o = b->options;
    snprintf(text, 256, "tessera bench %s --threads %d --repeats %d --max-mib %d", o->part,
             (int)o->thread_numel, (int)o->repeat_numel, (int)o->max_mib);
}

void tess_bench_source(const tess_bench *b, char *text, size_t text_nbytes)
{
    char machine[128], date[32], command[256];
    machine_text(machine);
    date_text(date);
    command_text(b, command);
    snprintf(text, text_nbytes, "%s, kernels cpu/%s, tessera %s, %s: %s, %d rank(s)", machine,
             tess_kernels_cpu.path(), TESS_VERSION, date, command,
             b->comm != NULL ? tess_comm_world(b->comm) : 1);
}

tess_status tess_bench_origin(const tess_bench *b, tess_json *root)
{
    char machine[128], date[32], command[256];
    machine_text(machine);
    date_text(date);
    command_text(b, command);
    TESS_TRY(tess_json_add_string(root, "machine", machine));
    TESS_TRY(tess_json_add_string(root, "kernels", tess_kernels_cpu.path()));
    TESS_TRY(tess_json_add_string(root, "version", TESS_VERSION));
    TESS_TRY(tess_json_add_string(root, "time", date));
    TESS_TRY(tess_json_add_string(root, "command", command));
    return tess_json_add_i64(root, "world", b->comm != NULL ? tess_comm_world(b->comm) : 1);
}

/* ---- the command ---- */

/* bf16 values around 1 in any alignment: no denormals, no overflow. */
static void fill(char *memory, size_t nbytes)
{
    uint64_t seed = 1;
    for (size_t i = 0; i + 2 <= nbytes; i += 2) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        const uint16_t x = tess_bf16_from_f32((float)(int32_t)(seed >> 32) * 0x1p-31F);
        memcpy(memory + i, &x, sizeof x);
    }
}

static tess_status measure(tess_bench *b, int part)
{
    void *memory = NULL;
    tess_status st = tess_kernels_cpu_select(tess_cpu_path_best());
    if (st == TESS_OK && b->options->thread_numel > 1)
        st = tess_pool_create((int)b->options->thread_numel, &b->pool);
    b->memory_nbytes =
        parts[part].has_ranks ? (size_t)b->options->max_mib * 4 * MESSAGES_NBYTES : OPERANDS_NBYTES;
    if (st == TESS_OK)
        st = tess_alloc(b->memory_nbytes, &memory);
    b->memory = memory;
    if (b->comm != NULL)
        st = tess_agree(b->comm, st);
    if (st != TESS_OK)
        return st;
    fill(b->memory, b->memory_nbytes);
    tess_stream_init_inline(&b->stream, "compute", b->pool);
    return parts[part].run(b);
}

static tess_status open_ranks(tess_bench *b)
{
    if (!tess_comm_is_launched())
        return tess_comm_create_self(&b->comm);
    return tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, NULL, &b->comm);
}

static tess_status run(const tess_bench_options *bench)
{
    tess_ctx ctx;
    tess_bench b = {.options = bench, .ctx = &ctx};
    const int part = part_of(bench->part);
    TESS_TRY(tess_launch_open(&bench->common, tess_launch_rank(), &ctx));
    tess_status st = parts[part].has_ranks ? open_ranks(&b) : TESS_OK;
    if (st == TESS_OK)
        st = measure(&b, part);
    if (st != TESS_OK && tess_status_is_fatal(st) && b.comm != NULL) {
        tess_launch_report(&bench->common, st, true);
        tess_comm_abort(b.comm, tess_status_exit_code(st));
    }
    tess_free(b.memory);
    tess_pool_destroy(&b.pool);
    if (b.comm != NULL) /* before the others can leave: mpirun ends the job at the first exit */
        tess_launch_report(&bench->common, st, false);
    tess_comm_destroy(&b.comm);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_bench(int argc, char **argv)
{
    tess_bench_options bench = {.thread_numel = 1, .repeat_numel = 20, .max_mib = 16};
    tess_status st = tess_launch_parse(&bench_argp, argc, argv, &bench, &bench.common);
    if (st == TESS_OK && !bench.common.is_help)
        st = run(&bench);
    return tess_launch_finish(&bench.common, st);
}
