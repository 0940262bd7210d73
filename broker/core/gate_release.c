#include "broker/core/gate_release.h"

#include "broker/core/client_state.h"
#include "broker/core/connect.h"
#include "broker/core/deliver.h"
#include "broker/core/delivery.h"
#include "broker/core/shard_state.h"
#include "common/check.h"

static void release_ack(struct shard *shard, const struct gate_item *item)
{
    struct client *client = client_find(shard, &item->client);
    uint32_t count = 1u + item->more_count;
    if (!client) {
        counter_add(&shard->stats.acks_dropped, count);
        return;
    }
    CHECK(client->gate_held >= count);
    client->gate_held -= count;
    struct gate_item sent = *item;
    counter_add(&shard->stats.acks_released, count);
    histogram_record_many(&shard->stats.gate_hold_ns, (uint64_t)(shard->now_mono_ns - item->since_mono_ns), count);
    for (; count > 0; count--, sent.packet_id++)
        client_send_answer(shard, client, &sent);
}

void gate_release_item(void *arg, const struct gate_item *item, struct span extra)
{
    struct shard *shard = arg;
    if (item->kind == GATE_ACK) {
        release_ack(shard, item);
        return;
    }
    struct client *client = item->kind == GATE_DELIVERY ? NULL : client_find(shard, &item->client);
    switch ((enum gate_kind)item->kind) {
    case GATE_DELIVERY:
        delivery_give(shard, item->msg, extra);
        msg_unref(item->msg);
        return;
    case GATE_PACKET:
        if (client)
            client_send_bytes(shard, client, extra);
        return;
    case GATE_CONNACK:
        if (client)
            connect_on_durable(shard, client, extra);
        return;
    case GATE_SEND:
        deliver_on_sent_durable(shard, &item->client, item->packet_id);
        return;
    case GATE_ACK:
        break;
    }
    UNREACHABLE();
}
