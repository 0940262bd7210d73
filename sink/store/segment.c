/* Segment file:
 *
 *     header | chunk | chunk | ... | index | footer
 *
 * The header is written last, over the zeros that were kept for it, when its counts are known; the file has its final name only after that.
 * Chunks stand without gaps, in the order of the index, so the index stores sizes only. In memory a segment is its index as it stands in
 * the file plus 48 bytes a chunk; statistics are parsed from the index when they are asked for. docs/formats.md has the byte table. */
#include "sink/store/segment.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/file.h"

#define SEGMENT_MAGIC 0x47534754u        /* "TGSG" */
#define SEGMENT_FOOTER_MAGIC 0x45534754u /* "TGSE" */
#define SEGMENT_VERSION 1
#define HEADER_FIXED_SIZE 112
#define SOURCE_SIZE 20
#define FOOTER_SIZE 40
#define CRC_SIZE 4
#define WRITE_BUFFER_SIZE (1u << 20)
#define INDEX_SIZE_MAX (1u << 30)

static size_t header_size(size_t source_count) { return HEADER_FIXED_SIZE + source_count * SOURCE_SIZE + CRC_SIZE; }

/* ---- growing bytes ---- */

struct bytes {
    uint8_t *data;
    size_t size, room;
};

/* Room for `more` bytes behind the end; NULL without memory. */
static uint8_t *bytes_reserve(struct bytes *bytes, size_t more)
{
    if (bytes->size + more > bytes->room) {
        size_t room = bytes->room * 2 > bytes->size + more ? bytes->room * 2 : bytes->size + more + 4096;
        uint8_t *data = realloc(bytes->data, room);
        if (!data)
            return NULL;
        bytes->data = data;
        bytes->room = room;
    }
    return bytes->data + bytes->size;
}

static enum err bytes_put_varint(struct bytes *bytes, uint64_t value)
{
    uint8_t *at = bytes_reserve(bytes, VARINT_SIZE_MAX);
    if (!at)
        return ERR_NOMEM;
    bytes->size += varint_put(at, value);
    return ERR_OK;
}

static enum err bytes_put(struct bytes *bytes, const void *data, size_t size)
{
    uint8_t *at = bytes_reserve(bytes, size);
    if (!at)
        return ERR_NOMEM;
    if (size)
        memcpy(at, data, size);
    bytes->size += size;
    return ERR_OK;
}

/* ---- header ---- */

static void header_write(uint8_t *at, const struct segment_info *info)
{
    size_t size = header_size(info->source_count);
    store_le32(at, SEGMENT_MAGIC);
    store_le32(at + 4, SEGMENT_VERSION);
    store_le32(at + 8, (uint32_t)size);
    store_le32(at + 12, (uint32_t)info->source_count);
    store_le32(at + 16, info->partition_count);
    store_le32(at + 20, info->partition_index);
    store_le32(at + 24, info->level);
    store_le32(at + 28, 0);
    store_le64(at + 32, info->flush_first);
    store_le64(at + 40, info->flush_last);
    store_le64(at + 48, (uint64_t)info->window_ns);
    store_le64(at + 56, (uint64_t)info->time_ns_min);
    store_le64(at + 64, (uint64_t)info->time_ns_max);
    store_le64(at + 72, info->row_count);
    store_le64(at + 80, info->point_count);
    store_le64(at + 88, info->chunk_count);
    store_le64(at + 96, info->device_count);
    store_le64(at + 104, info->size);
    for (size_t i = 0; i < info->source_count; i++) {
        uint8_t *source = at + HEADER_FIXED_SIZE + i * SOURCE_SIZE;
        store_le64(source, info->sources[i].broker_id);
        store_le32(source + 8, info->sources[i].epoch);
        store_le64(source + 12, info->sources[i].sequence);
    }
    store_le32(at + size - CRC_SIZE, crc32c(0, at, size - CRC_SIZE));
}

/* bytes: a header whose magic, size and CRC were checked. */
static void header_read(struct segment_info *info_out, struct segment_source *sources_out, const uint8_t *at, size_t source_count)
{
    *info_out = (struct segment_info){
        .partition_count = load_le32(at + 16),
        .partition_index = load_le32(at + 20),
        .level = load_le32(at + 24),
        .flush_first = load_le64(at + 32),
        .flush_last = load_le64(at + 40),
        .window_ns = (int64_t)load_le64(at + 48),
        .time_ns_min = (int64_t)load_le64(at + 56),
        .time_ns_max = (int64_t)load_le64(at + 64),
        .row_count = load_le64(at + 72),
        .point_count = load_le64(at + 80),
        .chunk_count = load_le64(at + 88),
        .device_count = load_le64(at + 96),
        .size = load_le64(at + 104),
        .source_count = source_count,
        .sources = sources_out,
    };
    for (size_t i = 0; i < source_count; i++) {
        const uint8_t *source = at + HEADER_FIXED_SIZE + i * SOURCE_SIZE;
        sources_out[i] = (struct segment_source){load_le64(source), load_le32(source + 8), load_le64(source + 12)};
    }
}

/* ---- writer ---- */

