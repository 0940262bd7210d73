#include "broker/route/route_actor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/actor/msg.h"
#include "broker/durable/store_reader.h"
#include "broker/route/route_stats.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"
#include "tests/lib/check_random.h"

#define SHARDS 2
#define OPS_MAX 512

struct fixture {
    struct topic_tree *tree;
    struct route_actor *actor;
    _Atomic uint64_t counter;
    struct op ops[OPS_MAX]; /* what the actor posted, oldest first */
    actor_id to[OPS_MAX];
    size_t op_count;
    bool is_full; /* the rings */
};

static bool on_post(void *io, actor_id to, const struct op *op)
{
    struct fixture *f = io;
    if (f->is_full)
        return false;
    CHECK(f->op_count < OPS_MAX);
    f->to[f->op_count] = to;
    f->ops[f->op_count++] = *op;
    return true;
}

static const struct route_io route_io = {.post = on_post};

static int setup_with(void **state, const struct route_limits *limits)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->tree = topic_tree_new(1);
    f->actor = route_actor_new(f->tree, &f->counter, 1, SHARDS, limits, &route_io, f);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    struct route_limits limits = {.retained_messages_max = 10, .retained_bytes_max = 1 << 20, .tree_bytes_max = 1 << 20, .scan_slice = 2};
    return setup_with(state, &limits);
}

static int setup_on_disk(void **state)
{
    struct route_limits limits = {.retained_messages_max = 1000,
                                  .retained_bytes_max = 1 << 20,
                                  .tree_bytes_max = 1 << 20,
                                  .scan_slice = 100,
                                  .retained_on_disk = true};
    return setup_with(state, &limits);
}

static int setup_with_cache(void **state)
{
    struct route_limits limits = {.retained_messages_max = 1000,
                                  .retained_bytes_max = 1 << 20,
                                  .tree_bytes_max = 1 << 20,
                                  .scan_slice = 100,
                                  .retained_on_disk = true,
                                  .retained_cache_bytes_max = 4096};
    return setup_with(state, &limits);
}

static void read_drop(struct store_read *read)
{
    for (uint32_t i = 0; i < read->count; i++)
        msg_unref(read->items[i].msg);
    free(read);
}

static void drop(const struct op *op)
{
    if (op->type == OP_ROUTE_REPLY)
        route_request_free(op->request);
    if (op->type == OP_RETAINED_VALUE)
        msg_unref(op->retained.msg);
    if (op->type == OP_STORE_READ)
        read_drop(op->read);
    if (op->type == OP_STORE_EXPIRED)
        free(op->expired);
}

static void take_ops(struct fixture *f)
{
    for (size_t i = 0; i < f->op_count; i++)
        drop(&f->ops[i]);
    f->op_count = 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    f->is_full = false;
    take_ops(f);
    route_actor_free(f->actor);
    topic_tree_free(f->tree);
    free(f);
    return 0;
}

static void work(struct fixture *f)
{
    for (int i = 0; i < 10; i++)
        route_actor_work(f->actor, 1000);
}

static void subscribe_only(struct fixture *f, const char *filter)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    *request = (struct route_request){
        .id = 7, .session = {.number = 3, .shard = 1}, .filter_count = 1, .filters = request->filters, .text = request->text};
    request->filters[0] = (struct route_filter){.size = (uint32_t)size, .qos = 1};
    memcpy(request->text, filter, size);
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
}

static void subscribe(struct fixture *f, const char *filter)
{
    subscribe_only(f, filter);
    work(f);
}

/* What a shard does for a retained PUBLISH, after it drew the number. */
static void retain(struct fixture *f, actor_id from, uint64_t number, const char *topic, const char *payload)
{
    struct msg *msg = msg_new(&(struct msg_source){
        .topic = span_of_string(topic), .payload = span_of_string(payload), .retain = true, .expiry_wall_ns = MSG_NO_EXPIRY});
    msg->retained_number = number;
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_RETAIN, .from = from, .retain = {.msg = msg, .hold = 1}});
    work(f);
}

static void pass(struct fixture *f, actor_id from, uint32_t round)
{
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_PASS, .from = from, .count = round, .retain = {.hold = f->counter + 1}});
    work(f);
}

static size_t count_ops(const struct fixture *f, enum op_type type)
{
    size_t count = 0;
    for (size_t i = 0; i < f->op_count; i++)
        count += f->ops[i].type == type;
    return count;
}

static void nothing_retained_ends_at_once(void **state)
{
    struct fixture *f = *state;
    subscribe(f, "a/#");
    assert_int_equal(f->op_count, 2);
    assert_int_equal(f->ops[0].type, OP_ROUTE_REPLY);
    assert_int_equal(f->ops[0].request->filters[0].reason, 1);
    assert_true(f->ops[0].request->filters[0].is_new);
    assert_int_equal(f->ops[1].type, OP_RETAINED_END);
    assert_int_equal(f->to[1], 1);
}

static void retained_values_come_before_the_end(void **state)
{
    struct fixture *f = *state;
    f->counter = 3;
    retain(f, 0, 1, "a/1", "x");
    retain(f, 0, 2, "a/2", "x");
    retain(f, 0, 3, "b/1", "x");
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 2);
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(count_ops(f, OP_ROUTE_ASK), 0);
}

