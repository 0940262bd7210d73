#include "broker/ops/recovery.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/actor/msg.h"
#include "broker/core/request.h"
#include "broker/core/shard.h"
#include "broker/core/shard_restore.h"
#include "broker/durable/data_format.h"
#include "broker/durable/store_writer.h"
#include "broker/route/route_actor.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/crash_point.h"
#include "common/log_segment.h"
#include "common/logger.h"
#include "common/proc.h"

#define RECOVERY_ROOM ((uint64_t)256 << 20) /* bytes; with less free the log keeps no segments for reuse through a start */

/* --- open ---------------------------------------------------------------------------------------------------------------------------- */

enum err recovery_match(const struct checkpoint_state *state, uint64_t log_broker_id, struct fs *fs, const char *data_dir,
                        const char *log_dir, struct errmsg *msg)
{
    struct log_segment_header header;
    struct file *file = NULL;
    uint64_t generation = state->cursor.place.generation;
    if (state->broker_id == 0 || state->broker_id == log_broker_id)
        return ERR_OK;
    enum err err = log_segment_open(&file, &header, fs, log_dir, generation);
    bool is_match = !err && header.broker_id == state->broker_id;
    if (!err)
        file_close(file);
    else if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
        is_match = log_segment_find_next(&header, fs, log_dir, generation) == ERR_OK && header.is_repair;
    else
        return err_set(msg, err, "%s/%016" PRIx64 ".seg: %s", log_dir, generation, err_text(err));
    if (is_match)
        return ERR_OK;
    return err_set(msg, ERR_CORRUPT,
                   "%s: checkpoint of broker %016" PRIx64 " beside a log of broker %016" PRIx64
                   ": they do not belong together; restore both from one backup",
                   data_dir, state->broker_id, log_broker_id);
}

static enum err recovery_match_log(const struct durable *durable, const struct recovery_options *options, struct errmsg *msg)
{
    struct checkpoint_state state = checkpoint_state(durable->checkpoint);
    return recovery_match(&state, log_writer_broker_id(durable->writer), options->fs, options->data_dir, options->log.dir, msg);
}

static enum err recovery_open_checkpoint(struct durable *durable, const struct recovery_options *options, uint32_t version,
                                         struct errmsg *msg)
{
    enum err err = options->open_kv(options->open_kv_arg, &durable->kv, msg);
    if (!err)
        err = checkpoint_open(&durable->checkpoint, durable->kv, options->random, msg);
    if (!err)
        checkpoint_set_age_max(durable->checkpoint, options->queue_age_max_ns);
    if (!err && version >= DATA_FORMAT_CHECKPOINT && checkpoint_state(durable->checkpoint).broker_id == 0)
        err = err_set(msg, ERR_CORRUPT,
                      "%s/checkpoint: missing or empty, and there was one (format %" PRIu32
                      "); see `tidegate-broker repair`: sessions, queues and retained values older than the log are gone",
                      options->data_dir, version);
    return err;
}

/* A log of the first format knows nothing of sessions, and may begin anywhere: the checkpoint begins where it does. */
static enum err recovery_begin_at_oldest(struct durable *durable, struct errmsg *msg)
{
    const struct log_recovery *log = &durable->log;
    struct log_cursor_value cursor = {.broker_id = log_writer_broker_id(durable->writer),
                                      .position = log->oldest,
                                      .place = log->oldest_place,
                                      .reopen = log->oldest_place};
    if (log->oldest_place.generation == 0 || log->oldest.sequence <= 1)
        return ERR_OK;
    return checkpoint_commit(durable->checkpoint, &cursor, msg);
}

/* A disk that is nearly full gets back what the log keeps for later, before the checkpoint grows. */
static enum err recovery_make_room(struct durable *durable, const struct recovery_options *options, struct errmsg *msg)
{
    uint64_t free_bytes;
    bool is_more;
    if (fs_free_bytes(options->fs, &free_bytes, options->data_dir) != ERR_OK || free_bytes >= RECOVERY_ROOM)
        return ERR_OK;
    return log_writer_release(durable->writer, &is_more, msg);
}

