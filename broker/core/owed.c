#include "broker/core/owed.h"

#include <stdlib.h>

#include "broker/core/client_state.h"
#include "broker/core/deliver.h"
#include "broker/core/publish_job.h"
#include "broker/core/recipient.h"
#include "broker/core/request.h"
#include "broker/core/scan.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "broker/route/route_actor.h"
#include "common/check.h"
#include "common/hash.h"

/* OP_RETAINED_VALUE or OP_RETAINED_END that waits for room. */
struct owed_item {
    struct owed_item *next;
    struct op op;
};

void owed_init(struct owed *owed) { *owed = (struct owed){0}; }

void owed_deinit(struct owed *owed)
{
    while (owed->first) {
        struct owed_item *item = owed->first;
        owed->first = item->next;
        msg_unref(item->op.retained.msg);
        free(item);
    }
    owed_init(owed);
}

/* --- what is newer ------------------------------------------------------------------------------------------------------------------ */

/* A message for a session that awaits retained values: an older one of its topic is not to come behind it. One that is dropped because
 * nobody is there takes no value's place; one of QoS 0 does as long as its connection lives, with which it may be lost. */
static void note_live(struct shard *shard, struct session *sess, const struct msg *msg, uint8_t qos)
{
    bool is_connected = sess->client && sess->client->state == CLIENT_CONNECTED;
    if (qos > 0 || is_connected || shard->config.limits.queue_qos0_messages)
        session_note_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg, shard->request_id,
                           qos == 0 && is_connected ? sess->connection : 0);
}

/* since: when it was asked for. What was given before that does not stand for it [MQTT-3.8.4-4]. */
static bool is_stale(const struct shard *shard, const struct session *sess, const struct msg *msg, uint64_t since)
{
    return session_has_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg, since, sess->client ? sess->connection : 0);
}

/* --- copies ------------------------------------------------------------------------------------------------------------------------- */

/* Whether a record of `size` bytes may be logged now, and its message held. */
static bool may_log(const struct shard *shard, size_t size)
{
    return !shard->session_log.first && shard->has_store_room && shard_log_has_room(&shard->log, size) &&
           ack_gate_has_room(&shard->gate, size);
}

/* A recipient as the gate holds it; one identifier at most. */
struct one_recipient {
    _Alignas(struct recipient) uint8_t bytes[sizeof(struct recipient) + 2 * sizeof(uint32_t)];
};

static struct span make_recipient(struct one_recipient *one, const struct recipient *like, uint32_t id)
{
    struct recipient *recipient = (struct recipient *)(void *)one->bytes;
    *recipient = *like;
    recipient->id_count = id != 0;
    if (id != 0)
        recipient->ids[0] = id;
    return span_of(one->bytes, recipient_size(recipient->id_count));
}

static void hold(struct shard *shard, struct msg *msg, struct span recipient, uint64_t wait_block, uint32_t record_index)
{
    struct gate_item item = {
        .wait_block = wait_block,
        .since_mono_ns = shard->now_mono_ns,
        .msg = msg_ref(msg),
        .extra_size = (uint32_t)recipient.size,
        .record_index = record_index,
        .copy_count = 1,
        .kind = GATE_DELIVERY,
    };
    ack_gate_put(&shard->gate, &item, recipient, shard_log_filling(&shard->log));
}

/* The record of a copy: the message, and who gets it. recipients: room for one. */
static void record_of(struct record *rec_out, const struct msg *msg, const struct session *sess, uint8_t qos, uint32_t id,
                      uint8_t recipients[RECORD_RECIPIENT_SIZE_MAX + VARINT_SIZE_MAX])
{
    uint8_t ids[VARINT_SIZE_MAX];
    struct record_recipient recipient = {.session = sess->number, .qos = qos, .options = RECORD_RECIPIENT_RETAINED};
    if (id != 0)
        recipient.ids = span_of(ids, varint_put(ids, id));
    *rec_out = (struct record){
        .type = RECORD_PUBLISH,
        .qos = msg->qos,
        .retain = true,
        .topic = msg_topic(msg),
        .payload = msg_payload(msg),
        .properties = msg_properties(msg),
        .received_ns = msg->receive_wall_ns,
        .expiry_ns = msg->expiry_wall_ns == MSG_NO_EXPIRY ? 0 : msg->expiry_wall_ns,
        .session = msg->publisher,
        .options = msg->retained_number,
        .has_correlation = true,
        .recipients = span_of(recipients, record_recipient_put(recipients, &recipient)),
    };
    memcpy(rec_out->correlation, msg->correlation_id, sizeof rec_out->correlation);
}

