/**
 * The plan: every unit, buffer, collective and byte of a run, computed without a device and for any
 * world size.
 *
 * A run allocates exactly what its plan lists; `tessera plan` prints the same object. All functions
 * are Local and pure; ranks compare the digest of the contract table before the first collective.
 *
 * [Note: frozen shards] A unit's frozen byte string is cut in a gather group of G at multiples of
 * 256 bytes: c = 256 ceil(nbytes / 256 / G), member i holds [i c, (i+1) c). With G = 1 the whole
 * string stays in place and is used there; nothing is gathered.
 *
 * [Note: trainable shards] A unit's slab of n blocks of 256 elements is cut over the world: c =
 * ceil(n / W), rank r owns blocks [r c, min((r+1) c, n)). Masters, an
 * optimizer's state per element or block (optimizer.h) and gradient sums have that shape. In LoRA
 * mode the compute copy of every slab is gathered once after the optimizer and kept; in full mode
 * slabs go through the slots.
 *
 * [Note: buckets] Units are gathered in buckets, one collective each; plan_bucket.c says which.
 */
#pragma once

#include "core/exact.h"
#include "dist/comm.h"
#include "dist/contract.h"
#include "format/json.h"
#include "shard/optimizer.h"
#include "shard/profile.h"
#include "shard/registry.h"
#include "shard/schedule.h"

TESS_BEGIN_DECLS

typedef enum tess_lifetime {
    TESS_LIFE_BASE,    /* this rank's frozen shards: whole run */
    TESS_LIFE_SLOT,    /* gathered units */
    TESS_LIFE_PARAM,   /* compute copies of trainable slabs */
    TESS_LIFE_STATE,   /* masters and what the optimizer keeps */
    TESS_LIFE_GRAD,    /* gradient buffers, received pieces, levels of the ordered sum */
    TESS_LIFE_WORK,    /* activations; while loading, staging of tensors */
    TESS_LIFE_MIRROR,  /* on a device: copies of batches and of a model's tables */
    TESS_LIFE_DATA,    /* batches and the data window: host memory */
    TESS_LIFE_STAGING, /* snapshots of state for the checkpoint writer: host memory */
    TESS_LIFE_NUMEL
} tess_lifetime;

const char *tess_lifetime_name(tess_lifetime life);
/** Whether memory of this class is the host's also when kernels run on a device. */
static inline bool tess_lifetime_is_host(tess_lifetime life)
{
    return life == TESS_LIFE_DATA || life == TESS_LIFE_STAGING;
}

/** Words of the record that a step sums up on the device, before one word a unit; see
 * runtime_priv.h. */
enum { TESS_STEP_RECORD_NUMEL = 2 * TESS_EXACT_LIMB_NUMEL + 2 };

typedef enum tess_choice { TESS_AUTO, TESS_OFF, TESS_ON } tess_choice;

/** `bucket_nbytes` of tess_plan_options: what messages need on the link they take, if it fits. */
enum { TESS_BUCKET_AUTO = -1 };

/** How gradient pieces reach their owners; see plan_exchange.h. */
typedef enum tess_exchange {
    TESS_EXCHANGE_AUTO,
    TESS_EXCHANGE_DIRECT,
    TESS_EXCHANGE_BY_NODE
} tess_exchange;

/** Codebooks that the trainer sets, as far as a plan tells of them. */
typedef struct tess_plan_codes {
    bool has_books, is_sharded, can_shard;
    double step_nbytes;     /* the most that a rank receives in their exchanges in a step */
    double gathered_nbytes; /* of it in all-gathers */
    /* The same of either sharding with what it gathers of codes. */
    bool fits_replicated; /* else that is not known of replicated ones */
    double replicated_nbytes, rows_nbytes;
} tess_plan_codes;

