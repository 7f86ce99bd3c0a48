#include "shard/loader_priv.h"

#include <inttypes.h>
#include <string.h>

#include "core/arith.h"
#include "core/clock.h"
#include "core/half.h"
#include "core/memory.h"
#include "core/rng.h"

enum { PART_ALIGN_NBYTES = 16 };

static tess_init_kind init_of(const tess_param *p, bool is_random)
{
    return p->init == TESS_INIT_SOURCE && is_random ? p->random_init : p->init;
}

static double scale_of(const tess_param *p, bool is_random)
{
    return p->init == TESS_INIT_SOURCE && is_random ? p->random_scale : p->init_scale;
}

/* Trainable tensors with a rule are drawn by their owners; everything else is made whole by one
 * rank. */
static bool is_routed(const tess_param *p, const tess_load_request *q)
{
    if (p->init == TESS_INIT_DERIVED)
        return false; /* comes with another tensor */
    if (p->role == TESS_ROLE_FROZEN)
        return q->wants_frozen;
    return q->wants_trainable && init_of(p, q->is_random) == TESS_INIT_SOURCE;
}

/* Whether tensors are made of this one when it is made. */
static bool has_derived(const tess_param *p, const tess_load_request *q)
{
    return q->wants_frozen && q->wants_trainable && loader_derived_at(p, 0) >= 0;
}

static size_t encoded_nbytes(const tess_param *p)
{
    const int last = p->part_numel - 1;
    return p->part_offset_nbytes[last] + p->part[last].nbytes - p->part_offset_nbytes[0];
}

/* What goes from the rank that makes a tensor to those that own parts of it. */
static size_t travel_nbytes(const tess_param *p)
{
    return p->role == TESS_ROLE_FROZEN ? encoded_nbytes(p) : (size_t)p->numel * sizeof(float);
}

/* What is read of a tensor: an array of `dt`, or the parts of a quantized codec. */
typedef struct stored {
    bool is_coded; /* parts of `codec` */
    bool is_kept;  /* they are what the parameter stores */
    tess_codec codec;
    tess_dtype dt;
    size_t nbytes;
} stored;

static tess_status stored_of(const tess_param *p, const tess_load_request *q, stored *out)
{
    *out = (stored){.dt = TESS_F32};
    if (init_of(p, q->is_random) == TESS_INIT_SOURCE) {
        if (q->source->codec_of != NULL)
            TESS_TRY(q->source->codec_of(q->source->arg, p, &out->codec));
        out->is_coded = q->source->codec_of != NULL && tess_format_is_quantized(out->codec.format);
        if (!out->is_coded)
            TESS_TRY(q->source->dtype_of(q->source->arg, p, &out->dt));
    }
    if (!out->is_coded)
        return tess_nbytes(out->dt, p->numel, &out->nbytes);
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    TESS_TRY(tess_codec_parts(&out->codec, p->numel, part, &part_numel));
    for (int i = 0; i < part_numel; i++)
        out->nbytes += part[i].nbytes;
    out->is_kept = p->role == TESS_ROLE_FROZEN && tess_codec_is_equal(&out->codec, &p->codec);
    return TESS_OK;
}

/* Sizes of the staging areas for one tensor. */
static tess_status size_staging(const tess_registry *reg, const tess_param *p,
                                const tess_load_request *q, size_t size[LOADER_AREA_NUMEL])
{
    stored from;
    TESS_TRY(stored_of(p, q, &from));
    const bool is_widened = p->role == TESS_ROLE_TRAINABLE || from.dt == TESS_F16 ||
                            (from.is_coded && !from.is_kept) ||
                            (loader_has_low_rank(p) && has_derived(p, q));
    size[LOADER_SOURCE] = from.nbytes;
    if (from.is_coded && !from.is_kept) /* decoders want parts at their own alignment */
        size[LOADER_SOURCE] += TESS_CODEC_PART_MAX * PART_ALIGN_NBYTES;
    TESS_TRY(tess_nbytes(TESS_F32, is_widened ? p->numel : 0, &size[LOADER_PLAIN]));
    size[LOADER_ENCODED] = p->role == TESS_ROLE_FROZEN ? encoded_nbytes(p) : 0;
    size[LOADER_ABSMAX] = 0;
    if (p->role == TESS_ROLE_FROZEN && p->codec.double_quant)
        TESS_TRY(tess_nbytes(TESS_F32, tess_ceil_div(p->numel, p->codec.block_numel),
                             &size[LOADER_ABSMAX]));
    size[LOADER_DERIVED] = size[LOADER_SCRATCH] = 0;
    if (has_derived(p, q))
        TESS_TRY(loader_derived_size(reg, p, &size[LOADER_DERIVED], &size[LOADER_SCRATCH]));
    return TESS_OK;
}

