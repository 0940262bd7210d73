/* A session in the checkpoint: the value in the database, and the same in memory while a delta changes it. Internal to the checkpoint.
 *
 * The value is the shortest list of records that makes the session, without its number, which is the key:
 *
 *     SESSION  WILL?  SUBSCRIPTION*  PUBLISH*  (SENT | RECEIVED)*
 *
 * A PUBLISH stands for an open identifier of incoming QoS 2 (packet_id), SENT and RECEIVED for outgoing QoS 2 in the order of sending.
 * Any other record or order makes the value corrupt.
 *
 * In memory subscriptions stay the bytes that they were until one is changed; then a table of their filters is made, so that thousands of
 * changes cost no more each than one. Owner: the store thread. Pure. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_SESSION_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_SESSION_H

#include "broker/durable/checkpoint_value.h"
#include "common/buf.h"

/* A value, taken apart. Everything borrowed from it. */
struct session_value {
    struct record head; /* SESSION */
    struct span will, subscriptions, inbound, sent;
    uint32_t subscription_count, inbound_count, sent_count;
};

/* Returns 0 or ERR_CORRUPT. */
enum err session_value_decode(struct session_value *value_out, struct span bytes) must_check;
/* The next identifier of value.inbound, the next of value.sent. False: that was all. */
bool session_value_next_inbound(struct span *inbound, uint16_t *packet_id_out);
bool session_value_next_sent(struct span *sent, struct checkpoint_sent *sent_out);

struct stored_subscription {
    uint64_t hash;      /* of the filter */
    struct span filter; /* in `record` */
    struct span record; /* empty: unsubscribed */
};

struct stored_session {
    struct stored_session *next;  /* in its bucket */
    struct stored_session *later; /* the one that came into the delta after it */
    uint64_t number;
    bool is_stored;  /* the database has a value */
    bool exists;     /* otherwise nothing below counts */
    bool is_changed; /* against the database */
    bool is_deleted; /* by a record of this delta */
    size_t bytes;    /* of memory */

    uint8_t *head; /* encoded SESSION, own block */
    uint32_t head_size;
    uint8_t *will; /* encoded WILL, own block; NULL: none */
    uint32_t will_size;

    uint8_t *loaded;           /* own block: the records SUBSCRIPTION of the value */
    struct span subscriptions; /* all of them, while slots is NULL */
    struct stored_subscription *subs;
    uint32_t *slots; /* hash table of indices + 1 into subs; those of ended ones stay */
    uint32_t sub_count, sub_capacity, slot_count;
    struct owned_record *owned; /* records that came since */

    uint16_t *inbound; /* ascending */
    uint32_t inbound_count, inbound_capacity;
    struct checkpoint_sent *sent; /* from sent_first on */
    uint32_t sent_first, sent_end, sent_capacity;
    uint64_t *sent_ids; /* a bit for each packet id in `sent`, once they are many: a new one is then known without a search */
};

/* Zero-initialised, with its number, is a session that does not exist. */
void stored_session_clear(struct stored_session *session);

/* As the value says. Returns 0, ERR_CORRUPT or ERR_NOMEM; on either it does not exist. */
enum err stored_session_load(struct stored_session *session, struct span value) must_check;
/* Append the value. Failures go to buf->err. */
void stored_session_encode(const struct stored_session *session, struct buf *buf);

/* What records do. All but the first need a session that exists. 0 or ERR_NOMEM, which leaves it as it was. */
enum err stored_session_set(struct stored_session *session, const struct record *rec) must_check;
enum err stored_session_set_will(struct stored_session *session, const struct record *rec) must_check; /* NULL: none */
enum err stored_session_subscribe(struct stored_session *session, const struct record *rec) must_check;
enum err stored_session_unsubscribe(struct stored_session *session, struct span filter) must_check;
enum err stored_session_set_given(struct stored_session *session) must_check; /* no subscription is owed retained values */
enum err stored_session_open(struct stored_session *session, uint16_t packet_id) must_check;
void stored_session_release(struct stored_session *session, uint16_t packet_id);
enum err stored_session_sent(struct stored_session *session, uint64_t sequence, uint16_t packet_id) must_check;
void stored_session_received(struct stored_session *session, uint16_t packet_id);
void stored_session_complete(struct stored_session *session, uint16_t packet_id);
void stored_session_delete(struct stored_session *session);

#endif
