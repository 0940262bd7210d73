/* Two layers: opening and making a database, and the operations of kv.h with copy and compaction. LMDB's return codes are
 * its own negative numbers or errno values; err_of() makes enum err of them. */
#include "broker/durable/kv_lmdb.h"

#include "broker/durable/kv_lmdb_fault.h"
#include "broker/durable/kv_lmdb_file.h"
#include "broker/durable/kv_lmdb_free_list.h"
#include "broker/durable/kv_lmdb_page.h"
#include "broker/durable/kv_lmdb_pipe.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/data_dir.h"
#include "common/file.h"
#include "common/logger.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <lmdb.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define KV_LMDB_MAGIC 0x6B764C4Du
#define FILE_MODE 0640
#define LOCK_NAME "lock.mdb"
#define NEW_NAME KV_LMDB_DATA_NAME ".new"
#define NEW_LOCK_NAME NEW_NAME "-lock" /* LMDB's name for it */
#define SPACE_PROBE ((off_t)1 << 20)

struct kv_lmdb {
    struct kv base;
    unsigned magic;
    bool read_only;
    MDB_env *env;
    MDB_dbi trees[KV_TREE_COUNT];
    atomic_bool is_failed; /* a write failed: none begins any more */
    char *path;            /* of the data file */
    uintptr_t map_begin, map_end;
    size_t page_bytes;
    atomic_uint open_count; /* transactions */
};

struct kv_lmdb_txn {
    struct kv_txn base;
    MDB_txn *txn;
    enum err failed; /* why LMDB answers MDB_BAD_TXN from now on */
    MDB_cursor *cursors[KV_TREE_COUNT];
    MDB_cursor *ends[KV_TREE_COUNT]; /* at the end of a tree whose puts are in the order of its keys */
};

static struct kv_lmdb *lmdb_of(struct kv *kv)
{
    struct kv_lmdb *lmdb = (struct kv_lmdb *)kv;
    CHECK(lmdb->magic == KV_LMDB_MAGIC);
    return lmdb;
}

static enum err err_of(int rc)
{
    switch (rc) {
    case MDB_SUCCESS:
        return ERR_OK;
    case MDB_NOTFOUND:
        return ERR_NOTFOUND;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ERR_NOSPACE;
    case MDB_VERSION_MISMATCH:
        return ERR_VERSION;
    case MDB_READERS_FULL:
        return ERR_FULL;
    case MDB_PANIC:
        return ERR_IO;
    case ENOMEM:
        return ERR_NOMEM;
    default:
        /* The rest of LMDB's own are damage (MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_INVALID) or what only damage can bring about here. */
        return rc < 0 ? ERR_CORRUPT : err_from_errno(rc);
    }
}

static enum err fail(struct errmsg *msg, int rc, const char *dir, const char *what)
{
    return err_set(msg, err_of(rc), "%s: %s: %s", dir, what, mdb_strerror(rc));
}

static enum err fail_errno(struct errmsg *msg, const char *dir, const char *what)
{
    int errnum = errno;
    return err_set(msg, err_from_errno(errnum), "%s: %s: %s", dir, what, strerror(errnum));
}

/* Where the file is mapped: LMDB does not say. Without /proc it is not known, and less is found out about damage. */
static void find_map(struct kv_lmdb *lmdb)
{
    struct stat status;
    MDB_stat stat;
    int fd;
    FILE *maps = mdb_env_get_fd(lmdb->env, &fd) == 0 && fstat(fd, &status) == 0 ? fopen("/proc/self/maps", "re") : NULL;
    char line[FILE_PATH_MAX + 128];
    lmdb->map_begin = lmdb->map_end = 0;
    lmdb->page_bytes = mdb_env_stat(lmdb->env, &stat) == 0 ? stat.ms_psize : 4096;
    while (maps && lmdb->map_end == 0 && fgets(line, sizeof line, maps)) {
        uintptr_t begin, end;
        unsigned long inode;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %lu", &begin, &end, &inode) != 3 || inode != status.st_ino)
            continue;
        lmdb->map_begin = begin;
        lmdb->map_end = end;
    }
    if (maps)
        (void)fclose(maps);
}

/* --- transactions -------------------------------------------------------------------------------------------------------------------- */

/* Another process let the file grow beyond our map; only a reader with a map of its own choice meets that, and can move it between its
 * transactions. */
