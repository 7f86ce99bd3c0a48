#include "dist/comm.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "dist/comm_priv.h"

/* ---- checks on every call ---- */

const char *tess_comm_op_name(tess_comm_op op)
{
    switch (op) {
    case TESS_COMM_ALL_GATHER:
        return "all_gather";
    case TESS_COMM_EXCHANGE:
        return "exchange";
    case TESS_COMM_REDUCE_SCATTER:
        return "reduce_scatter";
    case TESS_COMM_OP_NUMEL:
        break;
    }
    return "?";
}

tess_status tess_comm_ops_check(const tess_comm_ops *ops, const char *name)
{
    const bool is_whole = ops->all_gather != NULL && ops->all_gather_list != NULL &&
                          ops->exchange != NULL && ops->reduce_scatter != NULL &&
                          ops->control != NULL && ops->bcast != NULL && ops->gather_bytes != NULL &&
                          ops->split_group != NULL && ops->destroy != NULL && ops->abort != NULL &&
                          ops->blocked_s != NULL && ops->dump != NULL && ops->describe != NULL &&
                          ops->set_checking != NULL;
    TESS_CHECK(is_whole, TESS_E_STATE, "communicator '%s': its table of functions has a hole",
               name);
    return TESS_OK;
}

static const char *key_of(const tess_wire *wire)
{
    return wire->config_key != NULL ? wire->config_key : "the plan";
}

static tess_status check_call(const tess_comm *comm, const tess_wire *wire, tess_comm_op op,
                              const tess_stream *s)
{
    TESS_CHECK(wire != NULL, TESS_E_ARG, "%s on communicator '%s': no contract given",
               tess_comm_op_name(op), comm->name);
    TESS_CHECK(wire->op == op, TESS_E_ARG, "'%s': called %s, but the contract (entry %u) is for %s",
               wire->name, tess_comm_op_name(op), wire->entry_idx, tess_comm_op_name(wire->op));
    TESS_CHECK(s != NULL && (s == comm->gather || s == comm->reduce), TESS_E_ARG,
               "%s '%s': stream '%s' is not a stream of communicator '%s'; use "
               "tess_comm_gather_stream or tess_comm_reduce_stream",
               tess_comm_op_name(op), wire->name, s != NULL ? s->name : "NULL", comm->name);
    TESS_CHECK(wire->numel_per_rank >= 0, TESS_E_RANGE,
               "%s '%s': the contract says %" PRId64 " elements a rank", tess_comm_op_name(op),
               wire->name, wire->numel_per_rank);
    return TESS_OK;
}

/* `numel` < 0: any. */
static tess_status check_view(const tess_comm *comm, const tess_wire *wire, const char *what,
                              tess_view v, int64_t numel)
{
    const char *op = tess_comm_op_name(wire->op);
    TESS_CHECK(v.dt == wire->wire, TESS_E_DTYPE,
               "%s '%s': wire dtype %s but %s view is %s (numel %" PRId64 ", rank %d); set %s or "
               "cast first",
               op, wire->name, tess_dtype_name(wire->wire), what, tess_dtype_name(v.dt), v.numel,
               comm->first_world_rank + comm->rank, key_of(wire));
    TESS_CHECK(v.numel >= 0 && (numel < 0 || v.numel == numel), TESS_E_DTYPE,
               "%s '%s': %s view has %" PRId64 " elements of %s, the contract says %" PRId64
               " (rank %d, decided by %s)",
               op, wire->name, what, v.numel, tess_dtype_name(v.dt), numel < 0 ? 0 : numel,
               comm->first_world_rank + comm->rank, key_of(wire));
    TESS_CHECK(v.data != NULL || v.numel == 0, TESS_E_ARG,
               "%s '%s': %s view is NULL but has %" PRId64 " elements", op, wire->name, what,
               v.numel);
    TESS_CHECK(v.space == comm->space, TESS_E_ARG,
               "%s '%s': %s view is in %s memory, communicator '%s' needs %s memory", op,
               wire->name, what, v.space == TESS_HOST ? "host" : "device", comm->name,
               comm->space == TESS_HOST ? "host" : "device");
    size_t nbytes = 0;
    TESS_TRY(tess_nbytes(v.dt, v.numel, &nbytes));
    return TESS_OK;
}

