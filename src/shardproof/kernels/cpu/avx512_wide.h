/* AVX-512 tiles of the precise modes: int16 and float32 activations. Included by avx512.h. */

typedef struct {
    __m512i w[16]; /* pairs of int16 per row, in the order of sp_block16 */
    __m512 scale;
} tile16;

/* One word of packed tiles -> the four registers of int16 pairs that it holds: even k twice, odd k twice. */
INLINE void int16_pairs(const uint8_t *at, __m512i *w) {
    const __m512i r = _mm512_loadu_si512(at), table = signed_table();
    const __m512i lo = _mm512_shuffle_epi8(table, low_nibbles(r)), hi = _mm512_shuffle_epi8(table, high_nibbles(r));
    w[0] = _mm512_srai_epi16(_mm512_slli_epi16(lo, 8), 8);
    w[1] = _mm512_srai_epi16(lo, 8);
    w[2] = _mm512_srai_epi16(_mm512_slli_epi16(hi, 8), 8);
    w[3] = _mm512_srai_epi16(hi, 8);
}

static void unpack16(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    tile16 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i w[4];
            int16_pairs(pw + 64 * j, w);
            UNROLL for (int i = 0; i < 4; i++) tile->w[(i >> 1) * 8 + 2 * j + (i & 1)] = w[i];
        }
        tile->scale = row_scales(ps);
    }
}

INLINE __m512i dot_pairs(__m512i sum, __m512i w, __m512i a) {
#if VNNI
    return _mm512_dpwssd_epi32(sum, w, a);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, a));
#endif
}

INLINE void few16_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                       float *out, int64_t stride) {
    __m512 acc[4];
    const sp_block16 *a[4];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_setzero_ps();
        a[t] = (const sp_block16 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        __m512i sum[4];
        UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i w[4];
            PREFETCH_AHEAD(pw + 64 * j);
            int16_pairs(pw + 64 * j, w);
            UNROLL for (int i = 0; i < 4; i++) {
                const int at = 2 * ((i >> 1) * 8 + 2 * j + (i & 1));
                UNROLL for (int t = 0; t < T; t++) sum[t] = dot_pairs(sum[t], w[i], word(a[t][b].q + at));
            }
        }
        const __m512 scale = row_scales(ps);
        UNROLL for (int t = 0; t < T; t++) acc[t] = accumulate(sum[t], a[t][b].scale, scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * stride, acc[t]);
}

INLINE void many16_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile16 *tile = scratch;
    __m512 acc[8];
    const sp_block16 *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const sp_block16 *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512i sum[8];
        UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
        UNROLL for (int j = 0; j < 16; j++) {
            const __m512i w = tile->w[j];
            UNROLL for (int t = 0; t < T; t++) sum[t] = dot_pairs(sum[t], w, word(a[t][b].q + 2 * j));
        }
        UNROLL for (int t = 0; t < T; t++) acc[t] = accumulate(sum[t], a[t][b].scale, tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

typedef struct {
    __m512 w[BLOCK];
    __m512 scale;
} tile_float;

INLINE __m512 float_table(void) {
    return _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, 0, -.5f, -1, -1.5f, -2, -3, -4, -6);
}

static void unpack_float(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    const __m512 table = float_table();
    tile_float *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512i r = _mm512_loadu_si512(pw + 64 * j);
            UNROLL for (int k = 0; k < 8; k++) {
                tile->w[8 * j + k] = _mm512_permutexvar_ps(_mm512_srli_epi32(r, 4 * (unsigned)k), table);
            }
        }
        tile->scale = row_scales(ps);
    }
}

INLINE void many_float_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows,
                            float *out) {
    const tile_float *tile = scratch;
    __m512 acc[8];
    const float *a[8];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_loadu_ps(out + t * ROWS);
        a[t] = (const float *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m512 part[8];
        UNROLL for (int t = 0; t < T; t++) part[t] = _mm512_setzero_ps();
        _Pragma("GCC unroll 32") for (int k = 0; k < BLOCK; k++) {
            UNROLL for (int t = 0; t < T; t++) {
                part[t] = _mm512_fmadd_ps(tile->w[k], _mm512_set1_ps(a[t][b * BLOCK + k]), part[t]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) acc[t] = _mm512_fmadd_ps(part[t], tile->scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * ROWS, acc[t]);
}

INLINE void few_float_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                           const uint8_t *const *rows, float *out, int64_t stride) {
    const __m512 table = float_table();
    __m512 acc[4];
    const float *a[4];
    UNROLL for (int t = 0; t < T; t++) {
        acc[t] = _mm512_setzero_ps();
        a[t] = (const float *)(const void *)rows[t];
    }
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        __m512 part[4];
        UNROLL for (int t = 0; t < T; t++) part[t] = _mm512_setzero_ps();
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512i r = _mm512_loadu_si512(pw + 64 * j);
            PREFETCH_AHEAD(pw + 64 * j);
            UNROLL for (int k = 0; k < 8; k++) {
                const __m512 w = _mm512_permutexvar_ps(_mm512_srli_epi32(r, 4 * (unsigned)k), table);
                UNROLL for (int t = 0; t < T; t++) {
                    part[t] = _mm512_fmadd_ps(w, _mm512_set1_ps(a[t][b * BLOCK + 8 * j + k]), part[t]);
                }
            }
        }
        const __m512 scale = row_scales(ps);
        UNROLL for (int t = 0; t < T; t++) acc[t] = _mm512_fmadd_ps(part[t], scale, acc[t]);
    }
    UNROLL for (int t = 0; t < T; t++) _mm512_storeu_ps(out + t * stride, acc[t]);
}
