/**
 * The table of kernels of one backend. Shapes, rounding and order of every op stand in its own
 * header.
 *
 * Common rules: inputs are borrowed until the stream passes the call; `dt` is the compute dtype
 * (TESS_F32 or TESS_BF16) of activations; arithmetic is fp32 inside, one rounding (nearest even) on
 * the way out; no result depends on the number of threads, and row i of a result depends only on
 * the inputs of row i where the op is row-wise. Workspaces come from the caller: `*_work_nbytes`
 * functions of the table say how much.
 */
#pragma once

#include "kernels/activation.h"
#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/codebook.h"
#include "kernels/cross_entropy.h"
#include "kernels/dora.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/im2col.h"
#include "kernels/modulate.h"
#include "kernels/muon.h"
#include "kernels/nearest.h"
#include "kernels/nf4.h"
#include "kernels/optimizers.h"
#include "kernels/quantizer_binary.h"
#include "kernels/quantizer_codebook.h"
#include "kernels/quantizer_scalar.h"
#include "kernels/quantizer_vector.h"
#include "kernels/reduce.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/rotate.h"
#include "kernels/square_error.h"

TESS_BEGIN_DECLS

/** The quantizers' ops: a backend has all of them or none. */
typedef struct tess_quantizer_kernels {
    tess_status (*enter)(const tess_quantizer_enter_args *a, tess_stream *s);
    tess_status (*enter_backward)(const tess_quantizer_enter_backward_args *a, tess_stream *s);
    tess_status (*gather)(const tess_quantizer_gather_args *a, tess_stream *s);
    tess_status (*residual)(const tess_quantizer_residual_args *a, tess_stream *s);
    tess_status (*row_loss)(const tess_quantizer_row_loss_args *a, tess_stream *s);
    tess_status (*backward)(const tess_quantizer_backward_args *a, tess_stream *s);
    tess_status (*directed)(const tess_quantizer_directed_args *a, tess_stream *s);
    tess_status (*directed_backward)(const tess_quantizer_directed_backward_args *a,
                                     tess_stream *s);
    tess_status (*code_gradient)(const tess_quantizer_code_gradient_args *a, tess_stream *s);
    tess_status (*gram)(const tess_quantizer_gram_args *a, tess_stream *s);
    tess_status (*orthogonal)(const tess_quantizer_orthogonal_args *a, tess_stream *s);
    tess_status (*mask)(const tess_quantizer_mask_args *a, tess_stream *s);
    tess_status (*sample)(const tess_quantizer_sample_args *a, tess_stream *s);
    tess_status (*average)(const tess_quantizer_average_args *a, tess_stream *s);
    tess_status (*total)(const tess_quantizer_total_args *a, tess_stream *s);
    tess_status (*embed)(const tess_quantizer_embed_args *a, tess_stream *s);
    tess_status (*expire)(const tess_quantizer_expire_args *a, tess_stream *s);
    tess_status (*replace)(const tess_quantizer_replace_args *a, tess_stream *s);
    tess_status (*layer_norm)(const tess_quantizer_layer_norm_args *a, tess_stream *s);
    tess_status (*level)(const tess_quantizer_level_args *a, tess_stream *s);
    tess_status (*level_decode)(const tess_quantizer_level_decode_args *a, tess_stream *s);
    tess_status (*level_backward)(const tess_quantizer_level_backward_args *a, tess_stream *s);
    tess_status (*soft_clamp)(const tess_quantizer_soft_clamp_args *a, tess_stream *s);
    tess_status (*soft_clamp_backward)(const tess_quantizer_soft_clamp_backward_args *a,
                                       tess_stream *s);
    tess_status (*latent)(const tess_quantizer_latent_args *a, tess_stream *s);
    tess_status (*latent_decode)(const tess_quantizer_latent_decode_args *a, tess_stream *s);
    tess_status (*latent_gradient)(const tess_quantizer_latent_gradient_args *a, tess_stream *s);
    tess_status (*sign)(const tess_quantizer_sign_args *a, tess_stream *s);
    tess_status (*sign_decode)(const tess_quantizer_sign_decode_args *a, tess_stream *s);
    tess_status (*sign_loss)(const tess_quantizer_sign_loss_args *a, tess_stream *s);
    tess_status (*sign_backward)(const tess_quantizer_sign_backward_args *a, tess_stream *s);
    tess_status (*pbar)(const tess_quantizer_pbar_args *a, tess_stream *s);
    tess_status (*batch_entropy)(const tess_quantizer_batch_entropy_args *a, tess_stream *s);
    tess_status (*batch_entropy_backward)(const tess_quantizer_batch_entropy_backward_args *a,
                                          tess_stream *s);
} tess_quantizer_kernels;