static int begin_again(struct kv_lmdb *lmdb, int rc, MDB_txn **txn_out)
{
    int dead;
    if (rc == MDB_MAP_RESIZED && atomic_load(&lmdb->open_count) == 1) {
        rc = mdb_env_set_mapsize(lmdb->env, 0);
        find_map(lmdb);
    } else if (rc == MDB_READERS_FULL)
        rc = mdb_reader_check(lmdb->env, &dead);
    else
        return rc;
    return rc ? rc : mdb_txn_begin(lmdb->env, NULL, MDB_RDONLY, txn_out);
}

static enum err lmdb_begin(struct kv *kv, struct kv_txn **txn_out, bool is_write)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    if (is_write && lmdb->read_only)
        return ERR_PERMISSION;
    if (is_write && atomic_load(&lmdb->is_failed))
        return ERR_IO;
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)calloc(1, sizeof *txn);
    if (!txn)
        return ERR_NOMEM;
    atomic_fetch_add(&lmdb->open_count, 1);
    /* A backup that was killed left its slot, which would hold back the reuse of pages from here on. */
    int dead_readers, rc = is_write ? mdb_reader_check(lmdb->env, &dead_readers) : 0;
    if (rc == 0)
        rc = mdb_txn_begin(lmdb->env, NULL, is_write ? 0 : MDB_RDONLY, &txn->txn);
    if (rc && !is_write)
        rc = begin_again(lmdb, rc, &txn->txn);
    if (rc) {
        atomic_fetch_sub(&lmdb->open_count, 1);
        free(txn);
        return err_of(rc);
    }
    *txn_out = &txn->base;
    return ERR_OK;
}

static void txn_free(struct kv_lmdb_txn *txn)
{
    atomic_fetch_sub(&lmdb_of(txn->base.kv)->open_count, 1);
    free(txn);
}

static void lmdb_abort(struct kv_txn *base)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    /* LMDB closes the cursors of a write transaction itself, those of a read transaction never. */
    for (int t = 0; t < KV_TREE_COUNT && !base->is_write; t++)
        if (txn->cursors[t])
            mdb_cursor_close(txn->cursors[t]);
    mdb_txn_abort(txn->txn);
    txn_free(txn);
}

/* A write that was cut short reaches us as EIO, and a file system that filled up in its middle is the usual reason. So ask for some space
 * behind the end of the file. (A failed write or sync of pages is followed by no write of a meta page, and a later transaction writes all
 * pages anew that it refers to, so a retry is sound; if it was the meta page, LMDB itself refuses everything from then on.) */
static bool is_out_of_space(MDB_env *env)
{
    int fd;
    struct stat status;
    struct statvfs fs;
    if (mdb_env_get_fd(env, &fd) != 0 || fstat(fd, &status) != 0)
        return false;
    /* With the size kept it would pass the process's limit on file sizes. */
    if (fallocate(fd, 0, status.st_size, SPACE_PROBE) == 0) {
        (void)!ftruncate(fd, status.st_size);
        return false;
    }
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
        return true;
    return errno == EOPNOTSUPP && fstatvfs(fd, &fs) == 0 && fs.f_bavail * fs.f_frsize < (uint64_t)SPACE_PROBE;
}

/* The result of something that may have written to the file. */
static enum err after_write(struct kv_lmdb *lmdb, int rc)
{
    enum err err = err_of(rc);
    if (rc == EIO && is_out_of_space(lmdb->env))
        err = ERR_NOSPACE;
    if (err && err != ERR_NOSPACE && err != ERR_NOMEM)
        atomic_store(&lmdb->is_failed, true);
    return err;
}

static uint64_t bytes_of_pages(MDB_env *env)
{
    MDB_envinfo info;
    MDB_stat stat;
    CHECK(mdb_env_info(env, &info) == 0);
    CHECK(mdb_env_stat(env, &stat) == 0);
    return ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
}

/* Pages at the end that were taken and given back within one transaction are not written; who opens the file next would miss them. Without
 * success no harm is done but to readers that open now. */
static void extend_file(MDB_env *env)
{
    int fd;
    struct stat status;
    uint64_t bytes = bytes_of_pages(env);
    if (mdb_env_get_fd(env, &fd) == 0 && fstat(fd, &status) == 0 && (uint64_t)status.st_size < bytes)
        (void)!ftruncate(fd, (off_t)bytes);
}

