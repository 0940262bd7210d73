/* Messages for persistent sessions with a checkpoint: what leaves when, and what is said of those that nobody gets. Long queues:
 * deliver_run_test.c; their bounds: deliver_bounds_test.c; everything at once: deliver_model_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_numbers.h"

static void qos2_leaves_when_its_record_is_durable(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_subscribe(sub, 1, "a/#", 2);
    publish_number(pub, "a/x", 1, 2, 7);
    rig_step(rig);
    while (count_records(rig, RECORD_SENT) == 0)
        rig_step(rig);
    rig_log_hold(rig, true); /* one step too late would let it out: SENT is read from the ring by the step that answers it */
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    const struct packet *packet = rig_next(sub);
    assert_non_null(packet);
    assert_int_equal(packet->type, MQTT_PUBLISH);
    uint16_t id = packet->publish.packet_id;
    rig_log_hold(rig, true);
    rig_send_ack(sub, MQTT_PUBREC, id);
    rig_settle(rig);
    assert_int_equal(count_records(rig, RECORD_RECEIVED), 1);
    assert_null(rig_next(sub)); /* PUBREL waits */
    /* ... on a later connection, too. */
    rig_break(sub);
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_settle(rig);
    packet = rig_next(sub);
    assert_non_null(packet);
    assert_int_equal(packet->type, MQTT_PUBREL);
    assert_int_equal(packet->ack.packet_id, id);
    rig_send_ack(sub, MQTT_PUBCOMP, id);
    rig_settle(rig);
    rig_checkpoint(rig);
    uint64_t session = named_session(rig);
    assert_int_equal(memory_store_sent_count(rig_store(rig), session), 0);
    assert_int_equal(memory_store_want_count(rig_store(rig), session), 0);
    rig_free(rig);
}

/* PUBLISH of QoS 2 whose SENT is not durable is not sent, and nothing overtakes it. */
static void nothing_overtakes_a_qos2_that_waits(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 2);
    publish_number(pub, "a/x", 1, 2, 7);
    publish_number(pub, "a/x", 2, 1, 8);
    publish_number(pub, "a/x", 3, 2, 9);
    rig_settle(rig);
    rig_log_hold(rig, true);
    struct packet connect = rig_connect_packet("sub", MQTT_V5, false);
    struct rig_client *sub = rig_connect_with(rig, &connect);
    rig_settle(rig);
    const struct packet *packet = rig_next(sub);
    assert_true(!packet || (packet->type == MQTT_CONNACK && !rig_next(sub)));
    rig_log_hold(rig, false);
    rig_settle(rig);
    for (unsigned i = 1; i <= 3; i++) {
        packet = rig_next(sub);
        if (packet && packet->type == MQTT_CONNACK)
            packet = rig_next(sub);
        assert_non_null(packet);
        assert_int_equal(packet->type, MQTT_PUBLISH);
        assert_int_equal(number_of(packet), i);
        assert_int_equal(packet->publish.qos, i == 2 ? 1 : 2);
    }
    rig_free(rig);
}

static void a_damaged_message_does_not_hold_the_others(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 5);
    struct record rec;
    memory_store_damage(rig_store(rig), 0); /* nobody's */
    uint64_t sequence = rig_published(rig, &rec, 2);
    rig_checkpoint(rig);
    memory_store_damage(rig_store(rig), sequence);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_settle(rig);
    for (unsigned i = 1; i <= 5; i += 1 + (i == 2)) {
        const struct packet *packet = rig_next(sub);
        assert_non_null(packet);
        assert_int_equal(number_of(packet), i);
        rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
    }
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_corrupt), 1);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 0);
    rig_free(rig);
}

/* A message in the gate when its session ends: nobody else could say that nobody wants it. */
static void a_message_for_a_session_that_ended_is_dropped_by_name(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.shard_count = 2);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    rig_log_hold(rig, true);
    publish_number(pub, "a/x", 1, 1, 1);
    rig_settle(rig);
    struct packet connect = rig_connect_packet("sub", MQTT_V5, true); /* clean: the old session ends */
    rig_connect_with(rig, &connect);
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_session_gone), 1);
    assert_int_equal(count_named(rig, RECORD_DROP), 1);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 0);
    rig_free(rig);
}

static void nothing_is_said_of_a_session_that_no_record_names(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, false), *sub = rig_connect(rig, "sub", MQTT_V5, true);
    rig_subscribe(sub, 1, "a/#", 1);
    rig_log_hold(rig, true);
    publish_number(pub, "a/x", 1, 2, 1); /* it has a record for its identifier's sake */
    rig_settle(rig);
    rig_break(sub);
    rig_log_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_session_gone), 1);
    assert_int_equal(count_records(rig, RECORD_DROP), 0);
    rig_free(rig);
}

/* However often and in whatever turn they find no room. */
static void a_session_without_room_is_noted_once(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.shard_count = 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    rig_subscribe(rig_connect(rig, "a", MQTT_V5, false), 1, "a/#", 1);
    rig_subscribe(rig_connect(rig, "b", MQTT_V5, false), 1, "a/#", 1);
    struct shard *shard = rig_shard(rig, 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 100; i++) {
            waiting_on_stuck(shard, session_table_find(&shard->sessions, SPAN_LITERAL("a")));
            waiting_on_stuck(shard, session_table_find(&shard->sessions, SPAN_LITERAL("b")));
        }
        assert_int_equal(shard->waiting.stuck.count, 2);
        publish_number(pub, "a/x", (unsigned)round, 1, 1);
        rig_settle(rig); /* blocks come back */
        assert_int_equal(shard->waiting.stuck.count, 0);
    }
    rig_free(rig);
}

/* Its subscriptions are in the tree as those of a session that stays, so records name it to its end. */
static void a_session_that_comes_back_for_the_last_time_says_what_it_has(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *sub = away_subscriber(rig, "s", "t", 2);
    publish_range(rig, pub, "t", 1, 2);
    uint64_t number = named_session(rig);
    struct packet connect = rig_connect_packet("s", MQTT_V5, false);
    connect.connect.properties.session_expiry_interval_s = 0;
    sub = rig_connect_with(rig, &connect);
    assert_true(rig_next(sub)->connack.session_present);
    assert_int_equal(take_all(rig, sub, 1), 2);
    publish_range(rig, pub, "t", 3, 4);
    assert_int_equal(take_all(rig, sub, 3), 4);
    publish_number(pub, "t", 5, 2, 9);
    rig_settle(rig);
    const struct packet *packet = rig_next(sub);
    assert_int_equal(packet->publish.qos, 2);
    rig_send_ack(sub, MQTT_PUBREC, packet->publish.packet_id);
    rig_settle(rig);
    packet = rig_next(sub);
    assert_int_equal(packet->type, MQTT_PUBREL);
    rig_send_ack(sub, MQTT_PUBCOMP, packet->ack.packet_id);
    rig_settle(rig);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), number), 0);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qos2_leaves_when_its_record_is_durable),
        cmocka_unit_test(nothing_overtakes_a_qos2_that_waits),
        cmocka_unit_test(a_damaged_message_does_not_hold_the_others),
        cmocka_unit_test(a_session_that_comes_back_for_the_last_time_says_what_it_has),
        cmocka_unit_test(a_message_for_a_session_that_ended_is_dropped_by_name),
        cmocka_unit_test(nothing_is_said_of_a_session_that_no_record_names),
        cmocka_unit_test(a_session_without_room_is_noted_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
