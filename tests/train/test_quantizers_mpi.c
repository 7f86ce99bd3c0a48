/*
 * Whole runs of every quantizer between encoder and decoder: the same bits on this many ranks as on
 * one, in f32 and with bf16 weights cut over the ranks (what breaks peers whose quantizers mix
 * dtypes), resumed on another number of ranks, and no more bytes on the wire than counted.
 * Runs at 5 and 8 ranks too: K = 19, M = 5 and the bits of a group divide by none.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"

#define BOOKS "codes: 19, code_dim: 6"
static const rqvae_launch quantizers[] = {
    {.name = "vq", .quantizer = BOOKS ", type: vq"},
    {.name = "grouped", .quantizer = BOOKS ", levels: 2, groups: 2, update: ema"},
    {.name = "heads",
     .quantizer = BOOKS ", type: vq, groups: 3, shared_codes: true, update: ema, threshold: 1.5, "
                        "decay: 0.8"},
    {.name = "learned",
     .quantizer = BOOKS ", type: vq, groups: 2, shared_codes: true, orthogonal: 10"},
    {.name = "drawn", .quantizer = BOOKS ", levels: 3, temperature: 0.7"},
    {.name = "cosine", .quantizer = BOOKS ", type: cosine, groups: 2, threshold: 1.5"},
    {.name = "simvq", .quantizer = BOOKS ", type: simvq, orthogonal: 1"},
    {.name = "simvqs",
     .quantizer = BOOKS ", type: residual-simvq, levels: 2, groups: 2, estimator: rotation"},
    {.name = "fsq", .quantizer = "type: fsq, axis_levels: [8, 5, 5]"},
    {.name = "noise", .quantizer = "type: fsq, axis_levels: [2, 3], rule: symmetric, noise: 0.5"},
    {.name = "fsqs", .quantizer = "type: residual-fsq, axis_levels: [5, 4], levels: 3"},
    {.name = "lfq", .quantizer = "type: lfq, code_dim: 5"},
    {.name = "lfqs",
     .quantizer = "type: lfq, code_dim: 6, groups: 2, diversity: 0.5, inverse_temperature: 3",
     .override = {"train.micro_batches=2"}},
    {.name = "bsq", .quantizer = "type: bsq, code_dim: 6, groups: 2, inverse_temperature: 2"},
    {.name = "bsq0", .quantizer = "type: bsq, code_dim: 25, diversity: 0"},
    {.name = "latent", .quantizer = "type: latent, axis_levels: [4, 5, 3, 6]"},
    {.name = "fixed", .quantizer = "type: random-projection, codes: 19, code_dim: 6, groups: 2"},
    {.name = "weights",
     .quantizer = "type: lfq, code_dim: 5, confidence: 0.5, scale: 2, inverse_temperature: 3"},
    {.name = "m-levels", .quantizer = BOOKS ", levels: 2, groups: 2", .is_masked = true},
    {.name = "m-heads",
     .quantizer = BOOKS ", type: vq, groups: 3, shared_codes: true, update: ema, threshold: 1.5, "
                        "decay: 0.8",
     .is_masked = true},
    {.name = "m-rows",
     .quantizer = BOOKS ", levels: 2, groups: 2, update: ema, threshold: 1.5, sharding: rows",
     .is_masked = true},
    {.name = "m-simvq", .quantizer = BOOKS ", type: simvq, orthogonal: 1", .is_masked = true},
    {.name = "m-fsqs",
     .quantizer = "type: residual-fsq, axis_levels: [5, 4], levels: 2",
     .is_masked = true},
    {.name = "m-lfq", .quantizer = "type: lfq, code_dim: 5", .is_masked = true},
    {.name = "m-bsq",
     .quantizer = "type: bsq, code_dim: 6, groups: 2, confidence: 0.5, inverse_temperature: 2",
     .is_masked = true},
    {.name = "m-latent", .quantizer = "type: latent, axis_levels: [4, 5, 3, 6]", .is_masked = true},
    {.name = "m-fixed",
     .quantizer = "type: random-projection, codes: 19, code_dim: 6",
     .is_masked = true}};

/* The launch with one more override. */
static rqvae_launch with(const rqvae_launch *l, const char *name, const char *more)
{
    rqvae_launch out = *l;
    int numel = 0;
    while (out.override[numel] != NULL)
        numel++;
    out.override[numel] = more;
    out.name = name;
    return out;
}