/* Is the file that is written the one that the next start will find? */
static bool has_name(const struct kv_lmdb *lmdb)
{
    int fd;
    struct stat by_name, by_fd;
    if (mdb_env_get_fd(lmdb->env, &fd) != 0 || fstat(fd, &by_fd) != 0)
        return true; /* not known */
    if (stat(lmdb->path, &by_name) != 0)
        return errno != ENOENT && errno != ENOTDIR;
    return by_name.st_ino == by_fd.st_ino && by_name.st_dev == by_fd.st_dev;
}

static enum err lmdb_commit(struct kv_txn *base)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    struct kv_lmdb *lmdb = lmdb_of(base->kv);
    CRASH_POINT("lmdb_commit");
    enum err err = after_write(lmdb, mdb_txn_commit(txn->txn));
    if (!err && !has_name(lmdb)) {
        LOG_ERROR("the checkpoint's database was removed or replaced while it was in use", LOG_TEXT("file", lmdb->path));
        atomic_store(&lmdb->is_failed, true);
        err = ERR_CORRUPT;
    }
    if (!err)
        extend_file(lmdb->env);
    txn_free(txn);
    return err;
}

/* --- operations ---------------------------------------------------------------------------------------------------------------------- */

static MDB_val val_of(struct span span) { return (MDB_val){span.size, (void *)(uintptr_t)span.data}; }
static struct span span_of_val(MDB_val val) { return span_of(val.mv_data, val.mv_size); }

/* The result of reading. After damage LMDB refuses everything in the transaction: keep telling why. */
static enum err after_read(struct kv_lmdb_txn *txn, int rc)
{
    if (rc == MDB_BAD_TXN && txn->failed)
        return txn->failed;
    enum err err = err_of(rc);
    if (err && err != ERR_NOTFOUND)
        txn->failed = err;
    return err;
}

/* LMDB does not look at the number that each page carries. A page that a disk has put in another's place is whole, and so are the values
 * in it: their CRC says nothing. `at`: where a value begins (pages that a write transaction has changed lie elsewhere in memory). */
static bool is_in_place(const struct kv_lmdb *lmdb, const void *at)
{
    uintptr_t address = (uintptr_t)at;
    uint64_t number;
    if (address < lmdb->map_begin || address >= lmdb->map_end)
        return true;
    uint64_t page = (address - lmdb->map_begin) / lmdb->page_bytes;
    memcpy(&number, (const void *)(lmdb->map_begin + page * lmdb->page_bytes), sizeof number);
    return number == page;
}

/* What was read; nothing, which has no CRC, when it was found in a wrong place. */
static struct span value_of_val(const struct kv_lmdb *lmdb, const MDB_val *key, MDB_val value)
{
    bool is_right = is_in_place(lmdb, value.mv_data) && (!key || is_in_place(lmdb, key->mv_data));
    return is_right ? span_of_val(value) : span_of(NULL, 0);
}

static enum err lmdb_get(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *value_out)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    MDB_val mdb_key = val_of(key), value;
    int rc = mdb_get(txn->txn, lmdb_of(base->kv)->trees[tree], &mdb_key, &value);
    if (rc == 0)
        *value_out = value_of_val(lmdb_of(base->kv), NULL, value);
    return after_read(txn, rc);
}

/* A cursor at the end believes in its place, so any other change of the tree is the end of it. */
static void leave_end(struct kv_lmdb_txn *txn, enum kv_tree tree)
{
    if (txn->ends[tree])
        mdb_cursor_close(txn->ends[tree]);
    txn->ends[tree] = NULL;
}

/* What is named by sequence comes in ascending order mostly: then there is nothing to search, and full pages stay full. */
static bool is_sequential(enum kv_tree tree) { return tree == KV_RECIPIENTS || tree == KV_BODIES || tree == KV_HOLDERS; }

static int put_at_end(struct kv_lmdb_txn *txn, enum kv_tree tree, MDB_val *key, MDB_val *room)
{
    int rc = 0;
    if (!txn->ends[tree])
        rc = mdb_cursor_open(txn->txn, lmdb_of(txn->base.kv)->trees[tree], &txn->ends[tree]);
    return rc ? rc : mdb_cursor_put(txn->ends[tree], key, room, MDB_RESERVE | MDB_APPEND);
}

