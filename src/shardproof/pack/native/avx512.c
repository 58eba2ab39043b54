/* AVX-512 kernels (VBMI, VNNI, GFNI): a whole cache line is one register, any byte of two registers reaches any place of it,
 * and row sums of the digest ride along in the registers that the weights pass through. */
#include <string.h>

#include "engine.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#ifdef WITH_AMX
TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni,avx2,amx-tile,amx-int8")
#else
TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni,avx2")
#endif
#include "avx512.h"

static inline void put(uint8_t *dst, __m512i v, int stream) {
  if (stream)
    _mm512_stream_si512((void *)dst, v);
  else
    _mm512_storeu_si512((void *)dst, v);
}

static inline void put_halves(uint8_t *dst, __m512i v, int both) {
  _mm256_stream_si256((__m256i *)dst, _mm512_castsi512_si256(v));
  if (both) _mm256_stream_si256((__m256i *)(dst + 32), _mm512_extracti64x4_epi64(v, 1));
}

#define ASK(level, line) __asm__ volatile("prefetch" level " %0" : : "m"(*(const uint8_t *)(line)))

/* -- tiles of 16-byte pieces ------------------------------------------------------------------------------------ */

/* Tiles whose lines are written close after one another; sums of a row are kept in registers for so long. */
enum { STRIP = 4, WEIGHED_STRIP = 32, SHORT = 512 };

/* Four rows x 64 bytes become four lines, one in each of four tiles; and back. */
static inline void quad(__m512i a, __m512i b, __m512i c, __m512i d, uint8_t *const to[4], int stream) {
  const __m512i ab = _mm512_shuffle_i64x2(a, b, 0x44), cd = _mm512_shuffle_i64x2(c, d, 0x44);
  const __m512i AB = _mm512_shuffle_i64x2(a, b, 0xEE), CD = _mm512_shuffle_i64x2(c, d, 0xEE);
  put(to[0], _mm512_shuffle_i64x2(ab, cd, 0x88), stream);
  put(to[1], _mm512_shuffle_i64x2(ab, cd, 0xDD), stream);
  put(to[2], _mm512_shuffle_i64x2(AB, CD, 0x88), stream);
  put(to[3], _mm512_shuffle_i64x2(AB, CD, 0xDD), stream);
}

/* Tiles [from, to) of four rows; `weighed`: both lanes of every row are summed on the way. The hardware follows so many
 * rows badly, so each line of the next group is asked for where the same line of this one is used. */
static inline __attribute__((always_inline)) void strip(const uint8_t *const *rows, const uint8_t *const *ahead,
                                                        int64_t column, uint8_t *dst, int64_t step, int64_t from,
                                                        int64_t to, int stream, const Aside *w, int weighed,
                                                        __m512i sums[8]) {
  const uint8_t *a = rows[0] + column, *b = rows[1] + column, *c = rows[2] + column, *d = rows[3] + column;
  for (int64_t i = from; i < to; i += 4) {
    const int64_t at = 16 * i;
    const __m512i v[4] = {get(a + at), get(b + at), get(c + at), get(d + at)};
    for (int r = 0; r < 4 && ahead; r++) ASK("t1", ahead[r] + column + at);
    uint8_t *const line = dst + i * step;
    quad(v[0], v[1], v[2], v[3], (uint8_t *[4]){line, line + step, line + 2 * step, line + 3 * step}, stream);
    if (!weighed) continue;
    const __m512i x = get(w->k0 + (column + at) / 4), y = get(w->k1 + (column + at) / 4);
    const __m512i odd_x = odd_words(x), odd_y = odd_words(y);
    for (int r = 0; r < 4; r++) {
      const __m512i odd = odd_words(v[r]);
      sums[2 * r] = weigh(sums[2 * r], v[r], odd, x, odd_x);
      sums[2 * r + 1] = weigh(sums[2 * r + 1], v[r], odd, y, odd_y);
    }
  }
}

/* Short pieces of long rows are asked for row by row, from the end of each: in rising order the hardware takes them for
 * a stream and fetches what lies between. Rows do not start on lines, so there is one line more. */
