/* The head: rows of one partition that are not yet in a segment, in memory, queryable at once.
 *
 * A device holds a list of blocks ordered by time; a block holds up to HEAD_BLOCK_ROWS rows as a struct of arrays, always sorted by event
 * time and free of duplicates, so that a query needs no sorting and a flush is one pass. A row that comes late is inserted into its block,
 * a block that overflows is split: an insertion moves at most one block's worth of bytes however disordered a device's rows are.
 *
 * Idempotence: (device, metric, event time) is the key; a later call of head_add_row overwrites (last write in source order wins).
 *
 * Memory is accounted exactly (sum of the sizes asked of the allocator) and bounded: at the limit head_add_row refuses with ERR_FULL and
 * changes nothing. head_seal() moves everything into a sealed head, which is immutable and is being flushed while this one takes new
 * rows; the sealed bytes count against the limit until head_unseal_free().
 *
 * Thread: one writer, the partition's. Readers (queries) may look at it from other threads only while they hold the partition's lock, which
 * the writer takes around head_add_row and head_seal; a sealed head needs no lock to read. Pure: no I/O, no clock. */
#ifndef TIDEGATE_SINK_STORE_HEAD_H
#define TIDEGATE_SINK_STORE_HEAD_H

#include "common/err.h"
#include "sink/store/merge.h"
#include "sink/store/rows.h"

#define HEAD_BLOCK_ROWS 1024

struct head;
struct head_device;

/* One value of a row being added. */
struct head_metric {
    struct span name; /* 1..ROWS_NAME_SIZE_MAX bytes, borrowed */
    double value;
};

struct head_stats {
    size_t bytes; /* of this head, without sealed ones */
    size_t device_count;
    size_t series_count; /* (device, metric) pairs */
    size_t row_count;
    size_t point_count;               /* values present */
    uint64_t overwritten;             /* points that replaced an earlier value of the same key */
    uint64_t late_row_count;          /* rows that were not the newest of their device */
    int64_t time_ns_min, time_ns_max; /* of all rows; undefined without rows */
    uint64_t source_first, source_last;
};

/* An empty head. limit_bytes: bound of memory, sealed heads and this structure included. hash_seed: keys the hash tables, so that chosen
 * device names cannot make them slow. Returns NULL without memory. */
struct head *head_new(size_t limit_bytes, uint64_t hash_seed);

/* Free a head and all it holds. NULL is allowed. A head must not be freed while a sealed part of it lives. */
void head_free(struct head *head);

/* Add one row of `device` at `time_ns`. A metric named twice in one row counts as its last.
 * source_number  its arrival number in the partition, non-decreasing over calls.
 * Returns 0, ERR_FULL (memory limit: flush, then retry; nothing changed), ERR_INVALID (a name empty or too long, or more than
 * ROWS_COLUMNS_MAX metrics of one device), ERR_NOMEM (nothing changed).
 * Thread: the writer. Does not block. */
must_check enum err head_add_row(struct head *head, struct span device, int64_t time_ns, const struct head_metric *metrics,
                                 size_t metric_count, uint64_t source_number);

/* Whether `device` has `metric` in this head, for a guard that counts new series. Metric with size 0: whether the device is there. */
bool head_has_series(const struct head *head, struct span device, struct span metric);

/* Move all rows into a new sealed head, which is immutable; `head` is empty after it. Returns NULL without memory (nothing changed). */
struct head *head_seal(struct head *head);

/* Free a sealed head of `head` and give its bytes back to the limit. */
void head_unseal_free(struct head *head, struct head *sealed);

void head_get_stats(const struct head *head, struct head_stats *stats_out);
/* Bytes counted against the limit: this head's and its sealed ones'. */
size_t head_bytes(const struct head *head);

/* The device with this id, or NULL. Borrowed until the next head_add_row / head_seal. */
const struct head_device *head_find(const struct head *head, struct span device);

/* All devices, ordered by id: an array of *count_out pointers that the caller frees with free(). NULL without memory; for an empty head
 * an array of none. */
const struct head_device **head_devices_sorted(const struct head *head, size_t *count_out);

/* Call `on_device` for each device that has rows, in no order, until it returns an error, which is returned. name: borrowed during the
 * call. */
must_check enum err head_each_device(const struct head *head, void *context,
                                     enum err (*on_device)(void *context, struct span name, int64_t newest_ns));

struct span head_device_id(const struct head_device *dev);
size_t head_device_row_count(const struct head_device *dev);
/* Newest event time; undefined for a device without rows. */
int64_t head_device_last_ns(const struct head_device *dev);

/* The rows of one device from `from_ns` to `to_ns` inclusive, as a stream for merge. Embeds `source` first, so that
 * &cursor.source is what merge_new takes; its close (merge_free calls it) frees the scratch. Borrowed from the head: valid while the head
 * is not changed. */
struct head_cursor {
    struct merge_source source;
    const struct head_device *dev;
    size_t block_index;
    int64_t from_ns, to_ns;
    struct rows_column *columns; /* scratch: freed by the source's close */
    uint64_t *bitmaps;
    size_t column_room;
};

/* rank: the flush number this head will have (merge: the greater wins). dev may be NULL: an empty stream. */
void head_cursor_init(struct head_cursor *cursor, const struct head_device *dev, int64_t from_ns, int64_t to_ns, uint64_t rank);

#endif
