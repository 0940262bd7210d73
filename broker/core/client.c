#include "broker/core/client.h"

#include <stdlib.h>

#include "broker/core/client_life.h"
#include "broker/core/connect.h"
#include "broker/core/deliver.h"
#include "broker/core/inbound.h"
#include "broker/core/publish.h"
#include "broker/core/shard_state.h"
#include "broker/core/subscribe.h"
#include "common/check.h"

#define PARTIAL_FIRST 256u
#define PARTIAL_SMALL 4096u /* bytes that a connection may keep though others have used the budget up */

/* --- packets ------------------------------------------------------------------------------------------------------------------------ */

static enum client_step protocol_error(struct shard *shard, struct client *client, enum mqtt_reason reason)
{
    struct shard_stats *stats = &shard->stats;
    client_close(shard, client, reason, reason == MQTT_REASON_MALFORMED_PACKET ? &stats->closed_malformed : &stats->closed_protocol_error);
    return CLIENT_GONE;
}

static enum client_step on_disconnect(struct shard *shard, struct client *client, const struct packet_disconnect *packet)
{
    struct session *sess = client->session;
    if (packet->properties.present & MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL)) {
        uint32_t asked_s = packet->properties.session_expiry_interval_s;
        if (sess->expiry_interval_s == 0 && asked_s > 0)
            return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
        sess->expiry_interval_s = connect_expiry_in_force(shard, asked_s);
    }
    bool says_goodbye = client->version < MQTT_V5 || packet->reason == MQTT_REASON_NORMAL_DISCONNECTION;
    counter_inc(says_goodbye ? &shard->stats.closed_disconnect : &shard->stats.closed_disconnect_with_will);
    client_close_socket(shard, client);
    client_detach(shard, client, !says_goodbye); /* [MQTT-3.14.4-3] */
    return CLIENT_GONE;
}

/* The topic of a PUBLISH: named, or by an alias of this connection. Remembers a new alias; harmless when the packet comes again. */
static enum client_step resolve_alias(struct shard *shard, struct client *client, struct packet_publish *packet)
{
    if (!(packet->properties.present & MQTT_PROPERTY_BIT(TOPIC_ALIAS)))
        return CLIENT_NEXT;
    uint16_t alias = packet->properties.topic_alias, max = client_listener(shard, client)->topic_alias_maximum;
    if (alias == 0 || alias > max)
        return protocol_error(shard, client, MQTT_REASON_TOPIC_ALIAS_INVALID); /* [MQTT-3.2.2-17] [MQTT-3.3.2-8] */
    struct client_extra *extra = client_extra_get(client);
    if (extra && !extra->topics) {
        extra->topics = calloc(max, sizeof(struct client_alias *));
        extra->topic_count = extra->topics ? max : 0;
    }
    if (!extra || !extra->topics)
        return protocol_error(shard, client, MQTT_REASON_QUOTA_EXCEEDED);
    struct client_alias **place = &extra->topics[alias - 1];
    if (packet->topic.size == 0) {
        if (!*place)
            return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
        packet->topic = span_of((*place)->topic, (*place)->size);
        return CLIENT_NEXT;
    }
    if (*place && span_equal(span_of((*place)->topic, (*place)->size), packet->topic))
        return CLIENT_NEXT;
    struct client_alias *fresh = malloc(sizeof *fresh + packet->topic.size);
    if (!fresh)
        return protocol_error(shard, client, MQTT_REASON_QUOTA_EXCEEDED);
    fresh->size = (uint32_t)packet->topic.size;
    memcpy(fresh->topic, packet->topic.data, packet->topic.size);
    free(*place);
    *place = fresh;
    return CLIENT_NEXT;
}

static enum client_step on_publish(struct shard *shard, struct client *client, struct packet_publish *packet, size_t packet_size)
{
    const struct shard_listener *listener = client_listener(shard, client);
    if (packet->qos > listener->max_qos)
        return protocol_error(shard, client, MQTT_REASON_QOS_NOT_SUPPORTED); /* [MQTT-3.2.2-11] */
    if (packet->retain && !listener->retain_available)
        return protocol_error(shard, client, MQTT_REASON_RETAIN_NOT_SUPPORTED); /* [MQTT-3.2.2-14] */
    enum client_step step = resolve_alias(shard, client, packet);
    return step == CLIENT_NEXT ? publish_on_packet(shard, client, packet, packet_size) : step;
}

