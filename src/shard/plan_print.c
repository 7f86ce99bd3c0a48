#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/digest.h"
#include "core/memory.h"
#include "shard/plan_exchange.h"
#include "shard/plan_links.h"

/* ---- JSON ---- */

static const char *choice_name(tess_choice c)
{
    return c == TESS_AUTO ? "auto" : c == TESS_ON ? "on" : "off";
}

static tess_status json_options(const tess_plan *plan, tess_json *root)
{
    const tess_plan_options *o = &plan->options;
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(root, "choices", &v));
    TESS_TRY(tess_json_add_i64(v, "world", o->world));
    TESS_TRY(tess_json_add_i64(v, "gather_group", o->gather_group_numel));
    TESS_TRY(tess_json_add_string(v, "reshard_after_forward", choice_name(o->reshard)));
    TESS_TRY(tess_json_add_string(v, "activation_checkpointing", choice_name(o->checkpointing)));
    TESS_TRY(tess_json_add_i64(v, "prefetch", o->prefetch));
    TESS_TRY(tess_json_add_i64(v, "bucket_bytes", o->bucket_nbytes));
    TESS_TRY(tess_json_add_string(v, "reduction", o->is_library ? "library" : "exact"));
    TESS_TRY(tess_json_add_bool(v, "library_once", plan->is_library_once));
    TESS_TRY(tess_json_add_string(v, "exchange", tess_exchange_name(o->exchange)));
    if (o->exchange == TESS_EXCHANGE_AUTO) /* by which links it was decided */
        TESS_TRY(tess_json_add_string(v, "exchange_links",
                                      o->link_across != NULL ? "described" : "usual"));
    TESS_TRY(tess_json_add_i64(v, "units_exchanged_by_node", tess_plan_by_node_numel(plan)));
    TESS_TRY(tess_json_add_string(v, "mode", o->is_full ? "full" : "lora"));
    TESS_TRY(tess_json_add_string(v, "optimizer", o->optimizer->name));
    TESS_TRY(tess_json_add_bool(v, "ema", o->has_ema));
    TESS_TRY(tess_json_add_i64(v, "micro_batches", o->micro_batch_numel));
    TESS_TRY(tess_json_add_i64(v, "slots", plan->slot_numel));
    TESS_TRY(tess_json_add_i64(v, "slot_bytes", (int64_t)plan->slot_nbytes));
    TESS_TRY(tess_json_add_i64(v, "rounds", plan->round_numel));
    TESS_TRY(tess_json_add_i64(v, "sum_levels", plan->level_numel));
    return tess_json_add_string(v, "kernels", o->kernel_path != NULL ? o->kernel_path : "");
}

static tess_status json_unit(const tess_plan *plan, const tess_registry *reg, int i,
                             tess_json *list)
{
    const tess_unit_plan *u = &plan->unit[i];
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_string(v, "name", reg->unit[i].name));
    TESS_TRY(tess_json_add_i64(v, "frozen_bytes", (int64_t)u->frozen_nbytes));
    TESS_TRY(tess_json_add_i64(v, "frozen_shard_bytes", (int64_t)u->frozen_shard_nbytes));
    TESS_TRY(tess_json_add_i64(v, "trainable_elements", u->slab_numel));
    TESS_TRY(tess_json_add_i64(v, "trainable_shard_elements", u->slab_shard_numel));
    TESS_TRY(tess_json_add_bool(v, "exchanged_by_node", u->is_by_node));
    return tess_json_add_bool(v, "gathered", u->bucket_idx >= 0);
}

static tess_status json_bucket(const tess_plan *plan, const tess_registry *reg,
                               const tess_bucket_plan *b, tess_json *list)
{
    tess_json *v = NULL, *units = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_array(v, "units", &units));
    for (int i = 0; i < b->unit_numel; i++)
        TESS_TRY(
            tess_json_add_string(units, NULL, reg->unit[plan->bucket_unit[b->first_idx + i]].name));
    TESS_TRY(tess_json_add_i64(v, "bytes", (int64_t)b->nbytes));
    TESS_TRY(tess_json_add_i64(v, "frozen_shard_bytes", (int64_t)b->frozen_shard_nbytes));
    return tess_json_add_i64(v, "trainable_shard_bytes", (int64_t)b->slab_shard_nbytes);
}

