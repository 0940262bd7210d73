/* The session queue with a store that is an array: order, counts and bounds, whatever is let go and read back. */
#include "broker/session/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/check.h"
#include "tests/lib/check_random.h"

#define COST (sizeof(struct msg) + 5)

static struct msg *message_of(uint64_t sequence, size_t payload_size)
{
    uint8_t payload[64] = {0};
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = span_of(payload, payload_size), .qos = 1});
    CHECK(msg);
    CHECK(payload_size <= sizeof payload);
    atomic_store(&msg->sequence, sequence);
    return msg;
}
static struct msg *message(uint64_t sequence) { return message_of(sequence, 4); }

/* Three publishers on three shards: what each logs arrives in its order, and as late as it likes. */
#define PUBLISHERS 3
#define MESSAGES_MAX 60000
#define RUNS_MAX 16384
#define INFLIGHT_MAX 40

struct world {
    struct check_random random;
    struct queue queue;
    struct queue_stats window;
    struct queue_shared shared;
    uint64_t logged;                             /* sequence given last */
    uint64_t sent[PUBLISHERS][MESSAGES_MAX];     /* by each publisher */
    size_t owner[PUBLISHERS * MESSAGES_MAX + 1]; /* of a sequence: publisher * MESSAGES_MAX + index */
    size_t sent_count[PUBLISHERS], arrived[PUBLISHERS], taken[PUBLISHERS];
    bool is_gone[MESSAGES_MAX * PUBLISHERS + 1]; /* dropped on disk behind the queue's back */
    size_t inflight[INFLIGHT_MAX];               /* taken and not acknowledged: publisher * MESSAGES_MAX + index, the oldest first */
    size_t inflight_count;
    uint32_t count; /* in the queue */
    struct store_run runs[RUNS_MAX];
    enum { STORED, DROPPED, GONE } is_dropped[RUNS_MAX]; /* DROPPED: not committed yet */
    size_t run_count, committed;
    struct store_read read;
    bool is_reading, is_online;
    uint64_t reads, posted_reads, listed, gone, crashes, long_runs, packed, packed_scattered;
    /* QUEUE_DROP_OLDEST, once messages_max is not 0: costs differ, and nothing is dropped behind the queue's back. */
    struct queue_limits limits;
    uint64_t bytes;          /* in the queue */
    uint32_t restored_count; /* that an earlier life left over the bounds */
    bool is_newer_dropped;
    uint64_t dropped_in_memory, dropped_on_disk, dropped_behind, quiet;
};

static size_t payload_of(const struct world *w, uint64_t sequence) { return w->limits.messages_max ? sequence * 7 % 61 : 4; }
static size_t cost_of(const struct world *w, uint64_t sequence) { return sizeof(struct msg) + 1 + payload_of(w, sequence); }

/* By the bound it is said to go by, and not one more than has to. */
static void drops(struct world *w, uint64_t sequence, enum queue_verdict verdict)
{
    assert_int_equal(verdict, w->count > w->limits.messages_max ? QUEUE_FULL_MESSAGES : QUEUE_FULL_BYTES);
    if (w->count <= w->limits.messages_max && w->bytes <= w->limits.bytes_max) {
        assert_true(w->is_newer_dropped); /* which made the room */
        w->dropped_behind++;
    }
    assert_false(w->is_gone[sequence]);
    w->is_gone[sequence] = true;
    w->count--;
    w->bytes -= cost_of(w, sequence);
}

static bool keeps_within(struct world *w);

static void logs(struct world *w)
{
    size_t p = check_random_below(&w->random, PUBLISHERS);
    if (w->sent_count[p] == MESSAGES_MAX)
        return;
    w->owner[++w->logged] = p * MESSAGES_MAX + w->sent_count[p];
    w->sent[p][w->sent_count[p]++] = w->logged;
}

static void arrives(struct world *w)
{
    size_t p = check_random_below(&w->random, PUBLISHERS);
    if (w->arrived[p] == w->sent_count[p])
        return;
    uint64_t sequence = w->sent[p][w->arrived[p]++];
    struct queue_item item = {.msg = message_of(sequence, payload_of(w, sequence)), .meta = (uint32_t)sequence, .is_wanted = true};
    assert_true(queue_push(&w->queue, &w->shared, &item));
    w->count++;
    w->bytes += cost_of(w, sequence);
    keeps_within(w);
}

static void takes(struct world *w)
{
    const struct queue_item *first = queue_first(&w->queue);
    if (!w->is_online || !first || w->inflight_count == INFLIGHT_MAX)
        return;
    uint64_t sequence = msg_sequence(first->msg);
    struct queue_item item = queue_pop(&w->queue, &w->shared);
    assert_int_equal(item.meta, sequence);
    w->count--;
    w->bytes -= cost_of(w, sequence);
    size_t p = 0;
    for (bool is_found = false; !is_found; p += !is_found) {
        assert_true(p < PUBLISHERS);
        while (w->taken[p] < w->arrived[p] && w->is_gone[w->sent[p][w->taken[p]]])
            w->taken[p]++;
        is_found = w->taken[p] < w->arrived[p] && w->sent[p][w->taken[p]] == sequence;
    }
    w->inflight[w->inflight_count++] = p * MESSAGES_MAX + w->taken[p];
    w->taken[p]++; /* it was the publisher's next: in order, and once */
    msg_unref(item.msg);
}

static void is_acknowledged(struct world *w)
{
    if (w->inflight_count > 0)
        memmove(w->inflight, w->inflight + 1, --w->inflight_count * sizeof w->inflight[0]);
}