tess_status tess_load_plan(const tess_registry *reg, const tess_load_request *request,
                           size_t *nbytes)
{
    size_t most = 0, landing = 0;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        size_t size[LOADER_AREA_NUMEL] = {0}, sum = 0;
        if (!is_routed(p, request))
            continue;
        TESS_TRY(size_staging(reg, p, request, size));
        for (int k = 0; k < LOADER_AREA_NUMEL; k++)
            sum += loader_up(size[k]);
        most = TESS_MAX(most, sum);
        landing = TESS_MAX(landing, loader_up(travel_nbytes(p)));
        for (int k = 0; has_derived(p, request) && loader_derived_at(p, k) >= 0; k++)
            landing =
                TESS_MAX(landing, loader_up(travel_nbytes(&reg->param[loader_derived_at(p, k)])));
    }
    /* A tensor that another rank made lands beside the own one. */
    *nbytes = request->is_device ? most + landing : most;
    return TESS_OK;
}

static tess_status carve(const loader *l, const tess_param *p, staging *s, char **behind)
{
    size_t size[LOADER_AREA_NUMEL] = {0}, at = 0;
    char *base[LOADER_AREA_NUMEL];
    TESS_TRY(size_staging(l->rt->parts.registry, p, l->q, size));
    for (int k = 0; k < LOADER_AREA_NUMEL; k++) {
        base[k] = (char *)l->work.data + at;
        at += loader_up(size[k]);
    }
    TESS_CHECK(at <= (size_t)l->work.numel, TESS_E_STATE,
               "tensor '%s': load staging of %zu bytes exceeds the plan's %" PRId64, p->name, at,
               l->work.numel);
    if (behind != NULL)
        *behind = (char *)l->work.data + at;
    *s = (staging){.source = base[LOADER_SOURCE],
                   .plain = (float *)(void *)base[LOADER_PLAIN],
                   .encoded = base[LOADER_ENCODED],
                   .absmax = (float *)(void *)base[LOADER_ABSMAX],
                   .derived = (float *)(void *)base[LOADER_DERIVED],
                   .scratch = base[LOADER_SCRATCH]};
    return TESS_OK;
}

/* Elements [first, first + numel) of a tensor drawn from its rule. */
typedef struct drawing {
    tess_init_kind init;
    tess_rng rng;
    float scale;
    int64_t first, numel;
    float *dst;
} drawing;

/* An element's value depends on its index alone, so threads do not show. */
static void draw_piece(void *arg, int part_idx, int part_numel)
{
    const drawing *d = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(d->numel, 4, part_idx, part_numel, &lo, &hi);
    const uint64_t first = (uint64_t)(d->first + lo);
    float *dst = d->dst + lo;
    switch (d->init) {
    case TESS_INIT_ZERO:
    case TESS_INIT_SOURCE:
    case TESS_INIT_DERIVED:
        memset(dst, 0, (size_t)(hi - lo) * sizeof *dst);
        return;
    case TESS_INIT_ONE:
        for (int64_t i = 0; i < hi - lo; i++)
            dst[i] = 1.0f;
        return;
    case TESS_INIT_UNIFORM:
        for (int64_t i = 0; i < hi - lo; i++)
            dst[i] = (2.0f * tess_rng_uniform(&d->rng, first + (uint64_t)i) - 1.0f) * d->scale;
        return;
    case TESS_INIT_NORMAL:
        tess_rng_normal_fill(&d->rng, first, hi - lo, d->scale, dst);
        return;
    }
}

