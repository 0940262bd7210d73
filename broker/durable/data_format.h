/* The version of a data directory: file `format`, one line, "tidegate-broker N".
 *
 *   none, or 1   the log alone; sessions were in memory. Read as it is: a checkpoint is made from the log at the first start
 *   2            log and checkpoint; a checkpoint that is missing is damage, not a first start
 *
 * Written aside, synced, renamed, after what it promises is there. A restore writes it first, and has its parts under other names until
 * each is whole: a directory with one of these is half restored, and nobody reads its version. Thread: main. */
#ifndef TIDEGATE_BROKER_DURABLE_DATA_FORMAT_H
#define TIDEGATE_BROKER_DURABLE_DATA_FORMAT_H

#include <stdint.h>

#include "common/file.h"

#define DATA_FORMAT_LOG_ONLY 1
#define DATA_FORMAT_CHECKPOINT 2
#define DATA_FORMAT_NEWEST DATA_FORMAT_CHECKPOINT

#define DATA_FORMAT_RESTORING_LOG "log.restoring"
#define DATA_FORMAT_RESTORING_CHECKPOINT "checkpoint.restoring"

/* *version_out: 1 when there is no such file. Returns 0, ERR_VERSION (newer than this program knows; msg says so), ERR_EXISTS (half
 * restored; msg says so), ERR_CORRUPT, ERR_IO. */
must_check enum err data_format_read(uint32_t *version_out, struct fs *fs, const char *data_dir, struct errmsg *msg);
/* Returns 0, ERR_NOSPACE, ERR_IO. Durable on return. */
must_check enum err data_format_write(struct fs *fs, const char *data_dir, uint32_t version, struct errmsg *msg);

#endif
