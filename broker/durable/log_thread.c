#include "broker/durable/log_thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "broker/actor/bell.h"
#include "broker/actor/op_backlog.h"
#include "broker/durable/log_room.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/crash_point.h"
#include "common/logger.h"

#define LOG_THREAD_NICE (-10)
#define LOG_THREAD_TIMER_SLACK_NS 1000        /* the kernel's default of 50 us is a quarter of the spacing */
#define LOG_THREAD_DENSE 5                    /* records in one commit spacing from which on it is stretched */
#define LOG_THREAD_STRETCH_MAX 10             /* times */
#define LOG_THREAD_RETRY_NS (100 * NS_PER_MS) /* no space: try again */
#define LOG_THREAD_ROOM_NS (100 * NS_PER_MS)  /* how often room is looked at when nothing happens */
#define LOG_THREAD_BACKLOG_NS NS_PER_MS       /* a shard whose ring was full is tried again */

struct log_thread {
    struct exchange *exchange;
    struct log_writer *writer;
    struct log_thread_config config;
    struct bell bell;
    struct op_backlog backlog;
    struct log_block *pending[LOG_WRITER_BATCH_MAX]; /* in the order found */
    actor_id pending_from[LOG_WRITER_BATCH_MAX];     /* whose they are: a block that was given back is not looked into again */
    size_t pending_count;
    uint64_t pending_bytes;
    mono_ns pending_since_ns;
    uint64_t pending_records;
    uint32_t waiting;      /* connections that wait for what is pending, as the shards say */
    uint32_t waiting_last; /* of the write before */
    mono_ns last_start_ns;
    int64_t spacing_ns; /* from there to the next start */
    mono_ns next_room_ns;
    bool has_room, failed;
    _Atomic bool stop_asked;
    struct log_thread_stats stats;
    pthread_t thread;
};

static bool log_thread_try_post(void *io, actor_id to, const struct op *op)
{
    struct log_thread *thread = io;
    return exchange_post(thread->exchange, ACTOR_LOG, to, op, true);
}

static void log_thread_post(struct log_thread *thread, actor_id to, const struct op *op)
{
    op_backlog_post(&thread->backlog, log_thread_try_post, thread, to, op);
}

static void log_thread_post_all(struct log_thread *thread, const struct op *op)
{
    for (actor_id shard = 0; shard < thread->config.shard_count; shard++)
        log_thread_post(thread, shard, op);
}

static void log_thread_on_op(void *arg, const struct op *op)
{
    struct log_thread *thread = arg;
    CHECK(op->type == OP_LOG_BLOCK);
    CHECK(thread->pending_count < LOG_WRITER_BATCH_MAX);
    op->block->next = NULL;
    thread->pending_from[thread->pending_count] = op->from;
    thread->pending[thread->pending_count++] = op->block;
    thread->pending_bytes += op->block->size;
    thread->pending_records += op->block->record_count;
    /* A shard that does not say counts as one connection for each record. */
    thread->waiting += op->count > 0 ? op->count : op->block->record_count;
}

/* Take what waits, as much as one write holds. */
static void log_thread_collect(struct log_thread *thread)
{
    mono_ns now = clock_mono();
    size_t room = LOG_WRITER_BATCH_MAX - thread->pending_count;
    uint64_t bytes_max = log_writer_batch_bytes_max(thread->writer);
    uint64_t bytes_left = bytes_max > thread->pending_bytes ? bytes_max - thread->pending_bytes : 0;
    if (bytes_left / LOG_BLOCK_SIZE_MAX < room)
        room = (size_t)(bytes_left / LOG_BLOCK_SIZE_MAX);
    if (room == 0 && thread->pending_count == 0)
        room = 1;
    if (thread->pending_count == 0)
        thread->pending_since_ns = now;
    if (room > 0)
        (void)exchange_drain(thread->exchange, ACTOR_LOG, room, now, log_thread_on_op, thread);
    queue_stats_set(&thread->stats.pending, thread->pending_count, thread->pending_bytes, thread->pending_since_ns);
}

/* Give the blocks back to their shards with the news. What has been given back is another's: it is not looked at again. */
static void log_thread_tell_durable(struct log_thread *thread)
{
    for (actor_id shard = 0; shard < thread->config.shard_count; shard++) {
        struct log_block *first = NULL, **last = &first, *newest = NULL;
        size_t left = 0;
        for (size_t i = 0; i < thread->pending_count; i++) {
            struct log_block *block = thread->pending[i];
            if (block->shard != shard) {
                thread->pending[left++] = block;
                continue;
            }
            *last = block;
            last = &block->next;
            newest = block;
        }
        thread->pending_count = left;
        if (!newest)
            continue;
        *last = NULL;
        struct op op = {.type = OP_LOG_DURABLE};
        op.durable.durable_blocks = log_writer_durable_blocks(thread->writer, shard);
        op.durable.first_sequence = newest->first.sequence;
        op.durable.blocks = first;
        log_thread_post(thread, shard, &op);
    }
    CHECK(thread->pending_count == 0);
    thread->pending_bytes = thread->pending_records = 0;
    thread->waiting_last = thread->waiting;
    thread->waiting = 0;
    queue_stats_set(&thread->stats.pending, 0, 0, 0);
}

