// The last phase: routed rows to the output.
#pragma once
#include "params.cuh"

// Eight columns of up to eight routed rows of a token, from slot `first` on; bit j of `there` says whether row j exists.
// All loads before the first sum.
DEV void add_rows(const Params& p, long first, u32 there, int column, float (&sum)[8]) {
  constexpr int WORDS = KW > 1 ? 8 : 4;
  u32 v[8][WORDS];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const u8* y = (const u8*)p.y + ((first + j) * p.y_pitch + column) * (WORDS / 2);
#pragma unroll
    for (int c = 0; c < WORDS; c += 4) {
      uint4 a = there >> j & 1 ? load_global16(y + 4 * c) : make_uint4(0, 0, 0, 0);
      v[j][c] = a.x, v[j][c + 1] = a.y, v[j][c + 2] = a.z, v[j][c + 3] = a.w;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int c = 0; c < 8; ++c)
      sum[c] += KW > 1 ? __uint_as_float(v[j][c % WORDS]) : c & 1 ? bf16_high(v[j][c / 2]) : bf16_low(v[j][c / 2]);
}

// Which of up to 32 slots from `first` on have a row, by all lanes of a warp: one look-up for all of them.
DEV u32 slots_there(const Params& p, long first, int count) {
  int id = lane_id() < count ? p.ids[first + lane_id()] : -1;
  return __ballot_sync(~0u, local_expert(p, id) >= 0);
}

// Sums the routed rows of each token in slot order; a warp takes 256 columns of one token.
DEV void reduce_tokens(const Params& p) {
  int parts = (p.hidden + 255) / 256, warps = gridDim.x * (CONSUMERS / 32);
  long total = (long)p.tokens * parts;
  for (long i = (long)(threadIdx.x >> 5) * gridDim.x + blockIdx.x; i < total; i += warps) {
    int token = i / parts, column = (i - (long)token * parts) * 256 + lane_id() * 8;
    long first = (long)token * p.top_k;
    float sum[8] = {};
    for (int j0 = 0; j0 < p.top_k; j0 += 32) {
      u32 there = slots_there(p, first + j0, p.top_k - j0);
      for (int j = 0; j < min(32, p.top_k - j0); j += 8)
        if (column < p.hidden) add_rows(p, first + j0 + j, there >> j, column, sum);
    }
    uint4 r = make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
    if (column < p.hidden) *(uint4*)(p.out + (long)token * p.hidden + column) = r;
  }
}
