/* What the log has of a PUBLISH, and what waits for it (LOG 8, 9, 12, 13, 15): which messages have a record, who gets them when, what each
 * answer promises, and that a message has the sequence of its own record. With one shard, three, and three whose rings deliver in random
 * portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/actor/msg.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static struct record only_record(const struct rig *rig)
{
    struct record rec;
    assert_int_equal(rig_published_count(rig), 1);
    rig_published(rig, &rec, 0);
    return rec;
}

static size_t recipient_count(const struct record *rec)
{
    struct span rest = rec->recipients;
    struct record_recipient recipient;
    size_t count = 0;
    for (; rest.size > 0; count++)
        assert_int_equal(record_recipient_next(&recipient, &rest), 0);
    return count;
}

/* === which PUBLISH has a record ====================================================================================================== */

static void nobody_who_stays_no_record(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5_stay(rig, "pub"), *sub = subscriber(rig, "sub", false, "x", 2);
    rig_publish(pub, "x", "0", 0, 0);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    expect_payload_at(sub, "0", 0);
    expect_payload_at(sub, "1", 1);
    assert_int_equal(rig_published_count(rig), 0);
    rig_free(rig);
}

static void session_that_stays_is_named_in_the_record(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub");
    subscriber(rig, "s1", true, "x", 1);
    subscriber(rig, "s2", true, "x", 2);
    subscriber(rig, "s3", true, "x", 0); /* would not keep it while away */
    subscriber(rig, "c", false, "x", 2);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_int_equal(recipient_count(&rec), 2);
    assert_int_equal(rec.partition_count, 0); /* no telemetry */
    assert_int_equal(rec.rule.size, 0);
    assert_int_equal(rec.packet_id, 0);
    assert_true(record_is_state(&rec));
    rig_free(rig);
}

static void granted_qos_0_needs_no_record(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *sub = subscriber(rig, "s", true, "x", 0);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    expect_payload_at(sub, "1", 0);
    assert_int_equal(rig_published_count(rig), 0);
    rig_free(rig);
}

static void qos_0_that_is_queued_has_a_record(void **state)
{
    struct rig *rig = RIG(.limits.queue_qos0_messages = true);
    struct rig_client *pub = v5(rig, "pub");
    subscriber(rig, "s", true, "x", 1);
    rig_publish(pub, "x", "0", 0, 0);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_int_equal(recipient_count(&rec), 1);
    rig_free(rig);
}

static void retained_values_and_removals_have_numbers_in_records(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub");
    rig_publish_retained(pub, "x", "v", 0, 0);
    rig_publish_retained(pub, "x", "", 1, 1);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    struct record rec;
    assert_int_equal(rig_published_count(rig), 2);
    rig_published(rig, &rec, 0);
    assert_int_equal(rec.retained_number, 1);
    assert_int_equal(rec.payload.size, 1);
    rig_published(rig, &rec, 1);
    assert_int_equal(rec.retained_number, 2);
    assert_int_equal(rec.payload.size, 0);
    rig_free(rig);
}

static void qos_2_identifier_of_a_session_that_stays_is_logged(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *clean = v5(rig, "clean"), *stay = v5_stay(rig, "stay");
    rig_publish(clean, "x", "1", 2, 7);
    rig_settle(rig);
    assert_int_equal(rig_published_count(rig), 0);
    rig_publish(stay, "x", "2", 2, 8);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_int_equal(rec.packet_id, 8);
    rig_send_ack(clean, MQTT_PUBREL, 7);
    rig_send_ack(stay, MQTT_PUBREL, 8);
    rig_settle(rig);
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_RELEASED), 1);
    assert_int_equal(rec.packet_id, 8);
    assert_true(rec.session != 0);
    rig_free(rig);
}

static void qos_2_telemetry_of_a_session_that_ends_is_no_state(void **state)
{
    struct rig *rig = RIG();
    rig_publish(v5(rig, "pub"), "t/car/x", "1", 2, 7);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_int_equal(rec.partition_count, 16);
    assert_false(record_is_state(&rec));
    rig_free(rig);
}

static void will_deletes_itself_in_its_record(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("car", MQTT_V5, true);
    connect.connect.has_will = true;
    connect.connect.will_topic = SPAN_LITERAL("gone");
    connect.connect.will_payload = SPAN_LITERAL("car");
    struct rig_client *client = rig_connect_with(rig, &connect);
    expect(client, MQTT_CONNACK);
    rig_break(client);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_true(rec.will_session != 0);
    assert_true(rec.will_session == rec.session);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 1);
    rig_free(rig);
}

