/* What is kept aside: whole lines, bounded memory and files, both kinds of payload, a crash in the middle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "sink/source/quarantine.h"
#include "tests/lib/sim_fs.h"

#define CURRENT "p/quarantine/current.jsonl"
#define PREVIOUS "p/quarantine/previous.jsonl"
#define FILES_MAX 8192 /* bytes of both */

struct fixture {
    struct sim_fs *sim;
    struct quarantine quarantine;
    struct errmsg msg;
    char text[2 * FILES_MAX];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->sim = sim_fs_new(1, 512);
    CHECK(fs_mkdir(sim_fs_fs(f->sim), "p") == ERR_OK);
    CHECK(quarantine_init(&f->quarantine, sim_fs_fs(f->sim), "p", FILES_MAX) == ERR_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    quarantine_deinit(&f->quarantine);
    sim_fs_free(f->sim);
    free(f);
    return 0;
}

static bool keep(struct fixture *f, struct span payload, int64_t row)
{
    const struct record rec = {.device = SPAN_LITERAL("d\"1"),
                               .topic = SPAN_LITERAL("t"),
                               .client_id = SPAN_LITERAL("c"),
                               .payload = payload,
                               .received_ns = 1700000000000000001,
                               .has_correlation = true,
                               .correlation = {0x01, 0xff}};
    return quarantine_add(&f->quarantine, REJECT_NOT_JSON, &rec, 0xabc, (struct log_position){2, 3}, row);
}

static enum err write_taken(struct fixture *f)
{
    assert_true(quarantine_take(&f->quarantine));
    enum err err = quarantine_write(&f->quarantine, &f->msg);
    if (!err)
        quarantine_done(&f->quarantine);
    return err;
}

static const char *contents(struct fixture *f, const char *path)
{
    const uint8_t *data;
    uint64_t size;
    f->text[0] = 0;
    if (sim_fs_contents(f->sim, path, &data, &size))
        return f->text;
    assert_true(size < sizeof f->text);
    memcpy(f->text, data, size);
    f->text[size] = 0;
    return f->text;
}

static void an_entry_says_all_there_is(void **state)
{
    struct fixture *f = *state;
    assert_true(quarantine_is_empty(&f->quarantine));
    assert_true(keep(f, SPAN_LITERAL("a\tb"), -1));
    assert_true(keep(f, SPAN_LITERAL("\xff\x00"), 7));
    assert_true(quarantine_add(&f->quarantine, REJECT_BAD_RECORD, NULL, 1, (struct log_position){1, 1}, -1));
    assert_int_equal(f->quarantine.gathered_count, 3);
    assert_int_equal(write_taken(f), ERR_OK);
    assert_true(quarantine_is_empty(&f->quarantine));
    assert_string_equal(
        contents(f, CURRENT),
        "{\"reason\":\"not_json\",\"text\":\"the payload is not JSON\",\"broker\":\"0000000000000abc\",\"epoch\":2,\"sequence\":3,"
        "\"received\":\"2023-11-14T22:13:20.000000001Z\",\"device\":\"d\\\"1\",\"topic\":\"t\",\"client\":\"c\","
        "\"correlation\":\"01ff0000000000000000000000000000\",\"size\":3,\"payload\":\"a\\tb\"}\n"
        "{\"reason\":\"not_json\",\"text\":\"the payload is not JSON\",\"broker\":\"0000000000000abc\",\"epoch\":2,\"sequence\":3,"
        "\"row\":7,\"received\":\"2023-11-14T22:13:20.000000001Z\",\"device\":\"d\\\"1\",\"topic\":\"t\",\"client\":\"c\","
        "\"correlation\":\"01ff0000000000000000000000000000\",\"size\":2,\"payload_hex\":\"ff00\"}\n"
        "{\"reason\":\"bad_record\",\"text\":\"the record of the log cannot be decoded\",\"broker\":\"0000000000000001\","
        "\"epoch\":1,\"sequence\":1}\n");
}

static void memory_and_files_are_bounded(void **state)
{
    struct fixture *f = *state;
    static char long_text[QUARANTINE_PAYLOAD_MAX * 2];
    memset(long_text, 'x', sizeof long_text);
    assert_false(keep(f, span_of(long_text, sizeof long_text), -1)); /* larger than a file: not kept, and said so */
    size_t kept = 0;
    while (keep(f, span_of(long_text, 100), -1))
        kept++;
    assert_true(f->quarantine.gathered.size <= FILES_MAX / 2);
    assert_int_equal(f->quarantine.gathered_count, kept);
    for (int round = 0; round < 5; round++) {
        if (round > 0)
            assert_true(keep(f, span_of(long_text, (size_t)(1000 + round)), -1));
        assert_int_equal(write_taken(f), ERR_OK);
        assert_true(strlen(contents(f, CURRENT)) <= FILES_MAX / 2);
        assert_true(strlen(contents(f, PREVIOUS)) <= FILES_MAX / 2);
    }
    assert_true(sim_fs_exists(f->sim, PREVIOUS));
    assert_non_null(strstr(contents(f, CURRENT), "\"size\":1004"));
}

static void nothing_is_lost_by_a_full_disk(void **state)
{
    struct fixture *f = *state;
    assert_true(keep(f, SPAN_LITERAL("first"), -1));
    sim_fs_set_free(f->sim, 0);
    assert_int_equal(write_taken(f), ERR_NOSPACE);
    assert_true(keep(f, SPAN_LITERAL("second"), -1));
    assert_false(quarantine_take(&f->quarantine)); /* one at a time */
    sim_fs_set_free(f->sim, UINT64_MAX);
    assert_int_equal(quarantine_write(&f->quarantine, &f->msg), ERR_OK);
    quarantine_done(&f->quarantine);
    assert_int_equal(write_taken(f), ERR_OK);
    const char *text = contents(f, CURRENT);
    assert_non_null(strstr(text, "\"payload\":\"first\""));
    assert_null(strstr(strstr(text, "first") + 1, "first")); /* once */
    assert_non_null(strstr(text, "\"payload\":\"second\""));
}

static void half_a_line_spoils_no_other(void **state)
{
    struct fixture *f = *state;
    assert_true(keep(f, SPAN_LITERAL("first"), -1));
    assert_int_equal(write_taken(f), ERR_OK);
    sim_fs_crash(f->sim);
    quarantine_deinit(&f->quarantine);
    struct file *file;
    assert_int_equal(fs_open(sim_fs_fs(f->sim), &file, CURRENT, FILE_READ | FILE_WRITE), ERR_OK);
    uint64_t size;
    assert_int_equal(file_size(file, &size), ERR_OK);
    assert_int_equal(file_pwrite(file, "{\"rea", 5, size), ERR_OK);
    file_close(file);
    assert_int_equal(quarantine_init(&f->quarantine, sim_fs_fs(f->sim), "p", FILES_MAX), ERR_OK);
    assert_true(keep(f, SPAN_LITERAL("second"), -1));
    assert_int_equal(write_taken(f), ERR_OK);
    const char *text = contents(f, CURRENT);
    assert_non_null(strstr(text, "\"first\"}\n"));
    assert_non_null(strstr(text, "{\"rea\n{\"reason\":"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_entry_says_all_there_is, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_and_files_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_lost_by_a_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(half_a_line_spoils_no_other, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