/* Shard 0 has drawn number 1 and asked the tree before the subscription was there; its value arrives after. */
/* However many scans wait: between two looks at the requests only so much of them is done, and all get their turn. */
static void many_scans_let_requests_in(void **state)
{
    struct fixture *f = *state;
    f->counter = 2;
    retain(f, 0, 1, "a/1", "x");
    retain(f, 0, 2, "a/2", "x");
    take_ops(f);
    size_t values = 0, ends = 0;
    for (int i = 0; i < 40; i++)
        subscribe_only(f, "a/#");
    take_ops(f);
    while (ends < 40) {
        assert_int_equal(route_actor_work(f->actor, 1000), 0); /* more to do, at once */
        assert_true(count_ops(f, OP_RETAINED_VALUE) <= 16 * 2);
        values += count_ops(f, OP_RETAINED_VALUE);
        ends += count_ops(f, OP_RETAINED_END);
        take_ops(f);
    }
    assert_int_equal(values, 80);
    assert_true(route_actor_work(f->actor, 1000) > 0);
}

static void a_value_on_its_way_reaches_the_subscription(void **state)
{
    struct fixture *f = *state;
    f->counter = 1;
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_ROUTE_REPLY), 1);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 0);
    assert_int_equal(count_ops(f, OP_ROUTE_ASK), SHARDS);
    retain(f, 0, 1, "a/b", "x");
    retain(f, 0, 1, "c", "x");
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 1);
    pass(f, 0, 1);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 0);
    pass(f, 1, 1);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 1);
}

/* What a shard sends behind its answer has found the subscription in the tree: giving it again would double it. */
static void behind_the_answer_nothing_is_given_twice(void **state)
{
    struct fixture *f = *state;
    f->counter = 1;
    subscribe(f, "a/#");
    pass(f, 0, 1);
    retain(f, 0, 2, "a/b", "x");
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 0);
    retain(f, 1, 1, "a/c", "x");
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 1);
    pass(f, 1, 1);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 1);
}

/* A round that began before the subscription says nothing about it. */
static void an_older_round_does_not_count(void **state)
{
    struct fixture *f = *state;
    f->counter = 1;
    subscribe(f, "a/#");
    subscribe(f, "b/#");
    pass(f, 0, 1);
    pass(f, 1, 1);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 1);
    assert_int_equal(count_ops(f, OP_ROUTE_ASK), 2 * SHARDS);
    pass(f, 0, 2);
    pass(f, 1, 2);
    assert_int_equal(count_ops(f, OP_RETAINED_END), 2);
}

static void a_number_drawn_for_nothing_counts_as_arrived(void **state)
{
    struct fixture *f = *state;
    f->counter = 1;
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_RETAIN, .from = 0});
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_RETAINED_END), 1);
}

static void a_full_ring_loses_nothing(void **state)
{
    struct fixture *f = *state;
    f->counter = 5;
    for (uint64_t i = 1; i <= 5; i++)
        retain(f, 0, i, (const char *[]){"a/1", "a/2", "a/3", "a/4", "a/5"}[i - 1], "x");
    f->is_full = true;
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 0);
    f->is_full = false;
    work(f);
    assert_int_equal(count_ops(f, OP_ROUTE_REPLY), 1);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 5);
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
}

static void the_tree_has_a_bound(void **state)
{
    struct fixture *f = *state;
    char filter[65536];
    memset(filter, '/', 65530); /* 65,531 empty levels */
    memcpy(filter + 65530, "/+", 3);
    subscribe(f, filter);
    assert_int_equal(f->ops[0].request->filters[0].reason, 1);
    take_ops(f);
    subscribe(f, "one/more");
    assert_int_equal(f->ops[0].request->filters[0].reason, 0x97);
    assert_true(f->ops[0].request->filters[0].is_new); /* the session does not have it */
    assert_int_equal(f->ops[1].type, OP_RETAINED_END);
    take_ops(f);
    subscribe(f, filter);
    assert_int_equal(f->ops[0].request->filters[0].reason, 0x97);
    assert_false(f->ops[0].request->filters[0].is_new); /* what was there stays */
}

/* Returns the reason of the answer. */
static uint8_t unsubscribe(struct fixture *f, const char *filter)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    request->kind = ROUTE_UNSUBSCRIBE;
    request->session = (struct session_ref){.number = 3, .shard = 1};
    request->filters[0].size = (uint32_t)size;
    memcpy(request->text, filter, size);
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
    assert_int_equal(f->ops[f->op_count - 1].type, OP_ROUTE_REPLY);
    return f->ops[f->op_count - 1].request->filters[0].reason;
}

static void unsubscribe_says_what_was_there(void **state)
{
    struct fixture *f = *state;
    subscribe(f, "a/#");
    assert_int_equal(unsubscribe(f, "a/#"), 0);
    assert_int_equal(unsubscribe(f, "a/#"), 0x11);
}

