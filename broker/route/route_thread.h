/* The thread of the route actor: drains its rings, works, sleeps.
 *
 * Owner of the topic tree and of the retained index while it runs. Stops when asked and its rings are empty. */
#ifndef TIDEGATE_BROKER_ROUTE_ROUTE_THREAD_H
#define TIDEGATE_BROKER_ROUTE_ROUTE_THREAD_H

#include "broker/actor/exchange.h"
#include "broker/route/route_actor.h"

struct route_thread;

/* tree and exchange borrowed for life; the rest as for route_actor_new(). Does not run yet: the checkpoint's retained values go to
 * route_thread_actor() first. steady_offset_ns: as shard_config has it. Returns 0 or ERR_NOMEM. Thread: main. */
enum err route_thread_new(struct route_thread **thread_out, struct exchange *exchange, struct topic_tree *tree,
                          _Atomic uint64_t *retained_counter, uint64_t hash_key, uint16_t shard_count, const struct route_limits *limits,
                          int64_t steady_offset_ns) must_check;
/* The actor, until the thread is started. Thread: main. */
struct route_actor *route_thread_actor(struct route_thread *thread);
/* From here on tree and actor are the thread's. Returns 0 or ERR_NOMEM. Thread: main. */
enum err route_thread_start(struct route_thread *thread) must_check;
/* After all shards have stopped: ends the thread. Others may still post to it, whom nobody answers any more. NULL is fine. */
void route_thread_stop(struct route_thread *thread);
/* After those have ended as well, or instead of a start. NULL is fine. */
void route_thread_free(struct route_thread *thread);
struct route_stats *route_thread_stats(struct route_thread *thread);

#endif
