#include "broker/session/position_pack.h"

#include <string.h>

#include "common/check.h"

static void put_bits(uint8_t *bytes, size_t bit, unsigned width, uint64_t value)
{
    for (unsigned done = 0; done < width;) {
        unsigned at = (unsigned)(bit + done) % 8, size = 8 - at < width - done ? 8 - at : width - done;
        uint8_t *byte = &bytes[(bit + done) / 8];
        *byte = (uint8_t)(*byte | (value >> done & ((1u << size) - 1)) << at);
        done += size;
    }
}

static uint64_t get_bits(const uint8_t *bytes, size_t bit, unsigned width)
{
    uint64_t value = 0;
    for (unsigned done = 0; done < width;) {
        unsigned at = (unsigned)(bit + done) % 8, size = 8 - at < width - done ? 8 - at : width - done;
        value |= (uint64_t)((unsigned)bytes[(bit + done) / 8] >> at & ((1u << size) - 1)) << done;
        done += size;
    }
    return value;
}

/* Of each to the one before it; all modulo 2^64. */
static int64_t difference(const uint64_t *sequences, uint32_t i) { return (int64_t)(sequences[i] - sequences[i - 1]); }
static uint64_t more_than(const uint64_t *sequences, uint32_t i, int64_t least)
{
    return (uint64_t)difference(sequences, i) - (uint64_t)least;
}

size_t position_pack(uint8_t *out, uint64_t base, const uint64_t *sequences, uint32_t count)
{
    uint8_t begin[2 * VARINT_SIZE_MAX + 1];
    if (count == 0)
        return 0;
    size_t size = varint_put(begin, zigzag_encode((int64_t)(sequences[0] - base)));
    int64_t least = INT64_MAX;
    uint64_t all = 0;
    for (uint32_t i = 1; i < count; i++)
        least = difference(sequences, i) < least ? difference(sequences, i) : least;
    for (uint32_t i = 1; i < count; i++)
        all |= more_than(sequences, i, least);
    unsigned width = all ? 64 - (unsigned)__builtin_clzll(all) : 0;
    size_t bits_size = ((size_t)width * (count - 1) + 7) / 8;
    if (count > 1) {
        begin[size++] = (uint8_t)width;
        size += varint_put(begin + size, zigzag_encode(least));
    }
    if (out) {
        uint8_t *bits = out + size;
        memcpy(out, begin, size);
        memset(bits, 0, bits_size);
        for (uint32_t i = 1; i < count; i++)
            put_bits(bits, (size_t)width * (i - 1), width, more_than(sequences, i, least));
    }
    return size + bits_size;
}

struct position_unpack position_unpack_of(struct span bytes, uint64_t base, uint32_t count)
{
    struct position_unpack unpack = {.last = base, .left = count};
    if (count == 0)
        return unpack;
    uint64_t first, least;
    size_t used = varint_get(&first, bytes.data, bytes.data + bytes.size);
    CHECK(used > 0);
    unpack.last += (uint64_t)zigzag_decode(first);
    unpack.size = used;
    if (count == 1)
        return unpack;
    CHECK(used < bytes.size);
    unpack.width = bytes.data[used++];
    size_t least_size = varint_get(&least, bytes.data + used, bytes.data + bytes.size);
    CHECK(least_size > 0);
    used += least_size;
    unpack.least = (uint64_t)zigzag_decode(least);
    unpack.size = used + ((size_t)unpack.width * (count - 1) + 7) / 8;
    CHECK(unpack.size <= bytes.size);
    unpack.bits = span_of(bytes.data + used, unpack.size - used);
    return unpack;
}

bool position_unpack_next(struct position_unpack *unpack, uint64_t *sequence_out)
{
    if (unpack->left == 0)
        return false;
    unpack->left--;
    if (unpack->is_begun) {
        unpack->last += unpack->least + get_bits(unpack->bits.data, unpack->bit, unpack->width);
        unpack->bit += unpack->width;
    }
    unpack->is_begun = true;
    *sequence_out = unpack->last;
    return true;
}
