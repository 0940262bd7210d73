/* The sink's threads on a real directory, fed by a real log writer: publish, query over HTTP, flush, end, start again. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/data_dir.h"
#include "common/log_writer.h"
#include "common/murmur2.h"
#include "sink/query/query_api.h"
#include "sink/query/query_client.h"
#include "sink/store/verify.h"

#define WAIT_NS (20 * NS_PER_S) /* for what takes milliseconds: a bound for a stuck test, not a measure */

/* What stands for the broker. */
struct broker {
    char dir[128];
    struct log_writer *writer;
    struct log_block_pool pool;
};

struct fixture {
    char root[64];
    struct broker broker;
    struct options *options;
    struct sink_config config;
    struct metrics_registry *metrics;
    struct sink_loop *loop;
    struct query_api *api;
    struct buf body;
    unsigned status;
    struct query_answer answer;
};

static void broker_start(struct fixture *f)
{
    struct broker *broker = &f->broker;
    struct errmsg msg = {""};
    snprintf(broker->dir, sizeof broker->dir, "%s/log", f->root);
    const struct log_writer_options options = {
        .fs = fs_posix(), .dir = broker->dir, .segment_size = 1 << 20, .log_bytes_max = 16 << 20, .wall_ns = clock_wall()};
    enum err err = log_writer_open(&broker->writer, &options, NULL, &msg);
    CHECK_MSG(err == ERR_OK, "%s", msg.text);
    CHECK(log_writer_ensure_cursor(broker->writer, "sink", &msg) == ERR_OK);
    CHECK(log_block_pool_init(&broker->pool, 0, 8, LOG_BLOCK_BODY_MAX, log_writer_alignment(broker->writer)) == ERR_OK);
}

static void broker_stop(struct fixture *f)
{
    log_block_pool_deinit(&f->broker.pool);
    log_writer_close(f->broker.writer);
}

static void publish(struct fixture *f, const char *device, const char *payload)
{
    static int64_t received_ns;
    struct broker *broker = &f->broker;
    struct errmsg msg;
    int64_t now = clock_wall(), wait_ns;
    received_ns = now > received_ns ? now : received_ns + 1;
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 1,
                         .topic = SPAN_LITERAL("fleet/x/telemetry"),
                         .payload = span_of_string(payload),
                         .device = span_of_string(device),
                         .partition_count = 1,
                         .codec = RECORD_CODEC_JSON,
                         .received_ns = received_ns,
                         .has_correlation = true,
                         .correlation = {0xab, 0xcd}};
    struct log_block *block = log_block_pool_get(&broker->pool);
    CHECK(block);
    CHECK(log_block_append(block, &rec) == ERR_OK);
    log_block_seal(&broker->pool, block);
    log_writer_begin(broker->writer, &block, 1);
    CHECK(log_writer_write(broker->writer, &msg) == ERR_OK);
    CHECK(log_writer_finish(broker->writer, clock_mono()) == ERR_OK);
    log_block_pool_put(&broker->pool, block);
    while (!log_writer_idle(broker->writer, &wait_ns, clock_mono()) && wait_ns > 0)
        usleep((useconds_t)(wait_ns / 1000 + 1));
}

static void configure(struct fixture *f, const char *more)
{
    char text[1024], path[128];
    struct buf problems;
    snprintf(text, sizeof text, "data_directory %s/data\nbroker_log %s/log\nhttp_port 0\nhead_memory 8MiB\npartitions 2\n%s", f->root,
             f->root, more);
    f->options = options_new(&sink_options_table);
    options_parse_text(f->options, "test.conf", span_of_string(text));
    buf_init(&problems, 1 << 16);
    enum err err = options_finish(f->options, &f->config);
    options_print_problems(f->options, &problems);
    CHECK_MSG(err == ERR_OK, "%s", buf_string(&problems));
    buf_deinit(&problems);
    snprintf(path, sizeof path, "%s/data", f->root);
    CHECK(data_dir_make(path, NULL) == ERR_OK);
}

