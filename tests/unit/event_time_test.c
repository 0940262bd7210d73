/* Numbers as times: exact, whatever the unit, and never a wrong one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "sink/decode/event_time.h"

static void number(const char *text, enum event_time_unit unit, int64_t expected)
{
    int64_t got = 0;
    if (!event_time_from_number(&got, span_of_string(text), unit) || got != expected)
        fail_msg("%s gives %lld, expected %lld", text, (long long)got, (long long)expected);
}

static void no_number(const char *text, enum event_time_unit unit)
{
    int64_t got = 0;
    if (event_time_from_number(&got, span_of_string(text), unit))
        fail_msg("%s gives %lld", text, (long long)got);
}

static void test_units(void **state)
{
    (void)state;
    number("1700000000", EVENT_TIME_AUTO, 1700000000000000000);
    number("1700000000000", EVENT_TIME_AUTO, 1700000000000000000);
    number("1700000000000000", EVENT_TIME_AUTO, 1700000000000000000);
    number("1700000000000000000", EVENT_TIME_AUTO, 1700000000000000000);
    number("99999999999", EVENT_TIME_MS, 99999999999000000);
    number("100000000000", EVENT_TIME_AUTO, 100000000000000000); /* the least that is milliseconds */
    number("5", EVENT_TIME_NS, 5);
    number("5", EVENT_TIME_US, 5000);
    number("5", EVENT_TIME_S, 5000000000);
    number("-5", EVENT_TIME_AUTO, -5000000000);
}

static void test_fractions(void **state)
{
    (void)state;
    number("1700000000.123456789", EVENT_TIME_AUTO, 1700000000123456789);
    number("1700000000.1234567894", EVENT_TIME_AUTO, 1700000000123456789);
    number("1700000000123.456", EVENT_TIME_AUTO, 1700000000123456000);
    number("1.7e9", EVENT_TIME_AUTO, 1700000000000000000);
    number("1700000000123456789e-9", EVENT_TIME_AUTO, 1700000000123456789);
    number("0.5", EVENT_TIME_NS, 1);
    number("0.49999", EVENT_TIME_NS, 0);
    number("0e300", EVENT_TIME_S, 0);
    number("1e-300", EVENT_TIME_S, 0);
    number("9223372036854775807", EVENT_TIME_NS, INT64_MAX);
    number("9223372036.854775807", EVENT_TIME_S, INT64_MAX);
}

static void test_none(void **state)
{
    (void)state;
    no_number("", EVENT_TIME_AUTO);
    no_number("-", EVENT_TIME_AUTO);
    no_number(".", EVENT_TIME_AUTO);
    no_number("1e", EVENT_TIME_AUTO);
    no_number("1x", EVENT_TIME_AUTO);
    no_number("1 ", EVENT_TIME_AUTO);
    no_number("1e999", EVENT_TIME_AUTO);
    no_number("9223372036854775808", EVENT_TIME_NS);
    no_number("9223372037", EVENT_TIME_S);
    no_number("1e300", EVENT_TIME_AUTO);
    no_number("2023-11-14", EVENT_TIME_AUTO);
}

static void test_format(void **state)
{
    char text[CLOCK_TEXT_SIZE];
    (void)state;
    event_time_format(text, 1700000000000000000);
    assert_string_equal(text, "2023-11-14T22:13:20Z");
    event_time_format(text, 1700000000120000000);
    assert_string_equal(text, "2023-11-14T22:13:20.120Z");
    event_time_format(text, 1700000000000001000);
    assert_string_equal(text, "2023-11-14T22:13:20.000001Z");
    event_time_format(text, -1);
    assert_string_equal(text, "1969-12-31T23:59:59.999999999Z");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_units), cmocka_unit_test(test_fractions), cmocka_unit_test(test_none),
                                       cmocka_unit_test(test_format)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
