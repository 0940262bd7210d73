/* kv.c over both implementations: kv_lmdb.c in a directory of its own and tests/lib/sim_kv.c. What both promise is tested with both; what
 * only a file or only memory can do comes after. */
#include "broker/durable/kv.h"

#include "broker/durable/kv_lmdb.h"
#include "common/bytes.h"
#include "tests/lib/check_random.h"
#include "tests/lib/sim_kv.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define OK(call) assert_int_equal((call), ERR_OK)
#define S(text) span_of_string(text)
#define MAP_BYTES ((uint64_t)64 << 20)
#define PAGE 4096

struct bench {
    bool is_lmdb;
    uint64_t map_bytes;
    struct sim_kv *sim;
    char root[128], dir[160], data[192], lock[192];
    struct kv *kv;
    struct errmsg msg;
};

static enum err open_at(struct bench *b, struct kv **kv_out, const char *dir, bool read_only)
{
    struct kv_lmdb_options options = {.dir = dir, .map_bytes = b->map_bytes, .read_only = read_only};
    return kv_lmdb_open(kv_out, &options, &b->msg);
}

static void reopen(struct bench *b)
{
    kv_close(b->kv);
    b->kv = NULL;
    if (b->is_lmdb)
        assert_int_equal(open_at(b, &b->kv, b->dir, false), ERR_OK);
    else
        b->kv = sim_kv_open(b->sim);
}

static int setup(void **state)
{
    struct bench *b = (struct bench *)calloc(1, sizeof *b);
    b->is_lmdb = *(const bool *)*state;
    b->map_bytes = MAP_BYTES;
    if (b->is_lmdb) {
        const char *tmp = getenv("TMPDIR");
        snprintf(b->root, sizeof b->root, "%s/tidegate-kv-test-XXXXXX", tmp && strlen(tmp) < 80 ? tmp : "/tmp");
        if (!mkdtemp(b->root))
            return -1;
        snprintf(b->dir, sizeof b->dir, "%s/checkpoint", b->root);
        snprintf(b->data, sizeof b->data, "%s/data.mdb", b->dir);
        snprintf(b->lock, sizeof b->lock, "%s/lock.mdb", b->dir);
    } else {
        b->sim = sim_kv_new(1);
    }
    *state = b;
    reopen(b);
    return 0;
}

static int teardown(void **state)
{
    struct bench *b = (struct bench *)*state;
    if (!b->is_lmdb) /* transactions that a failed test left are no trouble to it */
        sim_kv_free(b->sim);
    if (b->is_lmdb) {
        kv_close(b->kv);
        char command[192];
        snprintf(command, sizeof command, "rm -rf '%s'", b->root);
        if (system(command) != 0)
            return -1;
    }
    free(b);
    return 0;
}

static struct kv_txn *begin(struct bench *b, bool is_write)
{
    struct kv_txn *txn = NULL;
    OK(kv_begin(b->kv, &txn, is_write));
    assert_ptr_equal(txn->kv, b->kv);
    return txn;
}

static void put_text(struct bench *b, enum kv_tree tree, const char *key, const char *value)
{
    struct kv_txn *txn = begin(b, true);
    OK(kv_put(txn, tree, S(key), S(value)));
    OK(kv_commit(txn));
}

static void is_text(struct span got, const char *expected)
{
    if (!span_equal(got, S(expected)))
        fail_msg("'%.*s' is not '%s'", (int)got.size, got.data ? (const char *)got.data : "", expected);
}

static void expect_text(struct bench *b, enum kv_tree tree, const char *key, const char *value)
{
    struct kv_txn *txn = begin(b, false);
    struct span got;
    if (value) {
        OK(kv_get(txn, tree, S(key), &got));
        is_text(got, value);
    } else {
        assert_int_equal(kv_get(txn, tree, S(key), &got), ERR_NOTFOUND);
    }
    kv_abort(txn);
}

/* --- what both promise --------------------------------------------------------------------------------------------------------------- */

static void test_put_get_del(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct span got;
    struct kv_txn *txn = begin(b, true);
    uint8_t longest[KV_KEY_MAX];
    memset(longest, 0xff, sizeof longest);
    assert_int_equal(kv_get(txn, KV_META, S("a"), &got), ERR_NOTFOUND);
    OK(kv_put(txn, KV_META, S("a"), S("1")));
    OK(kv_put(txn, KV_META, S("a"), S("a longer one")));
    OK(kv_put(txn, KV_BODIES, S("a"), span_of(NULL, 0)));
    OK(kv_put(txn, KV_BODIES, span_of(longest, sizeof longest), S("long")));
    OK(kv_put(txn, KV_RUNS, S("x"), S("x")));
    OK(kv_del(txn, KV_RUNS, S("x")));
    OK(kv_del(txn, KV_RUNS, S("never there")));
    OK(kv_get(txn, KV_META, S("a"), &got));
    is_text(got, "a longer one");
    OK(kv_commit(txn));
    for (int round = 0; round < 2; round++) {
        expect_text(b, KV_META, "a", "a longer one");
        expect_text(b, KV_BODIES, "a", "");
        expect_text(b, KV_RUNS, "x", NULL);
        txn = begin(b, false);
        OK(kv_get(txn, KV_BODIES, span_of(longest, sizeof longest), &got));
        is_text(got, "long");
        OK(kv_commit(txn));
        reopen(b);
    }
    txn = begin(b, true);
    OK(kv_put(txn, KV_META, S("a"), S("undone")));
    kv_abort(txn);
    expect_text(b, KV_META, "a", "a longer one");
    kv_abort(NULL);
    kv_close(NULL);
}

