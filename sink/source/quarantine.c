#include "sink/source/quarantine.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/clock.h"
#include "common/utf8.h"

enum err quarantine_init(struct quarantine *quarantine, struct fs *fs, const char *partition_dir, uint64_t bytes_max)
{
    memset(quarantine, 0, sizeof *quarantine);
    quarantine->fs = fs;
    quarantine->file_size_max = bytes_max / 2;
    /* What is taken at once fits a file. */
    size_t buffer_max = quarantine->file_size_max < QUARANTINE_BUFFER_MAX ? (size_t)quarantine->file_size_max : QUARANTINE_BUFFER_MAX;
    buf_init(&quarantine->gathered, buffer_max);
    buf_init(&quarantine->taken, buffer_max);
    return file_path(quarantine->dir, partition_dir, "quarantine");
}

void quarantine_deinit(struct quarantine *quarantine)
{
    file_close(quarantine->file);
    quarantine->file = NULL;
    buf_deinit(&quarantine->gathered);
    buf_deinit(&quarantine->taken);
}

static void put_hex(struct buf *out, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        buf_printf(out, "%02x", data[i]);
}

static void put_record(struct buf *out, const struct record *rec)
{
    char received[CLOCK_TEXT_SIZE];
    clock_format(received, rec->received_ns, 9);
    buf_printf(out, ",\"received\":\"%s\",\"device\":", received);
    buf_put_json_string(out, rec->device);
    buf_put_string(out, ",\"topic\":");
    buf_put_json_string(out, rec->topic);
    buf_put_string(out, ",\"client\":");
    buf_put_json_string(out, rec->client_id);
    if (rec->has_correlation) {
        char correlation[RECORD_CORRELATION_TEXT_SIZE];
        record_correlation_text(correlation, rec);
        buf_printf(out, ",\"correlation\":\"%s\"", correlation);
    }
    struct span kept = rec->payload;
    if (kept.size > QUARANTINE_PAYLOAD_MAX)
        kept.size = QUARANTINE_PAYLOAD_MAX;
    buf_printf(out, ",\"size\":%zu", rec->payload.size);
    if (utf8_is_valid(kept)) {
        buf_put_string(out, ",\"payload\":");
        buf_put_json_string(out, kept);
    } else {
        buf_put_string(out, ",\"payload_hex\":\"");
        put_hex(out, kept.data, kept.size);
        buf_put_string(out, "\"");
    }
}

bool quarantine_add(struct quarantine *quarantine, enum reject reject, const struct record *rec, uint64_t broker_id,
                    struct log_position position, int64_t row)
{
    struct buf *out = &quarantine->gathered;
    size_t size_before = out->size;
    buf_printf(out, "{\"reason\":\"%s\",\"text\":\"%s\",\"broker\":\"%016" PRIx64 "\",\"epoch\":%u,\"sequence\":%" PRIu64,
               reject_label(reject), reject_text(reject), broker_id, position.epoch, position.sequence);
    if (row >= 0)
        buf_printf(out, ",\"row\":%" PRId64, row);
    if (rec)
        put_record(out, rec);
    buf_put_string(out, "}\n");
    if (!out->err) {
        quarantine->gathered_count++;
        return true;
    }
    out->size = size_before; /* a whole line or none */
    out->err = ERR_OK;
    return false;
}

bool quarantine_take(struct quarantine *quarantine)
{
    if (quarantine->is_writing || quarantine->gathered.size == 0)
        return false;
    struct buf swap = quarantine->taken;
    quarantine->taken = quarantine->gathered;
    quarantine->gathered = swap;
    buf_clear(&quarantine->gathered);
    quarantine->taken_count = quarantine->gathered_count;
    quarantine->gathered_count = 0;
    quarantine->is_writing = true;
    return true;
}

static enum err open_current(struct quarantine *quarantine, const char *path)
{
    enum err err = fs_mkdir(quarantine->fs, quarantine->dir);
    if (err && err != ERR_EXISTS)
        return err;
    err = fs_open(quarantine->fs, &quarantine->file, path, FILE_READ | FILE_WRITE | FILE_CREATE);
    if (err)
        return err;
    err = file_size(quarantine->file, &quarantine->file_used);
    if (!err && quarantine->file_used > 0) {
        /* A write that a crash cut short leaves half a line: what follows begins a new one. */
        err = file_pwrite(quarantine->file, "\n", 1, quarantine->file_used);
        quarantine->file_used++;
    }
    if (!err)
        err = fs_sync_dir(quarantine->fs, quarantine->dir);
    if (err) {
        /* Begin again at the next attempt: an open file here has a name that lasts. */
        file_close(quarantine->file);
        quarantine->file = NULL;
    }
    return err;
}

static enum err rotate(struct quarantine *quarantine, const char *path)
{
    char previous[FILE_PATH_MAX];
    enum err err = file_path(previous, quarantine->dir, "previous.jsonl");
    if (err)
        return err;
    file_close(quarantine->file);
    quarantine->file = NULL;
    err = fs_rename(quarantine->fs, path, previous);
    return err ? err : open_current(quarantine, path);
}

static enum err append(struct quarantine *quarantine)
{
    char path[FILE_PATH_MAX];
    struct span bytes = buf_span(&quarantine->taken);
    enum err err = file_path(path, quarantine->dir, "current.jsonl");
    if (!err && !quarantine->file)
        err = open_current(quarantine, path);
    if (!err && quarantine->file_used > 0 && quarantine->file_used + bytes.size > quarantine->file_size_max)
        err = rotate(quarantine, path);
    if (!err)
        err = file_pwrite(quarantine->file, bytes.data, bytes.size, quarantine->file_used);
    if (!err)
        err = file_sync(quarantine->file);
    if (!err)
        quarantine->file_used += bytes.size;
    return err;
}

enum err quarantine_write(struct quarantine *quarantine, struct errmsg *msg)
{
    if (!quarantine->is_writing)
        return ERR_OK;
    enum err err = append(quarantine);
    return err ? err_set(msg, err, "%s: %s", quarantine->dir, err_text(err)) : ERR_OK;
}

void quarantine_done(struct quarantine *quarantine)
{
    quarantine->is_writing = false;
    quarantine->taken_count = 0;
    buf_clear(&quarantine->taken);
}
