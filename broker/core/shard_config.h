/* What a shard is given: its settings, its listeners', and what the outside does for it (struct shard_io). All of it is there before the
 * shard is, and does not change. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_CONFIG_H
#define TIDEGATE_BROKER_CORE_SHARD_CONFIG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "broker/actor/ops.h"
#include "common/bytes.h"

struct queue_totals;
struct retained;   /* broker/route/retained.h */
struct rule_table; /* broker/telemetry/rule.h, read only */
struct tier_table; /* broker/guard/tier.h, read only */

/* What the outside does for a shard. All calls come from within a turn, on the shard's thread. None may call back into the shard. */
struct shard_io {
    /* Write to the connection's socket: bytes taken (0..total); 0 = would block, shard_on_writable follows; < 0 = broken, shard_on_closed
     * follows later. Borrowed until return. */
    ssize_t (*write)(void *io, void *conn, const struct iovec *iov, int iov_count);
    /* Stop or resume reading from the socket (back-pressure). Idempotent. */
    void (*read_pause)(void *io, void *conn, bool paused);
    /* The shard is done with the connection: its last bytes have been given to write() (what did not fit may be tried until `linger_ms`).
     * The client is gone for the shard; shard_on_closed does not follow. */
    void (*close)(void *io, void *conn, uint32_t linger_ms);
    /* Hand an op over. False when the ring is full: nothing was taken. `reserve`: control traffic that may use the last slots. */
    bool (*post)(void *io, actor_id to, const struct op *op, bool reserve);
    /* 64 random bits (assigned client ids, correlation ids). */
    uint64_t (*random)(void *io);
};

/* Where a connection comes from, said once at shard_open. */
struct client_origin {
    struct span peer;         /* "127.0.0.1:40312"; borrowed until return, not kept: who writes log lines is the driver, and it knows */
    uint16_t listener_index;  /* its listener's options, see shard_config.listeners */
    int64_t accepted_mono_ns; /* CONNECT must be complete within connect_timeout of it */
};

/* Per-listener settings that concern the protocol. */
struct shard_listener {
    bool allow_anonymous;
    uint32_t max_packet_size; /* bytes, 2..268435460 */
    uint16_t receive_maximum; /* what CONNACK announces, 1..65535 */
    uint16_t topic_alias_maximum;
    uint16_t max_keepalive_s; /* 0 = any; MQTT 5 is told this one instead, older versions are refused */
    uint8_t max_qos;          /* 0..2 */
    bool retain_available;
};

struct shard_limits {
    uint32_t session_queue_messages_max; /* in memory and on disk, per session: max_queued_messages */
    uint64_t session_queue_bytes_max;
    int64_t queue_age_max_ns;    /* a message that waited longer is dropped (waiting.h); 0 = none is too old */
    uint8_t queue_policy;        /* enum queue_policy (session/queue.h) */
    uint16_t inflight_max;       /* outgoing QoS 1 and 2 in flight per session: max_inflight_messages */
    uint64_t outbox_bytes_max;   /* bytes waiting for one slow socket before QoS 0 is dropped and reading from it stops */
    uint64_t outboxes_bytes_max; /* the same of all sockets of the shard: past it, each that has anything waiting counts as too slow */
    uint64_t partial_bytes_max;  /* incomplete packets of all connections of the shard together; 4 KiB of each do not count */
    uint32_t connect_timeout_ms;
    uint32_t session_expiry_max_s; /* persistent_client_expiration; UINT32_MAX = never */
    uint32_t sessions_max;
    uint64_t record_bytes_max;       /* of telemetry, 1..RECORD_SIZE_MAX: a record that the log cannot hold would wait for room for ever */
    uint32_t wills_per_s;            /* of an earlier start, that this shard says in a second; 0 = no limit */
    uint32_t will_restart_grace_ms;  /* how long at least they wait for their clients to come back */
    uint32_t publishes_per_turn_max; /* fairness: of one connection in one turn; the rest waits for the next turn */
    bool queue_qos0_messages;        /* QoS 0 for offline sessions */
    bool allow_zero_length_clientid;
    bool allow_duplicate_messages; /* overlapping subscriptions: a copy each instead of one merged */
    bool receive_maximum_strict;   /* true: 0x93 and close, for MQTT 5 (who was not told is only not read); false: stop reading */
};

struct shard_config {
    actor_id index;
    uint16_t shard_count;
    uint64_t hash_key; /* keys hash(client id) -> home; drawn at start, the same in all shards */
    struct shard_limits limits;
    const struct shard_listener *listeners; /* borrowed for life */
    uint16_t listener_count;
    const struct rule_table *rules;     /* borrowed for life; NULL = no telemetry */
    const struct tier_table *tiers;     /* borrowed for life; NULL = tier log for all */
    struct queue_totals *queue_totals;  /* of the process, session/queue_totals.h; NULL = no bound on all queues together */
    _Atomic uint64_t *retained_counter; /* process-wide: numbers retained PUBLISHes, the first is 1; shared by all shards */
    struct retained *retained;          /* the route actor's: room is reserved here; borrowed for life */
    int64_t steady_offset_ns; /* the broker's own time less mono: deadlines are in it, so a step of the wall clock does not touch them */
    uint32_t epoch;           /* the log's of this start, at most SESSION_NUMBER_EPOCH_MAX; 0 without persistence */
    bool persistence;         /* false: nothing is logged, everything is acknowledged at once */
};

/* The home of a client id. Pure. */
actor_id shard_home(uint64_t hash_key, uint16_t shard_count, struct span client_id);

#endif
