/* The list of a session's filters beside a plain array, through all of its shapes: in order, indexed, with gaps, squeezed. */
#include "broker/session/subscription_list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define KEY 0x7364
#define FILTERS 400

static struct span filter_of(char text[80], unsigned index)
{
    snprintf(text, 80, "%.*s%u/#", (int)(index % 20), "a/b/c/d/e/f/g/h/i/j/", index);
    return span_of_string(text);
}

static void expect_walk(const struct subscription_list *list, const bool model[FILTERS])
{
    uint32_t count = 0, seen = 0, offset = 0;
    for (int i = 0; i < FILTERS; i++)
        count += model[i];
    for (struct span each; subscription_list_next(list, &offset, &each); seen++)
        assert_true(subscription_list_has(list, each));
    assert_int_equal(seen, count);
    assert_int_equal(list ? list->count : 0, count);
}

static void filters_are_a_set(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(19));
    struct subscription_list *list = NULL;
    bool model[FILTERS] = {0};
    char text[80];
    for (int step = 0; step < 20000; step++) {
        unsigned range = step / 2000 % 2 ? FILTERS : 40; /* around the size at which it gets its index, and far above */
        unsigned index = (unsigned)check_random_below(&random, range);
        struct span filter = filter_of(text, index);
        assert_int_equal(subscription_list_has(list, filter), model[index]);
        if (check_random_chance(&random, step / 1000 % 3 ? 2 : 1, 3)) {
            assert_int_equal(subscription_list_add(&list, filter, KEY), 0);
            model[index] = true;
        } else {
            assert_int_equal(subscription_list_remove(&list, filter), model[index]);
            model[index] = false;
        }
        if (step % 50 == 0)
            expect_walk(list, model);
    }
    for (unsigned i = 0; i < FILTERS; i++)
        assert_int_equal(subscription_list_remove(&list, filter_of(text, i)), model[i]);
    assert_null(list);
}

static void filters_are_bounded(void **state)
{
    (void)state;
    struct subscription_list *list = NULL;
    char text[80];
    for (unsigned i = 0; i < SUBSCRIPTION_LIST_FILTERS_MAX; i++)
        assert_int_equal(subscription_list_add(&list, filter_of(text, i), KEY), 0);
    assert_int_equal(subscription_list_add(&list, filter_of(text, SUBSCRIPTION_LIST_FILTERS_MAX), KEY), ERR_FULL);
    assert_int_equal(subscription_list_add(&list, filter_of(text, 3), KEY), ERR_OK); /* there already */
    assert_true(subscription_list_remove(&list, filter_of(text, 7)));
    assert_int_equal(subscription_list_add(&list, filter_of(text, SUBSCRIPTION_LIST_FILTERS_MAX), KEY), 0);
    subscription_list_free(list);
}

static void bytes_are_bounded(void **state)
{
    (void)state;
    struct subscription_list *list = NULL;
    char *text = malloc(UINT16_MAX);
    memset(text, 'x', UINT16_MAX);
    unsigned count = 0;
    enum err err;
    do {
        int size = snprintf(text, 16, "%u", count++);
        text[size] = '/';
        err = subscription_list_add(&list, span_of(text, UINT16_MAX), KEY);
    } while (err == ERR_OK);
    assert_int_equal(err, ERR_FULL);
    assert_true(list->size <= SUBSCRIPTION_LIST_BYTES_MAX);
    assert_true((uint32_t)list->size + UINT16_MAX + 2 > SUBSCRIPTION_LIST_BYTES_MAX);
    subscription_list_free(list);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_are_a_set),
        cmocka_unit_test(filters_are_bounded),
        cmocka_unit_test(bytes_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
