/* Packets as values: decode bytes into spans, encode values into bytes, for MQTT 3.1, 3.1.1 and 5, both directions.
 *
 * A decoded packet borrows from the bytes it was read from and owns nothing. Decoding checks everything that can be said of one packet
 * without knowing the session; what needs state (aliases, identifiers in use, quotas, order of packets) is the session's. The verdict
 * carries MQTT 5's reason code and a static text that names the broken statement.
 *
 * Reason codes are MQTT 5's for every version: the encoder turns a CONNACK's into a return code of 3.1 / 3.1.1 (and encodes nothing where
 * none fits [MQTT-3.2.2-6 of 3.1.1]), a SUBACK's above 2 into 0x80, and leaves out what the older versions do not have.
 *
 * Every string that arrives is valid UTF-8 without U+0000; every topic a valid topic name; every filter a valid filter.
 *
 * Encoding goes by size first: packet_encode_size() says exactly how much, or 0 when it cannot be sent within the peer's Maximum Packet
 * Size. uint32_t size = packet_encode_size(&packet, version, size_max); if (size != 0) packet_encode(room, &packet, version, size_max);
 *
 * Thread: any. Pure. Does not allocate. */
#ifndef TIDEGATE_BROKER_MQTT_PACKET_H
#define TIDEGATE_BROKER_MQTT_PACKET_H

#include "broker/mqtt/frame.h"
#include "broker/mqtt/mqtt_spec.h"
#include "broker/mqtt/properties.h"
#include "broker/mqtt/topic.h"
#include "common/bytes.h"

/* Shape of the properties members: always initialised; empty below MQTT 5. */

struct packet_connect {
    enum mqtt_version version; /* set also when the CONNECT is MQTT_BAD: the version whose form the refusing CONNACK has */
    bool clean_start;          /* clean session below 5 */
    bool has_will;
    bool has_user_name;
    bool has_password;
    bool will_retain;
    uint8_t will_qos;      /* 0..2 */
    uint16_t keep_alive_s; /* 0: none */
    struct span client_id; /* may be empty: whether that is accepted is the session's decision */
    struct span user_name;
    struct span password; /* binary */
    struct span will_topic;
    struct span will_payload; /* <= 65,535 bytes */
    struct mqtt_properties properties;
    struct mqtt_properties will_properties;
};

struct packet_connack {
    bool session_present; /* not in 3.1 */
    enum mqtt_reason reason;
    struct mqtt_properties properties;
};

struct packet_publish {
    bool dup;
    bool retain;
    uint8_t qos;        /* 0..2 */
    uint16_t packet_id; /* not 0 with QoS > 0, 0 with QoS 0 */
    struct span topic;  /* empty only in MQTT 5 with a topic alias */
    struct span payload;
    struct mqtt_properties properties;
};

/* PUBACK, PUBREC, PUBREL, PUBCOMP. */
struct packet_ack {
    uint16_t packet_id; /* not 0 */
    enum mqtt_reason reason;
    struct mqtt_properties properties;
};

struct packet_subscribe {
    uint16_t packet_id;
    uint32_t filter_count; /* >= 1 */
    struct span filters;   /* encoded; see packet_subscribe_next() */
    struct mqtt_properties properties;
};

struct packet_unsubscribe {
    uint16_t packet_id;
    uint32_t filter_count; /* >= 1 */
    struct span filters;   /* encoded; see packet_unsubscribe_next() */
    struct mqtt_properties properties;
};

/* SUBACK, UNSUBACK. */
struct packet_suback {
    uint16_t packet_id;
    struct span codes; /* one reason code a filter; empty in UNSUBACK below 5. Encoding below 5: a SUBACK's codes >= 0x80 become 0x80 */
    struct mqtt_properties properties;
};

struct packet_disconnect {
    enum mqtt_reason reason;
    struct mqtt_properties properties;
};

struct packet_auth {
    enum mqtt_reason reason;
    struct mqtt_properties properties;
};

struct packet {
    enum mqtt_packet_type type;
    union { /* PINGREQ and PINGRESP have nothing */
        struct packet_connect connect;
        struct packet_connack connack;
        struct packet_publish publish;
        struct packet_ack ack;
        struct packet_subscribe subscribe;
        struct packet_suback suback;
        struct packet_unsubscribe unsubscribe;
        struct packet_disconnect disconnect;
        struct packet_auth auth;
    };
};

