/* kv_snapshot.c on files that LMDB wrote and that were damaged afterwards. The model knows what each commit held; the commit's number
 * stands in the tree meta. Whatever was damaged: what comes out whole is what that very commit held, and what is missing is explained by
 * the pages that were touched. */
#include "broker/durable/kv_snapshot.h"

#include "broker/durable/kv_lmdb.h"
#include "tests/lib/check_random.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define OK(call) assert_int_equal((call), ERR_OK)
#define PAGE 4096
#define KEYS 400
#define COMMITS 30
#define LARGE 9000
#define OF_A_PAGE 70 /* entries that one page may hold */

/* versions[t][k]: of the value, 0: there is none. */
struct model {
    uint16_t versions[KV_TREE_COUNT][KEYS];
};

struct bench {
    char root[128], dir[160], data[192];
    struct model models[COMMITS + 1]; /* after each commit */
    uint8_t *whole;                   /* the file as LMDB left it */
    size_t size;
    struct errmsg msg;
    struct check_random random;
};

static size_t make_value(uint8_t value_out[LARGE], int tree, unsigned key, uint16_t version)
{
    size_t size = (key + version) % 37 == 0 ? LARGE : 40 + (key * 7 + version) % 60;
    for (size_t i = 0; i < size; i++)
        value_out[i] = (uint8_t)(i * 3 + key + version * 11u + (unsigned)tree);
    store_le16(value_out, version);
    return size;
}

static void change(struct bench *b, struct kv_txn *txn, struct model *model)
{
    uint8_t bytes[8], value[LARGE];
    int tree = 1 + (int)check_random_below(&b->random, KV_TREE_COUNT - 1);
    unsigned key = (unsigned)check_random_below(&b->random, KEYS);
    uint16_t *version = &model->versions[tree][key];
    if (*version && check_random_below(&b->random, 4) == 0) {
        OK(kv_del(txn, (enum kv_tree)tree, kv_key_u64(bytes, key)));
        *version = 0;
        return;
    }
    *version = (uint16_t)(1 + check_random_below(&b->random, 60000));
    OK(kv_put(txn, (enum kv_tree)tree, kv_key_u64(bytes, key), span_of(value, make_value(value, tree, key, *version))));
}

static void write_all(struct bench *b)
{
    struct kv_lmdb_options options = {.dir = b->dir, .map_bytes = 64 << 20};
    struct kv *kv;
    OK(kv_lmdb_open(&kv, &options, &b->msg));
    for (uint64_t commit = 1; commit <= COMMITS; commit++) {
        struct kv_txn *txn;
        uint8_t number[8];
        OK(kv_begin(kv, &txn, true));
        b->models[commit] = b->models[commit - 1];
        for (int i = 0; i < (commit == 1 ? 4000 : 60); i++)
            change(b, txn, &b->models[commit]);
        OK(kv_put(txn, KV_META, SPAN_LITERAL("state"), kv_key_u64(number, commit)));
        OK(kv_commit(txn));
    }
    kv_close(kv);
}

static void put_back(struct bench *b)
{
    FILE *file = fopen(b->data, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(b->whole, 1, b->size, file), b->size);
    assert_int_equal(fclose(file), 0);
}

static int setup(void **state)
{
    struct bench *b = (struct bench *)calloc(1, sizeof *b);
    const char *tmp = getenv("TMPDIR");
    struct stat status;
    snprintf(b->root, sizeof b->root, "%s/tidegate-snapshot-XXXXXX", tmp && strlen(tmp) < 80 ? tmp : "/tmp");
    if (!mkdtemp(b->root))
        return -1;
    snprintf(b->dir, sizeof b->dir, "%s/checkpoint", b->root);
    snprintf(b->data, sizeof b->data, "%s/data.mdb", b->dir);
    check_random_init(&b->random, check_random_seed(1));
    write_all(b);
    assert_int_equal(stat(b->data, &status), 0);
    b->size = (size_t)status.st_size;
    b->whole = (uint8_t *)malloc(b->size);
    FILE *file = fopen(b->data, "rb");
    assert_int_equal(fread(b->whole, 1, b->size, file), b->size);
    (void)fclose(file);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct bench *b = (struct bench *)*state;
    char command[192];
    snprintf(command, sizeof command, "rm -rf '%s'", b->root);
    int failed = system(command);
    free(b->whole);
    free(b);
    return failed;
}

