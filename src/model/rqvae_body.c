/* Encoders and decoders: layers over vectors, or convolutions over images. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "model/rqvae_priv.h"

/* ---- tensors ---- */

tess_status tess_rqvae_add_param(tess_registry *reg, tess_param *p, int *idx)
{
    p->role = TESS_ROLE_TRAINABLE;
    return tess_registry_add_param(reg, p, idx);
}

static tess_status add_bias(tess_registry *reg, int unit_idx, const char *path, int64_t numel,
                            double scale, int *idx)
{
    tess_param bias = {.unit_idx = unit_idx,
                       .shape_rank = 1,
                       .shape = {numel},
                       .init = TESS_INIT_UNIFORM,
                       .init_scale = scale,
                       .learning_rate_ratio = 1.0};
    snprintf(bias.name, sizeof bias.name, "%s.bias", path);
    return tess_rqvae_add_param(reg, &bias, idx);
}

/* Weight and, where `bias_idx` is given, bias uniform in 1 / sqrt(fan), as PyTorch begins them. */
static tess_status add_linear(tess_registry *reg, int unit_idx, const char *path, int64_t fan,
                              bool has_bias, tess_linear *linear)
{
    const double scale = 1.0 / sqrt((double)fan);
    tess_param weight = {.unit_idx = unit_idx,
                         .shape_rank = 2,
                         .shape = {linear->out_numel, linear->in_numel},
                         .init = TESS_INIT_UNIFORM,
                         .init_scale = scale,
                         .learning_rate_ratio = 1.0,
                         .has_weight_decay = true};
    snprintf(weight.name, sizeof weight.name, "%s.weight", path);
    linear->is_trainable = true;
    linear->bias_idx = linear->lora_a_idx = linear->lora_b_idx = linear->magnitude_idx = -1;
    TESS_TRY(tess_rqvae_add_param(reg, &weight, &linear->weight_idx));
    return has_bias ? add_bias(reg, unit_idx, path, linear->out_numel, scale, &linear->bias_idx)
                    : TESS_OK;
}

/* One fixed layer in the encoder's place. Its scale is of no account: lengths are taken off. */
static tess_status add_projection(tess_rqvae *m, tess_registry *reg)
{
    tess_perceptron *p = &m->encoder.vectors;
    tess_linear *linear = &p->layer[0];
    tess_param weight = {.shape_rank = 2,
                         .shape = {m->config.code_dim, m->config.dim},
                         .init = TESS_INIT_NORMAL,
                         .init_scale = 1.0 / sqrt((double)m->config.dim),
                         .learning_rate_ratio = 0.0,
                         .is_outer = true};
    snprintf(weight.name, sizeof weight.name, "encoder.0.weight");
    p->layer_numel = 1;
    *linear = (tess_linear){.in_numel = m->config.dim,
                            .out_numel = m->config.code_dim,
                            .is_trainable = true,
                            .bias_idx = -1,
                            .lora_a_idx = -1,
                            .lora_b_idx = -1,
                            .magnitude_idx = -1};
    TESS_TRY(tess_registry_add_unit(reg, "encoder", &weight.unit_idx));
    return tess_rqvae_add_param(reg, &weight, &linear->weight_idx);
}

/* size [layer_numel + 1] */
static tess_status add_perceptron(const tess_rqvae *m, tess_registry *reg, const char *name,
                                  const int64_t *size, tess_perceptron *p)
{
    int unit_idx = 0;
    char path[64];
    p->layer_numel = m->config.hidden_numel + 1;
    TESS_TRY(tess_registry_add_unit(reg, name, &unit_idx));
    for (int i = 0; i < p->layer_numel; i++) {
        p->layer[i] = (tess_linear){.in_numel = size[i], .out_numel = size[i + 1]};
        snprintf(path, sizeof path, "%s.%d", name, i);
        TESS_TRY(add_linear(reg, unit_idx, path, size[i], m->config.has_bias, &p->layer[i]));
    }
    return TESS_OK;
}

/* A transposed convolution adds its bias to pixels, not to patches; PyTorch's fan of one counts
 * what a pixel goes to. */
static tess_status add_convolution(const tess_rqvae *m, tess_registry *reg, int unit_idx,
                                   const char *path, tess_convolution *v)
{
    const bool is_up = v->kind == TESS_CONVOLUTION_UP, has_bias = m->config.has_bias;
    const int64_t fan = is_up ? v->linear.out_numel : v->linear.in_numel;
    TESS_TRY(add_linear(reg, unit_idx, path, fan, has_bias && !is_up, &v->linear));
    return has_bias && is_up ? add_bias(reg, unit_idx, path, v->out_numel, 1.0 / sqrt((double)fan),
                                        &v->up_bias_idx)
                             : TESS_OK;
}