static void log_thread_look_at_room(struct log_thread *thread, mono_ns now)
{
    thread->next_room_ns = now + LOG_THREAD_ROOM_NS;
    uint64_t room = log_writer_room(thread->writer, LOG_ROOM_PUBLISH);
    bool has_room = log_room_is_there(room, thread->config.room_margin, thread->has_room);
    if (has_room == thread->has_room)
        return;
    thread->has_room = has_room;
    gauge_set(&thread->stats.has_room, has_room);
    if (has_room)
        LOG_NOTICE("the log takes messages again", LOG_U64("room_bytes", room));
    else
        LOG_WARNING("the log is full: publishers of durable messages wait", LOG_U64("room_bytes", room));
    log_thread_post_all(thread, &(struct op){.type = OP_LOG_ROOM, .flag = has_room});
}

static void log_thread_fail(struct log_thread *thread, enum err err, const char *detail)
{
    thread->failed = true;
    gauge_set(&thread->stats.failed, 1);
    struct errmsg failure = {{0}};
    log_writer_failure(thread->writer, &failure);
    LOG_ERROR("the log has failed for good; nothing is acknowledged from here on", LOG_ERR("error", err),
              LOG_TEXT("detail", failure.text[0] ? failure.text : detail),
              LOG_TEXT("do", "mend the disk, then start again: what was acknowledged is in the log"));
    log_thread_post_all(thread, &(struct op){.type = OP_LOG_FAILED});
    exchange_flush(thread->exchange, ACTOR_LOG);
    thread->config.on_failed(thread->config.on_failed_arg);
}

