/* file.c on the real file system, and sim_fs.c, which must forget exactly what was not synced. */
#include "common/file.h"

#include "common/bytes.h"
#include "tests/lib/sim_fs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static void count_name(void *context, const char *name)
{
    (void)name;
    ++*(int *)context;
}

/* The same for every implementation. */
static void behaves(struct fs *fs, const char *dir)
{
    char path[FILE_PATH_MAX], other[FILE_PATH_MAX], sub[FILE_PATH_MAX];
    struct file *file, *second;
    uint64_t size;
    size_t got;
    char bytes[32];
    int names = 0;
    assert_int_equal(file_path(path, dir, "a"), ERR_OK);
    assert_int_equal(file_path(other, dir, "b"), ERR_OK);
    assert_int_equal(file_path(sub, dir, "sub"), ERR_OK);
    assert_int_equal(fs_open(fs, &file, path, FILE_READ), ERR_NOTFOUND);
    assert_int_equal(fs_open(fs, &file, path, FILE_READ | FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE), ERR_OK);
    assert_int_equal(fs_open(fs, &second, path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE), ERR_EXISTS);
    assert_int_equal(file_pwrite(file, "hello", 5, 3), ERR_OK);
    struct iovec iov[3] = {{(char *)"ab", 2}, {(char *)"", 0}, {(char *)"cde", 3}};
    assert_int_equal(file_pwritev(file, iov, 3, 6), ERR_OK);
    assert_int_equal(file_size(file, &size), ERR_OK);
    assert_int_equal(size, 11);
    assert_int_equal(file_pread(file, &got, bytes, sizeof bytes, 0), ERR_OK);
    assert_int_equal(got, 11);
    assert_memory_equal(bytes, "\0\0\0helabcde", 11);
    assert_int_equal(file_pread(file, &got, bytes, sizeof bytes, 11), ERR_OK);
    assert_int_equal(got, 0);
    assert_int_equal(file_truncate(file, 4), ERR_OK);
    assert_int_equal(file_truncate(file, 6), ERR_OK);
    assert_int_equal(file_pread(file, &got, bytes, sizeof bytes, 0), ERR_OK);
    assert_int_equal(got, 6);
    assert_memory_equal(bytes, "\0\0\0h\0\0", 6);
    assert_int_equal(file_sync(file), ERR_OK);
    assert_int_equal(file_lock(file), ERR_OK);
    assert_int_equal(fs_open(fs, &second, path, FILE_READ), ERR_OK);
    assert_int_equal(file_lock(second), ERR_LOCKED);
    file_close(file);
    assert_int_equal(file_lock(second), ERR_OK);
    file_close(second);
    assert_int_equal(fs_mkdir(fs, sub), ERR_OK);
    assert_int_equal(fs_mkdir(fs, sub), ERR_EXISTS);
    assert_int_equal(fs_rename(fs, path, other), ERR_OK);
    assert_int_equal(fs_rename(fs, path, other), ERR_NOTFOUND);
    assert_int_equal(fs_sync_dir(fs, dir), ERR_OK);
    assert_int_equal(fs_list(fs, dir, &names, count_name), ERR_OK);
    assert_int_equal(names, 2);
    assert_int_equal(fs_list(fs, path, &names, count_name), ERR_NOTFOUND);
    assert_int_equal(fs_free_bytes(fs, &size, dir), ERR_OK);
    assert_true(size > 0);
    assert_int_equal(fs_unlink(fs, other), ERR_OK);
    assert_int_equal(fs_unlink(fs, other), ERR_NOTFOUND);
    uint64_t random[2] = {0, 0};
    assert_int_equal(fs_random(fs, random, sizeof random), ERR_OK);
    assert_true(random[0] != random[1]);
}

static void test_real_file_system(void **state)
{
    (void)state;
    char dir[] = "/tmp/tidegate-file-test-XXXXXX", sub[64];
    assert_non_null(mkdtemp(dir));
    behaves(fs_posix(), dir);
    snprintf(sub, sizeof sub, "%s/sub", dir);
    assert_int_equal(rmdir(sub), 0);
    assert_int_equal(rmdir(dir), 0);
}

static void test_file_system_in_memory(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(1, 512);
    assert_int_equal(fs_mkdir(sim_fs_fs(sim), "d"), ERR_OK);
    behaves(sim_fs_fs(sim), "d");
    behaves(sim_fs_fs(sim), "d/sub");
    sim_fs_free(sim);
}

