/* The bytes of a chunk; docs/formats.md has the table.
 *
 * Everything of variable length is a varint, because a level-0 chunk may have three rows: header bytes are then most of it. Names are
 * front-coded against the one before (they are ordered, and telemetry names share prefixes). Statistics are decimals where that is exact.
 * Rejected: offsets instead of sizes (larger, and they may overlap, which a reader must then check). */
#include "sink/store/chunk.h"

#include <math.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "sink/codec/timestamps.h"

#define CHUNK_MAGIC 0x4b434754u /* "TGCK" */
#define CHUNK_VERSION 1
#define CHUNK_FIXED_SIZE 12
#define CHUNK_CRC_SIZE 4

/* ---- statistics ---- */

#define NUMBER_RAW 18

static size_t number_put(uint8_t *at, double value)
{
    static const double powers[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    for (unsigned e = 0; e < sizeof powers / sizeof *powers; e++) {
        double scaled = value * powers[e];
        if (!(fabs(scaled) < 1e13))
            break;
        int64_t integer = (int64_t)nearbyint(scaled); /* through int64: -0.0 is not 0 */
        double back = (double)integer / powers[e];
        uint64_t back_bits;
        memcpy(&back_bits, &back, sizeof back_bits);
        if (back_bits != bits)
            continue;
        at[0] = (uint8_t)e;
        return 1 + varint_put(at + 1, zigzag_encode(integer));
    }
    at[0] = NUMBER_RAW;
    store_le64(at + 1, bits);
    return 9;
}

static size_t number_get(double *value_out, const uint8_t *at, const uint8_t *end)
{
    static const double powers[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};
    if (at == end)
        return 0;
    if (*at == NUMBER_RAW) {
        if (end - at < 9)
            return 0;
        uint64_t bits = load_le64(at + 1);
        memcpy(value_out, &bits, sizeof bits);
        return 9;
    }
    uint64_t integer;
    size_t used;
    if (*at >= sizeof powers / sizeof *powers || !(used = varint_get(&integer, at + 1, end)))
        return 0;
    *value_out = (double)zigzag_decode(integer) / powers[*at];
    return 1 + used;
}

size_t chunk_stats_put(uint8_t *at, const struct chunk_stats *stats, size_t row_count)
{
    size_t size = varint_put(at, row_count - stats->count);
    size += number_put(at + size, stats->min);
    size += number_put(at + size, stats->max);
    return size + number_put(at + size, stats->sum);
}

size_t chunk_stats_get(struct chunk_stats *stats_out, size_t row_count, const uint8_t *at, const uint8_t *end)
{
    uint64_t missing;
    size_t size = varint_get(&missing, at, end);
    if (size == 0 || missing >= row_count)
        return 0;
    stats_out->count = (uint32_t)(row_count - missing);
    double *const fields[] = {&stats_out->min, &stats_out->max, &stats_out->sum};
    for (size_t i = 0; i < 3; i++) {
        size_t used = number_get(fields[i], at + size, end);
        if (used == 0)
            return 0;
        size += used;
    }
    return size;
}

struct chunk_stats chunk_stats_of(const double *values, const uint64_t *present, size_t row_count)
{
    struct chunk_stats stats = {0, NAN, NAN, 0};
    for (size_t i = 0; i < row_count; i++) {
        if (present && !rows_bit(present, i))
            continue;
        stats.count++;
        double value = values[i];
        if (value != value)
            continue;
        stats.sum += value;
        if (!(stats.min <= value))
            stats.min = value;
        if (!(stats.max >= value))
            stats.max = value;
    }
    return stats;
}

void chunk_stats_add(struct chunk_stats *total, const struct chunk_stats *more)
{
    if (more->count == 0)
        return;
    if (total->count == 0) {
        *total = *more;
        return;
    }
    total->count += more->count;
    total->sum += more->sum;
    if (!(total->min <= more->min) && more->min == more->min)
        total->min = more->min;
    if (!(total->max >= more->max) && more->max == more->max)
        total->max = more->max;
}

/* ---- encode ---- */

struct chunk_encoder {
    struct column_scratch *column;
    struct timestamps_scratch times;
    uint8_t times_bytes[64 + CHUNK_ROWS_MAX * 9];
    uint8_t column_bytes[64 + CHUNK_ROWS_MAX * 9];
    uint8_t *head, *body; /* head: what stands before the times; body: times and columns */
    size_t head_size, head_room, body_size, body_room;
};

_Static_assert(CHUNK_ROWS_MAX <= INTEGERS_COUNT_MAX, "times are one sequence of integers");

struct chunk_encoder *chunk_encoder_new(void)
{
    struct chunk_encoder *enc = calloc(1, sizeof *enc);
    if (!enc)
        return NULL;
    enc->column = column_scratch_new();
    if (!enc->column) {
        free(enc);
        return NULL;
    }
    return enc;
}

void chunk_encoder_free(struct chunk_encoder *enc)
{
    if (!enc)
        return;
    column_scratch_free(enc->column);
    free(enc->head);
    free(enc->body);
    free(enc);
}

/* Make room for `more` bytes behind *size. */
static bool grow(uint8_t **bytes, size_t size, size_t *room, size_t more)
{
    if (size + more <= *room)
        return true;
    size_t wanted = *room * 2 > size + more ? *room * 2 : size + more + 1024;
    uint8_t *larger = realloc(*bytes, wanted);
    if (!larger)
        return false;
    *bytes = larger;
    *room = wanted;
    return true;
}

static bool rows_are_valid(struct span device, const struct rows *rows)
{
    if (rows->row_count == 0 || rows->row_count > CHUNK_ROWS_MAX || device.size == 0 || device.size > ROWS_NAME_SIZE_MAX ||
        rows->column_count > ROWS_COLUMNS_MAX)
        return false;
    for (size_t i = 1; i < rows->row_count; i++)
        if (rows->times_ns[i - 1] >= rows->times_ns[i])
            return false;
    for (size_t i = 0; i < rows->column_count; i++) {
        struct span name = rows->columns[i].name;
        if (name.size == 0 || name.size > ROWS_NAME_SIZE_MAX || (i > 0 && span_compare(rows->columns[i - 1].name, name) >= 0))
            return false;
    }
    return true;
}

/* Append one column: its entry to the head, its bytes to the body. */
static enum err encode_column(struct chunk_encoder *enc, const struct rows_column *column, struct span previous, struct chunk_stats stats,
                              size_t row_count, enum column_effort effort)
{
    const uint64_t *present = stats.count == row_count ? NULL : column->present;
    size_t size = column_encode(enc->column, enc->column_bytes, column->values, present, row_count, effort);
    if (!grow(&enc->body, enc->body_size, &enc->body_room, size + CHUNK_CRC_SIZE) ||
        !grow(&enc->head, enc->head_size, &enc->head_room, column->name.size + 3 * VARINT_SIZE_MAX + 1 + CHUNK_STATS_SIZE_MAX))
        return ERR_NOMEM;
    memcpy(enc->body + enc->body_size, enc->column_bytes, size);
    enc->body_size += size;

    size_t shared = 0;
    while (shared < previous.size && shared < column->name.size && previous.data[shared] == column->name.data[shared])
        shared++;
    uint8_t *at = enc->head + enc->head_size;
    at += varint_put(at, shared);
    at += varint_put(at, column->name.size - shared);
    memcpy(at, column->name.data + shared, column->name.size - shared);
    at += column->name.size - shared;
    *at++ = CHUNK_TYPE_DOUBLE;
    at += varint_put(at, size);
    at += chunk_stats_put(at, &stats, row_count);
    enc->head_size = (size_t)(at - enc->head);
    return ERR_OK;
}

static size_t columns_with_values(const struct rows *rows)
{
    size_t count = 0;
    for (size_t i = 0; i < rows->column_count; i++) {
        const uint64_t *present = rows->columns[i].present;
        bool any = !present;
        for (size_t row = 0; !any && row < rows->row_count; row++)
            any = rows_bit(present, row);
        count += any;
    }
    return count;
}

enum err chunk_encode(struct chunk_encoder *enc, struct span *bytes_out, struct span device, const struct rows *rows,
                      enum column_effort effort)
{
    if (!rows_are_valid(device, rows))
        return ERR_INVALID;
    enc->head_size = CHUNK_FIXED_SIZE;
    enc->body_size = 0;
    size_t times_size = timestamps_encode(&enc->times, enc->times_bytes, rows->times_ns, rows->row_count, effort == COLUMN_DENSE);
    if (!grow(&enc->head, enc->head_size, &enc->head_room, device.size + 8 * VARINT_SIZE_MAX) ||
        !grow(&enc->body, 0, &enc->body_room, times_size + CHUNK_CRC_SIZE))
        return ERR_NOMEM;
    memcpy(enc->body, enc->times_bytes, times_size);
    enc->body_size = times_size;

    int64_t first = rows->times_ns[0], last = rows->times_ns[rows->row_count - 1];
    uint8_t *at = enc->head + CHUNK_FIXED_SIZE;
    at += varint_put(at, device.size);
    memcpy(at, device.data, device.size);
    at += device.size;
    at += varint_put(at, rows->row_count);
    at += varint_put(at, zigzag_encode(first));
    at += varint_put(at, (uint64_t)last - (uint64_t)first);
    at += varint_put(at, rows->source_first);
    at += varint_put(at, rows->source_last - rows->source_first);
    at += varint_put(at, columns_with_values(rows));
    at += varint_put(at, times_size);
    enc->head_size = (size_t)(at - enc->head);

    struct span previous = {0};
    for (size_t i = 0; i < rows->column_count; i++) {
        struct chunk_stats stats = chunk_stats_of(rows->columns[i].values, rows->columns[i].present, rows->row_count);
        if (stats.count == 0)
            continue;
        enum err err = encode_column(enc, &rows->columns[i], previous, stats, rows->row_count, effort);
        if (err)
            return err;
        previous = rows->columns[i].name;
    }

    size_t size = enc->head_size + enc->body_size + CHUNK_CRC_SIZE;
    if (size > CHUNK_SIZE_MAX)
        return ERR_TOOLARGE;
    if (!grow(&enc->head, enc->head_size, &enc->head_room, enc->body_size + CHUNK_CRC_SIZE))
        return ERR_NOMEM;
    store_le32(enc->head, CHUNK_MAGIC);
    store_le32(enc->head + 4, CHUNK_VERSION);
    store_le32(enc->head + 8, (uint32_t)size);
    memcpy(enc->head + enc->head_size, enc->body, enc->body_size);
    store_le32(enc->head + size - CHUNK_CRC_SIZE, crc32c(0, enc->head, size - CHUNK_CRC_SIZE));
    *bytes_out = span_of(enc->head, size);
    return ERR_OK;
}

/* ---- open ---- */

struct parser {
    const uint8_t *at, *end;
    bool bad;
};

static uint64_t take_varint(struct parser *p)
{
    uint64_t value = 0;
    size_t used = p->bad ? 0 : varint_get(&value, p->at, p->end);
    p->at += used;
    p->bad |= used == 0;
    return p->bad ? 0 : value;
}

static struct span take_bytes(struct parser *p, uint64_t size)
{
    if (p->bad || size > (uint64_t)(p->end - p->at)) {
        p->bad = true;
        return (struct span){0};
    }
    struct span bytes = span_of(p->at, (size_t)size);
    p->at += size;
    return bytes;
}

/* Append the name of a column to *names; the caller knows it by its offset until all are there. */
static enum err take_name(struct parser *p, uint8_t **names, size_t *names_size, size_t *names_room, struct span previous, size_t *size_out)
{
    uint64_t shared = take_varint(p), more = take_varint(p);
    struct span suffix = take_bytes(p, more);
    if (p->bad || shared > previous.size || shared + more == 0 || shared + more > ROWS_NAME_SIZE_MAX)
        return ERR_CORRUPT;
    ptrdiff_t previous_at = previous.size ? previous.data - *names : 0;
    if (!grow(names, *names_size, names_room, (size_t)(shared + more)))
        return ERR_NOMEM;
    uint8_t *to = *names + *names_size;
    if (shared)
        memcpy(to, *names + previous_at, (size_t)shared);
    memcpy(to + shared, suffix.data, suffix.size);
    *size_out = (size_t)(shared + more);
    if (previous.size && span_compare(span_of(*names + previous_at, previous.size), span_of(to, *size_out)) >= 0)
        return ERR_CORRUPT;
    *names_size += *size_out;
    return ERR_OK;
}

static enum err open_columns(struct chunk_view *view, struct parser *p)
{
    size_t names_size = 0, names_room = 0, previous_size = 0;
    for (size_t i = 0; i < view->column_count; i++) {
        struct chunk_column *column = &view->columns[i];
        struct span previous = previous_size ? span_of(view->names + names_size - previous_size, previous_size) : (struct span){0};
        enum err err = take_name(p, &view->names, &names_size, &names_room, previous, &previous_size);
        if (err)
            return err;
        column->name.size = previous_size;
        struct span type = take_bytes(p, 1);
        uint64_t size = take_varint(p);
        if (p->bad || size == 0)
            return ERR_CORRUPT;
        column->type = type.data[0];
        column->bytes.size = (size_t)size;
        size_t used = chunk_stats_get(&column->stats, view->row_count, p->at, p->end);
        if (used == 0)
            return ERR_CORRUPT;
        p->at += used;
    }
    const uint8_t *name = view->names;
    for (size_t i = 0; i < view->column_count; i++) {
        view->columns[i].name.data = name;
        name += view->columns[i].name.size;
    }
    return ERR_OK;
}

static enum err open_parts(struct chunk_view *view, struct parser *p)
{
    view->device = take_bytes(p, take_varint(p));
    uint64_t row_count = take_varint(p), first = take_varint(p), range = take_varint(p);
    view->source_first = take_varint(p);
    view->source_last = view->source_first + take_varint(p);
    uint64_t column_count = take_varint(p), times_size = take_varint(p);
    if (p->bad || view->device.size == 0 || view->device.size > ROWS_NAME_SIZE_MAX || row_count == 0 || row_count > CHUNK_ROWS_MAX ||
        column_count > ROWS_COLUMNS_MAX || column_count > (uint64_t)(p->end - p->at) / 8)
        return ERR_CORRUPT;
    view->row_count = (size_t)row_count;
    view->column_count = (size_t)column_count;
    view->time_ns_min = zigzag_decode(first);
    view->time_ns_max = (int64_t)((uint64_t)view->time_ns_min + range);
    if (view->time_ns_max < view->time_ns_min)
        return ERR_CORRUPT;
    view->columns = calloc(view->column_count ? view->column_count : 1, sizeof *view->columns);
    if (!view->columns)
        return ERR_NOMEM;
    enum err err = open_columns(view, p);
    if (err)
        return err;
    view->times = take_bytes(p, times_size);
    for (size_t i = 0; i < view->column_count; i++)
        view->columns[i].bytes = take_bytes(p, view->columns[i].bytes.size);
    return p->bad || p->at != p->end ? ERR_CORRUPT : ERR_OK;
}

enum err chunk_open(struct chunk_view *view_out, struct span bytes)
{
    if (bytes.size < CHUNK_FIXED_SIZE + CHUNK_CRC_SIZE || load_le32(bytes.data) != CHUNK_MAGIC)
        return ERR_CORRUPT;
    uint32_t size = load_le32(bytes.data + 8);
    if (size > bytes.size || size > CHUNK_SIZE_MAX || size < CHUNK_FIXED_SIZE + CHUNK_CRC_SIZE)
        return ERR_CORRUPT;
    if (crc32c(0, bytes.data, size - CHUNK_CRC_SIZE) != load_le32(bytes.data + size - CHUNK_CRC_SIZE))
        return ERR_CORRUPT;
    if (load_le32(bytes.data + 4) != CHUNK_VERSION)
        return ERR_VERSION;
    struct chunk_view view = {.size = size};
    struct parser parser = {bytes.data + CHUNK_FIXED_SIZE, bytes.data + size - CHUNK_CRC_SIZE, false};
    enum err err = open_parts(&view, &parser);
    if (err) {
        chunk_close(&view);
        return err;
    }
    *view_out = view;
    return ERR_OK;
}

void chunk_close(struct chunk_view *view)
{
    free(view->columns);
    free(view->names);
    *view = (struct chunk_view){0};
}

const struct chunk_column *chunk_find_column(const struct chunk_view *view, struct span name)
{
    size_t low = 0, high = view->column_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = span_compare(view->columns[middle].name, name);
        if (order == 0)
            return &view->columns[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

enum err chunk_decode_times(const struct chunk_view *view, int64_t *times_out)
{
    enum err err = timestamps_decode(times_out, view->row_count, view->times);
    if (err)
        return err;
    if (times_out[0] != view->time_ns_min || times_out[view->row_count - 1] != view->time_ns_max)
        return ERR_CORRUPT;
    for (size_t i = 1; i < view->row_count; i++)
        if (times_out[i - 1] >= times_out[i])
            return ERR_CORRUPT;
    return ERR_OK;
}

enum err chunk_decode_column(const struct chunk_view *view, const struct chunk_column *column, struct column_scratch *scratch,
                             double *values_out, uint64_t *present_out)
{
    if (column->type != CHUNK_TYPE_DOUBLE)
        return ERR_VERSION;
    enum err err = column_decode(scratch, values_out, present_out, view->row_count, column->bytes);
    if (err)
        return err;
    size_t count = 0;
    for (size_t i = 0; i < rows_bitmap_words(view->row_count); i++)
        count += (size_t)__builtin_popcountll(present_out[i]);
    return count == column->stats.count ? ERR_OK : ERR_CORRUPT;
}
