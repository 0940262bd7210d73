#include "sink/query/plot.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "common/clock.h"

#define LABEL_WIDTH 12

struct stroke {
    double low, high; /* NaN when the column has no point */
};

static size_t clamp(size_t value, size_t low, size_t high) { return value < low ? low : value > high ? high : value; }

/* The least and greatest value of each column; false when there is no finite value at all. */
static bool make_strokes(struct stroke *strokes, double *low_out, double *high_out, const int64_t *times_ns, const double *values,
                         size_t count, size_t width)
{
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < width; i++)
        strokes[i] = (struct stroke){NAN, NAN};
    double range = count > 1 ? (double)times_ns[count - 1] - (double)times_ns[0] : 0;
    for (size_t i = 0; i < count; i++) {
        double value = values[i];
        if (!isfinite(value))
            continue;
        size_t column = range > 0 ? (size_t)(((double)times_ns[i] - (double)times_ns[0]) / range * (double)(width - 1) + 0.5) : 0;
        struct stroke *stroke = &strokes[clamp(column, 0, width - 1)];
        stroke->low = fmin(stroke->low, value); /* fmin and fmax pass over NaN */
        stroke->high = fmax(stroke->high, value);
        low = fmin(low, value);
        high = fmax(high, value);
    }
    *low_out = low;
    *high_out = high;
    return low <= high;
}

/* The half row, counted from below, in which a value lies. */
static size_t half_row(double value, double low, double high, size_t height)
{
    if (high <= low)
        return height;
    return clamp((size_t)((value - low) / (high - low) * (double)(height * 2 - 1) + 0.5), 0, height * 2 - 1);
}

static const char *cell(const struct stroke *stroke, size_t row, double low, double high, size_t height)
{
    if (isnan(stroke->low))
        return " ";
    size_t from = half_row(stroke->low, low, high, height), to = half_row(stroke->high, low, high, height);
    bool lower = from <= row * 2 && row * 2 <= to, upper = from <= row * 2 + 1 && row * 2 + 1 <= to;
    return lower && upper ? "█" : lower ? "▄" : upper ? "▀" : " ";
}

void plot_draw(FILE *out, const int64_t *times_ns, const double *values, size_t count, size_t width, size_t height)
{
    struct stroke strokes[PLOT_WIDTH_MAX];
    char from[CLOCK_TEXT_SIZE], to[CLOCK_TEXT_SIZE];
    double low, high;
    width = clamp(width, 10, PLOT_WIDTH_MAX);
    height = clamp(height, 3, PLOT_HEIGHT_MAX);
    if (!make_strokes(strokes, &low, &high, times_ns, values, count, width)) {
        fputs("(no points)\n", out);
        return;
    }
    for (size_t row = height; row-- > 0;) {
        if (row == height - 1)
            fprintf(out, "%*.6g ┤", LABEL_WIDTH, high);
        else if (row == 0)
            fprintf(out, "%*.6g ┤", LABEL_WIDTH, low);
        else
            fprintf(out, "%*s │", LABEL_WIDTH, "");
        for (size_t column = 0; column < width; column++)
            fputs(cell(&strokes[column], row, low, high, height), out);
        fputc('\n', out);
    }
    size_t from_size = clock_format(from, times_ns[0], 0), to_size = clock_format(to, times_ns[count - 1], 0);
    fprintf(out, "%*s └", LABEL_WIDTH, "");
    for (size_t column = 0; column < width; column++)
        fputs("─", out);
    fprintf(out, "\n%*s  %s", LABEL_WIDTH, "", from);
    for (size_t at = from_size + to_size; at < width; at++)
        fputc(' ', out);
    fprintf(out, "%s%s\n", from_size + to_size < width ? "" : "  ", to);
}
