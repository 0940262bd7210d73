/* The seam to the file system: every system call that durability depends on, behind one table of functions.
 *
 * The broker's log and the sink's segments and manifests use nothing else, so that tests and the simulator (tests/lib/sim_fs.h) can fail,
 * tear, reorder and forget each single write. fs_posix() is the real one.
 *
 * Invariants: reads and writes are whole or an error (a read may end early at the end of the file only); no call retries a failed sync; a
 * name is durable only after fs_sync_dir() of its directory, file contents only after file_sync() or, for a file opened with FILE_DSYNC,
 * when the write returns. After a failed write or sync the contents of the file are unknown: the owner stops using it for good.
 *
 * Direct I/O: with FILE_DIRECT, memory, offset and size of each read and write must be multiples of file_alignment(). Where the file system
 * refuses it (tmpfs), the file is opened without; file_alignment() still answers a value to keep to, and file_is_direct() says so.
 *
 * Ownership: a `struct fs` outlives its files. A path is borrowed until return. Thread: any thread, one at a time per file (positioned
 * reads of one file may run together); sim_fs is for one thread only.
 *
 *     struct file *file;
 *     enum err err = fs_open(fs, &file, "dir/name", FILE_READ | FILE_WRITE | FILE_CREATE);
 *     if (!err) err = file_pwrite(file, data, size, 0);
 *     if (!err) err = file_sync(file);
 *     if (!err) err = fs_sync_dir(fs, "dir");
 *     file_close(file); */
#ifndef TIDEGATE_COMMON_FILE_H
#define TIDEGATE_COMMON_FILE_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Bytes; a path with its final NUL is no longer. */
#define FILE_PATH_MAX 4096

/* The alignment that is used where nothing better is known. Every alignment is a power of two from 512 to this. */
#define FILE_ALIGNMENT_MAX 4096
#define FILE_ALIGNMENT_MIN 512

enum file_flag {
    FILE_READ = 1,      /* at least one of READ and WRITE */
    FILE_WRITE = 2,     /* */
    FILE_CREATE = 4,    /* create when missing (mode 0640) */
    FILE_EXCLUSIVE = 8, /* with CREATE: ERR_EXISTS when it is there */
    FILE_TRUNCATE = 16, /* empty it */
    FILE_DIRECT = 32,   /* past the page cache, where the file system can */
    FILE_DSYNC = 64,    /* a write is durable, with the size it needs, when it returns */
};

struct fs;

/* An open file. Implementations embed it as their first member. */
struct file {
    struct fs *fs;
    uint32_t alignment; /* bytes, power of two, FILE_ALIGNMENT_MIN..FILE_ALIGNMENT_MAX */
    bool direct;        /* false when FILE_DIRECT was not asked for or refused */
};

struct fs_ops {
    enum err (*open)(struct fs *fs, struct file **file_out, const char *path, unsigned flags);
    void (*close)(struct file *file);
    enum err (*pread)(struct file *file, size_t *got_out, void *data, size_t size, uint64_t offset);
    enum err (*pwrite)(struct file *file, const void *data, size_t size, uint64_t offset);
    enum err (*pwritev)(struct file *file, const struct iovec *iov, int iov_count, uint64_t offset);
    enum err (*sync)(struct file *file);
    enum err (*truncate)(struct file *file, uint64_t size);
    enum err (*size)(struct file *file, uint64_t *size_out);
    enum err (*lock)(struct file *file);
    enum err (*rename)(struct fs *fs, const char *from, const char *to);
    enum err (*unlink)(struct fs *fs, const char *path);
    enum err (*mkdir)(struct fs *fs, const char *path);
    enum err (*list)(struct fs *fs, const char *path, void *context, void (*on_name)(void *context, const char *name));
    enum err (*sync_dir)(struct fs *fs, const char *path);
    enum err (*free_bytes)(struct fs *fs, uint64_t *bytes_out, const char *path);
    enum err (*random)(struct fs *fs, void *data, size_t size);
};

/* A file system. Implementations embed it as their first member. */
struct fs {
    const struct fs_ops *ops;
};

/* The operating system's. Static storage, never freed. Thread: any. */
struct fs *fs_posix(void);

/* How many files were opened without the direct I/O that was asked for, since the start of the process (fs_posix only). Thread: any. */
uint64_t fs_posix_direct_refused_count(void);

