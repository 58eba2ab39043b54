/* AVX2 tiles of the precise modes: int16 and float32 activations. Included by avx2.c. */

typedef struct {
    __m256i w[16][2]; /* pairs of int16 per row, in the order of sp_block16 */
    __m256 scale[2];
} tile16;

/* One word of packed tiles -> the four registers of int16 pairs that it holds: even k twice, odd k twice. */
INLINE void int16_pairs(const uint8_t *at, __m256i *w) {
    const __m256i r = load(at), table = signed_table();
    const __m256i lo = _mm256_shuffle_epi8(table, low_nibbles(r)), hi = _mm256_shuffle_epi8(table, high_nibbles(r));
    w[0] = _mm256_srai_epi16(_mm256_slli_epi16(lo, 8), 8);
    w[1] = _mm256_srai_epi16(lo, 8);
    w[2] = _mm256_srai_epi16(_mm256_slli_epi16(hi, 8), 8);
    w[3] = _mm256_srai_epi16(hi, 8);
}

static void unpack16(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    tile16 *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int half = 0; half < 2; half++) {
            UNROLL for (int j = 0; j < 4; j++) {
                __m256i w[4];
                int16_pairs(pw + 64 * j + 32 * half, w);
                UNROLL for (int i = 0; i < 4; i++) tile->w[(i >> 1) * 8 + 2 * j + (i & 1)][half] = w[i];
            }
            tile->scale[half] = row_scales(ps + 8 * half);
        }
    }
}

INLINE void few16_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                       float *out, int64_t stride) {
    __m256 acc[2][2];
    UNROLL for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int j = 0; j < 4; j++) PREFETCH_AHEAD(pw + 64 * j);
        UNROLL for (int half = 0; half < 2; half++) {
            __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            UNROLL for (int j = 0; j < 4; j++) {
                __m256i w[4];
                int16_pairs(pw + 64 * j + 32 * half, w);
                UNROLL for (int i = 0; i < 4; i++) {
                    const int at = 2 * ((i >> 1) * 8 + 2 * j + (i & 1));
                    UNROLL for (int t = 0; t < T; t++) {
                        const sp_block16 *x = (const sp_block16 *)(const void *)rows[t] + b;
                        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(w[i], word(x->q + at)));
                    }
                }
            }
            const __m256 row_scale = row_scales(ps + 8 * half);
            UNROLL for (int t = 0; t < T; t++) {
                const __m256 scale = _mm256_set1_ps(((const sp_block16 *)(const void *)rows[t])[b].scale);
                acc[t][half] = accumulate(sum[t], scale, row_scale, acc[t][half]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * stride + 8 * half, acc[t][half]);
    }
}

INLINE void many16_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *out) {
    const tile16 *tile = scratch;
    __m256 acc[4][2];
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) acc[t][half] = _mm256_loadu_ps(out + t * ROWS + 8 * half);
    }
    for (int64_t b = 0; b < blocks; b++, tile++) {
        UNROLL for (int t = 0; t < T; t++) {
            const sp_block16 *x = (const sp_block16 *)(const void *)rows[t] + b;
            __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            UNROLL for (int j = 0; j < 16; j++) {
                const __m256i a = word(x->q + 2 * j);
                sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(a, tile->w[j][0]));
                sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(a, tile->w[j][1]));
            }
            const __m256 scale = _mm256_set1_ps(x->scale);
            UNROLL for (int half = 0; half < 2; half++) {
                acc[t][half] = accumulate(sum[half], scale, tile->scale[half], acc[t][half]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * ROWS + 8 * half, acc[t][half]);
    }
}

typedef struct {
    __m256 w[BLOCK][2];
    __m256 scale[2];
} tile_float;

/* Column k of a word's eight: the nibble's low three bits choose the magnitude, its top bit is the sign. */
INLINE __m256 float_column(__m256i r, const int k) {
    const __m256 table = _mm256_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6);
    const __m256 magnitude = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(r, 4 * k));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(r, 28 - 4 * k), _mm256_set1_epi32((int)0x80000000u));
    return _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign));
}

static void unpack_float(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch) {
    tile_float *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++, pw += TILE_BYTES, ps += ROWS) {
        UNROLL for (int half = 0; half < 2; half++) {
            UNROLL for (int j = 0; j < 4; j++) {
                const __m256i r = load(pw + 64 * j + 32 * half);
                UNROLL for (int k = 0; k < 8; k++) tile->w[8 * j + k][half] = float_column(r, k);
            }
            tile->scale[half] = row_scales(ps + 8 * half);
        }
    }
}

INLINE void few_float_tile(const int T, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                           const uint8_t *const *rows, float *out, int64_t stride) {
    __m256 acc[2][2];
    UNROLL for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, pw += TILE_BYTES, ps += ROWS) {
        __m256 part[2][2];
        UNROLL for (int t = 0; t < T; t++) part[t][0] = part[t][1] = _mm256_setzero_ps();
        UNROLL for (int j = 0; j < 4; j++) {
            const __m256i r[2] = {load(pw + 64 * j), load(pw + 64 * j + 32)};
            PREFETCH_AHEAD(pw + 64 * j);
            UNROLL for (int k = 0; k < 8; k++) {
                const __m256 w[2] = {float_column(r[0], k), float_column(r[1], k)};
                UNROLL for (int t = 0; t < T; t++) {
                    const __m256 a = _mm256_set1_ps(((const float *)(const void *)rows[t])[b * BLOCK + 8 * j + k]);
                    UNROLL for (int half = 0; half < 2; half++) {
                        part[t][half] = _mm256_fmadd_ps(w[half], a, part[t][half]);
                    }
                }
            }
        }
        UNROLL for (int half = 0; half < 2; half++) {
            const __m256 row_scale = row_scales(ps + 8 * half);
            UNROLL for (int t = 0; t < T; t++) {
                acc[t][half] = _mm256_fmadd_ps(part[t][half], row_scale, acc[t][half]);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        UNROLL for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + t * stride + 8 * half, acc[t][half]);
    }
}

INLINE void many_float_tile(const int T, const void *scratch, int64_t blocks, const uint8_t *const *rows,
                            float *out) {
    const tile_float *tile = scratch;
    for (int64_t b = 0; b < blocks; b++, tile++) {
        __m256 part[4][2];
        UNROLL for (int t = 0; t < T; t++) part[t][0] = part[t][1] = _mm256_setzero_ps();
        for (int k = 0; k < BLOCK; k++) {
            UNROLL for (int t = 0; t < T; t++) {
                const __m256 a = _mm256_set1_ps(((const float *)(const void *)rows[t])[b * BLOCK + k]);
                part[t][0] = _mm256_fmadd_ps(tile->w[k][0], a, part[t][0]);
                part[t][1] = _mm256_fmadd_ps(tile->w[k][1], a, part[t][1]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            UNROLL for (int half = 0; half < 2; half++) {
                float *to = out + t * ROWS + 8 * half;
                _mm256_storeu_ps(to, _mm256_fmadd_ps(part[t][half], tile->scale[half], _mm256_loadu_ps(to)));
            }
        }
    }
}
