/* AVX2 kernels: whole cache lines are assembled in registers and stored past the cache where they are aligned. */
#include <string.h>

#include "engine.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
TARGET_BEGIN("avx2")

static inline void put(uint8_t *dst, __m256i v, int stream) {
  if (stream)
    _mm256_stream_si256((__m256i *)dst, v);
  else
    _mm256_storeu_si256((__m256i *)dst, v);
}

static inline __m256i get(const uint8_t *src) { return _mm256_loadu_si256((const __m256i *)src); }

/* Four rows x 64 bytes become four lines, one in each of four tiles. */
static inline void quad(const uint8_t *const *rows, int64_t column, uint8_t *dst, int64_t step, int stream) {
  const uint8_t *a = rows[0] + column, *b = rows[1] + column, *c = rows[2] + column, *d = rows[3] + column;
  for (int half = 0; half < 2; half++) {
    __m256i v = get(a + 32 * half), w = get(b + 32 * half), x = get(c + 32 * half), y = get(d + 32 * half);
    uint8_t *to = dst + 2 * half * step;
    put(to, _mm256_permute2x128_si256(v, w, 0x20), stream);
    put(to + 32, _mm256_permute2x128_si256(x, y, 0x20), stream);
    put(to + step, _mm256_permute2x128_si256(v, w, 0x31), stream);
    put(to + step + 32, _mm256_permute2x128_si256(x, y, 0x31), stream);
  }
}

static void tile16(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c,
                   int cached) {
  const int stream = !cached && (((uintptr_t)dst | (uintptr_t)c->dst) & 63) == 0;
  int64_t i = 0;
  for (; i + 4 <= c->count; i += 4)
    for (int32_t r = 0; r < p->group_rows; r += 4)
      quad(rows + r, column + 16 * i, dst + i * c->dst + 16 * r, c->dst, stream);
  for (; i < c->count; i++)
    for (int32_t r = 0; r < p->group_rows; r++) memcpy(dst + i * c->dst + 16 * r, rows[r] + column + 16 * i, 16);
}

int64_t sp_untile_avx2(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at) {
  const int64_t whole = count & ~(int64_t)3;
  for (int64_t i = 0; i < whole; i += 4, at += 64)
    for (int32_t r = 0; r < group; r += 2) {
      const uint8_t *const tile = src + i * step + 16 * r;
      const __m256i v = get(tile), w = get(tile + step), x = get(tile + 2 * step), y = get(tile + 3 * step);
      put(rows[r] + at, _mm256_permute2x128_si256(v, w, 0x20), 0);
      put(rows[r] + at + 32, _mm256_permute2x128_si256(x, y, 0x20), 0);
      put(rows[r + 1] + at, _mm256_permute2x128_si256(v, w, 0x31), 0);
      put(rows[r + 1] + at + 32, _mm256_permute2x128_si256(x, y, 0x31), 0);
    }
  return whole;
}

static void run(const uint8_t *src, uint8_t *dst, int64_t bytes, int cached) {
  if (bytes < 64 || ((uintptr_t)dst & 63) || (bytes & 63) || cached) {
    memcpy(dst, src, (size_t)bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += 64) {
    __m256i a = get(src + i), b = get(src + i + 32);
    put(dst + i, a, 1);
    put(dst + i + 32, b, 1);
  }
}

enum { MOST_PAIRS = 4, MOST_BYTES = 1024 };

/* Tiles are taken in pairs: one in the low half of each register, the next in the high half. */
static inline __m256i pair(const uint8_t *src, int64_t next) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)src)),
                                 _mm_loadu_si128((const __m128i *)(src + next)), 1);
}

static inline __m256i wide(const uint8_t *sixteen) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)sixteen));
}

static inline void put16(uint8_t *dst, __m128i v, int stream) {
  if (stream)
    _mm_stream_si128((__m128i *)dst, v);
  else
    _mm_storeu_si128((__m128i *)dst, v);
}

/* `pairs` pairs of tiles, vector by vector: each part brings bytes from one window of one row to their places, shifts
 * them by whole bits within 16-bit lanes, and keeps the bits that belong there. */
