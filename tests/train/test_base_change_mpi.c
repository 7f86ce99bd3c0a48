/*
 * A run that goes on over another base: refused until adapter.allow_base_change says so; then
 * masters and moments are the checkpoint's, the frozen weights the new ones, and every base that
 * was trained on is named.
 */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

static const char allow[] = "adapter.allow_base_change=true";

typedef struct bench {
    tess_comm *comm;
    tiny_run t;
    const char *name; /* of the run */
    tess_session *session;
} bench;

static tess_status open_run(bench *b, const char *const *overrides)
{
    static const volatile sig_atomic_t always = 1;
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN, .stop_request = &always};
    return tiny_run_open_as(b->comm, &b->t, b->name, overrides, &options, &b->session);
}

/* One step, after which the run saves and stops. */
static tess_status one_step(bench *b, const char *const *overrides)
{
    TESS_TRY(open_run(b, overrides));
    const tess_status st = tess_session_train(b->session);
    tess_session_close(&b->session);
    if (st != TESS_E_PREEMPTED)
        return st == TESS_OK ? TESS_FAIL(TESS_E_STATE, "the run ended") : st;
    tess_error_clear();
    return TESS_OK;
}

/* Digest of what this rank holds of the masters and both moments. */
static tess_status digest_state(bench *b, tess_sha256 *out)
{
    tess_sha256_state *sha = NULL;
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = TESS_OK;
    for (int kind = TESS_STATE_MASTER; kind <= TESS_STATE_EXP_AVG_SQ && st == TESS_OK; kind++)
        for (int u = 0; u < b->session->d.registry.unit_numel && st == TESS_OK; u++) {
            const tess_view v = tess_runtime_state(b->session->rt, u, (tess_state_kind)kind);
            st = tess_sha256_update(sha, v.data, tess_view_nbytes(v));
        }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, out);
    tess_sha256_destroy(&sha);
    return st;
}

/* State, base and history of the run as the overrides open it. */
typedef struct found {
    tess_sha256 state;
    char base[TESS_SHA256_HEX_NBYTES];
    char previous[3 * TESS_SHA256_HEX_NBYTES];
    int64_t step;
} found;

static tess_status look(bench *b, const char *const *overrides, found *out)
{
    memset(out, 0, sizeof *out);
    TESS_TRY(open_run(b, overrides));
    const tess_session *s = b->session;
    const tess_status st = tess_agree(b->comm, digest_state(b, &out->state));
    snprintf(out->base, sizeof out->base, "%s", s->base_id);
    snprintf(out->previous, sizeof out->previous, "%s",
             s->base_previous != NULL ? s->base_previous : "");
    out->step = tess_session_step(s);
    tess_session_close(&b->session);
    return st;
}

static tess_status expect(bench *b, bool is_true, const char *what)
{
    return tess_agree(b->comm, is_true ? TESS_OK : TESS_FAIL(TESS_E_STATE, "%s", what));
}

static tess_status expect_refusal(bench *b, const char *const *overrides, const char *word)
{
    const tess_status st = open_run(b, overrides);
    tess_session_close(&b->session);
    const bool is_named = st != TESS_OK && strstr(tess_error_message(), word) != NULL;
    if ((st != TESS_E_CONFIG && st != TESS_E_FORMAT) || !is_named)
        return tess_agree(b->comm, TESS_FAIL(TESS_E_STATE, "%s without '%s': %.900s",
                                             tess_status_name(st), word, tess_error_message()));
    tess_error_clear();
    return tess_agree(b->comm, TESS_OK);
}

/* The metadata of the exported adapter names the bases in order. */
static tess_status check_export(bench *b, const found *now)
{
    char path[340];
    tess_safetensors *st = NULL;
    snprintf(path, sizeof path, "%s/%s/export/adapter_model.safetensors", b->t.dir, b->name);
    TESS_TRY(tess_safetensors_open(b->t.ctx.io, path, &st));
    const char *previous = tess_safetensors_metadata(st, "base.previous");
    const char *base = tess_safetensors_metadata(st, "base.identity");
    const bool is_good = previous != NULL && base != NULL && strcmp(previous, now->previous) == 0 &&
                         strcmp(base, now->base) == 0;
    tess_safetensors_close(&st);
    return is_good ? TESS_OK : TESS_FAIL(TESS_E_STATE, "the export does not name its bases");
}

