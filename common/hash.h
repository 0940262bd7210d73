/* 64-bit hash of bytes: XXH3 with a seed.
 *
 * Tables that a peer can fill (client ids, topics) take a seed drawn at start, so that nobody can prepare collisions. What must agree
 * between processes or outlive one uses murmur2.h or a stated constant seed instead. Pure. Thread: any. */
#ifndef TIDEGATE_COMMON_HASH_H
#define TIDEGATE_COMMON_HASH_H

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

#include "common/bytes.h"

static inline uint64_t hash_bytes(const void *data, size_t size, uint64_t seed) { return XXH3_64bits_withSeed(data, size, seed); }
static inline uint64_t hash_span(struct span span, uint64_t seed) { return XXH3_64bits_withSeed(span.data, span.size, seed); }

/* Mix an integer key (session numbers, slots); a bijection for a fixed seed. */
static inline uint64_t hash_u64(uint64_t value, uint64_t seed)
{
    value ^= seed;
    value ^= value >> 32;
    value *= 0xd6e8feb86659fd93u;
    value ^= value >> 32;
    value *= 0xd6e8feb86659fd93u;
    return value ^ (value >> 32);
}

/* Map a hash to 0..count-1 by its high bits, count > 0; keeps the low bits for a table inside. */
static inline uint32_t hash_to_index(uint64_t hash, uint32_t count) { return (uint32_t)(((hash >> 32) * count) >> 32); }

#endif
