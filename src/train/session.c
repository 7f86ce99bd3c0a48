#include "train/session.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "shard/simulate.h"
#include "train/describe/describe_rqvae.h"
#include "train/session_priv.h"

tess_status session_agree(tess_session *s, tess_status st) { return tess_agree(s->world, st); }

tess_status session_section(tess_session *s, tess_status st)
{
    s->is_broken = s->is_broken || st != TESS_OK;
    return st;
}

tess_status session_path(const tess_session *s, const char *name, char path[1024])
{
    const int n = snprintf(path, 1024, "%s/%s", s->run->output.dir, name);
    TESS_CHECK(n > 0 && n < 1024, TESS_E_CONFIG, "output.dir: path of %zu bytes is too long",
               strlen(s->run->output.dir));
    return TESS_OK;
}

/* ---- run file ---- */

static tess_status read_run_text(tess_session *s, char **text, size_t *nbytes)
{
    if (s->options.run_text == NULL)
        return tess_io_read_all(s->ctx->io, s->options.run_path, TESS_RUN_TEXT_LIMIT_NBYTES, text,
                                nbytes);
    *nbytes = strlen(s->options.run_text);
    return tess_strdup(s->options.run_text, text);
}

/* Rank 0 reads, everybody parses the same bytes. */
static tess_status share_run_text(tess_session *s, char **text, size_t *nbytes)
{
    tess_status st = TESS_OK;
    int64_t shared_nbytes = 0;
    if (tess_comm_rank(s->world) == 0) {
        st = read_run_text(s, text, nbytes);
        shared_nbytes = (int64_t)*nbytes;
    }
    TESS_TRY(session_agree(s, st));
    TESS_TRY(tess_comm_bcast(s->world, 0, &shared_nbytes, sizeof shared_nbytes));
    if (tess_comm_rank(s->world) != 0) {
        void *room = NULL;
        st = tess_alloc((size_t)shared_nbytes + 1, &room);
        *text = room;
        *nbytes = (size_t)shared_nbytes;
    }
    TESS_TRY(session_agree(s, st));
    return tess_comm_bcast(s->world, 0, *text, *nbytes);
}

/* What keys depend on beside the run file: rank 0 looks into the files, the others take its word.
 */
typedef struct run_facts {
    tess_run_family family;
    int64_t sequence_numel; /* of an epoch; 0: not known, or not asked for */
} run_facts;

typedef struct run_look {
    const tess_ctx *ctx;
    run_facts *facts;
} run_look;

static tess_status look_at_family(const void *arg, const tess_run *run, tess_run_family *family)
{
    const run_look *look = arg;
    TESS_TRY(tess_describe_family(look->ctx, run, family));
    look->facts->family = *family;
    return TESS_OK;
}

static tess_status look_at_epoch(const void *arg, const tess_run *run, int64_t *sequence_numel)
{
    const run_look *look = arg;
    TESS_TRY(tess_describe_epoch(look->ctx, run, sequence_numel));
    look->facts->sequence_numel = *sequence_numel;
    return TESS_OK;
}

static tess_status told_family(const void *arg, const tess_run *run, tess_run_family *family)
{
    (void)run;
    *family = ((const run_look *)arg)->facts->family;
    return TESS_OK;
}

static tess_status told_epoch(const void *arg, const tess_run *run, int64_t *sequence_numel)
{
    (void)run;
    *sequence_numel = ((const run_look *)arg)->facts->sequence_numel;
    return TESS_OK;
}

static tess_status parse_run(tess_session *s)
{
    const bool is_root = tess_comm_rank(s->world) == 0;
    char *text = NULL;
    size_t nbytes = 0;
    run_facts facts = {.family = TESS_RUN_FAMILY_AUTO};
    const run_look look = {s->ctx, &facts};
    tess_status st = share_run_text(s, &text, &nbytes);
    if (st != TESS_OK)
        goto done;
    tess_run_source source = {.text = text,
                              .nbytes = nbytes,
                              .name = s->options.run_path,
                              .overrides = s->options.overrides,
                              .override_numel = s->options.override_numel,
                              .epoch_of = told_epoch};
    tess_status parsed = TESS_OK;
    if (is_root && s->options.kind == TESS_SESSION_TRAIN)
        source.epoch_of = look_at_epoch; /* readers do without the data */
    if (is_root)
        parsed = tess_run_parse_with(&source, look_at_family, &look, &s->run);
    st = tess_comm_bcast(s->world, 0, &facts, sizeof facts);
    if (st == TESS_OK && !is_root)
        parsed = tess_run_parse_with(&source, told_family, &look, &s->run);
    if (st == TESS_OK)
        st = session_agree(s, parsed);
    if (st == TESS_OK)
        st = session_agree_on_run(s);
done:
    tess_free(text);
    return st;
}

