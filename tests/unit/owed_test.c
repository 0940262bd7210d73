/* Retained values for a new subscription of a persistent session: each is a record of its own, wanted until it is acknowledged, in order
 * with what is published meanwhile, and owed over a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/core/owed.h"
#include "broker/core/scan.h"
#include "broker/core/shard_restore.h"
#include "broker/core/shard_state.h"
#include "broker/route/route_actor.h"
#include "broker/session/session.h"
#include "common/check.h"
#include "common/clock.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/shard_rig.h"

#define RIG(...) rig_new(&(struct rig_options){.has_store = true, __VA_ARGS__})
#define TEXT(packet) ((int)(packet)->publish.payload.size), (const char *)(packet)->publish.payload.data

/* A PUBLISH with this payload; returns its packet identifier. */
static uint16_t expect_retained(struct rig_client *client, const char *payload, uint8_t qos, bool retain)
{
    const struct packet_publish *publish = expect_payload_at(client, payload, qos);
    assert_int_equal(publish->retain, retain);
    return publish->packet_id;
}

static void retain(struct rig *rig, struct rig_client *pub, const char *topic, const char *payload, uint8_t qos)
{
    rig_publish_retained(pub, topic, payload, qos, 9);
    rig_settle(rig);
    if (qos == 1)
        expect(pub, MQTT_PUBACK);
    if (qos == 2) {
        expect(pub, MQTT_PUBREC);
        rig_send_ack(pub, MQTT_PUBREL, 9);
        rig_settle(rig);
        expect(pub, MQTT_PUBCOMP);
    }
}

/* Copies of retained values; the last one. */
static size_t copies_logged(const struct rig *rig, struct record *last_out)
{
    size_t count = 0;
    struct record rec;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        struct record_recipient recipient;
        rig_record(rig, &rec, i);
        struct span rest = rec.recipients;
        if (rec.type != RECORD_PUBLISH || record_recipient_next(&recipient, &rest) != ERR_OK ||
            !(recipient.options & RECORD_RECIPIENT_RETAINED))
            continue;
        assert_int_equal(rec.retained_number, 0);
        assert_int_equal(rest.size, 0);
        *last_out = rec;
        count++;
    }
    return count;
}

static uint64_t session_number(const struct rig *rig)
{
    struct record rec = {0};
    uint64_t sequence;
    assert_true(last_record(rig, &rec, &sequence, RECORD_SUBSCRIPTION) > 0);
    return rec.session;
}

/* === as records ====================================================================================================================== */

static void a_copy_is_a_message_like_any_other(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    uint64_t owed_at, given_at, sequence;
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", "one", 1);
    retain(rig, pub, "a/2", "two", 2);
    rig_send_subscribe(car, 1, "a/+", 2, 77);
    rig_settle(rig);
    expect(car, MQTT_SUBACK);
    uint64_t number = session_number(rig);
    assert_int_equal(last_record(rig, &rec, &owed_at, RECORD_SUBSCRIPTION), 1);
    assert_int_equal(rec.options, 2 | (uint64_t)77 << 8 | RECORD_SUBSCRIPTION_OWED);
    assert_int_equal(copies_logged(rig, &rec), 2);
    assert_true(span_equal(rec.topic, SPAN_LITERAL("a/2")));
    assert_true(rec.options > 0);
    assert_int_equal(last_record(rig, &rec, &given_at, RECORD_RETAINED_GIVEN), 1);
    assert_int_equal(rec.session, number);
    assert_true(given_at > owed_at + 2);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), number), 2);
    uint16_t first = expect_retained(car, "one", 1, true);
    rig_send_ack(car, MQTT_PUBACK, first);
    rig_settle(rig);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), number), 1);
    const struct packet *packet = expect(car, MQTT_PUBLISH);
    assert_int_equal(packet->publish.properties.subscription_identifier, 77);
    uint16_t second = packet->publish.packet_id;
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_SENT), 1);
    assert_true(memory_store_wants(rig_store(rig), number, rec.subject_sequence)); /* no PUBREL without PUBLISH */
    rig_send_ack(car, MQTT_PUBREC, second);
    rig_settle(rig);
    expect(car, MQTT_PUBREL);
    rig_send_ack(car, MQTT_PUBCOMP, second);
    rig_settle(rig);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), number), 0);
    assert_int_equal(memory_store_sent_count(rig_store(rig), number), 0);
    assert_null(rig_next(car));
    rig_free(rig);
}

/* QoS 0, sessions that end with their connection, topics without values: nothing is owed, and nothing is logged for it. */
static void what_needs_no_record_has_none(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    uint64_t sequence;
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false),
                      *clean = rig_connect(rig, "clean", MQTT_V5, true);
    rig_subscribe(car, 1, "none/#", 1); /* there is no retained value at all */
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_SUBSCRIPTION), 1);
    assert_int_equal(rec.options, 1);
    retain(rig, pub, "a/1", "one", 1);
    rig_send_subscribe(car, 1, "a/1", 0, 0);
    rig_settle(rig);
    expect_retained(car, "one", 0, true); /* it waits for nothing; SUBACK does */
    expect(car, MQTT_SUBACK);
    rig_subscribe(clean, 1, "a/1", 1);
    expect_retained(clean, "one", 1, true);
    rig_send_subscribe(car, 1, "a/+", 1 | 2 << SUBSCRIBER_RETAIN_HANDLING_SHIFT, 0); /* it does not want them */
    rig_settle(rig);
    expect(car, MQTT_SUBACK);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_SUBSCRIPTION), 3);
    assert_false(rec.options & RECORD_SUBSCRIPTION_OWED);
    assert_int_equal(copies_logged(rig, &rec), 0);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 0);
    rig_free(rig);
}

