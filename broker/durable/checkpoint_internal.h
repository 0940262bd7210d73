/* What the parts of the checkpoint share: its state, values of the trees, writing. Internal to the checkpoint.
 *
 *   checkpoint.c          life; records into the delta
 *   checkpoint_delta.c    the delta in memory
 *   checkpoint_session.c  a session's value
 *   checkpoint_row.c      rows of several messages
 *   checkpoint_commit.c   the delta into the database
 *   checkpoint_message.c  messages and wants in the database: put, ended, let go
 *   checkpoint_read.c     values out of the database
 *   checkpoint_load.c     everything out of the database, and what belongs to nobody removed */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_INTERNAL_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_INTERNAL_H

#include "broker/core/msg.h"
#include "broker/durable/age_marks.h"
#include "broker/durable/checkpoint_delta.h"
#include "broker/durable/checkpoint_row.h"

#define CHECKPOINT_KEY_FORMAT SPAN_LITERAL("format")
#define CHECKPOINT_KEY_STATE SPAN_LITERAL("state")
#define CHECKPOINT_KEY_AGES SPAN_LITERAL("ages")
#define CHECKPOINT_FORMAT_SIZE 16
#define CHECKPOINT_STATE_SIZE 100
#define CHECKPOINT_RETAINED_HEAD 32 /* bytes before the topic of a retained value */
#define CHECKPOINT_RETAINED_SLOTS 8 /* keys of one topic hash: topics that collide stand beside each other */

/* A removal of a retained value that the database remembers. */
struct checkpoint_removal {
    uint64_t number;
    struct delta_topic_hash at;
};

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

/* Bytes that a message counts for in a queue, of those of topic, properties and payload. */
static inline uint32_t checkpoint_cost(uint32_t content_bytes) { return (uint32_t)sizeof(struct msg) + content_bytes; }

/* --- values (checkpoint_read.c) ------------------------------------------------------------------------------------------------------- */

/* Positions of a run, ascending, the first as in its key. Returns 0 or ERR_CORRUPT. */
enum err checkpoint_run_decode(uint64_t sequences_out[CHECKPOINT_RUN], uint32_t *count_out, uint64_t first, struct span value) must_check;

struct checkpoint_retained {
    uint64_t number, sequence; /* sequence 0: a removal */
    int64_t expiry_ns;
    uint32_t content_bytes;
    struct span topic;
};
enum err checkpoint_retained_decode(struct checkpoint_retained *retained_out, struct span value) must_check;

/* Where a topic's retained value stands, or is to stand. */
struct delta_topic_hash checkpoint_topic_hash(const struct checkpoint *checkpoint, struct span topic);
struct span checkpoint_retained_key(uint8_t key_out[16], struct delta_topic_hash at);
/* at_out: the key of the topic's value, or (ERR_NOTFOUND) a free one. Damaged values on the way are taken for others' and counted in
 * *corrupt. Returns 0, ERR_NOTFOUND, ERR_FULL (no free one: only by design of the bytes), ERR_CORRUPT, ERR_IO. */
enum err checkpoint_find_retained(struct kv_txn *txn, struct checkpoint_retained *retained_out, struct delta_topic_hash *at_out,
                                  struct delta_topic_hash hash, struct span topic, struct counter *corrupt) must_check;

/* A row of RECIPIENTS (key of 16 bytes): wants ascend by message and session, from the one in the key on, behind this one (0, 0: any).
 * Returns 0, ERR_CORRUPT. */
enum err checkpoint_check_wants(struct span key, struct span value, uint64_t sequence, uint64_t session) must_check;
/* Is that what the tree may hold, by its structure? The CRC of the value is right. Returns 0, ERR_CORRUPT or ERR_NOMEM. */
enum err checkpoint_check_entry(enum kv_tree tree, struct span key, struct span value) must_check;

enum err checkpoint_state_decode(struct checkpoint_state *state_out, struct span value) must_check;
void checkpoint_state_encode(uint8_t value_out[CHECKPOINT_STATE_SIZE], const struct checkpoint_state *state);

/* A transaction to read in. Where others hold all readers' places, one that could write: there is always room for that. Returns what
 * kv_begin() returns, but not ERR_FULL. */
enum err checkpoint_begin_look(struct checkpoint *checkpoint, struct kv_txn **txn_out) must_check;

/* --- writing (checkpoint_message.c) --------------------------------------------------------------------------------------------------- */

/* One write transaction. */
struct checkpoint_write {
    struct checkpoint *checkpoint;
    struct kv_txn *txn;
    bool has_holders;                  /* HOLDERS had entries when it began: otherwise none needs to be looked for */
    uint64_t bytes;                    /* put */
    uint64_t bodies_put, bodies_freed; /* freed: nobody holds them any more */
};

enum err checkpoint_write_begin(struct checkpoint_write *write_out, struct checkpoint *checkpoint) must_check;
enum err checkpoint_write_put(struct checkpoint_write *write, enum kv_tree tree, struct span key, struct span value) must_check;
/* All messages of the delta. */
enum err checkpoint_write_messages(struct checkpoint_write *write) must_check;
/* The wants are ended. Sorts acks. */
enum err checkpoint_write_acks(struct checkpoint_write *write, struct delta_ack *acks, size_t count) must_check;
/* A chunk, or the retained value, holds the body no more: noted, and done by checkpoint_write_releases(). */
enum err checkpoint_write_release(struct checkpoint_write *write, uint64_t sequence) must_check;
enum err checkpoint_write_releases(struct checkpoint_write *write) must_check;
enum err checkpoint_write_holders(struct checkpoint_write *write, uint64_t sequence, uint32_t count) must_check;
/* The position, last of all; state's bodies are counted first. (checkpoint_commit.c) */
enum err checkpoint_write_meta(struct checkpoint_write *write, struct checkpoint_state *state) must_check;

#endif
