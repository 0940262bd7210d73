/* The subscription index; topic_tree.h says what it is for and what it promises.
 *
 * Problem: every shard asks "who gets this topic?" for every message, at the same time, and subscriptions come and go meanwhile. So readers
 * take no lock and never retry; the one writer publishes each change by a single pointer, and what was replaced is freed when no reader can
 * be looking at it (common/epoch.h).
 *
 * Structures, and what a reader may rely on in each:
 *   exact filter   `struct exact` in the set `exacts`, keyed by the whole filter.
 *   trie node      `struct node` in the set `children`, keyed by (parent, level name). The wildcard children are not in the set: `plus` is
 * a pointer in the parent, and a final `#` is no node but the parent's second subscriber place, `hash_subs`. A node is reached only through
 * its parent, and is unlinked before its memory is retired, so a reader that has it keeps it for its section. place          one word that
 * says who subscribed, tagged in its low bits: nobody, one subscriber, a block of 2..32, or a fan-out. It is replaced as a whole, so a
 * reader sees the subscribers before a change or after it. fan-out        a directory of blocks, by the top bits of the hash of the
 * subscriber's identity (extendible hashing). A block is replaced as a whole. When one is split, its upper half is published before its
 * lower half: a reader goes upwards and steps over as many places as the block that it read covers, so it reads the old block alone, or the
 * new lower half and then (acquire) the new upper one; nobody appears twice. Blocks are merged only into a new directory, for the same
 * reason.
 *
 * Rejected: a trie whose nodes own arrays or hash tables of children (two kinds of node, conversions, a rebuild that stalls for the one
 * node with a million children); one linked list of subscribers (a cache miss each); a trie for exact filters too (a miss per level).
 *
 * A filter of thousands of levels costs a node per level, 64 bytes for a few bytes of filter; who may subscribe to how much is decided at
 * admission, not here. */
#include "broker/route/topic_tree.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "broker/mqtt/topic.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/set.h"

#define BLOCK_SUBSCRIBERS_MAX 32u
/* A fan-out becomes one block again well below a block's size, so that one session coming and going at the border moves nothing. */
#define FANOUT_SUBSCRIBERS_MIN (BLOCK_SUBSCRIBERS_MAX / 2)
/* Retired blocks after which a change looks for itself whether something can be freed. */
#define RECLAIM_INTERVAL 512u
#define SCRATCH_NODES_MIN 32u

/* Low two bits of a place. */
#define PLACE_NONE ((uintptr_t)0)
#define PLACE_SINGLE ((uintptr_t)1) /* struct subscriber */
#define PLACE_BLOCK ((uintptr_t)2)  /* struct block */
#define PLACE_FANOUT ((uintptr_t)3) /* struct fanout */
#define PLACE_TAG_MASK ((uintptr_t)3)

typedef _Atomic(uintptr_t) subscriber_place;

/* Immutable once published. */
struct block {
    uint32_t count;
    uint32_t depth; /* top bits that the identities have in common; 0 outside a fan-out */
    struct subscriber subs[];
};

struct fanout {
    uint32_t depth;
    uint32_t count; /* subscribers; writer only */
    _Atomic(struct block *) blocks[];
};

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
    struct epoch *epoch;
    struct set exacts;
    struct set children;
    struct node *root;
    uint64_t hash_key;
    size_t exact_filters, wildcard_filters, nodes, subscriptions, bytes; /* writer only */
    size_t deferred_seen;                                                /* deferred blocks after the last look, see RECLAIM_INTERVAL */
};

static size_t block_size(uint32_t count) { return sizeof(struct block) + count * sizeof(struct subscriber); }
static size_t fanout_size(uint32_t depth) { return sizeof(struct fanout) + ((size_t)1 << depth) * sizeof(struct block *); }
static size_t exact_size(size_t filter_size) { return offsetof(struct exact, filter) + filter_size; }
static size_t node_size(size_t level_size) { return offsetof(struct node, level) + level_size; }

static void *topic_tree_alloc(struct topic_tree *tree, size_t size)
{
    void *block = malloc(size);
    if (block != NULL)
        tree->bytes += size;
    return block;
}

/* Free what was never published. */
static void topic_tree_discard(struct topic_tree *tree, void *block, size_t size)
{
    if (block != NULL)
        tree->bytes -= size;
    free(block);
}

static void topic_tree_retire(struct topic_tree *tree, void *block, size_t size)
{
    tree->bytes -= size;
    epoch_defer_free(tree->epoch, block);
}

