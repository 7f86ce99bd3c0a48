/* Section quantizer of runs over vectors: which type reads what. */
#include <string.h>

#include "train/run_file/run_priv.h"

#define OF(type) (1u << TESS_RUN_QUANTIZER_##type)
enum {
    CODEBOOKS = OF(VQ) | OF(RESIDUAL_VQ) | OF(COSINE),
    MAPPED = OF(SIMVQ) | OF(RESIDUAL_SIMVQ),
    STACKS = OF(RESIDUAL_VQ) | OF(RESIDUAL_SIMVQ) | OF(RESIDUAL_FSQ),
    AXES = OF(FSQ) | OF(RESIDUAL_FSQ) | OF(LATENT),
    SIGNS = OF(LFQ) | OF(BSQ),
    FIXED = OF(RANDOM_PROJECTION),
    ALL = CODEBOOKS | MAPPED | AXES | SIGNS | FIXED
};

#define KEY(name) TESS_RUN_KEY_quantizer_##name
static const struct {
    tess_run_key_idx key;
    unsigned types; /* that read it in an rqvae run */
} readers[] = {{KEY(type), ALL},
               {KEY(dim), ALL},
               {KEY(encoder), ALL},
               {KEY(image), ALL},
               {KEY(downsample), ALL},
               {KEY(channels), ALL},
               {KEY(residual_blocks), ALL},
               {KEY(residual_channels), ALL},
               {KEY(bias), ALL},
               {KEY(loss), ALL},
               {KEY(window), ALL},
               {KEY(codes), CODEBOOKS | MAPPED | FIXED},
               {KEY(levels), STACKS},
               {KEY(groups), CODEBOOKS | MAPPED | SIGNS | FIXED},
               {KEY(shared_codes), CODEBOOKS | MAPPED},
               {KEY(code_dim), CODEBOOKS | MAPPED | SIGNS | FIXED},
               {KEY(init), CODEBOOKS},
               {KEY(passes), CODEBOOKS},
               {KEY(update), CODEBOOKS},
               {KEY(decay), CODEBOOKS},
               {KEY(threshold), CODEBOOKS},
               {KEY(sharding), CODEBOOKS},
               {KEY(commitment), CODEBOOKS | MAPPED | SIGNS | OF(LATENT)},
               {KEY(estimator), CODEBOOKS | MAPPED},
               {KEY(orthogonal), CODEBOOKS | MAPPED},
               {KEY(temperature), CODEBOOKS | MAPPED},
               {KEY(axis_levels), AXES},
               {KEY(rule), OF(FSQ)},
               {KEY(noise), OF(FSQ)},
               {KEY(entropy), SIGNS},
               {KEY(confidence), SIGNS},
               {KEY(scale), OF(LFQ)},
               {KEY(diversity), SIGNS},
               {KEY(inverse_temperature), SIGNS}};

static unsigned type_of(const tess_run *run)
{
    const tess_run_quantizer type = run->quantizer.type;
    return type == TESS_RUN_QUANTIZER_AUTO ? OF(RESIDUAL_VQ) : 1u << type;
}

static bool is_averaged(const tess_run *run)
{
    return (type_of(run) & CODEBOOKS) != 0 && run->quantizer.update == TESS_RUN_UPDATE_EMA;
}

static bool type_reads(const tess_run *run, tess_run_key_idx key)
{
    for (int i = 0; i < TESS_NELEM(readers); i++)
        if (readers[i].key == key)
            return (readers[i].types & type_of(run)) != 0;
    return false;
}

/* Keys of layers over vectors alone, and of convolutions alone. */
static bool is_of_other_family(const tess_run *run, tess_run_key_idx key)
{
    static const tess_run_key_idx of_vectors[] = {KEY(dim), KEY(encoder)};
    static const tess_run_key_idx of_images[] = {KEY(image), KEY(downsample), KEY(channels),
                                                 KEY(residual_blocks), KEY(residual_channels)};
    const bool is_images = tess_run_is_of_images(run);
    const tess_run_key_idx *other = is_images ? of_vectors : of_images;
    const int numel = is_images ? TESS_NELEM(of_vectors) : TESS_NELEM(of_images);
    for (int i = 0; i < numel; i++)
        if (other[i] == key)
            return true;
    return false;
}

