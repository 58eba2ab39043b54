/* The gated activations in float32, on arrays, without calls into libm: the same bits in every variant.
 * Loops carry no branches, so that the compiler can vectorise them. NaN in gives NaN out. */
#include "quantise.h"

static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float at_most(float x, float top) { return x > top ? top : x; } /* keeps NaN */
static inline float at_least(float x, float low) { return x < low ? low : x; }

/* e^x for |x| <= 88 (clamped): x = n ln2 + r, a polynomial of degree 6 on |r| <= ln2/2, relative error < 2e-7. */
static inline float exponential(float x) {
    x = at_least(at_most(x, 88.0f), -87.0f);
    const float shifted = fused(x, 1.44269504f, ROUND_MAGIC), n = shifted - ROUND_MAGIC;
    float r = fused(n, -0.693359375f, x);
    r = fused(n, 2.12194440e-4f, r);
    float p = 1.9875691e-4f;
    p = fused(p, r, 1.3981999e-3f);
    p = fused(p, r, 8.3334519e-3f);
    p = fused(p, r, 4.1665796e-2f);
    p = fused(p, r, 1.6666665e-1f);
    p = fused(p, r, 5.0000001e-1f);
    p = fused(p * r, r, r) + 1.0f;
    return p * float_of((bits_of(shifted) - bits_of(ROUND_MAGIC) + 127u) << 23);
}
static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* tanh: an odd polynomial below 0.625, where 1 - 2/(e^2x + 1) would cancel. */
static inline float hyperbolic_tangent(float x) {
    const float z = x * x;
    float p = -5.70498872745e-3f;
    p = fused(p, z, 2.06390887954e-2f);
    p = fused(p, z, -5.37397155531e-2f);
    p = fused(p, z, 1.33314422036e-1f);
    p = fused(p, z, -3.33332819422e-1f);
    const float small = fused(p * z, x, x), large = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
    return z < 0.390625f ? small : large;
}

static void silu_rows(const sp_layer *layer, const float *gate, const float *up, float *to, int64_t count) {
    const float limit = layer->limit;
    for (int64_t i = 0; i < count; i++) {
        const float g = at_most(gate[i], limit), u = at_least(at_most(up[i], limit), -limit);
        to[i] = g * sigmoid(g) * u;
    }
}

static void swiglu_oai_rows(const sp_layer *layer, const float *gate, const float *up, float *to, int64_t count) {
    const float limit = layer->limit, alpha = layer->alpha;
    for (int64_t i = 0; i < count; i++) {
        const float g = at_most(gate[i], limit), u = at_least(at_most(up[i], limit), -limit);
        to[i] = (u + 1.0f) * (g * sigmoid(alpha * g));
    }
}

static void situ_rows(const sp_layer *layer, const float *gate, const float *up, float *to, int64_t count) {
    const float beta = layer->beta, linear = layer->linear_beta;
    for (int64_t i = 0; i < count; i++) {
        const float g = beta * hyperbolic_tangent(gate[i] / beta) * sigmoid(gate[i]);
        to[i] = g * (linear * hyperbolic_tangent(up[i] / linear));
    }
}

static void activate(const sp_layer *layer, const float *gate, const float *up, float *to, int64_t count) {
    if (layer->activation == SP_SILU) {
        silu_rows(layer, gate, up, to, count);
    } else if (layer->activation == SP_SWIGLU_OAI) {
        swiglu_oai_rows(layer, gate, up, to, count);
    } else {
        situ_rows(layer, gate, up, to, count);
    }
}
