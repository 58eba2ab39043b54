// Geometries of one row tile a warpgroup: consumers leave a tile in shared memory and go on; finisher warps store and count
// it. A consumer that did this itself would hold up every stage that it shares with the others. Where no warpgroups share
// rows, RESULTS are left, activations or rows of w2, which finishers copy 16 bytes at a time; else sums, which finishers add,
// scale and activate. With few tokens (NARROW) those of w13 are left as sums, too: consumers have no time for activations.
#pragma once
#include "finish.cuh"
#if MW == 1
static_assert(!FP8 || HOUT == 128, "one row tile makes one block of activations that share a scale");

DEV bool results_left(int phase) { return RESULTS && (phase || !NARROW); }

// The factors of a warp's 16 rows, copied behind its main loop: they would take registers from it.
DEV u32 factor_place(const Pipe& q) { return q.base + Shared::FACTORS + (threadIdx.x >> 5) * 128; }
DEV void fetch_factors(const Params& p, const Tile& t, const Pipe& q) {
  if (!results_left(t.phase)) return;
  const Gemm& g = p.gemm[t.phase];
  int row64 = min(t.row_tile * ROW64 + q.group, g.row64s - 1), part = q.lane & 3;
  long row = ((long)t.expert * g.row64s + row64) * 64 + q.warp * 16 + part * 4;
  if (q.lane < 4) copy16(factor_place(q) + part * 16, g.row_scale + row, 16);
  else if (g.bias && q.lane < 8) copy16(factor_place(q) + 64 + part * 16, g.bias + row, 16);
  copies_commit();
}
DEV RowFactors fetched_factors(const Params& p, int phase, const Pipe& q) {
  copies_wait<0>();
  __syncwarp();
  u32 at = factor_place(q) + (q.lane >> 2) * 4;
  RowFactors f = {{load_shared_float(at), load_shared_float(at + 32)}, {0.f, 0.f}};
  if (p.gemm[phase].bias) f.bias[0] = load_shared_float(at + 64), f.bias[1] = load_shared_float(at + 96);
  __syncwarp();                                       // the next tile's may come
  return f;
}

constexpr int ROW_BYTES = ROW64 * 128;             // of a token's rows of w2 in a tile
template <int N>
DEV void leave_rows(const Params& p, u32 out, const RowFactors& f, const Pipe& q, const float* acc) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float v[4];                                       // the compiler serialises products whose sums are changed in place
    scaled(f, token_weights(q, j, !p.weight_first), acc + 4 * j, v);
    store_matrix2(staged<ROW_BYTES>(out, 8 * j + (q.lane & 7), 8 * q.group + 2 * q.warp + ((q.lane >> 3) & 1)),
                  pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  }
}
template <int N>
DEV void leave_sums(u32 out, const Pipe& q, const float* acc) {
  u32 at = out + q.group * (NMAX / 2) * 512 + (threadIdx.x & 127) * 4;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) store_shared4(at + i * 512, __float_as_uint(acc[i]));
}
template <int N>
DEV void leave_tile(const Params& p, Pipe& q, const float* acc) {
  q.lane = opaque(lane_id());                         // read again rather than kept in registers through the main loop
  int phase = load_shared4(q.base + Shared::RECORD + q.tile.at * sizeof(Tile));
  u32 out = q.base + Shared::OUT + q.sum.at * SUM_BYTES;
  RowFactors f;
  if (results_left(phase)) f = fetched_factors(p, phase, q);
  bar_wait(q.base + Shared::SUM_EMPTY + 8 * q.sum.at, q.sum.parity ^ 1);
  if (!results_left(phase)) leave_sums<N>(out, q, acc);
  else if (phase) leave_rows<N>(p, out, f, q, acc);
  else stage_activations<N>(p, out, f, q, q.group, acc);
  release(q.base + Shared::SUM_FULL + 8 * q.sum.at, q.lane);
  q.sum.next<SUMS>();
}