static enum err recovery_replay(struct durable *durable, const struct recovery_options *options, uint32_t version, struct errmsg *msg)
{
    enum err err = recovery_make_room(durable, options, msg);
    if (!err && version == DATA_FORMAT_LOG_ONLY && checkpoint_state(durable->checkpoint).broker_id == 0)
        err = recovery_begin_at_oldest(durable, msg);
    if (err)
        return err;
    return store_writer_replay(durable->checkpoint, options->fs, options->log.dir, options->delta_bytes_max, msg);
}

/* What is damaged is an operator's business; say where it is done, unless whoever found it has. */
static void recovery_point_to_repair(enum err err, struct errmsg *msg)
{
    struct errmsg why = *msg;
    if ((err == ERR_CORRUPT || err == ERR_GAP) && !strstr(why.text, "restore both") && !strstr(why.text, "tidegate-broker repair"))
        err_set(msg, err, "%s; see `tidegate-broker repair`", why.text);
}

/* A start needs some space: for a segment of the log, and for what the checkpoint lacks. */
static void recovery_ask_for_room(enum err err, const struct recovery_options *options, struct errmsg *msg)
{
    struct errmsg why = *msg;
    uint64_t free_bytes = 0;
    if (err != ERR_NOSPACE || fs_free_bytes(options->fs, &free_bytes, options->data_dir) != ERR_OK)
        return;
    err_set(msg, err, "%s; %" PRIu64 " bytes are free there: make room and start again, nothing is lost", why.text, free_bytes);
}

enum err recovery_open(struct durable *durable_out, struct recovery_options *options, struct errmsg *msg)
{
    struct durable durable = {0};
    uint32_t version;
    enum err err = data_format_read(&version, options->fs, options->data_dir, msg);
    if (!err)
        err = recovery_open_checkpoint(&durable, options, version, msg);
    if (!err) {
        struct log_cursor_value cursor = checkpoint_state(durable.checkpoint).cursor;
        options->log.checkpoint = cursor.reopen;
        options->log.checkpoint_end = cursor.place;
        err = log_writer_open(&durable.writer, &options->log, &durable.log, msg);
    }
    if (!err)
        err = recovery_match_log(&durable, options, msg);
    if (!err)
        err = recovery_replay(&durable, options, version, msg);
    if (!err) {
        CRASH_POINT("recovery_replayed");
        log_writer_set_checkpoint(durable.writer, checkpoint_state(durable.checkpoint).cursor.reopen);
        if (version < DATA_FORMAT_CHECKPOINT)
            err = data_format_write(options->fs, options->data_dir, DATA_FORMAT_CHECKPOINT, msg);
    }
    if (err) {
        recovery_point_to_repair(err, msg);
        recovery_ask_for_room(err, options, msg);
        recovery_close(&durable);
        return err;
    }
    *durable_out = durable;
    return ERR_OK;
}

int64_t recovery_steady_ns(const struct checkpoint_state *state, int64_t now_wall_ns)
{
    if (state->wall_ns == 0)
        return now_wall_ns;
    int64_t passed_ns = now_wall_ns - state->wall_ns;
    return state->steady_ns + (passed_ns > 0 ? passed_ns : 0);
}

void recovery_close(struct durable *durable)
{
    checkpoint_free(durable->checkpoint);
    log_writer_close(durable->writer);
    kv_close(durable->kv);
    *durable = (struct durable){0};
}

/* --- load ---------------------------------------------------------------------------------------------------------------------------- */

#define LOAD_FOUND 64

/* Where sessions went: numbers come ascending, so finding one again is a search in a sorted array. */
struct load {
    const struct recovery_target *target;
    struct recovery_loaded *loaded;
    uint64_t *numbers;
    uint64_t *run_lasts; /* the newest position that stands in a run of the session; 0 = none */
    uint8_t *homes;      /* and WAS_CONNECTED */
    size_t count, capacity;
    struct {
        uint64_t number;
        size_t index;
    } found[LOAD_FOUND]; /* lately, at number % LOAD_FOUND; there is no session 0 */
};

