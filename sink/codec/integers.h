/* A sequence of int64 as bytes: predictor, then entropy coding of what it left. Times, decimals and dictionary indexes all end here.
 *
 * Predictors: value (minus the least), centred value, delta, delta of delta; all arithmetic is modulo 2^64, so that any int64 is fine.
 * Packers: blocks of INTEGERS_BLOCK residuals, each with the cheapest of all-zero, Rice, zero-run Rice and bit packing; or, with
 * `dense`, one adaptive binary range coder over the sequence, which is smaller and some times slower. The byte table is in
 * docs/formats.md. Pure. Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_INTEGERS_H
#define TIDEGATE_SINK_CODEC_INTEGERS_H

#include "common/bytes.h"
#include "common/err.h"

#define INTEGERS_COUNT_MAX 4096
#define INTEGERS_BLOCK 128

/* Working memory of the encoder. */
struct integers_scratch {
    uint64_t residuals[2][INTEGERS_COUNT_MAX];
};

/* The greatest number that divides all differences of neighbours, 1..INT64_MAX; 1 when they are all 0. */
uint64_t integers_common_divisor(const int64_t *values, size_t count);

/* Encode count (1..INTEGERS_COUNT_MAX) values; returns the bytes used, 0 when they do not fit into `size`. */
size_t integers_encode(struct integers_scratch *scratch, uint8_t *out, size_t size, const int64_t *values, size_t count, bool dense);

/* Decode exactly `count` (1..INTEGERS_COUNT_MAX) values from all of `bytes`. Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err integers_decode(int64_t *values_out, size_t count, struct span bytes);

#endif