static uint64_t inflight_max(const struct world *w)
{
    uint64_t max = 0;
    for (size_t i = 0; i < w->inflight_count; i++) {
        uint64_t sequence = w->sent[w->inflight[i] / MESSAGES_MAX][w->inflight[i] % MESSAGES_MAX];
        max = sequence > max ? sequence : max;
    }
    return max;
}

static void cuts_runs(struct world *w, bool is_within)
{
    assert_true(w->run_count < RUNS_MAX - 1);
    while (queue_take_run(&w->queue, &w->shared, is_within, inflight_max(w), &w->runs[w->run_count])) {
        const struct store_run *run = &w->runs[w->run_count];
        for (uint32_t i = 0; i < run->count; i++) {
            assert_true(run->sequences[i] < w->shared.checkpoint);
            assert_true(i == 0 || run->sequences[i] > run->sequences[i - 1]);
        }
        for (size_t i = 0; i < w->run_count; i++)
            assert_true(w->is_dropped[i] != STORED || run->sequences[0] > w->runs[i].sequences[w->runs[i].count - 1]);
        w->long_runs += run->count == STORE_RUN_MAX;
        w->is_dropped[w->run_count++] = STORED;
    }
    assert_true(w->queue.is_reading || !queue_is_tail_long(&w->queue)); /* whatever came late */
}

static void add_position(void *arg, uint64_t sequence)
{
    uint64_t *sum = arg;
    *sum = *sum * 31 + sequence; /* in their order */
}

/* Nothing that may be asked of it changes. */
static void packs(struct world *w)
{
    uint64_t sums[2] = {0}, oldest = queue_oldest_unread(&w->queue);
    bool has_runs = queue_has_runs(&w->queue), is_scattered = queue_is_scattered(&w->queue), must_read = queue_must_read(&w->queue);
    queue_each_position(&w->queue, add_position, &sums[0]);
    queue_pack(&w->queue);
    queue_each_position(&w->queue, add_position, &sums[1]);
    assert_true(sums[0] == sums[1]);
    assert_true(queue_oldest_unread(&w->queue) == oldest);
    assert_int_equal(queue_has_runs(&w->queue), has_runs);
    assert_int_equal(queue_must_read(&w->queue), must_read);
    w->packed += w->queue.is_packed;
    w->packed_scattered += w->queue.is_packed && is_scattered;
}

static void settles(struct world *w, bool advances)
{
    if (advances)
        w->shared.checkpoint = w->logged + 1 - check_random_below(&w->random, w->logged - w->shared.checkpoint + 2);
    if (advances && check_random_chance(&w->random, 3, 4)) { /* or they came when the commit was under way */
        w->committed = w->run_count;
        w->shared.runs_committed = w->shared.runs_posted;
        for (size_t i = 0; i < w->run_count; i++)
            w->is_dropped[i] = w->is_dropped[i] == DROPPED ? GONE : w->is_dropped[i];
    }
    if (advances)
        w->shared.runs_before = w->shared.runs_posted;
    w->queue.is_run_late = false;
    bool is_within = keeps_within(w);
    assert_true(!queue_forget_posted(&w->queue, &w->shared) || w->committed < w->run_count);
    bool is_cut = queue_may_cut(&w->queue, &w->shared, w->is_online);
    if (is_within)
        queue_settle(&w->queue, &w->shared, w->is_online);
    if (is_cut)
        cuts_runs(w, is_within);
    if (!w->is_online)
        packs(w);
}

static void asks(struct world *w)
{
    if (!queue_must_read(&w->queue)) {
        /* Nothing waits for a commit: it is in memory, or can be read. */
        assert_true(w->count == 0 || queue_first(&w->queue));
        assert_false(queue_next_read(&w->queue, &w->read, STORE_READ_MAX));
        return;
    }
    w->read = (struct store_read){0};
    assert_true(queue_next_read(&w->queue, &w->read, 1 + (uint32_t)check_random_below(&w->random, STORE_READ_MAX)));
    w->is_reading = true;
}

/* Of any publisher's. */
static bool is_older_left(const struct world *w, uint64_t sequence)
{
    for (size_t p = 0; p < PUBLISHERS; p++)
        for (size_t i = w->taken[p]; i < w->arrived[p] && w->sent[p][i] != sequence; i++)
            if (!w->is_gone[w->sent[p][i]])
                return true;
    return false;
}

/* Returns whether it is; otherwise costs were asked for, if they can be. */
static bool keeps_within(struct world *w)
{
    if (w->limits.messages_max == 0)
        return true;
    enum queue_verdict verdict;
    for (struct queue_item item; queue_pop_over(&w->queue, &w->shared, &w->limits, &item, &verdict); w->dropped_in_memory++) {
        w->is_newer_dropped |= is_older_left(w, msg_sequence(item.msg));
        drops(w, msg_sequence(item.msg), verdict);
        msg_unref(item.msg);
    }
    w->is_newer_dropped &= verdict != QUEUE_HAS_ROOM;
    if (verdict == QUEUE_HAS_ROOM)
        return true;
    uint32_t over = queue_over(&w->queue, &w->limits);
    assert_true(over > 0 && over <= w->count);
    assert_true(w->queue.is_reading || !queue_first(&w->queue));
    if (!queue_must_read(&w->queue))
        return false;
    w->read = (struct store_read){.costs_only = true};
    assert_true(queue_next_read(&w->queue, &w->read, over < STORE_READ_MAX ? over : STORE_READ_MAX));
    w->is_reading = true;
    return false;
}