#define NOT_LOADED SIZE_MAX
#define WAS_CONNECTED 0x80u
#define SESSION_BYTES_MIN 32 /* in the database's file: less than the key and the record of one take */
_Static_assert(ACTOR_SHARDS_MAX <= WAS_CONNECTED, "a home and a bit in a byte");

static bool load_grow(struct load *load)
{
    size_t capacity = load->capacity ? load->capacity * 2 : 1024;
    uint64_t *numbers = realloc(load->numbers, capacity * sizeof *numbers);
    load->numbers = numbers ? numbers : load->numbers;
    uint64_t *run_lasts = realloc(load->run_lasts, capacity * sizeof *run_lasts);
    load->run_lasts = run_lasts ? run_lasts : load->run_lasts;
    uint8_t *homes = realloc(load->homes, capacity);
    load->homes = homes ? homes : load->homes;
    if (!numbers || !run_lasts || !homes)
        return false;
    load->capacity = capacity;
    return true;
}

static enum err load_remember(struct load *load, uint64_t number, actor_id home, bool was_connected)
{
    if (load->count == load->capacity && !load_grow(load))
        return ERR_NOMEM;
    if (load->count > 0 && load->numbers[load->count - 1] >= number)
        return ERR_CORRUPT;
    load->numbers[load->count] = number;
    load->run_lasts[load->count] = 0;
    load->homes[load->count++] = (uint8_t)(home | (was_connected ? WAS_CONNECTED : 0));
    return ERR_OK;
}

static size_t load_find(struct load *load, uint64_t number)
{
    size_t low = 0, high = load->count, at = number % LOAD_FOUND;
    if (number != 0 && load->found[at].number == number)
        return load->found[at].index;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (load->numbers[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == load->count || load->numbers[low] != number)
        return NOT_LOADED;
    load->found[at].number = number;
    load->found[at].index = low;
    return low;
}

static enum err load_subscriptions(struct load *load, const struct checkpoint_session *session, actor_id home)
{
    struct span rest = session->subscriptions, bytes;
    while (record_next(&bytes, &rest) == ERR_OK) {
        struct record rec;
        if (record_decode(&rec, bytes) != ERR_OK)
            continue;
        struct subscriber subscriber = request_subscriber(session->number, home, rec.options);
        enum err err = topic_tree_add(load->target->tree, NULL, rec.topic, &subscriber);
        if (err == ERR_NOMEM)
            return err;
        load->loaded->subscriptions += err == ERR_OK;
    }
    return ERR_OK;
}

static enum err load_session(void *arg, const struct checkpoint_session *session)
{
    struct load *load = arg;
    const struct recovery_target *target = load->target;
    actor_id home = shard_home(target->hash_key, target->shard_count, session->client_id);
    enum err err = shard_restore_session(target->shards[home], session);
    if (err == ERR_CORRUPT) {
        load->loaded->corrupt++;
        LOG_ERROR("a session of the checkpoint is damaged and left out", LOG_U64("session", session->number));
        return ERR_OK;
    }
    if (!err)
        err = load_remember(load, session->number, home, session->was_connected);
    if (!err)
        err = load_subscriptions(load, session, home);
    if (!err)
        shard_restore_filters_done(target->shards[home], session->number);
    load->loaded->sessions += err == ERR_OK;
    return err;
}

static enum err load_runs(void *arg, uint64_t number, uint64_t last_sequence)
{
    struct load *load = arg;
    size_t index = load_find(load, number);
    if (index != NOT_LOADED)
        load->run_lasts[index] = last_sequence;
    return ERR_OK;
}

static enum err load_want(void *arg, uint64_t number, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct load *load = arg;
    size_t index = load_find(load, number);
    if (index == NOT_LOADED)
        return ERR_NOTFOUND;
    struct shard *shard = load->target->shards[load->homes[index] & ~WAS_CONNECTED];
    /* Perhaps sent, and that it was is not durable; at QoS 0 nothing is sent twice [MQTT-4.3.1-1]. One that was away has not got it. */
    if (want->qos == 0 && (load->homes[index] & WAS_CONNECTED)) {
        shard_restore_unwanted(shard, number, sequence);
        return ERR_NOTFOUND;
    }
    enum err err = shard_restore_want(shard, number, sequence, want->qos, cost, is_in_run, load->run_lasts[index]);
    load->loaded->messages += err == ERR_OK;
    if (!err && (want->options & RECORD_RECIPIENT_RETAINED))
        shard_restore_copy(shard, number);
    return err;
}

static void load_want_soon(void *arg, uint64_t number, int step)
{
    struct load *load = arg;
    size_t index = load_find(load, number);
    if (index != NOT_LOADED)
        shard_restore_want_soon(load->target->shards[load->homes[index] & ~WAS_CONNECTED], number, step);
}

static enum err load_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry_wall_ns)
{
    struct load *load = arg;
    int64_t expiry = expiry_wall_ns == 0 ? MSG_NO_EXPIRY : expiry_wall_ns;
    if (expiry <= load->target->now_steady_ns)
        return ERR_NOTFOUND;
    enum err err = route_actor_restore_retained(load->target->route, topic, number, sequence, cost, expiry);
    load->loaded->retained += err == ERR_OK;
    return err == ERR_INVALID ? ERR_OK : err;
}

