#include "broker/core/deliver.h"

#include <stdlib.h>

#include "broker/core/shard_state.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/hash.h"

/* --- batches for other shards ------------------------------------------------------------------------------------------------------- */

void delivery_free(struct delivery *delivery)
{
    if (!delivery)
        return;
    for (uint32_t at = 0; at < delivery->size;) {
        struct delivery_entry entry;
        memcpy(&entry, delivery->bytes + at, sizeof entry);
        msg_unref(entry.msg);
        at += (uint32_t)align_up(sizeof entry + entry.size, 8);
    }
    free(delivery);
}

static void batch_post(struct shard *shard, actor_id to)
{
    struct delivery *delivery = shard->batches[to];
    if (!delivery)
        return;
    shard->batches[to] = NULL;
    counter_add(&shard->stats.copies_posted, delivery->copies);
    shard_post(shard, to, &(struct op){.type = OP_DELIVER, .from = shard->config.index, .count = delivery->copies, .delivery = delivery});
}

void deliver_post_batches(struct shard *shard)
{
    for (actor_id to = 0; to < shard->config.shard_count; to++)
        batch_post(shard, to);
}

/* The batch to a shard with room for `size` more bytes, NULL when memory is short. */
static struct delivery *batch_reserve(struct shard *shard, actor_id to, size_t size)
{
    struct delivery *delivery = shard->batches[to];
    if (delivery && delivery->size >= DELIVERY_SIZE_POST) {
        batch_post(shard, to);
        delivery = NULL;
    }
    size_t need = (delivery ? delivery->size : 0) + size;
    if (delivery && delivery->capacity >= need)
        return delivery;
    size_t capacity = delivery ? delivery->capacity : DELIVERY_SIZE_FIRST;
    while (capacity < need)
        capacity *= 2;
    struct delivery *grown = realloc(delivery, sizeof *grown + capacity);
    if (!grown)
        return NULL;
    if (!delivery)
        *grown = (struct delivery){0};
    grown->capacity = (uint32_t)capacity;
    shard->batches[to] = grown;
    return grown;
}

static bool batch_add(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    size_t size = recipient_size(recipient->id_count);
    struct delivery *delivery = batch_reserve(shard, recipient->shard, sizeof(struct delivery_entry) + size + 16);
    if (!delivery)
        return false;
    struct delivery_entry *entry = (struct delivery_entry *)(void *)(delivery->bytes + delivery->last_entry);
    if (delivery->copies == 0 || entry->msg != msg) {
        delivery->last_entry = delivery->size;
        entry = (struct delivery_entry *)(void *)(delivery->bytes + delivery->last_entry);
        *entry = (struct delivery_entry){.msg = msg_ref(msg)};
    }
    memcpy((uint8_t *)(entry + 1) + entry->size, recipient, size);
    entry->size += (uint32_t)size;
    entry->count++;
    delivery->size = delivery->last_entry + (uint32_t)align_up(sizeof *entry + entry->size, 8);
    delivery->copies++;
    return true;
}

static void deliver_home(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    struct session *sess = session_table_find_number(&shard->sessions, recipient->number);
    if (!sess) {
        counter_inc(&shard->stats.dropped_session_gone);
        return;
    }
    if (sess->rare && sess->rare->pending)
        session_note_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg);
    deliver_to_session(shard, sess, msg, recipient->qos, recipient->retain, recipient->ids, recipient->id_count);
}

static void deliver_recipient(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    if (recipient->shard == shard->config.index)
        deliver_home(shard, msg, recipient);
    else if (recipient->qos == 0 && op_backlog_waits(&shard->backlog, recipient->shard))
        counter_inc(&shard->stats.dropped_ring_full);
    else if (!batch_add(shard, msg, recipient))
        counter_inc(&shard->stats.dropped_no_memory);
}

void deliver_recipients(struct shard *shard, struct msg *msg, struct span recipients)
{
    for (size_t at = 0; at < recipients.size;) {
        const struct recipient *recipient = (const struct recipient *)(const void *)(recipients.data + at);
        deliver_recipient(shard, msg, recipient);
        at += recipient_size(recipient->id_count);
    }
}