struct segment_writer {
    struct fs *fs;
    struct file *file;
    char *directory, *name, *path_tmp, *path;
    struct segment_info info;
    struct segment_source *sources;
    struct chunk_encoder *enc;
    enum column_effort effort;
    struct bytes buffer; /* not yet in the file; begins at offset - buffer.size */
    uint64_t offset;     /* where the next byte goes */
    struct bytes device; /* id of the device being written */
    uint64_t device_chunk_count;
    int64_t device_last_ns;
    struct bytes device_index; /* its chunk entries */
    struct bytes index;        /* finished devices */
    struct bytes names;        /* name table: varint size, bytes; in order of first use */
    uint64_t name_count;
    uint32_t *name_slots; /* hash table: number of a name + 1 */
    size_t *name_offsets; /* of each name's bytes in `names` */
    size_t *name_sizes;
    size_t slot_room, name_room;
};

static void writer_free(struct segment_writer *w)
{
    file_close(w->file);
    free(w->directory);
    free(w->name);
    free(w->path_tmp);
    free(w->path);
    free(w->sources);
    chunk_encoder_free(w->enc);
    free(w->buffer.data);
    free(w->device.data);
    free(w->device_index.data);
    free(w->index.data);
    free(w->names.data);
    free(w->name_slots);
    free(w->name_offsets);
    free(w->name_sizes);
    free(w);
}

void segment_writer_abort(struct segment_writer *w)
{
    if (!w)
        return;
    file_close(w->file);
    w->file = NULL;
    (void)!fs_unlink(w->fs, w->path_tmp); /* what stays is removed at the next start */
    writer_free(w);
}

static enum err writer_flush(struct segment_writer *w, struct errmsg *msg)
{
    if (w->buffer.size == 0)
        return ERR_OK;
    enum err err = file_pwrite(w->file, w->buffer.data, w->buffer.size, w->offset - w->buffer.size);
    w->buffer.size = 0;
    return err ? err_set(msg, err, "%s: write: %s", w->path_tmp, err_text(err)) : ERR_OK;
}

static enum err writer_put(struct segment_writer *w, const void *data, size_t size, struct errmsg *msg)
{
    enum err err = bytes_put(&w->buffer, data, size);
    if (err)
        return err_set(msg, err, "%s: %s", w->path_tmp, err_text(err));
    w->offset += size;
    return w->buffer.size >= WRITE_BUFFER_SIZE ? writer_flush(w, msg) : ERR_OK;
}

/* "directory/name", in malloc'd memory. */
static char *path_new(const char *directory, const char *name, const char *suffix)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s%s", directory, name, suffix) < 0 ? NULL : path;
}

