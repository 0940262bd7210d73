/* position_list.c against an array: what goes in at the end comes out at the front, and the bytes say the same at any time. */
#include <stdlib.h>

/* The list is compiled into this test, so that the test decides when realloc fails. */
static void *failing_realloc(void *at, size_t size);
#define realloc failing_realloc
#include "common/position_list.c"
#undef realloc

#include "tests/lib/check_random.h"

#include <setjmp.h>
#include <stdarg.h>

#include <malloc.h>

#include <cmocka.h>

#define OK(call) assert_int_equal((call), ERR_OK)
#define MODEL_MAX 4096

static bool does_realloc_fail;
static void *failing_realloc(void *at, size_t size) { return does_realloc_fail ? NULL : realloc(at, size); }

struct model {
    uint64_t items[MODEL_MAX];
    size_t first, end;
};

static void assert_same(const struct position_list *list, const struct model *model)
{
    assert_int_equal(position_list_count(list), model->end - model->first);
    struct span bytes = position_list_bytes(list);
    size_t offset = 0;
    uint64_t sequence = 0;
    for (size_t i = model->first; i < model->end; i++) {
        OK(position_list_next(bytes, &offset, &sequence));
        assert_int_equal(sequence, model->items[i]);
    }
    assert_int_equal(position_list_next(bytes, &offset, &sequence), ERR_AGAIN);
    uint64_t first;
    assert_int_equal(position_list_first(list, &first), model->first < model->end);
    if (model->first < model->end)
        assert_int_equal(first, model->items[model->first]);
}

/* Mostly a little more than the last, sometimes anything. */
static uint64_t draw_next(struct check_random *random, uint64_t last)
{
    switch (check_random_below(random, 20)) {
    case 0:
        return check_random_next(random);
    case 1:
        return last - check_random_below(random, 100);
    case 2:
        return check_random_below(random, 2) ? 0 : UINT64_MAX;
    case 3:
        return last + check_random_below(random, UINT64_C(1) << check_random_below(random, 63));
    default:
        return last + check_random_below(random, 100);
    }
}

static void any_pushes_and_pops_leave_what_an_array_would(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(41));
    for (int round = 0; round < 200; round++) {
        struct position_list *list = NULL;
        static struct model model;
        model.first = model.end = 0;
        uint64_t last = check_random_next(&random) >> check_random_below(&random, 64);
        uint64_t bias = 1 + check_random_below(&random, 8);
        for (int step = 0; step < 300; step++) {
            if (check_random_below(&random, 10) < bias && model.end < MODEL_MAX) {
                last = draw_next(&random, last);
                OK(position_list_push(&list, last));
                model.items[model.end++] = last;
            } else if (check_random_chance(&random, 1, 8)) {
                uint32_t count = (uint32_t)check_random_below(&random, model.end - model.first + 1);
                position_list_drop(&list, count);
                model.first += count;
            } else {
                uint64_t popped;
                bool is_there = model.first < model.end;
                assert_int_equal(position_list_pop(&list, &popped), is_there);
                if (is_there)
                    assert_int_equal(popped, model.items[model.first++]);
            }
            assert_same(list, &model);
        }
        position_list_free(list);
    }
}

static void all_are_pushed_or_none(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(42));
    uint32_t failures = 0;
    for (int round = 0; round < 50; round++) {
        struct position_list *list = NULL;
        static struct model model;
        model.first = model.end = 0;
        uint64_t last = 0;
        for (int step = 0; step < 200; step++) {
            uint64_t more[12];
            uint32_t count = (uint32_t)check_random_below(&random, 13);
            for (uint32_t i = 0; i < count; i++)
                more[i] = last = draw_next(&random, last);
            does_realloc_fail = check_random_chance(&random, 1, 3);
            enum err err = position_list_push_all(&list, more, count);
            does_realloc_fail = false;
            assert_true(err == ERR_OK || err == ERR_NOMEM);
            failures += err != ERR_OK;
            for (uint32_t i = 0; !err && i < count; i++)
                model.items[model.end++] = more[i];
            assert_same(list, &model);
            assert_int_equal(position_list_last(list), model.end > 0 ? model.items[model.end - 1] : 0);
        }
        position_list_free(list);
    }
    assert_true(failures > 100);
}

