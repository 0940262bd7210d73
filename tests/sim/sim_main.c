/* tidegate-sim [--seed N] [--seeds N] [--first N] [--steps N] [--purpose N] [--trace]
 *
 * Runs seeds one after the other, each from nothing; prints progress, and at a finding the seed, the step and how to see it again. Status 1
 * then. */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

#include "broker/session/queue.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/logger.h"
#include "tests/sim/sim.h"

#define STEPS_DEFAULT 4000
#define REST_STEPS_MAX 400000   /* far more than coming to rest takes; reaching it means that something is stuck */
#define REST_IDLE_STEPS 400     /* steps in which nothing could happen */
#define REST_HURRY_STEPS 50     /* from then on time passes fast: timers are all that can happen */
#define REST_NS (40 * NS_PER_S) /* longer than wills wait */
#define SEED_SECONDS_MAX 60 /* of processor time, for a loop without an end: a seed takes milliseconds, one that is stuck some seconds */
#define WALL_START INT64_C(1790000000000000000)

void sim_found(struct sim *sim, const char *format, ...)
{
    va_list args;
    printf("FOUND with seed %" PRIu64 " at step %" PRIu64 "%s: ", sim->seed, sim->step, sim->calm ? " (at rest)" : "");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n  again: tidegate-sim --seed %" PRIu64, sim->seed);
    if (sim->purpose >= 0)
        printf(" --purpose %d", sim->purpose);
    printf(" --trace\n");
    fflush(stdout);
    exit(1);
}

