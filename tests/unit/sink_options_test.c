/* The sink's option table: the shipped file is the defaults, and what makes no sense is refused with its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sink/sink_options.h"

static struct options *last; /* owns what the configuration points to */
static struct buf out;

/* Parse a text; returns the problems (borrowed, as config_out's texts, until the next call) and whether they are errors. */
static const char *problems_of(const char *text, enum err *err_out, struct sink_config *config_out)
{
    options_free(last);
    struct options *options = last = options_new(&sink_options_table);
    assert_non_null(options);
    options_parse_text(options, "sink.conf", span_of_string(text));
    *err_out = options_finish(options, config_out);
    buf_deinit(&out);
    buf_init(&out, 1 << 16);
    options_print_problems(options, &out);
    return buf_string(&out);
}

static void refuse(const char *text, const char *name)
{
    struct sink_config config;
    enum err err;
    const char *problems = problems_of(text, &err, &config);
    assert_int_not_equal(err, ERR_OK);
    if (!strstr(problems, name))
        fail_msg("%s: expected a word about %s, not: %s", text, name, problems);
}

static void defaults_hold(void **state)
{
    struct sink_config config;
    enum err err;
    (void)state;
    assert_string_equal(problems_of("", &err, &config), "");
    assert_int_equal(err, ERR_OK);
    assert_int_equal(config.partitions, 4);
    assert_int_equal(config.flush_interval, 30 * INT64_C(1000000000));
    assert_int_equal(config.head_memory, 256 << 20);
    assert_false(config.accept_gap);
    assert_int_equal(sink_config_series_limits(&config).new_series_per_hour_max, OPTION_UNLIMITED);
}

static void the_shipped_file_is_the_defaults(void **state)
{
    struct sink_config shipped, defaults;
    enum err err;
    (void)state;
    struct options *options = options_new(&sink_options_table);
    err = options_load(options, "conf/sink.conf", NULL, &shipped);
    assert_int_equal(err, ERR_OK);
    problems_of("", &err, &defaults);
    assert_int_equal(shipped.partitions, defaults.partitions);
    assert_int_equal(shipped.head_memory, defaults.head_memory);
    assert_int_equal(shipped.flush_interval, defaults.flush_interval);
    assert_int_equal(shipped.query_row_limit, defaults.query_row_limit);
    assert_int_equal(shipped.max_devices, defaults.max_devices);
    assert_int_equal(shipped.quarantine_size, defaults.quarantine_size);
    assert_int_equal(shipped.http_port, defaults.http_port);
    assert_string_equal(shipped.payload_time_fields, defaults.payload_time_fields);
    options_free(options);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    refuse("partitions 0\n", "partitions");
    refuse("partitions 4097\n", "partitions");
    refuse("partitions many\n", "partitions");
    refuse("flush_interval 30\n", "flush_interval"); /* no unit */
    refuse("flush_interval 2h\n", "flush_interval");
    refuse("head_memory 8MiB\npartitions 9\n", "head_memory");
    refuse("quarantine_size 1MiB\npartitions 64\n", "quarantine_size");
    refuse("compaction_fan_in 1\n", "compaction_fan_in");
    refuse("http_port 65536\n", "http_port");
    refuse("payload_time_fields a b c d e f g h i\n", "payload_time_fields");
    refuse("payload_time_unit minutes\n", "payload_time_unit");
    refuse("future_bound 0s\n", "future_bound");
    refuse("no_such_key 1\n", "no_such_key");
}

static void rules_and_limits_follow(void **state)
{
    struct sink_config config;
    enum err err;
    (void)state;
    assert_string_equal(problems_of("payload_time_fields  t  when\t\npayload_time_unit us\nfuture_bound unlimited\nmax_devices 7\n"
                                    "max_metrics_per_device unlimited\n",
                                    &err, &config),
                        "");
    assert_int_equal(err, ERR_OK);
    assert_int_equal(config.max_devices, 7);
    assert_int_equal(config.payload_time_unit, EVENT_TIME_US);
    assert_int_equal(sink_config_payload_rules(&config).future_bound_ns, 0); /* no bound */
    assert_int_equal(sink_config_series_limits(&config).devices_max, 7);
    assert_int_equal(sink_config_series_limits(&config).metrics_per_device_max, INT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_hold),
        cmocka_unit_test(the_shipped_file_is_the_defaults),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(rules_and_limits_follow),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    options_free(last);
    buf_deinit(&out);
    return failed;
}
