/* Three layers: pages and their nodes (the layout stands in kv_lmdb_pages.c; a meta page in kv_lmdb_file.c), the walk that finds the leaves
 * of each tree, and the operations of kv.h on sorted lists of leaves. */
#include "broker/durable/kv_snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/durable/kv_lmdb_pages.h"
#include "common/check.h"

#define KV_SNAPSHOT_MAGIC 0x6B765353u
#define DATA_NAME "data.mdb"
#define PAGE_HEAD 16
#define NODE_HEAD 8
#define PAGE_BYTES_MIN 512
#define PAGE_BYTES_MAX 65536
#define PAGE_BYTES_USUAL 4096
#define PAGE_BRANCH 0x01
#define PAGE_LEAF 0x02
#define PAGE_OVERFLOW 0x04
#define PAGE_META 0x08
#define PAGE_KINDS 0x6f /* of all that a page may be, without "dirty" and "loose" */
#define NODE_BIG 0x01
#define NODE_TREE 0x02
#define TREE_SIZE 48 /* of the value that describes a tree; its root is the last field */
#define NO_PAGE UINT64_MAX
#define DEPTH_MAX 32
#define LIST_OF_TREES KV_TREE_COUNT /* in place of a tree: what names them */

/* What is known of a page of the file. */
enum mark { MARK_NONE, MARK_MET, MARK_LOST, MARK_FREE, MARK_RUN };

struct leaf {
    uint64_t page;
    bool is_orphan;
    uint8_t key_size;
    uint8_t key[KV_KEY_MAX]; /* the first of a whole value, or the first */
};

struct leaves {
    struct leaf *all;
    size_t count, capacity;
};

struct kv_snapshot {
    struct kv base;
    unsigned magic;
    int fd;
    char *path;
    struct kv_snapshot_source source;
    uint64_t page_count; /* of the file, up to the last of the commit */
    uint8_t *marks;
    uint8_t *pages; /* of the walk, one for each depth */
    uint8_t *big;   /* scratch for a value of several pages */
    size_t big_size;
    bool only_meta, is_incomplete; /* a tree is not known at all */
    bool is_free_known;            /* the list of free pages */
    uint64_t free_behind;          /* free pages behind the file's end */
    enum err failed;
    uint64_t roots[KV_TREE_COUNT];
    uint64_t meant[KV_TREE_COUNT]; /* entries, as the list of trees says */
    bool has_root[KV_TREE_COUNT];
    struct leaves trees[KV_TREE_COUNT];
    uint64_t entries[KV_TREE_COUNT];
    struct kv_snapshot_loss loss;
};

/* --- pages and nodes ----------------------------------------------------------------------------------------------------------------- */

static uint16_t read_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t read_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t read_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static bool read_whole(int fd, void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, (uint8_t *)data + done, size - done, (off_t)(offset + done));
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static unsigned kind_of(const uint8_t *page) { return read_u16(page + 10) & PAGE_KINDS; }

/* A page of the commit, under its own number. */
static bool read_page(const struct kv_snapshot *snapshot, uint8_t *page, uint64_t number)
{
    uint32_t size = snapshot->source.page_bytes;
    return number >= 2 && number < snapshot->page_count && read_whole(snapshot->fd, page, size, number * size) && read_u64(page) == number;
}

struct node {
    struct span key;
    struct span data; /* in the leaf; of a big one the number of its first page */
    uint64_t below;   /* of a branch */
    size_t size;      /* of the value */
    uint16_t flags;
};

static unsigned count_nodes(const uint8_t *page, uint32_t page_bytes)
{
    size_t lower = read_u16(page + 12);
    return lower < PAGE_HEAD || lower > page_bytes ? 0 : (unsigned)(lower - PAGE_HEAD) / 2;
}

