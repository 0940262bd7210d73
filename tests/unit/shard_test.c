/* A shard as a whole: input cut anywhere, budgets, draining, and random clients whose books must balance. Scenarios named by the MQTT
 * statements they would break with, each with one shard, with three, and with three shards whose messages to each other come in random
 * portions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"
#include "tests/lib/rig_clients.h"
#include "tests/lib/rig_expect.h"
#include "tests/lib/rig_modes.h"

static void small_rings_only_slow_down(void **state)
{
    struct rig *rig = RIG(.ring_size = 2, .limits = {.publishes_per_turn_max = 3});
    struct rig_client *publishers[3], *others[3];
    for (int i = 0; i < 3; i++) {
        char id[16];
        snprintf(id, sizeof id, "p%d", i);
        publishers[i] = v5(rig, id);
        snprintf(id, sizeof id, "s%d", i);
        others[i] = v5_stay(rig, id);
        rig_subscribe(others[i], 1, "x/#", 1);
        rig_break(others[i]);
    }
    rig_settle(rig);
    enum { COUNT = 150 };
    for (uint16_t n = 1; n <= COUNT; n++)
        for (int i = 0; i < 3; i++)
            rig_publish_retained(publishers[i], n % 2 ? "x/1" : "x/2", "v", 1, n);
    rig_advance(rig, 2000);
    for (int i = 0; i < 3; i++)
        for (uint16_t n = 1; n <= COUNT; n++)
            expect_ack(publishers[i], MQTT_PUBACK, n, 0);
    for (int i = 0; i < 3; i++) {
        char id[16];
        snprintf(id, sizeof id, "s%d", i);
        struct packet connect = rig_connect_packet(id, MQTT_V5, false);
        others[i] = rig_connect_with(rig, &connect);
        expect_connack(others[i], true, 0);
        int count = 0;
        for (const struct packet *packet; (packet = rig_next(others[i])) != NULL; count++) {
            rig_send_ack(others[i], MQTT_PUBACK, packet->publish.packet_id);
            rig_advance(rig, 20);
        }
        assert_int_equal(count, 3 * COUNT);
    }
    rig_free(rig);
}

/* What came out, whatever the order between kinds: PINGRESP may pass what waits for the log or the route actor. */
struct outcome {
    size_t size;
    uint64_t sum;
    unsigned packets;
};

static struct outcome outcome_of(struct rig_client *client)
{
    struct outcome outcome = {.size = rig_output(client).size};
    for (struct span rest = rig_output(client); rest.size > 0; outcome.packets++) {
        struct frame frame;
        assert_int_equal(frame_parse(&frame, rest.data, rest.size, FRAME_SIZE_MAX), FRAME_OK);
        uint64_t hash = 1469598103934665603u;
        for (size_t i = 0; i < frame.size; i++)
            hash = (hash ^ rest.data[i]) * 1099511628211u;
        outcome.sum += hash;
        rest = span_of(rest.data + frame.size, rest.size - frame.size);
    }
    return outcome;
}

/* A session's whole life as bytes, handed over in pieces (0: of random sizes). */
static struct outcome play(void **state, const uint8_t *bytes, size_t size, size_t piece, size_t first_piece, struct check_random *random)
{
    struct rig *rig = RIG();
    struct rig_client *client = rig_open(rig, "cut");
    size_t at = 0;
    if (first_piece) {
        rig_send_bytes(client, bytes, first_piece);
        rig_step(rig);
        at = first_piece;
    }
    while (at < size) {
        size_t now = piece ? piece : 1 + check_random_below(random, 40);
        now = now < size - at ? now : size - at;
        rig_send_bytes(client, bytes + at, now);
        rig_step(rig);
        at += now;
    }
    rig_settle(rig);
    struct outcome outcome = outcome_of(client);
    rig_free(rig);
    return outcome;
}