static tess_status json_format(const tess_plan_format *f, tess_json *list)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_string(v, "format", f->format));
    TESS_TRY(tess_json_add_i64(v, "matrices", f->matrix_numel));
    TESS_TRY(tess_json_add_i64(v, "elements", f->numel));
    TESS_TRY(tess_json_add_i64(v, "bytes", (int64_t)f->nbytes));
    return tess_json_add_string(v, "products", f->products);
}

static tess_status json_base(const tess_plan *plan, const tess_registry *reg, tess_json *root)
{
    tess_plan_format *format = NULL;
    tess_json *list = NULL;
    int format_numel = 0;
    TESS_TRY(tess_json_add_array(root, "base", &list));
    TESS_TRY(tess_plan_base(plan, reg, &format, &format_numel));
    tess_status st = TESS_OK;
    for (int i = 0; i < format_numel && st == TESS_OK; i++)
        st = json_format(&format[i], list);
    tess_free(format);
    return st;
}

/* Frozen strings travel in groups, everything else among all ranks. */
static const char *link_of(const tess_plan *plan, const tess_wire *w)
{
    const bool is_frozen = w->wire == TESS_U8_OPAQUE;
    return tess_plan_link_name(plan, is_frozen && !plan->options.is_full ? TESS_TRAFFIC_GATHER
                                                                         : TESS_TRAFFIC_GRADIENT);
}

static tess_status json_wire(const tess_plan *plan, const tess_wire *w, tess_json *list)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_string(v, "name", w->name));
    TESS_TRY(tess_json_add_string(v, "op", tess_comm_op_name(w->op)));
    TESS_TRY(tess_json_add_string(v, "storage", tess_dtype_name(w->storage)));
    TESS_TRY(tess_json_add_string(v, "wire", tess_dtype_name(w->wire)));
    TESS_TRY(tess_json_add_string(v, "accumulate", tess_dtype_name(w->accumulate)));
    TESS_TRY(tess_json_add_i64(v, "elements_per_rank", w->numel_per_rank));
    TESS_TRY(tess_json_add_i64(v, "elements", w->numel_total));
    if (plan->options.node_rank_numel > 0)
        TESS_TRY(tess_json_add_string(v, "link", link_of(plan, w)));
    return tess_json_add_string(v, "decided_by", w->config_key);
}

static tess_status json_buffer(const tess_buffer_plan *b, tess_json *list)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_string(v, "name", b->name));
    TESS_TRY(tess_json_add_string(v, "arena", tess_lifetime_name(b->life)));
    TESS_TRY(tess_json_add_string(v, "dtype", tess_dtype_name(b->dt)));
    TESS_TRY(tess_json_add_i64(v, "elements", b->numel));
    TESS_TRY(tess_json_add_i64(v, "bytes", (int64_t)b->nbytes));
    return tess_json_add_i64(v, "offset", (int64_t)b->offset_nbytes);
}

static tess_status json_memory(const tess_plan *plan, tess_json *root)
{
    tess_json *v = NULL, *list = NULL;
    TESS_TRY(tess_json_add_object(root, "memory_bytes", &v));
    for (int i = 0; i < TESS_LIFE_NUMEL; i++)
        TESS_TRY(tess_json_add_i64(v, tess_lifetime_name((tess_lifetime)i),
                                   (int64_t)plan->arena_nbytes[i]));
    TESS_TRY(tess_json_add_i64(v, "outside_arenas", (int64_t)plan->options.outside_nbytes));
    TESS_TRY(tess_json_add_i64(v, "libraries", (int64_t)plan->options.library_nbytes));
    if (plan->options.kept_nbytes > 0) /* of it */
        TESS_TRY(tess_json_add_i64(v, "decoded_weights", (int64_t)plan->options.kept_nbytes));
    if (plan->options.sample_nbytes > 0)
        TESS_TRY(tess_json_add_i64(v, "samples", (int64_t)plan->options.sample_nbytes));
    TESS_TRY(tess_json_add_i64(v, "host", (int64_t)plan->host_nbytes));
    TESS_TRY(tess_json_add_i64(v, "total", (int64_t)plan->total_nbytes));
    TESS_TRY(tess_json_add_array(root, "buffers", &list));
    for (int i = 0; i < plan->buffer_numel; i++)
        TESS_TRY(json_buffer(&plan->buffer[i], list));
    return TESS_OK;
}