static void draw(const loader *l, uint32_t param_idx, int64_t first, int64_t numel, float *dst)
{
    const tess_param *p = &l->rt->parts.registry->param[param_idx];
    drawing d = {.init = init_of(p, l->q->is_random),
                 .rng = tess_rng_make(l->q->seed, TESS_RNG_INIT, param_idx, 0),
                 .scale = (float)scale_of(p, l->q->is_random),
                 .first = first,
                 .numel = numel,
                 .dst = dst};
    tess_pool_run(l->stream.pool, tess_pool_thread_numel(l->stream.pool), draw_piece, &d);
}

static tess_status widen(loader *l, const void *src, tess_dtype dt, float *dst, int64_t numel)
{
    if (dt == TESS_F16) {
        for (int64_t i = 0; i < numel; i++)
            dst[i] = tess_f16_to_f32(((const uint16_t *)src)[i]);
        return TESS_OK;
    }
    const tess_cast_args args = {.src = tess_view_host((void *)(uintptr_t)src, numel, dt),
                                 .dst = tess_view_host(dst, numel, TESS_F32)};
    return l->kernels->cast(&args, &l->stream);
}

void loader_parts_of(const tess_param *p, const staging *s, void *part[TESS_CODEC_PART_MAX])
{
    for (int i = 0; i < p->part_numel; i++)
        part[i] = s->encoded + (p->part_offset_nbytes[i] - p->part_offset_nbytes[0]);
}

tess_status loader_encode(loader *l, const tess_param *p, const staging *s, tess_view values)
{
    void *part[TESS_CODEC_PART_MAX] = {0};
    memset(s->encoded, 0, encoded_nbytes(p));
    loader_parts_of(p, s, part);
    if (tess_format_is_quantized(p->codec.format)) {
        tess_quantize_args args = {
            .codec = p->codec, .src = values, .absmax_work = s->absmax, .tensor_name = p->name};
        memcpy(args.part, part, sizeof part);
        return l->kernels->quantize(&args, &l->stream);
    }
    const tess_cast_args args = {.src = values,
                                 .dst = tess_view_host(part[0], p->numel, p->part[0].dt)};
    return l->kernels->cast(&args, &l->stream);
}

/* The source's own codes and constants. */
static void keep(const tess_param *p, const staging *s)
{
    void *part[TESS_CODEC_PART_MAX] = {0};
    const char *from = s->source;
    memset(s->encoded, 0, encoded_nbytes(p));
    loader_parts_of(p, s, part);
    for (int i = 0; i < p->part_numel; i++) {
        memcpy(part[i], from, p->part[i].nbytes);
        from += p->part[i].nbytes;
    }
}

/* Parts lie one after the other; from the last on they move up to aligned places. */
static void align_parts(char *source, const tess_codec_part *part, int part_numel,
                        const void **place)
{
    size_t from[TESS_CODEC_PART_MAX] = {0}, to[TESS_CODEC_PART_MAX] = {0};
    for (int i = 1; i < part_numel; i++) {
        from[i] = from[i - 1] + part[i - 1].nbytes;
        to[i] = (size_t)tess_round_up((int64_t)(to[i - 1] + part[i - 1].nbytes), PART_ALIGN_NBYTES);
    }
    for (int i = part_numel - 1; i >= 0; i--) {
        memmove(source + to[i], source + from[i], part[i].nbytes);
        place[i] = source + to[i];
    }
}

/* Values of what was read in f32, or where they lie when they need no widening. */
static tess_status values_of(loader *l, const tess_param *p, const staging *s, const stored *from,
                             tess_view *values)
{
    *values = tess_view_host(s->plain, p->numel, TESS_F32);
    if (from->is_coded) {
        tess_codec_part part[TESS_CODEC_PART_MAX];
        tess_dequantize_args args = {.codec = from->codec, .dst = *values};
        int part_numel = 0;
        TESS_TRY(tess_codec_parts(&from->codec, p->numel, part, &part_numel));
        align_parts(s->source, part, part_numel, args.part);
        return l->kernels->dequantize(&args, &l->stream);
    }
    if (p->role == TESS_ROLE_TRAINABLE || from->dt == TESS_F16)
        return widen(l, s->source, from->dt, s->plain, p->numel);
    *values = tess_view_host(s->source, p->numel, from->dt);
    return TESS_OK;
}

