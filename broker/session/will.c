#include "broker/session/will.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/clock.h"

static struct span append(uint8_t **at, struct span source)
{
    struct span copy = span_of(*at, source.size);
    if (source.size)
        memcpy(*at, source.data, source.size);
    *at += source.size;
    return copy;
}

/* What a will is made of; spans borrowed. */
struct will_source {
    struct span topic, properties, payload, client_id, user_name;
    uint64_t publisher;
    uint8_t qos;
    bool retain;
};

/* Room for the properties, which the caller fills in. */
static struct will *make(const struct will_source *source, size_t properties_size)
{
    struct will *will = malloc(sizeof *will + source->topic.size + properties_size + source->payload.size + source->client_id.size +
                               source->user_name.size);
    if (!will)
        return NULL;
    *will = (struct will){.publisher = source->publisher, .logged_as = source->publisher, .retain = source->retain, .qos = source->qos};
    uint8_t *at = will->bytes;
    will->topic = append(&at, source->topic);
    will->properties = span_of(at, properties_size);
    at += properties_size;
    will->payload = append(&at, source->payload);
    will->client_id = append(&at, source->client_id);
    will->user_name = append(&at, source->user_name);
    return will;
}

struct will *will_new(const struct packet_connect *connect, struct span client_id, uint64_t publisher)
{
    CHECK(connect->has_will);
    const struct mqtt_properties *props = &connect->will_properties;
    struct will_source source = {
        .topic = connect->will_topic,
        .payload = connect->will_payload,
        .client_id = client_id,
        .user_name = connect->has_user_name ? connect->user_name : (struct span){0, 0},
        .publisher = publisher,
        .qos = connect->will_qos,
        .retain = connect->will_retain,
    };
    struct will *will = make(&source, properties_forwardable_size(props->raw));
    if (!will)
        return NULL;
    properties_forwardable_put(will->bytes + will->topic.size, props->raw);
    if (props->present & MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL))
        will->delay_s = props->will_delay_interval_s;
    if (props->present & MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL)) {
        will->has_expiry = true;
        will->expiry_interval_s = props->message_expiry_interval_s;
    }
    return will;
}

struct will *will_restore(const struct record *rec, struct span client_id, uint64_t number)
{
    struct will_source source = {
        .topic = rec->topic,
        .payload = rec->payload,
        .client_id = rec->client_id.size > 0 ? rec->client_id : client_id,
        .user_name = rec->user_name,
        .publisher = rec->will_session != 0 ? rec->will_session : number,
        .qos = rec->qos,
        .retain = rec->retain,
    };
    struct will *will = make(&source, rec->properties.size);
    if (!will)
        return NULL;
    if (rec->properties.size)
        memcpy(will->bytes + will->topic.size, rec->properties.data, rec->properties.size);
    will->logged_as = number;
    will->delay_s = (uint32_t)(rec->options & RECORD_WILL_DELAY_MASK);
    will->has_expiry = (rec->options & RECORD_WILL_HAS_EXPIRY) != 0;
    int64_t expiry_s = rec->expiry_ns / NS_PER_S;
    will->expiry_interval_s = expiry_s < 0 ? 0 : expiry_s > UINT32_MAX ? UINT32_MAX : (uint32_t)expiry_s;
    return will;
}

void will_free(struct will *will) { free(will); }
