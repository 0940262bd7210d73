#include "broker/mqtt/topic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/check_random.h"

static void name_is(const char *name, unsigned reason)
{
    struct mqtt_verdict verdict = topic_name_check(span_of_string(name));
    unsigned got = verdict.judgement == MQTT_OK ? 0 : verdict.reason;
    if (got != reason)
        fail_msg("topic '%s': 0x%02x (%s), expected 0x%02x", name, got, verdict.text ? verdict.text : "ok", reason);
}

static void filter_is(const char *text, unsigned reason)
{
    struct topic_filter filter;
    struct mqtt_verdict verdict = topic_filter_parse(&filter, span_of_string(text));
    unsigned got = verdict.judgement == MQTT_OK ? 0 : verdict.reason;
    if (got != reason)
        fail_msg("filter '%s': 0x%02x (%s), expected 0x%02x", text, got, verdict.text ? verdict.text : "ok", reason);
}

static void share_is(const char *text, const char *share_name, const char *filter_expected, bool has_wildcard)
{
    struct topic_filter filter;
    assert_int_equal(topic_filter_parse(&filter, span_of_string(text)).judgement, MQTT_OK);
    assert_true(filter.is_shared);
    assert_true(span_equal(filter.share_name, span_of_string(share_name)));
    assert_true(span_equal(filter.filter, span_of_string(filter_expected)));
    assert_int_equal(filter.has_wildcard, has_wildcard);
}

static void matches(const char *filter, const char *topic, bool expected)
{
    if (topic_matches_filter(span_of_string(filter), span_of_string(topic)) != expected)
        fail_msg("'%s' and '%s': expected %s", filter, topic, expected ? "a match" : "no match");
}

static void test_topic_names_MQTT_4_7_3_and_3_3_2_2(void **state)
{
    (void)state;
    name_is("a", 0);
    name_is("/", 0);
    name_is("//", 0);
    name_is("fleet/car42/telemetry", 0);
    name_is("$SYS/broker", 0);
    name_is("with blanks/and (brackets)", 0);
    name_is("gr\xc3\xbc\xc3\x9f/\xe2\x82\xac", 0);
    name_is("\xef\xbb\xbf"
            "bom",
            0);         /* [MQTT-1.5.4-3] */
    name_is("", 0x90);  /* [MQTT-4.7.3-1] */
    name_is("#", 0x90); /* [MQTT-3.3.2-2] */
    name_is("+", 0x90);
    name_is("a/b+", 0x90);
    name_is("fleet/+/telemetry", 0x90);
    name_is("fleet/car42/telemetry/#", 0x90);
    name_is("fl\xc3\xbc/+", 0x90);
    name_is("bad\xff", 0x81); /* [MQTT-1.5.4-1] */
    name_is("surrogate\xed\xa0\x80", 0x81);
    name_is("overlong\xc0\xaf", 0x81);
    name_is("cut\xe2\x82", 0x81);
    struct span nul = span_of("fleet/car\0/telemetry", 20);
    assert_int_equal(topic_name_check(nul).reason, 0x81); /* [MQTT-4.7.3-2] */
    assert_false(topic_name_is_valid(span_of("\0", 1)));
}

static void test_every_byte_at_every_place_of_a_name(void **state)
{
    (void)state;
    for (size_t size = 1; size <= 20; size++)
        for (size_t place = 0; place < size; place++)
            for (unsigned byte = 0; byte < 256; byte++) {
                uint8_t name[20];
                memset(name, 'a', size);
                name[place] = (uint8_t)byte;
                bool expected = byte != 0 && byte != '+' && byte != '#' && byte < 0x80;
                if (topic_name_is_valid(span_of(name, size)) != expected)
                    fail_msg("byte 0x%02x at %zu of %zu: expected %d", byte, place, size, expected);
            }
}

static void test_topics_of_every_legal_length_MQTT_4_7_3_3(void **state)
{
    (void)state;
    char *text = malloc(TOPIC_SIZE_MAX + 1);
    memset(text, 'x', TOPIC_SIZE_MAX + 1);
    assert_true(topic_name_is_valid(span_of(text, TOPIC_SIZE_MAX)));
    assert_false(topic_name_is_valid(span_of(text, TOPIC_SIZE_MAX + 1)));
    struct topic_filter filter;
    assert_int_equal(topic_filter_parse(&filter, span_of(text, TOPIC_SIZE_MAX)).judgement, MQTT_OK);
    assert_int_equal(topic_filter_parse(&filter, span_of(text, TOPIC_SIZE_MAX + 1)).judgement, MQTT_BAD);
    free(text);
}

