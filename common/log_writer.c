/* The log writer.
 *
 * Files. The current segment is owned by the log thread alone. Each start begins a segment, with its first blocks: opening only gets the
 * file ready, as the prepared one, so that starts which fail, or say nothing, leave no segment behind, however many they are. Until then
 * `file` is NULL, `generation` and the durable end are those that recovery found, and the state file alone says where the log ended. Behind
 * it stand closed segments (`closed`), of which those before `floor` are free to be reused; before it stands at most one prepared segment,
 * a file that already has the next generation's name and is written full, so that a roll is one write of header and blocks into it.
 * log_writer_prepare() makes it, from a free segment if there is one, otherwise from a spare file that it fills with zeros a chunk at a
 * time. When a roll comes before it is ready, the log thread makes the file itself.
 *
 * A batch is cut into parts, one per segment that it touches. Parts are written in order, each durable before the next, so the second
 * part's blocks may name the end of the first as durable.
 *
 * Threads. `lock` guards the list of files and the prepared segment: the log thread takes it at a roll only. What room() needs is atomic.
 *
 * Failure. A write or sync that fails leaves unknown contents; `failed` is set and stays, and `failure` says of which file. Only a lack of
 * space is not final where nothing depends on what was or was not written: for the next segment (limit or full disk), and in a write of
 * blocks, which a file system that never writes in place may refuse although the segment is full of zeros: the same bytes are written to
 * the same place again before anybody hears of them. A sync is never tried again, whatever its reason.
 *
 * Rejected: preparing under the spare's name and renaming at the roll (a directory sync, several ms, in the way of every acknowledgement);
 * fallocate instead of zeros (unwritten extents make each sync a journal commit). */
#include "common/log_writer.h"

#include "common/bytes.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/log_cursor.h"
#include "common/log_segment.h"
#include "common/log_state.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define LOG_WRITER_SEGMENTS_DEFAULT 16
#define LOG_WRITER_SEGMENTS_MIN 4
#define LOG_WRITER_FREE_SEGMENTS_MAX 4 /* free segments kept for reuse; more are removed, so that a log that was full shrinks again */

_Static_assert(LOG_SEGMENT_HEADER_SIZE % FILE_ALIGNMENT_MAX == 0, "the first block begins aligned");

/* A closed segment. */
struct log_writer_segment {
    uint64_t generation;
    uint64_t bytes; /* of the file */
};

/* What a batch writes into one segment. */
struct log_writer_part {
    uint64_t generation;
    uint64_t offset; /* of the first byte written; 0 for a new segment (header and blocks) */
    uint64_t end;    /* exclusive */
    int iov_begin;
    int iov_count;
};

struct log_writer {
    struct fs *fs;
    char *dir;
    struct file *lock_file;
    uint64_t segment_size;
    uint64_t log_bytes_max;
    uint64_t free_bytes_min;
    uint32_t alignment;
    int64_t wall_ns;
    struct log_identity identity;
    struct log_recovery recovery;

    /* Log thread. */
    struct file *file; /* NULL: this start has written nothing yet */
    struct log_end durable;
    struct log_end next;       /* after the batch under way */
    uint64_t segment_sequence; /* first sequence of this start */
    struct log_block *const *blocks;
    size_t block_count;
    struct iovec *iov;
    struct log_writer_part *parts;
    uint8_t *headers; /* one segment header per part */
    size_t part_count;
    size_t part_max;
    size_t part_done;
    bool begun;
    uint64_t shard_begun[LOG_SHARD_MAX];
    uint64_t shard_durable[LOG_SHARD_MAX];
    bool group_open[LOG_SHARD_MAX];
    uint32_t group_expected[LOG_SHARD_MAX]; /* offset at which the next part of the open group begins */
    struct log_state state;
    struct log_end state_end; /* as last written */
    int64_t state_ns;
    bool state_written;

    /* Under `end_lock`, held for a copy alone: the log thread takes it at every write. */
    pthread_mutex_t end_lock;
    struct log_end published;

    /* Under `lock`. */
    pthread_mutex_t lock;
    struct log_writer_segment *closed; /* ascending generations, without the current */
    size_t closed_count;
    size_t closed_capacity;
    uint64_t generation; /* of the current segment */
    uint64_t floor;      /* segments before it are free */
    struct file *prepared;
    uint64_t recycled_count;

    /* The preparing thread. */
    struct file *fill;
    uint64_t fill_bytes;
    bool fill_done;
    uint8_t *zeros;

    /* Any thread. */
    atomic_int failed;
    struct errmsg failure; /* written before `failed`, by who sets it */
    pthread_mutex_t failure_lock;
    _Atomic uint64_t used_closed;  /* bytes of closed segments that are needed */
    _Atomic uint64_t used_current; /* bytes of the current */
    _Atomic uint64_t ready_bytes;  /* in free, prepared and spare files */
    _Atomic uint64_t free_bytes;   /* of the disk */
    _Atomic uint64_t checkpoint;   /* generation; UINT64_MAX: there is none */
    _Atomic uint64_t write_count, block_total, record_total, byte_total, raw_byte_total, roll_count, roll_unprepared_count;
};

/* Paths */

static enum err writer_segment_path(const struct log_writer *writer, char *path_out, uint64_t generation)
{
    char name[LOG_SEGMENT_NAME_SIZE];
    log_segment_name(name, generation);
    return file_path(path_out, writer->dir, name);
}

static const char spare_name[] = "spare-0.seg";

/* The end of this writer; the first reason is kept. */
static enum err writer_fail(struct log_writer *writer, enum err err, const char *file, const char *what)
{
    pthread_mutex_lock(&writer->failure_lock);
    if (atomic_load(&writer->failed) == ERR_OK) {
        err_set(&writer->failure, ERR_IO, "%s/%s: %s: %s", writer->dir, file, what, err_text(err));
        atomic_store(&writer->failed, err == ERR_OK ? ERR_IO : err);
    }
    pthread_mutex_unlock(&writer->failure_lock);
    return ERR_IO;
}

