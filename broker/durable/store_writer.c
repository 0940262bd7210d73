/* The store writer: a log reader in front, a checkpoint behind, and between them the question when to commit.
 *
 * The lag in time is measured by marks: the durable end as seen at some time, which counts as covered by the first commit behind it. So a
 * log that never stands still has a lag, too. */
#include "broker/durable/store_writer.h"

#include <inttypes.h>
#include <stdlib.h>

#include "broker/actor/op_backlog.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/crash_point.h"
#include "common/log_reader.h"

#define REPLAY_TRIES_MAX 64                   /* commits of replay that find no space while removals go ahead */
#define STORE_STEP_BYTES ((uint64_t)4 << 20)  /* of log that one step reads, so that ops do not wait longer */
#define STORE_TICK_NS (250 * NS_PER_MS)       /* how often the log is looked at */
#define STORE_RETRY_NS NS_PER_S               /* no space: try again; */
#define STORE_RETRY_SHARE 4                   /* at most a fifth of the time goes into it */
#define STORE_BACKLOG_NS NS_PER_MS            /* a ring was full: try again */
#define STORE_TRIM_NS (10 * NS_PER_S)         /* nothing to commit for so long: the memory that commits needed goes */
#define STORE_CLOCK_STEP_NS (250 * NS_PER_MS) /* the wall clock was set, or has drifted so far since the last commit */

/* What a shard announced by OP_STORE_PASSED. A later one waits behind the one that is waited for, and replaces who waits there: otherwise
 * a busy shard would never be seen to have passed anything. */
struct shard_passed {
    uint64_t number, block;           /* waited for; block UINT64_MAX: nothing */
    uint64_t next_number, next_block; /* likewise */
    uint64_t done_number;             /* all below are applied */
};

struct store_writer {
    struct checkpoint *checkpoint;
    struct log_reader *reader;
    struct store_writer_options options;
    struct store_writer_io io;
    void *io_arg;
    struct op_backlog backlog;
    struct store_writer_stats stats;

    struct log_cursor_value committed;
    uint64_t aged;   /* as shards were told */
    bool is_dirty;   /* there is more to commit than a position */
    bool is_at_end;  /* nothing durable is left to read, as of the last look */
    bool is_started; /* the first step was made */
    bool is_trimmed; /* since the last commit */
    bool has_room;
    int64_t next_read_ns, next_commit_ns, retry_ns;
    int64_t clock_lead_ns; /* wall clock less the broker's own time, as committed last */

    uint64_t mark_sequence; /* durable end when it was mark_ns */
    int64_t mark_ns;
    int64_t reached_ns; /* everything durable then is applied */
    int64_t covered_ns; /* and committed */

    struct shard_passed passed[ACTOR_SHARDS_MAX];
    uint64_t forgotten_number;

    uint64_t runs[ACTOR_SHARDS_MAX];           /* that came from each shard */
    uint64_t runs_committed[ACTOR_SHARDS_MAX]; /* of them */

    enum err failed;
    struct errmsg failed_msg;
};

static bool post(void *arg, actor_id to, const struct op *op)
{
    struct store_writer *writer = arg;
    return writer->io.post(writer->io_arg, to, op);
}

static void post_to_shards(struct store_writer *writer, const struct op *op)
{
    for (actor_id shard = 0; shard < writer->options.shard_count; shard++)
        op_backlog_post(&writer->backlog, post, writer, shard, op);
}

static enum err fail(struct store_writer *writer, enum err err)
{
    writer->failed = err;
    gauge_set(&writer->stats.failed, err);
    return err;
}

enum applied {
    APPLIED,
    APPLIED_NOTHING, /* a record of others beside one that is state */
    APPLIED_REFUSED, /* none that a broker writes; its checksum holds, so it was written so */
};

