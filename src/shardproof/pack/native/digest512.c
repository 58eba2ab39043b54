/* Row sums of the digest with AVX-512 (VNNI): rows that share their columns share the loads of their keys. */
#include "engine.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")
#include "avx512.h"

/* One row, or four that share their column keys. */
static inline __attribute__((always_inline)) void sum_weights(const uint8_t *const *src, int rows, int64_t bytes,
                                                              const uint32_t *k0, const uint32_t *k1,
                                                              uint64_t (*row_key)[2], uint64_t *acc) {
  __m512i sums[8];
  for (int j = 0; j < 8; j++) sums[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 64) {
    const int64_t left = bytes - i;
    const __mmask16 in = left >= 64 ? 0xFFFF : (__mmask16)((1u << (left / 4)) - 1);
    const __m512i x = _mm512_maskz_loadu_epi32(in, k0 + i / 4), y = _mm512_maskz_loadu_epi32(in, k1 + i / 4);
    const __m512i odd_x = odd_words(x), odd_y = odd_words(y);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      const __m512i w = _mm512_maskz_loadu_epi32(in, src[r] + i), odd = odd_words(w);
      sums[2 * r] = weigh(sums[2 * r], w, odd, x, odd_x);
      sums[2 * r + 1] = weigh(sums[2 * r + 1], w, odd, y, odd_y);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < 2 * rows; j++) add_weighed(acc + 8 * (j & 1), sums[j], row_key[j / 2][j & 1]);
}

void sp_sum_weights_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint32_t *k0,
                           const uint32_t *k1, uint64_t (*row_key)[2], uint64_t *acc) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) sum_weights(src + r, 4, bytes, k0, k1, row_key + r, acc);
  for (; r < rows; r++) sum_weights(src + r, 1, bytes, k0, k1, row_key + r, acc);
}

/* 32-bit sums of the four bytes of a key, as eight 64-bit sums: p0 + 2^8 p1 + 2^16 (p2 + 2^8 p3). */
static inline __m512i joined(const __m512i p[4]) {
  const __m512i low = _mm512_add_epi32(p[0], _mm512_slli_epi32(p[1], 8));
  const __m512i high = _mm512_add_epi32(p[2], _mm512_slli_epi32(p[3], 8));
  const __m512i l = _mm512_add_epi64(_mm512_srai_epi64(_mm512_slli_epi64(low, 32), 32), _mm512_srai_epi64(low, 32));
  const __m512i h = _mm512_add_epi64(_mm512_srai_epi64(_mm512_slli_epi64(high, 32), 32), _mm512_srai_epi64(high, 32));
  return _mm512_add_epi64(l, _mm512_slli_epi64(h, 16));
}

enum { SCALES_AT_ONCE = 1024 }; /* 64 products of 255 * 128, times 2^8, fit into 32 bits */

/* 64 columns of two rows: key bytes 0 and 2 are unsigned and multiplied with byte - 128, 1 and 3 are signed. */
static inline __attribute__((always_inline)) uint64_t weigh_scales(const uint8_t *const src[2], const uint8_t *key,
                                                                   int64_t keys, int64_t i, __mmask64 in,
                                                                   __m512i p[16]) {
  const __m512i flip = _mm512_set1_epi8(-128), all = _mm512_set1_epi8(-1);
  const __m512i s[2] = {_mm512_maskz_loadu_epi8(in, src[0] + i), _mm512_maskz_loadu_epi8(in, src[1] + i)};
  const __m512i t[2] = {_mm512_xor_si512(s[0], flip), _mm512_xor_si512(s[1], flip)};
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    const __m512i lower = _mm512_maskz_loadu_epi8(in, key + j * (keys + 64) + i);
    const __m512i upper = _mm512_maskz_loadu_epi8(in, key + (j + 1) * (keys + 64) + i);
    for (int r = 0; r < 2; r++) {
      p[8 * r + j] = _mm512_dpbusd_epi32(p[8 * r + j], lower, t[r]);
      p[8 * r + j + 1] = _mm512_dpbusd_epi32(p[8 * r + j + 1], s[r], upper);
    }
  }
  return _mm512_cmpeq_epi8_mask(s[0], all) | _mm512_cmpeq_epi8_mask(s[1], all);
}

/* Two rows at a time. Returns whether a byte is 255. */
static uint64_t long_scales(const uint8_t *const src[2], int64_t bytes, const uint8_t *key, int64_t keys,
                            uint64_t (*row_key)[2], uint64_t *acc) {
  uint64_t nan = 0;
  for (int64_t first = 0; first < bytes; first += SCALES_AT_ONCE) {
    const int64_t stop = bytes - first < SCALES_AT_ONCE ? bytes : first + SCALES_AT_ONCE;
    __m512i p[16];
    int64_t i = first;
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) p[j] = _mm512_setzero_si512();
    for (; i + 64 <= stop; i += 64) nan |= weigh_scales(src, key, keys, i, ~0ull, p);
    if (i < stop) nan |= weigh_scales(src, key, keys, i, (1ull << (stop - i)) - 1, p);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) add_weighed(acc + 8 * (j & 1), joined(p + 4 * j), row_key[j / 2][j & 1]);
  }
  return nan;
}

