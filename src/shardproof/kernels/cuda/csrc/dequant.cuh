// One 32-bit word holds 8 codes of one weight row and one block of 32: nibble 4z + 2d + f is k = 16d + 8f + 2q + z
// for lane quarter q. Its codes become 4 bf16x2 (d, f) or 2 e4m3x4 (z) registers of the A operand.
#pragma once
#include "ptx.cuh"

// code * 2^-126 in bf16 bits: sign and magnitude in place. The block's multiplier carries 2^126. Left shifts are
// multiplications here: they run on another pipe than the logic, which is the busiest. Two nibbles a half word leave six
// zeros above the upper one, whose sign, at bit 9, a sum then carries up to bit 15; of the lower one sign and magnitude come
// from two shifts that meet in no bit that is kept.
DEV void place_bf16(u32 w, const u32 (&powers)[6], u32* r) {
  const u32 KEPT = 0x81c081c0u, CARRY = 0x7e007e00u;
  u32 low = w & 0x00ff00ffu, high = select_bytes(w, 0, 0x4341);
  r[0] = ((low * powers[0]) | (low * powers[2])) & KEPT;
  r[1] = (low * powers[4] + CARRY) & KEPT;
  r[2] = ((high * powers[0]) | (high * powers[2])) & KEPT;
  r[3] = (high * powers[4] + CARRY) & KEPT;
}
// Byte `i` of `scales` is the exponent field of a bf16 power of two; returns it in both halves.
DEV u32 bf16_multiplier(u32 scales, int i) { return select_bytes(scales, 0, 0x4040u | (i << 8) | i) << 7; }

// The e4m3 bytes of the eight magnitudes times the power of two of block `i`, whose byte says which row of the table.
DEV uint2 magnitudes(u32 scales, int i, u32 table, const u32 (&powers)[6]) {
  return load_shared8(table - 8 * 239 + select_bytes(scales, 0, 0x4440 | i) * powers[5]);
}
// `table` holds the e4m3 bytes of the eight magnitudes times the block's power of two: exact, by construction.
DEV void place_e4m3(u32 w, uint2 table, u32& z0, u32& z1) {
  u32 magnitude = w & 0x77777777u;
  z0 = select_bytes(table.x, table.y, magnitude);
  z1 = select_bytes(table.x, table.y, magnitude >> 16);
}
DEV u32 sign_e4m3(u32 w, u32 magnitudes, int z, u32 sixteen) {
  u32 r = magnitudes | (select_bytes(w * sixteen, w, z ? 0x7362 : 0x5140) & 0x80808080u);
  asm volatile("" : "+r"(r));
  return r;
}

// e4m3 bytes of {0, .5, 1, 1.5, 2, 3, 4, 6} * 2^(index - 8), index 0..14: 120 bytes, by all threads of a block.
DEV void fill_table(u8* table) {
  int i = threadIdx.x;
  if (i >= 120) return;
  const float value[8] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};
  float v = 0.f;
#pragma unroll
  for (int c = 0; c < 8; ++c) v = (i & 7) == c ? value[c] : v;
  table[i] = to_e4m3x2(v * exp2_int(i / 8 - 8), 0.f) & 0xff;
}

// Without BOXES: what a stage reads past K's end, or of rows past the matrix's, must be finite and within the table. By all
// threads of a block, before the first copy.
template <int SIZE, int THREADS_OF_BLOCK>
DEV void clear_scales(u8* scales) {
  for (int i = threadIdx.x; i < SIZE / 16; i += THREADS_OF_BLOCK)
    ((uint4*)scales)[i] = make_uint4(0xfdfdfdfd, 0xfdfdfdfd, 0xfdfdfdfd, 0xfdfdfdfd);
}

// ---- e4m3 products
// Adds 128 values' worth of products to the result, each token by its scale.
template <int N>
DEV void promote(u32 scales, int lane, const float* part, float* acc) {
  scales = opaque(scales + 8 * (lane & 3));           // one register and offsets, rather than a register each
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    uint2 s = load_shared8(scales + 32 * j);
    float lo = __uint_as_float(s.x), hi = __uint_as_float(s.y);
    acc[4 * j] += part[4 * j] * lo;
    acc[4 * j + 1] += part[4 * j + 1] * hi;
    acc[4 * j + 2] += part[4 * j + 2] * lo;
    acc[4 * j + 3] += part[4 * j + 3] * hi;
  }
}
