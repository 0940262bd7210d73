/* The route actor: only writer of the topic tree and of the retained index.
 *
 * It answers each request in the order its shard sent them. A SUBSCRIBE is in the tree before its reply leaves, and the retained values
 * that match are looked up at the same moment, so that each later retained PUBLISH of those topics reaches the subscription by the tree and
 * each earlier one by the scan. Scans run in slices between other work. Pure; owner: the route thread (or the simulator). */
#ifndef TIDEGATE_BROKER_CORE_ROUTE_ACTOR_H
#define TIDEGATE_BROKER_CORE_ROUTE_ACTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "broker/core/ops.h"
#include "common/bytes.h"

struct topic_tree;

enum route_kind { ROUTE_SUBSCRIBE, ROUTE_UNSUBSCRIBE, ROUTE_FORGET_SESSION };

/* One filter of a SUBSCRIBE or UNSUBSCRIBE. */
struct route_filter {
    uint32_t offset, size;    /* the filter's bytes in request->text */
    uint32_t subscription_id; /* 0 = none */
    uint8_t qos;              /* granted maximum */
    uint8_t options;          /* no local, retain as published, retain handling as in the SUBSCRIBE's option byte */
    uint8_t reason;           /* in: a refusal decided by the shard (>= 0x80: left alone), out: the reason code */
    bool is_new;              /* out of SUBSCRIBE: no such subscription before (retain handling 1) */
};

/* Allocated as one block by the shard, taken by the route actor, and given back as the reply with `reason` and `is_new` filled in
 * (ROUTE_FORGET_SESSION has no reply). After the reply of a SUBSCRIBE come its retained values, each with the index of its filter, and then
 * one OP_RETAINED_END, always. */
struct route_request {
    uint64_t id; /* the shard's ticket, echoed */
    struct session_ref session;
    uint8_t kind; /* enum route_kind */
    uint16_t packet_id;
    uint32_t filter_count;
    struct route_filter *filters; /* inside the block */
    uint8_t *text;                /* inside the block */
};

struct route_request *route_request_new(uint32_t filter_count, size_t text_size);
void route_request_free(struct route_request *request);

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
    uint64_t tree_bytes_max; /* of the topic tree: past it SUBSCRIBE is refused with 0x97 */
    uint32_t scan_slice;     /* topics looked at before other work is let in */
};

struct route_actor;
struct route_stats; /* broker/core/route_stats.h */

/* tree: its only writer from here on. retained_counter: the process-wide one of shard_config, read only. hash_key: random. shard_count:
 * shards that send. limits copied; io borrowed for life. NULL when memory is short. */
struct route_actor *route_actor_new(struct topic_tree *tree, _Atomic uint64_t *retained_counter, uint64_t hash_key, uint16_t shard_count,
                                    const struct route_limits *limits, const struct route_io *io, void *io_arg);
void route_actor_free(struct route_actor *actor);
struct route_stats *route_actor_stats(struct route_actor *actor);
/* The present time (mono), for the age of the scans in the statistics; before the ops of a step. */
void route_actor_set_time(struct route_actor *actor, int64_t now_mono_ns);
void route_actor_on_op(struct route_actor *actor, const struct op *op);
/* Slices of scans, postings that found a full ring, expiry, reclamation. Returns in how many ns it wants to be called again at the latest
 * (0 = at once), whatever ops arrive meanwhile. */
int64_t route_actor_work(struct route_actor *actor, int64_t now_wall_ns);

#endif