/** What the caller decides. Zero `gather_group` means auto. */
typedef struct tess_plan_options {
    int world;
    int gather_group_numel;     /* 0: the smallest that fits */
    int node_rank_numel;        /* ranks on each node, consecutive; 0: not the same everywhere */
    const int *node_first_rank; /* where it is 0: [node_numel + 1], the last is the world; copied;
                                   NULL: nodes are not known */
    int node_numel;
    tess_exchange exchange; /* of gradient pieces; auto: for each unit what is cheaper */
    const tess_link *link_inside, *link_across; /* what decides it; borrowed; NULL: usual ones */
    tess_choice reshard;                        /* reshard after forward */
    tess_choice checkpointing;                  /* activation checkpointing */
    int prefetch;                               /* buckets */
    int64_t bucket_nbytes;      /* most bytes of units that are gathered together; 0: each alone */
    bool is_library;            /* reduction: library */
    tess_choice library_once;   /* library: one reduction per step; auto: where it fits */
    bool is_full;               /* slabs go through the slots */
    int64_t micro_batch_numel;  /* M */
    size_t memory_limit_nbytes; /* per rank; 0: none */
    size_t outside_nbytes;      /* memory outside arenas that counts against the limit */
    size_t sample_nbytes;       /* host memory of samples, outside arenas too */
    size_t library_nbytes;      /* of it, an estimate of what a device's libraries take */
    size_t kept_nbytes;         /* of that, for weights that stay decoded */
    double kept_share;          /* of a step's decoding that is done once for all by that */
    size_t load_nbytes;         /* staging of tensors while they are loaded or exported */
    size_t data_nbytes;         /* batches and data window */
    bool is_device;             /* kernels use memory of a device, not the host's */
    size_t mirror_nbytes;       /* device copies of batches and tables; 0 on the host */
    bool has_snapshot;          /* of the state, for the checkpoint writer */
    int64_t counter_numel;      /* i64 that the trainer saves with it, cut over the world */
    int64_t ahead_sum_numel;    /* i64 that the trainer adds up over ranks before every step,
                                   after a forward pass over its micro-batches; 0: none */
    tess_plan_codes codes;
    const tess_optimizer *optimizer; /* NULL: AdamW */
    const tess_kernels *kernels;     /* its workspaces are planned; NULL: tess_kernels_cpu */
    int thread_numel;                /* of the compute stream; 0: 1 */
    bool has_ema;                    /* keep a moving average of the masters */
    const char *kernel_path;         /* "cpu/avx512_bf16" */
    const char
        *smaller; /* what else takes less memory, for messages; NULL: as in language models */
} tess_plan_options;

/** One array of state over all units. */
typedef struct tess_state_plan {
    tess_state_array array;
    int64_t numel;        /* of a rank */
    size_t offset_nbytes; /* in the STATE arena */
} tess_state_plan;

/** Shards of one unit, the same numbers on every rank. */
typedef struct tess_unit_plan {
    size_t frozen_nbytes;       /* length of the byte string */
    size_t frozen_shard_nbytes; /* c, a multiple of 256; 0 when the unit has none */
    size_t base_offset_nbytes;  /* in the BASE arena */
    int64_t slab_numel;         /* trainable elements, a multiple of 256 */
    int64_t slab_shard_numel;   /* c * 256 */
    bool is_set;                /* the trainer sets it: there are no gradients */
    bool is_held;               /* the trainer sums its gradients, if it has any */
    /* Element in each STATE array and in each level of the sum: units whose gradients travel come
     * first, then others that learn, then those that are set, which some arrays do without. */
    int64_t state_first_idx;
    int64_t factor_numel;     /* numbers of this unit in arrays of TESS_GRAIN_FACTOR */
    int64_t factor_first_idx; /* the first of them there */
    int64_t rest_numel;       /* the same of TESS_GRAIN_REST: slab_numel, or 0 */
    int64_t rest_first_idx;
    size_t param_offset_nbytes;     /* in the PARAM arena */
    bool is_by_node;                /* its gradient pieces go by node */
    int bucket_idx;                 /* it is gathered with; -1: it lies in place */
    size_t slot_offset_nbytes;      /* place of the frozen string in the bucket's slot */
    size_t slot_slab_offset_nbytes; /* full mode: place of the slab behind it */
    int frozen_wire_idx, slab_wire_idx, grad_wire_idx; /* contracts, -1: none */
    int pass_wire_idx; /* pieces that a relay passes on, -1: they go straight */
} tess_unit_plan;

/** Units that are gathered together, into one slot. */
typedef struct tess_bucket_plan {
    int first_idx; /* of its units in the plan's `bucket_unit` */
    int unit_numel;
    size_t nbytes;              /* of a slot */
    size_t frozen_shard_nbytes; /* what a rank gives to its gather group */
    size_t slab_shard_nbytes;   /* full mode: what a rank gives to all ranks */
    int64_t gather_numel;       /* in a step */
} tess_bucket_plan;

