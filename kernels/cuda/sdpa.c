#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cuda/sdpa_library_priv.h"

enum { CONFIG_MAX = 16 };

/* -------- life -------- */

static tess_status describe_device(tess_sdpa *sdpa, const char *json)
{
    TESS_CUDNN_TRY(&sdpa->lib,
                   BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &sdpa->described));
    TESS_CUDNN_TRY(&sdpa->lib,
                   BackendSetAttribute(sdpa->described, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                       CUDNN_TYPE_CHAR, (int64_t)strlen(json), json));
    TESS_CUDNN_TRY(&sdpa->lib, BackendFinalize(sdpa->described));
    return TESS_OK;
}

static tess_status open_device(tess_sdpa *sdpa, const char *device_json)
{
    TESS_TRY(tess_cudnn_open(&sdpa->lib));
    const size_t version = sdpa->lib.GetVersion();
    (void)snprintf(sdpa->version, sizeof(sdpa->version), "cuDNN %zu.%zu.%zu", version / 10000,
                   version / 100 % 100, version % 100);
    if (device_json != NULL)
        return describe_device(sdpa, device_json);
    TESS_CUDNN_TRY(&sdpa->lib, Create(&sdpa->handle));
    return TESS_OK;
}

tess_status tess_sdpa_create(const tess_sdpa_settings *settings, const char *device_json,
                             tess_sdpa **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_sdpa), &memory));
    tess_sdpa *sdpa = memory;
    sdpa->settings = *settings;
    sdpa->settings.document_max = TESS_MIN(settings->document_max, TESS_SDPA_DOCUMENT_MAX);
    const tess_status st = open_device(sdpa, device_json);
    if (st != TESS_OK) {
        tess_sdpa_destroy(&sdpa);
        return st;
    }
    *out = sdpa;
    return TESS_OK;
}

static void plan_release(tess_sdpa *sdpa, tess_sdpa_compiled *p)
{
    if (p->execution != NULL)
        (void)sdpa->lib.BackendDestroyDescriptor(p->execution);
    memset(p, 0, sizeof(*p));
}

void tess_sdpa_destroy(tess_sdpa **out)
{
    tess_sdpa *sdpa = *out;
    if (sdpa == NULL)
        return;
    for (int i = 0; i < sdpa->plan_numel; i++)
        plan_release(sdpa, &sdpa->plan[i]);
    if (sdpa->described != NULL)
        (void)sdpa->lib.BackendDestroyDescriptor(sdpa->described);
    if (sdpa->handle != NULL)
        (void)sdpa->lib.Destroy(sdpa->handle);
    tess_free(sdpa);
    *out = NULL;
}

const char *tess_sdpa_version(const tess_sdpa *sdpa) { return sdpa->version; }

/* -------- engines -------- */

/* Descriptors of one search. */
typedef struct search {
    tess_sdpa *sdpa;
    const tess_sdpa_graph *graph;
    cudnnBackendDescriptor_t heuristic;
    cudnnBackendDescriptor_t config[CONFIG_MAX];
    int config_numel;    /* created */
    int64_t found_numel; /* filled by the library, best first */
} search;

static tess_status ask_heuristic(search *f)
{
    const tess_cudnn *lib = &f->sdpa->lib;
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t offered = 0;
    TESS_CUDNN_TRY(lib,
                   BackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &f->heuristic));
    TESS_CUDNN_TRY(lib, BackendSetAttribute(f->heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &f->graph->graph));
    TESS_CUDNN_TRY(lib, BackendSetAttribute(f->heuristic, CUDNN_ATTR_ENGINEHEUR_MODE,
                                            CUDNN_TYPE_HEUR_MODE, 1, &mode));
    if (f->sdpa->described != NULL)
        TESS_CUDNN_TRY(lib,
                       BackendSetAttribute(f->heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
                                           CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &f->sdpa->described));
    TESS_CUDNN_TRY(lib, BackendFinalize(f->heuristic));
    TESS_CUDNN_TRY(lib, BackendGetAttribute(f->heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &offered, NULL));
    const int64_t asked = TESS_MIN(offered, CONFIG_MAX);
    for (; f->config_numel < asked; f->config_numel++)
        TESS_CUDNN_TRY(lib, BackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                                    &f->config[f->config_numel]));
    /* the count that comes back can be smaller than the one offered */
    if (asked > 0)
        TESS_CUDNN_TRY(lib, BackendGetAttribute(f->heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                CUDNN_TYPE_BACKEND_DESCRIPTOR, asked,
                                                &f->found_numel, f->config));
    TESS_CHECK(f->found_numel > 0, TESS_E_UNSUPPORTED,
               "%s has no engine for this attention on this device", f->sdpa->version);
    return TESS_OK;
}

