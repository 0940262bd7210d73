/* A connection from accept to close, without its packets: when it is read, when it is written, what its end means for its session.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_CLIENT_LIFE_H
#define TIDEGATE_BROKER_CORE_CLIENT_LIFE_H

#include "broker/core/client_state.h"

struct client *client_new(struct shard *shard, void *conn, const struct client_origin *origin);
/* Free it and nothing else: the shard's end. */
void client_free(struct shard *shard, struct client *client);
void client_partial_free(struct shard *shard, struct client *client);
/* NULL when memory is short. */
struct client_extra *client_extra_get(struct client *client);

/* Say why (v5), close the socket, tell the session (its will goes out unless `reason` is Normal disconnection from the client), free it.
 * cell: the counter of the reason. With MQTT_REASON_SUCCESS nothing is said. */
void client_close(struct shard *shard, struct client *client, enum mqtt_reason reason, struct counter *cell);
/* One that ends without CONNACK or after a refusing one. Returns CLIENT_GONE. */
enum client_step client_drop_connecting(struct shard *shard, struct client *client, struct counter *cell);
/* The socket is gone already. */
void client_on_closed(struct shard *shard, struct client *client);
/* The two halves of an end: the socket, with what is in the outbox; then the session is told, and the client freed. */
void client_close_socket(struct shard *shard, struct client *client);
void client_detach(struct shard *shard, struct client *client, bool say_will);

void client_on_writable(struct shard *shard, struct client *client);
/* Write what is there; at the end of a turn. */
void client_flush(struct shard *shard, struct client *client);
/* Reading stops while packets cannot be handled, the other direction is clogged, or the shard drains. */
void client_update_reading(struct shard *shard, struct client *client);

#endif