/** Elements of its slab whose gradients a rank computes and sends to owners. Local. */
static inline int64_t tess_unit_grad_numel(const tess_unit_plan *u)
{
    return u->is_set || u->is_held ? 0 : u->slab_numel;
}

/** One planned allocation. */
typedef struct tess_buffer_plan {
    char name[96];
    tess_lifetime life;
    tess_dtype dt;
    int64_t numel;
    size_t nbytes;        /* rounded up to 256 */
    size_t offset_nbytes; /* in its arena */
} tess_buffer_plan;

typedef struct tess_stage_plan {
    bool is_checkpointed;
    size_t output_offset_nbytes; /* in the WORK arena */
    size_t saved_offset_nbytes;
} tess_stage_plan;

/** What a way of summing gradients would cost, everything else of the plan left as it is. */
typedef enum tess_reduction {
    TESS_REDUCTION_EXACT,        /* ordered, every micro-batch to its owners */
    TESS_REDUCTION_LIBRARY_ONCE, /* a rank adds its micro-batches up, one reduction per step */
    TESS_REDUCTION_LIBRARY_EACH, /* one reduction per round of micro-batches */
    TESS_REDUCTION_NUMEL
} tess_reduction;

typedef struct tess_reduction_cost {
    size_t total_nbytes;         /* memory of a rank */
    double grad_nbytes_per_step; /* bytes that rank 0 sends */
} tess_reduction_cost;

typedef struct tess_plan {
    tess_plan_options options; /* with every `auto` decided */
    int *node_first_rank;      /* that of the options, NULL */
    tess_unit_plan *unit;
    int unit_numel;
    tess_bucket_plan *bucket;
    int bucket_numel;
    int *bucket_unit; /* units of all buckets, in the order in which stages come to them */
    tess_stage_plan *stage;
    int stage_numel;
    tess_buffer_plan *buffer;
    int buffer_numel;
    tess_wire *wire;
    int wire_numel;
    size_t arena_nbytes[TESS_LIFE_NUMEL];
    size_t total_nbytes; /* arenas and outside_nbytes; with a device: those in its memory */
    size_t host_nbytes;  /* with a device: arenas in host memory, load staging, the checkpoint
                            store's chunk and the optimizer's exchanges; else 0 */
    size_t slot_nbytes;
    int slot_numel;
    int round_numel;
    int level_numel; /* floor(log2 M) + 1; 1 with the library reduction */
    int64_t
        summed_numel; /* sum of slab_shard_numel where gradients travel: of levels but the last */
    int64_t learning_numel; /* of all that learns: of the last level, moments */
    int64_t state_numel;    /* of all: masters */
    int64_t factor_numel;   /* sum of factor_numel */
    int64_t rest_numel;     /* sum of slab_shard_numel where there is a rest */
    tess_state_plan state[TESS_STATE_ARRAY_MAX]; /* masters first; the average last, if any */
    int state_array_numel;
    int ema_array_idx;       /* of the average, 0: none */
    int64_t trainable_numel; /* parameters that learn, without padding */
    bool is_library_once;
    tess_reduction reduction; /* the chosen one; a library reduction of one round is "once" */
    tess_reduction_cost reduction_cost[TESS_REDUCTION_NUMEL];
    int grad_buffer_numel;
    int64_t gather_numel_per_step;      /* gathers of buckets in one step of an active rank */
    double gather_nbytes_per_step;      /* bytes received per rank and step in gathers of units */
    double gather_slab_nbytes_per_step; /* of them trainable slabs, which come from all ranks */
    double grad_nbytes_per_step;        /* bytes that rank 0 sends per step for gradients */
    double slab_nbytes_per_step;        /* bytes received per rank and step for kept slabs */
    /* The most that a rank receives of sums ahead of a step, which are control records (spies do
     * not see them); their gathers are above. */
    double ahead_nbytes_per_step;
    /* WORK arena */
    size_t shared_saved_offset_nbytes, work_offset_nbytes, d_offset_nbytes[2];
    size_t work_nbytes, d_nbytes;
    /* GRAD arena */
    size_t *grad_buffer_offset_nbytes; /* [grad_buffer_numel] */
    size_t receive_offset_nbytes, level_offset_nbytes, record_offset_nbytes;
    size_t optimizer_work_offset_nbytes;
    size_t optimizer_host_nbytes; /* with a device: of host_nbytes, for its exchanges */
    int optimizer_wire_idx;       /* contract of what its updates exchange, -1: none */
} tess_plan;

