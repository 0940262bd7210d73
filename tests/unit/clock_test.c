#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "tests/lib/check_random.h"

#define NOW (INT64_C(1795241352) * NS_PER_S + 123456789)

static void assert_wall(const char *text, wall_ns expected)
{
    wall_ns wall = 77;
    if (!clock_parse_rfc3339(&wall, span_of_string(text)))
        fail_msg("%s is refused", text);
    if (wall != expected)
        fail_msg("%s gives %lld, expected %lld", text, (long long)wall, (long long)expected);
}

static void assert_no_wall(const char *text)
{
    wall_ns wall = 77;
    if (clock_parse_rfc3339(&wall, span_of_string(text)))
        fail_msg("%s is taken as %lld", text, (long long)wall);
    assert_int_equal(wall, 77);
}

static void rfc3339_known_times(void **state)
{
    (void)state;
    assert_wall("1970-01-01T00:00:00Z", 0);
    assert_wall("1970-01-01T00:00:00.000000001Z", 1);
    assert_wall("1969-12-31T23:59:59.999999999Z", -1);
    assert_wall("2026-11-21T06:09:12.123456789Z", NOW);
    assert_wall("2026-11-21T06:09:12.1234567899Z", NOW);
    assert_wall("2026-11-21 07:09:12.123456789+01:00", NOW);
    assert_wall("2026-11-20t23:39:12.123456789-06:30", NOW);
    assert_wall("2000-02-29T12:00:00z", INT64_C(951825600) * NS_PER_S);
    assert_wall("2016-12-31T23:59:60Z", INT64_C(1483228800) * NS_PER_S);
    assert_wall("1677-09-21T00:12:43.145224192Z", INT64_MIN);
    assert_wall("2262-04-11T23:47:16.854775807Z", INT64_MAX);
}

static void rfc3339_refusals(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "now",
        "2026-11-21",
        "2026-11-21T06:09:12",
        "2026-11-21T06:09Z",
        "2026-13-21T06:09:12Z",
        "2026-00-21T06:09:12Z",
        "2026-02-29T06:09:12Z",
        "1900-02-29T06:09:12Z",
        "2026-11-31T06:09:12Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T06:60:12Z",
        "2026-11-21T06:09:61Z",
        "2026-11-21T06:09:12.Z",
        "2026-11-21T06:09:12+1:00",
        "2026-11-21T06:09:12+24:00",
        "2026-11-21T06:09:12ZZ",
        " 2026-11-21T06:09:12Z",
        "2026-11-2-T06:09:12Z",
        "1677-09-21T00:12:43.145224191Z",
        "2262-04-11T23:47:16.854775808Z",
        "9999-12-31T23:59:59Z",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_no_wall(texts[i]);
}

/* Against the C library's calendar, and back. */
static void formatting_agrees_with_gmtime(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    for (int i = 0; i < 20000; i++) {
        wall_ns wall = (int64_t)check_random_next(&random) >> check_random_below(&random, 30);
        char text[CLOCK_TEXT_SIZE];
        char expected[64];
        struct tm tm;
        time_t second = (time_t)((wall - ((wall % NS_PER_S) + NS_PER_S) % NS_PER_S) / NS_PER_S);
        if (wall < INT64_MIN + NS_PER_S)
            continue;
        gmtime_r(&second, &tm);
        size_t size = strftime(expected, sizeof expected, "%Y-%m-%dT%H:%M:%S", &tm);
        size_t length = clock_format(text, wall, 9);
        assert_int_equal(length, strlen(text));
        if (strncmp(text, expected, size) != 0)
            fail_msg("%s, expected %s", text, expected);
        assert_wall(text, wall);
    }
}

