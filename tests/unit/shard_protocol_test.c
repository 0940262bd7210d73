/* The protocol core in scenarios, named by the MQTT statements they would break with; each with one shard, with three, and with three
 * shards whose messages to each other come in random portions. The statements about single packets are in packet_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "broker/session/subscription_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

/* === CONNECT ========================================================================================================================== */

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

/* === will ============================================================================================================================= */

static struct packet will_packet(const char *id, uint32_t delay_s, uint32_t expiry_s)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, false);
    connect.connect.properties.session_expiry_interval_s = expiry_s;
    connect.connect.has_will = true;
    connect.connect.will_topic = span_of_string("w");
    connect.connect.will_payload = span_of_string("gone");
    connect.connect.will_qos = 1;
    if (delay_s)
        connect.connect.will_properties.will_delay_interval_s = delay_s,
        connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL);
    return connect;
}

static void will_goes_out_when_the_connection_breaks(void **state) /* 3.1.2-8, 3.1.2-14 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 2);
    struct packet connect = will_packet("a", 0, 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_break(client);
    rig_settle(rig);
    expect_publish(watcher, "w", "gone", 1, 0);
    expect_nothing(watcher); /* 3.1.2-10: once */
    rig_free(rig);
}

static void will_is_discarded_by_disconnect_0_only(void **state) /* 3.14.4-3 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 1);
    struct packet connect = will_packet("a", 0, 100);
    struct rig_client *client = rig_connect_with(rig, &connect);
    leave(rig, client);
    rig_advance(rig, 200000);
    expect_nothing(watcher);
    client = rig_connect_with(rig, &connect);
    send_disconnect(client, MQTT_REASON_DISCONNECT_WITH_WILL);
    rig_settle(rig);
    assert_true(rig_is_closed(client));
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_waits_for_its_delay(void **state) /* 3.1.3-9, 3.1.2-8 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 1);
    struct packet connect = will_packet("a", 10, 100);
    rig_break(rig_connect_with(rig, &connect));
    rig_advance(rig, 9000);
    expect_nothing(watcher);
    struct rig_client *client = rig_connect_with(rig, &connect); /* back in time */
    rig_advance(rig, 50000);
    expect_nothing(watcher);
    rig_break(client);
    rig_advance(rig, 9500);
    expect_nothing(watcher);
    rig_advance(rig, 1000);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_advance(rig, 1000000);
    expect_nothing(watcher);
    rig_free(rig);
}

static void will_goes_out_at_the_sessions_end(void **state) /* 3.1.2-8: whichever is first */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 1);
    struct packet connect = will_packet("a", 1000, 10);
    rig_break(rig_connect_with(rig, &connect));
    rig_advance(rig, 10500);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_send_ack(watcher, MQTT_PUBACK, 1);
    connect = will_packet("b", 1000, 5000);
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    expect_nothing(watcher);
    connect.connect.clean_start = true; /* ends the session */
    connect.connect.has_will = false;
    rig_connect_with(rig, &connect);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_goes_out_on_takeover(void **state) /* 3.1.2-8 */
{
    struct rig *rig = RIG();
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 1);
    struct packet connect = will_packet("a", 0, 100);
    rig_connect_with(rig, &connect);
    connect.connect.has_will = false;
    rig_connect_with(rig, &connect);
    expect_publish(watcher, "w", "gone", 1, 0);
    rig_free(rig);
}

static void will_may_be_retained_with_properties(void **state) /* 3.1.2-15, 3.1.3-10 */
{
    struct rig *rig = RIG();
    struct packet connect = will_packet("a", 0, 0);
    uint8_t user[64];
    size_t size = properties_put_user_property(user, SPAN_LITERAL("k1"), SPAN_LITERAL("v1"));
    size += properties_put_user_property(user + size, SPAN_LITERAL("k0"), SPAN_LITERAL("v0"));
    connect.connect.will_retain = true;
    connect.connect.will_properties.raw = span_of(user, size);
    connect.connect.will_properties.user_property_count = 2;
    connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(USER_PROPERTY);
    connect.connect.will_properties.message_expiry_interval_s = 60;
    connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL);
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    struct rig_client *watcher = v5(rig, "watcher");
    rig_subscribe(watcher, 1, "w", 1);
    const struct packet_publish *publish = expect_publish(watcher, "w", "gone", 1, RETAIN);
    assert_int_equal(publish->properties.user_property_count, 2);
    assert_int_equal(publish->properties.message_expiry_interval_s, 60);
    struct span rest = publish->properties.raw, name, value;
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(name, "k1");
    assert_true(properties_next_user_property(&rest, &name, &value));
    expect_text(value, "v0");
    rig_free(rig);
}

static void will_waits_for_room_in_the_log(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = will_packet("a", 0, 0);
    connect.connect.will_topic = span_of_string("t/a/will");
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_break(client);
    rig_advance(rig, 1000);
    assert_int_equal(rig_published_count(rig), 0);
    rig_log_room(rig, true);
    rig_advance(rig, 1000);
    assert_int_equal(rig_published_count(rig), 1);
    struct record rec;
    rig_published(rig, &rec, 0);
    expect_text(rec.payload, "gone");
    assert_true(rec.will_session != 0);
    rig_free(rig);
}

/* === QoS in ============================================================================================================================
 */

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

/* === out ===============================================================================================================================
 */

static void qos_is_the_lesser_of_both(void **state) /* 3.8.4-8 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p");
    struct rig_client *others[3];
    for (uint8_t granted = 0; granted < 3; granted++) {
        char id[2] = {(char)('a' + granted), 0};
        others[granted] = v5(rig, id);
        rig_subscribe(others[granted], 1, "x", granted);
    }
    for (uint8_t qos = 0; qos < 3; qos++)
        rig_publish(client, "x", "1", qos, qos);
    rig_settle(rig);
    for (uint8_t granted = 0; granted < 3; granted++)
        for (uint8_t qos = 0; qos < 3; qos++)
            expect_publish(others[granted], "x", "1", qos < granted ? qos : granted, 0);
    rig_free(rig);
}

static void qos2_out_takes_four_steps(void **state) /* 4.3.3-2, -4, -5 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *other = v5(rig, "b");
    rig_subscribe(other, 1, "x", 2);
    rig_publish(client, "x", "1", 2, 1);
    rig_settle(rig);
    uint16_t id = expect_publish(other, "x", "1", 2, 0)->packet_id;
    rig_send_ack(other, MQTT_PUBREC, id);
    rig_settle(rig);
    expect_ack(other, MQTT_PUBREL, id, 0);
    rig_send_ack(other, MQTT_PUBCOMP, id);
    rig_settle(rig);
    expect_nothing(other);
    assert_int_equal(RIG_COUNTER(rig, copies_acked), 1);
    rig_send_ack(other, MQTT_PUBREC, 77); /* never sent */
    rig_settle(rig);
    expect_ack(other, MQTT_PUBREL, 77, 0x92);
    rig_free(rig);
}

static void redelivery_has_dup_and_the_same_identifiers(void **state) /* 3.3.1-1, 4.4.0-1, 4.3.3-6, 4.4.0-2 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "x", 2);
    for (uint16_t i = 1; i <= 5; i++)
        rig_publish(client, "x", (char[2]){(char)('0' + i), 0}, i % 2 ? 2 : 1, i);
    rig_settle(rig);
    uint16_t ids[6];
    for (int i = 1; i <= 5; i++)
        ids[i] = expect_publish(other, "x", (char[2]){(char)('0' + i), 0}, i % 2 ? 2 : 1, 0)->packet_id;
    rig_send_ack(other, MQTT_PUBREC, ids[1]);
    rig_send(other, &(struct packet){.type = MQTT_PUBREC, .ack = {.packet_id = ids[3], .reason = MQTT_REASON_QUOTA_EXCEEDED}});
    rig_settle(rig);
    expect_ack(other, MQTT_PUBREL, ids[1], 0);
    expect_nothing(other); /* no resend at another time */
    rig_break(other);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    expect_ack(other, MQTT_PUBREL, ids[1], 0); /* PUBREL instead of PUBLISH */
    assert_int_equal(expect_publish(other, "x", "2", 1, DUP)->packet_id, ids[2]);
    assert_int_equal(expect_publish(other, "x", "4", 1, DUP)->packet_id, ids[4]);
    assert_int_equal(expect_publish(other, "x", "5", 2, DUP)->packet_id, ids[5]);
    expect_nothing(other);
    rig_publish(client, "x", "6", 1, 6);
    rig_settle(rig);
    uint16_t fresh = expect_publish(other, "x", "6", 1, 0)->packet_id;
    for (int i = 1; i <= 5; i++)
        assert_true(i == 3 || fresh != ids[i]); /* 2.2.1-4 */
    rig_free(rig);
}

