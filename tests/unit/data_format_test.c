#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "broker/durable/data_format.h"
#include "tests/lib/sim_fs.h"

static int setup(void **state)
{
    *state = sim_fs_new(1, 512);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    sim_fs_free(*state);
    return 0;
}

static void put(struct sim_fs *sim, const char *text)
{
    struct file *file;
    assert_int_equal(fs_open(sim_fs_fs(sim), &file, "data/format", FILE_WRITE | FILE_CREATE | FILE_TRUNCATE), 0);
    assert_int_equal(file_pwrite(file, text, strlen(text), 0), 0);
    file_close(file);
}

static void no_file_is_the_first_format(void **state)
{
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(sim_fs_fs(*state), "data"), 0);
    assert_int_equal(data_format_read(&version, sim_fs_fs(*state), "data", &msg), 0);
    assert_int_equal(version, DATA_FORMAT_LOG_ONLY);
}

static void what_was_written_survives_a_loss_of_power(void **state)
{
    struct fs *fs = sim_fs_fs(*state);
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(fs, "data"), 0);
    assert_int_equal(data_format_write(fs, "data", 2, &msg), 0);
    sim_fs_crash(*state);
    assert_int_equal(data_format_read(&version, fs, "data", &msg), 0);
    assert_int_equal(version, 2);
}

/* Also before anything else is there: to a start it would be a new directory. */
static void half_restored_is_refused(void **state)
{
    struct fs *fs = sim_fs_fs(*state);
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(fs, "new"), 0);
    assert_int_equal(data_format_read(&version, fs, "new", &msg), 0);
    assert_int_equal(fs_mkdir(fs, "new/log.restoring"), 0);
    assert_int_equal(data_format_read(&version, fs, "new", &msg), ERR_EXISTS);
    assert_non_null(strstr(msg.text, "new/log.restoring"));
    assert_int_equal(fs_mkdir(fs, "data"), 0);
    put(*state, "tidegate-broker 2\n");
    assert_int_equal(data_format_read(&version, fs, "data", &msg), 0);
    assert_int_equal(fs_mkdir(fs, "data/checkpoint.restoring"), 0);
    assert_int_equal(data_format_read(&version, fs, "data", &msg), ERR_EXISTS);
    assert_non_null(strstr(msg.text, "data/checkpoint.restoring"));
}

static void a_failed_sync_leaves_the_version_before(void **state)
{
    struct fs *fs = sim_fs_fs(*state);
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(fs, "data"), 0);
    assert_int_equal(data_format_write(fs, "data", 1, &msg), 0);
    sim_fs_fail(*state, SIM_FS_SYNC, 1, ERR_IO, false);
    assert_int_equal(data_format_write(fs, "data", 2, &msg), ERR_IO);
    sim_fs_crash(*state);
    assert_int_equal(data_format_read(&version, fs, "data", &msg), 0);
    assert_int_equal(version, 1);
}

static void a_newer_format_is_refused_by_name(void **state)
{
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(sim_fs_fs(*state), "data"), 0);
    put(*state, "tidegate-broker 3\n");
    assert_int_equal(data_format_read(&version, sim_fs_fs(*state), "data", &msg), ERR_VERSION);
    assert_non_null(strstr(msg.text, "data/format: format 3"));
}

static void what_is_no_format_is_corrupt(void **state)
{
    static const char *const texts[] = {
        "", "tidegate-broker", "tidegate-broker x\n", "tidegate-broker 0\n", "tidegate-broker 2", "mosquitto 2\n"};
    uint32_t version = 0;
    struct errmsg msg;
    assert_int_equal(fs_mkdir(sim_fs_fs(*state), "data"), 0);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        put(*state, texts[i]);
        assert_int_equal(data_format_read(&version, sim_fs_fs(*state), "data", &msg), ERR_CORRUPT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_file_is_the_first_format, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_written_survives_a_loss_of_power, setup, teardown),
        cmocka_unit_test_setup_teardown(half_restored_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_sync_leaves_the_version_before, setup, teardown),
        cmocka_unit_test_setup_teardown(a_newer_format_is_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_format_is_corrupt, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
