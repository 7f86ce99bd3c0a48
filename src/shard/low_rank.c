#include "shard/low_rank.h"

#include <math.h>
#include <string.h>

#include "core/arith.h"

enum { OVERSAMPLE_NUMEL = 8, SWEEP_MAX = 40 };

/* Vectors that are iterated. */
static int64_t width_of(int64_t rows, int64_t cols, int64_t rank)
{
    return TESS_MIN(rank + OVERSAMPLE_NUMEL, TESS_MIN(rows, cols));
}

/* A tall matrix twice: [n, l] for products, [l, n] for what works on columns. */
tess_status tess_low_rank_work_numel(int64_t rows, int64_t cols, int64_t rank, int64_t *numel)
{
    const int64_t l = width_of(rows, cols, rank);
    int64_t most = TESS_MAX(rows, cols), sum = 0;
    TESS_TRY(tess_mul_i64(rows, l, numel));
    TESS_TRY(tess_mul_i64(cols, l, &sum));
    TESS_TRY(tess_add_i64(*numel, sum, numel));
    TESS_TRY(tess_mul_i64(most, l, &most));
    return tess_add_i64(*numel, most + l * l + l, numel);
}

/* out [rows, l] = W x, or [cols, l] = W^T x; a part of the rows of `out` per thread. */
typedef struct product {
    const tess_low_rank_args *a;
    const double *x;
    double *out;
    int64_t width;
    bool is_transposed;
} product;

static void add_scaled(double *out, const double *x, double scale, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        out[i] += scale * x[i];
}

static void product_part(void *arg, int part_idx, int part_numel)
{
    const product *p = arg;
    const tess_low_rank_args *a = p->a;
    int64_t lo = 0, hi = 0;
    tess_pool_range(p->is_transposed ? a->cols : a->rows, 1, part_idx, part_numel, &lo, &hi);
    memset(p->out + lo * p->width, 0, (size_t)((hi - lo) * p->width) * sizeof *p->out);
    if (p->is_transposed) {
        for (int64_t r = 0; r < a->rows; r++)
            for (int64_t c = lo; c < hi; c++)
                add_scaled(p->out + c * p->width, p->x + r * p->width,
                           (double)a->w[r * a->cols + c], p->width);
        return;
    }
    for (int64_t r = lo; r < hi; r++)
        for (int64_t c = 0; c < a->cols; c++)
            add_scaled(p->out + r * p->width, p->x + c * p->width, (double)a->w[r * a->cols + c],
                       p->width);
}

static void multiply(const product *p, tess_pool *pool)
{
    product copy = *p;
    tess_pool_run(pool, tess_pool_thread_numel(pool), product_part, &copy);
}

static void transpose(const double *x, int64_t rows, int64_t cols, double *out)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            out[c * rows + r] = x[r * cols + c];
}

