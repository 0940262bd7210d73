/* Retained values that a subscription is owed: from the route actor to the session, through the log when the session is persistent.
 *
 *   OP_RETAINED_VALUE   dropped with a reason, or given
 *     QoS 0, or a session that is not logged       at once (deliver_to_session)
 *     else a *copy*: one PUBLISH record that names the session alone, at its home (LOG 11); then the gate, with a sequence of its own, and
 *     from there on it is a message like any other: wanted, SENT, ACK, DROP
 *   OP_RETAINED_END     the scan is over
 *
 * No room in the log or the gate: the value is *parked*, in order, and the end of its scan behind it. A value counts as taken when it has
 * its record, so a scan has at most ROUTE_RETAINED_WINDOW values on their way or parked, and pauses; nobody else waits for it. Scans, and
 * when they pause: core/scan.h.
 *
 * Order: a message for a session that has copies in the gate goes into the gate behind them (owed_hold_live), once; and a value is not
 * logged when the session was given a newer message of its topic (session_note_newer), or, if its record is a large one, not delivered. So
 * the value that comes last is the newest. The value itself counts as well if it came live, but only since it was asked for: each SUBSCRIBE
 * has them all sent again [MQTT-3.8.4-4]. In the log a newer message may stand before the copy of an older value that its home had not
 * seen then, and so it may in what is read back: a copy is looked at again there (owed_judge_read). Of this start, all that came is noted
 * that a copy may stand behind, until nothing waits any more; what an earlier start left is noted as it is read, in the order of sequences.
 * Up to SESSION_NEWER_MAX topics are remembered. What is dropped on arrival, or before it is sent, was given to nobody and makes no value
 * stale from then on.
 *
 * A crash: the SUBSCRIPTION record says that values are owed; RETAINED_GIVEN follows when every scan of the session has ended and all
 * copies are durable. A start that finds subscriptions still owed (scan_restore) has their scans made again from the beginning, when the
 * client is back and has got what waited: what had been logged of them comes twice, nothing is missing.
 *
 * Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_OWED_H
#define TIDEGATE_BROKER_CORE_OWED_H

#include <stdbool.h>

#include "broker/actor/ops.h"
#include "common/bytes.h"

#define OWED_TAKE_PER_TURN 64 /* parked ones that are tried before publishers are */

struct msg;
struct owed;
struct pending_request;
struct recipient;
struct route_request;
struct session;
struct shard;
struct store_read_item;

void owed_init(struct owed *owed);
void owed_deinit(struct owed *owed);

/* OP_RETAINED_VALUE (the message is taken) or OP_RETAINED_END. */
void owed_on_op(struct shard *shard, const struct op *op);
/* Before the turn's log is sealed: what is parked, as far as there is room. */
void owed_turn(struct shard *shard);
/* Whether owed_turn() would get ahead. */
bool owed_may_go_on(const struct shard *shard);
/* A copy, or what stood behind copies, has left the gate for the session. False: it is not to be delivered, and dropped. */
bool owed_on_released(struct shard *shard, struct session *sess, const struct msg *msg, const struct recipient *recipient);
/* A message for the session, from its publisher's shard: noted, and true when it has gone behind copies: it comes again. */
bool owed_hold_live(struct shard *shard, struct session *sess, struct msg *msg, const struct recipient *recipient);
/* The SUBSCRIBE was granted. Whether the filter's retained values are owed, durably. */
bool owed_note_subscription(struct shard *shard, struct session *sess, const struct route_request *request, uint32_t filter_index);
/* A message that was read back: true, when it is a copy that comes too late, behind a newer message of its topic. is_resent: its client may
 * have it, and passes over it then. */
bool owed_judge_read(struct shard *shard, struct session *sess, const struct store_read_item *item, bool is_resent);

#endif
