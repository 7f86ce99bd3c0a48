#include "train/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/memory.h"
#include "train/strbuf.h"
#include "train/tfevents.h"

enum { LINE_NBYTES = 1024, BLOCK_NBYTES = 65536, HOST_NBYTES = 64 };

/* A file that only grows. */
typedef struct appended {
    char *path;
    int fd;
    int64_t offset_nbytes;
} appended;

struct tess_metrics {
    tess_io *io;
    appended steps;
    appended evals;
    appended events;
    appended levels; /* fd -1: not asked for */
};

static tess_status append(tess_metrics *m, appended *file, const void *src, size_t nbytes)
{
    TESS_TRY(tess_io_pwrite(m->io, file->path, file->fd, src, nbytes, file->offset_nbytes));
    file->offset_nbytes += (int64_t)nbytes;
    return TESS_OK;
}

/* A line this module wrote: '{"step": N, ...}'. */
static bool parse_line(const char *line, size_t nbytes, int64_t *step)
{
    static const char head[] = "{\"step\": ";
    if (nbytes < sizeof head || line[nbytes - 1] != '}' ||
        memcmp(line, head, sizeof head - 1) != 0 || memchr(line, '\0', nbytes) != NULL)
        return false;
    int64_t value = 0;
    size_t at = sizeof head - 1;
    const size_t first = at;
    for (; at < nbytes && line[at] >= '0' && line[at] <= '9' && at - first < 18; at++)
        value = 10 * value + (line[at] - '0');
    *step = value;
    return at > first && at < nbytes && line[at] == ',';
}

/* What is known while a file is read line by line. */
typedef struct line_scan {
    char line[LINE_NBYTES];
    size_t line_nbytes;
    int64_t keep_nbytes; /* whole lines of steps up to the resumed one */
    int64_t last_step;
    int64_t resumed_step;
    bool is_over; /* a line was met that is not kept */
    bool is_damaged;
} line_scan;

static void scan_bytes(line_scan *scan, const char *block, size_t nbytes)
{
    for (size_t i = 0; i < nbytes && !scan->is_over; i++) {
        if (block[i] != '\n') {
            scan->is_damaged = scan->line_nbytes == LINE_NBYTES;
            scan->is_over = scan->is_damaged;
            if (!scan->is_over)
                scan->line[scan->line_nbytes++] = block[i];
            continue;
        }
        int64_t step = 0;
        const bool is_line = parse_line(scan->line, scan->line_nbytes, &step);
        scan->is_damaged = !is_line || step < scan->last_step;
        scan->is_over = scan->is_damaged || step > scan->resumed_step;
        if (!scan->is_over) {
            scan->last_step = step;
            scan->keep_nbytes += (int64_t)scan->line_nbytes + 1;
            scan->line_nbytes = 0;
        }
    }
}

/* Bytes of an old file that a resumed run keeps. */
static tess_status measure(const tess_ctx *ctx, const char *path, int fd, int64_t file_nbytes,
                           line_scan *scan, char *block)
{
    for (int64_t at = 0; at < file_nbytes && !scan->is_over; at += BLOCK_NBYTES) {
        const size_t nbytes = (size_t)TESS_MIN(file_nbytes - at, (int64_t)BLOCK_NBYTES);
        TESS_TRY(tess_io_pread(ctx->io, path, fd, block, nbytes, at));
        scan_bytes(scan, block, nbytes);
    }
    if (scan->is_damaged || (!scan->is_over && scan->line_nbytes > 0))
        tess_log_write(&ctx->log, TESS_LOG_WARN,
                       "metrics file=%s kept_nbytes=%" PRId64 " of=%" PRId64
                       " the rest is damaged and dropped",
                       path, scan->keep_nbytes, file_nbytes);
    return TESS_OK;
}

static tess_status copy_kept(const tess_ctx *ctx, const char *path, int fd, appended *to,
                             const char *to_path, int64_t keep_nbytes, char *block)
{
    while (to->offset_nbytes < keep_nbytes) {
        const int64_t left = keep_nbytes - to->offset_nbytes;
        const size_t nbytes = (size_t)TESS_MIN(left, (int64_t)BLOCK_NBYTES);
        TESS_TRY(tess_io_pread(ctx->io, path, fd, block, nbytes, to->offset_nbytes));
        TESS_TRY(tess_io_pwrite(ctx->io, to_path, to->fd, block, nbytes, to->offset_nbytes));
        to->offset_nbytes += (int64_t)nbytes;
    }
    return TESS_OK;
}

