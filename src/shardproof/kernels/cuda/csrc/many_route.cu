// Before many.cu: block 0 sorts slots by expert, cuts token tiles and names the tile of each 8 rows; the others round x.
#include "many_params.cuh"
#include "quant.cuh"
#include "route.cuh"

// The tiles of one expert whose `count` slots begin at `start`; sizes differ by less than 8.
DEV void write_tiles(int4* tiles, int expert, int start, int count, int group) {
  int parts = tile_parts(count);
  if (!parts) return;
  int size = tile_rows((count + parts - 1) / parts);
  for (int i = 0; i < parts; ++i) {
    int n = min(size, count - i * size);
    tiles[i] = make_int4(expert | (n << 20), start + i * size, i | (parts << 16), group + i * size / 8);
  }
}

// One warp: from counts[expert] to starts[expert] and the list of tiles. Returns the numbers of tiles and groups.
DEV int2 cut_many(const int* counts, int* starts, int experts, int4* tiles) {
  int slots = 0, made = 0, groups = 0;
  for (int e0 = 0; e0 < experts; e0 += 32) {
    int e = e0 + lane_id(), count = e < experts ? counts[e] : 0;
    int a = count, b = tile_parts(count), c = tile_rows(count) / 8, none = 0, total_a, total_b, total_c, total_none;
    scan_pair(a, b, total_a, total_b);
    scan_pair(c, none, total_c, total_none);
    if (e < experts) {
      starts[e] = slots + a;
      write_tiles(tiles + made + b, e, slots + a, count, groups + c);
    }
    slots += total_a;
    made += total_b;
    groups += total_c;
  }
  return make_int2(made, groups);
}

DEV void route_many(const Params& p, int* smem) {
  int n = p.tokens * p.top_k, *counts = smem, *starts = smem + p.experts;
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int2 made = cut_many(counts, starts, p.experts, p.tiles);
    if (threadIdx.x == 0) p.tile_count[0] = made.x, p.tile_count[1] = made.y;
  }
  __syncthreads();
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += blockDim.x) {      // the place within an expert changes no result
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) p.slots[atomicAdd(&starts[e], 1)] = i;
  }
  for (int t = threadIdx.x; t < p.tile_count[0]; t += blockDim.x) {
    int4 tile = p.tiles[t];
    for (int g = 0; g < tile_rows(tile.x >> 20) / 8; ++g) p.groups[tile.w + g] = t;
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1) shardproof_many_route(const __grid_constant__ Params p, u16* rounded) {
  extern __shared__ int smem[];
  let_next_kernel_start();
  if (blockIdx.x == 0) route_many(p, smem);
  else round_all(p, (u8*)p.xq, (float*)p.xs, rounded);
}
