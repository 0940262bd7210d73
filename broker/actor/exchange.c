#include "broker/actor/exchange.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/ring.h"

#define EXCHANGE_BATCH 64 /* ops copied out of one ring before the next sender's turn */
#define EXCHANGE_THREADS (ACTOR_COUNT - ACTOR_ROUTE)
#define EXCHANGE_ACTORS_MAX (ACTOR_SHARDS_MAX + EXCHANGE_THREADS)

struct exchange_actor {
    struct ring_waker waker;
    void (*wake)(void *arg);
    void *wake_arg;
    struct ring **in; /* by sender's index, NULL where nobody sends */
    bool *dirty;      /* posted to since the last flush; owner: the actor as sender */
    bool any_dirty;   /* */
    uint16_t next;    /* sender whose turn it is */
    struct counter refused;
    _Atomic int64_t emptied_ns; /* when the rings were last seen empty */
    struct queue_stats stats;
};

struct exchange {
    uint16_t shard_count, actor_count;
    size_t capacity, reserve;
    struct exchange_actor *actors;
};

static uint16_t exchange_index(const struct exchange *exchange, actor_id actor)
{
    if (actor < exchange->shard_count)
        return actor;
    CHECK(actor >= ACTOR_ROUTE);
    CHECK(actor < ACTOR_COUNT);
    return (uint16_t)(exchange->shard_count + (actor - ACTOR_ROUTE));
}

static struct exchange_actor *exchange_actor(const struct exchange *exchange, actor_id actor)
{
    return &exchange->actors[exchange_index(exchange, actor)];
}

/* Everybody talks to the shards; of the rest, the header's few. */
static bool exchange_has_ring(const struct exchange *exchange, uint16_t from, uint16_t to)
{
    if (from == to)
        return false;
    if (from < exchange->shard_count || to < exchange->shard_count)
        return true;
    actor_id sender = (actor_id)(ACTOR_ROUTE + from - exchange->shard_count),
             receiver = (actor_id)(ACTOR_ROUTE + to - exchange->shard_count);
    return (sender == ACTOR_ROUTE && receiver == ACTOR_READER) || (sender == ACTOR_READER && receiver == ACTOR_ROUTE) ||
           (sender == ACTOR_STORE && receiver == ACTOR_ROUTE) || (sender == ACTOR_ROUTE && receiver == ACTOR_STORE);
}

struct exchange *exchange_new(uint16_t shard_count, size_t capacity)
{
    CHECK(shard_count >= 1);
    CHECK(shard_count <= ACTOR_SHARDS_MAX);
    struct exchange *exchange = calloc(1, sizeof *exchange);
    if (!exchange)
        return NULL;
    exchange->shard_count = shard_count;
    exchange->actor_count = (uint16_t)(shard_count + EXCHANGE_THREADS);
    exchange->capacity = capacity;
    exchange->reserve = capacity / 8;
    size_t bytes = align_up(exchange->actor_count * sizeof *exchange->actors, RING_CACHE_LINE);
    exchange->actors = aligned_alloc(RING_CACHE_LINE, bytes);
    if (!exchange->actors) {
        free(exchange);
        return NULL;
    }
    memset(exchange->actors, 0, bytes);
    for (uint16_t to = 0; to < exchange->actor_count; to++) {
        struct exchange_actor *actor = &exchange->actors[to];
        ring_waker_init(&actor->waker);
        actor->in = calloc(exchange->actor_count, sizeof *actor->in);
        actor->dirty = calloc(exchange->actor_count, sizeof *actor->dirty);
        if (!actor->in || !actor->dirty)
            goto out;
        for (uint16_t from = 0; from < exchange->actor_count; from++) {
            if (!exchange_has_ring(exchange, from, to))
                continue;
            struct ring *ring = aligned_alloc(RING_CACHE_LINE, align_up(sizeof *ring, RING_CACHE_LINE));
            if (!ring || ring_init(ring, capacity, sizeof(struct op)) != ERR_OK) {
                free(ring);
                goto out;
            }
            actor->in[from] = ring;
        }
    }
    return exchange;
out:
    exchange_free(exchange);
    return NULL;
}

void exchange_free(struct exchange *exchange)
{
    if (!exchange)
        return;
    for (uint16_t to = 0; to < exchange->actor_count; to++) {
        struct exchange_actor *actor = &exchange->actors[to];
        for (uint16_t from = 0; actor->in && from < exchange->actor_count; from++) {
            if (actor->in[from])
                ring_deinit(actor->in[from]);
            free(actor->in[from]);
        }
        free(actor->in);
        free(actor->dirty);
    }
    free(exchange->actors);
    free(exchange);
}

