/* The cardinality guard: caps hold for what is new, never for what is known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/clock.h"
#include "sink/store/series.h"

static enum reject admit(struct series *series, const char *device, const char *metric, int64_t now_ns)
{
    struct series_device handle;
    enum reject reject = series_admit_device(series, &handle, span_of_string(device));
    return reject != REJECT_NONE ? reject : series_admit_metric(series, &handle, span_of_string(metric), now_ns);
}

static void test_caps(void **state)
{
    const struct series_limits limits = {.devices_max = 2, .metrics_per_device_max = 2, .new_series_per_hour_max = INT64_MAX};
    struct series *series = series_new(&limits, 1);
    (void)state;
    for (int again = 0; again < 2; again++) {
        assert_int_equal(admit(series, "a", "x", 0), REJECT_NONE);
        assert_int_equal(admit(series, "a", "y", 0), REJECT_NONE);
        assert_int_equal(admit(series, "a", "z", 0), REJECT_METRIC_CAP);
        assert_int_equal(admit(series, "b", "x", 0), REJECT_NONE);
        assert_int_equal(admit(series, "c", "x", 0), REJECT_DEVICE_CAP);
    }
    assert_int_equal(series_note(series, span_of_string("d"), span_of_string("x")), ERR_OK); /* stored already: no cap */
    assert_int_equal(admit(series, "d", "x", 0), REJECT_NONE);
    assert_int_equal(series_device_count(series), 3);
    assert_int_equal(series_count(series), 4);
    series_free(series);
}

static void test_rate(void **state)
{
    const struct series_limits limits = {.devices_max = INT64_MAX, .metrics_per_device_max = INT64_MAX, .new_series_per_hour_max = 3};
    struct series *series = series_new(&limits, 1);
    (void)state;
    assert_int_equal(admit(series, "a", "1", 1000), REJECT_NONE);
    assert_int_equal(admit(series, "a", "2", 1000), REJECT_NONE);
    assert_int_equal(admit(series, "b", "3", 1000), REJECT_NONE);
    assert_int_equal(admit(series, "b", "4", 1000), REJECT_SERIES_RATE);
    assert_int_equal(admit(series, "a", "1", 1000), REJECT_NONE);
    assert_int_equal(admit(series, "b", "4", 1000 + NS_PER_HOUR / 3 - 1), REJECT_SERIES_RATE);
    assert_int_equal(admit(series, "b", "4", 1000 + NS_PER_HOUR / 3), REJECT_NONE);
    assert_int_equal(admit(series, "b", "5", 1000 + NS_PER_HOUR / 3), REJECT_SERIES_RATE);
    assert_int_equal(admit(series, "b", "5", 0), REJECT_SERIES_RATE); /* a clock that went back gives nothing */
    for (int i = 0; i < 3; i++) {
        char metric[16];
        snprintf(metric, sizeof metric, "late%d", i);
        assert_int_equal(admit(series, "c", metric, 100 * NS_PER_HOUR), REJECT_NONE);
    }
    assert_int_equal(admit(series, "c", "late3", 100 * NS_PER_HOUR), REJECT_SERIES_RATE);
    series_free(series);
}

static void test_many(void **state)
{
    const struct series_limits limits = {.devices_max = 5000, .metrics_per_device_max = 4, .new_series_per_hour_max = INT64_MAX};
    struct series *series = series_new(&limits, 99);
    char device[16], metric[16];
    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 24000; i++) {
            snprintf(device, sizeof device, "d%d", i / 4);
            snprintf(metric, sizeof metric, "m%d", i % 4);
            assert_int_equal(admit(series, device, metric, 0), i < 20000 ? REJECT_NONE : REJECT_DEVICE_CAP);
        }
    }
    assert_int_equal(series_device_count(series), 5000);
    assert_int_equal(series_count(series), 20000);
    series_free(series);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_caps), cmocka_unit_test(test_rate), cmocka_unit_test(test_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
