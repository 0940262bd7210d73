#include "broker/core/inbound.h"

#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"

void inbound_keep_waits(struct inbound_id *id, const struct gate_item *item)
{
    id->wait_block = item->wait_block;
    id->wait_retained = item->wait_retained;
    id->durability = item->durability;
}

enum client_step inbound_repeat(struct shard *shard, struct client *client, const struct packet_publish *packet, struct inbound_id *id)
{
    if (id->wait_block == INBOUND_WAIT_UNKNOWN)
        return client_set_block(shard, client, BLOCK_ROOM);
    if (!id->is_counted || !client->is_strict) {
        id->is_counted = true;
        client->receive_held++;
    }
    counter_inc(&shard->stats.received_qos2);
    counter_inc(&shard->stats.received_duplicates);
    struct gate_item item = inbound_answer(packet->qos, packet->packet_id, MQTT_REASON_SUCCESS);
    inbound_set_waits(&item, id->wait_block, id->wait_retained, id->durability); /* LOG 8 */
    client_answer(shard, client, &item);
    return CLIENT_NEXT;
}

bool inbound_open(struct session *sess, uint16_t packet_id)
{
    struct session_rare *rare = session_rare_get(sess);
    return rare && inbound_ids_add(&rare->inbound, packet_id, INBOUND_WAIT_UNKNOWN) == ERR_OK;
}

void inbound_close(struct session *sess, uint16_t packet_id)
{
    if (!sess->rare)
        return;
    inbound_ids_remove(&sess->rare->inbound, packet_id);
    session_rare_trim(sess);
}

/* Whether the session's open identifiers are in the checkpoint, or on their way there. */
static bool logs_inbound(const struct shard *shard, const struct session *sess) { return shard->log.pool && session_is_persistent(sess); }

static struct record released_record(const struct session *sess, uint16_t packet_id)
{
    return (struct record){.type = RECORD_RELEASED, .session = sess->number, .packet_id = packet_id};
}

/* PUBCOMP lets the client use the identifier for another message. So it waits until the identifier is closed durably, at any tier: after a
 * crash an open one would swallow that message. An identifier that we do not know waits for nothing: if it was closed on this connection,
 * its answer stands behind that PUBCOMP; if on an earlier one, this connection's CONNACK has waited for a later record of the session. */
enum client_step inbound_on_pubrel(struct shard *shard, struct client *client, uint16_t packet_id)
{
    struct session *sess = client->session;
    struct inbound_id *id = sess->rare ? inbound_ids_find(&sess->rare->inbound, packet_id) : NULL;
    if (id && id->wait_block == INBOUND_WAIT_UNKNOWN)
        return client_set_block(shard, client, BLOCK_ROOM);
    bool is_logged = logs_inbound(shard, sess);
    struct record rec = released_record(sess, packet_id);
    if (id && is_logged && !shard_log_has_control_room(&shard->log, record_size(&rec)))
        return client_set_block(shard, client, BLOCK_ROOM);
    struct gate_item item = {
        .packet_type = MQTT_PUBCOMP,
        .packet_id = packet_id,
        .reason = id ? MQTT_REASON_SUCCESS : MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND,
    };
    if (id) {
        item.wait_block = is_logged ? shard_log_control(shard, &rec) : id->wait_block;
        item.wait_retained = id->wait_retained;
        if (client->is_strict && id->is_counted && client->receive_held > 0)
            client->receive_held--;
        inbound_close(sess, packet_id);
    }
    client_answer(shard, client, &item);
    return CLIENT_NEXT;
}
