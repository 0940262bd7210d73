/* How far a consumer of the log has come: file `cursor.NAME` of the log directory, two slots, synced.
 *
 * A consumer moves its cursor after its own commit; the writer reuses only segments that lie wholly before every cursor's `reopen` place.
 * Two places, because a record larger than a block begins before the position at which it counts: replay reads from `reopen` and applies
 * what is at `position` and after. The holder of a cursor keeps its lock, so two sinks never share one.
 *
 * Owner: the one consumer that opened it; the writer only reads. Thread: the owner. */
#ifndef TIDEGATE_COMMON_LOG_CURSOR_H
#define TIDEGATE_COMMON_LOG_CURSOR_H

#include "common/file.h"
#include "common/log_block.h"
#include "common/log_slots.h"

#define LOG_CURSOR_PREFIX "cursor."
#define LOG_CURSOR_NAME_MAX 64 /* bytes with NUL; letters, digits, - and _ */

struct log_cursor_value {
    uint64_t broker_id;
    struct log_position position; /* the next record wanted */
    struct log_place place;       /* of the block that holds it, or where it will be */
    struct log_place reopen;      /* first block of the oldest group open at `place`; equal to `place` when none is */
};

/* Order by position; at one position, by how much of the log is needed for it. (Parts of large records that never became whole hold no
 * record, and yet they fill segments.) Less than, equal to or greater than 0. */
int log_cursor_compare(const struct log_cursor_value *a, const struct log_cursor_value *b);

struct log_cursor {
    struct log_slots slots;
    struct log_cursor_value value; /* as last read or stored */
};

/* Make a cursor at `value` unless there is one already (then 0 too, and nothing changes). Synced, with its name. */
must_check enum err log_cursor_create(struct fs *fs, const char *dir, const char *name, const struct log_cursor_value *value);

/* Open and lock a cursor as its one holder, read it and make durable what was read.
 * Returns 0, ERR_NOTFOUND (the broker has not made it yet), ERR_LOCKED (another process holds it), ERR_CORRUPT, ERR_VERSION, ERR_INVALID
 * (no possible name), ERR_IO. */
must_check enum err log_cursor_open(struct log_cursor *cursor, struct fs *fs, const char *dir, const char *name, struct errmsg *msg);
void log_cursor_close(struct log_cursor *cursor);

/* Store and sync. A failure is final for this cursor. */
must_check enum err log_cursor_store(struct log_cursor *cursor, const struct log_cursor_value *value);

/* Read a cursor without holding it. Same errors as open, without ERR_LOCKED. */
must_check enum err log_cursor_read(struct log_cursor_value *value_out, struct fs *fs, const char *dir, const char *name);
/* The same, but never what may be forgotten with the power: by this value segments may be let go. */
must_check enum err log_cursor_read_durable(struct log_cursor_value *value_out, struct fs *fs, const char *dir, const char *name);

#endif