static tess_status check_all(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const char *const dtype[] = {"compute.dtype=f32", "compute.dtype=bf16"};
    for (int i = 0; i < TESS_NELEM(quantizers); i++)
        for (int t = 0; t < TESS_NELEM(dtype); t++) {
            char name[32];
            snprintf(name, sizeof name, "%s-%d", quantizers[i].name, t);
            const rqvae_launch l = with(&quantizers[i], name, dtype[t]);
            TESS_TRY(rqvae_check_alone(comm, self, v, &l));
        }
    return TESS_OK;
}

static tess_status check_resumes(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const char *const name[] = {"drawn", "heads", "noise", "lfq", "fixed", "m-heads"};
    for (int i = 0; i < TESS_NELEM(name); i++)
        for (int k = 0; k < TESS_NELEM(quantizers); k++) {
            char whole[32];
            if (strcmp(name[i], quantizers[k].name) != 0)
                continue;
            snprintf(whole, sizeof whole, "%s-whole", name[i]);
            const rqvae_launch l = with(&quantizers[k], whole, "train.eval_every=0");
            TESS_TRY(rqvae_check_resume(comm, self, v, &l));
        }
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    static const struct {
        rqvae_launch l;
        const char *words;
    } wrong[] = {
        {{.name = "no1", .override = {"quantizer.type=residual-kmeans"}}, "expected another one"},
        {{.name = "no2", .override = {"quantizer.type=fsq"}}, "no meaning with quantizer.type fsq"},
        {{.name = "no3", .override = {"quantizer.entropy=0.2"}},
         "no meaning with quantizer.type residual-vq"},
        {{.name = "no4", .override = {"quantizer.groups=4"}}, "choose a divisor"},
        {{.name = "no5", .override = {"quantizer.update=ema", "quantizer.orthogonal=1"}},
         "set quantizer.update to gradient"},
        {{.name = "no6", .override = {"quantizer.groups=3", "quantizer.levels=30"}},
         "at most 64 indices"},
        {{.name = "no7", .quantizer = "type: fsq"}, "fsq needs quantizer.axis_levels"},
        {{.name = "no8", .quantizer = "type: fsq, axis_levels: [2, 3]"}, "symmetric and clamped"},
        {{.name = "no9", .quantizer = "type: lfq, code_dim: 20"}, "use quantizer.groups"},
        {{.name = "no10", .quantizer = "type: cosine, update: gradient"},
         "quantizer.update to ema"},
        {{.name = "no11", .quantizer = "type: lfq, code_dim: 5, entropy: 0, diversity: 0.5"},
         "no meaning with quantizer.entropy 0"},
        {{.name = "no12",
          .quantizer = "type: bsq, code_dim: 5, entropy: 0, inverse_temperature: 2"},
         "no meaning with quantizer.entropy 0"},
        {{.name = "no13", .override = {"quantizer.init=random", "quantizer.passes=3"}},
         "choose kmeans"},
        {{.name = "no14", .override = {"quantizer.shared_codes=true"}},
         "no meaning with one group"},
        {{.name = "no16", .quantizer = "type: bsq, code_dim: 5, scale: 2"},
         "no meaning with quantizer.type bsq"},
        {{.name = "no17", .quantizer = "type: random-projection, code_dim: 6, commitment: 1"},
         "no meaning with quantizer.type random-projection"},
        {{.name = "no15", .quantizer = "type: latent, axis_levels: [4000, 97]"}, "4097 values"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++)
        TESS_TRY(rqvae_expect_refused(comm, v, &wrong[i].l, TESS_E_CONFIG, wrong[i].words));
    return TESS_OK;
}

/* ---- masks ---- */

/* The vectors with others in the place of masked ones, NaN among them. Local. */
static tess_status write_others(vector_run *v)
{
    static float x[301 * 19];
    memcpy(x, v->x, sizeof x);
    for (int64_t i = 0; i < v->n; i++)
        for (int64_t j = 0; j < v->d && !rqvae_is_valid(v->n, i); j++)
            x[i * v->d + j] = i % 2 == 0 ? NAN : 1e30f;
    return rqvae_write(v, "others.fbin", x, (const int64_t[]){v->n, v->d});
}

/* What stands in masked vectors changes no bit, of start codes, averages and draws neither. */
static tess_status check_others(tess_comm *comm, vector_run *v)
{
    char data[400], eval[400];
    bool is_done = false;
    snprintf(data, sizeof data, "data.path=%s/others.fbin", v->dir);
    snprintf(eval, sizeof eval, "data.eval_path=%s/others.fbin", v->dir);
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? write_others(v) : TESS_OK));
    for (int k = 0; k < TESS_NELEM(quantizers); k++) {
        char name[32], others[32];
        if (!quantizers[k].is_masked)
            continue;
        snprintf(name, sizeof name, "%s-0", quantizers[k].name); /* there already */
        snprintf(others, sizeof others, "%s-others", quantizers[k].name);
        const rqvae_launch f32 = with(&quantizers[k], others, "compute.dtype=f32");
        const rqvae_launch other = with(&f32, others, data);
        const rqvae_launch l = with(&other, others, eval);
        TESS_TRY(rqvae_train(comm, v, &l, &is_done));
        TESS_TRY(tess_agree(comm, rqvae_expect_same(v, name, others)));
    }
    return TESS_OK;
}

