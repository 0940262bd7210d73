/* Sessions after a stop: what comes back, and what its clocks say, whatever the wall clock did meanwhile; with one shard and with five,
 * none of which is the number that the sessions were made with. Sessions are given as the checkpoint's loader gives them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/shard_restore.h"
#include "broker/core/shard_state.h"
#include "common/clock.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_numbers.h"
#include "tests/lib/shard_rig.h"

#define NUMBER(i) ((UINT64_C(77) << 42) + (i)) /* of an earlier start */
#define GRACE_S 60

static struct rig *new_rig(void **state, struct rig_options options)
{
    options.shard_count = *(const uint16_t *)*state;
    options.limits.will_restart_grace_ms = GRACE_S * 1000;
    return rig_new(&options);
}
#define RIG(...) new_rig(state, (struct rig_options){__VA_ARGS__})

/* Records as the checkpoint keeps them, one after the other. */
struct bytes {
    uint8_t at[1024];
    size_t size;
};

static void put_record(struct bytes *bytes, const struct record *rec)
{
    assert_true(bytes->size + record_size(rec) <= sizeof bytes->at);
    bytes->size += record_encode(bytes->at + bytes->size, rec);
}

static struct span of(const struct bytes *bytes) { return span_of(bytes->at, bytes->size); }

static struct bytes will_record(uint32_t delay_s)
{
    struct bytes bytes = {0};
    put_record(&bytes, &(struct record){.type = RECORD_WILL,
                                        .topic = SPAN_LITERAL("gone"),
                                        .payload = SPAN_LITERAL("bye"),
                                        .user_name = SPAN_LITERAL("driver"),
                                        .qos = 1,
                                        .options = delay_s});
    return bytes;
}

/* away_s: INT64_MIN = it was connected until the stop; otherwise away for so long, by the wall clock of now. */
static struct checkpoint_session session(const struct rig *rig, const char *id, uint64_t i, uint32_t expiry_s, int64_t away_s)
{
    bool was_connected = away_s == INT64_MIN;
    return (struct checkpoint_session){
        .number = NUMBER(i),
        .client_id = span_of_string(id),
        .expiry_interval_s = expiry_s,
        .was_connected = was_connected,
        .since_wall_ns = rig_wall_ns(rig) - (was_connected ? 1000 : away_s) * NS_PER_S,
        .protocol = 5,
    };
}
#define CONNECTED INT64_MIN

static struct rig_client *come_back_with(struct rig *rig, const char *id, bool clean_start, bool is_present)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, clean_start);
    struct rig_client *client = rig_connect_with(rig, &connect);
    assert_int_equal(expect(client, MQTT_CONNACK)->connack.session_present, is_present);
    return client;
}

/* === what comes back ================================================================================================================= */

static void subscriptions_and_identifiers_come_back(void **state)
{
    struct rig *rig = RIG();
    struct bytes filters = {0};
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("a/+"), .options = 1 | 9 << 8});
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("a/x"), .options = 2 | 1 << 2});
    uint16_t inbound[] = {7, 8, 7, 0};
    struct checkpoint_sent sent[] = {{.sequence = 5, .packet_id = 3, .is_received = true}};
    struct checkpoint_session from = session(rig, "car", 1, 3600, 10);
    from.subscriptions = of(&filters);
    from.inbound_ids = inbound;
    from.inbound_count = 4;
    from.sent = sent;
    from.sent_count = 1;
    rig_restore(rig, &from, 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    struct rig_client *car = come_back_with(rig, "car", false, true);
    assert_int_equal(expect(car, MQTT_PUBREL)->ack.packet_id, 3); /* never the PUBLISH again: 4.3.3-6 */
    rig_publish(pub, "a/x", "1", 2, 1);
    rig_publish(pub, "a/y", "2", 2, 2);
    rig_settle(rig);
    const struct packet *packet = expect(car, MQTT_PUBLISH);
    assert_int_equal(packet->publish.qos, 2);
    assert_false(packet->publish.dup); /* it is new */
    assert_int_equal(packet->publish.properties.subscription_identifier, 9);
    assert_int_equal(expect(car, MQTT_PUBLISH)->publish.qos, 1);
    rig_publish(car, "b", "again", 2, 7); /* its identifier is open: delivered by the earlier start */
    rig_settle(rig);
    assert_int_equal(expect(car, MQTT_PUBREC)->ack.packet_id, 7);
    assert_int_equal(RIG_COUNTER(rig, received_duplicates), 1);
    rig_send_unsubscribe(car, 4, "a/+");
    rig_settle(rig);
    assert_int_equal(expect(car, MQTT_UNSUBACK)->suback.codes.data[0], 0);
    rig_free(rig);
}

