/* tidegate-sink: the start order, the signals, the shutdown order, and the small commands.
 *
 * Start: options -> log lines -> data directory (locked) -> partitions -> source's cursor (locked) -> threads -> HTTP -> ready.
 * SIGTERM and SIGINT: stop reading -> flush and commit -> give the position back -> close HTTP -> status 0. SIGHUP opens the log file anew.
 * Signals are blocked in all threads and taken here. */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/data_dir.h"
#include "common/option_value.h"
#include "common/proc.h"
#include "common/sd_notify.h"
#include "sink/decode/event_time.h"
#include "sink/query/plot.h"
#include "sink/query/query_api.h"
#include "sink/query/query_client.h"
#include "sink/query/query_plot.h"
#include "sink/sink_loop.h"
#include "sink/store/verify.h"

#define VERSION "0.1.0"
#define LOGGER_FLUSH_INTERVAL_S 10
#define PLOT_PAGE_ROWS "100000" /* a plot asks for its rows page by page */
#define PLOT_WIDTH_DEFAULT 72
#define PLOT_HEIGHT_DEFAULT 8

extern char **environ;

static const char usage[] =
    "Usage:\n"
    "  tidegate-sink -c FILE [--accept-gap]    run in the foreground until SIGTERM\n"
    "  tidegate-sink check -c FILE             check the configuration, say what is wrong\n"
    "  tidegate-sink dump -c FILE              print the effective values and where they come from\n"
    "  tidegate-sink verify -c FILE            read all stored data and check every checksum\n"
    "  tidegate-sink reference                 print all options as Markdown\n"
    "  tidegate-sink query --device NAME [--metric NAME]... [--from TIME] [--to TIME] [--limit ROWS]\n"
    "                      [--format table|csv|json|plot] [--width CELLS] [--height CELLS]\n"
    "                      [--url http://HOST:PORT | -c FILE]\n"
    "                                          ask a running sink; TIME is RFC 3339, a Unix time or relative (-1h, the\n"
    "                                          default of --from); without --url and -c it is asked at 127.0.0.1:9801\n"
    "  tidegate-sink --help | --version\n"
    "Every option of FILE can be set in the environment: TIDEGATE_ and its name in upper case.\n";

/* What the command line says. */
struct arguments {
    const char *command; /* "run" without one */
    const char *config_path;
    bool accept_gap;
    const char *device, *from, *to, *limit, *format, *url, *width, *height;
    const char **metrics; /* owned */
    size_t metric_count;
};

static int fail_usage(const char *text)
{
    fprintf(stderr, "tidegate-sink: %s\n%s", text, usage);
    return 2;
}

static void print_help(void)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    options_help(&sink_options_table, &out);
    printf("tidegate-sink turns the broker's telemetry into compressed chunks and answers queries.\n\n%s\n%s", usage, buf_string(&out));
    buf_deinit(&out);
}

/* Load the configuration; problems go to stderr. NULL when there is an error. */
static struct options *load_config(const struct arguments *arguments, struct sink_config *config)
{
    struct options *options = options_new(&sink_options_table);
    if (!options) {
        fprintf(stderr, "tidegate-sink: out of memory\n");
        return NULL;
    }
    if (arguments->accept_gap)
        options_set(options, "accept_gap", "true");
    enum err err = options_load(options, arguments->config_path, environ, config);
    struct buf problems;
    buf_init(&problems, 1 << 20);
    options_print_problems(options, &problems);
    fputs(buf_string(&problems), stderr);
    buf_deinit(&problems);
    if (!err)
        return options;
    options_free(options);
    return NULL;
}

/* ---- run ---- */

