#include "common/data_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Make the entry `path` durable in the directory that holds it. */
static int sync_parent(const char *path)
{
    char *parent = strdup(path);
    if (!parent)
        return -1;
    char *slash = strrchr(parent, '/');
    if (slash == parent)
        slash[1] = '\0';
    else if (slash)
        *slash = '\0';
    int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(parent);
    if (fd < 0)
        return -1;
    int rc = fsync(fd);
    int errnum = errno;
    close(fd);
    errno = errnum;
    return rc;
}

static enum err make_one(const char *path, struct errmsg *msg)
{
    struct stat status;
    if (mkdir(path, 0750) == 0) {
        if (sync_parent(path) == 0)
            return ERR_OK;
    } else if (errno == EEXIST || errno == EISDIR || errno == EROFS || errno == EACCES) {
        int errnum = errno;
        if (stat(path, &status) == 0) {
            if (S_ISDIR(status.st_mode))
                return ERR_OK;
            return err_set(msg, ERR_INVALID, "%s: is not a directory", path);
        }
        errno = errnum;
    }
    int errnum = errno;
    return err_set(msg, err_from_errno(errnum), "%s: cannot make the directory: %s", path, strerror(errnum));
}

enum err data_dir_make(const char *path, struct errmsg *msg)
{
    if (path[0] == '\0')
        return err_set(msg, ERR_INVALID, "the path of the data directory is empty");
    char *prefix = strdup(path);
    if (!prefix)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", path);
    enum err err = ERR_OK;
    for (char *at = prefix + 1; !err && *at; at++) {
        if (*at != '/' || at[-1] == '/')
            continue;
        *at = '\0';
        err = make_one(prefix, msg);
        *at = '/';
    }
    if (!err)
        err = make_one(prefix, msg);
    free(prefix);
    return err;
}

/* access() does not know of read-only mounts inside containers or of full inodes; making a file does. Always the same, so that processes
 * that are killed in here leave one behind and not one each. */
static enum err check_writable(const char *path, struct errmsg *msg)
{
    char *probe;
    if (asprintf(&probe, "%s/.writable", path) < 0)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", path);
    enum err err = ERR_OK;
    int fd = open(probe, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd < 0) {
        int errnum = errno;
        err = err_set(msg, err_from_errno(errnum), "%s: cannot write into the data directory: %s", path, strerror(errnum));
    } else {
        close(fd);
        unlink(probe);
    }
    free(probe);
    return err;
}

enum err data_dir_open(struct data_dir *dir, const char *path, const char *lock_name, struct errmsg *msg)
{
    char *lock_path = NULL;
    *dir = (struct data_dir){.lock = {.fd = -1}};
    enum err err = data_dir_make(path, msg);
    if (!err)
        err = check_writable(path, msg);
    if (err)
        return err;
    dir->path = strdup(path);
    if (!dir->path)
        return err_set(msg, ERR_NOMEM, "%s: out of memory", path);
    for (size_t length = strlen(dir->path); length > 1 && dir->path[length - 1] == '/'; length--)
        dir->path[length - 1] = '\0';
    if (asprintf(&lock_path, "%s/%s", dir->path, lock_name) < 0) {
        lock_path = NULL;
        err = err_set(msg, ERR_NOMEM, "%s: out of memory", path);
    } else {
        err = lock_file_open(&dir->lock, lock_path, msg);
    }
    free(lock_path);
    if (err)
        data_dir_close(dir);
    return err;
}

void data_dir_close(struct data_dir *dir)
{
    lock_file_close(&dir->lock);
    free(dir->path);
    dir->path = NULL;
}

enum err data_dir_free_space(const char *path, uint64_t *free_bytes_out, uint64_t *total_bytes_out)
{
    struct statvfs status;
    if (statvfs(path, &status) != 0)
        return err_from_errno(errno);
    *free_bytes_out = (uint64_t)status.f_bavail * status.f_frsize;
    *total_bytes_out = (uint64_t)status.f_blocks * status.f_frsize;
    return ERR_OK;
}
