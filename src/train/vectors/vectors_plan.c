/* The plan of a job over vectors: from the run file, as JSON, as text. */
#include <inttypes.h>

#include "core/memory.h"
#include "format/json.h"
#include "kernels/cuda_work.h"
#include "train/data/mask.h"
#include "train/strbuf.h"
#include "train/trace_file.h"
#include "train/vectors/kmeans_predict.h"
#include "train/vectors/vectors_session.h"

tess_kmeans_config session_kmeans_config(const tess_run *run)
{
    const tess_run_quantizer_keys *q = &run->quantizer;
    return (tess_kmeans_config){.code_numel = q->codes,
                                .level_numel = (int)q->levels,
                                .group_numel = (int)q->groups,
                                .beam_numel = (int)q->beam,
                                .pass_numel = q->passes,
                                .refine_numel = q->refine,
                                .batch_numel = q->batch,
                                .is_spherical = q->spherical,
                                .init = (tess_kmeans_init)(q->init - TESS_RUN_CODE_INIT_PLUS_PLUS),
                                .seed = (uint64_t)run->train.seed};
}

tess_status session_kmeans_plan(const tess_run *run, const tess_kmeans_plan_request *sizes,
                                const tess_kernels *kernels, tess_kmeans_plan *out)
{
    tess_kmeans_plan_request request = *sizes;
    TESS_CHECK(run->quantizer.dim == TESS_RUN_AUTO || run->quantizer.dim == sizes->dim,
               TESS_E_CONFIG,
               "quantizer.dim: %" PRId64 ", but data.path holds vectors of %" PRId64 " dimensions",
               run->quantizer.dim, sizes->dim);
    request.config = session_kmeans_config(run);
    request.sharding = (tess_kmeans_sharding)run->quantizer.sharding;
    request.thread_numel = (int)run->compute.threads;
    return tess_kmeans_plan_make(&request, kernels, out);
}

tess_status session_open_vectors(const tess_ctx *ctx, const tess_run *run, bool is_eval,
                                 tess_vectors **out)
{
    const char *mask = is_eval ? run->data.eval_mask_path : run->data.mask_path;
    tess_vectors *vectors = NULL;
    TESS_TRY(tess_vectors_open(ctx, is_eval ? run->data.eval_path : run->data.path, &vectors));
    if (mask != NULL) {
        const tess_status st = tess_vectors_leave_out(vectors, mask, tess_mask_key(is_eval));
        if (st != TESS_OK) {
            tess_vectors_close(&vectors);
            return st;
        }
    }
    *out = vectors;
    return TESS_OK;
}

/* ---- JSON ---- */

static tess_status add_sharding(tess_json *object, const char *name,
                                const tess_codebook_plan *books, const tess_kmeans_plan *p)
{
    tess_json *one = NULL;
    TESS_TRY(tess_json_add_object(object, name, &one));
    TESS_TRY(tess_json_add_i64(one, "codebooks_nbytes", (int64_t)books->total_nbytes));
    return tess_json_add_f64(one, "received_nbytes_per_pass",
                             tess_codebook_pass_nbytes(books, p->round_numel));
}

static tess_status add_buffers(tess_json *root, const tess_kmeans_plan *p)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_object(root, "buffers", &list));
    for (int i = 0; i < TESS_BOOK_PLACE_NUMEL; i++)
        TESS_TRY(
            tess_json_add_i64(list, p->book.buffer[i].name, (int64_t)p->book.buffer[i].nbytes));
    TESS_TRY(tess_json_add_i64(list, "vectors and residuals", (int64_t)p->near_nbytes));
    TESS_TRY(tess_json_add_i64(list, "codes of the vectors", (int64_t)p->state_nbytes));
    TESS_TRY(tess_json_add_i64(list, "blocks", (int64_t)p->block_nbytes));
    TESS_TRY(tess_json_add_i64(list, "sample of k-means++", (int64_t)p->seed_nbytes));
    return tess_json_add_i64(list, "snapshot for checkpoints", (int64_t)p->snapshot_nbytes);
}