void log_writer_failure(struct log_writer *writer, struct errmsg *msg_out)
{
    pthread_mutex_lock(&writer->failure_lock);
    *msg_out = writer->failure;
    pthread_mutex_unlock(&writer->failure_lock);
}

enum err log_writer_failed(const struct log_writer *writer)
{
    return (enum err)atomic_load_explicit(&writer->failed, memory_order_relaxed);
}

/* Files. All of these run under `lock`, or before any other thread exists. */

static enum err writer_add_closed(struct log_writer *writer, uint64_t generation, uint64_t bytes)
{
    if (writer->closed_count == writer->closed_capacity) {
        size_t capacity = writer->closed_capacity ? 2 * writer->closed_capacity : 64;
        struct log_writer_segment *closed = (struct log_writer_segment *)realloc(writer->closed, capacity * sizeof *closed);
        if (!closed)
            return ERR_NOMEM;
        writer->closed = closed;
        writer->closed_capacity = capacity;
    }
    writer->closed[writer->closed_count++] = (struct log_writer_segment){generation, bytes};
    return ERR_OK;
}

static void writer_remove_closed(struct log_writer *writer)
{
    writer->closed_count--;
    memmove(writer->closed, writer->closed + 1, writer->closed_count * sizeof *writer->closed);
}

/* Behind the current one; before there is one, that which will be it is none. */
static uint64_t writer_prepared_bytes(const struct log_writer *writer)
{
    return writer->file && writer->prepared ? writer->segment_size : 0;
}

static uint64_t writer_file_bytes(const struct log_writer *writer)
{
    uint64_t bytes = writer->segment_size + writer_prepared_bytes(writer) + writer->fill_bytes;
    for (size_t i = 0; i < writer->closed_count; i++)
        bytes += writer->closed[i].bytes;
    return bytes;
}

static void writer_account(struct log_writer *writer)
{
    uint64_t used = 0, ready = writer_prepared_bytes(writer);
    for (size_t i = 0; i < writer->closed_count; i++) {
        if (writer->closed[i].generation >= writer->floor)
            used += writer->closed[i].bytes;
        else
            ready += writer->closed[i].bytes;
    }
    atomic_store_explicit(&writer->used_closed, used, memory_order_relaxed);
    atomic_store_explicit(&writer->ready_bytes, ready + writer->fill_bytes, memory_order_relaxed);
}

/* Names as they are now, durably. Also where space is what is missing, a sync that failed says nothing about the next one. */
static enum err writer_sync_dir(struct log_writer *writer)
{
    enum err err = fs_sync_dir(writer->fs, writer->dir);
    return err ? writer_fail(writer, err, "", "sync of the directory") : ERR_OK;
}

/* Give the file `from` the next generation's name, durably, and open it as the prepared segment. */
static enum err writer_adopt(struct log_writer *writer, const char *from)
{
    char to[FILE_PATH_MAX];
    enum err err = writer_segment_path(writer, to, writer->generation + 1);
    if (!err)
        err = fs_rename(writer->fs, from, to);
    if (!err)
        err = writer_sync_dir(writer);
    if (!err)
        err = fs_open(writer->fs, &writer->prepared, to, FILE_READ | FILE_WRITE | FILE_DIRECT | FILE_DSYNC);
    return err;
}

/* The oldest free segment becomes the prepared one. One whose size does not fit (another configuration, or closed by a restart) is removed.
 * Returns ERR_NOTFOUND when there is none. */
static enum err writer_recycle(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    while (writer->closed_count && writer->closed[0].generation < writer->floor) {
        struct log_writer_segment oldest = writer->closed[0];
        enum err err = writer_segment_path(writer, path, oldest.generation);
        if (!err && oldest.bytes == writer->segment_size) {
            err = writer_adopt(writer, path);
            if (!err) {
                CRASH_POINT("log_segment_recycled");
                writer->recycled_count++;
                writer_remove_closed(writer);
            }
            return err;
        }
        if (!err)
            err = fs_unlink(writer->fs, path);
        if (!err)
            err = writer_sync_dir(writer);
        if (err && err != ERR_NOTFOUND)
            return err;
        writer_remove_closed(writer);
    }
    return ERR_NOTFOUND;
}

/* A new file as the prepared segment, not filled: for the log thread when nobody was in time. */
static enum err writer_create(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    uint64_t free_bytes;
    if (writer_file_bytes(writer) + writer->segment_size > writer->log_bytes_max)
        return ERR_NOSPACE;
    enum err err = fs_free_bytes(writer->fs, &free_bytes, writer->dir);
    if (!err && free_bytes < writer->segment_size) /* it would be sparse, and a write into it could fail for good */
        return ERR_NOSPACE;
    if (!err)
        err = writer_segment_path(writer, path, writer->generation + 1);
    if (!err)
        err = fs_open(writer->fs, &writer->prepared, path, FILE_READ | FILE_WRITE | FILE_CREATE | FILE_TRUNCATE | FILE_DIRECT | FILE_DSYNC);
    if (err)
        return err;
    err = file_truncate(writer->prepared, writer->segment_size);
    if (!err && file_sync(writer->prepared) != ERR_OK)
        err = ERR_IO;
    if (!err)
        err = writer_sync_dir(writer);
    if (err) {
        file_close(writer->prepared);
        writer->prepared = NULL;
    }
    return err;
}

/* Preparing */

struct writer_look {
    struct log_writer *writer;
    char current[LOG_SEGMENT_NAME_SIZE]; /* the current segment */
    bool has_current;
    uint64_t floor;
    enum err err;
    struct errmsg *msg;
};

static void writer_look_at_name(void *context, const char *name)
{
    struct writer_look *look = (struct writer_look *)context;
    struct log_cursor_value value;
    look->has_current = look->has_current || strcmp(name, look->current) == 0;
    if (strncmp(name, LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) != 0)
        return;
    enum err err = log_cursor_read_durable(&value, look->writer->fs, look->writer->dir, name + strlen(LOG_CURSOR_PREFIX));
    if (err) { /* nobody knows what it holds: everything */
        look->floor = 0;
        if (err != ERR_NOTFOUND) /* ... unless it is just being made */
            look->err = err_set(look->msg, err, "%s/%s: %s; no segment is reused", look->writer->dir, name, err_text(err));
    } else if (value.reopen.generation < look->floor) {
        look->floor = value.reopen.generation;
    }
}

