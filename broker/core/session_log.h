/* Records about sessions: what the log must know of a session's beginning, its connections, subscriptions, will and end.
 *
 * Only sessions that outlive their connection are logged, and those with a will: then the log knows the session for the will's sake. A
 * record is put when what it says has happened in memory. When the log has no room for it (a large record is on its way, or all blocks are
 * at the disk) it is *late*: kept here in order, with the answers that wait for it, until there is room. Nothing was promised meanwhile:
 * a crash shows the session as it was before, and whoever was to be told has not been.
 *
 * Bound: while SESSION_LOG_LATE_MAX bytes are late no CONNECT that needs the log and no SUBSCRIBE is taken; beyond it there are only the
 * ends of connections and requests that there were. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SESSION_LOG_H
#define TIDEGATE_BROKER_CORE_SESSION_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/ack_gate.h"
#include "common/bytes.h"
#include "common/record.h"

#define SESSION_LOG_LATE_MAX ((uint64_t)16 << 20)

struct session;
struct session_log;
struct shard;
struct will;

void session_log_deinit(struct session_log *log);

/* Log it, now or late. Does nothing without persistence. */
void session_log_put(struct shard *shard, const struct record *rec);
/* GATE_PACKET or GATE_CONNACK: `bytes` (copied) for that connection, when everything put so far is durable. */
void session_log_answer(struct shard *shard, enum gate_kind kind, const struct client_ref *client, struct span bytes);
/* So much is late that nothing more is to be begun. */
bool session_log_is_full(const struct shard *shard);
/* Whether the end of some session is on its way to the disk. Who asked for it may have gone without its CONNACK and come again: it finds no
 * session, and must not be told so before that is durable. */
bool session_log_is_ending(const struct shard *shard);
/* What is late, as far as there is room. Before the turn's block is sealed. */
void session_log_flush(struct shard *shard);

/* SESSION: as it is now, connected or away. */
void session_log_state(struct shard *shard, const struct session *sess, uint8_t protocol);
void session_log_will(struct shard *shard, const struct will *will);
void session_log_will_delete(struct shard *shard, uint64_t number);
/* The will is due and finds no room, and its session goes on: the client may be back before it is said, and then the session's own will is
 * gone in the log, or is another. So it becomes that of a session of its own, which exists for it alone: after a crash that session has
 * expired, and its end says the will. Changes will->logged_as, and it ends that session. */
void session_log_owe_will(struct shard *shard, struct will *will);
/* The session has ended: SESSION_DELETE; or, with a will (else NULL), SESSION that says so: the log knows it only until the will is said, and
 * session_log_delete() follows then. Behind that DROP of all that the session still knows of: a crash in between must not bring it back
 * without them. (What is wanted by nobody is cleared at a start.) */
void session_log_end(struct shard *shard, const struct session *sess, const struct will *will);
void session_log_delete(struct shard *shard, uint64_t number);
/* The session was connected when the broker stopped, and nothing speaks against logging it as away: session_log_away_step() will, a few
 * each turn. */
void session_log_away_later(struct shard *shard, const struct session *sess);
void session_log_away_step(struct shard *shard);
/* options: the byte of SUBSCRIBE. is_owed: retained values are to follow. */
void session_log_subscription(struct shard *shard, uint64_t number, struct span filter, uint8_t options, uint32_t subscription_id,
                              bool is_owed);
void session_log_unsubscribe(struct shard *shard, uint64_t number, struct span filter);

#endif
