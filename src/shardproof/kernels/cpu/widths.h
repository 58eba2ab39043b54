/* Turns tiles, whose number of tokens is a compile-time constant, into functions of a number of tokens.
 * few_*: from packed weights and scales; first_*: the same, into the scratch as well; many_*: from the scratch. */
#define TILE_CASE(T, TILE, ...) \
    case T: TILE(T, __VA_ARGS__); break;
#define WIDTHS_2(TILE, ...) TILE_CASE(1, TILE, __VA_ARGS__) default: TILE(2, __VA_ARGS__); break;
#define WIDTHS_4(TILE, ...) \
    TILE_CASE(1, TILE, __VA_ARGS__) TILE_CASE(2, TILE, __VA_ARGS__) TILE_CASE(3, TILE, __VA_ARGS__) \
    default: TILE(4, __VA_ARGS__); break;
#define WIDTHS_8(TILE, ...) \
    TILE_CASE(1, TILE, __VA_ARGS__) TILE_CASE(2, TILE, __VA_ARGS__) TILE_CASE(3, TILE, __VA_ARGS__) \
    TILE_CASE(4, TILE, __VA_ARGS__) TILE_CASE(5, TILE, __VA_ARGS__) TILE_CASE(6, TILE, __VA_ARGS__) \
    TILE_CASE(7, TILE, __VA_ARGS__) default: TILE(8, __VA_ARGS__); break;

/* A few tokens times consecutive row groups: group g of token t goes to out[t][g]. One call serves a whole run, so that
 * groups of few blocks do not each pay for a call. */
#define FEW_GROUPS(T, TILE)                                                                                   \
    for (int64_t g = 0; g < groups; g++, pw += blocks * TILE_BYTES, ps += blocks * ROWS) {                    \
        TILE(T, pw, ps, blocks, rows, out + g * ROWS, groups * ROWS);                                         \
    }
#define FEW_BY_WIDTH(NAME, TILE, WIDTHS)                                                                      \
    static void NAME(int tokens, int64_t groups, const uint8_t *pw, const uint8_t *ps, int64_t blocks,        \
                     const uint8_t *const *rows, float *out) {                                                \
        switch (tokens) { WIDTHS(FEW_GROUPS, TILE) }                                                          \
    }
/* The same where tiles take G groups in turn. Outside of AMD, where that was slower, one thread reads a quarter faster from
 * two groups in turn than from one: so there two for up to TWO_MOST tokens, whose sums fit into registers. */
#define IN_TURN(T, TILE, G)                                                                                   \
    for (; g + G <= groups; g += G, pw += G * blocks * TILE_BYTES, ps += G * blocks * ROWS) {                 \
        TILE(T, G, pw, ps, blocks, rows, out + g * ROWS, groups * ROWS);                                      \
    }
#define FEW_IN_TURN(NAME, TILE, WIDTHS, TWO_WIDTHS, TWO_MOST)                                                 \
    static void NAME(int tokens, int64_t groups, const uint8_t *pw, const uint8_t *ps, int64_t blocks,        \
                     const uint8_t *const *rows, float *out) {                                                \
        int64_t g = 0;                                                                                        \
        if (!sp_reads_past && tokens <= TWO_MOST) {                                                           \
            switch (tokens) { TWO_WIDTHS(IN_TURN, TILE, 2) }                                                  \
        }                                                                                                     \
        switch (tokens) { WIDTHS(IN_TURN, TILE, 1) }                                                          \
    }
/* Where G groups are read in turn, their last tiles ask for the first ones of the next G: blocks beyond the group. */
static inline int64_t blocks_to_skip(int groups, int64_t block, int64_t blocks) {
    return block + PREFETCH / TILE_BYTES < blocks ? 0 : (groups - 1) * blocks;
}
#define FIRST_BY_WIDTH(NAME, TILE, WIDTHS)                                                                    \
    static void NAME(int tokens, const uint8_t *pw, const uint8_t *ps, int64_t blocks, void *scratch,         \
                     const uint8_t *const *rows, float *acc) {                                                \
        switch (tokens) { WIDTHS(TILE, pw, ps, blocks, scratch, rows, acc) }                                  \
    }
#define MANY_BY_WIDTH(NAME, TILE, WIDTHS)                                                                     \
    static void NAME(int tokens, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *acc) { \
        switch (tokens) { WIDTHS(TILE, scratch, blocks, rows, acc) }                                          \
    }
