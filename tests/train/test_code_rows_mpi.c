/*
 * Training runs whose codes are sharded by rows, against replicated ones: the same bits on this
 * many ranks and on one, resumed from one sharding into the other on other numbers of ranks, and no
 * rank receives more for its codebooks than the plan says of a step, in either sharding.
 * Runs at 5 and 8 ranks too: K = 19, 7 and 2003 codes divide by none, M = 5 and 2 micro-batches
 * leave ranks without one, of 7 codes some of 8 ranks own none.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"

#define ROWS "quantizer.sharding=rows"
#define REPLICATED "quantizer.sharding=replicated"
#define BOOKS "codes: 19, code_dim: 6, update: ema, decay: 0.8"
#define LEARNED "codes: 19, code_dim: 6, update: gradient"

static const rqvae_launch runs[] = {
    {.name = "levels",
     .quantizer = BOOKS ", levels: 3, groups: 2, threshold: 1.5",
     .override = {"compute.dtype=bf16", "shard.reshard_after_forward=on",
                  "compute.activation_checkpointing=on"}},
    {.name = "heads",
     .quantizer = BOOKS ", type: vq, groups: 3, shared_codes: true, estimator: rotation",
     .override = {"compute.dtype=f32", "compute.threads=2", "shard.prefetch=0"}},
    {.name = "cosine",
     .quantizer = "codes: 19, code_dim: 6, type: cosine, groups: 2, threshold: 1.5",
     .override = {"compute.dtype=bf16"}},
    /* All codes expire in every step, and there are more of them than vectors in one. */
    {.name = "few",
     .quantizer = "codes: 7, code_dim: 6, levels: 2, update: ema, threshold: 100",
     .override = {"compute.dtype=f32", "train.micro_batches=2", "train.micro_batch=3"}},
    {.name = "random",
     .quantizer = BOOKS ", type: vq, init: random",
     .override = {"compute.dtype=f32", "train.micro_batches=1"}},
    {.name = "many",
     .quantizer = "codes: 2003, code_dim: 6, levels: 2, update: ema, init: sample",
     .override = {"compute.dtype=bf16"}},
    {.name = "images",
     .quantizer = "type: vq, codes: 19, code_dim: 4, update: ema, decay: 0.8, threshold: 1.5",
     .images = "images",
     .override = {"compute.dtype=bf16", "train.micro_batch=2"}},
    {.name = "m-levels",
     .quantizer = BOOKS ", levels: 3, groups: 2, threshold: 1.5",
     .override = {"compute.dtype=bf16", "compute.activation_checkpointing=on"},
     .is_masked = true},
    {.name = "m-cosine",
     .quantizer = "codes: 19, code_dim: 6, type: cosine, groups: 2, threshold: 1.5",
     .override = {"compute.dtype=f32"},
     .is_masked = true},
    /* More codes than vectors of a step, of which most are masked; all codes expire. */
    {.name = "m-few",
     .quantizer = "codes: 43, code_dim: 6, levels: 2, update: ema, threshold: 100",
     .override = {"compute.dtype=f32"},
     .is_masked = true},
    /* Codes that learn by gradients. */
    {.name = "g-levels",
     .quantizer = LEARNED ", levels: 3, groups: 2",
     .override = {"compute.dtype=bf16", "compute.activation_checkpointing=on",
                  "train.ema_decay=0.9", "train.eval_weights=ema"}},
    {.name = "g-heads",
     .quantizer = LEARNED ", type: vq, groups: 3, shared_codes: true, estimator: rotation",
     .override = {"compute.dtype=f32", "compute.threads=2", "train.clip_norm=0.5"}},
    {.name = "g-few",
     .quantizer = "codes: 7, code_dim: 6, levels: 2, init: random",
     .override = {"compute.dtype=f32", "train.micro_batches=2", "train.micro_batch=3",
                  "train.optimizer=adamw-schedule-free"}},
    {.name = "g-many",
     .quantizer = "codes: 2003, code_dim: 6, levels: 2, init: sample",
     .override = {"compute.dtype=bf16", "train.micro_batches=1", "train.optimizer=adafactor"}},
    {.name = "g-masks",
     .quantizer = LEARNED ", levels: 2, groups: 2, shared_codes: true",
     .override = {"compute.dtype=bf16"},
     .is_masked = true},
    /* Codes that are drawn. */
    {.name = "d-levels",
     .quantizer = BOOKS ", levels: 2, groups: 2, temperature: 0.3, threshold: 1.5",
     .override = {"compute.dtype=bf16"}},
    {.name = "d-many",
     .quantizer = "codes: 2003, code_dim: 6, levels: 2, init: sample, temperature: 0.7",
     .override = {"compute.dtype=f32", "train.micro_batches=2"}}};

