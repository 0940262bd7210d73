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
 * A PUBLISH: frame -> decode to spans -> session (alias, packet id, quota) -> admit -> tree matched once -> one copy into a msg -> one
 * record with all its durable effects -> {recipients at once | held for the gate} -> its acknowledgement held in the ack gate.
 *
 * Owner: one thread. Nothing here blocks. Bounds: shard_limits. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_H
#define TIDEGATE_BROKER_CORE_SHARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/shard_config.h"

struct client; /* one MQTT connection, protocol side */
struct log_block_pool;
struct shard;
struct shard_stats; /* broker/core/shard_stats.h: X-macro table of counters and gauges, relaxed single-writer cells */
struct topic_tree;

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
