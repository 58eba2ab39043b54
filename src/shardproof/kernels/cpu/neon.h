/* NEON tiles: four registers cover the 16 rows of a group. int8 by hand; int16 and float32 are the portable tiles,
 * which the compiler vectorises. Included by neon.c and dotprod.c (DOTPROD 0 or 1). */
#include <arm_neon.h>

#include "tiles.h"
#include "widths.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define QUADS 4 /* registers of four rows */

typedef struct {
    int8x16_t w[8][QUADS]; /* words of even k, words of odd k; twice E2M1 */
    float32x4_t scale[QUADS];
} tile8;

#if DOTPROD
typedef int32x4_t partial; /* four rows' sums */
INLINE partial no_sum(void) { return vdupq_n_s32(0); }
INLINE partial dot_word(partial sum, int8x16_t w, int8x16_t a, const int word) {
    switch (word) {
    case 0: return vdotq_laneq_s32(sum, w, a, 0);
    case 1: return vdotq_laneq_s32(sum, w, a, 1);
    case 2: return vdotq_laneq_s32(sum, w, a, 2);
    default: return vdotq_laneq_s32(sum, w, a, 3);
    }
}
INLINE int32x4_t row_sums(partial sum) { return sum; }
#else
typedef int16x8x2_t partial; /* per row four sums of 8 products: at most 8 * 12 * 127, far from overflow */
INLINE partial no_sum(void) { return (partial){{vdupq_n_s16(0), vdupq_n_s16(0)}}; }
INLINE partial dot_word(partial sum, int8x16_t w, int8x16_t a, const int word) {
    int32_t four;
    memcpy(&four, (const int8_t *)&a + 4 * word, 4);
    const int8x8_t x = vreinterpret_s8_s32(vdup_n_s32(four));
    sum.val[0] = vmlal_s8(sum.val[0], vget_low_s8(w), x);
    sum.val[1] = vmlal_s8(sum.val[1], vget_high_s8(w), x);
    return sum;
}
INLINE int32x4_t row_sums(partial sum) { return vpaddq_s32(vpaddlq_s16(sum.val[0]), vpaddlq_s16(sum.val[1])); }
#endif

INLINE float32x4_t row_scales(const uint8_t *ps) {
    uint32_t four;
    memcpy(&four, ps, 4);
    const uint32x4_t e = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    const uint32x4_t bits = vmaxq_u32(vshlq_n_u32(e, 23), vdupq_n_u32(1u << 22));
    const uint32x4_t nan = vceqq_u32(e, vdupq_n_u32(255));
    return vreinterpretq_f32_u32(vbslq_u32(nan, vdupq_n_u32(0x7fc00000u), bits));
}
INLINE void decode_word(const uint8_t *at, int8x16_t *even, int8x16_t *odd) {
    const int8x16_t table = vld1q_s8(twice_e2m1);
    const uint8x16_t r = vld1q_u8(at);
    *even = vqtbl1q_s8(table, vandq_u8(r, vdupq_n_u8(15)));
    *odd = vqtbl1q_s8(table, vshrq_n_u8(r, 4));
}

static void unpack8(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    tile8 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            UNROLL for (int i = 0; i < QUADS; i++) {
                decode_word(pw + 64 * j + 16 * i, &tile->w[j][i], &tile->w[4 + j][i]);
            }
        }
        UNROLL for (int i = 0; i < QUADS; i++) tile->scale[i] = row_scales(ps + 4 * i);
    }
}

INLINE void add_block(partial sum, float scale, float32x4_t row_scale, float *acc) {
    const float32x4_t product = vmulq_n_f32(vcvtq_f32_s32(row_sums(sum)), scale);
    vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), product, row_scale));
}

INLINE void many8_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile8 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++) {
        UNROLL for (int t = 0; t < T; t++) {
            const sp_block8 *x = (const sp_block8 *)(const void *)rows[t] + b;
            const int8x16_t even = vld1q_s8(x->q), odd = vld1q_s8(x->q + 16);
            partial sum[QUADS];
            UNROLL for (int i = 0; i < QUADS; i++) sum[i] = no_sum();
            UNROLL for (int j = 0; j < 4; j++) {
                UNROLL for (int i = 0; i < QUADS; i++) {
                    sum[i] = dot_word(sum[i], tile->w[j][i], even, j);
                    sum[i] = dot_word(sum[i], tile->w[4 + j][i], odd, j);
                }
            }
            UNROLL for (int i = 0; i < QUADS; i++) add_block(sum[i], x->scale, tile->scale[i], out + t * ROWS + 4 * i);
        }
    }
}

INLINE void few8_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                      float *out, int64_t stride) {
    UNROLL for (int t = 0; t < T; t++) memset(out + t * stride, 0, ROWS * sizeof(float));
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int i = 0; i < QUADS; i++) {
            int8x16_t w[2][4];
            UNROLL for (int j = 0; j < 4; j++) decode_word(pw + 64 * j + 16 * i, &w[0][j], &w[1][j]);
            const float32x4_t row_scale = row_scales(ps + 4 * i);
            UNROLL for (int t = 0; t < T; t++) {
                const sp_block8 *x = (const sp_block8 *)(const void *)rows[t] + b;
                const int8x16_t even = vld1q_s8(x->q), odd = vld1q_s8(x->q + 16);
                partial sum = no_sum();
                UNROLL for (int j = 0; j < 4; j++) sum = dot_word(sum, w[0][j], even, j);
                UNROLL for (int j = 0; j < 4; j++) sum = dot_word(sum, w[1][j], odd, j);
                add_block(sum, x->scale, row_scale, out + t * stride + 4 * i);
            }
        }
    }
}

FEW_BY_WIDTH(few8, few8_tile, WIDTHS_4)
MANY_BY_WIDTH(many8, many8_tile, WIDTHS_4)

#define FEW_8 few8
#define FEW_WIDTH_8 4
#define FEW_LIMIT_8 4
#define UNPACK_8 unpack8
#define UNPACK_16 plain_unpack
#define UNPACK_F plain_unpack
#define MANY_8 many8
#define MANY_16 plain_int16
#define MANY_F plain_float
#define WIDTH_8 4
#define WIDTH_16 TOKEN_BLOCK
#define WIDTH_F TOKEN_BLOCK
#define CHUNK_8 32
#define CHUNK_16 PLAIN_CHUNK
#define CHUNK_F PLAIN_CHUNK
#include "variant.h"
