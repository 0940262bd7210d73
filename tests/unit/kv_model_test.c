/* Random histories of both implementations beside a slow model: trees as sorted arrays. */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "tests/lib/check_random.h"
#include "tests/lib/kv_bench.h"

#define MODEL_TREES 3
#define MODEL_MAX 256

struct item {
    uint8_t key[KV_KEY_MAX];
    size_t key_size, value_size;
    uint8_t value_seed;
};

struct model {
    struct {
        struct item items[MODEL_MAX];
        size_t count;
    } trees[MODEL_TREES];
};

/* A transaction, what it should see and where its walks should stand. */
struct view {
    struct kv_txn *txn;
    struct model model;
    struct {
        bool is_set;
        struct item at;
    } places[MODEL_TREES];
};

static int item_compare(const struct item *a, struct span key) { return span_compare(span_of(a->key, a->key_size), key); }

/* The number of items before `key`. */
static size_t model_rank(const struct model *model, int tree, struct span key)
{
    size_t rank = 0;
    while (rank < model->trees[tree].count && key.size && item_compare(&model->trees[tree].items[rank], key) < 0)
        rank++;
    return rank;
}

static bool model_has(const struct model *model, int tree, size_t rank, struct span key)
{
    return rank < model->trees[tree].count && item_compare(&model->trees[tree].items[rank], key) == 0;
}

static struct span value_of(uint8_t *buffer, const struct item *item)
{
    for (size_t i = 0; i < item->value_size; i++)
        buffer[i] = (uint8_t)(item->value_seed + i * 7);
    return span_of(buffer, item->value_size);
}

static uint8_t value_buffer[20000];

static void expect_item(const struct model *model, int tree, size_t rank, enum err err, struct span key, struct span value, bool with_key)
{
    if (rank >= model->trees[tree].count) {
        assert_int_equal(err, ERR_NOTFOUND);
        return;
    }
    OK(err);
    const struct item *item = &model->trees[tree].items[rank];
    if (with_key)
        assert_true(span_equal(key, span_of(item->key, item->key_size)));
    assert_true(span_equal(value, value_of(value_buffer, item)));
}

static struct span random_key(struct check_random *random, uint8_t key[KV_KEY_MAX])
{
    size_t size = check_random_chance(random, 1, 30) ? KV_KEY_MAX : 1 + check_random_below(random, 4);
    memset(key, 0, KV_KEY_MAX);
    for (size_t i = 0; i < size && i < 5; i++)
        key[i] = (uint8_t)(check_random_below(random, 4) * 85); /* 0, 85, 170, 255 */
    return span_of(key, size);
}

static void random_put(struct check_random *random, struct view *view, int tree, struct span key)
{
    struct item item = {.key_size = key.size, .value_seed = (uint8_t)check_random_next(random)};
    memcpy(item.key, key.data, key.size);
    item.value_size =
        check_random_chance(random, 1, 20) ? check_random_below(random, sizeof value_buffer) : check_random_below(random, 300);
    size_t rank = model_rank(&view->model, tree, key), *count = &view->model.trees[tree].count;
    struct item *items = view->model.trees[tree].items;
    if (!model_has(&view->model, tree, rank, key)) {
        if (*count == MODEL_MAX)
            return;
        memmove(&items[rank + 1], &items[rank], (*count - rank) * sizeof *items);
        ++*count;
    }
    items[rank] = item;
    OK(kv_put(view->txn, (enum kv_tree)(tree + 1), key, value_of(value_buffer, &item)));
}

static void random_del(struct view *view, int tree, struct span key)
{
    size_t rank = model_rank(&view->model, tree, key), *count = &view->model.trees[tree].count;
    struct item *items = view->model.trees[tree].items;
    if (model_has(&view->model, tree, rank, key)) {
        memmove(&items[rank], &items[rank + 1], (*count - rank - 1) * sizeof *items);
        --*count;
    }
    OK(kv_del(view->txn, (enum kv_tree)(tree + 1), key));
}

static void stand(struct view *view, int tree, size_t rank)
{
    view->places[tree].is_set = rank < view->model.trees[tree].count;
    if (view->places[tree].is_set)
        view->places[tree].at = view->model.trees[tree].items[rank];
}

static void random_read(struct check_random *random, struct view *view, int tree, struct span key)
{
    enum kv_tree number = (enum kv_tree)(tree + 1);
    struct span found = {0}, value = {0};
    size_t rank = model_rank(&view->model, tree, key);
    bool has = model_has(&view->model, tree, rank, key);
    enum err err;
    switch (check_random_below(random, 8)) {
    case 0:
        err = kv_get(view->txn, number, key, &value);
        expect_item(&view->model, tree, has ? rank : SIZE_MAX, err, found, value, false);
        break;
    case 1:
        if (check_random_chance(random, 1, 5)) {
            key = span_of(NULL, 0);
            rank = 0;
        }
        err = kv_seek(view->txn, number, key, &found, &value);
        expect_item(&view->model, tree, rank, err, found, value, true);
        stand(view, tree, rank);
        break;
    case 2:
        rank = has ? rank : rank ? rank - 1 : SIZE_MAX;
        err = kv_floor(view->txn, number, key, &found, &value);
        expect_item(&view->model, tree, rank, err, found, value, true);
        stand(view, tree, rank);
        break;
    default:
        rank = SIZE_MAX;
        if (view->places[tree].is_set) {
            struct span at = span_of(view->places[tree].at.key, view->places[tree].at.key_size);
            rank = model_rank(&view->model, tree, at);
            rank += model_has(&view->model, tree, rank, at);
        }
        err = kv_next(view->txn, number, &found, &value);
        expect_item(&view->model, tree, rank, err, found, value, true);
        stand(view, tree, rank);
    }
}