static void damage(struct bench *b, size_t at, const void *bytes, size_t size)
{
    int fd = open(b->data, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, (off_t)at), size);
    (void)close(fd);
}

static void zero(struct bench *b, size_t page, size_t count)
{
    static const uint8_t zeros[2 * PAGE];
    damage(b, page * PAGE, zeros, count * PAGE);
}

static void flip(struct bench *b, size_t at, unsigned bit)
{
    uint8_t byte = (uint8_t)(b->whole[at] ^ (1u << bit));
    damage(b, at, &byte, 1);
}

/* --- what a snapshot holds ----------------------------------------------------------------------------------------------------------- */

struct found {
    uint64_t commit; /* 0: it does not say */
    uint64_t right, missing;
    struct kv_snapshot_loss loss;
};

static void look_at_tree(struct found *found, const struct model *model, struct kv_txn *txn, int tree)
{
    struct span key, value;
    uint8_t expected[LARGE];
    bool is_there[KEYS] = {false};
    enum err err = kv_seek(txn, (enum kv_tree)tree, span_of(NULL, 0), &key, &value);
    for (; err != ERR_NOTFOUND; err = kv_next(txn, (enum kv_tree)tree, &key, &value)) {
        if (err == ERR_CORRUPT)
            continue;
        OK(err);
        assert_int_equal(key.size, 8);
        uint64_t number = kv_key_read_u64(key.data);
        assert_true(number < KEYS);
        uint16_t version = model->versions[tree][number];
        assert_true(version != 0); /* nothing that was deleted */
        assert_true(span_equal(value, span_of(expected, make_value(expected, tree, (unsigned)number, version))));
        is_there[number] = true;
    }
    for (unsigned k = 0; k < KEYS; k++) {
        found->right += is_there[k];
        found->missing += model->versions[tree][k] != 0 && !is_there[k];
    }
}

static struct found look(struct bench *b, const struct kv_snapshot_source *source)
{
    struct found found = {0};
    struct kv *kv;
    struct kv_txn *txn;
    struct span value;
    OK(kv_snapshot_open(&kv, b->dir, source, false, &b->msg));
    found.loss = *kv_snapshot_loss(kv);
    OK(kv_begin(kv, &txn, false));
    if (kv_get(txn, KV_META, SPAN_LITERAL("state"), &value) == ERR_OK) {
        found.commit = kv_key_read_u64(value.data);
        assert_in_range(found.commit, 1, COMMITS);
        for (int t = 1; t < KV_TREE_COUNT; t++)
            look_at_tree(&found, &b->models[found.commit], txn, t);
    }
    kv_abort(txn);
    kv_close(kv);
    return found;
}

/* The newest commit that a meta page leads to. */
static struct found look_newest(struct bench *b)
{
    struct kv_snapshot_source sources[2];
    struct found newest = {0};
    unsigned count;
    OK(kv_snapshot_source_find(sources, &count, b->dir, &b->msg));
    for (unsigned i = 0; i < count; i++) {
        struct found found = look(b, &sources[i]);
        newest = found.commit > newest.commit ? found : newest;
    }
    return newest;
}

static struct kv_snapshot_source newest_source(struct bench *b)
{
    struct kv_snapshot_source sources[2];
    unsigned count;
    OK(kv_snapshot_source_find(sources, &count, b->dir, &b->msg));
    assert_int_equal(count, 2);
    return sources[sources[1].txn_number > sources[0].txn_number];
}

/* --- tests --------------------------------------------------------------------------------------------------------------------------- */

