#include "broker/core/deliver.h"

#include <stdlib.h>

#include "broker/core/scan.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/hash.h"

#define CONTROL_RECORD_SIZE ((size_t)96) /* more than ACK, SENT or RECEIVED take */

/* --- sending ------------------------------------------------------------------------------------------------------------------------ */

enum send_result { SEND_OK, SEND_TOO_LARGE, SEND_NOMEM };

/* What the PUBLISH of a copy looks like; ids are borrowed from the session. */
static void head_of(const struct shard *shard, struct packet_publish_head *head_out, const struct msg *msg, uint32_t meta,
                    const uint32_t *ids, uint32_t id_count)
{
    *head_out = (struct packet_publish_head){
        .retain = queue_meta_retain(meta),
        .qos = queue_meta_qos(meta),
        .payload_size = msg->payload_size,
        .topic = msg_topic(msg),
        .forward = {.forwardable = msg_properties(msg), .subscription_identifiers = ids, .subscription_identifier_count = id_count},
    };
    if (msg->expiry_wall_ns != MSG_NO_EXPIRY) {
        /* What is left, rounded up, so that a message forwarded at once keeps its interval [MQTT-3.3.2-6]. */
        int64_t left_ns = msg->expiry_wall_ns - shard->now_steady_ns;
        head_out->forward.has_message_expiry = true;
        head_out->forward.message_expiry_interval_s = left_ns > 0 ? (uint32_t)((left_ns + NS_PER_S - 1) / NS_PER_S) : 0;
    }
}

static enum send_result send_head(struct shard *shard, struct client *client, struct msg *msg, const struct packet_publish_head *head)
{
    uint32_t packet_size;
    size_t head_size = packet_publish_head_size(head, client->version, &packet_size);
    if (head_size == 0 || packet_size > client->packet_size_max)
        return SEND_TOO_LARGE; /* [MQTT-3.1.2-24] */
    uint8_t *at = outbox_reserve(&client->outbox, &shard->outboxes, head_size);
    if (!at)
        return SEND_NOMEM;
    size_t used = packet_publish_head_put(at, head, client->version);
    CHECK(used == head_size);
    outbox_commit(&client->outbox, used);
    if (!outbox_put_payload(&client->outbox, &shard->outboxes, msg)) {
        client_doom(shard, client); /* half a packet is in the outbox: nothing sensible can follow it */
        return SEND_NOMEM;
    }
    client_mark_dirty(shard, client);
    return SEND_OK;
}

/* A copy that will not be sent. */
static void drop(struct shard *shard, struct session *sess, const struct msg *msg, bool is_wanted, struct counter *cell,
                 enum shard_drop reason)
{
    counter_inc(cell);
    if (sess->rare && sess->rare->newer_count > 0)
        session_forget_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg);
    if (is_wanted)
        waiting_log_drop(shard, sess->number, msg_sequence(msg), reason);
}

static void drop_unsent(struct shard *shard, struct session *sess, const struct queue_item *item, enum send_result result)
{
    if (result == SEND_TOO_LARGE)
        drop(shard, sess, item->msg, item->is_wanted, &shard->stats.dropped_too_large, SHARD_dropped_too_large);
    else
        drop(shard, sess, item->msg, item->is_wanted, &shard->stats.dropped_no_memory, SHARD_dropped_no_memory);
}

/* Room for what a message's way may need to be logged: asked before anything is done. */
static bool may_log(const struct shard *shard) { return shard_log_has_control_room(&shard->log, CONTROL_RECORD_SIZE); }

/* ACK, SENT or RECEIVED. Returns the block to wait for. */
static uint64_t log_about(struct shard *shard, const struct session *sess, enum record_type type, uint64_t sequence, uint16_t packet_id)
{
    return shard_log_control(
        shard, &(struct record){.type = (uint8_t)type, .session = sess->number, .subject_sequence = sequence, .packet_id = packet_id});
}

/* What records about it name. A copy that the checkpoint does not keep, a retained value, names no message: the session may want another
 * copy of the same one, which is not done with by this one. */
static uint64_t named_sequence(const struct inflight_entry *entry) { return entry->is_wanted ? inflight_sequence(entry) : 0; }

