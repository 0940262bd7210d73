#include "broker/route/subscriber_place.h"

#include <string.h>

#include "common/check.h"
#include "common/hash.h"

#define BLOCK_SUBSCRIBERS_MAX 32u
/* A fan-out becomes one block again well below a block's size, so that one session coming and going at the border moves nothing. */
#define FANOUT_SUBSCRIBERS_MIN (BLOCK_SUBSCRIBERS_MAX / 2)

/* Low two bits of a place. */
#define PLACE_SINGLE ((uintptr_t)1) /* struct subscriber */
#define PLACE_BLOCK ((uintptr_t)2)  /* struct block */
#define PLACE_FANOUT ((uintptr_t)3) /* struct fanout */
#define PLACE_TAG_MASK ((uintptr_t)3)

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

static size_t block_size(uint32_t count) { return sizeof(struct block) + count * sizeof(struct subscriber); }
static size_t fanout_size(uint32_t depth) { return sizeof(struct fanout) + ((size_t)1 << depth) * sizeof(struct block *); }

static bool subscriber_is(const struct subscriber *a, const struct subscriber *b) { return a->number == b->number; }

static uint64_t subscriber_hash(const struct subscriber *sub) { return hash_u64(sub->number, 0); }

static size_t fanout_index(uint32_t depth, uint64_t hash) { return depth == 0 ? 0 : (size_t)(hash >> (64 - depth)); }

static uintptr_t place_load(subscriber_place *place) { return atomic_load_explicit(place, memory_order_relaxed); }
static uintptr_t place_word(const void *target, uintptr_t tag) { return (uintptr_t)target | tag; }
static void place_publish(subscriber_place *place, uintptr_t word) { atomic_store_explicit(place, word, memory_order_release); }

