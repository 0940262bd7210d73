#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/logger.h"
#include "tests/lib/check_random.h"

#define NOW (INT64_C(1795241352) * NS_PER_S + 123456789)

static void assert_line(enum logger_format format, const char *expected, const struct logger_field *fields, size_t count,
                        uint64_t suppressed)
{
    char line[LOGGER_LINE_SIZE_MAX + 1];
    size_t size = logger_format_line(line, format, NOW, LOGGER_WARNING, "bad packet", fields, count, suppressed);
    line[size] = '\0';
    assert_string_equal(line, expected);
}

static void fields_of_every_type(void **state)
{
    (void)state;
    const struct logger_field fields[] = {
        LOG_STR("client", SPAN_LITERAL("car42")),
        LOG_U64("port", UINT64_MAX),
        LOG_I64("offset", -5),
        LOG_F64("ratio", 0.25),
        LOG_BOOL("clean", true),
        LOG_HEX("id", 0xbeef),
        LOG_DURATION("waited", 1500 * NS_PER_MS),
        LOG_WALL("since", NOW),
        LOG_ERR("error", ERR_FULL),
    };
    assert_line(LOGGER_HUMAN,
                "2026-11-21T06:09:12.123Z WARNING bad packet client=car42 port=18446744073709551615 offset=-5 ratio=0.25 clean=true "
                "id=000000000000beef waited=1500ms since=2026-11-21T06:09:12.123456789Z error=\"full: back-pressure, retry later\"\n",
                fields, 9, 0);
    assert_line(LOGGER_JSON,
                "{\"time\":\"2026-11-21T06:09:12.123Z\",\"level\":\"warning\",\"message\":\"bad packet\",\"client\":\"car42\","
                "\"port\":18446744073709551615,\"offset\":-5,\"ratio\":0.25,\"clean\":true,\"id\":\"000000000000beef\",\"waited\":1.5,"
                "\"since\":\"2026-11-21T06:09:12.123456789Z\",\"error\":\"full: back-pressure, retry later\"}\n",
                fields, 9, 0);
    assert_line(LOGGER_HUMAN, "2026-11-21T06:09:12.123Z WARNING bad packet (12 similar suppressed)\n", NULL, 0, 12);
    assert_line(LOGGER_JSON, "{\"time\":\"2026-11-21T06:09:12.123Z\",\"level\":\"warning\",\"message\":\"bad packet\",\"suppressed\":12}\n",
                NULL, 0, 12);
}

static void hostile_values_are_escaped(void **state)
{
    (void)state;
    const struct logger_field forged = LOG_STR("client", SPAN_LITERAL("x\n2026 INFO all is well\x1b[2J\"\\"));
    assert_line(LOGGER_HUMAN, "2026-11-21T06:09:12.123Z WARNING bad packet client=\"x\\n2026 INFO all is well\\u001b[2J\\\"\\\\\"\n",
                &forged, 1, 0);
    const struct logger_field broken = LOG_STR("client", SPAN_LITERAL("\xff\x00\xe2\x80\xae"
                                                                      "a=b"));
    assert_line(LOGGER_HUMAN, "2026-11-21T06:09:12.123Z WARNING bad packet client=\"\\xff\\u0000\\u202ea=b\"\n", &broken, 1, 0);
    assert_line(LOGGER_JSON,
                "{\"time\":\"2026-11-21T06:09:12.123Z\",\"level\":\"warning\",\"message\":\"bad "
                "packet\",\"client\":\"\\ufffd\\u0000\\u202ea=b\"}\n",
                &broken, 1, 0);
    const struct logger_field empty = LOG_TEXT("client", NULL);
    assert_line(LOGGER_HUMAN, "2026-11-21T06:09:12.123Z WARNING bad packet client=\"\"\n", &empty, 1, 0);
}

/* Whatever comes: one line, printable, quotes balanced in JSON. */
static void random_values_give_one_line(void **state)
{
    (void)state;
    struct check_random random;
    uint8_t *bytes = malloc(3000);
    check_random_init(&random, check_random_seed(7));
    for (int round = 0; round < 3000; round++) {
        char line[LOGGER_LINE_SIZE_MAX];
        struct logger_field fields[12];
        size_t count = check_random_below(&random, 13);
        check_random_fill(&random, bytes, 3000);
        for (size_t i = 0; i < count; i++)
            fields[i] = LOG_STR("key", span_of(bytes + check_random_below(&random, 100), check_random_size(&random, 2900)));
        enum logger_format format = check_random_chance(&random, 1, 2) ? LOGGER_JSON : LOGGER_HUMAN;
        size_t size = logger_format_line(line, format, NOW, LOGGER_INFO, "text", fields, count, check_random_next(&random));
        assert_true(size > 0);
        assert_true(size <= LOGGER_LINE_SIZE_MAX);
        assert_int_equal(line[size - 1], '\n');
        size_t quotes = 0;
        for (size_t i = 0; i + 1 < size; i++) {
            assert_true((uint8_t)line[i] >= 0x20);
            assert_true((uint8_t)line[i] != 0x7f);
            if (line[i] == '\\')
                i++;
            else
                quotes += line[i] == '"';
        }
        assert_int_equal(quotes % 2, 0);
        if (format == LOGGER_JSON)
            assert_int_equal(line[size - 2], '}');
    }
    free(bytes);
}

