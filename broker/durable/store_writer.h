/* The store writer: follows the durable log, applies it to the checkpoint, commits about once a second, and says how far it is.
 *
 * It reads the log as any consumer does (common/log_reader.h), only what is durable, and passes over blocks that hold nothing for it. After
 * a commit it lets the log reuse what lies behind (log_writer_set_checkpoint) and tells shards and route by OP_STORE_CHECKPOINT: what is
 * below that sequence can be read from the store, so they may give it out of memory (LOG 14). When the log has run ahead by more than
 * `lag_bytes_max` or `lag_ns_max` it says so by OP_STORE_ROOM, and PUBLISHes that need it pause (LOG 15). So it does when the database has
 * grown past `used_bytes_max`: the database itself must be able to hold more, or the deletes that make space would find none.
 *
 * It looks at the log several times within an interval and commits once, so the work is spread; a commit comes sooner when the delta has
 * grown to `delta_bytes_max`. Blocks of telemetry alone move the position too, but cost a commit only when a segment can be let go by it.
 * A wall clock that was set is committed at once, though nothing else is: the next start tells the time away by the two clocks of the last
 * commit, and would take the step for time away.
 *
 * A commit that fails for space is tried again a second later, or after four times as long as it took: the log still holds everything.
 * Until then reading goes on for another `lag_bytes_max` of delta, because the acknowledgements that make space stand behind what does not
 * fit; publishers pause meanwhile. Any other failure is final: every later step returns it, and the broker stops; the log has what was
 * acknowledged.
 * Pure over kv.h and file.h, no clock of its own; owner: the store thread (or the simulator). */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_WRITER_H
#define TIDEGATE_BROKER_DURABLE_STORE_WRITER_H

#include "broker/actor/ops.h"
#include "broker/durable/checkpoint.h"
#include "common/log_writer.h"

struct store_writer_options {
    struct fs *fs;
    const char *log_dir;
    int64_t interval_ns;      /* between commits, checkpoint_interval */
    uint64_t segment_bytes;   /* of the log, to tell a lag in bytes */
    int64_t lag_ns_max;       /* 10 s */
    uint64_t lag_bytes_max;   /* of log between durable end and checkpoint */
    uint64_t delta_bytes_max; /* a commit is due at once */
    uint64_t used_bytes_max;  /* of the database: past it there is no room, until a sixteenth of it is free; 0 = no bound */
    uint16_t shard_count;
    int64_t steady_offset_ns; /* the broker's own time less mono */
};

struct store_writer_io {
    bool (*post)(void *io, actor_id to, const struct op *op); /* false: ring full, kept and tried again */
    /* The log may let go of what is before this place. Called also by store_writer_new(), with the place found. */
    void (*on_checkpoint)(void *io, struct log_place place);
    /* log_writer_published_end(), where the log is written by this process; NULL: the state file tells, up to 20 ms later. */
    struct log_end (*durable_end)(void *io);
    int64_t (*clock)(void *io); /* mono now, to time a commit; NULL: not timed */
    int64_t (*wall)(void *io);  /* wall clock now, for checkpoint_set_clocks(); NULL: not told */
};

/* Cells: the store thread. */
struct store_writer_stats {
    struct gauge is_full;   /* used_bytes_max is reached */
    struct gauge lag_bytes; /* of log between durable end and checkpoint */
    struct gauge lag_ns;    /* since when there is something durable that the checkpoint has not */
    struct gauge has_room;  /* 0: PUBLISHes that are state wait (OP_STORE_ROOM) */
    struct gauge failed;    /* enum err that ended it */
    struct gauge no_space;  /* 1: the last commit found no space */
    struct counter refused; /* records that no broker writes: passed over */
    struct histogram commit_ns;
};

struct store_writer;

/* Replays the log from the checkpoint to its end and commits: before anything is loaded. delta_bytes_max: commits in between (0: one at the
 * end); once there is no space for one, the next try is at the end, and then as long as removals can go ahead. Returns 0, ERR_CORRUPT (the
 * log is damaged, or ends before the checkpoint), ERR_GAP (it does not reach back to the checkpoint; or there is no checkpoint and it does
 * not reach back to its own first record), ERR_VERSION, ERR_NOSPACE, ERR_NOMEM, ERR_IO. Thread: main, after log_writer_open(). */
enum err store_writer_replay(struct checkpoint *checkpoint, struct fs *fs, const char *log_dir, uint64_t delta_bytes_max,
                             struct errmsg *msg) must_check;

/* checkpoint borrowed for life, replayed and loaded; options->log_dir copied. Returns 0 or ERR_NOMEM. */
enum err store_writer_new(struct store_writer **writer_out, struct checkpoint *checkpoint, const struct store_writer_options *options,
                          const struct store_writer_io *io, void *io_arg) must_check;
void store_writer_free(struct store_writer *writer);
/* OP_STORE_RUN, OP_STORE_RUN_DROP, OP_STORE_PASSED, OP_STORE_EXPIRED. */
void store_writer_on_op(struct store_writer *writer, const struct op *op);
/* Read, apply, commit if it is time, tell. `flush`: read to the durable end and commit whatever there is (shutdown): to be called until
 * *wait_ns_out is not 0. A flush that finds no space gives up: the next start replays.
 * wait_ns_out  when to call again.
 * Returns 0, or the error that ended it: ERR_IO, ERR_CORRUPT, ERR_GAP, ERR_VERSION, ERR_NOMEM. */
enum err store_writer_step(struct store_writer *writer, int64_t now_mono_ns, bool flush, int64_t *wait_ns_out,
                           struct errmsg *msg) must_check;
struct store_writer_stats *store_writer_get_stats(struct store_writer *writer);

#endif
