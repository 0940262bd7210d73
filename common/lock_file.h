/* A file that one process holds: flock, with the holder's pid inside for the message that a second one gets.
 *
 * The lock ends with the process, however it ends; a file that is left behind locks nothing. It is advisory and local (NFS: as good as the
 * mount's flock). */
#ifndef TIDEGATE_COMMON_LOCK_FILE_H
#define TIDEGATE_COMMON_LOCK_FILE_H

#include "common/err.h"

struct lock_file {
    int fd; /* -1: not held */
};

/* Create (0640) and lock `path`, write our pid into it.
 * Returns 0, ERR_LOCKED (msg names the holder's pid), or the file system's reason. Does not wait. Thread: any. */
enum err lock_file_open(struct lock_file *lock, const char *path, struct errmsg *msg) must_check;
/* Release it. The file stays: removing it would let two processes lock two files of one name. */
void lock_file_close(struct lock_file *lock);

#endif