void sim_trace(struct sim *sim, const char *format, ...)
{
    va_list args;
    if (!sim->trace)
        return;
    printf("%6" PRIu64 " ", sim->step);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

uint64_t sim_below(struct sim *sim, uint64_t bound) { return bound ? check_random_below(&sim->random, bound) : 0; }
bool sim_chance(struct sim *sim, uint32_t numerator, uint32_t denominator)
{
    return check_random_chance(&sim->random, numerator, denominator);
}

void sim_promised(struct sim *sim, bool is_rare)
{
    uint32_t one_in = is_rare ? 1 + sim->config.haste / 8 : sim->config.haste;
    if (sim->config.haste == 0 || sim->calm || sim->kill_step > sim->step || !sim_chance(sim, 1, one_in))
        return;
    uint64_t at = sim->step + 1 + sim_below(sim, sim_chance(sim, 1, 2) ? 4 : 40);
    if (sim->config.power_faults && sim_chance(sim, 1, 2))
        sim->power_loss_step = at;
    else
        sim->kill_step = at;
}

/* What a seed is good at: a log that is slow, deaths at the moment of a promise, subscribers that come and go, clean starts. */
static void draw_moods(struct sim *sim, struct sim_config *config)
{
    config->log_rest = sim_chance(sim, 1, 2) ? 1 : (uint32_t)(2 + sim_below(sim, 30));
    config->haste = sim_chance(sim, 1, 2) ? (uint32_t)(8 + sim_below(sim, 100)) : 0;
    config->change_one_in = sim_chance(sim, 1, 3) ? 4 : 40;
    config->clean_one_in = sim_chance(sim, 1, 4) ? 3 : 30;
    config->give_up_one_in = sim_chance(sim, 1, 3) ? 12 : 0;
    config->short_one_in = 3;
    config->quiet_step = UINT32_MAX;
    config->will_one_in = 2;
    config->retain_one_in = 4;
    config->command_one_in = 6;
    config->starve_one_in = 200;
    config->away_one_in = 4;
    config->fault_one_in = sim_chance(sim, 1, 2) ? 80 : 200;
    config->cut_one_in = sim_chance(sim, 1, 3) ? 100 : 0;
}

/* Sessions that stay, of clients that wait for their CONNACK: what is promised to one is owed for long. */
static void keep_sessions(struct sim_config *config)
{
    config->keeps_sessions = true;
    config->give_up_one_in = 0;
}

/* Wills that find no room, are just said when the broker dies, or are cancelled by a clean start. */
static void draw_wills(struct sim *sim, struct sim_config *config)
{
    config->will_one_in = 1;
    config->has_steady = true;
    config->clean_one_in = 3;
    config->give_up_one_in = 60;
    config->away_one_in = 2;
    config->away_steps = 800;
    config->all_go_away = true;
    config->cut_one_in = 200;
    config->haste = 40;
    config->log_rest = 8;
    config->block_count = 2;
    config->grace_ms = 10000 + config->grace_ms * 4; /* long enough for others to subscribe again; less than a rest takes */
    if (!sim_chance(sim, 1, 3))
        return;
    config->has_drought = true; /* wills wait for long, and their clients come back meanwhile */
    keep_sessions(config);
    config->is_v5 = true;
    config->cut_one_in = 400;
    config->fault_one_in = 400;
    config->client_count = 3 + config->client_count % 2;
    config->block_count = 8;
    config->steps *= 2;
    config->away_one_in = 6;
    config->short_one_in = 1;
    config->haste = 80;
    config->will_one_in = 2; /* a session without one leaves the log nothing but its predecessor's end */
    config->log_rest = 1;
    config->wills_per_s *= 10;
    config->segment_size = 1 << 17;
    config->alignment = 512;
}

/* Retained values alone, for subscribers that watch, while the way from the tree to them starves. */
static void watch_retained(struct sim_config *config)
{
    config->client_count = 4 + config->client_count % 3;
    config->retain_one_in = 1;
    config->has_watchers = true;
    config->starve_one_in = 50;
    config->starves_route = true;
}

/* Retained values of few topics that everybody writes, and that are asked for again and again. */
static void draw_busy_retained(struct sim_config *config)
{
    watch_retained(config);
    config->device_count = 1 + config->device_count % 2;
    config->shard_count = SIM_SHARDS_MAX;
    config->command_one_in = 2;
    config->change_one_in = 1;
    config->ring_capacity = 64;
    config->log_rest = 1;
    config->haste = 0;
    config->fault_one_in = 200;
}

/* Retained values that nobody changes any more, for sessions that have just begun when the broker dies. */
static void draw_quiet_retained(struct sim_config *config)
{
    watch_retained(config);
    keep_sessions(config);
    config->device_count = SIM_DEVICES_MAX;
    config->command_one_in = 1000;
    config->will_one_in = 1000;
    config->quiet_step = config->steps;
    config->steps *= 2;
    config->shares_devices = true;
    config->inflight_max = 1;
    config->expiry_max_s = UINT32_MAX;
    config->change_one_in = 1000;
    config->clean_one_in = 3;
    config->short_one_in = 1000;
    config->cut_one_in = 300;
    config->fault_one_in = 400;
    config->haste = 24;
}

/* Long queues of many that are away, and deaths while they are read. */
static void draw_long_queues(struct sim *sim, struct sim_config *config)
{
    config->has_steady = true;
    config->haste = 40;
    config->away_one_in = 1;
    config->away_steps = 1000;
    config->queue_qos0 = sim_chance(sim, 2, 3);
    config->cut_one_in = 80;
    config->burst = 5;
    config->command_one_in = 2;
}

/* Of those the oldest go, for the bound of all queues together, which may be lower at a start. Only when it is asked for. */
static void draw_owing_queues(struct sim *sim, struct sim_config *config)
{
    draw_long_queues(sim, config);
    keep_sessions(config);
    config->has_steady = false;
    config->client_count = 3 + config->client_count % 3;
    config->command_one_in = 1;
    config->clean_one_in = config->short_one_in = config->change_one_in = 1000;
    config->expiry_max_s = UINT32_MAX;
    config->is_bounded = true;
    config->queue_policy = QUEUE_DROP_OLDEST;
    config->queue_messages_max = 100000;
    config->queue_bytes_max = 1 << 30;
    config->totals_messages_max = (uint32_t)(20 + sim_below(sim, 100));
    config->queue_age_max_ns = 0;
}

/* A small log that is used again and again, and large messages whose senders are cut off. */
static void draw_small_log(struct sim *sim, struct sim_config *config)
{
    config->sink_rest = 20;
    config->large_one_in = 3;
    config->cut_one_in = 100;
    config->away_one_in = 50;
    config->steps *= 2;
    config->segment_size = sim_chance(sim, 1, 2) ? 1 << 14 : 1 << 16;
    if (config->segment_size == 1 << 14)
        return;
    keep_sessions(config);
    config->block_count = 4; /* they take long, and there is room beside them */
    config->block_body = 512;
    config->large_one_in = 6;
    config->log_rest = 3;
    config->shard_count = 1;
    config->burst = 5;
    config->haste = 0;
    config->clean_one_in = 1000;
}

static void draw_full_log(struct sim_config *config)
{
    config->has_drought = true;
    config->segment_size = 1 << 17; /* what connections log fits into a tenth of four */
    config->alignment = 512;
    config->haste = 0;
    config->log_rest = 1;
}

/* Of each few seeds one is after something special, and everything else is drawn. */
static void draw_purpose(struct sim *sim, struct sim_config *config)
{
    switch (sim->purpose < 0 ? (int)(sim->seed % 10) : sim->purpose) {
    case 1:
        draw_wills(sim, config);
        return;
    case 3:
        draw_busy_retained(config);
        return;
    case 4:
        draw_quiet_retained(config);
        return;
    case 5:
        draw_long_queues(sim, config);
        return;
    case 7:
        draw_small_log(sim, config);
        return;
    case 8:
        if (sim->purpose == 8)
            draw_owing_queues(sim, config);
        return;
    case 9:
        draw_full_log(config);
        return;
    default:
        return;
    }
}

/* Much is published, so that the log is full soon. */
static void draw_drought_config(struct sim_config *config)
{
    config->persistence = true;
    config->large_one_in = 2;
    config->burst = 5;
    config->steps *= 2;
    config->is_bounded = false;
    config->queue_policy = QUEUE_DROP_NEWEST; /* never met */
    config->queue_messages_max = 100000;
    config->queue_bytes_max = 1 << 30;
    config->totals_messages_max = UINT32_MAX;
    config->queue_age_max_ns = 0;
}

/* Bounds of queues: far away, or so near that they are met. */
static void draw_queue_config(struct sim *sim, struct sim_config *config)
{
    config->is_bounded = sim_chance(sim, 1, 3);
    config->queue_policy = (uint8_t)sim_below(sim, 3);
    config->queue_messages_max = config->is_bounded ? (uint32_t)(2 + sim_below(sim, sim_chance(sim, 1, 2) ? 20 : 200)) : 100000;
    config->queue_bytes_max = config->is_bounded && sim_chance(sim, 1, 3) ? 2000 + sim_below(sim, 50000) : 1 << 30;
    config->totals_messages_max = config->is_bounded && sim_chance(sim, 1, 3) ? (uint32_t)(10 + sim_below(sim, 200)) : UINT32_MAX;
    config->queue_age_max_ns = config->is_bounded && sim_chance(sim, 1, 3) ? (int64_t)(1 + sim_below(sim, 30)) * NS_PER_S : 0;
    config->queue_qos0 = sim_chance(sim, 1, 4);
    config->inflight_max = (uint16_t)(1 + sim_below(sim, 8));
}

static void draw_durable_config(struct sim *sim, struct sim_config *config)
{
    config->persistence = !sim_chance(sim, 1, 25);
    config->store_faults = sim_chance(sim, 1, 2);
    config->wall_faults = sim_chance(sim, 1, 3);
    config->has_memory_tier = sim_chance(sim, 1, 3);
    config->store_asks_file = sim_chance(sim, 1, 4);
    config->away_steps = sim_chance(sim, 1, 3) ? 2500 : 200;
    config->burst = sim_chance(sim, 1, 3) ? 5 : 1;
    config->large_one_in = sim_chance(sim, 1, 4) ? 3 : 15;
    config->expiry_max_s = sim_chance(sim, 1, 6) ? (uint32_t)(5 + sim_below(sim, 60)) : UINT32_MAX;
    config->grace_ms = (uint32_t)sim_below(sim, 5000);
    config->wills_per_s = (uint32_t)sim_below(sim, 4);
    config->checkpoint_ns = (int64_t)(1 + sim_below(sim, sim_chance(sim, 1, 2) ? 20 : 2000)) * NS_PER_MS;
    config->lag_ns = config->checkpoint_ns * (int64_t)(2 + sim_below(sim, 20));
    config->lag_share_percent = (uint32_t)(50 + sim_below(sim, 400));
    config->delta_bytes = 2000 + sim_below(sim, sim_chance(sim, 1, 2) ? 10000 : 1000000);
    draw_queue_config(sim, config);
}

/* What follows from what was drawn. */
static void set_sizes(struct sim_config *config)
{
    /* The large records under way together, rounded up to whole blocks, take less than half a segment: one that holds more of the log than
     * there is waits for ever, since nobody looks at the room for all of it before it is begun. */
    if (config->alignment > 512) /* records of a few bytes take as much: there must be room for many beside a group */
        config->segment_size = 1 << 16;
    uint32_t block_size = (config->block_body + 160 + config->alignment - 1) / config->alignment * config->alignment;
    config->padding_max = config->segment_size / 2 / config->shard_count / block_size * config->block_body;
    if (config->padding_max > SIM_PADDING_MAX)
        config->padding_max = SIM_PADDING_MAX;
    config->lag_bytes = config->lag_share_percent * (uint64_t)config->segment_size / 100;
}

static void draw_config(struct sim *sim, uint32_t steps)
{
    struct sim_config *config = &sim->config;
    config->shard_count = (uint16_t)(1 + sim_below(sim, SIM_SHARDS_MAX));
    config->client_count = (uint32_t)(2 + sim_below(sim, SIM_CLIENTS_MAX - 1));
    config->device_count = (uint32_t)(1 + sim_below(sim, SIM_DEVICES_MAX));
    config->partition_count = (uint32_t)(1 + sim_below(sim, SIM_PARTITIONS_MAX));
    config->ring_capacity = 4u << sim_below(sim, 5);
    config->block_count = 2u << sim_below(sim, 4);
    config->block_body = 512u << sim_below(sim, 5);
    config->segment_size = 16384u << sim_below(sim, 3);
    config->sink_rest = sim_chance(sim, 1, 3) ? 1500 : 40;
    config->alignment = sim_chance(sim, 1, 4) ? 4096 : 512;
    config->steps = sim_chance(sim, 1, 8) ? 3 * steps : steps;
    config->disk_faults = sim_chance(sim, 1, 2);
    config->power_faults = sim_chance(sim, 2, 3);
    draw_moods(sim, config);
    draw_durable_config(sim, config);
    draw_purpose(sim, config);
    config->retained_max = sim->seed % 7 == 3 ? 1 + (uint32_t)(sim->seed / 7 % 3) : SIM_RETAINED_MAX;
    set_sizes(config);
    if (config->has_drought)
        draw_drought_config(config);
}

static void pass_time(struct sim *sim)
{
    int64_t ns =
        sim_chance(sim, 1, 200) ? (int64_t)sim_below(sim, (sim->calm ? 1 : 20) * NS_PER_S) : (int64_t)sim_below(sim, 2 * NS_PER_MS);
    if (sim->hurries)
        ns += NS_PER_S;
    sim->mono += ns + 1;
    sim->wall += ns + 1;
    if (!sim->calm && sim_chance(sim, 1, 500)) {
        int64_t step_ns = (int64_t)sim_below(sim, 20 * NS_PER_S) - 10 * NS_PER_S; /* the wall clock is set */
        sim->wall += step_ns;
        sim->wall_ahead += step_ns > 0 ? step_ns : 0;
    }
}

static void power_loss(struct sim *sim)
{
    sim_trace(sim, "POWER LOSS");
    if (sim->broker)
        sim_broker_die(sim, true);
    if (sim->sink)
        sim_sink_die(sim);
    sim_fs_crash(sim->fs);
}

static void cut_connection(struct sim *sim)
{
    struct sim_client *client = &sim->clients[sim_below(sim, sim->config.client_count)];
    if (client->conn && client->online && sim_chance(sim, 1, 3))
        sim_conn_abandon(client);
    else if (client->conn)
        sim_conn_reset(sim, client->conn);
}

/* A thread that does not get the processor: one ring stands still. */
static void starve(struct sim *sim)
{
    if (sim->starved != SIM_RINGS && (sim->calm || sim->step > sim->starved_end))
        sim->starved = SIM_RINGS;
    if (sim->starved != SIM_RINGS || sim->calm || !sim_chance(sim, 1, sim->config.starve_one_in))
        return;
    bool any = !sim->config.starves_route && sim_chance(sim, 1, 2);
    sim->starved = any ? (unsigned)sim_below(sim, SIM_RINGS) : sim_broker_ring_from_shard(sim);
    sim->starved_end = sim->step + sim_below(sim, 400);
}

/* Power often goes soon behind a fault: what was believed meanwhile and is not there shows then. */
static void disk_fault(struct sim *sim)
{
    if (!sim->config.disk_faults)
        return;
    if (sim->config.power_faults && sim_chance(sim, 1, 2))
        sim->power_loss_step = sim->step + 1 + sim_below(sim, 400);
    uint64_t kind = sim_below(sim, 5);
    if (kind == 0)
        sim_fs_fail(sim->fs, SIM_FS_WRITE | SIM_FS_SYNC, 1 + sim_below(sim, 10), ERR_IO, false);
    else if (kind == 1)
        sim_fs_fail(sim->fs, SIM_FS_SYNC, 1 + sim_below(sim, 3), ERR_IO, false);
    else if (kind == 2)
        sim_fs_set_free(sim->fs, sim_below(sim, 100000));
    else
        sim_fs_set_free(sim->fs, UINT64_MAX);
}

static void inject_fault(struct sim *sim)
{
    uint64_t kind = sim_below(sim, 100);
    if (kind < 45)
        cut_connection(sim);
    else if (kind < 50 && sim->broker)
        sim_conn_open_garbage(sim);
    else if (kind < 62 && sim->broker)
        sim_trace(sim, "KILL broker"), sim_broker_die(sim, false);
    else if (kind < 80 && sim->sink)
        sim_trace(sim, "KILL sink"), sim_sink_die(sim);
    else if (kind < 86 && sim->config.power_faults)
        power_loss(sim);
    else if (kind < 92)
        sim_store_fault(sim);
    else
        disk_fault(sim);
}

static void keep_alive(struct sim *sim)
{
    if (sim->broker && sim_broker_failed(sim)) {
        sim_trace(sim, "the broker ends: its log or store failed");
        sim_broker_die(sim, false);
    }
    if (sim->sink && sim_sink_failed(sim)) {
        sim_trace(sim, "the sink ends: it failed");
        sim_sink_die(sim);
    }
    if (!sim->broker && (sim->calm || sim_chance(sim, 1, 30)))
        sim_broker_start(sim);
    if (!sim->sink && sim->config.persistence && !sim->is_dry && (sim->calm || sim_chance(sim, 1, sim->config.sink_rest)))
        sim_sink_start(sim);
}

static void step_clients(struct sim *sim)
{
    struct sim_client *client = &sim->clients[sim_below(sim, sim->config.client_count)];
    if (client->conn && client->conn->down.size && sim_chance(sim, 3, 4)) {
        sim_client_read(sim, client);
        return;
    }
    /* The broker has closed and all it sent is read. */
    if (client->conn && !client->conn->broker_open && client->conn->down.size == 0) {
        client->conn->client = NULL;
        client->conn = NULL;
        sim_client_lost(sim, client);
        sim_conn_reap(sim);
        return;
    }
    if (!sim->calm || !sim_client_is_done(sim, client) || sim_chance(sim, 1, 20))
        sim_client_act(sim, client);
}

static void step(struct sim *sim)
{
    sim->step++;
    pass_time(sim);
    keep_alive(sim);
    sim_clients_note_online(sim);
    starve(sim);
    if (!sim->calm && sim_chance(sim, 1, sim->config.fault_one_in))
        inject_fault(sim);
    if (!sim->calm && sim->config.cut_one_in && sim_chance(sim, 1, sim->config.cut_one_in))
        cut_connection(sim);
    if (!sim->calm && sim->step == sim->power_loss_step)
        power_loss(sim);
    if (!sim->calm && sim->step == sim->kill_step && sim->broker)
        sim_trace(sim, "KILL broker, after a promise"), sim_broker_die(sim, false);
    if (sim_chance(sim, 1, 8))
        sim_conn_reset_ghosts(sim, sim->calm);
    uint64_t who = sim_below(sim, 10);
    if (who < 3)
        step_clients(sim);
    else if (who < 8 && sim->broker)
        sim_broker_step(sim);
    else if (sim->sink)
        sim_sink_step(sim);
}

/* What waits for a client that is gone stays. */
static bool sim_has_gone(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        if (sim->clients[i].is_gone)
            return true;
    return false;
}

static void end_faults(struct sim *sim)
{
    sim->calm = true;
    sim->calm_mono = sim->mono;
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        conn->room = 1 << 20;
    sim_fs_set_free(sim->fs, UINT64_MAX);
    sim_fs_fail(sim->fs, SIM_FS_ANY, 0, ERR_OK, false);
    sim_kv_set_capacity(sim->kv, 0);
    for (int call = 0; call < SIM_KV_CALL_COUNT; call++)
        sim_kv_fail(sim->kv, (enum sim_kv_call)call, ERR_OK, 0);
}

/* The log is full, and the sink is away: nobody can publish, and everything else goes on (LOG 7). */
static void check_drought(struct sim *sim)
{
    if (!sim->broker || sim_broker_failed(sim) || !sim_broker_is_log_full(sim))
        return;
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        const struct sim_client *client = &sim->clients[i];
        if (!client->online || (client->flow_count == 0 && !sim_client_is_subscribed(client)))
            sim_broker_describe(sim), sim_found(sim, "%s waits for its %s, and the log is full for publishers alone", client->id,
                                                client->online ? "SUBACK" : "CONNACK");
    }
    sim_trace(sim, "the log is full, and everybody is connected");
}

