/* What an event loop keeps, and how a connection comes to it: for loop.c, and connection.c, which stands below it. */
#ifndef TIDEGATE_BROKER_NET_LOOP_STATE_H
#define TIDEGATE_BROKER_NET_LOOP_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "broker/actor/exchange.h"
#include "broker/core/shard.h"
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
    void (*enter_turn)(struct loop *loop); /* make sure that a turn is under way: what a connection does first at an event */
    _Atomic int order;                     /* enum loop_order, set by main */
    _Atomic bool is_done;                  /* drained */
    _Atomic int64_t seen_ns;               /* start of the last turn, for /healthz */
    pthread_t thread;
    bool is_started;
    struct loop_stats stats;
    struct transport_scratch scratch;
    uint8_t read_buffer[LOOP_READ_SIZE];
};

#endif
