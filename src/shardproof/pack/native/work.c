/* Jobs: resolve the rows of a group, digest and check them, stage what is ragged, and move them. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "engine.h"

#define ROW_SLACK 64
#define MOST_ROWS 256 /* of a group; tile.py keeps to it */
/* Long rows are digested first, which brings them into the cache in order. Short pieces of long rows are digested
 * after the move: read row by row, they would make the hardware fetch the rest of every row as well. */
#define LONG_ROW 1024

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

/* -- rows ------------------------------------------------------------------------------------------------------- */

typedef struct {
  const uint8_t *data;  /* NULL: padding */
  int64_t begin, bytes; /* columns that the checkpoint fills */
  int outside;          /* beyond the canonical matrix: the layout's own padding */
  const Cut *cut;
  int64_t row;
} Found;

typedef struct { int64_t expert, first; } Seen;

static Found find(const Job *job, Seen *seen, int64_t along, int64_t base) {
  const Program *p = job->program;
  const int64_t stacked = base + along;
  Found found = {NULL, 0, 0, 0, NULL, 0};
  if (along >= p->row_limit || stacked >= p->stack_rows) {
    found.outside = 1;
    return found;
  }
  if (stacked < seen->first || stacked >= seen->first + p->matrix_rows) { /* divisions are slow, and experts long */
    seen->expert = stacked / p->matrix_rows;
    seen->first = seen->expert * p->matrix_rows;
  }
  const int64_t row = stacked - seen->first;
  const Cut *cut = job->cuts + seen->expert * job->cuts_each;
  for (int32_t i = 0; i < job->cuts_each; i++, cut++) {
    const int64_t at = row - cut->at_row;
    if (at < 0 || at >= cut->rows) continue;
    found.data = cut->src + at * cut->stride;
    found.begin = cut->at_column;
    found.bytes = cut->bytes;
    found.cut = cut;
    found.row = at;
    break;
  }
  return found;
}

