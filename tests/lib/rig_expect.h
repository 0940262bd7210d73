/* What a client of a shard_rig must have got next; a cmocka test that finds something else fails there, and the message says what came. */
#ifndef TIDEGATE_TESTS_LIB_RIG_EXPECT_H
#define TIDEGATE_TESTS_LIB_RIG_EXPECT_H

#include "broker/mqtt/packet.h"
#include "tests/lib/shard_rig.h"

/* The next packet, of this type. Borrowed as rig_next() says. */
const struct packet *expect(struct rig_client *client, enum mqtt_packet_type type);
void expect_nothing(struct rig_client *client);
void expect_connack(struct rig_client *client, bool session_present, unsigned reason);
/* Of one filter. */
void expect_suback(struct rig_client *client, uint16_t packet_id, unsigned code);
/* The last packet [MQTT-3.14.4-1], and the connection is closed. */
void expect_disconnect(struct rig_client *client, unsigned reason);
/* A PUBLISH with this payload; returned for more questions. */
const struct packet_publish *expect_payload(struct rig_client *client, const char *payload);
const struct packet_publish *expect_payload_at(struct rig_client *client, const char *payload, uint8_t qos);
#define RETAIN 1
#define DUP 2
/* flags: RETAIN | DUP, the others are not set. */
const struct packet_publish *expect_publish(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, unsigned flags);
/* PUBACK, PUBREC, PUBREL or PUBCOMP. */
void expect_ack(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id, unsigned reason);
void expect_text(struct span text, const char *wanted);

#endif
