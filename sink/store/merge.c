/* Sources are kept ordered by rank; a row is written source by source, so that the later one overwrites. The column set of the output grows
 * with the names that the sources bring; each source block is mapped to output columns once, when it is loaded. */
#include "sink/store/merge.h"

#include <stdlib.h>

#include "common/check.h"

/* A column of the output. Kept for the life of the merge; `used` says whether the current block has a value in it. */
struct merge_column {
    struct span name; /* owned bytes behind the structure */
    double *values;
    uint64_t *present;
    bool used;
};

struct merge_input {
    struct merge_source *source;
    size_t order; /* place in the caller's array */
    struct rows rows;
    size_t at;
    struct merge_column **columns; /* output column of each column of rows */
    size_t column_room;
    bool done;
};

struct merge {
    struct merge_input *inputs;
    size_t input_count;
    size_t row_count_max;
    int64_t *times;
    struct merge_column **columns; /* ordered by name */
    size_t column_count, column_room;
    struct rows_column *out;
    bool failed;
};

static int compare_inputs(const void *a, const void *b)
{
    const struct merge_input *x = a, *y = b;
    if (x->source->rank != y->source->rank)
        return x->source->rank < y->source->rank ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

static void close_sources(struct merge_source *const *sources, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (sources[i] && sources[i]->close)
            sources[i]->close(sources[i]);
}

struct merge *merge_new(struct merge_source *const *sources, size_t count, size_t row_count_max)
{
    CHECK(row_count_max > 0);
    struct merge *merge = calloc(1, sizeof *merge);
    if (!merge)
        goto fail;
    merge->row_count_max = row_count_max;
    merge->inputs = calloc(count ? count : 1, sizeof *merge->inputs);
    merge->times = malloc(row_count_max * sizeof *merge->times);
    if (!merge->inputs || !merge->times)
        goto fail;
    for (size_t i = 0; i < count; i++)
        if (sources[i])
            merge->inputs[merge->input_count++] = (struct merge_input){.source = sources[i], .order = i};
    qsort(merge->inputs, merge->input_count, sizeof *merge->inputs, compare_inputs);
    return merge;
fail:
    close_sources(sources, count);
    if (merge) {
        free(merge->inputs);
        free(merge->times);
        free(merge);
    }
    return NULL;
}

static void column_free(struct merge_column *column)
{
    free(column->values);
    free(column->present);
    free(column);
}

void merge_free(struct merge *merge)
{
    if (!merge)
        return;
    for (size_t i = 0; i < merge->input_count; i++) {
        struct merge_input *input = &merge->inputs[i];
        if (input->source->close)
            input->source->close(input->source);
        free(input->columns);
    }
    for (size_t i = 0; i < merge->column_count; i++)
        column_free(merge->columns[i]);
    free(merge->columns);
    free(merge->out);
    free(merge->inputs);
    free(merge->times);
    free(merge);
}

/* ---- columns ---- */

static struct merge_column *column_new(struct span name, size_t row_count_max)
{
    struct merge_column *column = calloc(1, sizeof *column + name.size);
    if (!column)
        return NULL;
    uint8_t *bytes = (uint8_t *)(column + 1);
    if (name.size)
        memcpy(bytes, name.data, name.size);
    column->name = span_of(bytes, name.size);
    column->values = malloc(row_count_max * sizeof *column->values);
    column->present = calloc(rows_bitmap_words(row_count_max), sizeof *column->present);
    if (!column->values || !column->present) {
        column_free(column);
        return NULL;
    }
    return column;
}

/* The output column of that name, made when missing; *place is where the search begins and then stands (names come in order). */
static struct merge_column *merge_column_get(struct merge *merge, size_t *place, struct span name)
{
    size_t low = *place, high = merge->column_count;
    if (low < high && span_compare(merge->columns[low]->name, name) == 0) {
        *place = low + 1;
        return merge->columns[low];
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (span_compare(merge->columns[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *place = low + 1;
    if (low < merge->column_count && span_compare(merge->columns[low]->name, name) == 0)
        return merge->columns[low];
    if (merge->column_count == merge->column_room) {
        size_t room = merge->column_room * 2 + 16;
        struct merge_column **columns = realloc(merge->columns, room * sizeof(struct merge_column *));
        if (!columns)
            return NULL;
        merge->columns = columns;
        struct rows_column *out = realloc(merge->out, room * sizeof *out);
        if (!out)
            return NULL;
        merge->out = out;
        merge->column_room = room;
    }
    struct merge_column *column = column_new(name, merge->row_count_max);
    if (!column)
        return NULL;
    memmove(merge->columns + low + 1, merge->columns + low, (merge->column_count - low) * sizeof(struct merge_column *));
    merge->columns[low] = column;
    merge->column_count++;
    return column;
}

/* Load the next block of an input and map its columns. */
static enum err input_load(struct merge *merge, struct merge_input *input)
{
    enum err err = input->source->next(input->source, &input->rows);
    if (err)
        return err;
    input->at = 0;
    if (input->rows.row_count == 0) {
        input->done = true;
        return ERR_OK;
    }
    if (input->rows.column_count > input->column_room) {
        struct merge_column **columns = realloc(input->columns, input->rows.column_count * sizeof(struct merge_column *));
        if (!columns)
            return ERR_NOMEM;
        input->columns = columns;
        input->column_room = input->rows.column_count;
    }
    size_t place = 0;
    for (size_t i = 0; i < input->rows.column_count; i++) {
        input->columns[i] = merge_column_get(merge, &place, input->rows.columns[i].name);
        if (!input->columns[i])
            return ERR_NOMEM;
    }
    return ERR_OK;
}

/* ---- rows ---- */

/* Copy `count` rows of an input that nobody else has to row `to` of the output. */
static void copy_run(struct merge *merge, struct merge_input *input, size_t to, size_t count)
{
    memcpy(merge->times + to, input->rows.times_ns + input->at, count * sizeof *merge->times);
    for (size_t i = 0; i < input->rows.column_count; i++) {
        const struct rows_column *from = &input->rows.columns[i];
        struct merge_column *column = input->columns[i];
        memcpy(column->values + to, from->values + input->at, count * sizeof *column->values);
        rows_bitmap_merge(column->present, to, from->present, input->at, count);
        column->used = true;
    }
    input->at += count;
}

/* Write the input's row over what lower ranks have written to row `to`. */
static void overlay_row(struct merge_input *input, size_t to)
{
    for (size_t i = 0; i < input->rows.column_count; i++) {
        const struct rows_column *from = &input->rows.columns[i];
        if (!rows_has(from, input->at))
            continue;
        struct merge_column *column = input->columns[i];
        column->values[to] = from->values[input->at];
        rows_bit_set(column->present, to);
        column->used = true;
    }
    input->at++;
}

/* How many rows of the input, at most `room`, are before `limit`. */
static size_t run_length(const struct merge_input *input, size_t room, bool has_limit, int64_t limit)
{
    size_t left = input->rows.row_count - input->at, count = left < room ? left : room;
    const int64_t *times = input->rows.times_ns + input->at;
    if (!has_limit || times[count - 1] < limit)
        return count;
    size_t low = 1, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (times[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Take the rows that come next: a run of one input, or one row of several. Returns false when all inputs are at their end. */
static bool merge_step(struct merge *merge, size_t *row_count)
{
    struct merge_input *first = NULL;
    bool shared = false, has_second = false;
    int64_t time = 0, second = 0;
    for (size_t i = 0; i < merge->input_count; i++) {
        struct merge_input *input = &merge->inputs[i];
        if (input->done)
            continue;
        int64_t t = input->rows.times_ns[input->at];
        if (!first || t < time) {
            if (first) {
                second = time;
                has_second = true;
            }
            first = input;
            time = t;
            shared = false;
        } else if (t == time) {
            shared = true;
        } else if (!has_second || t < second) {
            second = t;
            has_second = true;
        }
    }
    if (!first)
        return false;
    if (!shared) {
        size_t count = run_length(first, merge->row_count_max - *row_count, has_second, second);
        copy_run(merge, first, *row_count, count);
        *row_count += count;
        return true;
    }
    merge->times[*row_count] = time;
    for (size_t i = 0; i < merge->input_count; i++) {
        struct merge_input *input = &merge->inputs[i];
        if (!input->done && input->rows.times_ns[input->at] == time)
            overlay_row(input, *row_count);
    }
    ++*row_count;
    return true;
}

static enum err load_inputs(struct merge *merge)
{
    for (size_t i = 0; i < merge->input_count; i++) {
        struct merge_input *input = &merge->inputs[i];
        if (input->done || input->at < input->rows.row_count)
            continue;
        enum err err = input_load(merge, input);
        if (err)
            return err;
    }
    return ERR_OK;
}

enum err merge_next(struct merge *merge, struct rows *rows_out)
{
    CHECK(!merge->failed);
    for (size_t i = 0; i < merge->column_count; i++) {
        memset(merge->columns[i]->present, 0, rows_bitmap_words(merge->row_count_max) * sizeof(uint64_t));
        merge->columns[i]->used = false;
    }
    *rows_out = (struct rows){.times_ns = merge->times};
    size_t row_count = 0;
    uint64_t source_first = UINT64_MAX, source_last = 0;
    while (row_count < merge->row_count_max) {
        enum err err = load_inputs(merge);
        if (err) {
            merge->failed = true;
            return err;
        }
        for (size_t i = 0; i < merge->input_count; i++) {
            const struct merge_input *input = &merge->inputs[i];
            if (input->done || !input->rows.source_last)
                continue;
            source_first = input->rows.source_first < source_first ? input->rows.source_first : source_first;
            source_last = input->rows.source_last > source_last ? input->rows.source_last : source_last;
        }
        if (!merge_step(merge, &row_count))
            break;
    }
    size_t used = 0;
    for (size_t i = 0; i < merge->column_count; i++) {
        struct merge_column *column = merge->columns[i];
        if (column->used)
            merge->out[used++] = (struct rows_column){column->name, column->values, column->present};
    }
    rows_out->row_count = row_count;
    rows_out->column_count = used;
    rows_out->columns = merge->out;
    rows_out->source_first = source_last ? source_first : 0;
    rows_out->source_last = source_last;
    return ERR_OK;
}
