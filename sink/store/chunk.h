/* A chunk: up to CHUNK_ROWS_MAX rows of one device, compressed by column, self-contained, with a CRC-32C.
 *
 * One time column is shared by all metrics, which removes nearly all of its cost; each metric is encoded by codec/column.h, and its header
 * entry carries min, max, sum and count, so that coarse questions need no decoding. A chunk is immutable bytes; the byte table is in
 * docs/formats.md.
 *
 * Values are doubles: numbers, and booleans as 0 and 1. A JSON integer beyond 2^53 has lost its last digits before it comes here; the type
 * byte of a column leaves room for int64 and strings (a reader that does not know a type says ERR_VERSION).
 *
 * chunk_open validates everything that can be validated without decoding values: magic, version, CRC, all counts, offsets and names.
 * Decoding validates the rest and never reads outside the span, whatever the bytes are. Pure. Thread: any; an encoder belongs to one at a
 * time. */
#ifndef TIDEGATE_SINK_STORE_CHUNK_H
#define TIDEGATE_SINK_STORE_CHUNK_H

#include "common/err.h"
#include "sink/codec/column.h"
#include "sink/store/rows.h"

#define CHUNK_ROWS_MAX COLUMN_ROWS_MAX /* 4096: after the second compaction */
#define CHUNK_ROWS_FLUSH 1024          /* rows that a flush and the first compaction aim at */
#define CHUNK_SIZE_MAX (1u << 30)

/* min, max: by value, NaN left out (both NaN when all are NaN); sum in row order, NaN left out; count: values present, NaN included. */
struct chunk_stats {
    uint32_t count;
    double min, max, sum;
};

/* A column of an opened chunk. name points into `names` of the view. */
struct chunk_column {
    struct span name;
    struct chunk_stats stats;
    uint8_t type; /* CHUNK_TYPE_ */
    struct span bytes;
};

enum chunk_type { CHUNK_TYPE_DOUBLE = 0 };

/* What is in a chunk; borrowed from its bytes, except for columns and names, which chunk_close frees. */
struct chunk_view {
    struct span device;
    size_t row_count;
    int64_t time_ns_min, time_ns_max;
    uint64_t source_first, source_last; /* arrival numbers, for the record */
    size_t column_count;
    struct chunk_column *columns; /* ordered by name */
    uint8_t *names;
    struct span times;
    size_t size; /* of the chunk in bytes, the CRC included */
};

struct chunk_encoder;

/* An encoder: scratch memory and an output buffer to be reused. NULL without memory. */
struct chunk_encoder *chunk_encoder_new(void);
void chunk_encoder_free(struct chunk_encoder *enc);

/* Encode rows (1..CHUNK_ROWS_MAX, times strictly increasing, columns ordered by name) of `device` (1..ROWS_NAME_SIZE_MAX bytes).
 * bytes_out  borrowed from the encoder until its next call.
 * effort     see codec/column.h.
 * Columns without any value are left out. Returns 0, ERR_INVALID (rows do not keep the rules), ERR_NOMEM, ERR_TOOLARGE. */
must_check enum err chunk_encode(struct chunk_encoder *enc, struct span *bytes_out, struct span device, const struct rows *rows,
                                 enum column_effort effort);

/* Open the chunk at the start of `bytes`, which stays borrowed until chunk_close.
 * Returns 0, ERR_CORRUPT, ERR_VERSION, ERR_NOMEM; on error there is nothing to close. */
must_check enum err chunk_open(struct chunk_view *view_out, struct span bytes);
void chunk_close(struct chunk_view *view);

/* The column of that name, or NULL. */
const struct chunk_column *chunk_find_column(const struct chunk_view *view, struct span name);

/* All row_count times, strictly increasing, into times_out (room for row_count). Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err chunk_decode_times(const struct chunk_view *view, int64_t *times_out);

/* The values of one column: values_out has room for row_count, present_out for rows_bitmap_words(row_count) words. Absent values are 0.
 * scratch: see codec/column.h. Returns 0, ERR_CORRUPT, ERR_VERSION. */
must_check enum err chunk_decode_column(const struct chunk_view *view, const struct chunk_column *column, struct column_scratch *scratch,
                                        double *values_out, uint64_t *present_out);

/* Fold `more` into `total`, as one column of several chunks. total->count 0 is the neutral element. */
void chunk_stats_add(struct chunk_stats *total, const struct chunk_stats *more);

/* The stats of `row_count` values; present as in struct rows_column. */
struct chunk_stats chunk_stats_of(const double *values, const uint64_t *present, size_t row_count);

/* Write stats of a column in a chunk of row_count rows at `at` (room for CHUNK_STATS_SIZE_MAX); returns the bytes used. */
#define CHUNK_STATS_SIZE_MAX 64
size_t chunk_stats_put(uint8_t *at, const struct chunk_stats *stats, size_t row_count);
/* Read them back; returns the bytes used, 0 when they do not hold. */
size_t chunk_stats_get(struct chunk_stats *stats_out, size_t row_count, const uint8_t *at, const uint8_t *end);

#endif