static void test_walks(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct span key, value;
    struct kv_txn *txn = begin(b, true);
    assert_int_equal(kv_next(txn, KV_RUNS, &key, &value), ERR_NOTFOUND);
    assert_int_equal(kv_seek(txn, KV_RUNS, span_of(NULL, 0), &key, &value), ERR_NOTFOUND);
    assert_int_equal(kv_floor(txn, KV_RUNS, S("z"), &key, &value), ERR_NOTFOUND);
    for (uint64_t i = 1; i <= 1000; i++) {
        uint8_t bytes[16];
        OK(kv_put(txn, KV_RUNS, kv_key_u64_u64(bytes, i / 256, i), span_of(&i, sizeof i)));
    }
    OK(kv_commit(txn));
    txn = begin(b, false);
    uint64_t count = 0;
    enum err err = kv_seek(txn, KV_RUNS, span_of(NULL, 0), &key, &value);
    for (; !err; err = kv_next(txn, KV_RUNS, &key, &value)) {
        count++;
        assert_int_equal(key.size, 16);
        assert_int_equal(kv_key_read_u64(key.data + 8), count);
        assert_memory_equal(value.data, &count, sizeof count);
    }
    assert_int_equal(err, ERR_NOTFOUND);
    assert_int_equal(count, 1000);
    assert_int_equal(kv_next(txn, KV_RUNS, &key, &value), ERR_NOTFOUND);
    uint8_t bytes[16];
    OK(kv_seek(txn, KV_RUNS, kv_key_u64(bytes, 2), &key, &value));
    assert_int_equal(kv_key_read_u64(key.data + 8), 512);
    OK(kv_floor(txn, KV_RUNS, kv_key_u64(bytes, 2), &key, &value));
    assert_int_equal(kv_key_read_u64(key.data + 8), 511);
    OK(kv_next(txn, KV_RUNS, &key, &value));
    assert_int_equal(kv_key_read_u64(key.data + 8), 512);
    OK(kv_floor(txn, KV_RUNS, kv_key_u64_u64(bytes, 2, 513), &key, &value));
    assert_int_equal(kv_key_read_u64(key.data + 8), 513);
    OK(kv_floor(txn, KV_RUNS, kv_key_u64(bytes, UINT64_MAX), &key, &value));
    assert_int_equal(kv_key_read_u64(key.data + 8), 1000);
    assert_int_equal(kv_floor(txn, KV_RUNS, kv_key_u64(bytes, 0), &key, &value), ERR_NOTFOUND);
    kv_abort(txn);
}

/* Rewriting and deleting under a walk, with the key that the walk gave, visits each key once. */
static void test_walk_and_change(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct span key, value;
    char big[3000];
    memset(big, 'b', sizeof big);
    struct kv_txn *txn = begin(b, true);
    for (uint64_t i = 0; i < 2000; i++) {
        uint8_t bytes[8];
        OK(kv_put(txn, KV_RECIPIENTS, kv_key_u64(bytes, i), S("small")));
    }
    OK(kv_commit(txn));
    txn = begin(b, true);
    uint64_t count = 0;
    enum err err = kv_seek(txn, KV_RECIPIENTS, span_of(NULL, 0), &key, &value);
    for (; !err; err = kv_next(txn, KV_RECIPIENTS, &key, &value), count++) {
        assert_int_equal(kv_key_read_u64(key.data), count);
        is_text(value, "small");
        if (count % 3 == 0)
            OK(kv_del(txn, KV_RECIPIENTS, key));
        else if (count % 3 == 1)
            OK(kv_put(txn, KV_RECIPIENTS, key, span_of(big, 1 + count % sizeof big)));
        if (count == 700) { /* behind the place: not met; it moves everything */
            uint8_t bytes[8];
            for (uint64_t i = 0; i < 700; i++)
                OK(kv_del(txn, KV_RECIPIENTS, kv_key_u64(bytes, i)));
        }
    }
    assert_int_equal(err, ERR_NOTFOUND);
    assert_int_equal(count, 2000);
    OK(kv_commit(txn));
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.entries[KV_RECIPIENTS], 1300 - 433);
}

