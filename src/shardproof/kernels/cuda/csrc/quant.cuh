// DeepSeek-V4's activation rounding: e4m3 with one power-of-two scale for 128 values.
#pragma once
#include "params.cuh"

// Exponent e of the scale 2^e = 2^ceil(log2(max(amax, 1e-4) / 448)).
DEV int scale_exponent(float amax) {
  u32 bits = __float_as_uint(__fdiv_rn(fmaxf(amax, 1e-4f), 448.f));
  return (int)(bits >> 23) - 127 + ((bits & 0x7fffffu) != 0);
}

// Largest magnitude of 8 bf16 values, over the 16 lanes that hold one block of 128.
DEV float block_amax(uint4 v) {
  u32 words[4] = {v.x, v.y, v.z, v.w};
  float a = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) a = fmaxf(a, fmaxf(fabsf(bf16_low(words[i])), fabsf(bf16_high(words[i]))));
#pragma unroll
  for (int d = 1; d < 16; d *= 2) a = fmaxf(a, __shfl_xor_sync(~0u, a, d));
  return a;
}

// Eight values as e4m3 of v * 2^-e: the even k in .x, the odd k in .y (byte i is k = 2i or 2i + 1).
DEV uint2 quantise8(uint4 v, int e) {
  u32 words[4] = {v.x, v.y, v.z, v.w}, pairs[4];
  float inverse = exp2_int(max(-e, -126));
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = to_e4m3x2(bf16_low(words[i]) * inverse, bf16_high(words[i]) * inverse);
  u32 a = pairs[0] | (pairs[1] << 16), b = pairs[2] | (pairs[3] << 16);
  return make_uint2(select_bytes(a, b, 0x6420), select_bytes(a, b, 0x7531));
}

// Rounds bf16 values through e4m3 and back: exact in bf16.
DEV u32 round2(u32 v, int e) {
  float inverse = exp2_int(max(-e, -126)), scale = exp2_int(e), lo, hi;
  f16x2_to_float(e4m3x2_to_f16x2(to_e4m3x2(bf16_low(v) * inverse, bf16_high(v) * inverse)), lo, hi);
  return pack_bf16(lo * scale, hi * scale);
}
DEV uint4 round8(uint4 v, int e) {
  return make_uint4(round2(v.x, e), round2(v.y, e), round2(v.z, e), round2(v.w, e));
}

#if DIRECT
// Four lanes hold one block of 32 (lane c: k = 8c .. 8c+7). The order of placed codes is position
// 16 (c % 2) + 4q + 2z + c / 2 for k = 8c + 2q + z; lane L keeps positions 8L .. 8L+7.
DEV uint2 transpose_block32(uint2 even_odd) {
  int lane = lane_id(), from = (lane & ~3) + ((lane & 3) >> 1), shift = 16 * (lane & 1);
  u32 even[2], odd[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    even[i] = __shfl_sync(~0u, even_odd.x, from + 2 * i) >> shift;
    odd[i] = __shfl_sync(~0u, even_odd.y, from + 2 * i) >> shift;
  }
  u32 a = select_bytes(even[0], even[1], 0x5140), b = select_bytes(odd[0], odd[1], 0x5140);
  return make_uint2(select_bytes(a, b, 0x5410), select_bytes(a, b, 0x7632));
}
#else
// Four lanes hold one block of 32 (lane c: k = 8c .. 8c+7). The e4m3 order is position 16z + 4q + c for
// k = 8c + 2q + z; lane L keeps positions 8L .. 8L+7, that is z = L / 2 and q = 2 (L % 2), 2 (L % 2) + 1.
DEV uint2 transpose_block32(uint2 even_odd) {
  int lane = lane_id(), quad = lane & ~3, mine = lane & 3;
  u32 got[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    u32 even = __shfl_sync(~0u, even_odd.x, quad + c), odd = __shfl_sync(~0u, even_odd.y, quad + c);
    got[c] = (mine >> 1 ? odd : even) >> (16 * (mine & 1));
  }
  u32 a = select_bytes(got[0], got[1], 0x5140), b = select_bytes(got[2], got[3], 0x5140);
  return make_uint2(select_bytes(a, b, 0x5410), select_bytes(a, b, 0x7632));
}
#endif

// One stage of tokens rounded to e4m3 and stored as bf16, swizzled: 16 lanes a row and block. The next item is loaded
// while one is rounded.
DEV void round_stage(const u8* data, long pitch, int valid, const int* rows, int count, int first_byte, u32 dst,
                     int thread) {
  constexpr int BLOCKS = CHUNKS / 2 > 0 ? CHUNKS / 2 : 1, STRIDE = LOADERS / 16;
  int part = thread & 15, items = count * BLOCKS, i = thread >> 4;
  auto load = [&](int item) {
    int r = item / BLOCKS, at = first_byte + (item - r * BLOCKS) * 256 + part * 16;
    return item < items && at < valid ? load_global16(data + rows[r] * pitch + at) : make_uint4(0, 0, 0, 0);
  };
  uint4 v = load(i);
  for (int i0 = 0; i0 < items; i0 += STRIDE, i += STRIDE) {
    uint4 next = load(i + STRIDE), rounded = round8(v, scale_exponent(block_amax(v)));
    int r = i / BLOCKS, atom = (i - r * BLOCKS) * 2 + (part >> 3), column = part & 7;
    if (i < items) store_shared16(dst + atom * ATOM_BYTES + r * 128 + ((column ^ (r & 7)) << 4), rounded);
    v = next;
  }
}

// x [tokens, hidden] in bf16 -> e4m3 [tokens, x_pitch] and scales, or (rounded != null) bf16 again: one block of `blocks`.
DEV void round_all(const Params& p, int block, int blocks, u8* codes, float* scales, u16* rounded) {
  constexpr int LOADS = 4;                            // in flight
  u32 runs = (p.hidden + 127) / 128 * 16, total = p.tokens * runs, stride = blocks * blockDim.x;
  for (u32 i0 = block * blockDim.x + threadIdx.x - lane_id(); i0 < total; i0 += LOADS * stride) {
    uint4 v[LOADS];
    int token[LOADS], run[LOADS];
#pragma unroll
    for (int k = 0; k < LOADS; ++k) {
      u32 i = i0 + k * stride + lane_id();
      token[k] = i < total ? i / runs : -1;
      run[k] = i - token[k] * runs;
      v[k] = make_uint4(0, 0, 0, 0);
      if (token[k] >= 0 && run[k] * 8 < p.hidden) v[k] = load_global16(p.x + (long)token[k] * p.hidden + run[k] * 8);
    }
#pragma unroll
    for (int k = 0; k < LOADS; ++k) {
      if (i0 + k * stride >= total) break;            // for the whole warp
      int e = scale_exponent(block_amax(v[k])), column = run[k] * 8;
      uint2 q8 = rounded ? make_uint2(0, 0) : transpose_block32(quantise8(v[k], e));
      if (token[k] < 0) continue;
      if (rounded) {
        if (column < p.hidden) *(uint4*)(rounded + (long)token[k] * p.hidden + column) = round8(v[k], e);
      } else {
        *(uint2*)(codes + (long)token[k] * p.x_pitch + column) = q8;
        if ((run[k] & 15) == 0) scales[(long)(run[k] / 16) * p.tokens + token[k]] = exp2_int(e);
      }
    }
  }
}
