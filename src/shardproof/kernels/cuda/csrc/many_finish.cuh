// Epilogues of the kernel for many tokens: straight from registers, 8x8 blocks transposed among a warp's lanes.
#pragma once
#include "activation.cuh"
#include "many_consume.cuh"

DEV RowFactors row_factors(const Pipe& q, bool biased) {
  u32 at = q.base + Many::FACTORS + q.tile.at * FACTORS_TILE + (q.group * 64 + q.warp * 16 + (q.lane >> 2)) * 4;
  RowFactors f = {{load_shared_float(at), load_shared_float(at + 32)}, {0.f, 0.f}};
  if (biased) f.bias[0] = load_shared_float(at + WGS * 256), f.bias[1] = load_shared_float(at + WGS * 256 + 32);
  return f;
}

// A warp's 8x8 block of 16-bit numbers, rows to columns.
DEV u32 transpose8(u32 v) {
  u32 r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

// Token weights of this thread. Ones where it is the other product that is weighted.
DEV float2 token_weights(const Pipe& q, int j) {
  uint2 w = load_shared8(q.base + Many::WEIGHT + (q.tile.at * NMAX + 8 * j + 2 * (q.lane & 3)) * 4);
  return make_float2(__uint_as_float(w.x), __uint_as_float(w.y));
}

constexpr int TOGETHER = 4;                        // blocks of 8 tokens whose stores hide each other's waits

// Where this thread's two activations of the tile's first 8 tokens go, and how far the next 8 are.
struct Target {
  u8* at;
  int step;
};
DEV Target activation_target(const Params& p, const ManyTile& t, const Pipe& q, int row64) {
  int token = q.lane >> 2, pair = (q.lane & 3) * 4;
  if (remade(p)) {
    long row = (long)t.group * 8 + token;
    return {(u8*)p.h + (row * p.h_pitch + row64 * 32 + q.warp * 8) * 2 + pair, p.h_pitch * 16};
  }
  u8* chunk = (u8*)p.h + (long)t.group * 8 * row_bytes(p.gemm[1]) + (long)(row64 >> 1) * tile_rows(t.count) * 128;
  return {chunk + token * 128 + ((((row64 & 1) * 4 + q.warp) ^ token) << 4) + pair, 1024};
}

// w13: gate rows in acc[4j], acc[4j+1], their up rows in acc[4j+2], acc[4j+3].
template <int N>
DEV void store_activations(const Params& p, const ManyTile& t, const Pipe& q, const RowFactors& f, int row64, const float* acc) {
  Target to = activation_target(p, t, q, row64);
  int count = t.count;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    if (j % TOGETHER == 0 && 8 * j >= count) break;
    u32 pair = transpose8(activated(p, f, token_weights(q, j), acc + 4 * j));
    if (8 * j < count) *(u32*)to.at = pair;
    to.at += to.step;
  }
}

// w2: neighbouring lanes swap halves, so that a token's 16 rows leave as one 32-byte run.
template <int N>
DEV void store_rows(const Params& p, const ManyTile& t, const Pipe& q, const RowFactors& f, int row64, const float* acc) {
  int odd = q.lane & 1;
  u16* y = (u16*)p.y + row64 * 64 + q.warp * 16 + odd * 8 + (q.lane & 2) * 2;
  u32 flat = q.base + Many::FLAT + (q.tile.at * NMAX + (q.lane >> 2)) * 4;
  int count = t.count, mine = count - (q.lane >> 2);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    if (j % TOGETHER == 0 && 8 * j >= count) break;
    float v[4];
    scaled(f, token_weights(q, j), acc + 4 * j, v);
    u32 low = transpose8(pack_bf16(v[0], v[1])), high = transpose8(pack_bf16(v[2], v[3]));
    u32 got = __shfl_xor_sync(~0u, odd ? low : high, 1);
    u32 slot = load_shared4(flat + 32 * j);
    if (8 * j < mine) *(uint2*)(y + (long)(int)slot * p.y_pitch) = odd ? make_uint2(got, high) : make_uint2(low, got);
  }
}

template <int N>
DEV void finish_tile(const Params& p, const ManyTile& t, const Pipe& q, const float* acc) {
  const Gemm& g = p.gemm[t.phase];
  RowFactors f = row_factors(q, g.bias != nullptr);
  int row64 = t.row_tile * WGS + q.group;
  if (row64 < g.row64s) {
    if (t.phase) store_rows<N>(p, t, q, f, row64, acc);
    else store_activations<N>(p, t, q, f, row64, acc);
  }
}
