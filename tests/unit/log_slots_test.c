#include "common/log_slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/sim_fs.h"

static void test_slots_fall_back_to_the_value_before(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(3, 512);
    struct log_slots slots;
    uint64_t value = 0;
    assert_int_equal(log_slots_open(&slots, sim_fs_fs(sim), "f", 42, FILE_READ | FILE_WRITE | FILE_CREATE), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_NOTFOUND);
    for (uint64_t i = 1; i <= 7; i++)
        assert_int_equal(log_slots_write(&slots, &i, sizeof i), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 7);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * (4096 + 30)), ERR_OK); /* odd numbers are in the second slot */
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 6);
    value = 8;
    assert_int_equal(log_slots_write(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 8);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * (4096 + 30)), ERR_OK);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * 100), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_CORRUPT);
    log_slots_close(&slots);
    sim_fs_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_fall_back_to_the_value_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
