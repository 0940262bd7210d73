/* Long queues of persistent sessions: let go, in runs on disk, read back in order, whoever is how far behind. */
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

static void an_offline_queue_is_on_disk_and_comes_back_in_order(void **state)
{
    (void)state;
    for (uint32_t read_max = 0; read_max < 8; read_max += 7) {
        struct rig *rig = STORE_RIG(.limits = {.queue_policy = QUEUE_DROP_NEWEST});
        rig_read_max(rig, read_max);
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        away_subscriber(rig, "sub", "a/#", 1);
        for (unsigned i = 0; i < 500; i += 50) {
            publish_range(rig, pub, "a/x", i + 1, i + 50);
            rig_checkpoint(rig);
            assert_int_equal(in_memory(rig), 0);
        }
        uint64_t session = named_session(rig);
        rig_checkpoint(rig);
        assert_int_equal(queued(rig), 500);
        assert_true(memory_store_run_count(rig_store(rig), session) > 10);
        struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
        assert_int_equal(take_all(rig, sub, 1), 500);
        publish_range(rig, pub, "a/x", 501, 510);
        assert_int_equal(take_all(rig, sub, 501), 510);
        assert_int_equal(queued(rig), 0);
        rig_checkpoint(rig);
        assert_int_equal(memory_store_want_count(rig_store(rig), session), 0);
        assert_int_equal(memory_store_run_count(rig_store(rig), session), 0);
        assert_int_equal(count_named(rig, RECORD_ACK), 510);
        assert_true(count_records(rig, RECORD_ACK) <= 510 / 10); /* what is acknowledged in a row is one record */
        assert_int_equal(count_records(rig, RECORD_DROP), 0);
        rig_free(rig);
    }
}

/* More runs than one turn cuts, of two sessions: the walk goes on where it stopped. */
static void what_came_at_once_is_let_go_in_turns(void **state)
{
    (void)state;
    const unsigned count = WAITING_RUNS_PER_TURN * STORE_RUN_MAX + 1000;
    struct rig *rig = STORE_RIG(.limits = {.session_queue_messages_max = count});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub1", "a/#", 1);
    away_subscriber(rig, "sub2", "a/x", 1);
    publish_range(rig, pub, "a/x", 1, count);
    assert_int_equal(in_memory(rig), 2 * count);
    rig_checkpoint(rig);
    assert_int_equal(in_memory(rig), 0);
    assert_int_equal(queued(rig), 2 * count);
    rig_checkpoint(rig);
    for (int i = 0; i < 2; i++) {
        struct rig_client *sub = rig_connect(rig, i == 0 ? "sub1" : "sub2", MQTT_V5, false);
        assert_int_equal(take_all(rig, sub, 1), count);
    }
    assert_int_equal(queued(rig), 0);
    rig_free(rig);
}

static uint64_t runs_of(struct rig *rig) { return memory_store_run_count(rig_store(rig), named_session(rig)); }

/* Take some and acknowledge them, as a client that is slower than what comes. Returns the next. */
static unsigned take_some(struct rig *rig, struct rig_client *sub, unsigned next, unsigned count)
{
    for (const struct packet *packet; count > 0; count--, rig_settle(rig)) {
        assert_non_null(packet = rig_next(sub));
        assert_int_equal(number_of(packet), next);
        next++;
        rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
    }
    return next;
}

/* Whatever its queue was, when its client is there: all of it comes, and then each message when it is published, though the checkpoint
 * stands still. */
static void comes_to_be_live(struct rig *rig, struct rig_client *pub, struct rig_client *sub, unsigned next, unsigned last)
{
    rig_settle(rig);
    assert_int_equal(take_all(rig, sub, next), last);
    assert_int_equal(queued(rig), 0);
    for (unsigned i = last + 1; i <= last + 20; i++) {
        publish_range(rig, pub, "a/x", i, i);
        assert_int_equal(take_all(rig, sub, i), i);
    }
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 0);
    assert_int_equal(runs_of(rig), 0); /* those that were consumed before they were committed as well */
}

/* Runs that the store has not committed are known to the home, and read by their sequences. */
static void a_run_that_is_not_committed_can_be_read(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 200);
    rig_checkpoint(rig); /* runs are posted by this one, and not in it */
    assert_int_equal(in_memory(rig), 0);
    assert_int_equal(runs_of(rig), 0);
    comes_to_be_live(rig, pub, rig_connect(rig, "sub", MQTT_V5, false), 1, 200);
    rig_free(rig);
}

/* Some of its runs are committed, some posted, and some sequences in the tail; and it leaves in the middle of them and comes back. */
static void a_client_that_leaves_between_runs_goes_on_behind_them(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.inflight_max = 5});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    unsigned next = 1, last = 0;
    for (; last < 600; last += 100) {
        publish_range(rig, pub, "a/x", last + 1, last + 100);
        rig_checkpoint(rig);
    }
    assert_true(runs_of(rig) > 10);
    while (next < 580) { /* each time a few more, and as much as came meanwhile is posted anew */
        struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
        rig_settle(rig);
        next = take_some(rig, sub, next, 47);
        rig_break(sub);
        rig_settle(rig);
        publish_range(rig, pub, "a/x", last + 1, last + 20);
        last += 20;
        if (next % 2)
            rig_checkpoint(rig);
    }
    comes_to_be_live(rig, pub, rig_connect(rig, "sub", MQTT_V5, false), next, last);
    rig_free(rig);
}