/* slot < count_nodes(). */
static bool read_node(struct node *node_out, const uint8_t *page, uint32_t page_bytes, unsigned slot)
{
    size_t at = read_u16(page + PAGE_HEAD + 2 * (size_t)slot);
    if (at < read_u16(page + 12) || at + NODE_HEAD > page_bytes)
        return false;
    const uint8_t *head = page + at;
    size_t low = read_u16(head) | (size_t)read_u16(head + 2) << 16, key_size = read_u16(head + 6);
    bool is_branch = kind_of(page) == PAGE_BRANCH;
    node_out->flags = read_u16(head + 4);
    node_out->below = low | (uint64_t)node_out->flags << 32;
    node_out->size = is_branch ? 0 : low;
    size_t here = is_branch ? 0 : node_out->flags & NODE_BIG ? 8 : low;
    if (at + NODE_HEAD + key_size + here > page_bytes)
        return false;
    node_out->key = span_of(head + NODE_HEAD, key_size);
    node_out->data = span_of(head + NODE_HEAD + key_size, here);
    return true;
}

static bool has_key(const struct node *node) { return node->key.size >= 1 && node->key.size <= KV_KEY_MAX; }

/* The run of pages of a value too large for its leaf. */
static bool find_run(const struct kv_snapshot *snapshot, const struct node *node, uint64_t *first_out, uint64_t *count_out)
{
    uint64_t first = read_u64(node->data.data),
             count = (node->size + PAGE_HEAD + snapshot->source.page_bytes - 1) / snapshot->source.page_bytes;
    *first_out = first;
    *count_out = count;
    return first >= 2 && first < snapshot->page_count && count <= snapshot->page_count - first;
}

/* A value as it is stored, with its CRC; empty when it is not to be had. scratch grows as needed. */
static enum err read_value(const struct kv_snapshot *snapshot, const struct node *node, uint8_t **scratch, size_t *scratch_size,
                           struct span *stored_out)
{
    uint8_t head[PAGE_HEAD];
    uint64_t first, count, offset;
    *stored_out = span_of(NULL, 0);
    if (node->flags & NODE_TREE)
        return ERR_OK;
    if (!(node->flags & NODE_BIG)) {
        *stored_out = node->data;
        return ERR_OK;
    }
    if (!find_run(snapshot, node, &first, &count))
        return ERR_OK;
    offset = first * snapshot->source.page_bytes;
    if (!read_whole(snapshot->fd, head, sizeof head, offset) || read_u64(head) != first || kind_of(head) != PAGE_OVERFLOW)
        return ERR_OK;
    if (*scratch_size < node->size) { /* no larger than the file */
        uint8_t *grown = (uint8_t *)realloc(*scratch, node->size);
        if (!grown)
            return ERR_NOMEM;
        *scratch = grown;
        *scratch_size = node->size;
    }
    if (read_whole(snapshot->fd, *scratch, node->size, offset + PAGE_HEAD))
        *stored_out = span_of(*scratch, node->size);
    return ERR_OK;
}

/* --- ways in ------------------------------------------------------------------------------------------------------------------------- */

/* A meta page: head, then from 16 on magic u32, version u32, address u64, map u64, two trees (of free pages, whose first field is the size
 * of pages; of trees) of 48 bytes, last page u64, number of the commit u64. Of the five marks that it must bear one may be wrong: what it
 * leads to proves itself. */
static bool read_meta(int fd, uint32_t page_bytes, int number, struct kv_snapshot_source *source_out, bool *is_size_out)
{
    uint8_t bytes[PAGE_HEAD + 24 + 2 * TREE_SIZE + 16];
    *is_size_out = false;
    if (!read_whole(fd, bytes, sizeof bytes, (uint64_t)number * page_bytes))
        return false;
    const uint8_t *meta = bytes + PAGE_HEAD, *free_tree = meta + 24, *main_tree = free_tree + TREE_SIZE, *end = main_tree + TREE_SIZE;
    int wrong = (read_u64(bytes) != (uint64_t)number) + (kind_of(bytes) != PAGE_META) + (read_u32(meta) != 0xBEEFC0DEu) +
                (read_u32(meta + 4) != 1) + (read_u32(free_tree) != page_bytes);
    *is_size_out = read_u32(free_tree) == page_bytes;
    *source_out = (struct kv_snapshot_source){.meta = number,
                                              .is_odd = wrong > 0,
                                              .txn_number = read_u64(end + 8),
                                              .main_root = read_u64(main_tree + TREE_SIZE - 8),
                                              .free_root = read_u64(free_tree + TREE_SIZE - 8),
                                              .last_page = read_u64(end),
                                              .page_bytes = page_bytes};
    return wrong <= 1 && source_out->last_page >= 1 && source_out->last_page < UINT64_MAX / PAGE_BYTES_MAX;
}

