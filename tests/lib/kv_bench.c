#include "tests/lib/kv_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/durable/kv_lmdb.h"

bool kv_bench_in_memory = false, kv_bench_in_file = true;

enum err kv_bench_open_at(struct kv_bench *b, struct kv **kv_out, const char *dir, bool read_only)
{
    struct kv_lmdb_options options = {.dir = dir, .map_bytes = b->map_bytes, .read_only = read_only};
    return kv_lmdb_open(kv_out, &options, &b->msg);
}

void kv_bench_reopen(struct kv_bench *b)
{
    kv_close(b->kv);
    b->kv = NULL;
    if (b->is_lmdb)
        assert_int_equal(kv_bench_open_at(b, &b->kv, b->dir, false), ERR_OK);
    else
        b->kv = sim_kv_open(b->sim);
}

int kv_bench_setup(void **state)
{
    struct kv_bench *b = (struct kv_bench *)calloc(1, sizeof *b);
    b->is_lmdb = *(const bool *)*state;
    b->map_bytes = KV_BENCH_MAP_BYTES;
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
    kv_bench_reopen(b);
    return 0;
}

int kv_bench_teardown(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
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

struct kv_txn *kv_bench_begin(struct kv_bench *b, bool is_write)
{
    struct kv_txn *txn = NULL;
    OK(kv_begin(b->kv, &txn, is_write));
    assert_ptr_equal(txn->kv, b->kv);
    return txn;
}

void kv_bench_put(struct kv_bench *b, enum kv_tree tree, const char *key, const char *value)
{
    struct kv_txn *txn = kv_bench_begin(b, true);
    OK(kv_put(txn, tree, S(key), S(value)));
    OK(kv_commit(txn));
}

void kv_bench_is(struct span got, const char *expected)
{
    if (!span_equal(got, S(expected)))
        fail_msg("'%.*s' is not '%s'", (int)got.size, got.data ? (const char *)got.data : "", expected);
}

void kv_bench_expect(struct kv_bench *b, enum kv_tree tree, const char *key, const char *value)
{
    struct kv_txn *txn = kv_bench_begin(b, false);
    struct span got;
    if (value) {
        OK(kv_get(txn, tree, S(key), &got));
        kv_bench_is(got, value);
    } else {
        assert_int_equal(kv_get(txn, tree, S(key), &got), ERR_NOTFOUND);
    }
    kv_abort(txn);
}