static void without_a_log_nothing_has_a_record_and_nothing_waits(void **state)
{
    struct rig *rig = RIG(.no_persistence = true);
    struct rig_client *pub = v5_stay(rig, "pub"), *sub = subscriber(rig, "s", true, "x", 2);
    rig_publish(pub, "x", "1", 1, 1);
    rig_publish_retained(pub, "x", "2", 2, 2);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    expect_ack(pub, MQTT_PUBREC, 2, 0);
    expect_payload_at(sub, "1", 1);
    expect_payload_at(sub, "2", 2);
    assert_int_equal(rig_record_count(rig), 0);
    assert_int_equal(atomic_load(&rig_last_retained(rig)->sequence), 0);
    rig_free(rig);
}

static void many_properties_reach_record_and_subscriber(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *sub = subscriber(rig, "s", true, "x", 1);
    static uint8_t raw[8000];
    size_t size = 0;
    uint32_t count = 0;
    for (; size < sizeof raw - 100; count++) {
        char value[32];
        snprintf(value, sizeof value, "value %u", count);
        size += properties_put_user_property(raw + size, SPAN_LITERAL("name"), span_of_string(value));
    }
    struct packet packet = {.type = MQTT_PUBLISH,
                            .publish = {.topic = SPAN_LITERAL("x"), .payload = SPAN_LITERAL("1"), .qos = 1, .packet_id = 1}};
    packet.publish.properties.raw = span_of(raw, size);
    packet.publish.properties.user_property_count = count;
    packet.publish.properties.present = MQTT_PROPERTY_BIT(USER_PROPERTY);
    rig_send(pub, &packet);
    rig_settle(rig);
    struct record rec = only_record(rig);
    assert_int_equal(rec.properties.size, size);
    assert_memory_equal(rec.properties.data, raw, size);
    const struct packet *got = expect(sub, MQTT_PUBLISH);
    assert_int_equal(got->publish.properties.raw.size, size);
    assert_memory_equal(got->publish.properties.raw.data, raw, size);
    rig_free(rig);
}

/* === what waits ====================================================================================================================== */

static void session_that_stays_gets_it_when_it_is_durable_others_at_once(void **state) /* LOG 9 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *stay = subscriber(rig, "stay", true, "x", 1),
                      *clean = subscriber(rig, "clean", false, "x", 1);
    rig_log_hold(rig, true);
    rig_publish(pub, "x", "1", 1, 1);
    rig_settle(rig);
    expect_payload_at(clean, "1", 1);
    expect_nothing(stay);
    expect_nothing(pub); /* LOG 8: PUBACK */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_payload_at(stay, "1", 1);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    rig_free(rig);
}

static void every_recipient_of_qos_2_waits(void **state) /* LOG 9 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5_stay(rig, "pub"), *clean = subscriber(rig, "clean", false, "x", 0);
    rig_log_hold(rig, true);
    rig_publish(pub, "x", "2", 2, 1);
    rig_settle(rig);
    expect_nothing(clean);
    expect_nothing(pub); /* LOG 8: PUBREC */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_payload_at(clean, "2", 0);
    expect_ack(pub, MQTT_PUBREC, 1, 0);
    rig_free(rig);
}

static void what_has_no_record_keeps_its_place_behind_what_waits(void **state) /* 4.6.0-5 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *sub = subscriber(rig, "s", true, "x", 1);
    rig_log_hold(rig, true);
    rig_publish(pub, "x", "1", 1, 1);
    rig_publish(pub, "x", "2", 0, 0);
    rig_settle(rig);
    expect_nothing(sub);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_payload_at(sub, "1", 1);
    expect_payload_at(sub, "2", 0);
    assert_int_equal(rig_published_count(rig), 1);
    rig_free(rig);
}

static void answer_waits_for_the_route_actor_and_for_the_log(void **state) /* LOG 12 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub");
    for (uint16_t id = 1; id <= 2; id++) {
        rig_log_hold(rig, id == 1);
        rig_route_hold(rig, id == 2);
        rig_publish_retained(pub, "x", "v", 1, id);
        rig_settle(rig);
        expect_nothing(pub);
        rig_log_hold(rig, false);
        rig_route_hold(rig, false);
        rig_settle(rig);
        expect_ack(pub, MQTT_PUBACK, id, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    }
    rig_free(rig);
}

static void repeated_pubrec_waits_for_both_too(void **state) /* LOG 8 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5_stay(rig, "pub");
    for (uint16_t id = 1; id <= 2; id++) {
        rig_route_hold(rig, true);
        rig_publish_retained(pub, "x", "v", 2, id);
        rig_settle(rig);
        rig_break(pub); /* its first PUBREC goes with it */
        rig_settle(rig);
        pub = rejoin(rig, "pub");
        rig_publish_retained(pub, "x", "v", 2, id);
        rig_settle(rig);
        expect_nothing(pub); /* its CONNACK stands behind in the gate */
        rig_route_hold(rig, false);
        rig_settle(rig);
        expect(pub, MQTT_CONNACK);
        expect_ack(pub, MQTT_PUBREC, id, 0);
    }
    assert_int_equal(rig_published_count(rig), 2);
    assert_int_equal(RIG_COUNTER(rig, received_duplicates), 2);
    rig_free(rig);
}