/* Direct where it can be, without where it is refused; both write and read the same. */
static void direct_in(const char *template)
{
    char dir[64], path[96];
    snprintf(dir, sizeof dir, "%s", template);
    if (!mkdtemp(dir))
        return; /* no such file system here */
    snprintf(path, sizeof path, "%s/f", dir);
    struct file *file;
    uint64_t refused = fs_posix_direct_refused_count();
    assert_int_equal(fs_open(fs_posix(), &file, path, FILE_READ | FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_DIRECT | FILE_DSYNC),
                     ERR_OK);
    assert_int_equal(fs_posix_direct_refused_count() - refused, !file_is_direct(file));
    uint32_t alignment = file_alignment(file);
    assert_true(alignment >= FILE_ALIGNMENT_MIN && alignment <= FILE_ALIGNMENT_MAX && (alignment & (alignment - 1)) == 0);
    uint8_t *memory = (uint8_t *)aligned_alloc(4096, 16384);
    memset(memory, 7, 16384);
    struct iovec iov[2] = {{memory, 4096}, {memory + 4096, alignment}};
    assert_int_equal(file_pwritev(file, iov, 2, 4096), ERR_OK);
    size_t got;
    memset(memory, 0, 16384);
    assert_int_equal(file_pread(file, &got, memory, 16384, 0), ERR_OK);
    assert_int_equal(got, 8192 + alignment);
    assert_int_equal(memory[4095], 0);
    assert_int_equal(memory[4096], 7);
    assert_int_equal(memory[got - 1], 7);
    free(memory);
    file_close(file);
    unlink(path);
    rmdir(dir);
}

static void test_direct_and_its_refusal(void **state)
{
    (void)state;
    direct_in("/tmp/tidegate-file-test-XXXXXX");
    direct_in("/dev/shm/tidegate-file-test-XXXXXX");
}

static bool is_zero(struct sim_fs *sim, const char *path, uint64_t offset, uint64_t size)
{
    const uint8_t *data;
    uint64_t end;
    assert_int_equal(sim_fs_contents(sim, path, &data, &end), ERR_OK);
    for (uint64_t i = offset; i < offset + size && i < end; i++) {
        if (data[i])
            return false;
    }
    return true;
}

static void test_crash_keeps_what_was_synced_and_tears_the_rest(void **state)
{
    (void)state;
    int kept = 0, lost = 0, mixed = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct sim_fs *sim = sim_fs_new(seed, 512);
        struct file *file, *dsync;
        uint8_t ones[2048];
        memset(ones, 1, sizeof ones);
        assert_int_equal(fs_open(sim_fs_fs(sim), &file, "f", FILE_WRITE | FILE_CREATE), ERR_OK);
        assert_int_equal(fs_open(sim_fs_fs(sim), &dsync, "g", FILE_WRITE | FILE_CREATE | FILE_DSYNC), ERR_OK);
        assert_int_equal(fs_sync_dir(sim_fs_fs(sim), "."), ERR_OK);
        assert_int_equal(file_truncate(file, 8192), ERR_OK);
        assert_int_equal(file_pwrite(file, ones, 2048, 0), ERR_OK);
        assert_int_equal(file_sync(file), ERR_OK);
        assert_int_equal(file_pwrite(file, ones, 2048, 4096), ERR_OK);
        assert_int_equal(file_pwrite(dsync, ones, 2048, 0), ERR_OK);
        sim_fs_crash(sim);
        size_t got;
        assert_int_equal(file_pread(file, &got, ones, 1, 0), ERR_IO); /* dead */
        file_close(file);
        file_close(dsync);
        assert_false(is_zero(sim, "f", 0, 512) || is_zero(sim, "f", 1536, 512));
        assert_false(is_zero(sim, "g", 0, 512) || is_zero(sim, "g", 1536, 512));
        int sectors = 0;
        for (uint64_t at = 4096; at < 6144; at += 512)
            sectors += !is_zero(sim, "f", at, 512);
        kept += sectors == 4;
        lost += sectors == 0;
        mixed += sectors > 0 && sectors < 4;
        sim_fs_free(sim);
    }
    assert_true(kept > 10);
    assert_true(lost > 10);
    assert_true(mixed > 10);
}

static void test_names_need_a_directory_sync(void **state)
{
    (void)state;
    int there = 0, renamed = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct sim_fs *sim = sim_fs_new(seed, 512);
        struct fs *fs = sim_fs_fs(sim);
        struct file *file;
        assert_int_equal(fs_mkdir(fs, "d"), ERR_OK);
        assert_int_equal(fs_open(fs, &file, "d/a", FILE_WRITE | FILE_CREATE), ERR_OK);
        file_close(file);
        assert_int_equal(fs_sync_dir(fs, "d"), ERR_OK);
        assert_int_equal(fs_open(fs, &file, "d/new", FILE_WRITE | FILE_CREATE), ERR_OK);
        file_close(file);
        assert_int_equal(fs_rename(fs, "d/a", "d/b"), ERR_OK);
        sim_fs_crash(sim);
        assert_true(sim_fs_exists(sim, "d/a") != sim_fs_exists(sim, "d/b")); /* one of the two, never both or none */
        there += sim_fs_exists(sim, "d/new");
        renamed += sim_fs_exists(sim, "d/b");
        sim_fs_free(sim);
    }
    assert_true(there > 20 && there < 80);
    assert_true(renamed > 20 && renamed < 80);
}