static void client_receive_maximum_is_respected(void **state) /* 3.3.4-9, -10, 4.9.0-1, -2, -3 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p");
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, 2);
    struct rig_client *other = rig_connect_with(rig, &connect);
    expect_connack(other, false, 0);
    rig_subscribe(other, 1, "x", 1);
    for (uint16_t i = 1; i <= 6; i++)
        rig_publish(client, "x", (char[2]){(char)('0' + i), 0}, 1, i);
    rig_publish(client, "x", "q0", 0, 0);
    rig_settle(rig);
    uint16_t first = expect_publish(other, "x", "1", 1, 0)->packet_id;
    expect_publish(other, "x", "2", 1, 0);
    expect_publish(other, "x", "q0", 0, 0); /* others still flow */
    expect_nothing(other);
    rig_send_bytes(other, "\xc0\x00", 2);
    rig_send_ack(other, MQTT_PUBACK, first);
    rig_settle(rig);
    expect(other, MQTT_PINGRESP);
    expect_publish(other, "x", "3", 1, 0);
    expect_nothing(other);
    rig_break(other);
    rig_settle(rig);
    SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, 3); /* the quota is this connection's */
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    uint16_t second = expect_publish(other, "x", "2", 1, DUP)->packet_id;
    expect_publish(other, "x", "3", 1, DUP);
    expect_publish(other, "x", "4", 1, 0);
    expect_nothing(other);
    rig_break(other);
    rig_settle(rig);
    SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, 1); /* fewer than are in flight */
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    expect_publish(other, "x", "2", 1, DUP);
    expect_nothing(other);
    rig_send_ack(other, MQTT_PUBACK, second);
    rig_settle(rig);
    expect_publish(other, "x", "3", 1, DUP);
    expect_nothing(other);
    rig_free(rig);
}

static void client_maximum_packet_size_is_respected(void **state) /* 3.1.2-24, 3.1.2-25 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p");
    struct packet connect = rig_connect_packet("s", MQTT_V5, true);
    SET(connect.connect, MAXIMUM_PACKET_SIZE, maximum_packet_size, 30);
    SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, 1);
    struct rig_client *other = rig_connect_with(rig, &connect);
    expect_connack(other, false, 0);
    rig_subscribe(other, 1, "x", 1);
    char fits[23], large[24];
    memset(fits, 'f', sizeof fits), fits[22] = 0; /* 2 + 3 + 2 + 1 + 22 = 30 with the header */
    memset(large, 'l', sizeof large), large[23] = 0;
    rig_publish(client, "x", large, 1, 1);
    rig_publish(client, "x", fits, 1, 2);
    rig_settle(rig);
    uint16_t id = expect_publish(other, "x", fits, 1, 0)->packet_id; /* no stall */
    expect_nothing(other);
    rig_publish(client, "x", large, 1, 3); /* waits, is dropped when its turn comes */
    rig_publish(client, "x", "after", 1, 4);
    rig_settle(rig);
    rig_send_ack(other, MQTT_PUBACK, id);
    rig_settle(rig);
    expect_publish(other, "x", "after", 1, 0);
    assert_int_equal(RIG_COUNTER(rig, dropped_too_large), 2);
    rig_free(rig);
}

static void overlapping_subscriptions_are_one_message(void **state) /* 3.3.4-2, -3, -4; 3.1.1 3.3.5-1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s"), *old = rig_connect(rig, "o", MQTT_V311, true);
    rig_send_subscribe(other, 1, "x/#", 0, 11);
    rig_send_subscribe(other, 2, "x/+", 2, 12);
    rig_send_subscribe(other, 3, "x/y", 1, 13);
    rig_send_subscribe(other, 4, "+/y", 1, 0);
    rig_settle(rig);
    for (uint16_t i = 1; i <= 4; i++)
        expect(other, MQTT_SUBACK);
    rig_subscribe(old, 1, "x/#", 0);
    rig_subscribe(old, 2, "x/y", 2);
    rig_publish(client, "x/y", "1", 2, 1);
    rig_settle(rig);
    const struct packet_publish *got = expect_publish(other, "x/y", "1", 2, 0);
    uint32_t seen = 0, id;
    for (struct span rest = got->properties.raw; properties_next_subscription_identifier(&rest, &id);)
        seen |= 1u << id;
    assert_int_equal(seen, 1u << 11 | 1u << 12 | 1u << 13);
    expect_nothing(other);
    expect_publish(old, "x/y", "1", 2, 0);
    expect_nothing(old);
    rig_free(rig);
}

static void overlapping_subscriptions_may_be_copies(void **state) /* 3.3.4-5 */
{
    struct rig *rig = RIG(.limits = {.allow_duplicate_messages = true});
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_send_subscribe(other, 1, "x/#", 0, 11);
    rig_send_subscribe(other, 2, "x/+", 1, 12);
    rig_settle(rig);
    expect(other, MQTT_SUBACK);
    expect(other, MQTT_SUBACK);
    rig_publish(client, "x/y", "1", 1, 1);
    rig_settle(rig);
    uint32_t seen = 0;
    for (int i = 0; i < 2; i++) {
        const struct packet *packet = expect(other, MQTT_PUBLISH);
        assert_int_equal(packet->publish.properties.subscription_identifier_count, 1);
        assert_int_equal(packet->publish.qos, packet->publish.properties.subscription_identifier - 11);
        seen |= packet->publish.properties.subscription_identifier;
    }
    assert_int_equal(seen, 11 | 12);
    expect_nothing(other);
    rig_free(rig);
}

static void no_local_is_kept(void **state) /* 3.8.3-3, 3.8.3-4 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a");
    rig_send_subscribe(client, 1, "x", 1 | 4, 0);
    rig_settle(rig);
    expect_suback(client, 1, 1);
    rig_publish(client, "x", "own", 1, 1);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_nothing(client);
    rig_publish(v5(rig, "b"), "x", "other", 1, 1);
    rig_settle(rig);
    expect_publish(client, "x", "other", 1, 0);
    rig_send_subscribe(client, 2, "$share/g/x", 1 | 4, 0);
    rig_settle(rig);
    expect_disconnect(client, 0x82);
    rig_free(rig);
}

static void order_is_kept(void **state) /* 4.6.0-5, 4.6.0-6 */
{
    struct rig *rig = RIG(.limits = {.inflight_max = 3, .publishes_per_turn_max = 7});
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "#", 2);
    enum { COUNT = 200 };
    for (uint16_t i = 1; i <= COUNT; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        rig_publish(client, i % 3 ? "x" : "t/car/x", text, 1, i);
    }
    rig_settle(rig);
    for (uint16_t i = 1; i <= COUNT; i++)
        expect_ack(client, MQTT_PUBACK, i, 0);
    unsigned last[2] = {0, 0}, count = 0;
    for (const struct packet *packet; (packet = rig_next(other)) != NULL;) {
        unsigned number = 0;
        for (size_t i = 0; i < packet->publish.payload.size; i++)
            number = number * 10 + (packet->publish.payload.data[i] - (unsigned)'0');
        unsigned *of_topic = &last[packet->publish.topic.size == 1];
        assert_true(number > *of_topic);
        *of_topic = number;
        count++;
        rig_send_ack(other, MQTT_PUBACK, packet->publish.packet_id);
        rig_settle(rig);
    }
    assert_int_equal(count, COUNT);
    rig_free(rig);
}

static void queue_goes_through_the_store_in_order(void **state)
{
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = 300});
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "x", 1);
    rig_break(other);
    rig_settle(rig);
    enum { COUNT = 400 };
    for (uint16_t i = 1; i <= COUNT; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        rig_publish(client, "x", text, 1, i);
    }
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 100); /* the newest */
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    for (unsigned i = 1; i <= 300; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        uint16_t id = expect_publish(other, "x", text, 1, 0)->packet_id;
        rig_send_ack(other, MQTT_PUBACK, id);
        if (i % 5 == 0 || i > 290)
            rig_settle(rig);
        if (i == 150) { /* what comes meanwhile goes behind */
            rig_publish(client, "x", "301", 1, 1);
            rig_settle(rig);
        }
        if (!rig_output(other).size)
            rig_settle(rig);
    }
    rig_settle(rig);
    expect_publish(other, "x", "301", 1, 0);
    expect_nothing(other);
    rig_free(rig);
}

static void qos0_waits_only_when_configured(void **state)
{
    for (int queued = 0; queued < 2; queued++) {
        struct rig *rig = RIG(.limits = {.queue_qos0_messages = queued});
        struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
        rig_subscribe(other, 1, "x", 0);
        rig_break(other);
        rig_settle(rig);
        rig_publish(client, "x", "1", 0, 0);
        rig_settle(rig);
        assert_int_equal(RIG_COUNTER(rig, dropped_offline), !queued);
        struct packet connect = rig_connect_packet("s", MQTT_V5, false);
        other = rig_connect_with(rig, &connect);
        expect_connack(other, true, 0);
        if (queued)
            expect_publish(other, "x", "1", 0, 0);
        expect_nothing(other);
        rig_free(rig);
    }
}

/* What a message costs is its copies: one that goes to many uses up its sender's share of the turn sooner. */
static void many_recipients_share_the_turn(void **state)
{
    struct rig *rig = RIG(.limits = {.publishes_per_turn_max = 10});
    struct rig_client *client = v5(rig, "p");
    for (int i = 0; i < 64; i++) {
        char id[8];
        snprintf(id, sizeof id, "s%d", i);
        rig_subscribe(v5(rig, id), 1, "x", 0);
    }
    for (int i = 0; i < 30; i++)
        rig_publish(client, "x", "y", 0, 0);
    rig_step(rig);
    uint64_t handled = RIG_COUNTER(rig, received_qos0);
    assert_true(handled >= 2);
    assert_true(handled <= 4); /* two allowances of 10, 5 each */
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, copies_sent_qos0), 30 * 64);
    rig_free(rig);
}

