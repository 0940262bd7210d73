/* The life of messages for persistent sessions with a checkpoint: let go, read back, acknowledged, dropped; nothing lost, nothing twice. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "broker/session/queue_totals.h"
#include "common/check.h"
#include "common/position_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/shard_rig.h"

#define RIG(...) rig_new(&(struct rig_options){.has_store = true, __VA_ARGS__})

static void publish_number(struct rig_client *client, const char *topic, unsigned number, uint8_t qos, uint16_t packet_id)
{
    char payload[16];
    snprintf(payload, sizeof payload, "%u", number);
    rig_publish(client, topic, payload, qos, packet_id);
}

static unsigned number_of(const struct packet *packet)
{
    char text[16] = "";
    assert_true(packet->publish.payload.size < sizeof text);
    memcpy(text, packet->publish.payload.data, packet->publish.payload.size);
    return (unsigned)strtoul(text, NULL, 10);
}

/* Publish numbers first..last with QoS 1, and take the answers. */
static void publish_range(struct rig *rig, struct rig_client *pub, const char *topic, unsigned first, unsigned last)
{
    for (unsigned i = first; i <= last; i++) {
        publish_number(pub, topic, i, 1, (uint16_t)(i % 60000 + 1));
        rig_settle(rig);
        const struct packet *packet = rig_next(pub);
        assert_non_null(packet);
        assert_int_equal(packet->type, MQTT_PUBACK);
        assert_true(packet->ack.reason < 0x80);
    }
}

/* The number of the session that the newest PUBLISH record names first. */
static uint64_t named_session(const struct rig *rig)
{
    struct record rec;
    struct record_recipient recipient;
    for (size_t i = rig_record_count(rig); i-- > 0;) {
        rig_record(rig, &rec, i);
        struct span rest = rec.recipients;
        if (rec.type == RECORD_PUBLISH && record_recipient_next(&recipient, &rest) == ERR_OK)
            return recipient.session;
    }
    fail_msg("no record names a session");
    return 0;
}

/* Messages named by the positions of such records. */
static size_t count_named(const struct rig *rig, enum record_type type)
{
    size_t count = 0;
    struct record rec;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        rig_record(rig, &rec, i);
        uint64_t sequence = 0;
        for (size_t offset = 0; rec.type == type && position_list_next(rec.positions, &offset, &sequence) == ERR_OK;)
            count++;
    }
    return count;
}

static uint64_t queued(struct rig *rig) { return rig_stats(rig, 0)->queued.messages; }
static uint64_t in_memory(struct rig *rig) { return rig_stats(rig, 0)->checkpoint_window.messages; }

static struct rig_client *away_subscriber(struct rig *rig, const char *id, const char *filter, uint8_t qos)
{
    struct rig_client *sub = rig_connect(rig, id, MQTT_V5, false);
    rig_subscribe(sub, 1, filter, qos);
    rig_break(sub);
    rig_settle(rig);
    return sub;
}

/* Take and acknowledge QoS 1 messages until none comes; each must be the next number. Returns the last. */
static unsigned take_all(struct rig *rig, struct rig_client *sub, unsigned next)
{
    for (const struct packet *packet;; rig_settle(rig)) {
        bool is_any = false;
        while ((packet = rig_next(sub)) != NULL) {
            assert_int_equal(packet->type, MQTT_PUBLISH);
            assert_int_equal(number_of(packet), next);
            next++;
            is_any = true;
            rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
        }
        if (!is_any)
            return next - 1;
    }
}

static void an_offline_queue_is_on_disk_and_comes_back_in_order(void **state)
{
    (void)state;
    for (uint32_t read_max = 0; read_max < 8; read_max += 7) {
        struct rig *rig = RIG(.limits = {.queue_policy = QUEUE_DROP_NEWEST});
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
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = count});
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
    struct rig *rig = RIG();
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
    struct rig *rig = RIG(.limits = {.inflight_max = 5});
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
    struct rig *rig = RIG(.limits = {.inflight_max = 5});
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
    struct rig *rig = RIG(.limits = {.inflight_max = 5, .session_queue_messages_max = 10 * QUEUE_NEAR_MAX});
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
    struct rig *rig = RIG();
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
    struct rig *rig = RIG(.limits = {.inflight_max = 5});
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
    struct rig *rig = RIG(.limits = {.inflight_max = 5});
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

