/* The subscription index; topic_tree.h says what it is for and what it promises.
 *
 * Problem: every shard asks "who gets this topic?" for every message, at the same time, and subscriptions come and go meanwhile. So readers
 * take no lock and never retry; the one writer publishes each change by a single pointer, and what was replaced is freed when no reader can
 * be looking at it (common/epoch.h).
 *
 * Structures, and what a reader may rely on in each:
 *   exact filter   `struct exact` in the set `exacts`, keyed by the whole filter.
 *   trie node      `struct node` in the set `children`, keyed by (parent, level name). The wildcard children are not in the set: `plus` is
 *                  a pointer in the parent, and a final `#` is no node but the parent's second subscriber place, `hash_subs`. A node is
 *                  reached only through its parent, and is unlinked before its memory is retired, so a reader that has it keeps it for its
 *                  section.
 *   place          one word that says who subscribed (subscriber_place.h): it is replaced as a whole, so a reader sees the subscribers
 *                  before a change or after it.
 *
 * Rejected: a trie whose nodes own arrays or hash tables of children (two kinds of node, conversions, a rebuild that stalls for the one
 * node with a million children); a trie for exact filters too (a miss per level).
 *
 * A filter of thousands of levels costs a node per level, 64 bytes for a few bytes of filter; who may subscribe to how much is decided at
 * admission, not here. */
#include "broker/route/topic_tree.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "broker/route/subscriber_place.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/set.h"

/* Retired blocks after which a change looks for itself whether something can be freed. */
#define RECLAIM_INTERVAL 512u
#define SCRATCH_NODES_MIN 32u

struct exact {
    struct set_entry entry;
    subscriber_place subs;
    uint16_t size;
    uint8_t filter[];
};

struct node {
    struct set_entry entry;     /* its hash is also the seed of its children's */
    struct node *parent;        /* NULL for the root */
    subscriber_place subs;      /* of the filter that ends here */
    subscriber_place hash_subs; /* of the filter that ends in "#" below here */
    _Atomic(struct node *) plus;
    _Atomic(uint32_t) child_count; /* in the set; a reader skips the lookup when it is 0 */
    uint16_t size;
    bool is_plus; /* hangs on parent->plus, not in the set */
    uint8_t level[];
};

struct topic_tree {
    struct epoch_memory memory;
    struct set exacts;
    struct set children;
    struct node *root;
    uint64_t hash_key;
    size_t exact_filters, wildcard_filters, nodes, subscriptions; /* writer only */
    size_t deferred_seen;                                         /* deferred blocks after the last look, see RECLAIM_INTERVAL */
};

static size_t exact_size(size_t filter_size) { return offsetof(struct exact, filter) + filter_size; }
static size_t node_size(size_t level_size) { return offsetof(struct node, level) + level_size; }

static struct node *node_new(struct topic_tree *tree, struct node *parent, uint64_t hash, struct span level, bool is_plus)
{
    struct node *node = epoch_memory_alloc(&tree->memory, node_size(level.size));
    if (node == NULL)
        return NULL;
    node->entry.hash = hash;
    node->parent = parent;
    atomic_init(&node->subs, PLACE_NONE);
    atomic_init(&node->hash_subs, PLACE_NONE);
    atomic_init(&node->plus, NULL);
    atomic_init(&node->child_count, 0);
    node->size = (uint16_t)level.size;
    node->is_plus = is_plus;
    if (level.size > 0)
        memcpy(node->level, level.data, level.size);
    return node;
}

struct topic_tree *topic_tree_new(uint64_t hash_key)
{
    struct topic_tree *tree = calloc(1, sizeof *tree);
    if (tree == NULL)
        return NULL;
    tree->hash_key = hash_key;
    tree->memory.epoch = epoch_new();
    if (tree->memory.epoch == NULL)
        goto no_epoch;
    if (set_init(&tree->exacts, tree->memory.epoch) != ERR_OK)
        goto no_exacts;
    if (set_init(&tree->children, tree->memory.epoch) != ERR_OK)
        goto no_children;
    tree->root = node_new(tree, NULL, hash_u64(1, hash_key), span_of(NULL, 0), false);
    if (tree->root != NULL)
        return tree;
    set_deinit(&tree->children);
no_children:
    set_deinit(&tree->exacts);
no_exacts:
    epoch_free(tree->memory.epoch);
no_epoch:
    free(tree);
    return NULL;
}