static tess_status add_convolutions(const tess_rqvae *m, tess_registry *reg, const char *name,
                                    tess_convolutions *c)
{
    int unit_idx = 0;
    char path[64];
    TESS_TRY(tess_registry_add_unit(reg, name, &unit_idx));
    for (int i = 0; i < c->layer_numel; i++) {
        tess_convolution_layer *layer = &c->layer[i];
        snprintf(path, sizeof path, layer->is_residual ? "%s.%d.0" : "%s.%d", name, i);
        TESS_TRY(add_convolution(m, reg, unit_idx, path, &layer->first));
        snprintf(path, sizeof path, "%s.%d.1", name, i);
        if (layer->is_residual)
            TESS_TRY(add_convolution(m, reg, unit_idx, path, &layer->second));
    }
    return TESS_OK;
}

/* ---- layers of images ---- */

static void add_layer(tess_convolutions *c, tess_convolution_kind kind, int64_t in_numel,
                      int64_t out_numel, int64_t height, int64_t width)
{
    c->layer[c->layer_numel] = (tess_convolution_layer){
        .first = tess_convolution_make(kind, in_numel, out_numel, height, width),
        .has_relu = c->layer_numel > 0};
    c->layer_numel++;
}

static void add_blocks(const tess_rqvae_images *i, tess_convolutions *c)
{
    const int64_t height = i->height >> i->halving_numel, width = i->width >> i->halving_numel;
    for (int64_t r = 0; r < i->residual_numel; r++) {
        add_layer(c, TESS_CONVOLUTION_SAME, i->hidden_channel_numel, i->residual_channel_numel,
                  height, width);
        tess_convolution_layer *layer = &c->layer[c->layer_numel - 1];
        layer->is_residual = true;
        layer->second = tess_convolution_make(TESS_CONVOLUTION_POINT, i->residual_channel_numel,
                                              i->hidden_channel_numel, height, width);
    }
}

static void make_encoder(const tess_rqvae_config *config, tess_convolutions *c)
{
    const tess_rqvae_images *i = &config->images;
    const int64_t hidden = i->hidden_channel_numel, n = i->halving_numel;
    for (int64_t k = 0; k < n; k++)
        add_layer(c, TESS_CONVOLUTION_DOWN, k == 0 ? i->channel_numel : hidden, hidden,
                  i->height >> k, i->width >> k);
    add_blocks(i, c);
    add_layer(c, TESS_CONVOLUTION_POINT, hidden, config->code_dim, i->height >> n, i->width >> n);
}

static void make_decoder(const tess_rqvae_config *config, tess_convolutions *c)
{
    const tess_rqvae_images *i = &config->images;
    const int64_t hidden = i->hidden_channel_numel, n = i->halving_numel;
    add_layer(c, TESS_CONVOLUTION_POINT, config->code_dim, hidden, i->height >> n, i->width >> n);
    add_blocks(i, c);
    for (int64_t k = n; k > 0; k--)
        add_layer(c, TESS_CONVOLUTION_UP, hidden, k == 1 ? i->channel_numel : hidden,
                  i->height >> k, i->width >> k);
}

static bool is_of_images(const tess_rqvae *m) { return m->config.images.channel_numel > 0; }

/* ---- create ---- */

static tess_status add_images(tess_rqvae *m, tess_registry *reg, bool is_decoder)
{
    tess_convolutions *c = is_decoder ? &m->decoder.images : &m->encoder.images;
    c->position_numel = tess_rqvae_position_numel(&m->config.images);
    (is_decoder ? make_decoder : make_encoder)(&m->config, c);
    return add_convolutions(m, reg, is_decoder ? "decoder" : "encoder", c);
}

tess_status tess_rqvae_add_body(tess_rqvae *m, const int64_t *hidden, tess_registry *reg,
                                bool is_decoder)
{
    int64_t size[TESS_RQVAE_HIDDEN_MAX + 2], mirrored[TESS_RQVAE_HIDDEN_MAX + 2];
    const int layers = m->config.hidden_numel + 1;
    if (is_of_images(m))
        return add_images(m, reg, is_decoder);
    if (!is_decoder && m->config.kind == TESS_QUANTIZER_PROJECTED)
        return add_projection(m, reg);
    size[0] = m->config.dim;
    for (int i = 0; i < m->config.hidden_numel; i++)
        size[i + 1] = hidden[i];
    size[layers] = m->config.code_dim;
    for (int i = 0; i <= layers; i++)
        mirrored[i] = size[layers - i];
    return is_decoder ? add_perceptron(m, reg, "decoder", mirrored, &m->decoder.vectors)
                      : add_perceptron(m, reg, "encoder", size, &m->encoder.vectors);
}

