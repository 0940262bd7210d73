#include "sink/store/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/crc32c.h"

#define MANIFEST_MAGIC 0x464d4754U /* "TGMF" */
#define MANIFEST_VERSION 1
#define HEAD_SIZE 192
#define MARK_SIZE 24
#define SEGMENT_SIZE 72
#define CRC_SIZE 4

static const char *const slot_names[2] = {"manifest.0", "manifest.1"};

void manifest_init(struct manifest *manifest, uint32_t partition_count, uint32_t partition_index)
{
    *manifest =
        (struct manifest){.partition_count = partition_count, .partition_index = partition_index, .flush_next = 1, .arrival_next = 1};
}

void manifest_deinit(struct manifest *manifest)
{
    free(manifest->marks);
    free(manifest->segments);
    manifest->marks = NULL;
    manifest->segments = NULL;
}

static bool copy_array(void *out, const void *array, size_t size)
{
    void *copy = NULL;
    if (size > 0) {
        copy = malloc(size);
        if (!copy)
            return false;
        memcpy(copy, array, size);
    }
    memcpy(out, &copy, sizeof copy);
    return true;
}

enum err manifest_copy(struct manifest *out, const struct manifest *manifest)
{
    *out = *manifest;
    out->marks = NULL;
    out->segments = NULL;
    if (copy_array(&out->marks, manifest->marks, manifest->mark_count * sizeof *manifest->marks) &&
        copy_array(&out->segments, manifest->segments, manifest->segment_count * sizeof *manifest->segments))
        return ERR_OK;
    manifest_deinit(out);
    return ERR_NOMEM;
}

void manifest_segment_name(char name_out[MANIFEST_SEGMENT_NAME_SIZE], const struct manifest_segment *segment)
{
    snprintf(name_out, MANIFEST_SEGMENT_NAME_SIZE, "%016" PRIx64 "-%016" PRIx64 "-%02x.seg", segment->flush_first, segment->flush_last,
             segment->level & 0xff);
}

enum err manifest_add_segment(struct manifest *manifest, const struct manifest_segment *segment)
{
    if (manifest->segment_count >= MANIFEST_SEGMENTS_MAX)
        return ERR_FULL;
    struct manifest_segment *segments = realloc(manifest->segments, (manifest->segment_count + 1) * sizeof *segments);
    if (!segments)
        return ERR_NOMEM;
    manifest->segments = segments;
    size_t at = manifest->segment_count++;
    for (; at > 0 && segments[at - 1].flush_first > segment->flush_first; at--)
        segments[at] = segments[at - 1];
    segments[at] = *segment;
    return ERR_OK;
}

bool manifest_remove_segment(struct manifest *manifest, const struct manifest_segment *segment)
{
    for (size_t i = 0; i < manifest->segment_count; i++) {
        const struct manifest_segment *found = &manifest->segments[i];
        if (found->flush_first != segment->flush_first || found->flush_last != segment->flush_last || found->level != segment->level)
            continue;
        memmove(&manifest->segments[i], &manifest->segments[i + 1], (manifest->segment_count - i - 1) * sizeof *manifest->segments);
        manifest->segment_count--;
        return true;
    }
    return false;
}

struct manifest_mark *manifest_find_mark(const struct manifest *manifest, uint64_t broker_id)
{
    for (size_t i = 0; i < manifest->mark_count; i++) {
        if (manifest->marks[i].broker_id == broker_id)
            return &manifest->marks[i];
    }
    return NULL;
}

enum err manifest_raise_mark(struct manifest *manifest, uint64_t broker_id, struct log_position position)
{
    struct manifest_mark *mark = manifest_find_mark(manifest, broker_id);
    if (!mark) {
        if (manifest->mark_count >= MANIFEST_MARKS_MAX)
            return ERR_FULL;
        struct manifest_mark *marks = realloc(manifest->marks, (manifest->mark_count + 1) * sizeof *marks);
        if (!marks)
            return ERR_NOMEM;
        manifest->marks = marks;
        mark = &marks[manifest->mark_count++];
        *mark = (struct manifest_mark){.broker_id = broker_id};
    }
    if (log_position_compare(mark->position, position) < 0)
        mark->position = position;
    return ERR_OK;
}

