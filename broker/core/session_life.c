/* A session between its connections, and its end: expiry, will delay, and what others must be told.
 *
 *   connected --close--> away      [session_on_disconnected]  will at once, after its delay, or not at all
 *   away --CONNECT--> connected    [client.c, attach]         will forgotten, expiry stopped
 *   away --expiry, clean start--> gone  [session_end]         a will that still waits goes out now [MQTT-3.1.2-8] */
#include <stdlib.h>

#include "broker/core/shard_state.h"
#include "common/check.h"

static void arm_timer(struct shard *shard, struct session *sess)
{
    int64_t at_ms = sess->expiry_at_ms;
    if (sess->rare && sess->rare->will && sess->rare->will_at_ms < at_ms)
        at_ms = sess->rare->will_at_ms;
    if (at_ms == INT64_MAX)
        timer_wheel_remove(&shard->session_timers, &sess->timer);
    else
        timer_wheel_add(&shard->session_timers, &sess->timer, (uint64_t)at_ms);
}

static struct will *take_will(struct session *sess)
{
    if (!sess->rare)
        return NULL;
    struct will *will = sess->rare->will;
    sess->rare->will = NULL;
    sess->rare->will_at_ms = 0;
    return will;
}

void session_publish_will(struct shard *shard, struct will *will)
{
    /* Behind those that wait already. */
    if (!shard->wills_first && publish_will(shard, will)) {
        will_free(will);
        return;
    }
    will->next = NULL;
    if (shard->wills_first)
        shard->wills_last->next = will;
    else
        shard->wills_first = will;
    shard->wills_last = will;
    queue_stats_push(&shard->stats.wills_due, will->topic.size + will->payload.size, shard->now_mono_ns);
}

void session_retry_wills(struct shard *shard)
{
    while (shard->wills_first && publish_will(shard, shard->wills_first)) {
        struct will *will = shard->wills_first;
        shard->wills_first = will->next;
        queue_stats_pop(&shard->stats.wills_due, will->topic.size + will->payload.size, shard->stats.wills_due.oldest_ns);
        will_free(will);
    }
    if (!shard->wills_first)
        shard->wills_last = NULL;
}

void session_on_disconnected(struct shard *shard, struct session *sess, bool say_will)
{
    CHECK(!sess->client);
    sess->expiry_at_ms =
        sess->expiry_interval_s == SESSION_NEVER_EXPIRES ? INT64_MAX : shard->now_ms + (int64_t)sess->expiry_interval_s * 1000;
    if (sess->rare && sess->rare->will) {
        struct will *will = sess->rare->will;
        if (!say_will) {
            will_free(take_will(sess));
            counter_inc(&shard->stats.wills_discarded);
        } else if (will->delay_s == 0 || sess->expiry_interval_s == 0) {
            session_publish_will(shard, take_will(sess));
        } else {
            sess->rare->will_at_ms = shard->now_ms + (int64_t)will->delay_s * 1000;
        }
    }
    if (sess->expiry_interval_s == 0) {
        session_end(shard, sess);
        return;
    }
    waiting_on_away(shard, sess);
    session_rare_trim(sess);
    arm_timer(shard, sess);
}

void session_on_timer(struct shard *shard, struct session *sess)
{
    CHECK(!sess->client);
    if (sess->expiry_at_ms <= shard->now_ms) {
        session_end(shard, sess);
        return;
    }
    if (sess->rare && sess->rare->will && sess->rare->will_at_ms <= shard->now_ms)
        session_publish_will(shard, take_will(sess));
    session_rare_trim(sess);
    arm_timer(shard, sess);
}

void session_end(struct shard *shard, struct session *sess)
{
    CHECK(!sess->client);
    struct will *will = take_will(sess);
    timer_wheel_remove(&shard->session_timers, &sess->timer);
    subscribe_forget_session(shard, sess);
    waiting_forget(shard, sess);
    counter_inc(&shard->stats.sessions_ended);
    gauge_add(&shard->stats.sessions, -1);
    session_table_remove(&shard->sessions, sess);
    if (will)
        session_publish_will(shard, will);
}
