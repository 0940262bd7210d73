#include "sink/query/engine.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "sink/decode/event_time.h"

/* Kept free in the output for what follows the rows. */
#define TAIL_SIZE 1024
#define TABLE_TIME_WIDTH 30
#define TABLE_VALUE_WIDTH 12

struct run {
    struct buf *out;
    const struct query *query;
    const struct query_columns *columns;
    const struct rows_column **found; /* of the block at hand, for each printed column; NULL: not in it */
    struct query_result result;
};

void query_columns_deinit(struct query_columns *columns)
{
    for (size_t i = 0; i < columns->count; i++)
        free((void *)(uintptr_t)columns->names[i].data);
    free(columns->names);
    free(columns->sorted);
    *columns = (struct query_columns){0};
}

static bool columns_reserve(struct query_columns *columns)
{
    if (columns->count < columns->capacity)
        return true;
    size_t capacity = columns->capacity ? columns->capacity * 2 : 32;
    struct span *names = realloc(columns->names, capacity * sizeof *names);
    if (names)
        columns->names = names;
    struct span *sorted = names ? realloc(columns->sorted, capacity * sizeof *sorted) : NULL;
    if (!sorted)
        return false;
    columns->sorted = sorted;
    columns->capacity = capacity;
    return true;
}

enum err query_columns_add(void *context, struct span name)
{
    struct query_columns *columns = context;
    size_t low = 0, high = columns->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = span_compare(columns->sorted[middle], name);
        if (order == 0)
            return ERR_OK;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (columns->count >= QUERY_COLUMNS_MAX)
        return ERR_TOOLARGE;
    uint8_t *text = malloc(name.size + 1);
    if (!text || !columns_reserve(columns)) {
        free(text);
        return ERR_NOMEM;
    }
    memcpy(text, name.data, name.size);
    memmove(columns->sorted + low + 1, columns->sorted + low, (columns->count - low) * sizeof *columns->sorted);
    columns->sorted[low] = span_of(text, name.size);
    columns->names[columns->count++] = columns->sorted[low];
    return ERR_OK;
}

void query_columns_sort(struct query_columns *columns)
{
    if (columns->count > 0)
        memcpy(columns->names, columns->sorted, columns->count * sizeof *columns->names);
}

void query_put_double(struct buf *out, double value, bool is_json)
{
    char text[40];
    if (isnan(value) || isinf(value)) {
        buf_put_string(out, is_json ? "null" : isnan(value) ? "NaN" : value > 0 ? "Inf" : "-Inf");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (digits == 17 || strtod(text, NULL) == value)
            break;
    }
    buf_put_string(out, text);
}

static void put_csv_field(struct buf *out, struct span text)
{
    bool is_plain = true;
    for (size_t i = 0; i < text.size; i++)
        is_plain = is_plain && text.data[i] != '"' && text.data[i] != ',' && text.data[i] != '\n' && text.data[i] != '\r';
    if (is_plain) {
        buf_put_span(out, text);
        return;
    }
    buf_put_byte(out, '"');
    for (size_t i = 0; i < text.size; i++) {
        if (text.data[i] == '"')
            buf_put_byte(out, '"');
        buf_put_byte(out, text.data[i]);
    }
    buf_put_byte(out, '"');
}

/* A cell of the table: names may hold anything a device sent, so controls are replaced. */
static void put_cell(struct buf *out, struct span text, size_t width, bool right)
{
    size_t shown = 0;
    for (size_t i = 0; i < text.size; i++)
        shown += (text.data[i] & 0xc0) != 0x80; /* code points */
    for (size_t i = shown; right && i < width; i++)
        buf_put_byte(out, ' ');
    for (size_t i = 0; i < text.size; i++)
        buf_put_byte(out, text.data[i] < 0x20 || text.data[i] == 0x7f ? '?' : text.data[i]);
    for (size_t i = shown; !right && i < width; i++)
        buf_put_byte(out, ' ');
}

static size_t table_width(struct span name) { return name.size < TABLE_VALUE_WIDTH ? TABLE_VALUE_WIDTH : name.size; }

static void put_json_time(struct buf *out, const char *key, int64_t time_ns)
{
    char text[CLOCK_TEXT_SIZE];
    event_time_format(text, time_ns);
    buf_printf(out, "\"%s\":\"%s\",\"%s_ns\":%" PRId64, key, text, key, time_ns);
}

static void put_head(struct run *run, const struct query_meta *meta)
{
    struct buf *out = run->out;
    const struct query_columns *columns = run->columns;
    if (run->query->format == QUERY_JSON) {
        buf_put_string(out, "{\"device\":");
        buf_put_json_string(out, run->query->device);
        buf_put_byte(out, ',');
        put_json_time(out, "watermark", meta->watermark_ns);
        if (meta->has_newest) {
            buf_put_byte(out, ',');
            put_json_time(out, "newest", meta->newest_ns);
        }
        buf_put_string(out, ",\"columns\":[");
        for (size_t i = 0; i < columns->count; i++) {
            buf_put_string(out, i ? "," : "");
            buf_put_json_string(out, columns->names[i]);
        }
        buf_put_string(out, "],\"rows\":[");
    } else if (run->query->format == QUERY_CSV) {
        buf_put_string(out, "time,time_ns");
        for (size_t i = 0; i < columns->count; i++) {
            buf_put_byte(out, ',');
            put_csv_field(out, columns->names[i]);
        }
        buf_put_string(out, "\r\n");
    } else {
        put_cell(out, SPAN_LITERAL("time"), TABLE_TIME_WIDTH, false);
        for (size_t i = 0; i < columns->count; i++) {
            buf_put_string(out, "  ");
            put_cell(out, columns->names[i], table_width(columns->names[i]), true);
        }
        buf_put_byte(out, '\n');
    }
}

