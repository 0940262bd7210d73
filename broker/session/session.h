/* What a client is to us, connected or not: the state that outlives a network connection [MQTT-4.1.0-1].
 *
 * A session is found by its client id, is at home in one shard for ever, and has a number of 64 bits that is never given again, not after
 * a restart of the broker either: with persistence, what is on disk speaks of sessions by it.
 *
 *   connected      client set, no timer
 *   away           client NULL, expiry running (or none: UINT32_MAX), perhaps a will delay running
 *   gone           nothing is found by its number: whatever is addressed to it is dropped with a reason
 *
 * Memory: what every session needs is in the struct, with the client id behind it; what few need (a will, incoming QoS 2, subscriptions on
 * their way, several subscription identifiers on one message) is in `rare`, allocated when first needed and given back when empty. The text
 * of a filter stands in the topic tree as well: a session that is away and has one filter, as nearly all have, knows it by its place there
 * alone. That place stays as long as the session is subscribed, and nobody but its home asks for that to end, which it does not while it is
 * folded. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_SESSION_H
#define TIDEGATE_BROKER_SESSION_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "broker/route/topic_tree.h"
#include "broker/session/inbound_ids.h"
#include "broker/session/inflight.h"
#include "broker/session/queue.h"
#include "broker/session/subscription_list.h"
#include "broker/session/timer_wheel.h"
#include "broker/session/will.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/err.h"
#include "common/list.h"

#define SESSION_NEVER_EXPIRES UINT32_MAX
#define SESSION_ID_SETS_MAX 1024 /* different combinations of subscription identifiers on messages under way */
#define SESSION_NEWER_MAX 4096   /* topics remembered while retained values are on their way */

struct client;
struct position_list;
struct route_request;

/* One filter of a SUBSCRIBE that is at the route actor, or whose retained values are still coming. */
struct pending_filter {
    uint32_t subscription_id;
    uint8_t qos, options;
};
struct pending_request {
    struct pending_request *next;
    uint64_t id;           /* the shard counts them, from SESSION_TICK_START + 1 */
    uint64_t since;        /* what the session was given from this tick on stands for a value: id, or SESSION_TICK_START */
    uint32_t connection;   /* session.connection when it was sent: its answer belongs to that connection alone */
    uint32_t asked_count;  /* filters of the request */
    uint32_t filter_count; /* of a SUBSCRIBE: the same; else 0 */
    uint32_t taken_count;  /* retained values that came and were not yet told to the route actor, which paces itself by it */
    uint32_t coming_count; /* retained values that may come unasked, and are counted in owed.coming */
    uint64_t session;
    struct list_node waiting;   /* in scans.waiting, for room to be parked */
    struct route_request *scan; /* one block, own: not begun; NULL = it is, or there is none */
    struct pending_filter filters[];
};

/* Ticks: how many route requests the shard had made. */
#define SESSION_TICK_NONE 0  /* the client may have got it before this start */
#define SESSION_TICK_START 1 /* in this start */

/* The newest message of a topic that this session was given while retained values were on their way: an older retained one is not sent
 * after it. */
struct newer_topic {
    uint64_t topic_hash; /* 0 = free cell */
    uint64_t retained_number;
    uint64_t retained_before; /* the number before that, if this one is dropped */
    int64_t receive_wall_ns;
    uint64_t tick;       /* when it was noted */
    uint32_t connection; /* it was sent on this one at QoS 0, and may be lost with it; 0 = it comes whatever happens */
};

struct id_set {
    uint32_t *ids;
    uint32_t count;
};

struct session_rare {
    struct will *will;
    int64_t will_at_ms;                 /* mono; 0 = no delay running */
    struct inbound_ids inbound;         /* QoS 2 */
    struct position_list *sent_in_runs; /* outgoing QoS 2 of an earlier start that runs may name as if it had not been sent */
    struct pending_request *pending;    /* newest first */
    struct newer_topic *newer;          /* open addressing */
    uint32_t newer_count, newer_capacity;
    struct route_request *owed; /* one block, own: filters whose retained values an earlier start did not give to the end; NULL = none */
    uint32_t copies_parked;     /* retained values and ends of scans that wait for room in the log (core/owed.h) */
    uint32_t copies_held;       /* retained values on their way to the disk */
    uint32_t large_copies_held; /* of them, those that are large records: being logged or in the gate */
    uint32_t behind_held;       /* messages that stand behind such in the gate */
    uint64_t copies_since;      /* pending_request.since, the greatest of those that made copies: which of them a copy is of is not kept */
    uint64_t copy_last;         /* of this start's retained values, greatest sequence of one that may still wait on disk; 0 = none */
    bool is_owing;              /* the log has a subscription that is owed retained values */
    bool has_restored_copies;   /* some of what an earlier start left are retained values */
    struct id_set *id_sets;
    uint32_t id_set_count, id_set_capacity;
};

