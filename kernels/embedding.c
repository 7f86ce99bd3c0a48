#include "kernels/embedding.h"

#include "kernels/check_priv.h"

static tess_status check_tokens(const char *op, const int32_t *tokens, int64_t token_numel,
                                int64_t vocab_numel, bool can_read)
{
    TESS_TRY(tess_check_extent(op, "token_numel", token_numel, 0));
    TESS_TRY(tess_check_pointer(op, "tokens", tokens, token_numel));
    for (int64_t t = 0; can_read && t < token_numel; t++)
        TESS_CHECK(tokens[t] >= 0 && tokens[t] < vocab_numel, TESS_E_RANGE,
                   "%s: token %" PRId32 " at position %" PRId64
                   " is outside the vocabulary of %" PRId64,
                   op, tokens[t], t, vocab_numel);
    return TESS_OK;
}

tess_status tess_embedding_check(const tess_embedding_args *a)
{
    static const char op[] = "embedding";
    int64_t numel = 0;
    tess_codec_part parts[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    TESS_TRY(tess_check_extent(op, "table.rows", a->table.rows, 1));
    TESS_TRY(tess_check_extent(op, "table.cols", a->table.cols, 1));
    TESS_TRY(
        check_tokens(op, a->tokens, a->token_numel, a->table.rows, tess_check_can_read(a->out)));
    TESS_TRY(tess_mul_i64(a->table.rows, a->table.cols, &numel));
    TESS_TRY(tess_codec_parts(&a->table.codec, numel, parts, &part_numel));
    for (int i = 0; i < part_numel; i++)
        TESS_TRY(tess_check_pointer(op, parts[i].name, a->table.part[i], parts[i].numel));
    TESS_TRY(tess_mul_i64(a->token_numel, a->table.cols, &numel));
    TESS_TRY(tess_check_float(op, "out", a->out));
    return tess_check_numel(op, "out", a->out, numel);
}

tess_status tess_embedding_backward_check(const tess_embedding_backward_args *a)
{
    static const char op[] = "embedding backward";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "vocab_numel", a->vocab_numel, 1));
    TESS_TRY(tess_check_extent(op, "hidden_numel", a->hidden_numel, 1));
    TESS_TRY(
        check_tokens(op, a->tokens, a->token_numel, a->vocab_numel, tess_check_can_read(a->d_out)));
    TESS_TRY(tess_mul_i64(a->token_numel, a->hidden_numel, &numel));
    TESS_TRY(tess_check_float(op, "d_out", a->d_out));
    TESS_TRY(tess_check_numel(op, "d_out", a->d_out, numel));
    return tess_check_pointer(op, "d_table", a->d_table, a->vocab_numel);
}
