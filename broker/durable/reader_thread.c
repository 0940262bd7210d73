#include "broker/durable/reader_thread.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "broker/actor/bell.h"
#include "common/clock.h"
#include "common/logger.h"

#define READER_THREAD_BUDGET 1024

struct reader_thread {
    struct exchange *exchange;
    struct store_reader *reader;
    struct bell bell;
    _Atomic bool stop_asked;
    pthread_t thread;
};

static bool reader_thread_post(void *io, actor_id to, const struct op *op)
{
    struct reader_thread *thread = io;
    return exchange_post(thread->exchange, ACTOR_READER, to, op, true);
}

static void reader_thread_on_corrupt(void *io, enum kv_tree tree, struct span key)
{
    (void)io;
    char text[KV_KEY_TEXT_SIZE];
    kv_key_text(text, key);
    LOG_ERROR("a value of the checkpoint is damaged and left out", LOG_TEXT("tree", kv_tree_name(tree)), LOG_TEXT("key", text));
}

static const struct store_reader_io reader_thread_io = {.post = reader_thread_post, .on_corrupt = reader_thread_on_corrupt};

static void reader_thread_on_op(void *arg, const struct op *op)
{
    struct reader_thread *thread = arg;
    store_reader_on_op(thread->reader, op);
}

static void *reader_thread_main(void *arg)
{
    struct reader_thread *thread = arg;
    pthread_setname_np(pthread_self(), "reader");
    for (;;) {
        /* Before the look into the rings: what was posted before the stop is seen by it, however long the step takes. */
        bool is_stopping = atomic_load_explicit(&thread->stop_asked, memory_order_acquire);
        mono_ns now = clock_mono();
        store_reader_set_time(thread->reader, now);
        size_t drained = exchange_drain(thread->exchange, ACTOR_READER, READER_THREAD_BUDGET, now, reader_thread_on_op, thread);
        int64_t wait = store_reader_work(thread->reader);
        exchange_flush(thread->exchange, ACTOR_READER);
        if (drained > 0)
            continue;
        /* Who asked has stopped by now: what still waits is freed with the reader. */
        if (is_stopping)
            return NULL;
        if (wait <= 0)
            continue;
        exchange_sleep(thread->exchange, ACTOR_READER);
        if (!exchange_has_ops(thread->exchange, ACTOR_READER))
            bell_wait(&thread->bell, wait);
        exchange_awake(thread->exchange, ACTOR_READER);
    }
}

enum err reader_thread_start(struct reader_thread **thread_out, struct exchange *exchange, struct kv *kv)
{
    struct reader_thread *thread = calloc(1, sizeof *thread);
    if (!thread)
        return ERR_NOMEM;
    thread->exchange = exchange;
    enum err err = bell_init(&thread->bell);
    if (err != ERR_OK) {
        free(thread);
        return err;
    }
    thread->reader = store_reader_new(kv, &reader_thread_io, thread);
    exchange_set_wake(exchange, ACTOR_READER, bell_ring, &thread->bell);
    if (thread->reader && pthread_create(&thread->thread, NULL, reader_thread_main, thread) == 0) {
        *thread_out = thread;
        return ERR_OK;
    }
    store_reader_free(thread->reader);
    bell_deinit(&thread->bell);
    free(thread);
    return ERR_NOMEM;
}

void reader_thread_stop(struct reader_thread *thread)
{
    if (!thread)
        return;
    atomic_store_explicit(&thread->stop_asked, true, memory_order_release);
    bell_ring(&thread->bell);
    pthread_join(thread->thread, NULL);
    store_reader_free(thread->reader);
    bell_deinit(&thread->bell);
    free(thread);
}

struct store_reader_stats *reader_thread_get_stats(struct reader_thread *thread) { return store_reader_get_stats(thread->reader); }
