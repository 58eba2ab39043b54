/* One call, of a whole layer or of a single product: drives the stages of each pass over all workers. */
#include <stdlib.h>
#include <string.h>

#include "job.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PASS_BYTES ((int64_t)192 << 20) /* quantised activations of one pass */
#define SUMS_FLOATS ((int64_t)64 << 10) /* one worker's output sums, about half a second-level cache */

/* Subnormal scales must stay subnormal, whatever the caller's thread has set (torch.set_flush_denormal). */
static uint64_t exact_floats(void) {
#if defined(__x86_64__)
    const unsigned old = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return old;
#elif defined(__aarch64__)
    uint64_t old, plain = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(plain));
    return old;
#else
    return 0;
#endif
}
static void restore_floats(uint64_t old) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

/* Every item that is counted as taken is being worked on by a running thread, so waiting for it cannot lock up,
 * however many threads the executor really gave. */
static void run_stage(sp_job *job, int stage, sp_slot *slot, float *sums) {
    int64_t item, finished = 0;
    while ((item = atomic_fetch_add_explicit(&job->next[stage], 1, memory_order_relaxed)) < job->items[stage]) {
        if (stage == 0) {
            job->variant->quantise(job, item);
        } else if (stage == 1) {
            (job->rows ? job->variant->product : job->variant->gate_up)(job, item, slot);
        } else {
            job->variant->down(job, item, slot, sums);
        }
        finished++;
    }
    atomic_fetch_add_explicit(&job->done[stage], finished, memory_order_release);
    for (int spins = 0; atomic_load_explicit(&job->done[stage], memory_order_acquire) < job->items[stage];) {
        sp_relax(&spins);
    }
}

static void work(void *job_as_void) {
    sp_job *job = job_as_void;
    const int index = atomic_fetch_add(&job->slot_next, 1);
    if (index >= job->slot_count) return;
    const uint64_t mode = exact_floats();
    float *sums = job->sums + (int64_t)index * job->tokens * job->down_groups * ROWS;
    for (int stage = 0; stage < 3; stage++) run_stage(job, stage, &job->slots[index], sums);
    restore_floats(mode);
}

typedef struct {
    uint8_t *at;
    int64_t bytes;
} sp_memory;

static sp_memory kept; /* owned by whoever holds the claim */

static int reserve(sp_memory *memory, int64_t bytes) {
    if (memory->bytes >= bytes) return SP_OK;
    free(memory->at);
    const size_t size = ((size_t)bytes + bytes / 4 + 4095) & ~(size_t)4095;
    memory->at = aligned_alloc(4096, size);
    memory->bytes = memory->at ? (int64_t)size : 0;
    return memory->at ? SP_OK : SP_NO_MEMORY;
}
int64_t sp_workspace_bytes(void) { return kept.bytes; }
void sp_forget_workspace(void) { kept = (sp_memory){0}; }

static void *carve(uint8_t *base, int64_t *offset, int64_t bytes) {
    uint8_t *at = base ? base + *offset : NULL;
    *offset += (bytes + 63) & ~(int64_t)63;
    return at;
}

/* Lays the pass's arrays out from `base` (NULL: only measures). Returns the bytes they take. */
static int64_t lay_out(sp_job *job, uint8_t *base, int64_t tokens, int64_t **count) {
    const sp_layer *layer = job->layer;
    const int64_t block = sp_block_bytes(layer->precision), pairs = tokens * job->call->top_k;
    int64_t size = 0;
    job->x_stride = layer->hidden / BLOCK * block;
    job->h_stride = layer->inter / BLOCK * block;
    job->slots = carve(base, &size, job->slot_count * (int64_t)sizeof(sp_slot));
    job->sums = carve(base, &size, job->rows ? 0 : job->slot_count * tokens * job->down_groups * ROWS * (int64_t)sizeof(float));
    job->x_rows = carve(base, &size, tokens * job->x_stride);
    job->h_rows = carve(base, &size, pairs * job->h_stride);
    job->token_of = carve(base, &size, pairs * (int64_t)sizeof(int32_t));
    job->place_of = carve(base, &size, pairs * (int64_t)sizeof(int32_t));
    job->weight_of = carve(base, &size, pairs * (int64_t)sizeof(float));
    job->expert_of = carve(base, &size, layer->experts * (int64_t)sizeof(int32_t));
    job->begin = carve(base, &size, (layer->experts + 1) * (int64_t)sizeof(int64_t));
    *count = carve(base, &size, layer->experts * (int64_t)sizeof(int64_t));
    return size;
}

