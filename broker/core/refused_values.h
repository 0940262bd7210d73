/* Retained values that the route actor had no room for, until their publishers have been told.
 *
 * A refused value was logged with its message, so a start would set it. RETAINED_REFUSED in the log says that it is not, and the answer of
 * the refusal waits until that record is durable: who was told that the value is refused must not find it set after a crash. The record may
 * be late (no room in the log, or the message's own record is large and not complete): then the block to wait for is not known yet.
 *
 * Entries ascend by ticket (shard.retained_asked). Answers of one ticket need not stand together in the gate: a repeated QoS 2 PUBLISH is
 * answered behind later tickets, and a large one when its record is complete. But none is put after last_put_ns (the identifier is free
 * then), so an entry goes when the gate, first in first out, lets out an answer that was put later. Bound: answers in the gate (messages of
 * QoS 0 are not entered), and what is refused while a large record is on its way. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_REFUSED_VALUES_H
#define TIDEGATE_BROKER_CORE_REFUSED_VALUES_H

#include <stdbool.h>
#include <stdint.h>

#define REFUSED_VALUE_LATE UINT64_MAX      /* its record has no block yet */
#define REFUSED_VALUE_UNANSWERED INT64_MAX /* its answer follows when the message's large record is complete */

struct refused_value {
    uint64_t ticket;
    uint64_t number;     /* retained */
    uint64_t wait_block; /* own block with its record; REFUSED_VALUE_LATE; 0 = nothing is logged */
    int64_t last_put_ns; /* mono: answers of it are in the gate by then; REFUSED_VALUE_UNANSWERED */
};

/* Zero-initialised is empty. */
struct refused_values {
    struct refused_value *values;
    uint32_t first, end, capacity;
};

void refused_values_deinit(struct refused_values *refused);
/* Memory shortage is fatal: the message would be acknowledged as kept. */
void refused_values_add(struct refused_values *refused, const struct refused_value *value);
/* Its record is in this block. Fine when there is no such number. */
void refused_values_on_logged(struct refused_values *refused, uint64_t number, uint64_t block);
/* The answer that was to follow is in the gate, or nobody is there to get it. Fine when there is no such ticket. */
void refused_values_on_answered(struct refused_values *refused, uint64_t ticket, int64_t now_mono_ns);
bool refused_values_has(const struct refused_values *refused, uint64_t ticket);
/* The value of this ticket, NULL when it was not refused, for an answer at the head of the gate that was put at put_ns; forgets those of
 * which no answer is left. Borrowed until the next change. */
const struct refused_value *refused_values_reach(struct refused_values *refused, uint64_t ticket, int64_t put_ns);

#endif
