/* Threads: one executor at a time. Beside torch it is torch's own OpenMP runtime (two pools that spin on the same
 * cores cost up to 1.8x); without it, a small pool of this library. After fork() the child has no threads, and GNU
 * OpenMP's team would wait for them for ever: the child starts a pool of its own. */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"

#define MOST_WORKERS 256
#define SPINS_BEFORE_SLEEP 20000

typedef void gomp_parallel_fn(void (*)(void *), void *, unsigned, unsigned);

static _Atomic(gomp_parallel_fn *) executor;
static atomic_int claimed, hooked;

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int workers;                /* started */
    _Atomic uint64_t region;    /* number << 16 | workers that take part: one word, so that no worker mixes two */
    _Atomic int left;           /* that have not finished */
    void (*fn)(void *);
    void *arg;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait a little; after a while give the core away, since on a busy machine its owner may be the one we wait for. */
void sp_relax(int *spins) {
    if (++*spins < 2000) {
        pause_cpu();
    } else {
        sched_yield();
    }
}

static uint64_t wait_for_work(uint64_t seen) {
    uint64_t now = seen;
    for (int spins = 0; spins < SPINS_BEFORE_SLEEP; spins++) {
        now = atomic_load_explicit(&pool.region, memory_order_acquire);
        if (now != seen) return now;
        pause_cpu();
    }
    pthread_mutex_lock(&pool.mutex);
    while ((now = atomic_load(&pool.region)) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
    pthread_mutex_unlock(&pool.mutex);
    return now;
}

typedef struct {
    uint64_t index, seen;
} worker_start;

static void *worker(void *start_as_void) {
    worker_start start = *(worker_start *)start_as_void;
    free(start_as_void);
    for (;;) {
        start.seen = wait_for_work(start.seen);
        if (start.index < (start.seen & 0xffff)) {
            pool.fn(pool.arg);
            atomic_fetch_sub_explicit(&pool.left, 1, memory_order_release);
        }
    }
    return NULL;
}

static int start_workers(int wanted) {
    while (pool.workers < wanted) {
        worker_start *start = malloc(sizeof *start);
        if (start == NULL) break;
        *start = (worker_start){(uint64_t)pool.workers, atomic_load(&pool.region)};
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, start) != 0) {
            free(start);
            break;
        }
        pthread_detach(thread);
        pool.workers++;
    }
    return pool.workers < wanted ? pool.workers : wanted;
}

static void after_fork_in_child(void) {
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.workers = 0;
    atomic_store(&executor, NULL);
    if (atomic_exchange(&claimed, 0)) sp_forget_workspace(); /* its owner did not come along */
}

void sp_set_executor(void *gomp_parallel) {
    gomp_parallel_fn *fn = NULL;
    memcpy(&fn, &gomp_parallel, sizeof fn);
    atomic_store(&executor, fn);
}

int sp_claim(void) {
    if (!atomic_exchange(&hooked, 1)) pthread_atfork(NULL, NULL, after_fork_in_child);
    return !atomic_exchange(&claimed, 1);
}
void sp_release(void) { atomic_store(&claimed, 0); }

void sp_run(int threads, void (*fn)(void *), void *arg) {
    gomp_parallel_fn *gomp = atomic_load(&executor);
    if (threads <= 1) {
        fn(arg);
        return;
    }
    if (gomp != NULL) {
        gomp(fn, arg, (unsigned)threads, 0);
        return;
    }
    const int helpers = start_workers(threads - 1 < MOST_WORKERS ? threads - 1 : MOST_WORKERS);
    pool.fn = fn;
    pool.arg = arg;
    atomic_store(&pool.left, helpers);
    pthread_mutex_lock(&pool.mutex);
    atomic_store(&pool.region, ((atomic_load(&pool.region) >> 16) + 1) << 16 | (uint64_t)helpers);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    fn(arg);
    for (int spins = 0; atomic_load_explicit(&pool.left, memory_order_acquire) > 0;) sp_relax(&spins);
}
