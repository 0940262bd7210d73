/* A model of two shards, a log, a store and subscribers, in any order of events: every subscription knows the last value in the end. */
#include <stdio.h>
#include <stdlib.h>

#include "broker/actor/msg.h"
#include "tests/lib/check_random.h"
#include "tests/lib/router.h"

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
    struct router *router;
    struct check_random random;
    struct world_shard shards[ROUTER_SHARDS];
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
    size_t from = (size_t)check_random_below(&world->random, ROUTER_SHARDS),
           topic = (size_t)check_random_below(&world->random, WORLD_TOPICS);
    struct world_shard *shard = &world->shards[from];
    bool is_removal = check_random_chance(&world->random, 1, 4);
    uint64_t number = ++world->router->counter;
    char text[8];
    world_topic(text, topic);
    for (size_t i = 0; i < WORLD_SUBSCRIBERS; i++) {
        struct subscriber found;
        if (world_matches(world->filters[i], topic) &&
            topic_tree_get(world->router->tree, &found, span_of_string(world_filters[world->filters[i]]), i + 1))
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
    struct world_shard *shard = &world->shards[check_random_below(&world->random, ROUTER_SHARDS)];
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
            router_found(read, i, text, world->records[sequence].number);
        else
            read->items[i].state = STORE_ITEM_GONE;
    }
    route_actor_on_op(world->router->actor, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = read});
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
    route_actor_on_op(world->router->actor, &(struct op){.type = OP_ROUTE_REQUEST, .from = 1, .request = request});
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
        route_actor_on_op(world->router->actor, &more);
    subscriber->owed = 0;
}

/* What the actor posted arrives. */
static void world_take(struct world *world)
{
    struct router *router = world->router;
    for (size_t i = 0; i < router->op_count; i++) {
        const struct op *op = &router->ops[i];
        struct world_shard *shard = router->to[i] < ROUTER_SHARDS ? &world->shards[router->to[i]] : NULL;
        if (op->type == OP_ROUTE_ASK) { /* answered behind all it has sent */
            shard->to_route[shard->sent++] =
                (struct op){.type = OP_ROUTE_PASS, .from = router->to[i], .count = op->count, .retain = {.hold = router->counter + 1}};
        } else if (op->type == OP_STORE_READ) {
            world->reads[world->read_count++] = op->read;
        } else if (op->type == OP_RETAINED_VALUE) {
            const struct msg *msg = op->retained.msg;
            size_t index = (size_t)op->retained.request_id;
            assert_false(world->subscribers[index].has_ended);
            world->subscribers[index].owed++;
            world_see(world, index, (size_t)(msg_topic(msg).data[msg->topic_size - 1] - 'a'), msg->retained_number);
            router_drop(op);
        } else if (op->type == OP_RETAINED_END) {
            assert_false(world->subscribers[op->retained.request_id].has_ended);
            world->subscribers[op->retained.request_id].has_ended = true;
        } else {
            router_drop(op);
        }
    }
    router->op_count = 0;
}

static void world_step(struct world *world, bool may_publish)
{
    struct world_shard *shard = &world->shards[check_random_below(&world->random, ROUTER_SHARDS)];
    switch (check_random_below(&world->random, 9)) {
    case 0:
        if (may_publish && world->router->counter < WORLD_PUBLISHES)
            world_publish(world);
        break;
    case 1:
        if (shard->taken < shard->sent)
            route_actor_on_op(world->router->actor, &shard->to_route[shard->taken++]);
        break;
    case 2:
        world_log(world);
        break;
    case 3:
        world->committed += check_random_below(&world->random, world->durable_end - world->committed + 1);
        break;
    case 4:
        route_actor_on_op(world->router->actor,
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
        world->router->is_full = check_random_chance(&world->random, 1, 4);
        route_actor_work(world->router->actor, 1000);
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
            router_setup_on_disk(state);
        else
            router_setup_with_cache(state);
        struct world *world = calloc(1, sizeof *world);
        *world = (struct world){.router = *state, .durable_end = 1, .committed = 1};
        check_random_init(&world->random, check_random_below(&seeds, UINT32_MAX));
        for (int step = 0; step < 4000; step++)
            world_step(world, true);
        size_t open = 1;
        for (int step = 0; open > 0; step++) {
            assert_true(step < 100000);
            world_step(world, false);
            open = world->read_count;
            for (size_t i = 0; i < ROUTER_SHARDS; i++)
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
        router_teardown(state);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_subscription_knows_the_last_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
