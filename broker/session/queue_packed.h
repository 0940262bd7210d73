/* A queue of which nothing is in memory but sequences, in one small block: its runs as numbers; its front, what came too late for the runs
 * and its tail packed.
 *
 * Some 45 bytes with a tail of thirteen, where the open form takes 112; packing and opening it again is a quarter of a microsecond. Never
 * changed: opened instead. Pure; owner: the queue. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_PACKED_H
#define TIDEGATE_BROKER_SESSION_QUEUE_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/session/late_list.h"
#include "common/position_list.h"

#define QUEUE_PACKED_MAX 128 /* sequences; a queue with more stays open */

/* session/queue.c says what they mean. */
struct queue_runs {
    uint64_t next, max;
    uint32_t count;
    uint16_t misses;
};

/* NULL = empty. */
struct queue_lists {
    struct position_list *front, *tail;
    struct late_list *late;
};
void queue_lists_free(struct queue_lists *lists);

struct queue_packed;

/* Lists borrowed. NULL: memory is short, or they are long. Freed with free(). */
struct queue_packed *queue_packed_new(const struct queue_runs *runs, const struct queue_lists *lists);
struct queue_runs queue_packed_runs(const struct queue_packed *packed);
bool queue_packed_has_front(const struct queue_packed *packed);
bool queue_packed_has_tail(const struct queue_packed *packed);
/* As they were. False: memory is short, nothing was made. */
bool queue_packed_open(const struct queue_packed *packed, struct queue_lists *lists_out);
/* Front, late ones, tail, each in its order. */
void queue_packed_each(const struct queue_packed *packed, void (*visit)(void *arg, uint64_t sequence), void *arg);
/* The first of the front, of the tail when that is empty; 0 when both are. */
uint64_t queue_packed_first(const struct queue_packed *packed);

#endif