static tess_status json_messages(const tess_plan *plan, tess_json *kind)
{
    const tess_link_messages m = tess_plan_gradient_messages(plan, 0);
    if (plan->options.is_library)
        return TESS_OK; /* the library's own */
    TESS_TRY(tess_json_add_i64(kind, "sent_inside_messages", (int64_t)m.inside));
    return tess_json_add_i64(kind, "sent_across_messages", (int64_t)m.across);
}

/* Payload of a step by link: of rank 0, and of all ranks of its node together. */
static tess_status json_links(const tess_plan *plan, tess_json *step)
{
    static const char *const key[TESS_TRAFFIC_NUMEL] = {"unit_gathers", "gradients",
                                                        "trainable_copies", "codebooks"};
    tess_json *v = NULL, *kind = NULL;
    double sent = 0, received = 0;
    TESS_TRY(tess_json_add_object(step, "links", &v));
    TESS_TRY(tess_json_add_i64(v, "nodes", tess_plan_node_numel(plan)));
    TESS_TRY(tess_json_add_i64(v, "ranks_per_node", plan->options.node_rank_numel));
    for (int i = 0; i < TESS_TRAFFIC_NUMEL; i++) {
        const tess_link_nbytes b = tess_plan_rank_sends(plan, (tess_traffic)i, 0);
        if (!tess_plan_has_traffic(plan, (tess_traffic)i))
            continue;
        TESS_TRY(tess_json_add_object(v, key[i], &kind));
        TESS_TRY(tess_json_add_string(kind, "link", tess_plan_link_name(plan, (tess_traffic)i)));
        TESS_TRY(tess_json_add_i64(kind, "sent_inside_bytes", (int64_t)b.inside));
        TESS_TRY(tess_json_add_i64(kind, "sent_across_bytes", (int64_t)b.across));
        if (i == TESS_TRAFFIC_GRADIENT)
            TESS_TRY(json_messages(plan, kind));
    }
    tess_plan_node_traffic(plan, 0, &sent, &received);
    TESS_TRY(tess_json_add_i64(v, "node_sent_bytes", (int64_t)sent));
    return tess_json_add_i64(v, "node_received_bytes", (int64_t)received);
}

static tess_status json_traffic(const tess_plan *plan, tess_json *root)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(root, "per_step", &v));
    TESS_TRY(tess_json_add_i64(v, "bucket_gathers", plan->gather_numel_per_step));
    TESS_TRY(tess_json_add_i64(v, "gather_bytes_received", (int64_t)plan->gather_nbytes_per_step));
    TESS_TRY(tess_json_add_i64(v, "gradient_bytes_sent", (int64_t)plan->grad_nbytes_per_step));
    TESS_TRY(tess_json_add_i64(v, "trainable_bytes_received", (int64_t)plan->slab_nbytes_per_step));
    TESS_TRY(tess_json_add_i64(v, "sum_bytes_received", (int64_t)plan->ahead_nbytes_per_step));
    if (plan->options.codes.has_books)
        TESS_TRY(tess_json_add_i64(v, "codebook_bytes_received",
                                   (int64_t)plan->options.codes.step_nbytes));
    return plan->options.node_rank_numel > 0 ? json_links(plan, v) : TESS_OK;
}

static tess_status json_codes(const tess_plan *plan, tess_json *root)
{
    const tess_plan_codes *c = &plan->options.codes;
    tess_json *v = NULL;
    if (!c->has_books)
        return TESS_OK;
    TESS_TRY(tess_json_add_object(root, "codebooks", &v));
    TESS_TRY(tess_json_add_string(v, "sharding", c->is_sharded ? "rows" : "replicated"));
    if (c->fits_replicated)
        TESS_TRY(tess_json_add_i64(v, "replicated_bytes_received", (int64_t)c->replicated_nbytes));
    return c->can_shard ? tess_json_add_i64(v, "rows_bytes_received", (int64_t)c->rows_nbytes)
                        : TESS_OK;
}

