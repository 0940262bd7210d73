/* The retained store beside a plain array: random puts, removals, expiry and scans in slices with changes in between; messages that leave
 * memory as the checkpoint goes on. */
#include "broker/route/retained.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/mqtt/topic.h"
#include "common/epoch.h"
#include "tests/lib/check_random.h"

/* Messages are counters of references. */
static void ref(void *msg) { ++*(int *)msg; }
static void unref(void *msg) { assert_true((*(int *)msg)-- > 0); }

static const struct retained_callbacks callbacks = {.ref = ref, .unref = unref};
static const struct retained_limits unlimited = {.messages_max = 1000000, .bytes_max = 1000000000};

#define NO_ROOM -1

/* As a publisher does it: room first. */
static int set_value(struct retained *store, struct span topic, uint64_t number, void *msg, uint32_t bytes, int64_t expiry_wall_ns)
{
    struct retained_reservation reserved;
    if (!retained_reserve(store, &reserved, topic, bytes))
        return NO_ROOM;
    return (int)retained_put(store, topic, number, msg, bytes, expiry_wall_ns, &reserved);
}

static int put(struct retained *store, const char *topic, uint64_t number, int *msg)
{
    return set_value(store, span_of_string(topic), number, msg, 10, RETAINED_NO_EXPIRY);
}

static bool slow_match(const char *filter, const char *topic)
{
    return topic_matches_filter(span_of_string(filter), span_of_string(topic));
}

static void the_greater_number_stays_in_any_order(void **state)
{
    (void)state;
    int a = 0, b = 0, c = 0;
    struct retained *store = retained_new(1, &unlimited, &callbacks, NULL);
    struct retained_value value;
    assert_int_equal(put(store, "t", 7, &a), RETAINED_STORED);
    assert_int_equal(put(store, "t", 5, &b), RETAINED_SUPERSEDED);
    assert_true(retained_find(store, &value, SPAN_LITERAL("t"), 0));
    assert_int_equal(value.number, 7);
    assert_ptr_equal(value.msg, &a);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("t"), 6), RETAINED_SUPERSEDED);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("t"), 9), RETAINED_REMOVED);
    assert_int_equal(a, 0);
    assert_false(retained_find(store, &value, SPAN_LITERAL("t"), 0));
    assert_int_equal(put(store, "t", 8, &b), RETAINED_SUPERSEDED); /* late: the removal is remembered */
    retained_forget_before(store, 9);
    assert_int_equal(put(store, "t", 8, &b), RETAINED_SUPERSEDED); /* 9 is not before 9 */
    retained_forget_before(store, 10);
    assert_int_equal(put(store, "t", 8, &b), RETAINED_STORED);
    /* A removal that comes before what it removes. */
    assert_int_equal(retained_remove(store, SPAN_LITERAL("u"), 20), RETAINED_REMOVED);
    assert_int_equal(put(store, "u", 19, &c), RETAINED_SUPERSEDED);
    assert_int_equal(put(store, "u", 21, &c), RETAINED_STORED);
    assert_int_equal(b + c, 2);
    retained_free(store);
    assert_int_equal(b + c, 0);
}

static void bounds_refuse_and_change_nothing(void **state)
{
    (void)state;
    int msgs[4] = {0};
    struct retained *store = retained_new(1, &(struct retained_limits){.messages_max = 2, .bytes_max = 100}, &callbacks, NULL);
    assert_int_equal(set_value(store, SPAN_LITERAL("a"), 1, &msgs[0], 60, RETAINED_NO_EXPIRY), RETAINED_STORED);
    assert_int_equal(set_value(store, SPAN_LITERAL("b"), 2, &msgs[1], 41, RETAINED_NO_EXPIRY), NO_ROOM);
    assert_int_equal(set_value(store, SPAN_LITERAL("b"), 2, &msgs[1], UINT32_MAX, RETAINED_NO_EXPIRY), NO_ROOM);
    assert_int_equal(set_value(store, SPAN_LITERAL("b"), 2, &msgs[1], 40, RETAINED_NO_EXPIRY), RETAINED_STORED);
    assert_int_equal(set_value(store, SPAN_LITERAL("c"), 3, &msgs[2], 0, RETAINED_NO_EXPIRY), NO_ROOM);
    assert_int_equal(set_value(store, SPAN_LITERAL("a"), 4, &msgs[3], 61, RETAINED_NO_EXPIRY), NO_ROOM);
    assert_int_equal(set_value(store, SPAN_LITERAL("a"), 4, &msgs[3], 60, RETAINED_NO_EXPIRY),
                     RETAINED_STORED); /* in the room of its own */
    assert_int_equal(msgs[0], 0);
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    assert_int_equal(stats.messages, 2);
    assert_int_equal(stats.bytes, 100);
    retained_free(store);
    assert_int_equal(msgs[0] + msgs[1] + msgs[2] + msgs[3], 0);
}