static enum err sink_try_start(struct fixture *f, const char *more, struct errmsg *msg)
{
    configure(f, more);
    f->metrics = metrics_registry_new();
    enum err err = sink_loop_new(&f->loop, fs_posix(), &f->config, f->metrics, msg);
    if (err)
        return err;
    err = query_api_new(&f->api, f->loop, &f->config, f->metrics, msg);
    return err ? err : sink_loop_start(f->loop, msg);
}

static void sink_start(struct fixture *f, const char *more)
{
    struct errmsg msg = {""};
    enum err err = sink_try_start(f, more, &msg);
    CHECK_MSG(err == ERR_OK, "%s", msg.text);
}

static enum err sink_stop(struct fixture *f)
{
    enum err err = f->loop ? sink_loop_stop(f->loop) : ERR_OK;
    query_api_free(f->api);
    metrics_registry_free(f->metrics);
    sink_loop_free(f->loop);
    options_free(f->options);
    f->loop = NULL;
    f->api = NULL;
    f->metrics = NULL;
    return err;
}

static void get(struct fixture *f, const char *target)
{
    char port[16];
    struct errmsg msg = {""};
    snprintf(port, sizeof port, "%u", query_api_port(f->api));
    buf_clear(&f->body);
    enum err err = query_client_get("127.0.0.1", port, target, &f->answer, &f->body, &msg);
    f->status = f->answer.status;
    CHECK_MSG(err == ERR_OK, "%s", msg.text);
}

static bool has(struct fixture *f, const char *text) { return strstr(buf_string(&f->body), text) != NULL; }

/* Ask until the answer has `text`. */
static void get_until(struct fixture *f, const char *target, const char *text)
{
    mono_ns until = clock_mono() + WAIT_NS;
    for (get(f, target); !has(f, text); get(f, target)) {
        CHECK_MSG(clock_mono() < until, "%s never had %s: %s", target, text, buf_string(&f->body));
        usleep(5000);
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->root, "/tmp/tidegate-sink-test-XXXXXX");
    CHECK(mkdtemp(f->root));
    buf_init(&f->body, 1 << 24);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];
    buf_deinit(&f->body);
    snprintf(command, sizeof command, "rm -rf '%s'", f->root);
    CHECK(system(command) == 0);
    free(f);
    return 0;
}

