#include "broker/net/loop.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "broker/actor/bell.h"
#include "broker/net/connection.h"
#include "common/check.h"
#include "common/logger.h"

#define LOOP_MAGIC 0x4c4f4f50u
#define LOOP_CPU_SAMPLE 16                 /* every n-th turn's CPU time is measured: asking costs a system call */
#define LOOP_DRAIN_TURN_NS (5 * NS_PER_MS) /* how often shard_drain is asked while draining */
#define LOOP_LINGER_SWEEP_NS (NS_PER_S / 4)
#define LOOP_IDLE_TURN_NS (10 * NS_PER_S) /* an idle loop turns at least so often: the health check looks at it */

/* ---- what the shard asks for ---- */

static ssize_t loop_io_write(void *io, void *conn, const struct iovec *iov, int iov_count)
{
    (void)io;
    return connection_write(conn, iov, iov_count);
}

static void loop_io_read_pause(void *io, void *conn, bool paused)
{
    (void)io;
    connection_read_pause(conn, paused);
}

static void loop_io_close(void *io, void *conn, uint32_t linger_ms)
{
    (void)io;
    connection_close(conn, linger_ms);
}

static bool loop_io_post(void *io, actor_id to, const struct op *op, bool reserve)
{
    struct loop *loop = io;
    return exchange_post(loop->exchange, loop->index, to, op, reserve);
}

static uint64_t loop_io_random(void *io)
{
    struct loop *loop = io;
    if (loop->random_left == 0) {
        /* At most 512 bytes: the kernel gives them whole and without waiting once it is seeded. */
        CHECK(getrandom(loop->random_words, sizeof loop->random_words, 0) == (ssize_t)sizeof loop->random_words);
        loop->random_left = sizeof loop->random_words / sizeof loop->random_words[0];
    }
    return loop->random_words[--loop->random_left];
}

static const struct shard_io loop_shard_io = {
    .write = loop_io_write,
    .read_pause = loop_io_read_pause,
    .close = loop_io_close,
    .post = loop_io_post,
    .random = loop_io_random,
};

/* ---- the turn ---- */

static void loop_on_op(void *arg, const struct op *op)
{
    struct loop *loop = arg;
    shard_on_op(loop->shard, op);
}

static void loop_take_arrivals(struct loop *loop)
{
    struct arrival *arrival;
    for (int i = 0; i < LOOP_ARRIVALS_MAX && ring_try_pop(&loop->arrivals, &arrival); i++)
        connection_open(loop, arrival);
    if (ring_count(&loop->arrivals) > 0)
        loop->must_turn = true;
}

static void loop_enter_turn(struct loop *loop)
{
    DCHECK(loop->magic == LOOP_MAGIC);
    if (loop->in_turn)
        return;
    loop->in_turn = true;
    loop->must_turn = false;
    loop->turn_began_ns = clock_mono();
    loop->turn_cpu_began_ns = loop->stats.turns.value % LOOP_CPU_SAMPLE == 0 ? clock_thread_cpu() : 0;
    atomic_store_explicit(&loop->seen_ns, loop->turn_began_ns, memory_order_relaxed);
    shard_turn_begin(loop->shard, loop->turn_began_ns, clock_wall());
    size_t drained = exchange_drain(loop->exchange, loop->index, LOOP_OPS_PER_TURN, loop->turn_began_ns, loop_on_op, loop);
    if (drained == LOOP_OPS_PER_TURN)
        loop->must_turn = true;
    loop_take_arrivals(loop);
    connection_sweep_broken(loop);
}

static void loop_on_timer(uv_timer_t *timer)
{
    struct loop *loop = timer->data;
    mono_ns now = clock_mono();
    if (now > loop->timer_at_ns)
        histogram_record(&loop->stats.lag_ns, (uint64_t)(now - loop->timer_at_ns));
    loop->timer_at_ns = INT64_MAX;
    loop_enter_turn(loop);
}

static void loop_arm_timer(struct loop *loop, mono_ns at, mono_ns now)
{
    if (at == loop->timer_at_ns)
        return;
    if (at <= now) {
        loop->must_turn = true;
        return;
    }
    loop->timer_at_ns = at;
    /* libuv counts whole milliseconds from its own cached time: round up, or the timer fires early and once more. */
    uv_update_time(&loop->uv);
    CHECK(uv_timer_start(&loop->timer, loop_on_timer, (uint64_t)((at - now + NS_PER_MS - 1) / NS_PER_MS), 0) == 0);
}

