#include "common/file.h"

#include "common/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct posix_file {
    struct file file;
    int fd;
};

static atomic_uint_fast64_t direct_refused_count;

uint64_t fs_posix_direct_refused_count(void) { return atomic_load(&direct_refused_count); }

/* What the disk asks for, for memory and offset alike; FILE_ALIGNMENT_MAX where the kernel does not say. */
static uint32_t posix_alignment(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && stx.stx_mask & STATX_DIOALIGN && stx.stx_dio_offset_align) {
        uint32_t alignment = stx.stx_dio_offset_align > stx.stx_dio_mem_align ? stx.stx_dio_offset_align : stx.stx_dio_mem_align;
        if (alignment < FILE_ALIGNMENT_MIN)
            alignment = FILE_ALIGNMENT_MIN;
        if (alignment <= FILE_ALIGNMENT_MAX && (alignment & (alignment - 1)) == 0)
            return alignment;
    }
#endif
    (void)fd;
    return FILE_ALIGNMENT_MAX;
}

static int posix_flags(unsigned flags)
{
    int result = O_CLOEXEC;
    result |= (flags & FILE_READ) && (flags & FILE_WRITE) ? O_RDWR : flags & FILE_WRITE ? O_WRONLY : O_RDONLY;
    result |= flags & FILE_CREATE ? O_CREAT : 0;
    result |= flags & FILE_EXCLUSIVE ? O_EXCL : 0;
    result |= flags & FILE_TRUNCATE ? O_TRUNC : 0;
    result |= flags & FILE_DIRECT ? O_DIRECT : 0;
    result |= flags & FILE_DSYNC ? O_DSYNC : 0;
    return result;
}

