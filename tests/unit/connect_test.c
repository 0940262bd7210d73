/* CONNECT: who is let in, what CONNACK says, takeover, clean start and expiry of sessions, keep-alive. Scenarios named by the MQTT
 * statements they would break with, each with one shard, with three, and with three shards whose messages to each other come in random
 * portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static void first_packet_must_be_connect(void **state) /* 3.1.0-1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = rig_open(rig, "a");
    rig_publish(client, "x", "y", 0, 0);
    rig_settle(rig);
    assert_true(rig_is_closed(client));
    assert_int_equal(rig_output(client).size, 0);
    assert_int_equal(RIG_COUNTER(rig, refused_not_connect), 1);
    rig_free(rig);
}

static void second_connect_is_a_protocol_error(void **state) /* 3.1.0-2 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a");
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    rig_send(client, &connect);
    rig_settle(rig);
    expect_disconnect(client, 0x82);
    rig_free(rig);
}

static void malformed_connects_are_refused(void **state) /* 3.1.2-1, -2, -3; 3.1.4-1 */
{
    struct rig *rig = RIG();
    struct rig_client *wrong_level = rig_open(rig, "a");
    rig_send_bytes(wrong_level, "\x10\x0e\x00\x04MQTT\x09\x02\x00\x00\x00\x00\x01g", 16);
    struct rig_client *reserved_flag = rig_open(rig, "a");
    rig_send_bytes(reserved_flag, "\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01g", 15);
    struct rig_client *reserved_flag_v5 = rig_open(rig, "a");
    rig_send_bytes(reserved_flag_v5, "\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01g", 16);
    rig_settle(rig);
    expect_connack(wrong_level, false, 0x84);
    assert_int_equal(rig_output(reserved_flag).size, 0); /* 3.1.1: closed without CONNACK */
    expect_connack(reserved_flag_v5, false, 0x81);
    assert_true(rig_is_closed(wrong_level));
    assert_true(rig_is_closed(reserved_flag));
    assert_true(rig_is_closed(reserved_flag_v5));
    rig_free(rig);
}

static void connect_timeout_closes(void **state)
{
    struct rig *rig = RIG(.limits = {.connect_timeout_ms = 5000});
    struct rig_client *client = rig_open(rig, "a");
    rig_send_bytes(client, "\x10", 1);
    rig_advance(rig, 4800);
    assert_false(rig_is_closed(client));
    rig_advance(rig, 400);
    assert_true(rig_is_closed(client));
    assert_int_equal(RIG_COUNTER(rig, refused_timeout), 1);
    rig_free(rig);
}

static void empty_client_id_is_given_one(void **state) /* 3.1.3-6, 3.1.3-7, 3.2.2-16 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("", MQTT_V5, true);
    char first[64] = "";
    for (int i = 0; i < 2; i++) {
        struct rig_client *client = rig_connect_with(rig, &connect);
        const struct packet *packet = expect(client, MQTT_CONNACK);
        assert_int_equal(packet->connack.reason, 0);
        assert_true(packet->connack.properties.present & MQTT_PROPERTY_BIT(ASSIGNED_CLIENT_IDENTIFIER));
        struct span id = packet->connack.properties.assigned_client_identifier;
        char text[64] = "";
        assert_true(id.size > 0 && id.size < sizeof text);
        memcpy(text, id.data, id.size);
        assert_int_equal(rig_home(rig, text), 0); /* the shard that accepted it */
        assert_string_not_equal(text, first);
        memcpy(first, text, sizeof first);
    }
    struct packet old = rig_connect_packet("", MQTT_V311, true);
    expect_connack(rig_connect_with(rig, &old), false, 0);
    rig_free(rig);
}

