/* Requests are answered at once; what may be long, the scan of the retained topics for a new subscription, becomes a job that runs a slice
 * at a time, round robin, between other work. A job whose receiver's ring is full keeps the value in its hand and waits.
 *
 * A retained PUBLISH may have asked the tree before a subscription was added and arrive here after: neither the tree nor the scan has it.
 * So a job stays open until nothing like that can come any more, and what comes meanwhile goes to it: (1) a shard draws the PUBLISH's
 * number, then asks the tree, then posts it, all in one step, and numbers are drawn in one order with our look at them; (2) if after adding
 * the subscription all numbers drawn so far have arrived here, every later PUBLISH finds the subscription in the tree; (3) otherwise each
 * shard is asked once (a round), and what it sends behind its answer has found the subscription in the tree. */
#include "broker/core/route_actor.h"

#include <stdlib.h>

#include "broker/core/msg.h"
#include "broker/core/op_backlog.h"
#include "broker/core/route_stats.h"
#include "broker/mqtt/topic.h"
#include "broker/route/retained.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/list.h"

#define SLICES_PER_WORK 16                  /* of all scans together, then requests get their turn: SUBACKs do not wait for others' scans */
#define SWEEP_BUDGET 64                     /* topics looked at for expiry, each SWEEP_SPACING */
#define SWEEP_SPACING_NS 100000000          /* 0.1 s: a million topics are seen once in half an hour; scans check expiry by themselves */
#define WAIT_SPACING_NS 1000000             /* 1 ms: for a full ring to drain, or readers to leave what was replaced */
#define FORGET_SPACING_NS 1000000000        /* shards are asked once a second while removals are remembered */
#define REASON_NO_SUBSCRIPTION_EXISTED 0x11 /* [MQTT-3.11.3-2] */
#define REASON_QUOTA_EXCEEDED 0x97
#define REASON_ERROR 0x80 /* from here on reasons are refusals */
#define RETAIN_NEVER 2
#define RETAIN_IF_NEW 1

/* The retained values of the filters of one SUBSCRIBE that are still to be sent. */
struct scan_job {
    struct list_node node;
    struct route_request *request; /* a copy: the original is the reply */
    uint32_t filter_index;
    struct retained_scan *scan; /* of filters[filter_index]; NULL = not begun */
    struct msg *in_hand;        /* shared (ref): found its receiver's ring full */
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
    actor->retained = retained_new(hash_key, &(struct retained_limits){limits->retained_messages_max, limits->retained_bytes_max},
                                   &(struct retained_callbacks){retained_ref, retained_unref});
    if (!actor->retained) {
        free(actor);
        return NULL;
    }
    op_backlog_init(&actor->backlog);
    list_init(&actor->jobs);
    return actor;
}

static void job_free(struct route_actor *actor, struct scan_job *job)
{
    struct queue_stats *scans = &actor->stats.scans;
    queue_stats_set(scans, scans->messages - 1, scans->bytes, scans->oldest_ns);
    if (job->scan)
        retained_scan_end(job->scan);
    msg_unref(job->in_hand);
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

void route_actor_set_time(struct route_actor *actor, int64_t now_mono_ns) { actor->now_mono_ns = now_mono_ns; }

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
    bool was_there = false;
    struct topic_tree_stats tree;
    topic_tree_get_stats(actor->tree, &tree);
    if (tree.bytes >= actor->limits.tree_bytes_max) { /* a filter of 64 KiB may have 32,768 levels and take 3 MiB */
        filter->reason = REASON_QUOTA_EXCEEDED;
        counter_inc(&actor->stats.tree_refused);
        return;
    }
    enum err err = topic_tree_add(actor->tree, &was_there, filter_span(request, filter), &subscriber);
    filter->is_new = !was_there;
    filter->reason = err ? REASON_ERROR : filter->qos;
}

static bool filter_wants_retained(const struct route_filter *filter)
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

/* Plan the scans of a SUBSCRIBE that has been entered. NULL when no retained value is to be looked for. */
static struct scan_job *job_new(struct route_actor *actor, const struct route_request *request)
{
    bool wanted = false;
    for (uint32_t i = 0; i < request->filter_count; i++)
        wanted |= filter_wants_retained(&request->filters[i]);
    struct retained_stats retained;
    retained_get_stats(actor->retained, &retained);
    bool settled = is_settled(actor);
    if (!wanted || (retained.messages == 0 && settled)) /* with none, there is nothing to look for */
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

static void on_subscribe(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++)
        if (request->filters[i].reason < REASON_ERROR)
            subscribe_filter(actor, request, &request->filters[i]);
    struct scan_job *job = job_new(actor, request);
    struct op reply = {.type = OP_ROUTE_REPLY, .from = ACTOR_ROUTE, .request = request};
    struct route_request ended = {.id = request->id, .session = request->session};
    op_backlog_post(&actor->backlog, post, actor, request->session.shard, &reply);
    if (!job) {
        send_retained(actor, OP_RETAINED_END, NULL, &ended, 0);
        return;
    }
    list_push_back(&actor->jobs, &job->node);
    queue_stats_push(&actor->stats.scans, 0, actor->now_mono_ns);
}