static void slow_socket_drops_qos0_and_is_not_read(void **state)
{
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 1000});
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_subscribe(other, 1, "x", 1);
    rig_write_max(other, 0);
    char payload[301];
    memset(payload, 'p', sizeof payload), payload[300] = 0;
    for (uint16_t i = 1; i <= 6; i++)
        rig_publish(client, "x", payload, 0, 0);
    for (uint16_t i = 1; i <= 6; i++)
        rig_publish(client, "x", "one", 1, i);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_slow_consumer), 2);
    assert_true(rig_is_paused(other));
    rig_write_max(other, 7); /* a few bytes at a time */
    rig_settle(rig);
    assert_false(rig_is_paused(other));
    for (int i = 0; i < 4; i++)
        expect_publish(other, "x", payload, 0, 0);
    for (int i = 0; i < 6; i++)
        expect_publish(other, "x", "one", 1, 0); /* none of QoS 1 is lost */
    expect_nothing(other);
    rig_free(rig);
}

/* Many slow sockets, each within its own bound: together they have one, too. Who takes what comes is not touched. */
static void slow_sockets_have_a_bound_together(void **state)
{
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 100000, .outboxes_bytes_max = 1500});
    struct rig_client *client = v5(rig, "p"), *slow[3], *quick = v5(rig, "q");
    for (int i = 0; i < 3; i++) {
        slow[i] = v5(rig, (const char *[]){"s1", "s2", "s3"}[i]);
        rig_subscribe(slow[i], 1, "x", 1);
        rig_write_max(slow[i], 0);
    }
    rig_subscribe(quick, 1, "x", 1);
    char payload[501];
    memset(payload, 'p', sizeof payload), payload[500] = 0;
    for (int i = 0; i < 10; i++) {
        rig_publish(client, "x", payload, 0, 0);
        rig_settle(rig);
        expect_publish(quick, "x", payload, 0, 0);
    }
    rig_publish(client, "x", "one", 1, 1);
    rig_settle(rig);
    expect_publish(quick, "x", "one", 1, 0);
    uint64_t dropped = RIG_COUNTER(rig, dropped_slow_consumer), bytes = 0;
    assert_true(dropped > 0);
    for (actor_id shard = 0; shard < ((const struct rig_mode *)*state)->shard_count; shard++) {
        assert_true(rig_stats(rig, shard)->outbox.bytes < 1500 + 600 * 3);
        bytes += rig_stats(rig, shard)->outbox.bytes;
    }
    assert_true(bytes > 0);
    for (int i = 0; i < 3; i++)
        rig_write_max(slow[i], 100000);
    rig_settle(rig);
    for (int i = 0; i < 3; i++) {
        const struct packet *packet = rig_next(slow[i]);
        unsigned count = 0;
        for (; packet->publish.qos == 0; packet = rig_next(slow[i]))
            count++;
        expect_text(packet->publish.payload, "one"); /* QoS 1 waited */
        dropped += count;
    }
    assert_int_equal(dropped, 30);
    rig_free(rig);
}

static void keep_alive_ends_who_takes_nothing(void **state)
{
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 1000});
    struct rig_client *client = v5(rig, "p");
    struct packet connect = rig_connect_packet("s", MQTT_V5, true);
    connect.connect.keep_alive_s = 10;
    struct rig_client *other = rig_connect_with(rig, &connect);
    expect_connack(other, false, 0);
    rig_subscribe(other, 1, "x", 1);
    rig_write_max(other, 0);
    char payload[2001];
    memset(payload, 'p', sizeof payload), payload[2000] = 0;
    rig_publish(client, "x", payload, 0, 0);
    rig_publish(client, "x", payload, 1, 1);
    rig_settle(rig);
    assert_true(rig_is_paused(other));
    rig_advance(rig, 14000);
    rig_write_max(other, 1); /* slow, but there; the socket is full again at once */
    rig_step(rig);
    rig_write_max(other, 0);
    rig_advance(rig, 14000);
    assert_false(rig_is_closed(other));
    rig_advance(rig, 2000);
    assert_true(rig_is_closed(other));
    assert_int_equal(RIG_COUNTER(rig, closed_keep_alive), 1);
    rig_free(rig);
}

static void nothing_stalls_behind_a_full_outbox(void **state)
{
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 1000});
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_subscribe(other, 1, "x", 1);
    char payload[601];
    memset(payload, 'p', sizeof payload), payload[600] = 0;
    rig_publish(client, "x", payload, 0, 0); /* all in one turn: the outbox is past its bound, then the socket takes everything */
    rig_publish(client, "x", payload, 0, 0);
    rig_publish(client, "x", "one", 1, 1);
    rig_settle(rig);
    expect_publish(other, "x", payload, 0, 0);
    expect_publish(other, "x", payload, 0, 0);
    expect_publish(other, "x", "one", 1, 0);
    rig_free(rig);
}

static void large_payloads_go_by_reference(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s"), *third = v5(rig, "q");
    rig_subscribe(other, 1, "x", 1);
    rig_subscribe(third, 1, "x", 0);
    static char payload[300001];
    for (size_t i = 0; i < sizeof payload - 1; i++)
        payload[i] = (char)('a' + i % 23);
    rig_write_max(other, 4099);
    rig_publish(client, "x", payload, 1, 1);
    rig_publish(client, "x", "small", 1, 2);
    rig_settle(rig);
    expect_publish(other, "x", payload, 1, 0);
    expect_publish(other, "x", "small", 1, 0);
    expect_publish(third, "x", payload, 0, 0);
    expect_publish(third, "x", "small", 0, 0);
    rig_free(rig);
}

/* === expiry ============================================================================================================================
 */

static void messages_expire(void **state) /* 3.3.2-5, 3.3.2-6 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *online = v5(rig, "on"), *other = v5_stay(rig, "s");
    rig_subscribe(online, 1, "x", 1);
    rig_subscribe(other, 1, "x", 1);
    rig_break(other);
    rig_settle(rig);
    struct packet packet = publish_packet("x", "long", 1, 1);
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 100);
    rig_send(client, &packet);
    packet = publish_packet("x", "short", 1, 2);
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 10);
    rig_send(client, &packet);
    rig_settle(rig);
    assert_int_equal(expect_publish(online, "x", "long", 1, 0)->properties.message_expiry_interval_s, 100);
    rig_advance(rig, 30000);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    assert_int_equal(expect_publish(other, "x", "long", 1, 0)->properties.message_expiry_interval_s, 70);
    expect_nothing(other);
    assert_int_equal(RIG_COUNTER(rig, dropped_expired), 1);
    rig_free(rig);
}

static void nothing_expires_once_sent(void **state) /* 4.3.3-7, 4.3.3-13 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "x", 2);
    struct packet packet = publish_packet("x", "1", 2, 1);
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 1);
    rig_send(client, &packet);
    rig_settle(rig);
    expect_publish(other, "x", "1", 2, 0);
    rig_break(other);
    rig_advance(rig, 60000);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    uint16_t id = expect_publish(other, "x", "1", 2, DUP)->packet_id;
    rig_send_ack(other, MQTT_PUBREC, id);
    rig_settle(rig);
    expect_ack(other, MQTT_PUBREL, id, 0);
    rig_free(rig);
}

/* === retained ==========================================================================================================================
 */

static void retained_is_sent_to_new_subscriptions(void **state) /* 3.3.1-5, -6, -7, -8; 3.8.4-8; 3.3.4-3 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *live = v5(rig, "live");
    rig_subscribe(live, 1, "r/#", 2);
    rig_publish_retained(client, "r/1", "old", 1, 1);
    rig_publish_retained(client, "r/1", "new", 1, 2);
    rig_publish_retained(client, "r/2", "two", 2, 3);
    rig_publish(client, "r/1", "not retained", 0, 0);
    rig_settle(rig);
    expect_publish(live, "r/1", "old", 1, 0); /* 3.3.1-12: RETAIN 0 without Retain As Published */
    struct rig_client *other = v5(rig, "s");
    rig_send_subscribe(other, 1, "r/+", 1, 42);
    rig_settle(rig);
    expect_suback(other, 1, 1);
    bool seen_1 = false;
    for (int i = 0; i < 2; i++) {
        const struct packet *packet = expect(other, MQTT_PUBLISH);
        bool is_1 = span_equal(packet->publish.topic, SPAN_LITERAL("r/1"));
        seen_1 |= is_1;
        expect_text(packet->publish.payload, is_1 ? "new" : "two");
        assert_int_equal(packet->publish.qos, 1);
        assert_true(packet->publish.retain);
        assert_int_equal(packet->publish.properties.subscription_identifier, 42);
    }
    assert_true(seen_1);
    rig_publish_retained(client, "r/1", "", 1, 4);
    rig_settle(rig);
    expect_publish(other, "r/1", "", 1, 0); /* delivered, and clears */
    rig_subscribe(other, 2, "r/1", 1);
    rig_settle(rig);
    expect_nothing(other);
    rig_free(rig);
}

