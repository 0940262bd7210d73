/* What payloads say: one case a line. A row is written as time:metric=value,... and rows are separated by blanks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "sink/decode/payload.h"
#include "tests/lib/check_random.h"

#define RECEIVED INT64_C(1700000000000000000)

static struct payload_decoder *decoder_new(enum event_time_unit unit)
{
    struct payload_rules rules = {
        .time_names = {SPAN_LITERAL("ts"), SPAN_LITERAL("time")}, .time_name_count = 2, .time_unit = unit, .future_bound_ns = NS_PER_HOUR};
    struct payload_decoder *decoder = payload_new(&rules);
    CHECK(decoder);
    return decoder;
}

/* The batch as text; "!label" for a reject of the whole. Static storage. */
static const char *decode(struct payload_decoder *decoder, const char *payload, size_t size)
{
    static char text[65536];
    struct payload_batch batch;
    struct payload_ignored ignored = {0};
    size_t used = 0;
    text[0] = 0;
    enum reject reject = payload_decode(decoder, &batch, &ignored, span_of(payload, size), RECEIVED);
    if (reject != REJECT_NONE) {
        snprintf(text, sizeof text, "!%s", reject_label(reject));
        return text;
    }
    for (size_t r = 0; r < batch.row_count; r++) {
        const struct payload_row *row = &batch.rows[r];
        used += (size_t)snprintf(text + used, sizeof text - used, "%s", r ? " " : "");
        if (row->reject != REJECT_NONE) {
            used += (size_t)snprintf(text + used, sizeof text - used, "!%s", reject_label(row->reject));
            continue;
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "%lld", (long long)(row->time_ns - RECEIVED));
        for (uint32_t p = row->point_first; p < row->point_first + row->point_count; p++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%c%.*s=%.17g", p == row->point_first ? ':' : ',',
                                     (int)batch.points[p].metric.size, (const char *)batch.points[p].metric.data, batch.points[p].value);
    }
    return text;
}

#define GIVES(payload, expected)                                                                                                           \
    do {                                                                                                                                   \
        const char *got = decode(decoder, payload, sizeof payload - 1);                                                                    \
        if (strcmp(got, expected) != 0)                                                                                                    \
            fail_msg("%s\n  gives    %s\n  expected %s", payload, got, expected);                                                          \
    } while (0)

static void test_shapes(void **state)
{
    struct payload_decoder *decoder = decoder_new(EVENT_TIME_AUTO);
    (void)state;
    GIVES("{\"speed\":61.5,\"soc\":87}", "0:speed=61.5,soc=87");
    GIVES("  {\"a\":1}\r\n", "0:a=1");
    GIVES("{\"a\":true,\"b\":false}", "0:a=1,b=0");
    GIVES("{\"gps\":{\"lat\":1,\"fix\":{\"n\":2}},\"x\":3}", "0:gps.lat=1,gps.fix.n=2,x=3");
    GIVES("[{\"a\":1},{\"a\":2},{\"a\":3}]", "0:a=1 1:a=2 2:a=3");
    GIVES("{\"a\":1,\"s\":\"text\",\"n\":null,\"l\":[1,{\"b\":[2]},3],\"z\":4}", "0:a=1,z=4");
    GIVES("{\"a\":1,\"a\":2,\"b\":5,\"a\":3}", "0:a=3,b=5");
    GIVES("{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"a\":8,\"c\":9}", "0:a=8,b=2,c=9,d=4,e=5,f=6,g=7");
    GIVES("{\"a\\u0062\":1,\"ab\":2}", "0:ab=2");
    GIVES("{\"a\":{},\"b\":1}", "0:b=1");
    GIVES("{\"\xc3\xa9t\xc3\xa9\":1}", "0:\xc3\xa9t\xc3\xa9=1");
    GIVES("{\"a\":-0,\"b\":-0.0,\"c\":1e-400,\"d\":9007199254740993,\"e\":123456789012345678901234567890}",
          "0:a=-0,b=-0,c=0,d=9007199254740992,e=1.2345678901234568e+29");
    GIVES("{\"a\":1e999,\"b\":1}", "0:b=1");
    GIVES("{\"\":1,\"b\":1}", "0:b=1");
    GIVES("{\"a\\n\":1,\"b\":1}", "0:b=1");
    payload_free(decoder);
}

static void test_times(void **state)
{
    struct payload_decoder *decoder = decoder_new(EVENT_TIME_AUTO);
    (void)state;
    GIVES("{\"ts\":1700000001,\"a\":1}", "1000000000:a=1");
    GIVES("{\"ts\":1700000001.25,\"a\":1}", "1250000000:a=1");
    GIVES("{\"ts\":1700000000.123456789,\"a\":1}", "123456789:a=1");
    GIVES("{\"ts\":1.7000000005e9,\"a\":1}", "500000000:a=1");
    GIVES("{\"ts\":1700000000001,\"a\":1}", "1000000:a=1");
    GIVES("{\"ts\":1700000000000001,\"a\":1}", "1000:a=1");
    GIVES("{\"ts\":1700000000000000001,\"a\":1}", "1:a=1");
    GIVES("{\"a\":1,\"ts\":\"2023-11-14T22:13:20.000000007Z\"}", "7:a=1");
    GIVES("{\"a\":1,\"ts\":\"2023-11-15T00:13:21+02:00\"}", "1000000000:a=1");
    GIVES("{\"a\":1,\"ts\":\"1700000001\"}", "1000000000:a=1");
    GIVES("{\"time\":1700000001,\"a\":1}", "1000000000:a=1");
    GIVES("{\"time\":5,\"ts\":1700000001}", "1000000000:time=5");
    GIVES("{\"ts\":null,\"a\":1}", "0:a=1");
    GIVES("{\"ts\":1,\"ts\":1700000001,\"a\":1}", "1000000000:a=1");
    GIVES("{\"ts\":0,\"a\":1}", "-1700000000000000000:a=1");
    GIVES("{\"ts\":-1,\"a\":1}", "-1700000001000000000:a=1");
    GIVES("{\"ts\":\"soon\",\"a\":1}", "!bad_time");
    GIVES("{\"ts\":true,\"a\":1}", "!bad_time");
    GIVES("{\"ts\":[1],\"a\":1}", "!bad_time");
    GIVES("{\"ts\":1e300,\"a\":1}", "!bad_time");
    GIVES("{\"ts\":1700003601,\"a\":1}", "!future");
    GIVES("[{\"ts\":1700003601,\"a\":1},{\"a\":2},{\"ts\":\"?\",\"a\":1},{}]", "!future 1:a=2 !bad_time !no_metrics");
    payload_free(decoder);
    decoder = decoder_new(EVENT_TIME_MS);
    GIVES("{\"ts\":5,\"a\":1}", "-1699999999995000000:a=1");
    payload_free(decoder);
}

