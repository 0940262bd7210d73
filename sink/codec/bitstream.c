#include "sink/codec/bitstream.h"

void bit_writer_spill(struct bit_writer *w)
{
    if (w->end - w->at >= 8) {
        store_le64(w->at, w->acc);
        w->at += 8;
        return;
    }
    /* The last bytes of a tight buffer are given up as a whole: the caller's fallback is raw, which fits. */
    w->overflow = true;
}

size_t bit_writer_finish(struct bit_writer *w)
{
    while (w->bit_count > 0 && !w->overflow) {
        if (w->at == w->end) {
            w->overflow = true;
            break;
        }
        *w->at++ = (uint8_t)w->acc;
        w->acc >>= 8;
        w->bit_count = w->bit_count > 8 ? w->bit_count - 8 : 0;
    }
    return w->overflow ? 0 : (size_t)(w->at - w->begin);
}

void bit_reader_refill_slow(struct bit_reader *r)
{
    r->acc &= ((uint64_t)1 << r->bit_count) - 1; /* what the fast refill read ahead is read again here */
    while (r->bit_count <= 55 && r->at < r->end) {
        r->acc |= (uint64_t)*r->at++ << r->bit_count;
        r->bit_count += 8;
    }
}

bool bit_reader_is_done(struct bit_reader *r)
{
    /* Give back what the fast refill read ahead, then look: fewer than 8 bits may be left, all zero. */
    bit_reader_refill(r);
    uint64_t valid = r->acc & (((uint64_t)1 << r->bit_count) - 1);
    return r->at == r->end && r->bit_count < 8 && valid == 0;
}
