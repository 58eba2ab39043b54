/* The stages of the layer, compiled once per instruction set after its tiles.
 * Needs: VARIANT (symbol), VARIANT_NAME, and per precision P in 8, 16, F: UNPACK_P, MANY_P, WIDTH_P (tokens of one
 * tile at most), CHUNK_P (blocks in scratch); optionally FEW_P with FEW_LIMIT_P (tokens that it serves) and
 * FEW_WIDTH_P (tokens of one tile), and FIRST_P, which is UNPACK_P and MANY_P of the first tokens in one. */

typedef void unpack_fn(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch);
typedef void many_fn(int tokens, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *acc);
typedef void first_fn(int tokens, const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch,
                      const uint8_t *const *rows, float *acc);
typedef void few_fn(int tokens, int64_t groups, const uint8_t *pw, const uint8_t *ps, int64_t blocks,
                    const uint8_t *const *rows, float *out);
typedef struct {
    few_fn *few; /* straight from packed bytes; overwrites out[tokens][groups][16] */
    int few_limit, few_width;
    unpack_fn *unpack; /* tiles -> scratch, `chunk` blocks at most */
    many_fn *many;     /* scratch x tokens, added to acc */
    first_fn *first;   /* both at once: storing what is decoded costs nothing beside products */
    int width;
    int64_t chunk;
} tile_plan;

#ifndef FEW_8
#define FEW_8 NULL
#define FEW_LIMIT_8 0
#define FEW_WIDTH_8 1
#endif
#ifndef FEW_16
#define FEW_16 NULL
#define FEW_LIMIT_16 0
#define FEW_WIDTH_16 1
#endif
#ifndef FEW_F
#define FEW_F NULL
#define FEW_LIMIT_F 0
#define FEW_WIDTH_F 1
#endif

#ifndef FIRST_8
#define FIRST_8 NULL
#endif

static const tile_plan plans[SP_PRECISIONS] = {
    {FEW_8, FEW_LIMIT_8, FEW_WIDTH_8, UNPACK_8, MANY_8, FIRST_8, WIDTH_8, CHUNK_8},
    {FEW_16, FEW_LIMIT_16, FEW_WIDTH_16, UNPACK_16, MANY_16, NULL, WIDTH_16, CHUNK_16},
    {FEW_F, FEW_LIMIT_F, FEW_WIDTH_F, UNPACK_F, MANY_F, NULL, WIDTH_F, CHUNK_F},
};

/* Tokens of the next tile of `left`, so that tiles are of even size (9 = 5 + 4, not 8 + 1). */
static inline int next_tile(int left, int width) {
    const int tiles = (left + width - 1) / width;
    return (left + tiles - 1) / tiles;
}

/* acc[n][16] = one 16-row group times n tokens. For more than a few tokens the group is decoded in chunks of K
 * that stay in the first-level cache while all tokens pass. */
static void group_product(int precision, const uint8_t *pw, const uint8_t *ps, int64_t blocks, int n, sp_slot *slot) {
    const tile_plan *plan = &plans[precision];
    if (n <= plan->few_limit) {
        for (int t = 0, width; t < n; t += width) {
            width = next_tile(n - t, plan->few_width);
            plan->few(width, 1, pw, ps, blocks, slot->rows + t, slot->acc + t * ROWS);
        }
        return;
    }
    const int64_t block_bytes = sp_block_bytes(precision);
    memset(slot->acc, 0, (size_t)n * ROWS * sizeof(float));
    for (int64_t b = 0; b < blocks; b += plan->chunk) {
        const int64_t count = blocks - b < plan->chunk ? blocks - b : plan->chunk;
        const uint8_t *weights = pw + b * TILE_BYTES, *scales = ps + b * ROWS;
        if (!plan->first) plan->unpack(weights, scales, count, slot->scratch);
        for (int t = 0, width; t < n; t += width) {
            const uint8_t *rows[TOKEN_BLOCK];
            width = next_tile(n - t, plan->width);
            for (int j = 0; j < width; j++) rows[j] = slot->rows[t + j] + b * block_bytes;
            if (t == 0 && plan->first) {
                plan->first(width, weights, scales, count, slot->scratch, rows, slot->acc);
            } else {
                plan->many(width, slot->scratch, count, rows, slot->acc + t * ROWS);
            }
        }
    }
}