/* A session leaves with messages in flight and waiting, the broker stops, and what it wanted is sent in order: first what may have been
 * sent before, as duplicates, since no record says what was; then new ones. */
static void what_it_wanted_is_sent_in_order(void **state)
{
    struct rig *rig = RIG(.has_store = true, .limits.inflight_max = 3, .limits.session_queue_messages_max = 1000);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    rig_subscribe(car, 1, "x", 1);
    for (unsigned i = 0; i < 200; i++) {
        publish_number(pub, "x", i, 1, (uint16_t)(i + 1));
        rig_settle(rig);
        if (i == 4) {
            rig_break(car);
            rig_settle(rig);
        }
        if (i % 50 == 0)
            rig_checkpoint(rig);
    }
    struct record rec;
    assert_true(last_record(rig, &rec, NULL, RECORD_SESSION) > 0);
    struct bytes filters = {0};
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("x"), .options = 1});
    struct checkpoint_session from = session(rig, "car", 1, 3600, 10);
    from.number = rec.session;
    from.subscriptions = of(&filters);
    rig_restart(rig, (uint16_t)(8 - *(const uint16_t *)*state));
    rig_restore(rig, &from, 1);
    assert_int_equal(RIG_COUNTER(rig, copies_restored), 200);
    pub = rig_connect(rig, "pub", MQTT_V5, true);
    publish_number(pub, "x", 200, 1, 1);
    rig_settle(rig);
    rig_checkpoint(rig); /* what is above it stays in memory, behind the rest */
    car = come_back_with(rig, "car", false, true);
    for (unsigned i = 0; i <= 200; i++) {
        const struct packet *packet = expect(car, MQTT_PUBLISH);
        assert_int_equal(number_of(packet), i);
        assert_int_equal(packet->publish.dup, i < 200);
        rig_send_ack(car, MQTT_PUBACK, packet->publish.packet_id);
        rig_settle(rig);
        if (i % 20 == 0)
            rig_checkpoint(rig);
    }
    expect_nothing(car);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), from.number), 0);
    rig_free(rig);
}

/* Takes and acknowledges the next message, which is `number`. */
static void take_number(struct rig *rig, struct rig_client *client, unsigned number)
{
    const struct packet *packet = expect(client, MQTT_PUBLISH);
    assert_int_equal(number_of(packet), number);
    rig_send_ack(client, MQTT_PUBACK, packet->publish.packet_id);
    rig_settle(rig);
}

/* A hundred messages for "car", "0" to "99", most of them in runs. Returns its session as a start after a crash finds it, subscribed to
 * "x"; filters: where its subscription stands. */
static struct checkpoint_session long_queue(struct rig *rig, struct bytes *filters, uint8_t qos)
{
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    rig_subscribe(car, 1, "x", qos);
    rig_break(car);
    rig_settle(rig);
    for (unsigned i = 0; i < 100; i++) {
        publish_number(pub, "x", i, qos, (uint16_t)(i + 1));
        rig_settle(rig);
        if (i % 25 == 24)
            rig_checkpoint(rig);
    }
    struct record rec;
    assert_true(last_record(rig, &rec, NULL, RECORD_SESSION) > 0);
    put_record(filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("x"), .options = qos});
    struct checkpoint_session from = session(rig, "car", 1, 3600, CONNECTED);
    from.number = rec.session;
    from.subscriptions = of(filters);
    rig_checkpoint(rig);
    assert_true(memory_store_run_count(rig_store(rig), from.number) > 2);
    return from;
}

/* A run is read and half of it acknowledged; the broker dies before the checkpoint commits that the run is consumed. */
static void what_is_left_of_a_run_comes_back(void **state)
{
    (void)state;
    struct rig *rig = RIG(.has_store = true, .limits.inflight_max = 3, .limits.session_queue_messages_max = 1000);
    struct bytes filters = {0};
    struct checkpoint_session from = long_queue(rig, &filters, 1);
    struct rig_client *car = come_back_with(rig, "car", false, true);
    unsigned next = 0;
    for (; next < 7; next++)
        take_number(rig, car, next);
    rig_restart(rig, 1);
    rig_restore(rig, &from, 1);
    assert_int_equal(RIG_COUNTER(rig, copies_restored), 93);
    car = come_back_with(rig, "car", false, true);
    for (; next < 100; next++)
        take_number(rig, car, next);
    expect_nothing(car);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), from.number), 0);
    rig_free(rig);
}

