#include "broker/ops/backup.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "broker/durable/data_format.h"
#include "broker/durable/kv_lmdb.h"
#include "broker/ops/checkpoint_look.h"
#include "broker/ops/data_files.h"
#include "common/clock.h"
#include "common/data_dir.h"
#include "common/log_identity.h"
#include "common/log_recovery.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "common/log_window.h"

#define END_WAIT_NS (10 * NS_PER_S) /* for the state file to reach the checkpoint: it is written every 20 ms */
#define END_POLL_NS (5 * NS_PER_MS)
#define CURSORS_MAX 64

struct backup {
    const struct backup_options *options;
    struct fs *fs;
    struct errmsg *msg;
    char log[FILE_PATH_MAX], checkpoint[FILE_PATH_MAX];       /* of the broker */
    char to_log[FILE_PATH_MAX], to_checkpoint[FILE_PATH_MAX]; /* of the backup */
    char cursor_name[LOG_CURSOR_NAME_MAX];
    struct log_cursor cursor; /* our own */
    bool has_cursor, made_dir;
    struct log_identity identity;
    struct backup_list list;
    struct checkpoint_look *look; /* at the copy */
    struct held {
        char name[LOG_CURSOR_NAME_MAX];
        struct log_cursor_value value;
    } cursors[CURSORS_MAX]; /* of consumers */
    size_t cursor_count;
    uint64_t needed; /* oldest generation that anybody needs; UINT64_MAX: nobody */
};

static enum err backup_paths(struct backup *backup)
{
    const struct backup_options *options = backup->options;
    enum err err = file_path(backup->log, options->data_dir, "log");
    if (!err)
        err = file_path(backup->checkpoint, options->data_dir, "checkpoint");
    if (!err)
        err = file_path(backup->to_log, options->dir, "log");
    if (!err)
        err = file_path(backup->to_checkpoint, options->dir, "checkpoint");
    return err ? err_set(backup->msg, err, "%s: path too long", options->data_dir) : ERR_OK;
}

/* ---- the cursor ---- */

static enum err remove_cursor(struct fs *fs, const char *log_dir, const char *name)
{
    char path[FILE_PATH_MAX];
    enum err err = snprintf(path, sizeof path, "%s/" LOG_CURSOR_PREFIX "%s", log_dir, name) >= (int)sizeof path ? ERR_TOOLARGE : ERR_OK;
    if (!err)
        err = fs_unlink(fs, path);
    return err ? err : fs_sync_dir(fs, log_dir);
}

static bool is_backup_cursor(const char *file_name)
{
    const char *prefix = LOG_CURSOR_PREFIX BACKUP_CURSOR_PREFIX;
    return strncmp(file_name, prefix, strlen(prefix)) == 0;
}

enum err backup_remove_stale_cursors(struct fs *fs, const char *log_dir, void (*on_removed)(void *arg, const char *path), void *arg,
                                     struct errmsg *msg)
{
    char **names;
    size_t count;
    enum err err = data_files_list(&names, &count, fs, log_dir);
    if (err)
        return err == ERR_NOTFOUND ? ERR_OK : err_set(msg, err, "%s: %s", log_dir, err_text(err));
    for (size_t i = 0; i < count && !err; i++) {
        char path[FILE_PATH_MAX];
        struct file *file = NULL;
        if (!is_backup_cursor(names[i]) || file_path(path, log_dir, names[i]) != ERR_OK ||
            fs_open(fs, &file, path, FILE_READ | FILE_WRITE) != ERR_OK)
            continue;
        if (file_lock(file) == ERR_OK) {
            err = remove_cursor(fs, log_dir, names[i] + strlen(LOG_CURSOR_PREFIX));
            if (!err)
                on_removed(arg, path);
        }
        file_close(file);
        if (err)
            err_set(msg, err, "%s: %s", path, err_text(err));
    }
    free(names);
    return err;
}

static void say_removed(void *arg, const char *path)
{
    const struct backup *backup = (const struct backup *)arg;
    fprintf(backup->options->out, "removed %s: it held the log for a backup that ended without doing so\n", path);
}