/* How far is everybody, how full is the disk?
 * cursor_err_out  a cursor that cannot be read stops all reuse, and nothing else.
 * current_out     the name of the current segment; NULL = nobody asks.
 * Returns ERR_NOTFOUND when that has lost its name: what is written to it nobody would find. */
static enum err writer_look(struct log_writer *writer, char current_out[LOG_SEGMENT_NAME_SIZE], enum err *cursor_err_out,
                            struct errmsg *msg)
{
    struct writer_look look = {.writer = writer, .floor = UINT64_MAX, .msg = msg};
    uint64_t free_bytes;
    /* It keeps its name while we look: only this thread's look lets segments be reused. */
    pthread_mutex_lock(&writer->lock);
    bool is_open = writer->file || writer->prepared;
    log_segment_name(look.current, writer->file ? writer->generation : writer->generation + 1);
    pthread_mutex_unlock(&writer->lock);
    if (current_out)
        memcpy(current_out, look.current, sizeof look.current);
    enum err err = fs_list(writer->fs, writer->dir, &look, writer_look_at_name);
    if (err)
        return err_set(msg, err, "%s: %s", writer->dir, err_text(err));
    if (is_open && !look.has_current)
        return err_set(msg, ERR_NOTFOUND, "%s/%s: was removed while it was written", writer->dir, look.current);
    err = fs_free_bytes(writer->fs, &free_bytes, writer->dir);
    if (err)
        return err_set(msg, err, "%s: free space: %s", writer->dir, err_text(err));
    atomic_store_explicit(&writer->free_bytes, free_bytes, memory_order_relaxed);
    *cursor_err_out = look.err;
    uint64_t checkpoint = atomic_load(&writer->checkpoint);
    if (checkpoint < look.floor)
        look.floor = checkpoint;
    pthread_mutex_lock(&writer->lock);
    if (look.floor > writer->generation)
        look.floor = writer->generation;
    /* A cursor never goes back, but a new one may stand before the others: then what is left is kept for it. */
    writer->floor = look.floor;
    writer_account(writer);
    pthread_mutex_unlock(&writer->lock);
    return ERR_OK;
}

/* More free segments than will be wanted soon go back to the disk, the oldest first. */
static enum err writer_shrink(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    size_t free_count = 0;
    while (free_count < writer->closed_count && writer->closed[free_count].generation < writer->floor)
        free_count++;
    if (free_count <= LOG_WRITER_FREE_SEGMENTS_MAX)
        return ERR_OK;
    enum err err = writer_segment_path(writer, path, writer->closed[0].generation);
    if (!err)
        err = fs_unlink(writer->fs, path);
    if (err && err != ERR_NOTFOUND)
        return err;
    /* Older names must not outlive younger ones: the chain has no holes. */
    err = writer_sync_dir(writer);
    if (err)
        return err;
    writer_remove_closed(writer);
    return ERR_AGAIN;
}

/* One chunk of zeros for the spare file; ERR_AGAIN until it is full and synced. */
static enum err writer_fill(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    enum err err;
    if (!writer->fill) {
        err = file_path(path, writer->dir, spare_name);
        if (!err)
            err = fs_open(writer->fs, &writer->fill, path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE | FILE_DIRECT);
        return err ? err : ERR_AGAIN;
    }
    if (writer->fill_bytes < writer->segment_size) {
        uint64_t left = writer->segment_size - writer->fill_bytes;
        size_t size = left < LOG_WRITER_PREPARE_CHUNK ? (size_t)left : LOG_WRITER_PREPARE_CHUNK;
        err = file_pwrite(writer->fill, writer->zeros, size, writer->fill_bytes);
        if (err)
            return err;
        pthread_mutex_lock(&writer->lock);
        writer->fill_bytes += size;
        pthread_mutex_unlock(&writer->lock);
        return ERR_AGAIN;
    }
    err = file_sync(writer->fill);
    writer->fill_done = !err;
    return err;
}

static void writer_fill_drop(struct log_writer *writer)
{
    file_close(writer->fill);
    writer->fill = NULL;
    writer->fill_done = false;
    pthread_mutex_lock(&writer->lock);
    writer->fill_bytes = 0;
    pthread_mutex_unlock(&writer->lock);
}

/* Make the prepared segment out of what is at hand, under the lock. ERR_NOTFOUND: nothing is, a spare must be filled. */
static enum err writer_prepare_now(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    if (writer->prepared)
        return ERR_OK;
    enum err err = writer_recycle(writer);
    if (err != ERR_NOTFOUND || !writer->fill_done)
        return err;
    err = file_path(path, writer->dir, spare_name);
    return err ? err : writer_adopt(writer, path);
}