/* What stood in no run when the broker was killed is put into some that the checkpoint does not have yet: it is read all the same. */
static void what_stood_in_no_run_can_be_read_at_once(void **state)
{
    (void)state;
    struct rig *rig = RIG(.has_store = true, .limits.inflight_max = 3, .limits.session_queue_messages_max = 1000);
    struct bytes filters = {0};
    struct checkpoint_session from = long_queue(rig, &filters, 1);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    for (unsigned i = 100; i < 250; i++) {
        publish_number(pub, "x", i, 1, 1);
        rig_settle(rig);
    }
    rig_restart(rig, 1);
    rig_restore(rig, &from, 1);
    struct rig_client *car = come_back_with(rig, "car", false, true);
    for (unsigned i = 0; i < 250; i++) /* and no checkpoint moves */
        take_number(rig, car, i);
    expect_nothing(car);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_run_count(rig_store(rig), from.number), 0);
    assert_int_equal(memory_store_want_count(rig_store(rig), from.number), 0);
    rig_free(rig);
}

/* Takes the next message, which is `number`, to the end of its exchange. */
static void finish_2(struct rig *rig, struct rig_client *client, unsigned number, bool dup)
{
    const struct packet *packet = expect(client, MQTT_PUBLISH);
    uint16_t id = packet->publish.packet_id;
    assert_int_equal(number_of(packet), number);
    assert_int_equal(packet->publish.dup, dup);
    rig_send_ack(client, MQTT_PUBREC, id);
    rig_settle(rig);
    assert_int_equal(expect(client, MQTT_PUBREL)->ack.packet_id, id);
    rig_send_ack(client, MQTT_PUBCOMP, id);
    rig_settle(rig);
}

/* The same at QoS 2, with a message of the run in flight: it goes on under its identifier, and does not come out of the run as well, also
 * when the store reads that before it knows that the message is finished. */
static void what_is_in_flight_does_not_come_from_its_run_as_well(void **state)
{
    (void)state;
    struct rig *rig = RIG(.has_store = true, .limits.inflight_max = 1, .limits.session_queue_messages_max = 1000);
    struct bytes filters = {0};
    struct checkpoint_session from = long_queue(rig, &filters, 2);
    struct rig_client *car = come_back_with(rig, "car", false, true);
    unsigned next = 0;
    for (; next < 5; next++)
        finish_2(rig, car, next, false);
    struct checkpoint_sent sent[6];
    uint32_t sent_count = 0;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        struct record rec;
        rig_record(rig, &rec, i);
        if (rec.type == RECORD_SENT && sent_count < 6)
            sent[sent_count++] = (struct checkpoint_sent){.sequence = rec.subject_sequence, .packet_id = rec.packet_id};
    }
    assert_int_equal(sent_count, 6);
    from.sent = sent + 5;
    from.sent_count = 1;
    rig_restart(rig, 1);
    rig_restore(rig, &from, 1);
    assert_int_equal(RIG_COUNTER(rig, copies_restored), 95);
    car = come_back_with(rig, "car", false, true);
    for (; next < 100; next++)
        finish_2(rig, car, next, next < 6);
    expect_nothing(car);
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), from.number), 0);
    const struct session *sess = session_table_find_number(&rig_shard(rig, 0)->sessions, from.number);
    assert_true(!sess->rare || !sess->rare->sent_in_runs); /* nobody asks any more */
    rig_free(rig);
}

/* What the log says is in flight of QoS 2, in the order of sending. Returns the count. */
static uint32_t sent_of_log(const struct rig *rig, struct checkpoint_sent *sent_out, uint32_t max)
{
    struct record rec;
    uint32_t count = 0;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        rig_record(rig, &rec, i);
        uint32_t at = 0;
        while (rec.packet_id != 0 && at < count && sent_out[at].packet_id != rec.packet_id)
            at++;
        if (rec.type == RECORD_SENT) {
            assert_true(count < max);
            sent_out[count++] = (struct checkpoint_sent){.sequence = rec.subject_sequence, .packet_id = rec.packet_id};
        } else if (rec.type == RECORD_RECEIVED && at < count)
            sent_out[at].is_received = true;
        else if (rec.type == RECORD_ACK && rec.packet_id != 0 && at < count)
            memmove(&sent_out[at], &sent_out[at + 1], (--count - at) * sizeof *sent_out);
    }
    return count;
}

static void publish_with_expiry(struct rig_client *client, const char *payload, uint8_t packet_id, uint8_t expiry_s)
{
    size_t size = strlen(payload);
    uint8_t bytes[64] = {0x32, (uint8_t)(11 + size), 0, 1, 'x', 0, packet_id, 5, 2, 0, 0, 0, expiry_s};
    assert_true(13 + size <= sizeof bytes);
    memcpy(bytes + 13, payload, size);
    rig_send_bytes(client, bytes, 13 + size);
}

