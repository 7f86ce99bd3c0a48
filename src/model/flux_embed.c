/* Embedding: latents and text into rows, time, guidance and pooled text into the modulation
 * input. */
#include "model/flux_priv.h"

static const tess_view none = {.dt = TESS_F32};

/* What backward reads of one embedder. */
typedef struct embedder_saved {
    tess_group_input in;  /* [B, in] */
    tess_view hidden;     /* [B, H]: before silu */
    tess_group_input act; /* [B, H] */
} embedder_saved;

typedef struct embed_saved {
    tess_group_input rows[TESS_FLUX_STREAM_NUMEL]; /* inputs of text_in and latent_in */
    embedder_saved embedder[TESS_FLUX_EMBEDDER_NUMEL];
    tess_view sum; /* [B, H]: of the embedders, before silu */
} embed_saved;

static const tess_linear *linear_of(const tess_flux *m, int stream)
{
    return stream == TESS_FLUX_TEXT ? &m->text_in : &m->latent_in;
}

static bool has_embedder(const tess_flux *m, int i)
{
    return i != TESS_FLUX_GUIDANCE || m->config.has_guidance;
}

static tess_status take_saved(const tess_flux_call *c, embed_saved *s)
{
    const tess_flux *m = c->m;
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++) {
        const tess_group group = tess_group_one(linear_of(m, i));
        TESS_TRY(tess_flux_take_input(c, &group, tess_flux_stream_numel(c, i), true, c->keep,
                                      &s->rows[i]));
    }
    for (int i = 0; i < TESS_FLUX_EMBEDDER_NUMEL; i++) {
        embedder_saved *e = &s->embedder[i];
        const tess_group first = tess_group_one(&m->embedder[i].linear_1);
        const tess_group second = tess_group_one(&m->embedder[i].linear_2);
        if (!has_embedder(m, i))
            continue;
        TESS_TRY(tess_flux_take_input(c, &first, c->sample_numel, true, c->keep, &e->in));
        TESS_TRY(
            tess_carve_take_2d(c->keep, c->sample_numel, m->hidden_numel, c->ex->dt, &e->hidden));
        TESS_TRY(tess_flux_take_input(c, &second, c->sample_numel, true, c->keep, &e->act));
    }
    return tess_carve_take_2d(c->keep, c->sample_numel, m->hidden_numel, c->ex->dt, &s->sum);
}

/* Values of the batch in the compute dtype, where a product reads them. */
static tess_status enter(const tess_flux_call *c, const float *x, tess_rows to)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t numel = to.rows * to.cols;
    const tess_view src = tess_exec_view(c->ex, (void *)(uintptr_t)x, numel, TESS_F32);
    tess_rows dst = to;
    if (tess_rows_gap(&to) != 0)
        TESS_TRY(tess_carve_take_rows(&c->ex->work, to.rows, to.cols, c->ex->dt, &dst));
    const tess_cast_args args = {.src = src, .dst = dst.view};
    TESS_TRY(TESS_EXEC_RUN(c->ex, cast, &args));
    if (tess_rows_gap(&to) != 0)
        TESS_TRY(tess_exec_copy_rows(c->ex, to, dst));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* ---- forward ---- */

static tess_status embed_rows(const tess_flux_call *c, int stream, const tess_group_input *in)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    const bool has_output = c->output.h.numel > 0;
    const float *x = stream == TESS_FLUX_TEXT ? c->batch->text : c->batch->latent;
    tess_group group = tess_group_one(linear_of(c->m, stream));
    tess_view y = none;
    group.in = *in;
    TESS_TRY(enter(c, x, in->x));
    if (has_output)
        TESS_TRY(tess_flux_take_split(c, stream, c->output.h, &c->ex->work, h, &y));
    group.y[0] = has_output ? tess_rows_of(y, rows, h) : (tess_rows){.view = none};
    TESS_TRY(tess_group_forward(c->ex, &group));
    if (has_output && c->sample_numel > 1) {
        const tess_rows joint = tess_rows_of(c->output.h, c->sample_numel * c->token_numel, h);
        TESS_TRY(tess_flux_to_joint(c, stream, group.y[0], joint));
    }
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

/* out = linear_2(silu(linear_1(x))). */
static tess_status embed_one(const tess_flux_call *c, int i, const embedder_saved *e, tess_view out)
{
    const float *const x[] = {c->batch->time, c->batch->guidance, c->batch->pooled};
    const int64_t h = c->m->hidden_numel;
    tess_group first = tess_group_one(&c->m->embedder[i].linear_1);
    tess_group second = tess_group_one(&c->m->embedder[i].linear_2);
    TESS_TRY(enter(c, x[i], e->in.x));
    first.in = e->in;
    first.y[0] = tess_rows_of(e->hidden, c->sample_numel, h);
    TESS_TRY(tess_group_forward(c->ex, &first));
    TESS_TRY(tess_flux_activate(c, TESS_ACTIVATION_SILU, first.y[0], e->act.x));
    second.in = e->act;
    second.y[0] = tess_rows_of(out, c->sample_numel, h);
    return tess_group_forward(c->ex, &second);
}

