/* kv_snapshot.c: any bytes may stand in the file. Nothing breaks, every walk ends, and what comes out is whole: its CRC holds.
 *
 * The input is data.mdb, or, when it begins with 'P', a list of changes to a database that LMDB wrote: position u24, byte. */
#include "broker/durable/kv_snapshot.h"

#include "broker/durable/kv_lmdb.h"
#include "common/check.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64], path[80];
static uint8_t *whole; /* the database that is changed */
static size_t whole_size;

static void clean_up(void)
{
    char lock[80];
    snprintf(lock, sizeof lock, "%s/lock.mdb", dir);
    (void)unlink(path);
    (void)unlink(lock);
    (void)rmdir(dir);
    free(whole);
}

static void make_database(void)
{
    struct kv_lmdb_options options = {.dir = dir, .map_bytes = 16 << 20};
    struct kv *kv;
    struct errmsg msg;
    static uint8_t value[9000];
    CHECK(kv_lmdb_open(&kv, &options, &msg) == ERR_OK);
    for (unsigned commit = 1; commit <= 4; commit++) {
        struct kv_txn *txn;
        CHECK(kv_begin(kv, &txn, true) == ERR_OK);
        for (unsigned i = 0; i < 200; i++) {
            uint8_t key[8];
            memset(value, (int)(i + commit), sizeof value);
            size_t size = i % 50 == 0 ? sizeof value : 20 + i;
            CHECK(kv_put(txn, (enum kv_tree)(i % KV_TREE_COUNT), kv_key_u64(key, i * 7 % 150), span_of(value, size)) == ERR_OK);
        }
        CHECK(kv_commit(txn) == ERR_OK);
    }
    kv_close(kv);
}

static void begin(void)
{
    const char *tmp = getenv("TMPDIR");
    struct stat status;
    snprintf(dir, sizeof dir, "%s/snapshot-fuzz-XXXXXX", tmp && strlen(tmp) < 32 ? tmp : "/tmp");
    CHECK(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/data.mdb", dir);
    make_database();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && fstat(fd, &status) == 0);
    whole_size = (size_t)status.st_size;
    whole = (uint8_t *)malloc(whole_size);
    CHECK(whole && pread(fd, whole, whole_size, 0) == (ssize_t)whole_size);
    (void)close(fd);
    (void)atexit(clean_up);
}

static void write_file(const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    if (size == 0 || data[0] != 'P') {
        CHECK(pwrite(fd, data, size, 0) == (ssize_t)size);
    } else {
        CHECK(pwrite(fd, whole, whole_size, 0) == (ssize_t)whole_size);
        for (size_t at = 1; at + 4 <= size; at += 4) {
            size_t place = (data[at] | (size_t)data[at + 1] << 8 | (size_t)data[at + 2] << 16) % whole_size;
            CHECK(pwrite(fd, data + at + 3, 1, (off_t)place) == 1);
        }
    }
    (void)close(fd);
}

static void read_all(const struct kv_snapshot_source *source, bool only_meta)
{
    struct kv *kv;
    struct kv_txn *txn;
    struct errmsg msg;
    uint8_t bytes[8];
    CHECK(kv_snapshot_open(&kv, dir, source, only_meta, &msg) == ERR_OK);
    CHECK(kv_begin(kv, &txn, false) == ERR_OK);
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        struct span key, value;
        enum err err = kv_seek(txn, (enum kv_tree)t, span_of(NULL, 0), &key, &value);
        uint64_t steps = 0;
        for (; err != ERR_NOTFOUND; err = kv_next(txn, (enum kv_tree)t, &key, &value)) {
            CHECK((!err || err == ERR_CORRUPT) && key.size >= 1 && key.size <= KV_KEY_MAX);
            CHECK(++steps <= UINT64_C(1) << 24);
        }
        for (uint64_t i = 0; i < 150; i += 11) {
            (void)!kv_get(txn, (enum kv_tree)t, kv_key_u64(bytes, i), &value);
            (void)!kv_floor(txn, (enum kv_tree)t, kv_key_u64(bytes, i), &key, &value);
        }
    }
    kv_abort(txn);
    kv_close(kv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kv_snapshot_source sources[2], source;
    struct errmsg msg;
    unsigned count;
    uint64_t page = 2;
    if (!whole)
        begin();
    write_file(data, size);
    CHECK(kv_snapshot_source_find(sources, &count, dir, &msg) == ERR_OK);
    for (unsigned i = 0; i < count; i++)
        read_all(&sources[i], false);
    for (int i = 0; i < 4 && kv_snapshot_source_find_root(&source, &page, 4096, dir, &msg) == ERR_OK; i++)
        read_all(&source, i % 2);
    return 0;
}
