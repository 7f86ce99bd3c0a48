/** All stages of a model with f32 or bf16 trainable units alone, on one rank without the runtime: a
 * failure here is one of the model or its kernels. */
#pragma once

#include "core/device.h"
#include "core/pool.h"
#include "model/model.h"

enum { CHAIN_MAX = 4 };

typedef struct stage_chain {
    tess_registry reg;
    tess_model *model;
    tess_pool *pool;
    tess_host_device device;
    tess_stream stream;
    float *master[CHAIN_MAX], *grad[CHAIN_MAX]; /* per unit */
    char *trainable[CHAIN_MAX];                 /* per unit: compute copy */
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
/** Where a parameter's master or gradient begins. Local. */
float *stage_chain_master(stage_chain *c, const char *name);
const float *stage_chain_grad(const stage_chain *c, const char *name);
/** Forward in evaluation. Local. */
tess_status stage_chain_eval(stage_chain *c, const void *batch, double *loss_sum);
/** Forward and backward of one micro-batch into cleared gradients. Local. */
tess_status stage_chain_train(stage_chain *c, const void *batch, float grad_scale,
                              double *loss_sum);
