// The consumer warpgroups' main loop: weights from shared memory through registers into the matrix unit.
#pragma once
#include "dequant.cuh"
#include "params.cuh"
// Mma<N> comes from the generated wgmma text.

struct Pipe {
  u32 base;                     // shared memory
  int group, warp, lane;        // warpgroup of the block, warp of the warpgroup, lane of the warp
  u32 codes, scales;            // this thread's first ones in shared memory
  Ring w, x, tile, sum;
};

// The four words and scale bytes of this thread in one 64-row chunk. Past K's end lie BOXES' zero codes, or those of a stage
// before, or what `clear_scales` left: finite, and the tokens there are zeros.
struct Piece {
  uint4 codes;
  u32 scales;
};
DEV Piece read_piece(const Pipe& q, int row64, int chunk) {
  int at = row64 * CHUNKS + chunk;
  return {load_shared16(q.codes + q.w.at * W_BYTES + at * W_CHUNK), load_shared4(q.scales + q.w.at * S_BYTES + at * S_CHUNK)};
}

// A operand of the four 16-value steps of a chunk, in two parts: register 4k + r of step k, see PTX's m64k16 fragment.
struct HalfBf16 {
  u32 placed[16], multiplier[4];   // [2 * block + row half][2d + f]
};
DEV void prepare(const Piece& p, const u32 (&powers)[6], HalfBf16& t) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    place_bf16(words[i], powers, t.placed + 4 * i);
    t.multiplier[i] = bf16_multiplier(p.scales, i);
  }
  settle(t.placed);
  settle(t.multiplier);
}
DEV void complete(const HalfBf16& t, u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int r = 0; r < 4; ++r) a[8 * (i >> 1) + 4 * (r >> 1) + 2 * (r & 1) + (i & 1)] = mul_bf16x2_here(t.placed[4 * i + r], t.multiplier[i]);
}

// A operand of the two 32-value steps of a chunk.
struct HalfE4m3 {
  u32 codes[4], placed[8];
};
DEV void prepare(const Piece& p, u32 table, const u32 (&powers)[6], HalfE4m3& t) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint2 entry = magnitudes(p.scales, i, table, powers);
    t.codes[i] = words[i];
    place_e4m3(words[i], entry, t.placed[2 * i], t.placed[2 * i + 1]);
  }
  settle(t.codes);
  settle(t.placed);
}
DEV void complete(const HalfE4m3& t, u32 sixteen, u32* a) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int z = 0; z < 2; ++z) a[4 * (i >> 1) + 2 * z + (i & 1)] = sign_e4m3(t.codes[i], t.placed[2 * i + z], z, sixteen);
}

template <int N>
DEV void clear(float (&acc)[MW][NMAX / 2]) {
#pragma unroll
  for (int m = 0; m < MW; ++m)
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[m][i] = 0.f;
}

#if NARROW
// Warp-wide products: every load, unpacking and product is free to overlap with the others.
template <int N>
DEV void read_tokens(u32 atom, int lane, uint4 (&b)[2][N / 8]) {
#pragma unroll
  for (int block = 0; block < 2; ++block)
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
      b[block][j] = load_matrix4(atom + (8 * j + (lane & 7)) * 128 + ((4 * block + (lane >> 3)) ^ (lane & 7)) * 16);
}

template <int N>
DEV void multiply(const Piece& p, const u32 (&powers)[6], const uint4 (&b)[2][N / 8], float* acc) {
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    u32 low[4], high[4], by_low = bf16_multiplier(p.scales, 2 * block), by_high = bf16_multiplier(p.scales, 2 * block + 1);
    place_bf16(words[2 * block], powers, low);
    place_bf16(words[2 * block + 1], powers, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) low[i] = mul_bf16x2(low[i], by_low), high[i] = mul_bf16x2(high[i], by_high);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      mma_warp(acc + 4 * j, low[0], high[0], low[1], high[1], b[block][j].x, b[block][j].y);
      mma_warp(acc + 4 * j, low[2], high[2], low[3], high[3], b[block][j].z, b[block][j].w);
    }
  }
}