static void test_publish_is_queryable_and_stays(void **state)
{
    struct fixture *f = *state;
    sink_start(f, ""); /* before the broker */
    get(f, "/healthz");
    assert_true(has(f, "\"state\":\"waiting\""));
    broker_start(f);
    publish(f, "car42", "{\"ts\":1700000000123,\"speed\":61.5,\"gps\":{\"lat\":52.25},\"on\":true,\"name\":\"x\"}");
    publish(f, "car42", "[{\"ts\":1700000001,\"speed\":-0.0},{\"ts\":\"2023-11-14T22:13:22+00:00\",\"speed\":1e-7}]");
    get_until(f, "/api/v1/query?device=car42", "\"row_count\":3");
    assert_true(has(f, "\"columns\":[\"gps.lat\",\"on\",\"speed\"]"));
    assert_true(has(
        f,
        "{\"time\":\"2023-11-14T22:13:20.123Z\",\"time_ns\":1700000000123000000,\"values\":{\"gps.lat\":52.25,\"on\":1,\"speed\":61.5}}"));
    assert_true(has(f, "\"values\":{\"speed\":-0}"));
    for (int round = 0; round < 3; round++) {
        assert_int_equal(sink_loop_flush(f->loop, WAIT_NS), ERR_OK);
        get(f, "/api/v1/query?device=car42&metric=speed&metric=nothing&format=csv");
        assert_string_equal(buf_string(&f->body), "time,time_ns,speed,nothing\r\n"
                                                  "2023-11-14T22:13:20.123Z,1700000000123000000,61.5,\r\n"
                                                  "2023-11-14T22:13:21Z,1700000001000000000,-0,\r\n"
                                                  "2023-11-14T22:13:22Z,1700000002000000000,1e-07,\r\n");
        assert_int_equal(sink_stop(f), ERR_OK);
        sink_start(f, "");
        get_until(f, "/healthz", "\"state\":\"reading\"");
    }
    get(f, "/metrics");
    assert_true(has(f, "tidegate_sink_segments 1\n"));
    assert_true(has(f, "tidegate_sink_telemetry_records_total 0\n")); /* the cursor was given back: nothing is read again */
    get(f, "/api/v1/query?device=car42&from=2023-11-14T22:13:21Z&to=1700000001");
    assert_true(has(f, "\"row_count\":1"));
    get(f, "/api/v1/query?device=car42&limit=2");
    assert_true(has(f, "\"row_count\":2"));
    assert_true(has(f, "\"truncated\":true"));
    assert_true(has(f, "\"next_ns\":1700000002000000000"));
    get(f, "/api/v1/query?device=car42&limit=2&format=csv"); /* has no room for a word about it: the head says it */
    assert_true(f->answer.is_cut);
    assert_int_equal(f->answer.next_ns, 1700000002000000000);
    get(f, "/api/v1/query?device=car42&limit=3&format=csv");
    assert_false(f->answer.is_cut);
    get(f, "/api/v1/devices");
    assert_true(has(f, "{\"device\":\"car42\",\"newest\":\"2023-11-14T22:13:22Z\""));
    get(f, "/api/v1/query?device=nobody");
    assert_true(has(f, "\"row_count\":0"));
    get(f, "/api/v1/query");
    assert_int_equal(f->status, 400);
    get(f, "/api/v1/query?device=car42&from=yesterday");
    assert_int_equal(f->status, 400);
    get(f, "/api/v1/query?device=car42&from=-1h&to=-2h");
    assert_int_equal(f->status, 400);
    get(f, "/api/v1/query?device=car42&form=-1h"); /* a misspelt name is not passed over */
    assert_int_equal(f->status, 400);
    assert_true(has(f, "form: unknown"));
    get(f, "/api/v1/query?device=car42&device=car43");
    assert_int_equal(f->status, 400);
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

static void test_killed_before_the_flush(void **state)
{
    struct fixture *f = *state;
    char payload[64];
    broker_start(f);
    sink_start(f, "");
    for (int i = 0; i < 100; i++) {
        snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d}", 1700000000 + i, i);
        publish(f, i % 2 ? "a" : "b", payload);
        if (i == 49)
            assert_int_equal(sink_loop_flush(f->loop, WAIT_NS), ERR_OK);
    }
    get_until(f, "/api/v1/query?device=a", "\"row_count\":50");
    get_until(f, "/api/v1/query?device=b", "\"row_count\":50");
    /* A copy of the directory is what a killed process would leave. */
    char command[512];
    snprintf(command, sizeof command, "cp -a '%s/data' '%s/killed' && cp -a '%s/log/cursor.sink' '%s/cursor'", f->root, f->root, f->root,
             f->root);
    assert_int_equal(system(command), 0);
    assert_int_equal(sink_stop(f), ERR_OK);
    snprintf(command, sizeof command, "rm -rf '%s/data' && mv '%s/killed' '%s/data' && mv '%s/cursor' '%s/log/cursor.sink'", f->root,
             f->root, f->root, f->root, f->root);
    assert_int_equal(system(command), 0);
    sink_start(f, "");
    get_until(f, "/api/v1/query?device=a", "\"row_count\":50");
    get_until(f, "/api/v1/query?device=b", "\"row_count\":50");
    get(f, "/metrics");
    assert_true(has(f, "tidegate_sink_rows_total 50\n")); /* those after the flush, and no other */
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

static void test_what_is_no_telemetry_is_kept_aside(void **state)
{
    struct fixture *f = *state;
    char path[128], line[4096];
    broker_start(f);
    sink_start(f, "partitions 1\nmax_devices 2\nmax_metrics_per_device 2\n");
    publish(f, "a", "aaaaaaaa");
    publish(f, "a", "{\"name\":\"only text\"}");
    publish(f, "a", "{\"ts\":9e18,\"v\":1}");
    publish(f, "a", "{\"ts\":\"soon\",\"v\":1}");
    publish(f, "a", "{\"v\":1,\"w\":2,\"x\":3}");
    publish(f, "b", "{\"v\":1}");
    publish(f, "c", "{\"v\":1}");
    publish(f, "", "{\"v\":1}");
    get_until(f, "/metrics", "tidegate_sink_quarantined_total{reason=\"no_device\"} 1\n");
    static const char *const reasons[] = {"not_json", "no_metrics", "future", "bad_time", "metric_cap", "device_cap", "no_device"};
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        snprintf(line, sizeof line, "tidegate_sink_quarantined_total{reason=\"%s\"} 1\n", reasons[i]);
        assert_true(has(f, line));
    }
    get(f, "/api/v1/query?device=a");
    assert_true(has(f, "\"values\":{\"v\":1,\"w\":2}"));
    get(f, "/healthz");
    assert_int_equal(f->status, 200);
    assert_true(has(f, "\"quarantined\":7"));
    assert_int_equal(sink_stop(f), ERR_OK);
    snprintf(path, sizeof path, "%s/data/partitions/1/0/quarantine/current.jsonl", f->root);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "{\"reason\":\"%s\",", reasons[i]);
        assert_non_null(fgets(line, sizeof line, file));
        assert_true(strncmp(line, wanted, strlen(wanted)) == 0);
        assert_non_null(strstr(line, "\"correlation\":\"abcd0000"));
    }
    fclose(file);
    broker_stop(f);
}