/* The launch under another name, with more overrides. */
static rqvae_launch with(const rqvae_launch *l, const char *name, const char *a, const char *b)
{
    rqvae_launch out = *l;
    int numel = 0;
    while (out.override[numel] != NULL)
        numel++;
    out.override[numel++] = a;
    out.override[numel] = b;
    out.name = name;
    return out;
}

/* ---- same bits ---- */

static tess_status check_bits(tess_comm *comm, tess_comm *self, vector_run *v,
                              const rqvae_launch *base)
{
    char rows_name[32], whole_name[32], alone_name[32];
    bool is_done = false;
    snprintf(rows_name, sizeof rows_name, "%s-rows", base->name);
    snprintf(whole_name, sizeof whole_name, "%s-all", base->name);
    snprintf(alone_name, sizeof alone_name, "%s-alone", base->name);
    const rqvae_launch rows = with(base, rows_name, ROWS, NULL);
    const rqvae_launch whole = with(base, whole_name, REPLICATED, NULL);
    const rqvae_launch alone = with(base, alone_name, REPLICATED, NULL);
    TESS_TRY(rqvae_train(comm, v, &rows, &is_done));
    TESS_TRY(rqvae_train(comm, v, &whole, &is_done));
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = rqvae_train(self, v, &alone, &is_done);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = rqvae_expect_same(v, rows_name, alone_name);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = rqvae_expect_same(v, whole_name, alone_name);
    return tess_agree(comm, st);
}

/* Stopped after every step: rows on all ranks, replicated on one, replicated on all, rows on one.
 */
static tess_status check_resume(tess_comm *comm, tess_comm *self, vector_run *v,
                                const rqvae_launch *base)
{
    static const char *const sharding[] = {ROWS, REPLICATED, REPLICATED, ROWS};
    char whole_name[32], parts_name[32];
    int64_t is_over = 0;
    bool is_done = false;
    snprintf(whole_name, sizeof whole_name, "%s-whole", base->name);
    snprintf(parts_name, sizeof parts_name, "%s-parts", base->name);
    const rqvae_launch whole = with(base, whole_name, "train.eval_every=0", REPLICATED);
    TESS_TRY(rqvae_train(comm, v, &whole, &is_done));
    for (int i = 0; is_over == 0; i++) {
        rqvae_launch parts = with(base, parts_name, "train.eval_every=0", sharding[i % 4]);
        parts.is_stopped = true;
        tess_status st = TESS_OK;
        is_done = false;
        if (i % 2 == 0)
            st = rqvae_train(comm, v, &parts, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = rqvae_train(self, v, &parts, &is_done);
        TESS_TRY(tess_agree(comm, st));
        is_over = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_over, 1));
    }
    return tess_agree(comm, rqvae_expect_same(v, whole_name, parts_name));
}

/* ---- masks ---- */

/* The vectors with NaN in the place of masked ones: no bit is another, in either sharding. */
static tess_status write_others(vector_run *v)
{
    static float x[301 * 19];
    memcpy(x, v->x, sizeof x);
    for (int64_t i = 0; i < v->n; i++)
        for (int64_t j = 0; j < v->d && !rqvae_is_valid(v->n, i); j++)
            x[i * v->d + j] = NAN;
    return rqvae_write(v, "others.fbin", x, (const int64_t[]){v->n, v->d});
}

/* After check_bits of the same launch. */
static tess_status check_others(tess_comm *comm, vector_run *v, const rqvae_launch *base)
{
    char data[400], eval[400], name[32], rows_name[32];
    bool is_done = false;
    snprintf(data, sizeof data, "data.path=%s/others.fbin", v->dir);
    snprintf(eval, sizeof eval, "data.eval_path=%s/others.fbin", v->dir);
    snprintf(name, sizeof name, "%s-others", base->name);
    snprintf(rows_name, sizeof rows_name, "%s-rows", base->name);
    const rqvae_launch others = with(base, name, data, eval);
    const rqvae_launch rows = with(&others, name, ROWS, NULL);
    TESS_TRY(rqvae_train(comm, v, &rows, &is_done));
    return tess_agree(comm, rqvae_expect_same(v, rows_name, name));
}

static tess_status check_masks(tess_comm *comm, vector_run *v)
{
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? write_others(v) : TESS_OK));
    for (int i = 0; i < TESS_NELEM(runs); i++)
        if (runs[i].is_masked)
            TESS_TRY(check_others(comm, v, &runs[i]));
    return TESS_OK;
}

/* ---- on the wire ---- */

/* Bytes received for codebooks, in gathers of units, of gradients of codes. */
typedef struct traffic {
    int64_t books, units, gradients;
} traffic;