/* A value of several blocks goes the way of large records, and GIVEN waits for it. */
static void a_large_value_is_a_large_record(void **state)
{
    (void)state;
    struct rig *rig = RIG(.body_max = 1024, .block_count = 64);
    struct record rec;
    uint64_t sequence;
    char *payload = malloc(5001);
    assert_non_null(payload);
    memset(payload, 'x', 5000);
    payload[5000] = '\0';
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", payload, 1);
    retain(rig, pub, "a/2", "two", 1);
    retain(rig, pub, "a/3", payload, 1);
    rig_subscribe(car, 1, "a/+", 1);
    const char *values[] = {"two", payload, payload}; /* what is small goes past it */
    for (int i = 0; i < 3; i++)
        rig_send_ack(car, MQTT_PUBACK, expect_retained(car, values[i], 1, true));
    rig_settle(rig);
    assert_int_equal(copies_logged(rig, &rec), 3);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_ACK), 1); /* of all three, in a row */
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), session_number(rig)), 0);
    free(payload);
    rig_free(rig);
}

/* === order ========================================================================================================================== */

/* The log stands still with a copy in it; what is published meanwhile, at any QoS, comes behind it. */
static void live_messages_do_not_overtake_copies(void **state)
{
    struct rig *rig = RIG(.shard_count = *(const uint16_t *)*state, .limits.inflight_max = 100);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false),
                      *clean = rig_connect(rig, "clean", MQTT_V5, true);
    retain(rig, pub, "a/1", "old", 1);
    rig_subscribe(clean, 1, "a/+", 1);
    expect_retained(clean, "old", 1, true);
    rig_log_hold(rig, true);
    rig_send_subscribe(car, 1, "a/+", 1, 0);
    rig_settle(rig);
    assert_null(rig_next(car)); /* SUBACK waits for its record */
    rig_publish(pub, "a/1", "zero", 0, 0);
    rig_publish(pub, "a/1", "new", 1, 1);
    rig_publish(pub, "a/2", "other", 0, 0);
    rig_settle(rig);
    assert_null(rig_next(car));
    expect_retained(clean, "zero", 0, false); /* nobody else waits */
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect(car, MQTT_SUBACK);
    expect_retained(car, "old", 1, true);
    expect_retained(car, "zero", 0, false);
    const struct packet *packet = expect(car, MQTT_PUBLISH);
    bool is_new_first = span_equal(packet->publish.payload, SPAN_LITERAL("new")); /* between QoS 0 and 1 there is no order */
    expect_retained(car, is_new_first ? "other" : "new", is_new_first ? 0 : 1, false);
    assert_null(rig_next(car));
    rig_free(rig);
}

/* A slow client: on disk the copy of an older value may stand behind what came after it, so it is looked at when it is read back. */
static void a_copy_is_judged_again_when_it_is_read_back(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits.inflight_max = 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    char topic[8];
    for (int i = 0; i < 60; i++) {
        (void)snprintf(topic, sizeof topic, "a/%02d", i);
        retain(rig, pub, topic, "old", 1);
    }
    rig_subscribe(car, 1, "a/+", 1);
    for (int i = 0; i < 3; i++)
        rig_checkpoint(rig);
    assert_true(rig_stats(rig, 0)->checkpoint_window.messages < 60);
    rig_publish(pub, "a/59", "new", 0, 0);
    rig_settle(rig);
    int old_count = 0, new_count = 0;
    for (const struct packet *packet; (packet = rig_next(car)) != NULL;) {
        assert_int_equal(packet->type, MQTT_PUBLISH);
        bool is_new = span_equal(packet->publish.payload, SPAN_LITERAL("new"));
        new_count += is_new;
        old_count += !is_new;
        if (!is_new)
            rig_send_ack(car, MQTT_PUBACK, packet->publish.packet_id);
        rig_settle(rig);
    }
    assert_int_equal(new_count, 1);
    assert_int_equal(old_count, 59);
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 1);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), session_number(rig)), 0);
    rig_free(rig);
}

/* A value that comes to its session after a newer message of its topic is not even logged. */
static void a_stale_value_is_not_logged(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    uint64_t sequence;
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", "old", 1);
    rig_log_room(rig, false); /* the value is parked */
    rig_subscribe(car, 1, "a/+", 2);
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, 2); /* and the end of its scan */
    rig_publish(pub, "a/1", "zero", 0, 0);
    rig_settle(rig);
    expect_retained(car, "zero", 0, false);
    assert_null(rig_next(car));
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 1);
    assert_int_equal(copies_logged(rig, &rec), 0);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    rig_free(rig);
}

