/** Small checkpoints with known contents: every element follows from (record, place, seed). */
#pragma once

#include "shard/ckpt.h"

enum { CKPT_FIXTURE_RECORD_MAX = 16, CKPT_FIXTURE_TENSOR_MAX = 16 };

typedef struct ckpt_fixture {
    tess_ckpt_record step_records[CKPT_FIXTURE_RECORD_MAX];
    tess_ckpt_tensor step_tensors[CKPT_FIXTURE_TENSOR_MAX];
    tess_ckpt_set step;
    tess_ckpt_record base_records[CKPT_FIXTURE_RECORD_MAX];
    tess_ckpt_tensor base_tensors[CKPT_FIXTURE_TENSOR_MAX];
    tess_ckpt_set base;
    tess_io *io;
    tess_ctx ctx;
    int64_t keep_every, last_step; /* of stores opened from now on; 0 and false at first */
    bool has_read_back;
    char log[4096]; /* lines since creation, cut at the end */
} ckpt_fixture;

/**
 * Sets of one rank. `scale` multiplies the large unit: 1 gives files of a few KiB, 1500 units above
 * one chunk. `gather_group` ranks hold the base.
 */
TESS_MUST_CHECK tess_status ckpt_fixture_create(int world, int rank, int gather_group,
                                                int64_t scale, ckpt_fixture **out);
void ckpt_fixture_destroy(ckpt_fixture **f);
/** Contents of checkpoint `seed` in all views; the base has the seed 0 always. */
void ckpt_fixture_fill(ckpt_fixture *f, uint64_t seed);
/** 0xA5 everywhere. */
void ckpt_fixture_poison(ckpt_fixture *f);
/** Bytes that differ from ckpt_fixture_fill(). */
int64_t ckpt_fixture_wrong(const ckpt_fixture *f, uint64_t seed, bool with_base);
/** Expected bytes of elements [lo, hi) of a record of either set. */
void ckpt_fixture_expect(const tess_ckpt_record *r, int64_t lo_idx, int64_t hi_idx, uint64_t seed,
                         void *dst);
/** State values of checkpoint `seed`; at most 8. */
int64_t ckpt_fixture_state(uint64_t seed, tess_ckpt_value values[8]);
/** "0123...": the id of the base. */
extern const char ckpt_fixture_base_id[];
/** Store of `dir`, keep 2. Collective. */
TESS_MUST_CHECK tess_status ckpt_fixture_open(ckpt_fixture *f, tess_comm *comm, const char *dir,
                                              bool is_reader, tess_ckpt_store **out);
/** Save the base, prepare for steps. Collective. */
TESS_MUST_CHECK tess_status ckpt_fixture_prepare(ckpt_fixture *f, tess_ckpt_store *store);
/** Fill with `seed` and save it as step `seed`. Collective. */
TESS_MUST_CHECK tess_status ckpt_fixture_save(ckpt_fixture *f, tess_ckpt_store *store, int64_t seed,
                                              tess_ckpt_report *report);
/** Load and compare with what step `*seed` held; fresh gives -1. Collective. */
TESS_MUST_CHECK tess_status ckpt_fixture_load(ckpt_fixture *f, tess_ckpt_store *store,
                                              const char *path, int64_t *seed,
                                              int64_t *fallback_numel);
/** New directory below TMPDIR, the same name on all ranks. Collective. */
TESS_MUST_CHECK tess_status ckpt_fixture_dir(tess_comm *comm, char dir[256]);
/** Remove a directory of tests with everything in it, links not followed. Local. */
void ckpt_fixture_remove(const char *dir);
