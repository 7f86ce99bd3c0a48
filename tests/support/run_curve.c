/*
 * [Note: bounds of runs] Kernels of a device give the C twins' bits, but for products and
 * attention, which add in another order: a sum of n products is off by n u, u = 2^-24 = 6e-8, of
 * its terms in f32, whatever the order. In bf16 every stored activation rounds by 2^-9, and one of
 * them that falls to the other side is as large; what tensor cores truncate inside a product (2 u a
 * term) is nothing beside it. All runs are of a few steps. Bounds are for the worst case: two paths
 * of the CPU, which add in different orders, come to 2e-4 of them at most in the runs of
 * tests/cuda.
 *
 * llama: sums of at most 80 products with operands of magnitude 1; three blocks and ten products
 * deep amplify 80 u by less than 100: 80 * 100 * 6e-8 = 5e-4 in f32. In bf16 a mean over tokens of
 * ten roundings deep stays below 10 * 2^-9 = 0.02. Norms go through twice as many products, there
 * and back, and an update in front of them moves weights by as much again: four times that. The
 * head's sums over a vocabulary of 4096 have probabilities for factors: 4096 u = 2.5e-4 of their
 * terms.
 *
 * flux: sums of at most 1280 products (the single block's output); two blocks of some ten products
 * and norms amplify 1280 u by less than 100: 8e-3. Some thirty roundings in bf16: 0.06.
 *
 * rqvae: sums of at most 48 terms, 3e-6, for each of some 20 products on the way; three steps that
 * each move weights by the learning rate, with gradients normalized by AdamW, amplify that by less
 * than 30: 2e-3. vqvae: the same with 96 terms, patches of 4 x 4 with 6 channels: 4e-3. In bf16 ten
 * roundings deep, three steps long: 30 * 2^-9 = 0.06. A code that a rounding moves to its neighbour
 * changes an error by no more than that: the two are equally near. The gradient behind it is
 * another, so norms have no bound. One pass without learning (rqvae-pass, vqvae-pass): the same
 * without the 30, 6e-5 and 1.2e-4.
 */
#include "tests/support/run_curve.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base.h"
#include "core/memory.h"
#include "format/json.h"

static const run_bound bounds[] = {
    {"llama-f32", 5e-4, 2e-3},      {"llama-bf16", 0.02, 0.08},    {"flux-f32", 8e-3, 8e-3},
    {"flux-bf16", 0.06, 0.06},      {"rqvae-f32", 2e-3, INFINITY}, {"rqvae-bf16", 0.06, INFINITY},
    {"rqvae-pass", 6e-5, INFINITY}, {"vqvae-f32", 4e-3, INFINITY}, {"vqvae-pass", 1.2e-4, INFINITY},
};

tess_status run_bound_find(const char *name, const run_bound **out)
{
    char known[256] = "";
    for (int i = 0; i < TESS_NELEM(bounds); i++) {
        const size_t used = strlen(known);
        if (strcmp(bounds[i].name, name) == 0) {
            *out = &bounds[i];
            return TESS_OK;
        }
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", bounds[i].name);
    }
    return TESS_FAIL(TESS_E_ARG, "no bound '%s'; there are %s", name, known);
}

/* ---- reading ---- */

static tess_status add_line(const char *path, const char *line, size_t nbytes, run_curve *out)
{
    tess_json *root = NULL;
    int64_t step = 0;
    TESS_CHECK(out->step_numel < RUN_CURVE_STEP_MAX, TESS_E_FIT, "'%s' has more than %d steps",
               path, RUN_CURVE_STEP_MAX);
    const int i = out->step_numel++;
    TESS_TRY(tess_json_parse(path, line, nbytes, &root));
    tess_status st = tess_json_get_i64(root, "step", &step);
    if (st == TESS_OK && step != i + 1)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s': step %d is missing", path, i + 1);
    if (st == TESS_OK)
        st = tess_json_get_f64(root, "loss", &out->loss[i]);
    if (st == TESS_OK)
        st = tess_json_get_f64(root, "grad_norm", &out->norm[i]);
    tess_json_destroy(&root);
    return st;
}

tess_status run_curve_read(tess_io *io, const char *dir, run_curve *out)
{
    char path[1024], *text = NULL;
    size_t nbytes = 0;
    memset(out, 0, sizeof *out);
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    TESS_TRY(tess_io_read_all(io, path, 1 << 20, &text, &nbytes));
    tess_status st = TESS_OK;
    for (const char *line = text; st == TESS_OK && *line != '\0';) {
        const char *end = strchr(line, '\n');
        st = end != NULL ? add_line(path, line, (size_t)(end - line), out)
                         : TESS_FAIL(TESS_E_FORMAT, "'%s' ends in half a line", path);
        line = end != NULL ? end + 1 : line;
    }
    tess_free(text);
    return st;
}

/* ---- comparing ---- */

static tess_status check_near(const char *what, double want, double got, double bound)
{
    TESS_CHECK(isfinite(want) && isfinite(got), TESS_E_STATE,
               "%s: %.9g, expected %.9g, and both finite", what, got, want);
    TESS_CHECK(isinf(bound) || fabs(got - want) <= bound * fabs(want), TESS_E_STATE,
               "%s: %.9g, expected %.9g; they differ by %.3g of it, the bound is %g", what, got,
               want, fabs(got - want) / fabs(want), bound);
    return TESS_OK;
}

tess_status run_bound_check(const run_bound *bound, const char *what, double want, double got)
{
    return check_near(what, want, got, bound->loss);
}

tess_status run_curve_compare(const run_bound *bound, const run_curve *want, const run_curve *got)
{
    char what[64];
    TESS_CHECK(want->step_numel > 0 && got->step_numel == want->step_numel, TESS_E_STATE,
               "%d steps, expected %d and at least one", got->step_numel, want->step_numel);
    for (int i = 0; i < want->step_numel; i++) {
        snprintf(what, sizeof what, "loss of step %d", i + 1);
        TESS_TRY(check_near(what, want->loss[i], got->loss[i], bound->loss));
        snprintf(what, sizeof what, "norm of step %d", i + 1);
        TESS_TRY(check_near(what, want->norm[i], got->norm[i], bound->norm));
    }
    return TESS_OK;
}

double run_curve_share(const run_bound *bound, const run_curve *want, const run_curve *got)
{
    double most = 0.0;
    for (int i = 0; i < want->step_numel; i++) {
        most = fmax(most, fabs(got->loss[i] - want->loss[i]) / (bound->loss * fabs(want->loss[i])));
        if (isfinite(bound->norm))
            most = fmax(most,
                        fabs(got->norm[i] - want->norm[i]) / (bound->norm * fabs(want->norm[i])));
    }
    return most;
}
