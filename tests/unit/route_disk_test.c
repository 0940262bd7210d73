/* Retained values whose payload is in the store alone: read, given once, in order, and to nobody who does not want them any more. */
#include <stdio.h>

#include "broker/actor/msg.h"
#include "tests/lib/router.h"

/* `count` values a/000, a/001, ..., on disk: numbers from 1, sequence = 100 + number. */
static void restore(struct router *router, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        char topic[8];
        snprintf(topic, sizeof topic, "a/%03u", (unsigned)i % 1000);
        assert_int_equal(route_actor_restore_retained(router->actor, span_of_string(topic), i + 1, 101 + i, 100, MSG_NO_EXPIRY), ERR_OK);
    }
}

/* As restore() made them. */
static void found_all(struct store_read *read)
{
    for (uint32_t i = 0; i < read->count; i++) {
        char topic[8];
        uint64_t number = read->items[i].sequence - 100;
        snprintf(topic, sizeof topic, "a/%03u", (unsigned)(number - 1) % 1000);
        router_found(read, i, topic, number);
    }
}

/* The topics of the values sent, in order, one letter or digit each: the last of the topic. */
static const char *sent(const struct router *router)
{
    static char topics[ROUTER_OPS_MAX + 1];
    size_t count = 0;
    for (size_t i = 0; i < router->op_count; i++)
        if (router->ops[i].type == OP_RETAINED_VALUE) {
            struct span topic = msg_topic(router->ops[i].retained.msg);
            topics[count++] = (char)topic.data[topic.size - 1];
        }
    topics[count] = '\0';
    return topics;
}

static void values_on_disk_are_read_and_sent_in_order(void **state)
{
    struct router *router = *state;
    router->counter = 4;
    router_retain_logged(router, 0, 1, "a/1", 0); /* not durable: stays in memory */
    router_retain_logged(router, 0, 2, "a/2", 102);
    router_retain_logged(router, 1, 3, "a/3", 103);
    router_retain_logged(router, 1, 4, "a/4", 104);
    router_checkpoint(router, 104);
    router_take_ops(router);
    router_subscribe(router, "a/#");
    assert_string_equal(sent(router), "1");
    struct store_read *read = router_take_read(router);
    assert_int_equal(read->count, 2);
    assert_int_equal(read->items[0].sequence, 102);
    assert_int_equal(read->items[1].sequence, 103);
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 0); /* once */
    router_found(read, 0, "a/2", 2);
    router_found(read, 1, "a/3", 3);
    router_answer(router, read);
    assert_string_equal(sent(router), "1234");
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(counter_get(&route_actor_stats(router->actor)->retained_read), 2);
    assert_int_equal(route_actor_stats(router->actor)->retained_window.messages, 2);
}

static void an_expired_value_is_removed_from_the_store(void **state)
{
    struct router *router = *state;
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a/1"), 1, 11, 10, 1500), 0);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a/2"), 2, 12, 10, 2500), 0);
    for (int64_t now = 1000; now < (int64_t)1 << 32; now *= 2)
        route_actor_work(router->actor, now);
    size_t found = 0;
    for (size_t i = 0; i < router->op_count; i++) {
        const struct op *op = &router->ops[i];
        if (op->type != OP_STORE_EXPIRED)
            continue;
        assert_int_equal(router->ops[i].expired->number, ++found);
        assert_true(
            span_equal(span_of(op->expired->topic, op->expired->topic_size), found == 1 ? SPAN_LITERAL("a/1") : SPAN_LITERAL("a/2")));
    }
    assert_int_equal(found, 2);
    assert_int_equal(counter_get(&route_actor_stats(router->actor)->retained_expired), 2);
}

static void without_a_store_all_stays_in_memory(void **state)
{
    struct router *router = *state;
    router->counter = 1;
    router_retain_logged(router, 0, 1, "a/1", 101);
    router_checkpoint(router, 1000);
    router_subscribe(router, "a/#");
    assert_string_equal(sent(router), "1");
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 0);
}

static void what_was_left_unread_is_asked_for_again(void **state)
{
    struct router *router = *state;
    restore(router, 5);
    router_subscribe(router, "a/#");
    struct store_read *read = router_take_read(router);
    assert_int_equal(read->count, 5);
    router_found(read, 0, "a/000", 1);
    read->items[1].state = STORE_ITEM_GONE;
    router_found(read, 2, "a/002", 3);
    router_answer(router, read);
    assert_string_equal(sent(router), "02");
    read = router_take_read(router);
    assert_int_equal(read->count, 2);
    assert_int_equal(read->items[0].sequence, 104);
    router_found(read, 0, "a/003", 4);
    read->items[1].state = STORE_ITEM_CORRUPT;
    router_answer(router, read);
    assert_string_equal(sent(router), "023");
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
    struct route_stats *stats = route_actor_stats(router->actor);
    assert_int_equal(counter_get(&stats->retained_read), 5);
    assert_int_equal(counter_get(&stats->retained_read_gone), 1);
    assert_int_equal(counter_get(&stats->retained_read_corrupt), 1);
}

