#include "broker/durable/kv_snapshot_leaves.h"

#include <stdlib.h>
#include <string.h>

#include "broker/durable/kv_lmdb_free_list.h"

#define LIST_OF_TREES KV_TREE_COUNT /* in place of a tree: what names them */

/* What is known of a page of the file. */
enum mark { MARK_NONE, MARK_MET, MARK_LOST, MARK_FREE, MARK_RUN };

bool kv_snapshot_leaves_read_page(const struct kv_snapshot_leaves *leaves, uint8_t *page_out, uint64_t number)
{
    return kv_lmdb_page_read(leaves->fd, page_out, leaves->source.page_bytes, number, leaves->page_count);
}

enum err kv_snapshot_leaves_read_value(const struct kv_snapshot_leaves *leaves, struct span *stored_out,
                                       struct kv_snapshot_scratch *scratch, const struct kv_lmdb_node *node)
{
    uint32_t page_bytes = leaves->source.page_bytes;
    uint8_t head[KV_LMDB_PAGE_HEAD];
    struct kv_lmdb_run run;
    *stored_out = span_of(NULL, 0);
    if (node->flags & KV_LMDB_NODE_TREE)
        return ERR_OK;
    if (!(node->flags & KV_LMDB_NODE_BIG)) {
        *stored_out = node->data;
        return ERR_OK;
    }
    if (!kv_lmdb_page_node_run(&run, node, page_bytes, leaves->page_count) ||
        !kv_lmdb_page_read_head(leaves->fd, head, page_bytes, run.first, leaves->page_count) ||
        kv_lmdb_page_kind(head) != KV_LMDB_PAGE_OVERFLOW)
        return ERR_OK;
    if (scratch->size < run.size) { /* no larger than the file */
        uint8_t *grown = (uint8_t *)realloc(scratch->bytes, run.size);
        if (!grown)
            return ERR_NOMEM;
        *scratch = (struct kv_snapshot_scratch){grown, run.size};
    }
    if (kv_lmdb_page_read_run(leaves->fd, scratch->bytes, page_bytes, &run))
        *stored_out = span_of(scratch->bytes, run.size);
    return ERR_OK;
}

/* --- the walk ------------------------------------------------------------------------------------------------------------------------ */

static void lose_page(struct kv_snapshot_leaves *leaves, uint64_t number)
{
    struct kv_snapshot_loss *loss = &leaves->loss;
    if (number < leaves->page_count && leaves->marks[number] != MARK_MET && leaves->marks[number] != MARK_FREE)
        leaves->marks[number] = MARK_LOST;
    loss->page_count++;
    if (loss->pages_known < KV_SNAPSHOT_PAGES_KNOWN)
        loss->pages[loss->pages_known++] = number;
}

static struct kv_snapshot_leaf *add_leaf(struct kv_snapshot_leaves *leaves, struct kv_snapshot_tree *tree)
{
    if (tree->count == tree->capacity) {
        size_t capacity = tree->capacity ? 2 * tree->capacity : 64;
        struct kv_snapshot_leaf *grown = (struct kv_snapshot_leaf *)realloc(tree->leaves, capacity * sizeof *grown);
        if (!grown) {
            leaves->failed = ERR_NOMEM;
            return NULL;
        }
        tree->leaves = grown;
        tree->capacity = capacity;
    }
    leaves->loss.leaf_count++;
    return &tree->leaves[tree->count++];
}

static void set_leaf_key(struct kv_snapshot_leaf *leaf, struct span key)
{
    leaf->key_size = (uint8_t)key.size;
    memcpy(leaf->key, key.data, key.size);
}

static bool is_whole(struct kv_snapshot_leaves *leaves, enum kv_tree tree, const struct kv_lmdb_node *node)
{
    struct span stored;
    enum err err = kv_snapshot_leaves_read_value(leaves, &stored, &leaves->scratch, node);
    if (err)
        leaves->failed = err;
    return !err && kv_value_is_whole(tree, node->key, stored);
}

/* The pages of a large value hold what somebody published, and he may have made it look like a page. */
static void mark_run(struct kv_snapshot_leaves *leaves, const struct kv_lmdb_node *node)
{
    struct kv_lmdb_run run;
    if (!kv_lmdb_page_node_run(&run, node, leaves->source.page_bytes, leaves->page_count))
        return;
    for (uint64_t number = run.first; number < run.first + run.count; number++)
        if (leaves->marks[number] == MARK_NONE)
            leaves->marks[number] = MARK_RUN;
}

