/* The vocabulary of MQTT: versions, packet types, properties, reason codes, verdicts; generated from mqtt_spec.def.
 *
 * Everything that reads or writes packets speaks these enums; numbers are the ones on the wire. Reason codes are MQTT 5's in the whole
 * program, whatever the client speaks; only the encoder translates them to 3.1 and 3.1.1. Thread: any. Pure. */
#ifndef TIDEGATE_BROKER_MQTT_MQTT_SPEC_H
#define TIDEGATE_BROKER_MQTT_MQTT_SPEC_H

#include <stdbool.h>
#include <stdint.h>

/* Protocol level as in CONNECT. */
enum mqtt_version {
    MQTT_V31 = 3,
    MQTT_V311 = 4,
    MQTT_V5 = 5,
};

/* Who sent a packet: decides which packets, properties and reason codes are acceptable. A broker decodes MQTT_FROM_CLIENT. */
enum mqtt_sender {
    MQTT_FROM_CLIENT,
    MQTT_FROM_SERVER,
};

/* Type as in the first byte's upper half. MQTT_WILL is the pseudo packet for the will's properties inside CONNECT. */
enum mqtt_packet_type {
    MQTT_WILL = 0,
#define MQTT_PACKET(name, type, flags, mask_v31, mask, version_first, senders) MQTT_##name = (type),
#include "broker/mqtt/mqtt_spec.def"
};

enum mqtt_property {
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable) MQTT_PROPERTY_##name = (id),
#include "broker/mqtt/mqtt_spec.def"
};

/* Presence of a property in struct mqtt_properties.present. */
#define MQTT_PROPERTY_BIT(name) (UINT64_C(1) << MQTT_PROPERTY_##name)

enum mqtt_reason {
#define MQTT_REASON(name, code, text, from_client, from_server) MQTT_REASON_##name = (code),
#include "broker/mqtt/mqtt_spec.def"
};

/* Judgement on a peer's bytes. */
enum mqtt_judgement {
    MQTT_OK,
    MQTT_BAD, /* close; a v5 peer may be told `reason` first */
};

struct mqtt_verdict {
    enum mqtt_judgement judgement;
    enum mqtt_reason reason; /* valid when MQTT_BAD */
    const char *text;        /* static; what was wrong and the statement broken: "PUBLISH: QoS 3 [MQTT-3.3.1-4]"; NULL when MQTT_OK */
};

static inline struct mqtt_verdict mqtt_ok(void) { return (struct mqtt_verdict){MQTT_OK, MQTT_REASON_SUCCESS, 0}; }
static inline struct mqtt_verdict mqtt_bad(enum mqtt_reason reason, const char *text)
{
    return (struct mqtt_verdict){MQTT_BAD, reason, text};
}

/* What the tables say about one packet type. */
struct mqtt_packet_spec {
    const char *name; /* "PUBLISH" */
    uint8_t flags;
    uint8_t mask_v31;
    uint8_t mask;
    uint8_t version_first;
    bool from_client;
    bool from_server;
};

/* type 1..15 as in the first byte's upper half; NULL for 0 and above 15. */
const struct mqtt_packet_spec *mqtt_packet_spec(unsigned type);

/* "PUBLISH"; "reserved" for what is none. Static. */
const char *mqtt_packet_name(unsigned type);

/* "TOPIC_ALIAS"; "unknown" for what is none. Static. */
const char *mqtt_property_name(unsigned id);

/* The name that a reason code has in a packet ("Granted QoS 0" or "Success" for 0x00), "unknown" where it has none. Static. */
const char *mqtt_reason_name(enum mqtt_packet_type type, unsigned code);

/* Whether `sender` may put `code` into a packet of this type [MQTT-3.4.2-1] [MQTT-3.14.2-1] and their like. */
bool mqtt_reason_is_allowed(enum mqtt_packet_type type, enum mqtt_sender sender, unsigned code);

#endif