/* Rows of at most 16 bytes: four of them are one register, and so are their keys. */
static uint64_t short_scales(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint8_t *key, int64_t keys,
                             uint64_t (*row_key)[2], uint64_t *acc) {
  const __m512i flip = _mm512_set1_epi8(-128), all = _mm512_set1_epi8(-1), zero = _mm512_setzero_si512();
  const __m512i pairs[2] = {_mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6), _mm512_setr_epi64(1, 1, 3, 3, 5, 5, 7, 7)};
  const __mmask16 in = (__mmask16)((1u << bytes) - 1);
  __m512i k[8], sum[2] = {get(acc), get(acc + 8)};
  uint64_t nan = 0;
  for (int j = 0; j < 8; j++) k[j] = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(in, key + j * (keys + 64)));
  for (int64_t r = 0; r < rows; r += 4) {
    __m128i part[4];
    for (int i = 0; i < 4; i++) part[i] = r + i < rows ? _mm_maskz_loadu_epi8(in, src[r + i]) : _mm_setzero_si128();
    __m512i s = _mm512_inserti32x4(_mm512_castsi128_si512(part[0]), part[1], 1);
    s = _mm512_inserti32x4(_mm512_inserti32x4(s, part[2], 2), part[3], 3);
    const __m512i t = _mm512_xor_si512(s, flip);
    const __mmask8 held = rows - r >= 4 ? 0xFF : (__mmask8)((1u << 2 * (rows - r)) - 1);
    const __m512i both = _mm512_maskz_loadu_epi64(held, row_key + r); /* lanes of row 0, of row 1, ... */
    nan |= _mm512_cmpeq_epi8_mask(s, all);
#pragma GCC unroll 2
    for (int lane = 0; lane < 2; lane++) {
      __m512i p[4];
#pragma GCC unroll 2
      for (int j = 0; j < 4; j += 2) {
        p[j] = _mm512_dpbusd_epi32(zero, k[4 * lane + j], t);
        p[j + 1] = _mm512_dpbusd_epi32(zero, s, k[4 * lane + j + 1]);
      }
      const __m512i weighed = _mm512_mullo_epi64(joined(p), _mm512_permutexvar_epi64(pairs[lane], both));
      sum[lane] = _mm512_add_epi64(sum[lane], weighed);
    }
  }
  _mm512_storeu_si512(acc, sum[0]);
  _mm512_storeu_si512(acc + 8, sum[1]);
  return nan;
}

/* The 128 that was taken from each byte comes back with the sum of its keys (`before`). */
int sp_sum_scales_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint8_t *key, int64_t keys,
                         const uint64_t *before, uint64_t (*row_key)[2], uint64_t *acc) {
  uint64_t nan = 0, all[2] = {0, 0};
  if (bytes <= 16) nan = short_scales(src, rows, bytes, key, keys, row_key, acc);
  for (int64_t r = 0; r < rows; r += 2) {
    const int two = r + 1 < rows;
    uint64_t row_keys[2][2] = {{row_key[r][0], row_key[r][1]}, {two ? row_key[r + 1][0] : 0, two ? row_key[r + 1][1] : 0}};
    const uint8_t *const pair[2] = {src[r], src[two ? r + 1 : r]};
    for (int lane = 0; lane < 2; lane++) all[lane] += row_keys[0][lane] + row_keys[1][lane];
    if (bytes > 16) nan |= long_scales(pair, bytes, key, keys, row_keys, acc);
  }
  for (int lane = 0; lane < 2; lane++) {
    const uint64_t *b = before + lane * (keys + 1);
    acc[8 * lane] += 128 * (b[bytes] - b[0]) * all[lane];
  }
  return nan != 0;
}

void sp_row_keys_avx512(uint64_t *seeds, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    __m512i x = get(seeds + i);
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 33)), _mm512_set1_epi64((long long)MIX_1));
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 33)), _mm512_set1_epi64((long long)MIX_2));
    x = _mm512_or_si512(_mm512_xor_si512(x, _mm512_srli_epi64(x, 33)), _mm512_set1_epi64(1));
    _mm512_storeu_si512(seeds + i, x);
  }
}
TARGET_END
#else
void sp_sum_weights_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint32_t *k0,
                           const uint32_t *k1, uint64_t (*row_key)[2], uint64_t *acc) {
  (void)src, (void)rows, (void)bytes, (void)k0, (void)k1, (void)row_key, (void)acc;
}
int sp_sum_scales_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint8_t *key, int64_t keys,
                         const uint64_t *before, uint64_t (*row_key)[2], uint64_t *acc) {
  (void)src, (void)rows, (void)bytes, (void)key, (void)keys, (void)before, (void)row_key, (void)acc;
  return 0;
}
void sp_row_keys_avx512(uint64_t *seeds, int64_t count) { (void)seeds, (void)count; }
#endif
