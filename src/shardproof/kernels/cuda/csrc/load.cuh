// The producer warps: one lane hands out tiles and streams weights, three warps gather tokens.
#pragma once
#include "params.cuh"
#include "quant.cuh"

struct Routed {
  const int4* tiles;
  const int* slots;
  int tile_count;
};

DEV Tile decode_ticket(const Params& p, const Routed& r, int ticket) {
  Tile t = {-1, 0, 0, 0, 0, 0, 0, 0};
  int first = r.tile_count * p.gemm[0].row_tiles;
  if (ticket >= first + r.tile_count * p.gemm[1].row_tiles) return t;
  t.phase = ticket >= first;
  int row_tiles = p.gemm[t.phase].row_tiles;
  if (t.phase) ticket -= first;
  int index = ticket / row_tiles;
  int4 entry = r.tiles[index];
  int parts = entry.z >> 16, base = index - (entry.z & 0xffff), local = ticket - base * row_tiles;
  t.row_tile = local / parts;                // the parts of one expert run side by side: one read of its weights
  t.token_tile = base + local % parts;
  if (t.token_tile != index) entry = r.tiles[t.token_tile];
  t.expert = entry.x & 0xfffff;
  t.count = entry.x >> 20;
  t.start = entry.y;
  return t;
}

// Publishes a tile and, for each of its tokens, the routed slot, its weight and the source row.
DEV void announce(const Params& p, const Routed& r, const Tile& t, u8* smem, u32 base, Ring& slot) {
  bar_wait_idle(base + Shared::T_EMPTY + 8 * slot.at, slot.parity ^ 1);
  int at = slot.at * NMAX;
  if (lane_id() == 0) ((Tile*)(smem + Shared::RECORD))[slot.at] = t;
  for (int i = lane_id(); i < t.count; i += 32) {
    int f = r.slots[t.start + i];
    ((int*)(smem + Shared::FLAT))[at + i] = f;
    ((float*)(smem + Shared::WEIGHT))[at + i] = p.weights[f];
    ((int*)(smem + Shared::ROWS))[at + i] = t.phase ? t.start + i : f / p.top_k;
  }
  release(base + Shared::T_FULL + 8 * slot.at, lane_id());
  slot.next<TILES>();
}

// The scheduler warp: draws tickets in order, a few tiles ahead of the work.
DEV void hand_out(const Params& p, const Routed& r, int ticket, u8* smem, u32 base) {
  Ring slot;
  Tile t;
  do {
    ticket = __shfl_sync(~0u, ticket, 0);
    int next = lane_id() == 0 ? atomicAdd(p.sync, 1) : 0;
    t = decode_ticket(p, r, ticket);
    announce(p, r, t, smem, base, slot);
    ticket = next;
  } while (t.phase >= 0);
  if (DRAINED) announce(p, r, t, smem, base, slot);    // every second record is for one pair of finishers
}

#if BOXES
// Issues the copies of one tile's weights, by one lane.
DEV void copy_weights(const Params& p, const Boxes& boxes, const Tile& t, u32 base, Ring ring) {
  int row64 = t.row_tile * ROW64, expert = t.expert, chunks = p.gemm[t.phase].chunks;
  for (int chunk = 0; chunk < chunks; chunk += CHUNKS, ring.next<W_DEPTH>()) {
    u32 full = base + Shared::W_FULL + 8 * ring.at;
    bar_wait(base + Shared::W_EMPTY + 8 * ring.at, ring.parity ^ 1);
    bar_expect(full, W_BYTES + S_BYTES);
    tensor_load<ONCE>(base + Shared::W + ring.at * W_BYTES, boxes.weight[t.phase], chunk, row64, expert, full);
    tensor_load<ONCE>(base + Shared::S + ring.at * S_BYTES, boxes.scale[t.phase], chunk, row64, expert, full);
  }
}