/* What came live before a SUBSCRIBE is no answer to it, though a scan for an earlier one goes on all the while [MQTT-3.8.4-4]. */
static void each_subscribe_is_given_all_values(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    struct rig *rig = RIG(.limits = {.inflight_max = 10, .session_queue_messages_max = 100});
    char topic[16];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        retain(rig, pub, topic, "old", 1);
    }
    rig_subscribe(car, 1, "a/+", 1); /* its scan waits for acknowledgements */
    retain(rig, pub, "a/007", "new", 1);
    rig_send_subscribe(car, 2, "a/007", 1, 0);
    rig_settle(rig);
    int live = 0, given = 0;
    for (const struct packet *packet; (packet = rig_next(car)) != NULL;) {
        bool is_new = packet->type == MQTT_PUBLISH && span_equal(packet->publish.payload, SPAN_LITERAL("new"));
        live += is_new && !packet->publish.retain;
        given += is_new && packet->publish.retain;
        if (packet->type == MQTT_PUBLISH)
            rig_send_ack(car, MQTT_PUBACK, packet->publish.packet_id);
        rig_settle(rig);
    }
    assert_int_equal(live, 1);
    assert_int_equal(given, 1);
    rig_free(rig);
}

/* Of QoS 0, to a session whose client is away: nobody gets it, so the value is owed still. */
static void a_message_that_does_not_come_makes_no_value_stale(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", "old", 1);
    rig_log_room(rig, false); /* the value is parked */
    rig_subscribe(car, 1, "a/+", 2);
    rig_break(car);
    rig_settle(rig);
    rig_publish(pub, "a/1", "zero", 0, 0);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_offline), 1);
    rig_log_room(rig, true);
    rig_settle(rig);
    assert_int_equal(copies_logged(rig, &rec), 1);
    expect_retained(come_back(rig, "car"), "old", 1, true);
    rig_free(rig);
}

/* Of QoS 0, sent, and lost with its connection: a value that comes after that is owed still; on a connection that lives it is not sent
 * behind the newer message. */
static void a_message_that_was_lost_with_its_connection_makes_no_value_stale(void **state)
{
    (void)state;
    for (int is_lost = 0; is_lost < 2; is_lost++) {
        struct rig *rig = RIG(0);
        struct record rec;
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
        retain(rig, pub, "a/0", "first", 1);
        retain(rig, pub, "a/1", "old", 1);
        rig_log_room(rig, false); /* the values are parked, and the first does not let the second past */
        rig_subscribe(car, 1, "a/+", 2);
        rig_publish(pub, "a/1", "zero", 0, 0);
        rig_settle(rig);
        expect_retained(car, "zero", 0, false);
        if (is_lost)
            rig_break(car);
        rig_settle(rig);
        rig_log_room(rig, true);
        rig_settle(rig);
        if (is_lost)
            car = come_back(rig, "car");
        expect_retained(car, "first", 1, true);
        if (is_lost)
            expect_retained(car, "old", 1, true);
        assert_null(rig_next(car));
        assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), !is_lost);
        assert_int_equal(copies_logged(rig, &rec), 1 + is_lost);
        rig_free(rig);
    }
}

/* What is dropped when it arrives was given to nobody: of QoS 0, to a client whose socket is full. The value is owed still. */
static void a_message_that_is_dropped_makes_no_value_stale(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits = {.outbox_bytes_max = 1000});
    char filler[1201];
    memset(filler, 'x', sizeof filler), filler[1200] = '\0';
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    rig_subscribe(car, 1, "b", 0);
    retain(rig, pub, "a/0", "first", 1);
    retain(rig, pub, "a/1", "old", 1);
    rig_log_room(rig, false); /* the values are parked */
    rig_subscribe(car, 2, "a/+", 2);
    rig_publish(pub, "a/0", "zero", 0, 0);
    rig_settle(rig);
    expect_retained(car, "zero", 0, false);
    rig_write_max(car, 0);
    rig_publish(pub, "b", filler, 0, 0);
    rig_publish(pub, "a/1", "zero", 0, 0);
    rig_settle(rig);
    assert_int_equal(RIG_COUNTER(rig, dropped_slow_consumer), 1);
    rig_log_room(rig, true);
    rig_settle(rig);
    rig_write_max(car, 100000);
    rig_settle(rig);
    expect_retained(car, filler, 0, false);
    expect_retained(car, "old", 1, true); /* and not the first: of that a newer message came */
    assert_null(rig_next(car));
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 1);
    rig_free(rig);
}

/* A large record takes its time: what overtakes it on its topic makes it stale. */
static void a_large_copy_that_was_overtaken_is_dropped(void **state)
{
    (void)state;
    struct rig *rig = RIG(.body_max = 1024, .block_count = 8);
    char *payload = malloc(20001);
    assert_non_null(payload);
    memset(payload, 'x', 20000);
    payload[20000] = '\0';
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", payload, 1);
    retain(rig, pub, "a/2", payload, 1);
    rig_send_subscribe(car, 1, "a/1", 1, 0);
    rig_settle(rig);
    expect(car, MQTT_SUBACK);
    rig_send_ack(car, MQTT_PUBACK, expect_retained(car, payload, 1, true)); /* in time */
    rig_log_hold(rig, true);
    rig_send_subscribe(car, 2, "a/2", 1, 0);
    rig_settle(rig);
    rig_publish(pub, "a/2", "zero", 0, 0);
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    int stale = (int)RIG_COUNTER(rig, dropped_stale_retained);
    bool is_last_zero = false;
    for (const struct packet *packet; (packet = rig_next(car)) != NULL;)
        if (packet->type == MQTT_PUBLISH)
            is_last_zero = span_equal(packet->publish.payload, SPAN_LITERAL("zero"));
    assert_true(is_last_zero);
    assert_int_equal(stale, 1);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), session_number(rig)), 0);
    free(payload);
    rig_free(rig);
}

