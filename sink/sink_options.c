#include "sink/sink_options.h"

#include <string.h>

#define SPEC(name_, type_, field_, ...)                                                                                                    \
    {                                                                                                                                      \
        .name = (name_), .type = (type_), .offset = offsetof(struct sink_config, field_), __VA_ARGS__                                      \
    }

static const struct option_enum time_units[] = {{"auto", EVENT_TIME_AUTO}, {"s", EVENT_TIME_S},   {"ms", EVENT_TIME_MS},
                                                {"us", EVENT_TIME_US},     {"ns", EVENT_TIME_NS}, {NULL, 0}};

static const struct option_enum log_levels[] = {{"debug", LOGGER_DEBUG},
                                                {"info", LOGGER_INFO},
                                                {"notice", LOGGER_NOTICE},
                                                {"warning", LOGGER_WARNING},
                                                {"error", LOGGER_ERROR},
                                                {"off", LOGGER_OFF},
                                                {NULL, 0}};

static const struct option_enum log_formats[] = {{"human", LOGGER_HUMAN}, {"json", LOGGER_JSON}, {NULL, 0}};

static const struct option_spec specs[] = {
    SPEC("data_directory", OPTION_PATH, data_directory, .text = "/var/lib/tidegate/sink", .section = "Data",
         .doc = "Where partitions, segments and the quarantine are kept; made when missing. One sink process at a time."),
    SPEC("broker_log", OPTION_PATH, broker_log, .text = "/var/lib/tidegate/broker/log",
         .doc = "The broker's log directory (direct mode): persistence_location of broker.conf and log/. The sink waits until it appears. "
                "It holds cursor.sink there, so that the broker reuses only log segments that the sink has stored."),
    SPEC("accept_gap", OPTION_BOOL, accept_gap, .text = "false",
         .doc = "Whether to go on when records of the log are gone that the sink has not read (as --accept-gap does). false: it states "
                "the range and stops reading, queries go on."),
    SPEC("partitions", OPTION_INT, partitions, .text = "4", .min = 1, .max = 4096,
         .doc =
             "Number of partitions; a device belongs to murmur2(device) modulo this. More give more and smaller segments. After a change "
             "new data goes to the new partitions and queries ask both."),
    SPEC("flush_interval", OPTION_DURATION, flush_interval, .text = "30s", .min = 100000000, .max = 3600 * INT64_C(1000000000),
         .section = "Storing",
         .doc = "A row is in a segment at latest so long after it came in. Smaller: less to replay at start and less log held; larger: "
                "better compressed before compaction. Rows are queryable at once either way."),
    SPEC("head_memory", OPTION_SIZE, head_memory, .text = "256MiB", .min = 4 << 20, .max = INT64_C(1) << 40,
         .doc =
             "Bound of the rows in memory, all partitions together. A partition that has filled half of its share is flushed early; when "
             "that is not fast enough, reading waits (the log is the buffer)."),
    SPEC("compaction", OPTION_BOOL, compaction, .text = "true",
         .doc = "Whether flushed segments are merged to chunks of 1024 and more rows in the background: smaller and faster to query, at "
                "the price of writing each point up to four times."),
    SPEC("compaction_fan_in", OPTION_INT, compaction_fan_in, .text = "16", .min = 2, .max = 256, .unit = "segments",
         .doc = "How many segments of a level are merged into one of the next."),
    SPEC("http_address", OPTION_STRING, http_address, .text = "127.0.0.1", .section = "Queries",
         .doc = "Numeric address of the HTTP listener (queries, /metrics, /healthz). It has neither TLS nor authentication: keep it on a "
                "trusted address."),
    SPEC("http_port", OPTION_INT, http_port, .text = "9801", .min = 0, .max = 65535,
         .doc = "Its port; 0 lets the system choose. The port in use is written to data_directory/http.port."),
    SPEC("query_row_limit", OPTION_INT, query_row_limit, .text = "1000000", .min = 1, .max = INT64_C(1) << 40, .unit = "rows",
         .doc = "Most rows of one answer; the answer says when it was cut and from where to ask on."),
    SPEC("payload_time_fields", OPTION_STRING, payload_time_fields, .text = "ts time timestamp", .section = "Payloads",
         .doc = "Names of the JSON fields that may be a row's time, separated by blanks; earlier ones win, the others stay metrics. A row "
                "without any gets the broker's receive time."),
    SPEC("payload_time_unit", OPTION_ENUM, payload_time_unit, .text = "auto", .enums = time_units,
         .doc = "Unit of a numeric time. auto: by its size, seconds until the year 5138, then ms, us, ns. Strings are RFC 3339 always."),
    SPEC("future_bound", OPTION_DURATION, future_bound, .text = "24h", .flags = OPTION_MAY_BE_UNLIMITED, .min = 1000000000,
         .max = INT64_MAX - 1,
         .doc = "A row whose time is further ahead of the receive time goes to the quarantine with reason \"future\"."),
    SPEC("max_devices", OPTION_INT, max_devices, .text = "1000000", .flags = OPTION_MAY_BE_UNLIMITED, .min = 1, .max = INT64_MAX - 1,
         .unit = "devices", .section = "Cardinality", .doc = "Further devices go to the quarantine (\"device_cap\"); those known go on."),
    SPEC("max_metrics_per_device", OPTION_INT, max_metrics_per_device, .text = "1000", .flags = OPTION_MAY_BE_UNLIMITED, .min = 1,
         .max = INT64_MAX - 1, .unit = "metrics", .doc = "Further metrics of a device are not stored (\"metric_cap\"); those known go on."),
    SPEC("max_new_series_per_hour", OPTION_INT, max_new_series_per_hour, .text = "unlimited", .flags = OPTION_MAY_BE_UNLIMITED, .min = 1,
         .max = INT64_MAX - 1, .unit = "series",
         .doc = "Rate of new (device, metric) pairs (\"series_rate\"): against devices that make up names."),
    SPEC("quarantine_size", OPTION_SIZE, quarantine_size, .text = "256MiB", .min = 1 << 20, .max = INT64_C(1) << 40,
         .doc = "Bound of the files that keep what was not stored, all partitions together; the oldest half goes first."),
    SPEC("log_level", OPTION_ENUM, log_level, .text = "info", .enums = log_levels, .section = "Log lines",
         .doc = "Lines below this level are not printed."),
    SPEC("log_format", OPTION_ENUM, log_format, .text = "human", .enums = log_formats,
         .doc = "Text for people, or one JSON object a line."),
    SPEC("log_file", OPTION_PATH, log_file, .doc = "File that the lines are appended to; unset: standard error."),
};