static enum err open_file(int *fd_out, char **path_out, const char *dir, struct errmsg *msg)
{
    if (asprintf(path_out, "%s/" DATA_NAME, dir) < 0) {
        *path_out = NULL;
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    }
    *fd_out = open(*path_out, O_RDONLY | O_CLOEXEC);
    return *fd_out < 0 ? err_set(msg, err_from_errno(errno), "%s: %s", *path_out, strerror(errno)) : ERR_OK;
}

enum err kv_snapshot_find(struct kv_snapshot_source sources_out[2], unsigned *count_out, const char *dir, struct errmsg *msg)
{
    char *path = NULL;
    int fd = -1;
    *count_out = 0;
    enum err err = open_file(&fd, &path, dir, msg);
    bool is_right, is_known = false;
    uint32_t size = PAGE_BYTES_USUAL;
    /* The size of pages stands in the meta pages themselves, and the second lies one such size behind the first. */
    for (uint32_t tried = PAGE_BYTES_MIN; !err && tried <= PAGE_BYTES_MAX && !is_known; tried *= 2) {
        is_known =
            (read_meta(fd, tried, 0, sources_out, &is_right) && is_right) || (read_meta(fd, tried, 1, sources_out, &is_right) && is_right);
        size = is_known ? tried : size;
    }
    if (!err) {
        *count_out += read_meta(fd, size, 0, &sources_out[0], &is_right);
        *count_out += read_meta(fd, size, 1, &sources_out[*count_out], &is_right);
    }
    if (fd >= 0)
        (void)close(fd);
    free(path);
    return err;
}

/* Which of our trees a node of the list of trees describes; KV_TREE_COUNT: none. */
static enum kv_tree named_tree(const struct node *node, uint64_t *root_out)
{
    if (!(node->flags & NODE_TREE) || node->flags & NODE_BIG || node->size != TREE_SIZE)
        return KV_TREE_COUNT;
    *root_out = read_u64(node->data.data + TREE_SIZE - 8);
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        const char *name = kv_tree_name((enum kv_tree)t);
        if (span_equal(node->key, span_of(name, strlen(name))))
            return (enum kv_tree)t;
    }
    return KV_TREE_COUNT;
}

static bool is_list_of_trees(const uint8_t *page, uint32_t page_bytes)
{
    unsigned trees = 0;
    uint64_t ignored;
    struct node node;
    for (unsigned i = 0; kind_of(page) == PAGE_LEAF && i < count_nodes(page, page_bytes); i++)
        if (read_node(&node, page, page_bytes, i) && named_tree(&node, &ignored) != KV_TREE_COUNT)
            trees |= 1u << named_tree(&node, &ignored);
    return trees == (1u << KV_TREE_COUNT) - 1;
}

enum err kv_snapshot_find_root(struct kv_snapshot_source *source_out, uint64_t *page, uint32_t page_bytes, const char *dir,
                               struct errmsg *msg)
{
    char *path = NULL;
    int fd = -1;
    struct stat status = {0};
    enum err err = open_file(&fd, &path, dir, msg);
    uint8_t *bytes = (uint8_t *)malloc(page_bytes);
    if (!err && (!bytes || fstat(fd, &status) != 0))
        err = err_set(msg, bytes ? ERR_IO : ERR_NOMEM, "%s: %s", path, err_text(bytes ? ERR_IO : ERR_NOMEM));
    uint64_t count = err ? 0 : (uint64_t)status.st_size / page_bytes;
    if (!err)
        err = ERR_NOTFOUND;
    for (; *page < count && err == ERR_NOTFOUND; ++*page) {
        if (!read_whole(fd, bytes, page_bytes, *page * page_bytes) || read_u64(bytes) != *page || !is_list_of_trees(bytes, page_bytes))
            continue;
        *source_out = (struct kv_snapshot_source){
            .meta = -1, .main_root = *page, .free_root = NO_PAGE, .last_page = count - 1, .page_bytes = page_bytes};
        err = ERR_OK;
    }
    free(bytes);
    if (fd >= 0)
        (void)close(fd);
    free(path);
    return err;
}