/* The next PUBLISH, NULL when none comes; exchanges before it are finished on the way. */
static const struct packet *next_publish(struct rig *rig, struct rig_client *client)
{
    const struct packet *packet;
    while ((packet = rig_next(client)) && packet->type == MQTT_PUBREL) {
        rig_send_ack(client, MQTT_PUBCOMP, packet->ack.packet_id);
        rig_settle(rig);
    }
    assert_true(!packet || packet->type == MQTT_PUBLISH);
    return packet;
}

static void acknowledge(struct rig *rig, struct rig_client *client, const struct packet *packet)
{
    assert_non_null(packet);
    rig_send_ack(client, packet->publish.qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, packet->publish.packet_id);
    rig_settle(rig);
}

static const struct session *find_session(struct rig *rig, uint16_t shard_count, uint64_t number)
{
    const struct session *sess = NULL;
    for (uint16_t i = 0; i < shard_count && !sess; i++)
        sess = session_table_find_number(&rig_shard(rig, i)->sessions, number);
    assert_non_null(sess);
    return sess;
}

/* QoS 1 and 2 in turn: what is in flight at the crash is sent again in the order of the first time, whatever its QoS, and new messages come
 * after it [MQTT-4.6.0-1]; with the window as it was, and with a smaller one. in_runs: they waited on disk before they were sent. */
static void order_holds_over_both_qos(void **state, bool in_runs, uint16_t receive_max)
{
    enum { COUNT = 60, WINDOW = 9, DONE = 20 };
    struct rig *rig = RIG(.has_store = true, .limits.inflight_max = WINDOW, .limits.session_queue_messages_max = 1000);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    rig_subscribe(car, 1, "x", 2);
    if (in_runs)
        rig_break(car);
    rig_settle(rig);
    for (unsigned i = 0; i < COUNT; i++) {
        publish_number(pub, "x", i, 1 + i % 2, (uint16_t)(i + 1));
        rig_settle(rig);
        if (i % 20 == 19)
            rig_checkpoint(rig);
    }
    rig_checkpoint(rig);
    struct record rec;
    assert_true(last_record(rig, &rec, NULL, RECORD_SESSION) > 0);
    uint64_t number = rec.session;
    if (in_runs)
        car = come_back_with(rig, "car", false, true);
    for (unsigned i = 0; i < DONE; i++)
        acknowledge(rig, car, next_publish(rig, car));
    for (unsigned i = DONE; i < DONE + WINDOW; i++)
        assert_non_null(next_publish(rig, car));
    assert_null(next_publish(rig, car));
    struct checkpoint_sent sent[WINDOW];
    struct bytes filters = {0};
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("x"), .options = 2});
    struct checkpoint_session from = session(rig, "car", 1, 3600, CONNECTED);
    from.number = number;
    from.subscriptions = of(&filters);
    from.sent = sent;
    from.sent_count = sent_of_log(rig, sent, WINDOW);
    assert_int_equal(from.sent_count, WINDOW / 2 + DONE % 2);
    rig_restart(rig, (uint16_t)(8 - *(const uint16_t *)*state));
    rig_restore(rig, &from, 1);
    assert_int_equal(RIG_COUNTER(rig, copies_restored), COUNT - DONE);
    assert_true(find_session(rig, (uint16_t)(8 - *(const uint16_t *)*state), number)->inflight.is_packed); /* newer ones wait */
    struct packet connect = rig_connect_packet("car", MQTT_V5, false);
    connect.connect.properties.present |= MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM);
    connect.connect.properties.receive_maximum = receive_max;
    car = rig_connect_with(rig, &connect);
    assert_true(expect(car, MQTT_CONNACK)->connack.session_present);
    pub = rig_connect(rig, "pub", MQTT_V5, true);
    publish_number(pub, "x", COUNT, 2, 1);
    rig_settle(rig);
    for (unsigned i = DONE; i <= COUNT; i++) {
        const struct packet *packet = next_publish(rig, car);
        assert_non_null(packet);
        assert_int_equal(number_of(packet), i);
        assert_int_equal(packet->publish.qos, i == COUNT ? 2 : 1 + i % 2);
        assert_int_equal(packet->publish.dup, i < DONE + WINDOW || (i < COUNT && i % 2 == 0));
        acknowledge(rig, car, packet);
    }
    assert_null(next_publish(rig, car));
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), number), 0);
    rig_free(rig);
}
static void what_was_in_flight_keeps_its_order(void **state) { order_holds_over_both_qos(state, false, 9); }
static void what_was_in_flight_keeps_its_order_in_a_smaller_window(void **state) { order_holds_over_both_qos(state, false, 1); }
static void what_was_in_flight_from_runs_keeps_its_order(void **state) { order_holds_over_both_qos(state, true, 9); }

