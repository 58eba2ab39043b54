/* Row sums of the digest (digest.py defines them): sum of word * column key, for two independent lanes. */
#include <string.h>

#include "engine.h"

uint64_t sp_row_key(uint64_t place, uint64_t row) {
  uint64_t x = place + row * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCDu;
  x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53u;
  return (x ^ (x >> 33)) | 1;
}

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

int sp_sum_scales(const uint8_t *src, int64_t bytes, const uint64_t *k0, const uint64_t *k1, uint64_t out[2]) {
  uint64_t a = 0, b = 0;
  int nan = 0;
  for (int64_t i = 0; i < bytes; i++) {
    a += src[i] * k0[i];
    b += src[i] * k1[i];
    nan |= src[i] == 255;
  }
  out[0] = a;
  out[1] = b;
  return nan;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2")

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

int sp_sum_scales_avx2(const uint8_t *src, int64_t bytes, const uint64_t *k0, const uint64_t *k1, uint64_t out[2]) {
  __m256i a = _mm256_setzero_si256(), b = a;
  uint64_t nan = 0;
  int64_t i = 0;
  for (; i + 4 <= bytes; i += 4) {
    uint32_t four;
    memcpy(&four, src + i, 4);
    nan |= (~four - 0x01010101u) & four & 0x80808080u; /* a zero byte in ~four */
    __m256i s = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128((int)four));
    a = _mm256_add_epi64(a, _mm256_mul_epu32(s, _mm256_loadu_si256((const __m256i *)(k0 + i))));
    b = _mm256_add_epi64(b, _mm256_mul_epu32(s, _mm256_loadu_si256((const __m256i *)(k1 + i))));
  }
  int tail = sp_sum_scales(src + i, bytes - i, k0 + i, k1 + i, out);
  out[0] += total(a);
  out[1] += total(b);
  return tail || nan != 0;
}
#pragma GCC pop_options
#else
void sp_sum_weights_avx2(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]) {
  sp_sum_weights(src, bytes, k0, k1, out);
}
int sp_sum_scales_avx2(const uint8_t *src, int64_t bytes, const uint64_t *k0, const uint64_t *k1, uint64_t out[2]) {
  return sp_sum_scales(src, bytes, k0, k1, out);
}
#endif
