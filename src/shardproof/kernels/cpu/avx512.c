/* AVX-512 (F, BW, VL, DQ) without VNNI. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#define VNNI 0
#define VARIANT sp_avx512
#define VARIANT_NAME "avx512"
#include "avx512.h"
#else
typedef int sp_no_avx512;
#endif
