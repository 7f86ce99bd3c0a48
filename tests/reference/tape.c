#include "reference/tape.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum op {
    LEAF,
    LINEAR,
    ADD,
    ADD_ROW,
    MUL_ROW,
    SCALE,
    LAYER_NORM,
    RMS_HEADS,
    ROTATE,
    ATTENTION,
    GELU,
    SILU,
    SLICE_ROWS,
    SLICE_COLS,
    JOIN_ROWS,
    JOIN_COLS,
    SQUARE_ERROR
} op;

typedef struct node {
    op op;
    int64_t rows, cols;
    double *v, *d;
    tape_node in[3];
    double number;
    int64_t first, head_numel;
    tape_turn turn;
    const double *target, *weight;
} node;

enum { NODE_MAX = 4096 };

struct tape {
    node node[NODE_MAX];
    int node_numel;
};

static void *zeroed(size_t numel, size_t size)
{
    void *p = calloc(numel > 0 ? numel : 1, size);
    if (p == NULL)
        abort();
    return p;
}

tape *tape_create(void) { return zeroed(1, sizeof(tape)); }

void tape_destroy(tape *t)
{
    for (int i = 0; i < t->node_numel; i++) {
        free(t->node[i].v);
        free(t->node[i].d);
    }
    free(t);
}

int64_t tape_rows(const tape *t, tape_node x) { return t->node[x].rows; }
int64_t tape_cols(const tape *t, tape_node x) { return t->node[x].cols; }
double *tape_value(const tape *t, tape_node x) { return t->node[x].v; }
const double *tape_grad(const tape *t, tape_node x) { return t->node[x].d; }

static node *add(tape *t, op kind, int64_t rows, int64_t cols)
{
    if (t->node_numel == NODE_MAX)
        abort();
    node *n = &t->node[t->node_numel++];
    *n = (node){.op = kind, .rows = rows, .cols = cols, .in = {-1, -1, -1}};
    n->v = zeroed((size_t)(rows * cols), sizeof *n->v);
    n->d = zeroed((size_t)(rows * cols), sizeof *n->d);
    return n;
}

static tape_node last(const tape *t) { return t->node_numel - 1; }

/* Same shape as x, which is its input. */
static node *like(tape *t, op kind, tape_node x)
{
    node *n = add(t, kind, t->node[x].rows, t->node[x].cols);
    n->in[0] = x;
    return n;
}

tape_node tape_leaf(tape *t, int64_t rows, int64_t cols)
{
    add(t, LEAF, rows, cols);
    return last(t);
}

tape_node tape_linear(tape *t, tape_node x, tape_node w)
{
    const node *a = &t->node[x], *b = &t->node[w];
    node *n = add(t, LINEAR, a->rows, b->rows);
    n->in[0] = x;
    n->in[1] = w;
    if (a->cols != b->cols)
        abort();
    for (int64_t r = 0; r < n->rows; r++)
        for (int64_t o = 0; o < n->cols; o++) {
            double sum = 0.0;
            for (int64_t k = 0; k < a->cols; k++)
                sum += a->v[r * a->cols + k] * b->v[o * a->cols + k];
            n->v[r * n->cols + o] = sum;
        }
    return last(t);
}

static void linear_back(tape *t, const node *n)
{
    const node *a = &t->node[n->in[0]], *b = &t->node[n->in[1]];
    for (int64_t r = 0; r < n->rows; r++)
        for (int64_t o = 0; o < n->cols; o++) {
            const double d = n->d[r * n->cols + o];
            for (int64_t k = 0; k < a->cols; k++) {
                a->d[r * a->cols + k] += d * b->v[o * a->cols + k];
                b->d[o * a->cols + k] += d * a->v[r * a->cols + k];
            }
        }
}

tape_node tape_add(tape *t, tape_node a, tape_node b)
{
    node *n = like(t, ADD, a);
    n->in[1] = b;
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = t->node[a].v[i] + t->node[b].v[i];
    return last(t);
}

tape_node tape_add_row(tape *t, tape_node x, tape_node row)
{
    node *n = like(t, ADD_ROW, x);
    n->in[1] = row;
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = t->node[x].v[i] + t->node[row].v[i % n->cols];
    return last(t);
}

tape_node tape_mul_row(tape *t, tape_node x, tape_node row, double offset)
{
    node *n = like(t, MUL_ROW, x);
    n->in[1] = row;
    n->number = offset;
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = t->node[x].v[i] * (offset + t->node[row].v[i % n->cols]);
    return last(t);
}

tape_node tape_scale(tape *t, tape_node x, double factor)
{
    node *n = like(t, SCALE, x);
    n->number = factor;
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = t->node[x].v[i] * factor;
    return last(t);
}

