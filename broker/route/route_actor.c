/* Requests are answered at once; what may be long, the scan of the retained topics for a new subscription, becomes a job that runs a slice
 * at a time, round robin, between other work. A job whose receiver's ring is full keeps the value in its hand and waits.
 *
 * A retained PUBLISH may have asked the tree before a subscription was added and arrive here after: neither the tree nor the scan has it.
 * So a job stays open until nothing like that can come any more, and what comes meanwhile goes to it: (1) a shard draws the PUBLISH's
 * number, then asks the tree, then posts it, all in one step, and numbers are drawn in one order with our look at them; (2) if after adding
 * the subscription all numbers drawn so far have arrived here, every later PUBLISH finds the subscription in the tree; (3) otherwise each
 * shard is asked once (a round), and what it sends behind its answer has found the subscription in the tree.
 *
 * What a slice finds goes into the job's batch and from there, in order, to the subscription's home; a batch is never larger than the
 * credit. When a body in it is on disk, all such of the batch are asked for in one request, and the batch goes on with the answer: values
 * before the first that was left unread for size are sent, and the others asked for again. A job with bodies asked for or in hand holds one
 * of few read slots. Before a value is sent that had to wait, the index is asked whether it still is its topic's value; if not, it is left
 * out: by (1) to (3) the subscription is given whatever came to the index after it was added. So too with a body that is gone, because the
 * store saw a newer value of the topic before we did: that one is on its way here and was drawn before the subscription was added (3) or
 * after (2). */
#include "broker/route/route_actor.h"

#include <stdlib.h>

#include "broker/actor/msg.h"
#include "broker/actor/op_backlog.h"
#include "broker/actor/store_read.h"
#include "broker/mqtt/topic.h"
#include "broker/route/retained.h"
#include "broker/route/route_stats.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/list.h"

#define SLICES_PER_WORK 16                  /* of all scans together, then requests get their turn: SUBACKs do not wait for others' scans */
#define SWEEP_BUDGET 256                    /* topics looked at for expiry, each SWEEP_SPACING */
#define SWEEP_SPACING_NS 100000000          /* 0.1 s: a million topics are seen in seven minutes; scans check expiry by themselves */
#define WAIT_SPACING_NS 1000000             /* 1 ms: for a full ring to drain, or readers to leave what was replaced */
#define LET_GO_BUDGET 1024                  /* messages looked at, each step: a checkpoint may bring a hundred thousand */
#define FORGET_SPACING_NS 1000000000        /* shards are asked once a second while removals are remembered */
#define REASON_NO_SUBSCRIPTION_EXISTED 0x11 /* [MQTT-3.11.3-2] */
#define REASON_QUOTA_EXCEEDED 0x97
#define REASON_ERROR 0x80 /* from here on reasons are refusals */
#define RETAIN_NEVER 2
#define RETAIN_IF_NEW 1

/* A value found and not yet sent. */
struct batch_item {
    uint64_t number;
    uint64_t sequence; /* msg NULL: its body is to be read; 0 = left out */
    struct msg *msg;   /* shared (ref) */
};

#define NO_SLOT ROUTE_READS_MAX

/* What a job has found and not yet sent: in order. Own block, there only while it holds something. */
struct batch {
    uint32_t next, count; /* items before next are done */
    uint32_t slot;        /* of actor->read_slots; NO_SLOT = none */
    bool is_asked;        /* the reader has not answered yet */
    bool has_waited;      /* since it was filled the index may have changed */
    struct batch_item items[STORE_READ_MAX];
};

/* A right to have bodies asked for or in hand. The ticket of a request is its slot: there is one under way at most. */
struct read_slot {
    struct scan_job *job; /* NULL: it ended before the answer came, or the slot is free */
    bool is_taken, is_asked;
    mono_ns asked_ns;
};

/* The retained values of the filters of one SUBSCRIBE that are still to be sent. */
struct scan_job {
    struct list_node node;
    struct route_request *request; /* a copy: the original is the reply */
    uint32_t filter_index;
    struct retained_scan *scan; /* of filters[filter_index]; NULL = not begun */
    struct batch *batch;        /* NULL = all that was found is sent */
    uint32_t round;             /* shards that have not answered it may still send what the tree did not know */
    bool settled;               /* no such thing can come */
    uint32_t credit;            /* values that may still be sent before the session's home asks for more */
};

