#include "model/perceptron_priv.h"

tess_status tess_perceptron_take_saved(const tess_exec *ex, const tess_perceptron *p,
                                       tess_carve *carve, tess_perceptron_saved *saved)
{
    for (int i = 0; i + 1 < p->layer_numel; i++)
        TESS_TRY(tess_carve_take_rows(carve, ex->row_numel, p->layer[i].out_numel, ex->dt,
                                      &saved->hidden[i]));
    return TESS_OK;
}

tess_status tess_perceptron_forward(tess_exec *ex, const tess_perceptron *p, const tess_rows *x,
                                    const tess_perceptron_saved *saved, const tess_rows *y)
{
    const tess_rows *in = x;
    for (int i = 0; i < p->layer_numel; i++) {
        const bool is_last = i + 1 == p->layer_numel;
        const tess_rows *out = is_last ? y : &saved->hidden[i];
        const tess_group group = tess_group_of(ex, &p->layer[i], in, out);
        TESS_TRY(tess_group_forward(ex, &group));
        if (!is_last)
            TESS_TRY(tess_exec_relu(ex, out->view, out->view, out->view));
        in = out;
    }
    return TESS_OK;
}

tess_status tess_perceptron_backward(tess_exec *ex, const tess_perceptron *p,
                                     const tess_perceptron_saved *saved,
                                     const tess_perceptron_gradients *g)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_rows d_y = g->d_y, d_x = {0};
    for (int i = p->layer_numel - 1; i >= 0; i--, d_y = d_x) {
        const tess_linear *linear = &p->layer[i];
        const tess_rows *in = i > 0 ? &saved->hidden[i - 1] : &g->x;
        const tess_group group = tess_group_of(ex, linear, in, &d_y);
        d_x = tess_rows_of(g->d_x, in->rows, linear->in_numel);
        if (i > 0)
            TESS_TRY(tess_carve_take_rows(&ex->work, in->rows, linear->in_numel, ex->dt, &d_x));
        TESS_TRY(tess_group_backward(ex, &group, d_x.view));
        if (i > 0)
            TESS_TRY(tess_exec_relu(ex, d_x.view, in->view, d_x.view));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}
