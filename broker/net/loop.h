/* One event loop, one thread, one shard: the edge between the pure core and the sockets.
 *
 * Each iteration of the uv loop is one turn of the shard:
 *
 *   first event of the iteration    shard_turn_begin, then the ops that other actors sent, then connections handed over
 *   each socket event               shard_on_bytes / shard_on_writable / shard_on_closed
 *   uv_check (once, at the end)     shard_turn_end, wake the actors posted to, arm the timer for shard_next_turn_ns
 *   uv_prepare (before polling)     announce sleep; do not block when something came in meanwhile
 *
 * Memory of an idle connection on this side is sizeof(struct connection) (about 250 B); the 64 KiB read buffer is the loop's.
 *
 * Threads: everything but loop_new, loop_start, loop_post_arrival, loop_ask, loop_wait and loop_free is called on the loop's own thread. */
#ifndef TIDEGATE_BROKER_NET_LOOP_H
#define TIDEGATE_BROKER_NET_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/shard.h"
#include "broker/net/loop_state.h"

struct loop_config {
    struct shard_config shard; /* index, limits, ... */
    struct topic_tree *tree;
    struct exchange *exchange;
    struct listener *listeners; /* the table, for the counts of their connections */
    uint32_t block_count_max;   /* log blocks of this shard; with shard.persistence */
    uint32_t block_alignment;
    struct bell *boss; /* rung when the order was carried out */
};

/* Returned; freed by loop_free. NULL and msg on failure. Thread: main. */
struct loop *loop_new(const struct loop_config *config, struct errmsg *msg);
enum err loop_start(struct loop *loop) must_check;

/* Hand a connection over. False: the ring is full, nothing was taken. Thread: the door's. */
bool loop_post_arrival(struct loop *loop, struct arrival *arrival);

/* Thread: main. loop_is_done: after LOOP_DRAIN or FORCE, no connection is left and everything logged is durable. */
void loop_ask(struct loop *loop, enum loop_order order);
bool loop_is_done(const struct loop *loop);
/* After LOOP_EXIT: wait for the thread to end. */
void loop_wait(struct loop *loop);
/* When the route, store and log threads have stopped too: takes what they answered last, then frees everything. */
void loop_free(struct loop *loop);

#endif