void deliver_on_batch(struct shard *shard, struct delivery *delivery)
{
    counter_add(&shard->stats.copies_received, delivery->copies);
    for (uint32_t at = 0; at < delivery->size;) {
        const struct delivery_entry *entry = (const struct delivery_entry *)(const void *)(delivery->bytes + at);
        const uint8_t *recipients = (const uint8_t *)(entry + 1);
        for (uint32_t offset = 0; offset < entry->size;) {
            const struct recipient *recipient = (const struct recipient *)(const void *)(recipients + offset);
            deliver_home(shard, entry->msg, recipient);
            offset += (uint32_t)recipient_size(recipient->id_count);
        }
        at += (uint32_t)align_up(sizeof *entry + entry->size, 8);
    }
    delivery_free(delivery);
}

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
        int64_t left_ns = msg->expiry_wall_ns - shard->now_wall_ns;
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
        client->is_doomed = shard->is_any_doomed = true; /* half a packet is in the outbox: nothing sensible can follow it */
        return SEND_NOMEM;
    }
    client_mark_dirty(shard, client);
    return SEND_OK;
}

static void count_unsent(struct shard *shard, enum send_result result)
{
    if (result == SEND_TOO_LARGE)
        counter_inc(&shard->stats.dropped_too_large);
    else if (result == SEND_NOMEM)
        counter_inc(&shard->stats.dropped_no_memory);
}

static void send_qos0(struct shard *shard, struct client *client, struct msg *msg, uint32_t meta)
{
    const uint32_t *ids;
    uint32_t one, id_count = session_unpack_ids(client->session, &ids, &one, meta);
    struct packet_publish_head head;
    head_of(shard, &head, msg, meta, ids, id_count);
    enum send_result result = send_head(shard, client, msg, &head);
    count_unsent(shard, result);
    if (result != SEND_OK)
        return;
    counter_inc(&shard->stats.copies_sent_qos0);
    counter_inc(&shard->stats.sent_qos0);
}

/* First sending of a QoS 1 or 2 copy; there is quota. The reference stays the caller's. */
static void send_new(struct shard *shard, struct client *client, struct msg *msg, uint32_t meta)
{
    struct session *sess = client->session;
    const uint32_t *ids;
    uint32_t one, id_count = session_unpack_ids(sess, &ids, &one, meta);
    struct packet_publish_head head;
    head_of(shard, &head, msg, meta, ids, id_count);
    struct inflight_entry *entry = inflight_add(&sess->inflight, msg, meta, head.qos);
    if (!entry) {
        counter_inc(&shard->stats.dropped_no_memory);
        return;
    }
    msg_ref(msg);
    head.packet_id = entry->packet_id;
    enum send_result result = send_head(shard, client, msg, &head);
    if (result != SEND_OK) {
        inflight_remove(&sess->inflight, entry); /* as if it had been completed [MQTT-3.1.2-25] */
        count_unsent(shard, result);
        return;
    }
    inflight_mark_sent(&sess->inflight, entry);
    entry->holds_quota = true;
    client->send_quota--;
    gauge_add(&shard->stats.inflight, 1);
    counter_inc(head.qos == 1 ? &shard->stats.sent_qos1 : &shard->stats.sent_qos2);
}

/* A socket with nothing waiting always has room, so nobody stands still because of others' slowness. */
static bool outbox_has_room(const struct shard *shard, const struct client *client)
{
    const struct shard_limits *limits = &shard->config.limits;
    return client->outbox.bytes == 0 ||
           (client->outbox.bytes <= limits->outbox_bytes_max && shard->stats.outbox.bytes <= limits->outboxes_bytes_max);
}

/* May a new QoS 1 or 2 message go out now? [MQTT-3.3.4-9] */
static bool may_send_new(const struct shard *shard, struct client *client)
{
    struct inflight *inflight = &client->session->inflight;
    return client->send_quota > 0 && inflight->count < shard->config.limits.inflight_max && outbox_has_room(shard, client) &&
           !client->is_doomed && !inflight_next_unsent(inflight);
}