/* The first segment that is there. What the broker reuses before it sees our cursor is behind its checkpoint and all cursors anyway. */
static enum err find_oldest(struct backup *backup, struct log_segment_header *header_out)
{
    enum err err = log_segment_find_oldest(header_out, backup->fs, backup->log);
    return err ? err_set(backup->msg, err, "%s: no segment of a log: %s", backup->log, err_text(err)) : ERR_OK;
}

static enum err hold_log(struct backup *backup)
{
    struct log_segment_header oldest;
    enum err err = find_oldest(backup, &oldest);
    if (err)
        return err;
    struct log_cursor_value value = {.broker_id = oldest.broker_id,
                                     .position = {oldest.epoch, oldest.first_sequence},
                                     .place = {oldest.generation, LOG_SEGMENT_HEADER_SIZE},
                                     .reopen = {oldest.generation, LOG_SEGMENT_HEADER_SIZE}};
    snprintf(backup->cursor_name, sizeof backup->cursor_name, BACKUP_CURSOR_PREFIX "%ld", (long)getpid());
    err = log_cursor_create(backup->fs, backup->log, backup->cursor_name, &value);
    if (err)
        return err_set(backup->msg, err, "%s/" LOG_CURSOR_PREFIX "%s: %s", backup->log, backup->cursor_name, err_text(err));
    err = log_cursor_open(&backup->cursor, backup->fs, backup->log, backup->cursor_name, backup->msg);
    backup->has_cursor = !err;
    if (err && remove_cursor(backup->fs, backup->log, backup->cursor_name) != ERR_OK)
        fprintf(backup->options->out, "%s/" LOG_CURSOR_PREFIX "%s could not be removed\n", backup->log, backup->cursor_name);
    return err;
}

/* ---- what to copy ---- */

static void need(struct backup *backup, uint64_t generation)
{
    if (generation && generation < backup->needed)
        backup->needed = generation;
}

static enum err read_format(struct backup *backup)
{
    bool is_there = data_files_exist(backup->checkpoint, "data.mdb");
    enum err err = data_format_read(&backup->list.format, backup->fs, backup->options->data_dir, backup->msg);
    if (!err && !is_there && backup->list.format >= DATA_FORMAT_CHECKPOINT)
        err = err_set(backup->msg, ERR_CORRUPT, "%s: the checkpoint is missing; see `tidegate-broker repair`", backup->options->data_dir);
    backup->list.has_checkpoint = is_there;
    return err;
}

static enum err copy_checkpoint(struct backup *backup)
{
    struct kv *kv = NULL;
    struct kv_lmdb_options options = {.dir = backup->checkpoint, .read_only = true};
    if (!backup->list.has_checkpoint)
        return ERR_OK;
    enum err err = fs_mkdir(backup->fs, backup->to_checkpoint);
    if (err)
        return err_set(backup->msg, err, "%s: %s", backup->to_checkpoint, err_text(err));
    err = kv_lmdb_open(&kv, &options, backup->msg);
    if (!err)
        err = kv_lmdb_copy(kv, backup->to_checkpoint, data_files_is_stopped, backup->msg);
    kv_close(kv);
    if (!err)
        err = checkpoint_look(&backup->look, backup->to_checkpoint, true, backup->msg);
    if (!err && backup->look->err)
        err = err_set(backup->msg, backup->look->err, "%s", backup->look->why.text);
    if (err)
        return err;
    backup->list.checkpoint = backup->look->state.cursor;
    need(backup, backup->list.checkpoint.reopen.generation);
    return ERR_OK;
}

/* Where the consumers are: what they have not read yet goes along. The durable value: the newest may be ahead of what is kept. */
static enum err read_cursors(struct backup *backup)
{
    char **names;
    size_t count;
    enum err err = data_files_list(&names, &count, backup->fs, backup->log);
    if (err)
        return err_set(backup->msg, err, "%s: %s", backup->log, err_text(err));
    for (size_t i = 0; i < count && !err; i++) {
        if (strncmp(names[i], LOG_CURSOR_PREFIX, strlen(LOG_CURSOR_PREFIX)) != 0 || is_backup_cursor(names[i]))
            continue;
        struct held *held = &backup->cursors[backup->cursor_count];
        const char *name = names[i] + strlen(LOG_CURSOR_PREFIX);
        if (backup->cursor_count == CURSORS_MAX || strlen(name) >= sizeof held->name) {
            err = err_set(backup->msg, ERR_TOOLARGE, "%s: more than %d cursors", backup->log, CURSORS_MAX);
            break;
        }
        err = log_cursor_read_durable(&held->value, backup->fs, backup->log, name);
        if (err == ERR_NOTFOUND) {
            err = ERR_OK; /* being made */
            continue;
        }
        if (err) {
            err_set(backup->msg, err, "%s/%s: %s; see `tidegate-broker repair`", backup->log, names[i], err_text(err));
            break;
        }
        memcpy(held->name, name, strlen(name) + 1);
        backup->cursor_count++;
        need(backup, held->value.reopen.generation);
    }
    free(names);
    return err;
}

