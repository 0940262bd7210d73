/* What is done with a message at a session's home: a copy becomes bytes in the outbox, an entry in the inflight window, or a place in the
 * session's queue; or it is dropped with a reason:
 *
 *   away, QoS 0, not configured to wait      offline_qos0
 *   expired                                  expired                  [MQTT-3.3.2-5]
 *   larger than the client takes             too_large_for_client     [MQTT-3.1.2-24] [MQTT-3.1.2-25]
 *   QoS 0 and the socket is too slow         slow_consumer
 *   the queue is at its bound                queue_full, queue_bytes, total_messages, total_bytes
 *   it waited too long                       queue_age
 *
 * What is done with a message that the checkpoint keeps for the session is logged: ACK when it is done with, DROP when it is not to be; of
 * QoS 2 also SENT before PUBLISH leaves and RECEIVED before PUBREL does, so that after a crash no identifier means two messages.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_DELIVER_H
#define TIDEGATE_BROKER_CORE_DELIVER_H

#include "broker/core/client_state.h"
#include "broker/core/shard_config.h"
#include "broker/mqtt/mqtt_spec.h"
#include "broker/session/session.h"

struct shard;

/* One copy for a session that is at home here. is_wanted: the record of the message names the session. */
void deliver_to_session(struct shard *shard, struct session *sess, struct msg *msg, uint8_t qos, bool retain, bool is_wanted,
                        const uint32_t *ids, uint32_t id_count);
/* Send what may be sent now: first again what an earlier connection did not finish, then the queue. Nothing to a connection that has no
 * CONNACK yet. */
void deliver_pump(struct shard *shard, struct client *client);

/* Blocks came back: those for whose next message there was no room in the log. */
void deliver_retry_stuck(struct shard *shard);

/* The client's answers to what was sent. CLIENT_BLOCKED: the log has no room for what they mean, nothing happened. */
enum client_step deliver_on_puback(struct shard *shard, struct client *client, uint16_t packet_id);
enum client_step deliver_on_pubrec(struct shard *shard, struct client *client, uint16_t packet_id, enum mqtt_reason reason);
enum client_step deliver_on_pubcomp(struct shard *shard, struct client *client, uint16_t packet_id);

/* The record SENT or RECEIVED of an outgoing QoS 2 message is durable: PUBLISH or PUBREL may leave, on whatever connection the session has
 * now. */
void deliver_on_sent_durable(struct shard *shard, const struct client_ref *ref, uint16_t packet_id);

#endif
