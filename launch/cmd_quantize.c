/* tessera quantize MODEL -o OUT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "launch/rewrite_options.h"
#include "train/rewrite/quantize.h"
#include "train/strbuf.h"

typedef struct quantize_command {
    tess_common_options common;
    tess_rewrite_options rewrite;
    tess_quantize_options quantize;
    bool is_json;
} quantize_command;

static error_t check(struct argp_state *state, quantize_command *command)
{
    tess_quantize_options *quantize = &command->quantize;
    if (quantize->model == NULL)
        return tess_launch_refuse(state, "no model given");
    if (command->rewrite.output == NULL)
        return tess_launch_refuse(state, "-o OUT is missing");
    quantize->output = command->rewrite.output;
    quantize->choice = tess_rewrite_options_choice(&command->rewrite);
    quantize->storage = command->rewrite.storage;
    quantize->shard_nbytes = command->rewrite.shard_nbytes;
    quantize->thread_numel = (int)command->rewrite.thread_numel;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    quantize_command *command = state->input;
    const char **slots[] = {&command->quantize.model};
    switch (key) {
    case 'f':
        return tess_rewrite_options_key(state, &command->rewrite, "base.format", arg);
    case 'j':
        command->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        return check(state, command);
    default:
        return tess_rewrite_options_parse(state, &command->rewrite, key, arg);
    }
}

static const struct argp_option options[] = {
    {"format", 'f', "FORMAT", 0,
     "Of linear layers but lm_head: nf4 (default), fp4, int8, qint8, qint4, qint2, qfloat8, "
     "qfloat8_e5m2, e4m3, e5m2, bf16, f16, f32, or keep; in a .gguf file q8_0, q4_0, bf16, f16, "
     "f32",
     0},
    TESS_REWRITE_OPTIONS,
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp quantize_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "MODEL -o OUT",
    .doc =
        "Write a model in another format, tensor by tensor, and print what each lost. MODEL is a "
        "Hugging Face directory or a GGUF file. OUT is a directory: nf4, fp4 and int8 as "
        "bitsandbytes packs them, formats that begin with q as optimum-quanto does, fp8 with its "
        "scales; or a GGUF file when it ends in .gguf. Embeddings, norms, biases and lm_head keep "
        "their format unless an override names them.",
};

/* ---- output ---- */

static tess_status add_row(tess_json *list, const tess_quantize_row *row)
{
    tess_json *to = NULL, *shape = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &to));
    TESS_TRY(tess_json_add_string(to, "name", row->name));
    TESS_TRY(tess_json_add_array(to, "shape", &shape));
    for (int i = 0; i < row->shape_rank; i++)
        TESS_TRY(tess_json_add_i64(shape, NULL, row->shape[i]));
    TESS_TRY(tess_json_add_string(to, "from", row->from));
    TESS_TRY(tess_json_add_string(to, "to", row->to));
    TESS_TRY(tess_json_add_f64(to, "relative_rms", row->relative_rms));
    TESS_TRY(tess_json_add_f64(to, "max_abs", row->most));
    TESS_TRY(tess_json_add_i64(to, "zeroed_blocks", row->zeroed_numel));
    TESS_TRY(tess_json_add_i64(to, "bytes_before", row->before_nbytes));
    TESS_TRY(tess_json_add_i64(to, "bytes_after", row->after_nbytes));
    return tess_json_add_bool(to, "kept_for_its_rows", row->is_ragged);
}

static tess_status fill_json(const quantize_command *command, const tess_quantize_result *result,
                             tess_json *root)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_string(root, "output", command->quantize.output));
    TESS_TRY(tess_json_add_string(root, "base.quant", result->quant));
    TESS_TRY(tess_json_add_string(root, "base.identity", result->base_id));
    TESS_TRY(tess_json_add_f64(root, "relative_rms", result->relative_rms));
    TESS_TRY(tess_json_add_i64(root, "bytes_before", result->before_nbytes));
    TESS_TRY(tess_json_add_i64(root, "bytes_after", result->after_nbytes));
    TESS_TRY(tess_json_add_array(root, "tensors", &list));
    for (int64_t i = 0; i < result->row_numel; i++)
        TESS_TRY(add_row(list, &result->row[i]));
    return TESS_OK;
}

static tess_status put_row(tess_strbuf *text, const tess_quantize_row *row)
{
    char shape[96];
    tess_st_shape_text(row->shape, row->shape_rank, shape, sizeof shape);
    TESS_TRY(tess_strbuf_add(text, "%-48s %-16s %-16s %12" PRId64 " %12" PRId64, row->name, shape,
                             row->to, row->before_nbytes, row->after_nbytes));
    if (strcmp(row->from, row->to) == 0)
        TESS_TRY(tess_strbuf_add(text, "  kept%s",
                                 row->is_ragged ? ": its rows are no whole blocks" : ""));
    else
        TESS_TRY(tess_strbuf_add(text, "  %9.3e %9.3e", row->relative_rms, row->most));
    if (row->zeroed_numel > 0)
        TESS_TRY(tess_strbuf_add(text, "  %" PRId64 " blocks became 0: their scale underflows",
                                 row->zeroed_numel));
    return tess_strbuf_add(text, "\n");
}

static tess_status fill_text(const quantize_command *command, const tess_quantize_result *result,
                             tess_strbuf *text)
{
    TESS_TRY(tess_strbuf_add(text, "%-48s %-16s %-16s %12s %12s  %9s %9s\n", "tensor", "shape",
                             "format", "bytes before", "after", "rel. rms", "max"));
    for (int64_t i = 0; i < result->row_numel; i++)
        TESS_TRY(put_row(text, &result->row[i]));
    return tess_strbuf_add(text,
                           "wrote %s: %" PRId64 " bytes of weights, %.3f of %" PRId64
                           "; relative rms error of what changed %.3e\nbase.quant %s\n"
                           "base.identity %s\n",
                           command->quantize.output, result->after_nbytes,
                           (double)result->after_nbytes / (double)result->before_nbytes,
                           result->before_nbytes, result->relative_rms, result->quant,
                           result->base_id);
}

static tess_status print(const quantize_command *command, const tess_quantize_result *result)
{
    tess_strbuf text = {0};
    tess_status st = TESS_OK;
    if (command->is_json) {
        tess_json *root = NULL;
        TESS_TRY(tess_json_create_object(&root));
        st = fill_json(command, result, root);
        if (st == TESS_OK)
            st = tess_rewrite_print_json(root);
        tess_json_destroy(&root);
        return st;
    }
    st = fill_text(command, result, &text);
    if (st == TESS_OK)
        st = tess_launch_print(text.text);
    tess_strbuf_fini(&text);
    return st;
}

static tess_status run(const quantize_command *command)
{
    tess_ctx ctx = {0};
    tess_quantize_result result = {0};
    if (tess_launch_rank() > 0)
        return TESS_OK; /* one model needs one writer, also under mpirun */
    TESS_TRY(tess_launch_open(&command->common, 0, &ctx));
    tess_status st = tess_quantize_model(&ctx, &command->quantize, &result);
    tess_launch_close(&ctx);
    if (st == TESS_OK)
        st = print(command, &result);
    tess_quantize_result_fini(&result);
    return st;
}

int tess_cmd_quantize(int argc, char **argv)
{
    quantize_command command = {.rewrite = tess_rewrite_options_default()};
    tess_status st = tess_launch_parse(&quantize_argp, argc, argv, &command, &command.common);
    if (st == TESS_OK && !command.common.is_help)
        st = run(&command);
    tess_rewrite_options_fini(&command.rewrite);
    return tess_launch_finish(&command.common, st);
}
