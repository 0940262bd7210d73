/* What a client of a shard_rig must have got next; a cmocka test that finds something else fails there, and the message says what came. */
#ifndef TIDEGATE_TESTS_LIB_RIG_EXPECT_H
#define TIDEGATE_TESTS_LIB_RIG_EXPECT_H

#include "broker/mqtt/packet.h"
#include "tests/lib/shard_rig.h"

/* The next packet, of this type. Borrowed as rig_next() says. */
const struct packet *expect(struct rig_client *client, enum mqtt_packet_type type);
void expect_nothing(struct rig_client *client);
/* PUBACK, PUBREC, PUBREL or PUBCOMP. */
void expect_ack(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id, unsigned reason);

#endif
