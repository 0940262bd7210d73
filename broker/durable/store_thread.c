#include "broker/durable/store_thread.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "broker/net/bell.h"
#include "common/clock.h"
#include "common/logger.h"

#define STORE_THREAD_BUDGET 1024
#define STORE_PREPARE_IDLE_NS (100 * NS_PER_MS) /* all is ready: look again */
#define STORE_PREPARE_RETRY_NS (NS_PER_S)       /* after an error */

struct store_thread {
    struct exchange *exchange;
    struct log_writer *writer;
    struct bell bell;
    _Atomic bool stop_asked;
    mono_ns next_prepare_ns;
    struct store_thread_stats stats;
    pthread_t thread;
};

static void store_thread_on_op(void *arg, const struct op *op)
{
    (void)arg;
    if (op->type == OP_STORE_RUN)
        free(op->run.run);
}

/* One step when it is time; returns ns until the next. */
static int64_t store_thread_prepare(struct store_thread *thread)
{
    if (!thread->writer)
        return INT64_MAX;
    mono_ns now = clock_mono();
    if (now < thread->next_prepare_ns)
        return thread->next_prepare_ns - now;
    struct errmsg msg = {{0}};
    enum err err = log_writer_prepare(thread->writer, &msg);
    counter_inc(&thread->stats.prepare_steps);
    if (err == ERR_AGAIN) {
        thread->next_prepare_ns = now;
        return 0;
    }
    if (err != ERR_OK && gauge_get(&thread->stats.prepare_error) != err)
        LOG_WARNING("the log's next segment cannot be prepared", LOG_ERR("error", err), LOG_TEXT("detail", msg.text));
    if (err != ERR_OK)
        counter_inc(&thread->stats.prepare_errors);
    gauge_set(&thread->stats.prepare_error, err);
    thread->next_prepare_ns = clock_mono() + (err == ERR_OK ? STORE_PREPARE_IDLE_NS : STORE_PREPARE_RETRY_NS);
    return err == ERR_OK ? STORE_PREPARE_IDLE_NS : STORE_PREPARE_RETRY_NS;
}

static void *store_thread_main(void *arg)
{
    struct store_thread *thread = arg;
    pthread_setname_np(pthread_self(), "store");
    for (;;) {
        mono_ns now = clock_mono();
        size_t drained = exchange_drain(thread->exchange, ACTOR_STORE, STORE_THREAD_BUDGET, now, store_thread_on_op, thread);
        int64_t wait = INT64_MAX;
        exchange_flush(thread->exchange, ACTOR_STORE);
        if (drained > 0)
            continue;
        if (atomic_load_explicit(&thread->stop_asked, memory_order_acquire))
            return NULL;
        int64_t prepare_wait = store_thread_prepare(thread);
        if (prepare_wait < wait)
            wait = prepare_wait;
        if (wait <= 0)
            continue;
        exchange_sleep(thread->exchange, ACTOR_STORE);
        if (!exchange_has_ops(thread->exchange, ACTOR_STORE))
            bell_wait(&thread->bell, wait);
        exchange_awake(thread->exchange, ACTOR_STORE);
    }
}

enum err store_thread_start(struct store_thread **thread_out, struct exchange *exchange, struct log_writer *writer)
{
    struct store_thread *thread = calloc(1, sizeof *thread);
    if (!thread)
        return ERR_NOMEM;
    thread->exchange = exchange;
    thread->writer = writer;
    enum err err = bell_init(&thread->bell);
    if (err != ERR_OK) {
        free(thread);
        return err;
    }
    exchange_set_wake(exchange, ACTOR_STORE, bell_ring, &thread->bell);
    if (pthread_create(&thread->thread, NULL, store_thread_main, thread) == 0) {
        *thread_out = thread;
        return ERR_OK;
    }
    bell_deinit(&thread->bell);
    free(thread);
    return ERR_NOMEM;
}

void store_thread_stop(struct store_thread *thread)
{
    if (!thread)
        return;
    atomic_store_explicit(&thread->stop_asked, true, memory_order_release);
    bell_ring(&thread->bell);
    pthread_join(thread->thread, NULL);
    bell_deinit(&thread->bell);
    free(thread);
}

const struct store_thread_stats *store_thread_get_stats(const struct store_thread *thread) { return &thread->stats; }