/* The end may be used when it covers what was copied or read before. */
static bool is_end_enough(const struct backup *backup, const struct log_end *end)
{
    bool is_enough = log_place_compare(backup->list.checkpoint.place, end->place) <= 0;
    for (size_t i = 0; i < backup->cursor_count; i++)
        is_enough = is_enough && log_place_compare(backup->cursors[i].value.place, end->place) <= 0;
    return is_enough;
}

/* No broker runs, and none can start while we hold its lock: look where the log ends, as a start would. */
static enum err find_end_alone(struct backup *backup)
{
    struct log_recovery recovery;
    struct log_recovery_options options = {.checkpoint = backup->list.checkpoint.reopen, .checkpoint_end = backup->list.checkpoint.place};
    enum err err = log_recovery_run(&recovery, backup->fs, backup->log, &options, backup->msg);
    backup->list.end = recovery.end;
    return err;
}

/* Blocks of one segment that go on from `end`. */
static enum err extend_blocks(struct log_window *window, struct log_end *end, struct file *file, const struct log_segment_header *segment)
{
    uint64_t size;
    enum err err = file_size(file, &size);
    log_window_clear(window);
    while (!err && end->place.offset < size) {
        const uint8_t *at;
        size_t got;
        struct log_block_view view;
        err = log_window_get(window, &at, &got, file, end->place.offset, LOG_BLOCK_SIZE_MAX, size);
        if (err || log_block_view_parse(&view, at, got) != ERR_OK || !log_segment_holds(segment, &view.header, end->place.offset) ||
            view.header.sequence != end->position.sequence)
            break;
        end->place.offset += view.header.size;
        end->position.sequence += view.header.record_count;
    }
    return err;
}

/* The state file is up to 20 ms old, more on a slow disk, and what was acknowledged before the backup began must be in it. So read on as
 * recovery would after a crash at this moment: block after block while they continue. */
static enum err extend_end(struct backup *backup, struct log_end *end)
{
    struct log_window window;
    struct log_segment_header header;
    enum err err = log_window_init(&window);
    for (bool goes_on = true; !err && goes_on;) {
        struct file *file = NULL;
        struct log_end next = *end;
        err = log_segment_open(&file, &header, backup->fs, backup->log, end->place.generation);
        if (!err)
            err = extend_blocks(&window, &next, file, &header);
        file_close(file);
        *end = next;
        goes_on = !err && log_segment_find_next(&header, backup->fs, backup->log, end->place.generation) == ERR_OK &&
                  log_place_compare(header.predecessor, end->place) == 0 && header.first_sequence == end->position.sequence;
        if (goes_on)
            *end =
                (struct log_end){.position = {header.epoch, header.first_sequence}, .place = {header.generation, LOG_SEGMENT_HEADER_SIZE}};
    }
    log_window_deinit(&window);
    return err;
}