static tess_status check_images(const tess_rqvae_config *c)
{
    const tess_rqvae_images *i = &c->images;
    const int64_t n = i->halving_numel;
    TESS_CHECK(n >= 1 && n <= TESS_RQVAE_HALVING_MAX, TESS_E_CONFIG,
               "quantizer.downsample: expected 1 to %d, found %" PRId64, TESS_RQVAE_HALVING_MAX, n);
    TESS_CHECK(i->height > 0 && i->width > 0 && i->height % (1LL << n) == 0 &&
                   i->width % (1LL << n) == 0,
               TESS_E_CONFIG,
               "quantizer.downsample: images of %" PRId64 " x %" PRId64 " are not halved %" PRId64
               " times without a rest; choose fewer, or crop the images to multiples of %lld",
               i->width, i->height, n, 1LL << n);
    TESS_CHECK(i->hidden_channel_numel >= 1, TESS_E_CONFIG,
               "quantizer.channels: expected at least 1, found %" PRId64, i->hidden_channel_numel);
    TESS_CHECK(i->residual_numel >= 0 && i->residual_numel <= TESS_RQVAE_RESIDUAL_MAX,
               TESS_E_CONFIG, "quantizer.residual_blocks: expected 0 to %d, found %" PRId64,
               TESS_RQVAE_RESIDUAL_MAX, i->residual_numel);
    TESS_CHECK(i->residual_channel_numel >= 1, TESS_E_CONFIG,
               "quantizer.residual_channels: expected at least 1, found %" PRId64,
               i->residual_channel_numel);
    TESS_CHECK(c->dim == tess_rqvae_share_numel(i), TESS_E_ARG,
               "images of %" PRId64 " channels: expected shares of %" PRId64
               " elements, found %" PRId64,
               i->channel_numel, tess_rqvae_share_numel(i), c->dim);
    return TESS_OK;
}

tess_status tess_rqvae_check_config(const tess_rqvae_config *c)
{
    if (c->images.channel_numel > 0)
        return check_images(c);
    TESS_CHECK(c->dim >= 1, TESS_E_CONFIG, "quantizer.dim: %" PRId64 ", expected at least 1",
               c->dim);
    TESS_CHECK(c->hidden_numel >= 0 && c->hidden_numel <= TESS_RQVAE_HIDDEN_MAX, TESS_E_CONFIG,
               "quantizer.encoder: expected at most %d sizes, found %d", TESS_RQVAE_HIDDEN_MAX,
               c->hidden_numel);
    for (int i = 0; i < c->hidden_numel; i++)
        TESS_CHECK(c->hidden[i] >= 1, TESS_E_CONFIG,
                   "quantizer.encoder: size %d is %" PRId64 ", expected at least 1", i,
                   c->hidden[i]);
    return TESS_OK;
}

/* ---- calls ---- */

static tess_rows rows_of(const tess_exec *ex, tess_view v)
{
    return tess_rows_of(v, ex->row_numel, v.numel / ex->row_numel);
}

tess_status tess_rqvae_body_take_saved(const tess_rqvae *m, const tess_exec *ex,
                                       const tess_rqvae_body *body, tess_carve *carve,
                                       tess_rqvae_saved *saved)
{
    return is_of_images(m) ? tess_convolutions_take_saved(ex, &body->images, carve, &saved->images)
                           : tess_perceptron_take_saved(ex, &body->vectors, carve, &saved->vectors);
}

tess_status tess_rqvae_body_forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_body *body,
                                    tess_view x, const tess_rqvae_saved *saved, tess_view y)
{
    const tess_rows in = rows_of(ex, x), out = rows_of(ex, y);
    return is_of_images(m)
               ? tess_convolutions_forward(ex, &body->images, x, &saved->images, y)
               : tess_perceptron_forward(ex, &body->vectors, &in, &saved->vectors, &out);
}

tess_status tess_rqvae_body_backward(const tess_rqvae *m, tess_exec *ex,
                                     const tess_rqvae_body *body, const tess_rqvae_saved *saved,
                                     const tess_convolutions_gradients *g)
{
    const tess_perceptron_gradients rows = {
        .x = rows_of(ex, g->x), .d_y = rows_of(ex, g->d_y), .d_x = g->d_x};
    return is_of_images(m) ? tess_convolutions_backward(ex, &body->images, &saved->images, g)
                           : tess_perceptron_backward(ex, &body->vectors, &saved->vectors, &rows);
}
