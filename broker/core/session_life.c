#include "broker/core/session_life.h"

#include <stdlib.h>

#include "broker/core/publish.h"
#include "broker/core/request.h"
#include "broker/core/scan.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/check.h"

void session_arm_timer(struct shard *shard, struct session *sess)
{
    int64_t at_ms = sess->expiry_at_ms;
    if (sess->rare && sess->rare->will && sess->rare->will_at_ms < at_ms)
        at_ms = sess->rare->will_at_ms;
    if (at_ms == INT64_MAX)
        timer_wheel_remove(&shard->session_timers, &sess->timer);
    else
        timer_wheel_add(&shard->session_timers, &sess->timer, (uint64_t)at_ms);
}

static bool is_logged(const struct shard *shard, const struct session *sess) { return sess->is_logged && !shard->is_draining; }

static struct will *take_will(struct session *sess)
{
    if (!sess->rare)
        return NULL;
    struct will *will = sess->rare->will;
    sess->rare->will = NULL;
    sess->rare->will_at_ms = 0;
    return will;
}

/* It was published, or cannot be: a session that the log knew for its sake is not needed any more. */
static void will_is_done(struct shard *shard, struct will *will)
{
    if (will->ends_session)
        session_log_delete(shard, will->logged_as);
    will_free(will);
}

/* Not before what is late about its session: the log would say that there is a will behind saying that it was published, and a crash would
 * have it published again. */
static bool try_will(struct shard *shard, struct will *will) { return !shard->session_log.first && publish_will(shard, will); }

static size_t bytes_of(const struct will *will)
{
    return sizeof *will + will->topic.size + will->properties.size + will->payload.size + will->client_id.size + will->user_name.size;
}

bool session_wills_are_full(const struct shard *shard) { return shard->stats.wills_due.bytes > SESSION_WILLS_DUE_MAX; }

/* Publish a will, now or when there is room; takes it. sess: the session, if it goes on; NULL: it has ended. */
static void publish_or_keep(struct shard *shard, const struct session *sess, struct will *will)
{
    /* Behind those that wait already. */
    if (!shard->is_restoring && !shard->wills_first && try_will(shard, will)) {
        will_is_done(shard, will);
        return;
    }
    if (sess && is_logged(shard, sess))
        session_log_owe_will(shard, will);
    will->next = NULL;
    if (shard->wills_first)
        shard->wills_last->next = will;
    else
        shard->wills_first = will;
    shard->wills_last = will;
    queue_stats_push(&shard->stats.wills_due, bytes_of(will), shard->now_mono_ns);
}

void session_retry_wills(struct shard *shard)
{
    while (shard->wills_first && try_will(shard, shard->wills_first)) {
        struct will *will = shard->wills_first;
        shard->wills_first = will->next;
        queue_stats_pop(&shard->stats.wills_due, bytes_of(will), shard->stats.wills_due.oldest_ns);
        will_is_done(shard, will);
    }
    if (!shard->wills_first)
        shard->wills_last = NULL;
}

static void discard_will(struct shard *shard, struct session *sess)
{
    will_free(take_will(sess));
    counter_inc(&shard->stats.wills_discarded);
    if (is_logged(shard, sess))
        session_log_will_delete(shard, sess->number);
}

/* The will of a connection that ended without DISCONNECT: now, or after its delay. */
static void begin_will(struct shard *shard, struct session *sess)
{
    const struct will *will = sess->rare->will;
    if (will->delay_s == 0 && sess->expiry_interval_s > 0)
        publish_or_keep(shard, sess, take_will(sess));
    else
        sess->rare->will_at_ms = shard->now_ms + (int64_t)will->delay_s * 1000; /* or the session's end, which is now [MQTT-3.1.2-8] */
}

/* At a shutdown nothing is logged: the session stays as connected in the log, and the next start treats it as after a crash, its will
 * included. So a restart says no wills of clients that come back. */
void session_on_disconnected(struct shard *shard, struct session *sess, bool say_will, uint8_t protocol)
{
    CHECK(!sess->client);
    sess->expiry_at_ms =
        sess->expiry_interval_s == SESSION_NEVER_EXPIRES ? INT64_MAX : shard->now_ms + (int64_t)sess->expiry_interval_s * 1000;
    if (sess->rare && sess->rare->will) {
        if (say_will)
            begin_will(shard, sess);
        else
            discard_will(shard, sess);
    }
    if (sess->expiry_interval_s == 0) {
        session_end(shard, sess);
        return;
    }
    if (is_logged(shard, sess))
        session_log_state(shard, sess, protocol);
    waiting_on_away(shard, sess);
    session_rare_trim(sess);
    session_fold_filter(sess, shard->tree, shard->reader);
    session_arm_timer(shard, sess);
}

/* Wills after a restart come at a bounded rate: each is given its time once, and none in the grace. False: not now, will_at_ms says when.
 */
static bool may_say_will(struct shard *shard, struct session *sess)
{
    struct will *will = sess->rare->will;
    if (will->is_restored && shard->now_ms < shard->restored_wills_ms) {
        sess->rare->will_at_ms = shard->restored_wills_ms;
        return false;
    }
    if (!will->is_paced || shard->config.limits.wills_per_s == 0)
        return true;
    will->is_paced = false;
    int64_t at_ns = shard->next_will_ns > shard->now_mono_ns ? shard->next_will_ns : shard->now_mono_ns;
    shard->next_will_ns = at_ns + NS_PER_S / shard->config.limits.wills_per_s;
    sess->rare->will_at_ms = (at_ns + NS_PER_MS - 1) / NS_PER_MS;
    return sess->rare->will_at_ms <= shard->now_ms;
}

void session_on_timer(struct shard *shard, struct session *sess)
{
    CHECK(!sess->client);
    bool has_will = sess->rare && sess->rare->will;
    bool is_expired = sess->expiry_at_ms <= shard->now_ms;
    if (has_will && (is_expired || sess->rare->will_at_ms <= shard->now_ms)) {
        if (!may_say_will(shard, sess)) {
            timer_wheel_add(&shard->session_timers, &sess->timer, (uint64_t)sess->rare->will_at_ms);
            return;
        }
        if (!is_expired) {
            if (sess->rare->will->is_restored)
                session_log_away_later(shard, sess);
            publish_or_keep(shard, sess, take_will(sess));
        }
    }
    if (is_expired) {
        session_end(shard, sess);
        return;
    }
    session_rare_trim(sess);
    session_arm_timer(shard, sess);
}

void session_forget_will(struct shard *shard, struct session *sess)
{
    if (sess->rare && sess->rare->will)
        discard_will(shard, sess);
}

/* Its will stands in the log with the session, so the session ends there only behind the will's own record. */
void session_end(struct shard *shard, struct session *sess)
{
    CHECK(!sess->client);
    struct will *will = take_will(sess);
    timer_wheel_remove(&shard->session_timers, &sess->timer);
    request_forget_session(shard, sess);
    if (will)
        will->ends_session = is_logged(shard, sess);
    if (is_logged(shard, sess))
        session_log_end(shard, sess, will);
    waiting_forget(shard, sess);
    scan_forget(shard, sess);
    counter_inc(&shard->stats.sessions_ended);
    gauge_add(&shard->stats.sessions, -1);
    session_table_remove(&shard->sessions, sess);
    if (will)
        publish_or_keep(shard, NULL, will);
}
