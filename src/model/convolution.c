#include "model/convolution_priv.h"

#include "model/linear_priv.h"

/* ---- sizes ---- */

static int64_t kernel_of(tess_convolution_kind kind)
{
    static const int64_t kernel[] = {[TESS_CONVOLUTION_POINT] = 1,
                                     [TESS_CONVOLUTION_SAME] = 3,
                                     [TESS_CONVOLUTION_DOWN] = 4,
                                     [TESS_CONVOLUTION_UP] = 4};
    return kernel[kind];
}

tess_convolution tess_convolution_make(tess_convolution_kind kind, int64_t in_numel,
                                       int64_t out_numel, int64_t height, int64_t width)
{
    const int64_t taps = kernel_of(kind) * kernel_of(kind);
    const bool is_up = kind == TESS_CONVOLUTION_UP, is_down = kind == TESS_CONVOLUTION_DOWN;
    return (tess_convolution){.kind = kind,
                              .linear = {.in_numel = is_up ? in_numel : taps * in_numel,
                                         .out_numel = is_up ? taps * out_numel : out_numel},
                              .up_bias_idx = -1,
                              .in_numel = in_numel,
                              .out_numel = out_numel,
                              .height = height,
                              .width = width,
                              .out_height = is_up     ? 2 * height
                                            : is_down ? height / 2
                                                      : height,
                              .out_width = is_up     ? 2 * width
                                           : is_down ? width / 2
                                                     : width};
}

/* Rows of its product for one image: pixels of the smaller one. */
static int64_t row_numel_of(const tess_convolution *v)
{
    return v->kind == TESS_CONVOLUTION_UP ? v->height * v->width : v->out_height * v->out_width;
}

/* The larger image of a convolution and its patches. */
static tess_patch_shape patches_of(const tess_convolution *v, int64_t sample_numel)
{
    const bool is_up = v->kind == TESS_CONVOLUTION_UP;
    return (tess_patch_shape){.sample_numel = sample_numel,
                              .height = is_up ? v->out_height : v->height,
                              .width = is_up ? v->out_width : v->width,
                              .channel_numel = is_up ? v->out_numel : v->in_numel,
                              .kernel = kernel_of(v->kind),
                              .stride = v->kind == TESS_CONVOLUTION_SAME ? 1 : 2,
                              .pad = 1};
}

static int64_t samples_of(const tess_exec *ex, const tess_convolutions *c)
{
    return ex->row_numel / c->position_numel;
}

/* Images of a convolution's output, and the columns of its product. */
static tess_status take_output(tess_carve *carve, const tess_convolution *v, int64_t sample_numel,
                               tess_dtype dt, tess_view *out)
{
    return tess_carve_take_2d(carve, sample_numel * v->out_height * v->out_width, v->out_numel, dt,
                              out);
}

static tess_status take_patches(tess_exec *ex, const tess_convolution *v, int64_t sample_numel,
                                tess_dtype dt, tess_view *out)
{
    const int64_t cols = v->kind == TESS_CONVOLUTION_UP ? v->linear.out_numel : v->linear.in_numel;
    return tess_carve_take_2d(&ex->work, sample_numel * row_numel_of(v), cols, dt, out);
}

tess_status tess_convolutions_take_saved(const tess_exec *ex, const tess_convolutions *c,
                                         tess_carve *carve, tess_convolutions_saved *saved)
{
    const int64_t samples = samples_of(ex, c);
    for (int i = 0; i < c->layer_numel; i++) {
        const tess_convolution_layer *layer = &c->layer[i];
        const tess_convolution *last = layer->is_residual ? &layer->second : &layer->first;
        saved->inner[i] = (tess_view){0};
        if (layer->is_residual)
            TESS_TRY(take_output(carve, &layer->first, samples, ex->dt, &saved->inner[i]));
        if (i + 1 < c->layer_numel)
            TESS_TRY(take_output(carve, last, samples, ex->dt, &saved->hidden[i]));
    }
    return TESS_OK;
}

/* ---- one convolution ---- */

static tess_status im2col(const tess_exec *ex, const tess_convolution *v, tess_view image,
                          tess_view patches, int64_t sample_numel)
{
    const tess_im2col_args args = {patches_of(v, sample_numel), image, patches};
    return TESS_EXEC_RUN(ex, im2col, &args);
}