/* Nothing is on its way, and it is within its bounds: of each publisher the newest are left. */
static void looks_at_what_is_left(struct world *w)
{
    uint32_t count = 0;
    for (size_t p = 0; p < PUBLISHERS; p++) {
        bool is_left = false;
        for (size_t i = w->taken[p]; i < w->arrived[p]; i++) {
            assert_true(!is_left || !w->is_gone[w->sent[p][i]]);
            is_left |= !w->is_gone[w->sent[p][i]];
            count += is_left;
        }
    }
    assert_int_equal(count, w->count);
    w->quiet++;
}

static bool is_wanted(const struct world *w, uint64_t sequence)
{
    size_t p = w->owner[sequence] / MESSAGES_MAX, i = w->owner[sequence] % MESSAGES_MAX;
    return i >= w->taken[p] && i < w->arrived[p] && !w->is_gone[sequence];
}

static void is_answered(struct world *w)
{
    struct store_read *read = &w->read;
    uint32_t metas[STORE_READ_MAX] = {0}, lost, gone = 0;
    if (read->kind == STORE_READ_RUN) {
        const struct store_run *run = NULL;
        for (size_t i = 0; i < w->committed && !run; i++)
            if (w->is_dropped[i] == STORED && w->runs[i].sequences[0] >= read->run)
                run = &w->runs[i];
        assert_non_null(run);
        read->run = run ? run->sequences[0] : 0;
        for (uint32_t i = 0; run && i < run->count; i++)
            if (is_wanted(w, run->sequences[i])) /* of a run that was read before a crash */
                read->items[read->count++] = (struct store_read_item){.sequence = run->sequences[i], .state = STORE_ITEM_ASKED};
    }
    uint32_t looked_at = (uint32_t)check_random_below(&w->random, STORE_READ_MAX + 1);
    for (uint32_t i = 0; i < read->count && i < looked_at; i++) {
        struct store_read_item *item = &read->items[i];
        assert_true(item->sequence < w->shared.checkpoint);
        bool is_gone = w->limits.messages_max == 0 && check_random_chance(&w->random, 1, 50);
        item->state = is_gone ? STORE_ITEM_GONE : STORE_ITEM_FOUND;
        item->msg = is_gone || read->costs_only ? NULL : message_of(item->sequence, payload_of(w, item->sequence));
        item->cost = is_gone ? 0 : (uint32_t)cost_of(w, item->sequence);
        metas[i] = (uint32_t)item->sequence;
        w->is_gone[item->sequence] = is_gone;
        gone += is_gone;
    }
    w->count -= gone;
    w->gone += gone;
    w->reads++;
    w->posted_reads += read->kind == STORE_READ_QUEUE && read->run != 0;
    uint64_t run = read->costs_only ? queue_on_costs(&w->queue, &w->shared, read, &w->limits, &lost)
                                    : queue_on_read(&w->queue, &w->shared, read, metas, &lost);
    assert_int_equal(lost, 0);
    for (uint32_t i = 0; i < read->count; i++)
        if (read->items[i].state == STORE_ITEM_OVER_MESSAGES || read->items[i].state == STORE_ITEM_OVER_BYTES) {
            drops(w, read->items[i].sequence, read->items[i].state == STORE_ITEM_OVER_BYTES ? QUEUE_FULL_BYTES : QUEUE_FULL_MESSAGES);
            w->dropped_on_disk++;
        }
    for (size_t i = 0; i < w->run_count && run; i++)
        if (w->runs[i].sequences[0] == run && w->is_dropped[i] == STORED)
            w->is_dropped[i] = DROPPED;
    for (uint32_t i = 0; i < read->count; i++)
        msg_unref(read->items[i].msg);
    w->is_reading = false;
    if (keeps_within(w) && w->limits.messages_max > 0 && check_random_chance(&w->random, 1, 20))
        looks_at_what_is_left(w);
}

static bool is_in(const struct store_run *run, uint64_t sequence)
{
    for (uint32_t i = 0; i < run->count; i++)
        if (run->sequences[i] == sequence)
            return true;
    return false;
}

/* What is left of the runs; its end. */
static uint64_t finds_runs(struct world *w)
{
    bool is_late = check_random_chance(&w->random, 1, 2); /* the crash came before that commit */
    uint64_t last = 0;
    w->run_count = w->committed;
    for (size_t i = 0; i < w->run_count; i++) {
        if (w->is_dropped[i] == DROPPED)
            w->is_dropped[i] = is_late ? STORED : GONE;
        if (w->is_dropped[i] == STORED)
            last = w->runs[i].sequences[w->runs[i].count - 1];
    }
    return last;
}

/* All that was logged is in the checkpoint, and what is in flight is sent again. */
static void crashes(struct world *w)
{
    while (w->inflight_count > 0) {
        size_t p = w->inflight[--w->inflight_count] / MESSAGES_MAX;
        w->taken[p] = w->inflight[w->inflight_count] % MESSAGES_MAX;
    }
    queue_deinit(&w->queue, &w->shared);
    w->shared.checkpoint = w->logged + 1;
    w->shared.runs_posted = w->shared.runs_committed = w->shared.runs_before = 0;
    w->is_reading = w->is_online = false;
    uint64_t last = finds_runs(w), first = UINT64_MAX;
    for (size_t p = 0; p < PUBLISHERS; p++) {
        w->arrived[p] = w->sent_count[p];
        if (w->taken[p] < w->arrived[p] && w->sent[p][w->taken[p]] < first)
            first = w->sent[p][w->taken[p]];
    }
    w->count = 0;
    w->bytes = 0;
    size_t at = 0;
    for (uint64_t sequence = first; sequence <= w->logged && first != UINT64_MAX; sequence++) {
        if (!is_wanted(w, sequence))
            continue;
        while (at < w->committed && (w->is_dropped[at] != STORED || w->runs[at].sequences[w->runs[at].count - 1] < sequence))
            at++;
        assert_true(
            queue_restore(&w->queue, sequence, (uint32_t)cost_of(w, sequence), at < w->committed && is_in(&w->runs[at], sequence), last));
        w->count++;
        w->bytes += cost_of(w, sequence);
        cuts_runs(w, true);
    }
    w->restored_count = w->count;
    w->crashes++;
}

