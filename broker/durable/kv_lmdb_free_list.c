#include "broker/durable/kv_lmdb_free_list.h"

#include <stdlib.h>

#include "broker/durable/kv_lmdb_page.h"

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

static uint64_t number_at(struct span list, uint64_t index)
{
    uint64_t number;
    memcpy(&number, list.data + index * sizeof number, sizeof number);
    return number;
}

static void mark_page(struct free_walk *walk, uint64_t number)
{
    if (number >= walk->mark_count)
        walk->behind++;
    else if (walk->marks[number] == 0)
        walk->marks[number] = walk->mark;
}

/* Count, and so many page numbers. */
static bool count_list(struct free_walk *walk, struct span list)
{
    if (list.size < sizeof(uint64_t))
        return false;
    uint64_t count = number_at(list, 0), above = walk->last + 1;
    if (count > list.size / sizeof(uint64_t) - 1)
        return false;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t number = number_at(list, i);
        if (number < KV_LMDB_PAGE_FIRST || number >= above)
            return false;
        above = number;
        walk->found += number >= walk->from && number < walk->to;
        if (walk->marks)
            mark_page(walk, number);
    }
    return true;
}

/* A list too long for its leaf lies in overflow pages, one behind the other. */
static bool count_overflow(struct free_walk *walk, const struct kv_lmdb_node *node)
{
    uint8_t head[KV_LMDB_PAGE_HEAD];
    struct kv_lmdb_run run;
    if (!kv_lmdb_page_node_run(&run, node, walk->page_bytes, walk->from) ||
        !kv_lmdb_page_read_head(walk->fd, head, walk->page_bytes, run.first, walk->from) ||
        kv_lmdb_page_flags(head) != KV_LMDB_PAGE_OVERFLOW)
        return false;
    uint8_t *list = (uint8_t *)malloc(run.size + 1);
    bool is_good = list && kv_lmdb_page_read_run(walk->fd, list, walk->page_bytes, &run) && count_list(walk, span_of(list, run.size));
    free(list);
    return is_good;
}

static bool count_page(struct free_walk *walk, uint64_t number, unsigned depth)
{
    if (depth >= KV_LMDB_PAGE_DEPTH_MAX || walk->left == 0)
        return false;
    walk->left--;
    uint8_t *page = (uint8_t *)malloc(walk->page_bytes);
    bool is_read = page && kv_lmdb_page_read(walk->fd, page, walk->page_bytes, number, walk->from);
    unsigned flags = is_read ? kv_lmdb_page_flags(page) : 0;
    unsigned count = flags == KV_LMDB_PAGE_BRANCH || flags == KV_LMDB_PAGE_LEAF ? kv_lmdb_page_node_count(page, walk->page_bytes) : 0;
    bool is_good = count > 0;
    for (unsigned slot = 0; is_good && slot < count; slot++) {
        struct kv_lmdb_node node;
        is_good = kv_lmdb_page_node(&node, page, walk->page_bytes, slot);
        if (is_good && flags == KV_LMDB_PAGE_BRANCH)
            is_good = count_page(walk, node.below, depth + 1);
        else if (is_good)
            is_good = node.flags & KV_LMDB_NODE_BIG ? count_overflow(walk, &node) : count_list(walk, node.data);
    }
    free(page);
    return is_good;
}

bool kv_lmdb_free_list_has(int fd, uint64_t root, uint32_t page_bytes, uint64_t from, uint64_t to)
{
    struct free_walk walk = {.fd = fd, .page_bytes = page_bytes, .from = from, .to = to, .last = to - 1, .left = from};
    return from >= to || (root != KV_LMDB_PAGE_NONE && count_page(&walk, root, 0) && walk.found == to - from);
}

bool kv_lmdb_free_list_is_sound(int fd, uint64_t root, uint32_t page_bytes, uint64_t last_page)
{
    uint64_t end = last_page + 1;
    struct free_walk walk = {.fd = fd, .page_bytes = page_bytes, .from = end, .to = end, .last = last_page, .left = end};
    return root == KV_LMDB_PAGE_NONE || count_page(&walk, root, 0);
}

bool kv_lmdb_free_list_mark(uint64_t *behind_out, uint8_t *marks, uint64_t mark_count, uint8_t mark, int fd, uint64_t root,
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
    bool is_whole = root == KV_LMDB_PAGE_NONE || count_page(&walk, root, 0);
    *behind_out = walk.behind;
    return is_whole;
}