/* [MQTT-3.10.4-2] */
static void behind_the_answer_to_unsubscribe_no_value_comes(void **state)
{
    struct fixture *f = *state;
    f->counter = 9;
    for (uint64_t i = 1; i <= 8; i++)
        retain(f, 0, i, (const char *[]){"a/1", "a/2", "a/3", "a/4", "a/5", "b/1", "b/2", "b/3"}[i - 1], "x");
    take_ops(f);
    subscribe_only(f, "b/#");
    subscribe_only(f, "a/#");
    route_actor_work(f->actor, 1000); /* a slice of each */
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 4);
    assert_int_equal(unsubscribe(f, "a/#"), 0);
    take_ops(f);
    work(f);
    retain(f, 0, 9, "a/6", "x"); /* by a shard that may not have known of the unsubscription either */
    pass(f, 0, 1);
    pass(f, 1, 1);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 1); /* the third of the other filter */
    assert_int_equal(count_ops(f, OP_RETAINED_END), 2);
}

/* ---- values on disk ---- */

static struct msg *new_msg(const char *topic, uint64_t number, uint64_t sequence)
{
    struct msg *msg = msg_new(&(struct msg_source){.topic = span_of_string(topic),
                                                   .payload = span_of_string("x"),
                                                   .qos = 1,
                                                   .retain = true,
                                                   .receive_wall_ns = 1,
                                                   .expiry_wall_ns = MSG_NO_EXPIRY});
    msg->retained_number = number;
    msg->sequence = sequence;
    return msg;
}

/* A retained PUBLISH whose record is durable, at this sequence. */
static void retain_logged(struct fixture *f, actor_id from, uint64_t number, const char *topic, uint64_t sequence)
{
    struct op op = {.type = OP_ROUTE_RETAIN, .from = from, .retain = {.msg = new_msg(topic, number, sequence), .hold = 1}};
    route_actor_on_op(f->actor, &op);
    work(f);
}

static void checkpoint(struct fixture *f, uint64_t sequence)
{
    route_actor_on_op(f->actor, &(struct op){.type = OP_STORE_CHECKPOINT, .from = ACTOR_STORE, .checkpoint = {sequence}});
    work(f);
}

/* `count` values a/000, a/001, ..., on disk: numbers from 1, sequence = 100 + number. */
static void restore(struct fixture *f, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        char topic[8];
        snprintf(topic, sizeof topic, "a/%03u", (unsigned)i % 1000);
        assert_int_equal(route_actor_restore_retained(f->actor, span_of_string(topic), i + 1, 101 + i, 100, MSG_NO_EXPIRY), ERR_OK);
    }
}

/* The oldest request to the reader that was not answered; taken out of the ops. */
static struct store_read *take_read(struct fixture *f)
{
    for (size_t i = 0; i < f->op_count; i++)
        if (f->ops[i].type == OP_STORE_READ) {
            struct store_read *read = f->ops[i].read;
            assert_int_equal(f->to[i], ACTOR_READER);
            assert_int_equal(read->kind, STORE_READ_BODIES);
            f->op_count--;
            memmove(f->ops + i, f->ops + i + 1, (f->op_count - i) * sizeof f->ops[0]);
            memmove(f->to + i, f->to + i + 1, (f->op_count - i) * sizeof f->to[0]);
            return read;
        }
    fail_msg("nothing was asked of the reader");
    return NULL;
}

static void found(struct store_read *read, uint32_t index, const char *topic, uint64_t number)
{
    read->items[index].state = STORE_ITEM_FOUND;
    read->items[index].msg = new_msg(topic, number, read->items[index].sequence);
}

/* As restore() made them. */
static void found_all(struct store_read *read)
{
    for (uint32_t i = 0; i < read->count; i++) {
        char topic[8];
        uint64_t number = read->items[i].sequence - 100;
        snprintf(topic, sizeof topic, "a/%03u", (unsigned)(number - 1) % 1000);
        found(read, i, topic, number);
    }
}

static void answer(struct fixture *f, struct store_read *read)
{
    route_actor_on_op(f->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
    work(f);
}

/* The topics of the values sent, in order, one letter or digit each: the last of the topic. */
static const char *sent(const struct fixture *f)
{
    static char topics[OPS_MAX + 1];
    size_t count = 0;
    for (size_t i = 0; i < f->op_count; i++)
        if (f->ops[i].type == OP_RETAINED_VALUE) {
            struct span topic = msg_topic(f->ops[i].retained.msg);
            topics[count++] = (char)topic.data[topic.size - 1];
        }
    topics[count] = '\0';
    return topics;
}

static void values_on_disk_are_read_and_sent_in_order(void **state)
{
    struct fixture *f = *state;
    f->counter = 4;
    retain_logged(f, 0, 1, "a/1", 0); /* not durable: stays in memory */
    retain_logged(f, 0, 2, "a/2", 102);
    retain_logged(f, 1, 3, "a/3", 103);
    retain_logged(f, 1, 4, "a/4", 104);
    checkpoint(f, 104);
    take_ops(f);
    subscribe(f, "a/#");
    assert_string_equal(sent(f), "1");
    struct store_read *read = take_read(f);
    assert_int_equal(read->count, 2);
    assert_int_equal(read->items[0].sequence, 102);
    assert_int_equal(read->items[1].sequence, 103);
    assert_int_equal(count_ops(f, OP_STORE_READ), 0); /* once */
    found(read, 0, "a/2", 2);
    found(read, 1, "a/3", 3);
    answer(f, read);
    assert_string_equal(sent(f), "1234");
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(counter_get(&route_actor_stats(f->actor)->retained_read), 2);
    assert_int_equal(route_actor_stats(f->actor)->retained_window.messages, 2);
}

static void an_expired_value_is_removed_from_the_store(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a/1"), 1, 11, 10, 1500), 0);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a/2"), 2, 12, 10, 2500), 0);
    for (int64_t now = 1000; now < (int64_t)1 << 32; now *= 2)
        route_actor_work(f->actor, now);
    size_t found = 0;
    for (size_t i = 0; i < f->op_count; i++) {
        const struct op *op = &f->ops[i];
        if (op->type != OP_STORE_EXPIRED)
            continue;
        assert_int_equal(f->ops[i].expired->number, ++found);
        assert_true(
            span_equal(span_of(op->expired->topic, op->expired->topic_size), found == 1 ? SPAN_LITERAL("a/1") : SPAN_LITERAL("a/2")));
    }
    assert_int_equal(found, 2);
    assert_int_equal(counter_get(&route_actor_stats(f->actor)->retained_expired), 2);
}

