/* What a telemetry payload says: rows of (event time, metrics), decided from the flat fields of json.h. Pure.
 *
 * Numbers and booleans are metrics (true is 1); strings, nulls, arrays and numbers outside a double are ignored and counted; of one name
 * twice in an object the last value wins. The first configured time name that an object has gives its time (a number in the configured
 * unit, or RFC 3339 as a string; null counts as absent); without one the row gets the receive time plus its index in the message in
 * nanoseconds, so that the rows of one message never overwrite each other. A row further in the future than the bound is rejected alone;
 * its neighbours are kept. Thread: one decoder, one thread. Allocates nothing once warm. */
#ifndef TIDEGATE_SINK_DECODE_PAYLOAD_H
#define TIDEGATE_SINK_DECODE_PAYLOAD_H

#include "sink/decode/event_time.h"
#include "sink/decode/json.h"
#include "sink/decode/reject.h"

#define PAYLOAD_TIME_NAMES_MAX 8

struct payload_rules {
    struct span time_names[PAYLOAD_TIME_NAMES_MAX]; /* borrowed for the decoder's life; earlier ones win */
    size_t time_name_count;
    enum event_time_unit time_unit;
    int64_t future_bound_ns; /* behind the receive time; 0 = no bound */
};

struct payload_point {
    struct span metric;
    double value;
};

struct payload_row {
    int64_t time_ns;
    uint32_t point_first;
    uint32_t point_count;
    bool own_time;      /* the device's time, not ours */
    enum reject reject; /* REJECT_NONE: store it */
};

/* Fields that are no metrics: counted, not rejected. */
struct payload_ignored {
    uint64_t strings;
    uint64_t nulls;
    uint64_t arrays;
    uint64_t unreadable; /* numbers outside the range of a double */
    uint64_t names;      /* empty, or with control characters */
    uint64_t duplicates; /* overwritten by the same name later in the object */
};

/* Valid until the next payload_decode() of the same decoder. */
struct payload_batch {
    const struct payload_row *rows;
    size_t row_count;
    const struct payload_point *points;
    size_t reject_count; /* rows with a reject */
};

struct payload_decoder;

/* NULL when memory is short. `rules` is copied. */
struct payload_decoder *payload_new(const struct payload_rules *rules);
void payload_free(struct payload_decoder *decoder);

/* Decode one payload (borrowed) that was received at `received_ns` (wall time). Adds to `ignored`.
 * Returns REJECT_NONE with `out` filled (rows may be rejected one by one; an empty array has no rows and is REJECT_NO_METRICS), or why the
 * payload as a whole is no telemetry. */
enum reject payload_decode(struct payload_decoder *decoder, struct payload_batch *out, struct payload_ignored *ignored, struct span payload,
                           int64_t received_ns);

#endif
