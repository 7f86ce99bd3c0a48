/* An adapter in one file (GGUF, say) as the start of a run: as import_adapter.c, which reads PEFT
 * directories, through the reader of every dialect. */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "format/adapter.h"
#include "format/flux_names.h"
#include "train/session_priv.h"

typedef struct file_import {
    tess_session *s;
    const char *path;
    tess_adapter *adapter;
} file_import;

static tess_status check_base(const file_import *f)
{
    const tess_adapter_origin origin = {tess_adapter_metadata(f->adapter, "base.identity"),
                                        tess_adapter_metadata(f->adapter, "base.quant"),
                                        tess_adapter_metadata(f->adapter, "base.previous")};
    return session_check_origin(f->s, &origin);
}

static tess_status check_kind(const file_import *f)
{
    const bool wants_dora = tess_peft_spec_options(f->s->d.spec)->use_dora;
    for (int64_t i = 0; i < tess_adapter_numel(f->adapter); i++) {
        const tess_adapter_module *m = tess_adapter_at(f->adapter, i);
        TESS_CHECK(m->has_magnitude == wants_dora, TESS_E_CONFIG,
                   "adapter.resume: '%s' of '%s' %s DoRA, the run %s; set lora.dora=%s", m->path,
                   f->path, m->has_magnitude ? "is" : "is not", wants_dora ? "is" : "is not",
                   m->has_magnitude ? "true" : "false");
    }
    return TESS_OK;
}

/* Nothing of the adapter may be left out without a word. */
static tess_status check_targets(const file_import *f)
{
    for (int64_t i = 0; i < tess_adapter_numel(f->adapter); i++)
        TESS_CHECK(session_adapts(f->s, tess_adapter_at(f->adapter, i)->path), TESS_E_CONFIG,
                   "adapter.resume: '%s' adapts '%s', which this run does not; change lora.targets "
                   "or lora.exclude",
                   f->path, tess_adapter_at(f->adapter, i)->path);
    return TESS_OK;
}

/* A file keeps alpha in f32, so that scales are equal within its rounding. */
static tess_status check_module(const file_import *f, const tess_adapter_module *m,
                                const tess_param *p, tess_peft_part part)
{
    const tess_peft_module module = {.path = m->path,
                                     .is_output_embedding = strcmp(m->path, "lm_head") == 0};
    const double scale = m->alpha / (double)m->rank;
    const int64_t rows = part == TESS_PEFT_A ? m->rank : m->out_numel;
    const int64_t cols = part == TESS_PEFT_A   ? m->in_numel
                         : part == TESS_PEFT_B ? m->rank
                                               : p->shape[1]; /* of a vector */
    tess_peft_match want;
    TESS_TRY(tess_peft_spec_match(f->s->d.spec, &module, &want));
    TESS_CHECK(fabs(scale - want.scale) <= 0x1p-24 * want.scale, TESS_E_CONFIG,
               "adapter.resume: '%s' of '%s' is scaled by %g (alpha %g, rank %lld), the run by %g; "
               "set lora.alpha=%g",
               m->path, f->path, scale, m->alpha, (long long)m->rank, want.scale,
               scale * want.alpha / want.scale);
    TESS_CHECK(p->shape[0] == rows && p->shape[1] == cols, TESS_E_CONFIG,
               "adapter.resume: '%s' of '%s' has shape [%lld, %lld], the run's has [%lld, %lld]",
               p->name, f->path, (long long)rows, (long long)cols, (long long)p->shape[0],
               (long long)p->shape[1]);
    return TESS_OK;
}