/* Replaced by shards that found the subscription in the tree, or removed, or expired: what is there now it gets otherwise, or not at all.
 */
static void what_changed_while_it_was_read_is_left_out(void **state)
{
    struct router *router = *state;
    restore(router, 4);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a/9"), 9, 109, 100, 1500), ERR_OK);
    router_subscribe(router, "a/#");
    struct store_read *read = router_take_read(router);
    assert_int_equal(read->count, 5);
    router_retain(router, 0, 10, "a/000", "y");
    router_retain(router, 0, 11, "a/001", "");
    read->items[0].state = STORE_ITEM_GONE;
    router_found(read, 1, "a/001", 2);
    router_found(read, 2, "a/002", 3);
    router_found(read, 3, "a/003", 4);
    router_found(read, 4, "a/9", 9);
    route_actor_on_op(router->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
    for (int i = 0; i < 5; i++)
        route_actor_work(router->actor, 1500);
    assert_string_equal(sent(router), "23");
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(counter_get(&route_actor_stats(router->actor)->retained_stale), 2);
}

/* Shard 1 drew 6, asked the tree before the subscription was there, and logged; the store has it and gave 5 up; here it comes last. */
static void a_newer_value_that_only_the_store_has_comes_once(void **state)
{
    struct router *router = *state;
    router->counter = 6;
    router_retain_logged(router, 0, 5, "a/t", 20);
    router_checkpoint(router, 21);
    router_take_ops(router);
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), ROUTER_SHARDS);
    struct store_read *read = router_take_read(router);
    read->items[0].state = STORE_ITEM_GONE;
    router_answer(router, read);
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 0);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE) + router_count_ops(router, OP_RETAINED_END), 0);
    router_pass(router, 0, 1);
    router_retain_logged(router, 1, 6, "a/t", 19);
    router_pass(router, 1, 1);
    assert_string_equal(sent(router), "t");
    assert_int_equal(router->ops[router->op_count - 2].retained.msg->retained_number, 6);
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
    router_checkpoint(router, 22);
    router_subscribe(router, "a/#");
    read = router_take_read(router);
    assert_int_equal(read->items[0].sequence, 19);
    router_drop_read(read);
}

static void no_more_is_read_than_the_client_takes(void **state)
{
    struct router *router = *state;
    restore(router, 40);
    router_subscribe(router, "a/#");
    struct store_read *read = router_take_read(router);
    assert_int_equal(read->count, ROUTE_RETAINED_WINDOW);
    found_all(read);
    router_answer(router, read);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), ROUTE_RETAINED_WINDOW);
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 0);
    struct op more = {.type = OP_RETAINED_MORE, .from = 1, .count = 8, .retained = {.request_id = 7, .session = {.number = 3, .shard = 1}}};
    for (uint32_t left = 40 - ROUTE_RETAINED_WINDOW; left > 0; left -= 8) {
        route_actor_on_op(router->actor, &more);
        router_work(router);
        read = router_take_read(router);
        assert_int_equal(read->count, 8);
        found_all(read);
        router_answer(router, read);
    }
    route_actor_on_op(router->actor, &more);
    router_work(router);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 40);
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
}

/* More scans than may read at a time: the others wait, publishers and unsubscribers do not, and all come to their end. */
static void scans_wait_for_the_reader_and_nobody_for_them(void **state)
{
    struct router *router = *state;
    restore(router, 3);
    for (int i = 0; i < 40; i++)
        router_subscribe_only(router, "a/#");
    assert_int_equal(route_actor_work(router->actor, 1000), 0);
    router_work(router);
    assert_int_equal(router_count_ops(router, OP_STORE_READ), ROUTE_READS_MAX);
    assert_int_equal(route_actor_stats(router->actor)->retained_reads.messages, ROUTE_READS_MAX);
    assert_true(route_actor_work(router->actor, 1000) > 1000000); /* nothing to do before an answer comes */
    router_retain(router, 0, 10, "b", "x");
    assert_int_equal(router->ops[router->op_count - 1].type, OP_ROUTE_RETAINED);
    assert_int_equal(router_unsubscribe(router, "b/#"), 0x11);
    for (int i = 0; i < 40; i++) {
        struct store_read *read = router_take_read(router);
        found_all(read);
        router_answer(router, read);
        assert_int_equal(router_count_ops(router, OP_RETAINED_END), i + 1);
    }
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 120);
    assert_int_equal(route_actor_stats(router->actor)->retained_reads.messages, 0);
}

