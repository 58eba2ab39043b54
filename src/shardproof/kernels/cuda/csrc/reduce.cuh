// The last phase: routed rows to the output.
#pragma once
#include "params.cuh"

// Eight columns of up to eight routed rows of a token, from slot `first` on: all loads before the first sum.
DEV void add_rows(const Params& p, long first, int count, int column, float (&sum)[8]) {
  constexpr int WORDS = KW > 1 ? 8 : 4;
  u32 v[8][WORDS];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    bool ok = j < count && local_expert(p, p.ids[first + j]) >= 0;
    const u8* y = (const u8*)p.y + ((first + j) * p.y_pitch + column) * (WORDS / 2);
#pragma unroll
    for (int c = 0; c < WORDS; c += 4) {
      uint4 a = ok ? load_global16(y + 4 * c) : make_uint4(0, 0, 0, 0);
      v[j][c] = a.x, v[j][c + 1] = a.y, v[j][c + 2] = a.z, v[j][c + 3] = a.w;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int c = 0; c < 8; ++c)
      sum[c] += KW > 1 ? __uint_as_float(v[j][c % WORDS]) : c & 1 ? bf16_high(v[j][c / 2]) : bf16_low(v[j][c / 2]);
}

// Sums the routed rows of each token in slot order.
DEV void reduce_tokens(const Params& p) {
  int runs = p.hidden / 8;
  long total = (long)p.tokens * runs;
  for (long i = (long)blockIdx.x * CONSUMERS + threadIdx.x; i < total; i += (long)gridDim.x * CONSUMERS) {
    int token = i / runs, column = (i - (long)token * runs) * 8;
    float sum[8] = {};
    for (int j = 0; j < p.top_k; j += 8) add_rows(p, (long)token * p.top_k + j, p.top_k - j, column, sum);
    uint4 r = make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
    *(uint4*)(p.out + (long)token * p.hidden + column) = r;
  }
}
