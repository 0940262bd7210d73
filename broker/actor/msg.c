#include "broker/actor/msg.h"

#include <stdlib.h>

#include "common/check.h"

struct msg *msg_new(const struct msg_source *source)
{
    struct msg *msg = malloc(sizeof *msg + source->topic.size + source->properties.size + source->payload.size);
    if (!msg)
        return NULL;
    *msg = (struct msg){
        .topic_size = (uint32_t)source->topic.size,
        .properties_size = (uint32_t)source->properties.size,
        .payload_size = (uint32_t)source->payload.size,
        .qos = source->qos,
        .retain = source->retain,
        .publisher = source->publisher,
        .receive_wall_ns = source->receive_wall_ns,
        .receive_steady_s = source->receive_steady_s,
        .expiry_wall_ns = source->expiry_wall_ns,
    };
    atomic_init(&msg->refs, 1);
    uint8_t *at = msg->bytes;
    memcpy(at, source->topic.data, source->topic.size);
    at += source->topic.size;
    if (source->properties.size)
        memcpy(at, source->properties.data, source->properties.size);
    at += source->properties.size;
    if (source->payload.size)
        memcpy(at, source->payload.data, source->payload.size);
    return msg;
}

struct msg *msg_copy_retained(const struct msg *msg)
{
    struct msg_source source = {
        .topic = msg_topic(msg),
        .properties = msg_properties(msg),
        .payload = msg_payload(msg),
        .qos = msg->qos,
        .retain = true,
        .publisher = msg->publisher,
        .receive_wall_ns = msg->receive_wall_ns,
        .expiry_wall_ns = msg->expiry_wall_ns,
    };
    struct msg *copy = msg_new(&source);
    if (!copy)
        return NULL;
    copy->retained_number = msg->retained_number;
    memcpy(copy->correlation_id, msg->correlation_id, sizeof copy->correlation_id);
    return copy;
}

struct msg *msg_ref(struct msg *msg)
{
    uint32_t before = atomic_fetch_add_explicit(&msg->refs, 1, memory_order_relaxed);
    CHECK(before > 0);
    return msg;
}

void msg_unref(struct msg *msg)
{
    if (!msg)
        return;
    uint32_t before = atomic_fetch_sub_explicit(&msg->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before == 1)
        free(msg);
}