static void qos2_leaves_when_its_record_is_durable(void **state)
{
    (void)state;
    struct rig *rig = RIG();
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
    struct rig *rig = RIG();
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

static void the_newest_is_dropped_and_said(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = 100});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 130);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    assert_int_equal(queued(rig), 100);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 30);
    assert_int_equal(count_named(rig, RECORD_DROP), 30);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 100);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, 1), 100);
    rig_free(rig);
}

static void the_oldest_is_dropped_from_memory_and_from_disk(void **state)
{
    (void)state;
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        struct rig *rig = RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_DROP_OLDEST});
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        away_subscriber(rig, "sub", "a/#", 1);
        for (unsigned i = 0; i < 300; i += 30) {
            publish_range(rig, pub, "a/x", i + 1, i + 30);
            if (on_disk)
                rig_checkpoint(rig);
        }
        rig_checkpoint(rig);
        rig_checkpoint(rig);
        assert_int_equal(queued(rig), 100);
        assert_int_equal(in_memory(rig), 0);
        assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 200);
        assert_int_equal(count_named(rig, RECORD_DROP), 200);
        assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 100);
        struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
        assert_int_equal(take_all(rig, sub, 201), 300);
        rig_free(rig);
    }
}

/* What the reader does not bring in time stays until it does; then the newest are left, and only they. */
static void the_newest_are_left_of_a_flood(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_DROP_OLDEST});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 100);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    rig_reader_hold(rig, true);
    for (unsigned i = 101; i <= 300; i += 50) {
        publish_range(rig, pub, "a/x", i, i + 49);
        rig_checkpoint(rig);
    }
    assert_int_equal(queued(rig), 200);
    assert_int_equal(in_memory(rig), 100);
    rig_reader_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(queued(rig), 100);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 200);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    assert_int_equal(in_memory(rig), 0);
    assert_int_equal(count_named(rig, RECORD_DROP), 200);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 100);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, 201), 300);
    rig_free(rig);
}

/* As many of the newest as fit, whatever each costs, are left; and what they cost is known to the byte. */
static void the_newest_bytes_are_left_of_a_flood(void **state)
{
    (void)state;
    struct rig *rig =
        RIG(.limits = {.session_queue_messages_max = 100000, .session_queue_bytes_max = 20000, .queue_policy = QUEUE_DROP_OLDEST});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    char topic[128] = "a/";
    memset(topic + 2, 'x', sizeof topic - 3);
    uint64_t costs[401] = {0};
    for (unsigned i = 1; i <= 400; i++) {
        uint64_t before = rig_stats(rig, 0)->queued.bytes;
        topic[3 + i * 7 % 120] = 0;
        publish_range(rig, pub, topic, i, i);
        topic[3 + i * 7 % 120] = 'x';
        costs[i] = sizeof(struct msg) + 3 + i * 7 % 120 + strlen("100") - (i < 100) - (i < 10);
        if (i <= 20)
            assert_int_equal(rig_stats(rig, 0)->queued.bytes, before + costs[i]);
        rig_reader_hold(rig, i > 150 && i < 399);
        if (i % 30 == 0)
            rig_checkpoint(rig);
        assert_true(rig_stats(rig, 0)->queued.bytes <= 2 * 20000);
    }
    rig_settle(rig);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    assert_int_equal(in_memory(rig), 0);
    unsigned first = 401;
    uint64_t bytes = 0;
    while (bytes + costs[first - 1] <= 20000)
        bytes += costs[--first];
    assert_int_equal(rig_stats(rig, 0)->queued.bytes, bytes);
    assert_int_equal(queued(rig), 401 - first);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_bytes), first - 1);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, first), 400);
    assert_int_equal(rig_stats(rig, 0)->queued.bytes, 0);
    rig_free(rig);
}

static void the_overshoot_is_bounded_in_bytes(void **state)
{
    (void)state;
    for (int policy = QUEUE_DROP_OLDEST; policy <= QUEUE_REFUSE; policy++) {
        struct rig *rig =
            RIG(.limits = {.session_queue_messages_max = 100000, .session_queue_bytes_max = 3000, .queue_policy = (uint8_t)policy});
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        away_subscriber(rig, "sub", "a/#", 1);
        rig_reader_hold(rig, true);
        for (unsigned i = 1; i <= 300; i++) {
            publish_number(pub, "a/x", i, 1, (uint16_t)i);
            if (i % 100 == 50)
                rig_settle(rig);
            if (i % 100 == 0)
                rig_settle(rig), rig_checkpoint(rig);
        }
        uint64_t bytes = rig_stats(rig, 0)->queued.bytes;
        assert_true(bytes >= 2500 && bytes <= 6000);
        rig_reader_hold(rig, false);
        rig_free(rig);
    }
}

