/* The data directory of a program: made if missing, checked for writing, and held against a second instance.
 *
 * Two processes on one log or one LMDB would destroy both, so nothing below the directory is opened before data_dir_open() succeeded. */
#ifndef TIDEGATE_COMMON_DATA_DIR_H
#define TIDEGATE_COMMON_DATA_DIR_H

#include <stdint.h>

#include "common/err.h"
#include "common/lock_file.h"

struct data_dir {
    char *path; /* without a slash at the end; owned */
    struct lock_file lock;
};

/* Make `path` and what is missing above it (0750), sync the parents, check that a file can be made in it, lock `path`/`lock_name`.
 * Returns 0, ERR_LOCKED (msg names the other's pid), ERR_PERMISSION, ERR_NOSPACE, ...; msg says which directory and why. */
enum err data_dir_open(struct data_dir *dir, const char *path, const char *lock_name, struct errmsg *msg) must_check;
void data_dir_close(struct data_dir *dir);

/* mkdir -p with 0750, each new entry synced in its parent. */
enum err data_dir_make(const char *path, struct errmsg *msg) must_check;

/* Bytes free for us on the file system of `path`, and its size. */
enum err data_dir_free_space(const char *path, uint64_t *free_bytes_out, uint64_t *total_bytes_out) must_check;

#endif