static void pubrel_before_pubrec(void **state, struct rig_options options)
{
    struct rig *rig = rig_new_in_mode(state, options);
    struct rig_client *pub = v5_stay(rig, "pub");
    rig_route_hold(rig, true);
    rig_publish_retained(pub, "x", "v", 2, 1);
    rig_settle(rig);
    rig_break(pub);
    rig_settle(rig);
    pub = rejoin(rig, "pub");
    if (options.no_persistence) /* otherwise it stands behind in the gate */
        expect(pub, MQTT_CONNACK);
    rig_send_ack(pub, MQTT_PUBREL, 1);
    rig_settle(rig);
    expect_nothing(pub);
    rig_route_hold(rig, false);
    rig_settle(rig);
    if (!options.no_persistence)
        expect(pub, MQTT_CONNACK);
    expect_ack(pub, MQTT_PUBCOMP, 1, 0);
    rig_free(rig);
}

static void pubrel_before_pubrec_waits_for_both_too(void **state) /* LOG 8 */
{
    pubrel_before_pubrec(state, (struct rig_options){0});
    pubrel_before_pubrec(state, (struct rig_options){.no_persistence = true});
}

static void pubcomp_waits_until_the_identifier_is_closed(void **state) /* LOG 8 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5_stay(rig, "pub");
    rig_publish(pub, "x", "1", 2, 1);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBREC, 1, MQTT_REASON_NO_MATCHING_SUBSCRIBERS);
    rig_log_hold(rig, true);
    rig_send_ack(pub, MQTT_PUBREL, 1);
    rig_settle(rig);
    expect_nothing(pub);
    rig_send_ack(pub, MQTT_PUBREL, 1); /* closed already; the answer promises the same */
    rig_settle(rig);
    expect_nothing(pub);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBCOMP, 1, 0);
    expect_ack(pub, MQTT_PUBCOMP, 1, MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND);
    struct record rec;
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_RELEASED), 1);
    rig_free(rig);
}

/* === sequences ======================================================================================================================= */

/* Messages of all kinds from several publishers to sessions everywhere; the rig CHECKs each copy that crosses a ring. */
static void publish_all_kinds(void **state, struct rig_options options, size_t payload_size)
{
    const struct rig_mode *mode = *state;
    struct rig *rig = rig_new_in_mode(state, options);
    char *payload = malloc(payload_size + 1), id[16], topic[16];
    struct rig_client *pubs[4], *subs[4];
    for (int i = 0; i < 4; i++) {
        snprintf(id, sizeof id, "p%d", i);
        pubs[i] = v5_stay(rig, id);
        snprintf(id, sizeof id, "s%d", i);
        subs[i] = subscriber(rig, id, i % 2 == 0, "+/dev/#", 2);
    }
    for (uint16_t round = 1; round <= 30; round++) {
        for (int i = 0; i < 4; i++) {
            snprintf(topic, sizeof topic, "%s/dev/%d", round % 3 ? "x" : "t", i);
            memset(payload, 'a' + (round + i) % 26, payload_size);
            payload[round % 5 == 0 ? payload_size : payload_size / 7] = '\0';
            rig_publish(pubs[i], topic, payload, (uint8_t)((round + i) % 3), round);
        }
        if (round % 4 == 0)
            rig_settle(rig);
    }
    rig_settle(rig);
    for (int i = 0; i < 4; i++)
        expect(subs[i], MQTT_PUBLISH);
    assert_true(rig_published_count(rig) >= 60);
    assert_true(mode->shard_count == 1 || rig_named_copies(rig) >= 60);
    free(payload);
    rig_free(rig);
}

