#include "broker/core/waiting.h"

#include <stdlib.h>

#include "broker/core/request.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/session/queue_totals.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/position_list.h"

#define DROPS_PER_RECORD 256

/* --- lists -------------------------------------------------------------------------------------------------------------------------- */

static bool number_list_add(struct number_list *list, uint64_t number)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 64;
        uint64_t *grown = realloc(list->numbers, capacity * sizeof *grown);
        if (!grown)
            return false;
        list->numbers = grown;
        list->capacity = capacity;
    }
    list->numbers[list->count++] = number;
    return true;
}

void waiting_init(struct shard *shard) { shard->waiting = (struct waiting){.shared = {.window = &shard->stats.checkpoint_window}}; }

void waiting_deinit(struct waiting *waiting)
{
    free(waiting->listed.numbers);
    free(waiting->stuck.numbers);
    free(waiting->drops);
    *waiting = (struct waiting){0};
}

bool waiting_is_logged(const struct shard *shard, const struct session *sess) { return shard->log.pool && sess->is_named; }

bool waiting_is_restored(const struct shard *shard, uint64_t sequence) { return sequence <= shard->waiting.restored_last; }

/* The counts of a session's queue as they were, to bring shard and process up to date after a change. */
struct queue_before {
    uint32_t count;
    uint64_t bytes;
    struct queue_limits held;
};
static struct queue_before before(const struct session *sess)
{
    return (struct queue_before){.count = sess->queue.count, .bytes = sess->queue.bytes, .held = queue_held(&sess->queue)};
}

static void note_queued(struct shard *shard, int64_t count, int64_t bytes)
{
    struct queue_stats *queued = &shard->stats.queued;
    queue_stats_set(queued, queued->messages + (uint64_t)count, queued->bytes + (uint64_t)bytes,
                    queued->messages == 0 ? shard->now_mono_ns : queued->oldest_ns);
}

static void note_change(struct shard *shard, const struct session *sess, struct queue_before was)
{
    int64_t count = (int64_t)sess->queue.count - was.count, bytes = (int64_t)(sess->queue.bytes - was.bytes);
    note_queued(shard, count, bytes);
    struct queue_limits held = queue_held(&sess->queue);
    if (shard->config.queue_totals)
        queue_totals_change(shard->config.queue_totals, (int64_t)held.messages_max - was.held.messages_max,
                            (int64_t)(held.bytes_max - was.held.bytes_max));
}

static struct queue_shared *shared_of(struct shard *shard)
{
    shard->waiting.shared.now_ns = shard->now_mono_ns;
    return &shard->waiting.shared;
}

/* --- drops -------------------------------------------------------------------------------------------------------------------------- */

void waiting_log_drop(struct shard *shard, uint64_t session, uint64_t sequence, enum shard_drop reason)
{
    struct waiting *waiting = &shard->waiting;
    if (!shard->log.pool || sequence == 0)
        return;
    if (waiting->drop_count == waiting->drop_capacity) {
        uint32_t capacity = waiting->drop_capacity ? waiting->drop_capacity * 2 : 64;
        struct waiting_drop *grown = realloc(waiting->drops, capacity * sizeof *grown);
        CHECK_MSG(grown, "out of memory for messages that were dropped");
        waiting->drops = grown;
        waiting->drop_capacity = capacity;
    }
    waiting->drops[waiting->drop_count++] = (struct waiting_drop){.session = session, .sequence = sequence, .reason = (uint8_t)reason};
}

static void log_drops(struct shard *shard)
{
    struct waiting *waiting = &shard->waiting;
    uint32_t done = 0;
    while (done < waiting->drop_count) {
        const struct waiting_drop *first = &waiting->drops[done];
        uint8_t positions[DROPS_PER_RECORD * VARINT_SIZE_MAX];
        size_t size = 0;
        uint64_t last = 0;
        uint32_t end = done;
        for (; end < waiting->drop_count && end - done < DROPS_PER_RECORD; end++) {
            const struct waiting_drop *drop = &waiting->drops[end];
            if (drop->session != first->session || drop->reason != first->reason)
                break;
            size += position_list_put(positions + size, &last, drop->sequence);
        }
        struct record rec = {
            .type = RECORD_DROP, .session = first->session, .options = first->reason, .positions = span_of(positions, size)};
        if (!shard_log_has_control_room(&shard->log, record_size(&rec)))
            break;
        shard_log_control(shard, &rec);
        done = end;
    }
    waiting->drop_count -= done;
    if (done > 0 && waiting->drop_count > 0)
        memmove(waiting->drops, waiting->drops + done, waiting->drop_count * sizeof *waiting->drops);
}

