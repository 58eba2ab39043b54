/* The packing engine: rows of mapped checkpoint matrices, moved straight into kernel bytes.
 *
 * Python compiles a layout on one shape into a Program and a plan into Cuts; the structs here are mirrored there
 * (native.py). One Program moves "groups" of rows: the rows of one tile of the layout, over their whole width.
 */
#ifndef SHARDPROOF_ENGINE_H
#define SHARDPROOF_ENGINE_H
#include <stddef.h>
#include <stdint.h>

/* The instructions that functions may use up to TARGET_END. Clang has its own word for it. */
#define PRAGMA(words) _Pragma(#words)
#if defined(__clang__)
#define TARGET_BEGIN(names) PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(names) PRAGMA(GCC push_options) PRAGMA(GCC target(names))
#define TARGET_END PRAGMA(GCC pop_options)
#endif

/* GCC before 11 and clang before 11 know no AMX: what they build does without. SHARDPROOF_NO_AMX does the same. */
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include) && !defined(SHARDPROOF_NO_AMX)
#if __has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>)
#define WITH_AMX
#endif
#endif

enum kernel { RUN = 0, TILE16 = 1, SHUFFLE = 2, COPY = 3, WORDS = 4, LINES = 5 };
enum isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
enum wide { NARROW = 0, WIDE = 1, TWICE = 2 }; /* what a term brings bytes from */
enum { MOST_ROWS = 256, MOST_BLOCK = 2048 }; /* of a group; bytes that one tile of LINES gathers */
enum way { PACK = 0, UNPACK = 1, UNPACK_BLOCK = 2 };
enum field { WEIGHT = 0, SCALE = 1, OTHER = 2 };
enum fault { FINE = 0, SCALE_IS_NAN = 1, WRONG_VALUE = 2, BUS_ERROR = 3 };

/* One loop over tiles: `rows` moves along the layout's row axis, `base` along experts and halves of w13. */
typedef struct { int64_t count, rows, base, dst; } RowLoop;
typedef struct { int64_t count, src, dst; } ColumnLoop;

/* What a kernel does inside a tile.
 * COPY     `size` bytes from (row, column) to dst
 * SHUFFLE  16 bytes from (row, column) through mask `index`; where `keep` is not 0 shifted left by `shift` bits in
 *          16-bit lanes and masked by mask `keep`; or-ed into the 16 bytes at dst. Parts of one dst stand together.
 * WORDS    one byte from (row, column) through table `index`, or-ed into the word at dst; `keep` ends a word
 * LINES    pieces of `word` bytes from (row, column) to the block at dst; then terms */
typedef struct { int32_t dst, row, column, size, index, keep, shift; } Part;

/* LINES: bytes of the block's 64 (or, `wide`, 128) from `window` on go through vector `index` to the line at dst of the
 * tile, where `in` says; or, with `control`, through it as well: each byte takes 8 bits of its 64 from there on, of
 * which vector `keep` stay; or, with `matrix`, each 8 bytes are multiplied by 8 x 8 bits of it and added without carry,
 * and, as all terms of such a line have `order`, the sums go through it at last Where `wide` is TWICE, each half of the 64
 * bytes fills the line, the first one multiplied by `matrix`, the other by `index`. With `window` below 0 it is the line itself
 * that goes through `control`, and what `keep` says of it is replaced. Vectors are named by where they stand in `masks`. `store` are the bytes of the line that are written. */
typedef struct { int32_t dst, window, wide, index, control, keep, matrix, order; uint64_t in, store; } Term;

typedef struct {
  int32_t kernel, group_rows, row_loops, column_loops, parts;
  int32_t word;                           /* WORDS: bytes written at once; SHUFFLE: 64 where tiles are whole lines; LINES: bytes a piece */
  int32_t near;                           /* SHUFFLE: windows of two neighbouring tiles are one */
  int32_t pad, filler, add, highest;      /* value of plan padding, of layout padding; value change */
  int64_t row_limit, matrix_rows, stack_rows; /* rows along the layout's axis, of one expert, of all experts */
  int64_t width, padded;                  /* bytes a row before and after the layout's own padding */
  int64_t tile_bytes, offset;
  const RowLoop *rows;
  const ColumnLoop *columns;
  const int64_t *group_row, *group_base;
  const Part *part;
  const uint8_t *masks; /* 16 bytes each; LINES: 64 */
  const uint32_t *tables;
  const Part *piece;
  const Term *term;
  int64_t pieces, terms, block; /* LINES: counts, bytes of a block */
  int64_t whole_lines;          /* LINES: 1 where every line is stored whole, 2 where the last one is half a line */
  /* LINES of pieces of 64 bytes: as they are gathered they go through a plain term and one of the line itself; or 0. Of
   * pairs of 32 bytes: through the latter alone. */
  int64_t fold_index, fold_control, fold_keep;
  /* UNPACK: RUN, TILE16 and COPY go from the tile to the rows by the same tables. UNPACK_BLOCK: the moves make of a tile,
   * as of a single row, a block of `back_block` bytes, whose pieces of `back_piece` bytes go to (row, column). */
  int64_t way, bytes; /* of the whole kernel buffer */
  const Part *back;
  int64_t backs, back_piece, back_block;
} Program;

