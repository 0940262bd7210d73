/* The file BACKUP of a backup: what it is, where log and checkpoint stand, and every file with its size and CRC-32C.
 *
 * Text, a line for each fact, in this order; docs/formats.md has them. The last line is the checksum of all before it, so that a list that
 * was cut or changed is none. It is the last thing a backup writes: a directory without it is no backup. Pure. */
#ifndef TIDEGATE_BROKER_OPS_BACKUP_LIST_H
#define TIDEGATE_BROKER_OPS_BACKUP_LIST_H

#include "common/buf.h"
#include "common/log_cursor.h"

#define BACKUP_LIST_NAME "BACKUP"
#define BACKUP_FILE_NAME_MAX 96       /* bytes with NUL: the longest is log/cursor.NAME */
#define BACKUP_LIST_FILES_MAX 1000000 /* more than any log has segments */
#define BACKUP_LIST_SIZE_MAX ((size_t)128 << 20)

struct backup_file {
    char name[BACKUP_FILE_NAME_MAX]; /* relative to the backup */
    uint64_t size;
    uint32_t crc; /* CRC-32C of all its bytes */
};

struct backup_list {
    int64_t made_ns;    /* wall clock, ns since 1970 */
    uint64_t broker_id; /* whose data it is */
    uint32_t format;    /* of the data directory, data_format.h */
    uint32_t epoch;
    bool has_checkpoint;
    struct log_cursor_value checkpoint; /* where it stands; broker_id as in the log */
    struct log_end end;                 /* of the log in the backup */
    struct backup_file *files;          /* owned */
    size_t file_count, file_capacity;
};

/* A zeroed list is empty. */
void backup_list_deinit(struct backup_list *list);
/* Returns 0, ERR_NOMEM, ERR_INVALID (no file that a backup has). */
enum err backup_list_add(struct backup_list *list, const char *name, uint64_t size, uint32_t crc) must_check;
/* Bytes of all files. */
uint64_t backup_list_bytes(const struct backup_list *list);

/* Append the text. Returns 0, ERR_NOMEM, ERR_TOOLARGE. */
enum err backup_list_format(struct buf *out, const struct backup_list *list) must_check;
/* list_out: to be deinitialised, also on error. Returns 0, ERR_CORRUPT (msg: the line), ERR_VERSION, ERR_NOMEM. */
enum err backup_list_parse(struct backup_list *list_out, struct span text, struct errmsg *msg) must_check;

/* Is this the relative path of a file that a backup may have? Anything else, above all a path that leads elsewhere, is refused. */
bool backup_list_is_name(const char *name);

#endif
