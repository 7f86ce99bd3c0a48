/**
 * Fibers, barriers and memory of the emulation.
 *
 * [Note: one fiber at a time] A thread runs until it must wait; then the first ready thread in the
 * chosen order goes on. A barrier that is missing therefore always shows in one of the orders: the
 * reader runs before its writer, or a writer overtakes a reader.
 *
 * [Note: switching] Contexts are made once per fiber and then left by _setjmp and entered by
 * _longjmp: swapcontext() would call the kernel to save the signal mask at each switch. Ubuntu's
 * compilers fortify by default, and a fortified longjmp takes another stack for a broken one.
 *
 * [Note: device memory] The host may touch none of it, so it is opened for each launch and copy.
 * That costs time by the page: huge pages make it cheap. It is handed out downwards from its end,
 * and what lies behind that is never opened.
 */
#undef _FORTIFY_SOURCE
#include "tests/emulation/cuda_emulation.hpp"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "kernels/cuda_work.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* Ends of the section of static shared variables; absent when no kernel has one. */
extern "C" {
extern char __start_tess_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_tess_shared[] __attribute__((weak, visibility("hidden")));
}

namespace tess_emulation
{

namespace
{

constexpr unsigned THREAD_MAX = 1024, WARP = 32;
constexpr size_t STACK_NBYTES = 256 << 10, PAGE_NBYTES = 4096, HUGE_NBYTES = 2 << 20;
constexpr size_t CANARY_NBYTES = 256, SHARED_MAX_NBYTES = 163 << 10, SHARED_PLAIN_NBYTES = 48 << 10;
constexpr unsigned char CANARY = 0xA5;

enum class state { READY, AT_BLOCK, AT_NAMED, AT_WARP, DONE };

} // namespace

struct fiber {
    jmp_buf at;
    ucontext_t context;
    char *stack;
    bool has_context;
    state st;
    uint3 tid;
    /* What it waits at. */
    const site *where;
    int barrier_id, barrier_numel;
    unsigned mask;
    void *operand;
    warp_body body;
};

place here;

namespace
{

struct allocation {
    std::string name;
    char *data;
    size_t nbytes;
};

struct shared_array {
    const void *key;
    char *data;
    size_t nbytes;
};

struct attribute {
    const void *entry;
    size_t shared_max;
};

struct block_state {
    fiber fibers[THREAD_MAX];
    unsigned numel, live_numel, order[THREAD_MAX], position[THREAD_MAX];
    uint64_t ready[THREAD_MAX / 64]; /* by position in the order */
    fiber *current;
    jmp_buf home;
    int sum, sum_result;
    int arrived_numel; /* at the block barrier */
};

/* No heap: a launch that fails leaves its fibers without running destructors. */
struct line {
    char text[800] = "";
    bool empty() const { return text[0] == '\0'; }
};

struct emulator {
    tess_emulation_settings settings = {TESS_EMULATION_FORWARD, 0, 0, 0, -1};
    std::vector<site> barriers;
    std::vector<int64_t> passes;
    std::vector<allocation> memory;
    std::vector<shared_array> shared;
    std::vector<attribute> attributes;
    std::vector<char> shared_store;
    size_t shared_used = 0, dynamic_nbytes = 0;
    char *region_end = nullptr; /* of device memory, a multiple of HUGE_NBYTES */
    size_t region_used = 0;     /* bytes before it */
    uint64_t random = 1;
    const launch_args *launch = nullptr;
    line error;
    block_state block = {};
};

constexpr size_t REGION_NBYTES = size_t(1) << 32;

emulator &emu()
{
    static auto *e = new emulator;
    return *e;
}

uint64_t random_next()
{
    uint64_t z = emu().random += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* What uninitialized memory holds: NaN to start with, then something else, so that a comparison
 * which NaN slips through shows too. */
int poison_byte()
{
    switch (emu().settings.order) {
    case TESS_EMULATION_FORWARD:
        return 0xFF;
    case TESS_EMULATION_REVERSED:
        return 0xCB;
    case TESS_EMULATION_SEEDED:
        break;
    }
    return 0x40 + static_cast<int>(emu().settings.seed % 32);
}

line format(const char *fmt, ...) TESS_PRINTF(1, 2);
line format(const char *fmt, ...)
{
    line l;
    va_list args;
    va_start(args, fmt);
    vsnprintf(l.text, sizeof l.text, fmt, args);
    va_end(args);
    return l;
}

const char *base_name(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash != nullptr ? slash + 1 : file;
}

line describe(const fiber &f)
{
    switch (f.st) {
    case state::DONE:
        return format("left the kernel");
    case state::READY:
        return format("can run");
    case state::AT_NAMED:
        return format("at barrier %d of %d threads, %s:%d", f.barrier_id, f.barrier_numel,
                      base_name(f.where->file), f.where->line);
    case state::AT_WARP:
        return format("at %s with mask %08x, %s:%d", f.where->kind, f.mask,
                      base_name(f.where->file), f.where->line);
    case state::AT_BLOCK:
        break;
    }
    return format("at %s, %s:%d", f.where->kind, base_name(f.where->file), f.where->line);
}

/* "threads 0-31: at __syncthreads, x.cu:12; thread 32: left the kernel" */
line describe_block()
{
    const block_state &b = emu().block;
    line all;
    int group_numel = 0;
    for (unsigned i = 0; i < b.numel && group_numel < 6; group_numel++) {
        const line what = describe(b.fibers[i]);
        unsigned end = i + 1;
        while (end < b.numel && strcmp(describe(b.fibers[end]).text, what.text) == 0)
            end++;
        const line name =
            end - i == 1 ? format("thread %u", i) : format("threads %u-%u", i, end - 1);
        const size_t used = strlen(all.text);
        /* What does not fit is cut. */
        if (snprintf(all.text + used, sizeof all.text - used, "%s%s: %s", used == 0 ? "" : "; ",
                     name.text, what.text) < 0)
            break;
        i = end;
    }
    return all;
}

/* AddressSanitizer has to know which stack is in use. */
#if defined(__SANITIZE_ADDRESS__)
struct stack_range {
    const void *bottom;
    size_t nbytes;
};
stack_range home_stack = {nullptr, 0};

void switch_announce(const fiber *to)
{
    if (to != nullptr)
        __sanitizer_start_switch_fiber(nullptr, to->stack + PAGE_NBYTES,
                                       STACK_NBYTES - PAGE_NBYTES);
    else
        __sanitizer_start_switch_fiber(nullptr, home_stack.bottom, home_stack.nbytes);
}

/* The first switch of all comes from home. */
void switch_finish()
{
    stack_range from = {nullptr, 0};
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.nbytes);
    if (home_stack.bottom == nullptr)
        home_stack = from;
}
#else
void switch_announce(const fiber *) {}
void switch_finish() {}
#endif

[[noreturn]] void enter(fiber *f)
{
    block_state &b = emu().block;
    b.current = f;
    switch_announce(f);
    if (f == nullptr)
        _longjmp(b.home, 1);
    here.thread = f->tid;
    if (f->has_context)
        _longjmp(f->at, 1);
    f->has_context = true;
    setcontext(&f->context);
    __builtin_unreachable();
}

void switch_to(fiber *to)
{
    fiber *self = emu().block.current;
    if (_setjmp(self->at) == 0)
        enter(to);
    switch_finish();
}

/* Stop the launch: fibers that have begun are given up with their stacks. */
[[noreturn]] void fail(const line &l)
{
    emulator &e = emu();
    const launch_args &a = *e.launch;
    e.error = format("kernel %s, block (%u, %u, %u) of %u threads: %s", a.kernel, here.block.x,
                     here.block.y, here.block.z, e.block.numel, l.text);
    for (unsigned i = 0; i < e.block.numel; i++)
        if (e.block.fibers[i].st != state::DONE || &e.block.fibers[i] == e.block.current)
            e.block.fibers[i].has_context = false;
    enter(nullptr);
}

void set_ready(fiber &f)
{
    block_state &b = emu().block;
    const unsigned position = b.position[&f - b.fibers];
    f.st = state::READY;
    b.ready[position / 64] |= UINT64_C(1) << position % 64;
}

fiber *first_ready(unsigned from)
{
    block_state &b = emu().block;
    const unsigned word_numel = (b.numel + 63) / 64;
    for (unsigned k = 0; k <= word_numel; k++) {
        const unsigned w = (from / 64 + k) % word_numel;
        uint64_t bits = b.ready[w];
        if (k == 0)
            bits &= ~UINT64_C(0) << from % 64;
        if (bits != 0) {
            const unsigned position = w * 64 + static_cast<unsigned>(__builtin_ctzll(bits));
            b.ready[w] &= ~(UINT64_C(1) << position % 64);
            return &b.fibers[b.order[position]];
        }
    }
    return nullptr;
}

/* Next thread to run, or a report when there is none. */
fiber *next_ready()
{
    block_state &b = emu().block;
    const bool is_seeded = emu().settings.order == TESS_EMULATION_SEEDED;
    fiber *f = first_ready(is_seeded ? static_cast<unsigned>(random_next() % b.numel) : 0);
    if (f == nullptr && b.live_numel > 0)
        fail(format("no thread can go on: %s", describe_block().text));
    return f;
}

/* The running thread waits; returns when it is ready and its turn. */
void wait_as(state st)
{
    fiber *self = emu().block.current;
    self->st = st;
    fiber *next = next_ready();
    if (next != self)
        switch_to(next);
}

/* Body of every fiber, for all blocks of all launches. */
void fiber_main()
{
    switch_finish();
    for (;;) {
        emulator &e = emu();
        e.launch->body(e.launch->closure);
        block_state &b = emu().block;
        b.current->st = state::DONE;
        b.live_numel--;
        switch_to(next_ready());
    }
}

void fiber_prepare(fiber &f)
{
    if (f.has_context)
        return;
    if (f.stack == nullptr) {
        void *p = mmap(nullptr, STACK_NBYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        f.stack = static_cast<char *>(p);
        mprotect(f.stack, PAGE_NBYTES, PROT_NONE);
    }
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack + PAGE_NBYTES;
    f.context.uc_stack.ss_size = STACK_NBYTES - PAGE_NBYTES;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
}

/* Number of a barrier; sites of template instantiations at one line are one. */
int barrier_idx(site *s)
{
    emulator &e = emu();
    if (s->idx >= 0)
        return s->idx;
    for (size_t i = 0; i < e.barriers.size() && s->idx < 0; i++)
        if (e.barriers[i].line == s->line && strcmp(e.barriers[i].file, s->file) == 0)
            s->idx = static_cast<int>(i);
    if (s->idx < 0) {
        s->idx = static_cast<int>(e.barriers.size());
        e.barriers.push_back(*s);
        e.passes.push_back(0);
    }
    return s->idx;
}

/* Count a pass; true when this barrier is taken out. */
bool is_dropped(site *s)
{
    const int idx = barrier_idx(s);
    emu().passes[static_cast<size_t>(idx)]++;
    return idx == emu().settings.dropped_barrier;
}

bool is_same_place(const site *a, const site *b)
{
    return a == b || (a->line == b->line && strcmp(a->file, b->file) == 0);
}

/* All threads of the block are here: let them go, unless they stand at different places. */
void block_release()
{
    block_state &b = emu().block;
    for (unsigned i = 0; i < b.numel; i++)
        if (!is_same_place(b.fibers[i].where, b.fibers[0].where))
            fail(format("threads wait at different barriers: %s", describe_block().text));
    b.arrived_numel = 0;
    b.sum_result = b.sum;
    b.sum = 0;
    for (unsigned i = 0; i < b.numel; i++)
        if (&b.fibers[i] != b.current)
            set_ready(b.fibers[i]);
}

void block_arrive(site *s)
{
    block_state &b = emu().block;
    b.current->where = s;
    b.current->st = state::AT_BLOCK;
    if (static_cast<unsigned>(++b.arrived_numel) < b.numel)
        wait_as(state::AT_BLOCK);
    else {
        block_release();
        b.current->st = state::READY;
        set_ready(*b.current);
        wait_as(state::READY);
    }
}

} // namespace

void block_barrier(site *s)
{
    if (!is_dropped(s))
        block_arrive(s);
}

int block_sum(site *s, int value)
{
    emu().block.sum += value;
    block_arrive(s);
    return emu().block.sum_result;
}

void named_barrier(site *s, int id, int thread_numel)
{
    block_state &b = emu().block;
    if (is_dropped(s))
        return;
    fiber *self = b.current;
    self->where = s;
    self->barrier_id = id;
    self->barrier_numel = thread_numel;
    self->st = state::AT_NAMED;
    int arrived_numel = 0;
    for (unsigned i = 0; i < b.numel; i++) {
        const fiber &f = b.fibers[i];
        if (f.st != state::AT_NAMED || f.barrier_id != id)
            continue;
        arrived_numel++;
        if (f.barrier_numel != thread_numel)
            fail(format("threads expect different numbers at one barrier: %s",
                        describe_block().text));
    }
    if (arrived_numel == thread_numel)
        for (unsigned i = 0; i < b.numel; i++)
            if (b.fibers[i].st == state::AT_NAMED && b.fibers[i].barrier_id == id)
                set_ready(b.fibers[i]);
    wait_as(self->st);
}

unsigned lane_idx()
{
    const block_state &b = emu().block;
    return static_cast<unsigned>(b.current - b.fibers) % WARP;
}

void warp_collective(site *s, unsigned mask, void *operand, warp_body body)
{
    block_state &b = emu().block;
    fiber *self = b.current;
    const unsigned lane = lane_idx();
    const unsigned first = static_cast<unsigned>(self - b.fibers) - lane;
    self->where = s;
    self->mask = mask;
    self->operand = operand;
    self->body = body;
    self->st = state::AT_WARP;
    if ((mask >> lane & 1) == 0)
        fail(format("lane %u is not in its own mask: %s", lane, describe_block().text));
    for (unsigned i = 1; i < WARP; i++) { /* the next lane first: mostly it has not come yet */
        const unsigned l = (lane + i) % WARP;
        const fiber &f = b.fibers[first + l];
        const bool is_there = first + l < b.numel && f.st != state::DONE;
        if ((mask >> l & 1) != 0 && is_there &&
            (f.st != state::AT_WARP || (f.mask >> lane & 1) == 0)) {
            wait_as(self->st);
            return;
        }
    }
    void *operands[WARP] = {};
    for (unsigned l = 0; l < WARP; l++) {
        if ((mask >> l & 1) == 0)
            continue;
        if (first + l >= b.numel || b.fibers[first + l].st == state::DONE)
            fail(format("%s waits for lane %u, which is not there: %s", s->kind, l,
                        describe_block().text));
        fiber &f = b.fibers[first + l];
        if (!is_same_place(f.where, s) || f.mask != mask || f.body != body)
            fail(format("lanes of a warp meet with different operations: %s",
                        describe_block().text));
        operands[l] = f.operand;
    }
    if (body != nullptr)
        body(operands, mask);
    for (unsigned l = 0; l < WARP; l++)
        if (mask >> l & 1)
            set_ready(b.fibers[first + l]);
    wait_as(self->st);
}

void warp_barrier(site *s, unsigned mask)
{
    if (!is_dropped(s))
        warp_collective(s, mask, nullptr, nullptr);
}

struct ballot_operand {
    bool predicate;
    unsigned result;
};

static void ballot_body(void *const operand[32], unsigned mask)
{
    unsigned result = 0;
    for (unsigned l = 0; l < WARP; l++)
        if ((mask >> l & 1) != 0 && static_cast<ballot_operand *>(operand[l])->predicate)
            result |= 1u << l;
    for (unsigned l = 0; l < WARP; l++)
        if (mask >> l & 1)
            static_cast<ballot_operand *>(operand[l])->result = result;
}

unsigned ballot(site *s, unsigned mask, bool predicate)
{
    ballot_operand o = {predicate, 0};
    warp_collective(s, mask, &o, ballot_body);
    return o.result;
}

namespace
{

/* Shared memory of a block: arrays one after another with canaries behind each. */
char *shared_take(size_t nbytes)
{
    emulator &e = emu();
    const size_t rounded = (nbytes + 15) / 16 * 16 + CANARY_NBYTES;
    if (e.shared_used + rounded > e.shared_store.size())
        fail(format("%zu bytes of shared memory and more, a block has %zu", nbytes,
                    SHARED_MAX_NBYTES));
    char *p =
        e.shared_store.data() + (16 - reinterpret_cast<uintptr_t>(e.shared_store.data()) % 16);
    p += e.shared_used;
    memset(p, poison_byte(), nbytes);
    memset(p + nbytes, CANARY, rounded - nbytes);
    e.shared_used += rounded;
    return p;
}

void shared_reset()
{
    emulator &e = emu();
    e.shared_store.resize(4 * SHARED_MAX_NBYTES);
    e.shared_used = 0;
    e.shared.clear();
    e.shared.push_back({&e, shared_take(e.dynamic_nbytes), e.dynamic_nbytes});
    if (__start_tess_shared != nullptr)
        memset(__start_tess_shared, poison_byte(),
               static_cast<size_t>(__stop_tess_shared - __start_tess_shared));
}

bool is_canary(const char *p, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        if (static_cast<unsigned char>(p[i]) != CANARY)
            return false;
    return true;
}

line shared_check()
{
    size_t sum = 0;
    for (const shared_array &a : emu().shared) {
        sum += a.nbytes;
        if (!is_canary(a.data + a.nbytes, CANARY_NBYTES))
            return format("wrote behind a shared array of %zu bytes", a.nbytes);
    }
    return sum > SHARED_MAX_NBYTES
               ? format("%zu bytes of shared memory, expected at most %zu", sum, SHARED_MAX_NBYTES)
               : line();
}

const allocation *allocation_find(const void *p, size_t nbytes)
{
    const char *c = static_cast<const char *>(p);
    for (const allocation &a : emu().memory)
        if (c >= a.data && c + nbytes <= a.data + a.nbytes)
            return &a;
    return nullptr;
}

void region_protect(bool is_open)
{
    emulator &e = emu();
    const size_t nbytes = (e.region_used + HUGE_NBYTES - 1) / HUGE_NBYTES * HUGE_NBYTES;
    if (nbytes > 0)
        mprotect(e.region_end - nbytes, nbytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

#if defined(__SANITIZE_ADDRESS__)
void canary_guard(const allocation &a)
{
    __asan_poison_memory_region(a.data - CANARY_NBYTES, CANARY_NBYTES);
    __asan_poison_memory_region(a.data + a.nbytes, CANARY_NBYTES);
}
/* Touching them stops the process, so there is nothing left to compare. */
line memory_check() { return line(); }
#else
void canary_guard(const allocation &) {}

line memory_check()
{
    for (const allocation &a : emu().memory) {
        if (!is_canary(a.data - CANARY_NBYTES, CANARY_NBYTES))
            return format("wrote before '%s'", a.name.c_str());
        if (!is_canary(a.data + a.nbytes, CANARY_NBYTES))
            return format("wrote behind '%s' of %zu bytes", a.name.c_str(), a.nbytes);
    }
    return line();
}
#endif

void order_make()
{
    block_state &b = emu().block;
    for (unsigned i = 0; i < b.numel; i++)
        b.order[i] = emu().settings.order == TESS_EMULATION_REVERSED ? b.numel - 1 - i : i;
    if (emu().settings.order == TESS_EMULATION_SEEDED)
        for (unsigned i = b.numel; i > 1; i--)
            std::swap(b.order[i - 1], b.order[random_next() % i]);
    for (unsigned i = 0; i < b.numel; i++)
        b.position[b.order[i]] = i;
}

void block_run(uint3 block_idx)
{
    block_state &b = emu().block;
    const dim3 &dim = emu().launch->block;
    here.block = block_idx;
    shared_reset();
    order_make();
    memset(b.ready, 0, sizeof b.ready);
    b.live_numel = b.numel;
    b.sum = b.arrived_numel = 0;
    for (unsigned i = 0; i < b.numel; i++) {
        fiber &f = b.fibers[i];
        f.tid = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        fiber_prepare(f);
        set_ready(f);
    }
    if (_setjmp(b.home) == 0)
        enter(next_ready());
    switch_finish();
    line &error = emu().error;
    if (error.empty())
        error = shared_check();
}

uint3 block_at(uint64_t idx)
{
    const dim3 &g = emu().launch->grid;
    return {static_cast<unsigned>(idx % g.x), static_cast<unsigned>(idx / g.x % g.y),
            static_cast<unsigned>(idx / g.x / g.y)};
}

void blocks_run()
{
    emulator &e = emu();
    const dim3 &g = e.launch->grid;
    const uint64_t numel = static_cast<uint64_t>(g.x) * g.y * g.z;
    const uint64_t shift = random_next() % numel;
    for (uint64_t i = 0; i < numel && e.error.empty(); i++) {
        uint64_t idx = i;
        if (e.settings.order == TESS_EMULATION_REVERSED)
            idx = numel - 1 - i;
        else if (e.settings.order == TESS_EMULATION_SEEDED)
            idx = (i + shift) % numel;
        block_run(block_at(idx));
    }
}

line launch_check(const launch_args &a)
{
    const uint64_t thread_numel = static_cast<uint64_t>(a.block.x) * a.block.y * a.block.z;
    if (thread_numel < 1 || thread_numel > THREAD_MAX)
        return format("%llu threads in a block, expected 1 to %u",
                      static_cast<unsigned long long>(thread_numel), THREAD_MAX);
    if (a.grid.x < 1 || a.grid.x > 0x7fffffffu || a.grid.y < 1 || a.grid.y > 65535 ||
        a.grid.z < 1 || a.grid.z > 65535)
        return format("grid of (%u, %u, %u) blocks", a.grid.x, a.grid.y, a.grid.z);
    size_t most = SHARED_PLAIN_NBYTES;
    for (const attribute &x : emu().attributes)
        if (x.entry == a.entry)
            most = x.shared_max;
    if (a.shared_nbytes > most)
        return format("%zu bytes of dynamic shared memory, expected at most %zu (set the kernel's "
                      "attribute for more)",
                      a.shared_nbytes, most);
    return line();
}

} // namespace

void check_aligned(const void *p, size_t nbytes)
{
    if (reinterpret_cast<uintptr_t>(p) % nbytes != 0)
        fail(format("thread (%u, %u, %u) makes an access of %zu bytes at %p", here.thread.x,
                    here.thread.y, here.thread.z, nbytes, p));
}

void *dynamic_shared() { return emu().shared[0].data; }

void *static_shared(const void *key, size_t nbytes)
{
    emulator &e = emu();
    for (const shared_array &a : e.shared)
        if (a.key == key)
            return a.data;
    e.shared.push_back({key, shared_take(nbytes), nbytes});
    return e.shared.back().data;
}

tess_status launch(const launch_args &a)
{
    emulator &e = emu();
    e.error = launch_check(a);
    if (e.error.empty()) {
        e.launch = &a;
        e.dynamic_nbytes = a.shared_nbytes;
        e.block.numel = a.block.x * a.block.y * a.block.z;
        here.block_dim = a.block;
        here.grid_dim = a.grid;
        region_protect(true);
        blocks_run();
        if (e.error.empty())
            e.error = memory_check();
        region_protect(false);
    }
    if (e.error.empty())
        return TESS_OK;
    const bool is_named = strncmp(e.error.text, "kernel ", 7) == 0;
    return TESS_FAIL(TESS_E_STATE, "%s%s%s%s", is_named ? "" : "kernel ", is_named ? "" : a.kernel,
                     is_named ? "" : ": ", e.error.text);
}

tess_status check_pointer(const char *kernel, int arg_idx, const void *p)
{
    TESS_CHECK(p == nullptr || allocation_find(p, 0) != nullptr, TESS_E_STATE,
               "kernel %s: argument %d is %p, which is not in device memory", kernel, arg_idx, p);
    return TESS_OK;
}

tess_status check_struct(const char *kernel, int arg_idx, const void *value, size_t nbytes)
{
    for (size_t at = 0; at + sizeof(uintptr_t) <= nbytes; at += sizeof(uintptr_t)) {
        uintptr_t word = 0;
        memcpy(&word, static_cast<const char *>(value) + at, sizeof word);
        /* Programs and their memory lie above 2^45; a number that happens to be the address of a
         * mapped page there is most unlikely. */
        unsigned char unused = 0;
        void *page = reinterpret_cast<void *>(word / PAGE_NBYTES * PAGE_NBYTES);
        TESS_CHECK(word >> 45 == 0 || word >> 47 != 0 ||
                       allocation_find(reinterpret_cast<void *>(word), 0) != nullptr ||
                       mincore(page, 1, &unused) != 0,
                   TESS_E_STATE, "kernel %s: argument %d holds the host address %p at byte %zu",
                   kernel, arg_idx, reinterpret_cast<void *>(word), at);
    }
    return TESS_OK;
}

size_t shared_max()
{
    const int nbytes = emu().settings.shared_max_nbytes;
    return nbytes > 0 ? static_cast<size_t>(nbytes) : SHARED_MAX_NBYTES;
}

tess_status set_shared_max(const void *entry, size_t nbytes)
{
    TESS_CHECK(nbytes <= shared_max(), TESS_E_ARG,
               "%zu bytes of dynamic shared memory, a block of this device has %zu", nbytes,
               shared_max());
    emu().attributes.push_back({entry, nbytes});
    return TESS_OK;
}

int64_t block_max() { return emu().settings.block_max; }

} // namespace tess_emulation

using namespace tess_emulation;

extern "C" bool tess_emulation_is_device(void) { return false; }

extern "C" int tess_emulation_setup(void **state)
{
    (void)state;
    return 0;
}

extern "C" const tess_kernels *tess_emulation_sizes(void) { return tess_kernels_cuda_planned(); }

extern "C" void tess_emulation_set(const tess_emulation_settings *settings)
{
    emulator &e = emu();
    e.settings = *settings;
    e.random = settings->seed;
    for (int64_t &n : e.passes)
        n = 0;
}

extern "C" int tess_emulation_barrier_numel(void)
{
    return static_cast<int>(emu().barriers.size());
}

extern "C" tess_emulation_barrier tess_emulation_barrier_get(int idx)
{
    const site &s = emu().barriers[static_cast<size_t>(idx)];
    return {s.kind, s.file, s.line, emu().passes[static_cast<size_t>(idx)]};
}

/* Huge pages begin at multiples of their size; one of them stays closed behind the end. Where there
 * are none, small ones do. */
static tess_status region_reserve()
{
    emulator &e = emu();
    const size_t nbytes = REGION_NBYTES + 2 * HUGE_NBYTES;
    void *p = mmap(nullptr, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TESS_CHECK(p != MAP_FAILED, TESS_E_MEMORY, "emulated device: no room for %zu bytes", nbytes);
    const uintptr_t last = reinterpret_cast<uintptr_t>(p) + nbytes - HUGE_NBYTES;
    e.region_end = static_cast<char *>(p) + (nbytes - HUGE_NBYTES - last % HUGE_NBYTES);
    (void)madvise(e.region_end - REGION_NBYTES, REGION_NBYTES, MADV_HUGEPAGE);
    return TESS_OK;
}

extern "C" tess_status tess_emulation_alloc(const char *name, size_t nbytes, void **out)
{
    emulator &e = emu();
    if (e.region_end == nullptr)
        TESS_TRY(region_reserve());
    const size_t whole = CANARY_NBYTES + (nbytes + 255) / 256 * 256 + CANARY_NBYTES;
    TESS_CHECK(whole <= REGION_NBYTES - e.region_used, TESS_E_MEMORY,
               "emulated device: '%s' needs %zu bytes, %zu are free", name, nbytes,
               REGION_NBYTES - e.region_used);
    e.region_used += whole;
    const allocation a = {name, e.region_end - e.region_used + CANARY_NBYTES, nbytes};
    region_protect(true);
    memset(a.data - CANARY_NBYTES, CANARY, whole);
    memset(a.data, poison_byte(), nbytes);
    canary_guard(a);
    region_protect(false);
    e.memory.push_back(a);
    *out = a.data;
    return TESS_OK;
}

extern "C" void tess_emulation_release_all(void)
{
    emulator &e = emu();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(e.region_end - e.region_used, e.region_used);
#endif
    e.memory.clear();
    e.region_used = 0;
}

static tess_status copy(void *dst, const void *src, const void *device, size_t nbytes)
{
    TESS_CHECK(nbytes == 0 || allocation_find(device, nbytes) != nullptr, TESS_E_ARG,
               "emulated device: %zu bytes at %p are not inside one allocation", nbytes, device);
    region_protect(true);
    if (nbytes > 0)
        memcpy(dst, src, nbytes);
    region_protect(false);
    return TESS_OK;
}

extern "C" tess_status tess_emulation_write(void *device, const void *host, size_t nbytes)
{
    return copy(device, host, device, nbytes);
}

extern "C" tess_status tess_emulation_read(void *host, const void *device, size_t nbytes)
{
    return copy(host, device, device, nbytes);
}
