#include "sink/source/partition_view.h"

#include <stdlib.h>

/* One block of rows of a head, copied: `rows` points into the same allocation. */
struct block_copy {
    struct block_copy *next;
    struct rows rows;
};

/* The copied rows of one head, as a source. */
struct head_copy {
    struct merge_source source; /* first: what the merge calls back with */
    struct block_copy *first;
    struct block_copy **last;
    const struct block_copy *at;
    const struct span *names;
    size_t name_count;
    struct rows_column *filtered; /* room for name_count columns */
};

struct partition_view {
    struct span device; /* owned */
    int64_t from_ns, to_ns;
    struct head_copy *heads;
    size_t head_count;
    struct segment_ref **refs;
    struct segment_cursor *cursors;
    size_t ref_count;
    bool has_newest;
    int64_t newest_ns;
};

static size_t copy_size(const struct rows *rows)
{
    size_t size = sizeof(struct block_copy) + rows->row_count * sizeof *rows->times_ns + rows->column_count * sizeof *rows->columns;
    for (size_t i = 0; i < rows->column_count; i++) {
        size += rows->row_count * sizeof(double) + align_up(rows->columns[i].name.size, 8);
        size += rows->columns[i].present ? rows_bitmap_words(rows->row_count) * sizeof(uint64_t) : 0;
    }
    return size;
}

static void *carve(uint8_t **at, const void *data, size_t size)
{
    void *to = *at;
    if (size > 0)
        memcpy(to, data, size);
    *at += align_up(size, 8);
    return to;
}

static struct block_copy *block_copy_new(const struct rows *rows)
{
    struct block_copy *copy = malloc(copy_size(rows));
    if (!copy)
        return NULL;
    uint8_t *at = (uint8_t *)(copy + 1);
    struct rows_column *columns = carve(&at, rows->columns, rows->column_count * sizeof *columns);
    *copy = (struct block_copy){.rows = *rows};
    copy->rows.columns = columns;
    copy->rows.times_ns = carve(&at, rows->times_ns, rows->row_count * sizeof *rows->times_ns);
    for (size_t i = 0; i < rows->column_count; i++) {
        const struct rows_column *from = &rows->columns[i];
        columns[i].values = carve(&at, from->values, rows->row_count * sizeof(double));
        if (from->present)
            columns[i].present = carve(&at, from->present, rows_bitmap_words(rows->row_count) * sizeof(uint64_t));
        columns[i].name = span_of(carve(&at, from->name.data, from->name.size), from->name.size);
    }
    return copy;
}

static enum err head_copy_next(struct merge_source *source, struct rows *rows_out)
{
    struct head_copy *copy = (struct head_copy *)source;
    *rows_out = (struct rows){0};
    if (!copy->at)
        return ERR_OK;
    *rows_out = copy->at->rows;
    copy->at = copy->at->next;
    if (!copy->names)
        return ERR_OK;
    size_t kept = 0, n = 0;
    for (size_t i = 0; i < rows_out->column_count && n < copy->name_count; i++) {
        int order;
        while (n < copy->name_count && (order = span_compare(copy->names[n], rows_out->columns[i].name)) < 0)
            n++;
        if (n < copy->name_count && order == 0)
            copy->filtered[kept++] = rows_out->columns[i];
    }
    rows_out->columns = copy->filtered;
    rows_out->column_count = kept;
    return ERR_OK;
}

static enum err copy_head(struct head_copy *copy, const struct head_device *dev, int64_t from_ns, int64_t to_ns, uint64_t rank)
{
    struct head_cursor cursor;
    struct rows rows;
    enum err err;
    copy->source = (struct merge_source){.rank = rank, .next = head_copy_next};
    copy->last = &copy->first;
    head_cursor_init(&cursor, dev, from_ns, to_ns, rank);
    while (!(err = cursor.source.next(&cursor.source, &rows)) && rows.row_count > 0) {
        struct block_copy *block = block_copy_new(&rows);
        if (!block) {
            err = ERR_NOMEM;
            break;
        }
        *copy->last = block;
        copy->last = &block->next;
    }
    if (cursor.source.close)
        cursor.source.close(&cursor.source);
    return err;
}

static void note_newest(struct partition_view *view, int64_t time_ns)
{
    if (!view->has_newest || time_ns > view->newest_ns)
        view->newest_ns = time_ns;
    view->has_newest = true;
}

static void take_segment(struct partition_view *view, struct segment_ref *ref)
{
    const struct segment_chunk *first;
    size_t count;
    segment_find(ref->seg, &first, &count, view->device, INT64_MIN, INT64_MAX);
    if (count == 0)
        return;
    note_newest(view, first[count - 1].time_ns_max);
    segment_find(ref->seg, &first, &count, view->device, view->from_ns, view->to_ns);
    if (count > 0)
        view->refs[view->ref_count++] = segment_ref_ref(ref);
}

