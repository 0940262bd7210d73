/* SUBSCRIBE and UNSUBSCRIBE. Scenarios named by the MQTT statements they would break with, each with one shard, with three, and with
 * three shards whose messages to each other come in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "broker/session/subscription_list.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(suback_has_a_code_for_each_filter),
        IN_EACH_MODE(filter_that_is_granted_at_the_second_try_ends_with_its_session),
        IN_EACH_MODE(filters_in_a_packet_are_bounded),
        IN_EACH_MODE(resubscribing_replaces),
        IN_EACH_MODE(unsubscribing_ends_it),
        IN_EACH_MODE(a_filter_survives_the_connection),
        IN_EACH_MODE(a_filter_on_its_way_is_not_lost),
        IN_EACH_MODE(subscription_works_at_suback),
        IN_EACH_MODE(dollar_topics_are_not_for_wildcards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
