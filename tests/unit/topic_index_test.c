/* topic_index.c beside a sorted array: topics come and go; each is found, and so is the place of what is not there. */
#include "broker/route/topic_index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define TOPICS_MAX 3000

struct topic {
    char text[16];
};

static struct span text_of(const void *entry) { return span_of(entry, strlen(((const struct topic *)entry)->text)); }

static int compare(const void *a, const void *b)
{
    return topic_index_compare(text_of(*(const struct topic *const *)a), text_of(*(const struct topic *const *)b));
}

/* Few bytes, so that many share their beginning. */
static void draw(struct check_random *random, struct topic *topic)
{
    static const char bytes[] = "/!0ab\x01";
    size_t size = 1 + check_random_below(random, sizeof topic->text - 1);
    memset(topic, 0, sizeof *topic);
    for (size_t i = 0; i < size; i++)
        topic->text[i] = bytes[check_random_below(random, sizeof bytes - 1)];
}

struct model {
    struct topic_index index;
    struct topic *sorted[TOPICS_MAX];
    size_t count;
};

/* How many of the model are below the key. */
static size_t rank_of(const struct model *model, struct span key)
{
    size_t rank = 0;
    while (rank < model->count && topic_index_compare(text_of(model->sorted[rank]), key) < 0)
        rank++;
    return rank;
}

static bool is_there(const struct model *model, struct span key)
{
    const void *found = topic_index_at(&model->index, topic_index_seek(&model->index, key));
    return found && span_equal(text_of(found), key);
}

static void walk_is_the_sorted_array(const struct model *model)
{
    struct topic_place at = topic_index_seek(&model->index, (struct span){0});
    for (size_t i = 0; i < model->count; i++, at = topic_index_next(&model->index, at))
        assert_ptr_equal(topic_index_at(&model->index, at), model->sorted[i]);
    assert_null(topic_index_at(&model->index, at));
}

static void topics_come_and_go(void **state)
{
    (void)state;
    static struct model model;
    struct check_random random;
    check_random_init(&random, check_random_seed(1));
    topic_index_init(&model.index, text_of);
    for (int round = 0; round < 20000; round++) {
        bool is_growing = round / 4000 % 2 == 0;
        struct topic drawn;
        draw(&random, &drawn);
        size_t rank = rank_of(&model, text_of(&drawn));
        const struct topic *there = topic_index_at(&model.index, topic_index_seek(&model.index, text_of(&drawn)));
        assert_ptr_equal(there, rank < model.count ? model.sorted[rank] : NULL);
        if (check_random_below(&random, 8) < (is_growing ? 6u : 1u)) {
            if (is_there(&model, text_of(&drawn)) || model.count == TOPICS_MAX)
                continue;
            struct topic *topic = malloc(sizeof *topic);
            assert_non_null(topic);
            *topic = drawn;
            assert_true(topic_index_insert(&model.index, topic));
            model.sorted[model.count++] = topic;
            qsort(model.sorted, model.count, sizeof(struct topic *), compare);
        } else if (model.count > 0) {
            size_t at = check_random_below(&random, model.count);
            topic_index_remove(&model.index, model.sorted[at]);
            free(model.sorted[at]);
            memmove(model.sorted + at, model.sorted + at + 1, (--model.count - at) * sizeof(struct topic *));
        }
        if (round % 500 == 0)
            walk_is_the_sorted_array(&model);
    }
    for (size_t i = 0; i < model.count; i++)
        free(model.sorted[i]);
    topic_index_deinit(&model.index);
}

static void a_subtree_follows_its_topic(void **state)
{
    (void)state;
    static const char *order[] = {"a", "a/", "a/b", "a/b/", "a/b/c", "a/b!", "a/b0", "a!", "b"};
    for (size_t i = 0; i + 1 < sizeof order / sizeof order[0]; i++)
        assert_true(topic_index_compare(span_of(order[i], strlen(order[i])), span_of(order[i + 1], strlen(order[i + 1]))) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(topics_come_and_go),
        cmocka_unit_test(a_subtree_follows_its_topic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
