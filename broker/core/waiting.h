/* What waits for sessions at their home: bounds and policies, letting go what the checkpoint has, reading it back, and saying what was
 * dropped.
 *
 *   in      waiting_add          within the bounds of the session and of the process, or by queue_policy
 *   out     waiting_take         the oldest in memory; waiting_read asks the reader for what is not (OP_STORE_READ, _DONE)
 *   let go  OP_STORE_CHECKPOINT  the sessions that hold something in memory for it are listed; a round of slices walks the list
 *   runs    OP_STORE_RUN         when a tail is long; OP_STORE_RUN_DROP when one was read
 *   drops   waiting_log_drop     notes of a turn become DROP records at its end; without room in the log they stay notes. A crash in
 *                                between brings the message back, as if it had not been dropped: late, never wrong
 *   all     queue_totals.h       what all queues hold together. With drop_oldest a session owes what is over it, and keeps its bounds
 *                                lower until that is paid; what an end of the broker leaves unpaid is owed again by what a start restores
 *
 *   age     max_queued_age       everything that waited longer goes, with its reason, whether its session ever comes back or not: the
 *                                sessions are looked at in turn, several times within that age; what is on disk and may be too old is read
 *                                for it, a few at a time. Time is the broker's own. The age of what has a name in the checkpoint counts
 *                                from its record and is known by its sequence alone (durable/age_marks.h); so it is told late by up to
 *                                three parts in 32 and some seconds, never early
 *
 * One request at a time is under way for a session: bodies of what is in flight first, they are sent first. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_WAITING_H
#define TIDEGATE_BROKER_CORE_WAITING_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/shard_stats.h"
#include "broker/session/session.h"

#define WAITING_WALK_PER_TURN 4096 /* sessions looked at in a turn after a checkpoint, */
#define WAITING_RUNS_PER_TURN 128  /* and runs cut: of a session that takes all there is, a second's messages are too many for a turn */
#define WAITING_AGE_PER_TURN 1024  /* buckets of the session table looked at in a turn for what is too old */
#define WAITING_AGE_READS 4        /* of what may be too old, at a time: it is never in a hurry */
#define WAITING_AGE_SHARE 32       /* looks at all sessions within max_queued_age; a second apart at least */
#define WAITING_AGE_DROPS 8192     /* notes of drops that are not in the log yet: then it waits */

/* What a read is for: store_read.ticket. */
enum waiting_ticket {
    WAITING_READ_QUEUE,
    WAITING_READ_INFLIGHT,
    WAITING_READ_AGED,  /* WAITING_READ_QUEUE of a session that is away, because the oldest may be too old */
    WAITING_READ_COSTS, /* WAITING_READ_QUEUE of costs alone, because the oldest have to go */
};

struct shard;
struct waiting;

void waiting_init(struct shard *shard);
void waiting_deinit(struct waiting *waiting);

/* Whether what is done with the session's messages is logged. */
bool waiting_is_logged(const struct shard *shard, const struct session *sess);
/* Whether an earlier start left the message. It may have been sent then, no record says so; nor was the order of sending that of the log,
 * or each acknowledgement durable. So it goes as one that may have come before [MQTT-3.3.1-1]. */
bool waiting_is_restored(const struct shard *shard, uint64_t sequence);
/* Put a message behind what waits, or drop it with a reason (it, or an older one for it). The reference stays the caller's. */
void waiting_add(struct shard *shard, struct session *sess, struct msg *msg, uint32_t meta, bool is_wanted);
/* Take queue_first() out; its reference is the caller's. */
struct queue_item waiting_take(struct shard *shard, struct session *sess);
/* Ask for what is to be sent next and not in memory. Cheap when there is nothing. */
void waiting_read(struct shard *shard, struct session *sess);
/* What was read for the queue, into it; a message that is kept is taken from its item. Returns the run that was consumed, 0 = none.
 * lost_out: messages that the run should have had. */
uint64_t waiting_put_back(struct shard *shard, struct session *sess, struct store_read *read, const uint32_t *metas, uint32_t *lost_out);
/* With drop_oldest: the oldest go until the session is within its bounds. Those on disk are asked for what they cost; until the answer what
 * came since stays, so that the newest are left, and only they. Returns whether it is within its bounds. */
bool waiting_keep_bounds(struct shard *shard, struct session *sess);
/* A read is over, and what it brought was sent if a client is there. */
void waiting_after_read(struct shard *shard, struct session *sess);
/* Everything below `sequence` can be read from the store, and the first `runs` that were posted; everything below `aged` is over
 * max_queued_age. */
void waiting_on_checkpoint(struct shard *shard, uint64_t sequence, uint64_t runs, uint64_t aged);
/* Whether it waited longer than max_queued_age. */
bool waiting_is_too_old(const struct shard *shard, const struct queue_item *item);
/* When the sessions are looked at next for what is too old, mono; INT64_MAX: nobody asks. */
int64_t waiting_next_look_ns(const struct shard *shard);
/* The client has gone, the session stays: it holds as little as the checkpoint allows. */
void waiting_on_away(struct shard *shard, struct session *sess);
/* Its next message needs a record, and there is no room: it is tried again when blocks come back (deliver_retry_stuck). */
void waiting_on_stuck(struct shard *shard, struct session *sess);
/* The session will not get this message (0: it has no name, nothing is said). The caller counts. */
void waiting_log_drop(struct shard *shard, uint64_t session, uint64_t sequence, enum shard_drop reason);
/* Before the turn's log is sealed: a slice of the walk, and DROP records. True: there is more to do at once. */
bool waiting_turn_end(struct shard *shard);
/* The session ends: what waits and what is in flight is counted as dropped. Its records are the caller's (queue_each_position and
 * inflight_each_position say which). */
void waiting_forget(struct shard *shard, struct session *sess);
/* At start, ascending by sequence within a session: it wants this message. One that is in flight already (inflight_restore) is not to be
 * given here. is_in_run, run_last: as queue_restore(). Returns false when memory is short. */
bool waiting_restore(struct shard *shard, struct session *sess, uint64_t sequence, uint32_t cost, bool is_in_run, uint64_t run_last);
/* An outgoing QoS 2 message of an earlier start. False: memory is short, or the identifier cannot be. */
bool waiting_restore_sent(struct shard *shard, struct session *sess, uint64_t sequence, uint16_t packet_id, bool is_received);
/* What is in flight is to be looked up, and put in: unpack it, until the next checkpoint at the latest. False: memory is short. */
bool waiting_restore_unpack(struct shard *shard, struct session *sess);
/* One of QoS 1 that went before one of those (inflight_has_later); unpacked. False: memory is short. */
bool waiting_restore_resent(struct shard *shard, struct session *sess, uint64_t sequence);
/* A run names what is in flight: it is passed over when the run is read. Ascending. False: memory is short. */
bool waiting_restore_sent_in_run(struct session *sess, uint64_t sequence);

#endif
