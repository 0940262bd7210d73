/* A preloaded library that writes down what a program does to the files below one directory, so that disk_image.py can say what a loss of
 * power would have left of them.
 *
 *     LD_PRELOAD=disk_recorder.so RECORD_ROOT=/data RECORD_JOURNAL=/tmp/journal [RECORD_DELAY_US=5000] program ...
 *
 * Each operation is two entries: BEGIN with everything it is about to do (a write with its bytes), before the system call, and END with
 * what that returned, after it and before the program hears of it. The journal is written by plain write(2) under one lock: entries of all
 * threads stand in one order, and a SIGKILL loses none, because the machine lives on. A write with BEGIN and no END was under way.
 *
 * Recorded are open (created, truncated, with O_DSYNC or not), write, writev, pwrite, pwritev, ftruncate, fsync,
 * fdatasync (of files and of directories), rename and unlink. Not recorded: what goes through stdio or a shared mapping: for the image it
 * never reached the disk (the program keeps nothing there that must last: LMDB's lock file, the list of ports).
 *
 * RECORD_DELAY_US makes the disk slow: every synced write and every sync takes up to that many microseconds longer, so that more is under
 * way when the program is killed. The delays come from RECORD_SEED.
 *
 * RECORD_KILL_AT=N: the program kills itself with SIGKILL when it has begun its N-th operation (1: the first) and not carried it out.
 *
 * Entry: struct entry, then `name_size` bytes of names (relative to the root; of a rename the old one, a zero byte, the new one), then
 * `size` bytes of data (WRITE only). Byte order of the machine. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/preload.h"

enum kind { OPEN = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, END };

enum entry_flags { ENTRY_CREATED = 1, ENTRY_TRUNCATED = 2, ENTRY_DSYNC = 4, ENTRY_DIRECTORY = 8 };

struct entry {
    uint32_t magic;
    uint32_t kind;
    uint64_t id; /* of the operation; END repeats it */
    uint64_t time_ns;
    uint64_t inode;
    int64_t offset; /* WRITE: where; TRUNCATE: the size; END: what the call returned */
    uint64_t size;
    uint32_t name_size;
    uint32_t flags;
};

#define ENTRY_MAGIC 0x4c52u
#define FD_MAX 65536
#define IOV_PARTS 1030

static struct tracked {
    bool is_tracked, is_dsync, is_directory;
    uint64_t inode;
    char *name; /* directories only */
} files[FD_MAX];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static char root[PATH_MAX];
static size_t root_size;
static uint64_t last_id, kill_at;
static unsigned delay_us_max;
static uint64_t delay_state;