static enum err writer_prepare(struct segment_writer *w, const char *directory, const char *name, const struct segment_info *info)
{
    w->directory = strdup(directory);
    w->name = strdup(name);
    w->path = path_new(directory, name, "");
    w->path_tmp = path_new(directory, name, ".tmp");
    w->enc = chunk_encoder_new();
    w->sources = calloc(info->source_count ? info->source_count : 1, sizeof *w->sources);
    if (!w->directory || !w->name || !w->path || !w->path_tmp || !w->enc || !w->sources)
        return ERR_NOMEM;
    if (info->source_count)
        memcpy(w->sources, info->sources, info->source_count * sizeof *w->sources);
    w->info = *info;
    w->info.sources = w->sources;
    w->info.row_count = w->info.point_count = w->info.chunk_count = w->info.device_count = 0;
    w->info.time_ns_min = INT64_MAX;
    w->info.time_ns_max = INT64_MIN;
    struct file *there;
    enum err err = fs_open(w->fs, &there, w->path, FILE_READ);
    if (err == ERR_OK) {
        file_close(there);
        return ERR_EXISTS;
    }
    if (err != ERR_NOTFOUND)
        return err;
    return fs_open(w->fs, &w->file, w->path_tmp, FILE_READ | FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
}

enum err segment_writer_open(struct segment_writer **writer_out, struct fs *fs, const char *directory, const char *name,
                             const struct segment_info *info, enum column_effort effort, struct errmsg *msg)
{
    if (info->source_count > SEGMENT_SOURCES_MAX || info->flush_first > info->flush_last)
        return err_set(msg, ERR_INVALID, "%s/%s: %zu sources, flushes %llu..%llu", directory, name, info->source_count,
                       (unsigned long long)info->flush_first, (unsigned long long)info->flush_last);
    struct segment_writer *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(msg, ERR_NOMEM, "%s/%s: out of memory", directory, name);
    w->fs = fs;
    w->effort = effort;
    enum err err = writer_prepare(w, directory, name, info);
    if (err) {
        writer_free(w);
        return err_set(msg, err, "%s/%s: %s", directory, name, err_text(err));
    }
    static const uint8_t zeros[256];
    for (size_t left = header_size(info->source_count); left && !err;) {
        size_t part = left < sizeof zeros ? left : sizeof zeros;
        err = writer_put(w, zeros, part, msg);
        left -= part;
    }
    if (err) {
        segment_writer_abort(w);
        return err;
    }
    *writer_out = w;
    return ERR_OK;
}

static uint32_t name_hash(struct span name)
{
    return crc32c(0, name.data, name.size); /* our own file's names, at most as many as one partition has */
}

static struct span writer_name(const struct segment_writer *w, size_t number)
{
    return span_of(w->names.data + w->name_offsets[number], w->name_sizes[number]);
}

static enum err names_grow(struct segment_writer *w)
{
    size_t room = w->slot_room ? w->slot_room * 2 : 256;
    uint32_t *slots = calloc(room, sizeof *slots);
    if (!slots)
        return ERR_NOMEM;
    for (size_t i = 0; i < w->name_count; i++) {
        size_t slot = name_hash(writer_name(w, i)) & (room - 1);
        while (slots[slot])
            slot = (slot + 1) & (room - 1);
        slots[slot] = (uint32_t)i + 1;
    }
    free(w->name_slots);
    w->name_slots = slots;
    w->slot_room = room;
    size_t *offsets = realloc(w->name_offsets, room * sizeof *offsets);
    if (offsets)
        w->name_offsets = offsets;
    size_t *sizes = realloc(w->name_sizes, room * sizeof *sizes);
    if (sizes)
        w->name_sizes = sizes;
    if (!offsets || !sizes)
        return ERR_NOMEM;
    w->name_room = room;
    return ERR_OK;
}

/* The number of a name in the name table, which is extended when it is new. */
static enum err name_number(struct segment_writer *w, uint64_t *number_out, struct span name)
{
    if ((w->name_count + 1) * 2 > w->slot_room) {
        enum err err = names_grow(w);
        if (err)
            return err;
    }
    size_t slot = name_hash(name) & (w->slot_room - 1);
    for (; w->name_slots[slot]; slot = (slot + 1) & (w->slot_room - 1)) {
        *number_out = w->name_slots[slot] - 1;
        if (span_equal(writer_name(w, *number_out), name))
            return ERR_OK;
    }
    enum err err = bytes_put_varint(&w->names, name.size);
    if (!err) {
        w->name_offsets[w->name_count] = w->names.size;
        w->name_sizes[w->name_count] = name.size;
        err = bytes_put(&w->names, name.data, name.size);
    }
    if (err)
        return err;
    *number_out = w->name_count++;
    w->name_slots[slot] = (uint32_t)w->name_count;
    return ERR_OK;
}

/* Move the entries of the device that is finished to the index. */
static enum err writer_end_device(struct segment_writer *w)
{
    if (w->device_chunk_count == 0)
        return ERR_OK;
    enum err err = bytes_put_varint(&w->index, w->device.size);
    if (!err)
        err = bytes_put(&w->index, w->device.data, w->device.size);
    if (!err)
        err = bytes_put_varint(&w->index, w->device_chunk_count);
    if (!err)
        err = bytes_put(&w->index, w->device_index.data, w->device_index.size);
    w->device_index.size = 0;
    w->device_chunk_count = 0;
    w->info.device_count++;
    return err;
}

/* The index entry of a chunk, from the chunk itself: what the index says is what the chunk says. */
static enum err writer_index_chunk(struct segment_writer *w, struct span bytes)
{
    struct chunk_view view;
    enum err err = chunk_open(&view, bytes);
    if (err)
        return err;
    struct bytes *index = &w->device_index;
    err = bytes_put_varint(index, bytes.size);
    if (!err)
        err = bytes_put_varint(index, view.row_count);
    if (!err)
        err = bytes_put_varint(index, zigzag_encode(view.time_ns_min));
    if (!err)
        err = bytes_put_varint(index, (uint64_t)view.time_ns_max - (uint64_t)view.time_ns_min);
    if (!err)
        err = bytes_put_varint(index, view.column_count);
    for (size_t i = 0; i < view.column_count && !err; i++) {
        uint64_t number;
        err = name_number(w, &number, view.columns[i].name);
        if (!err)
            err = bytes_put_varint(index, number);
        uint8_t *at = err ? NULL : bytes_reserve(index, CHUNK_STATS_SIZE_MAX);
        if (at)
            index->size += chunk_stats_put(at, &view.columns[i].stats, view.row_count);
        else
            err = ERR_NOMEM;
        w->info.point_count += view.columns[i].stats.count;
    }
    w->info.row_count += view.row_count;
    w->info.time_ns_min = view.time_ns_min < w->info.time_ns_min ? view.time_ns_min : w->info.time_ns_min;
    w->info.time_ns_max = view.time_ns_max > w->info.time_ns_max ? view.time_ns_max : w->info.time_ns_max;
    chunk_close(&view);
    return err;
}

enum err segment_writer_add(struct segment_writer *w, struct span device, const struct rows *rows, struct errmsg *msg)
{
    struct span current = span_of(w->device.data, w->device.size), bytes;
    int order = span_compare(current, device);
    if (order > 0 || (order == 0 && rows->row_count && rows->times_ns[0] <= w->device_last_ns))
        return err_set(msg, ERR_INVALID, "%s: device %.*s comes out of order", w->path_tmp, (int)device.size, (const char *)device.data);
    enum err err = chunk_encode(w->enc, &bytes, device, rows, w->effort);
    if (err)
        return err_set(msg, err, "%s: device %.*s: %s", w->path_tmp, (int)device.size, (const char *)device.data, err_text(err));
    if (order < 0) {
        err = writer_end_device(w);
        w->device.size = 0;
        if (!err)
            err = bytes_put(&w->device, device.data, device.size);
    }
    if (!err)
        err = writer_index_chunk(w, bytes);
    if (err)
        return err_set(msg, err, "%s: index: %s", w->path_tmp, err_text(err));
    w->device_last_ns = rows->times_ns[rows->row_count - 1];
    w->device_chunk_count++;
    w->info.chunk_count++;
    return writer_put(w, bytes.data, bytes.size, msg);
}

enum err segment_writer_add_merge(struct segment_writer *w, struct span device, struct merge *merge, struct errmsg *msg)
{
    for (;;) {
        struct rows rows;
        enum err err = merge_next(merge, &rows);
        if (err)
            return err_set(msg, err, "%s: device %.*s: %s", w->path_tmp, (int)device.size, (const char *)device.data, err_text(err));
        if (rows.row_count == 0)
            return ERR_OK;
        err = segment_writer_add(w, device, &rows, msg);
        if (err)
            return err;
    }
}

static enum err writer_finish_parts(struct segment_writer *w, struct errmsg *msg)
{
    struct bytes head = {0};
    enum err err = writer_end_device(w);
    if (!err)
        err = bytes_put_varint(&head, w->name_count);
    if (err) {
        free(head.data);
        return err_set(msg, err, "%s: %s", w->path_tmp, err_text(err));
    }
    uint64_t index_offset = w->offset, index_size = head.size + w->names.size + w->index.size;
    uint32_t index_crc = crc32c(crc32c(crc32c(0, head.data, head.size), w->names.data, w->names.size), w->index.data, w->index.size);
    if (index_size > INDEX_SIZE_MAX)
        err = err_set(msg, ERR_TOOLARGE, "%s: index of %llu bytes", w->path_tmp, (unsigned long long)index_size);
    if (!err)
        err = writer_put(w, head.data, head.size, msg);
    if (!err)
        err = writer_put(w, w->names.data, w->names.size, msg);
    if (!err)
        err = writer_put(w, w->index.data, w->index.size, msg);
    free(head.data);
    if (err)
        return err;