struct route_actor {
    struct topic_tree *tree;
    struct retained *retained;
    struct route_limits limits;
    const struct route_io *io;
    void *io_arg;
    struct op_backlog backlog;
    struct list_node jobs;
    struct read_slot read_slots[ROUTE_READS_MAX];
    uint32_t read_slots_taken;
    _Atomic uint64_t *retained_counter;
    uint64_t retained_arrived;           /* numbers that came here, also those drawn for nothing */
    uint64_t passed[ACTOR_SHARDS_MAX];   /* no retained number below this comes from that shard any more */
    uint32_t answered[ACTOR_SHARDS_MAX]; /* newest round that the shard has answered */
    uint32_t round;                      /* newest begun; rounds are compared by difference and may wrap */
    uint16_t answers_missing;
    uint16_t shard_count;
    int64_t next_ask_ns, next_sweep_ns, now_mono_ns;
    struct route_stats stats;
};

static bool post(void *arg, actor_id to, const struct op *op)
{
    struct route_actor *actor = arg;
    return actor->io->post(actor->io_arg, to, op);
}

static void retained_ref(void *msg) { msg_ref(msg); }
static void retained_unref(void *msg) { msg_unref(msg); }
static uint64_t retained_sequence(const void *msg)
{
    /* acquire: what the publisher's shard did before it named the message is done */
    return atomic_load_explicit(&((const struct msg *)msg)->sequence, memory_order_acquire);
}

struct route_request *route_request_new(uint32_t filter_count, size_t text_size)
{
    size_t filters_size = filter_count * sizeof(struct route_filter);
    struct route_request *request = calloc(1, sizeof *request + filters_size + text_size);
    if (!request)
        return NULL;
    request->filter_count = filter_count;
    request->filters = (struct route_filter *)(void *)(request + 1);
    request->text = (uint8_t *)(request + 1) + filters_size;
    return request;
}

void route_request_free(struct route_request *request) { free(request); }

static struct span filter_span(const struct route_request *request, const struct route_filter *filter)
{
    return span_of(request->text + filter->offset, filter->size);
}

struct route_actor *route_actor_new(struct topic_tree *tree, _Atomic uint64_t *retained_counter, uint64_t hash_key, uint16_t shard_count,
                                    const struct route_limits *limits, const struct route_io *io, void *io_arg)
{
    CHECK(shard_count > 0);
    CHECK(shard_count <= ACTOR_SHARDS_MAX);
    struct route_actor *actor = calloc(1, sizeof *actor);
    if (!actor)
        return NULL;
    *actor = (struct route_actor){
        .tree = tree, .retained_counter = retained_counter, .limits = *limits, .io = io, .io_arg = io_arg, .shard_count = shard_count};
    actor->retained_arrived = atomic_load_explicit(retained_counter, memory_order_relaxed); /* numbers of an earlier life */
    struct retained_limits bounds = {.messages_max = limits->retained_messages_max,
                                     .bytes_max = limits->retained_bytes_max,
                                     .cache_bytes_max = limits->retained_cache_bytes_max};
    struct retained_callbacks callbacks = {
        .ref = retained_ref, .unref = retained_unref, .sequence = limits->retained_on_disk ? retained_sequence : NULL};
    actor->retained = retained_new(hash_key, &bounds, &callbacks, topic_tree_epoch(tree)); /* who asks the tree asks it, too */
    if (!actor->retained) {
        free(actor);
        return NULL;
    }
    op_backlog_init(&actor->backlog);
    list_init(&actor->jobs);
    return actor;
}

/* ---- batches and the reader ---- */

static void slot_release(struct route_actor *actor, uint32_t slot)
{
    actor->read_slots[slot] = (struct read_slot){.job = NULL};
    actor->read_slots_taken--;
}

/* Slots are few, and looked for only while one is free. */
static uint32_t slot_take(struct route_actor *actor, struct scan_job *job)
{
    CHECK(actor->read_slots_taken < ROUTE_READS_MAX);
    uint32_t slot = 0;
    while (actor->read_slots[slot].is_taken)
        slot++;
    actor->read_slots[slot] = (struct read_slot){.job = job, .is_taken = true};
    actor->read_slots_taken++;
    return slot;
}

static void reads_count(struct route_actor *actor, int difference)
{
    mono_ns oldest_ns = actor->now_mono_ns;
    for (uint32_t slot = 0; slot < ROUTE_READS_MAX; slot++)
        if (actor->read_slots[slot].is_asked && actor->read_slots[slot].asked_ns < oldest_ns)
            oldest_ns = actor->read_slots[slot].asked_ns;
    uint64_t requests = actor->stats.retained_reads.messages + (uint64_t)difference;
    queue_stats_set(&actor->stats.retained_reads, requests, requests * sizeof(struct store_read), oldest_ns);
}

static void batch_free(struct route_actor *actor, struct batch *batch)
{
    if (!batch)
        return;
    for (uint32_t i = batch->next; i < batch->count; i++)
        msg_unref(batch->items[i].msg);
    if (batch->slot != NO_SLOT && batch->is_asked)
        actor->read_slots[batch->slot].job = NULL; /* released when the answer comes */
    else if (batch->slot != NO_SLOT)
        slot_release(actor, batch->slot);
    free(batch);
}