/* Mean and 1 / sqrt(variance + eps) of a row. */
static void moments(const double *x, int64_t dim, double eps, double out[2])
{
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; i < dim; i++)
        mean += x[i] / (double)dim;
    for (int64_t i = 0; i < dim; i++)
        square += (x[i] - mean) * (x[i] - mean) / (double)dim;
    out[0] = mean;
    out[1] = 1.0 / sqrt(square + eps);
}

tape_node tape_layer_norm(tape *t, tape_node x, double eps)
{
    node *n = like(t, LAYER_NORM, x);
    n->number = eps;
    for (int64_t r = 0; r < n->rows; r++) {
        double m[2];
        const double *row = t->node[x].v + r * n->cols;
        moments(row, n->cols, eps, m);
        for (int64_t i = 0; i < n->cols; i++)
            n->v[r * n->cols + i] = (row[i] - m[0]) * m[1];
    }
    return last(t);
}

static void layer_norm_back(tape *t, const node *n)
{
    const node *x = &t->node[n->in[0]];
    for (int64_t r = 0; r < n->rows; r++) {
        const double *y = n->v + r * n->cols, *d = n->d + r * n->cols;
        double m[2], mean = 0.0, dot = 0.0;
        moments(x->v + r * n->cols, n->cols, n->number, m);
        for (int64_t i = 0; i < n->cols; i++) {
            mean += d[i] / (double)n->cols;
            dot += d[i] * y[i] / (double)n->cols;
        }
        for (int64_t i = 0; i < n->cols; i++)
            x->d[r * n->cols + i] += m[1] * (d[i] - mean - y[i] * dot);
    }
}

static double inverse_rms(const double *x, int64_t dim, double eps)
{
    double sum = 0.0;
    for (int64_t i = 0; i < dim; i++)
        sum += x[i] * x[i];
    return 1.0 / sqrt(sum / (double)dim + eps);
}

tape_node tape_rms_heads(tape *t, tape_node x, tape_node w, double eps)
{
    node *n = like(t, RMS_HEADS, x);
    const int64_t dim = t->node[w].cols;
    n->in[1] = w;
    n->number = eps;
    for (int64_t at = 0; at < n->rows * n->cols; at += dim) {
        const double r = inverse_rms(t->node[x].v + at, dim, eps);
        for (int64_t i = 0; i < dim; i++)
            n->v[at + i] = t->node[x].v[at + i] * r * t->node[w].v[i];
    }
    return last(t);
}

static void rms_heads_back(tape *t, const node *n)
{
    const node *x = &t->node[n->in[0]], *w = &t->node[n->in[1]];
    const int64_t dim = w->cols;
    for (int64_t at = 0; at < n->rows * n->cols; at += dim) {
        const double r = inverse_rms(x->v + at, dim, n->number);
        double dot = 0.0;
        for (int64_t i = 0; i < dim; i++) {
            dot += n->d[at + i] * w->v[i] * x->v[at + i] / (double)dim;
            w->d[i] += n->d[at + i] * x->v[at + i] * r;
        }
        for (int64_t i = 0; i < dim; i++)
            x->d[at + i] += r * (n->d[at + i] * w->v[i] - x->v[at + i] * r * r * dot);
    }
}

/* to += R from, or its inverse. */
static void turn_rows(const node *n, const double *from, double *to, double sign)
{
    const int64_t dim = n->turn.dim, half = dim / 2;
    for (int64_t r = 0; r < n->rows; r++)
        for (int64_t head = 0; head < n->cols / dim; head++)
            for (int64_t m = 0; m < half; m++) {
                const int64_t at = r * n->cols + head * dim;
                const int64_t i = at + (n->turn.is_half_split ? m : 2 * m);
                const int64_t j = n->turn.is_half_split ? i + half : i + 1;
                const double c = n->turn.cosine[r * half + m];
                const double s = sign * n->turn.sine[r * half + m];
                to[i] += from[i] * c - from[j] * s;
                to[j] += from[i] * s + from[j] * c;
            }
}

tape_node tape_rotate(tape *t, tape_node x, const tape_turn *turn)
{
    node *n = like(t, ROTATE, x);
    n->turn = *turn;
    turn_rows(n, t->node[x].v, n->v, 1.0);
    return last(t);
}

/* p[j] = probability that row i of a head gives to row j. */
static void probabilities(const node *q, const node *k, int64_t i, int64_t first, int64_t dim,
                          double *p)
{
    double sum = 0.0, most = -INFINITY;
    for (int64_t j = 0; j < q->rows; j++) {
        p[j] = 0.0;
        for (int64_t e = first; e < first + dim; e++)
            p[j] += q->v[i * q->cols + e] * k->v[j * q->cols + e] / sqrt((double)dim);
        most = fmax(most, p[j]);
    }
    for (int64_t j = 0; j < q->rows; j++)
        sum += p[j] = exp(p[j] - most);
    for (int64_t j = 0; j < q->rows; j++)
        p[j] /= sum;
}

