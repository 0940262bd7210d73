/* A series as a small picture of characters, for a terminal.
 *
 * Each column of the picture covers an equal share of the time range and shows its least to greatest value as a vertical stroke in half
 * rows, so that peaks are never lost however many points there are. Pure. */
#ifndef TIDEGATE_SINK_QUERY_PLOT_H
#define TIDEGATE_SINK_QUERY_PLOT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PLOT_WIDTH_MAX 500
#define PLOT_HEIGHT_MAX 100

/* Draw `count` points (times in ns, ascending; values may hold NaN, which is left out) to `out`, UTF-8, with the range of values at the
 * left and of times below. width, height: character cells of the picture itself, clamped to 10..PLOT_WIDTH_MAX and 3..PLOT_HEIGHT_MAX. */
void plot_draw(FILE *out, const int64_t *times_ns, const double *values, size_t count, size_t width, size_t height);

#endif
