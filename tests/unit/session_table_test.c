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
        uint64_t number; /* of the last one */
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
        if (place->number)
            assert_ptr_equal(session_table_find_number(&table, place->number), place->sess);
        bool adds = check_random_chance(&random, step / 50000 % 2 ? 1 : 3, 4);
        if (adds && !place->sess) {
            place->sess = session_table_add(&table, id, session_number_of(3, 64 * (uint64_t)step + 5));
            assert_non_null(place->sess);
            assert_true(span_equal(session_client_id(place->sess), id));
            place->number = place->sess->number;
            count++;
        } else if (!adds && place->sess) {
            session_table_remove(&table, place->sess);
            place->sess = NULL;
            count--;
        }
        assert_int_equal(table.count, count);
    }
    uint32_t seen = 0;
    for (unsigned i = 0; i < IDS; i++)
        seen += model[i].sess && session_table_find_number(&table, model[i].number) == model[i].sess;
    assert_int_equal(seen, count);
    assert_null(session_table_find_number(&table, 0));
    session_table_deinit(&table);
}

static uint32_t longest_chain(const struct session_table *table)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < table->by_number.count; i++) {
        uint32_t length = 0;
        for (struct session *sess = table->by_number.pages[i / SESSION_TABLE_PAGE][i % SESSION_TABLE_PAGE]; sess;
             sess = sess->next_by_number)
            length++;
        longest = length > longest ? length : longest;
    }
    return longest;
}

/* Those of one shard of 64 lie 64 apart. */
static void numbers_are_spread_over_the_buckets(void **state)
{
    (void)state;
    struct session_table table;
    assert_int_equal(session_table_init(&table, 42), 0);
    for (uint64_t i = 0; i < 20000; i++) {
        char text[32];
        snprintf(text, sizeof text, "client-%u", (unsigned)i);
        assert_non_null(session_table_add(&table, span_of_string(text), session_number_of(7, 64 * i + 1)));
    }
    assert_true(longest_chain(&table) <= 16);
    session_table_deinit(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_the_model), cmocka_unit_test(numbers_are_spread_over_the_buckets)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