/* The durable end, read after the checkpoint was copied. */
static enum err find_end(struct backup *backup)
{
    char path[FILE_PATH_MAX];
    struct lock_file lock;
    struct errmsg ignored;
    enum err err = file_path(path, backup->options->data_dir, "broker.lock");
    for (mono_ns until = clock_mono() + END_WAIT_NS; !err;) {
        err = lock_file_open(&lock, path, &ignored);
        if (!err) {
            err = find_end_alone(backup);
            lock_file_close(&lock);
            return err;
        }
        struct log_state state;
        struct log_state_value value;
        if (err != ERR_LOCKED)
            break;
        err = log_state_open(&state, backup->fs, backup->log, false);
        if (!err) {
            err = log_state_read(&state, &value);
            log_state_close(&state);
        }
        if (!err && (err = extend_end(backup, &value.end)) != ERR_OK)
            return err_set(backup->msg, err, "%s/%016" PRIx64 ".seg: %s", backup->log, value.end.place.generation, err_text(err));
        if (!err && is_end_enough(backup, &value.end)) {
            backup->list.end = value.end;
            return ERR_OK;
        }
        if (err && err != ERR_NOTFOUND && err != ERR_CORRUPT) /* caught half written: again */
            return err_set(backup->msg, err, "%s/state: %s", backup->log, err_text(err));
        if (clock_mono() > until)
            return err_set(backup->msg, ERR_AGAIN, "%s/state: does not reach the checkpoint", backup->log);
        (void)nanosleep(&(struct timespec){.tv_nsec = END_POLL_NS}, NULL);
        err = data_files_is_stopped() ? ERR_CLOSED : ERR_OK;
    }
    return err_set(backup->msg, err, "%s: %s", path, err_text(err));
}

/* ---- copying ---- */

static enum err copy_segment(struct backup *backup, uint64_t generation, uint64_t limit)
{
    char name[LOG_SEGMENT_NAME_SIZE], listed[BACKUP_FILE_NAME_MAX], from[FILE_PATH_MAX], to[FILE_PATH_MAX];
    uint64_t size;
    uint32_t crc;
    log_segment_name(name, generation);
    snprintf(listed, sizeof listed, "log/%s", name);
    enum err err = file_path(from, backup->log, name);
    if (!err)
        err = file_path(to, backup->to_log, name);
    if (err)
        return err_set(backup->msg, err, "%s: path too long", backup->log);
    err = data_files_copy(&size, &crc, backup->fs, from, to, limit, backup->msg);
    return err ? err : backup_list_add(&backup->list, listed, size, crc);
}

/* From the oldest generation that anybody needs to the end, each up to where the next begins. */
static enum err copy_segments(struct backup *backup)
{
    struct log_segment_header oldest, next;
    enum err err = find_oldest(backup, &oldest);
    uint64_t generation = backup->needed == UINT64_MAX ? oldest.generation : backup->needed, end = backup->list.end.place.generation;
    if (err)
        return err;
    if (generation < oldest.generation)
        return err_set(backup->msg, ERR_GAP, "%s: the log does not reach back to segment %016" PRIx64 "; see `tidegate-broker repair`",
                       backup->log, generation);
    while (generation < end) {
        err = log_segment_find_next(&next, backup->fs, backup->log, generation);
        if (err || next.predecessor.generation != generation)
            return err_set(backup->msg, err ? err : ERR_CORRUPT,
                           "%s: segment %016" PRIx64 " has no successor; see `tidegate-broker repair`", backup->log, generation);
        err = copy_segment(backup, generation, next.predecessor.offset);
        if (err)
            return err;
        generation = next.generation;
    }
    return copy_segment(backup, generation, backup->list.end.place.offset);
}

/* identity, state and cursors are written anew, with the values that belong to what was copied. */
static enum err write_slots(struct backup *backup)
{
    struct log_state state;
    struct log_state_value value = {.broker_id = backup->identity.broker_id, .start = backup->identity.start, .end = backup->list.end};
    enum err err = log_identity_store(&backup->identity, backup->fs, backup->to_log, backup->msg);
    if (err)
        return err;
    value.alignment = FILE_ALIGNMENT_MIN;
    err = log_state_open(&state, backup->fs, backup->to_log, true);
    if (!err) {
        err = log_state_write(&state, &value);
        if (!err)
            err = file_sync(state.slots.file);
        log_state_close(&state);
    }
    for (size_t i = 0; i < backup->cursor_count && !err; i++)
        err = log_cursor_create(backup->fs, backup->to_log, backup->cursors[i].name, &backup->cursors[i].value);
    if (!err)
        err = fs_sync_dir(backup->fs, backup->to_log);
    if (!err && backup->list.format >= DATA_FORMAT_CHECKPOINT)
        return data_format_write(backup->fs, backup->options->dir, backup->list.format, backup->msg);
    return err ? err_set(backup->msg, err, "%s: %s", backup->to_log, err_text(err)) : ERR_OK;
}