static tess_status json_reductions(const tess_plan *plan, tess_json *root)
{
    tess_json *list = NULL, *v = NULL;
    TESS_TRY(tess_json_add_array(root, "reductions", &list));
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++) {
        const tess_reduction_cost *c = &plan->reduction_cost[kind];
        TESS_TRY(tess_json_add_object(list, NULL, &v));
        TESS_TRY(tess_json_add_string(v, "name", tess_reduction_name((tess_reduction)kind)));
        TESS_TRY(tess_json_add_bool(v, "chosen", (int)plan->reduction == kind));
        TESS_TRY(tess_json_add_i64(v, "total_bytes", (int64_t)c->total_nbytes));
        TESS_TRY(tess_json_add_i64(v, "gradient_bytes_sent", (int64_t)c->grad_nbytes_per_step));
    }
    return TESS_OK;
}

static tess_status json_fill(const tess_plan *plan, const tess_registry *reg, tess_json *root)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_i64(root, "trainable_parameters", plan->trainable_numel));
    TESS_TRY(json_options(plan, root));
    TESS_TRY(tess_json_add_array(root, "units", &list));
    for (int i = 0; i < plan->unit_numel; i++)
        TESS_TRY(json_unit(plan, reg, i, list));
    TESS_TRY(tess_json_add_array(root, "buckets", &list));
    for (int i = 0; i < plan->bucket_numel; i++)
        TESS_TRY(json_bucket(plan, reg, &plan->bucket[i], list));
    TESS_TRY(json_base(plan, reg, root));
    TESS_TRY(tess_json_add_array(root, "contracts", &list));
    for (int i = 0; i < plan->wire_numel; i++)
        TESS_TRY(json_wire(plan, &plan->wire[i], list));
    TESS_TRY(json_memory(plan, root));
    TESS_TRY(json_reductions(plan, root));
    TESS_TRY(json_codes(plan, root));
    return json_traffic(plan, root);
}

tess_status tess_plan_json(const tess_plan *plan, const tess_registry *reg, tess_json **out)
{
    tess_json *root = NULL;
    TESS_TRY(tess_json_create_object(&root));
    const tess_status st = json_fill(plan, reg, root);
    if (st != TESS_OK) {
        tess_json_destroy(&root);
        return st;
    }
    *out = root;
    return TESS_OK;
}

/* ---- contract ---- */

static tess_status contract_unit(const tess_plan *plan, const tess_registry *reg, int i,
                                 tess_contract *c)
{
    const tess_unit_plan *u = &plan->unit[i];
    char name[TESS_NAME_NBYTES + 16];
    snprintf(name, sizeof name, "unit %s", reg->unit[i].name);
    return tess_contract_add_text(
        c, name, "%zu frozen bytes, shard %zu; %" PRId64 " trainable, shard %" PRId64,
        u->frozen_nbytes, u->frozen_shard_nbytes, u->slab_numel, u->slab_shard_numel);
}

static tess_status contract_plan_digest(const tess_plan *plan, const tess_registry *reg,
                                        tess_contract *c)
{
    tess_json *root = NULL;
    char *text = NULL, hex[TESS_SHA256_HEX_NBYTES];
    size_t nbytes = 0;
    tess_sha256 sha;
    TESS_TRY(tess_plan_json(plan, reg, &root));
    tess_status st = tess_json_dump(root, 0, &text, &nbytes);
    if (st == TESS_OK)
        st = tess_sha256_of(text, nbytes, &sha);
    tess_free(text);
    tess_json_destroy(&root);
    if (st != TESS_OK)
        return st;
    tess_hex(sha.byte, sizeof sha.byte, hex);
    return tess_contract_add_text(c, "plan", "%s", hex);
}

tess_status tess_plan_contract(const tess_plan *plan, const tess_registry *reg,
                               tess_contract *contract)
{
    const tess_plan_options *o = &plan->options;
    TESS_TRY(tess_contract_add_text(contract, "world", "%d", o->world));
    TESS_TRY(tess_contract_add_text(contract, "shard.gather_group", "%d", o->gather_group_numel));
    TESS_TRY(tess_contract_add_text(contract, "shard.exchange", "%s, %d units by node",
                                    tess_exchange_name(o->exchange),
                                    tess_plan_by_node_numel(plan)));
    TESS_TRY(
        tess_contract_add_text(contract, "train.micro_batches", "%" PRId64, o->micro_batch_numel));
    TESS_TRY(tess_contract_add_text(contract, "kernels", "%s",
                                    o->kernel_path != NULL ? o->kernel_path : ""));
    for (int i = 0; i < plan->unit_numel; i++)
        TESS_TRY(contract_unit(plan, reg, i, contract));
    for (int i = 0; i < plan->wire_numel; i++)
        TESS_TRY(tess_contract_add_wire(contract, &plan->wire[i]));
    return contract_plan_digest(plan, reg, contract);
}

