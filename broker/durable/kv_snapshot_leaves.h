/* The leaves of each tree of one commit, in the order of their keys, found in a file of which any part may be damaged (kv_snapshot.h says
 * how), and what was lost of them. Filled once, then only read. Owner: kv_snapshot.c. Thread: one. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_LEAVES_H
#define TIDEGATE_BROKER_DURABLE_KV_SNAPSHOT_LEAVES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/durable/kv_lmdb_page.h"
#include "broker/durable/kv_snapshot.h"

struct kv_snapshot_leaf {
    uint64_t page;
    bool is_orphan;
    uint8_t key_size;
    uint8_t key[KV_KEY_MAX]; /* the first of a whole value, or the first */
};

/* Memory that grows as needed. */
struct kv_snapshot_scratch {
    uint8_t *bytes;
    size_t size;
};

struct kv_snapshot_leaves {
    int fd; /* borrowed */
    struct kv_snapshot_source source;
    uint64_t page_count; /* of the file, up to the last of the commit */
    struct kv_snapshot_tree {
        struct kv_snapshot_leaf *leaves;
        size_t count, capacity;
        bool is_known;                 /* the list of trees says where it is */
        struct kv_lmdb_tree described; /* in it */
        uint64_t entries;              /* met */
    } trees[KV_TREE_COUNT];
    struct kv_snapshot_loss loss;

    /* While they are looked for. */
    bool only_meta;
    bool is_incomplete; /* a tree, or what a branch leads to, is not known at all */
    bool is_free_known; /* the list of free pages */
    enum err failed;
    uint8_t *marks; /* enum mark, of pages */
    uint8_t *pages; /* of the walk, one for each depth */
    struct kv_snapshot_scratch scratch;
    uint64_t free_behind; /* free pages behind the file's end */
};

/* only_meta: of all trees only KV_META. Returns 0, ERR_NOMEM; to be deinitialised in any case. */
enum err kv_snapshot_leaves_init(struct kv_snapshot_leaves *leaves, int fd, uint64_t file_bytes, const struct kv_snapshot_source *source,
                                 bool only_meta) must_check;
void kv_snapshot_leaves_deinit(struct kv_snapshot_leaves *leaves); /* fine with a zeroed one */

/* A page of the commit, under its own number. */
bool kv_snapshot_leaves_read_page(const struct kv_snapshot_leaves *leaves, uint8_t *page_out, uint64_t number);
/* Is the node one of ours? */
static inline bool kv_snapshot_leaves_has_key(const struct kv_lmdb_node *node)
{
    return node->key.size >= 1 && node->key.size <= KV_KEY_MAX;
}
/* A value as it is stored, with its CRC, borrowed from page or scratch; empty when it is not to be had. Returns 0, ERR_NOMEM. */
enum err kv_snapshot_leaves_read_value(const struct kv_snapshot_leaves *leaves, struct span *stored_out,
                                       struct kv_snapshot_scratch *scratch, const struct kv_lmdb_node *node) must_check;

static inline struct span kv_snapshot_leaf_key(const struct kv_snapshot_leaf *leaf) { return span_of(leaf->key, leaf->key_size); }

#endif