enum err log_writer_prepare(struct log_writer *writer, struct errmsg *msg)
{
    if (log_writer_failed(writer))
        return err_set(msg, ERR_IO, "%s: the log has failed", writer->dir);
    enum err cursor_err = ERR_OK;
    char current[LOG_SEGMENT_NAME_SIZE];
    enum err err = writer_look(writer, current, &cursor_err, msg);
    if (err == ERR_NOTFOUND)
        return writer_fail(writer, err, current, "the segment was removed while it was written");
    if (err)
        return writer_fail(writer, err, "", "looking at its files and the free space");
    pthread_mutex_lock(&writer->lock);
    bool had = writer->prepared;
    uint64_t recycled = writer->recycled_count;
    err = writer_prepare_now(writer);
    bool spare_used = !had && writer->prepared && writer->recycled_count == recycled;
    bool room = writer_file_bytes(writer) - writer->fill_bytes + writer->segment_size <= writer->log_bytes_max;
    if (err == ERR_OK)
        err = writer_shrink(writer);
    writer_account(writer);
    pthread_mutex_unlock(&writer->lock);
    if (spare_used) {
        CRASH_POINT("log_segment_prepared");
        writer_fill_drop(writer);
    }
    if (err == ERR_NOTFOUND) /* at the limit, room comes with the cursors only */
        err = room ? writer_fill(writer) : ERR_OK;
    if (err == ERR_OK && writer->fill_done && !spare_used)
        err = ERR_AGAIN; /* the next step names it */
    if (err == ERR_NOSPACE) {
        writer_fill_drop(writer);
        char path[FILE_PATH_MAX];
        if (file_path(path, writer->dir, spare_name) == ERR_OK && fs_unlink(writer->fs, path) != ERR_OK)
            return err_set(msg, ERR_NOSPACE, "%s: %s", path, err_text(ERR_NOSPACE));
        return err_set(msg, ERR_NOSPACE, "%s: no space for the next segment", writer->dir);
    }
    if (err && err != ERR_AGAIN) {
        (void)writer_fail(writer, err, spare_name, "preparing the next segment");
        log_writer_failure(writer, msg);
        return ERR_IO;
    }
    return err ? err : cursor_err;
}

/* Room */

static uint64_t writer_less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

uint64_t log_writer_room(const struct log_writer *writer, enum log_room purpose)
{
    if (log_writer_failed(writer))
        return 0;
    uint64_t current = atomic_load_explicit(&writer->used_current, memory_order_relaxed);
    uint64_t used_closed = atomic_load_explicit(&writer->used_closed, memory_order_relaxed);
    uint64_t on_disk = atomic_load_explicit(&writer->ready_bytes, memory_order_relaxed) + writer_less(writer->segment_size, current);
    uint64_t free_bytes = atomic_load_explicit(&writer->free_bytes, memory_order_relaxed);
    /* The log grows by whole segments: what is left beside them is no room. The current one is there, whatever the limit says. */
    uint64_t more = writer_less(writer->log_bytes_max, used_closed + writer->segment_size) / writer->segment_size;
    uint64_t log = writer_less(writer->segment_size, current) + more * (writer->segment_size - LOG_SEGMENT_HEADER_SIZE);
    if (purpose == LOG_ROOM_PUBLISH) {
        log = writer_less(log, writer->log_bytes_max / 10);
        free_bytes = writer_less(free_bytes, writer->free_bytes_min);
    }
    uint64_t disk = free_bytes > UINT64_MAX - on_disk ? UINT64_MAX : free_bytes + on_disk;
    return log < disk ? log : disk;
}

void log_writer_set_checkpoint(struct log_writer *writer, struct log_place place)
{
    atomic_store(&writer->checkpoint, place.generation ? place.generation : UINT64_MAX);
}

/* State */

static enum err writer_write_state(struct log_writer *writer)
{
    struct log_state_value value = {
        .broker_id = writer->identity.broker_id, .start = writer->identity.start, .end = writer->durable, .alignment = writer->alignment};
    enum err err = log_state_write(&writer->state, &value);
    if (!err)
        writer->state_end = writer->durable;
    CRASH_POINT("log_state_written");
    return err;
}

static void writer_publish_end(struct log_writer *writer)
{
    pthread_mutex_lock(&writer->end_lock);
    writer->published = writer->durable;
    pthread_mutex_unlock(&writer->end_lock);
}

struct log_end log_writer_published_end(struct log_writer *writer)
{
    pthread_mutex_lock(&writer->end_lock);
    struct log_end end = writer->published;
    pthread_mutex_unlock(&writer->end_lock);
    return end;
}

static bool writer_state_behind(const struct log_writer *writer)
{
    return log_place_compare(writer->state_end.place, writer->durable.place) != 0;
}

/* Opening */

