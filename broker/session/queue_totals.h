/* The bounds of all sessions' queues together, over all shards: two counters, taken before a message goes into a queue and given back when
 * it has left. Taking is one addition each, undone when it was too much, so the bounds are kept exactly: nobody looks first and adds later.
 * (While one takes and undoes, another who would just have fitted may be turned away.) What a session owes (drop_oldest) is not in them.
 * Pure; any thread. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_TOTALS_H
#define TIDEGATE_BROKER_SESSION_QUEUE_TOTALS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "broker/session/queue.h"

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

/* Add so much, less what is over the bound, which *owed_out is; of that no more than is held, nor twice the amount. False: not even the
 * amount is held, and nothing is added. */
static inline bool queue_totals_add_owing(_Atomic uint64_t *total, uint64_t max, uint64_t amount, uint64_t held, uint64_t *owed_out)
{
    uint64_t before = atomic_load_explicit(total, memory_order_relaxed);
    do {
        uint64_t over = before + amount > max ? before + amount - max : 0;
        if (over > held && amount > held)
            return false;
        uint64_t owed_max = held < 2 * amount ? held : 2 * amount;
        *owed_out = over < owed_max ? over : owed_max;
    } while (
        !atomic_compare_exchange_weak_explicit(total, &before, before + amount - *owed_out, memory_order_relaxed, memory_order_relaxed));
    return true;
}

/* Room for one message of a session that holds so much: it owes what does not fit. When the bounds are exceeded already, by what a start
 * found and nobody could pay for, that is as much again, so that each pays a part of it, and all of it is paid soon. Not TAKEN: it has too
 * little to pay with. */
static inline enum queue_totals_verdict queue_totals_take_owing(struct queue_totals *totals, uint64_t bytes, struct queue_limits held,
                                                                struct queue_debt *debt_out)
{
    uint64_t messages = 0, owed = 0;
    if (!queue_totals_add_owing(&totals->messages, totals->messages_max, 1, held.messages_max, &messages))
        return QUEUE_TOTALS_MESSAGES;
    if (!queue_totals_add_owing(&totals->bytes, totals->bytes_max, bytes, held.bytes_max, &owed)) {
        queue_totals_change(totals, (int64_t)messages - 1, 0);
        return QUEUE_TOTALS_BYTES;
    }
    *debt_out = (struct queue_debt){.messages = (uint32_t)messages, .bytes = owed};
    return QUEUE_TOTALS_TAKEN;
}

#endif
