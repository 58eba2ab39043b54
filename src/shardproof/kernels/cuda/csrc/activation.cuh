// h(g, u) in fp32, as shardproof.experts.Activation defines it.
#pragma once
#include "params.cuh"

DEV float sigmoid(float v) { return __fdividef(1.f, 1.f + __expf(-v)); }
// expf-based, to fp32 rounding: tanhf's own branches cost more than the formula.
DEV float tanh_exact(float v) { return tanhf(v); }

DEV float activate(const Params& p, float g, float u) {
  if (p.activation == 2)
    return p.beta * tanh_exact(g / p.beta) * sigmoid(g) * p.linear_beta * tanh_exact(u / p.linear_beta);
  g = fminf(g, p.limit);
  u = fminf(fmaxf(u, -p.limit), p.limit);
  return p.activation == 1 ? (u + 1.f) * g * sigmoid(p.alpha * g) : g * sigmoid(g) * u;
}
