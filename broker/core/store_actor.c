/* A hash table of session number -> FIFO of messages. Session numbers are given out in order, so they spread over the buckets by
 * themselves. */
#include "broker/core/store_actor.h"

#include <stdlib.h>

#include "broker/core/msg.h"
#include "broker/core/op_backlog.h"
#include "broker/core/store_stats.h"
#include "common/check.h"
#include "common/list.h"

#define BUCKETS_FIRST 1024 /* a power of two; doubled at one queue a bucket */
#define ITEMS_FIRST 16
#define WAIT_SPACING_NS 1000000 /* 1 ms, for a full ring to drain */

/* The stored queue of one session: a ring of items, oldest at `first`. */
struct stored_queue {
    struct stored_queue *next; /* in its bucket */
    uint64_t session_number;
    struct store_item *items;
    uint32_t first, count, capacity; /* capacity: a power of two */
};

struct store_actor {
    const struct store_io *io;
    void *io_arg;
    struct stored_queue **buckets;
    size_t bucket_count, queue_count;
    struct op_backlog backlog;
    int64_t now_mono_ns;
    struct store_stats stats;
};

static bool post(void *arg, actor_id to, const struct op *op)
{
    struct store_actor *actor = arg;
    return actor->io->post(actor->io_arg, to, op);
}

struct store_actor *store_actor_new(const struct store_io *io, void *io_arg)
{
    struct store_actor *actor = calloc(1, sizeof *actor);
    if (!actor)
        return NULL;
    actor->io = io;
    actor->io_arg = io_arg;
    actor->bucket_count = BUCKETS_FIRST;
    actor->buckets = calloc(actor->bucket_count, sizeof *actor->buckets);
    op_backlog_init(&actor->backlog);
    if (actor->buckets)
        return actor;
    free(actor);
    return NULL;
}

void store_actor_set_time(struct store_actor *actor, int64_t now_mono_ns) { actor->now_mono_ns = now_mono_ns; }

static struct stored_queue **queue_place(struct store_actor *actor, uint64_t session_number)
{
    struct stored_queue **place = &actor->buckets[session_number & (actor->bucket_count - 1)];
    while (*place && (*place)->session_number != session_number)
        place = &(*place)->next;
    return place;
}

static void stats_refresh(struct store_actor *actor, int64_t messages, int64_t bytes)
{
    struct queue_stats *stored = &actor->stats.stored;
    queue_stats_set(stored, stored->messages + (uint64_t)messages, stored->bytes + (uint64_t)bytes,
                    stored->messages ? stored->oldest_ns : actor->now_mono_ns);
    gauge_set(&actor->stats.sessions, (int64_t)actor->queue_count);
}

static struct store_item queue_pop(struct stored_queue *queue)
{
    struct store_item item = queue->items[queue->first];
    queue->first = (queue->first + 1) & (queue->capacity - 1);
    queue->count--;
    return item;
}

/* Drop the queue at its place in the table, with what it still holds. */
static void queue_drop(struct store_actor *actor, struct stored_queue **place)
{
    struct stored_queue *queue = *place;
    *place = queue->next;
    actor->queue_count--;
    while (queue->count) {
        struct store_item item = queue_pop(queue);
        stats_refresh(actor, -1, -(int64_t)msg_cost(item.msg));
        counter_inc(&actor->stats.forgotten);
        msg_unref(item.msg);
    }
    stats_refresh(actor, 0, 0);
    free(queue->items);
    free(queue);
}

static void page_drop(const struct op *op)
{
    CHECK(op->type == OP_STORE_LOADED);
    for (uint32_t i = 0; i < op->store.page->count; i++)
        msg_unref(op->store.page->items[i].msg);
    free(op->store.page);
}

void store_actor_free(struct store_actor *actor)
{
    if (!actor)
        return;
    for (size_t i = 0; i < actor->bucket_count; i++)
        while (actor->buckets[i])
            queue_drop(actor, &actor->buckets[i]);
    op_backlog_deinit(&actor->backlog, page_drop);
    free(actor->buckets);
    free(actor);
}

struct store_stats *store_actor_stats(struct store_actor *actor) { return &actor->stats; }

