/*
 * The adapter as a PEFT directory; and where it started from the weights, as an adapter of those.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/flux_names.h"
#include "train/session_priv.h"

typedef struct peft_export {
    tess_session *s;
    tess_dtype dt;
    tess_peft_adapter *adapter;
    char (*path)[TESS_NAME_NBYTES];
    int64_t *a_of; /* the adapter whose A it has; its own number where it has one */
    int64_t adapter_numel;
    tess_peft_saved *saved; /* tensors of modules that are trained whole */
    int64_t saved_numel;
    tess_peft_spec *doubled; /* difference: with twice the ranks */
    char *trained_b;         /* difference: B [out, r] of the adapter under way */
    tess_peft_writer *writer;
} peft_export;

bool session_parse_lora(const char *name, char path[TESS_NAME_NBYTES], tess_peft_part *part)
{
    static const char *const suffix[] = {[TESS_PEFT_A] = ".lora_A.weight",
                                         [TESS_PEFT_B] = ".lora_B.weight",
                                         [TESS_PEFT_MAGNITUDE] = ".lora_magnitude_vector"};
    const size_t nbytes = strlen(name);
    for (int i = 0; i < TESS_NELEM(suffix); i++) {
        const size_t end = strlen(suffix[i]);
        if (nbytes > end && strcmp(name + nbytes - end, suffix[i]) == 0) {
            snprintf(path, TESS_NAME_NBYTES, "%.*s", (int)(nbytes - end), name);
            *part = (tess_peft_part)i;
            return true;
        }
    }
    return false;
}

static int64_t adapter_of(const peft_export *e, const char *path)
{
    for (int64_t i = 0; i < e->adapter_numel; i++)
        if (strcmp(e->path[i], path) == 0)
            return i;
    return -1;
}

/* Adapters without an A of their own have that of the first part of their site. */
static tess_status find_shared(peft_export *e)
{
    TESS_TRY(tess_alloc_array(e->adapter_numel, sizeof *e->a_of, (void **)&e->a_of));
    for (int64_t i = 0; i < e->adapter_numel; i++) {
        char first[TESS_FLUX_NAME_NBYTES];
        e->a_of[i] = i;
        if (e->adapter[i].rank > 0)
            continue;
        e->a_of[i] = tess_flux_first_part(e->path[i], first) ? adapter_of(e, first) : -1;
        TESS_CHECK(e->a_of[i] >= 0, TESS_E_STATE, "export: the adapter of '%s' has no A",
                   e->path[i]);
        e->adapter[i].rank = e->adapter[e->a_of[i]].rank;
        e->adapter[i].in_numel = e->adapter[e->a_of[i]].in_numel;
    }
    return TESS_OK;
}

static tess_status list_adapters(peft_export *e)
{
    const tess_registry *reg = &e->s->d.registry;
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->adapter, (void **)&e->adapter));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->path, (void **)&e->path));
    TESS_TRY(tess_alloc_array(reg->param_numel, sizeof *e->saved, (void **)&e->saved));
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        char path[TESS_NAME_NBYTES];
        tess_peft_part part = TESS_PEFT_A;
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        if (!session_parse_lora(p->name, path, &part)) {
            e->saved[e->saved_numel++] =
                (tess_peft_saved){p->name, p->shape_rank, {p->shape[0], p->shape[1]}};
            continue;
        }
        int64_t at = adapter_of(e, path);
        if (at < 0) {
            at = e->adapter_numel++;
            snprintf(e->path[at], TESS_NAME_NBYTES, "%s", path);
            e->adapter[at].path = e->path[at];
        }
        if (part == TESS_PEFT_A) {
            e->adapter[at].rank = p->shape[0];
            e->adapter[at].in_numel = p->shape[1];
        } else {
            e->adapter[at].out_numel = p->shape[0]; /* of B and of the magnitude */
        }
    }
    return find_shared(e);
}

