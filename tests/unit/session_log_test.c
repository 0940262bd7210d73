/* What the log is told of sessions, and what waits for it (LOG 8): beginnings, connections, subscriptions, wills and ends, each as the
 * records that a start would read. With one shard, three, and three whose rings deliver in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/session_life.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_state.h"
#include "common/clock.h"
#include "common/position_list.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

/* A session that stays for an hour, or with 0 ends with its connection. */
static struct packet hour(const char *id, uint32_t expiry_s)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, expiry_s == 0);
    if (expiry_s > 0)
        connect.connect.properties.session_expiry_interval_s = expiry_s;
    return connect;
}

static void add_will(struct packet *connect, uint32_t delay_s)
{
    connect->connect.has_will = true;
    connect->connect.will_topic = SPAN_LITERAL("gone");
    connect->connect.will_payload = SPAN_LITERAL("bye");
    connect->connect.will_properties.will_delay_interval_s = delay_s;
    connect->connect.will_properties.present = delay_s > 0 ? MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL) : 0;
}

/* The `skip`-th record of a type (from 0) about a client's session; its place in the log is returned. */
static size_t find_record(const struct rig *rig, struct record *rec_out, enum record_type type, size_t skip)
{
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        rig_record(rig, rec_out, i);
        if (rec_out->type == type && skip-- == 0)
            return i;
    }
    fail_msg("no such record: %s", record_type_name((uint8_t)type));
    return SIZE_MAX;
}

static void expect_state(const struct record *rec, const char *client_id, uint32_t expiry_s, bool is_connected)
{
    expect_text(rec->client_id, client_id);
    assert_true(rec->session != 0);
    assert_true(rec->received_ns > 0);
    assert_int_equal(rec->options & RECORD_SESSION_EXPIRY_MASK, expiry_s);
    assert_int_equal((rec->options & RECORD_SESSION_CONNECTED) != 0, is_connected);
    assert_int_equal(rec->options >> RECORD_SESSION_PROTOCOL_SHIFT & 0xff, 5);
}

/* === CONNACK ========================================================================================================================= */

static void connack_comes_when_the_session_is_durable(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 3600);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    struct record rec;
    find_record(rig, &rec, RECORD_SESSION, 0);
    expect_state(&rec, "car", 3600, true);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    rig_free(rig);
}

static void session_that_ends_with_its_connection_is_not_logged(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_send_subscribe(client, 1, "x", 1, 0);
    rig_settle(rig);
    expect(client, MQTT_SUBACK);
    leave(rig, client);
    assert_int_equal(rig_record_count(rig), 0);
    rig_log_hold(rig, false);
    rig_free(rig);
}

static void without_persistence_nothing_waits(void **state)
{
    struct rig *rig = RIG(.no_persistence = true);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    leave(rig, client);
    client = rig_connect_with(rig, &connect);
    expect_connack(client, true, 0);
    rig_free(rig);
}

static void packets_behind_connect_are_handled_after_it(void **state) /* LOG 8 */
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 3600);
    struct rig_client *client = rig_open(rig, "car");
    rig_send(client, &connect);
    rig_send_subscribe(client, 1, "x", 1, 0);
    rig_publish(client, "x", "mine", 1, 2);
    rig_send(client, &(struct packet){.type = MQTT_PINGREQ});
    rig_settle(rig);
    expect_nothing(client);
    assert_int_equal(rig_record_count(rig), 1);
    assert_true(rig_is_paused(client));
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    bool has_pingresp = false, has_suback = false, has_puback = false;
    for (const struct packet *packet; (packet = rig_next(client)) != NULL;) {
        has_pingresp |= packet->type == MQTT_PINGRESP;
        has_suback |= packet->type == MQTT_SUBACK;
        has_puback |= packet->type == MQTT_PUBACK;
    }
    assert_true(has_pingresp);
    assert_true(has_suback);
    assert_true(has_puback);
    assert_false(rig_is_paused(client));
    rig_free(rig);
}

