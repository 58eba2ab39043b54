/* Jobs: resolve the rows of a group, digest and check them, stage what is ragged, and move them. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rows.h"

/* -- rows ------------------------------------------------------------------------------------------------------- */

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

void sp_report(Batch *batch, const Job *job, int fault, const Found *found, int64_t at) {
  int64_t fine = FINE;
  if (!__atomic_compare_exchange_n(&batch->fault, &fine, fault, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return;
  batch->fault_job = job - batch->jobs;
  batch->fault_row = found ? found->cut->first_row + found->row : -1;
  batch->fault_at = at;
  __atomic_store_n(&batch->stop, 1, __ATOMIC_RELEASE);
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
  if (high && found->data) sp_report(batch, job, WRONG_VALUE, found, 0);
}

/* -- groups ----------------------------------------------------------------------------------------------------- */

/* Rows of one group: where they are, and pointers straight into the map where whole rows are used as they are, else
 * into `scratch`. */
static void resolve(Batch *batch, const Job *job, const Found *all, const uint8_t **rows, uint8_t *scratch) {
  const Program *p = job->program;
  const int64_t pitch = row_pitch(p);
  const int whole = p->kernel != SHUFFLE && p->kernel != COPY && p->kernel != WORDS;
  int same = 0; /* the staged row that holds nothing but plan padding, plus one */
  for (int32_t i = 0; i < p->group_rows; i++) {
    const Found *found = all + i;
    if (whole && !p->add && found->data && found->bytes == p->padded) {
      rows[i] = found->data;
      continue;
    }
    if (same && !found->data && !found->outside) {
      rows[i] = rows[same - 1];
      continue;
    }
    uint8_t *row = scratch + i * pitch;
    stage(batch, job, found, row);
    rows[i] = row;
    if (!found->data && !found->outside) same = i + 1;
  }
}

int64_t sp_locate(const Job *job, int64_t group, Seen *seen, Found *all) {
  const Program *p = job->program;
  int64_t rest = group, along = 0, base = 0, dst = p->offset;
  for (int32_t l = p->row_loops - 1; l >= 0; l--) {
    const RowLoop *loop = p->rows + l;
    const int64_t i = rest % loop->count;
    rest /= loop->count;
    along += i * loop->rows;
    base += i * loop->base;
    dst += i * loop->dst;
  }
  Found found = {NULL, 0, 0, 0, NULL, 0};
  int64_t last = -1, more = 0; /* rows of the cut that follow */
  for (int32_t i = 0; i < p->group_rows; i++) {
    const int64_t at = along + p->group_row[i], stacked = at + base + p->group_base[i];
    if (more > 0 && stacked == last + 1 && at < p->row_limit) {
      found.data += found.cut->stride;
      found.row++;
      more--;
    } else {
      found = find(job, seen, at, stacked - at);
      more = found.data ? found.cut->rows - 1 - found.row : 0;
    }
    all[i] = found;
    last = stacked;
  }
  return dst;
}

void sp_move(int64_t isa, const Program *p, const uint8_t *const *rows, uint8_t *dst, const Aside *aside) {
  if (isa == AVX512 && sp_move_avx512(p, rows, dst, aside)) return;
  if (isa && sp_move_avx2(p, rows, dst, aside->cached)) return;
  sp_move_portable(p, rows, dst);
}

/* Rows that are copied short piece by short piece are asked for a group ahead: the hardware does not see them coming. */
static void ask_for(const Program *p, const Found *rows) {
  if (p->kernel != RUN && p->kernel != COPY) return;
  for (int32_t i = 0; i < p->group_rows; i++)
    for (int64_t at = 0; rows[i].data && rows[i].bytes < LONG_ROW && at < rows[i].bytes; at += 64)
      __builtin_prefetch(rows[i].data + at);
}

/* Whether lines of a page that the kernel has just cleared are best written where they are, in the caches. Measured:
 * Intel's stores past the caches wait for each such line to leave them; AMD's do not (benchmarks/notes/pack.md). */
static int fresh_lines_are_cached(void) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
#else
  return 0;
#endif
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
enum { AT_ONCE = 256 << 10 }; /* of pages; so few that their lines, just cleared, are still in the caches */

/* Pages of a fresh destination that were asked for, and what a group writes relative to where it begins. */
typedef struct { uintptr_t from, to, page; int64_t low, high; } Present;

static Present nothing_present(const Program *p) {
  Present present = {0, 0, (uintptr_t)sysconf(_SC_PAGESIZE), 0, p->tile_bytes};
  for (int32_t l = 0; l < p->column_loops; l++) {
    const int64_t reach = (p->columns[l].count - 1) * p->columns[l].dst;
    *(reach < 0 ? &present.low : &present.high) += reach;
  }
  return present;
}

/* Ask for the pages of the group at `dst` and some that follow, in one call: a fault for each costs half as much again.
 * Where the kernel cannot (it is older than 5.14, the disk is full), they come, or fail, by faults as ever. */
static void make_present(Present *present, const Job *job, int64_t dst) {
  const uintptr_t all = (uintptr_t)job->dst, end = all + (uintptr_t)job->program->bytes;
  const uintptr_t from = all + (uintptr_t)(dst + present->low), to = all + (uintptr_t)(dst + present->high);
  if (from >= present->from && to <= present->to) return;
  const int follows = from >= present->from && from <= present->to;
  const uintptr_t begin = (follows ? present->to : from) & ~(present->page - 1);
  uintptr_t stop = begin + AT_ONCE < to ? to : begin + AT_ONCE;
  if (stop > end) stop = end;
  madvise((void *)begin, stop - begin, MADV_POPULATE_WRITE);
  present->from = follows ? present->from : from;
  present->to = stop;
}

void sp_run_job(Batch *batch, const Job *job, const uint8_t **rows, uint8_t *scratch, Sums *sums) {
  const Program *p = job->program;
  Seen seen = {0, 0};
  Found found[2][MOST_ROWS];
  const uint8_t *ahead[MOST_ROWS];
  uint64_t row_key[MOST_ROWS + 4][2];
  const int cached = batch->fresh && fresh_lines_are_cached();
  Present present = nothing_present(p);
  int64_t dst = sp_locate(job, job->begin, &seen, found[job->begin & 1]);
  for (int64_t group = job->begin; group < job->end && !__atomic_load_n(&batch->stop, __ATOMIC_RELAXED); group++) {
    const Found *all = found[group & 1], *next = found[(group + 1) & 1];
    Aside aside = {ahead, NULL, NULL, row_key, sums->lane, NULL, cached};
    const int apart = !sp_weighs(batch, job, all, &aside) && job->field != OTHER;
    const int64_t following = group + 1 < job->end ? sp_locate(job, group + 1, &seen, found[(group + 1) & 1]) : 0;
    if (group + 1 < job->end) ask_for(p, next);
    if (apart) sp_digest_group(batch, job, all, 1, sums);
    resolve(batch, job, all, rows, scratch);
    if (batch->fresh) make_present(&present, job, dst);
    for (int32_t i = 0; i < p->group_rows; i++)
      ahead[i] = group + 1 < job->end && next[i].data ? next[i].data - next[i].begin : rows[i];
    sp_move(batch->isa, p, rows, job->dst + dst, &aside);
    if (apart) sp_digest_group(batch, job, all, 0, sums);
    dst = following;
  }
}

/* Sizes of the structs, so that Python refuses a library that was built from another version of engine.h. */
int64_t sp_sizes(void) {
  const int64_t sizes[] = {sizeof(Program), sizeof(Cut), sizeof(Job), sizeof(Part), sizeof(Term), sizeof(Batch)};
  int64_t joined = 0;
  for (int i = 0; i < 6; i++) joined = joined * 1000 + sizes[i];
  return joined;
}

/* The best instruction set of this machine that the engine has kernels for. */
int sp_isa(void) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return PORTABLE;
  const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                   __builtin_cpu_supports("gfni");
  return wide ? AVX512 : AVX2;
#else
  return PORTABLE;
#endif
}
