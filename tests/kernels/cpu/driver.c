/* Drives the C core without Python: for sanitizers, and for processors that only an emulator has.
 * Every usable variant must give the portable one's bits, batched or one by one, from several threads at once.
 * Tensors end where a guard begins, so reads past an end are seen by ASan and, by their effect, here. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"

static uint64_t state = 88172645463325252ull;
static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % below;
}
static void *space(size_t bytes) { return malloc(bytes ? bytes : 1); }
static uint8_t *random_bytes(size_t count, uint32_t low, uint32_t high) {
    uint8_t *at = space(count);
    for (size_t i = 0; i < count; i++) at[i] = (uint8_t)(low + draw(high - low));
    return at;
}
static float *random_floats(size_t count) {
    float *at = space(count * sizeof *at);
    for (size_t i = 0; i < count; i++) at[i] = (float)draw(20001) / 10000.0f - 1.0f;
    return at;
}

typedef struct {
    sp_layer layer;
    sp_call call;
    float *x, *want;
    int32_t *ids;
    float *weights;
    int failures;
} test_case;

static int run(test_case *c, int isa, int64_t first, int64_t tokens, int threads, float *out) {
    sp_layer layer = c->layer;
    sp_call call = c->call;
    layer.isa = isa;
    call.x = c->x + first * layer.hidden;
    call.ids = c->ids + first * call.top_k;
    call.weights = c->weights + first * call.top_k;
    call.out = out;
    call.tokens = tokens;
    call.threads = threads;
    return sp_forward(&layer, &call);
}

static int check(test_case *c, const char *what, int isa, int64_t first, int64_t tokens, int threads) {
    const size_t bytes = (size_t)(tokens * c->layer.hidden) * sizeof(float);
    float *out = space(bytes);
    memset(out, 0xff, bytes);
    const int code = run(c, isa, first, tokens, threads, out);
    const int wrong = code != SP_OK || memcmp(out, c->want + first * c->layer.hidden, bytes) != 0;
    if (wrong) {
        printf("FAILED %s %s: code %d, E %d H %d I %d M %d precision %d\n", what, sp_isa_name(isa), code,
               (int)c->layer.experts, (int)c->layer.hidden, (int)c->layer.inter, (int)tokens, c->layer.precision);
    }
    free(out);
    return wrong;
}

/* w2 alone, of the layer's own tensors: h rows of x, ids as they are. */
static int product(test_case *c, int isa, int64_t tokens, int threads, float *out) {
    const sp_matrix matrix = {.weight = c->layer.w2, .scale = c->layer.s2, .experts = c->layer.experts,
                              .rows = c->layer.hidden, .columns = c->layer.inter, .precision = c->layer.precision,
                              .isa = isa};
    const int64_t width = c->layer.inter < c->layer.hidden ? c->layer.inter : c->layer.hidden;
    sp_call call = {.x = c->x, .out = out, .ids = c->ids, .tokens = tokens, .top_k = c->call.top_k, .x_stride = width,
                    .out_stride = c->layer.hidden, .threads = threads};
    return c->layer.inter > c->layer.hidden ? SP_OK : sp_product(&matrix, &call); /* x has `hidden` columns */
}

static int check_product(test_case *c, int isa) {
    const size_t bytes = (size_t)(c->call.tokens * c->call.top_k * c->layer.hidden) * sizeof(float);
    float *want = space(bytes), *out = space(bytes);
    memset(want, 0xff, bytes);
    memset(out, 0xff, bytes);
    int wrong = product(c, 0, c->call.tokens, 1, want) != SP_OK || product(c, isa, c->call.tokens, 2, out) != SP_OK;
    wrong |= memcmp(out, want, bytes) != 0;
    if (wrong) printf("FAILED product %s\n", sp_isa_name(isa));
    free(want);
    free(out);
    return wrong;
}

