/* Tiers: the first filter that matches decides; what is no tier is named. */
#include "broker/guard/tier.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void first_match_decides(void **state)
{
    (void)state;
    struct tier_table table = {0};
    struct errmsg msg;
    assert_null(tier_table_match(&table, SPAN_LITERAL("a")));
    assert_int_equal(tier_table_add(&table, "fleet/+/alarm log", 3, &msg), 0);
    assert_int_equal(tier_table_add(&table, "fleet/#   \t memory", 4, &msg), 0);
    assert_int_equal(tier_table_add(&table, "a b/+ memory", 5, &msg), 0); /* a filter may have a space in it */
    assert_int_equal(tier_table_match(&table, SPAN_LITERAL("fleet/7/alarm"))->line, 3);
    assert_int_equal(tier_table_match(&table, SPAN_LITERAL("fleet/7/alarm"))->durability, DURABILITY_LOG);
    assert_int_equal(tier_table_match(&table, SPAN_LITERAL("fleet/7/position"))->durability, DURABILITY_MEMORY);
    assert_int_equal(tier_table_match(&table, SPAN_LITERAL("fleet"))->line, 4);
    assert_int_equal(tier_table_match(&table, SPAN_LITERAL("a b/c"))->line, 5);
    assert_null(tier_table_match(&table, SPAN_LITERAL("b/c")));
    tier_table_deinit(&table);
}

static void says_what_was_expected(void **state)
{
    (void)state;
    static const char *const wrong[] = {"", "memory", " log", "a/# none", "a", "a/#/b log", "$share/g/a memory", "a#"};
    struct tier_table table = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct errmsg msg = {{0}};
        assert_int_equal(tier_table_add(&table, wrong[i], 1, &msg), ERR_INVALID);
        assert_non_null(strstr(msg.text, "expected FILTER memory|log"));
    }
    assert_int_equal(table.count, 0);
    tier_table_deinit(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_match_decides),
        cmocka_unit_test(says_what_was_expected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
