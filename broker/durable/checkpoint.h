/* The checkpoint: what the log has caused so far, in a database, together with the position up to which that is true.
 *
 * Durable records are applied in log order to a *delta* in memory; checkpoint_commit() writes the delta and the position in one
 * transaction. So after a crash the database is exactly what the log says up to some position, and replay from there gives the rest. What
 * comes and goes within one delta (a message that all its recipients acknowledged, a QoS 2 identifier opened and released) never reaches
 * the database.
 *
 * A message is named by its sequence in the log. Its body is stored once; those who still want it stand in chunks beside it; with the last
 * of them (and no retained value) the body goes. Messages that came one after the other share rows of both (checkpoint_row.h). Start-up
 * reads the chunks, never the bodies.
 *
 *   PUBLISH: recipients -> a message with outstanding sessions (one that comes twice wants it once, at the greater QoS)
 *   PUBLISH: retained number -> retained value of its topic, without payload its removal; the greater number wins (LOG 12)
 *   PUBLISH: qos 2 and packet id -> an open inbound identifier of the publisher's session, if that is stored
 *   PUBLISH, WILL: will_session -> that session's will is gone
 *   SESSION: created, resumed or disconnected: the newest says all; a resumed one has no will until WILL says so
 *   SESSION_DELETE: the session, its runs and what they name (the home names what is in no run by DROP behind it)
 *   SUBSCRIPTION, UNSUBSCRIBE, WILL, WILL_DELETE, RELEASED, RETAINED_GIVEN: change the session
 *   SENT, RECEIVED: outgoing QoS 2, (sequence, packet id); RECEIVED also ends the want of the body
 *   ACK, DROP: end what the session wants of one or more messages; ACK with packet id ends an outgoing QoS 2
 * Messages are named by subject_sequence, by positions, or both. Types that are not listed change nothing. A record that names a session or
 * message that is not there changes nothing: it came before the position, or the session is deleted.
 *
 * The runs of a session that ended are taken apart over several commits, CHECKPOINT_JOB_WANTS wants in each, so that a long queue makes no
 * long transaction; what a crash leaves of it is cleaned up by the next load.
 *
 * Runs of positions (LOG 17) are no log records: homes hand them over when their list in memory gets long, and they only repeat what the
 * chunks say. A run that is lost in a crash is made again at start.
 *
 * Owner: the store thread. Memory: the delta, see checkpoint_delta_bytes(). Pure over kv.h. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_H

#include "broker/durable/checkpoint_value.h"
#include "broker/durable/kv.h"
#include "common/metrics.h"
#include "common/record.h"

#define CHECKPOINT_FORMAT 2        /* 1: before the first release, each message with rows of its own */
#define CHECKPOINT_CHUNK 256       /* sessions of one message under one key: an acknowledgement rewrites at most so many */
#define CHECKPOINT_JOB_WANTS 16384 /* of ended sessions, at most so many (and one run) a commit */

struct checkpoint;

/* Cells: the store thread. */
struct checkpoint_stats {
    struct counter applied, applied_puts, applied_acks, commits, commit_retries, written_bytes;
    struct counter never_written;   /* messages that all recipients acknowledged within one delta */
    struct counter removal_commits; /* of removals alone, for want of space */
    struct counter dropped_deleted; /* wants of sessions that are gone */
    struct counter expired;         /* retained values that were removed because they had expired */
    struct counter corrupt;         /* values that were damaged: left out */
    struct queue_stats delta;       /* messages and bytes that wait for the next commit */
};

/* The present time (mono), for the age of the delta; before records of a step. */
void checkpoint_set_time(struct checkpoint *checkpoint, int64_t now_mono_ns);
/* What the next commit says of the clocks: the broker's own time, in which deadlines stand, and the wall clock at that moment. The own time
 * goes on over a restart by the time that passed on the wall, and knows nothing of steps of the wall clock while the broker ran. */
void checkpoint_set_clocks(struct checkpoint *checkpoint, int64_t now_steady_ns, int64_t now_wall_ns);

