// The consumer warpgroups of the kernel for many tokens: 64 weight rows each, all K, weights unpacked into registers.
#pragma once
#include "dequant.cuh"
#include "many_params.cuh"
// Mma<N> comes from the generated wgmma text.

struct Pipe {
  u32 base;                     // shared memory
  int group, warp, lane;        // warpgroup of the block, warp of the warpgroup, lane of the warp
  u32 codes, scales;            // this thread's first ones in shared memory
  Ring stage, tile;
};

// A stage's tokens come from every block of the cluster, so every block must know that it is free.
DEV void release_stage(const Pipe& q, int at) {
  u32 bar = q.base + Many::EMPTY + 8 * at;
  __syncwarp();
  if (CLUSTER == 1 && (CHECKED || q.lane == 0)) bar_arrive(bar);
  if (CLUSTER > 1 && q.lane < CLUSTER) arrive_in_block(bar, q.lane);
}

// The four words and scale bytes of this thread in one chunk of a stage; a chunk past K's end reads as zeros.
struct Piece {
  uint4 codes;
  u32 scales;
};
DEV Piece read_piece(const Pipe& q, int chunk, bool live) {
  Piece p = {load_shared16(q.codes + q.stage.at * Many::W_STAGE + chunk * W_CHUNK),
             load_shared4(q.scales + q.stage.at * Many::S_STAGE + chunk * S_CHUNK)};
  if (FP8 && !live) p.codes = make_uint4(0, 0, 0, 0);
  if (!live) p.scales = FP8 ? 0xfdfdfdfd : 0;        // a bf16 multiplier of zero; a place within the e4m3 table
  return p;
}

#if !FP8
// A operand of the four 16-value steps of a chunk: register 4k + r of step k, see PTX's m64k16 fragment.
DEV void unpack(const Piece& p, const u32 (&powers)[5], u32 (&a)[16]) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 placed[4], multiplier = bf16_multiplier(p.scales, i);
    place_bf16(words[i], powers, placed);
#pragma unroll
    for (int r = 0; r < 4; ++r) a[8 * (i >> 1) + 4 * (r >> 1) + 2 * (r & 1) + (i & 1)] = mul_bf16x2_here(placed[r], multiplier);
  }
}

// Other warpgroups' products run while this one unpacks.
// One stage. FIRST: its first product writes the accumulators without reading them.
template <int N, bool FIRST>
DEV void run_stage(const Params& p, Pipe& q, bool pair, u32 chunk_bytes, int previous, float* acc) {
  bar_wait(q.base + Many::FULL + 8 * q.stage.at, q.stage.parity);
  Piece piece = read_piece(q, 0, true);
  u32 b = descriptor_low(q.base + Many::X + q.stage.at * Many::X_STAGE);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    u32 a[16];
    if (!FIRST || c > 0) mma_wait<0>();               // the products before still read their A registers
    if (!FIRST && c == 0) release_stage(q, previous);
    unpack(piece, p.powers, a);
    if (c == 0) piece = read_piece(q, 1, pair);
    mma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u64 tokens = mma_descriptor(b + 2 * k);
      if (FIRST && c == 0 && k == 0) Mma<N>::bf16_first(acc, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], tokens);
      else Mma<N>::bf16(acc, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], tokens);
    }
    mma_commit();
    if (pair) b += chunk_bytes >> 4;                  // a chunk past K's end: zero weights times the tokens before
  }
  q.stage.next<DEPTH>();
}

template <int N>
DEV void main_loop(const Params& p, Pipe& q, int chunks, u32 chunk_bytes, float (&acc)[NMAX / 2]) {
  int previous = q.stage.at;
  run_stage<N, true>(p, q, chunks > 1, chunk_bytes, 0, acc);
  for (int chunk = 2; chunk < chunks; chunk += 2) {
    int at = q.stage.at;
    run_stage<N, false>(p, q, chunk + 1 < chunks, chunk_bytes, previous, acc);
    previous = at;
  }
  mma_wait<0>();
  release_stage(q, previous);
}
#else
// A operand of the two 32-value steps of a chunk.
DEV void unpack(const Piece& p, u32 table, u32 sixteen, u32* a) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 z[2];
    place_e4m3(words[i], load_shared8(table + 8 * ((p.scales >> (8 * i)) & 0xff)), z[0], z[1]);
#pragma unroll
    for (int h = 0; h < 2; ++h) a[4 * (i >> 1) + 2 * h + (i & 1)] = sign_e4m3(words[i], z[h], h, sixteen);
  }
}

// Reads a stage's weights, ends the stage before (`before`), then unpacks and starts this one.
template <int N, class Before>
DEV void start_stage(const Params& p, Pipe& q, bool pair, float* part, Before before) {
  bar_wait(q.base + Many::FULL + 8 * q.stage.at, q.stage.parity);
  Piece piece[2] = {read_piece(q, 0, true), read_piece(q, 1, pair)};
  u32 b = descriptor_low(q.base + Many::X + q.stage.at * Many::X_STAGE), a[16];
  before();
  unpack(piece[0], q.base + Many::TABLE - 8 * 239, p.powers[3], a);
  unpack(piece[1], q.base + Many::TABLE - 8 * 239, p.powers[3], a + 8);
  mma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    u64 tokens = mma_descriptor(b + 2 * k);
    if (k == 0) Mma<N>::e4m3_first(part, a[0], a[1], a[2], a[3], tokens);
    else Mma<N>::e4m3(part, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], tokens);
  }
  mma_commit();
  q.stage.next<DEPTH>();
}

template <int N>
DEV void main_loop(const Params& p, Pipe& q, int chunks, u32, float (&acc)[NMAX / 2]) {
  float part[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) acc[i] = 0.f;
  int previous = q.stage.at;
  auto end = [&] {
    mma_wait<0>();
    promote<N>(q.base + Many::XS + previous * Many::XS_STAGE, q.lane, part, acc);
    release_stage(q, previous);
  };
  start_stage<N>(p, q, chunks > 1, part, [] {});
  for (int chunk = 2; chunk < chunks; chunk += 2) {
    int at = q.stage.at;
    start_stage<N>(p, q, chunk + 1 < chunks, part, end);
    previous = at;
  }
  end();
}
#endif
