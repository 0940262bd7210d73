/* The set of open incoming identifiers against an array of flags. */
#include "broker/session/inbound_ids.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static void matches_the_model(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    static uint64_t model[65536]; /* wait + 1, 0 = not in */
    struct inbound_ids ids = {0};
    uint32_t count = 0;
    for (int step = 0; step < 200000; step++) {
        /* Waves: the set grows to thousands and shrinks to nothing. */
        uint16_t id = (uint16_t)(1 + check_random_below(&random, step / 50000 % 2 ? 65535 : 40));
        struct inbound_id *found = inbound_ids_find(&ids, id);
        assert_int_equal(found != NULL, model[id] != 0);
        if (found)
            assert_int_equal(found->wait_block, model[id] - 1);
        bool adds = step % 50000 < 25000 ? check_random_chance(&random, 2, 3) : check_random_chance(&random, 1, 3);
        if (adds && !found) {
            assert_int_equal(inbound_ids_add(&ids, id, (uint64_t)step), 0);
            model[id] = (uint64_t)step + 1;
            count++;
        } else if (!adds) {
            inbound_ids_remove(&ids, id);
            count -= model[id] != 0;
            model[id] = 0;
        }
        assert_int_equal(ids.count, count);
    }
    for (uint32_t id = 1; id <= 65535; id++)
        inbound_ids_remove(&ids, (uint16_t)id);
    assert_int_equal(ids.count, 0);
    assert_null(ids.cells); /* nothing is allocated while it is empty */
}

static void holds_every_identifier(void **state)
{
    (void)state;
    struct inbound_ids ids = {0};
    for (uint32_t id = 1; id <= 65535; id++)
        assert_int_equal(inbound_ids_add(&ids, (uint16_t)id, id), 0);
    for (uint32_t id = 1; id <= 65535; id++)
        assert_int_equal(inbound_ids_find(&ids, (uint16_t)id)->wait_block, id);
    inbound_ids_uncount(&ids);
    assert_false(inbound_ids_find(&ids, 77)->is_counted);
    inbound_ids_deinit(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_the_model), cmocka_unit_test(holds_every_identifier)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