/* A record in more than one block: its job brings the copy to the gate. False: memory is short. */
static bool log_large(struct shard *shard, const struct record *rec, struct msg *copy, struct span recipient)
{
    struct publish_job *job = calloc(1, sizeof *job);
    uint8_t *held = malloc(recipient.size);
    if (!job || !held) {
        free(job);
        free(held);
        return false;
    }
    memcpy(held, recipient.data, recipient.size);
    *job = (struct publish_job){.msg = copy, .held = {.data = held, .size = recipient.size, .capacity = recipient.size}, .held_count = 1};
    if (shard_log_begin_large(shard, rec, job) == ERR_OK)
        return true;
    free(held);
    free(job);
    return false;
}

enum copy_outcome { COPY_LOGGED, COPY_NO_ROOM, COPY_TOO_LARGE, COPY_NO_MEMORY };

static enum copy_outcome log_copy(struct shard *shard, struct session *sess, const struct msg *msg, uint8_t qos, uint32_t id,
                                  uint64_t since)
{
    uint8_t recipients[RECORD_RECIPIENT_SIZE_MAX + VARINT_SIZE_MAX];
    struct record rec;
    record_of(&rec, msg, sess, qos, id, recipients);
    size_t size = record_size(&rec);
    if (size > shard->config.limits.record_bytes_max)
        return COPY_TOO_LARGE; /* an earlier start had a larger log */
    if (!may_log(shard, size))
        return COPY_NO_ROOM;
    struct one_recipient one;
    bool is_large = shard_log_is_large(&shard->log, size);
    struct recipient like = {.number = sess->number,
                             .shard = shard->config.index,
                             .qos = qos,
                             .retain = true,
                             .is_named = true,
                             .is_copy = true,
                             .is_large = is_large};
    struct span recipient = make_recipient(&one, &like, id);
    struct msg *copy = msg_copy_retained(msg);
    if (!copy)
        return COPY_NO_MEMORY;
    bool is_logged;
    if (is_large) {
        is_logged = log_large(shard, &rec, copy, recipient);
        sess->rare->large_copies_held += is_logged; /* one is being logged at a time, others may be in the gate */
        if (!is_logged)
            msg_unref(copy);
    } else {
        uint64_t wait_block = shard_log_append(shard, &rec, size);
        is_logged = wait_block != 0;
        if (is_logged)
            hold(shard, copy, recipient, wait_block, shard_log_last_index(&shard->log));
        msg_unref(copy);
    }
    sess->rare->copies_held += is_logged;
    if (is_logged && since > sess->rare->copies_since)
        sess->rare->copies_since = since;
    return is_logged ? COPY_LOGGED : COPY_NO_MEMORY;
}

/* At once; behind copies, if there are any. */
static void give_without_record(struct shard *shard, struct session *sess, struct msg *msg, uint8_t qos, uint32_t id)
{
    struct recipient like = {.number = sess->number, .shard = shard->config.index, .qos = qos, .retain = true, .is_behind = true};
    struct one_recipient one;
    if (sess->rare->copies_held + sess->rare->behind_held == 0)
        deliver_to_session(shard, sess, msg, qos, true, false, &id, id != 0);
    else if (ack_gate_has_room(&shard->gate, msg_cost(msg))) {
        hold(shard, msg, make_recipient(&one, &like, id), 0, 0);
        sess->rare->behind_held++;
    } else
        counter_inc(&shard->stats.dropped_gate_full);
}

/* A value for a session that is there. False: no room now, nothing happened. */
static bool give(struct shard *shard, struct session *sess, struct msg *msg, const struct pending_request *pending, uint32_t filter_index)
{
    const struct pending_filter *filter = &pending->filters[filter_index];
    uint8_t qos = filter->qos < msg->qos ? filter->qos : msg->qos; /* [MQTT-3.8.4-8] */
    bool is_expired = msg->expiry_wall_ns <= shard->now_steady_ns;
    enum copy_outcome outcome = COPY_LOGGED;
    if ((filter->options & SUBSCRIBER_NO_LOCAL) && msg->publisher == sess->number)
        counter_inc(&shard->stats.dropped_no_local);
    else if (is_stale(shard, sess, msg, pending->since))
        counter_inc(&shard->stats.dropped_stale_retained);
    else if (qos > 0 && !is_expired && waiting_is_logged(shard, sess))
        outcome = log_copy(shard, sess, msg, qos, filter->subscription_id, pending->since);
    else
        give_without_record(shard, sess, msg, qos, filter->subscription_id); /* [MQTT-3.3.1-8 of 3.1.1] */
    if (outcome == COPY_NO_ROOM)
        return false;
    if (outcome == COPY_TOO_LARGE)
        give_without_record(shard, sess, msg, qos, filter->subscription_id);
    if (outcome == COPY_NO_MEMORY)
        counter_inc(&shard->stats.dropped_no_memory);
    counter_inc(&shard->stats.retained_received);
    counter_inc(&shard->stats.copies_routed);
    return true;
}