/* One record into the delta. */
static enum err apply_item(struct checkpoint *checkpoint, const struct log_reader_item *item, enum applied *applied_out, struct errmsg *msg)
{
    struct record rec;
    *applied_out = APPLIED;
    enum err err = record_decode(&rec, item->bytes);
    if (err == ERR_OK && !record_is_state(&rec)) {
        *applied_out = APPLIED_NOTHING;
        return ERR_OK;
    }
    if (err == ERR_OK)
        err = checkpoint_apply_encoded(checkpoint, &rec, item->bytes, item->position.sequence);
    if (err == ERR_CORRUPT) {
        *applied_out = APPLIED_REFUSED;
        return ERR_OK;
    }
    return err ? err_set(msg, err, "record %" PRIu64 " of epoch %u, type %u: %s", item->position.sequence, item->position.epoch,
                         item->bytes.size > 4 ? item->bytes.data[4] : 0u, err_text(err))
               : err;
}

/* ---- replay ---- */

static enum err replay_commit(struct checkpoint *checkpoint, const struct log_reader *reader, struct errmsg *msg)
{
    struct log_cursor_value cursor;
    log_reader_cursor(reader, &cursor);
    CRASH_POINT("replay_applied");
    const struct counter *removal_commits = &checkpoint_get_stats(checkpoint)->removal_commits;
    uint64_t before = counter_get(removal_commits);
    enum err err = checkpoint_commit(checkpoint, &cursor, msg);
    /* Once more in any case: what sessions of this delta left has gone ahead, and is not counted. What looks like progress may be the same
     * removals found again, so there is an end to it. */
    for (int tries = 0; err == ERR_NOSPACE && tries < REPLAY_TRIES_MAX && (tries == 0 || counter_get(removal_commits) != before); tries++) {
        before = counter_get(removal_commits);
        err = checkpoint_commit(checkpoint, &cursor, msg);
    }
    if (err == ERR_OK)
        CRASH_POINT("replay_committed");
    return err;
}

/* Is the log the one that this checkpoint belongs to, as far as positions can tell? */
static enum err replay_check(const struct log_reader *reader, const struct checkpoint_state *before, const char *log_dir,
                             struct errmsg *msg)
{
    struct log_cursor_value cursor;
    log_reader_cursor(reader, &cursor);
    uint64_t end = log_reader_durable_end(reader).position.sequence;
    if (end == 0)
        return err_set(msg, ERR_CORRUPT, "%s: there is no durable end", log_dir);
    if (cursor.position.sequence != end)
        return err_set(msg, ERR_CORRUPT, "%s: the log ends at record %" PRIu64 ", the checkpoint stands at %" PRIu64, log_dir, end,
                       before->cursor.position.sequence);
    return ERR_OK;
}

/* A record that this program must not pass over: where it stands. */
static enum err replay_refuse(const struct log_reader *reader, const char *log_dir, struct errmsg *msg)
{
    struct errmsg why = *msg;
    struct log_cursor_value at;
    log_reader_cursor(reader, &at);
    return err_set(msg, ERR_VERSION, "%s/%016" PRIx64 ".seg: offset %" PRIu64 ": %s: use the program that wrote it", log_dir,
                   at.reopen.generation, at.reopen.offset, why.text);
}

static enum err replay_read(struct checkpoint *checkpoint, struct log_reader *reader, const char *log_dir, uint64_t delta_bytes_max,
                            struct errmsg *msg)
{
    struct checkpoint_state before = checkpoint_state(checkpoint);
    for (bool is_first = true;; is_first = false) {
        struct log_reader_item item;
        enum applied applied;
        enum err err = log_reader_next(reader, &item, msg);
        if (is_first && before.cursor.place.generation == 0 && log_reader_oldest(reader) > 1 &&
            (!err || err == ERR_AGAIN || err == ERR_GAP))
            return err_set(msg, ERR_GAP,
                           "%s: there is no checkpoint, and the log begins at record %" PRIu64 "; see `tidegate-broker repair`", log_dir,
                           log_reader_oldest(reader));
        if (err == ERR_GAP && log_reader_gap(reader).is_repair) { /* given up by `repair --yes`, which said so */
            log_reader_accept_gap(reader);
            continue;
        }
        if (err == ERR_AGAIN)
            break;
        if (!err && item.bytes.size)
            err = apply_item(checkpoint, &item, &applied, msg);
        if (err == ERR_VERSION)
            return replay_refuse(reader, log_dir, msg);
        if (!err && delta_bytes_max && checkpoint_delta_bytes(checkpoint) >= delta_bytes_max)
            err = replay_commit(checkpoint, reader, msg);
        if (err == ERR_NOSPACE) {
            delta_bytes_max = 0; /* what makes space may stand behind it */
            err = ERR_OK;
        }
        if (err)
            return err;
    }
    enum err err = replay_check(reader, &before, log_dir, msg);
    return err ? err : replay_commit(checkpoint, reader, msg);
}