static void ask_for_short(const uint8_t *const *ahead, int64_t column, int64_t bytes) {
  for (int r = 0; r < 4; r++) {
    const uint8_t *const row = ahead[r] + column;
    ASK("t0", row + bytes - 1);
    switch ((bytes + 63) / 64) {
      case 8: ASK("t0", row + 448); /* fall through */
      case 7: ASK("t0", row + 384); /* fall through */
      case 6: ASK("t0", row + 320); /* fall through */
      case 5: ASK("t0", row + 256); /* fall through */
      case 4: ASK("t0", row + 192); /* fall through */
      case 3: ASK("t0", row + 128); /* fall through */
      case 2: ASK("t0", row + 64);  /* fall through */
      default: ASK("t0", row);
    }
  }
}

#ifdef WITH_AMX
/* Columns of 64 bytes of 16 rows, each also added to the sums of AMX. */
static void weighed_by_tiles(const uint8_t *const *rows, int64_t column, uint8_t *dst, int64_t step, int64_t tiles,
                             int stream, const Aside *w) {
  uint8_t line[2][TILE_ROWS * 64] __attribute__((aligned(64)));
  const int64_t pitch = rows[1] - rows[0];
  int even = 1; /* rows stand so that a tile is loaded from them */
  for (int r = 2; r < TILE_ROWS; r++) even &= rows[r] - rows[r - 1] == pitch;
  sp_tiles_begin();
  int64_t from = 0;
#define COLUMN(sum, rows_in, keys_in)                                                                                if (from < tiles) {                                                                                                  const int64_t at = column + 16 * from;                                                                             for (int r = 0; r < TILE_ROWS; r += 4)                                                                               strip(rows + r, w->ahead + r, column, dst + 16 * r, step, from, from + 4, stream, w, 0, NULL);                   for (int r = 0; r < TILE_ROWS && !even; r++) _mm512_store_si512((void *)(line[sum & 1] + 64 * r), get(rows[r] + at));     _tile_loadd(rows_in, even ? rows[0] + at : line[sum & 1], even ? pitch : 64);                                      _tile_loadd(keys_in, w->tiles + at / 64 * TILE_KEYS + at % 64 / 4 * 64, 64);                                       _tile_dpbuud(sum, rows_in, keys_in);                                                                               from += 4;                                                                                                       }
  while (from < tiles) {
    COLUMN(0, 4, 6)
    COLUMN(1, 5, 7)
    COLUMN(2, 4, 6)
    COLUMN(3, 5, 7)
  }
#undef COLUMN
  sp_tiles_take(w->row_key, w->acc);
}
#else /* nobody asks for it: `tiles` is NULL */
static void weighed_by_tiles(const uint8_t *const *rows, int64_t column, uint8_t *dst, int64_t step, int64_t tiles,
                             int stream, const Aside *w) {
  (void)rows, (void)column, (void)dst, (void)step, (void)tiles, (void)stream, (void)w;
}
#endif

static void tile16(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c,
                   const Aside *w) {
  const int weighed = w->k0 != NULL;
  const int stream = !w->cached && (((uintptr_t)dst | (uintptr_t)c->dst) & 63) == 0;
  const int64_t whole = c->count & ~(int64_t)3;
  const int is_short = 16 * c->count <= SHORT;
  const int64_t tiles = weighed || is_short ? WEIGHED_STRIP : STRIP;
  const int by_tiles = weighed && w->tiles && !is_short && p->group_rows == TILE_ROWS && 16 * whole <= TILE_PASS;
  if (by_tiles && stream)
    weighed_by_tiles(rows, column, dst, c->dst, whole, 1, w);
  else if (by_tiles)
    weighed_by_tiles(rows, column, dst, c->dst, whole, 0, w);
  for (int64_t from = by_tiles ? whole : 0; from < whole; from += tiles) {
    const int64_t to = whole - from < tiles ? whole : from + tiles;
    for (int32_t r = 0; r < p->group_rows; r += 4) {
      __m512i sums[8];
      for (int j = 0; j < 8; j++) sums[j] = _mm512_setzero_si512();
      const uint8_t *const *const ahead = is_short ? NULL : w->ahead + r;
      if (is_short) ask_for_short(w->ahead + r, column, 16 * c->count);
      if (weighed && stream)
        strip(rows + r, ahead, column, dst + 16 * r, c->dst, from, to, 1, w, 1, sums);
      else if (stream)
        strip(rows + r, ahead, column, dst + 16 * r, c->dst, from, to, 1, w, 0, sums);
      else if (weighed)
        strip(rows + r, ahead, column, dst + 16 * r, c->dst, from, to, 0, w, 1, sums);
      else
        strip(rows + r, ahead, column, dst + 16 * r, c->dst, from, to, 0, w, 0, sums);
      for (int j = 0; weighed && j < 8; j++) add_weighed(w->acc + 8 * (j & 1), sums[j], w->row_key[r + j / 2][j & 1]);
    }
  }
  for (int64_t i = whole; i < c->count; i++)
    for (int32_t r = 0; r < p->group_rows; r++) memcpy(dst + i * c->dst + 16 * r, rows[r] + column + 16 * i, 16);
  if (!weighed || whole == c->count) return;
  const int64_t at = column + 16 * whole;
  const uint8_t *rest[MOST_ROWS];
  for (int32_t r = 0; r < p->group_rows; r++) rest[r] = rows[r] + at;
  sp_sum_weights_avx512(rest, p->group_rows, 16 * (c->count - whole), w->k0 + at / 4, w->k1 + at / 4, w->row_key, w->acc);
}

