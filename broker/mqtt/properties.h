/* MQTT 5 properties: a decoded view over an encoded block, and blocks made from values.
 *
 * Decoding validates the whole block: known identifiers, allowed in this packet from this sender, at most once unless repeatable, values in
 * range, strings well-formed. The result holds numbers and spans into the input and keeps the block itself: user properties and
 * subscription identifiers, of which there can be any number, are iterated from it. Nothing allocates.
 *
 * A struct is built for encoding by setting values with their bits:
 *   struct mqtt_properties props = {0};
 *   props.topic_alias_maximum = 10; props.present |= MQTT_PROPERTY_BIT(TOPIC_ALIAS_MAXIMUM);
 * and user properties by pointing `raw` at a block made with properties_put_user_property(). Clearing a bit takes the property away, user
 * properties (all of them) included. Fields whose bit is 0 are not initialised by the decoder.
 *
 * Forwarding a PUBLISH: when it enters, properties_forwardable_put() copies what goes along unaltered into the message (once); for each
 * recipient packet_publish_head_put() writes what is its own (remaining expiry, subscription identifiers, alias) and that copy after it.
 *
 * Thread: any. Pure. All spans are borrowed from the input. */
#ifndef TIDEGATE_BROKER_MQTT_PROPERTIES_H
#define TIDEGATE_BROKER_MQTT_PROPERTIES_H

#include "broker/mqtt/mqtt_spec.h"
#include "common/bytes.h"

struct mqtt_properties {
    uint64_t present; /* MQTT_PROPERTY_BIT(name) of each; the others' fields mean nothing */
    struct span raw;  /* the encoded block without its length: where user properties and subscription identifiers are read from */

    uint32_t user_property_count;           /* in raw; set by the decoder */
    uint32_t subscription_identifier_count; /* in raw; set by the decoder. An encoder given 0 or 1 writes subscription_identifier */

    uint32_t subscription_identifier;   /* 1..MQTT_VARINT_MAX; the first one when there are several */
    uint32_t message_expiry_interval_s; /* 0 is a legal value: expires at once unless delivered at once */
    uint32_t session_expiry_interval_s; /* UINT32_MAX: never */
    uint32_t will_delay_interval_s;
    uint32_t maximum_packet_size; /* bytes, not 0 */
    uint16_t server_keep_alive_s;
    uint16_t receive_maximum; /* not 0 */
    uint16_t topic_alias_maximum;
    uint16_t topic_alias;             /* not 0 */
    uint8_t payload_format_indicator; /* this one and those below: 0 or 1 */
    uint8_t request_problem_information;
    uint8_t request_response_information;
    uint8_t maximum_qos;
    uint8_t retain_available;
    uint8_t wildcard_subscription_available;
    uint8_t subscription_identifiers_available;
    uint8_t shared_subscription_available;
    struct span content_type; /* strings are valid UTF-8 without U+0000, at most 65,535 bytes */
    struct span response_topic;
    struct span correlation_data;
    struct span assigned_client_identifier;
    struct span authentication_method;
    struct span authentication_data;
    struct span response_information;
    struct span server_reference;
    struct span reason_string;
};

/* No properties at all. Cheaper than = {0}: touches only what says so. */
static inline void properties_init(struct mqtt_properties *props)
{
    props->present = 0;
    props->raw = (struct span){0, 0};
    props->user_property_count = 0;
    props->subscription_identifier_count = 0;
}

/* Read a property block with its length in front from [at, end).
 * used_out   bytes used, length included; set with MQTT_OK.
 * type       of the packet, or MQTT_WILL. */
struct mqtt_verdict properties_decode(struct mqtt_properties *out, size_t *used_out, enum mqtt_packet_type type, enum mqtt_sender sender,
                                      const uint8_t *at, const uint8_t *end);

/* Walk through a block. `rest` starts as props.raw and shrinks; returns false at the end. Only for blocks that were decoded (or made by
 * us). */
bool properties_next_user_property(struct span *rest, struct span *name_out, struct span *value_out);
bool properties_next_subscription_identifier(struct span *rest, uint32_t *identifier_out);

/* Exact size of the block without its length, and the block: what `present` names, in the order of identifiers, user properties last in
 * their own order. Whether the packet may carry them is the caller's knowledge. _put returns properties_size(). */
size_t properties_size(const struct mqtt_properties *props);
size_t properties_put(uint8_t *at, const struct mqtt_properties *props);

/* One user property in encoded form; strings <= 65,535 bytes. */
static inline size_t properties_user_property_size(struct span name, struct span value) { return 1 + 2 + name.size + 2 + value.size; }
size_t properties_put_user_property(uint8_t *at, struct span name, struct span value);

/* The part of a PUBLISH's (or a will's) block that goes along unaltered to every recipient: payload format indicator, content type,
 * response topic, correlation data, user properties, in the order received [MQTT-3.3.2-4] [MQTT-3.3.2-15 to -18] [MQTT-3.3.2-20]. Message
 * expiry, topic alias, subscription identifiers and will delay are left out. raw: a decoded block. _put returns the _size. */
size_t properties_forwardable_size(struct span raw);
size_t properties_forwardable_put(uint8_t *at, struct span raw);

/* A property block of an outgoing PUBLISH. */
struct properties_forward {
    struct span forwardable;                  /* from properties_forwardable_put(); copied as it is */
    bool has_message_expiry;                  /* [MQTT-3.3.2-6] */
    uint32_t message_expiry_interval_s;       /* what is left */
    uint16_t topic_alias;                     /* 0: none */
    const uint32_t *subscription_identifiers; /* of all matching subscriptions [MQTT-3.3.4-3, -4] */
    size_t subscription_identifier_count;
};

/* Exact size without the block's length, and the block without its length. The forwardable part comes last: it may as well be sent by
 * reference (own_size and own_put leave it out). */
size_t properties_forward_own_size(const struct properties_forward *forward);
size_t properties_forward_own_put(uint8_t *at, const struct properties_forward *forward);

#endif