enum err store_writer_replay(struct checkpoint *checkpoint, struct fs *fs, const char *log_dir, uint64_t delta_bytes_max,
                             struct errmsg *msg)
{
    struct log_reader *reader;
    struct checkpoint_state state = checkpoint_state(checkpoint);
    enum err err = log_reader_open(&reader, fs, log_dir, &state.cursor, msg);
    if (err)
        return err;
    log_reader_pass_over_stateless(reader);
    err = replay_read(checkpoint, reader, log_dir, delta_bytes_max, msg);
    log_reader_close(reader);
    return err;
}

/* ---- life ---- */

enum err store_writer_new(struct store_writer **writer_out, struct checkpoint *checkpoint, const struct store_writer_options *options,
                          const struct store_writer_io *io, void *io_arg)
{
    CHECK(options->shard_count <= ACTOR_SHARDS_MAX);
    CHECK(options->segment_bytes > 0);
    struct store_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return ERR_NOMEM;
    writer->checkpoint = checkpoint;
    writer->options = *options;
    writer->options.log_dir = NULL; /* the reader has its copy */
    writer->io = *io;
    writer->io_arg = io_arg;
    struct checkpoint_state state = checkpoint_state(checkpoint);
    writer->committed = state.cursor;
    writer->clock_lead_ns = state.wall_ns ? state.wall_ns - state.steady_ns : INT64_MAX / 2; /* not told: to be committed at once */
    enum err err = log_reader_open(&writer->reader, options->fs, options->log_dir, &writer->committed, NULL);
    if (err) {
        free(writer);
        return err;
    }
    log_reader_pass_over_stateless(writer->reader);
    op_backlog_init(&writer->backlog);
    histogram_init(&writer->stats.commit_ns);
    writer->has_room = true;
    gauge_set(&writer->stats.has_room, 1);
    for (size_t i = 0; i < ACTOR_SHARDS_MAX; i++)
        writer->passed[i] = (struct shard_passed){.block = UINT64_MAX, .next_block = UINT64_MAX};
    io->on_checkpoint(io_arg, writer->committed.reopen);
    *writer_out = writer;
    return ERR_OK;
}

static void drop_nothing(const struct op *op) { (void)op; /* what it posts owns nothing */ }

void store_writer_free(struct store_writer *writer)
{
    if (!writer)
        return;
    log_reader_close(writer->reader);
    op_backlog_deinit(&writer->backlog, drop_nothing);
    free(writer);
}

struct store_writer_stats *store_writer_get_stats(struct store_writer *writer) { return &writer->stats; }

/* ---- what shards say ---- */

static void on_passed(struct store_writer *writer, const struct op *op)
{
    CHECK(op->from < writer->options.shard_count);
    struct shard_passed *passed = &writer->passed[op->from];
    if (passed->block == UINT64_MAX) {
        passed->number = op->passed.number;
        passed->block = op->passed.block;
    } else {
        passed->next_number = op->passed.number;
        passed->next_block = op->passed.block;
    }
}

void store_writer_on_op(struct store_writer *writer, const struct op *op)
{
    enum err err = ERR_OK;
    if (op->type == OP_STORE_PASSED) {
        on_passed(writer, op);
        return;
    }
    if (op->type == OP_STORE_EXPIRED) {
        err = checkpoint_expire_retained(writer->checkpoint, span_of(op->expired->topic, op->expired->topic_size), op->expired->number);
        free(op->expired);
    } else if (op->type == OP_STORE_RUN) {
        CHECK(op->from < writer->options.shard_count);
        writer->runs[op->from]++;
        err = checkpoint_put_run(writer->checkpoint, op->run.session_number, op->run.run->sequences, op->run.run->count);
        free(op->run.run);
    } else if (op->type == OP_STORE_RUN_DROP) {
        err = checkpoint_drop_run(writer->checkpoint, op->run.session_number, op->run.first);
    } else {
        UNREACHABLE();
    }
    writer->is_dirty = true;
    if (err && !writer->failed)
        fail(writer, err_set(&writer->failed_msg, err, "what shards and route say of the checkpoint: %s", err_text(err)));
}