static void resumed_session_keeps_its_number_and_connack_waits_again(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    leave(rig, rig_connect_with(rig, &connect));
    struct record first, away, again;
    find_record(rig, &first, RECORD_SESSION, 0);
    find_record(rig, &away, RECORD_SESSION, 1);
    expect_state(&away, "car", 3600, false);
    rig_advance(rig, 5000);
    rig_log_hold(rig, true);
    connect.connect.properties.session_expiry_interval_s = 7200;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    find_record(rig, &again, RECORD_SESSION, 2);
    expect_state(&again, "car", 7200, true);
    assert_true(again.session == first.session && away.session == first.session);
    assert_true(again.received_ns >= away.received_ns + 5 * NS_PER_S); /* the clock of its expiry: from when to when it was away */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, true, 0);
    rig_free(rig);
}

/* keeps: whether the second session stays, too. */
static void clean_start(void **state, bool keeps)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    leave(rig, rig_connect_with(rig, &connect));
    rig_log_hold(rig, true);
    connect.connect.clean_start = true;
    connect.connect.properties.session_expiry_interval_s = keeps ? 60 : 0;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_nothing(client); /* or a crash would bring back a session that its client was told is gone */
    struct record first, deleted, second;
    find_record(rig, &first, RECORD_SESSION, 0);
    size_t deleted_at = find_record(rig, &deleted, RECORD_SESSION_DELETE, 0);
    assert_true(deleted.session == first.session);
    assert_int_equal(count_records(rig, RECORD_SESSION), keeps ? 3 : 2);
    if (keeps) {
        assert_true(find_record(rig, &second, RECORD_SESSION, 2) > deleted_at);
        assert_true(second.session != first.session);
    }
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    rig_free(rig);
}
static void clean_start_deletes_the_old_session_first(void **state) { clean_start(state, true); }
static void connack_of_a_session_that_ends_waits_for_the_old_one_s_end(void **state) { clean_start(state, false); }

/* Lost before its CONNACK, it comes again: nothing is there that would have to be deleted, but the log may still show it. */
static void clean_start_that_comes_twice_waits_for_the_old_one_s_end(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    expect_connack(rig_connect_with(rig, &connect), false, 0);
    rig_log_hold(rig, true);
    connect = hour("car", 0);
    connect.connect.clean_start = true;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    rig_break(client);
    rig_settle(rig);
    client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    rig_free(rig);
}

/* The old session's will finds no room, so its SESSION_DELETE comes late: the log says at once that it is over. */
static void clean_start_waits_for_the_old_one_s_end_when_its_will_has_to_wait(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    add_will(&connect, 60);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_break(client);
    rig_settle(rig);
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_log_hold(rig, true);
    connect = hour("car", 0);
    connect.connect.clean_start = true;
    client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    rig_break(client); /* and comes again */
    rig_settle(rig);
    client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    struct record first, over;
    find_record(rig, &first, RECORD_SESSION, 0);
    find_record(rig, &over, RECORD_SESSION, count_records(rig, RECORD_SESSION) - 1);
    expect_text(over.client_id, "car");
    assert_int_equal(over.options, 0); /* not connected, expired */
    assert_true(over.session == first.session);
    assert_int_equal(count_records(rig, RECORD_SESSION_DELETE), 0);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0); /* the log is full for PUBLISH alone */
    assert_int_equal(RIG_COUNTER(rig, wills_published), 0);
    rig_log_room(rig, true);
    rig_advance(rig, 1000);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 1);
    assert_int_equal(count_records(rig, RECORD_SESSION_DELETE), 1);
    rig_free(rig);
}

static void takeover_of_a_connection_that_waits(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 3600);
    struct rig_client *first = rig_connect_with(rig, &connect), *second = rig_connect_with(rig, &connect);
    assert_true(rig_is_closed(first));
    expect_nothing(first); /* no DISCONNECT either: it has no CONNACK */
    expect_nothing(second);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_nothing(first);
    expect_connack(second, true, 0);
    struct record rec;
    find_record(rig, &rec, RECORD_SESSION, count_records(rig, RECORD_SESSION) - 1);
    expect_state(&rec, "car", 3600, true);
    rig_free(rig);
}