static struct node *node_new(struct topic_tree *tree, struct node *parent, uint64_t hash, struct span level, bool is_plus)
{
    struct node *node = topic_tree_alloc(tree, node_size(level.size));
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
    tree->epoch = epoch_new();
    if (tree->epoch == NULL)
        goto no_epoch;
    if (set_init(&tree->exacts, tree->epoch) != ERR_OK)
        goto no_exacts;
    if (set_init(&tree->children, tree->epoch) != ERR_OK)
        goto no_children;
    tree->root = node_new(tree, NULL, hash_u64(1, hash_key), span_of(NULL, 0), false);
    if (tree->root != NULL)
        return tree;
    set_deinit(&tree->children);
no_children:
    set_deinit(&tree->exacts);
no_exacts:
    epoch_free(tree->epoch);
no_epoch:
    free(tree);
    return NULL;
}

static void topic_tree_free_place(subscriber_place *place)
{
    uintptr_t word = atomic_load_explicit(place, memory_order_relaxed);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT) {
        struct fanout *fanout = target;
        for (size_t i = 0; i < (size_t)1 << fanout->depth;) {
            struct block *block = atomic_load_explicit(&fanout->blocks[i], memory_order_relaxed);
            i += (size_t)1 << (fanout->depth - block->depth);
            free(block);
        }
    }
    free(target);
}

static void topic_tree_free_exact(struct set_entry *entry, void *arg)
{
    (void)arg;
    struct exact *exact = (struct exact *)entry;
    topic_tree_free_place(&exact->subs);
    free(exact);
}

