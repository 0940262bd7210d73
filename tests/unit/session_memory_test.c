/* What a session that is away costs: its memory does not depend on the length of its queue. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/route/topic_tree.h"
#include "broker/session/session_table.h"
#include "common/check.h"
#include "tests/lib/check_random.h"

#define SESSIONS 20000
#define QUEUED 300
#define IN_FLIGHT 20
#define READ_RUNS 3
#define FAR (1u << 16)         /* 1.3e8 between two of a session: five bytes each in a list */
#define BYTES_MAX 400          /* of anonymous memory, with a client id of 24 bytes and one filter of 30, its place in the tree included */
#define BYTES_OUT_OF_ORDER 430 /* in flight, queued, and read ahead, and nothing is known of how far apart they are: 16 bits of each */

/* The allocator's own count, size classes included; not there under a sanitizer. */
extern int mallctl(const char *name, void *old, size_t *old_size, void *fresh, size_t fresh_size) __attribute__((weak));

static uint64_t read_count(const char *name)
{
    uint64_t value = 0;
    size_t size = sizeof value;
    assert_int_equal(mallctl(name, &value, &size, NULL, 0), 0);
    return value;
}
static uint64_t allocated(void) { return mallctl ? read_count("thread.allocated") - read_count("thread.deallocated") : 0; }

struct world {
    struct session_table table;
    struct topic_tree *tree;
    struct session *sessions[SESSIONS];
    struct queue_stats window;
    struct queue_shared shared;
    struct store_run (*runs)[READ_RUNS]; /* the first of each session */
    uint32_t order[SESSIONS];            /* of a round */
    struct check_random random;
    bool is_out_of_order;
};

/* What is there besides a queue. */
enum { PLAIN, AT_ONCE = 1, IN_FLIGHT_TOO = 2, READ_AHEAD = 4, NEARLY_FOLLOWED = 8, OUT_OF_ORDER = 16 };

/* Each session gets a message in each round. Out of order: between two of one stands what there is of up to two rounds, or nothing. */
static const uint32_t *draw_order(struct world *world, uint32_t sessions)
{
    uint32_t *order = world->order;
    for (uint32_t i = 0; i < sessions; i++) {
        uint32_t other = world->is_out_of_order ? (uint32_t)check_random_below(&world->random, i + 1) : i;
        order[i] = order[other];
        order[other] = i;
    }
    return order;
}

static void add_session(struct world *world, uint32_t i)
{
    char id[32], filter[40];
    snprintf(id, sizeof id, "device-%017u", i);
    snprintf(filter, sizeof filter, "fleet/%09u/commands/a/set", i);
    assert_int_equal(strlen(filter), 30);
    struct session *sess = world->sessions[i] = session_table_add(&world->table, span_of(id, 24), i + 1);
    assert_non_null(sess);
    sess->expiry_interval_s = 3600;
    assert_int_equal(subscription_list_add(&sess->subscriptions, span_of_string(filter), 7), 0);
    assert_int_equal(topic_tree_add(world->tree, NULL, span_of_string(filter), &(struct subscriber){.number = i + 1}), 0);
    session_fold_filter(sess, world->tree, NULL);
    assert_true(sess->is_folded);
}

/* What the checkpoint has is let go, and the oldest of it written down. */
static void settle(struct world *world, uint32_t i)
{
    struct session *sess = world->sessions[i];
    struct store_run run;
    bool is_left;
    while ((is_left = queue_settle(&sess->queue, &world->shared, false),
            queue_take_run(&sess->queue, &world->shared, true, inflight_sequence_max(&sess->inflight), &run)))
        for (uint32_t k = 0; world->runs && k < READ_RUNS; k++)
            if (world->runs[i][k].count == 0) {
                world->runs[i][k] = run;
                break;
            }
    CHECK(!is_left);
    CHECK(!queue_is_tail_long(&sess->queue));
    world->shared.runs_committed = world->shared.runs_posted;
    CHECK(!queue_forget_posted(&sess->queue, &world->shared));
    if (sess->inflight.is_packed || queue_is_scattered(&sess->queue)) /* as core/waiting.c has it */
        queue_pack(&sess->queue);
}

