/* Log sequences that rest: written once, read in their order, in as few bytes as is cheap.
 *
 * The first as the difference to a base that the reader has, a varint with zigzag; a byte that says how many bits a difference takes; the
 * least difference of one to the one before it, a varint with zigzag; then how much more each difference is, in so many bits, the low ones
 * first. So twenty sequences that stand 20,000 apart, give or take 1,000, take a byte and a half each, and not three as in a position_list,
 * which can grow and be taken from. How many there are is known elsewhere. None: no bytes; one: the first alone. In memory only, of our own
 * making. Pure. */
#ifndef TIDEGATE_BROKER_SESSION_POSITION_PACK_H
#define TIDEGATE_BROKER_SESSION_POSITION_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

/* What `count` of them take at most. */
#define POSITION_PACK_SIZE_MAX(count) ((size_t)2 * VARINT_SIZE_MAX + 1 + (size_t)(count)*8)

/* Write them to `out`, or only count (NULL). Returns the bytes. */
size_t position_pack(uint8_t *out, uint64_t base, const uint64_t *sequences, uint32_t count);

struct position_unpack {
    struct span bits;
    uint64_t last, least;
    size_t size, bit; /* size: of all, in bytes */
    uint32_t left;
    uint8_t width;
    bool is_begun;
};

/* bytes: begin with a pack of `count`, borrowed. */
struct position_unpack position_unpack_of(struct span bytes, uint64_t base, uint32_t count);
/* The next; false when there is none. */
bool position_unpack_next(struct position_unpack *unpack, uint64_t *sequence_out);

#endif
