#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/ops/recovery.h"
#include "common/clock.h"

/* Committed when its own time was 1000 s, the wall clock 5000 s: somebody had set that by 4000 s while it ran. */
static const struct checkpoint_state state = {.steady_ns = 1000 * NS_PER_S, .wall_ns = 5000 * NS_PER_S};

static void own_time_goes_on_by_what_passed_on_the_wall(void **unused)
{
    (void)unused;
    assert_true(recovery_steady_ns(&state, 5060 * NS_PER_S) == 1060 * NS_PER_S);
}

static void a_wall_clock_that_went_back_is_no_time(void **unused)
{
    (void)unused;
    assert_true(recovery_steady_ns(&state, 100 * NS_PER_S) == 1000 * NS_PER_S);
}

static void without_a_commit_that_knew_it_is_the_wall_clock(void **unused)
{
    (void)unused;
    assert_true(recovery_steady_ns(&(struct checkpoint_state){0}, 77 * NS_PER_S) == 77 * NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(own_time_goes_on_by_what_passed_on_the_wall),
        cmocka_unit_test(a_wall_clock_that_went_back_is_no_time),
        cmocka_unit_test(without_a_commit_that_knew_it_is_the_wall_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
