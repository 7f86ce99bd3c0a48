#include "core/clock.h"
#include "dist/alarm_priv.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ALARM_TAG = 7 };
static const double TELL_LIMIT_S = 1.0; /* peers that do not take it may be gone */

/* Plain bytes: it travels. */
typedef struct alarm_note {
    int32_t status;
    char text[ENGINE_FAILURE_NBYTES];
} alarm_note;

struct engine_alarm {
    MPI_Comm mpi;
    int rank;
    int world;
    MPI_Request heard;
    MPI_Request *told; /* [world] */
    alarm_note in;
    alarm_note out;
    engine_alarm *next; /* of those kept below */
};

/* Alarms of failed engines: sends to ranks that may be gone still read them. */
static engine_alarm *kept;

static tess_status open_alarm(engine_alarm *a, MPI_Comm mpi)
{
    void *told = NULL;
    TESS_TRY(tess_alloc_array(a->world, sizeof(MPI_Request), &told));
    a->told = told;
    for (int p = 0; p < a->world; p++)
        a->told[p] = MPI_REQUEST_NULL;
    a->mpi = MPI_COMM_NULL;
    a->heard = MPI_REQUEST_NULL;
    TESS_MPI(MPI_Comm_dup(mpi, &a->mpi));
    TESS_MPI(MPI_Comm_set_errhandler(a->mpi, MPI_ERRORS_RETURN));
    TESS_MPI(MPI_Irecv(&a->in, (int)sizeof a->in, MPI_BYTE, MPI_ANY_SOURCE, ALARM_TAG, a->mpi,
                       &a->heard));
    return TESS_OK;
}

tess_status engine_alarm_create(tess_comm *comm)
{
    engine *e = engine_of_comm(comm);
    const MPI_Comm mpi = ((engine_queue *)comm->gather)->mpi;
    if (mpi == MPI_COMM_NULL)
        return TESS_OK; /* nobody to tell */
    void *memory = NULL;
    TESS_TRY(tess_agree(comm, tess_alloc(sizeof(engine_alarm), &memory)));
    engine_alarm *a = memory;
    a->rank = comm->rank;
    a->world = comm->world;
    pthread_mutex_lock(&e->lock);
    tess_status st = open_alarm(a, mpi);
    e->alarm = a;
    pthread_mutex_unlock(&e->lock);
    st = tess_agree(comm, st);
    if (st != TESS_OK)
        engine_alarm_destroy(e);
    return st;
}

void engine_alarm_destroy(engine *e)
{
    engine_alarm *a = e->alarm;
    if (a == NULL)
        return;
    pthread_mutex_lock(&e->lock);
    e->alarm = NULL;
    const bool is_healthy = atomic_load(&e->failed) == TESS_OK;
    if (a->heard != MPI_REQUEST_NULL) {
        (void)MPI_Cancel(&a->heard);
        (void)MPI_Wait(&a->heard, MPI_STATUS_IGNORE);
    }
    if (is_healthy && a->mpi != MPI_COMM_NULL)
        (void)MPI_Comm_free(&a->mpi);
    pthread_mutex_unlock(&e->lock);
    tess_free(a->told);
    a->told = NULL;
    if (is_healthy) {
        tess_free(a);
        return;
    }
    a->next = kept;
    kept = a;
}

void engine_alarm_hear(engine *e)
{
    engine_alarm *a = e->alarm;
    int is_here = 0;
    if (a->heard == MPI_REQUEST_NULL || atomic_load(&e->failed) != TESS_OK)
        return;
    if (MPI_Test(&a->heard, &is_here, MPI_STATUS_IGNORE) != MPI_SUCCESS || !is_here)
        return;
    a->in.text[sizeof a->in.text - 1] = '\0';
    engine_fail(e, (tess_status)a->in.status, "%s", a->in.text);
}

static void tell(engine_alarm *a)
{
    const double until_s = tess_clock_s() + TELL_LIMIT_S;
    const struct timespec nap = {0, 50000};
    int is_through = 0;
    for (int p = 0; p < a->world; p++)
        if (p != a->rank)
            (void)MPI_Isend(&a->out, (int)sizeof a->out, MPI_BYTE, p, ALARM_TAG, a->mpi,
                            &a->told[p]);
    while (MPI_Testall(a->world, a->told, &is_through, MPI_STATUSES_IGNORE) == MPI_SUCCESS &&
           !is_through && tess_clock_s() < until_s)
        nanosleep(&nap, NULL);
}

void engine_alarm_raise(engine *e, tess_status st, const char *text)
{
    pthread_mutex_lock(&e->lock);
    if (e->alarm != NULL)
        engine_alarm_hear(e); /* the first cause wins */
    if (atomic_load(&e->failed) == TESS_OK) {
        engine_fail(e, st, "%s", text);
        engine_alarm *a = e->alarm;
        if (a != NULL) {
            a->out.status = (int32_t)st;
            snprintf(a->out.text, sizeof a->out.text, "%s", text);
            tell(a);
        }
    }
    pthread_mutex_unlock(&e->lock);
}