static void retain_handling_is_respected(void **state) /* 3.3.1-9, -10, -11; 3.8.4-4 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_publish_retained(client, "r", "v", 1, 1);
    rig_settle(rig);
    rig_send_subscribe(other, 1, "r", 1 | 2 << 4, 0); /* never */
    rig_settle(rig);
    expect_suback(other, 1, 1);
    expect_nothing(other);
    rig_send_subscribe(other, 2, "r", 1 | 1 << 4, 0); /* only when new: it is not */
    rig_settle(rig);
    expect_suback(other, 2, 1);
    expect_nothing(other);
    rig_send_subscribe(other, 3, "r", 0, 0); /* again: sent again */
    rig_settle(rig);
    expect_suback(other, 3, 0);
    expect_publish(other, "r", "v", 0, RETAIN);
    rig_send_unsubscribe(other, 4, "r");
    rig_send_subscribe(other, 5, "r", 1 | 1 << 4, 0);
    rig_settle(rig);
    expect(other, MQTT_UNSUBACK);
    expect_suback(other, 5, 1);
    expect_publish(other, "r", "v", 1, RETAIN);
    expect_nothing(other);
    rig_free(rig);
}

static void retain_as_published_is_respected(void **state) /* 3.3.1-13, from the queue as well */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_send_subscribe(other, 1, "r", 1 | 8, 0);
    rig_settle(rig);
    expect_suback(other, 1, 1);
    rig_publish_retained(client, "r", "1", 1, 1);
    rig_publish(client, "r", "2", 1, 2);
    rig_settle(rig);
    expect_publish(other, "r", "1", 1, RETAIN);
    expect_publish(other, "r", "2", 1, 0);
    rig_break(other);
    rig_settle(rig);
    rig_publish_retained(client, "r", "3", 1, 3);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    expect_publish(other, "r", "1", 1, RETAIN | DUP);
    expect_publish(other, "r", "2", 1, DUP);
    expect_publish(other, "r", "3", 1, RETAIN);
    rig_free(rig);
}

/* Many retained values, a small queue and a socket that takes little: the scan is paced by the client, nothing is dropped. */
static void retained_scan_is_paced_by_its_client(void **state)
{
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 4000, .session_queue_messages_max = 40, .inflight_max = 5});
    struct rig_client *client = v5(rig, "p");
    char topic[32], payload[64];
    enum { VALUES = 500 };
    for (int i = 0; i < VALUES; i++) {
        snprintf(topic, sizeof topic, "r/%d", i);
        snprintf(payload, sizeof payload, "%060d", i);
        rig_publish_retained(client, topic, payload, 0, 0);
        rig_settle(rig);
    }
    for (uint8_t qos = 0; qos < 2; qos++) {
        struct rig_client *slow = v5(rig, qos ? "s1" : "s0");
        rig_write_max(slow, 0);
        rig_send_subscribe(slow, 1, "r/+", qos, 0);
        rig_settle(rig);
        int count = 0;
        for (int idle = 0; idle < 20; idle++) {
            rig_write_max(slow, 300);
            rig_settle(rig);
            for (const struct packet *packet; (packet = rig_next(slow)) != NULL; idle = 0) {
                count += packet->type == MQTT_PUBLISH;
                if (packet->type == MQTT_PUBLISH && packet->publish.qos == 1)
                    rig_send_ack(slow, MQTT_PUBACK, packet->publish.packet_id);
            }
        }
        assert_int_equal(count, VALUES);
    }
    assert_int_equal(RIG_COUNTER(rig, dropped_slow_consumer), 0);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 0);
    rig_free(rig);
}

static void retained_full_is_told(void **state)
{
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *client = v5(rig, "p"), *old = rig_connect(rig, "o", MQTT_V311, true);
    rig_publish_retained(client, "r/1", "1", 1, 1);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0x10);
    rig_publish_retained(client, "r/2", "2", 1, 2);
    rig_publish_retained(client, "r/2", "2", 2, 3);
    rig_publish_retained(client, "r/1", "2", 1, 4); /* replaces */
    rig_publish_retained(old, "r/3", "2", 1, 5);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 2, 0x97);
    expect_ack(client, MQTT_PUBREC, 3, 0x97);
    expect_ack(client, MQTT_PUBACK, 4, 0x10);
    expect_ack(old, MQTT_PUBACK, 5, 0);   /* it is not kept: 3.3.5-2 of 3.1.1 */
    rig_send_ack(client, MQTT_PUBREL, 3); /* the identifier is free: 4.3.3-9 */
    rig_settle(rig);
    expect_ack(client, MQTT_PUBCOMP, 3, 0x92);
    rig_free(rig);
}

static void retained_expires(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    struct packet packet = publish_packet("r", "v", 0, 0);
    packet.publish.retain = true;
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 10);
    rig_send(client, &packet);
    rig_advance(rig, 4000);
    rig_subscribe(other, 1, "r", 1);
    assert_int_equal(expect_publish(other, "r", "v", 0, RETAIN)->properties.message_expiry_interval_s, 6);
    rig_advance(rig, 7000);
    rig_subscribe(other, 2, "r", 1);
    expect_nothing(other);
    rig_free(rig);
}

/* === SUBSCRIBE, UNSUBSCRIBE ============================================================================================================
 */

/* The first is refused, room is made, the second is granted, and none waits for an answer: the session's end takes it out of the tree. */
static void filter_that_is_granted_at_the_second_try_ends_with_its_session(void **state)
{
    struct rig *rig = RIG(.tree_bytes_max = 60000);
    struct rig_client *client = v5(rig, "a"), *pub = v5(rig, "p");
    char deep[1000];
    memset(deep, '/', sizeof deep - 1); /* a thousand levels */
    deep[sizeof deep - 1] = '\0';
    deep[sizeof deep - 2] = '+';
    rig_subscribe(client, 1, deep, 1);
    rig_settle(rig);
    rig_route_hold(rig, true);
    rig_send_subscribe(client, 2, "x", 1, 0);
    rig_send_unsubscribe(client, 3, deep);
    rig_send_subscribe(client, 4, "x", 1, 0);
    rig_settle(rig);
    rig_route_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(expect(client, MQTT_SUBACK)->suback.codes.data[0], MQTT_REASON_QUOTA_EXCEEDED);
    expect(client, MQTT_UNSUBACK);
    assert_int_equal(expect(client, MQTT_SUBACK)->suback.codes.data[0], 1);
    rig_break(client);
    rig_settle(rig);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    rig_free(rig);
}

static void suback_has_a_code_for_each_filter(void **state) /* 3.8.4-1, -2, -5, -6; 3.9.3-1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *old = rig_connect(rig, "b", MQTT_V311, true);
    uint8_t filters[64];
    size_t size = packet_put_subscription(filters, SPAN_LITERAL("x"), 2);
    size += packet_put_subscription(filters + size, SPAN_LITERAL("$share/g/x"), 1);
    size += packet_put_subscription(filters + size, SPAN_LITERAL("y/#"), 0);
    struct packet packet = {.type = MQTT_SUBSCRIBE, .subscribe = {.packet_id = 99, .filter_count = 3, .filters = span_of(filters, size)}};
    rig_send(client, &packet);
    rig_send(old, &packet);
    rig_settle(rig);
    const struct packet *answer = expect(client, MQTT_SUBACK);
    assert_int_equal(answer->suback.packet_id, 99);
    assert_int_equal(answer->suback.codes.size, 3);
    assert_memory_equal(answer->suback.codes.data, "\x02\x9e\x00", 3);
    answer = expect(old, MQTT_SUBACK);
    assert_memory_equal(answer->suback.codes.data, "\x02\x80\x00", 3);
    rig_free(rig);
}

/* More filters than a session may have, in one packet: refused as a whole, and nobody waits for it. */
static void filters_in_a_packet_are_bounded(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "a"), *old = rig_connect(rig, "b", MQTT_V311, true);
    enum { COUNT = SUBSCRIPTION_LIST_FILTERS_MAX + 1 };
    uint8_t *filters = malloc(COUNT * 8u);
    size_t size = 0;
    for (unsigned i = 0; i < COUNT; i++, size += 8) {
        filters[size] = 0, filters[size + 1] = 5;
        snprintf((char *)filters + size + 2, 6, "%05u", i);
        filters[size + 7] = 0; /* options */
    }
    struct packet packet = {.type = MQTT_SUBSCRIBE,
                            .subscribe = {.packet_id = 1, .filters = span_of(filters, size), .filter_count = COUNT}};
    rig_send(client, &packet);
    rig_send(old, &packet);
    rig_settle(rig);
    const struct packet *answer = expect(client, MQTT_SUBACK);
    assert_int_equal(answer->suback.codes.size, COUNT);
    assert_int_equal(answer->suback.codes.data[COUNT - 1], 0x97);
    assert_int_equal(expect(old, MQTT_SUBACK)->suback.codes.data[0], 0x80);
    packet.subscribe.filters.size -= 8; /* as many as it may have */
    packet.subscribe.filter_count--;
    rig_send(client, &packet);
    rig_settle(rig);
    answer = expect(client, MQTT_SUBACK);
    assert_int_equal(answer->suback.codes.size, COUNT - 1);
    assert_int_equal(answer->suback.codes.data[COUNT - 2], 0);
    rig_send_subscribe(client, 2, "one more", 0, 0);
    rig_settle(rig);
    expect_suback(client, 2, 0x97);
    free(filters);
    rig_free(rig);
}

