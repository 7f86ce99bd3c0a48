/* tessera tokenize TOKENIZER INPUT... -o DATA.h5 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "core/memory.h"
#include "format/chat_template.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "train/prepare/tokenize.h"

typedef struct tokenize_command {
    tess_common_options common;
    tess_tokenize_options tokenize;
    const char **input; /* [tokenize.input_numel], owned */
    const char *format;
} tokenize_command;

enum { KEY_SEPARATOR = 1, KEY_NO_BOS, KEY_EOS, KEY_PROMPTS, KEY_SPECIAL, KEY_CHAT, KEY_SYSTEM };

static error_t add_input(struct argp_state *state, const char *arg, tokenize_command *command)
{
    tess_tokenize_options *tokenize = &command->tokenize;
    if (tokenize->tokenizer_path == NULL) {
        tokenize->tokenizer_path = arg;
        return 0;
    }
    (void)state;
    void *grown = command->input;
    if (tess_realloc_array(tokenize->input_numel, tokenize->input_numel + 1, sizeof(char *),
                           &grown) != TESS_OK)
        return EINVAL;
    command->input = grown;
    command->input[tokenize->input_numel++] = arg;
    tokenize->inputs = command->input;
    return 0;
}

static error_t check(struct argp_state *state, const tess_tokenize_options *tokenize)
{
    if (tokenize->tokenizer_path == NULL)
        return tess_launch_refuse(state, "no tokenizer given");
    if (tokenize->input_numel == 0)
        return tess_launch_refuse(state, "no input file given");
    return tokenize->output_path == NULL ? tess_launch_refuse(state, "-o DATA.h5 is missing") : 0;
}

static error_t parse_text_option(int key, char *arg, struct argp_state *state)
{
    tokenize_command *command = state->input;
    tess_tokenize_options *tokenize = &command->tokenize;
    switch (key) {
    case KEY_SEPARATOR:
        tokenize->separator = arg;
        return 0;
    case KEY_EOS:
        tokenize->eos_token = arg;
        return 0;
    case KEY_CHAT:
        tokenize->chat_template = arg;
        return 0;
    case KEY_SYSTEM:
        tokenize->default_system = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tokenize_command *command = state->input;
    tess_tokenize_options *tokenize = &command->tokenize;
    switch (key) {
    case 'o':
        tokenize->output_path = arg;
        return 0;
    case 'f':
        command->format = arg;
        return 0;
    case KEY_NO_BOS:
        tokenize->no_bos = true;
        return 0;
    case KEY_PROMPTS:
        tokenize->train_on_prompts = true;
        return 0;
    case KEY_SPECIAL:
        tokenize->parse_special_text = true;
        return 0;
    case ARGP_KEY_ARG:
        return add_input(state, arg, command);
    case ARGP_KEY_END:
        return check(state, tokenize);
    default:
        return parse_text_option(key, arg, state);
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "DATA.h5", 0, "Token file to write; replaced where it exists", 0},
    {"format", 'f', "FORMAT", 0, "auto (default), text, jsonl-text, jsonl-prompt or jsonl-chat", 0},
    {"separator", KEY_SEPARATOR, "LINE", 0, "In text: a line that equals LINE ends a document", 0},
    {"no-bos", KEY_NO_BOS, NULL, 0, "Leave out the token that starts a document", 0},
    {"eos", KEY_EOS, "TOKEN", 0,
     "Append TOKEN to each text or completion; auto: the end token that "
     "tokenizer_config.json names",
     0},
    {"train-on-prompts", KEY_PROMPTS, NULL, 0, "Prompts and others' turns count in the loss", 0},
    {"special-tokens", KEY_SPECIAL, NULL, 0, "Read special tokens where the text spells them", 0},
    {"chat-template", KEY_CHAT, "NAME", 0, TESS_CHAT_STYLES_TEXT "; chats need it", 0},
    {"default-system", KEY_SYSTEM, "TEXT", 0, "System text of chats that have none", 0},
    {0},
};
static const struct argp tokenize_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "TOKENIZER INPUT...",
    .doc = "Turn text files, JSONL with text, prompt and completion, or chat messages into one "
           "token file with document offsets and loss masks. TOKENIZER is a tokenizer.json or the "
           "folder it lies in.",
};

static tess_status print_result(const tokenize_command *command, const tess_tokenize_result *result)
{
    char line[1024];
    const tess_token_file_info *file = &result->file;
    snprintf(line, sizeof line,
             "wrote %.600s: %" PRId64 " tokens (%" PRId64 " in the loss) in %" PRId64
             " documents from %" PRId64 " bytes; vocabulary %" PRId64 "; %" PRId64
             " empty documents left out\n",
             command->tokenize.output_path, file->token_numel, file->loss_token_numel,
             file->document_numel, result->input_nbytes, file->vocab_numel,
             result->skipped_empty_numel);
    return tess_launch_print(line);
}

static tess_status run(tokenize_command *command)
{
    if (tess_launch_rank() > 0)
        return TESS_OK; /* one file needs one writer, also under mpirun */
    tess_ctx ctx = {0};
    tess_tokenize_result result = {0};
    TESS_TRY(tess_tokenize_format_parse(command->format, &command->tokenize.format));
    TESS_TRY(tess_launch_open(&command->common, tess_launch_rank(), &ctx));
    const tess_status st = tess_tokenize_run(&ctx, &command->tokenize, &result);
    tess_launch_close(&ctx);
    return st == TESS_OK ? print_result(command, &result) : st;
}

int tess_cmd_tokenize(int argc, char **argv)
{
    tokenize_command command = {.format = "auto"};
    tess_status st = tess_launch_parse(&tokenize_argp, argc, argv, &command, &command.common);
    if (st == TESS_OK && !command.common.is_help)
        st = run(&command);
    tess_free(command.input);
    return tess_launch_finish(&command.common, st);
}
