#include "broker/session/queue.h"

#include <stdlib.h>

#include "broker/session/item_ring.h"
#include "broker/session/late_list.h"
#include "broker/session/posted_runs.h"
#include "broker/session/queue_packed.h"
#include "common/check.h"
#include "common/position_list.h"

/* What few have; there while something is in it. */
struct item_rings {
    struct item_ring *head, *window;
    struct late_list *late;     /* came too late for the runs that there are */
    struct posted_runs *posted; /* their messages are counted in run_count as well */
    uint64_t window_bytes;
    struct queue_limits held; /* it owes what is more than that; messages_max 0: nothing */
};

struct queue_body {
    struct item_rings *rings; /* NULL = nothing of it */
    struct position_list *front, *tail;
    uint64_t run_next;      /* the next run to read has this key or a greater one; never falls */
    uint64_t run_max;       /* runs that are cut have greater positions only; 0 = there never was one */
    uint32_t run_count;     /* messages in runs */
    uint16_t reading_count; /* sequences in the request under way, out of front, posted runs or tail */
    uint16_t run_misses;
};

_Static_assert(STORE_RUN_MAX <= LATE_ADD_MAX, "the late ones of a run are added at once");
_Static_assert(sizeof(struct queue_body) <= 48, "of every session with a queue: one size class of the allocator");

/* --- rings -------------------------------------------------------------------------------------------------------------------------- */

static struct item_ring *head_of(const struct queue_body *body) { return body->rings ? body->rings->head : NULL; }
static struct item_ring *window_of(const struct queue_body *body) { return body->rings ? body->rings->window : NULL; }

static struct item_rings *rings_get(struct queue_body *body)
{
    if (!body->rings)
        body->rings = calloc(1, sizeof *body->rings);
    return body->rings;
}
static void rings_trim(struct queue_body *body)
{
    const struct item_rings *rings = body->rings;
    if (!rings || rings->head || rings->window || rings->late || rings->posted || rings->held.messages_max > 0)
        return;
    free(body->rings);
    body->rings = NULL;
}

static struct queue_item window_take(struct item_rings *rings)
{
    struct queue_item item = item_ring_take(&rings->window);
    rings->window_bytes -= msg_cost(item.msg);
    return item;
}

static void ring_free(struct item_ring *ring, struct queue_shared *shared)
{
    for (uint32_t i = 0; i < item_ring_count(ring); i++) {
        struct msg *msg = item_ring_at(ring, i)->msg;
        if (shared)
            queue_stats_pop(shared->window, msg_cost(msg), shared->window->oldest_ns);
        msg_unref(msg);
    }
    free(ring);
}

/* NULL: nothing is in memory but sequences, packed, or nothing at all. */
static struct queue_body *body_of(const struct queue *queue) { return queue->is_packed ? NULL : queue->body; }

/* --- posted runs --------------------------------------------------------------------------------------------------------------------- */

static struct posted_runs *posted_of(const struct queue_body *body) { return body->rings ? body->rings->posted : NULL; }

/* Messages in them. */
static uint32_t posted_count(const struct queue_body *body) { return posted_runs_count(posted_of(body)); }

/* One more, which the caller posts. Where memory is short none is known: they are waited for as if the store had them. */
static void posted_add(struct queue_body *body, struct queue_shared *shared, const struct store_run *run)
{
    shared->runs_posted++;
    if (rings_get(body))
        (void)posted_runs_add(&body->rings->posted, run, shared->runs_posted);
    rings_trim(body);
}

/* The first of them, as a request for its sequences. */
static void posted_take(struct queue_body *body, struct store_read *read)
{
    read->count = posted_runs_take(&body->rings->posted, read->items);
    rings_trim(body);
    read->run = read->items[0].sequence;
    body->run_next = read->run + 1;
    body->run_count -= read->count;
}

bool queue_has_posted(const struct queue *queue) { return body_of(queue) && posted_of(queue->body); }

bool queue_forget_posted(struct queue *queue, const struct queue_shared *shared)
{
    struct queue_body *body = body_of(queue);
    if (body && posted_of(body) && posted_runs_ended(posted_of(body)) <= shared->runs_committed) {
        posted_runs_free(body->rings->posted);
        body->rings->posted = NULL;
        rings_trim(body);
    }
    return queue_has_posted(queue);
}

bool queue_may_cut(const struct queue *queue, const struct queue_shared *shared, bool is_online)
{
    if (is_online && queue->count <= QUEUE_NEAR_MAX)
        return false;
    return !queue_has_posted(queue) || posted_runs_began(posted_of(queue->body)) > shared->runs_before;
}