/* Groups that one call of run_product takes: several where one tile holds all n tokens, and then their sums fit. */
static inline int64_t groups_at_once(int precision, int n, int64_t left) {
    const int64_t most = n <= plans[precision].few_limit && n <= plans[precision].few_width ? TOKEN_BLOCK / n : 1;
    return left < most ? left : most;
}

/* acc[n][groups][16]: `groups` as groups_at_once says. */
static void run_product(int precision, const uint8_t *pw, const uint8_t *ps, int64_t blocks, int n, int64_t groups,
                        sp_slot *slot) {
    if (groups == 1) {
        group_product(precision, pw, ps, blocks, n, slot);
    } else {
        plans[precision].few(n, groups, pw, ps, blocks, slot->rows, slot->acc);
    }
}

/* How many tokens of `left` the next token block takes, so that blocks are of even size. */
static inline int next_tokens(int64_t left) { return next_tile((int)left, TOKEN_BLOCK); }

/* gate and up sums (+ bias) of `parts` times eight columns of h for n tokens -> slot->hidden[token][8 * part ...]. */
static void activate_parts(const sp_layer *layer, int64_t expert, int64_t group, int part, int parts, int n,
                           sp_slot *slot) {
    float gate_bias[BLOCK] = {0}, up_bias[BLOCK] = {0}, result[TOKEN_BLOCK * 8];
    const int columns = parts * 8;
    if (layer->b13) {
        const float *bias = layer->b13 + expert * 2 * layer->inter + group * 8;
        memcpy(gate_bias, bias, (size_t)columns * sizeof *bias);
        memcpy(up_bias, bias + layer->inter, (size_t)columns * sizeof *bias);
    }
    for (int t = 0; t < n; t++) {
        for (int c = 0; c < columns; c += 8) {
            const float *sums = slot->acc + t * 2 * columns + 2 * c;
            for (int r = 0; r < 8; r++) {
                slot->gate[t * columns + c + r] = sums[r] + gate_bias[c + r];
                slot->up[t * columns + c + r] = sums[8 + r] + up_bias[c + r];
            }
        }
    }
    activate(layer, slot->gate, slot->up, result, (int64_t)n * columns);
    for (int t = 0; t < n; t++) {
        memcpy(slot->hidden + t * BLOCK + part * 8, result + t * columns, (size_t)columns * sizeof(float));
    }
}

/* Item = (active expert, block of 32 columns of h): w13, activation, routing weight, requantisation. */
static void stage_gate_up(const sp_job *job, int64_t item, sp_slot *slot) {
    const sp_layer *layer = job->layer;
    const int64_t h_blocks = layer->inter / BLOCK, x_blocks = layer->hidden / BLOCK;
    const int64_t index = item / h_blocks, block = item % h_blocks, expert = job->expert_of[index];
    const int64_t groups = layer->inter / 8, end = job->begin[index + 1];
    for (int64_t pair = job->begin[index]; pair < end;) {
        const int n = next_tokens(end - pair);
        for (int t = 0; t < n; t++) slot->rows[t] = job->x_rows + job->token_of[pair + t] * job->x_stride;
        for (int part = 0, parts; part < 4; part += parts) {
            const int64_t group = block * 4 + part, at = (expert * groups + group) * x_blocks;
            const uint8_t *weights = layer->w13 + at * TILE_BYTES, *scales = layer->s13 + at * ROWS;
            parts = (int)groups_at_once(layer->precision, n, 4 - part);
            run_product(layer->precision, weights, scales, x_blocks, n, parts, slot);
            activate_parts(layer, expert, group, part, parts, n, slot);
        }
        for (int t = 0; t < n; t++, pair++) {
            float *h = slot->hidden + t * BLOCK;
            if (layer->weight_before_w2) {
                for (int i = 0; i < BLOCK; i++) h[i] *= job->weight_of[pair];
            }
            uint8_t *to = job->h_rows + pair * job->h_stride + block * sp_block_bytes(layer->precision);
            quantise_block(layer->precision, h, to);
        }
    }
}