/* No record says that the QoS 1 message before the one in flight was sent: once it has expired, it is not [MQTT-3.3.2-5]. What was sent in
 * this start goes again, as it does without a restart. */
static void what_expired_is_not_sent_for_the_first_time(void **state)
{
    struct rig *rig = RIG(.has_store = true);
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true), *car = rig_connect(rig, "car", MQTT_V5, false);
    rig_subscribe(car, 1, "x", 2);
    publish_with_expiry(pub, "early", 1, 10);
    publish_with_expiry(pub, "late", 1, 100);
    rig_publish(pub, "x", "second", 2, 3);
    rig_settle(rig);
    rig_checkpoint(rig);
    struct record rec;
    struct checkpoint_sent sent[1];
    struct bytes filters = {0};
    assert_true(last_record(rig, &rec, NULL, RECORD_SESSION) > 0);
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("x"), .options = 2});
    struct checkpoint_session from = session(rig, "car", 1, 3600, CONNECTED);
    from.number = rec.session;
    from.subscriptions = of(&filters);
    from.sent = sent;
    from.sent_count = sent_of_log(rig, sent, 1);
    assert_int_equal(from.sent_count, 1);
    rig_restart(rig, *(const uint16_t *)*state);
    rig_restore(rig, &from, 1);
    assert_int_equal(RIG_COUNTER(rig, copies_restored), 3);
    rig_advance(rig, 20000);
    for (unsigned i = 0; i < 2; i++) {
        car = come_back_with(rig, "car", false, true);
        const struct packet *packet = expect(car, MQTT_PUBLISH);
        assert_true(span_equal(packet->publish.payload, SPAN_LITERAL("late")));
        assert_true(packet->publish.dup);
        packet = expect(car, MQTT_PUBLISH);
        assert_true(span_equal(packet->publish.payload, SPAN_LITERAL("second")));
        assert_true(packet->publish.dup);
        expect_nothing(car);
        assert_int_equal(RIG_COUNTER(rig, dropped_expired), 1);
        rig_break(car);
        rig_settle(rig);
        rig_advance(rig, 100000); /* now the other one has, but it was sent */
    }
    rig_checkpoint(rig);
    assert_int_equal(memory_store_want_count(rig_store(rig), from.number), 2);
    rig_free(rig);
}

static void name_that_comes_twice_is_the_later_session(void **state)
{
    struct rig *rig = RIG();
    struct bytes will = will_record(0), filters = {0}, mourns = {0};
    put_record(&filters, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("x"), .options = 1});
    put_record(&mourns, &(struct record){.type = RECORD_SUBSCRIPTION, .topic = SPAN_LITERAL("gone"), .options = 1});
    struct checkpoint_session from[] = {session(rig, "car", 1, 3600, 10), session(rig, "car", 2, 3600, 5),
                                        session(rig, "watch", 3, 3600, 5)};
    from[0].will = of(&will); /* its client began anew, and the stop came before the will was said */
    from[0].subscriptions = of(&filters);
    from[2].subscriptions = of(&mourns); /* not in the tree yet when the other is found to have ended */
    rig_restore(rig, from, 3);
    struct record rec;
    assert_int_equal(rig_published_count(rig), 1);
    rig_published(rig, &rec, 0);
    assert_true(rec.will_session == NUMBER(1));
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION_DELETE), 1);
    assert_true(rec.session == NUMBER(1));
    struct rig_client *pub = rig_connect(rig, "pub", MQTT_V5, true);
    rig_publish(pub, "x", "nobody", 1, 1);
    rig_settle(rig);
    assert_int_equal(rig_published_count(rig), 1);
    come_back_with(rig, "car", false, true);
    struct rig_client *watch = come_back_with(rig, "watch", false, true);
    rig_settle(rig);
    expect_payload(watch, "bye");
    rig_free(rig);
}