    uint8_t footer[FOOTER_SIZE] = {0};
    w->info.size = w->offset + FOOTER_SIZE;
    store_le64(footer, index_offset);
    store_le64(footer + 8, index_size);
    store_le64(footer + 16, w->info.size);
    store_le32(footer + 24, index_crc);
    store_le32(footer + 28, SEGMENT_VERSION);
    store_le32(footer + 32, SEGMENT_FOOTER_MAGIC);
    store_le32(footer + 36, crc32c(0, footer, 36));
    err = writer_put(w, footer, sizeof footer, msg);
    return err ? err : writer_flush(w, msg);
}

static enum err writer_publish(struct segment_writer *w, struct errmsg *msg)
{
    if (w->info.chunk_count == 0)
        w->info.time_ns_min = w->info.time_ns_max = 0;
    size_t size = header_size(w->info.source_count);
    uint8_t *header = malloc(size);
    if (!header)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", w->path_tmp);
    header_write(header, &w->info);
    enum err err = file_pwrite(w->file, header, size, 0);
    free(header);
    if (!err)
        err = file_sync(w->file);
    if (!err)
        err = fs_rename(w->fs, w->path_tmp, w->path);
    if (!err)
        err = fs_sync_dir(w->fs, w->directory);
    return err ? err_set(msg, err, "%s: %s", w->path, err_text(err)) : ERR_OK;
}

enum err segment_writer_finish(struct segment_writer *w, struct segment_info *info_out, struct errmsg *msg)
{
    enum err err = writer_finish_parts(w, msg);
    if (!err)
        err = writer_publish(w, msg);
    if (err) {
        segment_writer_abort(w);
        return err;
    }
    if (info_out) {
        *info_out = w->info;
        info_out->source_count = 0;
        info_out->sources = NULL;
    }
    writer_free(w);
    return ERR_OK;
}

/* ---- open ---- */

struct segment_device {
    struct span id; /* in the index */
    size_t chunk_first, chunk_count;
};

struct segment {
    struct file *file;
    char *path;
    struct segment_info info;
    struct segment_source *sources;
    uint8_t *index;
    size_t index_size;
    struct span *names;
    size_t name_count;
    struct segment_device *devices;
    struct segment_chunk *chunks;
};

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

static enum err corrupt(const struct segment *seg, struct errmsg *msg, uint64_t offset, const char *what)
{
    return err_set(msg, ERR_CORRUPT, "%s: offset %llu: %s", seg->path, (unsigned long long)offset, what);
}

/* Read exactly `size` bytes at `offset`. */
static enum err segment_pread(const struct segment *seg, void *data, size_t size, uint64_t offset, struct errmsg *msg)
{
    size_t got;
    enum err err = file_pread(seg->file, &got, data, size, offset);
    if (err)
        return err_set(msg, err, "%s: read at %llu: %s", seg->path, (unsigned long long)offset, err_text(err));
    return got == size ? ERR_OK : corrupt(seg, msg, offset, "the file ends early");
}

static enum err open_header(struct segment *seg, uint64_t file_bytes, size_t *header_size_out, struct errmsg *msg)
{
    uint8_t fixed[HEADER_FIXED_SIZE];
    if (file_bytes < header_size(0) + FOOTER_SIZE)
        return corrupt(seg, msg, 0, "too short for a segment");
    enum err err = segment_pread(seg, fixed, sizeof fixed, 0, msg);
    if (err)
        return err;
    size_t source_count = load_le32(fixed + 12), size = header_size(source_count);
    if (load_le32(fixed) != SEGMENT_MAGIC || source_count > SEGMENT_SOURCES_MAX || load_le32(fixed + 8) != size ||
        size + FOOTER_SIZE > file_bytes)
        return corrupt(seg, msg, 0, "no segment header");
    uint8_t *bytes = malloc(size);
    seg->sources = calloc(source_count ? source_count : 1, sizeof *seg->sources);
    err = bytes && seg->sources ? segment_pread(seg, bytes, size, 0, msg) : ERR_NOMEM;
    if (!err && crc32c(0, bytes, size - CRC_SIZE) != load_le32(bytes + size - CRC_SIZE))
        err = corrupt(seg, msg, 0, "checksum of the header");
    else if (!err && load_le32(bytes + 4) != SEGMENT_VERSION)
        err = err_set(msg, ERR_VERSION, "%s: version %u", seg->path, load_le32(bytes + 4));
    if (!err)
        header_read(&seg->info, seg->sources, bytes, source_count);
    free(bytes);
    *header_size_out = size;
    if (!err && seg->info.size != file_bytes)
        err = corrupt(seg, msg, 0, "size of the file");
    return err;
}

static enum err open_index_bytes(struct segment *seg, uint64_t *index_offset_out, size_t header_bytes, struct errmsg *msg)
{
    uint8_t footer[FOOTER_SIZE];
    uint64_t at = seg->info.size - FOOTER_SIZE;
    enum err err = segment_pread(seg, footer, sizeof footer, at, msg);
    if (err)
        return err;
    uint64_t offset = load_le64(footer), size = load_le64(footer + 8);
    if (load_le32(footer + 32) != SEGMENT_FOOTER_MAGIC || crc32c(0, footer, 36) != load_le32(footer + 36))
        return corrupt(seg, msg, at, "checksum of the footer");
    if (load_le32(footer + 28) != SEGMENT_VERSION)
        return err_set(msg, ERR_VERSION, "%s: version %u", seg->path, load_le32(footer + 28));
    if (load_le64(footer + 16) != seg->info.size || size > INDEX_SIZE_MAX || offset < header_bytes || offset + size != at)
        return corrupt(seg, msg, at, "footer and file do not agree");
    seg->index = malloc(size ? size : 1);
    if (!seg->index)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", seg->path);
    seg->index_size = (size_t)size;
    *index_offset_out = offset;
    err = segment_pread(seg, seg->index, seg->index_size, offset, msg);
    if (!err && crc32c(0, seg->index, seg->index_size) != load_le32(footer + 24))
        err = corrupt(seg, msg, offset, "checksum of the index");
    return err;
}

/* Parse one chunk entry; statistics are checked and skipped. */
static void parse_chunk(const struct segment *seg, struct parser *p, struct segment_chunk *chunk)
{
    uint64_t size = take_varint(p), row_count = take_varint(p);
    chunk->time_ns_min = zigzag_decode(take_varint(p));
    chunk->time_ns_max = (int64_t)((uint64_t)chunk->time_ns_min + take_varint(p));
    uint64_t column_count = take_varint(p);
    if (p->bad || size > CHUNK_SIZE_MAX || row_count == 0 || row_count > CHUNK_ROWS_MAX || column_count > ROWS_COLUMNS_MAX ||
        chunk->time_ns_max < chunk->time_ns_min) {
        p->bad = true;
        return;
    }
    chunk->size = (uint32_t)size;
    chunk->row_count = (uint32_t)row_count;
    chunk->column_count = (uint32_t)column_count;
    chunk->index_at = (uint64_t)(p->at - seg->index);
    for (uint64_t i = 0; i < column_count; i++) {
        struct chunk_stats stats;
        uint64_t number = take_varint(p);
        size_t used = p->bad || number >= seg->name_count ? 0 : chunk_stats_get(&stats, (size_t)row_count, p->at, p->end);
        if (used == 0) {
            p->bad = true;
            return;
        }
        p->at += used;
    }
}

static enum err open_tables(struct segment *seg, struct parser *p, size_t header_bytes, uint64_t index_offset, struct errmsg *msg)
{
    uint64_t name_count = take_varint(p);
    if (p->bad || name_count > seg->index_size || seg->info.device_count > seg->index_size || seg->info.chunk_count > seg->index_size)
        return corrupt(seg, msg, index_offset, "counts of the index");
    seg->name_count = (size_t)name_count;
    seg->names = calloc(seg->name_count + 1, sizeof *seg->names);
    seg->devices = calloc((size_t)seg->info.device_count + 1, sizeof *seg->devices);
    seg->chunks = calloc((size_t)seg->info.chunk_count + 1, sizeof *seg->chunks);
    if (!seg->names || !seg->devices || !seg->chunks)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", seg->path);
    for (size_t i = 0; i < seg->name_count; i++)
        seg->names[i] = take_bytes(p, take_varint(p));
    uint64_t offset = header_bytes, chunk_index = 0;
    for (size_t d = 0; d < seg->info.device_count && !p->bad; d++) {
        struct segment_device *dev = &seg->devices[d];
        dev->id = take_bytes(p, take_varint(p));
        uint64_t chunk_count = take_varint(p);
        if (p->bad || dev->id.size == 0 || chunk_count == 0 || chunk_count > seg->info.chunk_count - chunk_index ||
            (d > 0 && span_compare(seg->devices[d - 1].id, dev->id) >= 0)) {
            p->bad = true;
            break;
        }
        dev->chunk_first = (size_t)chunk_index;
        dev->chunk_count = (size_t)chunk_count;
        for (uint64_t i = 0; i < chunk_count && !p->bad; i++) {
            struct segment_chunk *chunk = &seg->chunks[chunk_index++];
            parse_chunk(seg, p, chunk);
            chunk->device_index = (uint32_t)d;
            chunk->offset = offset;
            offset += chunk->size;
            if (i > 0 && chunk->time_ns_min <= chunk[-1].time_ns_max)
                p->bad = true;
        }
    }
    if (p->bad || p->at != p->end || chunk_index != seg->info.chunk_count || offset != index_offset)
        return corrupt(seg, msg, index_offset, "structure of the index");
    return ERR_OK;
}

enum err segment_open(struct segment **segment_out, struct fs *fs, const char *directory, const char *name, struct errmsg *msg)
{
    struct segment *seg = calloc(1, sizeof *seg);
    if (seg)
        seg->path = path_new(directory, name, "");
    if (!seg || !seg->path) {
        free(seg);
        return err_set(msg, ERR_NOMEM, "%s/%s: out of memory", directory, name);
    }
    uint64_t size = 0, index_offset = 0;
    size_t header_bytes = 0;
    enum err err = fs_open(fs, &seg->file, seg->path, FILE_READ);
    if (!err)
        err = file_size(seg->file, &size);
    if (err) {
        err = err_set(msg, err, "%s: %s", seg->path, err_text(err));
        segment_close(seg);
        return err;
    }
    err = open_header(seg, size, &header_bytes, msg);
    if (!err)
        err = open_index_bytes(seg, &index_offset, header_bytes, msg);
    if (!err) {
        struct parser parser = {seg->index, seg->index + seg->index_size, false};
        err = open_tables(seg, &parser, header_bytes, index_offset, msg);
    }
    if (err) {
        segment_close(seg);
        return err;
    }
    *segment_out = seg;
    return ERR_OK;
}

void segment_close(struct segment *seg)
{
    if (!seg)
        return;
    file_close(seg->file);
    free(seg->path);
    free(seg->sources);
    free(seg->index);
    free(seg->names);
    free(seg->devices);
    free(seg->chunks);
    free(seg);
}

const struct segment_info *segment_get_info(const struct segment *seg) { return &seg->info; }
const char *segment_path(const struct segment *seg) { return seg->path; }

/* ---- find ---- */

struct span segment_device(const struct segment *seg, size_t device_index)
{
    CHECK(device_index < seg->info.device_count);
    return seg->devices[device_index].id;
}

ptrdiff_t segment_find_device(const struct segment *seg, struct span device)
{
    size_t low = 0, high = (size_t)seg->info.device_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = span_compare(seg->devices[middle].id, device);
        if (order == 0)
            return (ptrdiff_t)middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

void segment_find(const struct segment *seg, const struct segment_chunk **first_out, size_t *count_out, struct span device, int64_t from_ns,
                  int64_t to_ns)
{
    ptrdiff_t index = segment_find_device(seg, device);
    *first_out = NULL;
    *count_out = 0;
    if (index < 0)
        return;
    const struct segment_device *dev = &seg->devices[index];
    const struct segment_chunk *chunks = seg->chunks + dev->chunk_first;
    size_t first = 0, high = dev->chunk_count;
    while (first < high) { /* the first chunk that ends at or after from_ns */
        size_t middle = first + (high - first) / 2;
        if (chunks[middle].time_ns_max < from_ns)
            first = middle + 1;
        else
            high = middle;
    }
    size_t end = first;
    while (end < dev->chunk_count && chunks[end].time_ns_min <= to_ns)
        end++;
    *first_out = chunks + first;
    *count_out = end - first;
}

void segment_chunk_columns(const struct segment *seg, const struct segment_chunk *chunk, void *context,
                           void (*on_column)(void *context, struct span name, const struct chunk_stats *stats))
{
    const uint8_t *at = seg->index + chunk->index_at, *end = seg->index + seg->index_size;
    for (uint32_t i = 0; i < chunk->column_count; i++) {
        uint64_t number = 0;
        struct chunk_stats stats;
        at += varint_get(&number, at, end); /* checked when the segment was opened */
        at += chunk_stats_get(&stats, chunk->row_count, at, end);
        on_column(context, seg->names[number], &stats);
    }
}

struct stats_search {
    struct span name;
    struct chunk_stats stats;
    bool found;
};

static void on_search_column(void *context, struct span name, const struct chunk_stats *stats)
{
    struct stats_search *search = context;
    if (search->found || !span_equal(name, search->name))
        return;
    search->stats = *stats;
    search->found = true;
}

bool segment_chunk_stats(const struct segment *seg, const struct segment_chunk *chunk, struct span name, struct chunk_stats *stats_out)
{
    struct stats_search search = {.name = name};
    segment_chunk_columns(seg, chunk, &search, on_search_column);
    if (search.found)
        *stats_out = search.stats;
    return search.found;
}

enum err segment_read_chunk(const struct segment *seg, struct chunk_view *view_out, uint8_t **buffer_out, const struct segment_chunk *chunk,
                            struct errmsg *msg)
{
    uint8_t *buffer = malloc(chunk->size ? chunk->size : 1);
    if (!buffer)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", seg->path);
    enum err err = segment_pread(seg, buffer, chunk->size, chunk->offset, msg);
    if (!err) {
        err = chunk_open(view_out, span_of(buffer, chunk->size));
        if (err)
            err_set(msg, err, "%s: offset %llu: chunk of %.*s: %s", seg->path, (unsigned long long)chunk->offset,
                    (int)seg->devices[chunk->device_index].id.size, (const char *)seg->devices[chunk->device_index].id.data, err_text(err));
    }
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): chunk_read has a view */
    if (!err && (view_out->size != chunk->size || view_out->row_count != chunk->row_count || view_out->time_ns_min != chunk->time_ns_min ||
                 view_out->time_ns_max != chunk->time_ns_max || view_out->column_count != chunk->column_count ||
                 !span_equal(view_out->device, seg->devices[chunk->device_index].id))) {
        chunk_close(view_out);
        err = corrupt(seg, msg, chunk->offset, "chunk and index do not agree");
    }
    if (err) {
        free(buffer);
        return err;
    }
    *buffer_out = buffer;
    return ERR_OK;
}

/* ---- cursor ---- */

struct segment_cursor_state {
    struct column_scratch *scratch;
    int64_t times[CHUNK_ROWS_MAX];
    uint8_t *buffer;
    struct chunk_view view;
    struct rows_column *columns;
    double *values;    /* column_room x CHUNK_ROWS_MAX, or as many rows as the chunks had so far */
    uint64_t *bitmaps; /* two for each column: decoded, and shifted to the first row */
    size_t column_room, row_room;
};

static void state_close_chunk(struct segment_cursor_state *state)
{
    if (!state->buffer)
        return;
    chunk_close(&state->view);
    free(state->buffer);
    state->buffer = NULL;
}

static enum err state_reserve(struct segment_cursor_state *state, size_t column_count, size_t row_count)
{
    if (column_count <= state->column_room && row_count <= state->row_room)
        return ERR_OK;
    size_t columns = column_count > state->column_room ? column_count : state->column_room;
    size_t rows = row_count > state->row_room ? row_count : state->row_room;
    free(state->columns);
    free(state->values);
    free(state->bitmaps);
    state->columns = malloc(columns * sizeof *state->columns);
    state->values = malloc(columns * rows * sizeof *state->values);
    state->bitmaps = malloc(2 * columns * rows_bitmap_words(rows) * sizeof *state->bitmaps);
    bool ok = state->columns && state->values && state->bitmaps;
    state->column_room = ok ? columns : 0;
    state->row_room = ok ? rows : 0;
    return ok ? ERR_OK : ERR_NOMEM;
}

static bool name_is_wanted(const struct segment_cursor *cursor, struct span name)
{
    if (!cursor->names)
        return true;
    for (size_t i = 0; i < cursor->name_count; i++)
        if (span_equal(cursor->names[i], name))
            return true;
    return false;
}

/* Decode the wanted columns of the open chunk, rows [first, end). */
static enum err cursor_decode(struct segment_cursor *cursor, struct rows *rows_out)
{
    struct segment_cursor_state *state = cursor->state;
    const struct chunk_view *view = &state->view;
    enum err err = chunk_decode_times(view, state->times);
    size_t first = 0, end = view->row_count, count = 0;
    while (!err && first < end && state->times[first] < cursor->from_ns)
        first++;
    while (!err && end > first && state->times[end - 1] > cursor->to_ns)
        end--;
    if (!err)
        err = state_reserve(state, view->column_count ? view->column_count : 1, view->row_count);
    for (size_t i = 0; i < view->column_count && !err && first < end; i++) {
        if (!name_is_wanted(cursor, view->columns[i].name))
            continue;
        double *values = state->values + count * state->row_room;
        size_t words = rows_bitmap_words(state->row_room);
        uint64_t *present = state->bitmaps + 2 * count * words;
        err = chunk_decode_column(view, &view->columns[i], state->scratch, values, present);
        if (!err && first) {
            memset(present + words, 0, words * sizeof *present);
            rows_bitmap_merge(present + words, 0, present, first, end - first);
            present += words;
        }
        state->columns[count++] = (struct rows_column){view->columns[i].name, values + first, present};
    }
    if (err)
        return err;
    *rows_out = (struct rows){
        .row_count = end - first,
        .times_ns = state->times + first,
        .column_count = count,
        .columns = state->columns,
        .source_first = view->source_first,
        .source_last = view->source_last,
    };
    return ERR_OK;
}

static enum err cursor_next(struct merge_source *source, struct rows *rows_out)
{
    struct segment_cursor *cursor = (struct segment_cursor *)source;
    *rows_out = (struct rows){0};
    while (cursor->chunk_count) {
        if (!cursor->state) {
            cursor->state = calloc(1, sizeof *cursor->state);
            if (cursor->state && !(cursor->state->scratch = column_scratch_new())) {
                free(cursor->state);
                cursor->state = NULL;
            }
            if (!cursor->state)
                return err_set(&cursor->msg, ERR_NOMEM, "%s: out of memory", cursor->seg->path);
        }
        struct segment_cursor_state *state = cursor->state;
        const struct segment_chunk *chunk = cursor->chunk++;
        cursor->chunk_count--;
        state_close_chunk(state);
        enum err err = segment_read_chunk(cursor->seg, &state->view, &state->buffer, chunk, &cursor->msg);
        if (!err) {
            err = cursor_decode(cursor, rows_out);
            if (err)
                err_set(&cursor->msg, err, "%s: offset %llu: %s", cursor->seg->path, (unsigned long long)chunk->offset, err_text(err));
        }
        if ((err == ERR_CORRUPT || err == ERR_VERSION) && cursor->skip_corrupt) {
            cursor->corrupt_count++;
            *rows_out = (struct rows){0};
            continue;
        }
        if (err || rows_out->row_count)
            return err;
    }
    return ERR_OK;
}

void segment_cursor_deinit(struct segment_cursor *cursor)
{
    struct segment_cursor_state *state = cursor->state;
    if (!state)
        return;
    state_close_chunk(state);
    column_scratch_free(state->scratch);
    free(state->columns);
    free(state->values);
    free(state->bitmaps);
    free(state);
    cursor->state = NULL;
}

static void cursor_close(struct merge_source *source) { segment_cursor_deinit((struct segment_cursor *)source); }

void segment_cursor_rewind(struct segment_cursor *cursor, struct span device)
{
    segment_find(cursor->seg, &cursor->chunk, &cursor->chunk_count, device, cursor->from_ns, cursor->to_ns);
}

void segment_cursor_init(struct segment_cursor *cursor, const struct segment *seg, struct span device, int64_t from_ns, int64_t to_ns,
                         const struct span *names, size_t name_count, bool skip_corrupt)
{
    *cursor = (struct segment_cursor){
        .source = {.rank = seg->info.flush_last, .next = cursor_next, .close = cursor_close},
        .seg = seg,
        .from_ns = from_ns,
        .to_ns = to_ns,
        .names = names,
        .name_count = name_count,
        .skip_corrupt = skip_corrupt,
    };
    segment_cursor_rewind(cursor, device);
}

/* ---- verify ---- */

static bool stats_equal(const struct chunk_stats *a, const struct chunk_stats *b)
{
    return a->count == b->count && memcmp(&a->min, &b->min, sizeof a->min) == 0 && memcmp(&a->max, &b->max, sizeof a->max) == 0 &&
           memcmp(&a->sum, &b->sum, sizeof a->sum) == 0;
}

struct verify_context {
    const struct chunk_view *view;
    size_t at;
    bool differs;
};

static void on_verify_column(void *context, struct span name, const struct chunk_stats *stats)
{
    struct verify_context *v = context;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): set by verify_chunk */
    const struct chunk_column *column = &v->view->columns[v->at++];
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): set by verify_chunk */
    v->differs |= !span_equal(column->name, name) || !stats_equal(&column->stats, stats);
}

