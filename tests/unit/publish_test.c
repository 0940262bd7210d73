/* What publishers send, and what they are answered: QoS 1 and 2, receive maximum, aliases, limits, malformed packets. Scenarios named
 * by the MQTT statements they would break with, each with one shard, with three, and with three shards whose messages to each other
 * come in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static void publish_is_answered_by_qos(void **state) /* 3.3.4-1, 2.2.1-5 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "#", 2);
    rig_publish(client, "x", "0", 0, 0);
    rig_publish(client, "x", "1", 1, 11);
    rig_publish(client, "x", "2", 2, 12);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 11, 0);
    expect_ack(client, MQTT_PUBREC, 12, 0);
    expect_publish(other, "x", "0", 0, 0);
    expect_publish(other, "x", "1", 1, 0);
    expect_publish(other, "x", "2", 2, 0);
    rig_send_ack(client, MQTT_PUBREL, 12);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBCOMP, 12, 0); /* 4.3.3-11 */
    expect_nothing(client);
    rig_free(rig);
}

static void no_subscriber_is_said(void **state) /* 0x10 only when nobody and no rule wanted it */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a");
    rig_publish(client, "nobody", "1", 1, 1);
    rig_publish(client, "t/car/x", "1", 1, 2);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0x10);
    expect_ack(client, MQTT_PUBACK, 2, 0);
    rig_free(rig);
}

static void qos2_is_delivered_once(void **state) /* 4.3.3-10, 4.3.3-12 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5_stay(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "#", 0);
    struct packet packet = publish_packet("x", "once", 2, 5);
    rig_send(client, &packet);
    rig_send(client, &packet); /* without DUP: the identifier decides */
    packet.publish.dup = true;
    rig_send(client, &packet);
    rig_settle(rig);
    for (int i = 0; i < 3; i++)
        expect_ack(client, MQTT_PUBREC, 5, 0);
    expect_publish(other, "x", "once", 0, 0);
    expect_nothing(other);
    rig_break(client);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("a", MQTT_V5, false);
    client = rig_connect_with(rig, &connect); /* also after a reconnect */
    expect_connack(client, true, 0);
    rig_send(client, &packet);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBREC, 5, 0);
    expect_nothing(other);
    rig_send_ack(client, MQTT_PUBREL, 5);
    rig_send(client, &packet); /* after PUBREL: a new message */
    rig_settle(rig);
    expect_ack(client, MQTT_PUBCOMP, 5, 0);
    expect_ack(client, MQTT_PUBREC, 5, 0);
    expect_publish(other, "x", "once", 0, 0); /* outgoing DUP is its own: 3.3.1-3 */
    rig_free(rig);
}

static void qos1_with_the_same_identifier_is_new(void **state) /* 4.3.2-5 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "#", 0);
    rig_publish(client, "x", "1", 1, 5);
    rig_publish(client, "x", "2", 1, 5);
    rig_settle(rig);
    expect_publish(other, "x", "1", 0, 0);
    expect_publish(other, "x", "2", 0, 0);
    rig_free(rig);
}

static void unknown_pubrel_is_answered(void **state) /* 3.7.2-1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *old = rig_connect(rig, "b", MQTT_V311, true);
    rig_send_ack(client, MQTT_PUBREL, 9);
    rig_send_ack(old, MQTT_PUBREL, 9);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBCOMP, 9, 0x92);
    expect_ack(old, MQTT_PUBCOMP, 9, 0);
    rig_free(rig);
}

static void server_receive_maximum_is_enforced(void **state) /* 3.3.4-7 */
{
    struct rig *rig = RIG(.listener = {.receive_maximum = 2}, .limits = {.receive_maximum_strict = true});
    struct rig_client *client = v5(rig, "a");
    rig_publish(client, "x", "1", 2, 1);
    rig_publish(client, "x", "2", 2, 2);
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    rig_send_ack(client, MQTT_PUBREL, 1);
    rig_publish(client, "x", "3", 2, 3);
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    while (rig_output(client).size)
        rig_next(client);
    rig_publish(client, "x", "4", 2, 4);
    rig_settle(rig);
    expect_disconnect(client, 0x93);
    rig_free(rig);
}

/* 3.1.1 knows no receive maximum: who has more open comes back with all of them, and would be thrown out for ever. */
static void older_versions_are_not_read_past_the_receive_maximum(void **state)
{
    struct rig *rig = RIG(.listener = {.receive_maximum = 2}, .limits = {.receive_maximum_strict = true});
    struct rig_client *client = rig_connect(rig, "a", MQTT_V311, true);
    for (uint16_t id = 1; id <= 5; id++)
        rig_publish(client, "x", "1", 2, id);
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    for (uint16_t id = 1; id <= 5; id++)
        expect_ack(client, MQTT_PUBREC, id, 0);
    rig_free(rig);
}