/* Two large records under way, the scan over: the first has left, and what overtakes the second still makes it stale. */
static void each_large_copy_may_become_stale(void **state)
{
    (void)state;
    struct rig *rig = RIG(.body_max = 1024, .block_count = 8);
    char *payload = malloc(60001);
    assert_non_null(payload);
    memset(payload, 'x', 60000);
    payload[60000] = '\0';
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    retain(rig, pub, "a/1", payload + 57000, 1); /* three blocks */
    retain(rig, pub, "a/2", payload, 1);         /* more than the pool has */
    rig_log_hold(rig, true);
    rig_send_subscribe(car, 1, "a/+", 1, 0);
    rig_settle(rig); /* the first waits for the disk, the second has begun */
    rig_log_hold(rig, false);
    const struct packet *packet = NULL;
    for (int steps = 0; steps < 100 && !(packet && packet->type == MQTT_PUBLISH); steps++) {
        rig_step(rig);
        packet = rig_next(car);
    }
    assert_true(packet && packet->type == MQTT_PUBLISH);
    assert_true(span_equal(packet->publish.payload, span_of_string(payload + 57000)));
    rig_log_hold(rig, true);
    rig_settle(rig);
    assert_null(rig_next(car));
    rig_publish(pub, "a/2", "zero", 0, 0);
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_retained(car, "zero", 0, false);
    assert_null(rig_next(car));
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 1);
    free(payload);
    rig_free(rig);
}

/* === no room ======================================================================================================================== */

/* The scan pauses with a window of values, drops nothing and holds nobody up. */
static void without_room_the_scan_pauses(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    struct rig *rig = RIG(.limits.inflight_max = COUNT);
    struct record rec;
    uint64_t sequence;
    char topic[16];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false),
                      *clean = rig_connect(rig, "clean", MQTT_V5, true);
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        retain(rig, pub, topic, topic, 1);
    }
    rig_log_room(rig, false);
    rig_subscribe(car, 1, "a/+", 1);
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, ROUTE_RETAINED_WINDOW);
    rig_subscribe(car, 2, "a/000", 0); /* behind its own */
    assert_null(rig_next(car));
    rig_subscribe(clean, 1, "a/+", 0);
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        expect_retained(clean, topic, 0, true);
    }
    rig_store_room(rig, false);
    rig_log_room(rig, true);
    rig_settle(rig);
    assert_null(rig_next(car));
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 0);
    rig_store_room(rig, true);
    rig_settle(rig);
    bool is_zero_there = false;
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        const struct packet *packet = expect(car, MQTT_PUBLISH);
        if (packet->publish.qos == 0) {
            is_zero_there = true;
            packet = expect(car, MQTT_PUBLISH);
        }
        assert_true(span_equal(packet->publish.payload, span_of_string(topic)));
        rig_send_ack(car, MQTT_PUBACK, packet->publish.packet_id);
    }
    rig_settle(rig);
    assert_true(is_zero_there || expect(car, MQTT_PUBLISH)->publish.qos == 0);
    assert_null(rig_next(car));
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, 0);
    assert_int_equal(copies_logged(rig, &rec), COUNT);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    rig_free(rig);
}

/* Many sessions subscribe to large values while the log is full: what is parked has a bound in bytes, the rest is asked for later. */
static void what_is_parked_has_a_bound_in_bytes(void **state)
{
    (void)state;
    enum { VALUES = 16, SIZE = 60000, CARS = 40 };
    struct rig *rig = RIG(.block_count = 64);
    struct record rec;
    uint64_t sequence;
    char id[16], *payload = malloc(SIZE + 1);
    assert_non_null(payload);
    memset(payload, 'x', SIZE);
    payload[SIZE] = '\0';
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *clean = rig_connect(rig, "clean", MQTT_V5, true), *cars[CARS];
    for (int i = 0; i < VALUES; i++) {
        snprintf(id, sizeof id, "a/%02d", i);
        retain(rig, pub, id, payload, 1);
    }
    rig_log_room(rig, false);
    for (int i = 0; i < CARS; i++) {
        snprintf(id, sizeof id, "car%d", i);
        cars[i] = rig_connect(rig, id, MQTT_V5, false);
        rig_subscribe(cars[i], 1, "a/+", 1);
        assert_true(rig_stats(rig, 0)->parked_copies.bytes < SCAN_PARKED_BYTES_MAX + VALUES * (SIZE + 1000));
    }
    assert_true(rig_stats(rig, 0)->parked_copies.bytes >= SCAN_PARKED_BYTES_MAX);
    rig_subscribe(clean, 1, "a/+", 1); /* who needs no record does not wait */
    for (int i = 0; i < VALUES; i++)
        rig_send_ack(clean, MQTT_PUBACK, expect_retained(clean, payload, 1, true));
    rig_send_unsubscribe(cars[CARS - 1], 1, "a/+"); /* before its turn has come */
    rig_settle(rig);
    expect(cars[CARS - 1], MQTT_UNSUBACK);
    struct packet ends = rig_connect_packet("car38", MQTT_V5, true);
    expect(rig_connect_with(rig, &ends), MQTT_CONNACK);
    rig_log_room(rig, true);
    rig_settle(rig);
    for (int i = 0; i < CARS - 2; i++) {
        for (int value = 0; value < VALUES; value++) {
            rig_send_ack(cars[i], MQTT_PUBACK, expect_retained(cars[i], payload, 1, true));
            rig_settle(rig);
        }
        assert_null(rig_next(cars[i]));
    }
    assert_null(rig_next(cars[CARS - 1]));
    assert_int_equal(copies_logged(rig, &rec), VALUES * (CARS - 2));
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), CARS - 1);
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, 0);
    assert_int_equal(rig_shard(rig, 0)->scans.coming, 0);
    free(payload);
    rig_free(rig);
}