/* Decode a whole chunk and compare it with its own statistics and the index. */
static enum err verify_chunk(const struct segment *seg, const struct segment_chunk *chunk, const struct chunk_view *view,
                             struct segment_cursor_state *state)
{
    struct verify_context context = {.view = view};
    segment_chunk_columns(seg, chunk, &context, on_verify_column);
    enum err err = context.differs ? ERR_CORRUPT : chunk_decode_times(view, state->times);
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): set by the caller */
    for (size_t i = 0; i < view->column_count && !err; i++) {
        err = chunk_decode_column(view, &view->columns[i], state->scratch, state->values, state->bitmaps);
        if (err)
            break;
        struct chunk_stats stats = chunk_stats_of(state->values, state->bitmaps, view->row_count);
        /* The payload of a NaN result is not ours to promise; everything else is exact. */
        if (!stats_equal(&stats, &view->columns[i].stats) && stats.sum == stats.sum)
            err = ERR_CORRUPT;
    }
    return err;
}

enum err segment_verify(const struct segment *seg, struct segment_report *report_out, struct errmsg *msg)
{
    struct segment_report report = {0};
    struct segment_cursor_state *state = calloc(1, sizeof *state);
    enum err err = ERR_OK, result = ERR_OK;
    if (!state || !(state->scratch = column_scratch_new()) || state_reserve(state, 1, CHUNK_ROWS_MAX) != ERR_OK)
        result = err_set(msg, ERR_NOMEM, "%s: out of memory", seg->path);
    for (uint64_t i = 0; i < seg->info.chunk_count && result == ERR_OK; i++) {
        const struct segment_chunk *chunk = &seg->chunks[i];
        struct errmsg where = {{0}};
        report.chunk_count++;
        err = segment_read_chunk(seg, &state->view, &state->buffer, chunk, &where);
        if (!err) {
            err = verify_chunk(seg, chunk, &state->view, state);
            if (err)
                err_set(&where, err, "%s: offset %llu: values of a chunk: %s", seg->path, (unsigned long long)chunk->offset, err_text(err));
            report.row_count += state->view.row_count;
            for (size_t k = 0; k < state->view.column_count; k++)
                report.point_count += state->view.columns[k].stats.count;
            state_close_chunk(state);
        }
        if (err == ERR_IO || err == ERR_NOMEM) {
            result = err;
        } else if (err) {
            if (report.corrupt_count++ == 0)
                report.first_corrupt_offset = chunk->offset;
        }
        if (err && msg && (report.corrupt_count <= 1 || result))
            *msg = where;
    }
    if (!result && report.corrupt_count)
        result = ERR_CORRUPT;
    if (!result && (report.row_count != seg->info.row_count || report.point_count != seg->info.point_count))
        result = corrupt(seg, msg, 0, "counts of the header");
    if (state) {
        struct segment_cursor holder = {.state = state};
        segment_cursor_deinit(&holder);
    }
    if (report_out)
        *report_out = report;
    return result;
}