static void fraction_digits_are_cut_not_rounded(void **state)
{
    (void)state;
    char text[CLOCK_TEXT_SIZE];
    clock_format(text, NOW, 0);
    assert_string_equal(text, "2026-11-21T06:09:12Z");
    clock_format(text, NOW + 999 - 789 + 543000, 3);
    assert_string_equal(text, "2026-11-21T06:09:12.123Z");
    clock_format(text, NOW, 12);
    assert_string_equal(text, "2026-11-21T06:09:12.123456789Z");
    clock_format(text, -1, 3);
    assert_string_equal(text, "1969-12-31T23:59:59.999Z");
    clock_format(text, INT64_MIN, 9);
    assert_string_equal(text, "1677-09-21T00:12:43.145224192Z");
}

static void assert_relative(const char *text, wall_ns expected)
{
    wall_ns wall;
    if (clock_parse_relative(&wall, span_of_string(text), NOW) != 0)
        fail_msg("%s is refused", text);
    if (wall != expected)
        fail_msg("%s gives %lld, expected %lld", text, (long long)wall, (long long)expected);
}

static void times_as_people_type_them(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "", "no", "nowish", "-", "-1", "-1x", "1h", "now1h", "--1h", "-9999999999w", "2026-11-32", "99999999999999999999"};
    wall_ns wall;
    assert_relative("now", NOW);
    assert_relative("-1h", NOW - NS_PER_HOUR);
    assert_relative("now-90s", NOW - 90 * NS_PER_S);
    assert_relative("+5m", NOW + 5 * NS_PER_MINUTE);
    assert_relative("-0", NOW);
    assert_relative("-2w", NOW - 14 * NS_PER_DAY);
    assert_relative("2026-11-21", INT64_C(1795219200) * NS_PER_S);
    assert_relative("2026-11-21T06:09:12.123456789Z", NOW);
    assert_relative("1795241352", INT64_C(1795241352) * NS_PER_S);
    assert_relative("1795241352123", INT64_C(1795241352123) * NS_PER_MS);
    assert_relative("1795241352123456", INT64_C(1795241352123456) * NS_PER_US);
    assert_relative("1795241352123456789", NOW);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (clock_parse_relative(&wall, span_of_string(wrong[i]), NOW) != ERR_INVALID)
            fail_msg("\"%s\" is taken", wrong[i]);
}

static void durations(void **state)
{
    (void)state;
    static const char *const texts[] = {"1ns", "200us", "1500ms", "10s", "5m", "1h", "3d", "2w"};
    static const int64_t values[] = {1,           200 * NS_PER_US, 1500 * NS_PER_MS, 10 * NS_PER_S, 5 * NS_PER_MINUTE,
                                     NS_PER_HOUR, 3 * NS_PER_DAY,  14 * NS_PER_DAY};
    static const char *const wrong[] = {"", "1", "s", "-1s", "1 s", "1S", "1.5s", "99999999999999999999s", "9223372036854775807w"};
    char text[CLOCK_TEXT_SIZE];
    int64_t duration;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        assert_true(clock_parse_duration(&duration, span_of_string(texts[i])));
        assert_int_equal(duration, values[i]);
        assert_int_equal(clock_format_duration(text, values[i]), strlen(texts[i]));
        assert_string_equal(text, texts[i]);
    }
    assert_true(clock_parse_duration(&duration, SPAN_LITERAL("0")));
    assert_int_equal(duration, 0);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (clock_parse_duration(&duration, span_of_string(wrong[i])))
            fail_msg("\"%s\" is taken", wrong[i]);
}

static void clocks_run_forward(void **state)
{
    (void)state;
    mono_ns mono = clock_mono();
    int64_t cpu = clock_thread_cpu();
    assert_true(clock_mono() >= mono);
    assert_true(clock_thread_cpu() >= cpu);
    assert_true(clock_wall() > INT64_C(1700000000) * NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rfc3339_known_times),
        cmocka_unit_test(rfc3339_refusals),
        cmocka_unit_test(formatting_agrees_with_gmtime),
        cmocka_unit_test(fraction_digits_are_cut_not_rounded),
        cmocka_unit_test(times_as_people_type_them),
        cmocka_unit_test(durations),
        cmocka_unit_test(clocks_run_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