static void take_leaf(struct kv_snapshot_leaves *leaves, enum kv_tree tree, uint64_t number, const uint8_t *page, bool is_orphan)
{
    uint32_t page_bytes = leaves->source.page_bytes;
    struct kv_snapshot_leaf *leaf = add_leaf(leaves, &leaves->trees[tree]);
    struct kv_lmdb_node node;
    if (!leaf)
        return;
    *leaf = (struct kv_snapshot_leaf){.page = number, .is_orphan = is_orphan};
    leaves->marks[number] = MARK_MET;
    leaves->loss.orphan_count += is_orphan;
    bool is_good = false;
    for (unsigned i = 0; i < kv_lmdb_page_node_count(page, page_bytes); i++) {
        if (!kv_lmdb_page_node(&node, page, page_bytes, i) || !kv_snapshot_leaves_has_key(&node))
            continue;
        leaves->trees[tree].entries++;
        mark_run(leaves, &node);
        if (is_good)
            continue;
        is_good = is_whole(leaves, tree, &node);
        if (is_good || leaf->key_size == 0)
            set_leaf_key(leaf, node.key);
    }
}

static void take_trees(struct kv_snapshot_leaves *leaves, const uint8_t *page)
{
    struct kv_lmdb_node node;
    struct kv_lmdb_tree described;
    for (unsigned i = 0; i < kv_lmdb_page_node_count(page, leaves->source.page_bytes); i++) {
        if (!kv_lmdb_page_node(&node, page, leaves->source.page_bytes, i))
            continue;
        enum kv_tree tree = kv_snapshot_source_tree(&described, &node);
        if (tree == KV_TREE_COUNT)
            continue;
        leaves->trees[tree].described = described;
        leaves->trees[tree].is_known = true;
    }
}

/* tree: KV_TREE_COUNT is the list of trees. */
static void walk(struct kv_snapshot_leaves *leaves, enum kv_tree tree, uint64_t number, unsigned depth)
{
    uint32_t page_bytes = leaves->source.page_bytes;
    uint8_t *page = leaves->pages + (size_t)depth % KV_LMDB_PAGE_DEPTH_MAX * page_bytes;
    /* What was met before is met by going in circles. */
    bool is_new = depth < KV_LMDB_PAGE_DEPTH_MAX && number < leaves->page_count &&
                  (leaves->marks[number] == MARK_NONE || leaves->marks[number] == MARK_RUN);
    unsigned kind = is_new && kv_snapshot_leaves_read_page(leaves, page, number) ? kv_lmdb_page_kind(page) : 0;
    unsigned count = kind == KV_LMDB_PAGE_BRANCH || kind == KV_LMDB_PAGE_LEAF ? kv_lmdb_page_node_count(page, page_bytes) : 0;
    if (count == 0) {
        lose_page(leaves, number);
        return;
    }
    leaves->marks[number] = MARK_MET;
    if (kind == KV_LMDB_PAGE_LEAF && tree == LIST_OF_TREES)
        take_trees(leaves, page);
    else if (kind == KV_LMDB_PAGE_LEAF)
        take_leaf(leaves, tree, number, page, false);
    for (unsigned i = 0; kind == KV_LMDB_PAGE_BRANCH && i < count && !leaves->failed; i++) {
        struct kv_lmdb_node node;
        if (kv_lmdb_page_node(&node, page, page_bytes, i))
            walk(leaves, tree, node.below, depth + 1);
        else
            leaves->is_incomplete = true;
    }
}

/* --- what hangs on no branch --------------------------------------------------------------------------------------------------------- */

static enum kv_tree tree_of_leaf(struct kv_snapshot_leaves *leaves, const uint8_t *page)
{
    struct kv_lmdb_node node;
    for (unsigned i = 0; i < kv_lmdb_page_node_count(page, leaves->source.page_bytes); i++) {
        if (!kv_lmdb_page_node(&node, page, leaves->source.page_bytes, i) || !kv_snapshot_leaves_has_key(&node))
            continue;
        for (int t = 0; t < KV_TREE_COUNT; t++)
            if (is_whole(leaves, (enum kv_tree)t, &node))
                return (enum kv_tree)t;
    }
    return KV_TREE_COUNT;
}

/* Returns how many pages it is about. */
static uint64_t look_at_page(struct kv_snapshot_leaves *leaves, uint64_t number)
{
    uint8_t *page = leaves->pages;
    uint8_t mark = leaves->marks[number];
    if (mark == MARK_MET || mark == MARK_FREE)
        return 1;
    if (!kv_snapshot_leaves_read_page(leaves, page, number)) {
        if (mark == MARK_NONE)
            lose_page(leaves, number);
        return 1;
    }
    /* A value that has become smaller keeps its pages. */
    if (kv_lmdb_page_kind(page) == KV_LMDB_PAGE_OVERFLOW) {
        uint64_t count = kv_lmdb_page_run_length(page);
        return count >= 1 && count <= leaves->page_count - number ? count : 1;
    }
    bool is_leaf = mark != MARK_RUN && kv_lmdb_page_kind(page) == KV_LMDB_PAGE_LEAF;
    enum kv_tree tree = is_leaf ? tree_of_leaf(leaves, page) : KV_TREE_COUNT;
    if (tree != KV_TREE_COUNT)
        take_leaf(leaves, tree, number, page, true);
    return 1;
}