/* ---- text ---- */

typedef struct text_buffer {
    char *data;
    int64_t room_nbytes, used_nbytes;
} text_buffer;

static tess_status say(text_buffer *t, const char *fmt, ...) TESS_PRINTF(2, 3);

static tess_status say(text_buffer *t, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    TESS_CHECK(n >= 0 && (size_t)n < sizeof line, TESS_E_RANGE, "plan line too long");
    if (t->used_nbytes + n + 1 > t->room_nbytes) {
        void *grown = t->data;
        const int64_t room = t->room_nbytes * 2 + 4096;
        TESS_TRY(tess_realloc_array(t->used_nbytes, room, 1, &grown));
        t->data = grown;
        t->room_nbytes = room;
    }
    memcpy(t->data + t->used_nbytes, line, (size_t)n + 1);
    t->used_nbytes += n;
    return TESS_OK;
}

static void size_text(double nbytes, char text[24])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    while (nbytes >= 1024 && i < 4) {
        nbytes /= 1024;
        i++;
    }
    snprintf(text, 24, i == 0 ? "%.0f %s" : "%.2f %s", nbytes, unit[i]);
}

static tess_status say_size(text_buffer *t, const char *label, double nbytes)
{
    char size[24];
    size_text(nbytes, size);
    return say(t, "  %-34s %14s\n", label, size);
}

/* Either sharding of codebooks, with what it gathers of codes. */
static tess_status say_codes(text_buffer *t, const tess_plan *plan)
{
    const tess_plan_codes *c = &plan->options.codes;
    if (!c->has_books)
        return TESS_OK;
    TESS_TRY(say_size(t, "codebook exchanges received", c->step_nbytes));
    TESS_TRY(say(t, "codebooks %s; received in a step with gathers of codes\n",
                 c->is_sharded ? "sharded by rows" : "replicated"));
    TESS_TRY(c->fits_replicated ? say_size(t, "replicated", c->replicated_nbytes)
                                : say(t, "  %-34s %14s\n", "replicated", "does not fit"));
    return c->can_shard ? say_size(t, "sharded by rows", c->rows_nbytes) : TESS_OK;
}

/* Units of equal shape follow each other: one line for a run of them. */
static bool is_alike(const tess_plan *plan, int a, int b)
{
    const tess_unit_plan *x = &plan->unit[a], *y = &plan->unit[b];
    return x->frozen_nbytes == y->frozen_nbytes && x->slab_numel == y->slab_numel &&
           (x->bucket_idx >= 0) == (y->bucket_idx >= 0);
}

static tess_status say_units(text_buffer *t, const tess_plan *plan, const tess_registry *reg)
{
    TESS_TRY(say(t, "units (what a stage takes whole)\n  %-22s %12s %12s %14s %10s\n", "name",
                 "frozen", "shard", "trainable", "gathered"));
    for (int i = 0; i < plan->unit_numel;) {
        int end = i + 1;
        while (end < plan->unit_numel && is_alike(plan, i, end))
            end++;
        char name[64], frozen[24], shard[24];
        snprintf(name, sizeof name, end > i + 1 ? "%.20s .. %.20s" : "%.20s", reg->unit[i].name,
                 reg->unit[end - 1].name);
        size_text((double)plan->unit[i].frozen_nbytes, frozen);
        size_text((double)plan->unit[i].frozen_shard_nbytes, shard);
        TESS_TRY(say(t, "  %-22s %12s %12s %14" PRId64 " %10s\n", name, frozen, shard,
                     plan->unit[i].slab_numel, plan->unit[i].bucket_idx >= 0 ? "yes" : "in place"));
        i = end;
    }
    return TESS_OK;
}