static void connection_lost_while_it_waits(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    struct rig_client *watcher = rig_connect(rig, "watcher", MQTT_V5, true);
    rig_subscribe(watcher, 1, "gone", 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_break(client);
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_nothing(client);
    expect_payload(watcher, "bye"); /* the CONNECT was accepted: 3.1.2-8 */
    struct record rec;
    find_record(rig, &rec, RECORD_SESSION, 1);
    expect_state(&rec, "car", 3600, false);
    connect.connect.has_will = false;
    client = rig_connect_with(rig, &connect);
    expect_connack(client, true, 0);
    rig_free(rig);
}

static void messages_wait_behind_connack(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct packet connect = hour("car", 3600);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_subscribe(client, 1, "t/car/x", 1);
    leave(rig, client);
    rig_publish(pub, "t/car/x", "old", 1, 1);
    rig_settle(rig);
    rig_log_hold(rig, true);
    client = rig_connect_with(rig, &connect);
    rig_publish(pub, "t/car/x", "new", 1, 2);
    rig_settle(rig);
    expect_nothing(client);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, true, 0);
    expect_payload(client, "old");
    expect_payload(client, "new");
    rig_free(rig);
}

static void keep_alive_begins_with_connack(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 3600);
    connect.connect.keep_alive_s = 10;
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_advance(rig, 60000); /* longer than the connect timeout, too: it has sent its CONNECT */
    assert_false(rig_is_closed(client));
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    rig_advance(rig, 14000);
    assert_false(rig_is_closed(client));
    rig_advance(rig, 2000);
    assert_true(rig_is_closed(client));
    rig_free(rig);
}

/* === subscriptions =================================================================================================================== */

static void suback_comes_when_the_subscription_is_durable(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_log_hold(rig, true);
    rig_send_subscribe(client, 1, "a/+", 2 | 1 << 2 | 1 << 3 | 2 << 4, 268435455);
    rig_settle(rig);
    expect_nothing(client);
    struct record session, rec;
    find_record(rig, &session, RECORD_SESSION, 0);
    find_record(rig, &rec, RECORD_SUBSCRIPTION, 0);
    assert_true(rec.session == session.session);
    expect_text(rec.topic, "a/+");
    assert_int_equal(rec.options & 0xff, 2 | 1 << 2 | 1 << 3 | 2 << 4);
    assert_int_equal(rec.options >> 8, 268435455);
    rig_log_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(expect(client, MQTT_SUBACK)->suback.codes.data[0], 2);
    rig_log_hold(rig, true);
    rig_send_unsubscribe(client, 2, "a/+");
    rig_settle(rig);
    expect_nothing(client);
    find_record(rig, &rec, RECORD_UNSUBSCRIBE, 0);
    assert_true(rec.session == session.session);
    expect_text(rec.topic, "a/+");
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect(client, MQTT_UNSUBACK);
    rig_free(rig);
}

static void refused_filter_is_not_logged(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_send_subscribe(client, 1, "$share/g/x", 1, 0);
    rig_settle(rig);
    assert_true(expect(client, MQTT_SUBACK)->suback.codes.data[0] >= 0x80);
    assert_int_equal(count_records(rig, RECORD_SUBSCRIPTION), 0);
    rig_free(rig);
}

/* === wills =========================================================================================================================== */

static void will_of_any_session_is_durable_before_connack(void **state)
{
    struct rig *rig = RIG();
    rig_log_hold(rig, true);
    struct packet connect = hour("car", 0);
    add_will(&connect, 7);
    connect.connect.will_qos = 1;
    connect.connect.will_retain = true;
    connect.connect.will_properties.message_expiry_interval_s = 9;
    connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL);
    connect.connect.has_user_name = true;
    connect.connect.user_name = SPAN_LITERAL("driver");
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_nothing(client);
    struct record session, will;
    size_t session_at = find_record(rig, &session, RECORD_SESSION, 0);
    assert_true(find_record(rig, &will, RECORD_WILL, 0) > session_at);
    expect_state(&session, "car", 0, true);
    assert_true(will.session == session.session);
    expect_text(will.topic, "gone");
    expect_text(will.payload, "bye");
    expect_text(will.client_id, "car");
    expect_text(will.user_name, "driver");
    assert_int_equal(will.qos, 1);
    assert_true(will.retain);
    assert_int_equal(will.options, RECORD_WILL_HAS_EXPIRY | 7);
    assert_true(will.expiry_ns == 9 * NS_PER_S);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, false, 0);
    rig_free(rig);
}

