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

#define SESSIONS 20000
#define QUEUED 300
#define IN_FLIGHT 20
#define IN_FLIGHT_BYTES_MAX 100
#define BYTES_MAX 400 /* of anonymous memory, with a client id of 24 bytes and one filter of 30, its place in the topic tree included */

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
};

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
static void settle(struct world *world, struct session *sess)
{
    struct store_run run;
    bool is_left;
    do
        is_left = queue_settle(&sess->queue, &world->shared, false);
    while (queue_take_run(&sess->queue, &world->shared, 0, &run));
    CHECK(!is_left);
    CHECK(!queue_is_tail_long(&sess->queue));
}

/* What a client that took messages in turn with others did not acknowledge before it left. */
static void leave_in_flight(struct world *world, uint32_t sessions, uint64_t *sequence)
{
    for (uint32_t k = 0; k < IN_FLIGHT; k++)
        for (uint32_t i = 0; i < sessions; i++) {
            struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("payload"), .qos = 1});
            CHECK(msg);
            atomic_store(&msg->sequence, ++*sequence);
            struct inflight_entry *entry = inflight_add(&world->sessions[i]->inflight, msg, 0, 1);
            CHECK(entry);
            entry->is_wanted = true;
        }
    for (uint32_t i = 0; i < sessions; i++) {
        assert_false(inflight_let_go(&world->sessions[i]->inflight, UINT64_MAX));
        inflight_pack(&world->sessions[i]->inflight);
    }
}

/* Sessions that are away take QUEUED messages each, in turn, so that between two of a session stand those of all others; `distance` of
 * anything else in the log between two messages. at_once: nothing is in the checkpoint before all came. is_in_flight: IN_FLIGHT before them
 * are not acknowledged. */
static uint64_t cost_of(uint32_t sessions, uint64_t distance, bool at_once, bool is_in_flight, uint32_t queued)
{
    struct world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    world->shared = (struct queue_shared){.window = &world->window, .checkpoint = at_once ? 0 : UINT64_MAX};
    assert_int_equal(session_table_init(&world->table, 1), 0);
    world->tree = topic_tree_new(1);
    assert_non_null(world->tree);
    uint64_t before = allocated(), sequence = 0;
    for (uint32_t i = 0; i < sessions; i++)
        add_session(world, i);
    if (is_in_flight)
        leave_in_flight(world, sessions, &sequence);
    for (uint32_t k = 0; k < queued; k++)
        for (uint32_t i = 0; i < sessions; i++) {
            struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("payload"), .qos = 1});
            CHECK(msg);
            atomic_store(&msg->sequence, sequence += 1 + distance);
            CHECK(queue_push(&world->sessions[i]->queue, &world->shared, &(struct queue_item){.msg = msg, .is_wanted = true}));
            if (!at_once)
                settle(world, world->sessions[i]);
        }
    world->shared.checkpoint = UINT64_MAX;
    for (uint32_t i = 0; i < sessions; i++) {
        settle(world, world->sessions[i]);
        CHECK(queue_count(&world->sessions[i]->queue) == queued);
    }
    assert_int_equal(world->window.messages, 0);
    while (topic_tree_poll(world->tree)) {
    }
    uint64_t cost = (allocated() - before) / sessions;
    session_table_deinit(&world->table);
    topic_tree_free(world->tree);
    free(world);
    return cost;
}

static void an_offline_session_is_small_however_long_its_queue(void **state)
{
    (void)state;
    uint64_t in_turn = cost_of(SESSIONS, 0, false, false, QUEUED);
    uint64_t at_once = cost_of(SESSIONS / 10, 0, true, false, QUEUED);
    uint64_t far_apart = cost_of(SESSIONS / 10, 1u << 16, false, false, QUEUED); /* 1.3e8 between two of a session: five bytes each */
    print_message("a session that is away with %u messages: %lu bytes; that came at once: %lu; far apart: %lu\n", QUEUED,
                  (unsigned long)in_turn, (unsigned long)at_once, (unsigned long)far_apart);
    uint64_t in_flight = cost_of(SESSIONS, 0, false, true, 0), both = cost_of(SESSIONS, 0, false, true, QUEUED);
    print_message("with %u in flight and nothing queued: %lu; and with the queue: %lu\n", IN_FLIGHT, (unsigned long)in_flight,
                  (unsigned long)both);
    assert_true(in_turn <= BYTES_MAX);
    assert_true(in_flight <= BYTES_MAX);
    assert_true(both <= BYTES_MAX + IN_FLIGHT_BYTES_MAX);
    assert_true(at_once <= BYTES_MAX);
    assert_true(far_apart <= BYTES_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_offline_session_is_small_however_long_its_queue)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
