/* Messages of one queue in memory, in order: those that it sends next, or the newest (session/queue.h).
 *
 * One allocation, a ring that doubles; none while it is empty: NULL. Pure; owner: the queue. */
#ifndef TIDEGATE_BROKER_SESSION_ITEM_RING_H
#define TIDEGATE_BROKER_SESSION_ITEM_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/session/queue_item.h"

struct item_ring {
    uint32_t capacity; /* a power of two */
    uint32_t first, count;
    uint32_t sorted; /* so many of the oldest ascend by sequence, and the store has them */
    struct queue_item items[];
};

static inline uint32_t item_ring_count(const struct item_ring *ring) { return ring ? ring->count : 0; }
/* Borrowed until the next change. */
static inline struct queue_item *item_ring_at(struct item_ring *ring, uint32_t index)
{
    return &ring->items[(ring->first + index) & (ring->capacity - 1)];
}

/* To its end; the reference goes with it. False: memory is short. */
bool item_ring_put(struct item_ring **place, const struct queue_item *item);
/* The oldest; there must be one. Its reference is the caller's. Frees the ring with its last. */
struct queue_item item_ring_take(struct item_ring **place);
/* Bring the oldest of those that the store has (all below `checkpoint`) into the order of their sequences, some thousand at a time, and
 * none where that was done lately. What came from few shards is made of few pieces that ascend. Where memory is short they stay as they
 * are. A copy of a retained value keeps its place, and all behind it: what is newer under its topic, and has waited for it, may have a
 * smaller sequence. (Of those that are read back it is judged which is stale.) */
void item_ring_sort(struct item_ring *ring, uint64_t checkpoint);

#endif
