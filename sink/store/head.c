/* device table -> device -> blocks ordered by time -> columns ordered by name.
 *
 * Adding a row first makes all the room it needs (device, block, columns, rows) and only then writes, so that a refusal leaves no half row
 * behind. What room was made stays, empty, and is counted. The metrics of a device come in the same order in nearly every row: a hint per
 * place remembers the column, and one comparison of the name replaces the search. */
#include "sink/store/head.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/hash.h"

#define ROW_ROOM_FIRST 8
#define HINTS_MAX 64

/* A metric name, shared by all columns of the head. */
struct head_name {
    uint64_t hash;
    uint32_t size;
    uint8_t bytes[];
};

struct head_column {
    const struct head_name *name;
    double *values;
    uint64_t *present;
};

struct head_block {
    size_t row_count, row_room;
    size_t column_count, column_room;
    int64_t *times;
    struct head_column *columns;
};

struct head_device {
    uint64_t hash;
    size_t block_count, block_room, row_count;
    struct head_block **blocks;
    uint64_t source_first, source_last;
    uint16_t hints[HINTS_MAX]; /* column in the last block of the i-th metric of the last row */
    uint32_t id_size;
    uint8_t id[];
};

struct head {
    size_t limit, bytes, sealed_bytes;
    uint64_t seed;
    struct head_name **names;
    size_t name_count, name_room; /* room: a power of two, or 0 */
    struct head_device **devices;
    size_t device_count, device_room;
    struct head_stats stats;
};

/* ---- memory ---- */

/* All memory of a head comes from here, so that the sum is exact. Returns NULL and says why. */
static void *head_alloc(struct head *head, enum err *err_out, size_t size)
{
    if (head->bytes + head->sealed_bytes + size > head->limit) {
        *err_out = ERR_FULL;
        return NULL;
    }
    void *memory = calloc(1, size);
    if (!memory) {
        *err_out = ERR_NOMEM;
        return NULL;
    }
    head->bytes += size;
    return memory;
}

static void head_dealloc(struct head *head, void *memory, size_t size)
{
    if (!memory)
        return;
    DCHECK(head->bytes >= size);
    head->bytes -= size;
    free(memory);
}

/* A larger, zeroed copy of *memory; the old one is freed. */
static enum err head_regrow(struct head *head, void **memory, size_t old_size, size_t new_size)
{
    enum err err = ERR_OK;
    void *larger = head_alloc(head, &err, new_size);
    if (!larger)
        return err;
    if (old_size)
        memcpy(larger, *memory, old_size);
    head_dealloc(head, *memory, old_size);
    *memory = larger;
    return ERR_OK;
}

static size_t bitmap_size(size_t row_room) { return rows_bitmap_words(row_room) * sizeof(uint64_t); }

struct head *head_new(size_t limit_bytes, uint64_t hash_seed)
{
    struct head *head = calloc(1, sizeof *head);
    if (head)
        *head = (struct head){.limit = limit_bytes, .bytes = sizeof *head, .seed = hash_seed};
    return head;
}

static void block_free(struct head *head, struct head_block *block)
{
    for (size_t i = 0; i < block->column_count; i++) {
        head_dealloc(head, block->columns[i].values, block->row_room * sizeof(double));
        head_dealloc(head, block->columns[i].present, bitmap_size(block->row_room));
    }
    head_dealloc(head, block->columns, block->column_room * sizeof *block->columns);
    head_dealloc(head, block->times, block->row_room * sizeof *block->times);
    head_dealloc(head, block, sizeof *block);
}

