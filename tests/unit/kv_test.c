/* kv.c over both implementations: what both promise is tested with both. What only a file can do: kv_lmdb_test.c; random histories:
 * kv_model_test.c. */
#include "broker/durable/kv.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "tests/lib/kv_bench.h"

static void test_put_get_del(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct span got;
    struct kv_txn *txn = kv_bench_begin(b, true);
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
    kv_bench_is(got, "a longer one");
    OK(kv_commit(txn));
    for (int round = 0; round < 2; round++) {
        kv_bench_expect(b, KV_META, "a", "a longer one");
        kv_bench_expect(b, KV_BODIES, "a", "");
        kv_bench_expect(b, KV_RUNS, "x", NULL);
        txn = kv_bench_begin(b, false);
        OK(kv_get(txn, KV_BODIES, span_of(longest, sizeof longest), &got));
        kv_bench_is(got, "long");
        OK(kv_commit(txn));
        kv_bench_reopen(b);
    }
    txn = kv_bench_begin(b, true);
    OK(kv_put(txn, KV_META, S("a"), S("undone")));
    kv_abort(txn);
    kv_bench_expect(b, KV_META, "a", "a longer one");
    kv_abort(NULL);
    kv_close(NULL);
}

static void test_walks(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct span key, value;
    struct kv_txn *txn = kv_bench_begin(b, true);
    assert_int_equal(kv_next(txn, KV_RUNS, &key, &value), ERR_NOTFOUND);
    assert_int_equal(kv_seek(txn, KV_RUNS, span_of(NULL, 0), &key, &value), ERR_NOTFOUND);
    assert_int_equal(kv_floor(txn, KV_RUNS, S("z"), &key, &value), ERR_NOTFOUND);
    for (uint64_t i = 1; i <= 1000; i++) {
        uint8_t bytes[16];
        OK(kv_put(txn, KV_RUNS, kv_key_u64_u64(bytes, i / 256, i), span_of(&i, sizeof i)));
    }
    OK(kv_commit(txn));
    txn = kv_bench_begin(b, false);
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
    struct kv_bench *b = (struct kv_bench *)*state;
    struct span key, value;
    char big[3000];
    memset(big, 'b', sizeof big);
    struct kv_txn *txn = kv_bench_begin(b, true);
    for (uint64_t i = 0; i < 2000; i++) {
        uint8_t bytes[8];
        OK(kv_put(txn, KV_RECIPIENTS, kv_key_u64(bytes, i), S("small")));
    }
    OK(kv_commit(txn));
    txn = kv_bench_begin(b, true);
    uint64_t count = 0;
    enum err err = kv_seek(txn, KV_RECIPIENTS, span_of(NULL, 0), &key, &value);
    for (; !err; err = kv_next(txn, KV_RECIPIENTS, &key, &value), count++) {
        assert_int_equal(kv_key_read_u64(key.data), count);
        kv_bench_is(value, "small");
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
    struct kv_bench *b = (struct kv_bench *)*state;
    struct kv_txn *readers[5], *writer;
    char text[32];
    struct span got, key;
    for (int i = 0; i < 5; i++) {
        snprintf(text, sizeof text, "value %d", i);
        kv_bench_put(b, KV_SESSIONS, "key", text);
        kv_bench_put(b, KV_SESSIONS, text, text);
        readers[i] = kv_bench_begin(b, false);
    }
    writer = kv_bench_begin(b, true);
    OK(kv_del(writer, KV_SESSIONS, S("key")));
    assert_int_equal(kv_get(writer, KV_SESSIONS, S("key"), &got), ERR_NOTFOUND);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 5; i++) {
            snprintf(text, sizeof text, "value %d", i);
            OK(kv_get(readers[i], KV_SESSIONS, S("key"), &got));
            kv_bench_is(got, text);
            OK(kv_floor(readers[i], KV_SESSIONS, S("w"), &key, &got));
            kv_bench_is(key, text);
            assert_int_equal(kv_next(readers[i], KV_SESSIONS, &key, &got), ERR_NOTFOUND);
        }
        if (round == 0)
            OK(kv_commit(writer));
    }
    for (int i = 0; i < 5; i++)
        kv_abort(readers[i]);
    kv_bench_expect(b, KV_SESSIONS, "key", NULL);
}

