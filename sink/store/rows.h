/* A block of rows of one device: the form in which head, chunks, merge and queries hand rows to each other.
 *
 * Columnar and borrowed: one array of event times, and for each metric one dense array of values with a presence bitmap. Invariants:
 * times strictly increase; columns are ordered by name (byte order) and names are distinct; a value whose presence bit is 0 is undefined;
 * a row may have no value at all only in a slice whose columns were filtered. Event times are nanoseconds since 1970 (UTC).
 *
 * Values are doubles (numbers, and booleans as 0 and 1). JSON integers beyond 2^53 lose their last digits here; the chunk format has a type
 * byte a column, so that int64 and strings can follow. Thread: any (values only). Pure. */
#ifndef TIDEGATE_SINK_STORE_ROWS_H
#define TIDEGATE_SINK_STORE_ROWS_H

#include "common/bytes.h"

#define ROWS_NAME_SIZE_MAX 1024 /* bytes of a metric name or a device id, 1.. */
#define ROWS_COLUMNS_MAX 16384  /* metrics of one device */

/* One metric of a block. present: bit i of word i / 64 says whether row i has a value; NULL: every row has. */
struct rows_column {
    struct span name;
    const double *values;
    const uint64_t *present;
};

/* Rows of one device, borrowed from whoever filled it until that one is asked for the next. source_*: the arrival numbers (order in the
 * partition) that the rows came with, for the record only; 0, 0 when unknown. */
struct rows {
    size_t row_count;
    const int64_t *times_ns;
    size_t column_count;
    const struct rows_column *columns;
    uint64_t source_first;
    uint64_t source_last;
};

static inline size_t rows_bitmap_words(size_t row_count) { return (row_count + 63) / 64; }
static inline bool rows_bit(const uint64_t *bitmap, size_t row) { return bitmap[row / 64] >> (row % 64) & 1; }
static inline void rows_bit_set(uint64_t *bitmap, size_t row) { bitmap[row / 64] |= (uint64_t)1 << (row % 64); }
static inline void rows_bit_clear(uint64_t *bitmap, size_t row) { bitmap[row / 64] &= ~((uint64_t)1 << (row % 64)); }

/* Up to 64 bits of a bitmap from bit `at` on; bits beyond `count` are 0. The bitmap has at least `at + count` bits. */
static inline uint64_t rows_bitmap_load(const uint64_t *bitmap, size_t at, size_t count)
{
    unsigned shift = at % 64;
    uint64_t bits = bitmap[at / 64] >> shift;
    if (shift && count > 64 - shift)
        bits |= bitmap[at / 64 + 1] << (64 - shift);
    return count < 64 ? bits & (((uint64_t)1 << count) - 1) : bits;
}

/* OR `count` bits of `from`, from bit `from_at` on, into `to` from bit `to_at` on. from NULL: ones. */
static inline void rows_bitmap_merge(uint64_t *to, size_t to_at, const uint64_t *from, size_t from_at, size_t count)
{
    while (count) {
        size_t room = 64 - to_at % 64, part = count < room ? count : room;
        uint64_t bits = from ? rows_bitmap_load(from, from_at, part) : part == 64 ? UINT64_MAX : ((uint64_t)1 << part) - 1;
        to[to_at / 64] |= bits << (to_at % 64);
        to_at += part;
        from_at += part;
        count -= part;
    }
}

/* Whether `column` has a value at `row`. */
static inline bool rows_has(const struct rows_column *column, size_t row) { return !column->present || rows_bit(column->present, row); }

#endif
