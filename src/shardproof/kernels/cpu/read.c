/* Reads a buffer on all threads and does nothing else: the roofline that one-token calls are held against. Without
 * prefetches, which cost up to a sixth of the speed where the memory is at its quickest. */
#include "job.h"

#define PIECE ((int64_t)1 << 18) /* 64-bit words */

typedef struct {
    const uint64_t *words;
    int64_t count;
    _Atomic int64_t next;
    _Atomic uint64_t sum;
} read_job;

static void read_pieces(void *job_as_void) {
    read_job *job = job_as_void;
    uint64_t sum[8] = {0};
    int64_t at;
    while ((at = atomic_fetch_add(&job->next, PIECE)) < job->count) {
        const int64_t end = at + PIECE < job->count ? at + PIECE : job->count;
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
