/* The way of a message to a session: who gets it and how (made at the publisher's shard), and what is done with it at the session's home.
 *
 * A recipient is one session and what is its own of the message: granted QoS, RETAIN, subscription identifiers. Recipients stand one behind
 * the other in bytes: in the publisher's scratch, in the ack gate while they wait, and in the batch (struct delivery) that goes to another
 * shard once a turn. At home a copy becomes bytes in the outbox, an entry in the inflight window, or a place in the session's queue; or it
 * is dropped with a reason:
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
 * Owner: the shard; a delivery: whoever holds it. Pure. */
#ifndef TIDEGATE_BROKER_CORE_DELIVER_H
#define TIDEGATE_BROKER_CORE_DELIVER_H

#include "broker/core/client_state.h"
#include "broker/core/ops.h"
#include "broker/core/shard_config.h"
#include "broker/mqtt/mqtt_spec.h"
#include "broker/session/session.h"
#include "common/bytes.h"

#define DELIVERY_SIZE_FIRST 2048  /* bytes of a batch; doubled when needed */
#define DELIVERY_SIZE_POST 65536u /* bytes from which a batch is posted before the turn ends */

struct shard;

struct recipient {
    uint64_t number;
    uint16_t shard;
    uint8_t qos;        /* of the copy: min(published, granted) [MQTT-3.8.4-8] */
    bool retain : 1;    /* of the copy [MQTT-3.3.1-12] [MQTT-3.3.1-13] */
    bool is_named : 1;  /* the message's record says that it gets it: what becomes of it is logged */
    bool is_copy : 1;   /* the message is a retained value's copy for this session, from its home's gate */
    bool is_large : 1;  /* a copy whose record was a large one: nothing has waited behind it before it was complete */
    bool is_behind : 1; /* it has stood in its home's gate behind such copies */
    uint32_t id_count;
    uint32_t ids[]; /* subscription identifiers [MQTT-3.3.4-3] */
};
/* Bytes, the next one stands behind them. */
static inline size_t recipient_size(uint32_t id_count)
{
    return align_up(sizeof(struct recipient) + id_count * sizeof(uint32_t), _Alignof(struct recipient));
}

/* A message in a batch, its recipients behind it. */
struct delivery_entry {
    struct msg *msg; /* shared (ref) */
    uint32_t count;  /* recipients */
    uint32_t size;   /* bytes of the recipients */
};

/* A batch for another shard. One block. */
struct delivery {
    uint32_t size, capacity; /* bytes */
    uint32_t copies;
    uint32_t last_entry; /* offset */
    _Alignas(8) uint8_t bytes[];
};

/* Drop it with its references; for whoever tears rings down. */
void delivery_free(struct delivery *delivery);

/* Give a message to recipients wherever they are at home: own ones at once, others into batches. */
void deliver_recipients(struct shard *shard, struct msg *msg, struct span recipients);
/* A batch from another shard; taken. */
void deliver_on_batch(struct shard *shard, struct delivery *delivery);
/* Hand over the batches of this turn. */
void deliver_post_batches(struct shard *shard);
/* One copy for a session that is at home here. is_wanted: the record of the message names the session. */
void deliver_to_session(struct shard *shard, struct session *sess, struct msg *msg, uint8_t qos, bool retain, bool is_wanted,
                        const uint32_t *ids, uint32_t id_count);
/* Send what may be sent now: first again what an earlier connection did not finish, then the queue. Nothing to a connection that has no
 * CONNACK yet. */
void deliver_pump(struct shard *shard, struct client *client);

/* The client's answers to what was sent. CLIENT_BLOCKED: the log has no room for what they mean, nothing happened. */
enum client_step deliver_on_puback(struct shard *shard, struct client *client, uint16_t packet_id);
enum client_step deliver_on_pubrec(struct shard *shard, struct client *client, uint16_t packet_id, enum mqtt_reason reason);
enum client_step deliver_on_pubcomp(struct shard *shard, struct client *client, uint16_t packet_id);

/* The record SENT or RECEIVED of an outgoing QoS 2 message is durable: PUBLISH or PUBREL may leave, on whatever connection the session has
 * now. */
void deliver_on_sent_durable(struct shard *shard, const struct client_ref *ref, uint16_t packet_id);

#endif
