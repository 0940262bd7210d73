#include "sink/query/query_plot.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "sink/query/plot.h"

#define COLUMN_COUNT_MAX 4096
#define FIXED_COUNT 2 /* time, time_ns */

/* Where the reading of a page stands. */
struct reader {
    const char *at, *end;
    size_t line; /* 1-based, for messages */
};

/* The next field, unquoted, as a string of its own; NULL without memory or when a quote is never closed. is_last: a line's end follows. */
static char *read_field(struct reader *reader, bool *is_last)
{
    char *text = malloc((size_t)(reader->end - reader->at) + 1);
    size_t size = 0;
    bool is_quoted = reader->at < reader->end && *reader->at == '"';
    if (!text)
        return NULL;
    if (is_quoted)
        reader->at++;
    for (; reader->at < reader->end; reader->at++) {
        char c = *reader->at;
        if (is_quoted && c == '"') {
            bool is_doubled = reader->at + 1 < reader->end && reader->at[1] == '"';
            if (!is_doubled) {
                is_quoted = false;
                continue;
            }
            reader->at++;
        } else if (!is_quoted && (c == ',' || c == '\r' || c == '\n')) {
            break;
        }
        text[size++] = c;
    }
    text[size] = 0;
    if (is_quoted) {
        free(text);
        return NULL;
    }
    *is_last = reader->at == reader->end || *reader->at != ',';
    if (reader->at < reader->end && *reader->at == ',')
        reader->at++;
    return text;
}

static void skip_line_end(struct reader *reader)
{
    if (reader->at < reader->end && *reader->at == '\r')
        reader->at++;
    if (reader->at < reader->end && *reader->at == '\n')
        reader->at++;
    reader->line++;
}

static enum err read_names(struct query_plot *plot, struct reader *reader, struct errmsg *msg)
{
    bool is_last = false;
    plot->names = calloc(COLUMN_COUNT_MAX, sizeof *plot->names);
    if (!plot->names)
        return ERR_NOMEM;
    for (size_t i = 0; !is_last; i++) {
        char *name = read_field(reader, &is_last);
        bool is_known = name && (i != 0 || strcmp(name, "time") == 0) && (i != 1 || strcmp(name, "time_ns") == 0);
        if (!is_known || plot->column_count == COLUMN_COUNT_MAX || (i == 0 && is_last)) {
            free(name);
            return err_set(msg, ERR_CORRUPT, "the answer does not begin with a line of column names");
        }
        if (i < FIXED_COUNT)
            free(name);
        else
            plot->names[plot->column_count++] = name;
    }
    skip_line_end(reader);
    return ERR_OK;
}

static enum err row_reserve(struct query_plot *plot)
{
    if (plot->row_count < plot->row_capacity)
        return ERR_OK;
    size_t capacity = plot->row_capacity ? plot->row_capacity * 2 : 1024;
    int64_t *times = realloc(plot->times_ns, capacity * sizeof *times);
    if (times)
        plot->times_ns = times;
    double *cells = times ? realloc(plot->cells, capacity * (plot->column_count + 1) * sizeof *cells) : NULL;
    if (!cells)
        return ERR_NOMEM;
    plot->cells = cells;
    plot->row_capacity = capacity;
    return ERR_OK;
}

/* A whole number or a double, all of the field; an empty one is NaN. Numbers are short: one longer than the storage is none. */
static bool read_number(struct reader *reader, bool *is_last, double *value_out, int64_t *integer_out)
{
    char storage[64], *end = storage;
    size_t size = strcspn(reader->at, ",\r\n");
    if (size >= sizeof storage)
        return false;
    memcpy(storage, reader->at, size);
    storage[size] = 0;
    if (value_out)
        *value_out = size ? strtod(storage, &end) : NAN;
    else
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): one of the two is given */
        *integer_out = strtoll(storage, &end, 10);
    reader->at += size;
    *is_last = *reader->at != ',';
    reader->at += *is_last ? 0 : 1;
    return *end == 0 && (size > 0 || value_out);
}

static bool read_row(struct query_plot *plot, struct reader *reader)
{
    bool is_last;
    double *cells = plot->cells + plot->row_count * plot->column_count;
    int64_t *time = &plot->times_ns[plot->row_count];
    reader->at += strcspn(reader->at, ",\r\n");
    if (*reader->at != ',')
        return false;
    reader->at++;
    if (!read_number(reader, &is_last, NULL, time) || is_last != (plot->column_count == 0))
        return false;
    for (size_t i = 0; i < plot->column_count; i++) {
        if (!read_number(reader, &is_last, &cells[i], NULL) || is_last != (i + 1 == plot->column_count))
            return false;
    }
    return plot->row_count == 0 || *time > time[-1];
}

static enum err read_rows(struct query_plot *plot, size_t *rows_out, struct reader *reader, struct errmsg *msg)
{
    while (reader->at < reader->end) {
        enum err err = row_reserve(plot);
        if (err)
            return err;
        if (!read_row(plot, reader))
            return err_set(msg, ERR_CORRUPT, "line %zu of the answer is not a row of %zu columns", reader->line,
                           plot->column_count + FIXED_COUNT);
        skip_line_end(reader);
        plot->row_count++;
        ++*rows_out;
    }
    return ERR_OK;
}

enum err query_plot_add(struct query_plot *plot, size_t *rows_out, struct span csv, struct errmsg *msg)
{
    *rows_out = 0;
    /* A copy with a zero behind it: the scans for separators then need no bound. */
    char *text = malloc(csv.size + 1);
    if (!text)
        return ERR_NOMEM;
    if (csv.size)
        memcpy(text, csv.data, csv.size);
    text[csv.size] = 0;
    struct reader reader = {text, text + csv.size, 1};
    enum err err = ERR_OK;
    if (strlen(text) != csv.size) {
        err = err_set(msg, ERR_CORRUPT, "the answer holds a NUL byte");
    } else if (!plot->head) {
        err = read_names(plot, &reader, msg);
        plot->head = err ? NULL : strndup(text, (size_t)(reader.at - text));
        if (!err && !plot->head)
            err = ERR_NOMEM;
    } else if (strncmp(text, plot->head, strlen(plot->head)) != 0) {
        err = err_set(msg, ERR_CORRUPT, "the metrics changed between two pages of the answer");
    } else {
        reader.at += strlen(plot->head);
        reader.line++;
    }
    if (!err)
        err = read_rows(plot, rows_out, &reader, msg);
    free(text);
    return err;
}

enum err query_plot_draw(FILE *out, const struct query_plot *plot, size_t width, size_t height)
{
    double *values = malloc((plot->row_count + 1) * sizeof *values);
    if (!values)
        return ERR_NOMEM;
    for (size_t column = 0; column < plot->column_count; column++) {
        fprintf(out, "%s%s\n", column ? "\n" : "", plot->names[column]);
        for (size_t row = 0; row < plot->row_count; row++)
            values[row] = plot->cells[row * plot->column_count + column];
        plot_draw(out, plot->times_ns, values, plot->row_count, width, height);
    }
    if (plot->column_count == 0)
        fputs("(no points)\n", out);
    free(values);
    return ERR_OK;
}

void query_plot_deinit(struct query_plot *plot)
{
    for (size_t i = 0; i < plot->column_count; i++)
        free((void *)(uintptr_t)plot->names[i]);
    free(plot->names);
    free(plot->head);
    free(plot->cells);
    free(plot->times_ns);
    *plot = (struct query_plot){0};
}