static void refuse_says_so_to_publishers_and_takes_it_back(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_REFUSE});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    unsigned accepted = 0;
    for (unsigned i = 1; i <= 200; i++) {
        publish_number(pub, "a/x", i, 1, (uint16_t)i);
        rig_settle(rig);
        const struct packet *packet = rig_next(pub);
        assert_int_equal(packet->type, MQTT_PUBACK);
        accepted += packet->ack.reason < 0x80;
    }
    assert_int_equal(accepted, queued(rig));
    assert_true(accepted >= 100 && accepted <= 101);
    assert_int_equal(count_named(rig, RECORD_DROP), 0);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, 1), accepted);
    publish_range(rig, pub, "a/x", accepted + 1, accepted + 10);
    assert_int_equal(take_all(rig, sub, accepted + 1), accepted + 10);
    rig_free(rig);
}

/* Nothing waits that could leave and make room: a session whose queue is empty is not full. */
static void refuse_is_not_for_ever_when_one_message_is_larger_than_the_queue(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.session_queue_messages_max = 100, .session_queue_bytes_max = 2000, .queue_policy = QUEUE_REFUSE});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    char large[4001];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = 0;
    rig_publish(pub, "a/x", large, 1, 1);
    rig_settle(rig);
    assert_int_equal(rig_next(pub)->ack.reason, 0);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_bytes), 1);
    publish_number(pub, "a/x", 1, 1, 2);
    rig_settle(rig);
    assert_int_equal(rig_next(pub)->ack.reason, 0);
    assert_int_equal(queued(rig), 1);
    rig_free(rig);
}

/* What never waits needs no room, and what nobody can be refused for is dropped. */
static void at_the_bound_of_all_queues_persistent_sessions_alone_refuse(void **state)
{
    (void)state;
    struct queue_totals totals = {.messages_max = 10, .bytes_max = UINT64_MAX};
    struct rig *rig = RIG(.queue_totals = &totals, .limits = {.queue_policy = QUEUE_REFUSE, .inflight_max = 1});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "away", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 10);
    publish_number(pub, "a/x", 11, 1, 11);
    rig_settle(rig);
    assert_int_equal(rig_next(pub)->ack.reason, MQTT_REASON_QUOTA_EXCEEDED);
    struct rig_client *stays = rig_connect(rig, "stays", MQTT_V5, false), *clean = rig_connect(rig, "clean", MQTT_V5, true);
    rig_subscribe(stays, 1, "b/#", 0);
    rig_subscribe(clean, 1, "b/#", 1);
    publish_range(rig, pub, "b/x", 1, 3);
    for (unsigned i = 1; i <= 3; i++) {
        const struct packet *packet = rig_next(stays);
        assert_non_null(packet);
        assert_int_equal(number_of(packet), i);
    }
    assert_int_equal(number_of(rig_next(clean)), 1); /* and is not acknowledged */
    assert_null(rig_next(clean));
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_refuse), 0);
    assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 2);
    assert_int_equal(atomic_load(&totals.messages), 10);
    rig_free(rig);
}

static void all_queues_together_are_bounded(void **state)
{
    (void)state;
    struct queue_totals totals = {.messages_max = 50, .bytes_max = UINT64_MAX};
    struct rig *rig = RIG(.shard_count = 2, .queue_totals = &totals);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    for (int i = 0; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "s%d", i);
        away_subscriber(rig, id, "a/#", 1);
    }
    publish_range(rig, pub, "a/x", 1, 30);
    assert_int_equal(atomic_load(&totals.messages), 50);
    assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 70);
    assert_int_equal(count_named(rig, RECORD_DROP), 70);
    totals.bytes_max = atomic_load(&totals.bytes);
    totals.messages_max = UINT64_MAX;
    publish_range(rig, pub, "a/x", 31, 31);
    assert_int_equal(RIG_COUNTER(rig, dropped_total_bytes), 4);
    for (int i = 0; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "s%d", i);
        struct rig_client *sub = rig_connect(rig, id, MQTT_V5, true);
        rig_break(sub);
    }
    rig_settle(rig);
    assert_int_equal(atomic_load(&totals.messages), 0);
    assert_int_equal(atomic_load(&totals.bytes), 0);
    rig_free(rig);
}

