/**
 * What `tessera check` finds out about a launch before a run: every rank's machine and libraries,
 * the folder that all must share, and every link, with what is odd named.
 */
#pragma once

#include "core/ctx.h"
#include "dist/comm.h"
#include "format/json.h"

TESS_BEGIN_DECLS

/** What a rank says of itself. Plain bytes: it travels. Empty text: there is none. */
typedef struct tess_preflight_card {
    char host[64];
    char program[64]; /* "0.1.0 build 9f2c31aa" */
    char mpi[64];     /* first part of what the library says of itself */
    char hdf5[32];    /* of the library in use */
    char cuda[96];    /* versions of the libraries behind the CUDA part */
    char driver[64];  /* of the device */
    char device[160]; /* model and bus address of the one this rank would take */
    char kernels[32]; /* widest instruction path of the CPU */
    char cores[64];   /* that this process may use, as the kernel lists them: "0-7,64-71" */
    char numa[32];    /* nodes it may take memory from */
    char folder[160]; /* why the folder cannot be used from here */
    int32_t node, node_rank, core_numel;
    bool sees_folder; /* it found rank 0's file in the shared folder */
    int64_t memory_free_nbytes, disk_free_nbytes;
    double clock_s; /* of the calendar, read as all leave a barrier */
} tess_preflight_card;

/** One measured pair of ranks. */
typedef struct tess_preflight_pair {
    int a, b;         /* a < b */
    double latency_s; /* one message of a byte each way, the least of several */
    double gbps;      /* each way while both send, the best of several, 10^9 bytes/s */
} tess_preflight_pair;

enum { TESS_PREFLIGHT_TEXT_NBYTES = 384, TESS_PREFLIGHT_FINDING_MAX = 64 };

/** On rank 0 everything, elsewhere only what it must know to leave with the same status. */
typedef struct tess_preflight {
    int world, node_numel;
    const char *dir;           /* borrowed */
    tess_preflight_card *card; /* [world] */
    tess_preflight_pair *pair; /* [pair_numel], of those that were measured */
    int64_t pair_numel;
    char (*finding)[TESS_PREFLIGHT_TEXT_NBYTES]; /* [finding_numel] each with its fix */
    int finding_numel;                           /* on all ranks */
    int finding_more_numel;                      /* that did not fit */
} tess_preflight;

typedef struct tess_preflight_request {
    const char *dir;     /* output.dir */
    const char *version; /* of the program */
} tess_preflight_request;

/**
 * Look at everything. Creates `dir` where it is missing; leaves nothing in it.
 *
 * Collective over `world`. What is odd is no error here. @return TESS_E_IO rank 0 cannot write
 */
TESS_MUST_CHECK tess_status tess_preflight_run(const tess_ctx *ctx, tess_comm *world,
                                               const tess_preflight_request *request,
                                               tess_preflight *out);
void tess_preflight_fini(tess_preflight *p);

/**
 * Name what is odd: what differs from most ranks, a clock off by more than 1 s, memory or disk
 * under half the median, a folder that is not shared, a link slower than half its like. Fills
 * `finding`, which has room for TESS_PREFLIGHT_FINDING_MAX. Local; all else is filled.
 */
void tess_preflight_judge(tess_preflight *p);

/** For people, into a new string. Rank 0. */
TESS_MUST_CHECK tess_status tess_preflight_text(const tess_preflight *p, char **out);
/** The same and every pair, for programs. Rank 0. */
TESS_MUST_CHECK tess_status tess_preflight_json(const tess_preflight *p, char **out);

TESS_END_DECLS
