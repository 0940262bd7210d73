#include "broker/ops/restore.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "broker/durable/data_format.h"
#include "broker/ops/data_files.h"
#include "common/clock.h"
#include "common/data_dir.h"
#include "common/log_identity.h"

struct restore {
    const struct restore_options *options;
    struct fs *fs;
    struct errmsg *msg;
    struct backup_list list;
    char log[FILE_PATH_MAX], checkpoint[FILE_PATH_MAX]; /* aside */
    struct log_identity identity;                       /* the new one */
};

/* ---- the backup ---- */

static enum err read_list(struct restore *restore)
{
    char path[FILE_PATH_MAX];
    struct file *file = NULL;
    uint64_t size = 0;
    uint8_t *text = NULL;
    size_t got = 0;
    struct errmsg why = {{0}};
    enum err err = file_path(path, restore->options->dir, BACKUP_LIST_NAME);
    if (!err)
        err = fs_open(restore->fs, &file, path, FILE_READ);
    if (err)
        return err_set(restore->msg, err, "%s: %s: no backup, or one that was not finished", path, err_text(err));
    err = file_size(file, &size);
    if (!err && size > BACKUP_LIST_SIZE_MAX)
        err = ERR_TOOLARGE;
    if (!err && !(text = (uint8_t *)malloc((size_t)size + 1)))
        err = ERR_NOMEM;
    if (!err)
        err = file_pread(file, &got, text, (size_t)size, 0);
    file_close(file);
    if (!err)
        err = backup_list_parse(&restore->list, span_of(text, got), &why);
    free(text);
    if (!err && restore->list.format > DATA_FORMAT_NEWEST)
        err = err_set(&why, ERR_VERSION, "format %" PRIu32 ": use the newer program", restore->list.format);
    return err ? err_set(restore->msg, err, "%s: %s", path, why.text[0] ? why.text : err_text(err)) : ERR_OK;
}

/* Every file of the list as it was, and all that a start needs among them. */
static enum err verify(struct restore *restore)
{
    const struct backup_list *list = &restore->list;
    bool has_identity = false, has_checkpoint = false;
    for (size_t i = 0; i < list->file_count; i++) {
        const struct backup_file *listed = &list->files[i];
        char path[FILE_PATH_MAX];
        uint64_t size = 0;
        uint32_t crc = 0;
        enum err err = file_path(path, restore->options->dir, listed->name);
        if (!err)
            err = data_files_checksum(&size, &crc, restore->fs, path, restore->msg);
        if (err)
            return err;
        if (size != listed->size || crc != listed->crc)
            return err_set(restore->msg, ERR_CORRUPT,
                           "%s: is not what was backed up: %" PRIu64 " bytes with checksum %08" PRIx32 ", were %" PRIu64 " with %08" PRIx32,
                           path, size, crc, listed->size, listed->crc);
        has_identity = has_identity || strcmp(listed->name, "log/identity") == 0;
        has_checkpoint = has_checkpoint || strcmp(listed->name, "checkpoint/data.mdb") == 0;
    }
    if (!has_identity || has_checkpoint != list->has_checkpoint)
        return err_set(restore->msg, ERR_CORRUPT, "%s/" BACKUP_LIST_NAME ": names no identity, or not the checkpoint",
                       restore->options->dir);
    return ERR_OK;
}

static enum err check_space(struct restore *restore)
{
    uint64_t free_bytes, bytes = backup_list_bytes(&restore->list);
    enum err err = fs_free_bytes(restore->fs, &free_bytes, restore->options->data_dir);
    if (!err && free_bytes < bytes)
        err = ERR_NOSPACE;
    return err ? err_set(restore->msg, err, "%s: %s: the backup has %" PRIu64 " bytes", restore->options->data_dir, err_text(err), bytes)
               : ERR_OK;
}

/* ---- the data directory ---- */

static enum err copy_file(struct restore *restore, const struct backup_file *listed)
{
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX];
    uint64_t size;
    uint32_t crc;
    const char *name = strchr(listed->name, '/');
    if (!name) /* format: made, not copied */
        return ERR_OK;
    enum err err = file_path(from, restore->options->dir, listed->name);
    if (!err)
        err = file_path(to, strncmp(listed->name, "log/", 4) == 0 ? restore->log : restore->checkpoint, name + 1);
    if (err)
        return err_set(restore->msg, err, "%s: path too long", listed->name);
    err = data_files_copy(&size, &crc, restore->fs, from, to, UINT64_MAX, restore->msg);
    if (!err && (size != listed->size || crc != listed->crc))
        err = err_set(restore->msg, ERR_CORRUPT, "%s: changed while it was copied", from);
    return err;
}

/* The new id, with the epoch that the backup's broker had: a start counts on from there. */
static enum err write_identity(struct restore *restore)
{
    enum err err = log_identity_read(&restore->identity, restore->fs, restore->log);
    uint64_t old = restore->identity.broker_id;
    while (!err && (restore->identity.broker_id == old || restore->identity.broker_id == 0))
        err = fs_random(restore->fs, &restore->identity.broker_id, sizeof restore->identity.broker_id);
    if (!err)
        err = fs_random(restore->fs, &restore->identity.start, sizeof restore->identity.start);
    if (err)
        return err_set(restore->msg, err, "%s/identity: %s", restore->log, err_text(err));
    return log_identity_store(&restore->identity, restore->fs, restore->log, restore->msg);
}

