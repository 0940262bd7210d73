/* The operations of kv.h on one commit's sorted lists of leaves (kv_snapshot_leaves.h finds them). */
#include "broker/durable/kv_snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/durable/kv_lmdb_page.h"
#include "broker/durable/kv_snapshot_leaves.h"
#include "common/check.h"

#define KV_SNAPSHOT_MAGIC 0x6B765353u

struct kv_snapshot {
    struct kv base;
    unsigned magic;
    int fd;
    char *path;
    struct kv_snapshot_leaves leaves;
};

struct cursor {
    uint8_t *page; /* the leaf it stands in */
    struct kv_snapshot_scratch scratch;
    size_t leaf;
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
        free(txn->cursors[t].scratch.bytes);
    }
    free(txn);
}

static enum err snapshot_commit(struct kv_txn *base)
{
    snapshot_abort(base);
    return ERR_OK;
}

static enum err enter_leaf(struct kv_snapshot *snapshot, struct cursor *cursor, enum kv_tree tree, size_t leaf)
{
    const struct kv_snapshot_tree *there = &snapshot->leaves.trees[tree];
    cursor->leaf = leaf;
    cursor->slot = 0;
    if (!cursor->page && !(cursor->page = (uint8_t *)malloc(snapshot->leaves.source.page_bytes)))
        return ERR_NOMEM;
    if (leaf < there->count && !kv_snapshot_leaves_read_page(&snapshot->leaves, cursor->page, there->leaves[leaf].page))
        return ERR_IO; /* it was read before */
    return ERR_OK;
}

/* A leaf that was found without its branch is none of this commit where one with a branch has the same keys. */
static bool is_shadowed(const struct kv_snapshot_tree *tree, size_t leaf, struct span key)
{
    return tree->leaves[leaf].is_orphan && leaf + 1 < tree->count && !tree->leaves[leaf + 1].is_orphan &&
           span_compare(key, kv_snapshot_leaf_key(&tree->leaves[leaf + 1])) >= 0;
}

/* The node at the cursor, which goes on behind it. */
static enum err step(struct snapshot_txn *txn, enum kv_tree tree, struct kv_lmdb_node *node_out)
{
    struct kv_snapshot *snapshot = snapshot_of(txn->base.kv);
    const struct kv_snapshot_tree *there = &snapshot->leaves.trees[tree];
    uint32_t page_bytes = snapshot->leaves.source.page_bytes;
    struct cursor *cursor = &txn->cursors[tree];
    while (cursor->leaf < there->count) {
        while (cursor->slot < kv_lmdb_page_node_count(cursor->page, page_bytes)) {
            if (kv_lmdb_page_node(node_out, cursor->page, page_bytes, cursor->slot++) && kv_snapshot_leaves_has_key(node_out) &&
                !is_shadowed(there, cursor->leaf, node_out->key))
                return ERR_OK;
        }
        enum err err = enter_leaf(snapshot, cursor, tree, cursor->leaf + 1);
        if (err)
            return err;
    }
    return ERR_NOTFOUND;
}

static enum err give(struct snapshot_txn *txn, enum kv_tree tree, enum err err, const struct kv_lmdb_node *node, struct span *key_out,
                     struct span *value_out)
{
    struct cursor *cursor = &txn->cursors[tree];
    txn->base.places[tree].checked = span_of(NULL, 0); /* the same memory, other bytes */
    if (err)
        return err;
    *key_out = node->key;
    return kv_snapshot_leaves_read_value(&snapshot_of(txn->base.kv)->leaves, value_out, &cursor->scratch, node);
}

static enum err snapshot_next(struct kv_txn *base, enum kv_tree tree, struct span *key_out, struct span *value_out)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    struct kv_lmdb_node node;
    enum err err = step(txn, tree, &node);
    return give(txn, tree, err, &node, key_out, value_out);
}

/* To the leaf in which a key would stand. */
static enum err seek_leaf(struct snapshot_txn *txn, enum kv_tree tree, struct span key)
{
    struct kv_snapshot *snapshot = snapshot_of(txn->base.kv);
    const struct kv_snapshot_tree *there = &snapshot->leaves.trees[tree];
    size_t low = 0, high = there->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (span_compare(kv_snapshot_leaf_key(&there->leaves[middle]), key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return enter_leaf(snapshot, &txn->cursors[tree], tree, low ? low - 1 : 0);
}

static enum err snapshot_seek(struct kv_txn *base, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out)
{
    struct snapshot_txn *txn = (struct snapshot_txn *)base;
    struct kv_lmdb_node node;
    enum err err = seek_leaf(txn, tree, key);
    if (!err)
        err = step(txn, tree, &node);
    while (!err && key.size && span_compare(node.key, key) < 0)
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
    struct kv_lmdb_node node, best = {0};
    enum err err = seek_leaf(txn, tree, key);
    size_t leaf = cursor->leaf;
    unsigned slot = 0;
    while (!err && (err = step(txn, tree, &node)) == ERR_OK && cursor->leaf == leaf && span_compare(node.key, key) <= 0) {
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
    const struct kv_snapshot_leaves *leaves = &snapshot_of(kv)->leaves;
    stats_out->file_bytes = stats_out->map_bytes = leaves->page_count * leaves->source.page_bytes;
    stats_out->used_bytes = leaves->loss.leaf_count * leaves->source.page_bytes;
    for (int t = 0; t < KV_TREE_COUNT; t++)
        stats_out->entries[t] = leaves->trees[t].entries;
    return ERR_OK;
}

static void snapshot_close(struct kv *kv)
{
    struct kv_snapshot *snapshot = snapshot_of(kv);
    kv_snapshot_leaves_deinit(&snapshot->leaves);
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
    *snapshot = (struct kv_snapshot){.base.ops = &snapshot_ops, .magic = KV_SNAPSHOT_MAGIC};
    enum err err = kv_snapshot_source_open_file(&snapshot->fd, &snapshot->path, dir, msg);
    snapshot->base.name = snapshot->path;
    if (!err && fstat(snapshot->fd, &status) != 0)
        err = err_set(msg, ERR_IO, "%s: %s", snapshot->path, strerror(errno));
    if (!err) {
        err = kv_snapshot_leaves_init(&snapshot->leaves, snapshot->fd, (uint64_t)status.st_size, source, only_meta);
        if (err)
            err = err_set(msg, err, "%s: %s", snapshot->path, err_text(err));
    }
    if (err) {
        snapshot_close(&snapshot->base);
        return err;
    }
    *kv_out = &snapshot->base;
    return ERR_OK;
}

const struct kv_snapshot_loss *kv_snapshot_loss(struct kv *kv) { return &snapshot_of(kv)->leaves.loss; }
