// Routing and activation rounding for many tokens, before the layer kernel: block 0 sorts, the others round.
#include "quant.cuh"
#include "route.cuh"

DEV void route_all(const Params& p, int* smem) {
  int n = p.tokens * p.top_k, *counts = smem, *starts = smem + p.experts;
  for (int e = threadIdx.x; e < p.experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int made = cut_tiles(counts, starts, p.experts, p.tiles);
    if (threadIdx.x == 0) *p.tile_count = made;
  }
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += blockDim.x) {      // the place within an expert changes no result
    int e = local_expert(p, p.ids[i]);
    if (e >= 0) p.slots[atomicAdd(&starts[e], 1)] = i;
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1) shardproof_route(const __grid_constant__ Params p, u16* rounded) {
  extern __shared__ int route_smem[];
  let_next_kernel_start();
  if (blockIdx.x == 0) route_all(p, route_smem);
  else round_all(p, (u8*)p.xq, (float*)p.xs, rounded);
}
