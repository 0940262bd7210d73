/* Writing and reading bits, least significant bit first, through a 64-bit accumulator.
 *
 * The writer fills a buffer of the caller's and, when that is full, sets `overflow` and drops the rest: a codec tries, looks once at the
 * end, and falls back. The reader never reads past its end: bits beyond it are zeros, and `overrun` says that it happened, so a decoder may
 * check once per block. Pure. Thread: any (values of the caller's). */
#ifndef TIDEGATE_SINK_CODEC_BITSTREAM_H
#define TIDEGATE_SINK_CODEC_BITSTREAM_H

#include "common/bytes.h"

struct bit_writer {
    uint8_t *begin, *at, *end;
    uint64_t acc;
    unsigned bit_count; /* bits in acc, 0..63 */
    bool overflow;
};

static inline void bit_writer_init(struct bit_writer *w, uint8_t *buffer, size_t size)
{
    *w = (struct bit_writer){.begin = buffer, .at = buffer, .end = buffer + size};
}

/* Write 8 bytes of the accumulator, or as many as fit. */
void bit_writer_spill(struct bit_writer *w);

/* Append the low `bits` (0..64) bits of value; the bits above must be 0. */
static inline void bit_writer_put(struct bit_writer *w, uint64_t value, unsigned bits)
{
    w->acc |= value << w->bit_count;
    unsigned total = w->bit_count + bits;
    if (total < 64) {
        w->bit_count = total;
        return;
    }
    bit_writer_spill(w);
    unsigned used = 64 - w->bit_count;
    w->acc = used < 64 ? value >> used : 0;
    w->bit_count = total - 64;
}

/* Append `count` zero bits and a one: unary. */
static inline void bit_writer_put_unary(struct bit_writer *w, unsigned count)
{
    while (count >= 63) {
        bit_writer_put(w, 0, 63);
        count -= 63;
    }
    bit_writer_put(w, (uint64_t)1 << count, count + 1);
}

/* Pad to a whole byte and return the size in bytes; 0 after an overflow (and for an empty stream). */
size_t bit_writer_finish(struct bit_writer *w);

struct bit_reader {
    const uint8_t *at, *end;
    uint64_t acc;
    unsigned bit_count; /* valid bits in acc; bits above are 0 */
    bool overrun;
};

static inline void bit_reader_init(struct bit_reader *r, struct span bytes)
{
    *r = (struct bit_reader){.at = bytes.data, .end = bytes.data + bytes.size};
}

/* Fill the accumulator to at least 57 bits, or to what is left near the end. */
void bit_reader_refill_slow(struct bit_reader *r);
static inline void bit_reader_refill(struct bit_reader *r)
{
    if (r->end - r->at >= 8) {
        r->acc |= load_le64(r->at) << r->bit_count;
        r->at += (63 - r->bit_count) >> 3;
        r->bit_count |= 56;
        /* Bits above bit_count are those of the next byte: the next refill ORs the same bits again. */
    } else {
        bit_reader_refill_slow(r);
    }
}

/* Take `bits` (0..56) bits; zeros beyond the end. */
static inline uint64_t bit_reader_get(struct bit_reader *r, unsigned bits)
{
    if (r->bit_count < bits) {
        bit_reader_refill(r);
        if (__builtin_expect(r->bit_count < bits, 0)) {
            r->overrun = true;
            r->acc = 0;
            r->bit_count = 0;
            return 0;
        }
    }
    uint64_t value = r->acc & (((uint64_t)1 << bits) - 1);
    r->acc >>= bits;
    r->bit_count -= bits;
    return value;
}

/* Take 0..64 bits. */
static inline uint64_t bit_reader_get_wide(struct bit_reader *r, unsigned bits)
{
    if (bits <= 56)
        return bit_reader_get(r, bits);
    uint64_t low = bit_reader_get(r, 32);
    return low | bit_reader_get(r, bits - 32) << 32;
}

/* Whether all whole bytes are used up and the bits that pad the last one are 0. */
bool bit_reader_is_done(struct bit_reader *r);

/* Count zero bits up to the next one and take them with it; at most `max` zeros are accepted, more is an overrun. */
static inline unsigned bit_reader_get_unary(struct bit_reader *r, unsigned max)
{
    unsigned count = 0;
    for (;;) {
        if (r->bit_count == 0)
            bit_reader_refill(r);
        uint64_t valid = r->bit_count < 64 ? r->acc & (((uint64_t)1 << r->bit_count) - 1) : r->acc;
        if (valid) {
            unsigned zeros = (unsigned)__builtin_ctzll(valid);
            r->acc = zeros == 63 ? 0 : r->acc >> (zeros + 1);
            r->bit_count -= zeros + 1;
            count += zeros;
            if (count > max)
                r->overrun = true;
            return count;
        }
        count += r->bit_count;
        r->acc = 0;
        if (r->bit_count == 0 || count > max) {
            r->bit_count = 0;
            r->overrun = true;
            return 0;
        }
        r->bit_count = 0;
    }
}

#endif
