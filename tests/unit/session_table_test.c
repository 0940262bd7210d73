/* The session table against an array, while it grows and shrinks. */
#include "broker/session/session_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "tests/lib/check_random.h"

static void match_the_model(uint32_t reserved)
{
    struct check_random random;
    check_random_init(&random, check_random_seed(23));
    enum { IDS = 5000 };
    static struct model {
        struct session *sess;
        uint64_t number; /* of the last one */
    } model[IDS];
    memset(model, 0, sizeof model);
    struct session_table table;
    assert_int_equal(session_table_init(&table, 42), 0);
    session_table_reserve(&table, reserved);
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

static void matches_the_model(void **state)
{
    (void)state;
    static const uint32_t reserved[] = {0, 1, 16, 17, 31, 32, 33, 1023, 1024, 1025, 2500, 20000};
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
        match_the_model(reserved[i]);
}

static void add_many(struct session_table *table, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        char text[32];
        snprintf(text, sizeof text, "client-%u", i);
        assert_non_null(session_table_add(table, span_of_string(text), session_number_of(7, i + UINT64_C(1))));
    }
}

/* The same as one that grew, but made before: adding what was expected splits no bucket, and what is more makes it grow. */
static void what_was_reserved_does_not_grow(void **state)
{
    (void)state;
    static const uint32_t counts[] = {16, 17, 1000, 1024, 1025, 4096, 5001};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct session_table grown, reserved;
        assert_int_equal(session_table_init(&grown, 42), 0);
        assert_int_equal(session_table_init(&reserved, 42), 0);
        session_table_reserve(&reserved, counts[i]);
        assert_int_equal(session_table_bucket_count(&reserved), counts[i]);
        add_many(&grown, counts[i]);
        add_many(&reserved, counts[i]);
        assert_int_equal(session_table_bucket_count(&reserved), counts[i]);
        const struct session_buckets *a = &grown.by_client_id, *b = &reserved.by_client_id;
        assert_true(a->level == b->level && a->split == b->split && a->page_count == b->page_count && b->count == counts[i]);
        assert_non_null(session_table_add(&reserved, SPAN_LITERAL("one more"), session_number_of(7, 1000000)));
        assert_int_equal(session_table_bucket_count(&reserved), counts[i] + 1);
        session_table_deinit(&grown);
        session_table_deinit(&reserved);
    }
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_the_model), cmocka_unit_test(what_was_reserved_does_not_grow),
                                       cmocka_unit_test(numbers_are_spread_over_the_buckets)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