/* What a scan found, into the job's batch. False: that was the last that the credit allows. */
static bool batch_visit(void *arg, const struct retained_value *value)
{
    struct scan_job *job = arg;
    struct batch *batch = job->batch;
    CHECK(batch->count < STORE_READ_MAX);
    CHECK(batch->count < job->credit);
    batch->items[batch->count++] =
        (struct batch_item){.number = value->number, .sequence = value->sequence, .msg = value->msg ? msg_ref(value->msg) : NULL};
    return batch->count < job->credit && batch->count < STORE_READ_MAX;
}

static bool item_is_unread(const struct batch_item *item) { return !item->msg && item->sequence != 0; }

/* Ask for all bodies that the batch misses. False: asked already, or no slot is free. */
static bool batch_ask(struct route_actor *actor, struct scan_job *job)
{
    struct batch *batch = job->batch;
    if (batch->is_asked || (batch->slot == NO_SLOT && actor->read_slots_taken == ROUTE_READS_MAX))
        return false;
    struct store_read *read = calloc(1, sizeof *read);
    CHECK_MSG(read, "out of memory for a retained scan");
    read->kind = STORE_READ_BODIES;
    for (uint32_t i = batch->next; i < batch->count; i++)
        if (item_is_unread(&batch->items[i]))
            read->items[read->count++] = (struct store_read_item){.sequence = batch->items[i].sequence, .state = STORE_ITEM_ASKED};
    if (batch->slot == NO_SLOT)
        batch->slot = slot_take(actor, job);
    read->ticket = batch->slot;
    actor->read_slots[batch->slot].is_asked = true;
    actor->read_slots[batch->slot].asked_ns = actor->now_mono_ns;
    batch->is_asked = true;
    reads_count(actor, 1);
    struct op op = {.type = OP_STORE_READ, .from = ACTOR_ROUTE, .read = read};
    op_backlog_post(&actor->backlog, post, actor, ACTOR_READER, &op);
    return true;
}

static void read_free(struct store_read *read)
{
    for (uint32_t i = 0; i < read->count; i++)
        msg_unref(read->items[i].msg);
    free(read);
}

/* One answered item. */
static void batch_on_item(struct route_actor *actor, struct batch_item *item, struct store_read_item *answer)
{
    CHECK(answer->sequence == item->sequence);
    counter_add(&actor->stats.retained_read, answer->state != STORE_ITEM_ASKED);
    switch ((enum store_item_state)answer->state) {
    case STORE_ITEM_ASKED:
    case STORE_ITEM_KNOWN:
    case STORE_ITEM_OVER_MESSAGES:
    case STORE_ITEM_OVER_BYTES:
        return;
    case STORE_ITEM_FOUND:
        CHECK(answer->msg);
        item->msg = answer->msg;
        answer->msg = NULL;
        retained_offer(actor->retained, msg_topic(item->msg), item->number, item->msg);
        return;
    case STORE_ITEM_GONE:
        counter_inc(&actor->stats.retained_read_gone);
        item->sequence = 0;
        return;
    case STORE_ITEM_CORRUPT:
        counter_inc(&actor->stats.retained_read_corrupt);
        item->sequence = 0;
        return;
    }
    UNREACHABLE();
}

static void on_read_done(struct route_actor *actor, struct store_read *read)
{
    CHECK(read->ticket < ROUTE_READS_MAX);
    uint32_t slot = (uint32_t)read->ticket;
    CHECK(actor->read_slots[slot].is_asked);
    actor->read_slots[slot].is_asked = false;
    reads_count(actor, -1);
    struct scan_job *job = actor->read_slots[slot].job;
    if (job) {
        struct batch *batch = job->batch;
        CHECK(batch->slot == slot);
        batch->is_asked = false;
        uint32_t answered = 0;
        for (uint32_t i = batch->next; i < batch->count; i++)
            if (item_is_unread(&batch->items[i])) {
                CHECK(answered < read->count);
                batch_on_item(actor, &batch->items[i], &read->items[answered++]);
            }
        CHECK(answered == read->count);
    } else {
        slot_release(actor, slot);
    }
    read_free(read);
}

static void job_free(struct route_actor *actor, struct scan_job *job)
{
    struct queue_stats *scans = &actor->stats.scans;
    queue_stats_set(scans, scans->messages - 1, scans->bytes, scans->oldest_ns);
    if (job->scan)
        retained_scan_end(job->scan);
    batch_free(actor, job->batch);
    list_remove(&job->node);
    route_request_free(job->request);
    free(job);
}