static tess_status embed_samples(const tess_flux_call *c, const embed_saved *s)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_view part = {0};
    TESS_TRY(tess_carve_take(&c->ex->work, s->sum.numel, c->ex->dt, &part));
    for (int i = 0; i < TESS_FLUX_EMBEDDER_NUMEL; i++) {
        if (!has_embedder(c->m, i))
            continue;
        TESS_TRY(embed_one(c, i, &s->embedder[i], i == 0 ? s->sum : part));
        if (i > 0)
            TESS_TRY(tess_flux_add(c, s->sum, part, s->sum));
    }
    tess_carve_release(&c->ex->work, mark);
    if (c->output.h.numel == 0)
        return TESS_OK;
    const int64_t h = c->m->hidden_numel;
    return tess_flux_activate(c, TESS_ACTIVATION_SILU, tess_rows_of(s->sum, c->sample_numel, h),
                              tess_rows_of(c->output.s, c->sample_numel, h));
}

tess_status tess_flux_embed_forward(const tess_flux_call *c)
{
    embed_saved saved = {0};
    TESS_TRY(take_saved(c, &saved));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(embed_rows(c, i, &saved.rows[i]));
    return embed_samples(c, &saved);
}

/* ---- backward ---- */

static tess_status rows_backward(const tess_flux_call *c, int stream, const tess_group_input *in)
{
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t rows = tess_flux_stream_numel(c, stream), h = c->m->hidden_numel;
    tess_group group = tess_group_one(linear_of(c->m, stream));
    tess_view d_y = {0};
    if (!tess_linear_learns(group.linear[0]))
        return TESS_OK;
    TESS_TRY(tess_flux_take_split(c, stream, c->d_output.h, &c->ex->work, h, &d_y));
    group.in = *in;
    group.y[0] = tess_rows_of(d_y, rows, h);
    if (c->sample_numel > 1) {
        const tess_rows joint = tess_rows_of(c->d_output.h, c->sample_numel * c->token_numel, h);
        TESS_TRY(tess_flux_from_joint(c, stream, joint, group.y[0]));
    }
    TESS_TRY(tess_group_backward(c->ex, &group, none));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

static tess_status embedder_backward(const tess_flux_call *c, int i, const embedder_saved *e,
                                     tess_view d_sum)
{
    const int64_t h = c->m->hidden_numel;
    tess_group first = tess_group_one(&c->m->embedder[i].linear_1);
    tess_group second = tess_group_one(&c->m->embedder[i].linear_2);
    const bool is_first_learning = tess_linear_learns(first.linear[0]);
    if (!is_first_learning && !tess_linear_learns(second.linear[0]))
        return TESS_OK;
    const size_t mark = tess_carve_mark(&c->ex->work);
    tess_view d_act = none;
    if (is_first_learning)
        TESS_TRY(tess_carve_take(&c->ex->work, d_sum.numel, c->ex->dt, &d_act));
    second.in = e->act;
    second.y[0] = tess_rows_of(d_sum, c->sample_numel, h);
    TESS_TRY(tess_group_backward(c->ex, &second, d_act));
    if (is_first_learning) {
        const tess_rows d = tess_rows_of(d_act, c->sample_numel, h);
        TESS_TRY(tess_flux_activate_backward(c, TESS_ACTIVATION_SILU,
                                             tess_rows_of(e->hidden, c->sample_numel, h), d, d));
        first.in = e->in;
        first.y[0] = d;
        TESS_TRY(tess_group_backward(c->ex, &first, none));
    }
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}

tess_status tess_flux_embed_backward(const tess_flux_call *c)
{
    embed_saved saved = {0};
    TESS_TRY(take_saved(c, &saved));
    for (int i = 0; i < TESS_FLUX_STREAM_NUMEL; i++)
        TESS_TRY(rows_backward(c, i, &saved.rows[i]));
    if (!c->m->embedders_learn)
        return TESS_OK;
    const size_t mark = tess_carve_mark(&c->ex->work);
    const int64_t h = c->m->hidden_numel;
    tess_rows d_sum = {0};
    TESS_TRY(tess_carve_take_rows(&c->ex->work, c->sample_numel, h, c->ex->dt, &d_sum));
    TESS_TRY(tess_flux_activate_backward(c, TESS_ACTIVATION_SILU,
                                         tess_rows_of(saved.sum, c->sample_numel, h),
                                         tess_rows_of(c->d_output.s, c->sample_numel, h), d_sum));
    for (int i = 0; i < TESS_FLUX_EMBEDDER_NUMEL; i++)
        if (has_embedder(c->m, i))
            TESS_TRY(embedder_backward(c, i, &saved.embedder[i], d_sum.view));
    tess_carve_release(&c->ex->work, mark);
    return TESS_OK;
}