static bool is_same_bucket(const tess_bucket_plan *a, const tess_bucket_plan *b)
{
    return a->unit_numel == b->unit_numel && a->nbytes == b->nbytes &&
           a->frozen_shard_nbytes == b->frozen_shard_nbytes &&
           a->slab_shard_nbytes == b->slab_shard_nbytes;
}

static tess_status say_buckets(text_buffer *t, const tess_plan *plan, const tess_registry *reg)
{
    char nbytes[24], given[24];
    if (plan->bucket_numel == 0)
        return TESS_OK;
    size_text((double)plan->slot_nbytes, nbytes);
    TESS_TRY(say(
        t, "buckets (one collective each, into one of %d slot%s of %s)\n  %-22s %6s %12s %14s\n",
        plan->slot_numel, plan->slot_numel == 1 ? "" : "s", nbytes, "units", "", "in a slot",
        "rank gives"));
    for (int i = 0; i < plan->bucket_numel;) {
        const tess_bucket_plan *b = &plan->bucket[i];
        int end = i + 1;
        char name[64], times[16] = "";
        while (end < plan->bucket_numel && is_same_bucket(b, &plan->bucket[end]))
            end++;
        const tess_bucket_plan *last = &plan->bucket[end - 1];
        const int first_unit = plan->bucket_unit[b->first_idx];
        const int last_unit = plan->bucket_unit[last->first_idx + last->unit_numel - 1];
        snprintf(name, sizeof name, last_unit != first_unit ? "%.20s .. %.20s" : "%.20s",
                 reg->unit[first_unit].name, reg->unit[last_unit].name);
        if (end > i + 1)
            snprintf(times, sizeof times, "%d x", end - i);
        size_text((double)b->nbytes, nbytes);
        size_text((double)(b->frozen_shard_nbytes + b->slab_shard_nbytes), given);
        TESS_TRY(say(t, "  %-22s %6s %12s %14s\n", name, times, nbytes, given));
        i = end;
    }
    return TESS_OK;
}

static tess_status say_base(text_buffer *t, const tess_plan *plan, const tess_registry *reg)
{
    tess_plan_format *format = NULL;
    int format_numel = 0;
    TESS_TRY(tess_plan_base(plan, reg, &format, &format_numel));
    tess_status st =
        format_numel > 0 ? say(t, "frozen matrices (how products take them)\n") : TESS_OK;
    for (int i = 0; i < format_numel && st == TESS_OK; i++) {
        char size[24];
        size_text((double)format[i].nbytes, size);
        st = say(t, "  %-28s %6d %12s  %s\n", format[i].format, format[i].matrix_numel, size,
                 format[i].products);
    }
    tess_free(format);
    return st;
}

static tess_status say_contracts(text_buffer *t, const tess_plan *plan)
{
    TESS_TRY(say(t, "contracts (collectives with dtypes)\n"));
    for (int i = 0; i < plan->wire_numel; i++) {
        const tess_wire *w = &plan->wire[i];
        if (plan->wire_numel > 24 && i >= 9 && i < plan->wire_numel - 6) {
            if (i == 9)
                TESS_TRY(say(t, "  ... %d more, in --json\n", plan->wire_numel - 15));
            continue;
        }
        TESS_TRY(say(t, "  %-22s %-14s stored %-9s wire %-9s sum %-9s %12" PRId64 " per rank\n",
                     w->name, tess_comm_op_name(w->op), tess_dtype_name(w->storage),
                     tess_dtype_name(w->wire), tess_dtype_name(w->accumulate), w->numel_per_rank));
    }
    return TESS_OK;
}

/* Every way of summing gradients, so that a choice of shard.reduction can be weighed. */
static tess_status say_reductions(text_buffer *t, const tess_plan *plan)
{
    TESS_TRY(say(t, "reductions\n"));
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++) {
        const tess_reduction_cost *c = &plan->reduction_cost[kind];
        char memory[24], sent[24];
        size_text((double)c->total_nbytes, memory);
        size_text(c->grad_nbytes_per_step, sent);
        TESS_TRY(say(t, "  %-26s memory in all %12s, sent per step %12s%s\n",
                     tess_reduction_name((tess_reduction)kind), memory, sent,
                     (int)plan->reduction == kind ? "  <- this plan" : ""));
    }
    return TESS_OK;
}

