/* Row sums of weights with AMX: 16 rows times 64 bytes of them are one instruction, with all bytes of both lanes' keys.
 *
 * Keys are taken byte by byte. A product of two bytes counts with its power of 256, and a column of sums is held for each
 * power (Batch.weight_tiles): exact, as the sums of one pass fit into 32 bits. */
#define _GNU_SOURCE
#include <unistd.h>

#include "engine.h"

#ifdef WITH_AMX
#include <immintrin.h>
#include <sys/syscall.h>
TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-int8")
#include "avx512.h"

enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* of arch_prctl */
enum { LINE = 64 };

int sp_has_tiles(void) {
  static int known; /* 1: yes, -1: no; asking twice does no harm */
  if (known) return known > 0;
  unsigned a = 7, b, c = 0, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const int there = (d >> 24 & 3) == 3; /* AMX-TILE, AMX-INT8 */
  known = there && !syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) ? 1 : -1;
  return known > 0;
}

static __thread int configured;

static void configure(void) {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {1, 0, {0}, {0}, {0}};
  for (int i = 0; i < 8; i++) shape.bytes[i] = LINE, shape.rows[i] = TILE_ROWS;
  TILES_READ_MEMORY;
  _tile_loadconfig(&shape);
  configured = 1;
}

void sp_tiles_end(void) {
  if (configured) _tile_release();
  configured = 0;
}

void sp_tiles_begin(void) {
  if (!configured) configure();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* 16 sums of each row, as eight 64-bit sums a lane, times the rows' keys. */
void sp_tiles_take(uint64_t (*row_key)[2], uint64_t *acc) {
  uint32_t sums[4 * 256] __attribute__((aligned(64)));
  const uint32_t *held = sums;
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + 256, LINE);
  _tile_stored(2, sums + 512, LINE);
  _tile_stored(3, sums + 768, LINE);
  const __m512i power = _mm512_setr_epi64(0, 8, 16, 24, 32, 40, 48, 56);
  __m512i sum[2] = {get((uint8_t *)acc), get((uint8_t *)(acc + 8))};
  for (int r = 0; r < TILE_ROWS; r++, held += 16) {
    __m512i all = get((const uint8_t *)held);
    for (int i = 1; i < 4; i++) all = _mm512_add_epi32(all, get((const uint8_t *)(held + 256 * i)));
    const __m256i lane[2] = {_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1)};
    for (int l = 0; l < 2; l++) {
      __m512i v = _mm512_sllv_epi64(_mm512_cvtepu32_epi64(lane[l]), power);
      v = _mm512_mullo_epi64(v, _mm512_set1_epi64((long long)row_key[r][l]));
      sum[l] = _mm512_add_epi64(sum[l], v);
    }
  }
  _mm512_storeu_si512(acc, sum[0]);
  _mm512_storeu_si512(acc + 8, sum[1]);
}

TARGET_END
#else
int sp_has_tiles(void) { return 0; }
void sp_tiles_begin(void) {}
void sp_tiles_take(uint64_t (*row_key)[2], uint64_t *acc) {
  (void)row_key, (void)acc;
}
void sp_tiles_end(void) {}
#endif