static void test_second_sink_is_refused(void **state)
{
    struct fixture *f = *state;
    struct fixture second = *f;
    struct errmsg msg = {""};
    broker_start(f);
    sink_start(f, "");
    assert_int_equal(sink_try_start(&second, "", &msg), ERR_LOCKED); /* the same partitions */
    sink_stop(&second);
    char more[128];
    snprintf(more, sizeof more, "data_directory %s/other\n", f->root);
    snprintf(msg.text, sizeof msg.text, "%s/other", f->root);
    CHECK(data_dir_make(msg.text, NULL) == ERR_OK);
    assert_int_equal(sink_try_start(&second, more, &msg), ERR_LOCKED); /* the same log */
    assert_non_null(strstr(msg.text, "cursor.sink is held by another sink"));
    sink_stop(&second);
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

static void test_partition_count_changes(void **state)
{
    struct fixture *f = *state;
    static const char *const counts[] = {"partitions 1\n", "partitions 3\n", "partitions 1\n"};
    char payload[96];
    broker_start(f);
    for (int round = 0; round < 3; round++) {
        sink_start(f, counts[round]);
        for (int d = 0; d < 6; d++) {
            char device[8] = {(char)('a' + d), 0};
            /* One row a round, and one that every round overwrites. */
            snprintf(payload, sizeof payload, "[{\"ts\":%d,\"v\":%d},{\"ts\":1600000000,\"v\":%d}]", 1700000000 + round, round, round);
            publish(f, device, payload);
        }
        for (int d = 0; d < 6; d++) {
            char target[64], wanted[64];
            snprintf(target, sizeof target, "/api/v1/query?device=%c", 'a' + d);
            snprintf(wanted, sizeof wanted, "\"row_count\":%d", round + 2);
            get_until(f, target, wanted);
            snprintf(wanted, sizeof wanted, "\"time_ns\":1600000000000000000,\"values\":{\"v\":%d}", round);
            assert_true(has(f, wanted));
        }
        assert_int_equal(sink_stop(f), ERR_OK);
    }
    broker_stop(f);
}

static void test_compaction_and_verify(void **state)
{
    struct fixture *f = *state;
    char payload[64], path[128];
    struct verify_report report;
    broker_start(f);
    sink_start(f, "partitions 1\ncompaction_fan_in 4\n");
    for (int i = 0; i < 40; i++) {
        snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d}", 1700000000 + i, i);
        publish(f, "a", payload);
        if (i % 5 == 4)
            assert_int_equal(sink_loop_flush(f->loop, WAIT_NS), ERR_OK);
        if (i == 19)
            get_until(f, "/metrics", "tidegate_sink_compactions_total 1\n");
    }
    get_until(f, "/metrics", "tidegate_sink_compactions_total 2\n");
    assert_true(has(f, "tidegate_sink_segments 2\n"));
    get(f, "/api/v1/query?device=a");
    assert_true(has(f, "\"row_count\":40"));
    assert_int_equal(sink_stop(f), ERR_OK);
    snprintf(path, sizeof path, "%s/data", f->root);
    assert_int_equal(verify_data_directory(&report, fs_posix(), path, stdout), ERR_OK);
    assert_int_equal(report.rows, 40);
    assert_int_equal(report.segments, 2);
    /* One flipped byte is found, the rest is served. */
    char command[512];
    snprintf(command, sizeof command,
             "for f in '%s'/data/partitions/1/0/*.seg; do printf X | dd of=\"$f\" bs=1 seek=140 conv=notrunc status=none; break; done",
             f->root);
    assert_int_equal(system(command), 0);
    FILE *null = fopen("/dev/null", "w");
    assert_int_equal(verify_data_directory(&report, fs_posix(), path, null), ERR_CORRUPT);
    fclose(null);
    assert_int_equal(report.problems, 1);
    sink_start(f, "partitions 1\n");
    get(f, "/api/v1/query?device=a");
    assert_int_equal(f->status, 200);
    assert_true(has(f, "\"row_count\":20"));
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

/* Devices of head, sealed head, segments and several partitions: each once, in order, in pages. */
/* Asks again and again until the listener is gone. */
static void *ask_to_the_end(void *arg)
{
    char port[16];
    struct query_answer answer;
    struct errmsg msg;
    struct buf body;
    enum err err = ERR_OK;
    snprintf(port, sizeof port, "%u", *(unsigned *)arg);
    buf_init(&body, 1 << 20);
    for (unsigned n = 0; err == ERR_OK; n++) {
        static const char *const targets[] = {"/api/v1/devices", "/api/v1/query?device=d3", "/metrics"};
        buf_clear(&body);
        err = query_client_get("127.0.0.1", port, targets[n % 3], &answer, &body, &msg);
    }
    buf_deinit(&body);
    return NULL;
}

/* The last flush, at the end, shares its partitions with queries that still run; ThreadSanitizer sees whether they keep to the locks. */
static void test_queries_while_ending(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[3];
    char device[16], payload[64];
    broker_start(f);
    for (int round = 0; round < 3; round++) {
        sink_start(f, "flush_interval 1h\n");
        unsigned port = query_api_port(f->api);
        for (int i = 0; i < 3; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, ask_to_the_end, &port), 0);
        for (int i = 0; i < 40; i++) {
            snprintf(device, sizeof device, "d%d", i % 8);
            snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d}", 1700000000 + round * 40 + i, i);
            publish(f, device, payload);
        }
        snprintf(payload, sizeof payload, "\"row_count\":%d", (round + 1) * 5);
        get_until(f, "/api/v1/query?device=d7", payload);
        assert_int_equal(sink_stop(f), ERR_OK);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
    }
    broker_stop(f);
}

