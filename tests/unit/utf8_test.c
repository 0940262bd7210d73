#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "tests/lib/check_random.h"

static size_t encode(uint32_t c, uint8_t *at)
{
    if (c < 0x80) {
        at[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        at[0] = (uint8_t)(0xc0 | c >> 6);
        at[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        at[0] = (uint8_t)(0xe0 | c >> 12);
        at[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        at[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    at[0] = (uint8_t)(0xf0 | c >> 18);
    at[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    at[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    at[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

/* The slow checker, from another definition: read the bits that the lead byte announces, then see whether writing them gives the same
 * bytes. */
static bool slow_is_valid(const uint8_t *at, size_t size)
{
    while (size > 0) {
        size_t length = at[0] < 0x80 ? 1 : (at[0] & 0xe0) == 0xc0 ? 2 : (at[0] & 0xf0) == 0xe0 ? 3 : (at[0] & 0xf8) == 0xf0 ? 4 : 0;
        if (length == 0 || length > size)
            return false;
        uint32_t c = length == 1 ? at[0] : at[0] & (0xffu >> (length + 1));
        for (size_t i = 1; i < length; i++)
            c = c << 6 | (at[i] & 0x3f);
        uint8_t again[4];
        if (c == 0 || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
            return false;
        if (encode(c, again) != length || memcmp(again, at, length) != 0)
            return false;
        at += length;
        size -= length;
    }
    return true;
}

static void assert_same_verdict(const uint8_t *bytes, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1); /* so that the sanitizer sees a read past the end */
    if (size)
        memcpy(exact, bytes, size);
    bool is_valid = utf8_is_valid(span_of(exact, size));
    if (is_valid != slow_is_valid(exact, size))
        print_message("size %zu, first %02x\n", size, size ? exact[0] : 0);
    assert_int_equal(is_valid, slow_is_valid(exact, size));
    free(exact);
}

static void all_short_sequences_agree_with_the_slow_checker(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 256; first++)
        for (uint32_t second = 0; second < 256; second++)
            for (uint32_t third = 0; third < 256; third += 5) {
                uint8_t bytes[4] = {(uint8_t)first, (uint8_t)second, (uint8_t)third, 0x80};
                assert_same_verdict(bytes, 3);
                assert_same_verdict(bytes, 4);
            }
}

static void random_texts_agree_with_the_slow_checker(void **state)
{
    (void)state;
    static const uint32_t edges[] = {1, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff, 'a'};
    struct check_random random;
    uint8_t bytes[256];
    check_random_init(&random, check_random_seed(2));
    for (int round = 0; round < 50000; round++) {
        size_t size = 0;
        size_t characters = check_random_below(&random, 40);
        for (size_t i = 0; i < characters; i++) {
            uint32_t c = check_random_chance(&random, 3, 4) ? (uint32_t)check_random_between(&random, 1, 0x7f)
                                                            : edges[check_random_below(&random, sizeof edges / sizeof edges[0])];
            size += encode(c, bytes + size);
        }
        assert_true(utf8_is_valid(span_of(bytes, size)));
        assert_same_verdict(bytes, size);
        if (size > 0) {
            bytes[check_random_below(&random, size)] = (uint8_t)check_random_next(&random);
            assert_same_verdict(bytes, size);
            assert_same_verdict(bytes, size - 1);
        }
    }
}

static void nul_is_refused_at_every_place(void **state)
{
    (void)state;
    uint8_t bytes[40];
    for (size_t size = 1; size <= sizeof bytes; size++)
        for (size_t at = 0; at < size; at++) {
            memset(bytes, 'x', sizeof bytes);
            assert_true(utf8_is_valid(span_of(bytes, size)));
            bytes[at] = 0;
            assert_false(utf8_is_valid(span_of(bytes, size)));
            bytes[at] = 0x80;
            assert_false(utf8_is_valid(span_of(bytes, size)));
        }
    assert_true(utf8_is_valid(span_of(NULL, 0)));
}

static void controls_and_non_characters_are_found(void **state)
{
    (void)state;
    assert_false(utf8_has_control(SPAN_LITERAL("fleet/car42/\xc3\xa4")));
    assert_true(utf8_has_control(SPAN_LITERAL("a\x01")));
    assert_true(utf8_has_control(SPAN_LITERAL("a\x7f")));
    assert_true(utf8_has_control(SPAN_LITERAL("a\xc2\x9f")));
    assert_false(utf8_has_control(SPAN_LITERAL("a\xc2\xa0")));
    assert_true(utf8_has_control(SPAN_LITERAL("\xef\xb7\x90")));
    assert_true(utf8_has_control(SPAN_LITERAL("\xef\xbf\xbf")));
    assert_false(utf8_has_control(SPAN_LITERAL("\xef\xbf\xbd")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_short_sequences_agree_with_the_slow_checker),
        cmocka_unit_test(random_texts_agree_with_the_slow_checker),
        cmocka_unit_test(nul_is_refused_at_every_place),
        cmocka_unit_test(controls_and_non_characters_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
