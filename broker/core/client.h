/* One MQTT connection, protocol side: frames in, the state machine of a connection, packets out.
 *
 *   CONNECTING  only CONNECT is legal; the connect timeout runs            [MQTT-3.1.0-1]
 *   WAITING     has a session, and waits until the log has it; is sent nothing      LOG 8
 *   CONNECTED   has a session; keep-alive runs when asked for
 *   (gone)      freed; whoever held a client_ref finds nothing
 *
 *   CONNECTING -> CONNECTED  client_on_connect    CONNACK 0
 *   CONNECTING -> WAITING    client_on_connect    its session is one that the log knows
 *   WAITING    -> CONNECTED  client_on_session_durable   CONNACK 0, then what the session has for it, then the packets behind CONNECT
 *   CONNECTING -> gone       client_refuse        CONNACK with the reason where the version has one
 *   CONNECTED  -> gone       client_close         DISCONNECT with the reason to v5, then the session is told
 *
 * Bytes are handled straight from the loop's read buffer. What is left over (an incomplete packet, or whole packets that cannot be handled
 * now) is kept in `partial`, which grows with the bytes received and not with what a header announces, under the shard's budget. While a
 * connection is blocked (client_state.h says by what) it is not read and its packets stay unprocessed, in order.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_CLIENT_H
#define TIDEGATE_BROKER_CORE_CLIENT_H

#include "broker/core/client_state.h"
#include "broker/core/shard_config.h"

struct client *client_new(struct shard *shard, void *conn, const struct client_origin *origin);
void client_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size);
void client_on_writable(struct shard *shard, struct client *client);
void client_on_timer(struct shard *shard, struct client *client);
/* Draining: nothing more is read or handled. */
void client_stop_reading(struct shard *shard, struct client *client);
/* Handle what waits in `partial` and read again; for a blocked client whose cause has gone. */
void client_resume(struct shard *shard, struct client *client);

/* Say why (v5), close the socket, tell the session (its will goes out unless `reason` is Normal disconnection from the client), free it.
 * cell: the counter of the reason. With MQTT_REASON_SUCCESS nothing is said. */
void client_close(struct shard *shard, struct client *client, enum mqtt_reason reason, struct counter *cell);
/* The socket is gone already. */
void client_on_closed(struct shard *shard, struct client *client);
/* Free it and nothing else: the shard's end. */
void client_free(struct shard *shard, struct client *client);
/* What its CONNECT did to the session is durable. connack: the packet. */
void client_on_session_durable(struct shard *shard, struct client *client, struct span connack);
/* Write what is there; at the end of a turn. */
void client_flush(struct shard *shard, struct client *client);

#endif