/**
 * Make the plan. `reg` is laid out and borrowed while the plan lives.
 * @return TESS_E_CONFIG impossible choice (names the key); TESS_E_FIT with the three cheapest
 * changes that would fit
 */
TESS_MUST_CHECK tess_status tess_plan_create(const tess_registry *reg,
                                             const tess_plan_options *options, tess_plan **out);
void tess_plan_destroy(tess_plan **plan);
/** "exact", "library, once per step", "library, per micro-batch". */
const char *tess_reduction_name(tess_reduction reduction);

/** Blocks' elements this rank owns of a unit: [lo, hi) of its slab; may be empty. */
void tess_plan_owned(const tess_plan *plan, int unit_idx, int rank, int64_t *lo_idx,
                     int64_t *hi_idx);
/** Numbers of a unit in an array of state, and the range of them that `rank` owns: what it saves
 * and loads. */
int64_t tess_plan_state_total(const tess_plan *plan, int unit_idx, int array_idx);
void tess_plan_state_owned(const tess_plan *plan, int unit_idx, int array_idx, int rank,
                           int64_t *lo_idx, int64_t *hi_idx);
/** Schedule of a rank that is active in all rounds but perhaps the last. */
TESS_MUST_CHECK tess_status tess_plan_schedule(const tess_plan *plan, const tess_registry *reg,
                                               int rank, bool is_eval, tess_schedule *out);
/** Rounds in which `rank` has a micro-batch. */
int tess_plan_active_rounds(const tess_plan *plan, int rank);
/** Bytes that a rank receives in a step in gathers of a unit's slab. Local. */
double tess_plan_unit_gathered_nbytes(const tess_plan *plan, const tess_registry *reg,
                                      int unit_idx);
/** Gradient pieces of a unit that a rank receives in a step, in bytes; the most of any. Local. */
double tess_plan_unit_gradient_nbytes(const tess_plan *plan, int unit_idx);
/** Bytes that an operation of `rank` moves between ranks: received by a gather, given to others by
 * a reduction; -1: it moves none. Local. */
int64_t tess_plan_op_nbytes(const tess_plan *plan, int rank, const tess_sched_op *op);

/** What one rank of a plan holds and moves. */
typedef struct tess_rank_cost {
    size_t memory_nbytes; /* of what is planned, the bytes that hold something: no padding */
    double received_nbytes, sent_nbytes; /* in a step */
} tess_rank_cost;

/** In closed form: in a time that does not depend on the number of ranks. Local. */
void tess_plan_rank_cost(const tess_plan *plan, const tess_registry *reg, int rank,
                         tess_rank_cost *out);

typedef struct tess_rank_range {
    double least, most;
    int least_rank, most_rank; /* the first of those alike */
} tess_rank_range;

/** Ranges over all ranks. */
typedef struct tess_rank_ranges {
    tess_rank_range memory, received, sent;
} tess_rank_ranges;

void tess_plan_rank_ranges(const tess_plan *plan, const tess_registry *reg, tess_rank_ranges *out);

/** The frozen matrices that are stored alike. */
typedef struct tess_plan_format {
    char format[TESS_CODEC_TEXT_NBYTES]; /* as tess_codec_describe() */
    int matrix_numel;
    int64_t numel; /* elements of all */
    size_t nbytes;
    const char *products; /* how products take them: "dequantized, then multiplied" */
} tess_plan_format;

/** Formats of the base in the order in which they come up. Local; the caller frees `out`. */
TESS_MUST_CHECK tess_status tess_plan_base(const tess_plan *plan, const tess_registry *reg,
                                           tess_plan_format **out, int *out_numel);
/** plan.json: the same on every rank. Caller destroys. */
TESS_MUST_CHECK tess_status tess_plan_json(const tess_plan *plan, const tess_registry *reg,
                                           tess_json **out);
/**
 * Everything that ranks must agree on before the first collective: choices, every unit, every wire,
 * and the digest of plan.json. `contract` must hold no wires yet.
 */
TESS_MUST_CHECK tess_status tess_plan_contract(const tess_plan *plan, const tess_registry *reg,
                                               tess_contract *contract);
/** The same for people, into a new string. */
TESS_MUST_CHECK tess_status tess_plan_text(const tess_plan *plan, const tess_registry *reg,
                                           char **out);

TESS_END_DECLS