static void resubscribing_replaces(void **state) /* 3.8.4-3 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_subscribe(other, 1, "x", 2);
    rig_subscribe(other, 2, "x", 0);
    rig_publish(client, "x", "1", 2, 1);
    rig_settle(rig);
    expect_publish(other, "x", "1", 0, 0);
    expect_nothing(other);
    rig_free(rig);
}

static void unsubscribing_ends_it(void **state) /* 3.10.4-1 to -6, 3.11.3-1, -2 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s"), *old = rig_connect(rig, "o", MQTT_V311, true);
    rig_subscribe(other, 1, "x/+", 1);
    rig_publish(client, "x/y", "begun", 1, 1);
    rig_settle(rig);
    uint8_t filters[64];
    size_t size = packet_put_unsubscription(filters, SPAN_LITERAL("x/y"));
    size += packet_put_unsubscription(filters + size, SPAN_LITERAL("x/+"));
    struct packet packet = {.type = MQTT_UNSUBSCRIBE,
                            .unsubscribe = {.packet_id = 7, .filter_count = 2, .filters = span_of(filters, size)}};
    rig_send(other, &packet);
    rig_send(old, &packet);
    rig_settle(rig);
    uint16_t id = expect_publish(other, "x/y", "begun", 1, 0)->packet_id;
    const struct packet *answer = expect(other, MQTT_UNSUBACK);
    assert_int_equal(answer->suback.packet_id, 7);
    assert_memory_equal(answer->suback.codes.data, "\x11\x00", 2);
    answer = expect(old, MQTT_UNSUBACK);
    assert_int_equal(answer->suback.packet_id, 7);
    assert_int_equal(answer->suback.codes.size, 0);
    rig_publish(client, "x/y", "after", 1, 2);
    rig_send_ack(other, MQTT_PUBACK, id); /* what was begun is completed */
    rig_settle(rig);
    expect_nothing(other);
    rig_free(rig);
}

static const struct session *session_of(struct rig *rig, const char *id)
{
    return session_table_find(&rig_shard(rig, rig_home(rig, id))->sessions, span_of_string(id));
}

static struct packet hundred_seconds(const char *id)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, false);
    connect.connect.properties.session_expiry_interval_s = 100;
    connect.connect.properties.present |= MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL);
    return connect;
}

/* Its text is in the topic tree alone meanwhile. */
static void a_filter_survives_the_connection(void **state) /* 3.1.2-5, 3.10.4-1 */
{
    static const char *const filters[][2] = {{"x/y", "x/y"}, {"x/+/z", "x/1/z"}, {"x/#", "x/y/z"}, {"#", "x"},
                                             {"/+", "/x"},   {"+", "x"},         {"/", "/"},       {"+/#", "x/y"}};
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++) {
        struct rig *rig = RIG();
        struct packet connect = hundred_seconds("s");
        struct rig_client *client = v5(rig, "p"), *other = rig_connect_with(rig, &connect);
        expect_connack(other, false, 0);
        rig_subscribe(other, 1, filters[i][0], 1);
        rig_break(other);
        rig_settle(rig);
        assert_true(session_of(rig, "s")->is_folded);
        rig_publish(client, filters[i][1], "away", 1, 1);
        rig_settle(rig);
        expect_ack(client, MQTT_PUBACK, 1, 0);
        other = rig_connect_with(rig, &connect);
        expect_connack(other, true, 0);
        expect_publish(other, filters[i][1], "away", 1, 0);
        assert_false(session_of(rig, "s")->is_folded);
        rig_send_unsubscribe(other, 2, filters[i][0]);
        rig_settle(rig);
        assert_memory_equal(expect(other, MQTT_UNSUBACK)->suback.codes.data, "\x00", 1);
        assert_false(session_has_filters(session_of(rig, "s")));
        /* Its end takes it out of the tree. */
        rig_subscribe(other, 3, filters[i][0], 1);
        rig_break(other);
        rig_advance(rig, 101000);
        assert_null(session_of(rig, "s"));
        rig_publish(client, filters[i][1], "gone", 1, 2);
        rig_settle(rig);
        expect_ack(client, MQTT_PUBACK, 2, 0x10);
        rig_free(rig);
    }
}

/* What is on its way to the route actor when the connection ends is done, and only then may the tree be relied on. */
static void a_filter_on_its_way_is_not_lost(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hundred_seconds("s");
    struct rig_client *client = v5(rig, "p"), *other = rig_connect_with(rig, &connect);
    expect_connack(other, false, 0);
    rig_subscribe(other, 1, "x/y", 1);
    rig_route_hold(rig, true);
    rig_send_unsubscribe(other, 2, "x/y");
    rig_send_subscribe(other, 3, "x/z", 1, 0);
    rig_settle(rig);
    rig_break(other);
    rig_settle(rig);
    assert_false(session_of(rig, "s")->is_folded);
    rig_route_hold(rig, false);
    rig_settle(rig);
    assert_true(session_of(rig, "s")->is_folded);
    rig_publish(client, "x/y", "not", 1, 1);
    rig_publish(client, "x/z", "this", 1, 2);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0x10);
    expect_ack(client, MQTT_PUBACK, 2, 0);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    expect_publish(other, "x/z", "this", 1, 0);
    expect_nothing(other);
    /* Two are kept as text, and none as nothing. */
    rig_subscribe(other, 4, "x/y", 1);
    rig_break(other);
    rig_settle(rig);
    assert_false(session_of(rig, "s")->is_folded);
    rig_advance(rig, 101000);
    rig_publish(client, "x/y", "gone", 1, 3);
    rig_publish(client, "x/z", "gone", 1, 4);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 3, 0x10);
    expect_ack(client, MQTT_PUBACK, 4, 0x10);
    rig_free(rig);
}

static void subscription_works_at_suback(void **state) /* 4.5.0-1 */
{
    struct rig *rig = RIG();
    for (int i = 0; i < 20; i++) {
        char id[16], topic[16];
        snprintf(id, sizeof id, "s%d", i);
        snprintf(topic, sizeof topic, "x/%d", i);
        struct rig_client *other = v5(rig, id), *client = v5(rig, "p");
        rig_send_subscribe(other, 1, topic, 1, 0);
        for (int steps = 0; rig_output(other).size == 0; steps++) {
            assert_true(steps < 1000);
            rig_step(rig);
        }
        expect_suback(other, 1, 1);
        rig_publish(client, topic, "1", 1, 1);
        rig_settle(rig);
        expect_publish(other, topic, "1", 1, 0);
    }
    rig_free(rig);
}

static void dollar_topics_are_not_for_wildcards(void **state) /* 4.7.2-1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5(rig, "s");
    rig_subscribe(other, 1, "#", 0);
    rig_subscribe(other, 2, "$x/#", 0);
    rig_publish(client, "$y/1", "1", 0, 0);
    rig_publish(client, "$x/1", "2", 0, 0);
    rig_settle(rig);
    expect_publish(other, "$x/1", "2", 0, 0);
    expect_nothing(other);
    rig_free(rig);
}

/* === the log ===========================================================================================================================
 */

static void a_step_of_the_wall_clock_expires_nothing(void **state) /* 3.3.2-5 */
{
    struct rig *rig = RIG();
    struct rig_client *sub = v5_stay(rig, "sub"), *pub = v5(rig, "pub");
    rig_subscribe(sub, 1, "x", 1);
    rig_break(sub);
    rig_settle(rig);
    struct packet packet = publish_packet("x", "1", 1, 1);
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 60);
    rig_send(pub, &packet);
    rig_settle(rig);
    rig_step_wall(rig, 3600);
    rig_advance(rig, 20000);
    sub = v5_stay(rig, "sub");
    rig_settle(rig);
    const struct packet *got = expect(sub, MQTT_PUBLISH);
    assert_int_equal(got->publish.properties.message_expiry_interval_s, 40);
    rig_free(rig);
}

static void puback_means_saved(void **state) /* 4.3.2-4, 4.3.3-8; LOG 8 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5_stay(rig, "car");
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_publish(client, "t/car/x", "2", 2, 2);
    rig_publish(client, "other", "3", 1, 3); /* has no record, but its turn is behind */
    rig_send_bytes(client, "\xc0\x00", 2);
    rig_settle(rig);
    expect(client, MQTT_PINGRESP); /* never waits */
    expect_nothing(client);
    struct packet again = publish_packet("t/car/x", "2", 2, 2);
    again.publish.dup = true;
    rig_send(client, &again);
    rig_settle(rig);
    expect_nothing(client); /* the repeated PUBREC promises the same */
    rig_break(client);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("car", MQTT_V5, false);
    client = rig_connect_with(rig, &connect);
    rig_send(client, &again);
    rig_settle(rig);
    expect_nothing(client); /* not even CONNACK: the session's record is behind */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, true, 0);
    expect_ack(client, MQTT_PUBREC, 2, 0); /* on another connection as well */
    expect_nothing(client);                /* the others belonged to the connection before */
    assert_int_equal(rig_published_count(rig), 2);
    assert_int_equal(RIG_COUNTER(rig, acks_dropped), 4);
    rig_free(rig);
}

