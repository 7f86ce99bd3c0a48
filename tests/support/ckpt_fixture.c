#include "support/ckpt_fixture.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"

const char ckpt_fixture_base_id[] =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static void keep_line(void *arg, tess_log_level level, const char *line)
{
    ckpt_fixture *f = arg;
    const size_t nbytes = strlen(f->log);
    (void)level;
    snprintf(f->log + nbytes, sizeof f->log - nbytes, "%s\n", line);
}

static void add_record(tess_ckpt_set *set, tess_ckpt_record *list, const char *unit,
                       const char *role, tess_dtype dt, int64_t numel)
{
    const bool is_bytes = tess_dtype_block_nbytes(dt) == 1;
    list[set->record_numel++] =
        (tess_ckpt_record){.unit = unit,
                           .role = role,
                           .dt = dt,
                           .total_numel = numel,
                           .align_numel = 256,
                           .contract = is_bytes ? "stored=nf4 compute=bf16" : "stored=f32",
                           .quant = is_bytes ? "nf4/64/double low nibble first" : "none"};
    set->records = list;
}

static void add_tensor(tess_ckpt_set *set, tess_ckpt_tensor *list, tess_ckpt_tensor t)
{
    list[set->tensor_numel++] = t;
    set->tensors = list;
}

static void describe_step(ckpt_fixture *f, int64_t scale)
{
    static const char *const roles[] = {"master", "exp_avg", "exp_avg_sq"};
    const int64_t big = 901 * scale;
    tess_ckpt_set *s = &f->step;
    for (int i = 0; i < TESS_NELEM(roles); i++) {
        add_record(s, f->step_records, "blk.0", roles[i], TESS_F32, 256 + big);
        add_record(s, f->step_records, "blk.1", roles[i], TESS_F32, 700);
    }
    add_record(s, f->step_records, "blk.0", "param", TESS_BF16, 256 + big);
    add_record(s, f->step_records, "blk.1", "param", TESS_BF16, 700);
    add_record(s, f->step_records, "book", "usage", TESS_I64, 3);
    add_record(s, f->step_records, "empty", "master", TESS_F32, 0);
    add_tensor(s, f->step_tensors,
               (tess_ckpt_tensor){.unit = "blk.0",
                                  .name = "model.layers.0.q/lora_A",
                                  .dtype = "bf16",
                                  .dim_numel = 2,
                                  .shape = {5, 40},
                                  .extent_numel = 200,
                                  .quant = "none"});
    add_tensor(s, f->step_tensors,
               (tess_ckpt_tensor){.unit = "blk.0",
                                  .name = "model.layers.0.q/lora_B",
                                  .dtype = "bf16",
                                  .dim_numel = 2,
                                  .shape = {901, scale},
                                  .offset_numel = 256,
                                  .extent_numel = big,
                                  .quant = "none"});
    add_tensor(s, f->step_tensors,
               (tess_ckpt_tensor){.unit = "blk.1",
                                  .name = "model.layers.1.q/lora_A",
                                  .dtype = "bf16",
                                  .dim_numel = 1,
                                  .shape = {700},
                                  .extent_numel = 700,
                                  .quant = "none"});
    add_tensor(s, f->step_tensors,
               (tess_ckpt_tensor){.unit = "book",
                                  .name = "book.usage",
                                  .role = "usage",
                                  .dtype = "i64",
                                  .dim_numel = 1,
                                  .shape = {3},
                                  .extent_numel = 3,
                                  .quant = "none"});
}

