/* What the parts of the checkpoint share. Internal to the checkpoint.
 *
 *   checkpoint.c          life; records into the delta
 *   checkpoint_delta.c    the delta in memory
 *   checkpoint_session.c  a session's value
 *   checkpoint_row.c      rows of several messages
 *   checkpoint_value.c    the values of the small trees
 *   checkpoint_write.c    a write transaction
 *   checkpoint_message.c  messages and wants in the database: put, ended, let go
 *   checkpoint_commit.c   the delta into the database
 *   checkpoint_read.c     looking things up, and whether an entry is what its tree may hold
 *   checkpoint_load.c     everything out of the database, and what belongs to nobody removed */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_INTERNAL_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_INTERNAL_H

#include "broker/actor/msg.h"
#include "broker/durable/age_marks.h"
#include "broker/durable/checkpoint.h"
#include "broker/durable/checkpoint_delta.h"
#include "broker/durable/checkpoint_row.h"

/* A removal of a retained value that the database remembers. */
struct checkpoint_removal {
    uint64_t number;
    struct topic_hash at;
};

struct checkpoint_write;

struct checkpoint {
    struct kv *kv;
    uint64_t random; /* seed of topic hashes */
    bool is_new;     /* the format is not written yet */
    struct checkpoint_state state;
    struct age_marks ages;
    int64_t age_max_ns;      /* 0 = nobody asks */
    int64_t received_max_ns; /* of the messages applied, by the wall clock */
    bool are_clocks_told;
    struct checkpoint_stats stats;
    int64_t now_ns, oldest_ns; /* mono; of the first record in the delta */
    struct delta delta;
    uint64_t applied;             /* sequence of the last record */
    uint64_t retained_number_max; /* with the delta */
    uint64_t forget_below;        /* removals with a smaller number */
    struct checkpoint_removal *removals;
    size_t removal_count, removal_capacity;
    uint64_t run_session; /* the last that runs were put for, and was in the database since the last commit; 0 = none */
    uint64_t *jobs;       /* numbers of sessions that ended and may have runs */
    size_t job_count, job_capacity;
    struct delta_want *wants; /* scratch of a PUBLISH */
    size_t want_capacity;
    struct buf scratch;                            /* for values that are written */
    struct checkpoint_row_out wants_row, body_row; /* that are being filled */
    uint64_t *released;                            /* of the transaction: sequences of messages that a chunk or a retained value let go */
    size_t released_count, released_capacity;
};

/* --- structure (checkpoint_read.c) --------------------------------------------------------------------------------------------------- */

/* A row of RECIPIENTS (key of 16 bytes): wants ascend by message and session, from the one in the key on, behind this one (0, 0: any).
 * Returns 0, ERR_CORRUPT. */
enum err checkpoint_check_wants(struct span key, struct span value, uint64_t sequence, uint64_t session) must_check;
/* Is that what the tree may hold, by its structure? The CRC of the value is right. Returns 0, ERR_CORRUPT or ERR_NOMEM. */
enum err checkpoint_check_entry(enum kv_tree tree, struct span key, struct span value) must_check;

/* A transaction to read in. Where others hold all readers' places, one that could write: there is always room for that. Returns what
 * kv_begin() returns, but not ERR_FULL. */
enum err checkpoint_begin_look(struct checkpoint *checkpoint, struct kv_txn **txn_out) must_check;

/* --- messages (checkpoint_message.c) ------------------------------------------------------------------------------------------------- */

/* All messages of the delta. */
enum err checkpoint_write_messages(struct checkpoint_write *write) must_check;
/* The wants are ended. Sorts acks. */
enum err checkpoint_write_acks(struct checkpoint_write *write, struct delta_ack *acks, size_t count) must_check;
/* A chunk, or the retained value, holds the body no more: noted, and done by checkpoint_write_releases(). */
enum err checkpoint_write_release(struct checkpoint_write *write, uint64_t sequence) must_check;
enum err checkpoint_write_releases(struct checkpoint_write *write) must_check;
/* The position, last of all; state's bodies are counted first. (checkpoint_commit.c) */
enum err checkpoint_write_meta(struct checkpoint_write *write, struct checkpoint_state *state) must_check;

#endif