/* ---- checked mode ---- */

/* What one rank is about to enqueue. Plain bytes: it travels. */
typedef struct call_card {
    uint64_t seq;
    int64_t numel_per_rank;
    int64_t numel_total;
    uint32_t entry_idx;
    uint8_t op;
    uint8_t wire;
    uint8_t stream;
    uint8_t pad;
    int32_t rank;
    char name[96];
} call_card;

static void card_lanes(const call_card *c, int64_t *max)
{
    const int64_t lane[4] = {
        (int64_t)(c->seq & INT64_MAX),
        (int64_t)c->entry_idx << 24 | c->op << 16 | c->wire << 8 | c->stream,
        c->numel_per_rank,
        c->numel_total,
    };
    for (int i = 0; i < 4; i++) {
        max[2 * i] = lane[i];
        max[2 * i + 1] = -lane[i];
    }
}

static bool card_differs(const call_card *a, const call_card *b)
{
    return a->seq != b->seq || a->entry_idx != b->entry_idx || a->op != b->op ||
           a->wire != b->wire || a->stream != b->stream || a->numel_per_rank != b->numel_per_rank ||
           a->numel_total != b->numel_total;
}

static tess_status refuse_cards(const call_card *a, const call_card *b)
{
    const char *const stream[2] = {"gather", "reduce"};
    return TESS_FAIL(
        TESS_E_CONTRACT,
        "rank %d enqueues %s '%s' (entry %u, sequence %" PRIu64
        " on stream %s, wire dtype %s, %" PRId64
        " elements a rank), rank %d %s '%s' (entry %u, sequence %" PRIu64 " on stream %s, wire "
        "dtype %s, %" PRId64 " elements a rank); all ranks must enqueue the same collectives",
        b->rank, tess_comm_op_name((tess_comm_op)b->op), b->name, b->entry_idx, b->seq,
        stream[b->stream & 1], tess_dtype_name((tess_dtype)b->wire), b->numel_per_rank, a->rank,
        tess_comm_op_name((tess_comm_op)a->op), a->name, a->entry_idx, a->seq,
        stream[a->stream & 1], tess_dtype_name((tess_dtype)a->wire), a->numel_per_rank);
}

/* All ranks come here together: rank 0 finds the first card that is not like its own. */
static tess_status name_difference(tess_comm *comm, const call_card *mine)
{
    void *all = NULL;
    tess_status st = TESS_OK;
    if (comm->rank == 0)
        st = tess_alloc_array(comm->world, sizeof(call_card), &all);
    int64_t is_short = st != TESS_OK; /* then the refusal names rank 0 alone */
    call_card pair[2] = {*mine, *mine};
    call_card *cards = all;
    st = tess_comm_control(comm, NULL, 0, &is_short, 1);
    if (st == TESS_OK && !is_short)
        st = tess_comm_gather_bytes(comm, 0, mine, sizeof *mine, cards);
    if (st == TESS_OK && comm->rank == 0 && !is_short)
        for (int r = 1; r < comm->world; r++)
            if (card_differs(&cards[0], &cards[r])) {
                pair[1] = cards[r];
                break;
            }
    if (st == TESS_OK)
        st = tess_comm_bcast(comm, 0, pair, sizeof pair);
    tess_free(all);
    return st == TESS_OK ? refuse_cards(&pair[0], &pair[1]) : st;
}

static tess_status check_across(tess_comm *comm, const tess_wire *wire, const tess_stream *s)
{
    if (!comm->is_checking)
        return TESS_OK;
    call_card card;
    memset(&card, 0, sizeof card);
    const int stream = s == comm->gather ? 0 : 1;
    card.seq = comm->checked_seq[stream]++;
    card.numel_per_rank = wire->numel_per_rank;
    card.numel_total = wire->numel_total;
    card.entry_idx = wire->entry_idx;
    card.op = (uint8_t)wire->op;
    card.wire = (uint8_t)wire->wire;
    card.stream = (uint8_t)stream;
    card.rank = comm->first_world_rank + comm->rank;
    memcpy(card.name, wire->name, sizeof card.name - 1);
    int64_t max[8];
    card_lanes(&card, max);
    TESS_TRY(tess_comm_control(comm, NULL, 0, max, 8));
    bool is_same = true;
    for (int i = 0; i < 4; i++)
        is_same = is_same && max[2 * i] == -max[2 * i + 1];
    return is_same ? TESS_OK : name_difference(comm, &card);
}

