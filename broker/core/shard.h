/* A shard: everything one event loop decides, without the loop.
 *
 * A shard is the home of its connections' protocol state, its sessions, their timers and its part of the log. It is pure: bytes, ops and
 * the time go in, bytes and ops come out through `struct shard_io`. Under libuv it is driven by broker/net/loop.c, in tests/sim by a
 * virtual network and clock.
 *
 * One turn, in this order (the driver calls exactly this):
 *     shard_turn_begin(now)            time stands still within a turn
 *     shard_on_op(...)*                what other actors sent
 *     shard_open / shard_on_bytes / shard_on_writable / shard_on_closed *      what sockets did
 *     shard_turn_end()                 timers -> seal and hand over what the turn logged -> release what became durable -> one vectored
 *                                      write per dirty connection
 *
 * A PUBLISH: frame -> decode to spans -> session (alias, packet id, quota) -> authorise -> admit -> one copy into a msg -> tree matched
 * once
 * -> {recipients at once | held for the gate} and one record with all its durable effects -> its acknowledgement held in the ack gate.
 *
 * Owner: one thread. Nothing here blocks. Bounds: shard_limits. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_H
#define TIDEGATE_BROKER_CORE_SHARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "broker/core/ops.h"
#include "common/bytes.h"

struct client; /* one MQTT connection, protocol side */
struct log_block_pool;
struct queue_totals;
struct rule_table; /* broker/telemetry/rule.h, read only */
struct tier_table; /* broker/guard/tier.h, read only */
struct shard;
struct shard_stats; /* broker/core/shard_stats.h: X-macro table of counters and gauges, relaxed single-writer cells */
struct topic_tree;

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
    struct queue_totals *queue_totals;  /* of the process, session/queue.h; NULL = no bound on all queues together */
    _Atomic uint64_t *retained_counter; /* process-wide: numbers retained PUBLISHes, the first is 1; shared by all shards */
    int64_t steady_offset_ns; /* the broker's own time less mono: deadlines are in it, so a step of the wall clock does not touch them */
    uint32_t epoch;           /* the log's of this start, at most SESSION_NUMBER_EPOCH_MAX; 0 without persistence */
    bool persistence;         /* false: nothing is logged, everything is acknowledged at once */
};

/* The home of a client id. Pure. */
actor_id shard_home(uint64_t hash_key, uint16_t shard_count, struct span client_id);

/* tree: read by this shard, written by the route actor. pool: where log blocks come from, used by this shard alone; NULL without
 * persistence. io borrowed for life. NULL when memory is short. */
struct shard *shard_new(const struct shard_config *config, struct topic_tree *tree, struct log_block_pool *pool, const struct shard_io *io,
                        void *io_arg);
void shard_free(struct shard *shard);
struct shard_stats *shard_get_stats(struct shard *shard);

void shard_turn_begin(struct shard *shard, int64_t now_mono_ns, int64_t now_wall_ns);
void shard_turn_end(struct shard *shard);
/* When the next turn is needed at the latest (mono ns); INT64_MAX = no timer. Work left over for fairness gives the present time. */
int64_t shard_next_turn_ns(const struct shard *shard);

/* A connection that is at home here. `conn` is the driver's handle, given back in every io call. NULL when memory is short: close it. */
struct client *shard_open(struct shard *shard, void *conn, const struct client_origin *origin);
/* Bytes from the socket; borrowed until return. The client may have asked for close when this returns (io->close was called and `client` is
 * gone): the driver must not touch it again; conn tells it so. */
void shard_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size);
void shard_on_writable(struct shard *shard, struct client *client);
/* The network connection is gone (EOF, reset, write failed): wills, session expiry. `reason` a static text for the log and the counter. */
void shard_on_closed(struct shard *shard, struct client *client, const char *reason);
void shard_on_op(struct shard *shard, const struct op *op);

/* Begin the end: nothing more is read, DISCONNECT 0x8B to v5 clients, close all after what is held is released or `force`. True when no
 * connection is left and everything logged is durable. Call once a turn until then. */
bool shard_drain(struct shard *shard, bool force);

#endif
