// One launch for a whole MoE layer: persistent blocks draw tiles of w13, then of w2, from one counter; a w2 tile waits
// only for the w13 tiles of its own tokens, and its weights stream in meanwhile. Tickets are taken in order, so
// whatever a tile waits for is already being computed, however many blocks run.
#include "drain.cuh"
#include "load.cuh"
#include "reduce.cuh"
#include "route.cuh"

DEV void init_barriers(u32 base) {
  for (int i = 0; i < W_DEPTH; ++i) {
    bar_init(base + Shared::W_FULL + 8 * i, 1);
    bar_init(base + Shared::W_EMPTY + 8 * i, WGS * 4 * ARRIVALS);
  }
  for (int i = 0; i < X_DEPTH; ++i) {
    bar_init(base + Shared::X_FULL + 8 * i, LOADERS);
    bar_init(base + Shared::X_EMPTY + 8 * i, WGS * 4 * ARRIVALS);
  }
  for (int i = 0; i < TILES; ++i) {
    bar_init(base + Shared::T_FULL + 8 * i, ARRIVALS);
    bar_init(base + Shared::T_EMPTY + 8 * i, (1 + LOADERS / 32 + WGS * 4 + (DRAINED ? FINISHERS : 0)) * ARRIVALS);
  }
  for (int i = 0; i < SUMS; ++i) {
    bar_init(base + Shared::SUM_FULL + 8 * i, WGS * 4 * ARRIVALS);
    bar_init(base + Shared::SUM_EMPTY + 8 * i, FINISHERS * ARRIVALS);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

template <int N>
DEV void run_tile(const Params& p, const Tile& t, Pipe& q, const u8* smem) {
  float acc[MW][NMAX / 2];
  q.warp = opaque(q.warp);                            // keeps one token count's addresses out of the others' registers
  q.lane = opaque(q.lane);
  q.codes = opaque(q.base + Shared::W + q.warp * 512 + q.lane * 16);
  q.scales = opaque(q.base + Shared::S + q.warp * 32 + (q.lane >> 2) * 4);
#if MW == 1
  fetch_factors(p, t, q);
  main_loop<N>(p, q, walk(p.gemm[t.phase]), acc);
  leave_tile<N>(p, q, acc[0]);
#else
  RowScales scales = row_scales(p.gemm[t.phase], t, q);
  main_loop<N>(p, q, walk(p.gemm[t.phase]), acc);
  finish_tile<N>(p, t, q, scales, smem, acc);
#endif
}

DEV void consume(const Params& p, const u8* smem, u32 base) {
  Pipe q;
  q.base = base;
  q.group = __shfl_sync(~0u, threadIdx.x >> 7, 0);  // warp-uniform, and known to be
  q.warp = __shfl_sync(~0u, (threadIdx.x >> 5) & 3, 0);
  q.lane = __shfl_sync(~0u, lane_id(), lane_id());    // a value to keep, not one to read again in every step
  while (true) {
    bar_wait(base + Shared::T_FULL + 8 * q.tile.at, q.tile.parity);
    Tile t = ((const Tile*)(smem + Shared::RECORD))[q.tile.at];
    if (t.phase < 0) break;
    WITH_WIDTH(t.count, run_tile, p, t, q, smem);
    release(base + Shared::T_EMPTY + 8 * q.tile.at, q.lane);
    q.tile.next<TILES>();
  }
}

// The last block to leave puts the counters back to zero for the next launch.
DEV void leave(const Params& p, int tile_count) {
  __threadfence();
  if (atomicAdd(p.sync + 2, 1) != (int)gridDim.x - 1) return;
  for (int i = 0; i < tile_count; ++i) p.sync[4 + i] = 0;
  p.sync[0] = p.sync[1] = p.sync[2] = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) shardproof_moe(
    const __grid_constant__ Params p
#if BOXES
    , const __grid_constant__ Boxes boxes
#endif
) {
  extern __shared__ __align__(1024) u8 smem[];
  u32 base = smem_addr(smem);
  int warp = threadIdx.x >> 5;
  if (threadIdx.x == 0) init_barriers(base);
  fill_table(smem + Shared::TABLE);
#if BOXES
  prefetch_boxes(boxes);
#else
  clear_scales<W_DEPTH * S_BYTES, THREADS>(smem + Shared::S);
#endif
  wait_for_earlier_kernel();
  int ticket = threadIdx.x == CONSUMERS ? atomicAdd(p.sync, 1) : 0;
  Routed routed = {p.tiles, p.slots, 0};
  if (p.small_route) {
    int4* tiles = (int4*)(smem + Shared::SORTED);
    int* slots = (int*)(smem + Shared::SORTED + SMALL_SLOTS * 16);
    int* count = (int*)(smem + Shared::TILE_COUNT);
    route_in_block(p, (u32*)smem, tiles, slots, count);
    fence_async_proxy();
    __syncthreads();
    routed = {tiles, slots, *count};
  } else {
    routed.tile_count = *p.tile_count;
    fence_async_proxy();
    __syncthreads();
  }
#if MW == 1
  if (warp >= WGS * 4 + 4) finish_tiles(p, smem, base, warp - WGS * 4 - 4);
  else
#endif
  if (warp >= WGS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGS));
    int role = warp - WGS * 4;
    if (role == 0) hand_out(p, routed, ticket, smem, base);
    else if (role > 1) gather_tokens(p, smem, base, threadIdx.x - CONSUMERS - 64);
#if BOXES
    else stream_weights(p, boxes, (const Tile*)(smem + Shared::RECORD), base);
#else
    else stream_weights(p, (const Tile*)(smem + Shared::RECORD), base);
#endif
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGS));
    consume(p, smem, base);
    if (threadIdx.x == 0) wait_at_least(p.sync + 1, routed.tile_count * p.gemm[1].row_tiles * PUBLISHERS);
    named_sync(1, CONSUMERS);
    reduce_tokens(p);
    if (threadIdx.x == 0) leave(p, routed.tile_count);
  }
}