/* --- the walk ------------------------------------------------------------------------------------------------------------------------ */

static void lose_page(struct kv_snapshot *snapshot, uint64_t number)
{
    struct kv_snapshot_loss *loss = &snapshot->loss;
    if (number < snapshot->page_count && snapshot->marks[number] != MARK_MET && snapshot->marks[number] != MARK_FREE)
        snapshot->marks[number] = MARK_LOST;
    loss->page_count++;
    if (loss->pages_known < KV_SNAPSHOT_PAGES_KNOWN)
        loss->pages[loss->pages_known++] = number;
}

static struct leaf *add_leaf(struct kv_snapshot *snapshot, enum kv_tree tree)
{
    struct leaves *leaves = &snapshot->trees[tree];
    if (leaves->count == leaves->capacity) {
        size_t capacity = leaves->capacity ? 2 * leaves->capacity : 64;
        struct leaf *grown = (struct leaf *)realloc(leaves->all, capacity * sizeof *grown);
        if (!grown) {
            snapshot->failed = ERR_NOMEM;
            return NULL;
        }
        leaves->all = grown;
        leaves->capacity = capacity;
    }
    snapshot->loss.leaf_count++;
    return &leaves->all[leaves->count++];
}

static void set_leaf_key(struct leaf *leaf, struct span key)
{
    leaf->key_size = (uint8_t)key.size;
    memcpy(leaf->key, key.data, key.size);
}

static bool is_whole(struct kv_snapshot *snapshot, enum kv_tree tree, const struct node *node)
{
    struct span stored;
    enum err err = read_value(snapshot, node, &snapshot->big, &snapshot->big_size, &stored);
    if (err)
        snapshot->failed = err;
    return !err && kv_value_is_whole(tree, node->key, stored);
}

/* The pages of a large value hold what somebody published, and he may have made it look like a page. */
static void mark_run(struct kv_snapshot *snapshot, const struct node *node)
{
    uint64_t first, count;
    if (!(node->flags & NODE_BIG) || !find_run(snapshot, node, &first, &count))
        return;
    for (uint64_t number = first; number < first + count; number++)
        if (snapshot->marks[number] == MARK_NONE)
            snapshot->marks[number] = MARK_RUN;
}

static void take_leaf(struct kv_snapshot *snapshot, enum kv_tree tree, uint64_t number, const uint8_t *page, bool is_orphan)
{
    uint32_t page_bytes = snapshot->source.page_bytes;
    struct leaf *leaf = add_leaf(snapshot, tree);
    struct node node;
    if (!leaf)
        return;
    *leaf = (struct leaf){.page = number, .is_orphan = is_orphan};
    snapshot->marks[number] = MARK_MET;
    snapshot->loss.orphan_count += is_orphan;
    bool is_good = false;
    for (unsigned i = 0; i < count_nodes(page, page_bytes); i++) {
        if (!read_node(&node, page, page_bytes, i) || !has_key(&node))
            continue;
        snapshot->entries[tree]++;
        mark_run(snapshot, &node);
        if (is_good)
            continue;
        is_good = is_whole(snapshot, tree, &node);
        if (is_good || leaf->key_size == 0)
            set_leaf_key(leaf, node.key);
    }
}

static void take_trees(struct kv_snapshot *snapshot, const uint8_t *page)
{
    struct node node;
    uint64_t root;
    for (unsigned i = 0; i < count_nodes(page, snapshot->source.page_bytes); i++) {
        if (!read_node(&node, page, snapshot->source.page_bytes, i))
            continue;
        enum kv_tree tree = named_tree(&node, &root);
        if (tree == KV_TREE_COUNT)
            continue;
        snapshot->roots[tree] = root;
        snapshot->meant[tree] = read_u64(node.data.data + TREE_SIZE - 16);
        snapshot->has_root[tree] = true;
    }
}

