/* The data file of an LMDB database before LMDB maps it: whether its meta pages can be believed, and whether the file is as long as they
 * say. LMDB would be killed at the first page that lacks. Thread: any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_FILE_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_FILE_H

#include "broker/durable/kv_lmdb_page.h"
#include "common/err.h"

#include <stdbool.h>
#include <stdint.h>

/* How the size of the file and its meta page go together. */
struct kv_lmdb_extent {
    uint64_t file_bytes;
    uint64_t meant_bytes; /* last page and all before */
    uint32_t page_bytes;
    uint64_t free_root; /* of the list of free pages */
    uint64_t main_root; /* of the list of trees; KV_LMDB_PAGE_NONE: it is empty */
};

/* dir: for messages. Returns 0, ERR_CORRUPT, ERR_VERSION (of LMDB's format), ERR_IO. */
enum err kv_lmdb_file_read_extent(int fd, struct kv_lmdb_extent *extent_out, const char *dir, struct errmsg *msg) must_check;
bool kv_lmdb_file_is_short(const struct kv_lmdb_extent *extent);
/* Whether the pages that a short file lacks are free ones, which LMDB need not write. */
bool kv_lmdb_file_is_lack_free(int fd, const struct kv_lmdb_extent *extent);
/* Returns ERR_CORRUPT, saying so. */
enum err kv_lmdb_file_fail_short(struct errmsg *msg, const char *dir, const struct kv_lmdb_extent *extent);

#endif