/* Free all that the head holds, but not itself. */
static void head_clear(struct head *head)
{
    for (size_t i = 0; i < head->device_room; i++) {
        struct head_device *dev = head->devices[i];
        if (!dev)
            continue;
        for (size_t k = 0; k < dev->block_count; k++)
            block_free(head, dev->blocks[k]);
        head_dealloc(head, dev->blocks, dev->block_room * sizeof *dev->blocks);
        head_dealloc(head, dev, sizeof *dev + dev->id_size);
    }
    for (size_t i = 0; i < head->name_room; i++)
        if (head->names[i])
            head_dealloc(head, head->names[i], sizeof *head->names[i] + head->names[i]->size);
    head_dealloc(head, head->devices, head->device_room * sizeof *head->devices);
    head_dealloc(head, head->names, head->name_room * sizeof *head->names);
}

void head_free(struct head *head)
{
    if (!head)
        return;
    CHECK(head->sealed_bytes == 0);
    head_clear(head);
    CHECK(head->bytes == sizeof *head); /* the account was exact */
    free(head);
}

/* ---- names and devices ---- */

static inline struct span name_span(const struct head_name *name) { return span_of(name->bytes, name->size); }

/* The slot where a name is or would be; the table has room. */
static size_t name_slot(const struct head *head, uint64_t hash, struct span bytes)
{
    size_t slot = hash & (head->name_room - 1);
    while (head->names[slot] && (head->names[slot]->hash != hash || !span_equal(name_span(head->names[slot]), bytes)))
        slot = (slot + 1) & (head->name_room - 1);
    return slot;
}

static enum err names_grow(struct head *head)
{
    size_t room = head->name_room ? head->name_room * 2 : 64, old_room = head->name_room;
    enum err err = ERR_OK;
    struct head_name **names = head_alloc(head, &err, room * sizeof *names), **old = head->names;
    if (!names)
        return err;
    head->names = names;
    head->name_room = room;
    for (size_t i = 0; i < old_room; i++)
        if (old[i])
            names[name_slot(head, old[i]->hash, name_span(old[i]))] = old[i];
    head_dealloc(head, old, old_room * sizeof *old);
    return ERR_OK;
}

static enum err name_intern(struct head *head, const struct head_name **name_out, struct span bytes)
{
    if ((head->name_count + 1) * 4 > head->name_room * 3) {
        enum err err = names_grow(head);
        if (err)
            return err;
    }
    uint64_t hash = hash_span(bytes, head->seed);
    size_t slot = name_slot(head, hash, bytes);
    if (!head->names[slot]) {
        enum err err = ERR_OK;
        struct head_name *name = head_alloc(head, &err, sizeof *name + bytes.size);
        if (!name)
            return err;
        name->hash = hash;
        name->size = (uint32_t)bytes.size;
        memcpy(name->bytes, bytes.data, bytes.size);
        head->names[slot] = name;
        head->name_count++;
    }
    *name_out = head->names[slot];
    return ERR_OK;
}

struct span head_device_id(const struct head_device *dev) { return span_of(dev->id, dev->id_size); }
size_t head_device_row_count(const struct head_device *dev) { return dev->row_count; }

int64_t head_device_last_ns(const struct head_device *dev)
{
    if (dev->row_count == 0)
        return INT64_MIN;
    const struct head_block *last = dev->blocks[dev->block_count - 1];
    return last->times[last->row_count - 1];
}

static size_t device_slot(const struct head *head, uint64_t hash, struct span id)
{
    size_t slot = hash & (head->device_room - 1);
    while (head->devices[slot] && (head->devices[slot]->hash != hash || !span_equal(head_device_id(head->devices[slot]), id)))
        slot = (slot + 1) & (head->device_room - 1);
    return slot;
}

static enum err devices_grow(struct head *head)
{
    size_t room = head->device_room ? head->device_room * 2 : 64, old_room = head->device_room;
    enum err err = ERR_OK;
    struct head_device **devices = head_alloc(head, &err, room * sizeof *devices), **old = head->devices;
    if (!devices)
        return err;
    head->devices = devices;
    head->device_room = room;
    for (size_t i = 0; i < old_room; i++)
        if (old[i])
            devices[device_slot(head, old[i]->hash, head_device_id(old[i]))] = old[i];
    head_dealloc(head, old, old_room * sizeof *old);
    return ERR_OK;
}

