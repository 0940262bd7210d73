/* What is logged of a PUBLISH, and what a log that is full, slow or failed means for publishers. Scenarios named by the MQTT statements
 * they would break with, each with one shard, with three, and with three shards whose messages to each other come in random portions.
 * */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

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

/* Its PUBLISH waits in a connection that is not read, and so would a PINGREQ: that is no silence. It is one again once the connection is
 * read. */
static void full_log_stops_the_keep_alive_clock(void **state) /* 3.1.2-22; LOG 7 */
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("car", MQTT_V5, true);
    connect.connect.keep_alive_s = 10;
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect_connack(client, false, 0);
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_advance(rig, 100000);
    assert_true(rig_is_paused(client));
    assert_false(rig_is_closed(client));
    rig_log_room(rig, true);
    rig_advance(rig, 100);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    rig_advance(rig, 31000);
    expect_disconnect(client, 0x8d);
    assert_int_equal(RIG_COUNTER(rig, closed_keep_alive), 1);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(a_step_of_the_wall_clock_expires_nothing),
        IN_EACH_MODE(puback_means_saved),
        IN_EACH_MODE(record_has_everything),
        cmocka_unit_test(session_numbers_are_never_given_twice),
        IN_EACH_MODE(receive_times_strictly_increase),
        IN_EACH_MODE(persistent_sessions_get_it_when_durable),
        IN_EACH_MODE(full_log_stops_reading_not_losing),
        IN_EACH_MODE(full_log_stops_the_keep_alive_clock),
        IN_EACH_MODE(full_log_costs_others_nothing),
        IN_EACH_MODE(empty_pool_is_back_pressure),
        IN_EACH_MODE(large_record_is_a_group_of_blocks),
        IN_EACH_MODE(record_beyond_the_log_is_refused),
        IN_EACH_MODE(large_record_outlives_its_connection),
        IN_EACH_MODE(failed_log_acknowledges_nothing),
        IN_EACH_MODE(telemetry_rules_decide),
        IN_EACH_MODE(without_persistence_all_is_acknowledged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