static void without_a_store_all_stays_in_memory(void **state)
{
    struct fixture *f = *state;
    f->counter = 1;
    retain_logged(f, 0, 1, "a/1", 101);
    checkpoint(f, 1000);
    subscribe(f, "a/#");
    assert_string_equal(sent(f), "1");
    assert_int_equal(count_ops(f, OP_STORE_READ), 0);
}

static void what_was_left_unread_is_asked_for_again(void **state)
{
    struct fixture *f = *state;
    restore(f, 5);
    subscribe(f, "a/#");
    struct store_read *read = take_read(f);
    assert_int_equal(read->count, 5);
    found(read, 0, "a/000", 1);
    read->items[1].state = STORE_ITEM_GONE;
    found(read, 2, "a/002", 3);
    answer(f, read);
    assert_string_equal(sent(f), "02");
    read = take_read(f);
    assert_int_equal(read->count, 2);
    assert_int_equal(read->items[0].sequence, 104);
    found(read, 0, "a/003", 4);
    read->items[1].state = STORE_ITEM_CORRUPT;
    answer(f, read);
    assert_string_equal(sent(f), "023");
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
    struct route_stats *stats = route_actor_stats(f->actor);
    assert_int_equal(counter_get(&stats->retained_read), 5);
    assert_int_equal(counter_get(&stats->retained_read_gone), 1);
    assert_int_equal(counter_get(&stats->retained_read_corrupt), 1);
}

/* Replaced by shards that found the subscription in the tree, or removed, or expired: what is there now it gets otherwise, or not at all.
 */
static void what_changed_while_it_was_read_is_left_out(void **state)
{
    struct fixture *f = *state;
    restore(f, 4);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a/9"), 9, 109, 100, 1500), ERR_OK);
    subscribe(f, "a/#");
    struct store_read *read = take_read(f);
    assert_int_equal(read->count, 5);
    retain(f, 0, 10, "a/000", "y");
    retain(f, 0, 11, "a/001", "");
    read->items[0].state = STORE_ITEM_GONE;
    found(read, 1, "a/001", 2);
    found(read, 2, "a/002", 3);
    found(read, 3, "a/003", 4);
    found(read, 4, "a/9", 9);
    route_actor_on_op(f->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
    for (int i = 0; i < 5; i++)
        route_actor_work(f->actor, 1500);
    assert_string_equal(sent(f), "23");
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(counter_get(&route_actor_stats(f->actor)->retained_stale), 2);
}

static void a_wall_clock_that_is_set_back_stops_nothing(void **state)
{
    struct fixture *f = *state;
    const int64_t times[] = {1000, INT64_C(1000000000000000), 2000};
    f->counter = 1;
    retain(f, 0, 1, "a/t", "");
    for (uint32_t round = 1; round <= 3; round++) { /* the removal is asked about as long as it is remembered */
        route_actor_work(f->actor, times[round - 1]);
        assert_int_equal(count_ops(f, OP_ROUTE_ASK), round * SHARDS);
        for (actor_id shard = 0; shard < SHARDS; shard++)
            route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_PASS, .from = shard, .count = round, .retain = {.hold = 1}});
        route_actor_work(f->actor, times[round - 1] + 1);
        assert_int_equal(count_ops(f, OP_ROUTE_ASK), round * SHARDS); /* once a second */
    }
}

/* Shard 1 drew 6, asked the tree before the subscription was there, and logged; the store has it and gave 5 up; here it comes last. */
static void a_newer_value_that_only_the_store_has_comes_once(void **state)
{
    struct fixture *f = *state;
    f->counter = 6;
    retain_logged(f, 0, 5, "a/t", 20);
    checkpoint(f, 21);
    take_ops(f);
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_ROUTE_ASK), SHARDS);
    struct store_read *read = take_read(f);
    read->items[0].state = STORE_ITEM_GONE;
    answer(f, read);
    assert_int_equal(count_ops(f, OP_STORE_READ), 0);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE) + count_ops(f, OP_RETAINED_END), 0);
    pass(f, 0, 1);
    retain_logged(f, 1, 6, "a/t", 19);
    pass(f, 1, 1);
    assert_string_equal(sent(f), "t");
    assert_int_equal(f->ops[f->op_count - 2].retained.msg->retained_number, 6);
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
    checkpoint(f, 22);
    subscribe(f, "a/#");
    read = take_read(f);
    assert_int_equal(read->items[0].sequence, 19);
    read_drop(read);
}

