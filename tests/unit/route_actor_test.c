/* Subscriptions, retained values in memory, rounds of questions, bounds, the full bit. Values on disk: route_disk_test.c; any order of
 * events: route_model_test.c. */
#include "broker/actor/msg.h"
#include "tests/lib/router.h"

static void nothing_retained_ends_at_once(void **state)
{
    struct router *router = *state;
    router_subscribe(router, "a/#");
    assert_int_equal(router->op_count, 2);
    assert_int_equal(router->ops[0].type, OP_ROUTE_REPLY);
    assert_int_equal(router->ops[0].request->filters[0].reason, 1);
    assert_true(router->ops[0].request->filters[0].is_new);
    assert_int_equal(router->ops[1].type, OP_RETAINED_END);
    assert_int_equal(router->to[1], 1);
}

static void retained_values_come_before_the_end(void **state)
{
    struct router *router = *state;
    router->counter = 3;
    router_retain(router, 0, 1, "a/1", "x");
    router_retain(router, 0, 2, "a/2", "x");
    router_retain(router, 0, 3, "b/1", "x");
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 2);
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
    assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), 0);
}

/* Shard 0 has drawn number 1 and asked the tree before the subscription was there; its value arrives after. */
/* However many scans wait: between two looks at the requests only so much of them is done, and all get their turn. */
static void many_scans_let_requests_in(void **state)
{
    struct router *router = *state;
    router->counter = 2;
    router_retain(router, 0, 1, "a/1", "x");
    router_retain(router, 0, 2, "a/2", "x");
    router_take_ops(router);
    size_t values = 0, ends = 0;
    for (int i = 0; i < 40; i++)
        router_subscribe_only(router, "a/#");
    router_take_ops(router);
    while (ends < 40) {
        assert_int_equal(route_actor_work(router->actor, 1000), 0); /* more to do, at once */
        assert_true(router_count_ops(router, OP_RETAINED_VALUE) <= 16 * 2);
        values += router_count_ops(router, OP_RETAINED_VALUE);
        ends += router_count_ops(router, OP_RETAINED_END);
        router_take_ops(router);
    }
    assert_int_equal(values, 80);
    assert_true(route_actor_work(router->actor, 1000) > 0);
}

static void a_value_on_its_way_reaches_the_subscription(void **state)
{
    struct router *router = *state;
    router->counter = 1;
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_ROUTE_REPLY), 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 0);
    assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), ROUTER_SHARDS);
    router_retain(router, 0, 1, "a/b", "x");
    router_retain(router, 0, 1, "c", "x");
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 1);
    router_pass(router, 0, 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 0);
    router_pass(router, 1, 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 1);
}

/* What a shard sends behind its answer has found the subscription in the tree: giving it again would double it. */
static void behind_the_answer_nothing_is_given_twice(void **state)
{
    struct router *router = *state;
    router->counter = 1;
    router_subscribe(router, "a/#");
    router_pass(router, 0, 1);
    router_retain(router, 0, 2, "a/b", "x");
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 0);
    router_retain(router, 1, 1, "a/c", "x");
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 1);
    router_pass(router, 1, 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 1);
}

/* A round that began before the subscription says nothing about it. */
static void an_older_round_does_not_count(void **state)
{
    struct router *router = *state;
    router->counter = 1;
    router_subscribe(router, "a/#");
    router_subscribe(router, "b/#");
    router_pass(router, 0, 1);
    router_pass(router, 1, 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 1);
    assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), 2 * ROUTER_SHARDS);
    router_pass(router, 0, 2);
    router_pass(router, 1, 2);
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 2);
}

static void a_number_drawn_for_nothing_counts_as_arrived(void **state)
{
    struct router *router = *state;
    router->counter = 1;
    route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_RETAIN, .from = 0});
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 1);
}

static void a_full_ring_loses_nothing(void **state)
{
    struct router *router = *state;
    router->counter = 5;
    for (uint64_t i = 1; i <= 5; i++)
        router_retain(router, 0, i, (const char *[]){"a/1", "a/2", "a/3", "a/4", "a/5"}[i - 1], "x");
    router->is_full = true;
    router_subscribe(router, "a/#");
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 0);
    router->is_full = false;
    router_work(router);
    assert_int_equal(router_count_ops(router, OP_ROUTE_REPLY), 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 5);
    assert_int_equal(router->ops[router->op_count - 1].type, OP_RETAINED_END);
}

static void the_tree_has_a_bound(void **state)
{
    struct router *router = *state;
    char filter[65536];
    memset(filter, '/', 65530); /* 65,531 empty levels */
    memcpy(filter + 65530, "/+", 3);
    router_subscribe(router, filter);
    assert_int_equal(router->ops[0].request->filters[0].reason, 1);
    router_take_ops(router);
    router_subscribe(router, "one/more");
    assert_int_equal(router->ops[0].request->filters[0].reason, 0x97);
    assert_true(router->ops[0].request->filters[0].is_new); /* the session does not have it */
    assert_int_equal(router->ops[1].type, OP_RETAINED_END);
    router_take_ops(router);
    router_subscribe(router, filter);
    assert_int_equal(router->ops[0].request->filters[0].reason, 0x97);
    assert_false(router->ops[0].request->filters[0].is_new); /* what was there stays */
}

