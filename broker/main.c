/* tidegate-broker: start order, signals, shutdown order.
 *
 * Start: options -> log lines -> signals -> data directory and its lock -> checkpoint and log opened and brought together (recovery.h) ->
 * route -> listeners bound (before anything is served, so that a taken port is a clean failure) -> shards -> the checkpoint loaded into
 * them -> route, store, reader and log threads -> shard loops -> door -> admin -> the file `listeners` -> the door opens -> ready.
 *
 * Stop (SIGTERM, SIGINT): door (nobody comes in) -> shards drain: DISCONNECT 0x8B to MQTT 5 clients, what is held is released as it becomes
 * durable; after drain_timeout the rest is cut off -> shard loops end -> route, log, store, reader threads, which first empty their rings
 * (the store brings the checkpoint to the log's end) -> log closed -> lock released. Exit status 0. When the log or the checkpoint has
 * failed, the same without waiting for it, and status 1. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "broker/actor/bell.h"
#include "broker/core/shard_restore.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/durable/log_room.h"
#include "broker/durable/reader_thread.h"
#include "broker/net/tls.h"
#include "broker/ops/admin_api.h"
#include "broker/ops/backup.h"
#include "broker/ops/broker_options.h"
#include "broker/ops/maintenance.h"
#include "broker/ops/recovery.h"
#include "broker/route/topic_tree.h"
#include "broker/session/queue_totals.h"
#include "broker/session/session.h"
#include "common/check.h"
#include "common/data_dir.h"
#include "common/log_cursor.h"
#include "common/logger.h"
#include "common/proc.h"
#include "common/sd_notify.h"

#ifndef TIDEGATE_VERSION
#define TIDEGATE_VERSION "0.1.0"
#endif

#define EXIT_USAGE 2
#define MAIN_FLUSH_MS 10000   /* how often lines held back by the rate limit are told */
#define CHECKPOINT_READERS 16 /* read transactions at one time: the reader thread, backups */
#define FD_RESERVE 128        /* descriptors that are no connections: log, listeners, HTTP, ...; of a low limit a half */

extern char **environ;

struct command_line {
    const char *command; /* "run", "check", "dump", "backup", "restore", "repair" */
    const char *dir;     /* of backup and restore */
    bool yes;
    const char *config_path;
    const char *port;
    const char *topic, *client_id, *user_name;
    bool verbose;
};

struct broker {
    struct options *options;
    struct broker_config config;
    struct rule_table rules;
    struct tier_table tiers;
    struct data_dir data_dir;
    bool has_data_dir;
    struct durable durable; /* all NULL without persistence */
    struct topic_tree *tree;
    struct exchange *exchange;
    struct route_thread *route;
    struct store_thread *store;
    struct reader_thread *reader;
    struct log_thread *log;
    struct shard_listener *shard_listeners;
    struct listener *listeners;
    size_t listener_count; /* opened */
    struct loop **loops;
    uint16_t loop_count; /* made */
    struct cpu_pool *pool;
    struct door *door;
    struct admin_api *admin;
    int64_t steady_offset_ns; /* the broker's own time less mono */
    struct bell bell;
    int signal_fd;
    uint64_t hash_key;
    _Atomic uint64_t retained_counter;
    struct queue_totals queue_totals; /* what waits in all sessions */
    _Atomic bool log_failed;
    _Atomic bool is_draining;
};

/* ---- command line ---- */

static void print_usage(FILE *out)
{
    (void)fputs("usage: tidegate-broker [-c FILE] [-p PORT] [-v]\n"
                "       tidegate-broker check -c FILE [--topic T [--client-id ID] [--user NAME]]\n"
                "       tidegate-broker dump [-c FILE]\n"
                "       tidegate-broker backup [-c FILE] DIR\n"
                "       tidegate-broker restore [-c FILE] DIR\n"
                "       tidegate-broker repair [-c FILE] [--yes]\n"
                "       tidegate-broker --help | --version | --options | --markdown\n"
                "\n"
                "  -c FILE       configuration; without one: port 1883 on the loopback, anonymous, data in /var/lib/tidegate/broker\n"
                "  -p PORT       port of the default listener\n"
                "  -v            log_level debug\n"
                "  check         say what is wrong with a configuration; with --topic: is a message there telemetry, of which device,\n"
                "                and what does its acknowledgement promise\n"
                "  dump          print the effective configuration with the origin of each value\n"
                "  backup        a consistent copy of the data into the new directory DIR, while the broker runs or not\n"
                "  restore       the data out of the backup DIR, into an empty persistence_location, under a new broker id\n"
                "  repair        say what is damaged and what could be done (status 1 when there is something); with --yes do it:\n"
                "                what is taken out goes to damaged-TIME in the data directory, nothing is deleted\n"
                "  --options     explain every option\n",
                out);
}

static void print_document(void (*make)(const struct option_table *, struct buf *))
{
    struct buf text;
    buf_init(&text, 16 << 20);
    make(&broker_option_table, &text);
    (void)fputs(buf_string(&text), stdout);
    buf_deinit(&text);
}

enum { OPT_TOPIC = 256, OPT_CLIENT_ID, OPT_USER, OPT_YES, OPT_OPTIONS, OPT_MARKDOWN, OPT_VERSION };

/* What stands behind the options: the command, and its directory. Returns as parse_command_line(). */
static int parse_command(struct command_line *line, int argc, char **argv)
{
    if (optind < argc)
        line->command = argv[optind++];
    bool is_known = strcmp(line->command, "run") == 0 || strcmp(line->command, "check") == 0 || strcmp(line->command, "dump") == 0 ||
                    maintenance_is_command(line->command);
    if (maintenance_wants_dir(line->command)) {
        if (optind == argc || argv[optind][0] == '\0') {
            (void)fprintf(stderr, "tidegate-broker: %s needs the directory of the backup\n", line->command);
            print_usage(stderr);
            return EXIT_USAGE;
        }
        line->dir = argv[optind++];
    }
    if (optind < argc || !is_known) {
        (void)fprintf(stderr, "tidegate-broker: \"%s\" is not understood\n", is_known ? argv[optind] : line->command);
        print_usage(stderr);
        return EXIT_USAGE;
    }
    return -1;
}