static void test_snapshots(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_txn *readers[5], *writer;
    char text[32];
    struct span got, key;
    for (int i = 0; i < 5; i++) {
        snprintf(text, sizeof text, "value %d", i);
        put_text(b, KV_SESSIONS, "key", text);
        put_text(b, KV_SESSIONS, text, text);
        readers[i] = begin(b, false);
    }
    writer = begin(b, true);
    OK(kv_del(writer, KV_SESSIONS, S("key")));
    assert_int_equal(kv_get(writer, KV_SESSIONS, S("key"), &got), ERR_NOTFOUND);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 5; i++) {
            snprintf(text, sizeof text, "value %d", i);
            OK(kv_get(readers[i], KV_SESSIONS, S("key"), &got));
            is_text(got, text);
            OK(kv_floor(readers[i], KV_SESSIONS, S("w"), &key, &got));
            is_text(key, text);
            assert_int_equal(kv_next(readers[i], KV_SESSIONS, &key, &got), ERR_NOTFOUND);
        }
        if (round == 0)
            OK(kv_commit(writer));
    }
    for (int i = 0; i < 5; i++)
        kv_abort(readers[i]);
    expect_text(b, KV_SESSIONS, "key", NULL);
}

static void test_full_and_again(void **state)
{
    struct bench *b = (struct bench *)*state;
    char value[5000];
    memset(value, 'v', sizeof value);
    kv_close(b->kv);
    b->kv = NULL;
    b->map_bytes = (uint64_t)1 << 20;
    if (b->is_lmdb)
        assert_int_equal(unlink(b->data), 0);
    else
        sim_kv_set_capacity(b->sim, b->map_bytes);
    reopen(b);
    put_text(b, KV_META, "first", "stays");
    struct kv_txn *txn = begin(b, true);
    enum err err = ERR_OK;
    uint8_t bytes[8];
    uint64_t put = 0;
    for (; put < 1000 && !err; put++)
        err = kv_put(txn, KV_BODIES, kv_key_u64(bytes, put), span_of(value, sizeof value));
    assert_int_equal(err, ERR_NOSPACE);
    assert_in_range(put, 50, 300);
    assert_int_equal(kv_put(txn, KV_META, S("first"), S("too late")), ERR_NOSPACE);
    assert_int_equal(kv_del(txn, KV_META, S("first")), ERR_NOSPACE);
    assert_int_equal(kv_commit(txn), ERR_NOSPACE);
    expect_text(b, KV_META, "first", "stays");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.entries[KV_BODIES], 0);
    assert_int_equal(stats.map_bytes, b->map_bytes);
    for (int round = 0; round < 20; round++) { /* what is freed is used again */
        txn = begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_put(txn, KV_BODIES, kv_key_u64(bytes, i), span_of(value, sizeof value)));
        OK(kv_commit(txn));
        txn = begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_del(txn, KV_BODIES, kv_key_u64(bytes, i)));
        OK(kv_commit(txn));
    }
}

/* Change one byte of a stored value; in a file: of all copies of it. */
static void flip(struct bench *b, enum kv_tree tree, const char *key, const char *value)
{
    if (!b->is_lmdb) {
        assert_true(sim_kv_flip(b->sim, tree, S(key), 1));
        return;
    }
    kv_close(b->kv);
    b->kv = NULL;
    struct stat status;
    int fd = open(b->data, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &status), 0);
    size_t size = (size_t)status.st_size, value_size = strlen(value), flips = 0;
    uint8_t *bytes = (uint8_t *)malloc(size);
    assert_int_equal(pread(fd, bytes, size, 0), size);
    for (size_t i = 0; i + value_size <= size; i++) {
        if (memcmp(bytes + i, value, value_size) == 0) {
            bytes[i + 1] ^= 0x40;
            flips++;
        }
    }
    assert_true(flips > 0);
    assert_int_equal(pwrite(fd, bytes, size, 0), size);
    free(bytes);
    close(fd);
    reopen(b);
}

