#include "broker/session/position_pack.h"

#include <string.h>

#include "common/check.h"

static uint64_t difference(uint64_t from, uint64_t to) { return zigzag_encode((int64_t)(to - from)); } /* modulo 2^64 */

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

size_t position_pack(uint8_t *out, uint64_t base, const uint64_t *sequences, uint32_t count)
{
    uint8_t first[VARINT_SIZE_MAX];
    if (count == 0)
        return 0;
    size_t size = varint_put(out ? out : first, difference(base, sequences[0]));
    if (count == 1)
        return size;
    uint64_t all = 0;
    for (uint32_t i = 1; i < count; i++)
        all |= difference(sequences[i - 1], sequences[i]);
    unsigned width = all ? 64 - (unsigned)__builtin_clzll(all) : 0;
    size_t bits_size = ((size_t)width * (count - 1) + 7) / 8;
    if (out) {
        out[size] = (uint8_t)width;
        uint8_t *bits = out + size + 1;
        memset(bits, 0, bits_size);
        for (uint32_t i = 1; i < count; i++)
            put_bits(bits, (size_t)width * (i - 1), width, difference(sequences[i - 1], sequences[i]));
    }
    return size + 1 + bits_size;
}

struct position_unpack position_unpack_of(struct span bytes, uint64_t base, uint32_t count)
{
    struct position_unpack unpack = {.last = base, .left = count};
    if (count == 0)
        return unpack;
    uint64_t first;
    size_t used = varint_get(&first, bytes.data, bytes.data + bytes.size);
    CHECK(used > 0);
    unpack.last += (uint64_t)zigzag_decode(first);
    unpack.size = used;
    if (count == 1)
        return unpack;
    CHECK(used < bytes.size);
    unpack.width = bytes.data[used];
    unpack.size += 1 + ((size_t)unpack.width * (count - 1) + 7) / 8;
    CHECK(unpack.size <= bytes.size);
    unpack.bits = span_of(bytes.data + used + 1, unpack.size - used - 1);
    return unpack;
}

bool position_unpack_next(struct position_unpack *unpack, uint64_t *sequence_out)
{
    if (unpack->left == 0)
        return false;
    unpack->left--;
    if (unpack->is_begun) {
        unpack->last += (uint64_t)zigzag_decode(get_bits(unpack->bits.data, unpack->bit, unpack->width));
        unpack->bit += unpack->width;
    }
    unpack->is_begun = true;
    *sequence_out = unpack->last;
    return true;
}