static void put_row(struct run *run, int64_t time_ns, size_t row)
{
    struct buf *out = run->out;
    enum query_format format = run->query->format;
    char time[CLOCK_TEXT_SIZE];
    bool is_first = true;
    size_t time_size = event_time_format(time, time_ns);
    if (format == QUERY_JSON)
        buf_printf(out, "%s\n{\"time\":\"%s\",\"time_ns\":%" PRId64 ",\"values\":{", run->result.row_count ? "," : "", time, time_ns);
    else if (format == QUERY_CSV)
        buf_printf(out, "%s,%" PRId64, time, time_ns);
    else
        put_cell(out, span_of(time, time_size), TABLE_TIME_WIDTH, false);
    for (size_t i = 0; i < run->columns->count; i++) {
        bool has = run->found[i] && rows_has(run->found[i], row);
        run->result.point_count += has;
        if (format == QUERY_JSON && has) {
            buf_put_string(out, is_first ? "" : ",");
            buf_put_json_string(out, run->columns->names[i]);
            buf_put_byte(out, ':');
            query_put_double(out, run->found[i]->values[row], true);
            is_first = false;
        } else if (format == QUERY_CSV) {
            buf_put_byte(out, ',');
            if (has)
                query_put_double(out, run->found[i]->values[row], false);
        } else if (format == QUERY_TABLE) {
            uint8_t storage[64];
            struct buf cell = {.data = storage, .capacity = sizeof storage, .size_max = sizeof storage - 1};
            if (has)
                query_put_double(&cell, run->found[i]->values[row], false);
            else
                buf_put_byte(&cell, '-');
            buf_put_string(out, "  ");
            put_cell(out, buf_span(&cell), table_width(run->columns->names[i]), true);
        }
    }
    buf_put_string(out, format == QUERY_JSON ? "}}" : format == QUERY_CSV ? "\r\n" : "\n");
}

static void put_tail(struct run *run, uint64_t corrupt_count)
{
    const struct query_result *result = &run->result;
    struct buf *out = run->out;
    if (run->query->format == QUERY_JSON) {
        buf_printf(out, "],\"row_count\":%zu,\"point_count\":%zu,\"truncated\":%s,\"corrupt_chunks\":%" PRIu64, result->row_count,
                   result->point_count, result->is_truncated ? "true" : "false", corrupt_count);
        if (result->is_truncated) {
            buf_put_byte(out, ',');
            put_json_time(out, "next", result->next_ns);
        }
        buf_put_string(out, "}\n");
    } else if (run->query->format == QUERY_TABLE) {
        char text[CLOCK_TEXT_SIZE];
        buf_printf(out, "%zu row%s\n", result->row_count, result->row_count == 1 ? "" : "s");
        if (corrupt_count > 0)
            buf_printf(out, "%" PRIu64 " damaged chunks were left out\n", corrupt_count);
        if (result->is_truncated) {
            event_time_format(text, result->next_ns);
            buf_printf(out, "cut here: ask on from %s\n", text);
        }
    }
}

/* Which of the block's columns are printed where. Both lists of names are in order. */
static void block_find_columns(struct run *run, const struct rows *rows)
{
    for (size_t i = 0; i < run->columns->count; i++) {
        size_t low = 0, high = rows->column_count;
        run->found[i] = NULL;
        while (low < high && !run->found[i]) {
            size_t middle = (low + high) / 2;
            int order = span_compare(rows->columns[middle].name, run->columns->names[i]);
            if (order == 0)
                run->found[i] = &rows->columns[middle];
            else if (order < 0)
                low = middle + 1;
            else
                high = middle;
        }
    }
}

static bool row_has_any(const struct run *run, size_t row)
{
    for (size_t i = 0; i < run->columns->count; i++) {
        if (run->found[i] && rows_has(run->found[i], row))
            return true;
    }
    return false;
}

/* False when the answer is full. */
static bool put_block(struct run *run, const struct rows *rows)
{
    block_find_columns(run, rows);
    for (size_t row = 0; row < rows->row_count; row++) {
        if (!row_has_any(run, row))
            continue;
        size_t size_before = run->out->size;
        size_t point_count_before = run->result.point_count;
        bool is_full = run->result.row_count >= run->query->row_limit;
        if (!is_full) {
            put_row(run, rows->times_ns[row], row);
            is_full = run->out->err == ERR_TOOLARGE || run->out->size + TAIL_SIZE > run->out->size_max;
        }
        if (is_full) {
            run->out->size = size_before; /* whole rows only */
            run->result.point_count = point_count_before;
            if (run->out->err == ERR_TOOLARGE)
                run->out->err = ERR_OK;
            run->result.is_truncated = true;
            run->result.next_ns = rows->times_ns[row];
            return false;
        }
        run->result.row_count++;
    }
    return true;
}

enum err query_run(struct buf *out, struct query_result *result_out, const struct query *query, const struct query_columns *columns,
                   const struct query_meta *meta, struct merge_source *const *sources, size_t source_count,
                   uint64_t (*corrupt_count)(void *context), void *context)
{
    struct run run = {.out = out, .query = query, .columns = columns};
    struct rows rows;
    run.found = calloc(columns->count + 1, sizeof(struct rows_column *));
    struct merge *merge = merge_new(sources, source_count, 1024);
    enum err err = run.found && merge ? ERR_OK : ERR_NOMEM;
    if (!err)
        put_head(&run, meta);
    while (!err && !(err = merge_next(merge, &rows)) && rows.row_count > 0) {
        if (!put_block(&run, &rows))
            break;
    }
    if (!err)
        put_tail(&run, corrupt_count ? corrupt_count(context) : 0);
    merge_free(merge);
    free(run.found);
    *result_out = run.result;
    return err ? err : out->err;
}