static void step(struct world *w, uint64_t phase)
{
    switch (check_random_below(&w->random, 12)) {
    case 0:
    case 1:
        logs(w);
        break;
    case 2:
    case 3:
    case 4:
        if (phase % 4 != 1) /* or all of it late */
            arrives(w);
        break;
    case 5:
    case 6:
    case 7:
        if (phase % 3 != 0) /* or the client is too slow */
            takes(w);
        for (int i = 0; i < INFLIGHT_MAX && phase % 3 == 2; i++) { /* or gets to the end */
            is_acknowledged(w);
            takes(w);
        }
        break;
    case 8:
        if (check_random_chance(&w->random, 1, 5))
            settles(w, true);
        break;
    case 9:
        if (!w->is_online)
            packs(w);
        if (!w->is_reading)
            asks(w);
        break;
    case 10:
        if (w->is_reading)
            is_answered(w);
        break;
    case 11:
        is_acknowledged(w);
        if (check_random_chance(&w->random, 1, 200))
            crashes(w);
        if (check_random_chance(&w->random, 1, 100)) {
            w->is_online = !w->is_online;
            if (check_random_chance(&w->random, 1, 2))
                w->shared.checkpoint = w->logged + 1; /* all of it */
            settles(w, false);
        }
        break;
    }
}

static void count_position(void *arg, uint64_t sequence)
{
    struct world *w = arg;
    assert_true(sequence > 0 && sequence <= w->logged);
    w->listed++;
}

static struct world *new_world(uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    check_random_init(&w->random, seed);
    w->shared = (struct queue_shared){.window = &w->window};
    return w;
}

/* Everything that waits comes, in its order. */
static void comes_to_its_end(struct world *w)
{
    /* Every position has its place: in memory, in a run, or in the request. */
    w->listed = 0;
    queue_each_position(&w->queue, count_position, w);
    assert_true(w->listed <= w->count);
    w->is_online = true;
    for (size_t p = 0; p < PUBLISHERS; p++)
        while (w->arrived[p] < w->sent_count[p])
            arrives(w);
    for (int i = 0; i < 1000000 && w->count > 0; i++) {
        if (w->is_reading)
            is_answered(w);
        else
            asks(w);
        takes(w);
        is_acknowledged(w);
        if (i % 50 == 0)
            settles(w, true);
    }
    assert_int_equal(w->count, 0);
    for (size_t p = 0; p < PUBLISHERS; p++) {
        while (w->taken[p] < w->arrived[p] && w->is_gone[w->sent[p][w->taken[p]]])
            w->taken[p]++;
        assert_int_equal(w->taken[p], w->sent_count[p]); /* none was lost */
    }
    assert_int_equal(w->queue.bytes, 0);
    assert_int_equal(w->window.messages, 0);
    queue_deinit(&w->queue, &w->shared);
    free(w);
}

/* What some worlds, each of its own draws, have met together. */
struct seen {
    uint64_t runs, gone, crashes, long_runs, packed, packed_scattered;
};

static void sees(struct seen *seen, const struct world *w)
{
    seen->runs += w->run_count;
    seen->gone += w->gone;
    seen->crashes += w->crashes;
    seen->long_runs += w->long_runs;
    seen->packed += w->packed;
    seen->packed_scattered += w->packed_scattered;
}

static bool is_all_seen(const struct seen *seen)
{
    return seen->runs > 20 && seen->gone > 0 && seen->crashes > 10 && seen->long_runs > 10 && seen->packed > 20 &&
           seen->packed_scattered > 0;
}

static void order_is_kept_whatever_is_let_go(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(9);
    struct seen seen = {0};
    for (uint32_t round = 0; round < 30 && !is_all_seen(&seen); round++) {
        struct world *w = new_world(seed + round);
        for (uint32_t i = 0; i < 300000; i++) {
            step(w, i / 5000);
            assert_int_equal(queue_count(&w->queue), w->count);
            assert_true(w->queue.bytes >= w->count * COST || w->count == 0);
            assert_true(w->window.messages <= w->count);
            assert_int_equal(w->window.bytes, w->window.messages * COST);
        }
        sees(&seen, w);
        comes_to_its_end(w);
    }
    assert_true(is_all_seen(&seen));
}

/* Whatever of them is on disk, in runs that are not committed, or being read. */
static void the_newest_are_left_when_the_oldest_go(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(10);
    for (uint32_t by_bytes = 0; by_bytes < 2; by_bytes++) {
        struct world *w = new_world(seed + by_bytes);
        w->limits = (struct queue_limits){.messages_max = 90, .bytes_max = by_bytes ? 8000 : UINT64_MAX};
        for (uint32_t i = 0; i < 300000; i++) {
            step(w, i / 5000);
            assert_int_equal(queue_count(&w->queue), w->count);
            assert_int_equal(w->queue.bytes, w->bytes);
            assert_true(w->count <= 2 * w->limits.messages_max + w->restored_count);
        }
        assert_true(w->dropped_in_memory > 1000);
        assert_true(w->dropped_on_disk > 1000);
        assert_true(w->dropped_behind == 0 || by_bytes);
        assert_true(w->quiet > 100);
        assert_true(w->crashes > 10);
        assert_true(w->packed > 100);
        comes_to_its_end(w);
    }
}

