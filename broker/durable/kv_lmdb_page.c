#include "broker/durable/kv_lmdb_page.h"

#include <errno.h>
#include <unistd.h>

#define FLAGS_AT 10
#define LOWER_AT 12
#define NODE_HEAD 8

static uint16_t read_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t read_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

enum err kv_lmdb_page_read_bytes(int fd, void *data_out, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, (uint8_t *)data_out + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno != EINTR)
            return err_from_errno(errno);
        if (got == 0)
            return ERR_NOTFOUND;
        done += got > 0 ? (size_t)got : 0;
    }
    return ERR_OK;
}

static bool read_numbered(int fd, uint8_t *bytes_out, size_t size, uint32_t page_bytes, uint64_t number, uint64_t end)
{
    return number >= KV_LMDB_PAGE_FIRST && number < end && kv_lmdb_page_read_bytes(fd, bytes_out, size, number * page_bytes) == ERR_OK &&
           kv_lmdb_page_number(bytes_out) == number;
}

bool kv_lmdb_page_read(int fd, uint8_t *page_out, uint32_t page_bytes, uint64_t number, uint64_t end)
{
    return read_numbered(fd, page_out, page_bytes, page_bytes, number, end);
}

bool kv_lmdb_page_read_head(int fd, uint8_t head_out[KV_LMDB_PAGE_HEAD], uint32_t page_bytes, uint64_t number, uint64_t end)
{
    return read_numbered(fd, head_out, KV_LMDB_PAGE_HEAD, page_bytes, number, end);
}

bool kv_lmdb_page_read_run(int fd, void *data_out, uint32_t page_bytes, const struct kv_lmdb_run *run)
{
    return kv_lmdb_page_read_bytes(fd, data_out, run->size, run->first * page_bytes + KV_LMDB_PAGE_HEAD) == ERR_OK;
}

uint64_t kv_lmdb_page_number(const uint8_t *page) { return read_u64(page); }
unsigned kv_lmdb_page_flags(const uint8_t *page) { return read_u16(page + FLAGS_AT); }
unsigned kv_lmdb_page_kind(const uint8_t *page) { return kv_lmdb_page_flags(page) & KV_LMDB_PAGE_KINDS; }

uint32_t kv_lmdb_page_run_length(const uint8_t *page)
{
    uint32_t count;
    memcpy(&count, page + LOWER_AT, sizeof count);
    return count;
}

unsigned kv_lmdb_page_node_count(const uint8_t *page, uint32_t page_bytes)
{
    size_t lower = read_u16(page + LOWER_AT);
    return lower < KV_LMDB_PAGE_HEAD || lower > page_bytes ? 0 : (unsigned)(lower - KV_LMDB_PAGE_HEAD) / 2;
}

bool kv_lmdb_page_node(struct kv_lmdb_node *node_out, const uint8_t *page, uint32_t page_bytes, unsigned slot)
{
    size_t at = read_u16(page + KV_LMDB_PAGE_HEAD + 2 * (size_t)slot);
    if (at < read_u16(page + LOWER_AT) || at + NODE_HEAD > page_bytes)
        return false;
    const uint8_t *head = page + at, *key = head + NODE_HEAD;
    size_t low = read_u16(head) | (size_t)read_u16(head + 2) << 16, key_size = read_u16(head + 6);
    uint16_t flags = read_u16(head + 4);
    bool is_branch = kv_lmdb_page_kind(page) == KV_LMDB_PAGE_BRANCH;
    size_t here = is_branch ? 0 : flags & KV_LMDB_NODE_BIG ? sizeof(uint64_t) : low;
    if (at + NODE_HEAD + key_size + here > page_bytes)
        return false;
    *node_out = (struct kv_lmdb_node){.key = span_of(key, key_size), .data = span_of(key + key_size, here)};
    if (is_branch) {
        node_out->below = low | (uint64_t)flags << 32;
    } else {
        node_out->size = low;
        node_out->flags = flags;
    }
    return true;
}

bool kv_lmdb_page_node_run(struct kv_lmdb_run *run_out, const struct kv_lmdb_node *node, uint32_t page_bytes, uint64_t end)
{
    if (!(node->flags & KV_LMDB_NODE_BIG))
        return false;
    uint64_t first = read_u64(node->data.data), count = (node->size + KV_LMDB_PAGE_HEAD + page_bytes - 1) / page_bytes;
    *run_out = (struct kv_lmdb_run){.first = first, .count = count, .size = node->size};
    return first >= KV_LMDB_PAGE_FIRST && first < end && count <= end - first;
}

bool kv_lmdb_page_node_tree(struct kv_lmdb_tree *tree_out, const struct kv_lmdb_node *node)
{
    if (!(node->flags & KV_LMDB_NODE_TREE) || node->flags & KV_LMDB_NODE_BIG || node->size != sizeof *tree_out)
        return false;
    memcpy(tree_out, node->data.data, sizeof *tree_out);
    return true;
}
