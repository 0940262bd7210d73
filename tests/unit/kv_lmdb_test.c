/* What only a database in a file has: a directory, readers in other processes, a disk that is full or damaged, copies. */
#include "broker/durable/kv_lmdb.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bytes.h"
#include "tests/lib/kv_bench.h"

#define PAGE 4096

static uint8_t value_buffer[20000];

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
    struct kv_bench *b = (struct kv_bench *)*state;
    char missing[200];
    struct kv *other = NULL;
    assert_int_equal(count_files(b->dir), 2);
    snprintf(missing, sizeof missing, "%s/missing", b->root);
    assert_int_equal(kv_bench_open_at(b, &other, missing, true), ERR_NOTFOUND);
    assert_non_null(strstr(b->msg.text, missing));
    assert_int_equal(access(missing, F_OK), -1);
    assert_int_equal(mkdir(missing, 0755), 0);
    assert_int_equal(kv_bench_open_at(b, &other, missing, true), ERR_NOTFOUND);
    assert_int_equal(count_files(missing), 0);
    /* What a death while making it left is no hindrance. */
    snprintf(missing, sizeof missing, "%s/missing/data.mdb.new", b->root);
    int fd = open(missing, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "half", 4), 4);
    close(fd);
    snprintf(missing, sizeof missing, "%s/missing", b->root);
    OK(kv_bench_open_at(b, &other, missing, false));
    kv_close(other);
    assert_int_equal(count_files(missing), 2);
}

static void test_read_only(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct kv_txn *txn;
    kv_bench_put(b, KV_META, "a", "1");
    kv_close(b->kv);
    assert_int_equal(unlink(b->lock), 0);
    OK(kv_bench_open_at(b, &b->kv, b->dir, true));
    assert_int_equal(count_files(b->dir), 1);
    assert_int_equal(kv_begin(b->kv, &txn, true), ERR_PERMISSION);
    kv_bench_expect(b, KV_META, "a", "1");
    kv_bench_reopen(b);
    kv_close(b->kv);
    b->map_bytes = 0;
    OK(kv_bench_open_at(b, &b->kv, b->dir, true));
    kv_bench_expect(b, KV_META, "a", "1");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.map_bytes, KV_BENCH_MAP_BYTES);
    assert_int_equal(stats.entries[KV_META], 1);
    assert_in_range(stats.used_bytes, 4 * PAGE, stats.file_bytes);
}

/* In the child: two keys of two trees are always the same number, whatever is being written. Ends when the number is `last`. */
static int read_along(struct kv_bench *b, uint64_t last)
{
    struct kv *kv;
    struct kv_txn *txn;
    struct span one, two;
    uint64_t seen = 0;
    alarm(120);
    if (kv_bench_open_at(b, &kv, b->dir, true) != ERR_OK)
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

static void put_count(struct kv_bench *b, uint64_t count)
{
    uint8_t bytes[8], key[8];
    struct kv_txn *txn = kv_bench_begin(b, true);
    OK(kv_put(txn, KV_META, S("count"), kv_key_u64(bytes, count)));
    OK(kv_put(txn, KV_BODIES, kv_key_u64(key, count % 16), span_of(value_buffer, count * 97 % sizeof value_buffer)));
    OK(kv_put(txn, KV_RETAINED, S("count"), span_of(bytes, 8)));
    OK(kv_commit(txn));
}

static void test_second_process(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
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
    struct kv_bench *b = (struct kv_bench *)*state;
    put_count(b, 1);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct kv *kv;
        struct kv_txn *txn;
        _exit(kv_bench_open_at(b, &kv, b->dir, true) || kv_begin(kv, &txn, false));
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
        kv_bench_reopen(b);
    }
}

/* A limit on the file's size cuts a write short like a full disk does. */
static void test_disk_full(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    struct rlimit limit, old;
    kv_bench_put(b, KV_META, "a", "1");
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    for (int round = 0; round < 6; round++) {
        uint8_t key[8];
        struct stat status;
        assert_int_equal(stat(b->data, &status), 0);
        limit = old;
        limit.rlim_cur = (rlim_t)status.st_size + (rlim_t)round * 1000;
        struct kv_txn *txn = kv_bench_begin(b, true);
        for (uint64_t i = 0; i < 40; i++)
            OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value_buffer, sizeof value_buffer)));
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        enum err err = kv_commit(txn);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(err, ERR_NOSPACE);
        kv_bench_expect(b, KV_META, "a", "1");
    }
    put_count(b, 1);
    kv_bench_reopen(b);
    kv_bench_expect(b, KV_META, "a", "1");
}

static void write_at(const char *path, const void *bytes, size_t size, off_t at)
{
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, at), size);
    close(fd);
}

static void expect_refused(struct kv_bench *b, enum err expected)
{
    for (int read_only = 0; read_only < 2; read_only++) {
        b->msg.text[0] = '\0';
        assert_int_equal(kv_bench_open_at(b, &b->kv, b->dir, read_only), expected);
        b->kv = NULL;
        assert_non_null(strstr(b->msg.text, b->dir));
    }
}

static void test_damaged_file(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
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
    kv_bench_reopen(b);
}

