#include "common/lock_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* The pid that the holder wrote, or "unknown": the holder may be between lock and write. */
static void read_holder(int fd, char *text, size_t size)
{
    ssize_t got = pread(fd, text, size - 1, 0);
    if (got <= 0)
        got = 0;
    text[got] = '\0';
    text[strspn(text, "0123456789")] = '\0';
    if (text[0] == '\0')
        snprintf(text, size, "unknown");
}

enum err lock_file_open(struct lock_file *lock, const char *path, struct errmsg *msg)
{
    lock->fd = -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd < 0) {
        int errnum = errno;
        return err_set(msg, err_from_errno(errnum), "%s: cannot open the lock file: %s", path, strerror(errnum));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int errnum = errno;
        char holder[24];
        read_holder(fd, holder, sizeof holder);
        close(fd);
        if (errnum == EWOULDBLOCK)
            return err_set(msg, ERR_LOCKED, "%s: held by another process, pid %s", path, holder);
        return err_set(msg, err_from_errno(errnum), "%s: cannot lock: %s", path, strerror(errnum));
    }
    char text[24];
    int size = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)size, 0) != size) {
        int errnum = errno;
        enum err err = err_from_errno(errnum);
        close(fd);
        return err_set(msg, err, "%s: cannot write the lock file: %s%s", path, strerror(errnum),
                       err == ERR_NOSPACE ? ": make room and start again, nothing is lost" : "");
    }
    lock->fd = fd;
    return ERR_OK;
}

void lock_file_close(struct lock_file *lock)
{
    if (lock->fd < 0)
        return;
    if (ftruncate(lock->fd, 0) != 0) {
        /* the stale pid only decorates a message of a lock that no one holds */
    }
    close(lock->fd);
    lock->fd = -1;
}