/* ---- launch ---- */

/* The lowest instruction path among the ranks: bits differ between paths. */
static tess_status choose_kernels(tess_session *s)
{
    int64_t lowest = -(int64_t)tess_cpu_path_best();
    TESS_TRY(session_choose_device(s));
    TESS_TRY(tess_comm_control(s->world, NULL, 0, &lowest, 1));
    TESS_TRY(session_agree(s, tess_kernels_cpu_select((tess_cpu_path)-lowest)));
    if (s->device != NULL)
        return tess_kernels_check(s->kernels);
    s->kernels = s->options.kernels != NULL ? s->options.kernels : &tess_kernels_cpu;
    snprintf(s->kernel_path, sizeof s->kernel_path, "cpu/%s",
             tess_cpu_path_name((tess_cpu_path)-lowest));
    return tess_kernels_check(s->kernels);
}

tess_status session_memory_limit(tess_session *s, size_t *limit_nbytes)
{
    const int node = tess_comm_node_of(s->world, tess_comm_rank(s->world));
    int64_t least =
        -(int64_t)(tess_memory_free_nbytes() / (size_t)tess_comm_node_rank_numel(s->world, node));
    if (s->device != NULL) {
        size_t nbytes = 0;
        TESS_TRY(session_agree(s, session_device_limit(s, &nbytes)));
        least = -(int64_t)nbytes;
    }
    TESS_TRY(tess_comm_control(s->world, NULL, 0, &least, 1));
    *limit_nbytes = (size_t)-least;
    if (s->run->compute.memory_limit != TESS_RUN_AUTO)
        *limit_nbytes = (size_t)s->run->compute.memory_limit;
    return TESS_OK;
}

/* Ranks on each node, 0 where they differ. The map is the same on all ranks, and so the verdict. */
static tess_status count_node_ranks(const tess_session *s, int *out)
{
    const int first = tess_comm_node_rank_numel(s->world, 0);
    *out = first;
    for (int n = 1; n < tess_comm_node_numel(s->world); n++) {
        const int numel = tess_comm_node_rank_numel(s->world, n);
        TESS_CHECK(
            numel == first || s->run->shard.gather_group != TESS_RUN_GROUP_NODE, TESS_E_CONFIG,
            "shard.gather_group: node needs as many ranks on every node, and node %d has %d, "
            "node 0 has %d; start with mpirun --map-by ppr:N:node or srun "
            "--ntasks-per-node=N, or set shard.gather_group to a number that divides both",
            n, numel, first);
        if (numel != first)
            *out = 0;
    }
    return TESS_OK;
}

/* First rank of every node, and the world behind them; the caller frees. */
static tess_status list_nodes(const tess_session *s, int **out)
{
    const int node_numel = tess_comm_node_numel(s->world);
    void *array = NULL;
    TESS_TRY(tess_alloc_array(node_numel + 1, sizeof(int), &array));
    int *first_rank = array;
    for (int n = 0; n < node_numel; n++)
        first_rank[n + 1] = first_rank[n] + tess_comm_node_rank_numel(s->world, n);
    *out = first_rank;
    return TESS_OK;
}