/* tree: KV_TREE_COUNT is the list of trees. */
static void walk(struct kv_snapshot *snapshot, enum kv_tree tree, uint64_t number, unsigned depth)
{
    uint32_t page_bytes = snapshot->source.page_bytes;
    uint8_t *page = snapshot->pages + (size_t)depth % DEPTH_MAX * page_bytes;
    /* What was met before is met by going in circles. */
    bool is_good = depth < DEPTH_MAX && number < snapshot->page_count &&
                   (snapshot->marks[number] == MARK_NONE || snapshot->marks[number] == MARK_RUN) && read_page(snapshot, page, number) &&
                   (kind_of(page) == PAGE_BRANCH || kind_of(page) == PAGE_LEAF) && count_nodes(page, page_bytes) > 0;
    if (!is_good) {
        lose_page(snapshot, number);
        return;
    }
    snapshot->marks[number] = MARK_MET;
    if (kind_of(page) == PAGE_LEAF && tree == LIST_OF_TREES)
        take_trees(snapshot, page);
    else if (kind_of(page) == PAGE_LEAF)
        take_leaf(snapshot, tree, number, page, false);
    for (unsigned i = 0; kind_of(page) == PAGE_BRANCH && i < count_nodes(page, page_bytes) && !snapshot->failed; i++) {
        struct node node;
        if (read_node(&node, page, page_bytes, i))
            walk(snapshot, tree, node.below, depth + 1);
        else
            snapshot->is_incomplete = true;
    }
}

/* --- what hangs on no branch --------------------------------------------------------------------------------------------------------- */

static enum kv_tree tree_of_leaf(struct kv_snapshot *snapshot, const uint8_t *page)
{
    struct node node;
    for (unsigned i = 0; i < count_nodes(page, snapshot->source.page_bytes); i++) {
        if (!read_node(&node, page, snapshot->source.page_bytes, i) || !has_key(&node))
            continue;
        for (int t = 0; t < KV_TREE_COUNT; t++)
            if (is_whole(snapshot, (enum kv_tree)t, &node))
                return (enum kv_tree)t;
    }
    return KV_TREE_COUNT;
}

/* Returns how many pages it is about. */
static uint64_t look_at_page(struct kv_snapshot *snapshot, uint64_t number)
{
    uint8_t *page = snapshot->pages;
    uint8_t mark = snapshot->marks[number];
    if (mark == MARK_MET || mark == MARK_FREE)
        return 1;
    if (!read_page(snapshot, page, number)) {
        if (mark == MARK_NONE)
            lose_page(snapshot, number);
        return 1;
    }
    /* A value that has become smaller keeps its pages. */
    if (kind_of(page) == PAGE_OVERFLOW) {
        uint64_t count = read_u32(page + 12);
        return count >= 1 && count <= snapshot->page_count - number ? count : 1;
    }
    enum kv_tree tree = mark != MARK_RUN && kind_of(page) == PAGE_LEAF ? tree_of_leaf(snapshot, page) : KV_TREE_COUNT;
    if (tree != KV_TREE_COUNT)
        take_leaf(snapshot, tree, number, page, true);
    return 1;
}

/* Before the walk: a page that is free is none of the commit's, whatever leads to it. */
static void mark_free(struct kv_snapshot *snapshot)
{
    const struct kv_snapshot_source *source = &snapshot->source;
    snapshot->is_free_known =
        source->meta >= 0 && kv_lmdb_pages_mark_free(&snapshot->free_behind, snapshot->marks, snapshot->page_count, MARK_FREE, snapshot->fd,
                                                     source->free_root, source->page_bytes, source->last_page);
    if (!snapshot->is_free_known)
        memset(snapshot->marks, MARK_NONE, snapshot->page_count);
}