/* Which announcements are applied by now? What all shards have passed can be forgotten. */
static void look_at_passed(struct store_writer *writer)
{
    uint32_t epoch = log_reader_durable_end(writer->reader).position.epoch;
    uint64_t least = UINT64_MAX;
    for (uint16_t shard = 0; shard < writer->options.shard_count; shard++) {
        struct shard_passed *passed = &writer->passed[shard];
        uint64_t applied = log_reader_passed_blocks(writer->reader, shard, epoch);
        while (passed->block <= applied) {
            passed->done_number = passed->number;
            passed->number = passed->next_number;
            passed->block = passed->next_block;
            passed->next_block = UINT64_MAX;
        }
        if (passed->done_number < least)
            least = passed->done_number;
    }
    if (writer->options.shard_count == 0 || least <= writer->forgotten_number)
        return;
    writer->forgotten_number = least;
    checkpoint_forget_removals(writer->checkpoint, least);
    writer->is_dirty = true;
}

/* ---- a step ---- */

/* While there is no space, what would make some (acknowledgements, drops) may stand in the log behind what does not fit. So the limit is
 * wider then, by the log that may come before publishers pause. */
static bool is_delta_full(const struct store_writer *writer)
{
    uint64_t more = gauge_get(&writer->stats.no_space) ? writer->options.lag_bytes_max : 0;
    return checkpoint_delta_bytes(writer->checkpoint) >= writer->options.delta_bytes_max + more;
}

/* Apply what is durable, up to a step's share. */
static enum err read_log(struct store_writer *writer, int64_t now)
{
    struct log_reader_stats before, stats;
    log_reader_stats(writer->reader, &before);
    writer->is_at_end = false;
    do {
        struct log_reader_item item;
        enum applied applied = APPLIED_NOTHING;
        enum err err = log_reader_next(writer->reader, &item, &writer->failed_msg);
        if (err == ERR_AGAIN) {
            writer->is_at_end = true;
            break;
        }
        if (!err && item.bytes.size)
            err = apply_item(writer->checkpoint, &item, &applied, &writer->failed_msg);
        if (err)
            return fail(writer, err);
        writer->is_dirty = writer->is_dirty || applied == APPLIED;
        if (applied == APPLIED_REFUSED)
            counter_inc(&writer->stats.refused);
        log_reader_stats(writer->reader, &stats);
    } while (stats.byte_count - before.byte_count < STORE_STEP_BYTES && !is_delta_full(writer));
    struct log_cursor_value cursor;
    log_reader_cursor(writer->reader, &cursor);
    if (cursor.position.sequence >= writer->mark_sequence) {
        writer->reached_ns = writer->mark_ns;
        writer->mark_sequence = log_reader_durable_end(writer->reader).position.sequence;
        writer->mark_ns = now;
        if (cursor.position.sequence >= writer->mark_sequence)
            writer->reached_ns = now;
    }
    return ERR_OK;
}

static uint64_t lag_bytes(const struct store_writer *writer)
{
    struct log_place end = log_reader_durable_end(writer->reader).place, at = writer->committed.reopen;
    if (log_place_compare(end, at) <= 0)
        return 0;
    /* What one left unfilled at its end counts: a bound is what is wanted. */
    return (end.generation - at.generation) * writer->options.segment_bytes + end.offset - at.offset;
}

static int64_t clock_lead(const struct store_writer *writer, int64_t now)
{
    return writer->io.wall(writer->io_arg) - (now + writer->options.steady_offset_ns);
}

static int64_t clock_or(const struct store_writer *writer, int64_t now)
{
    return writer->io.clock ? writer->io.clock(writer->io_arg) : now;
}

/* A start takes the time away from the clocks of the last commit. If the wall clock was set since, it would take the step for time away.
 * Both clocks are read here: `now` is of before the log was read, which may have taken longer than a step is long. */