static void goodbye_deletes_the_will(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    leave(rig, rig_connect_with(rig, &connect));
    struct record rec;
    find_record(rig, &rec, RECORD_WILL_DELETE, 0);
    assert_int_equal(rig_published_count(rig), 0);
    assert_int_equal(count_records(rig, RECORD_SESSION_DELETE), 0);
    rig_free(rig);
}

static void will_that_is_said_is_deleted_by_its_own_record(void **state) /* LOG 1 */
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 0);
    add_will(&connect, 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_break(client);
    rig_settle(rig);
    struct record session, will, deleted;
    find_record(rig, &session, RECORD_SESSION, 0);
    size_t said_at = find_record(rig, &will, RECORD_PUBLISH, 0);
    assert_true(will.will_session == session.session);
    assert_int_equal(count_records(rig, RECORD_WILL_DELETE), 0);
    assert_true(find_record(rig, &deleted, RECORD_SESSION_DELETE, 0) > said_at); /* with the session the will would be gone */
    assert_true(deleted.session == session.session);
    rig_free(rig);
}

/* Its client may be back before it is said: then it is no longer that of its session, which may have another. */
static void will_that_finds_no_room_is_owed(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_log_room(rig, false);
    rig_break(client);
    rig_settle(rig);
    expect_connack(rig_connect_with(rig, &connect), true, 0);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 0);
    struct record session, shell, will, away, back, said, deleted;
    find_record(rig, &session, RECORD_SESSION, 0);
    size_t shell_at = find_record(rig, &shell, RECORD_SESSION, 1), owed_at = find_record(rig, &will, RECORD_WILL, 1);
    assert_true(shell.session != session.session);
    assert_int_equal(shell.client_id.data[0], 0); /* nobody can connect as this */
    assert_int_equal(shell.options & (RECORD_SESSION_EXPIRY_MASK | RECORD_SESSION_CONNECTED), 0);
    assert_true(will.session == shell.session);
    assert_true(will.will_session == session.session); /* the same record takes it from there */
    expect_text(will.client_id, "car");
    expect_text(will.payload, "bye");
    size_t away_at = find_record(rig, &away, RECORD_SESSION, 2), back_at = find_record(rig, &back, RECORD_SESSION, 3);
    assert_true(shell_at < owed_at && owed_at < away_at && away_at < back_at);
    assert_true(back.session == session.session);
    find_record(rig, &will, RECORD_WILL, 2);
    assert_true(will.session == session.session);
    assert_true(will.will_session == 0);
    rig_log_room(rig, true);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 1);
    size_t said_at = find_record(rig, &said, RECORD_PUBLISH, 0);
    assert_true(said.will_session == shell.session); /* not the new one's */
    assert_true(said.session == session.session);
    assert_true(find_record(rig, &deleted, RECORD_SESSION_DELETE, 0) > said_at);
    assert_true(deleted.session == shell.session);
    assert_int_equal(count_records(rig, RECORD_SESSION_DELETE), 1);
    rig_free(rig);
}

/* With what is said of its session the will would be gone, and a record that is torn by a crash is none. */
static void nothing_overtakes_a_large_will(void **state)
{
    char payload[3000];
    memset(payload, 'w', sizeof payload);
    for (uint32_t expiry_s = 0; expiry_s <= 3600; expiry_s += 3600) {
        struct rig *rig = RIG(.block_count = 8, .body_max = 1024);
        struct packet connect = hour("car", expiry_s);
        add_will(&connect, 0);
        connect.connect.will_payload = span_of(payload, sizeof payload);
        struct rig_client *client = rig_connect_with(rig, &connect);
        expect_connack(client, false, 0);
        rig_break(client);
        connect.connect.has_will = false;
        expect_connack(rig_connect_with(rig, &connect), expiry_s > 0, 0);
        rig_settle(rig);
        struct record said, away;
        size_t said_at = find_record(rig, &said, RECORD_PUBLISH, 0);
        size_t away_at = find_record(rig, &away, expiry_s ? RECORD_SESSION : RECORD_SESSION_DELETE, expiry_s ? 1 : 0);
        assert_int_equal(said.payload.size, sizeof payload);
        assert_true(said.will_session == away.session);
        assert_true(said_at < away_at);
        rig_free(rig);
    }
}

