#include "broker/session/item_ring.h"

#include <stdlib.h>

#include "common/check.h"

#define CAPACITY_FIRST 4u
#define SORT_MAX 4096u   /* messages brought into order at a time; */
#define SORTED_MIN 1024u /* again when fewer are left: what comes late is that late at most */
#define AHEAD 16u        /* messages fetched ahead of the one that is looked at */

bool item_ring_put(struct item_ring **place, const struct queue_item *item)
{
    struct item_ring *ring = *place;
    if (!ring || ring->count == ring->capacity) {
        uint32_t capacity = ring ? ring->capacity * 2 : CAPACITY_FIRST;
        struct item_ring *grown = malloc(sizeof *grown + capacity * sizeof grown->items[0]);
        if (!grown)
            return false;
        *grown = (struct item_ring){.capacity = capacity, .count = item_ring_count(ring), .sorted = ring ? ring->sorted : 0};
        for (uint32_t i = 0; i < grown->count; i++)
            grown->items[i] = *item_ring_at(ring, i);
        free(ring);
        *place = ring = grown;
    }
    ring->count++;
    *item_ring_at(ring, ring->count - 1) = *item;
    return true;
}

struct queue_item item_ring_take(struct item_ring **place)
{
    struct item_ring *ring = *place;
    CHECK(item_ring_count(ring) > 0);
    struct queue_item item = *item_ring_at(ring, 0);
    ring->first = (ring->first + 1) & (ring->capacity - 1);
    ring->sorted -= ring->sorted > 0;
    if (--ring->count == 0) {
        free(ring);
        *place = NULL;
    }
    return item;
}

/* --- order -------------------------------------------------------------------------------------------------------------------------- */

struct sorted_item {
    uint64_t sequence;
    struct queue_item item;
};

/* Merge from[0, middle) and from[middle, end), which ascend. */
static void merge_items(struct sorted_item *to, const struct sorted_item *from, uint32_t middle, uint32_t end)
{
    for (uint32_t a = 0, b = middle, at = 0; at < end; at++) {
        bool is_first = b == end || (a < middle && from[a].sequence <= from[b].sequence);
        to[at] = from[is_first ? a++ : b++];
    }
}

/* The end of what ascends from `begin` on. */
static uint32_t ascent_end(const struct sorted_item *items, uint32_t begin, uint32_t count)
{
    uint32_t end = begin + 1;
    while (end < count && items[end - 1].sequence <= items[end].sequence)
        end++;
    return end < count ? end : count;
}

/* What came from few shards is made of few pieces that ascend: merge neighbours until there is one. Returns where the result is. */
static struct sorted_item *sort_items(struct sorted_item *items, struct sorted_item *other, uint32_t count)
{
    while (ascent_end(items, 0, count) < count) {
        for (uint32_t begin = 0, middle, end; begin < count; begin = end) {
            middle = ascent_end(items, begin, count);
            end = middle < count ? ascent_end(items, middle, count) : middle;
            merge_items(other + begin, items + begin, middle - begin, end - begin);
        }
        struct sorted_item *merged = other;
        other = items;
        items = merged;
    }
    return items;
}

static bool may_sort(const struct queue_item *item, uint64_t checkpoint)
{
    return queue_item_is_stored(item, checkpoint) && !queue_meta_retain(item->meta);
}

void item_ring_sort(struct item_ring *ring, uint64_t checkpoint)
{
    uint32_t count = 0, max = ring->count < SORT_MAX ? ring->count : SORT_MAX;
    if (ring->sorted >= SORTED_MIN || ring->sorted == max || !may_sort(item_ring_at(ring, ring->sorted), checkpoint))
        return;
    struct sorted_item *items = malloc((size_t)2 * max * sizeof *items);
    for (; items && count < max && may_sort(item_ring_at(ring, count), checkpoint); count++) {
        if (count + AHEAD < ring->count) /* out of the caches by the time the store has it */
            __builtin_prefetch(&item_ring_at(ring, count + AHEAD)->msg->sequence, 1);
        items[count] = (struct sorted_item){queue_item_sequence(item_ring_at(ring, count)), *item_ring_at(ring, count)};
    }
    if (count > ring->sorted) {
        const struct sorted_item *sorted = sort_items(items, items + max, count);
        for (uint32_t i = 0; i < count; i++)
            *item_ring_at(ring, i) = sorted[i].item;
        ring->sorted = count;
    }
    free(items);
}