static void what_no_broker_writes_is_refused(void **state)
{
    struct rig *rig = RIG();
    struct shard *shard = rig_shard(rig, 0);
    struct bytes will = will_record(0);
    struct checkpoint_session from[] = {session(rig, "", 1, 1, 1), session(rig, "car", 0, 1, 1), session(rig, "car", 3, 1, 1)};
    from[1].number = 0;
    from[2].will = span_of(will.at, will.size - 1);
    shard_turn_begin(shard, rig_mono_ns(rig), rig_wall_ns(rig));
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(shard_restore_session(shard, &from[i]), ERR_CORRUPT);
    assert_int_equal(shard_restore_want(shard, NUMBER(9), 1, 1, 10, false, 0), ERR_NOTFOUND);
    shard_turn_end(shard);
    assert_int_equal(gauge_get(&rig_stats(rig, 0)->sessions), 0); /* nothing is left of them */
    rig_free(rig);
}

/* === expiry ========================================================================================================================== */

static void clock_of_one_that_was_away_has_gone_on(void **state)
{
    struct rig *rig = RIG();
    struct checkpoint_session from[] = {session(rig, "gone", 1, 100, 101), session(rig, "nearly", 2, 100, 90),
                                        session(rig, "never", 3, UINT32_MAX, 1000000000)};
    rig_restore(rig, from, 3);
    rig_advance(rig, 200);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    struct record rec;
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION_DELETE), 1);
    assert_true(rec.session == NUMBER(1));
    rig_advance(rig, 9000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 2);
    rig_advance(rig, 1000000);
    come_back_with(rig, "never", false, true);
    come_back_with(rig, "gone", false, false);
    rig_free(rig);
}

static void wall_clock_that_went_back_counts_as_no_time(void **state)
{
    struct rig *rig = RIG();
    struct checkpoint_session from = session(rig, "car", 1, 100, -5000); /* away since later than now */
    rig_restore(rig, &from, 1);
    rig_advance(rig, 99000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 0);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_free(rig);
}

static void wall_clock_that_steps_later_does_not_matter(void **state)
{
    struct rig *rig = RIG();
    struct checkpoint_session from[] = {session(rig, "a", 1, 100, 10), session(rig, "b", 2, 100, CONNECTED)};
    rig_restore(rig, from, 2);
    rig_step_wall(rig, 1000000);
    rig_advance(rig, 89000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 0);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_step_wall(rig, -2000000);
    rig_advance(rig, 8000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 2);
    rig_free(rig);
}

static void clock_of_one_that_was_connected_begins_now_and_is_logged(void **state)
{
    struct rig *rig = RIG();
    struct checkpoint_session from = session(rig, "car", 1, 100, CONNECTED);
    rig_restore(rig, &from, 1);
    struct record rec;
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION), 1); /* or each start would give it its time anew */
    assert_true(rec.session == NUMBER(1));
    assert_int_equal(rec.options & RECORD_SESSION_CONNECTED, 0);
    assert_true(rec.received_ns >= rig_wall_ns(rig) - NS_PER_S);
    rig_advance(rig, 99000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 0);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_free(rig);
}

/* === wills =========================================================================================================================== */

static struct rig_client *watch(struct rig *rig)
{
    struct rig_client *watcher = rig_connect(rig, "watcher", MQTT_V5, true);
    rig_subscribe(watcher, 1, "gone", 0);
    return watcher;
}

/* Restoring took a while, and nobody could come back meanwhile. */
static void grace_begins_when_all_are_restored(void **state)
{
    enum { LOAD_MS = 2000 * GRACE_S };
    struct rig *rig = RIG();
    struct bytes will = will_record(0);
    struct checkpoint_session from[3] = {session(rig, "long", 1, 3600, CONNECTED), session(rig, "clean", 2, 0, CONNECTED),
                                         session(rig, "away", 3, 3600, 10)};
    for (size_t i = 0; i < 3; i++)
        from[i].will = of(&will);
    rig_restore(rig, from, 3);
    rig_restore_end(rig, LOAD_MS);
    rig_advance(rig, LOAD_MS + GRACE_S * 1000 - 1000);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 1); /* that of the one that was away */
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 3);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 1);
    rig_free(rig);
}

