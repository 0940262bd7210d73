/* The order of spans. */
#include "common/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static int sign(int value) { return (value > 0) - (value < 0); }

static void spans_are_ordered_by_bytes_then_length(void **state)
{
    (void)state;
    /* Ascending. The empty one has no bytes to point at. */
    const struct span ascending[] = {span_of(NULL, 0),          SPAN_LITERAL("\0"),   SPAN_LITERAL("\0\0"), SPAN_LITERAL("\1"),
                                     SPAN_LITERAL("a"),         SPAN_LITERAL("a\0"),  SPAN_LITERAL("aa"),   SPAN_LITERAL("ab"),
                                     SPAN_LITERAL("b"),         SPAN_LITERAL("\x7f"), SPAN_LITERAL("\x80"), SPAN_LITERAL("\xff"),
                                     SPAN_LITERAL("\xff\0\0\0")};
    const int count = sizeof ascending / sizeof ascending[0];
    for (int a = 0; a < count; a++) {
        for (int b = 0; b < count; b++) {
            assert_int_equal(sign(span_compare(ascending[a], ascending[b])), sign(a - b));
            assert_int_equal(span_compare(ascending[a], ascending[b]) == 0, span_equal(ascending[a], ascending[b]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(spans_are_ordered_by_bytes_then_length)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