static tess_status fill(const tess_kmeans_plan *p, tess_json *root)
{
    const bool is_sharded = p->book.shape.is_sharded;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"world", p->world},
                   {"vectors", p->vector_numel},
                   {"dim", p->dim},
                   {"codes", p->config.code_numel},
                   {"levels", p->config.level_numel},
                   {"groups", p->config.group_numel},
                   {"beam", p->config.beam_numel},
                   {"rows_per_rank", p->book.row_numel},
                   {"vectors_per_rank", p->held_numel},
                   {"steps_at_most", tess_kmeans_step_numel(&p->config)},
                   {"total_nbytes", (int64_t)p->total_nbytes},
                   {"host_nbytes_beside_device", (int64_t)p->beside_nbytes}};
    TESS_TRY(tess_json_add_string(root, "family", "kmeans"));
    TESS_TRY(tess_json_add_string(root, "sharding", is_sharded ? "rows" : "replicated"));
    for (int i = 0; i < TESS_NELEM(numbers); i++)
        TESS_TRY(tess_json_add_i64(root, numbers[i].name, numbers[i].value));
    TESS_TRY(add_sharding(root, "replicated", is_sharded ? &p->other : &p->book, p));
    TESS_TRY(add_sharding(root, "rows", is_sharded ? &p->book : &p->other, p));
    return add_buffers(root, p);
}

/* `outlook` NULL: exactly plan.json of the run. */
static tess_status make_json(const tess_kmeans_plan *plan, const tess_kmeans_outlook *outlook,
                             char **text)
{
    tess_json *root = NULL;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = fill(plan, root);
    if (st == TESS_OK && outlook != NULL)
        st = tess_kmeans_outlook_json(outlook, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 2, text, NULL);
    tess_json_destroy(&root);
    return st;
}

tess_status session_kmeans_plan_json(const tess_kmeans_plan *plan, char **text)
{
    return make_json(plan, NULL, text);
}

/* ---- text ---- */

static double mib(size_t nbytes) { return (double)nbytes / (1 << 20); }

static tess_status write_text(const tess_kmeans_plan *p, tess_strbuf *b)
{
    const bool is_sharded = p->book.shape.is_sharded;
    const tess_codebook_plan *const way[2] = {is_sharded ? &p->other : &p->book,
                                              is_sharded ? &p->book : &p->other};
    static const char *const name[2] = {"replicated", "rows"};
    TESS_TRY(tess_strbuf_add(b,
                             "k-means: %" PRId64 " vectors of %" PRId64
                             " dimensions, %d group(s) x %d level(s) x %" PRId64
                             " codes, beam %d, on %d rank(s)\n",
                             p->vector_numel, p->dim, p->config.group_numel, p->config.level_numel,
                             p->config.code_numel, p->config.beam_numel, p->world));
    TESS_TRY(
        tess_strbuf_add(b, "steps: at most %" PRId64 "\n\n", tess_kmeans_step_numel(&p->config)));
    TESS_TRY(tess_strbuf_add(b, "%-12s %14s %22s\n", "sharding", "codebooks MiB",
                             "received MiB per pass"));
    for (int i = 0; i < 2; i++)
        TESS_TRY(tess_strbuf_add(b, "%-12s %14.1f %22.1f%s\n", name[i], mib(way[i]->total_nbytes),
                                 tess_codebook_pass_nbytes(way[i], p->round_numel) / (1 << 20),
                                 i == is_sharded ? "  <- chosen" : ""));
    TESS_TRY(tess_strbuf_add(b, "\n%-28s %10s\n", "memory of a rank", "MiB"));
    for (int i = 0; i < TESS_BOOK_PLACE_NUMEL; i++)
        if (p->book.buffer[i].nbytes > 0)
            TESS_TRY(tess_strbuf_add(b, "%-28s %10.2f\n", p->book.buffer[i].name,
                                     mib(p->book.buffer[i].nbytes)));
    const struct {
        const char *name;
        size_t nbytes;
    } rest[] = {{"vectors and residuals", p->near_nbytes},
                {"codes of the vectors", p->state_nbytes},
                {"blocks", p->block_nbytes},
                {"sample of k-means++", p->seed_nbytes},
                {"snapshot for checkpoints", p->snapshot_nbytes},
                {p->is_device ? "total of a device" : "total", p->total_nbytes}};
    for (int i = 0; i < TESS_NELEM(rest); i++)
        TESS_TRY(tess_strbuf_add(b, "%-28s %10.2f\n", rest[i].name, mib(rest[i].nbytes)));
    return p->is_device
               ? tess_strbuf_add(b, "%-28s %10.2f\n", "total of its host", mib(p->beside_nbytes))
               : TESS_OK;
}