static tess_status hash_parts(const tess_param *p, const staging *s, tess_sha256 *out)
{
    tess_sha256_state *state = NULL;
    TESS_TRY(tess_sha256_create(&state));
    tess_status st = TESS_OK;
    for (int i = 0; i < p->part_numel && st == TESS_OK; i++)
        st = tess_sha256_update(state,
                                s->encoded + (p->part_offset_nbytes[i] - p->part_offset_nbytes[0]),
                                p->part[i].nbytes);
    if (st == TESS_OK)
        st = tess_sha256_final(state, out);
    tess_sha256_destroy(&state);
    return st;
}

/* The values as the parameter has them, or what an adapter leaves of them. */
static tess_status store(loader *l, const tess_param *p, const staging *s, tess_view values)
{
    if (!loader_has_low_rank(p))
        return loader_encode(l, p, s, values);
    if (values.data != s->plain) {
        const tess_cast_args args = {.src = values,
                                     .dst = tess_view_host(s->plain, p->numel, TESS_F32)};
        TESS_TRY(l->kernels->cast(&args, &l->stream));
    }
    return loader_take_low_rank(l, p, s);
}

/* Digests of frozen tensors that came with this one. */
static tess_status hash_derived(const loader *l, const tess_param *p, const staging *s,
                                tess_sha256 *tensor_sha)
{
    const tess_registry *reg = l->rt->parts.registry;
    for (int k = 0, idx = 0; (idx = loader_derived_at(p, k)) >= 0; k++)
        if (reg->param[idx].role == TESS_ROLE_FROZEN)
            TESS_TRY(tess_sha256_of(loader_derived_place(reg, p, s, k),
                                    reg->param[idx].part[0].nbytes, &tensor_sha[idx]));
    return TESS_OK;
}

static tess_status read_source(loader *l, const tess_param *p, void *dst, size_t nbytes)
{
    const tess_load_source *source = l->q->source;
    const double start_s = tess_clock_s();
    const tess_status st = source->read(source->arg, p, dst, nbytes);
    l->times.read_s += tess_clock_s() - start_s;
    return st;
}

/* Make one whole tensor: read or draw it, then widen or encode, then what is made of it. */
static tess_status make_tensor(loader *l, int param_idx, tess_sha256 *tensor_sha)
{
    const tess_load_request *q = l->q;
    const tess_param *p = &l->rt->parts.registry->param[param_idx];
    staging s;
    stored from;
    tess_view values;
    TESS_TRY(carve(l, p, &s, NULL));
    TESS_TRY(stored_of(p, q, &from));
    TESS_CHECK(!loader_has_low_rank(p) || (has_derived(p, q) && !from.is_kept), TESS_E_UNSUPPORTED,
               "lora.init: the base of '%s' is made together with the start of its adapter, from "
               "weights; an adapter under way cannot get another one",
               p->name);
    if (init_of(p, q->is_random) == TESS_INIT_SOURCE)
        TESS_TRY(read_source(l, p, s.source, from.nbytes));
    else
        draw(l, (uint32_t)param_idx, 0, p->numel, (float *)(void *)s.source);
    if (from.is_kept) {
        keep(p, &s);
    } else {
        TESS_TRY(values_of(l, p, &s, &from, &values));
        if (p->role == TESS_ROLE_TRAINABLE)
            return TESS_OK;
        TESS_TRY(store(l, p, &s, values));
    }
    if (has_derived(p, q))
        TESS_TRY(loader_take_lengths(l, p, &s));
    if (tensor_sha == NULL)
        return TESS_OK;
    if (has_derived(p, q))
        TESS_TRY(hash_derived(l, p, &s, tensor_sha));
    return hash_parts(p, &s, &tensor_sha[param_idx]);
}

/* ---- routing ---- */

/* A tensor's bytes on their way: its range in the unit's string or slab, and where ranks keep
 * theirs. */
typedef struct route {
    int64_t first_nbytes, end_nbytes; /* of the tensor */
    int64_t shard_nbytes;             /* cut distance */
    int period;                       /* ranks that hold one copy */
} route;

