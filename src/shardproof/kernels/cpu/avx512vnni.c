/* AVX-512 with VNNI: four int8 products a lane in one instruction, two int16 products in one. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,bmi2")
#endif
#define VNNI 1
#define VARIANT sp_avx512vnni
#define VARIANT_NAME "avx512vnni"
#include "avx512.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int sp_no_avx512vnni;
#endif
