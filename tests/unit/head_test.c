/* The head and the merge against the model: any order of times, duplicates, bounds of memory, sealing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/store_model.h"

static struct store_model *model;

static struct merge *merge_of_heads(struct head_cursor *cursors, struct head *const *heads, size_t head_count, size_t device, size_t from,
                                    size_t to, size_t row_count_max)
{
    struct merge_source *sources[8];
    for (size_t i = 0; i < head_count; i++) {
        head_cursor_init(&cursors[i], head_find(heads[i], store_model_device(device)), store_model_time(from), store_model_time(to), i);
        sources[i] = &cursors[i].source;
    }
    return merge_new(sources, head_count, row_count_max);
}

static void check_heads(struct check_random *random, struct head *const *heads, size_t head_count)
{
    struct head_cursor cursors[8];
    for (size_t d = 0; d < MODEL_DEVICES; d++) {
        size_t from = check_random_below(random, MODEL_TIMES), to = from + check_random_below(random, MODEL_TIMES - from);
        size_t rows = 1 + check_random_below(random, 1500);
        assert_true(
            store_model_equals(model, d, 0, MODEL_TIMES - 1, merge_of_heads(cursors, heads, head_count, d, 0, MODEL_TIMES - 1, rows)));
        assert_true(store_model_equals(model, d, from, to, merge_of_heads(cursors, heads, head_count, d, from, to, rows)));
    }
}

/* Times: mostly forward, sometimes late, sometimes the same again. */
static size_t next_time(struct check_random *random, size_t *clock, unsigned style)
{
    switch (style) {
    case 0:
        *clock = (*clock + check_random_below(random, 3)) % MODEL_TIMES;
        return *clock;
    case 1:
        return check_random_below(random, MODEL_TIMES);
    default:
        *clock = (*clock + MODEL_TIMES - 1) % MODEL_TIMES; /* backwards */
        return *clock;
    }
}

static void test_rows_in_any_order_equal_the_model(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(21));
    for (unsigned style = 0; style < 3; style++) {
        memset(model, 0, sizeof *model);
        struct head *head = head_new((size_t)1 << 30, 5);
        size_t clock[MODEL_DEVICES] = {0};
        for (uint64_t step = 0; step < 12000; step++) {
            size_t d = check_random_below(&random, MODEL_DEVICES), t = next_time(&random, &clock[d], style);
            struct head_metric metrics[MODEL_METRICS];
            size_t count = store_model_row(&random, metrics);
            assert_int_equal(head_add_row(head, store_model_device(d), store_model_time(t), metrics, count, step), ERR_OK);
            store_model_write(model, d, t, metrics, count);
        }
        check_heads(&random, &head, 1);
        struct head_stats stats;
        head_get_stats(head, &stats);
        assert_int_equal(stats.point_count, store_model_point_count(model));
        assert_int_equal(stats.device_count, MODEL_DEVICES);
        assert_int_equal(stats.series_count, MODEL_DEVICES * MODEL_METRICS);
        assert_int_equal(stats.source_last, 11999);
        size_t device_count, rows = 0;
        const struct head_device **devices = head_devices_sorted(head, &device_count);
        assert_int_equal(device_count, MODEL_DEVICES);
        for (size_t d = 0; d < device_count; d++) {
            assert_true(span_equal(head_device_id(devices[d]), store_model_device(d)));
            assert_int_equal(head_device_row_count(devices[d]), store_model_row_count(model, d, 0, MODEL_TIMES - 1));
            rows += head_device_row_count(devices[d]);
        }
        assert_int_equal(rows, stats.row_count);
        free(devices);
        head_free(head); /* checks that the account of memory is exact */
    }
}

static void test_the_same_rows_again_change_nothing(void **state)
{
    (void)state;
    struct head *head = head_new((size_t)1 << 20, 5);
    const struct head_metric metrics[] = {{SPAN_LITERAL("a"), 1}, {SPAN_LITERAL("b"), 2}};
    struct head_stats stats;
    for (int repeat = 0; repeat < 3; repeat++)
        for (int64_t t = 0; t < 10; t++)
            assert_int_equal(head_add_row(head, SPAN_LITERAL("d"), t, metrics, 2, 0), ERR_OK);
    head_get_stats(head, &stats);
    assert_int_equal(stats.row_count, 10);
    assert_int_equal(stats.point_count, 20);
    assert_int_equal(stats.overwritten, 40);
    assert_int_equal(stats.series_count, 2);
    assert_true(head_has_series(head, SPAN_LITERAL("d"), SPAN_LITERAL("b")));
    assert_true(head_has_series(head, SPAN_LITERAL("d"), (struct span){0}));
    assert_false(head_has_series(head, SPAN_LITERAL("d"), SPAN_LITERAL("c")));
    assert_false(head_has_series(head, SPAN_LITERAL("e"), SPAN_LITERAL("a")));
    assert_int_equal(head_add_row(head, (struct span){0}, 1, metrics, 2, 0), ERR_INVALID);
    head_free(head);
}

