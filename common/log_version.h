/* Headers of the log's files (segment, block, slot) have their version at one place: 16 bits at 8, behind magic and checksum. So whoever
 * has to refuse one can say which it is. */
#ifndef TIDEGATE_COMMON_LOG_VERSION_H
#define TIDEGATE_COMMON_LOG_VERSION_H

#include "common/file.h"

/* Says of the header at the file's beginning or, when that is `known`, of the one at `offset`, which version it has. known: what we read.
 * Returns ERR_VERSION. */
enum err log_version_refuse(struct fs *fs, const char *path, uint64_t offset, uint16_t known, struct errmsg *msg);

#endif
