#include "train/median.h"

#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double tess_median_low(double *value, int64_t numel)
{
    if (numel == 0)
        return 0.0;
    qsort(value, (size_t)numel, sizeof *value, by_value);
    return value[(numel - 1) / 2];
}

double tess_median(double *value, int64_t numel)
{
    const double low = tess_median_low(value, numel);
    return numel == 0 ? 0.0 : (low + value[numel / 2]) / 2;
}
