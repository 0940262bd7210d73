#include "broker/route/route_thread.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "broker/actor/bell.h"
#include "broker/route/route_stats.h"
#include "common/check.h"
#include "common/clock.h"

#define ROUTE_THREAD_BUDGET 1024 /* ops between two slices of scans */

struct route_thread {
    int64_t steady_offset_ns;
    struct exchange *exchange;
    struct route_actor *actor;
    struct bell bell;
    _Atomic bool stop_asked;
    bool is_running; /* main's */
    pthread_t thread;
};

static bool route_thread_post(void *io, actor_id to, const struct op *op)
{
    struct route_thread *thread = io;
    return exchange_post(thread->exchange, ACTOR_ROUTE, to, op, true);
}

static const struct route_io route_thread_io = {.post = route_thread_post};

static void route_thread_on_op(void *arg, const struct op *op)
{
    struct route_thread *thread = arg;
    route_actor_on_op(thread->actor, op);
}

static void *route_thread_main(void *arg)
{
    struct route_thread *thread = arg;
    pthread_setname_np(pthread_self(), "route");
    for (;;) {
        /* Before the look into the rings: what was posted before the stop is seen by it, however long the step takes. */
        bool is_stopping = atomic_load_explicit(&thread->stop_asked, memory_order_acquire);
        mono_ns now = clock_mono();
        route_actor_set_time(thread->actor, now);
        size_t drained = exchange_drain(thread->exchange, ACTOR_ROUTE, ROUTE_THREAD_BUDGET, now, route_thread_on_op, thread);
        int64_t wait = route_actor_work(thread->actor, clock_mono() + thread->steady_offset_ns);
        exchange_flush(thread->exchange, ACTOR_ROUTE);
        if (drained > 0)
            continue;
        if (is_stopping)
            return NULL;
        if (wait <= 0)
            continue;
        exchange_sleep(thread->exchange, ACTOR_ROUTE);
        if (!exchange_has_ops(thread->exchange, ACTOR_ROUTE))
            bell_wait(&thread->bell, wait);
        exchange_awake(thread->exchange, ACTOR_ROUTE);
    }
}

enum err route_thread_new(struct route_thread **thread_out, struct exchange *exchange, struct topic_tree *tree,
                          _Atomic uint64_t *retained_counter, uint64_t hash_key, uint16_t shard_count, const struct route_limits *limits,
                          int64_t steady_offset_ns)
{
    struct route_thread *thread = calloc(1, sizeof *thread);
    if (!thread)
        return ERR_NOMEM;
    thread->exchange = exchange;
    thread->steady_offset_ns = steady_offset_ns;
    enum err err = bell_init(&thread->bell);
    if (err != ERR_OK) {
        free(thread);
        return err;
    }
    thread->actor = route_actor_new(tree, retained_counter, hash_key, shard_count, limits, &route_thread_io, thread);
    if (!thread->actor) {
        bell_deinit(&thread->bell);
        free(thread);
        return ERR_NOMEM;
    }
    *thread_out = thread;
    return ERR_OK;
}

struct route_actor *route_thread_actor(struct route_thread *thread)
{
    CHECK(!thread->is_running);
    return thread->actor;
}

enum err route_thread_start(struct route_thread *thread)
{
    CHECK(!thread->is_running);
    exchange_set_wake(thread->exchange, ACTOR_ROUTE, bell_ring, &thread->bell);
    if (pthread_create(&thread->thread, NULL, route_thread_main, thread) != 0)
        return ERR_NOMEM;
    thread->is_running = true;
    return ERR_OK;
}

void route_thread_stop(struct route_thread *thread)
{
    if (!thread || !thread->is_running)
        return;
    atomic_store_explicit(&thread->stop_asked, true, memory_order_release);
    bell_ring(&thread->bell);
    pthread_join(thread->thread, NULL);
    thread->is_running = false;
}

void route_thread_free(struct route_thread *thread)
{
    if (!thread)
        return;
    CHECK(!thread->is_running);
    route_actor_free(thread->actor);
    bell_deinit(&thread->bell);
    free(thread);
}

struct route_stats *route_thread_stats(struct route_thread *thread) { return route_actor_stats(thread->actor); }