/* expiry_s 0: a clean session, kept for its will alone. */
static void will_after_grace(void **state, uint32_t expiry_s, uint32_t delay_s, int64_t said_s)
{
    struct rig *rig = RIG();
    struct bytes will = will_record(delay_s);
    struct checkpoint_session from = session(rig, "car", 1, expiry_s, CONNECTED);
    from.will = of(&will);
    rig_restore(rig, &from, 1);
    struct rig_client *watcher = watch(rig);
    rig_advance(rig, said_s * 1000 - 1000);
    expect_nothing(watcher);
    struct record rec;
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION), 0); /* another crash gives the same grace again */
    rig_advance(rig, 2000);
    expect_payload(watcher, "bye");
    rig_published(rig, &rec, 0);
    assert_true(rec.will_session == NUMBER(1));
    rig_advance(rig, 1000);
    if (expiry_s <= said_s)
        assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION_DELETE), 1);
    else
        assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION), 1);
    rig_free(rig);
}
static void will_of_one_that_was_connected_waits_for_the_grace(void **state) { will_after_grace(state, 3600, 0, GRACE_S); }
static void will_s_own_delay_may_be_longer(void **state) { will_after_grace(state, 3600, 100, 100); }
static void end_of_its_session_waits_for_the_grace_too(void **state) { will_after_grace(state, 10, 100, GRACE_S); }
static void end_of_its_session_comes_before_its_delay(void **state) { will_after_grace(state, 80, 1000, 80); }
static void will_of_a_clean_session_waits_for_the_grace(void **state) { will_after_grace(state, 0, 1000, GRACE_S); }

static void back_within_the_grace(void **state, uint32_t expiry_s, bool clean_start, bool is_present)
{
    struct rig *rig = RIG();
    struct bytes will = will_record(0);
    struct checkpoint_session from = session(rig, "car", 1, expiry_s, CONNECTED);
    from.will = of(&will);
    rig_restore(rig, &from, 1);
    struct rig_client *watcher = watch(rig);
    rig_advance(rig, GRACE_S * 1000 - 2000);
    come_back_with(rig, "car", clean_start, is_present);
    rig_advance(rig, 10000);
    expect_nothing(watcher);
    struct record rec;
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_WILL_DELETE), 1);
    assert_int_equal(rig_published_count(rig), 0);
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION_DELETE), is_present ? 0 : 1);
    rig_free(rig);
}
static void client_that_is_back_takes_its_will_back(void **state) { back_within_the_grace(state, 3600, false, true); }
static void client_that_begins_anew_takes_its_will_back(void **state) { back_within_the_grace(state, 3600, true, false); }
static void clean_client_takes_its_will_back(void **state) { back_within_the_grace(state, 0, true, false); }
static void session_kept_for_its_will_alone_is_not_resumed(void **state) { back_within_the_grace(state, 0, false, false); }

static void delay_of_one_that_was_away_has_gone_on(void **state)
{
    struct rig *rig = RIG();
    struct bytes will = will_record(100);
    struct checkpoint_session from[] = {session(rig, "a", 1, 3600, 101), session(rig, "b", 2, 3600, 90), session(rig, "c", 3, 50, 51)};
    struct rig_client *watcher = NULL;
    for (size_t i = 0; i < 3; i++)
        from[i].will = of(&will);
    rig_restore(rig, from, 3);
    rig_advance(rig, 200);
    assert_int_equal(RIG_COUNTER(rig, wills_published), 2); /* a's, and c's with its end */
    watcher = watch(rig);
    rig_advance(rig, 9000);
    expect_nothing(watcher);
    rig_advance(rig, 2000);
    expect_payload(watcher, "bye");
    rig_free(rig);
}

static void clean_start_ends_a_session_that_was_away_and_says_its_will(void **state) /* 3.1.3-9 is of the same session only */
{
    struct rig *rig = RIG();
    struct bytes will = will_record(100);
    struct checkpoint_session from = session(rig, "car", 1, 3600, 10);
    from.will = of(&will);
    rig_restore(rig, &from, 1);
    struct rig_client *watcher = watch(rig);
    come_back_with(rig, "car", true, false);
    expect_payload(watcher, "bye");
    rig_free(rig);
}

/* It waited for room when the broker stopped, and its client was back: it is nobody's but said, at once. */
static void will_that_is_owed_is_said(void **state)
{
    struct rig *rig = RIG();
    struct bytes will = {0};
    put_record(&will, &(struct record){.type = RECORD_WILL,
                                       .topic = SPAN_LITERAL("gone"),
                                       .payload = SPAN_LITERAL("bye"),
                                       .client_id = SPAN_LITERAL("car"),
                                       .will_session = NUMBER(1),
                                       .qos = 1,
                                       .options = 100});
    struct checkpoint_session from[] = {session(rig, "car", 1, 3600, CONNECTED), session(rig, "", 2, 0, 10), session(rig, "", 3, 0, 10)};
    from[1].client_id = SPAN_LITERAL("\0will of12345678");
    from[1].will = of(&will);
    from[2].client_id = SPAN_LITERAL("\0will of12345679"); /* a crash came before its will */
    rig_restore(rig, from, 3);
    struct rig_client *car = come_back_with(rig, "car", false, true);
    rig_advance(rig, 1000);
    struct record rec;
    assert_int_equal(rig_published_count(rig), 1);
    rig_published(rig, &rec, 0);
    assert_true(rec.will_session == NUMBER(2));
    assert_true(rec.session == NUMBER(1)); /* No Local means its own session */
    assert_true(span_equal(rec.client_id, span_of_string("car")));
    assert_int_equal(last_record(rig, &rec, NULL, RECORD_SESSION_DELETE), 2);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 2);
    expect_nothing(car);
    rig_free(rig);
}

