/* What clients of a shard_rig do in more than one test, and what the log has of them. */
#ifndef TIDEGATE_TESTS_LIB_RIG_CLIENTS_H
#define TIDEGATE_TESTS_LIB_RIG_CLIENTS_H

#include "broker/mqtt/packet.h"
#include "common/record.h"
#include "tests/lib/shard_rig.h"

/* With MQTT 5 and clean start, or a session that stays; CONNACK is taken. */
struct rig_client *v5(struct rig *rig, const char *id);
struct rig_client *v5_stay(struct rig *rig, const char *id);
/* A subscriber at a QoS; its session stays, or ends with its connection. */
struct rig_client *subscriber(struct rig *rig, const char *id, bool stays, const char *filter, uint8_t qos);
/* CONNECT of a session that is there, with MQTT 5; its CONNACK is left to be taken. */
struct rig_client *rejoin(struct rig *rig, const char *id);
/* The same, CONNACK taken: the session is still there. */
struct rig_client *come_back(struct rig *rig, const char *id);
void send_disconnect(struct rig_client *client, enum mqtt_reason reason);
/* DISCONNECT, and the connection is closed. */
void leave(struct rig *rig, struct rig_client *client);
/* A PUBLISH; spans borrowed from the strings. */
struct packet publish_packet(const char *topic, const char *payload, uint8_t qos, uint16_t packet_id);
/* CONNECT with MQTT 5 and the will "gone" on topic "w", QoS 1. */
struct packet will_packet(const char *id, uint32_t delay_s, uint32_t expiry_s);
#define SET(packet_part, name, field, value)                                                                                               \
    ((packet_part).properties.field = (value), (packet_part).properties.present |= MQTT_PROPERTY_BIT(name))

/* How many records of a type the log has; the last of them, and its sequence in the simulated log (NULL: nobody asks). */
size_t count_records(const struct rig *rig, enum record_type type);
size_t last_record(const struct rig *rig, struct record *last_out, uint64_t *sequence_out, enum record_type type);

#endif
