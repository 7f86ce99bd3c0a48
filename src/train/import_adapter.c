/* A PEFT adapter as the start of a run: it must be what the run would have made itself. */
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "format/adapter.h"
#include "train/session_priv.h"

static const char *path_of(const tess_session *s)
{
    return s->options.adapter != NULL ? s->options.adapter : s->run->adapter.resume;
}

/* ---- does it fit ---- */

tess_status session_check_origin(tess_session *s, const tess_adapter_origin *origin)
{
    const char *id = origin->id, *quant = origin->quant, *previous = origin->previous;
    const char *was = id != NULL ? id : "(not stated)", *as = quant != NULL ? quant : "not stated";
    if (id != NULL && strcmp(id, s->base_id) == 0)
        return previous != NULL ? tess_strdup(previous, &s->base_previous) : TESS_OK;
    if (s->options.adapter != NULL || s->run->adapter.allow_base_change) {
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "adapter '%s' was trained on base %.16s (%s), this run's base is %.16s",
                      path_of(s), was, as, s->base_id);
        return tess_asprintf(&s->base_previous, "%s%s%s", previous != NULL ? previous : "",
                             previous != NULL ? "," : "", id != NULL ? id : "unknown");
    }
    return TESS_FAIL(TESS_E_CONFIG,
                     "adapter.resume: '%s' was trained on base %.16s (%s), this run's base is "
                     "%.16s; set adapter.allow_base_change=true to accept that",
                     path_of(s), was, as, s->base_id);
}

static tess_status check_base(tess_session *s, const tess_peft_dir *dir)
{
    const tess_adapter_origin origin = {tess_peft_dir_metadata(dir, "base.identity"),
                                        tess_peft_dir_metadata(dir, "base.quant"),
                                        tess_peft_dir_metadata(dir, "base.previous")};
    return session_check_origin(s, &origin);
}

/* Rank and scale may come from patterns: they are compared where they end up. */
static tess_status check_module(const tess_session *s, const tess_peft_dir *dir, const char *path)
{
    const tess_peft_module module = {.path = path,
                                     .is_output_embedding = strcmp(path, "lm_head") == 0};
    tess_peft_match want, found;
    TESS_CHECK(tess_peft_dir_find(dir, path) != NULL, TESS_E_CONFIG,
               "adapter.resume: '%s' has no adapter of '%s'; change lora.targets", path_of(s),
               path);
    TESS_TRY(tess_peft_spec_match(s->d.spec, &module, &want));
    TESS_TRY(tess_peft_spec_match(tess_peft_dir_spec(dir), &module, &found));
    TESS_CHECK(found.is_target, TESS_E_FORMAT,
               "adapter.resume: '%s' holds an adapter of '%s', its adapter_config.json does not "
               "target it",
               path_of(s), path);
    TESS_CHECK(found.rank == want.rank, TESS_E_CONFIG,
               "adapter.resume: '%s' of '%s' has rank %lld, lora.rank is %lld", path, path_of(s),
               (long long)found.rank, (long long)want.rank);
    TESS_CHECK(found.scale == want.scale, TESS_E_CONFIG,
               "adapter.resume: '%s' of '%s' is scaled by %g (alpha %g, rank %lld%s), the run by "
               "%g (lora.alpha %g, lora.rank %lld); set lora.alpha=%g",
               path, path_of(s), found.scale, found.alpha, (long long)found.rank,
               tess_peft_spec_options(tess_peft_dir_spec(dir))->use_rslora ? ", rslora" : "",
               want.scale, want.alpha, (long long)want.rank, found.scale * want.alpha / want.scale);
    return TESS_OK;
}

bool session_adapts(const tess_session *s, const char *path)
{
    char own[TESS_NAME_NBYTES];
    tess_peft_part part = TESS_PEFT_A;
    for (int i = 0; i < s->d.registry.param_numel; i++)
        if (s->d.registry.param[i].role == TESS_ROLE_TRAINABLE &&
            session_parse_lora(s->d.registry.param[i].name, own, &part) && strcmp(own, path) == 0)
            return true;
    return false;
}

static tess_status check_kind(const tess_session *s, const tess_peft_dir *dir)
{
    const bool is_dora = tess_peft_spec_options(tess_peft_dir_spec(dir))->use_dora;
    const bool wants_dora = tess_peft_spec_options(s->d.spec)->use_dora;
    TESS_CHECK(is_dora == wants_dora, TESS_E_CONFIG,
               "adapter.resume: '%s' %s DoRA, the run %s; set lora.dora=%s", path_of(s),
               is_dora ? "is" : "is not", wants_dora ? "is" : "is not", is_dora ? "true" : "false");
    return TESS_OK;
}