static void op_drop(const struct op *op)
{
    if (op->type == OP_ROUTE_REPLY)
        route_request_free(op->request);
    else if (op->type == OP_RETAINED_VALUE)
        msg_unref(op->retained.msg);
    else if (op->type == OP_ROUTE_RETAINED)
        msg_unref(op->retain.msg);
    else if (op->type == OP_STORE_READ)
        read_free(op->read);
    else if (op->type == OP_STORE_EXPIRED)
        free(op->expired);
}

void route_actor_free(struct route_actor *actor)
{
    if (!actor)
        return;
    while (!list_is_empty(&actor->jobs))
        job_free(actor, LIST_ENTRY(list_first(&actor->jobs), struct scan_job, node));
    op_backlog_deinit(&actor->backlog, op_drop);
    retained_free(actor->retained);
    free(actor);
}

enum err route_actor_restore_retained(struct route_actor *actor, struct span topic, uint64_t number, uint64_t sequence, uint32_t bytes,
                                      int64_t expiry_wall_ns)
{
    if (topic.size == 0 || topic.size > TOPIC_SIZE_MAX || number == 0 || sequence == 0)
        return ERR_INVALID;
    enum retained_result result = retained_restore(actor->retained, topic, number, sequence, bytes, expiry_wall_ns);
    return result == RETAINED_NOMEM ? ERR_NOMEM : ERR_OK;
}

void route_actor_set_time(struct route_actor *actor, int64_t now_mono_ns) { actor->now_mono_ns = now_mono_ns; }

struct retained *route_actor_retained(struct route_actor *actor) { return actor->retained; }

struct route_stats *route_actor_stats(struct route_actor *actor) { return &actor->stats; }

/* Add one filter; its reason becomes the granted QoS or a refusal. */
static void subscribe_filter(struct route_actor *actor, const struct route_request *request, struct route_filter *filter)
{
    struct subscriber subscriber = {
        .number = request->session.number,
        .subscription_id = filter->subscription_id,
        .shard = request->session.shard,
        .qos = filter->qos,
        .options = filter->options,
    };
    struct subscriber there;
    bool was_there = topic_tree_get(actor->tree, &there, filter_span(request, filter), subscriber.number);
    filter->is_new = !was_there;
    struct topic_tree_stats tree;
    topic_tree_get_stats(actor->tree, &tree);
    if (tree.bytes >= actor->limits.tree_bytes_max) { /* a filter of 64 KiB may have 32,768 levels and take 3 MiB */
        filter->reason = REASON_QUOTA_EXCEEDED;
        counter_inc(&actor->stats.tree_refused);
        return;
    }
    if (was_there)
        subscriber.options |= there.options & SUBSCRIBER_FULL;
    enum err err = topic_tree_add(actor->tree, NULL, filter_span(request, filter), &subscriber);
    filter->reason = err ? REASON_ERROR : filter->qos;
}

bool route_filter_wants_retained(const struct route_filter *filter)
{
    uint8_t handling = (filter->options & SUBSCRIBER_RETAIN_HANDLING_MASK) >> SUBSCRIBER_RETAIN_HANDLING_SHIFT;
    return filter->reason < REASON_ERROR && handling != RETAIN_NEVER && (handling != RETAIN_IF_NEW || filter->is_new);
}

static void send_retained(struct route_actor *actor, uint8_t type, struct msg *msg, const struct route_request *request, uint32_t index)
{
    struct op op = {
        .type = type,
        .from = ACTOR_ROUTE,
        .count = index,
        .retained = {.msg = msg, .request_id = request->id, .session = request->session},
    };
    op_backlog_post(&actor->backlog, post, actor, request->session.shard, &op);
}

static struct route_request *request_copy(const struct route_request *request)
{
    size_t text_size = 0;
    for (uint32_t i = 0; i < request->filter_count; i++)
        if (request->filters[i].offset + request->filters[i].size > text_size)
            text_size = request->filters[i].offset + request->filters[i].size;
    struct route_request *copy = route_request_new(request->filter_count, text_size);
    if (!copy)
        return NULL;
    copy->id = request->id;
    copy->session = request->session;
    memcpy(copy->filters, request->filters, request->filter_count * sizeof *copy->filters);
    memcpy(copy->text, request->text, text_size);
    return copy;
}

/* Whether every retained number drawn so far has arrived; to be asked after the tree was changed. */
static bool is_settled(const struct route_actor *actor)
{
    /* A read-modify-write, not a load: a shard that draws after it has synchronised with it, and so sees the tree as it is now. */
    return atomic_fetch_add_explicit(actor->retained_counter, 0, memory_order_acq_rel) == actor->retained_arrived;
}