/* Messages are asked about that are older than this, 0 = none are: from here on commits note the time (age_marks.h). */
void checkpoint_set_age_max(struct checkpoint *checkpoint, int64_t age_max_ns);
/* Every message below this sequence is older than that, by the broker's own time; 0: none is known to be. */
uint64_t checkpoint_aged(struct checkpoint *checkpoint, int64_t now_steady_ns);

/* kv is borrowed for life. Returns 0, ERR_VERSION (written by a newer broker, or before the first release), ERR_CORRUPT, ERR_NOMEM, ERR_IO.
 * A new database gets its format and random seed of topic hashes with the first commit; `random` is that seed. */
enum err checkpoint_open(struct checkpoint **checkpoint_out, struct kv *kv, uint64_t random, struct errmsg *msg) must_check;
void checkpoint_free(struct checkpoint *checkpoint); /* drops the delta; NULL is fine */

struct checkpoint_state checkpoint_state(const struct checkpoint *checkpoint);

/* Apply one record to the delta; `sequence` is its own. Records come in ascending order of sequence; one below the position is ignored.
 * rec borrowed until return.
 * Returns 0, ERR_CORRUPT (a record that no broker writes: changes nothing, the caller counts it); ERR_NOMEM,
 * ERR_IO (parts of it may be in the delta, so nothing may be committed any more). */
enum err checkpoint_apply(struct checkpoint *checkpoint, const struct record *rec, uint64_t sequence) must_check;
/* The same with the bytes of which rec was decoded at hand: a body is copied from them instead of being encoded again. */
enum err checkpoint_apply_encoded(struct checkpoint *checkpoint, const struct record *rec, struct span bytes, uint64_t sequence) must_check;

/* From homes: positions (ascending, 1..CHECKPOINT_RUN, all below the position committed) that stand in a run from now on; and a run that is
 * consumed. Go with the next commit. What a session that is gone puts in a run, it does not want any more. Return 0, ERR_NOMEM, ERR_IO. */
enum err checkpoint_put_run(struct checkpoint *checkpoint, uint64_t session, const uint64_t *sequences, uint32_t count) must_check;
enum err checkpoint_drop_run(struct checkpoint *checkpoint, uint64_t session, uint64_t first_sequence) must_check;

/* The retained value of that number has expired: a removal in its place, with the next commit. Nothing when the topic has another value by
 * now. The value was committed; what replays the log does not need to know, because the load asks whether it has expired. Returns 0,
 * ERR_NOMEM, ERR_IO. */
enum err checkpoint_expire_retained(struct checkpoint *checkpoint, struct span topic, uint64_t number) must_check;

/* Removals of retained values with a number below this need not be remembered any more: no older number can come in the log. */
void checkpoint_forget_removals(struct checkpoint *checkpoint, uint64_t retained_number);

/* Write the delta and the position. broker_id: of the log. On ERR_NOSPACE the delta is kept: call again. What it removes of the database
 * was then committed alone, at the position before, as far as that went (stats.removal_commits): a replay would only find it done. Returns
 * 0, ERR_NOSPACE, ERR_NOMEM, ERR_IO (final). */
enum err checkpoint_commit(struct checkpoint *checkpoint, const struct log_cursor_value *cursor, struct errmsg *msg) must_check;

/* Bytes of the database that are in use, as of the last commit. Returns 0, ERR_FULL (no reader's slot is free now), ERR_NOMEM, ERR_IO. */
enum err checkpoint_used_bytes(const struct checkpoint *checkpoint, uint64_t *used_bytes_out) must_check;
/* There is work left that another commit would do a part of (sessions that ended); nothing is lost when there is none. */
bool checkpoint_has_more(const struct checkpoint *checkpoint);

size_t checkpoint_delta_bytes(const struct checkpoint *checkpoint);
/* Nothing has been applied for a while: gives back what is kept for the next commit. What it is, in bytes. */
void checkpoint_trim(struct checkpoint *checkpoint);
size_t checkpoint_spare_bytes(const struct checkpoint *checkpoint);
struct checkpoint_stats *checkpoint_get_stats(struct checkpoint *checkpoint);

/* --- reading; from any read transaction ------------------------------------------------------------------------------------------- */

