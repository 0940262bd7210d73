/* Retained values, in memory or named by their sequence; see retained.h.
 *
 * Two indexes over the same entries. The hash set answers put, remove and find with one probe, and holds tombstones too. The ordered index
 * holds live entries only, in blocks of up to 128 pointers under one array of blocks: a topic is found by two binary searches, and an
 * insertion moves at most one block's pointers (and, once in some sixty insertions, the array behind a new block: 8 bytes for every ninety
 * topics). Only a topic that comes or goes touches it; a new value for a known topic does not.
 *
 * Order: by bytes, except that '/' is below all others. So everything below "a/b" ("a/b/...") follows "a/b" at once, before "a/b!" or
 * "a/b0", and the first key that is not of that subtree is the lower bound of "a/b" followed by the second lowest byte, which is 0. (No
 * MQTT topic contains a 0 byte, but nothing here depends on it.)
 *
 * A scan looks at one topic, and either delivers it and goes to the next, or learns from the first level that does not fit how far to seek:
 * to the level that the filter asks for; or, when that is behind us, past the subtree of the last level that a `+` took. Each seek goes
 * forward, so a scan ends; between slices it keeps the topic it will look at next, and seeks to it again.
 *
 * Rejected: a trie with iterators (every removal would have to find and repair the iterators that stand on it); a snapshot per scan. */
#include "broker/route/retained.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "common/check.h"
#include "common/epoch.h"
#include "common/hash.h"
#include "common/list.h"
#include "common/set.h"

#define BLOCK_ENTRIES_MAX 128u
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

struct index_block {
    uint32_t count; /* > 0 */
    struct entry *entries[BLOCK_ENTRIES_MAX];
};

/* A place in the ordered index; behind the last entry: block == block_count. */
struct position {
    size_t block;
    uint32_t entry;
};

struct retained {
    struct set topics;
    struct index_block **blocks;
    size_t block_count, block_capacity;
    struct list_node tombstones;
    struct held_list window, cache;
    uint64_t checkpoint;      /* below it, sequences can be read from disk */
    uint64_t window_unlooked; /* of the window, still to be looked at for this checkpoint */
    struct position sweep;    /* where the next sweep begins; approximate after changes */
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
    struct span filter; /* in this block */
    uint8_t *key;       /* the topic to look at next, or where to seek to */
    size_t key_size, key_capacity;
    bool is_done;
    uint8_t filter_bytes[];
};

static size_t entry_size(size_t topic_size) { return offsetof(struct entry, topic) + topic_size; }
static struct span entry_topic(const struct entry *entry) { return span_of(entry->topic, entry->size); }
static bool entry_is_live(const struct entry *entry) { return entry->state != TOMBSTONE; }
static uint32_t entry_bytes(const struct entry *entry)
{
    return atomic_load_explicit(&((struct entry *)(uintptr_t)entry)->bytes, memory_order_relaxed);
}
static void entry_set_bytes(struct entry *entry, uint32_t bytes) { atomic_store_explicit(&entry->bytes, bytes, memory_order_relaxed); }

/* ---- the ordered index ---- */

/* The rank of a byte: '/' first. */
static int topic_rank(uint8_t byte) { return byte == '/' ? 0 : byte < '/' ? byte + 1 : byte; }

/* < 0, 0, > 0: topic order. */
static int topic_compare(struct span a, struct span b)
{
    size_t size = a.size < b.size ? a.size : b.size, i = 0;
    while (i + 8 <= size && load_le64(a.data + i) == load_le64(b.data + i))
        i += 8;
    for (; i < size; i++)
        if (a.data[i] != b.data[i])
            return topic_rank(a.data[i]) - topic_rank(b.data[i]);
    return a.size < b.size ? -1 : a.size > b.size;
}