/* Whether retained values are to be looked for; with none, there is nothing to look for. */
static bool is_scan_needed(const struct route_actor *actor, const struct route_request *request, bool settled)
{
    bool wanted = false;
    for (uint32_t i = 0; i < request->filter_count; i++)
        wanted |= route_filter_wants_retained(&request->filters[i]);
    struct retained_stats retained;
    retained_get_stats(actor->retained, &retained);
    return wanted && (retained.messages > 0 || !settled);
}

/* Plan the scans of a SUBSCRIBE that has been entered. NULL when no retained value is to be looked for. */
static struct scan_job *job_new(struct route_actor *actor, const struct route_request *request)
{
    bool settled = is_settled(actor);
    if (!is_scan_needed(actor, request, settled))
        return NULL;
    struct scan_job *job = calloc(1, sizeof *job);
    struct route_request *copy = request_copy(request);
    CHECK_MSG(job, "out of memory for a retained scan");
    CHECK_MSG(copy, "out of memory for a retained scan");
    job->request = copy;
    job->round = actor->round + 1;
    job->settled = settled;
    job->credit = ROUTE_RETAINED_WINDOW;
    list_node_init(&job->node);
    return job;
}

/* NULL: there is nothing to look for. */
static void job_begin(struct route_actor *actor, struct scan_job *job, const struct route_request *request)
{
    if (!job) {
        send_retained(actor, OP_RETAINED_END, NULL, request, 0);
        return;
    }
    list_push_back(&actor->jobs, &job->node);
    queue_stats_push(&actor->stats.scans, 0, actor->now_mono_ns);
}

static void on_subscribe(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++)
        if (request->filters[i].reason < REASON_ERROR)
            subscribe_filter(actor, request, &request->filters[i]);
    request->is_scan_later = request->is_scan_later && is_scan_needed(actor, request, is_settled(actor));
    bool is_later = request->is_scan_later;
    struct scan_job *job = is_later ? NULL : job_new(actor, request);
    request->is_scanned = job || is_later;
    struct op reply = {.type = OP_ROUTE_REPLY, .from = ACTOR_ROUTE, .request = request};
    struct route_request ended = {.id = request->id, .session = request->session};
    op_backlog_post(&actor->backlog, post, actor, request->session.shard, &reply);
    if (!is_later)
        job_begin(actor, job, &ended);
}

static void on_scan(struct route_actor *actor, struct route_request *request)
{
    job_begin(actor, job_new(actor, request), request);
    route_request_free(request);
}

/* What the job still has for this filter is not wanted any more. */
static void job_leave_out(struct route_actor *actor, struct scan_job *job, struct span filter)
{
    for (uint32_t i = 0; i < job->request->filter_count; i++) {
        if (!span_equal(filter_span(job->request, &job->request->filters[i]), filter))
            continue;
        job->request->filters[i].reason = REASON_ERROR;
        if (i != job->filter_index || !job->scan)
            continue;
        batch_free(actor, job->batch);
        job->batch = NULL;
        retained_scan_end(job->scan);
        job->scan = NULL;
        job->filter_index++;
    }
}

/* Nothing is added for delivery behind the answer [MQTT-3.10.4-2]: what scans have found of it is left out as well. */
static void leave_out_unsubscribed(struct route_actor *actor, struct session_ref session, struct span filter)
{
    LIST_EACH(node, &actor->jobs)
    {
        struct scan_job *job = LIST_ENTRY(node, struct scan_job, node);
        if (job->request->session.number == session.number)
            job_leave_out(actor, job, filter);
    }
}

static void on_unsubscribe(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++) {
        struct route_filter *filter = &request->filters[i];
        if (filter->reason >= REASON_ERROR)
            continue;
        bool was_there = topic_tree_remove(actor->tree, filter_span(request, filter), request->session.number);
        filter->reason = was_there ? 0 : REASON_NO_SUBSCRIPTION_EXISTED;
        leave_out_unsubscribed(actor, request->session, filter_span(request, filter));
    }
    struct op reply = {.type = OP_ROUTE_REPLY, .from = ACTOR_ROUTE, .request = request};
    op_backlog_post(&actor->backlog, post, actor, request->session.shard, &reply);
}

static void on_forget_session(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++)
        topic_tree_remove(actor->tree, filter_span(request, &request->filters[i]), request->session.number);
    LIST_EACH_SAFE(node, following, &actor->jobs)
    {
        struct scan_job *job = LIST_ENTRY(node, struct scan_job, node);
        if (job->request->session.number == request->session.number)
            job_free(actor, job);
    }
    route_request_free(request);
}

static void on_set_full(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++) {
        struct span filter = filter_span(request, &request->filters[i]);
        struct subscriber subscriber;
        if (!topic_tree_get(actor->tree, &subscriber, filter, request->session.number))
            continue;
        uint8_t kept = subscriber.options & (uint8_t)~SUBSCRIBER_FULL;
        subscriber.options = request->is_full ? kept | SUBSCRIBER_FULL : kept;
        enum err err = topic_tree_add(actor->tree, NULL, filter, &subscriber);
        /* Not set, and its home drops what does not fit; not cleared, and it would be refused for ever. */
        CHECK_MSG(!err || request->is_full, "out of memory for a subscription");
    }
    route_request_free(request);
}

