// The last phase: routed rows to the output.
#pragma once
#include "params.cuh"

constexpr int SPAN = KW == 1 && CONSUMER_REGS >= 104 ? 2 : 1;    // runs of 256 columns a warp takes at once

// A run of eight columns of up to eight routed rows of a token, from slot `first` on; bit j of `there` says whether row j
// exists.
struct Rows {
  static constexpr int WORDS = KW > 1 ? 8 : 4;
  u32 v[8][WORDS];
  DEV void load(const Params& p, long first, u32 there, int column) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u8* y = (const u8*)p.y + ((first + j) * p.y_pitch + column) * (WORDS / 2);
#pragma unroll
      for (int c = 0; c < WORDS; c += 4) {
        uint4 a = there >> j & 1 ? load_global16(y + 4 * c) : make_uint4(0, 0, 0, 0);
        v[j][c] = a.x, v[j][c + 1] = a.y, v[j][c + 2] = a.z, v[j][c + 3] = a.w;
      }
    }
  }
  DEV void add(float (&sum)[8]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int c = 0; c < 8; ++c)
        sum[c] += KW > 1 ? __uint_as_float(v[j][c % WORDS]) : c & 1 ? bf16_high(v[j][c / 2]) : bf16_low(v[j][c / 2]);
  }
};

// Whether slot `first + lane` of a token, `count` slots of which are left, has a row.
DEV bool slot_there(const Params& p, long first, int count) {
  int id = lane_id() < count ? p.ids[first + lane_id()] : -1;
  return local_expert(p, id) >= 0;
}

// Sums the routed rows of each token in slot order; a warp takes 256 columns of one token, SPAN times. All loads come
// before the first sum, and the next token's slots are looked up meanwhile.
DEV void reduce_tokens(const Params& p) {
  int parts = (p.hidden + 256 * SPAN - 1) / (256 * SPAN), warps = gridDim.x * (CONSUMERS / 32);
  long total = (long)p.tokens * parts, i = (long)(threadIdx.x >> 5) * gridDim.x + blockIdx.x;
  bool next = i < total && slot_there(p, i / parts * p.top_k, p.top_k);
  for (; i < total; i += warps) {
    int token = i / parts, column = (i - (long)token * parts) * 256 * SPAN + lane_id() * 8;
    long first = (long)token * p.top_k;
    float sum[SPAN][8] = {};
    u32 there = __ballot_sync(~0u, next);
    for (int j0 = 0; j0 < p.top_k; j0 += 8, there >>= 8) {
      if (j0 && j0 % 32 == 0) there = __ballot_sync(~0u, slot_there(p, first + j0, p.top_k - j0));
      Rows rows[SPAN];
#pragma unroll
      for (int s = 0; s < SPAN; ++s) rows[s].load(p, first + j0, column + 256 * s < p.hidden ? there : 0, column + 256 * s);
      if (j0 == 0) next = i + warps < total && slot_there(p, (i + warps) / parts * p.top_k, p.top_k);
#pragma unroll
      for (int s = 0; s < SPAN; ++s) rows[s].add(sum[s]);
    }
#pragma unroll
    for (int s = 0; s < SPAN; ++s) {
      const float* v = sum[s];
      uint4 r = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
      if (column + 256 * s < p.hidden) *(uint4*)(p.out + (long)token * p.hidden + column + 256 * s) = r;
    }
  }
}