/* The checkpoint moves while it is on its way: nothing of what it follows nearly is written down as a run. */
static void a_client_that_comes_back_into_a_flow_catches_up(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.inflight_max = 5});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 60);
    rig_checkpoint(rig);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_settle(rig);
    unsigned next = 1, last = 60;
    for (; last < 900; last += 60) { /* slower than what comes */
        publish_range(rig, pub, "a/x", last + 1, last + 60);
        next = take_some(rig, sub, next, 20);
        rig_checkpoint(rig);
        assert_true(in_memory(rig) <= 64);
    }
    assert_true(runs_of(rig) <= 60 / 12 + 1); /* of what came while it was away */
    comes_to_be_live(rig, pub, sub, next, last);
    rig_free(rig);
}

/* What is far behind becomes runs also when the client is there: it may be as slow as that for hours. */
static void a_client_that_is_far_behind_keeps_little_in_memory(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.inflight_max = 5, .session_queue_messages_max = 10 * QUEUE_NEAR_MAX});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_subscribe(sub, 1, "a/#", 1);
    unsigned last = 0, next = 1;
    for (; last < 3 * QUEUE_NEAR_MAX; last += 500) {
        publish_range(rig, pub, "a/x", last + 1, last + 500);
        next = take_some(rig, sub, next, 10);
        rig_checkpoint(rig);
        assert_true(in_memory(rig) <= 64);
    }
    assert_true(runs_of(rig) >= QUEUE_NEAR_MAX / 32);
    comes_to_be_live(rig, pub, sub, next, last);
    rig_free(rig);
}

static void a_subscriber_that_keeps_up_costs_one_record_a_message(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG();
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_subscribe(sub, 1, "a/#", 1);
    size_t before = rig_record_count(rig);
    for (unsigned i = 1; i <= 50; i++) {
        publish_range(rig, pub, "a/x", i, i);
        assert_int_equal(take_all(rig, sub, i), i);
    }
    assert_int_equal(rig_record_count(rig) - before, 100); /* PUBLISH and ACK */
    rig_free(rig);
}

static void what_is_in_flight_is_let_go_and_sent_again_under_its_identifier(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.inflight_max = 5});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_subscribe(sub, 1, "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 8);
    uint16_t ids[6];
    for (unsigned i = 1; i <= 5; i++) {
        const struct packet *packet = rig_next(sub);
        assert_int_equal(number_of(packet), i);
        assert_false(packet->publish.dup);
        ids[i] = packet->publish.packet_id;
    }
    rig_send_ack(sub, MQTT_PUBACK, ids[2]);
    rig_settle(rig);
    rig_break(sub);
    rig_settle(rig);
    const struct session *sess = session_table_find(&rig_shard(rig, rig_home(rig, "sub"))->sessions, SPAN_LITERAL("sub"));
    assert_false(sess->inflight.is_packed);
    rig_checkpoint(rig);
    assert_int_equal(in_memory(rig), 0);
    assert_true(sess->inflight.is_packed);
    sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_settle(rig);
    for (unsigned i = 1; i <= 6; i += 1 + (i == 1)) {
        const struct packet *packet = rig_next(sub);
        assert_non_null(packet);
        assert_int_equal(number_of(packet), i);
        assert_true(packet->publish.dup); /* 6 was sent when 2 was acknowledged */
        if (i < 6)
            assert_int_equal(packet->publish.packet_id, ids[i]);
        rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
    }
    rig_settle(rig);
    assert_int_equal(take_all(rig, sub, 7), 8);
    rig_free(rig);
}

/* Queue and what is in flight are packed while the client is away, opened for what comes, and packed again. */
static void what_is_packed_goes_on(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.inflight_max = 5});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    rig_subscribe(sub, 1, "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 100);
    rig_break(sub);
    rig_settle(rig);
    const struct session *sess = session_table_find(&rig_shard(rig, rig_home(rig, "sub"))->sessions, SPAN_LITERAL("sub"));
    for (unsigned i = 101; i <= 160; i += 20) {
        rig_checkpoint(rig);
        assert_int_equal(in_memory(rig), 0);
        rig_checkpoint(rig); /* the runs are in it */
        assert_true(sess->inflight.is_packed && sess->queue.is_packed);
        publish_range(rig, pub, "a/x", i, i + 19);
        assert_true(sess->inflight.is_packed && !sess->queue.is_packed);
    }
    rig_checkpoint(rig);
    rig_checkpoint(rig); /* the last runs are in it */
    for (int round = 0; round < 3; round++) {
        assert_true(sess->inflight.is_packed && sess->queue.is_packed);
        assert_int_equal(queued(rig), 155);
        sub = rig_connect(rig, "sub", MQTT_V5, false);
        rig_settle(rig);
        for (unsigned i = 1; i <= 5; i++)
            assert_int_equal(number_of(rig_next(sub)), i);
        rig_break(sub); /* with what was read ahead */
        rig_settle(rig);
    }
    sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, 1), 160);
    assert_int_equal(queued(rig), 0);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_offline_queue_is_on_disk_and_comes_back_in_order),
        cmocka_unit_test(what_came_at_once_is_let_go_in_turns),
        cmocka_unit_test(a_run_that_is_not_committed_can_be_read),
        cmocka_unit_test(a_client_that_leaves_between_runs_goes_on_behind_them),
        cmocka_unit_test(a_client_that_comes_back_into_a_flow_catches_up),
        cmocka_unit_test(a_client_that_is_far_behind_keeps_little_in_memory),
        cmocka_unit_test(a_subscriber_that_keeps_up_costs_one_record_a_message),
        cmocka_unit_test(what_is_in_flight_is_let_go_and_sent_again_under_its_identifier),
        cmocka_unit_test(what_is_packed_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
