/* The timing wheel; see timer_wheel.h.
 *
 * Level k has slots of 64^k ticks. A timer that is `delta` ticks away is put on the lowest level on which delta is less than 64 slots, into
 * the slot that its tick falls into; so the slots of one level never hold two rounds at once. When the wheel's tick enters a slot of an
 * upper level, the slot's whole list moves to `sinking` in O(1), and from there its timers are placed again, one budget unit each. Slots of
 * level 0 move to `due`, from where they are fired. Ticks at which nothing happens are skipped by the bitmaps.
 *
 * A timer may be removed at any time, also out of `due` and `sinking`. It does not know its slot; when it was the last of a list, the head
 * that its two links point to tells. */
#include "broker/session/timer_wheel.h"

#include "common/check.h"

#define LEVEL_BITS 6u
#define SPAN_TICKS (UINT64_C(1) << (LEVEL_BITS * TIMER_WHEEL_LEVELS))

_Static_assert(TIMER_WHEEL_SLOTS == 1 << LEVEL_BITS, "a level's slots are LEVEL_BITS of the tick");
_Static_assert(SPAN_TICKS / 10 > UINT32_MAX, "every session expiry interval that MQTT can express fits");

void timer_wheel_init(struct timer_wheel *wheel, uint64_t now_ms)
{
    *wheel = (struct timer_wheel){.tick = now_ms / TIMER_WHEEL_TICK_MS};
    list_init(&wheel->due);
    list_init(&wheel->sinking);
    for (int level = 0; level < TIMER_WHEEL_LEVELS; level++)
        for (int slot = 0; slot < TIMER_WHEEL_SLOTS; slot++)
            list_init(&wheel->slots[level][slot]);
}

/* The first tick that begins at or after the deadline. */
static uint64_t timer_wheel_tick_of(uint64_t deadline_ms)
{
    return deadline_ms / TIMER_WHEEL_TICK_MS + (deadline_ms % TIMER_WHEEL_TICK_MS != 0);
}

/* Put a node that is in no list where its deadline belongs, seen from the present tick. */
static void timer_wheel_place(struct timer_wheel *wheel, struct timer_node *node)
{
    uint64_t tick = timer_wheel_tick_of(node->deadline_ms);
    if (tick <= wheel->tick) {
        list_push_back(&wheel->due, &node->link);
        return;
    }
    if (tick - wheel->tick >= SPAN_TICKS)
        tick = wheel->tick + SPAN_TICKS - 1; /* sinks there and is placed again */
    uint64_t delta = tick - wheel->tick;
    unsigned level = (63u - (unsigned)__builtin_clzll(delta)) / LEVEL_BITS;
    unsigned slot = (unsigned)(tick >> (level * LEVEL_BITS)) % TIMER_WHEEL_SLOTS;
    /* On an upper level the farthest slot in reach is the one that the wheel stands in, a round later. That one was emptied when the wheel
     * entered it, and timer_wheel_next_tick() looks from the slot behind it all the way round. */
    list_push_back(&wheel->slots[level][slot], &node->link);
    wheel->occupied[level] |= UINT64_C(1) << slot;
}

void timer_wheel_add(struct timer_wheel *wheel, struct timer_node *node, uint64_t deadline_ms)
{
    timer_wheel_remove(wheel, node);
    node->deadline_ms = deadline_ms;
    timer_wheel_place(wheel, node);
    wheel->count++;
}

void timer_wheel_remove(struct timer_wheel *wheel, struct timer_node *node)
{
    if (!timer_node_is_set(node))
        return;
    struct list_node *head = node->link.next;
    bool alone = head == node->link.prev;
    list_remove(&node->link);
    wheel->count--;
    struct list_node *slots = &wheel->slots[0][0];
    if (!alone || head < slots || head >= slots + TIMER_WHEEL_LEVELS * TIMER_WHEEL_SLOTS)
        return;
    size_t index = (size_t)(head - slots);
    wheel->occupied[index / TIMER_WHEEL_SLOTS] &= ~(UINT64_C(1) << (index % TIMER_WHEEL_SLOTS));
}

/* The next tick after the present one at which a slot that is not empty begins; UINT64_MAX with none. */
static uint64_t timer_wheel_next_tick(const struct timer_wheel *wheel)
{
    uint64_t nearest = UINT64_MAX;
    for (unsigned level = 0; level < TIMER_WHEEL_LEVELS; level++) {
        if (wheel->occupied[level] == 0)
            continue;
        uint64_t here = wheel->tick >> (level * LEVEL_BITS);
        unsigned start = (unsigned)(here + 1) % TIMER_WHEEL_SLOTS;
        uint64_t turned =
            start == 0 ? wheel->occupied[level] : wheel->occupied[level] >> start | wheel->occupied[level] << (TIMER_WHEEL_SLOTS - start);
        uint64_t tick = (here + 1 + (unsigned)__builtin_ctzll(turned)) << (level * LEVEL_BITS);
        if (tick < nearest)
            nearest = tick;
    }
    return nearest;
}

/* Step to a tick: the slots that begin there give their lists away. */
static void timer_wheel_enter(struct timer_wheel *wheel, uint64_t tick)
{
    wheel->tick = tick;
    for (unsigned level = 0; level < TIMER_WHEEL_LEVELS; level++) {
        if ((tick & ((UINT64_C(1) << (level * LEVEL_BITS)) - 1)) != 0)
            break; /* no slot of this level, or of a higher one, begins here */
        unsigned slot = (unsigned)(tick >> (level * LEVEL_BITS)) % TIMER_WHEEL_SLOTS;
        list_splice_back(level == 0 ? &wheel->due : &wheel->sinking, &wheel->slots[level][slot]);
        wheel->occupied[level] &= ~(UINT64_C(1) << slot);
    }
}

bool timer_wheel_advance(struct timer_wheel *wheel, uint64_t now_ms, size_t budget, void (*fire)(struct timer_node *node, void *arg),
                         void *arg)
{
    CHECK(budget > 0);
    uint64_t target = now_ms / TIMER_WHEEL_TICK_MS;
    for (;;) {
        while (!list_is_empty(&wheel->sinking)) {
            if (budget-- == 0)
                return true;
            timer_wheel_place(wheel, LIST_ENTRY(list_pop_front(&wheel->sinking), struct timer_node, link));
        }
        while (!list_is_empty(&wheel->due)) {
            if (budget-- == 0)
                return true;
            struct timer_node *node = LIST_ENTRY(list_pop_front(&wheel->due), struct timer_node, link);
            wheel->count--;
            fire(node, arg);
        }
        uint64_t next = timer_wheel_next_tick(wheel);
        if (next > target)
            break;
        timer_wheel_enter(wheel, next);
    }
    if (target > wheel->tick)
        wheel->tick = target;
    return false;
}

uint64_t timer_wheel_next_ms(const struct timer_wheel *wheel)
{
    if (!list_is_empty(&wheel->due) || !list_is_empty(&wheel->sinking))
        return 0;
    uint64_t tick = timer_wheel_next_tick(wheel);
    return tick == UINT64_MAX ? TIMER_WHEEL_NEVER : tick * TIMER_WHEEL_TICK_MS;
}
