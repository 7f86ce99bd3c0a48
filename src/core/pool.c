#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "core/memory.h"

/*
 * [Note: idle threads] Kernels follow each other within microseconds, so a worker spins for a short
 * while before it sleeps. With more ranks than cores a spinning worker would steal a peer's core:
 * it yields in the spin and gives up early.
 */
enum { SPIN_NUMEL = 2000 };

struct tess_pool {
    int thread_numel;
    int started_numel;
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint generation;
    atomic_int next_part;
    atomic_int busy_numel;
    atomic_bool is_stopping;
    int sleeper_numel;
    int part_numel;
    tess_pool_body body;
    void *arg;
};

static void run_parts(tess_pool *pool)
{
    for (;;) {
        const int part = atomic_fetch_add(&pool->next_part, 1);
        if (part >= pool->part_numel)
            return;
        pool->body(pool->arg, part, pool->part_numel);
    }
}

static void wait_for_work(tess_pool *pool, unsigned seen)
{
    for (int i = 0; i < SPIN_NUMEL; i++) {
        if (atomic_load(&pool->generation) != seen)
            return;
        if (i % 64 == 63)
            sched_yield();
        else
            __builtin_ia32_pause();
    }
    pthread_mutex_lock(&pool->lock);
    pool->sleeper_numel++;
    while (atomic_load(&pool->generation) == seen)
        pthread_cond_wait(&pool->wake, &pool->lock);
    pool->sleeper_numel--;
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    tess_pool *pool = arg;
    unsigned seen = 0;
    for (;;) {
        wait_for_work(pool, seen);
        seen = atomic_load(&pool->generation);
        if (atomic_load(&pool->is_stopping))
            return NULL;
        run_parts(pool);
        atomic_fetch_sub(&pool->busy_numel, 1);
    }
}

static void publish(tess_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->generation, 1);
    if (pool->sleeper_numel > 0)
        pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

tess_status tess_pool_create(int thread_numel, tess_pool **out)
{
    TESS_CHECK(thread_numel >= 1 && thread_numel <= 1024, TESS_E_ARG,
               "compute threads: expected 1 to 1024, found %d", thread_numel);
    void *object = NULL;
    void *threads = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_pool), &object));
    tess_pool *pool = object;
    tess_status st = tess_alloc_array(thread_numel, sizeof(pthread_t), &threads);
    if (st != TESS_OK) {
        tess_free(pool);
        return st;
    }
    pool->threads = threads;
    pool->thread_numel = thread_numel;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 1; i < thread_numel; i++) {
        if (pthread_create(&pool->threads[i], NULL, worker_main, pool) != 0) {
            tess_pool_destroy(&pool);
            return TESS_FAIL(TESS_E_MEMORY, "cannot start compute thread %d of %d", i,
                             thread_numel);
        }
        pool->started_numel++;
    }
    *out = pool;
    return TESS_OK;
}

void tess_pool_destroy(tess_pool **inout)
{
    tess_pool *pool = *inout;
    if (pool == NULL)
        return;
    atomic_store(&pool->is_stopping, true);
    publish(pool);
    for (int i = 1; i <= pool->started_numel; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    tess_free(pool->threads);
    tess_free(pool);
    *inout = NULL;
}

int tess_pool_thread_numel(const tess_pool *pool) { return pool != NULL ? pool->thread_numel : 1; }

void tess_pool_run(tess_pool *pool, int part_numel, tess_pool_body body, void *arg)
{
    if (pool == NULL || pool->started_numel == 0 || part_numel == 1) {
        for (int i = 0; i < part_numel; i++)
            body(arg, i, part_numel);
        return;
    }
    pool->body = body;
    pool->arg = arg;
    pool->part_numel = part_numel;
    atomic_store(&pool->next_part, 0);
    atomic_store(&pool->busy_numel, pool->started_numel);
    publish(pool);
    run_parts(pool);
    for (int i = 0; atomic_load(&pool->busy_numel) > 0; i++) {
        if (i % 64 == 63)
            sched_yield();
        else
            __builtin_ia32_pause();
    }
}