/* Before the walk: a page that is free is none of the commit's, whatever leads to it. */
static void mark_free(struct kv_snapshot_leaves *leaves)
{
    const struct kv_snapshot_source *source = &leaves->source;
    leaves->is_free_known =
        source->meta >= 0 && kv_lmdb_free_list_mark(&leaves->free_behind, leaves->marks, leaves->page_count, MARK_FREE, leaves->fd,
                                                    source->free_root, source->page_bytes, source->last_page);
    if (!leaves->is_free_known)
        memset(leaves->marks, MARK_NONE, leaves->page_count);
}

static void search_orphans(struct kv_snapshot_leaves *leaves)
{
    uint64_t missing = leaves->source.last_page + 1 - leaves->page_count, lost = 0;
    if (!leaves->is_free_known)
        return;
    leaves->loss.is_searched = true;
    for (uint64_t number = KV_LMDB_PAGE_FIRST; number < leaves->page_count && !leaves->failed;)
        number += look_at_page(leaves, number);
    /* What the file is too short for, and is not free: the walk counted what it met of it. */
    for (uint64_t number = KV_LMDB_PAGE_FIRST; number < leaves->page_count; number++)
        lost += leaves->marks[number] == MARK_LOST;
    leaves->loss.page_count = lost + (missing > leaves->free_behind ? missing - leaves->free_behind : 0);
}

/* --- all of it ----------------------------------------------------------------------------------------------------------------------- */

static int compare_leaves(const void *a, const void *b)
{
    const struct kv_snapshot_leaf *left = (const struct kv_snapshot_leaf *)a, *right = (const struct kv_snapshot_leaf *)b;
    int order = span_compare(kv_snapshot_leaf_key(left), kv_snapshot_leaf_key(right));
    return order ? order : (left->page > right->page) - (left->page < right->page);
}

static void collect(struct kv_snapshot_leaves *leaves)
{
    if (!leaves->only_meta)
        mark_free(leaves);
    walk(leaves, LIST_OF_TREES, leaves->source.main_root, 0);
    for (int t = 0; t < KV_TREE_COUNT && !leaves->failed; t++) {
        const struct kv_snapshot_tree *tree = &leaves->trees[t];
        if (leaves->only_meta && t != KV_META)
            continue;
        if (tree->is_known && tree->described.root != KV_LMDB_PAGE_NONE)
            walk(leaves, (enum kv_tree)t, tree->described.root, 0);
        leaves->is_incomplete |= !tree->is_known;
    }
    if (!leaves->only_meta && !leaves->failed && (leaves->loss.page_count > 0 || leaves->is_incomplete))
        search_orphans(leaves);
    leaves->loss.is_counted = !leaves->only_meta;
    for (int t = 0; t < KV_TREE_COUNT; t++) {
        struct kv_snapshot_tree *tree = &leaves->trees[t];
        leaves->loss.is_counted &= tree->is_known;
        if (!leaves->only_meta && tree->is_known && tree->described.entries > tree->entries)
            leaves->loss.entry_count += tree->described.entries - tree->entries;
        if (tree->count > 1)
            qsort(tree->leaves, tree->count, sizeof *tree->leaves, compare_leaves);
    }
}

enum err kv_snapshot_leaves_init(struct kv_snapshot_leaves *leaves, int fd, uint64_t file_bytes, const struct kv_snapshot_source *source,
                                 bool only_meta)
{
    uint64_t pages = file_bytes / source->page_bytes;
    *leaves = (struct kv_snapshot_leaves){.fd = fd, .source = *source, .only_meta = only_meta};
    leaves->page_count = pages <= source->last_page ? pages : source->last_page + 1;
    leaves->marks = (uint8_t *)calloc(1, leaves->page_count + 1);
    leaves->pages = (uint8_t *)malloc((size_t)KV_LMDB_PAGE_DEPTH_MAX * source->page_bytes);
    if (!leaves->marks || !leaves->pages)
        return ERR_NOMEM;
    collect(leaves);
    return leaves->failed;
}

void kv_snapshot_leaves_deinit(struct kv_snapshot_leaves *leaves)
{
    for (int t = 0; t < KV_TREE_COUNT; t++)
        free(leaves->trees[t].leaves);
    free(leaves->marks);
    free(leaves->pages);
    free(leaves->scratch.bytes);
}