/* Nothing of the adapter may be left out without a word. */
static tess_status check_targets(const tess_session *s, const tess_peft_dir *dir)
{
    for (int64_t i = 0; i < tess_peft_dir_tensor_numel(dir); i++) {
        const char *name = NULL;
        char path[TESS_NAME_NBYTES];
        tess_peft_part part = TESS_PEFT_A;
        (void)tess_peft_dir_tensor_at(dir, i, &name);
        const int at = tess_registry_find(&s->d.registry, name);
        if (tess_peft_is_base_copy(dir, name)) {
            tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                          "adapter '%s' holds a copy of a base weight, '%s', which is not read: "
                          "the run's own counts",
                          path_of(s), name);
            continue;
        }
        TESS_CHECK(session_parse_lora(name, path, &part) ||
                       (at >= 0 && s->d.registry.param[at].role == TESS_ROLE_TRAINABLE),
                   TESS_E_CONFIG,
                   "adapter.resume: '%s' holds tensor '%s' as a whole, which this run does not "
                   "train; change lora.modules_to_save",
                   path_of(s), name);
    }
    for (int64_t i = 0; i < tess_peft_dir_adapter_numel(dir); i++) {
        const char *path = tess_peft_dir_adapter_at(dir, i)->path;
        TESS_CHECK(session_adapts(s, path), TESS_E_CONFIG,
                   "adapter.resume: '%s' adapts '%s', which this run does not; change lora.targets "
                   "or lora.exclude",
                   path_of(s), path);
    }
    return TESS_OK;
}

/* ---- weights ---- */

static tess_status widen(tess_view stored, tess_view wide)
{
    const tess_cast_args args = {.src = stored, .dst = wide};
    if (stored.dt != TESS_F16)
        return tess_kernels_cpu.cast(&args, &(tess_stream){0});
    for (int64_t i = 0; i < wide.numel; i++)
        ((float *)wide.data)[i] = tess_f16_to_f32(((const uint16_t *)stored.data)[i]);
    return TESS_OK;
}

/* The tensor of the directory that is this parameter, with its shape. */
static tess_status find_tensor(const tess_session *s, const tess_peft_dir *dir, const tess_param *p,
                               const tess_st_tensor **out)
{
    char path[TESS_NAME_NBYTES], want[128], found[128];
    tess_peft_part part = TESS_PEFT_A;
    if (session_parse_lora(p->name, path, &part))
        TESS_TRY(check_module(s, dir, path));
    const tess_st_tensor *t = tess_peft_dir_tensor(dir, p->name);
    TESS_CHECK(t != NULL, TESS_E_CONFIG,
               "adapter.resume: '%s' has no tensor '%s', which the run trains as a whole; change "
               "lora.modules_to_save",
               path_of(s), p->name);
    tess_st_shape_text(p->shape, p->shape_rank, want, sizeof want);
    tess_st_shape_text(t->dim, t->dim_numel, found, sizeof found);
    TESS_CHECK(strcmp(want, found) == 0, TESS_E_CONFIG,
               "adapter.resume: '%s' of '%s' has shape %s, the run's has %s", p->name, path_of(s),
               found, want);
    *out = t;
    return TESS_OK;
}

/* The part of one tensor that this rank owns. */
static tess_status import_tensor(tess_session *s, const tess_peft_dir *dir, const tess_param *p)
{
    const tess_st_tensor *t = NULL;
    int64_t lo = 0, hi = 0;
    tess_dtype dt = TESS_F32;
    TESS_TRY(find_tensor(s, dir, p, &t));
    TESS_TRY(tess_st_dtype_to_core(t->dtype, &dt));
    tess_plan_owned(s->d.plan, p->unit_idx, tess_comm_rank(s->world), &lo, &hi);
    const int64_t end = TESS_MIN(hi, p->slab_first_idx + p->numel);
    const size_t item = tess_dtype_block_nbytes(dt);
    tess_view work = {0};
    TESS_TRY(tess_runtime_host_work(s->rt, &work));
    const tess_view master = tess_runtime_state(s->rt, p->unit_idx, TESS_STATE_MASTER);
    for (int64_t at = TESS_MAX(lo, p->slab_first_idx); at < end;) {
        const int64_t numel = TESS_MIN(end - at, work.numel / 8); /* as read, and f32 behind it */
        const tess_view wide = tess_view_host((char *)work.data + numel * 4, numel, TESS_F32);
        TESS_TRY(tess_peft_dir_read(dir, t, (at - p->slab_first_idx) * (int64_t)item,
                                    (size_t)numel * item, work.data));
        TESS_TRY(widen(tess_view_host(work.data, numel, dt), wide));
        TESS_TRY(tess_runtime_copy(s->rt, tess_view_slice(master, at - lo, numel), wide));
        at += numel;
    }
    return TESS_OK;
}

static tess_status import_dir(tess_session *s)
{
    tess_peft_dir *dir = NULL;
    TESS_TRY(tess_peft_dir_open(s->ctx->io, path_of(s), &dir));
    tess_status st = check_base(s, dir);
    if (st == TESS_OK)
        st = check_kind(s, dir);
    if (st == TESS_OK)
        st = check_targets(s, dir);
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++)
        if (s->d.registry.param[i].role == TESS_ROLE_TRAINABLE)
            st = import_tensor(s, dir, &s->d.registry.param[i]);
    tess_peft_dir_close(&dir);
    return st;
}

tess_status session_import_adapter(tess_session *s)
{
    char *file = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_adapter_locate(s->ctx->io, path_of(s), &file));
    tess_status st = tess_io_stat(s->ctx->io, file, &kind, &nbytes);
    if (st == TESS_OK)
        st = kind == TESS_IO_FILE || s->d.shares_a /* which also sees that shared A's are equal */
                 ? session_import_file(s, file)
                 : import_dir(s);
    tess_free(file);
    return st;
}
