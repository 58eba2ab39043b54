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

// Scales and biases of rows b and b + 8 of this thread.
struct RowFactors {
  float scale[2], bias[2];
};
