#include "reference/flux_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

tape_node flux_reference_add(flux_reference *f, const char *name, int64_t rows, int64_t cols)
{
    if (f->tensor_numel == FLUX_TENSOR_MAX)
        abort();
    flux_tensor *t = &f->tensor[f->tensor_numel++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->node = tape_leaf(f->t, rows, cols);
    return t->node;
}

tape_node flux_reference_find(const flux_reference *f, const char *name)
{
    for (int i = 0; i < f->tensor_numel; i++)
        if (strcmp(f->tensor[i].name, name) == 0)
            return f->tensor[i].node;
    return -1;
}

static tape_node get(const flux_reference *f, const char *prefix, const char *module,
                     const char *suffix)
{
    char name[160];
    snprintf(name, sizeof name, "%s%s%s", prefix, module, suffix);
    return flux_reference_find(f, name);
}

/* A of a module: its own, or that of the first part of the matrix it is a part of. */
static tape_node adapter_a(const flux_reference *f, const char *prefix, const char *module)
{
    static const char *const part[][2] = {
        {"attn.to_", "attn.to_q"}, {"attn.add_", "attn.add_q_proj"}, {"proj_mlp", "attn.to_q"}};
    const tape_node own = get(f, prefix, module, ".lora_A.weight");
    for (int i = 0; i < 3 && own < 0; i++)
        if (strncmp(module, part[i][0], strlen(part[i][0])) == 0)
            return get(f, prefix, part[i][1], ".lora_A.weight");
    return own;
}

/* m / n per column, n the lengths of the rows of W + s B A, which have no gradient. */
static tape_node rescale(flux_reference *f, tape_node y, tape_node m, const tape_node wab[3])
{
    tape *t = f->t;
    const int64_t out = tape_rows(t, wab[0]), in = tape_cols(t, wab[0]), r = tape_rows(t, wab[1]);
    const tape_node inverse = tape_leaf(t, 1, out);
    for (int64_t o = 0; o < out; o++) {
        double square = 0.0;
        for (int64_t i = 0; i < in; i++) {
            double w = tape_value(t, wab[0])[o * in + i];
            for (int64_t k = 0; k < r; k++)
                w += f->lora_scale * tape_value(t, wab[2])[o * r + k] *
                     tape_value(t, wab[1])[k * in + i];
            square += w * w;
        }
        tape_value(t, inverse)[o] = 1.0 / sqrt(square);
    }
    return tape_mul_row(t, tape_mul_row(t, y, m, 0.0), inverse, 0.0);
}

static tape_node linear(flux_reference *f, const char *prefix, const char *module, tape_node x)
{
    tape *t = f->t;
    const tape_node w = get(f, prefix, module, ".weight");
    const tape_node b = get(f, prefix, module, ".lora_B.weight");
    const tape_node m = get(f, prefix, module, ".lora_magnitude_vector");
    tape_node y = tape_linear(t, x, w);
    if (b >= 0) {
        const tape_node a = adapter_a(f, prefix, module);
        const tape_node u = tape_scale(t, tape_linear(t, x, a), f->lora_scale);
        y = tape_add(t, y, tape_linear(t, u, b));
        if (m >= 0)
            y = rescale(f, y, m, (const tape_node[3]){w, a, b});
    }
    return tape_add_row(t, y, get(f, prefix, module, ".bias"));
}

static tape_node leaf(flux_reference *f, int64_t rows, int64_t cols, const double *x)
{
    const tape_node n = tape_leaf(f->t, rows, cols);
    memcpy(tape_value(f->t, n), x, (size_t)(rows * cols) * sizeof *x);
    return n;
}

static void note(flux_reference *f, tape_node x)
{
    if (f->trace_numel < FLUX_TRACE_MAX)
        f->trace[f->trace_numel++] = x;
}

static tape_node embed(flux_reference *f, const char *prefix, tape_node x)
{
    return linear(f, prefix, "linear_2", tape_silu(f->t, linear(f, prefix, "linear_1", x)));
}

/* silu(temb) [1, H]. */
static tape_node condition(flux_reference *f, const flux_sample *s)
{
    tape *t = f->t;
    tape_node sum = embed(f, "time_text_embed.timestep_embedder.", leaf(f, 1, 256, s->time));
    if (f->has_guidance)
        sum = tape_add(
            t, sum, embed(f, "time_text_embed.guidance_embedder.", leaf(f, 1, 256, s->guidance)));
    sum = tape_add(
        t, sum, embed(f, "time_text_embed.text_embedder.", leaf(f, 1, s->pooled_dim, s->pooled)));
    note(f, sum);
    return tape_silu(t, sum);
}

/* Chunk `idx` of the factors, as wide as H. */
static tape_node chunk(flux_reference *f, tape_node factors, int idx)
{
    const int64_t h = f->head_numel * f->head_dim;
    return tape_slice_cols(f->t, factors, idx * h, h);
}

static tape_node modulate(flux_reference *f, tape_node x, tape_node shift, tape_node scale)
{
    const tape_node n = tape_layer_norm(f->t, x, 1e-6);
    return tape_add_row(f->t, tape_mul_row(f->t, n, scale, 1.0), shift);
}

static tape_node gate(flux_reference *f, tape_node x, tape_node factor, tape_node y)
{
    return tape_add(f->t, x, tape_mul_row(f->t, y, factor, 0.0));
}

static tape_node normed(flux_reference *f, const char *prefix, const char *linear_name,
                        const char *norm_name, tape_node x)
{
    return tape_rms_heads(f->t, linear(f, prefix, linear_name, x),
                          get(f, prefix, norm_name, ".weight"), 1e-6);
}

/* Rows of a double block's attention. */
static tape_node join(flux_reference *f, tape_node text, tape_node image)
{
    return f->wrong == FLUX_IMAGE_FIRST ? tape_join_rows(f->t, image, text)
                                        : tape_join_rows(f->t, text, image);
}

static tape_node rows_of(flux_reference *f, tape_node x, const flux_sample *s, bool is_image)
{
    const bool is_second = is_image != (f->wrong == FLUX_IMAGE_FIRST);
    const int64_t numel = is_image ? s->image_numel : s->text_numel;
    return tape_slice_rows(f->t, x, is_second ? tape_rows(f->t, x) - numel : 0, numel);
}

static tape_node mix(flux_reference *f, const flux_sample *s, const tape_node qkv[3])
{
    const tape_turn turn = {s->cosine, s->sine, f->head_dim, f->wrong == FLUX_HALF_SPLIT};
    const tape_node turned[3] = {tape_rotate(f->t, qkv[0], &turn), tape_rotate(f->t, qkv[1], &turn),
                                 qkv[2]};
    return tape_attention(f->t, turned, f->head_numel);
}

static bool swaps(const flux_reference *f, bool is_msa)
{
    return f->wrong == FLUX_ALL_SWAPPED || (is_msa && f->wrong == FLUX_MSA_SWAPPED);
}

static tape_node half_mlp(flux_reference *f, const char *p, const char *const name[2], tape_node m,
                          tape_node x)
{
    const int swap = swaps(f, false);
    const tape_node n = modulate(f, x, chunk(f, m, 3 + swap), chunk(f, m, 4 - swap));
    const tape_node y = linear(f, p, name[1], tape_gelu_tanh(f->t, linear(f, p, name[0], n)));
    return gate(f, x, chunk(f, m, 5), y);
}

static void double_block(flux_reference *f, const flux_sample *s, const char *p, tape_node cond,
                         tape_node stream[2])
{
    static const char *const mod[2] = {"norm1_context.linear", "norm1.linear"};
    static const char *const in[2][3] = {{"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"},
                                         {"attn.to_q", "attn.to_k", "attn.to_v"}};
    static const char *const norm[2][2] = {{"attn.norm_added_q", "attn.norm_added_k"},
                                           {"attn.norm_q", "attn.norm_k"}};
    static const char *const out[2] = {"attn.to_add_out", "attn.to_out.0"};
    static const char *const mlp[2][2] = {{"ff_context.net.0.proj", "ff_context.net.2"},
                                          {"ff.net.0.proj", "ff.net.2"}};
    tape_node m[2], qkv[2][3], both[3];
    for (int i = 0; i < 2; i++) {
        const int swap = swaps(f, true);
        m[i] = linear(f, p, mod[i], cond);
        const tape_node n =
            modulate(f, stream[i], chunk(f, m[i], 0 + swap), chunk(f, m[i], 1 - swap));
        qkv[i][0] = normed(f, p, in[i][0], norm[i][0], n);
        qkv[i][1] = normed(f, p, in[i][1], norm[i][1], n);
        qkv[i][2] = linear(f, p, in[i][2], n);
    }
    for (int k = 0; k < 3; k++)
        both[k] = join(f, qkv[0][k], qkv[1][k]);
    const tape_node o = mix(f, s, both);
    for (int i = 0; i < 2; i++) {
        const tape_node y = linear(f, p, out[i], rows_of(f, o, s, i == 1));
        stream[i] = half_mlp(f, p, mlp[i], m[i], gate(f, stream[i], chunk(f, m[i], 2), y));
    }
    note(f, stream[1]);
    note(f, stream[0]);
}

static tape_node single_block(flux_reference *f, const flux_sample *s, const char *p,
                              tape_node cond, tape_node h)
{
    const tape_node m = linear(f, p, "norm.linear", cond);
    const tape_node n = modulate(f, h, chunk(f, m, 0), chunk(f, m, 1));
    const tape_node qkv[3] = {normed(f, p, "attn.to_q", "attn.norm_q", n),
                              normed(f, p, "attn.to_k", "attn.norm_k", n),
                              linear(f, p, "attn.to_v", n)};
    const tape_node o = mix(f, s, qkv);
    const tape_node g = tape_gelu_tanh(f->t, linear(f, p, "proj_mlp", n));
    const tape_node both =
        f->wrong == FLUX_MLP_FIRST ? tape_join_cols(f->t, g, o) : tape_join_cols(f->t, o, g);
    const tape_node y = gate(f, h, chunk(f, m, 2), linear(f, p, "proj_out", both));
    note(f, y);
    return y;
}

tape_node flux_reference_run(flux_reference *f, const flux_sample *s)
{
    char prefix[64];
    const tape_node cond = condition(f, s);
    const tape_node x = leaf(f, s->image_numel, s->channels, s->latent);
    const tape_node c = leaf(f, s->text_numel, s->text_dim, s->text);
    tape_node stream[2];
    stream[1] = linear(f, "", "x_embedder", x);
    stream[0] = linear(f, "", "context_embedder", c);
    note(f, stream[1]);
    note(f, stream[0]);
    for (int i = 0; i < f->double_numel; i++) {
        snprintf(prefix, sizeof prefix, "transformer_blocks.%d.", i);
        double_block(f, s, prefix, cond, stream);
    }
    tape_node h = tape_join_rows(f->t, stream[0], stream[1]);
    for (int i = 0; i < f->single_numel; i++) {
        snprintf(prefix, sizeof prefix, "single_transformer_blocks.%d.", i);
        h = single_block(f, s, prefix, cond, h);
    }
    const bool swap = f->wrong == FLUX_FINAL_SWAPPED;
    const tape_node image = tape_slice_rows(f->t, h, s->text_numel, s->image_numel);
    const tape_node m = linear(f, "", "norm_out.linear", cond);
    const tape_node n = modulate(f, image, chunk(f, m, swap ? 0 : 1), chunk(f, m, swap ? 1 : 0));
    const tape_node out = linear(f, "", "proj_out", n);
    note(f, out);
    return out;
}
