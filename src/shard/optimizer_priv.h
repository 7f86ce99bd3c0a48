/** What updates of the optimizers share; see optimizer.h. */
#pragma once

#include "shard/runtime_priv.h"

TESS_BEGIN_DECLS

/** Address of a segment's first number in an array of state, of elements or of blocks. */
float *segment_f32(tess_runtime *rt, const update_segment *s, int array_idx);
uint8_t *segment_u8(tess_runtime *rt, const update_segment *s, int array_idx);
/** Master, gradient and compute copy of a segment. */
tess_update_part segment_part(tess_runtime *rt, const update_segment *s, float clip_factor);
double segment_rate(const tess_runtime *rt, const update_segment *s);
double segment_decay(const tess_runtime *rt, const update_segment *s);

TESS_MUST_CHECK tess_status update_adamw(tess_runtime *rt, float clip_factor);
TESS_MUST_CHECK tess_status update_adamw_8bit(tess_runtime *rt, float clip_factor);
TESS_MUST_CHECK tess_status update_lion(tess_runtime *rt, float clip_factor);
TESS_MUST_CHECK tess_status update_schedule_free(tess_runtime *rt, float clip_factor);

size_t prodigy_work_nbytes(const tess_registry *reg, const tess_kernels *kernels, int thread_numel);
size_t adafactor_work_nbytes(const tess_registry *reg, const tess_kernels *kernels,
                             int thread_numel);
size_t adafactor_host_nbytes(const tess_registry *reg);
size_t muon_work_nbytes(const tess_registry *reg, const tess_kernels *kernels, int thread_numel);
int64_t muon_wire_numel(const tess_registry *reg, int64_t *total_numel);
TESS_MUST_CHECK tess_status announce_muon(tess_runtime *rt);
TESS_MUST_CHECK tess_status update_adafactor(tess_runtime *rt, float clip_factor);
TESS_MUST_CHECK tess_status update_muon(tess_runtime *rt, float clip_factor);
TESS_MUST_CHECK tess_status update_adamw_segment(tess_runtime *rt, const update_segment *s,
                                                 float clip_factor);
TESS_MUST_CHECK tess_status update_prodigy(tess_runtime *rt, float clip_factor);

/** The optimizer's work memory, of the device. */
void *optimizer_work(tess_runtime *rt);

TESS_END_DECLS
