#include "format/flux_config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char class_name[] = "FluxTransformer2DModel";
/* Axes of heads of 128, which every published model has. */
static const int64_t usual_axes[TESS_FLUX_AXIS_NUMEL] = {16, 56, 56};
enum { USUAL_HEAD_DIM = 128, DIM_MAX = 1 << 20 };

bool tess_flux_config_is(const tess_json *root)
{
    const tess_json *name = tess_json_find(root, "_class_name");
    const char *text = NULL;
    return name != NULL && tess_json_type_of(name) == TESS_JSON_STRING &&
           tess_json_as_string(name, &text) == TESS_OK && strcmp(text, class_name) == 0;
}

tess_status tess_flux_config_check(const tess_flux_config *c)
{
    const struct {
        const char *name;
        int64_t value, least, most;
    } field[] = {{"in_channels", c->in_channels, 1, DIM_MAX},
                 {"out_channels", c->out_channels, 1, DIM_MAX},
                 {"num_layers", c->double_numel, 0, TESS_FLUX_BLOCK_MAX},
                 {"num_single_layers", c->single_numel, 0, TESS_FLUX_BLOCK_MAX},
                 {"num_attention_heads", c->head_numel, 1, 1024},
                 {"attention_head_dim", c->head_dim, 2, 1024},
                 {"joint_attention_dim", c->text_dim, 1, DIM_MAX},
                 {"pooled_projection_dim", c->pooled_dim, 1, DIM_MAX}};
    int64_t axes = 0;
    for (int i = 0; i < TESS_NELEM(field); i++)
        TESS_CHECK(field[i].value >= field[i].least && field[i].value <= field[i].most,
                   TESS_E_CONFIG, "FLUX %s: expected %" PRId64 " to %" PRId64 ", found %" PRId64,
                   field[i].name, field[i].least, field[i].most, field[i].value);
    TESS_CHECK(c->double_numel + c->single_numel > 0, TESS_E_CONFIG,
               "FLUX num_layers, num_single_layers: expected blocks, found none of either kind");
    for (int a = 0; a < TESS_FLUX_AXIS_NUMEL; a++) {
        TESS_CHECK(c->axis_dim[a] >= 0 && c->axis_dim[a] % 2 == 0, TESS_E_CONFIG,
                   "FLUX axes_dims_rope[%d]: expected an even number, found %" PRId64, a,
                   c->axis_dim[a]);
        axes += c->axis_dim[a];
    }
    TESS_CHECK(axes == c->head_dim, TESS_E_CONFIG,
               "FLUX axes_dims_rope: expected a sum of attention_head_dim %" PRId64
               ", found %" PRId64,
               c->head_dim, axes);
    return TESS_OK;
}

/* What this family's arithmetic takes for granted. */
static tess_status check_fixed(const tess_json *root)
{
    static const struct {
        const char *name;
        int64_t value;
    } fixed[] = {{"patch_size", 1}};
    for (int i = 0; i < TESS_NELEM(fixed); i++) {
        int64_t value = fixed[i].value;
        char where[512];
        TESS_TRY(tess_json_opt_i64(root, fixed[i].name, value, &value));
        tess_json_where(root, where, sizeof where);
        TESS_CHECK(value == fixed[i].value, TESS_E_UNSUPPORTED,
                   "%s: %s: expected %" PRId64 ", found %" PRId64, where, fixed[i].name,
                   fixed[i].value, value);
    }
    return TESS_OK;
}

static tess_status parse_axes(const tess_json *root, tess_flux_config *c)
{
    const tess_json *axes = NULL;
    char where[512];
    memcpy(c->axis_dim, usual_axes, sizeof usual_axes);
    TESS_TRY(tess_json_opt_array(root, "axes_dims_rope", &axes));
    if (axes == NULL)
        return TESS_OK;
    tess_json_where(axes, where, sizeof where);
    TESS_CHECK(tess_json_numel(axes) == TESS_FLUX_AXIS_NUMEL, TESS_E_FORMAT,
               "%s: expected %d numbers, found %" PRId64, where, TESS_FLUX_AXIS_NUMEL,
               tess_json_numel(axes));
    for (int a = 0; a < TESS_FLUX_AXIS_NUMEL; a++)
        TESS_TRY(tess_json_as_i64(tess_json_at(axes, a), &c->axis_dim[a]));
    return TESS_OK;
}

tess_status tess_flux_config_parse(const tess_json *root, tess_flux_config *out)
{
    tess_flux_config c = {0};
    const tess_json *channels = tess_json_find(root, "out_channels");
    TESS_TRY(check_fixed(root));
    TESS_TRY(tess_json_opt_i64(root, "in_channels", 64, &c.in_channels));
    c.out_channels = c.in_channels;
    if (channels != NULL && tess_json_type_of(channels) != TESS_JSON_NULL)
        TESS_TRY(tess_json_as_i64(channels, &c.out_channels));
    TESS_TRY(tess_json_get_i64(root, "num_layers", &c.double_numel));
    TESS_TRY(tess_json_get_i64(root, "num_single_layers", &c.single_numel));
    TESS_TRY(tess_json_get_i64(root, "attention_head_dim", &c.head_dim));
    TESS_TRY(tess_json_get_i64(root, "num_attention_heads", &c.head_numel));
    TESS_TRY(tess_json_get_i64(root, "joint_attention_dim", &c.text_dim));
    TESS_TRY(tess_json_get_i64(root, "pooled_projection_dim", &c.pooled_dim));
    TESS_TRY(tess_json_opt_bool(root, "guidance_embeds", false, &c.has_guidance));
    TESS_TRY(parse_axes(root, &c));
    TESS_TRY(tess_flux_config_check(&c));
    *out = c;
    return TESS_OK;
}

