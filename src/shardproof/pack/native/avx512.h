/* What the AVX-512 files share. Included inside their target region, after immintrin.h. */
#ifndef SHARDPROOF_AVX512_H
#define SHARDPROOF_AVX512_H

/* GCC does not know that its tile loads read what was stored before. */
#define TILES_READ_MEMORY __asm__ volatile("" ::: "memory")

static inline __m512i get(const void *src) { return _mm512_loadu_si512(src); }

static inline void add_weighed(uint64_t *acc, __m512i sum, uint64_t key) {
  const __m512i weighed = _mm512_mullo_epi64(sum, _mm512_set1_epi64((long long)key));
  _mm512_storeu_si512(acc, _mm512_add_epi64(get(acc), weighed));
}

/* Words 1, 3, ... where a product takes words 0, 2, ...; not by a shift, whose port the products need. */
static inline __m512i odd_words(__m512i v) { return _mm512_shuffle_epi32(v, 0xF5); }

/* One 64-byte column of a row: every word times its key, even and odd words apart. */
static inline __m512i weigh(__m512i sum, __m512i words, __m512i odd, __m512i key, __m512i odd_key) {
  sum = _mm512_add_epi64(sum, _mm512_mul_epu32(words, key));
  return _mm512_add_epi64(sum, _mm512_mul_epu32(odd, odd_key));
}

#endif