/* Though there is room for it, in bytes, when the newer one has gone. */
static void a_small_old_one_goes_before_a_large_newer_one(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 2};
    struct queue queue = {0};
    size_t cost = sizeof(struct msg) + 1;
    const struct queue_limits limits = {.messages_max = 10, .bytes_max = 3 * cost + 10};
    for (uint64_t s = 1; s <= 5; s++) {
        struct queue_item item = {.msg = message_of(s, s == 2 ? 60 : 0), .is_wanted = true};
        assert_true(queue_push(&queue, &shared, &item));
        queue_settle(&queue, &shared, false);
    }
    assert_int_equal(window.messages, 4); /* 1 is on disk */
    struct queue_item item;
    enum queue_verdict verdict;
    assert_true(queue_pop_over(&queue, &shared, &limits, &item, &verdict));
    assert_int_equal(msg_sequence(item.msg), 2);
    assert_int_equal(verdict, QUEUE_FULL_BYTES);
    msg_unref(item.msg);
    assert_false(queue_pop_over(&queue, &shared, &limits, &item, &verdict));
    assert_int_equal(verdict, QUEUE_FULL_BYTES);
    assert_int_equal(queue_over(&queue, &limits), 1);
    struct store_read read = {.costs_only = true};
    uint32_t lost;
    assert_true(queue_next_read(&queue, &read, 1));
    assert_int_equal(read.items[0].sequence, 1);
    read.items[0].state = STORE_ITEM_FOUND;
    read.items[0].cost = (uint32_t)cost;
    assert_int_equal(queue_on_costs(&queue, &shared, &read, &limits, &lost), 0);
    assert_int_equal(read.items[0].state, STORE_ITEM_OVER_BYTES);
    assert_false(queue_pop_over(&queue, &shared, &limits, &item, &verdict));
    assert_int_equal(verdict, QUEUE_HAS_ROOM);
    assert_int_equal(queue_count(&queue), 3);
    assert_int_equal(queue.bytes, 3 * cost);
    queue_deinit(&queue, &shared);
}

/* What owes may be on disk, all of it, as after a start: it stays owed until it is paid, and the newest is left. */
static void what_is_on_disk_owes_too(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window};
    const struct queue_limits limits = {.messages_max = 100, .bytes_max = 10000};
    struct queue queue = {0};
    for (uint64_t s = 1; s <= 5; s++) {
        assert_true(queue_restore(&queue, s, 100, false, 0));
        struct queue_debt debt = {.messages = s > 2, .bytes = s == 5 ? 50 : 0};
        assert_true(queue_owe(&queue, 100, debt));
    }
    assert_int_equal(queue_held(&queue).messages_max, 2);
    assert_int_equal(queue_held(&queue).bytes_max, 450);
    queue_settle(&queue, &shared, false);
    queue_pack(&queue);
    assert_false(queue.is_packed);
    struct queue_limits bounds = queue_bounds(&queue, &limits);
    struct queue_item item;
    enum queue_verdict verdict;
    assert_false(queue_pop_over(&queue, &shared, &bounds, &item, &verdict));
    assert_int_equal(verdict, QUEUE_FULL_MESSAGES);
    assert_int_equal(queue_over(&queue, &bounds), 3);
    struct store_read read = {.costs_only = true};
    uint32_t lost;
    assert_true(queue_next_read(&queue, &read, 3));
    for (uint32_t i = 0; i < read.count; i++) {
        read.items[i].state = STORE_ITEM_FOUND;
        read.items[i].cost = 100;
    }
    assert_int_equal(queue_on_costs(&queue, &shared, &read, &bounds, &lost), 0);
    for (uint32_t i = 0; i < read.count; i++)
        assert_int_equal(read.items[i].state, STORE_ITEM_OVER_MESSAGES);
    assert_int_equal(queue_count(&queue), 2);
    bounds = queue_bounds(&queue, &limits);
    assert_int_equal(bounds.messages_max, 100); /* paid */
    assert_int_equal(queue_held(&queue).bytes_max, 200);
    queue_pack(&queue);
    assert_true(queue.is_packed);
    queue_deinit(&queue, &shared);
}

static void bounds_are_on_messages_and_bytes(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window};
    struct queue queue = {0};
    struct msg *msg = message(1);
    struct queue_item item = {.msg = msg};
    struct queue_limits two = {.messages_max = 2, .bytes_max = UINT64_MAX};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(queue_judge(&queue, COST, &two), QUEUE_HAS_ROOM);
        msg_ref(msg);
        assert_true(queue_push(&queue, &shared, &item));
    }
    assert_int_equal(queue_judge(&queue, COST, &two), QUEUE_FULL_MESSAGES);
    assert_int_equal(queue_judge(&queue, 0, &two), QUEUE_HAS_ROOM);
    struct queue_limits bytes = {.messages_max = 100, .bytes_max = 3 * COST - 1};
    assert_int_equal(queue_judge(&queue, COST, &bytes), QUEUE_FULL_BYTES);
    bytes.bytes_max++;
    assert_int_equal(queue_judge(&queue, COST, &bytes), QUEUE_HAS_ROOM);
    assert_int_equal(window.messages, 2);
    queue_deinit(&queue, &shared);
    assert_int_equal(window.messages, 0);
    assert_int_equal(atomic_load(&msg->refs), 1);
    msg_unref(msg);
}

