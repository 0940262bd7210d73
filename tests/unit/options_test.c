#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/option_value.h"
#include "common/options.h"
#include "tests/lib/option_demo.h"

/* One run over a text. */
struct run {
    struct options *options;
    struct demo_config config;
    enum err err;
    struct buf problems;
};

static struct run run_span(struct span text, char *const *environment)
{
    struct run run = {.options = options_new(&demo_table)};
    options_parse_text(run.options, "demo.conf", text);
    if (environment)
        options_parse_environment(run.options, environment);
    run.err = options_finish(run.options, &run.config);
    buf_init(&run.problems, 1 << 20);
    options_print_problems(run.options, &run.problems);
    return run;
}

static struct run run_text(const char *text) { return run_span(span_of_string(text), NULL); }

static void run_end(struct run *run)
{
    options_free(run->options);
    buf_deinit(&run->problems);
}

static const struct demo_listener *listener_of(const struct run *run, size_t index)
{
    assert_true(index < run->config.listeners.count);
    return (const struct demo_listener *)run->config.listeners.items + index;
}

static void assert_problems(const char *text, enum err err, const char *expected)
{
    struct run run = run_text(text);
    assert_string_equal(buf_string(&run.problems), expected);
    assert_int_equal(run.err, err);
    run_end(&run);
}

static void an_empty_file_gives_the_defaults(void **state)
{
    (void)state;
    struct run run = run_text("");
    assert_int_equal(run.err, 0);
    assert_int_equal(run.problems.size, 0);
    assert_true(run.config.persistence);
    assert_int_equal(run.config.inflight, 20);
    assert_int_equal(run.config.packet_size_max, 16 << 20);
    assert_true(run.config.queued_bytes_max == OPTION_UNLIMITED);
    assert_int_equal(run.config.flush_interval_ns, 30 * NS_PER_S);
    assert_true(run.config.expiration_ns == OPTION_UNLIMITED);
    assert_int_equal(run.config.sys_interval_ns, 10 * NS_PER_S);
    assert_int_equal(run.config.mode, DEMO_OBSERVE);
    assert_null(run.config.location);
    assert_int_equal(run.config.telemetry.count, 0);
    assert_int_equal(run.config.listeners.count, 1);
    assert_int_equal(listener_of(&run, 0)->port, 1883);
    assert_null(listener_of(&run, 0)->bind_address);
    assert_true(listener_of(&run, 0)->max_connections == OPTION_UNLIMITED);
    assert_int_equal(options_origin(run.options, "port", 0).source, OPTION_FROM_DEFAULT);
    run_end(&run);
}

static void values_of_every_type(void **state)
{
    (void)state;
    struct run run = run_text("# a comment\n"
                              "\t persistence   false \t\r\n"
                              "persistence_location /var/lib/a b/ \r\n"
                              "\r\n"
                              "   # another\n"
                              "max_inflight_messages\t65535\n"
                              "max_packet_size 64KiB\n"
                              "max_queued_bytes 2GB\n"
                              "flush_interval 200ms\n"
                              "persistent_client_expiration 2m\n"
                              "sys_interval 500ms\n"
                              "secret\n"
                              "mode enforce"); /* and no newline at the end */
    assert_string_equal(buf_string(&run.problems), "");
    assert_int_equal(run.err, 0);
    assert_false(run.config.persistence);
    assert_string_equal(run.config.location, "/var/lib/a b/");
    assert_int_equal(run.config.inflight, 65535);
    assert_int_equal(run.config.packet_size_max, 65536);
    assert_int_equal(run.config.queued_bytes_max, 2000000000);
    assert_int_equal(run.config.flush_interval_ns, 200 * NS_PER_MS);
    assert_int_equal(run.config.expiration_ns, 60 * NS_PER_DAY);
    assert_int_equal(run.config.sys_interval_ns, 500 * NS_PER_MS);
    assert_string_equal(run.config.secret, "");
    assert_int_equal(run.config.mode, DEMO_ENFORCE);
    assert_int_equal(options_origin(run.options, "mode", -1).line, 13);
    run_end(&run);
}

