// Routing: slots (token, j) sorted by expert and cut into token tiles of at most NMAX.
#pragma once
#include "params.cuh"

// What an expert's slots need, or what those of earlier experts do: slots, token tiles, groups of 8 rows of tiles.
struct Cut {
  int slots, tiles, groups;
};
DEV int tile_rows(int count) { return (count + 7) & ~7; }
DEV int tile_parts(int count) { return (count + NMAX - 1) / NMAX; }
DEV Cut cut_of(int count) { return {count, tile_parts(count), tile_rows(count) / 8}; }

// The tiles of one expert; their sizes differ by less than 8. `groups`, if any, names the tile of each 8 rows.
DEV void write_tiles(int4* tiles, int* groups, int expert, int count, const Cut& before) {
  int parts = tile_parts(count);
  if (!parts) return;
  int size = tile_rows((count + parts - 1) / parts);
  for (int i = 0; i < parts; ++i) {
    int n = min(size, count - i * size), group = before.groups + i * size / 8;
    tiles[before.tiles + i] = make_int4(expert | (n << 20), before.slots + i * size, i | (parts << 16), group);
    if (groups)
      for (int g = 0; g < tile_rows(n) / 8; ++g) groups[group + g] = before.tiles + i;
  }
}

// Exclusive prefix over a warp; returns the total.
DEV Cut scan_warp(Cut& c) {
  Cut mine = c;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    int s = __shfl_up_sync(~0u, c.slots, d), t = __shfl_up_sync(~0u, c.tiles, d), g = __shfl_up_sync(~0u, c.groups, d);
    if (lane_id() >= d) c.slots += s, c.tiles += t, c.groups += g;
  }
  Cut total = {__shfl_sync(~0u, c.slots, 31), __shfl_sync(~0u, c.tiles, 31), __shfl_sync(~0u, c.groups, 31)};
  c.slots -= mine.slots, c.tiles -= mine.tiles, c.groups -= mine.groups;
  return total;
}

// The same over a block, by all its threads; `warps`: shared memory for 32 entries.
DEV Cut scan_block(Cut& c, Cut* warps) {
  int warp = threadIdx.x >> 5;
  Cut total = scan_warp(c);
  if (lane_id() == 0) warps[warp] = total;
  __syncthreads();
  Cut w = lane_id() < blockDim.x / 32 ? warps[lane_id()] : Cut{0, 0, 0};
  total = scan_warp(w);
  c.slots += __shfl_sync(~0u, w.slots, warp);
  c.tiles += __shfl_sync(~0u, w.tiles, warp);
  c.groups += __shfl_sync(~0u, w.groups, warp);
  return total;
}

// All threads of a block: from counts[expert] to starts[expert] and, if asked for, the list of tiles. Returns the totals.
DEV Cut cut_tiles(const int* counts, int* starts, int experts, int4* tiles, int* groups, Cut* warps) {
  Cut before = {0, 0, 0};
  for (int e0 = 0; e0 < experts; e0 += blockDim.x) {
    int e = e0 + threadIdx.x, count = e < experts ? counts[e] : 0;
    Cut c = cut_of(count), total = scan_block(c, warps);
    c.slots += before.slots, c.tiles += before.tiles, c.groups += before.groups;
    if (e < experts) starts[e] = c.slots;
    if (tiles) write_tiles(tiles, groups, e, count, c);
    before.slots += total.slots, before.tiles += total.tiles, before.groups += total.groups;
    __syncthreads();
  }
  return before;
}

// One warp sorts up to 32 slots, one a lane; experts come in the order of their first slots.
DEV void route_in_warp(const Params& p, int4* tiles, int* slots, int* tile_count) {
  int i = lane_id(), e = i < p.tokens * p.top_k ? local_expert(p, p.ids[i]) : -1;
  u32 same = __match_any_sync(~0u, e);
  int rank = __popc(same & ((1u << i) - 1)), count = __popc(same);
  bool first = e >= 0 && rank == 0;
  Cut before = first ? cut_of(count) : Cut{0, 0, 0}, total = scan_warp(before);
  if (first) write_tiles(tiles, nullptr, e, count, before);
  int start = __shfl_sync(~0u, before.slots, __ffs(same) - 1);
  if (e >= 0) slots[start + rank] = i;
  if (i == 0) *tile_count = total.tiles;
}

// Every block sorts the few slots by itself, in shared memory, and all blocks agree: a slot's place is the number
// of earlier slots of its expert. `scratch` is free until the first copy: [experts][words] bits, counts, starts, totals.
DEV void route_in_block(const Params& p, u32* scratch, int4* tiles, int* slots, int* tile_count) {
  int n = p.tokens * p.top_k, words = (n + 31) / 32, threads = blockDim.x;
  if (n <= 32) {
    if (threadIdx.x < 32) route_in_warp(p, tiles, slots, tile_count);
    return;
  }
  u32* bits = scratch;
  int* counts = (int*)(scratch + p.experts * words);
  int* starts = counts + p.experts;
  Cut* warps = (Cut*)(starts + p.experts);
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
  Cut made = cut_tiles(counts, starts, p.experts, tiles, nullptr, warps);
  if (threadIdx.x == 0) *tile_count = made.tiles;
  for (int i = threadIdx.x; i < n; i += threads) {
    int e = local_expert(p, p.ids[i]);
    if (e < 0) continue;
    int place = starts[e] + __popc(bits[e * words + i / 32] & ((1u << (i % 32)) - 1));
    for (int w = 0; w < i / 32; ++w) place += __popc(bits[e * words + w]);
    slots[place] = i;
  }
}

// One cluster sorts many slots, each block its part of them: all count, and know from the others' counts where their own
// slots of an expert begin. The place within an expert changes no result. `smem`: 4 * experts + 96 integers.
constexpr int SORTERS = 8;                         // blocks of the cluster at most
DEV void sort_slots(const Params& p, int* smem) {
  int n = p.tokens * p.top_k, rank = cluster_rank(), ranks = cluster_size(), each = (n + ranks - 1) / ranks;
  int first = rank * each + threadIdx.x, last = min(n, (rank + 1) * each);
  int *counts = smem, *starts = smem + p.experts, *totals = smem + 2 * p.experts, *earlier = smem + 3 * p.experts;
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
#pragma unroll 8
  for (int i = first; i < last; i += blockDim.x) {
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) atomicAdd(&counts[e], 1);
  }
  cluster_sync();
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) {
    int of[SORTERS], total = 0, before = 0;           // all loads before the first sum
#pragma unroll
    for (int r = 0; r < SORTERS; ++r) of[r] = r < ranks ? load_in_block(smem_addr(counts + e), r) : 0;
#pragma unroll
    for (int r = 0; r < SORTERS; ++r) total += of[r], before += r < rank ? of[r] : 0;
    totals[e] = total;
    earlier[e] = before;
  }
  __syncthreads();
  Cut made = cut_tiles(totals, starts, p.experts, rank == 0 ? p.tiles : nullptr, p.groups, (Cut*)(smem + 4 * p.experts));
  if (rank == 0 && threadIdx.x == 0) p.tile_count[0] = made.tiles, p.tile_count[1] = made.groups;
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) starts[e] += earlier[e];
  cluster_sync();                                     // no block's counts go while another may still read them
#pragma unroll 8
  for (int i = first; i < last; i += blockDim.x) {
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) p.slots[atomicAdd(&starts[e], 1)] = i;
  }
}