/* Fill the new file with what is kept of the old one, if there is one. */
static tess_status take_over(const tess_ctx *ctx, appended *file, const char *new_path,
                             int64_t resumed_step)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_stat(ctx->io, file->path, &kind, &file_nbytes));
    if (kind == TESS_IO_MISSING)
        return TESS_OK;
    void *memory = NULL;
    TESS_TRY(tess_alloc(BLOCK_NBYTES + sizeof(line_scan), &memory));
    line_scan *scan = memory;
    char *block = (char *)memory + sizeof(line_scan);
    scan->resumed_step = resumed_step;
    int fd = -1;
    tess_status st = tess_io_open_read(ctx->io, file->path, false, &fd, &file_nbytes);
    if (st == TESS_OK)
        st = measure(ctx, file->path, fd, file_nbytes, scan, block);
    if (st == TESS_OK)
        st = copy_kept(ctx, file->path, fd, file, new_path, scan->keep_nbytes, block);
    if (fd >= 0) {
        const tess_status closed = tess_io_close(ctx->io, file->path, &fd);
        st = st == TESS_OK ? closed : st;
    }
    tess_free(memory);
    return st;
}

/* The new file is complete before it takes the old one's name; its descriptor stays. */
static tess_status open_lines(const tess_ctx *ctx, const char *folder, const char *name,
                              int64_t resumed_step, appended *file)
{
    char *new_path = NULL;
    TESS_TRY(tess_asprintf(&file->path, "%s/%s", folder, name));
    TESS_TRY(tess_asprintf(&new_path, "%s/.%s.new", folder, name));
    tess_status st = tess_io_unlink(ctx->io, new_path, true);
    if (st == TESS_OK)
        st = tess_io_open_new(ctx->io, new_path, &file->fd);
    if (st == TESS_OK && resumed_step > 0)
        st = take_over(ctx, file, new_path, resumed_step);
    if (st == TESS_OK)
        st = tess_io_fsync(ctx->io, new_path, file->fd);
    if (st == TESS_OK)
        st = tess_io_rename(ctx->io, new_path, file->path);
    tess_free(new_path);
    return st;
}

static double wall_time_s(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static tess_status name_events(const tess_ctx *ctx, const char *folder, char **path)
{
    char host[HOST_NBYTES] = "localhost";
    if (gethostname(host, sizeof host - 1) != 0)
        memcpy(host, "localhost", sizeof "localhost");
    for (char *at = host; *at != '\0'; at++)
        if (*at == '/')
            *at = '_';
    /* Two files of one second: the last number tells them apart. */
    for (int serial = 0; serial < 1000; serial++) {
        char *name = NULL;
        TESS_TRY(tess_asprintf(&name, "%s/events.out.tfevents.%" PRId64 ".%s.%ld.%d", folder,
                               (int64_t)wall_time_s(), host, (long)getpid(), serial));
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        const tess_status st = tess_io_stat(ctx->io, name, &kind, &nbytes);
        if (st == TESS_OK && kind == TESS_IO_MISSING) {
            *path = name;
            return TESS_OK;
        }
        tess_free(name);
        TESS_TRY(st);
    }
    return TESS_FAIL(TESS_E_IO, "%s: no free name for an event file", folder);
}

static tess_status open_events(const tess_ctx *ctx, const char *folder, int64_t resumed_step,
                               tess_metrics *m)
{
    uint8_t record[TESS_TFRECORD_MAX_NBYTES];
    TESS_TRY(name_events(ctx, folder, &m->events.path));
    TESS_TRY(tess_io_open_new(ctx->io, m->events.path, &m->events.fd));
    size_t nbytes = tess_tf_version_record(wall_time_s(), record);
    TESS_TRY(append(m, &m->events, record, nbytes));
    nbytes = tess_tf_session_record(wall_time_s(), resumed_step + 1, record);
    return append(m, &m->events, record, nbytes);
}

tess_status tess_metrics_open(const tess_ctx *ctx, const char *folder, int64_t resumed_step,
                              tess_metrics **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_metrics), &memory));
    tess_metrics *m = memory;
    m->io = ctx->io;
    m->steps.fd = m->evals.fd = m->events.fd = m->levels.fd = -1;
    tess_status st = open_lines(ctx, folder, "metrics.jsonl", resumed_step, &m->steps);
    if (st == TESS_OK)
        st = open_lines(ctx, folder, "eval.jsonl", resumed_step, &m->evals);
    if (st == TESS_OK)
        st = open_events(ctx, folder, resumed_step, m);
    if (st == TESS_OK)
        st = tess_io_fsync_dir(ctx->io, folder);
    if (st != TESS_OK) {
        (void)!tess_metrics_close(&m);
        return st;
    }
    *out = m;
    return TESS_OK;
}