static enum err port_file_write(const struct sink_config *config, uint16_t port, struct errmsg *msg)
{
    char path[FILE_PATH_MAX], path_tmp[FILE_PATH_MAX], text[16];
    struct file *file = NULL;
    struct fs *fs = fs_posix();
    int size = snprintf(text, sizeof text, "%u\n", port);
    enum err err = file_path(path, config->data_directory, "http.port");
    if (!err)
        err = file_path(path_tmp, config->data_directory, "http.port.tmp");
    if (!err)
        err = fs_open(fs, &file, path_tmp, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
    if (!err)
        err = file_pwrite(file, text, (size_t)size, 0);
    file_close(file);
    if (!err)
        err = fs_rename(fs, path_tmp, path);
    return err ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

static void port_file_remove(const struct sink_config *config)
{
    char path[FILE_PATH_MAX];
    enum err err = file_path(path, config->data_directory, "http.port");
    if (!err)
        err = fs_unlink(fs_posix(), path);
    if (err && err != ERR_NOTFOUND)
        LOG_NOTICE("could not remove the port file", LOG_TEXT("file", path));
}

static void wait_for_end(const struct sink_config *config, const sigset_t *signals)
{
    for (;;) {
        const struct timespec interval = {.tv_sec = LOGGER_FLUSH_INTERVAL_S};
        int number = sigtimedwait(signals, NULL, &interval);
        logger_flush();
        if (number == SIGTERM || number == SIGINT) {
            LOG_INFO("ending", LOG_TEXT("signal", number == SIGTERM ? "SIGTERM" : "SIGINT"));
            return;
        }
        struct errmsg msg = {""};
        if (number == SIGHUP &&
            logger_open(config->log_file, (enum logger_format)config->log_format, (enum logger_level)config->log_level, &msg))
            LOG_ERROR("cannot open the log file anew", LOG_TEXT("detail", msg.text));
    }
}

/* Everything between the locked data directory and its release. */
static enum err serve(const struct sink_config *config, struct metrics_registry *metrics, const sigset_t *signals, struct errmsg *msg)
{
    struct sink_loop *loop = NULL;
    struct query_api *api = NULL;
    enum err err = sink_loop_new(&loop, fs_posix(), config, metrics, msg);
    if (err)
        return err;
    err = query_api_new(&api, loop, config, metrics, msg);
    if (!err)
        err = sink_loop_start(loop, msg);
    if (!err)
        err = port_file_write(config, query_api_port(api), msg);
    if (!err) {
        LOG_INFO("serving", LOG_TEXT("address", config->http_address), LOG_U64("port", query_api_port(api)),
                 LOG_TEXT("data", config->data_directory), LOG_TEXT("log", config->broker_log));
        if (sd_notify_send("READY=1"))
            LOG_NOTICE("could not tell the service manager");
        wait_for_end(config, signals);
        if (sd_notify_send("STOPPING=1"))
            LOG_NOTICE("could not tell the service manager");
    }
    enum err stop_err = sink_loop_stop(loop);
    if (!err && stop_err)
        err = err_set(msg, stop_err, "not everything could be committed (%s); it is read again at the next start", err_text(stop_err));
    query_api_free(api);
    sink_loop_free(loop);
    return err;
}

static int run(const struct arguments *arguments)
{
    struct sink_config config;
    struct errmsg msg = {""};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct options *options = load_config(arguments, &config);
    if (!options)
        return 1;
    struct data_dir dir;
    enum err err = logger_open(config.log_file, (enum logger_format)config.log_format, (enum logger_level)config.log_level, &msg);
    if (!err) {
        err = data_dir_open(&dir, config.data_directory, "sink.lock", &msg);
        if (!err) {
            proc_raise_fd_limit();
            struct metrics_registry *metrics = metrics_registry_new();
            if (metrics)
                metrics_register_process(metrics);
            err = metrics ? serve(&config, metrics, &signals, &msg) : err_set(&msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
            metrics_registry_free(metrics);
            port_file_remove(&config);
            data_dir_close(&dir);
        }
    }
    if (err) {
        LOG_ERROR("tidegate-sink ends", LOG_TEXT("reason", msg.text));
        if (config.log_file)
            fprintf(stderr, "tidegate-sink: %s\n", msg.text);
    }
    logger_close();
    options_free(options);
    return err ? 1 : 0;
}

/* ---- small commands ---- */

static int check(const struct arguments *arguments, bool is_dump)
{
    struct sink_config config;
    struct options *options = load_config(arguments, &config);
    if (!options)
        return 1;
    if (is_dump) {
        struct buf out;
        buf_init(&out, 1 << 20);
        options_dump(options, &out);
        fputs(buf_string(&out), stdout);
        buf_deinit(&out);
    } else {
        printf("%s: ok\n", arguments->config_path ? arguments->config_path : "defaults");
    }
    options_free(options);
    return 0;
}

static int reference(void)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    options_markdown(&sink_options_table, &out);
    fputs(buf_string(&out), stdout);
    buf_deinit(&out);
    return 0;
}

static int verify(const struct arguments *arguments)
{
    struct sink_config config;
    struct verify_report report;
    struct options *options = load_config(arguments, &config);
    if (!options)
        return 1;
    enum err err = verify_data_directory(&report, fs_posix(), config.data_directory, stdout);
    if (err && err != ERR_CORRUPT)
        fprintf(stderr, "tidegate-sink: %s/partitions: %s\n", config.data_directory, err_text(err));
    else
        printf("%" PRIu64 " partitions, %" PRIu64 " segments, %" PRIu64 " chunks, %" PRIu64 " rows, %" PRIu64 " points, %" PRIu64
               " bytes, %.3f bytes per point, %" PRIu64 " problems\n",
               report.partitions, report.segments, report.chunks, report.rows, report.points, report.bytes,
               report.points ? (double)report.bytes / (double)report.points : 0.0, report.problems);
    options_free(options);
    return err ? 1 : 0;
}

/* Host and port of the sink to ask. */
static bool query_find_sink(const struct arguments *arguments, char host_out[256], char port_out[16])
{
    snprintf(host_out, 256, "127.0.0.1");
    snprintf(port_out, 16, "%d", SINK_HTTP_PORT_DEFAULT);
    if (arguments->url) {
        if (!query_client_split_url(host_out, port_out, arguments->url))
            return true;
        fprintf(stderr, "tidegate-sink: --url: expected http://HOST:PORT\n");
        return false;
    }
    if (!arguments->config_path)
        return true;
    struct sink_config config;
    struct options *options = load_config(arguments, &config);
    if (!options)
        return false;
    char path[FILE_PATH_MAX];
    unsigned port = (unsigned)config.http_port;
    FILE *file = file_path(path, config.data_directory, "http.port") ? NULL : fopen(path, "re");
    if (file) {
        if (fscanf(file, "%u", &port) != 1)
            port = (unsigned)config.http_port;
        fclose(file);
    }
    bool is_any = strcmp(config.http_address, "0.0.0.0") == 0 || strcmp(config.http_address, "::") == 0;
    snprintf(host_out, 256, "%s", is_any ? "127.0.0.1" : config.http_address);
    snprintf(port_out, 16, "%u", port);
    options_free(options);
    return true;
}

static void put_argument(struct buf *out, const char *name, const char *value)
{
    if (!value)
        return;
    buf_printf(out, "&%s=", name);
    query_client_put_escaped(out, value);
}

/* One question to the sink at host:port. What went wrong is said on stderr; returns whether body_out holds an answer. */
static bool query_ask(const struct arguments *arguments, struct query_answer *answer_out, struct buf *body_out, const char *host,
                      const char *port, const char *from)
{
    struct buf target;
    struct errmsg msg = {""};
    *answer_out = (struct query_answer){.status = 0};
    buf_init(&target, 1 << 20);
    buf_put_string(&target, "/api/v1/query?device=");
    query_client_put_escaped(&target, arguments->device);
    for (size_t i = 0; i < arguments->metric_count; i++)
        put_argument(&target, "metric", arguments->metrics[i]);
    put_argument(&target, "from", from);
    put_argument(&target, "to", arguments->to);
    put_argument(&target, "limit", arguments->limit);
    put_argument(&target, "format", arguments->format);
    enum err err = query_client_get(host, port, buf_string(&target), answer_out, body_out, &msg);
    if (err)
        fprintf(stderr, "tidegate-sink: %s (is tidegate-sink running? -c FILE or --url names another place)\n", msg.text);
    else if (answer_out->status != 200)
        fwrite(body_out->data, 1, body_out->size, stderr);
    buf_deinit(&target);
    return !err && answer_out->status == 200;
}

/* Cells of a side of the plot; 0 when that is no number (said on stderr). */
static size_t plot_side(const char *text, const char *name, size_t side_default)
{
    int64_t side = (int64_t)side_default;
    if (!text || (option_parse_int(&side, span_of_string(text)) && side > 0 && side <= PLOT_WIDTH_MAX))
        return (size_t)side;
    fprintf(stderr, "tidegate-sink: --%s: expected a number from 1 to %d\n", name, PLOT_WIDTH_MAX);
    return 0;
}

/* The sink cuts long answers, a picture wants all rows: ask on until one is whole, or --limit is reached. */
static int query_plot(const struct arguments *arguments, const char *host, const char *port)
{
    struct arguments asked = *arguments;
    struct query_plot plot = {0};
    struct errmsg msg = {""};
    enum err err = ERR_OK;
    char from[CLOCK_TEXT_SIZE > 64 ? CLOCK_TEXT_SIZE : 64];
    size_t width = plot_side(arguments->width, "width", PLOT_WIDTH_DEFAULT),
           height = plot_side(arguments->height, "height", PLOT_HEIGHT_DEFAULT);
    size_t row_count = 0;
    bool is_answered = width > 0 && height > 0, is_more = true;
    asked.format = "csv";
    asked.limit = arguments->limit ? arguments->limit : PLOT_PAGE_ROWS;
    snprintf(from, sizeof from, "%s", arguments->from);
    while (is_answered && is_more && !err) {
        struct buf body;
        struct query_answer answer;
        buf_init(&body, QUERY_CLIENT_ANSWER_MAX);
        is_answered = query_ask(&asked, &answer, &body, host, port, from);
        if (is_answered)
            err = query_plot_add(&plot, &row_count, buf_span(&body), &msg);
        buf_deinit(&body);
        is_more = !arguments->limit && answer.is_cut && row_count > 0;
        if (!err && asked.metric_count == 0) { /* what was found in the whole range: the next page is shorter and might lack some */
            asked.metrics = plot.names;
            asked.metric_count = plot.column_count;
        }
        event_time_format(from, answer.next_ns); /* a small number would be taken for seconds */
    }
    if (is_answered && !err)
        err = query_plot_draw(stdout, &plot, width, height);
    if (err)
        fprintf(stderr, "tidegate-sink: %s\n", msg.text[0] ? msg.text : err_text(err));
    query_plot_deinit(&plot);
    return is_answered && !err ? 0 : 1;
}

static int query(struct arguments *arguments)
{
    char host[256], port[16];
    struct buf body;
    if (!arguments->device)
        return fail_usage("query: --device is missing");
    if (!query_find_sink(arguments, host, port))
        return 1;
    if (!arguments->from)
        arguments->from = "-1h";
    if (!arguments->format)
        arguments->format = "table";
    if (strcmp(arguments->format, "plot") == 0)
        return query_plot(arguments, host, port);
    buf_init(&body, QUERY_CLIENT_ANSWER_MAX);
    struct query_answer answer;
    bool is_answered = query_ask(arguments, &answer, &body, host, port, arguments->from);
    if (is_answered)
        fwrite(body.data, 1, body.size, stdout);
    char next[CLOCK_TEXT_SIZE];
    event_time_format(next, answer.next_ns);
    if (is_answered && answer.is_cut && strcmp(arguments->format, "csv") == 0) /* the others say it in the answer */
        fprintf(stderr, "tidegate-sink: the answer was cut; go on with --from %s, or ask with a greater --limit\n", next);
    buf_deinit(&body);
    return is_answered ? 0 : 1;
}

/* ---- command line ---- */

static int dispatch(struct arguments *arguments)
{
    const char *command = arguments->command;
    if (strcmp(command, "reference") == 0)
        return reference();
    if (strcmp(command, "query") == 0)
        return query(arguments);
    if (!arguments->config_path && (strcmp(command, "run") == 0 || strcmp(command, "verify") == 0))
        return fail_usage("-c FILE is missing");
    if (strcmp(command, "run") == 0)
        return run(arguments);
    if (strcmp(command, "check") == 0 || strcmp(command, "dump") == 0)
        return check(arguments, command[0] == 'd');
    if (strcmp(command, "verify") == 0)
        return verify(arguments);
    return fail_usage("no such command");
}

enum {
    ARG_HELP = 256,
    ARG_VERSION,
    ARG_ACCEPT_GAP,
    ARG_DEVICE,
    ARG_METRIC,
    ARG_FROM,
    ARG_TO,
    ARG_LIMIT,
    ARG_FORMAT,
    ARG_URL,
    ARG_WIDTH,
    ARG_HEIGHT
};

static const struct option long_options[] = {
    {"config", required_argument, NULL, 'c'},        {"help", no_argument, NULL, ARG_HELP},
    {"version", no_argument, NULL, ARG_VERSION},     {"accept-gap", no_argument, NULL, ARG_ACCEPT_GAP},
    {"device", required_argument, NULL, ARG_DEVICE}, {"metric", required_argument, NULL, ARG_METRIC},
    {"from", required_argument, NULL, ARG_FROM},     {"to", required_argument, NULL, ARG_TO},
    {"limit", required_argument, NULL, ARG_LIMIT},   {"format", required_argument, NULL, ARG_FORMAT},
    {"url", required_argument, NULL, ARG_URL},       {"width", required_argument, NULL, ARG_WIDTH},
    {"height", required_argument, NULL, ARG_HEIGHT}, {NULL, 0, NULL, 0},
};

/* Returns -1 to go on, or the status to end with. */
static int take_argument(struct arguments *arguments, int option)
{
    switch (option) {
    case 'c':
        arguments->config_path = optarg;
        return -1;
    case 'h':
    case ARG_HELP:
        print_help();
        return 0;
    case ARG_VERSION:
        puts("tidegate-sink " VERSION);
        return 0;
    case ARG_ACCEPT_GAP:
        arguments->accept_gap = true;
        return -1;
    case ARG_DEVICE:
        arguments->device = optarg;
        return -1;
    case ARG_METRIC:
        arguments->metrics[arguments->metric_count++] = optarg;
        return -1;
    case ARG_FROM:
        arguments->from = optarg;
        return -1;
    case ARG_TO:
        arguments->to = optarg;
        return -1;
    case ARG_LIMIT:
        arguments->limit = optarg;
        return -1;
    case ARG_FORMAT:
        arguments->format = optarg;
        return -1;
    case ARG_URL:
        arguments->url = optarg;
        return -1;
    case ARG_WIDTH:
        arguments->width = optarg;
        return -1;
    case ARG_HEIGHT:
        arguments->height = optarg;
        return -1;
    default:
        fputs(usage, stderr);
        return 2;
    }
}

int main(int argc, char **argv)
{
    struct arguments arguments = {.command = "run"};
    arguments.metrics = calloc((size_t)argc, sizeof *arguments.metrics);
    if (!arguments.metrics)
        return 1;
    int status = -1, option;
    while (status < 0 && (option = getopt_long(argc, argv, "c:h", long_options, NULL)) != -1)
        status = take_argument(&arguments, option);
    if (status < 0 && optind < argc)
        arguments.command = argv[optind++];
    if (status < 0 && optind < argc)
        status = fail_usage("too many arguments");
    if (status < 0)
        status = dispatch(&arguments);
    free(arguments.metrics);
    return status;
}
