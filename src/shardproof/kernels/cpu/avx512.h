/* AVX-512 tiles: one register covers the 16 rows of a group. Included by avx512.c and avx512vnni.c (VNNI 0 or 1). */
#include <immintrin.h>

#include "tiles.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Twice E2M1 + 12, unsigned: 0..24, so that 4 products with int8 fit into int16 (4 * 24 * 127). */
INLINE __m512i offset_table(void) {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}
INLINE __m512i signed_table(void) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)twice_e2m1));
}
INLINE __m512 row_scales(const uint8_t *ps) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)ps));
    const __m512i bits = _mm512_max_epu32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(1 << 22));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
}
INLINE __m512i word(const void *at) {
    int32_t v;
    memcpy(&v, at, 4);
    return _mm512_set1_epi32(v);
}
INLINE __m512i low_nibbles(__m512i r) { return _mm512_and_si512(r, _mm512_set1_epi8(15)); }
INLINE __m512i high_nibbles(__m512i r) { return low_nibbles(_mm512_srli_epi16(r, 4)); }

/* sum + the products of 4 weight words (unsigned) with 16 activations (signed). */
INLINE __m512i dot16(__m512i sum, const __m512i *w, const int8_t *q) {
#if VNNI
    UNROLL for (int j = 0; j < 4; j++) sum = _mm512_dpbusd_epi32(sum, w[j], word(q + 4 * j));
    return sum;
#else
    __m512i x = _mm512_add_epi16(_mm512_maddubs_epi16(w[0], word(q)), _mm512_maddubs_epi16(w[1], word(q + 4)));
    __m512i y = _mm512_add_epi16(_mm512_maddubs_epi16(w[2], word(q + 8)), _mm512_maddubs_epi16(w[3], word(q + 12)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_add_epi16(x, y), _mm512_set1_epi16(1)));
#endif
}
INLINE __m512 accumulate(__m512i sum, float scale, __m512 row_scale, __m512 acc) {
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale)), row_scale, acc);
}

/* A few tokens straight from packed bytes: what decoding with one token costs is hidden by the memory. */
INLINE void few8_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                      float *out) {
    const __m512i table = offset_table();
    __m512 acc[8];
    const sp_block8 *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_setzero_ps();
        a[t] = (const sp_block8 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        __m512i r[4], lo[4], hi[4];
        UNROLL for (int j = 0; j < 4; j++) {
            _mm_prefetch((const char *)pw + PREFETCH + 64 * j, _MM_HINT_T0);
            r[j] = _mm512_loadu_si512(pw + 64 * j);
            lo[j] = _mm512_shuffle_epi8(table, low_nibbles(r[j]));
            hi[j] = _mm512_shuffle_epi8(table, high_nibbles(r[j]));
        }
        const __m512 scale = row_scales(ps);
        UNROLL for (int t = 0; t < T; t++) {
            const sp_block8 *x = a[t] + b;
            const __m512i even = dot16(_mm512_set1_epi32(x->correction), lo, x->q);
            const __m512i odd = dot16(_mm512_setzero_si512(), hi, x->q + 16);
            acc[t] = accumulate(_mm512_add_epi32(even, odd), x->scale, scale, acc[t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

static void few8(int tokens, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                 float *out) {
    switch (tokens) {
    case 1: few8_tile(1, pw, ps, blocks, rows, out); break;
    case 2: few8_tile(2, pw, ps, blocks, rows, out); break;
    case 3: few8_tile(3, pw, ps, blocks, rows, out); break;
    default: few8_tile(4, pw, ps, blocks, rows, out); break;
    }
}

typedef struct {
    __m512i w[8]; /* words of even k, words of odd k */
    __m512 scale;
} tile8;

static void unpack8(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    const __m512i table = offset_table();
    tile8 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512i r = _mm512_loadu_si512(pw + 64 * j);
            tile->w[j] = _mm512_shuffle_epi8(table, low_nibbles(r));
            tile->w[4 + j] = _mm512_shuffle_epi8(table, high_nibbles(r));
        }
        tile->scale = row_scales(ps);
    }
}

INLINE void many8_tile(const int T, const tile8 *tile, int64_t blocks, const uint8_t *const *rows, float *out) {
    __m512 acc[8];
    const sp_block8 *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const sp_block8 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512i sum[8];
        UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_set1_epi32(a[t][b].correction);
#if VNNI
        UNROLL for (int j = 0; j < 8; j++) {
            const __m512i w = tile->w[j];
            UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], w, word(a[t][b].q + 4 * j));
        }
#else
        UNROLL for (int t = 0; t < T; t++) sum[t] = dot16(sum[t], tile->w, a[t][b].q);
        UNROLL for (int t = 0; t < T; t++) sum[t] = dot16(sum[t], tile->w + 4, a[t][b].q + 16);
#endif
        UNROLL for (int t = 0; t < T; t++) acc[t] = accumulate(sum[t], a[t][b].scale, tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

typedef struct {
    __m512i w[16]; /* pairs of int16 per row, in the order of sp_block16 */
    __m512 scale;
} tile16;

static void unpack16(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    const __m512i table = signed_table();
    tile16 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512i r = _mm512_loadu_si512(pw + 64 * j);
            const __m512i lo = _mm512_shuffle_epi8(table, low_nibbles(r));
            const __m512i hi = _mm512_shuffle_epi8(table, high_nibbles(r));
            tile->w[2 * j] = _mm512_srai_epi16(_mm512_slli_epi16(lo, 8), 8);
            tile->w[2 * j + 1] = _mm512_srai_epi16(lo, 8);
            tile->w[8 + 2 * j] = _mm512_srai_epi16(_mm512_slli_epi16(hi, 8), 8);
            tile->w[8 + 2 * j + 1] = _mm512_srai_epi16(hi, 8);
        }
        tile->scale = row_scales(ps);
    }
}

INLINE __m512i dot_pairs(__m512i sum, __m512i w, __m512i a) {
#if VNNI
    return _mm512_dpwssd_epi32(sum, w, a);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, a));