static tess_status make_description(tess_session *s)
{
    int node_rank_numel = 0, *first_rank = NULL;
    TESS_TRY(count_node_ranks(s, &node_rank_numel));
    tess_launch_shape launch = {.world = tess_comm_world(s->world),
                                .node_rank_numel = node_rank_numel,
                                .node_numel = tess_comm_node_numel(s->world),
                                .kernel_path = s->kernel_path,
                                .is_device = s->device != NULL,
                                .library_nbytes = session_library_nbytes(s),
                                .kernels = s->kernels,
                                .is_reader = s->options.kind != TESS_SESSION_TRAIN,
                                .adapter = s->options.adapter};
    TESS_TRY(session_memory_limit(s, &launch.memory_limit_nbytes));
    tess_status st = list_nodes(s, &first_rank);
    launch.node_first_rank = first_rank;
    if (st == TESS_OK)
        st = tess_describe(s->ctx, s->run, &launch, &s->d);
    tess_free(first_rank);
    if (st == TESS_OK && s->device != NULL)
        st = session_check_host(s);
    TESS_TRY(session_agree(s, st));
    if (tess_run_is_rqvae(s->run))
        TESS_TRY(session_agree(s, tess_rqvae_keep_size(s->run, &s->d.sample)));
    return TESS_OK;
}

/* ---- open ---- */

static tess_status create_runtime(tess_session *s)
{
    const int group_numel = s->d.plan->options.gather_group_numel;
    const int world = tess_comm_world(s->world);
    TESS_TRY(session_connect_devices(s));
    tess_comm *fabric = s->fabric != NULL ? s->fabric : s->world;
    if (group_numel == world && world > 1)
        s->group = fabric;
    else if (group_numel > 1) {
        TESS_TRY(tess_comm_split_group(fabric, group_numel, &s->group));
        s->owns_group = true;
    }
    tess_status st = TESS_OK;
    if (s->run->compute.threads > 1)
        st = tess_pool_create((int)s->run->compute.threads, &s->pool);
    const tess_runtime_parts parts = {.plan = s->d.plan,
                                      .registry = &s->d.registry,
                                      .device = s->device,
                                      .kernels = s->kernels,
                                      .pool = s->pool,
                                      .world = fabric,
                                      .group = s->group,
                                      .ops = tess_model_stage_ops(s->d.model),
                                      .model = tess_model_self(s->d.model),
                                      .seed = (uint64_t)s->run->train.seed,
                                      .train_blend = 1.0 - s->run->train.beta1};
    if (st == TESS_OK)
        st = tess_runtime_create(&parts, &s->rt);
    if (st == TESS_OK)
        st = session_prepare_device(s);
    st = session_agree(s, st);
    if (st == TESS_OK)
        st = session_agree(s, session_enroll_arenas(s));
    if (st == TESS_OK)
        st = tess_runtime_prepare(s->rt);
    if (st == TESS_OK)
        st = session_records_create(s);
    return session_agree(s, st);
}

static tess_status check_measured_passes(const tess_session *s)
{
    const tess_session_measure *m = s->options.measure;
    TESS_CHECK(
        m->save_every + m->traced_numel == 0, TESS_E_UNSUPPORTED,
        "model.family: saves of kmeans are not measured, nor its single kernels; give a run of "
        "another family");
    TESS_CHECK(m->step_numel < s->run->quantizer.passes, TESS_E_CONFIG,
               "quantizer.passes: expected more than the %" PRId64
               " measured ones, as the last of a level is another, found %" PRId64,
               m->step_numel, s->run->quantizer.passes);
    return TESS_OK;
}

/* The same on all ranks. */
static tess_status check_measured_steps(const tess_session *s)
{
    const tess_session_measure *m = s->options.measure;
    if (m == NULL)
        return TESS_OK;
    if (tess_run_is_kmeans(s->run))
        return check_measured_passes(s);
    const int64_t numel = m->step_numel + m->traced_numel;
    TESS_CHECK(s->step + numel <= s->run->train.steps, TESS_E_CONFIG,
               "train.steps: expected at least %" PRId64 ", for %" PRId64
               " measured steps after step %" PRId64 ", found %" PRId64,
               s->step + numel, numel, s->step, s->run->train.steps);
    return TESS_OK;
}

