/* Packet identifiers of incoming QoS 2 PUBLISHes between PUBREC and PUBREL, of one session.
 *
 * A repeated PUBLISH of an identifier in here is answered again and delivered to nobody [MQTT-4.3.3-10], also after a reconnect: the set
 * belongs to the session. Beside each identifier stands what its PUBLISH waits for (a block of the log, the route actor's answer about a
 * retained value), because a repeated PUBREC promises the same as the first and must wait for the same, and whether it counts against the
 * receive maximum of the present connection.
 *
 * An open-addressing table that grows with what is in it; nothing is allocated while it is empty. Bound: 65,535 identifiers. Pure; owner:
 * the session's shard. */
#ifndef TIDEGATE_BROKER_SESSION_INBOUND_IDS_H
#define TIDEGATE_BROKER_SESSION_INBOUND_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct inbound_id {
    uint64_t wait_block;    /* own block that holds the PUBLISH's record; 0 = none was needed, or nobody waits for it */
    uint64_t wait_retained; /* own retained PUBLISHes that must be answered; 0 = it is not retained */
    uint16_t packet_id;     /* 0 = free cell */
    uint8_t durability;     /* enum durability of its PUBREC; DURABILITY_LOG when added, which is what restored ones have */
    bool is_counted;        /* against the receive maximum of this connection */
};

/* Zero-initialised is empty. */
struct inbound_ids {
    struct inbound_id *cells;
    uint32_t capacity; /* power of two or 0 */
    uint32_t count;
};

void inbound_ids_deinit(struct inbound_ids *ids);
/* Borrowed until the next change; NULL when unknown. */
struct inbound_id *inbound_ids_find(const struct inbound_ids *ids, uint16_t packet_id);
/* packet_id is not 0 and not in the set. ERR_NOMEM leaves the set as it was. */
enum err inbound_ids_add(struct inbound_ids *ids, uint16_t packet_id, uint64_t wait_block) must_check;
/* Fine when it is not there. Frees the table with its last identifier. */
void inbound_ids_remove(struct inbound_ids *ids, uint16_t packet_id);
/* A new connection: nothing counts against its receive maximum yet. */
void inbound_ids_uncount(struct inbound_ids *ids);

#endif