/* JSON has no infinities; the bits beside it say which value it was. */
static void json_number(double value, char text[TESS_F64_TEXT_NBYTES])
{
    if (isfinite(value))
        tess_f64_text(value, text);
    else
        memcpy(text, "null", sizeof "null");
}

static uint64_t bits_of(double value)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static tess_status append_scalars(tess_metrics *m, int64_t step, const tess_tf_scalar *scalar,
                                  int scalar_numel)
{
    uint8_t record[TESS_TFRECORD_MAX_NBYTES];
    const size_t nbytes = tess_tf_scalar_record(wall_time_s(), step, scalar, scalar_numel, record);
    return append(m, &m->events, record, nbytes);
}

tess_status tess_metrics_step(tess_metrics *metrics, const tess_metrics_step_row *row)
{
    const double value[] = {
        row->loss,   row->grad_norm,      row->learning_rate,       row->tokens_per_s,
        row->step_s, row->exposed_comm_s, row->exposed_comm_least_s};
    char text[TESS_NELEM(value)][TESS_F64_TEXT_NBYTES];
    for (int i = 0; i < TESS_NELEM(value); i++)
        json_number(value[i], text[i]);
    char line[LINE_NBYTES];
    int nbytes = snprintf(line, sizeof line,
                          "{\"step\": %" PRId64 ", \"loss\": %s, \"loss_bits\": \"%016" PRIx64
                          "\", \"grad_norm\": %s, \"lr\": %s, \"tokens\": %" PRId64
                          ", \"tokens_per_s\": %s, \"step_s\": %s, \"exposed_comm_s\": %s, "
                          "\"exposed_comm_least_s\": %s, \"mem_device_peak\": %" PRId64
                          ", \"mem_host_peak\": %" PRId64,
                          row->step, text[0], bits_of(row->loss), text[1], text[2],
                          row->token_numel, text[3], text[4], text[5], text[6],
                          row->mem_device_peak_nbytes, row->mem_host_peak_nbytes);
    if (row->skipped != NULL)
        nbytes += snprintf(line + nbytes, sizeof line - (size_t)nbytes, ", \"skipped\": \"%s\"",
                           row->skipped);
    if (row->rollback_numel > 0)
        nbytes += snprintf(line + nbytes, sizeof line - (size_t)nbytes, ", \"rollbacks\": %" PRId64,
                           row->rollback_numel);
    nbytes += snprintf(line + nbytes, sizeof line - (size_t)nbytes, "}\n");
    TESS_TRY(append(metrics, &metrics->steps, line, (size_t)nbytes));
    const tess_tf_scalar scalars[] = {{"loss", (float)row->loss},
                                      {"grad_norm", (float)row->grad_norm},
                                      {"lr", (float)row->learning_rate},
                                      {"tokens_per_s", (float)row->tokens_per_s}};
    return append_scalars(metrics, row->step, scalars, TESS_NELEM(scalars));
}

tess_status tess_metrics_pass(tess_metrics *metrics, const tess_metrics_pass_row *row)
{
    const double value[] = {row->error, row->relative, row->perplexity, row->vectors_per_s,
                            row->step_s};
    char text[TESS_NELEM(value)][TESS_F64_TEXT_NBYTES];
    for (int i = 0; i < TESS_NELEM(value); i++)
        json_number(value[i], text[i]);
    char line[LINE_NBYTES];
    const int nbytes = snprintf(
        line, sizeof line,
        "{\"step\": %" PRId64 ", \"loss\": %s, \"loss_bits\": \"%016" PRIx64
        "\", \"group\": %d, \"level\": %d, \"pass\": %" PRId64
        ", \"relative_error\": %s, \"perplexity\": %s, \"used\": %" PRId64 ", \"dead\": %" PRId64
        ", \"split\": %" PRId64 ", \"vectors\": %" PRId64
        ", \"vectors_per_s\": %s, \"step_s\": %s, \"mem_device_peak\": %" PRId64
        ", \"mem_host_peak\": %" PRId64 "}\n",
        row->step, text[0], bits_of(row->error), row->group, row->level, row->pass, text[1],
        text[2], row->used_numel, row->dead_numel, row->split_numel, row->vector_numel, text[3],
        text[4], row->mem_device_peak_nbytes, row->mem_host_peak_nbytes);
    TESS_TRY(append(metrics, &metrics->steps, line, (size_t)nbytes));
    const tess_tf_scalar scalars[] = {{"loss", (float)row->error},
                                      {"relative_error", (float)row->relative},
                                      {"perplexity", (float)row->perplexity},
                                      {"vectors_per_s", (float)row->vectors_per_s}};
    return append_scalars(metrics, row->step, scalars, TESS_NELEM(scalars));
}