static void empty_client_id_with_clean_session_0_is_refused(void **state) /* 3.1.1 3.1.3-8 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("", MQTT_V311, false);
    struct rig_client *client = rig_connect_with(rig, &connect);
    struct span output = rig_output(client);
    assert_int_equal(output.size, 4);
    assert_memory_equal(output.data, "\x20\x02\x00\x02", 4);
    assert_true(rig_is_closed(client));
    rig_free(rig);
}

static void empty_client_id_may_be_forbidden(void **state) /* 3.1.3-8 */
{
    struct rig *rig = RIG(.is_zero_id_refused = true);
    struct packet connect = rig_connect_packet("", MQTT_V5, true);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0x85);
    assert_true(rig_is_closed(client));
    rig_free(rig);
}

static void anonymous_may_be_refused(void **state) /* 3.1.4-2, 3.1.4-6 */
{
    struct rig *rig = RIG(.is_anonymous_refused = true);
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    struct rig_client *client = rig_open(rig, "a");
    rig_send(client, &connect);
    rig_publish(client, "t/a/b", "must not be processed", 0, 0);
    rig_settle(rig);
    expect_connack(client, false, 0x87);
    assert_true(rig_is_closed(client));
    assert_int_equal(RIG_COUNTER(rig, received_qos0), 0);
    struct packet old = rig_connect_packet("b", MQTT_V311, true);
    client = rig_connect_with(rig, &old);
    assert_memory_equal(rig_output(client).data, "\x20\x02\x00\x05", 4);
    rig_free(rig);
}

static void unknown_authentication_method_is_refused(void **state) /* 4.12.0-1 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    SET(connect.connect, AUTHENTICATION_METHOD, authentication_method, span_of_string("SCRAM-SHA-256"));
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0x8c);
    assert_true(rig_is_closed(client));
    rig_free(rig);
}

static void auth_without_method_is_an_error(void **state) /* 4.12.0-7 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a");
    rig_send_bytes(client, "\xf0\x00", 2);
    rig_settle(rig);
    expect_disconnect(client, 0x82);
    rig_free(rig);
}

static void connack_says_what_differs(void **state) /* 3.2.2-9, 3.2.2-22 */
{
    struct rig *rig =
        RIG(.limits = {.session_expiry_max_s = 100},
            .listener = {.max_packet_size = 5000, .receive_maximum = 7, .topic_alias_maximum = 3, .max_keepalive_s = 30, .max_qos = 1},
            .is_retain_refused = true);
    struct packet connect = rig_connect_packet("a", MQTT_V5, false);
    connect.connect.keep_alive_s = 60;
    const struct packet *packet = expect(rig_connect_with(rig, &connect), MQTT_CONNACK);
    const struct mqtt_properties *props = &packet->connack.properties;
    assert_int_equal(props->session_expiry_interval_s, 100);
    assert_int_equal(props->receive_maximum, 7);
    assert_int_equal(props->maximum_qos, 1);
    assert_int_equal(props->retain_available, 0);
    assert_int_equal(props->maximum_packet_size, 5000);
    assert_int_equal(props->topic_alias_maximum, 3);
    assert_int_equal(props->server_keep_alive_s, 30);
    assert_int_equal(props->shared_subscription_available, 0);
    uint64_t expected = MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL) | MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM) | MQTT_PROPERTY_BIT(MAXIMUM_QOS) |
                        MQTT_PROPERTY_BIT(RETAIN_AVAILABLE) | MQTT_PROPERTY_BIT(MAXIMUM_PACKET_SIZE) |
                        MQTT_PROPERTY_BIT(TOPIC_ALIAS_MAXIMUM) | MQTT_PROPERTY_BIT(SERVER_KEEP_ALIVE) |
                        MQTT_PROPERTY_BIT(SHARED_SUBSCRIPTION_AVAILABLE);
    assert_true(props->present == expected);
    rig_free(rig);
}