static tess_status say_arenas(text_buffer *t, const tess_plan *plan, bool is_host)
{
    for (int i = 0; i < TESS_LIFE_NUMEL; i++)
        if (!plan->options.is_device || tess_lifetime_is_host((tess_lifetime)i) == is_host)
            TESS_TRY(
                say_size(t, tess_lifetime_name((tess_lifetime)i), (double)plan->arena_nbytes[i]));
    return TESS_OK;
}

static tess_status say_memory(text_buffer *t, const tess_plan *plan)
{
    const tess_plan_options *o = &plan->options;
    TESS_TRY(say(t, "memory of every rank%s\n", o->is_device ? ", on its device" : ""));
    TESS_TRY(say_arenas(t, plan, false));
    if (o->library_nbytes > 0)
        TESS_TRY(say_size(t, "libraries, dequantized weights",
                          (double)(o->library_nbytes - o->kept_nbytes)));
    if (o->kept_nbytes > 0)
        TESS_TRY(say_size(t, "weights that stay decoded", (double)o->kept_nbytes));
    TESS_TRY(
        say_size(t, "outside arenas (at most)", (double)(o->outside_nbytes - o->library_nbytes)));
    if (o->sample_nbytes > 0 && !o->is_device)
        TESS_TRY(say_size(t, "samples: tokenizer, logits", (double)o->sample_nbytes));
    TESS_TRY(say_size(t, "total", (double)plan->total_nbytes));
    if (!o->is_device)
        return TESS_OK;
    TESS_TRY(say(t, "memory of every rank, on the host\n"));
    TESS_TRY(say_arenas(t, plan, true));
    TESS_TRY(say_size(t, "loading and checkpoints",
                      (double)(plan->host_nbytes - plan->arena_nbytes[TESS_LIFE_DATA] -
                               plan->arena_nbytes[TESS_LIFE_STAGING] - plan->optimizer_host_nbytes -
                               o->sample_nbytes)));
    if (o->sample_nbytes > 0)
        TESS_TRY(say_size(t, "samples: tokenizer, logits", (double)o->sample_nbytes));
    if (plan->optimizer_host_nbytes > 0)
        TESS_TRY(say_size(t, "sums of the optimizer", (double)plan->optimizer_host_nbytes));
    TESS_TRY(say_size(t, "total", (double)plan->host_nbytes));
    return say(t, "attention\n  cuDNN where the machine has it and it covers the shape, else own "
                  "kernels; a run says which and why\n");
}

static tess_status say_links(text_buffer *t, const tess_plan *plan)
{
    double sent = 0, received = 0;
    char a[24], b[24];
    const int node_numel = tess_plan_node_numel(plan);
    if (node_numel == 0)
        return TESS_OK;
    TESS_TRY(say(t, "links (%d node%s of %d rank%s): sent by rank 0 in a step\n  %-34s %14s %14s\n",
                 node_numel, node_numel == 1 ? "" : "s", plan->options.node_rank_numel,
                 plan->options.node_rank_numel == 1 ? "" : "s", "", "inside a node",
                 "across nodes"));
    for (int i = 0; i < TESS_TRAFFIC_NUMEL; i++) {
        const tess_link_nbytes link = tess_plan_rank_sends(plan, (tess_traffic)i, 0);
        if (!tess_plan_has_traffic(plan, (tess_traffic)i))
            continue;
        size_text(link.inside, a);
        size_text(link.across, b);
        TESS_TRY(say(t, "  %-34s %14s %14s\n", tess_traffic_name((tess_traffic)i), a, b));
    }
    const tess_link_messages m = tess_plan_gradient_messages(plan, 0);
    if (!plan->options.is_library)
        TESS_TRY(say(t, "  %-34s %14.0f %14.0f\n", "messages of gradients", m.inside, m.across));
    tess_plan_node_traffic(plan, 0, &sent, &received);
    size_text(sent, a);
    size_text(received, b);
    return say(t, "  node 0 sends %s to other nodes and receives %s\n", a, b);
}

/* How pieces of gradients travel. Links of a description decide for what is planned, the usual ones
 * for what runs: where it matters, the run file should say. */
