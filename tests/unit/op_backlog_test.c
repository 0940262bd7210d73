/* What waits for a full ring: kept in order for each receiver, all of it let out, and the memory of a burst given back. */
#include "broker/actor/op_backlog.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define RECEIVERS 3
#define BURST 100000u

struct rings {
    uint32_t room[RECEIVERS]; /* ops that each takes before it is full */
    uint32_t next[RECEIVERS]; /* what it must be given next */
};

static bool post(void *io, actor_id to, const struct op *op)
{
    struct rings *rings = io;
    if (rings->room[to] == 0)
        return false;
    rings->room[to]--;
    assert_int_equal(op->count, rings->next[to]++);
    return true;
}

static void each_receiver_gets_all_in_order_and_a_burst_is_forgotten(void **state)
{
    (void)state;
    struct op_backlog backlog;
    struct rings rings = {.room = {10, 0, 1000}};
    op_backlog_init(&backlog);
    for (uint32_t i = 0; i < BURST; i++)
        for (actor_id to = 0; to < RECEIVERS; to++)
            op_backlog_post(&backlog, post, &rings, to, &(struct op){.count = i});
    assert_int_equal(rings.next[0], 10);
    assert_int_equal(rings.next[1], 0);
    assert_int_equal(backlog.count, RECEIVERS * BURST - 1010);
    rings.room[2] = BURST;
    assert_false(op_backlog_flush(&backlog, post, &rings));
    assert_int_equal(rings.next[2], BURST);
    assert_true(op_backlog_waits(&backlog, 0));
    assert_false(op_backlog_waits(&backlog, 2));
    assert_true(malloc_usable_size(backlog.lanes[2].ops) < BURST * sizeof(struct op) / 10);
    rings.room[0] = rings.room[1] = BURST;
    assert_true(op_backlog_flush(&backlog, post, &rings));
    assert_int_equal(rings.next[0], BURST);
    assert_int_equal(rings.next[1], BURST);
    for (actor_id to = 0; to < RECEIVERS; to++) {
        assert_true(malloc_usable_size(backlog.lanes[to].ops) < BURST * sizeof(struct op) / 10);
        rings.room[to] = 0;
        op_backlog_post(&backlog, post, &rings, to, &(struct op){.count = BURST}); /* and it goes on */
        rings.room[to] = 1;
    }
    assert_true(op_backlog_flush(&backlog, post, &rings));
    op_backlog_deinit(&backlog, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_receiver_gets_all_in_order_and_a_burst_is_forgotten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
