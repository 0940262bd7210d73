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

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "broker/core/shard.h"
#include "broker/net/exchange.h"
#include "broker/net/listener.h"
#include "broker/net/transport.h"
#include "common/clock.h"
#include "common/histogram.h"
#include "common/list.h"
#include "common/log_block.h"
#include "common/metrics.h"
#include "common/ring.h"

#define LOOP_READ_SIZE 98304   /* bytes: what one TLS read may yield (64 KiB and one record), plain reads use 64 KiB of it */
#define LOOP_ARRIVALS_MAX 1024 /* connections under way from the door to one home */
#define LOOP_OPS_PER_TURN 4096 /* ops of other actors handled in one turn, so that sockets get their share */
#define LOOP_PEER_SIZE 64

/* A connection on its way from the door to its home. Heap; taken by the loop. */
struct arrival {
    struct transport transport;
    struct listener *listener;
    mono_ns accepted_ns;
    char peer[LOOP_PEER_SIZE];
    uint32_t size; /* bytes read so far: the whole CONNECT, and what came behind it */
    uint8_t bytes[];
};

enum loop_order {
    LOOP_RUN,
    LOOP_DRAIN, /* say goodbye, let what is held be released */
    LOOP_FORCE, /* close what is left at once */
    LOOP_EXIT,  /* all shards are drained: leave */
};

struct loop_stats {
    struct gauge connections, lingering;
    struct counter arrived, closed, bytes_received, bytes_sent, write_blocked, turns;
    struct histogram turn_wall_ns; /* one iteration's work by the clock: how late the next event may be seen */
    struct histogram turn_cpu_ns;  /* CPU of it; every 16th turn is measured */
    struct histogram lag_ns;       /* how late timers fire */
};

struct loop_config {
    struct shard_config shard; /* index, limits, ... */
    struct topic_tree *tree;
    struct exchange *exchange;
    struct listener *listeners; /* the table, for the counts of their connections */
    uint32_t block_count_max;   /* log blocks of this shard; with shard.persistence */
    uint32_t block_alignment;
    struct bell *boss; /* rung when the order was carried out */
};

/* Owned by one loop; others only through the functions marked so. */
struct loop {
    uint32_t magic;
    actor_id index;
    uv_loop_t uv;
    uv_async_t async;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t timer;
    struct shard *shard;
    struct exchange *exchange;
    struct listener *listeners;
    struct log_block_pool pool;
    bool has_pool;
    bool in_turn;
    bool must_turn;        /* work is left: poll without waiting */
    mono_ns turn_began_ns; /* */
    mono_ns timer_at_ns;   /* INT64_MAX: not armed */
    int64_t turn_cpu_began_ns;
    struct list_node connections, lingering, broken;
    size_t connection_count, lingering_count;
    struct ring arrivals; /* of struct arrival *, door -> loop */
    uint64_t random_words[64];
    unsigned random_left;
    struct bell *boss;
    _Atomic int order;       /* enum loop_order, set by main */
    _Atomic bool is_done;    /* drained */
    _Atomic int64_t seen_ns; /* start of the last turn, for /healthz */
    pthread_t thread;
    bool is_started;
    struct loop_stats stats;
    struct transport_scratch scratch;
    uint8_t read_buffer[LOOP_READ_SIZE];
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

/* For connection.c: make sure that a turn is under way. */
void loop_enter_turn(struct loop *loop);

#endif
