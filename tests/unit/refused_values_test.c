/* Retained values that were refused: found by ticket, told their block by number. */
#include "broker/core/refused_values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void tickets_are_reached_in_order(void **state)
{
    (void)state;
    struct refused_values refused = {0};
    uint64_t reached = 0;
    for (uint64_t ticket = 3; ticket <= 3000; ticket += 3) {
        refused_values_add(&refused, &(struct refused_value){.ticket = ticket, .number = 10000 - ticket, .wait_block = REFUSED_VALUE_LATE});
        if (ticket % 6 == 0)
            refused_values_on_logged(&refused, 10000 - ticket, ticket / 3);
        refused_values_on_logged(&refused, 1, 1); /* nobody's */
        for (; reached + 100 < ticket; reached++) {
            assert_int_equal(refused_values_has(&refused, reached), reached % 3 == 0 && reached > 0);
            for (int again = 0; again < 2; again++) {
                const struct refused_value *value = refused_values_reach(&refused, reached);
                assert_int_equal(value != NULL, reached % 3 == 0 && reached > 0);
                if (value)
                    assert_true(value->wait_block == (reached % 6 == 0 ? reached / 3 : REFUSED_VALUE_LATE));
            }
        }
        assert_true(refused.capacity <= 128);
    }
    assert_null(refused_values_reach(&refused, 3001)); /* all are forgotten */
    assert_false(refused_values_has(&refused, 3000));
    refused_values_deinit(&refused);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tickets_are_reached_in_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
