/* A packed queue is what it was; and small. */
#include "broker/session/queue_packed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define EACH_MAX 60
#define COUNT_MAX (3 * EACH_MAX) /* more than can be packed */

struct model {
    uint64_t sequences[COUNT_MAX];
    uint32_t count, at;
};

static void must_be_next(void *arg, uint64_t sequence)
{
    struct model *model = arg;
    assert_true(model->at < model->count);
    assert_true(sequence == model->sequences[model->at++]);
}

static void each_of_list(const struct position_list *list, struct model *model)
{
    struct span bytes = position_list_bytes(list);
    uint64_t sequence = 0;
    for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        must_be_next(model, sequence);
}

static void fill(struct check_random *random, struct queue_lists *lists, struct model *model)
{
    uint64_t at = check_random_below(random, UINT64_C(1) << check_random_below(random, 50));
    uint32_t counts[3], max = check_random_chance(random, 1, 5) ? EACH_MAX : 14;
    for (uint32_t list = 0; list < 3; list++) {
        counts[list] = (uint32_t)check_random_below(random, max + 1);
        for (uint32_t i = 0; i < counts[list]; i++) {
            at += 1 + check_random_below(random, 30000);
            model->sequences[model->count++] = at;
            if (list == 1)
                assert_true(late_list_add(&lists->late, &at, 1));
            else
                assert_int_equal(position_list_push(list == 0 ? &lists->front : &lists->tail, at), ERR_OK);
        }
    }
}

static void it_is_what_it_was(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(4));
    uint32_t packed_count = 0, long_count = 0;
    for (uint32_t round = 0; round < 5000; round++) {
        struct queue_lists lists = {0}, opened;
        struct model model = {0};
        fill(&random, &lists, &model);
        struct queue_runs runs = {.count = (uint32_t)check_random_below(&random, 1000),
                                  .misses = (uint16_t)check_random_below(&random, 100)};
        runs.next = check_random_below(&random, 2) ? check_random_next(&random) : model.sequences[0];
        runs.max = check_random_below(&random, 2) ? check_random_next(&random) : runs.next + 100000;
        struct queue_packed *packed = queue_packed_new(&runs, &lists);
        assert_int_equal(packed != NULL, model.count <= QUEUE_PACKED_MAX);
        long_count += !packed;
        packed_count += packed != NULL;
        if (packed) {
            assert_true(queue_packed_runs(packed).next == runs.next);
            assert_true(queue_packed_runs(packed).max == runs.max);
            assert_int_equal(queue_packed_runs(packed).count, runs.count);
            assert_int_equal(queue_packed_runs(packed).misses, runs.misses);
            assert_int_equal(queue_packed_has_front(packed), lists.front != NULL);
            assert_int_equal(queue_packed_has_tail(packed), lists.tail != NULL);
            queue_packed_each(packed, must_be_next, &model);
            assert_int_equal(model.at, model.count);
            assert_true(queue_packed_open(packed, &opened));
            model.at = 0;
            each_of_list(opened.front, &model);
            late_list_each(opened.late, must_be_next, &model);
            each_of_list(opened.tail, &model);
            assert_int_equal(model.at, model.count);
            assert_int_equal(position_list_count(opened.front), position_list_count(lists.front));
            assert_int_equal(position_list_count(opened.tail), position_list_count(lists.tail));
            queue_lists_free(&opened);
        }
        free(packed);
        queue_lists_free(&lists);
    }
    assert_true(packed_count > 1000 && long_count > 20);
}

static void the_first_that_must_be_read(void **state)
{
    (void)state;
    const struct queue_runs runs = {0};
    struct queue_lists lists = {0};
    struct queue_packed *packed = queue_packed_new(&runs, &lists);
    assert_int_equal(queue_packed_first(packed), 0);
    free(packed);
    assert_int_equal(position_list_push(&lists.tail, 30), ERR_OK);
    packed = queue_packed_new(&runs, &lists);
    assert_int_equal(queue_packed_first(packed), 30);
    free(packed);
    assert_int_equal(position_list_push(&lists.front, 20), ERR_OK);
    packed = queue_packed_new(&runs, &lists);
    assert_int_equal(queue_packed_first(packed), 20);
    free(packed);
    queue_lists_free(&lists);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_is_what_it_was), cmocka_unit_test(the_first_that_must_be_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