/* Returns -1 to go on, otherwise the exit status. */
static int parse_command_line(struct command_line *line, int argc, char **argv)
{
    static const struct option long_options[] = {{"config", required_argument, NULL, 'c'},
                                                 {"port", required_argument, NULL, 'p'},
                                                 {"verbose", no_argument, NULL, 'v'},
                                                 {"topic", required_argument, NULL, OPT_TOPIC},
                                                 {"client-id", required_argument, NULL, OPT_CLIENT_ID},
                                                 {"user", required_argument, NULL, OPT_USER},
                                                 {"yes", no_argument, NULL, OPT_YES},
                                                 {"options", no_argument, NULL, OPT_OPTIONS},
                                                 {"markdown", no_argument, NULL, OPT_MARKDOWN},
                                                 {"version", no_argument, NULL, OPT_VERSION},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {NULL, 0, NULL, 0}};
    *line = (struct command_line){.command = "run"};
    int code;
    while ((code = getopt_long(argc, argv, "c:p:vh", long_options, NULL)) != -1) {
        switch (code) {
        case 'c':
            line->config_path = optarg;
            break;
        case 'p':
            line->port = optarg;
            break;
        case 'v':
            line->verbose = true;
            break;
        case OPT_TOPIC:
            line->topic = optarg;
            break;
        case OPT_CLIENT_ID:
            line->client_id = optarg;
            break;
        case OPT_USER:
            line->user_name = optarg;
            break;
        case OPT_YES:
            line->yes = true;
            break;
        case OPT_OPTIONS:
            print_document(options_help);
            return EXIT_SUCCESS;
        case OPT_MARKDOWN:
            print_document(options_markdown);
            return EXIT_SUCCESS;
        case OPT_VERSION:
            (void)puts("tidegate-broker " TIDEGATE_VERSION);
            return EXIT_SUCCESS;
        case 'h':
            print_usage(stdout);
            return EXIT_SUCCESS;
        default:
            print_usage(stderr);
            return EXIT_USAGE;
        }
    }
    return parse_command(line, argc, argv);
}

/* ---- configuration ---- */

static bool load_config(struct broker *broker, const struct command_line *line)
{
    broker->options = options_new(&broker_option_table);
    CHECK(broker->options != NULL);
    if (line->port)
        options_set(broker->options, "port", line->port);
    if (line->verbose)
        options_set(broker->options, "log_level", "debug");
    enum err err = options_load(broker->options, line->config_path, environ, &broker->config);
    struct buf text;
    buf_init(&text, 1 << 20);
    options_print_problems(broker->options, &text);
    (void)fputs(buf_string(&text), stderr);
    buf_deinit(&text);
    if (err != ERR_OK)
        return false;
    struct errmsg msg;
    err = broker_options_rules(&broker->rules, &broker->config, &msg);
    if (err == ERR_OK)
        err = broker_options_tiers(&broker->tiers, &broker->config, &msg);
    if (err != ERR_OK)
        (void)fprintf(stderr, "%s\n", msg.text);
    return err == ERR_OK;
}

/* As the start will load them. */
static enum err check_certificates(const struct broker_config *config, struct errmsg *msg)
{
    const struct broker_listener_config *items = config->listeners.items;
    enum err err = ERR_OK;
    for (size_t i = 0; i < config->listeners.count && !err; i++) {
        struct tls_files files = {.certificate_path = items[i].certfile, .key_path = items[i].keyfile};
        struct tls_server *server = NULL;
        if (!files.certificate_path)
            continue;
        err = tls_server_new(&server, &files, msg);
        tls_server_free(server);
    }
    return err;
}

/* At checkpoint_max_size publishers pause (store_writer.h). What is in the log then must still fit, and so must the deletes that make
 * space, which copy pages first: also at a start, or nobody could drain it. The log is compressed, the checkpoint is not. */
#define CHECKPOINT_RESERVE 4 /* times checkpoint_lag_size */

static uint64_t checkpoint_map_bytes(const struct broker_config *config)
{
    return (uint64_t)config->checkpoint_max_bytes + CHECKPOINT_RESERVE * (uint64_t)config->checkpoint_lag_bytes;
}

static int run_maintenance(const struct broker *broker, const struct command_line *line)
{
    struct maintenance_options options = {.command = line->command,
                                          .dir = line->dir,
                                          .yes = line->yes,
                                          .data_dir = broker->config.persistence_location,
                                          .checkpoint_bytes_max = checkpoint_map_bytes(&broker->config)};
    return maintenance_run(&options);
}

static int run_check(struct broker *broker, const struct command_line *line)
{
    struct errmsg msg;
    if (check_certificates(&broker->config, &msg) != ERR_OK) {
        (void)fprintf(stderr, "%s\n", msg.text);
        return EXIT_FAILURE;
    }
    if (!line->topic) {
        (void)puts("configuration is valid");
        return EXIT_SUCCESS;
    }
    struct rule_subject subject = {
        .topic = span_of_string(line->topic),
        .client_id = span_of_string(line->client_id ? line->client_id : "CLIENT-ID"),
        .user_name = span_of_string(line->user_name ? line->user_name : ""),
    };
    const struct rule *rule = NULL;
    struct span device = {0};
    switch (rule_table_match(&broker->rules, &rule, &device, &subject)) {
    case RULE_NONE:
        (void)printf("%s: not telemetry\n", line->topic);
        break;
    case RULE_MATCH:
        (void)printf("%s: telemetry of device \"%.*s\" by rule %s (line %d, max_qos %u)\n", line->topic, (int)device.size,
                     (const char *)device.data, rule->name, rule->line, rule->max_qos);
        break;
    case RULE_REFUSE:
        (void)printf("%s: telemetry without a device, refused by rule %s (line %d)\n", line->topic, rule->name, rule->line);
        break;
    case RULE_SKIPPED:
        (void)printf("%s: telemetry without a device, passed on as an ordinary message by rule %s (line %d)\n", line->topic, rule->name,
                     rule->line);
        break;
    }
    const struct tier_line *tier = tier_table_match(&broker->tiers, subject.topic);
    if (!broker->config.persistence)
        (void)printf("%s: tier none (persistence false)\n", line->topic);
    else if (tier)
        (void)printf("%s: tier %s by filter %.*s (line %d)\n", line->topic, durability_name((enum durability)tier->durability),
                     (int)tier->filter.size, (const char *)tier->filter.data, tier->line);
    else
        (void)printf("%s: tier log (default)\n", line->topic);
    return EXIT_SUCCESS;
}