static void *caller(void *case_as_void) {
    test_case *c = case_as_void;
    for (int i = 0; i < 3; i++) c->failures += check(c, "threads", sp_isa_best(), 0, c->call.tokens, 3);
    return NULL;
}

static test_case make(int number) {
    test_case c = {0};
    const int64_t e = 1 + draw(4), h = 32 * (1 + draw(6)), i = 32 * (1 + draw(6)), k = 1 + draw(3);
    const int64_t m = 1 + draw(number % 4 == 0 ? 120 : 12);
    c.layer = (sp_layer){
        .w13 = random_bytes((size_t)(e * i * h), 0, 256), .s13 = random_bytes((size_t)(e * i * h / 16), 118, 126),
        .w2 = random_bytes((size_t)(e * i * h / 2), 0, 256), .s2 = random_bytes((size_t)(e * i * h / 32), 118, 126),
        .b13 = draw(2) ? random_floats((size_t)(e * 2 * i)) : NULL, .b2 = draw(2) ? random_floats((size_t)(e * h)) : NULL,
        .experts = e, .hidden = h, .inter = i, .activation = number % 3, .precision = number / 3 % 3,
        .weight_before_w2 = (int32_t)draw(2), .limit = INFINITY, .alpha = 1.702f, .beta = 4, .linear_beta = 25,
    };
    c.call = (sp_call){.tokens = m, .top_k = k, .x_stride = h, .out_stride = h};
    c.x = random_floats((size_t)(m * h));
    c.weights = random_floats((size_t)(m * k));
    c.ids = space((size_t)(m * k) * sizeof *c.ids);
    for (int64_t j = 0; j < m * k; j++) c.ids[j] = (int32_t)draw((uint32_t)e + 1) - 1;
    c.want = space((size_t)(m * h) * sizeof *c.want);
    c.failures = run(&c, 0, 0, m, 1, c.want) != SP_OK;
    return c;
}

static void discard(test_case *c) {
    const void *all[] = {c->layer.w13, c->layer.s13, c->layer.w2, c->layer.s2, c->layer.b13, c->layer.b2,
                         c->x, c->weights, c->ids, c->want};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free((void *)(uintptr_t)all[i]);
}

int main(int count, char **arguments) {
    const int cases = count > 1 ? atoi(arguments[1]) : 60;
    int failures = 0, checks = 0;
    uint64_t digest = 14695981039346656037ull; /* of the portable results: equal on every kind of processor */
    for (int number = 0; number < cases; number++) {
        sp_reads_past = number % 2; /* both ways of reading, whatever processor this is */
        test_case c = make(number);
        failures += c.failures;
        c.failures = 0;
        for (int64_t i = 0; i < c.call.tokens * c.layer.hidden; i++) {
            uint32_t bits;
            memcpy(&bits, c.want + i, 4);
            digest = (digest ^ bits) * 1099511628211ull;
        }
        for (int isa = 0; isa < sp_isa_count(); isa++) {
            if (!sp_isa_usable(isa)) continue;
            failures += check(&c, "batch", isa, 0, c.call.tokens, 2);
            for (int64_t t = 0; t < c.call.tokens; t += 5) failures += check(&c, "single", isa, t, 1, 1);
            failures += check_product(&c, isa);
            checks++;
        }
        if (number % 4 == 0) {
            pthread_t threads[3];
            test_case copies[3] = {c, c, c};
            for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, caller, &copies[i]);
            for (int i = 0; i < 3; i++) {
                pthread_join(threads[i], NULL);
                failures += copies[i].failures;
            }
        }
        discard(&c);
    }
    for (int isa = 0; isa < sp_isa_count(); isa++) printf("%s%s ", sp_isa_name(isa), sp_isa_usable(isa) ? "" : "(no)");
    printf("\ndigest %016llx\n", (unsigned long long)digest);
    printf("%d cases, %d variant checks, %d failures\n", cases, checks, failures);
    return failures != 0;
}
