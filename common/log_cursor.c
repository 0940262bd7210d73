#include "common/log_cursor.h"

#include "common/bytes.h"

#include <stdio.h>

#define LOG_CURSOR_MAGIC 0x52434754u /* "TGCR" */
#define LOG_CURSOR_SIZE 52

int log_cursor_compare(const struct log_cursor_value *a, const struct log_cursor_value *b)
{
    int order = log_position_compare(a->position, b->position);
    if (order == 0)
        order = log_place_compare(a->reopen, b->reopen);
    return order ? order : log_place_compare(a->place, b->place);
}

static enum err log_cursor_path(char *path_out, const char *dir, const char *name)
{
    char file_name[sizeof LOG_CURSOR_PREFIX + LOG_CURSOR_NAME_MAX];
    size_t size = strlen(name);
    if (size == 0 || size >= LOG_CURSOR_NAME_MAX)
        return ERR_INVALID;
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
            return ERR_INVALID;
    }
    snprintf(file_name, sizeof file_name, "%s%s", LOG_CURSOR_PREFIX, name);
    return file_path(path_out, dir, file_name);
}

static enum err log_cursor_decode(struct log_cursor_value *value_out, const uint8_t *bytes)
{
    value_out->broker_id = load_le64(bytes);
    value_out->position.sequence = load_le64(bytes + 8);
    value_out->place.generation = load_le64(bytes + 16);
    value_out->place.offset = load_le64(bytes + 24);
    value_out->reopen.generation = load_le64(bytes + 32);
    value_out->reopen.offset = load_le64(bytes + 40);
    value_out->position.epoch = load_le32(bytes + 48);
    return log_place_compare(value_out->reopen, value_out->place) <= 0 ? ERR_OK : ERR_CORRUPT;
}

static enum err log_cursor_load(struct log_cursor_value *value_out, struct log_slots *slots)
{
    uint8_t bytes[LOG_CURSOR_SIZE];
    enum err err = log_slots_read(slots, bytes, sizeof bytes);
    return err ? err : log_cursor_decode(value_out, bytes);
}

/* Into both slots, one synced before the other is touched: so what the older slot says is durable at any time, and a reader in another
 * process may let go by it. */
static enum err log_cursor_save(struct log_slots *slots, const struct log_cursor_value *value)
{
    uint8_t bytes[LOG_CURSOR_SIZE];
    store_le64(bytes, value->broker_id);
    store_le64(bytes + 8, value->position.sequence);
    store_le64(bytes + 16, value->place.generation);
    store_le64(bytes + 24, value->place.offset);
    store_le64(bytes + 32, value->reopen.generation);
    store_le64(bytes + 40, value->reopen.offset);
    store_le32(bytes + 48, value->position.epoch);
    enum err err = ERR_OK;
    for (int i = 0; i < 2 && !err; i++) {
        err = log_slots_write(slots, bytes, sizeof bytes);
        if (!err)
            err = file_sync(slots->file);
    }
    return err;
}

/* The newest value may be visible and not durable, when the last holder died between its write and its sync, or the sync failed (which
 * loses for good what it should have synced). Write it again in its own place, so that the other slot stays until this one is durable. */
static enum err log_cursor_settle(struct log_slots *slots, const struct log_cursor_value *value)
{
    slots->number--;
    return log_cursor_save(slots, value);
}

enum err log_cursor_create(struct fs *fs, const char *dir, const char *name, const struct log_cursor_value *value)
{
    char path[FILE_PATH_MAX];
    struct log_slots slots;
    struct log_cursor_value existing;
    enum err err = log_cursor_path(path, dir, name);
    if (!err)
        err = log_slots_open(&slots, fs, path, LOG_CURSOR_MAGIC, FILE_READ | FILE_WRITE | FILE_CREATE);
    if (err)
        return err;
    err = log_cursor_load(&existing, &slots);
    if (err == ERR_NOTFOUND) { /* new, or its first write was lost with the power */
        err = log_cursor_save(&slots, value);
        if (!err)
            err = fs_sync_dir(fs, dir);
    }
    log_slots_close(&slots);
    return err;
}

enum err log_cursor_open(struct log_cursor *cursor, struct fs *fs, const char *dir, const char *name, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    enum err err = log_cursor_path(path, dir, name);
    if (err)
        return err_set(msg, err, "cursor \"%s\": not a possible name", name);
    err = log_slots_open(&cursor->slots, fs, path, LOG_CURSOR_MAGIC, FILE_READ | FILE_WRITE);
    if (err)
        return err_set(msg, err, "%s: %s", path, err_text(err));
    err = file_lock(cursor->slots.file);
    if (!err)
        err = log_cursor_load(&cursor->value, &cursor->slots);
    if (!err)
        err = log_cursor_settle(&cursor->slots, &cursor->value);
    if (err) {
        log_slots_close(&cursor->slots);
        return err_set(msg, err, "%s: %s", path, err_text(err));
    }
    return ERR_OK;
}

void log_cursor_close(struct log_cursor *cursor) { log_slots_close(&cursor->slots); }

enum err log_cursor_store(struct log_cursor *cursor, const struct log_cursor_value *value)
{
    enum err err = log_cursor_save(&cursor->slots, value);
    if (!err)
        cursor->value = *value;
    return err;
}

static enum err log_cursor_look(struct log_cursor_value *value_out, struct fs *fs, const char *dir, const char *name, bool older)
{
    uint8_t bytes[LOG_CURSOR_SIZE];
    char path[FILE_PATH_MAX];
    struct log_slots slots;
    enum err err = log_cursor_path(path, dir, name);
    if (!err)
        err = log_slots_open(&slots, fs, path, LOG_CURSOR_MAGIC, FILE_READ);
    if (err)
        return err;
    err = older ? log_slots_read_older(&slots, bytes, sizeof bytes) : log_slots_read(&slots, bytes, sizeof bytes);
    log_slots_close(&slots);
    return err ? err : log_cursor_decode(value_out, bytes);
}

enum err log_cursor_read(struct log_cursor_value *value_out, struct fs *fs, const char *dir, const char *name)
{
    return log_cursor_look(value_out, fs, dir, name, false);
}

enum err log_cursor_read_durable(struct log_cursor_value *value_out, struct fs *fs, const char *dir, const char *name)
{
    return log_cursor_look(value_out, fs, dir, name, true);
}