static tess_status write_bad_masks(vector_run *v)
{
    static float valid[301];
    TESS_TRY(rqvae_write(v, "none.fbin", valid, (const int64_t[]){v->n, 1}));
    TESS_TRY(rqvae_write(v, "short.fbin", valid, (const int64_t[]){v->n - 1, 1}));
    valid[7] = 0.5f;
    TESS_TRY(rqvae_write(v, "half.fbin", valid, (const int64_t[]){v->n, 1}));
    for (int64_t i = 0; i < v->n; i++)
        valid[i] = 1.0f;
    for (int64_t i = 6 * 40; i < 7 * 40; i++)
        valid[rqvae_vector_at(v->n, i)] = 0.0f;
    return rqvae_write(v, "late.fbin", valid, (const int64_t[]){v->n, 1});
}

static tess_status check_bad_masks(tess_comm *comm, vector_run *v)
{
    static const struct {
        const char *file, *words;
        tess_status code;
    } bad[] = {{"none", "step 1 of train.steps 12: all of its 40 vectors", TESS_E_FORMAT},
               {"late", "step 7 of train.steps 12: all of its 40 vectors", TESS_E_FORMAT},
               {"short", "expected [301, 1]", TESS_E_CONFIG},
               {"half", "vector 7 is 0.5, expected 0 (masked) or 1", TESS_E_FORMAT}};
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? write_bad_masks(v) : TESS_OK));
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        char key[400];
        snprintf(key, sizeof key, "data.mask_path=%s/%s.fbin", v->dir, bad[i].file);
        const rqvae_launch l = {.name = "bad", .override = {key}};
        TESS_TRY(rqvae_expect_refused(comm, v, &l, bad[i].code, bad[i].words));
    }
    char held_out[400];
    snprintf(held_out, sizeof held_out, "data.eval_mask_path=%s/none.fbin", v->dir);
    const rqvae_launch none = {.name = "bad", .override = {held_out}};
    return rqvae_expect_refused(comm, v, &none, TESS_E_FORMAT, "data.eval_mask_path");
}

/* ---- on the wire ---- */

typedef struct traffic {
    int64_t gathered, sent; /* bytes received in gathers; of gradients to others */
} traffic;

