#include "kernels/cross_entropy.h"

#include "kernels/check_priv.h"

tess_status tess_cross_entropy_check(const tess_cross_entropy_args *a)
{
    static const char op[] = "cross_entropy";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "vocab_numel", a->vocab_numel, 1));
    TESS_TRY(tess_mul_i64(a->row_numel, a->vocab_numel, &numel));
    TESS_TRY(tess_check_operand(op, "logits", a->logits, numel, TESS_F32));
    TESS_TRY(tess_check_pointer(op, "labels", a->labels, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "row_loss", a->row_loss, a->row_numel));
    if (a->d_logits.numel > 0) {
        TESS_TRY(tess_check_float(op, "d_logits", a->d_logits));
        TESS_TRY(tess_check_numel(op, "d_logits", a->d_logits, numel));
        if (a->d_logits.dt == TESS_F32)
            TESS_TRY(tess_check_alias(op, "logits", a->d_logits, a->logits));
        else
            TESS_TRY(tess_check_disjoint(op, "logits", a->d_logits, a->logits));
    }
    for (int64_t row = 0; tess_check_can_read(a->logits) && row < a->row_numel; row++)
        TESS_CHECK(a->labels[row] >= -1 && a->labels[row] < a->vocab_numel, TESS_E_RANGE,
                   "cross_entropy: label %" PRId32 " of row %" PRId64
                   " is outside the vocabulary of %" PRId64 " (-1 masks a row)",
                   a->labels[row], row, a->vocab_numel);
    return TESS_OK;
}