static void will_that_is_refused_is_deleted(void **state)
{
    struct rig *rig = RIG(.rules = "t/{device}/# max_qos=0");
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    connect.connect.will_topic = SPAN_LITERAL("t/car/gone");
    connect.connect.will_qos = 1;
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    struct record rec;
    find_record(rig, &rec, RECORD_WILL_DELETE, 0);
    assert_int_equal(rig_published_count(rig), 0);
    assert_int_equal(RIG_COUNTER(rig, wills_failed), 1);
    rig_free(rig);
}

static void reconnect_within_the_delay_deletes_the_will(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    add_will(&connect, 60);
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_break(client);
    rig_settle(rig);
    connect.connect.has_will = false;
    rig_log_hold(rig, true);
    client = rig_connect_with(rig, &connect);
    struct record rec;
    find_record(rig, &rec, RECORD_WILL_DELETE, 0);
    expect_nothing(client);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(client, true, 0);
    rig_advance(rig, 120000);
    assert_int_equal(rig_published_count(rig), 0);
    rig_free(rig);
}

/* === ends ============================================================================================================================ */

static void disconnect_with_an_expiry_says_so(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    struct packet goodbye = {.type = MQTT_DISCONNECT};
    goodbye.disconnect.properties.present = MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL);
    goodbye.disconnect.properties.session_expiry_interval_s = 30;
    struct rig_client *client = rig_connect_with(rig, &connect);
    rig_send(client, &goodbye);
    rig_settle(rig);
    struct record rec;
    find_record(rig, &rec, RECORD_SESSION, 1);
    expect_state(&rec, "car", 30, false);
    client = rig_connect_with(rig, &connect);
    goodbye.disconnect.properties.session_expiry_interval_s = 0;
    rig_send(client, &goodbye);
    rig_settle(rig);
    find_record(rig, &rec, RECORD_SESSION_DELETE, 0);
    assert_int_equal(count_records(rig, RECORD_SESSION), 3);
    rig_free(rig);
}

static void expired_session_names_what_it_wanted_and_is_deleted(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct packet connect = hour("car", 10);
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_subscribe(client, 1, "t/car/x", 1);
    rig_publish(pub, "t/car/x", "in flight", 1, 1);
    rig_settle(rig);
    expect_payload(client, "in flight");
    leave(rig, client);
    rig_publish(pub, "t/car/x", "queued", 1, 2);
    rig_settle(rig);
    struct record rec;
    uint64_t wanted[2] = {rig_published(rig, &rec, 0), rig_published(rig, &rec, 1)};
    rig_advance(rig, 11000);
    struct record dropped, deleted;
    size_t dropped_at = find_record(rig, &dropped, RECORD_DROP, 0);
    assert_true(find_record(rig, &deleted, RECORD_SESSION_DELETE, 0) < dropped_at); /* never back without what it wanted */
    assert_true(dropped.session == deleted.session);
    uint64_t sequence = 0;
    bool found[2] = {false, false};
    for (size_t offset = 0; position_list_next(dropped.positions, &offset, &sequence) == ERR_OK;)
        for (size_t i = 0; i < 2; i++)
            found[i] |= sequence == wanted[i];
    assert_true(found[0] && found[1]);
    rig_publish(pub, "t/car/x", "nobody", 1, 3);
    rig_settle(rig);
    rig_published(rig, &rec, 2);
    assert_int_equal(rec.recipients.size, 0);
    rig_free(rig);
}

static void shutdown_leaves_sessions_as_connected(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    expect_connack(rig_connect_with(rig, &connect), false, 0);
    size_t before = rig_record_count(rig);
    for (unsigned i = 0; i < 10; i++)
        if (rig_drain(rig, false))
            break;
    assert_int_equal(rig_record_count(rig), before); /* the next start gives the client its grace, and keeps its will meanwhile */
    rig_free(rig);
}

/* === no room ========================================================================================================================= */

