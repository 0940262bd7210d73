/* Values of the checkpoint that are no messages and no sessions: its state, runs of positions, retained values and where they stand.
 *
 * Pure over kv.h. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_VALUE_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_VALUE_H

#include "broker/actor/msg.h"
#include "broker/durable/kv.h"
#include "common/log_cursor.h"
#include "common/metrics.h"
#include "common/record.h"

#define CHECKPOINT_KEY_FORMAT SPAN_LITERAL("format")
#define CHECKPOINT_KEY_STATE SPAN_LITERAL("state")
#define CHECKPOINT_KEY_AGES SPAN_LITERAL("ages")
#define CHECKPOINT_FORMAT_SIZE 16
#define CHECKPOINT_STATE_SIZE 100
#define CHECKPOINT_RETAINED_HEAD 32 /* bytes before the topic of a retained value */
#define CHECKPOINT_RETAINED_SLOTS 8 /* keys of one topic hash: topics that collide stand beside each other */
#define CHECKPOINT_RUN 32           /* positions of a run */

/* What the database says of itself. */
struct checkpoint_state {
    uint64_t broker_id;             /* 0: nothing was ever committed */
    struct log_cursor_value cursor; /* applied up to here, exclusive; reopen is where replay begins to read */
    uint64_t retained_number_max;   /* greatest applied */
    uint64_t session_count, retained_count, body_count;
    int64_t steady_ns, wall_ns; /* the broker's own time and the wall clock at the commit; 0: not told */
};

/* An outgoing QoS 2 message of a session. */
struct checkpoint_sent {
    uint64_t sequence;
    uint16_t packet_id;
    bool is_received; /* PUBREC came */
};

/* Hash of a topic, as in the tree's key. */
struct topic_hash {
    uint64_t high, low;
};

/* Bytes that a message counts for in a queue, of those of topic, properties and payload. */
static inline uint32_t checkpoint_cost(uint32_t content_bytes) { return (uint32_t)sizeof(struct msg) + content_bytes; }

/* Positions of a run, ascending, the first as in its key. Returns 0 or ERR_CORRUPT. */
enum err checkpoint_run_decode(uint64_t sequences_out[CHECKPOINT_RUN], uint32_t *count_out, uint64_t first, struct span value) must_check;

struct checkpoint_retained {
    uint64_t number, sequence; /* sequence 0: a removal */
    int64_t expiry_ns;
    uint32_t content_bytes;
    struct span topic;
};
enum err checkpoint_retained_decode(struct checkpoint_retained *retained_out, struct span value) must_check;

/* Where a topic's retained value stands, or is to stand. random: the database's seed. */
struct topic_hash checkpoint_topic_hash(uint64_t random, struct span topic);
struct span checkpoint_retained_key(uint8_t key_out[16], struct topic_hash at);
/* at_out: the key of the topic's value, or (ERR_NOTFOUND) a free one. Damaged values on the way are taken for others' and counted in
 * *corrupt. Returns 0, ERR_NOTFOUND, ERR_FULL (no free one: only by design of the bytes), ERR_CORRUPT, ERR_IO. */
enum err checkpoint_find_retained(struct kv_txn *txn, struct checkpoint_retained *retained_out, struct topic_hash *at_out,
                                  struct topic_hash hash, struct span topic, struct counter *corrupt) must_check;

enum err checkpoint_state_decode(struct checkpoint_state *state_out, struct span value) must_check;
void checkpoint_state_encode(uint8_t value_out[CHECKPOINT_STATE_SIZE], const struct checkpoint_state *state);

#endif
