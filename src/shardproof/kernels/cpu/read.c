/* Reads a buffer on all threads and does nothing else: the roofline that one-token calls are held against. Without
 * prefetches on AMD, where they cost up to a sixth of the speed; elsewhere from two places in turn with prefetches, which is
 * a quarter faster: each in the way that was the fastest of those tried. */
#include "job.h"

#define PIECE ((int64_t)1 << 18) /* 64-bit words */

#define PLACE ((int64_t)1 << 12) /* 64-bit words of one of the two places */

typedef struct {
    const uint64_t *words;
    int64_t count;
    _Atomic int64_t next;
    _Atomic uint64_t sum;
} read_job;

/* Adds all words of [at, end) that fill whole pairs of places to sum; returns where they end. */
static const uint64_t *read_pairs(const uint64_t *at, const uint64_t *end, uint64_t sum[8]) {
    for (; end - at >= 2 * PLACE; at += 2 * PLACE) {
        for (int64_t i = 0; i < PLACE; i += 8) {
            const int64_t skip = i * 8 + PREFETCH < PLACE * 8 ? PREFETCH : PREFETCH + PLACE * 8;
            for (int place = 0; place < 2; place++) {
                const uint64_t *line = at + place * PLACE + i;
                __builtin_prefetch((const char *)line + skip, 0, 2);
                for (int j = 0; j < 8; j++) sum[j] += line[j];
            }
        }
    }
    return at;
}

static void read_pieces(void *job_as_void) {
    read_job *job = job_as_void;
    uint64_t sum[8] = {0};
    int64_t at;
    while ((at = atomic_fetch_add(&job->next, PIECE)) < job->count) {
        const int64_t end = at + PIECE < job->count ? at + PIECE : job->count;
        if (!sp_reads_past) at = read_pairs(job->words + at, job->words + end, sum) - job->words;
        for (; at + 8 <= end; at += 8) {
            for (int i = 0; i < 8; i++) sum[i] += job->words[at + i];
        }
    }
    for (int i = 1; i < 8; i++) sum[0] += sum[i];
    atomic_fetch_add(&job->sum, sum[0]);
}

uint64_t sp_read(const void *at, int64_t bytes, int threads) {
    read_job job = {.words = at, .count = bytes / 8};
    const int owner = sp_claim();
    sp_run(owner ? threads : 1, read_pieces, &job);
    if (owner) sp_release();
    return job.sum;
}