static void put_cursor(uint8_t *at, const struct log_cursor_value *value)
{
    store_le64(at, value->broker_id);
    store_le32(at + 8, value->position.epoch);
    store_le64(at + 16, value->position.sequence);
    store_le64(at + 24, value->place.generation);
    store_le64(at + 32, value->place.offset);
    store_le64(at + 40, value->reopen.generation);
    store_le64(at + 48, value->reopen.offset);
}

static void get_cursor(struct log_cursor_value *value, const uint8_t *at)
{
    *value = (struct log_cursor_value){.broker_id = load_le64(at),
                                       .position = {load_le32(at + 8), load_le64(at + 16)},
                                       .place = {load_le64(at + 24), load_le64(at + 32)},
                                       .reopen = {load_le64(at + 40), load_le64(at + 48)}};
}

static void encode_head(uint8_t *at, const struct manifest *manifest, size_t size)
{
    memset(at, 0, HEAD_SIZE);
    store_le32(at, MANIFEST_MAGIC);
    store_le32(at + 4, MANIFEST_VERSION);
    store_le64(at + 8, size);
    store_le64(at + 16, manifest->generation);
    store_le64(at + 24, manifest->fence);
    store_le32(at + 32, manifest->partition_count);
    store_le32(at + 36, manifest->partition_index);
    store_le64(at + 40, manifest->flush_next);
    store_le64(at + 48, manifest->arrival_next);
    put_cursor(at + 56, &manifest->position);
    put_cursor(at + 112, &manifest->began);
    store_le32(at + 168, (uint32_t)manifest->mark_count);
    store_le32(at + 172, (uint32_t)manifest->segment_count);
}

static void encode_mark(uint8_t *at, const struct manifest_mark *mark)
{
    store_le64(at, mark->broker_id);
    store_le64(at + 8, mark->position.epoch);
    store_le64(at + 16, mark->position.sequence);
}

static void encode_segment(uint8_t *at, const struct manifest_segment *segment)
{
    store_le64(at, segment->flush_first);
    store_le64(at + 8, segment->flush_last);
    store_le64(at + 16, segment->level);
    store_le64(at + 24, (uint64_t)segment->window_ns);
    store_le64(at + 32, (uint64_t)segment->time_ns_min);
    store_le64(at + 40, (uint64_t)segment->time_ns_max);
    store_le64(at + 48, segment->size);
    store_le64(at + 56, segment->row_count);
    store_le64(at + 64, segment->point_count);
}

void manifest_encode(struct buf *out, const struct manifest *manifest)
{
    size_t size = HEAD_SIZE + manifest->mark_count * MARK_SIZE + manifest->segment_count * SEGMENT_SIZE + CRC_SIZE;
    uint8_t *at = buf_reserve(out, size);
    if (!at)
        return;
    encode_head(at, manifest, size);
    uint8_t *to = at + HEAD_SIZE;
    for (size_t i = 0; i < manifest->mark_count; i++, to += MARK_SIZE)
        encode_mark(to, &manifest->marks[i]);
    for (size_t i = 0; i < manifest->segment_count; i++, to += SEGMENT_SIZE)
        encode_segment(to, &manifest->segments[i]);
    store_le32(to, crc32c(0, at, size - CRC_SIZE));
    buf_commit(out, size);
}

static bool decode_marks(struct manifest *out, const uint8_t *at)
{
    for (size_t i = 0; i < out->mark_count; i++, at += MARK_SIZE) {
        if (load_le64(at + 8) > UINT32_MAX)
            return false;
        out->marks[i] = (struct manifest_mark){load_le64(at), {(uint32_t)load_le64(at + 8), load_le64(at + 16)}};
    }
    return true;
}