static void receive_maximum_may_just_stop_reading(void **state)
{
    struct rig *rig = RIG(.listener = {.receive_maximum = 2});
    struct rig_client *client = v5(rig, "a");
    rig_log_hold(rig, true);
    for (uint16_t id = 1; id <= 5; id++)
        rig_publish(client, "t/car/x", "1", 1, id);
    rig_settle(rig);
    expect_nothing(client);
    assert_true(rig_is_paused(client));
    assert_int_equal(RIG_COUNTER(rig, telemetry_logged), 2);
    rig_log_hold(rig, false);
    rig_settle(rig);
    for (uint16_t id = 1; id <= 5; id++)
        expect_ack(client, MQTT_PUBACK, id, 0);
    assert_false(rig_is_paused(client));
    rig_free(rig);
}

/* Nobody told it of a receive maximum: it is slowed down, never closed. */
static void old_versions_are_not_held_to_the_receive_maximum(void **state)
{
    struct rig *rig = RIG(.listener = {.receive_maximum = 2}, .limits = {.receive_maximum_strict = true});
    struct rig_client *client = rig_connect(rig, "a", MQTT_V311, true);
    for (uint8_t qos = 1; qos <= 2; qos++) {
        rig_log_hold(rig, true);
        for (uint16_t id = 1; id <= 5; id++)
            rig_publish(client, "t/car/x", "1", qos, id);
        rig_settle(rig);
        assert_false(rig_is_closed(client));
        assert_true(rig_is_paused(client));
        assert_int_equal(RIG_COUNTER(rig, telemetry_logged), qos == 1 ? 2 : 7);
        rig_log_hold(rig, false);
        rig_settle(rig);
        for (uint16_t id = 1; id <= 5; id++) /* of QoS 2: though their PUBRELs stand behind the last of them */
            expect_ack(client, qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, id, 0);
        assert_false(rig_is_paused(client));
    }
    rig_publish(client, "t/car/x", "1", 2, 3); /* repeated */
    for (uint16_t id = 1; id <= 5; id++)
        rig_send_ack(client, MQTT_PUBREL, id);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBREC, 3, 0);
    for (uint16_t id = 1; id <= 5; id++)
        expect_ack(client, MQTT_PUBCOMP, id, 0);
    rig_free(rig);
}

static void limits_of_the_listener_hold(void **state) /* 3.2.2-11, 3.2.2-14, 3.2.2-15 */
{
    struct rig *rig = RIG(.listener = {.max_qos = 1, .max_packet_size = 100}, .is_retain_refused = true);
    struct rig_client *client = v5(rig, "a");
    rig_publish(client, "x", "1", 2, 1);
    rig_settle(rig);
    expect_disconnect(client, 0x9b);
    client = v5(rig, "a");
    rig_publish_retained(client, "x", "1", 0, 0);
    rig_settle(rig);
    expect_disconnect(client, 0x9a);
    client = v5(rig, "a");
    rig_send_bytes(client, "\x30\x63", 2); /* 101 bytes in all; judged by its header */
    rig_settle(rig);
    expect_disconnect(client, 0x95);
    client = v5(rig, "a");
    char payload[96];
    memset(payload, 'p', sizeof payload);
    payload[94] = 0;
    rig_publish(client, "x", payload, 0, 0); /* 2 + 3 + 1 + 94 = 100: allowed */
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    rig_free(rig);
}

static void topic_aliases_work_and_end(void **state) /* 3.3.2-7, -8, -9, -12; 3.2.2-17, -18 */
{
    struct rig *rig = RIG(.listener = {.topic_alias_maximum = 2});
    struct rig_client *client = v5(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "#", 0);
    struct packet packet = publish_packet("x/one", "1", 0, 0);
    for (uint16_t alias = 1; alias <= 2; alias++) { /* every one up to the maximum */
        packet.publish.topic = span_of_string(alias == 1 ? "x/one" : "x/two");
        SET(packet.publish, TOPIC_ALIAS, topic_alias, alias);
        rig_send(client, &packet);
    }
    packet.publish.topic = (struct span){0, 0};
    SET(packet.publish, TOPIC_ALIAS, topic_alias, 1);
    rig_send(client, &packet);
    packet.publish.topic = span_of_string("x/new"); /* redefined */
    rig_send(client, &packet);
    packet.publish.topic = (struct span){0, 0};
    rig_send(client, &packet);
    rig_settle(rig);
    const char *topics[] = {"x/one", "x/two", "x/one", "x/new", "x/new"};
    for (int i = 0; i < 5; i++) {
        const struct packet_publish *got = expect_publish(other, topics[i], "1", 0, 0);
        assert_false(got->properties.present & MQTT_PROPERTY_BIT(TOPIC_ALIAS)); /* 3.1.2-27 */
    }
    client = v5(rig, "a"); /* mappings end with the connection: an unknown alias is 0x82 */
    rig_send(client, &packet);
    rig_settle(rig);
    expect_disconnect(client, 0x82);
    client = v5(rig, "a");
    packet.publish.topic = span_of_string("x");
    SET(packet.publish, TOPIC_ALIAS, topic_alias, 3);
    rig_send(client, &packet);
    rig_settle(rig);
    expect_disconnect(client, 0x94);
    rig_free(rig);
}

