#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/lib/check_random.h"

static void one_seed_gives_one_sequence(void **state)
{
    (void)state;
    struct check_random a, b, c;
    check_random_init(&a, 42);
    check_random_init(&b, 42);
    check_random_init(&c, 43);
    uint64_t differing = 0;
    for (int i = 0; i < 100; i++) {
        uint64_t value = check_random_next(&a);
        assert_true(value == check_random_next(&b));
        differing += value != check_random_next(&c);
    }
    assert_int_equal(differing, 100);
}

static void draws_stay_in_their_bounds_and_reach_them(void **state)
{
    (void)state;
    struct check_random random;
    unsigned counts[10] = {0}, empty = 0, full = 0;
    check_random_init(&random, check_random_seed(8));
    for (int i = 0; i < 100000; i++) {
        counts[check_random_below(&random, 10)]++;
        int64_t between = check_random_between(&random, -3, 3);
        assert_true(between >= -3 && between <= 3);
        (void)check_random_between(&random, INT64_MIN, INT64_MAX);
        double unit = check_random_unit(&random);
        assert_true(unit >= 0 && unit < 1);
        size_t size = check_random_size(&random, 1000);
        assert_true(size <= 1000);
        empty += size == 0;
        full += size == 1000;
        assert_true(check_random_size(&random, 0) == 0);
    }
    for (int i = 0; i < 10; i++)
        assert_true(counts[i] > 9000 && counts[i] < 11000);
    assert_true(empty > 0);
    assert_true(full > 0);
}

static void a_shuffle_keeps_the_elements(void **state)
{
    (void)state;
    struct check_random random;
    int values[50];
    char word[9];
    uint64_t sum = 0;
    check_random_init(&random, check_random_seed(9));
    for (int i = 0; i < 50; i++)
        values[i] = i;
    check_random_shuffle(&random, values, 50, sizeof values[0]);
    for (int i = 0; i < 50; i++)
        sum |= UINT64_C(1) << values[i];
    assert_true(sum == (UINT64_C(1) << 50) - 1);
    check_random_word(&random, word, 8);
    assert_int_equal(strspn(word, "abcdefghijklmnopqrstuvwxyz"), 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_seed_gives_one_sequence),
        cmocka_unit_test(draws_stay_in_their_bounds_and_reach_them),
        cmocka_unit_test(a_shuffle_keeps_the_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