static tess_status make_text(const tess_kmeans_plan *plan, const tess_kmeans_outlook *outlook,
                             char **text)
{
    tess_strbuf b = {0};
    char *predicted = NULL;
    tess_status st = write_text(plan, &b);
    if (st == TESS_OK && outlook != NULL)
        st = tess_kmeans_outlook_text(outlook, &predicted);
    if (st == TESS_OK)
        st = tess_asprintf(text, "%s%s", b.text, predicted != NULL ? predicted : "");
    tess_free(predicted);
    tess_strbuf_fini(&b);
    return st;
}

/* ---- times ---- */

static tess_status write_timeline(const tess_ctx *ctx, const char *path,
                                  const tess_kmeans_outlook *outlook)
{
    const tess_kmeans_predict_request request = {.plan = outlook->plan,
                                                 .book = &outlook->plan->book,
                                                 .device = outlook->device,
                                                 .network = outlook->network};
    tess_trace_file *file = NULL;
    TESS_TRY(tess_trace_file_create(ctx, path, &file));
    tess_status st = tess_trace_file_rank(file, 0);
    if (st == TESS_OK)
        st = tess_kmeans_predict_trace(&request, tess_trace_file_put, file);
    if (st == TESS_OK)
        st = tess_trace_file_end(file);
    const tess_status closed = tess_trace_file_close(&file);
    return st != TESS_OK ? st : closed;
}

static tess_status print_plan(const tess_ctx *ctx, const tess_kmeans_plan *plan,
                              const tess_plan_request *request, const session_profiles *profiles,
                              char **text)
{
    tess_kmeans_outlook made, *outlook = NULL;
    if (profiles != NULL) {
        tess_kmeans_look_ahead(plan, &profiles->device, &profiles->network, &made);
        outlook = &made;
    }
    if (outlook != NULL && request->timeline != NULL)
        TESS_TRY(write_timeline(ctx, request->timeline, outlook));
    return request->is_json ? make_json(plan, outlook, text) : make_text(plan, outlook, text);
}

tess_status session_vectors_plan(const tess_ctx *ctx, const tess_run *run,
                                 const tess_plan_request *request, const session_profiles *profiles,
                                 char **text)
{
    tess_vectors *vectors = NULL;
    tess_kmeans_plan plan;
    const int64_t limit = run->compute.memory_limit;
    const bool is_other = profiles != NULL && profiles->device.kernel_path[0] != '\0';
    const bool is_device = is_other || run->compute.device == TESS_RUN_DEVICE_CUDA;
    const size_t memory_nbytes = profiles != NULL ? profiles->device.memory_nbytes : 0;
    TESS_TRY(session_open_vectors(ctx, run, false, &vectors));
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    const tess_kmeans_plan_request sizes = {
        .vector_numel = info->vector_numel,
        .dim = info->dim,
        .world = request->rank_numel,
        .is_device = is_device,
        .memory_limit_nbytes = limit == TESS_RUN_AUTO ? memory_nbytes : (size_t)limit};
    tess_vectors_close(&vectors);
    TESS_TRY(session_kmeans_plan(
        run, &sizes, is_device ? tess_kernels_cuda_planned() : &tess_kernels_cpu, &plan));
    return print_plan(ctx, &plan, request, profiles, text);
}

size_t session_vectors_planned_nbytes(const tess_session *s)
{
    return s->vectors->plan.total_nbytes;
}

int64_t session_vectors_pass_numel(const tess_session *s)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    return p->config.batch_numel > 0 ? p->config.batch_numel : p->vector_numel;
}

int64_t session_vectors_step_numel(const tess_session *s)
{
    return tess_kmeans_step_numel(&s->vectors->plan.config);
}

double session_vectors_pass_flops(const tess_session *s)
{
    const tess_kmeans_plan *p = &s->vectors->plan;
    return 2.0 * (double)session_vectors_pass_numel(s) * (double)p->config.code_numel *
           (double)p->group_dim;
}