static void describe_base(ckpt_fixture *f, int64_t scale)
{
    tess_ckpt_set *s = &f->base;
    add_record(s, f->base_records, "blk.0", "frozen", TESS_U8_OPAQUE, 512 + 2311 * scale);
    add_record(s, f->base_records, "blk.1", "frozen", TESS_U8_OPAQUE, 700);
    add_record(s, f->base_records, "norm", "frozen", TESS_U8_OPAQUE, 77);
    add_tensor(s, f->base_tensors,
               (tess_ckpt_tensor){.unit = "blk.0",
                                  .name = "model.layers.0.q.weight",
                                  .dtype = "bf16",
                                  .dim_numel = 2,
                                  .shape = {20, 40},
                                  .extent_numel = 403,
                                  .quant = "nf4/64/double"});
    add_tensor(s, f->base_tensors,
               (tess_ckpt_tensor){.unit = "blk.0",
                                  .name = "model.layers.0.k.weight",
                                  .dtype = "bf16",
                                  .dim_numel = 1,
                                  .shape = {4622 * scale},
                                  .offset_numel = 512,
                                  .extent_numel = 2311 * scale,
                                  .quant = "nf4/64/double"});
    add_tensor(s, f->base_tensors,
               (tess_ckpt_tensor){.unit = "blk.1",
                                  .name = "model.layers.1.q.weight",
                                  .dtype = "bf16",
                                  .dim_numel = 1,
                                  .shape = {350},
                                  .extent_numel = 700,
                                  .quant = "none"});
    add_tensor(s, f->base_tensors,
               (tess_ckpt_tensor){.unit = "norm",
                                  .name = "model.norm.weight",
                                  .dtype = "bf16",
                                  .dim_numel = 1,
                                  .shape = {38},
                                  .extent_numel = 77,
                                  .quant = "none"});
}

static tess_status alloc_views(tess_ckpt_set *set, tess_ckpt_record *list, int rank)
{
    for (int64_t i = 0; i < set->record_numel; i++) {
        tess_ckpt_record *r = &list[i];
        void *memory = NULL;
        tess_ckpt_range(r, set->shard_world, rank % set->shard_world, &r->lo_idx, &r->hi_idx);
        const int64_t numel = r->hi_idx - r->lo_idx;
        TESS_TRY(tess_alloc_array(numel, tess_dtype_block_nbytes(r->dt), &memory));
        r->view = tess_view_host(memory, numel, r->dt);
    }
    return TESS_OK;
}

tess_status ckpt_fixture_create(int world, int rank, int gather_group, int64_t scale,
                                ckpt_fixture **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(ckpt_fixture), &memory));
    ckpt_fixture *f = memory;
    f->step.shard_world = world;
    f->base.shard_world = gather_group;
    describe_step(f, scale);
    describe_base(f, scale);
    tess_status st = tess_io_create(rank, &f->io);
    if (st == TESS_OK)
        st = alloc_views(&f->step, f->step_records, rank);
    if (st == TESS_OK)
        st = alloc_views(&f->base, f->base_records, rank);
    if (st != TESS_OK) {
        ckpt_fixture_destroy(&f);
        return st;
    }
    f->ctx = (tess_ctx){f->io, {keep_line, f, TESS_LOG_INFO, rank}};
    *out = f;
    return TESS_OK;
}

void ckpt_fixture_destroy(ckpt_fixture **fixture)
{
    ckpt_fixture *f = *fixture;
    if (f == NULL)
        return;
    for (int64_t i = 0; i < f->step.record_numel; i++)
        tess_free(f->step_records[i].view.data);
    for (int64_t i = 0; i < f->base.record_numel; i++)
        tess_free(f->base_records[i].view.data);
    if (f->io != NULL)
        tess_io_destroy(&f->io);
    tess_free(f);
    *fixture = NULL;
}

static uint64_t name_seed(const tess_ckpt_record *r, uint64_t seed)
{
    uint64_t h = strcmp(r->role, "frozen") == 0 ? 17 : seed * 1000003 + 29;
    for (const char *c = r->unit; *c; c++)
        h = h * 131 + (uint64_t)*c;
    for (const char *c = r->role; *c; c++)
        h = h * 137 + (uint64_t)*c;
    return h;
}