/** Ops of modulated transformers (FLUX), and attention over segments: all of them or none. */
typedef struct tess_modulated_kernels {
    tess_status (*modulate)(const tess_modulate_args *a, tess_stream *s);
    tess_status (*modulate_backward)(const tess_modulate_backward_args *a, tess_stream *s);
    tess_status (*gate)(const tess_gate_args *a, tess_stream *s);
    tess_status (*gate_backward)(const tess_gate_backward_args *a, tess_stream *s);
    tess_status (*rotate)(const tess_rotate_args *a, tess_stream *s);
    tess_status (*rotate_backward)(const tess_rotate_backward_args *a, tess_stream *s);
    tess_status (*activation)(const tess_activation_args *a, tess_stream *s);
    tess_status (*activation_backward)(const tess_activation_backward_args *a, tess_stream *s);
    tess_status (*square_error)(const tess_square_error_args *a, tess_stream *s);
} tess_modulated_kernels;

typedef struct tess_kernels {
    const char *name; /* "cpu" */
    /* Instruction path in use ("avx512_bf16", "avx512", "avx2", "portable"): part of the numerics
     * digest. */
    const char *(*path)(void);
    /* Terms of a matrix product whose A's are columns of the same rows run as one product: callers
     * should lay operands out so. */
    bool wants_adjacent_terms;
    /* Rows of logits that a loss head makes at once, and their elements: enough to fill the
     * backend, few enough for its caches or its memory. */
    int64_t logits_row_max, logits_max_numel;

    tess_status (*gemm)(const tess_gemm_args *a, tess_stream *s);
    size_t (*gemm_work_nbytes)(const tess_gemm_args *a, int thread_numel);
    tess_status (*quantize)(const tess_quantize_args *a, tess_stream *s);
    tess_status (*dequantize)(const tess_dequantize_args *a, tess_stream *s);
    tess_status (*embedding_forward)(const tess_embedding_args *a, tess_stream *s);
    tess_status (*embedding_backward)(const tess_embedding_backward_args *a, tess_stream *s);
    tess_status (*rmsnorm_forward)(const tess_rmsnorm_args *a, tess_stream *s);
    tess_status (*rmsnorm_backward)(const tess_rmsnorm_backward_args *a, tess_stream *s);
    tess_status (*rope)(const tess_rope_args *a, tess_stream *s);
    tess_status (*attention_forward)(const tess_attention_args *a, tess_stream *s);
    tess_status (*attention_backward)(const tess_attention_backward_args *a, tess_stream *s);
    size_t (*attention_work_nbytes)(const tess_attention_shape *shape, int thread_numel);
    tess_status (*swiglu_forward)(const tess_swiglu_args *a, tess_stream *s);
    tess_status (*swiglu_backward)(const tess_swiglu_backward_args *a, tess_stream *s);
    tess_status (*add)(const tess_add_args *a, tess_stream *s);
    tess_status (*add_bias)(const tess_add_bias_args *a, tess_stream *s);
    tess_status (*sum_rows)(const tess_sum_rows_args *a, tess_stream *s);
    tess_status (*dropout)(const tess_dropout_args *a, tess_stream *s);
    tess_status (*row_norm)(const tess_row_norm_args *a, tess_stream *s);
    tess_status (*dora_forward)(const tess_dora_args *a, tess_stream *s);
    tess_status (*dora_backward)(const tess_dora_backward_args *a, tess_stream *s);
    tess_status (*cast)(const tess_cast_args *a, tess_stream *s);
    tess_status (*cross_entropy)(const tess_cross_entropy_args *a, tess_stream *s);
    tess_status (*fold)(const tess_fold_args *a, tess_stream *s);
    tess_status (*fold_pieces)(const tess_fold_pieces_args *a, tess_stream *s);
    tess_status (*square_norm)(const tess_square_norm_args *a, tess_stream *s);
    tess_status (*sum)(const tess_sum_args *a, tess_stream *s);
    tess_status (*exact_add)(const tess_exact_add_args *a, tess_stream *s);
    tess_status (*adamw)(const tess_adamw_args *a, tess_stream *s);
    tess_status (*lion)(const tess_lion_args *a, tess_stream *s);
    tess_status (*adamw_8bit)(const tess_adamw_8bit_args *a, tess_stream *s);
    tess_status (*schedule_free)(const tess_schedule_free_args *a, tess_stream *s);
    tess_status (*blend)(const tess_blend_args *a, tess_stream *s);
    tess_status (*prodigy_measure)(const tess_prodigy_measure_args *a, tess_stream *s);
    tess_status (*prodigy_apply)(const tess_prodigy_apply_args *a, tess_stream *s);

    /* Optimizers that a backend may lack, each as a whole: they are then refused by name. */
    tess_status (*adafactor_most)(const tess_adafactor_args *a, tess_stream *s);
    tess_status (*adafactor_sum)(const tess_adafactor_args *a, tess_stream *s);
    tess_status (*adafactor_factor)(const tess_adafactor_args *a, tess_stream *s);
    tess_status (*adafactor_size)(const tess_adafactor_args *a, tess_stream *s);
    tess_status (*adafactor_apply)(const tess_adafactor_args *a, tess_stream *s);
    tess_status (*muon_momentum)(const tess_muon_momentum_args *a, tess_stream *s);
    tess_status (*muon_apply)(const tess_muon_apply_args *a, tess_stream *s);
    tess_status (*scale)(const tess_scale_args *a, tess_stream *s);

    /* Codebooks and what models around them need, which a backend may lack as a whole. */
    size_t (*nearest_pack_nbytes)(int64_t code_numel, int64_t dim);
    size_t (*nearest_work_nbytes)(int64_t dim, int best_numel, int thread_numel);
    tess_status (*nearest_prepare)(const tess_nearest_prepare_args *a, tess_stream *s);
    tess_status (*nearest)(const tess_nearest_args *a, tess_stream *s);
    tess_status (*code_most)(const tess_code_most_args *a, tess_stream *s);
    tess_status (*code_value)(const tess_code_value_args *a, tess_stream *s);
    tess_status (*code_sum)(const tess_code_sum_args *a, tess_stream *s);
    tess_status (*code_mean)(const tess_code_mean_args *a, tess_stream *s);
    tess_status (*code_residual)(const tess_code_residual_args *a, tess_stream *s);
    tess_status (*code_row)(const tess_code_row_args *a, tess_stream *s);
    tess_status (*relu)(const tess_relu_args *a, tess_stream *s);
    tess_status (*mix)(const tess_mix_args *a, tess_stream *s);

    /* NULL: the backend has no quantizers, and refuses them by name. */
    const tess_quantizer_kernels *quantizers;
    /* NULL: families of modulated transformers are refused by name. */
    const tess_modulated_kernels *modulated;
    /* Both or none: then families with convolutions are refused by name. */
    tess_status (*im2col)(const tess_im2col_args *a, tess_stream *s);
    tess_status (*col2im)(const tess_col2im_args *a, tess_stream *s);

    /* Only of backends that choose among algorithms, all four or none. Before the first step
     * `gemm_prepare` announces every product of one; the choices of one rank then go to all as
     * bytes, so that they run the same algorithms. After an import nothing is chosen unnoticed. */
    tess_status (*gemm_prepare)(const tess_gemm_args *a, tess_stream *s);
    size_t (*choices_nbytes)(tess_stream *s);
    tess_status (*choices_export)(tess_stream *s, void *data);
    tess_status (*choices_import)(tess_stream *s, const void *data, size_t nbytes);
} tess_kernels;

/** CPU backend; `path` is fixed by tess_kernels_cpu_select before the first use. */
extern const tess_kernels tess_kernels_cpu;

/** Instruction paths of the CPU backend, ascending; ranks agree on the lowest among them. */
typedef enum tess_cpu_path {
    TESS_CPU_PORTABLE,
    TESS_CPU_AVX2,
    TESS_CPU_AVX512,
    TESS_CPU_AVX512_BF16,
} tess_cpu_path;

/** The path this CPU runs fastest; TESSERA_CPU_PATH names another one that it has. Local. */
tess_cpu_path tess_cpu_path_best(void);
const char *tess_cpu_path_name(tess_cpu_path path);
/** Fix the path of this process; call once, before any kernel. Local. @return TESS_E_UNSUPPORTED
 * the CPU lacks it, or TESSERA_CPU_PATH is not the name of one it has; TESS_E_STATE another one is
 * fixed */
TESS_MUST_CHECK tess_status tess_kernels_cpu_select(tess_cpu_path path);
/** Every entry of a table is present. Local. @return TESS_E_UNSUPPORTED names the first hole's
 * number */
TESS_MUST_CHECK tess_status tess_kernels_check(const tess_kernels *k);

TESS_END_DECLS