/* --- the end of scans --------------------------------------------------------------------------------------------------------------- */

/* All that was owed has records that are durable. */
static void check_given(struct shard *shard, struct session *sess)
{
    struct session_rare *rare = sess->rare;
    if (!rare || !rare->is_owing || rare->owed || rare->copies_held > 0 || rare->copies_parked > 0)
        return;
    for (const struct pending_request *pending = rare->pending; pending; pending = pending->next)
        if (pending->filter_count > 0)
            return;
    rare->is_owing = false;
    session_log_put(shard, &(struct record){.type = RECORD_RETAINED_GIVEN, .session = sess->number});
}

bool owed_on_released(struct shard *shard, struct session *sess, const struct msg *msg, const struct recipient *recipient)
{
    CHECK(sess->rare);
    bool is_dropped = recipient->is_large && is_stale(shard, sess, msg, sess->rare->copies_since);
    if (recipient->is_large) {
        CHECK(sess->rare->large_copies_held > 0);
        sess->rare->large_copies_held--;
    }
    uint32_t *held = recipient->is_copy ? &sess->rare->copies_held : &sess->rare->behind_held;
    CHECK(*held > 0);
    *held -= 1;
    if (recipient->is_copy)
        check_given(shard, sess);
    if (recipient->is_copy && !is_dropped && msg_sequence(msg) > sess->rare->copy_last)
        sess->rare->copy_last = msg_sequence(msg); /* it may be read back behind a newer one of its topic */
    else
        session_rare_trim(sess);
    if (is_dropped) {
        counter_inc(&shard->stats.dropped_stale_retained);
        waiting_log_drop(shard, sess->number, msg_sequence(msg), SHARD_dropped_stale_retained);
    }
    return !is_dropped;
}

bool owed_note_subscription(struct shard *shard, struct session *sess, const struct route_request *request, uint32_t filter_index)
{
    const struct route_filter *filter = &request->filters[filter_index];
    if (!request->is_scanned || filter->qos == 0 || !route_filter_wants_retained(filter) || !waiting_is_logged(shard, sess))
        return false;
    CHECK(sess->rare); /* the request is pending */
    sess->rare->is_owing = true;
    return true;
}

/* --- ops, now or parked ------------------------------------------------------------------------------------------------------------- */

/* False: no room now, nothing happened. */
static bool take(struct shard *shard, const struct op *op)
{
    struct session *sess = session_table_find_number(&shard->sessions, op->retained.session.number);
    struct pending_request *pending = sess ? session_find_pending(sess, op->retained.request_id) : NULL;
    if (op->type == OP_RETAINED_END) {
        if (pending)
            scan_on_end(shard, pending);
        if (sess) {
            session_remove_pending(sess, op->retained.request_id);
            request_fold_if_away(shard, sess);
        }
        return true;
    }
    if (!pending) {
        scan_pass_over(shard, op->retained.request_id, &op->retained.session);
        msg_unref(op->retained.msg);
        return true;
    }
    CHECK(op->count < pending->filter_count);
    if (!give(shard, sess, op->retained.msg, pending, op->count))
        return false;
    pending->taken_count++;
    scan_pace(shard, sess);
    msg_unref(op->retained.msg);
    return true;
}

static size_t parked_bytes(const struct op *op) { return sizeof(struct owed_item) + (op->retained.msg ? msg_cost(op->retained.msg) : 0); }

static void park(struct shard *shard, struct session *sess, const struct op *op)
{
    CHECK(sess); /* what is for nobody finds room */
    struct owed_item *item = malloc(sizeof *item);
    CHECK_MSG(item, "out of memory for a retained value");
    *item = (struct owed_item){.op = *op};
    if (shard->owed.first)
        shard->owed.last->next = item;
    else
        shard->owed.first = item;
    shard->owed.last = item;
    sess->rare->copies_parked++;
    queue_stats_push(&shard->stats.parked_copies, parked_bytes(op), shard->now_mono_ns);
}

