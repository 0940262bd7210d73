/* A hierarchical timing wheel for millions of timers: keep-alive, session expiry, will delay.
 *
 * A timer is an intrusive node of 24 bytes in its owner's struct; adding and removing are O(1) and never allocate. Time is cut into ticks
 * of TIMER_WHEEL_TICK_MS; each of six levels has 64 slots, a level's slot being as long as the whole level below, so the wheel spans 217
 * years. A timer of an upper level comes down when its slot begins and fires in the first tick that begins at or after its deadline: never
 * early, at most one tick late beside the caller's own sleeping. Advancing skips empty ticks by bitmaps, however long the time between two
 * calls, and both firing and moving down count against the caller's budget: a million timers of one slot do not stall a loop.
 *
 * Deadlines and now are milliseconds of one monotonic clock, at the caller's choice of origin. Pure; one thread. Example:
 *
 *   timer_wheel_add(&wheel, &sess->keepalive, now_ms + 90000);                      add or move
 *   timer_wheel_remove(&wheel, &sess->keepalive);                                   fine when it is not in
 *   more = timer_wheel_advance(&wheel, now_ms, 256, on_timer, loop);                on_timer: node -> container_of
 *   sleep until timer_wheel_next_ms(&wheel)
 */
#ifndef TIDEGATE_BROKER_SESSION_TIMER_WHEEL_H
#define TIDEGATE_BROKER_SESSION_TIMER_WHEEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/list.h"

#define TIMER_WHEEL_TICK_MS 100
#define TIMER_WHEEL_LEVELS 6
#define TIMER_WHEEL_SLOTS 64 /* one bit each in a 64-bit word */
#define TIMER_WHEEL_NEVER UINT64_MAX

/* Zero-initialised = not in a wheel. The owner may read deadline_ms. */
struct timer_node {
    struct list_node link;
    uint64_t deadline_ms;
};

struct timer_wheel {
    uint64_t tick;                         /* the timers of this tick and before have fired, or are in `due` or `sinking` */
    size_t count;                          /* timers in the wheel */
    uint64_t occupied[TIMER_WHEEL_LEVELS]; /* a bit for each slot that is not empty */
    struct list_node due;                  /* to be fired */
    struct list_node sinking;              /* to be put into lower levels */
    struct list_node slots[TIMER_WHEEL_LEVELS][TIMER_WHEEL_SLOTS];
};

void timer_wheel_init(struct timer_wheel *wheel, uint64_t now_ms);

/* Set the timer, in a wheel or not. A deadline that has passed fires with the next tick at the latest; one beyond the wheel's span waits at
 * its end and is put again. */
void timer_wheel_add(struct timer_wheel *wheel, struct timer_node *node, uint64_t deadline_ms);
/* Fine when it is in no wheel. */
void timer_wheel_remove(struct timer_wheel *wheel, struct timer_node *node);
static inline bool timer_node_is_set(const struct timer_node *node) { return list_node_is_linked(&node->link); }

/* Fire the timers whose deadline is at or before now; each is out of the wheel when `fire` is called, which may add and remove any timer,
 * its own node included, and free its owner. now_ms never goes back (an earlier one is taken as the last).
 * budget  timers fired or moved at most, >= 1.
 * Returns true when the budget ended it: call again soon. */
bool timer_wheel_advance(struct timer_wheel *wheel, uint64_t now_ms, size_t budget, void (*fire)(struct timer_node *node, void *arg),
                         void *arg);

/* When advance() has work again at the latest: the earliest deadline rounded up to a tick, or the moment at which timers far away move
 * down; TIMER_WHEEL_NEVER with no timer; a time in the past when work is left over. */
uint64_t timer_wheel_next_ms(const struct timer_wheel *wheel);

static inline size_t timer_wheel_count(const struct timer_wheel *wheel) { return wheel->count; }

#endif