static void test_both_commits_are_whole(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source sources[2];
    unsigned count;
    uint64_t commits = 0;
    OK(kv_snapshot_source_find(sources, &count, b->dir, &b->msg));
    assert_int_equal(count, 2);
    for (unsigned i = 0; i < count; i++) {
        struct found found = look(b, &sources[i]);
        assert_int_equal(found.missing + found.loss.page_count + found.loss.entry_count + found.loss.orphan_count, 0);
        assert_true(found.right > 800);
        assert_false(sources[i].is_odd);
        commits += found.commit;
    }
    assert_int_equal(commits, COMMITS + COMMITS - 1);
}

/* seek, get and floor as kv.h says. */
static void test_reads_like_lmdb(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source source = newest_source(b);
    struct kv_lmdb_options options = {.dir = b->dir, .read_only = true};
    struct kv *kvs[2];
    struct kv_txn *txns[2];
    OK(kv_snapshot_open(&kvs[0], b->dir, &source, false, &b->msg));
    OK(kv_lmdb_open(&kvs[1], &options, &b->msg));
    for (int i = 0; i < 2; i++)
        OK(kv_begin(kvs[i], &txns[i], false));
    for (int round = 0; round < 5000; round++) {
        enum kv_tree tree = (enum kv_tree)(1 + check_random_below(&b->random, KV_TREE_COUNT - 1));
        uint8_t bytes[8];
        struct span key = kv_key_u64(bytes, check_random_below(&b->random, KEYS + 2)), keys[2] = {{0}}, values[2] = {{0}};
        enum err errs[2];
        int what = (int)check_random_below(&b->random, 4);
        for (int i = 0; i < 2; i++)
            errs[i] = what == 0   ? kv_get(txns[i], tree, key, &values[i])
                      : what == 1 ? kv_seek(txns[i], tree, key, &keys[i], &values[i])
                      : what == 2 ? kv_floor(txns[i], tree, key, &keys[i], &values[i])
                                  : kv_next(txns[i], tree, &keys[i], &values[i]);
        if (what == 0) /* leaves the place where it was, in LMDB */
            for (int i = 0; i < 2; i++)
                (void)!kv_seek(txns[i], tree, key, &keys[i], &values[i]);
        assert_int_equal(errs[0], errs[1]);
        assert_true(span_equal(keys[0], keys[1]) && span_equal(values[0], values[1]));
    }
    struct kv_txn *write;
    assert_int_equal(kv_begin(kvs[0], &write, true), ERR_PERMISSION);
    for (int i = 0; i < 2; i++) {
        kv_abort(txns[i]);
        kv_close(kvs[i]);
    }
}

/* Any bit of a meta page, and each of them whole: one of the two newest commits is whole. */
static void test_a_meta_page(void **state)
{
    struct bench *b = (struct bench *)*state;
    for (size_t meta = 0; meta < 2; meta++) {
        zero(b, meta, 1);
        struct found found = look_newest(b);
        assert_true(found.commit >= COMMITS - 1);
        assert_int_equal(found.missing, 0);
        put_back(b);
        for (size_t bit = 0; bit < (16 + 136) * 8; bit += 3) {
            flip(b, meta * PAGE + bit / 8, bit % 8);
            found = look_newest(b);
            assert_true(found.commit >= COMMITS - 1);
            assert_int_equal(found.loss.is_searched ? 0 : found.missing, 0);
            damage(b, meta * PAGE, b->whole + meta * PAGE, PAGE);
        }
    }
    /* A wrong mark alone leaves nothing unread. */
    struct kv_snapshot_source source = newest_source(b);
    flip(b, (size_t)source.meta * PAGE + 16, 3);
    struct found found = look_newest(b);
    assert_true(found.commit == COMMITS && found.missing == 0);
}

static void test_the_list_of_trees(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source source = newest_source(b);
    zero(b, source.main_root, 1);
    struct found found = look(b, &source);
    assert_true(found.commit == COMMITS && found.missing == 0 && found.loss.page_count == 1);
    assert_true(found.loss.orphan_count > 0 && found.loss.pages[0] == source.main_root);
}

