/* Turns tiles, whose number of tokens is a compile-time constant, into functions of a number of tokens.
 * few_*: FIRST, SECOND = packed weights, scales; many_*: the scratch alone. */
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

#define FEW_BY_WIDTH(NAME, TILE, WIDTHS)                                                                      \
    static void NAME(int tokens, const uint8_t *pw, const uint8_t *ps, int64_t blocks,                        \
                     const uint8_t *const *rows, float *out) {                                                \
        switch (tokens) { WIDTHS(TILE, pw, ps, blocks, rows, out) }                                           \
    }
#define MANY_BY_WIDTH(NAME, TILE, WIDTHS)                                                                     \
    static void NAME(int tokens, const void *scratch, int64_t blocks, const uint8_t *const *rows, float *acc) { \
        switch (tokens) { WIDTHS(TILE, scratch, blocks, rows, acc) }                                          \
    }