static void topic_tree_free_exact(struct set_entry *entry, void *arg)
{
    (void)arg;
    struct exact *exact = (struct exact *)entry;
    place_free(&exact->subs);
    free(exact);
}

/* Nodes in the set are freed from there; each takes along the chain of `+` nodes that hangs on it. */
static void topic_tree_free_node(struct set_entry *entry, void *arg)
{
    (void)arg;
    for (struct node *node = (struct node *)entry, *plus; node != NULL; node = plus) {
        plus = atomic_load_explicit(&node->plus, memory_order_relaxed);
        place_free(&node->subs);
        place_free(&node->hash_subs);
        free(node);
    }
}

void topic_tree_free(struct topic_tree *tree)
{
    if (tree == NULL)
        return;
    set_each(&tree->exacts, topic_tree_free_exact, NULL);
    set_each(&tree->children, topic_tree_free_node, NULL);
    topic_tree_free_node(&tree->root->entry, NULL);
    set_deinit(&tree->exacts);
    set_deinit(&tree->children);
    epoch_free(tree->memory.epoch);
    free(tree);
}

struct epoch *topic_tree_epoch(struct topic_tree *tree) { return tree->memory.epoch; }

struct epoch_reader *topic_tree_reader_register(struct topic_tree *tree) { return epoch_reader_register(tree->memory.epoch); }

bool topic_tree_poll(struct topic_tree *tree)
{
    bool more = epoch_poll(tree->memory.epoch);
    tree->deferred_seen = epoch_deferred_count(tree->memory.epoch);
    return more;
}

/* A writer that is kept busy for long must not pile up what it retires. */
static void topic_tree_reclaim(struct topic_tree *tree)
{
    if (epoch_deferred_count(tree->memory.epoch) >= tree->deferred_seen + RECLAIM_INTERVAL)
        (void)topic_tree_poll(tree);
}

/* ---- filters ---- */

static bool exact_equal(const struct set_entry *entry, const void *key)
{
    const struct exact *exact = (const struct exact *)entry;
    const struct span *filter = key;
    return exact->size == filter->size && memcmp(exact->filter, filter->data, filter->size) == 0;
}

struct child_key {
    const struct node *parent;
    struct span level;
};

static bool child_equal(const struct set_entry *entry, const void *key)
{
    const struct node *node = (const struct node *)entry;
    const struct child_key *child = key;
    return node->parent == child->parent && node->size == child->level.size &&
           (node->size == 0 || memcmp(node->level, child->level.data, node->size) == 0);
}

static struct exact *exact_find(const struct topic_tree *tree, struct span filter, uint64_t hash)
{
    return (struct exact *)set_find(&tree->exacts, hash, exact_equal, &filter);
}

static uint64_t child_hash(const struct node *parent, struct span level) { return hash_bytes(level.data, level.size, parent->entry.hash); }

static struct node *child_find(const struct topic_tree *tree, const struct node *parent, struct span level)
{
    struct child_key key = {parent, level};
    return (struct node *)set_find(&tree->children, child_hash(parent, level), child_equal, &key);
}

/* The level that begins at `at`, without its slash. The last level ends at topic.size; a topic that ends in '/' has an empty one there. */
static struct span level_at(struct span topic, size_t at)
{
    const uint8_t *begin = topic.data + at;
    const uint8_t *slash = at < topic.size ? memchr(begin, '/', topic.size - at) : NULL;
    return span_of(begin, slash != NULL ? (size_t)(slash - begin) : topic.size - at);
}

static bool level_is(struct span level, char wildcard) { return level.size == 1 && level.data[0] == (uint8_t)wildcard; }

