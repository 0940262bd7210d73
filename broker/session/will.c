#include "broker/session/will.h"

#include <stdlib.h>

#include "common/check.h"

static struct span append(uint8_t **at, struct span source)
{
    struct span copy = span_of(*at, source.size);
    if (source.size)
        memcpy(*at, source.data, source.size);
    *at += source.size;
    return copy;
}

struct will *will_new(const struct packet_connect *connect, struct span client_id, uint64_t publisher)
{
    CHECK(connect->has_will);
    const struct mqtt_properties *props = &connect->will_properties;
    struct span user_name = connect->has_user_name ? connect->user_name : (struct span){0, 0};
    size_t properties_size = properties_forwardable_size(props->raw);
    struct will *will =
        malloc(sizeof *will + connect->will_topic.size + properties_size + connect->will_payload.size + client_id.size + user_name.size);
    if (!will)
        return NULL;
    *will = (struct will){.publisher = publisher, .retain = connect->will_retain, .qos = connect->will_qos};
    uint8_t *at = will->bytes;
    will->topic = append(&at, connect->will_topic);
    will->properties = span_of(at, properties_forwardable_put(at, props->raw));
    at += will->properties.size;
    will->payload = append(&at, connect->will_payload);
    will->client_id = append(&at, client_id);
    will->user_name = append(&at, user_name);
    if (props->present & MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL))
        will->delay_s = props->will_delay_interval_s;
    if (props->present & MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL)) {
        will->has_expiry = true;
        will->expiry_interval_s = props->message_expiry_interval_s;
    }
    return will;
}

void will_free(struct will *will) { free(will); }