static enum err write_cursor(struct restore *restore, const char *name)
{
    struct log_cursor cursor;
    enum err err = log_cursor_open(&cursor, restore->fs, restore->log, name, restore->msg);
    if (err)
        return err;
    struct log_cursor_value value = cursor.value;
    value.broker_id = restore->identity.broker_id;
    err = log_cursor_store(&cursor, &value);
    log_cursor_close(&cursor);
    return err ? err_set(restore->msg, err, "%s/" LOG_CURSOR_PREFIX "%s: %s", restore->log, name, err_text(err)) : ERR_OK;
}

static enum err fill(struct restore *restore)
{
    const struct backup_list *list = &restore->list;
    enum err err = fs_mkdir(restore->fs, restore->log);
    if (!err && list->has_checkpoint)
        err = fs_mkdir(restore->fs, restore->checkpoint);
    if (err)
        return err_set(restore->msg, err, "%s: %s", restore->log, err_text(err));
    for (size_t i = 0; i < list->file_count && !err; i++)
        err = copy_file(restore, &list->files[i]);
    if (!err)
        err = write_identity(restore);
    const char *prefix = "log/" LOG_CURSOR_PREFIX;
    for (size_t i = 0; i < list->file_count && !err; i++)
        if (strncmp(list->files[i].name, prefix, strlen(prefix)) == 0)
            err = write_cursor(restore, list->files[i].name + strlen(prefix));
    if (err)
        return err;
    err = fs_sync_dir(restore->fs, restore->log);
    if (!err && list->has_checkpoint)
        err = fs_sync_dir(restore->fs, restore->checkpoint);
    return err ? err_set(restore->msg, err, "%s: %s", restore->log, err_text(err)) : ERR_OK;
}

static enum err rename_one(struct restore *restore, const char *from, const char *name)
{
    char to[FILE_PATH_MAX];
    enum err err = file_path(to, restore->options->data_dir, name);
    if (!err)
        err = fs_rename(restore->fs, from, to);
    if (!err)
        err = fs_sync_dir(restore->fs, restore->options->data_dir);
    return err ? err_set(restore->msg, err, "%s to %s: %s", from, to, err_text(err)) : ERR_OK;
}

static enum err put_in_place(struct restore *restore)
{
    const struct backup_list *list = &restore->list;
    enum err err = ERR_OK;
    if (list->format >= DATA_FORMAT_CHECKPOINT)
        err = data_format_write(restore->fs, restore->options->data_dir, list->format, restore->msg);
    if (!err)
        err = rename_one(restore, restore->log, "log");
    if (!err && list->has_checkpoint)
        err = rename_one(restore, restore->checkpoint, "checkpoint");
    return err;
}

static void report(const struct restore *restore)
{
    const struct backup_list *list = &restore->list;
    FILE *out = restore->options->out;
    char made[CLOCK_TEXT_SIZE];
    clock_format(made, list->made_ns, 0);
    fprintf(out, "restored %s from %s: the backup of %s, of broker %016" PRIx64 "\n", restore->options->data_dir, restore->options->dir,
            made, list->broker_id);
    fprintf(out, "%zu files, %" PRIu64 " bytes; log: the records before %" PRIu64 ", epoch %" PRIu32 "\n", list->file_count,
            backup_list_bytes(list), list->end.position.sequence, list->end.position.epoch);
    fprintf(out, "its broker id from now on: %016" PRIx64 "\n", restore->identity.broker_id);
}

static enum err restore_locked(struct restore *restore)
{
    const struct restore_options *options = restore->options;
    enum err err = check_space(restore);
    if (!err)
        err = file_path(restore->log, options->data_dir, DATA_FORMAT_RESTORING_LOG);
    if (!err)
        err = file_path(restore->checkpoint, options->data_dir, DATA_FORMAT_RESTORING_CHECKPOINT);
    if (!err)
        err = fill(restore);
    return err ? err : put_in_place(restore);
}

enum err restore_run(const struct restore_options *options, struct errmsg *msg)
{
    struct restore restore = {.options = options, .fs = fs_posix(), .msg = msg};
    struct data_dir data_dir;
    enum err err = data_files_is_free(restore.fs, options->data_dir);
    if (err)
        return err_set(msg, err, "%s: %s: a backup is restored into a new or empty directory; move away what is there", options->data_dir,
                       err == ERR_EXISTS ? "is not empty" : err_text(err));
    bool is_inside;
    err = data_files_is_inside(&is_inside, options->data_dir, options->dir);
    if (!err && is_inside)
        err = ERR_INVALID;
    if (err)
        return err_set(msg, err, "%s: %s", options->data_dir,
                       is_inside ? "is inside the backup, which stays as it is: a backup is restored somewhere else" : err_text(err));
    data_files_catch_signals();
    err = read_list(&restore);
    if (!err)
        err = verify(&restore);
    if (!err)
        err = data_dir_open(&data_dir, options->data_dir, "broker.lock", msg);
    if (!err) {
        err = restore_locked(&restore);
        data_dir_close(&data_dir);
        if (!err)
            report(&restore);
    }
    backup_list_deinit(&restore.list);
    return err;
}