static void nothing_is_allocated_while_it_is_empty(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window};
    struct queue queue = {0};
    for (int round = 0; round < 3; round++) {
        for (uint64_t i = 1; i <= 100; i++)
            assert_true(queue_push(&queue, &shared, &(struct queue_item){.msg = message(i), .is_wanted = true}));
        for (uint64_t i = 1; i <= 100; i++) {
            struct queue_item item = queue_pop(&queue, &shared);
            assert_int_equal(msg_sequence(item.msg), i);
            msg_unref(item.msg);
        }
        assert_null(queue.body);
        assert_int_equal(queue.bytes, 0);
    }
}

/* What has no copy on disk stays, and does not hold what is behind it. */
static void what_the_store_does_not_have_stays(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window};
    struct queue queue = {0};
    assert_true(queue_push(&queue, &shared, &(struct queue_item){.msg = message(0)}));
    for (uint64_t i = 1; i <= 10; i++)
        assert_true(queue_push(&queue, &shared, &(struct queue_item){.msg = message(i), .is_wanted = true}));
    shared.checkpoint = 6;
    assert_true(queue_settle(&queue, &shared, false)); /* 6..10 are left */
    assert_int_equal(window.messages, 6);
    shared.checkpoint = 11;
    queue_settle(&queue, &shared, false);
    assert_int_equal(window.messages, 1);
    assert_int_equal(msg_sequence(queue_first(&queue)->msg), 0);
    assert_int_equal(queue_count(&queue), 11);
    queue_deinit(&queue, &shared);
}

static void push_wanted(struct queue *queue, struct queue_shared *shared, uint64_t first, uint64_t last)
{
    for (uint64_t s = first; s <= last; s++)
        assert_true(queue_push(queue, shared, &(struct queue_item){.msg = message(s), .is_wanted = true}));
    queue_settle(queue, shared, false);
}

/* Otherwise nobody knew after a crash that what is in flight, ahead or being read comes before the run. */
static void a_run_is_above_all_that_is_sent_before_it(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1000};
    struct queue queue = {0};
    struct store_run run;
    push_wanted(&queue, &shared, 1, 30); /* late: 50 is in flight */
    assert_false(queue_take_run(&queue, &shared, true, 50, &run));
    push_wanted(&queue, &shared, 60, 80);
    assert_true(queue_take_run(&queue, &shared, true, 50, &run));
    assert_int_equal(run.sequences[0], 60);
    struct store_read read = {0};
    for (int i = 0; i < 2; i++) { /* 1 to 30 stand before it */
        uint32_t metas[STORE_READ_MAX] = {0}, lost;
        assert_true(queue_next_read(&queue, &read, 15));
        assert_int_equal(read.items[0].sequence, 1 + i * 15);
        for (int k = 0; k < 15; k++)
            read.items[k].state = STORE_ITEM_GONE;
        queue_on_read(&queue, &shared, &read, metas, &lost);
    }
    assert_true(queue_next_read(&queue, &read, 15));
    assert_int_equal(read.kind, STORE_READ_QUEUE); /* as it is not committed: by its sequences, and whole */
    assert_int_equal(read.run, 60);
    assert_int_equal(read.count, run.count);
    queue_deinit(&queue, &shared);

    push_wanted(&queue, &shared, 100, 105);
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    push_wanted(&queue, &shared, 1, 30);
    assert_false(queue_take_run(&queue, &shared, true, 0, &run)); /* 100 to 105 are being read */
    uint32_t metas[STORE_READ_MAX] = {0}, lost;
    for (uint32_t i = 0; i < read.count; i++) {
        read.items[i].msg = message(read.items[i].sequence);
        read.items[i].state = STORE_ITEM_FOUND;
    }
    queue_on_read(&queue, &shared, &read, metas, &lost);
    assert_false(queue_take_run(&queue, &shared, true, 0, &run)); /* they are in the head */
    push_wanted(&queue, &shared, 110, 130);
    assert_true(queue_take_run(&queue, &shared, true, 0, &run));
    assert_int_equal(run.sequences[0], 110);
    queue_deinit(&queue, &shared);
}

static void it_is_made_again_from_what_the_store_says(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1000};
    struct queue queue = {0};
    /* 5, 7: of a run that was consumed; 10..41: in a run; 20: came too late for it; 50..60: newer. */
    const uint64_t before[] = {5, 7};
    for (size_t i = 0; i < 2; i++)
        assert_true(queue_restore(&queue, before[i], 100, false, 41));
    for (uint64_t s = 10; s <= 41; s++)
        assert_true(queue_restore(&queue, s, 100, s != 20, 41));
    for (uint64_t s = 50; s <= 60; s++)
        assert_true(queue_restore(&queue, s, 100, false, 41));
    assert_int_equal(queue_count(&queue), 45);
    assert_int_equal(queue.bytes, 4500);
    struct store_read read = {0};
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    assert_int_equal(read.kind, STORE_READ_QUEUE);
    assert_int_equal(read.count, 2);
    assert_int_equal(read.items[0].sequence, 5);
    uint32_t metas[STORE_READ_MAX] = {0}, lost;
    read.items[0].state = read.items[1].state = STORE_ITEM_GONE;
    assert_int_equal(queue_on_read(&queue, &shared, &read, metas, &lost), 0);
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    assert_int_equal(read.kind, STORE_READ_RUN);
    assert_int_equal(read.run, 0);
    read.run = 9;
    read.count = 32;
    read.items[0] = (struct store_read_item){.sequence = 9, .state = STORE_ITEM_KNOWN}; /* in flight since the start: never in here */
    for (uint32_t i = 1; i < 32; i++)
        read.items[i] = (struct store_read_item){.sequence = 9 + i + (i > 10), .state = STORE_ITEM_GONE};
    assert_int_equal(queue_on_read(&queue, &shared, &read, metas, &lost), 9);
    assert_int_equal(queue_count(&queue), 12);
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    assert_int_equal(read.kind, STORE_READ_QUEUE);
    assert_int_equal(read.count, 1);
    assert_int_equal(read.items[0].sequence, 20);
    read.items[0].state = STORE_ITEM_GONE;
    assert_int_equal(queue_on_read(&queue, &shared, &read, metas, &lost), 0);
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    assert_int_equal(read.count, 11);
    assert_int_equal(read.items[0].sequence, 50);
    assert_int_equal(read.items[10].sequence, 60);
    queue_deinit(&queue, &shared);
}