/* More sessions than the blocks of a shard hold records for, while the log answers nothing. */
static void records_without_room_are_late_and_in_order(void **state)
{
    struct rig *rig = RIG(.block_count = 4, .body_max = 512);
    struct rig_client *clients[120];
    rig_log_hold(rig, true);
    for (unsigned i = 0; i < 120; i++) {
        char id[] = "car-000";
        id[4] = (char)('0' + i / 100), id[5] = (char)('0' + i / 10 % 10), id[6] = (char)('0' + i % 10);
        struct packet connect = hour(id, 3600);
        add_will(&connect, 0);
        clients[i] = rig_connect_with(rig, &connect);
    }
    for (unsigned i = 0; i < 120; i++)
        expect_nothing(clients[i]);
    assert_true(count_records(rig, RECORD_SESSION) < 120);
    rig_log_hold(rig, false);
    rig_settle(rig);
    for (unsigned i = 0; i < 40; i++)
        rig_advance(rig, 20);
    for (unsigned i = 0; i < 120; i++)
        expect_connack(clients[i], false, 0);
    assert_int_equal(count_records(rig, RECORD_SESSION), 120);
    assert_int_equal(count_records(rig, RECORD_WILL), 120);
    for (unsigned i = 0; i < 120; i++) { /* a will stands behind its session */
        struct record session, will;
        size_t at = find_record(rig, &session, RECORD_SESSION, i);
        for (unsigned k = 0; k < 120; k++) {
            size_t will_at = find_record(rig, &will, RECORD_WILL, k);
            if (will.session == session.session)
                assert_true(will_at > at);
        }
    }
    rig_free(rig);
}

static uint64_t late_bytes(struct rig *rig, uint16_t shard_count)
{
    uint64_t bytes = 0;
    for (actor_id shard = 0; shard < shard_count; shard++)
        bytes += rig_stats(rig, shard)->late_records.bytes;
    return bytes;
}

/* A client comes, gives up waiting and comes again, while the log answers nothing. */
static void what_is_late_has_a_bound(void **state)
{
    uint16_t shard_count = ((const struct rig_mode *)*state)->shard_count;
    struct rig *rig = RIG(.block_count = 64, .body_max = 16384);
    struct rig_client *client, *sub = rig_connect(rig, "sub", MQTT_V5, false);
    char *payload = malloc(60000);
    assert_non_null(payload);
    memset(payload, 'w', 60000);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    connect.connect.will_payload = span_of(payload, 60000);
    rig_log_hold(rig, true);
    while (RIG_COUNTER(rig, refused_log_full) == 0) {
        client = rig_connect_with(rig, &connect);
        rig_break(client);
        rig_settle(rig);
        assert_true(late_bytes(rig, shard_count) < SESSION_LOG_LATE_MAX + (1 << 20));
    }
    uint64_t late = late_bytes(rig, shard_count);
    rig_send_subscribe(sub, 1, "f", 1, 0);
    rig_settle(rig);
    assert_true(late_bytes(rig, shard_count) == late || rig_home(rig, "sub") != rig_home(rig, "car"));
    rig_log_hold(rig, false);
    for (unsigned i = 0; i < 40; i++)
        rig_advance(rig, 100);
    assert_int_equal(late_bytes(rig, shard_count), 0);
    expect(sub, MQTT_SUBACK);
    connect.connect.has_will = false;
    expect_connack(rig_connect_with(rig, &connect), true, 0);
    free(payload);
    rig_free(rig);
}

/* A client with a will comes and goes while the log takes no message: it is refused when too much waits, one without a will is not. */
static void wills_that_wait_have_a_bound(void **state)
{
    enum { SIZE = 60000 };
    struct rig *rig = RIG();
    char *payload = malloc(SIZE);
    assert_non_null(payload);
    memset(payload, 'w', SIZE);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    connect.connect.will_payload = span_of(payload, SIZE);
    actor_id home = rig_home(rig, "car");
    rig_log_room(rig, false);
    while (RIG_COUNTER(rig, refused_log_full) == 0) {
        rig_break(rig_connect_with(rig, &connect));
        rig_settle(rig);
        assert_true(rig_stats(rig, home)->wills_due.bytes < SESSION_WILLS_DUE_MAX + 2 * SIZE);
    }
    assert_true(rig_stats(rig, home)->wills_due.bytes > SESSION_WILLS_DUE_MAX);
    connect.connect.has_will = false;
    rig_break(rig_connect_with(rig, &connect));
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, refused_log_full), 1);
    rig_log_room(rig, true);
    for (int i = 0; i < 40; i++)
        rig_advance(rig, 100);
    assert_int_equal(rig_stats(rig, home)->wills_due.bytes, 0);
    connect.connect.has_will = true;
    expect_connack(rig_connect_with(rig, &connect), true, 0);
    free(payload);
    rig_free(rig);
}