/* The entry goes on when its record is durable (LOG 8). */
static void hold(struct shard *shard, const struct session *sess, struct inflight_entry *entry, uint64_t wait_block)
{
    struct gate_item item = {
        .wait_block = wait_block,
        .since_mono_ns = shard->now_mono_ns,
        .client = {.number = sess->number, .connection = sess->connection},
        .packet_id = entry->packet_id,
        .kind = GATE_SEND,
    };
    ack_gate_put(&shard->gate, &item, (struct span){0, 0}, shard_log_filling(&shard->log));
    entry->pending++;
}

static void send_qos0(struct shard *shard, struct client *client, const struct queue_item *item)
{
    struct session *sess = client->session;
    const uint32_t *ids;
    uint32_t one, id_count = session_unpack_ids(sess, &ids, &one, item->meta);
    struct packet_publish_head head;
    head_of(shard, &head, item->msg, item->meta, ids, id_count);
    enum send_result result = send_head(shard, client, item->msg, &head);
    if (result != SEND_OK) {
        drop_unsent(shard, sess, item, result);
        return;
    }
    if (item->is_wanted)
        shard_log_ack(shard, sess->number, msg_sequence(item->msg));
    counter_inc(&shard->stats.copies_sent_qos0);
    counter_inc(&shard->stats.sent_qos0);
}

/* Whether the entry's end is said in the log. */
static bool is_end_logged(const struct shard *shard, const struct session *sess, const struct inflight_entry *entry)
{
    return entry->state == INFLIGHT_PUBLISH_1 ? entry->is_wanted : waiting_is_logged(shard, sess);
}
static bool may_end(const struct shard *shard, const struct session *sess, const struct inflight_entry *entry)
{
    return !is_end_logged(shard, sess, entry) || may_log(shard);
}

/* The client is done with an entry, or we are: its place and its quota are free again [MQTT-4.9.0-1]. may_end() said yes. */
static void end_entry(struct shard *shard, struct client *client, struct inflight_entry *entry)
{
    struct session *sess = client->session;
    bool is_logged = is_end_logged(shard, sess, entry);
    if (is_logged && entry->state == INFLIGHT_PUBLISH_1)
        shard_log_ack(shard, sess->number, inflight_sequence(entry));
    else if (is_logged)
        log_about(shard, sess, RECORD_ACK, named_sequence(entry), entry->packet_id);
    if (entry->holds_quota && client->send_quota < client->receive_max)
        client->send_quota++;
    inflight_remove(&sess->inflight, entry);
    gauge_add(&shard->stats.inflight, -1);
}

/* The client has it, or need not have it: its PUBREL follows when that is durable. may_end() said yes. */
static void release_entry(struct shard *shard, struct session *sess, struct inflight_entry *entry)
{
    inflight_to_pubrel(&sess->inflight, entry);
    if (waiting_is_logged(shard, sess))
        hold(shard, sess, entry, log_about(shard, sess, RECORD_RECEIVED, named_sequence(entry), entry->packet_id));
}

/* Too large for this connection: as if it had been completed [MQTT-3.1.2-25]. One of QoS 2 that went out on an earlier connection, whose
 * client took larger ones, is released and not forgotten: the client may hold its identifier, and a new message under that would be taken
 * for the old one again. A client that holds nothing answers PUBREL just so. */
static void end_too_large(struct shard *shard, struct client *client, struct inflight_entry *entry)
{
    if (entry->state == INFLIGHT_PUBLISH_2 && entry->is_dup) {
        release_entry(shard, client->session, entry);
        return;
    }
    counter_inc(&shard->stats.dropped_too_large);
    end_entry(shard, client, entry);
}

/* Whether the client may have it already. Of QoS 1 no record says that it was sent by an earlier start: what that left is taken as sent,
 * but only what is known to be is sent when it has expired (send_unsent). */
static bool may_be_again(const struct shard *shard, const struct inflight_entry *entry)
{
    return entry->is_dup ||
           (entry->state == INFLIGHT_PUBLISH_1 && entry->is_wanted && waiting_is_restored(shard, msg_sequence(entry->msg)));
}