static enum client_step on_pingreq(struct shard *shard, struct client *client)
{
    client_send(shard, client, &(struct packet){.type = MQTT_PINGRESP});
    return CLIENT_NEXT;
}

static enum client_step handle_connecting(struct shard *shard, struct client *client, const struct frame *frame, const uint8_t *data)
{
    struct packet packet;
    if (frame->type != MQTT_CONNECT)
        return client_drop_connecting(shard, client, &shard->stats.refused_not_connect); /* [MQTT-3.1.0-1] */
    packet.connect.version = MQTT_V5;
    struct mqtt_verdict verdict = packet_decode(&packet, MQTT_V5, MQTT_FROM_CLIENT, frame, data);
    if (verdict.judgement == MQTT_BAD) {
        bool is_version = verdict.reason == MQTT_REASON_UNSUPPORTED_PROTOCOL_VERSION;
        return connect_refuse(shard, client, packet.connect.version, verdict.reason,
                              is_version ? &shard->stats.refused_version : &shard->stats.refused_malformed);
    }
    return connect_on_packet(shard, client, &packet.connect);
}

static enum client_step handle_packet(struct shard *shard, struct client *client, const struct frame *frame, const uint8_t *data)
{
    if (client->state == CLIENT_CONNECTING)
        return handle_connecting(shard, client, frame, data);
    if (frame->type == MQTT_CONNECT)
        return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR); /* [MQTT-3.1.0-2] */
    struct packet packet;
    struct mqtt_verdict verdict = packet_decode(&packet, (enum mqtt_version)client->version, MQTT_FROM_CLIENT, frame, data);
    if (verdict.judgement == MQTT_BAD)
        return protocol_error(shard, client, verdict.reason); /* [MQTT-4.13.1-1] */
    switch (packet.type) {
    case MQTT_PUBLISH:
        return on_publish(shard, client, &packet.publish, frame->size);
    case MQTT_PUBACK:
        return deliver_on_puback(shard, client, packet.ack.packet_id);
    case MQTT_PUBREC:
        return deliver_on_pubrec(shard, client, packet.ack.packet_id, packet.ack.reason);
    case MQTT_PUBREL:
        return inbound_on_pubrel(shard, client, packet.ack.packet_id);
    case MQTT_PUBCOMP:
        return deliver_on_pubcomp(shard, client, packet.ack.packet_id);
    case MQTT_SUBSCRIBE:
        return subscribe_on_subscribe(shard, client, &packet.subscribe);
    case MQTT_UNSUBSCRIBE:
        return subscribe_on_unsubscribe(shard, client, &packet.unsubscribe);
    case MQTT_PINGREQ:
        return on_pingreq(shard, client);
    case MQTT_DISCONNECT:
        return on_disconnect(shard, client, &packet.disconnect);
    case MQTT_AUTH: /* no method in CONNECT: an error [MQTT-4.12.0-7] */
    case MQTT_WILL:
    case MQTT_CONNECT:
    case MQTT_CONNACK:
    case MQTT_SUBACK:
    case MQTT_UNSUBACK:
    case MQTT_PINGRESP:
        break;
    }
    return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
}

/* Handle complete packets from data[0]; *used_out bytes are done. */
static enum client_step handle_bytes(struct shard *shard, struct client *client, size_t *used_out, const uint8_t *data, size_t size)
{
    *used_out = 0;
    while (*used_out < size) {
        struct frame frame;
        switch (frame_parse(&frame, data + *used_out, size - *used_out, client_listener(shard, client)->max_packet_size)) {
        case FRAME_MORE:
            return CLIENT_NEXT;
        case FRAME_BAD:
            if (client->state == CLIENT_CONNECTING)
                return client_drop_connecting(shard, client, &shard->stats.refused_malformed);
            return protocol_error(shard, client, frame.bad.reason);
        case FRAME_OK:
            break;
        }
        enum client_step step = handle_packet(shard, client, &frame, data + *used_out);
        if (step == CLIENT_OVER) {
            client_close(shard, client, shard->over.reason, shard->over.cell);
            return CLIENT_GONE;
        }
        if (step != CLIENT_NEXT)
            return step;
        *used_out += frame.size;
        counter_inc(&shard->stats.received_packets);
        if (client->block != BLOCK_NONE)
            return CLIENT_BLOCKED;
    }
    return CLIENT_NEXT;
}