static void test_damage_is_found(void **state)
{
    struct bench *b = (struct bench *)*state;
    put_text(b, KV_SESSIONS, "a", "alpha of the first");
    put_text(b, KV_SESSIONS, "b", "bravo of the second");
    put_text(b, KV_SESSIONS, "c", "charlie of the third");
    flip(b, KV_SESSIONS, "b", "bravo of the second");
    expect_text(b, KV_SESSIONS, "a", "alpha of the first");
    for (int is_write = 0; is_write < 2; is_write++) {
        struct kv_txn *txn = begin(b, is_write);
        struct span key, value;
        assert_int_equal(kv_get(txn, KV_SESSIONS, S("b"), &value), ERR_CORRUPT);
        assert_int_equal(value.size, 0);
        OK(kv_seek(txn, KV_SESSIONS, S("a"), &key, &value));
        assert_int_equal(kv_next(txn, KV_SESSIONS, &key, &value), ERR_CORRUPT);
        is_text(key, "b");
        assert_int_equal(value.size, 0);
        OK(kv_next(txn, KV_SESSIONS, &key, &value));
        is_text(key, "c");
        assert_int_equal(kv_floor(txn, KV_SESSIONS, S("bb"), &key, &value), ERR_CORRUPT);
        is_text(key, "b");
        assert_int_equal(kv_seek(txn, KV_SESSIONS, S("b"), &key, &value), ERR_CORRUPT);
        is_text(key, "b");
        if (is_write) {
            OK(kv_del(txn, KV_SESSIONS, key));
            OK(kv_next(txn, KV_SESSIONS, &key, &value));
            is_text(key, "c");
        }
        kv_abort(txn);
    }
    /* The right value under another key, in another tree, or too short for a CRC is as wrong. */
    struct kv_txn *txn = begin(b, true);
    struct span whole, got;
    OK(b->kv->ops->get(txn, KV_SESSIONS, S("a"), &whole));
    uint8_t copy[64];
    assert_true(whole.size < sizeof copy);
    size_t size = whole.size;
    memcpy(copy, whole.data, size);
    OK(b->kv->ops->put(txn, KV_SESSIONS, S("x"), span_of(copy, size - 4), copy + size - 4));
    OK(b->kv->ops->put(txn, KV_META, S("a"), span_of(copy, size - 4), copy + size - 4));
    OK(b->kv->ops->put(txn, KV_SESSIONS, S("a"), span_of(copy, size - 4), copy + size - 4));
    assert_int_equal(kv_get(txn, KV_SESSIONS, S("x"), &got), ERR_CORRUPT);
    assert_int_equal(kv_get(txn, KV_META, S("a"), &got), ERR_CORRUPT);
    OK(kv_get(txn, KV_SESSIONS, S("a"), &got));
    kv_abort(txn);
}

/* --- random histories beside a slow model -------------------------------------------------------------------------------------------- */

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

static void expect_all(struct bench *b, const struct model *model)
{
    struct kv_txn *txn = begin(b, false);
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

static void view_begin(struct bench *b, struct view *view, const struct model *committed, bool is_write)
{
    memset(view->places, 0, sizeof view->places);
    view->model = *committed;
    view->txn = begin(b, is_write);
}

static void view_end(struct view *view)
{
    kv_abort(view->txn);
    view->txn = NULL;
}

static void test_random_histories(void **state)
{
    struct bench *b = (struct bench *)*state;
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
            reopen(b);
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
    struct bench *b = (struct bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(8));
    uint16_t *sizes = (uint16_t *)calloc(KEYS, sizeof *sizes); /* of the values, less one; 0: none */
    uint64_t count = 0;
    uint8_t bytes[8];
    while (count < KEYS) {
        struct kv_txn *txn = begin(b, true);
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
    reopen(b);
    struct kv_txn *txn = begin(b, false);
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

/* --- memory alone -------------------------------------------------------------------------------------------------------------------- */

static void test_crash_keeps_commits(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct span got;
    put_text(b, KV_META, "a", "committed");
    struct kv_txn *reader = begin(b, false), *writer = begin(b, true), *other;
    OK(kv_put(writer, KV_META, S("a"), S("never")));
    struct kv *dead = b->kv;
    sim_kv_crash(b->sim);
    b->kv = sim_kv_open(b->sim);
    expect_text(b, KV_META, "a", "committed");
    assert_int_equal(kv_begin(dead, &other, false), ERR_CLOSED);
    assert_int_equal(kv_get(reader, KV_META, S("a"), &got), ERR_CLOSED);
    assert_int_equal(kv_commit(writer), ERR_CLOSED);
    kv_abort(reader);
    kv_close(dead);
    expect_text(b, KV_META, "a", "committed");
    (void)begin(b, false); /* left behind: sim_kv_free() looks after it */
    sim_kv_crash(b->sim);
    b->kv = NULL;
    sim_kv_crash(b->sim);
    reopen(b);
}

static void test_failed_commits(void **state)
{
    struct bench *b = (struct bench *)*state;
    static const enum sim_kv_fate fates[] = {SIM_KV_LOST, SIM_KV_SURVIVED};
    int survived = 0;
    for (int round = 0; round < 40; round++) {
        bool is_random = round >= 2;
        sim_kv_set_fate(b->sim, is_random ? SIM_KV_RANDOM : fates[round]);
        put_text(b, KV_META, "a", "before");
        sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_IO, 0);
        struct kv_txn *txn = begin(b, true);
        OK(kv_put(txn, KV_META, S("a"), S("after")));
        assert_int_equal(kv_commit(txn), ERR_IO);
        expect_text(b, KV_META, "a", "before");
        assert_int_equal(kv_begin(b->kv, &txn, true), ERR_IO);
        if (round % 2) {
            sim_kv_crash(b->sim);
            b->kv = NULL;
        }
        reopen(b);
        struct span got;
        txn = begin(b, false);
        OK(kv_get(txn, KV_META, S("a"), &got));
        bool is_after = span_equal(got, S("after"));
        if (is_random)
            survived += is_after;
        else
            assert_int_equal(is_after, fates[round] == SIM_KV_SURVIVED);
        kv_abort(txn);
    }
    assert_in_range(survived, 5, 33);
    /* For space: it never happened, and may be tried again. */
    put_text(b, KV_META, "a", "before");
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 1);
    put_text(b, KV_META, "b", "skipped");
    struct kv_txn *txn = begin(b, true);
    OK(kv_put(txn, KV_META, S("a"), S("after")));
    assert_int_equal(kv_commit(txn), ERR_NOSPACE);
    expect_text(b, KV_META, "a", "before");
    put_text(b, KV_META, "a", "after");
    reopen(b);
    expect_text(b, KV_META, "a", "after");
    assert_int_equal(sim_kv_counts(b->sim).failed_commits, 41);
}

static void test_faults(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_txn *txn;
    struct span key, value;
    put_text(b, KV_META, "a", "1");
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_NOMEM, 0);
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_NOMEM);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_WRITE, ERR_NOSPACE, 0);
    assert_int_equal(kv_begin(b->kv, &txn, true), ERR_NOSPACE);
    txn = begin(b, false);
    sim_kv_fail(b->sim, SIM_KV_READ, ERR_IO, 1);
    OK(kv_seek(txn, KV_META, S("a"), &key, &value));
    assert_int_equal(kv_next(txn, KV_META, &key, &value), ERR_IO);
    assert_int_equal(kv_next(txn, KV_META, &key, &value), ERR_NOTFOUND);
    kv_abort(txn);
    txn = begin(b, true);
    sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 0);
    assert_int_equal(kv_put(txn, KV_META, S("a"), S("2")), ERR_NOSPACE);
    assert_int_equal(kv_commit(txn), ERR_NOSPACE);
    txn = begin(b, true);
    sim_kv_fail(b->sim, SIM_KV_DEL, ERR_IO, 0);
    assert_int_equal(kv_del(txn, KV_META, S("a")), ERR_IO);
    assert_int_equal(kv_commit(txn), ERR_IO);
    expect_text(b, KV_META, "a", "1");
    /* A bound that is reached refuses what grows, not what shrinks. */
    sim_kv_set_capacity(b->sim, sim_kv_counts(b->sim).used_bytes);
    put_text(b, KV_META, "a", "");
    txn = begin(b, true);
    assert_int_equal(kv_put(txn, KV_META, S("a"), S("22")), ERR_NOSPACE);
    kv_abort(txn);
}