static void record_has_everything(void **state) /* LOG 1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5_stay(rig, "car"), *other = v5_stay(rig, "s");
    rig_send_subscribe(other, 1, "t/#", 1 | 8, 7);
    rig_settle(rig);
    struct packet packet = publish_packet("t/dev1/speed", "{\"a\":1}", 2, 77);
    packet.publish.retain = true;
    SET(packet.publish, CONTENT_TYPE, content_type, span_of_string("json"));
    SET(packet.publish, MESSAGE_EXPIRY_INTERVAL, message_expiry_interval_s, 60);
    rig_send(client, &packet);
    rig_settle(rig);
    assert_int_equal(rig_published_count(rig), 1);
    struct record rec;
    rig_published(rig, &rec, 0);
    assert_int_equal(rec.type, RECORD_PUBLISH);
    assert_int_equal(rec.qos, 2);
    assert_true(rec.retain);
    expect_text(rec.topic, "t/dev1/speed");
    expect_text(rec.payload, "{\"a\":1}");
    expect_text(rec.device, "dev1");
    expect_text(rec.client_id, "car");
    assert_int_equal(rec.partition_count, 16);
    assert_int_equal(rec.packet_id, 77);
    assert_int_equal(rec.retained_number, 1);
    assert_true(rec.received_ns > 0);
    assert_true(rec.expiry_ns == rec.received_ns + INT64_C(60000000000));
    assert_true(rec.properties.size > 0);
    assert_true(rec.has_correlation);
    struct record_recipient recipient;
    assert_int_equal(record_recipient_next(&recipient, &rec.recipients), 0);
    assert_int_equal(recipient.qos, 1);
    uint32_t id;
    assert_int_equal(record_id_next(&id, &recipient.ids), 0);
    assert_int_equal(id, 7);
    assert_int_equal(record_recipient_next(&recipient, &rec.recipients), ERR_AGAIN);
    rig_free(rig);
}

static void session_numbers_are_never_given_twice(void **state)
{
    enum { CLIENTS = 40, ROUNDS = 3 };
    (void)state;
    struct rig *rig = rig_new(&(struct rig_options){.shard_count = 3});
    size_t count = 0;
    uint64_t numbers[CLIENTS * ROUNDS];
    for (int round = 0; round < ROUNDS; round++) { /* a clean start is another session of the same client */
        for (int i = 0; i < CLIENTS; i++) {
            char id[16];
            snprintf(id, sizeof id, "car-%d", i);
            struct rig_client *client = rig_connect(rig, id, MQTT_V5, true);
            rig_publish(client, "t/car/x", "1", 1, 1);
            rig_settle(rig);
            struct record rec;
            rig_published(rig, &rec, count);
            assert_int_equal(rec.session >> SESSION_NUMBER_COUNTER_BITS, 1); /* the epoch */
            assert_int_equal(((rec.session & SESSION_NUMBER_COUNTER_MAX) - 1) % 3, rig_home(rig, id));
            for (size_t earlier = 0; earlier < count; earlier++)
                assert_true(numbers[earlier] != rec.session);
            numbers[count++] = rec.session;
        }
    }
    rig_free(rig);
}

static void receive_times_strictly_increase(void **state) /* LOG 1 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car");
    for (uint16_t i = 1; i <= 50; i++)
        rig_publish(client, "t/car/x", "1", 1, i);
    rig_settle(rig);
    int64_t last = 0;
    for (size_t i = 0; i < 50; i++) {
        struct record rec;
        rig_published(rig, &rec, i);
        assert_true(rec.received_ns > last);
        last = rec.received_ns;
    }
    rig_free(rig);
}

static void persistent_sessions_get_it_when_durable(void **state) /* LOG 9 */
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car"), *clean = v5(rig, "c"), *stays = v5_stay(rig, "s");
    rig_subscribe(clean, 1, "t/#", 2);
    rig_subscribe(stays, 1, "t/#", 2);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    expect_publish(clean, "t/car/x", "1", 1, 0);
    expect_nothing(stays);
    rig_publish(client, "t/car/x", "2", 2, 2);
    rig_settle(rig);
    expect_nothing(clean); /* QoS 2: nobody before it is durable */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_publish(clean, "t/car/x", "2", 2, 0); /* at the PUBLISH, not at PUBREL */
    expect_publish(stays, "t/car/x", "1", 1, 0);
    expect_publish(stays, "t/car/x", "2", 2, 0);
    rig_free(rig);
}

static void full_log_stops_reading_not_losing(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car"), *other = v5(rig, "other");
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_publish(client, "t/car/x", "0", 0, 0);
    for (uint16_t i = 1; i <= 3; i++)
        rig_publish(client, "t/car/x", "1", 1, i);
    rig_publish(other, "plain", "1", 1, 1);
    rig_settle(rig);
    expect_nothing(client);
    assert_true(rig_is_paused(client));
    expect_ack(other, MQTT_PUBACK, 1, 0x10);                           /* who does not need the log goes on */
    assert_int_equal(RIG_COUNTER(rig, telemetry_refused_log_full), 1); /* QoS 0 is shed */
    rig_log_room(rig, true);
    rig_advance(rig, 100);
    for (uint16_t i = 1; i <= 3; i++)
        expect_ack(client, MQTT_PUBACK, i, 0);
    assert_false(rig_is_paused(client));
    assert_int_equal(rig_published_count(rig), 3);
    rig_free(rig);
}

/* While the log is full its publishers wait, and are not tried again at each turn that others cause. */
static void full_log_costs_others_nothing(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *clients[50], *other = v5(rig, "other");
    rig_log_room(rig, false);
    rig_settle(rig);
    for (int i = 0; i < 50; i++) {
        char id[8];
        snprintf(id, sizeof id, "c%d", i);
        clients[i] = v5(rig, id);
        rig_publish(clients[i], "t/car/x", "1", 1, 1);
    }
    rig_settle(rig);
    uint64_t before = RIG_COUNTER(rig, blocked_retries);
    for (int i = 0; i < 100; i++) {
        rig_send_bytes(other, "\xc0\x00", 2);
        rig_settle(rig);
        expect(other, MQTT_PINGRESP);
    }
    assert_true(RIG_COUNTER(rig, blocked_retries) - before <= 50);
    rig_log_room(rig, true);
    rig_settle(rig);
    for (int i = 0; i < 50; i++)
        expect_ack(clients[i], MQTT_PUBACK, 1, 0);
    rig_free(rig);
}

static void empty_pool_is_back_pressure(void **state)
{
    struct rig *rig = RIG(.block_count = 2, .body_max = 4096);
    struct rig_client *client = v5(rig, "car");
    static char payload[3001];
    memset(payload, 'p', sizeof payload - 1);
    rig_log_hold(rig, true);
    for (uint16_t i = 1; i <= 10; i++)
        rig_publish(client, "t/car/x", payload, 1, i);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, telemetry_logged), 2);
    assert_true(rig_is_paused(client));
    rig_log_hold(rig, false);
    rig_advance(rig, 1000);
    for (uint16_t i = 1; i <= 10; i++)
        expect_ack(client, MQTT_PUBACK, i, 0);
    assert_int_equal(rig_published_count(rig), 10);
    rig_free(rig);
}

static void large_record_is_a_group_of_blocks(void **state) /* LOG 6 */
{
    struct rig *rig = RIG(.block_count = 8, .body_max = 4096);
    struct rig_client *client = v5(rig, "car"), *second = v5(rig, "second"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "t/#", 1);
    static char payload[100001];
    for (size_t i = 0; i < sizeof payload - 1; i++)
        payload[i] = (char)('a' + i % 25);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", payload, 1, 1);
    rig_publish(client, "t/car/x", "behind", 1, 2);
    rig_publish(second, "t/car/x", payload, 2, 1);
    rig_settle(rig);
    expect_nothing(client);
    assert_true(rig_is_paused(client));
    rig_log_hold(rig, false);
    rig_advance(rig, 1000);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_ack(client, MQTT_PUBACK, 2, 0);
    expect_ack(second, MQTT_PUBREC, 1, 0);
    assert_int_equal(rig_published_count(rig), 3);
    unsigned large = 0;
    for (size_t i = 0; i < 3; i++) {
        struct record rec;
        rig_published(rig, &rec, i);
        large += rec.payload.size == sizeof payload - 1 && memcmp(rec.payload.data, payload, rec.payload.size) == 0;
    }
    assert_int_equal(large, 2);
    unsigned copies = 0;
    for (const struct packet *packet; (packet = rig_next(other)) != NULL; copies++)
        assert_int_equal(packet->type, MQTT_PUBLISH);
    assert_int_equal(copies, 3);
    rig_free(rig);
}

/* A record that the log could never hold is refused, not begun. */
static void record_beyond_the_log_is_refused(void **state)
{
    struct rig *rig = RIG(.limits = {.record_bytes_max = 2000});
    struct rig_client *client = v5(rig, "c");
    char payload[3000];
    memset(payload, 'x', sizeof payload - 1);
    payload[sizeof payload - 1] = '\0';
    rig_publish(client, "t/dev/x", payload, 1, 7);
    rig_publish(client, "other", payload, 1, 8); /* not telemetry: no record */
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 7, MQTT_REASON_QUOTA_EXCEEDED);
    expect_ack(client, MQTT_PUBACK, 8, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    assert_int_equal(RIG_COUNTER(rig, telemetry_refused_too_large), 1);
    assert_int_equal(rig_published_count(rig), 0);
    rig_free(rig);
}

static void large_record_outlives_its_connection(void **state)
{
    struct rig *rig = RIG(.block_count = 4, .body_max = 4096);
    struct rig_client *client = v5_stay(rig, "car");
    static char payload[100001];
    memset(payload, 'p', sizeof payload - 1);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", payload, 2, 1);
    rig_settle(rig);
    rig_break(client);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("car", MQTT_V5, false);
    client = rig_connect_with(rig, &connect);
    rig_publish(client, "t/car/x", payload, 2, 1); /* again, while the first is on its way */
    rig_settle(rig);
    expect_nothing(client);
    rig_log_hold(rig, false);
    rig_advance(rig, 1000);
    expect_connack(client, true, 0);
    expect_ack(client, MQTT_PUBREC, 1, 0);
    assert_int_equal(rig_published_count(rig), 1);
    rig_free(rig);
}

