#include "common/murmur2.h"

#include "common/check.h"

#define MURMUR2_SEED 0x9747b28cu
#define MURMUR2_M 0x5bd1e995u
#define MURMUR2_R 24

uint32_t murmur2(struct span key)
{
    const uint8_t *at = key.data;
    size_t left = key.size;
    uint32_t hash = MURMUR2_SEED ^ (uint32_t)key.size;
    for (; left >= 4; at += 4, left -= 4) {
        uint32_t word = load_le32(at) * MURMUR2_M;
        word ^= word >> MURMUR2_R;
        hash = (hash * MURMUR2_M) ^ (word * MURMUR2_M);
    }
    if (left > 0) {
        for (size_t i = 0; i < left; i++)
            hash ^= (uint32_t)at[i] << (8 * i);
        hash *= MURMUR2_M;
    }
    hash ^= hash >> 13;
    hash *= MURMUR2_M;
    hash ^= hash >> 15;
    return hash;
}

uint32_t murmur2_partition(struct span key, uint32_t partition_count)
{
    CHECK(partition_count > 0);
    return (murmur2(key) & 0x7fffffffu) % partition_count;
}
