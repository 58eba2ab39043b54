/* The digest of a group of rows: apart from its move, or what a kernel needs to take it on the way. */
#include <string.h>

#include "rows.h"

/* Keys of rows, both lanes; 0 where a row does not count. */
static void keys_of(const Found *const *rows, int64_t count, uint64_t (*keys)[2]) {
  int apart = 0;
  for (int64_t i = 0; i < count; i++) {
    const Cut *cut = rows[i]->cut;
    const uint64_t step = cut ? (uint64_t)(cut->first_row + rows[i]->row) * ROW_STEP : 0;
    for (int lane = 0; lane < 2; lane++) keys[i][lane] = cut ? cut->place[lane] + step : 0;
    apart |= !cut || !cut->digested;
  }
  sp_row_keys_avx512(keys[0], 2 * count);
  for (int64_t i = 0; i < count && apart; i++)
    if (!rows[i]->cut || !rows[i]->cut->digested) keys[i][0] = keys[i][1] = 0;
}

/* Rows that share their columns. */
static void digest_rows(Batch *batch, const Job *job, const Found *const *of, int64_t count, Sums *sums) {
  const Found *one = of[0];
  const int64_t at = one->cut->first_column / (job->field == WEIGHT ? 4 : 1);
  const uint8_t *src[MOST_ROWS];
  uint64_t keys[MOST_ROWS + 4][2];
  for (int64_t r = 0; r < count; r++) src[r] = of[r]->data;
  keys_of(of, count, keys);
  if (job->field == WEIGHT) {
    const uint32_t *k = batch->weight_keys + at;
    sp_sum_weights_avx512(src, count, one->bytes, k, k + batch->keys, keys, sums->lane);
  } else if (sp_sum_scales_avx512(src, count, one->bytes, batch->scale_bytes + at, batch->keys, batch->scale_before + at,
                                  keys, sums->lane)) {
    int64_t r = 0;
    while (r + 1 < count && !memchr(src[r], 255, (size_t)one->bytes)) r++;
    sp_report(batch, job, SCALE_IS_NAN, of[r], 0);
  }
}

static void digest(Batch *batch, const Job *job, const Found *found, Sums *sums) {
  const Cut *cut = found->cut;
  uint64_t part[2];
  const int64_t at = cut->first_column / (job->field == WEIGHT ? 4 : 1);
  if (job->field == WEIGHT) {
    if (!cut->digested) return;
    const uint32_t *k = batch->weight_keys + at;
    (batch->isa ? sp_sum_weights_avx2 : sp_sum_weights)(found->data, found->bytes, k, k + batch->keys, part);
  } else {
    const int16_t *k = batch->scale_keys + at;
    if ((batch->isa ? sp_sum_scales_avx2 : sp_sum_scales)(found->data, found->bytes, k, batch->keys, part))
      sp_report(batch, job, SCALE_IS_NAN, found, 0);
    if (!cut->digested) return;
  }
  for (int lane = 0; lane < 2; lane++)
    sums->lane[8 * lane] += part[lane] * row_key_of(cut->place[lane] + (uint64_t)(cut->first_row + found->row) * ROW_STEP);
}

/* Rows of a group that hold data, long ones or short ones. */
void sp_digest_group(Batch *batch, const Job *job, const Found *all, int is_long, Sums *sums) {
  const Found *of[MOST_ROWS];
  int64_t count = 0;
  for (int32_t i = 0; i < job->program->group_rows; i++) {
    const Found *found = all + i;
    if (!found->data || (found->bytes >= LONG_ROW) != is_long) continue;
    if (batch->isa != AVX512) {
      digest(batch, job, found, sums);
      continue;
    }
    if (job->field == WEIGHT && !found->cut->digested) continue;
    const int alike = count && of[0]->bytes == found->bytes && of[0]->cut->first_column == found->cut->first_column;
    if (count && !alike) {
      digest_rows(batch, job, of, count, sums);
      count = 0;
    }
    of[count++] = found;
  }
  if (count) digest_rows(batch, job, of, count, sums);
}

/* Whether the kernel takes whole words of the row. */
static int in_words(const Program *p) {
  int64_t bytes = p->kernel == RUN ? p->tile_bytes : p->width;
  for (int32_t l = 0; l < p->column_loops; l++) bytes |= p->columns[l].src;
  return bytes % 4 == 0;
}

/* Whether the kernel can take the row sums: all rows share their column keys, and padding adds nothing. */
int sp_weighs(const Batch *batch, const Job *job, const Found *all, Aside *aside) {
  const Program *p = job->program;
  const Found *rows[MOST_ROWS];
  int64_t shared = -1;
  if (batch->isa != AVX512 || job->field != WEIGHT || p->pad || p->filler || p->add) return 0;
  const int one_row = p->kernel == RUN || (p->kernel == LINES && p->fold_index && p->group_rows == 1);
  if (p->kernel != TILE16 && !(one_row && in_words(p))) return 0;
  for (int32_t i = 0; i < p->group_rows; i++) {
    rows[i] = all + i;
    if (!all[i].data) continue;
    const int64_t first = all[i].cut->first_column - all[i].begin;
    if (first < 0 || (shared >= 0 && first != shared)) return 0;
    shared = first;
  }
  if (shared < 0 || (shared + p->padded) / 4 > batch->keys) return 0;
  keys_of(rows, p->group_rows, aside->row_key);
  aside->k0 = batch->weight_keys + shared / 4;
  aside->k1 = aside->k0 + batch->keys;
  aside->tiles = batch->weight_tiles ? batch->weight_tiles + shared / 4 * 64 : NULL;
  return 1;
}
