#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/data_dir.h"

static char base[] = "/tmp/data_dir_test.XXXXXX";

static void path_of(char *path, const char *name) { snprintf(path, 300, "%s/%s", base, name); }

static void a_directory_is_made_with_its_parents(void **state)
{
    (void)state;
    char path[300];
    struct data_dir dir;
    struct errmsg msg;
    struct stat status;
    path_of(path, "a/b//c/");
    assert_int_equal(data_dir_open(&dir, path, "lock", &msg), 0);
    path_of(path, "a/b//c");
    assert_string_equal(dir.path, path);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0750);
    data_dir_close(&dir);
    assert_int_equal(data_dir_open(&dir, path, "lock", &msg), 0);
    data_dir_close(&dir);
}

/* flock belongs to the open file, so a second open in this process stands for a second process; a child proves it. */
static void a_second_instance_learns_who_holds_it(void **state)
{
    (void)state;
    char path[300], expected[400];
    struct data_dir first, second;
    struct errmsg msg;
    path_of(path, "locked");
    assert_int_equal(data_dir_open(&first, path, "lock", &msg), 0);
    assert_int_equal(data_dir_open(&second, path, "lock", &msg), ERR_LOCKED);
    snprintf(expected, sizeof expected, "%s/lock: held by another process, pid %ld", path, (long)getpid());
    assert_string_equal(msg.text, expected);
    pid_t child = fork();
    if (child == 0)
        _exit(data_dir_open(&second, path, "lock", &msg) == ERR_LOCKED ? 0 : 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    data_dir_close(&first);
    assert_int_equal(data_dir_open(&second, path, "lock", &msg), 0);
    data_dir_close(&second);
}

/* The kernel gives up the lock with the process; a pid that is left in the file holds nobody up. */
static void a_lock_ends_with_its_process(void **state)
{
    (void)state;
    char path[300];
    struct data_dir dir;
    struct errmsg msg;
    path_of(path, "dies");
    pid_t child = fork();
    if (child == 0)
        _exit(data_dir_open(&dir, path, "lock", &msg) == 0 ? 0 : 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(data_dir_open(&dir, path, "lock", &msg), 0);
    data_dir_close(&dir);
}

static void what_cannot_be_a_data_directory_is_said(void **state)
{
    (void)state;
    char path[300];
    struct data_dir dir;
    struct errmsg msg;
    assert_int_equal(data_dir_open(&dir, "", "lock", &msg), ERR_INVALID);
    path_of(path, "file");
    FILE *file = fopen(path, "w");
    fclose(file);
    assert_int_equal(data_dir_open(&dir, path, "lock", &msg), ERR_INVALID);
    assert_non_null(strstr(msg.text, "is not a directory"));
    path_of(path, "file/below");
    assert_int_not_equal(data_dir_open(&dir, path, "lock", &msg), 0);
    assert_int_not_equal(data_dir_open(&dir, "/proc/nothing/here", "lock", &msg), 0);
    assert_non_null(strstr(msg.text, "/proc/nothing"));
    if (geteuid() != 0) {
        path_of(path, "readonly");
        assert_int_equal(mkdir(path, 0550), 0);
        assert_int_equal(data_dir_open(&dir, path, "lock", &msg), ERR_PERMISSION);
        assert_non_null(strstr(msg.text, "cannot write into the data directory"));
    }
}

static void free_space_is_told(void **state)
{
    (void)state;
    uint64_t free_bytes = 0, total_bytes = 0;
    assert_int_equal(data_dir_free_space(base, &free_bytes, &total_bytes), 0);
    assert_true(total_bytes > 0);
    assert_true(free_bytes <= total_bytes);
    assert_int_equal(data_dir_free_space("/nonexistent", &free_bytes, &total_bytes), ERR_NOTFOUND);
}

static int make_base(void **state)
{
    (void)state;
    return mkdtemp(base) ? 0 : -1;
}

static int remove_base(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_is_made_with_its_parents),
        cmocka_unit_test(a_second_instance_learns_who_holds_it),
        cmocka_unit_test(a_lock_ends_with_its_process),
        cmocka_unit_test(what_cannot_be_a_data_directory_is_said),
        cmocka_unit_test(free_space_is_told),
    };
    return cmocka_run_group_tests(tests, make_base, remove_base);
}
