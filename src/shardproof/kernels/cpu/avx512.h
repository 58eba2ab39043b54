/* AVX-512 tiles: one register covers the 16 rows of a group. Included by avx512.c and avx512vnni.c (VNNI 0 or 1). */
#include <immintrin.h>

#define CHUNK_8 32
#define PAIRED_CORRECTION (!VNNI)
#include "tiles.h"
#include "widths.h"

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

/* sum += the products of one weight word (unsigned) with one activation word (signed): int32 with VNNI, else int16 as in
 * avx2.c, of which row_sums makes int32. */
INLINE __m512i add_word(__m512i sum, __m512i w, const int8_t *q) {
#if VNNI
    return _mm512_dpbusd_epi32(sum, w, word(q));
#else
    sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, word(q)));
    __asm__("" : "+v"(sum)); /* added now: left alone, compilers make a block's products first, then spill them */
    return sum;
#endif
}
INLINE __m512i row_sums(__m512i sum) { return VNNI ? sum : _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
INLINE __m512 accumulate(__m512i sum, float scale, __m512 row_scale, __m512 acc) {
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale)), row_scale, acc);
}

/* A few tokens straight from packed bytes: what decoding with one token costs is hidden by the memory. G groups in turn
 * are G places that are read at once: see FEW_IN_TURN. */
INLINE void few8_tile(const int T, const int G, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                      const uint8_t *const *rows, float *out, int64_t stride) {
    const __m512i table = offset_table();
    __m512 acc[8];
    const sp_block8 *a[8];
    UNROLL for (int t = 0; t < T; t++) a[t] = (const sp_block8 *)(const void *)rows[t];
    UNROLL for (int i = 0; i < T * G; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t skip = blocks_to_skip(G, b, blocks) * TILE_BYTES;
        UNROLL for (int g = 0; g < G; g++) {
            const uint8_t *tile = pw + (g * blocks + b) * TILE_BYTES, *scales = ps + (g * blocks + b) * ROWS;
            __m512i r[4], lo[4], hi[4];
            PREFETCH_SCALES(scales, b);
            UNROLL for (int j = 0; j < 4; j++) {
                PREFETCH_AHEAD(tile + skip + 64 * j);
                r[j] = _mm512_loadu_si512(tile + 64 * j);
                lo[j] = _mm512_shuffle_epi8(table, low_nibbles(r[j]));
                hi[j] = _mm512_shuffle_epi8(table, high_nibbles(r[j]));
            }
            __m512i sum[8];
            UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_set1_epi32(a[t][b].correction);
            UNROLL for (int j = 0; j < 4; j++) {
                UNROLL for (int t = 0; t < T; t++) sum[t] = add_word(sum[t], lo[j], a[t][b].q + 4 * j);
                UNROLL for (int t = 0; t < T; t++) sum[t] = add_word(sum[t], hi[j], a[t][b].q + 16 + 4 * j);
            }
            const __m512 scale = row_scales(scales);
            UNROLL for (int t = 0; t < T; t++) {
                acc[t * G + g] = accumulate(row_sums(sum[t]), a[t][b].scale, scale, acc[t * G + g]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int g = 0; g < G; g++) _mm512_storeu_ps(out + t * stride + g * ROWS, acc[t * G + g]);
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
            PREFETCH_NEXT_CHUNK(pw + 64 * j, CHUNK_8);
            tile->w[j] = _mm512_shuffle_epi8(table, low_nibbles(r));
            tile->w[4 + j] = _mm512_shuffle_epi8(table, high_nibbles(r));
        }
        tile->scale = row_scales(ps);
    }
}

INLINE void many8_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile8 *tile = scratch;
    __m512 acc[8];
    const sp_block8 *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const sp_block8 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512i sum[8];
        UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_set1_epi32(a[t][b].correction);
        UNROLL for (int j = 0; j < 8; j++) {
            const __m512i w = tile->w[j];
            UNROLL for (int t = 0; t < T; t++) sum[t] = add_word(sum[t], w, a[t][b].q + 4 * j);
        }
        UNROLL for (int t = 0; t < T; t++) acc[t] = accumulate(row_sums(sum[t]), a[t][b].scale, tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

#include "avx512_wide.h"

FEW_IN_TURN(few8, few8_tile, WIDTHS_8, WIDTHS_4, 4)
MANY_BY_WIDTH(many8, many8_tile, WIDTHS_8)
MANY_BY_WIDTH(many16, many16_tile, WIDTHS_8)
MANY_BY_WIDTH(many_float, many_float_tile, WIDTHS_8)
FEW_BY_WIDTH(few16, few16_tile, WIDTHS_4)
FEW_BY_WIDTH(few_float, few_float_tile, WIDTHS_4)

#define FEW_8 few8
#define FEW_16 few16
#define FEW_WIDTH_16 4
#define FEW_LIMIT_16 4
#define FEW_F few_float
#define FEW_WIDTH_F 4
#define FEW_LIMIT_F 4
#define FEW_WIDTH_8 8
#define FEW_LIMIT_8 (VNNI ? 24 : 16)
#define UNPACK_8 unpack8
#define UNPACK_16 unpack16
#define UNPACK_F unpack_float
#define MANY_8 many8
#define MANY_16 many16
#define MANY_F many_float
#define WIDTH_8 8
#define WIDTH_16 8
#define WIDTH_F 8
#define CHUNK_16 16
#define CHUNK_F 8
#include "variant.h"
