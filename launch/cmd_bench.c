/* tessera bench device|links|collectives|step|scaling|checkpoint|load */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/arith.h"
#include "core/clock.h"
#include "core/memory.h"
#include "kernels/kernels.h"
#include "launch/bench.h"
#include "launch/commands.h"
#include "launch/job.h"
#include "launch/launch.h"

static const struct {
    const char *name;
    tess_status (*run)(tess_bench *b);
    bool writes_file; /* a description, which needs -o; else lines */
    bool has_ranks;
    bool has_run; /* measures runs: subjects, keys, grids */
    int repeat_numel;
} parts[] = {{"device", tess_bench_device, true, false, false, 20},
             {"links", tess_bench_links, true, true, false, 20},
             {"collectives", tess_bench_collectives, false, true, false, 20},
             {"step", tess_bench_step, false, true, true, 20},
             {"scaling", tess_bench_scaling, false, true, true, 20},
             {"checkpoint", tess_bench_checkpoint, false, true, true, 5},
             {"load", tess_bench_load, false, true, true, 3}};

enum { OPERANDS_NBYTES = 512 << 20, MESSAGES_NBYTES = 1 << 20 };

static int part_of(const char *name)
{
    for (int i = 0; i < TESS_NELEM(parts); i++)
        if (name != NULL && strcmp(parts[i].name, name) == 0)
            return i;
    return -1;
}

static bool has_key(const tess_bench_options *bench, const char *key)
{
    for (int i = 0; i < bench->override_numel; i++)
        if (strncmp(bench->override[i].text, key, strlen(key)) == 0)
            return true;
    return false;
}

/* Keys that a measurement sets itself. */
static error_t check_keys(const struct argp_state *state, const tess_bench_options *bench)
{
    if (has_key(bench, "output.dir=") || has_key(bench, "output.resume="))
        return tess_launch_refuse(state, "output.dir and output.resume belong to the measurement: "
                                         "say with --dir where files may go");
    if (bench->format_numel > 0 && has_key(bench, "base.format="))
        return tess_launch_refuse(state, "base.format and --format: give one of them");
    if (bench->length_numel > 0 && has_key(bench, "data.sequence_length="))
        return tess_launch_refuse(state, "data.sequence_length and --length: give one of them");
    return 0;
}

static error_t check_end(const struct argp_state *state, tess_bench_options *bench)
{
    const int part = part_of(bench->part);
    if (part < 0)
        return tess_launch_refuse(state,
                                  "expected device, links, collectives, step, scaling, checkpoint "
                                  "or load, found '%s'",
                                  bench->part != NULL ? bench->part : "nothing");
    if (!parts[part].has_run && bench->subject_numel + bench->override_numel > 0)
        return tess_launch_refuse(
            state, "%s measures no run: what is '%.100s' for?", parts[part].name,
            bench->subject_numel > 0 ? bench->subject[0] : bench->override[0].text);
    if (!parts[part].has_run && (bench->format_numel + bench->length_numel + bench->rank_numel > 0))
        return tess_launch_refuse(
            state, "%s measures no run: it has no --format, --length, --ranks", parts[part].name);
    if (parts[part].has_run && bench->thread_numel > 1)
        return tess_launch_refuse(state, "--threads is of device: say compute.threads=%d",
                                  (int)bench->thread_numel);
    if (bench->repeat_numel == 0)
        bench->repeat_numel = parts[part].repeat_numel;
    if (strcmp(bench->part, "step") != 0 && (bench->kernels_numel > 0 || bench->device != NULL))
        return tess_launch_refuse(state, "--kernels and --device are of step");
    if (check_keys(state, bench) != 0)
        return EINVAL;
    if (parts[part].writes_file && bench->output == NULL)
        return tess_launch_refuse(state, "%s writes a description: give a file with -o",
                                  parts[part].name);
    return 0;
}

/* Keys of the run file have a dot and lowercase letters in front of their '='. */
static bool is_key_value(const char *arg)
{
    const size_t n = strspn(arg, "abcdefghijklmnopqrstuvwxyz0123456789_.");
    return n > 0 && arg[n] == '=' && memchr(arg, '.', n) != NULL;
}

