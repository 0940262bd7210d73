/* The list of free pages as LMDB writes it is believed, and one whose pages LMDB would take for something else is not. */
#include "broker/durable/kv_lmdb_free_list.h"

#include "broker/durable/kv_lmdb.h"
#include "broker/durable/kv_lmdb_file.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define OK(call) assert_int_equal((call), ERR_OK)

struct bench {
    char dir[128], data[160];
    struct kv_lmdb_extent extent;
    uint8_t page[KV_LMDB_PAGE_BYTES_MAX];
    struct errmsg msg;
    int fd;
};

/* Values of many pages that are put and gone again: lists of all sizes, some too long for a leaf. */
static void make_database(struct bench *b)
{
    static uint8_t value[100000];
    struct kv_lmdb_options options = {.dir = b->dir, .map_bytes = 256 << 20};
    struct kv *kv;
    struct kv_txn *reader, *txn;
    uint8_t key[8];
    OK(kv_lmdb_open(&kv, &options, &b->msg));
    OK(kv_begin(kv, &reader, false)); /* nothing is used again under it: one list for each commit */
    for (uint64_t commit = 0; commit < 300; commit++) {
        OK(kv_begin(kv, &txn, true));
        for (uint64_t i = 0; i < 200; i++) {
            size_t size = commit == 20 && i < 100 ? sizeof value : 30;
            OK(kv_put(txn, KV_BODIES, kv_key_u64(key, i), span_of(value, size)));
        }
        OK(kv_commit(txn));
    }
    kv_abort(reader);
    kv_close(kv);
}

static int setup(void **state)
{
    struct bench *b = (struct bench *)calloc(1, sizeof *b);
    const char *tmp = getenv("TMPDIR");
    snprintf(b->dir, sizeof b->dir, "%s/free-list-XXXXXX", tmp && strlen(tmp) < 64 ? tmp : "/tmp");
    assert_non_null(mkdtemp(b->dir));
    snprintf(b->data, sizeof b->data, "%s/" KV_LMDB_DATA_NAME, b->dir);
    make_database(b);
    b->fd = open(b->data, O_RDWR | O_CLOEXEC);
    assert_true(b->fd >= 0);
    OK(kv_lmdb_file_read_extent(b->fd, &b->extent, b->dir, &b->msg));
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct bench *b = (struct bench *)*state;
    char lock[160];
    snprintf(lock, sizeof lock, "%s/lock.mdb", b->dir);
    (void)close(b->fd);
    (void)unlink(b->data);
    (void)unlink(lock);
    (void)rmdir(b->dir);
    free(b);
    return 0;
}

static uint64_t page_count(const struct bench *b) { return b->extent.meant_bytes / b->extent.page_bytes; }

static bool is_sound(const struct bench *b)
{
    return kv_lmdb_free_list_is_sound(b->fd, b->extent.free_root, b->extent.page_bytes, page_count(b) - 1);
}

static void read_page(struct bench *b, uint64_t number)
{
    assert_true(kv_lmdb_page_read(b->fd, b->page, b->extent.page_bytes, number, page_count(b)));
}

/* The first page of each kind on the way down the list: *run_out of the first value too long for a leaf of those that were looked at. */
static void find_pages(struct bench *b, uint64_t *branch_out, uint64_t *leaf_out, uint64_t *run_out)
{
    struct kv_lmdb_node node;
    struct kv_lmdb_run run;
    *branch_out = b->extent.free_root;
    *run_out = 0;
    read_page(b, *branch_out);
    assert_int_equal(kv_lmdb_page_flags(b->page), KV_LMDB_PAGE_BRANCH);
    unsigned count = kv_lmdb_page_node_count(b->page, b->extent.page_bytes);
    for (unsigned i = 0; i < count && *run_out == 0; i++) {
        read_page(b, *branch_out);
        assert_true(kv_lmdb_page_node(&node, b->page, b->extent.page_bytes, i));
        *leaf_out = node.below;
        read_page(b, *leaf_out);
        assert_int_equal(kv_lmdb_page_flags(b->page), KV_LMDB_PAGE_LEAF);
        for (unsigned slot = 0; slot < kv_lmdb_page_node_count(b->page, b->extent.page_bytes); slot++) {
            assert_true(kv_lmdb_page_node(&node, b->page, b->extent.page_bytes, slot));
            if (kv_lmdb_page_node_run(&run, &node, b->extent.page_bytes, page_count(b)))
                *run_out = run.first;
        }
    }
    assert_int_not_equal(*run_out, 0);
}

