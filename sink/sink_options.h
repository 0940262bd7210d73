/* The options of tidegate-sink: one table (common/options.h) for the parser, defaults, checks, --help, dump and the reference document.
 *
 * The struct is filled by options_load() and lives as long as the struct options that owns its strings. Thread: any (read only once
 * filled). */
#ifndef TIDEGATE_SINK_SINK_OPTIONS_H
#define TIDEGATE_SINK_SINK_OPTIONS_H

#include "common/logger.h"
#include "common/options.h"
#include "sink/decode/payload.h"
#include "sink/store/series.h"

#define SINK_HTTP_PORT_DEFAULT 9801

struct sink_config {
    const char *data_directory;
    const char *broker_log;
    bool accept_gap;
    int64_t partitions;
    int64_t flush_interval; /* ns */
    int64_t head_memory;    /* bytes */
    bool compaction;
    int64_t compaction_fan_in;
    const char *http_address;
    int64_t http_port;
    int64_t query_row_limit;
    const char *payload_time_fields; /* separated by blanks */
    int payload_time_unit;           /* enum event_time_unit */
    int64_t future_bound;            /* ns; OPTION_UNLIMITED */
    int64_t max_devices;
    int64_t max_metrics_per_device;
    int64_t max_new_series_per_hour;
    int64_t quarantine_size; /* bytes of all partitions */
    int log_level;           /* enum logger_level */
    int log_format;          /* enum logger_format */
    const char *log_file;
};

extern const struct option_table sink_options_table;

/* The parts that other rooms take. */
struct payload_rules sink_config_payload_rules(const struct sink_config *config);
struct series_limits sink_config_series_limits(const struct sink_config *config);

#endif