/* Or the log would say that there is a will behind saying that it was published. */
static void will_is_said_behind_what_is_late_of_its_session(void **state) /* LOG 1 */
{
    struct rig *rig = RIG(.block_count = 4, .body_max = 512);
    struct rig_client *last = NULL;
    rig_log_hold(rig, true);
    for (unsigned i = 0; i < 120; i++) {
        char id[] = "car-000";
        id[4] = (char)('0' + i / 100), id[5] = (char)('0' + i / 10 % 10), id[6] = (char)('0' + i % 10);
        struct packet connect = hour(id, 3600);
        add_will(&connect, 0);
        last = rig_connect_with(rig, &connect);
    }
    rig_break(last);
    rig_settle(rig);
    rig_log_hold(rig, false);
    for (unsigned i = 0; i < 40; i++)
        rig_advance(rig, 20);
    struct record said, will;
    assert_int_equal(count_records(rig, RECORD_PUBLISH), 1);
    size_t said_at = find_record(rig, &said, RECORD_PUBLISH, 0);
    assert_true(said.will_session != 0);
    for (unsigned i = 0; i < 120; i++) {
        size_t will_at = find_record(rig, &will, RECORD_WILL, i);
        if (will.session == said.will_session)
            assert_true(will_at < said_at);
    }
    rig_free(rig);
}

/* The largest texts that MQTT knows make records larger than a block. */
static void names_of_65535_bytes_are_logged(void **state)
{
    const struct rig_mode *mode = *state;
    if (mode->shard_count > 1)
        return; /* rig_open() finds homes of short names */
    struct rig *rig = RIG(.block_count = 64, .body_max = 16384);
    char *text = malloc(UINT16_MAX + 1);
    assert_non_null(text);
    memset(text, 'x', UINT16_MAX);
    text[UINT16_MAX] = '\0';
    struct packet connect = hour("", 3600);
    connect.connect.clean_start = false;
    connect.connect.client_id = span_of_string(text);
    connect.connect.has_will = true;
    connect.connect.will_topic = connect.connect.will_payload = span_of_string(text);
    struct rig_client *client = rig_open(rig, "");
    rig_set_version(client, MQTT_V5);
    rig_send(client, &connect);
    rig_settle(rig);
    expect_connack(client, false, 0);
    uint8_t *filter = malloc(UINT16_MAX + 3);
    assert_non_null(filter);
    filter[0] = filter[1] = 0xff;
    memcpy(filter + 2, text, UINT16_MAX);
    filter[UINT16_MAX + 2] = 1;
    rig_send(client, &(struct packet){.type = MQTT_SUBSCRIBE,
                                      .subscribe = {.packet_id = 1, .filters = span_of(filter, UINT16_MAX + 3), .filter_count = 1}});
    rig_settle(rig);
    expect(client, MQTT_SUBACK);
    struct record rec;
    find_record(rig, &rec, RECORD_SESSION, 0);
    assert_int_equal(rec.client_id.size, UINT16_MAX);
    find_record(rig, &rec, RECORD_WILL, 0);
    assert_int_equal(rec.topic.size + rec.payload.size + rec.client_id.size, 3 * UINT16_MAX);
    find_record(rig, &rec, RECORD_SUBSCRIPTION, 0);
    assert_int_equal(rec.topic.size, UINT16_MAX);
    free(filter);
    free(text);
    rig_free(rig);
}