static void unsubscribe_says_what_was_there(void **state)
{
    struct router *router = *state;
    router_subscribe(router, "a/#");
    assert_int_equal(router_unsubscribe(router, "a/#"), 0);
    assert_int_equal(router_unsubscribe(router, "a/#"), 0x11);
}

/* [MQTT-3.10.4-2] */
static void behind_the_answer_to_unsubscribe_no_value_comes(void **state)
{
    struct router *router = *state;
    router->counter = 9;
    for (uint64_t i = 1; i <= 8; i++)
        router_retain(router, 0, i, (const char *[]){"a/1", "a/2", "a/3", "a/4", "a/5", "b/1", "b/2", "b/3"}[i - 1], "x");
    router_take_ops(router);
    router_subscribe_only(router, "b/#");
    router_subscribe_only(router, "a/#");
    route_actor_work(router->actor, 1000); /* a slice of each */
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 4);
    assert_int_equal(router_unsubscribe(router, "a/#"), 0);
    router_take_ops(router);
    router_work(router);
    router_retain(router, 0, 9, "a/6", "x"); /* by a shard that may not have known of the unsubscription either */
    router_pass(router, 0, 1);
    router_pass(router, 1, 1);
    assert_int_equal(router_count_ops(router, OP_RETAINED_VALUE), 1); /* the third of the other filter */
    assert_int_equal(router_count_ops(router, OP_RETAINED_END), 2);
}

static void a_wall_clock_that_is_set_back_stops_nothing(void **state)
{
    struct router *router = *state;
    const int64_t times[] = {1000, INT64_C(1000000000000000), 2000};
    router->counter = 1;
    router_retain(router, 0, 1, "a/t", "");
    for (uint32_t round = 1; round <= 3; round++) { /* the removal is asked about as long as it is remembered */
        route_actor_work(router->actor, times[round - 1]);
        assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), round * ROUTER_SHARDS);
        for (actor_id shard = 0; shard < ROUTER_SHARDS; shard++)
            route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_PASS, .from = shard, .count = round, .retain = {.hold = 1}});
        route_actor_work(router->actor, times[round - 1] + 1);
        assert_int_equal(router_count_ops(router, OP_ROUTE_ASK), round * ROUTER_SHARDS); /* once a second */
    }
}

/* ---- the full bit ---- */

static void set_full(struct router *router, const char *filter, bool is_full)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    request->kind = ROUTE_SET_FULL;
    request->is_full = is_full;
    request->session = (struct session_ref){.number = 3, .shard = 1};
    request->filters[0].size = (uint32_t)size;
    memcpy(request->text, filter, size);
    size_t before = router->op_count;
    route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
    assert_int_equal(router->op_count, before); /* no reply */
}

static bool is_full(struct router *router, const char *filter)
{
    struct subscriber subscriber;
    assert_true(topic_tree_get(router->tree, &subscriber, span_of_string(filter), 3));
    assert_int_equal(subscriber.qos, 1);
    assert_int_equal(subscriber.shard, 1);
    return subscriber.options & SUBSCRIBER_FULL;
}

static void a_full_session_is_marked_in_the_tree(void **state)
{
    struct router *router = *state;
    router_subscribe(router, "a/#");
    router_subscribe(router, "b");
    assert_false(is_full(router, "a/#"));
    set_full(router, "a/#", true);
    assert_true(is_full(router, "a/#"));
    assert_false(is_full(router, "b"));
    router_subscribe(router, "a/#"); /* the same again: still full */
    assert_true(is_full(router, "a/#"));
    set_full(router, "a/#", false);
    assert_false(is_full(router, "a/#"));
    router_subscribe(router, "a/#");
    assert_false(is_full(router, "a/#"));
    struct subscriber subscriber;
    set_full(router, "c", true); /* not there, and stays so */
    assert_false(topic_tree_get(router->tree, &subscriber, SPAN_LITERAL("c"), 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_retained_ends_at_once, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(retained_values_come_before_the_end, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(many_scans_let_requests_in, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(a_value_on_its_way_reaches_the_subscription, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(behind_the_answer_nothing_is_given_twice, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(an_older_round_does_not_count, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(a_number_drawn_for_nothing_counts_as_arrived, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(a_full_ring_loses_nothing, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(the_tree_has_a_bound, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(unsubscribe_says_what_was_there, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(behind_the_answer_to_unsubscribe_no_value_comes, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(a_full_session_is_marked_in_the_tree, router_setup, router_teardown),
        cmocka_unit_test_setup_teardown(a_wall_clock_that_is_set_back_stops_nothing, router_setup, router_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
