/* What arrived as telemetry and is not stored: kept aside with its reason, one JSON object a line, in files of bounded size.
 *
 *     {"received":"2026-11-21T06:09:12.123Z","reason":"future","text":"...","row":0,"device":"car42","topic":"fleet/car42/telemetry",
 *      "client":"car42","correlation":"00ff...","broker":"00000000deadbeef","epoch":3,"sequence":4711,"size":52,"payload":"{...}"}
 *
 * A payload that is not UTF-8 stands as "payload_hex" instead; one longer than QUARANTINE_PAYLOAD_MAX is cut ("size" is the whole). Entries
 * are gathered in memory (at most QUARANTINE_BUFFER_MAX bytes, or one file; what comes on top is counted and not kept), taken at a flush
 * and appended to quarantine/current.jsonl, synced; a file of half the bound becomes quarantine/previous.jsonl. Entries can be there twice
 * after a crash, because the records behind them are read again, and a crash can leave half a line; none is lost before the position passes
 * it.
 *
 * Thread: add and take under the partition's lock; write by the thread that commits. Pure but for quarantine_write, which uses
 * common/file.h. */
#ifndef TIDEGATE_SINK_SOURCE_QUARANTINE_H
#define TIDEGATE_SINK_SOURCE_QUARANTINE_H

#include "common/buf.h"
#include "common/file.h"
#include "common/log_block.h"
#include "common/record.h"
#include "sink/decode/reject.h"

#define QUARANTINE_PAYLOAD_MAX 16384
#define QUARANTINE_BUFFER_MAX ((size_t)4 << 20)

struct quarantine {
    struct fs *fs;
    char dir[FILE_PATH_MAX];              /* of the partition */
    uint64_t file_size_max;               /* half of the bound */
    struct buf gathered;                  /* entries not yet taken */
    struct buf taken;                     /* being written */
    struct file *file;                    /* current.jsonl, NULL until first needed */
    uint64_t file_used;                   /* bytes */
    bool is_writing;                      /* taken holds entries that are not yet synced */
    uint64_t gathered_count, taken_count; /* entries in each */
};

/* bytes_max: of both files together. Returns 0 or ERR_TOOLARGE (path). */
must_check enum err quarantine_init(struct quarantine *quarantine, struct fs *fs, const char *partition_dir, uint64_t bytes_max);
/* What was not written is gone (its records are read again). */
void quarantine_deinit(struct quarantine *quarantine);

/* Keep one aside. rec may be NULL (a record that cannot be decoded); row: index in the message, -1 for the whole. Returns
 * false when the entry does not fit and is not kept. */
bool quarantine_add(struct quarantine *quarantine, enum reject reject, const struct record *rec, uint64_t broker_id,
                    struct log_position position, int64_t row);

static inline bool quarantine_is_empty(const struct quarantine *quarantine)
{
    return quarantine->gathered.size == 0 && !quarantine->is_writing;
}

/* Take what was gathered for writing; false when there is nothing, or when the last is not written yet. */
bool quarantine_take(struct quarantine *quarantine);
/* Append what was taken, synced. Returns 0, ERR_NOSPACE (try again later, nothing is lost), ERR_IO. */
must_check enum err quarantine_write(struct quarantine *quarantine, struct errmsg *msg);
/* Say that it is written. Thread: as take. */
void quarantine_done(struct quarantine *quarantine);

#endif
