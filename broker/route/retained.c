/* Retained values, in memory or named by their sequence; see retained.h.
 *
 * Two indexes over the same entries. The hash set answers put, remove and find with one probe, and holds tombstones too. The ordered index
 * (route/topic_index.h) holds live entries only, for scans (route/topic_seek.h) and sweeps: only a topic that comes or goes touches it, a
 * new value for a known topic does not. */
#include "broker/route/retained.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "broker/route/topic_index.h"
#include "broker/route/topic_seek.h"
#include "common/check.h"
#include "common/epoch.h"
#include "common/hash.h"
#include "common/list.h"
#include "common/set.h"

/* Nearer to a bound than this, a reservation asks whether its topic has a value: more than are ever on their way for topics that have. */
#define NEAR_MESSAGES 65536u
#define NEAR_BYTES ((uint64_t)256 << 20)

/* What an entry holds:
 *
 *     TOMBSTONE -> MESSAGE                 [retained_put]      in a store that never lets go
 *     TOMBSTONE -> WINDOW                  [retained_put]      in one that does: in store->window until the checkpoint has it
 *     WINDOW    -> ON_DISK                 [retained_let_go]
 *     ON_DISK  <-> CACHED                  [retained_offer; entry_let_go when the cache is full]
 *     TOMBSTONE -> ON_DISK                 [retained_restore]
 *     any live  -> MESSAGE, WINDOW         [retained_put]
 *     any live  -> TOMBSTONE               [retained_remove, retained_sweep] */
enum entry_state { TOMBSTONE, MESSAGE, WINDOW, CACHED, ON_DISK };

struct entry {
    struct set_entry set_entry;
    uint64_t number;
    union {
        struct {
            union {
                void *msg;         /* MESSAGE: one reference is ours */
                struct held *held; /* WINDOW, CACHED */
                uint64_t sequence; /* ON_DISK */
            };
            int64_t expiry_wall_ns;
        } live;
        struct list_node tombstone; /* in store->tombstones, ordered by number */
    };
    _Atomic uint32_t bytes; /* 0 in a tombstone; other threads read it */
    uint16_t size;
    uint8_t state; /* enum entry_state */
    uint8_t topic[];
};

/* A message in memory that will be let go. */
struct held {
    struct list_node node; /* in store->window or store->cache, oldest first */
    void *msg;             /* one reference is ours */
    struct entry *entry;
};

/* Those that are held for one reason. */
struct held_list {
    struct list_node head;
    uint64_t messages, bytes;
};

struct retained {
    struct set topics;
    struct topic_index live;
    struct list_node tombstones;
    struct held_list window, cache;
    uint64_t checkpoint;      /* below it, sequences can be read from disk */
    uint64_t window_unlooked; /* of the window, still to be looked at for this checkpoint */
    struct topic_place sweep; /* where the next sweep begins; approximate after changes */
    struct retained_limits limits;
    struct retained_callbacks callbacks;
    uint64_t hash_key;
    uint64_t messages, bytes, entry_bytes, expired;
    _Atomic uint64_t tombstone_count;
    _Atomic uint64_t taken_messages, taken_bytes; /* of the live messages, and reserved */
    struct epoch *epoch;
    size_t scans_open;
};

struct retained_scan {
    struct retained *store;
    struct topic_seek *seek;
    bool is_done;
};

static size_t entry_size(size_t topic_size) { return offsetof(struct entry, topic) + topic_size; }
static struct span entry_topic(const struct entry *entry) { return span_of(entry->topic, entry->size); }
static struct span topic_of(const void *entry) { return entry_topic(entry); }
static bool entry_is_live(const struct entry *entry) { return entry->state != TOMBSTONE; }
static uint32_t entry_bytes(const struct entry *entry)
{
    return atomic_load_explicit(&((struct entry *)(uintptr_t)entry)->bytes, memory_order_relaxed);
}
static void entry_set_bytes(struct entry *entry, uint32_t bytes) { atomic_store_explicit(&entry->bytes, bytes, memory_order_relaxed); }

