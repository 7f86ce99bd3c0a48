/**
 * What a device and a network do in how much time: small JSON files, measured by `tessera bench` or
 * taken from published figures, and named as such. docs/profiles.md describes the format.
 *
 * Names of descriptions that are installed (share/devices, share/networks) are known everywhere:
 * the program holds their texts.
 */
#pragma once

#include "core/ctx.h"
#include "core/stream.h"
#include "kernels/cost.h"

TESS_BEGIN_DECLS

enum { TESS_CURVE_POINT_MAX = 32, TESS_PROFILE_NAME_NBYTES = 48, TESS_PROFILE_SOURCE_NBYTES = 512 };

/** A rate over a size: points with ascending sizes; between them linear in the logarithm of the
 * size, outside as at the nearest end. */
typedef struct tess_curve {
    int point_numel;
    double size[TESS_CURVE_POINT_MAX], rate[TESS_CURVE_POINT_MAX];
} tess_curve;

double tess_curve_at(const tess_curve *curve, double size);

/** One kind of hop. Rates are bytes per second in one direction, over bytes of a call. */
typedef struct tess_link {
    double latency_s; /* of a call, for every step that follows another */
    double message_s; /* of every message of a call beside its bytes */
    tess_curve rate;
    double arrived_rate; /* bytes per second at which a core takes in what came while it computed;
                            0: it takes no time */
    int adapter_numel;   /* across nodes: adapters that the ranks of a node share */
} tess_link;

typedef struct tess_device_profile {
    char name[TESS_PROFILE_NAME_NBYTES];
    char source[TESS_PROFILE_SOURCE_NBYTES];
    char
        kernel_path[TESS_PROFILE_NAME_NBYTES]; /* "cuda/sm_90"; empty: that of this machine's CPU */
    char network[TESS_PROFILE_NAME_NBYTES];    /* the one that is meant where none is named */
    bool is_measured;                          /* else published */
    size_t memory_nbytes;                      /* default of compute.memory_limit; 0: none */
    int node_rank_numel;                       /* ranks of a node */
    double peak_flops;                         /* dense bf16 products: what utilization refers to */
    tess_curve product_flops;                  /* over the smallest extent of a product */
    double memory_rate;                        /* bytes per second that a copy reads and writes */
    double op_rate[TESS_COST_OP_NUMEL];        /* FLOPs or bytes per second; 0: as memory_rate */
    double weight_rate[TESS_FORMAT_NUMEL]; /* elements per second to bring weights of a format in
                                              front of a product; 0: bytes at memory_rate, nothing
                                              for formats that are multiplied as stored */
    double launch_s;                       /* least time of a kernel, host included */
    bool has_decoding_beside;              /* weights are decoded while the product before runs */
    bool has_overlap;                      /* communication goes on while kernels run */
    bool is_ring;   /* gathers go around a ring, so that a node receives every byte once; else every
                       rank sends its shard to every other */
    tess_link link; /* inside a node */
} tess_device_profile;

typedef struct tess_network_profile {
    char name[TESS_PROFILE_NAME_NBYTES];
    char source[TESS_PROFILE_SOURCE_NBYTES];
    bool is_measured;
    bool has_node;       /* `node` replaces the device's own link */
    int node_rank_numel; /* ranks of a node, where they are not the device's; 0: as there */
    tess_link node, across;
} tess_network_profile;

/**
 * Read a device's description. `name` is one that is installed, or a path: it holds a '/' or ends
 * in
 * ".json". Local.
 * @return TESS_E_UNSUPPORTED lists the known names; TESS_E_IO; TESS_E_FORMAT names file and member
 */
TESS_MUST_CHECK tess_status tess_device_profile_read(tess_io *io, const char *name,
                                                     tess_device_profile *out);
/** The same for a network. Local. */
TESS_MUST_CHECK tess_status tess_network_profile_read(tess_io *io, const char *name,
                                                      tess_network_profile *out);
/** Seconds that a device takes for `cost`: products at the rate of their extents, other ops at
 * theirs, weights brought in front of products; never less than all launches. Local. */
double tess_profile_seconds(const tess_device_profile *device, const tess_cost *cost);

TESS_END_DECLS