static traffic traffic_of(const tess_comm *spy)
{
    static const char books[] = "codebook/";
    const tess_spy_record *record = NULL;
    const int64_t numel = tess_spy_records(spy, &record);
    traffic t = {0};
    for (int64_t i = 0; i < numel; i++) {
        const int64_t nbytes =
            (int64_t)tess_dtype_block_nbytes(record[i].wire) * record[i].receive_numel;
        if (strncmp(record[i].name, books, sizeof books - 1) == 0)
            t.books += nbytes;
        else if (record[i].op == TESS_COMM_ALL_GATHER)
            t.units += nbytes;
        else if (strcmp(record[i].name, "quantizer/grad") == 0)
            t.gradients += nbytes;
    }
    return t;
}

/* Both runs end with an evaluation, of one vector: whose codes, of at most 3 levels of 6
 * dimensions, come from other ranks or not. */
enum { EVAL_NBYTES = 3 * 6 * 4 };

/* `t` of five steps on this rank, against what `run` planned for one. */
static tess_status compare(tess_comm *comm, vector_run *v, const char *run, const traffic *t)
{
    int64_t books = 0, units = 0, most = t->books;
    TESS_TRY(tess_agree(comm, rqvae_planned(v, run, "\"codebook_bytes_received\"", &books)));
    TESS_TRY(tess_agree(comm, rqvae_planned(v, run, "\"gather_bytes_received\"", &units)));
    TESS_TRY(tess_comm_control(comm, NULL, 0, &most, 1));
    TESS_CHECK(most <= 5 * books + EVAL_NBYTES, TESS_E_STATE,
               "%s: a rank receives %" PRId64
               " / 5 bytes for codebooks in a step, planned %" PRId64,
               run, most, books);
    /* Codes are fetched, and dead ones replaced, by fewer vectors than there could be. */
    TESS_CHECK(tess_comm_world(comm) == 1 || 2 * (most + EVAL_NBYTES) > 5 * books, TESS_E_STATE,
               "%s: no rank receives more than %" PRId64 " / 5 of %" PRId64
               " planned bytes: what is missing?",
               run, most, books);
    TESS_CHECK(t->units == 5 * units, TESS_E_STATE,
               "%s: a step gathers %" PRId64 " / 5 bytes of units, planned %" PRId64, run, t->units,
               units);
    return TESS_OK;
}

/* Five steps, into `out`, as `run` planned them. One bucket, so that the gathers of other units do
 * not depend on whether codes are among them. */
static tess_status check_wire(tess_comm *comm, vector_run *v, const rqvae_launch *base,
                              const char *sharding, traffic *out)
{
    static const char *const steps[] = {"train.steps=2", "train.steps=7"};
    tess_comm *spy = NULL;
    traffic t[2];
    char name[48], eval[400];
    snprintf(eval, sizeof eval, "data.eval_path=%s/one.fbin", v->dir);
    TESS_TRY(tess_comm_create_spy(comm, &spy));
    tess_status st = TESS_OK;
    for (int i = 0; i < 2 && st == TESS_OK; i++) {
        bool is_done = false;
        snprintf(name, sizeof name, "%s-%s-wire%d", base->name, strchr(sharding, '=') + 1, i);
        const rqvae_launch quiet =
            with(base, name, "train.eval_every=0", "output.checkpoint_every=0");
        const rqvae_launch cut = with(&quiet, name, sharding, steps[i]);
        const rqvae_launch l = with(&cut, name, eval, "shard.bucket_bytes=64MiB");
        tess_spy_clear(spy);
        st = rqvae_train(spy, v, &l, &is_done);
        t[i] = traffic_of(spy);
    }
    *out = (traffic){t[1].books - t[0].books, t[1].units - t[0].units,
                     t[1].gradients - t[0].gradients};
    if (st == TESS_OK)
        st = compare(comm, v, name, out);
    tess_comm_destroy(&spy);
    return tess_agree(comm, st);
}

/* Both numbers that either plan has: exchanges of that sharding's own plan, and of replicated codes
 * the gathers and gradients that rows do without. */