/* All connect anew, perhaps to another life, while publishers wait. */
static void end_drought(struct sim *sim)
{
    end_faults(sim);
    if (sim->broker && sim_chance(sim, 1, 2))
        sim_broker_die(sim, false);
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        if (sim->clients[i].conn)
            sim_conn_reset(sim, sim->clients[i].conn);
    uint64_t progress = sim->progress;
    for (uint64_t idle = 0, end = sim->step + REST_STEPS_MAX; idle < REST_IDLE_STEPS && sim->step < end; progress = sim->progress) {
        step(sim);
        idle = sim->progress == progress ? idle + 1 : 0;
    }
    check_drought(sim);
    sim->is_dry = false;
}

static bool sink_is_quiet(struct sim *sim) { return !sim->config.persistence || sim_sink_is_quiet(sim); }

static bool is_at_rest(struct sim *sim)
{
    if (!sim->broker || (!sim->sink && sim->config.persistence) || !sim_broker_is_quiet(sim))
        return false;
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        if (!sim_client_is_done(sim, &sim->clients[i]))
            return false;
    if (sim->mono - sim->calm_mono <= REST_NS)
        return false;
    /* Who never comes back leaves a queue, and where that is full a scan. */
    return sim_has_gone(sim) ? sim->config.is_bounded || sim_broker_has_scanned(sim)
                             : sim_broker_is_drained(sim) && sim_broker_has_scanned(sim);
}