static inline __attribute__((always_inline)) void shuffle(const Program *p, const uint8_t *const *rows, int64_t column,
                                                          int64_t next, uint8_t *dst, int64_t step, int pairs,
                                                          int stream, int near) {
  const Part *part = p->part, *const end = part + p->parts;
  const __m256i shifted = _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi8((char)next), 1);
  while (part < end) {
    const int32_t at = part->dst;
    __m256i v[MOST_PAIRS];
    for (int t = 0; t < pairs; t++) v[t] = _mm256_setzero_si256();
    for (; part < end && part->dst == at; part++) {
      const uint8_t *src = rows[part->row] + column + part->column;
      __m256i to = wide(p->masks + 16 * part->index);
      if (near) to = _mm256_add_epi8(to, shifted); /* one window serves both tiles */
      if (!part->keep) {
        for (int t = 0; t < pairs; t++)
          v[t] = _mm256_or_si256(
              v[t], _mm256_shuffle_epi8(near ? wide(src + 2 * t * next) : pair(src + 2 * t * next, next), to));
        continue;
      }
      const __m256i keep = wide(p->masks + 16 * part->keep);
      const __m128i left = _mm_cvtsi32_si128(part->shift > 0 ? part->shift : 0);
      const __m128i right = _mm_cvtsi32_si128(part->shift < 0 ? -part->shift : 0);
      for (int t = 0; t < pairs; t++) {
        __m256i moved = _mm256_shuffle_epi8(near ? wide(src + 2 * t * next) : pair(src + 2 * t * next, next), to);
        moved = _mm256_srl_epi16(_mm256_sll_epi16(moved, left), right);
        v[t] = _mm256_or_si256(v[t], _mm256_and_si256(moved, keep));
      }
    }
    for (int t = 0; t < pairs; t++) {
      put16(dst + 2 * t * step + at, _mm256_castsi256_si128(v[t]), stream);
      put16(dst + (2 * t + 1) * step + at, _mm256_extracti128_si256(v[t], 1), stream);
    }
  }
}

static inline void flush(const uint8_t *block, uint8_t *dst, int64_t step, int64_t bytes, int tiles, int stream) {
  for (int t = 0; t < tiles; t++)
    for (int64_t i = 0; i < bytes; i += 32)
      put(dst + t * step + i, get(block + t * bytes + i), stream);
}

/* Whole lines are put together in the first-level cache and stored past it, so that few lines are open at a time. */
static void shuffles(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c,
                     int cached) {
  uint8_t block[2 * MOST_PAIRS * MOST_BYTES] __attribute__((aligned(64)));
  const int stream = p->word == 64 && p->tile_bytes <= MOST_BYTES && (((uintptr_t)dst | (uintptr_t)c->dst) & 63) == 0;
  int64_t i = 0;
#define TILES(pairs)                                                                                   \
  for (; i + 2 * (pairs) <= c->count; i += 2 * (pairs)) {                                              \
    const int64_t from = column + i * c->src;                                                          \
    uint8_t *to = dst + i * c->dst;                                                                    \
    if (stream && p->near)                                                                             \
      shuffle(p, rows, from, c->src, block, p->tile_bytes, pairs, 0, 1);                               \
    else if (stream)                                                                                   \
      shuffle(p, rows, from, c->src, block, p->tile_bytes, pairs, 0, 0);                               \
    else                                                                                               \
      shuffle(p, rows, from, c->src, to, c->dst, pairs, 0, 0);                                         \
    if (stream) flush(block, to, c->dst, p->tile_bytes, 2 * (pairs), !cached);                                  \
  }
  TILES(MOST_PAIRS)

  TILES(2)
#undef TILES
  for (; i + 2 <= c->count; i += 2)
    shuffle(p, rows, column + i * c->src, c->src, dst + i * c->dst, c->dst, 1, 0, 0);
  if (i < c->count) shuffle(p, rows, column + i * c->src, 0, dst + i * c->dst, 0, 1, 0, 0);
}

static void innermost(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c,
                      int cached) {
  if (p->kernel == TILE16) {
    tile16(p, rows, column, dst, c, cached);
  } else if (p->kernel == RUN) {
    for (int64_t i = 0; i < c->count; i++) run(rows[0] + column + i * c->src, dst + i * c->dst, p->tile_bytes, cached);
  } else {
    shuffles(p, rows, column, dst, c, cached);
  }
}

static void loop(const Program *p, int32_t level, const uint8_t *const *rows, int64_t column, uint8_t *dst,
                 int cached) {
  const ColumnLoop *c = p->columns + level;
  if (level + 1 == p->column_loops) {
    innermost(p, rows, column, dst, c, cached);
    return;
  }
  for (int64_t i = 0; i < c->count; i++) loop(p, level + 1, rows, column + i * c->src, dst + i * c->dst, cached);
}

int sp_move_avx2(const Program *p, const uint8_t *const *rows, uint8_t *dst, int cached) {
  if (p->kernel != RUN && p->kernel != TILE16 && p->kernel != SHUFFLE) return 0;
  loop(p, 0, rows, 0, dst, cached);
  return 1;
}
TARGET_END
#else
int64_t sp_untile_avx2(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at) {
  (void)src, (void)step, (void)count, (void)rows, (void)group, (void)at;
  return 0;
}

int sp_move_avx2(const Program *p, const uint8_t *const *rows, uint8_t *dst, int cached) {
  (void)p, (void)rows, (void)dst, (void)cached;
  return 0;
}
#endif
