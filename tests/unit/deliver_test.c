/* What subscribers get: QoS 1 and 2 out, quotas, order, queues, slow sockets, expiry. Scenarios named by the MQTT statements they would
 * break with, each with one shard, with three, and with three shards whose messages to each other come in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

/* === out ============================================================================================================================== */

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

/* A client that took a message of QoS 2 comes back and takes only smaller ones: the exchange goes on to its end, because the client may
 * hold the identifier. 3.1.2-25, 2.2.1-4 */
static void what_became_too_large_is_released(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "p"), *other = v5_stay(rig, "s");
    rig_subscribe(other, 1, "x", 2);
    rig_publish(client, "x", "longer than it will take", 2, 1);
    rig_publish(client, "x", "of QoS 1 and longer as well", 1, 2);
    rig_settle(rig);
    uint16_t id = expect_publish(other, "x", "longer than it will take", 2, 0)->packet_id;
    expect_publish(other, "x", "of QoS 1 and longer as well", 1, 0);
    rig_break(other);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    SET(connect.connect, MAXIMUM_PACKET_SIZE, maximum_packet_size, 20);
    other = rig_connect_with(rig, &connect);
    expect_connack(other, true, 0);
    rig_settle(rig);
    expect_ack(other, MQTT_PUBREL, id, 0);
    expect_nothing(other);
    assert_int_equal(RIG_COUNTER(rig, dropped_too_large), 1); /* of QoS 1: its client knows no identifiers */
    rig_publish(client, "x", "new", 2, 3);
    rig_settle(rig);
    assert_int_not_equal(expect_publish(other, "x", "new", 2, 0)->packet_id, id);
    rig_send(other, &(struct packet){.type = MQTT_PUBCOMP, .ack = {.packet_id = id, .reason = MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND}});
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, copies_acked), 1);
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

/* === expiry =========================================================================================================================== */

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(qos_is_the_lesser_of_both),
        IN_EACH_MODE(qos2_out_takes_four_steps),
        IN_EACH_MODE(redelivery_has_dup_and_the_same_identifiers),
        IN_EACH_MODE(client_receive_maximum_is_respected),
        IN_EACH_MODE(client_maximum_packet_size_is_respected),
        IN_EACH_MODE(what_became_too_large_is_released),
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