static void no_more_is_read_than_the_client_takes(void **state)
{
    struct fixture *f = *state;
    restore(f, 40);
    subscribe(f, "a/#");
    struct store_read *read = take_read(f);
    assert_int_equal(read->count, ROUTE_RETAINED_WINDOW);
    found_all(read);
    answer(f, read);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), ROUTE_RETAINED_WINDOW);
    assert_int_equal(count_ops(f, OP_STORE_READ), 0);
    struct op more = {.type = OP_RETAINED_MORE, .from = 1, .count = 8, .retained = {.request_id = 7, .session = {.number = 3, .shard = 1}}};
    for (uint32_t left = 40 - ROUTE_RETAINED_WINDOW; left > 0; left -= 8) {
        route_actor_on_op(f->actor, &more);
        work(f);
        read = take_read(f);
        assert_int_equal(read->count, 8);
        found_all(read);
        answer(f, read);
    }
    route_actor_on_op(f->actor, &more);
    work(f);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 40);
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
}

/* More scans than may read at a time: the others wait, publishers and unsubscribers do not, and all come to their end. */
static void scans_wait_for_the_reader_and_nobody_for_them(void **state)
{
    struct fixture *f = *state;
    restore(f, 3);
    for (int i = 0; i < 40; i++)
        subscribe_only(f, "a/#");
    assert_int_equal(route_actor_work(f->actor, 1000), 0);
    work(f);
    assert_int_equal(count_ops(f, OP_STORE_READ), ROUTE_READS_MAX);
    assert_int_equal(route_actor_stats(f->actor)->retained_reads.messages, ROUTE_READS_MAX);
    assert_true(route_actor_work(f->actor, 1000) > 1000000); /* nothing to do before an answer comes */
    retain(f, 0, 10, "b", "x");
    assert_int_equal(f->ops[f->op_count - 1].type, OP_ROUTE_RETAINED);
    assert_int_equal(unsubscribe(f, "b/#"), 0x11);
    for (int i = 0; i < 40; i++) {
        struct store_read *read = take_read(f);
        found_all(read);
        answer(f, read);
        assert_int_equal(count_ops(f, OP_RETAINED_END), i + 1);
    }
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 120);
    assert_int_equal(route_actor_stats(f->actor)->retained_reads.messages, 0);
}

/* All that the actor may have under way. */
static void answer_all_reads(struct fixture *f)
{
    for (int i = 0; i < ROUTE_READS_MAX; i++) {
        struct store_read *read = take_read(f);
        found_all(read);
        answer(f, read);
    }
}

/* Sessions that end while their scans wait give back what was read, and the right to read. */
static void a_session_that_ends_leaves_its_answer_behind(void **state)
{
    struct fixture *f = *state;
    restore(f, 3);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ROUTE_READS_MAX; i++)
            subscribe_only(f, "a/#");
        work(f);
        assert_int_equal(count_ops(f, OP_STORE_READ), ROUTE_READS_MAX);
        struct route_request *request = route_request_new(0, 0);
        request->kind = ROUTE_FORGET_SESSION;
        request->session = (struct session_ref){.number = 3, .shard = 1};
        route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
        answer_all_reads(f);
        assert_int_equal(count_ops(f, OP_RETAINED_VALUE) + count_ops(f, OP_RETAINED_END), 0);
        take_ops(f);
    }
}

/* What was asked for a filter that is unsubscribed meanwhile gives back its slot, and the scan of the next filter goes on. */
static void what_is_read_for_an_unsubscribed_filter_is_left_out(void **state)
{
    struct fixture *f = *state;
    restore(f, 3);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ROUTE_READS_MAX; i++)
            subscribe_only(f, "a/#");
        work(f);
        assert_int_equal(count_ops(f, OP_STORE_READ), ROUTE_READS_MAX);
        assert_int_equal(unsubscribe(f, "a/#"), 0);
        work(f);
        assert_int_equal(count_ops(f, OP_RETAINED_END), ROUTE_READS_MAX);
        answer_all_reads(f);
        assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 0);
        assert_int_equal(route_actor_stats(f->actor)->scans.messages, 0);
        take_ops(f);
    }
}

static void full_rings_lose_no_read_and_no_value(void **state)
{
    struct fixture *f = *state;
    restore(f, 5);
    f->is_full = true;
    subscribe(f, "a/#");
    f->is_full = false;
    work(f);
    struct store_read *read = take_read(f);
    found_all(read);
    f->is_full = true;
    answer(f, read);
    assert_int_equal(count_ops(f, OP_RETAINED_VALUE), 0);
    retain(f, 0, 10, "a/003", "y"); /* by a shard that knows of the subscription */
    f->is_full = false;
    work(f);
    assert_string_equal(sent(f), "0124");
    assert_int_equal(count_ops(f, OP_ROUTE_RETAINED), 1);
    assert_int_equal(f->ops[f->op_count - 1].type, OP_RETAINED_END);
}

static void equal_scans_read_once(void **state)
{
    struct fixture *f = *state;
    restore(f, 5);
    subscribe(f, "a/#");
    struct store_read *read = take_read(f);
    found_all(read);
    answer(f, read);
    take_ops(f);
    subscribe(f, "a/#");
    assert_int_equal(count_ops(f, OP_STORE_READ), 0);
    assert_string_equal(sent(f), "01234");
    assert_true(gauge_get(&route_actor_stats(f->actor)->retained_cached_bytes) == 500);
    take_ops(f);
    retain_logged(f, 0, 10, "a/000", 200);
    checkpoint(f, 201);
    subscribe(f, "a/000");
    assert_int_equal(count_ops(f, OP_STORE_READ), 1); /* what was kept went with the value */
}

