/* The rings between the actors: who may post to whom, and who is woken.
 *
 * One ring in each direction between any two shards, and between each shard and the route, log, store and reader threads. Of the threads
 * only these talk to each other: route asks the reader and is answered, and the store tells route how far the checkpoint is. An actor posts
 * as it works and calls exchange_flush() when its turn ends: one wake for a batch, and none for a receiver that is awake. The last eighth
 * of a ring is a reserve for control traffic, so a flood of deliveries never keeps an acknowledgement or a log block from passing.
 *
 * Threads: post, flush, drain, sleep and awake of actor `a` from a's thread only; wake_outside and stats from any. */
#ifndef TIDEGATE_BROKER_ACTOR_EXCHANGE_H
#define TIDEGATE_BROKER_ACTOR_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "common/clock.h"
#include "common/err.h"
#include "common/metrics.h"

struct exchange;

/* capacity: ops of one ring, a power of two >= 16. NULL when memory is short. */
struct exchange *exchange_new(uint16_t shard_count, size_t capacity);
/* What is still in the rings is lost: all actors have stopped and drained. NULL is fine. */
void exchange_free(struct exchange *exchange);

/* How to wake an actor that sleeps; called from any thread. Before the threads start. */
void exchange_set_wake(struct exchange *exchange, actor_id actor, void (*wake)(void *arg), void *arg);

/* False: the ring (or what is not reserve of it) is full. op->from is set. */
bool exchange_post(struct exchange *exchange, actor_id from, actor_id to, const struct op *op, bool reserve);
/* Wake those who were posted to since the last flush and sleep. */
void exchange_flush(struct exchange *exchange, actor_id from);

/* Give up to `budget` waiting ops to on_op, round robin over the senders. Returns how many. */
typedef void (*exchange_on_op)(void *arg, const struct op *op);
size_t exchange_drain(struct exchange *exchange, actor_id self, size_t budget, mono_ns now, exchange_on_op on_op, void *arg);
bool exchange_has_ops(const struct exchange *exchange, actor_id self);

/* The sleep protocol of common/ring.h. */
void exchange_sleep(struct exchange *exchange, actor_id self);
void exchange_awake(struct exchange *exchange, actor_id self);
/* For producers with a ring of their own to this actor. */
void exchange_wake_outside(struct exchange *exchange, actor_id to);

/* The actor's incoming rings together; the age says since when they were not empty. */
struct queue_stats *exchange_stats(struct exchange *exchange, actor_id actor);
/* Bring all queue_stats up to date. Thread: the scraper's alone. */
void exchange_refresh_stats(struct exchange *exchange, mono_ns now);
/* Posts that found a ring full, from `from`. */
const struct counter *exchange_refused(const struct exchange *exchange, actor_id from);

#endif