static error_t parse_word(struct argp_state *state, tess_bench_options *bench, char *arg)
{
    const bool is_key = is_key_value(arg);
    int *numel = is_key ? &bench->override_numel : &bench->subject_numel;
    if (bench->part == NULL) {
        bench->part = arg;
        return 0;
    }
    if (*numel == TESS_BENCH_LIST_MAX)
        return tess_launch_refuse(state, "at most %d runs and as many keys; '%.100s' is too many",
                                  TESS_BENCH_LIST_MAX, arg);
    if (is_key)
        bench->override[*numel] = (tess_run_override){arg, state->next};
    else
        bench->subject[*numel] = arg;
    ++*numel;
    return 0;
}

/* An option that may come again: one more place of the grid. */
static error_t parse_again(struct argp_state *state, const char *option, const char *arg,
                           int64_t *list, int *numel)
{
    static const int64_t range[2] = {1, 1 << 20};
    if (*numel == TESS_BENCH_LIST_MAX)
        return tess_launch_refuse(state, "%s: at most %d of them", option, TESS_BENCH_LIST_MAX);
    if (tess_launch_int(state, option, arg, range, &list[*numel]) != 0)
        return EINVAL;
    ++*numel;
    return 0;
}

static error_t parse_run(int key, char *arg, struct argp_state *state, tess_bench_options *bench)
{
    static const int64_t warmups[2] = {0, 1000}, every[2] = {1, 1000}, kernels[2] = {0, 100};
    switch (key) {
    case 'f':
        if (bench->format_numel == TESS_BENCH_LIST_MAX)
            return tess_launch_refuse(state, "--format: at most %d of them", TESS_BENCH_LIST_MAX);
        bench->format[bench->format_numel++] = arg;
        return 0;
    case 'l':
        return parse_again(state, "--length", arg, bench->length, &bench->length_numel);
    case 'n':
        return parse_again(state, "--ranks", arg, bench->rank, &bench->rank_numel);
    case 'w':
        return tess_launch_int(state, "--warmup", arg, warmups, &bench->warmup_numel);
    case 'e':
        return tess_launch_int(state, "--every", arg, every, &bench->every_numel);
    case 'k':
        return tess_launch_int(state, "--kernels", arg, kernels, &bench->kernels_numel);
    case 'D':
        bench->device = arg;
        return 0;
    case 'd':
        bench->dir = arg;
        return 0;
    case ARGP_KEY_ARG:
        return parse_word(state, bench, arg);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const int64_t threads[2] = {1, 1024}, repeats[2] = {1, TESS_BENCH_REPEAT_MAX};
    static const int64_t mib[2] = {1, 4096};
    tess_bench_options *bench = state->input;
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
    case ARGP_KEY_END:
        return check_end(state, bench);
    default:
        return parse_run(key, arg, state, bench);
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "FILE", 0, "Write there; needed for device and links", 0},
    {"threads", 't', "N", 0, "device: threads of the kernels (1)", 0},
    {"repeats", 'r', "N", 0,
     "Timed repeats of everything, from 1 to 1000 (20; checkpoint: 5 saves, load: 3 starts)", 0},
    {"max-mib", 'm', "N", 0, "links, collectives: largest size in MiB (16)", 0},
    {"format", 'f', "NAME", 0, "Base format; again for each that is to be measured", 0},
    {"length", 'l', "N", 0,
     "Tokens of a sequence; of built-in flux pixels of a side, of rqvae vectors of a micro-batch, "
     "of kmeans vectors of the file; again for each",
     0},
    {"ranks", 'n', "N", 0,
     "scaling: number of ranks, checkpoint: of a load; again for each (powers of two, and all)", 0},
    {"warmup", 'w', "N", 0, "Steps, or saves, before the timed ones (2)", 0},
    {"every", 'e', "N", 0, "checkpoint: steps between saves (4)", 0},
    {"kernels", 'k', "N", 0,
     "step: time the single kernels of N further steps: classes of ops and their amounts (0)", 0},
    {"device", 'D', "NAME", 0,
     "step: hold times against this device's peak and memory: an installed description, or a file",
     0},
    {"dir", 'd', "DIR", 0,
     "Scratch files and checkpoints go there, seen by all ranks, and are removed (TMPDIR, /tmp)",
     0},
    {0},
};
static const struct argp bench_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "PART [RUN.yaml|SHAPE...] [KEY=VALUE...]",
    .doc =
        "Measure this machine with the program's own kernels, communicators and trainer. PART is "
        "device, links, collectives, step, scaling, checkpoint or load. device and links write "
        "descriptions that tessera plan reads with --device and --network; "
        "collectives prints a JSON line for every collective and size, its result checked. step, "
        "scaling, checkpoint and load train for some steps the runs that are named: run files, or "
        "built-in shapes with random weights and made-up data: llama (the default), llama-1b, "
        "llama-8b, llama-70b, llama-70b-layer, flux, flux-12b, rqvae, kmeans. They print a JSON "
        "line for every "
        "measurement "
        "and a table on stderr. All but device run under mpirun or srun.\v"
        "bench/README.md says what every number means; bench/report makes tables and plots.",
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