/* Rule of most frozen weights: that of the first quantized one, else of the first. */
static void describe_base(const tess_session *s, char text[TESS_RULE_NBYTES])
{
    snprintf(text, TESS_RULE_NBYTES, "none");
    for (int i = s->d.registry.param_numel - 1; i >= 0; i--) {
        const tess_param *p = &s->d.registry.param[i];
        if (p->role == TESS_ROLE_FROZEN && p->shape_rank == 2 &&
            (tess_format_is_quantized(p->codec.format) || strcmp(text, "none") == 0))
            tess_param_rule(&s->d.registry, p, text);
    }
}

/* ---- against the weights that an adapter started from ---- */

static tess_status double_patterns(const tess_peft_pattern *from, int numel, double factor,
                                   tess_peft_pattern **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(numel, sizeof **out, &memory));
    *out = memory;
    for (int i = 0; i < numel; i++)
        (*out)[i] = (tess_peft_pattern){from[i].pattern, from[i].value * factor};
    return TESS_OK;
}

/* [Note: difference] The weights are W = W0 + s B0 A0 with W0 the base that was made of them, so
 * W0 + s B A = W + s [B, -B0] [A; A0]: an adapter of rank 2r on W. The scale stays, so alpha grows
 * as its divisor does. */
static tess_status double_ranks(peft_export *e)
{
    tess_peft_options o = *tess_peft_spec_options(e->s->d.spec);
    const double factor = o.use_rslora ? sqrt(2.0) : 2.0;
    tess_peft_pattern *rank = NULL, *alpha = NULL;
    for (int64_t i = 0; i < e->adapter_numel; i++)
        e->adapter[i].rank *= 2;
    tess_status st = double_patterns(o.rank_pattern, o.rank_pattern_numel, 2.0, &rank);
    if (st == TESS_OK)
        st = double_patterns(o.alpha_pattern, o.alpha_pattern_numel, factor, &alpha);
    o.rank *= 2;
    o.alpha *= factor;
    o.rank_pattern = rank;
    o.alpha_pattern = alpha;
    if (st == TESS_OK)
        st = tess_peft_spec_create(&o, &e->doubled);
    tess_free(rank);
    tess_free(alpha);
    return st;
}

static tess_status start_peft(peft_export *e, const tess_export_request *request)
{
    tess_session *s = e->s;
    char base_quant[TESS_RULE_NBYTES];
    TESS_TRY(list_adapters(e));
    describe_base(s, base_quant);
    if (request->is_difference)
        TESS_TRY(double_ranks(e));
    const tess_peft_content content = {
        .spec = request->is_difference ? e->doubled : s->d.spec,
        .adapter = e->adapter,
        .adapter_numel = e->adapter_numel,
        .saved = e->saved,
        .saved_numel = e->saved_numel,
        .dt = request->dt,
        .task_type = tess_run_is_flux(s->run) ? NULL : "CAUSAL_LM",
        .identity = {.base_name = s->run->model.path,
                     .base_quant = request->is_difference ? NULL : base_quant,
                     .base_id = request->is_difference ? NULL : s->base_id,
                     .base_previous = s->base_previous,
                     .compute_dtype = tess_dtype_name(s->d.registry.compute_dt),
                     .master_dtype = "f32"}};
    TESS_TRY(tess_io_mkdirs(s->ctx->io, request->dir));
    return tess_peft_writer_create(s->ctx->io, request->dir, &content, &e->writer);
}

static tess_status write_peft_tensor(void *arg, int param_idx, const void *data, size_t nbytes)
{
    peft_export *e = arg;
    const char *name = e->s->d.registry.param[param_idx].name;
    char path[TESS_NAME_NBYTES];
    tess_peft_part part = TESS_PEFT_A;
    int64_t idx = 0;
    if (session_parse_lora(name, path, &part)) {
        const int64_t at = adapter_of(e, path);
        for (int64_t i = 0; part == TESS_PEFT_A && i < e->adapter_numel; i++)
            if (i != at && e->a_of[i] == at)
                TESS_TRY(tess_peft_writer_append(e->writer, i, part, data, nbytes));
        return tess_peft_writer_append(e->writer, at, part, data, nbytes);
    }
    while (idx < e->saved_numel && strcmp(e->saved[idx].name, name) != 0)
        idx++;
    return tess_peft_writer_append_saved(e->writer, idx, data, nbytes);
}