/* Nodes in the set are freed from there; each takes along the chain of `+` nodes that hangs on it. */
static void topic_tree_free_node(struct set_entry *entry, void *arg)
{
    (void)arg;
    for (struct node *node = (struct node *)entry, *plus; node != NULL; node = plus) {
        plus = atomic_load_explicit(&node->plus, memory_order_relaxed);
        topic_tree_free_place(&node->subs);
        topic_tree_free_place(&node->hash_subs);
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
    epoch_free(tree->epoch);
    free(tree);
}

struct epoch *topic_tree_epoch(struct topic_tree *tree) { return tree->epoch; }

struct epoch_reader *topic_tree_reader_register(struct topic_tree *tree) { return epoch_reader_register(tree->epoch); }

bool topic_tree_poll(struct topic_tree *tree)
{
    bool more = epoch_poll(tree->epoch);
    tree->deferred_seen = epoch_deferred_count(tree->epoch);
    return more;
}

/* A writer that is kept busy for long must not pile up what it retires. */
static void topic_tree_reclaim(struct topic_tree *tree)
{
    if (epoch_deferred_count(tree->epoch) >= tree->deferred_seen + RECLAIM_INTERVAL)
        (void)topic_tree_poll(tree);
}

/* ---- subscribers of one filter ---- */

static bool subscriber_is(const struct subscriber *a, const struct subscriber *b) { return a->number == b->number; }

static uint64_t subscriber_hash(const struct subscriber *sub) { return hash_u64(sub->number, 0); }

static size_t fanout_index(uint32_t depth, uint64_t hash) { return depth == 0 ? 0 : (size_t)(hash >> (64 - depth)); }

static uintptr_t place_word(const void *target, uintptr_t tag) { return (uintptr_t)target | tag; }
static uintptr_t place_load(subscriber_place *place) { return atomic_load_explicit(place, memory_order_relaxed); }
static void place_publish(subscriber_place *place, uintptr_t word) { atomic_store_explicit(place, word, memory_order_release); }

static struct block *block_new(struct topic_tree *tree, uint32_t count, uint32_t depth)
{
    struct block *block = topic_tree_alloc(tree, block_size(count));
    if (block != NULL) {
        block->count = count;
        block->depth = depth;
    }
    return block;
}

/* Index of the subscriber in the block, or block->count. */
static uint32_t block_find(const struct block *block, const struct subscriber *id)
{
    uint32_t i = 0;
    while (i < block->count && !subscriber_is(&block->subs[i], id))
        i++;
    return i;
}

/* A copy with `sub` at `index`, where index may be the end. NULL when memory is short. */
static struct block *block_with(struct topic_tree *tree, const struct block *old, uint32_t index, const struct subscriber *sub)
{
    struct block *block = block_new(tree, index == old->count ? old->count + 1 : old->count, old->depth);
    if (block == NULL)
        return NULL;
    memcpy(block->subs, old->subs, old->count * sizeof *sub);
    block->subs[index] = *sub;
    return block;
}

static struct block *block_without(struct topic_tree *tree, const struct block *old, uint32_t index)
{
    struct block *block = block_new(tree, old->count - 1, old->depth);
    if (block == NULL)
        return NULL;
    memcpy(block->subs, old->subs, index * sizeof old->subs[0]);
    memcpy(block->subs + index, old->subs + index + 1, (old->count - index - 1) * sizeof old->subs[0]);
    return block;
}

static struct block *fanout_block(struct fanout *fanout, size_t index)
{
    return atomic_load_explicit(&fanout->blocks[index], memory_order_relaxed);
}

/* Publish a block in all places it covers. A reader looks at the first of them only, so their order does not matter. */
static void fanout_publish(struct fanout *fanout, struct block *block, uint64_t hash)
{
    size_t span = (size_t)1 << (fanout->depth - block->depth);
    size_t first = fanout_index(fanout->depth, hash) & ~(span - 1);
    for (size_t i = 0; i < span; i++)
        atomic_store_explicit(&fanout->blocks[first + i], block, memory_order_release);
}

/* Distribute a block over two of one bit more. False when memory is short. */
static bool block_split(struct topic_tree *tree, struct block *halves_out[2], const struct block *old)
{
    uint64_t bit = UINT64_C(1) << (63 - old->depth);
    uint32_t upper = 0;
    for (uint32_t i = 0; i < old->count; i++)
        upper += (subscriber_hash(&old->subs[i]) & bit) != 0;
    halves_out[0] = block_new(tree, old->count - upper, old->depth + 1);
    halves_out[1] = block_new(tree, upper, old->depth + 1);
    if (halves_out[0] == NULL || halves_out[1] == NULL) {
        topic_tree_discard(tree, halves_out[0], block_size(old->count - upper));
        topic_tree_discard(tree, halves_out[1], block_size(upper));
        return false;
    }
    uint32_t at[2] = {0, 0};
    for (uint32_t i = 0; i < old->count; i++) {
        int half = (subscriber_hash(&old->subs[i]) & bit) != 0;
        halves_out[half]->subs[at[half]++] = old->subs[i];
    }
    return true;
}

/* Twice the directory, the same blocks. */
static struct fanout *fanout_double(struct topic_tree *tree, subscriber_place *place, struct fanout *old)
{
    struct fanout *fanout = topic_tree_alloc(tree, fanout_size(old->depth + 1));
    if (fanout == NULL)
        return NULL;
    fanout->depth = old->depth + 1;
    fanout->count = old->count;
    for (size_t i = 0; i < (size_t)1 << fanout->depth; i++)
        atomic_init(&fanout->blocks[i], fanout_block(old, i / 2));
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    topic_tree_retire(tree, old, fanout_size(old->depth));
    return fanout;
}

/* Should identities collide in their top bits, a block grows beyond its usual size rather than the directory beyond a place a subscriber.
 */
static bool fanout_may_split(const struct fanout *fanout, const struct block *block)
{
    return block->depth < fanout->depth || fanout->count >> fanout->depth > 0;
}

static enum err fanout_put(struct topic_tree *tree, subscriber_place *place, struct fanout *fanout, bool *was_there_out,
                           const struct subscriber *sub)
{
    uint64_t hash = subscriber_hash(sub);
    for (;;) {
        struct block *old = fanout_block(fanout, fanout_index(fanout->depth, hash));
        uint32_t index = block_find(old, sub);
        *was_there_out = index < old->count;
        if (*was_there_out || old->count < BLOCK_SUBSCRIBERS_MAX || !fanout_may_split(fanout, old)) {
            struct block *block = block_with(tree, old, index, sub);
            if (block == NULL)
                return ERR_NOMEM;
            fanout_publish(fanout, block, hash);
            topic_tree_retire(tree, old, block_size(old->count));
            fanout->count += !*was_there_out;
            return ERR_OK;
        }
        if (old->depth == fanout->depth) {
            fanout = fanout_double(tree, place, fanout);
            if (fanout == NULL)
                return ERR_NOMEM;
        }
        struct block *halves[2];
        if (!block_split(tree, halves, old))
            return ERR_NOMEM;
        uint64_t bit = UINT64_C(1) << (63 - old->depth);
        fanout_publish(fanout, halves[1], hash | bit);
        fanout_publish(fanout, halves[0], hash & ~bit);
        topic_tree_retire(tree, old, block_size(old->count));
    }
}

/* Make a full block the only one of a fan-out's directory. */
static enum err place_make_fanout(struct topic_tree *tree, subscriber_place *place, struct block *block)
{
    struct fanout *fanout = topic_tree_alloc(tree, fanout_size(0));
    if (fanout == NULL)
        return ERR_NOMEM;
    fanout->depth = 0;
    fanout->count = block->count;
    atomic_init(&fanout->blocks[0], block);
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    return ERR_OK;
}

/* Add or replace. On ERR_NOMEM the subscribers are the same as before. */
static enum err place_put(struct topic_tree *tree, subscriber_place *place, bool *was_there_out, const struct subscriber *sub)
{
    uintptr_t word = place_load(place);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    *was_there_out = false;
    if ((word & PLACE_TAG_MASK) == PLACE_BLOCK) {
        struct block *old = target;
        uint32_t index = block_find(old, sub);
        *was_there_out = index < old->count;
        if (*was_there_out || old->count < BLOCK_SUBSCRIBERS_MAX) {
            struct block *block = block_with(tree, old, index, sub);
            if (block == NULL)
                return ERR_NOMEM;
            place_publish(place, place_word(block, PLACE_BLOCK));
            topic_tree_retire(tree, old, block_size(old->count));
            return ERR_OK;
        }
        if (place_make_fanout(tree, place, old) != ERR_OK)
            return ERR_NOMEM;
        target = (void *)(place_load(place) & ~PLACE_TAG_MASK);
        return fanout_put(tree, place, target, was_there_out, sub);
    }
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT)
        return fanout_put(tree, place, target, was_there_out, sub);

    struct subscriber *alone = target;
    if (alone != NULL && !subscriber_is(alone, sub)) {
        struct block *block = block_new(tree, 2, 0);
        if (block == NULL)
            return ERR_NOMEM;
        block->subs[0] = *alone;
        block->subs[1] = *sub;
        place_publish(place, place_word(block, PLACE_BLOCK));
    } else {
        struct subscriber *copy = topic_tree_alloc(tree, sizeof *copy);
        if (copy == NULL)
            return ERR_NOMEM;
        *copy = *sub;
        *was_there_out = alone != NULL;
        place_publish(place, place_word(copy, PLACE_SINGLE));
    }
    if (alone != NULL)
        topic_tree_retire(tree, alone, sizeof *alone);
    return ERR_OK;
}

