// Routing: slots (token, j) sorted by expert and cut into token tiles of at most NMAX.
#pragma once
#include "params.cuh"

DEV int tile_parts(int count) { return (count + NMAX - 1) / NMAX; }

// Writes the tiles of one expert whose `count` slots begin at `start`; sizes differ by at most one grain.
DEV void write_tiles(int4* tiles, int expert, int start, int count) {
  int parts = tile_parts(count);
  if (!parts) return;
  int size = ((count + parts - 1) / parts + 7) / 8 * 8;
  for (int i = 0; i < parts; ++i) {
    int n = min(size, count - i * size);
    tiles[i] = make_int4(expert | (max(n, 0) << 20), start + i * size, i, parts);
  }
}

// Exclusive prefix over a warp of (slots, tiles); returns the totals through the references.
DEV void scan_pair(int& a, int& b, int& total_a, int& total_b) {
  int x = a, y = b;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    int u = __shfl_up_sync(~0u, x, d), v = __shfl_up_sync(~0u, y, d);
    if (lane_id() >= d) { x += u; y += v; }
  }
  total_a = __shfl_sync(~0u, x, 31);
  total_b = __shfl_sync(~0u, y, 31);
  a = x - a;
  b = y - b;
}

// One warp: from counts[expert] to starts[expert] and the list of tiles. Returns the number of tiles.
DEV int cut_tiles(const int* counts, int* starts, int experts, int4* tiles) {
  int slots = 0, made = 0;
  for (int e0 = 0; e0 < experts; e0 += 32) {
    int e = e0 + lane_id(), count = e < experts ? counts[e] : 0;
    int a = count, b = tile_parts(count), total_a, total_b;
    scan_pair(a, b, total_a, total_b);
    if (e < experts) {
      starts[e] = slots + a;
      write_tiles(tiles + made + b, e, slots + a, count);
    }
    slots += total_a;
    made += total_b;
  }
  return made;
}

// One warp sorts up to 32 slots, one a lane; experts come in the order of their first slots.
DEV void route_in_warp(const Params& p, int4* tiles, int* slots, int* tile_count) {
  int i = lane_id(), e = i < p.tokens * p.top_k ? local_expert(p, p.ids[i]) : -1;
  u32 same = __match_any_sync(~0u, e);
  int rank = __popc(same & ((1u << i) - 1)), count = __popc(same);
  bool first = e >= 0 && rank == 0;
  int start = first ? count : 0, tile = first ? tile_parts(count) : 0, total_slots, total_tiles;
  scan_pair(start, tile, total_slots, total_tiles);
  if (first) write_tiles(tiles + tile, e, start, count);
  start = __shfl_sync(~0u, start, __ffs(same) - 1);
  if (e >= 0) slots[start + rank] = i;
  if (i == 0) *tile_count = total_tiles;
}

// Every block sorts the few slots by itself, in shared memory, and all blocks agree: a slot's place is the number
// of earlier slots of its expert. `scratch` is free until the first copy: [experts][words] bits, counts, starts.
DEV void route_in_block(const Params& p, u32* scratch, int4* tiles, int* slots, int* tile_count) {
  int n = p.tokens * p.top_k, words = (n + 31) / 32, threads = blockDim.x;
  if (n <= 32) {
    if (threadIdx.x < 32) route_in_warp(p, tiles, slots, tile_count);
    return;
  }
  u32* bits = scratch;
  int* counts = (int*)(scratch + p.experts * words);
  int* starts = counts + p.experts;
  for (int i = threadIdx.x; i < p.experts * words; i += threads) bits[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += threads) {
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) atomicOr(&bits[e * words + i / 32], 1u << (i % 32));
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += threads) {
    int c = 0;
    for (int w = 0; w < words; ++w) c += __popc(bits[e * words + w]);
    counts[e] = c;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int made = cut_tiles(counts, starts, p.experts, tiles);
    if (threadIdx.x == 0) *tile_count = made;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += threads) {
    int e = local_expert(p, p.ids[i]);
    if (e < 0) continue;
    int place = starts[e] + __popc(bits[e * words + i / 32] & ((1u << (i % 32)) - 1));
    for (int w = 0; w < i / 32; ++w) place += __popc(bits[e * words + w]);
    slots[place] = i;
  }
}
