// The maker warps: token rows to token tiles, rounded where asked, in the order in which tiles will be wanted.
#pragma once
#include "many_params.cuh"
#include "quant.cuh"

struct Job {
  int phase, tile, count, start, group, row0, block;   // 8 rows from row0 of a token tile, COLUMNS values of K
  int part;                                            // of its expert's tiles
};
DEV Job decode_job(const Params& p, int job, int groups) {
  Job j;
  int first = groups * column_jobs(p.gemm[0]);
  j.phase = job >= first;
  if (j.phase) job -= first;
  int columns = column_jobs(p.gemm[j.phase]), group = job / columns;
  j.block = job - group * columns;
  j.tile = p.groups[group];
  int4 entry = p.tiles[j.tile];
  j.count = entry.x >> 20;
  j.start = entry.y;
  j.part = entry.z & 0xffff;
  j.group = entry.w;
  j.row0 = (group - entry.w) * 8;
  return j;
}

// The source of the tile's row: a token of x, or a row of activations; null past the tile's tokens.
DEV const u16* source_row(const Params& p, const Job& j, int row) {
  if (row >= j.count) return nullptr;
  if (j.phase) return (const u16*)p.h + (long)(j.group * 8 + row) * p.h_pitch;
  return p.x + (long)(p.slots[j.start + row] / p.top_k) * p.hidden;
}

DEV u8* tile_at(const Params& p, const Job& j) {
  u8* tiles = j.phase ? p.hq : (u8*)p.xq;
  return tiles + (long)j.group * 8 * row_bytes(p.gemm[j.phase]);
}

DEV void copy_rows(const Params& p, const Job& j) {
  int lane = lane_id(), column = (lane & 7) * 8, rows = tile_rows(j.count), chunk0 = j.block * (COLUMNS / 64);
  const u16* from[2] = {source_row(p, j, j.row0 + (lane >> 3)), source_row(p, j, j.row0 + 4 + (lane >> 3))};
  u8* to = tile_at(p, j) + (j.row0 + (lane >> 3)) * 128;
  int swizzled[2] = {((lane & 7) ^ (lane >> 3)) << 4, (((lane & 7) ^ (4 + (lane >> 3))) << 4) + 512};
  int live = p.gemm[0].chunks - chunk0;
#pragma unroll 1
  for (int quarter = 0; quarter < 4; ++quarter) {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int at = (chunk0 + 2 * quarter + i / 2) * 64 + column;
      v[i] = from[i & 1] && at < p.hidden ? load_global16(from[i & 1] + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int chunk = 2 * quarter + i / 2;
      if (chunk < live) *(uint4*)(to + (long)(chunk0 + chunk) * rows * 128 + swizzled[i & 1]) = v[i];
    }
  }
}

// Sixteen lanes a row and block of 128: e4m3 and its scale, or bf16 again.
DEV void round_rows(const Params& p, const Job& j) {
  const Gemm& g = p.gemm[j.phase];
  int lane = lane_id(), part = lane & 15, rows = tile_rows(j.count), valid = j.phase ? p.intermediate : p.hidden;
  u8* to = tile_at(p, j);
  float* scales = (j.phase ? p.hs : (float*)p.xs) + (long)j.group * 8 * ((g.chunks + 1) / 2);
#pragma unroll 4
  for (int i = 0; i < COLUMNS / 128 * 4; ++i) {
    int row = j.row0 + (i & 3) * 2 + (lane >> 4), block = j.block * (COLUMNS / 128) + (i >> 2), at = block * 128 + part * 8;
    const u16* from = source_row(p, j, row);
    uint4 v = from && at < valid ? load_global16(from + at) : make_uint4(0, 0, 0, 0);
    int e = scale_exponent(block_amax(v));
    if (FP8) {
      uint2 q = transpose_block32(quantise8(v, e));
      if (2 * block >= g.chunks) continue;
      *(uint2*)(to + ((long)block * rows + row) * 128 + (((part >> 1) ^ (row & 7)) << 4) + (part & 1) * 8) = q;
      if (part == 0) scales[block * rows + row] = exp2_int(e);
    } else {
      int chunk = 2 * block + (part >> 3);
      if (chunk < g.chunks) *(uint4*)(to + ((long)chunk * rows + row) * 128 + (((part & 7) ^ (row & 7)) << 4)) = round8(v, e);
    }
  }
}

// Not too far before the blocks that will read the tile: it should still be in the L2 cache. Its first ticket is that
// of its expert's first tile plus its part (decode_ticket), so that tiles in order have tickets in order.
DEV void await_turn(const Params& p, const Job& j) {
  if (lane_id() == 0) {
    if (j.phase) wait_at_least(counter(p, j.tile, H_DONE), p.gemm[0].row_tiles * WARPS);
    else wait_at_least(p.sync, (j.tile - j.part) * p.gemm[0].row_tiles + j.part - p.ahead);
  }
  __syncwarp();
}

DEV void make_tiles(const Params& p, int groups) {
  int total = groups * (column_jobs(p.gemm[0]) + (remade(p) ? column_jobs(p.gemm[1]) : 0));
  while (true) {
    int job = lane_id() == 0 ? atomicAdd(p.sync + 3, 1) : 0;
    job = __shfl_sync(~0u, job, 0);
    if (job >= total) return;
    Job j = decode_job(p, job, groups);
    await_turn(p, j);
    if (remade(p)) round_rows(p, j);
    else copy_rows(p, j);
    publish_warp(counter(p, j.tile, j.phase ? H_MADE : X_MADE));
  }
}