static void any_cut_gives_the_same(void **state)
{
    uint8_t script[8192];
    size_t size = 0;
#define PUT(...)                                                                                                                           \
    do {                                                                                                                                   \
        struct packet put_packet = __VA_ARGS__;                                                                                            \
        size += packet_encode(script + size, &put_packet, MQTT_V5, UINT32_MAX);                                                            \
        assert_true(size < sizeof script / 2);                                                                                             \
    } while (0)
    uint8_t filters[32];
    size_t filters_size = packet_put_subscription(filters, SPAN_LITERAL("loop/#"), 2);
    char payload[201];
    memset(payload, 'p', sizeof payload), payload[200] = 0;
    PUT(rig_connect_packet("cut", MQTT_V5, true));
    PUT((struct packet){.type = MQTT_SUBSCRIBE,
                        .subscribe = {.packet_id = 1, .filter_count = 1, .filters = span_of(filters, filters_size)}});
    PUT((struct packet){.type = MQTT_PINGREQ});
    PUT(publish_packet("t/car/x", payload, 1, 10));
    PUT(publish_packet("none", "1", 2, 11));
    PUT((struct packet){.type = MQTT_PUBREL, .ack = {.packet_id = 11}});
    PUT((struct packet){.type = MQTT_PUBREL, .ack = {.packet_id = 11}});
    PUT(publish_packet("t/car/y", "", 2, 12));
    PUT((struct packet){.type = MQTT_PINGREQ});
#undef PUT
    struct check_random random;
    check_random_init(&random, check_random_seed(7));
    struct outcome expected = play(state, script, size, size, 0, &random);
    assert_int_equal(expected.packets, 9);
    for (size_t piece = 0; piece < 40; piece++) {
        struct outcome got = play(state, script, size, piece, 0, &random);
        assert_int_equal(got.size, expected.size);
        assert_true(got.sum == expected.sum);
    }
    for (size_t cut = 1; cut < size; cut++) { /* in two at every byte */
        struct outcome got = play(state, script, size, size, cut, &random);
        assert_int_equal(got.size, expected.size);
        assert_true(got.sum == expected.sum);
    }
}

static void partial_packets_have_a_budget(void **state)
{
    struct rig *rig = RIG(.limits = {.partial_bytes_max = 10000});
    struct rig_client *client = v5(rig, "a");
    uint8_t bytes[20000] = {0x30, 0x80, 0x80, 0x80, 0x01}; /* announces 2 MiB */
    rig_send_bytes(client, bytes, 5000);
    rig_settle(rig);
    assert_false(rig_is_closed(client));
    rig_send_bytes(client, bytes + 5000, 15000);
    rig_settle(rig);
    expect_disconnect(client, 0x97);
    /* Others' stalled packets leave the budget used up: a small packet in two pieces still comes through. */
    struct rig_client *greedy = v5(rig, "a"), *small = v5(rig, "a2");
    rig_send_bytes(greedy, bytes, 8000);
    rig_settle(rig);
    uint8_t publish[2003] = {0x32, 0xd0, 0x0f, 0, 1, 'x', 0, 1, 0}; /* QoS 1, 2000 bytes behind the header */
    rig_send_bytes(small, publish, 1500);
    rig_settle(rig);
    rig_send_bytes(small, publish + 1500, 503);
    rig_settle(rig);
    expect_ack(small, MQTT_PUBACK, 1, 0x10);
    assert_false(rig_is_closed(greedy));
    rig_free(rig);
}

static void drain_waits_for_promises(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car"), *other = v5(rig, "other");
    struct packet connect = will_packet("w", 0, 0);
    rig_connect_with(rig, &connect);
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    assert_false(rig_drain(rig, false));
    expect_disconnect(other, 0x8b);
    assert_false(rig_is_closed(client));
    rig_log_hold(rig, false);
    rig_settle(rig);
    rig_drain(rig, false);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    expect_disconnect(client, 0x8b);
    rig_settle(rig);
    assert_true(rig_drain(rig, false));
    rig_free(rig);
}

/* A client that never pauses must not hold the end up. */
static void drain_reads_nothing_more(void **state)
{
    struct rig *rig = RIG();
    struct rig_client *client = v5(rig, "car");
    rig_log_hold(rig, true);
    rig_publish(client, "t/car/x", "1", 1, 1);
    rig_settle(rig);
    assert_false(rig_drain(rig, false));
    assert_true(rig_is_paused(client));
    rig_publish(client, "t/car/x", "2", 1, 2); /* was read before the pause came to pass */
    rig_settle(rig);
    rig_log_hold(rig, false);
    rig_settle(rig);
    expect_ack(client, MQTT_PUBACK, 1, 0);
    rig_publish(client, "t/car/x", "3", 1, 3);
    rig_settle(rig);
    rig_drain(rig, false);
    expect_disconnect(client, 0x8b); /* and no PUBACK of what came later */
    assert_int_equal(rig_published_count(rig), 1);
    rig_settle(rig);
    assert_true(rig_drain(rig, false));
    rig_free(rig);
}

