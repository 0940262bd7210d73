#include "broker/core/scan.h"

#include "broker/core/client_state.h"
#include "broker/core/request.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/check.h"

void scans_init(struct scans *scans)
{
    *scans = (struct scans){0};
    list_init(&scans->waiting);
}

/* Room for a window of values: half of the socket's bound and of the queue's are free, or the session is away and its queue is. */
static bool has_room(const struct shard *shard, const struct session *sess)
{
    const struct shard_limits *limits = &shard->config.limits;
    if (sess->client &&
        (sess->client->outbox.bytes > limits->outbox_bytes_max / 2 || shard->stats.outbox.bytes > limits->outboxes_bytes_max / 2))
        return false;
    uint32_t held = sess->rare->copies_held;
    return held < SCAN_HELD_MAX && queue_count(&sess->queue) + (uint64_t)held <= limits->session_queue_messages_max / 2 &&
           sess->queue.bytes <= limits->session_queue_bytes_max / 2;
}

/* So much is parked, or may be, that nobody asks for more. */
static bool is_full(const struct shard *shard)
{
    const struct queue_stats *parked = &shard->stats.parked_copies;
    return shard->scans.coming + parked->messages >= SCAN_VALUES_MAX || parked->bytes >= SCAN_PARKED_BYTES_MAX;
}

/* Behind those that wait already. Values of a session that is not logged are never parked. */
static bool must_queue(const struct shard *shard, const struct session *sess)
{
    return waiting_is_logged(shard, sess) && (is_full(shard) || !list_is_empty(&shard->scans.waiting));
}

static void add_coming(struct shard *shard, const struct session *sess, struct pending_request *pending, uint32_t count)
{
    if (!waiting_is_logged(shard, sess))
        return;
    pending->coming_count += count;
    shard->scans.coming += count;
}

/* So many have come, or will not come any more. */
static void sub_coming(struct shard *shard, struct pending_request *pending, uint32_t count)
{
    if (count > pending->coming_count) /* values that shards had published unknowingly come beside the window */
        count = pending->coming_count;
    pending->coming_count -= count;
    shard->scans.coming -= count;
}

void scan_forget(struct shard *shard, struct session *sess)
{
    for (struct pending_request *pending = sess->rare ? sess->rare->pending : NULL; pending; pending = pending->next)
        sub_coming(shard, pending, pending->coming_count);
}

/* Now, for the pending request `id`. The request is taken. */
static void begin(struct shard *shard, struct session *sess, struct route_request *request, uint64_t id)
{
    for (uint32_t i = 0; i < request->filter_count; i++) {
        struct route_filter *filter = &request->filters[i];
        if (!subscription_list_has(sess->subscriptions, span_of(request->text + filter->offset, filter->size)))
            filter->reason = MQTT_REASON_UNSPECIFIED_ERROR; /* unsubscribed meanwhile */
    }
    request_send(shard, sess, request, ROUTE_SCAN, id, 0);
}

bool scan_admit(struct shard *shard, const struct session *sess, struct pending_request *pending)
{
    if (must_queue(shard, sess))
        return false;
    add_coming(shard, sess, pending, ROUTE_RETAINED_WINDOW);
    return true;
}

void scan_later(struct shard *shard, struct session *sess, struct pending_request *pending, struct route_request *request)
{
    if (scan_admit(shard, sess, pending)) {
        begin(shard, sess, request, pending->id);
        return;
    }
    pending->scan = request;
    list_push_back(&shard->scans.waiting, &pending->waiting);
}

static void ask_for_values(struct shard *shard, uint64_t request_id, const struct session_ref *session, uint32_t count)
{
    shard_post(shard, ACTOR_ROUTE,
               &(struct op){.type = OP_RETAINED_MORE,
                            .from = shard->config.index,
                            .count = count,
                            .retained = {.request_id = request_id, .session = *session}});
}

/* Whether messages of an earlier start are still to be sent. */
static bool has_restored(const struct shard *shard, struct session *sess)
{
    const struct inflight_entry *entry = inflight_next_unsent(&sess->inflight);
    if (entry && !entry->has_msg && entry->state != INFLIGHT_PUBREL)
        return true;
    const struct queue_item *first = queue_first(&sess->queue);
    return first ? first->is_wanted && waiting_is_restored(shard, msg_sequence(first->msg)) : queue_count(&sess->queue) > 0;
}

/* Filters that it has subscribed to, again, when there is room. The request is taken. False: memory is short, not taken. */
static bool send_again(struct shard *shard, struct session *sess, struct route_request *request)
{
    struct pending_request *pending = request_begin(shard, sess, request->filter_count, request->filter_count);
    if (!pending)
        return false;
    pending->since = SESSION_TICK_START; /* its SUBSCRIBE was before */
    for (uint32_t i = 0; i < request->filter_count; i++) {
        const struct route_filter *filter = &request->filters[i];
        pending->filters[i] =
            (struct pending_filter){.subscription_id = filter->subscription_id, .qos = filter->qos, .options = filter->options};
    }
    scan_later(shard, sess, pending, request);
    return true;
}