/* What needs no record goes past what is parked, unless that is the same session's. */
static bool must_wait(const struct shard *shard, const struct session *sess, const struct op *op)
{
    if (!shard->owed.first || !sess || !sess->rare)
        return false;
    if (sess->rare->copies_parked > 0)
        return true;
    return op->type == OP_RETAINED_VALUE && op->retained.msg->qos > 0 && waiting_is_logged(shard, sess);
}

void owed_on_op(struct shard *shard, const struct op *op)
{
    struct session *sess = session_table_find_number(&shard->sessions, op->retained.session.number);
    struct pending_request *pending = sess ? session_find_pending(sess, op->retained.request_id) : NULL;
    if (pending && op->type == OP_RETAINED_VALUE)
        scan_on_value(shard, pending);
    if (must_wait(shard, sess, op) || !take(shard, op))
        park(shard, sess, op);
    else if (sess && op->type == OP_RETAINED_END) {
        check_given(shard, sess);
        session_rare_trim(sess);
    }
}

static void take_parked(struct shard *shard)
{
    struct owed *owed = &shard->owed;
    for (unsigned budget = OWED_TAKE_PER_TURN; budget > 0 && owed->first; budget--) {
        struct owed_item *item = owed->first;
        uint64_t number = item->op.retained.session.number;
        size_t bytes = parked_bytes(&item->op); /* before its message goes */
        if (!take(shard, &item->op))
            return;
        owed->first = item->next;
        queue_stats_pop(&shard->stats.parked_copies, bytes, shard->stats.parked_copies.oldest_ns);
        free(item);
        struct session *sess = session_table_find_number(&shard->sessions, number);
        if (!sess)
            continue;
        CHECK(sess->rare);
        CHECK(sess->rare->copies_parked > 0);
        sess->rare->copies_parked--;
        check_given(shard, sess);
        session_rare_trim(sess);
    }
}

void owed_turn(struct shard *shard)
{
    take_parked(shard);
    scan_turn(shard);
}

bool owed_may_go_on(const struct shard *shard)
{
    if (scan_may_go_on(shard))
        return true;
    const struct owed_item *item = shard->owed.first;
    if (!item)
        return false;
    const struct msg *msg = item->op.retained.msg;
    if (!msg || !session_table_find_number(&shard->sessions, item->op.retained.session.number))
        return true; /* it needs no room */
    return may_log(shard, (size_t)RECORD_OVERHEAD_MAX + msg->topic_size + msg->properties_size + msg->payload_size);
}

/* --- order -------------------------------------------------------------------------------------------------------------------------- */

bool owed_hold_live(struct shard *shard, struct session *sess, struct msg *msg, const struct recipient *recipient)
{
    if (!sess->rare)
        return false;
    if (session_awaits_retained(sess) || sess->rare->copies_held > 0 || msg_sequence(msg) < sess->rare->copy_last)
        note_live(shard, sess, msg, recipient->qos);
    if (sess->rare->copies_held + sess->rare->behind_held == 0)
        return false;
    size_t size = recipient_size(recipient->id_count);
    uint8_t *behind = NULL;
    bool has_room = recipient->is_named || ack_gate_has_room(&shard->gate, size + msg_cost(msg));
    if (has_room)
        behind = malloc(size);
    if (!behind) {
        counter_inc(has_room ? &shard->stats.dropped_no_memory : &shard->stats.dropped_gate_full);
        session_forget_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg);
        if (recipient->is_named)
            waiting_log_drop(shard, sess->number, msg_sequence(msg), SHARD_dropped_no_memory);
        return true;
    }
    memcpy(behind, recipient, size);
    ((struct recipient *)(void *)behind)->is_behind = true;
    hold(shard, msg, span_of(behind, size), 0, 0);
    sess->rare->behind_held++;
    free(behind);
    return true;
}

bool owed_judge_read(struct shard *shard, struct session *sess, const struct store_read_item *item, bool is_resent)
{
    bool is_restored = waiting_is_restored(shard, item->sequence);
    if (!(is_restored ? session_awaits_retained(sess) : session_has_copies(sess)))
        return false;
    if (item->options & RECORD_RECIPIENT_RETAINED)
        return is_stale(shard, sess, item->msg, is_restored ? SESSION_TICK_START : sess->rare->copies_since);
    if (is_restored) /* what came in this start was noted when it came */
        session_note_newer(sess, hash_span(msg_topic(item->msg), shard->config.hash_key), item->msg,
                           is_resent ? SESSION_TICK_NONE : shard->request_id, 0);
    return false;
}