/* Well formed? [MQTT-4.7.1-1..3] Says whether it has a wildcard. */
static bool filter_check(struct span filter, bool *wildcard_out)
{
    *wildcard_out = false;
    if (filter.size == 0 || filter.size > TOPIC_SIZE_MAX)
        return false;
    for (size_t at = 0; at <= filter.size;) {
        struct span level = level_at(filter, at);
        bool last = at + level.size == filter.size;
        bool hash = level_is(level, '#'), plus = level_is(level, '+');
        if (hash && !last)
            return false;
        if (!hash && !plus && (memchr(level.data, '#', level.size) != NULL || memchr(level.data, '+', level.size) != NULL))
            return false;
        *wildcard_out = *wildcard_out || hash || plus;
        at += level.size + 1;
    }
    return true;
}

/* Unlink and retire the node and those above it that nothing needs any more. */
static void topic_tree_prune(struct topic_tree *tree, struct node *node)
{
    while (node != tree->root && place_is_empty(&node->subs) && place_is_empty(&node->hash_subs) &&
           atomic_load_explicit(&node->plus, memory_order_relaxed) == NULL &&
           atomic_load_explicit(&node->child_count, memory_order_relaxed) == 0) {
        struct node *parent = node->parent;
        if (node->is_plus) {
            atomic_store_explicit(&parent->plus, NULL, memory_order_release);
        } else {
            set_remove(&tree->children, &node->entry);
            atomic_fetch_sub_explicit(&parent->child_count, 1, memory_order_relaxed);
        }
        tree->nodes--;
        epoch_memory_retire(&tree->memory, node, node_size(node->size));
        node = parent;
    }
}

/* The child for a level of a filter, made when it is not there. NULL when memory is short. */
static struct node *topic_tree_make_child(struct topic_tree *tree, struct node *parent, struct span level)
{
    bool is_plus = level_is(level, '+');
    struct node *child = is_plus ? atomic_load_explicit(&parent->plus, memory_order_relaxed) : child_find(tree, parent, level);
    if (child != NULL)
        return child;
    uint64_t hash = is_plus ? hash_u64(parent->entry.hash, tree->hash_key) : child_hash(parent, level);
    child = node_new(tree, parent, hash, is_plus ? span_of(NULL, 0) : level, is_plus);
    if (child == NULL)
        return NULL;
    if (is_plus) {
        atomic_store_explicit(&parent->plus, child, memory_order_release);
    } else {
        if (set_put(&tree->children, &child->entry) != ERR_OK) {
            epoch_memory_discard(&tree->memory, child, node_size(level.size));
            return NULL;
        }
        atomic_fetch_add_explicit(&parent->child_count, 1, memory_order_relaxed);
    }
    tree->nodes++;
    return child;
}

/* The node and place of a wildcard filter. With `make`, missing nodes are made; NULL when memory is short (nothing is left behind).
 * Without, NULL when there is no such filter; any thread may ask that. */
static subscriber_place *topic_tree_wildcard_place(struct topic_tree *tree, struct node **node_out, struct span filter, bool make)
{
    struct node *node = tree->root;
    for (size_t at = 0; at <= filter.size;) {
        struct span level = level_at(filter, at);
        if (level_is(level, '#')) {
            *node_out = node;
            return &node->hash_subs;
        }
        struct node *child;
        if (make)
            child = topic_tree_make_child(tree, node, level);
        else
            child = level_is(level, '+') ? atomic_load_explicit(&node->plus, memory_order_acquire) : child_find(tree, node, level);
        if (child == NULL) {
            if (make)
                topic_tree_prune(tree, node);
            return NULL;
        }
        node = child;
        at += level.size + 1;
    }
    *node_out = node;
    return &node->subs;
}

