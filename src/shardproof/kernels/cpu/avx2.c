/* AVX2: a group's 16 rows are two registers, its halves (gate and up rows in w13). Decoded tiles take activations as
 * q + 128, because vpmaddubsw takes its unsigned operand from a register and its signed one from memory. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi2")
#endif
#include <immintrin.h>

#define MANY_FLIP 128
#include "tiles.h"
#include "widths.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE __m256i offset_table(void) {
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}
INLINE __m256i signed_table(void) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)twice_e2m1));
}
INLINE __m256 row_scales(const uint8_t *ps) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)ps));
    const __m256i bits = _mm256_max_epu32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(1 << 22));
    const __m256i nan = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255));
    return _mm256_castsi256_ps(_mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), nan));
}
INLINE __m256i word(const void *at) {
    int32_t v;
    memcpy(&v, at, 4);
    return _mm256_set1_epi32(v);
}
INLINE __m256i load(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }
INLINE __m256i low_nibbles(__m256i r) { return _mm256_and_si256(r, _mm256_set1_epi8(15)); }
INLINE __m256i high_nibbles(__m256i r) { return low_nibbles(_mm256_srli_epi16(r, 4)); }
INLINE __m256i pair_sums(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}
INLINE __m256 accumulate(__m256i sum, __m256 scale, __m256 row_scale, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), row_scale, acc);
}

/* One or two tokens straight from packed bytes: weights unsigned (+12), activations signed. */
INLINE void few8_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                      float *out) {
    const __m256i table = offset_table();
    __m256 acc[2][2];
    UNROLL for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) _mm_prefetch((const char *)pw + PREFETCH + 64 * j, _MM_HINT_T0);
        __m256i sum[2][2];
        UNROLL for (int odd = 0; odd < 2; odd++) {
            UNROLL for (int half = 0; half < 2; half++) {
                __m256i w[4];
                UNROLL for (int j = 0; j < 4; j++) {
                    const __m256i r = load(pw + 64 * j + 32 * half);
                    w[j] = _mm256_shuffle_epi8(table, odd ? high_nibbles(r) : low_nibbles(r));
                }
                UNROLL for (int t = 0; t < T; t++) {
                    const int8_t *q = ((const sp_block8 *)(const void *)rows[t])[b].q + 16 * odd;
                    __m256i p[4];
                    UNROLL for (int j = 0; j < 4; j++) {
                        p[j] = _mm256_maddubs_epi16(w[j], word(q + 4 * j));
                    }
                    const __m256i s = pair_sums(p[0], p[1], p[2], p[3]);
                    sum[t][half] = odd ? _mm256_add_epi32(sum[t][half], s) : s;
                }
            }
        }
        UNROLL for (int half = 0; half < 2; half++) {
            const __m256 row_scale = row_scales(ps + 8 * half);
            UNROLL for (int t = 0; t < T; t++) {
                const sp_block8 *a = (const sp_block8 *)(const void *)rows[t] + b;
                const __m256i s = _mm256_add_epi32(sum[t][half], _mm256_set1_epi32(a->correction));
                acc[t][half] = accumulate(s, _mm256_set1_ps(a->scale), row_scale, acc[t][half]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t][half]);
    }
}

