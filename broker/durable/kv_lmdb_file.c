#include "broker/durable/kv_lmdb_file.h"

#include "broker/durable/kv_lmdb_pages.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A meta page of format 1 on a 64-bit machine, in its byte order: a page header of 16 bytes (number u64, u16, flags u16, u32), then the
 * fields below. LMDB takes the one with the greater transaction number. */
struct meta {
    uint32_t magic, version;
    uint64_t address, map_bytes;
    struct meta_tree {
        uint32_t page_bytes; /* of the first tree: the page size */
        uint16_t flags, depth;
        uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
    } free_pages, main;
    uint64_t last_page, txn_number;
};
static_assert(sizeof(struct meta) == 24 + 2 * 48 + 16, "the layout of LMDB's meta page");
static_assert(sizeof(size_t) == 8, "LMDB's file format depends on the word size");

#define META_OFFSET 16
#define META_FLAGS_OFFSET 10
#define META_FLAG 0x08
#define META_MAGIC 0xBEEFC0DEu
#define META_VERSION 1
#define NO_PAGE UINT64_MAX

/* Returns 0, ERR_CORRUPT (with the reason in *why_out), ERR_VERSION, ERR_IO. */
static enum err read_meta(int fd, off_t at, struct meta *meta_out, const char **why_out)
{
    uint8_t bytes[META_OFFSET + sizeof *meta_out];
    uint16_t flags;
    ssize_t got = pread(fd, bytes, sizeof bytes, at);
    if (got < 0)
        return err_from_errno(errno);
    *why_out = "it is too short for LMDB's meta pages";
    if ((size_t)got < sizeof bytes)
        return ERR_CORRUPT;
    memcpy(&flags, bytes + META_FLAGS_OFFSET, sizeof flags);
    memcpy(meta_out, bytes + META_OFFSET, sizeof *meta_out);
    *why_out = "a meta page of LMDB is damaged, or it is no LMDB file";
    if (!(flags & META_FLAG) || meta_out->magic != META_MAGIC)
        return ERR_CORRUPT;
    *why_out = "it was written by another version of LMDB";
    if (meta_out->version != META_VERSION)
        return ERR_VERSION;
    *why_out = "a meta page of LMDB has an impossible page size";
    uint32_t page = meta_out->free_pages.page_bytes;
    if (page < 512 || page > 65536 || page & (page - 1))
        return ERR_CORRUPT;
    return ERR_OK;
}

static bool is_root(const struct meta *meta, uint64_t root) { return root == NO_PAGE || (root >= 2 && root <= meta->last_page); }

/* The newest meta page, if it can be believed. *at_out: where the one is that an error is about. */
static enum err read_newest_meta(int fd, struct meta *meta_out, off_t *at_out, const char **why_out)
{
    struct meta first = {0}, second = {0};
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
    struct meta meta;
    struct stat status;
    off_t at;
    enum err err = read_newest_meta(fd, &meta, &at, &why);
    if (err)
        return err_set(msg, err, "%s/" KV_LMDB_DATA_NAME ": %s (meta page %d, at offset %lld)", dir, why, at != 0, (long long)at);
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
    return kv_lmdb_pages_are_free(fd, extent->free_root, extent->page_bytes, extent->file_bytes / extent->page_bytes,
                                  extent->meant_bytes / extent->page_bytes);
}

enum err kv_lmdb_file_fail_short(struct errmsg *msg, const char *dir, const struct kv_lmdb_extent *extent)
{
    return err_set(msg, ERR_CORRUPT, "%s/" KV_LMDB_DATA_NAME ": is cut: %llu bytes, but its meta page says %llu", dir,
                   (unsigned long long)extent->file_bytes, (unsigned long long)extent->meant_bytes);
}