#if SUMS_LEFT
// Each second tile is for one pair of warps, and one warp of the pair takes the tokens of one parity: its lane 4b + q
// holds, of each 16 rows, rows b and b + 8 of token 8j + 2q + parity, as the consumer's lane does.
constexpr int FRAGMENTS = ROW_GROUPS * 4;
struct Factors {
  float scale[FRAGMENTS][2];
};
DEV long fragment_row(const Gemm& g, const Tile& t, int fragment, int lane) {
  int row64 = min(t.row_tile * ROW64 + fragment / 4, g.row64s - 1);
  return ((long)t.expert * g.row64s + row64) * 64 + fragment % 4 * 16 + (lane >> 2);
}
DEV void read_factors(const Gemm& g, const Tile& t, int lane, Factors& f) {
#pragma unroll
  for (int i = 0; i < FRAGMENTS; ++i) {
    const float* at = g.row_scale + fragment_row(g, t, i, lane);
    f.scale[i][0] = at[0];
    f.scale[i][1] = at[8];
  }
}

// Rows b and b + 8 of one fragment and one token: the shares of the warpgroups that split K, added in their order,
// times the row's factor.
DEV float2 read_sums(const Gemm& g, const Tile& t, u32 sums, int i, int lane, const Factors& f) {
  float v[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < KW; ++k)
      sum += __uint_as_float(load_shared4(sums + ((i / 4 * KW + k) * (NMAX / 2) + 2 * half) * 512 + i % 4 * 128));
    v[half] = sum * f.scale[i][half];
    if (g.bias) v[half] += g.bias[fragment_row(g, t, i, lane) + 8 * half];
  }
  return make_float2(v[0], v[1]);
}