static void on_unsubscribe(struct route_actor *actor, struct route_request *request)
{
    for (uint32_t i = 0; i < request->filter_count; i++) {
        struct route_filter *filter = &request->filters[i];
        if (filter->reason >= REASON_ERROR)
            continue;
        bool was_there = topic_tree_remove(actor->tree, filter_span(request, filter), request->session.number);
        filter->reason = was_there ? 0 : REASON_NO_SUBSCRIPTION_EXISTED;
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
            if (filter_wants_retained(&request->filters[i]) &&
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
    enum retained_result result =
        msg->payload_size == 0
            ? retained_remove(actor->retained, msg_topic(msg), msg->retained_number) /* [MQTT-3.3.1-6], [MQTT-3.3.1-7] */
            : retained_put(actor->retained, msg_topic(msg), msg->retained_number, msg, (uint32_t)msg_cost(msg), msg->expiry_wall_ns);
    bool refused = result == RETAINED_FULL || result == RETAINED_NOMEM;
    counter_add(&actor->stats.retained_set, result == RETAINED_STORED);
    counter_add(&actor->stats.retained_removed, result == RETAINED_REMOVED);
    counter_add(&actor->stats.retained_superseded, result == RETAINED_SUPERSEDED);
    counter_add(&actor->stats.retained_refused, refused);
    struct op reply = {.type = OP_ROUTE_RETAINED, .flag = refused, .from = ACTOR_ROUTE, .retain = {.hold = op->retain.hold}};
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
    case ROUTE_UNSUBSCRIBE:
        on_unsubscribe(actor, request);
        return;
    case ROUTE_FORGET_SESSION:
        on_forget_session(actor, request);
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
    else
        UNREACHABLE();
}

/* The visitor of a slice: one value to the subscription's home. False when no other may follow now: the ring is full (the value stays in
 * the job's hand) or its credit is used up. */
struct slice {
    struct route_actor *actor;
    struct scan_job *job;
};

static bool job_send_value(struct route_actor *actor, struct scan_job *job)
{
    const struct route_request *request = job->request;
    if (job->credit == 0 || op_backlog_waits(&actor->backlog, request->session.shard))
        return false;
    struct op op = {
        .type = OP_RETAINED_VALUE,
        .from = ACTOR_ROUTE,
        .count = job->filter_index,
        .retained = {.msg = job->in_hand, .request_id = request->id, .session = request->session},
    };
    if (!post(actor, request->session.shard, &op))
        return false;
    job->in_hand = NULL;
    job->credit--;
    counter_inc(&actor->stats.retained_sent);
    return job->credit > 0;
}

static bool slice_visit(void *arg, const struct retained_value *value)
{
    struct slice *slice = arg;
    slice->job->in_hand = msg_ref(value->msg);
    return job_send_value(slice->actor, slice->job);
}

/* One slice of one job. True when it got ahead; the job may be gone then. */
static bool job_step(struct route_actor *actor, struct scan_job *job, wall_ns now)
{
    const struct route_request *request = job->request;
    if (job->in_hand && !job_send_value(actor, job))
        return false;
    while (job->filter_index < request->filter_count && !filter_wants_retained(&request->filters[job->filter_index]))
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
    if (!job->scan) {
        job->scan = retained_scan_begin(actor->retained, filter_span(request, &request->filters[job->filter_index]));
        CHECK_MSG(job->scan, "out of memory for a retained scan");
    }
    struct slice slice = {actor, job};
    bool more = retained_scan_step(job->scan, now, actor->limits.scan_slice, slice_visit, &slice);
    if (!more) {
        /* A value that found the ring full is still in hand: it goes first, under this filter's index. */
        if (job->in_hand && !job_send_value(actor, job))
            return false;
        retained_scan_end(job->scan);
        job->scan = NULL;
        job->filter_index++;
    }
    return true;
}

/* A round of questions: while removals are remembered once a second, and whenever a job needs one that has not begun. */
static void ask_shards(struct route_actor *actor, wall_ns now, const struct retained_stats *retained)
{
    bool wanted = retained->tombstones > 0 && now >= actor->next_ask_ns;
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
    gauge_set(&actor->stats.subscriptions, (int64_t)tree.subscriptions);
    gauge_set(&actor->stats.exact_filters, (int64_t)tree.exact_filters);
    gauge_set(&actor->stats.wildcard_filters, (int64_t)tree.wildcard_filters);
    gauge_set(&actor->stats.trie_nodes, (int64_t)tree.nodes);
    gauge_set(&actor->stats.tree_bytes, (int64_t)tree.bytes);
}

int64_t route_actor_work(struct route_actor *actor, wall_ns now)
{
    unsigned slices = 0;
    op_backlog_flush(&actor->backlog, post, actor);
    for (uint64_t jobs = actor->stats.scans.messages; jobs > 0 && slices < SLICES_PER_WORK; jobs--) {
        struct scan_job *job = LIST_ENTRY(list_pop_front(&actor->jobs), struct scan_job, node);
        list_push_back(&actor->jobs, &job->node);
        slices += job_step(actor, job, now);
    }
    if (now >= actor->next_sweep_ns) {
        retained_sweep(actor->retained, now, SWEEP_BUDGET);
        actor->next_sweep_ns = now + SWEEP_SPACING_NS;
    }
    struct retained_stats retained;
    retained_get_stats(actor->retained, &retained);
    ask_shards(actor, now, &retained);
    stats_refresh(actor, &retained);
    bool deferred = topic_tree_poll(actor->tree);
    if (slices > 0)
        return 0;
    bool waiting = deferred || actor->backlog.count > 0;
    LIST_EACH(node, &actor->jobs)
    waiting |= LIST_ENTRY(node, struct scan_job, node)->credit > 0;
    return waiting ? WAIT_SPACING_NS : SWEEP_SPACING_NS;
}
