/* The stages of the layer, compiled once per instruction set after its tiles.
 * Needs: VARIANT (symbol), VARIANT_NAME, and per precision P in 8, 16, F: UNPACK_P, MANY_P, WIDTH_P (tokens of one
 * tile at most), CHUNK_P (blocks in scratch); optionally FEW_P with FEW_LIMIT_P (tokens that it serves) and
 * FEW_WIDTH_P (tokens of one tile). */

typedef void unpack_fn(const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch);
typedef void many_fn(int tokens, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *acc);
typedef void few_fn(int tokens, const uint8_t *pw, const uint8_t *ps, int64_t blocks, const uint8_t *const *rows,
                    float *out);
typedef struct {
    few_fn *few; /* straight from packed bytes; overwrites out */
    int few_limit, few_width;
    unpack_fn *unpack; /* tiles -> scratch, `chunk` blocks at most */
    many_fn *many;     /* scratch x tokens, added to acc */
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

static const tile_plan plans[SP_PRECISIONS] = {
    {FEW_8, FEW_LIMIT_8, FEW_WIDTH_8, UNPACK_8, MANY_8, WIDTH_8, CHUNK_8},
    {FEW_16, FEW_LIMIT_16, FEW_WIDTH_16, UNPACK_16, MANY_16, WIDTH_16, CHUNK_16},
    {FEW_F, FEW_LIMIT_F, FEW_WIDTH_F, UNPACK_F, MANY_F, WIDTH_F, CHUNK_F},
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
            plan->few(width, pw, ps, blocks, slot->rows + t, slot->acc + t * ROWS);
        }
        return;
    }
    const int64_t block_bytes = sp_block_bytes(precision);
    memset(slot->acc, 0, (size_t)n * ROWS * sizeof(float));
    for (int64_t b = 0; b < blocks; b += plan->chunk) {
        const int64_t count = blocks - b < plan->chunk ? blocks - b : plan->chunk;
        plan->unpack(pw + b * TILE_BYTES, ps + b * ROWS, count, slot->scratch);
        for (int t = 0, width; t < n; t += width) {
            const uint8_t *rows[TOKEN_BLOCK];
            width = next_tile(n - t, plan->width);
            for (int j = 0; j < width; j++) rows[j] = slot->rows[t + j] + b * block_bytes;
            plan->many(width, slot->scratch, count, rows, slot->acc + t * ROWS);
        }
    }
}

/* How many tokens of `left` the next token block takes, so that blocks are of even size. */
static inline int next_tokens(int64_t left) { return next_tile((int)left, TOKEN_BLOCK); }

/* gate and up sums (+ bias) of eight columns of h for n tokens -> slot->hidden[token][8 * part ...]. */
static void activate_part(const sp_layer *layer, int64_t expert, int64_t group, int part, int n, sp_slot *slot) {
    float gate_bias[8] = {0}, up_bias[8] = {0}, result[TOKEN_BLOCK * 8];
    if (layer->b13) {
        const float *bias = layer->b13 + expert * 2 * layer->inter + group * 8;
        memcpy(gate_bias, bias, sizeof gate_bias);
        memcpy(up_bias, bias + layer->inter, sizeof up_bias);
    }
    for (int t = 0; t < n; t++) {
        for (int r = 0; r < 8; r++) {
            slot->gate[t * 8 + r] = slot->acc[t * ROWS + r] + gate_bias[r];
            slot->up[t * 8 + r] = slot->acc[t * ROWS + 8 + r] + up_bias[r];
        }
    }
    activate(layer, slot->gate, slot->up, result, (int64_t)n * 8);
    for (int t = 0; t < n; t++) memcpy(slot->hidden + t * BLOCK + part * 8, result + t * 8, 8 * sizeof(float));
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
        for (int part = 0; part < 4; part++) {
            const int64_t group = block * 4 + part, at = (expert * groups + group) * x_blocks;
            group_product(layer->precision, layer->w13 + at * TILE_BYTES, layer->s13 + at * ROWS, x_blocks, n, slot);
            activate_part(layer, expert, group, part, n, slot);
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
static void combine(const sp_job *job, int64_t expert, int64_t group, int64_t pair, int n, const sp_slot *slot,
                    float *sums, int64_t width) {
    const sp_layer *layer = job->layer;
    float bias[ROWS] = {0};
    if (layer->b2) memcpy(bias, layer->b2 + expert * layer->hidden + group * ROWS, sizeof bias);
    for (int t = 0; t < n; t++) {
        float *to = sums + job->token_of[pair + t] * width;
        const float *from = slot->acc + t * ROWS;
        const float weight = layer->weight_before_w2 ? 1.0f : job->weight_of[pair + t];
        for (int r = 0; r < ROWS; r++) to[r] = fused(weight, from[r] + bias[r], to[r]);
    }
}

/* Item = a run of 16-row groups of the output, for every expert in order: no two items share a sum. */
static void stage_down(const sp_job *job, int64_t item, sp_slot *slot, float *sums) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t groups = layer->hidden / ROWS, blocks = layer->inter / BLOCK;
    const int64_t first = item * job->down_groups;
    const int64_t count = groups - first < job->down_groups ? groups - first : job->down_groups;
    memset(sums, 0, (size_t)(job->tokens * count * ROWS) * sizeof(float));
    for (int64_t index = 0; index < job->active; index++) {
        const int64_t expert = job->expert_of[index], end = job->begin[index + 1];
        for (int64_t pair = job->begin[index]; pair < end;) {
            const int n = next_tokens(end - pair);
            for (int t = 0; t < n; t++) slot->rows[t] = job->h_rows + (pair + t) * job->h_stride;
            for (int64_t g = 0; g < count; g++) {
                const int64_t at = (expert * groups + first + g) * blocks;
                group_product(layer->precision, layer->w2 + at * TILE_BYTES, layer->s2 + at * ROWS, blocks, n, slot);
                combine(job, expert, first + g, pair, n, slot, sums + g * ROWS, count * ROWS);
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

/* Item = (active expert, a run of 16-row groups) of a single product: sums go where the pair stands in ids. */
static void stage_product(const sp_job *job, int64_t item, sp_slot *slot) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t groups = job->rows / ROWS, blocks = layer->hidden / BLOCK;
    const int64_t runs = (groups + job->down_groups - 1) / job->down_groups;
    const int64_t index = item / runs, first = item % runs * job->down_groups, expert = job->expert_of[index];
    const int64_t count = groups - first < job->down_groups ? groups - first : job->down_groups;
    const int64_t end = job->begin[index + 1], width = call->out_dtype == SP_F32 ? 4 : 2;
    for (int64_t pair = job->begin[index]; pair < end;) {
        const int n = next_tokens(end - pair);
        for (int t = 0; t < n; t++) slot->rows[t] = job->x_rows + job->token_of[pair + t] * job->x_stride;
        for (int64_t g = first; g < first + count; g++) {
            const int64_t at = (expert * groups + g) * blocks;
            group_product(layer->precision, layer->w2 + at * TILE_BYTES, layer->s2 + at * ROWS, blocks, n, slot);
            for (int t = 0; t < n; t++) {
                const int64_t place = job->first * call->top_k + job->place_of[pair + t];
                uint8_t *row = (uint8_t *)call->out + place * call->out_stride * width;
                store_values(call->out_dtype, row, g * ROWS, slot->acc + t * ROWS, ROWS);
            }
        }
        pair += n;
    }
}

const sp_variant VARIANT = {VARIANT_NAME, quantise_token, stage_gate_up, stage_down, stage_product};