/* ---- data collectives ---- */

static bool overlaps(tess_view a, tess_view b)
{
    const char *a_lo = a.data;
    const char *b_lo = b.data;
    return a.numel > 0 && b.numel > 0 && a_lo < b_lo + tess_view_nbytes(b) &&
           b_lo < a_lo + tess_view_nbytes(a);
}

static tess_status check_row_alias(const tess_comm *comm, const tess_wire *wire, tess_view shard,
                                   tess_view full)
{
    if (!overlaps(shard, full))
        return TESS_OK;
    const tess_view row = tess_view_slice(full, comm->rank * shard.numel, shard.numel);
    TESS_CHECK(shard.data == row.data, TESS_E_ARG,
               "%s '%s': shard overlaps the full buffer but is not its row %d; alias exactly that "
               "row or keep them apart",
               tess_comm_op_name(wire->op), wire->name, comm->rank);
    return TESS_OK;
}

static tess_status check_rows(const tess_comm *comm, const tess_wire *wire, tess_view shard,
                              tess_view full)
{
    int64_t full_numel = 0;
    TESS_TRY(tess_mul_i64(comm->world, wire->numel_per_rank, &full_numel));
    TESS_TRY(check_view(comm, wire, "shard", shard, wire->numel_per_rank));
    TESS_TRY(check_view(comm, wire, "full", full, full_numel));
    return check_row_alias(comm, wire, shard, full);
}

tess_status tess_comm_all_gather(tess_comm *comm, const tess_wire *wire, tess_view shard,
                                 tess_view full, tess_stream *s)
{
    TESS_TRY(check_call(comm, wire, TESS_COMM_ALL_GATHER, s));
    TESS_TRY(check_rows(comm, wire, shard, full));
    TESS_TRY(check_across(comm, wire, s));
    TESS_TRY(comm->ops->all_gather(comm, wire, shard, full, s));
    return TESS_OK;
}

tess_view tess_gather_piece_rows(const tess_comm *comm, const tess_gather_piece *piece,
                                 tess_view full)
{
    return (tess_view){(char *)full.data + piece->place_nbytes, piece->shard.numel * comm->world,
                       piece->shard.dt, full.space};
}

tess_wire tess_gather_list_wire(const tess_gather_piece *pieces, int piece_numel)
{
    tess_wire w = *pieces[0].wire;
    if (piece_numel > 1)
        snprintf(w.name, sizeof w.name, "%.60s and %d more", pieces[0].wire->name, piece_numel - 1);
    return w;
}

static tess_status check_piece(tess_comm *comm, const tess_gather_piece *piece, tess_view full,
                               const tess_stream *s)
{
    const tess_wire *wire = piece->wire;
    TESS_TRY(check_call(comm, wire, TESS_COMM_ALL_GATHER, s));
    TESS_TRY(check_view(comm, wire, "shard", piece->shard, wire->numel_per_rank));
    const tess_view rows = tess_gather_piece_rows(comm, piece, full);
    TESS_CHECK(piece->place_nbytes <= tess_view_nbytes(full) &&
                   tess_view_nbytes(rows) <= tess_view_nbytes(full) - piece->place_nbytes,
               TESS_E_ARG,
               "all_gather '%s': %zu bytes from byte %zu on do not lie in the %zu bytes given with "
               "the list",
               wire->name, tess_view_nbytes(rows), piece->place_nbytes, tess_view_nbytes(full));
    return check_rows(comm, wire, piece->shard, rows);
}

tess_status tess_comm_all_gather_list(tess_comm *comm, const tess_gather_piece *pieces,
                                      int piece_numel, tess_view full, tess_stream *s)
{
    TESS_CHECK(piece_numel >= 0 && (piece_numel == 0 || pieces != NULL), TESS_E_ARG,
               "all_gather of a list of %d pieces", piece_numel);
    for (int i = 0; i < piece_numel; i++)
        TESS_TRY(check_piece(comm, &pieces[i], full, s));
    for (int i = 0; i < piece_numel; i++)
        TESS_TRY(check_across(comm, pieces[i].wire, s));
    if (piece_numel == 0)
        return TESS_OK;
    TESS_TRY(comm->ops->all_gather_list(comm, pieces, piece_numel, full, s));
    return TESS_OK;
}