/* Removing what is there always works; removals of unknown topics wait while too many are remembered. */
static void removals_of_unknown_topics_are_bounded(void **state)
{
    (void)state;
    int msg = 0;
    struct retained *store = retained_new(1, &(struct retained_limits){.messages_max = 2, .bytes_max = 100}, &callbacks, NULL);
    assert_int_equal(put(store, "a", 1, &msg), RETAINED_STORED);
    char topic[16];
    for (int i = 0; i < RETAINED_TOMBSTONES_MIN; i++) {
        snprintf(topic, sizeof topic, "x/%d", i);
        assert_true(retained_may_remove(store, span_of_string(topic)));
        assert_int_equal(retained_remove(store, span_of_string(topic), (uint64_t)i + 2), RETAINED_REMOVED);
    }
    assert_false(retained_may_remove(store, SPAN_LITERAL("y")));
    assert_true(retained_may_remove(store, SPAN_LITERAL("a")));
    assert_true(retained_may_remove(store, SPAN_LITERAL("x/7")));
    retained_forget_before(store, 3);
    assert_true(retained_may_remove(store, SPAN_LITERAL("y")));
    retained_free(store);
    assert_int_equal(msg, 0);
}

/* Room that is reserved is taken for everybody else; what was reserved too much, or for nothing, is free again. */
static void reservations_keep_the_bounds(void **state)
{
    (void)state;
    int msgs[3] = {0};
    struct retained *store = retained_new(1, &(struct retained_limits){.messages_max = 2, .bytes_max = 100}, &callbacks, NULL);
    struct retained_reservation a, b, more, none;
    assert_true(retained_reserve(store, &a, SPAN_LITERAL("a"), 50));
    assert_true(retained_reserve(store, &b, SPAN_LITERAL("a"), 50));
    assert_false(retained_reserve(store, &none, SPAN_LITERAL("c"), 0));
    assert_int_equal(retained_put(store, SPAN_LITERAL("a"), 1, &msgs[0], 50, RETAINED_NO_EXPIRY, &a), RETAINED_STORED);
    assert_false(retained_reserve(store, &none, SPAN_LITERAL("c"), 0));
    assert_int_equal(retained_put(store, SPAN_LITERAL("a"), 2, &msgs[1], 50, RETAINED_NO_EXPIRY, &b), RETAINED_STORED);
    assert_true(retained_reserve(store, &b, SPAN_LITERAL("b"), 20)); /* the second was for the same topic */
    assert_true(retained_reserve(store, &more, SPAN_LITERAL("a"), 80));
    assert_false(retained_reserve(store, &none, SPAN_LITERAL("a"), 81));
    assert_int_equal(retained_put(store, SPAN_LITERAL("a"), 1, &msgs[2], 80, RETAINED_NO_EXPIRY, &more), RETAINED_SUPERSEDED);
    retained_unreserve(store, &b);
    assert_true(retained_reserve(store, &b, SPAN_LITERAL("b"), 50));
    assert_false(retained_reserve(store, &none, SPAN_LITERAL("b"), 1));
    retained_unreserve(store, &b);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("a"), 3), RETAINED_REMOVED);
    assert_true(retained_reserve(store, &a, SPAN_LITERAL("b"), 100));
    retained_free(store);
    assert_int_equal(msgs[0] + msgs[1] + msgs[2], 0);
}