static void search_orphans(struct kv_snapshot *snapshot)
{
    uint64_t missing = snapshot->source.last_page + 1 - snapshot->page_count, lost = 0;
    if (!snapshot->is_free_known)
        return;
    snapshot->loss.is_searched = true;
    for (uint64_t number = 2; number < snapshot->page_count && !snapshot->failed;)
        number += look_at_page(snapshot, number);
    /* What the file is too short for, and is not free: the walk counted what it met of it. */
    for (uint64_t number = 2; number < snapshot->page_count; number++)
        lost += snapshot->marks[number] == MARK_LOST;
    snapshot->loss.page_count = lost + (missing > snapshot->free_behind ? missing - snapshot->free_behind : 0);
}

static int compare_leaves(const void *a, const void *b)
{
    const struct leaf *left = (const struct leaf *)a, *right = (const struct leaf *)b;
    size_t size = left->key_size < right->key_size ? left->key_size : right->key_size;
    int order = memcmp(left->key, right->key, size);
    if (order == 0)
        order = (left->key_size > right->key_size) - (left->key_size < right->key_size);
    return order ? order : (left->page > right->page) - (left->page < right->page);
}

static void collect(struct kv_snapshot *snapshot)
{
    if (!snapshot->only_meta)
        mark_free(snapshot);
    walk(snapshot, LIST_OF_TREES, snapshot->source.main_root, 0);
    for (int t = 0; t < KV_TREE_COUNT && !snapshot->failed; t++) {
        if (snapshot->only_meta && t != KV_META)
            continue;
        if (snapshot->has_root[t] && snapshot->roots[t] != NO_PAGE)
            walk(snapshot, (enum kv_tree)t, snapshot->roots[t], 0);
        snapshot->is_incomplete |= !snapshot->has_root[t];
    }
    if (!snapshot->only_meta && !snapshot->failed && (snapshot->loss.page_count > 0 || snapshot->is_incomplete))
        search_orphans(snapshot);
    snapshot->loss.is_counted = !snapshot->only_meta;
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        snapshot->loss.is_counted &= snapshot->has_root[t];
        if (!snapshot->only_meta && snapshot->has_root[t] && snapshot->meant[t] > snapshot->entries[t])
            snapshot->loss.entry_count += snapshot->meant[t] - snapshot->entries[t];
        if (snapshot->trees[t].count > 1)
            qsort(snapshot->trees[t].all, snapshot->trees[t].count, sizeof(struct leaf), compare_leaves);
    }
}

/* --- operations of kv.h -------------------------------------------------------------------------------------------------------------- */

struct cursor {
    uint8_t *page; /* the leaf it stands in */
    uint8_t *big;
    size_t big_size, leaf;
    unsigned slot; /* the next to be read */
};

struct snapshot_txn {
    struct kv_txn base;
    struct cursor cursors[KV_TREE_COUNT];
};

static struct kv_snapshot *snapshot_of(struct kv *kv)
{
    struct kv_snapshot *snapshot = (struct kv_snapshot *)kv;
    CHECK(snapshot->magic == KV_SNAPSHOT_MAGIC);
    return snapshot;
}

static enum err snapshot_begin(struct kv *kv, struct kv_txn **txn_out, bool is_write)
{
    (void)kv;
    if (is_write)
        return ERR_PERMISSION;
    struct snapshot_txn *txn = (struct snapshot_txn *)calloc(1, sizeof *txn);
    if (!txn)
        return ERR_NOMEM;
    *txn_out = &txn->base;
    return ERR_OK;
}

static void snapshot_abort(struct kv_txn *base)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        free(txn->cursors[t].page);
        free(txn->cursors[t].big);
    }
    free(txn);
}

static enum err snapshot_commit(struct kv_txn *base)
{
    snapshot_abort(base);
    return ERR_OK;
}

static int compare_keys(struct span a, struct span b)
{
    size_t size = a.size < b.size ? a.size : b.size;
    int order = size > 0 ? memcmp(a.data, b.data, size) : 0; /* the empty key has no bytes to point at */
    return order ? order : (a.size > b.size) - (a.size < b.size);
}

static struct span leaf_key(const struct leaf *leaf) { return span_of(leaf->key, leaf->key_size); }