static void test_devices(void **state)
{
    struct fixture *f = *state;
    char target[96], wanted[160], device[16];
    broker_start(f);
    sink_start(f, "partitions 3\n");
    for (int i = 0; i < 90; i++) {
        snprintf(device, sizeof device, "%s%02d", i % 3 ? "car" : "van", i % 30);
        char payload[64];
        snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d}", 1700000000 + i, i);
        publish(f, device, payload);
        if (i == 20 || i == 50)
            assert_int_equal(sink_loop_flush(f->loop, WAIT_NS), ERR_OK);
    }
    get_until(f, "/api/v1/devices?prefix=car29", "2023-11-14T22:14:49Z"); /* 60 + 29 s: the last row is in */
    get(f, "/api/v1/devices");
    assert_true(has(f, "\"truncated\":false"));
    const char *at = buf_string(&f->body);
    for (int i = 0; i < 30; i++) {
        int number = i < 20 ? i / 2 * 3 + i % 2 + 1 : (i - 20) * 3;
        snprintf(wanted, sizeof wanted, "{\"device\":\"%s%02d\",\"newest\":\"2023-11-14T22:14:%02dZ\"", i < 20 ? "car" : "van", number,
                 20 + number);
        const char *found = strstr(at, wanted);
        assert_non_null(found);
        assert_null(strstr(found + 1, wanted));
        at = found;
    }
    /* Page by page the same. */
    strcpy(device, "");
    for (int seen = 0; seen < 30;) {
        snprintf(target, sizeof target, "/api/v1/devices?limit=7&after=%s", device);
        get(f, target);
        assert_int_equal(has(f, "\"truncated\":true"), seen + 7 < 30);
        for (at = buf_string(&f->body); (at = strstr(at, "{\"device\":\"")) != NULL; seen++) {
            at += 11;
            assert_true(strncmp(at, device, 5) > 0);
            memcpy(device, at, 5);
            device[5] = 0;
        }
    }
    assert_string_equal(device, "van27");
    get(f, "/api/v1/devices?prefix=van&limit=1");
    assert_true(has(f, "\"van00\""));
    assert_true(has(f, "\"truncated\":true"));
    get(f, "/api/v1/devices?prefix=zeppelin");
    assert_true(has(f, "{\"devices\":[],\"truncated\":false}"));
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

