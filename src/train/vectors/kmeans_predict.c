/* Times of k-means jobs: what kmeans_step.c and kmeans_init.c do, counted in place of done. */
#include "train/vectors/kmeans_predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/exact.h"
#include "kernels/cost_count.h"
#include "shard/link_time.h"
#include "train/vectors/kmeans_priv.h"

enum { BUCKET_NUMEL = 256 /* of draws: kmeans_init.c */, NAME_ROOM = 48 };
enum { TRACED_NUMEL = 4 }; /* steps of a kind that a timeline shows one by one */

/* Vectors of a pass. */
typedef struct share {
    double own, all; /* of rank 0, of all ranks */
    double rounds;   /* whole ones, and one that is not */
    double last;     /* own vectors of that; 0: none */
} share;

/* Counts parts of a job as they come. */
typedef struct counter {
    const tess_kmeans_predict_request *r;
    const tess_kmeans_config *config;
    tess_links links;
    double world, rows, dim; /* ranks, codes that this rank searches, d */
    bool is_sharded;
    share vectors, batch; /* of a full pass, and of the one that a step takes */
    tess_kmeans_time sum;
    tess_trace_sink sink; /* NULL: no timeline */
    void *arg;
    tess_status st;
    double now_s;
    int64_t step;
    char unit[NAME_ROOM];
} counter;

/* ---- time goes by ---- */

static void pass_by(counter *c, tess_trace_lane lane, const char *name, double s, double nbytes)
{
    const tess_trace_event event = {
        .lane = lane,
        .name = name,
        .place = {.unit = c->unit[0] != '\0' ? c->unit : NULL, .round_idx = -1, .op_idx = -1},
        .step = c->step,
        .nbytes = nbytes >= 0.0 ? (int64_t)nbytes : -1,
        .start_s = c->now_s,
        .end_s = c->now_s + s};
    *(lane == TESS_TRACE_COMPUTE ? &c->sum.compute_s : &c->sum.comm_s) += s;
    c->now_s += s;
    if (c->sink != NULL && c->st == TESS_OK && s > 0.0)
        c->st = c->sink(c->arg, &event);
}

static void compute(counter *c, const char *name, const tess_cost *cost)
{
    pass_by(c, TESS_TRACE_COMPUTE, name, tess_profile_seconds(c->r->device, cost), -1.0);
}

static void copy(counter *c, const char *name, double nbytes)
{
    tess_cost cost = {0};
    tess_count_copy(&cost, nbytes);
    compute(c, name, &cost);
}

/* `times` gathers of `nbytes` of every rank. */
static void gather(counter *c, const char *name, double times, double nbytes)
{
    const tess_leg leg =
        tess_links_gather(&c->links, 0, (tess_rank_run){0, c->links.world}, nbytes, 1);
    pass_by(c, TESS_TRACE_GATHER, name, times * tess_leg_s(&leg),
            times * (c->world - 1.0) * nbytes);
}

/* `times` exchanges of `nbytes` between every two ranks. */
static void swap(counter *c, const char *name, double times, double nbytes)
{
    const tess_leg leg = tess_links_swap(&c->links, 0, nbytes);
    pass_by(c, TESS_TRACE_REDUCE, name, times * tess_leg_s(&leg),
            times * (c->world - 1.0) * nbytes);
}

static void record(counter *c, const char *name, double times, double nbytes)
{
    pass_by(c, TESS_TRACE_HOST, name, times * tess_links_record_s(&c->links, nbytes), -1.0);
}

static tess_kmeans_time take(counter *c)
{
    const tess_kmeans_time t = c->sum;
    c->sum = (tess_kmeans_time){0};
    return t;
}

static void name_unit(counter *c, int group, int level)
{
    if (level < 0)
        snprintf(c->unit, sizeof c->unit, "group.%d", group);
    else
        snprintf(c->unit, sizeof c->unit, "group.%d.level.%d", group, level);
}

/* ---- rounds ---- */

/* Blocks of `entry_numel` entries a vector that a pass goes through. */
static double parts(const share *s, int entry_numel)
{
    return s->rounds * entry_numel + ceil(s->last * entry_numel / KMEANS_BLOCK);
}

