// The maker warps: rows to token tiles in the order in which tiles will be wanted; activations are rounded on the way.
#pragma once
#include "many_params.cuh"
#include "quant.cuh"

struct Job {
  int phase, tile, count, start, group, row0, block;   // 8 rows from row0 of a token tile, a part of K
};
DEV Job decode_job(const Params& p, int job, int groups) {
  Job j;
  int first = groups * column_jobs(p, 0);
  j.phase = job >= first;
  if (j.phase) job -= first;
  int columns = column_jobs(p, j.phase), group = job / columns;
  j.block = job - group * columns;
  j.tile = p.groups[group];
  int4 entry = p.tiles[j.tile];
  j.count = entry.x >> 20;
  j.start = entry.y;
  j.group = entry.w;
  j.row0 = (group - entry.w) * 8;
  return j;
}

// Token of a row of the tile, or -1 past its tokens.
DEV int row_token(const Params& p, const Job& j, int row) { return row < j.count ? p.slots[j.start + row] / p.top_k : -1; }

DEV void copy_scales(const Params& p, const Job& j, u8* tile, int rows, int live, int low, int high) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int row = lane_id() & 7, chunk = (lane_id() >> 3) + 4 * i, from = 8 * (row & 3);
    int a = __shfl_sync(~0u, low, from), b = __shfl_sync(~0u, high, from), token = row & 4 ? b : a;
    if (token >= 0 && chunk < live)
      ((float*)(tile + atom_scales_at(rows, j.block * 8 + chunk)))[j.row0 + row] = p.xs[(long)(j.block * 8 + chunk) * p.tokens + token];
  }
}

// Eight rows of x, eight chunks of 128 bytes.
DEV void copy_rows(const Params& p, const Job& j) {
  int lane = lane_id(), row = lane >> 3, rows = tile_rows(j.count), chunk0 = j.block * 8;
  int live = atoms(p.gemm[0]) - chunk0, valid = p.x_pitch - chunk0 * 128 - (lane & 7) * 16;
  int low = row_token(p, j, j.row0 + row), high = row_token(p, j, j.row0 + 4 + row);
  const u8* x = (const u8*)p.x + chunk0 * 128 + (lane & 7) * 16;
  const u8* from[2] = {x + (long)low * p.x_pitch, x + (long)high * p.x_pitch};
  bool there[2] = {low >= 0, high >= 0};
  u8* tile = (u8*)p.xq + (long)j.group * 8 * row_bytes(p.gemm[0]);
  int place = (j.row0 + row) * 128, to[2] = {place + (((lane & 7) ^ row) << 4), place + 512 + (((lane & 7) ^ (4 + row)) << 4)};
  if (FP8) copy_scales(p, j, tile, rows, live, low, high);
#pragma unroll 1
  for (int c0 = 0; c0 < 8; c0 += BATCH / 2) {
    uint4 v[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      v[i] = there[i & 1] && (c0 + i / 2) * 128 < valid ? load_global16(from[i & 1] + (c0 + i / 2) * 128) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      if (c0 + i / 2 < live) *(uint4*)(tile + atom_at(rows, chunk0 + c0 + i / 2) + to[i & 1]) = v[i];
  }
}

// Sixteen lanes a row and block of 128: e4m3 and its scale, or bf16 again.
DEV void store_rounded(const Params& p, const Job& j, int row, int block, uint4 v, u8* tile) {
  int part = lane_id() & 15, rows = tile_rows(j.count), e = scale_exponent(block_amax(v));
  if (FP8) {
    uint2 q = transpose_block32(quantise8(v, e));
    if (2 * block >= p.gemm[1].chunks) return;
    *(uint2*)(tile + atom_at(rows, block) + row * 128 + (((part >> 1) ^ (row & 7)) << 4) + (part & 1) * 8) = q;
    if (part == 0) ((float*)(tile + atom_scales_at(rows, block)))[row] = exp2_int(e);
  } else {
    int chunk = 2 * block + (part >> 3);
    if (chunk < p.gemm[1].chunks) *(uint4*)(tile + atom_at(rows, chunk) + row * 128 + (((part & 7) ^ (row & 7)) << 4)) = round8(v, e);
  }
}

DEV void round_rows(const Params& p, const Job& j) {
  u8* tile = p.hq + (long)j.group * 8 * row_bytes(p.gemm[1]);
  int pair = lane_id() >> 4, part = lane_id() & 15;
#pragma unroll 1
  for (int i0 = 0; i0 < COLUMNS / 128 * 4; i0 += BATCH) {
    uint4 v[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      int row = j.row0 + (i & 3) * 2 + pair, at = j.block * COLUMNS + (i0 + i) / 4 * 128 + part * 8;
      const u16* from = (const u16*)p.h + (long)(j.group * 8 + row) * p.h_pitch + at;
      v[i] = row < j.count && at < p.intermediate ? load_global16(from) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      store_rounded(p, j, j.row0 + (i & 3) * 2 + pair, j.block * (COLUMNS / 128) + (i0 + i) / 4, v[i], tile);
  }
}

DEV void poll_at_least(const int* at, int target) {
  int v;
  do {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    if (v >= target) return;
    __nanosleep(1000);
  } while (true);
}

// Activations are rounded once all w13 tiles of their tokens are done.
DEV void await_activations(const Params& p, const Job& j) {
  if (lane_id() == 0) {
    poll_at_least(counter(p, j.tile, H_DONE), p.gemm[0].row_tiles);
    load_acquire(counter(p, j.tile, H_DONE));
  }
  __syncwarp();
}

DEV void make_tiles(const Params& p, int groups) {
  int total = groups * (column_jobs(p, 0) + (remade(p) ? column_jobs(p, 1) : 0));
  while (true) {
    int job = lane_id() == 0 ? atomicAdd(p.sync + 3, 1) : 0;
    job = __shfl_sync(~0u, job, 0);
    if (job >= total) return;
    Job j = decode_job(p, job, groups);
    if (j.phase) {
      await_activations(p, j);
      round_rows(p, j);
    } else {
      copy_rows(p, j);
    }
    publish(counter(p, j.tile, j.phase ? H_MADE : X_MADE));
  }
}