static void all_problems_of_a_file_are_told(void **state)
{
    (void)state;
    assert_problems(
        "persistence yes\n"
        "max_inflight_messages 70000\n"
        "max_inflight_messages -1\n"
        "max_packet_size 64K\n"
        "max_packet_size\n"
        "flush_interval 10\n"
        "persistent_client_expiration 5x\n"
        "mode on\n"
        "max_packet_sise 1MiB\n"
        "wholly_unknown_thing\n"
        "bridge_attempt_unsubscribe true\n"
        "log_timestamp true\n"
        "listener 99999\n"
        "listener 1883 127.0.0.1 more\n"
        "listener 0 /run/socket\n",
        ERR_INVALID,
        "demo.conf:1: persistence: \"yes\" is neither (expected true or false)\n"
        "demo.conf:2: max_inflight_messages: \"70000\" is out of range (expected an integer from 1 to 65535, or unlimited; 0 means "
        "unlimited)\n"
        "demo.conf:3: max_inflight_messages: \"-1\" is out of range (expected an integer from 1 to 65535, or unlimited; 0 means "
        "unlimited)\n"
        "demo.conf:4: max_packet_size: \"64K\" is no size (expected a size such as 64KiB or 1MiB from 1KiB to 256MiB)\n"
        "demo.conf:5: max_packet_size: has no value (expected a size such as 64KiB or 1MiB from 1KiB to 256MiB)\n"
        "demo.conf:6: flush_interval: \"10\" is no duration (expected a duration such as 200us, 10s or 1h from 1ms to 1h)\n"
        "demo.conf:7: persistent_client_expiration: \"5x\" is no duration (expected a duration such as 12h, 3d, 2w, 1m (month) or 1y, or "
        "unlimited)\n"
        "demo.conf:8: mode: \"on\" is none of the choices (expected off, observe or enforce)\n"
        "demo.conf:9: max_packet_sise: unknown key (did you mean max_packet_size?)\n"
        "demo.conf:10: wholly_unknown_thing: unknown key (--help says how to list them all)\n"
        "demo.conf:11: bridge_attempt_unsubscribe: is an option of mosquitto that Tidegate does not support: bridges come with the edge "
        "profile\n"
        "demo.conf:12: warning: log_timestamp: is an option of mosquitto that Tidegate does not need, ignored: lines always carry their "
        "time\n"
        "demo.conf:13: listener: \"99999\" is out of range (expected an integer from 0 to 65535)\n"
        "demo.conf:14: listener: \"1883 127.0.0.1 more\" has more than two parts (expected PORT [ADDRESS])\n"
        "demo.conf:15: listener: Unix domain sockets are not supported (expected PORT [ADDRESS])\n");
}

static void mosquittos_magic_numbers_give_a_notice(void **state)
{
    (void)state;
    struct run run = run_text("max_inflight_messages 0\nmax_connections -1\n");
    assert_int_equal(run.err, 0);
    assert_string_equal(buf_string(&run.problems), "demo.conf:1: notice: max_inflight_messages: 0 means unlimited\n"
                                                   "demo.conf:2: notice: max_connections: -1 means unlimited\n");
    assert_true(run.config.inflight == OPTION_UNLIMITED);
    run_end(&run);
    assert_problems(
        "max_connections 0\n", ERR_INVALID,
        "demo.conf:1: max_connections: \"0\" is out of range (expected an integer from 1 up, or unlimited; -1 means unlimited)\n");
}

static void the_last_value_counts_with_a_warning(void **state)
{
    (void)state;
    struct run run = run_text("mode off\nmode enforce\npersistence_location x\n");
    assert_int_equal(run.err, 0);
    assert_int_equal(run.config.mode, DEMO_ENFORCE);
    assert_string_equal(buf_string(&run.problems), "demo.conf:2: warning: mode: set before at demo.conf:1, which no longer counts\n");
    run_end(&run);
}

static void damaged_bytes_are_refused_by_line(void **state)
{
    (void)state;
    static const char bytes[] = "mode off\nse\0cret x\nsecret \x1b[2J\nsecret \xff\n\x01\x02 x\n";
    struct run run = run_span(span_of(bytes, sizeof bytes - 1), NULL);
    assert_int_equal(run.err, ERR_INVALID);
    assert_string_equal(buf_string(&run.problems),
                        "demo.conf:2: the line holds a NUL byte (expected plain text)\n"
                        "demo.conf:3: secret: the value holds control characters or is not UTF-8 (expected plain text)\n"
                        "demo.conf:4: secret: the value holds control characters or is not UTF-8 (expected plain text)\n"
                        "demo.conf:5: ??: unknown key (--help says how to list them all)\n");
    run_end(&run);
}

