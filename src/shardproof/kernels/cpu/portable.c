/* Portable C: runs everywhere, and every other variant must give its bits. */
#include "tiles.h"

#define UNPACK_8 plain_unpack
#define UNPACK_16 plain_unpack
#define UNPACK_F plain_unpack
#define MANY_8 plain_int8
#define MANY_16 plain_int16
#define MANY_F plain_float
#define WIDTH_8 TOKEN_BLOCK
#define WIDTH_16 TOKEN_BLOCK
#define WIDTH_F TOKEN_BLOCK
#define CHUNK_8 PLAIN_CHUNK
#define CHUNK_16 PLAIN_CHUNK
#define CHUNK_F PLAIN_CHUNK
#define VARIANT sp_portable
#define VARIANT_NAME "portable"
#include "variant.h"