/* Answer the next request with everything found, and take what may be sent then. Returns how many were taken. */
static uint32_t read_and_take(struct queue *queue, struct queue_shared *shared, const struct store_run *run, bool *is_run_out,
                              uint64_t *taken_out)
{
    struct store_read read = {0};
    uint32_t metas[STORE_READ_MAX] = {0}, lost, taken = 0;
    assert_true(queue_next_read(queue, &read, STORE_READ_MAX));
    *is_run_out = read.kind == STORE_READ_RUN;
    if (*is_run_out) {
        assert_true(read.run <= run->sequences[0]);
        read.run = run->sequences[0];
        read.count = run->count;
    }
    for (uint32_t i = 0; i < read.count; i++) {
        if (*is_run_out)
            read.items[i].sequence = run->sequences[i];
        read.items[i].msg = message(read.items[i].sequence);
        read.items[i].state = STORE_ITEM_FOUND;
    }
    queue_on_read(queue, shared, &read, metas, &lost);
    for (uint32_t i = 0; i < read.count; i++)
        msg_unref(read.items[i].msg);
    while (queue_first(queue)) {
        struct queue_item item = queue_pop(queue, shared);
        taken_out[taken++] = msg_sequence(item.msg);
        msg_unref(item.msg);
    }
    return taken;
}

static uint32_t expect_range(uint64_t *at, uint64_t first, uint64_t last)
{
    for (uint64_t s = first; s <= last; s++)
        *at++ = s;
    return (uint32_t)(last - first + 1);
}

/* They stand aside, behind the runs with what came before them from their shard, and the tail stays short however long the session is away;
 * after a restart as well. */
static void late_ones_do_not_hold_the_tail(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 100000};
    static struct store_run runs[64];
    for (int is_restarted = 0; is_restarted < 2; is_restarted++) {
        struct queue queue = {0};
        uint32_t count = 0;
        push_wanted(&queue, &shared, 100, 120);
        push_wanted(&queue, &shared, 200, 220);
        while (queue_take_run(&queue, &shared, true, 0, &runs[count]))
            count++;
        assert_int_equal(count, 3);
        assert_int_equal(runs[2].sequences[0], 203);
        push_wanted(&queue, &shared, 150, 151);
        push_wanted(&queue, &shared, 50, 51);
        push_wanted(&queue, &shared, 300, 500);
        while (queue_take_run(&queue, &shared, true, 0, &runs[count]))
            count++;
        assert_false(queue_is_tail_long(&queue));
        assert_true(queue_forget_posted(&queue, &shared));
        shared.runs_committed = shared.runs_posted;
        assert_false(queue_forget_posted(&queue, &shared));
        uint64_t wanted[300], taken[300] = {0};
        uint32_t wanted_count = expect_range(wanted, 50, 51);
        wanted_count += expect_range(wanted + wanted_count, 100, 120);
        wanted_count += expect_range(wanted + wanted_count, 200, 202);
        wanted_count += expect_range(wanted + wanted_count, 150, 151);
        wanted_count += expect_range(wanted + wanted_count, 203, 220);
        wanted_count += expect_range(wanted + wanted_count, 300, 500);
        assert_int_equal(queue_count(&queue), wanted_count);
        if (is_restarted) {
            uint64_t run_last = runs[count - 1].sequences[runs[count - 1].count - 1];
            queue_deinit(&queue, &shared);
            for (uint64_t s = 50; s <= 500; s++) {
                bool is_wanted = false, is_in_run = false;
                for (uint32_t i = 0; i < wanted_count; i++)
                    is_wanted |= wanted[i] == s;
                for (uint32_t r = 0; r < count; r++)
                    for (uint32_t i = 0; i < runs[r].count; i++)
                        is_in_run |= runs[r].sequences[i] == s;
                assert_true(!is_wanted || queue_restore(&queue, s, 1, is_in_run, run_last));
            }
        }
        uint32_t taken_count = 0, next_run = 0;
        bool is_run;
        for (; queue_count(&queue) > 0; next_run += is_run)
            taken_count += read_and_take(&queue, &shared, &runs[next_run], &is_run, taken + taken_count);
        assert_int_equal(next_run, count);
        assert_int_equal(taken_count, wanted_count);
        assert_memory_equal(taken, wanted, wanted_count * sizeof wanted[0]);
        queue_deinit(&queue, &shared);
    }
}

/* Blocks of two shards that cross on their way: they become runs all the same, and next to none stand aside. */
static void many_that_came_at_once_become_runs_in_order(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1};
    struct queue queue = {0};
    struct store_run run;
    push_wanted(&queue, &shared, 1, 100);
    for (uint64_t block = 1; block < 100; block += 2) {
        push_wanted(&queue, &shared, (block + 1) * 100 + 1, (block + 2) * 100);
        push_wanted(&queue, &shared, block * 100 + 1, (block + 1) * 100);
    }
    assert_int_equal(window.messages, 10100);
    shared.checkpoint = 8901;
    uint64_t last = 0, taken = 0;
    for (int i = 0; i < 2; i++) {
        assert_true(queue_settle(&queue, &shared, false));
        while (queue_take_run(&queue, &shared, true, 0, &run)) {
            for (uint32_t k = 0; k < run.count; k++, last = run.sequences[k - 1])
                assert_true(run.sequences[k] > last && run.sequences[k] < 8901);
            taken += run.count;
        }
    }
    assert_int_equal(window.messages, 10100 - 8900);
    assert_true(taken > 8800);
    queue_deinit(&queue, &shared);
}