static void table_grow(struct store_actor *actor)
{
    size_t count = actor->bucket_count * 2;
    struct stored_queue **buckets = calloc(count, sizeof *buckets);
    if (!buckets)
        return; /* longer chains, nothing worse */
    for (size_t i = 0; i < actor->bucket_count; i++) {
        while (actor->buckets[i]) {
            struct stored_queue *queue = actor->buckets[i];
            actor->buckets[i] = queue->next;
            queue->next = buckets[queue->session_number & (count - 1)];
            buckets[queue->session_number & (count - 1)] = queue;
        }
    }
    free(actor->buckets);
    actor->buckets = buckets;
    actor->bucket_count = count;
}

static struct stored_queue *queue_get(struct store_actor *actor, uint64_t session_number)
{
    struct stored_queue **place = queue_place(actor, session_number);
    if (*place)
        return *place;
    if (actor->queue_count >= actor->bucket_count) {
        table_grow(actor);
        place = queue_place(actor, session_number);
    }
    struct stored_queue *queue = calloc(1, sizeof *queue);
    CHECK_MSG(queue, "out of memory for a stored queue");
    queue->session_number = session_number;
    *place = queue;
    actor->queue_count++;
    return queue;
}

/* A message that a session accepted is not lost to memory shortage: the sender checked every bound before it sent it here. */
static void queue_grow(struct stored_queue *queue)
{
    uint32_t capacity = queue->capacity ? queue->capacity * 2 : ITEMS_FIRST;
    struct store_item *items = malloc(capacity * sizeof *items);
    CHECK_MSG(items, "out of memory for a stored queue of %u messages", queue->count);
    for (uint32_t i = 0; i < queue->count; i++)
        items[i] = queue->items[(queue->first + i) & (queue->capacity - 1)];
    free(queue->items);
    queue->items = items;
    queue->first = 0;
    queue->capacity = capacity;
}

static void on_put(struct store_actor *actor, const struct op *op)
{
    struct stored_queue *queue = queue_get(actor, op->store.session_number);
    if (queue->count == queue->capacity)
        queue_grow(queue);
    queue->items[(queue->first + queue->count++) & (queue->capacity - 1)] = (struct store_item){op->store.msg, op->store.meta};
    counter_inc(&actor->stats.puts);
    stats_refresh(actor, 1, (int64_t)msg_cost(op->store.msg));
}

static void on_load(struct store_actor *actor, const struct op *op)
{
    struct stored_queue **place = queue_place(actor, op->store.session_number), *queue = *place;
    uint32_t count = !queue ? 0 : queue->count < op->count ? queue->count : op->count;
    struct store_page *page = malloc(sizeof *page + count * sizeof page->items[0]);
    CHECK_MSG(page, "out of memory for a page of %u messages", count);
    page->session_number = op->store.session_number;
    page->count = count;
    for (uint32_t i = 0; i < count; i++) {
        page->items[i] = queue_pop(queue);
        stats_refresh(actor, -1, -(int64_t)msg_cost(page->items[i].msg));
    }
    counter_add(&actor->stats.loads, count);
    if (queue && queue->count == 0)
        queue_drop(actor, place);
    struct op answer = {
        .type = OP_STORE_LOADED,
        .from = ACTOR_STORE,
        .count = count,
        .store = {.session_number = page->session_number, .page = page},
    };
    op_backlog_post(&actor->backlog, post, actor, op->from, &answer);
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the op has taken the page */
}

static void on_forget(struct store_actor *actor, const struct op *op)
{
    struct stored_queue **place = queue_place(actor, op->store.session_number);
    if (*place)
        queue_drop(actor, place);
}

void store_actor_on_op(struct store_actor *actor, const struct op *op)
{
    if (op->type == OP_STORE_PUT)
        on_put(actor, op);
    else if (op->type == OP_STORE_LOAD)
        on_load(actor, op);
    else if (op->type == OP_STORE_FORGET)
        on_forget(actor, op);
    else if (op->type == OP_STORE_PASSED)
        return; /* nothing here outlives the process: no retained value is remembered */
    else
        UNREACHABLE();
}

int64_t store_actor_work(struct store_actor *actor) { return op_backlog_flush(&actor->backlog, post, actor) ? INT64_MAX : WAIT_SPACING_NS; }