#endif
}

INLINE void many16_tile(const int T, const tile16 *tile, int64_t blocks, const uint8_t *const *rows, float *out) {
    __m512 acc[8];
    const sp_block16 *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const sp_block16 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512i sum[8];
        UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
        UNROLL for (int j = 0; j < 16; j++) {
            const __m512i w = tile->w[j];
            UNROLL for (int t = 0; t < T; t++) sum[t] = dot_pairs(sum[t], w, word(a[t][b].q + 2 * j));
        }
        UNROLL for (int t = 0; t < T; t++) acc[t] = accumulate(sum[t], a[t][b].scale, tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

typedef struct {
    __m512 w[BLOCK];
    __m512 scale;
} tile_float;

static void unpack_float(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    const __m512 table = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, 0, -.5f, -1, -1.5f, -2, -3, -4, -6);
    tile_float *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512i r = _mm512_loadu_si512(pw + 64 * j);
            UNROLL for (int k = 0; k < 8; k++) {
                tile->w[8 * j + k] = _mm512_permutexvar_ps(_mm512_srli_epi32(r, 4 * (unsigned)k), table);
            }
        }
        tile->scale = row_scales(ps);
    }
}

INLINE void many_float_tile(const int T, const tile_float *tile, int64_t blocks, const uint8_t *const *rows,
                            float *out) {
    __m512 acc[8];
    const float *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const float *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512 part[8];
        UNROLL for (int t = 0; t < T; t++) part[t] = _mm512_setzero_ps();
        _Pragma("GCC unroll 32") for (int k = 0; k < BLOCK; k++) {
            UNROLL for (int t = 0; t < T; t++) {
                part[t] = _mm512_fmadd_ps(tile->w[k], _mm512_set1_ps(a[t][b * BLOCK + k]), part[t]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) acc[t] = _mm512_fmadd_ps(part[t], tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

#define BY_WIDTH(NAME, TILE, TYPE)                                                                            \
    static void NAME(int tokens, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *acc) { \
        const TYPE *tile = scratch;                                                                           \
        switch (tokens) {                                                                                     \
        case 1: TILE(1, tile, blocks, rows, acc); break;                                                      \
        case 2: TILE(2, tile, blocks, rows, acc); break;                                                      \
        case 3: TILE(3, tile, blocks, rows, acc); break;                                                      \
        case 4: TILE(4, tile, blocks, rows, acc); break;                                                      \
        case 5: TILE(5, tile, blocks, rows, acc); break;                                                      \
        case 6: TILE(6, tile, blocks, rows, acc); break;                                                      \
        case 7: TILE(7, tile, blocks, rows, acc); break;                                                      \
        default: TILE(8, tile, blocks, rows, acc); break;                                                     \
        }                                                                                                     \
    }
BY_WIDTH(many8, many8_tile, tile8)
BY_WIDTH(many16, many16_tile, tile16)
BY_WIDTH(many_float, many_float_tile, tile_float)

#define FEW_8 few8
#define FEW_LIMIT_8 4
#define UNPACK_8 unpack8
#define UNPACK_16 unpack16
#define UNPACK_F unpack_float
#define MANY_8 many8
#define MANY_16 many16
#define MANY_F many_float
#define WIDTH_8 8
#define WIDTH_16 8
#define WIDTH_F 8
#define CHUNK_8 32
#define CHUNK_16 16
#define CHUNK_F 8
#include "variant.h"