static enum err lmdb_put(struct kv_txn *base, enum kv_tree tree, struct span key, struct span value, const uint8_t crc[4])
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    struct kv_lmdb *lmdb = lmdb_of(base->kv);
    MDB_val mdb_key = val_of(key), room = {value.size + 4, NULL};
    int rc = is_sequential(tree) ? put_at_end(txn, tree, &mdb_key, &room) : MDB_KEYEXIST;
    if (rc == MDB_KEYEXIST) { /* it does not belong at the end */
        leave_end(txn, tree);
        room = (MDB_val){value.size + 4, NULL};
        rc = mdb_put(txn->txn, lmdb->trees[tree], &mdb_key, &room, MDB_RESERVE);
    }
    if (rc)
        return after_write(lmdb, rc);
    if (value.size)
        memcpy(room.mv_data, value.data, value.size);
    memcpy((uint8_t *)room.mv_data + value.size, crc, 4);
    CRASH_POINT("lmdb_put");
    return ERR_OK;
}

static int get_cursor(struct kv_lmdb_txn *txn, enum kv_tree tree, MDB_cursor **cursor_out)
{
    int rc = 0;
    if (!txn->cursors[tree])
        rc = mdb_cursor_open(txn->txn, lmdb_of(txn->base.kv)->trees[tree], &txn->cursors[tree]);
    *cursor_out = txn->cursors[tree];
    return rc;
}

/* A value in a page of another's place stays: LMDB would give back the pages that the wrong one names, which are in use. */
static enum err lmdb_del(struct kv_txn *base, enum kv_tree tree, struct span key)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    struct kv_lmdb *lmdb = lmdb_of(base->kv);
    MDB_cursor *cursor;
    MDB_val mdb_key = val_of(key), value;
    int rc = get_cursor(txn, tree, &cursor);
    if (rc == 0)
        rc = mdb_cursor_get(cursor, &mdb_key, &value, MDB_SET_KEY);
    if (rc == 0 && (!is_in_place(lmdb, mdb_key.mv_data) || !is_in_place(lmdb, value.mv_data)))
        return ERR_OK;
    if (rc == 0) {
        leave_end(txn, tree);
        rc = mdb_cursor_del(cursor, 0);
    }
    return rc == MDB_NOTFOUND ? ERR_NOTFOUND : after_write(lmdb, rc);
}

static enum err after_step(struct kv_lmdb_txn *txn, int rc, MDB_val key, MDB_val value, struct span *key_out, struct span *value_out)
{
    if (rc == 0) {
        *key_out = span_of_val(key);
        *value_out = value_of_val(lmdb_of(txn->base.kv), &key, value);
    }
    return after_read(txn, rc);
}

static enum err lmdb_seek(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    MDB_cursor *cursor;
    MDB_val mdb_key = val_of(key), value = {0};
    int rc = get_cursor(txn, tree, &cursor);
    if (rc == 0)
        rc = mdb_cursor_get(cursor, &mdb_key, &value, key.size ? MDB_SET_RANGE : MDB_FIRST);
    return after_step(txn, rc, mdb_key, value, key_out, value_out);
}

static enum err lmdb_next(struct kv_txn *base, enum kv_tree tree, struct span *key_out, struct span *value_out)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    CHECK(txn->cursors[tree]);
    MDB_val mdb_key = {0}, value = {0};
    int rc = mdb_cursor_get(txn->cursors[tree], &mdb_key, &value, MDB_NEXT);
    return after_step(txn, rc, mdb_key, value, key_out, value_out);
}

static enum err lmdb_floor(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    MDB_cursor *cursor;
    MDB_val mdb_key = val_of(key), value = {0};
    int rc = get_cursor(txn, tree, &cursor);
    if (rc == 0) {
        rc = mdb_cursor_get(cursor, &mdb_key, &value, MDB_SET_RANGE);
        if (rc == MDB_NOTFOUND)
            rc = mdb_cursor_get(cursor, &mdb_key, &value, MDB_LAST);
        else if (rc == 0 && !span_equal(span_of_val(mdb_key), key))
            rc = mdb_cursor_get(cursor, &mdb_key, &value, MDB_PREV);
    }
    return after_step(txn, rc, mdb_key, value, key_out, value_out);
}