static enum err topic_tree_add_exact(struct topic_tree *tree, bool *was_there_out, struct span filter, const struct subscriber *sub)
{
    uint64_t hash = hash_span(filter, tree->hash_key);
    struct exact *exact = exact_find(tree, filter, hash);
    if (exact != NULL)
        return place_put(&tree->memory, &exact->subs, was_there_out, sub);
    exact = epoch_memory_alloc(&tree->memory, exact_size(filter.size));
    if (exact == NULL)
        return ERR_NOMEM;
    exact->entry.hash = hash;
    exact->size = (uint16_t)filter.size;
    memcpy(exact->filter, filter.data, filter.size);
    atomic_init(&exact->subs, PLACE_NONE);
    if (place_put(&tree->memory, &exact->subs, was_there_out, sub) != ERR_OK)
        goto no_subscriber;
    if (set_put(&tree->exacts, &exact->entry) != ERR_OK)
        goto no_place;
    tree->exact_filters++;
    return ERR_OK;
no_place:
    (void)place_remove(&tree->memory, &exact->subs, sub);
no_subscriber:
    epoch_memory_discard(&tree->memory, exact, exact_size(filter.size));
    return ERR_NOMEM;
}

static enum err topic_tree_add_wildcard(struct topic_tree *tree, bool *was_there_out, struct span filter, const struct subscriber *sub)
{
    struct node *node;
    subscriber_place *place = topic_tree_wildcard_place(tree, &node, filter, true);
    if (place == NULL)
        return ERR_NOMEM;
    bool was_empty = place_is_empty(place);
    enum err err = place_put(&tree->memory, place, was_there_out, sub);
    if (err != ERR_OK)
        topic_tree_prune(tree, node);
    else if (was_empty)
        tree->wildcard_filters++;
    return err;
}

enum err topic_tree_add(struct topic_tree *tree, bool *was_there_out, struct span filter, const struct subscriber *sub)
{
    bool wildcard, was_there;
    if (!filter_check(filter, &wildcard))
        return ERR_INVALID;
    enum err err = (wildcard ? topic_tree_add_wildcard : topic_tree_add_exact)(tree, &was_there, filter, sub);
    if (err != ERR_OK)
        return err;
    tree->subscriptions += !was_there;
    if (was_there_out != NULL)
        *was_there_out = was_there;
    topic_tree_reclaim(tree);
    return ERR_OK;
}

static bool topic_tree_remove_exact(struct topic_tree *tree, struct span filter, const struct subscriber *id)
{
    struct exact *exact = exact_find(tree, filter, hash_span(filter, tree->hash_key));
    if (exact == NULL || !place_remove(&tree->memory, &exact->subs, id))
        return false;
    if (place_is_empty(&exact->subs)) {
        set_remove(&tree->exacts, &exact->entry);
        epoch_memory_retire(&tree->memory, exact, exact_size(exact->size));
        tree->exact_filters--;
    }
    return true;
}

static bool topic_tree_remove_wildcard(struct topic_tree *tree, struct span filter, const struct subscriber *id)
{
    struct node *node;
    subscriber_place *place = topic_tree_wildcard_place(tree, &node, filter, false);
    if (place == NULL || !place_remove(&tree->memory, place, id))
        return false;
    if (place_is_empty(place)) {
        tree->wildcard_filters--;
        topic_tree_prune(tree, node);
    }
    return true;
}

bool topic_tree_remove(struct topic_tree *tree, struct span filter, uint64_t number)
{
    struct subscriber id = {.number = number};
    bool wildcard;
    if (!filter_check(filter, &wildcard))
        return false;
    if (!(wildcard ? topic_tree_remove_wildcard : topic_tree_remove_exact)(tree, filter, &id))
        return false;
    tree->subscriptions--;
    topic_tree_reclaim(tree);
    return true;
}

/* Low two bits of a topic_filter_ref. */
#define REF_EXACT ((uintptr_t)1)     /* struct exact */
#define REF_NODE ((uintptr_t)2)      /* struct node: the filter that ends there */
#define REF_NODE_HASH ((uintptr_t)3) /* struct node: the filter that ends in "#" below it */
#define REF_TAG_MASK ((uintptr_t)3)

