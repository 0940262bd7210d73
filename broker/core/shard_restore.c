#include "broker/core/shard_restore.h"
#include "broker/core/scan.h"
#include "broker/core/session_life.h"

#include <stdlib.h>

#include "broker/core/session_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/check.h"
#include "common/clock.h"

/* How long a session has been away, in ms: 0 when it was connected until the stop. */
static int64_t away_ms(const struct shard *shard, const struct checkpoint_session *from)
{
    int64_t away_ns = from->was_connected ? 0 : shard->now_steady_ns - from->since_wall_ns;
    return away_ns > 0 ? away_ns / NS_PER_MS : 0;
}

static enum err restore_will(struct shard *shard, struct session *sess, const struct checkpoint_session *from)
{
    struct record rec;
    if (from->will.size == 0)
        return ERR_OK;
    if (record_decode(&rec, from->will) != ERR_OK || rec.topic.size == 0 || rec.topic.size > UINT16_MAX || rec.qos > 2)
        return ERR_CORRUPT;
    struct session_rare *rare = session_rare_get(sess);
    struct will *will = rare ? will_restore(&rec, session_client_id(sess), sess->number) : NULL;
    if (!will)
        return ERR_NOMEM;
    int64_t wait_ms = (int64_t)will->delay_s * 1000 - away_ms(shard, from);
    if (from->was_connected && wait_ms < shard->config.limits.will_restart_grace_ms)
        wait_ms = shard->config.limits.will_restart_grace_ms;
    will->is_restored = from->was_connected;
    will->is_paced = true;
    rare->will = will;
    rare->will_at_ms = shard->now_ms + (wait_ms > 0 ? wait_ms : 0);
    return ERR_OK;
}

static enum err restore_inbound(struct session *sess, const struct checkpoint_session *from)
{
    if (from->inbound_count == 0)
        return ERR_OK;
    struct session_rare *rare = session_rare_get(sess);
    if (!rare)
        return ERR_NOMEM;
    for (uint32_t i = 0; i < from->inbound_count; i++) {
        if (from->inbound_ids[i] == 0 || inbound_ids_find(&rare->inbound, from->inbound_ids[i]))
            continue;
        if (inbound_ids_add(&rare->inbound, from->inbound_ids[i], 0) != ERR_OK) /* durable: its answer waits for nothing */
            return ERR_NOMEM;
    }
    return ERR_OK;
}

static enum err restore_subscriptions(struct session *sess, const struct checkpoint_session *from)
{
    struct span rest = from->subscriptions, bytes;
    while (record_next(&bytes, &rest) == ERR_OK) {
        struct record rec;
        if (record_decode(&rec, bytes) != ERR_OK || rec.topic.size == 0 || rec.topic.size > UINT16_MAX)
            continue;
        if (subscription_list_add(&sess->subscriptions, rec.topic, sess->hash) == ERR_NOMEM)
            return ERR_NOMEM;
    }
    return ERR_OK;
}

static void restore_sent(struct shard *shard, struct session *sess, const struct checkpoint_session *from)
{
    for (uint32_t i = 0; i < from->sent_count; i++)
        (void)waiting_restore_sent(shard, sess, from->sent[i].sequence, from->sent[i].packet_id, from->sent[i].is_received);
    inflight_pack(&sess->inflight);
}

static void restore_expiry(struct shard *shard, struct session *sess, const struct checkpoint_session *from)
{
    sess->expiry_interval_s = from->expiry_interval_s;
    if (from->expiry_interval_s == SESSION_NEVER_EXPIRES) {
        sess->expiry_at_ms = INT64_MAX;
        return;
    }
    int64_t left_ms = (int64_t)from->expiry_interval_s * 1000 - away_ms(shard, from);
    /* Its end says the will: a session that ended with its connection is kept for that alone. */
    int64_t grace_ms = from->was_connected && sess->rare && sess->rare->will ? shard->config.limits.will_restart_grace_ms : 0;
    sess->expiry_at_ms = shard->now_ms + (left_ms > grace_ms ? left_ms : grace_ms);
}

void shard_restore_expect(struct shard *shard, uint32_t sessions) { session_table_reserve(&shard->sessions, sessions); }