static tess_status check_wires(tess_comm *comm, vector_run *v, const rqvae_launch *base)
{
    static const char *const sharding[] = {ROWS, REPLICATED};
    traffic t[2];
    int64_t own[2] = {0};
    for (int i = 0; i < 2; i++) {
        char name[48];
        TESS_TRY(check_wire(comm, v, base, sharding[i], &t[i]));
        snprintf(name, sizeof name, "%s-%s-wire1", base->name, strchr(sharding[i], '=') + 1);
        TESS_TRY(tess_agree(comm, rqvae_planned(v, name, "\"codebook_bytes_received\"", &own[i])));
    }
    int64_t most = t[1].gradients;
    TESS_TRY(tess_comm_control(comm, NULL, 0, &most, 1));
    const int64_t moved = t[1].units - t[0].units + most;
    TESS_CHECK(t[0].gradients == 0, TESS_E_STATE, "%s: gradients of all codes travel", base->name);
    for (int i = 0; i < 2; i++) {
        char name[48];
        int64_t rows = 0, whole = 0;
        snprintf(name, sizeof name, "%s-%s-wire1", base->name, strchr(sharding[i], '=') + 1);
        TESS_TRY(tess_agree(comm, rqvae_planned(v, name, "\"rows_bytes_received\"", &rows)));
        TESS_TRY(tess_agree(comm, rqvae_planned(v, name, "\"replicated_bytes_received\"", &whole)));
        TESS_CHECK(rows == own[0] && (rows == 0) == (tess_comm_world(comm) == 1), TESS_E_STATE,
                   "%s: planned %" PRId64 " bytes by rows, and %" PRId64, name, rows, own[0]);
        TESS_CHECK(5 * (whole - own[1]) == moved, TESS_E_STATE,
                   "%s: replicated codes receive %" PRId64
                   " / 5 bytes in gathers and gradients in a step, planned %" PRId64,
                   name, moved, whole - own[1]);
    }
    return TESS_OK;
}

/* ---- the choice ---- */

/* A step of 40 vectors against 2003 codes: all codes are more than the vectors. Of one rank neither
 * moves anything, and nothing is sharded. */
static tess_status check_choice(tess_comm *comm, vector_run *v)
{
    int64_t rows = 0, whole = 0;
    bool is_done = false;
    const rqvae_launch l = with(&runs[5], "choice", "train.steps=2", NULL);
    TESS_TRY(rqvae_train(comm, v, &l, &is_done));
    TESS_TRY(rqvae_planned(v, l.name, "\"rows_bytes_received\"", &rows));
    TESS_TRY(rqvae_planned(v, l.name, "\"replicated_bytes_received\"", &whole));
    TESS_CHECK(tess_comm_world(comm) == 1 || rows < whole, TESS_E_STATE,
               "rows receive %" PRId64 " bytes, replicated codes %" PRId64, rows, whole);
    char path[400], *text = NULL;
    size_t nbytes = 0;
    snprintf(path, sizeof path, "%s/%s/plan.json", v->dir, l.name);
    TESS_TRY(tess_io_read_all(v->ctx.io, path, 1 << 20, &text, &nbytes));
    const bool is_rows = strstr(text, "\"sharding\": \"rows\"") != NULL;
    tess_free(text);
    TESS_CHECK(is_rows == (tess_comm_world(comm) > 1), TESS_E_STATE, "%s: sharded by rows: %d",
               path, is_rows);
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    static const struct {
        rqvae_launch l;
        const char *words;
    } wrong[] = {
        {{.name = "no1", .override = {ROWS, "quantizer.orthogonal=0.5"}}, "a loss over all of"},
        {{.name = "no2", .override = {ROWS, "shard.reduction=library"}},
         "found shard.reduction library"},
        {{.name = "no3", .override = {ROWS, "quantizer.type=simvq", "quantizer.levels=1"}},
         "no meaning with quantizer.type simvq"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++)
        TESS_TRY(rqvae_expect_refused(comm, v, &wrong[i].l, TESS_E_CONFIG, wrong[i].words));
    return TESS_OK;
}

static tess_status check_all(tess_comm *comm, tess_comm *self, vector_run *v)
{
    tess_status st = TESS_OK;
    TESS_TRY(rqvae_make_images(comm, v, "images", 9));
    TESS_TRY(rqvae_make_mask(comm, v));
    TESS_TRY(check_refusals(comm, v));
    TESS_TRY(tess_agree(comm, check_choice(comm, v)));
    for (int i = 0; i < TESS_NELEM(runs); i++)
        TESS_TRY(check_bits(comm, self, v, &runs[i]));
    TESS_TRY(check_masks(comm, v));
    if (tess_comm_rank(comm) == 0)
        st = rqvae_write(v, "one.fbin", v->x, (const int64_t[]){1, v->d});
    TESS_TRY(tess_agree(comm, st));
    static const int wired[] = {0, 1, 2, 3, 10, 12, 15}, resumed[] = {0, 2, 7, 10};
    for (int i = 0; i < TESS_NELEM(wired); i++)
        TESS_TRY(check_wires(comm, v, &runs[wired[i]]));
    for (int i = 0; i < TESS_NELEM(resumed); i++)
        TESS_TRY(check_resume(comm, self, v, &runs[resumed[i]]));
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = check_all(comm, self, &v);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