/* Decode one complete packet.
 * out      spans into `data`; valid with MQTT_OK (connect.version also with MQTT_BAD). Large and not cleared: read only what is said above.
 * version  of the connection; ignored for CONNECT, which names its own.
 * sender   who sent it: a packet, property or reason code that this side may not send is MQTT_BAD.
 * frame    from frame_parse() with FRAME_OK.
 * data     the packet from its first byte, frame->size bytes; borrowed, not written. */
struct mqtt_verdict packet_decode(struct packet *out, enum mqtt_version version, enum mqtt_sender sender, const struct frame *frame,
                                  const uint8_t *data);

/* Find the client id in a complete CONNECT without judging the rest: which shard is its home? Returns false when the packet is not a
 * CONNECT that gets as far (packet_decode() says why). client_id_out may be empty, and is not checked for UTF-8. */
bool packet_peek_client_id(struct span *client_id_out, const struct frame *frame, const uint8_t *data);

/* One subscription of a SUBSCRIBE. */
struct packet_subscription {
    struct span text; /* the filter as sent, $share/NAME/ included */
    struct topic_filter filter;
    uint8_t options; /* the byte as sent */
    uint8_t qos;     /* 0..2 */
    bool no_local;   /* these three: 0 below MQTT 5 */
    bool retain_as_published;
    uint8_t retain_handling; /* 0 send retained, 1 only for a new subscription, 2 never */
};

/* Walk through the filters. `rest` starts as packet.subscribe.filters (of a packet that was decoded MQTT_OK); returns false at the end. */
bool packet_subscribe_next(struct span *rest, struct packet_subscription *out);
bool packet_unsubscribe_next(struct span *rest, struct span *filter_out);

/* Make the payload of SUBSCRIBE / UNSUBSCRIBE: one filter (and its options byte) at `at`; returns the bytes written, 2 + filter.size (+ 1).
 */
size_t packet_put_subscription(uint8_t *at, struct span filter, uint8_t options);
size_t packet_put_unsubscription(uint8_t *at, struct span filter);

/* Exact size of the encoded packet, header included.
 * packet_size_max  what the peer accepts (its Maximum Packet Size; UINT32_MAX for no limit). If the packet does not fit, user properties
 * are left out, then the reason string (everywhere but in PUBLISH, CONNECT, SUBSCRIBE and UNSUBSCRIBE): [MQTT-3.2.2-19, -20],
 *                  [MQTT-3.4.2-2, -3] and their like in every other packet.
 * Returns 0 when it still does not fit, or when the version has no such packet (AUTH below 5; a CONNACK whose reason has no return code).
 */
uint32_t packet_encode_size(const struct packet *packet, enum mqtt_version version, uint32_t packet_size_max);

/* Encode it into `at` (room for what packet_encode_size() said of the same arguments). Returns that size. For CONNECT, version is
 * packet->connect.version and the argument is ignored. Values that no decoder would accept are the caller's bug. */
uint32_t packet_encode(uint8_t *at, const struct packet *packet, enum mqtt_version version, uint32_t packet_size_max);

/* The return code of 3.1 / 3.1.1 for a reason (0..5), or -1 where none fits: close without CONNACK. */
int packet_connack_return_code(enum mqtt_reason reason);

/* Size of a PUBACK, PUBREC, PUBREL or PUBCOMP without properties, and such a packet: at most PACKET_ACK_SIZE_MAX bytes. The hot path of
 * answers. Below MQTT 5 the reason is left out. Returns the size. */
#define PACKET_ACK_SIZE_MAX 5
size_t packet_put_ack(uint8_t *at, enum mqtt_packet_type type, enum mqtt_version version, uint16_t packet_id, enum mqtt_reason reason);

/* The head of an outgoing PUBLISH: everything before the payload, so that the payload goes by reference. topic and forward.forwardable are
 * shared bytes of the message and are copied into the head; the rest differs for each recipient. */
struct packet_publish_head {
    bool dup;
    bool retain;
    uint8_t qos;
    uint16_t packet_id; /* not written with QoS 0 */
    uint32_t payload_size;
    struct span topic;                 /* empty with an alias that the peer knows already */
    struct properties_forward forward; /* ignored below MQTT 5 */
};

/* Sizes of both. Returns head_size; packet_size_out (may be NULL) gets head + payload, what Maximum Packet Size counts. Returns 0 when the
 * packet would be larger than the format allows. */
size_t packet_publish_head_size(const struct packet_publish_head *head, enum mqtt_version version, uint32_t *packet_size_out);

/* Write the head; at has room for packet_publish_head_size(). Returns the bytes written. */
size_t packet_publish_head_put(uint8_t *at, const struct packet_publish_head *head, enum mqtt_version version);

#endif