static double dot(const double *x, const double *y, int64_t numel)
{
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    for (int64_t i = 0; i < numel; i++)
        sum[i % 4] += x[i] * y[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Columns of x [n, l] orthonormal: Gram-Schmidt, every column twice. A column that the others span
 * becomes 0. */
static void orthonormalize(double *x, int64_t n, int64_t l, double *scratch)
{
    transpose(x, n, l, scratch);
    for (int64_t k = 0; k < l; k++) {
        double *v = scratch + k * n;
        const double before = sqrt(dot(v, v, n));
        for (int pass = 0; pass < 2; pass++)
            for (int64_t j = 0; j < k; j++)
                add_scaled(v, scratch + j * n, -dot(scratch + j * n, v, n), n);
        const double length = sqrt(dot(v, v, n));
        const double scale = length > 1e-13 * before ? 1.0 / length : 0.0;
        for (int64_t i = 0; i < n; i++)
            v[i] *= scale;
    }
    transpose(scratch, l, n, x);
}

/* Rotate two vectors by the angle that makes those of z orthogonal. @return whether they were not
 */
static bool rotate(double *z_p, double *z_q, int64_t n, double *turn_p, double *turn_q, int64_t l)
{
    const double p = dot(z_p, z_p, n), q = dot(z_q, z_q, n), pq = dot(z_p, z_q, n);
    if (fabs(pq) <= 1e-15 * sqrt(p * q))
        return false;
    const double zeta = (q - p) / (2.0 * pq);
    const double t = (zeta >= 0.0 ? 1.0 : -1.0) / (fabs(zeta) + sqrt(1.0 + zeta * zeta));
    const double c = 1.0 / sqrt(1.0 + t * t), s = c * t;
    double *const pair[2][2] = {{z_p, z_q}, {turn_p, turn_q}};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < (k == 0 ? n : l); i++) {
            const double x = pair[k][0][i], y = pair[k][1][i];
            pair[k][0][i] = c * x - s * y;
            pair[k][1][i] = s * x + c * y;
        }
    return true;
}

/* Rows of z [l, n] become orthogonal; `turn` [l, l] is what they were multiplied by. */
static void jacobi(double *z, int64_t n, int64_t l, double *turn)
{
    memset(turn, 0, (size_t)(l * l) * sizeof *turn);
    for (int64_t k = 0; k < l; k++)
        turn[k * l + k] = 1.0;
    bool was_turned = true;
    for (int sweep = 0; sweep < SWEEP_MAX && was_turned; sweep++) {
        was_turned = false;
        for (int64_t p = 0; p < l; p++)
            for (int64_t q = p + 1; q < l; q++)
                was_turned |= rotate(z + p * n, z + q * n, n, turn + p * l, turn + q * l, l);
    }
}

/* The largest length that is left; it is taken out. */
static int64_t take_largest(double *length, int64_t l)
{
    int64_t best = 0;
    for (int64_t k = 1; k < l; k++)
        best = length[k] > length[best] ? k : best;
    return best;
}

/* W ~ Q Z^T with z = Z^T turned: singular values are lengths of its rows, U = Q turn^T. */
static void write_factors(const tess_low_rank_args *a, const double *q, const double *z,
                          const double *turn, double *length)
{
    const int64_t l = width_of(a->rows, a->cols, a->rank);
    memset(a->left, 0, (size_t)(a->rows * a->rank) * sizeof *a->left);
    memset(a->right, 0, (size_t)(a->rank * a->cols) * sizeof *a->right);
    for (int64_t k = 0; k < l; k++)
        length[k] = sqrt(dot(z + k * a->cols, z + k * a->cols, a->cols));
    for (int64_t k = 0; k < TESS_MIN(a->rank, l); k++) {
        const int64_t from = take_largest(length, l);
        const double sigma = length[from], root = sqrt(sigma);
        length[from] = -1.0;
        if (!(sigma > 0.0))
            continue;
        for (int64_t c = 0; c < a->cols; c++)
            a->right[k * a->cols + c] = (float)(z[from * a->cols + c] / root);
        for (int64_t r = 0; r < a->rows; r++)
            a->left[r * a->rank + k] = (float)(dot(q + r * l, turn + from * l, l) * root);
    }
}

void tess_low_rank_factor(const tess_low_rank_args *a, tess_pool *pool)
{
    const int64_t l = width_of(a->rows, a->cols, a->rank);
    double *q = a->work, *z = q + a->rows * l;
    double *scratch = z + a->cols * l, *turn = scratch + TESS_MAX(a->rows, a->cols) * l;
    for (int64_t i = 0; i < a->cols * l; i++)
        z[i] = tess_rng_normal(&a->rng, (uint64_t)i);
    const product there = {a, z, q, l, false}, back = {a, q, z, l, true};
    for (int i = 0; i <= a->power_numel; i++) {
        multiply(&there, pool);
        orthonormalize(q, a->rows, l, scratch);
        multiply(&back, pool);
        if (i < a->power_numel)
            orthonormalize(z, a->cols, l, scratch);
    }
    transpose(z, a->cols, l, scratch);
    jacobi(scratch, a->cols, l, turn);
    write_factors(a, q, scratch, turn, turn + l * l);
}