static int run_dump(struct broker *broker)
{
    struct buf text;
    buf_init(&text, 16 << 20);
    options_dump(broker->options, &text);
    (void)fputs(buf_string(&text), stdout);
    buf_deinit(&text);
    return EXIT_SUCCESS;
}

/* ---- start ---- */

static enum err open_log_lines(const struct broker_config *config, struct errmsg *msg)
{
    return logger_open(config->log_file, config->log_format == BROKER_LOG_JSON ? LOGGER_JSON : LOGGER_HUMAN,
                       (enum logger_level)config->log_level, msg);
}

static enum err open_kv(void *arg, struct kv **kv_out, struct errmsg *msg)
{
    const struct broker *broker = arg;
    char dir[FILE_PATH_MAX];
    enum err err = file_path(dir, broker->data_dir.path, "checkpoint");
    if (err != ERR_OK)
        return err_set(msg, err, "%s: %s", broker->data_dir.path, err_text(err));
    struct kv_lmdb_options options = {.dir = dir, .map_bytes = checkpoint_map_bytes(&broker->config), .reader_max = CHECKPOINT_READERS};
    if (broker->config.checkpoint_compact_percent > 0) {
        uint64_t saved = 0;
        struct errmsg why = {{0}};
        if (kv_lmdb_compact(&saved, &options, (unsigned)broker->config.checkpoint_compact_percent, &why) != ERR_OK)
            LOG_WARNING("the checkpoint was not compacted", LOG_TEXT("detail", why.text));
        else if (saved > 0)
            LOG_NOTICE("checkpoint compacted", LOG_U64("saved_bytes", saved));
    }
    err = kv_lmdb_open(kv_out, &options, msg);
    if (err == ERR_OK)
        kv_lmdb_catch_faults(*kv_out);
    return err;
}

/* What must be known of the log before numbers are drawn from its epoch. */
static enum err check_epoch(const struct broker *broker, struct errmsg *msg)
{
    uint32_t epoch = log_writer_epoch(broker->durable.writer);
    if (epoch <= SESSION_NUMBER_EPOCH_MAX)
        return ERR_OK;
    return err_set(msg, ERR_TOOLARGE, "%s/log: epoch %u: a log is good for %u starts; begin a new one", broker->data_dir.path, epoch,
                   SESSION_NUMBER_EPOCH_MAX); /* numbers of sessions would come twice */
}

static void on_cursor_removed(void *arg, const char *path)
{
    (void)arg;
    LOG_NOTICE("removed the cursor of a backup that was killed: it held the log", LOG_TEXT("path", path));
}

/* The log works with them, too: until it is full. */
static void remove_stale_cursors(const char *log_dir)
{
    struct errmsg why = {{0}};
    if (backup_remove_stale_cursors(fs_posix(), log_dir, on_cursor_removed, NULL, &why) != ERR_OK)
        LOG_WARNING("the cursor of a backup that was killed holds the log", LOG_TEXT("detail", why.text));
}

static bool is_cursor_wanted(const struct broker *broker, const char *name)
{
    const struct option_list *asked = &broker->config.log_cursors;
    bool is_wanted =
        (broker->rules.count > 0 && strcmp(name, "sink") == 0) || strncmp(name, BACKUP_CURSOR_PREFIX, strlen(BACKUP_CURSOR_PREFIX)) == 0;
    for (size_t i = 0; i < asked->count && !is_wanted; i++)
        is_wanted = strcmp(name, asked->items[i].value) == 0;
    return is_wanted;
}

/* A cursor holds the log as long as its file is there: its records were promised to a consumer, and only the operator knows whether that
 * comes again. One that the configuration does not ask for any more is told of. */
static void look_at_cursor(void *arg, const char *file_name)
{
    const struct broker *broker = arg;
    const char *name = file_name + strlen(LOG_CURSOR_PREFIX);
    struct log_cursor_value value;
    char dir[FILE_PATH_MAX];
    if (strncmp(file_name, LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) != 0 || is_cursor_wanted(broker, name))
        return;
    if (file_path(dir, broker->data_dir.path, "log") != ERR_OK || log_cursor_read(&value, fs_posix(), dir, name) != ERR_OK)
        return; /* the log's writer has said so */
    uint64_t end = broker->durable.log.end.position.sequence;
    LOG_WARNING("a cursor that the configuration does not ask for holds the log: start its consumer, or remove the file",
                LOG_TEXT("path", dir), LOG_TEXT("cursor", name),
                LOG_U64("records_behind", end > value.position.sequence ? end - value.position.sequence : 0));
}

