#include <stdio.h>
#include <string.h>

#include "dist/comm_priv.h"

typedef struct agree_text {
    int32_t status;
    int32_t rank; /* in the launch */
    char message[TESS_ERROR_MESSAGE_NBYTES];
} agree_text;

static const int64_t FATAL_KEY = (int64_t)1 << 32;

/* The largest key wins: fatal before others, then the lowest rank. 0: no failure. */
static int64_t key_of(const tess_comm *comm, tess_status local)
{
    if (local == TESS_OK)
        return 0;
    return (tess_status_is_fatal(local) ? FATAL_KEY : 0) + (comm->world - comm->rank);
}

static void write_text(const tess_comm *comm, tess_status local, agree_text *text)
{
    const bool has_record = tess_error_status() != TESS_OK;
    text->status = (int32_t)local;
    text->rank = tess_comm_launch_rank(comm);
    if (has_record && tess_error_rank() >= 0)
        text->rank = tess_error_rank(); /* agreed before, in a group: keep who it was */
    snprintf(text->message, sizeof text->message, "%s",
             has_record ? tess_error_message() : tess_status_text(local));
}

tess_status tess_agree(tess_comm *comm, tess_status local)
{
    int64_t key = key_of(comm, local);
    TESS_TRY(tess_comm_control(comm, NULL, 0, &key, 1));
    if (key == 0)
        return TESS_OK;
    const int root_rank = comm->world - (int)(key % FATAL_KEY);
    agree_text text;
    memset(&text, 0, sizeof text);
    if (comm->rank == root_rank)
        write_text(comm, local, &text);
    TESS_TRY(tess_comm_bcast(comm, root_rank, &text, sizeof text));
    text.message[sizeof text.message - 1] = '\0';
    tess_error_adopt((tess_status)text.status, text.rank, text.message);
    return (tess_status)text.status;
}
