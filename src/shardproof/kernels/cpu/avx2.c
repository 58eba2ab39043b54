/* AVX2: a group's 16 rows are two registers, its halves (gate and up rows in w13).
 *
 * int8: four products of a decoded weight (0..24) and an activation make two int16 in vpmaddubsw. A block's eight words
 * are added as int16, starting at the block's correction: without the +12 a lane's 16 products are at most
 * 16 * 12 * 127 < 2^15, so what wraps on the way comes out exact, and one vpmaddwd a block makes int32 of it.
 * Sums of up to four tokens and both halves stay in registers while the words pass, so that a loaded word serves four
 * multiplications and a loaded activation two: loads, not products, are what a tile is short of.
 */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi2")
#endif
#include <immintrin.h>

#define PAIRED_CORRECTION 1
#define CHUNK_8 18
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
/* `sum`: int32 */
INLINE __m256 accumulate(__m256i sum, __m256 scale, __m256 row_scale, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), row_scale, acc);
}

typedef struct {
    __m256i w[8][2]; /* words of even k, words of odd k; per half: twice E2M1 + 12 */
    __m256 scale[2];
} tile8;

/* In a register, and added to now: left alone, compilers first make a block's products, then spill them all. */
#define KEEP(register_) __asm__("" : "+x"(register_))

/* sum[t] += the products of one word of both halves with T tokens' activations `at` of block b. */
INLINE void add_word(const int T, __m256i (*sum)[2], __m256i w0, __m256i w1, const uint8_t *const *rows, int64_t b,
                     const int at) {
    UNROLL for (int t = 0; t < T; t++) {
        const __m256i x = word(((const sp_block8 *)(const void *)rows[t])[b].q + at);
        sum[t][0] = _mm256_add_epi16(sum[t][0], _mm256_maddubs_epi16(w0, x));
        sum[t][1] = _mm256_add_epi16(sum[t][1], _mm256_maddubs_epi16(w1, x));
        KEEP(sum[t][0]);
        KEEP(sum[t][1]);
    }
}
INLINE void start_block(const int T, __m256i (*sum)[2], const uint8_t *const *rows, int64_t b) {
    UNROLL for (int t = 0; t < T; t++) {
        sum[t][0] = sum[t][1] = word(&((const sp_block8 *)(const void *)rows[t])[b].correction);
    }
}
INLINE void end_block(const int T, __m256i (*sum)[2], const __m256 *row_scale, const uint8_t *const *rows, int64_t b,
                      __m256 (*acc)[2]) {
    UNROLL for (int t = 0; t < T; t++) {
        const __m256 scale = _mm256_set1_ps(((const sp_block8 *)(const void *)rows[t])[b].scale);
        UNROLL for (int half = 0; half < 2; half++) {
            const __m256i s = _mm256_madd_epi16(sum[t][half], _mm256_set1_epi16(1));
            acc[t][half] = accumulate(s, scale, row_scale[half], acc[t][half]);
        }
    }
}

/* One packed tile times tokens; with `tile` what is decoded is kept there. `ahead` are the bytes that are asked for. */
INLINE void packed8_block(const int T, tile8 *tile, const uint8_t *pw, const uint8_t *ps, const uint8_t *ahead,
                          const uint8_t *const *rows, int64_t b, __m256 (*acc)[2]) {
    const __m256i table = offset_table();
    __m256i sum[4][2];
    start_block(T, sum, rows, b);
    PREFETCH_SCALES(ps, b);
    UNROLL for (int j = 0; j < 4; j++) {
        if (tile) {
            PREFETCH_NEXT_CHUNK(ahead + 64 * j, CHUNK_8);
        } else {
            PREFETCH_AHEAD(ahead + 64 * j);
        }
        const __m256i r[2] = {load(pw + 64 * j), load(pw + 64 * j + 32)};
        __m256i low[2], high[2];
        UNROLL for (int half = 0; half < 2; half++) {
            low[half] = _mm256_shuffle_epi8(table, low_nibbles(r[half]));
            high[half] = _mm256_shuffle_epi8(table, high_nibbles(r[half]));
        }
        add_word(T, sum, low[0], low[1], rows, b, 4 * j);
        add_word(T, sum, high[0], high[1], rows, b, 16 + 4 * j);
        UNROLL for (int half = 0; tile && half < 2; half++) {
            tile->w[j][half] = low[half];
            tile->w[4 + j][half] = high[half];
        }
    }
    const __m256 row_scale[2] = {row_scales(ps), row_scales(ps + 8)};
    end_block(T, sum, row_scale, rows, b, acc);
    if (tile) {
        tile->scale[0] = row_scale[0];
        tile->scale[1] = row_scale[1];
    }
}
/* A few tokens straight from packed bytes, G groups in turn: see avx512.h. */
INLINE void few8_tile(const int T, const int G, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                      const uint8_t *const *rows, float *out, int64_t stride) {
    __m256 acc[2][4][2];
    UNROLL for (int g = 0; g < G; g++) {
        UNROLL for (int t = 0; t < T; t++) acc[g][t][0] = acc[g][t][1] = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t skip = blocks_to_skip(G, b, blocks) * TILE_BYTES;
        UNROLL for (int g = 0; g < G; g++) {
            const int64_t at = g * blocks + b;
            packed8_block(T, NULL, pw + at * TILE_BYTES, ps + at * ROWS, pw + at * TILE_BYTES + skip, rows, b, acc[g]);
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int g = 0; g < G; g++) {
            _mm256_storeu_ps(out + t * stride + g * ROWS, acc[g][t][0]);
            _mm256_storeu_ps(out + t * stride + g * ROWS + 8, acc[g][t][1]);
        }
    }
}
/* Decodes into the scratch while the first tokens pass; sums are added to `out`. */
INLINE void first8_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch,
                        const uint8_t *const *rows, float *out) {
    tile8 *tile = scratch;
    __m256 acc[4][2];
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) acc[t][half] = _mm256_loadu_ps(out + t * ROWS + 8 * half);
    }
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        packed8_block(T, tile + b, pw, ps, pw, rows, b, acc);
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t][half]);
    }
}

INLINE void many8_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile8 *tile = scratch;
    __m256 acc[4][2];
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) acc[t][half] = _mm256_loadu_ps(out + t * ROWS + 8 * half);
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m256i sum[4][2];
        start_block(T, sum, rows, b);
        UNROLL for (int j = 0; j < 8; j++) add_word(T, sum, tile->w[j][0], tile->w[j][1], rows, b, 4 * j);
        end_block(T, sum, tile->scale, rows, b, acc);
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t][half]);
    }
}

#include "avx2_wide.h"

FEW_IN_TURN(few8, few8_tile, WIDTHS_4, WIDTHS_2, 2)
FIRST_BY_WIDTH(first8, first8_tile, WIDTHS_4)
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
#define FEW_LIMIT_8 4
#define FIRST_8 first8
#define UNPACK_8 NULL
#define UNPACK_16 unpack16
#define UNPACK_F unpack_float
#define MANY_8 many8
#define MANY_16 many16
#define MANY_F many_float
#define WIDTH_8 4
#define WIDTH_16 4
#define WIDTH_F 4
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