__attribute__((noreturn)) static void found_restless(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        const struct sim_client *client = &sim->clients[i];
        printf("%s: online %d, flows %zu, subscribed %d, connection %d%s\n", client->id, client->online, client->flow_count,
               sim_client_is_subscribed(client), client->conn != NULL, client->is_gone ? ", gone" : "");
    }
    if (sim->broker)
        sim_broker_describe(sim);
    sim_found(sim, "it does not come to rest: broker %s, sink %s", sim->broker ? sim_broker_is_quiet(sim) ? "quiet" : "busy" : "down",
              sim->sink ? sim_sink_is_quiet(sim) ? "quiet" : "busy" : "down");
}

static void rest(struct sim *sim)
{
    uint64_t progress = sim->progress, idle = 0, end = sim->step + REST_STEPS_MAX;
    while (idle < REST_IDLE_STEPS || !is_at_rest(sim) || !sink_is_quiet(sim)) {
        step(sim);
        idle = sim->progress == progress ? idle + 1 : 0;
        sim->hurries = idle > REST_HURRY_STEPS && sim->mono - sim->calm_mono <= REST_NS;
        progress = sim->progress;
        if (sim->step > end)
            found_restless(sim);
    }
    sim->hurries = false;
}

/* Best one whose will has to be said. */
static void let_one_go(struct sim *sim)
{
    struct sim_client *client = NULL;
    for (int tries = 0; tries < 4 && !(client && client->online && client->will && !client->closing); tries++)
        client = &sim->clients[1 + sim_below(sim, sim->config.client_count - 1 - sim->config.has_steady)];
    sim_client_go(sim, client);
}