/* The names of a blank-separated list; returns how many there are, which may be more than there is room for. */
static size_t split_names(struct span names_out[PAYLOAD_TIME_NAMES_MAX], const char *text)
{
    size_t count = 0;
    while (*(text += strspn(text, " \t")) != 0) {
        size_t size = strcspn(text, " \t");
        if (count < PAYLOAD_TIME_NAMES_MAX)
            names_out[count] = span_of(text, size);
        count++;
        text += size;
    }
    return count;
}

static void validate(struct options *options, void *opaque)
{
    const struct sink_config *config = opaque;
    struct span names[PAYLOAD_TIME_NAMES_MAX];
    if (split_names(names, config->payload_time_fields) > PAYLOAD_TIME_NAMES_MAX)
        options_problem(options, OPTION_ERROR, "payload_time_fields", -1, "at most %d names", PAYLOAD_TIME_NAMES_MAX);
    if (config->head_memory / config->partitions < 1 << 20)
        options_problem(options, OPTION_ERROR, "head_memory", -1, "at least 1MiB for each of the %lld partitions",
                        (long long)config->partitions);
    if (config->quarantine_size / config->partitions < 64 << 10)
        options_problem(options, OPTION_ERROR, "quarantine_size", -1, "at least 64KiB for each of the %lld partitions",
                        (long long)config->partitions);
}

const struct option_table sink_options_table = {
    .program = "tidegate-sink",
    .specs = specs,
    .spec_count = sizeof specs / sizeof specs[0],
    .config_size = sizeof(struct sink_config),
    .validate = validate,
};

struct payload_rules sink_config_payload_rules(const struct sink_config *config)
{
    struct payload_rules rules = {.time_unit = (enum event_time_unit)config->payload_time_unit,
                                  .future_bound_ns = config->future_bound == OPTION_UNLIMITED ? 0 : config->future_bound};
    size_t count = split_names(rules.time_names, config->payload_time_fields);
    rules.time_name_count = count < PAYLOAD_TIME_NAMES_MAX ? count : PAYLOAD_TIME_NAMES_MAX;
    return rules;
}

struct series_limits sink_config_series_limits(const struct sink_config *config)
{
    return (struct series_limits){.devices_max = config->max_devices,
                                  .metrics_per_device_max = config->max_metrics_per_device,
                                  .new_series_per_hour_max = config->max_new_series_per_hour};
}
