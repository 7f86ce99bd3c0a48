/** All stages of a model, trainable tensors and frozen ones in f32, on one rank without the
 * runtime: a failure here is one of the model or its kernels. */
#pragma once

#include "core/device.h"
#include "core/pool.h"
#include "model/model.h"

enum { CHAIN_MAX = 8 };

typedef struct stage_chain {
    tess_registry reg;
    tess_model *model;
    tess_pool *pool;
    tess_host_device device;
    tess_stream stream;
    float *master[CHAIN_MAX], *grad[CHAIN_MAX]; /* per unit */
    char *trainable[CHAIN_MAX];                 /* per unit: compute copy */
    char *frozen[CHAIN_MAX];                    /* per unit: byte string */
    const tess_kernels *kernels;                /* NULL: tess_kernels_cpu */
    char *output[CHAIN_MAX], *saved[CHAIN_MAX]; /* per stage */
    char *work, *d[2];
    size_t work_nbytes, d_nbytes;
    bool is_recomputed; /* forward is repeated before backward, over poisoned `saved` */
} stage_chain;

/** `reg` and `model` are there; everything else is allocated. Local. */
tess_status stage_chain_init(stage_chain *c, int thread_numel);
void stage_chain_fini(stage_chain *c);
/** Round masters to the compute copies. Local. */
tess_status stage_chain_publish(stage_chain *c);
/** Where a parameter's master, or a frozen one's f32 values begin; its gradient. Local. */
float *stage_chain_master(stage_chain *c, const char *name);
const float *stage_chain_grad(const stage_chain *c, const char *name);
/** Forward in evaluation, or another mode without backward. Local. */
tess_status stage_chain_forward(stage_chain *c, tess_call_mode mode, const void *batch,
                                double *loss_sum);
/** Forward in evaluation. Local. */
tess_status stage_chain_eval(stage_chain *c, const void *batch, double *loss_sum);
/** Forward and backward of one micro-batch into cleared gradients. Local. */
tess_status stage_chain_train(stage_chain *c, const void *batch, float grad_scale,
                              double *loss_sum);
