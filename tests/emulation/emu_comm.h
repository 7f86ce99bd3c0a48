/** Communicators of emulated ranks; see emu_comm.c. What others need stands in emu_device.h. */
#pragma once

#include "dist/comm_priv.h"
#include "emulation/emu_device.h"

typedef struct emu_group emu_group;
typedef struct emu_comm emu_comm;

/** One host collective as one rank entered it. */
typedef struct emu_meeting {
    const char *what;
    int64_t *sum, *max;
    int sum_numel, max_numel;
    int root_rank;
    const void *src;
    void *data; /* bcast: in and out; gather_bytes: the root's `dst` */
    size_t nbytes;
} emu_meeting;

/** Ranks that communicate: what their communicators share. */
struct emu_group {
    const emu_group *parent; /* NULL: the world */
    int split_idx, color;    /* which split of the parent, and which part of it */
    bool is_host;
    int first_rank, rank_numel;
    emu_comm *comm[EMU_RANK_MAX];
    const emu_meeting *meeting[EMU_RANK_MAX];
    int met_numel;
    uint64_t round;
    emu_group *next;
};

struct emu_comm {
    tess_comm base; /* first */
    emu_device *device;
    emu_group *group;
    int split_numel;
    uint64_t issue[TESS_COMM_STREAM_NUMEL];
};

/** One data collective as one rank enqueued it. */
struct emu_collective {
    const emu_comm *comm;
    int stream; /* 0: gather, 1: reduce */
    tess_wire wire;
    tess_view shard, full;
    tess_piece *sends, *receives;
    int send_numel, receive_numel;
};