static void failed_log_acknowledges_nothing(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car"), *old = rig_connect(rig, "old", MQTT_V311, true);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    rig_log_fail(rig);
    rig_settle(rig);
    rig_publish(client, "t/car/x", "2", 1, 2);
    rig_publish(old, "t/car/x", "2", 1, 2);
    rig_settle(rig);
    expect_nothing(client); /* not even the refusal, which is behind the first */
    assert_true(rig_is_closed(old));
    struct rig_client *fresh = v5(rig, "fresh");
    rig_publish(fresh, "t/car/x", "3", 1, 3);
    rig_settle(rig);
    expect_ack(fresh, MQTT_PUBACK, 3, 0x83);
    rig_free(rig);
}

static void telemetry_rules_decide(void **state)
{
    struct rig *rig = RIG(.rules = "fleet/{device}/t on_no_device=refuse\nskip/{device}/t on_no_device=skip\nlow/{device} max_qos=0");
    struct rig_client *client = v5(rig, "car"), *old = rig_connect(rig, "old", MQTT_V311, true);
    rig_publish(client, "fleet/x/t", "1", 1, 1);
    rig_publish(client, "fleet//t", "1", 1, 2);
    rig_publish(client, "fleet//t", "1", 2, 3);
    rig_publish(client, "skip//t", "1", 1, 4);
    rig_publish(client, "low/x", "1", 1, 5);
    rig_publish(client, "low/x", "1", 0, 0);
    rig_publish(old, "fleet//t", "1", 1, 1);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_ack(client, MQTT_PUBACK, 2, 0x83);
    expect_ack(client, MQTT_PUBREC, 3, 0x83);
    expect_ack(client, MQTT_PUBACK, 4, 0x10);
    expect_ack(client, MQTT_PUBACK, 5, 0x83);
    assert_true(rig_is_closed(old));
    assert_int_equal(rig_published_count(rig), 2);
    assert_int_equal(RIG_COUNTER(rig, telemetry_matched), 7);
    rig_free(rig);
}

static void without_persistence_all_is_acknowledged(void **state)
{
    struct rig *rig = RIG(.no_persistence = true);
    struct rig_client *client = v5(rig, "car");
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_publish(client, "t/car/x", "2", 2, 2);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_ack(client, MQTT_PUBREC, 2, 0);
    rig_free(rig);
}

/* === the whole =========================================================================================================================
 */

static void small_rings_only_slow_down(void **state)
{
    struct rig *rig = RIG(.ring_size = 2, .limits = {.publishes_per_turn_max = 3});
    struct rig_client *publishers[3], *others[3];
    for (int i = 0; i < 3; i++) {
        char id[16];
        snprintf(id, sizeof id, "p%d", i);
        publishers[i] = v5(rig, id);
        snprintf(id, sizeof id, "s%d", i);
        others[i] = v5_stay(rig, id);
        rig_subscribe(others[i], 1, "x/#", 1);
        rig_break(others[i]);
    }
    rig_settle(rig);
    enum { COUNT = 150 };
    for (uint16_t n = 1; n <= COUNT; n++)
        for (int i = 0; i < 3; i++)
            rig_publish_retained(publishers[i], n % 2 ? "x/1" : "x/2", "v", 1, n);
    rig_advance(rig, 2000);
    for (int i = 0; i < 3; i++)
        for (uint16_t n = 1; n <= COUNT; n++)
            expect_ack(publishers[i], MQTT_PUBACK, n, 0);
    for (int i = 0; i < 3; i++) {
        char id[16];
        snprintf(id, sizeof id, "s%d", i);
        struct packet connect = rig_connect_packet(id, MQTT_V5, false);
        others[i] = rig_connect_with(rig, &connect);
        expect_connack(others[i], true, 0);
        int count = 0;
        for (const struct packet *packet; (packet = rig_next(others[i])) != NULL; count++) {
            rig_send_ack(others[i], MQTT_PUBACK, packet->publish.packet_id);
            rig_advance(rig, 20);
        }
        assert_int_equal(count, 3 * COUNT);
    }
    rig_free(rig);
}

/* What came out, whatever the order between kinds: PINGRESP may pass what waits for the log or the route actor. */
struct outcome {
    size_t size;
    uint64_t sum;
    unsigned packets;
};

static struct outcome outcome_of(struct rig_client *client)
{
    struct outcome outcome = {.size = rig_output(client).size};
    for (struct span rest = rig_output(client); rest.size > 0; outcome.packets++) {
        struct frame frame;
        assert_int_equal(frame_parse(&frame, rest.data, rest.size, FRAME_SIZE_MAX), FRAME_OK);
        uint64_t hash = 1469598103934665603u;
        for (size_t i = 0; i < frame.size; i++)
            hash = (hash ^ rest.data[i]) * 1099511628211u;
        outcome.sum += hash;
        rest = span_of(rest.data + frame.size, rest.size - frame.size);
    }
    return outcome;
}

/* A session's whole life as bytes, handed over in pieces (0: of random sizes). */
static struct outcome play(void **state, const uint8_t *bytes, size_t size, size_t piece, size_t first_piece, struct check_random *random)
{
    struct rig *rig = RIG();
    struct rig_client *client = rig_open(rig, "cut");
    size_t at = 0;
    if (first_piece) {
        rig_send_bytes(client, bytes, first_piece);
        rig_step(rig);
        at = first_piece;
    }
    while (at < size) {
        size_t now = piece ? piece : 1 + check_random_below(random, 40);
        now = now < size - at ? now : size - at;
        rig_send_bytes(client, bytes + at, now);
        rig_step(rig);
        at += now;
    }
    rig_settle(rig);
    struct outcome outcome = outcome_of(client);
    rig_free(rig);
    return outcome;
}

static void any_cut_gives_the_same(void **state)
{
    uint8_t script[8192];
    size_t size = 0;
#define PUT(...)                                                                                                                           \
    do {                                                                                                                                   \
        struct packet put_packet = __VA_ARGS__;                                                                                            \
        size += packet_encode(script + size, &put_packet, MQTT_V5, UINT32_MAX);                                                            \
        assert_true(size < sizeof script / 2);                                                                                             \
    } while (0)
    uint8_t filters[32];
    size_t filters_size = packet_put_subscription(filters, SPAN_LITERAL("loop/#"), 2);
    char payload[201];
    memset(payload, 'p', sizeof payload), payload[200] = 0;
    PUT(rig_connect_packet("cut", MQTT_V5, true));
    PUT((struct packet){.type = MQTT_SUBSCRIBE,
                        .subscribe = {.packet_id = 1, .filter_count = 1, .filters = span_of(filters, filters_size)}});
    PUT((struct packet){.type = MQTT_PINGREQ});
    PUT(publish_packet("t/car/x", payload, 1, 10));
    PUT(publish_packet("none", "1", 2, 11));
    PUT((struct packet){.type = MQTT_PUBREL, .ack = {.packet_id = 11}});
    PUT((struct packet){.type = MQTT_PUBREL, .ack = {.packet_id = 11}});
    PUT(publish_packet("t/car/y", "", 2, 12));
    PUT((struct packet){.type = MQTT_PINGREQ});
#undef PUT
    struct check_random random;
    check_random_init(&random, check_random_seed(7));
    struct outcome expected = play(state, script, size, size, 0, &random);
    assert_int_equal(expected.packets, 9);
    for (size_t piece = 0; piece < 40; piece++) {
        struct outcome got = play(state, script, size, piece, 0, &random);
        assert_int_equal(got.size, expected.size);
        assert_true(got.sum == expected.sum);
    }
    for (size_t cut = 1; cut < size; cut++) { /* in two at every byte */
        struct outcome got = play(state, script, size, size, cut, &random);
        assert_int_equal(got.size, expected.size);
        assert_true(got.sum == expected.sum);
    }
}

static void partial_packets_have_a_budget(void **state)
{
    struct rig *rig = RIG(.limits = {.partial_bytes_max = 10000});
    struct rig_client *client = v5(rig, "a");
    uint8_t bytes[20000] = {0x30, 0x80, 0x80, 0x80, 0x01}; /* announces 2 MiB */
    rig_send_bytes(client, bytes, 5000);
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    rig_send_bytes(client, bytes + 5000, 15000);
    rig_settle(rig);
    expect_disconnect(client, 0x97);
    /* Others' stalled packets leave the budget used up: a small packet in two pieces still comes through. */
    struct rig_client *greedy = v5(rig, "a"), *small = v5(rig, "a2");
    rig_send_bytes(greedy, bytes, 8000);
    rig_settle(rig);
    uint8_t publish[2003] = {0x32, 0xd0, 0x0f, 0, 1, 'x', 0, 1, 0}; /* QoS 1, 2000 bytes behind the header */
    rig_send_bytes(small, publish, 1500);
    rig_settle(rig);
    rig_send_bytes(small, publish + 1500, 503);
    rig_settle(rig);
    expect_ack(small, MQTT_PUBACK, 1, 0x10);
    assert_false(rig_is_closed(greedy));
    rig_free(rig);
}