static void lines_may_have_64_kib(void **state)
{
    (void)state;
    char *text = malloc(OPTIONS_LINE_SIZE_MAX + 2);
    memset(text, 'x', OPTIONS_LINE_SIZE_MAX + 1);
    memcpy(text, "secret ", 7);
    text[OPTIONS_LINE_SIZE_MAX] = '\0';
    struct run run = run_text(text);
    assert_int_equal(run.err, 0);
    assert_int_equal(strlen(run.config.secret), OPTIONS_LINE_SIZE_MAX - 7);
    run_end(&run);
    text[OPTIONS_LINE_SIZE_MAX] = 'x';
    text[OPTIONS_LINE_SIZE_MAX + 1] = '\0';
    run = run_text(text);
    assert_int_equal(run.err, ERR_INVALID);
    assert_string_equal(buf_string(&run.problems), "demo.conf:1: the line has 65537 bytes (expected at most 65536)\n");
    run_end(&run);
    free(text);
}

static void rules_keep_their_common_order_and_lines(void **state)
{
    (void)state;
    struct run run = run_text("telemetry fleet/{device}/telemetry\n"
                              "telemetry_ignore fleet/+/debug/#\n"
                              "\n"
                              "telemetry plant/{device}/#\n");
    const struct option_list *rules = &run.config.telemetry;
    assert_int_equal(run.err, 0);
    assert_int_equal(rules->count, 3);
    assert_string_equal(rules->items[0].key, "telemetry");
    assert_string_equal(rules->items[1].key, "telemetry_ignore");
    assert_string_equal(rules->items[1].value, "fleet/+/debug/#");
    assert_string_equal(rules->items[2].value, "plant/{device}/#");
    assert_int_equal(rules->items[2].line, 4);
    assert_string_equal(rules->items[2].file, "demo.conf");
    run_end(&run);
    assert_problems("\ntelemetry !x\n", ERR_INVALID, "demo.conf:2: telemetry: begins with '!'\n");
}

static void listener_blocks_own_what_follows_them(void **state)
{
    (void)state;
    struct run run = run_text("allow_anonymous true\n"
                              "listener 1883 127.0.0.1\n"
                              "max_connections 10\n"
                              "listener 8883\n"
                              "password_file /etc/p\n");
    assert_int_equal(run.err, 0);
    assert_int_equal(run.problems.size, 0);
    assert_int_equal(run.config.listeners.count, 2);
    assert_int_equal(listener_of(&run, 0)->port, 1883);
    assert_string_equal(listener_of(&run, 0)->bind_address, "127.0.0.1");
    assert_int_equal(listener_of(&run, 0)->max_connections, 10);
    assert_int_equal(listener_of(&run, 1)->port, 8883);
    assert_null(listener_of(&run, 1)->bind_address);
    assert_true(listener_of(&run, 1)->max_connections == OPTION_UNLIMITED);
    /* without per_listener_settings, security options hold for all wherever they stand */
    for (size_t i = 0; i < 2; i++) {
        assert_true(listener_of(&run, i)->allow_anonymous);
        assert_string_equal(listener_of(&run, i)->password_file, "/etc/p");
    }
    run_end(&run);

    run = run_text("per_listener_settings true\nlistener 1\nallow_anonymous true\nlistener 2\n");
    assert_int_equal(run.config.listeners.count, 2);
    assert_true(listener_of(&run, 0)->allow_anonymous);
    assert_false(listener_of(&run, 1)->allow_anonymous);
    run_end(&run);
    assert_problems("listener 666\n", ERR_INVALID, "demo.conf:1: port: is no lucky number\n");
}

static void the_default_listener_exists_when_one_of_its_options_is_set(void **state)
{
    (void)state;
    struct run run = run_text("listener 8883\nport 1884\nbind_address ::1\nmax_connections 5\n");
    assert_int_equal(run.err, 0);
    assert_int_equal(run.config.listeners.count, 2);
    assert_int_equal(listener_of(&run, 0)->port, 1884);
    assert_string_equal(listener_of(&run, 0)->bind_address, "::1");
    assert_true(listener_of(&run, 0)->max_connections == OPTION_UNLIMITED);
    assert_int_equal(listener_of(&run, 1)->port, 8883);
    assert_int_equal(listener_of(&run, 1)->max_connections, 5);
    assert_string_equal(
        buf_string(&run.problems),
        "demo.conf:2: notice: port: stands outside of the `listener` blocks and therefore opens the default listener too\n");
    run_end(&run);
    run = run_text("port 0\n");
    assert_int_equal(run.config.listeners.count, 1);
    assert_int_equal(listener_of(&run, 0)->port, 0);
    assert_int_equal(options_origin(run.options, "port", 0).source, OPTION_FROM_FILE);
    run_end(&run);
}