static enum err enter_leaf(struct kv_snapshot *snapshot, struct cursor *cursor, enum kv_tree tree, size_t leaf)
{
    cursor->leaf = leaf;
    cursor->slot = 0;
    if (!cursor->page && !(cursor->page = (uint8_t *)malloc(snapshot->source.page_bytes)))
        return ERR_NOMEM;
    if (leaf < snapshot->trees[tree].count && !read_page(snapshot, cursor->page, snapshot->trees[tree].all[leaf].page))
        return ERR_IO; /* it was read before */
    return ERR_OK;
}

/* A leaf that was found without its branch is none of this commit where one with a branch has the same keys. */
static bool is_shadowed(const struct leaves *leaves, size_t leaf, struct span key)
{
    return leaves->all[leaf].is_orphan && leaf + 1 < leaves->count && !leaves->all[leaf + 1].is_orphan &&
           compare_keys(key, leaf_key(&leaves->all[leaf + 1])) >= 0;
}

/* The node at the cursor, which goes on behind it. */
static enum err step(struct snapshot_txn *txn, enum kv_tree tree, struct node *node_out)
{
    struct kv_snapshot *snapshot = snapshot_of(txn->base.kv);
    struct leaves *leaves = &snapshot->trees[tree];
    struct cursor *cursor = &txn->cursors[tree];
    while (cursor->leaf < leaves->count) {
        while (cursor->slot < count_nodes(cursor->page, snapshot->source.page_bytes)) {
            if (read_node(node_out, cursor->page, snapshot->source.page_bytes, cursor->slot++) && has_key(node_out) &&
                !is_shadowed(leaves, cursor->leaf, node_out->key))
                return ERR_OK;
        }
        enum err err = enter_leaf(snapshot, cursor, tree, cursor->leaf + 1);
        if (err)
            return err;
    }
    return ERR_NOTFOUND;
}

static enum err give(struct snapshot_txn *txn, enum kv_tree tree, enum err err, const struct node *node, struct span *key_out,
                     struct span *value_out)
{
    struct cursor *cursor = &txn->cursors[tree];
    txn->base.places[tree].checked = span_of(NULL, 0); /* the same memory, other bytes */
    if (err)
        return err;
    *key_out = node->key;
    return read_value(snapshot_of(txn->base.kv), node, &cursor->big, &cursor->big_size, value_out);
}

static enum err snapshot_next(struct kv_txn *base, enum kv_tree tree, struct span *key_out, struct span *value_out)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    struct node node;
    enum err err = step(txn, tree, &node);
    return give(txn, tree, err, &node, key_out, value_out);
}