static bool job_awaits(const struct route_actor *actor, const struct scan_job *job, actor_id shard)
{
    return !job->settled && (int32_t)(actor->answered[shard] - job->round) < 0;
}

/* A value that `from` may have published without knowing of the jobs' subscriptions. Those whose scan is still to come will find it there.
 */
static void give_to_jobs(struct route_actor *actor, struct msg *msg, actor_id from)
{
    LIST_EACH(node, &actor->jobs)
    {
        const struct scan_job *job = LIST_ENTRY(node, struct scan_job, node);
        const struct route_request *request = job->request;
        bool is_scanning = job->scan != NULL;
        for (uint32_t i = 0; job_awaits(actor, job, from) && i < job->filter_index + is_scanning; i++)
            if (route_filter_wants_retained(&request->filters[i]) &&
                topic_matches_filter(filter_span(request, &request->filters[i]), msg_topic(msg)))
                send_retained(actor, OP_RETAINED_VALUE, msg_ref(msg), request, i);
    }
}

static void on_retain(struct route_actor *actor, const struct op *op)
{
    struct msg *msg = op->retain.msg;
    actor->retained_arrived++;
    if (!msg)
        return;
    struct retained_reservation reserved = {.is_message = op->flag, .bytes = op->count};
    enum retained_result result =
        msg->payload_size == 0 ? retained_remove(actor->retained, msg_topic(msg), msg->retained_number) /* [MQTT-3.3.1-6], [MQTT-3.3.1-7] */
                               : retained_put(actor->retained, msg_topic(msg), msg->retained_number, msg, (uint32_t)msg_cost(msg),
                                              msg->expiry_wall_ns, &reserved);
    CHECK_MSG(result != RETAINED_NOMEM, "out of memory for a retained message"); /* it was logged, and given to its subscribers */
    counter_add(&actor->stats.retained_set, result == RETAINED_STORED);
    counter_add(&actor->stats.retained_removed, result == RETAINED_REMOVED);
    counter_add(&actor->stats.retained_superseded, result == RETAINED_SUPERSEDED);
    struct op reply = {.type = OP_ROUTE_RETAINED, .from = ACTOR_ROUTE, .retain = {.hold = op->retain.hold}};
    op_backlog_post(&actor->backlog, post, actor, op->from, &reply);
    if (result == RETAINED_STORED)
        give_to_jobs(actor, msg, op->from);
    msg_unref(msg);
}

static void on_request(struct route_actor *actor, struct route_request *request)
{
    counter_inc(&actor->stats.requests);
    switch ((enum route_kind)request->kind) {
    case ROUTE_SUBSCRIBE:
        on_subscribe(actor, request);
        return;
    case ROUTE_SCAN:
        on_scan(actor, request);
        return;
    case ROUTE_UNSUBSCRIBE:
        on_unsubscribe(actor, request);
        return;
    case ROUTE_FORGET_SESSION:
        on_forget_session(actor, request);
        return;
    case ROUTE_SET_FULL:
        on_set_full(actor, request);
        return;
    }
    UNREACHABLE();
}

static void on_pass(struct route_actor *actor, const struct op *op)
{
    CHECK(op->from < actor->shard_count);
    CHECK(op->count == actor->round);
    CHECK(actor->answers_missing > 0);
    actor->passed[op->from] = op->retain.hold;
    actor->answered[op->from] = op->count;
    actor->answers_missing--;
    uint64_t least = UINT64_MAX;
    for (uint16_t shard = 0; shard < actor->shard_count; shard++)
        if (actor->passed[shard] < least)
            least = actor->passed[shard];
    retained_forget_before(actor->retained, least);
}

static void on_more(struct route_actor *actor, const struct op *op)
{
    LIST_EACH(node, &actor->jobs)
    {
        struct scan_job *job = LIST_ENTRY(node, struct scan_job, node);
        if (job->request->id == op->retained.request_id && job->request->session.number == op->retained.session.number)
            job->credit += op->count;
    }
}

void route_actor_on_op(struct route_actor *actor, const struct op *op)
{
    if (op->type == OP_ROUTE_REQUEST)
        on_request(actor, op->request);
    else if (op->type == OP_ROUTE_RETAIN)
        on_retain(actor, op);
    else if (op->type == OP_ROUTE_PASS)
        on_pass(actor, op);
    else if (op->type == OP_RETAINED_MORE)
        on_more(actor, op);
    else if (op->type == OP_STORE_CHECKPOINT)
        retained_on_checkpoint(actor->retained, op->checkpoint.sequence);
    else if (op->type == OP_STORE_READ_DONE)
        on_read_done(actor, op->read);
    else
        UNREACHABLE();
}