/* A disk that wrote a page to another's place: all checksums hold, and nothing of it is given out as right. */
static void test_misplaced_pages(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    uint8_t key[8], page[2][PAGE];
    off_t at[2] = {0, 0};
    struct kv_txn *txn = kv_bench_begin(b, true);
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
    OK(kv_bench_open_at(b, &b->kv, b->dir, false));
    struct span found, value;
    unsigned right = 0, damaged = 0;
    txn = kv_bench_begin(b, false);
    enum err err = kv_seek(txn, KV_BODIES, span_of(NULL, 0), &found, &value);
    for (; err != ERR_NOTFOUND; err = kv_next(txn, KV_BODIES, &found, &value)) {
        assert_true(found.size == 8);
        damaged += err == ERR_CORRUPT;
        right += err == ERR_OK;
    }
    kv_abort(txn);
    assert_int_equal(right + damaged, 200);
    assert_in_range(damaged, 2, 8);
    txn = kv_bench_begin(b, false);
    assert_int_not_equal(kv_get(txn, KV_BODIES, kv_key_u64(key, 50), &value), ERR_OK);
    kv_abort(txn);
}

/* Pages that are free need not be in the file: a writer finds that out, opens and makes the file whole. */
static void test_free_pages_missing(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    uint8_t key[8];
    struct stat status;
    struct kv_txn *txn = kv_bench_begin(b, true);
    for (uint64_t i = 0; i < 100; i++)
        OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value_buffer, sizeof value_buffer)));
    OK(kv_commit(txn));
    txn = kv_bench_begin(b, true);
    for (uint64_t i = 0; i < 100; i++)
        OK(kv_del(txn, KV_BODIES, kv_key_u64(key, i)));
    OK(kv_commit(txn));
    for (int i = 0; i < 10; i++)
        kv_bench_put(b, KV_META, "a", i % 2 ? "odd" : "even");
    kv_close(b->kv);
    b->kv = NULL;
    assert_int_equal(stat(b->data, &status), 0);
    assert_int_equal(truncate(b->data, status.st_size - 100 * PAGE - 5), 0);
    assert_int_equal(kv_bench_open_at(b, &b->kv, b->dir, true), ERR_CORRUPT);
    b->kv = NULL;
    OK(kv_bench_open_at(b, &b->kv, b->dir, false));
    struct stat now;
    assert_int_equal(stat(b->data, &now), 0);
    assert_int_equal(now.st_size, status.st_size);
    kv_bench_expect(b, KV_META, "a", "odd");
    put_count(b, 1);
    kv_close(b->kv);
    OK(kv_bench_open_at(b, &b->kv, b->dir, true));
    kv_bench_expect(b, KV_META, "a", "odd");
}

static bool is_stopped_at_once(void) { return true; }

static void test_copy(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    char copy[200];
    snprintf(copy, sizeof copy, "%s/copy", b->root);
    for (uint64_t i = 0; i < 50; i++)
        put_count(b, i);
    kv_bench_put(b, KV_META, "a", "1");
    struct kv_txn *writer = kv_bench_begin(b, true);
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
    OK(kv_bench_open_at(b, &b->kv, copy, true));
    assert_int_equal(count_files(copy), 1);
    kv_bench_expect(b, KV_META, "a", "1");
    OK(kv_get_stats(b->kv, &copied));
    assert_memory_equal(copied.entries, stats.entries, sizeof stats.entries);
    assert_true(copied.file_bytes < stats.file_bytes);
    kv_bench_reopen(b);
    kv_bench_expect(b, KV_META, "a", "not yet");
}

static void test_compact(void **state)
{
    struct kv_bench *b = (struct kv_bench *)*state;
    enum { COUNT = 6000, SIZE = 3500 };
    static uint8_t value[SIZE];
    uint8_t key[8];
    uint64_t saved;
    struct kv_lmdb_options options = {.dir = b->dir, .map_bytes = 64 << 20};
    struct kv_txn *writer = kv_bench_begin(b, true);
    for (uint64_t i = 0; i < COUNT; i++)
        OK(kv_put(writer, KV_BODIES, kv_key_u64(key, i), span_of(value, sizeof value)));
    OK(kv_commit(writer));
    kv_bench_put(b, KV_META, "a", "1");
    kv_close(b->kv);
    b->kv = NULL;
    OK(kv_lmdb_compact(&saved, &options, 50, &b->msg));
    assert_int_equal(saved, 0); /* nothing is free */
    kv_bench_reopen(b);
    writer = kv_bench_begin(b, true);
    for (uint64_t i = 5; i < COUNT; i++)
        OK(kv_del(writer, KV_BODIES, kv_key_u64(key, i)));
    OK(kv_commit(writer));
    kv_bench_put(b, KV_META, "a", "2");
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
    kv_bench_reopen(b);
    kv_bench_expect(b, KV_META, "a", "2");
    struct kv_stats stats;
    OK(kv_get_stats(b->kv, &stats));
    assert_int_equal(stats.entries[KV_BODIES], 5);
    kv_bench_put(b, KV_META, "a", "3"); /* it can be written */
    assert_int_equal(count_files(b->dir), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KV_BENCH_FILE(test_directory),       KV_BENCH_FILE(test_read_only),          KV_BENCH_FILE(test_second_process),
        KV_BENCH_FILE(test_dead_reader),     KV_BENCH_FILE(test_disk_full),          KV_BENCH_FILE(test_damaged_file),
        KV_BENCH_FILE(test_misplaced_pages), KV_BENCH_FILE(test_free_pages_missing), KV_BENCH_FILE(test_copy),
        KV_BENCH_FILE(test_compact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
