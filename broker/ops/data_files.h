/* Files and directories as backup, restore and repair handle them: copied whole, with a checksum, and synced.
 *
 * Reads are direct: the log's segments are recycled under their readers, and nothing is to stay in the page cache of a machine that serves.
 * Thread: main; one buffer of 1 MiB a call. */
#ifndef TIDEGATE_BROKER_OPS_DATA_FILES_H
#define TIDEGATE_BROKER_OPS_DATA_FILES_H

#include <stdint.h>

#include "common/file.h"

/* Copy the first `limit` bytes (UINT64_MAX: all) of a file into a new one, synced; its name is durable with its directory.
 * Returns 0, ERR_EXISTS (never written over), ERR_CORRUPT (the file is shorter than `limit`), ERR_CLOSED (told to stop), ERR_NOSPACE, ...
 */
must_check enum err data_files_copy(uint64_t *size_out, uint32_t *crc_out, struct fs *fs, const char *from, const char *to, uint64_t limit,
                                    struct errmsg *msg);
/* Size and CRC-32C of a whole file. */
must_check enum err data_files_checksum(uint64_t *size_out, uint32_t *crc_out, struct fs *fs, const char *path, struct errmsg *msg);
/* Write a small file: aside, synced, renamed, its directory synced. */
must_check enum err data_files_write(struct fs *fs, const char *dir, const char *name, const void *data, size_t size, struct errmsg *msg);

/* The names in a directory, sorted. names_out: returned, one block, to be freed. ERR_NOTFOUND: no such directory. */
must_check enum err data_files_list(char ***names_out, size_t *count_out, struct fs *fs, const char *dir);
/* Is it missing, or empty but for what a new file system has (lost+found)? ERR_EXISTS: neither. */
must_check enum err data_files_is_free(struct fs *fs, const char *dir);
/* Is `path`, which need not exist, the directory `dir` or somewhere below it? Symbolic links and ".." are followed. No when `dir` is not
 * there. ERR_TOOLARGE: a path is too long. */
must_check enum err data_files_is_inside(bool *is_inside_out, const char *path, const char *dir);
/* Does the file or directory exist? */
bool data_files_exist(const char *dir, const char *name);

/* SIGINT and SIGTERM end copies with ERR_CLOSED from here on, so that what is held can be let go. */
void data_files_catch_signals(void);
bool data_files_is_stopped(void);

#endif