/* A record that never finds room would keep all behind it. */
static void will_that_no_log_holds_is_refused(void **state)
{
    struct rig *rig = RIG(.block_count = 8, .body_max = 1024);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    char payload[4200];
    memset(payload, 'w', sizeof payload);
    connect.connect.will_payload = span_of(payload, sizeof payload);
    struct rig_client *client = rig_connect_with(rig, &connect);
    assert_int_equal(expect(client, MQTT_CONNACK)->connack.reason, MQTT_REASON_QUOTA_EXCEEDED);
    assert_true(rig_is_closed(client));
    assert_int_equal(RIG_COUNTER(rig, refused_will), 1);
    connect.connect.will_payload = span_of(payload, 3900);
    expect_connack(rig_connect_with(rig, &connect), false, 0);
    rig_free(rig);
}

/* Three blocks are free, the will's record needs four: publishers do not take them meanwhile. */
static void what_is_late_goes_before_new_messages(void **state)
{
    if (((const struct rig_mode *)*state)->shard_count > 1)
        return;
    struct rig *rig = RIG(.block_count = 8, .body_max = 1024);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    char payload[3001];
    memset(payload, 'x', sizeof payload);
    payload[700] = '\0';
    rig_log_hold(rig, true);
    for (uint16_t i = 1; i <= 5; i++) {
        rig_publish(pub, "t/d", payload, 1, i);
        rig_settle(rig);
    }
    assert_int_equal(rig_published_count(rig), 5);
    struct packet connect = hour("car", 3600);
    add_will(&connect, 0);
    payload[700] = 'x';
    connect.connect.will_payload = span_of(payload, 3000);
    struct rig_client *car = rig_connect_with(rig, &connect);
    payload[700] = '\0';
    rig_publish(pub, "t/d", payload, 1, 6);
    rig_settle(rig);
    assert_int_equal(rig_published_count(rig), 5);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_connack(car, false, 0);
    assert_int_equal(rig_published_count(rig), 6);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(connack_comes_when_the_session_is_durable),
        IN_EACH_MODE(session_that_ends_with_its_connection_is_not_logged),
        IN_EACH_MODE(without_persistence_nothing_waits),
        IN_EACH_MODE(packets_behind_connect_are_handled_after_it),
        IN_EACH_MODE(resumed_session_keeps_its_number_and_connack_waits_again),
        IN_EACH_MODE(clean_start_deletes_the_old_session_first),
        IN_EACH_MODE(connack_of_a_session_that_ends_waits_for_the_old_one_s_end),
        IN_EACH_MODE(clean_start_that_comes_twice_waits_for_the_old_one_s_end),
        IN_EACH_MODE(clean_start_waits_for_the_old_one_s_end_when_its_will_has_to_wait),
        IN_EACH_MODE(takeover_of_a_connection_that_waits),
        IN_EACH_MODE(connection_lost_while_it_waits),
        IN_EACH_MODE(messages_wait_behind_connack),
        IN_EACH_MODE(keep_alive_begins_with_connack),
        IN_EACH_MODE(suback_comes_when_the_subscription_is_durable),
        IN_EACH_MODE(refused_filter_is_not_logged),
        IN_EACH_MODE(will_of_any_session_is_durable_before_connack),
        IN_EACH_MODE(goodbye_deletes_the_will),
        IN_EACH_MODE(will_that_is_said_is_deleted_by_its_own_record),
        IN_EACH_MODE(will_that_finds_no_room_is_owed),
        IN_EACH_MODE(nothing_overtakes_a_large_will),
        IN_EACH_MODE(will_that_is_refused_is_deleted),
        IN_EACH_MODE(reconnect_within_the_delay_deletes_the_will),
        IN_EACH_MODE(disconnect_with_an_expiry_says_so),
        IN_EACH_MODE(expired_session_names_what_it_wanted_and_is_deleted),
        IN_EACH_MODE(shutdown_leaves_sessions_as_connected),
        IN_EACH_MODE(records_without_room_are_late_and_in_order),
        IN_EACH_MODE(what_is_late_has_a_bound),
        IN_EACH_MODE(wills_that_wait_have_a_bound),
        IN_EACH_MODE(will_that_no_log_holds_is_refused),
        IN_EACH_MODE(what_is_late_goes_before_new_messages),
        IN_EACH_MODE(will_is_said_behind_what_is_late_of_its_session),
        IN_EACH_MODE(names_of_65535_bytes_are_logged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
