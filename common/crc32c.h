/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of every file format of ours.
 *
 * Uses the SSE4.2 instruction where the processor has it (found out at the first call), a table of 8 x 256 words elsewhere; both give the
 * same value. crc32c(0, "123456789", 9) is 0xE3069283. A long input may be fed in pieces: crc32c(crc32c(0, a), b) is the checksum of a then
 * b. Thread: any. Pure. */
#ifndef TIDEGATE_COMMON_CRC32C_H
#define TIDEGATE_COMMON_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue `seed` (0 to begin, or the value of what came before) over `size` bytes at `data` (NULL only when size is 0). */
uint32_t crc32c(uint32_t seed, const void *data, size_t size);

/* The portable version, whatever the processor has. For tests, and the fallback. */
uint32_t crc32c_table(uint32_t seed, const void *data, size_t size);

#endif