int64_t sp_untile_avx512(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at) {
  const int64_t whole = count & ~(int64_t)3;
  for (int64_t i = 0; i < whole; i += 4, at += 64)
    for (int32_t r = 0; r < group; r += 4) {
      const uint8_t *const tile = src + i * step + 16 * r;
      quad(get(tile), get(tile + step), get(tile + 2 * step), get(tile + 3 * step),
           (uint8_t *[4]){rows[r] + at, rows[r + 1] + at, rows[r + 2] + at, rows[r + 3] + at}, 0);
    }
  return whole;
}

/* Rows follow one another, but a page may end in between, where the hardware stops reading ahead. */
static void run(const uint8_t *src, const uint8_t *ahead, uint8_t *dst, int64_t bytes, int cached) {
  if (bytes < 64 || ((uintptr_t)dst & 63) || (bytes & 63) || cached) {
    memcpy(dst, src, (size_t)bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += 64) {
    ASK("t1", ahead + i);
    put(dst + i, get(src + i), 1);
  }
}

/* The same, and both lanes of the row are summed on the way. */
static void run_weighed(const uint8_t *src, const uint8_t *ahead, uint8_t *dst, int64_t bytes, int64_t at, const Aside *w) {
  const uint32_t *const k0 = w->k0 + at / 4, *const k1 = w->k1 + at / 4;
  const int64_t whole = bytes & ~(int64_t)63;
  const int stream = !w->cached && ((uintptr_t)dst & 63) == 0;
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i < whole; i += 64) {
    const __m512i v = get(src + i), odd = odd_words(v), x = get(k0 + i / 4), y = get(k1 + i / 4);
    ASK("t1", ahead + i);
    put(dst + i, v, stream);
    sums[0] = weigh(sums[0], v, odd, x, odd_words(x));
    sums[1] = weigh(sums[1], v, odd, y, odd_words(y));
  }
  for (int j = 0; j < 2; j++) add_weighed(w->acc + 8 * j, sums[j], w->row_key[0][j]);
  if (whole == bytes) return;
  memcpy(dst + whole, src + whole, (size_t)(bytes - whole));
  const uint8_t *const rest[1] = {src + whole};
  sp_sum_weights_avx512(rest, 1, bytes - whole, k0 + whole / 4, k1 + whole / 4, w->row_key, w->acc);
}

/* -- lines: pieces of rows are gathered in a block, and every line of the tile is put together from it ---------------- */

enum { MOST_TILES = 8 };
enum stores { PLAIN = 0, LINE = 1, HALVES = 2 }; /* where they are; past the caches; the same for tiles of half lines */

#define GATHER(type)                                                                                          \
  for (const Part *q = p->piece, *end = q + p->pieces; q < end; q++) {                                         \
    const uint8_t *src = rows[q->row] + column + q->column;                                                    \
    const uint8_t *const same = ahead[q->row] + column + q->column;                                      \
    for (int64_t i = 0; i == 0 || i < tiles * next; i += next > 64 ? next : 64) ASK("t1", same + i);           \
    for (int t = 0; t < tiles; t++) memcpy(block + t * p->block + q->dst, src + t * next, sizeof(type));       \
  }

/* Two halves of a register from two places. */
static inline __m512i halves(const uint8_t *low, const uint8_t *high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                            _mm256_loadu_si256((const __m256i *)high), 1);
}