static void test_both_meta_pages(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source sources[2], source;
    struct found newest = {0};
    unsigned count;
    uint64_t page = 2;
    zero(b, 0, 2);
    OK(kv_snapshot_source_find(sources, &count, b->dir, &b->msg));
    assert_int_equal(count, 0);
    enum err err;
    while ((err = kv_snapshot_source_find_root(&source, &page, PAGE, b->dir, &b->msg)) == ERR_OK) {
        struct kv *kv;
        struct kv_txn *txn;
        struct span value;
        OK(kv_snapshot_open(&kv, b->dir, &source, true, &b->msg));
        OK(kv_begin(kv, &txn, false));
        bool is_newest = kv_get(txn, KV_META, SPAN_LITERAL("state"), &value) == ERR_OK && kv_key_read_u64(value.data) == COMMITS;
        kv_abort(txn);
        kv_close(kv);
        if (is_newest)
            newest = look(b, &source);
    }
    assert_int_equal(err, ERR_NOTFOUND);
    assert_true(newest.commit == COMMITS && newest.missing == 0);
}

/* No way from a root to a leaf is left, and all leaves are found. */
static void test_all_branches(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source source = newest_source(b);
    unsigned branches = 0;
    for (size_t page = 2; page < b->size / PAGE; page++) {
        uint64_t number;
        memcpy(&number, b->whole + page * PAGE, sizeof number);
        if (number != page || b->whole[page * PAGE + 10] != 1)
            continue;
        zero(b, page, 1);
        branches++;
    }
    assert_true(branches >= 6);
    struct found found = look(b, &source);
    assert_true(found.commit == COMMITS && found.missing == 0 && found.loss.is_searched);
    assert_in_range(found.loss.page_count, 6, branches);
    assert_true(found.loss.is_counted && found.loss.entry_count == 0);
}

static void test_cut(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source source = newest_source(b);
    for (size_t pages = 1; pages < b->size / PAGE - 2; pages++) {
        assert_int_equal(truncate(b->data, (off_t)(b->size - pages * PAGE)), 0);
        struct found found = look(b, &source);
        if (found.commit && found.loss.is_searched)
            assert_in_range(found.missing, 0, OF_A_PAGE * found.loss.page_count);
        if (found.commit && pages == 1)
            assert_in_range(found.missing, 0, OF_A_PAGE);
        put_back(b);
    }
    assert_int_equal(truncate(b->data, 5), 0);
    struct kv_snapshot_source none[2];
    unsigned count;
    OK(kv_snapshot_source_find(none, &count, b->dir, &b->msg));
    assert_int_equal(count, 0);
}

static void test_random_damage(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct kv_snapshot_source sources[2];
    unsigned count, told = 0;
    for (int round = 0; round < 400; round++) {
        unsigned touched = 1 + (unsigned)check_random_below(&b->random, 6);
        for (unsigned i = 0; i < touched; i++) {
            size_t at = PAGE * 2 + check_random_below(&b->random, b->size - PAGE * 2);
            uint8_t noise[64];
            if (round % 3 == 0)
                zero(b, at / PAGE, 1);
            else if (round % 3 == 1)
                flip(b, at, (unsigned)check_random_below(&b->random, 8));
            else {
                for (size_t n = 0; n < sizeof noise; n++)
                    noise[n] = (uint8_t)check_random_next(&b->random);
                damage(b, at < b->size - sizeof noise ? at : b->size - sizeof noise, noise, sizeof noise);
            }
        }
        OK(kv_snapshot_source_find(sources, &count, b->dir, &b->msg));
        assert_int_equal(count, 2);
        for (unsigned i = 0; i < count; i++) {
            struct found found = look(b, &sources[i]);
            told += found.commit != 0;
            if (found.commit && found.loss.is_searched) /* noise may lie across two pages */
                assert_in_range(found.missing, 0, 2 * OF_A_PAGE * touched);
        }
        put_back(b);
    }
    assert_true(told > 600); /* of 800: the tree meta has one page */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_both_commits_are_whole), TEST(test_reads_like_lmdb), TEST(test_a_meta_page), TEST(test_the_list_of_trees),
        TEST(test_both_meta_pages),        TEST(test_all_branches),    TEST(test_cut),         TEST(test_random_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