/* A PUBLISH under its identifier, for the first time or again. */
static enum send_result send_entry(struct shard *shard, struct client *client, struct inflight_entry *entry)
{
    struct session *sess = client->session;
    const uint32_t *ids;
    uint32_t one, id_count = session_unpack_ids(sess, &ids, &one, entry->meta);
    struct packet_publish_head head;
    head_of(shard, &head, entry->msg, entry->meta, ids, id_count);
    head.qos = entry->state == INFLIGHT_PUBLISH_1 ? 1 : 2;
    head.dup = may_be_again(shard, entry); /* [MQTT-3.3.1-1] */
    head.packet_id = entry->packet_id;
    enum send_result result = send_head(shard, client, entry->msg, &head);
    if (result == SEND_TOO_LARGE)
        end_too_large(shard, client, entry);
    if (result != SEND_OK)
        return result;
    inflight_mark_sent(&sess->inflight, entry);
    if (!entry->holds_quota)
        client->send_quota--;
    entry->holds_quota = true;
    counter_inc(head.qos == 1 ? &shard->stats.sent_qos1 : &shard->stats.sent_qos2);
    counter_add(&shard->stats.resent, head.dup);
    return result;
}

static bool is_too_large(const struct shard *shard, const struct client *client, const struct queue_item *item)
{
    const uint32_t *ids;
    uint32_t one, packet_size, id_count = session_unpack_ids(client->session, &ids, &one, item->meta);
    struct packet_publish_head head;
    if (client->packet_size_max == UINT32_MAX)
        return false;
    head_of(shard, &head, item->msg, item->meta, ids, id_count);
    return packet_publish_head_size(&head, client->version, &packet_size) == 0 || packet_size > client->packet_size_max;
}

/* First sending of a QoS 1 or 2 copy; there is quota, and room in the log. The reference stays the caller's. */
static void send_new(struct shard *shard, struct client *client, const struct queue_item *item)
{
    struct session *sess = client->session;
    uint8_t qos = queue_meta_qos(item->meta);
    if (is_too_large(shard, client, item)) {
        drop_unsent(shard, sess, item, SEND_TOO_LARGE);
        return;
    }
    struct inflight_entry *entry = inflight_add(&sess->inflight, item->msg, item->meta, qos);
    if (!entry) {
        drop_unsent(shard, sess, item, SEND_NOMEM);
        return;
    }
    msg_ref(item->msg);
    entry->is_wanted = item->is_wanted;
    entry->holds_quota = true;
    client->send_quota--;
    gauge_add(&shard->stats.inflight, 1);
    if (qos == 2 && waiting_is_logged(shard, sess))
        hold(shard, sess, entry, log_about(shard, sess, RECORD_SENT, named_sequence(entry), entry->packet_id));
    else if (inflight_next_unsent(&sess->inflight) == entry) /* else behind one that waits */
        (void)send_entry(shard, client, entry);
}

/* A socket with nothing waiting always has room, so nobody stands still because of others' slowness. */
static bool outbox_has_room(const struct shard *shard, const struct client *client)
{
    const struct shard_limits *limits = &shard->config.limits;
    return client->outbox.bytes == 0 ||
           (client->outbox.bytes <= limits->outbox_bytes_max && shard->stats.outbox.bytes <= limits->outboxes_bytes_max);
}

/* May a new QoS 1 or 2 message go out now? [MQTT-3.3.4-9] Those of earlier connections go first. */
static bool may_send_new(const struct shard *shard, struct client *client)
{
    struct inflight *inflight = &client->session->inflight;
    const struct inflight_entry *unsent = inflight_next_unsent(inflight);
    return client->send_quota > 0 && inflight->count < shard->config.limits.inflight_max && outbox_has_room(shard, client) &&
           !client->is_doomed && (!unsent || unsent->holds_quota);
}

/* Whether all it takes to send the copy is there; what lacks room in the log is tried again when there is some. */
static bool may_send(struct shard *shard, struct client *client, uint8_t qos, bool is_wanted)
{
    if (qos == 0 ? !outbox_has_room(shard, client) : !may_send_new(shard, client))
        return false;
    bool needs_record = qos == 0 ? is_wanted : qos == 2 && waiting_is_logged(shard, client->session);
    if (!needs_record || may_log(shard))
        return true;
    waiting_on_stuck(shard, client->session);
    return false;
}