static void will_beyond_the_server_is_refused(void **state) /* 3.2.2-12, 3.2.2-13 */
{
    struct rig *rig = RIG(.listener = {.max_qos = 1}, .is_retain_refused = true);
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    connect.connect.has_will = true;
    connect.connect.will_topic = span_of_string("w");
    connect.connect.will_qos = 2;
    expect_connack(rig_connect_with(rig, &connect), false, 0x9b);
    connect.connect.will_qos = 1;
    connect.connect.will_retain = true;
    expect_connack(rig_connect_with(rig, &connect), false, 0x9a);
    rig_free(rig);
}

static void too_many_sessions_are_refused(void **state)
{
    struct rig *rig = RIG(.limits = {.sessions_max = 1}); /* of each shard */
    struct packet connect = rig_connect_packet("", MQTT_V5, true);
    expect_connack(rig_connect_with(rig, &connect), false, 0);
    expect_connack(rig_connect_with(rig, &connect), false, 0x97);
    connect.connect.version = MQTT_V311;
    expect_connack(rig_connect_with(rig, &connect), false, 0x88); /* return code 3 */
    assert_int_equal(RIG_COUNTER(rig, refused_full), 2);
    rig_free(rig);
}

static void keep_alive_is_one_and_a_half_times(void **state) /* 3.1.2-22 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    connect.connect.keep_alive_s = 10;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_advance(rig, 14000);
    rig_send_bytes(client, "\xc0\x00", 2); /* PINGREQ */
    rig_advance(rig, 14800);
    expect(client, MQTT_PINGRESP); /* 3.12.4-1 */
    assert_false(rig_is_closed(client));
    rig_advance(rig, 1000);
    expect_disconnect(client, 0x8d);
    rig_free(rig);
}

static void keep_alive_has_a_maximum(void **state) /* 3.2.2-21 and -22 are for MQTT 5; the others are refused */
{
    struct rig *rig = RIG(.listener = {.max_keepalive_s = 30});
    static const uint16_t asked[] = {0, 30, 31};
    for (int i = 0; i < 3; i++) {
        struct packet connect = rig_connect_packet("a", MQTT_V311, true);
        connect.connect.keep_alive_s = asked[i];
        expect_connack(rig_connect_with(rig, &connect), false, asked[i] == 30 ? 0 : 0x85);
        connect.connect.version = MQTT_V5;
        struct rig_client *client = rig_connect_with(rig, &connect);
        const struct packet *packet = expect(client, MQTT_CONNACK);
        assert_int_equal(packet->connack.reason, 0);
        assert_int_equal(packet->connack.properties.server_keep_alive_s, asked[i] == 30 ? 0 : 30);
    }
    assert_int_equal(RIG_COUNTER(rig, refused_keep_alive), 2);
    rig_free(rig);
}

static void no_keep_alive_is_for_ever(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a");
    rig_advance(rig, 100000000);
    assert_false(rig_is_closed(client));
    rig_free(rig);
}

static void takeover_tells_the_old_connection(void **state) /* 3.1.4-3, 3.2.2-3 */
{
    struct rig *rig = RIG();
    struct rig_client *old = v5_stay(rig, "a");
    struct packet connect = rig_connect_packet("a", MQTT_V5, false);
    struct rig_client *fresh = rig_connect_with(rig, &connect);
    expect_connack(fresh, true, 0);
    expect_disconnect(old, 0x8e);
    struct rig_client *old311 = rig_connect(rig, "b", MQTT_V311, true);
    v5(rig, "b");
    assert_true(rig_is_closed(old311));
    expect_nothing(old311); /* 3.1.1: nothing is sent on it */
    rig_free(rig);
}

static void clean_start_drops_the_session(void **state) /* 3.1.2-4, 3.1.4-4, 3.2.2-2 */
{
    struct rig *rig = RIG();
    struct rig_client *first = v5_stay(rig, "a"), *publisher = v5(rig, "p");
    rig_subscribe(first, 1, "x", 1);
    struct packet connect = rig_connect_packet("a", MQTT_V5, true);
    struct rig_client *second = rig_connect_with(rig, &connect);
    expect_connack(second, false, 0);
    rig_publish(publisher, "x", "1", 1, 1);
    rig_settle(rig);
    expect_ack(publisher, MQTT_PUBACK, 1, 0x10);
    expect_nothing(second);
    rig_free(rig);
}