static void wills_of_an_earlier_start_are_paced(void **state)
{
    struct rig *rig = RIG(.limits.wills_per_s = 2);
    struct bytes will = will_record(0);
    struct checkpoint_session from[20];
    static char ids[20][8];
    for (size_t i = 0; i < 20; i++) {
        memcpy(ids[i], "car-00", 7);
        ids[i][4] = (char)('0' + i / 10);
        ids[i][5] = (char)('0' + i % 10);
        from[i] = session(rig, ids[i], i + 1, i % 2 ? 3600 : 5, 10); /* due, or over already */
        from[i].will = of(&will);
    }
    rig_restore(rig, from, 20);
    uint64_t shard_count = *(const uint16_t *)*state;
    for (uint64_t s = 1; s <= 11; s++) {
        rig_advance(rig, 1000);
        assert_true(RIG_COUNTER(rig, wills_published) <= (2 * s + 2) * shard_count);
    }
    assert_int_equal(RIG_COUNTER(rig, wills_published), 20);
    assert_int_equal(RIG_COUNTER(rig, sessions_ended), 10);
    rig_free(rig);
}

static void pace_is_kept_though_timers_are_coarser(void **state)
{
    struct rig *rig = RIG(.limits.wills_per_s = 1000, .block_count = 64);
    struct bytes will = will_record(0);
    enum { COUNT = 1500 };
    struct checkpoint_session *from = calloc(COUNT, sizeof *from);
    char(*ids)[8] = calloc(COUNT, sizeof *ids);
    assert_non_null(from);
    assert_non_null(ids);
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(ids[i], sizeof ids[i], "car%u", i);
        from[i] = session(rig, ids[i], i + 1, 3600, 10);
        from[i].will = of(&will);
    }
    rig_restore(rig, from, COUNT);
    rig_advance(rig, 2000);
    assert_int_equal(RIG_COUNTER(rig, wills_published), COUNT);
    free(from);
    free(ids);
    rig_free(rig);
}

static const uint16_t counts[] = {1, 5};
#define CASE(f)                                                                                                                            \
    {#f, f, NULL, NULL, (void *)(uintptr_t)&counts[0]}, { #f, f, NULL, NULL, (void *)(uintptr_t)&counts[1] }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(subscriptions_and_identifiers_come_back),
        CASE(what_it_wanted_is_sent_in_order),
        CASE(what_is_left_of_a_run_comes_back),
        CASE(what_stood_in_no_run_can_be_read_at_once),
        CASE(what_is_in_flight_does_not_come_from_its_run_as_well),
        CASE(what_was_in_flight_keeps_its_order),
        CASE(what_was_in_flight_keeps_its_order_in_a_smaller_window),
        CASE(what_was_in_flight_from_runs_keeps_its_order),
        CASE(what_expired_is_not_sent_for_the_first_time),
        CASE(name_that_comes_twice_is_the_later_session),
        CASE(what_no_broker_writes_is_refused),
        CASE(clock_of_one_that_was_away_has_gone_on),
        CASE(wall_clock_that_went_back_counts_as_no_time),
        CASE(wall_clock_that_steps_later_does_not_matter),
        CASE(clock_of_one_that_was_connected_begins_now_and_is_logged),
        CASE(will_of_one_that_was_connected_waits_for_the_grace),
        CASE(grace_begins_when_all_are_restored),
        CASE(will_s_own_delay_may_be_longer),
        CASE(end_of_its_session_waits_for_the_grace_too),
        CASE(end_of_its_session_comes_before_its_delay),
        CASE(will_of_a_clean_session_waits_for_the_grace),
        CASE(client_that_is_back_takes_its_will_back),
        CASE(client_that_begins_anew_takes_its_will_back),
        CASE(clean_client_takes_its_will_back),
        CASE(session_kept_for_its_will_alone_is_not_resumed),
        CASE(delay_of_one_that_was_away_has_gone_on),
        CASE(clean_start_ends_a_session_that_was_away_and_says_its_will),
        CASE(will_that_is_owed_is_said),
        CASE(wills_of_an_earlier_start_are_paced),
        CASE(pace_is_kept_though_timers_are_coarser),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
