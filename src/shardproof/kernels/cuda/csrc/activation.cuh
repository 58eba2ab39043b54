// h(g, u) in fp32, as shardproof.experts.Activation defines it.
#pragma once
#include "params.cuh"

DEV float sigmoid(float v) { return __fdividef(1.f, 1.f + __expf(-v)); }

DEV float activate(const Params& p, float g, float u) {
#if ACTIVATION == 2
  return p.beta * tanhf(g / p.beta) * sigmoid(g) * p.linear_beta * tanhf(u / p.linear_beta);
#else
  g = g > p.limit ? p.limit : g;                      // unlike fminf, keeps a NaN
  u = u > p.limit ? p.limit : u < -p.limit ? -p.limit : u;
  return ACTIVATION == 1 ? (u + 1.f) * g * sigmoid(p.alpha * g) : g * sigmoid(g) * u;
#endif
}