/* First values go into the file in its dtype; they are exact in it. */
static void put_initial(const peft_export *e, const float *from, bool is_negated, int64_t numel,
                        char *to)
{
    for (int64_t i = 0; i < numel; i++) {
        const float v = is_negated ? -from[i] : from[i];
        const uint16_t narrow = tess_bf16_from_f32(v);
        if (e->dt == TESS_F32)
            memcpy(to + i * 4, &v, 4);
        else
            memcpy(to + i * 2, &narrow, 2);
    }
}

/* Rows of [B, -B0], of which B came before. */
static tess_status write_both_b(peft_export *e, int64_t adapter_idx, const float *initial)
{
    const tess_peft_adapter *a = &e->adapter[adapter_idx];
    const int64_t rank = a->rank / 2;
    const size_t row_nbytes = (size_t)rank * tess_dtype_block_nbytes(e->dt);
    char *row = NULL;
    TESS_TRY(tess_alloc(2 * row_nbytes, (void **)&row));
    tess_status st = TESS_OK;
    for (int64_t r = 0; r < a->out_numel && st == TESS_OK; r++) {
        memcpy(row, e->trained_b + (size_t)r * row_nbytes, row_nbytes);
        put_initial(e, initial + r * rank, true, rank, row + row_nbytes);
        st = tess_peft_writer_append(e->writer, adapter_idx, TESS_PEFT_B, row, 2 * row_nbytes);
    }
    tess_free(row);
    return st;
}

static tess_status write_initial_a(peft_export *e, int64_t adapter_idx, const float *initial,
                                   int64_t numel)
{
    char *narrow = NULL;
    const size_t nbytes = (size_t)numel * tess_dtype_block_nbytes(e->dt);
    TESS_TRY(tess_alloc(nbytes, (void **)&narrow));
    put_initial(e, initial, false, numel, narrow);
    const tess_status st =
        tess_peft_writer_append(e->writer, adapter_idx, TESS_PEFT_A, narrow, nbytes);
    tess_free(narrow);
    return st;
}

/* A, B, A of the start and B of the start come in this order for every adapter. */
static tess_status write_difference(void *arg, int param_idx, const void *data, size_t nbytes)
{
    static const char suffix[] = ".lora_A.initial";
    peft_export *e = arg;
    const tess_param *p = &e->s->d.registry.param[param_idx];
    char path[TESS_NAME_NBYTES];
    tess_peft_part part = TESS_PEFT_A;
    if (!session_is_initial(p)) {
        if (!session_parse_lora(p->name, path, &part) || part != TESS_PEFT_B)
            return write_peft_tensor(arg, param_idx, data, nbytes);
        tess_free(e->trained_b);
        e->trained_b = NULL;
        TESS_TRY(tess_alloc(nbytes, (void **)&e->trained_b));
        memcpy(e->trained_b, data, nbytes);
        return TESS_OK;
    }
    const size_t end = strlen(p->name) - (sizeof suffix - 1);
    const bool is_a = strcmp(p->name + end, suffix) == 0;
    snprintf(path, sizeof path, "%.*s", (int)end, p->name);
    return is_a ? write_initial_a(e, adapter_of(e, path), data, p->numel)
                : write_both_b(e, adapter_of(e, path), data);
}

tess_status session_export_peft(tess_session *s, const tess_export_request *request)
{
    peft_export e = {.s = s, .dt = request->dt};
    const session_collection what = {.dt = request->dt,
                                     .wants_initial = request->is_difference,
                                     .sink = request->is_difference ? write_difference
                                                                    : write_peft_tensor};
    const bool is_root = tess_comm_rank(s->world) == 0;
    tess_status st = session_agree(s, is_root ? start_peft(&e, request) : TESS_OK);
    if (st == TESS_OK)
        st = session_collect(s, &what, &e);
    if (st == TESS_OK)
        st = session_agree(s, is_root ? tess_peft_writer_finish(e.writer) : TESS_OK);
    tess_peft_writer_destroy(&e.writer);
    tess_peft_spec_destroy(&e.doubled);
    tess_free(e.trained_b);
    tess_free(e.adapter);
    tess_free(e.path);
    tess_free(e.a_of);
    tess_free(e.saved);
    return st;
}
