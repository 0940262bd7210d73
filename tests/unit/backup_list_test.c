/* backup_list.c: a list comes back as it was, and no other text is one. */
#include "broker/ops/backup_list.h"

#include "common/crc32c.h"
#include "tests/lib/check_random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void make(struct backup_list *list, bool has_checkpoint)
{
    *list = (struct backup_list){.made_ns = 1795256287919738285,
                                 .broker_id = 0xfedcba9876543210,
                                 .format = 2,
                                 .epoch = 4000000000,
                                 .has_checkpoint = has_checkpoint,
                                 .end = {.position = {7, UINT64_MAX}, .place = {0x1f, 8192}}};
    if (has_checkpoint)
        list->checkpoint =
            (struct log_cursor_value){.broker_id = 1, .position = {6, 12345}, .place = {0x1e, 4096}, .reopen = {0x1d, UINT64_MAX}};
    assert_int_equal(backup_list_add(list, "log/000000000000001f.seg", UINT64_MAX, 0xffffffff), ERR_OK);
    assert_int_equal(backup_list_add(list, "log/identity", 4608, 0), ERR_OK);
    assert_int_equal(backup_list_add(list, "log/cursor.sink-2_B", 4608, 1), ERR_OK);
    for (int i = 1; i < 200; i++) {
        char name[64];
        snprintf(name, sizeof name, "log/%016x.seg", i);
        assert_int_equal(backup_list_add(list, name, (uint64_t)i, (uint32_t)i), ERR_OK);
    }
    assert_int_equal(backup_list_add(list, "checkpoint/data.mdb", 0, 2), ERR_OK);
    assert_int_equal(backup_list_add(list, "format", 18, 3), ERR_OK);
}

static void assert_same(const struct backup_list *a, const struct backup_list *b)
{
    assert_true(a->made_ns == b->made_ns && a->broker_id == b->broker_id && a->format == b->format && a->epoch == b->epoch);
    assert_true(a->has_checkpoint == b->has_checkpoint && a->checkpoint.broker_id == b->checkpoint.broker_id);
    assert_int_equal(log_cursor_compare(&a->checkpoint, &b->checkpoint), 0);
    assert_int_equal(log_place_compare(a->end.place, b->end.place), 0);
    assert_int_equal(log_position_compare(a->end.position, b->end.position), 0);
    assert_int_equal(a->file_count, b->file_count);
    for (size_t i = 0; i < a->file_count; i++) {
        assert_string_equal(a->files[i].name, b->files[i].name);
        assert_true(a->files[i].size == b->files[i].size && a->files[i].crc == b->files[i].crc);
    }
}

static void a_list_comes_back_as_it_was(void **state)
{
    (void)state;
    for (int has_checkpoint = 0; has_checkpoint < 2; has_checkpoint++) {
        struct backup_list list, read;
        struct buf text;
        struct errmsg msg = {{0}};
        make(&list, has_checkpoint);
        buf_init(&text, 1 << 20);
        assert_int_equal(backup_list_format(&text, &list), ERR_OK);
        assert_int_equal(backup_list_parse(&read, buf_span(&text), &msg), ERR_OK);
        assert_same(&list, &read);
        backup_list_deinit(&read);
        backup_list_deinit(&list);
        buf_deinit(&text);
    }
}

static enum err parse(const uint8_t *data, size_t size)
{
    struct backup_list read;
    struct errmsg msg = {{0}};
    uint8_t *copy = (uint8_t *)malloc(size + 1); /* of that size, so that a sanitizer sees a read past it */
    memcpy(copy, data, size);
    enum err err = backup_list_parse(&read, span_of(copy, size), &msg);
    assert_true(err == ERR_OK || msg.text[0]);
    backup_list_deinit(&read);
    free(copy);
    return err;
}