static tess_status say_exchange(text_buffer *t, const tess_plan *plan)
{
    const tess_plan_options *o = &plan->options;
    int unit_numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        unit_numel += tess_unit_grad_numel(&plan->unit[i]) > 0;
    if (o->is_library || o->world == 1)
        return TESS_OK;
    if (o->is_device)
        return say(t, "gradient pieces sent straight to owners; NCCL groups messages by node\n");
    const bool is_told = o->exchange == TESS_EXCHANGE_AUTO && o->link_across != NULL;
    return say(t, "gradient pieces sent by node for %d of %d units, straight for the others%s\n",
               tess_plan_by_node_numel(plan), unit_numel,
               is_told ? " (by the links described; a run takes usual ones unless shard.exchange "
                         "says how)"
                       : "");
}

/* What the optimizer keeps, in bytes over all parameters of a rank that learn. */
static tess_status say_state(text_buffer *t, const tess_plan *plan)
{
    double nbytes = 0;
    TESS_TRY(say(t, "optimizer %s keeps", plan->options.optimizer->name));
    for (int i = 0; i < plan->state_array_numel; i++) {
        const tess_state_plan *s = &plan->state[i];
        if (s->numel == 0)
            continue;
        nbytes += (double)TESS_MIN(s->numel, plan->learning_numel) *
                  (double)tess_dtype_block_nbytes(s->array.dt);
        TESS_TRY(say(t, "%s %s %s", i > 0 ? "," : "", s->array.role, tess_dtype_name(s->array.dt)));
    }
    const double each = plan->learning_numel > 0 ? nbytes / (double)plan->learning_numel : 0.0;
    return say(t, ": %.2f bytes a parameter\n", each);
}

static tess_status say_all(text_buffer *t, const tess_plan *plan, const tess_registry *reg)
{
    const tess_plan_options *o = &plan->options;
    const int64_t rest_numel = o->micro_batch_numel % o->world;
    char rest[64] = "";
    if (rest_numel > 0)
        snprintf(rest, sizeof rest, " (the last for %" PRId64 " of the ranks)", rest_numel);
    TESS_TRY(say(
        t, "%d rank%s, gather group %d, %" PRId64 " micro-batches in %d round%s%s, reduction %s\n",
        o->world, o->world == 1 ? "" : "s", o->gather_group_numel, o->micro_batch_numel,
        plan->round_numel, plan->round_numel == 1 ? "" : "s", rest,
        tess_reduction_name(plan->reduction)));
    TESS_TRY(
        say(t, "reshard after forward %s, activation checkpointing %s, prefetch %d, %d slots\n",
            choice_name(o->reshard), choice_name(o->checkpointing), o->prefetch, plan->slot_numel));
    TESS_TRY(say(t, "%" PRId64 " trainable parameters, kernels %s\n", plan->trainable_numel,
                 o->kernel_path != NULL ? o->kernel_path : "-"));
    TESS_TRY(say_exchange(t, plan));
    TESS_TRY(say_state(t, plan));
    TESS_TRY(say_units(t, plan, reg));
    TESS_TRY(say_buckets(t, plan, reg));
    TESS_TRY(say_base(t, plan, reg));
    TESS_TRY(say_contracts(t, plan));
    TESS_TRY(say_memory(t, plan));
    TESS_TRY(say(t, "traffic of rank 0 in a step\n"));
    TESS_TRY(say_size(t, "unit gathers received", plan->gather_nbytes_per_step));
    TESS_TRY(say_size(t, "gradients sent", plan->grad_nbytes_per_step));
    TESS_TRY(say_size(t, "trainable copies received", plan->slab_nbytes_per_step));
    if (plan->options.ahead_sum_numel > 0)
        TESS_TRY(say_size(t, "sums before a step received", plan->ahead_nbytes_per_step));
    TESS_TRY(say_codes(t, plan));
    TESS_TRY(say_links(t, plan));
    return say_reductions(t, plan);
}

tess_status tess_plan_text(const tess_plan *plan, const tess_registry *reg, char **out)
{
    text_buffer t = {0};
    const tess_status st = say_all(&t, plan, reg);
    if (st != TESS_OK) {
        tess_free(t.data);
        return st;
    }
    *out = t.data;
    return TESS_OK;
}
