/* tessera merge BASE ADAPTER -o OUT */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "format/json.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "launch/rewrite_options.h"
#include "train/rewrite/merge.h"
#include "train/strbuf.h"

typedef struct merge_command {
    tess_common_options common;
    tess_rewrite_options rewrite;
    tess_rewrite_choice into;
    tess_merge_options merge;
    bool has_into, has_dtype, is_json;
} merge_command;

enum { KEY_ORIGINAL = 1, KEY_ALLOW, KEY_INTO };

static error_t check(struct argp_state *state, merge_command *command)
{
    tess_merge_options *merge = &command->merge;
    const tess_rewrite_options *rewrite = &command->rewrite;
    if (merge->model == NULL || merge->adapter == NULL)
        return tess_launch_refuse(state, "BASE and ADAPTER are needed");
    if (rewrite->output == NULL)
        return tess_launch_refuse(state, "-o OUT is missing");
    if (command->has_into && command->has_dtype)
        return tess_launch_refuse(state, "--into and --dtype: expected one of them");
    if (!command->has_into && (rewrite->key_numel > 0 || rewrite->rule_numel > 0))
        return tess_launch_refuse(state, "--override and the options of formats (--block-size, "
                                         "--rule, ...) belong to --into FORMAT: give it");
    command->into = tess_rewrite_options_choice(rewrite);
    merge->into = command->has_into ? &command->into : NULL;
    merge->rule = rewrite->base_rule;
    merge->rule_numel = rewrite->base_rule_numel;
    merge->output = rewrite->output;
    merge->storage = rewrite->storage;
    merge->shard_nbytes = rewrite->shard_nbytes;
    merge->thread_numel = (int)rewrite->thread_numel;
    return 0;
}

static error_t set_dtype(struct argp_state *state, const char *arg, merge_command *command)
{
    if (strcmp(arg, "bf16") != 0 && strcmp(arg, "f32") != 0)
        return tess_launch_refuse(state, "--dtype: expected bf16 or f32, found '%.100s'", arg);
    command->has_dtype = true;
    command->merge.dt = *arg == 'b' ? TESS_BF16 : TESS_F32;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    merge_command *command = state->input;
    const char **slots[] = {&command->merge.model, &command->merge.adapter};
    switch (key) {
    case 'd':
        return set_dtype(state, arg, command);
    case 'j':
        command->is_json = true;
        return 0;
    case KEY_ORIGINAL:
        command->merge.is_original = true;
        return 0;
    case KEY_ALLOW:
        command->merge.allow_base_change = true;
        return 0;
    case KEY_INTO:
        command->has_into = true;
        return tess_rewrite_options_key(state, &command->rewrite, "base.format", arg);
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 2);
    case ARGP_KEY_END:
        return check(state, command);
    default:
        return tess_rewrite_options_parse(state, &command->rewrite, key, arg);
    }
}

static const struct argp_option options[] = {
    {"dtype", 'd', "DTYPE", 0, "Of the merged weights: bf16 (default) or f32", 0},
    {"original", KEY_ORIGINAL, NULL, 0,
     "Merge into the weights as they lie in BASE, not into those the adapter was trained over", 0},
    {"allow-base-change", KEY_ALLOW, NULL, 0,
     "Merge although the adapter was trained on another base", 0},
    {"base-override", TESS_REWRITE_BASE_OVERRIDE, "REGEX=FORMAT", 0,
     "A rule of base.overrides of the run that trained the adapter", 0},
    {"into", KEY_INTO, "FORMAT", 0,
     "Quantize the merged weights again; the report tells how much of the adapter is left", 0},
    TESS_REWRITE_OPTIONS,
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp merge_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "BASE ADAPTER -o OUT",
    .doc = "Add a PEFT adapter to the weights of the model it was trained on, in fp32, tensor by "
           "tensor. Where the adapter was trained over a quantized form of BASE, the weights it "
           "saw are made again, their identity is compared with the one in the adapter, and the "
           "merge is into them.",
};

/* ---- output ---- */

static tess_status add_row(tess_json *list, const tess_merge_row *row)
{
    tess_json *to = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &to));
    TESS_TRY(tess_json_add_string(to, "name", row->name));
    TESS_TRY(tess_json_add_string(to, "to", row->to));
    TESS_TRY(tess_json_add_i64(to, "rank", row->rank));
    TESS_TRY(tess_json_add_f64(to, "scale", row->scale));
    TESS_TRY(tess_json_add_f64(to, "delta", row->survival.delta));
    TESS_TRY(tess_json_add_f64(to, "survived", row->survival.survived));
    return tess_json_add_f64(to, "noise", row->survival.noise);
}

static tess_status fill_json(const merge_command *command, const tess_merge_result *result,
                             tess_json *root)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_string(root, "output", command->merge.output));
    TESS_TRY(tess_json_add_string(root, "base.quant", result->quant));
    TESS_TRY(tess_json_add_string(root, "base.identity", result->base_id));
    TESS_TRY(tess_json_add_string(root, "merged.quant", result->merged_quant));
    TESS_TRY(tess_json_add_string(root, "merged.identity", result->merged_id));
    TESS_TRY(tess_json_add_string(root, "trained.identity", result->trained_id));
    TESS_TRY(tess_json_add_array(root, "layers", &list));
    for (int64_t i = 0; i < result->row_numel; i++)
        TESS_TRY(add_row(list, &result->row[i]));
    return TESS_OK;
}

static tess_status fill_text(const merge_command *command, const tess_merge_result *result,
                             tess_strbuf *text)
{
    TESS_TRY(tess_strbuf_add(text, "%-48s %-16s %5s %9s %9s %9s %9s\n", "layer", "format", "rank",
                             "scale", "delta", "survived", "noise"));
    for (int64_t i = 0; i < result->row_numel; i++) {
        const tess_merge_row *row = &result->row[i];
        TESS_TRY(tess_strbuf_add(text, "%-48s %-16s %5" PRId64 " %9.4g %9.3e %9.4f %9.4f\n",
                                 row->name, row->to, row->rank, row->scale, row->survival.delta,
                                 row->survival.survived, row->survival.noise));
    }
    return tess_strbuf_add(text,
                           "wrote %s: %" PRId64 " adapted layers merged into %.16s (%s)\n"
                           "base.quant %s\nbase.identity %s\n",
                           command->merge.output, result->row_numel, result->merged_id,
                           result->merged_quant, result->quant, result->base_id);
}

static tess_status print(const merge_command *command, const tess_merge_result *result)
{
    tess_strbuf text = {0};
    tess_json *root = NULL;
    tess_status st = TESS_OK;
    if (command->is_json) {
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

static tess_status run(const merge_command *command)
{
    tess_ctx ctx = {0};
    tess_merge_result result = {0};
    if (tess_launch_rank() > 0)
        return TESS_OK; /* one model needs one writer, also under mpirun */
    TESS_TRY(tess_launch_open(&command->common, 0, &ctx));
    tess_status st = tess_merge_model(&ctx, &command->merge, &result);
    tess_launch_close(&ctx);
    if (st == TESS_OK)
        st = print(command, &result);
    tess_merge_result_fini(&result);
    return st;
}

int tess_cmd_merge(int argc, char **argv)
{
    merge_command command = {.rewrite = tess_rewrite_options_default(), .merge = {.dt = TESS_BF16}};
    tess_status st = tess_launch_parse(&merge_argp, argc, argv, &command, &command.common);
    if (st == TESS_OK && !command.common.is_help)
        st = run(&command);
    tess_rewrite_options_fini(&command.rewrite);
    return tess_launch_finish(&command.common, st);
}
