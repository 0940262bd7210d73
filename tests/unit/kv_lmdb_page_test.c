/* Pages of a damaged disk: whatever their bytes are, what comes out lies in the page or in the file. And pages of LMDB say what LMDB wrote.
 */
#include "broker/durable/kv_lmdb_page.h"

#include "tests/lib/check_random.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE 512
#define FILE_PAGES 4

static void put_u16(uint8_t *at, unsigned value) { memcpy(at, &(uint16_t){(uint16_t)value}, 2); }
static void put_u64(uint8_t *at, uint64_t value) { memcpy(at, &value, 8); }

static void begin_page(uint8_t *page, uint64_t number, unsigned flags, unsigned lower)
{
    memset(page, 0, PAGE);
    put_u64(page, number);
    put_u16(page + 10, flags);
    put_u16(page + 12, lower);
}

static void put_node(uint8_t *page, unsigned slot, unsigned at, uint32_t low, unsigned flags, unsigned key_size)
{
    put_u16(page + KV_LMDB_PAGE_HEAD + 2 * (size_t)slot, at);
    put_u16(page + at, low & 0xffff);
    put_u16(page + at + 2, low >> 16);
    put_u16(page + at + 4, flags);
    put_u16(page + at + 6, key_size);
}

static void a_leaf_and_a_branch(void **state)
{
    (void)state;
    uint8_t page[PAGE];
    struct kv_lmdb_node node;
    begin_page(page, 7, KV_LMDB_PAGE_LEAF, KV_LMDB_PAGE_HEAD + 4);
    put_node(page, 0, 100, 20, 0, 3);
    put_node(page, 1, 200, 70000, KV_LMDB_NODE_BIG, 5);
    put_u64(page + 200 + 8 + 5, 11);
    assert_int_equal(kv_lmdb_page_number(page), 7);
    assert_int_equal(kv_lmdb_page_node_count(page, PAGE), 2);
    assert_true(kv_lmdb_page_node(&node, page, PAGE, 0));
    assert_true(node.key.data == page + 108 && node.key.size == 3);
    assert_true(node.data.data == page + 111 && node.data.size == 20 && node.size == 20);
    assert_true(kv_lmdb_page_node(&node, page, PAGE, 1));
    assert_true(node.data.size == 8 && node.size == 70000);
    struct kv_lmdb_run run;
    uint64_t pages = (70000 + KV_LMDB_PAGE_HEAD + PAGE - 1) / PAGE;
    assert_true(kv_lmdb_page_node_run(&run, &node, PAGE, 11 + pages));
    assert_true(run.first == 11 && run.count == pages && run.size == 70000);
    assert_false(kv_lmdb_page_node_run(&run, &node, PAGE, 11 + pages - 1));
    put_u64(page + 200 + 8 + 5, 1); /* a meta page */
    assert_false(kv_lmdb_page_node_run(&run, &node, PAGE, UINT64_MAX));
    put_u64(page + 200 + 8 + 5, UINT64_MAX - 1); /* the sum overflows */
    assert_false(kv_lmdb_page_node_run(&run, &node, PAGE, UINT64_MAX));
    begin_page(page, 8, KV_LMDB_PAGE_BRANCH, KV_LMDB_PAGE_HEAD + 2);
    put_node(page, 0, 300, 0x55667788, 0x1122, 0);
    assert_true(kv_lmdb_page_node(&node, page, PAGE, 0));
    assert_true(node.below == UINT64_C(0x112255667788) && node.size == 0 && node.flags == 0 && node.data.size == 0);
}

/* For who only reads, a page is what its other bits say. */
static void what_is_in_memory_only_is_no_kind(void **state)
{
    (void)state;
    uint8_t page[PAGE];
    const unsigned memory = KV_LMDB_PAGE_DIRTY | KV_LMDB_PAGE_LOOSE | KV_LMDB_PAGE_KEEP;
    begin_page(page, 2, KV_LMDB_PAGE_LEAF | memory, KV_LMDB_PAGE_HEAD);
    assert_int_equal(kv_lmdb_page_kind(page), KV_LMDB_PAGE_LEAF);
    assert_int_equal(kv_lmdb_page_flags(page), KV_LMDB_PAGE_LEAF | memory);
    begin_page(page, 2, KV_LMDB_PAGE_LEAF | 0x20, KV_LMDB_PAGE_HEAD); /* keys of one size without nodes */
    assert_int_not_equal(kv_lmdb_page_kind(page), KV_LMDB_PAGE_LEAF);
}

static void a_tree_that_a_node_describes(void **state)
{
    (void)state;
    struct kv_lmdb_tree tree = {.entries = 3, .root = 5}, found;
    struct kv_lmdb_node node = {.data = span_of(&tree, sizeof tree), .size = sizeof tree, .flags = KV_LMDB_NODE_TREE};
    assert_true(kv_lmdb_page_node_tree(&found, &node));
    assert_true(found.entries == 3 && found.root == 5);
    node.flags = 0;
    assert_false(kv_lmdb_page_node_tree(&found, &node));
    node.flags = KV_LMDB_NODE_TREE | KV_LMDB_NODE_BIG;
    assert_false(kv_lmdb_page_node_tree(&found, &node));
    node.flags = KV_LMDB_NODE_TREE;
    node.size--;
    assert_false(kv_lmdb_page_node_tree(&found, &node));
}

