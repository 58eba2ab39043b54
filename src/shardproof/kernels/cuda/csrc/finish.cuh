// Epilogues by consumers, through shared memory and in 16-byte runs: w2 accumulators to routed rows; in geometries of two row
// tiles a warpgroup also w13 accumulators to activations.
#pragma once
#include "activation.cuh"
#include "consume.cuh"
#include "quant.cuh"

// Token weights of this thread where it is this product that is weighted, else ones. Not one function with that of
// many_finish.cuh: by an address handed in, ptxas spills more there (148, then 196 bytes in many112_8).
DEV float2 token_weights(const Pipe& q, int j, bool weighted) {
  if (!weighted) return make_float2(1.f, 1.f);
  uint2 w = load_shared8(q.base + Shared::WEIGHT + (q.tile.at * NMAX + 8 * j + 2 * (q.lane & 3)) * 4);
  return make_float2(__uint_as_float(w.x), __uint_as_float(w.y));
}

// [token][chunk] with the chunk index rotated by the token, so that eight tokens spread over the banks.
template <int ROW_BYTES>
DEV u32 staged(u32 base, int token, int chunk) { return base + token * ROW_BYTES + ((chunk ^ (token & 7)) << 4); }

// Activations of a 64-row group of w13.
template <int N>
DEV void stage_activations(const Params& p, u32 out, const RowFactors& f, const Pipe& q, int row64, const float* acc) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
    store_matrix1(staged<HOUT * 2>(out, 8 * j + (q.lane & 7), 4 * row64 + q.warp),
                  activated(p, f, token_weights(q, j, p.weight_first), acc + 4 * j));
}

// A tile's activations, rounded if they are, by `threads` threads, whole warps.
DEV void write_activations(const Params& p, const Tile& t, u32 out, int thread, int threads) {
  constexpr int RUNS = HOUT / 8;
  for (int i = thread; i < (t.count + 1) / 2 * 2 * RUNS; i += threads) {
    int token = i / RUNS, run = i % RUNS, column = t.row_tile * HOUT + run * 8;
    uint4 v = load_shared16(staged<HOUT * 2>(out, token, run));
    long slot = t.start + token;
    if ((FP8 || p.round_h) && column >= p.intermediate) v = make_uint4(0, 0, 0, 0);   // no part of the block's scale
#if FP8
    int e = scale_exponent(block_amax(v));
    uint2 q8 = transpose_block32(quantise8(v, e));
    if (token >= t.count || column >= p.h_pitch) continue;
    *(uint2*)((u8*)p.h + slot * p.h_pitch + column) = q8;
    if (run == 0) p.hs[(long)(column / 128) * (p.tokens * p.top_k) + slot] = exp2_int(e);
#else
    if (p.round_h) v = round8(v, scale_exponent(block_amax(v)));
    if (token < t.count && column < p.h_pitch) *(uint4*)((u16*)p.h + slot * p.h_pitch + column) = v;
#endif
  }
}

// Rows of w2 from `column` on, ROW_BYTES of each token, by `threads` threads.
template <int ROW_BYTES>
DEV void write_rows(const Params& p, const Tile& t, u32 out, const int* flat, int column, int thread, int threads) {
  constexpr int RUNS = ROW_BYTES / 16;
  column += thread % RUNS * 8;
  if (column >= p.y_pitch) return;
  for (int token = thread / RUNS; token < t.count; token += threads / RUNS)
    *(uint4*)((u16*)p.y + (long)flat[token] * p.y_pitch + column) = load_shared16(staged<ROW_BYTES>(out, token, thread % RUNS));
}

#if MW > 1
// Scales of rows b and b + 8 of each of this thread's row groups: read before the main loop, used after it.
struct RowScales {
  float scale[MW][2];
};
DEV long first_row(const Gemm& g, const Tile& t, const Pipe& q, int m) {
  int row64 = min(t.row_tile * ROW64 + q.group * MW + m, g.row64s - 1);
  return ((long)t.expert * g.row64s + row64) * 64 + q.warp * 16 + (q.lane >> 2);
}
DEV RowScales row_scales(const Gemm& g, const Tile& t, const Pipe& q) {
  RowScales f;
#pragma unroll
  for (int m = 0; m < MW; ++m) {
    const float* at = g.row_scale + first_row(g, t, q, m);
    f.scale[m][0] = at[0];
    f.scale[m][1] = at[8];
  }
  return f;
}

