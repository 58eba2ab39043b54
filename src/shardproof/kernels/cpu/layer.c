/* One call: checks ids, sorts (token, expert) pairs, and drives the stages of each pass over all workers. */
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

static inline int64_t id_at(const sp_call *call, int64_t index) {
    return call->ids_are_64 ? ((const int64_t *)call->ids)[index] : ((const int32_t *)call->ids)[index];
}
/* Local expert, -1 where this rank has no part in it, -2 where the id names no expert. */
static int64_t local_expert(const sp_layer *layer, int64_t id) {
    const int64_t known = layer->expert_map ? layer->map_length : layer->experts;
    if (id == -1) return -1;
    if (id < 0 || id >= known) return -2;
    const int64_t local = layer->expert_map ? layer->expert_map[id] : id;
    return local < layer->experts ? local : -2;
}

static int check_ids(const sp_layer *layer, sp_call *call) {
    for (int64_t i = 0; i < call->tokens * call->top_k; i++) {
        if (local_expert(layer, id_at(call, i)) == -2) {
            call->bad_index = i;
            return SP_BAD_ID;
        }
    }
    return SP_OK;
}

/* Counting sort, stable: a token that names one expert twice gets two pairs. */
static void route(sp_job *job, int64_t *count) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t first = job->first * call->top_k, last = first + job->tokens * call->top_k;
    memset(count, 0, (size_t)layer->experts * sizeof *count);
    for (int64_t i = first; i < last; i++) {
        const int64_t e = local_expert(layer, id_at(call, i));
        if (e >= 0) count[e]++;
    }
    job->active = job->pairs = 0;
    for (int64_t e = 0; e < layer->experts; e++) {
        const int64_t n = count[e];
        if (n == 0) continue;
        job->expert_of[job->active] = (int32_t)e;
        job->begin[job->active++] = job->pairs;
        count[e] = job->pairs; /* from here on: where its next pair goes */
        job->pairs += n;
    }
    job->begin[job->active] = job->pairs;
    for (int64_t i = first; i < last; i++) {
        const int64_t e = local_expert(layer, id_at(call, i));
        if (e < 0) continue;
        const int64_t at = count[e]++;
        job->token_of[at] = (int32_t)(i / call->top_k - job->first);
        job->weight_of[at] = call->weights[i];
    }
}

/* Every item that is counted as taken is being worked on by a running thread, so waiting for it cannot lock up,
 * however many threads the executor really gave. */
static void run_stage(sp_job *job, int stage, sp_slot *slot, float *sums) {
    int64_t item, finished = 0;
    while ((item = atomic_fetch_add_explicit(&job->next[stage], 1, memory_order_relaxed)) < job->items[stage]) {
        if (stage == 0) {
            job->variant->quantise(job, item);
        } else if (stage == 1) {
            job->variant->gate_up(job, item, slot);
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
    job->sums = carve(base, &size, job->slot_count * tokens * job->down_groups * ROWS * (int64_t)sizeof(float));
    job->x_rows = carve(base, &size, tokens * job->x_stride);
    job->x_flipped = job->x_rows;
    if (job->variant->flips && layer->precision == SP_INT8) {
        job->x_flipped = carve(base, &size, tokens * job->x_stride);
    }
    job->h_rows = carve(base, &size, pairs * job->h_stride);
    job->token_of = carve(base, &size, pairs * (int64_t)sizeof(int32_t));
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

/* Output groups of one item: as many as keep the sums in cache and still leave every worker several items. */
static int64_t groups_of_an_item(const sp_layer *layer, int64_t tokens, int threads) {
    const int64_t groups = layer->hidden / ROWS, spread = groups / (16 * (int64_t)threads);
    int64_t most = SUMS_FLOATS / (tokens * ROWS);
    most = most < spread ? most : spread;
    return most < 1 ? 1 : most > 8 ? 8 : most;
}

static void run_pass(sp_job *job, int64_t *count) {
    route(job, count);
    job->items[0] = job->pairs ? job->tokens : 0;
    job->items[1] = job->active * (job->layer->inter / BLOCK);
    job->items[2] = (job->layer->hidden / ROWS + job->down_groups - 1) / job->down_groups;
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
    job->down_groups = groups_of_an_item(job->layer, pass, job->slot_count);
    if (reserve(memory, lay_out(job, NULL, pass, &count)) != SP_OK) return SP_NO_MEMORY;
    lay_out(job, memory->at, pass, &count);
    for (job->first = 0; job->first < call->tokens; job->first += pass) {
        job->tokens = call->tokens - job->first < pass ? call->tokens - job->first : pass;
        run_pass(job, count);
    }
    return SP_OK;
}

int sp_forward(const sp_layer *layer, sp_call *call) {
    if (!sp_isa_usable(layer->isa)) return SP_NO_ISA;
    if (check_ids(layer, call) != SP_OK) return SP_BAD_ID;
    if (call->tokens == 0) return SP_OK;
    sp_job job = {.layer = layer, .call = call, .variant = sp_variant_of(layer->isa)};
    sp_memory own = {0};
    const int owner = sp_claim(); /* a second caller at the same time works alone, on memory of its own */
    job.slot_count = owner && call->threads > 1 ? call->threads : 1;
    const int code = run_passes(&job, owner ? &kept : &own);
    if (owner) sp_release();
    free(own.at);
    return code;
}