struct in_order {
    uint64_t sequences[100];
    uint32_t count;
};
static void note_in_order(void *arg, uint64_t sequence)
{
    struct in_order *noted = arg;
    assert_true(noted->count < 100);
    noted->sequences[noted->count++] = sequence;
}

/* What is newer may have been logged before a copy of a retained value that it waited for. */
static void a_retained_copy_keeps_its_place_in_a_long_window(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1};
    struct queue queue = {0};
    struct store_run run;
    push_wanted(&queue, &shared, 200, 240);
    assert_true(queue_push(&queue, &shared, &(struct queue_item){.msg = message(300), .meta = queue_meta(1, true, 0), .is_wanted = true}));
    push_wanted(&queue, &shared, 100, 140);
    shared.checkpoint = 1000;
    assert_true(queue_settle(&queue, &shared, false));
    assert_true(queue_take_run(&queue, &shared, true, 0, &run));
    assert_int_equal(run.sequences[0], 200);
    assert_int_equal(run.sequences[STORE_RUN_MAX - 1], 231);
    struct in_order left = {0};
    queue_each_position(&queue, note_in_order, &left);
    assert_int_equal(left.count, 9 + 1 + 41);
    for (uint32_t i = 0; i < left.count; i++)
        assert_int_equal(left.sequences[i], i < 9 ? 232 + i : i == 9 ? 300 : 100 + i - 10);
    queue_deinit(&queue, &shared);
}

static void a_run_that_is_never_found_is_given_up(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1000};
    struct queue queue = {0};
    for (uint64_t s = 1; s <= 32; s++)
        assert_true(queue_restore(&queue, s, 100, true, 32));
    assert_true(queue_restore(&queue, 40, 100, false, 32));
    uint32_t lost = 0, tries = 0;
    while (lost == 0) {
        struct store_read read = {0};
        queue.is_run_late = false;
        assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
        assert_int_equal(queue_on_read(&queue, &shared, &read, NULL, &lost), 0);
        assert_false(queue_must_read(&queue) && lost == 0); /* before the next checkpoint */
        tries++;
    }
    assert_int_equal(tries, QUEUE_RUN_MISSES_MAX);
    assert_int_equal(lost, 32);
    assert_int_equal(queue_count(&queue), 1);
    queue_deinit(&queue, &shared);
}

/* Its own messages are given up with the last of the runs, not those behind it. */
static void a_damaged_run_does_not_hold_the_others(void **state)
{
    (void)state;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = 1000};
    struct queue queue = {0};
    for (uint64_t s = 1; s <= 20; s++)
        assert_true(queue_restore(&queue, s, 100, true, 20));
    uint32_t metas[STORE_READ_MAX] = {0}, lost = 0;
    struct store_read read = {0};
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    read.run = 1; /* and nothing in it */
    assert_int_equal(queue_on_read(&queue, &shared, &read, metas, &lost), 1);
    read = (struct store_read){0};
    assert_true(queue_next_read(&queue, &read, STORE_READ_MAX));
    assert_int_equal(read.kind, STORE_READ_RUN);
    assert_int_equal(read.run, 2);
    read.run = 11;
    read.count = 10;
    for (uint32_t i = 0; i < 10; i++)
        read.items[i] = (struct store_read_item){.sequence = 11 + i, .state = STORE_ITEM_FOUND, .msg = message(11 + i)};
    assert_int_equal(queue_on_read(&queue, &shared, &read, metas, &lost), 11);
    assert_int_equal(lost, 0);
    assert_int_equal(msg_sequence(queue_first(&queue)->msg), 11);
    assert_int_equal(queue_count(&queue), 20);
    queue_deinit(&queue, &shared);
}

static void meta_holds_what_it_is_given(void **state)
{
    (void)state;
    for (uint8_t qos = 0; qos < 3; qos++)
        for (int retain = 0; retain < 2; retain++) {
            uint32_t meta = queue_meta(qos, retain, 268435455);
            assert_int_equal(queue_meta_qos(meta), qos);
            assert_int_equal(queue_meta_retain(meta), retain);
            assert_int_equal(meta & QUEUE_META_ID_MASK, 268435455);
            assert_false(meta & QUEUE_META_IS_SET);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_kept_whatever_is_let_go),
        cmocka_unit_test(the_newest_are_left_when_the_oldest_go),
        cmocka_unit_test(a_small_old_one_goes_before_a_large_newer_one),
        cmocka_unit_test(what_is_on_disk_owes_too),
        cmocka_unit_test(bounds_are_on_messages_and_bytes),
        cmocka_unit_test(nothing_is_allocated_while_it_is_empty),
        cmocka_unit_test(what_the_store_does_not_have_stays),
        cmocka_unit_test(a_run_is_above_all_that_is_sent_before_it),
        cmocka_unit_test(it_is_made_again_from_what_the_store_says),
        cmocka_unit_test(late_ones_do_not_hold_the_tail),
        cmocka_unit_test(many_that_came_at_once_become_runs_in_order),
        cmocka_unit_test(a_retained_copy_keeps_its_place_in_a_long_window),
        cmocka_unit_test(a_run_that_is_never_found_is_given_up),
        cmocka_unit_test(a_damaged_run_does_not_hold_the_others),
        cmocka_unit_test(meta_holds_what_it_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