static void expired_values_are_not_seen_and_are_swept(void **state)
{
    (void)state;
    static int msgs[1000];
    struct retained *store = retained_new(1, &unlimited, &callbacks, NULL);
    for (int i = 0; i < 1000; i++) {
        char topic[16];
        snprintf(topic, sizeof topic, "t/%d", i);
        assert_int_equal(set_value(store, span_of_string(topic), (uint64_t)i + 1, &msgs[i], 1, i % 3 == 0 ? RETAINED_NO_EXPIRY : 100 + i),
                         RETAINED_STORED);
    }
    struct retained_value value;
    assert_true(retained_find(store, &value, SPAN_LITERAL("t/100"), 199));
    assert_false(retained_find(store, &value, SPAN_LITERAL("t/100"), 200));
    assert_true(retained_find(store, &value, SPAN_LITERAL("t/99"), INT64_MAX));
    size_t dropped = 0;
    for (int i = 0; i < 300; i++) /* slices of ten, twice round and more */
        dropped += retained_sweep(store, 5000, 10, NULL, NULL);
    assert_int_equal(dropped, 666);
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    assert_int_equal(stats.messages, 334);
    assert_int_equal(stats.expired, 666);
    assert_int_equal(stats.tombstones, 666);
    retained_forget_before(store, 1001);
    retained_get_stats(store, &stats);
    assert_int_equal(stats.tombstones, 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(msgs[i], i % 3 == 0);
    retained_free(store);
}

struct looked {
    size_t visited;
};

static bool count_visit(void *arg, const struct retained_value *value)
{
    (void)value;
    ((struct looked *)arg)->visited++;
    return true;
}

static void a_scan_looks_at_the_matching_subtree_only(void **state)
{
    (void)state;
    int msg = 0;
    struct retained *store = retained_new(1, &unlimited, &callbacks, NULL);
    uint64_t number = 1;
    for (int site = 0; site < 100; site++)
        for (int device = 0; device < 100; device++) {
            char topic[48];
            snprintf(topic, sizeof topic, "site%d/device%d/%s", site, device, device == 50 ? "alarm" : "state");
            assert_int_equal(put(store, topic, number++, &msg), RETAINED_STORED);
        }
    static const struct {
        const char *filter;
        size_t matches, budget;
    } cases[] = {
        {"site7/#", 100, 102},          {"site7/device3/state", 1, 2}, {"site7/+/alarm", 1, 302}, {"nowhere/#", 0, 2},
        {"+/device50/alarm", 100, 402}, {"#", 10000, 10000},           {"site7/+", 0, 202},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct looked looked = {0};
        struct retained_scan *scan = retained_scan_begin(store, span_of_string(cases[i].filter));
        if (retained_scan_step(scan, 0, cases[i].budget, count_visit, &looked))
            fail_msg("%s looked at more than %zu topics", cases[i].filter, cases[i].budget);
        assert_int_equal(looked.visited, cases[i].matches);
        assert_false(retained_scan_step(scan, 0, 1, count_visit, &looked)); /* over is over */
        assert_int_equal(looked.visited, cases[i].matches);
        retained_scan_end(scan);
    }
    retained_free(store);
    assert_int_equal(msg, 0);
}

#define TOPICS 4000

struct model {
    struct retained *store;
    struct check_random random;
    char topics[TOPICS][32];
    int msgs[TOPICS];
    uint64_t numbers[TOPICS]; /* the last one given, of a value or of a removal; 0 = never */
    bool live[TOPICS];
    bool stayed[TOPICS];  /* live during the whole scan */
    uint8_t seen[TOPICS]; /* delivered by the scan */
    uint64_t next_number;
    const char *filter;
    bool stop_now_and_then;
};

static bool model_visit(void *arg, const struct retained_value *value)
{
    struct model *model = arg;
    size_t index = (size_t)((int *)value->msg - model->msgs);
    assert_true(index < TOPICS);
    assert_true(model->live[index]);
    assert_true(span_equal(value->topic, span_of_string(model->topics[index])));
    assert_int_equal(value->number, model->numbers[index]);
    assert_true(slow_match(model->filter, model->topics[index]));
    assert_int_equal(model->seen[index]++, 0);
    return !model->stop_now_and_then || !check_random_chance(&model->random, 1, 5);
}

static void model_change(struct model *model, int count, bool grow)
{
    while (count-- > 0) {
        size_t index = (size_t)check_random_below(&model->random, TOPICS);
        struct span topic = span_of_string(model->topics[index]);
        uint64_t number = ++model->next_number;
        if (check_random_chance(&model->random, 1, 10) && model->numbers[index] > 0) { /* one that comes late */
            number = 1 + check_random_below(&model->random, model->numbers[index]);
            assert_int_equal(set_value(model->store, topic, number, &model->msgs[index], 3, RETAINED_NO_EXPIRY), RETAINED_SUPERSEDED);
            assert_int_equal(retained_remove(model->store, topic, number), RETAINED_SUPERSEDED);
        } else if (grow || check_random_chance(&model->random, 1, 5)) {
            assert_int_equal(set_value(model->store, topic, number, &model->msgs[index], 3, RETAINED_NO_EXPIRY), RETAINED_STORED);
            model->live[index] = true;
            model->numbers[index] = number;
        } else {
            assert_int_equal(retained_remove(model->store, topic, number), RETAINED_REMOVED);
            model->live[index] = model->stayed[index] = false;
            model->numbers[index] = number;
        }
    }
}

static void random_text(struct check_random *random, char *text, bool filter)
{
    static const char *const names[] = {"a", "b", "", "a!", "a0", "$SYS", "level", "~"};
    size_t levels = 1 + (size_t)check_random_below(random, 5), at = 0;
    for (size_t level = 0; level < levels && at < 22; level++) {
        if (level > 0)
            text[at++] = '/';
        if (filter && check_random_chance(random, 1, 3)) {
            text[at++] = '+';
        } else if (filter && check_random_chance(random, 1, 6)) {
            text[at++] = '#';
            break;
        } else {
            const char *name = names[check_random_below(random, 8)];
            memcpy(text + at, name, strlen(name));
            at += strlen(name);
        }
    }
    if (at == 0)
        text[at++] = '/';
    text[at] = '\0';
}

static bool model_has_topic(const struct model *model, size_t count, const char *topic)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(model->topics[i], topic) == 0)
            return true;
    return false;
}

