/* Products of a 16-row weight group with token activations in portable C: the judge of every other variant.
 *
 * A variant supplies, per precision, `unpack` (tiles -> scratch) and `many` (scratch x tokens -> sums), and may
 * supply `few8` (int8 straight from packed bytes, for a handful of tokens). In all of them a row's sum is
 *   acc = fma(float(exact integer block product) * activation scale, weight scale, acc)      blocks in order
 * (float32: part = fma chain over the block's 32 columns in order; acc = fma(part, weight scale, acc)),
 * so the result does not depend on the variant, on the batch, or on the tiling.
 */
#include "activate.h"

static const int8_t twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* E8M0: 2^(b-127); byte 0 is the float32 subnormal 2^-127, byte 255 is NaN. */
static inline float e8m0(uint8_t b) {
    return float_of(b == 0 ? 1u << 22 : b == 255 ? 0x7fc00000u : (uint32_t)b << 23);
}

typedef struct {
    int8_t w[ROWS][BLOCK]; /* twice E2M1, columns in order */
    float scale[ROWS];
} plain_tile;

#define PLAIN_CHUNK 32

__attribute__((unused)) static void plain_unpack(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    plain_tile *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++) {
        for (int r = 0; r < ROWS; r++) {
            for (int i = 0; i < 16; i++) {
                const uint8_t byte = pw[b * TILE_BYTES + (i >> 2) * 64 + r * 4 + (i & 3)];
                tile->w[r][2 * i] = twice_e2m1[byte & 15];
                tile->w[r][2 * i + 1] = twice_e2m1[byte >> 4];
            }
            tile->scale[r] = e8m0(ps[b * ROWS + r]);
        }
    }
}

__attribute__((unused)) static void plain_int8(int tokens, const void *scratch, int64_t blocks,
                                               const uint8_t *const *rows, float *acc) {
    for (int t = 0; t < tokens; t++) {
        const sp_block8 *a = (const sp_block8 *)(const void *)rows[t];
        const plain_tile *tile = scratch;
        for (int64_t b = 0; b < blocks; b++, a++, tile++) {
            int8_t x[BLOCK]; /* columns in order */
            for (int i = 0; i < 16; i++) {
                x[2 * i] = a->q[i];
                x[2 * i + 1] = a->q[16 + i];
            }
            for (int r = 0; r < ROWS; r++) {
                int32_t sum = 0;
                for (int i = 0; i < BLOCK; i++) sum += tile->w[r][i] * x[i];
                acc[t * ROWS + r] = fused((float)sum * a->scale, tile->scale[r], acc[t * ROWS + r]);
            }
        }
    }
}

__attribute__((unused)) static void plain_int16(int tokens, const void *scratch, int64_t blocks,
                                                const uint8_t *const *rows, float *acc) {
    for (int t = 0; t < tokens; t++) {
        const sp_block16 *a = (const sp_block16 *)(const void *)rows[t];
        const plain_tile *tile = scratch;
        for (int64_t b = 0; b < blocks; b++, a++, tile++) {
            int16_t x[BLOCK];
            for (int i = 0; i < BLOCK; i++) x[int16_column(i)] = a->q[i];
            for (int r = 0; r < ROWS; r++) {
                int32_t sum = 0;
                for (int i = 0; i < BLOCK; i++) sum += tile->w[r][i] * x[i];
                acc[t * ROWS + r] = fused((float)sum * a->scale, tile->scale[r], acc[t * ROWS + r]);
            }
        }
    }
}

__attribute__((unused)) static void plain_float(int tokens, const void *scratch, int64_t blocks,
                                                const uint8_t *const *rows, float *acc) {
    for (int t = 0; t < tokens; t++) {
        const float *a = (const float *)(const void *)rows[t];
        const plain_tile *tile = scratch;
        for (int64_t b = 0; b < blocks; b++, a += BLOCK, tile++) {
            for (int r = 0; r < ROWS; r++) {
                float part = 0.0f;
                for (int i = 0; i < BLOCK; i++) part = fused(0.5f * (float)tile->w[r][i], a[i], part);
                acc[t * ROWS + r] = fused(part, tile->scale[r], acc[t * ROWS + r]);
            }
        }
    }
}
