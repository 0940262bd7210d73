#include "broker/session/session.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/position_list.h"

static void pending_free(struct pending_request *request)
{
    if (list_node_is_linked(&request->waiting))
        list_remove(&request->waiting);
    free(request->scan);
    free(request);
}

static void pending_free_all(struct session_rare *rare)
{
    while (rare->pending) {
        struct pending_request *request = rare->pending;
        rare->pending = request->next;
        pending_free(request);
    }
}

static void id_sets_free(struct session_rare *rare)
{
    for (uint32_t i = 0; i < rare->id_set_count; i++)
        free(rare->id_sets[i].ids);
    free(rare->id_sets);
    rare->id_sets = NULL;
    rare->id_set_count = rare->id_set_capacity = 0;
}

static void newer_free(struct session_rare *rare)
{
    free(rare->newer);
    rare->newer = NULL;
    rare->newer_count = rare->newer_capacity = 0;
}

void session_deinit(struct session *sess)
{
    inflight_deinit(&sess->inflight);
    queue_deinit(&sess->queue, NULL);
    if (!sess->is_folded)
        subscription_list_free(sess->subscriptions);
    sess->is_folded = false;
    sess->subscriptions = NULL;
    if (!sess->rare)
        return;
    will_free(sess->rare->will);
    inbound_ids_deinit(&sess->rare->inbound);
    position_list_free(sess->rare->sent_in_runs);
    pending_free_all(sess->rare);
    newer_free(sess->rare);
    id_sets_free(sess->rare);
    free(sess->rare->owed);
    free(sess->rare);
    sess->rare = NULL;
}

void session_fold_filter(struct session *sess, struct topic_tree *tree, struct epoch_reader *reader)
{
    CHECK(!sess->client);
    struct span filter;
    uint32_t offset = 0;
    if (sess->is_folded || !sess->subscriptions || sess->subscriptions->count != 1 || (sess->rare && sess->rare->pending) ||
        !subscription_list_next(sess->subscriptions, &offset, &filter))
        return;
    struct topic_filter_ref ref = topic_tree_find(tree, reader, filter, sess->number);
    if (ref.word == 0)
        return;
    subscription_list_free(sess->subscriptions);
    sess->filter = ref;
    sess->is_folded = true;
}

bool session_unfold_filter(struct session *sess)
{
    if (!sess->is_folded)
        return true;
    size_t size = topic_filter_text(sess->filter, NULL);
    uint8_t *text = malloc(size);
    struct subscription_list *list = NULL;
    if (text) {
        topic_filter_text(sess->filter, text);
        if (subscription_list_add(&list, span_of(text, size), sess->hash) != ERR_OK)
            list = NULL;
        free(text);
    }
    if (!list)
        return false;
    sess->subscriptions = list;
    sess->is_folded = false;
    return true;
}

struct session_rare *session_rare_get(struct session *sess)
{
    if (!sess->rare)
        sess->rare = calloc(1, sizeof *sess->rare);
    return sess->rare;
}

void session_rare_trim(struct session *sess)
{
    struct session_rare *rare = sess->rare;
    if (!rare)
        return;
    if (sess->inflight.count == 0 && queue_count(&sess->queue) == 0)
        id_sets_free(rare); /* no meta refers to a set any more */
    bool is_awaiting = session_awaits_retained(sess);
    if (rare->copies_held == 0 && queue_count(&sess->queue) == 0)
        rare->copy_last = 0;
    if (!is_awaiting && !session_has_copies(sess))
        newer_free(rare);
    if (rare->will || rare->inbound.count > 0 || rare->id_set_count > 0 || rare->sent_in_runs)
        return;
    if (is_awaiting || rare->copy_last > 0 || rare->copies_parked > 0 || rare->copies_held > 0 || rare->behind_held > 0 || rare->is_owing)
        return;
    free(rare);
    sess->rare = NULL;
}

uint32_t session_pack_meta(struct session *sess, uint8_t qos, bool retain, const uint32_t *ids, uint32_t id_count)
{
    if (id_count <= 1)
        return queue_meta(qos, retain, id_count ? ids[0] : 0);
    struct session_rare *rare = session_rare_get(sess);
    if (!rare)
        return queue_meta(qos, retain, ids[0]);
    for (uint32_t i = 0; i < rare->id_set_count; i++)
        if (rare->id_sets[i].count == id_count && memcmp(rare->id_sets[i].ids, ids, id_count * sizeof *ids) == 0)
            return queue_meta(qos, retain, i) | QUEUE_META_IS_SET;
    if (rare->id_set_count == SESSION_ID_SETS_MAX && sess->inflight.count == 0 && queue_count(&sess->queue) == 0)
        id_sets_free(rare);
    if (rare->id_set_count == SESSION_ID_SETS_MAX)
        return queue_meta(qos, retain, ids[0]); /* beyond all use: the message keeps one of its identifiers */
    if (rare->id_set_count == rare->id_set_capacity) {
        uint32_t capacity = rare->id_set_capacity ? rare->id_set_capacity * 2 : 4;
        struct id_set *grown = realloc(rare->id_sets, capacity * sizeof *grown);
        if (!grown)
            return queue_meta(qos, retain, ids[0]);
        rare->id_sets = grown;
        rare->id_set_capacity = capacity;
    }
    uint32_t *copy = malloc(id_count * sizeof *copy);
    if (!copy)
        return queue_meta(qos, retain, ids[0]);
    memcpy(copy, ids, id_count * sizeof *copy);
    rare->id_sets[rare->id_set_count] = (struct id_set){.ids = copy, .count = id_count};
    return queue_meta(qos, retain, rare->id_set_count++) | QUEUE_META_IS_SET;
}

