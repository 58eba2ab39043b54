/* NEON, which every 64-bit ARM has. */
#if defined(__aarch64__)
#define DOTPROD 0
#define VARIANT sp_neon
#define VARIANT_NAME "neon"
#include "neon.h"
#else
typedef int sp_no_neon;
#endif