/* ---- values ---- */

struct retained *retained_new(uint64_t hash_key, const struct retained_limits *limits, const struct retained_callbacks *callbacks,
                              struct epoch *epoch)
{
    struct retained *store = calloc(1, sizeof *store);
    if (store == NULL)
        return NULL;
    if (set_init(&store->topics, epoch) != ERR_OK) {
        free(store);
        return NULL;
    }
    topic_index_init(&store->live, topic_of);
    list_init(&store->tombstones);
    list_init(&store->window.head);
    list_init(&store->cache.head);
    store->hash_key = hash_key;
    store->limits = *limits;
    store->callbacks = *callbacks;
    store->epoch = epoch;
    return store;
}

static void held_list_push(struct held_list *list, struct held *held)
{
    list_node_init(&held->node);
    list_push_back(&list->head, &held->node);
    list->messages++;
    list->bytes += entry_bytes(held->entry);
}

static void held_list_remove(struct held_list *list, struct held *held)
{
    list_remove(&held->node);
    list->messages--;
    list->bytes -= entry_bytes(held->entry);
}

/* Drop what a live entry holds. Its state and bytes are the caller's to set. */
static void entry_drop_value(struct retained *store, struct entry *entry)
{
    switch ((enum entry_state)entry->state) {
    case MESSAGE:
        store->callbacks.unref(entry->live.msg);
        return;
    case WINDOW:
    case CACHED:
        held_list_remove(entry->state == WINDOW ? &store->window : &store->cache, entry->live.held);
        store->callbacks.unref(entry->live.held->msg);
        free(entry->live.held);
        return;
    case TOMBSTONE:
    case ON_DISK:
        return;
    }
    UNREACHABLE();
}

static void retained_free_entry(struct set_entry *set_entry, void *arg)
{
    struct entry *entry = (struct entry *)set_entry;
    entry_drop_value(arg, entry);
    free(entry);
}

void retained_free(struct retained *store)
{
    if (store == NULL)
        return;
    CHECK(store->scans_open == 0);
    set_each(&store->topics, retained_free_entry, store);
    set_deinit(&store->topics);
    topic_index_deinit(&store->live);
    free(store);
}

static bool entry_equal(const struct set_entry *set_entry, const void *key)
{
    return span_equal(entry_topic((const struct entry *)set_entry), *(const struct span *)key);
}

static struct entry *retained_lookup(const struct retained *store, struct span topic)
{
    return (struct entry *)set_find(&store->topics, hash_span(topic, store->hash_key), entry_equal, &topic);
}

/* A new entry, in the set, neither live nor in the list of tombstones yet. NULL when memory is short. */
static struct entry *retained_new_entry(struct retained *store, struct span topic, uint64_t number)
{
    struct entry *entry = malloc(entry_size(topic.size));
    if (entry == NULL)
        return NULL;
    entry->set_entry.hash = hash_span(topic, store->hash_key);
    entry->number = number;
    entry_set_bytes(entry, 0);
    entry->size = (uint16_t)topic.size;
    entry->state = TOMBSTONE;
    list_node_init(&entry->tombstone);
    memcpy(entry->topic, topic.data, topic.size);
    if (set_put(&store->topics, &entry->set_entry) != ERR_OK) {
        free(entry);
        return NULL;
    }
    store->entry_bytes += entry_size(topic.size);
    return entry;
}

static void retained_drop_entry(struct retained *store, struct entry *entry)
{
    store->entry_bytes -= entry_size(entry->size);
    set_remove(&store->topics, &entry->set_entry);
    if (store->epoch)
        epoch_defer_free(store->epoch, entry);
    else
        free(entry);
}

/* Into the list of tombstones, which is ordered by number; numbers come nearly in order, so the place is near the end. */
static void retained_bury(struct retained *store, struct entry *entry)
{
    struct list_node *before = store->tombstones.prev;
    while (before != &store->tombstones && LIST_ENTRY(before, struct entry, tombstone)->number > entry->number)
        before = before->prev;
    list_node_init(&entry->tombstone);
    list_insert_after(before, &entry->tombstone);
    store->tombstone_count++;
}