tess_status tess_comm_reduce_scatter(tess_comm *comm, const tess_wire *wire, tess_view full,
                                     tess_view shard, tess_stream *s)
{
    TESS_TRY(check_call(comm, wire, TESS_COMM_REDUCE_SCATTER, s));
    TESS_CHECK(wire->wire == TESS_F32 && wire->accumulate == TESS_F32, TESS_E_DTYPE,
               "reduce_scatter '%s': contract says wire %s and accumulate %s, the library "
               "reduction needs f32 for both; set %s",
               wire->name, tess_dtype_name(wire->wire), tess_dtype_name(wire->accumulate),
               key_of(wire));
    TESS_TRY(check_rows(comm, wire, shard, full));
    TESS_TRY(check_across(comm, wire, s));
    TESS_TRY(comm->ops->reduce_scatter(comm, wire, full, shard, s));
    return TESS_OK;
}

static tess_status check_list(const tess_comm *comm, const tess_wire *wire, const char *what,
                              const tess_piece *list, int numel)
{
    TESS_CHECK(numel >= 0 && (numel == 0 || list != NULL), TESS_E_ARG,
               "exchange '%s': list of %d %s pieces", wire->name, numel, what);
    for (int i = 0; i < numel; i++) {
        TESS_CHECK(list[i].peer_rank >= 0 && list[i].peer_rank < comm->world, TESS_E_ARG,
                   "exchange '%s': %s piece %d names rank %d of %d", wire->name, what, i,
                   list[i].peer_rank, comm->world);
        TESS_TRY(check_view(comm, wire, what, list[i].view, -1));
    }
    return TESS_OK;
}

/* Pieces to the own rank must meet as those between ranks do; here both lists are at hand. */
static tess_status check_own_pairs(const tess_comm *comm, const tess_wire *wire,
                                   const tess_comm_exchange_args *a)
{
    int i = -1;
    int k = -1;
    for (;;) {
        i = piece_next_own(a->sends, a->send_numel, comm->rank, i + 1);
        k = piece_next_own(a->receives, a->receive_numel, comm->rank, k + 1);
        if (i >= a->send_numel && k >= a->receive_numel)
            return TESS_OK;
        TESS_CHECK(i < a->send_numel && k < a->receive_numel &&
                       a->sends[i].view.numel == a->receives[k].view.numel,
                   TESS_E_CONTRACT,
                   "exchange '%s': rank %d sends itself %" PRId64 " elements where it expects "
                   "%" PRId64 "; the two lists of the plan do not match",
                   wire->name, comm->first_world_rank + comm->rank,
                   i < a->send_numel ? a->sends[i].view.numel : 0,
                   k < a->receive_numel ? a->receives[k].view.numel : 0);
    }
}

tess_status tess_comm_exchange(tess_comm *comm, const tess_wire *wire, const tess_piece *sends,
                               int send_numel, const tess_piece *receives, int receive_numel,
                               tess_stream *s)
{
    TESS_TRY(check_call(comm, wire, TESS_COMM_EXCHANGE, s));
    TESS_TRY(check_list(comm, wire, "send", sends, send_numel));
    TESS_TRY(check_list(comm, wire, "receive", receives, receive_numel));
    const tess_comm_exchange_args args = {sends, send_numel, receives, receive_numel};
    TESS_TRY(check_own_pairs(comm, wire, &args));
    TESS_TRY(check_across(comm, wire, s));
    TESS_TRY(comm->ops->exchange(comm, wire, &args, s));
    return TESS_OK;
}

/* ---- host collectives ---- */

tess_status tess_comm_control(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max,
                              int max_numel)
{
    TESS_CHECK(sum_numel >= 0 && max_numel >= 0 && (sum_numel == 0 || sum != NULL) &&
                   (max_numel == 0 || max != NULL),
               TESS_E_ARG, "control record: %d sums and %d maxima, one of them without memory",
               sum_numel, max_numel);
    TESS_TRY(comm->ops->control(comm, sum, sum_numel, max, max_numel));
    return TESS_OK;
}

