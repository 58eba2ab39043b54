// Before the layer kernel: the first cluster sorts the slots, the other blocks round x where activations are rounded.
#include "quant.cuh"
#include "route.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1) shardproof_route(const __grid_constant__ Params p, u16* rounded) {
  extern __shared__ int route_smem[];
  let_next_kernel_start();
  int sorters = cluster_size(), block = (int)blockIdx.x - sorters;
  if (block < 0) sort_slots(p, route_smem);
  else round_all(p, block, gridDim.x - sorters, (u8*)p.xq, (float*)p.xs, rounded);
}
