/* The layout of LMDB 0.9's data file on 64-bit machines, in their byte order: for who must look into it without LMDB.
 *
 *     page      0  number u64   8 u16   10 flags u16   12 lower u16   14 upper u16 (of an overflow page 12 count of pages u32)
 *              16  leaf, branch: offsets u16 of nodes, up to lower; the nodes lie behind
 *              16  overflow: one value, which goes on over the pages behind
 *     node      0  size lo u16   2 size hi u16   4 flags u16   6 key size u16   8 key, then the value. BIG: the value is the number u64 of
 *                  the first overflow page. Of a branch lo, hi and flags are the number of the page below, and there is no value
 *     tree      48 bytes: struct kv_lmdb_tree; the value of a node of the list of trees (TREE), and twice in a meta page
 *     meta      pages 0 and 1: struct kv_lmdb_meta; the one with the greater transaction number counts
 *
 * Any bytes may stand in the file: nothing below believes a number that it has not compared with the page's end or the file's. What a page
 * is said to be is for the caller to ask, of its flags (all of them, where LMDB itself is to use the page) or of its kind.
 * Pure but for pread(). Thread: any. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_PAGE_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_PAGE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

#define KV_LMDB_DATA_NAME "data.mdb"

#define KV_LMDB_PAGE_HEAD 16
#define KV_LMDB_PAGE_BYTES_MIN 512
#define KV_LMDB_PAGE_BYTES_MAX 65536
#define KV_LMDB_PAGE_NONE UINT64_MAX /* in place of a root: the tree is empty */
#define KV_LMDB_PAGE_FIRST 2         /* behind the meta pages */
#define KV_LMDB_PAGE_DEPTH_MAX 32    /* of a tree: LMDB follows no deeper one */

enum kv_lmdb_page_flag {
    KV_LMDB_PAGE_BRANCH = 0x01,
    KV_LMDB_PAGE_LEAF = 0x02,
    KV_LMDB_PAGE_OVERFLOW = 0x04,
    KV_LMDB_PAGE_META = 0x08,
    KV_LMDB_PAGE_DIRTY = 0x10, /* these in memory only: LMDB takes them off before it writes a page */
    KV_LMDB_PAGE_LOOSE = 0x4000,
    KV_LMDB_PAGE_KEEP = 0x8000,
};
/* All that a page may be; two of them only in trees with several values for a key, which we do not have. */
#define KV_LMDB_PAGE_KINDS 0x6f

enum kv_lmdb_node_flag {
    KV_LMDB_NODE_BIG = 0x01,
    KV_LMDB_NODE_TREE = 0x02,
};

struct kv_lmdb_tree {
    uint32_t page_bytes; /* of a meta page's first tree */
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};
static_assert(sizeof(struct kv_lmdb_tree) == 48, "LMDB's tree");

struct kv_lmdb_meta {
    uint64_t number;
    uint16_t unused, flags;
    uint32_t unused_too;
    uint32_t magic, version;
    uint64_t address, map_bytes;
    struct kv_lmdb_tree free_pages, main;
    uint64_t last_page, txn_number;
};
static_assert(sizeof(struct kv_lmdb_meta) == KV_LMDB_PAGE_HEAD + 24 + 2 * sizeof(struct kv_lmdb_tree) + 16, "LMDB's meta page");
static_assert(offsetof(struct kv_lmdb_meta, magic) == KV_LMDB_PAGE_HEAD, "what it is stands behind the page's head");
static_assert(sizeof(size_t) == 8, "LMDB's file format depends on the word size");
#define KV_LMDB_META_MAGIC 0xBEEFC0DEu
#define KV_LMDB_META_VERSION 1

struct kv_lmdb_node {
    struct span key;
    struct span data; /* what the leaf holds: the value; of a big one the 8 bytes that lead to it */
    size_t size;      /* of the value; 0 in a branch */
    uint64_t below;   /* of a branch */
    uint16_t flags;   /* of a leaf */
};

/* The pages of a value too large for its leaf. */
struct kv_lmdb_run {
    uint64_t first, count;
    size_t size; /* of the value */
};

/* --- from the file ------------------------------------------------------------------------------------------------------------------- */

/* Returns 0, ERR_NOTFOUND (the file ends before), ERR_IO and what else pread() says. */
enum err kv_lmdb_page_read_bytes(int fd, void *data_out, size_t size, uint64_t offset) must_check;
/* A page (or its head alone) below `end`, which is not a meta page and bears its own number; false: there is none. */
bool kv_lmdb_page_read(int fd, uint8_t *page_out, uint32_t page_bytes, uint64_t number, uint64_t end);
bool kv_lmdb_page_read_head(int fd, uint8_t head_out[KV_LMDB_PAGE_HEAD], uint32_t page_bytes, uint64_t number, uint64_t end);
/* The value in a run whose first page's head was looked at; data_out: run->size bytes. */
bool kv_lmdb_page_read_run(int fd, void *data_out, uint32_t page_bytes, const struct kv_lmdb_run *run);

/* --- within a page (page_bytes of it in memory, or for the first four its head) ---------------------------------------------------------
 */

uint64_t kv_lmdb_page_number(const uint8_t *page);
unsigned kv_lmdb_page_flags(const uint8_t *page);
/* Of its flags those in KV_LMDB_PAGE_KINDS. */
unsigned kv_lmdb_page_kind(const uint8_t *page);
/* Of an overflow page: how many pages LMDB says its run has. At least what the value needs, in a file that is not damaged. */
uint32_t kv_lmdb_page_run_length(const uint8_t *page);
/* Of a leaf or branch; 0: the page is damaged, a tree has none without nodes. */
unsigned kv_lmdb_page_node_count(const uint8_t *page, uint32_t page_bytes);
/* slot < kv_lmdb_page_node_count(). The spans borrow from the page. False: it does not lie in the page. */
bool kv_lmdb_page_node(struct kv_lmdb_node *node_out, const uint8_t *page, uint32_t page_bytes, unsigned slot);

/* Where the value of a big node is; false: not below `end`. */
bool kv_lmdb_page_node_run(struct kv_lmdb_run *run_out, const struct kv_lmdb_node *node, uint32_t page_bytes, uint64_t end);
/* The tree that a node of the list of trees describes; false: it describes none. */
bool kv_lmdb_page_node_tree(struct kv_lmdb_tree *tree_out, const struct kv_lmdb_node *node);

#endif
