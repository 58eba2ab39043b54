/* What the stages of one pass share, and what an instruction-set variant supplies. Internal. */
#ifndef SHARDPROOF_JOB_H
#define SHARDPROOF_JOB_H
#include <stdatomic.h>
#include <stddef.h>

#include "moe.h"

#define BLOCK 32          /* values that share a scale */
#define ROWS 16           /* rows of a weight tile */
#define TILE_BYTES 256    /* weight bytes of a tile; its scales are ROWS bytes */
#define TOKEN_BLOCK 96    /* tokens that one decoded tile serves at most */
/* Packed bytes that are read once. Where sp_reads_past (AMD) they are asked for past the second-level cache, or the request
 * competes with the processor's own; elsewhere into it: on Intel's servers a non-temporal request costs more than half of
 * the read speed. */
#define PREFETCH_AMD 4096
#define PREFETCH 2560
#define PREFETCH_ONCE(past, into)                \
    do {                                         \
        if (sp_reads_past) {                     \
            __builtin_prefetch(past, 0, 0);      \
        } else {                                 \
            __builtin_prefetch(into, 0, 2);      \
        }                                        \
    } while (0)
#define PREFETCH_AHEAD(at) PREFETCH_ONCE((at) + PREFETCH_AMD, (at) + PREFETCH)
/* Their scales, a line of which serves four tiles. */
#define PREFETCH_SCALES(at, tile) \
    do {                                                                                                  \
        if (((tile) & 3) == 0) PREFETCH_ONCE((at) + PREFETCH_AMD / 8, (at) + PREFETCH_AMD / 8);           \
    } while (0)
/* While a chunk of tiles is decoded its successor is asked for: the tokens that pass in between hide the memory. */
#define PREFETCH_NEXT_CHUNK(at, chunk) __builtin_prefetch((at) + (chunk) * TILE_BYTES, 0, 2)
#define SCRATCH_BYTES (40 * 1024)

/* One block of 32 quantised activations. int8 order: the 16 even k, then the 16 odd k (low and high nibbles). int16 order: see quantise.h. float32 blocks are 32 plain floats. */
typedef struct {
    int8_t q[32];
    float scale;        /* half the step, because weights are decoded as twice E2M1 */
    int32_t correction; /* -12 * sum(q): undoes the +12 that makes decoded weights unsigned; where the variant adds
                         * products as int16: one sum for the bytes 0, 1 of all words, and one for the bytes 2, 3 */
} sp_block8;
typedef struct {
    int16_t q[32];
    float scale;
} sp_block16;

typedef struct {
    float acc[TOKEN_BLOCK * ROWS];
    float gate[TOKEN_BLOCK * 8], up[TOKEN_BLOCK * 8], hidden[TOKEN_BLOCK * BLOCK];
    const uint8_t *rows[TOKEN_BLOCK];
    _Alignas(64) uint8_t scratch[SCRATCH_BYTES];
} sp_slot; /* one worker's private memory */

struct sp_variant;
typedef struct {
    const sp_layer *layer;
    const sp_call *call;
    const struct sp_variant *variant;
    int64_t first, tokens;           /* this pass's tokens of the call */
    int64_t pairs, active;           /* routed (token, expert) pairs; experts that have any */
    int32_t *token_of;               /* [pairs] sorted by expert, then by position in ids */
    int32_t *place_of;               /* [pairs] where in this pass's ids the pair stands */
    float *weight_of;                /* [pairs] */
    int64_t rows;                    /* of a single product's matrix (layer->w2, columns = hidden); 0: a whole layer */
    int32_t *expert_of;              /* [active] */
    int64_t *begin;                  /* [active + 1] into pairs */
    uint8_t *x_rows, *h_rows;        /* quantised activations of tokens and of pairs */
    int64_t x_stride, h_stride;
    int64_t sums_groups;             /* 16-row groups of the output that one worker may take at once */
    float *sums;                     /* [slots][tokens][16 * sums_groups] */
    sp_slot *slots;
    int slot_count;
    _Atomic int slot_next;
    _Atomic int64_t next[3], done[3];
    int64_t items[3], least[3], most[3]; /* of the stage; how many of them a worker takes at once */
} sp_job;

typedef struct sp_variant {
    const char *name;
    void (*quantise)(const sp_job *, int64_t token);
    void (*gate_up)(const sp_job *, int64_t item, sp_slot *);
    void (*down)(const sp_job *, int64_t first, int64_t count, sp_slot *, float *sums);
    void (*product)(const sp_job *, int64_t first, int64_t count, sp_slot *);
} sp_variant;

extern int sp_reads_past; /* set when the library is loaded, then constant: see PREFETCH_ONCE */
const sp_variant *sp_variant_of(int isa);
extern const sp_variant sp_portable;
#if defined(__x86_64__)
extern const sp_variant sp_avx2, sp_avx512, sp_avx512vnni;
#elif defined(__aarch64__)
/* clang's arm_neon.h has the dot products only where the whole build may use them (-march; Apple's default). */
#if !defined(__clang__) || defined(__ARM_FEATURE_DOTPROD)
#define SP_HAS_DOTPROD 1
#endif
extern const sp_variant sp_neon, sp_dotprod;
#endif

/* The local expert of ids[index], -1 where this rank has no part in it, -2 where the id names no expert. */
int64_t sp_local_expert(const sp_layer *layer, const sp_call *call, int64_t index);
/* SP_BAD_ID where an id names no expert. */
int sp_check_ids(const sp_layer *layer, sp_call *call);
/* A pass's pairs, sorted by expert; `count` is `experts` long. */
void sp_route(sp_job *job, int64_t *count);

/* Calls fn(arg) on up to `threads` threads at once, the caller among them. */
void sp_run(int threads, void (*fn)(void *), void *arg);
/* True for one caller at a time: that one may use the threads and the kept workspace. */
int sp_claim(void);
void sp_release(void);
void sp_relax(int *spins);
void sp_forget_workspace(void);

static inline int64_t sp_block_bytes(int precision) {
    static const int64_t bytes[SP_PRECISIONS] = {sizeof(sp_block8), sizeof(sp_block16), BLOCK * sizeof(float)};
    return bytes[precision];
}
#endif
