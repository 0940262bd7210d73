/* The topic tree beside a plain list of subscriptions and a slow recursive matcher; large fan-outs; endless levels; memory that comes back;
 * readers that match while the writer changes things (run under TSan); and malloc failing at every place. */
#include <stdlib.h>

/* The tree is compiled into this test, so that the test decides when malloc fails. */
static void *failing_malloc(size_t size);
#define malloc failing_malloc
#include "broker/route/subscriber_place.c"
#include "broker/route/topic_tree.c"
#undef malloc

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static _Thread_local long mallocs_until_failure = -1; /* -1 = never */

static void *failing_malloc(size_t size)
{
    if (mallocs_until_failure == 0)
        return NULL;
    if (mallocs_until_failure > 0)
        mallocs_until_failure--;
    return malloc(size);
}

/* ---- the slow matcher: by the text of the specification, level by level ---- */

static bool slow_levels_match(const char *filter, const char *topic)
{
    if (strcmp(filter, "#") == 0)
        return true;
    size_t filter_size = strcspn(filter, "/"), topic_size = strcspn(topic, "/");
    bool fits = (filter_size == 1 && filter[0] == '+') || (filter_size == topic_size && memcmp(filter, topic, topic_size) == 0);
    if (!fits)
        return false;
    const char *filter_rest = filter + filter_size, *topic_rest = topic + topic_size;
    if (*filter_rest == '\0' || *topic_rest == '\0')
        return *filter_rest == *topic_rest || (*topic_rest == '\0' && strcmp(filter_rest, "/#") == 0);
    return slow_levels_match(filter_rest + 1, topic_rest + 1);
}

static bool slow_match(const char *filter, const char *topic)
{
    if (topic[0] == '$' && (filter[0] == '+' || filter[0] == '#'))
        return false;
    return slow_levels_match(filter, topic);
}

/* ---- helpers ---- */

static struct subscriber sub_of(uint32_t slot)
{
    return (struct subscriber){.number = (uint64_t)(slot * 3 + 1) << 42 | slot, .shard = (uint16_t)(slot % 5)};
}

static uint32_t slot_of(const struct subscriber *sub) { return (uint32_t)sub->number; }

static void add(struct topic_tree *tree, const char *filter, uint32_t slot)
{
    struct subscriber sub = sub_of(slot);
    assert_int_equal(topic_tree_add(tree, NULL, span_of_string(filter), &sub), ERR_OK);
}

static bool take(struct topic_tree *tree, const char *filter, uint32_t slot)
{
    struct subscriber sub = sub_of(slot);
    return topic_tree_remove(tree, span_of_string(filter), sub.number);
}

static size_t match_count(struct topic_tree *tree, const char *topic)
{
    struct match_list list;
    match_list_init(&list);
    assert_int_equal(topic_tree_match(tree, NULL, span_of_string(topic), &list), ERR_OK);
    size_t count = list.count;
    assert_int_equal(topic_tree_any(tree, NULL, span_of_string(topic), &list), count > 0);
    match_list_deinit(&list);
    return count;
}

static size_t tree_bytes(struct topic_tree *tree)
{
    struct topic_tree_stats stats;
    while (topic_tree_poll(tree)) {
    }
    topic_tree_get_stats(tree, &stats);
    assert_int_equal(stats.deferred, 0);
    return stats.bytes;
}

/* ---- cases ---- */

