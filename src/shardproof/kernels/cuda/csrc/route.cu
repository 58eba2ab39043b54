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

// x [tokens, hidden] in bf16 -> e4m3 [tokens, x_pitch] and scales, or (rounded != null) bf16 again.
DEV void round_all(const Params& p, u8* codes, float* scales, u16* rounded) {
  int runs = (p.hidden + 127) / 128 * 16;
  long total = (long)p.tokens * runs, first = (long)(blockIdx.x - 1) * blockDim.x + threadIdx.x;
  for (long i0 = first - lane_id(); i0 < total; i0 += (long)(gridDim.x - 1) * blockDim.x) {
    long i = i0 + lane_id();
    int token = i / runs, run = i - (long)token * runs, column = run * 8;
    bool live = i < total;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (live && column < p.hidden) v = load_global16(p.x + (long)token * p.hidden + column);
    int e = scale_exponent(block_amax(v));
    if (rounded) {
      if (live && column < p.hidden) *(uint4*)(rounded + (long)token * p.hidden + column) = round8(v, e);
    } else {
      uint2 q8 = transpose_block32(quantise8(v, e));
      if (!live) continue;
      *(uint2*)(codes + (long)token * p.x_pitch + column) = q8;
      if ((run & 15) == 0) scales[(long)(run / 16) * p.tokens + token] = exp2_int(e);
    }
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1) shardproof_route(const __grid_constant__ Params p, u16* rounded) {
  extern __shared__ int route_smem[];
  let_next_kernel_start();
  if (blockIdx.x == 0) route_all(p, route_smem);
  else round_all(p, (u8*)p.xq, (float*)p.xs, rounded);
}
