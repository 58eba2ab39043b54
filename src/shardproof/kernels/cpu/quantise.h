/* Rows of float32, bfloat16 or float16 -> quantised blocks, and sums -> rows of the output's dtype.
 * Compiled once per variant; the arithmetic is spelled out, so every variant gives the same bits. */
#include <string.h>

#include "job.h"

#ifndef PAIRED_CORRECTION
#define PAIRED_CORRECTION 0 /* 1 where a variant adds int8 products as pairs of int16: see sp_block8 */
#endif

static inline uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even, |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low mantissa bits. */
#define ROUND_MAGIC 12582912.0f
static inline int32_t round_int(float x) { return (int32_t)(bits_of(x + ROUND_MAGIC) - bits_of(ROUND_MAGIC)); }

/* Largest magnitude of a block, as bits: integers order like the floats and put NaN and inf on top. */
static inline uint32_t magnitude_bits(const float *x) {
    int32_t top = 0;
    for (int i = 0; i < BLOCK; i++) {
        int32_t m = (int32_t)(bits_of(x[i]) & 0x7fffffffu);
        top = m > top ? m : top;
    }
    return (uint32_t)top;
}

/* The factor x -> integer steps; tiny blocks are lifted first so that steps / amax stays finite. */
static inline float steps_per_unit(float amax, float steps, float *lift) {
    *lift = amax < 0x1p-100f ? 0x1p100f : 1.0f;
    return steps / (amax * *lift);
}

static void quantise8(const float *x, sp_block8 *block) {
    const uint32_t top = magnitude_bits(x);
    memset(block->q, 0, sizeof block->q);
    block->correction = 0;
    if (top == 0 || top >= 0x7f800000u) { /* NaN and inf poison exactly this token's sums */
        block->scale = top == 0 ? 0.0f : float_of(0x7fc00000u);
        return;
    }
    const float amax = float_of(top);
    float lift;
    const float factor = steps_per_unit(amax, 127.0f, &lift);
    int32_t v[BLOCK], sum[2] = {0, 0}; /* of the bytes 0, 1 and of the bytes 2, 3 of each word of q */
    for (int i = 0; i < BLOCK; i++) {
        v[i] = round_int(x[i] * lift * factor);
        sum[i >> 2 & 1] += v[i];
    }
    for (int i = 0; i < 16; i++) {
        block->q[i] = (int8_t)v[2 * i];
        block->q[16 + i] = (int8_t)v[2 * i + 1];
    }
    block->scale = amax / 127.0f * 0.5f;
    const uint32_t low = (uint32_t)(-12 * sum[0]), high = (uint32_t)(-12 * sum[1]);
    block->correction = (int32_t)(PAIRED_CORRECTION ? (low & 0xffffu) | high << 16 : low + high);
}

/* int16 order: per half (even, odd k) and 4-byte word j the pairs of bytes (0,2) and (1,3), which is what
 * sign-extending the even and the odd bytes of decoded weights gives. */
static inline int int16_column(int index) {
    const int half = index >> 4, word = (index >> 2) & 3, pair = (index >> 1) & 1, second = index & 1;
    return 8 * word + 2 * (pair + 2 * second) + half;
}

static void quantise16(const float *x, sp_block16 *block) {
    const uint32_t top = magnitude_bits(x);
    memset(block->q, 0, sizeof block->q);
    if (top == 0 || top >= 0x7f800000u) {
        block->scale = top == 0 ? 0.0f : float_of(0x7fc00000u);
        return;
    }
    const float amax = float_of(top);
    float lift;
    const float factor = steps_per_unit(amax, 32767.0f, &lift);
    int32_t v[BLOCK];
    for (int i = 0; i < BLOCK; i++) v[i] = round_int(x[i] * lift * factor);
    for (int i = 0; i < BLOCK; i++) block->q[i] = (int16_t)v[int16_column(i)];
    block->scale = amax / 32767.0f * 0.5f;
}

static void quantise_block(int precision, const float *x, uint8_t *block) {
    if (precision == SP_INT8) {
        quantise8(x, (sp_block8 *)(void *)block);
    } else if (precision == SP_INT16) {
        quantise16(x, (sp_block16 *)(void *)block);
    } else {
        memcpy(block, x, BLOCK * sizeof(float));
    }
}

static inline float from_half(uint16_t h) {
    const uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;
    const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    const uint32_t value = bits_of(float_of(magnitude) * 0x1p112f); /* subnormal halves come out normalised */
    return float_of((special ? magnitude | special : value) | (uint32_t)(h & 0x8000u) << 16);
}

static inline uint16_t to_half(float f) {
    const uint32_t bits = bits_of(f), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to inf */
    if (magnitude < 0x38800000u) { /* subnormal half: let the FPU round at 2^-24 */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

static inline uint16_t to_bfloat(float f) {
    const uint32_t bits = bits_of(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static void load_block(int dtype, const void *row, int64_t at, float *to) {
    if (dtype == SP_F32) {
        memcpy(to, (const float *)row + at, BLOCK * sizeof(float));
    } else if (dtype == SP_BF16) {
        const uint16_t *from = (const uint16_t *)row + at;
        for (int i = 0; i < BLOCK; i++) to[i] = float_of((uint32_t)from[i] << 16);
    } else {
        const uint16_t *from = (const uint16_t *)row + at;
        for (int i = 0; i < BLOCK; i++) to[i] = from_half(from[i]);
    }
}

static void store_values(int dtype, void *row, int64_t at, const float *from, int64_t count) {
    if (dtype == SP_F32) {
        memcpy((float *)row + at, from, (size_t)count * sizeof(float));
    } else if (dtype == SP_BF16) {
        uint16_t *to = (uint16_t *)row + at;
        for (int64_t i = 0; i < count; i++) to[i] = to_bfloat(from[i]);
    } else {
        uint16_t *to = (uint16_t *)row + at;
        for (int64_t i = 0; i < count; i++) to[i] = to_half(from[i]);
    }
}

static void quantise_token(const sp_job *job, int64_t token) {
    const sp_call *call = job->call;
    const int64_t width = call->x_dtype == SP_F32 ? 4 : 2;
    const uint8_t *row = (const uint8_t *)call->x + (job->first + token) * call->x_stride * width;
    const int precision = job->layer->precision;
    uint8_t *to = job->x_rows + token * job->x_stride;
    float x[BLOCK];
    for (int64_t k = 0; k < job->layer->hidden; k += BLOCK) {
        load_block(call->x_dtype, row, k, x);
        quantise_block(precision, x, to);
        to += sp_block_bytes(precision);
    }
}
