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

static void an_offline_session_is_small_however_long_its_queue(void **state)
{
    (void)state;
    struct session_table table;
    struct queue_stats window = {0};
    struct queue_shared shared = {.window = &window, .checkpoint = UINT64_MAX};
    assert_int_equal(session_table_init(&table, 1), 0);
    struct topic_tree *tree = topic_tree_new(1);
    assert_non_null(tree);
    struct session **sessions = malloc(SESSIONS * sizeof(struct session *));
    assert_non_null(sessions);
    uint64_t before = allocated(), sequence = 0, longest = 0;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        char id[25], filter[31];
        snprintf(id, sizeof id, "device-%017u", i);
        snprintf(filter, sizeof filter, "fleet/%09u/commands/a/set", i);
        assert_int_equal(strlen(filter), 30);
        sessions[i] = session_table_add(&table, span_of(id, 24), i + 1);
        assert_non_null(sessions[i]);
        sessions[i]->expiry_interval_s = 3600;
        assert_int_equal(subscription_list_add(&sessions[i]->subscriptions, span_of_string(filter), 7), 0);
        assert_int_equal(topic_tree_add(tree, NULL, span_of_string(filter), &(struct subscriber){.number = i + 1}), 0);
        session_fold_filter(sessions[i], tree, NULL);
        assert_true(sessions[i]->is_folded);
    }
    /* One message in turn for each: between two of a session stand those of all others. */
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("payload"), .qos = 1});
    for (uint32_t k = 0; k < QUEUED; k++)
        for (uint32_t i = 0; i < SESSIONS; i++) {
            atomic_store(&msg->sequence, ++sequence);
            struct queue_item item = {.msg = msg_ref(msg), .is_wanted = true};
            CHECK(queue_push(&sessions[i]->queue, &shared, &item));
            CHECK(!queue_settle(&sessions[i]->queue, &shared, false));
            struct store_run run;
            while (queue_take_run(&sessions[i]->queue, 0, &run))
                CHECK(run.count == QUEUE_RUN);
        }
    for (uint32_t i = 0; i < SESSIONS; i++) {
        CHECK(queue_count(&sessions[i]->queue) == QUEUED);
        longest = queue_count(&sessions[i]->queue);
    }
    assert_int_equal(longest, QUEUED);
    assert_int_equal(atomic_load(&msg->refs), 1);
    while (topic_tree_poll(tree)) {
    }
    uint64_t cost = (allocated() - before) / SESSIONS;
    print_message("a session that is away with %u messages: %lu bytes\n", QUEUED, (unsigned long)cost);
    assert_true(cost <= BYTES_MAX);
    msg_unref(msg);
    free(sessions);
    session_table_deinit(&table);
    topic_tree_free(tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_offline_session_is_small_however_long_its_queue)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