/* What was typed. */
static void command_text(int argc, char **argv, char *text, size_t nbytes)
{
    size_t at = (size_t)snprintf(text, nbytes, "tessera bench");
    for (int i = 1; i < argc && at < nbytes; i++)
        at += (size_t)snprintf(text + at, nbytes - at, " %s", argv[i]);
}

static tess_status take_memory(tess_bench *b, int part)
{
    void *memory = NULL;
    b->memory_nbytes =
        parts[part].has_ranks ? (size_t)b->options->max_mib * 4 * MESSAGES_NBYTES : OPERANDS_NBYTES;
    tess_status st = tess_alloc(b->memory_nbytes, &memory);
    b->memory = memory;
    if (b->comm != NULL)
        st = tess_agree(b->comm, st);
    if (st == TESS_OK)
        fill(b->memory, b->memory_nbytes);
    return st;
}

static tess_status measure(tess_bench *b, int part)
{
    tess_status st = tess_kernels_cpu_select(tess_cpu_path_best());
    if (st == TESS_OK && b->options->thread_numel > 1)
        st = tess_pool_create((int)b->options->thread_numel, &b->pool);
    if (b->comm != NULL)
        st = tess_agree(b->comm, st);
    if (st == TESS_OK && !parts[part].has_run)
        st = take_memory(b, part);
    if (st != TESS_OK)
        return st;
    snprintf(b->kernels, sizeof b->kernels, "cpu/%s", tess_kernels_cpu.path());
    tess_stream_init_inline(&b->stream, "compute", b->pool);
    if (parts[part].writes_file)
        return parts[part].run(b);
    TESS_TRY(tess_bench_open(b));
    st = parts[part].run(b);
    if (b->is_broken)
        return st;
    const tess_status closed = tess_bench_close(b);
    return st != TESS_OK ? st : closed;
}

/* Ranks that a measurement leaves out wait for the others at one collective. */
static tess_status open_ranks(tess_bench *b)
{
    static const tess_deadlines deadlines = {.start_s = 600.0, .collective_s = 4.0 * 3600.0};
    if (!tess_comm_is_launched())
        return tess_comm_create_self(&b->comm);
    return tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_OFF, &deadlines, &b->comm);
}

static tess_status run(const tess_bench_options *bench, int argc, char **argv)
{
    tess_ctx ctx;
    tess_bench b = {.options = bench, .ctx = &ctx};
    const int part = part_of(bench->part);
    TESS_TRY(tess_launch_open(&bench->common, tess_launch_rank(), &ctx));
    if (!bench->common.is_verbose) /* the runs' own lines are not what is asked for */
        ctx.log.least = TESS_LOG_WARN;
    if (parts[part].has_run)
        tess_launch_listen();
    command_text(argc, argv, b.command, sizeof b.command);
    tess_status st = parts[part].has_ranks ? open_ranks(&b) : TESS_OK;
    if (st == TESS_OK && b.comm != NULL)
        ctx.log.rank = tess_comm_rank(b.comm);
    if (st == TESS_OK)
        st = measure(&b, part);
    if (st != TESS_OK && (tess_status_is_fatal(st) || b.is_broken) && b.comm != NULL) {
        tess_launch_report(&bench->common, st, true);
        tess_comm_abort(b.comm, tess_status_exit_code(st));
        _Exit(tess_status_exit_code(st));
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
    tess_bench_options bench = {
        .thread_numel = 1, .max_mib = 16, .warmup_numel = 2, .every_numel = 4};
    tess_status st = tess_launch_parse(&bench_argp, argc, argv, &bench, &bench.common);
    if (st == TESS_OK && !bench.common.is_help)
        st = run(&bench, argc, argv);
    return tess_launch_finish(&bench.common, st);
}
