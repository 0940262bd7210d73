#include "broker/core/route_actor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/core/msg.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"

#define SHARDS 2
#define OPS_MAX 64

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

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct route_limits limits = {.retained_messages_max = 10, .retained_bytes_max = 1 << 20, .tree_bytes_max = 1 << 20, .scan_slice = 2};
    f->tree = topic_tree_new(1);
    f->actor = route_actor_new(f->tree, &f->counter, 1, SHARDS, &limits, &route_io, f);
    *state = f;
    return 0;
}

static void drop(const struct op *op)
{
    if (op->type == OP_ROUTE_REPLY)
        route_request_free(op->request);
    if (op->type == OP_RETAINED_VALUE)
        msg_unref(op->retained.msg);
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
    assert_false(f->ops[0].request->filters[0].is_new); /* whatever was there stays */
    assert_int_equal(f->ops[1].type, OP_RETAINED_END);
}

static void unsubscribe_says_what_was_there(void **state)
{
    struct fixture *f = *state;
    subscribe(f, "a/#");
    for (int i = 0; i < 2; i++) {
        struct route_request *request = route_request_new(1, 3);
        request->kind = ROUTE_UNSUBSCRIBE;
        request->session = (struct session_ref){.number = 3, .shard = 1};
        request->filters[0].size = 3;
        memcpy(request->text, "a/#", 3);
        route_actor_on_op(f->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
        assert_int_equal(f->ops[f->op_count - 1].request->filters[0].reason, i == 0 ? 0 : 0x11);
    }
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