static void filters_match_as_the_specification_says(void **state)
{
    (void)state;
    static const char *const yes[][2] = {
        {"a", "a"},     {"a/b", "a/b"},   {"/", "/"},           {"+/+", "/"},       {"/+", "/"},          {"#", "/"},
        {"#", "a/b/c"}, {"a/#", "a"},     {"a/#", "a/"},        {"a/#", "a/b/c"},   {"a/+", "a/"},        {"a/+/c", "a//c"},
        {"+", "a"},     {"+/a/#", "x/a"}, {"$SYS/#", "$SYS/x"}, {"$SYS/#", "$SYS"}, {"$SYS/+", "$SYS/x"}, {"+/#", "a"},
        {"/#", "/"},    {"/#", "/a/b"},   {"+/$x", "a/$x"},     {"a//b", "a//b"},   {"+/+/+", "//"},
    };
    static const char *const no[][2] = {
        {"a", "/a"},   {"a", "a/"},   {"a/", "a"},  {"+", "/a"},      {"+", "a/b"},   {"/+", "a"}, {"#", "$SYS/x"}, {"+/x", "$SYS/x"},
        {"+", "$SYS"}, {"a/#", "ab"}, {"a/+", "a"}, {"a/+", "a/b/c"}, {"a/+/#", "a"}, {"A", "a"},  {"/#", "a"},     {"+/#", "$a"},
    };
    for (size_t i = 0; i < sizeof yes / sizeof yes[0] + sizeof no / sizeof no[0]; i++) {
        bool expected = i < sizeof yes / sizeof yes[0];
        const char *const *pair = expected ? yes[i] : no[i - sizeof yes / sizeof yes[0]];
        struct topic_tree *tree = topic_tree_new(1);
        add(tree, pair[0], 1);
        if ((match_count(tree, pair[1]) == 1) != expected)
            fail_msg("filter %s topic %s: expected %d", pair[0], pair[1], expected);
        assert_int_equal(slow_match(pair[0], pair[1]), expected);
        assert_int_equal(topic_matches_filter(span_of_string(pair[0]), span_of_string(pair[1])), expected); /* the other reference */
        topic_tree_free(tree);
    }
}

static void malformed_filters_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "a/#/b", "#/a", "a#", "a/b#", "+a", "a+/b", "a/++", "##", "a/#b"};
    struct topic_tree *tree = topic_tree_new(1);
    struct subscriber sub = sub_of(1);
    size_t bytes = tree_bytes(tree);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(topic_tree_add(tree, NULL, span_of_string(bad[i]), &sub), ERR_INVALID);
        assert_false(topic_tree_remove(tree, span_of_string(bad[i]), sub.number));
    }
    static uint8_t large[65536];
    memset(large, 'a', sizeof large);
    assert_int_equal(topic_tree_add(tree, NULL, span_of(large, 65536), &sub), ERR_INVALID);
    assert_int_equal(tree_bytes(tree), bytes);
    assert_int_equal(topic_tree_add(tree, NULL, span_of(large, 65535), &sub), ERR_OK);
    topic_tree_free(tree);
}

static void a_second_subscribe_replaces_the_first(void **state)
{
    (void)state;
    static const char *const filters[] = {"a/b", "a/+", "a/#"};
    for (size_t i = 0; i < 3; i++) {
        struct topic_tree *tree = topic_tree_new(1);
        struct span filter = span_of_string(filters[i]);
        for (uint32_t others = 0; others < 80; others++) { /* alone, in a block, in a fan-out */
            struct subscriber sub = {.number = 9, .shard = 9, .qos = (uint8_t)(others % 3), .subscription_id = others + 1}, got;
            bool was_there;
            assert_int_equal(topic_tree_add(tree, &was_there, filter, &sub), ERR_OK);
            assert_int_equal(was_there, others > 0);
            assert_true(topic_tree_get(tree, &got, filter, 9));
            assert_memory_equal(&got, &sub, sizeof sub);
            assert_false(topic_tree_get(tree, &got, filter, (uint64_t)1 << 42 | 9)); /* of another epoch: another session */
            assert_int_equal(match_count(tree, "a/b"), others + 1);
            add(tree, filters[i], 1000 + others);
        }
        topic_tree_free(tree);
    }
}

#define MODEL_SUBS 3000

struct model_sub {
    char filter[32];
    struct subscriber sub;
    struct topic_filter_ref ref; /* while it is there */
    bool there;
};

