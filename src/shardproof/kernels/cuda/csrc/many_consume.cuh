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

// The four words and scale bytes of this thread in one chunk of a stage. Past K's end codes are zeros, scales finite.
struct Piece {
  uint4 codes;
  u32 scales;
};
DEV Piece read_piece(const Pipe& q, int chunk) {
  return {load_shared16(q.codes + q.stage.at * Many::W_STAGE + chunk * W_CHUNK),
          load_shared4(q.scales + q.stage.at * Many::S_STAGE + chunk * S_CHUNK)};
}

template <int I>
struct Index {
  static constexpr int value = I;
};

// Walks K in steps of 128 values, a half of a stage or all of it: `step` starts one, even or odd if these differ, the first
// or not; `end` waits for the last.
constexpr int HALVES = EACH / 2;                     // of a stage
static_assert(HALVES == 1 || HALVES == 2, "a stage holds 128 or 256 values of K");
template <bool ODD_DIFFERS, class Step, class End>
DEV void walk(int chunks, Step step, End end) {
  step(Index<0>(), Index<1>());
  int left = (chunks - 1) / 2;
  if constexpr (!ODD_DIFFERS) {
    for (; left > 0; --left) step(Index<0>(), Index<0>());
    return end(Index<0>());
  } else {
    for (;; left -= 2) {
      if (left == 0) return end(Index<0>());
      step(Index<1>(), Index<0>());
      if (left == 1) return end(Index<1>());
      step(Index<0>(), Index<0>());
    }
  }
}

#if !FP8
// A operand of the four 16-value steps of a chunk: register 4k + r of step k, see PTX's m64k16 fragment.
DEV void unpack(const Piece& p, const u32 (&powers)[6], u32 (&a)[16]) {
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
template <int N>
DEV void main_loop(const Params& p, Pipe& q, int chunks, u32 chunk_bytes, float (&acc)[NMAX / 2]) {
  int previous = 0, left = chunks;
  auto step = [&](auto index, auto first) {
    constexpr int HALF = HALVES == 2 ? index.value : 0;
    int at = q.stage.at;
    bool pair = left > 1;
    if (HALF == 0) bar_wait(q.base + Many::FULL + 8 * at, q.stage.parity);
    Piece piece = read_piece(q, 2 * HALF);
    u32 b = descriptor_low(q.base + Many::X + at * Many::X_STAGE + 2 * HALF * chunk_bytes);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      u32 a[16];
      if (!first.value || c > 0) mma_wait<0>();       // the products before still read their A registers
      if (!first.value && c == 0 && HALF == 0) release_stage(q, previous);
      unpack(piece, p.powers, a);
      if (c == 0) piece = read_piece(q, 2 * HALF + 1);
      mma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        u64 tokens = mma_descriptor(b + 2 * k);
        if (first.value && c == 0 && k == 0) Mma<N>::bf16_first(acc, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], tokens);
        else Mma<N>::bf16(acc, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], tokens);
      }
      mma_commit();
      if (pair) b += chunk_bytes >> 4;                // a chunk past K's end: zero weights times the tokens before
    }
    previous = at;
    left -= 2;
    if (HALF == HALVES - 1) q.stage.next<DEPTH>();
  };
  walk<HALVES == 2>(chunks, step, [&](auto index) {
    mma_wait<0>();
    release_stage(q, previous);
    if (HALVES == 2 && index.value == 0) q.stage.next<DEPTH>();   // its second half lies past K's end
  });
}
#else
// A operand of the two 32-value steps of a chunk.
DEV void unpack(const Piece& p, u32 table, const u32 (&powers)[6], u32* a) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 z[2];
    place_e4m3(words[i], magnitudes(p.scales, i, table, powers), z[0], z[1]);
#pragma unroll
    for (int h = 0; h < 2; ++h) a[4 * (i >> 1) + 2 * h + (i & 1)] = sign_e4m3(words[i], z[h], h, powers[3]);
  }
}

// Each step reads the next one's weights, ends its own and starts the next; other warpgroups fill the waits. More tokens
// than registers hold sums for take turns: PIECES, and then the next step's weights are unpacked while products run, into
// another set of registers.
template <int N>
DEV void main_loop(const Params& p, Pipe& q, int chunks, u32 chunk_bytes, float (&acc)[NMAX / 2]) {
  constexpr int PIECE = N / PIECES;
  constexpr bool AHEAD = PIECES > 1, ODD_DIFFERS = AHEAD || HALVES == 2;
  static_assert(PIECE % 8 == 0, "a matrix width");
  float part[PIECE / 2];
  u32 a[AHEAD ? 2 : 1][16];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) acc[i] = 0.f;
  auto stage_at = [&](u32 at) { return q.base + Many::X + at * Many::X_STAGE; };
  // Steps are even and odd (`index`): halves of a stage if it has two, and users of the two sets of registers.
  auto multiply = [&](auto index, u32 at, int i) {
    constexpr int HALF = HALVES == 2 ? index.value : 0;
    const u32* w = a[AHEAD ? index.value : 0];
    u32 b = descriptor_low(stage_at(at) + HALF * chunk_bytes) + i * PIECE * 8;
    mma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u64 tokens = mma_descriptor(b + 2 * k);
      // A later piece overwrites the first one's registers by name: given new ones, the compiler keeps both sets.
      if (k == 0 && i == 0) Mma<PIECE>::e4m3_first(part, w[0], w[1], w[2], w[3], tokens);
      else Mma<PIECE>::e4m3(part, w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3], tokens, k > 0);
    }
    mma_commit();
  };
  auto end_step = [&](auto index, u32 at) {
    constexpr int HALF = HALVES == 2 ? index.value : 0;
    u32 scales = stage_at(at) + STAGE_ATOMS * chunk_bytes + HALF * (chunk_bytes >> 5);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      if (i) multiply(index, at, i);
      mma_wait<0>();
      promote<PIECE>(scales + i * PIECE * 4, q.lane, part, acc + i * (PIECE / 2));
    }
  };
  // Ends step `before`, if it is one, and starts step `index`.
  auto step = [&](auto index, auto first) {
    constexpr int HALF = HALVES == 2 ? index.value : 0;
    constexpr bool NEW_STAGE = HALF == 0;
    u32* w = a[AHEAD ? index.value : 0];
    if (NEW_STAGE && !first.value) q.stage.next<DEPTH>();
    if (NEW_STAGE) bar_wait(q.base + Many::FULL + 8 * q.stage.at, q.stage.parity);
    Piece piece[2] = {read_piece(q, 2 * HALF), read_piece(q, 2 * HALF + 1)};
    auto end_before = [&] {
      if (first.value) return;
      constexpr int BEFORE = ODD_DIFFERS ? 1 - decltype(index)::value : 0;
      u32 at = !NEW_STAGE ? q.stage.at : q.stage.at ? q.stage.at - 1 : DEPTH - 1;
      end_step(Index<BEFORE>(), at);
      if (NEW_STAGE) release_stage(q, at);
    };
    if (!AHEAD) end_before();
    unpack(piece[0], q.base + Many::TABLE, p.powers, w);
    unpack(piece[1], q.base + Many::TABLE, p.powers, w + 8);
    if (AHEAD) end_before();
    multiply(index, q.stage.at, 0);
  };
  walk<ODD_DIFFERS>(chunks, step, [&](auto index) {
    end_step(index, q.stage.at);
    release_stage(q, q.stage.at);
    q.stage.next<DEPTH>();
  });
}
#endif
