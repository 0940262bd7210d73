/* Marks against the receive time of every sequence. */
#include "broker/durable/age_marks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define S INT64_C(1000000000)

/* Never older than it is, and told within a step and a commit. */
static void ages_are_told_late_never_early(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(9));
    for (int round = 0; round < 20; round++) {
        enum { MAX = 20000 };
        static int64_t received[MAX];
        struct age_marks marks = {0};
        int64_t now = 1000 * S, age = (int64_t)(2 + check_random_below(&random, 5000)) * S, gap_max = S;
        uint64_t next = 1, reached = 0;
        while (next < MAX - 10) {
            int64_t gap = check_random_chance(&random, 1, 100) ? (int64_t)check_random_below(&random, 600) * S : S;
            gap_max = gap > gap_max ? gap : gap_max;
            for (unsigned i = (unsigned)check_random_below(&random, 10); i > 0; i--)
                received[next++] = now + gap;
            now += gap;
            age_marks_add(&marks, next, now, age);
            if (check_random_chance(&random, 1, 50)) { /* a restart */
                uint8_t value[AGE_MARKS_SIZE_MAX];
                struct age_marks same;
                assert_int_equal(age_marks_decode(&same, span_of(value, age_marks_encode(value, &marks))), ERR_OK);
                marks = same;
            }
            uint64_t aged = age_marks_reach(&marks, now - age);
            assert_true(aged >= reached);
            for (; reached + 1 < aged; reached++)
                assert_true(received[reached + 1] <= now - age);
            reached = aged > 0 ? aged - 1 : 0;
            for (uint64_t s = reached + 1; s < next && received[s] < now - age - age / AGE_MARKS_SHARE - 2 * gap_max; s++)
                fail_msg("%u is %lld s old, and not told", (unsigned)s, (long long)((now - received[s]) / S));
        }
    }
}

static void a_mark_of_a_time_to_come_is_brought_down(void **state)
{
    (void)state;
    struct age_marks marks = {0};
    age_marks_add(&marks, 10, 5000 * S, 60 * S);
    age_marks_add(&marks, 10, 100 * S, 60 * S);
    assert_int_equal(age_marks_reach(&marks, 99 * S), 0);
    assert_int_equal(age_marks_reach(&marks, 100 * S), 10);
}

/* Marks of a short age, then of a long one: they do not run over, and what is lost is precision alone. */
static void a_longer_age_finds_room(void **state)
{
    (void)state;
    struct age_marks marks = {0};
    for (int i = 1; i <= 2000; i++)
        age_marks_add(&marks, (uint64_t)i, i * S, i < 60 ? S : 3600 * S);
    assert_true(marks.count <= AGE_MARKS_MAX);
    for (int i = 1; i <= 2000; i += 7) {
        struct age_marks copy = marks;
        assert_true(age_marks_reach(&copy, i * S) <= (uint64_t)i);
    }
    assert_int_equal(age_marks_reach(&marks, 2000 * S), 2000);
}

static void what_no_broker_writes_is_refused(void **state)
{
    (void)state;
    struct age_marks marks;
    uint8_t value[AGE_MARKS_SIZE_MAX + 16] = {0};
    assert_int_equal(age_marks_decode(&marks, span_of(value, 0)), ERR_OK);
    assert_int_equal(age_marks_decode(&marks, span_of(value, 15)), ERR_CORRUPT);
    assert_int_equal(age_marks_decode(&marks, span_of(value, 16)), ERR_CORRUPT);
    assert_int_equal(age_marks_decode(&marks, span_of(value, sizeof value)), ERR_CORRUPT);
    value[0] = 2, value[16] = 1;
    assert_int_equal(age_marks_decode(&marks, span_of(value, 32)), ERR_CORRUPT);
    value[16] = 3, value[8] = 1;
    assert_int_equal(age_marks_decode(&marks, span_of(value, 32)), ERR_CORRUPT);
    value[24] = 1;
    assert_int_equal(age_marks_decode(&marks, span_of(value, 32)), ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ages_are_told_late_never_early),
        cmocka_unit_test(a_mark_of_a_time_to_come_is_brought_down),
        cmocka_unit_test(a_longer_age_finds_room),
        cmocka_unit_test(what_no_broker_writes_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