static route route_of(const tess_runtime *rt, const tess_param *p)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[p->unit_idx];
    route r;
    if (p->role == TESS_ROLE_FROZEN) {
        r.first_nbytes = (int64_t)p->part_offset_nbytes[0];
        r.end_nbytes = r.first_nbytes + (int64_t)encoded_nbytes(p);
        r.shard_nbytes = (int64_t)u->frozen_shard_nbytes;
        r.period = plan->options.gather_group_numel;
        return r;
    }
    r.first_nbytes = p->slab_first_idx * 4;
    r.end_nbytes = r.first_nbytes + p->numel * 4;
    r.shard_nbytes = u->slab_shard_numel * 4;
    r.period = rt->world;
    return r;
}

/* The part of the tensor that `rank` keeps; false when it keeps nothing. */
static bool overlap(const route *r, int rank, int64_t *lo, int64_t *hi)
{
    const int member = rank % r->period;
    *lo = TESS_MAX(r->first_nbytes, r->shard_nbytes * member);
    *hi = TESS_MIN(r->end_nbytes, r->shard_nbytes * (member + 1));
    return *lo < *hi;
}

static tess_view home_of(tess_runtime *rt, const tess_param *p)
{
    tess_view home = p->role == TESS_ROLE_FROZEN
                         ? tess_runtime_frozen_shard(rt, p->unit_idx)
                         : tess_runtime_state(rt, p->unit_idx, TESS_STATE_MASTER);
    home.numel = (int64_t)tess_view_nbytes(home);
    home.dt = TESS_U8_OPAQUE;
    return home;
}

/* Tensors on their way: rank `first_maker` + i made the matrix list[i], and of it perhaps others.
 */
typedef struct load_batch {
    const int *list;
    int first_maker, numel;
    int derived; /* which of those travels; -1: the matrix itself */
} load_batch;

/* The tensor that travels from a rank, NULL: none. */
static const tess_param *made_by(const loader *l, const load_batch *b, int rank)
{
    const tess_registry *reg = l->rt->parts.registry;
    const int i = rank - b->first_maker;
    if (i < 0 || i >= b->numel)
        return NULL;
    const tess_param *p = &reg->param[b->list[i]];
    if (b->derived < 0)
        return p;
    const int idx = has_derived(p, l->q) ? loader_derived_at(p, b->derived) : -1;
    return idx >= 0 ? &reg->param[idx] : NULL;
}

static tess_status list_sends(const loader *l, const load_batch *b, int *send_numel)
{
    tess_runtime *rt = l->rt;
    const tess_param *p = made_by(l, b, rt->rank);
    int64_t lo = 0, hi = 0;
    staging s;
    if (p == NULL)
        return TESS_OK;
    const tess_registry *reg = rt->parts.registry;
    const tess_param *maker = &reg->param[b->list[rt->rank - b->first_maker]];
    TESS_TRY(carve(l, maker, &s, NULL));
    const route r = route_of(rt, p);
    char *made = p->role == TESS_ROLE_FROZEN ? s.encoded : (char *)s.plain;
    if (b->derived >= 0)
        made = (char *)loader_derived_place(reg, maker, &s, b->derived);
    for (int peer = 0; peer < rt->world; peer++)
        if (overlap(&r, peer, &lo, &hi))
            rt->pieces[0][(*send_numel)++] = (tess_piece){
                peer, tess_view_host(made + (lo - r.first_nbytes), hi - lo, TESS_U8_OPAQUE)};
    return TESS_OK;
}

/* The own part of what `maker` made, and where it belongs. */
static bool own_part(const loader *l, const load_batch *b, int maker, tess_view *home)
{
    tess_runtime *rt = l->rt;
    const tess_param *p = made_by(l, b, maker);
    if (p == NULL)
        return false;
    const route r = route_of(rt, p);
    int64_t lo = 0, hi = 0;
    if (!overlap(&r, rt->rank, &lo, &hi))
        return false;
    *home = tess_view_slice(home_of(rt, p), lo - r.shard_nbytes * (rt->rank % r.period), hi - lo);
    return true;
}

/* @param[out] landed  what became of the copy from the landing to the device: this rank's alone, so
 * it still takes part in what follows */
