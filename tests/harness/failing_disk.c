/* A preloaded library that makes the disk fail below one directory, as a file says that may change while the program runs. It needs no
 * mount and no privileges.
 *
 *     LD_PRELOAD=failing_disk.so FAILING_DISK_ROOT=/data FAILING_DISK_RULES=/tmp/rules program ...
 *
 * A line of the rules is `OPERATION ERRNO NAME`: calls of that kind on files whose path below the root contains NAME (`*`: any) fail with
 * that number. The first line that fits counts; with no file or an empty one nothing fails. Operations:
 *
 *     open    open for writing, create
 *     read    pread and preadv, and reading a directory
 *     write   pwrite, pwritev, write, writev
 *     sync    fsync, fdatasync (of directories as well; the root itself has the name "/")
 *     rename  rename, unlink, mkdir
 *     grow    what takes new space: writes behind the end of a file or into its holes, fallocate, opening a file that is not there; and the
 *             file system says that nothing is free
 *
 * Reads and writes through a map are not seen. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/lib/preload.h"

#define RULES_SIZE 4096

/* What comes behind the root in an absolute path; NULL when it is not below it. */
static const char *below_root(const char *path)
{
    const char *root = getenv("FAILING_DISK_ROOT");
    size_t size = root ? strlen(root) : 0;
    if (size == 0 || strncmp(path, root, size) != 0 || (path[size] != '/' && path[size] != 0))
        return NULL;
    return path[size] ? path + size : "/";
}

/* The errno that a rule says, or 0. */
static int rule_of(const char *operation, const char *absolute)
{
    const char *rules = getenv("FAILING_DISK_RULES"), *name = below_root(absolute);
    char text[RULES_SIZE], kind[16], part[256];
    if (!rules || !name)
        return 0;
    long fd = syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC);
    long size = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof text - 1);
    if (fd >= 0)
        syscall(SYS_close, fd);
    if (size <= 0)
        return 0;
    text[size] = 0;
    for (const char *line = text; line; line = strchr(line, '\n')) {
        int number;
        line += *line == '\n';
        if (sscanf(line, "%15s %d %255s", kind, &number, part) == 3 && strcmp(kind, operation) == 0 &&
            (strcmp(part, "*") == 0 || strstr(name, part)))
            return number;
    }
    return 0;
}

static bool path_of_fd(char path_out[PATH_MAX], int fd)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path_out, PATH_MAX - 1);
    path_out[size > 0 ? size : 0] = 0;
    return size > 0;
}

static bool path_of(char path_out[PATH_MAX], int dir_fd, const char *path)
{
    char base[PATH_MAX];
    if (path[0] == '/')
        return snprintf(path_out, PATH_MAX, "%s", path) < PATH_MAX;
    if (dir_fd == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0)
            return false;
    } else if (!path_of_fd(base, dir_fd)) {
        return false;
    }
    return snprintf(path_out, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

static bool fails_at(const char *operation, int dir_fd, const char *path)
{
    char absolute[PATH_MAX];
    int saved = errno, number = path_of(absolute, dir_fd, path) ? rule_of(operation, absolute) : 0;
    errno = number ? number : saved;
    return number != 0;
}

static bool fails_on(const char *operation, int fd)
{
    char absolute[PATH_MAX];
    int saved = errno, number = path_of_fd(absolute, fd) ? rule_of(operation, absolute) : 0;
    errno = number ? number : saved;
    return number != 0;
}

/* Does a write need space that the file does not have yet? */
static bool is_growth(int fd, off_t offset, size_t size)
{
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        return false;
    if (offset < 0)
        offset = fcntl(fd, F_GETFL) & O_APPEND ? status.st_size : lseek(fd, 0, SEEK_CUR);
    return offset + (off_t)size > status.st_size || (off_t)status.st_blocks * 512 < status.st_size;
}

static bool write_fails(int fd, off_t offset, size_t size)
{
    return fails_on("write", fd) || (is_growth(fd, offset, size) && fails_on("grow", fd));
}

static size_t bytes_of(const struct iovec *iov, int count)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += iov[i].iov_len;
    return size;
}

/* ---- opening ---- */

