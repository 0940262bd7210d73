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

void expect_connack(struct rig_client *client, bool session_present, unsigned reason)
{
    const struct packet *packet = expect(client, MQTT_CONNACK);
    assert_int_equal(packet->connack.reason, reason);
    assert_int_equal(packet->connack.session_present, session_present);
}

void expect_suback(struct rig_client *client, uint16_t packet_id, unsigned code)
{
    const struct packet *packet = expect(client, MQTT_SUBACK);
    assert_int_equal(packet->suback.packet_id, packet_id);
    assert_int_equal(packet->suback.codes.size, 1);
    assert_int_equal(packet->suback.codes.data[0], code);
}

void expect_disconnect(struct rig_client *client, unsigned reason)
{
    const struct packet *packet = expect(client, MQTT_DISCONNECT);
    assert_int_equal(packet->disconnect.reason, reason);
    assert_true(rig_is_closed(client));
    expect_nothing(client);
}

void expect_text(struct span text, const char *wanted)
{
    if (!span_equal(text, span_of_string(wanted)))
        fail_msg("\"%.*s\" is not \"%s\"", (int)text.size, (const char *)text.data, wanted);
}

const struct packet_publish *expect_payload(struct rig_client *client, const char *payload)
{
    const struct packet *packet = expect(client, MQTT_PUBLISH);
    expect_text(packet->publish.payload, payload);
    return &packet->publish;
}

const struct packet_publish *expect_payload_at(struct rig_client *client, const char *payload, uint8_t qos)
{
    const struct packet_publish *publish = expect_payload(client, payload);
    assert_int_equal(publish->qos, qos);
    return publish;
}

const struct packet_publish *expect_publish(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, unsigned flags)
{
    const struct packet_publish *publish = expect_payload_at(client, payload, qos);
    expect_text(publish->topic, topic);
    assert_int_equal(publish->retain, (flags & RETAIN) != 0);
    assert_int_equal(publish->dup, (flags & DUP) != 0);
    return publish;
}