static void properties_go_along_unaltered(void **state) /* 3.3.2-4, -15, -16, -17, -18, -20 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "#", 0);
    struct packet packet = publish_packet("x", "1", 0, 0);
    uint8_t user[64];
    size_t size = properties_put_user_property(user, SPAN_LITERAL("k"), SPAN_LITERAL("2"));
    size += properties_put_user_property(user + size, SPAN_LITERAL("k"), SPAN_LITERAL("1"));
    packet.publish.properties.raw = span_of(user, size);
    packet.publish.properties.user_property_count = 2;
    packet.publish.properties.present |= MQTT_PROPERTY_BIT(USER_PROPERTY);
    SET(packet.publish, PAYLOAD_FORMAT_INDICATOR, payload_format_indicator, 1);
    SET(packet.publish, CONTENT_TYPE, content_type, span_of_string("text/plain"));
    SET(packet.publish, RESPONSE_TOPIC, response_topic, span_of_string("r/t"));
    SET(packet.publish, CORRELATION_DATA, correlation_data, span_of("\0\1\2", 3));
    rig_send(client, &packet);
    rig_settle(rig);
    const struct packet_publish *got = expect_publish(other, "x", "1", 0, 0);
    assert_true(got->properties.present == packet.publish.properties.present);
    assert_int_equal(got->properties.payload_format_indicator, 1);
    expect_text(got->properties.content_type, "text/plain");
    expect_text(got->properties.response_topic, "r/t");
    assert_int_equal(got->properties.correlation_data.size, 3);
    struct span rest = got->properties.raw, name, value;
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(value, "2");
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(value, "1");
    rig_free(rig);
}

static void malformed_packets_close_with_a_reason(void **state) /* 4.13.1-1, 3.3.1-4, 3.3.2-2, 3.3.4-6 */
{
    static const struct {
        const char *bytes;
        size_t size;
        unsigned reason;
    } cases[] = {
        {"\x36\x07\x00\x01x\x00\x01\x00y", 9, 0x81},       /* QoS 3 */
        {"\x30\x05\x00\x01#\x00y", 7, 0x90},               /* wildcard in a name */
        {"\x30\x06\x00\x01x\x02\x0b\x01", 8, 0x82},        /* subscription identifier from a client */
        {"\x82\x03\x00\x01\x00", 5, 0x82},                 /* SUBSCRIBE without filters */
        {"\x80\x07\x00\x01\x00\x00\x01x\x00", 9, 0x81},    /* SUBSCRIBE flags */
        {"\x60\x02\x00\x01", 4, 0x81},                     /* PUBREL flags */
        {"\x32\x06\x00\x01x\x00\x00\x00", 8, 0x82},        /* identifier 0 */
        {"\x00\x00", 2, 0x81},                             /* type 0 */
        {"\x90\x03\x00\x01\x00", 5, 0x82},                 /* SUBACK from a client */
        {"\xc0\xff\xff\xff\xff\x01", 6, 0x81},             /* remaining length of five bytes */
        {"\x82\x09\x00\x01\x00\x00\x03x/#\x40", 11, 0x81}, /* reserved option bits */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig *rig = RIG();
        struct rig_client *client = v5(rig, "a");
        rig_send_bytes(client, cases[i].bytes, cases[i].size);
        rig_publish(client, "x", "must not be processed", 0, 0);
        rig_settle(rig);
        const struct packet *packet = expect(client, MQTT_DISCONNECT);
        if (packet->disconnect.reason != cases[i].reason)
            print_error("case %zu: reason 0x%02x\n", i, packet->disconnect.reason);
        assert_true(packet->disconnect.reason == cases[i].reason || packet->disconnect.reason == 0x81 || packet->disconnect.reason == 0x82);
        assert_true(rig_is_closed(client));
        assert_int_equal(RIG_COUNTER(rig, received_qos0), 0);
        rig_free(rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(publish_is_answered_by_qos),
        IN_EACH_MODE(no_subscriber_is_said),
        IN_EACH_MODE(qos2_is_delivered_once),
        IN_EACH_MODE(qos1_with_the_same_identifier_is_new),
        IN_EACH_MODE(unknown_pubrel_is_answered),
        IN_EACH_MODE(server_receive_maximum_is_enforced),
        IN_EACH_MODE(older_versions_are_not_read_past_the_receive_maximum),
        IN_EACH_MODE(receive_maximum_may_just_stop_reading),
        IN_EACH_MODE(old_versions_are_not_held_to_the_receive_maximum),
        IN_EACH_MODE(limits_of_the_listener_hold),
        IN_EACH_MODE(topic_aliases_work_and_end),
        IN_EACH_MODE(properties_go_along_unaltered),
        IN_EACH_MODE(malformed_packets_close_with_a_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