/* Pieces of 8 bytes and more: where they are for the first tile, and where those of the next group are. */
enum { MOST_PIECES = MOST_BLOCK / 8 };
typedef struct { const uint8_t *of[MOST_PIECES], *ahead[MOST_PIECES]; } Pieces;

/* Eight pieces of 8 bytes for eight tiles that stand side by side in their rows: 64 bytes a row, turned in registers.
 * Piece by piece they would be eight loads and eight stores a line, and 64-byte loads of bytes that wait to be stored. */
static inline void turn(const Pieces *found, int64_t pieces, int64_t at, uint8_t *block, int64_t pitch) {
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int64_t q = 0; q < pieces; q += 8) {
    const uint8_t *const *const src = found->of + q;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) ASK("t1", found->ahead[q + i] + at);
#pragma GCC unroll 2
    for (int64_t h = at; h < at + 64; h += 32) {
      const __m512i a = halves(src[0] + h, src[4] + h), b = halves(src[1] + h, src[5] + h);
      const __m512i c = halves(src[2] + h, src[6] + h), d = halves(src[3] + h, src[7] + h);
      const __m512i ab = _mm512_unpacklo_epi64(a, b), AB = _mm512_unpackhi_epi64(a, b);
      const __m512i cd = _mm512_unpacklo_epi64(c, d), CD = _mm512_unpackhi_epi64(c, d);
      uint8_t *const to = block + (h - at) / 8 * pitch + 8 * q;
      put(to, _mm512_permutex2var_epi64(ab, even, cd), 0);
      put(to + pitch, _mm512_permutex2var_epi64(AB, even, CD), 0);
      put(to + 2 * pitch, _mm512_permutex2var_epi64(ab, odd, cd), 0);
      put(to + 3 * pitch, _mm512_permutex2var_epi64(AB, odd, CD), 0);
    }
  }
}

static inline void ask_for_pieces(const Pieces *found, int64_t pieces, int64_t at, int64_t next, int tiles) {
  for (int64_t q = 0; q < pieces; q++)
    for (int64_t i = 0; i == 0 || i < tiles * next; i += next > 64 ? next : 64) ASK("t1", found->ahead[q] + at + i);
}

/* Each byte of a line takes 8 bits from any bit of its 64 on, where `keep` says so. */
static inline __m512i again(__m512i v, __m512i control, __m512i keep) {
  return _mm512_ternarylogic_epi64(v, _mm512_multishift_epi64_epi8(control, v), keep, 0xD8); /* keep ? moved : v */
}

/* Pieces of 64 bytes of one row, each folded; with `sums` both lanes of the row are summed on the way. */
static inline __attribute__((always_inline)) void fold(const Program *p, const Pieces *found, int64_t at, int64_t next,
                                                       uint8_t *block, int tiles, const Aside *w, const uint8_t *row,
                                                       __m512i sums[2]) {
  const __m512i index = get(p->masks + p->fold_index), control = get(p->masks + p->fold_control);
  const __m512i keep = get(p->masks + p->fold_keep);
  for (int t = 0; t < tiles; t++, at += next, block += p->block)
    for (int64_t q = 0; q < p->pieces; q++) {
      const __m512i v = get(found->of[q] + at);
      ASK("t1", found->ahead[q] + at);
      put(block + 64 * q, again(_mm512_permutexvar_epi8(index, v), control, keep), 0);
      if (!sums) continue;
      const int64_t word = (found->of[q] + at - row) / 4;
      const __m512i odd = odd_words(v), x = get(w->k0 + word), y = get(w->k1 + word);
      sums[0] = weigh(sums[0], v, odd, x, odd_words(x));
      sums[1] = weigh(sums[1], v, odd, y, odd_words(y));
    }
}

/* Two pieces of 32 bytes are a line, whose bytes are folded where they are. */
static inline __attribute__((always_inline)) void fold_pairs(const Program *p, const Pieces *found, int64_t at,
                                                             int64_t next, uint8_t *block, int tiles) {
  const __m512i control = get(p->masks + p->fold_control), keep = get(p->masks + p->fold_keep);
  ask_for_pieces(found, p->pieces, at, next, tiles);
  for (int t = 0; t < tiles; t++, at += next, block += p->block)
    for (int64_t q = 0; q < p->pieces; q += 2)
      put(block + 32 * q, again(halves(found->of[q] + at, found->of[q + 1] + at), control, keep), 0);
}