/* Each session pays for what it gets with its own oldest, wherever that is, and only what it gets. */
static void all_queues_together_drop_the_oldest(void **state)
{
    (void)state;
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        struct queue_totals totals = {.messages_max = 60, .bytes_max = UINT64_MAX};
        struct rig *rig = RIG(.shard_count = 2, .queue_totals = &totals, .limits = {.queue_policy = QUEUE_DROP_OLDEST});
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        away_subscriber(rig, "quiet", "q/#", 1);
        away_subscriber(rig, "one", "a/#", 1);
        away_subscriber(rig, "two", "a/#", 1);
        away_subscriber(rig, "late", "l/#", 1);
        publish_range(rig, pub, "q/x", 1, 20);
        for (unsigned i = 0; i < 100; i += 10) {
            publish_range(rig, pub, "a/x", i + 1, i + 10);
            if (on_disk)
                rig_checkpoint(rig);
            assert_int_equal(atomic_load(&totals.messages), i < 10 ? 40 : 60);
        }
        assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 160);
        publish_range(rig, pub, "l/x", 1, 1); /* nothing older to pay with */
        rig_checkpoint(rig);
        rig_checkpoint(rig);
        assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 161);
        assert_int_equal(count_named(rig, RECORD_DROP), 161);
        assert_int_equal(take_all(rig, rig_connect(rig, "quiet", MQTT_V5, false), 1), 20);
        publish_range(rig, pub, "l/x", 1, 1); /* there is room now */
        assert_int_equal(take_all(rig, rig_connect(rig, "late", MQTT_V5, false), 1), 1);
        assert_int_equal(take_all(rig, rig_connect(rig, "one", MQTT_V5, false), 81), 100);
        assert_int_equal(take_all(rig, rig_connect(rig, "two", MQTT_V5, false), 81), 100);
        assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 0);
        assert_int_equal(atomic_load(&totals.messages), 0);
        assert_int_equal(atomic_load(&totals.bytes), 0);
        rig_free(rig);
    }
}

/* While a session's costs are looked up, what it owes is nobody else's: another one's message finds the room that there is. */
static void nobody_pays_for_what_another_session_owes(void **state)
{
    (void)state;
    struct queue_totals totals = {.messages_max = 40, .bytes_max = UINT64_MAX};
    struct rig *rig = RIG(.queue_totals = &totals, .limits = {.queue_policy = QUEUE_DROP_OLDEST});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "one", "1/#", 1);
    away_subscriber(rig, "two", "2/#", 1);
    publish_range(rig, pub, "2/x", 1, 10);
    publish_range(rig, pub, "1/x", 1, 29);
    rig_checkpoint(rig);
    rig_checkpoint(rig);
    assert_int_equal(in_memory(rig), 0);
    rig_reader_hold(rig, true);
    publish_range(rig, pub, "1/x", 30, 35); /* one has room */
    assert_int_equal(atomic_load(&totals.messages), 40);
    assert_int_equal(queued(rig), 45);
    totals.messages_max = 42;
    publish_range(rig, pub, "2/x", 11, 12);
    assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 0);
    publish_range(rig, pub, "1/x", 36, 100); /* never more than twice what it holds */
    assert_int_equal(atomic_load(&totals.messages), 42);
    assert_int_equal(queued(rig), 12 + 29 + 30);
    rig_reader_hold(rig, false);
    rig_settle(rig);
    assert_int_equal(queued(rig), 42);
    assert_int_equal(RIG_COUNTER(rig, dropped_total_messages), 70);
    assert_int_equal(take_all(rig, rig_connect(rig, "two", MQTT_V5, false), 1), 12);
    assert_int_equal(take_all(rig, rig_connect(rig, "one", MQTT_V5, false), 71), 100);
    assert_int_equal(atomic_load(&totals.messages), 0);
    assert_int_equal(atomic_load(&totals.bytes), 0);
    rig_free(rig);
}

static void comes_for_a_while(struct rig *rig, const char *id)
{
    struct rig_client *sub = rig_connect(rig, id, MQTT_V5, false);
    for (const struct packet *packet; (packet = rig_next(sub)) != NULL; rig_settle(rig))
        rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
    rig_break(sub);
    rig_settle(rig);
}