static void session_survives_and_expires(void **state) /* 3.1.2-5, 3.1.2-23, 4.1.0-2 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("a", MQTT_V5, false);
    connect.connect.properties.session_expiry_interval_s = 100;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_subscribe(client, 1, "x", 1);
    rig_break(client);
    rig_advance(rig, 99000);
    client = rig_connect_with(rig, &connect);
    expect_connack(client, true, 0);
    rig_advance(rig, 200000); /* connected: nothing expires, 4.1.0-1 */
    leave(rig, client);
    rig_advance(rig, 101000);
    client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_free(rig);
}

static void expiry_may_change_at_disconnect(void **state) /* 3.14.2.2.2 */
{
    struct rig *rig = RIG();
    struct packet bye = {.type = MQTT_DISCONNECT};
    SET(bye.disconnect, SESSION_EXPIRY_INTERVAL, session_expiry_interval_s, 0);
    struct rig_client *client = v5_stay(rig, "a");
    rig_send(client, &bye);
    struct packet connect = rig_connect_packet("a", MQTT_V5, false);
    rig_settle(rig);
    expect_connack(rig_connect_with(rig, &connect), false, 0);
    client = v5(rig, "b");
    bye.disconnect.properties.session_expiry_interval_s = 10; /* from 0 to more: not allowed */
    rig_send(client, &bye);
    rig_settle(rig);
    expect_disconnect(client, 0x82);
    rig_free(rig);
}

static void clean_session_0_of_311_keeps(void **state) /* 3.1.1 3.1.2-4 */
{
    struct rig *rig = RIG();
    struct rig_client *client = rig_connect(rig, "a", MQTT_V311, false);
    rig_subscribe(client, 1, "x", 1);
    leave(rig, client);
    rig_advance(rig, 10000000);
    struct packet connect = rig_connect_packet("a", MQTT_V311, false);
    client = rig_connect_with(rig, &connect);
    expect_connack(client, true, 0);
    struct rig_client *publisher = rig_connect(rig, "p", MQTT_V31, true);
    rig_publish(publisher, "x", "1", 1, 1);
    rig_settle(rig);
    expect_publish(client, "x", "1", 1, 0);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(first_packet_must_be_connect),
        IN_EACH_MODE(second_connect_is_a_protocol_error),
        IN_EACH_MODE(malformed_connects_are_refused),
        IN_EACH_MODE(connect_timeout_closes),
        IN_EACH_MODE(empty_client_id_is_given_one),
        IN_EACH_MODE(empty_client_id_with_clean_session_0_is_refused),
        IN_EACH_MODE(empty_client_id_may_be_forbidden),
        IN_EACH_MODE(anonymous_may_be_refused),
        IN_EACH_MODE(unknown_authentication_method_is_refused),
        IN_EACH_MODE(auth_without_method_is_an_error),
        IN_EACH_MODE(connack_says_what_differs),
        IN_EACH_MODE(will_beyond_the_server_is_refused),
        IN_EACH_MODE(too_many_sessions_are_refused),
        IN_EACH_MODE(keep_alive_is_one_and_a_half_times),
        IN_EACH_MODE(keep_alive_has_a_maximum),
        IN_EACH_MODE(no_keep_alive_is_for_ever),
        IN_EACH_MODE(takeover_tells_the_old_connection),
        IN_EACH_MODE(clean_start_drops_the_session),
        IN_EACH_MODE(session_survives_and_expires),
        IN_EACH_MODE(expiry_may_change_at_disconnect),
        IN_EACH_MODE(clean_session_0_of_311_keeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
