#include "broker/durable/kv_snapshot_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_BYTES_USUAL 4096

/* Of the five marks that a meta page must bear one may be wrong: what it leads to proves itself. */
static bool read_meta(int fd, uint32_t page_bytes, int number, struct kv_snapshot_source *source_out, bool *is_size_out)
{
    struct kv_lmdb_meta meta;
    *is_size_out = false;
    if (kv_lmdb_page_read_bytes(fd, &meta, sizeof meta, (uint64_t)number * page_bytes) != ERR_OK)
        return false;
    *is_size_out = meta.free_pages.page_bytes == page_bytes;
    int wrong = (meta.number != (uint64_t)number) + ((meta.flags & KV_LMDB_PAGE_KINDS) != KV_LMDB_PAGE_META) +
                (meta.magic != KV_LMDB_META_MAGIC) + (meta.version != KV_LMDB_META_VERSION) + !*is_size_out;
    *source_out = (struct kv_snapshot_source){.meta = number,
                                              .is_odd = wrong > 0,
                                              .txn_number = meta.txn_number,
                                              .main_root = meta.main.root,
                                              .free_root = meta.free_pages.root,
                                              .last_page = meta.last_page,
                                              .page_bytes = page_bytes};
    return wrong <= 1 && meta.last_page >= 1 && meta.last_page < UINT64_MAX / KV_LMDB_PAGE_BYTES_MAX;
}

enum err kv_snapshot_source_open_file(int *fd_out, char **path_out, const char *dir, struct errmsg *msg)
{
    *fd_out = -1;
    if (asprintf(path_out, "%s/" KV_LMDB_DATA_NAME, dir) < 0) {
        *path_out = NULL;
        return err_set(msg, ERR_NOMEM, "%s: %s", dir, err_text(ERR_NOMEM));
    }
    *fd_out = open(*path_out, O_RDONLY | O_CLOEXEC);
    return *fd_out < 0 ? err_set(msg, err_from_errno(errno), "%s: %s", *path_out, strerror(errno)) : ERR_OK;
}

enum err kv_snapshot_source_find(struct kv_snapshot_source sources_out[2], unsigned *count_out, const char *dir, struct errmsg *msg)
{
    char *path = NULL;
    int fd = -1;
    *count_out = 0;
    enum err err = kv_snapshot_source_open_file(&fd, &path, dir, msg);
    bool is_right, is_known = false;
    uint32_t size = PAGE_BYTES_USUAL;
    /* The size of pages stands in the meta pages themselves, and the second lies one such size behind the first. */
    for (uint32_t tried = KV_LMDB_PAGE_BYTES_MIN; !err && tried <= KV_LMDB_PAGE_BYTES_MAX && !is_known; tried *= 2) {
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

enum kv_tree kv_snapshot_source_tree(struct kv_lmdb_tree *tree_out, const struct kv_lmdb_node *node)
{
    if (!kv_lmdb_page_node_tree(tree_out, node))
        return KV_TREE_COUNT;
    for (int t = 0; t < KV_TREE_COUNT; t++)
        if (span_equal(node->key, span_of_string(kv_tree_name((enum kv_tree)t))))
            return (enum kv_tree)t;
    return KV_TREE_COUNT;
}

static bool is_list_of_trees(const uint8_t *page, uint32_t page_bytes)
{
    unsigned trees = 0, count = kv_lmdb_page_kind(page) == KV_LMDB_PAGE_LEAF ? kv_lmdb_page_node_count(page, page_bytes) : 0;
    for (unsigned i = 0; i < count; i++) {
        struct kv_lmdb_node node;
        struct kv_lmdb_tree ignored;
        if (kv_lmdb_page_node(&node, page, page_bytes, i))
            trees |= 1u << kv_snapshot_source_tree(&ignored, &node);
    }
    const unsigned all = (1u << KV_TREE_COUNT) - 1;
    return (trees & all) == all;
}

enum err kv_snapshot_source_find_root(struct kv_snapshot_source *source_out, uint64_t *page, uint32_t page_bytes, const char *dir,
                                      struct errmsg *msg)
{
    char *path = NULL;
    int fd = -1;
    struct stat status = {0};
    enum err err = kv_snapshot_source_open_file(&fd, &path, dir, msg);
    uint8_t *bytes = (uint8_t *)malloc(page_bytes);
    if (!err && (!bytes || fstat(fd, &status) != 0))
        err = err_set(msg, bytes ? ERR_IO : ERR_NOMEM, "%s: %s", path, err_text(bytes ? ERR_IO : ERR_NOMEM));
    uint64_t count = err ? 0 : (uint64_t)status.st_size / page_bytes;
    if (!err)
        err = ERR_NOTFOUND;
    for (; *page < count && err == ERR_NOTFOUND; ++*page) {
        if (!kv_lmdb_page_read(fd, bytes, page_bytes, *page, count) || !is_list_of_trees(bytes, page_bytes))
            continue;
        *source_out = (struct kv_snapshot_source){
            .meta = -1, .main_root = *page, .free_root = KV_LMDB_PAGE_NONE, .last_page = count - 1, .page_bytes = page_bytes};
        err = ERR_OK;
    }
    free(bytes);
    if (fd >= 0)
        (void)close(fd);
    free(path);
    return err;
}