static void the_environment_overrides_the_file(void **state)
{
    (void)state;
    char *environment[] = {
        "PATH=/bin",
        "TIDEGATE_MODE=off",
        "TIDEGATE_TELEMETRY=a/{device}; b/{device}",
        "TIDEGATE_MAX_CONNECTIONS=7",
        "TIDEGATE_MOD=off",
        "TIDEGATE_lower=off",
        "TIDEGATE_",
        "TIDEGATE_FLUSH_INTERVAL=fast",
        NULL,
    };
    struct run run = run_span(
        SPAN_LITERAL("mode enforce\ntelemetry x/{device}\ntelemetry_ignore y\nlistener 1\nmax_connections 3\nlistener 2\n"), environment);
    assert_int_equal(run.err, ERR_INVALID);
    assert_string_equal(
        buf_string(&run.problems),
        "environment: warning: mod: unknown key (did you mean mode?)\n"
        "environment: flush_interval: \"fast\" is no duration (expected a duration such as 200us, 10s or 1h from 1ms to 1h)\n");
    assert_int_equal(run.config.mode, DEMO_OFF);
    assert_int_equal(run.config.telemetry.count, 3);
    assert_string_equal(run.config.telemetry.items[0].value, "y");
    assert_string_equal(run.config.telemetry.items[1].value, "a/{device}");
    assert_string_equal(run.config.telemetry.items[2].value, "b/{device}");
    assert_string_equal(run.config.telemetry.items[2].file, "environment");
    assert_int_equal(listener_of(&run, 0)->max_connections, 7);
    assert_int_equal(listener_of(&run, 1)->max_connections, 7);
    run_end(&run);

    char *replacing[] = {"TIDEGATE_LISTENER=11 ::1\n12", "TIDEGATE_TELEMETRY=", NULL};
    run = run_span(SPAN_LITERAL("telemetry x\nlistener 1\nmax_connections 3\n"), replacing);
    assert_int_equal(run.err, 0);
    assert_string_equal(buf_string(&run.problems), "environment: notice: listener: replaces the 1 listeners of the files\n");
    assert_int_equal(run.config.telemetry.count, 0);
    assert_int_equal(run.config.listeners.count, 2);
    assert_string_equal(listener_of(&run, 0)->bind_address, "::1");
    assert_int_equal(listener_of(&run, 1)->port, 12);
    assert_true(listener_of(&run, 1)->max_connections == OPTION_UNLIMITED);
    run_end(&run);
}

static void the_command_line_wins(void **state)
{
    (void)state;
    char *environment[] = {"TIDEGATE_MODE=off", NULL};
    struct options *options = options_new(&demo_table);
    struct demo_config config;
    options_set(options, "mode", "observe");
    options_set(options, "nonsense_key", "1");
    options_parse_text(options, "demo.conf", SPAN_LITERAL("mode enforce\n"));
    options_parse_environment(options, environment);
    assert_int_equal(options_finish(options, &config), ERR_INVALID);
    assert_int_equal(config.mode, DEMO_OBSERVE);
    assert_int_equal(options_problem_count(options, OPTION_ERROR), 1);
    assert_int_equal(options_origin(options, "mode", -1).source, OPTION_FROM_COMMAND_LINE);
    options_free(options);
}

/* What dump prints is a file that gives the same values. */
static void a_dump_is_a_file_of_the_same_meaning(void **state)
{
    (void)state;
    struct run run =
        run_text("mode enforce\npersistence_location /x\nsecret hush\nmax_queued_bytes 1536\ntelemetry a\ntelemetry_ignore b\ntelemetry c\n"
                 "persistent_client_expiration 36h\nport 1884\nallow_anonymous true\nlistener 8883 ::1\nmax_connections 9\n");
    struct buf dump, again;
    buf_init(&dump, 1 << 20);
    buf_init(&again, 1 << 20);
    options_dump(run.options, &dump);
    assert_non_null(strstr(buf_string(&dump), "# demo.conf:1\nmode enforce\n"));
    assert_non_null(strstr(buf_string(&dump), "max_queued_bytes 1536B\n"));
    assert_non_null(strstr(buf_string(&dump), "persistent_client_expiration 36h\n"));
    assert_non_null(strstr(buf_string(&dump), "secret ***\n"));
    assert_null(strstr(buf_string(&dump), "hush"));
    assert_non_null(strstr(buf_string(&dump), "# demo.conf:11\nlistener 8883 ::1\n"));
    struct run second = run_text(buf_string(&dump));
    assert_int_equal(second.err, 0);
    options_dump(second.options, &again);
    /* equal but for the comments that name the lines */
    struct run third = run_text(buf_string(&again));
    assert_int_equal(third.config.listeners.count, 2);
    assert_int_equal(listener_of(&third, 0)->port, 1884);
    assert_int_equal(listener_of(&third, 1)->max_connections, 9);
    assert_int_equal(third.config.telemetry.count, 3);
    assert_string_equal(third.config.telemetry.items[1].key, "telemetry_ignore");
    assert_int_equal(third.config.queued_bytes_max, 1536);
    assert_int_equal(third.config.expiration_ns, 36 * NS_PER_HOUR);
    buf_deinit(&dump);
    buf_deinit(&again);
    run_end(&run);
    run_end(&second);
    run_end(&third);
}