struct partition_view *partition_view_new(const struct head *const *heads, const uint64_t *ranks, size_t head_count,
                                          struct segment_ref *const *refs, size_t ref_count, struct span device, int64_t from_ns,
                                          int64_t to_ns)
{
    struct partition_view *view = calloc(1, sizeof *view + device.size);
    if (!view)
        return NULL;
    if (device.size > 0)
        memcpy(view + 1, device.data, device.size);
    view->device = span_of(view + 1, device.size);
    view->from_ns = from_ns;
    view->to_ns = to_ns;
    view->heads = calloc(head_count + 1, sizeof *view->heads);
    view->refs = calloc(ref_count + 1, sizeof *view->refs);
    view->cursors = calloc(ref_count + 1, sizeof *view->cursors);
    enum err err = view->heads && view->refs && view->cursors ? ERR_OK : ERR_NOMEM;
    for (size_t i = 0; i < ref_count && !err; i++)
        take_segment(view, refs[i]);
    for (size_t i = 0; i < head_count && !err; i++) {
        const struct head_device *dev = heads[i] ? head_find(heads[i], view->device) : NULL;
        if (!dev || head_device_row_count(dev) == 0)
            continue;
        note_newest(view, head_device_last_ns(dev));
        err = copy_head(&view->heads[view->head_count++], dev, from_ns, to_ns, ranks[i]);
    }
    if (!err)
        return view;
    partition_view_free(view);
    return NULL;
}

void partition_view_free(struct partition_view *view)
{
    if (!view)
        return;
    for (size_t i = 0; i < view->head_count; i++) {
        for (struct block_copy *block = view->heads[i].first, *next; block; block = next) {
            next = block->next;
            free(block);
        }
        free(view->heads[i].filtered);
    }
    for (size_t i = 0; i < view->ref_count; i++)
        segment_ref_unref(view->refs[i]);
    free(view->heads);
    free(view->refs);
    free(view->cursors);
    free(view);
}

enum err partition_view_sources(struct partition_view *view, const struct span *names, size_t name_count, void *context,
                                enum err (*on_source)(void *context, struct merge_source *source))
{
    enum err err = ERR_OK;
    for (size_t i = 0; i < view->ref_count && !err; i++) {
        segment_cursor_init(&view->cursors[i], view->refs[i]->seg, view->device, view->from_ns, view->to_ns, names, name_count, true);
        err = on_source(context, &view->cursors[i].source);
    }
    for (size_t i = 0; i < view->head_count && !err; i++) {
        struct head_copy *copy = &view->heads[i];
        copy->at = copy->first;
        copy->names = names;
        copy->name_count = name_count;
        free(copy->filtered);
        copy->filtered = calloc(name_count + 1, sizeof *copy->filtered);
        err = copy->filtered ? on_source(context, &copy->source) : ERR_NOMEM;
    }
    return err;
}

/* Passes names on and keeps the first error. */
struct name_call {
    void *context;
    enum err (*on_name)(void *context, struct span name);
    enum err err;
};

static void name_call_on_column(void *context, struct span name, const struct chunk_stats *stats)
{
    struct name_call *call = context;
    (void)stats;
    if (!call->err)
        call->err = call->on_name(call->context, name);
}

static enum err segment_names(const struct partition_view *view, const struct segment *seg, void *context,
                              enum err (*on_name)(void *context, struct span name))
{
    struct name_call call = {context, on_name, ERR_OK};
    const struct segment_chunk *chunk;
    size_t count;
    segment_find(seg, &chunk, &count, view->device, view->from_ns, view->to_ns);
    for (size_t c = 0; c < count && !call.err; c++)
        segment_chunk_columns(seg, &chunk[c], &call, name_call_on_column);
    return call.err;
}

enum err partition_view_names(const struct partition_view *view, void *context, enum err (*on_name)(void *context, struct span name))
{
    enum err err = ERR_OK;
    for (size_t i = 0; i < view->ref_count && !err; i++)
        err = segment_names(view, view->refs[i]->seg, context, on_name);
    for (size_t i = 0; i < view->head_count; i++) {
        for (const struct block_copy *block = view->heads[i].first; block && !err; block = block->next) {
            for (size_t c = 0; c < block->rows.column_count && !err; c++)
                err = on_name(context, block->rows.columns[c].name);
        }
    }
    return err;
}

bool partition_view_newest(const struct partition_view *view, int64_t *newest_ns_out)
{
    *newest_ns_out = view->newest_ns;
    return view->has_newest;
}

uint64_t partition_view_corrupt_count(const struct partition_view *view)
{
    uint64_t count = 0;
    for (size_t i = 0; i < view->ref_count; i++)
        count += view->cursors[i].corrupt_count;
    return count;
}

const char *partition_view_corrupt_text(const struct partition_view *view)
{
    for (size_t i = 0; i < view->ref_count; i++)
        if (view->cursors[i].corrupt_count > 0)
            return view->cursors[i].msg.text;
    return NULL;
}