/* --- in ----------------------------------------------------------------------------------------------------------------------------- */

/* Keep bytes for later. False: the client is gone, because the budget or the memory is used up. */
static bool partial_append(struct shard *shard, struct client *client, const uint8_t *data, size_t size)
{
    struct client_partial *partial = client->partial;
    if (partial && partial->start > 0 && partial->capacity - partial->size < size) {
        memmove(partial->bytes, partial->bytes + partial->start, partial->size - partial->start);
        partial->size -= partial->start;
        partial->start = 0;
    }
    size_t used = partial ? partial->size : 0;
    if (!partial || partial->capacity - used < size) {
        size_t capacity = PARTIAL_FIRST;
        while (capacity < used + size)
            capacity *= 2;
        size_t before = partial ? partial->capacity : 0;
        uint64_t total = (uint64_t)gauge_get(&shard->stats.partial_bytes) + capacity - before;
        /* A few connections that begin large packets and stall must not close those whose small one is cut in two. */
        bool may_grow = capacity <= PARTIAL_SMALL || total <= shard->config.limits.partial_bytes_max;
        struct client_partial *grown = may_grow ? realloc(partial, sizeof *grown + capacity) : NULL;
        if (!grown) {
            client_close(shard, client, MQTT_REASON_QUOTA_EXCEEDED,
                         client->state == CLIENT_CONNECTING ? &shard->stats.refused_no_memory : &shard->stats.closed_no_memory);
            return false;
        }
        if (!partial)
            grown->start = grown->size = 0;
        grown->capacity = capacity;
        client->partial = partial = grown;
        gauge_set(&shard->stats.partial_bytes, (int64_t)total);
    }
    memcpy(partial->bytes + partial->size, data, size);
    partial->size += size;
    return true;
}

static void handle_partial(struct shard *shard, struct client *client)
{
    struct client_partial *partial = client->partial;
    if (partial) {
        size_t used;
        if (handle_bytes(shard, client, &used, partial->bytes + partial->start, partial->size - partial->start) == CLIENT_GONE)
            return;
        partial->start += used;
        if (partial->start == partial->size)
            client_partial_free(shard, client);
    }
    client_update_reading(shard, client);
}

void client_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size)
{
    counter_add(&shard->stats.received_bytes, size);
    client_hear(shard, client);
    if (client->partial || client->block != BLOCK_NONE || shard->is_draining) {
        if (!partial_append(shard, client, data, size))
            return;
        if (client->block == BLOCK_NONE && !shard->is_draining)
            handle_partial(shard, client);
        else
            client_update_reading(shard, client);
        return;
    }
    size_t used;
    if (handle_bytes(shard, client, &used, data, size) == CLIENT_GONE)
        return;
    if (used < size && !partial_append(shard, client, data + used, size - used))
        return;
    client_update_reading(shard, client);
}

void client_resume(struct shard *shard, struct client *client)
{
    CHECK(client->block != BLOCK_NONE);
    client->block = BLOCK_NONE;
    client_move(&shard->idle, client);
    handle_partial(shard, client);
}

void client_on_timer(struct shard *shard, struct client *client)
{
    if (client->state == CLIENT_CONNECTING) {
        client_drop_connecting(shard, client, &shard->stats.refused_timeout);
        return;
    }
    if (client->is_paused && !client->is_choked)
        client_hear(shard, client); /* we do not listen: LOG 7. One that takes nothing is not alive, though. */
    int64_t deadline_ms = (int64_t)client->heard_tick * CLIENT_TICK_MS + CLIENT_KEEP_ALIVE_MS(client->keep_alive_s);
    if (shard->now_ms < deadline_ms)
        timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)deadline_ms);
    else
        client_close(shard, client, MQTT_REASON_KEEP_ALIVE_TIMEOUT, &shard->stats.closed_keep_alive);
}