/* All at once, so that nothing is parked yet when the last is sent: then what may come counts. */
static void what_is_parked_has_a_bound_in_values(void **state)
{
    (void)state;
    enum { VALUES = 30, CARS = SCAN_VALUES_MAX / ROUTE_RETAINED_WINDOW + 100 };
    struct rig *rig = RIG(.limits.inflight_max = 100);
    struct record rec;
    uint64_t sequence;
    char id[16];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), **cars = calloc(CARS, sizeof *cars);
    assert_non_null(cars);
    for (int i = 0; i < VALUES; i++) {
        snprintf(id, sizeof id, "a/%02d", i);
        retain(rig, pub, id, "x", 1);
    }
    for (int i = 0; i < CARS; i++) {
        snprintf(id, sizeof id, "car%d", i);
        cars[i] = rig_connect(rig, id, MQTT_V5, false);
    }
    rig_log_room(rig, false);
    for (int i = 0; i < CARS; i++)
        rig_send_subscribe(cars[i], 1, "a/+", 1, 0);
    rig_settle(rig);
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, SCAN_VALUES_MAX);
    rig_log_room(rig, true);
    rig_settle(rig);
    for (int i = 0; i < CARS; i++) {
        expect(cars[i], MQTT_SUBACK);
        for (int value = 0; value < VALUES; value++)
            rig_send_ack(cars[i], MQTT_PUBACK, expect_retained(cars[i], "x", 1, true));
        assert_null(rig_next(cars[i]));
    }
    rig_settle(rig);
    assert_int_equal(copies_logged(rig, &rec), VALUES * CARS);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), CARS);
    assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, 0);
    assert_int_equal(rig_shard(rig, 0)->scans.coming, 0);
    free(cars);
    rig_free(rig);
}

/* The client does not acknowledge: half of its queue is filled, and then the scan waits, however many values there are. */
static void a_slow_client_holds_its_scan_up(void **state)
{
    (void)state;
    enum { COUNT = 500, QUEUE = 100 };
    struct rig *rig = RIG(.limits = {.inflight_max = 10, .session_queue_messages_max = QUEUE});
    struct record rec;
    char topic[16];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        retain(rig, pub, topic, topic, 1);
    }
    rig_subscribe(car, 1, "a/+", 1);
    assert_in_range(copies_logged(rig, &rec), QUEUE / 2, QUEUE / 2 + 10 + 2 * ROUTE_RETAINED_WINDOW);
    rig_break(car);
    rig_settle(rig);
    assert_in_range(copies_logged(rig, &rec), QUEUE / 2, QUEUE / 2 + 10 + 2 * ROUTE_RETAINED_WINDOW);
    rig_checkpoint(rig);
    rig_checkpoint(rig); /* its runs, too */
    car = rig_connect(rig, "car", MQTT_V5, false);
    for (int i = 0; i < COUNT; i++) {
        snprintf(topic, sizeof topic, "a/%03d", i);
        rig_send_ack(car, MQTT_PUBACK, expect_retained(car, topic, 1, true));
        rig_settle(rig);
    }
    assert_null(rig_next(car));
    assert_int_equal(copies_logged(rig, &rec), COUNT);
    assert_int_equal(RIG_COUNTER(rig, dropped_queue_full), 0);
    rig_free(rig);
}

