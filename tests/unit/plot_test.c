#include "sink/query/plot.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *draw(const int64_t *times, const double *values, size_t count, size_t width, size_t height)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    plot_draw(out, times, values, count, width, height);
    fclose(out);
    return text;
}

static size_t occurrences(const char *text, const char *what)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        count++;
    return count;
}

static void a_rising_line_fills_from_left_below_to_right_above(void **state)
{
    (void)state;
    int64_t times[20];
    double values[20];
    for (int i = 0; i < 20; i++) {
        times[i] = i * INT64_C(1000000000);
        values[i] = i;
    }
    char *text = draw(times, values, 20, 20, 10);
    assert_non_null(strstr(text, "          19 ┤                  ▄▀\n"));
    assert_non_null(strstr(text, "           0 ┤▄▀"));
    assert_non_null(strstr(text, "1970-01-01T00:00:00Z"));
    assert_non_null(strstr(text, "1970-01-01T00:00:19Z"));
    free(text);
}

static void a_peak_among_a_million_points_is_seen(void **state)
{
    (void)state;
    size_t count = 1000000;
    int64_t *times = malloc(count * sizeof *times);
    double *values = calloc(count, sizeof *values);
    for (size_t i = 0; i < count; i++)
        times[i] = (int64_t)i;
    values[345678] = 5;
    char *text = draw(times, values, count, 60, 5);
    assert_int_equal(occurrences(text, "█"), 5); /* its whole column, from the zeros below */
    free(text);
    free(times);
    free(values);
}

static void nothing_constant_and_nan_are_drawn_without_harm(void **state)
{
    (void)state;
    int64_t times[3] = {INT64_MIN, 0, INT64_MAX};
    double values[3] = {NAN, 1.5, INFINITY};
    char *text = draw(times, values, 0, 60, 5);
    assert_string_equal(text, "(no points)\n");
    free(text);
    text = draw(times, values, 3, 60, 5);
    assert_int_equal(occurrences(text, "▄") + occurrences(text, "▀"), 1);
    free(text);
    text = draw(times, values, 1, 60, 5);
    assert_string_equal(text, "(no points)\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rising_line_fills_from_left_below_to_right_above),
        cmocka_unit_test(a_peak_among_a_million_points_is_seen),
        cmocka_unit_test(nothing_constant_and_nan_are_drawn_without_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
