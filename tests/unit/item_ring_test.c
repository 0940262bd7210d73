/* item_ring.c beside an array: what is put comes out in its order, and is sorted by sequence as far as the store has it. */
#include "broker/session/item_ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/check.h"
#include "tests/lib/check_random.h"

#define ITEMS_MAX 5000

static struct queue_item item_of(uint64_t sequence, bool retain)
{
    struct msg *msg = msg_new(&(struct msg_source){.topic = SPAN_LITERAL("t"), .qos = 1});
    CHECK(msg);
    atomic_store(&msg->sequence, sequence);
    return (struct queue_item){.msg = msg, .meta = queue_meta(1, retain, 0), .is_wanted = true};
}

static uint64_t take(struct item_ring **ring)
{
    struct queue_item item = item_ring_take(ring);
    uint64_t sequence = queue_item_sequence(&item);
    msg_unref(item.msg);
    return sequence;
}

static void what_is_put_comes_out_in_order(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    struct item_ring *ring = NULL;
    uint64_t put = 0, taken = 0;
    for (int i = 0; i < 20000; i++) {
        if (check_random_below(&random, 5) < 3 || !ring) {
            struct queue_item item = item_of(++put, false);
            assert_true(item_ring_put(&ring, &item));
        } else
            assert_int_equal(take(&ring), ++taken);
        assert_int_equal(item_ring_count(ring), put - taken);
        assert_int_equal(ring == NULL, put == taken);
    }
    while (ring)
        assert_int_equal(take(&ring), ++taken);
    assert_int_equal(put, taken);
}

/* Three publishers, each in its order, `count` in all. */
static void fill(struct item_ring **ring, struct check_random *random, uint32_t count)
{
    uint64_t next[3] = {1, 2, 3};
    for (uint32_t i = 0; i < count; i++) {
        size_t p = check_random_below(random, 3);
        struct queue_item item = item_of(next[p], false);
        next[p] += 3;
        assert_true(item_ring_put(ring, &item));
    }
}

static void the_oldest_that_the_store_has_are_sorted(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    struct item_ring *ring = NULL;
    fill(&ring, &random, ITEMS_MAX);
    item_ring_sort(ring, 1);
    assert_int_equal(ring->sorted, 0);
    item_ring_sort(ring, UINT64_MAX);
    uint32_t sorted = ring->sorted;
    assert_true(sorted > 1000 && sorted < ITEMS_MAX);
    uint64_t before = 0;
    for (uint32_t i = 0; i < sorted; i++) {
        uint64_t sequence = queue_item_sequence(item_ring_at(ring, i));
        assert_true(sequence > before);
        before = sequence;
    }
    take(&ring);
    assert_int_equal(ring->sorted, sorted - 1);
    item_ring_sort(ring, UINT64_MAX); /* done lately */
    assert_int_equal(ring->sorted, sorted - 1);
    while (ring)
        take(&ring);
}

static void a_copy_of_a_retained_value_keeps_its_place(void **state)
{
    (void)state;
    static const uint64_t order[] = {9, 4, 7, 2, 1};
    struct item_ring *ring = NULL;
    for (size_t i = 0; i < 5; i++) {
        struct queue_item item = item_of(order[i], order[i] == 7);
        assert_true(item_ring_put(&ring, &item));
    }
    item_ring_sort(ring, 100);
    static const uint64_t sorted[] = {4, 9, 7, 2, 1};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(take(&ring), sorted[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_comes_out_in_order),
        cmocka_unit_test(the_oldest_that_the_store_has_are_sorted),
        cmocka_unit_test(a_copy_of_a_retained_value_keeps_its_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