static void test_what_is_no_telemetry(void **state)
{
    struct payload_decoder *decoder = decoder_new(EVENT_TIME_AUTO);
    (void)state;
    GIVES("", "!not_json");
    GIVES("aaaaaaaaaaaa", "!not_json");
    GIVES("{", "!not_json");
    GIVES("{\"a\":1", "!not_json");
    GIVES("{\"a\":1}}", "!not_json");
    GIVES("{\"a\":1} {\"b\":2}", "!not_json");
    GIVES("{\"a\":01}", "!not_json");
    GIVES("{\"a\":1x}", "!not_json");
    GIVES("{\"a\":tru}", "!not_json");
    GIVES("{\"a\":nul}", "!not_json");
    GIVES("{\"a\" 1}", "!not_json");
    GIVES("{a:1}", "!not_json");
    GIVES("{\"a\":1,}", "!not_json");
    GIVES("[{\"a\":1},]", "!not_json");
    GIVES("{\"a\xff\":1}", "!not_json");
    GIVES("[{\"a\":1}", "!not_json");
    GIVES("61.5", "!not_object");
    GIVES("true", "!not_object");
    GIVES("null", "!not_object");
    GIVES("\"text\"", "!not_object");
    GIVES("[1,2,3]", "!not_object");
    GIVES("[]", "!no_metrics");
    GIVES("{}", "!no_metrics");
    GIVES("{\"ts\":1700000000}", "!no_metrics");
    GIVES("{\"a\":\"b\"}", "!no_metrics");
    GIVES(
        "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}}}}}}}}}}}}",
        "0:a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a=1");
    GIVES("{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}}}}"
          "}}}}}}}}}",
          "!too_deep");
    payload_free(decoder);
}

static void test_bounds(void **state)
{
    struct payload_decoder *decoder = decoder_new(EVENT_TIME_AUTO);
    size_t size = JSON_SIZE_MAX + 1;
    char *text = malloc(size + 64);
    (void)state;
    CHECK(text);
    memset(text, ' ', size);
    text[0] = '{';
    text[size - 1] = '}';
    assert_string_equal(decode(decoder, text, size), "!too_large");
    /* The longest name, and one byte more. */
    memset(text, 'n', 300);
    memcpy(text, "{\"", 2);
    memcpy(text + 2 + JSON_NAME_MAX, "\":1}", 4);
    assert_int_equal(strlen(decode(decoder, text, JSON_NAME_MAX + 6)), 2 + JSON_NAME_MAX + 2);
    text[2 + JSON_NAME_MAX] = 'n';
    memcpy(text + 3 + JSON_NAME_MAX, "\":1}", 4);
    assert_string_equal(decode(decoder, text, JSON_NAME_MAX + 7), "!too_large");
    /* Deep arrays are stepped over, however deep. */
    size_t used = (size_t)sprintf(text, "{\"a\":1,\"b\":");
    memset(text + used, '[', 500);
    memset(text + used + 500, ']', 500);
    memcpy(text + used + 1000, "}", 1);
    assert_string_equal(decode(decoder, text, used + 1001), "0:a=1");
    free(text);
    payload_free(decoder);
}

/* Every cut and every flipped byte of a good payload gives an answer, and never rows from behind its end. */
static void test_damage(void **state)
{
    static const char good[] = "[{\"ts\":1700000000.5,\"a\":{\"b\":-1.5e3,\"c\":true},\"d\":\"x\\u00e9\",\"e\":[1,2]},{\"ts\":\"2023-11-"
                               "14T22:13:20Z\",\"f\":null,\"g\":7}]";
    struct payload_decoder *decoder = decoder_new(EVENT_TIME_AUTO);
    struct check_random random;
    (void)state;
    check_random_init(&random, check_random_seed(1));
    for (size_t size = 0; size < sizeof good - 1; size++)
        assert_string_equal(decode(decoder, good, size), "!not_json");
    for (int i = 0; i < 20000; i++) {
        char bad[sizeof good];
        memcpy(bad, good, sizeof good);
        for (uint64_t n = 1 + check_random_below(&random, 3); n > 0; n--)
            bad[check_random_below(&random, sizeof good - 1)] = (char)check_random_next(&random);
        decode(decoder, bad, sizeof good - 1);
    }
    payload_free(decoder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_times),
                                       cmocka_unit_test(test_what_is_no_telemetry), cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
