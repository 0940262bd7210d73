/* The manifest: round trips, every flipped bit, every failed operation of a commit, the fence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "sink/store/manifest.h"
#include "tests/lib/sim_fs.h"

#define DIRECTORY "p"

/* A manifest whose content follows from its generation. */
static void make(struct manifest *manifest, uint64_t generation)
{
    manifest_init(manifest, 4, 1);
    manifest->generation = generation;
    manifest->fence = 7;
    manifest->position = (struct log_cursor_value){9, {2, generation * 10}, {3, 4096}, {2, 512}};
    for (uint64_t i = generation % 5; i > 0; i--) {
        const struct manifest_segment segment = {.flush_first = i * 2, .flush_last = i * 2 + 1, .level = (uint32_t)i, .row_count = i};
        CHECK(manifest_add_segment(manifest, &segment) == ERR_OK);
        CHECK(manifest_raise_mark(manifest, i, (struct log_position){1, i}) == ERR_OK);
    }
    manifest->flush_next = 100;
}

static bool is_made(const struct manifest *manifest)
{
    struct manifest wanted;
    struct buf got_bytes, wanted_bytes;
    make(&wanted, manifest->generation);
    buf_init(&got_bytes, 1 << 20);
    buf_init(&wanted_bytes, 1 << 20);
    manifest_encode(&got_bytes, manifest);
    manifest_encode(&wanted_bytes, &wanted);
    bool is_equal = span_equal(buf_span(&got_bytes), buf_span(&wanted_bytes));
    buf_deinit(&got_bytes);
    buf_deinit(&wanted_bytes);
    manifest_deinit(&wanted);
    return is_equal;
}

static enum err store(struct fs *fs, uint64_t generation)
{
    struct manifest manifest;
    make(&manifest, generation);
    enum err err = manifest_store(&manifest, fs, DIRECTORY, NULL);
    manifest_deinit(&manifest);
    return err;
}

/* The generation that is loaded; its content is checked. */
static uint64_t load(struct fs *fs, unsigned *corrupt_count_out)
{
    struct manifest manifest;
    struct manifest_report report;
    CHECK(manifest_load(&manifest, &report, fs, DIRECTORY, 4, 1, NULL) == ERR_OK);
    uint64_t generation = manifest.generation;
    CHECK(report.is_new || is_made(&manifest));
    if (corrupt_count_out)
        *corrupt_count_out = report.corrupt_count;
    manifest_deinit(&manifest);
    return generation;
}

static struct sim_fs *sim_new(uint64_t seed)
{
    struct sim_fs *sim = sim_fs_new(seed, 512);
    CHECK(fs_mkdir(sim_fs_fs(sim), DIRECTORY) == ERR_OK);
    return sim;
}

static void test_segments_and_marks(void **state)
{
    struct manifest manifest;
    (void)state;
    make(&manifest, 4);
    assert_int_equal(manifest.segment_count, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(manifest.segments[i].flush_first, 2 * (i + 1));
    const struct manifest_segment missing = {.flush_first = 4, .flush_last = 5, .level = 1};
    assert_false(manifest_remove_segment(&manifest, &missing));
    const struct manifest_segment there = {.flush_first = 4, .flush_last = 5, .level = 2};
    assert_true(manifest_remove_segment(&manifest, &there));
    assert_int_equal(manifest.segment_count, 3);
    assert_int_equal(manifest_raise_mark(&manifest, 2, (struct log_position){1, 1}), ERR_OK);
    assert_int_equal(manifest_find_mark(&manifest, 2)->position.sequence, 2); /* never lowered */
    assert_int_equal(manifest_raise_mark(&manifest, 2, (struct log_position){2, 1}), ERR_OK);
    assert_int_equal(manifest_find_mark(&manifest, 2)->position.epoch, 2);
    assert_null(manifest_find_mark(&manifest, 99));
    manifest_deinit(&manifest);
}

static void test_a_damaged_slot_loses_nothing(void **state)
{
    struct sim_fs *sim = sim_new(1);
    struct fs *fs = sim_fs_fs(sim);
    const uint8_t *data;
    uint64_t size;
    unsigned corrupt_count;
    (void)state;
    assert_int_equal(load(fs, NULL), 0);
    for (uint64_t generation = 1; generation < 8; generation++)
        assert_int_equal(store(fs, generation), ERR_OK);
    assert_int_equal(sim_fs_contents(sim, DIRECTORY "/manifest.0", &data, &size), ERR_OK);
    for (int slot = 0; slot < 2; slot++) {
        const char *path = slot ? DIRECTORY "/manifest.1" : DIRECTORY "/manifest.0";
        for (uint64_t bit = 0; bit < size * 8; bit++) {
            assert_int_equal(sim_fs_flip_bit(sim, path, bit), ERR_OK);
            assert_int_equal(load(fs, &corrupt_count), 7);
            assert_int_equal(corrupt_count, 1);
            assert_int_equal(sim_fs_flip_bit(sim, path, bit), ERR_OK);
        }
    }
    assert_int_equal(sim_fs_flip_bit(sim, DIRECTORY "/manifest.0", 99), ERR_OK);
    assert_int_equal(sim_fs_flip_bit(sim, DIRECTORY "/manifest.1", 999), ERR_OK);
    struct manifest manifest;
    struct manifest_report report;
    assert_int_equal(manifest_load(&manifest, &report, fs, DIRECTORY, 4, 1, NULL), ERR_CORRUPT);
    sim_fs_free(sim);
}

static void test_a_commit_that_fails_or_is_cut(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct sim_fs *sim = sim_new(seed);
        struct fs *fs = sim_fs_fs(sim);
        uint64_t done = 0, tried = 0;
        for (int i = 0; i < 6; i++) {
            enum err why = sim_fs_draw(sim) % 2 ? ERR_IO : ERR_NOSPACE;
            sim_fs_fail(sim, SIM_FS_WRITE | SIM_FS_SYNC | SIM_FS_RENAME, sim_fs_draw(sim) % 12, why, false);
            enum err err = store(fs, ++tried);
            sim_fs_fail(sim, SIM_FS_ANY, 0, ERR_IO, false);
            if (!err)
                done = tried;
            if (sim_fs_draw(sim) % 3 == 0)
                sim_fs_crash(sim);
            else if (err == ERR_IO)
                sim_fs_kill(sim);
            uint64_t got = load(fs, NULL);
            assert_in_range(got, done, tried);
        }
        sim_fs_free(sim);
    }
}

static void test_the_fence(void **state)
{
    struct sim_fs *sim = sim_new(1);
    struct fs *fs = sim_fs_fs(sim);
    struct manifest other;
    (void)state;
    assert_int_equal(store(fs, 1), ERR_OK);
    make(&other, 2);
    other.fence = 8;
    assert_int_equal(manifest_store(&other, fs, DIRECTORY, NULL), ERR_OK);
    manifest_deinit(&other);
    assert_int_equal(store(fs, 3), ERR_LOCKED); /* fence 7 */
    struct manifest_report report;
    assert_int_equal(manifest_load(&other, &report, fs, DIRECTORY, 4, 2, NULL), ERR_CORRUPT); /* another partition's */
    sim_fs_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_segments_and_marks), cmocka_unit_test(test_a_damaged_slot_loses_nothing),
                                       cmocka_unit_test(test_a_commit_that_fails_or_is_cut), cmocka_unit_test(test_the_fence)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
