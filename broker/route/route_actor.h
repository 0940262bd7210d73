/* The route actor: only writer of the topic tree and of the retained index.
 *
 * It answers each request in the order its shard sent them. A SUBSCRIBE is in the tree before its reply leaves, and the retained values
 * that match are looked up at the same moment, so that each later retained PUBLISH of those topics reaches the subscription by the tree and
 * each earlier one by the scan. Scans run in slices between other work.
 *
 * With retained_on_disk, a retained message stays in memory until OP_STORE_CHECKPOINT is past its sequence; from then on only the sequence
 * is here, and a scan asks the reader for the bodies of its next values (OP_STORE_READ, STORE_READ_BODIES, no more of them than the
 * session's home has asked for). The scan waits for the answer, others go on; at most ROUTE_READS_MAX have bodies asked for or in hand, so
 * what is read and not yet sent is bounded by as many STORE_READ_BYTES. A value that was replaced or removed meanwhile is not sent: what
 * replaced it reaches the subscription by the tree or by the rule for numbers on their way, as it would have without the wait.
 *
 * Pure; owner: the route thread (or the simulator). */
#ifndef TIDEGATE_BROKER_ROUTE_ROUTE_ACTOR_H
#define TIDEGATE_BROKER_ROUTE_ROUTE_ACTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "common/bytes.h"
#include "common/err.h"

struct retained;
struct topic_tree;

enum route_kind {
    ROUTE_SUBSCRIBE,
    ROUTE_SCAN, /* the retained values of filters that are subscribed already; no reply, only values and OP_RETAINED_END */
    ROUTE_UNSUBSCRIBE,
    ROUTE_FORGET_SESSION, /* all subscriptions of a session away, and its scans */
    ROUTE_SET_FULL,       /* SUBSCRIBER_FULL set or cleared on the filters named; those that are not there are passed over */
};

/* One filter of a SUBSCRIBE or UNSUBSCRIBE. */
struct route_filter {
    uint32_t offset, size;    /* the filter's bytes in request->text */
    uint32_t subscription_id; /* 0 = none */
    uint8_t qos;              /* granted maximum */
    uint8_t options;          /* no local, retain as published, retain handling as in the SUBSCRIBE's option byte; SUBSCRIBER_FULL for a
                                 new filter of a session that is full now (one that is there keeps what ROUTE_SET_FULL said) */
    uint8_t reason;           /* in: a refusal decided by the shard (>= 0x80: left alone), out: the reason code */
    bool is_new;              /* out of SUBSCRIBE: no such subscription before (retain handling 1) */
};

/* Allocated as one block by the shard, taken by the route actor, and given back as the reply with `reason` and `is_new` filled in
 * (the other kinds have no reply). After the reply of a SUBSCRIBE come its retained values, each with the index of
 * its filter, and then one OP_RETAINED_END, always, unless is_scan_later says that its scan is still to be asked for. */
struct route_request {
    uint64_t id; /* the shard's ticket, echoed */
    struct session_ref session;
    uint8_t kind;    /* enum route_kind */
    bool is_full;    /* ROUTE_SET_FULL: set it (else clear it) */
    bool is_scanned; /* out of SUBSCRIBE: retained values may follow */
    /* In SUBSCRIBE: the home has no room for values now. Out: there may be some, neither they nor OP_RETAINED_END come, and the home sends
     * the request again as ROUTE_SCAN when it has room. */
    bool is_scan_later;
    uint16_t packet_id;
    uint32_t filter_count;
    struct route_filter *filters; /* inside the block */
    uint8_t *text;                /* inside the block */
};

struct route_request *route_request_new(uint32_t filter_count, size_t text_size);
void route_request_free(struct route_request *request);

/* Whether a filter of a SUBSCRIBE that was granted asks for retained values. */
bool route_filter_wants_retained(const struct route_filter *filter);

struct route_io {
    bool (*post)(void *io, actor_id to, const struct op *op); /* false: ring full, kept and tried again in the next step */
};

/* Retained values of one request that may be on their way and not yet taken by the session's socket or queue; the home asks for more
 * (OP_RETAINED_MORE) when half of them are. So a subscription to a million retained topics is paced by its own client. Small, so that
 * even values of a sixteenth of the socket's bound fit into it; a slow client with QoS 0 loses larger ones, counted slow_consumer. */
#define ROUTE_RETAINED_WINDOW 16

struct route_limits {
    uint64_t retained_messages_max;
    uint64_t retained_bytes_max;
    uint64_t tree_bytes_max;           /* of the topic tree: past it SUBSCRIBE is refused with 0x97 */
    uint32_t scan_slice;               /* topics looked at before other work is let in */
    bool retained_on_disk;             /* persistence: every retained message gets a sequence, and there are a store and a reader */
    uint64_t retained_cache_bytes_max; /* then: of values read from disk that stay in memory for equal scans */
};

/* Scans that have bodies asked for or in hand at a time; others wait for their turn. */
#define ROUTE_READS_MAX 32

struct route_actor;
struct route_stats; /* broker/route/route_stats.h */

/* tree: its only writer from here on. retained_counter: the process-wide one of shard_config, read only; it holds its first value already,
 * which no restored number is above. hash_key: random. shard_count: shards that send. limits copied; io borrowed for life. NULL when memory
 * is short. */
struct route_actor *route_actor_new(struct topic_tree *tree, _Atomic uint64_t *retained_counter, uint64_t hash_key, uint16_t shard_count,
                                    const struct route_limits *limits, const struct route_io *io, void *io_arg);
void route_actor_free(struct route_actor *actor);
/* A retained value of the checkpoint; before the threads start. topic 1..65535 bytes; sequence > 0; bytes: what it counts for (msg_cost).
 * Of several values for one topic the greatest number stays. Limits are not asked. Returns 0, ERR_NOMEM, ERR_INVALID (a topic or number
 * that no broker writes: nothing changed). */
enum err route_actor_restore_retained(struct route_actor *actor, struct span topic, uint64_t number, uint64_t sequence, uint32_t bytes,
                                      int64_t expiry_wall_ns) must_check;
/* For its functions that any thread may call, in sections of the tree's epoch. Borrowed. */
struct retained *route_actor_retained(struct route_actor *actor);
struct route_stats *route_actor_stats(struct route_actor *actor);
/* The present time (mono), for the age of the scans in the statistics; before the ops of a step. */
void route_actor_set_time(struct route_actor *actor, int64_t now_mono_ns);
void route_actor_on_op(struct route_actor *actor, const struct op *op);
/* Slices of scans, postings that found a full ring, expiry, letting go, reclamation. Returns in how many ns it wants to be called again at
 * the latest (0 = at once), whatever ops arrive meanwhile. */
int64_t route_actor_work(struct route_actor *actor, int64_t now_wall_ns);

#endif