static void expect_all(struct kv_bench *b, const struct model *model)
{
    struct kv_txn *txn = kv_bench_begin(b, false);
    for (int tree = 0; tree < MODEL_TREES; tree++) {
        struct span key, value;
        size_t rank = 0;
        enum err err = kv_seek(txn, (enum kv_tree)(tree + 1), span_of(NULL, 0), &key, &value);
        for (; !err; err = kv_next(txn, (enum kv_tree)(tree + 1), &key, &value))
            expect_item(model, tree, rank++, err, key, value, true);
        assert_int_equal(err, ERR_NOTFOUND);
        assert_int_equal(rank, model->trees[tree].count);
    }
    kv_abort(txn);
}

static void view_begin(struct kv_bench *b, struct view *view, const struct model *committed, bool is_write)
{
    memset(view->places, 0, sizeof view->places);
    view->model = *committed;
    view->txn = kv_bench_begin(b, is_write);
}

static void view_end(struct view *view)
{
    kv_abort(view->txn);
    view->txn = NULL;
}

static void test_random_histories(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(7));
    struct model *committed = (struct model *)calloc(1, sizeof *committed);
    struct view *views = (struct view *)calloc(4, sizeof *views); /* the first writes */
    for (int step = 0; step < 30000; step++) {
        struct view *view = &views[check_random_below(&random, 2) ? 0 : check_random_below(&random, 4)];
        bool is_writer = view == views;
        uint8_t bytes[KV_KEY_MAX];
        struct span key = random_key(&random, bytes);
        int tree = (int)check_random_below(&random, MODEL_TREES);
        if (!view->txn) {
            view_begin(b, view, committed, is_writer);
        } else if (check_random_chance(&random, 1, is_writer ? 60 : 200)) {
            if (is_writer && check_random_chance(&random, 3, 4)) {
                OK(kv_commit(view->txn));
                view->txn = NULL;
                *committed = view->model;
            } else {
                view_end(view);
            }
        } else if (is_writer && check_random_chance(&random, 1, 3)) {
            if (check_random_chance(&random, 3, 5))
                random_put(&random, view, tree, key);
            else
                random_del(view, tree, key);
        } else {
            random_read(&random, view, tree, key);
        }
        if (step % 5000 == 4999) {
            for (int i = 0; i < 4; i++)
                view_end(&views[i]);
            kv_bench_reopen(b);
            expect_all(b, committed);
        }
    }
    free(views);
    free(committed);
}

/* Keys that grow take a way of their own (trees named by sequence); what else changes the tree in between must not lead it astray. */
static void test_growing_keys(void **state)
{
    enum { KEYS = 6000 };
    struct kv_bench *b = (struct kv_bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(8));
    uint16_t *sizes = (uint16_t *)calloc(KEYS, sizeof *sizes); /* of the values, less one; 0: none */
    uint64_t count = 0;
    uint8_t bytes[8];
    while (count < KEYS) {
        struct kv_txn *txn = kv_bench_begin(b, true);
        for (int step = 0; step < 300 && count < KEYS; step++) {
            uint64_t chosen =
                check_random_chance(&random, 1, 12) && count > 0 ? count - 1 - check_random_below(&random, count < 40 ? count : 40) : count;
            if (chosen < count && check_random_chance(&random, 1, 2)) {
                OK(kv_del(txn, KV_BODIES, kv_key_u64(bytes, chosen)));
                sizes[chosen] = 0;
                continue;
            }
            struct span key, value;
            if (chosen < count && check_random_chance(&random, 1, 2)) {
                enum err err = kv_floor(txn, KV_BODIES, kv_key_u64(bytes, chosen), &key, &value);
                assert_true(err == ERR_OK || err == ERR_NOTFOUND);
                continue;
            }
            size_t size = check_random_chance(&random, 1, 20) ? check_random_below(&random, 20000) : check_random_below(&random, 400);
            OK(kv_put(txn, KV_BODIES, kv_key_u64(bytes, chosen), span_of(value_buffer, size)));
            sizes[chosen] = (uint16_t)(size + 1);
            count += chosen == count;
        }
        OK(kv_commit(txn));
    }
    kv_bench_reopen(b);
    struct kv_txn *txn = kv_bench_begin(b, false);
    struct span key, value;
    enum err err = kv_seek(txn, KV_BODIES, span_of(NULL, 0), &key, &value);
    for (uint64_t i = 0; i < KEYS; i++) {
        if (sizes[i] == 0)
            continue;
        OK(err);
        assert_int_equal(kv_key_read_u64(key.data), i);
        assert_int_equal(value.size, sizes[i] - 1);
        struct span got;
        OK(kv_get(txn, KV_BODIES, kv_key_u64(bytes, i), &got));
        assert_true(span_equal(got, value));
        err = kv_next(txn, KV_BODIES, &key, &value);
    }
    assert_int_equal(err, ERR_NOTFOUND);
    kv_abort(txn);
    free(sizes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KV_BENCH_BOTH(test_random_histories),
        KV_BENCH_BOTH(test_growing_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
