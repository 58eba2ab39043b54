/* AVX2 kernels: whole cache lines are assembled in registers and stored past the cache where they are aligned. */
#include <string.h>

#include "engine.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2")

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

static void tile16(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c) {
  const int stream = (((uintptr_t)dst | (uintptr_t)c->dst) & 63) == 0;
  int64_t i = 0;
  for (; i + 4 <= c->count; i += 4)
    for (int32_t r = 0; r < p->group_rows; r += 4)
      quad(rows + r, column + 16 * i, dst + i * c->dst + 16 * r, c->dst, stream);
  for (; i < c->count; i++)
    for (int32_t r = 0; r < p->group_rows; r++) memcpy(dst + i * c->dst + 16 * r, rows[r] + column + 16 * i, 16);
}

static void run(const uint8_t *src, uint8_t *dst, int64_t bytes) {
  if (bytes < 64 || ((uintptr_t)dst & 63) || (bytes & 63)) {
    memcpy(dst, src, (size_t)bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += 64) {
    __m256i a = get(src + i), b = get(src + i + 32);
    put(dst + i, a, 1);
    put(dst + i + 32, b, 1);
  }
}

/* Nibble halves: 0 whole byte; 1 low to low, 2 low to high, 3 high to low, 4 high to high. */
static inline __m256i half(__m256i v, int32_t select) {
  const __m256i low = _mm256_set1_epi8(0x0F), high = _mm256_set1_epi8((char)0xF0);
  switch (select) {
    case 1: return _mm256_and_si256(v, low);
    case 2: return _mm256_slli_epi16(_mm256_and_si256(v, low), 4);
    case 3: return _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    case 4: return _mm256_and_si256(v, high);
    default: return v;
  }
}

/* Two tiles at once: tile t in the low half of each register, tile t + 1 in the high half. */
static void shuffle_pair(const Program *p, const uint8_t *const *rows, int64_t column, int64_t next, uint8_t *dst,
                         uint8_t *dst_next) {
  const int stream = (((uintptr_t)dst | (uintptr_t)dst_next) & 15) == 0 && p->tile_bytes % 64 == 0;
  const Part *part = p->part, *end = part + p->parts;
  while (part < end) {
    const int32_t at = part->dst;
    __m256i v = _mm256_setzero_si256();
    for (; part < end && part->dst == at; part++) {
      const uint8_t *src = rows[part->row] + column + part->column;
      __m256i two = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)src)),
                                            _mm_loadu_si128((const __m128i *)(src + next)), 1);
      __m256i mask = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)p->masks + part->index));
      __m256i moved = _mm256_shuffle_epi8(two, mask);
      v = _mm256_or_si256(v, part->select ? half(moved, part->select) : moved);
    }
    if (stream) {
      _mm_stream_si128((__m128i *)(dst + at), _mm256_castsi256_si128(v));
      _mm_stream_si128((__m128i *)(dst_next + at), _mm256_extracti128_si256(v, 1));
    } else {
      _mm_storeu_si128((__m128i *)(dst + at), _mm256_castsi256_si128(v));
      _mm_storeu_si128((__m128i *)(dst_next + at), _mm256_extracti128_si256(v, 1));
    }
  }
}

static void innermost(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c) {
  if (p->kernel == TILE16) {
    tile16(p, rows, column, dst, c);
  } else if (p->kernel == RUN) {
    for (int64_t i = 0; i < c->count; i++) run(rows[0] + column + i * c->src, dst + i * c->dst, p->tile_bytes);
  } else {
    int64_t i = 0;
    for (; i + 2 <= c->count; i += 2)
      shuffle_pair(p, rows, column + i * c->src, c->src, dst + i * c->dst, dst + (i + 1) * c->dst);
    if (i < c->count) shuffle_pair(p, rows, column + i * c->src, 0, dst + i * c->dst, dst + i * c->dst);
  }
}

static void loop(const Program *p, int32_t level, const uint8_t *const *rows, int64_t column, uint8_t *dst) {
  const ColumnLoop *c = p->columns + level;
  if (level + 1 == p->column_loops) {
    innermost(p, rows, column, dst, c);
    return;
  }
  for (int64_t i = 0; i < c->count; i++) loop(p, level + 1, rows, column + i * c->src, dst + i * c->dst);
}

int sp_move_avx2(const Program *p, const uint8_t *const *rows, uint8_t *dst) {
  if (p->kernel != RUN && p->kernel != TILE16 && p->kernel != SHUFFLE) return 0;
  loop(p, 0, rows, 0, dst);
  return 1;
}
#pragma GCC pop_options
#else
int sp_move_avx2(const Program *p, const uint8_t *const *rows, uint8_t *dst) {
  (void)p, (void)rows, (void)dst;
  return 0;
}
#endif