static void load_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    struct load *load = arg;
    char text[KV_KEY_TEXT_SIZE];
    kv_key_text(text, key);
    load->loaded->corrupt++;
    LOG_ERROR("a value of the checkpoint is damaged and left out", LOG_TEXT("tree", kv_tree_name(tree)), LOG_TEXT("key", text));
}

/* How many sessions each shard may expect. The count is the database's own, and it may be damaged: no more than its file has room for. */
static uint32_t expected_sessions(const struct durable *durable, uint16_t shard_count)
{
    struct kv_stats stats;
    if (kv_get_stats(durable->kv, &stats) != ERR_OK)
        return 0;
    uint64_t room = stats.file_bytes / SESSION_BYTES_MIN, count = stats.entries[KV_SESSIONS];
    count = (count < room ? count : room) / shard_count;
    return count < UINT32_MAX / 2 ? (uint32_t)count : UINT32_MAX / 2;
}

enum err recovery_load(struct recovery_loaded *loaded_out, struct durable *durable, const struct recovery_target *target,
                       struct errmsg *msg)
{
    CHECK(target->shard_count <= ACTOR_SHARDS_MAX);
    *loaded_out = (struct recovery_loaded){.retained_number_max = checkpoint_state(durable->checkpoint).retained_number_max};
    struct load load = {.target = target, .loaded = loaded_out};
    struct checkpoint_loader loader = {
        .on_session = load_session,
        .on_runs = load_runs,
        .on_want = load_want,
        .on_retained = load_retained,
        .on_corrupt = load_corrupt,
        .arg = &load,
        .on_want_soon = load_want_soon,
    };
    /* A little apart: what shards say in this turn, wills that are due, must not have one receive time, which names a row of the sink. */
    for (uint16_t i = 0; i < target->shard_count; i++)
        shard_turn_begin(target->shards[i], target->now_mono_ns, target->now_wall_ns + i * NS_PER_MS);
    uint32_t expected = expected_sessions(durable, target->shard_count);
    for (uint16_t i = 0; i < target->shard_count; i++)
        shard_restore_expect(target->shards[i], expected);
    enum err err = checkpoint_load(durable->checkpoint, &loader, msg);
    for (uint16_t i = 0; i < target->shard_count; i++)
        shard_turn_end(target->shards[i]);
    /* What the tree replaced while it grew: the turns were its readers. Two rounds of them must have passed. */
    for (int i = 0; i < 8 && topic_tree_poll(target->tree); i++) {
    }
    free(load.numbers);
    free(load.run_lasts);
    free(load.homes);
    recovery_point_to_repair(err, msg);
    proc_trim_memory();
    return err;
}