struct session {
    struct session *next_by_client_id, *next_by_number; /* session_table's */
    uint64_t number;
    struct client *client;   /* NULL while away */
    struct timer_node timer; /* session expiry and will delay, whichever is first */
    struct inflight inflight;
    struct queue queue;
    union {
        struct subscription_list *subscriptions; /* NULL = none */
        struct topic_filter_ref filter;          /* is_folded: it has this one */
    };
    struct session_rare *rare;  /* NULL = none */
    int64_t expiry_at_ms;       /* mono, while away; INT64_MAX = never */
    uint32_t connection;        /* counts connections: an answer for an earlier one is not sent on a later one */
    uint32_t expiry_interval_s; /* SESSION_NEVER_EXPIRES: for ever */
    uint32_t hash;              /* of the client id, session_table's */
    uint16_t client_id_size;    /* bytes */
    bool is_logged : 1;         /* a SESSION record says that there is one */
    bool is_named : 1;          /* records of messages name it (SUBSCRIBER_PERSISTENT): once persistent, to its end */
    bool is_folded : 1;         /* `filter` stands for the list of subscriptions */
    uint8_t client_id[];
};

/* The number of a session: above, the log's epoch of the start that made it (without persistence 0: nothing outlives the start); below, a
 * counter of that start, never 0. Shard i of n counts i+1, i+1+n, i+1+2n and so on, so that no two shards ever give the same.
 * 22 bits of epoch are 4 million starts, 8 years of one a minute; 42 bits of counter are 4e12 sessions of one start, 139 years of a
 * thousand a second. Neither is used up by a peer, and neither wraps. */
#define SESSION_NUMBER_COUNTER_BITS 42
#define SESSION_NUMBER_COUNTER_MAX (((uint64_t)1 << SESSION_NUMBER_COUNTER_BITS) - 1)
#define SESSION_NUMBER_EPOCH_MAX ((UINT32_C(1) << (64 - SESSION_NUMBER_COUNTER_BITS)) - 1)
static inline uint64_t session_number_of(uint32_t epoch, uint64_t counter)
{
    CHECK(epoch <= SESSION_NUMBER_EPOCH_MAX);
    CHECK(counter > 0);
    CHECK(counter <= SESSION_NUMBER_COUNTER_MAX);
    return (uint64_t)epoch << SESSION_NUMBER_COUNTER_BITS | counter;
}

static inline struct span session_client_id(const struct session *sess) { return span_of(sess->client_id, sess->client_id_size); }
static inline bool session_has_filters(const struct session *sess) { return sess->is_folded || sess->subscriptions; }
static inline bool session_is_persistent(const struct session *sess) { return sess->expiry_interval_s > 0; }

/* Everything in it but the struct itself; for session_table. */
void session_deinit(struct session *sess);

/* Keep the place of a filter that is alone instead of its text, if the topic tree has it (session/subscription_list.h). The session is
 * away, and none of its requests is on its way. reader: of this thread, inside a section. */
void session_fold_filter(struct session *sess, struct topic_tree *tree, struct epoch_reader *reader);
/* The list again. False: memory is short, it stays folded. */
bool session_unfold_filter(struct session *sess);

/* The rare part, made when needed; NULL when memory is short. */
struct session_rare *session_rare_get(struct session *sess);
/* Give it back when nothing is in it. */
void session_rare_trim(struct session *sess);

/* What goes beside a message for this session (session/queue.h): one identifier stands in it, several become a numbered set. */
uint32_t session_pack_meta(struct session *sess, uint8_t qos, bool retain, const uint32_t *ids, uint32_t id_count);
/* The identifiers of a meta. one_out lends room for a single one. Returns how many; *ids_out borrowed until the next pack. */
uint32_t session_unpack_ids(const struct session *sess, const uint32_t **ids_out, uint32_t *one_out, uint32_t meta);

/* While retained values are on their way, or will be: messages given to the session are noted. */
static inline bool session_awaits_retained(const struct session *sess)
{
    return sess->rare && (sess->rare->pending || sess->rare->owed || sess->rare->has_restored_copies || sess->rare->large_copies_held > 0);
}
/* A retained value may still come behind what stands before it in the log: what was noted is kept. Once nothing waits, none may. */
static inline bool session_has_copies(const struct session *sess)
{
    return sess->rare && (sess->rare->copies_held > 0 || sess->rare->copy_last > 0);
}
/* Note one, while it awaits any, or may have one behind; tick, connection: see struct newer_topic. */
void session_note_newer(struct session *sess, uint64_t topic_hash, const struct msg *msg, uint64_t tick, uint32_t connection);
/* The message was dropped: if it is the one that was noted, it makes none stale. */
void session_forget_newer(struct session *sess, uint64_t topic_hash, const struct msg *msg);
/* Whether a retained one is stale: a later value of its topic was given. (So that was after whoever asks for it had asked.) And if it was
 * noted since a tick, the same one that came live, or a later one that is no value. connection: that of now, 0 = none. */
bool session_has_newer(const struct session *sess, uint64_t topic_hash, const struct msg *retained, uint64_t since, uint32_t connection);

struct pending_request *session_find_pending(const struct session *sess, uint64_t id);
void session_remove_pending(struct session *sess, uint64_t id);

#endif
