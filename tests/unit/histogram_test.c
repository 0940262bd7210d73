#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/histogram.h"
#include "tests/lib/check_random.h"

static void cells_tile_the_range(void **state)
{
    (void)state;
    uint64_t next = 0;
    for (size_t cell = 0; cell < HISTOGRAM_CELL_COUNT; cell++) {
        assert_int_equal(histogram_cell_low(cell), next);
        assert_true(histogram_cell_high(cell) >= next);
        assert_int_equal(histogram_cell_of(histogram_cell_low(cell)), cell);
        assert_int_equal(histogram_cell_of(histogram_cell_high(cell)), cell);
        next = histogram_cell_high(cell) + 1;
    }
    assert_int_equal(next, HISTOGRAM_VALUE_MAX + 1);
    assert_int_equal(histogram_cell_of(UINT64_MAX), HISTOGRAM_CELL_COUNT - 1);
}

static void quantiles_are_within_a_cell_of_the_sorted_values(void **state)
{
    (void)state;
    enum { COUNT = 5000 };
    static const double quantiles[] = {0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
    struct check_random random;
    struct histogram *histogram = malloc(sizeof *histogram);
    uint64_t *values = malloc(COUNT * sizeof *values);
    check_random_init(&random, check_random_seed(3));
    histogram_init(histogram);
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT; i++) {
        values[i] = check_random_next(&random) >> (20 + check_random_below(&random, 44));
        sum += values[i];
        histogram_record(histogram, values[i]);
    }
    qsort(values, COUNT, sizeof *values, compare_u64);
    for (size_t q = 0; q < sizeof quantiles / sizeof quantiles[0]; q++) {
        size_t rank = (size_t)(quantiles[q] * COUNT + 0.999999);
        uint64_t exact = values[rank > 0 ? rank - 1 : 0];
        uint64_t got = histogram_quantile(histogram, quantiles[q]);
        assert_true(got >= exact);
        assert_true(got <= exact + exact / 31 + 1);
    }
    assert_int_equal(histogram_count(histogram), COUNT);
    assert_int_equal(histogram_sum(histogram), sum);
    assert_int_equal(histogram_min(histogram), values[0]);
    assert_int_equal(histogram_max(histogram), values[COUNT - 1]);
    assert_int_equal(histogram_quantile(histogram, 1), values[COUNT - 1]);
    free(values);
    free(histogram);
}

static void merging_equals_recording_both(void **state)
{
    (void)state;
    struct check_random random;
    struct histogram *parts[3];
    check_random_init(&random, check_random_seed(4));
    for (int i = 0; i < 3; i++) {
        parts[i] = malloc(sizeof *parts[i]);
        histogram_init(parts[i]);
    }
    for (int i = 0; i < 3000; i++) {
        uint64_t value = check_random_next(&random) >> check_random_below(&random, 64);
        histogram_record(parts[i & 1], value);
        histogram_record(parts[2], value);
    }
    histogram_merge(parts[0], parts[1]);
    assert_memory_equal(parts[0], parts[2], sizeof *parts[0]);
    for (int i = 0; i < 3; i++)
        free(parts[i]);
}

static void an_empty_one_says_zero(void **state)
{
    (void)state;
    struct histogram *histogram = malloc(sizeof *histogram);
    histogram_init(histogram);
    assert_int_equal(histogram_quantile(histogram, 0.5), 0);
    assert_int_equal(histogram_min(histogram), 0);
    assert_int_equal(histogram_max(histogram), 0);
    assert_true(histogram_mean(histogram) == 0);
    histogram_record_many(histogram, 10, 4);
    histogram_record_many(histogram, 99, 0);
    assert_int_equal(histogram_count(histogram), 4);
    assert_int_equal(histogram_count_at_most(histogram, 9), 0);
    assert_int_equal(histogram_count_at_most(histogram, 10), 4);
    assert_true(histogram_mean(histogram) == 10);
    free(histogram);
}

static void *record_many(void *arg)
{
    for (uint64_t i = 0; i < 100000; i++)
        histogram_record(arg, i);
    return NULL;
}

static void readers_see_a_growing_count_while_it_is_written(void **state)
{
    (void)state;
    struct histogram *histogram = malloc(sizeof *histogram);
    pthread_t writer;
    histogram_init(histogram);
    assert_int_equal(pthread_create(&writer, NULL, record_many, histogram), 0);
    uint64_t before = 0;
    while (before < 100000) {
        uint64_t count = histogram_count(histogram);
        assert_true(count >= before);
        assert_true(histogram_quantile(histogram, 0.5) < 100000);
        before = count;
    }
    pthread_join(writer, NULL);
    free(histogram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cells_tile_the_range),
        cmocka_unit_test(quantiles_are_within_a_cell_of_the_sorted_values),
        cmocka_unit_test(merging_equals_recording_both),
        cmocka_unit_test(an_empty_one_says_zero),
        cmocka_unit_test(readers_see_a_growing_count_while_it_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
