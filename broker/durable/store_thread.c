#include "broker/durable/store_thread.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "broker/actor/bell.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/logger.h"
#include "common/proc.h"

#define STORE_THREAD_BUDGET 1024
#define STORE_PREPARE_IDLE_NS (100 * NS_PER_MS) /* all is ready: look again */
#define STORE_PREPARE_RETRY_NS (NS_PER_S)       /* after an error */
#define STORE_DECAY_NS (NS_PER_S)               /* between looks for memory that a burst left */

struct store_thread {
    struct exchange *exchange;
    struct log_writer *writer;
    struct store_writer *store; /* NULL: no checkpoint */
    void (*on_failed)(void *arg);
    void *on_failed_arg;
    bool failed, had_room, had_space, was_full;
    mono_ns next_step_ns;
    struct bell bell;
    _Atomic bool stop_asked;
    mono_ns next_prepare_ns, next_decay_ns;
    struct store_thread_stats stats;
    pthread_t thread;
};

static bool store_thread_post(void *io, actor_id to, const struct op *op)
{
    struct store_thread *thread = io;
    return exchange_post(thread->exchange, ACTOR_STORE, to, op, true);
}

static void store_thread_on_op(void *arg, const struct op *op)
{
    struct store_thread *thread = arg;
    if (thread->store)
        store_writer_on_op(thread->store, op);
    else if (op->type == OP_STORE_RUN) /* nobody who would keep it */
        free(op->run.run);
    else if (op->type == OP_STORE_EXPIRED)
        free(op->expired);
}

static void store_thread_on_checkpoint(void *io, struct log_place place)
{
    struct store_thread *thread = io;
    log_writer_set_checkpoint(thread->writer, place);
}

static struct log_end store_thread_durable_end(void *io)
{
    struct store_thread *thread = io;
    return log_writer_published_end(thread->writer);
}

static int64_t store_thread_clock(void *io)
{
    (void)io;
    return clock_mono();
}

static int64_t store_thread_wall(void *io)
{
    (void)io;
    return clock_wall();
}

static const struct store_writer_io store_thread_writer_io = {
    .post = store_thread_post,
    .on_checkpoint = store_thread_on_checkpoint,
    .durable_end = store_thread_durable_end,
    .clock = store_thread_clock,
    .wall = store_thread_wall,
};

/* Lines for what changed in a step. A database lags as a rule before it is full: that it is the limit and not the disk is said as well. */
static void store_thread_tell(struct store_thread *thread)
{
    const struct store_writer_stats *stats = store_writer_get_stats(thread->store);
    bool has_room = gauge_get(&stats->has_room), has_space = !gauge_get(&stats->no_space), is_full = gauge_get(&stats->is_full);
    uint64_t lag_bytes = (uint64_t)gauge_get(&stats->lag_bytes);
    if (has_space != thread->had_space && has_space)
        LOG_NOTICE("the checkpoint has space again");
    else if (has_space != thread->had_space)
        LOG_WARNING("no space for the checkpoint, on its disk or within checkpoint_max_size: the log holds what it lacks, trying again");
    if (is_full && !thread->was_full)
        LOG_WARNING("the checkpoint has reached checkpoint_max_size: publishers of messages that it must keep wait",
                    LOG_U64("lag_bytes", lag_bytes));
    else if (has_room != thread->had_room && has_room)
        LOG_NOTICE("the checkpoint keeps up and has room again", LOG_U64("lag_bytes", lag_bytes));
    else if (has_room != thread->had_room)
        LOG_WARNING("the checkpoint is too far behind the log: publishers of messages that it must keep wait",
                    LOG_U64("lag_bytes", lag_bytes), LOG_DURATION("lag", gauge_get(&stats->lag_ns)));
    thread->had_room = has_room;
    thread->had_space = has_space;
    thread->was_full = is_full;
}

/* One step when it is time; returns ns until the next. */
static int64_t store_thread_step(struct store_thread *thread, bool flush)
{
    if (!thread->store || thread->failed)
        return INT64_MAX;
    mono_ns now = clock_mono();
    if (!flush && now < thread->next_step_ns)
        return thread->next_step_ns - now;
    struct errmsg msg = {{0}};
    int64_t wait;
    enum err err = store_writer_step(thread->store, now, flush, &wait, &msg);
    store_thread_tell(thread);
    if (err != ERR_OK) {
        thread->failed = true;
        LOG_ERROR("the checkpoint has failed for good", LOG_ERR("error", err), LOG_TEXT("detail", msg.text),
                  LOG_TEXT("do", err == ERR_CORRUPT ? "see `tidegate-broker repair`: what was acknowledged is in the log and the checkpoint"
                                                    : "mend the disk, then start again: what was acknowledged is in the log"));
        thread->on_failed(thread->on_failed_arg);
        return INT64_MAX;
    }
    thread->next_step_ns = wait == INT64_MAX ? INT64_MAX : clock_mono() + wait;
    return wait;
}