static void random_text(struct check_random *random, char *text, bool filter)
{
    static const char *const names[] = {"a", "b", "", "$SYS", "long-level-name", "$"};
    size_t levels = 1 + (size_t)check_random_below(random, 5), at = 0;
    for (size_t level = 0; level < levels && at < 24; level++) {
        if (level > 0)
            text[at++] = '/';
        if (filter && check_random_chance(random, 1, 3)) {
            text[at++] = '+';
        } else if (filter && check_random_chance(random, 1, 8)) {
            text[at++] = '#';
            break;
        } else {
            const char *name = names[check_random_below(random, at < 8 ? 6 : 3)];
            memcpy(text + at, name, strlen(name));
            at += strlen(name);
        }
    }
    if (at == 0)
        text[at++] = '/';
    text[at] = '\0';
}

static int by_identity(const void *a, const void *b) { return memcmp(a, b, sizeof(struct subscriber)); }

static void model_check(struct topic_tree *tree, struct model_sub *model, const char *topic, struct match_list *list)
{
    static struct subscriber expected[MODEL_SUBS];
    size_t count = 0;
    for (size_t i = 0; i < MODEL_SUBS; i++)
        if (model[i].there && slow_match(model[i].filter, topic))
            expected[count++] = model[i].sub;
    assert_int_equal(topic_tree_match(tree, NULL, span_of_string(topic), list), ERR_OK);
    if (list->count != count)
        fail_msg("topic %s: %zu matches, expected %zu", topic, list->count, count);
    qsort(expected, count, sizeof expected[0], by_identity);
    if (count > 0) {
        qsort(list->matches, count, sizeof expected[0], by_identity);
        assert_memory_equal(list->matches, expected, count * sizeof expected[0]);
    }
    assert_int_equal(topic_tree_any(tree, NULL, span_of_string(topic), list), count > 0);
}

/* The same place as when it was added, and the filter's text at it. */
static void check_place(struct topic_tree *tree, const struct model_sub *one)
{
    uint8_t text[sizeof one->filter];
    struct span filter = span_of_string(one->filter);
    struct topic_filter_ref ref = topic_tree_find(tree, NULL, filter, one->sub.number);
    assert_int_equal(ref.word, one->there ? one->ref.word : 0);
    if (!one->there)
        return;
    size_t size = topic_filter_text(ref, NULL);
    assert_true(size <= sizeof text);
    assert_int_equal(topic_filter_text(ref, text), size);
    assert_true(span_equal(span_of(text, size), filter));
}

/* With `starve`, malloc fails at random: a refused add changes nothing, and a removal is spared (it cannot be refused). */
static void run_model(uint64_t seed, bool starve)
{
    struct check_random random;
    check_random_init(&random, check_random_seed(seed));
    struct topic_tree *tree = topic_tree_new(seed);
    size_t empty_bytes = tree_bytes(tree);
    static struct model_sub model[MODEL_SUBS];
    memset(model, 0, sizeof model);
    struct match_list list;
    match_list_init(&list);
    size_t there = 0, refused = 0;
    for (int step = 0; step < 40000; step++) {
        struct model_sub *one = &model[check_random_below(&random, MODEL_SUBS)];
        bool grow = (step / 8000) % 2 == 0;
        if (!one->there && (grow || check_random_chance(&random, 1, 10))) {
            /* The place in the model is in the number, so each pair of filter and identity is there at most once. */
            random_text(&random, one->filter, true);
            one->sub = (struct subscriber){.number = check_random_next(&random) << 32 | (uint64_t)(one - model), .shard = 3};
            bool was_there = true;
            mallocs_until_failure = starve ? (long)check_random_below(&random, 6) : -1;
            enum err err = topic_tree_add(tree, &was_there, span_of_string(one->filter), &one->sub);
            mallocs_until_failure = -1;
            assert_true(err == ERR_OK || (starve && err == ERR_NOMEM));
            refused += err != ERR_OK;
            one->there = err == ERR_OK;
            assert_int_equal(was_there, !one->there);
            there += one->there;
            one->ref = topic_tree_find(tree, NULL, span_of_string(one->filter), one->sub.number);
            assert_int_equal(one->ref.word != 0, one->there);
        } else if (one->there && check_random_chance(&random, 1, 3)) {
            one->sub.qos = (uint8_t)check_random_below(&random, 3);
            bool was_there = false;
            assert_int_equal(topic_tree_add(tree, &was_there, span_of_string(one->filter), &one->sub), ERR_OK);
            assert_true(was_there);
        } else if (one->there && !grow) {
            check_place(tree, one);
            assert_false(topic_tree_remove(tree, span_of_string(one->filter), one->sub.number ^ (uint64_t)1 << 63));
            assert_true(topic_tree_remove(tree, span_of_string(one->filter), one->sub.number));
            assert_false(topic_tree_remove(tree, span_of_string(one->filter), one->sub.number));
            one->there = false;
            there--;
        }
        if (one->filter[0] != '\0')
            check_place(tree, one);
        if (step % 16 == 0) {
            char topic[32];
            random_text(&random, topic, false);
            model_check(tree, model, topic, &list);
        }
        struct topic_tree_stats stats;
        topic_tree_get_stats(tree, &stats);
        assert_int_equal(stats.subscriptions, there);
    }
    assert_int_equal(refused > 0, starve);
    for (size_t i = 0; i < MODEL_SUBS; i++)
        if (model[i].there)
            assert_true(topic_tree_remove(tree, span_of_string(model[i].filter), model[i].sub.number));
    struct topic_tree_stats stats;
    topic_tree_get_stats(tree, &stats);
    assert_int_equal(stats.exact_filters + stats.wildcard_filters + stats.nodes + stats.subscriptions, 0);
    assert_int_equal(tree_bytes(tree), empty_bytes); /* everything comes back */
    match_list_deinit(&list);
    topic_tree_free(tree);
}