static void test_full_refuses_and_keeps_what_it_has(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(22));
    for (size_t limit = 1000; limit < 400000; limit = limit * 3 / 2) {
        memset(model, 0, sizeof *model);
        struct head *head = head_new(limit, 5);
        size_t refused = 0;
        for (uint64_t step = 0; step < 4000; step++) {
            size_t d = check_random_below(&random, MODEL_DEVICES), t = check_random_below(&random, MODEL_TIMES);
            struct head_metric metrics[MODEL_METRICS];
            size_t count = store_model_row(&random, metrics);
            enum err err = head_add_row(head, store_model_device(d), store_model_time(t), metrics, count, step);
            assert_true(err == ERR_OK || err == ERR_FULL);
            assert_true(head_bytes(head) <= limit);
            if (err == ERR_OK)
                store_model_write(model, d, t, metrics, count);
            refused += err == ERR_FULL;
        }
        assert_true(limit > 100000 || refused > 0);
        check_heads(&random, &head, 1);
        head_free(head);
    }
}

static void test_sealed_and_new_head_merge_with_the_later_one_winning(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(23));
    memset(model, 0, sizeof *model);
    struct head *head = head_new((size_t)1 << 30, 5), *heads[4];
    for (size_t part = 0; part < 4; part++) {
        for (uint64_t step = 0; step < 3000; step++) {
            size_t d = check_random_below(&random, MODEL_DEVICES);
            /* Parts overlap in the middle, so that both runs and single rows are merged. */
            size_t t = part * 500 + check_random_below(&random, 1200);
            struct head_metric metrics[MODEL_METRICS];
            size_t count = store_model_row(&random, metrics);
            assert_int_equal(head_add_row(head, store_model_device(d), store_model_time(t), metrics, count, step), ERR_OK);
            store_model_write(model, d, t, metrics, count);
        }
        if (part < 3) {
            size_t before = head_bytes(head);
            heads[part] = head_seal(head);
            assert_non_null(heads[part]);
            assert_true(head_bytes(head) >= before); /* sealed bytes still count */
        }
    }
    heads[3] = head;
    check_heads(&random, heads, 4);
    for (size_t part = 0; part < 3; part++)
        head_unseal_free(head, heads[part]);
    struct head_stats stats;
    head_get_stats(head, &stats);
    assert_int_equal(head_bytes(head), stats.bytes);
    head_free(head);
}

static enum err failing_next(struct merge_source *source, struct rows *rows_out)
{
    (void)source;
    (void)rows_out;
    return ERR_CORRUPT;
}

static void test_an_error_of_a_source_ends_the_merge(void **state)
{
    (void)state;
    struct merge_source bad = {.rank = 1, .next = failing_next};
    struct merge_source *sources[] = {NULL, &bad};
    struct merge *merge = merge_new(sources, 2, 100);
    struct rows rows;
    assert_int_equal(merge_next(merge, &rows), ERR_CORRUPT);
    merge_free(merge);
    merge = merge_new(sources, 1, 100);
    assert_int_equal(merge_next(merge, &rows), ERR_OK);
    assert_int_equal(rows.row_count, 0);
    assert_int_equal(merge_next(merge, &rows), ERR_OK);
    assert_int_equal(rows.row_count, 0);
    merge_free(merge);
}

int main(void)
{
    model = malloc(sizeof *model);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_rows_again_change_nothing),
        cmocka_unit_test(test_rows_in_any_order_equal_the_model),
        cmocka_unit_test(test_full_refuses_and_keeps_what_it_has),
        cmocka_unit_test(test_sealed_and_new_head_merge_with_the_later_one_winning),
        cmocka_unit_test(test_an_error_of_a_source_ends_the_merge),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(model);
    return failed;
}