/* A subscriber of a filter and where that stands; NULL when it is not there. Any thread. */
static const struct subscriber *topic_tree_lookup(struct topic_tree *tree, struct topic_filter_ref *ref_out, struct span filter,
                                                  uint64_t number)
{
    struct subscriber id = {.number = number};
    subscriber_place *place = NULL;
    bool wildcard;
    if (!filter_check(filter, &wildcard))
        return NULL;
    if (wildcard) {
        struct node *node;
        place = topic_tree_wildcard_place(tree, &node, filter, false);
        if (place != NULL)
            ref_out->word = (uintptr_t)node | (place == &node->hash_subs ? REF_NODE_HASH : REF_NODE);
    } else {
        struct exact *exact = exact_find(tree, filter, hash_span(filter, tree->hash_key));
        place = exact != NULL ? &exact->subs : NULL;
        ref_out->word = (uintptr_t)exact | REF_EXACT;
    }
    return place != NULL ? place_find(place, &id) : NULL;
}

bool topic_tree_get(struct topic_tree *tree, struct subscriber *sub_out, struct span filter, uint64_t number)
{
    struct topic_filter_ref ref;
    const struct subscriber *sub = topic_tree_lookup(tree, &ref, filter, number);
    if (sub != NULL)
        *sub_out = *sub;
    return sub != NULL;
}

struct topic_filter_ref topic_tree_find(struct topic_tree *tree, struct epoch_reader *reader, struct span filter, uint64_t number)
{
    DCHECK(reader == NULL || epoch_is_active(reader));
    (void)reader;
    struct topic_filter_ref ref;
    return topic_tree_lookup(tree, &ref, filter, number) != NULL ? ref : (struct topic_filter_ref){0};
}

/* The end of a text that is written from its end; out NULL: only its size is wanted. */
static void text_put_before(uint8_t *out, size_t *at, size_t size, struct span piece)
{
    *at += piece.size;
    if (out != NULL && piece.size > 0)
        memcpy(out + size - *at, piece.data, piece.size);
}

/* The filter of a node, with "#" or without, into the last bytes of out[0..size). Returns how many. */
static size_t node_text(const struct node *node, bool hash, uint8_t *out, size_t size)
{
    size_t at = 0;
    if (hash)
        text_put_before(out, &at, size, SPAN_LITERAL("#"));
    for (bool more = hash; node->parent != NULL; node = node->parent, more = true) {
        if (more)
            text_put_before(out, &at, size, SPAN_LITERAL("/"));
        text_put_before(out, &at, size, node->is_plus ? SPAN_LITERAL("+") : span_of(node->level, node->size));
    }
    return at;
}

size_t topic_filter_text(struct topic_filter_ref ref, uint8_t *out)
{
    CHECK(ref.word != 0);
    const void *target = (const void *)(ref.word & ~REF_TAG_MASK);
    if ((ref.word & REF_TAG_MASK) == REF_EXACT) {
        const struct exact *exact = target;
        if (out != NULL)
            memcpy(out, exact->filter, exact->size);
        return exact->size;
    }
    bool hash = (ref.word & REF_TAG_MASK) == REF_NODE_HASH;
    size_t size = node_text(target, hash, NULL, 0);
    return out != NULL ? node_text(target, hash, out, size) : size;
}

void topic_tree_get_stats(const struct topic_tree *tree, struct topic_tree_stats *stats_out)
{
    *stats_out = (struct topic_tree_stats){
        .exact_filters = tree->exact_filters,
        .wildcard_filters = tree->wildcard_filters,
        .nodes = tree->nodes,
        .subscriptions = tree->subscriptions,
        .bytes = tree->memory.bytes + tree->exacts.bytes + tree->children.bytes,
        .deferred = epoch_deferred_count(tree->memory.epoch),
    };
}

/* ---- matching: any thread ---- */

/* How a walk goes on after a place. */
enum match_step { MATCH_ON, MATCH_STOP, MATCH_NOMEM };

