/* Doubles that were decimal text once, as integers: value == integer / 10^e, checked bit by bit.
 *
 * Most telemetry is printed with few digits. For a column the smallest exponent e is sought at which nearly all values come back exactly;
 * the integers, less what they have in common, go to codec/integers.h. Variants: `float32` for values that passed through a float before
 * they were printed (the double is that of the float nearest to integer / 10^e), and `corrected`, where each value also has a small
 * difference in units of the last place. What fits none of it is an exception and is kept beside as 8 raw bytes. Bit-exact for every
 * double. Pure. Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_DECIMAL_H
#define TIDEGATE_SINK_CODEC_DECIMAL_H

#include "sink/codec/integers.h"

#define DECIMAL_EXPONENT_MAX 17

/* Working memory of the encoder. */
struct decimal_scratch {
    int64_t integers[INTEGERS_COUNT_MAX];
    int64_t corrections[INTEGERS_COUNT_MAX];
    uint16_t exceptions[INTEGERS_COUNT_MAX];
    struct integers_scratch coder;
};

/* Encode count (1..INTEGERS_COUNT_MAX) values; returns the bytes used, 0 when they are no decimals or do not fit into `size`.
 * span_out: highest - lowest integer after the common divisor was taken out, plus 1: how many steps the range has; may be NULL. */
size_t decimal_encode(struct decimal_scratch *scratch, uint8_t *out, size_t size, uint64_t *span_out, const double *values, size_t count,
                      bool dense);

/* Decode exactly `count` values; integers: working memory for `count`. Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err decimal_decode(double *values_out, int64_t *integers, size_t count, struct span bytes);

#endif