static tess_status open_inside(tess_session *s)
{
    const double start_s = tess_clock_s();
    TESS_TRY(parse_run(s));
    if (s->run->shard.check_collectives) /* else as the caller has it */
        tess_comm_set_checking(s->world, true);
    if (s->options.accept != NULL)
        TESS_TRY(s->options.accept(s->options.accept_arg, s->run));
    TESS_TRY(choose_kernels(s));
    TESS_TRY(check_measured_steps(s)); /* before hours of loading; then from where it goes on */
    if (tess_run_is_kmeans(s->run)) {
        const tess_status st = session_vectors_open(s);
        s->times.open_s = tess_clock_s() - start_s;
        return st;
    }
    s->feed = tess_run_is_rqvae(s->run)  ? &session_vector_feed
              : tess_run_is_flux(s->run) ? &session_flux_feed
                                         : &session_token_feed;
    TESS_TRY(make_description(s));
    TESS_TRY(s->feed->open(s));
    TESS_TRY(session_list_numerics(s));
    TESS_TRY(session_agree_on_contract(s));
    TESS_TRY(create_runtime(s));
    TESS_TRY(session_agree(s, s->feed->carve(s)));
    const double load_s = tess_clock_s();
    s->times.open_s = load_s - start_s;
    TESS_TRY(session_load(s));
    TESS_TRY(check_measured_steps(s));
    const tess_open_times *t = &s->times;
    s->times.rest_s = tess_clock_s() - load_s - t->read_s - t->make_s - t->distribute_s;
    return TESS_OK;
}

tess_status tess_session_open(const tess_ctx *ctx, tess_comm *world,
                              const tess_session_options *options, tess_session **out)
{
    void *object = NULL;
    tess_status st = tess_alloc(sizeof(tess_session), &object);
    TESS_TRY(tess_agree(world, st));
    tess_session *s = object;
    s->ctx = ctx;
    s->world = world;
    s->options = *options;
    st = open_inside(s);
    if (st != TESS_OK) {
        tess_session_close(&s);
        return st;
    }
    *out = s;
    return TESS_OK;
}

void tess_session_close(tess_session **inout)
{
    tess_session *s = *inout;
    if (s == NULL)
        return;
    tess_ckpt_store_close(&s->store);
    session_text_close(s);
    session_vectors_close(s);
    session_records_destroy(s);
    if (s->has_batch_event)
        tess_event_fini(&s->batch_read, tess_runtime_stream(s->rt));
    session_withdraw_arenas(s);
    tess_runtime_destroy(&s->rt);
    if (s->owns_group)
        tess_comm_destroy(&s->group);
    session_close_device(s);
    tess_pool_destroy(&s->pool);
    tess_dataset_close(&s->train_data);
    tess_dataset_close(&s->eval_data);
    session_vector_feed_close(s);
    session_flux_feed_close(s);
    tess_description_fini(&s->d);
    tess_free(s->source_file);
    tess_free(s->source_path);
    tess_free(s->numerics);
    tess_free(s->base_previous);
    if (s->run != NULL && s->run->shard.check_collectives)
        tess_comm_set_checking(s->world, false);
    tess_run_destroy(&s->run);
    tess_free(s);
    *inout = NULL;
}

const tess_run *tess_session_run(const tess_session *session) { return session->run; }
bool tess_session_is_broken(const tess_session *session)
{
    return session != NULL && session->is_broken;
}
int64_t tess_session_step(const tess_session *session) { return session->step; }

const char *tess_session_family(const tess_session *session)
{
    return session->vectors != NULL ? "kmeans" : session->d.family_name;
}

const char *tess_session_base_format(const tess_session *session)
{
    static const char *const word[] = {
#define X(name, text) text,
        TESS_RUN_BASE_LIST(X)
#undef X
    };
    return word[session->run->base.format];
}

const char *tess_session_kernel_path(const tess_session *session) { return session->kernel_path; }
tess_open_times tess_session_open_times(const tess_session *session) { return session->times; }

size_t tess_session_planned_nbytes(const tess_session *session)
{
    return session->vectors != NULL ? session_vectors_planned_nbytes(session)
                                    : session->d.plan->total_nbytes;
}

int64_t tess_session_pass_numel(const tess_session *session)
{
    return session->vectors != NULL ? session_vectors_pass_numel(session) : 0;
}

tess_cost tess_session_step_cost(const tess_session *session)
{
    return session->rt != NULL ? tess_runtime_step_cost(session->rt) : (tess_cost){0};
}

double tess_session_model_flops(const tess_session *session)
{
    double unlisted = 0.0;
    if (session->vectors != NULL)
        return session_vectors_pass_flops(session);
    return tess_model_flops(&session->d.registry, &unlisted) *
           (double)session->run->train.micro_batches;
}