static void enqueue(struct shard *shard, struct session *sess, struct msg *msg, uint32_t meta)
{
    struct queue_limits limits = {shard->config.limits.session_queue_messages_max, shard->config.limits.session_queue_bytes_max};
    enum queue_result result = queue_push(&sess->queue, msg, meta, &limits, sess->client != NULL);
    switch (result) {
    case QUEUE_FULL_MESSAGES:
        counter_inc(&shard->stats.dropped_queue_full);
        return;
    case QUEUE_FULL_BYTES:
        counter_inc(&shard->stats.dropped_queue_bytes);
        return;
    case QUEUE_NOMEM:
        counter_inc(&shard->stats.dropped_no_memory);
        return;
    case QUEUE_TO_STORE:
        sess->has_stored = true;
        shard_post(shard, ACTOR_STORE,
                   &(struct op){.type = OP_STORE_PUT,
                                .from = shard->config.index,
                                .store = {.session_number = sess->number, .msg = msg_ref(msg), .meta = meta}});
        break;
    case QUEUE_RESIDENT:
        break;
    }
    queue_stats_push(&shard->stats.queued, msg_cost(msg), shard->now_mono_ns);
}

void deliver_to_session(struct shard *shard, struct session *sess, struct msg *msg, uint8_t qos, bool retain, const uint32_t *ids,
                        uint32_t id_count)
{
    struct client *client = sess->client;
    if (msg->expiry_wall_ns <= shard->now_wall_ns) {
        counter_inc(&shard->stats.dropped_expired); /* [MQTT-3.3.2-5] */
        return;
    }
    if (!client && qos == 0 && !shard->config.limits.queue_qos0_messages) {
        counter_inc(&shard->stats.dropped_offline);
        return;
    }
    if (client && qos == 0 && !outbox_has_room(shard, client)) {
        counter_inc(&shard->stats.dropped_slow_consumer);
        return;
    }
    uint32_t meta = session_pack_meta(sess, qos, retain, ids, id_count);
    if (client && qos == 0)
        send_qos0(shard, client, msg, meta);
    else if (client && queue_count(&sess->queue) == 0 && may_send_new(shard, client))
        send_new(shard, client, msg, meta);
    else
        enqueue(shard, sess, msg, meta);
}

/* Send again what an earlier connection left unfinished, in order, with the same identifiers [MQTT-4.4.0-1]. False: not all could go. */
static bool resend(struct shard *shard, struct client *client)
{
    struct session *sess = client->session;
    for (struct inflight_entry *entry; (entry = inflight_next_unsent(&sess->inflight)) != NULL;) {
        if (client->is_doomed)
            return false;
        if (entry->state == INFLIGHT_PUBREL) {
            inflight_mark_sent(&sess->inflight, entry);
            client_send_ack(shard, client, MQTT_PUBREL, entry->packet_id, MQTT_REASON_SUCCESS);
            continue;
        }
        if (client->send_quota == 0 || !outbox_has_room(shard, client))
            return false; /* [MQTT-4.9.0-1] */
        const uint32_t *ids;
        uint32_t one, id_count = session_unpack_ids(sess, &ids, &one, entry->meta);
        struct packet_publish_head head;
        head_of(shard, &head, entry->msg, entry->meta, ids, id_count);
        head.dup = true; /* [MQTT-3.3.1-1] */
        head.packet_id = entry->packet_id;
        enum send_result result = send_head(shard, client, entry->msg, &head);
        if (result == SEND_NOMEM)
            return false;
        if (result == SEND_TOO_LARGE) {
            inflight_remove(&sess->inflight, entry);
            gauge_add(&shard->stats.inflight, -1);
            counter_inc(&shard->stats.dropped_too_large);
            continue;
        }
        inflight_mark_sent(&sess->inflight, entry);
        entry->holds_quota = true;
        client->send_quota--;
        counter_inc(head.qos == 1 ? &shard->stats.sent_qos1 : &shard->stats.sent_qos2);
        counter_inc(&shard->stats.resent);
    }
    return true;
}

static void ask_for_more(struct shard *shard, struct session *sess)
{
    uint32_t count = queue_load_count(&sess->queue);
    if (count == 0)
        return;
    sess->queue.is_loading = true;
    shard_post(shard, ACTOR_STORE,
               &(struct op){.type = OP_STORE_LOAD, .from = shard->config.index, .count = count, .store = {.session_number = sess->number}});
}