/* Its client, when that may be sent something. */
static struct client *client_of(const struct session *sess)
{
    return sess->client && sess->client->state == CLIENT_CONNECTED ? sess->client : NULL;
}

void deliver_to_session(struct shard *shard, struct session *sess, struct msg *msg, uint8_t qos, bool retain, bool is_wanted,
                        const uint32_t *ids, uint32_t id_count)
{
    struct client *client = client_of(sess);
    if (msg->expiry_wall_ns <= shard->now_steady_ns) {
        drop(shard, sess, msg, is_wanted, &shard->stats.dropped_expired, SHARD_dropped_expired); /* [MQTT-3.3.2-5] */
        return;
    }
    if (!client && qos == 0 && !shard->config.limits.queue_qos0_messages) {
        drop(shard, sess, msg, is_wanted, &shard->stats.dropped_offline, SHARD_dropped_offline);
        return;
    }
    if (client && qos == 0 && !outbox_has_room(shard, client)) {
        drop(shard, sess, msg, is_wanted, &shard->stats.dropped_slow_consumer, SHARD_dropped_slow_consumer);
        return;
    }
    struct queue_item item = {.msg = msg, .meta = session_pack_meta(sess, qos, retain, ids, id_count), .is_wanted = is_wanted};
    /* Where QoS 0 waits, it does so in order [MQTT-4.6.0-6]; elsewhere it has nothing to stand behind. */
    bool is_first = queue_count(&sess->queue) == 0 || (qos == 0 && !shard->config.limits.queue_qos0_messages);
    if (!client || !is_first || !may_send(shard, client, qos, is_wanted))
        waiting_add(shard, sess, msg, item.meta, is_wanted);
    else if (qos == 0)
        send_qos0(shard, client, &item);
    else
        send_new(shard, client, &item);
}

/* Send what is in flight and not sent on this connection, in order, with the same identifiers [MQTT-4.4.0-1]: what an earlier connection
 * left unfinished, and what waited for its record. False: what is left was there before this connection, nothing new goes before it. */
static bool send_unsent(struct shard *shard, struct client *client)
{
    struct session *sess = client->session;
    for (struct inflight_entry *entry; (entry = inflight_next_unsent(&sess->inflight)) != NULL;) {
        if (client->is_doomed)
            return false;
        if (entry->pending > 0)
            return entry->holds_quota;
        if (entry->state == INFLIGHT_PUBREL) {
            inflight_mark_sent(&sess->inflight, entry);
            client_send_ack(shard, client, MQTT_PUBREL, entry->packet_id, MQTT_REASON_SUCCESS);
            continue;
        }
        bool has_quota = entry->holds_quota || client->send_quota > 0; /* [MQTT-4.9.0-1] */
        if (!entry->has_msg || !has_quota || !outbox_has_room(shard, client))
            return false;
        if (!may_end(shard, sess, entry)) { /* it may turn out to be too large for this connection, or too old */
            waiting_on_stuck(shard, sess);
            return false;
        }
        if (!entry->is_dup &&
            entry->msg->expiry_wall_ns <= shard->now_steady_ns) { /* while it waited for its record, or away [MQTT-3.3.2-5] */
            counter_inc(&shard->stats.dropped_expired);
            end_entry(shard, client, entry);
        } else if (send_entry(shard, client, entry) == SEND_NOMEM)
            return false;
    }
    return true;
}

void deliver_pump(struct shard *shard, struct client *client)
{
    struct session *sess = client->session;
    if (client->state != CLIENT_CONNECTED)
        return;
    bool goes_on = send_unsent(shard, client);
    for (struct queue_item *first; goes_on && (first = queue_first(&sess->queue)) != NULL;) {
        bool is_expired = first->msg->expiry_wall_ns <= shard->now_steady_ns;
        uint8_t qos = queue_meta_qos(first->meta);
        bool is_old = waiting_is_too_old(shard, first);
        if (!is_expired && !is_old && !may_send(shard, client, qos, first->is_wanted))
            break;
        struct queue_item item = waiting_take(shard, sess);
        if (is_expired)
            drop(shard, sess, item.msg, item.is_wanted, &shard->stats.dropped_expired, SHARD_dropped_expired);
        else if (is_old)
            drop(shard, sess, item.msg, item.is_wanted, &shard->stats.dropped_queue_age, SHARD_dropped_queue_age);
        else if (qos == 0)
            send_qos0(shard, client, &item);
        else
            send_new(shard, client, &item);
        msg_unref(item.msg);
    }
    waiting_read(shard, sess);
    scan_pace(shard, sess);
    session_rare_trim(sess);
}