static enum err device_get(struct head *head, struct head_device **dev_out, struct span id)
{
    if ((head->device_count + 1) * 4 > head->device_room * 3) {
        enum err err = devices_grow(head);
        if (err)
            return err;
    }
    uint64_t hash = hash_span(id, head->seed);
    size_t slot = device_slot(head, hash, id);
    if (!head->devices[slot]) {
        enum err err = ERR_OK;
        struct head_device *dev = head_alloc(head, &err, sizeof *dev + id.size);
        if (!dev)
            return err;
        dev->hash = hash;
        dev->id_size = (uint32_t)id.size;
        memcpy(dev->id, id.data, id.size);
        head->devices[slot] = dev;
        head->device_count++;
    }
    *dev_out = head->devices[slot];
    return ERR_OK;
}

const struct head_device *head_find(const struct head *head, struct span device)
{
    return head->device_room ? head->devices[device_slot(head, hash_span(device, head->seed), device)] : NULL;
}

static int compare_devices(const void *a, const void *b)
{
    return span_compare(head_device_id(*(const struct head_device *const *)a), head_device_id(*(const struct head_device *const *)b));
}

const struct head_device **head_devices_sorted(const struct head *head, size_t *count_out)
{
    const struct head_device **sorted = malloc((head->device_count + 1) * sizeof(struct head_device *));
    if (!sorted)
        return NULL;
    size_t count = 0;
    for (size_t i = 0; i < head->device_room; i++)
        if (head->devices[i] && head->devices[i]->row_count)
            sorted[count++] = head->devices[i];
    qsort(sorted, count, sizeof(struct head_device *), compare_devices);
    *count_out = count;
    return sorted;
}

enum err head_each_device(const struct head *head, void *context, enum err (*on_device)(void *context, struct span name, int64_t newest_ns))
{
    enum err err = ERR_OK;
    for (size_t i = 0; i < head->device_room && !err; i++) {
        const struct head_device *dev = head->devices[i];
        if (dev && dev->row_count)
            err = on_device(context, head_device_id(dev), head_device_last_ns(dev));
    }
    return err;
}

/* ---- blocks ---- */

