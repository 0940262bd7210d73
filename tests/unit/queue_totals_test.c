/* The bounds of all queues together, with threads that take and give back at one and the same time. */
#include "broker/session/queue_totals.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#define THREADS 4
#define ROUNDS 200000
#define BYTES 10

static void bounds_are_told_apart(void **state)
{
    (void)state;
    struct queue_totals totals = {.messages_max = 2, .bytes_max = 100};
    assert_int_equal(queue_totals_take(&totals, 60), QUEUE_TOTALS_TAKEN);
    assert_int_equal(queue_totals_take(&totals, 41), QUEUE_TOTALS_BYTES);
    assert_int_equal(queue_totals_take(&totals, UINT64_MAX), QUEUE_TOTALS_BYTES);
    assert_int_equal(queue_totals_take(&totals, 40), QUEUE_TOTALS_TAKEN);
    assert_int_equal(queue_totals_take(&totals, 0), QUEUE_TOTALS_MESSAGES);
    queue_totals_change(&totals, -1, -60);
    assert_int_equal(queue_totals_take(&totals, 60), QUEUE_TOTALS_TAKEN);
    queue_totals_change(&totals, 5, 500); /* found at a start: more than there may be */
    assert_int_equal(queue_totals_take(&totals, 0), QUEUE_TOTALS_MESSAGES);
    assert_int_equal(totals.messages, 7);
    assert_int_equal(totals.bytes, 600);
}

static void what_does_not_fit_is_owed(void **state)
{
    (void)state;
    struct queue_totals totals = {.messages_max = 2, .bytes_max = 100};
    const struct {
        struct queue_limits held;
        uint64_t cost;
        enum queue_totals_verdict verdict;
        struct queue_debt debt;
        uint64_t messages, bytes; /* then */
    } steps[] = {
        {{0, 0}, 101, QUEUE_TOTALS_BYTES, {0, 0}, 0, 0},    {{0, 0}, 60, QUEUE_TOTALS_TAKEN, {0, 0}, 1, 60},
        {{0, 0}, 50, QUEUE_TOTALS_BYTES, {0, 0}, 1, 60},    {{1, 60}, 50, QUEUE_TOTALS_TAKEN, {0, 10}, 2, 100},
        {{0, 0}, 1, QUEUE_TOTALS_MESSAGES, {0, 0}, 2, 100}, {{2, 100}, 7, QUEUE_TOTALS_TAKEN, {1, 7}, 2, 100},
        {{1, 7}, 8, QUEUE_TOTALS_BYTES, {0, 0}, 2, 100},
    };
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        struct queue_debt debt = {0};
        assert_int_equal(queue_totals_take_owing(&totals, steps[i].cost, steps[i].held, &debt), steps[i].verdict);
        assert_int_equal(debt.messages, steps[i].debt.messages);
        assert_int_equal(debt.bytes, steps[i].debt.bytes);
        assert_int_equal(totals.messages, steps[i].messages);
        assert_int_equal(totals.bytes, steps[i].bytes);
    }
    queue_totals_change(&totals, 5, 500); /* found at a start: who comes next pays a part of it */
    const struct queue_limits held = {.messages_max = 3, .bytes_max = 200};
    struct queue_debt debt = {0};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(queue_totals_take_owing(&totals, 9, held, &debt), QUEUE_TOTALS_TAKEN);
        assert_int_equal(debt.messages, 2);
        assert_int_equal(debt.bytes, 2 * 9);
    }
    assert_int_equal(totals.messages, 5);
    assert_int_equal(totals.bytes, 600 - 2 * 9);
    const struct queue_limits little = {.messages_max = 1, .bytes_max = 10};
    assert_int_equal(queue_totals_take_owing(&totals, 9, little, &debt), QUEUE_TOTALS_TAKEN);
    assert_true(debt.messages == 1 && debt.bytes == 10);
}

struct crowd {
    struct queue_totals totals;
    _Atomic int64_t held; /* messages that were taken */
    _Atomic bool is_over;
};

static void *take_and_give_back(void *arg)
{
    struct crowd *crowd = arg;
    for (int round = 0; round < ROUNDS; round++) {
        if (queue_totals_take(&crowd->totals, BYTES) != QUEUE_TOTALS_TAKEN)
            continue;
        if (atomic_fetch_add(&crowd->held, 1) + 1 > (int64_t)crowd->totals.messages_max)
            crowd->is_over = true;
        atomic_fetch_sub(&crowd->held, 1);
        queue_totals_change(&crowd->totals, -1, -BYTES);
    }
    return NULL;
}

static void threads_do_not_go_over(void **state)
{
    (void)state;
    static struct crowd crowd = {.totals = {.messages_max = THREADS - 2, .bytes_max = (uint64_t)(THREADS - 2) * BYTES}};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_give_back, &crowd), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_false(crowd.is_over);
    assert_int_equal(crowd.totals.messages, 0);
    assert_int_equal(crowd.totals.bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_are_told_apart),
        cmocka_unit_test(what_does_not_fit_is_owed),
        cmocka_unit_test(threads_do_not_go_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