static void scans_deliver_what_stays_exactly_once(void **state)
{
    (void)state;
    static struct model model;
    model = (struct model){.store = retained_new(1, &unlimited, &callbacks, NULL)};
    check_random_init(&model.random, check_random_seed(1));
    for (size_t i = 0; i < TOPICS; i++)
        do
            random_text(&model.random, model.topics[i], false);
        while (model_has_topic(&model, i, model.topics[i]));
    for (int round = 0; round < 600; round++) {
        bool grow = (round / 50) % 2 == 0;
        char filter[32];
        random_text(&model.random, filter, true);
        model.filter = filter;
        model.stop_now_and_then = round % 3 == 0;
        memset(model.seen, 0, sizeof model.seen);
        memcpy(model.stayed, model.live, sizeof model.live);
        bool quiet = round % 4 == 0;
        struct retained_scan *scan = retained_scan_begin(model.store, span_of_string(filter));
        while (retained_scan_step(scan, 0, 1 + (size_t)check_random_below(&model.random, 40), model_visit, &model))
            if (!quiet)
                model_change(&model, (int)check_random_below(&model.random, 30), grow);
        retained_scan_end(scan);
        for (size_t i = 0; i < TOPICS; i++)
            if (model.stayed[i] && slow_match(filter, model.topics[i]) && model.seen[i] != 1)
                fail_msg("filter %s: topic %s delivered %d times", filter, model.topics[i], model.seen[i]);
        model_change(&model, 200, grow);
        if (round % 10 == 0) {
            uint64_t limit = model.next_number + 1;
            retained_forget_before(model.store, limit);
            for (size_t i = 0; i < TOPICS; i++)
                if (!model.live[i])
                    model.numbers[i] = 0;
        }
        struct retained_stats stats;
        retained_get_stats(model.store, &stats);
        size_t live = 0, dead = 0;
        for (size_t i = 0; i < TOPICS; i++) {
            live += model.live[i];
            dead += !model.live[i] && model.numbers[i] > 0;
            assert_int_equal(model.msgs[i], model.live[i]);
        }
        assert_int_equal(stats.messages, live);
        assert_int_equal(stats.bytes, live * 3);
        assert_int_equal(stats.tombstones, dead);
    }
    retained_free(model.store);
    for (size_t i = 0; i < TOPICS; i++)
        assert_int_equal(model.msgs[i], 0);
}

static void topics_and_filters_of_the_largest_size(void **state)
{
    (void)state;
    int msg = 0;
    struct retained *store = retained_new(1, &unlimited, &callbacks, NULL);
    static uint8_t slashes[65535], pluses[65535];
    memset(slashes, '/', sizeof slashes);
    for (size_t i = 0; i < sizeof pluses; i++)
        pluses[i] = i % 2 == 0 ? '+' : '/';
    assert_int_equal(set_value(store, span_of(slashes, sizeof slashes), 1, &msg, 1, RETAINED_NO_EXPIRY), RETAINED_STORED);
    assert_int_equal(set_value(store, span_of(slashes, 32767), 2, &msg, 1, RETAINED_NO_EXPIRY), RETAINED_STORED);
    const struct span filters[] = {span_of(slashes, sizeof slashes), span_of(pluses, sizeof pluses), SPAN_LITERAL("#"), SPAN_LITERAL("/#")};
    for (size_t i = 0; i < 4; i++) {
        struct looked looked = {0};
        struct retained_scan *scan = retained_scan_begin(store, filters[i]);
        while (retained_scan_step(scan, 0, 1, count_visit, &looked)) {
        }
        assert_int_equal(looked.visited, i < 2 ? 1 : 2);
        retained_scan_end(scan);
    }
    retained_free(store);
}

/* ---- values whose messages leave memory ---- */

struct logged {
    int refs;
    uint64_t sequence;
};

static void logged_ref(void *msg) { ((struct logged *)msg)->refs++; }
static void logged_unref(void *msg) { assert_true(((struct logged *)msg)->refs-- > 0); }
static uint64_t logged_sequence(const void *msg) { return ((const struct logged *)msg)->sequence; }

static const struct retained_callbacks logged_callbacks = {.ref = logged_ref, .unref = logged_unref, .sequence = logged_sequence};

static struct retained *new_on_disk(uint64_t cache_bytes_max)
{
    return retained_new(1, &(struct retained_limits){.messages_max = 1000, .bytes_max = 1000000, .cache_bytes_max = cache_bytes_max},
                        &logged_callbacks, NULL);
}

static void put_logged(struct retained *store, const char *topic, uint64_t number, struct logged *msg)
{
    assert_int_equal(set_value(store, span_of_string(topic), number, msg, 10, RETAINED_NO_EXPIRY), RETAINED_STORED);
}

/* sequence 0: its message must be in memory, and be `msg`. */
static void assert_value(struct retained *store, const char *topic, uint64_t number, const struct logged *msg, uint64_t sequence)
{
    struct retained_value value;
    assert_true(retained_find(store, &value, span_of_string(topic), 0));
    assert_int_equal(value.number, number);
    assert_ptr_equal(value.msg, msg);
    assert_int_equal(value.sequence, sequence);
    assert_int_equal(value.bytes, 10);
}