static tess_status check_root(const tess_comm *comm, const char *what, int root_rank)
{
    TESS_CHECK(root_rank >= 0 && root_rank < comm->world, TESS_E_ARG, "%s: root %d of %d ranks",
               what, root_rank, comm->world);
    return TESS_OK;
}

tess_status tess_comm_bcast(tess_comm *comm, int root_rank, void *data, size_t nbytes)
{
    TESS_TRY(check_root(comm, "bcast", root_rank));
    TESS_CHECK(data != NULL || nbytes == 0, TESS_E_ARG, "bcast of %zu bytes without memory",
               nbytes);
    TESS_TRY(comm->ops->bcast(comm, root_rank, data, nbytes));
    return TESS_OK;
}

tess_status tess_comm_gather_bytes(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                                   void *dst)
{
    TESS_TRY(check_root(comm, "gather_bytes", root_rank));
    TESS_CHECK(nbytes == 0 || (src != NULL && (comm->rank != root_rank || dst != NULL)), TESS_E_ARG,
               "gather_bytes of %zu bytes a rank without memory", nbytes);
    TESS_TRY(comm->ops->gather_bytes(comm, root_rank, src, nbytes, dst));
    return TESS_OK;
}

tess_status tess_comm_barrier(tess_comm *comm)
{
    TESS_TRY(comm->ops->control(comm, NULL, 0, NULL, 0));
    return TESS_OK;
}

/* ---- the rest ---- */

tess_status tess_comm_split_group(tess_comm *comm, int group_numel, tess_comm **out)
{
    TESS_CHECK(group_numel >= 1 && comm->world % group_numel == 0, TESS_E_ARG,
               "group of %d ranks does not divide the world of %d; set shard.group to a divisor",
               group_numel, comm->world);
    TESS_TRY(comm->ops->split_group(comm, group_numel, out));
    return TESS_OK;
}

tess_status tess_comm_split_first(tess_comm *comm, int rank_numel, tess_comm **out)
{
    TESS_CHECK(rank_numel >= 1 && rank_numel <= comm->world, TESS_E_ARG,
               "expected 1 to %d ranks to split off, found %d", comm->world, rank_numel);
    TESS_TRY(comm->ops->split_group(comm, rank_numel, out));
    return TESS_OK;
}

void tess_comm_destroy(tess_comm **comm)
{
    if (comm == NULL || *comm == NULL)
        return;
    (*comm)->ops->destroy(*comm);
    *comm = NULL;
}

tess_comm *tess_comm_host(tess_comm *comm) { return comm->host != NULL ? comm->host : comm; }

int tess_comm_rank(const tess_comm *comm) { return comm->rank; }
int tess_comm_world(const tess_comm *comm) { return comm->world; }
int tess_comm_launch_rank(const tess_comm *comm) { return comm->first_world_rank + comm->rank; }
const char *tess_comm_name(const tess_comm *comm) { return comm->name; }
tess_stream *tess_comm_gather_stream(tess_comm *comm) { return comm->gather; }
tess_stream *tess_comm_reduce_stream(tess_comm *comm) { return comm->reduce; }
void tess_comm_abort(tess_comm *comm, int exit_code) { comm->ops->abort(comm, exit_code); }
double tess_comm_blocked_s(const tess_comm *comm) { return comm->ops->blocked_s(comm); }
void tess_comm_dump(const tess_comm *comm, int fd) { comm->ops->dump(comm, fd); }
uint64_t tess_comm_collective_numel(const tess_comm *comm)
{
    return comm->ops->collective_numel != NULL ? comm->ops->collective_numel(comm) : 0;
}
bool tess_comm_collective_times(const tess_comm *comm, uint64_t serial, tess_comm_times *out)
{
    return comm->ops->collective_times != NULL && comm->ops->collective_times(comm, serial, out);
}
void tess_comm_describe(const tess_comm *comm, int fd) { comm->ops->describe(comm, fd); }
void tess_comm_set_checking(tess_comm *comm, bool is_on) { comm->ops->set_checking(comm, is_on); }
