#include "sink/source/source_log.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/log_identity.h"
#include "common/log_reader.h"

struct source_log {
    struct source source; /* first */
    struct fs *fs;
    struct log_cursor cursor;
    bool is_cursor_open;
    unsigned open_count; /* attempts that found an identity but no cursor */
    struct log_reader *reader;
    struct log_cursor_value read; /* behind the last item that is done */
    uint64_t lag;
    char dir[];
};

static enum err on_open(struct source *source, struct log_cursor_value *cursor_out, struct errmsg *msg)
{
    struct source_log *log = (struct source_log *)source;
    struct log_identity identity;
    enum err err = log_identity_read(&identity, log->fs, log->dir);
    if (err == ERR_NOTFOUND)
        return err_set(msg, ERR_AGAIN, "%s: no log of a broker here yet", log->dir);
    if (err)
        return err_set(msg, err, "%s/identity: %s", log->dir, err_text(err));
    err = log_cursor_open(&log->cursor, log->fs, log->dir, SOURCE_LOG_CURSOR, msg);
    if (err == ERR_NOTFOUND && log->open_count++ < SOURCE_LOG_CURSOR_WAIT)
        return err_set(msg, ERR_AGAIN, "%s/cursor.sink: the broker has not made it yet", log->dir);
    if (err == ERR_NOTFOUND) {
        const struct log_cursor_value oldest = {.broker_id = identity.broker_id};
        err = log_cursor_create(log->fs, log->dir, SOURCE_LOG_CURSOR, &oldest);
        if (!err)
            err = log_cursor_open(&log->cursor, log->fs, log->dir, SOURCE_LOG_CURSOR, msg);
    }
    if (err == ERR_LOCKED)
        return err_set(msg, err, "%s/cursor.sink is held by another sink: direct mode has one sink process", log->dir);
    if (err)
        return err_set(msg, err, "%s/cursor.sink: %s", log->dir, err_text(err));
    log->is_cursor_open = true;
    log->read = log->cursor.value;
    *cursor_out = log->cursor.value;
    return ERR_OK;
}

static enum err on_start(struct source *source, const struct log_cursor_value *from, struct errmsg *msg)
{
    struct source_log *log = (struct source_log *)source;
    CHECK(log->is_cursor_open);
    CHECK(!log->reader);
    log->read = *from;
    return log_reader_open(&log->reader, log->fs, log->dir, from, msg);
}

static enum err on_next(struct source *source, struct source_item *item_out, struct errmsg *msg)
{
    struct source_log *log = (struct source_log *)source;
    struct log_reader_item item;
    struct log_reader_stats stats;
    log_reader_cursor(log->reader, &log->read);
    enum err err = log_reader_next(log->reader, &item, msg);
    log_reader_stats(log->reader, &stats);
    __atomic_store_n(&log->lag, stats.lag_records, __ATOMIC_RELAXED);
    if (!err)
        *item_out = (struct source_item){item.bytes, item.broker_id, item.position};
    return err;
}

static void on_position(const struct source *source, struct log_cursor_value *position_out)
{
    *position_out = ((const struct source_log *)source)->read;
}

static enum err on_commit(struct source *source, const struct log_cursor_value *position, struct errmsg *msg)
{
    struct source_log *log = (struct source_log *)source;
    enum err err = log_cursor_store(&log->cursor, position);
    return err ? err_set(msg, err, "%s/cursor.sink: %s", log->dir, err_text(err)) : ERR_OK;
}

static struct source_gap on_gap(const struct source *source)
{
    struct log_reader_gap gap = log_reader_gap(((const struct source_log *)source)->reader);
    return (struct source_gap){gap.from, gap.to};
}

static void on_accept_gap(struct source *source) { log_reader_accept_gap(((struct source_log *)source)->reader); }

static uint64_t on_lag(const struct source *source) { return __atomic_load_n(&((const struct source_log *)source)->lag, __ATOMIC_RELAXED); }

static void on_free(struct source *source)
{
    struct source_log *log = (struct source_log *)source;
    if (log->reader)
        log_reader_close(log->reader);
    if (log->is_cursor_open)
        log_cursor_close(&log->cursor);
    free(log);
}

static const struct source_ops ops = {on_open, on_start, on_next, on_position, on_commit, on_gap, on_accept_gap, on_lag, on_free};

struct source *source_log_new(struct fs *fs, const char *dir)
{
    size_t size = strlen(dir) + 1;
    struct source_log *log = calloc(1, sizeof *log + size);
    if (!log)
        return NULL;
    log->source.ops = &ops;
    log->fs = fs;
    memcpy(log->dir, dir, size);
    return &log->source;
}
