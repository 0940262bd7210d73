/* crc32c.c: known values, pieces, and both implementations alike. */
#include "common/crc32c.h"

#include "common/bytes.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static uint8_t data[5000];

static void test_known_values(void **state)
{
    (void)state;
    uint8_t zeros[32] = {0}, ones[32], up[32], down[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++) {
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
    }
    /* RFC 3720 B.4, and the usual check value. */
    assert_int_equal(crc32c(0, zeros, 32), 0x8a9136aa);
    assert_int_equal(crc32c(0, ones, 32), 0x62a8ab43);
    assert_int_equal(crc32c(0, up, 32), 0x46dd794e);
    assert_int_equal(crc32c(0, down, 32), 0x113fdb5c);
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c_table(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c(0, NULL, 0), 0);
}

static void test_both_agree_at_every_size_and_offset(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * i * 31 + i / 7);
    for (size_t size = 0; size < 300; size++) {
        for (size_t offset = 0; offset < 9; offset++)
            assert_int_equal(crc32c(5, data + offset, size), crc32c_table(5, data + offset, size));
    }
    for (size_t size = 300; size <= sizeof data; size += 1 + size % 7) /* in lanes of the instruction */
        assert_int_equal(crc32c(0xdeadbeef, data + size % 5, size - size % 5), crc32c_table(0xdeadbeef, data + size % 5, size - size % 5));
}

static void test_pieces_make_the_whole(void **state)
{
    (void)state;
    uint32_t whole = crc32c(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut += 37)
        assert_int_equal(crc32c(crc32c(0, data, cut), data + cut, sizeof data - cut), whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_both_agree_at_every_size_and_offset),
        cmocka_unit_test(test_pieces_make_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