/* --- in and out --------------------------------------------------------------------------------------------------------------------- */

static void read_for(struct shard *shard, struct session *sess, uint8_t ticket);

static void list_session(struct shard *shard, struct session *sess)
{
    if (!sess->queue.is_listed && waiting_is_logged(shard, sess))
        sess->queue.is_listed = number_list_add(&shard->waiting.listed, sess->number); /* or it lets go with its next message */
}

static void set_full(struct shard *shard, struct session *sess, bool is_full)
{
    if (sess->queue.is_full != is_full && request_set_full(shard, sess, is_full))
        sess->queue.is_full = is_full;
}

static struct queue_limits limits_of(const struct shard *shard)
{
    return (struct queue_limits){shard->config.limits.session_queue_messages_max, shard->config.limits.session_queue_bytes_max};
}

/* Those, or less while it owes for what all queues hold together. */
static struct queue_limits bounds_of(const struct shard *shard, const struct session *sess)
{
    struct queue_limits limits = limits_of(shard);
    return queue_bounds(&sess->queue, &limits);
}

/* Room again, a good deal of it. */
static void check_full(struct shard *shard, struct session *sess)
{
    struct queue_limits limits = limits_of(shard);
    if (sess->queue.is_full && sess->queue.count <= limits.messages_max / 4 * 3 && sess->queue.bytes <= limits.bytes_max / 4 * 3)
        set_full(shard, sess, false);
}

struct queue_item waiting_take(struct shard *shard, struct session *sess)
{
    struct queue_before was = before(sess);
    struct queue_item item = queue_pop(&sess->queue, shared_of(shard));
    note_change(shard, sess, was);
    check_full(shard, sess);
    return item;
}

static struct counter *full_cell(struct shard *shard, enum queue_verdict verdict)
{
    return verdict == QUEUE_FULL_BYTES ? &shard->stats.dropped_queue_bytes : &shard->stats.dropped_queue_full;
}
static enum shard_drop full_reason(enum queue_verdict verdict)
{
    return verdict == QUEUE_FULL_BYTES ? SHARD_dropped_queue_bytes : SHARD_dropped_queue_full;
}

/* The bounds that it went by are the session's own, or lower than those for the sake of all queues. */
static void drop_over(struct shard *shard, const struct session *sess, uint64_t sequence, enum queue_verdict verdict,
                      const struct queue_limits *bounds)
{
    struct queue_limits limits = limits_of(shard);
    enum shard_drop reason = full_reason(verdict);
    struct counter *cell = full_cell(shard, verdict);
    if (verdict == QUEUE_FULL_BYTES && bounds->bytes_max < limits.bytes_max) {
        reason = SHARD_dropped_total_bytes;
        cell = &shard->stats.dropped_total_bytes;
    } else if (verdict == QUEUE_FULL_MESSAGES && bounds->messages_max < limits.messages_max) {
        reason = SHARD_dropped_total_messages;
        cell = &shard->stats.dropped_total_messages;
    }
    counter_inc(cell);
    waiting_log_drop(shard, sess->number, sequence, reason);
}

bool waiting_keep_bounds(struct shard *shard, struct session *sess)
{
    if (shard->config.limits.queue_policy != QUEUE_DROP_OLDEST)
        return true;
    struct queue_limits bounds = bounds_of(shard, sess);
    struct queue_before was = before(sess);
    enum queue_verdict verdict;
    for (struct queue_item item; queue_pop_over(&sess->queue, shared_of(shard), &bounds, &item, &verdict);) {
        drop_over(shard, sess, item.is_wanted ? msg_sequence(item.msg) : 0, verdict, &bounds);
        msg_unref(item.msg);
    }
    note_change(shard, sess, was);
    if (verdict == QUEUE_HAS_ROOM)
        return true;
    read_for(shard, sess, WAITING_READ_COSTS);
    return false;
}

