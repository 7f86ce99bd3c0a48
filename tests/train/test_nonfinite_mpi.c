/*
 * Gradients that are not finite in a whole run: the step changes nothing and is warned of, AdamW
 * does not count it, five in a row or more than ten in a thousand end the run, and checkpoints
 * carry the counts.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { STEP_MAX = 40 };

/* What one life is to do, and what was seen of it. */
static struct {
    const tess_session *session;
    bool (*is_poisoned)(int64_t step);
    int64_t seen_step;                     /* the last one that a loss was computed in */
    tess_logical_hash state[STEP_MAX + 1]; /* [step] this rank's, as that step begins */
    int64_t adam_step[STEP_MAX + 1];       /* [step] AdamW's t, 0: no update */
    int warning_numel;
    char warning[STEP_MAX][200];
} life;

static void listen(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    const char *at = strstr(line, " skipped: ");
    if (level == TESS_LOG_WARN && at != NULL && life.warning_numel < STEP_MAX)
        snprintf(life.warning[life.warning_numel++], sizeof life.warning[0], "%s", line);
}

static void hash_state(int64_t step)
{
    const tess_plan *plan = life.session->d.plan;
    for (int u = 0; u < plan->unit_numel; u++) {
        const int64_t at = (int64_t)u << 40;
        for (int kind = 0; kind < TESS_STATE_NUMEL; kind++) {
            const tess_view v = tess_runtime_state(life.session->rt, u, (tess_state_kind)kind);
            tess_logical_hash_add(&life.state[step], v.data, v.numel, 4,
                                  at + ((int64_t)kind << 36));
        }
    }
}

/* One NaN among the gradients of the first micro-batch of rank 0, whose loss stays finite. */
static tess_status cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    const int64_t step = tess_session_step(life.session);
    TESS_TRY(tess_kernels_cpu.cross_entropy(a, s));
    if (a->d_logits.numel == 0 || step == life.seen_step || step > STEP_MAX)
        return TESS_OK;
    life.seen_step = step;
    hash_state(step);
    if (tess_comm_rank(life.session->world) != 0 || !life.is_poisoned(step))
        return TESS_OK;
    TESS_CHECK(a->d_logits.dt == TESS_F32 || a->d_logits.dt == TESS_BF16, TESS_E_STATE,
               "gradients of logits are %s", tess_dtype_name(a->d_logits.dt));
    memset(a->d_logits.data, 0xff, a->d_logits.dt == TESS_F32 ? 4 : 2);
    return TESS_OK;
}

static tess_status adamw(const tess_adamw_args *a, tess_stream *s)
{
    const int64_t step = tess_session_step(life.session);
    if (step <= STEP_MAX)
        life.adam_step[step] = a->step;
    return tess_kernels_cpu.adamw(a, s);
}

/* @param[out] counts  updates, skipped steps, skipped in a row, completed steps */
static tess_status live(tess_comm *comm, tiny_run *t, const char *name, const char *steps,
                        bool (*is_poisoned)(int64_t step), int64_t counts[4])
{
    const char *const overrides[] = {steps, "train.schedule=constant", "train.eval_every=0", NULL};
    tess_kernels kernels = tess_kernels_cpu;
    tess_session *session = NULL;
    const tess_session_options o = {
        .kind = TESS_SESSION_TRAIN, .accept_config_change = true, .kernels = &kernels};
    kernels.cross_entropy = cross_entropy;
    kernels.adamw = adamw;
    memset(&life, 0, sizeof life);
    life.seen_step = -1;
    life.is_poisoned = is_poisoned;
    t->ctx.log.sink = listen;
    TESS_TRY(tiny_run_open_as(comm, t, name, overrides, &o, &session));
    life.session = session;
    const tess_status st = tess_session_train(session);
    counts[0] = session->update_numel;
    counts[1] = session->skipped_numel;
    counts[2] = session->skipped_in_row;
    counts[3] = session->step;
    tess_session_close(&session);
    return st;
}

static tess_status check_counts(const char *name, const int64_t got[4], const int64_t want[4])
{
    TESS_CHECK(memcmp(got, want, 4 * sizeof *got) == 0, TESS_E_STATE,
               "%s: %lld updates, %lld skipped, %lld in a row, %lld steps; expected %lld, %lld, "
               "%lld, %lld",
               name, (long long)got[0], (long long)got[1], (long long)got[2], (long long)got[3],
               (long long)want[0], (long long)want[1], (long long)want[2], (long long)want[3]);
    return TESS_OK;
}

/* ---- skipped steps ---- */

static bool third_and_fourth(int64_t step) { return step == 2 || step == 3; }

