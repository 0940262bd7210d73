/* The one writer of a log directory: gives sealed blocks their sequence and place, writes all that wait with one write, and says what is
 * durable.
 *
 * Opening recovers the log, counts the epoch up and gets the file of a new segment ready, which the first blocks begin: a start that writes
 * nothing adds nothing to the log, however often it is made. Then the log thread repeats: collect sealed blocks of all shards
 * -> log_writer_begin (headers) -> log_writer_write (the one O_DSYNC write; two where a segment ends) -> log_writer_finish (the durable
 * end). Begin, write and finish are apart so that a simulator can stop between any two.
 *
 * Invariants: blocks of a shard arrive in the order of their shard_block, none missing (CHECK); nothing is durable before finish; a failed
 * write or sync is final: every later call returns ERR_IO, because nobody knows what is on disk (a restart finds out). Only a write that
 * found no space is made again, as it was, until there is some. A sector that is durable is never written again. Segments are reused only
 * behind every cursor and the checkpoint.
 *
 * Bounds: `log_bytes_max` for the files, a floor for the free disk; at most LOG_WRITER_BATCH_MAX blocks a write.
 *
 * Threads: begin, write, finish, state: the log thread. prepare: one other thread (or the same, between writes). room, alignment and the
 * published end: any.
 */
#ifndef TIDEGATE_COMMON_LOG_WRITER_H
#define TIDEGATE_COMMON_LOG_WRITER_H

#include "common/file.h"
#include "common/log_block.h"
#include "common/log_identity.h"
#include "common/log_recovery.h"

#define LOG_WRITER_BATCH_MAX 512                   /* blocks in one write; 512 x 68 KiB bounds its size at 34 MiB */
#define LOG_WRITER_PREPARE_CHUNK ((size_t)1 << 20) /* bytes of zeros one log_writer_prepare() call writes */

struct log_writer;

struct log_writer_options {
    struct fs *fs;
    const char *dir;                 /* made when missing (one level) */
    uint64_t segment_size;           /* bytes, 0: LOG_SEGMENT_SIZE_DEFAULT; rounded up to 4096 */
    uint64_t log_bytes_max;          /* bytes of all segments; 0: 16 segments; at least 4 segments */
    uint64_t free_bytes_min;         /* PUBLISH stops when the disk has fewer free bytes than this */
    uint32_t alignment;              /* 0: what the disk says (statx); a larger power of two up to 4096 is kept to */
    struct log_place checkpoint;     /* where the checkpoint would read again; generation 0: there is no checkpoint */
    struct log_place checkpoint_end; /* what it has applied up to */
    int64_t wall_ns;                 /* for the segment header */
};

/* Whom the room is for: the last tenth of the log is kept for records that are no PUBLISH. */
enum log_room {
    LOG_ROOM_PUBLISH,
    LOG_ROOM_CONTROL,
};

/* Counters of the writer; a copy. */
struct log_writer_stats {
    uint64_t write_count; /* system calls that wrote blocks */
    uint64_t block_count;
    uint64_t record_count;
    uint64_t byte_count;            /* on disk, with headers and padding */
    uint64_t raw_byte_count;        /* of bodies, unpacked */
    uint64_t roll_count;            /* segments begun */
    uint64_t roll_unprepared_count; /* of these, made by the log thread itself because none was prepared */
    uint64_t recycled_count;        /* segments reused */
    uint64_t used_bytes;            /* from the oldest segment needed to the end */
    uint64_t limit_bytes;
    uint64_t free_bytes; /* of the disk, as last looked */
    uint64_t segment_count;
    bool direct; /* direct I/O is in use */
};

/* Recover, begin an epoch, make room for its first segment.
 * writer_out    returned, to be closed with log_writer_close.
 * recovery_out  what recovery found, filled in also on ERR_CORRUPT; may be NULL.
 * Returns 0, ERR_LOCKED (another broker has this directory), ERR_CORRUPT, ERR_VERSION, ERR_NOSPACE, ERR_PERMISSION, ERR_INVALID, ERR_NOMEM,
 * ERR_IO. Thread: main, before the log thread. May take as long as reading what the oldest cursor still needs. */
must_check enum err log_writer_open(struct log_writer **writer_out, const struct log_writer_options *options,
                                    struct log_recovery *recovery_out, struct errmsg *msg);
