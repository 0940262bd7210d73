/* What a session has sent and the client has not finished: outgoing QoS 1 and QoS 2 messages in the order of their first sending.
 *
 *   state               holds       leaves by
 *   INFLIGHT_PUBLISH_1  msg         PUBACK                                -> gone
 *   INFLIGHT_PUBLISH_2  msg         PUBREC < 0x80 -> INFLIGHT_PUBREL, PUBREC >= 0x80 -> gone
 *   INFLIGHT_PUBREL     no msg      PUBCOMP                               -> gone; never a PUBLISH again [MQTT-4.3.3-6]
 *
 * Packet identifiers are not 0 and unused at the time, also after the wrap [MQTT-2.2.1-4]. After a reconnect all entries are sent again in
 * their order with their identifiers [MQTT-4.4.0-1], as far as the new connection's receive maximum lets: `unsent` walks over them.
 *
 * One block with entries, an index by identifier, and the order as links of 16 bits: everything is O(1), whatever the client acknowledges
 * first. Nothing is allocated before the first message. Bound: 65,535, in practice max_inflight_messages. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_INFLIGHT_H
#define TIDEGATE_BROKER_SESSION_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/msg.h"

enum inflight_state { INFLIGHT_FREE, INFLIGHT_PUBLISH_1, INFLIGHT_PUBLISH_2, INFLIGHT_PUBREL };

struct inflight_entry {
    struct msg *msg; /* shared (ref); NULL in INFLIGHT_PUBREL */
    uint32_t meta;   /* session/queue.h */
    uint16_t packet_id;
    uint8_t state;                     /* enum inflight_state */
    bool is_sent;                      /* on the present connection */
    uint16_t next, prev, next_in_cell; /* private */
    bool holds_quota;                  /* of the present connection's receive maximum */
};

struct inflight_block;

/* Zero-initialised is empty. */
struct inflight {
    struct inflight_block *block;
    uint16_t last_id; /* identifier given last */
    uint16_t count;
};

/* Drops all references. */
void inflight_deinit(struct inflight *inflight);
/* Add at the end, unsent, under a fresh identifier. msg: taken when it succeeds. qos: 1 or 2. Borrowed until the next change; NULL when
 * memory is short or all identifiers are taken. */
struct inflight_entry *inflight_add(struct inflight *inflight, struct msg *msg, uint32_t meta, uint8_t qos);
struct inflight_entry *inflight_find(struct inflight *inflight, uint16_t packet_id);
/* PUBREC came: the message goes, its identifier stays. */
void inflight_to_pubrel(struct inflight *inflight, struct inflight_entry *entry);
void inflight_remove(struct inflight *inflight, struct inflight_entry *entry);
/* A new connection: everything is unsent and holds no quota. */
void inflight_restart(struct inflight *inflight);
/* The first entry not sent on this connection, NULL when all are. After sending, call inflight_mark_sent(). */
struct inflight_entry *inflight_next_unsent(struct inflight *inflight);
void inflight_mark_sent(struct inflight *inflight, struct inflight_entry *entry);
/* Free the block when it is empty: the client has gone. */
void inflight_trim(struct inflight *inflight);

#endif
