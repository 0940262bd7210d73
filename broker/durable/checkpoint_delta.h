/* The delta of the checkpoint: what records applied since the last commit changed, in memory. Internal to the checkpoint.
 *
 *   messages   by sequence, with the wants that are left; a message that nobody wants any more is freed at once
 *   acks       (sequence, session): wants of messages that are in the database, in order of arrival
 *   sessions   that were touched, loaded and changed (checkpoint_session.h), by number
 *   retained   topics that were touched, with what the database has of them, by hash and topic
 *   runs       put and dropped, in order
 * It knows nothing of the database: whoever looks there gives it what was found. Sequences come in ascending order, so the messages are an
 * array that only grows at its end. What is acknowledged in the order of publishing is found without a search, the rest by a binary one.
 *
 * Memory comes in blocks and is kept from one delta to the next, as much as the greatest of late needed: each second's messages go where
 * the last second's were, without a call of the allocator or a fresh page. When nothing comes any more, delta_trim() gives it back.
 * Messages lie in blocks of their own, in order of arrival; a block all of whose messages are done is used again at once, so what comes and
 * goes within one delta takes no room.
 *
 * Bound: checkpoint_delta_bytes(), which the store writer keeps in view. Owner: the store thread. Pure. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_DELTA_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_DELTA_H

#include "broker/durable/checkpoint_session.h"
#include "common/bytes.h"
#include "common/err.h"
#include "common/record.h"

#define DELTA_WANT_DONE UINT32_MAX

struct delta_block;

struct delta_want {
    uint64_t session;
    uint32_t at, size; /* of its encoding in the recipients' bytes; at: DELTA_WANT_DONE */
};

/* Contiguous: wants ascending by session, then the recipients as the record had them, a byte 0, and the body as an encoded record. With the
 * 0 it is a row of its own (checkpoint_row.h). */
struct delta_message {
    uint32_t want_count, outstanding;
    uint32_t recipients_size, body_size;
    uint32_t content_bytes; /* of topic, properties and payload */
    bool is_retained;       /* the retained value of its topic */
    struct delta_want wants[];
};

/* A body to be kept: a record to encode, or (NULL) its encoding in two parts, with any size in its first four bytes. */
struct delta_body {
    const struct record *rec;
    struct span parts[2];
};

/* With all that the end of the one session's want needs, so that the message itself, out of the caches by then, is not touched. */
struct delta_entry {
    uint64_t sequence;
    struct delta_message *message; /* NULL: nobody wants it any more */
    struct delta_block *block;     /* in which it lies */
    uint64_t only;                 /* the one session that wants it, if nothing else holds it; 0: the message knows */
};

struct delta_ack {
    uint64_t sequence, session;
};

struct delta_retained {
    struct delta_retained *next; /* in its bucket */
    struct topic_hash hash;
    struct span topic;
    uint64_t number, sequence; /* as it is now; sequence 0: a removal */
    int64_t expiry_ns;
    uint32_t content_bytes;
    bool is_changed;          /* against the database */
    bool is_stored;           /* the database has something under this topic: */
    struct topic_hash at;     /* its key */
    uint64_t stored_sequence; /* 0: a removal */
};

struct delta_run {
    uint64_t session, first;
    struct span positions; /* encoded; empty: dropped */
};

struct delta {
    struct delta_entry *messages;
    size_t message_count, message_capacity, dead_count; /* dead: entries without message */
    size_t found;                                       /* the entry found last: the next is often the one behind it */
    struct delta_ack *acks;
    size_t ack_count, ack_capacity;
    struct stored_session **session_buckets;
    struct stored_session *first_session, *last_session; /* as they came: next to each other in memory, and often by number */
    size_t session_bucket_count, session_count, deleted_count;
    struct delta_retained **retained_buckets;
    size_t retained_bucket_count, retained_count;
    struct delta_run *runs;
    size_t run_count, run_capacity;
    struct delta_block *blocks;                              /* of delta_alloc() */
    struct delta_block *message_blocks, *last_message_block; /* the last is being filled */
    struct delta_block *spare_blocks;
    size_t block_count, spare_count; /* of the usual size: in use, not in use */
    size_t blocks_wanted;            /* so many are kept */
    size_t bytes;                    /* of everything that is in use */
};

/* Room for one more in an array that doubles. */
enum err delta_grow(void **items, size_t *capacity, size_t count, size_t item_size) must_check;

/* Everything is done; most of the memory stays. */
void delta_clear(struct delta *delta);
/* What is not in use goes: nothing has come for a while. */
void delta_trim(struct delta *delta);
/* Of memory that is kept and not in use. */
size_t delta_spare_bytes(const struct delta *delta);
/* All of it goes. */
void delta_free(struct delta *delta);
bool delta_is_empty(const struct delta *delta);
/* Live messages. */
static inline size_t delta_message_count(const struct delta *delta) { return delta->message_count - delta->dead_count; }

/* Memory that lives until delta_clear(), for bytes at any alignment of 8. NULL: none. */
void *delta_alloc(struct delta *delta, size_t size);

/* A message with `wants` (ascending, `at` in rec->recipients; want_count may be 0). */
enum err delta_put_message(struct delta *delta, uint64_t sequence, const struct record *rec, const struct delta_body *body,
                           const struct delta_want *wants, uint32_t want_count, bool is_retained) must_check;
/* Where the recipients' and the body's bytes are. */
struct span delta_message_recipients(const struct delta_message *message);
struct span delta_message_body(const struct delta_message *message);
struct span delta_message_row(const struct delta_message *message); /* the body with the 0 before it */
/* The session does not want it any more. True: it was the last that did, and the message is gone. */
bool delta_end_want(struct delta *delta, uint64_t sequence, uint64_t session);
/* It is no retained value any more. */
void delta_end_retained(struct delta *delta, uint64_t sequence);

enum err delta_put_ack(struct delta *delta, uint64_t sequence, uint64_t session) must_check;
void delta_drop_acks(struct delta *delta, size_t count); /* the first ones: they are done */
enum err delta_put_run(struct delta *delta, uint64_t session, uint64_t first, struct span positions) must_check;

struct stored_session *delta_find_session(const struct delta *delta, uint64_t number);
/* A new entry that says "not stored". */
enum err delta_add_session(struct delta *delta, struct stored_session **session_out, uint64_t number) must_check;
/* The session's memory has changed by what happened since `before`, its `bytes` then. */
static inline void delta_count_session(struct delta *delta, const struct stored_session *session, size_t before)
{
    delta->bytes += session->bytes - before;
}
/* All of them, ascending by number, in a block of the caller's. */
enum err delta_list_sessions(const struct delta *delta, struct stored_session ***sessions_out) must_check;

struct delta_retained *delta_find_retained(const struct delta *delta, struct topic_hash hash, struct span topic);
/* A new entry that says "nothing", with a copy of the topic. */
enum err delta_add_retained(struct delta *delta, struct delta_retained **retained_out, struct topic_hash hash,
                            struct span topic) must_check;

#endif