/* Write the state a last time and close. Threads that use the writer are gone. NULL is allowed. */
void log_writer_close(struct log_writer *writer);

uint64_t log_writer_broker_id(const struct log_writer *writer);
uint32_t log_writer_epoch(const struct log_writer *writer);
uint32_t log_writer_alignment(const struct log_writer *writer);
/* What is durable, exclusive. Thread: log thread. */
struct log_end log_writer_durable_end(const struct log_writer *writer);

/* The same, for a reader in this process that cannot wait for the state file. Thread: any. */
struct log_end log_writer_published_end(struct log_writer *writer);

/* Bytes of blocks to put into one write at most (more are allowed while there is one block): then it touches two segments. A write that
 * fills segments which nobody may read before all of it is durable could wait for ever for a reader to let some go. Thread: any. */
uint64_t log_writer_batch_bytes_max(const struct log_writer *writer);

/* Give sealed blocks their sequence, place and header. They stay the caller's and untouched until finish. 1..LOG_WRITER_BATCH_MAX blocks;
 * the last batch must be finished. After an error of the writer this does nothing. */
void log_writer_begin(struct log_writer *writer, struct log_block *const *blocks, size_t block_count);

/* Write what was begun.
 * Returns 0; ERR_NOSPACE when the next segment cannot be made, or the file system has no space for the write itself (nothing is lost: call
 * again later, after space was made); ERR_IO for good.
 */
must_check enum err log_writer_write(struct log_writer *writer, struct errmsg *msg);

/* What was written is durable: advances the durable end, counts the blocks of each shard, and writes the state when 20 ms have passed.
 * From here on `first` and `place` of the blocks hold, and the blocks may go back to their shards.
 * now_ns  monotonic clock. */
must_check enum err log_writer_finish(struct log_writer *writer, int64_t now_ns);

/* How many of the shard's own blocks are durable: what its gate waits for. Thread: log thread (it goes to the shard in the notice). */
uint64_t log_writer_durable_blocks(const struct log_writer *writer, uint16_t shard);

/* Bring the state file up to date if it is behind and 20 ms have passed since it was last written. To be called when the log thread idles.
 * wait_ns_out  0: it is up to date; otherwise call again after so long. */
must_check enum err log_writer_idle(struct log_writer *writer, int64_t *wait_ns_out, int64_t now_ns);

/* One step of getting the next segment ready: look after cursors and free space, reuse a segment behind them or fill a new one with zeros,
 * LOG_WRITER_PREPARE_CHUNK at a time.
 * Returns ERR_AGAIN (there is more to do: call again soon), 0 (all is ready: call again in a while, 100 ms say), ERR_NOSPACE (kept trying
 * at each call), ERR_CORRUPT or ERR_VERSION (all is ready, but a cursor cannot be read: nothing is reused), ERR_IO. */
must_check enum err log_writer_prepare(struct log_writer *writer, struct errmsg *msg);

/* Bytes of records that may still be taken for that purpose; blocks under way are not yet counted. Look before a record is accepted (and
 * before a group is begun, with its whole size). Falls to 0 when the log is full or failed. Thread: any. */
uint64_t log_writer_room(const struct log_writer *writer, enum log_room purpose);

/* The checkpoint has applied everything before `place`. Thread: any. */
void log_writer_set_checkpoint(struct log_writer *writer, struct log_place place);

/* Make `cursor.NAME` at the oldest record that is still there, unless it exists. Thread: main, after open. */
must_check enum err log_writer_ensure_cursor(struct log_writer *writer, const char *name, struct errmsg *msg);

void log_writer_stats(struct log_writer *writer, struct log_writer_stats *stats_out);

/* For a start that lacks space: free segments and a spare go back to the disk; without them the log works as it does when it is new.
 * is_more_out  whether there was anything to give back.
 * Thread: main, before other threads. */
must_check enum err log_writer_release(struct log_writer *writer, bool *is_more_out, struct errmsg *msg);

/* ERR_OK, or the error that ended this writer. Thread: any. */
enum err log_writer_failed(const struct log_writer *writer);

/* Which file that was about; empty when it has not failed. Thread: any. */
void log_writer_failure(struct log_writer *writer, struct errmsg *msg_out);

#endif