static void what_is_restored_is_checked_and_ordered(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a/1"), 7, 70, 100, MSG_NO_EXPIRY), ERR_OK);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a/1"), 6, 71, 100, MSG_NO_EXPIRY), ERR_OK);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL(""), 8, 80, 100, MSG_NO_EXPIRY), ERR_INVALID);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a"), 0, 80, 100, MSG_NO_EXPIRY), ERR_INVALID);
    assert_int_equal(route_actor_restore_retained(f->actor, SPAN_LITERAL("a"), 8, 0, 100, MSG_NO_EXPIRY), ERR_INVALID);
    subscribe(f, "#");
    struct store_read *read = take_read(f);
    assert_int_equal(read->count, 1);
    assert_int_equal(read->items[0].sequence, 70);
    read_drop(read);
}

/* ---- two shards, a log, a store and subscribers in any order of events ---- */

#define WORLD_TOPICS 12
#define WORLD_SUBSCRIBERS 60
#define WORLD_PUBLISHES 400
#define WORLD_OPS 1024

/* Each shard's ops are taken, and its records become durable, in its own order; else anything may be late. */
struct world_shard {
    struct op to_route[WORLD_OPS];
    size_t sent, taken;
    struct msg *unlogged[WORLD_OPS]; /* shared (ref) */
    size_t appended, durable;
};

struct world_subscriber {
    bool is_subscribed, has_ended;
    uint32_t owed;               /* values taken, for which no more were asked yet */
    uint64_t seen[WORLD_TOPICS]; /* greatest number that reached it, by the tree or as a retained value */
};

struct world {
    struct fixture *f;
    struct check_random random;
    struct world_shard shards[SHARDS];
    struct world_subscriber subscribers[WORLD_SUBSCRIBERS];
    uint64_t last_number[WORLD_TOPICS]; /* drawn */
    bool last_is_removal[WORLD_TOPICS];
    struct {
        uint64_t number;
        size_t topic;
        bool is_removal;
    } records[WORLD_PUBLISHES + 1]; /* by sequence, from 1 */
    uint64_t durable_end;           /* exclusive */
    uint64_t committed;             /* what the reader sees, exclusive; OP_STORE_CHECKPOINT says less for a while */
    struct store_read *reads[WORLD_SUBSCRIBERS];
    size_t read_count;
    unsigned filters[WORLD_SUBSCRIBERS]; /* 0: "#", 1: "even/#", 2: "odd/#" */
};

static const char *const world_filters[] = {"#", "even/#", "odd/#"};

static void world_topic(char text[8], size_t topic) { snprintf(text, 8, "%s/%c", topic % 2 ? "odd" : "even", (char)('a' + topic)); }
static bool world_matches(unsigned filter, size_t topic) { return filter == 0 || (filter == 1) == (topic % 2 == 0); }

static void world_see(struct world *world, size_t subscriber, size_t topic, uint64_t number)
{
    uint64_t *seen = &world->subscribers[subscriber].seen[topic];
    if (number > *seen) /* the session's home leaves out what is older than what it had */
        *seen = number;
}

/* A shard draws a number, asks the tree, posts and logs, in one step. */
static void world_publish(struct world *world)
{
    size_t from = (size_t)check_random_below(&world->random, SHARDS), topic = (size_t)check_random_below(&world->random, WORLD_TOPICS);
    struct world_shard *shard = &world->shards[from];
    bool is_removal = check_random_chance(&world->random, 1, 4);
    uint64_t number = ++world->f->counter;
    char text[8];
    world_topic(text, topic);
    for (size_t i = 0; i < WORLD_SUBSCRIBERS; i++) {
        struct subscriber found;
        if (world_matches(world->filters[i], topic) &&
            topic_tree_get(world->f->tree, &found, span_of_string(world_filters[world->filters[i]]), i + 1))
            world_see(world, i, topic, number);
    }
    struct msg *msg = msg_new(&(struct msg_source){.topic = span_of_string(text),
                                                   .payload = span_of_string(is_removal ? "" : "x"),
                                                   .retain = true,
                                                   .receive_wall_ns = 1,
                                                   .expiry_wall_ns = MSG_NO_EXPIRY});
    msg->retained_number = number;
    world->last_number[topic] = number;
    world->last_is_removal[topic] = is_removal;
    shard->unlogged[shard->appended++] = msg_ref(msg);
    shard->to_route[shard->sent++] = (struct op){.type = OP_ROUTE_RETAIN, .from = (actor_id)from, .retain = {.msg = msg, .hold = number}};
}

static void world_log(struct world *world)
{
    struct world_shard *shard = &world->shards[check_random_below(&world->random, SHARDS)];
    if (shard->durable == shard->appended)
        return;
    struct msg *msg = shard->unlogged[shard->durable++];
    uint64_t sequence = world->durable_end++;
    world->records[sequence].number = msg->retained_number;
    world->records[sequence].topic = (size_t)(msg_topic(msg).data[msg->topic_size - 1] - 'a');
    world->records[sequence].is_removal = msg->payload_size == 0;
    msg->sequence = sequence;
    msg_unref(msg);
}