/* The log thread says so at its next write, and that may never come. */
static int64_t store_thread_prepare_failed(struct store_thread *thread)
{
    struct errmsg failure = {{0}};
    log_writer_failure(thread->writer, &failure);
    LOG_ERROR("the log has failed for good: its next segment", LOG_TEXT("detail", failure.text),
              LOG_TEXT("do", "mend the disk, then start again: what was acknowledged is in the log"));
    gauge_set(&thread->stats.prepare_error, log_writer_failed(thread->writer));
    counter_inc(&thread->stats.prepare_errors);
    if (thread->on_failed)
        thread->on_failed(thread->on_failed_arg);
    return INT64_MAX;
}

/* One step when it is time; returns ns until the next. */
static int64_t store_thread_prepare(struct store_thread *thread)
{
    if (!thread->writer || log_writer_failed(thread->writer) != ERR_OK) /* the log thread has said so */
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
    if (log_writer_failed(thread->writer) != ERR_OK)
        return store_thread_prepare_failed(thread);
    if (err != ERR_OK && gauge_get(&thread->stats.prepare_error) != err)
        LOG_WARNING("the log's next segment cannot be prepared", LOG_ERR("error", err), LOG_TEXT("detail", msg.text));
    if (err != ERR_OK)
        counter_inc(&thread->stats.prepare_errors);
    gauge_set(&thread->stats.prepare_error, err);
    thread->next_prepare_ns = clock_mono() + (err == ERR_OK ? STORE_PREPARE_IDLE_NS : STORE_PREPARE_RETRY_NS);
    return err == ERR_OK ? STORE_PREPARE_IDLE_NS : STORE_PREPARE_RETRY_NS;
}

/* Here, because this thread has the time, and the most of it is what commits needed. */
static void store_thread_decay(struct store_thread *thread, mono_ns now)
{
    if (now < thread->next_decay_ns)
        return;
    proc_decay_memory();
    thread->next_decay_ns = now + STORE_DECAY_NS;
}

static void *store_thread_main(void *arg)
{
    struct store_thread *thread = arg;
    pthread_setname_np(pthread_self(), "store");
    proc_run_in_bulk(); /* publishers wait for shards and the log thread */
    for (;;) {
        /* Before the look into the rings: what was posted before the stop is seen by it, however long the step takes. */
        bool is_stopping = atomic_load_explicit(&thread->stop_asked, memory_order_acquire);
        mono_ns now = clock_mono();
        size_t drained = exchange_drain(thread->exchange, ACTOR_STORE, STORE_THREAD_BUDGET, now, store_thread_on_op, thread);
        int64_t wait = store_thread_step(thread, false);
        exchange_flush(thread->exchange, ACTOR_STORE);
        int64_t prepare_wait = store_thread_prepare(thread);
        store_thread_decay(thread, now);
        if (drained > 0)
            continue;
        if (is_stopping) {
            while (store_thread_step(thread, true) == 0)
                continue;
            return NULL;
        }
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

static void store_thread_free(struct store_thread *thread)
{
    store_writer_free(thread->store);
    bell_deinit(&thread->bell);
    free(thread);
}

static enum err store_thread_make(struct store_thread *thread, const struct store_thread_config *config)
{
    thread->had_room = thread->had_space = true;
    if (!config)
        return ERR_OK;
    CHECK(thread->writer);
    thread->on_failed = config->on_failed;
    thread->on_failed_arg = config->on_failed_arg;
    return store_writer_new(&thread->store, config->checkpoint, &config->options, &store_thread_writer_io, thread);
}

enum err store_thread_start(struct store_thread **thread_out, struct exchange *exchange, struct log_writer *writer,
                            const struct store_thread_config *config)
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
    err = store_thread_make(thread, config);
    if (err == ERR_OK) {
        exchange_set_wake(exchange, ACTOR_STORE, bell_ring, &thread->bell);
        if (pthread_create(&thread->thread, NULL, store_thread_main, thread) == 0) {
            *thread_out = thread;
            return ERR_OK;
        }
    }
    store_thread_free(thread);
    return ERR_NOMEM;
}

void store_thread_stop(struct store_thread *thread)
{
    if (!thread)
        return;
    atomic_store_explicit(&thread->stop_asked, true, memory_order_release);
    bell_ring(&thread->bell);
    pthread_join(thread->thread, NULL);
    store_thread_free(thread);
}

const struct store_thread_stats *store_thread_get_stats(const struct store_thread *thread) { return &thread->stats; }
struct store_writer_stats *store_thread_writer_stats(struct store_thread *thread)
{
    return thread->store ? store_writer_get_stats(thread->store) : NULL;
}
