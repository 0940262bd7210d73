#include "common/crc32c.h"

#include "common/bytes.h"

#include <pthread.h>
#include <stdbool.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define CRC32C_POLYNOMIAL 0x82f63b78u
#define LANE_SIZE 256u /* bytes; a multiple of 8 */

/* tables[k][b]: what byte b does to the checksum when k more bytes follow it in the same word. */
static uint32_t tables[8][256];
/* What the bytes 0 .. 3 of a checksum become when LANE_SIZE zeros follow. */
static uint32_t lane_tables[4][256];
static bool has_instruction;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void crc32c_setup(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ CRC32C_POLYNOMIAL : crc >> 1;
        tables[0][byte] = crc;
    }
    for (int k = 1; k < 8; k++) {
        for (uint32_t byte = 0; byte < 256; byte++)
            tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xff];
    }
    for (int k = 0; k < 4; k++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte << (8 * k);
            for (uint32_t i = 0; i < LANE_SIZE; i++)
                crc = crc >> 8 ^ tables[0][crc & 0xff];
            lane_tables[k][byte] = crc;
        }
    }
#if defined(__x86_64__)
    has_instruction = __builtin_cpu_supports("sse4.2");
#endif
}

uint32_t crc32c_table(uint32_t seed, const void *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)data;
    uint32_t crc = ~seed;
    pthread_once(&once, crc32c_setup);
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t word = load_le64(at) ^ crc;
        crc = tables[7][word & 0xff] ^ tables[6][word >> 8 & 0xff] ^ tables[5][word >> 16 & 0xff] ^ tables[4][word >> 24 & 0xff] ^
              tables[3][word >> 32 & 0xff] ^ tables[2][word >> 40 & 0xff] ^ tables[1][word >> 48 & 0xff] ^ tables[0][word >> 56];
    }
    while (size-- > 0)
        crc = crc >> 8 ^ tables[0][(crc ^ *at++) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)
static inline uint64_t behind_lane(uint64_t crc)
{
    return lane_tables[0][crc & 0xff] ^ lane_tables[1][crc >> 8 & 0xff] ^ lane_tables[2][crc >> 16 & 0xff] ^
           lane_tables[3][crc >> 24 & 0xff];
}

/* The instruction takes three cycles and can begin in each one: so three lanes side by side, as long as there is much. */
__attribute__((target("sse4.2"))) static uint32_t crc32c_instruction(uint32_t seed, const void *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)data;
    uint64_t crc = ~seed;
    for (; size >= 3 * LANE_SIZE; size -= 3 * LANE_SIZE, at += 3 * LANE_SIZE) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < LANE_SIZE; i += 8) {
            crc = _mm_crc32_u64(crc, load_le64(at + i));
            second = _mm_crc32_u64(second, load_le64(at + LANE_SIZE + i));
            third = _mm_crc32_u64(third, load_le64(at + 2 * LANE_SIZE + i));
        }
        crc = behind_lane(behind_lane(crc) ^ second) ^ third;
    }
    for (; size >= 8; size -= 8, at += 8)
        crc = _mm_crc32_u64(crc, load_le64(at));
    uint32_t rest = (uint32_t)crc;
    while (size-- > 0)
        rest = _mm_crc32_u8(rest, *at++);
    return ~rest;
}
#endif

uint32_t crc32c(uint32_t seed, const void *data, size_t size)
{
    pthread_once(&once, crc32c_setup);
#if defined(__x86_64__)
    if (has_instruction)
        return crc32c_instruction(seed, data, size);
#endif
    return crc32c_table(seed, data, size);
}