// The exponent of DeepSeek-V4's scale for 128 activations of a token, held by eight lanes.
DEV int shared_exponent(const u32 (&a)[FRAGMENTS / 2]) {
  float most = 0.f;
#pragma unroll
  for (int i = 0; i < FRAGMENTS / 2; ++i) most = fmaxf(most, fmaxf(fabsf(bf16_low(a[i])), fabsf(bf16_high(a[i]))));
#pragma unroll
  for (int d = 4; d < 32; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
  return scale_exponent(most);
}

// The four activations of a lane in one block of 32 are neighbours in the e4m3 order (quant.cuh, transpose_block32).
DEV void store_e4m3(const Params& p, const Tile& t, int token, int lane, const u32 (&a)[FRAGMENTS / 2]) {
  int e = shared_exponent(a), b = lane >> 2;
  if (token >= t.count) return;
  float inverse = exp2_int(max(-e, -126));
  long slot = t.start + token;
  u8* h = (u8*)p.h + slot * p.h_pitch + t.row_tile * HOUT + (DIRECT ? 2 * b : 16 * (b & 1) + 4 * (b >> 1));
#pragma unroll
  for (int g = 0; g < ROW64; ++g) {
    u32 low = to_e4m3x2(bf16_low(a[2 * g]) * inverse, bf16_high(a[2 * g]) * inverse);
    u32 high = to_e4m3x2(bf16_low(a[2 * g + 1]) * inverse, bf16_high(a[2 * g + 1]) * inverse);
    if (t.row_tile * HOUT + g * 32 >= p.h_pitch) break;
    if (DIRECT) {
      *(u16*)(h + g * 32) = select_bytes(low, high, 0x40);
      *(u16*)(h + g * 32 + 16) = select_bytes(low, high, 0x51);
    } else {
      *(u32*)(h + g * 32) = low | (high << 16);
    }
  }
  if (b == 0) p.hs[(long)t.row_tile * (p.tokens * p.top_k) + slot] = exp2_int(e);
}

DEV void finish_w13(const Params& p, const Tile& t, u32 sums, int token, int lane, float weight, const Factors& f) {
  u32 a[FRAGMENTS / 2];
  int groups = min(ROW64, p.gemm[0].row64s - t.row_tile * ROW64);
#pragma unroll
  for (int i = 0; i < FRAGMENTS; i += 2) {
    float2 first = read_sums(p.gemm[0], t, sums, i, lane, f), second = read_sums(p.gemm[0], t, sums, i + 1, lane, f);
    a[i / 2] = i / 4 < groups ? pack_bf16(activate(p, first.x, first.y) * weight, activate(p, second.x, second.y) * weight) : 0;
  }
  if (FP8) return store_e4m3(p, t, token, lane, a);
  if (p.round_h) {
    int e = shared_exponent(a);
#pragma unroll
    for (int i = 0; i < FRAGMENTS / 2; ++i) a[i] = round2(a[i], e);
  }
  if (token >= t.count) return;
  u16* h = (u16*)p.h + (long)(t.start + token) * p.h_pitch + t.row_tile * HOUT + (lane >> 2);
#pragma unroll
  for (int i = 0; i < FRAGMENTS; ++i)
    if (i / 4 < groups) h[i * 8] = a[i / 2] >> (16 * (i & 1));
}

DEV void finish_w2(const Params& p, const Tile& t, u32 sums, long slot, int lane, float weight, const Factors& f) {
  long at = slot * p.y_pitch + t.row_tile * ROW64 * 64 + (lane >> 2);
  int groups = min(ROW64, p.gemm[1].row64s - t.row_tile * ROW64);
#pragma unroll
  for (int i = 0; i < FRAGMENTS; ++i) {
    if (i / 4 >= groups) break;
    float2 v = read_sums(p.gemm[1], t, sums, i, lane, f);
    if (KW > 1) {
      ((float*)p.y)[at + i * 16] = v.x * weight;
      ((float*)p.y)[at + i * 16 + 8] = v.y * weight;
    } else {
      ((u16*)p.y)[at + i * 16] = pack_bf16(v.x * weight, 0.f) & 0xffff;
      ((u16*)p.y)[at + i * 16 + 8] = pack_bf16(v.y * weight, 0.f) & 0xffff;
    }
  }
}

DEV void finish_sums(const Params& p, const Tile& t, const u8* smem, u32 base, int slot, int pair, u32 phase, int parity) {
  int lane = lane_id();
  Factors f;
  read_factors(p.gemm[t.phase], t, lane, f);
  bar_wait_idle(base + Shared::SUM_FULL + 8 * pair, phase);
  const int* flat = (const int*)(smem + Shared::FLAT) + slot * NMAX;
  const float* weights = (const float*)(smem + Shared::WEIGHT) + slot * NMAX;
  bool weighted = (t.phase == 1) != (p.weight_first != 0);
#pragma unroll 1
  for (int octet = 0; octet < (t.count + 7) / 8; ++octet) {
    int token = 8 * octet + 2 * (lane & 3) + parity;
    bool live = token < t.count;
    float weight = live && weighted ? weights[token] : 1.f;
    u32 sums = base + Shared::OUT + pair * SUM_BYTES + (4 * octet + parity) * 512 + lane * 4;
    if (t.phase == 0) finish_w13(p, t, sums, token, lane, weight, f);
    else if (!RESULTS && live) finish_w2(p, t, sums, flat[token], lane, weight, f);
  }
}
#endif

DEV void finish_result(const Params& p, const Tile& t, const u8* smem, u32 base, int slot, int pair, u32 phase, int parity) {
  u32 out = base + Shared::OUT + pair * SUM_BYTES;
  int thread = parity * 32 + lane_id();
  const int* flat = (const int*)(smem + Shared::FLAT) + slot * NMAX;
  bar_wait_idle(base + Shared::SUM_FULL + 8 * pair, phase);
  if (t.phase) write_rows<ROW_BYTES>(p, t, out, flat, t.row_tile * ROW64 * 64, thread, FINISHERS * 32);
  else write_activations(p, t, out, thread, FINISHERS * 32);
}

DEV void finish_tiles(const Params& p, const u8* smem, u32 base, int warp) {
  static_assert(SUMS == 2 && TILES % SUMS == 0, "");
  int pair = warp / FINISHERS;
  for (int n = pair;; n += SUMS) {
    int slot = n % TILES;
    bar_wait_idle(base + Shared::T_FULL + 8 * slot, n / TILES & 1);
    Tile t = ((const Tile*)(smem + Shared::RECORD))[slot];
    if (t.phase < 0) return;
    if (results_left(t.phase)) finish_result(p, t, smem, base, slot, pair, n / SUMS & 1, warp % FINISHERS);
#if SUMS_LEFT
    else finish_sums(p, t, smem, base, slot, pair, n / SUMS & 1, warp % FINISHERS);
#endif
    release(base + Shared::SUM_EMPTY + 8 * pair, lane_id());
    if (lane_id() == 0) add_release(t.phase ? p.sync + 1 : p.sync + 4 + t.token_tile, 1);
    release(base + Shared::T_EMPTY + 8 * slot, lane_id());
  }
}
#endif