void ckpt_fixture_expect(const tess_ckpt_record *r, int64_t lo_idx, int64_t hi_idx, uint64_t seed,
                         void *dst)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(r->dt);
    const uint64_t base = name_seed(r, seed);
    for (int64_t i = lo_idx; i < hi_idx; i++) {
        uint64_t x = (base + (uint64_t)i) * UINT64_C(0x9e3779b97f4a7c15);
        x ^= x >> 29;
        /* An exponent between 1/4 and 4, so that every float dtype holds a number. */
        if (r->dt == TESS_F32)
            x = (x & 0x807fffff) | (uint64_t)(126 + (x >> 40) % 3) << 23;
        if (r->dt == TESS_BF16)
            x = (x & 0x807f) | (uint64_t)(126 + (x >> 40) % 3) << 7;
        memcpy((char *)dst + (size_t)(i - lo_idx) * elem_nbytes, &x, elem_nbytes);
    }
}

void ckpt_fixture_fill(ckpt_fixture *f, uint64_t seed)
{
    for (int64_t i = 0; i < f->step.record_numel; i++) {
        const tess_ckpt_record *r = &f->step_records[i];
        ckpt_fixture_expect(r, r->lo_idx, r->hi_idx, seed, r->view.data);
    }
    for (int64_t i = 0; i < f->base.record_numel; i++) {
        const tess_ckpt_record *r = &f->base_records[i];
        ckpt_fixture_expect(r, r->lo_idx, r->hi_idx, seed, r->view.data);
    }
}

void ckpt_fixture_poison(ckpt_fixture *f)
{
    for (int64_t i = 0; i < f->step.record_numel; i++)
        memset(f->step_records[i].view.data, 0xA5, tess_view_nbytes(f->step_records[i].view));
    for (int64_t i = 0; i < f->base.record_numel; i++)
        memset(f->base_records[i].view.data, 0xA5, tess_view_nbytes(f->base_records[i].view));
}

static int64_t wrong_in(const tess_ckpt_record *r, uint64_t seed)
{
    const size_t elem_nbytes = tess_dtype_block_nbytes(r->dt);
    int64_t numel = 0;
    for (int64_t i = r->lo_idx; i < r->hi_idx; i++) {
        uint64_t expected = 0;
        ckpt_fixture_expect(r, i, i + 1, seed, &expected);
        numel += memcmp(&expected, (char *)r->view.data + (size_t)(i - r->lo_idx) * elem_nbytes,
                        elem_nbytes) != 0;
    }
    return numel;
}

int64_t ckpt_fixture_wrong(const ckpt_fixture *f, uint64_t seed, bool with_base)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < f->step.record_numel; i++)
        numel += wrong_in(&f->step_records[i], seed);
    for (int64_t i = 0; with_base && i < f->base.record_numel; i++)
        numel += wrong_in(&f->base_records[i], seed);
    return numel;
}

int64_t ckpt_fixture_state(uint64_t seed, tess_ckpt_value values[8])
{
    int64_t n = 0;
    values[n++] = (tess_ckpt_value){.name = "tokens", .i64 = (int64_t)seed * 1000};
    values[n++] = (tess_ckpt_value){.name = "big", .i64 = INT64_MIN};
    values[n++] =
        (tess_ckpt_value){.name = "lr", .kind = TESS_CKPT_F64, .f64 = 0.1 / (double)(seed + 3)};
    values[n++] = (tess_ckpt_value){.name = "zero", .kind = TESS_CKPT_F64, .f64 = -0.0};
    values[n++] = (tess_ckpt_value){.name = "run_file",
                                    .kind = TESS_CKPT_TEXT,
                                    .text = "model: {path: \"x\\y\"}\n# \xc3\xa9\t\x01 end\n"};
    values[n++] = (tess_ckpt_value){.name = "none", .kind = TESS_CKPT_TEXT, .text = ""};
    return n;
}