/* Open `path`.
 * file_out  returned, to be closed with file_close; untouched on error.
 * flags     of enum file_flag.
 * Returns 0, ERR_NOTFOUND, ERR_EXISTS, ERR_PERMISSION, ERR_NOSPACE, ERR_NOMEM, ERR_IO. */
static inline must_check enum err fs_open(struct fs *fs, struct file **file_out, const char *path, unsigned flags)
{
    return fs->ops->open(fs, file_out, path, flags);
}

/* Close; NULL is allowed. Releases the lock. What was not synced stays not synced. */
static inline void file_close(struct file *file)
{
    if (file)
        file->fs->ops->close(file);
}

/* Read `size` bytes from `offset`. `*got_out` is less than `size` only where the file ends. Returns 0 or ERR_IO. */
static inline must_check enum err file_pread(struct file *file, size_t *got_out, void *data, size_t size, uint64_t offset)
{
    return file->fs->ops->pread(file, got_out, data, size, offset);
}

/* Write `size` bytes at `offset`: all of them, or an error and any part of them. Returns 0, ERR_NOSPACE, ERR_IO. */
static inline must_check enum err file_pwrite(struct file *file, const void *data, size_t size, uint64_t offset)
{
    return file->fs->ops->pwrite(file, data, size, offset);
}

/* The same from `iov_count` buffers (any number; at most 1024 go into one system call). `iov` is borrowed and not changed. */
static inline must_check enum err file_pwritev(struct file *file, const struct iovec *iov, int iov_count, uint64_t offset)
{
    return file->fs->ops->pwritev(file, iov, iov_count, offset);
}

/* fdatasync: contents and size are durable on return. A failure is final for the file. */
static inline must_check enum err file_sync(struct file *file) { return file->fs->ops->sync(file); }

/* Cut or extend with zeros (sparse). */
static inline must_check enum err file_truncate(struct file *file, uint64_t size) { return file->fs->ops->truncate(file, size); }

static inline must_check enum err file_size(struct file *file, uint64_t *size_out) { return file->fs->ops->size(file, size_out); }

/* Take the exclusive advisory lock of the file (flock), held until file_close or the end of the process.
 * Returns 0 or ERR_LOCKED at once when somebody else holds it. */
static inline must_check enum err file_lock(struct file *file) { return file->fs->ops->lock(file); }

static inline uint32_t file_alignment(const struct file *file) { return file->alignment; }
static inline bool file_is_direct(const struct file *file) { return file->direct; }

/* Rename atomically, replacing `to`. Durable after fs_sync_dir(). */
static inline must_check enum err fs_rename(struct fs *fs, const char *from, const char *to) { return fs->ops->rename(fs, from, to); }

/* Remove a file's name. ERR_NOTFOUND when there is none. Durable after fs_sync_dir(). */
static inline must_check enum err fs_unlink(struct fs *fs, const char *path) { return fs->ops->unlink(fs, path); }

/* Make one directory (mode 0750). ERR_EXISTS when it is there. Durable after fs_sync_dir() of its parent. */
static inline must_check enum err fs_mkdir(struct fs *fs, const char *path) { return fs->ops->mkdir(fs, path); }

/* Call `on_name` once for each entry of a directory, without "." and "..", in no particular order; `name` is borrowed during the call,
 * which must not change the directory. */
static inline must_check enum err fs_list(struct fs *fs, const char *path, void *context, void (*on_name)(void *context, const char *name))
{
    return fs->ops->list(fs, path, context, on_name);
}

/* Make the names of a directory durable. A failure is final, as with file_sync. */
static inline must_check enum err fs_sync_dir(struct fs *fs, const char *path) { return fs->ops->sync_dir(fs, path); }

/* Bytes that an unprivileged process may still write on the file system of `path`. */
static inline must_check enum err fs_free_bytes(struct fs *fs, uint64_t *bytes_out, const char *path)
{
    return fs->ops->free_bytes(fs, bytes_out, path);
}

/* Fill with random bytes (from the kernel; reproducible in the simulator). For identities, not for keys. */
static inline must_check enum err fs_random(struct fs *fs, void *data, size_t size) { return fs->ops->random(fs, data, size); }

/* Write "dir/name" into `path_out` of FILE_PATH_MAX bytes. Returns 0 or ERR_TOOLARGE. */
must_check enum err file_path(char *path_out, const char *dir, const char *name);

#endif