static void retained_unbury(struct retained *store, struct entry *entry)
{
    list_remove(&entry->tombstone);
    store->tombstone_count--;
}

/* ---- the bounds ---- */

static void take(struct retained *store, int64_t messages, int64_t bytes)
{
    atomic_fetch_add_explicit(&store->taken_messages, (uint64_t)messages, memory_order_relaxed);
    atomic_fetch_add_explicit(&store->taken_bytes, (uint64_t)bytes, memory_order_relaxed);
}

/* Up to `max`, or not at all. */
static bool try_take(_Atomic uint64_t *taken, uint64_t amount, uint64_t max)
{
    if (amount == 0)
        return true;
    uint64_t before = atomic_fetch_add_explicit(taken, amount, memory_order_relaxed);
    if (before < max && amount <= max - before)
        return true;
    atomic_fetch_sub_explicit(taken, amount, memory_order_relaxed);
    return false;
}

static bool is_near(_Atomic uint64_t *taken, uint64_t amount, uint64_t max, uint64_t distance)
{
    uint64_t now = atomic_load_explicit(taken, memory_order_relaxed);
    return now > max || amount > max - now || max - now - amount < distance;
}

bool retained_reserve(struct retained *store, struct retained_reservation *reserved_out, struct span topic, uint32_t bytes)
{
    const struct retained_limits *limits = &store->limits;
    struct retained_reservation reserved = {.is_message = true, .bytes = bytes};
    if (is_near(&store->taken_messages, 1, limits->messages_max, NEAR_MESSAGES) ||
        is_near(&store->taken_bytes, bytes, limits->bytes_max, NEAR_BYTES)) {
        const struct entry *entry = retained_lookup(store, topic);
        uint32_t replaced = entry ? entry_bytes(entry) : 0;
        reserved.is_message = replaced == 0;
        reserved.bytes = bytes > replaced ? bytes - replaced : 0;
    }
    if (try_take(&store->taken_messages, reserved.is_message, limits->messages_max)) {
        if (try_take(&store->taken_bytes, reserved.bytes, limits->bytes_max)) {
            *reserved_out = reserved;
            return true;
        }
        take(store, -(int64_t)reserved.is_message, 0);
    }
    return false;
}

void retained_unreserve(struct retained *store, const struct retained_reservation *reserved)
{
    take(store, -(int64_t)reserved->is_message, -(int64_t)reserved->bytes);
}

bool retained_may_remove(const struct retained *store, struct span topic)
{
    uint64_t max = store->limits.messages_max > RETAINED_TOMBSTONES_MIN ? store->limits.messages_max : RETAINED_TOMBSTONES_MIN;
    return atomic_load_explicit(&((struct retained *)(uintptr_t)store)->tombstone_count, memory_order_relaxed) < max ||
           retained_lookup(store, topic) != NULL;
}

/* ---- what a topic holds ---- */

/* A live entry becomes a tombstone. */
static void retained_kill(struct retained *store, struct entry *entry, uint64_t number)
{
    topic_index_remove(&store->live, entry);
    entry_drop_value(store, entry);
    store->messages--;
    store->bytes -= entry_bytes(entry);
    take(store, -1, -(int64_t)entry_bytes(entry));
    entry->state = TOMBSTONE;
    entry_set_bytes(entry, 0);
    entry->number = number;
    retained_bury(store, entry);
}

/* An entry for a new value: live, holding nothing; `entry` is what the topic has now, NULL = nothing. NULL when memory is short: nothing
 * changed. The caller sets what it holds. */
