/* Row sums of the digest (digest.py defines them): sum of word * column key, for two independent lanes. */
#include <string.h>

#include "engine.h"

void sp_sum_weights(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]) {
  uint64_t a = 0, b = 0;
  for (int64_t i = 0; i < bytes / 4; i++) {
    uint32_t w;
    memcpy(&w, src + 4 * i, 4);
    a += (uint64_t)w * k0[i];
    b += (uint64_t)w * k1[i];
  }
  out[0] = a;
  out[1] = b;
}

/* Keys of scales come in halves of 16 signed bits: key = low + 65536 * high. */
int sp_sum_scales(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]) {
  int nan = 0;
  for (int lane = 0; lane < 2; lane++) {
    const int16_t *low = k + 2 * lane * keys, *high = low + keys;
    int64_t a = 0, b = 0;
    for (int64_t i = 0; i < bytes; i++) {
      a += (int64_t)src[i] * low[i];
      b += (int64_t)src[i] * high[i];
      nan |= src[i] == 255;
    }
    out[lane] = (uint64_t)a + ((uint64_t)b << 16);
  }
  return nan;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
TARGET_BEGIN("avx2")

static inline uint64_t total(__m256i v) {
  __m128i s = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return (uint64_t)_mm_cvtsi128_si64(s) + (uint64_t)_mm_extract_epi64(s, 1);
}

void sp_sum_weights_avx2(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    __m256i w = _mm256_loadu_si256((const __m256i *)(src + i)), odd = _mm256_srli_epi64(w, 32);
    __m256i x = _mm256_loadu_si256((const __m256i *)(k0 + i / 4)), y = _mm256_loadu_si256((const __m256i *)(k1 + i / 4));
    a = _mm256_add_epi64(a, _mm256_mul_epu32(w, x));
    b = _mm256_add_epi64(b, _mm256_mul_epu32(w, y));
    c = _mm256_add_epi64(c, _mm256_mul_epu32(odd, _mm256_srli_epi64(x, 32)));
    d = _mm256_add_epi64(d, _mm256_mul_epu32(odd, _mm256_srli_epi64(y, 32)));
  }
  sp_sum_weights(src + i, bytes - i, k0 + i / 4, k1 + i / 4, out);
  out[0] += total(_mm256_add_epi64(a, c));
  out[1] += total(_mm256_add_epi64(b, d));
}

static inline int32_t total32(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* At most 256 bytes: 256 * 255 * 32768 < 2**31. */
static int scales_part(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]) {
  __m256i sum[4];
  __m128i nan = _mm_setzero_si128();
  for (int j = 0; j < 4; j++) sum[j] = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    const __m128i s = _mm_loadu_si128((const __m128i *)(src + i));
    const __m256i w = _mm256_cvtepu8_epi16(s);
    nan = _mm_or_si128(nan, _mm_cmpeq_epi8(s, _mm_set1_epi8(-1)));
    for (int j = 0; j < 4; j++)
      sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(w, _mm256_loadu_si256((const __m256i *)(k + j * keys + i))));
  }
  for (; i + 4 <= bytes; i += 4) {
    int32_t four;
    memcpy(&four, src + i, 4);
    const __m128i s = _mm_cvtsi32_si128(four), w = _mm_cvtepu8_epi16(s);
    nan = _mm_or_si128(nan, _mm_cmpeq_epi8(s, _mm_set1_epi8(-1)));
    for (int j = 0; j < 4; j++) {
      const __m128i x = _mm_madd_epi16(w, _mm_loadl_epi64((const __m128i *)(k + j * keys + i)));
      sum[j] = _mm256_add_epi32(sum[j], _mm256_inserti128_si256(_mm256_setzero_si256(), x, 0));
    }
  }
  int tail = sp_sum_scales(src + i, bytes - i, k + i, keys, out);
  for (int lane = 0; lane < 2; lane++)
    out[lane] += (uint64_t)(int64_t)total32(sum[2 * lane]) + ((uint64_t)(int64_t)total32(sum[2 * lane + 1]) << 16);
  return tail || _mm_movemask_epi8(nan) != 0;
}

int sp_sum_scales_avx2(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]) {
  int nan = 0;
  out[0] = out[1] = 0;
  for (int64_t i = 0; i < bytes; i += 256) {
    uint64_t part[2];
    nan |= scales_part(src + i, bytes - i < 256 ? bytes - i : 256, k + i, keys, part);
    out[0] += part[0];
    out[1] += part[1];
  }
  return nan;
}
TARGET_END
#else
void sp_sum_weights_avx2(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]) {
  sp_sum_weights(src, bytes, k0, k1, out);
}
int sp_sum_scales_avx2(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]) {
  return sp_sum_scales(src, bytes, k, keys, out);
}
#endif