static void test_failed_sync_loses_what_it_should_have_saved(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct sim_fs *sim = sim_fs_new(seed, 512);
        struct file *file;
        assert_int_equal(fs_open(sim_fs_fs(sim), &file, "f", FILE_WRITE | FILE_CREATE | FILE_DSYNC), ERR_OK);
        assert_int_equal(file_pwrite(file, "xxxx", 4, 0), ERR_OK);
        file_close(file);
        assert_int_equal(fs_sync_dir(sim_fs_fs(sim), ""), ERR_OK);
        assert_int_equal(fs_open(sim_fs_fs(sim), &file, "f", FILE_WRITE), ERR_OK);
        assert_int_equal(file_pwrite(file, "yyyy", 4, 0), ERR_OK);
        sim_fs_fail(sim, SIM_FS_SYNC, 1, ERR_IO, false);
        assert_int_equal(file_sync(file), ERR_IO);
        assert_int_equal(file_sync(file), ERR_OK); /* the second try seems to work ... */
        file_close(file);
        sim_fs_crash(sim);
        const uint8_t *data;
        uint64_t size;
        assert_int_equal(sim_fs_contents(sim, "f", &data, &size), ERR_OK);
        assert_memory_equal(data, "xxxx", 4); /* ... and has saved nothing */
        sim_fs_free(sim);
    }
}

static void test_held_write_is_visible_and_not_durable(void **state)
{
    (void)state;
    int torn = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct sim_fs *sim = sim_fs_new(seed, 512);
        struct file *file;
        uint8_t ones[1024];
        memset(ones, 1, sizeof ones);
        assert_int_equal(fs_open(sim_fs_fs(sim), &file, "f", FILE_WRITE | FILE_CREATE | FILE_DSYNC), ERR_OK);
        assert_int_equal(fs_sync_dir(sim_fs_fs(sim), ""), ERR_OK);
        assert_int_equal(file_truncate(file, 4096), ERR_OK);
        assert_int_equal(file_sync(file), ERR_OK);
        sim_fs_hold(sim, true);
        assert_int_equal(file_pwrite(file, ones, 1024, 0), ERR_OK);
        assert_true(sim_fs_has_held(sim));
        assert_false(is_zero(sim, "f", 0, 1024));
        if (seed % 2)
            sim_fs_complete(sim);
        assert_int_equal(sim_fs_has_held(sim), seed % 2 == 0);
        sim_fs_crash(sim);
        file_close(file);
        if (seed % 2)
            assert_false(is_zero(sim, "f", 0, 512) || is_zero(sim, "f", 512, 512));
        else
            torn += is_zero(sim, "f", 0, 512) || is_zero(sim, "f", 512, 512);
        sim_fs_free(sim);
    }
    assert_true(torn > 5);
}

static void test_space_runs_out_and_comes_back(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(1, 512);
    struct file *file;
    uint64_t free_bytes;
    sim_fs_set_free(sim, 1000);
    assert_int_equal(fs_open(sim_fs_fs(sim), &file, "f", FILE_WRITE | FILE_CREATE), ERR_OK);
    assert_int_equal(file_pwrite(file, "x", 1, 999), ERR_OK);
    assert_int_equal(file_pwrite(file, "x", 1, 1000), ERR_NOSPACE);
    assert_int_equal(file_pwrite(file, "y", 1, 5), ERR_OK);
    file_close(file);
    assert_int_equal(fs_unlink(sim_fs_fs(sim), "f"), ERR_OK);
    assert_int_equal(fs_sync_dir(sim_fs_fs(sim), ""), ERR_OK);
    assert_int_equal(fs_free_bytes(sim_fs_fs(sim), &free_bytes, "."), ERR_OK);
    assert_int_equal(free_bytes, 1000);
    sim_fs_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_file_system),
        cmocka_unit_test(test_file_system_in_memory),
        cmocka_unit_test(test_direct_and_its_refusal),
        cmocka_unit_test(test_crash_keeps_what_was_synced_and_tears_the_rest),
        cmocka_unit_test(test_names_need_a_directory_sync),
        cmocka_unit_test(test_failed_sync_loses_what_it_should_have_saved),
        cmocka_unit_test(test_held_write_is_visible_and_not_durable),
        cmocka_unit_test(test_space_runs_out_and_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
