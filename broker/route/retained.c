/* Retained messages in memory; see retained.h.
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

#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/list.h"
#include "common/set.h"

#define BLOCK_ENTRIES_MAX 128u

struct entry {
    struct set_entry set_entry;
    uint64_t number;
    union {
        struct {
            void *msg; /* one reference is ours */
            int64_t expiry_wall_ns;
        } live;
        struct list_node tombstone; /* in store->tombstones, ordered by number */
    };
    uint32_t bytes;
    uint16_t size;
    bool is_live;
    uint8_t topic[];
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
    struct position sweep; /* where the next sweep begins; approximate after changes */
    struct retained_limits limits;
    struct retained_callbacks callbacks;
    uint64_t hash_key;
    uint64_t messages, bytes, tombstone_count, entry_bytes, expired, refused;
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

struct retained *retained_new(uint64_t hash_key, const struct retained_limits *limits, const struct retained_callbacks *callbacks)
{
    struct retained *store = calloc(1, sizeof *store);
    if (store == NULL)
        return NULL;
    if (set_init(&store->topics, NULL) != ERR_OK) {
        free(store);
        return NULL;
    }
    list_init(&store->tombstones);
    store->hash_key = hash_key;
    store->limits = *limits;
    store->callbacks = *callbacks;
    return store;
}

static void retained_free_entry(struct set_entry *set_entry, void *arg)
{
    struct retained *store = arg;
    struct entry *entry = (struct entry *)set_entry;
    if (entry->is_live)
        store->callbacks.unref(entry->live.msg);
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

void retained_set_limits(struct retained *store, const struct retained_limits *limits) { store->limits = *limits; }

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
    entry->bytes = 0;
    entry->size = (uint16_t)topic.size;
    entry->is_live = false;
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

/* A live entry becomes a tombstone. */
static void retained_kill(struct retained *store, struct entry *entry, uint64_t number)
{
    retained_index_remove(store, entry);
    store->callbacks.unref(entry->live.msg);
    store->messages--;
    store->bytes -= entry->bytes;
    entry->is_live = false;
    entry->bytes = 0;
    entry->number = number;
    retained_bury(store, entry);
}

static enum retained_result retained_refuse(struct retained *store)
{
    store->refused++;
    return RETAINED_FULL;
}

enum retained_result retained_put(struct retained *store, struct span topic, uint64_t number, void *msg, uint32_t bytes,
                                  int64_t expiry_wall_ns)
{
    CHECK(topic.size > 0);
    CHECK(topic.size <= TOPIC_SIZE_MAX);
    CHECK(number > 0);
    struct entry *entry = retained_lookup(store, topic);
    if (entry != NULL && number <= entry->number)
        return RETAINED_SUPERSEDED;
    bool was_live = entry != NULL && entry->is_live;
    if (!was_live && store->messages >= store->limits.messages_max)
        return retained_refuse(store);
    uint64_t bytes_others = store->bytes - (was_live ? entry->bytes : 0);
    if (bytes > store->limits.bytes_max || bytes_others > store->limits.bytes_max - bytes)
        return retained_refuse(store);

    if (was_live) {
        store->callbacks.unref(entry->live.msg);
    } else {
        bool is_new = entry == NULL;
        if (is_new)
            entry = retained_new_entry(store, topic, number);
        if (entry == NULL)
            return RETAINED_NOMEM;
        if (!retained_index_insert(store, entry)) {
            if (is_new)
                retained_drop_entry(store, entry);
            return RETAINED_NOMEM;
        }
        if (!is_new)
            retained_unbury(store, entry);
        entry->is_live = true;
        store->messages++;
    }
    store->callbacks.ref(msg);
    entry->live.msg = msg;
    entry->live.expiry_wall_ns = expiry_wall_ns;
    entry->number = number;
    entry->bytes = bytes;
    store->bytes = bytes_others + bytes;
    return RETAINED_STORED;
}

enum retained_result retained_remove(struct retained *store, struct span topic, uint64_t number)
{
    CHECK(topic.size > 0);
    CHECK(topic.size <= TOPIC_SIZE_MAX);
    struct entry *entry = retained_lookup(store, topic);
    if (entry != NULL && number <= entry->number)
        return RETAINED_SUPERSEDED;
    if (entry != NULL && entry->is_live) {
        retained_kill(store, entry, number);
        return RETAINED_REMOVED;
    }
    if (entry != NULL) {
        retained_unbury(store, entry);
        entry->number = number;
    } else {
        if (store->tombstone_count >= store->limits.messages_max)
            return retained_refuse(store);
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

static struct retained_value entry_value(const struct entry *entry)
{
    return (struct retained_value){.topic = entry_topic(entry),
                                   .msg = entry->live.msg,
                                   .number = entry->number,
                                   .expiry_wall_ns = entry->live.expiry_wall_ns,
                                   .bytes = entry->bytes};
}

static bool entry_is_expired(const struct entry *entry, int64_t now_wall_ns)
{
    return entry->live.expiry_wall_ns != RETAINED_NO_EXPIRY && entry->live.expiry_wall_ns <= now_wall_ns;
}

bool retained_find(struct retained *store, struct retained_value *value_out, struct span topic, int64_t now_wall_ns)
{
    const struct entry *entry = retained_lookup(store, topic);
    if (entry == NULL || !entry->is_live || entry_is_expired(entry, now_wall_ns))
        return false;
    *value_out = entry_value(entry);
    return true;
}

size_t retained_sweep(struct retained *store, int64_t now_wall_ns, size_t budget)
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
        if (entry_is_expired(entry, now_wall_ns)) {
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
        .bytes = store->bytes,
        .tombstones = store->tombstone_count,
        .index_bytes = store->entry_bytes + store->topics.bytes + store->block_count * sizeof(struct index_block) +
                       store->block_capacity * sizeof(struct index_block *),
        .expired = store->expired,
        .refused = store->refused,
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