struct captured {
    pthread_mutex_t lock;
    size_t lines;
    char last[LOGGER_LINE_SIZE_MAX + 1];
};

static void on_line(void *arg, const char *line, size_t size)
{
    struct captured *captured = arg;
    pthread_mutex_lock(&captured->lock);
    captured->lines++;
    memcpy(captured->last, line, size);
    captured->last[size] = '\0';
    pthread_mutex_unlock(&captured->lock);
}

static void repeated_lines_of_a_site_are_held_back_and_counted(void **state)
{
    (void)state;
    struct captured captured = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct logger_stats before = logger_stats();
    logger_capture(on_line, &captured);
    for (int i = 0; i < 500; i++)
        LOG_INFO("again and again", LOG_I64("i", i));
    size_t printed = captured.lines;
    LOG_INFO("another place");
    assert_int_equal(captured.lines, printed + 1);
    assert_true(printed >= LOGGER_SITE_BURST);
    assert_true(printed < 500);
    logger_flush();
    assert_int_equal(captured.lines, printed + 2);
    assert_non_null(strstr(captured.last, "again and again"));
    assert_non_null(strstr(captured.last, "similar suppressed)"));
    logger_flush();
    assert_int_equal(captured.lines, printed + 2);
    assert_int_equal(logger_stats().written - before.written, printed + 2);
    assert_int_equal(logger_stats().suppressed - before.suppressed, 500 - printed);
    logger_capture(NULL, NULL);
}

static int evaluations;
static uint64_t evaluate(void) { return (uint64_t)++evaluations; }

static void a_level_below_the_threshold_evaluates_nothing(void **state)
{
    (void)state;
    struct captured captured = {.lock = PTHREAD_MUTEX_INITIALIZER};
    logger_capture(on_line, &captured);
    LOG_DEBUG("quiet", LOG_U64("value", evaluate()));
    assert_int_equal(captured.lines, 0);
    assert_int_equal(evaluations, 0);
    logger_set_threshold(LOGGER_DEBUG);
    LOG_DEBUG("loud", LOG_U64("value", evaluate()));
    assert_int_equal(captured.lines, 1);
    assert_int_equal(evaluations, 1);
    logger_set_threshold(LOGGER_OFF);
    LOG_ERROR("nobody hears this");
    assert_int_equal(captured.lines, 1);
    logger_set_threshold(LOGGER_INFO);
    logger_capture(NULL, NULL);
}

static void *log_from_thread(void *arg)
{
    for (int i = 0; i < 15; i++)
        LOGGER_AT(LOGGER_INFO, "from a thread", LOG_TEXT("thread", arg));
    return NULL;
}

static void lines_of_threads_reach_the_file_whole(void **state)
{
    (void)state;
    char path[] = "/tmp/logger_test.XXXXXX";
    char line[LOGGER_LINE_SIZE_MAX];
    struct errmsg msg;
    pthread_t threads[4];
    static char names[4][32] = {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbb", "c", "d"};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(logger_open("/nonexistent/directory/x.log", LOGGER_JSON, LOGGER_INFO, &msg), ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "/nonexistent/directory/x.log"));
    assert_int_equal(logger_open(path, LOGGER_JSON, LOGGER_INFO, &msg), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, log_from_thread, names[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    logger_close();
    FILE *file = fopen(path, "r");
    size_t lines = 0;
    while (fgets(line, sizeof line, file)) {
        assert_int_equal(line[0], '{');
        assert_string_equal(line + strlen(line) - 2, "}\n");
        lines++;
    }
    fclose(file);
    unlink(path);
    assert_true(lines >= LOGGER_SITE_BURST);
    assert_int_equal(logger_stats().lost, 0);
    assert_int_equal(logger_open(NULL, LOGGER_HUMAN, LOGGER_INFO, &msg), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_of_every_type),
        cmocka_unit_test(hostile_values_are_escaped),
        cmocka_unit_test(random_values_give_one_line),
        cmocka_unit_test(repeated_lines_of_a_site_are_held_back_and_counted),
        cmocka_unit_test(a_level_below_the_threshold_evaluates_nothing),
        cmocka_unit_test(lines_of_threads_reach_the_file_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