/* --- a file alone -------------------------------------------------------------------------------------------------------------------- */

static unsigned count_files(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    unsigned count = 0;
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}

static void test_directory(void **state)
{
    struct bench *b = (struct bench *)*state;
    char missing[200];
    struct kv *other = NULL;
    assert_int_equal(count_files(b->dir), 2);
    snprintf(missing, sizeof missing, "%s/missing", b->root);
    assert_int_equal(open_at(b, &other, missing, true), ERR_NOTFOUND);
    assert_non_null(strstr(b->msg.text, missing));
    assert_int_equal(access(missing, F_OK), -1);
    assert_int_equal(mkdir(missing, 0755), 0);
    assert_int_equal(open_at(b, &other, missing, true), ERR_NOTFOUND);
    assert_int_equal(count_files(missing), 0);
    /* What a death while making it left is no hindrance. */
    snprintf(missing, sizeof missing, "%s/missing/data.mdb.new", b->root);
    int fd = open(missing, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "half", 4), 4);
    close(fd);
    snprintf(missing, sizeof missing, "%s/missing", b->root);
    OK(open_at(b, &other, missing, false));
    kv_close(other);
    assert_int_equal(count_files(missing), 2);
}

static void test_read_only(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_txn *txn;
    put_text(b, KV_META, "a", "1");
    kv_close(b->kv);
    assert_int_equal(unlink(b->lock), 0);
    OK(open_at(b, &b->kv, b->dir, true));
    assert_int_equal(count_files(b->dir), 1);
    assert_int_equal(kv_begin(b->kv, &txn, true), ERR_PERMISSION);
    expect_text(b, KV_META, "a", "1");
    reopen(b);
    kv_close(b->kv);
    b->map_bytes = 0;
    OK(open_at(b, &b->kv, b->dir, true));
    expect_text(b, KV_META, "a", "1");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.map_bytes, MAP_BYTES);
    assert_int_equal(stats.entries[KV_META], 1);
    assert_in_range(stats.used_bytes, 4 * PAGE, stats.file_bytes);
}