/* Retire a fan-out's directory and, of its blocks, those that are not in `kept` (NULL: all). */
static void fanout_retire(struct topic_tree *tree, struct fanout *old, struct fanout *kept)
{
    for (size_t i = 0; i < (size_t)1 << old->depth;) {
        struct block *block = fanout_block(old, i);
        if (kept == NULL || fanout_block(kept, i / 2) != block)
            topic_tree_retire(tree, block, block_size(block->count));
        i += (size_t)1 << (old->depth - block->depth);
    }
    topic_tree_retire(tree, old, fanout_size(old->depth));
}

/* Few are left: one block for all of them. Left as it is when memory is short. */
static void fanout_collapse(struct topic_tree *tree, subscriber_place *place, struct fanout *fanout)
{
    struct block *all = block_new(tree, fanout->count, 0);
    if (all == NULL)
        return;
    uint32_t at = 0;
    for (size_t i = 0; i < (size_t)1 << fanout->depth;) {
        struct block *block = fanout_block(fanout, i);
        memcpy(all->subs + at, block->subs, block->count * sizeof block->subs[0]);
        at += block->count;
        i += (size_t)1 << (fanout->depth - block->depth);
    }
    CHECK(at == fanout->count);
    place_publish(place, place_word(all, PLACE_BLOCK));
    fanout_retire(tree, fanout, NULL);
}

