#include "tests/lib/rig_expect.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

const struct packet *expect(struct rig_client *client, enum mqtt_packet_type type)
{
    const struct packet *packet = rig_next(client);
    if (!packet)
        fail_msg("expected %s, nothing came", mqtt_packet_name(type));
    if (packet->type != type)
        fail_msg("expected %s, got %s", mqtt_packet_name(type), mqtt_packet_name(packet->type));
    return packet;
}

void expect_nothing(struct rig_client *client)
{
    const struct packet *packet = rig_next(client);
    if (packet)
        fail_msg("expected nothing, got %s", mqtt_packet_name(packet->type));
}

void expect_ack(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id, unsigned reason)
{
    const struct packet *packet = expect(client, type);
    assert_int_equal(packet->ack.packet_id, packet_id);
    assert_int_equal(packet->ack.reason, reason);
}
