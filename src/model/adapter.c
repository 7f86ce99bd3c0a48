#include "model/adapter_priv.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static tess_status add(const tess_adapter_place *place, const char *suffix, tess_param *p, int *idx)
{
    p->unit_idx = place->unit_idx;
    p->learning_rate_ratio = p->learning_rate_ratio > 0.0 ? p->learning_rate_ratio : 1.0;
    const int length = snprintf(p->name, sizeof p->name, "%s%s", place->path, suffix);
    TESS_CHECK(length > 0 && (size_t)length < sizeof p->name, TESS_E_ARG,
               "tensor name '%s%s' is longer than %d bytes", place->path, suffix,
               TESS_NAME_NBYTES - 1);
    return tess_registry_add_param(place->reg, p, idx);
}

static void set_init(tess_param *p, tess_init_kind kind, double scale)
{
    p->init = p->random_init = kind;
    p->init_scale = p->random_scale = scale;
}

static tess_status add_matrices(const tess_adapter_place *place, int64_t rank, tess_linear *linear)
{
    const tess_model_options *o = place->options;
    const bool is_derived = o->start.low_rank != TESS_LOW_RANK_NONE;
    tess_param a = {.role = TESS_ROLE_TRAINABLE,
                    .shape_rank = 2,
                    .shape = {rank, linear->in_numel},
                    .has_weight_decay = true,
                    .is_in_front = true}; /* matrices A of a group in a row: one product */
    tess_param b = {.role = TESS_ROLE_TRAINABLE,
                    .shape_rank = 2,
                    .shape = {linear->out_numel, rank},
                    .learning_rate_ratio = o->lora_plus_ratio,
                    .has_weight_decay = true};
    set_init(&b, is_derived ? TESS_INIT_DERIVED : TESS_INIT_ZERO, 0.0);
    /* kaiming_uniform(a = sqrt 5) of a [r, in] matrix is U(-1/sqrt(in), 1/sqrt(in)). */
    if (is_derived)
        set_init(&a, TESS_INIT_DERIVED, 0.0);
    else if (o->start.is_gaussian)
        set_init(&a, TESS_INIT_NORMAL, 1.0 / (double)rank);
    else
        set_init(&a, TESS_INIT_UNIFORM, 1.0 / sqrt((double)linear->in_numel));
    if (linear->lora_a_idx < 0)
        TESS_TRY(add(place, ".lora_A.weight", &a, &linear->lora_a_idx));
    return add(place, ".lora_B.weight", &b, &linear->lora_b_idx);
}

/* [Note: first values] What A and B started as is a part of the base: the weights are what is
 * stored plus s B A of the start, and a difference against them needs both. */
static tess_status add_start(const tess_adapter_place *place, const tess_linear *linear)
{
    const tess_adapter_start *start = &place->options->start;
    tess_registry *reg = place->reg;
    tess_derived d = reg->param[linear->weight_idx].derived;
    static const char *const suffix[] = {".lora_A.initial", ".lora_B.initial"};
    int *const initial_idx[] = {&d.initial_a_idx, &d.initial_b_idx};
    d.a_idx = linear->lora_a_idx;
    d.b_idx = linear->lora_b_idx;
    d.low_rank = start->low_rank;
    d.power_numel = start->power_numel;
    d.turn_numel = start->turn_numel;
    d.scale = (double)linear->lora_scale;
    for (int i = 0; i < 2; i++) {
        const tess_param *of = &reg->param[i == 0 ? d.a_idx : d.b_idx];
        tess_param p = {.role = TESS_ROLE_FROZEN,
                        .shape_rank = 2,
                        .shape = {of->shape[0], of->shape[1]},
                        .codec = {.format = TESS_FORMAT_F32}};
        set_init(&p, TESS_INIT_DERIVED, 0.0);
        TESS_TRY(add(place, suffix[i], &p, initial_idx[i]));
    }
    reg->param[linear->weight_idx].derived = d;
    return TESS_OK;
}

/* Lengths of the rows of W, which the product of the adapter does not change at the start. */
static tess_status add_magnitude(const tess_adapter_place *place, tess_linear *linear)
{
    tess_param p = {.role = TESS_ROLE_TRAINABLE, .shape_rank = 1, .shape = {linear->out_numel}};
    set_init(&p, TESS_INIT_DERIVED, 0.0);
    TESS_TRY(add(place, ".lora_magnitude_vector", &p, &linear->magnitude_idx));
    place->reg->param[linear->weight_idx].derived.magnitude_idx = linear->magnitude_idx;
    return TESS_OK;
}

/* A of the first part, and its draws. */
static tess_status take_shared(const tess_adapter_place *place, const tess_lora_choice *choice,
                               tess_linear *linear)
{
    const tess_linear *first = place->first;
    const char *name = place->reg->param[first->weight_idx].name;
    TESS_CHECK(place->options->start.low_rank == TESS_LOW_RANK_NONE, TESS_E_UNSUPPORTED,
               "lora.init: '%s' shares its A with '%s', and one A cannot be made of two matrices; "
               "take pissa and loftq out, or give every part its own A",
               place->path, name);
    TESS_CHECK(first->lora_rank == choice->rank && first->lora_scale == (float)choice->scale,
               TESS_E_CONFIG,
               "lora.targets: '%s' is to share its A with '%s', but they have ranks %d and %" PRId64
               ", scales %g and %g; target all parts alike",
               place->path, name, choice->rank, first->lora_rank, choice->scale,
               (double)first->lora_scale);
    linear->lora_a_idx = first->lora_a_idx;
    linear->adapter_idx = first->adapter_idx;
    return TESS_OK;
}

tess_status tess_adapter_add(const tess_adapter_place *place, uint32_t *adapter_numel,
                             tess_linear *linear)
{
    const tess_model_options *o = place->options;
    const bool is_derived = o->start.low_rank != TESS_LOW_RANK_NONE;
    tess_lora_choice choice = {0};
    if (!o->is_full && o->lora_of != NULL)
        TESS_TRY(o->lora_of(o->arg, place->path, place->is_head, &choice));
    if (choice.rank == 0)
        return TESS_OK;
    TESS_CHECK(
        !linear->is_trainable, TESS_E_CONFIG,
        "lora: '%s' is named by lora.modules_to_save and by lora.targets: take it out of one",
        place->path);
    TESS_CHECK(choice.rank > 0 && isfinite(choice.scale), TESS_E_CONFIG,
               "adapter of '%s': rank %d, scale %g; expected a rank above 0 and a finite scale",
               place->path, choice.rank, choice.scale);
    TESS_CHECK(!is_derived || !place->is_shared, TESS_E_UNSUPPORTED,
               "lora.init: '%s' shares its weight with another layer, which would lose what the "
               "adapter takes over; leave it out of lora.targets",
               place->path);
    linear->lora_rank = choice.rank;
    linear->lora_scale = (float)choice.scale;
    if (choice.shares_a && place->first != NULL)
        TESS_TRY(take_shared(place, &choice, linear));
    else
        linear->adapter_idx = (*adapter_numel)++;
    TESS_CHECK(linear->adapter_idx < 1u << 24, TESS_E_RANGE, "more than 2^24 adapters");
    TESS_TRY(add_matrices(place, choice.rank, linear));
    if (is_derived)
        TESS_TRY(add_start(place, linear));
    return choice.is_dora ? add_magnitude(place, linear) : TESS_OK;
}