/* Every bit counts: no changed, shortened or lengthened text is a list. */
static void a_changed_list_is_none(void **state)
{
    (void)state;
    struct backup_list list;
    struct buf text;
    make(&list, true);
    list.file_count = 4;
    buf_init(&text, 1 << 20);
    assert_int_equal(backup_list_format(&text, &list), ERR_OK);
    for (size_t at = 0; at < text.size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            text.data[at] ^= (uint8_t)(1 << bit);
            assert_int_not_equal(parse(text.data, text.size), ERR_OK);
            text.data[at] ^= (uint8_t)(1 << bit);
        }
        assert_int_not_equal(parse(text.data, at), ERR_OK);
    }
    assert_int_equal(parse(text.data, text.size), ERR_OK);
    buf_put_string(&text, "file 00000000 0 format\n");
    assert_int_not_equal(parse(text.data, text.size), ERR_OK);
    buf_deinit(&text);
    backup_list_deinit(&list);
}

/* With a checksum that holds, the lines themselves are still looked at. */
static void lines_that_no_backup_writes_are_refused(void **state)
{
    (void)state;
    static const char head[] =
        "tidegate-broker backup 1\nmade 1\nformat 1\nbroker 01 epoch 1\ncheckpoint none\nend 1:1 place 01.seg:4096\n";
    static const struct {
        const char *text;
        enum err err;
    } cases[] = {
        {"", ERR_OK},
        {"file 00000001 5 log/state\n", ERR_OK},
        {"file 00000001 5 log/../x\n", ERR_CORRUPT},
        {"file 00000001 5 /etc/passwd\n", ERR_CORRUPT},
        {"file 00000001 5 log/cursor.a/b\n", ERR_CORRUPT},
        {"file 00000001 5\n", ERR_CORRUPT},
        {"file x 5 log/state\n", ERR_CORRUPT},
        {"end 1:1 place 01.seg:4096\n", ERR_CORRUPT},
        {"file 00000001 5 log/state \n", ERR_CORRUPT},
        {"\n", ERR_CORRUPT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        int size = snprintf(text, sizeof text, "%s%s", head, cases[i].text);
        size += snprintf(text + size, sizeof text - (size_t)size, "checksum %08x\n", crc32c(0, text, (size_t)size));
        assert_int_equal(parse((const uint8_t *)text, (size_t)size), cases[i].err);
    }
    assert_int_equal(parse((const uint8_t *)"tidegate-broker backup 2\n", 25), ERR_VERSION);
}

static void names_lead_nowhere_else(void **state)
{
    (void)state;
    static const char *const good[] = {"format",          "checkpoint/data.mdb",      "log/identity",   "log/state",
                                       "log/cursor.sink", "log/0123456789abcdef.seg", "log/cursor.A-_9"};
    static const char *const bad[] = {"",
                                      "/format",
                                      "../format",
                                      "log",
                                      "log/",
                                      "log/.",
                                      "log/..",
                                      "log/lock",
                                      "log/cursor.",
                                      "log/cursor.a.",
                                      "log/cursor./x",
                                      "log//identity",
                                      "checkpoint/lock.mdb",
                                      "log/0.seg",
                                      "log/0000000000000000.seg",
                                      "BACKUP"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(backup_list_is_name(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(backup_list_is_name(bad[i]));
    char text[200] = "log/cursor.";
    memset(text + 11, 'x', 63);
    assert_true(backup_list_is_name(text));
    text[74] = 'x';
    assert_false(backup_list_is_name(text));
}

static void rubbish_is_read_to_its_end_and_no_further(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, 1);
    for (int i = 0; i < 20000; i++) {
        uint8_t bytes[300];
        size_t size = (size_t)check_random_below(&random, sizeof bytes);
        for (size_t at = 0; at < size; at++)
            bytes[at] = (uint8_t) "tidegate-broker backup 1\n\0\xff 0:x"[check_random_below(&random, 32)];
        assert_int_not_equal(parse(bytes, size), ERR_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_comes_back_as_it_was),
        cmocka_unit_test(a_changed_list_is_none),
        cmocka_unit_test(lines_that_no_backup_writes_are_refused),
        cmocka_unit_test(names_lead_nowhere_else),
        cmocka_unit_test(rubbish_is_read_to_its_end_and_no_further),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