static enum err start_data(struct broker *broker, struct errmsg *msg)
{
    const struct broker_config *config = &broker->config;
    enum err err = data_dir_open(&broker->data_dir, config->persistence_location, "broker.lock", msg);
    if (err != ERR_OK)
        return err;
    broker->has_data_dir = true;
    char dir[FILE_PATH_MAX];
    err = file_path(dir, broker->data_dir.path, "log");
    if (err != ERR_OK)
        return err_set(msg, err, "%s: %s", broker->data_dir.path, err_text(err));
    if (!config->persistence) {
        if (access(dir, F_OK) == 0)
            LOG_WARNING("persistence is false: what the data directory has from before is neither loaded nor changed",
                        LOG_TEXT("path", broker->data_dir.path));
        return ERR_OK;
    }
    struct recovery_options options = {
        .fs = fs_posix(),
        .data_dir = broker->data_dir.path,
        .open_kv = open_kv,
        .open_kv_arg = broker,
        .log =
            {
                .fs = fs_posix(),
                .dir = dir,
                .segment_size = (uint64_t)config->log_segment_size,
                .log_bytes_max = (uint64_t)config->log_max_size,
                .free_bytes_min = (uint64_t)config->log_free_disk_floor,
                .wall_ns = clock_wall(),
            },
        .delta_bytes_max = (uint64_t)config->checkpoint_window_bytes,
        .random = broker->hash_key,
        .queue_age_max_ns = config->max_queued_age_ns == OPTION_UNLIMITED ? 0 : config->max_queued_age_ns,
    };
    remove_stale_cursors(dir);
    mono_ns begun = clock_mono();
    err = recovery_open(&broker->durable, &options, msg);
    if (err == ERR_OK)
        err = check_epoch(broker, msg);
    if (err != ERR_OK)
        return err;
    struct log_writer *writer = broker->durable.writer;
    const struct log_recovery *log = &broker->durable.log;
    LOG_NOTICE("log open", LOG_TEXT("dir", dir), LOG_U64("records", log->record_count), LOG_U64("torn_bytes", log->torn_bytes),
               LOG_HEX("broker_id", log_writer_broker_id(writer)), LOG_U64("epoch", log_writer_epoch(writer)),
               LOG_DURATION("took", clock_mono() - begun));
    if (broker->rules.count > 0)
        err = log_writer_ensure_cursor(writer, "sink", msg);
    for (size_t i = 0; err == ERR_OK && i < config->log_cursors.count; i++)
        err = log_writer_ensure_cursor(writer, config->log_cursors.items[i].value, msg);
    if (err == ERR_OK && (err = fs_list(fs_posix(), dir, broker, look_at_cursor)) != ERR_OK)
        err_set(msg, err, "%s: %s", dir, err_text(err));
    return err;
}

static void on_log_failed(void *arg)
{
    struct broker *broker = arg;
    atomic_store_explicit(&broker->log_failed, true, memory_order_release);
    bell_ring(&broker->bell);
}

static size_t choose_ring_capacity(const struct broker_config *config)
{
    size_t wanted = (size_t)config->ring_capacity;
    if (wanted == 0)
        wanted = config->shard_count <= 4 ? 8192 : config->shard_count <= 16 ? 4096 : 1024;
    size_t capacity = 64;
    while (capacity < wanted)
        capacity *= 2;
    return capacity;
}

/* What the threads will own; nothing runs yet. */
static enum err make_route(struct broker *broker, struct errmsg *msg)
{
    const struct broker_config *config = &broker->config;
    wall_ns now_wall = clock_wall();
    int64_t steady_ns = now_wall;
    if (broker->durable.checkpoint) {
        struct checkpoint_state state = checkpoint_state(broker->durable.checkpoint);
        steady_ns = recovery_steady_ns(&state, now_wall);
        broker->retained_counter = state.retained_number_max; /* numbers go on above what the checkpoint knows */
    }
    broker->steady_offset_ns = steady_ns - clock_mono();
    broker->tree = topic_tree_new(broker->hash_key);
    broker->exchange = exchange_new(config->shard_count, choose_ring_capacity(config));
    if (!broker->tree || !broker->exchange)
        return err_set(msg, ERR_NOMEM, "start: %s", err_text(ERR_NOMEM));
    struct route_limits limits = {
        .retained_messages_max = (uint64_t)config->max_retained_messages,
        .retained_bytes_max = (uint64_t)config->max_retained_bytes,
        .retained_on_disk = config->persistence,
        .retained_cache_bytes_max = (uint64_t)config->retained_cache_bytes,
        .tree_bytes_max = (uint64_t)config->max_subscription_bytes,
        .scan_slice = 256,
    };
    enum err err = route_thread_new(&broker->route, broker->exchange, broker->tree, &broker->retained_counter, broker->hash_key,
                                    config->shard_count, &limits, broker->steady_offset_ns);
    return err == ERR_OK ? ERR_OK : err_set(msg, err, "start of threads: %s", err_text(err));
}

/* The checkpoint into the actors. */
static enum err load_checkpoint(struct broker *broker, struct errmsg *msg)
{
    if (!broker->durable.checkpoint)
        return ERR_OK;
    struct shard *shards[ACTOR_SHARDS_MAX];
    for (uint16_t i = 0; i < broker->loop_count; i++) {
        CHECK(broker->loops[i]);
        shards[i] = broker->loops[i]->shard;
    }
    mono_ns begun = clock_mono();
    struct recovery_target target = {
        .shards = shards,
        .shard_count = broker->loop_count,
        .hash_key = broker->hash_key,
        .tree = broker->tree,
        .route = route_thread_actor(broker->route),
        .now_mono_ns = begun,
        .now_wall_ns = clock_wall(),
        .now_steady_ns = begun + broker->steady_offset_ns,
    };
    struct recovery_loaded loaded;
    enum err err = recovery_load(&loaded, &broker->durable, &target, msg);
    if (err != ERR_OK)
        return err;
    for (uint16_t i = 0; i < broker->loop_count; i++)
        shard_restore_end(shards[i], clock_mono());
    LOG_NOTICE("checkpoint loaded", LOG_U64("sessions", loaded.sessions), LOG_U64("subscriptions", loaded.subscriptions),
               LOG_U64("queued_messages", loaded.messages), LOG_U64("retained_values", loaded.retained),
               LOG_U64("damaged_values", loaded.corrupt), LOG_DURATION("took", clock_mono() - begun));
    return ERR_OK;
}