tess_status tess_metrics_eval(tess_metrics *metrics, const tess_metrics_eval_row *row)
{
    char text[TESS_F64_TEXT_NBYTES];
    char line[LINE_NBYTES];
    json_number(row->loss, text);
    const int nbytes = snprintf(line, sizeof line,
                                "{\"step\": %" PRId64 ", \"eval_loss\": %s, \"eval_loss_bits\": "
                                "\"%016" PRIx64 "\", \"tokens\": %" PRId64 "}\n",
                                row->step, text, bits_of(row->loss), row->loss_token_numel);
    TESS_TRY(append(metrics, &metrics->evals, line, (size_t)nbytes));
    const tess_tf_scalar scalar = {"eval/loss", (float)row->loss};
    return append_scalars(metrics, row->step, &scalar, 1);
}

tess_status tess_metrics_open_levels(const tess_ctx *ctx, const char *folder, int64_t resumed_step,
                                     tess_metrics *metrics)
{
    return open_lines(ctx, folder, "levels.jsonl", resumed_step, &metrics->levels);
}

double tess_perplexity(const int64_t *count, int64_t code_numel, int64_t *used_numel)
{
    int64_t total = 0;
    double entropy = 0.0;
    *used_numel = 0;
    for (int64_t k = 0; k < code_numel; k++)
        total += count[k];
    for (int64_t k = 0; k < code_numel && total > 0; k++) {
        const double p = (double)count[k] / (double)total;
        *used_numel += count[k] > 0;
        entropy -= p * log(p + 1e-10);
    }
    return exp(entropy);
}

tess_status tess_metrics_level(tess_metrics *metrics, const tess_metrics_level_row *row)
{
    char error[TESS_F64_TEXT_NBYTES], perplexity[TESS_F64_TEXT_NBYTES], line[LINE_NBYTES];
    json_number(row->square_error, error);
    json_number(row->perplexity, perplexity);
    int nbytes =
        snprintf(line, sizeof line,
                 "{\"step\": %" PRId64 ", \"kind\": \"%s\", \"level\": %d, \"vectors\": "
                 "%" PRId64 ", \"square_error\": %s, \"square_error_bits\": \"%016" PRIx64 "\"",
                 row->step, row->is_eval ? "eval" : "train", row->level, row->vector_numel, error,
                 bits_of(row->square_error));
    if (row->level >= 0 && row->code_numel > 0)
        nbytes += snprintf(line + nbytes, sizeof line - (size_t)nbytes,
                           ", \"perplexity\": %s, \"used\": %" PRId64 ", \"dead\": %" PRId64,
                           perplexity, row->used_numel, row->dead_numel);
    nbytes += snprintf(line + nbytes, sizeof line - (size_t)nbytes, "}\n");
    return append(metrics, &metrics->levels, line, (size_t)nbytes);
}

tess_status tess_metrics_sync(tess_metrics *metrics)
{
    const appended *const files[] = {&metrics->steps, &metrics->evals, &metrics->events,
                                     &metrics->levels};
    for (int i = 0; i < TESS_NELEM(files); i++)
        if (files[i]->fd >= 0)
            TESS_TRY(tess_io_fsync(metrics->io, files[i]->path, files[i]->fd));
    return TESS_OK;
}

tess_status tess_metrics_close(tess_metrics **metrics)
{
    tess_metrics *m = *metrics;
    if (m == NULL)
        return TESS_OK;
    tess_status st = TESS_OK;
    appended *const files[] = {&m->steps, &m->evals, &m->events, &m->levels};
    for (int i = 0; i < TESS_NELEM(files); i++) {
        if (files[i]->fd >= 0) {
            const tess_status synced = tess_io_fsync(m->io, files[i]->path, files[i]->fd);
            const tess_status closed = tess_io_close(m->io, files[i]->path, &files[i]->fd);
            st = st == TESS_OK ? synced : st;
            st = st == TESS_OK ? closed : st;
        }
        tess_free(files[i]->path);
    }
    tess_free(m);
    *metrics = NULL;
    return st;
}
