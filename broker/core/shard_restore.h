/* A shard's sessions after a stop, as the checkpoint has them. All calls are made between shard_turn_begin() and shard_turn_end() of the
 * shard's first turn, before anything else is given to it: sessions first, then what they want.
 *
 * Clocks: a session that was connected when the broker stopped counts as disconnected now, so its expiry and its will's delay begin now,
 * and a will waits at least will_restart_grace for its client to come back; so does the end of its session, which would say it. No client
 * can come back while others are restored, so the grace begins when all are. A CONNECT meanwhile, with clean start or not, discards that
 * will. The clocks of a session that was away have gone on by the wall clock; a wall
 * clock that went back meanwhile counts as no time. From here on all are monotonic, whatever the wall clock does. What has expired ends
 * with the shard's next timers, and wills of an earlier start are said at a bounded rate (wills_per_s).
 *
 * A session that was connected is logged as away since now, or a broker that is restarted more often than its sessions expire would keep
 * them for ever; one with a will only when that has been said, so that another crash gives its client the same grace again.
 *
 * Thread: main, before the shard's own runs. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_RESTORE_H
#define TIDEGATE_BROKER_CORE_SHARD_RESTORE_H

#include "broker/core/shard.h"
#include "broker/durable/checkpoint.h"
#include "broker/route/topic_tree.h"
#include "common/err.h"

/* About so many sessions follow: their tables are made for them at once. A hint. */
void shard_restore_expect(struct shard *shard, uint32_t sessions);
/* A session of this shard (shard_home() of its client id); ascending by number. One with the client id of an earlier one takes its place:
 * the earlier was on its way out, and ends. Its subscriptions go to the topic tree by the caller. Returns 0, ERR_NOMEM, ERR_CORRUPT (no
 * session that a broker makes: left out). */
enum err shard_restore_session(struct shard *shard, const struct checkpoint_session *session) must_check;
/* The caller has put its subscriptions into the tree: one that is alone is not kept twice. Fine for a session that is not there. */
void shard_restore_filters_done(struct shard *shard, uint64_t number);
/* As checkpoint_loader.on_want_soon: fetch towards the CPU what shard_restore_want() will touch. A hint; changes nothing. */
void shard_restore_want_soon(const struct shard *shard, uint64_t number, int step);
/* The session wants this message, at this QoS; ascending by sequence. What may have been sent goes again in that order, QoS 1 between what
 * is in flight of QoS 2 [MQTT-4.6.0-1]. cost: bytes that it counts for; is_in_run: as checkpoint_loader.on_want;
 * run_last: the newest position that stands in a run of the session, 0 = none. Returns 0, ERR_NOTFOUND (there is no such session),
 * ERR_NOMEM. */
enum err shard_restore_want(struct shard *shard, uint64_t number, uint64_t sequence, uint8_t qos, uint32_t cost, bool is_in_run,
                            uint64_t run_last) must_check;

/* One of the messages it wants is a retained value (RECORD_RECIPIENT_RETAINED). */
void shard_restore_copy(struct shard *shard, uint64_t number);

/* All are there, and clients are about to be let in: the grace of their wills begins. Outside a turn, too. */
void shard_restore_end(struct shard *shard, int64_t now_mono_ns);

/* It wants the message, and must not get it. Said in the log, too, before the session is said to be away: the loader may find no space to
 * take the want away. */
void shard_restore_unwanted(struct shard *shard, uint64_t number, uint64_t sequence);

#endif