static struct block *block_new(struct epoch_memory *memory, uint32_t count, uint32_t depth)
{
    struct block *block = epoch_memory_alloc(memory, block_size(count));
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
static struct block *block_with(struct epoch_memory *memory, const struct block *old, uint32_t index, const struct subscriber *sub)
{
    struct block *block = block_new(memory, index == old->count ? old->count + 1 : old->count, old->depth);
    if (block == NULL)
        return NULL;
    memcpy(block->subs, old->subs, old->count * sizeof *sub);
    block->subs[index] = *sub;
    return block;
}

static struct block *block_without(struct epoch_memory *memory, const struct block *old, uint32_t index)
{
    struct block *block = block_new(memory, old->count - 1, old->depth);
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
static bool block_split(struct epoch_memory *memory, struct block *halves_out[2], const struct block *old)
{
    uint64_t bit = UINT64_C(1) << (63 - old->depth);
    uint32_t upper = 0;
    for (uint32_t i = 0; i < old->count; i++)
        upper += (subscriber_hash(&old->subs[i]) & bit) != 0;
    halves_out[0] = block_new(memory, old->count - upper, old->depth + 1);
    halves_out[1] = block_new(memory, upper, old->depth + 1);
    if (halves_out[0] == NULL || halves_out[1] == NULL) {
        epoch_memory_discard(memory, halves_out[0], block_size(old->count - upper));
        epoch_memory_discard(memory, halves_out[1], block_size(upper));
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
static struct fanout *fanout_double(struct epoch_memory *memory, subscriber_place *place, struct fanout *old)
{
    struct fanout *fanout = epoch_memory_alloc(memory, fanout_size(old->depth + 1));
    if (fanout == NULL)
        return NULL;
    fanout->depth = old->depth + 1;
    fanout->count = old->count;
    for (size_t i = 0; i < (size_t)1 << fanout->depth; i++)
        atomic_init(&fanout->blocks[i], fanout_block(old, i / 2));
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    epoch_memory_retire(memory, old, fanout_size(old->depth));
    return fanout;
}

/* Should identities collide in their top bits, a block grows beyond its usual size rather than the directory beyond a place a subscriber.
 */
static bool fanout_may_split(const struct fanout *fanout, const struct block *block)
{
    return block->depth < fanout->depth || fanout->count >> fanout->depth > 0;
}

static enum err fanout_put(struct epoch_memory *memory, subscriber_place *place, struct fanout *fanout, bool *was_there_out,
                           const struct subscriber *sub)
{
    uint64_t hash = subscriber_hash(sub);
    for (;;) {
        struct block *old = fanout_block(fanout, fanout_index(fanout->depth, hash));
        uint32_t index = block_find(old, sub);
        *was_there_out = index < old->count;
        if (*was_there_out || old->count < BLOCK_SUBSCRIBERS_MAX || !fanout_may_split(fanout, old)) {
            struct block *block = block_with(memory, old, index, sub);
            if (block == NULL)
                return ERR_NOMEM;
            fanout_publish(fanout, block, hash);
            epoch_memory_retire(memory, old, block_size(old->count));
            fanout->count += !*was_there_out;
            return ERR_OK;
        }
        if (old->depth == fanout->depth) {
            fanout = fanout_double(memory, place, fanout);
            if (fanout == NULL)
                return ERR_NOMEM;
        }
        struct block *halves[2];
        if (!block_split(memory, halves, old))
            return ERR_NOMEM;
        uint64_t bit = UINT64_C(1) << (63 - old->depth);
        fanout_publish(fanout, halves[1], hash | bit);
        fanout_publish(fanout, halves[0], hash & ~bit);
        epoch_memory_retire(memory, old, block_size(old->count));
    }
}

/* Make a full block the only one of a fan-out's directory. */
static enum err place_make_fanout(struct epoch_memory *memory, subscriber_place *place, struct block *block)
{
    struct fanout *fanout = epoch_memory_alloc(memory, fanout_size(0));
    if (fanout == NULL)
        return ERR_NOMEM;
    fanout->depth = 0;
    fanout->count = block->count;
    atomic_init(&fanout->blocks[0], block);
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    return ERR_OK;
}

/* Add or replace. On ERR_NOMEM the subscribers are the same as before. */
enum err place_put(struct epoch_memory *memory, subscriber_place *place, bool *was_there_out, const struct subscriber *sub)
{
    uintptr_t word = place_load(place);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    *was_there_out = false;
    if ((word & PLACE_TAG_MASK) == PLACE_BLOCK) {
        struct block *old = target;
        uint32_t index = block_find(old, sub);
        *was_there_out = index < old->count;
        if (*was_there_out || old->count < BLOCK_SUBSCRIBERS_MAX) {
            struct block *block = block_with(memory, old, index, sub);
            if (block == NULL)
                return ERR_NOMEM;
            place_publish(place, place_word(block, PLACE_BLOCK));
            epoch_memory_retire(memory, old, block_size(old->count));
            return ERR_OK;
        }
        if (place_make_fanout(memory, place, old) != ERR_OK)
            return ERR_NOMEM;
        target = (void *)(place_load(place) & ~PLACE_TAG_MASK);
        return fanout_put(memory, place, target, was_there_out, sub);
    }
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT)
        return fanout_put(memory, place, target, was_there_out, sub);

    struct subscriber *alone = target;
    if (alone != NULL && !subscriber_is(alone, sub)) {
        struct block *block = block_new(memory, 2, 0);
        if (block == NULL)
            return ERR_NOMEM;
        block->subs[0] = *alone;
        block->subs[1] = *sub;
        place_publish(place, place_word(block, PLACE_BLOCK));
    } else {
        struct subscriber *copy = epoch_memory_alloc(memory, sizeof *copy);
        if (copy == NULL)
            return ERR_NOMEM;
        *copy = *sub;
        *was_there_out = alone != NULL;
        place_publish(place, place_word(copy, PLACE_SINGLE));
    }
    if (alone != NULL)
        epoch_memory_retire(memory, alone, sizeof *alone);
    return ERR_OK;
}

/* Retire a fan-out's directory and, of its blocks, those that are not in `kept` (NULL: all). */
static void fanout_retire(struct epoch_memory *memory, struct fanout *old, struct fanout *kept)
{
    for (size_t i = 0; i < (size_t)1 << old->depth;) {
        struct block *block = fanout_block(old, i);
        if (kept == NULL || fanout_block(kept, i / 2) != block)
            epoch_memory_retire(memory, block, block_size(block->count));
        i += (size_t)1 << (old->depth - block->depth);
    }
    epoch_memory_retire(memory, old, fanout_size(old->depth));
}

/* Few are left: one block for all of them. Left as it is when memory is short. */
static void fanout_collapse(struct epoch_memory *memory, subscriber_place *place, struct fanout *fanout)
{
    struct block *all = block_new(memory, fanout->count, 0);
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
    fanout_retire(memory, fanout, NULL);
}

/* Half the directory, in which neighbours have been merged. Not done when two together are too many for a block or memory is short. */
static void fanout_halve(struct epoch_memory *memory, subscriber_place *place, struct fanout *old)
{
    struct fanout *fanout = epoch_memory_alloc(memory, fanout_size(old->depth - 1));
    if (fanout == NULL)
        return;
    fanout->depth = old->depth - 1;
    fanout->count = old->count;
    size_t done = 0;
    for (; done < (size_t)1 << fanout->depth; done++) {
        struct block *low = fanout_block(old, done * 2), *high = fanout_block(old, done * 2 + 1), *both = low;
        if (low != high) {
            both = low->count + high->count <= BLOCK_SUBSCRIBERS_MAX ? block_new(memory, low->count + high->count, fanout->depth) : NULL;
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
                epoch_memory_discard(memory, block, block_size(block->count));
        }
        epoch_memory_discard(memory, fanout, fanout_size(fanout->depth));
        return;
    }
    place_publish(place, place_word(fanout, PLACE_FANOUT));
    fanout_retire(memory, old, fanout);
}

/* A removal has nobody to refuse to, so it must get its memory (at most half a KiB): what readers are about to release is waited for, and
 * if even that is not enough, stopping is better than going on to deliver to somebody who has unsubscribed. */
static struct block *block_without_must(struct epoch_memory *memory, const struct block *old, uint32_t index)
{
    struct block *block = block_without(memory, old, index);
    for (bool waiting = true; block == NULL && waiting;) {
        waiting = epoch_poll(memory->epoch);
        block = block_without(memory, old, index);
    }
    CHECK_MSG(block != NULL, "no memory to take a subscriber out");
    return block;
}

static bool fanout_remove(struct epoch_memory *memory, subscriber_place *place, struct fanout *fanout, const struct subscriber *id)
{
    uint64_t hash = subscriber_hash(id);
    struct block *old = fanout_block(fanout, fanout_index(fanout->depth, hash));
    uint32_t index = block_find(old, id);
    if (index == old->count)
        return false;
    fanout_publish(fanout, block_without_must(memory, old, index), hash);
    epoch_memory_retire(memory, old, block_size(old->count));
    fanout->count--;
    /* Halving is tried at a few counts only, so that a directory that cannot be halved yet is not tried at each removal. */
    size_t places = (size_t)1 << fanout->depth;
    if (fanout->count == 0) {
        place_publish(place, PLACE_NONE);
        fanout_retire(memory, fanout, NULL);
    } else if (fanout->count <= FANOUT_SUBSCRIBERS_MIN)
        fanout_collapse(memory, place, fanout);
    else if (fanout->depth > 0 && fanout->count <= 4 * places && (fanout->count & (places - 1)) == 0)
        fanout_halve(memory, place, fanout);
    return true;
}

/* Returns whether the subscriber was there. */
bool place_remove(struct epoch_memory *memory, subscriber_place *place, const struct subscriber *id)
{
    uintptr_t word = place_load(place);
    void *target = (void *)(word & ~PLACE_TAG_MASK);
    if (word == PLACE_NONE)
        return false;
    if ((word & PLACE_TAG_MASK) == PLACE_FANOUT)
        return fanout_remove(memory, place, target, id);
    if ((word & PLACE_TAG_MASK) == PLACE_SINGLE) {
        struct subscriber *alone = target;
        if (!subscriber_is(alone, id))
            return false;
        place_publish(place, PLACE_NONE);
        epoch_memory_retire(memory, alone, sizeof *alone);
        return true;
    }
    struct block *old = target;
    uint32_t index = block_find(old, id);
    if (index == old->count)
        return false;
    if (old->count == 1) {
        place_publish(place, PLACE_NONE);
    } else {
        struct block *block = block_without_must(memory, old, index);
        place_publish(place, place_word(block, PLACE_BLOCK));
    }
    epoch_memory_retire(memory, old, block_size(old->count));
    return true;
}

/* Also for readers: a directory's depth never changes, and of a block that is being split the old one or the right half is found. */
const struct subscriber *place_find(subscriber_place *place, const struct subscriber *id)
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

static bool match_list_add_block(struct match_list *list, const struct subscriber *subs, uint32_t count)
{
    if (!match_list_reserve(list, count))
        return false;
    memcpy(list->matches + list->count, subs, count * sizeof *subs);
    list->count += count;
    return true;
}

bool place_collect(uintptr_t word, struct match_list *list)
{
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
    return ok;
}

void place_free(subscriber_place *place)
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