static void matches_what_a_plain_list_matches(void **state)
{
    (void)state;
    run_model(1, false);
    run_model(2, false);
}

static void survives_malloc_failing_anywhere(void **state)
{
    (void)state;
    run_model(3, true);
}

static void a_large_fan_out_grows_and_shrinks(void **state)
{
    (void)state;
    enum { MANY = 20000 };
    struct topic_tree *tree = topic_tree_new(1);
    size_t empty_bytes = tree_bytes(tree);
    struct match_list list;
    match_list_init(&list);
    static uint8_t seen[MANY];
    for (uint32_t slot = 0; slot < MANY; slot++)
        add(tree, "fleet/#", slot);
    struct topic_tree_stats stats;
    topic_tree_get_stats(tree, &stats);
    assert_int_equal(stats.wildcard_filters, 1);
    assert_true(tree_bytes(tree) < MANY * 40u);
    for (uint32_t left = MANY;; left -= left / 3 + 1) { /* sizes down to 0, everyone exactly once in each */
        memset(seen, 0, sizeof seen);
        assert_int_equal(topic_tree_match(tree, NULL, SPAN_LITERAL("fleet/7/x"), &list), ERR_OK);
        assert_int_equal(list.count, left);
        for (size_t i = 0; i < list.count; i++) {
            assert_true(slot_of(&list.matches[i]) >= MANY - left);
            assert_int_equal(seen[slot_of(&list.matches[i])]++, 0);
        }
        if (left == 0)
            break;
        for (uint32_t slot = MANY - left; slot < MANY - left + left / 3 + 1; slot++) {
            assert_true(take(tree, "fleet/#", slot));
            assert_false(take(tree, "fleet/#", slot));
        }
    }
    assert_int_equal(tree_bytes(tree), empty_bytes);
    match_list_trim(&list, 100);
    assert_int_equal(list.capacity, 0);
    match_list_deinit(&list);
    topic_tree_free(tree);
}