static enum queue_totals_verdict judge_totals(const struct shard *shard, const struct session *sess, size_t cost,
                                              struct queue_debt *debt_out)
{
    struct queue_totals *totals = shard->config.queue_totals;
    enum queue_policy policy = (enum queue_policy)shard->config.limits.queue_policy;
    if (!totals)
        return QUEUE_TOTALS_TAKEN;
    if (policy == QUEUE_DROP_OLDEST)
        return queue_totals_take_owing(totals, cost, queue_held(&sess->queue), debt_out);
    if (policy == QUEUE_DROP_NEWEST || !session_is_persistent(sess))
        return queue_totals_take(totals, cost);
    queue_totals_change(totals, 1, (int64_t)cost); /* taken for it before they were reached, and not to be dropped now */
    return QUEUE_TOTALS_TAKEN;
}

/* The process's own bounds. NULL: it is counted in, but for what it owes. */
static struct counter *take_totals(struct shard *shard, const struct session *sess, size_t cost, struct queue_debt *debt_out,
                                   enum shard_drop *reason_out)
{
    switch (judge_totals(shard, sess, cost, debt_out)) {
    case QUEUE_TOTALS_TAKEN:
        return NULL;
    case QUEUE_TOTALS_MESSAGES:
        *reason_out = SHARD_dropped_total_messages;
        return &shard->stats.dropped_total_messages;
    case QUEUE_TOTALS_BYTES:
        *reason_out = SHARD_dropped_total_bytes;
        return &shard->stats.dropped_total_bytes;
    }
    UNREACHABLE();
}

/* Whether the message may wait; NULL: it may. Else the counter of its drop. */
static struct counter *admit(struct shard *shard, struct session *sess, size_t cost, enum shard_drop *reason_out)
{
    struct queue_limits limits = limits_of(shard);
    enum queue_verdict verdict = queue_judge(&sess->queue, cost, &limits);
    if (verdict == QUEUE_HAS_ROOM)
        return NULL;
    enum queue_policy policy = (enum queue_policy)shard->config.limits.queue_policy;
    if (policy == QUEUE_REFUSE && queue_count(&sess->queue) > 0) /* else it is too large by itself, and nothing will leave that says so */
        set_full(shard, sess, true);
    if (policy == QUEUE_DROP_OLDEST && cost <= limits.bytes_max)
        return NULL; /* others go for it */
    if (policy == QUEUE_REFUSE && queue_may_overshoot(&sess->queue, cost, &limits))
        return NULL;
    *reason_out = full_reason(verdict);
    return full_cell(shard, verdict);
}

void waiting_add(struct shard *shard, struct session *sess, struct msg *msg, uint32_t meta, bool is_wanted)
{
    enum shard_drop reason = SHARD_dropped_no_memory;
    size_t cost = msg_cost(msg);
    struct queue_debt debt = {0};
    struct counter *cell = admit(shard, sess, cost, &reason);
    if (!cell)
        cell = take_totals(shard, sess, cost, &debt, &reason);
    struct queue_item item = {.msg = msg, .meta = meta, .is_wanted = is_wanted};
    if (!cell && !queue_push(&sess->queue, shared_of(shard), &item)) {
        reason = SHARD_dropped_no_memory;
        cell = &shard->stats.dropped_no_memory;
        if (shard->config.queue_totals)
            queue_totals_change(shard->config.queue_totals, (int64_t)debt.messages - 1, (int64_t)(debt.bytes - cost));
    }
    if (cell) {
        counter_inc(cell);
        if (sess->rare && sess->rare->newer_count > 0)
            session_forget_newer(sess, hash_span(msg_topic(msg), shard->config.hash_key), msg);
        waiting_log_drop(shard, sess->number, is_wanted ? msg_sequence(msg) : 0, reason);
        return;
    }
    msg_ref(msg);
    bool is_owed = queue_owe(&sess->queue, cost, debt);
    CHECK(is_owed);
    note_queued(shard, 1, (int64_t)cost); /* in the totals it is already */
    if (is_wanted)
        list_session(shard, sess);
    waiting_keep_bounds(shard, sess);
}