/* One message as a session wants it. */
struct checkpoint_want {
    uint8_t qos, options; /* struct record_recipient */
    uint32_t cost;        /* bytes the message counts for (msg_cost) */
    struct span ids;      /* subscription identifiers, borrowed from the transaction */
};

/* Whether `session` still wants the message. Returns 0, ERR_NOTFOUND, ERR_CORRUPT, ERR_IO. */
enum err checkpoint_find_want(struct kv_txn *txn, struct checkpoint_want *want_out, uint64_t session, uint64_t sequence) must_check;
/* The body as a record (type PUBLISH, spans borrowed from the transaction). Returns 0, ERR_NOTFOUND, ERR_CORRUPT, ERR_IO. */
enum err checkpoint_find_body(struct kv_txn *txn, struct record *rec_out, uint64_t sequence) must_check;
/* The first run of a session at or after `from`: up to CHECKPOINT_RUN positions. Returns 0, ERR_NOTFOUND, ERR_CORRUPT, ERR_IO. */
enum err checkpoint_find_run(struct kv_txn *txn, uint64_t sequences_out[CHECKPOINT_RUN], uint32_t *count_out, uint64_t session,
                             uint64_t from) must_check;

/* --- start ------------------------------------------------------------------------------------------------------------------------- */

/* One session as it stood. Spans borrowed during the call. */
struct checkpoint_session {
    uint64_t number;
    struct span client_id;
    uint32_t expiry_interval_s;
    bool was_connected;          /* at the position */
    int64_t since_wall_ns;       /* of its connection or its end */
    uint8_t protocol;            /* of its last connection: 3, 4, 5 */
    struct span subscriptions;   /* records SUBSCRIPTION one after the other, without the session's number */
    struct span will;            /* one record WILL, likewise, or empty */
    const uint16_t *inbound_ids; /* QoS 2 PUBLISHes not released */
    uint32_t inbound_count;
    const struct checkpoint_sent *sent; /* outgoing QoS 2, in the order of sending */
    uint32_t sent_count;
};

/* Callbacks of checkpoint_load(), in this order of phases: all sessions, runs, wants, retained. An error ends the load and is returned. */
struct checkpoint_loader {
    enum err (*on_session)(void *arg, const struct checkpoint_session *session);
    /* The newest position that stands in a run of the session. */
    enum err (*on_runs)(void *arg, uint64_t session, uint64_t last_sequence);
    /* The session wants this message; ascending by sequence. cost: bytes it counts for (msg_cost). is_in_run: a run has it; otherwise the
     * home is to remember it, whether it is above the last run or was taken from one before. ERR_NOTFOUND: there is no such session any
     * more (the loader removes the want). */
    enum err (*on_want)(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run);
    /* expiry_wall_ns: 0 = none. ERR_NOTFOUND: not wanted any more, expired say (the loader removes it). */
    enum err (*on_retained)(void *arg, struct span topic, uint64_t retained_number, uint64_t sequence, uint32_t cost,
                            int64_t expiry_wall_ns);
    /* A damaged value was left out. It stays as it is, but a run, which says nothing new, is made again. */
    void (*on_corrupt)(void *arg, enum kv_tree tree, struct span key);
    void *arg;
    /* NULL, or: some wants are about to be told, of this session one. Of each of them first with step 0, then of each with step 1 and so
     * on up to CHECKPOINT_SOON_STEPS - 1, so that what stands far apart in memory is on its way from all places at once. */
    void (*on_want_soon)(void *arg, uint64_t session, int step);
};
#define CHECKPOINT_SOON_STEPS 3

/* Read everything, once, before anything is applied in this run (but after replay was committed). Cleans up what belongs to nobody, in
 * transactions of bounded size; if there is no space for that, the next load does. Memory: a run of each session that has any, 8 bytes a
 * retained value. Returns 0, ERR_CORRUPT (of the database itself), ERR_IO, ERR_NOMEM, or what a callback returned. */
enum err checkpoint_load(struct checkpoint *checkpoint, const struct checkpoint_loader *loader, struct errmsg *msg) must_check;

#endif
