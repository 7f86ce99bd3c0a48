/**
 * What `libtessera_cuda.so` and the program know of each other: one table each way.
 *
 * The program links no CUDA library. It opens the plugin with dlopen, hands over its own services
 * and receives devices, kernels and collectives; the plugin links neither MPI nor HDF5. Both sides
 * are built from the same headers; `abi` refuses a mixture.
 */
#pragma once

#include "core/device.h"
#include "kernels/kernels.h"

TESS_BEGIN_DECLS

enum { TESS_CUDA_ABI = 7, TESS_CUDA_UNIQUE_ID_NBYTES = 128 };
enum { TESS_CUDA_SHAPE_MAX = 16 }; /* of attention that libraries make plans for */

/** Services of the program. */
typedef struct tess_cuda_host {
    uint32_t abi;
    /* Put a message into the calling thread's error record. */
    tess_status (*error_set)(tess_status st, const char *file, int line, const char *text);
    /* Add a line to that record's trace. */
    tess_status (*error_trace)(tess_status st, const char *file, int line, const char *call);
    /* That record's message, and an end to it: a failure that was dealt with. */
    const char *(*error_message)(void);
    void (*error_clear)(void);
    /* The program's counted allocator; refused while a step runs. */
    tess_status (*alloc)(size_t nbytes, void **out);
    void (*free)(void *ptr);
    double (*now_s)(void);
} tess_cuda_host;

typedef struct tess_cuda_info {
    char name[128];   /* "NVIDIA H200" */
    int capability;   /* 90 */
    int sm_numel;     /* multiprocessors */
    char bus_id[32];  /* "0000:1b:00.0": of the machine; slices of one device share it */
    uint8_t uuid[16]; /* of this device, or of this slice, among all machines */
    size_t memory_nbytes;
} tess_cuda_info;

/** What a step will ask of the libraries, so that nothing is opened or allocated inside one. */
typedef struct tess_cuda_work {
    tess_attention_shape attention[TESS_CUDA_SHAPE_MAX]; /* largest first; what is not among them
                                                            takes own kernels */
    int attention_numel;
    int64_t document_max;    /* documents a micro-batch may have for the library's attention */
    bool is_deterministic;   /* attention's backward pass */
    size_t slot_nbytes;      /* of the largest product's dequantized matrices; 0: none */
    size_t kept_nbytes;      /* for matrices that stay decoded, whose codes never change */
    size_t attention_nbytes; /* most that the library's attention may take */
    double execution_s;      /* that one execution of its graphs takes at least: own kernels have
                                calls that need too many of them. 0: the library has all it can */
} tess_cuda_work;

enum { TESS_CUDA_NOTE_NBYTES = 384 };

typedef struct tess_gpu_group tess_gpu_group; /* a communicator of the collective library */

/**
 * Collectives between devices, as thin as the library's own calls. Nothing here blocks but where it
 * says so; work goes to streams of the device. Sizes are equal on both sides by contract.
 */
typedef struct tess_gpu_collectives {
    const char *name; /* "nccl 2.28.9" */
    tess_status (*unique_id)(uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES]);
    /* Begin to join; `poll` tells when it is done. Collective over `world`. */
    tess_status (*join)(tess_device *d, const uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES], int rank,
                        int world, const char *name, tess_gpu_group **out);
    /* Begin a sub-group of equal `color`, ranked by `key`. Collective over `parent`. */
    tess_status (*split)(tess_gpu_group *parent, int color, int key, const char *name,
                         tess_gpu_group **out);
    /* Progress of what was begun, and errors found since: TESS_E_COMM with the library's text. */
    tess_status (*poll)(tess_gpu_group *g, bool *is_ready);
    tess_status (*group_begin)(tess_gpu_group *g);
    tess_status (*group_end)(tess_gpu_group *g);
    /* `full` [world, nbytes] */
    tess_status (*all_gather)(tess_gpu_group *g, const void *shard, void *full, size_t nbytes,
                              tess_stream *s);
    tess_status (*send)(tess_gpu_group *g, const void *data, size_t nbytes, int peer,
                        tess_stream *s);
    tess_status (*receive)(tess_gpu_group *g, void *data, size_t nbytes, int peer, tess_stream *s);
    /* Sum of rows, f32; `full` [world, numel] */
    tess_status (*reduce_scatter)(tess_gpu_group *g, const float *full, float *shard, int64_t numel,
                                  tess_stream *s);
    /* Memory that collectives reach without copies; same arenas in the same order on all ranks.
     * A library that has no use for it does nothing. */
    tess_status (*enroll)(tess_gpu_group *g, void *memory, size_t nbytes);
    /* End whatever of `groups` is under way, of this device alone: all of them are told before any
     * is waited for. A group stands behind the one that it was split from. Then only leave. */
    void (*abort_all)(tess_gpu_group *const *groups, int group_numel);
    /* The end of all that `enroll` began, while the memory is still there and nothing is under way.
     */
    void (*withdraw)(tess_gpu_group *g);
    void (*leave)(tess_gpu_group *g); /* NULL is fine */
} tess_gpu_collectives;

/** What the plugin offers. Functions are Local and report through the program's error record. */
typedef struct tess_cuda_plugin {
    uint32_t abi;
    const char *versions; /* "CUDA 13.0 (driver of CUDA 13.0), cuBLASLt 13.1.0, NCCL 2.28.9" */
    /* @return TESS_E_UNSUPPORTED no driver or one too old, said in one line */
    tess_status (*device_numel)(int *numel);
    tess_status (*device_info)(int idx, tess_cuda_info *out);
    /* Take device `idx` for this process: its name is "cuda:<idx>". */
    tess_status (*device_open)(int idx, tess_device **out);
    void (*device_close)(tess_device **d);
    /* Kernels of an open device; `path` is "sm_90". */
    const tess_kernels *(*kernels)(tess_device *d);
    /* Open the libraries of `compute` for `work`; may take seconds. `note`: in one line, what
     * attention will use and why. @return TESS_E_MEMORY */
    tess_status (*prepare)(tess_device *d, tess_stream *compute, const tess_cuda_work *work,
                           char note[TESS_CUDA_NOTE_NBYTES]);
    /* Memory of the device that prepare() takes. Pure. */
    size_t (*prepare_nbytes)(const tess_cuda_work *work);
    /* NULL: no library; `versions` says why */
    const tess_gpu_collectives *collectives;
} tess_cuda_plugin;

/** The one exported symbol, "tess_cuda_plugin_open". NULL when `host->abi` is another. */
typedef const tess_cuda_plugin *(*tess_cuda_plugin_open_fn)(const tess_cuda_host *host);

TESS_END_DECLS