/* Pieces of at least 32 bytes: a line of the block is stored at once. */
static inline __attribute__((always_inline)) void join(const Pieces *found, int64_t pieces, int64_t word, int64_t at,
                                                       int64_t next, uint8_t *block, int64_t pitch, int tiles) {
  ask_for_pieces(found, pieces, at, next, tiles);
  for (int t = 0; t < tiles; t++, at += next, block += pitch)
    for (int64_t q = 0, dst = 0; q < pieces; dst += 64, q += word == 32 ? 2 : 1)
      put(block + dst, word == 32 ? halves(found->of[q] + at, found->of[q + 1] + at) : get(found->of[q] + at), 0);
}

static inline __attribute__((always_inline)) void gather(const Program *p, const uint8_t *const *rows,
                                                         const uint8_t *const *ahead, const Pieces *found,
                                                         int64_t column, int64_t at, int64_t next, uint8_t *block,
                                                         int tiles, const Aside *w, __m512i sums[2]) {
  if (p->word == 8 && next == 8 && tiles == 8 && !(p->pieces & 7)) {
    turn(found, p->pieces, at, block, p->block);
    return;
  }
  if (p->fold_index) {
    if (w->k0)
      fold(p, found, at, next, block, tiles, w, rows[0], sums);
    else
      fold(p, found, at, next, block, tiles, w, rows[0], NULL);
    return;
  }
  if (p->fold_control) {
    fold_pairs(p, found, at, next, block, tiles);
    return;
  }
  if (p->word == 64 || (p->word == 32 && !(p->pieces & 1))) {
    join(found, p->pieces, p->word, at, next, block, p->block, tiles);
    return;
  }
  column += at;
  switch (p->word) {
    case 1: GATHER(uint8_t) break;
    case 2: GATHER(uint16_t) break;
    case 4: GATHER(uint32_t) break;
    case 8: GATHER(uint64_t) break;
    case 16: GATHER(__m128i) break;
    default: GATHER(__m256i)
  }
}

static inline __attribute__((always_inline)) __m512i pick(const uint8_t *from, __m512i index, int wide) {
  return wide ? _mm512_permutex2var_epi8(get(from), index, get(from + 64)) : _mm512_permutexvar_epi8(index, get(from));
}

static inline __m512i twice(const uint8_t *from) {
  return _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i *)from));
}

/* Terms of one line stand together. A plain term brings bytes; one with `control` or `matrix` also moves bits. */
static inline __attribute__((always_inline)) void lines(const Program *p, const uint8_t *block, uint8_t *dst,
                                                        int64_t step, int tiles, int stream) {
  const Term *term = p->term, *const end = term + p->terms;
  const uint8_t *const vectors = p->masks;
  const int64_t pitch = p->block;
  while (term < end) {
    const Term *const line = term;
    __m512i v[MOST_TILES];
    for (int t = 0; t < tiles; t++) v[t] = _mm512_setzero_si512();
    for (; term < end && term->dst == line->dst; term++) {
      const __m512i index = get(vectors + term->index);
      const uint8_t *from = block + term->window;
      if (term->window < 0) {
        const __m512i control = get(vectors + term->control), keep = get(vectors + term->keep);
        for (int t = 0; t < tiles; t++) v[t] = again(v[t], control, keep);
      } else if (term->wide == TWICE) {
        const __m512i matrix = get(vectors + term->matrix);
        for (int t = 0; t < tiles; t++)
          v[t] = _mm512_xor_si512(_mm512_gf2p8affine_epi64_epi8(twice(from + t * pitch), matrix, 0),
                                  _mm512_gf2p8affine_epi64_epi8(twice(from + t * pitch + 32), index, 0));
      } else if (term->matrix) {
        const __m512i matrix = get(vectors + term->matrix);
        for (int t = 0; t < tiles; t++) {
          const __m512i moved = pick(from + t * pitch, index, term->wide);
          v[t] = _mm512_xor_si512(v[t], _mm512_gf2p8affine_epi64_epi8(moved, matrix, 0));
        }
      } else if (term->control) {
        const __m512i control = get(vectors + term->control), keep = get(vectors + term->keep);
        for (int t = 0; t < tiles; t++) {
          const __m512i moved = _mm512_multishift_epi64_epi8(control, pick(from + t * pitch, index, term->wide));
          v[t] = _mm512_ternarylogic_epi64(v[t], moved, keep, 0xF8); /* v | (moved & keep) */
        }
      } else if (term->wide) {
        for (int t = 0; t < tiles; t++) v[t] = _mm512_mask_mov_epi8(v[t], term->in, pick(from + t * pitch, index, 1));
      } else {
        for (int t = 0; t < tiles; t++)
          v[t] = _mm512_mask_permutexvar_epi8(v[t], term->in, index, get(from + t * pitch));
      }
    }
    if (line->order) {
      const __m512i order = get(vectors + line->order);
      for (int t = 0; t < tiles; t++) v[t] = _mm512_permutexvar_epi8(order, v[t]);
    }
    for (int t = 0; t < tiles; t++) {
      uint8_t *to = dst + t * step + line->dst;
      if (stream == LINE)
        put(to, v[t], 1);
      else if (stream)
        put_halves(to, v[t], line->store >> 32 != 0);
      else
        _mm512_mask_storeu_epi8(to, line->store, v[t]);
    }
  }
}