static void report(Batch *batch, const Job *job, int fault, const Found *found, int64_t at) {
  int64_t fine = FINE;
  if (!__atomic_compare_exchange_n(&batch->fault, &fine, fault, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return;
  batch->fault_job = job - batch->jobs;
  batch->fault_row = found ? found->cut->first_row + found->row : -1;
  batch->fault_at = at;
  __atomic_store_n(&batch->stop, 1, __ATOMIC_RELEASE);
}

static void digest(Batch *batch, const Job *job, const Found *found, uint64_t sums[2]) {
  const Cut *cut = found->cut;
  uint64_t part[2];
  const int64_t at = cut->first_column / (job->field == WEIGHT ? 4 : 1);
  if (job->field == WEIGHT) {
    if (!cut->digested) return;
    const uint32_t *k = batch->weight_keys + at;
    (batch->simd ? sp_sum_weights_avx2 : sp_sum_weights)(found->data, found->bytes, k, k + batch->keys, part);
  } else {
    const int16_t *k = batch->scale_keys + at;
    if ((batch->simd ? sp_sum_scales_avx2 : sp_sum_scales)(found->data, found->bytes, k, batch->keys, part))
      report(batch, job, SCALE_IS_NAN, found, 0);
    if (!cut->digested) return;
  }
  for (int lane = 0; lane < 2; lane++)
    sums[lane] += part[lane] * sp_row_key(cut->place[lane], (uint64_t)(cut->first_row + found->row));
}

static void stage(Batch *batch, const Job *job, const Found *found, uint8_t *row) {
  const Program *p = job->program;
  if (found->outside) {
    memset(row, p->filler, (size_t)p->padded);
    return;
  }
  const int64_t end = found->begin + found->bytes;
  if (found->begin) memset(row, p->pad, (size_t)found->begin);
  if (end < p->width) memset(row + end, p->pad, (size_t)(p->width - end));
  if (found->data) memcpy(row + found->begin, found->data, (size_t)found->bytes);
  if (p->width < p->padded) memset(row + p->width, p->filler, (size_t)(p->padded - p->width));
  if (!p->add) return;
  int high = 0;
  for (int64_t i = 0; i < p->width; i++) {
    high |= row[i] > p->highest;
    row[i] = (uint8_t)(row[i] + p->add);
  }
  if (high && found->data) report(batch, job, VALUE_TOO_HIGH, found, 0);
}

/* -- groups ----------------------------------------------------------------------------------------------------- */

/* Row pointers of one group, straight into the map where whole rows are used as they are, else into `scratch`. */
static void resolve(Batch *batch, const Job *job, Seen *seen, int64_t along, int64_t base, Found *all,
                    const uint8_t **rows, uint8_t *scratch, uint64_t sums[2]) {
  const Program *p = job->program;
  const int64_t pitch = (p->padded + ROW_SLACK) | 63;
  const int whole = p->kernel == RUN || p->kernel == TILE16;
  int same = 0; /* the staged row that holds nothing but plan padding, plus one */
  for (int32_t i = 0; i < p->group_rows; i++) {
    const Found found = all[i] = find(job, seen, along + p->group_row[i], base + p->group_base[i]);
    if (found.data && found.bytes >= LONG_ROW && job->field != OTHER) digest(batch, job, &found, sums);
    if (whole && !p->add && found.data && found.bytes == p->padded) {
      rows[i] = found.data;
      continue;
    }
    if (same && !found.data && !found.outside) {
      rows[i] = rows[same - 1];
      continue;
    }
    uint8_t *row = scratch + i * (pitch + 1);
    stage(batch, job, &found, row);
    rows[i] = row;
    if (!found.data && !found.outside) same = i + 1;
  }
}

static void run_job(Batch *batch, const Job *job, const uint8_t **rows, uint8_t *scratch, uint64_t sums[2]) {
  const Program *p = job->program;
  Seen seen = {0, 0};
  Found all[MOST_ROWS];
  for (int64_t group = job->begin; group < job->end && !batch->stop; group++) {
    int64_t rest = group, along = 0, base = 0, dst = p->offset;
    for (int32_t l = p->row_loops - 1; l >= 0; l--) {
      const RowLoop *loop = p->rows + l;
      const int64_t i = rest % loop->count;
      rest /= loop->count;
      along += i * loop->rows;
      base += i * loop->base;
      dst += i * loop->dst;
    }
    resolve(batch, job, &seen, along, base, all, rows, scratch, sums);
    if (!batch->simd || !sp_move_avx2(p, rows, job->dst + dst)) sp_move_portable(p, rows, job->dst + dst);
    for (int32_t i = 0; i < p->group_rows && job->field != OTHER; i++)
      if (all[i].data && all[i].bytes < LONG_ROW) digest(batch, job, all + i, sums);
  }
}

/* One thread's share: jobs are taken from a common counter. `scratch` holds the row pointers, then the rows. */
void sp_work(Batch *batch, uint8_t *scratch, int64_t pointers) {
  const uint8_t **rows = (const uint8_t **)scratch;
  for (;;) {
    const int64_t i = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED);
    if (i >= batch->count || __atomic_load_n(&batch->stop, __ATOMIC_ACQUIRE)) break;
    const Job *volatile job = batch->jobs + i;
    uint64_t sums[2] = {0, 0};
    if (sigsetjmp(landing, 0)) {
      report(batch, job, BUS_ERROR, NULL, (int64_t)(intptr_t)struck);
      break;
    }
    armed = 1;
    run_job(batch, job, rows, scratch + pointers * 8, sums);
    armed = 0;
    for (int lane = 0; lane < 2; lane++)
      __atomic_fetch_add(&batch->totals[2 * job->total + lane], sums[lane], __ATOMIC_RELAXED);
  }
#if defined(__x86_64__)
  __builtin_ia32_sfence(); /* streamed lines are visible before another thread reads them */
#endif
}

/* Sizes of the structs, so that Python refuses a library that was built from another version of engine.h. */
int64_t sp_sizes(void) { return (((int64_t)sizeof(Program) * 1000 + sizeof(Cut)) * 1000 + sizeof(Job)) * 1000 + sizeof(Part); }

int sp_has_avx2(void) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") != 0;
#else
  return 0;
#endif
}
