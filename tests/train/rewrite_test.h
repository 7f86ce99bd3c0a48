/** What the tests of quantize and merge share: a scratch folder and the golden models. */
#pragma once

#include "format/format_test.h"

#include "core/ctx.h"
#include "format/model_dir.h"
#include "train/rewrite/quantize.h"

#define QUANTO TESS_TEST_SOURCE_DIR "/tests/golden/quanto/"
#define BNB TESS_TEST_SOURCE_DIR "/tests/golden/bnb/"

static inline int folder_setup(void **state) { return setup(state); }

/** Run a shell command in the scratch folder. */
static inline int shell(const fixture *f, const char *command)
{
    char *text = NULL;
    if (tess_asprintf(&text, "cd %s && %s", f->dir, command) != TESS_OK)
        return -1;
    const int result = system(text);
    tess_free(text);
    return result;
}

/* Folders too. */
static inline int folder_teardown(void **state)
{
    return shell(*state, "rm -rf ./*") == 0 ? teardown(state) : -1;
}

#define folder_test(function)                                                                      \
    cmocka_unit_test_setup_teardown(function, folder_setup, folder_teardown)

static inline tess_ctx ctx_of(const fixture *f) { return (tess_ctx){.io = f->io}; }

/** Keys of the section base, as the command line gives them. */
typedef struct keys {
    tess_run_override override[4];
    tess_rewrite_choice choice;
} keys;

static inline keys keys_of(const char *const *text, int numel)
{
    keys k = {0};
    for (int i = 0; i < numel; i++)
        k.override[i] = (tess_run_override){.text = text[i], .argument_idx = i + 1};
    k.choice.key_numel = numel;
    return k;
}

/** Options of a quantization of `model` into `output`; `k` must outlive them. */
static inline tess_quantize_options quantize_of(keys *k, const char *model, const char *output)
{
    k->choice.key = k->override;
    return (tess_quantize_options){.model = model,
                                   .output = output,
                                   .choice = k->choice,
                                   .storage = TESS_U8,
                                   .shard_nbytes = INT64_C(1) << 40,
                                   .thread_numel = 1};
}
