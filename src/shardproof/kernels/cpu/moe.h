/* The MXFP4 MoE layer on a CPU: the C interface that Python calls through ctypes.
 *
 * Data flow of one call, per pass of tokens:
 *   ids, weights -> pairs sorted by local expert         (route, layer.c)
 *   x            -> quantised blocks of 32 per token     (quantise.h)
 *   w13 . x      -> gate, up -> activation -> blocks     (stage_gate_up, variant.h)
 *   w2 . h       -> weighted sum over a token's experts  (stage_down, variant.h)
 *
 * Weights are 256-byte tiles of 16 rows x one block of 32 columns: byte units
 *   w13  weight "e (2g n 8r) (k 4q 4b) -> e n k q g r b"    scale "e (2g n 8r) k -> e n k g r"
 *   w2   weight "e (n 16r) (k 4q 4b) -> e n k q r b"        scale "e (n 16r) k -> e n k r"
 * Low nibble = even k, as in canonical form. Biases are canonical float32: [E, 2I] and [E, H].
 */
#ifndef SHARDPROOF_MOE_H
#define SHARDPROOF_MOE_H
#include <stdint.h>

#if defined(_WIN32)
#define SP_API __declspec(dllexport)
#else
#define SP_API __attribute__((visibility("default")))
#endif

enum { SP_INT8, SP_INT16, SP_FLOAT32, SP_PRECISIONS };        /* activations inside the products */
enum { SP_SILU, SP_SWIGLU_OAI, SP_SITU };                     /* shardproof.experts.Activation.kind */
enum { SP_F32, SP_BF16, SP_F16 };                             /* tensors in and out */
enum { SP_OK, SP_BAD_ID = 1, SP_NO_MEMORY = 2, SP_NO_ISA = 3 };

typedef struct {
    const uint8_t *w13, *s13, *w2, *s2;
    const float *b13, *b2;      /* NULL: no bias */
    const int32_t *expert_map;  /* global id -> local id or -1; NULL: ids are local */
    int64_t map_length;
    int64_t experts, hidden, inter; /* hidden and inter are multiples of 32 */
    int32_t activation, precision, weight_before_w2, isa;
    float limit, alpha, beta, linear_beta; /* limit is +inf where the model has none */
} sp_layer;

/* One matrix of every expert, in w2's layout: [experts, rows, columns], rows a multiple of 16, columns of 32. */
typedef struct {
    const uint8_t *weight, *scale;
    const int32_t *expert_map; /* as in sp_layer */
    int64_t map_length, experts, rows, columns;
    int32_t precision, isa;
} sp_matrix;

typedef struct {
    const void *x;   /* [tokens, hidden], rows x_stride elements apart */
    void *out;       /* [tokens, hidden], rows out_stride elements apart */
    const void *ids; /* [tokens, top_k] int32 or int64, contiguous; -1 is skipped */
    const float *weights; /* [tokens, top_k] */
    int64_t tokens, top_k, x_stride, out_stride;
    int32_t x_dtype, out_dtype, ids_are_64, threads;
    int64_t bad_index; /* out: the flat index of the id that SP_BAD_ID is about */
} sp_call;

SP_API int sp_forward(const sp_layer *layer, sp_call *call);
/* out[token, slot] = matrix of expert ids[token, slot] times x[token]: [tokens * top_k, rows], rows out_stride apart;
 * zeros where the id is skipped. `weights` is not read. */
SP_API int sp_product(const sp_matrix *matrix, sp_call *call);
SP_API int sp_isa_count(void);
SP_API const char *sp_isa_name(int isa);
SP_API int sp_isa_usable(int isa); /* this CPU and its kernel can run it */
SP_API int sp_isa_best(void);
/* Run parallel regions on somebody else's threads: the address of GOMP_parallel, or NULL for the own pool. */
SP_API void sp_set_executor(void *gomp_parallel);
/* Reads bytes (8-byte aligned) on `threads` threads: the memory's speed. Returns their sum, so that none is skipped. */
SP_API uint64_t sp_read(const void *at, int64_t bytes, int threads);
SP_API int64_t sp_workspace_bytes(void); /* held between calls */
#endif