static bool log_file_exists(const struct fixture *f, const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/log/%s", f->root, name);
    return access(path, F_OK) == 0;
}

static void log_file_move(const struct fixture *f, const char *from, const char *to)
{
    char path_from[160], path_to[160];
    snprintf(path_from, sizeof path_from, "%s/log/%s", f->root, from);
    snprintf(path_to, sizeof path_to, "%s/log/%s", f->root, to);
    assert_int_equal(rename(path_from, path_to), 0);
}

/* Rows with 40 KB that do not compress away, until the log's first segment has been reused. Returns how many. */
static int publish_past_the_first_segment(struct fixture *f)
{
    static char payload[45000];
    uint64_t random = 88172645463325252u;
    int count = 0;
    while (log_file_exists(f, "0000000000000001.seg")) {
        count++;
        int used = snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d,\"pad\":\"", 1700000000 + count, count);
        for (int i = 0; i < 40000; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            payload[used++] = (char)('0' + random % 64);
            if (payload[used - 1] == '\\')
                payload[used - 1] = 'z';
        }
        memcpy(payload + used, "\"}", 3);
        publish(f, "pad", payload);
        struct errmsg msg;
        while (log_writer_prepare(f->broker.writer, &msg) == ERR_AGAIN)
            ;
        CHECK(count < 1000);
    }
    return count;
}

