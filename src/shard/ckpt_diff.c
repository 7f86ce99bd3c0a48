/* Two checkpoints as logical tensors, whatever their sharding. Local. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

enum { WINDOW_NBYTES = TESS_CKPT_CHUNK_NBYTES };

/* One tensor in one role, or one that is not comparable. */
typedef struct diff_line {
    const char *name;
    const char *role; /* NULL: the whole tensor */
    const char *what; /* "only in A", "shape", ...; NULL: elements were compared */
    int64_t numel;
    int64_t differing_numel;
    double max_abs; /* NaN: no numbers */
    double max_rel;
} diff_line;

typedef struct diff_run {
    const tess_ckpt_printer *printer;
    ckpt_reader *a, *b;
    void *window_a, *window_b;
    int64_t equal_numel, differing_numel; /* tensors in a role */
    bool is_equal;
} diff_run;

static void put_number(ckpt_text *t, double x)
{
    if (isfinite(x))
        ckpt_text_f64(t, x);
    else
        ckpt_text_put(t, "null");
}

static void render_line_json(ckpt_text *t, const void *arg)
{
    const diff_line *line = arg;
    ckpt_text_put(t, "{\"tensor\":");
    ckpt_text_quote(t, line->name);
    if (line->role != NULL) {
        ckpt_text_put(t, ",\"role\":");
        ckpt_text_quote(t, line->role);
    }
    if (line->what != NULL) {
        ckpt_text_put(t, ",\"difference\":");
        ckpt_text_quote(t, line->what);
    } else {
        ckpt_text_put(t,
                      ",\"numel\":%" PRId64 ",\"differing\":%" PRId64 ",\"max_abs\":", line->numel,
                      line->differing_numel);
        put_number(t, line->max_abs);
        ckpt_text_put(t, ",\"max_rel\":");
        put_number(t, line->max_rel);
    }
    ckpt_text_put(t, "}\n");
}

static void render_line_text(ckpt_text *t, const void *arg)
{
    const diff_line *line = arg;
    ckpt_text_put(t, "%s%s%s: ", line->name, line->role != NULL ? " " : "",
                  line->role != NULL ? line->role : "");
    if (line->what != NULL)
        ckpt_text_put(t, "%s\n", line->what);
    else if (isnan(line->max_abs))
        ckpt_text_put(t, "%" PRId64 " of %" PRId64 " elements differ\n", line->differing_numel,
                      line->numel);
    else
        ckpt_text_put(
            t, "%" PRId64 " of %" PRId64 " elements differ, by at most %.9g (relative %.3g)\n",
            line->differing_numel, line->numel, line->max_abs, line->max_rel);
}

static tess_status tell_line(diff_run *run, const diff_line *line)
{
    run->is_equal = false;
    run->differing_numel++;
    return ckpt_render(run->printer, run->printer->is_json ? render_line_json : render_line_text,
                       line);
}

/* An element as a number; NaN where the dtype holds none. */
static double value_of(tess_dtype dt, const uint8_t *p)
{
    float f = 0;
    double d = 0;
    uint32_t bits = 0;
    uint16_t half = 0;
    int64_t i = 0;
    int32_t j = 0;
    uint64_t u = 0;
    switch (dt) {
    case TESS_F32:
        memcpy(&f, p, sizeof f);
        return (double)f;
    case TESS_F64:
        memcpy(&d, p, sizeof d);
        return d;
    case TESS_BF16:
        memcpy(&half, p, sizeof half);
        bits = (uint32_t)half << 16;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    case TESS_F16:
        memcpy(&half, p, sizeof half);
        d = (half >> 10 & 31) == 31  ? NAN
            : (half >> 10 & 31) == 0 ? ldexp(half & 1023, -24)
                                     : ldexp(1024 + (half & 1023), (half >> 10 & 31) - 25);
        return half >> 15 ? -d : d;
    case TESS_I64:
        memcpy(&i, p, sizeof i);
        return (double)i;
    case TESS_I32:
        memcpy(&j, p, sizeof j);
        return (double)j;
    case TESS_U64:
        memcpy(&u, p, sizeof u);
        return (double)u;
    case TESS_U8:
    case TESS_U8_OPAQUE:
    case TESS_DTYPE_NUMEL:
        break;
    }
    return NAN;
}