/* No more faults: everybody comes back but one, perhaps, and everything promised is done, until nothing moves any more. */
static void come_to_rest(struct sim *sim)
{
    if (sim->is_dry)
        end_drought(sim);
    end_faults(sim);
    /* Where publishers are refused for one whose queue is full, he has to come back. */
    if (sim->config.client_count > 2 && sim->config.queue_policy != QUEUE_REFUSE && sim_chance(sim, 1, 2))
        let_one_go(sim);
    if (sim->broker && sim_chance(sim, sim_has_gone(sim) ? 2 : 1, 3))
        sim_broker_die(sim, false);
    if (sim->sink && sim_chance(sim, 1, 2))
        sim_sink_die(sim);
    rest(sim);
    if (sim_broker_has_leftovers(sim)) {
        sim_broker_die(sim, false);
        rest(sim);
    }
    sim_ledger_check_wills(sim);
    sim_ledger_check_owed(sim);
}

static void subscribe_all(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        if (sim->clients[i].subscribes && !sim->clients[i].is_gone)
            sim_client_subscribe_again(sim, &sim->clients[i]);
    rest(sim);
}

/* Everybody subscribes once more, in this life, perhaps in another one, too, and is told what is retained: the same each time. */
static void audit(struct sim *sim)
{
    uint64_t lives = sim_below(sim, 3);
    if (lives < 2)
        subscribe_all(sim);
    if (lives == 0)
        return;
    sim_broker_die(sim, false);
    rest(sim);
    subscribe_all(sim);
}