static void test_gap(void **state)
{
    struct fixture *f = *state;
    char wanted[96];
    broker_start(f);
    sink_start(f, "");
    publish(f, "car42", "{\"ts\":1700000000,\"v\":1}");
    get_until(f, "/api/v1/query?device=car42", "\"row_count\":1");
    assert_int_equal(sink_stop(f), ERR_OK);
    /* Somebody removes the cursor, the broker reuses what nobody holds, somebody puts the cursor back. */
    log_file_move(f, "cursor.sink", "aside");
    int count = publish_past_the_first_segment(f);
    log_file_move(f, "aside", "cursor.sink");
    sink_start(f, "");
    get_until(f, "/healthz", "\"state\":\"gap\"");
    assert_int_equal(f->status, 503);
    assert_true(has(f, "records 2 to "));
    assert_true(has(f, "are gone"));
    get(f, "/api/v1/query?device=car42");
    assert_true(has(f, "\"row_count\":1"));
    assert_int_equal(sink_stop(f), ERR_OK);
    sink_start(f, ""); /* and the same again: nothing was passed over */
    get_until(f, "/healthz", "records 2 to ");
    assert_int_equal(sink_stop(f), ERR_OK);
    sink_start(f, "accept_gap true\n");
    snprintf(wanted, sizeof wanted, "\"values\":{\"v\":%d}", count);
    get_until(f, "/api/v1/query?device=pad", wanted);
    get(f, "/metrics");
    unsigned long long gone = 0;
    const char *line = strstr(buf_string(&f->body), "\ntidegate_sink_gap_records_total ");
    assert_non_null(line);
    assert_int_equal(sscanf(line, " tidegate_sink_gap_records_total %llu", &gone), 1);
    assert_true(gone > 0);
    get(f, "/api/v1/query?device=pad");
    snprintf(wanted, sizeof wanted, "\"row_count\":%llu,", (unsigned long long)count - gone); /* each is either stored or told of */
    assert_true(has(f, wanted));
    assert_int_equal(sink_stop(f), ERR_OK);
    sink_start(f, "");
    get_until(f, "/healthz", "\"state\":\"reading\"");
    publish(f, "car42", "{\"ts\":1700000001,\"v\":2}");
    get_until(f, "/api/v1/query?device=car42", "\"row_count\":2");
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

/* The real file system, on which one directory has no space while it is told so. */
static struct {
    struct fs fs;
    struct fs_ops ops;
    bool is_full;
} full;

static enum err full_open(struct fs *fs, struct file **file_out, const char *path, unsigned flags)
{
    if (flags & FILE_CREATE && strstr(path, "/partitions/2/0/") && __atomic_load_n(&full.is_full, __ATOMIC_RELAXED))
        return ERR_NOSPACE;
    return fs_posix()->ops->open(fs, file_out, path, flags);
}

/* A partition without space is tried again, said, and does not hold up the other. */
static void test_full_partition(void **state)
{
    struct fixture *f = *state;
    struct errmsg msg = {""};
    char target[64], devices[2][16] = {"", ""};
    for (int i = 0; !devices[0][0] || !devices[1][0]; i++) {
        char name[16];
        snprintf(name, sizeof name, "d%d", i);
        strcpy(devices[murmur2_partition(span_of_string(name), 2)], name);
    }
    full.ops = *fs_posix()->ops;
    full.ops.open = full_open;
    full.fs.ops = &full.ops;
    broker_start(f);
    configure(f, "flush_interval 100ms\n");
    f->metrics = metrics_registry_new();
    CHECK(sink_loop_new(&f->loop, &full.fs, &f->config, f->metrics, &msg) == ERR_OK);
    CHECK(query_api_new(&f->api, f->loop, &f->config, f->metrics, &msg) == ERR_OK);
    CHECK(sink_loop_start(f->loop, &msg) == ERR_OK);
    __atomic_store_n(&full.is_full, true, __ATOMIC_RELAXED);
    publish(f, devices[0], "{\"ts\":1,\"v\":1}");
    get_until(f, "/healthz", "\"what\":\"partition 0 of 2\"");
    assert_int_equal(f->status, 200); /* degraded: it serves */
    assert_true(has(f, "\"status\":\"degraded\""));
    publish(f, devices[1], "{\"ts\":1,\"v\":1}");
    get_until(f, "/metrics", "tidegate_sink_flushes_total 1\n"); /* of the other partition */
    get_until(f, "/metrics", "tidegate_queue_messages{queue=\"sink_head\"} 1\n");
    snprintf(target, sizeof target, "/api/v1/query?device=%s", devices[0]);
    get(f, target);
    assert_true(has(f, "\"row_count\":1"));
    __atomic_store_n(&full.is_full, false, __ATOMIC_RELAXED);
    get_until(f, "/metrics", "tidegate_sink_flushes_total 2\n");
    get_until(f, "/healthz", "\"status\":\"ok\"");
    /* At the end the truth is told. */
    __atomic_store_n(&full.is_full, true, __ATOMIC_RELAXED);
    publish(f, devices[0], "{\"ts\":2,\"v\":2}");
    publish(f, devices[1], "{\"ts\":2,\"v\":2}");
    snprintf(target, sizeof target, "/api/v1/query?device=%s", devices[1]);
    get_until(f, target, "\"row_count\":2");
    assert_int_equal(sink_stop(f), ERR_NOSPACE);
    __atomic_store_n(&full.is_full, false, __ATOMIC_RELAXED);
    sink_start(f, "");
    get_until(f, target, "\"row_count\":2");
    snprintf(target, sizeof target, "/api/v1/query?device=%s", devices[0]);
    get_until(f, target, "\"row_count\":2");
    assert_int_equal(sink_stop(f), ERR_OK);
    broker_stop(f);
}

static char captured[1 << 16];

static void capture(void *arg, const char *line, size_t line_size)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    size_t *used = arg;
    pthread_mutex_lock(&mutex);
    if (*used + line_size < sizeof captured) {
        memcpy(captured + *used, line, line_size);
        *used += line_size;
    }
    pthread_mutex_unlock(&mutex);
}