static bool let_go(struct shard *shard, struct session *sess, uint32_t *runs_left);

/* --- what is too old ---------------------------------------------------------------------------------------------------------------- */

bool waiting_is_too_old(const struct shard *shard, const struct queue_item *item)
{
    int64_t age_max_ns = shard->config.limits.queue_age_max_ns;
    if (age_max_ns == 0)
        return false;
    uint64_t sequence = msg_sequence(item->msg);
    if (item->is_wanted && sequence != 0)
        return sequence < shard->waiting.age.sequence;
    if (queue_meta_retain(item->meta)) /* a retained value was received long before it was asked for */
        return false;
    int64_t received_ns = (int64_t)item->msg->receive_steady_s * NS_PER_S;
    return received_ns != 0 && shard->now_steady_ns - received_ns > age_max_ns;
}

static void drop_old(struct shard *shard, struct session *sess)
{
    for (struct queue_item *first; (first = queue_first(&sess->queue)) != NULL && waiting_is_too_old(shard, first);) {
        struct queue_item item = waiting_take(shard, sess);
        counter_inc(&shard->stats.dropped_queue_age);
        waiting_log_drop(shard, sess->number, item.is_wanted ? msg_sequence(item.msg) : 0, SHARD_dropped_queue_age);
        msg_unref(item.msg);
    }
}

/* Whether its oldest is too old is known when it has been read. */
static void read_old(struct shard *shard, struct session *sess)
{
    const struct waiting_age *age = &shard->waiting.age;
    if (queue_oldest_unread(&sess->queue) < age->sequence && queue_oldest_unread(&sess->queue) != 0 && age->reads < WAITING_AGE_READS &&
        shard->waiting.drop_count < WAITING_AGE_DROPS)
        read_for(shard, sess, WAITING_READ_AGED);
}

static void look_at(struct shard *shard, struct session *sess)
{
    if (queue_count(&sess->queue) == 0)
        return;
    drop_old(shard, sess);
    if (sess->client)
        waiting_read(shard, sess);
    else
        read_old(shard, sess);
}

static int64_t look_interval_ns(const struct shard *shard)
{
    int64_t interval_ns = shard->config.limits.queue_age_max_ns / WAITING_AGE_SHARE;
    return interval_ns > NS_PER_S ? interval_ns : NS_PER_S;
}

int64_t waiting_next_look_ns(const struct shard *shard)
{
    const struct waiting_age *age = &shard->waiting.age;
    if (shard->config.limits.queue_age_max_ns == 0 || shard->stats.queued.messages == 0)
        return INT64_MAX;
    return age->next_ns;
}

/* A slice of a look at all sessions; true when there is more to do at once. */
static bool look_for_old(struct shard *shard)
{
    struct waiting_age *age = &shard->waiting.age;
    if (age->at == 0 && shard->now_mono_ns < waiting_next_look_ns(shard))
        return false;
    for (uint32_t budget = WAITING_AGE_PER_TURN; budget > 0 && age->at < session_table_bucket_count(&shard->sessions); budget--) {
        if (age->reads >= WAITING_AGE_READS || shard->waiting.drop_count >= WAITING_AGE_DROPS) {
            age->next_ns = shard->now_mono_ns + SHARD_RETRY_NS; /* or sooner: with an answer, or room in the log */
            return false;
        }
        for (struct session *sess = session_table_bucket(&shard->sessions, age->at++); sess; sess = sess->next_by_number)
            look_at(shard, sess);
    }
    if (age->at < session_table_bucket_count(&shard->sessions))
        return true;
    age->at = 0;
    age->next_ns = shard->now_mono_ns + look_interval_ns(shard);
    return false;
}

/* --- reading back ------------------------------------------------------------------------------------------------------------------- */

