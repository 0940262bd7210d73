#include "broker/mqtt/mqtt_spec.h"

#include <stddef.h>

enum {
    SENT_BY_C = 1,
    SENT_BY_S = 2,
    SENT_BY_CS = 3,
};

static const struct mqtt_packet_spec packet_specs[16] = {
#define MQTT_PACKET(name, type, flags, mask_v31, mask, version_first, senders)                                                             \
    [type] = {#name, flags, mask_v31, mask, version_first, (SENT_BY_##senders & SENT_BY_C) != 0, (SENT_BY_##senders & SENT_BY_S) != 0},
#include "broker/mqtt/mqtt_spec.def"
};

struct reason_row {
    uint8_t code;
    uint16_t from[2]; /* sets of packets, by enum mqtt_sender */
    const char *text;
};

#define NONE 0
#define IN(packet) (1u << MQTT_##packet)
static const struct reason_row reason_rows[] = {
#define MQTT_REASON(name, code, text, from_client, from_server) {code, {from_client, from_server}, text},
#include "broker/mqtt/mqtt_spec.def"
};
#undef IN
#undef NONE

const struct mqtt_packet_spec *mqtt_packet_spec(unsigned type) { return type >= 1 && type <= 15 ? &packet_specs[type] : NULL; }

const char *mqtt_packet_name(unsigned type) { return type >= 1 && type <= 15 ? packet_specs[type].name : "reserved"; }

const char *mqtt_property_name(unsigned id)
{
    switch (id) {
#define MQTT_PROPERTY(name, id, kind, field, rule, from_client, from_server, repeatable)                                                   \
    case id:                                                                                                                               \
        return #name;
#include "broker/mqtt/mqtt_spec.def"
    default:
        return "unknown";
    }
}

static const struct reason_row *find_reason(unsigned code, unsigned senders, enum mqtt_packet_type type)
{
    for (size_t i = 0; i < sizeof reason_rows / sizeof reason_rows[0]; i++) {
        const struct reason_row *row = &reason_rows[i];
        unsigned set = ((senders & 1) ? row->from[MQTT_FROM_CLIENT] : 0) | ((senders & 2) ? row->from[MQTT_FROM_SERVER] : 0);
        if (row->code == code && (set >> type & 1))
            return row;
    }
    return NULL;
}

const char *mqtt_reason_name(enum mqtt_packet_type type, unsigned code)
{
    const struct reason_row *row = find_reason(code, 3, type);
    return row ? row->text : "unknown";
}

bool mqtt_reason_is_allowed(enum mqtt_packet_type type, enum mqtt_sender sender, unsigned code)
{
    return find_reason(code, 1u << sender, type) != NULL;
}