/* --- life --------------------------------------------------------------------------------------------------------------------------- */

void queue_deinit(struct queue *queue, struct queue_shared *shared)
{
    struct queue_body *body = body_of(queue);
    if (queue->is_packed)
        free(queue->packed);
    if (body) {
        ring_free(head_of(body), shared);
        ring_free(window_of(body), shared);
        if (body->rings) {
            late_list_free(body->rings->late);
            posted_runs_free(body->rings->posted);
        }
        free(body->rings);
        position_list_free(body->front);
        position_list_free(body->tail);
        free(body);
    }
    *queue = (struct queue){0};
}

enum queue_verdict queue_judge(const struct queue *queue, size_t cost, const struct queue_limits *limits)
{
    if (queue->count + (cost > 0) > limits->messages_max)
        return QUEUE_FULL_MESSAGES;
    return queue->bytes + cost > limits->bytes_max ? QUEUE_FULL_BYTES : QUEUE_HAS_ROOM;
}

bool queue_may_overshoot(const struct queue *queue, size_t cost, const struct queue_limits *limits)
{
    uint64_t over = queue->bytes + cost > limits->bytes_max ? queue->bytes + cost - limits->bytes_max : 0;
    uint64_t bytes_max = (uint64_t)QUEUE_OVERSHOOT_MAX * cost;
    return cost <= limits->bytes_max && queue->count < (uint64_t)limits->messages_max + QUEUE_OVERSHOOT_MAX &&
           over <= (bytes_max < limits->bytes_max ? bytes_max : limits->bytes_max);
}