/* The piece of a matrix that this rank owns. */
static tess_status take(const file_import *f, const tess_param *p, float *whole)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(f->s->d.plan, p->unit_idx, tess_comm_rank(f->s->world), &lo, &hi);
    const int64_t first = TESS_MAX(lo, p->slab_first_idx);
    const int64_t numel = TESS_MIN(hi, p->slab_first_idx + p->numel) - first;
    if (numel <= 0)
        return TESS_OK;
    const tess_view master = tess_runtime_state(f->s->rt, p->unit_idx, TESS_STATE_MASTER);
    return tess_runtime_copy(f->s->rt, tess_view_slice(master, first - lo, numel),
                             tess_view_slice(tess_view_host(whole, p->numel, TESS_F32),
                                             first - p->slab_first_idx, numel));
}

/* Where parts of a matrix share one A, the file's are equal. `a` is that of the first part. */
static tess_status check_shared(const file_import *f, const char *path, const tess_param *p,
                                const float *a)
{
    void *other = NULL;
    tess_status st = tess_alloc_array(p->numel, sizeof(float), &other);
    for (int64_t i = 0; i < tess_adapter_numel(f->adapter) && st == TESS_OK; i++) {
        char first[TESS_FLUX_NAME_NBYTES];
        const tess_adapter_module *m = tess_adapter_at(f->adapter, i);
        if (!tess_flux_first_part(m->path, first) || strcmp(first, path) != 0)
            continue;
        if (m->rank * m->in_numel == p->numel)
            st = tess_adapter_read(f->adapter, i, TESS_ADAPTER_A, other);
        if (st == TESS_OK && (m->rank * m->in_numel != p->numel ||
                              memcmp(other, a, (size_t)p->numel * sizeof *a) != 0))
            st = TESS_FAIL(TESS_E_CONFIG,
                           "adapter.resume: '%s': '%s' has another A than '%s', and lora.targets "
                           "kohya trains one for both; choose targets with an A each, such as all",
                           f->path, m->path, path);
    }
    tess_free(other);
    return st;
}

static tess_status import_param(const file_import *f, const tess_param *p)
{
    char path[TESS_NAME_NBYTES];
    static const tess_adapter_part of[] = {[TESS_PEFT_A] = TESS_ADAPTER_A,
                                           [TESS_PEFT_B] = TESS_ADAPTER_B,
                                           [TESS_PEFT_MAGNITUDE] = TESS_ADAPTER_MAGNITUDE};
    tess_peft_part part = TESS_PEFT_A;
    void *whole = NULL;
    const bool is_adapter = session_parse_lora(p->name, path, &part);
    const int64_t idx = is_adapter ? tess_adapter_find(f->adapter, path) : -1;
    TESS_CHECK(
        idx >= 0, TESS_E_CONFIG,
        "adapter.resume: '%s' has nothing for '%s', which the run trains; change lora.targets",
        f->path, p->name);
    TESS_TRY(check_module(f, tess_adapter_at(f->adapter, idx), p, part));
    TESS_TRY(tess_alloc_array(p->numel, sizeof(float), &whole));
    tess_status st = tess_adapter_read(f->adapter, idx, of[part], whole);
    if (st == TESS_OK && part == TESS_PEFT_A && f->s->d.shares_a)
        st = check_shared(f, path, p, whole);
    if (st == TESS_OK)
        st = take(f, p, whole);
    tess_free(whole);
    return st;
}

tess_status session_import_file(tess_session *s, const char *path)
{
    file_import f = {.s = s, .path = path};
    const tess_adapter_options options = {.base = &s->d.config,
                                          .skip_text_encoders = tess_run_is_flux(s->run)};
    TESS_TRY(tess_adapter_open(s->ctx->io, path, &options, &f.adapter));
    if (tess_adapter_skipped_numel(f.adapter) > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "adapter '%s': %lld tensors of text encoders are left out", path,
                      (long long)tess_adapter_skipped_numel(f.adapter));
    tess_status st = check_base(&f);
    if (st == TESS_OK)
        st = check_kind(&f);
    if (st == TESS_OK)
        st = check_targets(&f);
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++)
        if (s->d.registry.param[i].role == TESS_ROLE_TRAINABLE)
            st = import_param(&f, &s->d.registry.param[i]);
    tess_adapter_close(&f.adapter);
    return st;
}
