// The geometry of one build (macros from the compiler's command line) and the parameters of one launch.
#pragma once
#include "ptx.cuh"

// WGS consumer warpgroups a block; each owns MW tiles of 64 rows; KW warpgroups share one row tile and split K.
// NMAX tokens a tile at most; N0 < N1 < .. <= NMAX are the matrix widths that are compiled (0: none).
// FP8: e4m3 activations, one scale for 128 values. NARROW: warp-wide matrix products, for few tokens; else wgmma, and
// OVERLAP unpacks PAIR chunks of weights during the step before (more registers). EACH: 64-value chunks of a stage that
// one warpgroup reads.
#ifndef WGS
#define WGS 4
#define MW 1
#define KW 4
#define NMAX 16
#define N0 8
#define N1 16
#define N2 0
#define N3 0
#define W_DEPTH 6
#define X_DEPTH 4
#define FP8 0
#define NARROW 1
#define EACH 2
#define OVERLAP 0
#define PAIR 1
#define PIECES 1              // many.cu, FP8: parts of a tile's tokens that take turns
#define CLUSTER 1             // many.cu: blocks that share token tiles
#define DIRECT 0              // FP8, few tokens: codes are placed, not looked up; their scales multiply products
#define ONCE 1                // weights are read once: first to leave the L2 cache
#define ACTIVATION 0          // 0 silu, 1 swiglu_oai, 2 situ
#define RESULTS 0             // one row tile a warpgroup: consumers leave rows of w2, and not NARROW activations, to finishers
#define MANY 0                // many.cu
#define CHECKED 0             // for compute-sanitizer
#define SMALL_SLOTS 512       // routed slots that a block sorts by itself
#define BOXES 0               // moe.cu, many.cu: weights are copied by tensor maps
#define CONSUMER_REGS 88      // registers a thread: consumers, producers
#define PRODUCER_REGS 48
#endif

constexpr int STEP = FP8 ? 2 : 1;                  // 64-value chunks an MMA step covers
constexpr int CHUNKS = KW * EACH;           // chunks a stage
constexpr int ROW64 = WGS / KW * MW;               // 64-row groups a block tile
constexpr int HOUT = ROW64 * 32;                   // activations a w13 tile yields a token
constexpr int W_CHUNK = 2048, S_CHUNK = 128;       // bytes of one 64-row, 64-column chunk: weights, scales
constexpr int W_BYTES = ROW64 * CHUNKS * W_CHUNK;
constexpr int S_BYTES = ROW64 * CHUNKS * S_CHUNK;
constexpr int ATOMS = CHUNKS / STEP;               // 128-byte wide token tiles a stage
constexpr int ATOM_BYTES = NMAX * 128;
constexpr int X_BYTES = ATOMS * ATOM_BYTES;
constexpr int XS_BYTES = FP8 ? ATOMS * NMAX * 4 : 0;
constexpr int CONSUMERS = WGS * 128;
constexpr int LOADERS = 64;                        // token loader threads: the last two warps
constexpr int LAG = X_DEPTH > 2 ? X_DEPTH - 2 : 1;            // stages of tokens in flight before one is handed over
constexpr int TILES = 4;                           // depth of the ring of tile records
constexpr int STAGED = WGS * NMAX * 128 > NMAX * HOUT * 2 ? WGS * NMAX * 128 : NMAX * HOUT * 2;
constexpr bool DRAINED = MW == 1;                  // tiles go through shared memory to finisher warps
constexpr int SUMS = 2;                            // tiles that wait for their finishers
constexpr int FINISHERS = 2;                       // warps that finish a tile (DRAINED)
#define SUMS_LEFT (NARROW || !RESULTS)             // sums of w13 at least
constexpr int SUM_BYTES = SUMS_LEFT ? WGS * (NMAX / 2) * 512 : NMAX * ROW64 * 128;   // of fp32 sums, or results in bf16
constexpr int ROW_GROUPS = WGS / KW;               // warpgroups, or sets that share rows, with rows of their own
constexpr int OUT_BYTES = DRAINED ? SUMS * SUM_BYTES : STAGED;
constexpr int PUBLISHERS = DRAINED ? FINISHERS : ROW_GROUPS;   // how often a finished tile is counted
constexpr int THREADS = CONSUMERS + 128 + (DRAINED ? SUMS * FINISHERS * 32 : 0);
static_assert(DRAINED || (KW == 1 && !NARROW), "K is split where sums go through shared memory");

struct Gemm {
  const u8 *weight, *scale;     // packed codes; multiplier fields in the order of the packed scales
  const float *row_scale, *bias;  // one a packed row; bias may be null
  int row64s, chunks, row_tiles;
};

// BOXES: a stage of a tile's weights, and one of their scales, is one copy of a box of [experts][row64s][chunks][bytes of a
// chunk]. Past K's end come zero codes, and other scales, of which memory holds as many as the last stage wants.
struct Boxes {
  TensorMap weight[2], scale[2];  // of w13 and of w2
};
DEV void prefetch_boxes(const Boxes& b) {
  if (threadIdx.x < 4) prefetch_map((threadIdx.x & 1 ? b.scale : b.weight)[threadIdx.x >> 1]);
}

// The stages in which a tile walks K; the last one may be partly past its end.
struct Walk {
  int chunks, stages;
  DEV int chunk(int stage) const { return stage * CHUNKS; }
};
DEV Walk walk(const Gemm& g) { return {g.chunks, (g.chunks + CHUNKS - 1) / CHUNKS}; }

