#include "broker/ops/repair.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "broker/durable/data_format.h"
#include "broker/ops/backup.h"
#include "broker/ops/checkpoint_look.h"
#include "broker/ops/checkpoint_source.h"
#include "broker/ops/data_files.h"
#include "broker/ops/recovery.h"
#include "broker/ops/repair_checkpoint.h"
#include "common/clock.h"
#include "common/crash_point.h"
#include "common/data_dir.h"
#include "common/log_identity.h"
#include "common/log_recovery.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "common/log_window.h"

#define ROUNDS_MAX 8            /* repairs after which nothing new should be found */
#define SEQUENCE_MARGIN 1048576 /* above the claims, when nobody can know how far the records went */
#define TEXT_MAX 512

/* What the log is found to be, and who claims what of it. */
struct survey {
    uint32_t format;
    struct checkpoint_look *look;
    struct checkpoint_source *source;     /* what of a damaged checkpoint is to be taken; NULL: it is whole, or nothing can be */
    const struct checkpoint_state *state; /* where the checkpoint stands, with what is taken of it; NULL: nowhere */
    struct log_recovery recovery;
    enum err log_err;
    struct errmsg log_why;
    uint64_t *generations; /* of all segment files; owned */
    size_t generation_count;
    uint64_t broker_id; /* of the newest segment with a valid header, or whoever else names one; 0: nobody */
    uint32_t epoch_max; /* of anything */
    uint64_t generation_max;
    uint64_t sequence_max;       /* exclusive end of every sequence that was ever claimed */
    struct log_place blocks_end; /* of the farthest block or header that was found whole */
};

/* ---- telling ---- */

__attribute__((format(printf, 2, 3))) static void print(char text_out[TEXT_MAX], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(text_out, TEXT_MAX, format, args);
    va_end(args);
}

/* ---- claims ---- */

static void claim_sequence(struct survey *survey, uint64_t sequence)
{
    if (sequence > survey->sequence_max)
        survey->sequence_max = sequence;
}

static void claim_position(struct survey *survey, uint64_t broker_id, struct log_position position, struct log_place place)
{
    claim_sequence(survey, position.sequence);
    if (position.epoch > survey->epoch_max)
        survey->epoch_max = position.epoch;
    if (place.generation > survey->generation_max)
        survey->generation_max = place.generation;
    if (!survey->broker_id)
        survey->broker_id = broker_id;
}

static void reach(struct survey *survey, struct log_place place)
{
    if (log_place_compare(place, survey->blocks_end) > 0)
        survey->blocks_end = place;
}

/* Every block header of a segment, at each multiple of 512: the greatest sequence of what belongs to this log. */
static enum err claim_blocks(struct survey *survey, struct log_window *window, struct file *file, uint64_t generation)
{
    uint64_t end;
    enum err err = file_size(file, &end);
    log_window_clear(window);
    for (uint64_t at = LOG_SEGMENT_HEADER_SIZE; !err && at + LOG_BLOCK_HEADER_SIZE <= end; at += FILE_ALIGNMENT_MIN) {
        const uint8_t *bytes;
        size_t size;
        struct log_block_header header;
        err = log_window_get(window, &bytes, &size, file, at, LOG_BLOCK_HEADER_SIZE, end);
        if (err || log_block_header_decode(&header, bytes, size) != ERR_OK || header.generation != generation || header.offset != at)
            continue;
        claim_position(survey, header.broker_id, (struct log_position){header.epoch, header.sequence + header.record_count},
                       (struct log_place){generation, at});
        reach(survey, (struct log_place){generation, at + header.size});
    }
    return err;
}

