/* The store writer: follows the durable log, applies it to the checkpoint, commits about once a second, and says how far it is.
 *
 * It reads the log as any consumer does (common/log_reader.h), only what is durable, and passes over blocks that hold nothing for it. After
 * a commit it lets the log reuse what lies behind (log_writer_set_checkpoint) and tells shards and route by OP_STORE_CHECKPOINT: what is
 * below that sequence can be read from the store, so they may give it out of memory (LOG 14). When the log has run ahead by more than
 * `lag_bytes_max` or `lag_ns_max` it says so by OP_STORE_ROOM, and PUBLISHes that need it pause (LOG 15).
 *
 * A commit that fails for space is tried again: the log still holds everything. A commit that fails otherwise is final: on_failed, and
 * nothing is acknowledged from then on that the log would have to keep. Pure over kv.h and file.h; owner: the store thread (or the
 * simulator). */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_WRITER_H
#define TIDEGATE_BROKER_DURABLE_STORE_WRITER_H

#include "broker/core/ops.h"
#include "broker/durable/checkpoint.h"
#include "common/log_writer.h"

struct store_writer_options {
    struct fs *fs;
    const char *log_dir;
    int64_t interval_ns;      /* between commits, checkpoint_interval */
    int64_t lag_ns_max;       /* 10 s */
    uint64_t lag_bytes_max;   /* of log between durable end and checkpoint */
    uint64_t delta_bytes_max; /* a commit is due at once */
    uint16_t shard_count;
};

struct store_writer_io {
    bool (*post)(void *io, actor_id to, const struct op *op); /* false: ring full, kept and tried again */
    /* The checkpoint stands at this place now. */
    void (*on_checkpoint)(void *io, struct log_place place);
};

/* Cells: the store thread. */
struct store_writer_stats {
    struct gauge lag_bytes, lag_ns, has_room, failed;
    struct gauge no_space; /* 1: the last commit found no space */
    struct histogram commit_ns;
};

struct store_writer;

/* Replays the log from the checkpoint to its end and commits: before anything is loaded. Returns 0, ERR_CORRUPT, ERR_GAP (the log does not
 * reach back to the checkpoint), ERR_NOSPACE, ERR_NOMEM, ERR_IO. Thread: main, after log_writer_open(). */
enum err store_writer_replay(struct checkpoint *checkpoint, struct fs *fs, const char *log_dir, struct errmsg *msg) must_check;

/* checkpoint borrowed for life. */
enum err store_writer_new(struct store_writer **writer_out, struct checkpoint *checkpoint, const struct store_writer_options *options,
                          const struct store_writer_io *io, void *io_arg) must_check;
void store_writer_free(struct store_writer *writer);
/* OP_STORE_RUN, OP_STORE_RUN_DROP, OP_STORE_PASSED. */
void store_writer_on_op(struct store_writer *writer, const struct op *op);
/* Read, apply, commit if it is time. `flush`: commit whatever there is (shutdown). Returns 0, ERR_IO, ERR_CORRUPT (final), and in
 * *wait_ns_out when to call again. clock: mono now; called also within, to time the commit; may be NULL. */
enum err store_writer_step(struct store_writer *writer, int64_t now_mono_ns, bool flush, int64_t *wait_ns_out,
                           struct errmsg *msg) must_check;
struct store_writer_stats *store_writer_get_stats(struct store_writer *writer);

#endif