void exchange_set_wake(struct exchange *exchange, actor_id actor, void (*wake)(void *arg), void *arg)
{
    struct exchange_actor *target = exchange_actor(exchange, actor);
    target->wake = wake;
    target->wake_arg = arg;
}

bool exchange_post(struct exchange *exchange, actor_id from, actor_id to, const struct op *op, bool reserve)
{
    struct exchange_actor *sender = exchange_actor(exchange, from);
    uint16_t target = exchange_index(exchange, to);
    struct ring *ring = exchange->actors[target].in[exchange_index(exchange, from)];
    CHECK(ring != NULL);
    if (!reserve) {
        /* The cheap look at the copy of the other side's index first; only a ring that seems full is looked at for real. */
        uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        if (tail - ring->head_seen >= exchange->capacity - exchange->reserve && ring_free_count(ring) <= exchange->reserve) {
            counter_inc(&sender->refused);
            return false;
        }
    }
    struct op copy = *op;
    copy.from = from;
    if (!ring_try_push(ring, &copy)) {
        counter_inc(&sender->refused);
        return false;
    }
    sender->dirty[target] = true;
    sender->any_dirty = true;
    return true;
}

static void exchange_wake_actor(struct exchange_actor *actor)
{
    if (ring_waker_wake_needed(&actor->waker))
        actor->wake(actor->wake_arg);
}

void exchange_flush(struct exchange *exchange, actor_id from)
{
    struct exchange_actor *sender = exchange_actor(exchange, from);
    if (!sender->any_dirty)
        return;
    sender->any_dirty = false;
    for (uint16_t to = 0; to < exchange->actor_count; to++) {
        if (!sender->dirty[to])
            continue;
        sender->dirty[to] = false;
        exchange_wake_actor(&exchange->actors[to]);
    }
}

size_t exchange_drain(struct exchange *exchange, actor_id self, size_t budget, mono_ns now, exchange_on_op on_op, void *arg)
{
    struct exchange_actor *actor = exchange_actor(exchange, self);
    struct op ops[EXCHANGE_BATCH];
    size_t drained = 0;
    uint16_t empty = 0;
    while (empty < exchange->actor_count && drained < budget) {
        struct ring *ring = actor->in[actor->next];
        actor->next = (uint16_t)((actor->next + 1) % exchange->actor_count);
        size_t room = budget - drained < EXCHANGE_BATCH ? budget - drained : EXCHANGE_BATCH;
        size_t count = ring ? ring_pop_batch(ring, ops, room) : 0;
        for (size_t i = 0; i < count; i++)
            on_op(arg, &ops[i]);
        drained += count;
        empty = count == 0 ? (uint16_t)(empty + 1) : 0;
    }
    if (drained < budget)
        atomic_store_explicit(&actor->emptied_ns, now, memory_order_relaxed);
    return drained;
}

bool exchange_has_ops(const struct exchange *exchange, actor_id self)
{
    const struct exchange_actor *actor = exchange_actor(exchange, self);
    for (uint16_t from = 0; from < exchange->actor_count; from++) {
        if (actor->in[from] && ring_count(actor->in[from]) > 0)
            return true;
    }
    return false;
}

void exchange_sleep(struct exchange *exchange, actor_id self) { ring_waker_sleep(&exchange_actor(exchange, self)->waker); }

void exchange_awake(struct exchange *exchange, actor_id self) { ring_waker_awake(&exchange_actor(exchange, self)->waker); }

void exchange_wake_outside(struct exchange *exchange, actor_id to) { exchange_wake_actor(exchange_actor(exchange, to)); }

struct queue_stats *exchange_stats(struct exchange *exchange, actor_id actor) { return &exchange_actor(exchange, actor)->stats; }

void exchange_refresh_stats(struct exchange *exchange, mono_ns now)
{
    for (uint16_t to = 0; to < exchange->actor_count; to++) {
        struct exchange_actor *actor = &exchange->actors[to];
        size_t count = 0;
        for (uint16_t from = 0; from < exchange->actor_count; from++)
            count += actor->in[from] ? ring_count(actor->in[from]) : 0;
        mono_ns emptied = atomic_load_explicit(&actor->emptied_ns, memory_order_relaxed);
        /* An idle actor last saw its rings empty long ago; what is in them then came since the last look. */
        mono_ns oldest = actor->stats.messages == 0 || emptied > actor->stats.oldest_ns ? (actor->stats.messages == 0 ? now : emptied)
                                                                                        : actor->stats.oldest_ns;
        queue_stats_set(&actor->stats, count, count * sizeof(struct op), count == 0 ? 0 : oldest);
    }
}

const struct counter *exchange_refused(const struct exchange *exchange, actor_id from) { return &exchange_actor(exchange, from)->refused; }