/* A record is found again in the metrics and in the log lines by the id that the broker gave it. */
static void test_correlation(void **state)
{
    struct fixture *f = *state;
    size_t used = 0;
    broker_start(f);
    sink_start(f, "");
    logger_capture(capture, &used);
    logger_set_threshold(LOGGER_DEBUG);
    publish(f, "car42", "{\"ts\":1700000000,\"v\":1}");
    publish(f, "car42", "no telemetry");
    get_until(f, "/metrics", "tidegate_sink_record_seconds{record=\"newest\",correlation=\"abcd0000000000000000000000000000\"} ");
    assert_true(has(f, "tidegate_sink_record_seconds{record=\"slowest\",correlation=\"abcd0000000000000000000000000000\"} "));
    get_until(f, "/metrics", "tidegate_sink_quarantined_total{reason=\"not_json\"} 1\n");
    get_until(f, "/metrics", "tidegate_queue_messages{queue=\"sink_quarantine\"} 1\n");
    assert_int_equal(sink_stop(f), ERR_OK);
    logger_set_threshold(LOGGER_OFF);
    logger_capture(NULL, NULL);
    captured[used] = 0;
    const char *stored = strstr(captured, "DEBUG record stored device=car42"), *rejected = strstr(captured, "WARNING not stored");
    assert_non_null(stored);
    assert_non_null(rejected);
    assert_non_null(strstr(stored, "correlation=abcd0000000000000000000000000000"));
    assert_non_null(strstr(rejected, "correlation=abcd0000000000000000000000000000"));
    broker_stop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_publish_is_queryable_and_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed_before_the_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_no_telemetry_is_kept_aside, setup, teardown),
        cmocka_unit_test_setup_teardown(test_second_sink_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_partition_count_changes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_compaction_and_verify, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queries_while_ending, setup, teardown),
        cmocka_unit_test_setup_teardown(test_devices, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_partition, setup, teardown),
        cmocka_unit_test_setup_teardown(test_correlation, setup, teardown),
    };
    logger_set_threshold(LOGGER_OFF);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