static bool is_clock_set(const struct store_writer *writer, int64_t now)
{
    int64_t moved = writer->io.wall ? clock_lead(writer, clock_or(writer, now)) - writer->clock_lead_ns : 0;
    return moved > STORE_CLOCK_STEP_NS || moved < -STORE_CLOCK_STEP_NS;
}

static bool is_commit_due(const struct store_writer *writer, int64_t now, bool flush)
{
    struct log_cursor_value cursor;
    log_reader_cursor(writer->reader, &cursor);
    bool frees_log =
        cursor.reopen.generation > writer->committed.reopen.generation ||
        (log_place_compare(cursor.reopen, writer->committed.reopen) > 0 && lag_bytes(writer) > writer->options.lag_bytes_max / 2);
    bool has_more = !flush && checkpoint_has_more(writer->checkpoint); /* the next start does what a shutdown leaves */
    bool is_set = is_clock_set(writer, now);
    if (!writer->is_dirty && !has_more && !frees_log && !is_set && !(flush && log_cursor_compare(&cursor, &writer->committed) != 0))
        return false;
    if (flush)
        return writer->is_at_end || is_delta_full(writer);
    if (gauge_get(&writer->stats.no_space))
        return now >= writer->retry_ns;
    return is_set || now >= writer->next_commit_ns || is_delta_full(writer);
}

static void tell_checkpoint(struct store_writer *writer)
{
    struct op op = {.type = OP_STORE_CHECKPOINT,
                    .from = ACTOR_STORE,
                    .checkpoint = {.sequence = writer->committed.position.sequence, .aged = writer->aged}};
    for (actor_id shard = 0; shard < writer->options.shard_count; shard++) {
        op.checkpoint.runs = writer->runs_committed[shard];
        op_backlog_post(&writer->backlog, post, writer, shard, &op);
    }
    op.checkpoint.runs = 0;
    op_backlog_post(&writer->backlog, post, writer, ACTOR_ROUTE, &op);
}

/* Messages grow old though nothing is committed. */
static void look_at_age(struct store_writer *writer, int64_t now)
{
    uint64_t aged = checkpoint_aged(writer->checkpoint, now + writer->options.steady_offset_ns);
    if (aged <= writer->aged)
        return;
    writer->aged = aged;
    tell_checkpoint(writer);
}

static void look_at_size(struct store_writer *writer)
{
    uint64_t max = writer->options.used_bytes_max;
    uint64_t used;
    if (max == 0 || checkpoint_used_bytes(writer->checkpoint, &used) != ERR_OK)
        return; /* not known this time: as before */
    bool is_full = gauge_get(&writer->stats.is_full);
    gauge_set(&writer->stats.is_full, used > max - (is_full ? max / 16 : 0));
}

static enum err commit(struct store_writer *writer, int64_t now)
{
    struct log_cursor_value cursor;
    log_reader_cursor(writer->reader, &cursor);
    int64_t started = clock_or(writer, now);
    int64_t lead = writer->io.wall ? clock_lead(writer, started) : 0;
    if (writer->io.wall)
        checkpoint_set_clocks(writer->checkpoint, started + writer->options.steady_offset_ns,
                              started + writer->options.steady_offset_ns + lead);
    CRASH_POINT("checkpoint_applied");
    enum err err = checkpoint_commit(writer->checkpoint, &cursor, &writer->failed_msg);
    int64_t ended = clock_or(writer, now);
    if (err == ERR_NOSPACE) {
        gauge_set(&writer->stats.no_space, 1);
        int64_t pause = STORE_RETRY_SHARE * (ended - started);
        writer->retry_ns = ended + (pause > STORE_RETRY_NS ? pause : STORE_RETRY_NS);
        return ERR_OK;
    }
    if (err)
        return fail(writer, err);
    CRASH_POINT("checkpoint_committed");
    if (writer->io.clock)
        histogram_record(&writer->stats.commit_ns, (uint64_t)(ended - started));
    gauge_set(&writer->stats.no_space, 0);
    writer->is_dirty = checkpoint_has_more(writer->checkpoint);
    writer->committed = cursor;
    writer->clock_lead_ns = lead;
    memcpy(writer->runs_committed, writer->runs, sizeof writer->runs);
    writer->covered_ns = writer->reached_ns;
    writer->next_commit_ns = started + writer->options.interval_ns;
    writer->is_trimmed = false;
    writer->io.on_checkpoint(writer->io_arg, cursor.reopen);
    CRASH_POINT("checkpoint_released");
    tell_checkpoint(writer);
    look_at_size(writer);
    return ERR_OK;
}

