/* Do two packets say the same? Compares values, not where they point. Returns NULL, or the name of the first part that differs. For tests
 * and fuzzing; header only, because fuzz targets link no test library. Thread: any. */
#ifndef TIDEGATE_TESTS_LIB_PACKET_EQUAL_H
#define TIDEGATE_TESTS_LIB_PACKET_EQUAL_H

#include "broker/mqtt/packet.h"

#define PACKET_EQUAL_FIELD(a, b, field)                                                                                                    \
    if ((a)->field != (b)->field)                                                                                                          \
        return #field;
#define PACKET_EQUAL_SPAN(a, b, field)                                                                                                     \
    if (!span_equal((a)->field, (b)->field))                                                                                               \
        return #field;

static inline const char *properties_differ(const struct mqtt_properties *a, const struct mqtt_properties *b)
{
    PACKET_EQUAL_FIELD(a, b, present)
    PACKET_EQUAL_FIELD(a, b, user_property_count)
    PACKET_EQUAL_FIELD(a, b, subscription_identifier_count)
#define DIFFER_BYTE(field) PACKET_EQUAL_FIELD(a, b, field)
#define DIFFER_U16(field) PACKET_EQUAL_FIELD(a, b, field)
#define DIFFER_U32(field) PACKET_EQUAL_FIELD(a, b, field)
#define DIFFER_VARINT(field) PACKET_EQUAL_FIELD(a, b, field)
#define DIFFER_STRING(field) PACKET_EQUAL_SPAN(a, b, field)
#define DIFFER_BINARY(field) PACKET_EQUAL_SPAN(a, b, field)
#define DIFFER_PAIR(field) PACKET_EQUAL_FIELD(a, b, field)
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable)                                                   \
    if (a->present & MQTT_PROPERTY_BIT(name)) {                                                                                            \
        DIFFER_##kind(field)                                                                                                               \
    }
#include "broker/mqtt/mqtt_spec.def"
    struct span rest_a = a->raw;
    struct span rest_b = b->raw;
    for (uint32_t i = 0; i < a->user_property_count; i++) {
        struct span name_a, value_a, name_b, value_b;
        if (!properties_next_user_property(&rest_a, &name_a, &value_a) || !properties_next_user_property(&rest_b, &name_b, &value_b))
            return "user property missing";
        if (!span_equal(name_a, name_b) || !span_equal(value_a, value_b))
            return "user property";
    }
    rest_a = a->raw;
    rest_b = b->raw;
    for (uint32_t i = 0; i < a->subscription_identifier_count; i++) {
        uint32_t id_a, id_b;
        if (!properties_next_subscription_identifier(&rest_a, &id_a) || !properties_next_subscription_identifier(&rest_b, &id_b))
            return "subscription identifier missing";
        if (id_a != id_b)
            return "subscription identifier";
    }
    return NULL;
}

static inline const char *connect_differ(const struct packet_connect *a, const struct packet_connect *b)
{
    PACKET_EQUAL_FIELD(a, b, version)
    PACKET_EQUAL_FIELD(a, b, clean_start)
    PACKET_EQUAL_FIELD(a, b, has_will)
    PACKET_EQUAL_FIELD(a, b, has_user_name)
    PACKET_EQUAL_FIELD(a, b, has_password)
    PACKET_EQUAL_FIELD(a, b, will_retain)
    PACKET_EQUAL_FIELD(a, b, will_qos)
    PACKET_EQUAL_FIELD(a, b, keep_alive_s)
    PACKET_EQUAL_SPAN(a, b, client_id)
    PACKET_EQUAL_SPAN(a, b, user_name)
    PACKET_EQUAL_SPAN(a, b, password)
    PACKET_EQUAL_SPAN(a, b, will_topic)
    PACKET_EQUAL_SPAN(a, b, will_payload)
    const char *differ = properties_differ(&a->properties, &b->properties);
    return differ || !a->has_will ? differ : properties_differ(&a->will_properties, &b->will_properties);
}

static inline const char *publish_differ(const struct packet_publish *a, const struct packet_publish *b)
{
    PACKET_EQUAL_FIELD(a, b, dup)
    PACKET_EQUAL_FIELD(a, b, retain)
    PACKET_EQUAL_FIELD(a, b, qos)
    PACKET_EQUAL_FIELD(a, b, packet_id)
    PACKET_EQUAL_SPAN(a, b, topic)
    PACKET_EQUAL_SPAN(a, b, payload)
    return properties_differ(&a->properties, &b->properties);
}

static inline const char *packet_differ(const struct packet *a, const struct packet *b)
{
    PACKET_EQUAL_FIELD(a, b, type)
    switch (a->type) {
    case MQTT_CONNECT:
        return connect_differ(&a->connect, &b->connect);
    case MQTT_CONNACK:
        PACKET_EQUAL_FIELD(a, b, connack.session_present)
        PACKET_EQUAL_FIELD(a, b, connack.reason)
        return properties_differ(&a->connack.properties, &b->connack.properties);
    case MQTT_PUBLISH:
        return publish_differ(&a->publish, &b->publish);
    case MQTT_PUBACK:
    case MQTT_PUBREC:
    case MQTT_PUBREL:
    case MQTT_PUBCOMP:
        PACKET_EQUAL_FIELD(a, b, ack.packet_id)
        PACKET_EQUAL_FIELD(a, b, ack.reason)
        return properties_differ(&a->ack.properties, &b->ack.properties);
    case MQTT_SUBSCRIBE:
        PACKET_EQUAL_FIELD(a, b, subscribe.packet_id)
        PACKET_EQUAL_FIELD(a, b, subscribe.filter_count)
        PACKET_EQUAL_SPAN(a, b, subscribe.filters)
        return properties_differ(&a->subscribe.properties, &b->subscribe.properties);
    case MQTT_UNSUBSCRIBE:
        PACKET_EQUAL_FIELD(a, b, unsubscribe.packet_id)
        PACKET_EQUAL_FIELD(a, b, unsubscribe.filter_count)
        PACKET_EQUAL_SPAN(a, b, unsubscribe.filters)
        return properties_differ(&a->unsubscribe.properties, &b->unsubscribe.properties);
    case MQTT_SUBACK:
    case MQTT_UNSUBACK:
        PACKET_EQUAL_FIELD(a, b, suback.packet_id)
        PACKET_EQUAL_SPAN(a, b, suback.codes)
        return properties_differ(&a->suback.properties, &b->suback.properties);
    case MQTT_DISCONNECT:
        PACKET_EQUAL_FIELD(a, b, disconnect.reason)
        return properties_differ(&a->disconnect.properties, &b->disconnect.properties);
    case MQTT_AUTH:
        PACKET_EQUAL_FIELD(a, b, auth.reason)
        return properties_differ(&a->auth.properties, &b->auth.properties);
    case MQTT_PINGREQ:
    case MQTT_PINGRESP:
    case MQTT_WILL:
        break;
    }
    return NULL;
}

#endif