/* The checkpoint moves in the middle of it, and then stands still: all values come all the same. Their order is that of the topics here. */
static void a_scan_does_not_wait_for_the_checkpoint(void **state)
{
    (void)state;
    enum { COUNT = 900, MOVES = 400 };
    for (uint8_t qos = 1; qos <= 2; qos++) {
        struct rig *rig = RIG(.limits = {.inflight_max = 10, .session_queue_messages_max = 10000});
        char topic[16];
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
        for (int i = 0; i < COUNT; i++) {
            snprintf(topic, sizeof topic, "a/%04d", i);
            retain(rig, pub, topic, topic, 2);
        }
        rig_checkpoint(rig);
        rig_subscribe(car, 1, "a/+", qos);
        int count = 0;
        for (const struct packet *packet; (packet = rig_next(car)) != NULL; rig_settle(rig)) {
            if (packet->type == MQTT_PUBREL) {
                rig_send_ack(car, MQTT_PUBCOMP, packet->ack.packet_id);
                continue;
            }
            assert_int_equal(packet->type, MQTT_PUBLISH);
            snprintf(topic, sizeof topic, "a/%04d", count);
            assert_true(span_equal(packet->publish.topic, span_of_string(topic)));
            rig_send_ack(car, qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, packet->publish.packet_id);
            if (count++ < MOVES && count % 40 == 0)
                rig_checkpoint(rig);
        }
        assert_int_equal(count, COUNT);
        rig_free(rig);
    }
}

/* Parked ones of sessions that have ended need no room: they go at once, however many. */
static void what_needs_no_room_does_not_wait_for_it(void **state)
{
    (void)state;
    enum { COUNT = ROUTE_RETAINED_WINDOW, CARS = 2 * OWED_TAKE_PER_TURN / ROUTE_RETAINED_WINDOW + 1 };
    struct rig *rig = RIG(.limits.inflight_max = COUNT);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    char text[16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(text, sizeof text, "a/%03d", i);
        retain(rig, pub, text, text, 1);
    }
    rig_store_room(rig, false);
    struct rig_client *cars[CARS];
    for (int i = 0; i < CARS; i++) {
        snprintf(text, sizeof text, "car%d", i);
        cars[i] = rig_connect(rig, text, MQTT_V5, false);
        rig_subscribe(cars[i], 1, "a/+", 1);
    }
    assert_true(rig_stats(rig, 0)->parked_copies.messages > OWED_TAKE_PER_TURN);
    for (int i = 0; i < CARS; i++) {
        struct packet bye = {.type = MQTT_DISCONNECT};
        bye.disconnect.properties.present = MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL); /* 0 */
        rig_send(cars[i], &bye);
    }
    uint64_t all = rig_stats(rig, 0)->parked_copies.messages, left;
    uint32_t turns_between = 0;
    while ((left = rig_stats(rig, 0)->parked_copies.messages) > 0) {
        assert_true(left == all || owed_may_go_on(rig_shard(rig, 0)));
        turns_between += left < all;
        rig_step(rig);
    }
    assert_true(turns_between > 0);
    rig_free(rig);
}

static void a_session_may_end_with_copies_under_way(void **state)
{
    (void)state;
    for (int is_parked = 0; is_parked < 2; is_parked++) {
        struct rig *rig = RIG(0);
        struct record rec;
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
        retain(rig, pub, "a/1", "one", 1);
        retain(rig, pub, "a/2", "two", 1);
        if (is_parked)
            rig_log_room(rig, false);
        else
            rig_log_hold(rig, true);
        rig_send_subscribe(car, 1, "a/+", 1, 0);
        rig_settle(rig);
        uint64_t number = session_number(rig);
        struct packet connect = rig_connect_packet("car", MQTT_V5, true);
        rig_connect_with(rig, &connect);
        if (is_parked)
            rig_log_room(rig, true);
        else
            rig_log_hold(rig, false);
        rig_settle(rig);
        rig_checkpoint(rig);
        assert_int_equal(copies_logged(rig, &rec), is_parked ? 0 : 2);
        assert_int_equal(memory_store_want_count(rig_store(rig), number), 0);
        assert_int_equal(rig_stats(rig, 0)->parked_copies.messages, 0);
        rig_free(rig);
    }
}

/* === a start ======================================================================================================================== */

static struct checkpoint_session stored_car(const struct rig *rig, uint64_t number, uint8_t filters[256], uint64_t options)
{
    struct record rec = {.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("a/+"), .options = options};
    return (struct checkpoint_session){
        .number = number,
        .client_id = SPAN_LITERAL("car"),
        .expiry_interval_s = 3600,
        .since_wall_ns = rig_wall_ns(rig) - NS_PER_S,
        .protocol = 5,
        .subscriptions = span_of(filters, record_encode(filters, &rec)),
    };
}