tess_status ckpt_fixture_open(ckpt_fixture *f, tess_comm *comm, const char *dir, bool is_reader,
                              tess_ckpt_store **out)
{
    const tess_ckpt_config config = {.dir = dir,
                                     .keep_numel = 2,
                                     .keep_every = f->keep_every,
                                     .last_step = f->last_step,
                                     .has_read_back = f->has_read_back,
                                     .is_reader = is_reader,
                                     .plan_digest = "plan",
                                     .config_digest = "config",
                                     .binary_id = "test",
                                     .gather_group = f->base.shard_world,
                                     .comm = comm,
                                     .ctx = &f->ctx};
    return tess_ckpt_store_open(&config, out);
}

tess_status ckpt_fixture_prepare(ckpt_fixture *f, tess_ckpt_store *store)
{
    const tess_ckpt_base base = {.mode = TESS_CKPT_BASE_COPY, .id = ckpt_fixture_base_id};
    bool was_there = false;
    ckpt_fixture_fill(f, 0);
    TESS_TRY(tess_ckpt_save_base(store, ckpt_fixture_base_id, &f->base, &was_there));
    return tess_ckpt_prepare(store, &f->step, &base, 0);
}

tess_status ckpt_fixture_save(ckpt_fixture *f, tess_ckpt_store *store, int64_t seed,
                              tess_ckpt_report *report)
{
    tess_ckpt_value state[8];
    ckpt_fixture_fill(f, (uint64_t)seed);
    return tess_ckpt_save(store, seed, state, ckpt_fixture_state((uint64_t)seed, state), report);
}

static tess_status check_state(const tess_ckpt_loaded *loaded)
{
    tess_ckpt_value state[8];
    const int64_t numel = ckpt_fixture_state((uint64_t)loaded->step, state);
    TESS_CHECK(numel == loaded->state_numel, TESS_E_STATE, "%lld state values",
               (long long)loaded->state_numel);
    for (int64_t i = 0; i < numel; i++) {
        const tess_ckpt_value *v = tess_ckpt_loaded_value(loaded, state[i].name);
        TESS_CHECK(v != NULL && v->kind == state[i].kind && v->i64 == state[i].i64 &&
                       memcmp(&v->f64, &state[i].f64, sizeof v->f64) == 0 &&
                       (v->kind != TESS_CKPT_TEXT || strcmp(v->text, state[i].text) == 0),
                   TESS_E_STATE, "state '%s' came back changed", state[i].name);
    }
    return TESS_OK;
}

tess_status ckpt_fixture_load(ckpt_fixture *f, tess_ckpt_store *store, const char *path,
                              int64_t *seed, int64_t *fallback_numel)
{
    tess_ckpt_loaded loaded;
    const tess_ckpt_load_request request = {.path = path, .set = &f->step, .base = &f->base};
    ckpt_fixture_poison(f);
    TESS_TRY(tess_ckpt_load(store, &request, &loaded));
    tess_status st = TESS_OK;
    *seed = -1;
    if (loaded.found == TESS_CKPT_LOADED) {
        *seed = loaded.step;
        const int64_t wrong = ckpt_fixture_wrong(f, (uint64_t)loaded.step, true);
        if (wrong != 0)
            st = TESS_FAIL(TESS_E_STATE, "%lld elements of step %lld are wrong", (long long)wrong,
                           (long long)loaded.step);
        if (st == TESS_OK)
            st = check_state(&loaded);
    }
    if (fallback_numel != NULL)
        *fallback_numel = loaded.fallback_numel;
    tess_ckpt_loaded_fini(&loaded);
    return st;
}

tess_status ckpt_fixture_dir(tess_comm *comm, char dir[256])
{
    const char *parent = getenv("TMPDIR");
    tess_status st = TESS_OK;
    snprintf(dir, 256, "%.200s/tessera-ckpt-XXXXXX", parent != NULL ? parent : "/tmp");
    if (tess_comm_rank(comm) == 0 && mkdtemp(dir) == NULL)
        st = TESS_FAIL(TESS_E_IO, "no directory like '%s'", dir);
    TESS_TRY(tess_agree(comm, st));
    return tess_comm_bcast(comm, 0, dir, 256);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    (void)remove(path);
    return 0;
}

void ckpt_fixture_remove(const char *dir) { (void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS); }