static int posix_open_fd(const char *path, int flags)
{
    int fd;
    do {
        fd = open(path, flags, 0640);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

static enum err posix_open(struct fs *fs, struct file **file_out, const char *path, unsigned flags)
{
    CHECK(flags & (FILE_READ | FILE_WRITE));
    int os_flags = posix_flags(flags);
    bool direct = flags & FILE_DIRECT;
    int fd = posix_open_fd(path, os_flags);
    if (fd < 0 && errno == EINVAL && direct) {
        /* tmpfs and a few others refuse O_DIRECT, some of them after they have created the file: so without O_EXCL the second time. */
        direct = false;
        fd = posix_open_fd(path, os_flags & ~(O_DIRECT | O_EXCL));
        if (fd >= 0)
            atomic_fetch_add(&direct_refused_count, 1);
    }
    if (fd < 0)
        return err_from_errno(errno);
    struct posix_file *file = (struct posix_file *)calloc(1, sizeof *file);
    if (!file) {
        close(fd);
        return ERR_NOMEM;
    }
    file->file.fs = fs;
    file->file.alignment = posix_alignment(fd);
    file->file.direct = direct;
    file->fd = fd;
    *file_out = &file->file;
    return ERR_OK;
}

static void posix_close(struct file *base)
{
    struct posix_file *file = (struct posix_file *)base;
    close(file->fd);
    free(file);
}

static enum err posix_pread(struct file *base, size_t *got_out, void *data, size_t size, uint64_t offset)
{
    int fd = ((struct posix_file *)base)->fd;
    size_t got = 0;
    while (got < size) {
        ssize_t n = pread(fd, (char *)data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(errno);
        if (n == 0)
            break;
        got += (size_t)n;
        /* A direct read that ends off the alignment has met the end of the file; to ask on from there would be refused. */
        if (base->direct && got % base->alignment)
            break;
    }
    *got_out = got;
    return ERR_OK;
}

static enum err posix_pwrite(struct file *base, const void *data, size_t size, uint64_t offset)
{
    int fd = ((struct posix_file *)base)->fd;
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(errno);
        if (n == 0)
            return ERR_IO;
        data = (const char *)data + n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

/* The system call may write a part only: go on behind it, buffer by buffer. */
static enum err posix_pwritev(struct file *base, const struct iovec *iov, int iov_count, uint64_t offset)
{
    int fd = ((struct posix_file *)base)->fd;
    while (iov_count > 0) {
        int count = iov_count < IOV_MAX ? iov_count : IOV_MAX;
        ssize_t n = pwritev(fd, iov, count, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(errno);
        size_t left = (size_t)n;
        if (left == 0 && iov->iov_len > 0)
            return ERR_IO;
        offset += left;
        while (iov_count > 0 && left >= iov->iov_len) {
            left -= iov->iov_len;
            iov++;
            iov_count--;
        }
        if (left > 0) {
            enum err err = posix_pwrite(base, (const char *)iov->iov_base + left, iov->iov_len - left, offset);
            if (err)
                return err;
            offset += iov->iov_len - left;
            iov++;
            iov_count--;
        }
    }
    return ERR_OK;
}

static enum err posix_sync(struct file *base)
{
    /* Whatever the reason, a failed sync is final and never tried again: the second would succeed over pages that were dropped. */
    return fdatasync(((struct posix_file *)base)->fd) < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err posix_truncate(struct file *base, uint64_t size)
{
    int status;
    do {
        status = ftruncate(((struct posix_file *)base)->fd, (off_t)size);
    } while (status < 0 && errno == EINTR);
    return status < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err posix_size(struct file *base, uint64_t *size_out)
{
    struct stat st;
    if (fstat(((struct posix_file *)base)->fd, &st) < 0)
        return err_from_errno(errno);
    *size_out = (uint64_t)st.st_size;
    return ERR_OK;
}

static enum err posix_lock(struct file *base)
{
    int status;
    do {
        status = flock(((struct posix_file *)base)->fd, LOCK_EX | LOCK_NB);
    } while (status < 0 && errno == EINTR);
    if (status == 0)
        return ERR_OK;
    return errno == EWOULDBLOCK ? ERR_LOCKED : err_from_errno(errno);
}

static enum err posix_rename(struct fs *fs, const char *from, const char *to)
{
    (void)fs;
    return rename(from, to) < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err posix_unlink(struct fs *fs, const char *path)
{
    (void)fs;
    return unlink(path) < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err posix_mkdir(struct fs *fs, const char *path)
{
    (void)fs;
    return mkdir(path, 0750) < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err posix_list(struct fs *fs, const char *path, void *context, void (*on_name)(void *context, const char *name))
{
    (void)fs;
    DIR *dir = opendir(path);
    if (!dir)
        return err_from_errno(errno);
    enum err err = ERR_OK;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry) {
            err = errno ? err_from_errno(errno) : ERR_OK;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            on_name(context, entry->d_name);
    }
    closedir(dir);
    return err;
}

static enum err posix_sync_dir(struct fs *fs, const char *path)
{
    (void)fs;
    int fd = posix_open_fd(*path ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(errno);
    enum err err = fsync(fd) < 0 ? err_from_errno(errno) : ERR_OK;
    close(fd);
    return err;
}

static enum err posix_free_bytes(struct fs *fs, uint64_t *bytes_out, const char *path)
{
    struct statvfs st;
    (void)fs;
    if (statvfs(path, &st) < 0)
        return err_from_errno(errno);
    *bytes_out = (uint64_t)st.f_bavail * st.f_frsize;
    return ERR_OK;
}

static enum err posix_random(struct fs *fs, void *data, size_t size)
{
    (void)fs;
    for (size_t got = 0; got < size;) {
        ssize_t n = getrandom((char *)data + got, size - got, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(errno);
        got += (size_t)n;
    }
    return ERR_OK;
}

static const struct fs_ops posix_ops = {
    .open = posix_open,
    .close = posix_close,
    .pread = posix_pread,
    .pwrite = posix_pwrite,
    .pwritev = posix_pwritev,
    .sync = posix_sync,
    .truncate = posix_truncate,
    .size = posix_size,
    .lock = posix_lock,
    .rename = posix_rename,
    .unlink = posix_unlink,
    .mkdir = posix_mkdir,
    .list = posix_list,
    .sync_dir = posix_sync_dir,
    .free_bytes = posix_free_bytes,
    .random = posix_random,
};

struct fs *fs_posix(void)
{
    static struct fs fs = {&posix_ops};
    return &fs;
}

enum err file_path(char *path_out, const char *dir, const char *name)
{
    int size = snprintf(path_out, FILE_PATH_MAX, "%s/%s", *dir ? dir : ".", name);
    return size < 0 || size >= FILE_PATH_MAX ? ERR_TOOLARGE : ERR_OK;
}
