/* The layout of LMDB 0.9 on 64-bit machines in their byte order. A page: number u64, pad u16, flags u16, then lower and upper u16 (of an
 * overflow page: count of pages u32), then from 16 on offsets u16 of nodes, up to lower. A node: size or page number lo u16, hi u16, flags
 * u16, key size u16, key, data; of a branch lo, hi and flags are the number of the page below. The list is a tree of transaction number u64
 * -> count u64, so many page numbers u64. */
#include "broker/durable/kv_lmdb_pages.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE_HEAD 16
#define NODE_HEAD 8
#define PAGE_FLAGS_AT 10
#define PAGE_LOWER_AT 12
#define PAGE_BRANCH 0x01
#define PAGE_LEAF 0x02
#define PAGE_OVERFLOW 0x04
#define PAGE_KINDS 0x5f /* of all that a page may be, without "dirty" */
#define NODE_BIG 0x01
#define DEPTH_MAX 16

struct free_walk {
    int fd;
    uint32_t page_bytes;
    uint64_t from, to; /* what is asked for; pages of the list itself lie before */
    uint64_t last;     /* page of the database */
    uint64_t found;    /* pages of the range */
    uint64_t left;     /* pages that the walk may still visit: more than there are means that it goes in circles */
    uint8_t *marks;    /* NULL, or of pages 0 .. mark_count - 1: set to `mark` where 0 */
    uint64_t mark_count;
    uint64_t behind; /* numbers that have no mark */
    uint8_t mark;
};

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

static bool read_whole(int fd, void *data, size_t size, uint64_t offset) { return pread(fd, data, size, (off_t)offset) == (ssize_t)size; }

/* A page of that kind with its own number. */
static bool read_page(struct free_walk *walk, uint8_t *page, uint64_t number)
{
    if (walk->left == 0 || number < 2 || number >= walk->from)
        return false;
    walk->left--;
    return read_whole(walk->fd, page, walk->page_bytes, number * walk->page_bytes) && read_u64(page) == number;
}

static void mark_page(struct free_walk *walk, uint64_t number)
{
    if (number >= walk->mark_count)
        walk->behind++;
    else if (walk->marks[number] == 0)
        walk->marks[number] = walk->mark;
}

/* Count, and so many page numbers. */
static bool count_list(struct free_walk *walk, const uint8_t *list, size_t size)
{
    uint64_t count = size >= 8 ? read_u64(list) : UINT64_MAX;
    uint64_t above = walk->last + 1;
    if (count > size / 8 - 1)
        return false;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t number = read_u64(list + 8 * i);
        if (number < 2 || number >= above)
            return false;
        above = number;
        walk->found += number >= walk->from && number < walk->to;
        if (walk->marks)
            mark_page(walk, number);
    }
    return true;
}

/* A list too long for its leaf lies in overflow pages, one behind the other. */
static bool count_overflow(struct free_walk *walk, uint64_t number, size_t size)
{
    uint8_t head[PAGE_HEAD];
    if (number < 2 || number >= walk->from || size < 8 ||
        (size + PAGE_HEAD + walk->page_bytes - 1) / walk->page_bytes > walk->from - number)
        return false;
    if (!read_whole(walk->fd, head, sizeof head, number * walk->page_bytes) || read_u64(head) != number ||
        (read_u16(head + PAGE_FLAGS_AT) & PAGE_KINDS) != PAGE_OVERFLOW)
        return false;
    uint8_t *list = (uint8_t *)malloc(size);
    bool is_good = list && read_whole(walk->fd, list, size, number * walk->page_bytes + PAGE_HEAD) && count_list(walk, list, size);
    free(list);
    return is_good;
}

static bool count_node(struct free_walk *walk, const uint8_t *page, size_t at)
{
    size_t size = read_u16(page + at) | (size_t)read_u16(page + at + 2) << 16;
    size_t data = at + NODE_HEAD + read_u16(page + at + 6);
    bool is_big = read_u16(page + at + 4) & NODE_BIG;
    if (data + (is_big ? 8 : size) > walk->page_bytes)
        return false;
    return is_big ? count_overflow(walk, read_u64(page + data), size) : count_list(walk, page + data, size);
}

static bool count_page(struct free_walk *walk, uint64_t number, unsigned depth)
{
    uint8_t *page = depth < DEPTH_MAX ? (uint8_t *)malloc(walk->page_bytes) : NULL;
    bool is_good = page && read_page(walk, page, number);
    unsigned kind = is_good ? read_u16(page + PAGE_FLAGS_AT) & PAGE_KINDS : 0;
    size_t lower = is_good ? read_u16(page + PAGE_LOWER_AT) : 0;
    is_good = is_good && (kind == PAGE_BRANCH || kind == PAGE_LEAF) && lower >= PAGE_HEAD && lower <= walk->page_bytes;
    for (size_t slot = PAGE_HEAD; is_good && slot + 2 <= lower; slot += 2) {
        size_t at = read_u16(page + slot);
        is_good = at >= lower && at + NODE_HEAD <= walk->page_bytes;
        if (is_good && kind == PAGE_LEAF)
            is_good = count_node(walk, page, at);
        else if (is_good)
            is_good = count_page(
                walk, read_u16(page + at) | (uint64_t)read_u16(page + at + 2) << 16 | (uint64_t)read_u16(page + at + 4) << 32, depth + 1);
    }
    free(page);
    return is_good;
}

bool kv_lmdb_pages_are_free(int fd, uint64_t root, uint32_t page_bytes, uint64_t from, uint64_t to)
{
    struct free_walk walk = {.fd = fd, .page_bytes = page_bytes, .from = from, .to = to, .last = to - 1, .left = from};
    return from >= to || (root != UINT64_MAX && count_page(&walk, root, 0) && walk.found == to - from);
}

bool kv_lmdb_pages_is_list(int fd, uint64_t root, uint32_t page_bytes, uint64_t last_page)
{
    uint64_t end = last_page + 1;
    struct free_walk walk = {.fd = fd, .page_bytes = page_bytes, .from = end, .to = end, .last = last_page, .left = end};
    return root == UINT64_MAX || count_page(&walk, root, 0);
}

bool kv_lmdb_pages_mark_free(uint64_t *behind_out, uint8_t *marks, uint64_t mark_count, uint8_t mark, int fd, uint64_t root,
                             uint32_t page_bytes, uint64_t last_page)
{
    uint64_t end = last_page + 1;
    struct free_walk walk = {.fd = fd,
                             .page_bytes = page_bytes,
                             .from = end,
                             .to = end,
                             .last = last_page,
                             .left = mark_count, /* its own pages are in the file */
                             .marks = marks,
                             .mark_count = mark_count,
                             .mark = mark};
    bool is_whole = root == UINT64_MAX || count_page(&walk, root, 0);
    *behind_out = walk.behind;
    return is_whole;
}
