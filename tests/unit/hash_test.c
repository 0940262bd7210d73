#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/hash.h"
#include "tests/lib/check_random.h"

static void hash_depends_on_bytes_and_seed(void **state)
{
    (void)state;
    assert_true(hash_bytes("client", 6, 1) == hash_span(SPAN_LITERAL("client"), 1));
    assert_false(hash_bytes("client", 6, 1) == hash_bytes("client", 6, 2));
    assert_false(hash_bytes("client", 6, 1) == hash_bytes("cliens", 6, 1));
    assert_false(hash_bytes("", 0, 1) == hash_bytes("", 0, 2));
    /* the published value of XXH3_64bits for no input and seed 0 */
    assert_true(hash_bytes("", 0, 0) == UINT64_C(0x2d06800538d394c2));
}

static void indices_are_spread_and_in_range(void **state)
{
    (void)state;
    uint32_t counts[7] = {0};
    for (uint64_t i = 0; i < 70000; i++) {
        uint32_t index = hash_to_index(hash_u64(i, 42), 7);
        assert_true(index < 7);
        counts[index]++;
    }
    for (int i = 0; i < 7; i++) {
        assert_true(counts[i] > 9000);
        assert_true(counts[i] < 11000);
    }
    assert_int_equal(hash_to_index(UINT64_MAX, 1), 0);
    assert_int_equal(hash_to_index(UINT64_MAX, 5), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_depends_on_bytes_and_seed),
        cmocka_unit_test(indices_are_spread_and_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