/* The sequence of the value that the store has for a topic; 0 = none. */
static uint64_t world_stored(const struct world *world, size_t topic)
{
    uint64_t best = 0;
    for (uint64_t i = 1; i < world->committed; i++)
        if (world->records[i].topic == topic && (best == 0 || world->records[i].number > world->records[best].number))
            best = i;
    return best != 0 && !world->records[best].is_removal ? best : 0;
}

static void world_read(struct world *world)
{
    if (world->read_count == 0)
        return;
    size_t index = (size_t)check_random_below(&world->random, world->read_count);
    struct store_read *read = world->reads[index];
    world->reads[index] = world->reads[--world->read_count];
    uint32_t limit = 1 + (uint32_t)check_random_below(&world->random, 6);
    for (uint32_t i = 0; i < read->count && i < limit; i++) {
        uint64_t sequence = read->items[i].sequence;
        assert_in_range(sequence, 1, world->committed - 1);
        char text[8];
        world_topic(text, world->records[sequence].topic);
        if (world_stored(world, world->records[sequence].topic) == sequence)
            found(read, i, text, world->records[sequence].number);
        else
            read->items[i].state = STORE_ITEM_GONE;
    }
    route_actor_on_op(world->f->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
}

static void world_subscribe(struct world *world)
{
    size_t index = (size_t)check_random_below(&world->random, WORLD_SUBSCRIBERS);
    struct world_subscriber *subscriber = &world->subscribers[index];
    if (subscriber->is_subscribed)
        return;
    subscriber->is_subscribed = true;
    const char *filter = world_filters[world->filters[index] = (unsigned)check_random_below(&world->random, 3)];
    struct route_request *request = route_request_new(1, strlen(filter));
    request->id = index;
    request->session = (struct session_ref){.number = index + 1, .shard = 1};
    request->filters[0] = (struct route_filter){.size = (uint32_t)strlen(filter), .qos = 1};
    memcpy(request->text, filter, strlen(filter));
    route_actor_on_op(world->f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
}

static void world_pace(struct world *world)
{
    size_t index = (size_t)check_random_below(&world->random, WORLD_SUBSCRIBERS);
    struct world_subscriber *subscriber = &world->subscribers[index];
    struct op more = {.type = OP_RETAINED_MORE,
                      .from = 1,
                      .count = subscriber->owed,
                      .retained = {.request_id = index, .session = {.number = index + 1, .shard = 1}}};
    if (subscriber->owed > 0)
        route_actor_on_op(world->f->actor, &more);
    subscriber->owed = 0;
}

/* What the actor posted arrives. */
static void world_take(struct world *world)
{
    struct fixture *f = world->f;
    for (size_t i = 0; i < f->op_count; i++) {
        const struct op *op = &f->ops[i];
        struct world_shard *shard = f->to[i] < SHARDS ? &world->shards[f->to[i]] : NULL;
        if (op->type == OP_ROUTE_ASK) { /* answered behind all it has sent */
            shard->to_route[shard->sent++] =
                (struct op){.type = OP_ROUTE_PASS, .from = f->to[i], .count = op->count, .retain = {.hold = f->counter + 1}};
        } else if (op->type == OP_STORE_READ) {
            world->reads[world->read_count++] = op->read;
        } else if (op->type == OP_RETAINED_VALUE) {
            const struct msg *msg = op->retained.msg;
            size_t index = (size_t)op->retained.request_id;
            assert_false(world->subscribers[index].has_ended);
            world->subscribers[index].owed++;
            world_see(world, index, (size_t)(msg_topic(msg).data[msg->topic_size - 1] - 'a'), msg->retained_number);
            drop(op);
        } else if (op->type == OP_RETAINED_END) {
            assert_false(world->subscribers[op->retained.request_id].has_ended);
            world->subscribers[op->retained.request_id].has_ended = true;
        } else {
            drop(op);
        }
    }
    f->op_count = 0;
}

static void world_step(struct world *world, bool may_publish)
{
    struct world_shard *shard = &world->shards[check_random_below(&world->random, SHARDS)];
    switch (check_random_below(&world->random, 9)) {
    case 0:
        if (may_publish && world->f->counter < WORLD_PUBLISHES)
            world_publish(world);
        break;
    case 1:
        if (shard->taken < shard->sent)
            route_actor_on_op(world->f->actor, &shard->to_route[shard->taken++]);
        break;
    case 2:
        world_log(world);
        break;
    case 3:
        world->committed += check_random_below(&world->random, world->durable_end - world->committed + 1);
        break;
    case 4:
        route_actor_on_op(world->f->actor,
                          &(struct op){.type = OP_STORE_CHECKPOINT, .from = ACTOR_STORE, .checkpoint = {world->committed}});
        break;
    case 5:
        world_read(world);
        break;
    case 6:
        if (check_random_chance(&world->random, 1, 4))
            world_subscribe(world);
        break;
    case 7:
        world_pace(world);
        break;
    default:
        world->f->is_full = check_random_chance(&world->random, 1, 4);
        route_actor_work(world->f->actor, 1000);
        break;
    }
    world_take(world);
}

/* Whatever the order of events: a subscription ends up with the last value of each topic, once all has arrived; and when the last was a
 * removal, it knows of that or the removal was on its way when it subscribed. */
static void every_subscription_knows_the_last_value(void **state)
{
    struct check_random seeds;
    check_random_init(&seeds, check_random_seed(1));
    for (int round = 0; round < 150; round++) {
        if (round % 2 == 0)
            setup_on_disk(state);
        else
            setup_with_cache(state);
        struct world *world = calloc(1, sizeof *world);
        *world = (struct world){.f = *state, .durable_end = 1, .committed = 1};
        check_random_init(&world->random, check_random_below(&seeds, UINT32_MAX));
        for (int step = 0; step < 4000; step++)
            world_step(world, true);
        size_t open = 1;
        for (int step = 0; open > 0; step++) {
            assert_true(step < 100000);
            world_step(world, false);
            open = world->read_count;
            for (size_t i = 0; i < SHARDS; i++)
                open += world->shards[i].sent - world->shards[i].taken + world->shards[i].appended - world->shards[i].durable;
            for (size_t i = 0; i < WORLD_SUBSCRIBERS; i++)
                open += world->subscribers[i].is_subscribed && !world->subscribers[i].has_ended;
        }
        for (size_t i = 0; i < WORLD_SUBSCRIBERS; i++)
            for (size_t topic = 0; topic < WORLD_TOPICS && world->subscribers[i].is_subscribed; topic++)
                if (world_matches(world->filters[i], topic) && !world->last_is_removal[topic] &&
                    world->subscribers[i].seen[topic] != world->last_number[topic])
                    fail_msg("round %d: subscriber %zu (%s) has number %lu of topic %zu, the last is %lu", round, i,
                             world_filters[world->filters[i]], (unsigned long)world->subscribers[i].seen[topic], topic,
                             (unsigned long)world->last_number[topic]);
        free(world);
        teardown(state);
    }
}

/* ---- the full bit ---- */

static void set_full(struct fixture *f, const char *filter, bool is_full)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    request->kind = ROUTE_SET_FULL;
    request->is_full = is_full;
    request->session = (struct session_ref){.number = 3, .shard = 1};
    request->filters[0].size = (uint32_t)size;
    memcpy(request->text, filter, size);
    size_t before = f->op_count;
    route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
    assert_int_equal(f->op_count, before); /* no reply */
}

static bool is_full(struct fixture *f, const char *filter)
{
    struct subscriber subscriber;
    assert_true(topic_tree_get(f->tree, &subscriber, span_of_string(filter), 3));
    assert_int_equal(subscriber.qos, 1);
    assert_int_equal(subscriber.shard, 1);
    return subscriber.options & SUBSCRIBER_FULL;
}

static void a_full_session_is_marked_in_the_tree(void **state)
{
    struct fixture *f = *state;
    subscribe(f, "a/#");
    subscribe(f, "b");
    assert_false(is_full(f, "a/#"));
    set_full(f, "a/#", true);
    assert_true(is_full(f, "a/#"));
    assert_false(is_full(f, "b"));
    subscribe(f, "a/#"); /* the same again: still full */
    assert_true(is_full(f, "a/#"));
    set_full(f, "a/#", false);
    assert_false(is_full(f, "a/#"));
    subscribe(f, "a/#");
    assert_false(is_full(f, "a/#"));
    struct subscriber subscriber;
    set_full(f, "c", true); /* not there, and stays so */
    assert_false(topic_tree_get(f->tree, &subscriber, SPAN_LITERAL("c"), 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_retained_ends_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(retained_values_come_before_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(many_scans_let_requests_in, setup, teardown),
        cmocka_unit_test_setup_teardown(a_value_on_its_way_reaches_the_subscription, setup, teardown),
        cmocka_unit_test_setup_teardown(behind_the_answer_nothing_is_given_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(an_older_round_does_not_count, setup, teardown),
        cmocka_unit_test_setup_teardown(a_number_drawn_for_nothing_counts_as_arrived, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_ring_loses_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(the_tree_has_a_bound, setup, teardown),
        cmocka_unit_test_setup_teardown(unsubscribe_says_what_was_there, setup, teardown),
        cmocka_unit_test_setup_teardown(behind_the_answer_to_unsubscribe_no_value_comes, setup, teardown),
        cmocka_unit_test_setup_teardown(an_expired_value_is_removed_from_the_store, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(values_on_disk_are_read_and_sent_in_order, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(without_a_store_all_stays_in_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_left_unread_is_asked_for_again, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(what_changed_while_it_was_read_is_left_out, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(a_newer_value_that_only_the_store_has_comes_once, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(no_more_is_read_than_the_client_takes, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(scans_wait_for_the_reader_and_nobody_for_them, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(a_session_that_ends_leaves_its_answer_behind, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(what_is_read_for_an_unsubscribed_filter_is_left_out, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(full_rings_lose_no_read_and_no_value, setup_on_disk, teardown),
        cmocka_unit_test_setup_teardown(equal_scans_read_once, setup_with_cache, teardown),
        cmocka_unit_test_setup_teardown(what_is_restored_is_checked_and_ordered, setup_on_disk, teardown),
        cmocka_unit_test(every_subscription_knows_the_last_value),
        cmocka_unit_test_setup_teardown(a_full_session_is_marked_in_the_tree, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wall_clock_that_is_set_back_stops_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
