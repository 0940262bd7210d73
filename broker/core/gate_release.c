#include "broker/core/gate_release.h"

#include "broker/core/client.h"
#include "broker/core/client_state.h"
#include "broker/core/deliver.h"
#include "broker/core/delivery.h"
#include "broker/core/shard_state.h"
#include "common/check.h"

/* What the answer of a refused value waits for: its record. 0 = nothing more. */
static uint64_t wait_of_refusal(const struct shard *shard, const struct refused_value *refused)
{
    uint64_t durable = shard->gate.durable_blocks;
    if (refused->wait_block == REFUSED_VALUE_LATE)
        return durable + 1; /* all blocks are at the disk: one comes back, and it is asked again */
    return refused->wait_block > durable ? refused->wait_block : 0;
}

static uint64_t release_ack(struct shard *shard, const struct gate_item *item)
{
    const struct refused_value *refused = NULL;
    if (item->wait_retained != 0 && item->packet_type != MQTT_PUBCOMP)
        refused = refused_values_reach(&shard->refused_values, item->wait_retained, item->since_mono_ns);
    uint64_t wait_block = refused ? wait_of_refusal(shard, refused) : 0;
    if (wait_block != 0)
        return wait_block;
    struct client *client = client_find(shard, &item->client);
    uint32_t count = 1u + item->more_count;
    if (!client) {
        counter_add(&shard->stats.acks_dropped, count);
        return 0;
    }
    CHECK(client->gate_held >= count);
    client->gate_held -= count;
    if (refused && client->version < MQTT_V5) {
        /* It cannot be told so, and an acknowledgement would say that the value is kept [MQTT-3.3.5-2 of 3.1.1]. */
        counter_add(&shard->stats.acks_dropped, count);
        client_close(shard, client, MQTT_REASON_SUCCESS, &shard->stats.closed_refused_publish);
        return 0;
    }
    struct gate_item sent = *item;
    if (refused)
        sent.reason = MQTT_REASON_QUOTA_EXCEEDED;
    counter_add(&shard->stats.acks_released, count);
    histogram_record_many(&shard->stats.gate_hold_ns, (uint64_t)(shard->now_mono_ns - item->since_mono_ns), count);
    for (; count > 0; count--, sent.packet_id++)
        client_send_answer(shard, client, &sent);
    return 0;
}

uint64_t gate_release_item(void *arg, const struct gate_item *item, struct span extra)
{
    struct shard *shard = arg;
    if (item->kind == GATE_ACK)
        return release_ack(shard, item);
    struct client *client = item->kind == GATE_DELIVERY ? NULL : client_find(shard, &item->client);
    switch ((enum gate_kind)item->kind) {
    case GATE_DELIVERY:
        delivery_give(shard, item->msg, extra);
        msg_unref(item->msg);
        return 0;
    case GATE_PACKET:
        if (client)
            client_send_bytes(shard, client, extra);
        return 0;
    case GATE_CONNACK:
        if (client)
            client_on_session_durable(shard, client, extra);
        return 0;
    case GATE_SEND:
        deliver_on_sent_durable(shard, &item->client, item->packet_id);
        return 0;
    case GATE_ACK:
        break;
    }
    UNREACHABLE();
}