DEV RowFactors row_factors(const Gemm& g, const Tile& t, const Pipe& q, const RowScales& s, int m) {
  RowFactors f = {{s.scale[m][0], s.scale[m][1]}, {0.f, 0.f}};
  if (g.bias) {
    const float* at = g.bias + first_row(g, t, q, m);
    f.bias[0] = at[0];
    f.bias[1] = at[8];
  }
  return f;
}

constexpr int OWN = MW * 32;      // activations one warpgroup makes a token
template <int N>
DEV void stage_own(const Params& p, const RowFactors& f, const Pipe& q, int m, const float* acc) {
  u32 out = q.base + Shared::OUT + q.group * NMAX * 128;
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
    store_matrix1(staged<128>(out, 8 * j + (q.lane & 7), 4 * m + q.warp), activated(p, f, token_weights(q, j, p.weight_first), acc + 4 * j));
}

DEV void write_own(const Params& p, const Tile& t, const Pipe& q) {
  constexpr int RUNS = OWN / 8;
  u32 out = q.base + Shared::OUT + q.group * NMAX * 128;
  int thread = threadIdx.x & 127, run = thread % RUNS, column = t.row_tile * HOUT + q.group * OWN + run * 8;
  if (column >= p.h_pitch) return;
  for (int token = thread / RUNS; token < t.count; token += 128 / RUNS)
    *(uint4*)((u16*)p.h + (long)(t.start + token) * p.h_pitch + column) = load_shared16(staged<128>(out, token, run));
}

// One 64-row group of w2: staged and written by its warpgroup alone.
template <int N>
DEV void write_group(const Params& p, const Tile& t, const Pipe& q, int row64, bool again, const u8* smem, const float* acc) {
  u32 out = q.base + Shared::OUT + q.group * NMAX * 128;
  if (again) named_sync(4 + q.group, 128);
#pragma unroll
  for (int j = 0; j < N / 8; ++j)
    store_matrix2(staged<128>(out, 8 * j + (q.lane & 7), 2 * q.warp + ((q.lane >> 3) & 1)), pack_bf16(acc[4 * j], acc[4 * j + 1]),
                  pack_bf16(acc[4 * j + 2], acc[4 * j + 3]));
  named_sync(4 + q.group, 128);
  write_rows<128>(p, t, out, (const int*)(smem + Shared::FLAT) + q.tile.at * NMAX, row64 * 64, threadIdx.x & 127, 128);
}

// This warpgroup's stores of a tile are done: count it.
DEV void publish(const Params& p, const Tile& t, const Pipe& q) {
  int* counter = t.phase ? p.sync + 1 : p.sync + 4 + t.token_tile;
  named_sync(4 + q.group, 128);
  if ((threadIdx.x & 127) == 0) add_release(counter, 1);
}

template <int N>
DEV void finish_tile(const Params& p, const Tile& t, const Pipe& q, const RowScales& s, const u8* smem,
                     float (&acc)[MW][NMAX / 2]) {
  const int slot = q.tile.at;
  bool together = FP8 || p.round_h;                   // 128 activations share a scale: all warpgroups make one
#pragma unroll
  for (int m = 0; m < MW; ++m) {
    int local = q.group * MW + m, row64 = t.row_tile * ROW64 + local;
    RowFactors f = row_factors(p.gemm[t.phase], t, q, s, m);
    if (t.phase) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) scaled(f, token_weights(q, j, !p.weight_first), acc[m] + 4 * j, acc[m] + 4 * j);
      write_group<N>(p, t, q, row64, m > 0, smem, acc[m]);
      continue;
    }
    if (together) stage_activations<N>(p, q.base + Shared::OUT, f, q, local, acc[m]);
    else stage_own<N>(p, f, q, m, acc[m]);
  }
  if (t.phase == 0 && together) {
    named_sync(1, CONSUMERS);
    write_activations(p, t, q.base + Shared::OUT, threadIdx.x, CONSUMERS);
    named_sync(1, CONSUMERS);
  } else if (t.phase == 0) {
    named_sync(4 + q.group, 128);
    write_own(p, t, q);
  }
  publish(p, t, q);
}
#endif
