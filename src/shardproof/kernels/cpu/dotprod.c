/* NEON with the dot-product instructions of ARMv8.2: four int8 products a lane in one. */
#include "job.h"
#if SP_HAS_DOTPROD
#if !defined(__clang__)
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define DOTPROD 1
#define VARIANT sp_dotprod
#define VARIANT_NAME "dotprod"
#include "neon.h"
#else
typedef int sp_no_dotprod;
#endif