tess_status tess_flux_config_json(const tess_flux_config *c, tess_json **out)
{
    tess_json *axes = NULL;
    TESS_TRY(tess_json_create_object(out));
    TESS_TRY(tess_json_add_string(*out, "_class_name", class_name));
    TESS_TRY(tess_json_add_i64(*out, "patch_size", 1));
    TESS_TRY(tess_json_add_i64(*out, "in_channels", c->in_channels));
    TESS_TRY(tess_json_add_i64(*out, "out_channels", c->out_channels));
    TESS_TRY(tess_json_add_i64(*out, "num_layers", c->double_numel));
    TESS_TRY(tess_json_add_i64(*out, "num_single_layers", c->single_numel));
    TESS_TRY(tess_json_add_i64(*out, "attention_head_dim", c->head_dim));
    TESS_TRY(tess_json_add_i64(*out, "num_attention_heads", c->head_numel));
    TESS_TRY(tess_json_add_i64(*out, "joint_attention_dim", c->text_dim));
    TESS_TRY(tess_json_add_i64(*out, "pooled_projection_dim", c->pooled_dim));
    TESS_TRY(tess_json_add_bool(*out, "guidance_embeds", c->has_guidance));
    TESS_TRY(tess_json_add_array(*out, "axes_dims_rope", &axes));
    for (int a = 0; a < TESS_FLUX_AXIS_NUMEL; a++)
        TESS_TRY(tess_json_add_i64(axes, NULL, c->axis_dim[a]));
    return TESS_OK;
}

/* ---- from weights ---- */

typedef struct finder {
    const char *source;
    tess_flux_shape_of shape_of;
    void *arg;
} finder;

static bool has(const finder *f, const char *name)
{
    int64_t dim[8];
    return f->shape_of(f->arg, name, dim) >= 0;
}

static tess_status dims_of(const finder *f, const char *name, int rank, int64_t dim[8])
{
    const int found = f->shape_of(f->arg, name, dim);
    TESS_CHECK(found >= 0, TESS_E_FORMAT, "'%s': tensor '%s' is missing: no FLUX.1 transformer",
               f->source, name);
    TESS_CHECK(found == rank, TESS_E_FORMAT, "'%s': tensor '%s': expected %d dimensions, found %d",
               f->source, name, rank, found);
    return TESS_OK;
}

static int64_t blocks_of(const finder *f, const char *format)
{
    char name[128];
    int64_t numel = 0;
    for (; numel < TESS_FLUX_BLOCK_MAX; numel++) {
        snprintf(name, sizeof name, "%s.%" PRId64 ".attn.norm_q.weight", format, numel);
        if (!has(f, name))
            break;
    }
    return numel;
}

tess_status tess_flux_config_find(const char *source, tess_flux_shape_of shape_of, void *arg,
                                  tess_flux_config *out)
{
    const finder f = {source, shape_of, arg};
    tess_flux_config c = {0};
    int64_t dim[8] = {0};
    TESS_TRY(dims_of(&f, "x_embedder.weight", 2, dim));
    const int64_t hidden_numel = dim[0];
    c.in_channels = dim[1];
    TESS_TRY(dims_of(&f, "proj_out.weight", 2, dim));
    c.out_channels = dim[0];
    TESS_TRY(dims_of(&f, "context_embedder.weight", 2, dim));
    c.text_dim = dim[1];
    TESS_TRY(dims_of(&f, "time_text_embed.text_embedder.linear_1.weight", 2, dim));
    c.pooled_dim = dim[1];
    c.has_guidance = has(&f, "time_text_embed.guidance_embedder.linear_1.weight");
    c.double_numel = blocks_of(&f, "transformer_blocks");
    c.single_numel = blocks_of(&f, "single_transformer_blocks");
    TESS_TRY(dims_of(&f,
                     c.double_numel > 0 ? "transformer_blocks.0.attn.norm_q.weight"
                                        : "single_transformer_blocks.0.attn.norm_q.weight",
                     1, dim));
    c.head_dim = dim[0];
    TESS_CHECK(c.head_dim == USUAL_HEAD_DIM, TESS_E_UNSUPPORTED,
               "'%s': heads of %" PRId64 " elements, and no weight tells how they are rotated; put "
               "diffusers' config.json beside the file",
               source, c.head_dim);
    c.head_numel = hidden_numel / c.head_dim;
    memcpy(c.axis_dim, usual_axes, sizeof usual_axes);
    TESS_TRY(tess_flux_config_check(&c));
    *out = c;
    return TESS_OK;
}