static void look_at_lag(struct store_writer *writer, int64_t now)
{
    if (!writer->is_dirty)
        writer->covered_ns = writer->reached_ns; /* what was passed since is no state */
    uint64_t bytes = lag_bytes(writer);
    int64_t ns = now > writer->covered_ns ? now - writer->covered_ns : 0;
    gauge_set(&writer->stats.lag_bytes, (int64_t)bytes);
    gauge_set(&writer->stats.lag_ns, ns);
    /* Room again at half of the limits, so that it does not flutter. */
    int part = writer->has_room ? 1 : 2;
    bool has_room = bytes <= writer->options.lag_bytes_max / (uint64_t)part && ns <= writer->options.lag_ns_max / part &&
                    !gauge_get(&writer->stats.is_full);
    if (has_room == writer->has_room)
        return;
    writer->has_room = has_room;
    gauge_set(&writer->stats.has_room, has_room);
    post_to_shards(writer, &(struct op){.type = OP_STORE_ROOM, .from = ACTOR_STORE, .flag = has_room});
}

static void look_at_memory(struct store_writer *writer, int64_t now)
{
    if (writer->is_trimmed || writer->is_dirty || now < writer->next_commit_ns + STORE_TRIM_NS)
        return;
    checkpoint_trim(writer->checkpoint);
    writer->is_trimmed = true;
}

static void start(struct store_writer *writer, int64_t now)
{
    writer->is_started = true;
    look_at_size(writer);
    writer->mark_ns = writer->reached_ns = writer->covered_ns = now;
    writer->next_read_ns = now;
    writer->next_commit_ns = now + writer->options.interval_ns;
    tell_checkpoint(writer);
}

/* When the log is to be looked at again. */
static int64_t next_read(const struct store_writer *writer, int64_t now)
{
    int64_t tick = writer->options.interval_ns < STORE_TICK_NS ? writer->options.interval_ns : STORE_TICK_NS;
    bool is_stuck = gauge_get(&writer->stats.no_space) && is_delta_full(writer);
    return writer->is_at_end || is_stuck ? now + tick : now;
}

enum err store_writer_step(struct store_writer *writer, int64_t now_mono_ns, bool flush, int64_t *wait_ns_out, struct errmsg *msg)
{
    int64_t now = now_mono_ns;
    *wait_ns_out = INT64_MAX;
    if (writer->failed)
        return err_set(msg, writer->failed, "%s", writer->failed_msg.text);
    if (!writer->is_started)
        start(writer, now);
    checkpoint_set_time(writer->checkpoint, now);
    enum err err = ERR_OK;
    if (flush || now >= writer->next_read_ns) {
        if (writer->io.durable_end)
            log_reader_tell_end(writer->reader, writer->io.durable_end(writer->io_arg));
        if (!is_delta_full(writer))
            err = read_log(writer, now);
        look_at_passed(writer);
        if (!err && is_commit_due(writer, now, flush))
            err = commit(writer, now);
        if (err)
            return err_set(msg, err, "%s", writer->failed_msg.text);
        now = clock_or(writer, now);
        writer->next_read_ns = next_read(writer, now);
    }
    look_at_lag(writer, now);
    look_at_age(writer, now);
    look_at_memory(writer, now);
    bool is_posted = op_backlog_flush(&writer->backlog, post, writer);
    if (flush)
        *wait_ns_out = writer->is_at_end || (gauge_get(&writer->stats.no_space) && is_delta_full(writer)) ? INT64_MAX : 0;
    else
        *wait_ns_out = writer->next_read_ns > now ? writer->next_read_ns - now : 0;
    if (!is_posted && *wait_ns_out > STORE_BACKLOG_NS)
        *wait_ns_out = STORE_BACKLOG_NS;
    return ERR_OK;
}