static void messages_leave_memory_when_the_checkpoint_has_them(void **state)
{
    (void)state;
    struct logged a = {.sequence = 10}, b = {.sequence = 11}, c = {.sequence = 0};
    struct retained *store = new_on_disk(0);
    put_logged(store, "c", 3, &c);
    put_logged(store, "a", 1, &a);
    put_logged(store, "b", 2, &b);
    assert_false(retained_let_go(store, 100)); /* no checkpoint yet */
    assert_ptr_equal(retained_window_oldest(store), &c);
    retained_on_checkpoint(store, 11);
    assert_true(retained_let_go(store, 1)); /* c, which is not durable: it keeps nobody */
    assert_false(retained_let_go(store, 100));
    assert_value(store, "a", 1, NULL, 10);
    assert_value(store, "b", 2, &b, 0); /* 11 is not below 11 */
    assert_value(store, "c", 3, &c, 0);
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    assert_int_equal(stats.messages, 3);
    assert_int_equal(stats.bytes, 30); /* on disk counts as well */
    assert_int_equal(stats.window_messages, 2);
    assert_int_equal(stats.window_bytes, 20);
    c.sequence = 12;
    retained_on_checkpoint(store, 13);
    assert_false(retained_let_go(store, 100));
    assert_value(store, "c", 3, NULL, 12);
    assert_int_equal(a.refs + b.refs + c.refs, 0);
    assert_null(retained_window_oldest(store));
    assert_int_equal(retained_remove(store, SPAN_LITERAL("a"), 9), RETAINED_REMOVED);
    retained_get_stats(store, &stats);
    assert_int_equal(stats.bytes, 20);
    retained_free(store);
}

static void a_replaced_message_does_not_wait_for_the_checkpoint(void **state)
{
    (void)state;
    struct logged msgs[3] = {{.sequence = 0}};
    struct retained *store = new_on_disk(0);
    put_logged(store, "t", 1, &msgs[0]);
    put_logged(store, "t", 2, &msgs[1]);
    assert_int_equal(msgs[0].refs, 0);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("t"), 3), RETAINED_REMOVED);
    assert_int_equal(msgs[1].refs, 0);
    put_logged(store, "t", 4, &msgs[2]);
    retained_on_checkpoint(store, 100);
    assert_false(retained_let_go(store, 100));
    assert_value(store, "t", 4, &msgs[2], 0);
    retained_free(store);
    assert_int_equal(msgs[2].refs, 0);
}

/* Two shards set one topic: 5 and 6 by number, but 6 stands before 5 in the log, and either may come here first (LOG 12). */
static void the_number_decides_whatever_the_order_in_the_log(void **state)
{
    (void)state;
    for (int first = 0; first < 2; first++) {
        struct logged older = {.sequence = 20}, newer = {.sequence = 19};
        struct retained *store = new_on_disk(0);
        if (first == 0)
            put_logged(store, "t", 5, &older);
        put_logged(store, "t", 6, &newer);
        assert_int_equal(set_value(store, SPAN_LITERAL("t"), 5, &older, 10, RETAINED_NO_EXPIRY), RETAINED_SUPERSEDED);
        retained_on_checkpoint(store, 20);
        assert_false(retained_let_go(store, 100));
        assert_value(store, "t", 6, NULL, 19);
        assert_int_equal(set_value(store, SPAN_LITERAL("t"), 5, &older, 10, RETAINED_NO_EXPIRY), RETAINED_SUPERSEDED);
        assert_value(store, "t", 6, NULL, 19);
        retained_free(store);
        assert_int_equal(older.refs + newer.refs, 0);
    }
}

static void the_newest_that_were_read_stay(void **state)
{
    (void)state;
    struct logged msgs[4] = {{.sequence = 1}, {.sequence = 2}, {.sequence = 3}, {.sequence = 4}}, wrong = {.sequence = 7},
                  late = {.sequence = 1};
    static const char *const topics[] = {"a", "b", "c", "d"};
    struct retained *store = new_on_disk(25);
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(retained_restore(store, span_of_string(topics[i]), i + 1, i + 1, 10, RETAINED_NO_EXPIRY), RETAINED_STORED);
    for (uint64_t i = 0; i < 3; i++)
        retained_offer(store, span_of_string(topics[i]), i + 1, &msgs[i]);
    assert_value(store, "a", 1, NULL, 1); /* two have room */
    assert_value(store, "b", 2, &msgs[1], 0);
    assert_value(store, "c", 3, &msgs[2], 0);
    retained_offer(store, SPAN_LITERAL("a"), 2, &wrong);
    retained_offer(store, SPAN_LITERAL("a"), 1, &wrong);
    retained_offer(store, SPAN_LITERAL("b"), 2, &wrong); /* is in memory */
    retained_offer(store, SPAN_LITERAL("x"), 1, &wrong);
    retained_offer(store, SPAN_LITERAL("a"), 2, &late);
    assert_int_equal(wrong.refs + late.refs, 0);
    assert_value(store, "a", 1, NULL, 1);
    assert_value(store, "b", 2, &msgs[1], 0);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("b"), 9), RETAINED_REMOVED);
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    assert_int_equal(stats.cache_messages, 1);
    assert_int_equal(stats.cache_bytes, 10);
    retained_free(store);
    for (int i = 0; i < 4; i++)
        assert_int_equal(msgs[i].refs, 0);
}

