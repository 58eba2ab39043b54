// The layer for many tokens in one launch: persistent blocks draw tiles of w13, then of w2, from one counter. Maker
// warps lay the tokens out beforehand, one lane copies whole stages, the consumer warpgroups do the rest. Tickets are
// taken in order, so whatever a tile waits for is already being made, however many blocks run.
#include "many_finish.cuh"
#include "many_make.cuh"
#include "reduce.cuh"

DEV void init_barriers(u32 base) {
  for (int i = 0; i < DEPTH; ++i) {
    bar_init(base + Many::FULL + 8 * i, 1);
    bar_init(base + Many::EMPTY + 8 * i, CLUSTER == 1 ? WARPS * ARRIVALS : WARPS * CLUSTER);
  }
  for (int i = 0; i < RECORDS; ++i) {
    bar_init(base + Many::T_FULL + 8 * i, ARRIVALS);
    bar_init(base + Many::T_EMPTY + 8 * i, (1 + WARPS) * ARRIVALS);
    bar_init(base + Many::K_FULL + 8 * i, 1);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEV ManyTile decode_ticket(const Params& p, int tile_count, int ticket) {
  ManyTile t = {-1, 0, 0, 0, 0, 0, 0, 0};
  int first = tile_count * tickets_each(p.gemm[0]);
  if (ticket >= first + tile_count * tickets_each(p.gemm[1])) return t;
  t.phase = ticket >= first;
  int each = tickets_each(p.gemm[t.phase]);
  if (t.phase) ticket -= first;
  int index = ticket / each;
  int4 entry = p.tiles[index];
  int parts = entry.z >> 16, base = index - (entry.z & 0xffff), local = ticket - base * each;
  t.row_tile = local / parts * CLUSTER + (CLUSTER > 1 ? cluster_rank() : 0);
  // The parts of one expert run side by side: one read of its weights.
  t.token_tile = base + local % parts;
  if (t.token_tile != index) entry = p.tiles[t.token_tile];
  t.expert = entry.x & 0xfffff;
  t.count = entry.x >> 20;
  t.start = entry.y;
  t.group = entry.w;
  return t;
}

// The next ticket, drawn by the cluster's first block for all. A place for tickets is free again by then: this block's
// consumers are done with the tile two before, to which the other blocks have sent tokens, so they know its ticket.
DEV int next_ticket(const Params& p, u32 base, const Ring& slot, int drawn) {
  if (CLUSTER == 1) return __shfl_sync(~0u, drawn, 0);
  u32 bar = base + Many::K_FULL + 8 * slot.at, place = base + Many::TICKET + 8 * slot.at;
  if (cluster_rank() == 0) {
    if (lane_id() == 0)
      for (int r = 1; r < CLUSTER; ++r) send_word(place, bar, r, drawn);
    return __shfl_sync(~0u, drawn, 0);
  }
  if (lane_id() == 0) bar_expect(bar, 4);
  __syncwarp();
  bar_wait(bar, slot.parity);
  return load_shared4(place);
}

// Waits until all consumers are done with the tile of a record, if it holds one, and counts it: a warp that waited for
// its own stores would hold up every stage that it shares.
DEV void close_tile(const Params& p, const ManyTile* record, u32 base, const Ring& slot) {
  bar_wait_idle(base + Many::T_EMPTY + 8 * slot.at, slot.parity ^ 1, 200);
  int phase = record->phase;
  if (phase >= 0) publish(phase ? p.sync + 1 : counter(p, record->token_tile, H_DONE));
}

// The copies of one tile's tokens and how to know that they are made.
struct Tokens {
  const u8* data;
  const int* made;
  int target;
};
DEV Tokens token_source(const Params& p, const ManyTile& t, int rows) {
  const Gemm& g = p.gemm[t.phase];
  long first = (long)t.group * 8;
  bool own = t.phase && !remade(p);
  Tokens s;
  s.data = (t.phase ? own ? (const u8*)p.h : p.hq : p.xq) + first * row_bytes(g);
  s.made = counter(p, t.token_tile, own ? H_DONE : t.phase ? H_MADE : X_MADE);
  s.target = own ? p.gemm[0].row_tiles : rows / 8 * column_jobs(p, t.phase);
  return s;
}

// The scheduler warp: hands out tiles with the routed slots and weights of their tokens, and counts finished ones.
DEV void hand_out(const Params& p, int tile_count, u8* smem, u32 base) {
  Ring slot;
  ManyTile* records = (ManyTile*)(smem + Many::RECORD);
  if (lane_id() < RECORDS) records[lane_id()].phase = -1;
  __syncwarp();
  bool draws = lane_id() == 0 && (CLUSTER == 1 || cluster_rank() == 0);
  while (true) {
    int drawn = draws ? atomicAdd(p.sync, 1) : 0;
    close_tile(p, records + slot.at, base, slot);
    ManyTile t = decode_ticket(p, tile_count, next_ticket(p, base, slot, drawn));
    if (t.phase >= 0) {                               // here, since an acquiring load takes microseconds beside busy warps
      Tokens tokens = token_source(p, t, tile_rows(t.count));
      t.ready = load_acquire(tokens.made) >= tokens.target;
    }
    __syncwarp();
    if (lane_id() == 0) records[slot.at] = t;
    bool weighted = t.phase != p.weight_first;
    for (int i = lane_id(); i < t.count; i += 32) {
      int f = p.slots[t.start + i];
      ((int*)(smem + Many::FLAT))[slot.at * NMAX + i] = f;
      ((float*)(smem + Many::WEIGHT))[slot.at * NMAX + i] = weighted ? p.weights[f] : 1.f;
    }
    release(base + Many::T_FULL + 8 * slot.at, lane_id());
    if (t.phase < 0) break;
    slot.next<RECORDS>();
  }
  for (int i = 1; i < RECORDS; ++i) {
    slot.next<RECORDS>();
    close_tile(p, records + slot.at, base, slot);
  }
}

// The scales of a tile's rows, and their biases if there are some: into the place of its record, with its first stage.
struct Factors {
  const float *scale, *bias;
  u32 bytes;                    // of each
  DEV u32 all() const { return bias ? 2 * bytes : bytes; }
  DEV void copy(u32 base, int record, u32 full) const {
    u32 to = base + Many::FACTORS + record * FACTORS_TILE;
    if (bytes) bulk_load(to, scale, bytes, full);
    if (bytes && bias) bulk_load(to + WGS * 256, bias, bytes, full);
  }
};
DEV Factors tile_factors(const Gemm& g, const ManyTile& t) {
  long row = ((long)t.expert * g.row64s + t.row_tile * WGS) * 64;
  int groups = max(0, min(WGS, g.row64s - t.row_tile * WGS));
  return {g.row_scale + row, g.bias ? g.bias + row : nullptr, groups * 256u};
}

// Issues the copies of one tile, by one lane: three a stage, since beside busy warps each takes a hundred cycles. Each block
// of a cluster copies its share of the tokens for all.
DEV void copy_tile(const Params& p, const Boxes& boxes, const ManyTile& t, u32 base, int record, Ring ring) {
  const TensorMap &weight = boxes.weight[t.phase], &scale = boxes.scale[t.phase];
  const Gemm& g = p.gemm[t.phase];
  int rows = tile_rows(t.count), row64 = t.row_tile * WGS, expert = t.expert, bytes = rows * STAGE_ROW, share = bytes / CLUSTER;
  u32 skipped = CLUSTER > 1 ? cluster_rank() * share : 0, x = base + Many::X + skipped;
  const u8* from = token_source(p, t, rows).data + skipped;
  auto copy_weights = [&](int chunk, u32 more) {
    u32 full = base + Many::FULL + 8 * ring.at;
    bar_wait(full + Many::EMPTY - Many::FULL, ring.parity ^ 1);
    bar_expect(full, Many::W_STAGE + Many::S_STAGE + bytes + more);
    tensor_load<ONCE>(base + Many::W + ring.at * Many::W_STAGE, weight, chunk, row64, expert, full);
    tensor_load<ONCE>(base + Many::S + ring.at * Many::S_STAGE, scale, chunk, row64, expert, full);
  };
  auto copy_tokens = [&]() {
    u32 full = base + Many::FULL + 8 * ring.at, to = x + ring.at * Many::X_STAGE;
    if (CLUSTER > 1) bulk_load_all(to, from, share, full, CLUSTER);
    else bulk_load(to, from, bytes, full);
    from += bytes;
    ring.next<DEPTH>();
  };
  Factors factors = tile_factors(g, t);
  copy_weights(0, factors.all());
  factors.copy(base, record, base + Many::FULL + 8 * ring.at);
  if (!t.ready) {
    Tokens source = token_source(p, t, rows);
    wait_at_least(source.made, source.target);
  }
  fence_copies();
  copy_tokens();
  for (int chunk = EACH; chunk < g.chunks; chunk += EACH) {
    copy_weights(chunk, 0);
    copy_tokens();
  }
}

// The copying warp.
DEV void stream(const Params& p, const Boxes& boxes, const u8* smem, u32 base) {
  Ring ring, slot;
  while (true) {
    bar_wait(base + Many::T_FULL + 8 * slot.at, slot.parity);
    const ManyTile& t = ((const ManyTile*)(smem + Many::RECORD))[slot.at];
    if (t.phase < 0) return;
    if (elect_one()) copy_tile(p, boxes, t, base, slot.at, ring);
    __syncwarp();
    ring.skip<DEPTH>((p.gemm[t.phase].chunks + EACH - 1) / EACH);
    release(base + Many::T_EMPTY + 8 * slot.at, lane_id());
    slot.next<RECORDS>();
  }
}

template <int N>
DEV void run_tile(const Params& p, const ManyTile* record, Pipe& q) {
  float acc[NMAX / 2];
  q.base = opaque(q.base);                            // keeps one token count's addresses out of the others' registers
  q.codes = opaque(q.base + Many::W + q.group * EACH * W_CHUNK + q.warp * 512 + q.lane * 16);
  q.scales = opaque(q.base + Many::S + q.group * EACH * S_CHUNK + q.warp * 32 + (q.lane >> 2) * 4);
  main_loop<N>(p, q, p.gemm[record->phase].chunks, tile_rows(record->count) * 128, acc);
  asm volatile("" ::: "memory");                      // the record is read again rather than kept in registers
  finish_tile<N>(p, *record, q, acc);
}

DEV void consume(const Params& p, const u8* smem, u32 base) {
  Pipe q;
  q.base = base;
  q.group = __shfl_sync(~0u, threadIdx.x >> 7, 0);    // warp-uniform, and known to be
  q.warp = __shfl_sync(~0u, (threadIdx.x >> 5) & 3, 0);
  q.lane = __shfl_sync(~0u, lane_id(), lane_id());    // a value to keep, not one to read again in every step
  while (true) {
    bar_wait(base + Many::T_FULL + 8 * q.tile.at, q.tile.parity);
    const ManyTile* t = (const ManyTile*)(smem + Many::RECORD) + q.tile.at;
    if (t->phase < 0) break;
    int count = t->count;
    WITH_WIDTH(count, run_tile, p, t, q);
    release(base + Many::T_EMPTY + 8 * q.tile.at, q.lane);
    q.tile.next<RECORDS>();
  }
}

// The last block to leave puts the counters back to zero for the next launch: called by one warp.
DEV void leave(const Params& p, int tile_count) {
  __threadfence();
  int before = lane_id() == 0 ? atomicAdd(p.sync + 2, 1) : 0;
  if (__shfl_sync(~0u, before, 0) != (int)gridDim.x - 1) return;
  for (int i = lane_id(); i < 4 + 3 * tile_count; i += 32) p.sync[i] = 0;
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 128, 1) shardproof_many(
    const __grid_constant__ Params p, const __grid_constant__ Boxes boxes) {
  extern __shared__ __align__(1024) u8 smem[];
  u32 base = smem_addr(smem);
  int warp = threadIdx.x >> 5;
  if (threadIdx.x == 0) init_barriers(base);
  prefetch_boxes(boxes);
  fill_table(smem + Many::TABLE);
  fence_async_proxy();
  __syncthreads();
  if (CLUSTER > 1) cluster_sync();
  wait_for_earlier_kernel();
  int tile_count = p.tile_count[0];
  if (warp >= WARPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGS));
    int role = warp - WARPS;
    if (role == 0) hand_out(p, tile_count, smem, base);
    else if (role > 1) {
      make_tiles(p, p.tile_count[1]);
      named_sync(2, 32 + 32 * MAKERS);
    } else stream(p, boxes, smem, base);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGS));
    consume(p, smem, base);
    if (threadIdx.x == 0) wait_at_least(p.sync + 1, tile_count * p.gemm[1].row_tiles);
    named_sync(1, CONSUMERS);
    reduce_tokens(p);
    if (warp == 0) {
      named_sync(2, 32 + 32 * MAKERS);                // makers draw a last ticket in vain
      leave(p, tile_count);
    }
  }
  __syncwarp();
  if (CLUSTER > 1) cluster_sync();                    // no block's memory goes while another may still arrive there
}