static void set_u16(struct bench *b, uint64_t number, size_t at, uint16_t value)
{
    assert_int_equal(pwrite(b->fd, &value, sizeof value, (off_t)(number * b->extent.page_bytes + at)), sizeof value);
}

static void what_lmdb_wrote_is_sound(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t behind, free_count = 0, count = page_count(b);
    uint8_t *marks = (uint8_t *)calloc(1, count);
    assert_true(is_sound(b));
    assert_true(kv_lmdb_free_list_mark(&behind, marks, count, 3, b->fd, b->extent.free_root, b->extent.page_bytes, count - 1));
    for (uint64_t number = 0; number < count; number++) {
        assert_true(marks[number] == 0 || (marks[number] == 3 && number >= KV_LMDB_PAGE_FIRST));
        free_count += marks[number] == 3;
    }
    assert_true(free_count > 2500); /* the large values alone */
    assert_int_equal(behind, 0);
    free(marks);
}

/* LMDB would write to a "dirty" page where it is mapped for reading, and read one of another kind as that: either kills it. */
static void a_page_has_the_flag_of_its_kind_alone(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t pages[3];
    const uint16_t kinds[3] = {KV_LMDB_PAGE_BRANCH, KV_LMDB_PAGE_LEAF, KV_LMDB_PAGE_OVERFLOW};
    find_pages(b, &pages[0], &pages[1], &pages[2]);
    for (int i = 0; i < 3; i++) {
        for (unsigned bit = 0; bit < 16; bit++) {
            set_u16(b, pages[i], 10, (uint16_t)(kinds[i] ^ 1u << bit));
            if (is_sound(b))
                fail_msg("kind %u is believed with bit %u wrong", kinds[i], bit);
        }
        set_u16(b, pages[i], 10, kinds[i]);
        assert_true(is_sound(b));
    }
}

/* LMDB goes to the first node of a page without asking how many it has. */
static void a_page_without_nodes_is_none(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t pages[3];
    find_pages(b, &pages[0], &pages[1], &pages[2]);
    for (int i = 0; i < 2; i++) {
        uint16_t lower;
        read_page(b, pages[i]);
        memcpy(&lower, b->page + 12, sizeof lower);
        set_u16(b, pages[i], 12, KV_LMDB_PAGE_HEAD);
        assert_false(is_sound(b));
        set_u16(b, pages[i], 12, lower);
        assert_true(is_sound(b));
    }
}

/* A list begins with its count: a value too short for one is no list, wherever it lies. Nothing behind it is looked at. */
static void a_list_without_a_count_is_none(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t branch, leaf, run;
    find_pages(b, &branch, &leaf, &run);
    for (uint16_t size = 0; size < 8; size++) {
        read_page(b, leaf);
        unsigned count = kv_lmdb_page_node_count(b->page, b->extent.page_bytes);
        for (unsigned slot = 0; slot < count; slot++) {
            struct kv_lmdb_node node;
            assert_true(kv_lmdb_page_node(&node, b->page, b->extent.page_bytes, slot));
            size_t head = (size_t)(node.key.data - b->page) - 8;
            const uint16_t was[2] = {(uint16_t)node.size, (uint16_t)(node.size >> 16)};
            set_u16(b, leaf, head, size);
            set_u16(b, leaf, head + 2, 0);
            assert_false(is_sound(b));
            set_u16(b, leaf, head, was[0]);
            set_u16(b, leaf, head + 2, was[1]);
        }
    }
    assert_true(is_sound(b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_lmdb_wrote_is_sound),
        cmocka_unit_test(a_page_has_the_flag_of_its_kind_alone),
        cmocka_unit_test(a_page_without_nodes_is_none),
        cmocka_unit_test(a_list_without_a_count_is_none),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