static enum err list_file(struct backup *backup, const char *name)
{
    char path[FILE_PATH_MAX];
    uint64_t size;
    uint32_t crc;
    enum err err = file_path(path, backup->options->dir, name);
    if (!err)
        err = data_files_checksum(&size, &crc, backup->fs, path, backup->msg);
    return err ? err : backup_list_add(&backup->list, name, size, crc);
}

/* Read the log of the backup as a start would. */
static enum err verify(struct backup *backup)
{
    struct log_recovery recovery;
    struct log_recovery_options options = {.checkpoint = backup->list.checkpoint.reopen, .checkpoint_end = backup->list.checkpoint.place};
    enum err err = log_recovery_run(&recovery, backup->fs, backup->to_log, &options, backup->msg);
    if (err)
        return err;
    if (log_place_compare(recovery.end.place, backup->list.end.place) != 0)
        return err_set(backup->msg, ERR_CORRUPT, "%s: ends at %016" PRIx64 ".seg:%" PRIu64 " and not where the broker's does",
                       backup->to_log, recovery.end.place.generation, recovery.end.place.offset);
    return ERR_OK;
}

static enum err finish(struct backup *backup)
{
    struct buf text;
    char name[BACKUP_FILE_NAME_MAX];
    enum err err = list_file(backup, "log/identity");
    if (!err)
        err = list_file(backup, "log/state");
    for (size_t i = 0; i < backup->cursor_count && !err; i++) {
        snprintf(name, sizeof name, "log/" LOG_CURSOR_PREFIX "%s", backup->cursors[i].name);
        err = list_file(backup, name);
    }
    if (!err && backup->list.has_checkpoint)
        err = list_file(backup, "checkpoint/data.mdb");
    if (!err && backup->list.format >= DATA_FORMAT_CHECKPOINT)
        err = list_file(backup, "format");
    if (err)
        return err;
    backup->list.made_ns = clock_wall();
    backup->list.broker_id = backup->identity.broker_id;
    backup->list.epoch = backup->identity.epoch;
    buf_init(&text, BACKUP_LIST_SIZE_MAX);
    err = backup_list_format(&text, &backup->list);
    if (!err)
        err = fs_sync_dir(backup->fs, backup->to_log);
    if (err)
        err_set(backup->msg, err, "%s: %s", backup->options->dir, err_text(err));
    else
        err = data_files_write(backup->fs, backup->options->dir, BACKUP_LIST_NAME, text.data, text.size, backup->msg);
    buf_deinit(&text);
    return err;
}

static enum err make_backup(struct backup *backup)
{
    enum err err = copy_checkpoint(backup);
    if (!err)
        err = read_cursors(backup);
    if (!err)
        err = find_end(backup);
    if (!err)
        err = copy_segments(backup);
    if (!err && (err = log_identity_read(&backup->identity, backup->fs, backup->log)) != ERR_OK)
        err_set(backup->msg, err, "%s/identity: %s; see `tidegate-broker repair`", backup->log, err_text(err));
    if (!err)
        err = write_slots(backup);
    if (!err)
        err = verify(backup);
    return err ? err : finish(backup);
}

/* ---- what is left of one that failed ---- */

static void remove_all(struct fs *fs, const char *dir)
{
    char **names;
    size_t count;
    if (data_files_list(&names, &count, fs, dir) != ERR_OK)
        return;
    for (size_t i = 0; i < count; i++) {
        char path[FILE_PATH_MAX];
        if (file_path(path, dir, names[i]) == ERR_OK)
            (void)!unlink(path);
    }
    free(names);
    (void)rmdir(dir);
}

static void clean_up(struct backup *backup)
{
    remove_all(backup->fs, backup->to_log);
    remove_all(backup->fs, backup->to_checkpoint);
    remove_all(backup->fs, backup->options->dir);
}

/* A backup in what it is a backup of would go with it, and a start would find directories that it does not know. */
static enum err check_outside(const struct backup *backup)
{
    const char *places[] = {backup->options->data_dir, backup->log, backup->checkpoint};
    bool is_inside = false;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        enum err err = data_files_is_inside(&is_inside, backup->options->dir, places[i]);
        if (err)
            return err_set(backup->msg, err, "%s: %s", backup->options->dir, err_text(err));
        if (is_inside)
            return err_set(backup->msg, ERR_INVALID,
                           "%s: is inside the data directory %s: a backup goes somewhere else, best to another disk", backup->options->dir,
                           places[i]);
    }
    return ERR_OK;
}

