/* Who gets a message: one session, and what is its own of the message. Recipients stand one behind the other in bytes: in the publisher's
 * scratch, in the ack gate while they wait, and in the batch that goes to another shard (core/delivery.h). */
#ifndef TIDEGATE_BROKER_CORE_RECIPIENT_H
#define TIDEGATE_BROKER_CORE_RECIPIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

struct recipient {
    uint64_t number;
    uint16_t shard;
    uint8_t qos;        /* of the copy: min(published, granted) [MQTT-3.8.4-8] */
    bool retain : 1;    /* of the copy [MQTT-3.3.1-12] [MQTT-3.3.1-13] */
    bool is_named : 1;  /* the message's record says that it gets it: what becomes of it is logged */
    bool is_copy : 1;   /* the message is a retained value's copy for this session, from its home's gate */
    bool is_large : 1;  /* a copy whose record was a large one: nothing has waited behind it before it was complete */
    bool is_behind : 1; /* it has stood in its home's gate behind such copies */
    uint32_t id_count;
    uint32_t ids[]; /* subscription identifiers [MQTT-3.3.4-3] */
};
/* Bytes, the next one stands behind them. */
static inline size_t recipient_size(uint32_t id_count)
{
    return align_up(sizeof(struct recipient) + id_count * sizeof(uint32_t), _Alignof(struct recipient));
}

#endif