template <int N>
DEV void main_loop(const Params& p, Pipe& q, const Walk& w, float (&acc)[MW][NMAX / 2]) {
  int rows = q.group / KW * MW, share = q.group % KW;
  clear<N>(acc);
  for (int stage = 0; stage < w.stages; ++stage) {
    bar_wait(q.base + Shared::W_FULL + 8 * q.w.at, q.w.parity);
    bar_wait(q.base + Shared::X_FULL + 8 * q.x.at, q.x.parity);
#pragma unroll
    for (int step = 0; step < EACH; ++step) {
      int chunk = step * KW + share;
      uint4 b[2][N / 8];
      read_tokens<N>(q.base + Shared::X + q.x.at * X_BYTES + chunk * ATOM_BYTES, q.lane, b);
#pragma unroll
      for (int m = 0; m < MW; ++m) multiply<N>(read_piece(q, rows + m, chunk), p.powers, b, acc[m]);
    }
    release(q.base + Shared::W_EMPTY + 8 * q.w.at, q.lane);
    release(q.base + Shared::X_EMPTY + 8 * q.x.at, q.lane);
    q.w.next<W_DEPTH>();
    q.x.next<X_DEPTH>();
  }
}
#elif !FP8
// PAIR chunks a step: while their products run, the next step's weights are unpacked (OVERLAP), all but the multiply.
template <int N>
DEV void main_loop(const Params& p, Pipe& q, const Walk& w, float (&acc)[MW][NMAX / 2]) {
  constexpr int STEPS = EACH / PAIR * MW;
  int rows = q.group / KW * MW, share = q.group % KW, previous = 0;
  for (int stage = 0; stage < w.stages; ++stage) {
    bar_wait(q.base + Shared::W_FULL + 8 * q.w.at, q.w.parity);
    Piece piece[PAIR];
    auto read = [&](int step) {
#pragma unroll
      for (int i = 0; i < PAIR; ++i) {
        int chunk = (step / MW * PAIR + i) * KW + share;
        piece[i] = read_piece(q, rows + step % MW, chunk);
      }
    };
    read(0);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      int m = step % MW;
      HalfBf16 half[PAIR];
      u32 a[PAIR][16];
      if (!OVERLAP) mma_wait<0>();
#pragma unroll
      for (int i = 0; i < PAIR; ++i) prepare(piece[i], p.powers, half[i]);
      if (step < STEPS - 1) read(step + 1);
      if (step == STEPS - 1) release(q.base + Shared::W_EMPTY + 8 * q.w.at, q.lane);
      if (step == 0) bar_wait(q.base + Shared::X_FULL + 8 * q.x.at, q.x.parity);
      if (OVERLAP) mma_wait<0>();
      if (step == 0 && stage > 0) release(q.base + Shared::X_EMPTY + 8 * previous, q.lane);
#pragma unroll
      for (int i = 0; i < PAIR; ++i) complete(half[i], a[i]);
      mma_fence();
#pragma unroll
      for (int i = 0; i < PAIR; ++i) {
        int chunk = (step / MW * PAIR + i) * KW + share;
        u32 b = descriptor_low(q.base + Shared::X + q.x.at * X_BYTES + chunk * ATOM_BYTES);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          Mma<N>::bf16(acc[m], a[i][4 * k], a[i][4 * k + 1], a[i][4 * k + 2], a[i][4 * k + 3], mma_descriptor(b + 2 * k),
                       stage > 0 || k > 0 || i > 0 || step >= MW);
      }
      mma_commit();
    }
    previous = q.x.at;
    q.w.next<W_DEPTH>();
    q.x.next<X_DEPTH>();
  }
  mma_wait<0>();
  release(q.base + Shared::X_EMPTY + 8 * previous, q.lane);
}
#elif DIRECT
// A operand of the two 32-value steps of a chunk, code * 2^-6: the bits of each nibble moved to their places in a byte.
DEV void place_direct(const Piece& p, const u32 (&powers)[6], u32* a) {
  const u32 S = 0x80808080u, MAG = 0x1c1c1c1cu;
  u32 words[4] = {p.codes.x, p.codes.y, p.codes.z, p.codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 w = words[i], *to = a + 4 * (i >> 1) + (i & 1);
    to[0] = ((w & 0x0f0f0f0fu) * powers[4] + 0x60606060u) & (S | MAG);
    to[2] = (w & S) | ((w >> 2) & MAG);
  }
}

// The power of two of a block of weights, from its multiplier: 2^(byte - 247).
DEV float block_scale(u32 scales, int i, u32 exponent_one) {
  return __uint_as_float(select_bytes(scales, 0, 0x4440 | i) * exponent_one - (120u << 23));
}

// Adds the products of STEPS blocks of 32 to the result: each block by its rows' scales, each token by its own.
template <int N, int STEPS>
DEV void promote(const float (&by)[2 * STEPS], u32 scales, int lane, const float (&part)[STEPS][N / 2], float* acc) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    uint2 s = load_shared8(scales + (8 * j + 2 * (lane & 3)) * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = part[0][4 * j + i] * by[i >> 1];
#pragma unroll
      for (int k = 1; k < STEPS; ++k) sum += part[k][4 * j + i] * by[2 * k + (i >> 1)];
      acc[4 * j + i] += sum * __uint_as_float(i & 1 ? s.y : s.x);
    }
  }
}

