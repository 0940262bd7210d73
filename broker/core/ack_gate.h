/* The ack gate: the one module that releases what promises something.
 *
 * A shard's gate is one queue, first in first out. Each item names what must have happened before it may leave: the count of the shard's
 * own log blocks that must be durable, and the count of retained PUBLISHes that the route actor must have answered. Both counts only grow,
 * and the queue only opens at its head, so answers of one connection keep their order [MQTT-4.6.0-2] [MQTT-4.6.0-3]: an answer that waits
 * for nothing itself still stands behind those its connection has here already (an answer may go past the gate only if its connection has
 * nothing in it; the caller looks at client.gate_held).
 *
 *   kind           holds                                    leaves as
 *   GATE_ACK       an answer of a connection                a packet, if that connection is still there
 *   GATE_DELIVERY  a message and its recipients             copies to their homes (LOG 9)
 *   GATE_PACKET    SUBACK, UNSUBACK, encoded                those bytes, if that connection is still there
 *   GATE_CONNACK   a connection that waits for its session  CONNACK, and what the session has for it (LOG 8)
 *   GATE_SEND      an outgoing QoS 2 message under its id   the PUBLISH, if that connection is still there (LOG 8)
 *
 * In pairs: an item may wait only for blocks up to the one being filled, and leaves only when durable (CHECK on both sides).
 *
 * A delivery that waits for a block has a record in it, the record_index-th. The gate keeps the numbers of the blocks that deliveries wait
 * for (one entry for all of a block's); when the log says at which sequence such a block begins, the entry has it, and a message gets its
 * sequence (first of the block + record_index) in the moment it leaves: before anybody for whom the record stands is given it.
 *
 * A client that has many on their way (16 in a segment, say) has its answers in one item: a run of identifiers that wait for the same. So
 * an answer may leave before a delivery that was put earlier, but not before what it waits for, nor before another answer.
 *
 * Items stand in chunks of memory one behind the other; nothing is allocated per item. Bound: ACK_GATE_BYTES_MAX with the messages held
 * (and by that of the blocks, since each has an item);
 * ack_gate_has_room() says no before that, and the shard stops reading whoever needs it. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_CORE_ACK_GATE_H
#define TIDEGATE_BROKER_CORE_ACK_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/actor/msg.h"
#include "common/bytes.h"
#include "common/metrics.h"

#define ACK_GATE_BYTES_MAX ((uint64_t)64 << 20) /* messages held and items; one item may go beyond it */

enum gate_kind {
    GATE_ACK,      /* an answer of four bytes or so: PUBACK, PUBREC, PUBREL, PUBCOMP */
    GATE_DELIVERY, /* a message and its recipients */
    GATE_PACKET,   /* encoded bytes for a connection behind the item: SUBACK, UNSUBACK */
    GATE_CONNACK,  /* a connection's session is durable: connect_on_durable() */
    GATE_SEND,     /* an outgoing QoS 2 PUBLISH may leave, packet_id names it: deliver_on_sent_durable() */
};

/* A connection of a session, as it was when the item was made. */
struct client_ref {
    uint64_t number;     /* of the session */
    uint32_t connection; /* session.connection */
};

struct gate_item {
    uint64_t wait_block;    /* own blocks that must be durable */
    uint64_t wait_retained; /* own retained PUBLISHes that must be answered */
    int64_t since_mono_ns;  /* when it was put */
    struct msg *msg;        /* GATE_DELIVERY: taken */
    struct client_ref client;
    uint32_t extra_size;   /* bytes behind the item: GATE_DELIVERY recipients, GATE_PACKET the packet */
    uint32_t record_index; /* GATE_DELIVERY with wait_block: its record's place among the records of that block, from 0 */
    uint32_t copy_count;   /* GATE_DELIVERY: recipients; 0 = only the message's sequence is wanted */
    uint16_t packet_id;    /* GATE_ACK, GATE_SEND */
    uint16_t more_count;   /* GATE_ACK: as many more of the same answer, for the identifiers that follow; set by the gate */
    uint8_t kind;          /* enum gate_kind */
    uint8_t packet_type;   /* GATE_ACK: enum mqtt_packet_type */
    uint8_t reason;        /* GATE_ACK: enum mqtt_reason */
    uint8_t durability;    /* GATE_ACK: enum durability, told to who asked for it */
};

struct gate_chunk;

/* A block that deliveries wait for. */
struct gate_block {
    uint64_t block;          /* own count */
    uint64_t first_sequence; /* of its records; 0 until the log has said it */
};

struct ack_gate {
    struct gate_chunk *first, *last, *spare;
    struct gate_item *newest_answer;                                /* NULL when it has left, or is about to */
    struct gate_block *blocks;                                      /* a ring, ascending */
    uint32_t block_first, block_count, block_known, block_capacity; /* known: how many of them have their sequence, the oldest */
    uint64_t durable_blocks;                                        /* counts reached */
    uint64_t retained_answered;
    uint64_t copies;           /* recipients in here */
    struct queue_stats *stats; /* borrowed: items, and each answer of a run; bytes with messages, oldest */
};

/* What an item becomes. extra: the recipients' bytes. Borrowed until return; item->msg is the callee's to release. What it puts
 * into the gate goes behind all. */
typedef void (*gate_release_fn)(void *arg, const struct gate_item *item, struct span extra);

void ack_gate_init(struct ack_gate *gate, struct queue_stats *stats);
/* Drops what is held, messages included. */
void ack_gate_deinit(struct ack_gate *gate);

static inline bool ack_gate_is_open(const struct ack_gate *gate, uint64_t wait_block, uint64_t wait_retained)
{
    return wait_block <= gate->durable_blocks && wait_retained <= gate->retained_answered;
}
static inline bool ack_gate_is_empty(const struct ack_gate *gate) { return gate->stats->messages == 0; }
/* Whether a PUBLISH with `size` bytes may still be let in. */
static inline bool ack_gate_has_room(const struct ack_gate *gate, uint64_t size)
{
    return gate->stats->messages == 0 || gate->stats->bytes + size <= ACK_GATE_BYTES_MAX;
}

/* Hold an item (copied, item->msg taken; an answer joins the newest answer if that is the same for the identifier before) with what
 * stands behind it.
 * extra          that: recipients or a packet, item->extra_size bytes (copied).
 * block_filling  the number of the shard's own block that is being filled: nothing may wait for more.
 * Memory shortage is fatal here (CHECK): the record is in the log already, its answer must not be lost; room was asked for before. */
void ack_gate_put(struct ack_gate *gate, const struct gate_item *item, struct span extra, uint64_t block_filling);

/* The log has written own block `block` with its records from `first_sequence` on. For each block in order (those that nobody here waits
 * for may be left out), and before ack_gate_set_durable() lets anything out. */
void ack_gate_set_sequence(struct ack_gate *gate, uint64_t block, uint64_t first_sequence);
/* The counts never fall. */
void ack_gate_set_durable(struct ack_gate *gate, uint64_t durable_blocks);
void ack_gate_set_retained(struct ack_gate *gate, uint64_t retained_answered);

/* Let out what may leave, in order, at most `budget` items and answers (the last run goes whole). True when the budget ended it. */
bool ack_gate_release(struct ack_gate *gate, size_t budget, gate_release_fn release, void *arg);

#endif