static bool has_entropy(const tess_run *run) { return run->quantizer.entropy > 0.0; }

static bool has_kmeans(const tess_run *run)
{
    return run->quantizer.init == TESS_RUN_CODE_INIT_AUTO ||
           run->quantizer.init == TESS_RUN_CODE_INIT_KMEANS;
}

static bool has_groups(const tess_run *run) { return run->quantizer.groups > 1; }

/* Keys that have a meaning with values of others alone. */
static const struct {
    tess_run_key_idx key;
    bool (*is_read)(const tess_run *run);
    const char *otherwise; /* without which, and what would give it one */
} conditions[] = {
    {KEY(decay), is_averaged, "quantizer.update gradient: remove it or choose ema"},
    {KEY(threshold), is_averaged, "quantizer.update gradient: remove it or choose ema"},
    {KEY(confidence), has_entropy, "quantizer.entropy 0: remove it or give a weight"},
    {KEY(diversity), has_entropy, "quantizer.entropy 0: remove it or give a weight"},
    {KEY(inverse_temperature), has_entropy, "quantizer.entropy 0: remove it or give a weight"},
    {KEY(passes), has_kmeans, "this quantizer.init: remove it or choose kmeans"},
    {KEY(shared_codes), has_groups, "one group: remove it or set quantizer.groups"}};

bool run_quantizer_reads(const tess_run *run, tess_run_key_idx key)
{
    if (!type_reads(run, key) || is_of_other_family(run, key))
        return false;
    for (int i = 0; i < TESS_NELEM(conditions); i++)
        if (conditions[i].key == key)
            return conditions[i].is_read(run);
    return true;
}

/* ---- defaults ---- */

/* k-means++ visits its sample once per code; later levels do better from drawn vectors. */
static void resolve_kmeans(tess_run_quantizer_keys *q)
{
    enum { SEEDED_CODES_MAX = 4096 };
    if (q->type == TESS_RUN_QUANTIZER_AUTO)
        q->type = TESS_RUN_QUANTIZER_RESIDUAL_KMEANS;
    if (q->init == TESS_RUN_CODE_INIT_AUTO)
        q->init = q->levels == 1 && q->codes <= SEEDED_CODES_MAX ? TESS_RUN_CODE_INIT_PLUS_PLUS
                                                                 : TESS_RUN_CODE_INIT_SAMPLE;
}

/* What a type does not read gets the value that means its absence. */
static void resolve_type(tess_run *run)
{
    tess_run_quantizer_keys *q = &run->quantizer;
    if ((type_of(run) & AXES) != 0)
        q->code_dim = q->axis_levels.item_numel;
    if ((type_of(run) & CODEBOOKS) == 0)
        q->init = TESS_RUN_CODE_INIT_RANDOM;
    if (q->type == TESS_RUN_QUANTIZER_COSINE && !run->place[KEY(update)].is_given)
        q->update = TESS_RUN_UPDATE_EMA;
}

void run_quantizer_resolve(tess_run *run)
{
    tess_run_quantizer_keys *q = &run->quantizer;
    if (tess_run_is_kmeans(run)) {
        resolve_kmeans(q);
        return;
    }
    if (q->type == TESS_RUN_QUANTIZER_AUTO)
        q->type = TESS_RUN_QUANTIZER_RESIDUAL_VQ;
    if (q->init == TESS_RUN_CODE_INIT_AUTO)
        q->init = TESS_RUN_CODE_INIT_KMEANS;
    if (!run->place[KEY(passes)].is_given)
        q->passes = 10;
    resolve_type(run);
}

/* ---- refusals ---- */