// Chunks of one 128-value block of tokens: products of each 32 values on their own, since their rows' scales differ.
template <int N, int COUNT, class Issued>
DEV void direct_step(const Params& p, Pipe& q, int chunk, float* acc, Issued issued) {
  float part[2 * COUNT][N / 2];
  u32 a[8 * COUNT], scales[COUNT], b = descriptor_low(q.base + Shared::X + q.x.at * X_BYTES + chunk / 2 * ATOM_BYTES) + chunk % 2 * 4;
#pragma unroll
  for (int c = 0; c < COUNT; ++c) {
    Piece piece = read_piece(q, q.group, chunk + c);
    place_direct(piece, p.powers, a + 8 * c);
    scales[c] = piece.scales;
  }
  mma_fence();
#pragma unroll
  for (int k = 0; k < 2 * COUNT; ++k)
    Mma<N>::e4m3_first(part[k], a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], mma_descriptor(b + 2 * k));
  mma_commit();
  issued();
  mma_wait<0>();
  settle(scales);                                     // one register until here, four from here on
  float by[4 * COUNT];
#pragma unroll
  for (int i = 0; i < 4 * COUNT; ++i) by[i] = block_scale(scales[i / 4], i % 4, p.exponent_one);
  promote<N, 2 * COUNT>(by, q.base + Shared::XS + q.x.at * XS_BYTES + chunk / 2 * NMAX * 4, q.lane, part, acc);
}

template <int N>
DEV void main_loop(const Params& p, Pipe& q, const Walk& w, float (&acc)[MW][NMAX / 2]) {
  constexpr int COUNT = N <= 16 ? 2 : 1;              // as many as registers hold
  clear<N>(acc);
  for (int stage = 0; stage < w.stages; ++stage) {
    bar_wait(q.base + Shared::W_FULL + 8 * q.w.at, q.w.parity);
    bar_wait(q.base + Shared::X_FULL + 8 * q.x.at, q.x.parity);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += COUNT)
      direct_step<N, COUNT>(p, q, chunk, acc[0], [&] {
        if (chunk + COUNT == CHUNKS) release(q.base + Shared::W_EMPTY + 8 * q.w.at, q.lane);
      });
    release(q.base + Shared::X_EMPTY + 8 * q.x.at, q.lane);
    q.w.next<W_DEPTH>();
    q.x.next<X_DEPTH>();
  }
}
#else
// Reads one step's weights, then ends the step before it (`before`), then starts this one.
template <int N, int STEP_INDEX, class Before>
DEV void step_e4m3(const Params& p, Pipe& q, float* part, Before before) {
  constexpr int m = MW == 2 ? STEP_INDEX : 0, atom = MW == 2 ? 0 : STEP_INDEX;
  HalfE4m3 half[2];
  u32 a[16];
  if (STEP_INDEX == 0) bar_wait(q.base + Shared::W_FULL + 8 * q.w.at, q.w.parity);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    int chunk = 2 * atom + c;
    prepare(read_piece(q, q.group * MW + m, chunk), q.base + Shared::TABLE, p.powers, half[c]);
  }
  if (STEP_INDEX == 1) release(q.base + Shared::W_EMPTY + 8 * q.w.at, q.lane);
  if (STEP_INDEX == 0) {
    bar_wait(q.base + Shared::X_FULL + 8 * q.x.at, q.x.parity);
  }
  u32 b = descriptor_low(q.base + Shared::X + q.x.at * X_BYTES + atom * ATOM_BYTES);
  before();
  complete(half[0], p.powers[3], a);
  complete(half[1], p.powers[3], a + 8);
  mma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) Mma<N>::e4m3(part, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3], mma_descriptor(b + 2 * k), k > 0);
  mma_commit();
}

template <int N>
DEV void main_loop(const Params& p, Pipe& q, const Walk& w, float (&acc)[MW][NMAX / 2]) {
  float part[N / 2];
  clear<N>(acc);
  step_e4m3<N, 0>(p, q, part, [] {});
  for (int stage = 0;;) {
    u32 scales = q.base + Shared::XS + q.x.at * XS_BYTES;
    step_e4m3<N, 1>(p, q, part, [&] {
      mma_wait<0>();
      promote<N>(scales, q.lane, part, acc[0]);
    });
    if (MW == 1) scales += NMAX * 4;
    int previous = q.x.at;
    q.w.next<W_DEPTH>();
    q.x.next<X_DEPTH>();
    ++stage;
    auto end = [&] {
      mma_wait<0>();
      promote<N>(scales, q.lane, part, acc[MW - 1]);
      release(q.base + Shared::X_EMPTY + 8 * previous, q.lane);
    };
    if (stage >= w.stages) return end();
    step_e4m3<N, 0>(p, q, part, end);
  }
}
#endif