static enum err writer_open_dir(struct log_writer *writer, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    enum err err = fs_mkdir(writer->fs, writer->dir);
    if (err == ERR_OK) {
        snprintf(path, sizeof path, "%s", writer->dir);
        char *slash = strrchr(path, '/');
        if (slash)
            *slash = 0;
        err = fs_sync_dir(writer->fs, !slash ? "." : slash == path ? "/" : path);
    }
    if (err && err != ERR_EXISTS)
        return err_set(msg, err, "%s: %s", writer->dir, err_text(err));
    err = file_path(path, writer->dir, "lock");
    if (!err)
        err = fs_open(writer->fs, &writer->lock_file, path, FILE_READ | FILE_WRITE | FILE_CREATE);
    if (!err)
        err = file_lock(writer->lock_file);
    return err ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

/* Take stock of the segments; those past the next generation were prepared for a future that did not come. */
static enum err writer_open_list(struct log_writer *writer)
{
    uint64_t *generations = NULL;
    size_t count = 0;
    char path[FILE_PATH_MAX];
    enum err err = log_segment_list(writer->fs, writer->dir, &generations, &count, NULL);
    for (size_t i = 0; !err && i < count; i++) {
        struct file *file = NULL;
        uint64_t bytes = 0;
        err = writer_segment_path(writer, path, generations[i]);
        if (!err && generations[i] > writer->generation) {
            if (generations[i] > writer->generation + 1)
                err = fs_unlink(writer->fs, path);
            continue;
        }
        if (!err)
            err = fs_open(writer->fs, &file, path, FILE_READ);
        if (!err)
            err = file_size(file, &bytes);
        file_close(file);
        if (!err)
            err = writer_add_closed(writer, generations[i], bytes);
    }
    free(generations);
    return err;
}

/* The file of the first segment of this start: the one prepared before the stop, or a new one. Filled here, since nobody waits for a
 * message yet. */
static enum err writer_open_segment(struct log_writer *writer)
{
    char path[FILE_PATH_MAX];
    uint64_t size;
    enum err err = writer_segment_path(writer, path, writer->generation + 1);
    if (!err)
        err = fs_open(writer->fs, &writer->prepared, path, FILE_READ | FILE_WRITE | FILE_CREATE | FILE_DIRECT | FILE_DSYNC);
    if (!err)
        err = file_size(writer->prepared, &size);
    if (err || size == writer->segment_size)
        return err ? err : fs_sync_dir(writer->fs, writer->dir);
    file_close(writer->prepared);
    writer->prepared = NULL;
    struct file *file;
    err = fs_open(writer->fs, &file, path, FILE_WRITE | FILE_TRUNCATE | FILE_DIRECT);
    if (err)
        return err;
    for (uint64_t at = 0; !err && at < writer->segment_size;) {
        uint64_t left = writer->segment_size - at;
        size_t part = left < LOG_WRITER_PREPARE_CHUNK ? (size_t)left : LOG_WRITER_PREPARE_CHUNK;
        err = file_pwrite(file, writer->zeros, part, at);
        at += part;
    }
    if (!err)
        err = file_sync(file);
    file_close(file);
    if (err) /* what it has taken belongs to whoever makes room */
        (void)!fs_unlink(writer->fs, path);
    if (!err)
        err = fs_sync_dir(writer->fs, writer->dir);
    if (!err)
        err = fs_open(writer->fs, &writer->prepared, path, FILE_READ | FILE_WRITE | FILE_DIRECT | FILE_DSYNC);
    return err;
}

static void writer_segment_header(const struct log_writer *writer, uint8_t *at, uint64_t generation, uint64_t first_sequence,
                                  struct log_place predecessor)
{
    struct log_segment_header header = {.broker_id = writer->identity.broker_id,
                                        .generation = generation,
                                        .epoch = writer->identity.epoch,
                                        .alignment = writer->alignment,
                                        .start = writer->identity.start,
                                        .first_sequence = first_sequence,
                                        .predecessor = predecessor,
                                        .size = writer->segment_size,
                                        .created_ns = writer->wall_ns};
    log_segment_header_encode(at, &header);
}

/* The prepared file becomes the current segment. Under `lock`, or alone. */
static void writer_enter_segment(struct log_writer *writer)
{
    file_close(writer->file);
    writer->file = writer->prepared;
    writer->prepared = NULL;
    writer->generation++;
}

/* Cut the segment that the last start left behind down to its end: only a torn tail is lost, and a broker that starts often does not fill
 * the log. */
static enum err writer_trim_predecessor(struct log_writer *writer, struct log_place end)
{
    char path[FILE_PATH_MAX];
    struct file *file;
    uint64_t bytes = (end.offset + 4095) & ~(uint64_t)4095;
    if (writer->closed_count == 0 || writer->closed[writer->closed_count - 1].generation != end.generation ||
        writer->closed[writer->closed_count - 1].bytes <= bytes)
        return ERR_OK;
    enum err err = writer_segment_path(writer, path, end.generation);
    if (!err)
        err = fs_open(writer->fs, &file, path, FILE_READ | FILE_WRITE);
    if (err)
        return err;
    err = file_truncate(file, bytes);
    if (!err)
        err = file_sync(file);
    file_close(file);
    if (!err)
        writer->closed[writer->closed_count - 1].bytes = bytes;
    return err;
}

enum err log_writer_release(struct log_writer *writer, bool *is_more_out, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    enum err cursor_err;
    *is_more_out = false;
    enum err err = writer_look(writer, NULL, &cursor_err, msg);
    if (!err && (err = file_path(path, writer->dir, spare_name)) == ERR_OK) {
        enum err gone = fs_unlink(writer->fs, path);
        *is_more_out = gone == ERR_OK;
    }
    /* The oldest first, each durably: older names must not outlive younger ones. */
    while (!err && writer->closed_count && writer->closed[0].generation < writer->floor) {
        err = writer_segment_path(writer, path, writer->closed[0].generation);
        if (!err)
            err = fs_unlink(writer->fs, path);
        if (!err || err == ERR_NOTFOUND)
            err = writer_sync_dir(writer);
        if (err)
            return err_set(msg, err, "%s: %s", path, err_text(err));
        writer_remove_closed(writer);
        *is_more_out = true;
    }
    return err;
}

/* The first segment under an identity begins at once: the first of all, because there would be no place to name, and that of a log which
 * was restored, because who reads it must know before there is a record that it is not the one which was copied. Of others the header is
 * written as zeros: a disk that takes no writes is to be found by the start, not by the first client. */
static enum err writer_open_header(struct log_writer *writer)
{
    bool is_first = writer->recovery.broker_id != writer->identity.broker_id;
    if (is_first)
        writer_segment_header(writer, writer->headers, writer->generation + 1, writer->durable.position.sequence, writer->durable.place);
    enum err err = file_pwrite(writer->prepared, is_first ? writer->headers : writer->zeros, LOG_SEGMENT_HEADER_SIZE, 0);
    if (err || !is_first)
        return err;
    writer_enter_segment(writer);
    writer->durable.place = (struct log_place){writer->generation, LOG_SEGMENT_HEADER_SIZE};
    return ERR_OK;
}

/* The file of this start's segment, and the state: where the log ended. What the last start left beyond its end goes back to the disk
 * first, which may be full; so does what could be reused, if that is not enough. */
static enum err writer_open_start(struct log_writer *writer)
{
    struct log_end end = writer->recovery.end;
    bool is_more = false;
    writer->generation = writer->recovery.last_generation;
    enum err err = writer_open_list(writer);
    if (!err)
        err = writer_trim_predecessor(writer, end.place);
    if (!err)
        err = writer_open_segment(writer);
    if (err == ERR_NOSPACE && log_writer_release(writer, &is_more, NULL) == ERR_OK && is_more)
        err = writer_open_segment(writer);
    if (err)
        return err;
    uint32_t least = file_is_direct(writer->prepared) ? file_alignment(writer->prepared) : FILE_ALIGNMENT_MIN;
    if (writer->alignment < least)
        writer->alignment = least;
    writer->durable = (struct log_end){.position = {writer->identity.epoch, end.position.sequence}, .place = end.place};
    writer->segment_sequence = end.position.sequence;
    err = writer_open_header(writer);
    if (err)
        return err;
    writer_publish_end(writer);
    err = log_state_open(&writer->state, writer->fs, writer->dir, true);
    if (err)
        return err;
    struct log_state_value ignored; /* only for its slot's number */
    err = log_state_read(&writer->state, &ignored);
    if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
        err = ERR_OK;
    if (!err)
        err = writer_write_state(writer);
    if (!err)
        err = file_sync(writer->state.slots.file);
    if (!err)
        err = fs_sync_dir(writer->fs, writer->dir);
    return err;
}

static enum err writer_open_memory(struct log_writer *writer)
{
    /* A part beyond the second means that a whole segment was filled, less the block that did not fit. */
    uint64_t useful = writer->segment_size > 4 * (uint64_t)LOG_BLOCK_SIZE_MAX ? writer->segment_size / 2 : 0;
    writer->part_max = useful ? 3 + (size_t)((uint64_t)LOG_WRITER_BATCH_MAX * LOG_BLOCK_SIZE_MAX / useful) : LOG_WRITER_BATCH_MAX + 1;
    writer->parts = (struct log_writer_part *)calloc(writer->part_max, sizeof *writer->parts);
    writer->headers = (uint8_t *)aligned_alloc(4096, writer->part_max * LOG_SEGMENT_HEADER_SIZE);
    writer->iov = (struct iovec *)calloc(LOG_WRITER_BATCH_MAX + writer->part_max, sizeof *writer->iov);
    writer->zeros = (uint8_t *)aligned_alloc(4096, LOG_WRITER_PREPARE_CHUNK);
    if (!writer->parts || !writer->headers || !writer->iov || !writer->zeros || !writer->dir)
        return ERR_NOMEM;
    memset(writer->zeros, 0, LOG_WRITER_PREPARE_CHUNK);
    return ERR_OK;
}

static enum err writer_open_options(struct log_writer *writer, const struct log_writer_options *options, struct errmsg *msg)
{
    writer->segment_size = align_up(options->segment_size ? options->segment_size : LOG_SEGMENT_SIZE_DEFAULT, 4096);
    writer->log_bytes_max = options->log_bytes_max ? options->log_bytes_max : LOG_WRITER_SEGMENTS_DEFAULT * writer->segment_size;
    writer->free_bytes_min = options->free_bytes_min;
    writer->alignment = options->alignment;
    writer->wall_ns = options->wall_ns;
    if (writer->segment_size < 16384 || writer->segment_size > LOG_SEGMENT_SIZE_MAX)
        return err_set(msg, ERR_INVALID, "segment size %" PRIu64 ": must be 16 KiB to 4 GiB", writer->segment_size);
    if (writer->alignment & (writer->alignment - 1) || writer->alignment > FILE_ALIGNMENT_MAX)
        return err_set(msg, ERR_INVALID, "alignment %u: must be 512 to 4096", writer->alignment);
    if (writer->log_bytes_max / LOG_WRITER_SEGMENTS_MIN < writer->segment_size)
        return err_set(msg, ERR_INVALID, "log size %" PRIu64 ": must be at least %d segments of %" PRIu64, writer->log_bytes_max,
                       LOG_WRITER_SEGMENTS_MIN, writer->segment_size);
    return ERR_OK;
}

enum err log_writer_open(struct log_writer **writer_out, const struct log_writer_options *options, struct log_recovery *recovery_out,
                         struct errmsg *msg)
{
    struct log_recovery_options recovery_options = {.checkpoint = options->checkpoint, .checkpoint_end = options->checkpoint_end};
    struct log_writer *writer = (struct log_writer *)calloc(1, sizeof *writer);
    if (!writer)
        return err_set(msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
    pthread_mutex_init(&writer->lock, NULL);
    pthread_mutex_init(&writer->end_lock, NULL);
    pthread_mutex_init(&writer->failure_lock, NULL);
    writer->fs = options->fs;
    writer->dir = strdup(options->dir);
    log_writer_set_checkpoint(writer, options->checkpoint);
    if (recovery_out)
        memset(recovery_out, 0, sizeof *recovery_out);
    enum err err = writer_open_options(writer, options, msg);
    if (err)
        goto fail;
    err = writer_open_memory(writer);
    if (err) {
        err_set(msg, err, "%s", err_text(err));
        goto fail;
    }
    err = writer_open_dir(writer, msg);
    if (err)
        goto fail;
    err = log_recovery_run(&writer->recovery, writer->fs, writer->dir, &recovery_options, msg);
    if (recovery_out)
        *recovery_out = writer->recovery;
    if (err)
        goto fail;
    err = log_identity_begin(&writer->identity, writer->fs, writer->dir, writer->recovery.epoch_max, writer->recovery.last_generation == 0,
                             msg);
    if (err)
        goto fail;
    err = writer_open_start(writer);
    if (err) {
        err_set(msg, err, "%s/%016" PRIx64 ".seg: cannot start this segment: %s", writer->dir, writer->recovery.last_generation + 1,
                err_text(err));
        goto fail;
    }
    atomic_store(&writer->used_current, LOG_SEGMENT_HEADER_SIZE);
    enum err cursor_err; /* log_writer_prepare() reports it again and again */
    err = writer_look(writer, NULL, &cursor_err, msg);
    if (err)
        goto fail;
    *writer_out = writer;
    return ERR_OK;
fail:
    if (!log_writer_failed(writer))
        (void)writer_fail(writer, err, "", "cannot open");
    log_writer_close(writer);
    return err;
}

void log_writer_close(struct log_writer *writer)
{
    if (!writer)
        return;
    if (!log_writer_failed(writer) && writer_write_state(writer) == ERR_OK) {
        /* The state is a hint; an error here changes nothing that was promised. */
        (void)!file_sync(writer->state.slots.file);
    }
    log_state_close(&writer->state);
    file_close(writer->file);
    file_close(writer->prepared);
    file_close(writer->fill);
    file_close(writer->lock_file);
    pthread_mutex_destroy(&writer->lock);
    pthread_mutex_destroy(&writer->end_lock);
    pthread_mutex_destroy(&writer->failure_lock);
    free(writer->closed);
    free(writer->parts);
    free(writer->headers);
    free(writer->iov);
    free(writer->zeros);
    free(writer->dir);
    free(writer);
}

uint64_t log_writer_broker_id(const struct log_writer *writer) { return writer->identity.broker_id; }
uint32_t log_writer_epoch(const struct log_writer *writer) { return writer->identity.epoch; }
uint32_t log_writer_alignment(const struct log_writer *writer) { return writer->alignment; }
uint64_t log_writer_batch_bytes_max(const struct log_writer *writer) { return writer->segment_size - LOG_SEGMENT_HEADER_SIZE; }
struct log_end log_writer_durable_end(const struct log_writer *writer) { return writer->durable; }
uint64_t log_writer_durable_blocks(const struct log_writer *writer, uint16_t shard) { return writer->shard_durable[shard]; }

enum err log_writer_ensure_cursor(struct log_writer *writer, const char *name, struct errmsg *msg)
{
    struct log_cursor_value value = {.broker_id = writer->identity.broker_id};
    if (writer->recovery.oldest_place.generation) {
        value.position = writer->recovery.oldest;
        value.place = writer->recovery.oldest_place;
    } else {
        value.position = (struct log_position){writer->identity.epoch, writer->segment_sequence};
        value.place = (struct log_place){writer->generation, LOG_SEGMENT_HEADER_SIZE};
    }
    value.reopen = value.place;
    enum err err = log_cursor_create(writer->fs, writer->dir, name, &value);
    if (err)
        return err_set(msg, err, "%s/%s%s: %s", writer->dir, LOG_CURSOR_PREFIX, name, err_text(err));
    enum err cursor_err;
    return writer_look(writer, NULL, &cursor_err, msg);
}

/* A batch */

/* What a correct shard hands over, before anything of it goes to disk. */
static void writer_check_block(struct log_writer *writer, const struct log_block *block)
{
    CHECK(block->sealed);
    CHECK(block->shard < LOG_SHARD_MAX);
    CHECK(block->size % writer->alignment == 0);
    CHECK(block->size <= writer->segment_size - LOG_SEGMENT_HEADER_SIZE);
    CHECK(block->shard_block == ++writer->shard_begun[block->shard]);
    if (block->flags & LOG_BLOCK_GROUP_FIRST) {
        writer->group_open[block->shard] = true;
    } else if (block->flags & LOG_BLOCK_GROUP) {
        CHECK(writer->group_open[block->shard]);
        CHECK(block->group_offset == writer->group_expected[block->shard]);
        writer->group_open[block->shard] = !(block->flags & LOG_BLOCK_GROUP_LAST);
    }
    if (block->flags & LOG_BLOCK_GROUP)
        writer->group_expected[block->shard] = block->group_offset + block->raw_size;
}

/* Begin the part for the next segment. */
static struct log_writer_part *writer_begin_roll(struct log_writer *writer, struct log_end *before, int iov_count)
{
    CHECK(writer->part_count < writer->part_max);
    uint8_t *header = writer->headers + writer->part_count * LOG_SEGMENT_HEADER_SIZE;
    struct log_writer_part *part = &writer->parts[writer->part_count++];
    *before = writer->next; /* the parts before this one are durable when it is written */
    writer->next.place.generation++;
    writer->next.place.offset = LOG_SEGMENT_HEADER_SIZE;
    writer_segment_header(writer, header, writer->next.place.generation, writer->next.position.sequence, before->place);
    writer->iov[iov_count] = (struct iovec){header, LOG_SEGMENT_HEADER_SIZE};
    *part = (struct log_writer_part){.generation = writer->next.place.generation, .offset = 0, .iov_begin = iov_count, .iov_count = 1};
    return part;
}

static void writer_begin_header(struct log_writer *writer, struct log_block *block, struct log_end before)
{
    struct log_block_header header = {.flags = block->flags,
                                      .shard = block->shard,
                                      .epoch = writer->identity.epoch,
                                      .broker_id = writer->identity.broker_id,
                                      .generation = writer->next.place.generation,
                                      .offset = writer->next.place.offset,
                                      .start = writer->identity.start,
                                      .sequence = writer->next.position.sequence,
                                      .shard_block = block->shard_block,
                                      .record_count = block->record_count,
                                      .stored_size = block->body_size,
                                      .raw_size = block->raw_size,
                                      .body_crc = block->body_crc,
                                      .size = block->size,
                                      .group_offset = block->group_offset,
                                      .group_size = block->group_size,
                                      .durable_before = before};
    log_block_header_encode(block->memory, &header);
    block->first = writer->next.position;
    block->place = writer->next.place;
}

void log_writer_begin(struct log_writer *writer, struct log_block *const *blocks, size_t block_count)
{
    if (log_writer_failed(writer))
        return;
    CHECK(!writer->begun);
    CHECK(block_count > 0);
    CHECK(block_count <= LOG_WRITER_BATCH_MAX);
    writer->begun = true;
    writer->blocks = blocks;
    writer->block_count = block_count;
    writer->part_done = 0;
    writer->part_count = 1;
    writer->next = writer->durable;
    struct log_end before = writer->durable;
    struct log_writer_part *part = &writer->parts[0];
    *part = (struct log_writer_part){.generation = writer->durable.place.generation, .offset = writer->durable.place.offset};
    int iov_count = 0;
    for (size_t i = 0; i < block_count; i++) {
        struct log_block *block = blocks[i];
        writer_check_block(writer, block);
        bool is_start = i == 0 && !writer->file;
        if (is_start || block->size > writer->segment_size - writer->next.place.offset) {
            part->end = writer->next.place.offset;
            part = writer_begin_roll(writer, &before, iov_count++);
        }
        writer_begin_header(writer, block, before);
        writer->iov[iov_count++] = (struct iovec){block->memory, block->size};
        part->iov_count++;
        writer->next.place.offset += block->size;
        writer->next.position.sequence += block->record_count;
    }
    part->end = writer->next.place.offset;
}

/* The segment of a part that begins one becomes the current. */
static enum err writer_roll(struct log_writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    bool prepared = writer->prepared;
    enum err err = ERR_OK;
    if (!prepared) {
        err = writer_recycle(writer);
        if (err == ERR_NOTFOUND)
            err = writer_create(writer);
    }
    if (!err && writer->file) /* that which recovery found is among them */
        err = writer_add_closed(writer, writer->generation, writer->segment_size);
    if (!err) {
        writer_enter_segment(writer);
        CRASH_POINT("log_segment_rolled"); /* its header goes with the write that follows */
        writer_account(writer);
        atomic_fetch_add(&writer->roll_count, 1);
        atomic_fetch_add(&writer->roll_unprepared_count, !prepared);
    }
    pthread_mutex_unlock(&writer->lock);
    return err;
}

static enum err writer_fail_part(struct log_writer *writer, const struct log_writer_part *part, enum err err, struct errmsg *msg)
{
    char file[LOG_SEGMENT_NAME_SIZE], what[96];
    log_segment_name(file, part->generation);
    snprintf(what, sizeof what, "write of %" PRIu64 " bytes at %" PRIu64, part->end - part->offset, part->offset);
    (void)writer_fail(writer, err, file, what);
    if (msg)
        log_writer_failure(writer, msg);
    return ERR_IO;
}

enum err log_writer_write(struct log_writer *writer, struct errmsg *msg)
{
    if (log_writer_failed(writer))
        return err_set(msg, ERR_IO, "%s: the log has failed", writer->dir);
    CHECK(writer->begun);
    while (writer->part_done < writer->part_count) {
        const struct log_writer_part *part = &writer->parts[writer->part_done];
        enum err err = ERR_OK;
        if (part->offset == 0 && part->generation != writer->generation)
            err = writer_roll(writer);
        if (err == ERR_NOSPACE || err == ERR_NOMEM) /* nothing was written: later, perhaps */
            return err_set(msg, ERR_NOSPACE, "%s: no space for segment %016" PRIx64, writer->dir, part->generation);
        if (!err && part->iov_count) {
            CHECK(part->generation == writer->generation);
            err = file_pwritev(writer->file, writer->iov + part->iov_begin, part->iov_count, part->offset);
            atomic_fetch_add_explicit(&writer->write_count, 1, memory_order_relaxed);
        }
        if (err == ERR_NOSPACE) /* all of it again: see above */
            return err_set(msg, ERR_NOSPACE, "%s/%016" PRIx64 ".seg: write at %" PRIu64 ": %s", writer->dir, part->generation, part->offset,
                           err_text(err));
        if (err)
            return writer_fail_part(writer, part, err, msg);
        writer->part_done++;
        if (writer->part_done < writer->part_count)
            CRASH_POINT("log_part_written"); /* the rest goes into the next segment */
    }
    return ERR_OK;
}

enum err log_writer_finish(struct log_writer *writer, int64_t now_ns)
{
    if (log_writer_failed(writer))
        return ERR_IO;
    CHECK(writer->begun);
    CHECK(writer->part_done == writer->part_count);
    CRASH_POINT("log_written");
    uint64_t bytes = 0, raw_bytes = 0;
    for (size_t i = 0; i < writer->block_count; i++) {
        const struct log_block *block = writer->blocks[i];
        writer->shard_durable[block->shard] = block->shard_block;
        bytes += block->size;
        raw_bytes += block->raw_size;
    }
    atomic_fetch_add_explicit(&writer->block_total, writer->block_count, memory_order_relaxed);
    atomic_fetch_add_explicit(&writer->record_total, writer->next.position.sequence - writer->durable.position.sequence,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&writer->byte_total, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&writer->raw_byte_total, raw_bytes, memory_order_relaxed);
    writer->durable = writer->next;
    writer_publish_end(writer);
    writer->begun = false;
    writer->blocks = NULL;
    atomic_store_explicit(&writer->used_current, writer->durable.place.offset, memory_order_relaxed);
    int64_t wait_ns;
    return log_writer_idle(writer, &wait_ns, now_ns);
}

enum err log_writer_idle(struct log_writer *writer, int64_t *wait_ns_out, int64_t now_ns)
{
    *wait_ns_out = 0;
    if (log_writer_failed(writer))
        return ERR_IO;
    if (!writer_state_behind(writer))
        return ERR_OK;
    int64_t since = now_ns - writer->state_ns;
    if (writer->state_written && since >= 0 && since < LOG_STATE_INTERVAL_NS) {
        *wait_ns_out = LOG_STATE_INTERVAL_NS - since;
        return ERR_OK;
    }
    enum err err = writer_write_state(writer);
    if (err)
        return writer_fail(writer, err, "state", "write");
    writer->state_ns = now_ns;
    writer->state_written = true;
    return ERR_OK;
}

void log_writer_stats(struct log_writer *writer, struct log_writer_stats *stats_out)
{
    memset(stats_out, 0, sizeof *stats_out);
    stats_out->write_count = atomic_load(&writer->write_count);
    stats_out->block_count = atomic_load(&writer->block_total);
    stats_out->record_count = atomic_load(&writer->record_total);
    stats_out->byte_count = atomic_load(&writer->byte_total);
    stats_out->raw_byte_count = atomic_load(&writer->raw_byte_total);
    stats_out->roll_count = atomic_load(&writer->roll_count);
    stats_out->roll_unprepared_count = atomic_load(&writer->roll_unprepared_count);
    stats_out->used_bytes = atomic_load(&writer->used_closed) + atomic_load(&writer->used_current);
    stats_out->limit_bytes = writer->log_bytes_max;
    stats_out->free_bytes = atomic_load(&writer->free_bytes);
    pthread_mutex_lock(&writer->lock);
    stats_out->recycled_count = writer->recycled_count;
    const struct file *file = writer->file ? writer->file : writer->prepared;
    stats_out->segment_count = writer->closed_count + (writer->file ? 1 : 0);
    stats_out->direct = file && file_is_direct(file);
    pthread_mutex_unlock(&writer->lock);
}