/* Segments from the newest that is still good on: what is before it has smaller numbers. */
static enum err claim_segments(struct repair *repair, struct survey *survey)
{
    struct log_window window;
    enum err err = log_window_init(&window);
    for (size_t i = survey->generation_count; i-- > 0 && !err;) {
        char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
        struct log_segment_header header;
        struct file *file = NULL;
        uint64_t generation = survey->generations[i];
        if (generation < survey->recovery.last_generation)
            break;
        if (log_segment_open(&file, &header, repair->fs, repair->log, generation) == ERR_OK) {
            claim_position(survey, header.broker_id, (struct log_position){header.epoch, header.first_sequence},
                           (struct log_place){generation, 0});
            reach(survey, (struct log_place){generation, LOG_SEGMENT_HEADER_SIZE});
            file_close(file);
        }
        log_segment_name(name, generation);
        err = file_path(path, repair->log, name);
        if (!err)
            err = fs_open(repair->fs, &file, path, FILE_READ | FILE_DIRECT);
        if (!err) {
            err = claim_blocks(survey, &window, file, generation);
            file_close(file);
        }
        if (generation > survey->generation_max)
            survey->generation_max = generation;
    }
    log_window_deinit(&window);
    return err ? err_set(repair->msg, err, "%s: %s", repair->log, err_text(err)) : ERR_OK;
}

static bool is_cursor_name(const char *name) { return strncmp(name, LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) == 0; }

static enum err claim_slots(struct repair *repair, struct survey *survey)
{
    struct log_state state;
    struct log_state_value value;
    struct log_identity identity;
    char **names = NULL;
    size_t count = 0;
    if (log_state_open(&state, repair->fs, repair->log, false) == ERR_OK) {
        if (log_state_read(&state, &value) == ERR_OK)
            claim_position(survey, value.broker_id, value.end.position, value.end.place);
        log_state_close(&state);
    }
    enum err err = data_files_list(&names, &count, repair->fs, repair->log);
    for (size_t i = 0; i < count; i++) {
        struct log_cursor_value cursor;
        if (is_cursor_name(names[i]) && log_cursor_read(&cursor, repair->fs, repair->log, names[i] + strlen(LOG_CURSOR_PREFIX)) == ERR_OK)
            claim_position(survey, cursor.broker_id, cursor.position, cursor.place);
    }
    free(names);
    if (log_identity_read(&identity, repair->fs, repair->log) == ERR_OK && identity.epoch > survey->epoch_max)
        survey->epoch_max = identity.epoch;
    if (survey->state && survey->state->broker_id)
        claim_position(survey, survey->state->broker_id, survey->state->cursor.position, survey->state->cursor.place);
    return err == ERR_NOTFOUND ? ERR_OK : err ? err_set(repair->msg, err, "%s: %s", repair->log, err_text(err)) : ERR_OK;
}

static void survey_deinit(struct survey *survey)
{
    checkpoint_look_free(survey->look);
    checkpoint_source_close(survey->source);
    free(survey->generations);
}

/* The oldest segment that is there tells how old a commit may be that the log still continues. */
static enum err find_source(struct repair *repair, struct survey *survey)
{
    const struct checkpoint_look *look = survey->look;
    survey->state = look->is_there && !look->err ? &look->state : NULL;
    if (!look->is_there || !(look->err || look->damage_count || look->is_free_damaged))
        return ERR_OK;
    enum err err = checkpoint_source_open(&survey->source, repair->checkpoint,
                                          survey->generation_count ? survey->generations[0] : UINT64_MAX, repair->msg);
    if (!err)
        survey->state = &survey->source->look->state;
    return err == ERR_NOTFOUND ? ERR_OK : err;
}

static enum err survey_take(struct repair *repair, struct survey *survey)
{
    enum err err = data_format_read(&survey->format, repair->fs, repair->options->data_dir, repair->msg);
    if (err == ERR_CORRUPT) /* repair_format() */
        err = ERR_OK;
    if (!err)
        err = checkpoint_look(&survey->look, repair->checkpoint, true, repair->msg);
    if (err)
        return err;
    if (survey->look->err == ERR_VERSION || (survey->look->err && survey->look->err != ERR_CORRUPT))
        return err_set(repair->msg, survey->look->err, "%s", survey->look->why.text);
    err = log_segment_list(repair->fs, repair->log, &survey->generations, &survey->generation_count, NULL);
    if (err && err != ERR_NOTFOUND)
        return err_set(repair->msg, err, "%s: %s", repair->log, err_text(err));
    err = find_source(repair, survey);
    if (err)
        return err;
    struct log_recovery_options options = {0};
    if (survey->state) {
        options.checkpoint = survey->state->cursor.reopen;
        options.checkpoint_end = survey->state->cursor.place;
    }
    survey->log_err = log_recovery_run(&survey->recovery, repair->fs, repair->log, &options, &survey->log_why);
    if (survey->log_err && survey->log_err != ERR_CORRUPT)
        return err_set(repair->msg, survey->log_err, "%s", survey->log_why.text);
    survey->epoch_max = survey->recovery.epoch_max;
    survey->broker_id = survey->recovery.broker_id;
    claim_sequence(survey, survey->recovery.end.position.sequence);
    err = claim_segments(repair, survey);
    return err ? err : claim_slots(repair, survey);
}