/* The scans that an earlier start did not end, as one request. */
static void scan_again(struct shard *shard, struct session *sess)
{
    if (send_again(shard, sess, sess->rare->owed))
        sess->rare->owed = NULL;
}

/* What an earlier start left has been sent: what it had not even begun to give follows. */
static void go_on_after_restored(struct shard *shard, struct session *sess)
{
    if (!sess->client || sess->client->state != CLIENT_CONNECTED || has_restored(shard, sess))
        return;
    sess->rare->has_restored_copies = false;
    if (sess->rare->owed)
        scan_again(shard, sess);
}

static void pace(struct shard *shard, struct session *sess, struct pending_request *pending)
{
    struct session_ref session = {.number = sess->number, .shard = shard->config.index};
    ask_for_values(shard, pending->id, &session, pending->taken_count);
    add_coming(shard, sess, pending, pending->taken_count);
    pending->taken_count = 0;
}

void scan_pace(struct shard *shard, struct session *sess)
{
    if (!sess->rare)
        return;
    if (sess->rare->owed || sess->rare->has_restored_copies)
        go_on_after_restored(shard, sess);
    for (struct pending_request *pending = sess->rare->pending; pending; pending = pending->next) {
        if (pending->taken_count < ROUTE_RETAINED_WINDOW / 2 || !has_room(shard, sess))
            continue;
        if (!must_queue(shard, sess))
            pace(shard, sess, pending);
        else if (!list_node_is_linked(&pending->waiting))
            list_push_back(&shard->scans.waiting, &pending->waiting);
    }
}

void scan_on_value(struct shard *shard, struct pending_request *pending) { sub_coming(shard, pending, 1); }

void scan_on_end(struct shard *shard, struct pending_request *pending) { sub_coming(shard, pending, pending->coming_count); }

void scan_pass_over(struct shard *shard, uint64_t request_id, const struct session_ref *session)
{
    ask_for_values(shard, request_id, session, 1);
}

void scan_turn(struct shard *shard)
{
    struct list_node *node;
    while (!is_full(shard) && (node = list_pop_front(&shard->scans.waiting)) != NULL) {
        struct pending_request *pending = LIST_ENTRY(node, struct pending_request, waiting);
        struct session *sess = session_table_find_number(&shard->sessions, pending->session);
        CHECK(sess); /* its end takes it out of the list */
        struct route_request *scan = pending->scan;
        pending->scan = NULL;
        if (scan) {
            add_coming(shard, sess, pending, ROUTE_RETAINED_WINDOW);
            begin(shard, sess, scan, pending->id);
        } else if (has_room(shard, sess)) {
            pace(shard, sess, pending);
        }
    }
}

bool scan_may_go_on(const struct shard *shard) { return !list_is_empty(&shard->scans.waiting) && !is_full(shard); }

/* The next subscription that is owed something. */
static bool next_owed(struct span *subscriptions, struct record *rec_out)
{
    struct span bytes;
    while (record_next(&bytes, subscriptions) == ERR_OK)
        if (record_decode(rec_out, bytes) == ERR_OK && (rec_out->options & RECORD_SUBSCRIPTION_OWED) && rec_out->topic.size > 0 &&
            rec_out->topic.size <= UINT16_MAX)
            return true;
    return false;
}

enum err scan_restore(struct session *sess, struct span subscriptions)
{
    uint32_t count = 0, used = 0;
    size_t text_size = 0;
    struct record rec;
    for (struct span rest = subscriptions; next_owed(&rest, &rec); count++)
        text_size += rec.topic.size;
    if (count == 0)
        return ERR_OK;
    struct session_rare *rare = session_rare_get(sess);
    struct route_request *request = rare ? route_request_new(count, text_size) : NULL;
    if (!request)
        return ERR_NOMEM;
    count = 0;
    for (struct span rest = subscriptions; next_owed(&rest, &rec); count++) {
        struct subscriber as = request_subscriber(0, 0, rec.options);
        request->filters[count] = (struct route_filter){
            .offset = used,
            .size = (uint32_t)rec.topic.size,
            .subscription_id = as.subscription_id,
            .qos = as.qos,
            .options = as.options & (uint8_t)~SUBSCRIBER_RETAIN_HANDLING_MASK, /* asked for once, owed until given */
            .reason = as.qos,
        };
        memcpy(request->text + used, rec.topic.data, rec.topic.size);
        used += (uint32_t)rec.topic.size;
    }
    rare->owed = request;
    rare->is_owing = true;
    return ERR_OK;
}