static tess_status route_batch(const loader *l, const load_batch *b, tess_view landing,
                               tess_status *landed)
{
    const tess_wire wire = {.op = TESS_COMM_EXCHANGE,
                            .entry_idx = UINT32_MAX,
                            .storage = TESS_U8_OPAQUE,
                            .wire = TESS_U8_OPAQUE,
                            .accumulate = TESS_U8_OPAQUE,
                            .name = "load",
                            .config_key = "model.path"};
    tess_runtime *rt = l->rt;
    tess_piece *receives = rt->pieces[1];
    int send_numel = 0, receive_numel = 0;
    tess_view home = {0};
    TESS_TRY(list_sends(l, b, &send_numel));
    for (int maker = b->first_maker; maker < b->first_maker + b->numel; maker++)
        if (own_part(l, b, maker, &home))
            receives[receive_numel++] = (tess_piece){
                maker, landing.numel > 0 ? tess_view_slice(landing, 0, home.numel) : home};
    tess_stream *stream = tess_comm_reduce_stream(l->world);
    TESS_TRY(tess_comm_exchange(l->world, &wire, rt->pieces[0], send_numel, receives, receive_numel,
                                stream));
    TESS_TRY(tess_stream_finish(stream));
    if (landing.numel > 0 && receive_numel > 0 && *landed == TESS_OK)
        *landed = tess_runtime_copy(rt, home, receives[0].view);
    return TESS_OK;
}

/* Rank r made list[r]. On the host all tensors travel at once, straight to their places; beside a
 * device one after another, through the landing. */
static tess_status route_tensors(const loader *l, const int *list, int numel, int derived)
{
    tess_status landed = TESS_OK;
    if (!l->is_device)
        return route_batch(l, &(load_batch){list, 0, numel, derived},
                           tess_view_host(NULL, 0, TESS_U8_OPAQUE), &landed);
    char *behind = l->work.data;
    if (l->rt->rank < numel) {
        staging s;
        TESS_TRY(carve(l, &l->rt->parts.registry->param[list[l->rt->rank]], &s, &behind));
    }
    const tess_view landing = tess_view_slice(l->work, behind - (char *)l->work.data,
                                              l->work.numel - (behind - (char *)l->work.data));
    for (int maker = 0; maker < numel; maker++)
        TESS_TRY(route_batch(l, &(load_batch){list + maker, maker, 1, derived}, landing, &landed));
    return tess_agree(l->rt->parts.world, landed);
}

/* Elements [first, first + master.numel) of a tensor, drawn where they belong. */
static tess_status draw_part(const loader *l, int param_idx, int64_t first, tess_view master)
{
    const int64_t chunk_numel = l->is_device ? l->work.numel / 4 : master.numel;
    for (int64_t at = 0; at < master.numel; at += chunk_numel) {
        const int64_t numel = TESS_MIN(chunk_numel, master.numel - at);
        const tess_view part = tess_view_slice(master, at, numel);
        float *dst = l->is_device ? l->work.data : part.data;
        draw(l, (uint32_t)param_idx, first + at, numel, dst);
        if (l->is_device)
            TESS_TRY(tess_runtime_copy(l->rt, part, tess_view_host(dst, numel, TESS_F32)));
    }
    return TESS_OK;
}

static tess_status draw_owned(const loader *l)
{
    tess_runtime *rt = l->rt;
    const tess_registry *reg = rt->parts.registry;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        int64_t lo = 0, hi = 0;
        if (p->role != TESS_ROLE_TRAINABLE || !l->q->wants_trainable || is_routed(p, l->q) ||
            p->init == TESS_INIT_DERIVED)
            continue;
        tess_plan_owned(rt->parts.plan, p->unit_idx, rt->rank, &lo, &hi);
        const int64_t first = TESS_MAX(lo, p->slab_first_idx);
        const int64_t end = TESS_MIN(hi, p->slab_first_idx + p->numel);
        const tess_view master = tess_runtime_state(rt, p->unit_idx, TESS_STATE_MASTER);
        if (first < end)
            TESS_TRY(draw_part(l, i, first - p->slab_first_idx,
                               tess_view_slice(master, first - lo, end - first)));
    }
    return TESS_OK;
}

