#include "common/log_state.h"

#include "common/bytes.h"

#define LOG_STATE_NAME "state"
#define LOG_STATE_MAGIC 0x54534754u /* "TGST" */
#define LOG_STATE_SIZE 52

enum err log_state_open(struct log_state *state, struct fs *fs, const char *dir, bool write)
{
    char path[FILE_PATH_MAX];
    enum err err = file_path(path, dir, LOG_STATE_NAME);
    if (err)
        return err;
    return log_slots_open(&state->slots, fs, path, LOG_STATE_MAGIC, write ? FILE_READ | FILE_WRITE | FILE_CREATE : FILE_READ);
}

void log_state_close(struct log_state *state) { log_slots_close(&state->slots); }

enum err log_state_read(struct log_state *state, struct log_state_value *value_out)
{
    uint8_t bytes[LOG_STATE_SIZE];
    enum err err = log_slots_read(&state->slots, bytes, sizeof bytes);
    if (err)
        return err;
    value_out->broker_id = load_le64(bytes);
    value_out->start = load_le64(bytes + 8);
    value_out->end.place.generation = load_le64(bytes + 16);
    value_out->end.place.offset = load_le64(bytes + 24);
    value_out->end.position.sequence = load_le64(bytes + 32);
    value_out->alignment = load_le64(bytes + 40);
    value_out->end.position.epoch = load_le32(bytes + 48);
    return ERR_OK;
}

enum err log_state_write(struct log_state *state, const struct log_state_value *value)
{
    uint8_t bytes[LOG_STATE_SIZE];
    store_le64(bytes, value->broker_id);
    store_le64(bytes + 8, value->start);
    store_le64(bytes + 16, value->end.place.generation);
    store_le64(bytes + 24, value->end.place.offset);
    store_le64(bytes + 32, value->end.position.sequence);
    store_le64(bytes + 40, value->alignment);
    store_le32(bytes + 48, value->end.position.epoch);
    return log_slots_write(&state->slots, bytes, sizeof bytes);
}
