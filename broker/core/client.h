/* One MQTT connection, protocol side: frames in, the state machine of a connection, packets out.
 *
 *   CONNECTING  only CONNECT is legal; the connect timeout runs            [MQTT-3.1.0-1]
 *   WAITING     has a session, and waits until the log has it; is sent nothing      LOG 8
 *   CONNECTED   has a session; keep-alive runs when asked for
 *   (gone)      freed; whoever held a client_ref finds nothing
 *
 *   CONNECTING -> CONNECTED, perhaps over WAITING, or gone   core/connect.h
 *   CONNECTED  -> gone      core/client_life.h   DISCONNECT with the reason to v5, then the session is told
 *
 * Bytes are handled straight from the loop's read buffer. What is left over (an incomplete packet, or whole packets that cannot be handled
 * now) is kept in `partial`, which grows with the bytes received and not with what a header announces, under the shard's budget. While a
 * connection is blocked (client_state.h says by what) it is not read and its packets stay unprocessed, in order.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_CLIENT_H
#define TIDEGATE_BROKER_CORE_CLIENT_H

#include "broker/core/client_state.h"

void client_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size);
void client_on_timer(struct shard *shard, struct client *client);
/* Handle what waits in `partial` and read again; for a blocked client whose cause has gone. */
void client_resume(struct shard *shard, struct client *client);

#endif