static void search_fini(search *f)
{
    for (int i = 0; i < f->config_numel; i++)
        (void)f->sdpa->lib.BackendDestroyDescriptor(f->config[i]);
    if (f->heuristic != NULL)
        (void)f->sdpa->lib.BackendDestroyDescriptor(f->heuristic);
}

static tess_status engine_of(const tess_cudnn *lib, cudnnBackendDescriptor_t config, int64_t *idx)
{
    cudnnBackendDescriptor_t engine = NULL;
    int64_t numel = 0;
    TESS_CUDNN_TRY(lib, BackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine));
    cudnnStatus_t e = lib->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &numel, &engine);
    if (e == CUDNN_STATUS_SUCCESS)
        e = lib->BackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1,
                                     &numel, idx);
    (void)lib->BackendDestroyDescriptor(engine);
    if (e != CUDNN_STATUS_SUCCESS)
        return tess_cudnn_fail(lib, e, __FILE__, __LINE__, "the number of an engine");
    return TESS_OK;
}

/* Compile one configuration; NULL when it does not compile. */
static cudnnBackendDescriptor_t compile(const tess_sdpa *sdpa, cudnnBackendDescriptor_t config)
{
    const tess_cudnn *lib = &sdpa->lib;
    cudnnBackendDescriptor_t out = NULL;
    if (lib->BackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &out) !=
        CUDNN_STATUS_SUCCESS)
        return NULL;
    cudnnStatus_t e =
        sdpa->handle != NULL
            ? lib->BackendSetAttribute(out, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                       &sdpa->handle)
            : lib->BackendSetAttribute(out, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &sdpa->described);
    if (e == CUDNN_STATUS_SUCCESS)
        e = lib->BackendSetAttribute(out, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (e == CUDNN_STATUS_SUCCESS)
        e = lib->BackendFinalize(out);
    if (e == CUDNN_STATUS_SUCCESS)
        return out;
    (void)lib->BackendDestroyDescriptor(out);
    return NULL;
}

static tess_status work_of(const tess_cudnn *lib, cudnnBackendDescriptor_t execution, size_t *out)
{
    int64_t nbytes = 0, numel = 0;
    TESS_CUDNN_TRY(lib, BackendGetAttribute(execution, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                            CUDNN_TYPE_INT64, 1, &numel, &nbytes));
    *out = (size_t)nbytes;
    return TESS_OK;
}

/* The first configuration that compiles; its execution plan stays with `out`. A described device
 * compiles nothing: its engine is the first one offered. */
static tess_status take_first(search *f, tess_sdpa_compiled *out)
{
    const tess_cudnn *lib = &f->sdpa->lib;
    out->engine.engine_numel = f->found_numel;
    if (f->sdpa->handle == NULL)
        return engine_of(lib, f->config[0], &out->engine.engine_idx);
    for (int64_t i = 0; i < f->found_numel && out->execution == NULL; i++) {
        out->execution = compile(f->sdpa, f->config[i]);
        if (out->execution != NULL)
            TESS_TRY(engine_of(lib, f->config[i], &out->engine.engine_idx));
    }
    TESS_CHECK(out->execution != NULL, TESS_E_UNSUPPORTED,
               "%s: none of %" PRId64 " configurations compiles for this attention",
               f->sdpa->version, f->found_numel);
    out->engine.is_compiled = true;
    return work_of(lib, out->execution, &out->engine.work_nbytes);
}

