#include "broker/ops/broker_options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/logger.h"

struct loaded {
    struct options *options;
    struct broker_config config;
    enum err err;
    struct buf problems;
};

static struct loaded load(const char *text)
{
    struct loaded loaded = {.options = options_new(&broker_option_table)};
    options_parse_text(loaded.options, "test.conf", span_of_string(text));
    loaded.err = options_finish(loaded.options, &loaded.config);
    buf_init(&loaded.problems, 1 << 20);
    options_print_problems(loaded.options, &loaded.problems);
    return loaded;
}

static void unload(struct loaded *loaded)
{
    buf_deinit(&loaded->problems);
    options_free(loaded->options);
}

static void expect_problem(const char *text, enum err err, const char *part)
{
    struct loaded loaded = load(text);
    if (loaded.err != err || !strstr(buf_string(&loaded.problems), part))
        fail_msg("<%s> gave %s and <%s>, not <%s>", text, err_text(loaded.err), buf_string(&loaded.problems), part);
    unload(&loaded);
}

static const struct broker_listener_config *listener_at(const struct loaded *loaded, size_t index)
{
    return &((const struct broker_listener_config *)loaded->config.listeners.items)[index];
}

static void starts_with_nothing_on_the_loopback_only(void **state)
{
    (void)state;
    struct loaded loaded = load("");
    assert_int_equal(loaded.err, 0);
    assert_int_equal(loaded.config.listeners.count, 1);
    assert_true(listener_at(&loaded, 0)->is_local);
    assert_true(listener_at(&loaded, 0)->allow_anonymous);
    assert_int_equal(listener_at(&loaded, 0)->port, 1883);
    assert_true(loaded.config.shard_count >= 1);
    assert_string_equal(loaded.config.http_address, "127.0.0.1");
    assert_int_equal(loaded.config.http_port, 1880);
    unload(&loaded);
}

static void takes_a_file_of_mosquitto_options(void **state)
{
    (void)state;
    struct loaded loaded = load("listener 18883 127.0.0.1\nallow_anonymous true\npersistence_location /tmp/x/\nmax_inflight_messages 0\n"
                                "max_keepalive 600\npersistent_client_expiration 2w\nautosave_interval 5\nsys_interval 10\nlog_type all\n");
    assert_int_equal(loaded.err, 0);
    assert_int_equal(loaded.config.listeners.count, 1);
    assert_false(listener_at(&loaded, 0)->is_local);
    assert_string_equal(listener_at(&loaded, 0)->bind_address, "127.0.0.1");
    assert_int_equal(loaded.config.max_inflight_messages, OPTION_UNLIMITED);
    assert_int_equal(loaded.config.persistent_client_expiration_ns, 14 * NS_PER_DAY);
    assert_int_equal(loaded.config.log_level, LOGGER_DEBUG);
    assert_non_null(strstr(buf_string(&loaded.problems), "autosave_interval"));
    unload(&loaded);
}

static void security_counts_for_all_listeners_unless_told_otherwise(void **state)
{
    (void)state;
    struct loaded loaded = load("listener 1\nallow_anonymous true\nlistener 2\n");
    assert_true(listener_at(&loaded, 0)->allow_anonymous);
    assert_true(listener_at(&loaded, 1)->allow_anonymous);
    unload(&loaded);
    loaded = load("per_listener_settings true\nlistener 1\nallow_anonymous true\nlistener 2\n");
    assert_true(listener_at(&loaded, 0)->allow_anonymous);
    assert_false(listener_at(&loaded, 1)->allow_anonymous);
    unload(&loaded);
}

static void says_what_is_wrong(void **state)
{
    (void)state;
    expect_problem("listener 1\nmax_conections 5\n", ERR_INVALID, "test.conf:2");
    expect_problem("listener 1\nmax_conections 5\n", ERR_INVALID, "max_connections");
    expect_problem("max_packet_size 5 apples\n", ERR_INVALID, "max_packet_size");
    expect_problem("password_file /etc/passwd\n", ERR_INVALID, "authentication is not part of this version");
    expect_problem("upgrade_outgoing_qos true\n", ERR_INVALID, "MQTT-3.8.4-8");
    expect_problem("listener 1\ncafile /x\n", ERR_INVALID, "cafile");
    expect_problem("listener 1\ncertfile /x\n", ERR_INVALID, "needs a keyfile");
    expect_problem("listener 1\nkeyfile /x\n", ERR_INVALID, "needs a certfile");
    expect_problem("listener 1\n", 0, "every client will be refused");
    expect_problem("log_max_size 64MiB\nlog_segment_size 32MiB\n", ERR_INVALID, "four segments");
    expect_problem("persistence false\ntelemetry a/{device}\n", ERR_INVALID, "persistence");
    expect_problem("telemetry a/{device}/{device}\n", ERR_INVALID, "test.conf:1");
    expect_problem("http_listener nowhere:99999\n", ERR_INVALID, "http_listener");
    expect_problem("log_cursor ../x\n", ERR_INVALID, "no possible name");
    expect_problem("log_dest syslog\n", 0, "log_dest");
}