static void on_change(void *arg, const struct option_spec *spec, int listener_index, const char *before, const char *after)
{
    buf_printf(arg, "%s[%d]: %s -> %s\n", spec->name, listener_index, before, after);
}

static void diff_names_what_changed(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 1 << 16);
    struct run before = run_text("telemetry a\nsecret x\nlistener 1\nmax_connections 3\nlistener 2\n");
    struct run after =
        run_text("telemetry a\ntelemetry b\nsecret y\nmode off\nlistener 1\nlistener 2\nmax_connections 4\nallow_anonymous true\n");
    options_diff(before.options, after.options, on_change, &out);
    assert_string_equal(buf_string(&out),
                        "mode[-1]: observe -> off\nsecret[-1]: *** -> ***\ntelemetry[-1]: telemetry a -> telemetry a\ntelemetry b\n"
                        "max_connections[0]: 3 -> unlimited\nallow_anonymous[0]: false -> true\n"
                        "max_connections[1]: unlimited -> 4\n");
    run_end(&after);
    buf_clear(&out);
    after = run_text("telemetry a\nsecret x\nlistener 1 ::1\n");
    options_diff(before.options, after.options, on_change, &out);
    assert_string_equal(buf_string(&out), "listener[-1]: 1, 2 -> 1 ::1\n");
    run_end(&before);
    run_end(&after);
    buf_deinit(&out);
}

