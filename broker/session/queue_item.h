/* A message of one session's queue, with what stands beside it for this recipient alone. */
#ifndef TIDEGATE_BROKER_SESSION_QUEUE_ITEM_H
#define TIDEGATE_BROKER_SESSION_QUEUE_ITEM_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/actor/msg.h"

/* What stands beside a message for one recipient, in 32 bits:
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
    bool is_wanted; /* the message's record names this session: the checkpoint will have it, and is told when it is done */
};

static inline uint64_t queue_item_sequence(const struct queue_item *item) { return msg_sequence(item->msg); }
/* Whether the store, which has all below `checkpoint`, can give it back. */
static inline bool queue_item_is_stored(const struct queue_item *item, uint64_t checkpoint)
{
    return item->is_wanted && queue_item_sequence(item) < checkpoint;
}

#endif