/* In the child: two keys of two trees are always the same number, whatever is being written. Ends when the number is `last`. */
static int read_along(struct bench *b, uint64_t last)
{
    struct kv *kv;
    struct kv_txn *txn;
    struct span one, two;
    uint64_t seen = 0;
    alarm(120);
    if (open_at(b, &kv, b->dir, true) != ERR_OK)
        return 10;
    while (seen < last) {
        if (kv_begin(kv, &txn, false) != ERR_OK)
            return 11;
        if (kv_get(txn, KV_META, S("count"), &one) != ERR_OK || kv_get(txn, KV_RETAINED, S("count"), &two) != ERR_OK)
            return 12;
        if (!span_equal(one, two) || one.size != 8)
            return 13;
        /* A transaction that begins during a commit may be given what that writes, and the next one, before the commit is announced, the
         * state before (kv_lmdb.h): two commits back at most, because a meta page is written by every other. */
        if (kv_key_read_u64(one.data) + 2 < seen)
            return 14;
        if (kv_key_read_u64(one.data) > seen)
            seen = kv_key_read_u64(one.data);
        kv_abort(txn);
    }
    kv_close(kv);
    return 0;
}

static void put_count(struct bench *b, uint64_t count)
{
    uint8_t bytes[8], key[8];
    struct kv_txn *txn = begin(b, true);
    OK(kv_put(txn, KV_META, S("count"), kv_key_u64(bytes, count)));
    OK(kv_put(txn, KV_BODIES, kv_key_u64(key, count % 16), span_of(value_buffer, count * 97 % sizeof value_buffer)));
    OK(kv_put(txn, KV_RETAINED, S("count"), span_of(bytes, 8)));
    OK(kv_commit(txn));
}

static void test_second_process(void **state)
{
    struct bench *b = (struct bench *)*state;
    put_count(b, 1);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(read_along(b, 300));
    for (uint64_t i = 2; i <= 300; i++)
        put_count(b, i);
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A reader that is killed leaves its slot behind, which would keep pages from being used again for as long as the broker runs. */
static void test_dead_reader(void **state)
{
    struct bench *b = (struct bench *)*state;
    put_count(b, 1);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct kv *kv;
        struct kv_txn *txn;
        _exit(open_at(b, &kv, b->dir, true) || kv_begin(kv, &txn, false));
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    for (int opening = 0; opening < 2; opening++) {
        struct kv_stats before, after;
        for (uint64_t i = 0; i < 100; i++)
            put_count(b, i);
        OK(kv_get_stats(b->kv, &before));
        for (uint64_t i = 100; i < 1000; i++)
            put_count(b, i);
        OK(kv_get_stats(b->kv, &after));
        assert_in_range(after.file_bytes, 1, 2 * before.file_bytes);
        reopen(b);
    }
}

/* A limit on the file's size cuts a write short like a full disk does. */
static void test_disk_full(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct rlimit limit, old;
    put_text(b, KV_META, "a", "1");
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    for (int round = 0; round < 6; round++) {
        uint8_t key[8];
        struct stat status;
        assert_int_equal(stat(b->data, &status), 0);
        limit = old;
        limit.rlim_cur = (rlim_t)status.st_size + (rlim_t)round * 1000;
        struct kv_txn *txn = begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value_buffer, sizeof value_buffer)));
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        enum err err = kv_commit(txn);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(err, ERR_NOSPACE);
        expect_text(b, KV_META, "a", "1");
    }
    put_count(b, 1);
    reopen(b);
    expect_text(b, KV_META, "a", "1");
}

static void write_at(const char *path, const void *bytes, size_t size, off_t at)
{
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, at), size);
    close(fd);
}

static void expect_refused(struct bench *b, enum err expected)
{
    for (int read_only = 0; read_only < 2; read_only++) {
        b->msg.text[0] = '\0';
        assert_int_equal(open_at(b, &b->kv, b->dir, read_only), expected);
        b->kv = NULL;
        assert_non_null(strstr(b->msg.text, b->dir));
    }
}

static void test_damaged_file(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct stat status;
    for (uint64_t i = 0; i < 40; i++)
        put_count(b, i);
    kv_close(b->kv);
    b->kv = NULL;
    assert_int_equal(stat(b->data, &status), 0);
    int fd = open(b->data, O_RDWR);
    uint8_t *whole = (uint8_t *)malloc((size_t)status.st_size), byte = 0xA5;
    assert_int_equal(pread(fd, whole, (size_t)status.st_size, 0), status.st_size);
    off_t cuts[] = {0, 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE, status.st_size / 2};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        assert_int_equal(ftruncate(fd, cuts[i]), 0);
        expect_refused(b, ERR_CORRUPT);
        struct stat now;
        assert_int_equal(fstat(fd, &now), 0);
        assert_int_equal(now.st_size, cuts[i]);
    }
    assert_int_equal(pwrite(fd, whole, (size_t)status.st_size, 0), status.st_size);
    write_at(b->data, &byte, 1, PAGE + 16); /* magic of a meta page */
    expect_refused(b, ERR_CORRUPT);
    assert_int_equal(pwrite(fd, whole, (size_t)status.st_size, 0), status.st_size);
    write_at(b->data, &byte, 1, 20); /* its version */
    expect_refused(b, ERR_CORRUPT);  /* the other has ours */
    assert_non_null(strstr(b->msg.text, "offset 0)"));
    write_at(b->data, &byte, 1, PAGE + 20);
    expect_refused(b, ERR_VERSION);
    assert_int_equal(pwrite(fd, whole, (size_t)status.st_size, 0), status.st_size);
    write_at(b->data, &byte, 1, 16 + 24); /* page size */
    expect_refused(b, ERR_CORRUPT);
    assert_int_equal(pwrite(fd, whole, (size_t)status.st_size, 0), status.st_size);
    for (int meta = 0; meta < 2; meta++)
        write_at(b->data, &byte, 1, meta * PAGE + 16 + 24 + 96 + 4); /* last page */
    expect_refused(b, ERR_CORRUPT);
    assert_int_equal(pwrite(fd, whole, (size_t)status.st_size, 0), status.st_size);
    free(whole);
    close(fd);
    reopen(b);
}

