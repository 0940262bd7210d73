/* Packed sequences come back, whatever they are, and what is regular is small. */
#include "broker/session/position_pack.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

#define COUNT_MAX 200

/* With something behind it, and not a byte more written than was said. */
static void comes_back(uint64_t base, const uint64_t *sequences, uint32_t count)
{
    static uint8_t bytes[POSITION_PACK_SIZE_MAX(COUNT_MAX) + 1];
    size_t size = position_pack(NULL, base, sequences, count);
    assert_true(size <= POSITION_PACK_SIZE_MAX(count));
    memset(bytes, 0xa5, sizeof bytes);
    assert_int_equal(position_pack(bytes, base, sequences, count), size);
    assert_int_equal(bytes[size], 0xa5);
    struct position_unpack unpack = position_unpack_of(span_of(bytes, sizeof bytes), base, count);
    assert_int_equal(unpack.size, size);
    uint64_t sequence;
    for (uint32_t i = 0; i < count; i++) {
        assert_true(position_unpack_next(&unpack, &sequence));
        assert_true(sequence == sequences[i]);
    }
    assert_false(position_unpack_next(&unpack, &sequence));
}

static void any_sequences_come_back(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    uint64_t sequences[COUNT_MAX];
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t count = (uint32_t)check_random_below(&random, round % 10 ? 20 : COUNT_MAX + 1);
        unsigned bits = (unsigned)check_random_below(&random, 65);
        uint64_t at = check_random_below(&random, 2) ? 0 : UINT64_MAX / 2;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t step = bits == 64 ? check_random_next(&random) : check_random_next(&random) & ((UINT64_C(1) << bits) - 1);
            sequences[i] = at = check_random_below(&random, 4) ? at + step : at - step;
        }
        comes_back(check_random_below(&random, 2) ? 0 : at, sequences, count);
    }
}

static void what_is_regular_is_small(void **state)
{
    (void)state;
    uint64_t sequences[20];
    for (uint32_t i = 0; i < 20; i++)
        sequences[i] = 123456789 + i * 20000;
    assert_int_equal(position_pack(NULL, sequences[19], sequences, 20), 3 + 1 + 3);
    for (uint32_t i = 0; i < 20; i++)
        sequences[i] += i % 3 * 1000; /* differences of 18,000 and 21,000 */
    assert_int_equal(position_pack(NULL, sequences[19], sequences, 20), 3 + 1 + 3 + (19 * 12 + 7) / 8);
    for (uint32_t i = 0; i < 20; i++)
        sequences[i] = 1000 - i * 50;
    assert_int_equal(position_pack(NULL, sequences[0], sequences, 20), 1 + 1 + 1);
    assert_int_equal(position_pack(NULL, sequences[0], sequences, 1), 1);
    assert_int_equal(position_pack(NULL, 0, sequences, 0), 0);
    for (uint32_t i = 0; i < 20; i++)
        sequences[i] = i + 1;
    assert_int_equal(position_pack(NULL, 0, sequences, 20), 1 + 1 + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_sequences_come_back), cmocka_unit_test(what_is_regular_is_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