static enum err start_log(struct broker *broker)
{
    const struct broker_config *config = &broker->config;
    struct log_thread_config log = {
        .shard_count = config->shard_count,
        .commit_spacing_ns = config->log_commit_spacing_ns,
        .room_margin = log_room_margin(config->shard_count, (uint64_t)config->log_blocks_per_shard, LOG_BLOCK_SIZE_MAX,
                                       (uint64_t)config->log_max_size),
        .on_failed = on_log_failed,
        .on_failed_arg = broker,
    };
    return log_thread_start(&broker->log, broker->exchange, broker->durable.writer, &log);
}

static enum err start_store(struct broker *broker)
{
    const struct broker_config *config = &broker->config;
    char dir[FILE_PATH_MAX];
    enum err err = file_path(dir, broker->data_dir.path, "log");
    struct store_thread_config store = {
        .checkpoint = broker->durable.checkpoint,
        .options =
            {
                .fs = fs_posix(),
                .log_dir = dir,
                .interval_ns = config->checkpoint_interval_ns,
                .segment_bytes = (uint64_t)config->log_segment_size,
                .lag_ns_max = config->checkpoint_lag_ns,
                .lag_bytes_max = (uint64_t)config->checkpoint_lag_bytes,
                .delta_bytes_max = (uint64_t)config->checkpoint_window_bytes,
                .used_bytes_max = (uint64_t)config->checkpoint_max_bytes,
                .shard_count = config->shard_count,
                .steady_offset_ns = broker->steady_offset_ns,
            },
        .on_failed = on_log_failed,
        .on_failed_arg = broker,
    };
    if (err == ERR_OK)
        err = store_thread_start(&broker->store, broker->exchange, broker->durable.writer, &store);
    return err == ERR_OK ? reader_thread_start(&broker->reader, broker->exchange, broker->durable.kv) : err;
}

static enum err start_threads(struct broker *broker, struct errmsg *msg)
{
    enum err err = route_thread_start(broker->route);
    if (err == ERR_OK && broker->durable.writer)
        err = start_store(broker);
    if (err == ERR_OK && broker->durable.writer)
        err = start_log(broker);
    for (uint16_t i = 0; err == ERR_OK && i < broker->loop_count; i++)
        err = loop_start(broker->loops[i]);
    return err == ERR_OK ? ERR_OK : err_set(msg, err, "start of threads: %s", err_text(err));
}

_Static_assert((int)BROKER_QUEUE_DROP_OLDEST == (int)QUEUE_DROP_OLDEST, "the option's values are the policy's");
_Static_assert((int)BROKER_QUEUE_REFUSE == (int)QUEUE_REFUSE, "the option's values are the policy's");

static uint64_t limit_u64(int64_t value) { return value == OPTION_UNLIMITED ? UINT64_MAX : (uint64_t)value; }
static uint64_t rate_u64(int64_t value) { return value == OPTION_UNLIMITED ? ADMISSION_UNLIMITED : (uint64_t)value; }
static uint32_t clamp_u32(int64_t value) { return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value; }

/* A record of each shard may be under way at a time; together they take at most half of the log. */
static uint64_t record_bytes_max(const struct broker_config *config)
{
    uint64_t share = (uint64_t)config->log_max_size / 2 / config->shard_count;
    return share < RECORD_SIZE_MAX ? share : RECORD_SIZE_MAX;
}

/* A shard's share; at least one. */
static uint32_t wills_per_s(const struct broker_config *config)
{
    if (config->wills_per_second == OPTION_UNLIMITED)
        return 0;
    int64_t share = config->wills_per_second / config->shard_count;
    return share > 0 ? clamp_u32(share) : 1;
}

static enum err make_loops(struct broker *broker, struct errmsg *msg)
{
    const struct broker_config *config = &broker->config;
    int64_t expiry_s = config->persistent_client_expiration_ns / NS_PER_S;
    broker->queue_totals.messages_max = limit_u64(config->max_queued_messages_total);
    broker->queue_totals.bytes_max = limit_u64(config->max_queued_bytes_total);
    struct loop_config loop = {
        .shard =
            {
                .shard_count = config->shard_count,
                .hash_key = broker->hash_key,
                .limits =
                    {
                        .session_queue_messages_max = clamp_u32(config->max_queued_messages),
                        .session_queue_bytes_max = limit_u64(config->max_queued_bytes),
                        .queue_age_max_ns = config->max_queued_age_ns == OPTION_UNLIMITED ? 0 : config->max_queued_age_ns,
                        .queue_policy = (uint8_t)config->queue_policy,
                        .inflight_max = (uint16_t)(config->max_inflight_messages > 65535 ? 65535 : config->max_inflight_messages),
                        .outbox_bytes_max = (uint64_t)config->outbox_limit,
                        .outboxes_bytes_max = (uint64_t)config->outbox_total_limit / config->shard_count,
                        .partial_bytes_max = (uint64_t)config->partial_packet_limit / config->shard_count,
                        .record_bytes_max = record_bytes_max(config),
                        .connect_timeout_ms = clamp_u32(config->connect_timeout_ns / NS_PER_MS),
                        .session_expiry_max_s = expiry_s == 0 ? UINT32_MAX : clamp_u32(expiry_s),
                        .will_restart_grace_ms = clamp_u32(config->will_restart_grace_ns / NS_PER_MS),
                        .wills_per_s = wills_per_s(config),
                        .sessions_max = clamp_u32((config->max_sessions + config->shard_count - 1) / config->shard_count),
                        .publishes_per_turn_max = clamp_u32(config->publishes_per_turn),
                        .queue_qos0_messages = config->queue_qos0_messages,
                        .allow_zero_length_clientid = config->allow_zero_length_clientid,
                        .allow_duplicate_messages = config->allow_duplicate_messages,
                        .receive_maximum_strict = config->receive_maximum_strict,
                    },
                .listeners = broker->shard_listeners,
                .listener_count = (uint16_t)config->listeners.count,
                .rules = broker->rules.count > 0 ? &broker->rules : NULL,
                .tiers = broker->tiers.count > 0 ? &broker->tiers : NULL,
                .queue_totals = broker->queue_totals.messages_max != UINT64_MAX || broker->queue_totals.bytes_max != UINT64_MAX
                                    ? &broker->queue_totals
                                    : NULL,
                .retained_counter = &broker->retained_counter,
                .retained = route_actor_retained(route_thread_actor(broker->route)),
                .steady_offset_ns = broker->steady_offset_ns,
                .epoch = broker->durable.writer ? log_writer_epoch(broker->durable.writer) : 0,
                .persistence = config->persistence,
            },
        .tree = broker->tree,
        .exchange = broker->exchange,
        .listeners = broker->listeners,
        .block_count_max = (uint32_t)config->log_blocks_per_shard,
        .block_alignment = broker->durable.writer ? log_writer_alignment(broker->durable.writer) : 0,
        .boss = &broker->bell,
    };
    broker->loops = calloc(config->shard_count, sizeof(struct loop *));
    if (!broker->loops)
        return err_set(msg, ERR_NOMEM, "start: %s", err_text(ERR_NOMEM));
    for (; broker->loop_count < config->shard_count; broker->loop_count++) {
        loop.shard.index = broker->loop_count;
        broker->loops[broker->loop_count] = loop_new(&loop, msg);
        if (!broker->loops[broker->loop_count])
            return ERR_NOMEM;
    }
    return ERR_OK;
}