static void any_bytes(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    unsigned good = 0, bad = 0, runs = 0, no_runs = 0;
    uint8_t *page = (uint8_t *)malloc(PAGE); /* of its exact size, for the sanitizers */
    for (int round = 0; round < 20000; round++) {
        for (int i = 0; i < PAGE; i++)
            page[i] = (uint8_t)check_random_next(&random);
        put_u16(page + 10, 1u << check_random_below(&random, 3));
        put_u16(page + 12, (unsigned)check_random_below(&random, PAGE + 20));
        unsigned count = kv_lmdb_page_node_count(page, PAGE);
        assert_true(KV_LMDB_PAGE_HEAD + 2 * count <= PAGE);
        for (unsigned slot = 0; slot < count; slot++) {
            struct kv_lmdb_node node;
            struct kv_lmdb_run run;
            struct kv_lmdb_tree tree;
            if (check_random_below(&random, 2)) { /* as likely in the page as not */
                unsigned at = (unsigned)check_random_below(&random, PAGE - 8);
                put_u16(page + KV_LMDB_PAGE_HEAD + 2 * (size_t)slot, at);
                put_u16(page + at + 6, (unsigned)check_random_below(&random, 80));
            }
            if (!kv_lmdb_page_node(&node, page, PAGE, slot)) {
                bad++;
                continue;
            }
            good++;
            assert_true(node.key.data >= page && node.key.data + node.key.size <= page + PAGE);
            assert_true(node.data.data >= page && node.data.data + node.data.size <= page + PAGE);
            uint64_t end = check_random_next(&random) >> check_random_below(&random, 64);
            bool is_run = kv_lmdb_page_node_run(&run, &node, PAGE, end);
            runs += is_run;
            no_runs += !is_run;
            assert_true(!is_run || (run.first >= 2 && run.first < end && run.count <= end - run.first && run.count * PAGE >= run.size));
            (void)kv_lmdb_page_node_tree(&tree, &node);
        }
    }
    free(page);
    assert_true(good > 1000 && bad > 1000 && runs > 10 && no_runs > 1000);
}

static void what_the_file_does_not_have(void **state)
{
    (void)state;
    FILE *file = tmpfile();
    assert_non_null(file);
    int fd = fileno(file);
    uint8_t page[PAGE], got[PAGE], head[KV_LMDB_PAGE_HEAD], value[2 * PAGE];
    for (uint64_t number = 0; number < FILE_PAGES; number++) {
        begin_page(page, number == 3 ? 9 : number, KV_LMDB_PAGE_OVERFLOW, 2);
        assert_int_equal(pwrite(fd, page, PAGE, (off_t)(number * PAGE)), PAGE);
    }
    assert_int_equal(ftruncate(fd, FILE_PAGES * PAGE - 1), 0);
    assert_int_equal(kv_lmdb_page_read_bytes(fd, got, PAGE, 2 * PAGE), ERR_OK);
    assert_int_equal(kv_lmdb_page_read_bytes(fd, got, PAGE, 3 * PAGE), ERR_NOTFOUND);
    assert_int_not_equal(kv_lmdb_page_read_bytes(fd, got, PAGE, UINT64_MAX - PAGE), ERR_OK);
    assert_int_not_equal(kv_lmdb_page_read_bytes(-1, got, PAGE, 0), ERR_OK);
    assert_true(kv_lmdb_page_read(fd, got, PAGE, 2, FILE_PAGES));
    assert_int_equal(kv_lmdb_page_run_length(got), 2);
    assert_false(kv_lmdb_page_read(fd, got, PAGE, 1, FILE_PAGES));       /* a meta page */
    assert_false(kv_lmdb_page_read(fd, got, PAGE, 2, 2));                /* behind the end */
    assert_false(kv_lmdb_page_read(fd, got, PAGE, 3, FILE_PAGES));       /* cut */
    assert_false(kv_lmdb_page_read_head(fd, head, PAGE, 3, FILE_PAGES)); /* another's */
    assert_true(kv_lmdb_page_read_head(fd, head, PAGE, 2, FILE_PAGES));
    assert_false(kv_lmdb_page_read(fd, got, PAGE, UINT64_MAX / PAGE + 3, UINT64_MAX)); /* the offset wraps to that of page 2 */
    struct kv_lmdb_run run = {.first = 2, .count = 2, .size = PAGE};
    assert_true(kv_lmdb_page_read_run(fd, value, PAGE, &run));
    run.size = 2 * PAGE - KV_LMDB_PAGE_HEAD;
    assert_false(kv_lmdb_page_read_run(fd, value, PAGE, &run));
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_leaf_and_a_branch),          cmocka_unit_test(what_is_in_memory_only_is_no_kind),
        cmocka_unit_test(a_tree_that_a_node_describes), cmocka_unit_test(any_bytes),
        cmocka_unit_test(what_the_file_does_not_have),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