static bool decode_segments(struct manifest *out, const uint8_t *at)
{
    for (size_t i = 0; i < out->segment_count; i++, at += SEGMENT_SIZE) {
        struct manifest_segment *segment = &out->segments[i];
        if (load_le64(at + 16) > 0xff)
            return false;
        *segment = (struct manifest_segment){
            .flush_first = load_le64(at),
            .flush_last = load_le64(at + 8),
            .level = (uint32_t)load_le64(at + 16),
            .window_ns = (int64_t)load_le64(at + 24),
            .time_ns_min = (int64_t)load_le64(at + 32),
            .time_ns_max = (int64_t)load_le64(at + 40),
            .size = load_le64(at + 48),
            .row_count = load_le64(at + 56),
            .point_count = load_le64(at + 64),
        };
        if (segment->flush_first > segment->flush_last || segment->flush_last >= out->flush_next)
            return false;
        if (i > 0 && segment->flush_first <= segment[-1].flush_last)
            return false;
    }
    return true;
}

enum err manifest_decode(struct manifest *out, struct span bytes)
{
    if (bytes.size < HEAD_SIZE + CRC_SIZE || load_le32(bytes.data) != MANIFEST_MAGIC || load_le64(bytes.data + 8) != bytes.size)
        return ERR_CORRUPT;
    if (crc32c(0, bytes.data, bytes.size - CRC_SIZE) != load_le32(bytes.data + bytes.size - CRC_SIZE))
        return ERR_CORRUPT;
    const uint8_t *at = bytes.data;
    if (load_le32(at + 4) != MANIFEST_VERSION)
        return ERR_VERSION;
    *out = (struct manifest){.generation = load_le64(at + 16),
                             .fence = load_le64(at + 24),
                             .partition_count = load_le32(at + 32),
                             .partition_index = load_le32(at + 36),
                             .flush_next = load_le64(at + 40),
                             .arrival_next = load_le64(at + 48),
                             .mark_count = load_le32(at + 168),
                             .segment_count = load_le32(at + 172)};
    get_cursor(&out->position, at + 56);
    get_cursor(&out->began, at + 112);
    if (out->mark_count > MANIFEST_MARKS_MAX || out->segment_count > MANIFEST_SEGMENTS_MAX ||
        bytes.size != HEAD_SIZE + out->mark_count * MARK_SIZE + out->segment_count * SEGMENT_SIZE + CRC_SIZE)
        return ERR_CORRUPT;
    out->marks = calloc(out->mark_count + 1, sizeof *out->marks);
    out->segments = calloc(out->segment_count + 1, sizeof *out->segments);
    enum err err = out->marks && out->segments ? ERR_OK : ERR_NOMEM;
    if (!err && !(decode_marks(out, at + HEAD_SIZE) && decode_segments(out, at + HEAD_SIZE + out->mark_count * MARK_SIZE)))
        err = ERR_CORRUPT;
    if (err)
        manifest_deinit(out);
    return err;
}

/* Read one file; ERR_NOTFOUND when there is none. */
static enum err load_slot(struct manifest *out, struct fs *fs, const char *dir, const char *name)
{
    char path[FILE_PATH_MAX];
    struct file *file;
    enum err err = file_path(path, dir, name);
    if (!err)
        err = fs_open(fs, &file, path, FILE_READ);
    if (err)
        return err;
    uint64_t size = 0;
    size_t got = 0;
    uint8_t *bytes = NULL;
    err = file_size(file, &size);
    if (!err && size > MANIFEST_SIZE_MAX)
        err = ERR_CORRUPT;
    if (!err && !(bytes = malloc(size + 1)))
        err = ERR_NOMEM;
    if (!err)
        err = file_pread(file, &got, bytes, size, 0);
    if (!err)
        err = manifest_decode(out, span_of(bytes, got));
    free(bytes);
    file_close(file);
    return err;
}

