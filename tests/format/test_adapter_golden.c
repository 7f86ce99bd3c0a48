/* Files that diffusers and peft wrote, and files under other trainers' keys, against what those
 * programs compute from them (tests/golden/make_dialects.py). */
#include "adapter_case.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/adapter/"

enum { OUT_MAX = 256 };

static double probe(int64_t j) { return (double)((37 * j) % 101 - 50) / 64.0; }

/* delta W x, and the same sum of magnitudes. */
static void apply(const tess_adapter *a, int64_t idx, double *y, double *most)
{
    const tess_adapter_module *m = tess_adapter_at(a, idx);
    double *delta = calloc(CASE_NUMEL_MAX, 8), *size = calloc(CASE_NUMEL_MAX, 8);
    case_delta(a, idx, delta, size);
    for (int64_t i = 0; i < m->out_numel; i++) {
        y[i] = most[i] = 0.0;
        for (int64_t j = 0; j < m->in_numel; j++) {
            y[i] += delta[i * m->in_numel + j] * probe(j);
            most[i] += size[i * m->in_numel + j] * fabs(probe(j));
        }
    }
    free(delta);
    free(size);
}

static void compare_magnitudes(const tess_adapter *a, int64_t idx, const tess_safetensors *probes)
{
    const tess_adapter_module *m = tess_adapter_at(a, idx);
    char name[128];
    double want[OUT_MAX];
    snprintf(name, sizeof name, "%s.m", m->path);
    const tess_st_tensor *t = tess_safetensors_find(probes, name);
    assert_int_equal(t != NULL, m->has_magnitude);
    if (t == NULL)
        return;
    assert_int_equal(t->numel, m->out_numel);
    assert_ok(tess_safetensors_read(probes, t, 0, (size_t)t->nbytes, want));
    float *found = case_read(a, idx, TESS_ADAPTER_MAGNITUDE);
    for (int64_t i = 0; i < m->out_numel; i++)
        assert_true((double)found[i] == want[i]);
    free(found);
}

/* Both sides sum in f64 over rank and inputs (at most 80 times 6 terms), in other orders. */
static void compare_with_peer(const fixture *f, const char *name, tess_adapter_dialect dialect,
                              int64_t module_numel)
{
    char path[512];
    tess_safetensors *probes = NULL;
    snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
    tess_adapter *a = case_open(f, path, NULL);
    assert_int_equal(tess_adapter_dialect_of(a), dialect);
    assert_int_equal(tess_adapter_numel(a), module_numel);
    snprintf(path, sizeof path, GOLDEN "%s.probe.safetensors", name);
    assert_ok(tess_safetensors_open(f->io, path, &probes));
    for (int64_t i = 0; i < module_numel; i++) {
        const tess_adapter_module *m = tess_adapter_at(a, i);
        const tess_st_tensor *t = tess_safetensors_find(probes, m->path);
        double want[OUT_MAX], found[OUT_MAX], most[OUT_MAX], sum = 0.0;
        assert_non_null(t);
        assert_true(t->numel == m->out_numel && t->numel <= OUT_MAX);
        assert_ok(tess_safetensors_read(probes, t, 0, (size_t)t->nbytes, want));
        apply(a, i, found, most);
        for (int64_t k = 0; k < m->out_numel; k++) {
            sum += most[k];
            if (!(fabs(want[k] - found[k]) <= 2.0 * 480.0 * 0x1p-53 * most[k]))
                fail_msg("%s: '%s' [%lld]: the peer has %.17g, found %.17g", name, m->path,
                         (long long)k, want[k], found[k]);
        }
        assert_true(sum > 0.0);
        compare_magnitudes(a, i, probes);
    }
    tess_safetensors_close(&probes);
    tess_adapter_close(&a);
}

static void test_open_reads_what_diffusers_wrote(void **state)
{
    const fixture *f = *state;
    compare_with_peer(f, "flux", TESS_ADAPTER_DIFFUSERS, 14);
    compare_with_peer(f, "flux_rslora", TESS_ADAPTER_DIFFUSERS, 14);
    compare_with_peer(f, "flux_dora", TESS_ADAPTER_DIFFUSERS, 14);
    compare_with_peer(f, "flux_bare", TESS_ADAPTER_DIFFUSERS, 14);
}

static void test_open_means_what_diffusers_converts(void **state)
{
    const fixture *f = *state;
    compare_with_peer(f, "kohya", TESS_ADAPTER_KOHYA, 6);
    compare_with_peer(f, "kohya_blocks", TESS_ADAPTER_KOHYA, 3);
    compare_with_peer(f, "comfyui", TESS_ADAPTER_COMFYUI, 4);
    compare_with_peer(f, "lora_transformer", TESS_ADAPTER_LORA_TRANSFORMER, 3);
    compare_with_peer(f, "xlabs", TESS_ADAPTER_XLABS, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_open_reads_what_diffusers_wrote),
        format_test(test_open_means_what_diffusers_converts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
