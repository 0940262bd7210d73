/* A database of either kind: kv_lmdb.c in a directory of its own, or tests/lib/sim_kv.c; and what tests put into it and look for. */
#ifndef TIDEGATE_TESTS_LIB_KV_BENCH_H
#define TIDEGATE_TESTS_LIB_KV_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/durable/kv.h"
#include "tests/lib/sim_kv.h"

#define OK(call) assert_int_equal((call), ERR_OK)
#define S(text) span_of_string(text)
#define KV_BENCH_MAP_BYTES ((uint64_t)64 << 20)

struct kv_bench {
    bool is_lmdb;
    uint64_t map_bytes;
    struct sim_kv *sim;
    char root[128], dir[160], data[192], lock[192];
    struct kv *kv;
    struct errmsg msg;
};

/* A case for cmocka, by one kind or by both; its state is a struct kv_bench, open. */
#define KV_BENCH_MEMORY(test)                                                                                                              \
    {                                                                                                                                      \
#test " in memory", test, kv_bench_setup, kv_bench_teardown, &kv_bench_in_memory                                                   \
    }
#define KV_BENCH_FILE(test)                                                                                                                \
    {                                                                                                                                      \
#test " in LMDB", test, kv_bench_setup, kv_bench_teardown, &kv_bench_in_file                                                       \
    }
#define KV_BENCH_BOTH(test) KV_BENCH_MEMORY(test), KV_BENCH_FILE(test)
extern bool kv_bench_in_memory, kv_bench_in_file;
int kv_bench_setup(void **state);
int kv_bench_teardown(void **state);

/* LMDB in a directory. */
enum err kv_bench_open_at(struct kv_bench *b, struct kv **kv_out, const char *dir, bool read_only);
/* Closed, and open again. */
void kv_bench_reopen(struct kv_bench *b);
struct kv_txn *kv_bench_begin(struct kv_bench *b, bool is_write);
/* In a transaction of its own. */
void kv_bench_put(struct kv_bench *b, enum kv_tree tree, const char *key, const char *value);
/* value: NULL = not there. */
void kv_bench_expect(struct kv_bench *b, enum kv_tree tree, const char *key, const char *value);
void kv_bench_is(struct span got, const char *expected);

#endif