static uint64_t min_of(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* While it owes; NULL: it does not. */
static const struct queue_limits *debtor(const struct queue *queue)
{
    const struct item_rings *rings = !queue->is_packed && queue->body ? queue->body->rings : NULL;
    return rings && rings->held.messages_max > 0 ? &rings->held : NULL;
}

struct queue_limits queue_bounds(const struct queue *queue, const struct queue_limits *limits)
{
    const struct queue_limits *held = debtor(queue);
    if (!held)
        return *limits;
    return (struct queue_limits){.messages_max = (uint32_t)min_of(held->messages_max, limits->messages_max),
                                 .bytes_max = min_of(held->bytes_max, limits->bytes_max)};
}

struct queue_limits queue_held(const struct queue *queue)
{
    const struct queue_limits all = {.messages_max = queue->count, .bytes_max = queue->bytes};
    return queue_bounds(queue, &all);
}

/* With one more, which is in `bytes` and `messages` of what it holds, less what that owes. */
static struct queue_limits held_with(struct queue_limits held, size_t cost, struct queue_debt debt)
{
    CHECK(debt.messages <= held.messages_max);
    CHECK(debt.bytes <= held.bytes_max);
    return (struct queue_limits){.messages_max = held.messages_max + 1 - debt.messages, .bytes_max = held.bytes_max + cost - debt.bytes};
}

bool queue_owe(struct queue *queue, size_t cost, struct queue_debt debt)
{
    struct queue before = *queue;
    if (!debtor(queue) && debt.messages == 0 && debt.bytes == 0)
        return true;
    before.count--;
    before.bytes -= cost;
    struct queue_limits held = held_with(queue_held(&before), cost, debt);
    bool is_owing = held.messages_max < queue->count || held.bytes_max < queue->bytes;
    if (!rings_get(queue->body))
        return false;
    queue->body->rings->held = is_owing ? held : (struct queue_limits){0};
    rings_trim(queue->body);
    return true;
}

static struct queue_body *open_packed(const struct queue_packed *packed)
{
    struct queue_lists lists = {0};
    struct queue_body *body = calloc(1, sizeof *body);
    if (!body || !queue_packed_open(packed, &lists) || (lists.late && !rings_get(body))) {
        queue_lists_free(&lists);
        free(body);
        return NULL;
    }
    struct queue_runs runs = queue_packed_runs(packed);
    body->front = lists.front;
    body->tail = lists.tail;
    body->run_next = runs.next;
    body->run_max = runs.max;
    body->run_count = runs.count;
    body->run_misses = runs.misses;
    if (lists.late)
        body->rings->late = lists.late;
    return body;
}

/* Opened. NULL: memory is short. */
static struct queue_body *body_get(struct queue *queue)
{
    if (queue->is_packed) {
        struct queue_body *body = open_packed(queue->packed);
        if (!body)
            return NULL;
        free(queue->packed);
        queue->body = body;
        queue->is_packed = false;
    }
    if (!queue->body)
        queue->body = calloc(1, sizeof *queue->body);
    return queue->body;
}

void queue_pack(struct queue *queue)
{
    struct queue_body *body = body_of(queue);
    if (!body || head_of(body) || window_of(body) || posted_of(body) || debtor(queue) || queue->is_reading || queue_is_tail_long(queue))
        return;
    struct queue_runs runs = {.next = body->run_next, .max = body->run_max, .count = body->run_count, .misses = body->run_misses};
    struct queue_lists lists = {body->front, body->tail, body->rings ? body->rings->late : NULL};
    struct queue_packed *packed = queue_packed_new(&runs, &lists);
    if (!packed)
        return; /* it stays as it is */
    queue_lists_free(&lists);
    free(body->rings);
    free(body);
    queue->packed = packed;
    queue->is_packed = true;
}

bool queue_is_scattered(const struct queue *queue)
{
    const struct queue_body *body = body_of(queue);
    return body && (body->front || (body->rings && body->rings->late));
}

/* So many messages of so many bytes have left. What is on disk may be counted wrongly there: bytes never fall below 0, and an empty queue
 * has none. A body that had runs stays: it knows up to where they are consumed, and the store may still hold them. */
static void leave(struct queue *queue, uint32_t count, uint64_t bytes)
{
    CHECK(queue->count >= count);
    queue->count -= count;
    queue->bytes = queue->count == 0 || queue->bytes < bytes ? 0 : queue->bytes - bytes;
    const struct queue_limits *held = debtor(queue);
    if (held && queue->count <= held->messages_max && queue->bytes <= held->bytes_max) { /* paid */
        queue->body->rings->held = (struct queue_limits){0};
        rings_trim(queue->body);
    }
    if (queue->count == 0 && queue->body->run_max == 0 && !queue->is_reading) {
        CHECK(!queue->body->rings);
        CHECK(!queue->body->front);
        CHECK(!queue->body->tail);
        free(queue->body);
        queue->body = NULL;
    }
}

bool queue_push(struct queue *queue, struct queue_shared *shared, const struct queue_item *item)
{
    struct queue_body *body = body_get(queue);
    CHECK(!item->is_wanted || queue_item_sequence(item) != 0);
    if (!body || !rings_get(body) || !item_ring_put(&body->rings->window, item)) {
        if (body)
            rings_trim(body), leave(queue, 0, 0);
        return false;
    }
    queue->count++;
    queue->bytes += msg_cost(item->msg);
    body->rings->window_bytes += msg_cost(item->msg);
    queue_stats_push(shared->window, msg_cost(item->msg), shared->now_ns);
    return true;
}

/* Nothing between head and window. */
static bool is_joined(const struct queue_body *body)
{
    return !body->front && !body->tail && body->run_count == 0 && body->reading_count == 0;
}

struct queue_item *queue_first(struct queue *queue)
{
    struct queue_body *body = body_of(queue);
    if (!body)
        return NULL;
    if (head_of(body))
        return item_ring_at(head_of(body), 0);
    return window_of(body) && is_joined(body) ? item_ring_at(window_of(body), 0) : NULL;
}

struct queue_item queue_pop(struct queue *queue, struct queue_shared *shared)
{
    struct queue_body *body = queue->body;
    CHECK(queue_first(queue));
    struct queue_item item = body->rings->head ? item_ring_take(&body->rings->head) : window_take(body->rings);
    rings_trim(body);
    queue_stats_pop(shared->window, msg_cost(item.msg), shared->window->oldest_ns);
    leave(queue, 1, msg_cost(item.msg));
    return item;
}

static bool is_window_over(const struct queue_body *body, const struct queue_limits *limits)
{
    return window_of(body) && (window_of(body)->count > limits->messages_max || body->rings->window_bytes > limits->bytes_max);
}

static uint32_t count_before_window(const struct queue *queue)
{
    return queue->count - (body_of(queue) ? item_ring_count(window_of(queue->body)) : 0);
}

/* Whether the oldest has to go. The window is not let go while it has. */
static enum queue_verdict judge_oldest(const struct queue *queue, const struct queue_limits *limits)
{
    enum queue_verdict verdict = queue_judge(queue, 0, limits);
    return verdict == QUEUE_HAS_ROOM && queue->is_old_over ? QUEUE_FULL_BYTES : verdict;
}

bool queue_pop_over(struct queue *queue, struct queue_shared *shared, const struct queue_limits *limits, struct queue_item *item_out,
                    enum queue_verdict *verdict_out)
{
    if (count_before_window(queue) == 0)
        queue->is_old_over = false;
    *verdict_out = judge_oldest(queue, limits);
    if (*verdict_out == QUEUE_HAS_ROOM)
        return false;
    if (queue_first(queue)) {
        *item_out = queue_pop(queue, shared);
        return true;
    }
    if (!body_of(queue) || !is_window_over(queue->body, limits))
        return false;
    queue->is_old_over = true;
    *item_out = window_take(queue->body->rings);
    rings_trim(queue->body);
    queue_stats_pop(shared->window, msg_cost(item_out->msg), shared->window->oldest_ns);
    leave(queue, 1, msg_cost(item_out->msg));
    return true;
}

uint32_t queue_over(const struct queue *queue, const struct queue_limits *limits)
{
    uint32_t over = queue->count > limits->messages_max ? queue->count - limits->messages_max : 0;
    if (queue->bytes > limits->bytes_max) { /* as if all cost the same */
        uint64_t each = queue->bytes / queue->count + 1, by_bytes = (queue->bytes - limits->bytes_max) / each + 1;
        over = by_bytes > over ? (uint32_t)by_bytes : over;
    }
    if (queue->is_old_over && over < count_before_window(queue))
        over = count_before_window(queue);
    return over;
}

/* --- letting go --------------------------------------------------------------------------------------------------------------------- */

/* Put sequences before those of a list. False: memory is short, the list is as it was. */
static bool list_prepend(struct position_list **place, const uint64_t *sequences, uint32_t count)
{
    struct position_list *fresh = NULL;
    bool is_ok = true;
    for (uint32_t i = 0; i < count && is_ok; i++)
        is_ok = position_list_push(&fresh, sequences[i]) == ERR_OK;
    uint64_t sequence = 0;
    struct span bytes = position_list_bytes(*place);
    for (size_t offset = 0; is_ok && position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        is_ok = position_list_push(&fresh, sequence) == ERR_OK;
    if (!is_ok) {
        position_list_free(fresh);
        return false;
    }
    position_list_free(*place);
    *place = fresh;
    return true;
}

static bool list_append(struct position_list **place, const uint64_t *sequences, uint32_t count)
{
    return position_list_push_all(place, sequences, count) == ERR_OK;
}

static void let_go(struct queue_item item, struct queue_shared *shared)
{
    queue_stats_pop(shared->window, msg_cost(item.msg), shared->window->oldest_ns);
    msg_unref(item.msg);
}

/* All of the head or nothing: what stays would be before what went. */
static void let_head_go(struct queue_body *body, struct queue_shared *shared)
{
    uint64_t sequences[2 * QUEUE_HEAD_MAX] = {0};
    uint32_t count = item_ring_count(head_of(body));
    CHECK(count > 0 && count <= 2 * QUEUE_HEAD_MAX); /* an empty ring is NULL */
    for (uint32_t i = 0; i < count; i++) {
        struct queue_item *item = item_ring_at(head_of(body), i);
        if (!queue_item_is_stored(item, shared->checkpoint))
            return;
        sequences[i] = queue_item_sequence(item);
    }
    if (!list_prepend(&body->front, sequences, count))
        return; /* with the next checkpoint */
    for (uint32_t i = 0; i < count; i++)
        let_go(item_ring_take(&body->rings->head), shared);
}

/* A run can be cut from the window: without a list in between. */
static bool is_window_long(const struct queue_body *body, const struct queue_shared *shared)
{
    struct item_ring *window = window_of(body);
    return item_ring_count(window) >= STORE_RUN_MAX && !is_joined(body) && body->reading_count == 0 &&
           queue_item_is_stored(item_ring_at(window, 0), shared->checkpoint) &&
           queue_item_is_stored(item_ring_at(window, STORE_RUN_MAX - 1), shared->checkpoint);
}

bool queue_settle(struct queue *queue, struct queue_shared *shared, bool is_online)
{
    struct queue_body *body = body_of(queue);
    if (!body || !body->rings)
        return false;
    struct item_rings *rings = body->rings;
    bool is_cut = queue_may_cut(queue, shared, is_online);
    if (!is_online && rings->head && !queue->is_reading) /* what is being read comes behind the head, and before the front */
        let_head_go(body, shared);
    /* What the client gets next stays; what the store does not have, too, as long as it has a place before the tail. */
    while (rings->window && is_joined(body) && item_ring_count(rings->head) < QUEUE_HEAD_MAX &&
           (is_online || !item_ring_at(rings->window, 0)->is_wanted)) {
        if (is_online && item_ring_count(rings->head) + item_ring_count(rings->window) <= QUEUE_HEAD_MAX)
            return true;
        if (!item_ring_put(&rings->head, item_ring_at(rings->window, 0)))
            return true;
        window_take(rings);
    }
    while (rings->window && queue_item_is_stored(item_ring_at(rings->window, 0), shared->checkpoint)) {
        if (is_cut && queue_is_tail_long(queue) && is_window_long(body, shared))
            return true; /* queue_take_run() goes on with it */
        if (position_list_push(&body->tail, queue_item_sequence(item_ring_at(rings->window, 0))) != ERR_OK)
            return true;
        let_go(window_take(rings), shared);
    }
    bool is_left = rings->window || (rings->head && !is_online);
    rings_trim(body);
    return is_left;
}

static uint64_t max_of(uint64_t a, uint64_t b) { return a > b ? a : b; }

uint64_t queue_oldest_unread(const struct queue *queue)
{
    const struct queue_body *body = body_of(queue);
    uint64_t sequence = 0;
    if (queue->is_packed) {
        struct queue_runs runs = queue_packed_runs(queue->packed);
        bool is_run = runs.count > 0 && !queue_packed_has_front(queue->packed);
        return is_run ? max_of(runs.next, 1) : queue_packed_first(queue->packed);
    }
    if (!body || head_of(body))
        return 0;
    if (body->front)
        position_list_first(body->front, &sequence);
    else if (body->run_count > 0)
        sequence = max_of(body->run_next, 1);
    else
        position_list_first(body->tail, &sequence);
    return sequence;
}

bool queue_has_runs(const struct queue *queue)
{
    return queue->is_packed ? queue_packed_runs(queue->packed).count > 0 : queue->body && queue->body->run_count > 0;
}

bool queue_is_tail_long(const struct queue *queue)
{
    const struct position_list *tail = body_of(queue) ? queue->body->tail : NULL;
    return position_list_count(tail) > QUEUE_TAIL_MAX || position_list_bytes(tail).size > QUEUE_TAIL_SIZE_MAX;
}

/* The greatest sequence of what is sent before the tail when there are no runs. */
static uint64_t max_ahead(struct queue_body *body)
{
    uint64_t max = 0, sequence = 0;
    struct item_ring *head = head_of(body);
    for (uint32_t i = 0; i < item_ring_count(head); i++)
        max = max_of(max, queue_item_sequence(item_ring_at(head, i)));
    struct span bytes = position_list_bytes(body->front);
    for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        max = max_of(max, sequence);
    return max;
}

/* --- what came too late for the runs ------------------------------------------------------------------------------------------------ */

static bool list_copy(struct position_list **to, const struct position_list *from)
{
    struct span bytes = position_list_bytes(from);
    uint64_t sequence = 0;
    for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        if (position_list_push(to, sequence) != ERR_OK)
            return false;
    return true;
}

/* Put these (ascending) to the late ones. False: memory is short, nothing changed. */
static bool late_add(struct queue_body *body, const uint64_t *sequences, uint32_t count)
{
    bool is_added = rings_get(body) && late_list_add(&body->rings->late, sequences, count);
    rings_trim(body);
    return is_added;
}

/* The late ones below that sequence to the front, to its beginning or its end. Returns whether there are any. */
static bool late_to_front(struct queue_body *body, uint64_t below, bool is_first)
{
    if (!body->rings)
        return false;
    struct late_list *late = body->rings->late;
    struct position_list *moved = NULL, *front = NULL;
    uint64_t sequence;
    bool is_ok = true;
    while (is_ok && late_list_first(late, &sequence) && sequence < below) {
        is_ok = position_list_push(&moved, sequence) == ERR_OK;
        (void)late_list_pop(&late, &sequence);
    }
    if (moved)
        is_ok = is_ok && list_copy(&front, is_first ? moved : body->front) && list_copy(&front, is_first ? body->front : moved);
    CHECK_MSG(is_ok, "out of memory for a queue's positions");
    if (moved) {
        position_list_free(body->front);
        body->front = front;
        body->rings->late = late;
        rings_trim(body);
    }
    bool is_any = moved != NULL;
    position_list_free(moved);
    return is_any;
}

/* A few that are nearly in order. */
static void sort_sequences(uint64_t *sequences, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        uint64_t sequence = sequences[i];
        uint32_t at = i;
        for (; at > 0 && sequences[at - 1] > sequence; at--)
            sequences[at] = sequences[at - 1];
        sequences[at] = sequence;
    }
}

/* Of the oldest, those that may not go into a run because it is read before another that there is. False: memory is short. */
static bool take_late(struct queue_body *body, struct store_run *run)
{
    uint64_t late[STORE_RUN_MAX];
    uint32_t late_count = 0, kept = 0;
    for (uint32_t i = 0; i < run->count; i++)
        if (run->sequences[i] <= body->run_max)
            late[late_count++] = run->sequences[i];
    if (late_count > 0) {
        sort_sequences(late, late_count);
        if (!late_add(body, late, late_count))
            return false;
    }
    for (uint32_t i = 0; i < run->count && late_count > 0; i++)
        if (run->sequences[i] > body->run_max)
            run->sequences[kept++] = run->sequences[i];
    run->count = late_count > 0 ? kept : run->count;
    return true;
}

/* --- runs --------------------------------------------------------------------------------------------------------------------------- */

bool queue_has_run(const struct queue *queue, const struct queue_shared *shared, bool and_window)
{
    const struct queue_body *body = body_of(queue);
    return body && body->reading_count == 0 && (queue_is_tail_long(queue) || (and_window && is_window_long(body, shared)));
}

/* The oldest of the tail, which go into a run, and behind them those of a long window. Returns how many are of the tail. */
static uint32_t list_oldest(const struct queue_body *body, const struct queue_shared *shared, bool and_window, struct store_run *run_out)
{
    bool is_long = and_window && is_window_long(body, shared);
    uint32_t tail_count = position_list_count(body->tail), count = is_long ? tail_count : tail_count - 1;
    if (is_long)
        item_ring_sort(window_of(body), shared->checkpoint); /* so that few come too late for a run */
    uint32_t max = is_long || tail_count > 2 * STORE_RUN_MAX ? STORE_RUN_MAX : QUEUE_RUN;
    uint32_t from_tail = count < max ? count : max;
    uint64_t sequence = 0;
    struct span bytes = position_list_bytes(body->tail);
    size_t offset = 0;
    run_out->count = 0;
    while (run_out->count < from_tail) {
        enum err err = position_list_next(bytes, &offset, &sequence);
        CHECK(err == ERR_OK);
        run_out->sequences[run_out->count++] = sequence;
    }
    for (uint32_t i = 0; is_long && run_out->count < max && queue_item_is_stored(item_ring_at(window_of(body), i), shared->checkpoint); i++)
        run_out->sequences[run_out->count++] = queue_item_sequence(item_ring_at(window_of(body), i));
    return from_tail;
}

/* The oldest, which stand elsewhere now. */
static void drop_taken(struct queue_body *body, struct queue_shared *shared, uint32_t count, uint32_t from_tail)
{
    position_list_drop(&body->tail, count < from_tail ? count : from_tail);
    for (uint32_t i = from_tail; i < count; i++)
        let_go(window_take(body->rings), shared);
    rings_trim(body);
}

/* ERR_OK: a run. ERR_AGAIN: the oldest were put elsewhere, the next may be one. ERR_NOTFOUND: no run now. ERR_NOMEM. */
static enum err take_run(struct queue *queue, struct queue_shared *shared, bool and_window, uint64_t inflight_max,
                         struct store_run *run_out)
{
    struct queue_body *body = queue->body;
    if (!queue_has_run(queue, shared, and_window))
        return ERR_NOTFOUND;
    if (body->run_count == 0) /* otherwise it is all below */
        body->run_max = max_of(body->run_max, max_of(inflight_max, max_ahead(body)));
    uint32_t from_tail = list_oldest(body, shared, and_window, run_out);
    uint32_t count = run_out->count, late = 0; /* up to the last of the oldest that may not go into a run */
    for (uint32_t i = 0; i < count; i++)
        if (run_out->sequences[i] <= body->run_max)
            late = i + 1;
    if (late > 0 && body->run_count == 0) {
        /* Before the runs none is left that it could overtake. */
        if (!list_append(&body->front, run_out->sequences, late))
            return ERR_NOMEM;
        drop_taken(body, shared, late, from_tail);
        return ERR_AGAIN;
    }
    if (late > 0 && !take_late(body, run_out))
        return ERR_NOMEM;
    drop_taken(body, shared, count, from_tail);
    if (!queue_is_tail_long(queue))
        position_list_trim(&body->tail); /* many came at once */
    if (run_out->count == 0)
        return ERR_AGAIN;
    sort_sequences(run_out->sequences, run_out->count);
    body->run_max = run_out->sequences[run_out->count - 1];
    if (body->run_count == 0)
        body->run_next = max_of(body->run_next, run_out->sequences[0]);
    body->run_count += run_out->count;
    posted_add(body, shared, run_out);
    return ERR_OK;
}

bool queue_take_run(struct queue *queue, struct queue_shared *shared, bool and_window, uint64_t inflight_max, struct store_run *run_out)
{
    enum err err;
    while ((err = take_run(queue, shared, and_window, inflight_max, run_out)) == ERR_AGAIN)
        ;
    return err == ERR_OK;
}

/* --- reading back ------------------------------------------------------------------------------------------------------------------- */

bool queue_must_read(const struct queue *queue)
{
    const struct queue_body *body = body_of(queue);
    if (queue->is_packed && !queue->is_reading)
        return queue_packed_has_front(queue->packed) ||
               (queue_has_runs(queue) ? !queue->is_run_late : queue_packed_has_tail(queue->packed));
    if (!body || queue->is_reading || item_ring_count(head_of(body)) > QUEUE_HEAD_MAX / 2)
        return false;
    if (body->front || body->run_count == 0)
        return body->front || body->tail;
    return body->run_count == posted_count(body) || !queue->is_run_late;
}

bool queue_next_read(struct queue *queue, struct store_read *read, uint32_t max)
{
    struct queue_body *body = queue_must_read(queue) ? body_get(queue) : NULL;
    if (!body)
        return false;
    uint32_t room = QUEUE_HEAD_MAX - item_ring_count(head_of(body));
    max = max < room ? max : room;
    read->count = 0;
    read->run = 0;
    read->kind = STORE_READ_QUEUE;
    if (!body->front && body->run_count > posted_count(body)) {
        read->kind = STORE_READ_RUN;
        read->run = body->run_next;
    } else if (!body->front && body->run_count > 0) {
        posted_take(body, read);
        body->reading_count = (uint16_t)read->count;
    } else {
        struct position_list **list = body->front ? &body->front : &body->tail;
        for (uint64_t sequence; read->count < max && position_list_pop(list, &sequence);)
            read->items[read->count++] = (struct store_read_item){.sequence = sequence, .state = STORE_ITEM_ASKED};
        body->reading_count = (uint16_t)read->count;
    }
    queue->is_reading = true;
    return true;
}

/* What a request of a run brought. False: nothing, it is to be asked for again. */
static bool on_run(struct queue *queue, const struct store_read *read, uint32_t *lost_out)
{
    struct queue_body *body = queue->body;
    uint32_t count = 0;
    for (uint32_t i = 0; i < read->count; i++)
        count += read->items[i].state != STORE_ITEM_KNOWN;
    uint32_t posted = posted_count(body), committed = body->run_count - posted;
    uint64_t posted_first = posted_runs_first(posted_of(body));
    /* No items: a damaged one, on behind it. */
    if (read->run >= body->run_next && read->run != 0 && read->run < posted_first && count <= committed) {
        body->run_next = read->run + 1;
        body->run_count -= count;
        body->run_misses = 0;
        return true;
    }
    queue->is_run_late = true;
    if (++body->run_misses < QUEUE_RUN_MISSES_MAX)
        return false;
    *lost_out = committed;
    body->run_count = posted;
    body->run_misses = 0;
    late_to_front(body, posted_first, false);
    leave(queue, *lost_out, 0);
    return false;
}

/* Of the oldest that was asked for: whether it has to go, with so many of so many bytes that leave before it. */
static enum store_item_state judge_read(const struct queue *queue, uint32_t gone, uint64_t gone_bytes, const struct queue_limits *limits)
{
    struct queue left = *queue;
    left.count -= gone;
    left.bytes -= queue->bytes > gone_bytes ? gone_bytes : queue->bytes;
    enum queue_verdict verdict = judge_oldest(&left, limits);
    if (verdict == QUEUE_HAS_ROOM)
        return STORE_ITEM_ASKED;
    return verdict == QUEUE_FULL_MESSAGES ? STORE_ITEM_OVER_MESSAGES : STORE_ITEM_OVER_BYTES;
}

/* limits: only costs were asked for. */
static uint64_t on_answer(struct queue *queue, struct queue_shared *shared, struct store_read *read, const uint32_t *metas,
                          const struct queue_limits *limits, uint32_t *lost_out)
{
    struct queue_body *body = queue->body;
    CHECK(queue->is_reading);
    CHECK(!queue->is_packed);
    CHECK(read->count <= STORE_READ_MAX);
    *lost_out = 0;
    bool is_run = read->kind == STORE_READ_RUN, is_of_run = read->run != 0;
    CHECK(is_run || read->count == body->reading_count);
    body->reading_count = 0;
    queue->is_reading = false;
    if (is_run && !on_run(queue, read, lost_out))
        return 0;
    /* In order: behind the first that stays a sequence, all do. So does a run that late ones come before. */
    bool is_behind_late = is_of_run && late_to_front(body, read->run, true);
    uint64_t unread[STORE_READ_MAX];
    uint32_t unread_count = 0, gone = 0;
    uint64_t gone_bytes = 0;
    for (uint32_t i = 0; i < read->count; i++) {
        struct store_read_item *item = &read->items[i];
        if (item->state == STORE_ITEM_KNOWN)
            continue;
        if (limits && item->state == STORE_ITEM_FOUND) {
            bool is_oldest = unread_count == 0 && !is_behind_late;
            item->state = (uint8_t)(is_oldest ? judge_read(queue, gone, gone_bytes, limits) : STORE_ITEM_ASKED);
        }
        if (item->state != STORE_ITEM_FOUND && item->state != STORE_ITEM_ASKED) {
            gone++;
            gone_bytes += item->cost;
            continue;
        }
        struct queue_item found = {.msg = item->msg, .meta = metas ? metas[i] : 0, .is_wanted = true};
        if (item->state == STORE_ITEM_ASKED || unread_count > 0 || is_behind_late || !rings_get(body) ||
            !item_ring_put(&body->rings->head, &found)) {
            unread[unread_count++] = item->sequence;
            continue;
        }
        queue_stats_push(shared->window, msg_cost(item->msg), shared->now_ns);
        item->msg = NULL;
    }
    if (unread_count > 0) {
        bool is_ok = is_behind_late ? list_append(&body->front, unread, unread_count) : list_prepend(&body->front, unread, unread_count);
        CHECK_MSG(is_ok, "out of memory for a queue's positions");
    }
    if (is_of_run && body->run_count == 0)
        late_to_front(body, UINT64_MAX, false);
    rings_trim(body);
    if (gone > 0 || queue->count == 0)
        leave(queue, gone, gone_bytes);
    return read->run;
}

uint64_t queue_on_read(struct queue *queue, struct queue_shared *shared, struct store_read *read, const uint32_t *metas, uint32_t *lost_out)
{
    return on_answer(queue, shared, read, metas, NULL, lost_out);
}

uint64_t queue_on_costs(struct queue *queue, struct queue_shared *shared, struct store_read *read, const struct queue_limits *limits,
                        uint32_t *lost_out)
{
    return on_answer(queue, shared, read, NULL, limits, lost_out);
}

/* --- all of it ---------------------------------------------------------------------------------------------------------------------- */

static void each_of_ring(struct item_ring *ring, queue_position_fn visit, void *arg)
{
    for (uint32_t i = 0; i < item_ring_count(ring); i++)
        if (item_ring_at(ring, i)->is_wanted)
            visit(arg, queue_item_sequence(item_ring_at(ring, i)));
}

static void each_of_list(const struct position_list *list, queue_position_fn visit, void *arg)
{
    struct span bytes = position_list_bytes(list);
    uint64_t sequence = 0;
    for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        visit(arg, sequence);
}

void queue_each_position(const struct queue *queue, queue_position_fn visit, void *arg)
{
    const struct queue_body *body = body_of(queue);
    if (queue->is_packed)
        queue_packed_each(queue->packed, visit, arg);
    if (!body)
        return;
    each_of_ring(head_of(body), visit, arg);
    each_of_list(body->front, visit, arg);
    late_list_each(body->rings ? body->rings->late : NULL, visit, arg);
    each_of_list(body->tail, visit, arg);
    each_of_ring(window_of(body), visit, arg);
}

bool queue_restore(struct queue *queue, uint64_t sequence, uint32_t cost, bool is_in_run, uint64_t run_last)
{
    struct queue_body *body = body_get(queue);
    if (!body)
        return false;
    if (body->run_max < run_last) /* a run that was cut since ends above it */
        body->run_max = run_last;
    bool is_ok = true;
    if (is_in_run)
        body->run_count++;
    else if (sequence > run_last)
        is_ok = position_list_push(&body->tail, sequence) == ERR_OK;
    else if (body->run_count == 0) /* below the runs that are left: it was read from consumed ones */
        is_ok = position_list_push(&body->front, sequence) == ERR_OK;
    else
        is_ok = late_add(body, &sequence, 1);
    if (!is_ok) {
        leave(queue, 0, 0);
        return false;
    }
    queue->count++;
    queue->bytes += cost;
    return true;
}