/* What has a record comes back, DUP because it may have been sent; nothing is scanned again when all was given. */
static void copies_come_back(void **state)
{
    (void)state;
    for (uint8_t qos = 1; qos <= 2; qos++) {
        struct rig *rig = RIG(.limits.inflight_max = 1);
        uint8_t filters[256];
        struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
        retain(rig, pub, "a/1", "one", qos);
        retain(rig, pub, "a/2", "two", qos);
        retain(rig, pub, "a/3", "three", qos);
        rig_subscribe(car, 1, "a/+", qos);
        struct checkpoint_session from = stored_car(rig, session_number(rig), filters, qos);
        struct checkpoint_sent sent[1];
        struct record rec;
        if (qos == 2) {
            for (unsigned i = 0, found = 0; i < rig_record_count(rig); i++) {
                rig_record(rig, &rec, i);
                if (rec.type == RECORD_SENT && found < 1)
                    sent[found++] = (struct checkpoint_sent){.sequence = rec.subject_sequence, .packet_id = rec.packet_id};
            }
            from.sent = sent;
            from.sent_count = 1;
        }
        rig_restart(rig, 1);
        rig_restore(rig, &from, 1);
        shard_restore_copy(rig_shard(rig, 0), from.number);
        pub = rig_connect(rig, "pub", MQTT_V5, true);
        retain(rig, pub, "a/4", "four", qos);
        car = come_back(rig, "car");
        const char *values[] = {"one", "two", "three", "four"};
        for (int i = 0; i < 4; i++) {
            rig_settle(rig);
            uint16_t id = expect_retained(car, values[i], qos, i < 3);
            rig_send_ack(car, qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, id);
            rig_settle(rig);
            if (qos == 1)
                continue;
            const struct packet *packet;
            while ((packet = rig_next(car)) && packet->type == MQTT_PUBLISH)
                fail_msg("\"%.*s\" before PUBREL", TEXT(packet));
            assert_int_equal(packet ? packet->type : 0, MQTT_PUBREL);
            rig_send_ack(car, MQTT_PUBCOMP, id);
        }
        rig_settle(rig);
        assert_null(rig_next(car));
        rig_free(rig);
    }
}

/* A subscription that is owed values gets the scan again when its client is back, once, and behind what waited. */
static void an_interrupted_scan_is_made_again(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    uint64_t sequence;
    uint8_t filters[256];
    uint64_t number = session_number_of(0, 5);
    struct checkpoint_session from = stored_car(rig, number, filters, 2 | (uint64_t)9 << 8 | 1 << 4 | RECORD_SUBSCRIPTION_OWED);
    rig_restore(rig, &from, 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    retain(rig, pub, "a/1", "old", 1); /* away, it gets them live */
    retain(rig, pub, "a/1", "one", 1);
    retain(rig, pub, "a/2", "two", 1);
    rig_settle(rig);
    assert_int_equal(copies_logged(rig, &rec), 0);
    struct rig_client *car = come_back(rig, "car");
    const char *values[] = {"old", "one", "two"};
    for (int i = 0; i < 3; i++)
        rig_send_ack(car, MQTT_PUBACK, expect_retained(car, values[i], 1, false));
    rig_settle(rig);
    assert_null(rig_next(car)); /* what came live is not sent again */
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 2);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    assert_int_equal(rec.session, number);
    rig_free(rig);
}

/* The values were there before: here the retained index is filled while the session is not subscribed. */
static void owed_values_are_given(void **state)
{
    (void)state;
    struct rig *rig = RIG(.limits.inflight_max = 2);
    struct record rec;
    uint64_t sequence;
    uint8_t filters[256];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    char topic[16];
    for (int i = 0; i < 50; i++) {
        snprintf(topic, sizeof topic, "a/%02d", i);
        retain(rig, pub, topic, topic, 1);
    }
    uint64_t number = session_number_of(0, 500);
    struct checkpoint_session from = stored_car(rig, number, filters, 1 | (uint64_t)9 << 8 | RECORD_SUBSCRIPTION_OWED);
    rig_restore(rig, &from, 1);
    rig_publish(pub, "a/00", "waits", 1, 1);
    rig_settle(rig);
    assert_int_equal(copies_logged(rig, &rec), 0); /* not before the client is back: it gets what is retained then */
    struct rig_client *car = come_back(rig, "car");
    rig_send_ack(car, MQTT_PUBACK, expect_retained(car, "waits", 1, false));
    rig_settle(rig);
    for (int i = 1; i < 50; i++) { /* of a/00 it has got a newer one */
        snprintf(topic, sizeof topic, "a/%02d", i);
        const struct packet *packet = expect(car, MQTT_PUBLISH);
        assert_true(span_equal(packet->publish.payload, span_of_string(topic)));
        assert_true(packet->publish.retain);
        assert_int_equal(packet->publish.properties.subscription_identifier, 9);
        rig_send_ack(car, MQTT_PUBACK, packet->publish.packet_id);
        rig_settle(rig);
    }
    assert_int_equal(copies_logged(rig, &rec), 49);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    rig_break(car);
    rig_settle(rig);
    car = come_back(rig, "car");
    assert_null(rig_next(car)); /* given is given */
    rig_free(rig);
}

/* What the client gives up before its turn comes is owed no more. */
static void an_unsubscribed_filter_is_owed_nothing(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    struct record rec;
    uint64_t sequence;
    uint8_t filters[256];
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    retain(rig, pub, "a/1", "one", 1);
    uint64_t number = session_number_of(0, 500);
    struct record want = {.type = RECORD_PUBLISH, .qos = 1, .topic = SPAN_LITERAL("b"), .payload = SPAN_LITERAL("waits")};
    uint8_t recipients[64];
    struct record_recipient recipient = {.session = number, .qos = 1};
    want.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
    rig_checkpoint(rig);
    memory_store_apply(rig_store(rig), &want, 1000);
    memory_store_commit(rig_store(rig));
    struct checkpoint_session from = stored_car(rig, number, filters, 1 | RECORD_SUBSCRIPTION_OWED);
    rig_restore(rig, &from, 1);
    rig_reader_hold(rig, true); /* the scan stands behind what waited */
    struct rig_client *car = come_back(rig, "car");
    rig_send_unsubscribe(car, 1, "a/+");
    rig_settle(rig);
    expect(car, MQTT_UNSUBACK);
    rig_reader_hold(rig, false);
    rig_settle(rig);
    expect_retained(car, "waits", 1, false);
    assert_null(rig_next(car));
    assert_int_equal(copies_logged(rig, &rec), 0);
    assert_int_equal(last_record(rig, &rec, &sequence, RECORD_RETAINED_GIVEN), 1);
    rig_free(rig);
}

