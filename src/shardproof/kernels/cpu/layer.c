/* One call, of a whole layer or of a single product: drives the stages of each pass over all workers. */
#include <stdlib.h>
#include <string.h>

#include "job.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PASS_BYTES ((int64_t)192 << 20) /* quantised activations of one pass */
#define SUMS_FLOATS ((int64_t)64 << 10) /* one worker's output sums, about half a second-level cache */
#define FEW_TOKENS 8                     /* up to here runs are as long as reading wants them */
#define LEAST_RUN_BYTES ((int64_t)64 << 10)
#define MOST_RUN_BYTES ((int64_t)8 << 20)

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

/* The next run of a stage's items, contiguous in memory: short runs, taken in turn by several workers, cost a quarter of
 * the read speed (a start costs about 1 us), long ones leave a worker waiting at the end. So a run is four fifths of a
 * worker's part of what is left. Returns its length. */
static int64_t take(sp_job *job, int stage, int64_t *first) {
    int64_t count;
    *first = atomic_load_explicit(&job->next[stage], memory_order_relaxed);
    do {
        const int64_t left = job->items[stage] - *first, share = 4 * left / (5 * (int64_t)job->slot_count);
        if (left <= 0) return 0;
        count = share > job->most[stage] ? job->most[stage] : share < job->least[stage] ? job->least[stage] : share;
        count = count < left ? count : left;
    } while (!atomic_compare_exchange_weak_explicit(&job->next[stage], first, *first + count, memory_order_relaxed,
                                                    memory_order_relaxed));
    return count;
}

static void run_items(sp_job *job, int stage, int64_t first, int64_t count, sp_slot *slot, float *sums) {
    const sp_variant *variant = job->variant;
    if (stage == 2) {
        variant->down(job, first, count, slot, sums);
    } else if (stage == 1 && job->rows) {
        variant->product(job, first, count, slot);
    } else {
        for (int64_t item = first; item < first + count; item++) {
            stage == 0 ? variant->quantise(job, item) : variant->gate_up(job, item, slot);
        }
    }
}

/* Every item that is counted as taken is being worked on by a running thread, so waiting for it cannot lock up,
 * however many threads the executor really gave. */
static void run_stage(sp_job *job, int stage, sp_slot *slot, float *sums) {
    int64_t first, count, finished = 0;
    while ((count = take(job, stage, &first)) > 0) {
        run_items(job, stage, first, count, slot, sums);
        finished += count;
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
    float *sums = job->sums + (int64_t)index * job->tokens * job->sums_groups * ROWS;
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
    const int64_t sums = job->slot_count * tokens * job->sums_groups * ROWS * (int64_t)sizeof(float);
    job->sums = carve(base, &size, job->rows ? 0 : sums);
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

/* Runs of `unit` bytes each for a few tokens, where reading is all: see take. `spread`: units that every worker may
 * take, several times over, so that none waits long at the end. */
static void set_runs(sp_job *job, int stage, int64_t unit, int64_t spread, int64_t most) {
    const int64_t least = LEAST_RUN_BYTES / unit < spread ? LEAST_RUN_BYTES / unit : spread;
    job->least[stage] = least > 1 ? least : 1;
    job->most[stage] = MOST_RUN_BYTES / unit < most ? MOST_RUN_BYTES / unit : most;
    if (job->most[stage] < job->least[stage]) job->most[stage] = job->least[stage];
}

/* How much a worker takes at once. For many tokens: output groups whose sums stay in cache, several runs a worker. */
static void plan_runs(sp_job *job, int64_t tokens) {
    const sp_layer *layer = job->layer;
    const int64_t x_bytes = layer->hidden / BLOCK * (TILE_BYTES + ROWS), groups = layer->hidden / ROWS;
    const int64_t kept_sums = SUMS_FLOATS / (tokens * ROWS), spread = groups / (8 * (int64_t)job->slot_count);
    for (int stage = 0; stage < 3; stage++) job->least[stage] = job->most[stage] = 1;
    if (job->rows) {
        const int64_t most = tokens <= FEW_TOKENS ? INT64_MAX : 8;
        set_runs(job, 1, x_bytes, job->rows / ROWS / (8 * (int64_t)job->slot_count), most);
    } else if (tokens <= FEW_TOKENS) {
        set_runs(job, 1, 4 * x_bytes, 1, INT64_MAX);
        set_runs(job, 2, layer->inter / BLOCK * (TILE_BYTES + ROWS), spread, kept_sums);
    } else {
        int64_t run = spread / 2 < kept_sums ? spread / 2 : kept_sums;
        run = run < 1 ? 1 : run > 8 ? 8 : run;
        job->least[2] = job->most[2] = run;
    }
    job->sums_groups = job->most[2];
}

static void run_pass(sp_job *job, int64_t *count) {
    sp_route(job, count);
    job->items[0] = job->pairs ? job->tokens : 0;
    job->items[1] = job->active * (job->rows ? job->rows / ROWS : job->layer->inter / BLOCK);
    job->items[2] = job->rows ? 0 : job->layer->hidden / ROWS;
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
    plan_runs(job, pass);
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
