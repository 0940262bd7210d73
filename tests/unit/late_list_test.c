/* late_list.c beside a sorted array: what is added goes to its place or, when memory is short, nowhere; what is taken is the least. */
#include <stdlib.h>

/* The list is compiled into this test, so that the test decides when memory is short. */
static void *failing_calloc(size_t count, size_t size);
static void *failing_realloc(void *at, size_t size);
#define calloc failing_calloc
#define realloc failing_realloc
#include "broker/session/late_list.c"
#include "common/position_list.c"
#undef calloc
#undef realloc

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define MODEL_MAX 4096

static int allocations_until_failure = -1; /* -1 = never */
static bool is_short(void) { return allocations_until_failure == 0 || (allocations_until_failure > 0 && --allocations_until_failure == 0); }
static void *failing_calloc(size_t count, size_t size) { return is_short() ? NULL : calloc(count, size); }
static void *failing_realloc(void *at, size_t size) { return is_short() ? NULL : realloc(at, size); }

struct model {
    uint64_t items[MODEL_MAX];
    uint32_t count, at;
};

static void model_add(struct model *model, uint64_t sequence)
{
    uint32_t at = model->count++;
    for (; at > 0 && model->items[at - 1] > sequence; at--)
        model->items[at] = model->items[at - 1];
    model->items[at] = sequence;
}

static void check_next(void *arg, uint64_t sequence)
{
    struct model *model = arg;
    assert_true(model->at < model->count);
    assert_true(sequence == model->items[model->at++]);
}

static void check_same(const struct late_list *list, struct model *model)
{
    model->at = 0;
    late_list_each(list, check_next, model);
    assert_int_equal(model->at, model->count);
    assert_false(late_list_is_longer(list, model->count));
    for (uint32_t than = 0; than < model->count; than += 1 + than / 3)
        assert_true(late_list_is_longer(list, than));
    assert_true(model->count == 0 || late_list_is_longer(list, model->count - 1));
    for (const struct late_list *piece = list; piece; piece = piece->next) {
        assert_in_range(position_list_count(piece->sequences), 1, LATE_PIECE);
        assert_ptr_equal(piece->next ? piece->next->previous : list->previous, piece);
    }
}

static bool has(const struct model *model, uint64_t sequence)
{
    for (uint32_t i = 0; i < model->count; i++)
        if (model->items[i] == sequence)
            return true;
    return false;
}

/* 1..LATE_ADD_MAX new ones, ascending: most above all, some anywhere. */
static uint32_t draw(struct check_random *random, const struct model *model, uint64_t *more_out)
{
    uint64_t top = model->count > 0 ? model->items[model->count - 1] : 1000;
    uint64_t at = check_random_chance(random, 2, 3) ? top + 1 : check_random_below(random, top);
    uint64_t distance = check_random_chance(random, 1, 4) ? 1000 : 3;
    uint32_t wanted = 1 + (uint32_t)check_random_below(random, LATE_ADD_MAX), count = 0;
    for (; count < wanted; at += 1 + check_random_below(random, distance))
        if (!has(model, at))
            more_out[count++] = at;
    return count;
}

static void what_is_added_is_taken_in_order(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(7));
    uint32_t refused = 0, pieces_max = 0;
    for (int round = 0; round < 20; round++) {
        struct late_list *list = NULL;
        static struct model model;
        model.count = 0;
        for (int step = 0; step < 300; step++) {
            uint64_t more[LATE_ADD_MAX], taken;
            uint32_t count = model.count + LATE_ADD_MAX <= MODEL_MAX ? draw(&random, &model, more) : 0;
            allocations_until_failure = check_random_chance(&random, 1, 3) ? 1 + (int)check_random_below(&random, 5) : -1;
            bool is_added = count > 0 && late_list_add(&list, more, count);
            refused += count > 0 && !is_added;
            assert_true(is_added || count == 0 || allocations_until_failure == 0);
            allocations_until_failure = -1;
            for (uint32_t i = 0; is_added && i < count; i++)
                model_add(&model, more[i]);
            for (uint64_t n = check_random_chance(&random, 1, 10) ? check_random_below(&random, 100) : 0; n > 0 && model.count > 0; n--) {
                assert_true(late_list_first(list, &taken));
                assert_true(taken == model.items[0]);
                assert_true(late_list_pop(&list, &taken));
                assert_true(taken == model.items[0]);
                memmove(model.items, model.items + 1, --model.count * sizeof model.items[0]);
            }
            check_same(list, &model);
            uint32_t pieces = 0;
            for (const struct late_list *piece = list; piece; piece = piece->next)
                pieces++;
            pieces_max = pieces > pieces_max ? pieces : pieces_max;
        }
        late_list_free(list);
    }
    assert_true(refused > 50);
    assert_true(pieces_max > 3);
}

static void an_empty_one_is_null(void **state)
{
    (void)state;
    struct late_list *list = NULL;
    uint64_t sequence = 5;
    assert_false(late_list_first(list, &sequence));
    assert_false(late_list_pop(&list, &sequence));
    assert_true(late_list_add(&list, &sequence, 1));
    assert_true(late_list_pop(&list, &sequence));
    assert_int_equal(sequence, 5);
    assert_null(list);
    late_list_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_added_is_taken_in_order),
        cmocka_unit_test(an_empty_one_is_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