static void what_is_restored_is_not_refused(void **state)
{
    (void)state;
    struct logged msg = {.sequence = 0};
    struct retained *store = retained_new(1, &(struct retained_limits){.messages_max = 1, .bytes_max = 10}, &logged_callbacks, NULL);
    assert_int_equal(retained_restore(store, SPAN_LITERAL("a"), 7, 70, 10, RETAINED_NO_EXPIRY), RETAINED_STORED);
    assert_int_equal(retained_restore(store, SPAN_LITERAL("b"), 8, 80, 10, RETAINED_NO_EXPIRY), RETAINED_STORED);
    assert_int_equal(retained_restore(store, SPAN_LITERAL("b"), 6, 60, 10, RETAINED_NO_EXPIRY), RETAINED_SUPERSEDED);
    assert_value(store, "b", 8, NULL, 80);
    assert_int_equal(set_value(store, SPAN_LITERAL("c"), 9, &msg, 10, RETAINED_NO_EXPIRY), NO_ROOM);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("a"), 10), RETAINED_REMOVED);
    assert_int_equal(retained_remove(store, SPAN_LITERAL("b"), 11), RETAINED_REMOVED);
    put_logged(store, "c", 12, &msg);
    retained_free(store);
    assert_int_equal(msg.refs, 0);
}

#define BOUND_TOPICS 12
#define BOUND_WAYS 8 /* publishers, each with one message on its way */

/* Random reservations that are put, given back, or come late, over topics that come and go: the bounds are kept, and when nothing is on its
 * way there is exactly as much room as the live values leave. */
static void bounds_hold_at_random(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(2));
    struct retained_limits limits = {.messages_max = 6, .bytes_max = 60};
    struct retained *store = retained_new(1, &limits, &callbacks, NULL);
    static int msgs[BOUND_WAYS];
    struct {
        bool is_taken;
        uint32_t bytes;
        char topic[2];
        struct retained_reservation reserved;
    } ways[BOUND_WAYS] = {{0}};
    uint64_t number = 0, refused = 0;
    for (int step = 0; step < 200000; step++) {
        size_t at = (size_t)check_random_below(&random, BOUND_WAYS);
        char topic[2] = {(char)('a' + check_random_below(&random, BOUND_TOPICS)), '\0'};
        if (!ways[at].is_taken && check_random_chance(&random, 1, 8)) {
            bool is_quiet = true; /* a topic whose value goes while another is on its way for it may bring one too many */
            for (size_t i = 0; i < BOUND_WAYS; i++)
                is_quiet = is_quiet && !(ways[i].is_taken && ways[i].topic[0] == topic[0]);
            if (is_quiet)
                assert_int_equal(retained_remove(store, span_of_string(topic), ++number), RETAINED_REMOVED);
        } else if (!ways[at].is_taken) {
            ways[at].bytes = 1 + (uint32_t)check_random_below(&random, 20);
            memcpy(ways[at].topic, topic, sizeof topic);
            ways[at].is_taken = retained_reserve(store, &ways[at].reserved, span_of_string(topic), ways[at].bytes);
            refused += !ways[at].is_taken;
        } else {
            ways[at].is_taken = false;
            if (check_random_chance(&random, 1, 4))
                retained_unreserve(store, &ways[at].reserved);
            else
                retained_put(store, span_of_string(ways[at].topic), ++number, &msgs[at], ways[at].bytes, RETAINED_NO_EXPIRY,
                             &ways[at].reserved);
        }
        struct retained_stats stats;
        retained_get_stats(store, &stats);
        assert_true(stats.messages <= limits.messages_max);
        if (step % 1000 != 0)
            continue;
        for (size_t i = 0; i < BOUND_WAYS; i++)
            if (ways[i].is_taken)
                retained_unreserve(store, &ways[i].reserved), ways[i].is_taken = false;
        struct retained_reservation rest;
        bool has_room = stats.messages < limits.messages_max && stats.bytes <= limits.bytes_max;
        assert_int_equal(retained_reserve(store, &rest, SPAN_LITERAL("new"), (uint32_t)(limits.bytes_max - stats.bytes)), has_room);
        if (has_room)
            retained_unreserve(store, &rest);
    }
    assert_true(refused > 1000);
    retained_free(store);
}

#define CROWD_THREADS 3
#define CROWD_ROUNDS 20000
#define CROWD_TOPICS 64

struct crowd {
    struct retained *store;
    struct epoch *epoch;
    pthread_mutex_t lock; /* of what is on its way to the writer */
    struct {
        unsigned topic;
        struct retained_reservation reserved;
    } ways[CROWD_THREADS * CROWD_ROUNDS];
    size_t put, taken;
    _Atomic unsigned running;
};