/* Place of the column of that name, or where it belongs. */
static size_t column_place(const struct head_block *block, bool *found_out, struct span name)
{
    size_t low = 0, high = block->column_count;
    *found_out = false;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = span_compare(name_span(block->columns[middle].name), name);
        if (order == 0) {
            *found_out = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool device_has_metric(const struct head_device *dev, struct span metric)
{
    bool found = false;
    for (size_t i = dev->block_count; i-- > 0 && !found;)
        (void)column_place(dev->blocks[i], &found, metric);
    return found;
}

bool head_has_series(const struct head *head, struct span device, struct span metric)
{
    const struct head_device *dev = head_find(head, device);
    return dev && dev->row_count && (metric.size == 0 || device_has_metric(dev, metric));
}

static enum err block_add_column(struct head *head, struct head_device *dev, struct head_block *block, size_t place, struct span bytes)
{
    const struct head_name *name = NULL;
    if (block->column_count == ROWS_COLUMNS_MAX)
        return ERR_INVALID;
    enum err err = name_intern(head, &name, bytes);
    if (err)
        return err;
    if (block->column_count == block->column_room) {
        size_t room = block->column_room ? block->column_room * 2 : 4;
        void *columns = block->columns;
        err = head_regrow(head, &columns, block->column_room * sizeof *block->columns, room * sizeof *block->columns);
        if (err)
            return err;
        block->columns = columns;
        block->column_room = room;
    }
    double *values = head_alloc(head, &err, block->row_room * sizeof *values);
    if (!values)
        return err;
    uint64_t *present = head_alloc(head, &err, bitmap_size(block->row_room));
    if (!present) {
        head_dealloc(head, values, block->row_room * sizeof *values);
        return err;
    }
    if (dev && !device_has_metric(dev, bytes))
        head->stats.series_count++;
    memmove(block->columns + place + 1, block->columns + place, (block->column_count - place) * sizeof *block->columns);
    block->columns[place] = (struct head_column){name, values, present};
    block->column_count++;
    return ERR_OK;
}

/* Make room for more rows in all arrays. On failure some arrays may be larger than row_room says, which the account would not know: so
 * the new ones are all made first. */
static enum err block_grow(struct head *head, struct head_block *block)
{
    size_t room = block->row_room * 2 < HEAD_BLOCK_ROWS ? block->row_room * 2 : HEAD_BLOCK_ROWS;
    size_t per_column = room * sizeof(double) + bitmap_size(room);
    if (head->bytes + head->sealed_bytes + room * sizeof(int64_t) + per_column * block->column_count > head->limit)
        return ERR_FULL;
    enum err err = ERR_OK;
    struct head_block larger = {.row_room = room, .column_room = block->column_room};
    larger.times = head_alloc(head, &err, room * sizeof *larger.times);
    larger.columns = err ? NULL : calloc(block->column_room ? block->column_room : 1, sizeof *larger.columns);
    if (!err && !larger.columns)
        err = ERR_NOMEM;
    for (size_t i = 0; !err && i < block->column_count; i++) {
        larger.columns[i].values = head_alloc(head, &err, room * sizeof(double));
        if (!err)
            larger.columns[i].present = head_alloc(head, &err, bitmap_size(room));
        larger.column_count = i + 1;
    }
    /* Swap the new arrays in, or drop them: either way `larger` holds what goes. */
    if (!err) {
        memcpy(larger.times, block->times, block->row_count * sizeof *block->times);
        int64_t *times = block->times;
        block->times = larger.times;
        larger.times = times;
        for (size_t i = 0; i < block->column_count; i++) {
            struct head_column *column = &block->columns[i], *fresh = &larger.columns[i];
            memcpy(fresh->values, column->values, block->row_count * sizeof(double));
            memcpy(fresh->present, column->present, bitmap_size(block->row_room));
            double *values = column->values;
            uint64_t *present = column->present;
            column->values = fresh->values;
            column->present = fresh->present;
            fresh->values = values;
            fresh->present = present;
        }
        larger.row_room = block->row_room;
        block->row_room = room;
    }
    for (size_t i = 0; i < larger.column_count; i++) {
        head_dealloc(head, larger.columns[i].values, larger.row_room * sizeof(double));
        head_dealloc(head, larger.columns[i].present, bitmap_size(larger.row_room));
    }
    free(larger.columns);
    head_dealloc(head, larger.times, larger.row_room * sizeof *larger.times);
    return err;
}

static struct head_block *block_new(struct head *head, enum err *err_out, size_t row_room)
{
    struct head_block *block = head_alloc(head, err_out, sizeof *block);
    if (!block)
        return NULL;
    block->times = head_alloc(head, err_out, row_room * sizeof *block->times);
    if (!block->times) {
        head_dealloc(head, block, sizeof *block);
        return NULL;
    }
    block->row_room = row_room;
    return block;
}

/* Put a block into the device's list. */
static enum err device_insert_block(struct head *head, struct head_device *dev, struct head_block *block, size_t place)
{
    if (dev->block_count == dev->block_room) {
        size_t room = dev->block_room ? dev->block_room * 2 : 1;
        void *blocks = dev->blocks;
        enum err err = head_regrow(head, &blocks, dev->block_room * sizeof *dev->blocks, room * sizeof *dev->blocks);
        if (err)
            return err;
        dev->blocks = blocks;
        dev->block_room = room;
    }
    memmove(dev->blocks + place + 1, dev->blocks + place, (dev->block_count - place) * sizeof *dev->blocks);
    dev->blocks[place] = block;
    dev->block_count++;
    return ERR_OK;
}

/* Move the upper half of a full block into a new one behind it. */
static enum err device_split_block(struct head *head, struct head_device *dev, size_t place)
{
    struct head_block *block = dev->blocks[place];
    size_t keep = block->row_count / 2, move = block->row_count - keep;
    enum err err = ERR_OK;
    struct head_block *upper = block_new(head, &err, HEAD_BLOCK_ROWS);
    if (!upper)
        return err;
    for (size_t i = 0; i < block->column_count; i++) {
        const struct head_column *from = &block->columns[i];
        err = block_add_column(head, NULL, upper, i, name_span(from->name));
        if (err)
            break;
        memcpy(upper->columns[i].values, from->values + keep, move * sizeof(double));
        rows_bitmap_merge(upper->columns[i].present, 0, from->present, keep, move);
    }
    if (!err) {
        memcpy(upper->times, block->times + keep, move * sizeof *upper->times);
        upper->row_count = move;
        err = device_insert_block(head, dev, upper, place + 1);
    }
    if (err) {
        block_free(head, upper);
        return err;
    }
    for (size_t i = 0; i < block->column_count; i++)
        for (size_t row = keep; row < block->row_count; row++)
            rows_bit_clear(block->columns[i].present, row);
    block->row_count = keep;
    return ERR_OK;
}

/* The block whose range a time belongs to: the last one that begins at or before it, or the first. */
static size_t device_find_block(const struct head_device *dev, int64_t time_ns)
{
    size_t low = 0, high = dev->block_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (dev->blocks[middle]->times[0] <= time_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? low - 1 : 0;
}

/* First row at or after time_ns. */
static size_t block_lower_bound(const struct head_block *block, int64_t time_ns)
{
    size_t low = 0, high = block->row_count;
    if (high && block->times[high - 1] < time_ns)
        return high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (block->times[middle] < time_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- adding ---- */

/* Find the place of a row and make room for one there. *new_out: the row is not there yet. */
static enum err place_row(struct head *head, struct head_device *dev, struct head_block **block_out, size_t *row_out, bool *new_out,
                          int64_t time_ns)
{
    enum err err = ERR_OK;
    for (;;) {
        size_t place = dev->row_count ? device_find_block(dev, time_ns) : 0;
        struct head_block *block = dev->block_count ? dev->blocks[place] : NULL;
        if (block) {
            *row_out = block_lower_bound(block, time_ns);
            *new_out = *row_out == block->row_count || block->times[*row_out] != time_ns;
            *block_out = block;
            if (!*new_out || block->row_count < block->row_room)
                return ERR_OK;
            if (block->row_room < HEAD_BLOCK_ROWS)
                return block_grow(head, block);
            if (place + 1 < dev->block_count || *row_out < block->row_count) {
                err = device_split_block(head, dev, place);
                if (err)
                    return err;
                continue;
            }
        }
        /* An empty block at the end of the list would break the order of the list: it is given its row before anyone looks. */
        block = block_new(head, &err, dev->block_count ? ROW_ROOM_FIRST * 8 : ROW_ROOM_FIRST);
        if (!block)
            return err;
        *block_out = block;
        *row_out = 0;
        *new_out = true;
        return ERR_OK;
    }
}

static enum err ensure_columns(struct head *head, struct head_device *dev, struct head_block *block, const struct head_metric *metrics,
                               size_t metric_count)
{
    for (size_t i = 0; i < metric_count; i++) {
        bool found;
        if (i < HINTS_MAX && dev->hints[i] < block->column_count &&
            span_equal(name_span(block->columns[dev->hints[i]].name), metrics[i].name))
            continue;
        size_t place = column_place(block, &found, metrics[i].name);
        if (!found) {
            enum err err = block_add_column(head, dev, block, place, metrics[i].name);
            if (err)
                return err;
        }
    }
    return ERR_OK;
}

static void block_insert_row(struct head_block *block, size_t row, int64_t time_ns)
{
    size_t behind = block->row_count - row;
    if (behind) {
        memmove(block->times + row + 1, block->times + row, behind * sizeof *block->times);
        for (size_t i = 0; i < block->column_count; i++) {
            struct head_column *column = &block->columns[i];
            memmove(column->values + row + 1, column->values + row, behind * sizeof *column->values);
            for (size_t k = block->row_count; k > row; k--)
                if (rows_bit(column->present, k - 1))
                    rows_bit_set(column->present, k);
                else
                    rows_bit_clear(column->present, k);
            rows_bit_clear(column->present, row);
        }
    }
    block->times[row] = time_ns;
    block->row_count++;
}

static void write_values(struct head *head, struct head_device *dev, struct head_block *block, size_t row,
                         const struct head_metric *metrics, size_t metric_count)
{
    for (size_t i = 0; i < metric_count; i++) {
        size_t place = i < HINTS_MAX ? dev->hints[i] : block->column_count;
        if (place >= block->column_count || !span_equal(name_span(block->columns[place].name), metrics[i].name)) {
            bool found;
            place = column_place(block, &found, metrics[i].name);
            CHECK(found);
            if (i < HINTS_MAX && place <= UINT16_MAX)
                dev->hints[i] = (uint16_t)place;
        }
        struct head_column *column = &block->columns[place];
        if (rows_bit(column->present, row)) {
            head->stats.overwritten++;
        } else {
            head->stats.point_count++;
            rows_bit_set(column->present, row);
        }
        column->values[row] = metrics[i].value;
    }
}

static bool names_are_valid(struct span device, const struct head_metric *metrics, size_t metric_count)
{
    if (device.size == 0 || device.size > ROWS_NAME_SIZE_MAX || metric_count > ROWS_COLUMNS_MAX)
        return false;
    for (size_t i = 0; i < metric_count; i++)
        if (metrics[i].name.size == 0 || metrics[i].name.size > ROWS_NAME_SIZE_MAX)
            return false;
    return true;
}

static void note_row(struct head *head, struct head_device *dev, bool late, int64_t time_ns, uint64_t source_number)
{
    struct head_stats *stats = &head->stats;
    if (stats->row_count == 0) {
        stats->time_ns_min = stats->time_ns_max = time_ns;
        stats->source_first = source_number;
    }
    stats->time_ns_min = time_ns < stats->time_ns_min ? time_ns : stats->time_ns_min;
    stats->time_ns_max = time_ns > stats->time_ns_max ? time_ns : stats->time_ns_max;
    stats->source_last = source_number;
    stats->late_row_count += late;
    stats->row_count++;
    if (dev->row_count++ == 0)
        dev->source_first = source_number;
}

enum err head_add_row(struct head *head, struct span device, int64_t time_ns, const struct head_metric *metrics, size_t metric_count,
                      uint64_t source_number)
{
    if (!names_are_valid(device, metrics, metric_count))
        return ERR_INVALID;
    if (metric_count == 0)
        return ERR_OK;
    struct head_device *dev = NULL;
    enum err err = device_get(head, &dev, device);
    if (err)
        return err;
    struct head_block *block = NULL;
    size_t row = 0, series_count = head->stats.series_count;
    bool fresh = false;
    err = place_row(head, dev, &block, &row, &fresh, time_ns);
    if (err)
        return err;
    bool detached = block->row_count == 0; /* a new block joins the list with its first row */
    bool late = dev->row_count && time_ns < head_device_last_ns(dev);
    err = ensure_columns(head, dev, block, metrics, metric_count);
    if (!err && detached)
        err = device_insert_block(head, dev, block, dev->block_count);
    if (err) {
        if (detached) {
            head->stats.series_count = series_count;
            block_free(head, block);
        }
        return err;
    }
    if (fresh) {
        block_insert_row(block, row, time_ns);
        note_row(head, dev, late, time_ns, source_number);
    }
    dev->source_last = source_number;
    head->stats.source_last = source_number;
    write_values(head, dev, block, row, metrics, metric_count);
    return ERR_OK;
}

/* ---- sealing ---- */

struct head *head_seal(struct head *head)
{
    struct head *sealed = malloc(sizeof *sealed);
    if (!sealed)
        return NULL;
    *sealed = *head;
    sealed->sealed_bytes = 0;
    *head =
        (struct head){.limit = head->limit, .bytes = sizeof *head, .sealed_bytes = head->sealed_bytes + sealed->bytes, .seed = head->seed};
    return sealed;
}

void head_unseal_free(struct head *head, struct head *sealed)
{
    CHECK(head->sealed_bytes >= sealed->bytes);
    head->sealed_bytes -= sealed->bytes;
    head_free(sealed);
}

void head_get_stats(const struct head *head, struct head_stats *stats_out)
{
    *stats_out = head->stats;
    stats_out->bytes = head->bytes;
    stats_out->device_count = head->device_count;
}

size_t head_bytes(const struct head *head) { return head->bytes + head->sealed_bytes; }

/* ---- reading ---- */

static enum err cursor_reserve(struct head_cursor *cursor, size_t column_count)
{
    if (column_count <= cursor->column_room)
        return ERR_OK;
    struct rows_column *columns = realloc(cursor->columns, column_count * sizeof *columns);
    if (!columns)
        return ERR_NOMEM;
    cursor->columns = columns;
    uint64_t *bitmaps = realloc(cursor->bitmaps, column_count * bitmap_size(HEAD_BLOCK_ROWS));
    if (!bitmaps)
        return ERR_NOMEM;
    cursor->bitmaps = bitmaps;
    cursor->column_room = column_count;
    return ERR_OK;
}

static enum err cursor_next(struct merge_source *source, struct rows *rows_out)
{
    struct head_cursor *cursor = (struct head_cursor *)source;
    *rows_out = (struct rows){0};
    while (cursor->dev && cursor->block_index < cursor->dev->block_count) {
        const struct head_block *block = cursor->dev->blocks[cursor->block_index++];
        size_t first = block_lower_bound(block, cursor->from_ns);
        size_t end = cursor->to_ns == INT64_MAX ? block->row_count : block_lower_bound(block, cursor->to_ns + 1);
        if (first >= end)
            continue;
        enum err err = cursor_reserve(cursor, block->column_count);
        if (err)
            return err;
        for (size_t i = 0; i < block->column_count; i++) {
            const struct head_column *column = &block->columns[i];
            const uint64_t *present = column->present;
            if (first) {
                uint64_t *shifted = cursor->bitmaps + i * rows_bitmap_words(HEAD_BLOCK_ROWS);
                memset(shifted, 0, bitmap_size(end - first));
                rows_bitmap_merge(shifted, 0, present, first, end - first);
                present = shifted;
            }
            cursor->columns[i] = (struct rows_column){name_span(column->name), column->values + first, present};
        }
        *rows_out = (struct rows){.row_count = end - first,
                                  .times_ns = block->times + first,
                                  .column_count = block->column_count,
                                  .columns = cursor->columns,
                                  .source_first = cursor->dev->source_first,
                                  .source_last = cursor->dev->source_last};
        break;
    }
    return ERR_OK;
}

static void cursor_close(struct merge_source *source)
{
    struct head_cursor *cursor = (struct head_cursor *)source;
    free(cursor->columns);
    free(cursor->bitmaps);
    cursor->columns = NULL;
    cursor->bitmaps = NULL;
    cursor->column_room = 0;
}

void head_cursor_init(struct head_cursor *cursor, const struct head_device *dev, int64_t from_ns, int64_t to_ns, uint64_t rank)
{
    *cursor = (struct head_cursor){
        .source = {.rank = rank, .next = cursor_next, .close = cursor_close},
        .dev = dev,
        .from_ns = from_ns,
        .to_ns = to_ns,
    };
    if (dev && dev->row_count)
        cursor->block_index = device_find_block(dev, from_ns);
}
