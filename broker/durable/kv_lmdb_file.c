#include "broker/durable/kv_lmdb_file.h"

#include "broker/durable/kv_lmdb_free_list.h"
#include "broker/durable/kv_lmdb_page.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* Returns 0, ERR_CORRUPT (with the reason in *why_out), ERR_VERSION, ERR_IO. */
static enum err read_meta(int fd, uint64_t at, struct kv_lmdb_meta *meta_out, const char **why_out)
{
    enum err err = kv_lmdb_page_read_bytes(fd, meta_out, sizeof *meta_out, at);
    *why_out = err == ERR_NOTFOUND ? "it is too short for LMDB's meta pages" : "it cannot be read";
    if (err)
        return err == ERR_NOTFOUND ? ERR_CORRUPT : err;
    *why_out = "a meta page of LMDB is damaged, or it is no LMDB file";
    if (!(meta_out->flags & KV_LMDB_PAGE_META) || meta_out->magic != KV_LMDB_META_MAGIC)
        return ERR_CORRUPT;
    *why_out = "it was written by another version of LMDB";
    if (meta_out->version != KV_LMDB_META_VERSION)
        return ERR_VERSION;
    *why_out = "a meta page of LMDB has an impossible page size";
    uint32_t page = meta_out->free_pages.page_bytes;
    if (page < KV_LMDB_PAGE_BYTES_MIN || page > KV_LMDB_PAGE_BYTES_MAX || page & (page - 1))
        return ERR_CORRUPT;
    return ERR_OK;
}

static bool is_root(const struct kv_lmdb_meta *meta, uint64_t root)
{
    return root == KV_LMDB_PAGE_NONE || (root >= KV_LMDB_PAGE_FIRST && root <= meta->last_page);
}

/* The newest meta page, if it can be believed. *at_out: where the one is that an error is about. */
static enum err read_newest_meta(int fd, struct kv_lmdb_meta *meta_out, uint64_t *at_out, const char **why_out)
{
    struct kv_lmdb_meta first = {0}, second = {0};
    const char *ignored;
    *at_out = 0;
    enum err err = read_meta(fd, 0, &first, why_out);
    if (!err) {
        *at_out = first.free_pages.page_bytes;
        err = read_meta(fd, *at_out, &second, why_out);
    }
    /* No program writes one of each. */
    if (err == ERR_VERSION && (*at_out || read_meta(fd, first.free_pages.page_bytes, &second, &ignored) == ERR_OK))
        err = ERR_CORRUPT;
    if (err)
        return err;
    bool is_second = second.txn_number > first.txn_number;
    *meta_out = is_second ? second : first;
    *at_out = is_second ? *at_out : 0;
    *why_out = "a meta page of LMDB points outside of the file";
    if (second.free_pages.page_bytes != first.free_pages.page_bytes || meta_out->last_page < 1 ||
        meta_out->last_page >= meta_out->map_bytes / first.free_pages.page_bytes || !is_root(meta_out, meta_out->free_pages.root) ||
        !is_root(meta_out, meta_out->main.root))
        return ERR_CORRUPT;
    return ERR_OK;
}

/* The meta page first: the file only grows. */
enum err kv_lmdb_file_read_extent(int fd, struct kv_lmdb_extent *extent_out, const char *dir, struct errmsg *msg)
{
    const char *why = "it cannot be read";
    struct kv_lmdb_meta meta;
    struct stat status;
    uint64_t at;
    enum err err = read_newest_meta(fd, &meta, &at, &why);
    if (err)
        return err_set(msg, err, "%s/" KV_LMDB_DATA_NAME ": %s (meta page %d, at offset %llu)", dir, why, at != 0, (unsigned long long)at);
    if (fstat(fd, &status) != 0)
        return err_set(msg, err_from_errno(errno), "%s: cannot read the size of " KV_LMDB_DATA_NAME ": %s", dir, strerror(errno));
    extent_out->file_bytes = (uint64_t)status.st_size;
    extent_out->page_bytes = meta.free_pages.page_bytes;
    extent_out->free_root = meta.free_pages.root;
    extent_out->main_root = meta.main.root;
    extent_out->meant_bytes = (meta.last_page + 1) * extent_out->page_bytes;
    return ERR_OK;
}

bool kv_lmdb_file_is_short(const struct kv_lmdb_extent *extent) { return extent->file_bytes < extent->meant_bytes; }

bool kv_lmdb_file_is_lack_free(int fd, const struct kv_lmdb_extent *extent)
{
    return kv_lmdb_free_list_has(fd, extent->free_root, extent->page_bytes, extent->file_bytes / extent->page_bytes,
                                 extent->meant_bytes / extent->page_bytes);
}

enum err kv_lmdb_file_fail_short(struct errmsg *msg, const char *dir, const struct kv_lmdb_extent *extent)
{
    return err_set(msg, ERR_CORRUPT, "%s/" KV_LMDB_DATA_NAME ": is cut: %llu bytes, but its meta page says %llu", dir,
                   (unsigned long long)extent->file_bytes, (unsigned long long)extent->meant_bytes);
}