static void *reserve_for_a_crowd(void *arg)
{
    struct crowd *crowd = (struct crowd *)arg;
    struct epoch_reader *reader = epoch_reader_register(crowd->epoch);
    struct check_random random;
    check_random_init(&random, (uint64_t)(uintptr_t)reader);
    for (int round = 0; round < CROWD_ROUNDS; round++) {
        struct retained_reservation reserved;
        unsigned topic = (unsigned)check_random_below(&random, CROWD_TOPICS);
        char text[8];
        snprintf(text, sizeof text, "t/%u", topic);
        epoch_begin(reader);
        bool is_reserved = retained_reserve(crowd->store, &reserved, span_of_string(text), 10);
        (void)retained_may_remove(crowd->store, span_of_string(text));
        epoch_end(reader);
        if (!is_reserved)
            continue;
        pthread_mutex_lock(&crowd->lock);
        crowd->ways[crowd->put].topic = topic;
        crowd->ways[crowd->put++].reserved = reserved;
        pthread_mutex_unlock(&crowd->lock);
    }
    epoch_reader_unregister(reader);
    crowd->running--;
    return NULL;
}

/* What came last, or a removal; removals are forgotten at once, so that entries go while others look at them. */
static void write_for_a_crowd(struct crowd *crowd, struct check_random *random, uint64_t number, int *msg)
{
    char text[8];
    bool is_there = false;
    struct retained_reservation reserved = {0};
    unsigned topic = (unsigned)check_random_below(random, CROWD_TOPICS);
    pthread_mutex_lock(&crowd->lock);
    if (crowd->taken < crowd->put) {
        topic = crowd->ways[crowd->taken].topic;
        reserved = crowd->ways[crowd->taken++].reserved;
        is_there = true;
    }
    pthread_mutex_unlock(&crowd->lock);
    snprintf(text, sizeof text, "t/%u", topic);
    if (is_there)
        retained_put(crowd->store, span_of_string(text), number, msg, 10, RETAINED_NO_EXPIRY, &reserved);
    else
        retained_remove(crowd->store, span_of_string(text), number);
    retained_forget_before(crowd->store, number);
    epoch_poll(crowd->epoch);
}

/* Publishers of several threads reserve while topics come and go; in the end exactly the room that is free is free. */
static void threads_reserve_while_topics_change(void **state)
{
    (void)state;
    static struct crowd crowd;
    static int msg;
    struct retained_limits limits = {.messages_max = CROWD_TOPICS / 2, .bytes_max = 10 * CROWD_TOPICS};
    crowd = (struct crowd){.epoch = epoch_new(), .lock = PTHREAD_MUTEX_INITIALIZER, .running = CROWD_THREADS};
    crowd.store = retained_new(1, &limits, &callbacks, crowd.epoch);
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    pthread_t threads[CROWD_THREADS];
    for (int i = 0; i < CROWD_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reserve_for_a_crowd, &crowd), 0);
    uint64_t number = 0;
    while (crowd.running > 0 || crowd.taken < crowd.put)
        write_for_a_crowd(&crowd, &random, ++number, &msg);
    for (int i = 0; i < CROWD_THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    struct retained_stats stats;
    retained_get_stats(crowd.store, &stats);
    uint64_t room = stats.messages < limits.messages_max ? limits.messages_max - stats.messages : 0;
    struct retained_reservation reserved;
    for (char topic[2] = "A"; room > 0; room--, topic[0]++)
        assert_true(retained_reserve(crowd.store, &reserved, span_of_string(topic), 1));
    assert_false(retained_reserve(crowd.store, &reserved, SPAN_LITERAL("one more"), 1));
    retained_free(crowd.store);
    epoch_free(crowd.epoch);
    assert_int_equal(msg, 0);
}

#define DISK_TOPICS 50
#define DISK_PUTS 20000

struct swept {
    size_t count;
    uint64_t number;
};

static void on_swept(void *arg, const struct retained_value *value)
{
    struct swept *swept = arg;
    assert_true(span_equal(value->topic, SPAN_LITERAL("t")));
    swept->number = value->number;
    swept->count++;
}

/* Whoever has values on disk is told, once they are there, which of them have expired. */
static void an_expired_value_is_swept_when_the_checkpoint_has_it(void **state)
{
    (void)state;
    struct retained *store = retained_new(1, &unlimited, &logged_callbacks, NULL);
    struct logged msg = {.sequence = 5};
    struct swept swept = {0};
    struct retained_value value;
    assert_int_equal(set_value(store, SPAN_LITERAL("t"), 3, &msg, 1, 100), RETAINED_STORED);
    assert_false(retained_find(store, &value, SPAN_LITERAL("t"), 100));
    assert_int_equal(retained_sweep(store, 100, 10, on_swept, &swept), 0);
    retained_on_checkpoint(store, 5);
    retained_let_go(store, 10);
    assert_int_equal(retained_sweep(store, 100, 10, on_swept, &swept), 0);
    retained_on_checkpoint(store, 6);
    retained_let_go(store, 10);
    assert_int_equal(retained_sweep(store, 99, 10, on_swept, &swept), 0);
    assert_int_equal(retained_sweep(store, 100, 10, on_swept, &swept), 1);
    assert_int_equal(swept.count, 1);
    assert_int_equal(swept.number, 3);
    assert_int_equal(retained_sweep(store, 100, 10, on_swept, &swept), 0);
    retained_free(store);
}

