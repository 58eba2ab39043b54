// The kernel for many tokens: token tiles lie in memory as stages do in shared memory. Of each stage first its atoms, as the
// matrix unit reads them: as many rows as the tile has tokens, rounded up to 8, of 128 bytes, which are 64 bf16 or 128 e4m3
// values, 16-byte columns xor (row & 7); then, of e4m3, a float for each atom and row.
#pragma once
#include "params.cuh"
#include "route.cuh"

constexpr int DEPTH = W_DEPTH;                     // stages of EACH chunks: weights and tokens together
constexpr int MAKERS = 2;                          // warps that make token tiles
constexpr int COLUMNS = 512;                       // activations in one job of a maker, for 8 rows; of x: 1 KB
constexpr int BATCH = 4;                          // loads of a maker in flight
constexpr int RECORDS = 2;                         // depth of the ring of tile records
constexpr int WARPS = WGS * 4;                     // consumer warps
constexpr int FACTORS_TILE = 2 * WGS * 256;        // bytes: a scale and a bias for each row of a tile

constexpr int STAGE_ATOMS = EACH / STEP;
constexpr int STAGE_ROW = STAGE_ATOMS * (FP8 ? 132 : 128);   // bytes of a stage that one token has

struct Many {
  static constexpr int X_STAGE = (NMAX * STAGE_ROW + 1023) / 1024 * 1024;
  static constexpr int W_STAGE = WGS * EACH * W_CHUNK, S_STAGE = WGS * EACH * S_CHUNK;
  static constexpr int X = 0;
  static constexpr int W = X + DEPTH * X_STAGE;
  static constexpr int S = W + DEPTH * W_STAGE;
  static constexpr int FLAT = S + DEPTH * S_STAGE;         // [RECORDS][NMAX] routed slot, then its weight
  static constexpr int WEIGHT = FLAT + RECORDS * NMAX * 4;
  static constexpr int FACTORS = WEIGHT + RECORDS * NMAX * 4;   // [RECORDS] scales of the tile's rows, then their biases
  static constexpr int RECORD = FACTORS + RECORDS * FACTORS_TILE;
  static constexpr int TABLE = RECORD + RECORDS * 32;        // e4m3 magnitudes by exponent
  static constexpr int FULL = TABLE + 128, EMPTY = FULL + 8 * DEPTH;
  static constexpr int T_FULL = EMPTY + 8 * DEPTH, T_EMPTY = T_FULL + 8 * RECORDS;
  static constexpr int K_FULL = T_EMPTY + 8 * RECORDS;     // tickets from the cluster's first block
  static constexpr int TICKET = K_FULL + 8 * RECORDS;
  static constexpr int END = TICKET + 8 * RECORDS;
};

struct ManyTile {
  int phase;                    // 0 w13, 1 w2, -1 none left
  int expert, start, count, row_tile, token_tile;
  int group;                    // groups of 8 rows before this tile
  int ready;                    // its tokens are made: known to whoever reads this
};


// p.sync: 0 ticket, 1 finished w2 tiles, 2 leaving blocks, 3 maker's ticket, then three counters a token tile.
enum Counter { X_MADE, H_DONE, H_MADE };
DEV int* counter(const Params& p, int tile, Counter which) { return p.sync + 4 + 3 * tile + which; }

// What w2 reads is not what w13's epilogue writes if activations are rounded: 128 of them share a scale.
DEV bool remade(const Params& p) { return FP8 || p.round_h; }
// Tickets of one token tile: the blocks of a cluster share its tokens and take a row tile each.
DEV int tickets_each(const Gemm& g) { return g.row_tiles / CLUSTER; }
DEV int atoms(const Gemm& g) { return (g.chunks + STEP - 1) / STEP; }
DEV int row_bytes(const Gemm& g) { return (g.chunks + EACH - 1) / EACH * STAGE_ROW; }   // of a token's row in a tile
// Where an atom of a tile of `rows` rows begins, and its scales.
DEV long atom_at(int rows, int atom) { return (long)rows * (atom / STAGE_ATOMS * STAGE_ROW + atom % STAGE_ATOMS * 128); }
DEV long atom_scales_at(int rows, int atom) {
  return (long)rows * (atom / STAGE_ATOMS * STAGE_ROW + STAGE_ATOMS * 128 + atom % STAGE_ATOMS * 4);
}
DEV int column_jobs(const Params& p, int phase) {
  return phase ? (p.gemm[1].chunks * 64 + COLUMNS - 1) / COLUMNS : (atoms(p.gemm[0]) + 7) / 8;
}

// Generic stores that the copy engine reads next, here or in another block.
DEV void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
// Counts what this warp wrote, or what it knows that its block has written.
DEV void publish(int* at) {
  fence_copies();
  __syncwarp();
  if (lane_id() == 0) {
    __threadfence();
    add_release(at, 1);
  }
}