/* One rectangle of one expert: where it is, where it lands, and its place in the model for the digest. */
typedef struct {
  const uint8_t *src;
  int64_t stride, rows, bytes, at_row, at_column, first_row, first_column;
  uint64_t place[2];
  int64_t digested;
} Cut;

/* Groups [begin, end) of one tensor; `cuts` holds `cuts_each` cuts an expert; `part` is what it counts in (Batch.left).
 * Unpacking reads `dst`, and writes the rows that cuts say. */
typedef struct {
  const Program *program;
  const Cut *cuts;
  uint8_t *dst;
  int64_t begin, end;
  int32_t cuts_each, field, total, part;
} Job;

typedef struct {
  const Job *jobs;
  int64_t count, next, stop;
  uint64_t *totals;            /* [totals][2 lanes] */
  const uint32_t *weight_keys; /* [2][keys]: one a 4-byte word of a row */
  const int16_t *scale_keys;   /* [2][2][keys]: low and high half, one a byte of a row */
  const uint8_t *scale_bytes;   /* [2][4][keys + 64]: the four bytes of a scale's key, for AVX-512 */
  const uint64_t *scale_before; /* [2][keys + 1]: sums of the unsigned ones of them, each in its place */
  int64_t keys, isa;
  int64_t fault, fault_job, fault_row, fault_at;
  int64_t open;  /* jobs below this number may run; others wait */
  int64_t *left; /* of every part, the jobs that have not ended; or NULL */
  int64_t running; /* threads that have not ended */
  int64_t fresh;   /* whether destinations are pages that nobody has touched yet */
  /* For AMX, or NULL: of each word of weights 16 columns of 4 bytes, what each byte counts in each column. Columns 0 to 7
   * are the powers of 256 of the first lane, 8 to 15 of the second. */
  const uint8_t *weight_tiles;
} Batch;

/* The key of a row is mixed from its seed, place + row * ROW_STEP (digest.py). */
#define ROW_STEP 0x9E3779B97F4A7C15u
#define MIX_1 0xFF51AFD7ED558CCDu
#define MIX_2 0xC4CEB9FE1A85EC53u
static inline uint64_t row_key_of(uint64_t seed) {
  seed = (seed ^ (seed >> 33)) * MIX_1;
  seed = (seed ^ (seed >> 33)) * MIX_2;
  return (seed ^ (seed >> 33)) | 1;
}

/* What a kernel does besides moving a group: it asks the memory for the rows of the next one (`ahead`), and, with `k0`,
 * takes the row sums of weights: column keys of the group's first byte, row keys (0: the row does not count), and eight
 * 64-bit sums a lane. */
typedef struct {
  const uint8_t *const *ahead;
  const uint32_t *k0, *k1;
  uint64_t (*row_key)[2], *acc;
  const uint8_t *tiles; /* for AMX, or NULL: the keys of the group's first byte, as Batch has them */
  int cached; /* the destination's lines are in the caches, where they were cleared: no stores past them */
} Aside;

/* Kernels: one group of rows, all tiles along its width. Row pointers reach `padded` bytes (+32 where staged). */
void sp_move(int64_t isa, const Program *p, const uint8_t *const *rows, uint8_t *dst, const Aside *aside);
void sp_move_portable(const Program *p, const uint8_t *const *rows, uint8_t *dst);
int sp_move_avx2(const Program *p, const uint8_t *const *rows, uint8_t *dst, int cached);
int sp_move_avx512(const Program *p, const uint8_t *const *rows, uint8_t *dst, const Aside *aside);
/* TILE16 backwards: how many of `count` tiles, `step` bytes apart, went to the rows. */
int64_t sp_untile_avx2(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at);
int64_t sp_untile_avx512(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at);

/* Sums over one row, both lanes; `sp_sum_scales*` also says whether a byte is 255. */
void sp_sum_weights(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]);
int sp_sum_scales(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]);
/* The same for rows that share their columns, times the rows' keys, added to 8 sums a lane. */
void sp_sum_weights_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint32_t *k0,
                           const uint32_t *k1, uint64_t (*row_key)[2], uint64_t *acc);
int sp_sum_scales_avx512(const uint8_t *const *src, int64_t rows, int64_t bytes, const uint8_t *key, int64_t keys,
                         const uint64_t *before, uint64_t (*row_key)[2], uint64_t *acc);
int sp_has_tiles(void); /* AMX, and the system lets this process use it */
/* Sums 0 to 3 are zero; a kernel adds tiles to them, in turns as each waits for itself; they are taken. */
void sp_tiles_begin(void);
void sp_tiles_take(uint64_t (*row_key)[2], uint64_t *acc);
void sp_tiles_end(void); /* of this thread */
enum { TILE_ROWS = 16, TILE_KEYS = 1024, TILE_PASS = 32 << 10 }; /* bytes of keys a tile; of a row: 2^9 times 64 * 255^2 */
void sp_row_keys_avx512(uint64_t *seeds, int64_t count); /* seeds become keys, in place; room for a multiple of 8 */
void sp_sum_weights_avx2(const uint8_t *src, int64_t bytes, const uint32_t *k0, const uint32_t *k1, uint64_t out[2]);
int sp_sum_scales_avx2(const uint8_t *src, int64_t bytes, const int16_t *k, int64_t keys, uint64_t out[2]);
#endif