static void drain_waits_for_promises(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car"), *other = v5(rig, "other");
    struct packet connect = will_packet("w", 0, 0);
    rig_connect_with(rig, &connect);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    assert_false(rig_drain(rig, false));
    expect_disconnect(other, 0x8b);
    assert_false(rig_is_closed(client));
    rig_log_hold(rig, false);
    rig_settle(rig);
    rig_drain(rig, false);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_disconnect(client, 0x8b);
    rig_settle(rig);
    assert_true(rig_drain(rig, false));
    rig_free(rig);
}

/* A client that never pauses must not hold the end up. */
static void drain_reads_nothing_more(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car");
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    assert_false(rig_drain(rig, false));
    assert_true(rig_is_paused(client));
    rig_publish(client, "t/car/x", "2", 1, 2); /* was read before the pause came to pass */
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    rig_publish(client, "t/car/x", "3", 1, 3);
    rig_settle(rig);
    rig_drain(rig, false);
    expect_disconnect(client, 0x8b); /* and no PUBACK of what came later */
    assert_int_equal(rig_published_count(rig), 1);
    rig_settle(rig);
    assert_true(rig_drain(rig, false));
    rig_free(rig);
}

/* Clients that do anything, among small limits: nothing crashes, and the books balance at every step (the rig checks). */
static void random_clients_keep_the_books(void **state)
{
    struct check_random random;
    check_random_init(&random, check_random_seed(11));
    struct rig *rig =
        RIG(.ring_size = 8, .block_count = 3, .body_max = 1024, .retained_max = 5,
            .limits = {.session_queue_messages_max = 60, .inflight_max = 4, .outbox_bytes_max = 600, .publishes_per_turn_max = 5},
            .listener = {.receive_maximum = 5});
    enum { CLIENTS = 8 };
    struct rig_client *clients[CLIENTS] = {0};
    static const char *topics[] = {"a", "a/b", "t/x/y", "t/z/y", "r"};
    static const char *filters[] = {"#", "a/#", "+/b", "t/+/y", "r", "a"};
    for (int step = 0; step < 3000; step++) {
        size_t i = check_random_below(&random, CLIENTS);
        char id[8], payload[200];
        snprintf(id, sizeof id, "c%zu", i);
        if (!clients[i] || rig_is_closed(clients[i])) {
            struct packet connect =
                rig_connect_packet(id, check_random_chance(&random, 1, 3) ? MQTT_V311 : MQTT_V5, check_random_chance(&random, 1, 3));
            if (connect.connect.version == MQTT_V5 && check_random_chance(&random, 1, 2))
                SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, (uint16_t)(1 + check_random_below(&random, 3)));
            if (check_random_chance(&random, 1, 3)) {
                connect.connect.has_will = true;
                connect.connect.will_topic = span_of_string(topics[check_random_below(&random, 5)]);
                connect.connect.will_qos = (uint8_t)check_random_below(&random, 3);
            }
            clients[i] = rig_open(rig, id);
            rig_set_version(clients[i], connect.connect.version);
            rig_send(clients[i], &connect);
            rig_step(rig);
            continue;
        }
        memset(payload, 'x', sizeof payload);
        payload[check_random_below(&random, sizeof payload)] = 0;
        payload[sizeof payload - 1] = 0;
        uint8_t qos = (uint8_t)check_random_below(&random, 3);
        const char *topic = topics[check_random_below(&random, 5)];
        switch (check_random_below(&random, 12)) {
        case 0:
            rig_send_subscribe(clients[i], 1, filters[check_random_below(&random, 6)], qos, 0);
            break;
        case 1:
            rig_send_unsubscribe(clients[i], 2, filters[check_random_below(&random, 6)]);
            break;
        case 2:
            rig_publish_retained(clients[i], topic, payload, qos, qos ? (uint16_t)(1 + check_random_below(&random, 9)) : 0);
            break;
        case 3:
            rig_break(clients[i]);
            break;
        case 4:
            rig_log_hold(rig, check_random_chance(&random, 1, 2));
            break;
        case 5:
            rig_write_max(clients[i], check_random_below(&random, 100));
            break;
        case 6:
            for (uint16_t packet_id = 1; packet_id < 12; packet_id++)
                rig_send_ack(clients[i], MQTT_PUBREL, packet_id);
            break;
        case 7:
            rig_advance(rig, (int64_t)check_random_below(&random, 2000));
            break;
        case 8:
        case 9:
            for (int n = 0; n < 5 && !rig_is_closed(clients[i]); n++) {
                const struct packet *packet = rig_next(clients[i]);
                if (packet && packet->type == MQTT_PUBLISH && packet->publish.qos > 0)
                    rig_send_ack(clients[i], packet->publish.qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, packet->publish.packet_id);
                else if (packet && packet->type == MQTT_PUBREL)
                    rig_send_ack(clients[i], MQTT_PUBCOMP, packet->ack.packet_id);
            }
            break;
        default:
            rig_publish(clients[i], topic, payload, qos, qos ? (uint16_t)(1 + check_random_below(&random, 9)) : 0);
        }
        if (check_random_chance(&random, 1, 4))
            rig_settle(rig);
        else
            rig_step(rig);
    }
    rig_log_hold(rig, false);
    rig_advance(rig, 10000);
    assert_true(RIG_COUNTER(rig, copies_routed) > 100);
    assert_true(RIG_COUNTER(rig, telemetry_logged) > 10);
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
        IN_EACH_MODE(will_goes_out_when_the_connection_breaks),
        IN_EACH_MODE(will_is_discarded_by_disconnect_0_only),
        IN_EACH_MODE(will_waits_for_its_delay),
        IN_EACH_MODE(will_goes_out_at_the_sessions_end),
        IN_EACH_MODE(will_goes_out_on_takeover),
        IN_EACH_MODE(will_may_be_retained_with_properties),
        IN_EACH_MODE(will_waits_for_room_in_the_log),
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
        IN_EACH_MODE(qos_is_the_lesser_of_both),
        IN_EACH_MODE(qos2_out_takes_four_steps),
        IN_EACH_MODE(redelivery_has_dup_and_the_same_identifiers),
        IN_EACH_MODE(client_receive_maximum_is_respected),
        IN_EACH_MODE(client_maximum_packet_size_is_respected),
        IN_EACH_MODE(overlapping_subscriptions_are_one_message),
        IN_EACH_MODE(overlapping_subscriptions_may_be_copies),
        IN_EACH_MODE(no_local_is_kept),
        IN_EACH_MODE(order_is_kept),
        IN_EACH_MODE(queue_goes_through_the_store_in_order),
        IN_EACH_MODE(qos0_waits_only_when_configured),
        IN_EACH_MODE(many_recipients_share_the_turn),
        IN_EACH_MODE(slow_socket_drops_qos0_and_is_not_read),
        IN_EACH_MODE(slow_sockets_have_a_bound_together),
        IN_EACH_MODE(keep_alive_ends_who_takes_nothing),
        IN_EACH_MODE(nothing_stalls_behind_a_full_outbox),
        IN_EACH_MODE(large_payloads_go_by_reference),
        IN_EACH_MODE(messages_expire),
        IN_EACH_MODE(nothing_expires_once_sent),
        IN_EACH_MODE(retained_is_sent_to_new_subscriptions),
        IN_EACH_MODE(retain_handling_is_respected),
        IN_EACH_MODE(retain_as_published_is_respected),
        IN_EACH_MODE(retained_scan_is_paced_by_its_client),
        IN_EACH_MODE(retained_full_is_told),
        IN_EACH_MODE(retained_expires),
        IN_EACH_MODE(suback_has_a_code_for_each_filter),
        IN_EACH_MODE(filter_that_is_granted_at_the_second_try_ends_with_its_session),
        IN_EACH_MODE(filters_in_a_packet_are_bounded),
        IN_EACH_MODE(resubscribing_replaces),
        IN_EACH_MODE(unsubscribing_ends_it),
        IN_EACH_MODE(a_filter_survives_the_connection),
        IN_EACH_MODE(a_filter_on_its_way_is_not_lost),
        IN_EACH_MODE(subscription_works_at_suback),
        IN_EACH_MODE(dollar_topics_are_not_for_wildcards),
        IN_EACH_MODE(a_step_of_the_wall_clock_expires_nothing),
        IN_EACH_MODE(puback_means_saved),
        IN_EACH_MODE(record_has_everything),
        cmocka_unit_test(session_numbers_are_never_given_twice),
        IN_EACH_MODE(receive_times_strictly_increase),
        IN_EACH_MODE(persistent_sessions_get_it_when_durable),
        IN_EACH_MODE(full_log_stops_reading_not_losing),
        IN_EACH_MODE(full_log_costs_others_nothing),
        IN_EACH_MODE(empty_pool_is_back_pressure),
        IN_EACH_MODE(large_record_is_a_group_of_blocks),
        IN_EACH_MODE(record_beyond_the_log_is_refused),
        IN_EACH_MODE(large_record_outlives_its_connection),
        IN_EACH_MODE(failed_log_acknowledges_nothing),
        IN_EACH_MODE(telemetry_rules_decide),
        IN_EACH_MODE(without_persistence_all_is_acknowledged),
        IN_EACH_MODE(small_rings_only_slow_down),
        IN_EACH_MODE(any_cut_gives_the_same),
        IN_EACH_MODE(partial_packets_have_a_budget),
        IN_EACH_MODE(drain_waits_for_promises),
        IN_EACH_MODE(drain_reads_nothing_more),
        IN_EACH_MODE(random_clients_keep_the_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