static void loop_carry_out_order(struct loop *loop)
{
    int order = atomic_load_explicit(&loop->order, memory_order_acquire);
    if (order == LOOP_RUN || order == LOOP_EXIT)
        return;
    bool done = shard_drain(loop->shard, order == LOOP_FORCE) && loop->connection_count == 0;
    if (done && !atomic_load_explicit(&loop->is_done, memory_order_relaxed)) {
        atomic_store_explicit(&loop->is_done, true, memory_order_release);
        bell_ring(loop->boss);
    }
}

static void loop_leave_turn(struct loop *loop)
{
    loop_carry_out_order(loop);
    shard_turn_end(loop->shard);
    exchange_flush(loop->exchange, loop->index);
    mono_ns now = clock_mono();
    histogram_record(&loop->stats.turn_wall_ns, (uint64_t)(now - loop->turn_began_ns));
    if (loop->turn_cpu_began_ns != 0)
        histogram_record(&loop->stats.turn_cpu_ns, (uint64_t)(clock_thread_cpu() - loop->turn_cpu_began_ns));
    counter_inc(&loop->stats.turns);

    mono_ns next = shard_next_turn_ns(loop->shard);
    mono_ns idle = loop->timer_at_ns != INT64_MAX && loop->timer_at_ns > now ? loop->timer_at_ns : now + LOOP_IDLE_TURN_NS;
    if (idle < next)
        next = idle;
    if (loop->lingering_count > 0) {
        mono_ns lingering = connection_sweep_lingering(loop, now);
        if (lingering < next)
            next = lingering < now + LOOP_LINGER_SWEEP_NS ? now + LOOP_LINGER_SWEEP_NS : lingering;
    }
    if (atomic_load_explicit(&loop->order, memory_order_relaxed) != LOOP_RUN && next > now + LOOP_DRAIN_TURN_NS)
        next = now + LOOP_DRAIN_TURN_NS;
    loop_arm_timer(loop, next, now);
    loop->in_turn = false;
}

static void loop_on_check(uv_check_t *check)
{
    struct loop *loop = check->data;
    exchange_awake(loop->exchange, loop->index);
    loop_enter_turn(loop);
    loop_leave_turn(loop);
    if (atomic_load_explicit(&loop->order, memory_order_acquire) == LOOP_EXIT)
        uv_stop(&loop->uv);
}

static void loop_on_idle(uv_idle_t *idle) { (void)idle; }

/* The last thing before polling: whoever posts from here on wakes us; what was posted before is seen here. */
static void loop_on_prepare(uv_prepare_t *prepare)
{
    struct loop *loop = prepare->data;
    exchange_sleep(loop->exchange, loop->index);
    /* A turn that a timer began has no timer set until it ends: polling with it open could wait for ever. */
    if (loop->in_turn || exchange_has_ops(loop->exchange, loop->index) || ring_count(&loop->arrivals) > 0)
        loop->must_turn = true;
    if (loop->must_turn) {
        exchange_awake(loop->exchange, loop->index);
        (void)uv_idle_start(&loop->idle, loop_on_idle);
    } else {
        (void)uv_idle_stop(&loop->idle);
    }
}

static void loop_on_async(uv_async_t *async) { (void)async; }

/* ---- life ---- */

static void loop_wake(void *arg)
{
    struct loop *loop = arg;
    (void)uv_async_send(&loop->async);
}

/* The handles exist from here on, so that others may wake the loop before its thread runs. */
static int loop_init_handles(struct loop *loop)
{
    int code = uv_loop_init(&loop->uv);
    if (code != 0)
        return code;
    code = uv_async_init(&loop->uv, &loop->async, loop_on_async);
    if (code != 0)
        return code;
    loop->async.data = loop->prepare.data = loop->check.data = loop->idle.data = loop->timer.data = loop;
    (void)uv_prepare_init(&loop->uv, &loop->prepare);
    (void)uv_check_init(&loop->uv, &loop->check);
    (void)uv_idle_init(&loop->uv, &loop->idle);
    (void)uv_timer_init(&loop->uv, &loop->timer);
    loop->prepare.data = loop->check.data = loop->idle.data = loop->timer.data = loop;
    (void)uv_prepare_start(&loop->prepare, loop_on_prepare);
    (void)uv_check_start(&loop->check, loop_on_check);
    return 0;
}

