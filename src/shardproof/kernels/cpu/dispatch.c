/* Which variants this build has, which of them this CPU can run, and which is the best. */
#include "job.h"

static const sp_variant *const variants[] = {
    &sp_portable,
#if defined(__x86_64__)
    &sp_avx2, &sp_avx512, &sp_avx512vnni,
#elif defined(__aarch64__)
    &sp_neon,
#if SP_HAS_DOTPROD
    &sp_dotprod,
#endif
#endif
};
enum { COUNT = sizeof variants / sizeof variants[0] };

const sp_variant *sp_variant_of(int isa) { return isa >= 0 && isa < COUNT ? variants[isa] : NULL; }
int sp_isa_count(void) { return COUNT; }
const char *sp_isa_name(int isa) { return isa >= 0 && isa < COUNT ? variants[isa]->name : ""; }

int sp_reads_past = 1;

#if defined(__x86_64__)
__attribute__((constructor)) static void know_vendor(void) {
    __builtin_cpu_init();
    sp_reads_past = __builtin_cpu_is("amd") != 0;
}

/* The builtins also ask the operating system (XCR0) whether it saves the wide registers. */
int sp_isa_usable(int isa) {
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("bmi2");
    switch (isa) {
    case 0: return 1;
    case 1: return avx2 && __builtin_cpu_supports("bmi2");
    case 2: return avx512;
    case 3: return avx512 && __builtin_cpu_supports("avx512vnni");
    default: return 0;
    }
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define HWCAP_ASIMDDP_BIT (1ul << 20)
int sp_isa_usable(int isa) {
    if (isa < 0 || isa >= COUNT) return 0;
    return isa < 2 || (getauxval(AT_HWCAP) & HWCAP_ASIMDDP_BIT) != 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
int sp_isa_usable(int isa) { return isa >= 0 && isa < COUNT; } /* every Apple CPU of this kind has dotprod */
#else
int sp_isa_usable(int isa) { return isa == 0; }
#endif

int sp_isa_best(void) {
    int best = 0;
    for (int isa = 1; isa < COUNT; isa++) best = sp_isa_usable(isa) ? isa : best;
    return best;
}
