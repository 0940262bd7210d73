#include "broker/core/read_back.h"

#include "broker/core/deliver.h"
#include "broker/core/owed.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/position_list.h"

static uint32_t meta_of(struct session *sess, const struct store_read_item *item)
{
    bool is_retain = (item->options & RECORD_RECIPIENT_RETAINED) || (item->msg->retain && (item->options & SUBSCRIBER_RETAIN_AS_PUBLISHED));
    return session_pack_meta(sess, item->qos, is_retain, item->ids, item->id_count);
}

/* What is wanted no more, or cannot be read: it is done with. At QoS 2 the client may know the identifier, so that is finished in order:
 * whoever has not seen the message answers PUBREL all the same. */
static void lose_inflight(struct shard *shard, struct session *sess, struct inflight_entry *entry, bool is_corrupt)
{
    if (entry->state == INFLIGHT_PUBLISH_2) {
        inflight_to_pubrel(&sess->inflight, entry);
        return;
    }
    uint64_t sequence = inflight_sequence(entry);
    inflight_remove(&sess->inflight, entry);
    gauge_add(&shard->stats.inflight, -1);
    counter_inc(is_corrupt ? &shard->stats.dropped_corrupt : &shard->stats.dropped_not_wanted);
    if (is_corrupt)
        waiting_log_drop(shard, sess->number, sequence, SHARD_dropped_corrupt);
}

static void on_read_inflight(struct shard *shard, struct session *sess, struct store_read *read)
{
    sess->queue.is_reading = false;
    for (uint32_t i = 0; i < read->count; i++) {
        struct store_read_item *item = &read->items[i];
        struct inflight_entry *entry = inflight_find_sequence(&sess->inflight, item->sequence);
        if (!entry || entry->has_msg || entry->state == INFLIGHT_PUBREL || item->state == STORE_ITEM_ASKED)
            continue; /* acknowledged meanwhile; or read with the next request */
        if (item->state != STORE_ITEM_FOUND)
            lose_inflight(shard, sess, entry, item->state == STORE_ITEM_CORRUPT);
        else if (sess->client) {
            (void)owed_judge_read(shard, sess, item, entry->state == INFLIGHT_PUBLISH_2);
            inflight_give(entry, item->msg, meta_of(sess, item));
            item->msg = NULL;
        }
    }
}

/* Runs may name what was sent before a crash, and is in flight since the start, or was: the checkpoint may not know yet. */
static bool is_sent_of_run(const struct session *sess, uint64_t sequence)
{
    struct span bytes = sess->rare ? position_list_bytes(sess->rare->sent_in_runs) : (struct span){0};
    uint64_t sent = 0;
    for (size_t offset = 0; position_list_next(bytes, &offset, &sent) == ERR_OK && sent <= sequence;)
        if (sent == sequence)
            return true;
    return false;
}

/* A run is consumed: what it may have named need not be remembered any more, nor anything once there is no run left. */
static void forget_sent_before(struct session *sess, const struct store_read *run)
{
    struct session_rare *rare = sess->rare;
    if (!rare || !rare->sent_in_runs)
        return;
    uint64_t last = queue_has_runs(&sess->queue) ? 0 : UINT64_MAX, sequence;
    for (uint32_t i = 0; i < run->count; i++)
        last = run->items[i].sequence > last ? run->items[i].sequence : last;
    while (position_list_first(rare->sent_in_runs, &sequence) && sequence <= last)
        (void)position_list_pop(&rare->sent_in_runs, &sequence);
    session_rare_trim(sess);
}

static void on_read_queue(struct shard *shard, struct session *sess, struct store_read *read)
{
    uint32_t metas[STORE_READ_MAX] = {0};
    for (uint32_t i = 0; i < read->count; i++) {
        struct store_read_item *item = &read->items[i];
        if (read->kind == STORE_READ_RUN && is_sent_of_run(sess, item->sequence))
            item->state = STORE_ITEM_KNOWN;
        else if (item->state == STORE_ITEM_FOUND && read->costs_only)
            continue;
        else if (item->state == STORE_ITEM_FOUND && owed_judge_read(shard, sess, item, false)) {
            item->state = STORE_ITEM_GONE;
            counter_inc(&shard->stats.dropped_stale_retained);
            waiting_log_drop(shard, sess->number, item->sequence, SHARD_dropped_stale_retained);
        } else if (item->state == STORE_ITEM_FOUND)
            metas[i] = meta_of(sess, item);
        else if (item->state == STORE_ITEM_GONE)
            counter_inc(&shard->stats.dropped_not_wanted);
        else if (item->state == STORE_ITEM_CORRUPT) {
            counter_inc(&shard->stats.dropped_corrupt);
            waiting_log_drop(shard, sess->number, item->sequence, SHARD_dropped_corrupt);
        }
    }
    uint32_t lost;
    uint64_t run = waiting_put_back(shard, sess, read, metas, &lost);
    counter_add(&shard->stats.dropped_corrupt, lost);
    if (run || lost > 0)
        forget_sent_before(sess, read);
    if (run)
        shard_post(
            shard, ACTOR_STORE,
            &(struct op){.type = OP_STORE_RUN_DROP, .from = shard->config.index, .run = {.session_number = sess->number, .first = run}});
}

void read_back_on_answer(struct shard *shard, struct store_read *read)
{
    struct session *sess = session_table_find_number(&shard->sessions, read->session);
    shard->waiting.age.reads -= read->ticket == WAITING_READ_AGED;
    if (!sess) {
        /* It ended meanwhile, and could not name what was in the request; the store finds runs by itself. */
        for (uint32_t i = 0; i < read->count && read->kind == STORE_READ_QUEUE && read->ticket != WAITING_READ_INFLIGHT; i++)
            if (read->items[i].state != STORE_ITEM_GONE)
                waiting_log_drop(shard, read->session, read->items[i].sequence, SHARD_dropped_session_ended);
        store_read_free(read);
        return;
    }
    if (read->ticket == WAITING_READ_INFLIGHT)
        on_read_inflight(shard, sess, read);
    else
        on_read_queue(shard, sess, read);
    store_read_free(read);
    waiting_keep_bounds(shard, sess);
    if (sess->client)
        deliver_pump(shard, sess->client);
    waiting_after_read(shard, sess);
}