/* A disk that wrote a page to another's place: all checksums hold, and nothing of it is given out as right. */
static void test_misplaced_pages(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[8], page[2][PAGE];
    off_t at[2] = {0, 0};
    struct kv_txn *txn = begin(b, true);
    for (uint64_t i = 0; i < 200; i++) {
        memset(value_buffer, (int)i, 1000);
        OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value_buffer, 1000)));
    }
    OK(kv_commit(txn));
    kv_close(b->kv);
    b->kv = NULL;
    int fd = open(b->data, O_RDONLY);
    for (off_t offset = 2 * PAGE; pread(fd, page[0], PAGE, offset) == PAGE; offset += PAGE) {
        /* A leaf with values of 50 (or 150), which the file has once each. */
        bool is_leaf = page[0][10] == 2;
        at[0] = is_leaf && memmem(page[0], PAGE, (uint8_t[8]){50, 50, 50, 50, 50, 50, 50, 50}, 8) ? offset : at[0];
        at[1] = is_leaf && memmem(page[0], PAGE, (uint8_t[8]){150, 150, 150, 150, 150, 150, 150, 150}, 8) ? offset : at[1];
    }
    assert_true(at[0] > 0 && at[1] > 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pread(fd, page[i], PAGE, at[i]), PAGE);
    close(fd);
    for (int i = 0; i < 2; i++)
        write_at(b->data, page[i], PAGE, at[1 - i]);
    OK(open_at(b, &b->kv, b->dir, false));
    struct span found, value;
    unsigned right = 0, damaged = 0;
    txn = begin(b, false);
    enum err err = kv_seek(txn, KV_BODIES, span_of(NULL, 0), &found, &value);
    for (; err != ERR_NOTFOUND; err = kv_next(txn, KV_BODIES, &found, &value)) {
        assert_true(found.size == 8);
        damaged += err == ERR_CORRUPT;
        right += err == ERR_OK;
    }
    kv_abort(txn);
    assert_int_equal(right + damaged, 200);
    assert_in_range(damaged, 2, 8);
    txn = begin(b, false);
    assert_int_not_equal(kv_get(txn, KV_BODIES, kv_key_u64(key, 50), &value), ERR_OK);
    kv_abort(txn);
}

/* Pages that are free need not be in the file: a writer finds that out, opens and makes the file whole. */
static void test_free_pages_missing(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[8];
    struct stat status;
    struct kv_txn *txn = begin(b, true);
    for (uint64_t i = 0; i < 100; i++)
        OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value_buffer, sizeof value_buffer)));
    OK(kv_commit(txn));
    txn = begin(b, true);
    for (uint64_t i = 0; i < 100; i++)
        OK(kv_del(txn, KV_BODIES, kv_key_u64(key, i)));
    OK(kv_commit(txn));
    for (int i = 0; i < 10; i++)
        put_text(b, KV_META, "a", i % 2 ? "odd" : "even");
    kv_close(b->kv);
    b->kv = NULL;
    assert_int_equal(stat(b->data, &status), 0);
    assert_int_equal(truncate(b->data, status.st_size - 100 * PAGE - 5), 0);
    assert_int_equal(open_at(b, &b->kv, b->dir, true), ERR_CORRUPT);
    b->kv = NULL;
    OK(open_at(b, &b->kv, b->dir, false));
    struct stat now;
    assert_int_equal(stat(b->data, &now), 0);
    assert_int_equal(now.st_size, status.st_size);
    expect_text(b, KV_META, "a", "odd");
    put_count(b, 1);
    kv_close(b->kv);
    OK(open_at(b, &b->kv, b->dir, true));
    expect_text(b, KV_META, "a", "odd");
}

static bool is_stopped_at_once(void) { return true; }