/* Each family has quantizers, and a k-means for start codes, of its own. */
static tess_status check_family(const tess_run *run)
{
    const bool is_kmeans = tess_run_is_kmeans(run);
    const bool is_of_kmeans = run->quantizer.type == TESS_RUN_QUANTIZER_RESIDUAL_KMEANS;
    const tess_run_code_init refused =
        is_kmeans ? TESS_RUN_CODE_INIT_KMEANS : TESS_RUN_CODE_INIT_PLUS_PLUS;
    char place[TESS_RUN_PLACE_NBYTES], family[32];
    tess_run_word_at(tess_run_key_at(TESS_RUN_KEY_model_family)->words, (int)run->model.family,
                     family);
    tess_run_place_text(run, KEY(type), place);
    TESS_CHECK(is_kmeans == is_of_kmeans, TESS_E_CONFIG, "%s: expected %s with model.family %s",
               place, is_kmeans ? "residual-kmeans" : "another one than residual-kmeans", family);
    tess_run_place_text(run, KEY(init), place);
    TESS_CHECK(run->quantizer.init != refused, TESS_E_CONFIG,
               "%s: expected one of %s with model.family %s", place,
               is_kmeans ? "kmeans++, sample, random" : "kmeans, sample, random", family);
    return TESS_OK;
}

/* Keys that this type does not read. */
static tess_status check_type(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES], type[32];
    tess_run_word_at(tess_run_key_at(KEY(type))->words, (int)run->quantizer.type, type);
    for (int i = 0; i < TESS_NELEM(readers); i++) {
        if (!run->place[readers[i].key].is_given || type_reads(run, readers[i].key))
            continue;
        tess_run_place_text(run, readers[i].key, place);
        return TESS_FAIL(TESS_E_CONFIG, "%s: has no meaning with quantizer.type %s: remove it",
                         place, type);
    }
    tess_run_place_text(run, KEY(type), place);
    TESS_CHECK((type_of(run) & AXES) == 0 || run->quantizer.axis_levels.item_numel > 0,
               TESS_E_CONFIG, "%s: %s needs quantizer.axis_levels, such as [8, 5, 5, 5]", place,
               type);
    return TESS_OK;
}

static tess_status check_conditions(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    for (int i = 0; i < TESS_NELEM(conditions); i++) {
        tess_run_place_text(run, conditions[i].key, place);
        TESS_CHECK(conditions[i].is_read(run) || !run->place[conditions[i].key].is_given,
                   TESS_E_CONFIG, "%s: has no meaning with %s", place, conditions[i].otherwise);
    }
    return TESS_OK;
}

/* The optimizer would move averages all the same: it trains between its masters and a copy of
 * them. */
static tess_status check_update(const tess_run *run)
{
    const bool is_ema = is_averaged(run);
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_train_optimizer, place);
    TESS_CHECK(!is_ema || run->train.optimizer != TESS_OPTIMIZER_SCHEDULE_FREE, TESS_E_CONFIG,
               "%s: adamw-schedule-free trains beside its masters, which quantizer.update ema "
               "sets: choose another optimizer",
               place);
    tess_run_place_text(run, TESS_RUN_KEY_train_ema_decay, place);
    TESS_CHECK(!is_ema || !(run->train.ema_decay > 0.0), TESS_E_CONFIG,
               "%s: codes with quantizer.update ema are averages already: remove it", place);
    return TESS_OK;
}

static tess_status check_masks(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_data_eval_mask_path, place);
    TESS_CHECK(run->data.eval_mask_path == NULL || run->data.eval_path != NULL, TESS_E_CONFIG,
               "%s: has no meaning without data.eval_path: remove it or give that one", place);
    return TESS_OK;
}

/* A loss over all codes needs all of them; gradients of rows are added up exactly. */
static tess_status check_sharding(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, KEY(sharding), place);
    if (run->quantizer.sharding != TESS_RUN_SHARDING_ROWS)
        return TESS_OK;
    TESS_CHECK(!(run->quantizer.orthogonal > 0.0), TESS_E_CONFIG,
               "%s: rows holds a part of the codes, quantizer.orthogonal is a loss over all of "
               "them: set it to 0, or choose replicated here",
               place);
    TESS_CHECK(is_averaged(run) || run->shard.reduction == TESS_RUN_REDUCTION_EXACT, TESS_E_CONFIG,
               "%s: rows adds gradients of codes up exactly, found shard.reduction library: choose "
               "exact, or replicated here",
               place);
    return TESS_OK;
}

tess_status run_quantizer_check(const tess_run *run)
{
    TESS_TRY(check_family(run));
    TESS_TRY(check_masks(run));
    if (tess_run_is_kmeans(run))
        return TESS_OK;
    TESS_TRY(check_type(run));
    TESS_TRY(check_conditions(run));
    TESS_TRY(check_sharding(run));
    return check_update(run);
}