// The weight warp.
DEV void stream_weights(const Params& p, const Boxes& boxes, const Tile* records, u32 base) {
  Ring ring, slot;
  while (true) {
    bar_wait(base + Shared::T_FULL + 8 * slot.at, slot.parity);
    const Tile& t = records[slot.at];
    if (t.phase < 0) return;
    if (elect_one()) copy_weights(p, boxes, t, base, ring);
    __syncwarp();
    ring.skip<W_DEPTH>(walk(p.gemm[t.phase]).stages);
    release(base + Shared::T_EMPTY + 8 * slot.at, lane_id());
    slot.next<TILES>();
  }
}
#else
// A tile's weights: for each 64-row group a contiguous run of chunks and of their scales.
struct Weights {
  const u8 *weight, *scale;     // the first group's next ones
  int chunks, groups;           // chunks left of K; groups of the tile
  long row_chunks;              // chunks of a group in memory
};
DEV Weights tile_weights(const Gemm& g, const Tile& t) {
  int chunks = uniform(g.chunks), row_tile = uniform(t.row_tile);
  long at = ((long)uniform(t.expert) * g.row64s + row_tile * ROW64) * chunks;
  return {g.weight + at * W_CHUNK, g.scale + at * S_CHUNK, chunks, min(ROW64, uniform(g.row64s) - row_tile * ROW64), chunks};
}

// Issues one stage, by one lane.
DEV void load_stage(const Weights& g, u32 base, int at, u64 policy) {
  int chunks = min(CHUNKS, g.chunks);
  u32 full = base + Shared::W_FULL + 8 * at, w = base + Shared::W + at * W_BYTES, s = base + Shared::S + at * S_BYTES;
  bar_expect(full, g.groups * chunks * (W_CHUNK + S_CHUNK));
#pragma unroll
  for (int r = 0; r < ROW64; ++r) {
    if (r >= g.groups) break;
    bulk_load(w + r * CHUNKS * W_CHUNK, g.weight + r * g.row_chunks * W_CHUNK, chunks * W_CHUNK, full, policy);
    bulk_load(s + r * CHUNKS * S_CHUNK, g.scale + r * g.row_chunks * S_CHUNK, chunks * S_CHUNK, full, policy);
  }
}

// The weight warp.
DEV void stream_weights(const Params& p, const Tile* records, u32 base) {
  Ring ring, slot;
  u64 policy = weight_policy<ONCE>();
  while (true) {
    bar_wait(base + Shared::T_FULL + 8 * slot.at, slot.parity);
    Tile t = records[slot.at];
    int phase = uniform(t.phase);
    if (phase < 0) return;
    Weights g = tile_weights(p.gemm[phase], t);
    for (; g.chunks > 0; g.chunks -= CHUNKS, g.weight += CHUNKS * W_CHUNK, g.scale += CHUNKS * S_CHUNK) {
      bar_wait(base + Shared::W_EMPTY + 8 * ring.at, ring.parity ^ 1);
      if (elect_one()) load_stage(g, base, ring.at, policy);
      __syncwarp();
      ring.next<W_DEPTH>();
    }
    release(base + Shared::T_EMPTY + 8 * slot.at, lane_id());
    slot.next<TILES>();
  }
}
#endif

struct Source {
  const u8* data;
  long pitch;                // bytes a row
  int valid;                 // bytes of a row that exist; zeros beyond
  const float* scales;       // FP8: [blocks][rows]
  int scale_rows;
};

DEV Source token_source(const Params& p, int phase) {
  constexpr int SIZE = FP8 ? 1 : 2;
  int slots = p.tokens * p.top_k;
  if (phase) return {(const u8*)p.h, (long)p.h_pitch * SIZE, p.h_pitch * SIZE, p.hs, slots};
  return {FP8 ? p.xq : (const u8*)p.x, (long)p.x_pitch * SIZE, p.x_pitch * SIZE, p.xs, p.tokens};
}

// The source rows of the tile that this thread copies, in 16-byte units.
constexpr int ROWS_EACH = (NMAX + LOADERS / 8 - 1) / (LOADERS / 8);
struct MyRows {
  u32 at[ROWS_EACH];
};
DEV MyRows my_rows(const Source& src, const int* rows, int count, int thread) {
  MyRows m;
#pragma unroll
  for (int i = 0; i < ROWS_EACH; ++i) {
    int r = (thread >> 3) + i * (LOADERS / 8);
    m.at[i] = r < count ? (u32)(rows[r] * (src.pitch / 16)) : 0;
  }
  return m;
}

