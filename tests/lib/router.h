/* A route actor with its tree, and what it posts: what tests of its parts do with it. The clock stands at 1000 ns. */
#ifndef TIDEGATE_TESTS_LIB_ROUTER_H
#define TIDEGATE_TESTS_LIB_ROUTER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/durable/store_reader.h"
#include "broker/route/route_actor.h"
#include "broker/route/route_stats.h"
#include "broker/route/topic_tree.h"

#define ROUTER_SHARDS 2
#define ROUTER_OPS_MAX 512

struct router {
    struct topic_tree *tree;
    struct route_actor *actor;
    _Atomic uint64_t counter;
    struct op ops[ROUTER_OPS_MAX]; /* what the actor posted, oldest first */
    actor_id to[ROUTER_OPS_MAX];
    size_t op_count;
    bool is_full; /* the rings */
};

/* For cmocka: the state is a struct router; on disk: with a store behind it; with cache: of values that were read, too. */
int router_setup(void **state);
int router_setup_on_disk(void **state);
int router_setup_with_cache(void **state);
int router_teardown(void **state);

/* Ten turns of the actor: enough for all that one event causes. */
void router_work(struct router *router);
/* SUBSCRIBE of session 3 on shard 1, request 7; `only`: without router_work(). */
void router_subscribe_only(struct router *router, const char *filter);
void router_subscribe(struct router *router, const char *filter);
/* Returns the reason of the answer. */
uint8_t router_unsubscribe(struct router *router, const char *filter);
/* What a shard does for a retained PUBLISH, after it drew the number. */
void router_retain(struct router *router, actor_id from, uint64_t number, const char *topic, const char *payload);
/* The same when its record is durable, at this sequence. */
void router_retain_logged(struct router *router, actor_id from, uint64_t number, const char *topic, uint64_t sequence);
/* A shard's answer to a round of questions: all that it drew has arrived. */
void router_pass(struct router *router, actor_id from, uint32_t round);
/* The store has all records before `sequence`. */
void router_checkpoint(struct router *router, uint64_t sequence);

/* What was posted. */
size_t router_count_ops(const struct router *router, enum op_type type);
void router_take_ops(struct router *router);
/* Frees what an op owns. */
void router_drop(const struct op *op);

/* A retained message of payload "x". */
struct msg *router_new_msg(const char *topic, uint64_t number, uint64_t sequence);
/* The oldest request to the reader that was not answered; taken out of the ops. */
struct store_read *router_take_read(struct router *router);
void router_drop_read(struct store_read *read);
/* The reader's answer, an item at a time. */
void router_found(struct store_read *read, uint32_t index, const char *topic, uint64_t number);
void router_answer(struct router *router, struct store_read *read);

#endif
