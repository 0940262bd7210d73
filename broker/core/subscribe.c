#include "broker/core/subscribe.h"

#include <stdlib.h>

#include "broker/core/client_state.h"
#include "broker/core/owed.h"
#include "broker/core/request.h"
#include "broker/core/scan.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_state.h"

#define PENDING_MAX 256           /* requests of one session that are not answered; more wait unprocessed */
#define PENDING_FILTERS_MAX 16384 /* filters in them; one request may go beyond it */
#define CODES_ON_STACK 64

static bool has_room(const struct shard *shard, const struct session *sess)
{
    if (shard->backlog.count > 0 || session_log_is_full(shard))
        return false;
    uint32_t count = 0, filter_count = 0;
    for (const struct pending_request *request = sess->rare ? sess->rare->pending : NULL; request; request = request->next) {
        count++;
        filter_count += request->asked_count;
    }
    return count < PENDING_MAX && filter_count < PENDING_FILTERS_MAX;
}

/* One reason for all filters; when the request cannot even be made. */
static enum client_step answer_all(struct shard *shard, struct client *client, enum mqtt_packet_type type, uint16_t packet_id,
                                   uint32_t filter_count, enum mqtt_reason reason)
{
    uint8_t stack[CODES_ON_STACK];
    uint8_t *codes = filter_count <= CODES_ON_STACK ? stack : malloc(filter_count);
    if (!codes)
        return client_over(shard, MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.closed_no_memory);
    memset(codes, reason, filter_count);
    struct packet packet = {.type = type, .suback = {.packet_id = packet_id, .codes = span_of(codes, filter_count)}};
    client_send(shard, client, &packet);
    counter_add(&shard->stats.subscribes_refused, type == MQTT_SUBACK ? filter_count : 0);
    if (codes != stack)
        free(codes);
    return CLIENT_NEXT;
}

static uint8_t judge_filter(struct session *sess, const struct packet_subscription *subscription)
{
    if (subscription->filter.is_shared)
        return MQTT_REASON_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED;
    enum err err = subscription_list_add(&sess->subscriptions, subscription->text, sess->hash);
    return err == ERR_OK ? MQTT_REASON_SUCCESS : err == ERR_FULL ? MQTT_REASON_QUOTA_EXCEEDED : MQTT_REASON_UNSPECIFIED_ERROR;
}

enum client_step subscribe_on_subscribe(struct shard *shard, struct client *client, const struct packet_subscribe *packet)
{
    struct session *sess = client->session;
    struct packet_subscription subscription;
    size_t text_size = 0;
    for (struct span rest = packet->filters; packet_subscribe_next(&rest, &subscription);) {
        text_size += subscription.text.size;
        if (subscription.filter.is_shared && subscription.no_local)
            return client_over(shard, MQTT_REASON_PROTOCOL_ERROR, &shard->stats.closed_protocol_error); /* [MQTT-3.8.3-4] */
    }
    if (packet->filter_count > SUBSCRIPTION_LIST_FILTERS_MAX)
        return answer_all(shard, client, MQTT_SUBACK, packet->packet_id, packet->filter_count, MQTT_REASON_QUOTA_EXCEEDED);
    if (!has_room(shard, sess))
        return client_set_block(shard, client, BLOCK_ROOM);
    struct route_request *request = route_request_new(packet->filter_count, text_size);
    struct pending_request *pending = request ? request_begin(shard, sess, packet->filter_count, packet->filter_count) : NULL;
    if (!pending) {
        route_request_free(request);
        return answer_all(shard, client, MQTT_SUBACK, packet->packet_id, packet->filter_count, MQTT_REASON_UNSPECIFIED_ERROR);
    }
    bool has_id = packet->properties.present & MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER);
    uint32_t index = 0, used = 0;
    for (struct span rest = packet->filters; packet_subscribe_next(&rest, &subscription); index++) {
        request_put_filter(request, index, &used, subscription.text);
        struct route_filter *filter = &request->filters[index];
        filter->subscription_id = has_id ? packet->properties.subscription_identifier : 0;
        filter->qos = subscription.qos;
        filter->options = (uint8_t)((subscription.no_local ? SUBSCRIBER_NO_LOCAL : 0) |
                                    (subscription.retain_as_published ? SUBSCRIBER_RETAIN_AS_PUBLISHED : 0) |
                                    subscription.retain_handling << SUBSCRIBER_RETAIN_HANDLING_SHIFT |
                                    (sess->is_named ? SUBSCRIBER_PERSISTENT : 0) | (sess->queue.is_full ? SUBSCRIBER_FULL : 0));
        filter->reason = judge_filter(sess, &subscription);
        pending->filters[index] =
            (struct pending_filter){.subscription_id = filter->subscription_id, .qos = filter->qos, .options = filter->options};
    }
    request->is_scan_later = !scan_admit(shard, sess, pending);
    request_send(shard, sess, request, ROUTE_SUBSCRIBE, pending->id, packet->packet_id);
    return CLIENT_NEXT;
}

