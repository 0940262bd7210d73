#include "sink/codec/gorilla.h"

#include "sink/codec/bitstream.h"

#define LEADING_MAX 31 /* what 5 bits hold */

static inline uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct window {
    unsigned leading;
    unsigned trailing;
    bool valid;
};

/* Whether the meaningful bits of x lie inside the window; otherwise the window becomes theirs. */
static inline bool window_holds(struct window *win, uint64_t x)
{
    unsigned leading = (unsigned)__builtin_clzll(x);
    unsigned trailing = (unsigned)__builtin_ctzll(x);
    if (leading > LEADING_MAX)
        leading = LEADING_MAX;
    if (win->valid && leading >= win->leading && trailing >= win->trailing)
        return true;
    *win = (struct window){leading, trailing, true};
    return false;
}

size_t gorilla_encode(uint8_t *out, size_t size, const double *values, size_t count)
{
    struct bit_writer w;
    struct window win = {0};
    bit_writer_init(&w, out, size);
    uint64_t previous = bits_of(values[0]);
    bit_writer_put(&w, previous, 64);
    for (size_t i = 1; i < count && !w.overflow; i++) {
        uint64_t bits = bits_of(values[i]), x = bits ^ previous;
        previous = bits;
        if (x == 0) {
            bit_writer_put(&w, 0, 1);
            continue;
        }
        if (window_holds(&win, x)) {
            bit_writer_put(&w, 1, 2);
        } else {
            unsigned length = 64 - win.leading - win.trailing;
            bit_writer_put(&w, 3 | (uint64_t)win.leading << 2 | (uint64_t)(length & 63) << 7, 13);
        }
        bit_writer_put(&w, x >> win.trailing, 64 - win.leading - win.trailing);
    }
    return bit_writer_finish(&w);
}

size_t gorilla_cost_bits(const double *values, size_t count)
{
    struct window win = {0};
    size_t bits_total = 64;
    for (size_t i = 1; i < count; i++) {
        uint64_t x = bits_of(values[i]) ^ bits_of(values[i - 1]);
        if (x == 0)
            bits_total += 1;
        else
            bits_total += (window_holds(&win, x) ? 2 : 13) + (64 - win.leading - win.trailing);
    }
    return bits_total;
}

enum err gorilla_decode(double *values_out, size_t count, struct span bytes)
{
    struct bit_reader r;
    bit_reader_init(&r, bytes);
    uint64_t value = bit_reader_get_wide(&r, 64);
    unsigned trailing = 0, length = 0;
    for (size_t i = 0;; i++) {
        memcpy(&values_out[i], &value, sizeof value);
        if (i + 1 == count)
            break;
        if (bit_reader_get(&r, 1)) {
            if (bit_reader_get(&r, 1)) {
                uint64_t head = bit_reader_get(&r, 11);
                unsigned leading = head & 31;
                length = (unsigned)(head >> 5);
                if (length == 0)
                    length = 64;
                if (leading + length > 64)
                    return ERR_CORRUPT;
                trailing = 64 - leading - length;
            } else if (length == 0) {
                return ERR_CORRUPT; /* a window that was never opened */
            }
            value ^= bit_reader_get_wide(&r, length) << trailing;
        }
        if (r.overrun)
            return ERR_CORRUPT;
    }
    return r.overrun || !bit_reader_is_done(&r) ? ERR_CORRUPT : ERR_OK;
}
