/* Messages that wait for one session, oldest first.
 *
 * The oldest few are resident here, the rest is at the store actor: a message goes to the store as soon as one is there or the window is
 * full, so the order is resident, then stored, always. When the window has run low the shard asks the store for the oldest
 * (queue_load_count), and the answer goes to the window's end. While the client is away the window is short: an offline session costs
 * little, however long its queue.
 *
 *   push:  stored == 0 and the window has room -> resident;   otherwise -> QUEUE_TO_STORE, the caller posts OP_STORE_PUT
 *   load:  not loading, stored > 0, window at most half full -> post OP_STORE_LOAD of queue_load_count(), then queue_on_loaded()
 *
 * Bounds in messages and bytes count both parts; the policy for full is to drop the newest (the caller counts it with the reason). Nothing
 * is allocated while it is empty. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_H
#define TIDEGATE_BROKER_SESSION_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/msg.h"
#include "broker/core/store_actor.h"

#define QUEUE_RESIDENT_MAX 32        /* messages, power of two */
#define QUEUE_RESIDENT_OFFLINE_MAX 4 /* messages while the client is away */

/* What stands beside a message for one recipient, in 32 bits, so that it travels through the store as one number:
 *   bits 0..27  subscription identifier (0: none), or the number of a set of identifiers in the session
 *   bit  28     it is a set
 *   bit  29     RETAIN of the copy
 *   bits 30..31 QoS of the copy */
#define QUEUE_META_ID_MASK 0x0fffffffu
#define QUEUE_META_IS_SET 0x10000000u
#define QUEUE_META_RETAIN 0x20000000u
static inline uint32_t queue_meta(uint8_t qos, bool retain, uint32_t id)
{
    return (uint32_t)qos << 30 | (retain ? QUEUE_META_RETAIN : 0) | id;
}
static inline uint8_t queue_meta_qos(uint32_t meta) { return (uint8_t)(meta >> 30); }
static inline bool queue_meta_retain(uint32_t meta) { return (meta & QUEUE_META_RETAIN) != 0; }

struct queue_item {
    struct msg *msg;
    uint32_t meta;
};

struct queue_limits {
    uint32_t messages_max;
    uint64_t bytes_max;
};

/* Zero-initialised is empty. */
struct queue {
    struct queue_item *items; /* ring */
    uint64_t bytes;           /* resident and stored */
    uint32_t stored;          /* messages at the store, those asked for included */
    uint8_t capacity;         /* of the ring, power of two or 0 */
    uint8_t first;
    uint8_t resident;
    bool is_loading;
};

enum queue_result {
    QUEUE_RESIDENT, /* taken a reference */
    QUEUE_TO_STORE, /* counted; the caller posts OP_STORE_PUT with a reference of its own */
    QUEUE_FULL_MESSAGES,
    QUEUE_FULL_BYTES,
    QUEUE_NOMEM,
};

static inline uint32_t queue_count(const struct queue *queue) { return queue->resident + queue->stored; }

/* Drops the resident references. */
void queue_deinit(struct queue *queue);
enum queue_result queue_push(struct queue *queue, struct msg *msg, uint32_t meta, const struct queue_limits *limits, bool is_online);
/* The oldest resident item, NULL when none is (ask queue_load_count). Borrowed until the next change. */
struct queue_item *queue_first(struct queue *queue);
/* Take the oldest resident item out; its reference is the caller's. */
struct queue_item queue_pop(struct queue *queue);
/* How many to ask the store for now: 0 = nothing. After posting the question set is_loading. */
uint32_t queue_load_count(const struct queue *queue);
/* The store's answer. The page is taken: its references move in here, its memory is freed. Returns false when memory is short: what did not
 * go in is dropped, its number is in *dropped_out. */
bool queue_on_loaded(struct queue *queue, uint32_t *dropped_out, struct store_page *page);

#endif
