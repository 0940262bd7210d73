#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/list.h"
#include "tests/lib/check_random.h"

#define ELEMENT_COUNT 20

struct element {
    int id;
    struct list_node node;
};

/* The slow obvious list: an array of ids. */
struct model {
    int ids[ELEMENT_COUNT];
    size_t count;
};

static void model_insert(struct model *model, size_t at, int id)
{
    for (size_t i = model->count++; i > at; i--)
        model->ids[i] = model->ids[i - 1];
    model->ids[at] = id;
}

static void model_remove(struct model *model, size_t at)
{
    model->count--;
    for (size_t i = at; i < model->count; i++)
        model->ids[i] = model->ids[i + 1];
}

static void assert_same(const struct list_node *head, const struct model *model)
{
    size_t at = 0;
    assert_int_equal(list_count(head), model->count);
    assert_int_equal(list_is_empty(head), model->count == 0);
    LIST_EACH(node, head)
    {
        assert_int_equal(LIST_ENTRY(node, struct element, node)->id, model->ids[at]);
        assert_ptr_equal(node->next->prev, node);
        at++;
    }
}

static void list_behaves_like_an_array(void **state)
{
    (void)state;
    struct check_random random;
    struct element elements[ELEMENT_COUNT];
    struct list_node head;
    struct model model = {.count = 0};
    check_random_init(&random, check_random_seed(1));
    list_init(&head);
    for (int i = 0; i < ELEMENT_COUNT; i++) {
        elements[i].id = i;
        list_node_init(&elements[i].node);
    }
    for (int step = 0; step < 20000; step++) {
        struct element *element = &elements[check_random_below(&random, ELEMENT_COUNT)];
        size_t at = 0;
        while (at < model.count && model.ids[at] != element->id)
            at++;
        assert_int_equal(list_node_is_linked(&element->node), at < model.count);
        if (at < model.count) {
            list_remove(&element->node);
            model_remove(&model, at);
        } else if (check_random_chance(&random, 1, 2)) {
            list_push_back(&head, &element->node);
            model_insert(&model, model.count, element->id);
        } else if (model.count > 0 && check_random_chance(&random, 1, 2)) {
            size_t place = check_random_below(&random, model.count);
            list_insert_after(&elements[model.ids[place]].node, &element->node);
            model_insert(&model, place + 1, element->id);
        } else {
            list_push_front(&head, &element->node);
            model_insert(&model, 0, element->id);
        }
        assert_same(&head, &model);
    }
    while (model.count > 0) {
        assert_int_equal(LIST_ENTRY(list_last(&head), struct element, node)->id, model.ids[model.count - 1]);
        assert_int_equal(LIST_ENTRY(list_pop_front(&head), struct element, node)->id, model.ids[0]);
        model_remove(&model, 0);
    }
    assert_null(list_pop_front(&head));
}

static void splice_moves_all(void **state)
{
    (void)state;
    struct element elements[4];
    struct list_node a, b;
    list_init(&a);
    list_init(&b);
    for (int i = 0; i < 4; i++) {
        elements[i].id = i;
        list_node_init(&elements[i].node);
        list_push_back(i < 2 ? &a : &b, &elements[i].node);
    }
    list_splice_back(&a, &b);
    assert_true(list_is_empty(&b));
    assert_same(&a, &(struct model){{0, 1, 2, 3}, 4});
    list_splice_back(&a, &b);
    assert_same(&a, &(struct model){{0, 1, 2, 3}, 4});
    LIST_EACH_SAFE(node, next, &a)
    if (LIST_ENTRY(node, struct element, node)->id % 2)
        list_remove(node);
    assert_same(&a, &(struct model){{0, 2}, 2});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_behaves_like_an_array),
        cmocka_unit_test(splice_moves_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