static int64_t tokens_of_a_pass(const sp_layer *layer, const sp_call *call) {
    const int64_t block = sp_block_bytes(layer->precision);
    const int64_t each = (layer->hidden + call->top_k * layer->inter) / BLOCK * block;
    const int64_t most = PASS_BYTES / each > 16 ? PASS_BYTES / each : 16;
    const int64_t passes = (call->tokens + most - 1) / most;
    return (call->tokens + passes - 1) / passes;
}

/* Output groups of one item: as many as keep the sums in cache and still leave every worker several items. Where a
 * group has few blocks and few tokens share it, a run must be long to be worth the start of a new place in memory. */
static int64_t groups_of_an_item(int64_t rows, int64_t columns, int64_t tokens, int threads) {
    const int is_short = tokens <= 8 && columns <= 8 * BLOCK;
    const int64_t spread = rows / ROWS / ((is_short ? 8 : 16) * (int64_t)threads), cap = is_short ? 32 : 8;
    int64_t most = SUMS_FLOATS / (tokens * ROWS);
    most = most < spread ? most : spread;
    return most < 1 ? 1 : most > cap ? cap : most;
}

static void run_pass(sp_job *job, int64_t *count) {
    const int64_t rows = job->rows ? job->rows : job->layer->hidden;
    const int64_t runs = (rows / ROWS + job->down_groups - 1) / job->down_groups;
    sp_route(job, count);
    job->items[0] = job->pairs ? job->tokens : 0;
    job->items[1] = job->active * (job->rows ? runs : job->layer->inter / BLOCK);
    job->items[2] = job->rows ? 0 : runs;
    for (int stage = 0; stage < 3; stage++) {
        atomic_store(&job->next[stage], 0);
        atomic_store(&job->done[stage], 0);
    }
    atomic_store(&job->slot_next, 0);
    sp_run(job->slot_count, work, job);
}

static int run_passes(sp_job *job, sp_memory *memory) {
    const sp_call *call = job->call;
    const int64_t pass = tokens_of_a_pass(job->layer, call);
    int64_t *count;
    job->down_groups = job->rows ? groups_of_an_item(job->rows, job->layer->hidden, 1, job->slot_count)
                                 : groups_of_an_item(job->layer->hidden, job->layer->inter, pass, job->slot_count);
    if (reserve(memory, lay_out(job, NULL, pass, &count)) != SP_OK) return SP_NO_MEMORY;
    lay_out(job, memory->at, pass, &count);
    for (job->first = 0; job->first < call->tokens; job->first += pass) {
        job->tokens = call->tokens - job->first < pass ? call->tokens - job->first : pass;
        run_pass(job, count);
    }
    return SP_OK;
}

static int run_job(sp_job *job) {
    sp_memory own = {0};
    const int owner = sp_claim(); /* a second caller at the same time works alone, on memory of its own */
    job->variant = sp_variant_of(job->layer->isa);
    job->slot_count = owner && job->call->threads > 1 ? job->call->threads : 1;
    const int code = run_passes(job, owner ? &kept : &own);
    if (owner) sp_release();
    free(own.at);
    return code;
}

int sp_forward(const sp_layer *layer, sp_call *call) {
    if (!sp_isa_usable(layer->isa)) return SP_NO_ISA;
    if (sp_check_ids(layer, call) != SP_OK) return SP_BAD_ID;
    if (call->tokens == 0) return SP_OK;
    sp_job job = {.layer = layer, .call = call};
    return run_job(&job);
}

/* Rows of out that no expert writes. */
static void clear_skipped(const sp_job *job) {
    const sp_call *call = job->call;
    const int64_t width = call->out_dtype == SP_F32 ? 4 : 2;
    for (int64_t i = 0; i < call->tokens * call->top_k; i++) {
        if (sp_local_expert(job->layer, call, i) >= 0) continue;
        memset((uint8_t *)call->out + i * call->out_stride * width, 0, (size_t)(job->rows * width));
    }
}

int sp_product(const sp_matrix *matrix, sp_call *call) {
    const sp_layer layer = {
        .w2 = matrix->weight, .s2 = matrix->scale, .expert_map = matrix->expert_map, .map_length = matrix->map_length,
        .experts = matrix->experts, .hidden = matrix->columns, .precision = matrix->precision, .isa = matrix->isa,
    };
    if (!sp_isa_usable(layer.isa)) return SP_NO_ISA;
    if (sp_check_ids(&layer, call) != SP_OK) return SP_BAD_ID;
    if (call->tokens == 0 || call->top_k == 0) return SP_OK;
    sp_job job = {.layer = &layer, .call = call, .rows = matrix->rows};
    clear_skipped(&job);
    return run_job(&job);
}