/* Clients that do anything, among small limits: nothing crashes, and the books balance at every step (the rig checks). */
static void random_clients_keep_the_books(void **state)
{
    struct check_random random;
    check_random_init(&random, check_random_seed(11));
    struct rig *rig =
        RIG(.ring_size = 8, .block_count = 3, .body_max = 1024, .retained_max = 5,
            .limits = {.session_queue_messages_max = 60, .inflight_max = 4, .outbox_bytes_max = 600, .publishes_per_turn_max = 5},
            .listener = {.receive_maximum = 5});
    enum { CLIENTS = 8 };
    struct rig_client *clients[CLIENTS] = {0};
    static const char *topics[] = {"a", "a/b", "t/x/y", "t/z/y", "r"};
    static const char *filters[] = {"#", "a/#", "+/b", "t/+/y", "r", "a"};
    for (int step = 0; step < 3000; step++) {
        size_t i = check_random_below(&random, CLIENTS);
        char id[8], payload[200];
        snprintf(id, sizeof id, "c%zu", i);
        if (!clients[i] || rig_is_closed(clients[i])) {
            struct packet connect =
                rig_connect_packet(id, check_random_chance(&random, 1, 3) ? MQTT_V311 : MQTT_V5, check_random_chance(&random, 1, 3));
            if (connect.connect.version == MQTT_V5 && check_random_chance(&random, 1, 2))
                SET(connect.connect, RECEIVE_MAXIMUM, receive_maximum, (uint16_t)(1 + check_random_below(&random, 3)));
            if (check_random_chance(&random, 1, 3)) {
                connect.connect.has_will = true;
                connect.connect.will_topic = span_of_string(topics[check_random_below(&random, 5)]);
                connect.connect.will_qos = (uint8_t)check_random_below(&random, 3);
            }
            clients[i] = rig_open(rig, id);
            rig_set_version(clients[i], connect.connect.version);
            rig_send(clients[i], &connect);
            rig_step(rig);
            continue;
        }
        memset(payload, 'x', sizeof payload);
        payload[check_random_below(&random, sizeof payload)] = 0;
        payload[sizeof payload - 1] = 0;
        uint8_t qos = (uint8_t)check_random_below(&random, 3);
        const char *topic = topics[check_random_below(&random, 5)];
        switch (check_random_below(&random, 12)) {
        case 0:
            rig_send_subscribe(clients[i], 1, filters[check_random_below(&random, 6)], qos, 0);
            break;
        case 1:
            rig_send_unsubscribe(clients[i], 2, filters[check_random_below(&random, 6)]);
            break;
        case 2:
            rig_publish_retained(clients[i], topic, payload, qos, qos ? (uint16_t)(1 + check_random_below(&random, 9)) : 0);
            break;
        case 3:
            rig_break(clients[i]);
            break;
        case 4:
            rig_log_hold(rig, check_random_chance(&random, 1, 2));
            break;
        case 5:
            rig_write_max(clients[i], check_random_below(&random, 100));
            break;
        case 6:
            for (uint16_t packet_id = 1; packet_id < 12; packet_id++)
                rig_send_ack(clients[i], MQTT_PUBREL, packet_id);
            break;
        case 7:
            rig_advance(rig, (int64_t)check_random_below(&random, 2000));
            break;
        case 8:
        case 9:
            for (int n = 0; n < 5 && !rig_is_closed(clients[i]); n++) {
                const struct packet *packet = rig_next(clients[i]);
                if (packet && packet->type == MQTT_PUBLISH && packet->publish.qos > 0)
                    rig_send_ack(clients[i], packet->publish.qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, packet->publish.packet_id);
                else if (packet && packet->type == MQTT_PUBREL)
                    rig_send_ack(clients[i], MQTT_PUBCOMP, packet->ack.packet_id);
            }
            break;
        default:
            rig_publish(clients[i], topic, payload, qos, qos ? (uint16_t)(1 + check_random_below(&random, 9)) : 0);
        }
        if (check_random_chance(&random, 1, 4))
            rig_settle(rig);
        else
            rig_step(rig);
    }
    rig_log_hold(rig, false);
    rig_advance(rig, 10000);
    assert_true(RIG_COUNTER(rig, copies_routed) > 100);
    assert_true(RIG_COUNTER(rig, telemetry_logged) > 10);
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_EACH_MODE(small_rings_only_slow_down), IN_EACH_MODE(any_cut_gives_the_same),   IN_EACH_MODE(partial_packets_have_a_budget),
        IN_EACH_MODE(drain_waits_for_promises),   IN_EACH_MODE(drain_reads_nothing_more), IN_EACH_MODE(random_clients_keep_the_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
