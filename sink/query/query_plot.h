/* The answer of a query in CSV, drawn for a terminal (plot.h): one picture a metric.
 *
 *     struct query_plot plot = {0};
 *     query_plot_add(&plot, &rows, page, &msg);    // each page of the answer, in the order of time
 *     query_plot_draw(stdout, &plot, 72, 8);
 *     query_plot_deinit(&plot);
 *
 * Takes what the engine's CSV format writes (time,time_ns,NAME... and one line a row; RFC 4180) and refuses anything else: the bytes come
 * from the network. Pages must have the same columns. Pure. */
#ifndef TIDEGATE_SINK_QUERY_QUERY_PLOT_H
#define TIDEGATE_SINK_QUERY_QUERY_PLOT_H

#include <stdio.h>

#include "common/bytes.h"
#include "common/err.h"

struct query_plot {
    char *head;         /* the first page's line of names, owned */
    const char **names; /* column_count, owned */
    double *cells;      /* row after row; NaN: absent */
    int64_t *times_ns;
    size_t column_count;
    size_t row_count, row_capacity;
};

/* csv: borrowed. rows_out: rows of this page. Returns 0, ERR_CORRUPT (no such answer; msg says where), ERR_NOMEM. */
must_check enum err query_plot_add(struct query_plot *plot, size_t *rows_out, struct span csv, struct errmsg *msg);
/* One picture for each column that has points, under its name, or "(no points)". width, height: cells, clamped by plot_draw. Returns 0 or
 * ERR_NOMEM. */
must_check enum err query_plot_draw(FILE *out, const struct query_plot *plot, size_t width, size_t height);
void query_plot_deinit(struct query_plot *plot);

#endif
