/* Reads a log directory from a position on, in another process than the writer: records in order, each exactly once, none that is not
 * durable.
 *
 * Follows the segments by generation, up to the durable end in the state file and never past it; reads directly from disk into buffers of
 * its own; puts groups of blocks together; checks each block's checksums, place, start and sequence. A block that was recycled meanwhile is
 * never taken for a record. Does not hold the segments: that is the cursor's business (log_cursor.h), which the consumer moves with
 * log_reader_cursor() after its own commit.
 *
 * Bounds: one read buffer (LOG_READER_BUFFER_SIZE), one unpacked block, and one open group of at most RECORD_SIZE_MAX per shard of the
 * writer, allocated as its bytes arrive. Thread: one at a time. Never blocks but on the disk.
 *
 *     err = log_reader_open(&reader, fs, dir, &cursor.value, &msg);
 *     while (!(err = log_reader_next(reader, &item, &msg)))      ERR_AGAIN: at the end, poll again
 *         record_decode(&rec, item.bytes) ... */
#ifndef TIDEGATE_COMMON_LOG_READER_H
#define TIDEGATE_COMMON_LOG_READER_H

#include "common/file.h"
#include "common/log_block.h"
#include "common/log_cursor.h"

#define LOG_READER_BUFFER_SIZE ((size_t)1 << 20)
#define LOG_READER_PASS_BYTES ((uint64_t)8 << 20) /* of blocks passed over in one call */

struct log_reader;

struct log_reader_item {
    struct span bytes;            /* the encoded record, borrowed until the next call with this reader; see log_reader_next */
    uint64_t broker_id;           /* who wrote it */
    struct log_position position; /* its (epoch, sequence) */
    uint16_t shard;               /* whose it was in that epoch */
    uint64_t shard_block;         /* that shard's own count of the block (of a group: the last); see log_reader_passed_blocks */
};

/* What is missing: [from, to) in sequences. */
struct log_reader_gap {
    uint64_t from;
    uint64_t to;
    bool is_repair; /* an operator gave it up: a repair segment says so (log_segment.h) */
};

struct log_reader_stats {
    uint64_t record_count;
    uint64_t block_count;
    uint64_t byte_count;        /* of blocks on disk */
    uint64_t read_count;        /* reads of the disk */
    uint64_t passed_count;      /* blocks passed over, not in block_count */
    uint64_t group_count;       /* large records put together */
    uint64_t void_group_count;  /* whose last block never came */
    uint64_t lag_records;       /* durable but not given out, as far as the state last read says */
    uint64_t start_clash_count; /* one (broker id, epoch) seen with two start numbers: a cloned volume */
};

/* Open at `from` (a cursor's value), or at the oldest record there is when NULL or its place has generation 0. Nothing is read yet: the
 * broker need not have been started.
 * reader_out  returned, to be closed with log_reader_close. */
must_check enum err log_reader_open(struct log_reader **reader_out, struct fs *fs, const char *dir, const struct log_cursor_value *from,
                                    struct errmsg *msg);
void log_reader_close(struct log_reader *reader);

/* From here on give out the records of blocks alone in which one is state (LOG_BLOCK_STATE); of the others only the headers are checked.
 * Before the first log_reader_next(). */
void log_reader_pass_over_stateless(struct log_reader *reader);

/* The next record.
 * Returns 0 (with empty bytes: LOG_READER_PASS_BYTES were passed over and no record found yet, call again); ERR_AGAIN at the durable end;
 * ERR_GAP when records are gone (log_reader_gap() has the range; log_reader_accept_gap() goes on after it); ERR_CORRUPT (msg: file and
 * offset; final), ERR_VERSION, ERR_NOMEM, ERR_IO. */
must_check enum err log_reader_next(struct log_reader *reader, struct log_reader_item *item_out, struct errmsg *msg);

/* After ERR_GAP. */
struct log_reader_gap log_reader_gap(const struct log_reader *reader);
void log_reader_accept_gap(struct log_reader *reader);

/* Where the reader stands after the last record it gave out: what a cursor stores. */
void log_reader_cursor(const struct log_reader *reader, struct log_cursor_value *value_out);

/* How many of the shard's own blocks of this epoch are read to their end or passed over: a shard's gate and this count speak of the same
 * blocks. 0 while the reader does not stand in that epoch. */
uint64_t log_reader_passed_blocks(const struct log_reader *reader, uint16_t shard, uint32_t epoch);

/* For a reader in the writer's process: this is durable (log_writer_published_end), whatever the state file says yet. */
void log_reader_tell_end(struct log_reader *reader, struct log_end end);

/* Opened at the oldest record: its sequence, 0 until the first log_reader_next() found it. */
uint64_t log_reader_oldest(const struct log_reader *reader);

/* The durable end as last seen. sequence 0: no state yet. */
struct log_end log_reader_durable_end(const struct log_reader *reader);

void log_reader_stats(const struct log_reader *reader, struct log_reader_stats *stats_out);

#endif