static void test_full_and_again(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    char value[5000];
    memset(value, 'v', sizeof value);
    kv_close(b->kv);
    b->kv = NULL;
    b->map_bytes = (uint64_t)1 << 20;
    if (b->is_lmdb)
        assert_int_equal(unlink(b->data), 0);
    else
        sim_kv_set_capacity(b->sim, b->map_bytes);
    kv_bench_reopen(b);
    kv_bench_put(b, KV_META, "first", "stays");
    struct kv_txn *txn = kv_bench_begin(b, true);
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
    kv_bench_expect(b, KV_META, "first", "stays");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.entries[KV_BODIES], 0);
    assert_int_equal(stats.map_bytes, b->map_bytes);
    for (int round = 0; round < 20; round++) { /* what is freed is used again */
        txn = kv_bench_begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_put(txn, KV_BODIES, kv_key_u64(bytes, i), span_of(value, sizeof value)));
        OK(kv_commit(txn));
        txn = kv_bench_begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_del(txn, KV_BODIES, kv_key_u64(bytes, i)));
        OK(kv_commit(txn));
    }
}

/* Change one byte of a stored value; in a file: of all copies of it. */
static void flip(struct kv_bench *b, enum kv_tree tree, const char *key, const char *value)
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
    kv_bench_reopen(b);
}

static void test_damage_is_found(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    kv_bench_put(b, KV_SESSIONS, "a", "alpha of the first");
    kv_bench_put(b, KV_SESSIONS, "b", "bravo of the second");
    kv_bench_put(b, KV_SESSIONS, "c", "charlie of the third");
    flip(b, KV_SESSIONS, "b", "bravo of the second");
    kv_bench_expect(b, KV_SESSIONS, "a", "alpha of the first");
    for (int is_write = 0; is_write < 2; is_write++) {
        struct kv_txn *txn = kv_bench_begin(b, is_write);
        struct span key, value;
        assert_int_equal(kv_get(txn, KV_SESSIONS, S("b"), &value), ERR_CORRUPT);
        assert_int_equal(value.size, 0);
        OK(kv_seek(txn, KV_SESSIONS, S("a"), &key, &value));
        assert_int_equal(kv_next(txn, KV_SESSIONS, &key, &value), ERR_CORRUPT);
        kv_bench_is(key, "b");
        assert_int_equal(value.size, 0);
        OK(kv_next(txn, KV_SESSIONS, &key, &value));
        kv_bench_is(key, "c");
        assert_int_equal(kv_floor(txn, KV_SESSIONS, S("bb"), &key, &value), ERR_CORRUPT);
        kv_bench_is(key, "b");
        assert_int_equal(kv_seek(txn, KV_SESSIONS, S("b"), &key, &value), ERR_CORRUPT);
        kv_bench_is(key, "b");
        if (is_write) {
            OK(kv_del(txn, KV_SESSIONS, key));
            OK(kv_next(txn, KV_SESSIONS, &key, &value));
            kv_bench_is(key, "c");
        }
        kv_abort(txn);
    }
    /* The right value under another key, in another tree, or too short for a CRC is as wrong. */
    struct kv_txn *txn = kv_bench_begin(b, true);
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

static void test_crash_keeps_commits(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct span got;
    kv_bench_put(b, KV_META, "a", "committed");
    struct kv_txn *reader = kv_bench_begin(b, false), *writer = kv_bench_begin(b, true), *other;
    OK(kv_put(writer, KV_META, S("a"), S("never")));
    struct kv *dead = b->kv;
    sim_kv_crash(b->sim);
    b->kv = sim_kv_open(b->sim);
    kv_bench_expect(b, KV_META, "a", "committed");
    assert_int_equal(kv_begin(dead, &other, false), ERR_CLOSED);
    assert_int_equal(kv_get(reader, KV_META, S("a"), &got), ERR_CLOSED);
    assert_int_equal(kv_commit(writer), ERR_CLOSED);
    kv_abort(reader);
    kv_close(dead);
    kv_bench_expect(b, KV_META, "a", "committed");
    (void)kv_bench_begin(b, false); /* left behind: sim_kv_free() looks after it */
    sim_kv_crash(b->sim);
    b->kv = NULL;
    sim_kv_crash(b->sim);
    kv_bench_reopen(b);
}

static void test_failed_commits(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    static const enum sim_kv_fate fates[] = {SIM_KV_LOST, SIM_KV_SURVIVED};
    int survived = 0;
    for (int round = 0; round < 40; round++) {
        bool is_random = round >= 2;
        sim_kv_set_fate(b->sim, is_random ? SIM_KV_RANDOM : fates[round]);
        kv_bench_put(b, KV_META, "a", "before");
        sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_IO, 0);
        struct kv_txn *txn = kv_bench_begin(b, true);
        OK(kv_put(txn, KV_META, S("a"), S("after")));
        assert_int_equal(kv_commit(txn), ERR_IO);
        kv_bench_expect(b, KV_META, "a", "before");
        assert_int_equal(kv_begin(b->kv, &txn, true), ERR_IO);
        if (round % 2) {
            sim_kv_crash(b->sim);
            b->kv = NULL;
        }
        kv_bench_reopen(b);
        struct span got;
        txn = kv_bench_begin(b, false);
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
    kv_bench_put(b, KV_META, "a", "before");
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 1);
    kv_bench_put(b, KV_META, "b", "skipped");
    struct kv_txn *txn = kv_bench_begin(b, true);
    OK(kv_put(txn, KV_META, S("a"), S("after")));
    assert_int_equal(kv_commit(txn), ERR_NOSPACE);
    kv_bench_expect(b, KV_META, "a", "before");
    kv_bench_put(b, KV_META, "a", "after");
    kv_bench_reopen(b);
    kv_bench_expect(b, KV_META, "a", "after");
    assert_int_equal(sim_kv_counts(b->sim).failed_commits, 41);
}

