#include "broker/telemetry/rule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/mqtt/topic.h"
#include "tests/lib/check_random.h"

static struct rule_table table;

static void add(const char *text)
{
    struct errmsg msg = {""};
    enum err err = rule_table_add(&table, text, false, 1, &msg);
    if (err)
        fail_msg("rule '%s' refused: %s", text, msg.text);
}

static void ignore(const char *text) { assert_int_equal(rule_table_add(&table, text, true, 1, NULL), ERR_OK); }

static void refused(const char *text, bool is_ignore, const char *why)
{
    struct errmsg msg = {""};
    assert_int_not_equal(rule_table_add(&table, text, is_ignore, 1, &msg), ERR_OK);
    if (!strstr(msg.text, why))
        fail_msg("'%s' was refused with '%s', expected '%s'", text, msg.text, why);
}

static enum rule_verdict match(const char *topic, const char *client_id, const char *user_name, const char *device_expected)
{
    struct rule_subject subject = {span_of_string(topic), span_of_string(client_id), span_of_string(user_name)};
    const struct rule *rule = NULL;
    struct span device = {0};
    enum rule_verdict verdict = rule_table_match(&table, &rule, &device, &subject);
    if (verdict == RULE_MATCH) {
        assert_non_null(rule);
        if (!span_equal(device, span_of_string(device_expected)))
            fail_msg("%s: device '%.*s', expected '%s'", topic, (int)device.size, (const char *)device.data, device_expected);
    }
    return verdict;
}

static int clear(void **state)
{
    (void)state;
    rule_table_deinit(&table);
    return 0;
}

static void device_is_a_level_of_the_topic(void **state)
{
    (void)state;
    add("fleet/{device}/telemetry");
    assert_int_equal(match("fleet/car42/telemetry", "c", "", "car42"), RULE_MATCH);
    assert_int_equal(match("fleet/car42/status", "c", "", ""), RULE_NONE);
    assert_int_equal(match("fleet/car42/telemetry/x", "c", "", ""), RULE_NONE);
    assert_int_equal(match("fleet/car42", "c", "", ""), RULE_NONE);
    assert_int_equal(match("fleet//telemetry", "c", "", ""), RULE_REFUSE);
}

static void wildcards_match_as_in_mqtt(void **state)
{
    (void)state;
    add("plant/+/{device}/# name=plant");
    assert_int_equal(match("plant/a/press", "c", "", "press"), RULE_MATCH);
    assert_int_equal(match("plant/a/press/x/y", "c", "", "press"), RULE_MATCH);
    assert_int_equal(match("plant//press/", "c", "", "press"), RULE_MATCH);
    assert_int_equal(match("plant/a", "c", "", ""), RULE_NONE);
    assert_string_equal(table.rules[0].name, "plant");
}

/* Beside the reference, with {device} at a random level. */
static void matches_whatever_mqtt_matches(void **state)
{
    (void)state;
    static const char *const levels[] = {"", "a", "b", "ab", "+", "#"};
    struct check_random random;
    check_random_init(&random, check_random_seed(19));
    unsigned matched = 0;
    for (unsigned step = 0; step < 100000; step++) {
        char topic[32] = "", filter[32] = "", rule[128] = "", device[8] = "c";
        size_t topic_count = 1 + check_random_below(&random, 4), filter_count = 1 + check_random_below(&random, 4);
        size_t device_level = check_random_below(&random, 8);
        for (size_t i = 0; i < topic_count; i++) {
            const char *level = levels[check_random_below(&random, 4)];
            strcat(strcat(topic, i ? "/" : ""), level);
            if (i == device_level && i < filter_count)
                strcpy(device, level);
        }
        for (size_t i = 0; i < filter_count; i++) {
            const char *level = i == device_level ? "+" : levels[check_random_below(&random, i + 1 == filter_count ? 6 : 5)];
            strcat(strcat(filter, i ? "/" : ""), level);
            strcat(strcat(rule, i ? "/" : ""), i == device_level ? "{device}" : level);
        }
        if (!*topic || !*filter)
            continue;
        add(strcat(rule, device_level < filter_count ? " on_no_device=skip" : " device=client_id"));
        bool expected = topic_matches_filter(span_of_string(filter), span_of_string(topic));
        matched += expected;
        assert_int_equal(match(topic, "c", "", device), !expected ? RULE_NONE : *device ? RULE_MATCH : RULE_SKIPPED);
        rule_table_deinit(&table);
    }
    assert_true(matched > 1000);
}

static void dollar_topics_are_not_matched_by_a_leading_wildcard(void **state)
{
    (void)state;
    add("# device=client_id");
    assert_int_equal(match("$SYS/uptime", "c", "", ""), RULE_NONE);
    assert_int_equal(match("a/b", "c", "", "c"), RULE_MATCH);
}

static void first_match_in_file_order_decides(void **state)
{
    (void)state;
    ignore("fleet/test/#");
    add("fleet/{device}/telemetry");
    add("fleet/# device=user_name on_no_device=skip");
    assert_int_equal(match("fleet/test/telemetry", "c", "u", ""), RULE_NONE);
    assert_int_equal(match("fleet/car1/telemetry", "c", "u", "car1"), RULE_MATCH);
    assert_int_equal(match("fleet/car1/other", "c", "u", "u"), RULE_MATCH);
    assert_int_equal(match("fleet/car1/other", "c", "", ""), RULE_SKIPPED);
}

static void without_placeholder_the_client_is_the_device(void **state)
{
    (void)state;
    add("v1/telemetry");
    add("x/{device} on_no_device=client_id");
    assert_int_equal(match("v1/telemetry", "car7", "", "car7"), RULE_MATCH);
    assert_int_equal(match("x/", "car8", "", "car8"), RULE_MATCH);
}

static void mistakes_are_named(void **state)
{
    (void)state;
    refused("", false, "missing");
    refused("fleet/{device}/{device}", false, "twice");
    refused("fleet/{dev}/x", false, "unknown placeholder");
    refused("fleet/x{device}", false, "whole level");
    refused("fleet/#/x", false, "last level");
    refused("fleet/a+/x", false, "whole level");
    refused("fleet/x device=topic", false, "needs {device}");
    refused("fleet/{device} device=client_id", false, "elsewhere");
    refused("fleet/{device} max_qos=3", false, "0, 1 or 2");
    refused("fleet/{device} colour=red", false, "unknown option");
    refused("fleet/{device} naked", false, "option=value");
    refused("fleet/{device}", true, "without {device}");
    refused("fleet/# name=x", true, "no options");
    assert_int_equal(table.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(device_is_a_level_of_the_topic, clear),
        cmocka_unit_test_teardown(wildcards_match_as_in_mqtt, clear),
        cmocka_unit_test_teardown(matches_whatever_mqtt_matches, clear),
        cmocka_unit_test_teardown(dollar_topics_are_not_matched_by_a_leading_wildcard, clear),
        cmocka_unit_test_teardown(first_match_in_file_order_decides, clear),
        cmocka_unit_test_teardown(without_placeholder_the_client_is_the_device, clear),
        cmocka_unit_test_teardown(mistakes_are_named, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
