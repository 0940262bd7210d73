/* Log-linear histogram: each power of two is cut into 32 equal cells, so a value is known to 3.2 % over the whole range, in fixed memory.
 *
 * Values 0..HISTOGRAM_VALUE_MAX (for nanoseconds: 39 hours); larger ones count in the last cell and raise `max` truly. Values below 64 are
 * exact. Single writer with relaxed atomics: the owner records with a plain load and store, any thread may read while it does and gets
 * counts that are each right and together off by at most what is being recorded. About 11 KiB: put it on the heap or in a long-lived
 * struct. */
#ifndef TIDEGATE_COMMON_HISTOGRAM_H
#define TIDEGATE_COMMON_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_SUB_BITS 5
#define HISTOGRAM_SUB_COUNT (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_VALUE_BITS 47
#define HISTOGRAM_VALUE_MAX ((UINT64_C(1) << HISTOGRAM_VALUE_BITS) - 1)
#define HISTOGRAM_CELL_COUNT ((HISTOGRAM_VALUE_BITS - HISTOGRAM_SUB_BITS + 1) * HISTOGRAM_SUB_COUNT)

struct histogram {
    uint64_t count;
    uint64_t sum; /* of the values as they came; wraps past 2^64 */
    uint64_t min; /* UINT64_MAX when empty */
    uint64_t max;
    uint64_t cells[HISTOGRAM_CELL_COUNT];
};

/* An empty histogram in the caller's memory. */
void histogram_init(struct histogram *histogram);

/* Count a value, or `count` of them. Thread: the owner. Does not allocate. */
void histogram_record(struct histogram *histogram, uint64_t value);
void histogram_record_many(struct histogram *histogram, uint64_t value, uint64_t count);

/* Add `from` (may be written meanwhile by its owner) to `into`. Thread: the owner of `into`. */
void histogram_merge(struct histogram *into, const struct histogram *from);

/* The value below which `quantile` (0..1) of what was recorded lies: the upper edge of its cell, never above the maximum; 0 when empty.
 * Thread: any. */
uint64_t histogram_quantile(const struct histogram *histogram, double quantile);

/* How many values were at most `value`; a cell counts when its middle does not lie above. Thread: any. */
uint64_t histogram_count_at_most(const struct histogram *histogram, uint64_t value);

/* Readers' view of the sums. Thread: any. mean is 0 when empty, min too. */
uint64_t histogram_count(const struct histogram *histogram);
uint64_t histogram_sum(const struct histogram *histogram);
uint64_t histogram_min(const struct histogram *histogram);
uint64_t histogram_max(const struct histogram *histogram);
double histogram_mean(const struct histogram *histogram);

/* The cell of a value, and the least and greatest value of a cell. Pure. */
size_t histogram_cell_of(uint64_t value);
uint64_t histogram_cell_low(size_t cell);
uint64_t histogram_cell_high(size_t cell);

#endif
