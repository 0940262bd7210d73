/* Event times as devices write them, to nanoseconds since 1970-01-01T00:00:00Z.
 *
 * Numbers may be in seconds, milliseconds, microseconds or nanoseconds, with or without a fraction; the decimal text is used, not a double,
 * so 1700000000.123 is 1700000000123000000 ns for every reader, always (rows are idempotent by device, metric and time). With
 * EVENT_TIME_AUTO the magnitude decides: below 1e11 seconds (until the year 5138), below 1e14 milliseconds, below 1e17 microseconds, else
 * nanoseconds. Texts (RFC 3339) and relative times are clock.h's. The range is that of int64: 1677-09-21 to 2262-04-11. Thread: any. Pure.
 */
#ifndef TIDEGATE_SINK_DECODE_EVENT_TIME_H
#define TIDEGATE_SINK_DECODE_EVENT_TIME_H

#include "common/bytes.h"
#include "common/clock.h"

enum event_time_unit {
    EVENT_TIME_AUTO,
    EVENT_TIME_S,
    EVENT_TIME_MS,
    EVENT_TIME_US,
    EVENT_TIME_NS,
};

/* Read a JSON-style number (sign, digits, fraction, exponent). False when it is none or outside the range; nanoseconds are rounded. */
bool event_time_from_number(int64_t *time_ns_out, struct span text, enum event_time_unit unit);

/* RFC 3339 in UTC with 0, 3, 6 or 9 digits of fraction, whichever is exact. Returns the length, without the NUL. */
size_t event_time_format(char out[CLOCK_TEXT_SIZE], int64_t time_ns);

#endif
