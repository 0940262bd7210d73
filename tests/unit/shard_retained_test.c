/* Retained values that find no room: what their publishers are told, what subscribers get, and what is kept. With one shard, three, and
 * three whose rings deliver in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

/* However often it is tried while it waits for room in the log. */
static void retained_value_without_room_is_counted_once(void **state)
{
    (void)state;
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V311, true);
    rig_publish_retained(pub, "x", "v", 1, 1);
    rig_settle(rig);
    expect(pub, MQTT_PUBACK);
    rig_log_room(rig, false);
    rig_publish_retained(pub, "t/device/y", "w", 1, 2);
    rig_advance(rig, 1000);
    expect_nothing(pub);
    rig_log_room(rig, true);
    rig_settle(rig);
    expect(pub, MQTT_PUBACK);
    assert_int_equal(RIG_COUNTER(rig, retained_refused), 1);
    rig_free(rig);
}

/* MQTT 5 is told, and nothing has happened: nobody got it, it is not in the log, the identifier is free. So it may come again as often as
 * it likes, and when it is taken it comes once. */
static void refused_value_reaches_nobody(void **state)
{
    for (uint8_t qos = 1; qos <= 2; qos++) {
        struct rig *rig = RIG(.retained_max = 1);
        struct rig_client *pub = v5_stay(rig, "pub"), *sub = subscriber(rig, "sub", false, "#", 2);
        enum mqtt_packet_type answer = qos == 1 ? MQTT_PUBACK : MQTT_PUBREC;
        rig_publish_retained(pub, "x", "v", 1, 9);
        rig_settle(rig);
        expect(pub, MQTT_PUBACK);
        expect_payload_at(sub, "v", 1);
        size_t records = rig_record_count(rig);
        for (int i = 0; i < 3; i++) {
            struct packet packet = {.type = MQTT_PUBLISH,
                                    .publish = {.topic = span_of_string("y"),
                                                .payload = span_of_string("w"),
                                                .qos = qos,
                                                .retain = true,
                                                .dup = i > 0,
                                                .packet_id = 1}};
            rig_send(pub, &packet);
            rig_settle(rig);
            expect_ack(pub, answer, 1, MQTT_REASON_QUOTA_EXCEEDED);
            if (i == 1) { /* also when it comes with the session on another connection */
                rig_break(pub);
                rig_settle(rig);
                pub = rejoin(rig, "pub");
                expect(pub, MQTT_CONNACK);
                records = rig_record_count(rig);
            }
        }
        expect_nothing(sub);
        assert_int_equal(rig_record_count(rig), records);
        assert_int_equal(RIG_COUNTER(rig, publish_refused_retained_full), 3);
        rig_publish_retained(pub, "x", "", 1, 2);
        rig_settle(rig);
        expect_ack(pub, MQTT_PUBACK, 2, 0);
        expect_payload_at(sub, "", 1);
        rig_publish_retained(pub, "y", "w", qos, 1);
        rig_settle(rig);
        expect_ack(pub, answer, 1, 0);
        expect_payload_at(sub, "w", qos);
        expect_nothing(sub);
        rig_free(rig);
    }
}

/* Who cannot be told is not closed, which would be for ever: its message is taken like one without RETAIN, once. */
static void value_of_who_cannot_be_told_is_delivered_and_not_kept(void **state)
{
    for (uint8_t qos = 0; qos <= 2; qos++) {
        struct rig *rig = RIG(.retained_max = 1);
        struct rig_client *pub = rig_connect(rig, "pub", qos == 0 ? MQTT_V5 : qos == 1 ? MQTT_V31 : MQTT_V311, false);
        struct rig_client *sub = subscriber(rig, "sub", true, "#", 2);
        rig_publish_retained(pub, "x", "v", 0, 0);
        rig_settle(rig);
        expect_payload_at(sub, "v", 0);
        rig_publish_retained(pub, "y", "w", qos, qos);
        if (qos == 2)
            rig_publish_retained(pub, "y", "w", qos, qos); /* repeated: not given again */
        rig_settle(rig);
        expect_payload_at(sub, "w", qos);
        expect_nothing(sub);
        if (qos > 0)
            expect(pub, qos == 1 ? MQTT_PUBACK : MQTT_PUBREC);
        if (qos == 2)
            expect(pub, MQTT_PUBREC);
        assert_false(rig_is_closed(pub));
        struct record rec;
        for (size_t i = 1; i < rig_published_count(rig); i++) { /* no start would set it */
            rig_published(rig, &rec, i);
            assert_int_equal(rec.retained_number, 0);
        }
        rig_subscribe(sub, 2, "y", 2);
        rig_settle(rig);
        expect_nothing(sub);
        rig_free(rig);
    }
}