/* All subscribers of a place into the list; with `first_only` just say that there is one. */
static enum match_step match_collect(struct match_list *list, subscriber_place *place, bool first_only)
{
    uintptr_t word = atomic_load_explicit(place, memory_order_acquire);
    if (word == PLACE_NONE)
        return MATCH_ON;
    if (first_only)
        return MATCH_STOP;
    return place_collect(word, list) ? MATCH_ON : MATCH_NOMEM;
}

/* Room for the `count` nodes of this level in the first half of the scratch, and for two children of each in the second. */
static bool match_reserve_scratch(struct match_list *list, size_t count)
{
    if (list->scratch_capacity / 2 >= 2 * count)
        return true;
    size_t capacity = list->scratch_capacity < SCRATCH_NODES_MIN ? SCRATCH_NODES_MIN : list->scratch_capacity;
    while (capacity / 2 < 2 * count)
        capacity *= 2;
    void **scratch = realloc(list->scratch, capacity * sizeof *scratch);
    if (scratch == NULL)
        return false;
    list->scratch = scratch;
    list->scratch_capacity = capacity;
    return true;
}

/* The wildcard filters: all trie nodes that fit the levels so far, one level at a time. */
static enum match_step match_walk(struct topic_tree *tree, struct span topic, struct match_list *list, bool first_only)
{
    if (!match_reserve_scratch(list, 1))
        return MATCH_NOMEM;
    size_t count = 1;
    list->scratch[0] = tree->root;
    bool wildcards = topic.size == 0 || topic.data[0] != '$'; /* may wildcards match this level? [MQTT-4.7.2-1] */
    enum match_step step = MATCH_ON;
    for (size_t at = 0; count > 0 && at <= topic.size; wildcards = true) {
        struct span level = level_at(topic, at);
        if (!match_reserve_scratch(list, count))
            return MATCH_NOMEM;
        void **next = list->scratch + list->scratch_capacity / 2;
        size_t next_count = 0;
        for (size_t i = 0; i < count; i++) {
            struct node *node = list->scratch[i];
            if (atomic_load_explicit(&node->child_count, memory_order_relaxed) > 0) {
                struct node *child = child_find(tree, node, level);
                if (child != NULL)
                    next[next_count++] = child;
            }
            if (!wildcards)
                continue;
            struct node *plus = atomic_load_explicit(&node->plus, memory_order_acquire);
            if (plus != NULL)
                next[next_count++] = plus;
            step = match_collect(list, &node->hash_subs, first_only);
            if (step != MATCH_ON)
                return step;
        }
        memcpy(list->scratch, next, next_count * sizeof *next);
        count = next_count;
        at += level.size + 1;
    }
    /* The whole topic is used up: filters that end here, and "x/#" for the topic "x". */
    for (size_t i = 0; i < count && step == MATCH_ON; i++) {
        struct node *node = list->scratch[i];
        step = match_collect(list, &node->subs, first_only);
        if (step == MATCH_ON)
            step = match_collect(list, &node->hash_subs, first_only);
    }
    return step;
}

static enum match_step match_all(struct topic_tree *tree, struct epoch_reader *reader, struct span topic, struct match_list *list,
                                 bool first_only)
{
    DCHECK(reader == NULL || epoch_is_active(reader));
    (void)reader;
    list->count = 0;
    enum match_step step = MATCH_ON;
    struct exact *exact = exact_find(tree, topic, hash_span(topic, tree->hash_key));
    if (exact != NULL)
        step = match_collect(list, &exact->subs, first_only);
    return step == MATCH_ON ? match_walk(tree, topic, list, first_only) : step;
}

enum err topic_tree_match(struct topic_tree *tree, struct epoch_reader *reader, struct span topic, struct match_list *list)
{
    return match_all(tree, reader, topic, list, false) == MATCH_NOMEM ? ERR_NOMEM : ERR_OK;
}

bool topic_tree_any(struct topic_tree *tree, struct epoch_reader *reader, struct span topic, struct match_list *list)
{
    return match_all(tree, reader, topic, list, true) != MATCH_ON;
}