static bool inflight_must_read(struct session *sess)
{
    const struct inflight_entry *entry = inflight_next_unsent(&sess->inflight);
    return entry && !entry->has_msg && entry->state != INFLIGHT_PUBREL;
}

static void read_for(struct shard *shard, struct session *sess, uint8_t ticket)
{
    if (sess->queue.is_reading)
        return;
    bool is_inflight = sess->client && inflight_must_read(sess);
    if (!is_inflight && !queue_must_read(&sess->queue))
        return;
    struct store_read *read = calloc(1, sizeof *read);
    if (!read)
        return; /* with the next message or acknowledgement */
    if (is_inflight) {
        uint64_t sequences[STORE_READ_MAX];
        read->kind = STORE_READ_QUEUE;
        read->count = inflight_missing(&sess->inflight, sequences, STORE_READ_MAX);
        for (uint32_t i = 0; i < read->count; i++)
            read->items[i] = (struct store_read_item){.sequence = sequences[i], .state = STORE_ITEM_ASKED};
        sess->queue.is_reading = true;
    } else {
        struct queue_limits bounds = bounds_of(shard, sess);
        uint32_t over = ticket == WAITING_READ_COSTS ? queue_over(&sess->queue, &bounds) : STORE_READ_MAX;
        if (!queue_next_read(&sess->queue, read, over < STORE_READ_MAX ? over : STORE_READ_MAX)) {
            free(read);
            return; /* memory is short, too */
        }
        read->costs_only = ticket == WAITING_READ_COSTS;
    }
    read->session = sess->number;
    read->ticket = is_inflight ? WAITING_READ_INFLIGHT : ticket;
    shard->waiting.age.reads += read->ticket == WAITING_READ_AGED;
    shard_post(shard, ACTOR_READER, &(struct op){.type = OP_STORE_READ, .from = shard->config.index, .read = read});
}

void waiting_read(struct shard *shard, struct session *sess) { read_for(shard, sess, WAITING_READ_QUEUE); }

uint64_t waiting_put_back(struct shard *shard, struct session *sess, struct store_read *read, const uint32_t *metas, uint32_t *lost_out)
{
    struct queue_before was = before(sess);
    struct queue_limits bounds = bounds_of(shard, sess);
    uint64_t run = read->costs_only ? queue_on_costs(&sess->queue, shared_of(shard), read, &bounds, lost_out)
                                    : queue_on_read(&sess->queue, shared_of(shard), read, metas, lost_out);
    note_change(shard, sess, was);
    for (uint32_t i = 0; i < read->count; i++)
        if (read->items[i].state == STORE_ITEM_OVER_MESSAGES || read->items[i].state == STORE_ITEM_OVER_BYTES)
            drop_over(shard, sess, read->items[i].sequence,
                      read->items[i].state == STORE_ITEM_OVER_BYTES ? QUEUE_FULL_BYTES : QUEUE_FULL_MESSAGES, &bounds);
    check_full(shard, sess);
    return run;
}

void waiting_after_read(struct shard *shard, struct session *sess)
{
    if (!sess->client)
        drop_old(shard, sess);
    uint32_t runs_left = UINT32_MAX;
    if (sess->queue.is_run_late || (!sess->client && let_go(shard, sess, &runs_left)))
        list_session(shard, sess);
    if (!sess->client)
        read_old(shard, sess);
}

/* --- the checkpoint ----------------------------------------------------------------------------------------------------------------- */

/* and_window: of what is in memory, too. Returns whether there was one, and more may be made. */
static bool post_runs(struct shard *shard, struct session *sess, bool and_window, uint32_t *runs_left)
{
    struct queue_shared *shared = shared_of(shard);
    bool is_any = false;
    for (; *runs_left > 0 && queue_has_run(&sess->queue, shared, and_window); is_any = true, --*runs_left) {
        struct store_run *run = malloc(sizeof *run);
        if (!run)
            break; /* the tail stays long */
        if (!queue_take_run(&sess->queue, shared, and_window, inflight_sequence_max(&sess->inflight), run)) {
            free(run);
            break;
        }
        shard_post(shard, ACTOR_STORE,
                   &(struct op){.type = OP_STORE_RUN, .from = shard->config.index, .run = {.session_number = sess->number, .run = run}});
    }
    return is_any && *runs_left > 0;
}