static void test_faults(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct kv_txn *txn;
    struct span key, value;
    kv_bench_put(b, KV_META, "a", "1");
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_NOMEM, 0);
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_NOMEM);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_WRITE, ERR_NOSPACE, 0);
    assert_int_equal(kv_begin(b->kv, &txn, true), ERR_NOSPACE);
    txn = kv_bench_begin(b, false);
    sim_kv_fail(b->sim, SIM_KV_READ, ERR_IO, 1);
    OK(kv_seek(txn, KV_META, S("a"), &key, &value));
    assert_int_equal(kv_next(txn, KV_META, &key, &value), ERR_IO);
    assert_int_equal(kv_next(txn, KV_META, &key, &value), ERR_NOTFOUND);
    kv_abort(txn);
    txn = kv_bench_begin(b, true);
    sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 0);
    assert_int_equal(kv_put(txn, KV_META, S("a"), S("2")), ERR_NOSPACE);
    assert_int_equal(kv_commit(txn), ERR_NOSPACE);
    txn = kv_bench_begin(b, true);
    sim_kv_fail(b->sim, SIM_KV_DEL, ERR_IO, 0);
    assert_int_equal(kv_del(txn, KV_META, S("a")), ERR_IO);
    assert_int_equal(kv_commit(txn), ERR_IO);
    kv_bench_expect(b, KV_META, "a", "1");
    /* A bound that is reached refuses what grows, not what shrinks. */
    sim_kv_set_capacity(b->sim, sim_kv_counts(b->sim).used_bytes);
    kv_bench_put(b, KV_META, "a", "");
    txn = kv_bench_begin(b, true);
    assert_int_equal(kv_put(txn, KV_META, S("a"), S("22")), ERR_NOSPACE);
    kv_abort(txn);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        KV_BENCH_BOTH(test_put_get_del),
        KV_BENCH_BOTH(test_walks),
        KV_BENCH_BOTH(test_walk_and_change),
        KV_BENCH_BOTH(test_snapshots),
        KV_BENCH_BOTH(test_full_and_again),
        KV_BENCH_BOTH(test_damage_is_found),
        KV_BENCH_MEMORY(test_crash_keeps_commits),
        KV_BENCH_MEMORY(test_failed_commits),
        KV_BENCH_MEMORY(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