static void an_empty_list_is_null_again(void **state)
{
    (void)state;
    struct position_list *list = NULL;
    uint64_t sequence;
    assert_false(position_list_pop(&list, &sequence));
    OK(position_list_push(&list, 7));
    assert_true(position_list_pop(&list, &sequence));
    assert_int_equal(sequence, 7);
    assert_null(list);
    assert_int_equal(position_list_bytes(NULL).size, 0);
    position_list_free(NULL);
}

static void neighbours_take_a_byte_each(void **state)
{
    (void)state;
    struct position_list *list = NULL;
    for (uint64_t i = 0; i < 1000; i++)
        OK(position_list_push(&list, 1000000000 + i));
    assert_in_range(position_list_bytes(list).size, 1000, 1005);
    position_list_free(list);
}

static void put_writes_what_push_writes(void **state)
{
    (void)state;
    struct position_list *list = NULL;
    uint8_t bytes[200];
    size_t size = 0;
    uint64_t last = 0;
    static const uint64_t items[] = {5, 6, 900, 3, UINT64_MAX, 0, UINT64_C(1) << 63, 1};
    for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
        OK(position_list_push(&list, items[i]));
        size += position_list_put(bytes + size, &last, items[i]);
        assert_int_equal(last, items[i]);
    }
    assert_true(span_equal(position_list_bytes(list), span_of(bytes, size)));
    position_list_free(list);
}

static void a_list_that_was_long_gives_back(void **state)
{
    (void)state;
    struct position_list *list = NULL;
    uint64_t sequence = 0;
    position_list_trim(&list);
    assert_null(list);
    for (uint64_t i = 1; i <= 1000; i++)
        OK(position_list_push(&list, i << 20));
    for (uint64_t i = 1; i <= 990; i++) {
        assert_true(position_list_pop(&list, &sequence));
        if (i % 100 == 0)
            position_list_trim(&list);
    }
    position_list_trim(&list);
    assert_true(malloc_usable_size(list) <= 128);
    OK(position_list_push(&list, UINT64_C(1001) << 20));
    assert_int_equal(position_list_count(list), 11);
    for (uint64_t i = 991; i <= 1001; i++) {
        assert_true(position_list_pop(&list, &sequence));
        assert_int_equal(sequence, i << 20);
    }
    assert_null(list);
}

static void bytes_cut_short_or_too_long_are_corrupt(void **state)
{
    (void)state;
    static const uint8_t cut[] = {4, 0x80};
    static const uint8_t wide[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02};
    size_t offset = 0;
    uint64_t sequence = 0;
    OK(position_list_next(span_of(cut, 2), &offset, &sequence));
    assert_int_equal(sequence, 2);
    assert_int_equal(position_list_next(span_of(cut, 2), &offset, &sequence), ERR_CORRUPT);
    offset = 0;
    assert_int_equal(position_list_next(span_of(wide, sizeof wide), &offset, &sequence), ERR_CORRUPT);
    assert_int_equal(position_list_next(span_of(NULL, 0), &offset, &sequence), ERR_AGAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_pushes_and_pops_leave_what_an_array_would),
        cmocka_unit_test(all_are_pushed_or_none),
        cmocka_unit_test(an_empty_list_is_null_again),
        cmocka_unit_test(neighbours_take_a_byte_each),
        cmocka_unit_test(put_writes_what_push_writes),
        cmocka_unit_test(a_list_that_was_long_gives_back),
        cmocka_unit_test(bytes_cut_short_or_too_long_are_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