static uint64_t pages_of(const MDB_stat *stat) { return stat->ms_branch_pages + stat->ms_leaf_pages + stat->ms_overflow_pages; }

/* Pages in use are those of the trees, of the list of trees, of the list of free pages, and the two meta pages. */
static enum err lmdb_stats(struct kv *kv, struct kv_stats *stats_out)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    struct kv_txn *base;
    enum err err = kv_begin(kv, &base, false);
    if (err)
        return err;
    struct kv_lmdb_txn *txn = (struct kv_lmdb_txn *)base;
    MDB_stat stat;
    MDB_envinfo info;
    uint64_t pages = 2;
    int rc = mdb_env_info(lmdb->env, &info);
    for (int t = 0; t < KV_TREE_COUNT && rc == 0; t++) {
        rc = mdb_stat(txn->txn, lmdb->trees[t], &stat);
        if (rc == 0) {
            stats_out->entries[t] = stat.ms_entries;
            pages += pages_of(&stat);
        }
    }
    for (MDB_dbi inner = 0; inner <= 1 && rc == 0; inner++) {
        rc = mdb_stat(txn->txn, inner, &stat);
        if (rc == 0)
            pages += pages_of(&stat);
    }
    if (rc == 0) {
        stats_out->used_bytes = pages * stat.ms_psize;
        stats_out->file_bytes = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
        stats_out->map_bytes = info.me_mapsize;
    }
    kv_abort(base);
    return err_of(rc);
}

void kv_lmdb_catch_faults(struct kv *kv)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    if (lmdb->map_end != 0)
        kv_lmdb_fault_catch(lmdb->path, lmdb->map_begin, lmdb->map_end);
}

static void lmdb_close(struct kv *kv)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    CHECK(atomic_load(&lmdb->open_count) == 0);
    kv_lmdb_fault_forget(lmdb->map_begin);
    mdb_env_close(lmdb->env);
    lmdb->magic = 0;
    free(lmdb->path);
    free(lmdb);
}

static const struct kv_ops lmdb_ops = {
    .begin = lmdb_begin,
    .commit = lmdb_commit,
    .abort = lmdb_abort,
    .get = lmdb_get,
    .put = lmdb_put,
    .del = lmdb_del,
    .seek = lmdb_seek,
    .next = lmdb_next,
    .floor = lmdb_floor,
    .stats = lmdb_stats,
    .close = lmdb_close,
};

/* --- opening ------------------------------------------------------------------------------------------------------------------------- */

/* LMDB wants the process ended over a page that cannot be; whoever reads the last line shall know what to do. */
static void on_assert(MDB_env *env, const char *text)
{
    const char *path = NULL;
    (void)mdb_env_get_path(env, &path);
    LOG_ERROR("a page of the checkpoint's database is damaged; this process ends", LOG_TEXT("file", path ? path : "checkpoint"),
              LOG_TEXT("detail", text),
              LOG_TEXT("do", "see `tidegate-broker repair`: what was acknowledged is in the log and the checkpoint"));
    logger_flush();
    (void)fflush(NULL);
    _exit(EXIT_FAILURE);
}

static enum err open_env(struct kv_lmdb *lmdb, const struct kv_lmdb_options *options, const char *path, unsigned flags, struct errmsg *msg)
{
    MDB_env *env;
    int rc = mdb_env_create(&env);
    if (rc)
        return fail(msg, rc, path, "cannot make an LMDB environment");
    lmdb->env = env;
    (void)mdb_env_set_assert(env, on_assert);
    if (options->map_bytes)
        rc = mdb_env_set_mapsize(env, align_up(options->map_bytes, 4096));
    if (!rc)
        rc = mdb_env_set_maxdbs(env, KV_TREE_COUNT);
    if (!rc && options->reader_max)
        rc = mdb_env_set_maxreaders(env, options->reader_max);
    if (!rc)
        rc = mdb_env_open(env, path, flags | MDB_NOTLS, FILE_MODE);
    if (rc) {
        mdb_env_close(env);
        lmdb->env = NULL;
        return fail(msg, rc, path,
                    rc == ENOMEM ? "cannot map the database, as large as checkpoint_max_size allows (is address space limited, ulimit -v?)"
                                 : "cannot open the database");
    }
    CHECK(mdb_env_get_maxkeysize(env) >= KV_KEY_MAX);
    return ERR_OK;
}