static traffic traffic_of(const tess_comm *spy)
{
    const tess_spy_record *record = NULL;
    const int64_t numel = tess_spy_records(spy, &record);
    traffic t = {0};
    for (int64_t i = 0; i < numel; i++) {
        const int64_t each = (int64_t)tess_dtype_block_nbytes(record[i].wire);
        if (record[i].op == TESS_COMM_ALL_GATHER)
            t.gathered += each * record[i].receive_numel;
        if (record[i].op == TESS_COMM_EXCHANGE)
            t.sent += each * record[i].send_numel;
    }
    return t;
}

/* What five steps more put on the wire is what the plan says of one, five times: the pass ahead of
 * every step too. */
static tess_status check_wire(tess_comm *comm, vector_run *v, const rqvae_launch *choice)
{
    static const char *const steps[] = {"train.steps=2", "train.steps=7"};
    tess_comm *spy = NULL;
    traffic t[2];
    int64_t gathered = 0, sent = 0, summed = -1;
    TESS_TRY(tess_comm_create_spy(comm, &spy));
    tess_status st = TESS_OK;
    for (int i = 0; i < 2 && st == TESS_OK; i++) {
        char name[32];
        bool is_done = false;
        snprintf(name, sizeof name, "%s-wire%d", choice->name, i);
        const rqvae_launch quiet = with(choice, name, "train.eval_every=0");
        const rqvae_launch l = with(&quiet, name, steps[i]);
        tess_spy_clear(spy);
        st = rqvae_train(spy, v, &l, &is_done);
        t[i] = traffic_of(spy);
        if (st == TESS_OK)
            st = rqvae_planned(v, name, "\"gather_bytes_received\"", &gathered);
        if (st == TESS_OK)
            st = rqvae_planned(v, name, "\"gradient_bytes_sent\"", &sent);
    }
    if (st == TESS_OK && strcmp(choice->name, "lfq") == 0) /* 2^5 sums; rank 0 hears all others */
        st = rqvae_planned(v, "lfq-wire1", "\"sum_bytes_received\"", &summed);
    if (st == TESS_OK && summed >= 0 && summed != 8 * 32 * (tess_comm_world(comm) - 1))
        st = TESS_FAIL(TESS_E_STATE, "planned %" PRId64 " bytes of sums", summed);
    if (st == TESS_OK && t[1].gathered - t[0].gathered != 5 * gathered)
        st = TESS_FAIL(TESS_E_STATE, "%s: a step gathers %" PRId64 " / 5 bytes, planned %" PRId64,
                       choice->name, t[1].gathered - t[0].gathered, gathered);
    if (st == TESS_OK && tess_comm_rank(comm) == 0 && t[1].sent - t[0].sent != 5 * sent)
        st = TESS_FAIL(TESS_E_STATE,
                       "%s: a step sends %" PRId64 " / 5 bytes of gradients, planned %" PRId64,
                       choice->name, t[1].sent - t[0].sent, sent);
    tess_comm_destroy(&spy);
    return tess_agree(comm, st);
}

static tess_status check_wires(tess_comm *comm, vector_run *v)
{
    for (int k = 0; k < TESS_NELEM(quantizers); k++)
        if (strcmp(quantizers[k].name, "lfq") == 0 || strcmp(quantizers[k].name, "fsq") == 0)
            TESS_TRY(check_wire(comm, v, &quantizers[k]));
    const rqvae_launch images = {.name = "images",
                                 .quantizer = "type: lfq, code_dim: 5",
                                 .images = "images",
                                 .override = {"train.micro_batch=2"}};
    TESS_TRY(rqvae_make_images(comm, v, images.images, 9));
    return check_wire(comm, v, &images);
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = check_refusals(comm, &v);
    if (st == TESS_OK)
        st = check_wires(comm, &v);
    if (st == TESS_OK)
        st = rqvae_make_mask(comm, &v);
    if (st == TESS_OK)
        st = check_all(comm, self, &v);
    if (st == TESS_OK)
        st = check_others(comm, &v);
    if (st == TESS_OK)
        st = check_bad_masks(comm, &v);
    if (st == TESS_OK)
        st = check_resumes(comm, self, &v);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