static share share_of(double vector_numel, double own)
{
    const double rounds = floor(own / KMEANS_BLOCK);
    return (share){own, vector_numel, rounds, own - rounds * KMEANS_BLOCK};
}

/* Vectors of the rank's groups, out of memory. */
static void read_vectors(counter *c, const share *s)
{
    const double dim = (double)c->r->plan->dim;
    copy(c, "read vectors", s->own * dim * sizeof(float));
    if (c->config->group_numel > 1)
        copy(c, "slices", s->own * c->dim * sizeof(float));
    /* Ranks that go through rounds together agree on each of them, others at the end. */
    record(c, "agree", c->is_sharded ? 2.0 * parts(s, 1) : 1.0, 0.0);
}

/* What `level_numel` levels leave of so many entries a vector. Sharded: owners send rows. */
static void take_off(counter *c, const share *s, int level_numel, int entry_numel)
{
    const double numel = s->own * entry_numel, blocks = parts(s, entry_numel) * level_numel;
    tess_cost one = {0};
    copy(c, "entries", numel * c->dim * sizeof(float));
    if (level_numel == 0)
        return;
    if (c->is_sharded) {
        tess_cost looked = {0};
        gather(c, "rows wanted", blocks, KMEANS_BLOCK * sizeof(uint32_t));
        tess_count_copy(&looked, 0.5 * c->world * KMEANS_BLOCK * sizeof(uint32_t));
        tess_count_copy(&looked, KMEANS_BLOCK * c->dim * sizeof(float));
        looked = tess_cost_times(looked, blocks);
        compute(c, "rows found", &looked);
        swap(c, "codes fetched", blocks, KMEANS_BLOCK * c->dim * sizeof(float) / c->world);
    }
    tess_count_code_residual(
        &one, &(tess_code_residual_args){.vector_numel = KMEANS_BLOCK, .dim = (int64_t)c->dim});
    one = tess_cost_times(one, numel * level_numel / KMEANS_BLOCK);
    compute(c, "residuals", &one);
}

/* Nearest codes of all entries. Sharded: everybody's vectors against the own rows. */
static void search(counter *c, const share *s, int entry_numel, int best_numel)
{
    const double blocks = parts(s, entry_numel);
    const double numel = (c->is_sharded ? s->all : s->own) * entry_numel;
    tess_cost cost = {0};
    if (c->is_sharded)
        gather(c, "vectors", blocks, KMEANS_BLOCK * c->dim * sizeof(float));
    tess_count_nearest(&cost, &(tess_nearest_args){.vector_numel = KMEANS_BLOCK,
                                                   .code_numel = (int64_t)c->rows,
                                                   .dim = (int64_t)c->dim,
                                                   .best_numel = best_numel});
    cost = tess_cost_times(cost, numel / KMEANS_BLOCK);
    compute(c, "search", &cost);
    if (!c->is_sharded)
        return;
    const double key_nbytes = (double)best_numel * KMEANS_BLOCK * sizeof(uint64_t);
    swap(c, "keys", blocks, key_nbytes);
    copy(c, "least keys", blocks * c->world * key_nbytes);
}

/* Entries into the sums of their codes. */
static void add(counter *c, const share *s, int entry_numel)
{
    const double blocks = parts(s, entry_numel);
    tess_cost cost = {0};
    tess_count_code_sum(
        &cost, &(tess_code_sum_args){.vector_numel = KMEANS_BLOCK, .dim = (int64_t)c->dim});
    cost = tess_cost_times(cost, s->own * entry_numel / KMEANS_BLOCK);
    if (c->is_sharded) { /* rows of all vectors are looked at, those of own codes are added */
        gather(c, "rows", blocks, KMEANS_BLOCK * sizeof(uint32_t));
        tess_count_copy(&cost, 0.5 * blocks * c->world * KMEANS_BLOCK * sizeof(uint32_t));
    }
    compute(c, "sums", &cost);
}

/* ---- codes ---- */

