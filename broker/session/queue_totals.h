/* The bounds of all sessions' queues together, over all shards: two counters, taken before a message goes into a queue and given back when
 * it has left. Taking is one addition each, undone when it was too much, so the bounds are kept exactly: nobody looks first and adds later.
 * (While one takes and undoes, another who would just have fitted may be turned away.) Pure; any thread. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_TOTALS_H
#define TIDEGATE_BROKER_SESSION_QUEUE_TOTALS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct queue_totals {
    _Atomic uint64_t messages, bytes;
    uint64_t messages_max, bytes_max;
};

enum queue_totals_verdict { QUEUE_TOTALS_TAKEN, QUEUE_TOTALS_MESSAGES, QUEUE_TOTALS_BYTES };

/* What is there is changed by so much; what is restored at a start, or leaves. Asks no bound. */
static inline void queue_totals_change(struct queue_totals *totals, int64_t messages, int64_t bytes)
{
    if (messages != 0)
        atomic_fetch_add_explicit(&totals->messages, (uint64_t)messages, memory_order_relaxed);
    if (bytes != 0)
        atomic_fetch_add_explicit(&totals->bytes, (uint64_t)bytes, memory_order_relaxed);
}

/* What comes next would not fit, or hardly: read before a message is taken in. */
static inline bool queue_totals_are_full(const struct queue_totals *totals)
{
    return atomic_load_explicit(&totals->messages, memory_order_relaxed) >= totals->messages_max ||
           atomic_load_explicit(&totals->bytes, memory_order_relaxed) >= totals->bytes_max;
}

/* Room for one message. Not TAKEN: the bound that would be exceeded; nothing is taken. */
static inline enum queue_totals_verdict queue_totals_take(struct queue_totals *totals, uint64_t bytes)
{
    if (atomic_fetch_add_explicit(&totals->messages, 1, memory_order_relaxed) >= totals->messages_max) {
        queue_totals_change(totals, -1, 0);
        return QUEUE_TOTALS_MESSAGES;
    }
    uint64_t before = atomic_fetch_add_explicit(&totals->bytes, bytes, memory_order_relaxed);
    if (bytes <= totals->bytes_max && before <= totals->bytes_max - bytes)
        return QUEUE_TOTALS_TAKEN;
    queue_totals_change(totals, -1, -(int64_t)bytes);
    return QUEUE_TOTALS_BYTES;
}

#endif