/* --- the client's answers ----------------------------------------------------------------------------------------------------------- */

void deliver_retry_stuck(struct shard *shard)
{
    struct number_list taken = shard->waiting.stuck;
    if (taken.count == 0)
        return;
    shard->waiting.stuck = (struct number_list){0};
    for (uint32_t i = 0; i < taken.count; i++) {
        struct session *sess = session_table_find_number(&shard->sessions, taken.numbers[i]);
        if (!sess)
            continue;
        sess->queue.is_stuck = false;
        if (sess->client)
            deliver_pump(shard, sess->client);
    }
    free(taken.numbers);
}

static enum client_step finish(struct shard *shard, struct client *client, struct inflight_entry *entry)
{
    end_entry(shard, client, entry);
    counter_inc(&shard->stats.copies_acked);
    deliver_pump(shard, client);
    return CLIENT_NEXT;
}

enum client_step deliver_on_puback(struct shard *shard, struct client *client, uint16_t packet_id)
{
    struct inflight_entry *entry = inflight_find(&client->session->inflight, packet_id);
    if (!entry || entry->state != INFLIGHT_PUBLISH_1)
        return CLIENT_NEXT;
    return may_end(shard, client->session, entry) ? finish(shard, client, entry)
                                                  : client_set_block(shard, client, BLOCK_ROOM); /* an error, too, ends it [MQTT-4.4.0-2] */
}

enum client_step deliver_on_pubrec(struct shard *shard, struct client *client, uint16_t packet_id, enum mqtt_reason reason)
{
    struct session *sess = client->session;
    struct inflight_entry *entry = inflight_find(&sess->inflight, packet_id);
    if (!entry || entry->state == INFLIGHT_PUBLISH_1) {
        if (reason < MQTT_REASON_UNSPECIFIED_ERROR)
            client_send_ack(shard, client, MQTT_PUBREL, packet_id, MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND);
        return CLIENT_NEXT;
    }
    if (entry->pending > 0)
        return CLIENT_NEXT; /* it was not sent yet, or its PUBREL follows */
    if (!may_end(shard, sess, entry))
        return client_set_block(shard, client, BLOCK_ROOM);
    if (reason >= MQTT_REASON_UNSPECIFIED_ERROR)
        return finish(shard, client, entry);
    if (entry->state == INFLIGHT_PUBLISH_2)
        release_entry(shard, sess, entry);
    if (entry->is_sent && entry->pending == 0)
        client_send_ack(shard, client, MQTT_PUBREL, packet_id, MQTT_REASON_SUCCESS); /* [MQTT-4.3.3-4] */
    return CLIENT_NEXT;
}

enum client_step deliver_on_pubcomp(struct shard *shard, struct client *client, uint16_t packet_id)
{
    struct inflight_entry *entry = inflight_find(&client->session->inflight, packet_id);
    if (!entry || entry->state != INFLIGHT_PUBREL || entry->pending > 0)
        return CLIENT_NEXT;
    return may_end(shard, client->session, entry) ? finish(shard, client, entry) : client_set_block(shard, client, BLOCK_ROOM);
}

void deliver_on_sent_durable(struct shard *shard, const struct client_ref *ref, uint16_t packet_id)
{
    struct session *sess = session_table_find_number(&shard->sessions, ref->number);
    if (!sess)
        return;
    /* It cannot have gone: an entry is ended by nobody while its record is on its way. */
    struct inflight_entry *entry = inflight_find(&sess->inflight, packet_id);
    CHECK(entry);
    CHECK(entry->pending > 0);
    entry->pending--;
    struct client *client = client_of(sess);
    if (!client || entry->pending > 0)
        return;
    if (entry->is_sent && entry->state == INFLIGHT_PUBREL)
        client_send_ack(shard, client, MQTT_PUBREL, packet_id, MQTT_REASON_SUCCESS); /* [MQTT-4.3.3-4] */
    else
        deliver_pump(shard, client);
}
