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
  int base = index - entry.z, local = ticket - base * row_tiles;
  t.row_tile = local / entry.w;              // the parts of one expert run side by side: one read of its weights
  t.token_tile = base + local % entry.w;
  if (t.token_tile != index) entry = r.tiles[t.token_tile];
  t.expert = entry.x & 0xfffff;
  t.count = entry.x >> 20;
  t.start = entry.y;
  return t;
}

// Issues one stage: for each 64-row group a contiguous run of chunks and of their scales.
DEV void load_stage(const Gemm& g, const Tile& t, int chunk, u32 base, Ring ring, u64 policy) {
  int chunks = min(CHUNKS, g.chunks - chunk), groups = min(ROW64, g.row64s - t.row_tile * ROW64);
  u32 full = base + Shared::W_FULL + 8 * ring.at;
  bar_expect(full, groups * chunks * (W_CHUNK + S_CHUNK));
  long at = ((long)t.expert * g.row64s + t.row_tile * ROW64) * g.chunks + chunk;
  u32 w = base + Shared::W + ring.at * W_BYTES, s = base + Shared::S + ring.at * S_BYTES;
#pragma unroll
  for (int r = 0; r < ROW64; ++r) {
    if (r >= groups) break;
    bulk_load(w + r * CHUNKS * W_CHUNK, g.weight + at * W_CHUNK, chunks * W_CHUNK, full, policy);
    bulk_load(s + r * CHUNKS * S_CHUNK, g.scale + at * S_CHUNK, chunks * S_CHUNK, full, policy);
    at += g.chunks;
  }
}

DEV void hand_out_and_stream(const Params& p, const Routed& r, int ticket, u32 base, Tile* records) {
  Ring ring, slot;
  u64 policy = NMAX > 64 ? evict_normal_policy() : evict_first_policy();
  while (true) {
    int next = atomicAdd(p.sync, 1);
    Tile t = decode_ticket(p, r, ticket);
    bar_wait(base + Shared::T_EMPTY + 8 * slot.at, slot.parity ^ 1);
    records[slot.at] = t;
    bar_arrive(base + Shared::T_FULL + 8 * slot.at);
    slot.next<TILES>();
    if (t.phase < 0) break;
    const Gemm& g = p.gemm[t.phase];
    for (int chunk = 0; chunk < g.chunks; chunk += CHUNKS) {
      bar_wait(base + Shared::W_EMPTY + 8 * ring.at, ring.parity ^ 1);
      load_stage(g, t, chunk, base, ring, policy);
      ring.next<W_DEPTH>();
    }
    ticket = next;
  }
}

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

// One stage of a tile by 16-byte copies, swizzled for the matrix unit; bytes past a row's end become zeros.
DEV void copy_stage(const Source& src, const int* rows, int count, int first_byte, u32 dst, int thread) {
  int column = thread & 7;
  for (int r = thread >> 3; r < count; r += LOADERS / 8) {
    const u8* from = src.data + rows[r] * src.pitch;
    u32 to = dst + r * 128 + ((column ^ (r & 7)) << 4);
#pragma unroll
    for (int a = 0; a < ATOMS; ++a) {
      int at = first_byte + a * 128 + column * 16;
      bool ok = at < src.valid;
      copy16(to + a * ATOM_BYTES, from + (ok ? at : 0), ok ? 16 : 0);
    }
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

// Routed slot and weight of each token of the tile, for the epilogue and for the gather.
DEV void write_meta(const Params& p, const Routed& r, const Tile& t, u8* smem, int slot, int thread) {
  int* flat = (int*)(smem + Shared::FLAT) + slot * NMAX;
  float* weight = (float*)(smem + Shared::WEIGHT) + slot * NMAX;
  int* rows = (int*)(smem + Shared::ROWS);
  named_sync(2, LOADERS);
  for (int i = thread; i < t.count; i += LOADERS) {
    int f = r.slots[t.start + i];
    flat[i] = f;
    weight[i] = p.weights[f];
    rows[i] = t.phase ? t.start + i : f / p.top_k;
  }
  named_sync(2, LOADERS);
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
  DEV void push() {
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

DEV void gather_tokens(const Params& p, const Routed& r, u8* smem, u32 base, int thread) {
  Ring ring, slot;
  HandOver out = {base + Shared::X_FULL};
  const int* rows = (const int*)(smem + Shared::ROWS);
  while (true) {
    bar_wait(base + Shared::T_FULL + 8 * slot.at, slot.parity);
    Tile t = ((Tile*)(smem + Shared::RECORD))[slot.at];
    if (t.phase < 0) break;
    write_meta(p, r, t, smem, slot.at, thread);
    bar_arrive(base + Shared::META + 8 * slot.at);
    if (t.phase) await_activations(p, t, out);
    Source src = token_source(p, t.phase);
    for (int chunk = 0; chunk < p.gemm[t.phase].chunks; chunk += CHUNKS) {
      bar_wait(base + Shared::X_EMPTY + 8 * ring.at, ring.parity ^ 1);
      u32 dst = base + Shared::X + ring.at * X_BYTES;
      if (!FP8 && p.round_x) {
        round_stage(src.data, src.pitch, src.valid, rows, t.count, chunk * 128, dst, thread);
      } else {
        copy_stage(src, rows, t.count, chunk * (FP8 ? 64 : 128), dst, thread);
        if (FP8) copy_scales(src, rows, t.count, chunk / 2, base + Shared::XS + ring.at * XS_BYTES, thread);
      }
      out.push();
      ring.next<X_DEPTH>();
    }
    __syncwarp();
    if (lane_id() == 0) bar_arrive(base + Shared::T_EMPTY + 8 * slot.at);
    slot.next<TILES>();
  }
  out.flush();
}