static tess_status plan_build(tess_sdpa *sdpa, const tess_sdpa_case *c, tess_sdpa_compiled *out)
{
    tess_sdpa_graph graph;
    search f = {.sdpa = sdpa, .graph = &graph};
    memset(out, 0, sizeof(*out));
    out->c = *c;
    tess_status st = tess_sdpa_graph_init(&graph, &sdpa->lib, sdpa->handle, c);
    if (st == TESS_OK)
        st = ask_heuristic(&f);
    if (st == TESS_OK)
        st = take_first(&f, out);
    search_fini(&f);
    tess_sdpa_graph_fini(&graph);
    if (st != TESS_OK)
        plan_release(sdpa, out);
    return st;
}

tess_status tess_sdpa_probe(tess_sdpa *sdpa, const tess_sdpa_case *c, tess_sdpa_engine *out)
{
    tess_sdpa_compiled p;
    TESS_TRY(plan_build(sdpa, c, &p));
    *out = p.engine;
    plan_release(sdpa, &p);
    return TESS_OK;
}

/* -------- plans -------- */

tess_sdpa_case tess_sdpa_case_of(const tess_sdpa *sdpa, const tess_attention_shape *shape,
                                 bool is_packed, bool is_backward)
{
    tess_sdpa_case c;
    memset(&c, 0, sizeof(c));
    c.is_whole = shape->segment_numel > 0;
    c.batch_numel = is_packed ? sdpa->settings.document_max : 1;
    c.length_numel =
        is_packed ? TESS_MIN(shape->longest_numel, shape->token_numel) : shape->token_numel;
    if (c.is_whole) {
        c.batch_numel = shape->token_numel / shape->segment_numel;
        c.length_numel = shape->segment_numel;
    }
    c.dim = shape->dim;
    c.head_numel = shape->head_numel;
    c.kv_head_numel = shape->kv_head_numel;
    c.is_packed = is_packed;
    c.is_backward = is_backward;
    c.is_deterministic = is_backward && sdpa->settings.is_deterministic;
    return c;
}

const tess_sdpa_compiled *tess_sdpa_find(const tess_sdpa *sdpa, const tess_sdpa_case *c)
{
    for (int i = 0; i < sdpa->plan_numel; i++) {
        tess_sdpa_case planned = sdpa->plan[i].c;
        planned.group_kv_numel = c->group_kv_numel;
        if (c->is_packed)
            planned.batch_numel = c->batch_numel;
        if (memcmp(&planned, c, sizeof(planned)) == 0)
            return &sdpa->plan[i];
    }
    return NULL;
}

/* What the deterministic form stores at least: all scores of the group in bf16. */
static bool is_group_small(const tess_sdpa *sdpa, const tess_sdpa_case *c)
{
    const double heads = (double)c->group_kv_numel * (double)(c->head_numel / c->kv_head_numel);
    const double scores =
        (double)c->batch_numel * heads * (double)c->length_numel * (double)c->length_numel;
    return !c->is_deterministic || 2.0 * scores <= (double)sdpa->settings.work_max_nbytes;
}

/* Fewer documents of a pack at a time, down to one, as far as there is room for their places.
 * @return 0: no fewer */
static int64_t smaller_chunk(const tess_sdpa *sdpa, const tess_sdpa_case *c)
{
    const int64_t now = c->batch_numel;
    const int64_t fewer = now % 2 == 0 ? now / 2 : 1;
    const int64_t places = sdpa->settings.document_max / fewer * tess_sdpa_place_stride(fewer);
    return c->is_packed && now > 1 && places <= TESS_SDPA_PLACE_NUMEL ? fewer : 0;
}

/* Build with as many heads at a time as the limit allows, and with as many documents: a call
 * executes once for each group of heads and each chunk of the documents that it has, which are
 * mostly fewer than are planned for. */
