/* What the transformer takes of numbers and positions: computed in f64, rounded once. */
#include <math.h>
#include <string.h>

#include "model/flux.h"

enum { HALF_NUMEL = TESS_FLUX_SINUSOID_NUMEL / 2 };

static const double theta = 10000.0;

void tess_flux_sinusoid(double a, float out[TESS_FLUX_SINUSOID_NUMEL])
{
    for (int i = 0; i < HALF_NUMEL; i++) {
        const double angle = a * exp(-log(theta) * i / HALF_NUMEL);
        out[i] = (float)cos(angle);
        out[HALF_NUMEL + i] = (float)sin(angle);
    }
}

/* Angles of an axis of `dim` elements at position `id`. */
static void put_angles(int64_t id, int64_t dim, float *cos_out, float *sin_out)
{
    for (int64_t j = 0; j < dim / 2; j++) {
        const double angle = (double)id * pow(theta, -2.0 * (double)j / (double)dim);
        cos_out[j] = (float)cos(angle);
        sin_out[j] = (float)sin(angle);
    }
}

static void copy_angles(float *table, int64_t to, int64_t from, int64_t dim)
{
    memcpy(table + to, table + from, (size_t)(dim / 2) * sizeof *table);
}

/* An axis has as many different ids as the image rows or columns: their angles are computed where
 * they stand first and copied from there. */
void tess_flux_rope(const tess_flux_config *config, int64_t text_numel, int64_t height,
                    int64_t width, float *cos_out, float *sin_out)
{
    const int64_t row_numel = config->head_dim / 2;
    int64_t first = 0; /* element of a row where the axis begins */
    for (int axis = 0; axis < TESS_FLUX_AXIS_NUMEL; axis++) {
        const int64_t dim = config->axis_dim[axis];
        for (int64_t token = 0; token < text_numel + height * width; token++) {
            const int64_t k = token - text_numel, column = k < 0 ? 0 : k % width;
            const int64_t id = k < 0 || axis == 0 ? 0 : axis == 1 ? k / width : column;
            /* Token that has this id first: 0, the begin of the row, or that column of row 0. */
            const int64_t source = id == 0 ? 0 : axis == 1 ? token - column : text_numel + column;
            const int64_t to = token * row_numel + first, from = source * row_numel + first;
            if (source == token) {
                put_angles(id, dim, cos_out + to, sin_out + to);
                continue;
            }
            copy_angles(cos_out, to, from, dim);
            copy_angles(sin_out, to, from, dim);
        }
        first += dim / 2;
    }
}