static void begin_sums(counter *c, int level)
{
    const tess_codebook_plan *b = c->r->book;
    const double owned = (double)b->row_numel * c->dim * sizeof(float);
    record(c, "exponent", level, sizeof(int64_t));
    copy(c, "clear sums",
         0.5 * (double)(b->buffer[TESS_BOOK_SUM].nbytes + b->buffer[TESS_BOOK_TALLY].nbytes) +
             0.5 * level * owned);
}

/* Sums and counts to the owners, in slices. */
static void end_sums(counter *c)
{
    const tess_codebook_plan *b = c->r->book;
    const double slices = ceil((double)b->row_numel / (double)b->slice_numel);
    const double row = (double)b->row_numel / slices * sizeof(int64_t);
    tess_cost cost = {0};
    if (c->is_sharded || c->links.world == 1)
        return;
    swap(c, "sums to owners", slices, row * c->dim);
    swap(c, "counts to owners", slices, row);
    tess_count_copy(&cost, 1.5 * (c->world - 1.0) * slices * row * (c->dim + 1.0));
    compute(c, "sums of ranks", &cost);
}

static void publish(counter *c)
{
    const tess_codebook_plan *b = c->r->book;
    tess_cost cost = {0};
    if (!c->is_sharded)
        gather(c, "codes", 1.0, (double)b->row_numel * c->dim * sizeof(float));
    tess_count_copy(&cost, c->rows * c->dim * sizeof(float));
    compute(c, "pack codes", &cost);
}

static void take_means(counter *c)
{
    tess_cost cost = {0};
    tess_count_code_mean(
        &cost, &(tess_code_mean_args){.row_numel = c->r->book->row_numel, .dim = (int64_t)c->dim});
    compute(c, "means", &cost);
    record(c, "agree", 1.0, 0.0);
}

/* Error of a pass, and counts of all codes, which every rank goes through. */
static void report(counter *c)
{
    const double nbytes = (double)c->config->code_numel * sizeof(int64_t);
    record(c, "error", 1.0, TESS_EXACT_LIMB_NUMEL * sizeof(int64_t));
    record(c, "counts", 1.0, nbytes);
    copy(c, "perplexity", nbytes);
}

/* ---- steps ---- */

static void encode_level(counter *c, int level)
{
    const int entry_numel = kmeans_entries(c->config, level);
    read_vectors(c, &c->vectors);
    take_off(c, &c->vectors, level, entry_numel);
    search(c, &c->vectors, entry_numel, kmeans_best(c->config));
    const double key_nbytes = (double)entry_numel * kmeans_best(c->config) * sizeof(uint64_t);
    copy(c, "choices", c->vectors.own * key_nbytes);
}

static void run_pass(counter *c, int level)
{
    const int entry_numel = kmeans_entries(c->config, level);
    begin_sums(c, level);
    read_vectors(c, &c->batch);
    take_off(c, &c->batch, level, entry_numel);
    search(c, &c->batch, entry_numel, 1);
    add(c, &c->batch, entry_numel);
    end_sums(c);
    report(c);
    take_means(c);
    publish(c);
}

static void refine(counter *c)
{
    const int levels = c->config->level_numel;
    for (int l = 0; l < levels; l++) {
        begin_sums(c, levels);
        read_vectors(c, &c->vectors);
        take_off(c, &c->vectors, levels - 1, 1);
        if (c->is_sharded)
            gather(c, "vectors", parts(&c->vectors, 1), KMEANS_BLOCK * c->dim * sizeof(float));
        add(c, &c->vectors, 1);
        end_sums(c);
        take_means(c);
        publish(c);
    }
    for (int l = 0; l < levels; l++)
        encode_level(c, l);
    report(c);
}

/* Numbers of drawn vectors: each rank's candidates to rank 0, what it chose back. */
static void draw(counter *c, double drawn_numel)
{
    record(c, "draw", 1.0, drawn_numel * (sizeof(int64_t) + sizeof(uint64_t) + 8.0) / 2.0);
}

