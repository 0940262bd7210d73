/* The session table against an array, while it grows and shrinks. */
#include "broker/session/session_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <stdio.h>

#include "tests/lib/check_random.h"

static void matches_the_model(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(23));
    enum { IDS = 5000 };
    static struct model {
        struct session *sess;
        uint32_t slot, generation; /* of the last one */
    } model[IDS];
    struct session_table table;
    assert_int_equal(session_table_init(&table, 42), 0);
    uint32_t count = 0;
    for (int step = 0; step < 200000; step++) {
        unsigned index = (unsigned)check_random_below(&random, IDS);
        char text[32];
        snprintf(text, sizeof text, "client-%u", index);
        struct span id = span_of_string(text);
        struct model *place = &model[index];
        assert_ptr_equal(session_table_find(&table, id), place->sess);
        if (place->generation)
            assert_ptr_equal(session_table_find_slot(&table, place->slot, place->generation), place->sess);
        bool adds = check_random_chance(&random, step / 50000 % 2 ? 1 : 3, 4);
        if (adds && !place->sess) {
            place->sess = session_table_add(&table, id);
            assert_non_null(place->sess);
            assert_true(span_equal(session_client_id(place->sess), id));
            place->slot = place->sess->slot;
            place->generation = place->sess->generation;
            count++;
        } else if (!adds && place->sess) {
            session_table_remove(&table, place->sess);
            place->sess = NULL;
            count--;
        }
        assert_int_equal(table.count, count);
    }
    uint32_t seen = 0;
    for (uint32_t slot = 0; slot < table.slot_count; slot++)
        seen += session_table_at(&table, slot) != NULL;
    assert_int_equal(seen, count);
    assert_null(session_table_find_slot(&table, UINT32_MAX, 1));
    session_table_deinit(&table);
}

static void a_slot_used_again_has_another_generation(void **state)
{
    (void)state;
    struct session_table table;
    assert_int_equal(session_table_init(&table, 42), 0);
    struct session *first = session_table_add(&table, SPAN_LITERAL("a"));
    uint32_t slot = first->slot, generation = first->generation;
    session_table_remove(&table, first);
    struct session *second = session_table_add(&table, SPAN_LITERAL("b"));
    assert_int_equal(second->slot, slot);
    assert_int_not_equal(second->generation, generation);
    assert_null(session_table_find_slot(&table, slot, generation));
    session_table_deinit(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_the_model), cmocka_unit_test(a_slot_used_again_has_another_generation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
