/* Unpacking: tiles of a kernel buffer to rows. Jobs, groups and rows are those of packing, source and destination
 * exchanged; what the layout or the plan added is read, perhaps, and goes nowhere. */
#include <string.h>

#include "rows.h"

enum { TOGETHER = 8, AHEAD = 2048, BEYOND = 16 }; /* tiles; bytes asked for early; bytes that SHUFFLE may read too far */

typedef struct {
  const Job *job;
  int64_t isa;
  uint8_t *const *rows;
  Program moves; /* of a few tiles, each as if it were a row, to blocks */
  ColumnLoop few;
} Task;

#define SCATTER(type)                                                                                        \
  for (const Part *q = p->back, *end = q + p->backs; q < end; q++) {                                         \
    uint8_t *const to = rows[q->row] + column + q->column;                                                   \
    for (int64_t t = 0; t < tiles; t++) memcpy(to + t * next, block + t * p->back_block + q->dst, sizeof(type)); \
  }

typedef struct { uint8_t byte[16]; } Sixteen;
typedef struct { uint8_t byte[32]; } ThirtyTwo;
typedef struct { uint8_t byte[64]; } SixtyFour;

static void scatter(const Program *p, const uint8_t *block, uint8_t *const *rows, int64_t column, int64_t next,
                    int64_t tiles) {
  switch (p->back_piece) {
    case 1: SCATTER(uint8_t) break;
    case 2: SCATTER(uint16_t) break;
    case 4: SCATTER(uint32_t) break;
    case 8: SCATTER(uint64_t) break;
    case 16: SCATTER(Sixteen) break;
    case 32: SCATTER(ThirtyTwo) break;
    default: SCATTER(SixtyFour)
  }
}

/* Whether moves that read whole windows stay inside the buffer, for the tile at `from`. */
static int inside(const Job *job, const uint8_t *from) {
  const Program *p = job->program;
  return p->kernel != SHUFFLE || from + p->tile_bytes + BEYOND <= job->dst + p->bytes;
}

static void through_block(Task *task, const uint8_t *src, int64_t column, const ColumnLoop *c) {
  const Program *p = task->job->program;
  uint8_t block[TOGETHER * MOST_BLOCK] __attribute__((aligned(64)));
  uint8_t edge[MOST_BLOCK + BEYOND];
  int64_t tiles;
  for (int64_t i = 0; i < c->count; i += tiles) {
    const uint8_t *from = src + i * c->dst;
    tiles = c->count - i < TOGETHER ? c->count - i : TOGETHER;
    while (tiles > 1 && !(inside(task->job, from) && inside(task->job, from + (tiles - 1) * c->dst))) tiles--;
    if (!inside(task->job, from)) from = memcpy(edge, from, (size_t)p->tile_bytes);
    task->few = (ColumnLoop){tiles, c->dst, p->back_block};
    const uint8_t *const row[1] = {from}, *const ahead[1] = {from + AHEAD};
    const Aside aside = {ahead, NULL, NULL, NULL, NULL, NULL, 0};
    sp_move(task->isa, &task->moves, row, block, &aside);
    scatter(p, block, task->rows, column + i * c->src, c->src, tiles);
  }
}

static void untile(const Task *task, const uint8_t *src, int64_t column, const ColumnLoop *c) {
  const int32_t group = task->job->program->group_rows;
  int64_t i = 0;
  if (task->isa == AVX512) i = sp_untile_avx512(src, c->dst, c->count, task->rows, group, column);
  else if (task->isa) i = sp_untile_avx2(src, c->dst, c->count, task->rows, group, column);
  for (; i < c->count; i++)
    for (int32_t r = 0; r < group; r++) memcpy(task->rows[r] + column + 16 * i, src + i * c->dst + 16 * r, 16);
}

static void innermost(Task *task, const uint8_t *src, int64_t column, const ColumnLoop *c) {
  const Program *p = task->job->program;
  if (p->way == UNPACK_BLOCK) {
    through_block(task, src, column, c);
  } else if (p->kernel == TILE16) {
    untile(task, src, column, c);
  } else if (p->kernel == RUN) {
    for (int64_t i = 0; i < c->count; i++)
      memcpy(task->rows[0] + column + i * c->src, src + i * c->dst, (size_t)p->tile_bytes);
  } else {
    for (int64_t i = 0; i < c->count; i++)
      for (const Part *q = p->part, *end = q + p->parts; q < end; q++)
        memcpy(task->rows[q->row] + column + i * c->src + q->column, src + i * c->dst + q->dst, (size_t)q->size);
  }
}

static void loop(Task *task, int32_t level, const uint8_t *src, int64_t column) {
  const ColumnLoop *c = task->job->program->columns + level;
  if (level + 1 == task->job->program->column_loops) {
    innermost(task, src, column, c);
    return;
  }
  for (int64_t i = 0; i < c->count; i++) loop(task, level + 1, src + i * c->dst, column + i * c->src);
}

/* What a staged row holds of its cut, with the layout's value change undone. */
static void hand_over(Batch *batch, const Job *job, const Found *found, const uint8_t *row) {
  const int add = job->program->add;
  uint8_t *const to = (uint8_t *)found->data;
  row += found->begin;
  if (!add) {
    memcpy(to, row, (size_t)found->bytes);
    return;
  }
  int low = 0;
  for (int64_t i = 0; i < found->bytes; i++) {
    low |= row[i] < add;
    to[i] = (uint8_t)(row[i] - add);
  }
  if (low) sp_report(batch, job, WRONG_VALUE, found, 0);
}

/* Rows that nobody asked for are written to `scratch` as well, as the moves do whole groups. */
void sp_unpack_job(Batch *batch, const Job *job, uint8_t **rows, uint8_t *scratch) {
  const Program *p = job->program;
  const int64_t pitch = row_pitch(p);
  Seen seen = {0, 0};
  Found all[MOST_ROWS];
  Task task = {job, batch->isa, rows, *p, {0, 0, 0}};
  task.moves.columns = &task.few;
  task.moves.column_loops = 1;
  for (int64_t group = job->begin; group < job->end && !__atomic_load_n(&batch->stop, __ATOMIC_RELAXED); group++) {
    const uint8_t *const src = job->dst + sp_locate(job, group, &seen, all);
    int wanted = 0;
    for (int32_t i = 0; i < p->group_rows; i++) {
      const int direct = all[i].data && !p->add && all[i].bytes == p->padded;
      rows[i] = direct ? (uint8_t *)all[i].data : scratch + i * pitch;
      wanted |= all[i].data != NULL;
    }
    if (!wanted) continue;
    loop(&task, 0, src, 0);
    for (int32_t i = 0; i < p->group_rows; i++)
      if (all[i].data && rows[i] != all[i].data) hand_over(batch, job, all + i, rows[i]);
  }
}