static void full_index_takes_new_values_of_topics_that_have_one(void **state)
{
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *pub = v5(rig, "pub");
    rig_publish_retained(pub, "x", "0", 1, 1);
    rig_settle(rig);
    expect(pub, MQTT_PUBACK);
    rig_publish_retained(pub, "x", "1", 1, 1);
    rig_publish_retained(pub, "x", "2", 2, 2);
    rig_publish_retained(pub, "x", "3", 0, 0);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    expect_ack(pub, MQTT_PUBREC, 2, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    struct rig_client *sub = subscriber(rig, "sub", false, "#", 2);
    rig_settle(rig);
    expect_payload_at(sub, "3", 0);
    rig_free(rig);
}

static void will_that_finds_no_room_is_said_and_not_kept(void **state)
{
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *pub = v5(rig, "pub"), *sub = subscriber(rig, "sub", false, "#", 1);
    rig_publish_retained(pub, "x", "v", 1, 1);
    rig_settle(rig);
    expect_payload_at(sub, "v", 1);
    for (int is_known = 0; is_known < 2; is_known++) {
        struct packet connect = rig_connect_packet("w", MQTT_V5, true);
        connect.connect.has_will = true;
        connect.connect.will_retain = true;
        connect.connect.will_qos = 1;
        connect.connect.will_topic = span_of_string(is_known ? "x" : "y");
        connect.connect.will_payload = span_of_string("gone");
        struct rig_client *client = rig_connect_with(rig, &connect);
        rig_settle(rig);
        expect(client, MQTT_CONNACK);
        rig_break(client);
        rig_settle(rig);
        expect_payload_at(sub, "gone", 1);
        struct rig_client *late = subscriber(rig, is_known ? "l1" : "l0", false, "#", 1);
        rig_settle(rig);
        expect_payload_at(late, is_known ? "gone" : "v", 1);
        expect_nothing(late);
    }
    rig_free(rig);
}

/* However many come at once, over all shards. */
static void bound_of_retained_messages_is_exact(void **state)
{
    struct rig *rig = RIG(.retained_max = 5);
    struct rig_client *pubs[20], *sub = subscriber(rig, "sub", false, "#", 1);
    char text[8];
    rig_route_hold(rig, true);
    for (int i = 0; i < 20; i++) {
        snprintf(text, sizeof text, "p%d", i);
        pubs[i] = v5(rig, text);
        rig_publish_retained(pubs[i], text, "v", 1, 1);
    }
    rig_settle(rig);
    rig_route_hold(rig, false);
    rig_settle(rig);
    int taken = 0;
    for (int i = 0; i < 20; i++)
        taken += expect(pubs[i], MQTT_PUBACK)->ack.reason < MQTT_REASON_UNSPECIFIED_ERROR;
    assert_int_equal(taken, 5);
    for (int i = 0; i < 5; i++)
        expect_payload_at(sub, "v", 1);
    expect_nothing(sub);
    struct rig_client *late = subscriber(rig, "late", false, "#", 1);
    rig_settle(rig);
    for (int i = 0; i < 5; i++)
        expect_payload_at(late, "v", 1);
    expect_nothing(late);
    rig_free(rig);
}

/* What is reserved for a message that is then not taken, for want of room in the log, is not lost. */
static void room_of_a_value_that_waits_is_given_back(void **state)
{
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *pub = v5(rig, "pub"), *other = v5(rig, "other");
    rig_log_room(rig, false);
    rig_publish_retained(pub, "x", "v", 1, 1);
    rig_publish_retained(other, "y", "v", 0, 0); /* dropped */
    rig_settle(rig);
    expect_nothing(pub);
    rig_break(pub);
    rig_settle(rig);
    rig_log_room(rig, true);
    rig_advance(rig, 200);
    rig_publish_retained(other, "z", "v", 1, 2);
    rig_settle(rig);
    expect_ack(other, MQTT_PUBACK, 2, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    rig_free(rig);
}

/* Removals of topics without a value wait, when too many are remembered, until the shards have answered. */
static void removals_wait_until_they_can_be_remembered(void **state)
{
    struct rig *rig = RIG(.retained_max = 1);
    struct rig_client *pub = v5(rig, "pub");
    char topic[16];
    for (int i = 0; i < 3000; i++) {
        snprintf(topic, sizeof topic, "t/%d", i);
        rig_publish_retained(pub, topic, "", 0, 0);
    }
    rig_publish_retained(pub, "last", "", 1, 1);
    rig_settle(rig);
    expect_nothing(pub);
    rig_advance(rig, 10000);
    expect_ack(pub, MQTT_PUBACK, 1, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(refused_value_reaches_nobody),
        IN_EACH_MODE(retained_value_without_room_is_counted_once),
        IN_EACH_MODE(value_of_who_cannot_be_told_is_delivered_and_not_kept),
        IN_EACH_MODE(full_index_takes_new_values_of_topics_that_have_one),
        IN_EACH_MODE(will_that_finds_no_room_is_said_and_not_kept),
        IN_EACH_MODE(bound_of_retained_messages_is_exact),
        IN_EACH_MODE(room_of_a_value_that_waits_is_given_back),
        IN_EACH_MODE(removals_wait_until_they_can_be_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
