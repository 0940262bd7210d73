/* The k-way merge of row streams of one device, last write wins: what queries read and what the compactor writes.
 *
 * A source yields blocks of rows whose times strictly increase within and across blocks. Where sources have a row of the same time, the
 * merged row has the union of their metrics, and for a metric that several have, the value of the source with the greatest rank (flush
 * number) wins; among equal ranks the one that stands later in the array. Blocks that overlap nothing are passed on run by run with
 * memcpy, so a merge of neighbours in time costs no comparison per row.
 *
 *     struct merge *merge = merge_new(sources, count, 1024);
 *     struct rows rows;
 *     while ((err = merge_next(merge, &rows)) == 0 && rows.row_count)
 *         ... rows is valid until the next call ...
 *     merge_free(merge);      (closes the sources)
 *
 * Thread: one at a time. Pure: the sources do what I/O there is. */
#ifndef TIDEGATE_SINK_STORE_MERGE_H
#define TIDEGATE_SINK_STORE_MERGE_H

#include "common/err.h"
#include "sink/store/rows.h"

struct merge;

/* A stream of row blocks. next() fills *rows_out, borrowed until the next call; row_count 0 is the end, and is repeated. close() gives back
 * what the stream holds and may be NULL. */
struct merge_source {
    uint64_t rank;
    enum err (*next)(struct merge_source *source, struct rows *rows_out);
    void (*close)(struct merge_source *source);
};

/* sources: borrowed array of `count` borrowed sources, which must outlive the merge; NULL entries are skipped.
 * row_count_max: rows of a block that merge_next yields at most (it yields full blocks, except the last).
 * Returns NULL without memory (the sources are then closed). */
struct merge *merge_new(struct merge_source *const *sources, size_t count, size_t row_count_max);

/* The next rows. Returns 0 with rows_out->row_count 0 at the end, or the error of a source (the merge is then over), or ERR_NOMEM. */
must_check enum err merge_next(struct merge *merge, struct rows *rows_out);

/* Free, and close all sources. NULL is allowed. */
void merge_free(struct merge *merge);

#endif