uint32_t session_unpack_ids(const struct session *sess, const uint32_t **ids_out, uint32_t *one_out, uint32_t meta)
{
    uint32_t id = meta & QUEUE_META_ID_MASK;
    if (meta & QUEUE_META_IS_SET) {
        CHECK(sess->rare);
        CHECK(id < sess->rare->id_set_count);
        *ids_out = sess->rare->id_sets[id].ids;
        return sess->rare->id_sets[id].count;
    }
    *one_out = id;
    *ids_out = one_out;
    return id != 0;
}

static struct newer_topic *newer_cell(const struct session_rare *rare, uint64_t topic_hash)
{
    uint32_t mask = rare->newer_capacity - 1, at = (uint32_t)topic_hash & mask;
    while (rare->newer[at].topic_hash != 0 && rare->newer[at].topic_hash != topic_hash)
        at = (at + 1) & mask;
    return &rare->newer[at];
}

static bool newer_grow(struct session_rare *rare)
{
    struct session_rare larger = {.newer_capacity = rare->newer_capacity ? rare->newer_capacity * 2 : 16};
    larger.newer = calloc(larger.newer_capacity, sizeof *larger.newer);
    if (!larger.newer)
        return false;
    for (uint32_t i = 0; i < rare->newer_capacity; i++)
        if (rare->newer[i].topic_hash != 0)
            *newer_cell(&larger, rare->newer[i].topic_hash) = rare->newer[i];
    free(rare->newer);
    rare->newer = larger.newer;
    rare->newer_capacity = larger.newer_capacity;
    return true;
}

void session_note_newer(struct session *sess, uint64_t topic_hash, const struct msg *msg, uint64_t tick, uint32_t connection)
{
    struct session_rare *rare = sess->rare;
    topic_hash |= 1; /* never the mark of a free cell */
    bool is_known = rare->newer_count > 0 && newer_cell(rare, topic_hash)->topic_hash != 0;
    if (!is_known) {
        /* Past the bound a stale value may be sent after a newer one: an annoyance, not a loss. */
        if (rare->newer_count >= SESSION_NEWER_MAX)
            return;
        if (rare->newer_count * 4 >= rare->newer_capacity * 3 && !newer_grow(rare))
            return;
        rare->newer_count++;
    }
    struct newer_topic *cell = newer_cell(rare, topic_hash);
    /* What comes for certain counts alone; what may be lost makes the note one that may be, so that nothing is missed for its sake. */
    if (connection == 0 && cell->connection != 0)
        *cell = (struct newer_topic){0};
    cell->topic_hash = topic_hash;
    cell->connection = connection;
    if (msg->retained_number > cell->retained_number) {
        cell->retained_before = cell->retained_number;
        cell->retained_number = msg->retained_number;
    }
    if (msg->receive_wall_ns >= cell->receive_wall_ns) {
        cell->receive_wall_ns = msg->receive_wall_ns;
        cell->tick = tick;
    }
}

void session_forget_newer(struct session *sess, uint64_t topic_hash, const struct msg *msg)
{
    if (!sess->rare || sess->rare->newer_count == 0)
        return;
    struct newer_topic *cell = newer_cell(sess->rare, topic_hash | 1);
    if (msg->retained_number != 0 && msg->retained_number == cell->retained_number)
        cell->retained_number = cell->retained_before;
    if (msg->receive_wall_ns == cell->receive_wall_ns) {
        cell->receive_wall_ns = 0;
        cell->tick = SESSION_TICK_NONE;
    }
}

bool session_has_newer(const struct session *sess, uint64_t topic_hash, const struct msg *retained, uint64_t since, uint32_t connection)
{
    if (!sess->rare || sess->rare->newer_count == 0)
        return false;
    const struct newer_topic *cell = newer_cell(sess->rare, topic_hash | 1);
    if (cell->topic_hash == 0 || (cell->connection != 0 && cell->connection != connection))
        return false;
    if (retained->retained_number && cell->retained_number > retained->retained_number)
        return true;
    bool is_same = retained->retained_number && cell->retained_number == retained->retained_number;
    return cell->tick >= since && (is_same || cell->receive_wall_ns > retained->receive_wall_ns);
}

struct pending_request *session_find_pending(const struct session *sess, uint64_t id)
{
    for (struct pending_request *request = sess->rare ? sess->rare->pending : NULL; request; request = request->next)
        if (request->id == id)
            return request;
    return NULL;
}

void session_remove_pending(struct session *sess, uint64_t id)
{
    if (!sess->rare)
        return;
    for (struct pending_request **link = &sess->rare->pending; *link; link = &(*link)->next) {
        struct pending_request *request = *link;
        if (request->id != id)
            continue;
        *link = request->next;
        pending_free(request);
        break;
    }
    session_rare_trim(sess);
}