static void levels_without_end_need_no_stack(void **state)
{
    (void)state;
    struct topic_tree *tree = topic_tree_new(1);
    static uint8_t slashes[65535], pluses[65535], deep[65535];
    memset(slashes, '/', sizeof slashes);
    for (size_t i = 0; i < sizeof pluses; i++) {
        pluses[i] = i % 2 == 0 ? '+' : '/';
        deep[i] = i % 2 == 0 ? 'a' : '/';
    }
    size_t empty_bytes = tree_bytes(tree);
    struct subscriber sub = sub_of(1);
    struct match_list list;
    match_list_init(&list);
    assert_int_equal(topic_tree_add(tree, NULL, span_of(slashes, sizeof slashes), &sub), ERR_OK);
    assert_int_equal(topic_tree_add(tree, NULL, span_of(pluses, sizeof pluses), &sub), ERR_OK);
    assert_int_equal(topic_tree_match(tree, NULL, span_of(slashes, sizeof slashes), &list), ERR_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(topic_tree_match(tree, NULL, span_of(deep, sizeof deep), &list), ERR_OK);
    assert_int_equal(list.count, 1);
    assert_int_equal(topic_tree_match(tree, NULL, span_of(deep, sizeof deep - 2), &list), ERR_OK);
    assert_int_equal(list.count, 0);
    assert_true(topic_tree_remove(tree, span_of(slashes, sizeof slashes), sub.number));
    assert_true(topic_tree_remove(tree, span_of(pluses, sizeof pluses), sub.number));
    assert_int_equal(tree_bytes(tree), empty_bytes);
    match_list_deinit(&list);
    topic_tree_free(tree);
}

static void topics_without_subscriber_leave_nothing_behind(void **state)
{
    (void)state;
    struct topic_tree *tree = topic_tree_new(1);
    add(tree, "a/+/c", 1);
    add(tree, "a/b", 2);
    size_t bytes = tree_bytes(tree);
    struct match_list list;
    match_list_init(&list);
    size_t capacity = 0;
    for (int i = 0; i < 20000; i++) {
        char topic[64];
        snprintf(topic, sizeof topic, "a/%d/%d", i, i * 7);
        assert_int_equal(topic_tree_match(tree, NULL, span_of_string(topic), &list), ERR_OK);
        assert_int_equal(list.count, 0);
        if (i == 0)
            capacity = list.capacity + list.scratch_capacity;
    }
    assert_int_equal(list.capacity + list.scratch_capacity, capacity);
    assert_int_equal(tree_bytes(tree), bytes);
    match_list_deinit(&list);
    topic_tree_free(tree);
}

/* ---- threads ---- */

#define STEADY 100u /* slots 0..99 are subscribed to "s/#" and "s/t" and "+/t" for ever; slots from 100 on come and go everywhere */

struct shared {
    struct topic_tree *tree;
    _Atomic bool stop;
    _Atomic uint64_t rounds[2];
};

static const char *const shared_filters[] = {"s/#", "s/t", "+/t", "s/+", "x/y/+", "x/y"};

struct reader {
    struct shared *shared;
    int index;
};

static void *match_on(void *arg)
{
    struct reader *self = arg;
    struct epoch_reader *reader = topic_tree_reader_register(self->shared->tree);
    struct match_list list;
    match_list_init(&list);
    for (uint64_t round = 1; !atomic_load_explicit(&self->shared->stop, memory_order_relaxed); round++) {
        epoch_begin(reader);
        if (topic_tree_match(self->shared->tree, reader, SPAN_LITERAL("s/t"), &list) != ERR_OK)
            abort();
        uint32_t steady[STEADY] = {0};
        static _Thread_local uint8_t others[4096];
        memset(others, 0, sizeof others);
        for (size_t i = 0; i < list.count; i++) {
            struct subscriber *sub = &list.matches[i];
            struct subscriber whole = sub_of(slot_of(sub));
            if (sub->number != whole.number || sub->subscription_id != slot_of(sub) + sub->qos)
                abort(); /* torn */
            if (slot_of(sub) < STEADY)
                steady[slot_of(sub)]++;
            else if (++others[slot_of(sub) % 4096] > 3)
                abort(); /* more often than it has filters */
        }
        for (uint32_t slot = 0; slot < STEADY; slot++)
            if (steady[slot] != 3)
                abort(); /* missed, or seen twice */
        if (!topic_tree_any(self->shared->tree, reader, SPAN_LITERAL("s/u"), &list))
            abort();
        /* A place that is found stays. */
        struct topic_filter_ref places[3];
        uint64_t number = sub_of((uint32_t)(round % STEADY)).number;
        for (int i = 0; i < 3; i++)
            places[i] = topic_tree_find(self->shared->tree, reader, span_of_string(shared_filters[i]), number);
        if (topic_tree_find(self->shared->tree, reader, SPAN_LITERAL("s/u"), number).word != 0)
            abort();
        epoch_end(reader);
        for (int i = 0; i < 3; i++) {
            uint8_t text[3];
            if (places[i].word == 0 || topic_filter_text(places[i], NULL) != 3 || topic_filter_text(places[i], text) != 3 ||
                memcmp(text, shared_filters[i], 3) != 0)
                abort();
        }
        atomic_store_explicit(&self->shared->rounds[self->index], round, memory_order_relaxed);
    }
    match_list_deinit(&list);
    epoch_reader_unregister(reader);
    return NULL;
}

static void readers_see_every_steady_subscription_exactly_once(void **state)
{
    (void)state;
    const char *const *filters = shared_filters;
    struct shared shared = {.tree = topic_tree_new(5)};
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    for (uint32_t slot = 0; slot < STEADY; slot++) {
        struct subscriber sub = sub_of(slot);
        sub.subscription_id = slot;
        for (int i = 0; i < 3; i++)
            assert_int_equal(topic_tree_add(shared.tree, NULL, span_of_string(filters[i]), &sub), ERR_OK);
    }
    pthread_t threads[2];
    struct reader readers[2];
    for (int i = 0; i < 2; i++) {
        readers[i] = (struct reader){&shared, i};
        pthread_create(&threads[i], NULL, match_on, &readers[i]);
    }
    static bool there[6][4096];
    for (int step = 0;; step++) {
        bool looked = atomic_load_explicit(&shared.rounds[0], memory_order_relaxed) > 20 &&
                      atomic_load_explicit(&shared.rounds[1], memory_order_relaxed) > 20;
        if (step >= 40000 && looked)
            break;
        bool grow = (step / 5000) % 2 == 0;
        /* Each of the others has at most three of the filters that match "s/t". */
        size_t filter = (size_t)check_random_below(&random, 6);
        uint32_t slot = STEADY + (uint32_t)check_random_below(&random, 1500);
        struct subscriber sub = sub_of(slot);
        if (filter == 3 || (step % 4 == 0 && slot % 2 == 0)) {
            slot = (uint32_t)check_random_below(&random, STEADY); /* replaces a steady one: the identity stays */
            sub = sub_of(slot);
            sub.qos = (uint8_t)check_random_below(&random, 3);
            sub.subscription_id = slot + sub.qos;
            assert_int_equal(topic_tree_add(shared.tree, NULL, span_of_string(filters[step % 3]), &sub), ERR_OK);
        } else if (grow) {
            sub.subscription_id = slot;
            assert_int_equal(topic_tree_add(shared.tree, NULL, span_of_string(filters[filter]), &sub), ERR_OK);
            there[filter][slot] = true;
        } else {
            assert_int_equal(topic_tree_remove(shared.tree, span_of_string(filters[filter]), sub.number), there[filter][slot]);
            there[filter][slot] = false;
        }
        if (step % 16 == 0)
            topic_tree_poll(shared.tree);
    }
    atomic_store_explicit(&shared.stop, true, memory_order_relaxed);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    tree_bytes(shared.tree);
    topic_tree_free(shared.tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_match_as_the_specification_says),
        cmocka_unit_test(malformed_filters_are_refused),
        cmocka_unit_test(a_second_subscribe_replaces_the_first),
        cmocka_unit_test(matches_what_a_plain_list_matches),
        cmocka_unit_test(survives_malloc_failing_anywhere),
        cmocka_unit_test(a_large_fan_out_grows_and_shrinks),
        cmocka_unit_test(levels_without_end_need_no_stack),
        cmocka_unit_test(topics_without_subscriber_leave_nothing_behind),
        cmocka_unit_test(readers_see_every_steady_subscription_exactly_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
