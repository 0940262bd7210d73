#include "broker/actor/exchange.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/actor/bell.h"

struct seen {
    uint32_t count;
    uint32_t next[ACTOR_COUNT]; /* expected op.count by sender */
    uint32_t out_of_order;
};

static void on_op(void *arg, const struct op *op)
{
    struct seen *seen = arg;
    seen->count++;
    if (op->count != seen->next[op->from]++)
        seen->out_of_order++;
}

static void count_wake(void *arg) { ++*(int *)arg; }

static void keeps_order_and_the_reserve(void **state)
{
    (void)state;
    struct exchange *exchange = exchange_new(2, 16);
    struct seen seen = {0};
    struct op op = {.type = OP_DELIVER};
    int wakes = 0;
    exchange_set_wake(exchange, 1, count_wake, &wakes);
    for (op.count = 0; op.count < 14; op.count++)
        assert_true(exchange_post(exchange, 0, 1, &op, false));
    /* The last eighth is for control traffic only. */
    assert_false(exchange_post(exchange, 0, 1, &op, false));
    for (; op.count < 16; op.count++)
        assert_true(exchange_post(exchange, 0, 1, &op, true));
    assert_false(exchange_post(exchange, 0, 1, &op, true));
    assert_int_equal(counter_get(exchange_refused(exchange, 0)), 2);
    exchange_flush(exchange, 0);
    assert_int_equal(wakes, 0); /* it does not sleep */
    assert_int_equal(exchange_drain(exchange, 1, 100, 0, on_op, &seen), 16);
    assert_int_equal(seen.out_of_order, 0);
    assert_true(exchange_post(exchange, 0, 1, &op, false));
    exchange_free(exchange);
}

static void wakes_a_sleeper_once(void **state)
{
    (void)state;
    struct exchange *exchange = exchange_new(3, 16);
    struct op op = {.type = OP_DELIVER};
    int wakes = 0;
    exchange_set_wake(exchange, ACTOR_ROUTE, count_wake, &wakes);
    exchange_sleep(exchange, ACTOR_ROUTE);
    assert_false(exchange_has_ops(exchange, ACTOR_ROUTE));
    for (int i = 0; i < 5; i++)
        assert_true(exchange_post(exchange, 0, ACTOR_ROUTE, &op, false));
    assert_true(exchange_post(exchange, 2, ACTOR_ROUTE, &op, false));
    exchange_flush(exchange, 0);
    exchange_flush(exchange, 2);
    exchange_flush(exchange, 2);
    assert_int_equal(wakes, 1);
    assert_true(exchange_has_ops(exchange, ACTOR_ROUTE));
    exchange_free(exchange);
}

static void respects_the_budget_and_shares_it(void **state)
{
    (void)state;
    struct exchange *exchange = exchange_new(2, 256);
    struct seen seen = {0};
    for (uint32_t i = 0; i < 200; i++) {
        struct op op = {.type = OP_DELIVER, .count = i};
        assert_true(exchange_post(exchange, 0, ACTOR_STORE, &op, false));
        assert_true(exchange_post(exchange, 1, ACTOR_STORE, &op, false));
    }
    assert_int_equal(exchange_drain(exchange, ACTOR_STORE, 150, 0, on_op, &seen), 150);
    assert_true(seen.next[0] > 0);
    assert_true(seen.next[1] > 0);
    assert_int_equal(exchange_drain(exchange, ACTOR_STORE, 1000, 0, on_op, &seen), 250);
    assert_int_equal(seen.out_of_order, 0);
    exchange_refresh_stats(exchange, 10);
    assert_int_equal(exchange_stats(exchange, ACTOR_STORE)->messages, 0);
    exchange_free(exchange);
}

/* The few rings between threads, each in its own direction. */
static void threads_have_the_rings_they_need(void **state)
{
    (void)state;
    static const actor_id pairs[][2] = {
        {ACTOR_ROUTE, ACTOR_READER}, {ACTOR_READER, ACTOR_ROUTE}, {ACTOR_STORE, ACTOR_ROUTE}, {ACTOR_ROUTE, ACTOR_STORE},
        {0, ACTOR_READER},           {ACTOR_READER, 1},           {1, ACTOR_STORE},           {ACTOR_STORE, 0},
    };
    struct exchange *exchange = exchange_new(2, 16);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct seen seen = {0};
        int wakes = 0;
        struct op op = {.type = OP_STORE_CHECKPOINT};
        exchange_set_wake(exchange, pairs[i][1], count_wake, &wakes);
        exchange_sleep(exchange, pairs[i][1]);
        for (; op.count < 3; op.count++)
            assert_true(exchange_post(exchange, pairs[i][0], pairs[i][1], &op, true));
        exchange_flush(exchange, pairs[i][0]);
        assert_int_equal(wakes, 1);
        for (size_t other = 0; other < sizeof pairs / sizeof *pairs; other++)
            assert_int_equal(exchange_has_ops(exchange, pairs[other][1]), pairs[other][1] == pairs[i][1]);
        assert_int_equal(exchange_drain(exchange, pairs[i][1], 100, 0, on_op, &seen), 3);
        assert_int_equal(seen.out_of_order, 0);
        exchange_awake(exchange, pairs[i][1]);
    }
    exchange_free(exchange);
}

/* Threads that sleep and are woken lose nothing. */
#define OPS 20000
struct worker {
    struct exchange *exchange;
    struct bell bell;
    struct seen seen;
};

static void *consume(void *arg)
{
    struct worker *worker = arg;
    while (worker->seen.count < 2 * OPS) {
        if (exchange_drain(worker->exchange, ACTOR_LOG, 64, 0, on_op, &worker->seen) > 0)
            continue;
        exchange_sleep(worker->exchange, ACTOR_LOG);
        if (!exchange_has_ops(worker->exchange, ACTOR_LOG))
            bell_wait(&worker->bell, INT64_MAX);
        exchange_awake(worker->exchange, ACTOR_LOG);
    }
    return NULL;
}

struct producer {
    struct exchange *exchange;
    actor_id self;
};

static void *produce(void *arg)
{
    struct producer *producer = arg;
    for (uint32_t i = 0; i < OPS;) {
        struct op op = {.type = OP_LOG_BLOCK, .count = i};
        if (exchange_post(producer->exchange, producer->self, ACTOR_LOG, &op, true))
            i++;
        if (i % 7 == 0)
            exchange_flush(producer->exchange, producer->self);
    }
    exchange_flush(producer->exchange, producer->self);
    return NULL;
}

static void loses_nothing_over_threads(void **state)
{
    (void)state;
    struct worker worker = {.exchange = exchange_new(2, 64)};
    assert_int_equal(bell_init(&worker.bell), 0);
    exchange_set_wake(worker.exchange, ACTOR_LOG, bell_ring, &worker.bell);
    struct producer producers[2] = {{worker.exchange, 0}, {worker.exchange, 1}};
    pthread_t consumer, threads[2];
    pthread_create(&consumer, NULL, consume, &worker);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, produce, &producers[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    pthread_join(consumer, NULL);
    assert_int_equal(worker.seen.out_of_order, 0);
    assert_int_equal(worker.seen.count, 2 * OPS);
    bell_deinit(&worker.bell);
    exchange_free(worker.exchange);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_order_and_the_reserve),       cmocka_unit_test(wakes_a_sleeper_once),
        cmocka_unit_test(respects_the_budget_and_shares_it), cmocka_unit_test(threads_have_the_rings_they_need),
        cmocka_unit_test(loses_nothing_over_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