static tess_status col2im(const tess_exec *ex, const tess_convolution *v, tess_view patches,
                          tess_view image, int64_t sample_numel)
{
    tess_col2im_args args = {
        .shape = patches_of(v, sample_numel), .patches = patches, .image = image};
    if (v->up_bias_idx >= 0)
        TESS_TRY(tess_exec_vector(ex, v->up_bias_idx, &args.bias));
    return TESS_EXEC_RUN(ex, col2im, &args);
}

/* Rows of its product on either side: where the images are patches, those. */
static tess_group group_of(const tess_exec *ex, const tess_convolution *v, tess_view x, tess_view y,
                           int64_t sample_numel)
{
    const int64_t rows = sample_numel * row_numel_of(v);
    const tess_rows in = tess_rows_of(x, rows, v->linear.in_numel);
    const tess_rows out = tess_rows_of(y, rows, v->linear.out_numel);
    return tess_group_of(ex, &v->linear, &in, &out);
}

static tess_status forward_one(tess_exec *ex, const tess_convolution *v, tess_view x, tess_view y,
                               int64_t samples)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const bool is_up = v->kind == TESS_CONVOLUTION_UP, is_point = v->kind == TESS_CONVOLUTION_POINT;
    tess_view patches = {0};
    if (!is_point)
        TESS_TRY(take_patches(ex, v, samples, is_up ? y.dt : ex->dt, &patches));
    if (!is_point && !is_up)
        TESS_TRY(im2col(ex, v, x, patches, samples));
    const tess_group group =
        group_of(ex, v, is_up || is_point ? x : patches, is_up ? patches : y, samples);
    TESS_TRY(tess_group_forward(ex, &group));
    if (is_up)
        TESS_TRY(col2im(ex, v, patches, y, samples));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status backward_up(tess_exec *ex, const tess_convolution *v,
                               const tess_convolutions_gradients *g, int64_t samples)
{
    tess_view d_patches = {0};
    const tess_rows d_y =
        tess_rows_of(g->d_y, samples * v->out_height * v->out_width, v->out_numel);
    TESS_TRY(take_patches(ex, v, samples, ex->dt, &d_patches));
    TESS_TRY(im2col(ex, v, g->d_y, d_patches, samples));
    if (v->up_bias_idx >= 0)
        TESS_TRY(tess_linear_bias_grad(ex, v->up_bias_idx, &d_y));
    const tess_group group = group_of(ex, v, g->x, d_patches, samples);
    return tess_group_backward(ex, &group, g->d_x);
}

static tess_status backward_patches(tess_exec *ex, const tess_convolution *v,
                                    const tess_convolutions_gradients *g, int64_t samples)
{
    tess_view patches = {0}, d_patches = g->d_x;
    TESS_TRY(take_patches(ex, v, samples, ex->dt, &patches));
    TESS_TRY(im2col(ex, v, g->x, patches, samples));
    if (g->d_x.numel > 0)
        TESS_TRY(take_patches(ex, v, samples, ex->dt, &d_patches));
    const tess_group group = group_of(ex, v, patches, g->d_y, samples);
    TESS_TRY(tess_group_backward(ex, &group, d_patches));
    return g->d_x.numel > 0 ? col2im(ex, v, d_patches, g->d_x, samples) : TESS_OK;
}