static tess_status run_all(bench *b)
{
    const char *const first[] = {"base.format=int2", NULL};
    const char *const second[] = {"base.format=qint8", NULL};
    const char *const second_allowed[] = {"base.format=qint8", allow, NULL};
    const char *const third_allowed[] = {"base.format=nf4", "base.block_size=128", allow, NULL};
    const char *const other_too[] = {"base.format=qint8", "train.beta1=0.8", allow, NULL};
    char history[3 * TESS_SHA256_HEX_NBYTES];
    found before, after, later, last;
    tiny_outcome outcome;
    TESS_TRY(one_step(b, first));
    TESS_TRY(one_step(b, first));
    TESS_TRY(look(b, first, &before));
    TESS_TRY(expect(b, before.step == 2 && before.previous[0] == '\0', "start"));
    TESS_TRY(expect_refusal(b, second, "base.format: int2 -> qint8"));
    TESS_TRY(expect_refusal(b, other_too, "train.beta1"));
    TESS_TRY(look(b, second_allowed, &after));
    TESS_TRY(expect(b, after.step == 2, "the step is the checkpoint's"));
    TESS_TRY(expect(b, tess_sha256_is_equal(&after.state, &before.state),
                    "masters and moments are the checkpoint's"));
    TESS_TRY(expect(b, strcmp(after.base, before.base) != 0, "the base is another"));
    TESS_TRY(expect(b, strcmp(after.previous, before.base) == 0, "the base before is named"));
    /* once a checkpoint has the new base, the run goes on without a word */
    TESS_TRY(one_step(b, second_allowed));
    TESS_TRY(one_step(b, second));
    TESS_TRY(look(b, second, &later));
    TESS_TRY(expect(b,
                    later.step == 4 && strcmp(later.base, after.base) == 0 &&
                        strcmp(later.previous, before.base) == 0,
                    "a later resume"));
    TESS_TRY(look(b, third_allowed, &last));
    snprintf(history, sizeof history, "%.64s,%.64s", before.base, after.base);
    TESS_TRY(expect(b, strcmp(last.previous, history) == 0, "two bases before"));
    TESS_TRY(expect(b, tess_sha256_is_equal(&last.state, &later.state), "state of step 4"));
    TESS_TRY(tiny_run_train(b->comm, &b->t, b->name, third_allowed, &outcome));
    return tess_agree(b->comm, tess_comm_rank(b->comm) == 0 ? check_export(b, &last) : TESS_OK);
}

/* The source folder once more, its weights with one bit changed. */
static tess_status alter_weights(bench *b)
{
    char from[400], to[400], *text = NULL;
    size_t nbytes = 0;
    snprintf(from, sizeof from, "%s/config.json", b->t.model);
    snprintf(to, sizeof to, "%s/altered", b->t.dir);
    TESS_TRY(tess_io_mkdir(b->t.ctx.io, to, false));
    snprintf(to, sizeof to, "%s/altered/config.json", b->t.dir);
    TESS_TRY(tess_io_read_all(b->t.ctx.io, from, 1 << 20, &text, &nbytes));
    tess_status st = tess_io_write_all(b->t.ctx.io, to, text, nbytes);
    tess_free(text);
    TESS_TRY(st);
    snprintf(from, sizeof from, "%s/model.safetensors", b->t.model);
    snprintf(to, sizeof to, "%s/altered/model.safetensors", b->t.dir);
    TESS_TRY(tess_io_read_all(b->t.ctx.io, from, 64 << 20, &text, &nbytes));
    text[nbytes - 2] ^= 1;
    st = tess_io_write_all(b->t.ctx.io, to, text, nbytes);
    tess_free(text);
    return st;
}

/* Checkpoints that refer to their source: other weights of the same shape and format are another
 * base too. */
static tess_status run_on_altered_source(bench *b)
{
    const char *const kept[] = {"model.init=weights", "base.format=keep", NULL};
    const char *const allowed[] = {"model.init=weights", "base.format=keep", allow, NULL};
    found before, after, later;
    b->name = "kept";
    TESS_TRY(tiny_run_make_weights(b->comm, &b->t));
    TESS_TRY(one_step(b, kept));
    TESS_TRY(look(b, kept, &before));
    TESS_TRY(tess_agree(b->comm, tess_comm_rank(b->comm) == 0 ? alter_weights(b) : TESS_OK));
    snprintf(b->t.model, sizeof b->t.model, "%s/altered", b->t.dir);
    TESS_TRY(expect_refusal(b, kept, "adapter.allow_base_change"));
    TESS_TRY(look(b, allowed, &after));
    TESS_TRY(expect(b, tess_sha256_is_equal(&after.state, &before.state),
                    "masters and moments are the checkpoint's, over the altered weights"));
    TESS_TRY(
        expect(b, strcmp(after.base, before.base) != 0 && strcmp(after.previous, before.base) == 0,
               "the altered base is another, and the base before is named"));
    TESS_TRY(one_step(b, allowed));
    TESS_TRY(look(b, kept, &later));
    return expect(b,
                  later.step == 2 && strcmp(later.base, after.base) == 0 &&
                      strcmp(later.previous, before.base) == 0,
                  "a later resume over the altered weights");
}

static tess_status run(tess_comm *comm)
{
    bench b = {.comm = comm, .name = "run"};
    tess_status st = tiny_run_create(comm, &b.t);
    if (st == TESS_OK) {
        st = run_all(&b);
        if (st == TESS_OK)
            st = run_on_altered_source(&b);
        tess_session_close(&b.session);
        tiny_run_destroy(comm, &b.t);
    }
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
