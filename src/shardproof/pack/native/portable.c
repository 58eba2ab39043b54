/* Kernels in plain C: byte runs of any length, and sub-byte units through tables of 256 words. */
#include <string.h>

#include "engine.h"

static inline void copy_part(uint8_t *dst, const uint8_t *src, int32_t size) {
  switch (size) { /* constant sizes become single moves */
    case 1: *dst = *src; break;
    case 2: memcpy(dst, src, 2); break;
    case 4: memcpy(dst, src, 4); break;
    case 8: memcpy(dst, src, 8); break;
    case 16: memcpy(dst, src, 16); break;
    default: memcpy(dst, src, (size_t)size);
  }
}

static void copy_tile(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst) {
  for (int32_t i = 0; i < p->parts; i++) {
    const Part *part = p->part + i;
    copy_part(dst + part->dst, rows[part->row] + column + part->column, part->size);
  }
}

/* Parts of one word stand together; the last of them is marked by keep = 1. */
static void word_tile(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst) {
  uint32_t word = 0;
  for (int32_t i = 0; i < p->parts; i++) {
    const Part *part = p->part + i;
    word |= p->tables[256 * part->index + rows[part->row][column + part->column]];
    if (!part->keep) continue;
    if (p->word == 4)
      memcpy(dst + part->dst, &word, 4);
    else
      dst[part->dst] = (uint8_t)word;
    word = 0;
  }
}

static void loop(const Program *p, int32_t level, const uint8_t *const *rows, int64_t column, uint8_t *dst) {
  if (level < p->column_loops) {
    const ColumnLoop *c = p->columns + level;
    for (int64_t i = 0; i < c->count; i++) loop(p, level + 1, rows, column + i * c->src, dst + i * c->dst);
  } else if (p->kernel == RUN) {
    memcpy(dst, rows[0] + column, (size_t)p->tile_bytes);
  } else if (p->kernel == WORDS) {
    word_tile(p, rows, column, dst);
  } else {
    copy_tile(p, rows, column, dst);
  }
}

void sp_move_portable(const Program *p, const uint8_t *const *rows, uint8_t *dst) { loop(p, 0, rows, 0, dst); }
