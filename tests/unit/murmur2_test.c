#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/murmur2.h"

/* What the Java clients' own tests expect. */
static void known_vectors(void **state)
{
    (void)state;
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("21")), -973932308);
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("foobar")), -790332482);
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("a-little-bit-long-string")), -985981536);
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("a-little-bit-longer-string")), -1486304829);
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8")), -58897971);
    assert_int_equal((int32_t)murmur2(SPAN_LITERAL("abc")), 479470107);
}

static void partitions_drop_the_sign(void **state)
{
    (void)state;
    /* -973932308 & 0x7fffffff = 1173551340 */
    assert_int_equal(murmur2_partition(SPAN_LITERAL("21"), 7), 1173551340 % 7);
    assert_int_equal(murmur2_partition(SPAN_LITERAL("21"), 1000000007), 1173551340 % 1000000007);
    assert_int_equal(murmur2_partition(SPAN_LITERAL("abc"), 12), 479470107 % 12);
    assert_int_equal(murmur2_partition(SPAN_LITERAL(""), 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_vectors),
        cmocka_unit_test(partitions_drop_the_sign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