static bool open_fails(int dir_fd, const char *path, int flags)
{
    struct stat status;
    if ((flags & O_ACCMODE) == O_RDONLY)
        return false;
    return fails_at("open", dir_fd, path) || (flags & O_CREAT && fstatat(dir_fd, path, &status, 0) != 0 && fails_at("grow", dir_fd, path));
}

static int open_or_fail(int (*real_openat)(int, const char *, int, ...), int dir_fd, const char *path, int flags, mode_t mode)
{
    return open_fails(dir_fd, path, flags) ? -1 : real_openat(dir_fd, path, flags, mode);
}

PRELOAD_OPENS(open_or_fail)

DIR *opendir(const char *path)
{
    REAL(DIR *, opendir, const char *);
    return fails_at("read", AT_FDCWD, path) ? NULL : real_opendir(path);
}

/* ---- reading and writing ---- */

#define PREAD_BODY(real_name, offset_type)                                                                                                 \
    REAL(ssize_t, real_name, int, void *, size_t, offset_type);                                                                            \
    return fails_on("read", fd) ? -1 : real_##real_name(fd, data, size, offset)

ssize_t pread(int fd, void *data, size_t size, off_t offset) { PREAD_BODY(pread, off_t); }
ssize_t pread64(int fd, void *data, size_t size, off64_t offset) { PREAD_BODY(pread64, off64_t); }

#define PWRITE_BODY(real_name, offset_type)                                                                                                \
    REAL(ssize_t, real_name, int, const void *, size_t, offset_type);                                                                      \
    return write_fails(fd, offset, size) ? -1 : real_##real_name(fd, data, size, offset)

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { PWRITE_BODY(pwrite, off_t); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { PWRITE_BODY(pwrite64, off64_t); }

#define PWRITEV_BODY(real_name, offset_type)                                                                                               \
    REAL(ssize_t, real_name, int, const struct iovec *, int, offset_type);                                                                 \
    return write_fails(fd, offset, bytes_of(iov, count)) ? -1 : real_##real_name(fd, iov, count, offset)

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset) { PWRITEV_BODY(pwritev, off_t); }
ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset) { PWRITEV_BODY(pwritev64, off64_t); }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    return write_fails(fd, -1, size) ? -1 : real_write(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return write_fails(fd, -1, bytes_of(iov, count)) ? -1 : real_writev(fd, iov, count);
}

#define FALLOCATE_BODY(real_name, offset_type)                                                                                             \
    REAL(int, real_name, int, int, offset_type, offset_type);                                                                              \
    return fails_on("grow", fd) ? -1 : real_##real_name(fd, mode, offset, size)

int fallocate(int fd, int mode, off_t offset, off_t size) { FALLOCATE_BODY(fallocate, off_t); }
int fallocate64(int fd, int mode, off64_t offset, off64_t size) { FALLOCATE_BODY(fallocate64, off64_t); }

/* ---- syncing, names, space ---- */

int fsync(int fd)
{
    REAL(int, fsync, int);
    return fails_on("sync", fd) ? -1 : real_fsync(fd);
}

int fdatasync(int fd)
{
    REAL(int, fdatasync, int);
    return fails_on("sync", fd) ? -1 : real_fdatasync(fd);
}

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    return fails_at("rename", AT_FDCWD, to) ? -1 : real_rename(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    return fails_at("rename", to_fd, to) ? -1 : real_renameat(from_fd, from, to_fd, to);
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    return fails_at("rename", AT_FDCWD, path) ? -1 : real_unlink(path);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    return fails_at("rename", AT_FDCWD, path) ? -1 : real_mkdir(path, mode);
}

#define STATVFS_BODY(result, is_full)                                                                                                      \
    int saved = errno, rc = (result);                                                                                                      \
    if (rc == 0 && (is_full))                                                                                                              \
        status->f_bavail = status->f_bfree = 0;                                                                                            \
    if (rc == 0)                                                                                                                           \
        errno = saved;                                                                                                                     \
    return rc

int statvfs(const char *path, struct statvfs *status)
{
    REAL(int, statvfs, const char *, struct statvfs *);
    STATVFS_BODY(real_statvfs(path, status), fails_at("grow", AT_FDCWD, path));
}

int fstatvfs(int fd, struct statvfs *status)
{
    REAL(int, fstatvfs, int, struct statvfs *);
    STATVFS_BODY(real_fstatvfs(fd, status), fails_on("grow", fd));
}