enum err shard_restore_session(struct shard *shard, const struct checkpoint_session *from)
{
    CHECK(shard->in_turn);
    if (from->client_id.size == 0 || from->client_id.size > UINT16_MAX || from->number == 0)
        return ERR_CORRUPT;
    struct session *sess = session_table_find(&shard->sessions, from->client_id);
    if (sess) {
        shard->is_restoring = true; /* its will is said at the end of the turn */
        session_end(shard, sess);
        shard->is_restoring = false;
    }
    sess = session_table_add(&shard->sessions, from->client_id, from->number);
    if (!sess)
        return ERR_NOMEM;
    gauge_add(&shard->stats.sessions, 1);
    sess->is_logged = sess->is_named = true;
    enum err err = restore_will(shard, sess, from);
    if (!err)
        err = restore_inbound(sess, from);
    if (!err)
        err = restore_subscriptions(sess, from);
    if (!err)
        err = scan_restore(sess, from->subscriptions);
    if (err) {
        gauge_add(&shard->stats.sessions, -1);
        session_table_remove(&shard->sessions, sess);
        return err;
    }
    restore_expiry(shard, sess, from);
    restore_sent(shard, sess, from);
    if (from->was_connected && !(sess->rare && sess->rare->will))
        session_log_away_later(shard, sess);
    session_arm_timer(shard, sess);
    return ERR_OK;
}

void shard_restore_filters_done(struct shard *shard, uint64_t number)
{
    struct session *sess = session_table_find_number(&shard->sessions, number);
    if (sess)
        session_fold_filter(sess, shard->tree, shard->reader);
}

/* A message among those in flight, or older than one of them. In flight itself: nothing more to do. Of QoS 1: it was sent before something
 * of QoS 2 that is in flight, and is not acknowledged: the home logged SENT of the one behind what it knew of the other. So it goes first
 * again [MQTT-4.6.0-1]. What came to the session after a message that is above it in the log (from another shard, in the same moments)
 * cannot be told from that: no record says of QoS 1 that it was sent. Then the order of the log is taken for all, which is that of each
 * publisher; one of QoS 2 that had not been sent when others above it were goes behind them all the same. Returns 0, ERR_NOTFOUND (it
 * waits, like newer ones), ERR_NOMEM. */
static enum err restore_among_sent(struct shard *shard, struct session *sess, uint64_t sequence, uint8_t qos)
{
    if (!waiting_restore_unpack(shard, sess)) /* once, however many are to be looked up and put in */
        return ERR_NOMEM;
    if (inflight_has_sequence(&sess->inflight, sequence))
        return ERR_OK;
    if (qos != 1 || !inflight_has_later(&sess->inflight, sequence))
        return ERR_NOTFOUND;
    return waiting_restore_resent(shard, sess, sequence) ? ERR_OK : ERR_NOMEM;
}

/* The bucket, then the session, then its queue: each is known when the one before is there. */
void shard_restore_want_soon(const struct shard *shard, uint64_t number, int step)
{
    if (step < 2) {
        session_table_fetch(&shard->sessions, number, step);
        return;
    }
    const struct session *sess = session_table_find_number(&shard->sessions, number);
    if (sess && sess->queue.body)
        __builtin_prefetch(sess->queue.body, 1);
}

enum err shard_restore_want(struct shard *shard, uint64_t number, uint64_t sequence, uint8_t qos, uint32_t cost, bool is_in_run,
                            uint64_t run_last)
{
    struct session *sess = session_table_find_number(&shard->sessions, number);
    if (!sess)
        return ERR_NOTFOUND;
    enum err err = ERR_NOTFOUND;
    if (sequence <= inflight_sequence_max(&sess->inflight))
        err = restore_among_sent(shard, sess, sequence, qos);
    else
        inflight_pack(&sess->inflight); /* they ascend: nothing is looked up in it any more */
    if (err == ERR_OK)
        return !is_in_run || waiting_restore_sent_in_run(sess, sequence) ? ERR_OK : ERR_NOMEM;
    if (err != ERR_NOTFOUND)
        return err;
    return waiting_restore(shard, sess, sequence, cost, is_in_run, run_last) ? ERR_OK : ERR_NOMEM;
}

void shard_restore_copy(struct shard *shard, uint64_t number)
{
    struct session *sess = session_table_find_number(&shard->sessions, number);
    struct session_rare *rare = sess ? session_rare_get(sess) : NULL;
    if (rare) /* else it may come behind a newer message */
        rare->has_restored_copies = true;
}

void shard_restore_unwanted(struct shard *shard, uint64_t number, uint64_t sequence)
{
    waiting_log_drop(shard, number, sequence, SHARD_dropped_offline);
}

void shard_restore_end(struct shard *shard, int64_t now_mono_ns)
{
    shard->restored_wills_ms = now_mono_ns / NS_PER_MS + shard->config.limits.will_restart_grace_ms;
}