/* Half the directory, in which neighbours have been merged. Not done when two together are too many for a block or memory is short. */
static void fanout_halve(struct topic_tree *tree, subscriber_place *place, struct fanout *old)
{
    struct fanout *fanout = topic_tree_alloc(tree, fanout_size(old->depth - 1));
    if (fanout == NULL)
        return;
    fanout->depth = old->depth - 1;
    fanout->count = old->count;
    size_t done = 0;
    for (; done < (size_t)1 << fanout->depth; done++) {
        struct block *low = fanout_block(old, done * 2), *high = fanout_block(old, done * 2 + 1), *both = low;
        if (low != high) {
            both = low->count + high->count <= BLOCK_SUBSCRIBERS_MAX ? block_new(tree, low->count + high->count, fanout->depth) : NULL;
            if (both == NULL)
                break;
            memcpy(both->subs, low->subs, low->count * sizeof low->subs[0]);
            memcpy(both->subs + low->count, high->subs, high->count * sizeof high->subs[0]);
        }
        atomic_init(&fanout->blocks[done], both);
    }
    if (done < (size_t)1 << fanout->depth) {
        while (done-- > 0) {
            struct block *block = fanout_block(fanout, done);
            if (block != fanout_block(old, done * 2))
                topic_tree_discard(tree, block, block_size(block->count));
        }
        topic_tree_discard(tree, fanout, fanout_size(fanout->depth));
        return;
    }
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    fanout_retire(tree, old, fanout);
}

/* A removal has nobody to refuse to, so it must get its memory (at most half a KiB): what readers are about to release is waited for, and
 * if even that is not enough, stopping is better than going on to deliver to somebody who has unsubscribed. */
static struct block *block_without_must(struct topic_tree *tree, const struct block *old, uint32_t index)
{
    struct block *block = block_without(tree, old, index);
    for (bool waiting = true; block == NULL && waiting;) {
        waiting = epoch_poll(tree->epoch);
        block = block_without(tree, old, index);
    }
    CHECK_MSG(block != NULL, "no memory to take a subscriber out");
    return block;
}

static bool fanout_remove(struct topic_tree *tree, subscriber_place *place, struct fanout *fanout, const struct subscriber *id)
{
    uint64_t hash = subscriber_hash(id);
    struct block *old = fanout_block(fanout, fanout_index(fanout->depth, hash));
    uint32_t index = block_find(old, id);
    if (index == old->count)
        return false;
    fanout_publish(fanout, block_without_must(tree, old, index), hash);
    topic_tree_retire(tree, old, block_size(old->count));
    fanout->count--;
    /* Halving is tried at a few counts only, so that a directory that cannot be halved yet is not tried at each removal. */
    size_t places = (size_t)1 << fanout->depth;
    if (fanout->count == 0) {
        place_publish(place, PLACE_NONE);
        fanout_retire(tree, fanout, NULL);
    } else if (fanout->count <= FANOUT_SUBSCRIBERS_MIN)
        fanout_collapse(tree, place, fanout);
    else if (fanout->depth > 0 && fanout->count <= 4 * places && (fanout->count & (places - 1)) == 0)
        fanout_halve(tree, place, fanout);
    return true;
}

/* Returns whether the subscriber was there. */
static bool place_remove(struct topic_tree *tree, subscriber_place *place, const struct subscriber *id)
{
    uintptr_t word = place_load(place);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    if (word == PLACE_NONE)
        return false;
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT)
        return fanout_remove(tree, place, target, id);
    if ((word & PLACE_TAG_MASK) == PLACE_SINGLE) {
        struct subscriber *alone = target;
        if (!subscriber_is(alone, id))
            return false;
        place_publish(place, PLACE_NONE);
        topic_tree_retire(tree, alone, sizeof *alone);
        return true;
    }
    struct block *old = target;
    uint32_t index = block_find(old, id);
    if (index == old->count)
        return false;
    if (old->count == 1) {
        place_publish(place, PLACE_NONE);
    } else {
        struct block *block = block_without_must(tree, old, index);
        place_publish(place, place_word(block, PLACE_BLOCK));
    }
    topic_tree_retire(tree, old, block_size(old->count));
    return true;
}

/* Also for readers: a directory's depth never changes, and of a block that is being split the old one or the right half is found. */
static const struct subscriber *place_find(subscriber_place *place, const struct subscriber *id)
{
    uintptr_t word = atomic_load_explicit(place, memory_order_acquire);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    if (word == PLACE_NONE)
        return NULL;
    if ((word & PLACE_TAG_MASK) == PLACE_SINGLE)
        return subscriber_is(target, id) ? target : NULL;
    struct block *block = target;
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT) {
        struct fanout *fanout = target;
        size_t at = fanout_index(fanout->depth, subscriber_hash(id));
        block = atomic_load_explicit(&fanout->blocks[at], memory_order_acquire);
    }
    uint32_t index = block_find(block, id);
    return index < block->count ? &block->subs[index] : NULL;
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
    while (node != tree->root && place_load(&node->subs) == PLACE_NONE && place_load(&node->hash_subs) == PLACE_NONE &&
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
        topic_tree_retire(tree, node, node_size(node->size));
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
            topic_tree_discard(tree, child, node_size(level.size));
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
        return place_put(tree, &exact->subs, was_there_out, sub);
    exact = topic_tree_alloc(tree, exact_size(filter.size));
    if (exact == NULL)
        return ERR_NOMEM;
    exact->entry.hash = hash;
    exact->size = (uint16_t)filter.size;
    memcpy(exact->filter, filter.data, filter.size);
    atomic_init(&exact->subs, PLACE_NONE);
    if (place_put(tree, &exact->subs, was_there_out, sub) != ERR_OK)
        goto no_subscriber;
    if (set_put(&tree->exacts, &exact->entry) != ERR_OK)
        goto no_place;
    tree->exact_filters++;
    return ERR_OK;
no_place:
    (void)place_remove(tree, &exact->subs, sub);
no_subscriber:
    topic_tree_discard(tree, exact, exact_size(filter.size));
    return ERR_NOMEM;
}