/* What the sample and centers cost that are drawn at once. */
static void meet_centers(tess_cost *all, const counter *c, double own, int64_t numel)
{
    tess_cost cost = {0};
    tess_count_nearest(&cost, &(tess_nearest_args){.vector_numel = KMEANS_BLOCK,
                                                   .code_numel = numel,
                                                   .dim = (int64_t)c->dim});
    cost = tess_cost_times(cost, own / KMEANS_BLOCK);
    tess_count_copy(&cost, own * (sizeof(float) + sizeof(int64_t)));
    *all = tess_cost_sum(*all, cost);
}

/* K centers: weights over all ranks and the center each, distances for those of a round. */
static void choose_centers(counter *c)
{
    const double seeds = (double)c->r->plan->seed_numel, times = (double)c->config->code_numel;
    const double own = ceil(seeds * c->vectors.own / c->vectors.all);
    tess_cost cost = {0};
    double rounds = 0.0;
    for (int64_t k = 0, numel = 0; k < c->config->code_numel; k += numel, rounds += 1.0) {
        numel = TESS_MIN(kmeans_center_numel(k), c->config->code_numel - k);
        meet_centers(&cost, c, own, numel);
    }
    record(c, "weights", times, ceil(seeds / BUCKET_NUMEL) * sizeof(int64_t));
    record(c, "weights of a bucket", times, BUCKET_NUMEL * sizeof(int64_t));
    record(c, "center", times, c->dim * sizeof(float));
    record(c, "agree", rounds, 0.0);
    compute(c, "distances to centers", &cost);
}

static void start_level(counter *c, int level)
{
    const int entry_numel = kmeans_entries(c->config, level);
    const bool is_sample = c->config->init == TESS_KMEANS_SAMPLE;
    if (c->config->init == TESS_KMEANS_RANDOM) {
        publish(c);
        return;
    }
    if (is_sample)
        begin_sums(c, level);
    draw(c, (double)(is_sample ? c->config->code_numel : c->r->plan->seed_numel));
    read_vectors(c, &c->vectors);
    take_off(c, &c->vectors, level, entry_numel);
    if (is_sample) { /* a sum of one vector each brings them to the owners */
        if (c->is_sharded)
            gather(c, "vectors", parts(&c->vectors, entry_numel),
                   KMEANS_BLOCK * c->dim * sizeof(float));
        add(c, &c->vectors, entry_numel);
        end_sums(c);
        take_means(c);
    } else {
        choose_centers(c);
    }
    publish(c);
}

static void scan(counter *c)
{
    const double limbs = TESS_EXACT_LIMB_NUMEL * sizeof(int64_t);
    copy(c, "scan", c->vectors.own * (double)c->r->plan->dim * sizeof(float));
    record(c, "scan of ranks", c->config->group_numel + (double)c->r->plan->dim, limbs);
}

/* ---- a job ---- */

static counter make_counter(const tess_kmeans_predict_request *r)
{
    const tess_kmeans_plan *p = r->plan;
    const double n = (double)p->vector_numel, batch = (double)p->config.batch_numel;
    const double round = (double)KMEANS_BLOCK * p->world;
    const double whole = floor(n / round);
    const double own = whole * KMEANS_BLOCK + fmin(n - whole * round, (double)KMEANS_BLOCK);
    const bool is_sharded = r->book->shape.is_sharded;
    counter c = {.r = r,
                 .config = &p->config,
                 .links = tess_links_of(r->device, r->network, p->world),
                 .world = p->world,
                 .rows = (double)(is_sharded ? r->book->row_numel : p->config.code_numel),
                 .dim = (double)p->group_dim,
                 .is_sharded = is_sharded,
                 .vectors = share_of(n, own)};
    /* Vectors of a mini-batch are drawn: every rank has its part of them, more or less. */
    c.batch = batch > 0.0 ? share_of(batch, ceil(batch * own / n)) : c.vectors;
    return c;
}

static tess_kmeans_time times(tess_kmeans_time t, double factor)
{
    return (tess_kmeans_time){factor * t.compute_s, factor * t.comm_s};
}

