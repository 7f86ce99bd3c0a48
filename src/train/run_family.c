/* Which keys a family reads: jobs over vectors have no language model, and the other way round. */
#include <string.h>

#include "train/run_priv.h"

/* Keys of the sections of language models that jobs over vectors read too; beside them they read
 * the sections quantizer and output. */
static const tess_run_key_idx of_vectors[] = {
    TESS_RUN_KEY_model_family,        TESS_RUN_KEY_data_path,
    TESS_RUN_KEY_data_eval_path,      TESS_RUN_KEY_train_seed,
    TESS_RUN_KEY_compute_device,      TESS_RUN_KEY_compute_threads,
    TESS_RUN_KEY_compute_comm_thread, TESS_RUN_KEY_compute_memory_limit};

static bool is_of_output(tess_run_key_idx key)
{
    return key == TESS_RUN_KEY_output_dir || key == TESS_RUN_KEY_output_checkpoint_every ||
           key == TESS_RUN_KEY_output_keep || key == TESS_RUN_KEY_output_when_busy ||
           key == TESS_RUN_KEY_output_resume;
}

bool run_family_reads(const tess_run *run, tess_run_key_idx key)
{
    const bool is_of_quantizer = strcmp(tess_run_key_at(key)->section, "quantizer") == 0;
    if (!tess_run_is_vectors(run))
        return !is_of_quantizer;
    for (int i = 0; i < TESS_NELEM(of_vectors); i++)
        if (of_vectors[i] == key)
            return true;
    return is_of_quantizer || is_of_output(key);
}

tess_status run_family_check(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        if (!run->place[i].is_given || run_family_reads(run, (tess_run_key_idx)i))
            continue;
        tess_run_place_text(run, (tess_run_key_idx)i, place);
        return TESS_FAIL(TESS_E_CONFIG, "%s: has no meaning with model.family %s: remove it%s",
                         place, tess_run_is_vectors(run) ? "kmeans" : "of a language model",
                         tess_run_is_vectors(run) ? "" : " or set model.family: kmeans");
    }
    if (tess_run_is_vectors(run) || run->model.path != NULL)
        return TESS_OK;
    return TESS_FAIL(TESS_E_CONFIG, "%s:1:1: key 'model.path' is missing (%s)", run->source_name,
                     tess_run_key_at(TESS_RUN_KEY_model_path)->help);
}
