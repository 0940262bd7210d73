/* posted_runs.c beside an array of runs: they come out whole and in order; where memory is short none is left. */
#include <stdlib.h>

/* Compiled into this test, so that the test decides when memory is short. */
static void *failing_realloc(void *at, size_t size);
#define realloc failing_realloc
#include "broker/session/posted_runs.c"
#undef realloc

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define RUNS_MAX 3000

static bool is_short;
static void *failing_realloc(void *at, size_t size) { return is_short ? NULL : realloc(at, size); }

static void runs_come_out_whole_and_in_order(void **state)
{
    (void)state;
    static struct store_run runs[RUNS_MAX];
    struct check_random random;
    check_random_init(&random, check_random_seed(11));
    struct posted_runs *posted = NULL;
    uint64_t sequence = 0;
    uint32_t added = 0, taken = 0, messages = 0, began = 0;
    while (taken < RUNS_MAX) {
        if (added < RUNS_MAX && (!posted || check_random_below(&random, 2))) {
            struct store_run *run = &runs[added];
            run->count = 1 + (uint32_t)check_random_below(&random, STORE_RUN_MAX);
            for (uint32_t i = 0; i < run->count; i++)
                run->sequences[i] = sequence += 1 + check_random_below(&random, 300);
            began = posted ? began : added + 1;
            assert_true(posted_runs_add(&posted, run, ++added));
            messages += run->count;
        } else {
            struct store_read_item items[STORE_READ_MAX];
            const struct store_run *run = &runs[taken++];
            assert_int_equal(posted_runs_first(posted), run->sequences[0]);
            assert_int_equal(posted_runs_take(&posted, items), run->count);
            for (uint32_t i = 0; i < run->count; i++) {
                assert_int_equal(items[i].sequence, run->sequences[i]);
                assert_int_equal(items[i].state, STORE_ITEM_ASKED);
            }
            messages -= run->count;
        }
        assert_int_equal(posted_runs_count(posted), messages);
        assert_int_equal(posted == NULL, messages == 0);
        if (posted) {
            assert_int_equal(posted_runs_began(posted), began);
            assert_int_equal(posted_runs_ended(posted), added);
        }
    }
    assert_int_equal(posted_runs_first(NULL), UINT64_MAX);
}

static void where_memory_is_short_none_is_left(void **state)
{
    (void)state;
    struct posted_runs *posted = NULL;
    const struct store_run run = {.count = 2, .sequences = {5, 9}};
    for (uint64_t number = 1; number <= CAPACITY_FIRST; number++)
        assert_true(posted_runs_add(&posted, &run, number));
    is_short = true;
    assert_false(posted_runs_add(&posted, &run, CAPACITY_FIRST + 1));
    assert_null(posted);
    assert_false(posted_runs_add(&posted, &run, CAPACITY_FIRST + 2));
    assert_null(posted);
    is_short = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_come_out_whole_and_in_order),
        cmocka_unit_test(where_memory_is_short_none_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