/* All that the actor may have under way. */
static void answer_all_reads(struct router *router)
{
    for (int i = 0; i < ROUTE_READS_MAX; i++) {
        struct store_read *read = router_take_read(router);
        found_all(read);
        router_answer(router, read);
    }
}

/* Sessions that end while their scans wait give back what was read, and the right to read. */
static void a_session_that_ends_leaves_its_answer_behind(void **state)
{
    struct router *router = *state;
    restore(router, 3);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ROUTE_READS_MAX; i++)
            router_subscribe_only(router, "a/#");
        router_work(router);
        assert_int_equal(router_count_ops(router, OP_STORE_READ), ROUTE_READS_MAX);
        struct route_request *request = route_request_new(0, 0);
        request->kind = ROUTE_FORGET_SESSION;
        request->session = (struct session_ref){.number = 3, .shard = 1};
        route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
        answer_all_reads(router);
        assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE) + router_count_ops(router, OP_RETAINED_END), 0);
        router_take_ops(router);
    }
}

/* What was asked for a filter that is unsubscribed meanwhile gives back its slot, and the scan of the next filter goes on. */
static void what_is_read_for_an_unsubscribed_filter_is_left_out(void **state)
{
    struct router *router = *state;
    restore(router, 3);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ROUTE_READS_MAX; i++)
            router_subscribe_only(router, "a/#");
        router_work(router);
        assert_int_equal(router_count_ops(router, OP_STORE_READ), ROUTE_READS_MAX);
        assert_int_equal(router_unsubscribe(router, "a/#"), 0);
        router_work(router);
        assert_int_equal(router_count_ops(router, OP_RETAINED_END), ROUTE_READS_MAX);
        answer_all_reads(router);
        assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 0);
        assert_int_equal(route_actor_stats(router->actor)->scans.messages, 0);
        router_take_ops(router);
    }
}

static void full_rings_lose_no_read_and_no_value(void **state)
{
    struct router *router = *state;
    restore(router, 5);
    router->is_full = true;
    router_subscribe(router, "a/#");
    router->is_full = false;
    router_work(router);
    struct store_read *read = router_take_read(router);
    found_all(read);
    router->is_full = true;
    router_answer(router, read);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 0);
    router_retain(router, 0, 10, "a/003", "y"); /* by a shard that knows of the subscription */
    router->is_full = false;
    router_work(router);
    assert_string_equal(sent(router), "0124");
    assert_int_equal(router_count_ops(router, OP_ROUTE_RETAINED), 1);
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
}

static void equal_scans_read_once(void **state)
{
    struct router *router = *state;
    restore(router, 5);
    router_subscribe(router, "a/#");
    struct store_read *read = router_take_read(router);
    found_all(read);
    router_answer(router, read);
    router_take_ops(router);
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 0);
    assert_string_equal(sent(router), "01234");
    assert_true(gauge_get(&route_actor_stats(router->actor)->retained_cached_bytes) == 500);
    router_take_ops(router);
    router_retain_logged(router, 0, 10, "a/000", 200);
    router_checkpoint(router, 201);
    router_subscribe(router, "a/000");
    assert_int_equal(router_count_ops(router, OP_STORE_READ), 1); /* what was kept went with the value */
}

static void what_is_restored_is_checked_and_ordered(void **state)
{
    struct router *router = *state;
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a/1"), 7, 70, 100, MSG_NO_EXPIRY), ERR_OK);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a/1"), 6, 71, 100, MSG_NO_EXPIRY), ERR_OK);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL(""), 8, 80, 100, MSG_NO_EXPIRY), ERR_INVALID);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a"), 0, 80, 100, MSG_NO_EXPIRY), ERR_INVALID);
    assert_int_equal(route_actor_restore_retained(router->actor, SPAN_LITERAL("a"), 8, 0, 100, MSG_NO_EXPIRY), ERR_INVALID);
    router_subscribe(router, "#");
    struct store_read *read = router_take_read(router);
    assert_int_equal(read->count, 1);
    assert_int_equal(read->items[0].sequence, 70);
    router_drop_read(read);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_expired_value_is_removed_from_the_store, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(values_on_disk_are_read_and_sent_in_order, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(without_a_store_all_stays_in_memory, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(what_was_left_unread_is_asked_for_again, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(what_changed_while_it_was_read_is_left_out, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(a_newer_value_that_only_the_store_has_comes_once, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(no_more_is_read_than_the_client_takes, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(scans_wait_for_the_reader_and_nobody_for_them, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(a_session_that_ends_leaves_its_answer_behind, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(what_is_read_for_an_unsubscribed_filter_is_left_out, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(full_rings_lose_no_read_and_no_value, router_setup_on_disk, router_teardown),
        cmocka_unit_test_setup_teardown(equal_scans_read_once, router_setup_with_cache, router_teardown),
        cmocka_unit_test_setup_teardown(what_is_restored_is_checked_and_ordered, router_setup_on_disk, router_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