static void sequence_of_small_records_in_one_block(void **state) { publish_all_kinds(state, (struct rig_options){0}, 40); }
static void sequence_of_records_in_many_blocks(void **state)
{
    publish_all_kinds(state, (struct rig_options){.body_max = 512, .block_count = 64}, 100);
}
static void sequence_of_records_in_compressed_blocks(void **state) { publish_all_kinds(state, (struct rig_options){0}, 6000); }
static void sequence_of_large_records_among_small_ones(void **state)
{
    publish_all_kinds(state, (struct rig_options){.body_max = 2048, .block_count = 64}, 9000);
}

static void retained_message_gets_its_sequence_though_nobody_has_it(void **state)
{
    struct rig *rig = RIG(.body_max = 1024, .block_count = 64);
    struct rig_client *pub = v5(rig, "pub");
    char large[5000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    const char *payloads[] = {"v", large};
    for (size_t i = 0; i < 2; i++) {
        rig_log_hold(rig, true);
        rig_publish(pub, "t/car/x", "telemetry before it", 0, 0);
        rig_publish_retained(pub, "x", payloads[i], 0, 0);
        rig_settle(rig);
        assert_int_equal(atomic_load(&rig_last_retained(rig)->sequence), 0);
        rig_log_hold(rig, false);
        rig_settle(rig);
        struct record rec;
        assert_int_equal(atomic_load(&rig_last_retained(rig)->sequence), rig_published(rig, &rec, 2 * i + 1));
        assert_int_equal(rec.retained_number, i + 1);
    }
    rig_free(rig);
}

static void numbers_passed_are_in_blocks_named(void **state) /* LOG 12 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub");
    rig_publish_retained(pub, "x", "v", 0, 0);
    rig_publish_retained(pub, "x", "", 0, 0); /* a removal: the route actor asks */
    rig_advance(rig, 3000);
    for (actor_id shard = 0; shard < ((const struct rig_mode *)*state)->shard_count; shard++) {
        uint64_t number, block;
        rig_passed(rig, &number, &block, shard);
        assert_int_equal(number, 3);
        assert_true(block <= rig_durable_blocks(rig, shard)); /* a block that exists */
        if (shard == rig_home(rig, "pub"))
            assert_true(block > 0);
    }
    rig_free(rig);
}

