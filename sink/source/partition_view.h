/* What a query sees of one device in one partition: a copy of its rows in the heads, and references to the segments that may have more.
 *
 * It is taken under the partition's state lock (partition_view_take in partition.h) and read without it, so that a long query holds nobody
 * up; it shows one instant. Bounds: the copy is at most what the device has in the heads. Thread: one at a time. */
#ifndef TIDEGATE_SINK_SOURCE_PARTITION_VIEW_H
#define TIDEGATE_SINK_SOURCE_PARTITION_VIEW_H

#include "sink/store/head.h"
#include "sink/store/merge.h"
#include "sink/store/segment_ref.h"

struct partition_view;

/* heads: in the order of `ranks`, NULL entries skipped. refs: the partition's segments; those that have the device in the range are
 * referenced. Both inclusive bounds. Returns NULL without memory. */
struct partition_view *partition_view_new(const struct head *const *heads, const uint64_t *ranks, size_t head_count,
                                          struct segment_ref *const *refs, size_t ref_count, struct span device, int64_t from_ns,
                                          int64_t to_ns);
void partition_view_free(struct partition_view *view);

/* The view as sources of one merge, in order of rank. names: ordered, borrowed while the view lives; NULL: all columns. Rows may come
 * without any of the names. Calls on_source for each and stops at its first error. Call once a view. */
must_check enum err partition_view_sources(struct partition_view *view, const struct span *names, size_t name_count, void *context,
                                           enum err (*on_source)(void *context, struct merge_source *source));

/* Call on_name for each metric that the device has in the range, in no order and repeated; borrowed while the view lives. From indexes and
 * copies alone. Stops at the first error. */
must_check enum err partition_view_names(const struct partition_view *view, void *context,
                                         enum err (*on_name)(void *context, struct span name));

/* Newest event time of the device, whatever the range; false when it has none. */
bool partition_view_newest(const struct partition_view *view, int64_t *newest_ns_out);

/* Chunks that were skipped because they do not hold; after the merge. */
uint64_t partition_view_corrupt_count(const struct partition_view *view);

/* File, offset and what is wrong with one of them; borrowed while the view lives. NULL when none was skipped. */
const char *partition_view_corrupt_text(const struct partition_view *view);

#endif
