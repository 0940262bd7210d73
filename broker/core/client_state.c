#include "broker/core/client_state.h"

#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/guard/tier.h"
#include "common/check.h"

struct span client_user_name(const struct client *client) { return client->extra ? client->extra->user_name : (struct span){0, 0}; }

void client_mark_dirty(struct shard *shard, struct client *client)
{
    if (!list_node_is_linked(&client->dirty))
        list_push_back(&shard->dirty, &client->dirty);
}

void client_doom(struct shard *shard, struct client *client)
{
    client->is_doomed = shard->is_any_doomed = true;
    client_mark_dirty(shard, client);
}

void client_send(struct shard *shard, struct client *client, const struct packet *packet)
{
    enum mqtt_version version = (enum mqtt_version)client->version;
    uint32_t size = packet_encode_size(packet, version, client->packet_size_max);
    if (size == 0)
        return; /* nothing of the kind in this version, or too large for this client */
    uint8_t *at = outbox_reserve(&client->outbox, &shard->outboxes, size);
    if (!at) {
        client_doom(shard, client);
        return;
    }
    outbox_commit(&client->outbox, packet_encode(at, packet, version, client->packet_size_max));
    client_mark_dirty(shard, client);
}

/* An answer is about to leave: what it counted for is free again. */
static void settle_answer(struct shard *shard, struct client *client, enum mqtt_packet_type type, enum mqtt_reason reason)
{
    bool is_last = type == MQTT_PUBACK || (type == MQTT_PUBREC && (reason >= MQTT_REASON_UNSPECIFIED_ERROR || !client->is_strict));
    if (is_last && client->receive_held > 0)
        client->receive_held--;
    if (client->block == BLOCK_QUOTA)
        client_wake(shard, client);
}

void client_send_ack(struct shard *shard, struct client *client, enum mqtt_packet_type type, uint16_t packet_id, enum mqtt_reason reason)
{
    settle_answer(shard, client, type, reason);
    uint8_t *at = outbox_reserve(&client->outbox, &shard->outboxes, PACKET_ACK_SIZE_MAX);
    if (!at) {
        client_doom(shard, client);
        return;
    }
    outbox_commit(&client->outbox, packet_put_ack(at, type, (enum mqtt_version)client->version, packet_id, reason));
    client_mark_dirty(shard, client);
}

void client_send_answer(struct shard *shard, struct client *client, const struct gate_item *item)
{
    enum mqtt_packet_type type = (enum mqtt_packet_type)item->packet_type;
    enum mqtt_reason reason = (enum mqtt_reason)item->reason;
    if (!client->reports_durability || type == MQTT_PUBCOMP || reason >= MQTT_REASON_UNSPECIFIED_ERROR) {
        client_send_ack(shard, client, type, item->packet_id, reason);
        return;
    }
    settle_answer(shard, client, type, reason);
    uint8_t property[64];
    struct span value = span_of_string(durability_name((enum durability)item->durability));
    size_t size = properties_put_user_property(property, SPAN_LITERAL("tidegate-durability"), value);
    CHECK(size <= sizeof property);
    struct packet packet = {.type = type, .ack = {.packet_id = item->packet_id, .reason = reason}};
    packet.ack.properties.raw = span_of(property, size);
    packet.ack.properties.present = MQTT_PROPERTY_BIT(USER_PROPERTY);
    packet.ack.properties.user_property_count = 1;
    client_send(shard, client, &packet); /* without the property where it would make the packet too large [MQTT-3.4.2-3] */
}

void client_answer(struct shard *shard, struct client *client, struct gate_item *item)
{
    /* Behind what this connection has in the gate already, even if it waits for nothing itself [MQTT-4.6.0-2]. */
    if (client->gate_held == 0 && ack_gate_is_open(&shard->gate, item->wait_block, item->wait_retained)) {
        client_send_answer(shard, client, item);
        return;
    }
    item->kind = GATE_ACK;
    item->since_mono_ns = shard->now_mono_ns;
    item->client = client_ref_of(client);
    ack_gate_put(&shard->gate, item, (struct span){0, 0}, shard_log_filling(&shard->log));
    client->gate_held++;
}

void client_send_bytes(struct shard *shard, struct client *client, struct span bytes)
{
    if (!outbox_put(&client->outbox, &shard->outboxes, bytes.data, bytes.size))
        client_doom(shard, client);
    client_mark_dirty(shard, client);
}

void client_move(struct list_node *list, struct client *client)
{
    list_remove(&client->work);
    list_push_back(list, &client->work);
}

enum client_step client_set_block(struct shard *shard, struct client *client, enum client_block cause)
{
    CHECK(client->block == BLOCK_NONE);
    CHECK(cause != BLOCK_NONE);
    client->block = (uint8_t)cause;
    if (cause == BLOCK_FAIR) {
        client_move(&shard->ready, client);
        shard->is_work_left = true;
    } else if (cause == BLOCK_ROOM) {
        client_move(&shard->blocked, client);
    }
    return CLIENT_BLOCKED;
}

void client_wake(struct shard *shard, struct client *client)
{
    if (client->block == BLOCK_NONE || client->block == BLOCK_FAIR)
        return;
    client->block = BLOCK_NONE;
    client_set_block(shard, client, BLOCK_FAIR);
}

enum client_step client_over(struct shard *shard, enum mqtt_reason reason, struct counter *cell)
{
    shard->over = (struct client_over){.reason = reason, .cell = cell};
    return CLIENT_OVER;
}

struct client_ref client_ref_of(const struct client *client)
{
    const struct session *sess = client->session;
    return (struct client_ref){.number = sess->number, .connection = sess->connection};
}

struct client *client_find(const struct shard *shard, const struct client_ref *ref)
{
    struct session *sess = session_table_find_number(&shard->sessions, ref->number);
    return sess && sess->connection == ref->connection ? sess->client : NULL;
}
