/* A column of event times as bytes: int64 nanoseconds, any order, any values.
 *
 * What all differences have in common (1,000,000 for millisecond clocks, 60 seconds for a regular series ...) is divided out, and the rest
 * is coded by codec/integers.h: a regular series of any length costs about 16 bytes. Pure. Thread: any. */
#ifndef TIDEGATE_SINK_CODEC_TIMESTAMPS_H
#define TIDEGATE_SINK_CODEC_TIMESTAMPS_H

#include "sink/codec/integers.h"

/* Working memory of the encoder. */
struct timestamps_scratch {
    int64_t scaled[INTEGERS_COUNT_MAX];
    struct integers_scratch integers;
};

/* Bound of the encoded size. */
static inline size_t timestamps_size_max(size_t count) { return 64 + count * 9; }

/* Encode count (1..INTEGERS_COUNT_MAX) times into out, which has room for timestamps_size_max(count). Returns the bytes used. */
size_t timestamps_encode(struct timestamps_scratch *scratch, uint8_t *out, const int64_t *times, size_t count, bool dense);

/* Decode exactly `count` times. Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err timestamps_decode(int64_t *times_out, size_t count, struct span bytes);

#endif