tape_node tape_attention(tape *t, const tape_node qkv[3], int64_t head_numel)
{
    node *n = like(t, ATTENTION, qkv[0]);
    const node *v = &t->node[qkv[2]];
    const int64_t dim = n->cols / head_numel;
    double *p = zeroed((size_t)n->rows, sizeof *p);
    memcpy(n->in, qkv, sizeof n->in);
    n->head_numel = head_numel;
    for (int64_t first = 0; first < n->cols; first += dim)
        for (int64_t i = 0; i < n->rows; i++) {
            probabilities(&t->node[qkv[0]], &t->node[qkv[1]], i, first, dim, p);
            for (int64_t j = 0; j < n->rows; j++)
                for (int64_t e = first; e < first + dim; e++)
                    n->v[i * n->cols + e] += p[j] * v->v[j * n->cols + e];
        }
    free(p);
    return last(t);
}

static void attention_back(tape *t, const node *n)
{
    const node *q = &t->node[n->in[0]], *k = &t->node[n->in[1]], *v = &t->node[n->in[2]];
    const int64_t dim = n->cols / n->head_numel, cols = n->cols;
    double *p = zeroed((size_t)n->rows, sizeof *p), *d_p = zeroed((size_t)n->rows, sizeof *d_p);
    for (int64_t first = 0; first < cols; first += dim)
        for (int64_t i = 0; i < n->rows; i++) {
            double mean = 0.0;
            probabilities(q, k, i, first, dim, p);
            for (int64_t j = 0; j < n->rows; j++) {
                d_p[j] = 0.0;
                for (int64_t e = first; e < first + dim; e++) {
                    d_p[j] += n->d[i * cols + e] * v->v[j * cols + e];
                    v->d[j * cols + e] += p[j] * n->d[i * cols + e];
                }
                mean += p[j] * d_p[j];
            }
            for (int64_t j = 0; j < n->rows; j++) {
                const double d_s = p[j] * (d_p[j] - mean) / sqrt((double)dim);
                for (int64_t e = first; e < first + dim; e++) {
                    q->d[i * cols + e] += d_s * k->v[j * cols + e];
                    k->d[j * cols + e] += d_s * q->v[i * cols + e];
                }
            }
        }
    free(p);
    free(d_p);
}

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    const double root = sqrt(2.0 / acos(-1.0));
    const double th = tanh(root * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + th) + 0.5 * x * (1.0 - th * th) * root * (1.0 + 0.134145 * x * x);
}

static double silu_slope(double x)
{
    const double s = 1.0 / (1.0 + exp(-x));
    return s + x * s * (1.0 - s);
}

tape_node tape_gelu_tanh(tape *t, tape_node x)
{
    node *n = like(t, GELU, x);
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = gelu(t->node[x].v[i]);
    return last(t);
}

tape_node tape_silu(tape *t, tape_node x)
{
    node *n = like(t, SILU, x);
    for (int64_t i = 0; i < n->rows * n->cols; i++)
        n->v[i] = t->node[x].v[i] / (1.0 + exp(-t->node[x].v[i]));
    return last(t);
}

/* Rows and columns of `inner` and where they begin in `outer`; values or gradients. */
static void place(const node *outer, const node *inner, int64_t row, int64_t col, bool is_back)
{
    for (int64_t r = 0; r < inner->rows; r++)
        for (int64_t i = 0; i < inner->cols; i++) {
            const int64_t at = (row + r) * outer->cols + col + i;
            if (is_back)
                inner->d[r * inner->cols + i] += outer->d[at];
            else
                outer->v[at] = inner->v[r * inner->cols + i];
        }
}

/* The other way around: `inner` is a part of `outer`. */
static void cut(const node *outer, const node *inner, int64_t row, int64_t col, bool is_back)
{
    for (int64_t r = 0; r < inner->rows; r++)
        for (int64_t i = 0; i < inner->cols; i++) {
            const int64_t at = (row + r) * outer->cols + col + i;
            if (is_back)
                outer->d[at] += inner->d[r * inner->cols + i];
            else
                inner->v[r * inner->cols + i] = outer->v[at];
        }
}

tape_node tape_slice_rows(tape *t, tape_node x, int64_t first, int64_t numel)
{
    node *n = add(t, SLICE_ROWS, numel, t->node[x].cols);
    n->in[0] = x;
    n->first = first;
    cut(&t->node[x], n, first, 0, false);
    return last(t);
}

