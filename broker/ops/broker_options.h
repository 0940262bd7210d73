/* The broker's option table and the configuration it fills: mosquitto's names where the meaning is mosquitto's, our own beside them.
 *
 * A configuration is loaded once at start (file, environment, command line) and is read-only afterwards; strings and lists in it belong to
 * the struct options it was made from. conf/broker.conf is the commented whole. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_BROKER_OPTIONS_H
#define TIDEGATE_BROKER_OPS_BROKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/guard/tier.h"
#include "broker/telemetry/rule.h"
#include "common/options.h"

enum broker_admission_policy { BROKER_ADMISSION_DEFER, BROKER_ADMISSION_REJECT };
/* In the order of enum queue_policy. */
enum { BROKER_QUEUE_DROP_NEWEST, BROKER_QUEUE_DROP_OLDEST, BROKER_QUEUE_REFUSE };
enum broker_log_format { BROKER_LOG_HUMAN, BROKER_LOG_JSON };

struct broker_listener_config {
    int64_t port;
    const char *bind_address; /* NULL: all addresses */
    bool allow_anonymous;
    const char *certfile, *keyfile;
    int64_t max_connections;
    int64_t max_qos;
    int64_t max_topic_alias;
    int64_t listener_accept_rate, listener_accept_burst;
    int64_t listener_connection_rate, listener_connection_burst;
    bool is_local; /* derived: the default listener of a configuration that names none, loopback only */
};

struct broker_config {
    struct option_listeners listeners;
    bool per_listener_settings;
    /* limits of sessions and queues */
    int64_t max_inflight_messages, max_queued_messages, max_queued_bytes, max_packet_size, max_keepalive_s;
    int queue_policy; /* enum queue_policy */
    int64_t max_queued_age_ns, max_queued_messages_total, max_queued_bytes_total;
    int64_t persistent_client_expiration_ns, max_sessions;
    int64_t will_restart_grace_ns, wills_per_second;
    int64_t global_max_connections;
    bool queue_qos0_messages, retain_available, allow_zero_length_clientid, allow_duplicate_messages, receive_maximum_strict;
    int64_t receive_maximum;
    int64_t max_retained_messages, max_retained_bytes, max_subscription_bytes;
    int64_t outbox_limit, outbox_total_limit, partial_packet_limit, publishes_per_turn;
    /* admission */
    int64_t connect_timeout_ns, backlog;
    int64_t accept_rate, accept_burst, connection_rate, connection_burst, connection_defer_ns;
    int connection_policy;
    int64_t connecting_limit, connecting_bytes_limit;
    int64_t tls_threads, tls_queue;
    bool set_tcp_nodelay;
    /* the data directory and the log */
    bool persistence;
    const char *persistence_location;
    int64_t log_max_size, log_segment_size, log_commit_spacing_ns, log_free_disk_floor, log_blocks_per_shard;
    struct option_list log_cursors;
    struct option_list tiers;
    int64_t checkpoint_interval_ns, checkpoint_lag_ns, checkpoint_lag_bytes, checkpoint_window_bytes, checkpoint_max_bytes;
    int64_t checkpoint_compact_percent;
    int64_t retained_cache_bytes;
    /* telemetry */
    struct option_list telemetry; /* telemetry and telemetry_ignore, in their common order */
    int64_t telemetry_partitions;
    /* threads, operation */
    int64_t shards;
    int64_t ring_capacity;
    const char *http_listener; /* "ADDRESS:PORT", "PORT" or "off" */
    int log_format;
    int log_level;
    const char *log_file;
    struct option_list log_dest, log_type;
    bool connection_messages;
    const char *pid_file;
    int64_t drain_timeout_ns;
    /* derived by validate */
    uint16_t shard_count;
    bool http_enabled;
    char http_address[64];
    uint16_t http_port;
};

extern const struct option_table broker_option_table;

/* Compile the telemetry rules of a finished configuration. The table is the caller's to deinit. Returns 0, or ERR_INVALID with a message
 * that names file and line. */
enum err broker_options_rules(struct rule_table *table_out, const struct broker_config *config, struct errmsg *msg) must_check;
/* The same of the tiers. */
enum err broker_options_tiers(struct tier_table *table_out, const struct broker_config *config, struct errmsg *msg) must_check;

#endif