/* Sessions that come and go, messages of many sizes, a reader that is late: the books of all queues are those of each. */
static void the_books_of_all_queues_are_exact(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(77));
    uint64_t drops = 0, quiet = 0;
    for (int round = 0; round < 8; round++) {
        struct queue_totals totals = {.messages_max = 60, .bytes_max = round % 2 ? 12000 : UINT64_MAX};
        struct rig *rig = RIG(.queue_totals = &totals,
                              .limits = {.queue_policy = QUEUE_DROP_OLDEST, .session_queue_messages_max = round % 3 ? 100000 : 40});
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        for (char id[] = "0", filter[] = "0/#"; id[0] < '5'; id[0]++, filter[0]++)
            away_subscriber(rig, id, filter, 1);
        away_subscriber(rig, "all", "#", 1);
        bool is_held = false;
        for (unsigned i = 1; i <= 1500; i++) {
            char topic[256], id[] = {(char)('0' + check_random_below(&random, 5)), 0};
            snprintf(topic, sizeof topic, "%s/%0*d", id, 1 + (int)check_random_below(&random, 200), 0);
            if (check_random_chance(&random, 1, 50))
                comes_for_a_while(rig, id);
            publish_range(rig, pub, topic, i, i);
            if (check_random_chance(&random, 1, 10))
                rig_checkpoint(rig);
            if (check_random_chance(&random, 1, 40))
                rig_reader_hold(rig, is_held = !is_held);
            rig_settle(rig);
            const struct queue_stats *all = &rig_stats(rig, 0)->queued;
            assert_true(atomic_load(&totals.messages) <= totals.messages_max);
            assert_true(atomic_load(&totals.bytes) <= totals.bytes_max);
            assert_true(all->messages <= 2 * totals.messages_max);
            assert_true(atomic_load(&totals.messages) <= all->messages);
            assert_true(atomic_load(&totals.bytes) <= all->bytes);
            if (is_held || i % 20 > 0)
                continue;
            rig_checkpoint(rig); /* with which runs are there that were asked for too early */
            rig_checkpoint(rig);
            assert_int_equal(atomic_load(&totals.messages), all->messages);
            assert_int_equal(atomic_load(&totals.bytes), all->bytes);
            quiet++;
        }
        drops += RIG_COUNTER(rig, dropped_total_messages) + RIG_COUNTER(rig, dropped_total_bytes);
        rig_free(rig);
    }
    assert_true(drops > 1000);
    assert_true(quiet > 100);
}

static void what_waited_too_long_is_dropped(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.queue_age_max_ns = INT64_C(60) * 1000000000});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 10);
    rig_checkpoint(rig);
    rig_advance(rig, 61000);
    publish_range(rig, pub, "a/x", 11, 20);
    rig_checkpoint(rig);
    rig_checkpoint(rig); /* has the run */
    struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
    assert_int_equal(take_all(rig, sub, 11), 20);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 10);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 0);
    rig_free(rig);
}

/* Nobody comes for them: they go all the same, wherever they wait, and those that are younger stay. Whatever the wall clock does. */
static void what_nobody_comes_for_is_dropped_too(void **state)
{
    (void)state;
    for (int way = 0; way < 4; way++) { /* how much of it is on disk */
        struct rig *rig = RIG(.limits = {.queue_age_max_ns = INT64_C(3600) * 1000000000, .session_queue_messages_max = 1000});
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
        away_subscriber(rig, "sub", "a/#", 1);
        away_subscriber(rig, "another", "a/#", 1);
        for (unsigned i = 1; i <= 200; i += 20) {
            publish_range(rig, pub, "a/x", i, i + 19);
            if (way > 0)
                rig_checkpoint(rig);
        }
        if (way == 2)
            rig_step_wall(rig, 1000000);
        if (way == 3)
            rig_step_wall(rig, -1000000);
        rig_checkpoint(rig);
        rig_advance(rig, 1800 * 1000);
        publish_range(rig, pub, "a/x", 201, 250);
        rig_checkpoint(rig);
        rig_advance(rig, 1700 * 1000);
        rig_checkpoint(rig);
        rig_advance(rig, 60 * 1000);
        assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 0);
        for (int i = 0; i < 6; i++) {
            rig_advance(rig, 60 * 1000);
            rig_checkpoint(rig);
        }
        assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 400);
        assert_int_equal(count_named(rig, RECORD_DROP), 400);
        for (int i = 0; i < 60; i++) {
            rig_advance(rig, 60 * 1000);
            rig_checkpoint(rig);
        }
        assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 500);
        assert_int_equal(memory_store_want_count(rig_store(rig), named_session(rig)), 0);
        publish_range(rig, pub, "a/x", 251, 252);
        struct rig_client *sub = rig_connect(rig, "sub", MQTT_V5, false);
        assert_int_equal(take_all(rig, sub, 251), 252);
        rig_free(rig);
    }
}

