/* The ways into an LMDB file that LMDB refuses: its two meta pages, of which each leads to a commit, and lists of trees that lie anywhere
 * in it. A way is not believed: kv_snapshot_open() goes it and says what it found. Only pread(). Thread: any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_SOURCE_H
#define TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/durable/kv.h"
#include "broker/durable/kv_lmdb_page.h"
#include "common/err.h"

/* A way into the file. */
struct kv_snapshot_source {
    int meta;            /* meta page 0 or 1; -1: a list of trees that was found */
    bool is_odd;         /* the meta page is damaged, but not so much that it could not be followed */
    uint64_t txn_number; /* of the commit; 0: not known */
    uint64_t main_root;  /* of the list of trees */
    uint64_t free_root;  /* of the list of free pages */
    uint64_t last_page;
    uint32_t page_bytes;
};

/* The meta pages that can be followed, page 0 first: 0..2. Returns 0, ERR_NOTFOUND (no file), ERR_PERMISSION, ERR_IO. */
enum err kv_snapshot_source_find(struct kv_snapshot_source sources_out[2], unsigned *count_out, const char *dir,
                                 struct errmsg *msg) must_check;
/* Lists of trees in any page from *page on (begin with 2): also of commits that are long overwritten. page_bytes 512..65536. Returns 0 (and
 * *page is where to go on), ERR_NOTFOUND, ERR_NOMEM, ERR_IO. */
enum err kv_snapshot_source_find_root(struct kv_snapshot_source *source_out, uint64_t *page, uint32_t page_bytes, const char *dir,
                                      struct errmsg *msg) must_check;

/* Which of our trees a node of a list of trees describes; KV_TREE_COUNT: none. */
enum kv_tree kv_snapshot_source_tree(struct kv_lmdb_tree *tree_out, const struct kv_lmdb_node *node);

/* The file itself, for reading. fd_out: -1 on failure; path_out returned in any case, freed with free(); NULL: memory is short. */
enum err kv_snapshot_source_open_file(int *fd_out, char **path_out, const char *dir, struct errmsg *msg) must_check;

#endif