/* The first place whose topic is not below `key`. */
static struct position retained_seek(const struct retained *store, struct span key)
{
    size_t low = 0, high = store->block_count; /* blocks before `low` begin at or below key */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (topic_compare(entry_topic(store->blocks[middle]->entries[0]), key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return (struct position){0, 0};
    const struct index_block *block = store->blocks[low - 1];
    uint32_t first = 0, end = block->count;
    while (first < end) {
        uint32_t middle = first + (end - first) / 2;
        if (topic_compare(entry_topic(block->entries[middle]), key) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    return first == block->count ? (struct position){low, 0} : (struct position){low - 1, first};
}

static struct entry *retained_at(const struct retained *store, struct position at)
{
    return at.block < store->block_count ? store->blocks[at.block]->entries[at.entry] : NULL;
}

static struct position retained_next(const struct retained *store, struct position at)
{
    if (++at.entry < store->blocks[at.block]->count)
        return at;
    return (struct position){at.block + 1, 0};
}

/* A new empty block at `index` of the array. NULL when memory is short. */
static struct index_block *retained_insert_block(struct retained *store, size_t index)
{
    if (store->block_count == store->block_capacity) {
        size_t capacity = store->block_capacity == 0 ? 16 : store->block_capacity * 2;
        struct index_block **blocks = realloc(store->blocks, capacity * sizeof(struct index_block *));
        if (blocks == NULL)
            return NULL;
        store->blocks = blocks;
        store->block_capacity = capacity;
    }
    struct index_block *block = malloc(sizeof *block);
    if (block == NULL)
        return NULL;
    block->count = 0;
    memmove(store->blocks + index + 1, store->blocks + index, (store->block_count - index) * sizeof(struct index_block *));
    store->blocks[index] = block;
    store->block_count++;
    return block;
}

static void retained_remove_block(struct retained *store, size_t index)
{
    free(store->blocks[index]);
    store->block_count--;
    memmove(store->blocks + index, store->blocks + index + 1, (store->block_count - index) * sizeof(struct index_block *));
}

/* False when memory is short. */
static bool retained_index_insert(struct retained *store, struct entry *entry)
{
    struct position at = retained_seek(store, entry_topic(entry));
    /* The end of a block and the beginning of the next are the same place; prefer the former. */
    if (at.entry == 0 && at.block > 0)
        at = (struct position){at.block - 1, store->blocks[at.block - 1]->count};
    if (store->block_count == 0 && retained_insert_block(store, 0) == NULL)
        return false;
    struct index_block *block = store->blocks[at.block];
    if (block->count == BLOCK_ENTRIES_MAX) {
        struct index_block *upper = retained_insert_block(store, at.block + 1);
        if (upper == NULL)
            return false;
        /* Topics that come in order fill their blocks: nothing moves when the new one is the last of all. */
        bool is_last = at.entry == block->count && at.block + 2 == store->block_count;
        uint32_t keep = is_last ? block->count : block->count / 2;
        upper->count = block->count - keep;
        memcpy(upper->entries, block->entries + keep, upper->count * sizeof upper->entries[0]);
        block->count = keep;
        if (at.entry > keep || is_last) {
            at.entry -= keep;
            block = upper;
        }
    }
    memmove(block->entries + at.entry + 1, block->entries + at.entry, (block->count - at.entry) * sizeof block->entries[0]);
    block->entries[at.entry] = entry;
    block->count++;
    return true;
}

static void retained_index_remove(struct retained *store, struct entry *entry)
{
    struct position at = retained_seek(store, entry_topic(entry));
    CHECK(retained_at(store, at) == entry);
    struct index_block *block = store->blocks[at.block];
    block->count--;
    memmove(block->entries + at.entry, block->entries + at.entry + 1, (block->count - at.entry) * sizeof block->entries[0]);
    if (block->count == 0) {
        retained_remove_block(store, at.block);
        return;
    }
    /* Two neighbours that together are half a block become one. */
    size_t low = at.block + 1 < store->block_count ? at.block : at.block - 1;
    if (store->block_count < 2 || store->blocks[low]->count + store->blocks[low + 1]->count > BLOCK_ENTRIES_MAX / 2)
        return;
    struct index_block *into = store->blocks[low], *from = store->blocks[low + 1];
    memcpy(into->entries + into->count, from->entries, from->count * sizeof from->entries[0]);
    into->count += from->count;
    retained_remove_block(store, low + 1);
}

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
    for (size_t i = 0; i < store->block_count; i++)
        free(store->blocks[i]);
    free(store->blocks);
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
    retained_index_remove(store, entry);
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
        if (!retained_index_insert(store, entry)) {
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
    while (budget-- > 0 && store->block_count > 0) {
        struct position *at = &store->sweep;
        if (at->block >= store->block_count)
            *at = (struct position){0, 0};
        if (at->entry >= store->blocks[at->block]->count) {
            *at = (struct position){at->block + 1, 0};
            budget++; /* nothing was looked at */
            continue;
        }
        struct entry *entry = retained_at(store, *at);
        if (entry_is_expired(entry, now_wall_ns) && entry->state != WINDOW) {
            struct retained_value value = entry_value(entry);
            if (on_expired)
                on_expired(arg, &value);
            retained_kill(store, entry, entry->number); /* the next one takes its place */
            store->expired++;
            dropped++;
        } else {
            *at = retained_next(store, *at);
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
                       store->block_count * sizeof(struct index_block) + store->block_capacity * sizeof(struct index_block *),
        .window_messages = store->window.messages,
        .window_bytes = store->window.bytes,
        .cache_messages = store->cache.messages,
        .cache_bytes = store->cache.bytes,
        .expired = store->expired,
    };
}

/* ---- scans ---- */

static bool scan_reserve(struct retained_scan *scan, size_t size)
{
    if (scan->key_capacity >= size)
        return true;
    uint8_t *key = realloc(scan->key, size);
    if (key == NULL)
        return false;
    scan->key = key;
    scan->key_capacity = size;
    return true;
}

static void scan_set_key(struct retained_scan *scan, struct span a, struct span b)
{
    CHECK(a.size + b.size <= scan->key_capacity);
    if (a.size > 0)
        memmove(scan->key, a.data, a.size);
    if (b.size > 0)
        memcpy(scan->key + a.size, b.data, b.size);
    scan->key_size = a.size + b.size;
}

static struct span level_at(struct span text, size_t at)
{
    const uint8_t *begin = text.data + at;
    const uint8_t *slash = at < text.size ? memchr(begin, '/', text.size - at) : NULL;
    return span_of(begin, slash != NULL ? (size_t)(slash - begin) : text.size - at);
}

static bool level_is(struct span level, char wildcard) { return level.size == 1 && level.data[0] == (uint8_t)wildcard; }
static bool level_is_wildcard(struct span level) { return level_is(level, '+') || level_is(level, '#'); }

struct retained_scan *retained_scan_begin(struct retained *store, struct span filter)
{
    CHECK(filter.size > 0);
    CHECK(filter.size <= TOPIC_SIZE_MAX);
    struct retained_scan *scan = calloc(1, sizeof *scan + filter.size);
    if (scan == NULL)
        return NULL;
    scan->store = store;
    scan->filter = span_of(scan->filter_bytes, filter.size);
    memcpy(scan->filter_bytes, filter.data, filter.size);
    /* Begin at the levels in front of the first wildcard ("a/b" for "a/b/#", which the topic "a/b" matches too). */
    size_t prefix = 0;
    for (size_t at = 0; at <= filter.size;) {
        struct span level = level_at(filter, at);
        if (level_is_wildcard(level))
            break;
        prefix = at + level.size;
        at = prefix + 1;
    }
    if (!scan_reserve(scan, prefix + 1)) {
        free(scan);
        return NULL;
    }
    scan_set_key(scan, span_of(filter.data, prefix), span_of(NULL, 0));
    store->scans_open++;
    return scan;
}

enum scan_verdict { SCAN_MATCH, SCAN_SEEK, SCAN_END };

/* Does the topic match? If not, set the key to where the next one that could match begins (SCAN_SEEK), or there is none (SCAN_END).
 * The key has room for the topic, the filter and two bytes more. */
static enum scan_verdict scan_judge(struct retained_scan *scan, struct span topic)
{
    struct span filter = scan->filter;
    if (topic.data[0] == '$' && level_is_wildcard(level_at(filter, 0))) { /* [MQTT-4.7.2-1] */
        scan_set_key(scan, SPAN_LITERAL("%"), span_of(NULL, 0));          /* the byte after '$' */
        return SCAN_SEEK;
    }
    size_t filter_at = 0, topic_at = 0;
    size_t plus_end = 0; /* end of the last level that a `+` took */
    bool plus = false;
    for (;;) {
        struct span wanted = level_at(filter, filter_at);
        if (level_is(wanted, '#'))
            return SCAN_MATCH;
        if (topic_at > topic.size) { /* the topic has ended, the filter has not: go below the topic */
            scan_set_key(scan, topic, SPAN_LITERAL("/"));
            if (!level_is(wanted, '+')) {
                memcpy(scan->key + scan->key_size, wanted.data, wanted.size);
                scan->key_size += wanted.size;
            }
            return SCAN_SEEK;
        }
        struct span level = level_at(topic, topic_at);
        if (level_is(wanted, '+')) {
            plus = true;
            plus_end = topic_at + level.size;
        } else if (!span_equal(level, wanted)) {
            if (topic_compare(level, wanted) < 0) {
                scan_set_key(scan, span_of(topic.data, topic_at), wanted);
                return SCAN_SEEK;
            }
            break;
        }
        filter_at += wanted.size + 1;
        topic_at += level.size + 1;
        if (filter_at > filter.size) {
            if (topic_at > topic.size)
                return SCAN_MATCH;
            break; /* deeper than the filter */
        }
    }
    if (!plus)
        return SCAN_END;
    scan_set_key(scan, span_of(topic.data, plus_end), SPAN_LITERAL("\0")); /* past the subtree */
    return SCAN_SEEK;
}

bool retained_scan_step(struct retained_scan *scan, int64_t now_wall_ns, size_t budget,
                        bool (*visit)(void *arg, const struct retained_value *value), void *arg)
{
    struct retained *store = scan->store;
    CHECK(budget > 0);
    if (scan->is_done)
        return false;
    struct position at = retained_seek(store, span_of(scan->key, scan->key_size));
    bool stopped = false;
    for (struct entry *entry; (entry = retained_at(store, at)) != NULL;) {
        /* Room for every key that this topic can lead to, before it is delivered; short of memory, try again in the next slice. */
        if (!scan_reserve(scan, entry->size + scan->filter.size + 2))
            return true;
        if (stopped || budget-- == 0) {
            scan_set_key(scan, entry_topic(entry), span_of(NULL, 0));
            return true;
        }
        switch (scan_judge(scan, entry_topic(entry))) {
        case SCAN_MATCH:
            if (!entry_is_expired(entry, now_wall_ns)) {
                struct retained_value value = entry_value(entry);
                stopped = !visit(arg, &value);
            }
            at = retained_next(store, at);
            break;
        case SCAN_SEEK:
            at = retained_seek(store, span_of(scan->key, scan->key_size));
            break;
        case SCAN_END:
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
    free(scan->key);
    free(scan);
}
