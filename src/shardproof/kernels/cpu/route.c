/* Which experts a pass's tokens go to: ids checked, (token, expert) pairs sorted by expert. */
#include <string.h>

#include "job.h"

static inline int64_t id_at(const sp_call *call, int64_t index) {
    return call->ids_are_64 ? ((const int64_t *)call->ids)[index] : ((const int32_t *)call->ids)[index];
}
int64_t sp_local_expert(const sp_layer *layer, const sp_call *call, int64_t index) {
    const int64_t id = id_at(call, index), known = layer->expert_map ? layer->map_length : layer->experts;
    if (id == -1) return -1;
    if (id < 0 || id >= known) return -2;
    const int64_t local = layer->expert_map ? layer->expert_map[id] : id;
    return local < layer->experts ? local : -2;
}

int sp_check_ids(const sp_layer *layer, sp_call *call) {
    for (int64_t i = 0; i < call->tokens * call->top_k; i++) {
        if (sp_local_expert(layer, call, i) == -2) {
            call->bad_index = i;
            return SP_BAD_ID;
        }
    }
    return SP_OK;
}

/* Counting sort, stable: a token that names one expert twice gets two pairs. */
void sp_route(sp_job *job, int64_t *count) {
    const sp_layer *layer = job->layer;
    const sp_call *call = job->call;
    const int64_t first = job->first * call->top_k, last = first + job->tokens * call->top_k;
    memset(count, 0, (size_t)layer->experts * sizeof *count);
    for (int64_t i = first; i < last; i++) {
        const int64_t e = sp_local_expert(layer, call, i);
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
        const int64_t e = sp_local_expert(layer, call, i);
        if (e < 0) continue;
        const int64_t at = count[e]++;
        job->place_of[at] = (int32_t)(i - first);
        job->token_of[at] = (int32_t)(i / call->top_k - job->first);
        job->weight_of[at] = job->rows ? 1.0f : call->weights[i];
    }
}