/* Adds n pairs' results (+ bias, times the routing weight unless it was applied before) to their tokens' sums. */
static void combine(const sp_job *job, int64_t expert, int64_t group, int64_t groups, int64_t pair, int n,
                    const sp_slot *slot, float *sums, int64_t width) {
    const sp_layer *layer = job->layer;
    const float *bias = layer->b2 ? layer->b2 + expert * layer->hidden + group * ROWS : NULL;
    for (int t = 0; t < n; t++) {
        float *restrict to = sums + job->token_of[pair + t] * width;
        const float *restrict from = slot->acc + t * groups * ROWS;
        const float weight = layer->weight_before_w2 ? 1.0f : job->weight_of[pair + t];
        for (int64_t g = 0; g < groups * ROWS; g += ROWS) {
            for (int r = 0; r < ROWS; r++) to[g + r] = fused(weight, from[g + r] + (bias ? bias[g + r] : 0.0f), to[g + r]);
        }
    }
}

/* Items = 16-row groups of the output, for every expert in order: no two items share a sum. */
static void stage_down(const sp_job *job, int64_t first, int64_t count, sp_slot *slot, float *sums) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t groups = layer->hidden / ROWS, blocks = layer->inter / BLOCK;
    memset(sums, 0, (size_t)(job->tokens * count * ROWS) * sizeof(float));
    for (int64_t index = 0; index < job->active; index++) {
        const int64_t expert = job->expert_of[index], end = job->begin[index + 1];
        for (int64_t pair = job->begin[index]; pair < end;) {
            const int n = next_tokens(end - pair);
            for (int t = 0; t < n; t++) slot->rows[t] = job->h_rows + (pair + t) * job->h_stride;
            for (int64_t g = 0, run; g < count; g += run) {
                const int64_t at = (expert * groups + first + g) * blocks;
                const uint8_t *weights = layer->w2 + at * TILE_BYTES, *scales = layer->s2 + at * ROWS;
                run = groups_at_once(layer->precision, n, count - g);
                run_product(layer->precision, weights, scales, blocks, n, run, slot);
                combine(job, expert, first + g, run, pair, n, slot, sums + g * ROWS, count * ROWS);
            }
            pair += n;
        }
    }
    const int64_t width = call->out_dtype == SP_F32 ? 4 : 2;
    for (int64_t t = 0; t < job->tokens; t++) {
        uint8_t *row = (uint8_t *)call->out + (job->first + t) * call->out_stride * width;
        store_values(call->out_dtype, row, first * ROWS, sums + t * count * ROWS, count * ROWS);
    }
}

/* A run of 16-row groups of one active expert: sums go where the pair stands in ids. */
static void product_of_expert(const sp_job *job, int64_t index, int64_t first, int64_t count, sp_slot *slot) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t groups = job->rows / ROWS, blocks = layer->hidden / BLOCK, expert = job->expert_of[index];
    const int64_t end = job->begin[index + 1], width = call->out_dtype == SP_F32 ? 4 : 2;
    for (int64_t pair = job->begin[index]; pair < end;) {
        const int n = next_tokens(end - pair);
        for (int t = 0; t < n; t++) slot->rows[t] = job->x_rows + job->token_of[pair + t] * job->x_stride;
        for (int64_t g = first, run; g < first + count; g += run) {
            const int64_t at = (expert * groups + g) * blocks;
            run = groups_at_once(layer->precision, n, first + count - g);
            run_product(layer->precision, layer->w2 + at * TILE_BYTES, layer->s2 + at * ROWS, blocks, n, run, slot);
            for (int t = 0; t < n; t++) {
                const int64_t place = job->first * call->top_k + job->place_of[pair + t];
                uint8_t *row = (uint8_t *)call->out + place * call->out_stride * width;
                store_values(call->out_dtype, row, g * ROWS, slot->acc + t * run * ROWS, run * ROWS);
            }
        }
        pair += n;
    }
}

/* Items = (active expert, 16-row group) of a single product. */
static void stage_product(const sp_job *job, int64_t first, int64_t count, sp_slot *slot) {
    const int64_t groups = job->rows / ROWS;
    for (int64_t run; count > 0; first += run, count -= run) {
        const int64_t group = first % groups;
        run = groups - group < count ? groups - group : count;
        product_of_expert(job, first / groups, group, run, slot);
    }
}

const sp_variant VARIANT = {VARIANT_NAME, quantise_token, stage_gate_up, stage_down, stage_product};