struct Params {
  Gemm gemm[2];
  const u16* x;                 // bf16 [tokens, hidden]
  const u8* xq;                 // FP8: e4m3 [tokens, x_pitch], permuted in blocks of 32
  const float* xs;              // FP8: [x_pitch / 128, tokens]
  void* h;                      // bf16 (FP8: e4m3) [slots, h_pitch]
  float* hs;                    // FP8: [h_pitch / 128, slots]
  void* y;                      // bf16 or fp32 [slots, y_pitch]: rows of w2 by routed slot
  u16* out;                     // bf16 [tokens, hidden]
  const int *ids, *expert_map;  // [tokens, top_k]; global expert to local, or null
  const float* weights;         // [tokens, top_k]
  int4* tiles;                  // x = expert | count << 20, y = first sorted slot, z = part | parts << 16, w = groups before it
  int* slots;                   // sorted slot -> token * top_k + j
  int* tile_count;              // tiles, groups
  int* sync;                    // 0 ticket, 1 finished w2 tiles, 2 leaving blocks, 4.. finished w13 tiles of a token tile
  int tokens, top_k, experts, map_size, hidden, intermediate;
  int x_pitch, h_pitch, y_pitch;  // elements
  int small_route, round_x, round_h, weight_first;
  float limit, alpha, beta, linear_beta;
  u32 powers[6];                // 4096, 256, 64, 16, 4, 8: unknown to the compiler, so that it shifts by multiplying
  u8* hq;                       // many.cu, rounded activations only: the token tiles of w2; xq: those of w13, from rows x
  int* groups;                  // the token tile of each group of 8 rows; null: nobody asks
  u32 exponent_one;             // 2^23, unknown to the compiler as `powers`
};

struct Tile {
  int phase;                    // 0 w13, 1 w2, -1 none left
  int expert, start, count, row_tile, token_tile;
  int pad0, pad1;
};

DEV int local_expert(const Params& p, int id) {
  if (id < 0 || id >= p.map_size) return -1;
  int e = p.expert_map ? p.expert_map[id] : id;
  return e < p.experts ? e : -1;
}

// Shared memory, in bytes from a 1024-aligned base.
struct Shared {
  static constexpr int X = 0;
  static constexpr int W = X + X_DEPTH * X_BYTES;
  static constexpr int S = W + W_DEPTH * W_BYTES;
  static constexpr int XS = S + W_DEPTH * S_BYTES;
  static constexpr int OUT = XS + X_DEPTH * XS_BYTES;
  static constexpr int FACTORS = OUT + OUT_BYTES;          // of a consumer warp's rows: 16 scales, 16 biases (DRAINED)
  static constexpr int FLAT = FACTORS + (DRAINED ? WGS * 512 : 0);   // [TILES][NMAX] routed slot, then its weight
  static constexpr int WEIGHT = FLAT + TILES * NMAX * 4;
  static constexpr int ROWS = WEIGHT + TILES * NMAX * 4;   // [TILES][NMAX] source row
  static constexpr int RECORD = ROWS + TILES * NMAX * 4;
  static constexpr int TABLE = RECORD + TILES * 32;        // e4m3 magnitudes by exponent
  static constexpr int W_FULL = TABLE + 128, W_EMPTY = W_FULL + 8 * W_DEPTH;
  static constexpr int X_FULL = W_EMPTY + 8 * W_DEPTH, X_EMPTY = X_FULL + 8 * X_DEPTH;
  static constexpr int T_FULL = X_EMPTY + 8 * X_DEPTH, T_EMPTY = T_FULL + 8 * TILES;
  static constexpr int SUM_FULL = T_EMPTY + 8 * TILES, SUM_EMPTY = SUM_FULL + 8 * SUMS;
  static constexpr int TILE_COUNT = SUM_EMPTY + 8 * SUMS;
  static constexpr int SORTED = TILE_COUNT + 16;           // small routing only: tiles, then sorted slots
  static constexpr int END = SORTED;
  static constexpr int END_SMALL = SORTED + SMALL_SLOTS * 20;
};

// A warp's arrival: what its lanes did before is done for whoever waits. compute-sanitizer follows arrivals by thread
// alone: CHECKED lets every lane arrive.
constexpr int ARRIVALS = CHECKED ? 32 : 1;
DEV void release(u32 bar, int lane) {
  __syncwarp();
  if (CHECKED || lane == 0) bar_arrive(bar);
}

// Calls RUN<N>(...) with the first compiled width N that holds COUNT tokens. A macro: through a lambda the compiler
// makes other, unmeasured machine code.
#define WITH_WIDTH(COUNT, RUN, ...)                            \
  do {                                                         \
    if (COUNT <= N0) RUN<N0>(__VA_ARGS__);                     \
    else if (N1 && COUNT <= N1) RUN<N1 ? N1 : N0>(__VA_ARGS__); \
    else if (N2 && COUNT <= N2) RUN<N2 ? N2 : N0>(__VA_ARGS__); \
    else if (N3 && COUNT <= N3) RUN<N3 ? N3 : N0>(__VA_ARGS__); \
  } while (0)

struct Ring {
  u32 at = 0, parity = 0;
  template <int DEPTH>
  DEV void next() {
    if (++at == DEPTH) { at = 0; parity ^= 1; }
  }
  template <int DEPTH>
  DEV void skip(u32 count) {
    at += count;
    parity ^= at / DEPTH & 1;
    at %= DEPTH;
  }
};