static void test_copy(void **state)
{
    struct bench *b = (struct bench *)*state;
    char copy[200];
    snprintf(copy, sizeof copy, "%s/copy", b->root);
    for (uint64_t i = 0; i < 50; i++)
        put_count(b, i);
    put_text(b, KV_META, "a", "1");
    struct kv_txn *writer = begin(b, true);
    OK(kv_put(writer, KV_META, S("a"), S("not yet")));
    assert_int_equal(kv_lmdb_copy(b->kv, copy, NULL, &b->msg), ERR_NOTFOUND);
    assert_int_equal(mkdir(copy, 0755), 0);
    assert_int_equal(kv_lmdb_copy(b->kv, copy, is_stopped_at_once, &b->msg), ERR_CLOSED);
    assert_int_equal(count_files(copy), 0);
    OK(kv_lmdb_copy(b->kv, copy, NULL, &b->msg));
    assert_int_equal(kv_lmdb_copy(b->kv, copy, NULL, &b->msg), ERR_EXISTS);
    OK(kv_commit(writer));
    struct kv_stats stats, copied;
    OK(kv_get_stats(b->kv, &stats));
    kv_close(b->kv);
    b->kv = NULL;
    OK(open_at(b, &b->kv, copy, true));
    assert_int_equal(count_files(copy), 1);
    expect_text(b, KV_META, "a", "1");
    OK(kv_get_stats(b->kv, &copied));
    assert_memory_equal(copied.entries, stats.entries, sizeof stats.entries);
    assert_true(copied.file_bytes < stats.file_bytes);
    reopen(b);
    expect_text(b, KV_META, "a", "not yet");
}

static void test_compact(void **state)
{
    struct bench *b = (struct bench *)*state;
    enum { COUNT = 6000, SIZE = 3500 };
    static uint8_t value[SIZE];
    uint8_t key[8];
    uint64_t saved;
    struct kv_lmdb_options options = {.dir = b->dir, .map_bytes = 64 << 20};
    struct kv_txn *writer = begin(b, true);
    for (uint64_t i = 0; i < COUNT; i++)
        OK(kv_put(writer, KV_BODIES, kv_key_u64(key, i), span_of(value, sizeof value)));
    OK(kv_commit(writer));
    put_text(b, KV_META, "a", "1");
    kv_close(b->kv);
    b->kv = NULL;
    OK(kv_lmdb_compact(&saved, &options, 50, &b->msg));
    assert_int_equal(saved, 0); /* nothing is free */
    reopen(b);
    writer = begin(b, true);
    for (uint64_t i = 5; i < COUNT; i++)
        OK(kv_del(writer, KV_BODIES, kv_key_u64(key, i)));
    OK(kv_commit(writer));
    put_text(b, KV_META, "a", "2");
    kv_close(b->kv);
    b->kv = NULL;
    struct stat before, after;
    assert_int_equal(stat(b->data, &before), 0);
    OK(kv_lmdb_compact(&saved, &options, 100, &b->msg));
    assert_int_equal(saved, 0); /* not so much of it */
    OK(kv_lmdb_compact(&saved, &options, 50, &b->msg));
    assert_true(saved > KV_LMDB_COMPACT_MIN);
    assert_int_equal(stat(b->data, &after), 0);
    assert_true(after.st_size < before.st_size / 10);
    reopen(b);
    expect_text(b, KV_META, "a", "2");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.entries[KV_BODIES], 5);
    put_text(b, KV_META, "a", "3"); /* it can be written */
    assert_int_equal(count_files(b->dir), 2);
}

static void test_names(void **state)
{
    (void)state;
    for (int a = 0; a < KV_TREE_COUNT; a++)
        for (int other = 0; other < a; other++)
            assert_string_not_equal(kv_tree_name((enum kv_tree)a), kv_tree_name((enum kv_tree)other));
    assert_string_equal(kv_tree_name(KV_RETAINED), "retained");
    assert_string_equal(kv_tree_name(KV_TREE_COUNT), "unknown");
}

static bool in_memory = false, in_file = true;

#define MEMORY(test)                                                                                                                       \
    {                                                                                                                                      \
#test " in memory", test, setup, teardown, &in_memory                                                                              \
    }
#define FILE_(test)                                                                                                                        \
    {                                                                                                                                      \
#test " in LMDB", test, setup, teardown, &in_file                                                                                  \
    }
#define BOTH(test) MEMORY(test), FILE_(test)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        BOTH(test_put_get_del),
        BOTH(test_walks),
        BOTH(test_walk_and_change),
        BOTH(test_snapshots),
        BOTH(test_full_and_again),
        BOTH(test_damage_is_found),
        BOTH(test_random_histories),
        BOTH(test_growing_keys),
        MEMORY(test_crash_keeps_commits),
        MEMORY(test_failed_commits),
        MEMORY(test_faults),
        FILE_(test_directory),
        FILE_(test_read_only),
        FILE_(test_second_process),
        FILE_(test_dead_reader),
        FILE_(test_disk_full),
        FILE_(test_damaged_file),
        FILE_(test_misplaced_pages),
        FILE_(test_free_pages_missing),
        FILE_(test_copy),
        FILE_(test_compact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
