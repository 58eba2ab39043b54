/* AVX-512 (F, BW, VL, DQ) without VNNI. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")
#endif
#define VNNI 0
#define VARIANT sp_avx512
#define VARIANT_NAME "avx512"
#include "avx512.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sp_no_avx512;
#endif
