/* What a session has sent and the client has not finished: outgoing QoS 1 and QoS 2 messages in the order of their first sending.
 *
 *   state               message     leaves by
 *   INFLIGHT_PUBLISH_1  needed      PUBACK                                -> gone
 *   INFLIGHT_PUBLISH_2  needed      PUBREC < 0x80 -> INFLIGHT_PUBREL, PUBREC >= 0x80 -> gone
 *                                   sent before, too large for the present connection -> INFLIGHT_PUBREL
 *   INFLIGHT_PUBREL     not needed  PUBCOMP                               -> gone; never a PUBLISH again [MQTT-4.3.3-6]
 *
 * A needed message that the checkpoint has is let go while the client is away (inflight_let_go); the entry then knows it by its sequence,
 * and it is read back before it is sent again (inflight_give). When all are, they are packed (inflight_pack): two or three bytes for the
 * sequence of each, and next to none for identifiers and states as they mostly are, instead of about 26. An entry whose record is not
 * durable yet (`pending`) is not sent, and nothing behind it: the order of sending is the order here.
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

#include "broker/actor/msg.h"

enum inflight_state { INFLIGHT_FREE, INFLIGHT_PUBLISH_1, INFLIGHT_PUBLISH_2, INFLIGHT_PUBREL };

struct inflight_entry {
    union {
        struct msg *msg;   /* has_msg: shared (ref) */
        uint64_t sequence; /* else: of the message, 0 = it has none */
    };
    uint32_t meta; /* session/queue.h; unknown (0) of an entry that was restored, until it is read */
    uint16_t packet_id;
    uint8_t state;                     /* enum inflight_state */
    uint8_t pending;                   /* records about it that are not durable yet: it is not sent */
    uint16_t next, prev, next_in_cell; /* private */
    bool has_msg : 1;
    bool is_wanted : 1;   /* the message's record names the session: queue_item.is_wanted */
    bool is_sent : 1;     /* on the present connection */
    bool is_dup : 1;      /* it may have been sent on an earlier one: DUP */
    bool holds_quota : 1; /* of the present connection's receive maximum */
};

_Static_assert(sizeof(struct inflight_entry) <= 24, "max_inflight_messages of them in a busy session");

struct inflight_block;
struct inflight_packed;

/* Zero-initialised is empty. */
struct inflight {
    union {
        struct inflight_block *block;   /* NULL = none */
        struct inflight_packed *packed; /* is_packed */
    };
    uint16_t last_id; /* identifier given last */
    uint16_t count;
    bool is_packed; /* then only what says so below may be called */
};

/* Drops all references. Packed or not. */
void inflight_deinit(struct inflight *inflight);
/* Add at the end, unsent, under a fresh identifier. msg: taken when it succeeds. qos: 1 or 2. Borrowed until the next change; NULL when
 * memory is short or all identifiers are taken. */
struct inflight_entry *inflight_add(struct inflight *inflight, struct msg *msg, uint32_t meta, uint8_t qos);
/* At start: an outgoing QoS 2 message of an earlier life, by its sequence; in the order of sending. False: memory is short, or the
 * identifier is 0 or taken. */
bool inflight_restore(struct inflight *inflight, uint64_t sequence, uint16_t packet_id, bool is_received);
/* At start, after those: whether a message of this sequence was sent before one of them, and there is room for it. O(1) when packed
 * or sent in the order of the sequences, else O(n). */
bool inflight_has_later(const struct inflight *inflight, uint64_t sequence);
/* Then: it is one of QoS 1, to be sent again before them [MQTT-4.6.0-1], under a fresh identifier (no record says which it had, nor that
 * it was sent: is_dup is not set). Where those were not sent in the order of their sequences, they are from now on: two publishers'
 * messages overtook each other then, and only that order keeps each publisher's own with one between them. Nothing is sent yet, and no
 * messages are there. Not packed. O(1) on average for ascending sequences. False: memory is short. */
bool inflight_restore_before_later(struct inflight *inflight, uint64_t sequence);
struct inflight_entry *inflight_find(struct inflight *inflight, uint16_t packet_id);
/* The entry of a message, NULL when there is none. O(n): for what was read back. */
struct inflight_entry *inflight_find_sequence(struct inflight *inflight, uint64_t sequence);
/* Whether there is one. Packed: O(n). Else, asked for ascending sequences and sent in the order of theirs, O(1) on average; else O(n). */
bool inflight_has_sequence(const struct inflight *inflight, uint64_t sequence);
/* The greatest of all, 0 when there is none. O(1) when packed or sent in the order of the sequences, else O(n). */
uint64_t inflight_sequence_max(const struct inflight *inflight);
/* Of its message; 0 when that has none. */
uint64_t inflight_sequence(const struct inflight_entry *entry);
/* PUBREC came: the message goes, its identifier stays. */
void inflight_to_pubrel(struct inflight *inflight, struct inflight_entry *entry);
void inflight_remove(struct inflight *inflight, struct inflight_entry *entry);
/* A new connection: everything is unsent and holds no quota. */
void inflight_restart(struct inflight *inflight);
/* The first entry not sent on this connection, NULL when all are. After sending, call inflight_mark_sent(). */
struct inflight_entry *inflight_next_unsent(struct inflight *inflight);
void inflight_mark_sent(struct inflight *inflight, struct inflight_entry *entry);

/* The client is away: let go the wanted messages below the checkpoint, and take no more memory than is needed. Returns whether some are
 * left that a later checkpoint lets go, or whose record is not durable. Packed or not. */
bool inflight_let_go(struct inflight *inflight, uint64_t checkpoint);
/* The client is away, and nothing that is read back for it is under way: pack all if none has a message or waits for its record. Packed or
 * not. */
void inflight_pack(struct inflight *inflight);
/* Everything as it was, unsent. False: memory is short, it stays packed. Packed or not. */
bool inflight_unpack(struct inflight *inflight);
/* The sequences of the next unsent messages that must be read back, at most `max`. */
uint32_t inflight_missing(const struct inflight *inflight, uint64_t *sequences_out, uint32_t max);
/* A message that was read back; taken. The entry is in state PUBLISH and has none. */
void inflight_give(struct inflight_entry *entry, struct msg *msg, uint32_t meta);
/* Every sequence of wanted messages, and of QoS 2 that go on. Packed or not. */
void inflight_each_position(const struct inflight *inflight, void (*visit)(void *arg, uint64_t sequence), void *arg);
/* Free the block when it is empty: the client has gone. */
void inflight_trim(struct inflight *inflight);

#endif
