/* A small option table with every type, scope and flag, for the tests and the fuzz target of the engine. */
#ifndef TIDEGATE_TESTS_LIB_OPTION_DEMO_H
#define TIDEGATE_TESTS_LIB_OPTION_DEMO_H

#include "common/options.h"

enum demo_mode { DEMO_OFF, DEMO_OBSERVE, DEMO_ENFORCE };

struct demo_listener {
    int64_t port;
    const char *bind_address;
    int64_t max_connections;
    bool allow_anonymous;
    const char *password_file;
};

struct demo_config {
    bool persistence;
    int64_t inflight;
    int64_t packet_size_max;
    int64_t queued_bytes_max;
    int64_t flush_interval_ns;
    int64_t expiration_ns;
    int64_t sys_interval_ns;
    int mode;
    const char *location;
    const char *secret;
    bool per_listener_settings;
    struct option_list telemetry;
    struct option_listeners listeners;
};

static const struct option_enum demo_modes[] = {{"off", DEMO_OFF}, {"observe", DEMO_OBSERVE}, {"enforce", DEMO_ENFORCE}, {NULL, 0}};

/* clang-format off */
static const struct option_spec demo_specs[] = {
    {.name = "persistence", .type = OPTION_BOOL, .offset = offsetof(struct demo_config, persistence), .text = "true", .section = "Storage", .doc = "Keep sessions.", .mosquitto = "on by default"},
    {.name = "persistence_location", .type = OPTION_PATH, .offset = offsetof(struct demo_config, location), .doc = "Where."},
    {.name = "max_inflight_messages", .type = OPTION_INT, .offset = offsetof(struct demo_config, inflight), .text = "20", .min = 1, .max = 65535, .reload = OPTION_RELOAD_NEW, .unit = "messages", .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED | OPTION_MAY_BE_UNLIMITED, .doc = "Window of outgoing messages."},
    {.name = "max_packet_size", .type = OPTION_SIZE, .offset = offsetof(struct demo_config, packet_size_max), .text = "16MiB", .min = 1024, .max = 256 << 20, .doc = "Largest packet."},
    {.name = "max_queued_bytes", .type = OPTION_SIZE, .offset = offsetof(struct demo_config, queued_bytes_max), .text = "unlimited", .flags = OPTION_MOSQUITTO | OPTION_ZERO_UNLIMITED | OPTION_MAY_BE_UNLIMITED, .doc = "Queue bound."},
    {.name = "flush_interval", .type = OPTION_DURATION, .offset = offsetof(struct demo_config, flush_interval_ns), .text = "30s", .min = 1000000, .max = INT64_C(3600000000000), .reload = OPTION_RELOAD_LIVE, .doc = "How often."},
    {.name = "persistent_client_expiration", .type = OPTION_DURATION, .offset = offsetof(struct demo_config, expiration_ns), .text = "unlimited", .flags = OPTION_MOSQUITTO | OPTION_MOSQUITTO_UNITS | OPTION_MAY_BE_UNLIMITED, .doc = "When sessions go."},
    {.name = "sys_interval", .type = OPTION_DURATION, .offset = offsetof(struct demo_config, sys_interval_ns), .text = "10", .flags = OPTION_MOSQUITTO | OPTION_BARE_SECONDS, .doc = "How often $SYS."},
    {.name = "mode", .type = OPTION_ENUM, .offset = offsetof(struct demo_config, mode), .text = "observe", .enums = demo_modes, .doc = "Off | on."},
    {.name = "secret", .type = OPTION_STRING, .offset = offsetof(struct demo_config, secret), .flags = OPTION_SECRET | OPTION_BLANK_ALLOWED, .doc = "A key."},
    {.name = "telemetry", .type = OPTION_STRINGS, .offset = offsetof(struct demo_config, telemetry), .section = "Telemetry", .doc = "A rule."},
    {.name = "telemetry_ignore", .type = OPTION_STRINGS, .offset = offsetof(struct demo_config, telemetry), .doc = "An exception."},
    {.name = "include_dir", .type = OPTION_INCLUDE_DIR, .doc = "More files."},
    {.name = "listener", .type = OPTION_LISTENER, .section = "Listeners", .doc = "Opens a listener."},
    {.name = "port", .type = OPTION_INT, .scope = OPTION_IN_LISTENER, .offset = offsetof(struct demo_listener, port), .text = "1883", .min = 0, .max = 65535, .doc = "Port of the default listener."},
    {.name = "bind_address", .type = OPTION_STRING, .scope = OPTION_IN_LISTENER, .offset = offsetof(struct demo_listener, bind_address), .doc = "Address of the default listener."},
    {.name = "max_connections", .type = OPTION_INT, .scope = OPTION_IN_LISTENER, .offset = offsetof(struct demo_listener, max_connections), .text = "unlimited", .min = 1, .max = INT64_MAX, .flags = OPTION_MAY_BE_UNLIMITED | OPTION_MINUS_ONE_UNLIMITED, .doc = "Connections."},
    {.name = "allow_anonymous", .type = OPTION_BOOL, .scope = OPTION_SECURITY, .offset = offsetof(struct demo_listener, allow_anonymous), .text = "false", .doc = "Without a name."},
    {.name = "password_file", .type = OPTION_PATH, .scope = OPTION_SECURITY, .offset = offsetof(struct demo_listener, password_file), .doc = "Names."},
    {.name = "per_listener_settings", .type = OPTION_BOOL, .offset = offsetof(struct demo_config, per_listener_settings), .text = "false", .doc = "Security per listener."},
};

static const struct option_foreign demo_foreign[] = {
    {"bridge_attempt_unsubscribe", false, "bridges come with the edge profile"},
    {"log_timestamp", true, "lines always carry their time"},
};
/* clang-format on */

/* Fails when the window is larger than the packet limit, so that both scopes of reports are exercised. */
static inline void demo_validate(struct options *options, void *arg)
{
    struct demo_config *config = arg;
    const struct demo_listener *listeners = config->listeners.items;
    if (config->mode == DEMO_ENFORCE && !config->location)
        options_problem(options, OPTION_ERROR, "mode", -1, "enforce needs persistence_location");
    for (size_t i = 0; i < config->listeners.count; i++)
        if (listeners[i].port == 666)
            options_problem(options, OPTION_ERROR, "port", (int)i, "is no lucky number");
    for (size_t i = 0; i < config->telemetry.count; i++)
        if (config->telemetry.items[i].value[0] == '!')
            options_problem_item(options, OPTION_ERROR, &config->telemetry.items[i], "begins with '!'");
}

__attribute__((unused)) static const struct option_table demo_table = {
    .program = "demo",
    .specs = demo_specs,
    .spec_count = sizeof demo_specs / sizeof demo_specs[0],
    .foreign = demo_foreign,
    .foreign_count = sizeof demo_foreign / sizeof demo_foreign[0],
    .config_size = sizeof(struct demo_config),
    .listener_size = sizeof(struct demo_listener),
    .listeners_offset = offsetof(struct demo_config, listeners),
    .listener_port_name = "port",
    .listener_address_name = "bind_address",
    .per_listener_name = "per_listener_settings",
    .validate = demo_validate,
};

#endif