static bool any_derived(const loader *l, const int *list, int numel, int k)
{
    const load_batch all = {list, 0, numel, k};
    for (int maker = 0; maker < numel; maker++)
        if (made_by(l, &all, maker) != NULL)
            return true;
    return false;
}

/* One round: every rank makes one tensor, all agree, then the bytes travel. */
static tess_status load_round(loader *l, const int *list, int numel, tess_sha256 *tensor_sha)
{
    tess_status st = TESS_OK;
    const double start_s = tess_clock_s(), before_s = l->times.read_s;
    if (l->rt->rank < numel) {
        const int mine = list[l->rt->rank];
        st = make_tensor(l, mine, tensor_sha);
    }
    const double made_s = tess_clock_s();
    l->times.make_s += made_s - start_s - (l->times.read_s - before_s);
    TESS_TRY(tess_agree(l->rt->parts.world, st));
    TESS_TRY(route_tensors(l, list, numel, -1));
    for (int k = 0; k < LOADER_DERIVED_MAX; k++)
        if (any_derived(l, list, numel, k))
            TESS_TRY(route_tensors(l, list, numel, k));
    l->times.distribute_s += tess_clock_s() - made_s;
    return TESS_OK;
}

/* Each tensor's digest is known to the rank that made it; bytes of the others are zero, so sums
 * share them. */
static tess_status share_digests(tess_runtime *rt, tess_sha256 *tensor_sha)
{
    int64_t wide[TESS_SHA256_NBYTES];
    for (int i = 0; i < rt->parts.registry->param_numel; i++) {
        for (int k = 0; k < TESS_SHA256_NBYTES; k++)
            wide[k] = tensor_sha[i].byte[k];
        TESS_TRY(tess_comm_control(rt->parts.world, wide, TESS_SHA256_NBYTES, NULL, 0));
        for (int k = 0; k < TESS_SHA256_NBYTES; k++)
            tensor_sha[i].byte[k] = (uint8_t)wide[k];
    }
    return TESS_OK;
}

/* The part of a load that ranks may fail alone. */
static tess_status begin(tess_runtime *rt, const tess_load_request *request, loader *l)
{
    const bool is_device = rt->device->space != TESS_HOST;
    *l = (loader){.rt = rt,
                  .q = request,
                  .kernels = is_device ? &tess_kernels_cpu : rt->parts.kernels,
                  .world = tess_comm_host(rt->parts.world),
                  .is_device = is_device};
    TESS_CHECK(request->is_device == is_device, TESS_E_ARG,
               "load for memory of a %s, the runtime has a %s",
               request->is_device ? "device" : "host", is_device ? "device" : "host");
    tess_stream_init_inline(&l->stream, "load", rt->parts.pool);
    return tess_runtime_host_work(rt, &l->work);
}

tess_status tess_load(tess_runtime *rt, const tess_load_request *request, tess_sha256 *tensor_sha)
{
    const tess_registry *reg = rt->parts.registry;
    void *array = NULL;
    loader l;
    tess_status st = begin(rt, request, &l);
    if (st == TESS_OK)
        st = tess_alloc_array(reg->param_numel, sizeof(int), &array);
    TESS_TRY(tess_agree(rt->parts.world, st));
    int *list = array, numel = 0;
    for (int i = 0; i < reg->param_numel; i++)
        if (is_routed(&reg->param[i], request))
            list[numel++] = i;
    if (tensor_sha != NULL)
        memset(tensor_sha, 0, (size_t)reg->param_numel * sizeof *tensor_sha);
    for (int first = 0; first < numel && st == TESS_OK; first += rt->world)
        st = load_round(&l, list + first, TESS_MIN(numel - first, rt->world), tensor_sha);
    tess_free(list);
    if (st != TESS_OK)
        return st;
    const double draw_s = tess_clock_s();
    st = draw_owned(&l);
    l.times.make_s += tess_clock_s() - draw_s;
    if (request->times != NULL)
        *request->times = l.times;
    if (l.is_device) /* on the host drawing cannot fail */
        st = tess_agree(rt->parts.world, st);
    TESS_TRY(st);
    return tensor_sha != NULL ? share_digests(rt, tensor_sha) : TESS_OK;
}