static void die(const char *what)
{
    fprintf(stderr, "disk_recorder: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void start(void)
{
    const char *root_text = getenv("RECORD_ROOT"), *journal_text = getenv("RECORD_JOURNAL"), *delay = getenv("RECORD_DELAY_US");
    const char *seed = getenv("RECORD_SEED"), *at = getenv("RECORD_KILL_AT");
    if (!root_text || !journal_text)
        return;
    if (!realpath(root_text, root))
        die(root_text);
    root_size = strlen(root);
    delay_us_max = delay ? (unsigned)strtoul(delay, NULL, 10) : 0;
    delay_state = seed ? strtoull(seed, NULL, 10) : 1;
    kill_at = at ? strtoull(at, NULL, 10) : 0;
    journal = (int)syscall(SYS_openat, AT_FDCWD, journal_text, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0640);
    if (journal < 0)
        die(journal_text);
}

/* The name relative to the root ("" is the root itself), or NULL when it is not below it. dir_fd: as in openat(). */
static const char *name_of(char buffer[PATH_MAX], int dir_fd, const char *path)
{
    if (journal < 0)
        return NULL;
    if (path[0] == '/') {
        snprintf(buffer, PATH_MAX, "%s", path);
    } else {
        char from[64], base[PATH_MAX];
        snprintf(from, sizeof from, dir_fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir_fd);
        ssize_t size = readlink(from, base, sizeof base - 1);
        if (size < 0)
            return NULL;
        base[size] = 0;
        if (snprintf(buffer, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return NULL;
    }
    /* "a//b" and a slash at the end are the only untidiness that the program's paths have. */
    size_t out = 0;
    for (size_t in = 0; buffer[in]; in++) {
        if (buffer[in] != '/' || (out > 0 && buffer[out - 1] != '/') || out == 0)
            buffer[out++] = buffer[in];
    }
    while (out > 1 && buffer[out - 1] == '/')
        out--;
    buffer[out] = 0;
    if (strncmp(buffer, root, root_size) != 0 || (buffer[root_size] != '/' && buffer[root_size] != 0))
        return NULL;
    return buffer[root_size] ? buffer + root_size + 1 : buffer + root_size;
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Under the lock. */
static uint64_t put(struct entry entry, const char *names, const struct iovec *iov, int count)
{
    struct iovec parts[IOV_PARTS + 2];
    entry.magic = ENTRY_MAGIC;
    entry.time_ns = now_ns();
    if (!entry.id)
        entry.id = ++last_id;
    parts[0] = (struct iovec){&entry, sizeof entry};
    parts[1] = (struct iovec){(void *)(uintptr_t)names, entry.name_size};
    if (count > 0)
        memcpy(parts + 2, iov, (size_t)count * sizeof *iov);
    int used = count + 2, first = 0;
    while (first < used) {
        long n = syscall(SYS_writev, journal, parts + first, used - first < IOV_MAX ? used - first : IOV_MAX);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            die("journal");
        }
        size_t left = (size_t)n;
        while (first < used && left >= parts[first].iov_len)
            left -= parts[first++].iov_len;
        if (first < used) {
            parts[first].iov_base = (char *)parts[first].iov_base + left;
            parts[first].iov_len -= left;
        }
    }
    if (entry.kind != END && entry.id == kill_at) {
        (void)kill(getpid(), SIGKILL);
        for (;;)
            (void)pause();
    }
    return entry.id;
}

static uint64_t begin(struct entry entry, const char *names, const struct iovec *iov, int count)
{
    pthread_mutex_lock(&lock);
    uint64_t id = put(entry, names, iov, count);
    pthread_mutex_unlock(&lock);
    return id;
}

/* errno is the caller's. */
static void end(uint64_t id, int64_t result)
{
    int saved = errno;
    begin((struct entry){.kind = END, .id = id, .offset = result}, NULL, NULL, 0);
    errno = saved;
}

static void be_slow(void)
{
    if (!delay_us_max)
        return;
    pthread_mutex_lock(&lock);
    delay_state ^= delay_state << 13;
    delay_state ^= delay_state >> 7;
    delay_state ^= delay_state << 17;
    unsigned us = (unsigned)(delay_state % (delay_us_max + 1));
    pthread_mutex_unlock(&lock);
    usleep(us);
}

static struct tracked *tracked_of(int fd) { return journal >= 0 && fd >= 0 && fd < FD_MAX && files[fd].is_tracked ? &files[fd] : NULL; }

/* --- opening ---------------------------------------------------------------------------------------------------------------------- */

static int open_recorded(int (*real_openat)(int, const char *, int, ...), int dir_fd, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = name_of(buffer, dir_fd, path);
    if (!name)
        return real_openat(dir_fd, path, flags, mode);
    struct stat before, after;
    pthread_mutex_lock(&lock);
    bool existed = fstatat(dir_fd, path, &before, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = real_openat(dir_fd, path, flags, mode);
    int saved = errno;
    if (fd >= 0 && fd < FD_MAX && fstat(fd, &after) == 0) {
        struct tracked *file = &files[fd];
        free(file->name);
        *file = (struct tracked){
            .is_tracked = true, .is_dsync = flags & O_DSYNC, .is_directory = S_ISDIR(after.st_mode), .inode = after.st_ino};
        file->name = file->is_directory ? strdup(name) : NULL;
        uint32_t entry_flags = (existed ? 0u : ENTRY_CREATED) | (flags & O_TRUNC && (flags & O_ACCMODE) != O_RDONLY ? ENTRY_TRUNCATED : 0u);
        if (!file->is_directory && entry_flags) {
            struct entry entry = {.kind = OPEN, .inode = file->inode, .name_size = (uint32_t)strlen(name), .flags = entry_flags};
            uint64_t id = put(entry, name, NULL, 0);
            put((struct entry){.kind = END, .id = id}, NULL, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

PRELOAD_OPENS(open_recorded)

int close(int fd)
{
    REAL(int, close, int);
    if (tracked_of(fd)) {
        pthread_mutex_lock(&lock);
        free(files[fd].name);
        files[fd] = (struct tracked){0};
        pthread_mutex_unlock(&lock);
    }
    return real_close(fd);
}

/* --- writing ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t begin_write(const struct tracked *file, const struct iovec *iov, int count, off_t offset)
{
    struct entry entry = {.kind = WRITE, .inode = file->inode, .offset = offset, .flags = file->is_dsync ? ENTRY_DSYNC : 0u};
    for (int i = 0; i < count; i++)
        entry.size += iov[i].iov_len;
    uint64_t id = begin(entry, NULL, iov, count);
    if (file->is_dsync)
        be_slow();
    return id;
}

/* What was written can be read now, but the program has not heard that it is durable. */
static ssize_t end_write(bool is_dsync, uint64_t id, ssize_t result)
{
    int saved = errno;
    if (is_dsync)
        be_slow();
    errno = saved;
    end(id, result);
    return result;
}

/* Where write() goes. */
static off_t place_of(int fd)
{
    struct stat st;
    if (fcntl(fd, F_GETFL) & O_APPEND)
        return fstat(fd, &st) == 0 ? st.st_size : 0;
    return lseek(fd, 0, SEEK_CUR);
}

#define PWRITE_BODY(real_name, offset_type)                                                                                                \
    REAL(ssize_t, real_name, int, const void *, size_t, offset_type);                                                                      \
    const struct tracked *file = tracked_of(fd);                                                                                           \
    if (!file)                                                                                                                             \
        return real_##real_name(fd, data, size, offset);                                                                                   \
    struct iovec iov = {(void *)(uintptr_t)data, size};                                                                                    \
    uint64_t id = begin_write(file, &iov, 1, offset);                                                                                      \
    return end_write(file->is_dsync, id, real_##real_name(fd, data, size, offset))

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { PWRITE_BODY(pwrite, off_t); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { PWRITE_BODY(pwrite64, off64_t); }

#define PWRITEV_BODY(real_name, offset_type)                                                                                               \
    REAL(ssize_t, real_name, int, const struct iovec *, int, offset_type);                                                                 \
    const struct tracked *file = tracked_of(fd);                                                                                           \
    if (!file)                                                                                                                             \
        return real_##real_name(fd, iov, count, offset);                                                                                   \
    uint64_t id = begin_write(file, iov, count, offset);                                                                                   \
    return end_write(file->is_dsync, id, real_##real_name(fd, iov, count, offset))

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset) { PWRITEV_BODY(pwritev, off_t); }
ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset) { PWRITEV_BODY(pwritev64, off64_t); }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    const struct tracked *file = tracked_of(fd);
    if (!file)
        return real_write(fd, data, size);
    struct iovec iov = {(void *)(uintptr_t)data, size};
    uint64_t id = begin_write(file, &iov, 1, place_of(fd));
    return end_write(file->is_dsync, id, real_write(fd, data, size));
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    const struct tracked *file = tracked_of(fd);
    if (!file)
        return real_writev(fd, iov, count);
    uint64_t id = begin_write(file, iov, count, place_of(fd));
    return end_write(file->is_dsync, id, real_writev(fd, iov, count));
}

#define TRUNCATE_BODY(real_name, offset_type)                                                                                              \
    REAL(int, real_name, int, offset_type);                                                                                                \
    const struct tracked *file = tracked_of(fd);                                                                                           \
    if (!file)                                                                                                                             \
        return real_##real_name(fd, size);                                                                                                 \
    uint64_t id = begin((struct entry){.kind = TRUNCATE, .inode = file->inode, .offset = size}, NULL, NULL, 0);                            \
    int result = real_##real_name(fd, size);                                                                                               \
    end(id, result);                                                                                                                       \
    return result

int ftruncate(int fd, off_t size) { TRUNCATE_BODY(ftruncate, off_t); }
int ftruncate64(int fd, off64_t size) { TRUNCATE_BODY(ftruncate64, off64_t); }

/* --- syncing ---------------------------------------------------------------------------------------------------------------------- */

#define SYNC_BODY(real_name)                                                                                                               \
    REAL(int, real_name, int);                                                                                                             \
    const struct tracked *file = tracked_of(fd);                                                                                           \
    if (!file)                                                                                                                             \
        return real_##real_name(fd);                                                                                                       \
    struct entry entry = {.kind = SYNC, .inode = file->inode, .flags = file->is_directory ? ENTRY_DIRECTORY : 0u};                         \
    entry.name_size = file->name ? (uint32_t)strlen(file->name) : 0;                                                                       \
    uint64_t id = begin(entry, file->name, NULL, 0);                                                                                       \
    be_slow();                                                                                                                             \
    int result = real_##real_name(fd);                                                                                                     \
    end(id, result);                                                                                                                       \
    return result

int fsync(int fd) { SYNC_BODY(fsync); }
int fdatasync(int fd) { SYNC_BODY(fdatasync); }

/* --- names ------------------------------------------------------------------------------------------------------------------------ */

static int rename_recorded(int from_fd, const char *from, int to_fd, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    char from_buffer[PATH_MAX], to_buffer[PATH_MAX], names[2 * PATH_MAX];
    const char *from_name = name_of(from_buffer, from_fd, from), *to_name = name_of(to_buffer, to_fd, to);
    if (!from_name || !to_name)
        return real_renameat(from_fd, from, to_fd, to);
    size_t from_size = strlen(from_name), to_size = strlen(to_name);
    memcpy(names, from_name, from_size + 1);
    memcpy(names + from_size + 1, to_name, to_size);
    uint64_t id = begin((struct entry){.kind = RENAME, .name_size = (uint32_t)(from_size + 1 + to_size)}, names, NULL, 0);
    int result = real_renameat(from_fd, from, to_fd, to);
    end(id, result);
    return result;
}

int rename(const char *from, const char *to) { return rename_recorded(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int from_fd, const char *from, int to_fd, const char *to) { return rename_recorded(from_fd, from, to_fd, to); }

static int unlink_recorded(int dir_fd, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    char buffer[PATH_MAX];
    const char *name = name_of(buffer, dir_fd, path);
    if (!name || flags & AT_REMOVEDIR)
        return real_unlinkat(dir_fd, path, flags);
    uint64_t id = begin((struct entry){.kind = UNLINK, .name_size = (uint32_t)strlen(name)}, name, NULL, 0);
    int result = real_unlinkat(dir_fd, path, flags);
    end(id, result);
    return result;
}

int unlink(const char *path) { return unlink_recorded(AT_FDCWD, path, 0); }
int unlinkat(int dir_fd, const char *path, int flags) { return unlink_recorded(dir_fd, path, flags); }