void deliver_pump(struct shard *shard, struct client *client)
{
    struct session *sess = client->session;
    if (!resend(shard, client))
        return;
    for (struct queue_item *first; (first = queue_first(&sess->queue)) != NULL;) {
        bool is_expired = first->msg->expiry_wall_ns <= shard->now_wall_ns;
        uint8_t qos = queue_meta_qos(first->meta);
        if (!is_expired && (qos == 0 ? !outbox_has_room(shard, client) : !may_send_new(shard, client)))
            break;
        struct queue_item item = queue_pop(&sess->queue);
        queue_stats_pop(&shard->stats.queued, msg_cost(item.msg), shard->stats.queued.oldest_ns);
        if (is_expired)
            counter_inc(&shard->stats.dropped_expired);
        else if (qos == 0)
            send_qos0(shard, client, item.msg, item.meta);
        else
            send_new(shard, client, item.msg, item.meta);
        msg_unref(item.msg);
    }
    ask_for_more(shard, sess);
    subscribe_pace_retained(shard, sess);
    session_rare_trim(sess);
}

void deliver_on_loaded(struct shard *shard, const struct op *op)
{
    struct store_page *page = op->store.page;
    struct session *sess = session_table_find_number(&shard->sessions, op->store.session_number);
    if (!sess) {
        /* The session has ended; its queue was counted as dropped then. */
        for (uint32_t i = 0; i < page->count; i++)
            msg_unref(page->items[i].msg);
        free(page);
        return;
    }
    uint64_t bytes_before = sess->queue.bytes;
    uint32_t dropped;
    if (!queue_on_loaded(&sess->queue, &dropped, page)) {
        counter_add(&shard->stats.dropped_no_memory, dropped);
        struct queue_stats *queued = &shard->stats.queued;
        queue_stats_set(queued, queued->messages - dropped, queued->bytes - (bytes_before - sess->queue.bytes), queued->oldest_ns);
    }
    if (sess->client)
        deliver_pump(shard, sess->client);
}

/* --- the client's answers ----------------------------------------------------------------------------------------------------------- */

/* The client is done with a message: its place and its quota are free again [MQTT-4.9.0-1]. */
static void finish(struct shard *shard, struct client *client, struct inflight_entry *entry)
{
    if (entry->holds_quota && client->send_quota < client->receive_max)
        client->send_quota++;
    inflight_remove(&client->session->inflight, entry);
    gauge_add(&shard->stats.inflight, -1);
    counter_inc(&shard->stats.copies_acked);
    deliver_pump(shard, client);
}

void deliver_on_puback(struct shard *shard, struct client *client, uint16_t packet_id)
{
    struct inflight_entry *entry = inflight_find(&client->session->inflight, packet_id);
    if (entry && entry->state == INFLIGHT_PUBLISH_1)
        finish(shard, client, entry); /* with an error as well: not sent again [MQTT-4.4.0-2] */
}

void deliver_on_pubrec(struct shard *shard, struct client *client, uint16_t packet_id, enum mqtt_reason reason)
{
    struct inflight_entry *entry = inflight_find(&client->session->inflight, packet_id);
    if (!entry || entry->state == INFLIGHT_PUBLISH_1) {
        if (reason < MQTT_REASON_UNSPECIFIED_ERROR)
            client_send_ack(shard, client, MQTT_PUBREL, packet_id, MQTT_REASON_PACKET_IDENTIFIER_NOT_FOUND);
        return;
    }
    if (reason >= MQTT_REASON_UNSPECIFIED_ERROR) {
        finish(shard, client, entry);
        return;
    }
    if (entry->state == INFLIGHT_PUBLISH_2)
        inflight_to_pubrel(&client->session->inflight, entry);
    if (entry->is_sent)
        client_send_ack(shard, client, MQTT_PUBREL, packet_id, MQTT_REASON_SUCCESS); /* [MQTT-4.3.3-4] */
}

void deliver_on_pubcomp(struct shard *shard, struct client *client, uint16_t packet_id)
{
    struct inflight_entry *entry = inflight_find(&client->session->inflight, packet_id);
    if (entry && entry->state == INFLIGHT_PUBREL)
        finish(shard, client, entry);
}

void deliver_on_sent_durable(struct shard *shard, struct client *client, uint16_t packet_id)
{
    (void)packet_id;
    deliver_pump(shard, client);
}
