#include "broker/core/request.h"

#include <stdlib.h>

#include "broker/core/shard_state.h"

struct pending_request *request_begin(struct shard *shard, struct session *sess, uint32_t asked_count, uint32_t filter_count)
{
    struct session_rare *rare = session_rare_get(sess);
    struct pending_request *pending = rare ? malloc(sizeof *pending + filter_count * sizeof pending->filters[0]) : NULL;
    if (!pending)
        return NULL;
    shard->request_id++;
    *pending = (struct pending_request){
        .session = sess->number,
        .next = rare->pending,
        .id = shard->request_id,
        .since = shard->request_id,
        .connection = sess->connection,
        .asked_count = asked_count,
        .filter_count = filter_count,
    };
    rare->pending = pending;
    return pending;
}

void request_send(struct shard *shard, struct session *sess, struct route_request *request, enum route_kind kind, uint64_t id,
                  uint16_t packet_id)
{
    request->id = id;
    request->kind = (uint8_t)kind;
    request->packet_id = packet_id;
    request->session = (struct session_ref){.number = sess->number, .shard = shard->config.index};
    shard_post(shard, ACTOR_ROUTE, &(struct op){.type = OP_ROUTE_REQUEST, .from = shard->config.index, .request = request});
}

void request_put_filter(struct route_request *request, uint32_t index, uint32_t *text_size, struct span text)
{
    request->filters[index].offset = *text_size;
    request->filters[index].size = (uint32_t)text.size;
    memcpy(request->text + *text_size, text.data, text.size);
    *text_size += (uint32_t)text.size;
}

static struct route_request *request_about_folded(struct topic_filter_ref ref)
{
    size_t size = topic_filter_text(ref, NULL);
    struct route_request *request = route_request_new(1, size);
    if (request)
        request->filters[0].size = (uint32_t)topic_filter_text(ref, request->text);
    return request;
}

/* A request about all filters of a session, which has some; NULL when memory is short. */
static struct route_request *request_about_all(const struct session *sess)
{
    if (sess->is_folded)
        return request_about_folded(sess->filter);
    const struct subscription_list *list = sess->subscriptions;
    struct route_request *request = route_request_new(list->count, list->size);
    struct span filter;
    uint32_t index = 0, used = 0;
    for (uint32_t offset = 0; request && subscription_list_next(list, &offset, &filter); index++)
        request_put_filter(request, index, &used, filter);
    return request;
}

void request_forget_session(struct shard *shard, struct session *sess)
{
    /* Without memory its entries stay and lead to a number that is gone: dropped as session_gone. */
    struct route_request *request = session_has_filters(sess) ? request_about_all(sess) : NULL;
    if (request)
        request_send(shard, sess, request, ROUTE_FORGET_SESSION, ++shard->request_id, 0);
}

bool request_set_full(struct shard *shard, struct session *sess, bool is_full)
{
    if (!session_has_filters(sess))
        return true;
    struct route_request *request = request_about_all(sess);
    if (!request)
        return false;
    request->is_full = is_full;
    request_send(shard, sess, request, ROUTE_SET_FULL, ++shard->request_id, 0);
    return true;
}

/* The last of its requests may have been answered. */
void request_fold_if_away(struct shard *shard, struct session *sess)
{
    if (!sess->client)
        session_fold_filter(sess, shard->tree, shard->reader);
}

_Static_assert(SUBSCRIBER_RETAIN_HANDLING_MASK == RECORD_SUBSCRIPTION_RETAIN_HANDLING, "bits of SUBSCRIBE's options byte in both");

struct subscriber request_subscriber(uint64_t number, actor_id home, uint64_t options)
{
    uint8_t byte = (uint8_t)options;
    return (struct subscriber){
        .number = number,
        .subscription_id = (uint32_t)(options >> 8) & 0x0fffffffu,
        .shard = home,
        .qos = (byte & 3) > 2 ? 2 : byte & 3,
        .options = (uint8_t)(SUBSCRIBER_PERSISTENT |
                             (byte & (SUBSCRIBER_NO_LOCAL | SUBSCRIBER_RETAIN_AS_PUBLISHED | SUBSCRIBER_RETAIN_HANDLING_MASK))),
    };
}