tape_node tape_slice_cols(tape *t, tape_node x, int64_t first, int64_t numel)
{
    node *n = add(t, SLICE_COLS, t->node[x].rows, numel);
    n->in[0] = x;
    n->first = first;
    cut(&t->node[x], n, 0, first, false);
    return last(t);
}

tape_node tape_join_rows(tape *t, tape_node a, tape_node b)
{
    node *n = add(t, JOIN_ROWS, t->node[a].rows + t->node[b].rows, t->node[a].cols);
    n->in[0] = a;
    n->in[1] = b;
    place(n, &t->node[a], 0, 0, false);
    place(n, &t->node[b], t->node[a].rows, 0, false);
    return last(t);
}

tape_node tape_join_cols(tape *t, tape_node a, tape_node b)
{
    node *n = add(t, JOIN_COLS, t->node[a].rows, t->node[a].cols + t->node[b].cols);
    n->in[0] = a;
    n->in[1] = b;
    place(n, &t->node[a], 0, 0, false);
    place(n, &t->node[b], 0, t->node[a].cols, false);
    return last(t);
}

tape_node tape_square_error(tape *t, tape_node y, const double *target, const double *weight)
{
    node *n = add(t, SQUARE_ERROR, 1, 1);
    const node *a = &t->node[y];
    n->in[0] = y;
    n->target = target;
    n->weight = weight;
    for (int64_t i = 0; i < a->rows * a->cols; i++)
        n->v[0] += weight[i / a->cols] * (a->v[i] - target[i]) * (a->v[i] - target[i]);
    return last(t);
}

static void rows_back(tape *t, const node *n)
{
    const node *x = &t->node[n->in[0]], *row = &t->node[n->in[1]];
    for (int64_t i = 0; i < n->rows * n->cols; i++) {
        const double factor = n->op == ADD_ROW ? 1.0 : n->number + row->v[i % n->cols];
        x->d[i] += n->d[i] * factor;
        row->d[i % n->cols] += n->d[i] * (n->op == ADD_ROW ? 1.0 : x->v[i]);
    }
}

static void elements_back(tape *t, const node *n)
{
    const node *x = &t->node[n->in[0]];
    for (int64_t i = 0; i < n->rows * n->cols; i++) {
        const double slope = n->op == GELU   ? gelu_slope(x->v[i])
                             : n->op == SILU ? silu_slope(x->v[i])
                             : n->op == ADD  ? 1.0
                                             : n->number;
        x->d[i] += n->d[i] * slope;
        if (n->op == ADD)
            t->node[n->in[1]].d[i] += n->d[i];
    }
}

static void error_back(tape *t, const node *n)
{
    const node *y = &t->node[n->in[0]];
    for (int64_t i = 0; i < y->rows * y->cols; i++)
        y->d[i] += n->d[0] * 2.0 * n->weight[i / y->cols] * (y->v[i] - n->target[i]);
}

static void node_back(tape *t, const node *n)
{
    const node *a = n->in[0] >= 0 ? &t->node[n->in[0]] : NULL;
    switch (n->op) {
    case LEAF:
        return;
    case LINEAR:
        linear_back(t, n);
        return;
    case ADD_ROW:
    case MUL_ROW:
        rows_back(t, n);
        return;
    case ADD:
    case SCALE:
    case GELU:
    case SILU:
        elements_back(t, n);
        return;
    case LAYER_NORM:
        layer_norm_back(t, n);
        return;
    case RMS_HEADS:
        rms_heads_back(t, n);
        return;
    case ROTATE:
        turn_rows(n, n->d, a->d, -1.0);
        return;
    case ATTENTION:
        attention_back(t, n);
        return;
    case SLICE_ROWS:
        cut(a, n, n->first, 0, true);
        return;
    case SLICE_COLS:
        cut(a, n, 0, n->first, true);
        return;
    case JOIN_ROWS:
    case JOIN_COLS:
        place(n, a, 0, 0, true);
        place(n, &t->node[n->in[1]], n->op == JOIN_ROWS ? a->rows : 0,
              n->op == JOIN_COLS ? a->cols : 0, true);
        return;
    case SQUARE_ERROR:
        error_back(t, n);
        return;
    }
}

void tape_backward(tape *t, tape_node y, const double *d_y)
{
    for (int i = 0; i < t->node_numel; i++)
        memset(t->node[i].d, 0, (size_t)(t->node[i].rows * t->node[i].cols) * sizeof(double));
    memcpy(t->node[y].d, d_y, (size_t)(t->node[y].rows * t->node[y].cols) * sizeof(double));
    for (int i = t->node_numel - 1; i >= 0; i--)
        node_back(t, &t->node[i]);
}