static void test_filters_MQTT_4_7_1_1_and_4_7_1_2(void **state)
{
    (void)state;
    static const char *const good[] = {"a",     "/",     "#",  "+",    "+/+",    "/+",     "+/",       "a/#",
                                       "a/+/b", "a/+/#", "//", "+//#", "$SYS/#", "$share", "$shared/x"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        filter_is(good[i], 0);
    static const char *const bad[] = {"", "a#", "#/", "#/a", "a/#/b", "a/b#", "##", "a+", "+a", "a/+b", "a/b+/c", "++", "+#", "#+", "a/+#"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        filter_is(bad[i], 0x8f);
    filter_is("bad\xff/#", 0x81); /* [MQTT-3.8.3-1] */
    struct topic_filter filter;
    assert_int_equal(topic_filter_parse(&filter, span_of("a\0", 2)).reason, 0x81);
    assert_int_equal(topic_filter_parse(&filter, SPAN_LITERAL("a/b")).judgement, MQTT_OK);
    assert_false(filter.has_wildcard);
    assert_false(filter.is_shared);
    assert_int_equal(topic_filter_parse(&filter, SPAN_LITERAL("a/+")).judgement, MQTT_OK);
    assert_true(filter.has_wildcard);
}

static void test_shared_filters_MQTT_4_8_2_1_and_4_8_2_2(void **state)
{
    (void)state;
    share_is("$share/g/a/b", "g", "a/b", false);
    share_is("$share/group/#", "group", "#", true);
    share_is("$share/g//", "g", "/", false);
    share_is("$share/g/$share/h/x", "g", "$share/h/x", false);
    static const char *const bad[] = {"$share/",    "$share//",    "$share//a", "$share/g",     "$share/g/",    "$share/+/a",
                                      "$share/#/a", "$share/g+/a", "$share/g#", "$share/g/a#b", "$share/g/#/b", "$share/g/a+"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        filter_is(bad[i], 0x8f);
}

static void test_matching(void **state)
{
    (void)state;
    matches("a/b", "a/b", true);
    matches("a/b", "a/c", false);
    matches("a/b", "a/b/c", false);
    matches("a/b", "A/b", false);
    matches("a", "/a", false);
    matches("/a", "/a", true);
    matches("+/a", "/a", true);
    matches("+", "a", true);
    matches("+", "/a", false);
    matches("+/+", "/a", true);
    matches("/+", "/a", true);
    matches("a/+", "a", false);
    matches("a/+", "a/", true);
    matches("a/+/c", "a/b/c", true);
    matches("a/+/c", "a//c", true);
    matches("a/#", "a", true);
    matches("a/#", "a/", true);
    matches("a/#", "a/b/c", true);
    matches("a/#", "ab", false);
    matches("a/+/#", "a", false);
    matches("a/+/#", "a/b", true);
    matches("#", "a", true);
    matches("#", "/", true);
    matches("#", "$SYS/x", false); /* [MQTT-4.7.2-1] */
    matches("+/x", "$SYS/x", false);
    matches("+", "$SYS", false);
    matches("$SYS/#", "$SYS/x", true);
    matches("$SYS/+", "$SYS/x", true);
    matches("a/+", "a/$x", true);
    matches("\xc3\xa9", "e\xcc\x81", false); /* [MQTT-4.7.3-4] */
}

/* The other obvious matcher: byte by byte, recursive. */
static bool matches_bytewise(const char *filter, const char *topic)
{
    if (*filter == '#')
        return true;
    if (*filter == '+') {
        while (*topic && *topic != '/')
            topic++;
        return matches_bytewise(filter + 1, topic);
    }
    if (*topic == '\0' && filter[0] == '/' && filter[1] == '#')
        return true;
    if (*filter != *topic)
        return false;
    return *filter == '\0' || matches_bytewise(filter + 1, topic + 1);
}

static void test_matching_against_a_second_matcher(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(11));
    static const char *const topic_levels[] = {"", "a", "b", "ab"};
    static const char *const filter_levels[] = {"", "a", "b", "ab", "+", "#"};
    unsigned matched = 0;
    for (unsigned step = 0; step < 100000; step++) {
        char topic[32] = "";
        char filter[32] = "";
        for (size_t i = 0, count = 1 + check_random_below(&random, 4); i < count; i++) {
            strcat(topic, i ? "/" : "");
            strcat(topic, topic_levels[check_random_below(&random, 4)]);
        }
        for (size_t i = 0, count = 1 + check_random_below(&random, 4); i < count; i++) {
            strcat(filter, i ? "/" : "");
            strcat(filter, filter_levels[check_random_below(&random, i + 1 == count ? 6 : 5)]);
        }
        if (!*topic || !*filter)
            continue;
        bool expected = matches_bytewise(filter, topic);
        matched += expected;
        matches(filter, topic, expected);
    }
    assert_true(matched > 1000);
}

static void test_levels(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t count;
    } cases[] = {{"a", 1}, {"", 1}, {"/", 2}, {"a/b/c", 3}, {"//", 3}, {"a//b", 3}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct span text = span_of_string(cases[i].text);
        assert_int_equal(topic_levels_count(text), cases[i].count);
        struct topic_levels it = topic_levels_of(text);
        struct span level;
        size_t count = 0;
        size_t size = 0;
        while (topic_levels_next(&it, &level)) {
            count++;
            size += level.size;
        }
        assert_int_equal(count, cases[i].count);
        assert_int_equal(size + count - 1, text.size);
    }
    struct topic_levels it = topic_levels_of((struct span){NULL, 0});
    struct span level;
    assert_true(topic_levels_next(&it, &level));
    assert_false(topic_levels_next(&it, &level));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_topic_names_MQTT_4_7_3_and_3_3_2_2),        cmocka_unit_test(test_every_byte_at_every_place_of_a_name),
        cmocka_unit_test(test_topics_of_every_legal_length_MQTT_4_7_3_3), cmocka_unit_test(test_filters_MQTT_4_7_1_1_and_4_7_1_2),
        cmocka_unit_test(test_shared_filters_MQTT_4_8_2_1_and_4_8_2_2),   cmocka_unit_test(test_matching),
        cmocka_unit_test(test_matching_against_a_second_matcher),         cmocka_unit_test(test_levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