static void report(const struct backup *backup)
{
    const struct backup_list *list = &backup->list;
    FILE *out = backup->options->out;
    fprintf(out, "backup of %s (broker %016" PRIx64 ", epoch %" PRIu32 ") in %s\n", backup->options->data_dir, list->broker_id, list->epoch,
            backup->options->dir);
    if (list->has_checkpoint)
        fprintf(out, "checkpoint: %" PRIu64 " sessions, %" PRIu64 " retained values, of the records before %" PRIu64 "\n",
                backup->look->state.session_count, backup->look->state.retained_count, list->checkpoint.position.sequence);
    fprintf(out, "log: the records before %" PRIu64 ", epoch %" PRIu32 ", %016" PRIx64 ".seg:%" PRIu64 "\n", list->end.position.sequence,
            list->end.position.epoch, list->end.place.generation, list->end.place.offset);
    for (size_t i = 0; i < backup->cursor_count; i++)
        fprintf(out, "cursor %s: next record %" PRIu64 "\n", backup->cursors[i].name, backup->cursors[i].value.position.sequence);
    fprintf(out, "%zu files, %" PRIu64 " bytes, read back and found whole\n", list->file_count, backup_list_bytes(list));
}

/* The backup is as good as what it was made of. */
static enum err report_damage(const struct backup *backup)
{
    const struct checkpoint_look *look = backup->look;
    if (!look || look->damage_count == 0)
        return ERR_OK;
    for (uint32_t i = 0; i < look->damage_known && i < 20; i++) {
        char text[CHECKPOINT_LOOK_TEXT];
        checkpoint_damage_text(text, &look->damage[i]);
        fprintf(backup->options->out, "damaged, here and at the broker: %s: %s\n", kv_tree_name((enum kv_tree)look->damage[i].tree), text);
    }
    return err_set(backup->msg, ERR_CORRUPT,
                   "%s: the backup is made, but %" PRIu64 " values of the checkpoint are damaged; see `tidegate-broker repair`",
                   backup->options->dir, look->damage_count);
}

static enum err backup_held(struct backup *backup)
{
    enum err err = backup_remove_stale_cursors(backup->fs, backup->log, say_removed, backup, backup->msg);
    if (!err)
        err = hold_log(backup);
    if (err)
        return err;
    err = make_backup(backup);
    log_cursor_close(&backup->cursor);
    if (remove_cursor(backup->fs, backup->log, backup->cursor_name) != ERR_OK)
        fprintf(backup->options->out,
                "%s/" LOG_CURSOR_PREFIX
                "%s could not be removed: the next backup or start of the broker will, until then it holds the log\n",
                backup->log, backup->cursor_name);
    return err;
}

enum err backup_run(const struct backup_options *options, struct errmsg *msg)
{
    struct backup *backup = (struct backup *)calloc(1, sizeof *backup);
    if (!backup)
        return err_set(msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
    backup->options = options;
    backup->fs = fs_posix();
    backup->msg = msg;
    backup->needed = UINT64_MAX;
    enum err err = data_files_exist(options->data_dir, "log") ? ERR_OK : ERR_NOTFOUND;
    if (err)
        err_set(msg, err, "%s: no data of a broker here (no directory log)", options->data_dir);
    if (!err && (err = data_files_is_free(backup->fs, options->dir)) != ERR_OK)
        err_set(msg, err, "%s: %s: a backup goes into a new or empty directory", options->dir,
                err == ERR_EXISTS ? "is not empty" : err_text(err));
    if (!err)
        err = backup_paths(backup);
    if (!err)
        err = check_outside(backup);
    if (!err)
        err = read_format(backup);
    if (!err)
        err = data_dir_make(options->dir, msg);
    if (!err) {
        data_files_catch_signals();
        err = fs_mkdir(backup->fs, backup->to_log);
        if (err)
            err_set(msg, err, "%s: %s", backup->to_log, err_text(err));
        else
            err = backup_held(backup);
        if (err)
            clean_up(backup);
    }
    if (!err) {
        report(backup);
        err = report_damage(backup);
    }
    checkpoint_look_free(backup->look);
    backup_list_deinit(&backup->list);
    free(backup);
    return err;
}
