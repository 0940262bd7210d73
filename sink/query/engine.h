/* The query engine: merged rows of one device to text. Pure over merge sources; where they come from is partition_view's business.
 *
 * Answers are built row by row in the order of time, last write wins (the merge sees to that), up to query.row_limit rows and the bound of
 * the output buffer; what is cut is said in the answer ("truncated", and the time from which to ask on).
 *
 * Formats:
 *   JSON   {"device":"car42","columns":["soc","speed"],"rows":[{"time":"2026-…Z","time_ns":1…,"values":{"speed":61.5}}],"row_count":1,…}
 *   CSV    time,time_ns,soc,speed and one line a row, absent values empty (RFC 4180, names quoted where needed)
 *   table  the same for people, in columns
 * Doubles are written so that reading them gives the same bits back. Thread: one query, one thread. */
#ifndef TIDEGATE_SINK_QUERY_ENGINE_H
#define TIDEGATE_SINK_QUERY_ENGINE_H

#include "common/buf.h"
#include "sink/store/merge.h"

#define QUERY_COLUMNS_MAX 4096

enum query_format { QUERY_JSON, QUERY_CSV, QUERY_TABLE };

struct query {
    struct span device;
    int64_t from_ns, to_ns; /* inclusive */
    size_t row_limit;
    enum query_format format;
};

/* Names of columns, in the order in which they are printed and in the order of bytes. */
struct query_columns {
    struct span *names;  /* as printed; the texts are owned */
    struct span *sorted; /* the same, ordered by span_compare */
    size_t count;
    size_t capacity;
};

/* What the answer says beside the rows. */
struct query_meta {
    int64_t watermark_ns; /* everything that the broker received before it is in */
    bool has_newest;
    int64_t newest_ns; /* of the device */
};

struct query_result {
    size_t row_count;
    size_t point_count;
    bool is_truncated;
    int64_t next_ns; /* when truncated: the first time not in the answer */
};

void query_columns_deinit(struct query_columns *columns);
/* Add a name unless it is there; keeps `sorted` in order. Returns 0, ERR_NOMEM, ERR_TOOLARGE (QUERY_COLUMNS_MAX). Fits partition_view_names
 * as a callback. */
must_check enum err query_columns_add(void *columns, struct span name);
/* Print in the order of names instead of the order of adding. */
void query_columns_sort(struct query_columns *columns);

/* Write the answer. sources: as for merge_new, filtered or not. corrupt_count: of chunks skipped, asked for after the rows (may be NULL).
 * Returns 0, ERR_NOMEM, or the error of a source; a full buffer truncates the answer, its bound must leave room for the tail. */
must_check enum err query_run(struct buf *out, struct query_result *result_out, const struct query *query,
                              const struct query_columns *columns, const struct query_meta *meta, struct merge_source *const *sources,
                              size_t source_count, uint64_t (*corrupt_count)(void *context), void *context);

/* Append a double: the shortest of 15, 16 or 17 digits that reads back the same; NaN and infinities as `null` for JSON. */
void query_put_double(struct buf *out, double value, bool is_json);

#endif
