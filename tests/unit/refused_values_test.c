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
    for (uint64_t ticket = 3; ticket <= 3000; ticket += 3) { /* answers are put with their ticket as time */
        refused_values_add(
            &refused, &(struct refused_value){
                          .ticket = ticket, .number = 10000 - ticket, .wait_block = REFUSED_VALUE_LATE, .last_put_ns = (int64_t)ticket});
        if (ticket % 6 == 0)
            refused_values_on_logged(&refused, 10000 - ticket, ticket / 3);
        refused_values_on_logged(&refused, 1, 1); /* nobody's */
        for (; reached + 100 < ticket; reached++) {
            assert_int_equal(refused_values_has(&refused, reached), reached % 3 == 0 && reached > 0);
            for (int again = 0; again < 2; again++) {
                const struct refused_value *value = refused_values_reach(&refused, reached, (int64_t)reached);
                assert_int_equal(value != NULL, reached % 3 == 0 && reached > 0);
                if (value)
                    assert_true(value->wait_block == (reached % 6 == 0 ? reached / 3 : REFUSED_VALUE_LATE));
            }
        }
        assert_true(refused.capacity <= 128);
    }
    assert_null(refused_values_reach(&refused, 3001, 3001)); /* all are forgotten */
    assert_false(refused_values_has(&refused, 3000));
    refused_values_deinit(&refused);
}

/* Answers of a ticket behind those of later tickets: kept until one leaves that was put behind the last. */
static void a_ticket_is_kept_while_it_may_be_answered(void **state)
{
    (void)state;
    struct refused_values refused = {0};
    refused_values_add(&refused, &(struct refused_value){.ticket = 5, .number = 1, .last_put_ns = 100});
    refused_values_add(&refused, &(struct refused_value){.ticket = 6, .number = 2, .last_put_ns = 100});
    refused_values_add(&refused, &(struct refused_value){.ticket = 7, .number = 3, .last_put_ns = REFUSED_VALUE_UNANSWERED});
    refused_values_add(&refused, &(struct refused_value){.ticket = 8, .number = 4, .last_put_ns = 200});
    uint64_t tickets[] = {5, 6, 5, 6, 5};
    for (int i = 0; i < 5; i++)
        assert_int_equal(refused_values_reach(&refused, tickets[i], i < 4 ? 90 : 100)->ticket, tickets[i]);
    assert_int_equal(refused_values_reach(&refused, 8, 150)->ticket, 8);
    assert_false(refused_values_has(&refused, 5));
    assert_false(refused_values_has(&refused, 6));
    assert_null(refused_values_reach(&refused, 9, 300));
    assert_true(refused_values_has(&refused, 7)); /* its answer is still to come */
    refused_values_on_answered(&refused, 7, 310);
    refused_values_on_answered(&refused, 9, 310); /* nobody's */
    assert_int_equal(refused_values_reach(&refused, 7, 310)->ticket, 7);
    assert_null(refused_values_reach(&refused, 10, 311));
    assert_false(refused_values_has(&refused, 7));
    assert_false(refused_values_has(&refused, 8));
    refused_values_deinit(&refused);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tickets_are_reached_in_order),
        cmocka_unit_test(a_ticket_is_kept_while_it_may_be_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