static void http_listener_has_four_forms(void **state)
{
    (void)state;
    struct loaded loaded = load("http_listener off\n");
    assert_false(loaded.config.http_enabled);
    unload(&loaded);
    loaded = load("http_listener 0\n");
    assert_string_equal(loaded.config.http_address, "127.0.0.1");
    assert_int_equal(loaded.config.http_port, 0);
    unload(&loaded);
    loaded = load("http_listener [::1]:90\n");
    assert_string_equal(loaded.config.http_address, "::1");
    assert_int_equal(loaded.config.http_port, 90);
    unload(&loaded);
}

static void compiles_the_tiers_in_their_order(void **state)
{
    (void)state;
    struct loaded loaded = load("tier a/b log\ntier a/+ memory\n");
    struct tier_table tiers;
    struct errmsg msg;
    assert_int_equal(loaded.err, 0);
    assert_int_equal(broker_options_tiers(&tiers, &loaded.config, &msg), 0);
    assert_int_equal(tiers.count, 2);
    assert_int_equal(tier_table_match(&tiers, SPAN_LITERAL("a/b"))->durability, DURABILITY_LOG);
    assert_int_equal(tier_table_match(&tiers, SPAN_LITERAL("a/c"))->durability, DURABILITY_MEMORY);
    assert_int_equal(tier_table_match(&tiers, SPAN_LITERAL("a/c"))->line, 2);
    tier_table_deinit(&tiers);
    unload(&loaded);
    expect_problem("tier a/#/b memory\n", ERR_INVALID, "tier");
    expect_problem("tier a/b kafka\n", ERR_INVALID, "tier");
}

static void compiles_the_rules_in_their_order(void **state)
{
    (void)state;
    struct loaded loaded = load("telemetry_ignore fleet/test/#\ntelemetry fleet/{device}/t\ntelemetry_partitions 12\n");
    struct rule_table rules;
    struct errmsg msg;
    const struct rule *rule;
    struct span device;
    assert_int_equal(loaded.err, 0);
    assert_int_equal(broker_options_rules(&rules, &loaded.config, &msg), 0);
    assert_int_equal(rules.count, 2);
    assert_int_equal(rules.partition_count, 12);
    struct rule_subject subject = {.topic = SPAN_LITERAL("fleet/test/t")};
    assert_int_equal(rule_table_match(&rules, &rule, &device, &subject), RULE_NONE);
    subject.topic = SPAN_LITERAL("fleet/d7/t");
    assert_int_equal(rule_table_match(&rules, &rule, &device, &subject), RULE_MATCH);
    assert_memory_equal(device.data, "d7", 2);
    rule_table_deinit(&rules);
    unload(&loaded);
}

/* The file that is shipped is valid, and names every option there is. */
static void the_shipped_file_is_complete(void **state)
{
    (void)state;
    FILE *file = fopen("conf/broker.conf", "re");
    if (!file)
        skip(); /* not run from the root of the tree */
    static char text[256 << 10];
    size_t size = fread(text, 1, sizeof text - 1, file);
    (void)fclose(file);
    text[size] = '\0';
    for (size_t i = 0; i < broker_option_table.spec_count; i++) {
        char as_set[80], as_comment[80];
        (void)snprintf(as_set, sizeof as_set, "\n%s ", broker_option_table.specs[i].name);
        (void)snprintf(as_comment, sizeof as_comment, "\n#%s ", broker_option_table.specs[i].name);
        if (!strstr(text, as_set) && !strstr(text, as_comment))
            fail_msg("conf/broker.conf says nothing of %s", broker_option_table.specs[i].name);
    }
    struct loaded loaded = load(text);
    assert_string_equal(buf_string(&loaded.problems), "");
    unload(&loaded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_with_nothing_on_the_loopback_only),
        cmocka_unit_test(takes_a_file_of_mosquitto_options),
        cmocka_unit_test(security_counts_for_all_listeners_unless_told_otherwise),
        cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(http_listener_has_four_forms),
        cmocka_unit_test(compiles_the_tiers_in_their_order),
        cmocka_unit_test(compiles_the_rules_in_their_order),
        cmocka_unit_test(the_shipped_file_is_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