// One stage of a tile by 16-byte copies, swizzled for the matrix unit; bytes past a row's end become zeros.
DEV void copy_stage(const Source& src, const MyRows& m, int count, int first_byte, u32 dst, int thread) {
  int column = thread & 7, row = thread >> 3;
  u32 to = dst + row * 128 + ((column ^ (row & 7)) << 4);
#pragma unroll
  for (int a = 0; a < ATOMS; ++a) {
    int at = first_byte + a * 128 + column * 16;
    u32 bytes = at < src.valid ? 16 : 0;
    const u8* from = src.data + (bytes ? at : 0);
#pragma unroll
    for (int i = 0; i < ROWS_EACH; ++i)
      if (row + i * (LOADERS / 8) < count) copy16(to + a * ATOM_BYTES + i * (LOADERS * 16), from + (u64)m.at[i] * 16, bytes);
  }
}

DEV void copy_scales(const Source& src, const int* rows, int count, int block, u32 dst, int thread) {
  int blocks = src.valid / 128;
  for (int i = thread; i < count * ATOMS; i += LOADERS) {
    int a = i / count, r = i - a * count;
    int b = min(block + a, blocks - 1);
    copy4(dst + (a * NMAX + r) * 4, src.scales + (long)b * src.scale_rows + rows[r]);
  }
}

// Hands stages over in order, once their copies have landed and are visible to the matrix unit.
struct HandOver {
  u32 full, at = 0;
  int pending = 0;
  DEV void next() {
    fence_async_proxy();
    bar_arrive(full + 8 * at);
    at = at + 1 == X_DEPTH ? 0 : at + 1;
    --pending;
  }
  DEV void push(bool copied) {
    if (NARROW) {                                     // read by ordinary loads: no other proxy to wait for
      copied ? bar_arrive_after_copies(full + 8 * at) : bar_arrive(full + 8 * at);
      at = at + 1 == X_DEPTH ? 0 : at + 1;
      return;
    }
    copies_commit();
    if (++pending <= LAG) return;
    copies_wait<LAG>();
    next();
  }
  DEV void flush() {
    copies_wait<0>();
    while (pending) next();
  }
};

// A w2 tile needs the activations of all w13 tiles of its tokens. What is pending goes first: this very block may owe
// one of them.
DEV void await_activations(const Params& p, const Tile& t, HandOver& out) {
  const int* counter = p.sync + 4 + t.token_tile;
  int target = p.gemm[0].row_tiles * PUBLISHERS;
  if (load_acquire(counter) >= target) return;
  out.flush();
  wait_at_least(counter, target);
}

DEV void gather_tokens(const Params& p, const u8* smem, u32 base, int thread) {
  Ring ring, slot;
  HandOver out = {base + Shared::X_FULL};
  while (true) {
    bar_wait(base + Shared::T_FULL + 8 * slot.at, slot.parity);
    Tile t = ((const Tile*)(smem + Shared::RECORD))[slot.at];
    if (t.phase < 0) break;
    const int* rows = (const int*)(smem + Shared::ROWS) + slot.at * NMAX;
    if (t.phase) await_activations(p, t, out);
    Source src = token_source(p, t.phase);
    MyRows mine = my_rows(src, rows, t.count, thread);
    Walk w = walk(p.gemm[t.phase]);
    for (int stage = 0; stage < w.stages; ++stage) {
      int chunk = w.chunk(stage);
      bar_wait(base + Shared::X_EMPTY + 8 * ring.at, ring.parity ^ 1);
      u32 dst = base + Shared::X + ring.at * X_BYTES;
      if (KW > 1 && p.round_x) {
        round_stage(src.data, src.pitch, src.valid, rows, t.count, chunk * 128, dst, thread);
      } else {
        copy_stage(src, mine, t.count, chunk * (FP8 ? 64 : 128), dst, thread);
        if (FP8) copy_scales(src, rows, t.count, chunk / 2, base + Shared::XS + ring.at * XS_BYTES, thread);
      }
      out.push(KW == 1 || !p.round_x);
      ring.next<X_DEPTH>();
    }
    release(base + Shared::T_EMPTY + 8 * slot.at, lane_id());
    slot.next<TILES>();
  }
  out.flush();
}