/* Returns whether the session stays listed; with *runs_left 0 it is not done, and the same again goes on. */
static bool let_go(struct shard *shard, struct session *sess, uint32_t *runs_left)
{
    bool is_online = sess->client != NULL;
    sess->queue.is_run_late = false;
    /* While it is over its bounds what came last stays in memory: so there is never more than twice as much as they say, and what has to
     * go is written down as little as can be. */
    bool is_within = waiting_keep_bounds(shard, sess);
    (void)queue_forget_posted(&sess->queue, shared_of(shard));
    bool is_cut = queue_may_cut(&sess->queue, shared_of(shard), is_online);
    bool is_left = !is_within || queue_settle(&sess->queue, shared_of(shard), is_online);
    while (is_cut && post_runs(shard, sess, is_within, runs_left) && is_within)
        is_left = queue_settle(&sess->queue, shared_of(shard), is_online);
    is_left |= queue_has_posted(&sess->queue);
    if (!is_online) {
        is_left |= inflight_let_go(&sess->inflight, shard->waiting.shared.checkpoint);
        if (!sess->queue.is_reading)
            inflight_pack(&sess->inflight);
    }
    if (is_online)
        waiting_read(shard, sess);
    else if (sess->inflight.is_packed || queue_is_scattered(&sess->queue)) /* what most have is small as it is, and quicker */
        queue_pack(&sess->queue);
    return is_left;
}

static void walk_begin(struct waiting *waiting)
{
    waiting->walk_checkpoint = waiting->shared.checkpoint;
    waiting->walk_at = waiting->walk_keep = 0;
    waiting->walk_end = waiting->listed.count;
}

/* A slice of the round; true when there is more. */
static bool walk(struct shard *shard)
{
    struct waiting *waiting = &shard->waiting;
    struct number_list *list = &waiting->listed;
    uint32_t runs_left = WAITING_RUNS_PER_TURN;
    if (waiting->walk_checkpoint == 0)
        return false;
    for (uint32_t budget = WAITING_WALK_PER_TURN; budget > 0 && waiting->walk_at < waiting->walk_end; budget--) {
        uint64_t number = list->numbers[waiting->walk_at++];
        struct session *sess = session_table_find_number(&shard->sessions, number);
        if (!sess)
            continue;
        bool is_left = let_go(shard, sess, &runs_left);
        if (runs_left == 0) {
            waiting->walk_at--;
            return true;
        }
        sess->queue.is_listed = is_left;
        if (is_left)
            list->numbers[waiting->walk_keep++] = number;
    }
    if (waiting->walk_at < waiting->walk_end)
        return true;
    memmove(list->numbers + waiting->walk_keep, list->numbers + waiting->walk_end,
            (list->count - waiting->walk_end) * sizeof *list->numbers);
    list->count -= waiting->walk_end - waiting->walk_keep;
    if (waiting->walk_checkpoint == waiting->shared.checkpoint) {
        waiting->walk_checkpoint = 0;
        return false;
    }
    walk_begin(waiting); /* it moved on meanwhile */
    return true;
}

void waiting_on_checkpoint(struct shard *shard, uint64_t sequence, uint64_t runs, uint64_t aged)
{
    struct waiting *waiting = &shard->waiting;
    waiting->shared.runs_committed = runs;
    waiting->shared.runs_before = waiting->shared.runs_posted;
    if (waiting->age.sequence < aged)
        waiting->age.sequence = aged;
    /* Two copies of one message for one session have one name: what was let go twice would come back once. */
    if (shard->config.limits.allow_duplicate_messages || sequence < waiting->shared.checkpoint)
        return;
    waiting->shared.checkpoint = sequence;
    if (waiting->walk_checkpoint == 0 && waiting->listed.count > 0)
        walk_begin(waiting);
}