static void compare_window(diff_line *line, tess_dtype dt, const uint8_t *a, const uint8_t *b,
                           int64_t numel)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    if (memcmp(a, b, (size_t)numel * elem_nbytes) == 0)
        return;
    for (int64_t i = 0; i < numel; i++, a += elem_nbytes, b += elem_nbytes) {
        if (memcmp(a, b, elem_nbytes) == 0)
            continue;
        line->differing_numel++;
        const double x = value_of(dt, a), y = value_of(dt, b);
        const double off = fabs(x - y), scale = fmax(fabs(x), fabs(y));
        /* NaN against a number, or infinity: no finite distance. */
        line->max_abs = fmax(line->max_abs, isnan(off) ? INFINITY : off);
        line->max_rel = fmax(line->max_rel, isnan(off) ? INFINITY : scale > 0 ? off / scale : 0);
    }
}

static tess_status compare_elements(diff_run *run, const tess_ckpt_tensor *ta, int64_t record_a,
                                    const tess_ckpt_tensor *tb, int64_t record_b, diff_line *line)
{
    const tess_dtype dt = run->a->manifest.records[record_a].dt;
    const int64_t step = WINDOW_NBYTES / (int64_t)tess_dtype_block_nbytes(dt);
    const bool is_bytes = dt == TESS_U8 || dt == TESS_U8_OPAQUE;
    line->numel = ta->extent_numel;
    for (int64_t at = 0; at < ta->extent_numel; at += step) {
        const int64_t part = TESS_MIN(step, ta->extent_numel - at);
        TESS_TRY(ckpt_reader_read(run->a, record_a, ta->offset_numel + at,
                                  ta->offset_numel + at + part, run->window_a));
        TESS_TRY(ckpt_reader_read(run->b, record_b, tb->offset_numel + at,
                                  tb->offset_numel + at + part, run->window_b));
        compare_window(line, dt, run->window_a, run->window_b, part);
    }
    if (is_bytes)
        line->max_abs = line->max_rel = NAN;
    return TESS_OK;
}

static tess_status compare_role(diff_run *run, int64_t ta, int64_t pair, int64_t tb)
{
    const ckpt_manifest *a = &run->a->manifest, *b = &run->b->manifest;
    const int64_t record_a = a->index.pairs[pair].record_idx;
    diff_line line = {.name = a->tensors[ta].name, .role = a->records[record_a].role};
    int64_t pair_b = b->index.first_pair[tb];
    while (pair_b < b->index.first_pair[tb + 1] &&
           strcmp(b->records[b->index.pairs[pair_b].record_idx].role, line.role) != 0)
        pair_b++;
    if (pair_b == b->index.first_pair[tb + 1]) {
        line.what = "role only in A";
        return tell_line(run, &line);
    }
    const int64_t record_b = b->index.pairs[pair_b].record_idx;
    if (a->records[record_a].dt != b->records[record_b].dt) {
        line.what = "stored dtype differs";
        return tell_line(run, &line);
    }
    TESS_TRY(compare_elements(run, &a->tensors[ta], record_a, &b->tensors[tb], record_b, &line));
    if (line.differing_numel > 0)
        return tell_line(run, &line);
    run->equal_numel++;
    return TESS_OK;
}

/* Why two tensors of one name cannot be compared; NULL: they can. */
static const char *obstacle(const tess_ckpt_tensor *a, const tess_ckpt_tensor *b)
{
    bool is_same_shape = a->dim_numel == b->dim_numel;
    for (int d = 0; is_same_shape && d < a->dim_numel; d++)
        is_same_shape = a->shape[d] == b->shape[d];
    if (!is_same_shape)
        return "shape differs";
    if (strcmp(a->dtype, b->dtype) != 0)
        return "logical dtype differs";
    if (strcmp(a->quant, b->quant) != 0 || a->extent_numel != b->extent_numel)
        return "quantization differs";
    return NULL;
}

static tess_status compare_tensor(diff_run *run, int64_t ta)
{
    const ckpt_manifest *a = &run->a->manifest, *b = &run->b->manifest;
    const int64_t tb = ckpt_index_tensor(&b->index, a->tensors[ta].name);
    diff_line line = {.name = a->tensors[ta].name};
    line.what = tb < 0 ? "only in A" : obstacle(&a->tensors[ta], &b->tensors[tb]);
    if (line.what != NULL)
        return tell_line(run, &line);
    for (int64_t p = a->index.first_pair[ta]; p < a->index.first_pair[ta + 1]; p++)
        TESS_TRY(compare_role(run, ta, p, tb));
    for (int64_t p = b->index.first_pair[tb]; p < b->index.first_pair[tb + 1]; p++) {
        const tess_ckpt_record *r = &b->records[b->index.pairs[p].record_idx];
        if (ckpt_index_record(&a->index, a->tensors[ta].unit, r->role) >= 0)
            continue;
        line.role = r->role;
        line.what = "role only in B";
        TESS_TRY(tell_line(run, &line));
    }
    return TESS_OK;
}