/* Held back for company? Sleeps for the rest of the spacing. */
static void log_thread_space(struct log_thread *thread)
{
    if (thread->waiting < 2 && thread->waiting_last < 2)
        return;
    mono_ns start_at = thread->last_start_ns + thread->spacing_ns;
    mono_ns now = clock_mono();
    if (now >= start_at)
        return;
    counter_inc(&thread->stats.spaced);
    struct timespec until = {.tv_sec = start_at / NS_PER_S, .tv_nsec = start_at % NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
    log_thread_collect(thread);
}

/* A write costs tens of microseconds of CPU however much is in it, here and in the shard that it interrupts. Where records come thick the
 * shards' turns are long, and most writes would end before anybody could be told: fewer and larger ones cost no latency worth the name. */
static void log_thread_set_spacing(struct log_thread *thread, mono_ns started)
{
    int64_t least = thread->config.commit_spacing_ns, interval = started - thread->last_start_ns;
    double stretch = (double)thread->pending_records * (double)least / ((double)(interval > 0 ? interval : 1) * LOG_THREAD_DENSE);
    stretch = stretch < 1 ? 1 : stretch > LOG_THREAD_STRETCH_MAX ? LOG_THREAD_STRETCH_MAX : stretch;
    thread->spacing_ns = (int64_t)((double)least * stretch);
    thread->last_start_ns = started;
}

/* Write all that is pending. False when it is to be tried again later. */
static bool log_thread_commit(struct log_thread *thread)
{
    struct errmsg msg = {{0}};
    mono_ns started = clock_mono();
    log_thread_set_spacing(thread, started);
    log_writer_begin(thread->writer, thread->pending, thread->pending_count);
    enum err err = log_writer_write(thread->writer, &msg);
    while (err == ERR_NOSPACE && !atomic_load_explicit(&thread->stop_asked, memory_order_acquire)) {
        counter_inc(&thread->stats.no_space);
        log_thread_look_at_room(thread, clock_mono());
        (void)op_backlog_flush(&thread->backlog, log_thread_try_post, thread);
        exchange_flush(thread->exchange, ACTOR_LOG);
        gauge_set(&thread->stats.waits_for_space, 1);
        LOG_WARNING("no space for the log: trying again", LOG_TEXT("detail", msg.text));
        bell_wait(&thread->bell, LOG_THREAD_RETRY_NS);
        err = log_writer_write(thread->writer, &msg);
    }
    gauge_set(&thread->stats.waits_for_space, 0);
    if (err == ERR_OK)
        err = log_writer_finish(thread->writer, clock_mono());
    if (err != ERR_OK) {
        log_thread_fail(thread, err, msg.text);
        return false;
    }
    mono_ns ended = clock_mono();
    histogram_record(&thread->stats.commit_ns, (uint64_t)(ended - started));
    histogram_record(&thread->stats.wait_ns, (uint64_t)(ended - thread->pending_since_ns));
    histogram_record(&thread->stats.batch, thread->pending_count);
    CRASH_POINT("log_finished");
    log_thread_tell_durable(thread);
    if (ended >= thread->next_room_ns || log_writer_room(thread->writer, LOG_ROOM_PUBLISH) <= 2 * thread->config.room_margin)
        log_thread_look_at_room(thread, ended);
    return true;
}

/* Nothing to write: state file, room, sleep. */
static void log_thread_idle(struct log_thread *thread)
{
    mono_ns now = clock_mono();
    int64_t state_wait = 0;
    enum err err = log_writer_idle(thread->writer, &state_wait, now);
    if (err != ERR_OK) {
        log_thread_fail(thread, err, "state file");
        return;
    }
    if (now >= thread->next_room_ns)
        log_thread_look_at_room(thread, now);
    /* A full log is looked at often; one with room may fall asleep for good: only writing takes room away. */
    int64_t wait = thread->has_room ? INT64_MAX : thread->next_room_ns - now;
    if (state_wait > 0 && state_wait < wait)
        wait = state_wait;
    if (!op_backlog_flush(&thread->backlog, log_thread_try_post, thread) && wait > LOG_THREAD_BACKLOG_NS)
        wait = LOG_THREAD_BACKLOG_NS;
    exchange_flush(thread->exchange, ACTOR_LOG);
    exchange_sleep(thread->exchange, ACTOR_LOG);
    if (!exchange_has_ops(thread->exchange, ACTOR_LOG) && !atomic_load_explicit(&thread->stop_asked, memory_order_acquire))
        bell_wait(&thread->bell, wait);
    exchange_awake(thread->exchange, ACTOR_LOG);
}

static void *log_thread_main(void *arg)
{
    struct log_thread *thread = arg;
    pthread_setname_np(pthread_self(), "log");
    (void)prctl(PR_SET_TIMERSLACK, LOG_THREAD_TIMER_SLACK_NS, 0, 0, 0);
    bool raised = setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LOG_THREAD_NICE) == 0;
    gauge_set(&thread->stats.raised, raised);
    if (!raised)
        LOG_INFO("the log thread keeps its normal priority (CAP_SYS_NICE or LimitNICE would let it have -10)");
    log_thread_look_at_room(thread, clock_mono());
    while (!thread->failed) {
        bool is_stopping = atomic_load_explicit(&thread->stop_asked, memory_order_acquire); /* before the look into the rings */
        log_thread_collect(thread);
        if (thread->pending_count > 0) {
            log_thread_space(thread);
            if (log_thread_commit(thread)) {
                (void)op_backlog_flush(&thread->backlog, log_thread_try_post, thread);
                exchange_flush(thread->exchange, ACTOR_LOG);
            }
            continue;
        }
        if (is_stopping)
            return NULL;
        log_thread_idle(thread);
    }
    /* Failed: keep telling until all shards have heard it, then wait for the end. */
    while (!atomic_load_explicit(&thread->stop_asked, memory_order_acquire)) {
        bool all_told = op_backlog_flush(&thread->backlog, log_thread_try_post, thread);
        exchange_flush(thread->exchange, ACTOR_LOG);
        bell_wait(&thread->bell, all_told ? INT64_MAX : LOG_THREAD_BACKLOG_NS);
    }
    return NULL;
}

enum err log_thread_start(struct log_thread **thread_out, struct exchange *exchange, struct log_writer *writer,
                          const struct log_thread_config *config)
{
    struct log_thread *thread = calloc(1, sizeof *thread);
    if (!thread)
        return ERR_NOMEM;
    thread->exchange = exchange;
    thread->writer = writer;
    thread->config = *config;
    thread->has_room = true;
    gauge_set(&thread->stats.has_room, 1);
    op_backlog_init(&thread->backlog);
    histogram_init(&thread->stats.commit_ns);
    histogram_init(&thread->stats.wait_ns);
    histogram_init(&thread->stats.batch);
    enum err err = bell_init(&thread->bell);
    if (err != ERR_OK) {
        free(thread);
        return err;
    }
    exchange_set_wake(exchange, ACTOR_LOG, bell_ring, &thread->bell);
    if (pthread_create(&thread->thread, NULL, log_thread_main, thread) != 0) {
        bell_deinit(&thread->bell);
        free(thread);
        return ERR_NOMEM;
    }
    *thread_out = thread;
    return ERR_OK;
}

/* Blocks that cannot be given back any more belong to their shard's pool all the same. */
static void log_thread_drop(const struct op *op) { (void)op; }

void log_thread_stop(struct log_thread *thread)
{
    if (!thread)
        return;
    atomic_store_explicit(&thread->stop_asked, true, memory_order_release);
    bell_ring(&thread->bell);
    pthread_join(thread->thread, NULL);
    op_backlog_deinit(&thread->backlog, log_thread_drop);
    bell_deinit(&thread->bell);
    free(thread);
}

const struct log_thread_stats *log_thread_get_stats(const struct log_thread *thread) { return &thread->stats; }