/* The handles of the trees, which this makes with MDB_CREATE; they hold for all later transactions. */
static enum err open_trees(struct kv_lmdb *lmdb, const char *dir, unsigned flags, struct errmsg *msg)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(lmdb->env, NULL, flags & MDB_CREATE ? 0 : MDB_RDONLY, &txn);
    if (rc)
        return fail(msg, rc, dir, "cannot begin");
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        rc = mdb_dbi_open(txn, kv_tree_name((enum kv_tree)t), flags, &lmdb->trees[t]);
        if (rc) {
            mdb_txn_abort(txn);
            return err_set(msg, rc == MDB_NOTFOUND ? ERR_CORRUPT : err_of(rc), "%s: tree %s: %s", dir, kv_tree_name((enum kv_tree)t),
                           mdb_strerror(rc));
        }
    }
    rc = mdb_txn_commit(txn);
    return rc ? fail(msg, rc, dir, "cannot commit") : ERR_OK;
}

/* LMDB says what is wrong with the list of trees, not where it lies. */
static void name_list_of_trees(struct errmsg *msg, const char *path, const char *dir)
{
    struct kv_lmdb_extent extent;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && msg && kv_lmdb_file_read_extent(fd, &extent, dir, NULL) == ERR_OK && extent.main_root != KV_LMDB_PAGE_NONE) {
        struct errmsg why = *msg;
        (void)err_set(msg, ERR_CORRUPT, "%.*s (the list of trees begins in %s, page %" PRIu64 ", at offset %" PRIu64 ")",
                      (int)sizeof why.text / 2, why.text, path, extent.main_root, extent.main_root * extent.page_bytes);
    }
    if (fd >= 0)
        close(fd);
}

/* A new database, under its name only when it is whole and on disk. */
static enum err make_database(struct kv_lmdb *lmdb, const struct kv_lmdb_options *options, int dir_fd, struct errmsg *msg)
{
    char *path;
    if (asprintf(&path, "%s/" NEW_NAME, options->dir) < 0)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", options->dir);
    (void)unlinkat(dir_fd, NEW_NAME, 0);
    (void)unlinkat(dir_fd, NEW_LOCK_NAME, 0);
    enum err err = open_env(lmdb, options, path, MDB_NOSUBDIR, msg);
    if (!err) {
        err = open_trees(lmdb, options->dir, MDB_CREATE, msg);
        if (!err)
            extend_file(lmdb->env);
        mdb_env_close(lmdb->env);
        lmdb->env = NULL;
    }
    (void)unlinkat(dir_fd, NEW_LOCK_NAME, 0);
    if (!err && renameat(dir_fd, NEW_NAME, dir_fd, KV_LMDB_DATA_NAME) != 0)
        err = fail_errno(msg, options->dir, "cannot rename the new database");
    if (!err && fsync(dir_fd) != 0)
        err = fail_errno(msg, options->dir, "cannot sync the directory");
    if (err)
        (void)unlinkat(dir_fd, NEW_NAME, 0);
    free(path);
    return err;
}

static enum err open_to_write(struct kv_lmdb *lmdb, const struct kv_lmdb_options *options, int dir_fd, struct errmsg *msg)
{
    const char *dir = options->dir;
    int fd = openat(dir_fd, KV_LMDB_DATA_NAME, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        enum err err = make_database(lmdb, options, dir_fd, msg);
        if (err)
            return err;
        fd = openat(dir_fd, KV_LMDB_DATA_NAME, O_RDWR | O_CLOEXEC);
    }
    if (fd < 0)
        return fail_errno(msg, dir, "cannot open " KV_LMDB_DATA_NAME);
    struct kv_lmdb_extent extent = {0};
    enum err err = kv_lmdb_file_read_extent(fd, &extent, dir, msg);
    /* Nothing is written before it is known that what lacks is free: zeros in its place would look whole to the next start. */
    if (!err && kv_lmdb_file_is_short(&extent) && !kv_lmdb_file_is_lack_free(fd, &extent))
        err = kv_lmdb_file_fail_short(msg, dir, &extent);
    if (!err && !kv_lmdb_free_list_is_sound(fd, extent.free_root, extent.page_bytes, extent.meant_bytes / extent.page_bytes - 1))
        err = err_set(msg, ERR_CORRUPT, "%s/" KV_LMDB_DATA_NAME ": the list of free pages is damaged: what is in use would be overwritten",
                      dir);
    if (!err && kv_lmdb_file_is_short(&extent) && ftruncate(fd, (off_t)extent.meant_bytes) != 0)
        err = fail_errno(msg, dir, "cannot extend " KV_LMDB_DATA_NAME);
    if (!err)
        err = open_env(lmdb, options, dir, 0, msg);
    close(fd);
    return err;
}