struct loop *loop_new(const struct loop_config *config, struct errmsg *msg)
{
    struct loop *loop = NULL;
    size_t size = align_up(sizeof *loop, RING_CACHE_LINE);
    loop = aligned_alloc(RING_CACHE_LINE, size);
    if (!loop) {
        (void)err_set(msg, ERR_NOMEM, "shard %u: %s", config->shard.index, err_text(ERR_NOMEM));
        return NULL;
    }
    memset(loop, 0, size);
    loop->magic = LOOP_MAGIC;
    loop->index = config->shard.index;
    loop->exchange = config->exchange;
    loop->listeners = config->listeners;
    loop->boss = config->boss;
    loop->enter_turn = loop_enter_turn;
    loop->timer_at_ns = INT64_MAX;
    atomic_init(&loop->seen_ns, clock_mono());
    list_init(&loop->connections);
    list_init(&loop->lingering);
    list_init(&loop->broken);
    histogram_init(&loop->stats.turn_wall_ns);
    histogram_init(&loop->stats.turn_cpu_ns);
    histogram_init(&loop->stats.lag_ns);
    enum err err = ring_init(&loop->arrivals, LOOP_ARRIVALS_MAX, sizeof(struct arrival *));
    if (err == ERR_OK && config->shard.persistence) {
        err = log_block_pool_init(&loop->pool, loop->index, config->block_count_max, LOG_BLOCK_BODY_MAX, config->block_alignment);
        loop->has_pool = err == ERR_OK;
    }
    int code = err == ERR_OK ? loop_init_handles(loop) : 0;
    if (code != 0) {
        (void)err_set(msg, ERR_IO, "shard %u: event loop: %s", loop->index, uv_strerror(code));
        return NULL; /* the program ends */
    }
    if (err == ERR_OK) {
        loop->shard = shard_new(&config->shard, config->tree, loop->has_pool ? &loop->pool : NULL, &loop_shard_io, loop);
        if (!loop->shard)
            err = ERR_NOMEM;
    }
    if (err != ERR_OK) {
        (void)err_set(msg, err, "shard %u: %s", loop->index, err_text(err));
        return NULL;
    }
    exchange_set_wake(loop->exchange, loop->index, loop_wake, loop);
    return loop;
}

static void *loop_main(void *arg)
{
    struct loop *loop = arg;
    char name[16];
    (void)snprintf(name, sizeof name, "shard-%u", loop->index);
    pthread_setname_np(pthread_self(), name);
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
    return NULL;
}

enum err loop_start(struct loop *loop)
{
    int errnum = pthread_create(&loop->thread, NULL, loop_main, loop);
    loop->is_started = errnum == 0;
    return errnum == 0 ? ERR_OK : err_from_errno(errnum);
}

bool loop_post_arrival(struct loop *loop, struct arrival *arrival)
{
    if (!ring_try_push(&loop->arrivals, &arrival))
        return false;
    exchange_wake_outside(loop->exchange, loop->index);
    return true;
}

void loop_ask(struct loop *loop, enum loop_order order)
{
    atomic_store_explicit(&loop->order, order, memory_order_release);
    loop_wake(loop);
}

bool loop_is_done(const struct loop *loop)
{
    return atomic_load_explicit(&((struct loop *)(uintptr_t)loop)->is_done, memory_order_acquire);
}

static void loop_close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void loop_wait(struct loop *loop)
{
    if (loop->is_started)
        pthread_join(loop->thread, NULL);
}

void loop_free(struct loop *loop)
{
    /* Last answers: blocks that come back, deliveries and pages that nobody waits for any more. */
    shard_turn_begin(loop->shard, clock_mono(), clock_wall());
    while (exchange_drain(loop->exchange, loop->index, SIZE_MAX, clock_mono(), loop_on_op, loop) > 0)
        continue;
    connection_drop_all(loop);
    struct arrival *arrival;
    while (ring_try_pop(&loop->arrivals, &arrival)) {
        transport_free(&arrival->transport);
        free(arrival);
    }
    shard_free(loop->shard);
    /* Connections' handles are already closing with callbacks of their own; these have none. */
    uv_walk(&loop->uv, loop_close_handle, NULL);
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&loop->uv) == 0);
    if (loop->has_pool)
        log_block_pool_deinit(&loop->pool);
    ring_deinit(&loop->arrivals);
    free(loop);
}