static struct entry *retained_claim(struct retained *store, struct entry *entry, struct span topic, uint64_t number, uint32_t bytes,
                                    int64_t expiry_wall_ns)
{
    if (entry != NULL && entry_is_live(entry)) {
        entry_drop_value(store, entry);
        store->bytes -= entry_bytes(entry);
    } else {
        bool is_new = entry == NULL;
        if (is_new)
            entry = retained_new_entry(store, topic, number);
        if (entry == NULL)
            return NULL;
        if (!topic_index_insert(&store->live, entry)) {
            if (is_new)
                retained_drop_entry(store, entry);
            return NULL;
        }
        if (!is_new)
            retained_unbury(store, entry);
        store->messages++;
    }
    entry->number = number;
    entry_set_bytes(entry, bytes);
    entry->live.expiry_wall_ns = expiry_wall_ns;
    store->bytes += bytes;
    return entry;
}

static enum retained_result retained_set(struct retained *store, struct span topic, uint64_t number, void *msg, uint32_t bytes,
                                         int64_t expiry_wall_ns)
{
    CHECK(topic.size > 0);
    CHECK(topic.size <= TOPIC_SIZE_MAX);
    CHECK(number > 0);
    struct entry *entry = retained_lookup(store, topic);
    if (entry != NULL && number <= entry->number)
        return RETAINED_SUPERSEDED;
    struct held *held = NULL;
    if (store->callbacks.sequence != NULL && (held = malloc(sizeof *held)) == NULL)
        return RETAINED_NOMEM;
    entry = retained_claim(store, entry, topic, number, bytes, expiry_wall_ns);
    if (entry == NULL) {
        free(held);
        return RETAINED_NOMEM;
    }
    store->callbacks.ref(msg);
    if (held != NULL) {
        *held = (struct held){.msg = msg, .entry = entry};
        held_list_push(&store->window, held);
        entry->live.held = held;
        entry->state = WINDOW;
    } else {
        entry->live.msg = msg;
        entry->state = MESSAGE;
    }
    return RETAINED_STORED;
}

enum retained_result retained_put(struct retained *store, struct span topic, uint64_t number, void *msg, uint32_t bytes,
                                  int64_t expiry_wall_ns, const struct retained_reservation *reserved)
{
    uint64_t messages_before = store->messages, bytes_before = store->bytes;
    enum retained_result result = retained_set(store, topic, number, msg, bytes, expiry_wall_ns);
    /* In one step: what others see is never less than what is there, nor more than that and what is reserved. */
    take(store, (int64_t)(store->messages - messages_before) - reserved->is_message,
         (int64_t)(store->bytes - bytes_before) - (int64_t)reserved->bytes);
    return result;
}

enum retained_result retained_restore(struct retained *store, struct span topic, uint64_t number, uint64_t sequence, uint32_t bytes,
                                      int64_t expiry_wall_ns)
{
    CHECK(topic.size > 0);
    CHECK(topic.size <= TOPIC_SIZE_MAX);
    CHECK(number > 0);
    CHECK(sequence > 0);
    CHECK(store->callbacks.sequence != NULL);
    struct entry *entry = retained_lookup(store, topic);
    if (entry != NULL && number <= entry->number)
        return RETAINED_SUPERSEDED;
    uint64_t messages_before = store->messages, bytes_before = store->bytes;
    entry = retained_claim(store, entry, topic, number, bytes, expiry_wall_ns);
    if (entry == NULL)
        return RETAINED_NOMEM;
    take(store, (int64_t)(store->messages - messages_before), (int64_t)(store->bytes - bytes_before));
    entry->live.sequence = sequence;
    entry->state = ON_DISK;
    return RETAINED_STORED;
}

enum retained_result retained_remove(struct retained *store, struct span topic, uint64_t number)
{
    CHECK(topic.size > 0);
    CHECK(topic.size <= TOPIC_SIZE_MAX);
    struct entry *entry = retained_lookup(store, topic);
    if (entry != NULL && number <= entry->number)
        return RETAINED_SUPERSEDED;
    if (entry != NULL && entry_is_live(entry)) {
        retained_kill(store, entry, number);
        return RETAINED_REMOVED;
    }
    if (entry != NULL) {
        retained_unbury(store, entry);
        entry->number = number;
    } else {
        entry = retained_new_entry(store, topic, number);
        if (entry == NULL)
            return RETAINED_NOMEM;
    }
    retained_bury(store, entry);
    return RETAINED_REMOVED;
}