static tess_status backward_one(tess_exec *ex, const tess_convolution *v,
                                const tess_convolutions_gradients *g, int64_t samples)
{
    const size_t mark = tess_carve_mark(&ex->work);
    if (v->kind == TESS_CONVOLUTION_POINT) {
        const tess_group group = group_of(ex, v, g->x, g->d_y, samples);
        TESS_TRY(tess_group_backward(ex, &group, g->d_x));
    } else if (v->kind == TESS_CONVOLUTION_UP) {
        TESS_TRY(backward_up(ex, v, g, samples));
    } else {
        TESS_TRY(backward_patches(ex, v, g, samples));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- layers ---- */

/* max(x, 0) in `work`. */
static tess_status activate(tess_exec *ex, tess_view x, tess_view *out)
{
    TESS_TRY(tess_carve_take(&ex->work, x.numel, ex->dt, out));
    return tess_exec_relu(ex, x, x, *out);
}

static tess_status add(const tess_exec *ex, tess_view a, tess_view b, tess_view out)
{
    const tess_add_args args = {a, b, out};
    return TESS_EXEC_RUN(ex, add, &args);
}

/* y is not wanted: what backward reads is written all the same. */
static tess_status forward_layer(tess_exec *ex, const tess_convolution_layer *layer, tess_view x,
                                 tess_view inner, tess_view y, int64_t samples)
{
    tess_view in = x, active = {0};
    if (y.numel == 0 && !layer->is_residual)
        return TESS_OK;
    if (layer->has_relu)
        TESS_TRY(activate(ex, x, &in));
    if (!layer->is_residual)
        return forward_one(ex, &layer->first, in, y, samples);
    TESS_TRY(forward_one(ex, &layer->first, in, inner, samples));
    if (y.numel == 0)
        return TESS_OK;
    TESS_TRY(activate(ex, inner, &active));
    TESS_TRY(forward_one(ex, &layer->second, active, y, samples));
    return add(ex, y, x, y);
}

tess_status tess_convolutions_forward(tess_exec *ex, const tess_convolutions *c, tess_view x,
                                      const tess_convolutions_saved *saved, tess_view y)
{
    const int64_t samples = samples_of(ex, c);
    for (int i = 0; i < c->layer_numel; i++) {
        const size_t mark = tess_carve_mark(&ex->work);
        const tess_view in = i > 0 ? saved->hidden[i - 1] : x;
        const tess_view out = i + 1 < c->layer_numel ? saved->hidden[i] : y;
        TESS_TRY(forward_layer(ex, &c->layer[i], in, saved->inner[i], out, samples));
        tess_carve_release(&ex->work, mark);
    }
    return TESS_OK;
}

/* The branch of a block, d_x of it without the block's own input. */
static tess_status backward_branch(tess_exec *ex, const tess_convolution_layer *layer,
                                   tess_view inner, const tess_convolutions_gradients *g,
                                   int64_t samples)
{
    tess_convolutions_gradients second = {.d_y = g->d_y}, first = *g;
    TESS_TRY(activate(ex, inner, &second.x));
    TESS_TRY(tess_carve_take(&ex->work, inner.numel, ex->dt, &second.d_x));
    TESS_TRY(backward_one(ex, &layer->second, &second, samples));
    TESS_TRY(tess_exec_relu(ex, second.d_x, inner, second.d_x));
    first.d_y = second.d_x;
    return backward_one(ex, &layer->first, &first, samples);
}

static tess_status backward_layer(tess_exec *ex, const tess_convolution_layer *layer,
                                  tess_view inner, const tess_convolutions_gradients *g,
                                  int64_t samples)
{
    tess_convolutions_gradients own = *g;
    if (layer->has_relu)
        TESS_TRY(activate(ex, g->x, &own.x));
    TESS_TRY(layer->is_residual ? backward_branch(ex, layer, inner, &own, samples)
                                : backward_one(ex, &layer->first, &own, samples));
    if (g->d_x.numel == 0)
        return TESS_OK;
    if (layer->has_relu)
        TESS_TRY(tess_exec_relu(ex, g->d_x, g->x, g->d_x));
    return layer->is_residual ? add(ex, g->d_x, g->d_y, g->d_x) : TESS_OK;
}

/* Gradients between layers take turns in two buffers of the largest size. */
static tess_status take_turns(tess_exec *ex, const tess_convolutions *c,
                              const tess_convolutions_saved *saved, tess_view turn[2])
{
    int64_t most = 0;
    for (int i = 0; i + 1 < c->layer_numel; i++)
        most = TESS_MAX(most, saved->hidden[i].numel);
    for (int i = 0; i < 2; i++)
        TESS_TRY(tess_carve_take(&ex->work, most, ex->dt, &turn[i]));
    return TESS_OK;
}

tess_status tess_convolutions_backward(tess_exec *ex, const tess_convolutions *c,
                                       const tess_convolutions_saved *saved,
                                       const tess_convolutions_gradients *g)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t samples = samples_of(ex, c);
    tess_view turn[2] = {{0}, {0}}, d_y = g->d_y;
    TESS_TRY(take_turns(ex, c, saved, turn));
    for (int i = c->layer_numel - 1; i >= 0; i--) {
        const size_t layer_mark = tess_carve_mark(&ex->work);
        tess_convolutions_gradients own = {.x = g->x, .d_y = d_y, .d_x = g->d_x};
        if (i > 0) {
            own.x = saved->hidden[i - 1];
            own.d_x = tess_view_slice(turn[i % 2], 0, own.x.numel);
        }
        TESS_TRY(backward_layer(ex, &c->layer[i], saved->inner[i], &own, samples));
        tess_carve_release(&ex->work, layer_mark);
        d_y = own.d_x;
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
