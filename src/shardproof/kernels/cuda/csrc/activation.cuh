// h(g, u) in fp32, as shardproof.experts.Activation defines it.
#pragma once
#include "params.cuh"

// Neither guards denormal numbers, which are no more than 2^-126 off here.
DEV float exp2_fast(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEV float reciprocal_fast(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEV float sigmoid(float v) { return reciprocal_fast(1.f + exp2_fast(v * -1.44269504f)); }

DEV float activate(const Params& p, float g, float u) {
#if ACTIVATION == 2
  return p.beta * tanhf(g / p.beta) * sigmoid(g) * p.linear_beta * tanhf(u / p.linear_beta);
#else
  g = g > p.limit ? p.limit : g;                      // unlike fminf, keeps a NaN
  u = u > p.limit ? p.limit : u < -p.limit ? -p.limit : u;
  return ACTIVATION == 1 ? (u + 1.f) * g * sigmoid(p.alpha * g) : g * sigmoid(g) * u;
#endif
}

// ---- what epilogues do to sums of this thread: rows b and b + 8, tokens 8j + 2q and 8j + 2q + 1
struct RowFactors {
  float scale[2], bias[2];
};
// w13: a gate and an up row become activations in bf16.
DEV u32 activated(const Params& p, const RowFactors& f, float2 w, const float* sums) {
  float v[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    v[i] = activate(p, sums[i] * f.scale[0] + f.bias[0], sums[2 + i] * f.scale[1] + f.bias[1]) * (i ? w.y : w.x);
  return pack_bf16(v[0], v[1]);
}
// w2: rows of the result.
DEV void scaled(const RowFactors& f, float2 w, const float* sums, float* v) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = (sums[i] * f.scale[i >> 1] + f.bias[i >> 1]) * (i & 1 ? w.y : w.x);
}
