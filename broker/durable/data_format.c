#include "broker/durable/data_format.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "tidegate-broker "
#define TEXT_MAX 64

static enum err format_parse(uint32_t *version_out, const char *text)
{
    if (strncmp(text, PREFIX, strlen(PREFIX)) != 0)
        return ERR_CORRUPT;
    char *end;
    unsigned long version = strtoul(text + strlen(PREFIX), &end, 10);
    if (end == text + strlen(PREFIX) || *end != '\n' || version == 0 || version > UINT32_MAX)
        return ERR_CORRUPT;
    *version_out = (uint32_t)version;
    return ERR_OK;
}

static void note_restoring(void *context, const char *name)
{
    const char **found = context;
    if (strcmp(name, DATA_FORMAT_RESTORING_LOG) == 0)
        *found = DATA_FORMAT_RESTORING_LOG;
    else if (strcmp(name, DATA_FORMAT_RESTORING_CHECKPOINT) == 0)
        *found = DATA_FORMAT_RESTORING_CHECKPOINT;
}

/* What a restore makes has these names until it is whole. */
static enum err refuse_half_restored(struct fs *fs, const char *data_dir, struct errmsg *msg)
{
    const char *found = NULL;
    enum err err = fs_list(fs, data_dir, (void *)&found, note_restoring);
    if (err && err != ERR_NOTFOUND)
        return err_set(msg, err, "%s: %s", data_dir, err_text(err));
    return found ? err_set(msg, ERR_EXISTS, "%s/%s: a restore that was interrupted; remove what is in the directory and restore again",
                           data_dir, found)
                 : ERR_OK;
}

enum err data_format_read(uint32_t *version_out, struct fs *fs, const char *data_dir, struct errmsg *msg)
{
    char path[FILE_PATH_MAX], text[TEXT_MAX] = "";
    struct file *file = NULL;
    size_t got = 0;
    *version_out = DATA_FORMAT_LOG_ONLY;
    enum err err = refuse_half_restored(fs, data_dir, msg);
    if (err)
        return err;
    err = file_path(path, data_dir, "format");
    if (!err)
        err = fs_open(fs, &file, path, FILE_READ);
    if (err == ERR_NOTFOUND)
        return ERR_OK;
    if (!err)
        err = file_pread(file, &got, text, sizeof text - 1, 0);
    file_close(file);
    if (!err)
        err = format_parse(version_out, text);
    if (err)
        return err_set(msg, err, "%s/format: %s", data_dir, err_text(err));
    if (*version_out > DATA_FORMAT_NEWEST)
        return err_set(msg, ERR_VERSION, "%s/format: format %" PRIu32 ", and this program knows formats up to %d: use the newer program",
                       data_dir, *version_out, DATA_FORMAT_NEWEST);
    return ERR_OK;
}

enum err data_format_write(struct fs *fs, const char *data_dir, uint32_t version, struct errmsg *msg)
{
    char path[FILE_PATH_MAX], aside[FILE_PATH_MAX], text[TEXT_MAX];
    struct file *file = NULL;
    int size = snprintf(text, sizeof text, PREFIX "%" PRIu32 "\n", version);
    enum err err = file_path(path, data_dir, "format");
    if (!err)
        err = file_path(aside, data_dir, "format.new");
    if (!err)
        err = fs_open(fs, &file, aside, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
    if (!err)
        err = file_pwrite(file, text, (size_t)size, 0);
    if (!err)
        err = file_sync(file);
    file_close(file);
    if (!err)
        err = fs_rename(fs, aside, path);
    if (!err)
        err = fs_sync_dir(fs, data_dir);
    return err ? err_set(msg, err, "%s/format: %s", data_dir, err_text(err)) : ERR_OK;
}