static enum err topic_tree_add_wildcard(struct topic_tree *tree, bool *was_there_out, struct span filter, const struct subscriber *sub)
{
    struct node *node;
    subscriber_place *place = topic_tree_wildcard_place(tree, &node, filter, true);
    if (place == NULL)
        return ERR_NOMEM;
    bool was_empty = place_load(place) == PLACE_NONE;
    enum err err = place_put(tree, place, was_there_out, sub);
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
    if (exact == NULL || !place_remove(tree, &exact->subs, id))
        return false;
    if (place_load(&exact->subs) == PLACE_NONE) {
        set_remove(&tree->exacts, &exact->entry);
        topic_tree_retire(tree, exact, exact_size(exact->size));
        tree->exact_filters--;
    }
    return true;
}

static bool topic_tree_remove_wildcard(struct topic_tree *tree, struct span filter, const struct subscriber *id)
{
    struct node *node;
    subscriber_place *place = topic_tree_wildcard_place(tree, &node, filter, false);
    if (place == NULL || !place_remove(tree, place, id))
        return false;
    if (place_load(place) == PLACE_NONE) {
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
    const void *target = (const void *)(ref.word & ~PLACE_TAG_MASK);
    if ((ref.word & PLACE_TAG_MASK) == REF_EXACT) {
        const struct exact *exact = target;
        if (out != NULL)
            memcpy(out, exact->filter, exact->size);
        return exact->size;
    }
    bool hash = (ref.word & PLACE_TAG_MASK) == REF_NODE_HASH;
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
        .bytes = tree->bytes + tree->exacts.bytes + tree->children.bytes,
        .deferred = epoch_deferred_count(tree->epoch),
    };
}

/* ---- matching: any thread ---- */

void match_list_deinit(struct match_list *list)
{
    free(list->matches);
    free(list->scratch);
    match_list_init(list);
}

void match_list_trim(struct match_list *list, size_t capacity_max)
{
    if (list->capacity > capacity_max || list->scratch_capacity > capacity_max)
        match_list_deinit(list);
}

static bool match_list_reserve(struct match_list *list, size_t more)
{
    if (list->capacity - list->count >= more)
        return true;
    size_t capacity = list->capacity < 16 ? 16 : list->capacity;
    while (capacity - list->count < more)
        capacity *= 2;
    struct subscriber *matches = realloc(list->matches, capacity * sizeof *matches);
    if (matches == NULL)
        return false;
    list->matches = matches;
    list->capacity = capacity;
    return true;
}

static bool match_list_add_block(struct match_list *list, const struct subscriber *subs, uint32_t count)
{
    if (!match_list_reserve(list, count))
        return false;
    memcpy(list->matches + list->count, subs, count * sizeof *subs);
    list->count += count;
    return true;
}

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
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    bool ok = true;
    if ((word & PLACE_TAG_MASK) == PLACE_SINGLE) {
        ok = match_list_add_block(list, target, 1);
    } else if ((word & PLACE_TAG_MASK) == PLACE_BLOCK) {
        const struct block *block = target;
        ok = match_list_add_block(list, block->subs, block->count);
    } else {
        struct fanout *fanout = target;
        for (size_t i = 0; ok && i < (size_t)1 << fanout->depth;) {
            const struct block *block = atomic_load_explicit(&fanout->blocks[i], memory_order_acquire);
            ok = match_list_add_block(list, block->subs, block->count);
            i += (size_t)1 << (fanout->depth - block->depth);
        }
    }
    return ok ? MATCH_ON : MATCH_NOMEM;
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