void retained_forget_before(struct retained *store, uint64_t number)
{
    for (struct list_node *node; (node = list_first(&store->tombstones)) != NULL;) {
        struct entry *entry = LIST_ENTRY(node, struct entry, tombstone);
        if (entry->number >= number)
            return;
        retained_unbury(store, entry);
        retained_drop_entry(store, entry);
    }
}

/* ---- in memory or on disk ---- */

/* A held message goes; its sequence stays. */
static void entry_let_go(struct retained *store, struct entry *entry)
{
    uint64_t sequence = store->callbacks.sequence(entry->live.held->msg);
    entry_drop_value(store, entry);
    entry->live.sequence = sequence;
    entry->state = ON_DISK;
}

void retained_on_checkpoint(struct retained *store, uint64_t sequence)
{
    CHECK(sequence >= store->checkpoint);
    store->checkpoint = sequence;
    store->window_unlooked = store->window.messages;
}

bool retained_let_go(struct retained *store, size_t budget)
{
    for (struct list_node *node; store->window_unlooked > 0 && (node = list_first(&store->window.head)) != NULL; store->window_unlooked--) {
        if (budget-- == 0)
            return true;
        struct held *held = LIST_ENTRY(node, struct held, node);
        uint64_t sequence = store->callbacks.sequence(held->msg);
        if (sequence >= store->checkpoint)
            break;           /* those behind it came later, and wait for the next checkpoint as well */
        if (sequence == 0) { /* not durable yet: it must not keep others, whose shards were faster */
            held_list_remove(&store->window, held);
            held_list_push(&store->window, held);
        } else {
            entry_let_go(store, held->entry);
        }
    }
    store->window_unlooked = 0;
    return false;
}

void retained_offer(struct retained *store, struct span topic, uint64_t number, void *msg)
{
    struct entry *entry = retained_lookup(store, topic);
    if (entry == NULL || entry->number != number || entry->state != ON_DISK)
        return;
    if (entry_bytes(entry) > store->limits.cache_bytes_max || store->callbacks.sequence(msg) != entry->live.sequence)
        return;
    struct held *held = malloc(sizeof *held);
    if (held == NULL)
        return;
    while (store->cache.bytes > store->limits.cache_bytes_max - entry_bytes(entry))
        entry_let_go(store, LIST_ENTRY(list_first(&store->cache.head), struct held, node)->entry);
    store->callbacks.ref(msg);
    *held = (struct held){.msg = msg, .entry = entry};
    held_list_push(&store->cache, held);
    entry->live.held = held;
    entry->state = CACHED;
}

const void *retained_window_oldest(const struct retained *store)
{
    struct list_node *node = list_first(&store->window.head);
    return node != NULL ? LIST_ENTRY(node, struct held, node)->msg : NULL;
}

static struct retained_value entry_value(const struct entry *entry)
{
    bool is_held = entry->state == WINDOW || entry->state == CACHED;
    return (struct retained_value){.topic = entry_topic(entry),
                                   .msg = is_held                   ? entry->live.held->msg
                                          : entry->state == MESSAGE ? entry->live.msg
                                                                    : NULL,
                                   .sequence = entry->state == ON_DISK ? entry->live.sequence : 0,
                                   .number = entry->number,
                                   .expiry_wall_ns = entry->live.expiry_wall_ns,
                                   .bytes = entry_bytes(entry)};
}

static bool entry_is_expired(const struct entry *entry, int64_t now_wall_ns)
{
    return entry->live.expiry_wall_ns != RETAINED_NO_EXPIRY && entry->live.expiry_wall_ns <= now_wall_ns;
}

