/* Threads: they are started by one call, take jobs from a common counter, and are waited for. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rows.h"

#define STACK (1 << 20)

/* -- a file that shrinks under its map is an error, not a crash ------------------------------------------------ */

static __thread sigjmp_buf landing;
static __thread volatile sig_atomic_t armed;
static __thread void *volatile struck;
static struct sigaction before;

static void on_bus_error(int number, siginfo_t *info, void *context) {
  if (armed) {
    armed = 0;
    struck = info->si_addr;
    siglongjmp(landing, 1);
  }
  if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN && before.sa_handler) {
    before.sa_handler(number);
  } else {
    sigaction(SIGBUS, &before, NULL); /* the access is repeated and ends as it would have without us */
  }
}

int sp_guard(int on) {
  struct sigaction mine;
  if (!on) return sigaction(SIGBUS, &before, NULL);
  memset(&mine, 0, sizeof mine);
  mine.sa_sigaction = on_bus_error;
  mine.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&mine.sa_mask);
  return sigaction(SIGBUS, &mine, &before);
}

/* -- one thread ------------------------------------------------------------------------------------------------- */

/* Streamed lines are visible before another thread reads them. */
static void streams_end(void) {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

/* Whether job `i` may run at last; not if the batch was stopped before. */
static int wait_until_open(Batch *batch, int64_t i) {
  const struct timespec a_while = {0, 20000};
  while (i >= __atomic_load_n(&batch->open, __ATOMIC_ACQUIRE)) {
    if (__atomic_load_n(&batch->stop, __ATOMIC_ACQUIRE)) return 0;
    nanosleep(&a_while, NULL);
  }
  return 1;
}

/* One thread's share: jobs are taken from a common counter. `scratch` holds the row pointers, then the rows. */
static void work(Batch *batch, uint8_t *scratch, int64_t pointers) {
  const uint8_t **rows = (const uint8_t **)scratch;
  for (;;) {
    const int64_t i = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED);
    if (i >= batch->count || __atomic_load_n(&batch->stop, __ATOMIC_ACQUIRE)) break;
    if (!wait_until_open(batch, i)) break;
    const Job *volatile job = batch->jobs + i;
    Sums sums = {{0}};
    if (sigsetjmp(landing, 0)) {
      sp_report(batch, job, BUS_ERROR, NULL, (int64_t)(intptr_t)struck);
      break;
    }
    armed = 1;
    if (job->program->way == PACK)
      sp_run_job(batch, job, rows, scratch + pointers * 8, &sums);
    else
      sp_unpack_job(batch, job, (uint8_t **)scratch, scratch + pointers * 8);
    armed = 0;
    for (int i = 0; i < 16; i++)
      __atomic_fetch_add(&batch->totals[2 * job->total + i / 8], sums.lane[i], __ATOMIC_RELAXED);
    if (!batch->left) continue;
    streams_end();
    __atomic_fetch_sub(&batch->left[job->part], 1, __ATOMIC_RELEASE);
  }
  streams_end();
  sp_tiles_end();
}

/* -- all of them ------------------------------------------------------------------------------------------------ */

typedef struct { Batch *batch; uint8_t *scratch; int64_t pointers; } Share;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of every batch's `running` */
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;

static void *begin(void *given) {
  const Share share = *(Share *)given;
  free(given);
  pthread_setname_np(pthread_self(), "shardproof-pack");
  work(share.batch, share.scratch, share.pointers);
  pthread_mutex_lock(&lock);
  share.batch->running--; /* the last that this thread does with the batch */
  pthread_cond_broadcast(&ended);
  pthread_mutex_unlock(&lock);
  return NULL;
}

static int start_one(Batch *batch, uint8_t *scratch, int64_t pointers, const pthread_attr_t *how) {
  pthread_t thread;
  Share *share = malloc(sizeof *share);
  if (!share) return 0;
  *share = (Share){batch, scratch, pointers};
  pthread_mutex_lock(&lock);
  batch->running++;
  pthread_mutex_unlock(&lock);
  if (!pthread_create(&thread, how, begin, share)) return 1;
  free(share);
  pthread_mutex_lock(&lock);
  batch->running--;
  pthread_mutex_unlock(&lock);
  return 0;
}

/* Start `count` threads on a batch; where the system gives none, the caller does the work, so that nobody waits in vain.
 * Signals but those of a thread's own mistakes are left to the threads that were there before. */
void sp_start(Batch *batch, uint8_t *const *scratch, int64_t count, int64_t pointers) {
  sigset_t others, mine;
  pthread_attr_t how;
  int started = 0;
  sigfillset(&others);
  sigdelset(&others, SIGBUS), sigdelset(&others, SIGSEGV), sigdelset(&others, SIGILL), sigdelset(&others, SIGFPE);
  pthread_attr_init(&how);
  pthread_attr_setstacksize(&how, STACK);
  pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_BLOCK, &others, &mine);
  for (int64_t i = 0; i < count; i++) started += start_one(batch, scratch[i], pointers, &how);
  pthread_sigmask(SIG_SETMASK, &mine, NULL);
  pthread_attr_destroy(&how);
  if (!started) work(batch, scratch[0], pointers);
}

/* Wait for a batch's threads, `millis` at most (for ever if negative); whether all have ended. */
int sp_wait(Batch *batch, int64_t millis) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_nsec += millis % 1000 * 1000000;
  until.tv_sec += millis / 1000 + until.tv_nsec / 1000000000;
  until.tv_nsec %= 1000000000;
  int late = 0;
  pthread_mutex_lock(&lock);
  while (batch->running && !late)
    late = millis < 0 ? pthread_cond_wait(&ended, &lock) : pthread_cond_timedwait(&ended, &lock, &until);
  const int all = !batch->running;
  pthread_mutex_unlock(&lock);
  return all;
}