/* One value to the subscription's home. False: its ring is full. */
static bool job_send_value(struct route_actor *actor, struct scan_job *job, struct msg *msg)
{
    const struct route_request *request = job->request;
    CHECK(job->credit > 0);
    struct op op = {
        .type = OP_RETAINED_VALUE,
        .from = ACTOR_ROUTE,
        .count = job->filter_index,
        .retained = {.msg = msg, .request_id = request->id, .session = request->session},
    };
    if (op_backlog_waits(&actor->backlog, request->session.shard) || !post(actor, request->session.shard, &op))
        return false;
    job->credit--;
    counter_inc(&actor->stats.retained_sent);
    return true;
}

/* Whether it still is the value of its topic. */
static bool item_is_current(const struct route_actor *actor, const struct batch_item *item, wall_ns now)
{
    struct retained_value value;
    return retained_find(actor->retained, &value, msg_topic(item->msg), now) && value.number == item->number;
}

/* Send what the batch has, as far as it is in memory and the ring takes it, and ask for what is not. True when it got ahead. */
static bool job_send_batch(struct route_actor *actor, struct scan_job *job, wall_ns now)
{
    struct batch *batch = job->batch;
    bool is_ahead = false;
    for (; batch->next < batch->count && !item_is_unread(&batch->items[batch->next]); batch->next++) {
        struct batch_item *item = &batch->items[batch->next];
        if (item->msg && batch->has_waited && !item_is_current(actor, item, now)) {
            counter_inc(&actor->stats.retained_stale);
            msg_unref(item->msg);
        } else if (item->msg && !job_send_value(actor, job, item->msg)) {
            batch->has_waited = true;
            return is_ahead;
        }
        is_ahead = true;
    }
    if (batch->next == batch->count) {
        batch_free(actor, batch);
        job->batch = NULL;
        return true;
    }
    batch->has_waited = true;
    return batch_ask(actor, job) || is_ahead;
}

/* Look at a slice of the topics of the job's filter, and send what was found. */
static void job_scan(struct route_actor *actor, struct scan_job *job, wall_ns now)
{
    const struct route_request *request = job->request;
    if (!job->scan) {
        job->scan = retained_scan_begin(actor->retained, filter_span(request, &request->filters[job->filter_index]));
        CHECK_MSG(job->scan, "out of memory for a retained scan");
    }
    job->batch = malloc(sizeof *job->batch);
    CHECK_MSG(job->batch, "out of memory for a retained scan");
    job->batch->next = job->batch->count = 0;
    job->batch->slot = NO_SLOT;
    job->batch->is_asked = job->batch->has_waited = false;
    bool more = retained_scan_step(job->scan, now, actor->limits.scan_slice, batch_visit, job);
    job_send_batch(actor, job, now);
    if (!more && !job->batch) { /* what is left in the batch goes first, under this filter's index */
        retained_scan_end(job->scan);
        job->scan = NULL;
        job->filter_index++;
    }
}

/* One slice of one job. True when it got ahead; the job may be gone then. */
static bool job_step(struct route_actor *actor, struct scan_job *job, wall_ns now)
{
    const struct route_request *request = job->request;
    if (job->batch)
        return job_send_batch(actor, job, now);
    while (job->filter_index < request->filter_count && !route_filter_wants_retained(&request->filters[job->filter_index]))
        job->filter_index++;
    if (job->filter_index == request->filter_count) {
        for (uint16_t shard = 0; shard < actor->shard_count; shard++)
            if (job_awaits(actor, job, shard))
                return false;
        send_retained(actor, OP_RETAINED_END, NULL, request, 0);
        job_free(actor, job);
        return true;
    }
    if (job->credit == 0)
        return false; /* OP_RETAINED_MORE comes when the client has taken what is on its way */
    job_scan(actor, job, now);
    return true;
}

/* Whether it can go on without an op that wakes us: only rings that drain and shards that answer are not seen. */
static bool job_waits_for_time(const struct scan_job *job)
{
    const struct batch *batch = job->batch;
    if (batch && item_is_unread(&batch->items[batch->next]))
        return false; /* for the reader's answer, to this or to the request that has the slot */
    return job->credit > 0;
}

/* Times of what is done now and then. A wall clock that was set back does not make them wait for it. */
static bool is_due(wall_ns at, wall_ns now, int64_t spacing_ns) { return now >= at || at - now > spacing_ns; }

