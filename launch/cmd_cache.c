/* tessera cache INPUT... -o CACHE.h5 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "train/prepare/cache.h"

typedef struct cache_command {
    tess_common_options common;
    tess_cache_options cache;
    const char **input; /* [cache.input_numel], owned */
    bool is_json;
} cache_command;

enum { KEY_EMPTY = 1, KEY_TEXT_LENGTH, KEY_LATENT_DTYPE, KEY_TEXT_DTYPE };

static error_t add_input(struct argp_state *state, const char *arg, cache_command *command)
{
    tess_cache_options *cache = &command->cache;
    void *grown = command->input;
    (void)state;
    if (tess_realloc_array(cache->input_numel, cache->input_numel + 1, sizeof(char *), &grown) !=
        TESS_OK)
        return EINVAL;
    command->input = grown;
    command->input[cache->input_numel++] = arg;
    cache->inputs = command->input;
    return 0;
}

static error_t set_dtype(struct argp_state *state, const char *arg, tess_dtype *out)
{
    *out = strcmp(arg, "bf16") == 0 ? TESS_BF16 : TESS_F32;
    return *out == TESS_BF16 || strcmp(arg, "f32") == 0
               ? 0
               : tess_launch_refuse(state, "a dtype is bf16 or f32");
}

static error_t set_length(struct argp_state *state, const char *arg, int64_t *out)
{
    char *end = NULL;
    *out = strtoll(arg, &end, 10);
    return *end == '\0' && *out >= 1 && *out <= 65536
               ? 0
               : tess_launch_refuse(state, "--text-length is 1 to 65536 tokens");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    cache_command *command = state->input;
    switch (key) {
    case 'o':
        command->cache.output_path = arg;
        return 0;
    case 'j':
        command->is_json = true;
        return 0;
    case KEY_EMPTY:
        command->cache.empty_path = arg;
        return 0;
    case KEY_TEXT_LENGTH:
        return set_length(state, arg, &command->cache.text_numel);
    case KEY_LATENT_DTYPE:
        return set_dtype(state, arg, &command->cache.latent_dt);
    case KEY_TEXT_DTYPE:
        return set_dtype(state, arg, &command->cache.text_dt);
    case ARGP_KEY_ARG:
        return add_input(state, arg, command);
    case ARGP_KEY_END:
        if (command->cache.input_numel == 0)
            return tess_launch_refuse(state, "no folder or file given");
        return command->cache.output_path == NULL
                   ? tess_launch_refuse(state, "-o CACHE.h5 is missing")
                   : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "CACHE.h5", 0, "Cache file to write; replaced where it exists", 0},
    {"empty", KEY_EMPTY, "FILE", 0,
     "Text embeddings of the empty caption, which caption dropout needs (NAME_flux_te.npz, or "
     "safetensors with one text)",
     0},
    {"text-length", KEY_TEXT_LENGTH, "TOKENS", 0,
     "Refuse texts of another length than TOKENS (dev: 512, schnell: 256)", 0},
    {"latent-dtype", KEY_LATENT_DTYPE, "DTYPE", 0, "Store latents in f32 (default) or bf16", 0},
    {"text-dtype", KEY_TEXT_DTYPE, "DTYPE", 0, "Store texts in bf16 (default) or f32", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp cache_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "INPUT...",
    .doc = "Turn cached latents and text embeddings of a FLUX.1 data set into one cache file. "
           "INPUT is a folder, searched with all below it, or a file: sd-scripts' "
           "NAME_flux.npz beside NAME_flux_te.npz, or safetensors with NAME.latent, NAME.t5, "
           "NAME.pooled and NAME.mask (docs/data.md).",
};

static tess_status print_result(const cache_command *command, const tess_cache_result *r)
{
    char line[1024], digest[2 * TESS_XXH128_NBYTES + 1];
    const tess_latents_info *i = &r->info;
    tess_hex(i->digest.byte, sizeof i->digest.byte, digest);
    if (command->is_json)
        snprintf(line, sizeof line,
                 "{\"samples\": %" PRId64 ", \"captions\": %" PRId64 ", \"buckets\": %" PRId64
                 ", \"has_empty\": %s, \"has_masks\": %s, \"text_tokens\": %" PRId64
                 ", \"flipped_left_out\": %" PRId64 ", \"deviation\": %.6f, \"nbytes\": %" PRId64
                 ", \"digest\": \"%s\"}\n",
                 i->sample_numel, i->caption_numel, i->bucket_numel,
                 i->has_empty ? "true" : "false", i->has_masks ? "true" : "false", i->text_numel,
                 r->flipped_numel, r->deviation, i->file_nbytes, digest);
    else
        snprintf(line, sizeof line,
                 "wrote %.600s: %" PRId64 " samples in %" PRId64 " sizes, %" PRId64
                 " captions of %" PRId64 " tokens%s%s; %" PRId64 " flipped latents left out\n",
                 command->cache.output_path, i->sample_numel, i->bucket_numel, i->caption_numel,
                 i->text_numel, i->has_empty ? ", the empty one first" : ", no empty one",
                 i->has_masks ? ", with masks" : "", r->flipped_numel);
    return tess_launch_print(line);
}

static tess_status run(cache_command *command)
{
    if (tess_launch_rank() > 0)
        return TESS_OK; /* one file needs one writer, also under mpirun */
    tess_ctx ctx = {0};
    tess_cache_result result = {.flipped_numel = 0};
    TESS_TRY(tess_launch_open(&command->common, tess_launch_rank(), &ctx));
    const tess_status st = tess_cache_run(&ctx, &command->cache, &result);
    tess_launch_close(&ctx);
    return st == TESS_OK ? print_result(command, &result) : st;
}

int tess_cmd_cache(int argc, char **argv)
{
    cache_command command = {.cache = {.latent_dt = TESS_F32, .text_dt = TESS_BF16}};
    tess_status st = tess_launch_parse(&cache_argp, argc, argv, &command, &command.common);
    if (st == TESS_OK && !command.common.is_help)
        st = run(&command);
    tess_free(command.input);
    return tess_launch_finish(&command.common, st);
}