enum client_step subscribe_on_unsubscribe(struct shard *shard, struct client *client, const struct packet_unsubscribe *packet)
{
    struct session *sess = client->session;
    size_t text_size = 0;
    struct span filter;
    for (struct span rest = packet->filters; packet_unsubscribe_next(&rest, &filter);)
        text_size += filter.size;
    if (packet->filter_count > SUBSCRIPTION_LIST_FILTERS_MAX) /* more than it can have; UNSUBACK knows no refusal before MQTT 5 */
        return client_over(shard, MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.closed_protocol_error);
    if (!has_room(shard, sess))
        return client_set_block(shard, client, BLOCK_ROOM);
    struct route_request *request = route_request_new(packet->filter_count, text_size);
    struct pending_request *pending = request ? request_begin(shard, sess, packet->filter_count, 0) : NULL;
    if (!pending) {
        route_request_free(request);
        return answer_all(shard, client, MQTT_UNSUBACK, packet->packet_id, packet->filter_count, MQTT_REASON_UNSPECIFIED_ERROR);
    }
    uint32_t index = 0, used = 0;
    for (struct span rest = packet->filters; packet_unsubscribe_next(&rest, &filter); index++) {
        request_put_filter(request, index, &used, filter);
        subscription_list_remove(&sess->subscriptions, filter); /* byte by byte [MQTT-3.10.4-1] */
    }
    counter_add(&shard->stats.unsubscribes, packet->filter_count);
    request_send(shard, sess, request, ROUTE_UNSUBSCRIBE, pending->id, packet->packet_id);
    return CLIENT_NEXT;
}

/* SUBACK and UNSUBACK of a session that the log knows wait for their records (LOG 8). */
static void send_durable(struct shard *shard, struct client *client, const struct packet *packet)
{
    if (!client->session->is_logged) {
        client_send(shard, client, packet);
        return;
    }
    enum mqtt_version version = (enum mqtt_version)client->version;
    uint32_t size = packet_encode_size(packet, version, client->packet_size_max);
    uint8_t *bytes = size > 0 ? malloc(size) : NULL;
    if (bytes) {
        struct client_ref ref = client_ref_of(client);
        session_log_answer(shard, GATE_PACKET, &ref, span_of(bytes, packet_encode(bytes, packet, version, client->packet_size_max)));
    } else if (size > 0) {
        client_doom(shard, client);
    }
    free(bytes);
}

/* The request's reasons as codes of the answer. */
static void send_answer(struct shard *shard, struct client *client, const struct route_request *request)
{
    enum mqtt_packet_type type = request->kind == ROUTE_SUBSCRIBE ? MQTT_SUBACK : MQTT_UNSUBACK;
    uint8_t stack[CODES_ON_STACK];
    uint8_t *codes = request->filter_count <= CODES_ON_STACK ? stack : malloc(request->filter_count);
    if (!codes) {
        client_doom(shard, client);
        return;
    }
    for (uint32_t i = 0; i < request->filter_count; i++)
        codes[i] = request->filters[i].reason;
    bool has_codes = type == MQTT_SUBACK || client->version == MQTT_V5;
    struct packet packet = {
        .type = type,
        .suback = {.packet_id = request->packet_id, .codes = has_codes ? span_of(codes, request->filter_count) : (struct span){0, 0}}};
    send_durable(shard, client, &packet);
    if (codes != stack)
        free(codes);
}

/* A session that the log knows for its will alone ends with its connection, and its subscriptions with it. */
static bool is_logged(const struct session *sess) { return sess->is_logged && session_is_persistent(sess); }

/* As in the SUBSCRIBE. */
static uint8_t options_byte(const struct route_filter *filter)
{
    return (uint8_t)(filter->qos |
                     (filter->options & (SUBSCRIBER_NO_LOCAL | SUBSCRIBER_RETAIN_AS_PUBLISHED | SUBSCRIBER_RETAIN_HANDLING_MASK)));
}

/* Whether a SUBSCRIBE that was sent later is not answered: it may be of the same filters, and be granted. What is refused stays in the list
 * then; a name too many costs a look at the tree when the session ends, one too few leaves its subscription there for ever. */
static bool is_subscribing(const struct session *sess, uint64_t id)
{
    for (const struct pending_request *newer = sess->rare->pending; newer && newer->id != id; newer = newer->next)
        if (newer->filter_count > 0)
            return true;
    return false;
}

static void settle_subscribe(struct shard *shard, struct session *sess, const struct route_request *request)
{
    bool is_asked_again = is_subscribing(sess, request->id);
    for (uint32_t i = 0; i < request->filter_count; i++) {
        const struct route_filter *filter = &request->filters[i];
        bool is_refused = filter->reason >= MQTT_REASON_UNSPECIFIED_ERROR;
        counter_inc(is_refused ? &shard->stats.subscribes_refused : &shard->stats.subscribes);
        struct span text = span_of(request->text + filter->offset, filter->size);
        if (is_refused && filter->is_new && !is_asked_again)
            subscription_list_remove(&sess->subscriptions, text);
        if (!is_refused && is_logged(sess))
            session_log_subscription(shard, sess->number, text, options_byte(filter), filter->subscription_id,
                                     owed_note_subscription(shard, sess, request, i));
    }
}

static void settle_unsubscribe(struct shard *shard, const struct session *sess, const struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count && is_logged(sess); i++) {
        const struct route_filter *filter = &request->filters[i];
        session_log_unsubscribe(shard, sess->number, span_of(request->text + filter->offset, filter->size));
    }
}

void subscribe_on_reply(struct shard *shard, struct route_request *request)
{
    struct session *sess = session_table_find_number(&shard->sessions, request->session.number);
    struct pending_request *pending = sess ? session_find_pending(sess, request->id) : NULL;
    if (pending) {
        if (request->kind == ROUTE_SUBSCRIBE)
            settle_subscribe(shard, sess, request);
        else
            settle_unsubscribe(shard, sess, request);
        if (sess->client && sess->connection == pending->connection)
            send_answer(shard, sess->client, request);
        if (request->kind != ROUTE_SUBSCRIBE) /* of a SUBSCRIBE, OP_RETAINED_END is the last */
            session_remove_pending(sess, request->id);
        request_fold_if_away(shard, sess);
    }
    if (pending && request->is_scan_later)
        scan_later(shard, sess, pending, request);
    else
        route_request_free(request);
}