static struct msg *message(uint64_t sequence)
{
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("payload"), .qos = 1});
    CHECK(msg);
    atomic_store(&msg->sequence, sequence);
    return msg;
}

/* The client came, what it gets next was read, and it left with nothing of it sent. */
static void read_ahead(struct world *world, uint32_t i)
{
    struct queue *queue = &world->sessions[i]->queue;
    const uint32_t metas[STORE_READ_MAX] = {0};
    struct store_read read = {0};
    uint32_t lost, k = 0;
    for (; k < READ_RUNS && queue_next_read(queue, &read, STORE_READ_MAX); read = (struct store_read){0}, k++) {
        const struct store_run *run = &world->runs[i][k];
        CHECK(read.kind == STORE_READ_RUN);
        read.run = run->sequences[0];
        for (; read.count < run->count; read.count++)
            read.items[read.count] = (struct store_read_item){
                .sequence = run->sequences[read.count], .state = STORE_ITEM_FOUND, .msg = message(run->sequences[read.count])};
        CHECK(queue_on_read(queue, &world->shared, &read, metas, &lost) == read.run);
    }
    CHECK(k > 0);
    CHECK(queue_first(queue));
    settle(world, i);
    CHECK(queue->is_packed);
}

/* What a client that took messages in turn with others did not acknowledge before it left. */
static void leave_in_flight(struct world *world, uint32_t sessions, uint64_t distance, uint64_t *sequence)
{
    for (uint32_t k = 0; k < IN_FLIGHT; k++) {
        const uint32_t *order = draw_order(world, sessions);
        for (uint32_t i = 0; i < sessions; i++) {
            struct inflight_entry *entry = inflight_add(&world->sessions[order[i]]->inflight, message(*sequence += 1 + distance), 0, 1);
            CHECK(entry);
            entry->is_wanted = true;
        }
    }
    for (uint32_t i = 0; i < sessions; i++) {
        assert_false(inflight_let_go(&world->sessions[i]->inflight, UINT64_MAX));
        inflight_pack(&world->sessions[i]->inflight);
    }
}

/* Sessions that are away take QUEUED messages each, in turn, so that between two of a session stand those of all others; `distance` of
 * anything else in the log between two messages. AT_ONCE: nothing is in the checkpoint before all came. IN_FLIGHT_TOO: IN_FLIGHT before
 * them are not acknowledged. READ_AHEAD: the client came back for a moment. NEARLY_FOLLOWED: it was there when all came, and
 * acknowledged nothing. OUT_OF_ORDER: not in the same turn in each round. */