/* A round of questions: while removals are remembered once a second, and whenever a job needs one that has not begun. */
static void ask_shards(struct route_actor *actor, wall_ns now, const struct retained_stats *retained)
{
    bool wanted = retained->tombstones > 0 && is_due(actor->next_ask_ns, now, FORGET_SPACING_NS);
    LIST_EACH(node, &actor->jobs)
    {
        const struct scan_job *job = LIST_ENTRY(node, struct scan_job, node);
        wanted |= !job->settled && job->round == actor->round + 1;
    }
    if (!wanted || actor->answers_missing)
        return;
    actor->next_ask_ns = now + FORGET_SPACING_NS;
    actor->round++;
    for (uint16_t shard = 0; shard < actor->shard_count; shard++) {
        struct op op = {.type = OP_ROUTE_ASK, .from = ACTOR_ROUTE, .count = actor->round};
        actor->answers_missing++;
        op_backlog_post(&actor->backlog, post, actor, shard, &op);
    }
}

static void stats_refresh(struct route_actor *actor, const struct retained_stats *retained)
{
    struct topic_tree_stats tree;
    topic_tree_get_stats(actor->tree, &tree);
    gauge_set(&actor->stats.retained_messages, (int64_t)retained->messages);
    gauge_set(&actor->stats.retained_bytes, (int64_t)retained->bytes);
    gauge_set(&actor->stats.retained_index_bytes, (int64_t)retained->index_bytes);
    gauge_set(&actor->stats.retained_tombstones, (int64_t)retained->tombstones);
    gauge_set(&actor->stats.retained_cached_bytes, (int64_t)retained->cache_bytes);
    gauge_set(&actor->stats.subscriptions, (int64_t)tree.subscriptions);
    gauge_set(&actor->stats.exact_filters, (int64_t)tree.exact_filters);
    gauge_set(&actor->stats.wildcard_filters, (int64_t)tree.wildcard_filters);
    gauge_set(&actor->stats.trie_nodes, (int64_t)tree.nodes);
    gauge_set(&actor->stats.tree_bytes, (int64_t)tree.bytes);
}

/* The messages that wait for the checkpoint, and since when: a message knows when it was received in wall time. */
static void window_refresh(struct route_actor *actor, wall_ns now, const struct retained_stats *retained)
{
    const struct msg *oldest = retained_window_oldest(actor->retained);
    int64_t age_ns = oldest && oldest->receive_wall_ns < now ? now - oldest->receive_wall_ns : 0;
    queue_stats_set(&actor->stats.retained_window, retained->window_messages, retained->window_bytes, actor->now_mono_ns - age_ns);
}

/* The checkpoint has it: it is to go there, too. Without memory it stays until it is replaced, or the next start. */
static void on_expired(void *arg, const struct retained_value *value)
{
    struct route_actor *actor = arg;
    if (!actor->limits.retained_on_disk)
        return;
    struct store_expired *expired = malloc(sizeof *expired + value->topic.size);
    if (!expired)
        return;
    expired->number = value->number;
    expired->topic_size = (uint32_t)value->topic.size;
    memcpy(expired->topic, value->topic.data, value->topic.size);
    struct op op = {.type = OP_STORE_EXPIRED, .from = ACTOR_ROUTE, .expired = expired};
    op_backlog_post(&actor->backlog, post, actor, ACTOR_STORE, &op);
}

int64_t route_actor_work(struct route_actor *actor, wall_ns now)
{
    unsigned slices = 0;
    bool letting_go = retained_let_go(actor->retained, LET_GO_BUDGET);
    op_backlog_flush(&actor->backlog, post, actor);
    for (uint64_t jobs = actor->stats.scans.messages; jobs > 0 && slices < SLICES_PER_WORK; jobs--) {
        struct scan_job *job = LIST_ENTRY(list_pop_front(&actor->jobs), struct scan_job, node);
        list_push_back(&actor->jobs, &job->node);
        slices += job_step(actor, job, now);
    }
    if (is_due(actor->next_sweep_ns, now, SWEEP_SPACING_NS)) {
        counter_add(&actor->stats.retained_expired, retained_sweep(actor->retained, now, SWEEP_BUDGET, on_expired, actor));
        actor->next_sweep_ns = now + SWEEP_SPACING_NS;
    }
    struct retained_stats retained;
    retained_get_stats(actor->retained, &retained);
    ask_shards(actor, now, &retained);
    stats_refresh(actor, &retained);
    window_refresh(actor, now, &retained);
    bool deferred = topic_tree_poll(actor->tree);
    if (slices > 0 || letting_go)
        return 0;
    bool waiting = deferred || actor->backlog.count > 0;
    LIST_EACH(node, &actor->jobs)
    waiting |= job_waits_for_time(LIST_ENTRY(node, struct scan_job, node));
    return waiting ? WAIT_SPACING_NS : SWEEP_SPACING_NS;
}
