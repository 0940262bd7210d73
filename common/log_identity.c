#include "common/log_identity.h"

#include "common/bytes.h"
#include "common/log_slots.h"
#include "common/log_version.h"

#define LOG_IDENTITY_NAME "identity"
#define LOG_IDENTITY_MAGIC 0x44494754u /* "TGID" */
#define LOG_IDENTITY_SIZE 20

static enum err log_identity_load(struct log_identity *identity_out, struct log_slots *slots)
{
    uint8_t bytes[LOG_IDENTITY_SIZE];
    enum err err = log_slots_read(slots, bytes, sizeof bytes);
    if (err)
        return err;
    identity_out->broker_id = load_le64(bytes);
    identity_out->start = load_le64(bytes + 8);
    identity_out->epoch = load_le32(bytes + 16);
    return identity_out->broker_id ? ERR_OK : ERR_CORRUPT;
}

enum err log_identity_read(struct log_identity *identity_out, struct fs *fs, const char *dir)
{
    char path[FILE_PATH_MAX];
    struct log_slots slots;
    enum err err = file_path(path, dir, LOG_IDENTITY_NAME);
    if (!err)
        err = log_slots_open(&slots, fs, path, LOG_IDENTITY_MAGIC, FILE_READ);
    if (err)
        return err;
    err = log_identity_load(identity_out, &slots);
    log_slots_close(&slots);
    return err;
}

/* A random number that is not 0. */
static enum err log_identity_draw(uint64_t *value_out, struct fs *fs)
{
    enum err err;
    do {
        err = fs_random(fs, value_out, sizeof *value_out);
    } while (!err && *value_out == 0);
    return err;
}

static enum err log_identity_save(struct log_slots *slots, const struct log_identity *identity, struct fs *fs, const char *dir)
{
    uint8_t bytes[LOG_IDENTITY_SIZE];
    store_le64(bytes, identity->broker_id);
    store_le64(bytes + 8, identity->start);
    store_le32(bytes + 16, identity->epoch);
    enum err err = log_slots_write(slots, bytes, sizeof bytes);
    if (!err)
        err = file_sync(slots->file);
    return err ? err : fs_sync_dir(fs, dir);
}

enum err log_identity_begin(struct log_identity *identity_out, struct fs *fs, const char *dir, uint32_t epoch_seen, bool create,
                            struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    struct log_slots slots;
    struct log_identity identity = {0};
    enum err err = file_path(path, dir, LOG_IDENTITY_NAME);
    if (err)
        return err_set(msg, err, "%s: path too long", dir);
    err = log_slots_open(&slots, fs, path, LOG_IDENTITY_MAGIC, FILE_READ | FILE_WRITE | (create ? FILE_CREATE : 0));
    if (err == ERR_NOTFOUND)
        return err_set(msg, ERR_CORRUPT, "%s: missing beside a log that has records; see `tidegate-broker repair`", path);
    if (err)
        return err_set(msg, err, "%s: %s", path, err_text(err));
    err = log_identity_load(&identity, &slots);
    if (err == ERR_CORRUPT || (err == ERR_NOTFOUND && !create)) {
        log_slots_close(&slots);
        return err_set(msg, ERR_CORRUPT, "%s: neither of its two slots, at 0 and 4096, is whole; see `tidegate-broker repair`", path);
    }
    if (err == ERR_NOTFOUND && create)
        err = log_identity_draw(&identity.broker_id, fs);
    if (!err)
        err = log_identity_draw(&identity.start, fs);
    if (err)
        goto out;
    if (identity.epoch < epoch_seen)
        identity.epoch = epoch_seen;
    if (identity.epoch == UINT32_MAX) {
        err = ERR_INVALID;
        goto out;
    }
    identity.epoch++;
    err = log_identity_save(&slots, &identity, fs, dir);
    if (!err && create) /* both slots have their space from now on, however full the disk becomes */
        err = log_identity_save(&slots, &identity, fs, dir);
    if (!err)
        *identity_out = identity;
out:
    log_slots_close(&slots);
    if (err == ERR_VERSION)
        return log_version_refuse(fs, path, LOG_SLOT_STRIDE, LOG_SLOT_VERSION, msg);
    return err ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

enum err log_identity_store(const struct log_identity *identity, struct fs *fs, const char *dir, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    struct log_slots slots;
    struct log_identity ignored; /* only for the number of its slot */
    enum err err = file_path(path, dir, LOG_IDENTITY_NAME);
    if (err)
        return err_set(msg, err, "%s: path too long", dir);
    err = log_slots_open(&slots, fs, path, LOG_IDENTITY_MAGIC, FILE_READ | FILE_WRITE | FILE_CREATE);
    if (err)
        return err_set(msg, err, "%s: %s", path, err_text(err));
    err = log_identity_load(&ignored, &slots);
    if (err == ERR_NOTFOUND || err == ERR_CORRUPT)
        err = ERR_OK;
    if (!err)
        err = log_identity_save(&slots, identity, fs, dir);
    log_slots_close(&slots);
    if (err == ERR_VERSION)
        return log_version_refuse(fs, path, LOG_SLOT_STRIDE, LOG_SLOT_VERSION, msg);
    return err ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}
