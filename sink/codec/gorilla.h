/* The XOR codec for doubles of "Gorilla: A Fast, Scalable, In-Memory Time Series Database" (VLDB 2015), section 4.1.2.
 *
 * The first value is stored with 64 bits; each next one as its XOR with the one before: `0` when equal; `10` and the meaningful bits when
 * they lie inside the previous window; `11`, 5 bits of leading zeros, 6 bits of length, and the meaningful bits otherwise. A length of
 * 64 is written as 0. Bits are written least significant first (our bitstream), which changes no size. Works on bit patterns alone,
 * so that every double comes back exactly, NaN payloads and -0.0 included. Pure. Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_GORILLA_H
#define TIDEGATE_SINK_CODEC_GORILLA_H

#include "common/bytes.h"
#include "common/err.h"

/* Encode `count` values (1..) into out; returns the bytes used, 0 when they do not fit into `size`. */
size_t gorilla_encode(uint8_t *out, size_t size, const double *values, size_t count);

/* Decode exactly `count` values (1..). Returns 0 or ERR_CORRUPT (cut short, trailing bytes). */
must_check enum err gorilla_decode(double *values_out, size_t count, struct span bytes);

/* Size in bits of these values, without writing. */
size_t gorilla_cost_bits(const double *values, size_t count);

#endif