static void documents_name_every_option(void **state)
{
    (void)state;
    struct buf help, markdown;
    buf_init(&help, 1 << 20);
    buf_init(&markdown, 1 << 20);
    options_help(&demo_table, &help);
    options_markdown(&demo_table, &markdown);
    for (size_t i = 0; i < demo_table.spec_count; i++) {
        char cell[100];
        snprintf(cell, sizeof cell, "\n  %s ", demo_specs[i].name);
        assert_non_null(strstr(buf_string(&help), cell));
        snprintf(cell, sizeof cell, "\n| `%s` | ", demo_specs[i].name);
        assert_non_null(strstr(buf_string(&markdown), cell));
    }
    assert_non_null(strstr(buf_string(&markdown),
                           "| `max_inflight_messages` | an integer from 1 to 65535, or unlimited (messages); 0 means unlimited | "
                           "`20` | for new connections | Window of outgoing messages. *Name and meaning as in mosquitto.* |\n"));
    assert_non_null(strstr(buf_string(&markdown), "Off \\| on."));
    assert_non_null(strstr(buf_string(&markdown), "| `log_timestamp` | ignored with a warning | lines always carry their time |"));
    buf_deinit(&help);
    buf_deinit(&markdown);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void files_and_their_includes(void **state)
{
    (void)state;
    char directory[] = "/tmp/options_test.XXXXXX";
    char main_path[200], first[200], second[200], other[200], text[300], expected[500];
    struct demo_config config;
    assert_non_null(mkdtemp(directory));
    snprintf(main_path, sizeof main_path, "%s/main", directory);
    snprintf(first, sizeof first, "%s/a.conf", directory);
    snprintf(second, sizeof second, "%s/b.conf", directory);
    snprintf(other, sizeof other, "%s/c.txt", directory);
    snprintf(text, sizeof text, "include_dir %s\nmax_inflight_messages 5\n", directory);
    write_file(main_path, text);
    write_file(first, "telemetry one\n");
    write_file(second, "telemetry two\nnonsense_key 1\n");
    write_file(other, "broken\n");
    struct options *options = options_new(&demo_table);
    assert_int_equal(options_load(options, main_path, NULL, &config), ERR_INVALID);
    struct buf problems;
    buf_init(&problems, 1 << 16);
    options_print_problems(options, &problems);
    snprintf(expected, sizeof expected, "%s:2: nonsense_key: unknown key (--help says how to list them all)\n", second);
    assert_string_equal(buf_string(&problems), expected);
    assert_int_equal(config.inflight, 5);
    assert_int_equal(config.telemetry.count, 2);
    assert_string_equal(config.telemetry.items[1].value, "two");
    options_free(options);

    options = options_new(&demo_table);
    buf_clear(&problems);
    assert_int_equal(options_load(options, "/nonexistent/x.conf", NULL, &config), ERR_INVALID);
    options_print_problems(options, &problems);
    assert_string_equal(buf_string(&problems), "/nonexistent/x.conf: cannot open: No such file or directory\n");
    options_free(options);
    options = options_new(&demo_table);
    assert_int_equal(options_load(options, directory, NULL, &config), ERR_INVALID);
    options_free(options);
    buf_deinit(&problems);
    unlink(main_path);
    unlink(first);
    unlink(second);
    unlink(other);
    rmdir(directory);
}

static void single_values(void **state)
{
    (void)state;
    int64_t number = 0;
    bool flag;
    assert_true(option_parse_int(&number, SPAN_LITERAL("9223372036854775807")));
    assert_true(number == INT64_MAX);
    assert_true(option_parse_int(&number, SPAN_LITERAL("-9223372036854775808")));
    assert_true(number == INT64_MIN);
    assert_false(option_parse_int(&number, SPAN_LITERAL("9223372036854775808")));
    assert_false(option_parse_int(&number, SPAN_LITERAL("-9223372036854775809")));
    assert_false(option_parse_int(&number, SPAN_LITERAL("")));
    assert_false(option_parse_int(&number, SPAN_LITERAL("-")));
    assert_false(option_parse_int(&number, SPAN_LITERAL("0x10")));
    assert_false(option_parse_int(&number, SPAN_LITERAL("1 ")));
    assert_true(option_parse_size(&number, SPAN_LITERAL("3TiB")));
    assert_true(number == INT64_C(3) << 40);
    assert_true(option_parse_size(&number, SPAN_LITERAL("0")));
    assert_false(option_parse_size(&number, SPAN_LITERAL("-1")));
    assert_false(option_parse_size(&number, SPAN_LITERAL("1kib")));
    assert_false(option_parse_size(&number, SPAN_LITERAL("9999999999TiB")));
    assert_true(option_parse_bool(&flag, SPAN_LITERAL("true")));
    assert_false(option_parse_bool(&flag, SPAN_LITERAL("1")));
}

static void a_flood_of_problems_is_bounded(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text, 1 << 20);
    for (int i = 0; i < OPTIONS_PROBLEM_COUNT_MAX * 2; i++)
        buf_put_string(&text, "zzzzzzzzzzzzz 1\n");
    struct run run = run_span(buf_span(&text), NULL);
    assert_int_equal(run.err, ERR_INVALID);
    assert_int_equal(options_problem_count(run.options, OPTION_NOTICE), OPTIONS_PROBLEM_COUNT_MAX + 1);
    run_end(&run);
    buf_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_file_gives_the_defaults),
        cmocka_unit_test(values_of_every_type),
        cmocka_unit_test(all_problems_of_a_file_are_told),
        cmocka_unit_test(mosquittos_magic_numbers_give_a_notice),
        cmocka_unit_test(the_last_value_counts_with_a_warning),
        cmocka_unit_test(damaged_bytes_are_refused_by_line),
        cmocka_unit_test(lines_may_have_64_kib),
        cmocka_unit_test(rules_keep_their_common_order_and_lines),
        cmocka_unit_test(listener_blocks_own_what_follows_them),
        cmocka_unit_test(the_default_listener_exists_when_one_of_its_options_is_set),
        cmocka_unit_test(the_environment_overrides_the_file),
        cmocka_unit_test(the_command_line_wins),
        cmocka_unit_test(a_dump_is_a_file_of_the_same_meaning),
        cmocka_unit_test(diff_names_what_changed),
        cmocka_unit_test(documents_name_every_option),
        cmocka_unit_test(files_and_their_includes),
        cmocka_unit_test(single_values),
        cmocka_unit_test(a_flood_of_problems_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
