#include "tests/lib/router.h"

#include <stdlib.h>

#include "broker/actor/msg.h"
#include "common/check.h"

static bool on_post(void *io, actor_id to, const struct op *op)
{
    struct router *router = io;
    if (router->is_full)
        return false;
    CHECK(router->op_count < ROUTER_OPS_MAX);
    router->to[router->op_count] = to;
    router->ops[router->op_count++] = *op;
    return true;
}

static const struct route_io route_io = {.post = on_post};

static int setup_with(void **state, const struct route_limits *limits)
{
    struct router *router = calloc(1, sizeof *router);
    router->tree = topic_tree_new(1);
    router->actor = route_actor_new(router->tree, &router->counter, 1, ROUTER_SHARDS, limits, &route_io, router);
    *state = router;
    return 0;
}

int router_setup(void **state)
{
    struct route_limits limits = {.retained_messages_max = 10, .retained_bytes_max = 1 << 20, .tree_bytes_max = 1 << 20, .scan_slice = 2};
    return setup_with(state, &limits);
}

int router_setup_on_disk(void **state)
{
    struct route_limits limits = {.retained_messages_max = 1000,
                                  .retained_bytes_max = 1 << 20,
                                  .tree_bytes_max = 1 << 20,
                                  .scan_slice = 100,
                                  .retained_on_disk = true};
    return setup_with(state, &limits);
}

int router_setup_with_cache(void **state)
{
    struct route_limits limits = {.retained_messages_max = 1000,
                                  .retained_bytes_max = 1 << 20,
                                  .tree_bytes_max = 1 << 20,
                                  .scan_slice = 100,
                                  .retained_on_disk = true,
                                  .retained_cache_bytes_max = 4096};
    return setup_with(state, &limits);
}

void router_drop_read(struct store_read *read)
{
    for (uint32_t i = 0; i < read->count; i++)
        msg_unref(read->items[i].msg);
    free(read);
}

void router_drop(const struct op *op)
{
    if (op->type == OP_ROUTE_REPLY)
        route_request_free(op->request);
    if (op->type == OP_RETAINED_VALUE)
        msg_unref(op->retained.msg);
    if (op->type == OP_STORE_READ)
        router_drop_read(op->read);
    if (op->type == OP_STORE_EXPIRED)
        free(op->expired);
}

void router_take_ops(struct router *router)
{
    for (size_t i = 0; i < router->op_count; i++)
        router_drop(&router->ops[i]);
    router->op_count = 0;
}

int router_teardown(void **state)
{
    struct router *router = *state;
    router->is_full = false;
    router_take_ops(router);
    route_actor_free(router->actor);
    topic_tree_free(router->tree);
    free(router);
    return 0;
}

void router_work(struct router *router)
{
    for (int i = 0; i < 10; i++)
        route_actor_work(router->actor, 1000);
}

void router_subscribe_only(struct router *router, const char *filter)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    *request = (struct route_request){
        .id = 7, .session = {.number = 3, .shard = 1}, .filter_count = 1, .filters = request->filters, .text = request->text};
    request->filters[0] = (struct route_filter){.size = (uint32_t)size, .qos = 1};
    memcpy(request->text, filter, size);
    route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
}

void router_subscribe(struct router *router, const char *filter)
{
    router_subscribe_only(router, filter);
    router_work(router);
}

void router_retain(struct router *router, actor_id from, uint64_t number, const char *topic, const char *payload)
{
    struct msg *msg = msg_new(&(struct msg_source){
        .topic = span_of_string(topic), .payload = span_of_string(payload), .retain = true, .expiry_wall_ns = MSG_NO_EXPIRY});
    msg->retained_number = number;
    route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_RETAIN, .from = from, .retain = {.msg = msg, .hold = 1}});
    router_work(router);
}

void router_pass(struct router *router, actor_id from, uint32_t round)
{
    route_actor_on_op(router->actor,
                      &(struct op){.type = OP_ROUTE_PASS, .from = from, .count = round, .retain = {.hold = router->counter + 1}});
    router_work(router);
}

size_t router_count_ops(const struct router *router, enum op_type type)
{
    size_t count = 0;
    for (size_t i = 0; i < router->op_count; i++)
        count += router->ops[i].type == type;
    return count;
}

uint8_t router_unsubscribe(struct router *router, const char *filter)
{
    size_t size = strlen(filter);
    struct route_request *request = route_request_new(1, size);
    request->kind = ROUTE_UNSUBSCRIBE;
    request->session = (struct session_ref){.number = 3, .shard = 1};
    request->filters[0].size = (uint32_t)size;
    memcpy(request->text, filter, size);
    route_actor_on_op(router->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
    assert_int_equal(router->ops[router->op_count - 1].type, OP_ROUTE_REPLY);
    return router->ops[router->op_count - 1].request->filters[0].reason;
}

struct msg *router_new_msg(const char *topic, uint64_t number, uint64_t sequence)
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

void router_retain_logged(struct router *router, actor_id from, uint64_t number, const char *topic, uint64_t sequence)
{
    struct op op = {.type = OP_ROUTE_RETAIN, .from = from, .retain = {.msg = router_new_msg(topic, number, sequence), .hold = 1}};
    route_actor_on_op(router->actor, &op);
    router_work(router);
}

void router_checkpoint(struct router *router, uint64_t sequence)
{
    route_actor_on_op(router->actor, &(struct op){.type = OP_STORE_CHECKPOINT, .from = ACTOR_STORE, .checkpoint = {sequence}});
    router_work(router);
}

struct store_read *router_take_read(struct router *router)
{
    for (size_t i = 0; i < router->op_count; i++)
        if (router->ops[i].type == OP_STORE_READ) {
            struct store_read *read = router->ops[i].read;
            assert_int_equal(router->to[i], ACTOR_READER);
            assert_int_equal(read->kind, STORE_READ_BODIES);
            router->op_count--;
            memmove(router->ops + i, router->ops + i + 1, (router->op_count - i) * sizeof router->ops[0]);
            memmove(router->to + i, router->to + i + 1, (router->op_count - i) * sizeof router->to[0]);
            return read;
        }
    fail_msg("nothing was asked of the reader");
    return NULL;
}

void router_found(struct store_read *read, uint32_t index, const char *topic, uint64_t number)
{
    read->items[index].state = STORE_ITEM_FOUND;
    read->items[index].msg = router_new_msg(topic, number, read->items[index].sequence);
}

void router_answer(struct router *router, struct store_read *read)
{
    route_actor_on_op(router->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
    router_work(router);
}
