/* What a publisher is answered, and its QoS 2 identifiers: PUBLISH opens one, PUBREL closes it. Owner: the shard. Pure.
 *
 * An identifier is opened before anything is logged for its message. Until its PUBREL a repeated PUBLISH is answered as then, waits for the
 * same, and is given to nobody [MQTT-4.3.3-10]. */
#ifndef TIDEGATE_BROKER_CORE_INBOUND_H
#define TIDEGATE_BROKER_CORE_INBOUND_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/client_state.h"
#include "broker/guard/tier.h"
#include "broker/session/inbound_ids.h"

#define INBOUND_WAIT_UNKNOWN UINT64_MAX /* wait_block: the large record of an open identifier is not complete */

/* PUBACK or PUBREC of a PUBLISH that was taken. */
static inline struct gate_item inbound_answer(uint8_t qos, uint16_t packet_id, enum mqtt_reason reason)
{
    return (struct gate_item){
        .packet_type = qos == 1 ? MQTT_PUBACK : MQTT_PUBREC,
        .packet_id = packet_id,
        .reason = (uint8_t)reason,
        .durability = DURABILITY_NONE,
    };
}

/* What the answer waits for. With tier memory the record is left to itself; the route actor is not: it may have to refuse. */
static inline void inbound_set_waits(struct gate_item *item, uint64_t wait_block, uint64_t wait_retained, uint8_t durability)
{
    item->wait_block = durability == DURABILITY_LOG ? wait_block : 0;
    item->wait_retained = wait_retained;
    item->durability = durability;
}
/* Beside the identifier: a repeated PUBREC waits for the same (LOG 8). */
void inbound_keep_waits(struct inbound_id *id, const struct gate_item *item);

/* Remember a QoS 2 identifier. False: memory is short, or it has too many. */
bool inbound_open(struct session *sess, uint16_t packet_id);
void inbound_close(struct session *sess, uint16_t packet_id);
/* The PUBLISH came before: its identifier is open. */
enum client_step inbound_repeat(struct shard *shard, struct client *client, const struct packet_publish *packet, struct inbound_id *id);
enum client_step inbound_on_pubrel(struct shard *shard, struct client *client, uint16_t packet_id);

#endif