/* Three or four tokens: one half of the rows after the other, so that sums and weights fit into 16 registers. */
INLINE void half8_tile(const int T, const int half, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                       const uint8_t *const *rows, float *out) {
    const __m256i table = offset_table();
    __m256 acc[4];
    UNROLL for (int t = 0; t < T; t++) acc[t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        if (half == 0) {
            UNROLL for (int j = 0; j < 4; j++) _mm_prefetch((const char *)pw + PREFETCH + 64 * j, _MM_HINT_T0);
        }
        __m256i sum[4], r[4];
        UNROLL for (int j = 0; j < 4; j++) r[j] = load(pw + 64 * j + 32 * half);
        UNROLL for (int odd = 0; odd < 2; odd++) {
            __m256i w[4];
            UNROLL for (int j = 0; j < 4; j++) {
                w[j] = _mm256_shuffle_epi8(table, odd ? high_nibbles(r[j]) : low_nibbles(r[j]));
            }
            UNROLL for (int t = 0; t < T; t++) {
                const int8_t *q = ((const sp_block8 *)(const void *)rows[t])[b].q + 16 * odd;
                __m256i p[4];
                UNROLL for (int j = 0; j < 4; j++) {
                    p[j] = _mm256_maddubs_epi16(w[j], word(q + 4 * j));
                }
                const __m256i s = pair_sums(p[0], p[1], p[2], p[3]);
                sum[t] = odd ? _mm256_add_epi32(sum[t], s) : s;
            }
        }
        const __m256 row_scale = row_scales(ps + 8 * half);
        UNROLL for (int t = 0; t < T; t++) {
            const sp_block8 *a = (const sp_block8 *)(const void *)rows[t] + b;
            const __m256i s = _mm256_add_epi32(sum[t], _mm256_set1_epi32(a->correction));
            acc[t] = accumulate(s, _mm256_set1_ps(a->scale), row_scale, acc[t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t]);
}
INLINE void few8_wide(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                      float *out) {
    if (T <= 2) {
        few8_tile(T, pw, ps, blocks, rows, out);
    } else {
        half8_tile(T, 0, pw, ps, blocks, rows, out);
        half8_tile(T, 1, pw, ps, blocks, rows, out);
    }
}

typedef struct {
    __m256i w[2][8];       /* per half: words of even k, words of odd k; twice E2M1 */
    __m256i correction[2]; /* -128 * the row's sum: undoes the +128 of the activations */
    __m256 scale[2];
} tile8;

static void unpack8(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    const __m256i table = signed_table(), one = _mm256_set1_epi8(1);
    tile8 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int half = 0; half < 2; half++) {
            __m256i sum = _mm256_setzero_si256();
            UNROLL for (int j = 0; j < 4; j++) {
                const __m256i r = load(pw + 64 * j + 32 * half);
                const __m256i lo = _mm256_shuffle_epi8(table, low_nibbles(r));
                const __m256i hi = _mm256_shuffle_epi8(table, high_nibbles(r));
                tile->w[half][j] = lo;
                tile->w[half][4 + j] = hi;
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(one, lo));
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(one, hi));
            }
            sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
            tile->correction[half] = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), sum), 7);
            tile->scale[half] = row_scales(ps + 8 * half);
        }
    }
}

INLINE __m256i half_product(const __m256i *a, const __m256i *w) {
    return pair_sums(_mm256_maddubs_epi16(a[0], w[0]), _mm256_maddubs_epi16(a[1], w[1]),
                     _mm256_maddubs_epi16(a[2], w[2]), _mm256_maddubs_epi16(a[3], w[3]));
}

INLINE void many8_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile8 *tile = scratch;
    __m256 acc[4][2];
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) acc[t][half] = _mm256_loadu_ps(out + t * ROWS + 8 * half);
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        UNROLL for (int t = 0; t < T; t++) {
            const sp_block8 *x = (const sp_block8 *)(const void *)rows[t] + b;
            __m256i a[4], sum[2];
            UNROLL for (int j = 0; j < 4; j++) a[j] = word(x->q + 4 * j);
            UNROLL for (int half = 0; half < 2; half++) {
                sum[half] = _mm256_add_epi32(half_product(a, tile->w[half]), tile->correction[half]);
            }
            UNROLL for (int j = 0; j < 4; j++) a[j] = word(x->q + 16 + 4 * j);
            const __m256 scale = _mm256_set1_ps(x->scale);
            UNROLL for (int half = 0; half < 2; half++) {
                sum[half] = _mm256_add_epi32(sum[half], half_product(a, tile->w[half] + 4));
                acc[t][half] = accumulate(sum[half], scale, tile->scale[half], acc[t][half]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t][half]);
    }
}

#include "avx2_wide.h"

FEW_BY_WIDTH(few8, few8_wide, WIDTHS_4)
FEW_BY_WIDTH(few16, few16_tile, WIDTHS_2)
FEW_BY_WIDTH(few_float, few_float_tile, WIDTHS_2)
MANY_BY_WIDTH(many8, many8_tile, WIDTHS_4)
MANY_BY_WIDTH(many16, many16_tile, WIDTHS_4)
MANY_BY_WIDTH(many_float, many_float_tile, WIDTHS_4)

#define FEW_8 few8
#define FEW_16 few16
#define FEW_WIDTH_16 2
#define FEW_LIMIT_16 2
#define FEW_F few_float
#define FEW_WIDTH_F 2
#define FEW_LIMIT_F 2
#define FEW_WIDTH_8 4
#define FEW_LIMIT_8 8
#define UNPACK_8 unpack8
#define UNPACK_16 unpack16
#define UNPACK_F unpack_float
#define MANY_8 many8
#define MANY_16 many16
#define MANY_F many_float
#define WIDTH_8 4
#define WIDTH_16 4
#define WIDTH_F 4
#define CHUNK_8 30
#define CHUNK_16 16
#define CHUNK_F 8
#define VARIANT sp_avx2
#define VARIANT_NAME "avx2"
#include "variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sp_no_avx2;
#endif