static tess_status plan_groups(tess_sdpa *sdpa, tess_sdpa_case *c, tess_sdpa_compiled *out)
{
    const int64_t batch_numel = c->batch_numel;
    for (int64_t split = 1; split <= c->kv_head_numel; split++) {
        if (c->kv_head_numel % split != 0)
            continue;
        c->group_kv_numel = c->kv_head_numel / split;
        for (c->batch_numel = batch_numel; c->batch_numel > 0;
             c->batch_numel = smaller_chunk(sdpa, c)) {
            if (!is_group_small(sdpa, c))
                continue;
            TESS_TRY(plan_build(sdpa, c, out));
            if (out->engine.work_nbytes <= sdpa->settings.work_max_nbytes)
                return TESS_OK;
            plan_release(sdpa, out);
        }
    }
    c->batch_numel = batch_numel;
    return TESS_FAIL(TESS_E_UNSUPPORTED, "one head at a time needs more than %zu MiB of workspace",
                     sdpa->settings.work_max_nbytes >> 20);
}

/* What cuDNN's own front end refuses or works around although engines are named for it. Source:
 * scaled_dot_product_flash_attention.h and sdpa_support_surface.h of NVIDIA/cudnn-frontend. */
static tess_status check_sound(const tess_sdpa *sdpa, const tess_sdpa_case *c)
{
    const size_t version = sdpa->lib.GetVersion();
    const bool is_before_sm_90 = sdpa->settings.capability < 90;
    TESS_CHECK(!c->is_packed || !is_before_sm_90 || (!c->is_backward && version >= 91801),
               TESS_E_UNSUPPORTED, "cuDNN's packs of documents are unsound on sm_%d",
               sdpa->settings.capability);
    TESS_CHECK(!c->is_packed || !c->is_backward || c->dim % 16 == 0, TESS_E_UNSUPPORTED,
               "cuDNN's backward over packs needs heads of a multiple of 16, found %" PRId64,
               c->dim);
    TESS_CHECK(c->is_packed || !c->is_backward || c->length_numel % 128 == 0 || version > 91500,
               TESS_E_UNSUPPORTED,
               "cuDNN before 9.15.1 needs a multiple of 128 tokens in its backward, found %" PRId64,
               c->length_numel);
    return TESS_OK;
}

static tess_status plan_case(tess_sdpa *sdpa, tess_sdpa_case c)
{
    if (tess_sdpa_find(sdpa, &c) != NULL)
        return TESS_OK;
    TESS_CHECK(sdpa->plan_numel < TESS_SDPA_PLAN_MAX, TESS_E_RANGE,
               "attention: more than %d different shapes in a plan; use fewer sizes",
               TESS_SDPA_PLAN_MAX);
    tess_sdpa_compiled *p = &sdpa->plan[sdpa->plan_numel++];
    tess_status st = check_sound(sdpa, &c);
    if (st == TESS_OK)
        st = plan_groups(sdpa, &c, p);
    if (st == TESS_OK) {
        sdpa->library_nbytes = TESS_MAX(sdpa->library_nbytes, p->engine.work_nbytes);
        return TESS_OK;
    }
    /* own kernels take it: not a failure of the plan */
    memset(p, 0, sizeof(*p));
    c.group_kv_numel = 0;
    p->c = c;
    (void)snprintf(p->refusal, sizeof(p->refusal), "%s", tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

tess_status tess_sdpa_plan(tess_sdpa *sdpa, const tess_attention_shape *shape)
{
    if (shape->dt != TESS_BF16 || shape->token_numel == 0)
        return TESS_OK;
    for (int back = 0; back < 2; back++) {
        if (shape->segment_numel > 0 || shape->longest_numel >= shape->token_numel)
            TESS_TRY(plan_case(sdpa, tess_sdpa_case_of(sdpa, shape, false, back != 0)));
        if (shape->segment_numel == 0 && sdpa->settings.document_max > 1)
            TESS_TRY(plan_case(sdpa, tess_sdpa_case_of(sdpa, shape, true, back != 0)));
    }
    return TESS_OK;
}

size_t tess_sdpa_library_nbytes(const tess_sdpa *sdpa) { return sdpa->library_nbytes; }

void tess_sdpa_library_set(tess_sdpa *sdpa, void *memory, size_t nbytes)
{
    sdpa->library_work = memory;
    sdpa->library_work_nbytes = nbytes;
}