void waiting_on_away(struct shard *shard, struct session *sess)
{
    inflight_trim(&sess->inflight);
    if (sess->inflight.count == 0 && sess->queue.count == 0)
        return;
    uint32_t runs_left = UINT32_MAX;
    if (let_go(shard, sess, &runs_left))
        list_session(shard, sess);
}

void waiting_on_stuck(struct shard *shard, struct session *sess)
{
    if (!sess->queue.is_stuck)
        sess->queue.is_stuck = number_list_add(&shard->waiting.stuck, sess->number); /* or an acknowledgement pumps it */
}

bool waiting_turn_end(struct shard *shard)
{
    bool is_more = walk(shard);
    is_more |= look_for_old(shard);
    if (shard->waiting.drop_count > 0)
        log_drops(shard);
    return is_more;
}

/* --- end and start ------------------------------------------------------------------------------------------------------------------ */

void waiting_forget(struct shard *shard, struct session *sess)
{
    counter_add(&shard->stats.dropped_session_ended, sess->queue.count + sess->inflight.count);
    gauge_add(&shard->stats.inflight, -(int64_t)sess->inflight.count);
    struct queue_before was = before(sess);
    queue_deinit(&sess->queue, shared_of(shard));
    note_change(shard, sess, was);
    inflight_deinit(&sess->inflight);
}

static void note_restored(struct shard *shard, uint64_t sequence)
{
    if (shard->waiting.restored_last < sequence)
        shard->waiting.restored_last = sequence;
}

/* What owed when the broker ended owes again: messages come in the order in which they came then. What its session has nothing older to pay
 * for was acknowledged, and stays, though it may be over the bounds: who owed may have had its acknowledgements on their way to the log. */
static struct queue_debt take_restored(struct shard *shard, const struct session *sess, uint32_t cost)
{
    struct queue_totals *totals = shard->config.queue_totals;
    struct queue_debt debt = {0};
    if (totals && (shard->config.limits.queue_policy != QUEUE_DROP_OLDEST ||
                   queue_totals_take_owing(totals, cost, queue_held(&sess->queue), &debt) != QUEUE_TOTALS_TAKEN))
        queue_totals_change(totals, 1, cost);
    return debt;
}

bool waiting_restore(struct shard *shard, struct session *sess, uint64_t sequence, uint32_t cost, bool is_in_run, uint64_t run_last)
{
    struct queue_debt debt = take_restored(shard, sess, cost);
    if (!queue_restore(&sess->queue, sequence, cost, is_in_run, run_last) || !queue_owe(&sess->queue, cost, debt))
        return false;            /* the start ends */
    note_queued(shard, 1, cost); /* in the totals it is already */
    note_restored(shard, sequence);
    counter_inc(&shard->stats.copies_restored);
    uint32_t runs_left = UINT32_MAX;
    if (post_runs(shard, sess, false, &runs_left) || debt.messages > 0 || debt.bytes > 0)
        list_session(shard, sess); /* until the store has committed them, and it has paid */
    return true;
}

bool waiting_restore_unpack(struct shard *shard, struct session *sess)
{
    if (!sess->inflight.is_packed)
        return true;
    list_session(shard, sess); /* which packs it again, if nothing newer does */
    return inflight_unpack(&sess->inflight);
}

bool waiting_restore_resent(struct shard *shard, struct session *sess, uint64_t sequence)
{
    if (!inflight_restore_before_later(&sess->inflight, sequence))
        return false;
    note_restored(shard, sequence);
    counter_inc(&shard->stats.copies_restored);
    gauge_add(&shard->stats.inflight, 1);
    return true;
}

bool waiting_restore_sent_in_run(struct session *sess, uint64_t sequence)
{
    struct session_rare *rare = session_rare_get(sess);
    return rare && position_list_push(&rare->sent_in_runs, sequence) == ERR_OK;
}

bool waiting_restore_sent(struct shard *shard, struct session *sess, uint64_t sequence, uint16_t packet_id, bool is_received)
{
    if (!inflight_restore(&sess->inflight, sequence, packet_id, is_received))
        return false;
    counter_inc(&shard->stats.copies_restored);
    gauge_add(&shard->stats.inflight, 1);
    return true;
}