static uint64_t cost_of(uint32_t sessions, uint64_t distance, int with, uint32_t queued)
{
    bool at_once = with & AT_ONCE;
    struct world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    check_random_init(&world->random, 1);
    world->is_out_of_order = with & OUT_OF_ORDER;
    world->shared = (struct queue_shared){.window = &world->window, .checkpoint = at_once ? 0 : UINT64_MAX};
    assert_int_equal(session_table_init(&world->table, 1), 0);
    world->tree = topic_tree_new(1);
    assert_non_null(world->tree);
    if (with & READ_AHEAD)
        world->runs = calloc(sessions, sizeof *world->runs);
    uint64_t before = allocated(), sequence = 0;
    for (uint32_t i = 0; i < sessions; i++)
        add_session(world, i);
    if (with & IN_FLIGHT_TOO)
        leave_in_flight(world, sessions, distance, &sequence);
    for (uint32_t k = 0; k < queued; k++) {
        const uint32_t *order = draw_order(world, sessions);
        for (uint32_t i = 0; i < sessions; i++) {
            struct queue_item item = {.msg = message(sequence += 1 + distance), .is_wanted = true};
            CHECK(queue_push(&world->sessions[order[i]]->queue, &world->shared, &item));
            if (!at_once)
                settle(world, order[i]);
        }
    }
    world->shared.checkpoint = UINT64_MAX;
    for (uint32_t i = 0; i < sessions; i++) {
        if (with & NEARLY_FOLLOWED) {
            CHECK(!queue_may_cut(&world->sessions[i]->queue, &world->shared, true));
            queue_settle(&world->sessions[i]->queue, &world->shared, true);
            CHECK(queue_is_tail_long(&world->sessions[i]->queue));
        }
        settle(world, i);
        if (with & READ_AHEAD)
            read_ahead(world, i);
        CHECK(queue_count(&world->sessions[i]->queue) == queued);
    }
    assert_int_equal(world->window.messages, 0);
    while (topic_tree_poll(world->tree)) {
    }
    uint64_t cost = (allocated() - before) / sessions;
    session_table_deinit(&world->table);
    topic_tree_free(world->tree);
    free(world->runs);
    free(world);
    return cost;
}

static void an_offline_session_is_small_however_long_its_queue(void **state)
{
    (void)state;
    uint64_t in_turn = cost_of(SESSIONS, 0, PLAIN, QUEUED);
    uint64_t at_once = cost_of(SESSIONS / 10, 0, AT_ONCE, QUEUED);
    uint64_t far_apart = cost_of(SESSIONS / 10, FAR, PLAIN, QUEUED);
    uint64_t left = cost_of(SESSIONS / 10, 0, AT_ONCE | NEARLY_FOLLOWED, QUEUED);
    print_message(
        "a session that is away with %u messages: %lu bytes; that came at once: %lu; far apart: %lu; for one that was there: %lu\n", QUEUED,
        (unsigned long)in_turn, (unsigned long)at_once, (unsigned long)far_apart, (unsigned long)left);
    assert_true(left <= BYTES_MAX);
    assert_true(in_turn <= BYTES_MAX);
    assert_true(at_once <= BYTES_MAX);
    assert_true(far_apart <= BYTES_MAX);
}

static void what_was_sent_or_read_ahead_takes_little_more(void **state)
{
    (void)state;
    uint64_t in_flight = cost_of(SESSIONS, 0, IN_FLIGHT_TOO, 0), both = cost_of(SESSIONS, 0, IN_FLIGHT_TOO, QUEUED);
    uint64_t far = cost_of(SESSIONS / 10, FAR, IN_FLIGHT_TOO, QUEUED);
    print_message("with %u in flight and nothing queued: %lu; and with the queue: %lu; far apart: %lu\n", IN_FLIGHT,
                  (unsigned long)in_flight, (unsigned long)both, (unsigned long)far);
    uint64_t ahead = cost_of(SESSIONS, 0, READ_AHEAD, QUEUED), all = cost_of(SESSIONS / 10, 9, READ_AHEAD | IN_FLIGHT_TOO, QUEUED);
    uint64_t out_of_order = cost_of(SESSIONS / 10, 9, READ_AHEAD | IN_FLIGHT_TOO | OUT_OF_ORDER, QUEUED);
    print_message("with the queue, and some of it read ahead: %lu; and with those in flight: %lu; out of order: %lu\n",
                  (unsigned long)ahead, (unsigned long)all, (unsigned long)out_of_order);
    assert_true(in_flight <= BYTES_MAX);
    assert_true(both <= BYTES_MAX);
    assert_true(ahead <= BYTES_MAX);
    assert_true(far <= BYTES_MAX);
    assert_true(all <= BYTES_MAX);
    assert_true(out_of_order <= BYTES_OUT_OF_ORDER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_offline_session_is_small_however_long_its_queue),
                                       cmocka_unit_test(what_was_sent_or_read_ahead_takes_little_more)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