static tess_status compare_readers(diff_run *run)
{
    const ckpt_manifest *a = &run->a->manifest, *b = &run->b->manifest;
    for (int64_t i = 0; i < a->set.tensor_numel; i++)
        TESS_TRY(compare_tensor(run, a->index.tensor_order[i]));
    for (int64_t i = 0; i < b->set.tensor_numel; i++) {
        const diff_line line = {.name = b->tensors[b->index.tensor_order[i]].name,
                                .what = "only in B"};
        if (ckpt_index_tensor(&a->index, line.name) < 0)
            TESS_TRY(tell_line(run, &line));
    }
    return TESS_OK;
}

/* Two directories of the same kind. */
static tess_status compare_dirs(diff_run *run, const tess_ctx *ctx, const char *dir_a,
                                const char *dir_b)
{
    TESS_TRY(ckpt_reader_open_dir(ctx->io, dir_a, run->a));
    TESS_TRY(ckpt_reader_open_dir(ctx->io, dir_b, run->b));
    TESS_CHECK(strcmp(run->a->manifest.kind, run->b->manifest.kind) == 0, TESS_E_ARG,
               "'%s' is a %s and '%s' is a %s", dir_a, run->a->manifest.kind, dir_b,
               run->b->manifest.kind);
    return compare_readers(run);
}

/* The bases of two steps, when their content differs. */
static tess_status compare_bases(diff_run *run, const tess_ctx *ctx)
{
    const tess_ckpt_base *a = &run->a->manifest.base, *b = &run->b->manifest.base;
    char dir_a[PATH_MAX], dir_b[PATH_MAX];
    const bool is_same =
        a->id == NULL || b->id == NULL ? a->id == b->id : strcmp(a->id, b->id) == 0;
    if (is_same)
        return TESS_OK;
    const diff_line line = {.name = "(base)", .what = "base id differs"};
    TESS_TRY(tell_line(run, &line));
    if (a->mode != TESS_CKPT_BASE_COPY || b->mode != TESS_CKPT_BASE_COPY)
        return TESS_OK;
    TESS_TRY(ckpt_base_dir(run->a->dir, a->id, dir_a));
    TESS_TRY(ckpt_base_dir(run->b->dir, b->id, dir_b));
    ckpt_reader_close(run->a);
    ckpt_reader_close(run->b);
    return compare_dirs(run, ctx, dir_a, dir_b);
}

static void render_summary(ckpt_text *t, const void *arg)
{
    const diff_run *run = arg;
    if (run->printer->is_json)
        ckpt_text_put(t, "{\"equal\":%" PRId64 ",\"differing\":%" PRId64 ",\"is_equal\":%s}\n",
                      run->equal_numel, run->differing_numel, run->is_equal ? "true" : "false");
    else
        ckpt_text_put(t, "%" PRId64 " equal, %" PRId64 " differing\n", run->equal_numel,
                      run->differing_numel);
}

static tess_status diff_all(diff_run *run, const tess_ctx *ctx, const char *path_a,
                            const char *path_b)
{
    char dir_a[PATH_MAX], dir_b[PATH_MAX];
    TESS_TRY(tess_ckpt_resolve(ctx, path_a, dir_a, sizeof dir_a));
    TESS_TRY(tess_ckpt_resolve(ctx, path_b, dir_b, sizeof dir_b));
    TESS_TRY(tess_alloc(WINDOW_NBYTES, &run->window_a));
    TESS_TRY(tess_alloc(WINDOW_NBYTES, &run->window_b));
    TESS_TRY(compare_dirs(run, ctx, dir_a, dir_b));
    TESS_TRY(compare_bases(run, ctx));
    return ckpt_render(run->printer, render_summary, run);
}

tess_status tess_ckpt_diff(const tess_ctx *ctx, const char *path_a, const char *path_b,
                           const tess_ckpt_printer *printer, bool *is_equal)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(2, sizeof(ckpt_reader), &memory));
    ckpt_reader *readers = memory;
    readers[0] = readers[1] = (ckpt_reader){.open_rank = -1, .fd = -1};
    diff_run run = {.printer = printer, .a = &readers[0], .b = &readers[1], .is_equal = true};
    const tess_status st = diff_all(&run, ctx, path_a, path_b);
    ckpt_reader_close(run.a);
    ckpt_reader_close(run.b);
    tess_free(run.window_a);
    tess_free(run.window_b);
    tess_free(memory);
    if (st == TESS_OK)
        *is_equal = run.is_equal;
    return st;
}