/* Makes nothing. A directory without a lock file has no writer (it is a copy), so there is nobody to lock against. */
static enum err open_to_read(struct kv_lmdb *lmdb, const struct kv_lmdb_options *options, int dir_fd, struct errmsg *msg)
{
    const char *dir = options->dir;
    int fd = openat(dir_fd, KV_LMDB_DATA_NAME, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(msg, dir, "cannot open " KV_LMDB_DATA_NAME);
    struct kv_lmdb_extent extent;
    enum err err;
    /* A writer extends the file just after a commit that left free pages at its end unwritten. */
    for (int tries = 0;; tries++) {
        err = kv_lmdb_file_read_extent(fd, &extent, dir, msg);
        if (err || !kv_lmdb_file_is_short(&extent) || tries == 20)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    close(fd);
    if (!err && kv_lmdb_file_is_short(&extent))
        err = kv_lmdb_file_fail_short(msg, dir, &extent);
    if (err)
        return err;
    bool has_lock = faccessat(dir_fd, LOCK_NAME, F_OK, 0) == 0;
    return open_env(lmdb, options, dir, has_lock ? MDB_RDONLY : MDB_RDONLY | MDB_NOLOCK, msg);
}

enum err kv_lmdb_open(struct kv **kv_out, const struct kv_lmdb_options *options, struct errmsg *msg)
{
    const char *dir = options->dir;
    enum err err = options->read_only ? ERR_OK : data_dir_make(dir, msg);
    if (err)
        return err;
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return fail_errno(msg, dir, "cannot open the directory");
    struct kv_lmdb *lmdb = (struct kv_lmdb *)calloc(1, sizeof *lmdb);
    if (!lmdb) {
        close(dir_fd);
        return err_set(msg, ERR_NOMEM, "%s: out of memory", dir);
    }
    if (asprintf(&lmdb->path, "%s/" KV_LMDB_DATA_NAME, dir) < 0) {
        close(dir_fd);
        free(lmdb);
        return err_set(msg, ERR_NOMEM, "%s: out of memory", dir);
    }
    lmdb->base.ops = &lmdb_ops;
    lmdb->base.name = lmdb->path;
    lmdb->magic = KV_LMDB_MAGIC;
    lmdb->read_only = options->read_only;
    err = options->read_only ? open_to_read(lmdb, options, dir_fd, msg) : open_to_write(lmdb, options, dir_fd, msg);
    close(dir_fd);
    if (!err) {
        find_map(lmdb);
        err = open_trees(lmdb, dir, 0, msg);
        if (err == ERR_CORRUPT)
            name_list_of_trees(msg, lmdb->path, dir);
    }
    if (err) {
        if (lmdb->env)
            mdb_env_close(lmdb->env);
        free(lmdb->path);
        free(lmdb);
        return err;
    }
    *kv_out = &lmdb->base;
    return ERR_OK;
}

/* --- copy ---------------------------------------------------------------------------------------------------------------------------- */

enum err kv_lmdb_copy(struct kv *kv, const char *dir, bool (*is_stopped)(void), struct errmsg *msg)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return fail_errno(msg, dir, "cannot open the directory");
    enum err err = ERR_OK;
    int fd = openat(dir_fd, KV_LMDB_DATA_NAME, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    if (fd < 0) {
        err = fail_errno(msg, dir, "cannot make " KV_LMDB_DATA_NAME);
        close(dir_fd);
        return err;
    }
    int rc = kv_lmdb_pipe_copy(lmdb->env, fd, is_stopped);
    if (rc == ECANCELED)
        err = err_set(msg, ERR_CLOSED, "%s: copy of the database: stopped by a signal", dir);
    else if (rc)
        err = fail(msg, rc, dir, "cannot copy the database");
    else if (fsync(fd) != 0)
        err = fail_errno(msg, dir, "cannot sync the copy");
    close(fd);
    if (!err && fsync(dir_fd) != 0)
        err = fail_errno(msg, dir, "cannot sync the directory");
    if (err)
        (void)unlinkat(dir_fd, KV_LMDB_DATA_NAME, 0);
    close(dir_fd);
    return err;
}

/* --- compaction ---------------------------------------------------------------------------------------------------------------------- */

/* A line of the table of readers ends in the number of the transaction that is being read; a heading and idle places do not. */
static int count_reader(const char *line, void *count)
{
    size_t size = strlen(line);
    *(unsigned *)count += size >= 2 && line[size - 2] >= '0' && line[size - 2] <= '9';
    return 0;
}

static bool has_readers(struct kv_lmdb *lmdb)
{
    int dead;
    unsigned count = 0;
    (void)mdb_reader_check(lmdb->env, &dead);
    return mdb_reader_list(lmdb->env, count_reader, &count) < 0 || count > 0;
}

static bool is_worth_it(struct kv *kv, unsigned free_percent, uint64_t *free_bytes_out)
{
    struct kv_stats stats;
    if (kv_get_stats(kv, &stats) != ERR_OK || stats.used_bytes >= stats.file_bytes)
        return false;
    *free_bytes_out = stats.file_bytes - stats.used_bytes;
    return *free_bytes_out >= KV_LMDB_COMPACT_MIN && *free_bytes_out / (stats.file_bytes / 100 + 1) >= free_percent;
}

/* The copy beside the original, whole and synced. */
static enum err write_compact(struct kv_lmdb *lmdb, int dir_fd, const char *dir, struct errmsg *msg)
{
    int fd = openat(dir_fd, NEW_NAME, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, FILE_MODE);
    if (fd < 0)
        return fail_errno(msg, dir, "cannot make " NEW_NAME);
    enum err err = ERR_OK;
    int rc = mdb_env_copyfd2(lmdb->env, fd, MDB_CP_COMPACT);
    if (rc)
        err = fail(msg, rc, dir, "cannot copy the database");
    else if (fsync(fd) != 0)
        err = fail_errno(msg, dir, "cannot sync the copy");
    close(fd);
    return err;
}

enum err kv_lmdb_compact(uint64_t *saved_out, const struct kv_lmdb_options *options, unsigned free_percent, struct errmsg *msg)
{
    struct kv *kv = NULL;
    uint64_t free_bytes = 0;
    *saved_out = 0;
    enum err err = kv_lmdb_open(&kv, options, msg);
    if (err)
        return err;
    CHECK(kv);
    kv_lmdb_catch_faults(kv);
    bool is_due = is_worth_it(kv, free_percent, &free_bytes) && !has_readers(lmdb_of(kv));
    int dir_fd = is_due ? open(options->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (is_due)
        err =
            dir_fd < 0 ? fail_errno(msg, options->dir, "cannot open the directory") : write_compact(lmdb_of(kv), dir_fd, options->dir, msg);
    kv_close(kv);
    if (dir_fd < 0)
        return err;
    CRASH_POINT("lmdb_compacted");
    if (!err && renameat(dir_fd, NEW_NAME, dir_fd, KV_LMDB_DATA_NAME) != 0)
        err = fail_errno(msg, options->dir, "cannot rename " NEW_NAME);
    if (!err && fsync(dir_fd) != 0)
        err = fail_errno(msg, options->dir, "cannot sync the directory");
    if (err)
        (void)unlinkat(dir_fd, NEW_NAME, 0);
    else
        *saved_out = free_bytes;
    close(dir_fd);
    return err;
}

/* --- the list of free pages ---------------------------------------------------------------------------------------------------------- */

enum err kv_lmdb_check_free(struct kv *kv)
{
    struct kv_lmdb *lmdb = lmdb_of(kv);
    struct kv_lmdb_extent extent = {0};
    int fd = open(lmdb->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(errno);
    enum err err = kv_lmdb_file_read_extent(fd, &extent, lmdb->path, NULL);
    if (!err && !kv_lmdb_free_list_is_sound(fd, extent.free_root, extent.page_bytes, extent.meant_bytes / extent.page_bytes - 1))
        err = ERR_CORRUPT;
    close(fd);
    return err;
}
