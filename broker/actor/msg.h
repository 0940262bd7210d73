/* One published message: immutable, reference counted, shared by all its recipients over all threads.
 *
 * A PUBLISH is copied once, from the loop's read buffer into a `struct msg`; afterwards only references travel. Nobody writes to it after
 * msg_new() has returned, except the reference count. What differs from recipient to recipient (granted QoS, RETAIN, DUP, packet
 * identifier, subscription identifiers, remaining expiry) stands beside the reference, never in the message.
 *
 * Layout of bytes[]: topic, then forwardable MQTT 5 properties (encoded, without the length prefix; topic alias, message expiry interval
 * and subscription identifiers taken out), then payload. One allocation. Thread: any; refs is atomic. */
#ifndef TIDEGATE_BROKER_ACTOR_MSG_H
#define TIDEGATE_BROKER_ACTOR_MSG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"

#define MSG_NO_EXPIRY INT64_MAX

struct msg {
    _Atomic uint32_t refs;
    uint32_t topic_size;       /* bytes, 1..65535 */
    uint32_t properties_size;  /* bytes of forwardable properties */
    uint32_t payload_size;     /* bytes */
    uint8_t qos;               /* as published, 0..2 */
    bool retain;               /* RETAIN of the PUBLISH */
    uint16_t flags;            /* room */
    uint32_t receive_steady_s; /* when it was accepted, in the broker's own time; 0 = not known: it was read back */
    uint64_t publisher;        /* session number of the publisher, for No Local; 0 = the broker itself */
    uint64_t retained_number;  /* of a retained PUBLISH, process-wide order; 0 otherwise */
    _Atomic uint64_t sequence; /* of its record in the log: its name in the checkpoint. 0 until the record is durable (or when there is
                                  none); set once, by the publisher's shard, before a persistent session is given the message */
    int64_t receive_wall_ns;   /* when it was accepted; strictly increasing in one shard */
    int64_t expiry_wall_ns;    /* deadline in the broker's own time (shard_config.steady_offset_ns), MSG_NO_EXPIRY when it does not expire
                                  [MQTT-3.3.2-5] */
    uint8_t correlation_id[16];
    uint8_t bytes[];
};

struct msg_source {
    struct span topic, properties, payload; /* borrowed until msg_new returns */
    uint8_t qos;
    bool retain;
    uint64_t publisher;
    int64_t receive_wall_ns;
    uint32_t receive_steady_s;
    int64_t expiry_wall_ns;
};

/* A copy with one reference, returned; NULL when memory is short (the caller refuses the PUBLISH with 0x97 or closes). */
struct msg *msg_new(const struct msg_source *source);
/* The same message again, as a retained one, to be logged under a name of its own; likewise. */
struct msg *msg_copy_retained(const struct msg *msg);
struct msg *msg_ref(struct msg *msg);
void msg_unref(struct msg *msg); /* NULL is fine */

static inline struct span msg_topic(const struct msg *msg) { return span_of(msg->bytes, msg->topic_size); }
static inline struct span msg_properties(const struct msg *msg) { return span_of(msg->bytes + msg->topic_size, msg->properties_size); }
static inline struct span msg_payload(const struct msg *msg)
{
    return span_of(msg->bytes + msg->topic_size + msg->properties_size, msg->payload_size);
}
/* What msg_new() makes of it will count for. */
static inline size_t msg_source_cost(const struct msg_source *source)
{
    return sizeof(struct msg) + source->topic.size + source->properties.size + source->payload.size;
}
/* Its name in the checkpoint, 0 = none. */
static inline uint64_t msg_sequence(const struct msg *msg) { return atomic_load_explicit(&msg->sequence, memory_order_relaxed); }
/* What it counts for against every bound in bytes. */
static inline size_t msg_cost(const struct msg *msg) { return sizeof *msg + msg->topic_size + msg->properties_size + msg->payload_size; }

#endif
