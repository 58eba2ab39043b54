/* The rows of one group as the checkpoint has them, and their sums. */
#ifndef SHARDPROOF_ROWS_H
#define SHARDPROOF_ROWS_H
#include "engine.h"

/* Long rows are digested first, which brings them into the cache in order. Short pieces of long rows are digested
 * after the move: read row by row, they would make the hardware fetch the rest of every row as well. */
#define LONG_ROW 1024

typedef struct {
  const uint8_t *data;  /* NULL: padding */
  int64_t begin, bytes; /* columns that the checkpoint fills */
  int outside;          /* beyond the canonical matrix: the layout's own padding */
  const Cut *cut;
  int64_t row;
} Found;

#define ROW_SLACK 64

/* Bytes from one staged row to the next. */
static inline int64_t row_pitch(const Program *p) { return ((p->padded + ROW_SLACK) | 63) + 1; }

typedef struct { int64_t expert, first; } Seen;

/* Rows of group `group` and where in the kernel buffer it begins. */
int64_t sp_locate(const Job *job, int64_t group, Seen *seen, Found *all);

/* Sums of one job: 8 partial sums a lane, as AVX-512 keeps them. */
typedef struct { uint64_t lane[16] __attribute__((aligned(64))); } Sums;

/* The first fault of a batch stays and stops it; `at`: an address, for a bus error. */
void sp_report(Batch *batch, const Job *job, int fault, const Found *found, int64_t at);

void sp_digest_group(Batch *batch, const Job *job, const Found *all, int is_long, Sums *sums);
void sp_run_job(Batch *batch, const Job *job, const uint8_t **rows, uint8_t *scratch, Sums *sums);
void sp_unpack_job(Batch *batch, const Job *job, uint8_t **rows, uint8_t *scratch);
int sp_weighs(const Batch *batch, const Job *job, const Found *all, Aside *aside);
#endif
