/* Retained values for new subscriptions. Scenarios named by the MQTT statements they would break with, each with one shard, with three,
 * and with three shards whose messages to each other come in random portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(retained_is_sent_to_new_subscriptions),
        IN_EACH_MODE(retain_handling_is_respected),
        IN_EACH_MODE(retain_as_published_is_respected),
        IN_EACH_MODE(retained_scan_is_paced_by_its_client),
        IN_EACH_MODE(retained_full_is_told),
        IN_EACH_MODE(retained_expires),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