enum err manifest_load(struct manifest *out, struct manifest_report *report_out, struct fs *fs, const char *dir, uint32_t partition_count,
                       uint32_t partition_index, struct errmsg *msg)
{
    struct manifest slots[2];
    enum err errs[2];
    *report_out = (struct manifest_report){0};
    int best = -1;
    enum err worst = ERR_OK;
    for (int i = 0; i < 2; i++) {
        errs[i] = load_slot(&slots[i], fs, dir, slot_names[i]);
        if (!errs[i] && (best < 0 || slots[i].generation > slots[best].generation))
            best = i;
        report_out->corrupt_count += errs[i] == ERR_CORRUPT;
        if (errs[i] && errs[i] != ERR_NOTFOUND)
            worst = errs[i];
    }
    for (int i = 0; i < 2; i++) {
        if (!errs[i] && i != best)
            manifest_deinit(&slots[i]);
    }
    /* A slot that cannot be read for want of memory or by a newer format may be the newer one: that is no reason to go back in time. */
    if (worst && worst != ERR_CORRUPT) {
        if (best >= 0)
            manifest_deinit(&slots[best]);
        return err_set(msg, worst, "%s: manifest: %s", dir, err_text(worst));
    }
    if (best < 0) {
        if (worst)
            return err_set(msg, worst, "%s: neither manifest.0 nor manifest.1 is whole", dir);
        report_out->is_new = true;
        manifest_init(out, partition_count, partition_index);
        return ERR_OK;
    }
    if (slots[best].partition_count != partition_count || slots[best].partition_index != partition_index) {
        enum err err = err_set(msg, ERR_CORRUPT, "%s: the manifest is of partition %u of %u", dir, slots[best].partition_index,
                               slots[best].partition_count);
        manifest_deinit(&slots[best]);
        return err;
    }
    *out = slots[best];
    return ERR_OK;
}

/* Write `bytes` as `name`: aside, synced, renamed, the directory synced. */
static enum err store_slot(struct fs *fs, const char *dir, const char *name, struct span bytes)
{
    char path[FILE_PATH_MAX], path_tmp[FILE_PATH_MAX];
    struct file *file = NULL;
    enum err err = file_path(path, dir, name);
    if (!err)
        err = file_path(path_tmp, dir, "manifest.tmp");
    if (!err)
        err = fs_open(fs, &file, path_tmp, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
    if (err)
        return err;
    err = file_pwrite(file, bytes.data, bytes.size, 0);
    if (!err)
        err = file_sync(file);
    file_close(file);
    if (!err)
        err = fs_rename(fs, path_tmp, path);
    if (!err)
        err = fs_sync_dir(fs, dir);
    return err;
}

/* Which slot is to be overwritten first: the one that is not the newest valid one. ERR_LOCKED when one has a greater fence. */
static enum err first_slot(int *first_out, const struct manifest *manifest, struct fs *fs, const char *dir)
{
    uint64_t generations[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        struct manifest slot;
        enum err err = load_slot(&slot, fs, dir, slot_names[i]);
        if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
            continue;
        if (err)
            return err;
        generations[i] = slot.generation;
        uint64_t fence = slot.fence;
        manifest_deinit(&slot);
        if (fence > manifest->fence || generations[i] >= manifest->generation)
            return ERR_LOCKED;
    }
    *first_out = generations[0] <= generations[1] ? 0 : 1;
    return ERR_OK;
}

enum err manifest_store(const struct manifest *manifest, struct fs *fs, const char *dir, struct errmsg *msg)
{
    struct buf bytes;
    int first = 0;
    buf_init(&bytes, MANIFEST_SIZE_MAX);
    enum err err = first_slot(&first, manifest, fs, dir);
    if (!err) {
        manifest_encode(&bytes, manifest);
        err = bytes.err;
    }
    for (int i = 0; i < 2 && !err; i++)
        err = store_slot(fs, dir, slot_names[first ^ i], buf_span(&bytes));
    buf_deinit(&bytes);
    if (err == ERR_LOCKED)
        return err_set(msg, err, "%s: another process has taken this partition", dir);
    return err ? err_set(msg, err, "%s: manifest: %s", dir, err_text(err)) : ERR_OK;
}