/* In the log a newer message stands before the copy of an older value: its home had not seen it. The client gets the newer alone; and of
 * topics where it is the other way round, both. */
static void a_restored_copy_does_not_come_behind_a_newer_message(void **state)
{
    (void)state;
    struct rig *rig = RIG(0);
    uint8_t filters[256], recipients[64];
    uint64_t number = session_number_of(0, 5);
    struct checkpoint_session from = stored_car(rig, number, filters, 1);
    struct record_recipient live = {.session = number, .qos = 1},
                            copy = {.session = number, .qos = 1, .options = RECORD_RECIPIENT_RETAINED};
    struct record rec = {.type = RECORD_PUBLISH, .qos = 1, .payload = SPAN_LITERAL("newer"), .received_ns = 2000};
    rec.topic = SPAN_LITERAL("a/1");
    rec.recipients = span_of(recipients, record_recipient_put(recipients, &live));
    memory_store_apply(rig_store(rig), &rec, 1000);
    rec.topic = SPAN_LITERAL("a/3");
    rec.retained_number = 7;
    rec.retain = true;
    memory_store_apply(rig_store(rig), &rec, 1001);
    rec.retained_number = 0;
    rec.recipients = span_of(recipients, record_recipient_put(recipients, &copy));
    rec.payload = SPAN_LITERAL("older");
    rec.received_ns = 3000; /* by the number, not by the time */
    rec.options = 6;
    memory_store_apply(rig_store(rig), &rec, 1002);
    rec.options = 5;
    rec.received_ns = 1000;
    rec.topic = SPAN_LITERAL("a/1");
    memory_store_apply(rig_store(rig), &rec, 1003);
    rec.topic = SPAN_LITERAL("a/2");
    memory_store_apply(rig_store(rig), &rec, 1004);
    rec.topic = SPAN_LITERAL("a/2");
    rec.retain = false;
    rec.options = 0;
    rec.received_ns = 2000;
    rec.payload = SPAN_LITERAL("newer");
    rec.recipients = span_of(recipients, record_recipient_put(recipients, &live));
    memory_store_apply(rig_store(rig), &rec, 1005);
    memory_store_commit(rig_store(rig));
    rig_restore(rig, &from, 1);
    shard_restore_copy(rig_shard(rig, 0), number);
    struct rig_client *car = come_back(rig, "car");
    expect_retained(car, "newer", 1, false);
    expect_retained(car, "newer", 1, false);
    expect_retained(car, "older", 1, true);
    expect_retained(car, "newer", 1, false);
    assert_null(rig_next(car));
    assert_int_equal(RIG_COUNTER(rig, dropped_stale_retained), 2);
    rig_free(rig);
}

int main(void)
{
    static uint16_t one = 1, many = 4;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_copy_is_a_message_like_any_other),
        cmocka_unit_test(what_needs_no_record_has_none),
        cmocka_unit_test(a_large_value_is_a_large_record),
        cmocka_unit_test_prestate(live_messages_do_not_overtake_copies, &one),
        cmocka_unit_test_prestate(live_messages_do_not_overtake_copies, &many),
        cmocka_unit_test(a_copy_is_judged_again_when_it_is_read_back),
        cmocka_unit_test(a_stale_value_is_not_logged),
        cmocka_unit_test(each_subscribe_is_given_all_values),
        cmocka_unit_test(a_message_that_does_not_come_makes_no_value_stale),
        cmocka_unit_test(a_message_that_was_lost_with_its_connection_makes_no_value_stale),
        cmocka_unit_test(a_message_that_is_dropped_makes_no_value_stale),
        cmocka_unit_test(a_large_copy_that_was_overtaken_is_dropped),
        cmocka_unit_test(each_large_copy_may_become_stale),
        cmocka_unit_test(without_room_the_scan_pauses),
        cmocka_unit_test(what_is_parked_has_a_bound_in_bytes),
        cmocka_unit_test(what_is_parked_has_a_bound_in_values),
        cmocka_unit_test(a_slow_client_holds_its_scan_up),
        cmocka_unit_test(a_scan_does_not_wait_for_the_checkpoint),
        cmocka_unit_test(what_needs_no_room_does_not_wait_for_it),
        cmocka_unit_test(a_session_may_end_with_copies_under_way),
        cmocka_unit_test(copies_come_back),
        cmocka_unit_test(an_interrupted_scan_is_made_again),
        cmocka_unit_test(owed_values_are_given),
        cmocka_unit_test(an_unsubscribed_filter_is_owed_nothing),
        cmocka_unit_test(a_restored_copy_does_not_come_behind_a_newer_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