/* Random puts, removals, late sequences, checkpoints and reads. What the store says is in memory has one reference and is the topic's last
 * message; what it says is on disk the checkpoint has; and once everything is durable, nothing stays in memory. */
static void memory_and_disk_agree(void **state)
{
    (void)state;
    static struct logged msgs[DISK_PUTS];
    memset(msgs, 0, sizeof msgs);
    struct check_random random;
    check_random_init(&random, check_random_seed(1));
    struct retained *store = new_on_disk(100);
    const struct logged *last[DISK_TOPICS] = {NULL};
    uint64_t numbers[DISK_TOPICS] = {0}, named = 0, checkpoint = 0;
    for (uint64_t number = 1; number <= DISK_PUTS; number++) {
        size_t index = (size_t)check_random_below(&random, DISK_TOPICS);
        char topic[] = {'t', (char)('0' + index / 10), (char)('0' + index % 10), '\0'};
        numbers[index] = number;
        last[index] = NULL;
        if (check_random_chance(&random, 1, 5)) {
            assert_int_equal(retained_remove(store, span_of_string(topic), number), RETAINED_REMOVED);
        } else {
            put_logged(store, topic, number, &msgs[number - 1]);
            last[index] = &msgs[number - 1];
        }
        while (named < number && check_random_chance(&random, 4, 5)) /* the log, now and then */
            msgs[named].sequence = 1001 + named, named++;
        if (check_random_chance(&random, 1, 30) && 1000 + named >= checkpoint) {
            checkpoint += check_random_below(&random, 1000 + named + 2 - checkpoint);
            retained_on_checkpoint(store, checkpoint);
        }
        retained_let_go(store, 1 + (size_t)check_random_below(&random, 5));
        size_t in_memory = 0;
        for (size_t i = 0; i < DISK_TOPICS; i++) {
            topic[1] = (char)('0' + i / 10), topic[2] = (char)('0' + i % 10);
            struct retained_value value;
            assert_int_equal(retained_find(store, &value, span_of_string(topic), 0), last[i] != NULL);
            if (!last[i])
                continue;
            assert_int_equal(value.number, numbers[i]);
            assert_int_equal(last[i]->refs, value.msg != NULL);
            if (value.msg) {
                assert_ptr_equal(value.msg, last[i]);
                in_memory++;
            } else {
                assert_int_equal(value.sequence, last[i]->sequence);
                assert_in_range(value.sequence, 1, checkpoint - 1);
                if (check_random_chance(&random, 1, 50)) {
                    retained_offer(store, value.topic, value.number, &msgs[value.number - 1]);
                    in_memory++;
                }
            }
        }
        struct retained_stats stats;
        retained_get_stats(store, &stats);
        assert_true(stats.cache_bytes <= 100);
        assert_true(stats.window_messages + stats.cache_messages <= in_memory);
    }
    while (named < DISK_PUTS)
        msgs[named].sequence = 1001 + named, named++;
    retained_on_checkpoint(store, 1000 + named + 1);
    while (retained_let_go(store, 7)) {
    }
    struct retained_stats stats;
    retained_get_stats(store, &stats);
    assert_int_equal(stats.window_messages, 0);
    size_t refs = 0;
    for (size_t i = 0; i < DISK_PUTS; i++)
        refs += (size_t)msgs[i].refs;
    assert_int_equal(refs, stats.cache_messages);
    retained_free(store);
    for (size_t i = 0; i < DISK_PUTS; i++)
        assert_int_equal(msgs[i].refs, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_greater_number_stays_in_any_order),
        cmocka_unit_test(bounds_refuse_and_change_nothing),
        cmocka_unit_test(removals_of_unknown_topics_are_bounded),
        cmocka_unit_test(reservations_keep_the_bounds),
        cmocka_unit_test(bounds_hold_at_random),
        cmocka_unit_test(threads_reserve_while_topics_change),
        cmocka_unit_test(expired_values_are_not_seen_and_are_swept),
        cmocka_unit_test(an_expired_value_is_swept_when_the_checkpoint_has_it),
        cmocka_unit_test(a_scan_looks_at_the_matching_subtree_only),
        cmocka_unit_test(scans_deliver_what_stays_exactly_once),
        cmocka_unit_test(topics_and_filters_of_the_largest_size),
        cmocka_unit_test(messages_leave_memory_when_the_checkpoint_has_them),
        cmocka_unit_test(a_replaced_message_does_not_wait_for_the_checkpoint),
        cmocka_unit_test(the_number_decides_whatever_the_order_in_the_log),
        cmocka_unit_test(the_newest_that_were_read_stay),
        cmocka_unit_test(what_is_restored_is_not_refused),
        cmocka_unit_test(memory_and_disk_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