static void number_of_a_large_value_is_passed_when_its_block_is_known(void **state) /* LOG 12 */
{
    struct rig *rig = RIG(.body_max = 1024, .block_count = 4);
    struct rig_client *pub = v5(rig, "pub");
    char large[20000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    rig_log_hold(rig, true);
    rig_route_hold(rig, true); /* it asks after the large one has begun */
    rig_publish_retained(pub, "x", "v", 0, 0);
    rig_publish_retained(pub, "x", "", 0, 0);
    rig_publish_retained(pub, "y", large, 1, 1);
    rig_advance(rig, 1000);
    rig_route_hold(rig, false);
    rig_advance(rig, 3000);
    actor_id home = rig_home(rig, "pub");
    uint64_t number, block;
    rig_passed(rig, &number, &block, home);
    assert_true(number <= 3);
    rig_log_hold(rig, false);
    rig_settle(rig); /* the answer that was owed, not a later one */
    rig_passed(rig, &number, &block, home);
    assert_int_equal(number, 4);
    assert_true(block >= 20);
    assert_true(block <= rig_durable_blocks(rig, home));
    rig_free(rig);
}

/* === room ============================================================================================================================ */

static void checkpoint_that_lags_stops_state_and_nothing_else(void **state) /* LOG 15 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *other = v5(rig, "other"), *sub = subscriber(rig, "s", true, "x", 1),
                      *clean = subscriber(rig, "c", false, "y", 1);
    rig_store_room(rig, false);
    rig_settle(rig);
    rig_publish(other, "t/car/x", "telemetry", 1, 1);
    rig_publish(other, "y", "to who does not stay", 1, 2);
    rig_publish_retained(other, "r", "QoS 0 may be lost", 0, 0);
    rig_publish(pub, "x", "waits", 1, 1);
    rig_settle(rig);
    expect_ack(other, MQTT_PUBACK, 1, 0);
    expect_ack(other, MQTT_PUBACK, 2, 0);
    expect_payload_at(clean, "to who does not stay", 1);
    expect_nothing(pub);
    expect_nothing(sub);
    assert_true(rig_is_paused(pub));
    assert_int_equal(RIG_COUNTER(rig, publish_refused_log_full), 1);
    rig_store_room(rig, true);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, 0);
    expect_payload_at(sub, "waits", 1);
    assert_int_equal(rig_published_count(rig), 2);
    rig_free(rig);
}

static void full_log_stops_state_and_a_will_of_qos_0_waits(void **state)
{
    struct rig *rig = RIG();
    struct packet connect = rig_connect_packet("car", MQTT_V5, true);
    connect.connect.has_will = true;
    connect.connect.will_topic = SPAN_LITERAL("gone");
    connect.connect.will_payload = SPAN_LITERAL("car");
    struct rig_client *client = rig_connect_with(rig, &connect), *sub = subscriber(rig, "s", true, "gone", 1);
    rig_log_room(rig, false);
    rig_settle(rig);
    rig_break(client);
    rig_settle(rig);
    expect_nothing(sub);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 0);
    rig_log_room(rig, true);
    rig_advance(rig, 1000);
    expect_payload_at(sub, "car", 0);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 1);
    rig_free(rig);
}

static void full_subscriber_that_refuses_is_answered_to_the_publisher(void **state) /* LOG 13 */
{
    struct rig *rig = RIG();
    struct rig_client *pub = v5(rig, "pub"), *old = rig_connect(rig, "old", MQTT_V311, true),
                      *full = subscriber(rig, "s", true, "t/d/x", 1), *other = subscriber(rig, "c", false, "t/d/+", 2);
    rig_set_full(rig, "t/d/x", true);
    rig_publish(pub, "t/d/x", "0", 0, 0);
    rig_publish(pub, "t/d/x", "1", 1, 1);
    rig_publish(pub, "t/d/x", "2", 2, 2);
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBACK, 1, MQTT_REASON_QUOTA_EXCEEDED);
    expect_ack(pub, MQTT_PUBREC, 2, MQTT_REASON_QUOTA_EXCEEDED);
    expect_payload_at(other, "0", 0);
    expect_nothing(other);
    expect_nothing(full);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_refuse), 1);
    assert_int_equal(RIG_COUNTER(rig, publish_refused_subscriber_full), 2);
    assert_int_equal(RIG_COUNTER(rig, telemetry_refused_subscriber_full), 2);
    assert_int_equal(rig_published_count(rig), 1);
    rig_publish(old, "t/d/x", "3", 1, 3); /* cannot be told */
    rig_settle(rig);
    assert_true(rig_is_closed(old));
    rig_set_full(rig, "t/d/x", false);
    rig_publish(pub, "t/d/x", "4", 2, 2); /* the identifier is free */
    rig_settle(rig);
    expect_ack(pub, MQTT_PUBREC, 2, 0);
    expect_payload_at(full, "4", 1);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(nobody_who_stays_no_record),
        IN_EACH_MODE(session_that_stays_is_named_in_the_record),
        IN_EACH_MODE(granted_qos_0_needs_no_record),
        IN_EACH_MODE(qos_0_that_is_queued_has_a_record),
        IN_EACH_MODE(retained_values_and_removals_have_numbers_in_records),
        IN_EACH_MODE(qos_2_identifier_of_a_session_that_stays_is_logged),
        IN_EACH_MODE(qos_2_telemetry_of_a_session_that_ends_is_no_state),
        IN_EACH_MODE(will_deletes_itself_in_its_record),
        IN_EACH_MODE(without_a_log_nothing_has_a_record_and_nothing_waits),
        IN_EACH_MODE(many_properties_reach_record_and_subscriber),
        IN_EACH_MODE(session_that_stays_gets_it_when_it_is_durable_others_at_once),
        IN_EACH_MODE(every_recipient_of_qos_2_waits),
        IN_EACH_MODE(what_has_no_record_keeps_its_place_behind_what_waits),
        IN_EACH_MODE(answer_waits_for_the_route_actor_and_for_the_log),
        IN_EACH_MODE(repeated_pubrec_waits_for_both_too),
        IN_EACH_MODE(pubrel_before_pubrec_waits_for_both_too),
        IN_EACH_MODE(pubcomp_waits_until_the_identifier_is_closed),
        IN_EACH_MODE(sequence_of_small_records_in_one_block),
        IN_EACH_MODE(sequence_of_records_in_many_blocks),
        IN_EACH_MODE(sequence_of_records_in_compressed_blocks),
        IN_EACH_MODE(sequence_of_large_records_among_small_ones),
        IN_EACH_MODE(retained_message_gets_its_sequence_though_nobody_has_it),
        IN_EACH_MODE(numbers_passed_are_in_blocks_named),
        IN_EACH_MODE(number_of_a_large_value_is_passed_when_its_block_is_known),
        IN_EACH_MODE(checkpoint_that_lags_stops_state_and_nothing_else),
        IN_EACH_MODE(full_log_stops_state_and_a_will_of_qos_0_waits),
        IN_EACH_MODE(full_subscriber_that_refuses_is_answered_to_the_publisher),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
