/* Queues of persistent sessions at their bounds: dropped, refused, too old; what is in memory and what is on disk alike, and the books are
 * exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "broker/session/queue_totals.h"
#include "tests/lib/check_random.h"
#include "tests/lib/memory_store.h"
#include "tests/lib/rig_numbers.h"

static void the_newest_is_dropped_and_said(void **state)
{
    (void)state;
    struct rig *rig = STORE_RIG(.limits = {.session_queue_messages_max = 100});
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
        struct rig *rig = STORE_RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_DROP_OLDEST});
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
    struct rig *rig = STORE_RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_DROP_OLDEST});
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
        STORE_RIG(.limits = {.session_queue_messages_max = 100000, .session_queue_bytes_max = 20000, .queue_policy = QUEUE_DROP_OLDEST});
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
            STORE_RIG(.limits = {.session_queue_messages_max = 100000, .session_queue_bytes_max = 3000, .queue_policy = (uint8_t)policy});
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
    struct rig *rig = STORE_RIG(.limits = {.session_queue_messages_max = 100, .queue_policy = QUEUE_REFUSE});
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
    struct rig *rig =
        STORE_RIG(.limits = {.session_queue_messages_max = 100, .session_queue_bytes_max = 2000, .queue_policy = QUEUE_REFUSE});
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
    struct rig *rig = STORE_RIG(.queue_totals = &totals, .limits = {.queue_policy = QUEUE_REFUSE, .inflight_max = 1});
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
    struct rig *rig = STORE_RIG(.shard_count = 2, .queue_totals = &totals);
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
        struct rig *rig = STORE_RIG(.shard_count = 2, .queue_totals = &totals, .limits = {.queue_policy = QUEUE_DROP_OLDEST});
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
    struct rig *rig = STORE_RIG(.queue_totals = &totals, .limits = {.queue_policy = QUEUE_DROP_OLDEST});
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
        struct rig *rig = STORE_RIG(.queue_totals = &totals,
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
    struct rig *rig = STORE_RIG(.limits = {.queue_age_max_ns = INT64_C(60) * 1000000000});
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
        struct rig *rig = STORE_RIG(.limits = {.queue_age_max_ns = INT64_C(3600) * 1000000000, .session_queue_messages_max = 1000});
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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