/* ---- the log ---- */

/* A segment that holds nothing but where the log goes on. */
static enum err write_repair_segment(struct repair *repair, const struct log_segment_header *header)
{
    char name[LOG_SEGMENT_NAME_SIZE];
    uint8_t *bytes = (uint8_t *)malloc(LOG_SEGMENT_HEADER_SIZE);
    if (!bytes)
        return err_set(repair->msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
    log_segment_header_encode(bytes, header);
    log_segment_name(name, header->generation);
    enum err err = data_files_write(repair->fs, repair->log, name, bytes, LOG_SEGMENT_HEADER_SIZE, repair->msg);
    free(bytes);
    return err;
}

static enum err write_state(struct repair *repair, uint64_t broker_id, uint64_t start, const struct log_end *end)
{
    struct log_state state;
    struct log_state_value ignored, value = {.broker_id = broker_id, .start = start, .end = *end, .alignment = FILE_ALIGNMENT_MIN};
    enum err err = log_state_open(&state, repair->fs, repair->log, true);
    if (!err) {
        err = log_state_read(&state, &ignored); /* only for its slot's number */
        if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
            err = ERR_OK;
        if (!err)
            err = log_state_write(&state, &value);
        if (!err)
            err = file_sync(state.slots.file);
        log_state_close(&state);
    }
    if (!err)
        err = fs_sync_dir(repair->fs, repair->log);
    return err ? err_set(repair->msg, err, "%s/state: %s", repair->log, err_text(err)) : ERR_OK;
}

/* The segment in which the log ends now: a copy of it goes aside, and what stands behind the end is cut off. */
static enum err cut_segment(struct repair *repair, struct log_place end)
{
    char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX], part[FILE_PATH_MAX], to[FILE_PATH_MAX];
    struct file *file = NULL;
    uint64_t size;
    uint32_t crc;
    log_segment_name(name, end.generation);
    enum err err = repair_make_aside(repair, "log");
    if (!err)
        err = file_path(path, repair->log, name);
    if (!err)
        err = file_path(part, repair->aside, "log");
    if (!err)
        err = file_path(to, part, name);
    if (!err)
        err = data_files_copy(&size, &crc, repair->fs, path, to, UINT64_MAX, repair->msg);
    if (!err)
        err = fs_sync_dir(repair->fs, part);
    if (err)
        return err;
    err = fs_open(repair->fs, &file, path, FILE_READ | FILE_WRITE);
    if (!err)
        err = file_truncate(file, (end.offset + 4095) & ~(uint64_t)4095);
    if (!err)
        err = file_sync(file);
    file_close(file);
    return err ? err_set(repair->msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

/* The order: the repair segment first, because it keeps the claims; with it alone the hole is still found, and cut again. */
static enum err cut_log(struct repair *repair, const struct survey *survey, uint64_t sequence)
{
    struct log_place end = survey->recovery.last_generation ? survey->recovery.end.place : (struct log_place){0, 0};
    struct log_segment_header header = {.broker_id = survey->broker_id,
                                        .generation = survey->generation_max + 1,
                                        .epoch = survey->epoch_max + 1,
                                        .alignment = FILE_ALIGNMENT_MIN,
                                        .first_sequence = sequence,
                                        .predecessor = end,
                                        .size = LOG_SEGMENT_HEADER_SIZE,
                                        .created_ns = clock_wall(),
                                        .is_repair = true};
    enum err err = fs_random(repair->fs, &header.start, sizeof header.start);
    while (!err && header.broker_id == 0)
        err = fs_random(repair->fs, &header.broker_id, sizeof header.broker_id);
    if (err)
        return err_set(repair->msg, err, "%s: %s", repair->log, err_text(err));
    err = data_dir_make(repair->log, repair->msg);
    if (!err)
        err = write_repair_segment(repair, &header);
    CRASH_POINT("repair_segment_written");
    if (!err && end.generation)
        err = cut_segment(repair, end);
    /* Without a good segment the older ones lead nowhere. */
    for (size_t i = 0; i < survey->generation_count && !err; i++) {
        char name[LOG_SEGMENT_NAME_SIZE], relative[LOG_SEGMENT_NAME_SIZE + 8];
        if (survey->generations[i] <= end.generation)
            continue;
        log_segment_name(name, survey->generations[i]);
        snprintf(relative, sizeof relative, "log/%s", name);
        err = repair_move_aside(repair, relative);
        CRASH_POINT("repair_segment_moved");
    }
    if (err)
        return err;
    struct log_end begin = {.position = {header.epoch, sequence}, .place = {header.generation, LOG_SEGMENT_HEADER_SIZE}};
    return write_state(repair, header.broker_id, header.start, &begin);
}

static enum err repair_hole(struct repair *repair, const struct survey *survey)
{
    char wrong[TEXT_MAX], remedy[TEXT_MAX], loss[TEXT_MAX];
    const struct log_recovery *recovery = &survey->recovery;
    if (survey->log_err != ERR_CORRUPT)
        return ERR_OK;
    /* Blocks were found as far as anybody says that there were any: then their numbers are known, too. */
    bool is_known = log_place_compare(survey->blocks_end, recovery->proof) >= 0;
    uint64_t end = recovery->end.position.sequence, sequence = survey->sequence_max + (is_known ? 0 : SEQUENCE_MARGIN);
    print(wrong,
          "%s/%016" PRIx64 ".seg: the log does not continue at offset %" PRIu64 ", and %s proves that it was durable up to %016" PRIx64
          ".seg:%" PRIu64,
          repair->log, recovery->corrupt_place.generation, recovery->corrupt_place.offset, recovery->proof_by, recovery->proof.generation,
          recovery->proof.offset);
    print(remedy, "cut the log there; what stands behind it goes aside; the log goes on in segment %016" PRIx64 " with record %" PRIu64,
          survey->generation_max + 1, sequence);
    if (is_known)
        print(loss,
              "records %" PRIu64 " to %" PRIu64
              ", except what checkpoint and consumers have of them already; the sink states the gap and goes on with --accept-gap",
              end, sequence - 1);
    else
        print(loss,
              "records from %" PRIu64 " on, at least up to %" PRIu64
              ", except what checkpoint and consumers have of them already; the sink states the gap and goes on with --accept-gap",
              end, survey->sequence_max - 1);
    return repair_find(repair, wrong, remedy, loss) ? cut_log(repair, survey, sequence) : ERR_OK;
}

/* ---- small files ---- */

static enum err repair_format(struct repair *repair, const struct survey *survey)
{
    char wrong[TEXT_MAX], remedy[TEXT_MAX];
    uint32_t format = DATA_FORMAT_LOG_ONLY;
    struct errmsg why;
    if (data_format_read(&format, repair->fs, repair->options->data_dir, &why) != ERR_CORRUPT)
        return ERR_OK;
    format = survey->look->is_there ? DATA_FORMAT_CHECKPOINT : DATA_FORMAT_LOG_ONLY;
    print(wrong, "%s/format: is not one line \"tidegate-broker N\"", repair->options->data_dir);
    print(remedy, "write it again: format %" PRIu32 ", by what the directory holds", format);
    if (!repair_find(repair, wrong, remedy, "nothing"))
        return ERR_OK;
    enum err err = repair_move_aside(repair, "format");
    return err || format == DATA_FORMAT_LOG_ONLY ? err : data_format_write(repair->fs, repair->options->data_dir, format, repair->msg);
}

static enum err repair_identity(struct repair *repair, const struct survey *survey)
{
    char wrong[TEXT_MAX], remedy[TEXT_MAX];
    struct log_identity identity = {.broker_id = survey->broker_id, .epoch = survey->epoch_max};
    struct log_identity found;
    enum err err = log_identity_read(&found, repair->fs, repair->log);
    if (!err || (err == ERR_NOTFOUND && !survey->broker_id))
        return ERR_OK; /* a new log has none yet */
    if (err != ERR_NOTFOUND && err != ERR_CORRUPT)
        return err_set(repair->msg, err, "%s/identity: %s", repair->log, err_text(err));
    bool is_there = data_files_exist(repair->log, "identity");
    while (identity.broker_id == 0)
        if ((err = fs_random(repair->fs, &identity.broker_id, sizeof identity.broker_id)) != ERR_OK)
            return err_set(repair->msg, err, "%s/identity: %s", repair->log, err_text(err));
    print(wrong, "%s/identity: %s", repair->log, is_there ? "neither of its two slots, at 0 and 4096, is whole" : "missing");
    print(remedy, "write it again: broker %016" PRIx64 ", epoch %" PRIu32 ", as the log says", identity.broker_id, identity.epoch);
    if (!repair_find(repair, wrong, remedy, "nothing"))
        return ERR_OK;
    err = is_there ? repair_move_aside(repair, "log/identity") : data_dir_make(repair->log, repair->msg);
    if (!err)
        err = fs_random(repair->fs, &identity.start, sizeof identity.start);
    return err ? err : log_identity_store(&identity, repair->fs, repair->log, repair->msg);
}

static enum err repair_state(struct repair *repair, const struct survey *survey)
{
    char wrong[TEXT_MAX];
    struct log_state state;
    struct log_state_value value;
    enum err err = log_state_open(&state, repair->fs, repair->log, false);
    if (!err) {
        err = log_state_read(&state, &value);
        log_state_close(&state);
    }
    if (err != ERR_CORRUPT || survey->log_err || !survey->recovery.last_generation) /* with a hole it is written anyway */
        return err == ERR_VERSION ? err_set(repair->msg, err, "%s/state: %s", repair->log, err_text(err)) : ERR_OK;
    print(wrong, "%s/state: neither of its two slots, at 0 and 4096, is whole", repair->log);
    if (!repair_find(repair, wrong, "write it again: the log ends where reading it ends", "nothing"))
        return ERR_OK;
    err = repair_move_aside(repair, "log/state");
    return err ? err : write_state(repair, survey->broker_id, 0, &survey->recovery.end);
}

/* Where a consumer begins that has forgotten everything. */
static struct log_cursor_value oldest_value(const struct survey *survey)
{
    struct log_cursor_value value = {.broker_id = survey->broker_id,
                                     .position = survey->recovery.oldest,
                                     .place = survey->recovery.oldest_place,
                                     .reopen = survey->recovery.oldest_place};
    return value;
}

static enum err repair_cursor(struct repair *repair, const struct survey *survey, const char *file_name)
{
    char wrong[TEXT_MAX], relative[LOG_CURSOR_NAME_MAX + 32];
    struct log_cursor_value value;
    const char *name = file_name + strlen(LOG_CURSOR_PREFIX);
    bool is_backup = strncmp(name, BACKUP_CURSOR_PREFIX, strlen(BACKUP_CURSOR_PREFIX)) == 0;
    enum err err = log_cursor_read(&value, repair->fs, repair->log, name);
    if (err == ERR_NOTFOUND || (!err && !is_backup))
        return ERR_OK;
    if (err && err != ERR_CORRUPT)
        return err_set(repair->msg, err, "%s/%s: %s", repair->log, file_name, err_text(err));
    if (is_backup)
        print(wrong, "%s/%s: holds the log for a backup that ended without removing it", repair->log, file_name);
    else
        print(wrong, "%s/%s: neither of its two slots, at 0 and 4096, is whole; no segment is reused because of it", repair->log,
              file_name);
    if (!repair_find(repair, wrong, is_backup ? "move it aside" : "make it again at the oldest record",
                     is_backup ? "nothing" : "nothing; its consumer reads again what it has already"))
        return ERR_OK;
    snprintf(relative, sizeof relative, "log/%.*s", (int)sizeof relative - 5, file_name);
    err = repair_move_aside(repair, relative);
    if (err || is_backup || !survey->recovery.oldest_place.generation)
        return err;
    value = oldest_value(survey);
    err = log_cursor_create(repair->fs, repair->log, name, &value);
    return err ? err_set(repair->msg, err, "%s/%s: %s", repair->log, file_name, err_text(err)) : ERR_OK;
}

static enum err repair_cursors(struct repair *repair, const struct survey *survey)
{
    char **names;
    size_t count;
    enum err err = data_files_list(&names, &count, repair->fs, repair->log);
    if (err)
        return err == ERR_NOTFOUND ? ERR_OK : err_set(repair->msg, err, "%s: %s", repair->log, err_text(err));
    for (size_t i = 0; i < count && !err; i++)
        if (is_cursor_name(names[i]))
            err = repair_cursor(repair, survey, names[i]);
    free(names);
    return err;
}

/* ---- all ---- */

/* A checkpoint and a log that do not belong together are nobody's damage. */
static enum err check_match(struct repair *repair, const struct survey *survey)
{
    struct log_identity identity;
    if (!survey->state || log_identity_read(&identity, repair->fs, repair->log) != ERR_OK)
        return ERR_OK;
    return recovery_match(survey->state, identity.broker_id, repair->fs, repair->options->data_dir, repair->log, repair->msg);
}

/* Telling: everything at once. Carrying out: the log, then what is made from it, each seen anew in the next round. */
static enum err repair_round(struct repair *repair)
{
    struct survey survey = {0};
    unsigned before = repair->found;
    bool yes = repair->options->yes;
    enum err err = survey_take(repair, &survey);
    if (!err)
        err = repair_format(repair, &survey);
    if (!err)
        err = repair_cursors(repair, &survey);
    if (!err && !(yes && repair->found > before))
        err = repair_hole(repair, &survey);
    if (!err && !(yes && repair->found > before))
        err = repair_identity(repair, &survey);
    if (!err && !(yes && repair->found > before))
        err = repair_state(repair, &survey);
    if (!err && !(yes && repair->found > before)) {
        err = check_match(repair, &survey);
    }
    if (!err && !(yes && repair->found > before)) {
        struct log_end begin = {.position = survey.recovery.oldest, .place = survey.recovery.oldest_place};
        err = repair_checkpoint(repair, survey.look, survey.source, survey.format, &begin);
    }
    survey_deinit(&survey);
    return err;
}

static enum err repair_rounds(struct repair *repair)
{
    for (int round = 0; round < ROUNDS_MAX; round++) {
        unsigned before = repair->found;
        enum err err = repair_round(repair);
        if (err || !repair->options->yes || repair->found == before)
            return err;
    }
    return err_set(repair->msg, ERR_CORRUPT, "%s: the same is found again and again; restore a backup", repair->options->data_dir);
}

static void tell_end(const struct repair *repair)
{
    FILE *out = repair->options->out;
    if (!repair->options->yes)
        fprintf(out, "%u found; nothing was changed\n", repair->found);
    else if (repair->aside[0])
        fprintf(out, "%u put right; what was taken out is in %s\n", repair->found, repair->aside);
    else
        fprintf(out, "%u put right; nothing was taken out\n", repair->found);
}

enum err repair_run(const struct repair_options *options, unsigned *found_out, struct errmsg *msg)
{
    struct repair repair = {.options = options, .fs = fs_posix(), .msg = msg};
    struct data_dir data_dir;
    *found_out = 0;
    if (!data_files_exist(options->data_dir, "."))
        return err_set(msg, ERR_NOTFOUND, "%s: no such directory", options->data_dir);
    enum err err = file_path(repair.log, options->data_dir, "log");
    if (!err)
        err = file_path(repair.checkpoint, options->data_dir, "checkpoint");
    if (err)
        return err_set(msg, err, "%s: path too long", options->data_dir);
    err = data_dir_open(&data_dir, options->data_dir, "broker.lock", msg);
    if (err)
        return err;
    err = repair_rounds(&repair);
    data_dir_close(&data_dir);
    *found_out = repair.found;
    if (repair.found && !err)
        tell_end(&repair);
    else if (!err)
        fprintf(options->out, "nothing to repair in %s\n", options->data_dir);
    return err;
}