static tess_kmeans_time sum(tess_kmeans_time a, tess_kmeans_time b)
{
    return (tess_kmeans_time){a.compute_s + b.compute_s, a.comm_s + b.comm_s};
}

static void judge(const counter *c, tess_kmeans_prediction *out)
{
    const tess_device_profile *d = c->r->device;
    const double pass_s = tess_kmeans_time_s(out->pass[0]);
    const double rate =
        d->op_rate[TESS_COST_SEARCH] > 0.0 ? d->op_rate[TESS_COST_SEARCH] : d->memory_rate;
    out->flops = 2.0 * c->batch.all * (double)c->config->code_numel * c->dim;
    out->vectors_per_s = c->batch.all / pass_s;
    out->utilization = out->flops / (pass_s * c->world * rate);
}

void tess_kmeans_predict(const tess_kmeans_predict_request *request, tess_kmeans_prediction *out)
{
    counter c = make_counter(request);
    const tess_kmeans_config *config = c.config;
    tess_kmeans_time stack = {0};
    memset(out, 0, sizeof *out);
    scan(&c);
    out->scan = take(&c);
    for (int l = 0; l < config->level_numel; l++) {
        start_level(&c, l);
        out->start[l] = take(&c);
        run_pass(&c, l);
        out->pass[l] = take(&c);
        encode_level(&c, l);
        out->encode[l] = take(&c);
        stack = sum(stack, times(out->pass[l], (double)config->pass_numel));
        stack = sum(stack, sum(out->start[l], out->encode[l]));
    }
    if (config->refine_numel > 0)
        refine(&c);
    out->refine = take(&c);
    stack = sum(stack, times(out->refine, (double)config->refine_numel));
    out->job = sum(out->scan, times(stack, config->group_numel));
    judge(&c, out);
}

static void refinement_of(counter *c, int level)
{
    (void)level;
    refine(c);
}

/* Steps that are alike: the first ones, and one span for all others. */
static void trace_steps(counter *c, void (*step)(counter *c, int level), int level, int64_t numel)
{
    for (int64_t i = 0; i < TESS_MIN(numel, (int64_t)TRACED_NUMEL); i++) {
        c->step++;
        step(c, level);
    }
    if (numel <= TRACED_NUMEL)
        return;
    const tess_trace_sink sink = c->sink;
    const double start_s = c->now_s;
    c->sink = NULL;
    step(c, level);
    const double each_s = c->now_s - start_s;
    c->sink = sink;
    c->now_s = start_s;
    c->step += numel - TRACED_NUMEL;
    pass_by(c, TESS_TRACE_HOST, "further steps", each_s * (double)(numel - TRACED_NUMEL), -1.0);
}

static void trace_group(counter *c, int group)
{
    const tess_kmeans_config *config = c->config;
    for (int l = 0; l < config->level_numel; l++) {
        name_unit(c, group, l);
        start_level(c, l);
        trace_steps(c, run_pass, l, config->pass_numel);
        encode_level(c, l);
    }
    name_unit(c, group, -1);
    trace_steps(c, refinement_of, -1, config->refine_numel);
}

tess_status tess_kmeans_predict_trace(const tess_kmeans_predict_request *request,
                                      tess_trace_sink sink, void *arg)
{
    counter c = make_counter(request);
    c.sink = sink;
    c.arg = arg;
    scan(&c);
    for (int g = 0; g < c.config->group_numel && c.st == TESS_OK; g++)
        trace_group(&c, g);
    return c.st;
}

void tess_kmeans_look_ahead(const tess_kmeans_plan *plan, const tess_device_profile *device,
                            const tess_network_profile *network, tess_kmeans_outlook *out)
{
    *out = (tess_kmeans_outlook){.plan = plan, .device = device, .network = network};
    for (int i = 0; i < 2; i++) {
        const bool is_chosen = plan->book.shape.is_sharded == (i == 1);
        const tess_kmeans_predict_request request = {.plan = plan,
                                                     .book = is_chosen ? &plan->book : &plan->other,
                                                     .device = device,
                                                     .network = network};
        tess_kmeans_predict(&request, &out->way[i]);
    }
}