static struct sim sim_memory;

/* A CHECK of the product, or a seed that does not end: a finding like any other. */
static void on_signal(int number)
{
    char text[160];
    int size = snprintf(text, sizeof text, "FOUND with seed %" PRIu64 " at step %" PRIu64 ": signal %d\n", sim_memory.seed, sim_memory.step,
                        number);
    if (size > 0 && write(STDOUT_FILENO, text, (size_t)size) < 0)
        _exit(2);
    _exit(1);
}

static void run(uint64_t seed, uint32_t steps, int purpose, bool trace, uint32_t *messages_out)
{
    struct sim *sim = &sim_memory;
    memset(sim, 0, sizeof *sim);
    sim->seed = seed;
    sim->purpose = purpose;
    sim->trace = trace;
    sim->starved = SIM_RINGS;
    sim->mono = NS_PER_S;
    sim->wall = WALL_START;
    check_random_init(&sim->random, seed);
    draw_config(sim, steps);
    sim->ledger.logged = calloc(SIM_MESSAGES_MAX, 1);
    CHECK(sim->ledger.logged);
    sim_trace(sim, "persistence %d, bounded %d (policy %u, %u messages, %u in flight), memory tier %d, QoS 0 waits %d, %u clients",
              sim->config.persistence, sim->config.is_bounded, sim->config.queue_policy, sim->config.queue_messages_max,
              sim->config.inflight_max, sim->config.has_memory_tier, sim->config.queue_qos0, sim->config.client_count);
    sim->fs = sim_fs_new(seed, sim->config.alignment);
    CHECK(sim->fs);
    sim->kv = sim_kv_new(seed);
    CHECK(sim->kv);
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        sim_client_init(sim, (uint8_t)i);
    sim_broker_start(sim);
    if (sim->config.persistence)
        sim_sink_start(sim);
    while (sim->step < sim->config.steps) {
        if (sim->config.has_drought && !sim->is_dry && sim->step > sim->config.steps / 4) {
            sim->is_dry = true;
            if (sim->sink)
                sim_sink_die(sim);
        }
        step(sim);
    }
    come_to_rest(sim);
    if (!sim_has_gone(sim))
        sim_broker_check_store(sim);
    audit(sim);
    sim_ledger_check_end(sim);
    sim_broker_check_books(sim);
    sim_broker_check_totals(sim);
    if (!sim_has_gone(sim))
        sim_broker_check_store(sim);
    *messages_out += sim->ledger.count;

    sim_broker_die(sim, false);
    if (sim->sink)
        sim_sink_die(sim);
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        sim_client_deinit(&sim->clients[i]);
    sim_conn_reap(sim);
    sim_fs_free(sim->fs);
    sim_kv_free(sim->kv);
    free(sim->ledger.logged);
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seed", 1, 0, 's'},
        {"seeds", 1, 0, 'n'},
        {"first", 1, 0, 'f'},
        {"steps", 1, 0, 't'},
        {"purpose", 1, 0, 'p'},
        {"trace", 0, 0, 'v'},
        {0},
    };
    uint64_t first = 1, count = 100;
    uint32_t steps = STEPS_DEFAULT, messages = 0;
    bool trace = false;
    int c, purpose = -1;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 's')
            first = strtoull(optarg, NULL, 10), count = 1;
        else if (c == 'n')
            count = strtoull(optarg, NULL, 10);
        else if (c == 'f')
            first = strtoull(optarg, NULL, 10);
        else if (c == 't')
            steps = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'p')
            purpose = atoi(optarg);
        else if (c == 'v')
            trace = true;
        else
            return 2;
    }
    signal(SIGABRT, on_signal);
    signal(SIGPROF, on_signal);
    logger_set_threshold(trace ? LOGGER_INFO : LOGGER_OFF);
    for (uint64_t i = 0; i < count; i++) {
        if (isatty(STDOUT_FILENO) && i % 10 == 0)
            printf("\rseed %" PRIu64 " of %" PRIu64 " ", i + 1, count), fflush(stdout);
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value = {.tv_sec = SEED_SECONDS_MAX}}, NULL);
        run(first + i, steps, purpose, trace, &messages);
    }
    printf("%s%" PRIu64 " seeds (%" PRIu64 "..%" PRIu64 "), %u messages, nothing found\n%" PRIu64 " passed, 0 failed\n",
           isatty(STDOUT_FILENO) ? "\r" : "", count, first, first + count - 1, messages, count);
    return 0;
}