static enum err start_listeners(struct broker *broker, struct errmsg *msg)
{
    const struct broker_config *config = &broker->config;
    const struct broker_listener_config *items = config->listeners.items;
    broker->listeners = calloc(config->listeners.count, sizeof *broker->listeners);
    broker->shard_listeners = calloc(config->listeners.count, sizeof *broker->shard_listeners);
    if (!broker->listeners || !broker->shard_listeners)
        return err_set(msg, ERR_NOMEM, "start: %s", err_text(ERR_NOMEM));
    int64_t packet_size_max = config->max_packet_size > 268435460 ? 268435460 : config->max_packet_size;
    for (; broker->listener_count < config->listeners.count; broker->listener_count++) {
        const struct broker_listener_config *item = &items[broker->listener_count];
        broker->shard_listeners[broker->listener_count] = (struct shard_listener){
            .allow_anonymous = item->allow_anonymous,
            .max_packet_size = (uint32_t)packet_size_max,
            .receive_maximum = (uint16_t)config->receive_maximum,
            .topic_alias_maximum = (uint16_t)item->max_topic_alias,
            .max_keepalive_s = (uint16_t)(config->max_keepalive_s == 65535 ? 0 : config->max_keepalive_s),
            .max_qos = (uint8_t)item->max_qos,
            .retain_available = config->retain_available,
        };
        struct listener_config listener = {
            .address = item->is_local ? listener_local : item->bind_address,
            .port = (uint16_t)item->port,
            .backlog = (int)config->backlog,
            .tcp_nodelay = config->set_tcp_nodelay,
            .tls = {.certificate_path = item->certfile, .key_path = item->keyfile},
            .connections_max = limit_u64(item->max_connections),
            .packet_size_max = (uint32_t)packet_size_max,
            .accept_rate = rate_u64(item->listener_accept_rate),
            .accept_burst = (uint64_t)item->listener_accept_burst,
            .connection_rate = rate_u64(item->listener_connection_rate),
            .connection_burst = (uint64_t)item->listener_connection_burst,
        };
        enum err err = listener_open(&broker->listeners[broker->listener_count], (uint16_t)broker->listener_count, &listener, msg);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

/* A broker that cannot open a segment of its log for want of a descriptor must end: so connections never take the last ones. */
static int connection_fd_end(void)
{
    uint64_t limit = proc_raise_fd_limit();
    uint64_t reserve = limit / 2 < FD_RESERVE ? limit / 2 : FD_RESERVE;
    return limit - reserve < INT_MAX ? (int)(limit - reserve) : INT_MAX;
}

static enum err start_door(struct broker *broker, struct errmsg *msg)
{
    const struct broker_config *config = &broker->config;
    bool has_tls = false;
    for (size_t i = 0; i < broker->listener_count; i++)
        has_tls = has_tls || broker->listeners[i].tls;
    if (has_tls) {
        struct cpu_pool_config pool = {
            .thread_name = "cpu", .thread_count = (unsigned)config->tls_threads, .queue_max = (unsigned)config->tls_queue, .nice = 5};
        enum err err = cpu_pool_new(&broker->pool, &pool);
        if (err != ERR_OK)
            return err_set(msg, err, "threads for TLS: %s", err_text(err));
    }
    struct door_config door = {
        .listeners = broker->listeners,
        .listener_count = broker->listener_count,
        .loops = broker->loops,
        .shard_count = broker->loop_count,
        .hash_key = broker->hash_key,
        .pool = broker->pool,
        .connect_timeout_ns = config->connect_timeout_ns,
        .guests_max = (uint32_t)config->connecting_limit,
        .guest_bytes_max = (uint64_t)config->connecting_bytes_limit,
        .connections_max = limit_u64(config->global_max_connections),
        .fd_end = connection_fd_end(),
        .accept_rate = rate_u64(config->accept_rate),
        .accept_burst = (uint64_t)config->accept_burst,
        .connection_rate = rate_u64(config->connection_rate),
        .connection_burst = (uint64_t)config->connection_burst,
        .defer_max_ns = config->connection_policy == BROKER_ADMISSION_DEFER ? config->connection_defer_ns : 0,
        .log_connections = config->connection_messages,
    };
    return door_new(&broker->door, &door, msg);
}

static enum err start_admin(struct broker *broker, struct errmsg *msg)
{
    struct admin_sources sources = {
        .config = &broker->config,
        .exchange = broker->exchange,
        .loops = broker->loops,
        .shard_count = broker->loop_count,
        .listeners = broker->listeners,
        .listener_count = broker->listener_count,
        .door = broker->door,
        .pool = broker->pool,
        .route = broker->route,
        .store = broker->store,
        .log = broker->log,
        .writer = broker->durable.writer,
        .kv = broker->durable.kv,
        .checkpoint = broker->durable.checkpoint,
        .reader = broker->reader,
        .is_draining = &broker->is_draining,
    };
    return admin_api_new(&broker->admin, &sources, msg);
}

/* `listeners`: protocol, address and port of each socket, one a line; written aside and renamed, so that who sees it sees all of it. */
static enum err write_listeners_file(const struct broker *broker, struct errmsg *msg)
{
    char path[FILE_PATH_MAX], aside[FILE_PATH_MAX];
    if (file_path(path, broker->data_dir.path, "listeners") != ERR_OK || file_path(aside, broker->data_dir.path, "listeners.new") != ERR_OK)
        return err_set(msg, ERR_TOOLARGE, "persistence_location is too long");
    FILE *file = fopen(aside, "we");
    if (!file)
        return err_set(msg, err_from_errno(errno), "%s: %s", aside, strerror(errno));
    for (size_t i = 0; i < broker->listener_count; i++) {
        const struct listener *listener = &broker->listeners[i];
        for (size_t j = 0; j < listener->socket_count; j++)
            (void)fprintf(file, "%s %s %u\n", listener->tls ? "tls" : "tcp", listener->sockets[j].address, listener->sockets[j].port);
    }
    if (admin_api_port(broker->admin) != 0)
        (void)fprintf(file, "http %s %u\n", broker->config.http_address, admin_api_port(broker->admin));
    bool is_written = fflush(file) == 0;
    is_written = fclose(file) == 0 && is_written;
    if (!is_written || rename(aside, path) != 0)
        return err_set(msg, err_from_errno(errno), "%s: %s", path, strerror(errno));
    return ERR_OK;
}

static enum err write_pid_file(const struct broker *broker, struct errmsg *msg)
{
    const char *path = broker->config.pid_file;
    if (!path)
        return ERR_OK;
    FILE *file = fopen(path, "we");
    if (!file)
        return err_set(msg, err_from_errno(errno), "pid_file %s: %s", path, strerror(errno));
    (void)fprintf(file, "%ld\n", (long)getpid());
    (void)fclose(file);
    return ERR_OK;
}

static enum err block_signals(struct broker *broker, struct errmsg *msg)
{
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error of the write, not our end */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    broker->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (broker->signal_fd < 0)
        return err_set(msg, err_from_errno(errno), "signalfd: %s", strerror(errno));
    return ERR_OK;
}

static void warn_about_descriptors(const struct broker_config *config)
{
    uint64_t limit = proc_raise_fd_limit();
    const struct broker_listener_config *items = config->listeners.items;
    for (size_t i = 0; i < config->listeners.count; i++) {
        if (items[i].max_connections != OPTION_UNLIMITED && (uint64_t)items[i].max_connections + FD_RESERVE > limit)
            LOG_WARNING("max_connections is more than the limit of open files allows",
                        LOG_U64("max_connections", (uint64_t)items[i].max_connections), LOG_U64("open_files", limit));
    }
    LOG_INFO("limit of open files", LOG_U64("open_files", limit));
}

static enum err start(struct broker *broker, struct errmsg *msg)
{
    enum err err = open_log_lines(&broker->config, msg);
    if (err == ERR_OK)
        err = block_signals(broker, msg);
    if (err == ERR_OK && getrandom(&broker->hash_key, sizeof broker->hash_key, 0) != (ssize_t)sizeof broker->hash_key)
        err = err_set(msg, ERR_IO, "getrandom: %s", strerror(errno));
    if (err == ERR_OK)
        err = bell_init(&broker->bell);
    if (err != ERR_OK)
        return err;
    warn_about_descriptors(&broker->config);
    err = start_data(broker, msg);
    if (err == ERR_OK)
        err = make_route(broker, msg);
    if (err == ERR_OK)
        err = start_listeners(broker, msg);
    if (err == ERR_OK)
        err = make_loops(broker, msg);
    if (err == ERR_OK)
        err = load_checkpoint(broker, msg);
    if (err == ERR_OK)
        err = start_threads(broker, msg);
    if (err == ERR_OK)
        err = start_door(broker, msg);
    if (err == ERR_OK)
        err = start_admin(broker, msg);
    if (err == ERR_OK)
        err = write_pid_file(broker, msg);
    if (err == ERR_OK)
        err = write_listeners_file(broker, msg);
    if (err == ERR_OK && door_start(broker->door) != ERR_OK)
        err = err_set(msg, ERR_NOMEM, "door: cannot start its thread");
    return err;
}

/* ---- running ---- */

/* SIGHUP: what can change without a restart is the log file's name on disk. */
static void on_hangup(struct broker *broker)
{
    struct errmsg msg;
    if (open_log_lines(&broker->config, &msg) != ERR_OK)
        LOG_ERROR("the log file cannot be opened again; the old one goes on", LOG_TEXT("detail", msg.text));
    else
        LOG_NOTICE("SIGHUP: log file opened again; the configuration is not read again, changes take a restart");
}

/* Until a signal to stop, or the log's failure. */
static void serve(struct broker *broker)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = broker->signal_fd, .events = POLLIN}, {.fd = broker->bell.fd, .events = POLLIN}};
        (void)poll(fds, 2, MAIN_FLUSH_MS);
        bell_wait(&broker->bell, 0);
        if (atomic_load_explicit(&broker->log_failed, memory_order_acquire))
            return;
        struct signalfd_siginfo info;
        while (read(broker->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
            if (info.ssi_signo != SIGHUP) {
                LOG_NOTICE("stopping", LOG_TEXT("signal", info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT"));
                return;
            }
            on_hangup(broker);
        }
        logger_flush();
    }
}

/* ---- stop ---- */

static void ask_loops(struct broker *broker, enum loop_order order)
{
    for (uint16_t i = 0; i < broker->loop_count; i++)
        loop_ask(broker->loops[i], order);
}

static bool loops_are_done(const struct broker *broker)
{
    for (uint16_t i = 0; i < broker->loop_count; i++) {
        if (!loop_is_done(broker->loops[i]))
            return false;
    }
    return true;
}

/* True when all shards are drained within the time. A second signal ends the wait. */
static bool wait_for_loops(struct broker *broker, int64_t timeout_ns)
{
    mono_ns until = clock_mono() + timeout_ns;
    while (!loops_are_done(broker)) {
        mono_ns now = clock_mono();
        struct pollfd fds[2] = {{.fd = broker->signal_fd, .events = POLLIN}, {.fd = broker->bell.fd, .events = POLLIN}};
        if (now >= until || poll(fds, 2, (int)((until - now) / NS_PER_MS) + 1) < 0)
            return loops_are_done(broker);
        bell_wait(&broker->bell, 0);
        struct signalfd_siginfo info;
        if (read(broker->signal_fd, &info, sizeof info) == (ssize_t)sizeof info && info.ssi_signo != SIGHUP)
            return false;
    }
    return true;
}

static void stop(struct broker *broker)
{
    atomic_store_explicit(&broker->is_draining, true, memory_order_relaxed);
    (void)sd_notify_send("STOPPING=1");
    if (broker->door)
        door_stop(broker->door);
    ask_loops(broker, LOOP_DRAIN);
    /* What a failed log holds back will never be released: there is only the goodbye to wait for. */
    bool failed = atomic_load_explicit(&broker->log_failed, memory_order_acquire);
    int64_t timeout = failed && broker->config.drain_timeout_ns > NS_PER_S ? NS_PER_S : broker->config.drain_timeout_ns;
    if (!wait_for_loops(broker, timeout)) {
        LOG_WARNING("clients are cut off");
        ask_loops(broker, LOOP_FORCE);
        if (!wait_for_loops(broker, 5 * NS_PER_S))
            LOG_ERROR("not everything that was logged is known to be durable");
    }
    char path[FILE_PATH_MAX];
    if (broker->has_data_dir && file_path(path, broker->data_dir.path, "listeners") == ERR_OK)
        (void)unlink(path);
    if (broker->config.pid_file)
        (void)unlink(broker->config.pid_file);
    admin_api_free(broker->admin);
}

/* After stop(): everything has come to rest, so give it back in the opposite order. */
static void tear_down(struct broker *broker)
{
    ask_loops(broker, LOOP_EXIT);
    cpu_pool_free(broker->pool);
    /* The route, store and log threads answer what is in their rings while the loops still own the answers' receivers. */
    for (uint16_t i = 0; i < broker->loop_count; i++)
        loop_wait(broker->loops[i]);
    route_thread_stop(broker->route);
    log_thread_stop(broker->log);
    store_thread_stop(broker->store); /* brings the checkpoint to the log's end, so that the next start has nothing to replay */
    reader_thread_stop(broker->reader);
    route_thread_free(broker->route); /* whose bell the store and the reader rang until now */
    for (uint16_t i = 0; i < broker->loop_count; i++)
        loop_free(broker->loops[i]);
    door_free(broker->door);
    for (size_t i = 0; i < broker->listener_count; i++)
        listener_deinit(&broker->listeners[i]);
    exchange_free(broker->exchange);
    topic_tree_free(broker->tree);
    recovery_close(&broker->durable);
    if (broker->has_data_dir)
        data_dir_close(&broker->data_dir);
    free(broker->loops);
    free(broker->listeners);
    free(broker->shard_listeners);
    close(broker->signal_fd);
    bell_deinit(&broker->bell);
}

static int run(struct broker *broker)
{
    struct errmsg msg = {{0}};
    enum err err = start(broker, &msg);
    if (err != ERR_OK) {
        LOG_ERROR("cannot start", LOG_ERR("error", err), LOG_TEXT("detail", msg.text));
        logger_flush();
        /* Threads may run already; nothing was served, so there is nothing to bring to rest. */
        (void)fflush(NULL);
        _exit(EXIT_FAILURE);
    }
    LOG_NOTICE("ready", LOG_TEXT("version", TIDEGATE_VERSION), LOG_U64("shards", broker->loop_count),
               LOG_TEXT("data", broker->data_dir.path), LOG_U64("telemetry_rules", broker->rules.count));
    (void)sd_notify_send("READY=1\nSTATUS=serving");
    serve(broker);
    bool failed = atomic_load_explicit(&broker->log_failed, memory_order_acquire);
    stop(broker);
    failed = failed || atomic_load_explicit(&broker->log_failed, memory_order_acquire);
    bool is_clean = loops_are_done(broker);
    LOG_NOTICE("stopped", LOG_BOOL("clean", is_clean), LOG_BOOL("log_failed", failed));
    logger_flush();
    /* With blocks that will never come back there is no orderly end for their owners: the kernel clears up. */
    if (failed || !is_clean) {
        (void)fflush(NULL);
        _exit(EXIT_FAILURE);
    }
    tear_down(broker);
    logger_close();
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct command_line line;
    int status = parse_command_line(&line, argc, argv);
    if (status >= 0)
        return status;
    struct broker *broker = calloc(1, sizeof *broker);
    CHECK(broker != NULL);
    broker->signal_fd = -1;
    if (!load_config(broker, &line))
        status = EXIT_FAILURE;
    else if (strcmp(line.command, "check") == 0)
        status = run_check(broker, &line);
    else if (strcmp(line.command, "dump") == 0)
        status = run_dump(broker);
    else if (maintenance_is_command(line.command))
        status = run_maintenance(broker, &line);
    else
        status = run(broker);
    rule_table_deinit(&broker->rules);
    tier_table_deinit(&broker->tiers);
    options_free(broker->options);
    free(broker);
    return status;
}
