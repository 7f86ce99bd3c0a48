#include "kernels/cost.h"

#include <string.h>

#include "core/arith.h"

enum { FIELD_NUMEL = sizeof(tess_cost) / sizeof(double) };
_Static_assert(sizeof(tess_cost) == FIELD_NUMEL * sizeof(double), "nothing but doubles");

tess_cost tess_cost_sum(tess_cost a, tess_cost b)
{
    double x[FIELD_NUMEL], y[FIELD_NUMEL];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    const double widest_nbytes = TESS_MAX(a.widest_nbytes, b.widest_nbytes);
    for (int i = 0; i < FIELD_NUMEL; i++)
        x[i] += y[i];
    memcpy(&a, x, sizeof a);
    a.widest_nbytes = widest_nbytes;
    return a;
}

tess_cost tess_cost_times(tess_cost a, double factor)
{
    double x[FIELD_NUMEL];
    const double widest_nbytes = a.widest_nbytes;
    memcpy(x, &a, sizeof a);
    for (int i = 0; i < FIELD_NUMEL; i++)
        x[i] *= factor;
    memcpy(&a, x, sizeof a);
    a.widest_nbytes = widest_nbytes;
    return a;
}

const char *tess_cost_op_name(tess_cost_op op)
{
    static const char *const name[TESS_COST_OP_NUMEL] = {
#define X(name, text, is_flops) text,
        TESS_COST_OP_LIST(X)
#undef X
    };
    return (unsigned)op < TESS_COST_OP_NUMEL ? name[op] : "unknown";
}

bool tess_cost_op_is_flops(tess_cost_op op)
{
    static const bool is_flops[TESS_COST_OP_NUMEL] = {
#define X(name, text, is_flops) is_flops,
        TESS_COST_OP_LIST(X)
#undef X
    };
    return (unsigned)op < TESS_COST_OP_NUMEL && is_flops[op];
}

int tess_cost_extent_class(int64_t m, int64_t n, int64_t k)
{
    const int64_t least = TESS_MIN(TESS_MIN(m, n), k);
    int i = 0;
    while (i + 1 < TESS_COST_EXTENT_NUMEL && least >> (i + 1) > 0)
        i++;
    return i;
}