static void assemble(const Program *p, const uint8_t *const *rows, int64_t column, uint8_t *dst, const ColumnLoop *c,
                     const Aside *w) {
  uint8_t block[MOST_TILES * MOST_BLOCK] __attribute__((aligned(64)));
  const uintptr_t together = p->whole_lines == HALVES ? 32 : 64;
  const int fits = (((uintptr_t)dst | (uintptr_t)c->dst) & (together - 1)) == 0;
  const int64_t stream = fits && !w->cached ? p->whole_lines : PLAIN;
  Pieces found;
  for (int64_t q = 0; q < p->pieces && p->word >= 8; q++) {
    const Part *piece = p->piece + q;
    found.of[q] = rows[piece->row] + column + piece->column;
    found.ahead[q] = w->ahead[piece->row] + column + piece->column;
  }
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
#define TILES(tiles, stores)                                                        \
  for (; i + (tiles) <= c->count; i += (tiles)) {                                   \
    gather(p, rows, w->ahead, &found, column, i * c->src, c->src, block, tiles, w, sums); \
    lines(p, block, dst + i * c->dst, c->dst, tiles, stores);                       \
  }
  if (stream == LINE) {
    TILES(8, LINE)

    TILES(4, LINE)

    TILES(1, LINE)
  } else if (stream == PLAIN) {
    TILES(8, PLAIN)

    TILES(4, PLAIN)

    TILES(1, PLAIN)
  } else { /* halves of few lines at a time, so that lines leave as a whole */
    TILES(2, HALVES)

    TILES(1, HALVES)
  }
#undef TILES
  for (int j = 0; w->k0 && j < 2; j++) add_weighed(w->acc + 8 * j, sums[j], w->row_key[0][j]);
}

static void loop(const Program *p, int32_t level, const uint8_t *const *rows, int64_t column, uint8_t *dst,
                 const Aside *w) {
  const ColumnLoop *c = p->columns + level;
  if (level + 1 < p->column_loops) {
    for (int64_t i = 0; i < c->count; i++) loop(p, level + 1, rows, column + i * c->src, dst + i * c->dst, w);
  } else if (p->kernel == TILE16) {
    tile16(p, rows, column, dst, c, w);
  } else if (p->kernel == RUN) {
    for (int64_t i = 0; i < c->count; i++) {
      const int64_t at = column + i * c->src;
      if (w->k0)
        run_weighed(rows[0] + at, w->ahead[0] + at, dst + i * c->dst, p->tile_bytes, at, w);
      else
        run(rows[0] + at, w->ahead[0] + at, dst + i * c->dst, p->tile_bytes, w->cached);
    }
  } else {
    assemble(p, rows, column, dst, c, w);
  }
}

int sp_move_avx512(const Program *p, const uint8_t *const *rows, uint8_t *dst, const Aside *w) {
  if (p->kernel != RUN && p->kernel != TILE16 && p->kernel != LINES) return 0;
  loop(p, 0, rows, 0, dst, w);
  return 1;
}
TARGET_END
#else
int64_t sp_untile_avx512(const uint8_t *src, int64_t step, int64_t count, uint8_t *const *rows, int32_t group, int64_t at) {
  (void)src, (void)step, (void)count, (void)rows, (void)group, (void)at;
  return 0;
}

int sp_move_avx512(const Program *p, const uint8_t *const *rows, uint8_t *dst, const Aside *aside) {
  (void)p, (void)rows, (void)dst, (void)aside;
  return 0;
}
#endif
