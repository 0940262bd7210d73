/* A subscriber of a filter, and the list of those that a topic reaches. Values. */
#ifndef TIDEGATE_BROKER_ROUTE_SUBSCRIBER_H
#define TIDEGATE_BROKER_ROUTE_SUBSCRIBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bits of subscriber.options: 2..5 as in the options byte of SUBSCRIBE [MQTT 5 3.8.3.1]; the others are ours. The tree reads none of them.
 */
#define SUBSCRIBER_PERSISTENT 0x01 /* of a session that outlives its connection: gets a message when its record is durable */
#define SUBSCRIBER_NO_LOCAL 0x04
#define SUBSCRIBER_RETAIN_AS_PUBLISHED 0x08
#define SUBSCRIBER_RETAIN_HANDLING_MASK 0x30
#define SUBSCRIBER_RETAIN_HANDLING_SHIFT 4
#define SUBSCRIBER_GROUP 0x40 /* the number is a shared subscription group's, not a session's */
#define SUBSCRIBER_FULL 0x80  /* its queue is full and its policy is to refuse: read before routing */

/* Who gets it, and how. A value; the number is its identity within one filter, so a group's must be one that no session has. */
struct subscriber {
    uint64_t number;
    uint32_t subscription_id; /* 1..268435455, 0 = none */
    uint16_t shard;
    uint8_t qos; /* granted maximum, 0..2 */
    uint8_t options;
};
_Static_assert(sizeof(struct subscriber) == 16, "a subscriber is 16 bytes");

/* What a match found, one entry per matching (filter, session); a session with overlapping filters appears once for each. Owned by one
 * thread and used again and again: it grows to the largest result and stays there. */
struct match_list {
    struct subscriber *matches;
    size_t count;
    size_t capacity;
    void **scratch; /* trie nodes still in the race, this level and the next; private */
    size_t scratch_capacity;
};

static inline void match_list_init(struct match_list *list) { *list = (struct match_list){0}; }
void match_list_deinit(struct match_list *list);
/* Give memory back when the list holds room for more than `capacity_max` matches or nodes; for a quiet moment after a huge fan-out. */
void match_list_trim(struct match_list *list, size_t capacity_max);
bool match_list_grow(struct match_list *list, size_t more);
/* Room for `more` behind list->count. False: memory is short. */
static inline bool match_list_reserve(struct match_list *list, size_t more)
{
    return list->capacity - list->count >= more || match_list_grow(list, more);
}

#endif