static void age_without_persistence(void **state)
{
    (void)state;
    struct rig *rig = rig_new(&(struct rig_options){.no_persistence = true, .limits = {.queue_age_max_ns = INT64_C(60) * 1000000000}});
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    away_subscriber(rig, "sub", "a/#", 1);
    publish_range(rig, pub, "a/x", 1, 10);
    rig_step_wall(rig, 1000000);
    rig_advance(rig, 40000);
    publish_range(rig, pub, "a/x", 11, 20);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 0);
    rig_advance(rig, 25000);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_age), 10);
    rig_free(rig);
}

static void a_damaged_message_does_not_hold_the_others(void **state)
{
    (void)state;
    struct rig *rig = RIG();
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
    struct rig *rig = RIG(.shard_count = 2);
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
    struct rig *rig = RIG();
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
    struct rig *rig = RIG(.shard_count = 1);
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

/* --- everything at once ------------------------------------------------------------------------------------------------------------- */

#define SUBSCRIBERS 4
#define NUMBERS 3000

struct receiver {
    struct rig_client *client; /* NULL = away */
    char id[8];
    uint8_t qos;
    unsigned highest[2]; /* of each publisher */
    uint8_t got[2][NUMBERS];
    bool is_open[65536]; /* QoS 2 identifiers */
};

static void receive(struct receiver *to)
{
    for (const struct packet *packet; (packet = rig_next(to->client)) != NULL;) {
        if (packet->type == MQTT_PUBREL) {
            to->is_open[packet->ack.packet_id] = false;
            rig_send_ack(to->client, MQTT_PUBCOMP, packet->ack.packet_id);
            continue;
        }
        if (packet->type != MQTT_PUBLISH)
            continue;
        unsigned p = packet->publish.topic.data[2] == '1', number = number_of(packet);
        assert_true(number < NUMBERS);
        uint16_t id = packet->publish.packet_id;
        bool is_again = packet->publish.qos == 2 && to->is_open[id];
        if (!is_again) {
            if (to->got[p][number] > 0)
                assert_true(packet->publish.qos == 1 && packet->publish.dup);
            else
                assert_true(number > to->highest[p]); /* order of the first sending */
            to->highest[p] = number > to->highest[p] ? number : to->highest[p];
            to->got[p][number]++;
        } else
            assert_true(packet->publish.dup);
        if (packet->publish.qos == 2)
            to->is_open[id] = true;
        rig_send_ack(to->client, packet->publish.qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, id);
    }
}

/* Its subscriptions are in the tree as those of a session that stays, so records name it to its end. */
static void a_session_that_comes_back_for_the_last_time_says_what_it_has(void **state)
{
    (void)state;
    struct rig *rig = RIG();
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

static void random_sessions_lose_nothing(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(21);
    struct check_random random;
    check_random_init(&random, seed);
    struct rig *rig =
        RIG(.shard_count = 3, .delay_seed = seed, .ring_size = 64, .limits = {.session_queue_messages_max = 100000, .inflight_max = 6});
    struct rig_client *pubs[2] = {rig_connect(rig, "p0", MQTT_V5, true), rig_connect(rig, "p1", MQTT_V5, true)};
    struct receiver *to = calloc(SUBSCRIBERS, sizeof *to);
    assert_non_null(to);
    for (unsigned i = 0; i < SUBSCRIBERS; i++) {
        snprintf(to[i].id, sizeof to[i].id, "s%u", i);
        to[i].qos = 1 + i % 2;
        to[i].client = rig_connect(rig, to[i].id, MQTT_V5, false);
        rig_subscribe(to[i].client, 1, "a/#", to[i].qos);
    }
    unsigned sent[2] = {0, 0};
    for (int step = 0; step < 6000; step++) {
        unsigned p = (unsigned)check_random_below(&random, 2);
        struct receiver *one = &to[check_random_below(&random, SUBSCRIBERS)];
        switch (check_random_below(&random, 12)) {
        case 0:
        case 1:
        case 2:
            if (sent[p] + 1 < NUMBERS) {
                sent[p]++;
                publish_number(pubs[p], p ? "a/1" : "a/0", sent[p], 2, (uint16_t)sent[p]);
                rig_send_ack(pubs[p], MQTT_PUBREL, (uint16_t)sent[p]);
            }
            break;
        case 3:
            if (one->client && check_random_chance(&random, 1, 12)) {
                rig_break(one->client);
                one->client = NULL;
            }
            break;
        case 4:
            if (!one->client && check_random_chance(&random, 1, 12)) {
                rig_settle(rig);
                one->client = rig_connect(rig, one->id, MQTT_V5, false);
            }
            break;
        case 5:
            if (check_random_chance(&random, 1, 10))
                rig_checkpoint(rig);
            break;
        case 6:
            rig_read_max(rig, (uint32_t)check_random_below(&random, 6));
            break;
        case 7:
        case 8:
            if (one->client)
                receive(one);
            break;
        default:
            rig_step(rig);
            break;
        }
        while (rig_next(pubs[p]))
            continue;
    }
    for (unsigned i = 0; i < SUBSCRIBERS; i++)
        if (!to[i].client)
            to[i].client = rig_connect(rig, to[i].id, MQTT_V5, false);
    for (int round = 0; round < 3000; round++) {
        rig_settle(rig);
        for (unsigned i = 0; i < SUBSCRIBERS; i++)
            receive(&to[i]);
        if (round % 20 == 0)
            rig_checkpoint(rig);
    }
    for (unsigned i = 0; i < SUBSCRIBERS; i++)
        for (unsigned p = 0; p < 2; p++)
            for (unsigned number = 1; number <= sent[p]; number++) {
                assert_true(to[i].got[p][number] >= 1);
                assert_true(to[i].qos == 1 || to[i].got[p][number] == 1);
            }
    struct record rec;
    struct record_recipient recipient;
    rig_checkpoint(rig);
    rig_published(rig, &rec, 0);
    for (struct span rest = rec.recipients; record_recipient_next(&recipient, &rest) == ERR_OK;)
        assert_int_equal(memory_store_want_count(rig_store(rig), recipient.session), 0);
    assert_true(sent[0] > 300);
    free(to);
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
        cmocka_unit_test(qos2_leaves_when_its_record_is_durable),
        cmocka_unit_test(nothing_overtakes_a_qos2_that_waits),
        cmocka_unit_test(the_newest_is_dropped_and_said),
        cmocka_unit_test(the_oldest_is_dropped_from_memory_and_from_disk),
        cmocka_unit_test(the_newest_are_left_of_a_flood),
        cmocka_unit_test(the_newest_bytes_are_left_of_a_flood),
        cmocka_unit_test(the_overshoot_is_bounded_in_bytes),
        cmocka_unit_test(refuse_says_so_to_publishers_and_takes_it_back),
        cmocka_unit_test(refuse_is_not_for_ever_when_one_message_is_larger_than_the_queue),
        cmocka_unit_test(at_the_bound_of_all_queues_persistent_sessions_alone_refuse),
        cmocka_unit_test(all_queues_together_are_bounded),
        cmocka_unit_test(all_queues_together_drop_the_oldest),
        cmocka_unit_test(nobody_pays_for_what_another_session_owes),
        cmocka_unit_test(the_books_of_all_queues_are_exact),
        cmocka_unit_test(what_waited_too_long_is_dropped),
        cmocka_unit_test(what_nobody_comes_for_is_dropped_too),
        cmocka_unit_test(age_without_persistence),
        cmocka_unit_test(a_damaged_message_does_not_hold_the_others),
        cmocka_unit_test(a_session_that_comes_back_for_the_last_time_says_what_it_has),
        cmocka_unit_test(a_message_for_a_session_that_ended_is_dropped_by_name),
        cmocka_unit_test(nothing_is_said_of_a_session_that_no_record_names),
        cmocka_unit_test(a_session_without_room_is_noted_once),
        cmocka_unit_test(random_sessions_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