/* Of steps first .. first + numel; rank 0 says it. */
static tess_status check_warnings(const tess_comm *comm, int first, int numel)
{
    if (tess_comm_rank(comm) != 0)
        numel = 0;
    TESS_CHECK(life.warning_numel == numel, TESS_E_STATE, "%d warnings of skipped steps, not %d",
               life.warning_numel, numel);
    for (int i = 0; i < numel; i++) {
        int step = 0, rank = -1;
        long long bad_numel = 0;
        char unit[40] = "";
        const char *at = strstr(life.warning[i], "step ");
        const int read_numel =
            at == NULL ? 0
                       : sscanf(at,
                                "step %d skipped: %lld non-finite gradient values, first in unit "
                                "'%39[^']' (rank %d)",
                                &step, &bad_numel, unit, &rank);
        /* A NaN in the logits' gradient reaches every layer below; the first unit that has
         * something to train is the first layer's, and rank 0 owns its first elements. */
        TESS_CHECK(read_numel == 4 && step == first + i && bad_numel > 0 && rank == 0 &&
                       strstr(unit, "0") != NULL,
                   TESS_E_STATE, "warning %d: %s", i, life.warning[i]);
    }
    return TESS_OK;
}

static tess_status check_skips(tess_comm *comm, tiny_run *t)
{
    int64_t counts[4];
    TESS_TRY(live(comm, t, "skips", "train.steps=8", third_and_fourth, counts));
    TESS_TRY(check_counts("two skipped steps", counts, (const int64_t[]){6, 2, 0, 8}));
    TESS_TRY(check_warnings(comm, 3, 2));
    for (int64_t step = 0, adam = 1; step < 7; step++) {
        const bool is_skipped = third_and_fourth(step);
        const bool is_equal =
            memcmp(&life.state[step], &life.state[step + 1], sizeof life.state[0]) == 0;
        TESS_CHECK(is_equal == is_skipped, TESS_E_STATE, "step %d: the state %s", (int)step + 1,
                   is_equal ? "did not change" : "changed though the step was skipped");
        TESS_CHECK(life.adam_step[step] == (is_skipped ? 0 : adam), TESS_E_STATE,
                   "step %d: AdamW is told t = %d", (int)step + 1, (int)life.adam_step[step]);
        adam += !is_skipped;
    }
    return TESS_OK;
}

/* ---- runs that end ---- */

static bool from_third(int64_t step) { return step >= 2; }
static bool all_but_fifth(int64_t step) { return step % 5 != 4; }
static bool every_second(int64_t step) { return step % 2 == 1; }
static bool none(int64_t step) { return step < 0; }

static tess_status expect_end(tess_status st, const char *words)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    TESS_CHECK(st == TESS_E_NUMERIC && tess_status_exit_code(st) == 76, TESS_E_STATE,
               "status %s, exit code %d, expected E_NUMERIC and 76", tess_status_name(st),
               tess_status_exit_code(st));
    TESS_CHECK(strstr(message, words) != NULL, TESS_E_STATE, "no '%s' in: %.900s", words, message);
    return TESS_OK;
}

static tess_status check_ends(tess_comm *comm, tiny_run *t)
{
    int64_t counts[4];
    tess_status st = live(comm, t, "row", "train.steps=20", from_third, counts);
    TESS_TRY(expect_end(
        st, "step 7: 5 steps in a row and 5 in all were skipped, the last for non-finite"));
    TESS_TRY(check_counts("five in a row", counts, (const int64_t[]){2, 5, 5, 7}));
    TESS_TRY(check_warnings(comm, 3, 5));
    /* four in a row, twice, are borne */
    TESS_TRY(live(comm, t, "fours", "train.steps=10", all_but_fifth, counts));
    TESS_TRY(check_counts("four in a row, twice", counts, (const int64_t[]){2, 8, 0, 10}));
    /* so are ten of the first thousand, not eleven */
    st = live(comm, t, "often", "train.steps=30", every_second, counts);
    TESS_TRY(expect_end(
        st, "step 22: 1 steps in a row and 11 in all were skipped, the last for non-finite"));
    return check_counts("every second step", counts, (const int64_t[]){11, 11, 1, 22});
}

/* Four in a row before a checkpoint and one after it are five in a row. */
static tess_status check_resume(tess_comm *comm, tiny_run *t)
{
    int64_t counts[4];
    TESS_TRY(live(comm, t, "resumed", "train.steps=6", from_third, counts));
    TESS_TRY(check_counts("four in a row", counts, (const int64_t[]){2, 4, 4, 6}));
    const tess_status st = live(comm, t, "resumed", "train.steps=20", from_third, counts);
    TESS_TRY(expect_end(
        st, "step 7: 5 steps in a row and 5 in all were skipped, the last for non-finite"));
    TESS_TRY(live(comm, t, "resumed", "train.steps=8", none, counts));
    return check_counts("resumed with good ones", counts, (const int64_t[]){4, 4, 0, 8});
}

static tess_status run(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = check_skips(comm, &t);
    if (st == TESS_OK)
        st = check_ends(comm, &t);
    if (st == TESS_OK)
        st = check_resume(comm, &t);
    st = tess_agree(comm, st);
    tiny_run_destroy(comm, &t);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