bool retained_find(struct retained *store, struct retained_value *value_out, struct span topic, int64_t now_wall_ns)
{
    const struct entry *entry = retained_lookup(store, topic);
    if (entry == NULL || !entry_is_live(entry) || entry_is_expired(entry, now_wall_ns))
        return false;
    *value_out = entry_value(entry);
    return true;
}

size_t retained_sweep(struct retained *store, int64_t now_wall_ns, size_t budget, retained_expired_fn on_expired, void *arg)
{
    size_t dropped = 0;
    if (budget > store->messages)
        budget = (size_t)store->messages; /* once round is enough */
    while (budget-- > 0 && store->messages > 0) {
        struct entry *entry = topic_index_at(&store->live, store->sweep);
        if (entry == NULL) {
            store->sweep = (struct topic_place){0, 0};
            entry = topic_index_at(&store->live, store->sweep);
        }
        if (entry_is_expired(entry, now_wall_ns) && entry->state != WINDOW) {
            struct retained_value value = entry_value(entry);
            if (on_expired)
                on_expired(arg, &value);
            retained_kill(store, entry, entry->number); /* the next one takes its place */
            store->expired++;
            dropped++;
        } else {
            store->sweep = topic_index_next(&store->live, store->sweep);
        }
    }
    return dropped;
}

void retained_get_stats(const struct retained *store, struct retained_stats *stats_out)
{
    *stats_out = (struct retained_stats){
        .messages = store->messages,
        .reserved_messages =
            atomic_load_explicit(&((struct retained *)(uintptr_t)store)->taken_messages, memory_order_relaxed) - store->messages,
        .bytes = store->bytes,
        .tombstones = store->tombstone_count,
        .index_bytes = store->entry_bytes + (store->window.messages + store->cache.messages) * sizeof(struct held) + store->topics.bytes +
                       topic_index_bytes(&store->live),
        .window_messages = store->window.messages,
        .window_bytes = store->window.bytes,
        .cache_messages = store->cache.messages,
        .cache_bytes = store->cache.bytes,
        .expired = store->expired,
    };
}

/* ---- scans ---- */

struct retained_scan *retained_scan_begin(struct retained *store, struct span filter)
{
    struct retained_scan *scan = calloc(1, sizeof *scan);
    struct topic_seek *seek = scan ? topic_seek_new(filter) : NULL;
    if (seek == NULL) {
        free(scan);
        return NULL;
    }
    *scan = (struct retained_scan){.store = store, .seek = seek};
    store->scans_open++;
    return scan;
}

bool retained_scan_step(struct retained_scan *scan, int64_t now_wall_ns, size_t budget,
                        bool (*visit)(void *arg, const struct retained_value *value), void *arg)
{
    struct retained *store = scan->store;
    CHECK(budget > 0);
    if (scan->is_done)
        return false;
    struct topic_place at = topic_index_seek(&store->live, topic_seek_key(scan->seek));
    bool stopped = false;
    for (struct entry *entry; (entry = topic_index_at(&store->live, at)) != NULL;) {
        /* Room for every key that this topic can lead to, before it is delivered; short of memory, try again in the next slice. */
        if (!topic_seek_reserve(scan->seek, entry->size))
            return true;
        if (stopped || budget-- == 0) {
            topic_seek_pause(scan->seek, entry_topic(entry));
            return true;
        }
        switch (topic_seek_judge(scan->seek, entry_topic(entry))) {
        case TOPIC_SEEK_MATCH:
            if (!entry_is_expired(entry, now_wall_ns)) {
                struct retained_value value = entry_value(entry);
                stopped = !visit(arg, &value);
            }
            at = topic_index_next(&store->live, at);
            break;
        case TOPIC_SEEK_ON:
            at = topic_index_seek(&store->live, topic_seek_key(scan->seek));
            break;
        case TOPIC_SEEK_END:
            scan->is_done = true;
            return false;
        }
    }
    scan->is_done = true;
    return false;
}

void retained_scan_end(struct retained_scan *scan)
{
    if (scan == NULL)
        return;
    scan->store->scans_open--;
    topic_seek_free(scan->seek);
    free(scan);
}