/* To the leaf in which a key would stand. */
static enum err seek_leaf(struct snapshot_txn *txn, enum kv_tree tree, struct span key)
{
    struct kv_snapshot *snapshot = snapshot_of(txn->base.kv);
    const struct leaves *leaves = &snapshot->trees[tree];
    size_t low = 0, high = leaves->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_keys(leaf_key(&leaves->all[middle]), key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return enter_leaf(snapshot, &txn->cursors[tree], tree, low ? low - 1 : 0);
}

static enum err snapshot_seek(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    struct node node;
    enum err err = seek_leaf(txn, tree, key);
    if (!err)
        err = step(txn, tree, &node);
    while (!err && key.size && compare_keys(node.key, key) < 0)
        err = step(txn, tree, &node);
    return give(txn, tree, err, &node, key_out, value_out);
}

static enum err snapshot_get(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *value_out)
{
    struct span found;
    enum err err = snapshot_seek(base, tree, key, &found, value_out);
    return !err && !span_equal(found, key) ? ERR_NOTFOUND : err;
}

static enum err snapshot_floor(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    struct cursor *cursor = &txn->cursors[tree];
    struct node node, best = {0};
    enum err err = seek_leaf(txn, tree, key);
    size_t leaf = cursor->leaf;
    unsigned slot = 0;
    while (!err && (err = step(txn, tree, &node)) == ERR_OK && cursor->leaf == leaf && compare_keys(node.key, key) <= 0) {
        best = node;
        slot = cursor->slot;
    }
    if (err && err != ERR_NOTFOUND)
        return err;
    if (!best.key.size)
        return give(txn, tree, ERR_NOTFOUND, &best, key_out, value_out);
    err = enter_leaf(snapshot_of(base->kv), cursor, tree, leaf); /* the step beyond may have left it; its nodes stand where they stood */
    cursor->slot = slot;
    return give(txn, tree, err, &best, key_out, value_out);
}

static enum err snapshot_put(struct kv_txn *base, enum kv_tree tree, struct span key, struct span value, const uint8_t crc[4])
{
    (void)base, (void)tree, (void)key, (void)value, (void)crc;
    return ERR_PERMISSION;
}

static enum err snapshot_del(struct kv_txn *base, enum kv_tree tree, struct span key)
{
    (void)base, (void)tree, (void)key;
    return ERR_PERMISSION;
}

static enum err snapshot_stats(struct kv *kv, struct kv_stats *stats_out)
{
    struct kv_snapshot *snapshot = snapshot_of(kv);
    stats_out->file_bytes = stats_out->map_bytes = snapshot->page_count * snapshot->source.page_bytes;
    stats_out->used_bytes = snapshot->loss.leaf_count * snapshot->source.page_bytes;
    memcpy(stats_out->entries, snapshot->entries, sizeof snapshot->entries);
    return ERR_OK;
}

static void snapshot_close(struct kv *kv)
{
    struct kv_snapshot *snapshot = snapshot_of(kv);
    for (int t = 0; t < KV_TREE_COUNT; t++)
        free(snapshot->trees[t].all);
    free(snapshot->marks);
    free(snapshot->pages);
    free(snapshot->big);
    free(snapshot->path);
    if (snapshot->fd >= 0)
        (void)close(snapshot->fd);
    free(snapshot);
}

static const struct kv_ops snapshot_ops = {
    .begin = snapshot_begin,
    .commit = snapshot_commit,
    .abort = snapshot_abort,
    .get = snapshot_get,
    .put = snapshot_put,
    .del = snapshot_del,
    .seek = snapshot_seek,
    .next = snapshot_next,
    .floor = snapshot_floor,
    .stats = snapshot_stats,
    .close = snapshot_close,
};

enum err kv_snapshot_open(struct kv **kv_out, const char *dir, const struct kv_snapshot_source *source, bool only_meta, struct errmsg *msg)
{
    struct stat status;
    struct kv_snapshot *snapshot = (struct kv_snapshot *)calloc(1, sizeof *snapshot);
    if (!snapshot)
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    *snapshot =
        (struct kv_snapshot){.base.ops = &snapshot_ops, .magic = KV_SNAPSHOT_MAGIC, .fd = -1, .source = *source, .only_meta = only_meta};
    enum err err = open_file(&snapshot->fd, &snapshot->path, dir, msg);
    snapshot->base.name = snapshot->path;
    if (!err && fstat(snapshot->fd, &status) != 0)
        err = err_set(msg, ERR_IO, "%s: %s", snapshot->path, strerror(errno));
    if (!err) {
        uint64_t pages = (uint64_t)status.st_size / source->page_bytes;
        snapshot->page_count = pages <= source->last_page ? pages : source->last_page + 1;
        snapshot->marks = (uint8_t *)calloc(1, snapshot->page_count + 1);
        snapshot->pages = (uint8_t *)malloc((size_t)DEPTH_MAX * source->page_bytes);
        if (snapshot->marks && snapshot->pages)
            collect(snapshot);
        else
            snapshot->failed = ERR_NOMEM;
        if (snapshot->failed)
            err = err_set(msg, snapshot->failed, "%s: %s", snapshot->path, err_text(snapshot->failed));
    }
    if (err) {
        snapshot_close(&snapshot->base);
        return err;
    }
    *kv_out = &snapshot->base;
    return ERR_OK;
}

const struct kv_snapshot_loss *kv_snapshot_loss(struct kv *kv) { return &snapshot_of(kv)->loss; }
